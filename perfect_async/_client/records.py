"""Records of a batch's jobs for its report, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final, Literal, cast

import attrs

from perfect_async._client.results import Outcome
from perfect_async._files.names import is_url
from perfect_async._runtime.driver import Driver
from perfect_async._runtime.handle import JobHandle
from perfect_async._runtime.recorder import RecordedRequest
from perfect_async._runtime.spec import parameters
from perfect_async._time import SECOND
from perfect_async.errors import ClientClosed, PerfectError, shown_source
from perfect_async.models import FileId, Job

if TYPE_CHECKING:
    from perfect_async.report import Report, ReportJob, ReportRequest

_MOST: Final = 5_000
"""How many records are kept, the newest, since a batch may go on for months."""


# Mutable, since attrs creates frozen objects five times as slowly.
@attrs.define(eq=False)
class JobRecord:
    """One job for the report, without its picture and its result.

    `number` counts the jobs of the batch as they were read. `source` is a path, a URL or a file id
    if it is `named`, else the text that is shown for it. `ref` is the job's number in the driver, 0
    if it has no task of its own. `ended` is when its task ended, in the driver's microseconds.
    `failure` is the error's class, message, hint, code and units at stake; the error itself would
    keep the frames of its traceback in memory.
    """

    number: int
    source: str | PurePath | FileId
    named: bool
    feature: str
    details: list[tuple[str, str | int]]
    ref: int
    ended: int | None = None
    task_id: str | None = None
    units: float = 0.0
    duration: float | None = None
    files: tuple[Path, ...] = ()
    state: Literal["done", "failed", "running", "not sent"] = "running"
    failure: tuple[str, str, str, str | None, float] | None = None


class BatchRecord:
    """The ended jobs of one batch, the requests of its key, and the units it was charged."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._recorder = driver.record()
        self._began, self._began_at = driver.at(driver.clock.seconds()), driver.clock.now()
        self._until: int | None = None
        self._jobs: deque[JobRecord] = deque(maxlen=_MOST)
        self._count = 0
        self._charged = self._units = self._at_stake = 0.0

    def created(self, units: float) -> None:
        """Record that a task was created, or taken over, for `units`."""
        self._charged += units

    def ended(self, number: int, outcome: Outcome, handle: JobHandle | None, ref: int) -> None:
        """Record the `outcome` of a job; `number` and `ref` as in `JobRecord`."""
        at = None
        if handle is not None and handle.ended_at is not None:
            at = self._driver.at(handle.ended_at)
        self._count += 1
        self._units += outcome.units
        failure = None
        state: Literal["done", "failed", "not sent"] = "done"
        if outcome.error is not None:
            failure = _failure(outcome.error)
            state = "not sent" if isinstance(outcome.error, ClientClosed) else "failed"
            self._at_stake += outcome.error.units_at_stake
        self._jobs.append(
            JobRecord(
                number,
                *_without_picture(outcome.job),
                ref,
                at,
                outcome.task_id,
                outcome.units,
                outcome.duration,
                outcome.files,
                state,
                failure,
            )
        )

    def finished(self) -> None:
        """Record that all jobs have ended."""
        self._until = self._driver.at(self._driver.clock.seconds())

    def report(self, live: Iterable[tuple[int, Job, JobHandle]]) -> Callable[[], Report]:
        """Return a function that makes the report, in any thread; `live` are the unended jobs.

        Making it in the loop would delay polls, since a report has thousands of requests.
        """
        now = self._driver.at(self._driver.clock.seconds()) if self._until is None else self._until
        unfinished = [_live(*each) for each in live]
        running = sum(record.units for record in unfinished)
        returned = max(0.0, self._charged - self._units - running)
        return partial(
            self._report,
            sorted([*self._jobs, *unfinished], key=lambda record: record.number),
            self._recorder.requests(),
            now,
            left_out=self._count - len(self._jobs),
            charged=self._charged,
            returned=returned,
            at_stake=self._at_stake,
        )

    def _report(
        self,
        records: Sequence[JobRecord],
        requests: Iterable[RecordedRequest],
        now: int,
        *,
        left_out: int,
        charged: float,
        returned: float,
        at_stake: float,
    ) -> Report:
        # Loaded only when it is used, since most programs make no report.
        from perfect_async.report import Report  # noqa: PLC0415 - see above

        numbers = {record.ref: record.number for record in records if record.ref}
        scheduler = self._driver.scheduler
        limits = scheduler.limits if self._driver.share is None else scheduler.limits.whole
        return Report(
            jobs=tuple(self._job(record) for record in records),
            began=self._began_at,
            seconds=self._seconds(now),
            left_out=left_out,
            requests=tuple(
                self._request(request, numbers)
                for request in requests
                if self._began <= request.left <= now
            ),
            charged=charged,
            returned=returned,
            at_stake=at_stake,
            requests_limit=limits.requests,
            period=limits.period,
            per_second=limits.per_second,
            lease=scheduler.lease,
        )

    def _seconds(self, at: int) -> float:
        return (at - self._began) / SECOND

    def _job(self, record: JobRecord) -> ReportJob:
        from perfect_async.report import ReportFailure, ReportJob  # noqa: PLC0415 - see above
        from perfect_async.report._values import absolute  # noqa: PLC0415 - see above

        source, is_file = _shown(record)
        return ReportJob(
            record.number,
            source,
            record.state,
            absolute(source) if is_file else None,
            record.feature,
            {name: str(value) for name, value in record.details},
            record.task_id,
            record.units,
            record.duration,
            record.files,
            None if record.failure is None else ReportFailure(*record.failure),
            None if record.ended is None else self._seconds(record.ended),
        )

    def _request(self, request: RecordedRequest, numbers: Mapping[int, int]) -> ReportRequest:
        from perfect_async.report import ReportRequest  # noqa: PLC0415 - see above

        return ReportRequest(
            request.kind,
            tuple(numbers[ref] for ref in request.refs if ref in numbers),
            self._seconds(request.left),
            None if request.answered is None else self._seconds(request.answered),
            request.outcome,
            request.in_window,
        )


