"""Find the pictures that a command line names: files, folders, patterns, URLs and lists.

The program expands patterns itself, because Windows shells do not; so it is the same everywhere.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Final, TypeAlias

import attrs

from perfect_async.cli._lists import STDIN, STDIN_ARGUMENT, is_list, read_list
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

# Pictures of other types are named where they are skipped.
_OTHERS: Final = {
    "avif": (".avif",),
    "heif": (".heif",),
    "jpeg xl": (".jxl",),
    "jpeg 2000": (".jp2",),
    "raw": (".dng", ".raw", ".cr2", ".cr3", ".nef", ".arw"),
    "psd": (".psd",),
    "svg": (".svg",),
}
_TYPES: Final = {
    suffix: name for name, suffixes in {**_SUFFIXES, **_OTHERS}.items() for suffix in suffixes
}


@attrs.frozen
class Entry:
    """A picture to work on: `named` itself, or found in a folder or by a pattern.

    `key` is the job's own identity, where a list gives one. `problem` says what is wrong with the
    path of a file that is not there.
    """

    picture: Picture
    key: str | None = None
    named: bool = True
    problem: str | None = None


@attrs.frozen
class Skipped:
    """A picture that was found and cannot be sent: `reason` in a word or two, and a sentence."""

    picture: Path
    reason: str
    message: str


@attrs.frozen
class Found:
    """What a command line names: the pictures to work on, and those that were skipped.

    `nothing` says why there is none to work on. `folders` are named, and have subfolders that are
    not searched, and files that are no pictures: the numbers of both.
    """

    entries: list[Entry]
    skipped: list[Skipped]
    nothing: str = ""
    folders: dict[str, tuple[int, int]] = attrs.field(factory=dict[str, tuple[int, int]])

    @property
    def pictures(self) -> list[Picture]:
        """The pictures to work on."""
        return [entry.picture for entry in self.entries]


def count_reasons(skipped: Iterable[Skipped]) -> str:
    """Return the reasons with their numbers: "2 webp, broken link"."""
    counts = Counter(each.reason for each in skipped)
    return ", ".join(f"{n} {reason}" if n > 1 else reason for reason, n in counts.items())


def find_pictures(
    arguments: Iterable[str],
    formats: Sequence[str],
    results: Path | None = None,
    *,
    fit: bool = False,
) -> list[Picture]:
    """Return the pictures to work on of those that `search` finds.

    Raises `ConfigurationError` as that does, and where a file is not there.
    """
    found = search(arguments, formats, results, fit=fit)
    problems = [entry.problem for entry in found.entries if entry.problem is not None]
    if problems:
        raise ConfigurationError(problems[0])
    return found.pictures


def search(
    arguments: Iterable[str],
    formats: Sequence[str],
    results: Path | None = None,
    *,
    fit: bool = False,
) -> Found:
    """Return the pictures that `arguments` name, each once, in their order.

    A URL stays as it is, and so does the path of a file, whatever its name. A folder yields the
    pictures in it, a pattern (`*`, `?`, `[...]`, `**` for any depth) those that it matches: files
    with a suffix of `formats`, sorted, without hidden ones. `**` does not look into the folder
    `results`, unless the pattern begins there. With `fit` other types count as well, which are made
    to fit. "-" and CSV files are lists (`read_list`). A picture of another type in a folder, and a
    link to nothing, are skipped. A file that is named and is not there is an entry with a problem.
    Raises `ConfigurationError` for a folder or pattern that has no picture, and where none of the
    files is there.
    """
    if fit:
        formats = (*formats, *_FITTED)
    entries: dict[tuple[str, str | None], Entry] = {}
    skipped: dict[Path, Skipped] = {}
    folders: dict[str, tuple[int, int]] = {}
    for argument in arguments:
        try:
            found = _expand(argument, formats, results)
        except (OSError, RuntimeError) as exc:
            # Examples: a folder without permission, a name that is too long, `~unknown`.
            raise ConfigurationError(f"{quoted(argument)} cannot be read: {exc}.") from exc
        for entry in found.entries:
            picture = entry.picture
            # A file that two paths lead to is one picture.
            place = picture if isinstance(picture, str) else os.path.realpath(picture)
            former = entries.setdefault((place, entry.key), entry)
            if entry.named and not former.named:
                entries[place, entry.key] = attrs.evolve(former, named=True)
        skipped |= {each.picture: each for each in found.skipped}
        folders |= found.folders
    if not entries:
        raise ConfigurationError("no picture is named: give files, folders, patterns or URLs.")
    problems = [entry.problem for entry in entries.values()]
    if problems[0] is not None and all(problems):
        raise ConfigurationError(problems[0])
    named = {entry.picture for entry in entries.values()}
    left = [each for each in skipped.values() if each.picture not in named]
    return Found(list(entries.values()), left, folders=folders)


def _expand(argument: str, formats: Sequence[str], results: Path | None) -> Found:
    argument = STDIN if argument == STDIN_ARGUMENT else argument
    if is_list(argument):
        lines = read_list(argument)
        return Found([Entry(_as_picture(picture), key) for picture, key in lines], [])
    if _URL.match(argument):
        return Found([Entry(argument)], [])
    if not argument or "\0" in argument:
        raise ConfigurationError(f"{quoted(argument)} names no file.")
    path = Path(argument).expanduser()
    if path.is_dir():
        return _only_pictures(argument, path.iterdir(), formats, results)
    if path.exists():
        return Found([Entry(path)], [])
    if path.is_symlink():
        problem = f"{quoted(argument)} is a link to a file that is not there."
        return Found([Entry(path, problem=problem)], [])
    if not glob.has_magic(argument):
        problem = f"there is no file or folder {quoted(argument)}{_similar(path)}"
        return Found([Entry(path, problem=problem)], [])
    deep = "**" in path.parts
    matches: Iterator[Path] = (Path(match) for match in glob.iglob(str(path), recursive=deep))  # noqa: PTH207 - Path.glob takes no absolute pattern
    if deep and results is not None and not _is_below(_beginning(path), results):
        matches = (match for match in matches if not _is_below(match, results))
    return _only_pictures(argument, matches, formats, results)


def _similar(path: Path) -> str:
    """Return the end of a sentence: what `path` may have been meant to be, if anything."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except (OSError, ValueError):
        return "."
    found = difflib.get_close_matches(path.name, names, 1)
    return f"; did you mean {quoted(path.parent / found[0])}?" if found else "."


