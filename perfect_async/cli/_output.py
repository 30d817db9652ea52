"""Lines on stdout and stderr: results for programs, messages for people.

Names and vendor texts are printed with control characters escaped.
"""

from __future__ import annotations

import io
import os
import sys


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
    sys.stderr.write(f"perfect-async: {printable(text)}\n")


def print_line(line: str) -> None:
    """Print one line on stdout at once; do nothing where its reader has gone."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # `... | head`: the pictures are paid for, so they are saved all the same. The rest of the
        # buffer would raise again at exit (Python's documentation of SIGPIPE).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
