"""Finds the job of a result file, by the file's name and by the job's picture.

The command line uses it to look for results without a client and without a journal.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import attrs

from perfect_async._api.urls import picture_url
from perfect_async._files import names
from perfect_async._files.images import fitted, look_at_file
from perfect_async._files.saving import copy_file, prepare_folder
from perfect_async._runtime.spec import name_identity
from perfect_async.errors import PictureRefused, quoted
from perfect_async.models import Job, Smile

__all__ = [
    "DIGITS",
    "ResultName",
    "copy_file",
    "copy_target",
    "digits_of",
    "former_names",
    "former_stem",
    "is_named_after",
    "job_identity",
    "look_at",
    "numbers_of",
    "original_identity",
    "prepare_folder",
    "result_stem",
]

DIGITS: Final = names.DIGITS
"""How many hex digits of a job's identity a file name has; former versions wrote 8."""

_RESULT: Final = re.compile(
    rf"(.+)-([0-9a-f]{{{DIGITS}}}|[0-9a-f]{{8}})(?:-([0-9]{{1,3}}))?"
    rf"\.(?:{'|'.join(names.RESULT_KINDS)})",
    re.DOTALL,
)
_TOKEN: Final = re.compile(r"-([0-9a-f]{8})\Z")


@attrs.frozen
class ResultName:
    """The parts of a result's file name; `number` is 0 if the job has one picture."""

    stem: str
    digits: str
    number: int

    @classmethod
    def parse(cls, name: str) -> ResultName | None:
        """Return the parts of `name`; None if it is not the name of a result."""
        match = _RESULT.fullmatch(name)
        return match and cls(match[1], match[2], int(match[3] or 0))

    @property
    def is_former(self) -> bool:
        """Whether a former version wrote the name, so that several jobs may share it."""
        return len(self.digits) < DIGITS


def digits_of(identity: str) -> str:
    """Return the digits of a job's identity that its file names have."""
    return identity[:DIGITS]


def numbers_of(job: Job) -> list[int]:
    """Return the numbers that a job's file names have; 0 stands for no number."""
    return list(range(1, job.outputs + 1)) if job.outputs > 1 else [0]


def former_names(job: Job, identity: str, number: int) -> list[str]:
    """Return the names that former versions may have written for a result."""
    return [
        names.in_folder_formerly(names.stem(job), identity, kind, number or None)
        for kind in names.RESULT_KINDS
    ]


def former_stem(picture: Path) -> str:
    """Return the text before the digits in a former version's file names for a picture."""
    return names.clean_stem_formerly(picture.stem)


def result_stem(picture: Path | str) -> str:
    """Return the text before the digits in the file names for a picture at a path or URL."""
    return names.clean_stem(names.stem(Smile(picture)))


def is_named_after(result: str, job: Job) -> bool:
    """Return whether a file has a name that results of a job with this source have."""
    parts = ResultName.parse(result)
    if parts is None:
        return False
    # A result beside an older one has a token in its name.
    token = _TOKEN.search(parts.stem)
    tokens = [None] if token is None else [None, token[1]]
    return parts.stem in {names.clean_stem(names.stem(job), each) for each in tokens}


def look_at(path: Path | str, job_type: type[Job]) -> str | None:
    """Return the SHA-256 of the picture at `path`, in hex; None for a URL, which is only checked.

    Raises `PictureRefused` for a picture that the client will refuse or that cannot be read now.
    """
    if isinstance(path, str):
        picture_url(path)
        return None
    try:
        return look_at_file(str(path), job_type).digest
    except OSError as exc:
        raise PictureRefused(
            f"{quoted(path)} cannot be read: {exc.strerror}.", passing=True, reason="unreadable"
        ) from exc


def job_identity(job: Job, *, fit: bool = False, digest: str | None = None) -> str | None:
    """Return the identity that a job's file names have; None if its picture cannot be read.

    The job's source is a path or a URL. With `fit` the identity is that of the picture as it is
    sent. `digest` is the picture's SHA-256 if it is known, which saves reading the file again.
    """
    if names.is_url(job.source):
        return name_identity(job, None)
    if digest is not None:
        return name_identity(job, digest)
    digest = _digest(Path(cast("Path", job.source)), type(job), fit=fit)
    return None if digest is None else name_identity(job, digest)


def original_identity(job: Job, digest: str | None = None) -> str | None:
    """Return the identity of a job of a file as it is on the disk, whether it can be sent or not.

    `digest` is as in `job_identity`. None if the file cannot be read.
    """
    if digest is None:
        path = Path(cast("Path", job.source))
        with suppress(OSError, ValueError), open(path, "rb", opener=_open_at_once) as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    return None if digest is None else name_identity(job, digest)


def copy_target(job: Job, identity: str, result: Path, number: int) -> Path:
    """Return the path, beside `result`, of the result of a job whose picture is equal."""
    kind = result.suffix.removeprefix(".")
    return result.with_name(names.in_folder(names.stem(job), identity, kind, number or None))


def _digest(path: Path, job_type: type[Job], *, fit: bool) -> str | None:
    """Return the SHA-256 of a picture; None for one that the client will refuse."""
    with suppress(OSError, ValueError), open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        regular = stat.S_ISREG(found.st_mode)
        if regular and fit and (changed := fitted(file, found.st_size, job_type)) is not None:
            return hashlib.sha256(changed.data).hexdigest()
        if regular and found.st_size <= job_type.largest:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def _open_at_once(path: str, flags: int) -> int:
    # Without the flag, opening a pipe that has no writer blocks.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
