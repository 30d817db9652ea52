"""Buy the jobs of a command: say what will be done, ask, run them as a batch, and report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from perfect_async.cli import _runner
from perfect_async.cli._inputs import Entry, Found, Picture, search
from perfect_async.cli._output import print_error
from perfect_async.cli._wording import in_terminal_terms
from perfect_async.errors import ConfigurationError, quoted
from perfect_async.models import ASSUMED_LEASE, Job, Polling

# `--help` runs none of this, so the client and all that it needs are loaded by the functions.
if TYPE_CHECKING:
    from perfect_async import Batch, Client
    from perfect_async.cli._display import Display, RunSummary
    from perfect_async.cli._outage import Outage
    from perfect_async.cli._prepare import Work

OUT: Final = Path("perfect-async-out")

Lease: TypeAlias = float | Literal["measured"] | None
"""The value of `--lease`; None where it is not given."""


@attrs.frozen(kw_only=True)
class Options:
    """The options that `smile`, `avatar` and `feature` share."""

    out: Path
    json: bool
    journal: Path | None
    delete: bool
    max_units: float | None
    insured: float | None
    lease: Lease
    sole_user: bool
    fit: bool
    report: Path | None
    dry_run: bool
    yes: bool
    quiet: bool
    verbose: bool
    again: bool = False


def polling(insured: float | None, lease: Lease) -> Polling:
    """Return the settings of polls, the default ones where an option is not given."""
    return Polling(
        insured=Polling().insured if insured is None else insured,
        lease=ASSUMED_LEASE if lease is None else lease,
    )


def find_or_failed(
    pictures: list[str] | None, formats: Sequence[str], out: Path, *, fit: bool, failed: bool
) -> Found:
    """Return the pictures that are named, or with `failed` those of them that failed last."""
    from perfect_async.cli._failed import only_failed, read_failed

    if not failed:
        return search(pictures or [], formats, out, fit=fit)
    entries = read_failed(out)
    why = f"No failed picture is recorded in {out}"
    if pictures and entries:
        found = search(pictures, formats, out, fit=fit)
        # One that was skipped in a folder failed where it was named itself.
        named = [*found.entries, *(Entry(each.picture) for each in found.skipped)]
        entries = [attrs.evolve(each, named=True) for each in only_failed(named, entries)]
        why = f"None of the pictures that failed last into {out} is named"
    return Found(entries, [], f"{why}: nothing is to be sent again.")


def buy_pictures(found: Found, make_job: Callable[[Picture], Job], options: Options) -> int:
    """Buy the jobs of the pictures whose results are not there; return the exit status."""
    from perfect_async.cli._failed import note_failed
    from perfect_async.cli._manifest import Manifest
    from perfect_async.cli._prepare import work_out

    display = _display(options)
    if not found.entries:
        display.message(found.nothing)
        return 0
    check_report(options.report)
    # Wrong options of the job are refused before the folder is made.
    make_job(found.entries[0].picture)
    client = _client(options, display)
    if not options.dry_run:
        _runner.make_folder(options.out)
    manifest = Manifest(options.out)
    work = work_out(
        found,
        make_job,
        manifest,
        display,
        again=options.again,
        fit=options.fit,
        max_units=options.max_units,
    )
    if options.dry_run:
        return _say_only(work, client, display)
    if manifest.broken:
        display.message(_runner.rebuild(manifest))
    _runner.record_former(manifest, work.plan)
    summary = _carry_out(work, client, display, options)
    if summary is None:
        return _runner.FAILED
    note_failed(summary, work.entries, options.out, display)
    return report_run(summary, options.report, display)


def buy_one(job: Job, options: Options) -> int:
    """Buy one job without looking for its result in the folder; return the exit status."""
    from perfect_async.cli._prepare import work_of

    display = _display(options)
    check_report(options.report)
    client = _client(options, display)
    if not options.dry_run:
        _runner.make_folder(options.out)
    work = work_of(job, display, fit=options.fit, max_units=options.max_units)
    if options.dry_run:
        return _say_only(work, client, display)
    summary = _carry_out(work, client, display, options, recorded=False)
    if summary is None:
        return _runner.FAILED
    return report_run(summary, options.report, display)


def _display(options: Options) -> Display:
    from perfect_async.cli._display import Display

    results: Literal["json", "paths"] = "json" if options.json else "paths"
    return Display(results, quiet=options.quiet, verbose=options.verbose)


def _client(options: Options, display: Display) -> Client | None:
    """Return the client of a run; None for a dry run that has no key."""
    journal = None if options.dry_run else options.journal
    if journal is not None and not journal.parent.is_dir():
        raise ConfigurationError(
            f"--journal {quoted(journal)} cannot be made: there is no folder "
            f"{quoted(journal.parent)}."
        )
    try:
        return _runner.make_client(
            journal,
            polling(options.insured, options.lease),
            sole_user=options.sole_user,
            fit=options.fit,
        )
    except ConfigurationError as exc:
        if not options.dry_run:
            raise
        display.message(f"The balance cannot be asked for: {in_terminal_terms(exc.message)}")
        return None


def _say_only(work: Work, client: Client | None, display: Display) -> int:
    """Print what a run would do."""
    from perfect_async.cli._prepare import order_now

    order = work.order
    if client is not None and order.send:
        with display:
            order = _runner.run(partial(order_now, client, display, work))
    display.error(str(order))
    display.message("This was a dry run: nothing was sent.")
    return 0


def _carry_out(
    work: Work,
    client: Client | None,
    display: Display,
    options: Options,
    *,
    recorded: bool = True,
) -> RunSummary | None:
    """Print the plan, ask, and run the jobs; return None where the answer is no.

    With `recorded` the manifest of the folder records what is saved.
    """
    from perfect_async.cli._display import report_refused, report_there
    from perfect_async.cli._prepare import Declined, prepare

    plan, journal = work.plan, options.journal
    work = attrs.evolve(work, order=attrs.evolve(work.order, at_most=journal is not None))
    reports = [report_there(job, files) for job, files in plan.there]
    reports += [report_refused(job, error) for job, error in work.refused]

    def start(opened: Client) -> Batch:
        return opened.batch(
            plan.jobs, max_units=options.max_units, save_to=options.out, delete=options.delete
        )

    async def ready(opened: Client, outage: Outage) -> None:
        await prepare(opened, display, outage, work, yes=options.yes)

    try:
        with display:
            if plan.jobs and client is not None:
                run = partial(_runner.run_batch, client, start, display, journal, reports)
                reported = options.report is not None
                summary = _runner.run(
                    partial(run, recorded=recorded, prepare=ready, reported=reported)
                )
            else:
                display.message(str(work.order))
                summary = _runner.report_only(reports, display)
    except Declined:
        display.message("Nothing was sent.")
        return None
    summary = attrs.evolve(summary, skipped=len(work.order.skipped))
    display.close(summary, options.out)
    return summary


def check_report(path: Path | None) -> None:
    """Refuse a report that cannot be written before anything is bought."""
    if path is not None:
        from perfect_async.report import check_path

        check_path(path)


def report_run(summary: RunSummary, path: Path | None, display: Display) -> int:
    """Write the report of a run, if it is to have one; return the exit status."""
    status = _runner.exit_status(summary)
    if path is None:
        return status
    from perfect_async.cli._report import write_run

    try:
        write_run(summary, path)
    except ConfigurationError as exc:
        # The pictures are paid for and saved all the same.
        print_error(exc.message)
        return status or _runner.FAILED
    display.message(f"The report: {path}")
    return status
