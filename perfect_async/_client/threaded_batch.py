"""A batch of an isolated client: its jobs are read here, and all else is done in the thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Generic, Self, TypeVar

import anyio
from anyio.abc import TaskGroup

from perfect_async._client.batch import GRACE, Batch, each
from perfect_async._client.recovery import RecoveredJob
from perfect_async._client.results import Outcome
from perfect_async._runtime.apart import settled, until
from perfect_async._runtime.executors import Executor, running_loop
from perfect_async.errors import ClientClosed
from perfect_async.models import Job, Progress

T = TypeVar("T")


class _Source(Generic[T]):
    """Jobs that one loop reads for a batch in another, each when it is asked for."""

    def __init__(self, jobs: Iterable[T] | AsyncIterable[T]) -> None:
        self._jobs = jobs
        self._loop = running_loop()
        self._scope = anyio.CancelScope()
        self._wishes: deque[Future[T]] = deque()
        self._wished = anyio.Event()
        self._end: Future[None] = Future()

    # In the loop of whoever has the jobs.

    async def read(self) -> None:
        """Read until the jobs end, or nobody asks for more; their errors are told, not raised."""
        source = each(self._jobs)
        try:
            # A source that is cancelled from within ends its reading, and not the caller's block.
            with suppress(asyncio.CancelledError), self._scope:
                while True:
                    while not self._wishes:
                        self._wished = anyio.Event()
                        await self._wished.wait()
                    await self._grant(source)
        finally:
            await self._close(source)

    async def _grant(self, source: AsyncGenerator[T]) -> None:
        wish = self._wishes[0]
        try:
            job = await anext(source)
        except Exception as exc:  # noqa: BLE001 - it is for whoever reads the outcomes
            wish.set_exception(exc)
        else:
            wish.set_result(job)
        # Else it was cancelled, which is told at the end.
        self._wishes.popleft()

    async def _close(self, source: AsyncGenerator[T]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await source.aclose()
        except Exception as exc:  # noqa: BLE001 - as above
            self._end.set_exception(exc)
        finally:
            self.leave()

    def leave(self) -> None:
        """Nothing is read at all, or no more."""
        if not self._end.done():
            self._end.set_result(None)
        while self._wishes:
            self._wishes.popleft().cancel()

    def cancel(self) -> None:
        """Read no more."""
        self._scope.cancel()

    def _wish(self, wish: Future[T]) -> None:
        if self._end.done():
            wish.cancel()
        else:
            self._wishes.append(wish)
            self._wished.set()

    # In the loop of the batch.

    async def jobs(self) -> AsyncGenerator[T]:
        """The jobs; as if they were read here."""
        try:
            while True:
                wish: Future[T] = Future()
                if not self._tell(partial(self._wish, wish)):
                    wish.cancel()
                try:
                    await until(wish)
                except asyncio.CancelledError:
                    self._tell(self.cancel)
                    with anyio.move_on_after(GRACE, shield=True):
                        await until(wish)
                    if not wish.done() or wish.cancelled():
                        raise
                    # It was read all the same, or failed, and that is told of.
                if wish.cancelled():
                    raise asyncio.CancelledError
                try:
                    job = wish.result()
                except StopAsyncIteration:
                    return
                yield job
        finally:
            if self._tell(self.cancel):
                with anyio.move_on_after(GRACE, shield=True):
                    await settled(self._end)

    def _tell(self, step: Callable[[], object]) -> bool:
        """Have `step` done where the jobs are; False where that loop has ended."""
        try:
            self._loop.call_soon_threadsafe(step)
        except RuntimeError:
            return False
        return True


class ThreadedBatch(Batch):
    """A batch in the thread of an isolated client; it is left in the task that entered it."""

    _group: TaskGroup
    _reader: _Source[Job | RecoveredJob]
    _kept: deque[Outcome]
    _home: Executor | None = None

    async def __aenter__(self) -> Self:
        home = self._get_session().executor
        reader = _Source(self._jobs)

        async def enter() -> None:
            if self._session is None:
                self._reader = reader
            await Batch.__aenter__(self)

        try:
            await home.call(enter, otherwise=lambda _: home.soon(super(ThreadedBatch, self).stop))
        except BaseException:
            reader.leave()
            raise
        self._kept = deque()
        self._home = home
        # Of this block, since the jobs are this loop's; nothing in it raises.
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(reader.read)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        work = partial(super().__aexit__, kind, error, traceback)
        try:
            with anyio.CancelScope(shield=True), suppress(ClientClosed):
                if self._home is not None:
                    await self._home.call(work)
        finally:
            self._reader.cancel()
            # Not told of an error in the block, which stays what it is.
            await self._group.__aexit__(None, None, None)

    async def __anext__(self) -> Outcome:
        if self._home is None:
            return await super().__anext__()
        if self._kept:
            return self._kept.popleft()
        try:
            return await self._home.call(self._next_kept, otherwise=self._kept.append)
        except ClientClosed:
            # The thread has ended; what it had is still to be told.
            outcome = self._take()
            if outcome is None:
                raise
            return outcome

    async def _next_kept(self) -> Outcome:
        # What came for a caller who was cancelled at that moment is for the next one.
        return self._kept.popleft() if self._kept else await super().__anext__()

    def stop(self) -> None:
        """As `Batch.stop`."""
        if self._home is None:
            super().stop()
        else:
            self._home.soon(super().stop)

    def _progress(self) -> Progress:
        return super()._progress() if self._home is None else self._home.ask(super()._progress)

    def _source(self) -> AsyncGenerator[Job | RecoveredJob]:
        return self._reader.jobs()
