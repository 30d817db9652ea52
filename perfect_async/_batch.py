"""Many pictures: read lazily, entered a few dozen ahead, told as they end."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import anyio
import attrs
from anyio.abc import TaskGroup

from perfect_async._result import Failed, Outcome
from perfect_async._ticket import Ticket
from perfect_async.errors import ConfigurationError, JobRefused, quoted
from perfect_async.models import Job, Progress

if TYPE_CHECKING:
    from perfect_async._client import Client

T = TypeVar("T")

_ORDERED_MOST = 256
"""Outcomes that wait for their turn: one stuck job may hold up that many that came after it."""


@attrs.define(eq=False)
class _Place:
    """One job's place in the batch; `outcome` once it has ended."""

    ticket: Ticket | None = None
    outcome: Outcome | None = None
    counted: bool = False

    @property
    def created(self) -> bool:
        return self.ticket is not None and self.ticket.task_id is not None


class Batch:
    """The jobs of one `client.batch`: enter it with `async with`, then iterate over its outcomes.

    Iterating may stop and go on, in one task at a time. The jobs are read and sent in the background from
    entering on; leaving the block stops that, and what was created is kept to its end by the client.
    """

    def __init__(
        self, client: Client, jobs: Iterable[Job] | AsyncIterable[Job], *, ordered: bool
    ) -> None:
        if not isinstance(jobs, AsyncIterable | Iterable):
            raise ConfigurationError(
                f"jobs is {quoted(type(jobs).__name__)}; pass an iterable of jobs."
            )
        self._client = client
        self._jobs = jobs
        self._ordered = ordered
        self._total = len(jobs) if isinstance(jobs, Sized) else None
        self._places: deque[_Place] = deque()
        self._failure: BaseException | None = None
        self._read = self._done = self._failed = 0
        self._units = 0.0
        self._changed = anyio.Event()
        self._scope = anyio.CancelScope()
        self._stopped: anyio.Event | None = None

    def __repr__(self) -> str:
        return f"<Batch {self.progress}>"

    async def __aenter__(self) -> Self:
        if self._stopped is not None:
            raise ConfigurationError("A batch is entered once; make another.")
        # A group of the client's, not one of this block: an error in the block stays that error.
        self._stopped = anyio.Event()
        self._client._start(self._feed)  # noqa: SLF001 - the door is one room
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scope.cancel()
        for place in self._places:
            if place.ticket is not None:
                self._client._withdraw(place.ticket)  # noqa: SLF001
        if self._stopped is not None:
            with anyio.CancelScope(shield=True):
                await self._stopped.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        if self._stopped is None:
            raise ConfigurationError(
                "Enter the batch first: `async with client.batch(...) as batch:`."
            )
        while True:
            place = self._next()
            if place is not None:
                self._places.remove(place)
                self._pulse()
                return self._told(place)
            if not self._places and self._stopped.is_set():
                if self._failure is not None:
                    failure, self._failure = self._failure, None
                    raise failure
                raise StopAsyncIteration
            await self._changed.wait()

    @property
    def progress(self) -> Progress:
        """How it stands now."""
        running = sum(place.created and place.outcome is None for place in self._places)
        known = self._read if self._total is None else max(self._total, self._read)
        waiting = known - self._done - self._failed - running
        over = self._stopped is not None and self._stopped.is_set()
        total = self._total if not over else self._read
        eta = None if total is None else self._client._eta(waiting + running)  # noqa: SLF001
        return Progress(total, self._done, self._failed, running, waiting, self._units, eta)

    # Inside.

    def _next(self) -> _Place | None:
        """The outcome to give next, if there is one."""
        if self._ordered:
            return self._places[0] if self._places and self._places[0].outcome is not None else None
        return next((place for place in self._places if place.outcome is not None), None)

    def _told(self, place: _Place) -> Outcome:
        if place.outcome is None:
            raise AssertionError(place)
        return place.outcome

    def _pulse(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    def _heard(self, place: _Place) -> None:
        ticket = place.ticket
        if ticket is not None and ticket.ending is not None and place.outcome is None:
            self._end(place, self._client._outcome(ticket))  # noqa: SLF001
        self._pulse()

    def _end(self, place: _Place, outcome: Outcome) -> None:
        place.outcome = outcome
        self._done += outcome.ok
        self._failed += not outcome.ok
        self._units += outcome.units
        self._pulse()

    async def _room(self) -> None:
        """Wait until another job is worth reading.

        Jobs that are not created yet are what the scheduler likes to know ahead; outcomes that nobody has
        taken are held back in number too, so that a slow consumer stops the creating.
        """
        most = self._client._appetite()  # noqa: SLF001
        while True:
            ended = sum(place.outcome is not None for place in self._places)
            uncreated = sum(not place.created and place.outcome is None for place in self._places)
            if uncreated < most and ended < (_ORDERED_MOST if self._ordered else most):
                return
            await self._changed.wait()

    async def _feed(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    await self._read_all(group)
        except Exception as exc:  # noqa: BLE001 - what the source raises is its reader's to hear
            self._failure = exc
        finally:
            if self._stopped is not None:
                self._stopped.set()
            self._pulse()

    async def _read_all(self, group: TaskGroup) -> None:
        source = each(self._jobs)
        try:
            while True:
                await self._room()
                try:
                    job = await anext(source)
                except StopAsyncIteration:
                    return
                except Exception as exc:  # noqa: BLE001 - it comes after the outcomes of what was read
                    self._failure = exc
                    return
                self._read += 1
                place = _Place()
                self._places.append(place)
                group.start_soon(self._enter, place, job)
        finally:
            with anyio.CancelScope(shield=True):
                await source.aclose()

    async def _enter(self, place: _Place, job: Job) -> None:
        try:
            place.ticket = await self._client._enter(job, lambda: self._heard(place))  # noqa: SLF001
        except JobRefused as exc:
            self._end(place, Failed(job, exc, None, 0.0, None))
        else:
            self._heard(place)


async def each(jobs: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """`jobs` of either kind as an async generator; an async generator inside is closed with it."""
    if isinstance(jobs, AsyncIterable):
        iterator = aiter(jobs)
        try:
            async for job in iterator:
                yield job
        finally:
            if inspect.isasyncgen(iterator):
                await iterator.aclose()
    else:
        for job in jobs:
            yield job
