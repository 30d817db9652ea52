"""Estimate how long tasks may run from the durations seen so far, and how fast the network is.

We see ends only when we ask, so evidence comes as intervals: a task that was running at one poll
and had ended at the next lasted between both. A task that still runs, was lost or given up is
evidence too (it lasted at least so long): long tasks end last, and counting only ends would
take the first short ones for all. So the share that outlasts an age is the product-limit estimate
(Kaplan and Meier, 1958) with ends at their latest, and those that run at their next poll, which
errs towards long: were they counted at their last poll, every cycle would end without them.

All times are integer microseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Iterable
from itertools import accumulate
from operator import mul, neg
from typing import Final

import attrs

from perfect_async._time import SECOND

_REMEMBERED_ANSWERS = 400
"""Round trips and polls that count: old enough news about a network is no news."""
_LOSS = 1e-6
"""The chance that every try of a lease fails which is still taken."""
MOST_TRIES: Final = 6
_FAILING: Final = tuple(_LOSS ** (1 / k) for k in range(2, MOST_TRIES))
"""The shares of failing polls from which 3, 4, 5 and 6 tries are needed."""
_FEW = 20
"""So few round trips are looked at after every answer, more only now and then."""
_ENOUGH = 100
"""So many round trips have a 99th percentile."""
_PRIOR_FAILED, _PRIOR_POLLS = 0.08, 20.0
"""Before anything is seen: 0.4 % of polls fail. 60 clean polls bring it under 0.1 %."""
_REMEMBERED_TASKS: Final = 400
"""Tasks of one kind that count: durations drift."""
_SHARE: Final = 0.05
"""The share of tasks that outlasts the quantile from which the horizon is reckoned."""
_MARGIN: Final = 1.2
_COARSE: Final = SECOND // 2
_MANY: Final = 500.0
"""From such a mean on Poisson's tail is the normal one; five deviations are less than 1e-6."""


