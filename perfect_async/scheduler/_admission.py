"""Decide which job may be created, and until when polls are reserved for each task.

A task is *young* until the age that hardly any task of its kind outlasts
(`DurationModel.horizon`), and *old* afterwards. The timetable reserves polls for old tasks until
they are given up, and for young tasks until `insured`. Every task can therefore be polled for
`insured`, whatever the durations are.

A creation must fit into the timetable and into a second plan, which trusts the observed durations
except for their tail. In the second plan young tasks end by the horizon, but the r tasks that are
most likely to run long are polled until they are given up, like the old ones. More than r long
tasks have a probability of 1e-4, given the ages of the tasks.

No task is created while an old task lacks reserved polls. Admission is *strict* (polls are reserved
until a task is given up) in these cases: `insured` is as long as that; no task of the kind has
ended yet; others seem to use the key; a task was lost and fewer than 30 tasks have ended since,
because a loss shows that tasks last long and not that there is room.

All times are integer microseconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

import attrs

from perfect_async._ratelimit.estimators import DurationEstimator, DurationModel, tail
from perfect_async._time import SECOND, SLOT
from perfect_async.events import TaskKind, TaskRow
from perfect_async.scheduler._job import ScheduledJob
from perfect_async.scheduler._pacer import Pacer

_CHANCE: Final = 1e-4
"""The accepted probability, for one creation, that more tasks run long than fit."""
_INSURED_CHANCE: Final = 1e-3
"""The same if all tasks are insured for twice the horizon. Too many long tasks cause a loss only if
they also run longer than that.
"""
_LIKELY: Final = 0.8
"""The probability that a task has ended from which an early poll is worth its request."""
_STRICT_AFTER_LOSS: Final = 30
"""The number of tasks that must end after a loss before observed durations count again."""
_WORTH: Final = 5 * SECOND // (2 * SLOT)
"""The least number of slots by which a reserved poll is moved, so that not every early poll moves
it.
"""
_NEWCOMER: Final = -1
"""The ref of the task that is to be created."""
_KINDS: Final = 64
"""The number of kinds of tasks whose durations are remembered."""


@attrs.define(eq=False)
class _Kind:
    """Tasks of one feature with one number of outputs, which last about as long as each other.

    `horizon` is the age that hardly any of them outlasts, and 0 while no end is known. `placed` is
    the horizon that was used for their last plan.
    """

    durations: DurationEstimator
    outlook: DurationModel | None = None
    horizon: int = 0
    changes: int = 0
    placed: int = 0
    unsorted: bool = False
    young: dict[int, _Task] = attrs.field(factory=dict[int, "_Task"], repr=False)
    old: dict[int, _Task] = attrs.field(factory=dict[int, "_Task"], repr=False)

    @property
    def stale(self) -> bool:
        """Whether enough durations are new that the model is to be computed again."""
        if self.outlook is None:
            return self.changes > 0
        known = max(len(self.durations), len(self.young) + len(self.old))
        return self.changes >= max(1, known // 8)


@attrs.define(eq=False)
class _Task:
    """A running task. It was seen running at the age `low`.

    `cap` is the last slot before it is given up. `last` is the last slot that is reserved for it.
    """

    ref: int
    name: TaskKind
    kind: _Kind
    created: int
    began: int
    cap: int
    last: int
    low: int = 0


class AdmissionController:
    """Decides which tasks may be created and until when polls are reserved for each of them.

    `insured` and `give_up` are those of `Polling`. `review` has nothing to do before `acts_at`,
    unless others seem to use the key.
    """

    def __init__(self, pacer: Pacer, *, insured: int, give_up: int) -> None:
        self._pacer = pacer
        self._table = pacer.table
        self._insured = insured
        self._give_up = give_up
        self._never_believes = insured >= give_up
        self._kinds: dict[TaskKind, _Kind] = {}
        self._tasks: dict[int, _Task] = {}
        self._short: dict[int, _Task] = {}
        self._strict_for = 0
        self._strict = True
        self._review_at = self.acts_at = 0
        self._full: tuple[int, int] | None = None
        # The job that was admitted last, the time, its kind, its origin and its last slot.
        self._admitted: tuple[ScheduledJob, int, _Kind, int, int] | None = None
        self._changes = 0
        # The tasks of other members, and whether a task of another member lacks polls.
        self._foreign: set[int] = set()
        self.short_elsewhere = False
        # Whether reservations may move now, and the moves that wait until they may.
        self.may_move = True
        self._moves: dict[int, int] = {}
        # Called with each duration that was observed here: kind, low, high.
        self.on_duration: Callable[[TaskKind, int, int | None], None] | None = None
        # Tasks that were lost since rows were last published.
        self.lost: set[int] = set()

    # Events of tasks.

    def created(self, job: ScheduledJob, now: int) -> None:
        """Record that the creation of `job` leaves, or the first poll of an adopted task."""
        cap = job.given_up // SLOT
        found, self._admitted = self._admitted, None
        if found is not None and found[0] is job and found[1] == now:
            # Nothing has changed since `admits` found a free phase for it.
            _, _, kind, origin, last = found
            self._remember(job.kind, kind)
        else:
            kind = self._remember(job.kind)
            last = self._last(kind, now, cap, now)
            # An adopted task is polled in any slot that has room.
            free = self._table.origin(now // SLOT, exists=True)
            origin = now // SLOT if free is None else free
        self._tasks[job.ref] = task = _Task(job.ref, job.kind, kind, now, now, cap, last)
        if self._young(kind, now, now):
            kind.young[job.ref] = task
            self._review_by(now + kind.horizon)
        else:
            kind.old[job.ref] = task
        self._table.reserve(job.ref, origin, last)
        self._changes += 1

    def accepted(self, ref: int, now: int) -> None:
        """Record that the creation of `ref` is answered, so its task has begun by now."""
        self._tasks[ref].began = now

    def runs(self, ref: int, left: int, now: int) -> None:
        """Record that a poll which left at `left` found `ref` running."""
        task = self._tasks[ref]
        task.low = max(task.low, left - task.began)
        self._changes += 1
        to = left // SLOT + self._table.cycle
        if to - self._table.next_poll(ref) // SLOT >= _WORTH:
            # An early poll renewed the lease, so the next reserved poll can move by as much.
            self._moves[ref] = to
            if self.may_move:
                self.move(now)

    def release(self, ref: int, *, ended: int | None = None, lost: bool = False) -> None:
        """Free the polls of `ref`. It ended at `ended`, or its end is unknown (None)."""
        task = self._tasks[ref]
        if ended is not None or task.low:
            high = None if ended is None else ended - task.created
            self._learn(task.kind, task.low, high)
            if self.on_duration is not None:
                self.on_duration(task.name, task.low, high)
        if lost and self.on_duration is not None:
            self.lost.add(ref)
        self.forget(ref, lost=lost)

    def forget(self, ref: int, *, lost: bool = False) -> None:
        """Free the polls of `ref` without learning its duration."""
        task = self._tasks.pop(ref)
        task.kind.young.pop(ref, None)
        task.kind.old.pop(ref, None)
        self._short.pop(ref, None)
        self._moves.pop(ref, None)
        self._foreign.discard(ref)
        self._table.release(ref)
        if lost:
            self._strict_for = _STRICT_AFTER_LOSS
        self._changed(task.kind)

    # The tasks of other members of the key. Their owners plan them, and they count here.

    def mirror(self, row: TaskRow, ref: int) -> None:
        """Count the task of `row`, which another member created, as `ref`."""
        task = self._tasks.get(ref)
        if task is None:
            kind = self._remember(row.kind)
            cap = row.cap // SLOT
            task = _Task(ref, row.kind, kind, row.created, row.began, cap, row.last)
            self._tasks[ref] = task
            self._foreign.add(ref)
            # It counts as old until the next review.
            kind.old[ref] = task
            kind.unsorted = True
            self._review_by(0)
        task.began, task.last, task.low = row.began, row.last, max(task.low, row.low)
        self._changes += 1

    def moved(self, ref: int, last: int) -> None:
        """Record that another member moved the polls of our task, the last one to slot `last`."""
        self._tasks[ref].last = last
        self._changes += 1

    def learn(self, name: TaskKind, low: int, high: int | None) -> None:
        """Record a duration that another member observed."""
        kind = self._remember(name)
        self._learn(kind, low, high)
        self._changed(kind)

    @property
    def short(self) -> bool:
        """Whether a task of this member lacks reserved polls."""
        return bool(self._short)

    def facts(self, ref: int) -> tuple[int, int, int]:
        """Return when the task was created, by when it had begun, and its last age seen running."""
        task = self._tasks[ref]
        return task.created, task.began, task.low

    def _learn(self, kind: _Kind, low: int, high: int | None) -> None:
        if high is None:
            kind.durations.outlasted(low)
        else:
            kind.durations.ended(low, high)
            self._strict_for = max(0, self._strict_for - 1)

    def _changed(self, kind: _Kind) -> None:
        kind.changes += 1
        self._changes += 1
        if kind.stale:
            self._review_by(0)
        elif self._strict_for or self._strict:
            self.acts_at = 0

    # Questions.

    def admits(self, job: ScheduledJob, now: int, limit: int) -> bool:
        """Return whether `job` can be created now and all polls that it needs can be reserved."""
        if self._short or self.short_elsewhere:
            return False
        here = self._table.account.bucket(now), self._changes
        if self._full == here:
            return False
        kind, slot = self._kind(job.kind), now // SLOT
        cap = (now + job.gives_up_after(self._give_up)) // SLOT
        origin = self._table.origin(slot)
        last = self._last(kind, now, cap, now)
        if origin is None:
            return False
        if self._table.admits(slot, origin, last, limit) and (
            self._certain(limit)
            or self._believable(now, limit, _Task(_NEWCOMER, job.kind, kind, now, now, cap, origin))
        ):
            self._admitted = job, now, kind, origin, last
            return True
        # Nothing more fits until the next event or the next bucket.
        self._full = here
        return False

    def leaves_room(self, now: int, limit: int) -> bool:
        """Return whether one unreserved request fits beside the tasks that may run long.

        An early poll is checked like a creation, since it must not take a request that such a task
        may need.
        """
        short = self._short or self.short_elsewhere
        return not short and (self._certain(limit) or self._believable(now, limit))

    def _certain(self, limit: int) -> bool:
        """Return whether no estimate is needed.

        That is so where polls are reserved for as long as tasks may run, and where all young tasks
        fit into any window. All tasks are checked before the young ones, since that is quicker.
        """
        if self._strict:
            return True
        account = self._table.account
        each = account.reach // self._table.cycle + 1
        if account.at_most(1 + (1 + len(self._tasks)) * each, limit):
            return True
        young = 1 + sum(len(kind.young) for kind in self._kinds.values())
        return account.at_most(1 + young * each, limit)

    def _believable(self, now: int, limit: int, newcomer: _Task | None = None) -> bool:
        """Return whether one more request fits if the estimates hold except for their tail.

        `newcomer` is the task that the request creates, if any; its `last` is its origin.
        """
        table, slot = self._table, now // SLOT
        ends: dict[int, int] = {}
        suspects: list[tuple[float, int, int]] = []
        mean, longest = 0.0, 0
        for kind in self._kinds.values():
            ends.update((task.ref, task.cap) for task in kind.old.values())
            young_ones = [*kind.young.values()]
            if newcomer is not None and newcomer.kind is kind:
                young_ones.append(newcomer)
            if kind.outlook is None:
                ends.update((task.ref, task.cap) for task in young_ones)
                continue
            longest = max(longest, kind.outlook.horizon)
            for task in young_ones:
                chance = kind.outlook.outlasts(task.low)
                mean += chance
                suspects.append((chance, task.ref, task.cap))
                ends[task.ref] = (task.created + kind.outlook.horizon) // SLOT
        chance = _INSURED_CHANCE if self._insured >= 2 * longest else _CHANCE
        worst = heapq.nlargest(tail(mean, chance), suspects)
        ends.update((ref, cap) for _, ref, cap in worst)
        if newcomer is None:
            return table.would_keep(slot, ends, limit)
        # `ends` does not have the first task of a kind.
        last = ends.pop(newcomer.ref, newcomer.cap)
        return table.would_admit(slot, newcomer.last, last, ends, limit)

    def reserved_each(self, now: int) -> int:
        """Return how many requests are reserved for a new task like the last one."""
        kind = next(reversed(self._kinds.values()), None)
        if kind is None:
            return self._give_up // SLOT // self._table.cycle + 1
        last = self._last(kind, now, (now + self._give_up) // SLOT, now)
        return (last - now // SLOT) // self._table.cycle + 1

    def likely_end(self, ref: int) -> int | None:
        """Return when `ref` has probably ended, or None if nobody knows."""
        task = self._tasks[ref]
        if task.kind.outlook is None:
            return None
        age = task.kind.outlook.likely(task.low, _LIKELY)
        if age is None and not self._pacer.rare:
            # No task was seen to end so late, so either answer to a poll in mid-cycle is new.
            age = task.low + self._table.cycle * SLOT // 2
        return None if age is None else task.created + age

    # Reviews.

    def review(self, now: int) -> None:
        """Update which tasks are old and which polls are reserved; called after each event."""
        strict = (
            self._never_believes
            or self._strict_for > 0
            or self._pacer.allowance.contended_until > now
        )
        if strict != self._strict or now >= self._review_at:
            every, self._strict = strict != self._strict, strict
            self._review_at = now + self._give_up
            for kind in self._kinds.values():
                self._review(kind, now, every=every)
        if self._short:
            self._lengthen(now)
        self.acts_at = 0 if self._short else self._review_at

    def move(self, now: int) -> None:
        """Perform the moves that waited until reservations may move."""
        for ref, to in self._moves.items():
            self._table.shift(ref, to, now // SLOT, self._pacer.reservable)
        self._moves.clear()

    def _review_by(self, at: int) -> None:
        self._review_at = min(self._review_at, at)
        self.acts_at = min(self.acts_at, at)

    def _review(self, kind: _Kind, now: int, *, every: bool) -> None:
        if kind.stale:
            kind.changes = 0
            running = [task.low for task in [*kind.old.values(), *kind.young.values()] if task.low]
            cycle, rare = self._table.cycle * SLOT, self._pacer.rare
            kind.outlook = kind.durations.outlook(running, cycle, rare=rare)
            kind.horizon = 0 if kind.outlook is None else kind.outlook.horizon
            # A small change of the horizon changes no plan.
            every |= abs(kind.horizon - kind.placed) * 4 > self._table.cycle * SLOT
        if every or kind.unsorted:
            kind.unsorted = False
            kind.placed = kind.horizon
            tasks = sorted(
                [*kind.old.values(), *kind.young.values()], key=lambda task: task.created
            )
            kind.old.clear()
            kind.young.clear()
            for task in tasks:
                (kind.young if self._young(kind, task.created, now) else kind.old)[task.ref] = task
                self._place(task, now)
        while kind.young:
            oldest = next(iter(kind.young.values()))
            if self._young(kind, oldest.created, now):
                self._review_by(oldest.created + kind.horizon)
                break
            kind.old[oldest.ref] = kind.young.pop(oldest.ref)
            self._place(oldest, now)

    def _place(self, task: _Task, now: int) -> None:
        """Shorten the reservation at once, or note that it must be longer."""
        if task.ref in self._foreign:
            return
        last = self._last(task.kind, task.created, task.cap, now)
        if last > task.last:
            self._short[task.ref] = task
        else:
            self._short.pop(task.ref, None)
            if last < task.last:
                self._reserve(task, last, self._pacer.reservable, now)

    def _lengthen(self, now: int) -> None:
        """Reserve more polls for the tasks that need them, the oldest first."""
        crowded = False
        for task in sorted(self._short.values(), key=lambda task: task.created):
            last = self._last(task.kind, task.created, task.cap, now)
            if not crowded and self._reserve(task, last, self._pacer.reservable, now):
                del self._short[task.ref]
                continue
            crowded = True
            if self._table.lapsed(task.ref):
                # Its last reserved poll has left: reserve one more, also of those for retries.
                kept = (self._pacer.reservable + self._table.account.requests) // 2
                self._reserve(task, task.last + self._table.cycle, kept, now)

    def _reserve(self, task: _Task, last: int, limit: int, now: int) -> bool:
        if not self._table.extend(task.ref, last, now // SLOT, limit):
            return False
        task.last = last
        return True

    def _last(self, kind: _Kind, created: int, cap: int, now: int) -> int:
        """Return the last slot to reserve for a task created at `created`; see `_Task.cap`."""
        if not self._young(kind, created, now):
            return cap
        # One poll after that finds the end, or the task becomes old.
        insured = max(self._insured, kind.horizon) + self._table.cycle * SLOT
        return min(cap, (created + insured) // SLOT)

    def _young(self, kind: _Kind, created: int, now: int) -> bool:
        return not self._strict and now - created < kind.horizon

    def mean(self, name: TaskKind) -> int | None:
        """Return the mean duration of tasks of the kind `name`, or None where none has ended."""
        return self._kind(name).durations.mean()

    def _kind(self, name: TaskKind) -> _Kind:
        return self._kinds.get(name) or _Kind(DurationEstimator(name.usual))

    def _remember(self, name: TaskKind, kind: _Kind | None = None) -> _Kind:
        """Return the kind of that `name` and mark it as used last; idle kinds are forgotten."""
        kind = kind or self._kind(name)
        if kind is next(reversed(self._kinds.values()), None) and len(self._kinds) <= _KINDS:
            return kind
        self._kinds.pop(name, None)
        if len(self._kinds) >= _KINDS:
            idle = [
                other for other, tasks in self._kinds.items() if not tasks.young and not tasks.old
            ]
            for other in idle[: len(self._kinds) - _KINDS + 1]:
                del self._kinds[other]
        self._kinds[name] = kind
        return kind
