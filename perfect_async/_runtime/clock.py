"""The time of one event loop, and a watchdog that notices when other code blocks the loop."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

from perfect_async._log import LOG
from perfect_async._time import SECOND

_TOLERATED: Final = SECOND // 2
"""A busy loop wakes some hundredths of a second late; a later wake-up means that it was blocked."""


class Clock:
    """The time of day, moving with the clock of the running event loop.

    The wall clock is read once, so that setting it meanwhile changes no age.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._started_at = datetime.now(UTC)

    def now(self) -> datetime:
        """The time in UTC."""
        return self._started_at + timedelta(seconds=self._loop.time() - self._started)

    def utc(self) -> int:
        """The time in UTC microseconds."""
        elapsed = round((self._loop.time() - self._started) * SECOND)
        return round(self._started_at.timestamp() * SECOND) + elapsed

    def skew(self, date: float, earliest: float, latest: float) -> float:
        """How many seconds a clock is ahead of ours (negative: behind).

        It showed `date`, in seconds since 1970 and cut to whole ones, between the loop's times
        `earliest` and `latest`, so the result is off by up to half a second and half of the time
        between them.
        """
        ours = self._started_at.timestamp() + (earliest + latest) / 2 - self._started
        return date + 0.5 - ours

    def seconds(self) -> float:
        """The loop's time in seconds."""
        return self._loop.time()


class LoopWatchdog:
    """Counts how often the loop woke late (`blocked`), and warns the first time."""

    def __init__(self) -> None:
        self.blocked = 0

    def woke(self, late: int) -> None:
        """Record that the loop woke `late` microseconds after its timer; negative: before it."""
        if late <= _TOLERATED:
            return
        self.blocked += 1
        if self.blocked == 1:
            LOG.warning(
                "The event loop was blocked for %.1f s by other code; meanwhile no task is kept "
                "alive, and a block that is longer than the lease loses tasks with their units. "
                "Use Client(isolated=True), or asyncio.to_thread for the code that blocks. (Said "
                "once; statistics().blocked counts.)",
                late / SECOND,
            )
