"""The sandbox's time and its chances.

The running loop's clock is the only one, so that a loop with virtual time needs no help from
us; chances come from one named stream per purpose, so that switching a fault on does not move
the durations.
"""

from __future__ import annotations

import asyncio
import random
import time

import attrs

from ._http import MICROSECONDS


@attrs.define
class Clock:
    """The loop's time as integer microseconds, and the wall clock derived from it.

    `epoch` is the wall clock (seconds since 1970) at the first use; `None` reads it then, once.
    """

    epoch: float | None = None
    _first: int | None = None
    _last: int = 0

    def now(self) -> int:
        """The loop's time in microseconds; outside a loop, the last one seen."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._last
        # Integers: adding 0.1 s ten times must not let an 11th request into a second.
        self._last = round(loop.time() * MICROSECONDS)
        if self._first is None:
            self._first = self._last
        return self._last

    def wall(self, now: int) -> float:
        """Seconds since 1970 at the loop's time `now`."""
        if self.epoch is None:
            self.epoch = float(int(time.time()))
        first = now if self._first is None else self._first
        return self.epoch + (now - first) / MICROSECONDS


@attrs.define
class Chance:
    """Seeded randomness, one independent stream per purpose."""

    seed: int
    _streams: dict[str, random.Random] = attrs.field(factory=dict[str, random.Random], repr=False)

    def stream(self, purpose: str) -> random.Random:
        """The stream of this purpose: the same seed and purpose give the same numbers."""
        found = self._streams.get(purpose)
        if found is None:
            found = self._streams[purpose] = random.Random(f"{self.seed}/{purpose}")
        return found

    def happens(self, probability: float, purpose: str) -> bool:
        """Whether a thing of this probability happens now; draws even at zero.

        The draw is the same whatever the probability, so a raised one adds cases and moves none.
        """
        return self.stream(purpose).random() < probability


def waits(latency: float, jitter: float, rng: random.Random) -> tuple[float, float]:
    """Seconds before a call's arrival and seconds after it, together one round trip.

    The arrival is anywhere in between, so a client cannot know when its call was counted.
    """
    total = latency + jitter * rng.random()
    before = total * rng.random()
    return before, total - before
