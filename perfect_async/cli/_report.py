"""Reports from the terminal: of the run that has just ended, and of what is in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, cast

import attrs

from perfect_async._client.folder import digits_of, job_identity, result_stem
from perfect_async._journal.model import JobSnapshot, Phase
from perfect_async.cli._display import RunSummary, name_of
from perfect_async.cli._inputs import Picture
from perfect_async.cli._manifest import Manifest
from perfect_async.cli._summary import engine_message
from perfect_async.cli._wording import in_terminal_terms
from perfect_async.errors import ConfigurationError, quoted
from perfect_async.models import EXPRESSIONS, Expression, Smile
from perfect_async.report import JobOutcome, Report, ReportFailure, ReportJob, write

_RESUME: Final = "Run `perfect-async resume --journal ...`: it goes on with what can be saved."
_ENDS: Final[dict[str | None, tuple[str, str]]] = {
    "failed": ("the job failed; nothing was charged for it.", "Run the picture again."),
    "lost": ("the task was lost, and its units may be charged.", "Run the picture again."),
    "doubt": ("it is unknown whether the task was created and charged.", _RESUME),
    "unsent": ("the job was not sent.", "Run the picture again."),
}


def write_run(summary: RunSummary, path: Path) -> None:
    """Write the report of a run. Raises `ConfigurationError` where it cannot be written."""
    _write(_with_others(summary), path)


def _write(report: Report, path: Path) -> None:
    try:
        write(report, path)
    except OSError as exc:
        raise ConfigurationError(
            f"the report {quoted(path)} cannot be written: {exc.strerror}."
        ) from exc


def _with_others(summary: RunSummary) -> Report:
    """Return the report of the batch, and of the jobs that were not part of it."""
    report = summary.report or Report(())
    jobs = [attrs.evolve(job, failure=_in_terminal_terms(job.failure)) for job in report.jobs]
    number = max((job.number for job in jobs), default=0)
    for other in summary.before:
        number += 1
        error = other.error
        outcome: JobOutcome = "already there"
        if error is not None:
            outcome = ReportFailure.outcome(error)
        jobs.append(
            ReportJob(
                number,
                other.source,
                outcome,
                None if "://" in other.source else Path(other.source),
                files=other.files,
                failure=_in_terminal_terms(None if error is None else ReportFailure.of(error)),
            )
        )
    return attrs.evolve(report, jobs=tuple(jobs))


def _in_terminal_terms(failure: ReportFailure | None) -> ReportFailure | None:
    if failure is None:
        return None
    return attrs.evolve(
        failure,
        message=engine_message(failure.code) or in_terminal_terms(failure.message),
        hint=in_terminal_terms(failure.hint),
    )


def write_folder(
    manifest: Manifest, pictures: Sequence[Picture], unfinished: Iterable[JobSnapshot], path: Path
) -> int:
    """Write a report of the results in a folder; return how many there are.

    `pictures` are the originals, as far as they are known; `unfinished` the jobs of a journal.
    Raises `ConfigurationError` where there is nothing to report.
    """
    jobs = list(_jobs(manifest, pictures, unfinished))
    if not jobs:
        raise ConfigurationError(
            f"there are no results in {quoted(manifest.folder)}: name their folder with --out."
        )
    numbered = [attrs.evolve(job, number=number) for number, job in enumerate(jobs, 1)]
    _write(Report(tuple(numbered), title=f"Results in {manifest.folder}"), path)
    return sum(job.outcome == "done" for job in numbered)


def _jobs(
    manifest: Manifest, pictures: Sequence[Picture], unfinished: Iterable[JobSnapshot]
) -> Iterable[ReportJob]:
    """Yield the results of a folder, then the originals and the jobs without any."""
    by_digits = _by_digits(pictures)
    by_stem: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_stem.setdefault(result_stem(picture), []).append(picture)
    open_jobs = {digits_of(one.stored.identity): one for one in unfinished}
    with_results: set[Picture] = set()
    for digits, stem, files in manifest.results():
        one = open_jobs.pop(digits, None)
        # An avatar's style is not known here, so its original is found by its name alone.
        named = by_stem.get(stem, [])
        original: Picture | None = named[0] if len(named) == 1 else None
        feature = "" if one is None else one.stored.feature
        if digits in by_digits:
            original, feature = by_digits[digits]
        elif original is None and one is not None and one.stored.kind == "path":
            original = Path(one.stored.place or files[0])
        if original is not None:
            with_results.add(original)
        yield ReportJob(
            0,
            files[0].name if original is None else name_of(original),
            "done",
            original if isinstance(original, Path) else None,
            feature,
            task_id=None if one is None else one.task_id,
            files=files,
        )
    for picture in pictures:
        if picture not in with_results:
            file = picture if isinstance(picture, Path) else None
            yield ReportJob(0, name_of(picture), "not sent", file)
    for one in open_jobs.values():
        yield _unfinished(one)


def _by_digits(pictures: Iterable[Picture]) -> dict[str, tuple[Picture, str]]:
    """Return the originals of smiles by the digits in the names of their results."""
    found: dict[str, tuple[Picture, str]] = {}
    for picture in pictures:
        for expression in EXPRESSIONS:
            smile = Smile(picture, cast("Expression", expression))
            if (identity := job_identity(smile)) is not None:
                found[digits_of(identity)] = picture, Smile.feature
    return found


def _unfinished(one: JobSnapshot) -> ReportJob:
    """Describe a job of the journal that has no result in the folder."""
    stored = one.stored
    outcome: JobOutcome = "failed"
    failure: ReportFailure | None = None
    match one.phase:
        case Phase.ENTERED:
            outcome = "not sent"
        case Phase.RUNNING:
            outcome = "running"
        case Phase.DONE:
            message = "the task is done, and its result is not in this folder."
            failure = ReportFailure("NotSaved", message, _RESUME)
        case _:
            message, hint = _ENDS[one.end or "doubt"]
            failure = ReportFailure(one.end or "doubt", message, hint)
    place = stored.place
    return ReportJob(
        0,
        name_of(place or stored.stem),
        outcome,
        Path(place) if place and stored.kind == "path" else None,
        stored.feature,
        {name: str(value) for name, value in stored.parameters},
        one.task_id,
        failure=failure,
    )
