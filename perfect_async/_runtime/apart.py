"""An event loop in a thread of its own, where other people's code blocks nothing.

Work is handed over and its end handed back; nothing else is shared by the two loops.
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
from typing import Final, Generic, TypeVar

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from perfect_async._log import LOG, type_name
from perfect_async._runtime.executors import running_loop, same_process
from perfect_async._runtime.failures import closed
from perfect_async._runtime.keys import share_past
from perfect_async.errors import PerfectError

T = TypeVar("T")


class _Call(Generic[T]):
    """One piece of work for the thread; `end` has its value or error, and only the thread sets it.

    Like whoever awaits it, the work is cancelled by its task: shields inside of it mean what they
    mean everywhere.
    """

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Task[object] | None = None
        self._unwanted = False
        self.end: Future[T] = Future()

    async def run(self) -> None:
        """Do it, in the thread."""
        if self.end.done():
            return
        self._task = asyncio.current_task()
        try:
            value = await self._work()
        except asyncio.CancelledError:
            self._task = None
            if not self._unwanted:
                # The thread is coming to its end, which tells whoever waits.
                raise
            self.end.cancel()
        except BaseException as exc:
            self._task = None
            self.end.set_exception(exc)
            if not isinstance(exc, Exception):
                raise
        else:
            self._task = None
            self.end.set_result(value)

    def cancel(self) -> None:
        """Nobody wants it any more; to be called in the thread."""
        if self._task is None:
            self.end.cancel()
        else:
            self._unwanted = True
            self._task.cancel()

    def fail(self, error: PerfectError) -> None:
        """It will not be done."""
        if not self.end.done():
            self.end.set_exception(error)


class _Thread:
    """A thread with an event loop; however it ends, nobody waits for it in vain.

    Not anyio's portal: that makes the caller's loop stand still until this one has taken a call.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.clients = 0
        self.over = False
        # Those without an end, and how they are told that they have none. Every change of it is
        # one step for all threads.
        self._calls: dict[object, Callable[[PerfectError], None]] = {}
        self._failure: BaseException | None = None
        self._sent: deque[tuple[Context, Callable[[], Coroutine[object, object, None]]]] = deque()
        self._news = anyio.Event()
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.started: Future[None] = Future()
        # A daemon: a program that forgets to close its client ends all the same.
        self._thread = threading.Thread(target=self._run, name="perfect_async", daemon=True)

    @property
    def inside(self) -> bool:
        """Whether it is what runs now."""
        return threading.get_ident() == self._thread.ident

    def start(self) -> None:
        """Begin; `started` is set when calls are done."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for that. To be called in another thread, which it blocks."""
        self._stopping = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join()

    def send(self, call: _Call[T]) -> None:
        """Have `call` done, in the context of the caller; raises `ClientClosed`."""
        self._calls[call] = call.fail
        # Looked at only now: whoever sets it looks through the calls after that.
        if self.over and self._calls.pop(call, None) is not None:
            raise closed(self._failure)
        self._sent.append((copy_context(), partial(self._do, call)))
        self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended, and told all calls
                self._loop.call_soon_threadsafe(self._heard)

    def _heard(self) -> None:
        self._news.set()

    def soon(self, step: Callable[[], object]) -> None:
        """Have `step` done after all that was sent before."""

        async def work() -> None:
            step()

        with suppress(PerfectError):
            self.send(_Call(work))

    async def _do(self, call: _Call[T]) -> None:
        try:
            await call.run()
        finally:
            # Without an end it is cut off by ours, which tells it.
            if call.end.done():
                del self._calls[call]

    def _run(self) -> None:
        try:
            anyio.run(self._live)
        except BaseException as exc:  # noqa: BLE001 - it ends here, and is told to all that wait
            self._failure = exc
            LOG.error("The thread of isolated clients failed: %s.", type_name(exc))
        finally:
            self.over = True
            while self._calls:
                with suppress(KeyError):  # its sender has seen that it is over
                    self._calls.popitem()[1](closed(self._failure))
            if not self.started.done():
                self.started.set_exception(closed(self._failure))

    def _begin(self, group: TaskGroup) -> None:
        # By a method, since what was sent last must not stay in the loop below.
        context, work = self._sent.popleft()

        def begin() -> None:
            group.start_soon(work)

        context.run(begin)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        share_past(self._loop)
        self.started.set_result(None)
        async with anyio.create_task_group() as group:
            while not self._stopping:
                self._news = anyio.Event()
                while self._sent:
                    self._begin(group)
                await self._news.wait()
            group.cancel_scope.cancel()


