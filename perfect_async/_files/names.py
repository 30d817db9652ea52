"""Makes file names that are safe to send and to write from the names of users' pictures.

All functions are pure. A user's name may contain a path, any script and any control character.
Names that are sent are ASCII (`clean`); names on the disk keep the letters of every script
(`clean_letters`). Both are valid on every file system.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path, PurePath
from typing import Final, TypeGuard, cast
from urllib.parse import unquote

from perfect_async.models import BinaryFile, FileId, Job, Source

LONGEST: Final = 80
"""The most characters of a whole file name, with its suffix."""

_LONGEST_IN_BYTES: Final = 143
"""The most bytes of a file name in UTF-8: the limit of eCryptfs (other file systems: 255)."""

FALLBACK: Final = "picture"

# Windows opens these names as devices in every folder, with anything after the first dot.
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)", re.IGNORECASE)

# Any other suffix is part of the name: "v1.2" becomes "v1.2.png", not "v1.png".
SUFFIXES: Final[dict[str, str]] = {
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".jpe": "jpg",
    ".png": "png",
    ".webp": "webp",
    ".gif": "gif",
    ".heic": "heic",
    ".heif": "heic",
    ".avif": "avif",
    ".bmp": "bmp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".mp4": "mp4",
    ".mov": "mov",
    ".zip": "zip",
    ".json": "json",
}

RESULT_KINDS: Final = ("jpg", "png", "webp", "gif", "heic", "mp4", "mov", "zip", "json")
"""The types of the vendor's results, as suffixes of files; JSON is for an answer without files."""

DIGITS: Final = 16
"""Hex digits of a job's identity in a file name.

Former versions wrote 8; two of 100,000 jobs then have the same digits with a probability of 69 %.
"""
_FORMER_DIGITS: Final = 8
_LONGEST_END: Final = len("-200.heic")  # a job has at most 200 pictures

# Unicode's categories (TR 44): letters and decimal digits; marks, which belong to the letter before
# them. Other numbers are left out, since Windows opens "COM¹" as a device.
_LETTERS: Final = {"Lu", "Ll", "Lt", "Lm", "Lo", "Nd"}
_MARKS: Final = {"Mn", "Mc"}

# A scheme has at least two letters, so that "C://photos" is a path.
_URL: Final = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]+://|data:)")


def is_url(source: Source) -> bool:
    """Return whether `source` is a text that begins with a URL's scheme."""
    return isinstance(source, str) and _URL.match(source) is not None


def stem(job: Job) -> str:
    """Return the name of the first input of `job` without its suffix, not cleaned (see `clean`).

    It is "picture" for bytes and other sources without a name, "file" for a `FileId`, and the last
    segment of a URL's path, which may be empty. For a job without inputs it is the feature's name.
    """
    if not job.inputs:
        return job.feature.replace("/", "-")
    match job.source:
        case FileId():
            return "file"
        case str() if is_url(job.source):
            path = re.split(r"[?#]", job.source.partition("://")[2], maxsplit=1)[0]
            return PurePath(unquote(path.partition("/")[2].rpartition("/")[2])).stem
        case source:
            name = file_name(source)
            return FALLBACK if name is None else PurePath(name).stem


def means_file(source: object) -> TypeGuard[str | os.PathLike[str]]:
    """Return whether `source` is the path of a file; a path object is one even if it has `read`."""
    return not is_url(source) if isinstance(source, str) else isinstance(source, os.PathLike)


def file_name(source: Source) -> str | None:
    """Return the path of the file that `source` is read from, or None if it has none."""
    if means_file(source):
        return os.fsdecode(source)
    # A check against the protocol takes longer than all others, and most sources are bytes.
    if isinstance(source, bytes | bytearray | memoryview) or not isinstance(source, BinaryFile):
        return None
    name: object = getattr(source, "name", None)
    if isinstance(name, str | bytes | os.PathLike):
        return os.fsdecode(cast("str | bytes | os.PathLike[str]", name))
    # The name of a file that was opened by its descriptor is a number.
    return None


