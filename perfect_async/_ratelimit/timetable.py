"""Account for the requests that left and the polls that are reserved, and say what else fits.

Time is cut into slots. A task in flight is polled every `cycle` slots, so it keeps its *phase*
(slot modulo cycle) for life, and the polls of all tasks are known until their ends.

The invariant, and why nothing is lost and nothing refused while it holds:

1. Any run as long as a period and 2 s holds at most the limit's requests, any run as long as a
   second and the `guard` at most the second's, each request counted in the slot in which it left
   or is reserved to leave; every task in flight has a reservation every cycle until its end.
2. A reserved poll leaves in its slot: what was reserved becomes what left, and no run changes.
3. An ended task takes its reservations out: no run grows.
4. A creation, a registration, a query, a retry or an early poll leaves only if every run that
   it (and its reservations) touches holds afterwards.
5. Time alone changes nothing: slots are absolute, and a run that is within the limit stays so.

So a task is polled every `cycle` whatever the durations are, and neither limit is ever overdrawn,
as far as the fault model goes: a request arrives at the vendor before its answer and within `guard`
of leaving (2 s for the period's limit), and the driver is awake in every slot with a reservation.
Two arrivals within a second then left within a second and the guard, so they share a run.

To be on the safe side of the model the account is stricter than the invariant: a request counts in
every run while it is unanswered and at its answer afterwards, which is never before it left, so
that what arrives as late as its answer is respected by all that is let in later. A creation counts
twice while it is unanswered: when its answer comes after the first reservation, that poll leaves
late. A poll that leaves late keeps its phase, so that the later ones stay where admission saw them;
what it shifts is covered by the requests that are never reserved (`Pacer.reserve`).

All times are integer microseconds: adding 0.1 s ten times lets eleven requests into one second.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Final

import attrs

from perfect_async._ratelimit.slots import PhaseTable, SecondWindow
from perfect_async._ratelimit.window import SlidingWindow
from perfect_async._time import NEVER, SECOND, SLOT

RESCUE_AFTER: Final = 6
"""Slots after which a poll that another member has not sent is sent for it: 0.3 s."""


@attrs.define
class _Reservation:
    """The polls of one task: the next one's slot and the last slot that may hold one."""

    next: int
    last: int
    armed: bool = False


