"""Which requests left, which are promised, and what fits beside them.

Time is cut into slots. A task in flight is polled every `cycle` slots, so it keeps its *phase* (slot modulo
cycle) for life, and the polls of all tasks are known until their ends. One account over time holds the
requests that left (where they were answered) and those that are promised (where they will leave).

The invariant, and why nothing is lost and nothing refused while it holds:

1. Any run as long as a period, with a guard for arrival jitter, holds at most the limit's requests; any
   run as long as a second, with that guard, at most the second's; every task in flight has a promise
   every cycle until its end.
2. A promised poll leaves in its slot: what was promised becomes what left, and no run changes its count.
3. An ended task takes its promises out: no run grows.
4. A creation, a registration, a question, a try or an early poll is let in only if every run that it (and
   its promises) touches holds afterwards.
5. Time alone changes nothing: slots are absolute, and a run that is within the limit stays so.

So a task is polled every `cycle` whatever the durations are, and neither limit is ever overdrawn, as far as
the fault model goes: a request arrives at the vendor within `jitter` of leaving or before its answer, and a
promised poll leaves in its slot. A poll that leaves late keeps its phase, so that the later ones stay where
admission saw them; what it shifts is covered by the requests that are never promised (`reserve`).

All times are integer microseconds: adding 0.1 s ten times lets eleven requests into one second.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import accumulate
from operator import add, sub

import attrs

SLOT = 50_000
"""Fine enough that waiting for one is not felt, coarse enough that a wake-up lands in it."""
SECOND = 1_000_000
_JITTER_MOST = SECOND // 2
_SHARE = 300
"""Buckets a period: what the account loses by counting in buckets is one in so many."""
_MOST_BUCKETS = 4_000


@attrs.define
class _Promise:
    """The polls of one task: the next one's slot and the last slot that may hold one."""

    next: int
    last: int
    armed: bool = False


