"""Count the requests that left and are reserved against the limit of a period, in buckets of time.

A request may count in every window that contains a moment between its leaving and its answer. It
therefore counts in every run of buckets while it is unanswered, and at its answer afterwards.
Counting in buckets costs one bucket in a period. Questions change no counts. All times are integer
microseconds; slots are those of the timetable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import add, sub
from typing import Final

from perfect_async._time import SECOND, SLOT

_LATEST: Final = 2 * SECOND
"""How long after leaving a request may arrive, for this limit. No patience is longer."""
_SHARE: Final = 600
"""The number of buckets in a period."""
_MOST_BUCKETS: Final = 4_000
_NOTHING: Final = range(0)


class SlidingWindow:
    """The requests over time, of which a `period` may hold `requests`.

    Reservations reach `horizon` ahead at most. `unanswered` is the weight of the requests without
    an answer. A request that keeps another one free has a weight above 1. `reach` is how many slots
    of a task's reservations can be in one window.
    """

    def __init__(self, *, requests: int, period: int, horizon: int) -> None:
        self.requests = requests
        self.unanswered = 0
        self._bucket: int = max(
            1, round(period / _SHARE / SLOT), -(-(period + horizon) // (_MOST_BUCKETS * SLOT))
        )
        self._length = self._bucket * SLOT
        # Requests closer than a period and the latest arrival share a run of so many buckets.
        self._run: int = -(-(period + _LATEST) // (self._bucket * SLOT)) + 1
        self.reach = min(self._run * self._bucket, horizon // SLOT)
        self._base: int = 0
        self._left: list[int] = []
        self._reserved: list[int] = []
        # By task: the reserved polls, those counted in the buckets, and where both may differ.
        self._plans: dict[int, range] = {}
        self._counted: dict[int, range] = {}
        self._changed: set[int] = set()
        self._total = 0
        self._seen: int = -1
        self._spare: tuple[int, int, int] | None = None

    def bucket(self, now: int) -> int:
        """Return the number of the bucket of `now`."""
        return now // self._length

    def next_change(self, now: int) -> int:
        """Return the start of the next bucket, when a full window may have room again."""
        return (self.bucket(now) + 1) * self._bucket * SLOT

    # Requests that left.

    def begin(self, now: int) -> None:
        """Begin the account one window before `now`, if it has not begun.

        Requests that other processes sent before then count from when they were sent.
        """
        if not self._left:
            self._base = now // self._length - self._run
            self._left, self._reserved = [0], [0]
        self.forget(now)

    def answered(self, now: int) -> None:
        """Count a request that was answered from now on."""
        here = now // self._length
        if here != self._seen:
            self.forget(now)
        self._left[max(0, here - self._base)] += 1
        self._total += 1
        self._spare = None

    def occupied(self, now: int) -> int:
        """Return how many answered requests are in the window at `now`."""
        here = self.bucket(now) - self._base
        return sum(self._left[max(0, here - self._run + 1) : here + 1])

    def past(self, now: int) -> list[tuple[int, int]]:
        """Return those requests as (age in microseconds, count), the oldest first."""
        here = self.bucket(now)
        first = max(self._base, here - self._run + 1)
        spent = [
            (max(0, now - (bucket + 1) * self._bucket * SLOT), self._left[bucket - self._base])
            for bucket in range(first, min(here + 1, self._base + len(self._left)))
        ]
        return [(age, count) for age, count in spent if count]

    def remember(self, past: Iterable[tuple[int, int]]) -> None:
        """Count requests that left before time 0, as `past` lists them; call it first."""
        self.begin(0)
        for age, count in past:
            self._left[self.index(-age // SLOT)] += count
            self._total += count

    def copy(self, other: SlidingWindow) -> None:
        """Count the requests that left by the account of `other`, which may have another period."""
        self.unanswered = other.unanswered
        if other._left:
            # The account of `other` may begin before time 0.
            self._base = other._base * other._bucket // self._bucket
            self.index(self._base * self._bucket)
        for bucket, count in enumerate(other._left, other._base):
            if count:
                # The time inside the bucket is unknown, so the request counts at its end.
                self._left[self.index((bucket + 1) * other._bucket - 1)] += count
                self._total += count

    def forget(self, now: int) -> None:
        """Drop requests that are in no window from now on."""
        here = now // self._length
        if here == self._seen:
            return
        self._seen, old = here, here - 2 * self._run - self._base
        if self._left and old > self._run // 2:
            self._settle()
            self._total -= sum(self._left[:old])
            overdue = sum(self._reserved[:old])
            del self._left[:old], self._reserved[:old]
            self._base += old
            if overdue:
                self._reserved[self.index(self._base * self._bucket)] += overdue
        self.index(now // SLOT)

    # Reservations.

    def reserve(self, ref: int, polls: range) -> None:
        """Reserve `polls` for task `ref`, instead of its former ones."""
        # Buckets are needed only for windows that may be full. While all requests together fit into
        # any window, a task can be added, moved and removed without being counted in them.
        self._total += len(polls) - len(self._plans.get(ref, _NOTHING))
        self._spare = None
        if polls:
            self._plans[ref] = polls
            self._changed.add(ref)
        else:
            self._plans.pop(ref, None)
            if ref in self._counted:
                self._changed.add(ref)
            else:
                self._changed.discard(ref)

    def replace(self, ref: int, polls: range, slot: int, limit: int) -> bool:
        """Reserve `polls` for `ref` instead of its former ones, if they fit from `slot` on."""
        before = self._plans.get(ref, _NOTHING)
        fits = self._total - len(before) + self.unanswered + len(polls) <= limit
        if not fits:
            self.reserve(ref, _NOTHING)
            fits = self.holds(slot, polls, limit)
        self.reserve(ref, polls if fits else before)
        return fits

    def _settle(self) -> None:
        """Update the buckets to the present reservations."""
        for ref in self._changed:
            before, after = self._counted.pop(ref, _NOTHING), self._plans.get(ref, _NOTHING)
            if after:
                self._counted[ref] = after
            if after and before and before[-1] == after[-1] and before.step == after.step:
                # The usual case: some of the polls have left.
                self._count(range(before[0], after[0], after.step), -1)
                self._count(range(after[0], before[0], after.step), 1)
            else:
                self._count(before, -1)
                self._count(after, 1)
        self._changed.clear()

    def _count(self, polls: range, by: int) -> None:
        if not polls:
            return
        self.index(polls[-1])
        reserved, base, bucket = self._reserved, self._base, self._bucket
        if polls[0] // bucket >= base:
            for slot in polls:
                reserved[slot // bucket - base] += by
        else:
            # An overdue reservation lies before the first bucket.
            for slot in polls:
                reserved[max(0, slot // bucket - base)] += by

    # Questions.

    def spare(self, now: int) -> int:
        """Return how many more requests could leave now if every window may hold `requests`."""
        here = self.bucket(now)
        if self._spare is None or self._spare[:2] != (here, self.unanswered):
            peak = self._peak(here, here + self._run - 1)
            self._spare = here, self.unanswered, self.requests - peak
        return self._spare[2]

    def fits(self, now: int, count: int, limit: int) -> bool:
        """Return whether `count` more could leave now if every window may hold `limit`."""
        # This is `at_most`, whose call would take longer than the check.
        if self._total + self.unanswered + count <= limit:
            return True
        return self.spare(now) - self.requests + limit >= count

    def at_most(self, count: int, limit: int) -> bool:
        """Return whether `count` more certainly fit at any time: a quick check."""
        return self._total + self.unanswered + count <= limit

    def holds(self, slot: int, polls: range, limit: int, *, leaving: int = 0) -> bool:
        """Return whether `polls` (and requests `leaving` in `slot`) fit beside what is reserved."""
        if self.at_most(leaving + len(polls), limit):
            return True
        here = slot // self._bucket
        # A window that contains the last of them may end a period later.
        last = max(here, (polls[-1] if polls else slot) // self._bucket) + self._run - 1
        return self._peak(here, last, polls, leaving=leaving) <= limit

    def would_hold(self, slot: int, plan: Iterable[range], limit: int, *, leaving: int = 0) -> bool:
        """Return whether `plan` would fit instead of all present reservations."""
        bucket, base = self._bucket, self._base
        last = slot // bucket
        planned = [0] * max(len(self._reserved), last - base + 1)
        for polls in plan:
            if polls and (end := polls[-1] // bucket) > last:
                last = end
                planned.extend([0] * (end - base + 1 - len(planned)))
            for poll in polls:
                planned[max(0, poll // bucket - base)] += 1
        return self._peak(slot // bucket, last, leaving=leaving, reserved=planned) <= limit

    def peak(self, slot: int, last: int) -> int:
        """Return the most requests in a window that ends from `slot` to `last`."""
        return self._peak(slot // self._bucket, last // self._bucket)

    # Helpers.

    def _peak(
        self,
        here: int,
        last: int,
        more: range = _NOTHING,
        *,
        leaving: int = 0,
        reserved: Sequence[int] | None = None,
    ) -> int:
        low = max(here - self._run + 1 - self._base, 0)
        high = max(last, here) + 1 - self._base
        if reserved is None:
            self._settle()
            reserved = self._reserved
        both = [*map(add, self._left[low:high], reserved[low:high])]
        # Later buckets have only reservations.
        both.extend(reserved[low + len(both) : high])
        if more:
            both.extend([0] * (high - low - len(both)))
            for poll in more:
                both[max(0, poll // self._bucket - self._base - low)] += 1
        # Unanswered requests count in every run with the present bucket; no later one has more.
        both.extend([0] * (here - self._base - low + 1 - len(both)))
        both[here - self._base - low] += self.unanswered + leaving
        runs = [*accumulate(both, initial=0)]
        # With fewer buckets than a run there is only one run, with all requests.
        peak: int = max(map(sub, runs[self._run :], runs), default=runs[-1])
        return peak

    def index(self, slot: int) -> int:
        """Return the index of the bucket of `slot`, adding buckets as needed."""
        if not self._left:
            self._base = max(self._base, slot // self._bucket)
        index = max(0, slot // self._bucket - self._base)
        if (missing := index + 1 - len(self._left)) > 0:
            self._left.extend([0] * missing)
            self._reserved.extend([0] * missing)
        return index
