"""Find the pictures that a command line names: files, folders, patterns and URLs.

The program expands patterns itself, because Windows shells do not; so it is the same everywhere.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final, TypeAlias

from perfect_async.errors import ConfigurationError, quoted

Picture: TypeAlias = Path | str
"""The path of a file, or the text of a URL."""

# A scheme has two letters at least, so that "C://photos" stays a path.
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

# Folders and patterns yield files with these suffixes; a file named by itself may have any.
_SUFFIXES: Final = {
    "jpg": (".jpg", ".jpeg"),
    "png": (".png",),
    "heic": (".heic",),
    "webp": (".webp",),
    "gif": (".gif",),
    "bmp": (".bmp",),
    "tiff": (".tif", ".tiff"),
}


_FITTED: Final = ("webp", "gif", "bmp", "tiff")


def find_pictures(
    arguments: Iterable[str],
    formats: Sequence[str],
    results: Path | None = None,
    *,
    fit: bool = False,
) -> list[Picture]:
    """Return the pictures that `arguments` name, each once, in their order.

    A URL stays as it is, and so does the path of a file, whatever its name. A folder yields the
    pictures in it, a pattern (`*`, `?`, `[...]`, `**` for any depth) those that it matches: files
    with a suffix of `formats`, sorted, without hidden ones. `**` does not look into the folder
    `results`, unless the pattern begins there. With `fit` other types count as well, which are made
    to fit.
    Raises `ConfigurationError` for an argument that names no picture.
    """
    if fit:
        formats = (*formats, *_FITTED)
    pictures: dict[str, Picture] = {}
    for argument in arguments:
        try:
            found = _expand(argument, formats, results)
        except (OSError, RuntimeError) as exc:
            # A folder without permission; a name that is too long; `~nobody`.
            raise ConfigurationError(f"{quoted(argument)} cannot be read: {exc}.") from exc
        for picture in found:
            # Two paths to one file are one picture.
            place = picture if isinstance(picture, str) else os.path.realpath(picture)
            pictures.setdefault(place, picture)
    if not pictures:
        raise ConfigurationError("no picture is named: give files, folders, patterns or URLs.")
    return list(pictures.values())


def _expand(argument: str, formats: Sequence[str], results: Path | None) -> list[Picture]:
    if _URL.match(argument):
        return [argument]
    if not argument or "\0" in argument:
        raise ConfigurationError(f"{quoted(argument)} names no file.")
    path = Path(argument).expanduser()
    if path.is_dir():
        return _only_pictures(argument, path.iterdir(), formats)
    if path.exists():
        return [path]
    if not glob.has_magic(argument):
        raise ConfigurationError(f"there is no file {quoted(argument)}.")
    deep = "**" in path.parts
    matches: Iterator[Path] = (Path(match) for match in glob.iglob(str(path), recursive=deep))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if deep and results is not None and not _is_below(_beginning(path), results):
        matches = (match for match in matches if not _is_below(match, results))
    return _only_pictures(argument, matches, formats)


def _beginning(pattern: Path) -> Path:
    """Return the folder in which all matches of a pattern are."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _only_pictures(argument: str, paths: Iterable[Path], formats: Sequence[str]) -> list[Picture]:
    """Return the pictures among `paths`, sorted; raise where there is none."""
    suffixes = tuple(suffix for name in formats for suffix in _SUFFIXES[name])
    found = sorted(
        path
        for path in paths
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise ConfigurationError(f"{quoted(argument)} has no picture ({', '.join(suffixes)}).")
    return list(found)
