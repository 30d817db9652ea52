"""Estimate from observations how long tasks may run, and how fast and reliable the network is.

An end is seen only by a poll, so observed durations are intervals: a task that ran at one poll and
had ended at the next lasted between both. A task that still runs, was lost or was given up counts
too, since it lasted at least so long. Long tasks end last, so counting only ends would represent
all tasks by the first short ones. The share that outlasts an age is therefore the product-limit
estimate (Kaplan and Meier, 1958). It counts ends at their latest, and running tasks at their next
poll, which errs towards long durations. If they were counted at their last poll, they would be
missing from the tasks at risk when the ends of that cycle are counted.

All times are integer microseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import Sequence
from itertools import accumulate
from operator import mul, neg
from typing import Final

import attrs

from perfect_async._time import SECOND

_REMEMBERED_ANSWERS = 400
"""The number of round trips and of polls that count; older ones do not describe the network."""
_LOSS = 1e-6
"""The accepted probability that all tries of a lease fail."""
MOST_TRIES: Final = 6
_FAILING: Final = tuple(_LOSS ** (1 / k) for k in range(2, MOST_TRIES))
"""The shares of failing polls from which 3, 4, 5 and 6 tries are needed."""
_FEW = 20
"""The number of round trips up to which quantiles are computed after every answer."""
_ENOUGH = 100
"""The number of round trips from which the 99th percentile is used."""
_PRIOR_FAILED, _PRIOR_POLLS = 0.12, 20.0
"""The assumption before any poll: 0.6 % fail. 100 polls without a failure lower it to 0.1 %."""
_REMEMBERED_TASKS: Final = 400
"""The number of tasks of one kind that count, since durations drift."""
_SHARE: Final = 0.05
"""The share of tasks that outlasts the quantile from which the horizon is computed."""
_MARGIN: Final = 1.2
_COARSE: Final = SECOND // 2
_ROUNDING: Final = 1e-9
"""By how much products of shares may be off, since they are floats."""
_MANY: Final = 500.0
"""The mean from which the normal distribution is used for Poisson's; 5 sigma are below 1e-6."""


