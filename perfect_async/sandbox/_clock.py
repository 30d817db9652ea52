"""The sandbox's clock and its seeded randomness.

The running loop's clock is the only time source, so a loop with virtual time needs no support
here. Each purpose draws from its own random stream: switching on one fault does not change the
durations or any other fault.
"""

from __future__ import annotations

import asyncio
import random
import time

import attrs

from ._http import MICROSECONDS


@attrs.define
class Clock:
    """The loop's time as integer microseconds, and the vendor's wall clock derived from it.

    `epoch` is the wall clock (seconds since 1970) at the first use; `None` reads it then, once.
    `skew` is how many seconds the vendor's clock is ahead of that.
    """

    epoch: float | None = None
    skew: float = 0.0
    _first: int | None = None
    _last: int = 0

    def now(self) -> int:
        """Return the loop's time in microseconds; outside a loop, the last time that was read."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._last
        # Integers: ten floats of 0.1 s add up to less than 1 s and could let an 11th request in.
        self._last = round(loop.time() * MICROSECONDS)
        if self._first is None:
            self._first = self._last
        return self._last

    def wall(self, now: int) -> float:
        """Return the vendor's seconds since 1970 at the loop's time `now`."""
        first = now if self._first is None else self._first
        return self.start() + (now - first) / MICROSECONDS

    def start(self) -> float:
        """Return seconds since 1970 at the first use."""
        if self.epoch is None:
            self.epoch = float(int(time.time()))
        return self.epoch + self.skew


@attrs.define
class Chance:
    """Seeded randomness, one independent stream per purpose.

    `run_id` tells the identifiers of two runs with one seed apart.
    """

    seed: int
    run_id: str = ""
    _streams: dict[str, random.Random] = attrs.field(factory=dict[str, random.Random], repr=False)

    def stream(self, purpose: str) -> random.Random:
        """Return the stream of this purpose: the same seed and purpose give the same numbers."""
        found = self._streams.get(purpose)
        if found is None:
            found = self._streams[purpose] = random.Random(f"{self.seed}/{purpose}")
        return found

    def identifiers(self, purpose: str) -> random.Random:
        """Return the stream of ids or secrets of this purpose, which depends on the run too."""
        return self.stream(f"{self.run_id}/{purpose}" if self.run_id else purpose)

    def happens(self, probability: float, purpose: str) -> bool:
        """Decide whether an event of this probability happens now; draws even at zero.

        The draw does not depend on the probability: raising it adds events and moves none.
        """
        return self.stream(purpose).random() < probability


def split_latency(latency: float, jitter: float, rng: random.Random) -> tuple[float, float]:
    """Split a round trip into the seconds before a request's arrival and the seconds after it.

    The arrival is uniform in between, so a client cannot know when its request was counted.
    """
    total = latency + jitter * rng.random()
    before = total * rng.random()
    return before, total - before