class Timetable:
    """The account of requests over time, and the polls that are reserved in it.

    `requests` per `period` and `per_second` are the limits; `horizon` is how long a task's
    reservations reach at most. `guard` is how long after leaving a request may arrive by the plan.
    `spared` requests of a second, or so many fifths of them if that is more, are never reserved.
    `queue` is a heap of reserved polls as (slot, ref), whose head is true. Asking (`due`, `wakes`,
    `admits`, `room`) changes nothing.
    """

    def __init__(self, *, requests: int, period: int, per_second: int, horizon: int) -> None:
        self.account = SlidingWindow(requests=requests, period=period, horizon=horizon)
        self._horizon = horizon
        self.per_second = per_second
        self._guard, self._spared = 0, 1
        self.cycle = 1
        self._tasks: dict[int, _Reservation] = {}
        self._foreign: set[int] = set()
        self.queue: list[tuple[int, int]] = []
        # What is not answered: when it left, what it counts, and the last slots that must respect
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
        """Record that `number` leaves; it occupies the window until a period after its answer."""
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

    def withdraw(self, number: int, now: int) -> int:
        """Take back request `number`, which did not leave after all; return how long ago it was
        to leave.
        """
        left, weight, ends, late = self._flying.pop(number)
        self.account.unanswered -= weight
        self._second.answered(ends, late, now)
        return now - left

    def asking(self, since: int) -> bool:
        """Whether a request that left after `since` is unanswered."""
        return any(left > since for left, _, _, _ in self._flying.values())

    def occupied(self, now: int) -> int:
        """Requests that occupy the window now."""
        return self.account.occupied(now) + len(self._flying)

    def past(self, now: int) -> tuple[tuple[int, int], ...]:
        """What occupies the window now, as (age in microseconds, requests), the oldest first."""
        return (*self.account.past(now), (0, len(self._flying)))

    def remember(self, past: Iterable[tuple[int, int]]) -> None:
        """Take over requests that left before time 0, as `past` lists them; call it first."""
        past = tuple(past)
        self.account.remember(past)
        for age, count in past:
            self._second.remember(age, self.guard, count)

    # Reservations.

    def wakes(self) -> int:
        """When the next reserved poll of a task that can be polled leaves."""
        return self.queue[0][0] * SLOT if self.queue else NEVER

    def due(self, slot: int) -> tuple[int, int] | None:
        """The reserved poll to send in `slot`, as (its slot, ref), None where none is due.

        One whose slot is `slot` comes before overdue ones: it leaves whatever happens, so they must
        see it when they look for room.
        """
        if not self.queue or self.queue[0][0] > slot:
            return None
        if self.queue[0][0] < slot:
            for at, ref in self.queue:
                if at == slot and self._holds(at, ref):
                    return at, ref
        return self.queue[0]

    def reserve(self, ref: int, slot: int, last: int) -> None:
        """Reserve polls of task `ref` every cycle after `slot` until slot `last`."""
        # The account begins here if it has not begun: not at the last reservation.
        self.account.index(slot)
        self._tasks[ref] = task = _Reservation(slot + self.cycle, last)
        self._phases.take(slot)
        self.account.reserve(ref, self._polls(task))

    def arm(self, ref: int) -> None:
        """Let task `ref` be polled from now on: it has an id."""
        task = self._tasks[ref]
        task.armed = True
        self._enqueue(ref, task)

    def keep(self, ref: int, now: int) -> None:
        """Record that the reserved poll of `ref` leaves; its phase stays, however late it is."""
        task = self._tasks[ref]
        before = task.next
        task.next += self.cycle * max(1, (now // SLOT - before) // self.cycle + 1)
        self.account.reserve(ref, self._polls(task))
        self._enqueue(ref, task)
        # What was reserved before no longer holds, wherever it stands in the queue.
        self._tidy()

    def release(self, ref: int) -> None:
        """Free what is reserved for task `ref`."""
        task = self._tasks.pop(ref)
        self._foreign.discard(ref)
        self.account.reserve(ref, range(0))
        self._phases.give(task.next)
        self._tidy()

    def extend(self, ref: int, last: int, slot: int, limit: int) -> bool:
        """Reserve polls of `ref` until slot `last` (may be sooner than now) if they fit.

        `slot` is the present one. Where they do not fit nothing changes.
        """
        task = self._tasks[ref]
        following, lapsed = task.next, task.next > task.last
        if lapsed:
            # In its phase, but not for what is over.
            following += self.cycle * max(0, -(-(slot - following) // self.cycle))
        kept = following + self.cycle * max(0, (task.last - following) // self.cycle + 1)
        more = range(kept, last + 1, self.cycle)
        if more and not self.account.holds(slot, more, limit):
            return False
        task.next, task.last = following, last
        self.account.reserve(ref, self._polls(task))
        if lapsed:
            self._enqueue(ref, task)
        self._tidy()
        return True

    def shift(self, ref: int, to: int, slot: int, limit: int) -> None:
        """Move the next reserved poll of `ref` to the later slot `to`, if that fits.

        For a task whose lease was renewed between two reservations: the phase moves with it. `slot`
        is the present one.
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
        """When the next reserved poll of `ref` leaves, in microseconds."""
        return self._tasks[ref].next * SLOT

    def lapsed(self, ref: int) -> bool:
        """Whether nothing is reserved for `ref` any longer."""
        task = self._tasks[ref]
        return task.next > task.last

    def polled_by(self, ref: int, at: int) -> bool:
        """Whether the next poll of `ref` is reserved, to leave by `at`."""
        task = self._tasks[ref]
        return task.next <= task.last and task.next * SLOT <= at

    # What other members of the key reserved: their tasks count here, and are never due.

    def mirror(self, ref: int, following: int, last: int) -> None:
        """Reserve one poll a cycle of `ref` from slot `following` to `last`, fitting or not.

        Another member reserved them: for a task of its own, or for one of ours that it polled.
        """
        task = self._tasks.get(ref)
        if task is None:
            self._tasks[ref] = task = _Reservation(following, last)
            self._foreign.add(ref)
        else:
            self._phases.give(task.next)
        task.next, task.last = following, last
        self._phases.take(following)
        self.account.reserve(ref, self._polls(task))
        self._enqueue(ref, task)
        self._tidy()

    def set_limits(self, *, requests: int, period: int, per_second: int) -> None:
        """Count by other limits from now on: what has left and is reserved stays.

        Where the limits shrink, more may be reserved than fits; then nothing new does.
        """
        before = self.account
        self.account = SlidingWindow(requests=requests, period=period, horizon=self._horizon)
        self.account.copy(before)
        self.per_second = per_second
        self._per_slot = -(-per_second // (SECOND // SLOT))
        self._phases = PhaseTable(self.cycle, self._per_slot)
        for task in self._tasks.values():
            self._phases.take(task.next)
        self._reserve_all()
        self._bound()

    def take_over(self, cycle: int, guard: int, places: Mapping[int, tuple[int, int]]) -> None:
        """Poll every task by the plan of another member: every `cycle` slots, with `guard`.

        `places` has the next and the last slot of each task, as far as that member knew it.
        """
        self.cycle, self.guard = cycle, guard
        self._phases = PhaseTable(cycle, self._per_slot)
        for ref, task in self._tasks.items():
            task.next, task.last = places.get(ref, (task.next, task.last))
            self._phases.take(task.next)
        self._reserve_all()
        self._requeue()

    def reserved(self, ref: int) -> tuple[int, int]:
        """The slot of the next reserved poll of `ref`, and the last one that may hold one."""
        task = self._tasks[ref]
        return task.next, task.last

    def foreign_due(self, slot: int) -> int:
        """How many polls of other members are about to leave in `slot`, or are a little late."""
        return sum(
            slot - RESCUE_AFTER < task.next <= min(slot, task.last)
            for task in map(self._tasks.__getitem__, self._foreign)
        )

    # What fits.

    def admits(self, slot: int, origin: int, last: int, limit: int) -> bool:
        """Whether a task created in `slot` and polled every cycle from `origin` to `last` fits."""
        polls = range(origin + self.cycle, last + 1, self.cycle)
        # That a creation counts twice is covered by the requests that `limit` keeps back.
        return self.account.holds(slot, polls, limit, leaving=1)

    def would_admit(
        self, slot: int, origin: int, last: int, ends: Mapping[int, int], limit: int
    ) -> bool:
        """The same if every task were polled until the slot that `ends` names for it."""
        newcomer = range(origin + self.cycle, last + 1, self.cycle)
        return self.account.would_hold(slot, [newcomer, *self._until(ends)], limit, leaving=1)

    def would_keep(self, slot: int, ends: Mapping[int, int], limit: int) -> bool:
        """Whether one more request fits in `slot` if every task were polled until its of `ends`."""
        return self.account.would_hold(slot, self._until(ends), limit, leaving=1)

    def ample(self, now: int) -> bool:
        """Whether the second does not bind: a quick check; False is not certain."""
        held = self._second.count(now // SLOT)
        return held + self._phases.within(self._reach) + 3 <= self.per_second

    def room(self, now: int, *, urgent: bool = False, creates: bool = False, kept: int = 0) -> bool:
        """Whether the second has room for one more request now, beside what is reserved, and for
        `kept` others.

        A request that is not answered may arrive until the patience with it ends, later than the
        guard; for what is `urgent` it arrived within the guard, where it was counted all along,
        else two polls that hang would keep a third one's task from being tried again.
        """
        slot = now // SLOT
        # A poll of another member in this slot has not left yet, and leaves whatever happens.
        most = self.per_second - kept - (self.foreign_due(slot) if self._foreign else 0)
        held = self._second.held(slot, self._reach, urgent=urgent)
        if held[0] >= most:
            return False
        ahead = 1
        for k, reserved in enumerate(self._phases.ahead(slot, len(held))[1:], start=1):
            ahead += reserved + (creates and k % self.cycle == 0)
            if ahead + held[k] > most:
                return False
        return True

    def lends(self, now: int, slack: int) -> bool:
        """Whether a request that is not reserved may leave now and a retry still finds its place.

        The last place of a second is kept for a retry. It is lent if no retry can need it before it
        is free again: nothing is unanswered, and the next reserved poll leaves so late that a retry
        of it, which has `slack` slots, comes in time.
        """
        if self.room(now, kept=1):
            return True
        if self._flying or not self.room(now):
            return False
        return not any(self._phases.ahead(now // SLOT, self._reach - slack + 1)[1:])

    def free(self, slot: int) -> bool:
        """Whether a task may take the phase of `slot` and leave the rest to tries."""
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

        Else nothing changes. No task is polled later than it was reserved, and each within a cycle.
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
            # One that is overdue leaves at once all the same, and keeps the new phase afterwards.
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
            self._reserve_all()
            # A limit that has shrunk under what was reserved is no reason to keep the old plan.
            if self.account.peak(slot, horizon) <= max(limit, peak) and self._seconds_hold(slot):
                self._requeue()
                return True
        self.cycle, self.guard, self._phases = before
        for ref, task in self._tasks.items():
            task.next = places[ref]
        self._reserve_all()
        return False

    # Inside.

    def _seconds_hold(self, slot: int) -> bool:
        """Whether what left and what is reserved next keep the second's limit together."""
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
        # The run in which reservations are bounded, and by how many. At one request a second a try
        # finds room between two reservations only if both leave some.
        run = self._reach * (2 if self.per_second == 1 else 1)
        kept = max(self._spared, self._spared * self.per_second // 5)
        most = max(1, self.per_second - kept)
        self._bounds = run, most

    def _polls(self, task: _Reservation) -> range:
        return range(task.next, task.last + 1, self.cycle)

    def _until(self, ends: Mapping[int, int]) -> list[range]:
        return [range(task.next, ends[ref] + 1, self.cycle) for ref, task in self._tasks.items()]

    def _enqueue(self, ref: int, task: _Reservation) -> None:
        if task.armed and task.next <= task.last:
            heapq.heappush(self.queue, (task.next, ref))

    def _requeue(self) -> None:
        self.queue = [
            (task.next, ref)
            for ref, task in self._tasks.items()
            if task.armed and task.next <= task.last
        ]
        heapq.heapify(self.queue)

    def _reserve_all(self) -> None:
        for ref, task in self._tasks.items():
            self.account.reserve(ref, self._polls(task))

    def _tidy(self) -> None:
        """Keep the head of the queue true, so that asking for it changes nothing."""
        while self.queue and not self._holds(*self.queue[0]):
            heapq.heappop(self.queue)

    def _holds(self, slot: int, ref: int) -> bool:
        """Whether what the queue says is still reserved."""
        task = self._tasks.get(ref)
        return task is not None and task.next == slot <= task.last
