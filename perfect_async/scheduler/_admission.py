"""Admission: whether a task can be created beside those that run, and how long polls are reserved.

A task is *young* until the age that hardly any of its kind outlasts (`DurationModel.horizon`),
then old. The plan (the timetable) reserves polls for old tasks until they are given up, and for
young ones until `insured` and never longer: so every task can be polled for `insured` whatever
happens. A creation must fit into that plan and into a second one, which trusts the observed
durations except for the tail: young tasks end by the horizon, but the r of them most likely to run
long run until they are given up, like the old ones. The chance that more than r run so long is
1e-4 by their ages.

Nothing is created while an old task has no polls reserved to its end. The plan is strict (polls are
reserved until the task is given up) in five cases: where `insured` is as long as that, before the
first end of its kind, while the key seems to be used elsewhere, and after a loss until 30 more
tasks have ended, since a loss frees nothing.

All times are integer microseconds.
"""

from __future__ import annotations

import heapq
from typing import Final

import attrs

from perfect_async._ratelimit.estimators import DurationEstimator, DurationModel, tail
from perfect_async._time import SECOND, SLOT
from perfect_async.events import TaskKind
from perfect_async.scheduler._job import ScheduledJob
from perfect_async.scheduler._pacer import Pacer

_CHANCE: Final = 1e-4
"""The chance, at one creation, that more tasks run long than there is room for."""
_INSURED_CHANCE: Final = 1e-3
"""The same chance where all tasks are insured for twice the horizon: too many tasks that run long
are a loss only if they run longer than that as well.
"""
_RATHER: Final = 0.8
"""The chance of having ended from which an early poll is worth its request."""
_MOURNING: Final = 30
"""How many tasks must end after a loss before the observed durations count again."""
_WORTH: Final = 5 * SECOND // (2 * SLOT)
"""Slots by which a reserved poll is worth moving: not at each of several early polls."""
_NEWCOMER: Final = -1
_KINDS: Final = 64
"""How many kinds of tasks have their durations remembered."""


