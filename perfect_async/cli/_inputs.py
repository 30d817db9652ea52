"""Which pictures somebody means who types files, folders, patterns and URLs.

Windows shells expand nothing, so the program does, and the same everywhere.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from perfect_async.errors import ConfigurationError, quoted

Found: TypeAlias = Path | str
"""A file, or the text of a URL."""

# A scheme has two letters at least, so that "C://photos" stays a path.
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

# What files of these types are called; anything else may be named one by one.
_SUFFIXES: Final = {
    "jpg": (".jpg", ".jpeg"),
    "png": (".png",),
    "heic": (".heic",),
}


def expand(words: Iterable[str], formats: Sequence[str], spared: Path | None = None) -> list[Found]:
    """The pictures that `words` name, each once, in their order.

    A URL stays as it is, and so does a file that is there, whatever its name. A folder stands for
    the pictures in it, a pattern (`*`, `?`, `[...]`, `**` for any depth) for those that it matches:
    by their suffix, which must be one of `formats`, sorted, hidden ones left out. `**` does not
    look into the folder `spared`, where results are: they are not to be paid for again.
    Raises `ConfigurationError` that names a word without a picture.
    """
    pictures: dict[str, Found] = {}
    for word in words:
        try:
            meant = _meant(word, formats, spared)
        except (OSError, RuntimeError) as exc:
            # A folder that may not be read; a name that is too long; `~nobody`.
            raise ConfigurationError(f"{quoted(word)} cannot be read: {exc}.") from exc
        for found in meant:
            # Two ways to one file are one picture.
            pictures.setdefault(found if isinstance(found, str) else os.path.realpath(found), found)
    if not pictures:
        raise ConfigurationError("no picture is named: give files, folders, patterns or URLs.")
    return list(pictures.values())


def _meant(word: str, formats: Sequence[str], spared: Path | None) -> list[Found]:
    if _URL.match(word):
        return [word]
    if not word or "\0" in word:
        raise ConfigurationError(f"{quoted(word)} names no file.")
    path = Path(word).expanduser()
    if path.is_dir():
        return _some(word, path.iterdir(), formats)
    if path.exists():
        return [path]
    if not glob.has_magic(word):
        raise ConfigurationError(f"there is no file {quoted(word)}.")
    deep = "**" in path.parts
    matches: Iterator[Path] = (Path(match) for match in glob.iglob(str(path), recursive=deep))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if deep and spared is not None:
        matches = _outside(spared, matches)
    return _some(word, matches, formats)


def _outside(folder: Path, paths: Iterable[Path]) -> Iterator[Path]:
    """Those of `paths` that are not below `folder`."""
    inside = folder.resolve()
    return (path for path in paths if not path.resolve().is_relative_to(inside))


def _some(word: str, paths: Iterable[Path], formats: Sequence[str]) -> list[Found]:
    """The pictures among `paths`, sorted; raises where there is none."""
    suffixes = tuple(suffix for name in formats for suffix in _SUFFIXES[name])
    found = sorted(
        path
        for path in paths
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise ConfigurationError(f"{quoted(word)} stands for no picture ({', '.join(suffixes)}).")
    return list(found)
