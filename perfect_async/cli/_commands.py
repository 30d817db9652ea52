"""The commands of `perfect-async`; their signatures and docstrings are its options and help."""

from __future__ import annotations

import errno
import json as json_
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from perfect_async.cli import _runner
from perfect_async.cli._buy import (
    OUT,
    Options,
    buy_pictures,
    check_report,
    find_or_failed,
    polling,
    report_run,
)
from perfect_async.cli._inputs import Picture, find_pictures
from perfect_async.cli._output import OutputError, print_error, print_line
from perfect_async.cli._page import show_page
from perfect_async.cli._wording import in_terminal_terms
from perfect_async.errors import ConfigurationError, quoted, redacted, shown_source
from perfect_async.models import Avatar, Expression, Job, Smile

# `--help` runs none of this, so the client and all that it needs are loaded by the commands.
if TYPE_CHECKING:
    from perfect_async import Client, Template, Units
    from perfect_async.cli._outage import Outage


def smile(
    pictures: list[str] | None = None,
    /,
    *,
    expression: Expression = "smile_with_teeth_visible",
    out: Path = OUT,
    json: bool = False,
    journal: Path | None = None,
    again: bool = False,
    delete: bool = False,
    max_units: float | None = None,
    insured: float | None = None,
    lease: float | Literal["measured"] | None = None,
    sole_user: bool = False,
    fit: bool = False,
    report: Path | None = None,
    dry_run: bool = False,
    yes: bool = False,
    retry_failed: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> int:
    """Make portraits smile: 1 unit each.

    A picture whose result is in the folder of results already is not bought again.

    Parameters
    ----------
    pictures
        Files, folders, patterns ("photos/**/*.jpg") and URLs; jpg, png or heic. "-" reads one a
        line from stdin. A CSV file is a list: its column "picture" names them, and "key", where
        there is one, is your own name of the job.
    expression
        The kind of smile.
    out
        Folder for the results; made where it is missing. A hidden file in it records which result
        belongs to which picture.
    json
        Print one line of JSON per picture on stdout instead of the paths of the results.
    journal
        A file, made where it is missing, that records every purchase: after a crash `resume`
        continues this run, and pictures that were finished within a day are not bought again.
    again
        Buy results that are in the folder already again; the older files stay.
    delete
        Delete the vendor's copies of the face and its result once the result is saved.
    max_units
        The most units that the run may be charged; pictures beyond that are not sent.
    insured
        Seconds for which every running task can be kept alive in the worst case; 120 by default.
        With 600 no task is lost however slow the vendor gets, and the run takes longer.
    lease
        Seconds for which a running task survives without a poll; 10 by default, the shortest that
        the vendor's documents name. "measured" uses what `doctor --measure-lease` found for this
        key and host. Polls are then rarer, and the run is faster; if the vendor's lease is shorter,
        tasks are lost with their units.
    sole_user
        Promise that nothing else creates tasks on this account during the run. A task whose
        creation got no answer can then be found in the unit history. If it is not true, another
        program's task may be taken for it, and another person's face saved as the result.
    fit
        Convert pictures that the vendor refuses: over 4096 pixels, of 10 MiB or more, webp, gif,
        bmp and tiff. Also those that it takes and may show wrongly: turned by EXIF, in CMYK, or
        with 16 bits for a colour; without this option they are sent as they are, and charged. The
        files stay as they are. What was bought without it is not bought again.
    report
        A file for a report of this run: a page with all pictures (.html), or a table (.csv).
    dry_run
        Print what would be sent, what it would cost and how long it would take; send and write
        nothing. Works without a key.
    yes
        Do not ask. On a terminal a run asks from 20 units on, or where the balance is too low.
    retry_failed
        Send only the pictures that failed in the last run into the folder of results.
    quiet
        Print results and errors only.
    verbose
        Also print each picture that is done, the names of all that are skipped, and the log: every
        request to the vendor with its answer.
    """
    return buy_pictures(
        find_or_failed(pictures, Smile.formats, out, fit=fit, failed=retry_failed),
        lambda picture: Smile(picture, expression),
        Options(
            out=out,
            json=json,
            journal=journal,
            delete=delete,
            max_units=max_units,
            insured=insured,
            lease=lease,
            sole_user=sole_user,
            fit=fit,
            report=report,
            dry_run=dry_run,
            yes=yes,
            quiet=quiet,
            verbose=verbose,
            again=again,
        ),
    )


def avatar(
    pictures: list[str] | None = None,
    /,
    *,
    template: str,
    count: int = 4,
    out: Path = OUT,
    json: bool = False,
    journal: Path | None = None,
    again: bool = False,
    delete: bool = False,
    max_units: float | None = None,
    insured: float | None = None,
    lease: float | Literal["measured"] | None = None,
    sole_user: bool = False,
    fit: bool = False,
    report: Path | None = None,
    dry_run: bool = False,
    yes: bool = False,
    retry_failed: bool = False,
    quiet: bool = False,
    verbose: bool = False,
) -> int:
    """Make avatars of portraits: 1 unit per 4 avatars of a portrait, rounded up.

    A portrait whose avatars are in the folder of results already is not bought again.

    Parameters
    ----------
    pictures
        Files, folders, patterns ("photos/**/*.jpg") and URLs; jpg or png. "-" reads one a line
        from stdin. A CSV file is a list: its column "picture" names them, and "key", where there is
        one, is your own name of the job.
    template
        The id of the style (see `templates`).
    count
        Avatars of each portrait, 1 to 200.
    out
        Folder for the results; made where it is missing. A hidden file in it records which result
        belongs to which picture.
    json
        Print one line of JSON per picture on stdout instead of the paths of the results.
    journal
        A file, made where it is missing, that records every purchase: after a crash `resume`
        continues this run.
    again
        Buy results that are in the folder already again; the older files stay.
    delete
        Delete the vendor's copies of the face and its result once the result is saved.
    max_units
        The most units that the run may be charged; pictures beyond that are not sent.
    insured
        Seconds for which every running task can be kept alive in the worst case; 120 by default.
        With 600 no task is lost however slow the vendor gets, and the run takes longer.
    lease
        Seconds for which a running task survives without a poll; 10 by default, the shortest that
        the vendor's documents name. "measured" uses what `doctor --measure-lease` found for this
        key and host. Polls are then rarer, and the run is faster; if the vendor's lease is shorter,
        tasks are lost with their units.
    sole_user
        Promise that nothing else creates tasks on this account during the run. A task whose
        creation got no answer can then be found in the unit history. If it is not true, another
        program's task may be taken for it, and another person's face saved as the result.
    fit
        Convert pictures that the vendor refuses: over 4096 pixels, of 10 MiB or more, webp, gif,
        bmp and tiff. Also those that it takes and may show wrongly: turned by EXIF, in CMYK, or
        with 16 bits for a colour; without this option they are sent as they are, and charged. The
        files stay as they are. What was bought without it is not bought again.
    report
        A file for a report of this run: a page with all pictures (.html), or a table (.csv).
    dry_run
        Print what would be sent, what it would cost and how long it would take; send and write
        nothing. Works without a key.
    yes
        Do not ask. On a terminal a run asks from 20 units on, or where the balance is too low.
    retry_failed
        Send only the pictures that failed in the last run into the folder of results.
    quiet
        Print results and errors only.
    verbose
        Also print each picture that is done, the names of all that are skipped, and the log: every
        request to the vendor with its answer.
    """
    return buy_pictures(
        find_or_failed(pictures, Avatar.formats, out, fit=fit, failed=retry_failed),
        lambda picture: Avatar(picture, template_id=template, output_count=count),
        Options(
            out=out,
            json=json,
            journal=journal,
            delete=delete,
            max_units=max_units,
            insured=insured,
            lease=lease,
            sole_user=sole_user,
            fit=fit,
            report=report,
            dry_run=dry_run,
            yes=yes,
            quiet=quiet,
            verbose=verbose,
            again=again,
        ),
    )


def resume(
    *,
    journal: Path,
    json: bool = False,
    insured: float | None = None,
    lease: float | Literal["measured"] | None = None,
    sole_user: bool = False,
    fit: bool = False,
    report: Path | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> int:
    """Continue the last run with this journal, and save to the folder that it was given.

    Running tasks are kept alive, finished ones are fetched, and unsent pictures are sent. A picture
    whose sending was cut off is in doubt: the unit history shows whether it may have been charged,
    and it is not sent again.

    Parameters
    ----------
    journal
        The journal's file.
    json
        Print one line of JSON per picture on stdout instead of the paths of the results.
    insured
        Seconds for which every running task can be kept alive in the worst case, as in the run that
        is continued; 120 by default.
    lease
        Seconds for which a running task survives without a poll, as in the run that is continued;
        10 by default. "measured" uses what `doctor --measure-lease` found.
    sole_user
        Promise that nothing else creates tasks on this account. A task whose creation got no
        answer can then be found in the unit history. If it is not true, another program's task may
        be taken for it, and another person's face saved as the result.
    fit
        Convert pictures that the vendor refuses, as in the run that is continued.
    report
        A file for a report of this run: a page with all pictures (.html), or a table (.csv).
    quiet
        Print results and errors only.
    verbose
        Also print each picture that is done, and the log: every request to the vendor with its
        answer.
    """
    _runner.require_journal(journal)
    from perfect_async.cli._display import Display
    from perfect_async.cli._prepare import reach

    check_report(report)

    client = _runner.make_client(journal, polling(insured, lease), sole_user=sole_user, fit=fit)
    display = Display("json" if json else "paths", quiet=quiet, verbose=verbose)

    async def ready(opened: Client, outage: Outage) -> None:
        await reach(opened, display, outage)

    with display:
        work = partial(_runner.run_batch, client, lambda opened: opened.resume(), display, journal)
        summary = _runner.run(partial(work, prepare=ready, reported=report is not None))
    if summary.jobs:
        display.close(summary, None)
    else:
        display.message(f"Nothing is left to resume in {journal}: all of its jobs are finished.")
    return report_run(summary, report, display)


def templates(*, json: bool = False, open_: bool = False) -> None:
    """List the styles for avatars.

    Parameters
    ----------
    json
        Print one line of JSON per style.
    open_
        Show their thumbnails in the browser, and print the path of that page instead.
    """
    from perfect_async.cli._display import print_table
    from perfect_async.cli._prepare import answer_of

    async def ask() -> list[Template]:
        return [template async for template in client.templates()]

    client = _runner.make_client()
    found = _runner.run(partial(answer_of, client, ask))
    if open_:
        show_page(found)
    elif json:
        for one in found:
            fields = {
                "id": one.id,
                "title": one.title,
                "category": one.category,
                "thumb": one.thumb,
            }
            print_line(json_.dumps(fields))
    else:
        rows = [(one.id, one.title, one.category) for one in found]
        print_table(["id", "title", "category"], rows)


def units(*, json: bool = False) -> None:
    """Show the balance of units and the grants that it consists of.

    Parameters
    ----------
    json
        Print one line of JSON.
    """
    from perfect_async.cli._display import print_table
    from perfect_async.cli._prepare import answer_of

    async def ask() -> Units:
        return await client.units()

    client = _runner.make_client()
    found = _runner.run(partial(answer_of, client, ask))
    grants = [(one.kind, one.amount, one.expires_at) for one in found.grants]
    if json:
        listed = [
            {
                "kind": kind,
                "amount": amount,
                "expires_at": None if expires is None else expires.isoformat(),
            }
            for kind, amount, expires in grants
        ]
        print_line(json_.dumps({"balance": found.balance, "grants": listed}))
        return
    rows = [
        (kind, f"{amount:g}", "never" if expires is None else f"{expires:%Y-%m-%d}")
        for kind, amount, expires in grants
    ]
    balance = "unknown" if found.balance is None else f"{found.balance:g}"
    print_table(["units", "amount", "until"], [("balance", balance, ""), *rows])


def forget(*, journal: Path) -> int:
    """Delete finished jobs from a journal: paths and names at once, task ids after a day.

    Unfinished jobs stay, and can be resumed. A picture whose job was deleted is bought again when
    it is asked for again and its result is not in the folder. While it is in doubt whether a
    picture was bought, nothing is deleted, and the exit status is 1: resume the journal first.

    Parameters
    ----------
    journal
        The journal's file; no other process may be using it.
    """
    from perfect_async._journal.writer import JournalWriter
    from perfect_async.errors import SubmissionInDoubt

    _runner.require_journal(journal)
    try:
        deleted = _runner.run(lambda: JournalWriter.forget(journal))
    except SubmissionInDoubt as exc:
        print_error(exc.message)
        return _runner.FAILED
    print_line(f"{deleted} finished {'job' if deleted == 1 else 'jobs'} forgotten")
    return 0


def _forget_ledgers(port: int, *hosts: str) -> None:
    """Forget what clients of a former sandbox on `port` sent: a new one has an empty window."""
    from perfect_async._ledger.folder import default_folder, forget
    from perfect_async._ledger.rows import LedgerUnavailable, host_digest

    with suppress(LedgerUnavailable):
        folder = default_folder()
        for host in {*hosts, "127.0.0.1", "localhost", "[::1]"}:
            forget(folder, host_digest(f"http://{host}:{port}"))


def enqueue(
    pictures: list[str],
    /,
    *,
    redis: str | None = None,
    out: Path = OUT,
    expression: Expression = "smile_with_teeth_visible",
    template: str | None = None,
    count: int = 4,
) -> None:
    """Put portraits into a queue on Redis, for `worker` on other machines: smiles, or avatars.

    Nothing is bought here. A portrait that waits in the queue already is not put there twice, and
    one whose result a worker bought within a day is not bought again.

    Parameters
    ----------
    pictures
        Files, folders, patterns ("photos/**/*.jpg") and URLs. Files must be on a disk that the
        workers see under the same paths.
    redis
        The server's URL, redis://host:6379; else the variable PERFECT_ASYNC_SHARE, which other
        users of the machine do not see.
    out
        Folder for the results, on a disk that the workers see under the same path.
    expression
        The kind of smile.
    template
        The id of a style (see `templates`): avatars are made instead of smiles.
    count
        Avatars of each portrait, 1 to 200.
    """
    from perfect_async import fleet

    def make_job(picture: Picture) -> Job:
        source = picture if isinstance(picture, str) else picture.absolute()
        if template is None:
            return Smile(source, expression)
        return Avatar(source, template_id=template, output_count=count)

    formats = Smile.formats if template is None else Avatar.formats
    folder = out.absolute()
    orders = [
        fleet.make_order(make_job(each), folder) for each in find_pictures(pictures, formats, out)
    ]
    url = _redis(redis)
    queued = _runner.run(lambda: fleet.enqueue(url, orders))
    print_line(f"{queued} {'order' if queued == 1 else 'orders'} in the queue")


def worker(*, redis: str | None = None, folder: list[Path], json: bool = False) -> int:
    """Perform the orders of `enqueue` until Ctrl-C, beside any number of other workers.

    All workers on a key share its request window and buy each order once. Ctrl-C or SIGTERM stops
    new work; running tasks finish and are saved, and other workers get the rest.

    Parameters
    ----------
    redis
        The server's URL, redis://host:6379; else the variable PERFECT_ASYNC_SHARE, which other
        users of the machine do not see.
    folder
        A folder in which orders may name pictures and save results; repeat it for several.
    json
        Print one line of JSON per order on stdout instead of the paths of the results.
    """
    from perfect_async import fleet
    from perfect_async.fleet import Answer, Worker

    def report(order: fleet.Order, answer: Answer) -> None:
        source, error = shown_source(str(order.get("source"))), answer["error"]
        if error is not None:
            error["message"] = in_terminal_terms(error["message"])
            error["hint"] = in_terminal_terms(error["hint"])
        if json:
            print_line(json_.dumps({"source": source, **answer}))
        elif error is None:
            for file in answer["files"]:
                print_line(file)
        else:
            print_error(f"{source}: {error['message']} {error['hint']}")

    for each in folder:
        if not each.is_dir():
            raise ConfigurationError(f"--folder {quoted(each)} is no folder.")
    return _runner.run_worker(Worker(_redis(redis), folder, on_answer=report))


def sandbox(
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    seed: int = 0,
    units: float = 1000.0,
    lease: float | Literal["polling_interval", "retention", "flexible"] = 10.0,
    polling_interval: int | None = None,
    charging: Literal["creation", "success"] = "creation",
    errors: Literal["both", "text", "code", "errorCode"] = "both",
    fail: float = 0.0,
    speed: float = 1.0,
    webhook_url: str | None = None,
    webhook_secret_file: Path | None = None,
) -> None:
    """Serve a simulated vendor on a port until Ctrl-C, for any client in any language.

    It has the vendor's rules, limits and prices, takes any key, and prints its ledger at the end.

    Parameters
    ----------
    host
        The address to listen on.
    port
        The port to listen on, 1 to 65535.
    seed
        The seed of everything random but the ids, which no two runs share.
    units
        The balance at the start.
    lease
        Seconds after which a running task that was not polled is lost, or another published
        reading: within the polling interval, within the retention (24 hours), or never
        ("flexible").
    polling_interval
        Milliseconds that clients are to wait, in the answers to polls; none by default.
    charging
        When units are taken: at the creation, and given back for a failure; or for a success only.
    errors
        The fields of an error: its text ("error") and its code ("error_code"), one of them, or
        the text and "errorCode".
    fail
        The share of tasks that the engine fails, 0 to 1.
    speed
        Divides the time that the engine takes.
    webhook_url
        The URL to notify of tasks that ended. Notifications are signed with the secret in the
        variable YOUCAM_WEBHOOK_SECRET, or with several, separated by white space.
    webhook_secret_file
        A file with the secret, in place of the variable.
    """
    import socket

    if lease == "polling_interval" and polling_interval is None:
        raise ConfigurationError("--lease polling_interval needs --polling-interval.")
    from perfect_async.sandbox import Dialect, run

    secrets = None if webhook_url is None else _secrets(webhook_url, webhook_secret_file)
    try:
        # The server would exit with its own message and status.
        socket.create_server((host, port)).close()
    except OSError as exc:
        reason = str(exc.strerror or exc).partition(" (while")[0]
        # A name that is not found has a number below 0, for which there is no text.
        if exc.errno is not None and exc.errno > 0:
            reason = os.strerror(exc.errno)
        other = "; pass another --port" if exc.errno == errno.EADDRINUSE else ""
        raise ConfigurationError(f"cannot listen on {host} port {port}: {reason}{other}.") from exc
    _forget_ledgers(port, host)
    run(
        host=host,
        port=port,
        seed=seed,
        units=units,
        lease=lease,
        engine_errors=fail,
        speed=speed,
        webhook_url=webhook_url,
        webhook_secret=secrets,
        polling_interval=polling_interval,
        charging=charging,
        dialect=Dialect(errors=errors),
    )


def demo(
    pictures: list[str] | None = None,
    /,
    *,
    out: Path = Path("perfect-async-demo"),
    fail: float = 0.0,
    seed: int = 0,
) -> int:
    """Make 24 drawn portraits smile, on a sandbox inside this process: no key, no network.

    Parameters
    ----------
    pictures
        Your own files, folders and patterns instead; they stay on this machine.
    out
        Folder for the pictures, a report, a contact sheet and a summary; made where it is missing.
    fail
        The share of pictures that the engine fails, 0 to 1; the exit status is then 1.
    seed
        Selects the portraits that are drawn and the pictures that fail.
    """
    found = None if pictures is None else find_pictures(pictures, Smile.formats, out)
    from perfect_async.cli._demo import Demo
    from perfect_async.cli._display import Display

    _runner.make_folder(out)
    show = Demo(out, found, fail=fail, seed=seed)
    display = Display("nothing")
    display.message(show.announcement)
    with display:
        summary = _runner.run(lambda: show.run(display))
    display.close(summary, show.results)
    paths = show.write_report(summary)
    display.message(f"Open the report in a browser: {paths[0]}")
    status = _runner.exit_status(summary)
    try:
        for path in paths:
            print_line(str(path))
    except OutputError as exc:
        print_error(str(exc))
        return status or _runner.FAILED
    return status


def report(
    pictures: list[str] | None = None,
    /,
    *,
    to: Path = Path("perfect-async-report.html"),
    out: Path = OUT,
    journal: Path | None = None,
) -> int:
    """Write a report of the results in a folder: nothing is sent.

    `--report` of a run writes a report of that run, with its timeline and account.

    Parameters
    ----------
    pictures
        The originals: files, folders, patterns and URLs. Each is shown beside its result.
    to
        The report: a page with all pictures (.html), or a table (.csv).
    out
        The folder of the results.
    journal
        The journal of the runs, for the jobs that have not ended; no other process may be using it.
    """
    check_report(to)
    found = [] if pictures is None else find_pictures(pictures, Smile.formats, out)
    if journal is not None:
        _runner.require_journal(journal)
    from perfect_async._journal.writer import JournalWriter
    from perfect_async.cli._manifest import Manifest, leave_out_results
    from perfect_async.cli._report import write_folder

    manifest = Manifest(out)
    originals, _ = leave_out_results(found, manifest)
    unfinished = () if journal is None else _runner.run(partial(JournalWriter.unfinished, journal))
    write_folder(manifest, originals, unfinished, to)
    print_line(str(to))
    return 0


def _redis(url: str | None) -> str:
    from perfect_async._client.settings import SHARE_VARIABLE

    given, name = url, "--redis"
    if not given:
        given, name = os.environ.get(SHARE_VARIABLE, ""), SHARE_VARIABLE
    if given.startswith(("redis://", "rediss://")):
        return given
    if not given:
        raise ConfigurationError(
            f"no server is named: pass --redis redis://HOST:6379, or set {SHARE_VARIABLE} to that."
        )
    raise ConfigurationError(
        f"{name} is {quoted(redacted(given))}; it must begin with redis:// or rediss://."
    )


def _secrets(url: str, path: Path | None) -> list[str]:
    """Return the webhook's secrets. A secret is no option: other users can list command lines."""
    from perfect_async._client.settings import SECRET_VARIABLE
    from perfect_async.webhooks import Secrets

    if not url.lower().startswith(("http://", "https://")):
        raise ConfigurationError(f"--webhook-url is {quoted(url)}; it must be http:// or https://.")
    try:
        text = os.environ.get(SECRET_VARIABLE, "") if path is None else path.read_text("utf-8")
    except (OSError, ValueError) as exc:
        # The text of a decoding error quotes the file's content.
        reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigurationError(f"--webhook-secret-file cannot be read: {reason}.") from None
    found = text.split()
    if not found:
        raise ConfigurationError(
            f"--webhook-url needs a secret: set {SECRET_VARIABLE} or pass --webhook-secret-file."
        )
    Secrets(found)
    return found