def clean(text: str, limit: int = LONGEST) -> str:
    """Return `text` as ASCII letters, digits and `._-`: at most `limit` characters, never empty.

    The result does not begin or end with a dot or hyphen (hidden files, options; Windows drops a
    last dot) and is not a device name. Accents are removed, other characters become hyphens, and an
    empty result becomes "picture". Cleaning a clean name changes nothing.
    """
    # Accents are removed, so this bounds the work for a name of accents only.
    plain = unicodedata.normalize("NFKD", text[: 8 * limit])
    letters = "".join(char for char in plain if not unicodedata.combining(char))
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).lstrip(".-")[:limit].rstrip(".-")
    if _DEVICE.match(safe):
        safe = f"_{safe}"[:limit].rstrip(".-")
    return safe or FALLBACK


def clean_letters(text: str, limit: int = LONGEST, limit_in_bytes: int = _LONGEST_IN_BYTES) -> str:
    """Return `text` as letters and digits of every script and `._-`, never empty.

    It works like `clean`, but keeps all letters, in NFC, so that equal names are equal bytes. A
    mark after a letter is kept. Control and format characters, spaces, punctuation and symbols
    become hyphens.
    """
    safe = ""
    for char in unicodedata.normalize("NFC", text[: 8 * limit]):
        category = unicodedata.category(char)
        is_mark = category in _MARKS and safe[-1:] not in {"", ".", "_", "-"}
        if char in "._-" or category in _LETTERS or is_mark:
            safe += char
        elif not safe.endswith("-"):
            safe += "-"
    safe = _cut(safe.lstrip(".-"), limit, limit_in_bytes)
    if _DEVICE.match(safe):
        safe = _cut(f"_{safe}", limit, limit_in_bytes)
    return safe or FALLBACK


def _cut(text: str, limit: int, limit_in_bytes: int) -> str:
    """Cut `text` to the limits, and remove dots and hyphens at its end."""
    whole = text[:limit].encode()[:limit_in_bytes]
    return whole.decode(errors="ignore").rstrip(".-")


def in_folder(
    stem: str, identity: str, kind: str, number: int | None = None, *, token: str | None = None
) -> str:
    """Return the file name of a job's picture: `<cleaned stem>-<16 hex>[-<number>].<kind>`.

    A job always has the same name, and different jobs have different names. `identity` has 64 hex
    digits. `number` counts from 1 if a job has several pictures. `token`, of 8 hex digits, is put
    before the identity in the names of another result of the same job.
    """
    return f"{clean_stem(stem, token)}-{identity[:DIGITS]}{_end(kind, number)}"


def clean_stem(stem: str, token: str | None = None) -> str:
    """Return the part of a name of `in_folder` before the identity, with the token if given."""
    end = "" if token is None else f"-{token}"
    tail = len(end) + len("-") + DIGITS + _LONGEST_END
    return clean_letters(stem, LONGEST - tail, _LONGEST_IN_BYTES - tail) + end


def in_folder_formerly(stem: str, identity: str, kind: str, number: int | None = None) -> str:
    """Return the file name of former versions: ASCII and 8 hex digits.

    Different jobs may have had the same name.
    """
    return f"{clean_stem_formerly(stem)}-{identity[:_FORMER_DIGITS]}{_end(kind, number)}"


def clean_stem_formerly(stem: str) -> str:
    """Return the part of a name of `in_folder_formerly` before the identity."""
    return clean(stem, LONGEST - len("-") - _FORMER_DIGITS - _LONGEST_END)


def _end(kind: str, number: int | None) -> str:
    return f".{kind}" if number is None else f"-{number}.{kind}"


def as_file(path: Path, kind: str, number: int | None = None) -> Path:
    """Return `path` with the suffix of `kind`, and with `-<number>` before it unless that is None.

    The suffix of a picture is replaced unless it means `kind` already (".jpeg" stays for "jpg").
    Any other suffix is part of the name.
    """
    suffix_kind = SUFFIXES.get(path.suffix.lower())
    stem = path.name if suffix_kind is None else path.stem
    suffix = path.suffix if suffix_kind == kind else f".{kind}"
    tail = "" if number is None else f"-{number}"
    return path.with_name(f"{stem}{tail}{suffix}")
