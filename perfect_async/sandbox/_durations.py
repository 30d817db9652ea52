"""How long the vendor's engine takes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import attrs


@attrs.frozen
class Durations:
    """A distribution of processing times in seconds, from creation to the engine's end.

    `Durations(8.0, 0.35)` is lognormal with that median and that sigma of the logarithm;
    `low` and `high` clip it. The other shapes are the class methods.
    """

    median: float
    sigma: float = 0.0
    low: float = 0.0
    high: float = math.inf
    sampler: Callable[[random.Random], float] | None = attrs.field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        """Refuse what has no meaning, where it is written and not at the first task."""
        if not 0.0 <= self.low <= self.high:
            raise ValueError(f"Durations need 0 <= low <= high, not {self.low} and {self.high}")
        if self.median < 0.0 or self.sigma < 0.0:
            raise ValueError(
                f"Durations cannot be negative: median={self.median}, sigma={self.sigma}"
            )

    @classmethod
    def uniform(cls, low: float, high: float) -> Durations:
        """Anything between `low` and `high` seconds, equally likely."""
        return cls((low + high) / 2, low=low, high=high, sampler=lambda rng: rng.uniform(low, high))

    @classmethod
    def fixed(cls, seconds: float) -> Durations:
        """Always this many seconds."""
        return cls(seconds)

    @classmethod
    def of(cls, sampler: Callable[[random.Random], float]) -> Durations:
        """Whatever `sampler` returns (seconds); it is given a seeded `random.Random`."""
        return cls(0.0, sampler=sampler)

    def draw(self, rng: random.Random) -> float:
        """One duration in seconds."""
        if self.sampler is not None:
            seconds = self.sampler(rng)
        else:
            # Drawn even when sigma is 0: the stream moves alike whatever the settings.
            seconds = self.median * math.exp(self.sigma * rng.gauss(0.0, 1.0))
        return min(max(seconds, self.low), self.high)


# contract: Durations seen. None was recorded for the smile, where 5 to 20 s are assumed.
DEFAULT_DURATIONS = {"ai-smile": Durations(8.0, 0.35), "ai-avatar": Durations(60.0, 0.4)}
