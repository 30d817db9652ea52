"""The clock of one event loop, and a watchdog that notices when other code blocks the loop."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

from perfect_async._log import LOG
from perfect_async._time import SECOND

_TOLERATED: Final = SECOND // 2
"""A busy loop wakes some hundredths of a second late; a loop that wakes later was blocked."""


class Clock:
    """The time of day, which advances with the clock of the running event loop.

    The wall clock is read once, so setting it later changes no age.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._started_at = datetime.now(UTC)

    def now(self) -> datetime:
        """Return the time in UTC."""
        return self._started_at + timedelta(seconds=self._loop.time() - self._started)

    def utc(self) -> int:
        """Return the time in UTC microseconds."""
        elapsed = round((self._loop.time() - self._started) * SECOND)
        return round(self._started_at.timestamp() * SECOND) + elapsed

    def skew(self, date: float, earliest: float, latest: float) -> float:
        """Return how many seconds another clock is ahead of this one; negative if it is behind.

        The other clock showed `date`, in whole seconds since 1970, between the loop's times
        `earliest` and `latest`. The error is up to half a second plus half of the time between
        them.
        """
        ours = self._started_at.timestamp() + (earliest + latest) / 2 - self._started
        return date + 0.5 - ours

    def seconds(self) -> float:
        """Return the loop's time in seconds."""
        return self._loop.time()


class LoopWatchdog:
    """Counts how often the loop woke late (`blocked`), and warns the first time."""

    def __init__(self) -> None:
        self.blocked = 0

    def woke(self, late: int) -> None:
        """Record that the loop woke `late` microseconds after its timer; negative means before."""
        if late <= _TOLERATED:
            return
        self.blocked += 1
        if self.blocked == 1:
            LOG.warning(
                "The event loop was blocked for %.1f s by other code. No task is kept alive during "
                "that time, and a block that is longer than the lease loses tasks with their "
                "units. Use Client(isolated=True), or asyncio.to_thread for the code that blocks. "
                "(This is logged once; statistics().blocked counts.)",
                late / SECOND,
            )
