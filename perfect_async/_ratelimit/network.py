"""What the answers seen so far make plausible about the network.

Round trips and failed polls become three numbers: how long to be patient with a poll, how many
tries the rest of a lease must hold, and how far arrivals may jitter. All times are integer
microseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from typing import Final

import attrs

from perfect_async._time import SECOND

_REMEMBERED = 400
"""Round trips and polls that count: old enough news about a network is no news."""
_LOSS = 1e-6
"""The chance that every try of a lease fails which is still taken."""
MOST_TRIES: Final = 6
_FAILING: Final = tuple(_LOSS ** (1 / k) for k in range(2, MOST_TRIES))
"""The shares of failing polls from which 3, 4, 5 and 6 tries are needed."""
_FEW = 20
"""So few round trips are looked at after every answer, more only now and then."""
_MANY = 100
"""So many round trips have a 99th percentile."""
_PRIOR_FAILED, _PRIOR_POLLS = 0.2, 20.0
"""Before anything is seen: 1 % of polls fail. 200 clean polls bring it under 0.1 %."""


@attrs.define
class LatencyEstimator:
    """How long answers take and how often polls fail, over the last 400 of each.

    `patience`: how long a poll may be silent before another is sent beside it, 3 x p95, 0.3 to 2 s.
    `jitter`: how long after leaving a request may still arrive, 0.15 to 1 s: p95 and half as much
    again, or p99 where that is less and 100 are known. `failing`: the share of polls to expect to
    fail, over 0. `tries`: the smallest k with `failing ** k < 1e-6`, from 2 to 6. `changes`: how
    often patience, jitter or tries changed, since they are asked for more often than they do.
    """

    patience: int = 600_000
    jitter: int = 300_000
    failing: float = _PRIOR_FAILED / _PRIOR_POLLS
    tries: int = 3
    changes: int = 0
    _times: deque[int] = attrs.field(factory=lambda: deque(maxlen=_REMEMBERED))
    _failed: deque[bool] = attrs.field(factory=deque[bool])
    _failures: int = 0
    _count: int = 0

    def answered(self, took: int) -> None:
        """An answer came after `took`."""
        self._times.append(took)
        self._count += 1
        if self._count <= _FEW or self._count % 16 == 0:
            # Every 16th: less than it takes to keep 400 numbers in order.
            times = sorted(self._times)
            p95 = times[math.ceil(0.95 * len(times)) - 1]
            late = p95 * 3 // 2
            if len(times) >= _MANY:
                late = min(late, times[math.ceil(0.99 * len(times)) - 1])
            patience, jitter = (
                min(max(3 * p95, 300_000), 2 * SECOND),
                min(max(late, 150_000), SECOND),
            )
            if (patience, jitter) != (self.patience, self.jitter):
                self.patience, self.jitter = patience, jitter
                self.changes += 1

    def polled(self, *, failed: bool) -> None:
        """A poll ended, with or without an answer that says how the task is."""
        self._failed.append(failed)
        self._failures += failed
        if len(self._failed) > _REMEMBERED:
            self._failures -= self._failed.popleft()
        failing = (self._failures + _PRIOR_FAILED) / (len(self._failed) + _PRIOR_POLLS)
        if failing == self.failing:
            return
        self.failing = failing
        tries = 2 + bisect_right(_FAILING, failing)
        if tries != self.tries:
            self.tries = tries
            self.changes += 1
