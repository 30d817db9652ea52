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
from typing import Final, Literal, cast

import attrs

from perfect_async import Done
from perfect_async._client.folder import (
    DIGITS,
    ResultName,
    copy_file,
    copy_target,
    digits_of,
    former_names,
    former_stem,
    is_named_after,
    job_identity,
    numbers_of,
    original_identity,
)
from perfect_async.cli._inputs import Picture
from perfect_async.errors import ConfigurationError, JobRefused, quoted
from perfect_async.models import EXPRESSIONS, Expression, Job, Smile

NAME: Final = ".perfect-async-manifest"

_DIGITS: Final = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
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
    `former` are sets of files, by the identities of jobs, that a former version named. `copies` are
    to be made of results of equal pictures before the run: the digits of the job, the files and
    their copies, which `there` has already. Of those that are there, `unfitted` were bought as they
    were although they would be made to fit now, and `fitted` the other way round.
    """

    jobs: list[Job]
    there: list[tuple[Job, tuple[Path, ...]]]
    refused: list[tuple[Job, JobRefused]]
    former: list[tuple[str, tuple[str, ...]]] = attrs.field(
        factory=list[tuple[str, tuple[str, ...]]]
    )
    copies: list[tuple[str, tuple[Path, ...], tuple[Path, ...]]] = attrs.field(
        factory=list[tuple[str, tuple[Path, ...], tuple[Path, ...]]]
    )
    unfitted: int = 0
    fitted: int = 0


@attrs.frozen
class _Found:
    """A job whose result is there: its identity, the files, and whether they have its name.

    `bought` says how, where this run would send the picture in another way.
    """

    job: Job
    known_as: str
    files: tuple[str, ...]
    own: bool
    bought: Literal["as this run does", "fitted", "unfitted"] = "as this run does"


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
        # The digits of jobs that were made to fit, by those of the same jobs without that.
        self._fitted: dict[str, str] = {}
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
                job, files, original = found
                self._sets.setdefault(job, []).append(files)
                if original is not None:
                    self._fitted[original] = job
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
        sent of it, and else by what it is, so that neither buys what the other has bought.
        `digests` are the SHA-256 of pictures that were read already, as they are.
        """
        digests = digests or {}
        plan = Plan([], [], [])
        claims: dict[tuple[str, ...], dict[str, list[Job]]] = {}
        there: list[_Found] = []
        for job in jobs:
            digest = digests.get(cast("Picture", job.source))
            # Pictures need not be read where there are no results.
            if not (again or self._results or self._former):
                plan.jobs.append(job)
            elif again:
                as_sent = _as_sent(job, _as_it_is(job, digest), fit=fit)
                plan.jobs.append(job if as_sent is None else _again(job, as_sent, token))
            elif isinstance(found := self._look_up(job, digest, fit=fit), _Found):
                there.append(found)
            elif found is not None:
                known_as, files = found
                claims.setdefault(files, {}).setdefault(known_as, []).append(job)
            else:
                plan.jobs.append(job)
        self._give(there, plan)
        for files, claimants in claims.items():
            claiming = [job for equal in claimants.values() for job in equal]
            if len(claimants) == 1:
                plan.there.extend((job, self._paths(files)) for job in claiming)
                plan.former.append((next(iter(claimants)), files))
            else:
                plan.refused.extend((job, _ambiguous(files, claiming)) for job in claiming)
        return attrs.evolve(
            plan,
            unfitted=sum(found.bought == "unfitted" for found in there),
            fitted=sum(found.bought == "fitted" for found in there),
        )

    def _look_up(
        self, job: Job, digest: str | None, *, fit: bool
    ) -> _Found | tuple[str, tuple[str, ...]] | None:
        """Return the result of a job; of a former version, the identity and the files."""
        as_it_is = _as_it_is(job, digest)
        fitted = None if as_it_is is None else self._find_fitted(job, as_it_is)
        # This comes before the picture is made to fit, which takes long, and differs between
        # versions of Pillow.
        if fit and fitted is not None and as_it_is is not None:
            return self._found(job, as_it_is, fitted)
        as_sent = _as_sent(job, as_it_is, fit=fit)
        if as_sent is not None and (files := self._find(job, as_sent)) is not None:
            return self._found(job, as_sent, files)
        if as_it_is is not None and (files := self._find(job, as_it_is)) is not None:
            return attrs.evolve(self._found(job, as_it_is, files), bought="unfitted")
        if fitted is not None and as_it_is is not None:
            return attrs.evolve(self._found(job, as_it_is, fitted), bought="fitted")
        return self._find_any_former(job, as_sent, as_it_is)

    def _give(self, there: Sequence[_Found], plan: Plan) -> None:
        """Give each job its result: the files of its own name, or else a copy of another's.

        A picture that got another name since keeps the files of the former one.
        """
        taken = {each.files for each in there if each.own}
        for each in there:
            paths = self._paths(each.files)
            if not each.own and each.files in taken:
                copies = self._copies(each)
                if copies is not None:
                    plan.copies.append((digits_of(each.known_as), paths, copies))
                    paths = copies
            taken.add(each.files)
            plan.there.append((each.job, paths))

    def _copies(self, found: _Found) -> tuple[Path, ...] | None:
        """Return the paths of copies of a result for another job; None where they are taken."""
        numbers = numbers_of(found.job)
        if len(numbers) != len(found.files):
            return None
        copies = tuple(
            copy_target(found.job, found.known_as, path, number)
            for path, number in zip(self._paths(found.files), numbers, strict=True)
        )
        return None if any(os.path.lexists(path) for path in copies) else copies

    def _found(self, job: Job, known_as: str, files: tuple[str, ...]) -> _Found:
        return _Found(job, known_as, files, is_named_after(files[0], job))

    def _find(self, job: Job, known_as: str) -> tuple[str, ...] | None:
        return self._find_digits(job, digits_of(known_as))

    def _find_fitted(self, job: Job, as_it_is: str) -> tuple[str, ...] | None:
        """Return the files of a job that was made to fit, by its identity without that."""
        digits = self._fitted.get(digits_of(as_it_is))
        return None if digits is None else self._find_digits(job, digits)

    def _find_digits(self, job: Job, digits: str) -> tuple[str, ...] | None:
        """Return the last files of a job that are there, those with its own name first."""
        found = [files for files in reversed(self._sets.get(digits, [])) if self._are_there(files)]
        for numbered in self._unrecorded.get(digits, {}).values():
            files = tuple(numbered[number] for number in sorted(numbered))
            if sorted(numbered) == numbers_of(job) and self._are_there(files):
                found.append(files)
        # Equal pictures are one job with a result each.
        return next((files for files in found if is_named_after(files[0], job)), None) or next(
            iter(found), None
        )

    def _are_there(self, files: Sequence[str]) -> bool:
        return self._files.issuperset(files) and all(
            (self.folder / name).is_file() for name in files
        )

    def _find_any_former(
        self, job: Job, *identities: str | None
    ) -> tuple[str, tuple[str, ...]] | None:
        for known_as in identities:
            if known_as is not None and (files := self._find_former(job, known_as)) is not None:
                return known_as, files
        return None

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

    def make_copies(self, plan: Plan) -> None:
        """Copy results of equal pictures for those whose own are gone. Raises `OSError`."""
        for digits, files, copies in plan.copies:
            for file, copy in zip(files, copies, strict=True):
                copy_file(file, copy)
            _append(self._path, _line(digits, [copy.name for copy in copies]))

    def rebuild(self) -> None:
        """Replace a broken manifest by one with the lines that could be read. Raises `OSError`."""
        part = self.folder / f".{os.urandom(8).hex()}.part"
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, 0o600)
        try:
            try:
                originals = {job: original for original, job in self._fitted.items()}
                lines = [
                    _line(job, files, originals.get(job))
                    for job, sets in self._sets.items()
                    for files in sets
                ]
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
    line = _line(job, [file.name for file in outcome.files], _original_of(outcome, job))
    _append(outcome.files[0].parent / NAME, line)


