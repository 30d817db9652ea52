"""Read the pictures that a list names: lines on stdin, or a CSV file with a column of keys."""

from __future__ import annotations

import csv
import os
import re
import sys
from pathlib import Path
from typing import Final, TypeAlias

from perfect_async.errors import ConfigurationError, quoted

STDIN: Final = "-"
STDIN_ARGUMENT: Final = "\0-"
"""Stands for "-" on its way to a command: cyclopts would take "-" for an option."""

Line: TypeAlias = tuple[str, str | None]
"""A picture's path or URL, and the key of its job."""

_PICTURE: Final = ("picture", "file", "path", "url", "image", "source")
_KEY: Final = "key"
_SHOWN: Final = 10
_LONGEST: Final = 64 * 1024 * 1024
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_list(argument: str) -> bool:
    """Return whether an argument names a list: "-", or a CSV file that is there."""
    if argument == STDIN:
        return True
    return argument.lower().endswith(".csv") and Path(argument).expanduser().is_file()


def read_list(argument: str) -> list[Line]:
    """Return the lines of the list that `argument` names.

    stdin holds one path or URL a line (or between NUL characters, as `find -print0` writes), or
    CSV. CSV has a header with the column "picture" ("file", "path" or "url" will do) and, where
    jobs have names of their own, "key"; its relative paths are relative to its folder. Raises
    `ConfigurationError` for a list that cannot be read, that names no picture, or that gives one
    key to two pictures.
    """
    if argument == STDIN:
        lines = _parse_lines(_decode(sys.stdin.buffer.read(_LONGEST), "stdin"))
    else:
        path = Path(argument).expanduser()
        try:
            content = path.read_bytes()
        except OSError as exc:
            raise ConfigurationError(f"{quoted(argument)} cannot be read: {exc.strerror}.") from exc
        lines = [
            (_below(path.parent, picture), key)
            for picture, key in _parse_table(_decode(content, quoted(argument)), quoted(argument))
        ]
    if not lines:
        name = "on stdin" if argument == STDIN else quoted(argument)
        raise ConfigurationError(f"the list {name} is empty: it names no picture.")
    return lines


def _decode(content: bytes, name: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigurationError(f"{name} is UTF-16 text: save it as UTF-8.")
    # A file's name may hold any bytes.
    return os.fsdecode(content.removeprefix(b"\xef\xbb\xbf"))


def _below(folder: Path, picture: str) -> str:
    return picture if _URL.match(picture) else str(folder / Path(picture).expanduser())


def _parse_lines(text: str) -> list[Line]:
    if "\0" in text:
        return [(line, None) for line in text.split("\0") if line]
    lines = [line.rstrip("\r") for line in text.split("\n")]
    columns = _split(lines[0])
    if len(columns) > 1 and _PICTURE[0] in columns:
        return _parse_table(text, "stdin")
    return [(line, None) for line in lines if line.strip()]


def _split(header: str) -> list[str]:
    cells = next(csv.reader([header], delimiter=_delimiter(header)), list[str]())
    return [cell.strip().lower() for cell in cells]


def _delimiter(header: str) -> str:
    """Return the separator of the columns; spreadsheets of many countries write semicolons."""
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")


def _parse_table(text: str, name: str) -> list[Line]:
    if not text.strip():
        return []
    header = text.split("\n", maxsplit=1)[0].rstrip("\r")
    columns = _split(header)
    found = next((column for column in _PICTURE if column in columns), None)
    if found is None:
        shown = ", ".join(map(quoted, columns[:_SHOWN])) or "none"
        raise ConfigurationError(
            f"{name} has no column 'picture' in its first line (its columns: {shown})."
        )
    at, key_at = columns.index(found), columns.index(_KEY) if _KEY in columns else None
    reader = csv.reader(text.splitlines()[1:], delimiter=_delimiter(header))
    lines: list[Line] = []
    pictures: dict[str, str] = {}
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            number = reader.line_num + 1
            picture = row[at].strip() if at < len(row) else ""
            if not picture:
                raise ConfigurationError(f"line {number} of {name} names no picture.")
            key = row[key_at].strip() if key_at is not None and key_at < len(row) else ""
            if key and pictures.setdefault(key, picture) != picture:
                raise ConfigurationError(
                    f"line {number} of {name} gives the key {quoted(key)} to a second picture."
                )
            lines.append((picture, key or None))
    except csv.Error as exc:
        raise ConfigurationError(f"{name} cannot be read as CSV: {exc}.") from exc
    return lines
