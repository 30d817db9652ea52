"""The timetable: which requests left, which polls are reserved, and what fits beside them.

Time is cut into slots. A task in flight is polled every `cycle` slots, so it keeps its *phase*
(slot modulo cycle) for life, and the polls of all tasks are known until their ends.

The invariant, and why no task is lost and no request is refused while it holds:

1. Any run as long as a period and 2 s holds at most the limit's requests, any run as long as a
   second and the `guard` at most the second's. Each request counts in the slot in which it left
   or is reserved to leave. Every task in flight has a reserved poll every cycle until its end.
2. A reserved poll leaves in its slot: it counts there before and after, and no run changes.
3. An ended task frees its reserved polls: no run grows.
4. A creation, a registration, a query, a retry or an early poll is admitted only if every run that
   it (and its reserved polls) touches holds afterwards.
5. Time alone changes nothing: slots are absolute, and a run that is within the limit stays so.

So a task is polled every `cycle` whatever the durations are, and neither limit is ever overdrawn,
as far as the fault model goes: a request arrives at the vendor before its answer and within `guard`
of leaving (2 s for the period's limit), and the driver is awake in every slot with a reserved poll.
Two arrivals within a second then left within a second and the guard, so they share a run.

The account is stricter than the invariant, to be on the safe side of the model. A request counts in
every run while it is unanswered, and at its answer afterwards, which is never before it left. So
requests admitted later respect one that arrives as late as its answer. A creation counts twice
while it is unanswered: when its answer comes after the first reserved poll, that poll leaves late.
A poll that leaves late keeps its phase, so that the later ones stay where admission placed them;
the requests that are never reserved (`Pacer.reserve`) cover the shift.

All times are integer microseconds: adding 0.1 s ten times lets eleven requests into one second.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from itertools import accumulate

import attrs

from perfect_async._ratelimit.slots import PhaseTable, SecondWindow
from perfect_async._ratelimit.window import SlidingWindow
from perfect_async._time import NEVER, SECOND, SLOT


@attrs.define
class _Promise:
    """The reserved polls of one task: the next one's slot and the last slot that may hold one."""

    next: int
    last: int
    armed: bool = False


