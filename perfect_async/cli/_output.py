"""Lines on stdout and stderr: results for programs, messages for people.

Names and vendor texts are printed with control characters escaped.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys


class OutputError(Exception):
    """Results cannot be printed; the message says why."""


def open_missing_streams() -> None:
    """Open the null device for each standard stream that is closed, as by `>&-` in a shell.

    This also takes their descriptors, which a file or a connection would get otherwise.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - stays open


def printable(text: str) -> str:
    """Escape everything in `text` that a terminal would obey or not show."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def escape_unencodable() -> None:
    """Let stdout escape characters that its encoding lacks: a file name must not end the run."""
    stdout: object = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")


def print_error(text: str) -> None:
    """Print one line on stderr that begins with the program's name."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"perfect-async: {printable(text)}\n")


def print_line(line: str) -> None:
    """Print one line on stdout at once; do nothing where its reader has gone.

    Raises `OutputError` where stdout cannot be written for another reason, such as a full disk;
    later lines are dropped then.
    """
    try:
        sys.stdout.write(f"{line}\n")
    except OSError as exc:
        _give_up(exc)
    flush()


def flush() -> None:
    """Write what is still buffered for stdout. Raises `OutputError` as `print_line` does."""
    try:
        sys.stdout.flush()
    except OSError as exc:
        _give_up(exc)


def _give_up(error: OSError) -> None:
    # Python writes the rest of the buffer at exit, which would raise again (see the note on
    # SIGPIPE in the documentation of `signal`).
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    # A reader that leaves, as `head` does, is no error: the pictures are still saved.
    if not isinstance(error, BrokenPipeError):
        raise OutputError(f"stdout cannot be written: {error.strerror}.") from error
