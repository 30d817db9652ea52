"""The sandbox's clock and its seeded randomness.

The running loop's clock is the only source of time, so that a loop with virtual time works without
support here. Each purpose draws from its own random stream, so that one fault changes neither the
durations nor another fault.
"""

from __future__ import annotations

import asyncio
import random
import time

import attrs

from ._http import MICROSECONDS


@attrs.define
class Clock:
    """The loop's time in integer microseconds, and the vendor's wall clock, which follows it.

    `epoch` is the wall clock (seconds since 1970) at the first use; `None` reads the real one once,
    at that time. The vendor's clock is `skew` seconds ahead.
    """

    epoch: float | None = None
    skew: float = 0.0
    _first: int | None = None
    _last: int = 0

    def now(self) -> int:
        """Return the loop's time in microseconds; outside of a loop, the last one that was read."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._last
        # Integers, since ten floats of 0.1 s sum to less than 1 s and could admit an 11th request.
        self._last = round(loop.time() * MICROSECONDS)
        if self._first is None:
            # The wall clock is read at the same time, since hours may pass before it is needed.
            self._first = self._last
            self.start()
        return self._last

    def wall(self, now: int) -> float:
        """Return the vendor's time (seconds since 1970) at the loop's time `now`."""
        first = now if self._first is None else self._first
        return self.start() + (now - first) / MICROSECONDS

    def start(self) -> float:
        """Return the vendor's time (seconds since 1970) at the first use."""
        if self.epoch is None:
            self.epoch = float(int(time.time()))
        return self.epoch + self.skew


@attrs.define
class Chance:
    """Seeded randomness, with one independent stream per purpose.

    `run_id` makes the identifiers of two runs with the same seed different.
    """

    seed: int
    run_id: str = ""
    _streams: dict[str, random.Random] = attrs.field(factory=dict[str, random.Random], repr=False)

    def stream(self, purpose: str) -> random.Random:
        """Return the stream of a purpose; the same seed and purpose give the same numbers."""
        found = self._streams.get(purpose)
        if found is None:
            found = self._streams[purpose] = random.Random(f"{self.seed}/{purpose}")
        return found

    def identifiers(self, purpose: str) -> random.Random:
        """Return the stream for the ids or secrets of a purpose, which also depends on the run."""
        return self.stream(f"{self.run_id}/{purpose}" if self.run_id else purpose)

    def happens(self, probability: float, purpose: str) -> bool:
        """Decide whether an event with this probability happens now; draws also at zero.

        The draw does not depend on the probability, so a higher one adds events and moves none.
        """
        return self.stream(purpose).random() < probability


def split_latency(latency: float, jitter: float, rng: random.Random) -> tuple[float, float]:
    """Split a round trip into the seconds before and after the arrival of the request.

    The arrival is uniform in the round trip, so a client cannot know when its request was counted.
    """
    total = latency + jitter * rng.random()
    before = total * rng.random()
    return before, total - before
