"""`Client(on_event=...)`: the user's callback gets each event of a job, in a task of its own."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, TypeAlias

import anyio

from perfect_async._log import LOG, type_name
from perfect_async._runtime.executors import future_done, running_loop
from perfect_async._runtime.hosting import host
from perfect_async.reports import JobEvent

OnEvent: TypeAlias = Callable[[JobEvent], Awaitable[object] | object]

_MOST: Final = 10_000
"""Events that wait for a slow callback; the oldest give way to new ones."""
_GRACE: Final = 5.0
"""Seconds that a closing client leaves the callback for the events that wait."""
_INTERRUPTS: Final = KeyboardInterrupt, SystemExit


class EventPump:
    """Calls `callback` with each event, in order, in the loop that runs when this is made.

    An event waits here while the callback is busy, so neither the driver nor anybody who awaits a
    job waits for the callback. Its errors are logged, the first of several in a row. Call `aclose`
    at the end.
    """

    def __init__(self, callback: OnEvent) -> None:
        self._callback = callback
        self._loop = running_loop()
        self._events: deque[JobEvent] = deque()
        self._wakeup = anyio.Event()
        self._closing = self._failing = self._dropped = False
        self._done: Future[None] = Future()
        self._task = host(self._loop, self._run(), "perfect_async on_event")
        # Also where the task is cancelled before its first step.
        self._task.add_done_callback(lambda _: self._done.set_result(None))

    def post(self, event: JobEvent) -> None:
        """Give `event` to the callback soon; may be called in any thread, and does not wait."""
        if len(self._events) >= _MOST:
            # Another thread may have taken it in the meantime.
            with suppress(IndexError):
                self._events.popleft()
            if not self._dropped:
                self._dropped = True
                LOG.warning(
                    "on_event is slower than the events come: %d wait, and from now on the oldest "
                    "is dropped for each new one.",
                    _MOST,
                )
        self._events.append(event)
        self._soon(self._wake)

    def _wake(self) -> None:
        # The event is replaced in the loop alone, so it is looked up there.
        self._wakeup.set()

    def _soon(self, step: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody takes events any more
            self._loop.call_soon_threadsafe(step)

    async def aclose(self) -> None:
        """Let the callback have the events that wait, for 5 s at most, and end."""
        self._closing = True
        self._soon(self._wake)
        if asyncio.current_task() is self._task or not self._loop.is_running():
            # The callback closes the client; or the loop has ended, and its tasks with it.
            return
        with anyio.move_on_after(_GRACE, shield=True) as scope:
            await future_done(self._done)
        if scope.cancelled_caught:
            LOG.warning("on_event was still busy after %g s of closing: it is cancelled.", _GRACE)
            self._soon(self._task.cancel)

    async def _run(self) -> None:
        while True:
            while self._events:
                await self._call(self._events.popleft())
                # A plain function waits for nothing: polls leave between two calls of it.
                await asyncio.sleep(0)
            if self._closing:
                return
            self._wakeup = anyio.Event()
            await self._wakeup.wait()

    async def _call(self, event: JobEvent) -> None:
        try:
            answer = self._callback(event)
            if inspect.isawaitable(answer):
                await answer
        except _INTERRUPTS:
            raise
        except BaseException as exc:
            # Whatever a callback raises, no job ends by it.
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if not self._failing:
                LOG.error("on_event failed: %s.", type_name(exc), exc_info=exc)
            self._failing = True
        else:
            self._failing = False
