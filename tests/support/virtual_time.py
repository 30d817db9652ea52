"""An asyncio event loop whose clock jumps to the next timer instead of waiting for it.

`run(main)` runs an async function to its end, hours of its time in milliseconds. Under pytest every
async test gets this loop unless it is marked `real_time` (see conftest.py).

The clock moves only if nothing else can happen:

1. a callback is ready: run it, without moving the clock;
2. a worker thread is busy: wait for it in real time, without moving the clock;
3. a socket or the self-pipe is readable: serve it, without moving the clock;
4. a timer is pending: the clock jumps to it;
5. none of these: no event can come, and the loop raises `RuntimeError`.

Step 3 checks once and does not wait, so both ends of a connection must be in this loop (over the
loopback interface, sent data are readable at once). A test must be `real_time` if it uses another
process, its own thread that calls back, or signals. The same holds if a worker thread waits for the
loop (`anyio.from_thread.run` of a sleep): the thread would stop the clock that it waits for.
"""

import asyncio
import math
import selectors
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import Context
from types import CoroutineType
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack

from anyio._backends._asyncio import WorkerThread

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["START", "VirtualTimeLoop", "hanging", "run"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# asyncio waits for `when - now`, at most a day. With `now` above a day, both numbers are within a
# factor of two, where floats are subtracted and added exactly. The clock therefore reaches `when`
# exactly, and tests may compare times with ==. It is not zero, so that code fails that uses the
# loop's time as the time since its start.
START = 100_000.0

# Seconds between two checks of a busy thread. The end of its work writes to the self-pipe, which
# wakes the loop at once; the check is for a thread that enters `hanging` meanwhile.
_GLANCE = 0.02

_hanging: set[threading.Thread] = set()


@contextmanager
def hanging() -> Iterator[None]:
    """Let the clock move although this worker thread is busy in the block.

    For tests of a hanging disk: `with hanging(): event.wait()`; set the event to end it. After the
    block, which the thread leaves a real moment later, it stops the clock again.
    """
    thread = threading.current_thread()
    _hanging.add(thread)
    try:
        yield
    finally:
        _hanging.discard(thread)


class _Clockwork(selectors.DefaultSelector):
    """The selector, the only place where an event loop waits and therefore where time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.loop: VirtualTimeLoop | None = None
        # The number of watched files. The self-pipe is always one of them.
        self.watched = 0

    def register(
        self, fileobj: "FileDescriptorLike", events: int, data: object = None
    ) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        self.watched += 1
        return key

    def unregister(self, fileobj: "FileDescriptorLike") -> selectors.SelectorKey:
        key = super().unregister(fileobj)
        self.watched -= 1
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0:
            # Callbacks are ready, also those that a byte in the self-pipe announces. Without
            # sockets the kernel need not be asked, which keeps this frequent path fast.
            return super().select(0) if self.watched > 1 else []
        assert self.loop is not None
        if self.loop.threads_busy():
            return super().select(_GLANCE)
        # Checked after the threads: a thread writes to the self-pipe before it stops being busy.
        ready = super().select(0)
        if ready:
            return ready
        if timeout is not None:
            self.now += timeout
            return ready
        if self.watched > 1 or self.loop.threads_busy(hanging_too=True):
            # Only I/O or a thread can wake the loop, and there is no timer to jump to.
            return super().select(_GLANCE)
        # A hanging thread may have finished between the two checks.
        if ready := super().select(0):
            return ready
        raise RuntimeError(f"deadlock in virtual time: {self.loop.whereabouts()}")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector event loop in virtual time. `time()` starts at `START`."""

    def __init__(self) -> None:
        self._clockwork = _Clockwork()
        self._in_executors = 0
        super().__init__(self._clockwork)
        self._clockwork.loop = self

    def time(self) -> float:
        return self._clockwork.now

    def block(self, seconds: float) -> None:
        """Let time pass while nothing runs, like code that blocks the loop."""
        self._clockwork.now += seconds

    def close(self) -> None:
        super().close()
        # The two refer to each other; without this only the garbage collector would free the loop.
        self._clockwork.loop = None

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        if when == math.inf:
            # `sleep_forever` is a timer, too. It stays out of the queue, to show a deadlock.
            return asyncio.TimerHandle(when, callback, args, self, context)
        return super().call_at(when, callback, *args, context=context)

    def threads_busy(self, *, hanging_too: bool = False) -> bool:
        """Return whether a thread is working for this loop.

        anyio passes work to its threads by their queues without informing the loop, so the threads
        are inspected. Their `unfinished_tasks` falls only after the result was passed on by
        `call_soon_threadsafe`. Counting borrowed limiter tokens would miss the limiters of callers,
        and counting calls would count waiting for a limiter as work. The names are private to
        anyio: if they change, the tests of this module fail first.
        """
        if self._in_executors:
            return True
        if threading.active_count() == 1:
            return False
        return any(
            isinstance(thread, WorkerThread)
            and thread.loop is self
            and thread.queue.unfinished_tasks
            and not thread.stopping  # its queue has only the command to end
            and (hanging_too or thread not in _hanging)
            for thread in threading.enumerate()
        )

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        # Counted until the result has arrived in the loop, or its future was cancelled.
        future = super().run_in_executor(executor, func, *args)
        self._in_executors += 1
        future.add_done_callback(self._executor_done)
        return future

    def _executor_done(self, _: object) -> None:
        self._in_executors -= 1

    async def shutdown_default_executor(self, *timeout: float) -> None:
        # It joins the pool from a thread that is not counted otherwise. 3.12 added the argument.
        self._in_executors += 1
        try:
            await super().shutdown_default_executor(*timeout)
        finally:
            self._in_executors -= 1

    def whereabouts(self) -> str:
        """Describe where every task of this loop waits, by its coroutines from the outside in."""
        tasks = asyncio.all_tasks(self)
        lines = [f"nothing is ready, no timer is set, and {len(tasks)} task(s) wait"]
        for task in sorted(tasks, key=asyncio.Task.get_name):
            chain: list[str] = []
            place = ""
            waiting: object = task.get_coro()
            while isinstance(waiting, CoroutineType):
                chain.append(waiting.__qualname__)
                if waiting.cr_frame is not None:
                    place = f"{waiting.cr_code.co_filename}:{waiting.cr_frame.f_lineno}"
                waiting = waiting.cr_await
            lines.append(f"  {task.get_name()}: {' > '.join(chain)} at {place}")
        return "\n".join(lines)


def run(
    main: Callable[[Unpack[Ts]], Awaitable[T]],
    *args: *Ts,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = VirtualTimeLoop,
) -> T:
    """Run `main(*args)` to its end in virtual time, on a new loop, and return its result.

    It needs no pytest. Raises the errors of `main`, and `RuntimeError` on a deadlock.
    """

    async def body() -> T:
        return await main(*args)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(body())
