"""What jobs and their files are called: identities, and names that are safe to send and to write.

No disk, no clock: text in, text out. A name that others gave may hold a person's name, a path, any
script and any control character; what leaves here is ASCII and means the same on every file system.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path, PurePath
from typing import Final, Protocol
from urllib.parse import unquote

import attrs

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

# Query names that sign a URL for a while (S3 and its likes, CloudFront, Azure): they change with
# each signing, the picture does not. A plain `token` or `hash` is none of them: it may be all that
# tells two people's pictures apart, and taking one for the other is worse than paying twice.
_SIGNING: Final = re.compile(
    r"x-(?:amz|goog|oss|cos|ms|obs)-.*|signature|expires|policy|key-pair-id|"
    r"(?:aws|oss)?accesskeyid|googleaccessid",
    re.IGNORECASE,
)
_AZURE: Final = re.compile(
    "s[vsrpteik]|srt|spr|sig|sip|sdd|ses|sk(?:oid|tid|[tesv])|s[acu]oid|scid"
)


class Looked(Protocol):
    """A picture whose bytes were seen (`_pictures.Picture`)."""

    @property
    def digest(self) -> str:
        """SHA-256 of its bytes, in hex."""
        ...


def is_url(source: Source) -> bool:
    """Whether `source` is text that names a place on the network rather than a path."""
    return isinstance(source, str) and _URL.match(source) is not None


def signed(source: Source) -> bool:
    """Whether `source` is a URL that is signed for a while: another one for the same picture is
    signed otherwise, and what is the same but for the signature may be another picture.
    """
    if not isinstance(source, str) or not is_url(source):
        return False
    query = source.strip().partition("#")[0].partition("?")[2]
    names = {pair.partition("=")[0] for pair in query.split("&")}
    return any(_SIGNING.fullmatch(name) for name in names) or {"sv", "sig"} <= names


def identity(job: Job, picture: Looked | None) -> str:
    """What makes `job` the same job another day, as 64 hex digits (SHA-256).

    The user's `key` with the feature, if there is one; else the feature, its parameters and the
    picture: by its digest, its URL or its file id. Of a signed URL the signature is left out, which
    changes each time; the rest of its query stays, since it may tell pictures apart. `picture` is
    what `_pictures.inspect` gave. Stable between versions: file names and journals hold it.
    """
    told: list[object]
    if job.key is not None:
        told = ["key", job.feature, job.key]
    else:
        told = ["job", job.feature, sorted(parameters(job)), *_origin(job.source, picture)]
    return hashlib.sha256(json.dumps(told).encode("ascii")).hexdigest()


def of_task(feature: type[Job], task_id: str) -> str:
    """The identity of a job of which nothing but its task is known, as `identity` gives it."""
    told = ["task", feature.feature, task_id]
    return hashlib.sha256(json.dumps(told).encode("ascii")).hexdigest()


def stem(job: Job) -> str:
    """What `job`'s source is called, without its suffix and not cleaned (`clean` does that).

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
    """`text` as ASCII letters, digits and `._-`, at most `limit` characters, never empty.

    No dot or hyphen leads (hidden files, options) or ends (Windows drops a last dot); no device
    name. Accents are taken off, all else becomes a hyphen; what has nothing left is "picture".
    Cleaning twice is cleaning once.
    """
    # Accents stand for nothing in the end; of a name that is all accents no more than this is read.
    plain = unicodedata.normalize("NFKD", text[: 8 * limit])
    letters = "".join(char for char in plain if not unicodedata.combining(char))
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", letters).lstrip(".-")[:limit].rstrip(".-")
    if _DEVICE.match(safe):
        safe = f"_{safe}"[:limit].rstrip(".-")
    return safe or FALLBACK


def in_folder(stem: str, identity: str, kind: str, number: int | None = None) -> str:
    """The file name of a job's picture: `<stem, cleaned>-<8 hex>[-<number>].<kind>`.

    The same job has the same name each time, and no other job has it: `identity` is 64 hex digits
    (`identity`). `number` counts from 1 where a job has several pictures.
    """
    tail = "" if number is None else f"-{number}"
    return f"{clean(stem, LONGEST - _TAIL)}-{identity[:_IDENTITY]}{tail}.{kind}"


def as_file(path: Path, kind: str, number: int | None = None) -> Path:
    """`path` with the suffix of `kind`, and `-<number>` before it where a job has several pictures.

    A picture's suffix is replaced unless it says `kind` already (".jpeg" may stay for "jpg"); any
    other end of the name is part of the name.
    """
    said = SUFFIXES.get(path.suffix.lower())
    stem = path.name if said is None else path.stem
    suffix = path.suffix if said == kind else f".{kind}"
    tail = "" if number is None else f"-{number}"
    return path.with_name(f"{stem}{tail}{suffix}")


def parameters(job: Job) -> list[tuple[str, str | int]]:
    """What `job` asks for beside its picture, by the names of its fields."""
    feature = type(job)
    names = [field.name for field in attrs.fields(feature)] if attrs.has(feature) else []
    values: list[tuple[str, str | int | None]] = [
        (name, getattr(job, name)) for name in names if name not in {"source", "key"}
    ]
    # None is left out on the wire too: a parameter that a later version adds changes no identity.
    return [(name, value) for name, value in values if value is not None]


def _origin(source: Source, picture: Looked | None) -> tuple[str, str]:
    match source:
        case FileId(value):
            return "file", value
        case str() if is_url(source):
            return "url", _unsigned(source)
        case _ if picture is not None:
            return "digest", picture.digest
        case _:
            raise TypeError("the identity of a job with a picture of its own needs the Picture.")


def _unsigned(url: str) -> str:
    """`url` without its fragment, and without the parameters that sign it."""
    address, _, query = url.strip().partition("#")[0].partition("?")
    pairs = [(pair.partition("=")[0], pair) for pair in query.split("&") if pair]
    azure = {"sv", "sig"} <= {name for name, _ in pairs}  # both in every shared access signature
    kept = [
        pair
        for name, pair in pairs
        if not _SIGNING.fullmatch(name) and not (azure and _AZURE.fullmatch(name))
    ]
    return "?".join([address, "&".join(kept)]) if kept else address
