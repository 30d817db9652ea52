"""Where a client's driver is at work: in the loop that opened the client, or in another thread's.

The door speaks to the driver through a home, so that both kinds of client have one set of methods.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from perfect_async.errors import ConfigurationError

T = TypeVar("T")


class Executor(Protocol):
    """The loop in which driver and transport run."""

    async def open(self) -> None:
        """It is there from now on; raises `ConfigurationError` without a running event loop."""
        ...

    async def close(self) -> None:
        """Nobody needs it any more."""
        ...

    def check(self) -> None:
        """Raises `ConfigurationError` where it cannot be reached from.

        That is another process than its own and, unless it is a thread's, another loop.
        """
        ...

    async def call(
        self, work: Callable[[], Awaitable[T]], otherwise: Callable[[T], object] | None = None
    ) -> T:
        """Do `work` there; its value or its error. Cancelling the caller cancels the work.

        `otherwise` gets the value of work that was done all the same, so that it is not lost.
        Raises as `check` does where it is a thread's, and `ClientClosed` once that has ended.
        """
        ...

    def soon(self, step: Callable[[], object]) -> None:
        """Do `step` there, before all that is asked for later; nobody waits for it."""
        ...

    def ask(self, question: Callable[[], T]) -> T:
        """The answer to `question`, found there; it may not wait."""
        ...


class LoopExecutor:
    """The loop that opens it: nothing is in the way."""

    def __init__(self) -> None:
        self._place: tuple[asyncio.AbstractEventLoop, int] | None = None

    async def open(self) -> None:
        """It is the running loop."""
        self._place = running_loop(), os.getpid()

    async def close(self) -> None:
        """Nothing to let go of."""

    def check(self) -> None:
        """Raises `ConfigurationError` in another loop or process."""
        if self._place is None:
            return
        loop, process = self._place
        same_process(process)
        if running_loop() is not loop:
            raise ConfigurationError(
                "This client was opened in another event loop: open one in each."
            )

    async def call(
        self,
        work: Callable[[], Awaitable[T]],
        otherwise: Callable[[T], object] | None = None,  # noqa: ARG002 - nothing comes in between
    ) -> T:
        """Do `work`."""
        return await work()

    def soon(self, step: Callable[[], object]) -> None:
        """Do `step`."""
        step()

    def ask(self, question: Callable[[], T]) -> T:
        """Answer `question`."""
        return question()


def same_process(process: int) -> None:
    """Raises `ConfigurationError` in another process than `process`."""
    if os.getpid() != process:
        raise ConfigurationError("This client was opened before a fork: open one in each process.")


def running_loop() -> asyncio.AbstractEventLoop:
    """The loop that runs this. Raises `ConfigurationError` where none does (trio, plain code)."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError("perfect_async needs a running asyncio event loop.") from None
