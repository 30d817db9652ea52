"""The terminal program: the same from a shell.

Exit status: 0 all done, 1 some failed, 2 usage or configuration, 130 left at once by Ctrl-C.
"""

from __future__ import annotations

import asyncio
import json as json_
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from perfect_async import (
    Avatar,
    Client,
    ConfigurationError,
    Job,
    JobRefused,
    PerfectError,
    Smile,
    Template,
    Unauthorized,
    Units,
)
from perfect_async._sources import expand
from perfect_async.errors import quoted
from perfect_async.models import Expression

if TYPE_CHECKING:
    from perfect_async._terminal import Tally

T = TypeVar("T")

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130

OUT: Final = Path("perfect-async-out")
WEBHOOK_VARIABLE: Final = "YOUCAM_WEBHOOK_SECRET"

_HELP: Final = """Perfect Corp's YouCam API in bulk; no task is bought that cannot be kept alive.

The API key comes from the variable YOUCAM_API_KEY, and another host from YOUCAM_BASE_URL. Without a
key, `demo` shows all of it. Exit status: 0 all done, 1 some failed, 2 usage or configuration."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with `arguments` (the command line's) and return its exit status."""
    try:
        from cyclopts import App, CycloptsError, Parameter

        from perfect_async._terminal import complain, tolerant
    except ImportError as exc:
        print(f"perfect-async: {_missing(exc)}", file=sys.stderr)
        return USAGE
    app = App(
        name="perfect-async",
        help=_HELP,
        version=_version,
        default_parameter=Parameter(negative=()),
        suppress_keyboard_interrupt=False,
    )
    for command in (smile, avatar, templates, units, sandbox, demo):
        app.command(command)
    tolerant()
    try:
        status = app(
            list(sys.argv[1:] if arguments is None else arguments),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as exc:
        complain(f"{exc} See perfect-async --help.")
        return USAGE
    except (ConfigurationError, JobRefused) as exc:
        complain(exc.message)
        return USAGE
    except PerfectError as exc:
        complain(str(exc))
        return USAGE if isinstance(exc, Unauthorized) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return status if isinstance(status, int) else 0


def smile(
    pictures: list[str],
    /,
    *,
    expression: Expression = "smile_with_teeth_visible",
    out: Path = OUT,
    json: bool = False,
) -> int:
    """Make portraits smile: 1 unit each.

    Parameters
    ----------
    pictures
        Files, folders, patterns ("photos/**/*.jpg") and URLs; jpg, png or heic.
    expression
        Which smile.
    out
        Folder for the results; made where it is missing.
    json
        Print one line of JSON per picture on stdout, not the paths of the results.
    """
    found = expand(pictures, Smile.formats, out)
    return _bulk([Smile(source, expression) for source in found], out, as_json=json)


def avatar(
    pictures: list[str],
    /,
    *,
    template: str,
    count: int = 4,
    out: Path = OUT,
    json: bool = False,
) -> int:
    """Make avatars of portraits: 1 unit per 4 avatars of a portrait, rounded up.

    Parameters
    ----------
    pictures
        Files, folders, patterns ("photos/**/*.jpg") and URLs; jpg or png.
    template
        The style, by its id (see `templates`).
    count
        Avatars of each portrait, 1 to 200.
    out
        Folder for the results; made where it is missing.
    json
        Print one line of JSON per picture on stdout, not the paths of the results.
    """
    found = expand(pictures, Avatar.formats, out)
    return _bulk(
        [Avatar(source, template_id=template, output_count=count) for source in found],
        out,
        as_json=json,
    )


def templates(*, json: bool = False) -> None:
    """List the styles for avatars.

    Parameters
    ----------
    json
        Print one line of JSON per style.
    """
    from perfect_async._terminal import table, write

    async def ask() -> list[Template]:
        async with _client() as client:
            return [template async for template in client.templates()]

    found = _run(ask)
    if json:
        for one in found:
            facts = {"id": one.id, "title": one.title, "category": one.category, "thumb": one.thumb}
            write(json_.dumps(facts))
    else:
        table(["id", "title", "category"], [(one.id, one.title, one.category) for one in found])


def units(*, json: bool = False) -> None:
    """Show the balance of units and where it comes from.

    Parameters
    ----------
    json
        Print one line of JSON.
    """
    from perfect_async._terminal import table, write

    async def ask() -> Units:
        async with _client() as client:
            return await client.units()

    found = _run(ask)
    grants = [
        (one.kind, one.amount, None if one.expires_at is None else one.expires_at.isoformat())
        for one in found.grants
    ]
    if json:
        named = [dict(zip(("kind", "amount", "expires_at"), one, strict=True)) for one in grants]
        write(json_.dumps({"balance": found.balance, "grants": named}))
        return
    rows = [(kind, f"{amount:g}", expires or "never") for kind, amount, expires in grants]
    balance = "unknown" if found.balance is None else f"{found.balance:g}"
    table(["units", "amount", "until"], [("balance", balance, ""), *rows])


def sandbox(
    *,
    host: str = "127.0.0.1",
    port: int = 8787,
    seed: int = 0,
    units: float = 1000.0,
    lease: float = 10.0,
    fail: float = 0.0,
    speed: float = 1.0,
    webhook_url: str | None = None,
    webhook_secret_file: Path | None = None,
) -> None:
    """Serve a stand-in for the vendor on a port until Ctrl-C, for any client in any language.

    It has the vendor's rules, limits and prices, takes any key, and ends with its ledger.

    Parameters
    ----------
    host
        The address to listen on.
    port
        The port to listen on, 1 to 65535.
    seed
        Fixes every chance.
    units
        The balance to begin with.
    lease
        Seconds after which a running task that nobody polled is lost.
    fail
        The share of tasks that the engine fails, 0 to 1.
    speed
        Divides the time that the engine takes.
    webhook_url
        Where to announce tasks that ended; signed with the secret that the variable
        YOUCAM_WEBHOOK_SECRET holds, or with several, separated by white space.
    webhook_secret_file
        A file that holds the secret instead.
    """
    _check_share(fail)
    if not 0 < speed < float("inf") or not lease > 0:
        raise ConfigurationError("--speed and --lease must be above 0.")
    try:
        from perfect_async.sandbox import run
    except ImportError as exc:
        raise ConfigurationError(_missing(exc)) from exc
    secrets = None if webhook_url is None else _secrets(webhook_url, webhook_secret_file)
    if not 0 < port < 2**16:
        raise ConfigurationError(f"--port is {port}; it must be from 1 to 65535.")
    try:
        # The server itself would end the process in a way of its own.
        socket.create_server((host, port)).close()
    except OSError as exc:
        raise ConfigurationError(f"cannot listen on {host} port {port}: {exc}.") from exc
    print(
        f"In another terminal: YOUCAM_BASE_URL=http://{host}:{port} YOUCAM_API_KEY=anything "
        "perfect-async smile PICTURES",
        file=sys.stderr,
    )
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
        Folder for the pictures, a contact sheet and a summary; made where it is missing.
    fail
        The share of pictures that the engine fails, 0 to 1; the exit status is then 1.
    seed
        Which portraits are drawn, and which pictures fail.
    """
    from perfect_async._terminal import Screen, write

    _check_share(fail)
    found = None if pictures is None else expand(pictures, Smile.formats, out)
    try:
        from perfect_async._demo import Demo

        _ready(out)
        show = Demo(out, found, fail=fail, seed=seed)
    except ImportError as exc:
        raise ConfigurationError(_missing(exc)) from exc
    screen = Screen("nothing")
    screen.say(show.announcement)
    with screen:
        tally = _run(lambda: show.run(screen))
    screen.close(tally, show.results)
    for path in show.report(tally):
        write(str(path))
    return _status(tally)


def _client() -> Client:
    """Make the client of a command; tests put another in its place."""
    return Client()


def _run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a command's loop; tests put virtual time in its place."""
    return asyncio.run(main())


def _version() -> str:
    try:
        return version("perfect_async")
    except PackageNotFoundError:
        return "unknown: not installed"


def _bulk(jobs: Sequence[Job], out: Path, *, as_json: bool) -> int:
    from perfect_async._bulk import process
    from perfect_async._terminal import Screen

    client = _client()
    _ready(out)
    screen = Screen("json" if as_json else "paths")
    with screen:
        tally = _run(lambda: process(client, jobs, out, screen))
    screen.close(tally, out)
    return _status(tally)


def _status(tally: Tally) -> int:
    if any(isinstance(told.error, Unauthorized) for told in tally.told):
        return USAGE
    return FAILED if tally.done < tally.jobs else 0


def _ready(folder: Path) -> None:
    """Make the folder for results: before anything is bought that could then not be saved."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"--out {quoted(folder)} cannot be made: {exc}.") from exc
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"--out {quoted(folder)} cannot be written to.")


def _check_share(fail: float) -> None:
    if not 0 <= fail <= 1:
        raise ConfigurationError(f"--fail is {fail:g}; it must be a share from 0 to 1.")


def _secrets(url: str, path: Path | None) -> list[str]:
    """The secrets of the sandbox's webhook; never on the command line, which anybody may list."""
    from perfect_async.webhooks import Secrets

    if not url.lower().startswith(("http://", "https://")):
        raise ConfigurationError(f"--webhook-url is {quoted(url)}; it must be http:// or https://.")
    try:
        text = os.environ.get(WEBHOOK_VARIABLE, "") if path is None else path.read_text("utf-8")
    except (OSError, ValueError) as exc:
        # Of an error in decoding only that it is one: its text quotes the file.
        why = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigurationError(f"--webhook-secret-file cannot be read: {why}.") from None
    found = text.split()
    if not found:
        raise ConfigurationError(
            f"--webhook-url needs a secret: set {WEBHOOK_VARIABLE} or pass --webhook-secret-file."
        )
    Secrets(found)
    return found


def _missing(error: ImportError) -> str:
    """What to say where an extra is not installed; another defect of an import is raised."""
    library = (error.name or "perfect_async").partition(".")[0]
    if library == "perfect_async":
        raise error
    return (
        f"this command needs {library}, which is not installed: pip install 'perfect_async[demo]'"
    )
