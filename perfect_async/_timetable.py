"""Which requests left, which are promised, and what fits beside them.

Time is cut into slots. A task in flight is polled every `cycle` slots, so it keeps its *phase*
(slot modulo cycle) for life, and the polls of all tasks are known until their ends.

The invariant, and why nothing is lost and nothing refused while it holds:

1. Any run as long as a period and 2 s holds at most the limit's requests, any run as long as a
   second and the `guard` at most the second's, each request counted in the slot in which it left
   or is promised to leave; every task in flight has a promise every cycle until its end.
2. A promised poll leaves in its slot: what was promised becomes what left, and no run changes.
3. An ended task takes its promises out: no run grows.
4. A creation, a registration, a question, a try or an early poll is let in only if every run that
   it (and its promises) touches holds afterwards.
5. Time alone changes nothing: slots are absolute, and a run that is within the limit stays so.

So a task is polled every `cycle` whatever the durations are, and neither limit is ever overdrawn,
as far as the fault model goes: a request arrives at the vendor before its answer and within `guard`
of leaving (2 s for the period's limit), and the driver is awake in every slot with a promise. Two
arrivals within a second then left within a second and the guard, so they share a run.

To be on the safe side of the model the account is stricter than the invariant: a request counts in
every run while it is unanswered and at its answer afterwards, which is never before it left, so
that what arrives as late as its answer is respected by all that is let in later. A creation counts
twice while it is unanswered: when its answer comes after the first promise, that poll leaves late.
A poll that leaves late keeps its phase, so that the later ones stay where admission saw them; what
it shifts is covered by the requests that are never promised (`Pace.reserve`).

All times are integer microseconds: adding 0.1 s ten times lets eleven requests into one second.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import accumulate
from operator import add, sub
from typing import Final

import attrs

from perfect_async._second import SLOT, Second
from perfect_async.events import SECOND

_LATEST: Final = 2 * SECOND
"""How long after leaving a request may arrive for the period's limit; no patience is longer."""
_SHARE: Final = 600
"""Buckets a period: what the account loses by counting in buckets is one in so many."""
_MOST_BUCKETS: Final = 4_000


@attrs.define
class _Promise:
    """The polls of one task: the next one's slot and the last slot that may hold one."""

    next: int
    last: int
    armed: bool = False


@attrs.define
class _Flying:
    """A request that is not answered: what it counts, and the last slots that must respect it.

    `ends` is that slot if it arrived within the guard, `late` if within the patience.
    """

    left: int
    weight: int
    ends: int
    late: int


