"""Many pictures: read lazily, entered a few dozen ahead, told as they end."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

import anyio
import anyio.to_thread
import attrs
from anyio.abc import TaskGroup

from perfect_async._client.recovery import RecoveredJob
from perfect_async._client.results import Failed, Outcome
from perfect_async._journal.journal import JobEntry
from perfect_async._runtime.handle import JobHandle
from perfect_async._runtime.spec import PLAIN, JobOptions
from perfect_async.errors import (
    ClientClosed,
    ConfigurationError,
    NotSaved,
    PerfectError,
    quoted,
    twin,
)
from perfect_async.models import FileId, Job, Progress

if TYPE_CHECKING:
    from perfect_async._client.session import ClientSession

T = TypeVar("T")

_ORDERED_MOST: Final = 256
"""Outcomes that wait for their turn: one stuck job may hold up that many that came after it."""
GRACE: Final = 5.0
"""Seconds that a source which is closed, or the reading that stops, may take."""


@attrs.define(eq=False)
class _Place:
    """One job's place in the batch: `running` while its task runs (whose `units` it pays), `kept`
    from then on until its pictures are saved, `outcome` its end.
    """

    item: Job | RecoveredJob
    handle: JobHandle | None = None
    running: bool = False
    kept: bool = False
    units: float = 0.0
    entry: JobEntry | None = None
    outcome: Outcome | None = None

    @property
    def job(self) -> Job:
        """The job."""
        return self.item.job if isinstance(self.item, RecoveredJob) else self.item


class Batch:
    """The jobs of one `client.batch`: enter it with `async with`, then iterate over its outcomes.

    Iterating may stop and go on, in one task at a time. The jobs are read and sent in the
    background from entering on; leaving the block stops that, and what was created is kept to its
    end by the client. Iterating gives an `Outcome` for each job; it raises what the source of the
    jobs raised, and `ClientClosed` where the client ended before all of them were read. Raises
    `ConfigurationError` where it is entered twice or iterated without being entered.
    """

    def __init__(
        self,
        session: Callable[[], ClientSession],
        jobs: Iterable[Job | RecoveredJob] | AsyncIterable[Job | RecoveredJob],
        *,
        ordered: bool = False,
        options: JobOptions = PLAIN,
        max_units: float | None = None,
    ) -> None:
        _must_be_iterable(jobs)
        self._options = options
        self._max_units = max_units
        self._files: set[FileId] = set()
        self._open_desk = session
        self._session: ClientSession | None = None
        self._jobs = jobs
        self._ordered = ordered
        self._total = len(jobs) if isinstance(jobs, Sized) else None
        # Not ended; ended and not given; with `ordered` all that are not given, in their order.
        self._live: set[_Place] = set()
        self._ended: deque[_Place] = deque()
        self._order: deque[_Place] = deque()
        self._held = self._running = self._read = self._done = self._failed = 0
        self._units = self._units_running = 0.0
        self._failure: Exception | None = None
        self._changed = anyio.Event()
        self._stopped = anyio.Event()
        self._scope = anyio.CancelScope()
        self._reading = anyio.CancelScope()

    def __repr__(self) -> str:
        return f"<Batch {self.progress}>"

    async def __aenter__(self) -> Self:
        if self._session is not None:
            raise ConfigurationError("A batch is entered once; make another.")
        session = self._open_desk()
        if self._max_units is not None:
            ceiling = session.driver.ceiling(self._max_units)
            self._options = attrs.evolve(self._options, purses=(ceiling,))
        # A group of the driver's, not one of this block: an error in the block stays that error.
        session.start(lambda: self._feed(session))
        session.batches.add(self)
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
        with anyio.move_on_after(2 * GRACE, shield=True):
            await self._stopped.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        if self._session is None:
            raise ConfigurationError(
                "Enter the batch first: `async with client.batch(...) as batch:`."
            )
        while True:
            outcome = self._take()
            if outcome is not None:
                self._pulse()
                return outcome
            if self._stopped.is_set() and not self._live:
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    raise failure
                raise StopAsyncIteration
            await self._changed.wait()

    def stop(self) -> None:
        """Read and create nothing more; iterating goes on until what runs has ended.

        Jobs that were read and not created come as `Failed` with `ClientClosed`; nothing was bought
        for them. Stopping twice is stopping once.
        """
        self._reading.cancel()
        self._scope.cancel()
        self._withdraw()

    def cut(self) -> None:
        """The client closes: no other job is read, and iterating ends with `ClientClosed`."""
        if self._session is not None and not self._stopped.is_set():
            self._failure = self._failure or self._session.cut_off()
            self._scope.cancel()

    @property
    def progress(self) -> Progress:
        """How it stands now."""
        return self._stand()

    # Inside.

    def _stand(self) -> Progress:
        ended = self._done + self._failed
        total = None if self._total is None else max(self._total, self._read)
        if self._stopped.is_set():
            total = self._read
        waiting = (self._read if total is None else total) - ended - self._running
        eta = None
        if total is not None and self._session is not None:
            eta = self._session.eta(waiting, self._running)
        units = self._units + self._units_running
        return Progress(total, self._done, self._failed, self._running, waiting, units, eta)

    def _take(self) -> Outcome | None:
        """The outcome to give next, if there is one; it is let go of."""
        if self._ordered:
            if not self._order or self._order[0].outcome is None:
                return None
            place = self._order.popleft()
        elif self._ended:
            place = self._ended.popleft()
        else:
            return None
        self._held -= 1
        outcome = place.outcome
        if place.entry is not None and not isinstance(outcome and outcome.error, NotSaved):
            # What is made and not saved is told again by whoever resumes, until it is.
            place.entry.reported()
        return outcome

    def _pulse(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _withdraw(self) -> None:
        for place in list(self._live):
            handle = place.handle
            if handle is not None and handle.ending is None and self._session is not None:
                self._session.withdraw(handle)

    def _heard(self, place: _Place) -> None:
        """The ticket of `place` has news."""
        handle = place.handle
        session = self._session
        if handle is None or place.outcome is not None or session is None or place.kept:
            return
        if handle.ending is None:
            self._count(place, runs=handle.task_id is not None)
            self._pulse()
        elif handle.spec.options.save_to is None or not session.driver.alive:
            self._end(place, session.outcome(handle))
        else:
            place.kept = True
            session.retention.begin(handle)
            session.start(lambda: self._keep(session, place, handle))

    def _count(self, place: _Place, *, runs: bool) -> None:
        if runs is not place.running:
            place.running = runs
            self._running += 1 if runs else -1
            self._units_running += place.units if runs else -place.units

    async def _keep(self, session: ClientSession, place: _Place, handle: JobHandle) -> None:
        """Save what the job of `place` gave, and only then tell of it."""
        try:
            self._end(place, await session.keep(handle))
        finally:
            if place.outcome is None:
                # The driver ends: made and not saved, which the journal knows.
                self._end(place, session.outcome(handle))
            session.sweep()

    def _end(self, place: _Place, outcome: Outcome) -> None:
        self._count(place, runs=False)
        if place.handle is not None:
            place.entry = place.handle.entry
        place.outcome, place.handle = outcome, None
        self._live.discard(place)
        if not self._ordered:
            self._ended.append(place)
        self._held += 1
        self._done += outcome.ok
        self._failed += not outcome.ok
        self._units += outcome.units
        self._pulse()
        self._over()

    def _over(self) -> None:
        """Once nothing more comes: let go of what was held for all of it."""
        if self._stopped.is_set() and not self._live and self._session is not None:
            for ceiling in self._options.purses:
                self._session.driver.empty(ceiling)
            self._session.retention.let_go(self._files)
            self._files.clear()
            self._session.sweep()

    def _refuse(self, place: _Place, error: PerfectError) -> None:
        self._end(place, Failed(place.job, error, None, 0.0, None))

    async def _room(self, session: ClientSession) -> None:
        """Wait until another job is worth reading.

        Jobs that are not created yet are what the scheduler likes to know ahead; outcomes that
        nobody has taken are held back in number too, so that a slow consumer stops the creating.
        """
        most = session.appetite()
        held = _ORDERED_MOST if self._ordered else most
        while len(self._live) - self._running >= most or self._held >= held:
            await self._changed.wait()

    async def _feed(self, session: ClientSession) -> None:
        over = False
        try:
            with self._scope:
                if self._options.save_to is not None:
                    # The folder that is meant now, also by the process that resumes it elsewhere.
                    folder = await anyio.to_thread.run_sync(os.path.abspath, self._options.save_to)
                    self._options = attrs.evolve(self._options, save_to=folder)
                async with anyio.create_task_group() as group:
                    await self._read_all(session, group)
                over = True
        finally:
            error = session.cut_off()
            if self._scope.cancel_called:
                error = ClientClosed("The batch was stopped before this was sent.")
            elif not over and self._failure is None:
                self._failure = error
            for place in list(self._live):
                if place.handle is None:
                    self._refuse(place, twin(error))
            session.batches.discard(self)
            self._stopped.set()
            self._pulse()
            self._over()

    async def _read_all(self, session: ClientSession, group: TaskGroup) -> None:
        source = self._source()
        try:
            with self._reading:
                while not self._cancelled():
                    await self._room(session)
                    session.ready()
                    job = await self._next(session, source)
                    self._read += 1
                    place = _Place(job)
                    self._hold(session, job)
                    self._live.add(place)
                    if self._ordered:
                        self._order.append(place)
                    group.start_soon(self._enter, session, place)
                    del job, place
        except StopAsyncIteration:
            pass
        except Exception as exc:  # noqa: BLE001 - it comes after the outcomes of what was read
            self._failure = exc
        finally:
            try:
                with anyio.move_on_after(GRACE, shield=True):
                    await source.aclose()
            except Exception as exc:  # noqa: BLE001 - as above
                self._failure = self._failure or exc

    def _source(self) -> AsyncGenerator[Job | RecoveredJob]:
        return each(self._jobs)

    def _hold(self, session: ClientSession, job: Job | RecoveredJob) -> None:
        """A file that one job names may be named by another that is not read yet."""
        source = getattr(job, "source", None)
        if self._options.delete and isinstance(source, FileId) and source not in self._files:
            self._files.add(source)
            session.retention.hold(source)

    async def _next(
        self, session: ClientSession, source: AsyncGenerator[Job | RecoveredJob]
    ) -> Job | RecoveredJob:
        try:
            return await anext(source)
        except anyio.get_cancelled_exc_class() as exc:
            if session.driver.ending or self._cancelled():
                raise
            # Not ours, and nobody's here: as any error of the source.
            raise session.cut_off() from exc

    def _cancelled(self) -> bool:
        """Whether nothing more is to be read. A scope tells it only where something waits."""
        return self._cut_short() or self._reading.cancel_called

    def _cut_short(self) -> bool:
        return self._scope.cancel_called

    async def _enter(self, session: ClientSession, place: _Place) -> None:
        if self._cut_short():
            # Its outcome comes when the feeding ends.
            return
        try:
            place.handle = await session.enter(
                place.item, lambda: self._heard(place), self._options
            )
        except ClientClosed as exc:
            # Nor will any other job be taken: the rest of the source stays unread.
            self._failure = self._failure or exc
            self._refuse(place, exc)
            self._reading.cancel()
        except PerfectError as exc:
            self._refuse(place, exc)
        else:
            place.units = 0.0 if place.handle.leader is not None else place.job.units
            self._heard(place)
            if self._cut_short():
                # Stopped while its picture was looked at.
                session.withdraw(place.handle)


def _must_be_iterable(jobs: object) -> None:
    if not isinstance(jobs, AsyncIterable | Iterable):
        raise ConfigurationError(
            f"jobs is {quoted(type(jobs).__name__)}; pass an iterable of jobs."
        )


async def each(jobs: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T]:
    """`jobs` of either kind as an async generator; an async generator inside is closed with it."""
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
