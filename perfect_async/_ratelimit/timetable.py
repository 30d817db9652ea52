"""Count the requests that left and the polls that are reserved, and decide which others fit.

Time is divided into slots. A running task is polled every `cycle` slots, so it keeps its *phase*
(slot modulo cycle) as long as it runs, and the polls of all tasks are known until their ends.

No task is lost and no request is refused while this invariant holds:

1. Any run as long as a period and 2 s holds at most the limit's requests. Any run as long as a
   second and the `guard` holds at most the requests per second. Each request counts in the slot in
   which it left or is reserved to leave. Every running task has a reservation every cycle until its
   end.
2. A reserved poll leaves in its slot. The reservation becomes a request, and no run changes.
3. A task that ends frees its reservations, and no run grows.
4. A creation, a registration, a query, a retry or an early poll leaves only if every run that it
   (and its reservations) touches is within the limit afterwards.
5. The passing of time changes no run, since slots are absolute.

Each task is therefore polled every `cycle`, whatever the durations are, and neither limit is ever
exceeded. The fault model is this: a request arrives at the vendor before its answer and within
`guard` of leaving (2 s for the period's limit), and the driver is awake in every slot with a
reservation. Two requests that arrive within a second left within a second and the guard, so they
share a run.

The account is stricter than the invariant, in case the model does not hold. A request counts in
every run while it is unanswered, and at its answer afterwards. The answer is never before the
request left, so later requests also take late arrivals into account. A creation counts twice while
it is unanswered, since its first reserved poll leaves late if the answer comes after it. A poll
that leaves late keeps its phase, so that the later polls stay in the slots that admission checked.
The requests that are never reserved (`Pacer.reserve`) cover late polls.

All times are integer microseconds. With floats, adding 0.1 s ten times would allow eleven requests
in one second.
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
"""The slots (0.3 s) after which a poll is sent for another member that has not sent it."""


@attrs.define
class _Reservation:
    """The polls of one task: the slot of the next one, and the last slot that may hold one."""

    next: int
    last: int
    armed: bool = False


class Timetable:
    """The account of requests over time, and the polls that are reserved in it.

    `requests` per `period` and `per_second` are the limits. `horizon` is how long a task's
    reservations reach at most. `guard` is how long after leaving a request may arrive by the plan.
    `spared` requests of a second, or so many fifths of the second if that is more, are never
    reserved. `queue` is a heap of reserved polls as (slot, ref), whose head is always valid.
    `changed` are the tasks whose reservations have changed since its reader cleared it. The
    questions (`due`, `wakes`, `admits`, `room`) change nothing.
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
        self.changed: set[int] = set()
        # Requests without an answer: when each left, its weight, and the last slots in which it
        # counts if it arrived within the guard, and if within the patience.
        self._unanswered: dict[int, tuple[int, int, int, int]] = {}
        self._second = SecondWindow()
        self._per_slot = -(-per_second // (SECOND // SLOT))
        self._phases = PhaseTable(1, self._per_slot)
        self._bound()

    def __repr__(self) -> str:
        return (
            f"<Timetable {len(self._tasks)} tasks every {self.cycle * SLOT / SECOND:g} s, "
            f"{len(self._unanswered)} requests unanswered>"
        )

    def __len__(self) -> int:
        return len(self._tasks)

    # Requests that leave and are answered.

    def leave(self, number: int, now: int, patience: int, *, creates: bool = False) -> None:
        """Record that request `number` leaves. It counts until a period after its answer."""
        self.account.forget(now)
        ends, late = self._second.leave(now, self._guard, patience)
        weight = 2 if creates else 1
        self._unanswered[number] = now, weight, ends, late
        self.account.unanswered += weight

    def answered(self, number: int, now: int) -> int:
        """Record that request `number` is answered or given up; return how long it took."""
        left, weight, ends, late = self._unanswered.pop(number)
        self.account.unanswered -= weight
        self.account.answered(now)
        self._second.answered(ends, late, now)
        return now - left

    def withdraw(self, number: int, now: int) -> int:
        """Take back request `number`, which was not sent; return how long ago it was issued."""
        left, weight, ends, late = self._unanswered.pop(number)
        self.account.unanswered -= weight
        self._second.answered(ends, late, now)
        return now - left

    def asking(self, since: int) -> bool:
        """Return whether a request that left after `since` is unanswered."""
        return any(left > since for left, _, _, _ in self._unanswered.values())

    def occupied(self, now: int) -> int:
        """Return how many requests occupy the window now."""
        return self.account.occupied(now) + len(self._unanswered)

    def past(self, now: int) -> tuple[tuple[int, int], ...]:
        """Return the requests in the window as (age in microseconds, count), the oldest first."""
        return (*self.account.past(now), (0, len(self._unanswered)))

    def remember(self, past: Iterable[tuple[int, int]]) -> None:
        """Count requests that left before time 0, as `past` lists them; call it first."""
        past = tuple(past)
        self.account.remember(past)
        for age, count in past:
            self._second.remember(age, self.guard, count)

    # Reservations.

    def wakes(self) -> int:
        """Return when the next reserved poll of a task that can be polled leaves."""
        return self.queue[0][0] * SLOT if self.queue else NEVER

    def due(self, slot: int) -> tuple[int, int] | None:
        """Return the reserved poll to send in `slot` as (its slot, ref), or None if none is due.

        A poll of this slot comes before overdue ones. It always leaves, so it must be counted
        before room is looked for the others.
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
        # An account that is still empty begins here, and not at the last reservation.
        self.account.index(slot)
        self._tasks[ref] = task = _Reservation(slot + self.cycle, last)
        self._phases.take(slot)
        self._reserve(ref, task)

    def arm(self, ref: int) -> None:
        """Allow task `ref` to be polled from now on, since it has an id."""
        task = self._tasks[ref]
        task.armed = True
        self._enqueue(ref, task)

    def keep(self, ref: int, now: int) -> None:
        """Record that the reserved poll of `ref` leaves, late or not; its phase stays."""
        task = self._tasks[ref]
        before = task.next
        task.next += self.cycle * max(1, (now // SLOT - before) // self.cycle + 1)
        self._reserve(ref, task)
        self._enqueue(ref, task)
        # The former entry of the task may be anywhere in the queue.
        self._tidy()

    def release(self, ref: int) -> None:
        """Free the reserved polls of task `ref`."""
        task = self._tasks.pop(ref)
        self._foreign.discard(ref)
        self.changed.discard(ref)
        self.account.reserve(ref, range(0))
        self._phases.give(task.next)
        self._tidy()

    def extend(self, ref: int, last: int, slot: int, limit: int) -> bool:
        """Reserve polls of `ref` until slot `last` (which may be sooner than before) if they fit.

        `slot` is the present one. Return False and change nothing if they do not fit.
        """
        task = self._tasks[ref]
        following, lapsed = task.next, task.next > task.last
        if lapsed:
            # The task keeps its phase, but past slots are left out.
            following += self.cycle * max(0, -(-(slot - following) // self.cycle))
        kept = following + self.cycle * max(0, (task.last - following) // self.cycle + 1)
        more = range(kept, last + 1, self.cycle)
        if more and not self.account.holds(slot, more, limit):
            return False
        task.next, task.last = following, last
        self._reserve(ref, task)
        if lapsed:
            self._enqueue(ref, task)
        self._tidy()
        return True

    def shift(self, ref: int, to: int, slot: int, limit: int) -> None:
        """Move the next reserved poll of `ref`, and its phase, to the later slot `to` if that fits.

        This is for a task whose lease was renewed between two reserved polls. `slot` is the present
        one.
        """
        task = self._tasks[ref]
        if not task.next < to <= task.last:
            return
        moved = range(to, task.last + 1, self.cycle)
        self._phases.give(task.next)
        if self.free(to) and self.account.replace(ref, moved, slot, limit):
            task.next = to
            self.changed.add(ref)
            self._enqueue(ref, task)
        self._phases.take(task.next)
        self._tidy()

    def next_poll(self, ref: int) -> int:
        """Return when the next reserved poll of `ref` leaves, in microseconds."""
        return self._tasks[ref].next * SLOT

    def lapsed(self, ref: int) -> bool:
        """Return whether no more polls are reserved for `ref`."""
        task = self._tasks[ref]
        return task.next > task.last

    def polled_by(self, ref: int, at: int) -> bool:
        """Return whether a poll of `ref` is reserved that leaves by `at`."""
        task = self._tasks[ref]
        return task.next <= task.last and task.next * SLOT <= at

    # Reservations of other members of the key. They count here and are never due.

    def mirror(self, ref: int, following: int, last: int) -> None:
        """Reserve one poll a cycle of `ref` from slot `following` to `last` without a check.

        Another member reserved them, for a task of its own or for one of ours that it polled.
        """
        task = self._tasks.get(ref)
        if task is None:
            self._tasks[ref] = task = _Reservation(following, last)
            self._foreign.add(ref)
        else:
            self._phases.give(task.next)
        task.next, task.last = following, last
        self._phases.take(following)
        self._reserve(ref, task)
        self._enqueue(ref, task)
        self._tidy()

    def set_limits(self, *, requests: int, period: int, per_second: int) -> None:
        """Use other limits from now on, and keep all requests and reservations.

        Where the limits shrink, more may be reserved than fits. No other request fits then.
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

    def adopt_plan(self, cycle: int, guard: int, places: Mapping[int, tuple[int, int]]) -> None:
        """Change to the plan of another member: a poll every `cycle` slots, with `guard`.

        `places` has the next and the last slot of each task that the member knew.
        """
        self.cycle, self.guard = cycle, guard
        self._phases = PhaseTable(cycle, self._per_slot)
        for ref, task in self._tasks.items():
            task.next, task.last = places.get(ref, (task.next, task.last))
            self._phases.take(task.next)
        self._reserve_all()
        self._requeue()

    def reserved(self, ref: int) -> tuple[int, int]:
        """Return the slot of the next reserved poll of `ref`, and the last reserved slot."""
        task = self._tasks[ref]
        return task.next, task.last

    def foreign_due(self, slot: int) -> int:
        """Return how many polls of others are due in `slot` or less than 0.3 s late."""
        return sum(
            slot - RESCUE_AFTER < task.next <= min(slot, task.last)
            for task in map(self._tasks.__getitem__, self._foreign)
        )

    # Questions.

    def admits(self, slot: int, origin: int, last: int, limit: int) -> bool:
        """Return whether a task created in `slot` and polled from `origin` to `last` fits."""
        polls = range(origin + self.cycle, last + 1, self.cycle)
        # A creation counts twice; the requests above `limit` cover the second one.
        return self.account.holds(slot, polls, limit, leaving=1)

    def would_admit(
        self, slot: int, origin: int, last: int, ends: Mapping[int, int], limit: int
    ) -> bool:
        """Return the same as `admits` if every task were polled until its slot in `ends`."""
        newcomer = range(origin + self.cycle, last + 1, self.cycle)
        return self.account.would_hold(slot, [newcomer, *self._until(ends)], limit, leaving=1)

    def would_keep(self, slot: int, ends: Mapping[int, int], limit: int) -> bool:
        """Return whether one more request fits in `slot` with the reservations of `ends`."""
        return self.account.would_hold(slot, self._until(ends), limit, leaving=1)

    def ample(self, now: int) -> bool:
        """Return whether the second certainly has room: a quick check."""
        held = self._second.count(now // SLOT)
        return held + self._phases.within(self._reach) + 3 <= self.per_second

    def room(self, now: int, *, urgent: bool = False, creates: bool = False, kept: int = 0) -> bool:
        """Return whether the second has room for one more request now, and for `kept` others.

        Reserved requests count. An unanswered request may arrive until the end of its patience,
        later than the guard. For an `urgent` request it counts as if it arrived within the guard;
        otherwise two hanging polls would prevent the retry of a third task.
        """
        slot = now // SLOT
        # A poll of another member in this slot may not have left yet, and always leaves.
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
        """Return whether an unreserved request may leave now and leaves room for a retry.

        The last request of a second is kept for a retry. It may be used if no retry can need it
        before it is free again. That is so if no request is unanswered and the next reserved poll
        leaves so late that a retry of it, which can wait `slack` slots, comes in time.
        """
        if self.room(now, kept=1):
            return True
        if self._unanswered or not self.room(now):
            return False
        return not any(self._phases.ahead(now // SLOT, self._reach - slack + 1)[1:])

    def free(self, slot: int) -> bool:
        """Return whether a task may take the phase of `slot` and leave room for retries."""
        return self._phases.free(slot, *self._bounds)

    def origin(self, slot: int, *, exists: bool = False) -> int | None:
        """Return the latest slot with a free phase, up to a quarter of a cycle before `slot`.

        The first poll is a cycle after that slot, so it may be sooner than necessary. A task that
        `exists` already may take a request of the second that is kept for retries.
        """
        run, most = self._bounds
        found = self._phases.latest(slot, self.cycle // 4, run, most)
        if found is None and exists:
            found = self._phases.latest(slot, self.cycle // 4, run, max(most, self.per_second - 1))
        return found

    def recut(self, cycle: int, guard: int, now: int, limit: int) -> bool:
        """Change the plan to a poll every `cycle` slots, with `guard`, if that fits.

        Return False and change nothing if it does not fit. The next poll of each task is not later
        than it was reserved, and within a cycle.
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
            # An overdue poll leaves at once in any case; the new phase applies afterwards.
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
            # More may be reserved than a limit that has shrunk; the new plan may hold as much.
            if self.account.peak(slot, horizon) <= max(limit, peak) and self._seconds_hold(slot):
                self._requeue()
                return True
        self.cycle, self.guard, self._phases = before
        for ref, task in self._tasks.items():
            task.next = places[ref]
        self._reserve_all()
        return False

    # Helpers.

    def _seconds_hold(self, slot: int) -> bool:
        """Return whether requests that left and reserved polls are within the limit per second."""
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
        # The slots of a run that contains any two requests within a second of each other.
        self._reach = -(-(SECOND + self._guard) // SLOT) + 1
        # The run in which reservations are limited, and their number. At one request per second a
        # retry finds room between two reservations only if they are two runs apart.
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

    def _reserve(self, ref: int, task: _Reservation) -> None:
        self.changed.add(ref)
        self.account.reserve(ref, self._polls(task))

    def _reserve_all(self) -> None:
        for ref, task in self._tasks.items():
            self._reserve(ref, task)

    def _tidy(self) -> None:
        """Drop invalid entries from the head of the queue."""
        while self.queue and not self._holds(*self.queue[0]):
            heapq.heappop(self.queue)

    def _holds(self, slot: int, ref: int) -> bool:
        """Return whether the poll of a queue entry is still reserved."""
        task = self._tasks.get(ref)
        return task is not None and task.next == slot <= task.last