@attrs.define
class DurationModel:
    """A model of the durations of one kind of task at one moment.

    `horizon` is the age that hardly any task outlasts: about 1.2 times the 95th percentile, and
    more while few ends are known. `ended` is the number of ends. Each of `shares` is the share of
    tasks that outlasts one of `ages`. `middles` are the middles of the intervals in which tasks
    ended, and each of `remaining` is the share that outlasts one of them. All lists are sorted.
    """

    horizon: int
    _ended: int
    _ages: list[int]
    _shares: list[float]
    _middles: list[int]
    _remaining: list[float]
    _known: dict[int, float] = attrs.field(factory=dict[int, float])

    def outlasts(self, age: int) -> float:
        """Return the probability that a task that runs at `age` still runs at the horizon.

        The share beyond the horizon is at least half a task of all that ended and one more, since
        observations cannot exclude it (the estimate of Krichevsky and Trofimov, 1981). The
        probability is conditional on the age, so it grows as a task gets older.
        """
        key = -(-age // _COARSE)
        if (known := self._known.get(key)) is None:
            here = self._share(key * _COARSE)
            beyond = max(self._share(self.horizon), 0.5 / (self._ended + 1))
            known = self._known[key] = min(1.0, beyond / here) if here else 1.0
        return known

    def likely(self, age: int, chance: float) -> int | None:
        """Return the age by which a task that runs at `age` has ended with probability `chance`.

        It is None if no task was seen to end so late.
        """
        middles, remaining = self._middles, self._remaining
        step = bisect_right(middles, age)
        if step == len(middles):
            return None
        here = remaining[step - 1] if step else 1.0
        place = bisect_left(remaining, -(1 - chance) * here - _ROUNDING, key=neg)
        return middles[place] if place < len(middles) else None

    def _share(self, age: int) -> float:
        step = bisect_right(self._ages, age)
        return self._shares[step - 1] if step else 1.0


class DurationEstimator:
    """The last 400 durations of one kind of task; `usual` is the documented interval.

    The documented interval counts like one task that ended in it.
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
        """Return the mean duration, or None before the first end.

        It is the mean of the middles of the intervals in which tasks ended.
        """
        middles = [(low + high) // 2 for low, high in self._seen if high is not None]
        return sum(middles) // len(middles) if middles else None

    def _add(self, low: int, high: int | None) -> None:
        if len(self._seen) == _REMEMBERED_TASKS:
            self._ended -= self._seen[0][1] is not None
        self._seen.append((low, high))

    def outlook(
        self, running: Sequence[int], cycle: int, *, rare: bool = False
    ) -> DurationModel | None:
        """Return the model while tasks are `running` at these ages, or None before the first end.

        Polls leave every `cycle`. A quarter of it is added, since ends are seen late. Where polls
        are `rare`, the likely ends take the tasks into account whose ends are unknown. Elsewhere
        there are few of them, and leaving them out is quicker.
        """
        if not self._ended:
            return None
        seen = [*self._seen] if self._usual is None else [self._usual, *self._seen]
        ends = sorted(high for _, high in seen if high is not None)
        # A running task counts as running until its next poll, a cycle later.
        last_seen = [*(low for low, high in seen if high is None), *running]
        unseen = sorted(age + cycle for age in last_seen)
        ages, shares = _outlasting(ends, unseen)
        # The first age that hardly any task outlasts, or the last age at which one was seen.
        place = bisect_left(shares, -_SHARE, key=neg)
        quantile = ages[place] if place < len(ages) else max(ends[-1:] + unseen[-1:])
        middles = sorted((low + high) // 2 for low, high in seen if high is not None)
        return DurationModel(
            round((_MARGIN + 1 / math.sqrt(self._ended)) * quantile) + cycle // 4,
            len(ends),
            ages,
            shares,
            *_outlasting(middles, last_seen if rare else ()),
        )


def _outlasting(ended: Sequence[int], last_seen: Sequence[int]) -> tuple[list[int], list[float]]:
    """Return the ages at which tasks `ended`, in order, and the share of tasks that outlasts each.

    It is the product-limit estimate. Other tasks were `last_seen` running at their ages. `ended` is
    sorted.
    """
    known = len(ended) + len(last_seen)
    at_ages = Counter(ended)
    ages = [*at_ages]
    # Before each age: how many tasks had ended since the age before it, or were last seen.
    ends = [*at_ages.values()]
    gone = [0, *ends]
    for age in last_seen:
        gone[bisect_right(ages, age)] += 1
    stays = [
        1 - count / (known - before) for count, before in zip(ends, accumulate(gone), strict=False)
    ]
    return ages, [*accumulate(stays, mul)]


def tail(mean: float, chance: float) -> int:
    """Return the smallest r so that more than r events have a probability of `chance` at most.

    The events are independent, and `mean` of them are expected. The tail of Poisson's distribution
    is used, which is above that of events with different probabilities (Hoeffding, 1956).
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
    """The round trips of requests and the failures of polls, over the last 400 of each.

    - `patience` is how long a poll may have no answer before another is sent beside it: 3 times the
      95th percentile, from 0.3 to 2 s.
    - `jitter` is how long after leaving a request may still arrive, from 0.15 to 1 s. It is 1.5
      times the 95th percentile, or the 99th where that is less and 100 round trips are known.
    - `failing` is the expected share of failing polls, above 0. Polls of other processes on the
      same network count too. Once a poll of ours has failed, they do not lower it: this process
      may have another network after all, for example through a proxy.
    - `tries` is the smallest k with `failing ** k < 1e-6`, from 2 to 6.
    - `changes` counts the changes of patience, jitter and tries, so that callers notice them.
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
    _nearby: deque[bool] = attrs.field(factory=deque[bool])
    _failures_nearby: int = 0
    _count: int = 0

    def answered(self, took: int) -> None:
        """Record an answer that came after `took`."""
        # The list is kept in order, since sorting it at every 16th answer takes longer.
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
        """Record the answer to a poll; `failed` if it did not tell the state of the task."""
        full = len(self._failed) == _REMEMBERED_ANSWERS
        if full and not (failed or self._failures or self._nearby):
            # Only polls that did not fail count, so nothing changes.
            return
        self._failed.append(failed)
        self._failures += failed
        if len(self._failed) > _REMEMBERED_ANSWERS:
            self._failures -= self._failed.popleft()
        if len(self._failed) + len(self._nearby) > _REMEMBERED_ANSWERS:
            # Otherwise polls of processes that have left would count for ever.
            self._forget_nearby()
        self._estimate()

    def polled_nearby(self, *, failed: bool) -> None:
        """Record the answer to a poll of another process on the same network."""
        self._nearby.append(failed)
        self._failures_nearby += failed
        if len(self._nearby) > _REMEMBERED_ANSWERS:
            self._forget_nearby()
        self._estimate()

    def _forget_nearby(self) -> None:
        self._failures_nearby -= self._nearby.popleft()

    def _estimate(self) -> None:
        failures, polls = self._failures + _PRIOR_FAILED, len(self._failed) + _PRIOR_POLLS
        failing = (failures + self._failures_nearby) / (polls + len(self._nearby))
        if self._failures:
            failing = max(failing, failures / polls)
        if failing == self.failing:
            return
        self.failing = failing
        tries = 2 + bisect_right(_FAILING, failing)
        if tries != self.tries:
            self.tries = tries
            self.changes += 1