class Timetable:
    """The account of requests over time, and the polls that are promised in it.

    `requests` per `period` and `per_second` are the limits; `horizon` is how long a task's promises
    reach at most. `guard` is how long after leaving a request may arrive by the plan; `spared` how
    many fifths of a second's requests are never promised. Asking (`first`, `spare`, `admits`,
    `room`) changes nothing.
    """

    def __init__(self, *, requests: int, period: int, per_second: int, horizon: int) -> None:
        self.requests = requests
        self.per_second = per_second
        self.guard = 0
        self.cycle = 1
        self.spared = 1
        self._horizon = horizon // SLOT
        self._bucket = max(
            1, round(period / _SHARE / SLOT), -(-(period + horizon) // (_MOST_BUCKETS * SLOT))
        )
        # Two requests closer than a period and the latest arrival share a run of so many buckets.
        self._run = -(-(period + _LATEST) // (self._bucket * SLOT)) + 1
        self._base = 0
        self._left: list[int] = []
        self._promised: list[int] = []
        self._total = 0
        self._phases: list[int] = [0]
        self._tasks: dict[int, _Promise] = {}
        self._queue: list[tuple[int, int]] = []
        self._flying: dict[int, _Flying] = {}
        self._weight = 0
        self._second = Second()
        self._per_slot = -(-per_second // (SECOND // SLOT))
        self._spare: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return (
            f"<Timetable {len(self._tasks)} tasks every {self.cycle * SLOT / SECOND:g} s, "
            f"{len(self._flying)} requests unanswered>"
        )

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def reach(self) -> int:
        """Slots of a task's promises that can be in one window."""
        return min(self._run * self._bucket, self._horizon)

    # Requests that leave and are answered.

    def leave(self, number: int, now: int, patience: int, *, creates: bool = False) -> None:
        """Request `number` leaves; it occupies the window until a period after its answer."""
        self._forget(now)
        ends, late = self._second.leave(now, self.guard, patience)
        self._flying[number] = flying = _Flying(now, 2 if creates else 1, ends, late)
        self._weight += flying.weight
        self._spare = None

    def answered(self, number: int, now: int) -> int:
        """Request `number` is answered or given up; returns how long it took."""
        flying = self._flying.pop(number)
        self._weight -= flying.weight
        self._forget(now)
        self._left[self._index(now // SLOT)] += 1
        self._total += 1
        self._second.answered(flying.ends, flying.late, now)
        self._spare = None
        return now - flying.left

    def occupied(self, now: int) -> int:
        """Requests that occupy the window now."""
        here = now // SLOT // self._bucket - self._base
        return sum(self._left[max(0, here - self._run + 1) : here + 1]) + len(self._flying)

    def past(self, now: int) -> tuple[tuple[int, int], ...]:
        """What occupies the window now, as (age in microseconds, requests), the oldest first."""
        here = now // SLOT // self._bucket
        first = max(self._base, here - self._run + 1)
        spent = [
            (max(0, now - (bucket + 1) * self._bucket * SLOT), self._left[bucket - self._base])
            for bucket in range(first, min(here + 1, self._base + len(self._left)))
        ]
        return (*((age, count) for age, count in spent if count), (0, len(self._flying)))

    def remember(self, past: Iterable[tuple[int, int]]) -> None:
        """Requests that left before time 0, as `past` tells them; before anything else."""
        # The account reaches back as far as any window does.
        self._base = -self._run
        self._left = [0] * (self._run + 1)
        self._promised = [0] * (self._run + 1)
        for age, count in past:
            self._left[self._index(-age // SLOT)] += count
            self._total += count
            self._second.remember(age, self.guard, count)

    # Promises.

    def first(self, slot: int | None = None) -> tuple[int, int] | None:
        """The next promised poll of a task that can be polled, as (slot, ref).

        One whose slot is `slot` comes before those that are overdue: it leaves whatever happens, so
        they must see it when they look for room.
        """
        if not self._queue:
            return None
        if slot is not None and self._queue[0][0] < slot:
            for at, ref in self._queue:
                if at == slot and ref in self._tasks and self._tasks[ref].next == at:
                    return at, ref
        return self._queue[0]

    def promise(self, ref: int, slot: int, last: int) -> None:
        """Task `ref` is created in `slot`; it is polled every cycle from then until slot `last`."""
        # The account begins here if it has not begun: not at the last promise.
        self._index(slot)
        self._tasks[ref] = task = _Promise(slot + self.cycle, last)
        self._phases[slot % self.cycle] += 1
        self._count(range(task.next, last + 1, self.cycle), 1)

    def arm(self, ref: int) -> None:
        """Task `ref` has an id and can be polled from now on."""
        task = self._tasks[ref]
        task.armed = True
        if task.next <= task.last:
            heapq.heappush(self._queue, (task.next, ref))

    def keep(self, ref: int, now: int) -> None:
        """A poll of `ref` leaves for its promise; the phase stays, however late it is."""
        task = self._tasks[ref]
        before = task.next
        task.next += self.cycle * max(1, (now // SLOT - before) // self.cycle + 1)
        self._count(range(before, min(task.next, task.last + 1), self.cycle), -1)
        if task.next <= task.last:
            heapq.heappush(self._queue, (task.next, ref))
        # What was promised before no longer holds, wherever it stands in the queue.
        self._tidy()

    def release(self, ref: int) -> None:
        """Task `ref` ended: its promises go."""
        task = self._tasks.pop(ref)
        self._count(range(task.next, task.last + 1, self.cycle), -1)
        self._phases[task.next % self.cycle] -= 1
        self._tidy()

    def next_poll(self, ref: int) -> int:
        """When the next promised poll of `ref` leaves, in microseconds."""
        return self._tasks[ref].next * SLOT

    # What fits.

    def spare(self, now: int) -> int:
        """How many more requests could leave now if every window may hold `requests`."""
        here = now // SLOT // self._bucket
        if self._spare is None or self._spare[0] != here:
            self._spare = here, self.requests - self._peak(here, here + self._run - 1)
        return self._spare[1]

    def admits(self, slot: int, last: int, limit: int) -> bool:
        """Whether a task created in `slot` and polled every cycle until `last` fits."""
        polls = range(slot + self.cycle, last + 1, self.cycle)
        # That a creation counts twice is covered by the requests that `limit` keeps back.
        if self._total + self._weight + 1 + len(polls) <= limit:
            return True
        here = slot // self._bucket
        return self._peak(here, last // self._bucket, polls, self._weight + 1) <= limit

    def room(self, now: int, *, urgent: bool = False, creates: bool = False) -> bool:
        """Whether the second has room for one more request now, beside what is promised.

        A request that is not answered may arrive until the patience with it ends, later than the
        guard; for what is `urgent` it arrived within the guard, where it was counted all along,
        else two polls that hang would keep a third one's task from being tried again.
        """
        slot = now // SLOT
        held = self._second.held(slot, self._reach(), urgent=urgent)
        if held[0] >= self.per_second:
            return False
        ahead = 1
        for k in range(1, len(held)):
            ahead += self._phases[(slot + k) % self.cycle] + (creates and k % self.cycle == 0)
            if ahead + held[k] > self.per_second:
                return False
        return True

    def free(self, slot: int) -> bool:
        """Whether a task may take the phase of `slot` and leave the rest to tries."""
        return self._free(self._phases, slot)

    def next_change(self, now: int) -> int:
        """When a window that is full now may have room again: the next bucket's start."""
        return (now // SLOT // self._bucket + 1) * self._bucket * SLOT

    def recut(self, cycle: int, guard: int, now: int, limit: int) -> bool:
        """Poll every task every `cycle` slots from its next poll on, with `guard`, if that fits.

        Else nothing changes. No task is polled later than it was promised, and each within a cycle.
        """
        if not self._tasks:
            self.cycle, self.guard, self._phases = cycle, guard, [0] * cycle
            return True
        here, slot = now // SLOT // self._bucket, now // SLOT
        before = self.cycle, self.guard, self._phases
        places = {ref: task.next for ref, task in self._tasks.items()}
        horizon = max(task.last for task in self._tasks.values()) // self._bucket
        peak = self._peak(here, horizon)
        self._count_all(-1)
        self.cycle, self.guard, self._phases = cycle, guard, [0] * cycle
        fits = True
        for task in sorted(self._tasks.values(), key=lambda task: task.next):
            # One that is overdue leaves at once all the same, and keeps the new phase afterwards.
            overdue = task.next <= slot
            latest = min(task.next, slot + cycle)
            earliest = latest - cycle if overdue else max(slot, latest - cycle)
            places_left = (at for at in range(latest, earliest, -1) if self._free(self._phases, at))
            if (at := next(places_left, None)) is None:
                fits = False
                break
            task.next = at
            self._phases[at % cycle] += 1
        if fits:
            self._count_all(1)
            # A limit that has shrunk under what was promised is no reason to keep the old plan.
            if self._peak(here, horizon) <= max(limit, peak) and self._seconds_hold(slot):
                self._queue = [
                    (t.next, ref) for ref, t in self._tasks.items() if t.armed and t.next <= t.last
                ]
                heapq.heapify(self._queue)
                return True
            self._count_all(-1)
        self.cycle, self.guard, self._phases = before
        for ref, task in self._tasks.items():
            task.next = places[ref]
        self._count_all(1)
        return False

    # Inside.

    def _peak(self, here: int, last: int, more: range = range(0), flying: int | None = None) -> int:
        """The most that a run of buckets holds, of those that hold `here` or end by `last`."""
        low = max(here - self._run + 1 - self._base, 0)
        high = max(last, here) + 1 - self._base
        both = [*map(add, self._left[low:high], self._promised[low:high])]
        if more:
            both.extend([0] * (high - low - len(both)))
            for poll in more:
                both[poll // self._bucket - self._base - low] += 1
        # What is unanswered counts in every run that holds the present: none after it holds more.
        both.extend([0] * (here - self._base - low + 1 - len(both)))
        both[here - self._base - low] += self._weight if flying is None else flying
        runs = [*accumulate(both, initial=0)]
        # With fewer buckets than a run there is one run, and it holds everything.
        peak: int = max(map(sub, runs[self._run :], runs), default=runs[-1])
        return peak

    def _seconds_hold(self, slot: int) -> bool:
        """Whether what left and what is promised next keep the second's limit together."""
        held = self._second.held(slot, self._reach())
        ahead = accumulate(self._phases[(slot + k) % self.cycle] for k in range(1, len(held)))
        return all(
            here + there <= self.per_second for here, there in zip(held[1:], ahead, strict=True)
        )

    def _reach(self) -> int:
        """Slots in a run that any two requests within a second of each other share."""
        return -(-(SECOND + self.guard) // SLOT) + 1

    def _free(self, phases: list[int], slot: int) -> bool:
        size = len(phases)
        if phases[slot % size] >= self._per_slot:
            return False
        # At one request a second a try finds room between two promises only if both leave some.
        run = self._reach() * (2 if self.per_second == 1 else 1)
        promisable = max(1, self.per_second - max(1, self.spared * self.per_second // 5))
        around = [
            phases[at % size] + ((at - slot) % size == 0)
            for at in range(slot - run + 1, slot + run)
        ]
        runs = [*accumulate(around, initial=0)]
        most: int = max(map(sub, runs[run:], runs))
        return most <= promisable

    def _index(self, slot: int) -> int:
        """The place of `slot` in the account, which grows to hold it."""
        if not self._left:
            self._base = max(self._base, slot // self._bucket)
        # An overdue promise may lie before what is still remembered.
        index = max(0, slot // self._bucket - self._base)
        if (missing := index + 1 - len(self._left)) > 0:
            self._left.extend([0] * missing)
            self._promised.extend([0] * missing)
        return index

    def _count_all(self, by: int) -> None:
        for task in self._tasks.values():
            self._count(range(task.next, task.last + 1, self.cycle), by)

    def _count(self, polls: range, by: int) -> None:
        if polls:
            self._index(polls[-1])
        promised, base, bucket = self._promised, self._base, self._bucket
        for slot in polls:
            promised[max(0, slot // bucket - base)] += by
        self._total += by * len(polls)
        self._spare = None

    def _forget(self, now: int) -> None:
        """Drop what no window from now on can hold."""
        slot = now // SLOT
        self._second.forget(slot, 4 * self._reach())
        old = slot // self._bucket - 2 * self._run - self._base
        if self._left and old > self._run // 2:
            self._total -= sum(self._left[:old])
            overdue = sum(self._promised[:old])
            del self._left[:old], self._promised[:old]
            self._base += old
            if overdue:
                self._promised[self._index(self._base * self._bucket)] += overdue
        self._index(slot)

    def _tidy(self) -> None:
        """Keep the head of the queue true, so that asking for it changes nothing."""
        while self._queue:
            slot, ref = self._queue[0]
            task = self._tasks.get(ref)
            if task is not None and task.next == slot:
                return
            heapq.heappop(self._queue)
