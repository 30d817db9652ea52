"""What the answers seen so far make plausible about the network and about the key's allowance.

`RoundTrips` turns round trips and failed polls into three numbers: how long to be patient with a
poll, how many tries the rest of a lease must hold, and how far arrivals may jitter. `Allowance`
turns 429s into an assumed limit when something else uses the key. All times are integer
microseconds.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import attrs

from perfect_async.events import SECOND

_REMEMBERED = 400
"""Round trips and polls that count: old enough news about a network is no news."""
_LOSS = 1e-6
"""The chance that every try of a lease fails which is still taken."""
MOST_TRIES: Final = 6
_FEW = 20
"""So few round trips are sorted at every answer."""
_MANY = 100
"""So many round trips have a 99th percentile."""
_FULL = 2
"""429s running that mean a full window; one may be the second's limit."""
_PRIOR_FAILED, _PRIOR_POLLS = 0.2, 20.0
"""Before anything is seen: 1 % of polls fail. 200 clean polls bring it under 0.1 %."""


_QUIET: Final = 30 * SECOND
_LONGEST_QUIET: Final = 300 * SECOND


@attrs.define
class RoundTrips:
    """How long answers take and how often polls fail, over the last 400 of each."""

    _times: deque[int] = attrs.field(factory=lambda: deque(maxlen=_REMEMBERED))
    _failed: deque[bool] = attrs.field(factory=lambda: deque(maxlen=_REMEMBERED))
    _failures: int = 0
    _count: int = 0
    _p95: int = 200_000
    _late: int = 300_000

    def answered(self, took: int) -> None:
        """An answer came after `took`."""
        self._times.append(took)
        self._count += 1
        if self._count <= _FEW or self._count % 8 == 0:
            # Sorting 400 numbers at every answer would be most of the scheduler's work.
            times = sorted(self._times)
            self._p95 = times[math.ceil(0.95 * len(times)) - 1]
            self._late = self._p95 * 3 // 2
            if len(times) >= _MANY:
                self._late = min(self._late, times[math.ceil(0.99 * len(times)) - 1])

    def polled(self, *, failed: bool) -> None:
        """A poll ended, with or without an answer that says how the task is."""
        if len(self._failed) == _REMEMBERED:
            self._failures -= self._failed[0]
        self._failed.append(failed)
        self._failures += failed

    @property
    def failing(self) -> float:
        """The share of polls to expect to fail, over 0."""
        return (self._failures + _PRIOR_FAILED) / (len(self._failed) + _PRIOR_POLLS)

    @property
    def patience(self) -> int:
        """How long a poll may be silent before another is sent beside it: 3 x p95, 0.3 to 2 s."""
        return min(max(3 * self._p95, 300_000), 2 * SECOND)

    @property
    def jitter(self) -> int:
        """How long after leaving a request may still arrive, 0.15 to 1 s: p95 and half as much
        again, or p99 where that is less and 100 are known.
        """
        return min(max(self._late, 150_000), SECOND)

    @property
    def tries(self) -> int:
        """The smallest k with `failing ** k < 1e-6`, from 2 to 6."""
        k = math.ceil(math.log(_LOSS) / math.log(min(self.failing, 0.5)))
        return min(max(k, 2), MOST_TRIES)


@attrs.define
class Allowance:
    """How many requests a window may be assumed to hold when the key may be used elsewhere too.

    One 429 may be the per-second limit: creations pause a second. Two running mean that the window
    is full with requests that are not ours: assume 0.8 of what we have in it, pause creations, be
    wary for two minutes, and take back 0.05 requests a second, slower than anybody's window
    empties. Retrying naively locks the client out for good, since its own refused requests fill the
    window (contract: Limits). Two running are two of which the second left after the pause:
    requests that were under way when the first was refused tell no more than it did.

    `least` is what one task needs. However little of ours was in the window, so much is assumed
    again after a quiet time (30 s, twice as long after each refusal, at most 5 minutes): how few
    requests of ours were in a full window does not tell how many fit, and a client that sends
    nothing learns nothing.
    """

    requests: int
    _assumed: float = attrs.field(init=False)
    _since: int = 0
    _running: int = 0
    _refused_at: int = 0
    _quiet: int = _QUIET
    _quiet_until: int = 0
    least: int = 0
    paused_until: int = 0
    wary_until: int = 0

    def __attrs_post_init__(self) -> None:
        self._assumed = float(self.requests)

    def refused(self, now: int, left: int, own: int, retry_after: int | None) -> None:
        """A 429 to what left at `left`, while `own` requests of ours occupy the window."""
        pause, again = SECOND, not self._running or left >= self._refused_at + SECOND
        if again:
            self._running += 1
            self._refused_at = now
        if again and self._running >= _FULL:
            lately = now < self._quiet_until + _LONGEST_QUIET and self._quiet_until > 0
            self._quiet = min(2 * self._quiet, _LONGEST_QUIET) if lately else _QUIET
            self._quiet_until = now + self._quiet
            self._assumed = min(float(self.limit(now)), 0.8 * own)
            self._since = now
            self.wary_until = now + 120 * SECOND
            pause = 15 * SECOND
        self.paused_until = max(self.paused_until, now + max(pause, retry_after or 0))

    def accepted(self) -> None:
        """An answer that was no 429 came."""
        self._running = 0

    def limit(self, now: int) -> int:
        """Requests that the window is assumed to hold."""
        assumed = int(self._assumed + 0.05 * (now - self._since) / SECOND)
        if now >= self._quiet_until:
            assumed = max(assumed, self.least)
        return min(self.requests, assumed)
