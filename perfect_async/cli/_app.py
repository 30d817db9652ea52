"""The entry point of `perfect-async`: parse the command line, run a command, map its errors.

Exit status: 0 all done, 1 some failed, 2 usage or configuration; 130 left at once by Ctrl-C, 143
and 129 ended by SIGTERM and SIGHUP.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, get_type_hints

from perfect_async.cli import _commands, _doctor, _feature
from perfect_async.cli._help import about, help_of
from perfect_async.cli._key import with_key_file
from perfect_async.cli._lists import STDIN, STDIN_ARGUMENT
from perfect_async.cli._numbers import converter_of, numbers_of
from perfect_async.cli._output import (
    OutputError,
    escape_unencodable,
    flush,
    open_missing_streams,
    print_error,
)
from perfect_async.cli._runner import FAILED, USAGE, missing_extra, signal_status
from perfect_async.cli._summary import hint_of, message_of
from perfect_async.cli._wording import in_terminal_terms, usage_text
from perfect_async.errors import ConfigurationError, JobRefused, PerfectError, Unauthorized, quoted

_HELP: Final = (
    "Perfect Corp's YouCam API in bulk; no task is bought that cannot be kept alive.\n\n"
    "The variable YOUCAM_API_KEY or --api-key-file holds the API key, and YOUCAM_BASE_URL another "
    "host. `demo` shows everything without a key, and `doctor` finds what is wrong. Exit status: 0 "
    "all done, there or skipped, 1 some failed or were not sent, 2 usage or configuration."
)

_SHORT: Final = {"yes": "-y", "quiet": "-q", "verbose": "-v"}
"""Options that have a short name."""

_COMMANDS: Final = (
    *(_commands.smile, _commands.avatar, _feature.feature, _commands.resume),
    *(_commands.enqueue, _commands.worker, _commands.report),
    *(_commands.templates, _commands.units, _commands.forget),
    *(_doctor.doctor, _commands.sandbox, _commands.demo),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with `arguments` (the command line's) and return its exit status."""
    open_missing_streams()
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt as exc:
        return signal_status(*exc.args)
    except OSError as exc:
        # Cyclopts prints help and version itself, so their errors arrive here. An error with the
        # path of a file has another cause.
        if exc.filename is not None:
            raise
        if isinstance(exc, FileNotFoundError):
            # Of all missing files, only the working folder has no path in its error.
            print_error(
                "the working folder was removed, and a path starts from it: change to another "
                "folder, or pass absolute paths."
            )
            status = USAGE
        else:
            print_error(f"stdout cannot be written: {exc.strerror}.")
            status = FAILED
    with suppress(OutputError):
        flush()
    return status


def _run(arguments: Sequence[str]) -> int:
    try:
        from cyclopts import App, CycloptsError, Parameter
    except ImportError as exc:
        print_error(missing_extra(exc))
        return USAGE
    app = App(
        name="perfect-async",
        help=_HELP,
        # The Markdown parser takes long to load, and the list of commands does not need it. Help of
        # a command does: plain text would keep the line breaks of the docstring.
        help_format="plaintext",
        version=_version,
        version_flags=("--version", "-V"),
        default_parameter=Parameter(negative=()),
        suppress_keyboard_interrupt=False,
    )
    names = [*(command.__name__ for command in _COMMANDS), "help", "completion"]
    commands = [with_key_file(command) for command in _COMMANDS]
    for command in (*commands, *about(app, names)):
        _annotate(command, Parameter)
        app.command(command, help_format="markdown")
    escape_unencodable()
    try:
        status = app(
            [STDIN_ARGUMENT if argument == STDIN else argument for argument in arguments],
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as exc:
        print_error(
            f"{usage_text(str(exc))}{_file_like_an_option(arguments)} "
            f"See {help_of(arguments, names)}."
        )
        return USAGE
    except ImportError as exc:
        print_error(missing_extra(exc))
        return USAGE
    except (ConfigurationError, JobRefused) as exc:
        print_error(in_terminal_terms(exc.message))
        return USAGE
    except PerfectError as exc:
        print_error(_error_text(exc))
        return USAGE if isinstance(exc, Unauthorized) else FAILED
    except OutputError as exc:
        print_error(str(exc))
        return FAILED
    return status if isinstance(status, int) else 0


def _file_like_an_option(arguments: Sequence[str]) -> str:
    """Return a sentence about a file whose name begins like an option, "" if there is none."""
    for argument in arguments:
        if argument == "--":
            break
        if argument.startswith("-") and os.path.lexists(argument):
            here = f".{os.sep}{argument}"
            return (
                f" There is a file {quoted(argument)}: write {quoted(here)}, or put -- after all "
                "options."
            )
    return ""


def _error_text(error: PerfectError) -> str:
    """Return what happened and what to do, with what the vendor needs to find the request."""
    text = f"{message_of(error)} {hint_of(error)}"
    # The text of the error ends with the status and the request id, in brackets.
    facts = str(error).removeprefix(f"{error.message} {error.hint}")
    return f"{text}{facts}"


def _annotate(command: Callable[..., Any], parameter: Callable[..., Any]) -> None:
    """Give the options of `command` their short names and the numbers that they take.

    `parameter` is the class of cyclopts, which is loaded late.
    """
    for option, kind in get_type_hints(command).items():
        settings: dict[str, object] = {}
        if option in _SHORT:
            settings["alias"] = _SHORT[option]
        if (numbers := numbers_of(command.__name__, option)) is not None:
            settings["converter"] = converter_of(numbers)
        if settings:
            command.__annotations__[option] = Annotated[kind, parameter(**settings)]


def _version() -> str:
    # importlib.metadata takes long to load, and no other option needs it.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("perfect_async")
    except PackageNotFoundError:
        return "unknown: not installed"
