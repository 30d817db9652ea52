"""Calls the user's `Client(on_event=...)` with each event of a job, in a task of its own."""

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
"""How many events may wait for a slow callback; after that each new one replaces the oldest."""
_GRACE: Final = 5.0
"""How many seconds a closing client waits for the callback to handle the waiting events."""
_INTERRUPTS: Final = KeyboardInterrupt, SystemExit


class EventPump:
    """Calls `callback` with each event, in order, in the event loop that creates the pump.

    Events wait here while the callback is busy, so neither the driver nor a caller waits for it. Of
    several errors in a row the first is logged. Call `aclose` at the end.
    """

    def __init__(self, callback: OnEvent) -> None:
        self._callback = callback
        self._loop = running_loop()
        self._events: deque[JobEvent] = deque()
        self._wakeup = anyio.Event()
        self._closing = self._failing = self._dropped = False
        self._done: Future[None] = Future()
        self._task = host(self._loop, self._run(), "perfect_async on_event")
        # The callback also runs if the task is cancelled before its first step.
        self._task.add_done_callback(lambda _: self._done.set_result(None))

    def post(self, event: JobEvent) -> None:
        """Queue `event` for the callback, without waiting; may be called in any thread."""
        if len(self._events) >= _MOST:
            # Another thread may have emptied the queue in the meantime.
            with suppress(IndexError):
                self._events.popleft()
            if not self._dropped:
                self._dropped = True
                LOG.warning(
                    "on_event is too slow: %d events wait for it, and from now on each new one "
                    "replaces the oldest.",
                    _MOST,
                )
        self._events.append(event)
        self._soon(self._wake)

    def _wake(self) -> None:
        # Runs in the loop, since only the loop replaces `_wakeup`.
        self._wakeup.set()

    def _soon(self, step: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop was closed, so nobody handles events
            self._loop.call_soon_threadsafe(step)

    async def aclose(self) -> None:
        """Wait up to 5 s until the callback has handled the waiting events, and end."""
        self._closing = True
        self._soon(self._wake)
        if asyncio.current_task() is self._task or not self._loop.is_running():
            # The callback itself closes the client, or the loop has ended with all its tasks.
            return
        with anyio.move_on_after(_GRACE, shield=True) as scope:
            await future_done(self._done)
        if scope.cancelled_caught:
            LOG.warning(
                "on_event was still busy %g s after the client began to close, so it is cancelled.",
                _GRACE,
            )
            self._soon(self._task.cancel)

    async def _run(self) -> None:
        while True:
            while self._events:
                await self._call(self._events.popleft())
                # A plain function never yields to the loop, so polls leave between two calls.
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
            # No error of a callback may end a job.
            task = asyncio.current_task()
            if isinstance(exc, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if not self._failing:
                LOG.error("on_event failed: %s.", type_name(exc), exc_info=exc)
            self._failing = True
        else:
            self._failing = False
