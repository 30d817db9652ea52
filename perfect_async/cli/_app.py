"""The terminal program: the same from a shell.

Exit status: 0 all done, 1 some failed, 2 usage or configuration, 130 left at once by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from perfect_async import (
    Avatar,
    Batch,
    Client,
    ConfigurationError,
    Job,
    JobRefused,
    PerfectError,
    Polling,
    Smile,
    Unauthorized,
)
from perfect_async.cli import _commands, _program
from perfect_async.cli._inputs import expand
from perfect_async.cli._program import FAILED, INTERRUPTED, USAGE, missing
from perfect_async.models import Expression

OUT: Final = Path("perfect-async-out")

_HELP: Final = """Perfect Corp's YouCam API in bulk; no task is bought that cannot be kept alive.

The API key comes from the variable YOUCAM_API_KEY, and another host from YOUCAM_BASE_URL. Without a
key, `demo` shows all of it. Exit status: 0 all done, 1 some failed, 2 usage or configuration."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with `arguments` (the command line's) and return its exit status."""
    try:
        from cyclopts import App, CycloptsError, Parameter

        from perfect_async.cli._display import complain, tolerant
    except ImportError as exc:
        print(f"perfect-async: {missing(exc)}", file=sys.stderr)
        return USAGE
    app = App(
        name="perfect-async",
        help=_HELP,
        version=_version,
        default_parameter=Parameter(negative=()),
        suppress_keyboard_interrupt=False,
    )
    asking = (_commands.templates, _commands.units, _commands.forget)
    for command in (smile, avatar, resume, *asking, _commands.sandbox, _commands.demo):
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
    journal: Path | None = None,
    delete: bool = False,
    max_units: float | None = None,
    insured: float | None = None,
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
    journal
        A file, made where it is missing, that makes money safe: after a crash `resume` goes on
        where this was, and what was finished within a day is not bought again.
    delete
        Once a picture is saved, delete the vendor's copies: the face and its result.
    max_units
        The most that all of it may be charged; what would cost more is not sent.
    insured
        Seconds for which every task in flight can be kept alive whatever happens, 120 otherwise:
        600 loses nothing however slow the vendor gets, and takes longer.
    """
    jobs: list[Job] = [Smile(one, expression) for one in expand(pictures, Smile.formats, out)]

    def start(client: Client) -> Batch:
        return client.batch(jobs, max_units=max_units, save_to=out, delete=delete)

    return _bulk(start, out, journal, insured, as_json=json)


def avatar(
    pictures: list[str],
    /,
    *,
    template: str,
    count: int = 4,
    out: Path = OUT,
    json: bool = False,
    journal: Path | None = None,
    delete: bool = False,
    max_units: float | None = None,
    insured: float | None = None,
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
    journal
        A file, made where it is missing, that makes money safe: after a crash `resume` goes on
        where this was.
    delete
        Once a picture is saved, delete the vendor's copies: the face and its result.
    max_units
        The most that all of it may be charged; what would cost more is not sent.
    insured
        Seconds for which every task in flight can be kept alive whatever happens, 120 otherwise:
        600 loses nothing however slow the vendor gets, and takes longer.
    """
    jobs: list[Job] = [
        Avatar(one, template_id=template, output_count=count)
        for one in expand(pictures, Avatar.formats, out)
    ]

    def start(client: Client) -> Batch:
        return client.batch(jobs, max_units=max_units, save_to=out, delete=delete)

    return _bulk(start, out, journal, insured, as_json=json)


def resume(*, journal: Path, json: bool = False) -> int:
    """Go on where the last run with this journal was, and save where it was to be saved.

    Pictures that run are kept alive, finished ones are fetched, and what was not sent is sent; a
    picture whose sending was cut off is looked up in the unit history, and never sent twice.

    Parameters
    ----------
    journal
        The journal's file.
    json
        Print one line of JSON per picture on stdout, not the paths of the results.
    """
    _program.there(journal)
    return _bulk(Client.resume, None, journal, None, as_json=json)


def _bulk(
    start: Callable[[Client], Batch],
    out: Path | None,
    journal: Path | None,
    insured: float | None,
    *,
    as_json: bool,
) -> int:
    from perfect_async.cli._display import Display
    from perfect_async.cli._runner import process

    client = _program.client(journal, None if insured is None else Polling(insured=insured))
    if out is not None:
        _program.ready(out)
    screen = Display("json" if as_json else "paths")
    with screen:
        summary = _program.run(lambda: process(client, start, screen, journal))
    screen.close(summary, out)
    return _program.status(summary)


def _version() -> str:
    try:
        return version("perfect_async")
    except PackageNotFoundError:
        return "unknown: not installed"
