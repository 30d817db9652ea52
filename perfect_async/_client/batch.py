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

from perfect_async._client.recovery import Leftover
from perfect_async._client.results import Failed, Outcome
from perfect_async._journal.journal import Record
from perfect_async._runtime.handle import Ticket
from perfect_async._runtime.spec import PLAIN, Terms
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
    from perfect_async._client.session import Desk

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

    item: Job | Leftover
    ticket: Ticket | None = None
    running: bool = False
    kept: bool = False
    units: float = 0.0
    record: Record | None = None
    outcome: Outcome | None = None

    @property
    def job(self) -> Job:
        """The job."""
        return self.item.job if isinstance(self.item, Leftover) else self.item


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
        desk: Callable[[], Desk],
        jobs: Iterable[Job | Leftover] | AsyncIterable[Job | Leftover],
        *,
        ordered: bool = False,
        terms: Terms = PLAIN,
        max_units: float | None = None,
    ) -> None:
        _must_be_iterable(jobs)
        self._terms = terms
        self._max_units = max_units
        self._files: set[FileId] = set()
        self._open_desk = desk
        self._desk: Desk | None = None
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
        if self._desk is not None:
            raise ConfigurationError("A batch is entered once; make another.")
        desk = self._open_desk()
        if self._max_units is not None:
            purse = desk.driver.purse(self._max_units)
            self._terms = attrs.evolve(self._terms, purses=(purse,))
        # A group of the driver's, not one of this block: an error in the block stays that error.
        desk.start(lambda: self._feed(desk))
        desk.batches.add(self)
        self._desk = desk
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
        if self._desk is None:
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
        if self._desk is not None and not self._stopped.is_set():
            self._failure = self._failure or self._desk.cut_off()
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
        if total is not None and self._desk is not None:
            eta = self._desk.eta(waiting, self._running)
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
        if place.record is not None and not isinstance(outcome and outcome.error, NotSaved):
            # What is made and not saved is told again by whoever resumes, until it is.
            place.record.told()
        return outcome

    def _pulse(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _withdraw(self) -> None:
        for place in list(self._live):
            ticket = place.ticket
            if ticket is not None and ticket.ending is None and self._desk is not None:
                self._desk.withdraw(ticket)

    def _heard(self, place: _Place) -> None:
        """The ticket of `place` has news."""
        ticket = place.ticket
        desk = self._desk
        if ticket is None or place.outcome is not None or desk is None or place.kept:
            return
        if ticket.ending is None:
            self._count(place, runs=ticket.task_id is not None)
            self._pulse()
        elif ticket.errand.terms.save_to is None or not desk.driver.alive:
            self._end(place, desk.outcome(ticket))
        else:
            place.kept = True
            desk.custody.begin(ticket)
            desk.start(lambda: self._keep(desk, place, ticket))

    def _count(self, place: _Place, *, runs: bool) -> None:
        if runs is not place.running:
            place.running = runs
            self._running += 1 if runs else -1
            self._units_running += place.units if runs else -place.units

    async def _keep(self, desk: Desk, place: _Place, ticket: Ticket) -> None:
        """Save what the job of `place` gave, and only then tell of it."""
        try:
            self._end(place, await desk.keep(ticket))
        finally:
            if place.outcome is None:
                # The driver ends: made and not saved, which the journal knows.
                self._end(place, desk.outcome(ticket))
            desk.sweep()

    def _end(self, place: _Place, outcome: Outcome) -> None:
        self._count(place, runs=False)
        if place.ticket is not None:
            place.record = place.ticket.record
        place.outcome, place.ticket = outcome, None
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
        if self._stopped.is_set() and not self._live and self._desk is not None:
            for purse in self._terms.purses:
                self._desk.driver.empty(purse)
            self._desk.custody.let_go(self._files)
            self._files.clear()
            self._desk.sweep()

    def _refuse(self, place: _Place, error: PerfectError) -> None:
        self._end(place, Failed(place.job, error, None, 0.0, None))

    async def _room(self, desk: Desk) -> None:
        """Wait until another job is worth reading.

        Jobs that are not created yet are what the scheduler likes to know ahead; outcomes that
        nobody has taken are held back in number too, so that a slow consumer stops the creating.
        """
        most = desk.appetite()
        held = _ORDERED_MOST if self._ordered else most
        while len(self._live) - self._running >= most or self._held >= held:
            await self._changed.wait()

    async def _feed(self, desk: Desk) -> None:
        over = False
        try:
            with self._scope:
                if self._terms.save_to is not None:
                    # The folder that is meant now, also by the process that resumes it elsewhere.
                    folder = await anyio.to_thread.run_sync(os.path.abspath, self._terms.save_to)
                    self._terms = attrs.evolve(self._terms, save_to=folder)
                async with anyio.create_task_group() as group:
                    await self._read_all(desk, group)
                over = True
        finally:
            error = desk.cut_off()
            if self._scope.cancel_called:
                error = ClientClosed("The batch was stopped before this was sent.")
            elif not over and self._failure is None:
                self._failure = error
            for place in list(self._live):
                if place.ticket is None:
                    self._refuse(place, twin(error))
            desk.batches.discard(self)
            self._stopped.set()
            self._pulse()
            self._over()

    async def _read_all(self, desk: Desk, group: TaskGroup) -> None:
        source = self._source()
        try:
            with self._reading:
                while not self._cancelled():
                    await self._room(desk)
                    desk.ready()
                    job = await self._next(desk, source)
                    self._read += 1
                    place = _Place(job)
                    self._hold(desk, job)
                    self._live.add(place)
                    if self._ordered:
                        self._order.append(place)
                    group.start_soon(self._enter, desk, place)
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

    def _source(self) -> AsyncGenerator[Job | Leftover]:
        return each(self._jobs)

    def _hold(self, desk: Desk, job: Job | Leftover) -> None:
        """A file that one job names may be named by another that is not read yet."""
        source = getattr(job, "source", None)
        if self._terms.delete and isinstance(source, FileId) and source not in self._files:
            self._files.add(source)
            desk.custody.hold(source)

    async def _next(self, desk: Desk, source: AsyncGenerator[Job | Leftover]) -> Job | Leftover:
        try:
            return await anext(source)
        except anyio.get_cancelled_exc_class() as exc:
            if desk.driver.ending or self._cancelled():
                raise
            # Not ours, and nobody's here: as any error of the source.
            raise desk.cut_off() from exc

    def _cancelled(self) -> bool:
        """Whether nothing more is to be read. A scope tells it only where something waits."""
        return self._cut_short() or self._reading.cancel_called

    def _cut_short(self) -> bool:
        return self._scope.cancel_called

    async def _enter(self, desk: Desk, place: _Place) -> None:
        if self._cut_short():
            # Its outcome comes when the feeding ends.
            return
        try:
            place.ticket = await desk.enter(place.item, lambda: self._heard(place), self._terms)
        except ClientClosed as exc:
            # Nor will any other job be taken: the rest of the source stays unread.
            self._failure = self._failure or exc
            self._refuse(place, exc)
            self._reading.cancel()
        except PerfectError as exc:
            self._refuse(place, exc)
        else:
            place.units = 0.0 if place.ticket.leader is not None else place.job.units
            self._heard(place)
            if self._cut_short():
                # Stopped while its picture was looked at.
                desk.withdraw(place.ticket)


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