class Timetable:
    """The account of requests over time, and the polls that are reserved in it.

    `requests` per `period` and `per_second` are the limits; `horizon` is how far a task's reserved
    polls reach at most. `guard` is how long after leaving a request may arrive by the plan.
    `spared` requests of a second, or so many fifths of them if that is more, are never reserved.
    `queue` is a heap of reserved polls as (slot, ref), whose head is valid. The queries (`due`,
    `wakes`, `admits`, `room`) change nothing.
    """

    def __init__(self, *, requests: int, period: int, per_second: int, horizon: int) -> None:
        self.account = SlidingWindow(requests=requests, period=period, horizon=horizon)
        self.per_second = per_second
        self._guard, self._spared = 0, 1
        self.cycle = 1
        self._tasks: dict[int, _Promise] = {}
        self.queue: list[tuple[int, int]] = []
        # The unanswered requests: when each left, its weight, and the last slots that must respect
        # it if it arrived within the guard and if within the patience.
        self._flying: dict[int, tuple[int, int, int, int]] = {}
        self._second = SecondWindow()
        self._per_slot = -(-per_second // (SECOND // SLOT))
        self._phases = PhaseTable(1, self._per_slot)
        self._bound()

    def __repr__(self) -> str:
        return (
            f"<Timetable {len(self._tasks)} tasks every {self.cycle * SLOT / SECOND:g} s, "
            f"{len(self._flying)} requests unanswered>"
        )

    def __len__(self) -> int:
        return len(self._tasks)

    # Requests that leave and are answered.

    def leave(self, number: int, now: int, patience: int, *, creates: bool = False) -> None:
        """Record that request `number` leaves; it occupies the window until a period after its
        answer.
        """
        self.account.forget(now)
        ends, late = self._second.leave(now, self._guard, patience)
        weight = 2 if creates else 1
        self._flying[number] = now, weight, ends, late
        self.account.unanswered += weight

    def answered(self, number: int, now: int) -> int:
        """Record that request `number` is answered or given up; return how long it took."""
        left, weight, ends, late = self._flying.pop(number)
        self.account.unanswered -= weight
        self.account.answered(now)
        self._second.answered(ends, late, now)
        return now - left

    def asking(self, since: int) -> bool:
        """Return whether a request that left after `since` is unanswered."""
        return any(left > since for left, _, _, _ in self._flying.values())

    def occupied(self, now: int) -> int:
        """Return how many requests occupy the window now."""
        return self.account.occupied(now) + len(self._flying)

    def past(self, now: int) -> tuple[tuple[int, int], ...]:
        """Return the requests in the window as (age in microseconds, requests), the oldest
        first.
        """
        return (*self.account.past(now), (0, len(self._flying)))

    def remember(self, past: Iterable[tuple[int, int]]) -> None:
        """Add requests that left before time 0, as `past` returned them; call this before all
        else.
        """
        past = tuple(past)
        self.account.remember(past)
        for age, count in past:
            self._second.remember(age, self.guard, count)

    # Reserved polls.

    def wakes(self) -> int:
        """Return when the next reserved poll of a task that can be polled leaves."""
        return self.queue[0][0] * SLOT if self.queue else NEVER

    def due(self, slot: int) -> tuple[int, int] | None:
        """Return the reserved poll to send in `slot`, as (its slot, ref), None where none is due.

        One whose slot is `slot` comes before overdue ones: it leaves in any case, so the overdue
        ones must count it when they look for room.
        """
        if not self.queue or self.queue[0][0] > slot:
            return None
        if self.queue[0][0] < slot:
            for at, ref in self.queue:
                if at == slot and self._holds(at, ref):
                    return at, ref
        return self.queue[0]

    def promise(self, ref: int, slot: int, last: int) -> None:
        """Reserve polls of task `ref` every cycle after `slot` until slot `last`."""
        # The account begins here if it has not begun, and not at the last reserved poll.
        self.account.index(slot)
        self._tasks[ref] = task = _Promise(slot + self.cycle, last)
        self._phases.take(slot)
        self.account.promise(ref, self._polls(task))

    def arm(self, ref: int) -> None:
        """Allow polls of task `ref`, which has an id from now on."""
        task = self._tasks[ref]
        task.armed = True
        self._enqueue(ref, task)

    def keep(self, ref: int, now: int) -> None:
        """Use up the reserved poll of `ref` that leaves now; the phase stays, however late it
        is.
        """
        task = self._tasks[ref]
        before = task.next
        task.next += self.cycle * max(1, (now // SLOT - before) // self.cycle + 1)
        self.account.promise(ref, self._polls(task))
        self._enqueue(ref, task)
        # Entries of the queue for earlier reserved polls are no longer valid.
        self._tidy()

    def release(self, ref: int) -> None:
        """Free the reserved polls of task `ref`, which ended."""
        task = self._tasks.pop(ref)
        self.account.promise(ref, range(0))
        self._phases.give(task.next)
        self._tidy()

    def extend(self, ref: int, last: int, slot: int, limit: int) -> bool:
        """Reserve polls of `ref` until slot `last` (which may be sooner than now) if they fit.

        `slot` is the present one. Where they do not fit nothing changes.
        """
        task = self._tasks[ref]
        following, lapsed = task.next, task.next > task.last
        if lapsed:
            # In its phase, but not in slots that are over.
            following += self.cycle * max(0, -(-(slot - following) // self.cycle))
        kept = following + self.cycle * max(0, (task.last - following) // self.cycle + 1)
        more = range(kept, last + 1, self.cycle)
        if more and not self.account.holds(slot, more, limit):
            return False
        task.next, task.last = following, last
        self.account.promise(ref, self._polls(task))
        if lapsed:
            self._enqueue(ref, task)
        self._tidy()
        return True

    def shift(self, ref: int, to: int, slot: int, limit: int) -> None:
        """Move the next reserved poll of `ref` from its slot to the later slot `to`, if that fits.

        This is for a task whose lease was renewed between two reserved polls: the phase moves with
        it. `slot` is the present one.
        """
        task = self._tasks[ref]
        if not task.next < to <= task.last:
            return
        moved = range(to, task.last + 1, self.cycle)
        self._phases.give(task.next)
        if self.free(to) and self.account.replace(ref, moved, slot, limit):
            task.next = to
            self._enqueue(ref, task)
        self._phases.take(task.next)
        self._tidy()

    def next_poll(self, ref: int) -> int:
        """Return when the next reserved poll of `ref` leaves, in microseconds."""
        return self._tasks[ref].next * SLOT

    def lapsed(self, ref: int) -> bool:
        """Return whether `ref` has no reserved poll any longer."""
        task = self._tasks[ref]
        return task.next > task.last

    def polled_by(self, ref: int, at: int) -> bool:
        """Return whether the next poll of `ref` is reserved and leaves by `at`."""
        task = self._tasks[ref]
        return task.next <= task.last and task.next * SLOT <= at

    # What fits.

    def admits(self, slot: int, origin: int, last: int, limit: int) -> bool:
        """Return whether a task created in `slot` and polled from `origin` to `last` fits."""
        polls = range(origin + self.cycle, last + 1, self.cycle)
        # The requests that `limit` keeps back cover that a creation counts twice.
        return self.account.holds(slot, polls, limit, leaving=1)

    def would_admit(
        self, slot: int, origin: int, last: int, ends: Mapping[int, int], limit: int
    ) -> bool:
        """Return the same as `admits` if every task were polled until its slot in `ends`."""
        newcomer = range(origin + self.cycle, last + 1, self.cycle)
        return self.account.would_hold(slot, [newcomer, *self._until(ends)], limit, leaving=1)

    def would_keep(self, slot: int, ends: Mapping[int, int], limit: int) -> bool:
        """Return whether one more request fits in `slot` if tasks were polled until their
        `ends`.
        """
        return self.account.would_hold(slot, self._until(ends), limit, leaving=1)

    def ample(self, now: int) -> bool:
        """Return whether the second surely has room: quick; False does not mean that it is full."""
        held = self._second.count(now // SLOT)
        return held + self._phases.within(self._reach) + 3 <= self.per_second

    def room(self, now: int, *, urgent: bool = False, creates: bool = False, kept: int = 0) -> bool:
        """Return whether the second has room for one more request now.

        The request must fit beside the reserved ones and `kept` others. An unanswered request may
        arrive until the patience with it ends, later than the guard. An `urgent` request assumes
        that it arrived within the guard, where it was counted all along; otherwise two unanswered
        polls would block the retry for a third task.
        """
        slot, most = now // SLOT, self.per_second - kept
        held = self._second.held(slot, self._reach, urgent=urgent)
        if held[0] >= most:
            return False
        ahead = 1
        for k, promised in enumerate(self._phases.ahead(slot, len(held))[1:], start=1):
            ahead += promised + (creates and k % self.cycle == 0)
            if ahead + held[k] > most:
                return False
        return True

    def lends(self, now: int, slack: int) -> bool:
        """Return whether an unreserved request may leave now and a retry still finds its place.

        The last place of a second belongs to retries. It is lent where no retry can need it before
        it is free again: nothing is unanswered, and the next reserved poll leaves so late that the
        retry after it, which has `slack` slots, comes in time.
        """
        if self.room(now, kept=1):
            return True
        if self._flying or not self.room(now):
            return False
        return not any(self._phases.ahead(now // SLOT, self._reach - slack + 1)[1:])

    def free(self, slot: int) -> bool:
        """Return whether a task may take the phase of `slot` and leave the rest to retries."""
        return self._phases.free(slot, *self._bounds)

    def origin(self, slot: int, *, exists: bool = False) -> int | None:
        """The latest slot with a free phase, up to a quarter of a cycle before `slot`.

        A task that `exists` already takes a place that is kept for retries rather than none, while
        one is left.

        A task created in `slot` and polled every cycle after that one is polled sooner than it must
        be, by as much, once.
        """
        run, most = self._bounds
        found = self._phases.latest(slot, self.cycle // 4, run, most)
        if found is None and exists:
            found = self._phases.latest(slot, self.cycle // 4, run, max(most, self.per_second - 1))
        return found

    def recut(self, cycle: int, guard: int, now: int, limit: int) -> bool:
        """Poll every task every `cycle` slots from its next poll on, with `guard`, if that fits.

        Otherwise nothing changes. No task is polled later than was reserved, and each within a
        cycle.
        """
        if not self._tasks:
            self.cycle, self.guard = cycle, guard
            self._phases = PhaseTable(cycle, self._per_slot)
            return True
        slot = now // SLOT
        before = self.cycle, self.guard, self._phases
        places = {ref: task.next for ref, task in self._tasks.items()}
        horizon = max(slot, *(task.last for task in self._tasks.values()))
        peak = self.account.peak(slot, horizon)
        self.cycle, self.guard = cycle, guard
        self._phases = PhaseTable(cycle, self._per_slot)
        fits = True
        for task in sorted(self._tasks.values(), key=lambda task: task.next):
            # An overdue poll leaves at once all the same; its task keeps the new phase afterwards.
            overdue = task.next <= slot
            latest = min(task.next, slot + cycle)
            earliest = latest - cycle if overdue else max(slot, latest - cycle)
            at = self._phases.latest(latest, latest - earliest - 1, *self._bounds)
            if at is None:
                fits = False
                break
            task.next = at
            self._phases.take(at)
        if fits:
            self._promise_all()
            # The old plan is not kept only because the limit has shrunk below the reserved polls.
            if self.account.peak(slot, horizon) <= max(limit, peak) and self._seconds_hold(slot):
                self.queue = [
                    (t.next, ref) for ref, t in self._tasks.items() if t.armed and t.next <= t.last
                ]
                heapq.heapify(self.queue)
                return True
        self.cycle, self.guard, self._phases = before
        for ref, task in self._tasks.items():
            task.next = places[ref]
        self._promise_all()
        return False

    # Internals.

    def _seconds_hold(self, slot: int) -> bool:
        """Return whether past requests and the next reserved ones keep the second's limit
        together.
        """
        held = self._second.held(slot, self._reach)
        ahead = accumulate(self._phases.ahead(slot, len(held))[1:])
        return all(
            here + there <= self.per_second for here, there in zip(held[1:], ahead, strict=True)
        )

    @property
    def guard(self) -> int:
        return self._guard

    @guard.setter
    def guard(self, guard: int) -> None:
        self._guard = guard
        self._bound()

    @property
    def spared(self) -> int:
        return self._spared

    @spared.setter
    def spared(self, spared: int) -> None:
        if spared != self._spared:
            self._spared = spared
            self._bound()

    def _bound(self) -> None:
        # Slots in a run that any two requests within a second of each other share.
        self._reach = -(-(SECOND + self._guard) // SLOT) + 1
        # The run in which reserved polls are bounded, and by how many. At one request a second a
        # retry finds room between two reserved polls only if both leave some.
        run = self._reach * (2 if self.per_second == 1 else 1)
        kept = max(self._spared, self._spared * self.per_second // 5)
        most = max(1, self.per_second - kept)
        self._bounds = run, most

    def _polls(self, task: _Promise) -> range:
        return range(task.next, task.last + 1, self.cycle)

    def _until(self, ends: Mapping[int, int]) -> list[range]:
        return [range(task.next, ends[ref] + 1, self.cycle) for ref, task in self._tasks.items()]

    def _enqueue(self, ref: int, task: _Promise) -> None:
        if task.armed and task.next <= task.last:
            heapq.heappush(self.queue, (task.next, ref))

    def _promise_all(self) -> None:
        for ref, task in self._tasks.items():
            self.account.promise(ref, self._polls(task))

    def _tidy(self) -> None:
        """Keep the head of the queue valid, so that reading it changes nothing."""
        while self.queue and not self._holds(*self.queue[0]):
            heapq.heappop(self.queue)

    def _holds(self, slot: int, ref: int) -> bool:
        """Return whether an entry of the queue is still reserved."""
        task = self._tasks.get(ref)
        return task is not None and task.next == slot <= task.last
