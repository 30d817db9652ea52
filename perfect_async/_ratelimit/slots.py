"""Assign phases to tasks, and count the requests of a second.

A task that is polled every cycle keeps its phase, which is the slot modulo the cycle. Polls of
different tasks therefore do not collide, and their number in any second is known in advance. Times
are slots.
"""

from __future__ import annotations

from itertools import accumulate
from operator import sub

from perfect_async._time import SECOND, SLOT


class PhaseTable:
    """The phases of a `cycle`, and how many tasks own each of them, `per_slot` at most.

    Questions take the length of a `run` of slots and the `most` polls that any such run may hold.
    """

    def __init__(self, cycle: int, per_slot: int) -> None:
        self.cycle = cycle
        self._per_slot = per_slot
        self._owners = [0] * cycle
        self._count = 0
        self._taken: tuple[int, int, list[bool]] | None = None

    def take(self, slot: int) -> None:
        """Give the phase of `slot` to a task."""
        self._owners[slot % self.cycle] += 1
        self._count += 1
        self._taken = None

    def give(self, slot: int) -> None:
        """Take the phase of `slot` back from a task."""
        self._owners[slot % self.cycle] -= 1
        self._count -= 1
        self._taken = None

    def within(self, run: int) -> int:
        """Return a bound on the polls in any `run` of slots."""
        return self._count * -(-run // self.cycle)

    def ahead(self, slot: int, run: int) -> list[int]:
        """Return how many polls each of the `run` slots from `slot` on holds."""
        start = slot % self.cycle
        laps = -(-(start + run) // self.cycle)
        return (self._owners * laps)[start : start + run]

    def free(self, slot: int, run: int, most: int) -> bool:
        """Return whether one more task may own the phase of `slot`."""
        if self._owners[slot % self.cycle] >= self._per_slot:
            return False
        if run <= self.cycle and self._count < most:
            return True
        if self._taken is None or self._taken[:2] != (run, most):
            self._taken = run, most, self._full(run, most)
        return not self._taken[2][slot % self.cycle]

    def latest(self, slot: int, back: int, run: int, most: int) -> int | None:
        """Return the latest slot with a free phase up to `slot`, and at most `back` before it."""
        for place in range(slot, slot - back - 1, -1):
            if self.free(place, run, most):
                return place
        return None

    def _full(self, run: int, most: int) -> list[bool]:
        """Return for each phase whether some run that contains it is full."""
        size = self.cycle
        sums = [*accumulate(self.ahead(0, size + run), initial=0)]
        # A phase that occurs twice in a long run counts twice.
        room = most - -(-run // size)
        full = [*map(room.__lt__, map(sub, sums[run:], sums[:size]))]
        reached = [*accumulate(full * (-(-run // size) + 1), initial=0)]
        # Look at the run that starts in the phase, and at those that start before it.
        start = len(reached) - 1 - size
        return [reached[start + at + 1] > reached[start + at + 1 - run] for at in range(size)]


class SecondWindow:
    """The requests that left, by the last slot in which a new request must count them.

    Each is kept twice: as if it arrived within the guard, and as if it arrives at the end of the
    patience.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._late: dict[int, int] = {}
        self._from = 0
        self._count = 0

    def leave(self, now: int, guard: int, patience: int) -> tuple[int, int]:
        """Record a request that leaves; return the two last slots in which it counts."""
        ends = (now + guard + SECOND) // SLOT
        late = (now + max(patience, guard) + SECOND) // SLOT
        if late < self._from:
            return ends, late
        self._ends[ends] = self._ends.get(ends, 0) + 1
        self._late[late] = self._late.get(late, 0) + 1
        self._count += 1
        return ends, late

    def answered(self, ends: int, late: int, now: int) -> None:
        """Record that a request is answered. It has arrived, so it may stop counting earlier."""
        at = (now + SECOND) // SLOT
        if at < ends and ends >= self._from:
            self._ends[ends] -= 1
            self._ends[at] = self._ends.get(at, 0) + 1
        if at < late and late >= self._from:
            self._late[late] -= 1
            # Another process may have got the answer long ago.
            if at >= self._from:
                self._late[at] = self._late.get(at, 0) + 1
            else:
                self._count -= 1

    def remember(self, age: int, guard: int, count: int) -> None:
        """Record `count` requests that were answered `age` before time 0."""
        ends = (guard + SECOND - age) // SLOT
        if count and ends >= 0:
            self._ends[ends] = self._ends.get(ends, 0) + count
            self._late[ends] = self._late.get(ends, 0) + count
            self._count += count

    def count(self, slot: int) -> int:
        """Count the requests that may count in `slot` or later, and drop the others."""
        if slot == self._from:
            return self._count
        if slot - self._from > len(self._late):
            gone = [end for end in self._late if end < slot]
            gone_early = [end for end in self._ends if end < slot]
        else:
            gone = gone_early = [*range(self._from, slot)]
        for end in gone:
            self._count -= self._late.pop(end, 0)
        for end in gone_early:
            self._ends.pop(end, None)
        self._from = slot
        return self._count

    def held(self, slot: int, run: int, *, urgent: bool = True) -> list[int]:
        """Return how many requests count in each of the `run` slots from `slot` on."""
        held = [0] * run
        for end, count in (self._ends if urgent else self._late).items():
            if end >= slot:
                held[min(end - slot, run - 1)] += count
        # A request that counts in a slot counts in those before it: add from the last one back.
        return [*accumulate(reversed(held))][::-1]
