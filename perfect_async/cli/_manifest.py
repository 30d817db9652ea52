"""The manifest of a results folder: which files are the results of which job.

With it no job is bought twice. It is a hidden file of JSON lines in the folder, one line for each
set of results:

    {"job": "0123456789abcdef", "files": ["me-0123456789abcdef.jpg"]}

`job` is the beginning of the job's identity, which covers the picture, the feature and its
parameters. The manifest holds names of files, and no paths, URLs or keys. A line is appended by one
write, so that several runs may add to one manifest. Results that it does not name are found by
their own names.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import attrs

from perfect_async import Done
from perfect_async._client.folder import (
    DIGITS,
    ResultName,
    digits_of,
    former_names,
    former_stem,
    job_identity,
    numbers_of,
)
from perfect_async.cli._inputs import Picture
from perfect_async.errors import ConfigurationError, JobRefused, quoted
from perfect_async.models import EXPRESSIONS, Expression, Job, Smile

NAME: Final = ".perfect-async-manifest"

_LARGEST: Final = 256 * 1024 * 1024
# A job that is bought again has a key of its own, and so an identity and files of its own.
_OWN_KEY: Final = "perfect-async again "
_AGAIN: Final = re.compile(
    rf"{_OWN_KEY}([0-9a-f]{{{DIGITS}}})[0-9a-f]* [0-9a-f]+(?: (.+))?", re.DOTALL
)

_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@attrs.frozen
class Plan:
    """The work of a run.

    `jobs` are to be bought. `there` are done, with their files. `refused` may be done or not.
    `former` are sets of files, by the identities of jobs, that a former version named.
    """

    jobs: list[Job]
    there: list[tuple[Job, tuple[Path, ...]]]
    refused: list[tuple[Job, JobRefused]]
    former: list[tuple[str, tuple[str, ...]]] = attrs.field(
        factory=list[tuple[str, tuple[str, ...]]]
    )


class Manifest:
    """What is known of the results in `folder`, by its manifest and by the names of files.

    Making it reads them and changes nothing. `broken`: a part of the manifest cannot be read.
    Raises `ConfigurationError` where the folder or the manifest cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / NAME
        self._files = self._list()
        self._sets: dict[str, list[tuple[str, ...]]] = {}
        self.broken = not self._parse(self._read())
        recorded = {name for sets in self._sets.values() for files in sets for name in files}
        # By the digits in their names, then by what stands before: results without a line.
        self._unrecorded: dict[str, dict[str, dict[int, str]]] = {}
        self._former: set[str] = set()
        for name in self._files - recorded:
            if (parts := ResultName.parse(name)) is None:
                continue
            if parts.is_former:
                self._former.add(name)
            else:
                by_stem = self._unrecorded.setdefault(parts.digits, {})
                by_stem.setdefault(parts.stem, {})[parts.number] = name
        self._results = recorded | {
            name
            for by_stem in self._unrecorded.values()
            for numbered in by_stem.values()
            for name in numbered.values()
        }

    def __len__(self) -> int:
        """The number of results that are there."""
        return len(self._results & self._files)

    def _list(self) -> set[str]:
        try:
            return {path.name for path in self.folder.iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except OSError as exc:
            raise ConfigurationError(
                f"--out {quoted(self.folder)} cannot be read: {exc.strerror}."
            ) from exc

    def _read(self) -> bytes:
        try:
            handle = os.open(self._path, os.O_RDONLY | _NO_FOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as exc:
            raise self._unusable(exc.strerror) from exc
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise self._unusable("it is no regular file")
            if found.st_size > _LARGEST:
                raise self._unusable("it is too large")
            with open(handle, "rb", closefd=False) as file:
                return file.read()
        except OSError as exc:
            raise self._unusable(exc.strerror) from exc
        finally:
            os.close(handle)

    def _unusable(self, reason: str | None) -> ConfigurationError:
        return ConfigurationError(f"the manifest {quoted(self._path)} cannot be read: {reason}.")

    def _parse(self, content: bytes) -> bool:
        """Take over the lines of a manifest; return whether all of them could be read."""
        lines = content.split(b"\n")
        whole = not lines.pop()
        for line in lines:
            if (found := _parse_line(line)) is None:
                whole = False
            else:
                job, files = found
                self._sets.setdefault(job, []).append(files)
        return whole

    # Looking up.

    def results(self) -> list[tuple[str, str, tuple[Path, ...]]]:
        """List the results whose files are there: the digits of the job, the stem, and the files.

        Those of a job that was bought again are listed beside the first ones.
        """
        found: list[tuple[str, str, tuple[Path, ...]]] = []
        for digits, sets in self._sets.items():
            for names in sets:
                parts = ResultName.parse(names[0])
                if self._are_there(names):
                    stem = "" if parts is None else parts.stem
                    found.append((digits, stem, self._paths(names)))
        for digits, by_stem in self._unrecorded.items():
            for stem, numbered in by_stem.items():
                names = tuple(numbered[number] for number in sorted(numbered))
                found.append((digits, stem, self._paths(names)))
        former = [(name, ResultName.parse(name)) for name in self._former]
        found += [(p.digits, p.stem, self._paths([name])) for name, p in former if p is not None]
        return sorted(found, key=lambda each: each[2])

    def is_result(self, path: Path) -> bool:
        """Return whether a file is a result of this folder."""
        return path.name in self._results and _same_folder(path.parent, self.folder)

    def former_results(self, pictures: Sequence[Picture]) -> set[Path]:
        """Return those of `pictures` that former versions made of others among `pictures`.

        Their names have 8 digits, as other names may have: a smile counts if the digits are right.
        """
        found: set[Path] = set()
        for path in pictures:
            if not isinstance(path, Path) or path.name not in self._former:
                continue
            parts = ResultName.parse(path.name)
            if parts is None or not _same_folder(path.parent, self.folder):
                continue
            if any(_made_of(parts, other) for other in pictures if other != path):
                found.add(path)
        return found

    def plan(
        self,
        jobs: Iterable[Job],
        *,
        token: str,
        again: bool = False,
        fit: bool = False,
        digests: Mapping[Picture, str] | None = None,
    ) -> Plan:
        """Sort `jobs` into those to be bought and those whose results are there.

        A job of whose files some are gone is run: the batch replaces none, and mixes no two
        results. With `again` all jobs are to be bought, each with a key that contains `token`, so
        that its new results are files of their own. With `fit` a picture is identified by what is
        sent of it. `digests` are the SHA-256 of pictures that were read already.
        """
        digests = digests or {}
        plan = Plan([], [], [])
        claims: dict[tuple[str, ...], dict[str, list[Job]]] = {}
        for job in jobs:
            # Pictures need not be read where there are no results.
            wanted = again or self._results or self._former
            digest = digests.get(cast("Picture", job.source))
            known_as = job_identity(job, fit=fit, digest=digest) if wanted else None
            if known_as is None:
                plan.jobs.append(job)
            elif again:
                plan.jobs.append(_again(job, known_as, token))
            elif (files := self._find(job, known_as)) is not None:
                plan.there.append((job, self._paths(files)))
            elif (files := self._find_former(job, known_as)) is not None:
                claims.setdefault(files, {}).setdefault(known_as, []).append(job)
            else:
                plan.jobs.append(job)
        for files, claimants in claims.items():
            claiming = [job for equal in claimants.values() for job in equal]
            if len(claimants) == 1:
                plan.there.extend((job, self._paths(files)) for job in claiming)
                plan.former.append((next(iter(claimants)), files))
            else:
                plan.refused.extend((job, _ambiguous(files, claiming)) for job in claiming)
        return plan

    def _find(self, job: Job, known_as: str) -> tuple[str, ...] | None:
        digits = digits_of(known_as)
        for files in reversed(self._sets.get(digits, [])):
            if self._are_there(files):
                return files
        for numbered in self._unrecorded.get(digits, {}).values():
            files = tuple(numbered[number] for number in sorted(numbered))
            if sorted(numbered) == numbers_of(job) and self._are_there(files):
                return files
        return None

    def _are_there(self, files: Sequence[str]) -> bool:
        return self._files.issuperset(files) and all(
            (self.folder / name).is_file() for name in files
        )

    def _find_former(self, job: Job, known_as: str) -> tuple[str, ...] | None:
        found: list[str] = []
        for number in numbers_of(job):
            candidates = former_names(job, known_as, number)
            found += [file for file in candidates if file in self._former][:1]
        return tuple(found) if len(found) == job.outputs and self._are_there(found) else None

    def _paths(self, files: Iterable[str]) -> tuple[Path, ...]:
        return tuple(Path(os.path.abspath(self.folder / name)) for name in files)  # noqa: PTH100

    # Writing.

    def record_former(self, plan: Plan) -> None:
        """Record whose the results of a former version are, so that no other job claims them.

        Raises `OSError`.
        """
        for known_as, files in plan.former:
            _append(self._path, _line(digits_of(known_as), files))

    def rebuild(self) -> None:
        """Replace a broken manifest by one with the lines that could be read. Raises `OSError`."""
        part = self.folder / f".{os.urandom(8).hex()}.part"
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
        try:
            try:
                lines = [_line(job, files) for job, sets in self._sets.items() for files in sets]
                _write(handle, b"".join(lines))
            finally:
                os.close(handle)
            part.replace(self._path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        self.broken = False


def leave_out_results(
    pictures: Sequence[Picture], manifest: Manifest
) -> tuple[list[Picture], list[Path]]:
    """Split `pictures` into those to work on, and results of former runs, which are not.

    Results in the folder of `manifest` never are. Those in another folder are left out if other
    pictures in it are named too: a folder of results alone is meant to be worked on.
    """
    results = manifest.former_results(pictures)
    results |= {path for path in pictures if isinstance(path, Path) and manifest.is_result(path)}
    by_folder: dict[Path, list[Path]] = {}
    for path in pictures:
        if isinstance(path, Path) and path not in results:
            by_folder.setdefault(path.parent, []).append(path)
    for folder, paths in by_folder.items():
        if (folder / NAME).exists() and not _same_folder(folder, manifest.folder):
            other = Manifest(folder)
            made = {path for path in paths if other.is_result(path)}
            if len(made) < len(paths):
                results |= made
    kept = [picture for picture in pictures if picture not in results]
    return kept, sorted(results)


def record(outcome: Done) -> None:
    """Append the files of a saved job to the manifest of their folder. Raises `OSError`."""
    if not outcome.files or (job := _recorded_job(outcome)) is None:
        return
    _append(outcome.files[0].parent / NAME, _line(job, [file.name for file in outcome.files]))


def _append(path: Path, line: bytes) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_FOLLOW
    handle = os.open(path, flags, 0o600)
    try:
        _write(handle, line)
    finally:
        os.close(handle)


def _recorded_job(outcome: Done) -> str | None:
    """Return the digits under which the results of a job are recorded."""
    job = outcome.job
    if job.key is not None and (again := _AGAIN.fullmatch(job.key)):
        return again[1]
    parts = ResultName.parse(outcome.files[0].name)
    return None if parts is None or parts.is_former else parts.digits


def _line(job: str, files: Iterable[str]) -> bytes:
    return json.dumps({"job": job, "files": list(files)}).encode() + b"\n"


def _parse_line(line: bytes) -> tuple[str, tuple[str, ...]] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    held = cast("dict[str, object]", content)
    job, files = held.get("job"), held.get("files")
    if not isinstance(job, str) or not re.fullmatch(rf"[0-9a-f]{{{DIGITS}}}", job):
        return None
    if not isinstance(files, list) or not files:
        return None
    found = [name for name in cast("list[object]", files) if isinstance(name, str)]
    # A line holds names and no paths, because results are in this folder.
    whole = len(found) == len(cast("list[object]", files))
    if not whole or not all(re.fullmatch(r"[^/\\\0]+", name) for name in found):
        return None
    return job, tuple(found)


def _write(handle: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]
    os.fsync(handle)


def _again(job: Job, known_as: str, token: str) -> Job:
    # Every feature is an attrs class with a key; the base class is not.
    key = " ".join([f"{_OWN_KEY}{known_as}", token, *([] if job.key is None else [job.key])])
    return cast("Job", attrs.evolve(cast("Smile", job), key=key))


def key_of(job: Job) -> str | None:
    """Return the name that a list gave the job; a key made here does not count."""
    again = None if job.key is None else _AGAIN.fullmatch(job.key)
    return job.key if again is None else again[2]


def _ambiguous(files: tuple[str, ...], jobs: Sequence[Job]) -> JobRefused:
    sources = ", ".join(quoted(os.fsdecode(cast("Path", job.source)), 160) for job in jobs[:4])
    return JobRefused(
        f"the result {quoted(files[0], 120)} of a former version may be that of any of {sources}; "
        "nothing was bought for them. Rename the result, or use --again to buy all of them."
    )


def _made_of(result: ResultName, picture: Picture) -> bool:
    """Return whether a result of a former version was made of `picture`."""
    if not isinstance(picture, Path) or former_stem(picture) != result.stem:
        return False
    if result.number:
        return True
    smiles = [Smile(picture, cast("Expression", expression)) for expression in EXPRESSIONS]
    return any((job_identity(job) or "").startswith(result.digits) for job in smiles)


def _same_folder(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
