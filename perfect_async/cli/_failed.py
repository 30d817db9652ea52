"""The pictures that failed in the last run into a folder, for `--retry-failed`.

A hidden file in the folder of results: one line of JSON each, with the absolute path or the URL of
a picture and its key. URLs that may be signed are left out, as everywhere on the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from perfect_async.cli._display import name_of
from perfect_async.cli._inputs import Entry
from perfect_async.cli._summary import may_succeed
from perfect_async.errors import ConfigurationError, quoted, without_secrets

if TYPE_CHECKING:
    from perfect_async.cli._display import Display, RunSummary

NAME: Final = ".perfect-async-failed"

_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)


def record_failed(folder: Path, entries: Iterable[Entry]) -> int:
    """Replace what is recorded in `folder` by `entries`; return how many are recorded.

    Raises `OSError`.
    """
    lines = [line for entry in entries if (line := _line(entry)) is not None]
    path = folder / NAME
    if not lines:
        with suppress(FileNotFoundError):
            path.unlink()
        return 0
    part = folder / f".{os.urandom(8).hex()}.part"
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
    try:
        with open(handle, "w", encoding="ascii") as file:  # noqa: PTH123 - a descriptor
            file.writelines(lines)
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    return len(lines)


def _line(entry: Entry) -> str | None:
    picture = entry.picture
    if isinstance(picture, str) and without_secrets(picture) != picture:
        return None
    place = picture if isinstance(picture, str) else os.path.abspath(picture)  # noqa: PTH100 - links stay
    return json.dumps({"picture": place, "url": isinstance(picture, str), "key": entry.key}) + "\n"


def read_failed(folder: Path) -> list[Entry]:
    """Return the pictures that are recorded in `folder`. Raises `ConfigurationError`."""
    path = folder / NAME
    try:
        handle = os.open(path, os.O_RDONLY | _NO_FOLLOW)
        with open(handle, encoding="ascii") as file:  # noqa: PTH123 - a descriptor
            return [_parse(line) for line in file]
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise ConfigurationError(f"{quoted(path)} cannot be read: {exc.strerror}.") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigurationError(f"{quoted(path)} is damaged: name the pictures again.") from exc


def _parse(line: str) -> Entry:
    held = cast("Mapping[str, object]", json.loads(line))
    picture, key = held["picture"], held["key"]
    if not isinstance(picture, str) or not (key is None or isinstance(key, str)):
        raise TypeError
    return Entry(picture if held["url"] is True else Path(picture), key)


def only_failed(entries: Iterable[Entry], failed: Iterable[Entry]) -> list[Entry]:
    """Return those of `entries` that are among `failed`."""
    places = {_place(entry) for entry in failed}
    return [entry for entry in entries if _place(entry) in places]


def _place(entry: Entry) -> tuple[str, str | None]:
    picture = entry.picture
    return (picture if isinstance(picture, str) else os.path.realpath(picture)), entry.key


def note_failed(
    summary: RunSummary, entries: Iterable[Entry], folder: Path, display: Display
) -> None:
    """Record what failed in a run into `folder`, and say how to send it again."""
    failed = {report.source for report in summary.failures}
    try:
        count = record_failed(
            folder, [entry for entry in entries if name_of(entry.picture) in failed]
        )
    except OSError as exc:
        display.message(f"What failed cannot be recorded for --retry-failed: {exc.strerror}.")
        return
    # Another run would refuse a picture that cannot be sent, or wrong options, too.
    errors = [each.error for each in summary.failures if each.error is not None]
    if count and any(may_succeed(error) for error in errors):
        which = "it" if count == 1 else "them"
        display.message(f"The same command with --retry-failed sends {which} again.")
