"""Lines on stdout and stderr: results for programs, messages for people.

Names and vendor texts are printed with control characters escaped.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from typing import Final

# What the library's messages call a setting, and what it is in the terminal.
_OPTIONS: Final = {
    "base_url": "YOUCAM_BASE_URL",
    "save_to": "--out",
    "max_units": "--max-units",
    "output_count": "--count",
    "units=": "--units",
    "Avatar.template_id": "--template",
    "Polling.insured": "--insured",
    "Client(fit=True)": "--fit",
    "fit=True": "--fit",
}
# Not within a name or path, nor at the beginning of a quotation.
_SETTING: Final = re.compile(
    rf"(?<![\w.'\"/-])(?:{'|'.join(map(re.escape, _OPTIONS))})(?![\w/-]|\.\w)"
)


class OutputError(Exception):
    """Results cannot be printed; the message says why."""


def in_terminal_terms(message: str) -> str:
    """Replace the names of the library's settings in a message by those of options."""
    message = message.replace(" or pass api_key", " or pass --api-key-file")
    return _SETTING.sub(lambda match: _OPTIONS[match[0]], message)


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
    # The rest of the buffer would raise again at exit (Python's documentation of SIGPIPE).
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    # `... | head` is no error: the pictures are paid for, and saved all the same.
    if not isinstance(error, BrokenPipeError):
        raise OutputError(f"stdout cannot be written: {error.strerror}.") from error
