"""Notices that other people's code blocked the event loop, and says what to do about it."""

from __future__ import annotations

from typing import Final

import attrs

from perfect_async._log import LOG
from perfect_async._time import SECOND
from perfect_async.reports import Statistics

_TOLERATED: Final = SECOND // 2
"""A busy loop wakes some hundredths of a second late; what is later than this was blocked."""


class LoopWatchdog:
    """How often a loop woke late; `blocked` counts."""

    def __init__(self) -> None:
        self.blocked = 0

    def woke(self, late: int) -> None:
        """It woke `late` microseconds after the time at which it meant to; below 0: before it."""
        if late <= _TOLERATED:
            return
        self.blocked += 1
        if self.blocked == 1:
            LOG.warning(
                "The event loop was blocked for %.1f s by other code; while it is, no task is kept "
                "alive, and what is blocked for longer than the lease is lost with its units. Use "
                "Client(isolated=True), or asyncio.to_thread for the code that blocks. (Said once; "
                "statistics().blocked counts.)",
                late / SECOND,
            )

    def noted(self, statistics: Statistics) -> Statistics:
        """`statistics` with what was noticed."""
        return attrs.evolve(statistics, blocked=self.blocked)