def _original_of(outcome: Done, digits: str) -> str | None:
    """Return the digits of a job that was made to fit, as they would be without that."""
    job = outcome.job
    if not outcome.changes or not isinstance(job.source, Path | str):
        return None
    plain = cast("Job", attrs.evolve(cast("Smile", job), source=Path(job.source), key=key_of(job)))
    original = original_identity(plain)
    # The file may be another picture by now, whose result this is not.
    sent = job_identity(plain, fit=True)
    if original is None or sent is None or original_identity(plain) != original:
        return None
    return digits_of(original) if digits_of(sent) == digits else None


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


def _as_it_is(job: Job, digest: str | None) -> str | None:
    """Return the identity of a job whose picture is not made to fit."""
    local = isinstance(job.source, Path)
    return original_identity(job, digest) if local else job_identity(job)


def _as_sent(job: Job, as_it_is: str | None, *, fit: bool) -> str | None:
    """Return the identity of a job as it is sent."""
    return job_identity(job, fit=True) if fit and isinstance(job.source, Path) else as_it_is


def _line(job: str, files: Iterable[str], original: str | None = None) -> bytes:
    fields: dict[str, object] = {"job": job, "files": list(files)}
    if original is not None:
        fields["original"] = original
    return json.dumps(fields).encode() + b"\n"


def _parse_line(line: bytes) -> tuple[str, tuple[str, ...], str | None] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    held = cast("dict[str, object]", content)
    job, files, original = held.get("job"), held.get("files"), held.get("original")
    if not isinstance(job, str) or not _DIGITS.fullmatch(job):
        return None
    if not isinstance(files, list) or not files:
        return None
    found = [name for name in cast("list[object]", files) if isinstance(name, str)]
    # A line holds names and no paths, because results are in this folder.
    whole = len(found) == len(cast("list[object]", files))
    if not whole or not all(re.fullmatch(r"[^/\\\0]+", name) for name in found):
        return None
    if not isinstance(original, str) or not _DIGITS.fullmatch(original):
        original = None
    return job, tuple(found), original


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
