"""The event loop in which a client's driver and transport run: the caller's, or one in a thread.

A client calls its driver through an executor, so that both kinds of client have the same methods.

`asyncio.run_coroutine_threadsafe` and anyio's blocking portal do not replace the thread's executor:
a future that is cancelled there is over before its work has unwound, work that the thread's end
overtakes never ends, and the portal blocks the caller's loop until the thread has taken the call.
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
        """Make it usable; raises `ConfigurationError` without a running event loop."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...

    def check(self) -> None:
        """Raise `ConfigurationError` where it cannot be reached from.

        That is another process than its own and, unless it is a thread's, another loop.
        """
        ...

    def check_process(self) -> None:
        """Raise `ConfigurationError` in another process than its own."""
        ...

    async def call(
        self, work: Callable[[], Awaitable[T]], otherwise: Callable[[T], object] | None = None
    ) -> T:
        """Await `work` there and return its value; cancelling the caller cancels the work.

        `otherwise` gets the value of work that ended although the caller was cancelled, so that
        the value is not lost. Raises as `check` does where it is a thread's, and `ClientClosed`
        once the thread has ended.
        """
        ...

    def soon(self, step: Callable[[], object]) -> None:
        """Call `step` there, before everything that is asked for later, without waiting."""
        ...

    def ask(self, question: Callable[[], T]) -> T:
        """Call `question` there and return its value; blocks until then.

        Raises as `check_process` does.
        """
        ...


class LoopExecutor:
    """The loop that opens the client: everything is called directly."""

    def __init__(self) -> None:
        self._place: tuple[asyncio.AbstractEventLoop, int] | None = None

    async def open(self) -> None:
        """Belong to the running loop."""
        self._place = running_loop(), os.getpid()

    async def close(self) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Raise `ConfigurationError` in another loop or process."""
        self.check_process()
        if self._place is not None and running_loop() is not self._place[0]:
            raise ConfigurationError(
                "This client was opened in another event loop: open one in each."
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
        """Join the thread, and start it unless another client has."""
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
            # At once, whatever becomes of the wait.
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
                # After a cancellation the work is unwinding, as work in one's own loop would.
                with anyio.CancelScope(shield=cancelled is not None):
                    await future_done(call.future)
            except asyncio.CancelledError as exc:
                cancelled = cancelled or exc
                thread.soon(call.cancel)
            except BaseException:
                # The caller's coroutine is closed: nobody can wait.
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
            # Without this an error and the frame that raised it hold each other.
            del call

    def soon(self, step: Callable[[], object]) -> None:
        """Call `step` in the thread, before everything that is asked for later."""
        if self._thread is not None:
            self._thread.soon(step)

    def ask(self, question: Callable[[], T]) -> T:
        """Call `question` in the thread, which takes one turn of its loop."""
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
            # The thread has ended: nothing changes any more.
            return question()
        return call.future.result()


class _Call(Generic[T]):
    """One call of the thread; `future` gets its value or error, and only the thread sets it.

    The work is cancelled by its task, so shields inside it mean what they mean everywhere.
    """

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Task[object] | None = None
        self._cancelled = False
        self.future: Future[T] = Future()

    async def run(self) -> None:
        """Do the work; to be called in the thread."""
        if self.future.done():
            return
        self._task = asyncio.current_task()
        if self._cancelled and self._task is not None:
            # As in one's own loop: the work begins, and its first wait is cancelled. So closing
            # a client is never left out.
            self._task.cancel()
        try:
            value = await self._work()
        except asyncio.CancelledError:
            self._task = None
            if not self._cancelled:
                # The thread ends, which fails the call.
                raise
            self.future.cancel()
        except BaseException as exc:  # noqa: BLE001 - the caller raises it
            # Also an interrupt: in the thread it would end the tasks of other clients.
            self._task = None
            self.future.set_exception(exc)
        else:
            self._task = None
            self.future.set_result(value)

    def cancel(self) -> None:
        """Cancel the work; to be called in the thread."""
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
        # The calls without an end, and how to fail them. Each change is atomic for all threads.
        self._calls: dict[object, Callable[[PerfectError], None]] = {}
        self._failure: BaseException | None = None
        self._submitted: deque[tuple[Context, Callable[[], Coroutine[object, object, None]]]] = (
            deque()
        )
        self._wakeup = anyio.Event()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()
        # A daemon: a program that forgets to close its client ends all the same.
        self._thread = threading.Thread(target=self._run, name="perfect_async", daemon=True)

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.get_ident() == self._thread.ident

    def start(self) -> None:
        """Start the thread unless somebody has; `started` is set once it takes calls."""
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()

    def stop(self) -> None:
        """End the thread soon; one that was not started ends once it is."""
        self._stopping = True
        self._wake()

    def join(self) -> None:
        """Wait for the thread's end; to be called in another thread, which it blocks."""
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, call: _Call[T]) -> None:
        """Run `call` in the context of the caller; raises `ClientClosed`."""
        self._calls[call] = call.fail
        # Checked only now: the thread sets it before it fails the calls that are left.
        if self.over and self._calls.pop(call, None) is not None:
            raise closed(self._failure)
        self._submitted.append((copy_context(), partial(self._do, call)))
        self._wake()

    def soon(self, step: Callable[[], object]) -> None:
        """Call `step` after everything that was submitted before."""

        async def work() -> None:
            step()

        with suppress(PerfectError):
            self.submit(_Call(work))

    def _wake(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended, and all calls have failed
                self._loop.call_soon_threadsafe(self._set_wakeup)

    def _set_wakeup(self) -> None:
        # The event is replaced in the thread alone, so it is looked up there.
        self._wakeup.set()

    async def _do(self, call: _Call[T]) -> None:
        try:
            await call.run()
        finally:
            # A call without an end is cut off by the thread's end, which fails it.
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
                with suppress(KeyError):  # its sender has seen that the thread is over
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
        # A method, since no local variable of the loop may keep the last call alive.
        context, work = self._submitted.popleft()

        def start() -> None:
            # Tasks of anyio start from a task, so `call_soon_threadsafe` alone does not do.
            group.start_soon(work)

        context.run(start)


_lock: Final = threading.Lock()
_threads: Final[list[_LoopThread]] = []
"""The thread of the isolated clients of this process: with one loop they share one window."""


def _join_thread() -> _LoopThread:
    """Return the thread, which counts one client more; it may have to be started."""
    with _lock:
        thread = _threads[0] if _threads else None
        if thread is None or thread.over or thread.process != os.getpid():
            thread = _LoopThread()
            _threads[:] = [thread]
        thread.clients += 1
        return thread


def _leave_thread(thread: _LoopThread) -> bool:
    """Count one client less; return whether the thread is to be stopped: that was the last."""
    with _lock:
        thread.clients -= 1
        last = thread.clients == 0
        if last and thread in _threads:
            _threads.remove(thread)
        return last


def _check_process(process: int) -> None:
    if os.getpid() != process:
        raise ConfigurationError("This client was opened before a fork: open one in each process.")


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
    """Wait until `future` is set, by whichever thread."""
    loop, event = asyncio.get_running_loop(), anyio.Event()

    def wake(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(event.set)

    future.add_done_callback(wake)
    await event.wait()


async def future_result(future: Future[T]) -> T:
    """Return the value of `future` once it is set, by whichever thread."""
    await future_done(future)
    return future.result()


async def _in_worker(function: Callable[[], object]) -> None:
    # A limiter of its own: the caller's worker threads may all be busy with blocking code.
    await anyio.to_thread.run_sync(function, limiter=anyio.CapacityLimiter(1))