_lock: Final = threading.Lock()
_threads: Final[list[_Thread]] = []
"""The thread that isolated clients of this process share, so that they share ledgers too."""


def _taken() -> tuple[_Thread, bool]:
    """The thread, and whether it has to be started."""
    with _lock:
        thread = _threads[0] if _threads else None
        new = thread is None or thread.over or thread.process != os.getpid()
        if thread is None or new:
            thread = _Thread()
            _threads[:] = [thread]
        thread.clients += 1
        return thread, new


def _let_go(thread: _Thread) -> bool:
    """One client less; whether it was the last, and the thread is to be stopped."""
    with _lock:
        thread.clients -= 1
        last = thread.clients == 0
        if last and thread in _threads:
            _threads.remove(thread)
        return last


class ThreadExecutor:
    """The loop of a thread of its own, as the home of one client (see `Home`)."""

    def __init__(self) -> None:
        self._thread: _Thread | None = None
        self._left = False

    async def open(self) -> None:
        """Take a place in the thread, which the first client starts."""
        running_loop()
        self._thread, new = _taken()
        try:
            if new:
                await _in_thread(self._thread.start)
            await settled(self._thread.started)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.close()
            raise

    async def close(self) -> None:
        """Give the place up; the last client stops the thread and waits for its end."""
        thread = self._thread
        if thread is None or self._left:
            return
        self._left = True
        if _let_go(thread):
            await _in_thread(thread.stop)

    def check(self) -> None:
        """Raises `ConfigurationError` in another process."""
        if self._thread is not None:
            same_process(self._thread.process)

    async def call(
        self, work: Callable[[], Awaitable[T]], otherwise: Callable[[T], object] | None = None
    ) -> T:
        """Do `work` in the thread."""
        self.check()
        thread = self._thread
        if thread is None:
            raise AssertionError(self)
        if thread.inside:
            return await work()
        call = _Call(work)
        thread.send(call)
        try:
            await until(call.end)
        except BaseException:
            thread.soon(call.cancel)
            try:
                # As one would wait for work of one's own to unwind.
                with anyio.CancelScope(shield=True):
                    await until(call.end)
            finally:
                if otherwise is not None:
                    call.end.add_done_callback(partial(_rescue, otherwise))
            raise
        try:
            return call.end.result()
        finally:
            # Else an error and the frame it was raised in hold each other.
            del call

    def soon(self, step: Callable[[], object]) -> None:
        """Do `step` in the thread, before all that is asked for later."""
        if self._thread is not None:
            self._thread.soon(step)

    def ask(self, question: Callable[[], T]) -> T:
        """The answer to `question`: the thread has one within a turn of its loop."""
        thread = self._thread
        if thread is None or thread.inside or thread.process != os.getpid():
            return question()

        async def work() -> T:
            return question()

        call = _Call(work)
        try:
            thread.send(call)
        except PerfectError:
            # It has ended: nothing moves any more.
            return question()
        return call.end.result()


def _rescue(otherwise: Callable[[T], object], end: Future[T]) -> None:
    if not end.cancelled() and end.exception() is None:
        otherwise(end.result())


async def until(end: Future[T]) -> None:
    """Wait until `end` is set, by whatever thread."""
    loop, event = asyncio.get_running_loop(), anyio.Event()

    def wake(_: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(event.set)

    end.add_done_callback(wake)
    await event.wait()


async def settled(end: Future[T]) -> T:
    """What `end` was set to, once it is."""
    await until(end)
    return end.result()


async def _in_thread(function: Callable[[], object]) -> None:
    # A limiter of its own: the caller's threads may all be busy with what blocks.
    await anyio.to_thread.run_sync(function, limiter=anyio.CapacityLimiter(1))
