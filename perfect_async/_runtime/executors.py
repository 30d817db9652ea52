"""Runs work in the event loop of a client's driver: the caller's loop, or one in a thread.

A client calls its driver through an executor, so that both kinds of client have the same methods.

`asyncio.run_coroutine_threadsafe` and anyio's blocking portal cannot replace the thread's executor.
A cancelled future of theirs ends before its work has unwound, a call never ends if the thread ends
during it, and the portal blocks the caller's loop until the thread has accepted the call.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from perfect_async._log import LOG, type_name
from perfect_async._runtime.driver import share_past
from perfect_async._runtime.handle import closed
from perfect_async.errors import ConfigurationError, PerfectError

T = TypeVar("T")


class Executor(Protocol):
    """The loop in which driver and transport run."""

    async def open(self) -> None:
        """Make the loop usable. Raises `ConfigurationError` without a running event loop."""
        ...

    async def close(self) -> None:
        """Release the loop."""
        ...

    def check(self) -> None:
        """Raise `ConfigurationError` if the caller cannot reach the loop.

        A caller in another process cannot, nor one in another loop, unless the loop is a thread's.
        """
        ...

    def check_process(self) -> None:
        """Raise `ConfigurationError` if the caller is in another process."""
        ...

    async def call(
        self, work: Callable[[], Awaitable[T]], otherwise: Callable[[T], object] | None = None
    ) -> T:
        """Await `work` in the loop and return its value; cancelling the caller cancels the work.

        `otherwise` gets the value of work that ended although the caller was cancelled, so that
        the value is not lost. For a thread's loop it raises as `check` does, and `ClientClosed`
        after the thread has ended.
        """
        ...

    def soon(self, step: Callable[[], object]) -> None:
        """Call `step` in the loop before all later calls, without waiting."""
        ...

    def ask(self, question: Callable[[], T]) -> T:
        """Call `question` in the loop, block until it returns, and return its value.

        Raises as `check_process` does.
        """
        ...


class LoopExecutor:
    """The loop that opened the client; all work is called directly."""

    def __init__(self) -> None:
        self._place: tuple[asyncio.AbstractEventLoop, int] | None = None

    async def open(self) -> None:
        """Use the running loop."""
        self._place = running_loop(), os.getpid()

    async def close(self) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Raise `ConfigurationError` in another loop or process."""
        self.check_process()
        if self._place is not None and running_loop() is not self._place[0]:
            raise ConfigurationError(
                "This client was opened in another event loop; open a client in each loop."
            )

    def check_process(self) -> None:
        """Raise `ConfigurationError` in another process."""
        if self._place is not None:
            _check_process(self._place[1])

    async def call(
        self,
        work: Callable[[], Awaitable[T]],
        otherwise: Callable[[T], object] | None = None,  # noqa: ARG002 - no value is ever lost
    ) -> T:
        """Await `work`."""
        return await work()

    def soon(self, step: Callable[[], object]) -> None:
        """Call `step`."""
        step()

    def ask(self, question: Callable[[], T]) -> T:
        """Call `question`."""
        self.check_process()
        return question()


