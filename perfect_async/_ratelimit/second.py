"""The second's limit: what left and may still arrive within a second of something new.

Times are integer microseconds; slots are what the timetable cuts time into.
"""

from __future__ import annotations

from itertools import accumulate

from perfect_async._time import SECOND, SLOT


class SecondWindow:
    """Requests that left, by the last slot in which something new must respect them.

    Twice: if they arrived within the guard, and if they arrive as late as the patience lasts.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._late: dict[int, int] = {}
        self._from = 0
        self._count = 0

    def leave(self, now: int, guard: int, patience: int) -> tuple[int, int]:
        """A request leaves; gives both of its last slots."""
        ends = (now + guard + SECOND) // SLOT
        late = (now + max(patience, guard) + SECOND) // SLOT
        self._ends[ends] = self._ends.get(ends, 0) + 1
        self._late[late] = self._late.get(late, 0) + 1
        self._count += 1
        return ends, late

    def answered(self, ends: int, late: int, now: int) -> None:
        """It has arrived by now: what it occupies of the second may end earlier."""
        at = (now + SECOND) // SLOT
        if at < ends:
            self._ends[ends] -= 1
            self._ends[at] = self._ends.get(at, 0) + 1
        if at < late:
            self._late[late] -= 1
            self._late[at] = self._late.get(at, 0) + 1

    def remember(self, age: int, guard: int, count: int) -> None:
        """`count` requests were answered `age` before time 0."""
        ends = (guard + SECOND - age) // SLOT
        if count and ends >= 0:
            self._ends[ends] = self._ends.get(ends, 0) + count
            self._late[ends] = self._late.get(ends, 0) + count
            self._count += count

    def count(self, slot: int) -> int:
        """How many of them count in `slot` or later, the late ones late; drops what does not."""
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
        """How many of them count in each of the `run` slots from `slot` on."""
        held = [0] * run
        for end, count in (self._ends if urgent else self._late).items():
            if end >= slot:
                held[min(end - slot, run - 1)] += count
        # From the last one back: what counts in a slot counts in those before.
        return [*accumulate(reversed(held))][::-1]
