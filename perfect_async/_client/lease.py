"""Measures how long a running task survives without a poll.

The task is polled only after each gap, as a query, which spends the key's request window like any
other request.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Final, cast

import anyio
import attrs

from perfect_async import events as ev
from perfect_async._api import tasks
from perfect_async._client.session import ClientSession
from perfect_async._files.images import inspect
from perfect_async._files.threads import in_thread
from perfect_async._ledger.leases import LeaseFile, LeaseRecord
from perfect_async._ledger.rows import LedgerUnavailable
from perfect_async._log import LOG
from perfect_async._runtime.spec import PLAIN, InputSpec, JobSpec
from perfect_async.errors import (
    BadAnswer,
    ConfigurationError,
    PerfectError,
    RequestRefused,
    ServiceUnavailable,
    SubmissionInDoubt,
    copy_error,
    quoted,
)
from perfect_async.models import FileId, Job, Polling, must_be_job
from perfect_async.reports import LeaseBracket

GAPS: Final = (12.0, 20.0, 40.0)
"""Seconds without a poll, one gap after another. 12 is longer than the shortest documented lease; a
lease beyond 40 s would save no more requests.
"""


def known_lease(polling: Polling, file: LeaseFile) -> Polling:
    """Return `polling` with the measured lease, if it asks for that.

    Raises `ConfigurationError` if no lease was measured.
    """
    if not polling.measured:
        return polling
    record = file.read()
    if record is None:
        raise ConfigurationError(
            'Polling(lease="measured"): no lease was measured for this key and host. Run '
            "`perfect-async doctor --measure-lease`, which costs the units of one task, or use the "
            "default lease of 10 s."
        )
    if record.refuted:
        LOG.warning(
            "A task was lost within the lease that was measured on %s, so a lease of 10 s is used. "
            "`perfect-async doctor --measure-lease` measures it again.",
            f"{record.measured_at:%Y-%m-%d}",
        )
    return attrs.evolve(polling, lease=type(polling.lease)(record.lease))


def checked_gaps(gaps: Sequence[float]) -> tuple[float, ...]:
    """Return `gaps` as a tuple. Raises `ConfigurationError` unless all are seconds above 0."""
    found = tuple(gaps)
    if not found or any(type(gap) not in {int, float} or not 0 < gap < math.inf for gap in found):
        raise ConfigurationError(f"gaps is {quoted(gaps)}; it must be a list of seconds above 0.")
    return found


class LeaseMeasurement:
    """Creates one task of `job` on `session` and polls it after each of `gaps` seconds.

    After each gap the measured lease is written to `file`.
    """

    def __init__(
        self, session: ClientSession, job: Job, gaps: Sequence[float], file: LeaseFile
    ) -> None:
        must_be_job(job)
        self._session = session
        self._job = job
        self._gaps = gaps
        self._file = file

    async def brackets(self) -> AsyncGenerator[LeaseBracket]:
        """Yield the measured bracket after each gap, until the task is lost or has ended.

        A gap counts as survived only if the task still runs after it, since an ended task may need
        no polls. Raises `TaskFailed` if the engine failed, and the errors of a job before that.
        """
        # Checked before units are charged for a result that could not be saved.
        await self._kept(self._file.make_folder)
        task_id = await self._created()
        # A creation in doubt must not be settled by this task.
        self._session.driver.submitter.remember(task_id)
        survived, asked_at = 0.0, anyio.current_time()
        for gap in self._gaps:
            await anyio.sleep(gap)
            before, asked_at = asked_at, anyio.current_time()
            running = await self._runs(task_id)
            if running is False:
                # The upper bound: from the request before to the answer that it is lost.
                lost = math.ceil(anyio.current_time() - before)
                yield await self._found(task_id, survived, float(lost))
                return
            if running is None:
                yield attrs.evolve(await self._found(task_id, survived, None), ended=True)
                return
            survived = max(survived, gap)
            yield await self._found(task_id, survived, None)

    async def _found(self, task_id: str, survived: float, lost: float | None) -> LeaseBracket:
        record = LeaseRecord(survived, lost, self._session.now())
        # A task that ended during the first gap shows nothing.
        if survived or lost is not None:
            await self._kept(partial(self._file.write, record))
        return LeaseBracket(task_id, survived, lost, record.lease)

    @staticmethod
    async def _kept(work: Callable[[], object]) -> None:
        try:
            await in_thread(work)
        except LedgerUnavailable as exc:
            raise ConfigurationError(f"The measured lease cannot be saved: {exc}.") from exc

    async def _created(self) -> str:
        """Create the task and return its id. Raises `SubmissionInDoubt` if no answer comes."""
        sources = await self._sources()
        command = ev.Submit(0, 0)
        try:
            reply = await self._session.ask(tasks.creation(self._job, sources))
            event = tasks.read_creation(command, reply)
        except (ServiceUnavailable, BadAnswer) as exc:
            if getattr(exc, "never_sent", False):
                raise
            event = ev.NoAnswer(command, exc)
        match event:
            case ev.Accepted():
                return event.task_id
            case ev.NoAnswer():
                raise SubmissionInDoubt(
                    f"The task's creation was sent and no usable answer came back: "
                    f"{event.error.message}",
                    units_at_stake=self._job.units,
                )
            case _:
                raise _error_of(event)

    async def _sources(self) -> list[FileId | str]:
        """Return the source of each input; a picture on this machine is uploaded first."""
        job = self._job
        pictures = [await inspect(each.source, job) for each in job.inputs]
        first, *more = pictures or [None]
        # All inputs are checked before the first request.
        spec = JobSpec.of(job, first, PLAIN, *more)
        return [await self._source(each) for each in spec.inputs]

    async def _source(self, prepared: InputSpec) -> FileId | str:
        if prepared.source is not None:
            return prepared.source
        if prepared.picture is None:
            raise AssertionError(prepared)
        return await self._session.upload_picture(prepared.picture, self._job.feature)

    async def _runs(self, task_id: str) -> bool | None:
        """Return whether the task runs: None if it has succeeded, False if it is lost."""
        for _ in range(2):
            event = await self._polled(task_id)
            match event:
                case ev.Running():
                    return True
                case ev.Succeeded() | ev.Unreadable():
                    return None
                case ev.TaskUnknown():
                    # One such answer may be a mistake of the vendor's, so it is asked again.
                    continue
                case _:
                    raise _error_of(event)
        return False

    async def _polled(self, task_id: str) -> ev.Answer:
        command, units = ev.Poll(0, 0), float(self._job.units)
        try:
            reply = await self._session.ask(tasks.status(self._job.feature, task_id))
        except RequestRefused as exc:
            if tasks.is_unknown_task(exc):
                return ev.TaskUnknown(command, exc)
            raise
        only = self._job.pictures_only
        return tasks.read_status(command, reply, pictures_only=only, task_id=task_id, units=units)


def _error_of(event: ev.Answer) -> PerfectError:
    """Return the error of an answer that has one."""
    return copy_error(cast("PerfectError", getattr(event, "error", event)))