@attrs.define
class DurationModel:
    """A model of the durations of one kind of task at one moment.

    `horizon` is the age that hardly any task outlasts: about 1.2 times the 95th percentile, more
    while few are known. Of those that ended (`ended` in number): a share of `shares` outlasts each
    of `ages`, and `middles` are the middles of the intervals in which they did; all sorted.
    """

    horizon: int
    _ended: int
    _ages: list[int]
    _shares: list[float]
    _middles: list[int]
    _known: dict[int, float] = attrs.field(factory=dict[int, float])

    def outlasts(self, age: int) -> float:
        """The chance that a task that runs at `age` still runs at the horizon.

        Half a task in all that ended and one more outlasts the horizon at least: nobody has seen
        that it cannot be (the estimate of Krichevsky and Trofimov, 1981). Conditional on the age,
        so a task becomes the more suspicious the older it is.
        """
        key = -(-age // _COARSE)
        if (known := self._known.get(key)) is None:
            here = self._share(key * _COARSE)
            beyond = max(self._share(self.horizon), 0.5 / (self._ended + 1))
            known = self._known[key] = min(1.0, beyond / here) if here else 1.0
        return known

    def likely(self, age: int, chance: float) -> int | None:
        """The age at which a task that runs at `age` has ended with `chance`; None if unknown."""
        middles = self._middles
        first = bisect_right(middles, age)
        place = first + math.ceil(chance * (len(middles) - first)) - 1
        return middles[place] if place >= first else None

    def _share(self, age: int) -> float:
        step = bisect_right(self._ages, age)
        return self._shares[step - 1] if step else 1.0


class DurationEstimator:
    """The last 400 durations of one kind of task; `usual` is what its documentation says.

    What is documented weighs as much as one task that ended in that interval.
    """

    def __init__(self, usual: tuple[int, int] | None = None) -> None:
        self._usual = usual
        self._seen: deque[tuple[int, int | None]] = deque(maxlen=_REMEMBERED_TASKS)
        self._ended = 0

    def __len__(self) -> int:
        return len(self._seen)

    def ended(self, low: int, high: int) -> None:
        """Record a task that ended between the ages `low` and `high`."""
        self._add(low, high)
        self._ended += 1

    def outlasted(self, low: int) -> None:
        """Record a task that ran at the age `low`; its end is unknown."""
        self._add(low, None)

    def mean(self) -> int | None:
        """Return how long such a task lasts on average; None before the first end.

        That is from the middles of the intervals in which tasks ended.
        """
        middles = [(low + high) // 2 for low, high in self._seen if high is not None]
        return sum(middles) // len(middles) if middles else None

    def _add(self, low: int, high: int | None) -> None:
        if len(self._seen) == _REMEMBERED_TASKS:
            self._ended -= self._seen[0][1] is not None
        self._seen.append((low, high))

    def outlook(self, running: Iterable[int], cycle: int) -> DurationModel | None:
        """What is plausible while tasks are `running` at these ages; None before the first end.

        Polls come every `cycle`, a quarter of which is what seeing an end late adds.
        """
        if not self._ended:
            return None
        seen = [*self._seen] if self._usual is None else [self._usual, *self._seen]
        ends = sorted(high for _, high in seen if high is not None)
        # A running task is seen again a cycle later; until then it has not ended.
        unseen = [low for low, high in seen if high is None]
        unseen = sorted(age + cycle for age in (*unseen, *running))
        known = len(ends) + len(unseen)
        at_ages = Counter(ends)
        ages = [*at_ages]
        stays = [
            1 - ended / (known - before - bisect_left(unseen, age))
            for (age, ended), before in zip(
                at_ages.items(), accumulate(at_ages.values(), initial=0), strict=False
            )
        ]
        shares = [*accumulate(stays, mul)]
        # The first age that hardly any outlasts, else the last that any was seen at.
        place = bisect_left(shares, -_SHARE, key=neg)
        quantile = ages[place] if place < len(ages) else max(ends[-1:] + unseen[-1:])
        return DurationModel(
            round((_MARGIN + 1 / math.sqrt(self._ended)) * quantile) + cycle // 4,
            len(ends),
            ages,
            shares,
            sorted((low + high) // 2 for low, high in seen if high is not None),
        )


def tail(mean: float, chance: float) -> int:
    """The smallest r so that more than r rare things, `mean` on the average, have `chance` at most.

    By Poisson's distribution, whose tail is above that of things that are not equally rare
    (Hoeffding, 1956).
    """
    if mean > _MANY:
        return math.ceil(mean + 5 * math.sqrt(mean))
    term = math.exp(-mean)
    below, r = term, 0
    while 1 - below > chance:
        r += 1
        term *= mean / r
        below += term
    return r


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
    _times: deque[int] = attrs.field(factory=deque[int])
    _ordered: list[int] = attrs.field(factory=list[int])
    _failed: deque[bool] = attrs.field(factory=deque[bool])
    _failures: int = 0
    _count: int = 0

    def answered(self, took: int) -> None:
        """Record an answer that came after `took`."""
        # Kept in order: to sort them at every 16th answer takes several times as long.
        if len(self._times) == _REMEMBERED_ANSWERS:
            del self._ordered[bisect_left(self._ordered, self._times.popleft())]
        self._times.append(took)
        insort(self._ordered, took)
        self._count += 1
        if self._count <= _FEW or self._count % 16 == 0:
            times = self._ordered
            p95 = times[math.ceil(0.95 * len(times)) - 1]
            late = p95 * 3 // 2
            if len(times) >= _ENOUGH:
                late = min(late, times[math.ceil(0.99 * len(times)) - 1])
            patience, jitter = (
                min(max(3 * p95, 300_000), 2 * SECOND),
                min(max(late, 150_000), SECOND),
            )
            if (patience, jitter) != (self.patience, self.jitter):
                self.patience, self.jitter = patience, jitter
                self.changes += 1

    def polled(self, *, failed: bool) -> None:
        """Record a poll that ended; `failed` if its answer did not say how the task is."""
        self._failed.append(failed)
        self._failures += failed
        if len(self._failed) > _REMEMBERED_ANSWERS:
            self._failures -= self._failed.popleft()
        failing = (self._failures + _PRIOR_FAILED) / (len(self._failed) + _PRIOR_POLLS)
        if failing == self.failing:
            return
        self.failing = failing
        tries = 2 + bisect_right(_FAILING, failing)
        if tries != self.tries:
            self.tries = tries
            self.changes += 1
