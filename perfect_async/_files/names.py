"""File names that are safe to send and to write, made from what others called their pictures.

No disk, no clock: text in, text out. A name that others gave may hold a path, any script and any
control character. Names that are sent are ASCII (`clean`); names on the disk keep the letters of
every script (`clean_letters`). Both mean the same on every file system.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path, PurePath
from typing import Final
from urllib.parse import unquote

from perfect_async.models import BinaryFile, FileId, Job, PillowImage, Source

LONGEST: Final = 80
"""Characters of a whole file name, suffix included."""

_LONGEST_IN_BYTES: Final = 143
"""Bytes of a whole file name in UTF-8: encrypted folders (eCryptfs) take no more, others 255."""

FALLBACK: Final = "picture"

# Windows opens these as devices in every folder, whatever follows the first dot.
_DEVICE: Final = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|$)", re.IGNORECASE)

# A suffix that is none of these belongs to the name: "v1.2" becomes "v1.2.png", not "v1.png".
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
"""Types of what the vendor makes, and the suffixes of their files; JSON is an answer itself."""

DIGITS: Final = 16
"""Hex digits of a job's identity in a file name.

Former versions wrote 8, which two of 100,000 jobs share with a probability of 69 %.
"""
_FORMER_DIGITS: Final = 8
_LONGEST_END: Final = len("-200.heic")  # 200 pictures of a job

# Unicode's categories (TR 44): letters and decimal digits; marks, which belong to the letter before
# them. Other numbers are left out: Windows takes "COM¹" for a device.
_LETTERS: Final = {"Lu", "Ll", "Lt", "Lm", "Lo", "Nd"}
_MARKS: Final = {"Mn", "Mc"}

# A scheme has two letters at least, so that "C://photos" stays a path.
_URL: Final = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]+://|data:)")


def is_url(source: Source) -> bool:
    """Return whether `source` is text with a URL's scheme rather than a path."""
    return isinstance(source, str) and _URL.match(source) is not None


def stem(job: Job) -> str:
    """Return the name of `job`'s source without its suffix, not cleaned (see `clean`).

    That is the source of its first input: "picture" for bytes and for what has no name, "file" for
    a `FileId`, the last segment of a URL's path; may be empty. A job without inputs has the name of
    its feature.
    """
    if not job.inputs:
        return job.feature.replace("/", "-")
    match job.source:
        case FileId():
            return "file"
        case bytes() | bytearray() | memoryview() | PillowImage():
            return FALLBACK
        case BinaryFile():
            # Only a name that was given: `open` on a descriptor has a number.
            name: object = getattr(job.source, "name", None)
            return PurePath(name).stem if isinstance(name, str) else FALLBACK
        case str() if is_url(job.source):
            path = re.split(r"[?#]", job.source.partition("://")[2], maxsplit=1)[0]
            return PurePath(unquote(path.partition("/")[2].rpartition("/")[2])).stem
        case _:
            return PurePath(os.fsdecode(job.source)).stem


def clean(text: str, limit: int = LONGEST) -> str:
    """Return `text` as ASCII letters, digits and `._-`: at most `limit` characters, never empty.

    It begins and ends with no dot or hyphen (hidden files, options; Windows drops a last dot) and
    is no device name. Accents are removed, other characters become hyphens; if nothing is left it
    is "picture". Cleaning a clean name changes nothing.
    """
    # Accents leave nothing; this bounds the work for a name that is all accents.
    plain = unicodedata.normalize("NFKD", text[: 8 * limit])
    letters = "".join(char for char in plain if not unicodedata.combining(char))
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).lstrip(".-")[:limit].rstrip(".-")
    if _DEVICE.match(safe):
        safe = f"_{safe}"[:limit].rstrip(".-")
    return safe or FALLBACK


def clean_letters(text: str, limit: int = LONGEST, limit_in_bytes: int = _LONGEST_IN_BYTES) -> str:
    """Return `text` with the letters and digits of every script and `._-`, never empty.

    As `clean`, but letters stay as they are, in NFC, so that equal names are equal bytes. Marks
    stay after a letter. What hides, reorders or separates (control and format characters, spaces,
    punctuation) becomes a hyphen, and so do symbols.
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
    """Return the beginning of `text` within the limits, without a dot or hyphen at its end."""
    whole = text[:limit].encode()[:limit_in_bytes]
    return whole.decode(errors="ignore").rstrip(".-")


def in_folder(
    stem: str, identity: str, kind: str, number: int | None = None, *, token: str | None = None
) -> str:
    """Return the file name of a job's picture: `<stem, cleaned>-<16 hex>[-<number>].<kind>`.

    The same job has the same name each time, and other jobs have other names. `identity` is 64 hex
    digits. `number` counts from 1 where a job has several pictures. `token`, 8 hex digits, stands
    before the identity in the names of another result of the job.
    """
    end = f"-{identity[:DIGITS]}" if token is None else f"-{token}-{identity[:DIGITS]}"
    tail = len(end) + _LONGEST_END
    name = clean_letters(stem, LONGEST - tail, _LONGEST_IN_BYTES - tail)
    return f"{name}{end}{_end(kind, number)}"


def in_folder_formerly(stem: str, identity: str, kind: str, number: int | None = None) -> str:
    """Return the file name that former versions gave: ASCII and 8 hex digits.

    Different jobs may have had the same one.
    """
    name = clean(stem, LONGEST - len("-") - _FORMER_DIGITS - _LONGEST_END)
    return f"{name}-{identity[:_FORMER_DIGITS]}{_end(kind, number)}"


def _end(kind: str, number: int | None) -> str:
    return f".{kind}" if number is None else f"-{number}.{kind}"


def as_file(path: Path, kind: str, number: int | None = None) -> Path:
    """Return `path` with the suffix of `kind`, and `-<number>` before it if there are several.

    A picture's suffix is replaced unless it says `kind` already (".jpeg" may stay for "jpg"); any
    other end of the name is part of the name.
    """
    suffix_kind = SUFFIXES.get(path.suffix.lower())
    stem = path.name if suffix_kind is None else path.stem
    suffix = path.suffix if suffix_kind == kind else f".{kind}"
    tail = "" if number is None else f"-{number}"
    return path.with_name(f"{stem}{tail}{suffix}")