def _live(number: int, job: Job, handle: JobHandle) -> JobRecord:
    """Describe a job that has not ended."""
    return JobRecord(
        number,
        *_without_picture(job),
        0 if handle.leader is not None else handle.ref,
        task_id=handle.task_id,
        units=0.0 if handle.leader is not None or handle.task_id is None else handle.spec.units,
        state="running" if handle.task_id is not None or handle.submitting else "not sent",
    )


def _failure(error: PerfectError) -> tuple[str, str, str, str | None, float]:
    code: object = getattr(error, "code", None)
    shown = None if code is None else str(code)
    return type(error).__name__, error.message, error.hint, shown, error.units_at_stake


def _without_picture(
    job: object,
) -> tuple[str | PurePath | FileId, bool, str, list[tuple[str, str | int]]]:
    """Return a job's source, whether that is a name, the feature, and the parameters.

    A source of bytes, or an object of the user's, is described instead. No method of a path object
    of the user's is called, since it may raise anything.
    """
    if not isinstance(job, Job):
        # It was refused, such as a path in place of a job.
        return type(job).__name__, False, "", []
    source = cast("object", job.source)
    if isinstance(source, str) and not source:
        # The feature takes no input.
        return job.feature, False, job.feature, parameters(job)
    if isinstance(source, str | PurePath | FileId):
        return source, True, job.feature, parameters(job)
    text = f"{len(source)} bytes" if isinstance(source, bytes) else type(source).__name__
    return text, False, job.feature, parameters(job)


def _shown(record: JobRecord) -> tuple[str, bool]:
    """Return a source as text without its secrets, and whether it is the path of a file."""
    match record.source:
        case FileId(value):
            return f"file {value}", False
        case PurePath() as path:
            text = PurePath.__str__(path)
        case text:
            pass
    if is_url(text):
        return shown_source(text), False
    # A path is shown in full, since it tells one picture from another.
    return text, record.named