@attrs.define(eq=False)
class _Kind:
    """Tasks that last alike: of one feature with one number of outputs.

    `horizon` is the age that hardly any of them outlasts, 0 while nothing is known. `placed` is the
    horizon by which the reserved polls of all of them were last set.
    """

    durations: DurationEstimator
    outlook: DurationModel | None = None
    horizon: int = 0
    news: int = 0
    placed: int = 0
    young: dict[int, _Task] = attrs.field(factory=dict[int, "_Task"], repr=False)
    old: dict[int, _Task] = attrs.field(factory=dict[int, "_Task"], repr=False)

    @property
    def stale(self) -> bool:
        """Whether enough is new that the durations are worth estimating again."""
        known = max(len(self.durations), len(self.young) + len(self.old))
        return self.news >= max(1, known // 8)


@attrs.define(eq=False)
class _Task:
    """A task as admission sees it: it was seen running at the age `low`.

    `cap` is the last slot before it is given up, `last` that of its reserved polls.
    """

    ref: int
    kind: _Kind
    created: int
    began: int
    cap: int
    last: int
    low: int = 0


class AdmissionController:
    """The plan of which task is polled until when; `insured` and `give_up` as in `Polling`.

    Before `acts_at` there is nothing to `review`, unless the key seems to be used elsewhere.
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
        self._news = 0

    # Events of tasks.

    def created(self, job: ScheduledJob, now: int) -> None:
        """Record that the creation of `job`, or the first poll of an adopted task, leaves."""
        kind = self._remember(job)
        last, cap = self._last(kind, now, now), job.given_up // SLOT
        self._tasks[job.ref] = task = _Task(job.ref, kind, now, now, cap, last)
        if self._young(kind, now, now):
            kind.young[job.ref] = task
            self._review_by(now + kind.horizon)
        else:
            kind.old[job.ref] = task
        # It would not have been admitted without a free phase; but what exists already is polled
        # wherever there is room.
        origin = self._table.origin(now // SLOT, exists=True)
        self._table.promise(job.ref, now // SLOT if origin is None else origin, last)
        self._news += 1

    def accepted(self, ref: int, now: int) -> None:
        """Record that its creation is answered: it began by now at the latest."""
        self._tasks[ref].began = now

    def runs(self, ref: int, left: int, now: int) -> None:
        """Record that a poll that left at `left` found it running."""
        task = self._tasks[ref]
        task.low = max(task.low, left - task.began)
        self._news += 1
        to = left // SLOT + self._table.cycle
        if to - self._table.next_poll(ref) // SLOT >= _WORTH:
            # Its lease was renewed between two reserved polls, so the next one can wait as long.
            self._table.shift(ref, to, now // SLOT, self._pacer.firm)

    def release(self, ref: int, *, ended: int | None = None, lost: bool = False) -> None:
        """Stop polling a task: it was seen to have `ended`, or its duration stays unknown."""
        task = self._tasks.pop(ref)
        kind = task.kind
        kind.young.pop(ref, None)
        kind.old.pop(ref, None)
        self._short.pop(ref, None)
        self._table.release(ref)
        if ended is not None:
            kind.durations.ended(task.low, ended - task.created)
            self._strict_for = max(0, self._strict_for - 1)
        elif task.low:
            kind.durations.outlasted(task.low)
        if lost:
            self._strict_for = _MOURNING
        kind.news += 1
        self._news += 1
        if kind.stale:
            self._review_by(0)
        elif self._strict_for or self._strict:
            self.acts_at = 0

    # Queries about the plan.

    def admits(self, job: ScheduledJob, now: int, limit: int) -> bool:
        """Return whether `job` can be created now and polled for as long as is to be reserved."""
        if self._short:
            return False
        here = self._table.account.bucket(now), self._news
        if self._full == here:
            return False
        kind, slot = self._kind(job), now // SLOT
        last, origin = self._last(kind, now, now), self._table.origin(slot)
        if origin is None:
            return False
        if self._table.admits(slot, origin, last, limit):
            if self._certain(limit):
                return True
            newcomer = _Task(_NEWCOMER, kind, now, now, (now + self._give_up) // SLOT, origin)
            if self._believable(now, limit, newcomer):
                return True
        # Time alone makes no room before the next bucket.
        self._full = here
        return False

    def spares(self, now: int, limit: int) -> bool:
        """Return whether an unreserved request leaves room for all tasks that may still run long.

        An early poll has no priority over a creation here: it must not take a request that a task
        likely to run long may need.
        """
        return not self._short and (self._certain(limit) or self._believable(now, limit))

    def _certain(self, limit: int) -> bool:
        """Return whether the plan holds without the observed durations.

        It holds where all tasks have polls reserved for as long as they may run, or where the young
        ones may be polled for as long as any window lasts (checked first, as it is quicker, for all
        that run).
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
        """Return whether one more request fits if the observed durations hold except for the tail.

        `newcomer` is a task that the request creates, whose `last` is its origin.
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
        # The first task of its kind is not in `ends`.
        last = ends.pop(newcomer.ref, newcomer.cap)
        return table.would_admit(slot, newcomer.last, last, ends, limit)

    def reserved_each(self, now: int) -> int:
        """Return how many requests are reserved for a task like the last one when it is created."""
        kind = next(reversed(self._kinds.values()), None)
        if kind is None:
            return self._give_up // SLOT // self._table.cycle + 1
        return (self._last(kind, now, now) - now // SLOT) // self._table.cycle + 1

    def likely_end(self, ref: int) -> int | None:
        """Return when `ref`, seen running so far, has probably ended; None if unknown."""
        task = self._tasks[ref]
        if task.kind.outlook is None:
            return None
        if (age := task.kind.outlook.likely(task.low, _RATHER)) is None:
            # No task was seen to end so late, so a poll in mid-cycle is informative either way.
            age = task.low + self._table.cycle * SLOT // 2
        return task.created + age

    # Changes that follow from events and time.

    def review(self, now: int) -> None:
        """Update after any event which tasks are old, and which polls are reserved."""
        strict = (
            self._never_believes or self._strict_for > 0 or self._pacer.allowance.wary_until > now
        )
        if strict != self._strict or now >= self._review_at:
            every, self._strict = strict != self._strict, strict
            self._review_at = now + self._give_up
            for kind in self._kinds.values():
                self._review(kind, now, every=every)
        if self._short:
            self._lengthen(now)
        self.acts_at = 0 if self._short else self._review_at

    def _review_by(self, at: int) -> None:
        self._review_at = min(self._review_at, at)
        self.acts_at = min(self.acts_at, at)

    def _review(self, kind: _Kind, now: int, *, every: bool) -> None:
        if kind.stale:
            kind.news = 0
            running = [task.low for task in [*kind.old.values(), *kind.young.values()] if task.low]
            kind.outlook = kind.durations.outlook(running, self._table.cycle * SLOT)
            kind.horizon = 0 if kind.outlook is None else kind.outlook.horizon
            # A small change of the horizon moves no reserved polls.
            every |= abs(kind.horizon - kind.placed) * 4 > self._table.cycle * SLOT
        if every:
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
        """Reserve fewer polls at once, more when there is room."""
        last = self._last(task.kind, task.created, now)
        if last > task.last:
            self._short[task.ref] = task
        else:
            self._short.pop(task.ref, None)
            if last < task.last:
                self._promise(task, last, self._pacer.firm, now)

    def _lengthen(self, now: int) -> None:
        """Reserve more polls for those that need more, the oldest first."""
        crowded = False
        for task in sorted(self._short.values(), key=lambda task: task.created):
            last = self._last(task.kind, task.created, now)
            if not crowded and self._promise(task, last, self._pacer.firm, now):
                del self._short[task.ref]
                continue
            crowded = True
            if self._table.lapsed(task.ref):
                # Its last reserved poll is used up: reserve one more, if need be of those kept for
                # retries.
                kept = (self._pacer.firm + self._table.account.requests) // 2
                self._promise(task, task.last + self._table.cycle, kept, now)

    def _promise(self, task: _Task, last: int, limit: int, now: int) -> bool:
        if not self._table.extend(task.ref, last, now // SLOT, limit):
            return False
        task.last = last
        return True

    def _last(self, kind: _Kind, created: int, now: int) -> int:
        """Return the last slot for which a task created at `created` needs a reserved poll."""
        if not self._young(kind, created, now):
            return (created + self._give_up) // SLOT
        # One poll after it shows what has ended by then; a task that still runs becomes old.
        insured = max(self._insured, kind.horizon) + self._table.cycle * SLOT
        return (created + min(self._give_up, insured)) // SLOT

    def _young(self, kind: _Kind, created: int, now: int) -> bool:
        return not self._strict and now - created < kind.horizon

    def _kind(self, job: ScheduledJob) -> _Kind:
        return self._kinds.get(job.kind) or _Kind(DurationEstimator(job.kind.usual))

    def _remember(self, job: ScheduledJob) -> _Kind:
        """Return the kind of `job`, and make it the last one to be forgotten."""
        kind = self._kind(job)
        self._kinds.pop(job.kind, None)
        if len(self._kinds) >= _KINDS:
            idle = [name for name, kind in self._kinds.items() if not kind.young and not kind.old]
            for name in idle[: len(self._kinds) - _KINDS + 1]:
                del self._kinds[name]
        self._kinds[job.kind] = kind
        return kind
