"""Whose turn it is: a task that is polled every cycle keeps its phase, the slot modulo the cycle.

So deadlines cannot collide, and what the polls of all tasks need of any second is known for as long
as they live. Times are slots.
"""

from __future__ import annotations

from itertools import accumulate
from operator import sub


class PhaseTable:
    """The phases of a `cycle` and how many tasks own each; at most `per_slot` may.

    What is asked takes a `run` of slots and the `most` that any such run may hold.
    """

    def __init__(self, cycle: int, per_slot: int) -> None:
        self.cycle = cycle
        self._per_slot = per_slot
        self._owners = [0] * cycle
        self._count = 0
        self._taken: tuple[int, int, list[bool]] | None = None

    def take(self, slot: int) -> None:
        """A task owns the phase of `slot`."""
        self._owners[slot % self.cycle] += 1
        self._count += 1
        self._taken = None

    def give(self, slot: int) -> None:
        """A task owns the phase of `slot` no longer."""
        self._owners[slot % self.cycle] -= 1
        self._count -= 1
        self._taken = None

    def within(self, run: int) -> int:
        """No `run` of slots holds more polls than this."""
        return self._count * -(-run // self.cycle)

    def ahead(self, slot: int, run: int) -> list[int]:
        """How many polls the `run` slots from `slot` on hold, each."""
        start = slot % self.cycle
        laps = -(-(start + run) // self.cycle)
        return (self._owners * laps)[start : start + run]

    def free(self, slot: int, run: int, most: int) -> bool:
        """Whether one more task may own the phase of `slot`."""
        if self._owners[slot % self.cycle] >= self._per_slot:
            return False
        if run <= self.cycle and self._count < most:
            return True
        if self._taken is None or self._taken[:2] != (run, most):
            self._taken = run, most, self._full(run, most)
        return not self._taken[2][slot % self.cycle]

    def latest(self, slot: int, back: int, run: int, most: int) -> int | None:
        """The latest slot up to `slot`, `back` before it at most, whose phase is free."""
        for place in range(slot, slot - back - 1, -1):
            if self.free(place, run, most):
                return place
        return None

    def _full(self, run: int, most: int) -> list[bool]:
        """By phase, whether some run that holds it is full."""
        size = self.cycle
        sums = [*accumulate(self.ahead(0, size + run), initial=0)]
        # A phase that comes twice in a long run counts twice there.
        room = most - -(-run // size)
        full = [*map(room.__lt__, map(sub, sums[run:], sums[:size]))]
        reached = [*accumulate(full * (-(-run // size) + 1), initial=0)]
        # The run that starts in a phase, and those that start in the slots before it.
        start = len(reached) - 1 - size
        return [reached[start + at + 1] > reached[start + at + 1 - run] for at in range(size)]