def _as_picture(line: str) -> Picture:
    if _URL.match(line):
        return line
    if "\0" in line:
        raise ConfigurationError(f"{quoted(line)} names no file.")
    return Path(line).expanduser()


def _beginning(pattern: Path) -> Path:
    """Return the folder in which all matches of a pattern are."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _only_pictures(
    argument: str, paths: Iterable[Path], formats: Sequence[str], results: Path | None
) -> Found:
    """Return the pictures among `paths`, sorted; raise where there is none that can be sent."""
    suffixes = tuple(suffix for name in formats for suffix in _SUFFIXES[name])
    found = Found([], [])
    deeper = others = 0
    for path in sorted(paths):
        kind = _TYPES.get(path.suffix.lower())
        if path.name.startswith("."):
            continue
        if path.is_dir():
            # Results may be below the folder of pictures, and are none.
            deeper += results is None or not _is_below(path, results)
            continue
        if kind is None:
            others += 1
        elif (skipped := _why_skipped(path, kind, formats)) is not None:
            found.skipped.append(skipped)
        elif path.is_file():
            found.entries.append(Entry(path, named=False))
    if not found.entries:
        there = f"; it has {count_reasons(found.skipped)}" if found.skipped else ""
        fits = any(each.reason in _FITTED for each in found.skipped)
        fitting = ", which --fit makes fit" if fits else ""
        if deeper and not glob.has_magic(argument):
            pattern = str(Path(argument, "**", "*.jpg"))
            fitting += f"; its folders are not searched, the pattern {quoted(pattern)} does"
        has = "matches" if glob.has_magic(argument) else "has"
        raise ConfigurationError(
            f"{quoted(argument)} {has} no picture ({', '.join(suffixes)}){there}{fitting}."
        )
    if (deeper or others) and not glob.has_magic(argument):
        found.folders[argument] = (deeper, others)
    return found


def _why_skipped(path: Path, kind: str, formats: Sequence[str]) -> Skipped | None:
    if path.is_symlink() and not path.exists():
        message = f"{quoted(path)} is a link to a file that is not there."
        return Skipped(path, "broken link", message)
    if kind not in formats:
        fitting = "; --fit makes it fit" if kind in _FITTED else ""
        message = f"{quoted(path)} is {kind}; {', '.join(formats)} can be sent{fitting}."
        return Skipped(path, kind, message)
    return None
