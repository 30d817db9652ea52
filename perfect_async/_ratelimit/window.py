"""The period's limit: how many requests left and are reserved, in buckets of time.

A request occupies every window that holds a moment between its leaving and its answer, so it counts
in every run of buckets while it is unanswered, and at its answer afterwards. What counting in
buckets loses is one bucket in a period. Asking changes nothing. All times are integer microseconds,
slots as in the timetable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import add, sub
from typing import Final

from perfect_async._time import SECOND, SLOT

_LATEST: Final = 2 * SECOND
"""How long after leaving a request may arrive for the period's limit; no patience is longer."""
_SHARE: Final = 600
"""Buckets a period."""
_MOST_BUCKETS: Final = 4_000
_NOTHING: Final = range(0)


class SlidingWindow:
    """Requests over time: `requests` in a `period`; reservations reach `horizon` ahead at most.

    `unanswered` is the weight of what has left and was not answered: more than one for what is to
    keep a request free beside its own. `reach` is how many slots of a task's reservations can be in
    one window.
    """

    def __init__(self, *, requests: int, period: int, horizon: int) -> None:
        self.requests = requests
        self.unanswered = 0
        self._bucket: int = max(
            1, round(period / _SHARE / SLOT), -(-(period + horizon) // (_MOST_BUCKETS * SLOT))
        )
        self._length = self._bucket * SLOT
        # Two requests closer than a period and the latest arrival share a run of so many buckets.
        self._run: int = -(-(period + _LATEST) // (self._bucket * SLOT)) + 1
        self.reach = min(self._run * self._bucket, horizon // SLOT)
        self._base: int = 0
        self._left: list[int] = []
        self._reserved: list[int] = []
        # By task: what is reserved, what of it is in the buckets, and where the two may differ.
        self._plans: dict[int, range] = {}
        self._counted: dict[int, range] = {}
        self._changed: set[int] = set()
        self._total = 0
        self._seen: int = -1
        self._spare: tuple[int, int, int] | None = None

    def bucket(self, now: int) -> int:
        """The number of the bucket of `now`."""
        return now // self._length

    def next_change(self, now: int) -> int:
        """When a window that is full now may have room again: the next bucket's start."""
        return (self.bucket(now) + 1) * self._bucket * SLOT

    # What left.

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
        """Requests in the window of `now` that were answered."""
        here = self.bucket(now) - self._base
        return sum(self._left[max(0, here - self._run + 1) : here + 1])

    def past(self, now: int) -> list[tuple[int, int]]:
        """The same as (age in microseconds, requests), the oldest first."""
        here = self.bucket(now)
        first = max(self._base, here - self._run + 1)
        spent = [
            (max(0, now - (bucket + 1) * self._bucket * SLOT), self._left[bucket - self._base])
            for bucket in range(first, min(here + 1, self._base + len(self._left)))
        ]
        return [(age, count) for age, count in spent if count]

    def remember(self, past: Iterable[tuple[int, int]]) -> None:
        """Take over requests that left before time 0, as `past` lists them; call it first."""
        # The account reaches back as far as any window does.
        self._base = -self._run
        self._left = [0] * (self._run + 1)
        self._reserved = [0] * (self._run + 1)
        for age, count in past:
            self._left[self.index(-age // SLOT)] += count
            self._total += count

    def copy(self, other: SlidingWindow) -> None:
        """Count what left by the account of `other`, which may have another period."""
        self.unanswered = other.unanswered
        if other._left:
            # The account of `other` may begin before time 0.
            self._base = other._base * other._bucket // self._bucket
            self.index(self._base * self._bucket)
        for bucket, count in enumerate(other._left, other._base):
            if count:
                # At the end of the bucket: what is not known exactly counts for longer.
                self._left[self.index((bucket + 1) * other._bucket - 1)] += count
                self._total += count

    def forget(self, now: int) -> None:
        """Drop what no window from now on can hold."""
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

    # What is reserved.

    def reserve(self, ref: int, polls: range) -> None:
        """Reserve `polls` for task `ref` from now on, and nothing else."""
        # Buckets are for windows that may be full. Where all that there is fits into any window
        # nobody looks at them, and a task may come, move and go without being counted there.
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
        """Reserve these polls for `ref` and no others, if they fit; `slot` is the present one."""
        before = self._plans.get(ref, _NOTHING)
        fits = self._total - len(before) + self.unanswered + len(polls) <= limit
        if not fits:
            self.reserve(ref, _NOTHING)
            fits = self.holds(slot, polls, limit)
        self.reserve(ref, polls if fits else before)
        return fits

    def _settle(self) -> None:
        """Count in the buckets what is reserved now."""
        for ref in self._changed:
            before, after = self._counted.pop(ref, _NOTHING), self._plans.get(ref, _NOTHING)
            if after:
                self._counted[ref] = after
            if after and before and before[-1] == after[-1] and before.step == after.step:
                # The usual case: of the polls some have left.
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
            # An overdue reservation lies before what is still remembered.
            for slot in polls:
                reserved[max(0, slot // bucket - base)] += by

    # What fits.

    def spare(self, now: int) -> int:
        """How many more requests could leave now if every window may hold `requests`."""
        here = self.bucket(now)
        if self._spare is None or self._spare[:2] != (here, self.unanswered):
            peak = self._peak(here, here + self._run - 1)
            self._spare = here, self.unanswered, self.requests - peak
        return self._spare[2]

    def fits(self, now: int, count: int, limit: int) -> bool:
        """Whether `count` more could leave now if every window may hold `limit`."""
        return self.at_most(count, limit) or self.spare(now) - self.requests + limit >= count

    def at_most(self, count: int, limit: int) -> bool:
        """Whether `count` more fit wherever they are: a quick check; False is not certain."""
        return self._total + self.unanswered + count <= limit

    def holds(self, slot: int, polls: range, limit: int, *, leaving: int = 0) -> bool:
        """Whether `polls` (and requests `leaving` in `slot`) fit beside what is reserved."""
        if self.at_most(leaving + len(polls), limit):
            return True
        here = slot // self._bucket
        # A window that holds the last of them may end a period later.
        last = max(here, (polls[-1] if polls else slot) // self._bucket) + self._run - 1
        return self._peak(here, last, polls, leaving=leaving) <= limit

    def would_hold(self, slot: int, plan: Iterable[range], limit: int, *, leaving: int = 0) -> bool:
        """Whether `plan` would fit if it were all that is reserved."""
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
        """The most that a window holds, of those that end in `slot` or later and by `last`."""
        return self._peak(slot // self._bucket, last // self._bucket)

    # Inside.

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
        # Beyond what has left so far there are only reservations.
        both.extend(reserved[low + len(both) : high])
        if more:
            both.extend([0] * (high - low - len(both)))
            for poll in more:
                both[max(0, poll // self._bucket - self._base - low)] += 1
        # What is unanswered counts in every run that holds the present: none after it holds more.
        both.extend([0] * (here - self._base - low + 1 - len(both)))
        both[here - self._base - low] += self.unanswered + leaving
        runs = [*accumulate(both, initial=0)]
        # With fewer buckets than a run there is one run, and it holds everything.
        peak: int = max(map(sub, runs[self._run :], runs), default=runs[-1])
        return peak

    def index(self, slot: int) -> int:
        """The place of `slot` in the account, which grows to hold it."""
        if not self._left:
            self._base = max(self._base, slot // self._bucket)
        index = max(0, slot // self._bucket - self._base)
        if (missing := index + 1 - len(self._left)) > 0:
            self._left.extend([0] * missing)
            self._reserved.extend([0] * missing)
        return index
