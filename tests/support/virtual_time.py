"""An asyncio event loop whose clock jumps to the next timer instead of waiting for it.

`run(main)` runs an async function to its end, hours in milliseconds; under pytest every
async test gets this loop unless it is marked `real_time` (see conftest.py).

The clock moves only when nothing else can happen:

1. a callback is ready: run it, the clock stands;
2. a worker thread is busy: wait for it in real time, the clock stands;
3. a socket or the self-pipe is readable: serve it, the clock stands;
4. a timer is pending: the clock jumps to it;
5. nothing at all: nothing can happen any more, and the loop raises `RuntimeError`.

Step 3 looks once and does not wait: both ends of a connection must live in this loop (over
the loopback interface what one end sent is readable at the other at once). A test with
another process, a thread of its own that calls back, or signals is `real_time`. So is one in
which a worker thread waits for the loop (`anyio.from_thread.run` of something that sleeps):
the thread would hold the clock that it waits for.
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

# asyncio asks for `when - now` and never for more than a day. With `now` above a day both
# lie within a factor of two, where subtracting and adding floats is exact: the clock lands
# on `when` itself, and tests may compare times with ==. Not zero, so that code which takes
# the loop's time for time since its start is found out.
START = 100_000.0

# How long to wait for a busy thread before looking again. Its end writes to the self-pipe
# and wakes us at once; this is only for a thread that enters `hanging` meanwhile.
_GLANCE = 0.02

_hanging: set[threading.Thread] = set()


@contextmanager
def hanging() -> Iterator[None]:
    """Inside a worker thread: do not hold the clock in this block.

    For tests of a disk that hangs: `with hanging(): event.wait()`, set the event to let go.
    It holds the clock again once it has left the block, which takes it a real moment.
    """
    thread = threading.current_thread()
    _hanging.add(thread)
    try:
        yield
    finally:
        _hanging.discard(thread)


class _Clockwork(selectors.DefaultSelector):
    """The selector: the one place where an event loop waits, so the one where time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.loop: VirtualTimeLoop | None = None
        # Files watched. The self-pipe is the first and always there.
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
            # Callbacks are ready. What a byte in the self-pipe announces is among them
            # already, so without sockets the kernel need not be asked: this is the hot path.
            return super().select(0) if self.watched > 1 else []
        assert self.loop is not None
        if self.loop.threads_busy():
            return super().select(_GLANCE)
        # After, not before the threads: one that has just finished has written to the
        # self-pipe before it stopped being busy.
        ready = super().select(0)
        if ready:
            return ready
        if timeout is not None:
            self.now += timeout
            return ready
        if self.watched > 1 or self.loop.threads_busy(hanging_too=True):
            # Only I/O or a thread can wake the loop, and there is no timer to jump to.
            return super().select(_GLANCE)
        # Between the two looks a thread that hung may have gone on and finished.
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
        """Let time pass while nothing runs, as code does that blocks the loop."""
        self._clockwork.now += seconds

    def close(self) -> None:
        super().close()
        # The reference goes both ways; a loop should not wait for the garbage collector.
        self._clockwork.loop = None

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        if when == math.inf:
            # `sleep_forever` is a timer too. Kept out of the queue, it does not hide a deadlock.
            return asyncio.TimerHandle(when, callback, args, self, context)
        return super().call_at(when, callback, *args, context=context)

    def threads_busy(self, *, hanging_too: bool = False) -> bool:
        """Whether a thread is at work for this loop.

        anyio hands work to its threads through a queue of their own and never tells the loop,
        so we ask the threads. Their `unfinished_tasks` falls only after the result has been
        handed over with `call_soon_threadsafe`; counting borrowed limiter tokens instead
        would miss limiters that a caller brings, and counting calls would take waiting for a
        limiter for work. The names are private to anyio: if they move, the tests of this
        module fail first.
        """
        if self._in_executors:
            return True
        if threading.active_count() == 1:
            return False
        return any(
            isinstance(thread, WorkerThread)
            and thread.loop is self
            and thread.queue.unfinished_tasks
            and not thread.stopping  # its queue holds only the order to leave
            and (hanging_too or thread not in _hanging)
            for thread in threading.enumerate()
        )

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[Unpack[Ts]], T],
        *args: *Ts,
    ) -> asyncio.Future[T]:
        # Counted until the result has arrived in the loop, or nobody waits for it any more.
        future = super().run_in_executor(executor, func, *args)
        self._in_executors += 1
        future.add_done_callback(self._executor_done)
        return future

    def _executor_done(self, _: object) -> None:
        self._in_executors -= 1

    async def shutdown_default_executor(self, *timeout: float) -> None:
        # Joins the pool from a thread that nobody counts. 3.12 added the argument.
        self._in_executors += 1
        try:
            await super().shutdown_default_executor(*timeout)
        finally:
            self._in_executors -= 1

    def whereabouts(self) -> str:
        """Say where every task of this loop waits: its coroutines from the outside in."""
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
    """Run `main(*args)` to its end in virtual time, on a loop of its own, and return its result.

    Needs no pytest. Raises what `main` raises, and `RuntimeError` on a deadlock.
    """

    async def body() -> T:
        return await main(*args)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(body())
