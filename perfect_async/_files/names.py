"""File names that are safe to send and to write, made from what others called their pictures.

No disk, no clock: text in, text out. A name that others gave may hold a person's name, a path, any
script and any control character; the names made here are ASCII and mean the same on every file
system.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path, PurePath
from typing import Final
from urllib.parse import unquote

from perfect_async.models import FileId, Job, Source

LONGEST: Final = 80
"""Characters of a whole file name, suffix included; every file system takes 255 bytes."""

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
}

_IDENTITY: Final = 8  # hex digits of a job's identity in a file name
_TAIL: Final = len("-") + _IDENTITY + len("-200.heic")  # the longest end: 200 pictures of a job

# A scheme has two letters at least, so that "C://photos" stays a path.
_URL: Final = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]+://|data:)")


def is_url(source: Source) -> bool:
    """Return whether `source` is text with a URL's scheme rather than a path."""
    return isinstance(source, str) and _URL.match(source) is not None


def stem(job: Job) -> str:
    """Return the name of `job`'s source without its suffix, not cleaned (see `clean`).

    "picture" for bytes, "file" for a `FileId`, the last segment of a URL's path; may be empty.
    """
    match job.source:
        case FileId():
            return "file"
        case bytes():
            return FALLBACK
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


def in_folder(stem: str, identity: str, kind: str, number: int | None = None) -> str:
    """Return the file name of a job's picture: `<stem, cleaned>-<8 hex>[-<number>].<kind>`.

    The same job has the same name each time, and other jobs have other names. `identity` is the
    job's, in hex. `number` counts from 1 where a job has several pictures.
    """
    tail = "" if number is None else f"-{number}"
    return f"{clean(stem, LONGEST - _TAIL)}-{identity[:_IDENTITY]}{tail}.{kind}"


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
