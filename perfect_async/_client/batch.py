"""A batch of many jobs: reads them about 90 ahead, and yields outcomes as they end."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sized
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar, cast

import anyio
import attrs
from anyio.abc import TaskGroup

from perfect_async._client.records import BatchRecord
from perfect_async._client.recovery import RecoveredJob
from perfect_async._client.results import Failed, Outcome
from perfect_async._files.threads import in_thread
from perfect_async._journal.journal import JobEntry
from perfect_async._log import type_name
from perfect_async._runtime.handle import JobHandle
from perfect_async._runtime.spec import PLAIN, JobOptions
from perfect_async.errors import (
    ClientClosed,
    ConfigurationError,
    JobRefused,
    NotSaved,
    PerfectError,
    copy_error,
    quoted,
)
from perfect_async.models import FileId, Job, Progress, must_be_job

if TYPE_CHECKING:
    from perfect_async._client.session import ClientSession
    from perfect_async.report import Report

T = TypeVar("T")

_MAX_ORDERED: Final = 256
"""How many later outcomes may wait for that of one slow job, with `ordered`."""
GRACE: Final = 5.0
"""Seconds that the source of the jobs may take to stop or close."""


@attrs.define(eq=False)
class _Entry:
    """One job of the batch; `number` counts the jobs as they are read.

    `follows`: it shares the task of an equal job before it. `running`: its task runs and is charged
    `units`; `charged` are the units of all its tasks. `saving`: its task has ended and its pictures
    are being saved. `outcome` is set at the end.
    """

    number: int
    item: Job | RecoveredJob
    handle: JobHandle | None = None
    running: bool = False
    saving: bool = False
    follows: bool = False
    units: float = 0.0
    charged: float = 0.0
    journal_entry: JobEntry | None = None
    outcome: Outcome | None = None

    @property
    def job(self) -> Job:
        """The job itself."""
        return self.item.job if isinstance(self.item, RecoveredJob) else self.item


class Batch:
    """A batch of jobs: `Client.batch` and `Client.resume` return one.

        async with client.batch(jobs) as batch:
            async for outcome in batch:
                print(batch.progress, outcome)

    `async with` starts to read and send the jobs in the background. Leaving the block stops that;
    the client keeps running tasks alive to their ends. Iterating yields one `Outcome`, a `Done` or
    a `Failed`, for each job; you may stop iterating and go on later, in one task at a time.

    Iterating raises an error of the source of the jobs, and `ClientClosed` if the client closed
    before it read all of them. A batch that is entered twice, or iterated before it is entered,
    raises `ConfigurationError`.
    """

    def __init__(
        self,
        session: Callable[[], ClientSession],
        jobs: Iterable[Job | RecoveredJob] | AsyncIterable[Job | RecoveredJob],
        *,
        ordered: bool = False,
        options: JobOptions = PLAIN,
        max_units: float | None = None,
        resume: bool = False,
    ) -> None:
        must_be_iterable(jobs)
        self._options = options
        # Jobs of the former process, which come before `jobs`; read when the batch is entered.
        self._resume = resume
        self._left: list[RecoveredJob] = []
        self._max_units = max_units
        self._files: set[FileId] = set()
        self._get_session = session
        self._session: ClientSession | None = None
        self._record: BatchRecord | None = None
        self._jobs = jobs
        self._ordered = ordered
        self._total = len(jobs) if isinstance(jobs, Sized) else None
        # `_live` have not ended, `_ended` wait to be taken. With `ordered`, `_order` has all that
        # were not taken, in the order of the jobs.
        self._live: set[_Entry] = set()
        self._ended: deque[_Entry] = deque()
        self._order: deque[_Entry] = deque()
        self._held = self._running = self._read = self._done = self._failed = 0
        self._units = self._units_running = 0.0
        self._failure: BaseException | None = None
        self._changed = anyio.Event()
        self._stopped = anyio.Event()
        self._scope = anyio.CancelScope()
        self._reading = anyio.CancelScope()

    def __repr__(self) -> str:
        # May run in another thread than the batch's, so it only counts.
        return f"<Batch {self._counted()}>"

    async def __aenter__(self) -> Self:
        session = self._get_session()
        self._options = await session.with_checked_folder(self._options)
        if self._session is not None:
            raise ConfigurationError("This batch was entered already; make another one.")
        if self._max_units is not None:
            ceiling = session.driver.open_limit(self._max_units)
            self._options = attrs.evolve(self._options, spending_limits=(ceiling,))
        if self._resume:
            self._left = session.recovery.all()
            if self._total is not None:
                self._total += len(self._left)
        self._record = BatchRecord(session.driver)
        # It runs in the driver's task group: a group of this block would wrap the block's errors.
        session.driver.start(lambda: self._feed(session))
        session.interrupts.add(self._interrupt)
        self._session = session
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.cancel()
        self._withdraw()
        if self._session is None or self._stopped.is_set():
            return
        with anyio.move_on_after(2 * GRACE, shield=True):
            await self._session.driver.wait_unless_over(self._stopped.wait)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        if self._session is None:
            raise ConfigurationError(
                "Enter the batch first: `async with client.batch(...) as batch:`."
            )
        self._session.executor.check()
        while True:
            outcome = self._take()
            if outcome is not None:
                self._notify()
                return outcome
            if self._stopped.is_set() and not self._live:
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    raise failure
                raise StopAsyncIteration
            await self._changed.wait()

    def stop(self) -> None:
        """Stop new work; running tasks finish, and iterating goes on until they have.

            async for outcome in batch:
                if not outcome.ok:
                    batch.stop()

        Jobs that were read but not created come as `Failed` with `ClientClosed`, at no cost. A
        second call does nothing.
        """
        self._check_process()
        self._reading.cancel()
        self._scope.cancel()
        self._withdraw()

    @property
    def progress(self) -> Progress:
        """The counts of jobs, the units charged, and the estimated time left, at this moment.

        See `Progress` for its fields.
        """
        self._check_process()
        return self._progress()

    async def report(self, path: str | os.PathLike[str] | None = None) -> Report:
        """Return a report of the jobs so far, and write it to `path` if one is given.

            await batch.report("report.html")

        A `path` that ends in .html becomes one self-contained page (extra `report`), one that ends
        in .csv a table with a row for each job; an existing file is replaced. The page shows the
        pictures that are on the disk: sources that were given as paths, and results that the batch
        saved (`save_to`). The report has the last 5000 jobs; it works also after the client has
        closed.

        Raises `ConfigurationError` for another suffix, a missing folder, a missing extra, and a
        batch that was not entered; `OSError` for errors of the disk.
        """
        from perfect_async.report import check_path, write  # noqa: PLC0415 - few need it

        self._check_process()
        if self._record is None:
            raise ConfigurationError("Enter the batch first: `async with client.batch(...)`.")
        if path is not None:
            await in_thread(check_path, path)
        report: Report = await in_thread(self._reported(self._record))
        if path is not None:
            await in_thread(write, report, path)
        return report

    # Inside.

    def _reported(self, record: BatchRecord) -> Callable[[], Report]:
        entries = [(entry.number, entry.job, entry.handle) for entry in self._live]
        return record.report([(n, job, handle) for n, job, handle in entries if handle is not None])

    def _check_process(self) -> None:
        if self._session is not None:
            self._session.executor.check_process()

    def _progress(self) -> Progress:
        counted = self._counted()
        if counted.total is None or self._session is None:
            return counted
        eta = self._session.driver.eta(counted.waiting, counted.running)
        return attrs.evolve(counted, eta=eta)

    def _counted(self) -> Progress:
        """Return the progress without an estimate of the time left."""
        ended = self._done + self._failed
        total = None if self._total is None else max(self._total, self._read)
        if self._stopped.is_set():
            total = self._read
        waiting = (self._read if total is None else total) - ended - self._running
        units = self._units + self._units_running
        return Progress(total, self._done, self._failed, self._running, waiting, units, None)

    def _interrupt(self) -> None:
        """Stop reading, since the client closes; iterating ends with `ClientClosed`."""
        if self._session is not None and not self._stopped.is_set():
            self._failure = self._failure or self._session.interruption()
            self._scope.cancel()

    def _take(self) -> Outcome | None:
        """Return the next outcome, if there is one."""
        if self._ordered:
            if not self._order or self._order[0].outcome is None:
                return None
            entry = self._order.popleft()
        elif self._ended:
            entry = self._ended.popleft()
        else:
            return None
        self._held -= 1
        outcome = entry.outcome
        if entry.journal_entry is not None and not isinstance(outcome and outcome.error, NotSaved):
            # Each `resume` yields a result that was not saved, until it is saved.
            entry.journal_entry.reported()
        return outcome

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _withdraw(self) -> None:
        for entry in list(self._live):
            handle = entry.handle
            if handle is not None and handle.ending is None and self._session is not None:
                self._session.driver.withdraw(handle)

    def _job_changed(self, entry: _Entry) -> None:
        """Handle a change of the handle of `entry`."""
        handle = entry.handle
        session = self._session
        if handle is None or entry.outcome is not None or session is None or entry.saving:
            return
        if handle.ending is None:
            self._count(entry, runs=handle.task_id is not None)
            self._notify()
        elif handle.spec.options.save_to is None or not session.driver.alive:
            self._end(entry, session.outcome(handle))
        else:
            entry.saving = True
            session.retention.begin(handle)
            session.driver.start(lambda: self._save(session, entry, handle))

    def _count(self, entry: _Entry, *, runs: bool) -> None:
        if runs is not entry.running:
            entry.running = runs
            self._running += 1 if runs else -1
            self._units_running += entry.units if runs else -entry.units
            if runs and entry.units:
                self._charge(entry, entry.units)

    def _charge(self, entry: _Entry, units: float) -> None:
        entry.charged += units
        if self._record is not None:
            self._record.created(units)

    async def _save(self, session: ClientSession, entry: _Entry, handle: JobHandle) -> None:
        """Save the result of `entry`, and set its outcome after that."""
        try:
            self._end(entry, await session.save_outcome(handle))
        finally:
            if entry.outcome is None:
                # The driver ended before it was saved; the journal records that.
                self._end(entry, session.outcome(handle))
            session.delete_unused()

    def _end(self, entry: _Entry, outcome: Outcome) -> None:
        self._count(entry, runs=False)
        handle = entry.handle
        if handle is not None:
            entry.journal_entry = handle.entry
        if outcome.units > entry.charged:
            # Its task ran in a former process, or had ended before its creation was answered.
            self._charge(entry, outcome.units - entry.charged)
        if self._record is not None:
            ref = handle.ref if handle is not None and not entry.follows else 0
            self._record.ended(entry.number, outcome, handle, ref)
        entry.outcome, entry.handle = outcome, None
        self._live.discard(entry)
        if not self._ordered:
            self._ended.append(entry)
        self._held += 1
        self._done += outcome.ok
        self._failed += not outcome.ok
        self._units += outcome.units
        if self._session is not None:
            self._session.emit("finished", outcome.job, outcome.task_id)
        self._notify()
        self._clean_up()

    def _clean_up(self) -> None:
        """Release the spending limit and the files of the batch once all jobs have ended."""
        if self._stopped.is_set() and not self._live and self._session is not None:
            for ceiling in self._options.spending_limits:
                self._session.driver.close_limit(ceiling)
            self._session.retention.unpin(self._files)
            self._files.clear()
            self._session.delete_unused()
            if self._record is not None:
                self._record.finished()

    def _refuse(self, entry: _Entry, error: PerfectError) -> None:
        self._end(entry, Failed(entry.job, error, None, 0.0, None))

    async def _wait_for_room(self, session: ClientSession) -> None:
        """Wait until another job should be read.

        The scheduler says how many jobs it wants to know ahead of their creation. The number of
        outcomes that nobody has taken is bounded too, so a slow consumer delays creations.
        """
        ahead = session.driver.scheduler.lookahead()
        held = _MAX_ORDERED if self._ordered else ahead
        while len(self._live) - self._running >= ahead or self._held >= held:
            await self._changed.wait()

    async def _feed(self, session: ClientSession) -> None:
        finished = False
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    await self._read_all(session, group)
                finished = True
        finally:
            error = session.interruption()
            if self._scope.cancel_called:
                error = ClientClosed("The batch was stopped before this was sent.")
            elif not finished and self._failure is None:
                self._failure = error
            for entry in list(self._live):
                if entry.handle is None:
                    self._refuse(entry, copy_error(error))
            session.interrupts.discard(self._interrupt)
            self._stopped.set()
            self._notify()
            self._clean_up()

    async def _read_all(self, session: ClientSession, group: TaskGroup) -> None:
        source = self._all_jobs()
        try:
            with self._reading:
                while not self._cancelled():
                    await self._wait_for_room(session)
                    session.ready()
                    job = await self._next(session, source)
                    self._read += 1
                    entry = _Entry(self._read, job)
                    self._pin(session, job)
                    self._live.add(entry)
                    if self._ordered:
                        self._order.append(entry)
                    group.start_soon(self._enter, session, entry)
                    del job, entry
        except StopAsyncIteration:
            pass
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            if isinstance(exc, GeneratorExit) and session.driver.ending:
                raise
            # It is raised after the outcomes of the jobs before it.
            self._failure = exc
        finally:
            await self._close(session, source)

    async def _close(
        self, session: ClientSession, source: AsyncGenerator[Job | RecoveredJob]
    ) -> None:
        try:
            with anyio.move_on_after(GRACE, shield=True):
                await source.aclose()
        except (asyncio.CancelledError, GeneratorExit):
            if session.driver.ending:
                raise
        except BaseException as exc:  # noqa: BLE001 - as above
            self._failure = self._failure or exc

    async def _all_jobs(self) -> AsyncGenerator[Job | RecoveredJob]:
        """Yield the jobs of the former process, and then the given ones."""
        source = self._source()
        try:
            for left in self._left:
                yield left
            async for job in source:
                yield job
        finally:
            await source.aclose()

    def _source(self) -> AsyncGenerator[Job | RecoveredJob]:
        return each(self._jobs)

    def _pin(self, session: ClientSession, job: Job | RecoveredJob) -> None:
        """Keep the file of `job` at the vendor, since a job that is not read yet may use it too."""
        inputs = job.inputs if self._options.delete and isinstance(job, Job) else ()
        for source in (each.source for each in inputs):
            if isinstance(source, FileId) and source not in self._files:
                self._files.add(source)
                session.retention.pin(source)

    async def _next(
        self, session: ClientSession, source: AsyncGenerator[Job | RecoveredJob]
    ) -> Job | RecoveredJob:
        try:
            return await anext(source)
        except asyncio.CancelledError as exc:
            if session.driver.ending or self._cancelled():
                raise
            # The source cancelled itself, which counts as an error of the source.
            raise session.interruption() from exc

    def _cancelled(self) -> bool:
        """Return whether reading was stopped. A cancelled scope raises only at the next wait."""
        return self._is_stopped() or self._reading.cancel_called

    def _is_stopped(self) -> bool:
        return self._scope.cancel_called

    async def _enter(self, session: ClientSession, entry: _Entry) -> None:
        if self._is_stopped():
            # `_feed` sets its outcome when it ends.
            return
        try:
            entry.handle = await session.enter(entry.item, self._options)
        except ClientClosed as exc:
            # The client takes no other job either, so the rest of the source stays unread.
            self._failure = self._failure or exc
            self._refuse(entry, exc)
            self._reading.cancel()
        except PerfectError as exc:
            self._refuse(entry, exc)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as exc:  # noqa: BLE001 - of a picture; raised where the outcomes end
            self._failure = self._failure or exc
            self._refuse(entry, JobRefused(f"the job cannot be inspected ({type_name(exc)})."))
            self._reading.cancel()
        else:
            entry.follows = entry.handle.leader is not None
            entry.units = 0.0 if entry.follows else entry.job.units
            session.watch(entry.handle)
            entry.handle.subscribe(partial(self._job_changed, entry))
            self._job_changed(entry)
            if self._is_stopped():
                # Stopped while its picture was inspected.
                session.driver.withdraw(entry.handle)


def must_be_iterable(jobs: object) -> None:
    """Raise `ConfigurationError` for what holds no jobs, and `JobRefused` for a wrong item."""
    if isinstance(jobs, str | bytes) or not isinstance(jobs, AsyncIterable | Iterable):
        raise ConfigurationError(
            f"jobs is {quoted(type(jobs).__name__)}; pass an iterable of jobs, such as "
            "[Smile(path) for path in paths]."
        )
    if isinstance(jobs, list | tuple | set | frozenset):
        # The jobs of a collection are checked now; other sources are read one job at a time.
        for job in cast("Iterable[object]", jobs):
            if not isinstance(job, RecoveredJob):
                must_be_job(job)


async def each(jobs: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T]:
    """Yield the items of a plain or async iterable; an async generator is closed at the end."""
    if isinstance(jobs, AsyncIterable):
        iterator = aiter(jobs)
        try:
            async for job in iterator:
                yield job
        finally:
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
    else:
        for job in jobs:
            yield job