class ThreadExecutor:
    """The loop of a thread that the isolated clients of the process share."""

    def __init__(self) -> None:
        self._thread: _LoopThread | None = None
        self._closed = False

    async def open(self) -> None:
        """Join the thread, and start it unless another client has started it."""
        running_loop()
        self._thread = _join_thread()
        try:
            if not self._thread.started.done():
                await _in_worker(self._thread.start)
            await future_result(self._thread.started)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.close()
            raise

    async def close(self) -> None:
        """Leave the thread; the last client stops it and waits for its end."""
        thread = self._thread
        if thread is None or self._closed:
            return
        self._closed = True
        if _leave_thread(thread):
            # Stopped at once, even if the wait for its end is cancelled.
            thread.stop()
            await _in_worker(thread.join)

    def check(self) -> None:
        """Raise `ConfigurationError` in another process."""
        self.check_process()

    def check_process(self) -> None:
        """Raise `ConfigurationError` in another process."""
        if self._thread is not None:
            _check_process(self._thread.process)

    async def call(
        self, work: Callable[[], Awaitable[T]], otherwise: Callable[[T], object] | None = None
    ) -> T:
        """Await `work` in the thread."""
        self.check()
        thread = self._thread
        if thread is None:
            raise AssertionError(self)
        if thread.is_current:
            return await work()
        call = _Call(work)
        thread.submit(call)
        cancelled: BaseException | None = None
        while not call.future.done():
            try:
                # After a cancellation it waits until the work has unwound, as in the same loop.
                with anyio.CancelScope(shield=cancelled is not None):
                    await future_done(call.future)
            except asyncio.CancelledError as exc:
                cancelled = cancelled or exc
                thread.soon(call.cancel)
            except BaseException:
                # The caller's coroutine is being closed, so it cannot wait.
                thread.soon(call.cancel)
                raise
        if cancelled is not None:
            if otherwise is not None:
                _pass_on(otherwise, call.future)
            try:
                raise cancelled
            finally:
                del cancelled, call
        try:
            return call.future.result()
        finally:
            # Breaks the reference cycle between an error and the frame that raised it.
            del call

    def soon(self, step: Callable[[], object]) -> None:
        """Call `step` in the thread before all later calls."""
        if self._thread is not None:
            self._thread.soon(step)

    def ask(self, question: Callable[[], T]) -> T:
        """Call `question` in the thread; it takes one turn of the thread's loop."""
        self.check_process()
        thread = self._thread
        if thread is None or thread.is_current:
            return question()

        async def work() -> T:
            return question()

        call = _Call(work)
        try:
            thread.submit(call)
        except PerfectError:
            # The thread has ended, so no other thread changes the state.
            return question()
        return call.future.result()


class _Call(Generic[T]):
    """One call in the thread; only the thread sets `future` to its value or error.

    A cancellation cancels the work's own task, so shields inside the work have their usual effect.
    """

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Task[object] | None = None
        self._cancelled = False
        self.future: Future[T] = Future()

    async def run(self) -> None:
        """Do the work. Call it in the thread."""
        if self.future.done():
            return
        self._task = asyncio.current_task()
        if self._cancelled and self._task is not None:
            # As in the caller's own loop, the work begins and its first wait is cancelled. So the
            # closing of a client is never skipped.
            self._task.cancel()
        try:
            value = await self._work()
        except asyncio.CancelledError:
            self._task = None
            if not self._cancelled:
                # The thread is ending, which fails the call.
                raise
            self.future.cancel()
        except BaseException as exc:  # noqa: BLE001 - the caller raises it
            # Catches an interrupt too, since in the thread it would end other clients' tasks.
            self._task = None
            self.future.set_exception(exc)
        else:
            self._task = None
            self.future.set_result(value)

    def cancel(self) -> None:
        """Cancel the work. Call it in the thread."""
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def fail(self, error: PerfectError) -> None:
        """End the call with `error`, since the work will not be done."""
        if not self.future.done():
            self.future.set_exception(error)