class Timetable:
    """The account of requests over time, and the polls that are promised in it.

    `requests` per `period` and `per_second` are the limits; `horizon` is how long a task's promises reach
    at most. Asking (`first`, `spare`, `admits`, `room`) changes nothing.
    """

    def __init__(self, *, requests: int, period: int, per_second: int, horizon: int) -> None:
        self.requests = requests
        self.per_second = per_second
        self.jitter = 150_000
        self.cycle = 1
        self._bucket = max(
            1, round(period / _SHARE / SLOT), -(-(period + horizon) // (_MOST_BUCKETS * SLOT))
        )
        # Two requests closer than a period and the jitter always share a run of so many buckets.
        self._run = -(-(period + _JITTER_MOST) // (self._bucket * SLOT)) + 1
        self._base = 0
        self._left: list[int] = []
        self._promised: list[int] = []
        self._total = 0
        self._phases: list[int] = [0]
        self._tasks: dict[int, _Promise] = {}
        self._queue: list[tuple[int, int]] = []
        self._flying: dict[int, int] = {}
        self._recent: deque[int] = deque()
        self._per_slot = -(-per_second // (SECOND // SLOT))
        self._spare: tuple[int, int] | None = None

    def __repr__(self) -> str:
        return f"<Timetable {len(self._tasks)} tasks every {self.cycle * SLOT / SECOND:g} s, {len(self._flying)} requests unanswered>"

    def __len__(self) -> int:
        return len(self._tasks)

    # Requests that leave and are answered.

    def leave(self, number: int, now: int) -> None:
        """Request `number` leaves; it occupies the window until a period after its answer."""
        self._forget(now)
        self._flying[number] = now
        self._spare = None

    def answered(self, number: int, now: int) -> int:
        """Request `number` is answered or given up; returns how long it took."""
        left = self._flying.pop(number)
        self._forget(now)
        self._left[self._index(now // SLOT)] += 1
        self._total += 1
        self._recent.append(now)
        self._spare = None
        return now - left

    def occupied(self, now: int) -> int:
        """Requests that occupy the window now."""
        here = now // SLOT // self._bucket - self._base
        return sum(self._left[max(0, here - self._run + 1) : here + 1]) + len(self._flying)

    # Promises.

    def first(self) -> tuple[int, int] | None:
        """The next promised poll of a task that can be polled, as (slot, ref)."""
        return self._queue[0] if self._queue else None

    def promise(self, ref: int, slot: int, last: int) -> None:
        """Task `ref` is created in `slot`; it is polled every cycle from then until slot `last`."""
        self._tasks[ref] = task = _Promise(slot + self.cycle, last)
        self._phases[slot % self.cycle] += 1
        self._count(task, 1)

    def arm(self, ref: int) -> None:
        """Task `ref` has an id and can be polled from now on."""
        task = self._tasks[ref]
        task.armed = True
        if task.next <= task.last:
            heapq.heappush(self._queue, (task.next, ref))

    def keep(self, ref: int, now: int) -> None:
        """A poll of `ref` leaves for its promise; the phase stays, however late it is."""
        task = self._tasks[ref]
        self._count(task, -1)
        task.next += self.cycle * max(1, (now // SLOT - task.next) // self.cycle + 1)
        self._count(task, 1)
        heapq.heappop(self._queue)
        if task.next <= task.last:
            heapq.heappush(self._queue, (task.next, ref))
        self._tidy()

    def release(self, ref: int) -> None:
        """Task `ref` ended: its promises go."""
        task = self._tasks.pop(ref)
        self._count(task, -1)
        self._phases[task.next % self.cycle] -= 1
        self._tidy()

    def next_poll(self, ref: int) -> int:
        """When the next promised poll of `ref` leaves, in microseconds."""
        return self._tasks[ref].next * SLOT

    # What fits.

    def spare(self, now: int) -> int:
        """How many more requests could leave now if every window may hold `requests`; may be negative."""
        here = now // SLOT // self._bucket
        if self._spare is None or self._spare[0] != here:
            low = here - self._run + 1 - self._base
            both = self._both(max(low, 0), here + self._run - self._base)
            runs = [*accumulate(both, initial=0)]
            # With fewer buckets than a run there is one run, and it holds everything.
            peak = max(map(sub, runs[self._run :], runs), default=runs[-1])
            self._spare = (here, self.requests - peak - len(self._flying))
        return self._spare[1]

    def admits(self, slot: int, last: int, limit: int) -> bool:
        """Whether a task created in `slot` and polled every cycle until `last` keeps every window in `limit`."""
        polls = range(slot, max(slot, last) + 1, self.cycle)
        if self._total + len(self._flying) + len(polls) <= limit:
            return True
        here = slot // self._bucket
        low = max(here - self._run + 1 - self._base, 0)
        both = self._both(low, last // self._bucket + 1 - self._base)
        both.extend([0] * (last // self._bucket + 1 - self._base - low - len(both)))
        for poll in polls:
            both[poll // self._bucket - self._base - low] += 1
        both[here - self._base - low] += len(self._flying)
        runs = [*accumulate(both, initial=0)]
        return max(map(sub, runs[self._run :], runs), default=runs[-1]) <= limit

    def room(self, now: int, patience: int) -> bool:
        """Whether the second has room for one more request that leaves now, beside what is promised.

        A request may arrive at any time until its answer, but one that has been silent for longer than
        `patience` has arrived by then: else two that hang would halve the limit for as long as they do.
        """
        slot, run = now // SLOT, self._second()
        before = [slot - (now - at + self.jitter) // SLOT for at in self._recent]
        before += [slot - max(0, now - at - patience) // SLOT for at in self._flying.values()]
        before = sorted((at for at in before if at > slot - run), reverse=True)
        after = [self._phases[(slot + ahead) % self.cycle] for ahead in range(1, run)]
        promised = [*accumulate(after, initial=0)]
        # Every run that holds this slot and reaches back to a request before; the first reaches to none.
        starts = [slot, *before]
        return all(
            1 + held + promised[max(0, start + run - 1 - slot)] <= self.per_second
            for held, start in enumerate(starts)
        )

    def free(self, slot: int) -> bool:
        """Whether a task may take the phase of `slot`, leaving a fifth of every second unpromised."""
        return self._free(self._phases, slot)

    def next_change(self, now: int) -> int:
        """When a window that is full now may have room again: the next bucket's start."""
        return (now // SLOT // self._bucket + 1) * self._bucket * SLOT

    def recut(self, cycle: int, now: int, limit: int) -> bool:
        """Poll every task every `cycle` slots from its next poll on, if that fits; else nothing changes.

        No task is polled later than it was promised.
        """
        if not self._tasks:
            self.cycle, self._phases = cycle, [0] * cycle
            return True
        before = self.cycle, self._phases, {ref: task.next for ref, task in self._tasks.items()}
        for task in self._tasks.values():
            self._count(task, -1)
        self.cycle, self._phases = cycle, [0] * cycle
        fits = True
        for task in sorted(self._tasks.values(), key=lambda task: task.next):
            # Overdue ones leave at once; they take their new phase as they are.
            slot = task.next
            while slot > now // SLOT and not self._free(self._phases, slot):
                slot -= 1
            fits = fits and (slot > now // SLOT or task.next <= now // SLOT)
            task.next = slot
            self._phases[slot % cycle] += 1
        for task in self._tasks.values():
            self._count(task, 1)
        horizon = max(task.last for task in self._tasks.values())
        # Fewer polls are better than more even where the limit has shrunk under what was promised.
        if not fits or (cycle < len(before[1]) and self._peak(now, horizon) > limit):
            for task in self._tasks.values():
                self._count(task, -1)
            self.cycle, self._phases, places = before
            for ref, task in self._tasks.items():
                task.next = places[ref]
                self._count(task, 1)
            return False
        self._queue = [
            (t.next, ref) for ref, t in self._tasks.items() if t.armed and t.next <= t.last
        ]
        heapq.heapify(self._queue)
        return True

    # Inside.

    def _peak(self, now: int, last: int) -> int:
        low = max(now // SLOT // self._bucket - self._run + 1 - self._base, 0)
        runs = [*accumulate(self._both(low, last // self._bucket + 1 - self._base), initial=0)]
        return max(map(sub, runs[self._run :], runs), default=runs[-1]) + len(self._flying)

    def _second(self) -> int:
        """Slots in a run that any two requests within a second of each other share."""
        return -(-(SECOND + self.jitter) // SLOT) + 1

    def _free(self, phases: list[int], slot: int) -> bool:
        size = len(phases)
        if phases[slot % size] >= self._per_slot:
            return False
        run = self._second()
        if run >= size:
            return sum(phases) < self._promisable
        around = [phases[at % size] for at in range(slot - run + 1, slot + run)]
        runs = [*accumulate(around, initial=0)]
        return max(map(sub, runs[run:], runs), default=0) < self._promisable

    @property
    def _promisable(self) -> int:
        """Promises a second; the rest is for tries."""
        return max(1, self.per_second - self.per_second // 5)

    def _both(self, low: int, high: int) -> list[int]:
        return [*map(add, self._left[low:high], self._promised[low:high])]

    def _index(self, slot: int) -> int:
        """The place of `slot` in the account, which grows to hold it."""
        if not self._left:
            self._base = slot // self._bucket
        index = slot // self._bucket - self._base
        if (missing := index + 1 - len(self._left)) > 0:
            self._left.extend([0] * missing)
            self._promised.extend([0] * missing)
        return index

    def _count(self, task: _Promise, by: int) -> None:
        polls = range(task.next, task.last + 1, self.cycle)
        if polls:
            self._index(polls[-1])
        promised, base, bucket = self._promised, self._base, self._bucket
        for slot in polls:
            # An overdue promise may lie before what is still remembered.
            promised[max(0, slot // bucket - base)] += by
        self._total += by * len(polls)
        self._spare = None

    def _forget(self, now: int) -> None:
        """Drop what no window from now on can hold."""
        while self._recent and self._recent[0] <= now - SECOND - self.jitter:
            self._recent.popleft()
        here = self._index(now // SLOT)
        if (old := here - 2 * self._run) > self._run // 2:
            self._total -= sum(self._left[:old])
            overdue = sum(self._promised[:old])
            del self._left[:old], self._promised[:old]
            self._promised[0] += overdue
            self._base += old

    def _tidy(self) -> None:
        """Keep the head of the queue true, so that asking for it changes nothing."""
        while self._queue:
            slot, ref = self._queue[0]
            task = self._tasks.get(ref)
            if task is not None and task.next == slot:
                return
            heapq.heappop(self._queue)
