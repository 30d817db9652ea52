"""The batch of an isolated client: the caller's loop reads the jobs, and the thread runs them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import anyio
from anyio.abc import TaskGroup

from perfect_async._client.batch import GRACE, Batch, each
from perfect_async._client.records import BatchRecord
from perfect_async._client.recovery import RecoveredJob
from perfect_async._client.results import Outcome
from perfect_async._runtime.executors import (
    Executor,
    future_done,
    future_result,
    running_loop,
)
from perfect_async.errors import ClientClosed
from perfect_async.models import Job, Progress

if TYPE_CHECKING:
    from perfect_async.report import Report

T = TypeVar("T")


class _JobReader(Generic[T]):
    """Reads jobs in the caller's loop for a batch in the thread, one for each request."""

    def __init__(self, jobs: Iterable[T] | AsyncIterable[T]) -> None:
        self._jobs = jobs
        self._loop = running_loop()
        self._scope = anyio.CancelScope()
        self._requests: deque[Future[T]] = deque()
        self._requested = anyio.Event()
        self._end: Future[None] = Future()

    # In the caller's loop.

    async def read(self) -> None:
        """Read until the jobs end or `cancel` is called; the batch gets the source's errors."""
        source = each(self._jobs)
        try:
            # A source that cancels itself ends the reading, but not the caller's block.
            with suppress(asyncio.CancelledError), self._scope:
                while True:
                    while not self._requests:
                        self._requested = anyio.Event()
                        await self._requested.wait()
                    await self._answer(source)
        finally:
            await self._close(source)

    async def _answer(self, source: AsyncGenerator[T]) -> None:
        request = self._requests[0]
        try:
            job = await anext(source)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as exc:  # noqa: BLE001 - the batch raises it after the outcomes
            request.set_exception(exc)
        else:
            request.set_result(job)
        # A cancelled request gets its answer in `leave`.
        self._requests.popleft()

    async def _close(self, source: AsyncGenerator[T]) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await source.aclose()
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as exc:  # noqa: BLE001 - as above
            self._end.set_exception(exc)
        finally:
            self.leave()

    def leave(self) -> None:
        """Cancel every waiting request, since no more jobs are read."""
        if not self._end.done():
            self._end.set_result(None)
        while self._requests:
            self._requests.popleft().cancel()

    def cancel(self) -> None:
        """Stop reading."""
        self._scope.cancel()

    def _add(self, request: Future[T]) -> None:
        if self._end.done():
            request.cancel()
        else:
            self._requests.append(request)
            self._requested.set()

    # In the loop of the batch.

    async def jobs(self) -> AsyncGenerator[T]:
        """Yield the jobs in the loop of the batch."""
        try:
            while True:
                request: Future[T] = Future()
                if not self._post(partial(self._add, request)):
                    request.cancel()
                try:
                    await future_done(request)
                except asyncio.CancelledError:
                    self._post(self.cancel)
                    with anyio.move_on_after(GRACE, shield=True):
                        await future_done(request)
                    if not request.done() or request.cancelled():
                        raise
                    # The job was read, or reading failed, before the cancellation arrived.
                if request.cancelled():
                    raise asyncio.CancelledError
                try:
                    job = request.result()
                except StopAsyncIteration:
                    return
                yield job
        finally:
            if self._post(self.cancel):
                with anyio.move_on_after(GRACE, shield=True):
                    await future_result(self._end)

    def _post(self, step: Callable[[], object]) -> bool:
        """Call `step` in the caller's loop; return False if that loop has ended."""
        try:
            self._loop.call_soon_threadsafe(step)
        except RuntimeError:
            return False
        return True


class ThreadedBatch(Batch):
    """A batch in the thread of an isolated client; the task that enters it must leave it."""

    _group: TaskGroup
    _reader: _JobReader[Job | RecoveredJob]
    _kept: deque[Outcome]
    _executor: Executor | None = None

    async def __aenter__(self) -> Self:
        executor = self._get_session().executor
        reader = _JobReader(self._jobs)

        async def enter() -> None:
            if self._session is None:
                self._reader = reader
            await Batch.__aenter__(self)

        try:
            await executor.call(
                enter, otherwise=lambda _: executor.soon(super(ThreadedBatch, self).stop)
            )
        except BaseException:
            reader.leave()
            raise
        self._kept = deque()
        self._executor = executor
        # The group belongs to this block, since its loop reads the jobs; no task in it raises.
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
                if self._executor is not None:
                    await self._executor.call(work)
        finally:
            self._reader.cancel()
            # The group does not get the error of the block, which it would wrap.
            await self._group.__aexit__(None, None, None)

    async def __anext__(self) -> Outcome:
        if self._executor is None:
            return await super().__anext__()
        if self._kept:
            return self._kept.popleft()
        try:
            return await self._executor.call(self._next_kept, otherwise=self._kept.append)
        except ClientClosed:
            # The thread has ended, but its outcomes can still be taken.
            outcome = self._take()
            if outcome is None:
                raise
            return outcome

    async def _next_kept(self) -> Outcome:
        # An outcome that came for a cancelled caller goes to the next one.
        return self._kept.popleft() if self._kept else await super().__anext__()

    def stop(self) -> None:
        """Stop new work, as `Batch.stop` does."""
        if self._executor is None:
            super().stop()
        else:
            self._executor.soon(super().stop)

    def _progress(self) -> Progress:
        return (
            super()._progress() if self._executor is None else self._executor.ask(super()._progress)
        )

    def _reported(self, record: BatchRecord) -> Callable[[], Report]:
        work = partial(super()._reported, record)
        return work() if self._executor is None else self._executor.ask(work)

    def _source(self) -> AsyncGenerator[Job | RecoveredJob]:
        return self._reader.jobs()