class _LoopThread:
    """A thread with an event loop; when it ends, every call in it ends too."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.clients = 0
        self.over = False
        self.started: Future[None] = Future()
        # The unfinished calls, and how to fail each. Each change is atomic for all threads.
        self._calls: dict[object, Callable[[PerfectError], None]] = {}
        self._failure: BaseException | None = None
        self._submitted: deque[tuple[Context, Callable[[], Coroutine[object, object, None]]]] = (
            deque()
        )
        self._wakeup = anyio.Event()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()
        # A daemon, so that a program that forgets to close its client still ends.
        self._thread = threading.Thread(target=self._run, name="perfect_async", daemon=True)

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.get_ident() == self._thread.ident

    def start(self) -> None:
        """Start the thread if it is not started; `started` is set once it accepts calls."""
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()

    def stop(self) -> None:
        """Make the thread end soon; one that is not started ends as soon as it starts."""
        self._stopping = True
        self._wake()

    def join(self) -> None:
        """Wait for the thread's end. Call it in another thread, which it blocks."""
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, call: _Call[T]) -> None:
        """Run `call` in the context of the caller. Raises `ClientClosed`."""
        self._calls[call] = call.fail
        # Checked after adding the call, since the thread sets `over` before it fails all calls.
        if self.over and self._calls.pop(call, None) is not None:
            raise closed(self._failure)
        self._submitted.append((copy_context(), partial(self._do, call)))
        self._wake()

    def soon(self, step: Callable[[], object]) -> None:
        """Call `step` after all earlier calls."""

        async def work() -> None:
            step()

        with suppress(PerfectError):
            self.submit(_Call(work))

    def _wake(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended, and all calls have failed
                self._loop.call_soon_threadsafe(self._set_wakeup)

    def _set_wakeup(self) -> None:
        # Runs in the thread, since only the thread replaces `_wakeup`.
        self._wakeup.set()

    async def _do(self, call: _Call[T]) -> None:
        try:
            await call.run()
        finally:
            # The thread's end fails a call that it cuts off.
            if call.future.done():
                del self._calls[call]

    def _run(self) -> None:
        try:
            anyio.run(self._live)
        except BaseException as exc:  # noqa: BLE001 - the thread ends here, and its calls fail
            self._failure = exc
            LOG.error("The thread of isolated clients failed: %s.", type_name(exc))
        finally:
            self.over = True
            while self._calls:
                with suppress(KeyError):  # its caller has noticed that the thread is over
                    self._calls.popitem()[1](closed(self._failure))
            if not self.started.done():
                self.started.set_exception(closed(self._failure))

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        share_past(self._loop)
        self.started.set_result(None)
        async with anyio.create_task_group() as group:
            while not self._stopping:
                self._wakeup = anyio.Event()
                while self._submitted:
                    self._begin(group)
                await self._wakeup.wait()
            group.cancel_scope.cancel()

    def _begin(self, group: TaskGroup) -> None:
        # A method of its own, so that no local variable of the loop keeps the last call alive.
        context, work = self._submitted.popleft()

        def start() -> None:
            # anyio starts tasks only from a task, so `call_soon_threadsafe` alone is not enough.
            group.start_soon(work)

        context.run(start)


_lock: Final = threading.Lock()
_threads: Final[list[_LoopThread]] = []
"""The thread of this process's isolated clients; they have one loop, so they share one window."""


def _join_thread() -> _LoopThread:
    """Return the thread, and count one client more; the caller starts it if needed."""
    with _lock:
        thread = _threads[0] if _threads else None
        if thread is None or thread.over or thread.process != os.getpid():
            thread = _LoopThread()
            _threads[:] = [thread]
        thread.clients += 1
        return thread


def _leave_thread(thread: _LoopThread) -> bool:
    """Count one client less, and return whether it was the last, so that the thread must stop."""
    with _lock:
        thread.clients -= 1
        last = thread.clients == 0
        if last and thread in _threads:
            _threads.remove(thread)
        return last


def _check_process(process: int) -> None:
    if os.getpid() != process:
        raise ConfigurationError(
            "This client was opened before a fork; open a client in each process."
        )


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the running loop. Raises `ConfigurationError` without one (trio, plain code)."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError("perfect_async needs a running asyncio event loop.") from None


def _pass_on(otherwise: Callable[[T], object], future: Future[T]) -> None:
    if not future.cancelled() and future.exception() is None:
        otherwise(future.result())


async def future_done(future: Future[T]) -> None:
    """Wait until a thread has set `future`."""
    loop, event = asyncio.get_running_loop(), anyio.Event()

    def wake(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop was closed, so nobody waits
            loop.call_soon_threadsafe(event.set)

    future.add_done_callback(wake)
    await event.wait()


async def future_result(future: Future[T]) -> T:
    """Return the value of `future` once a thread has set it."""
    await future_done(future)
    return future.result()


async def _in_worker(function: Callable[[], object]) -> None:
    # It has a limiter of its own, since all of the caller's worker threads may be busy.
    await anyio.to_thread.run_sync(function, limiter=anyio.CapacityLimiter(1))
