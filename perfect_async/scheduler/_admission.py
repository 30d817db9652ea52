"""Who may be created beside those that run, and until when each of them is promised polls.

A task is *young* until the age that hardly any of its kind outlasts (`DurationModel.horizon`),
then old. The plan (the timetable) holds polls for old tasks until they are given up, for young ones
until `insured` and never longer: so every task can be polled for `insured` whatever happens. A
creation must fit into that plan and into a second one, which trusts the observed durations but for
the tail: young tasks end by the horizon, but the r most suspicious of them run until they are given
up like the old ones; more than r is a matter of 1e-4 by their ages.

Nothing is created while an old task has no promise to its end. Everything is strict, promised until
it is given up, where `insured` is as long as that, before the first end of its kind, while the key
seems to be used elsewhere, and after a loss until 30 more tasks have ended: a loss frees nothing.

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
"""The chance that more tasks run long than there is room for, at one creation."""
_INSURED_CHANCE: Final = 1e-3
"""The same where all tasks are insured for twice the horizon: too many that run long are a loss
only if they run longer than that as well.
"""
_RATHER: Final = 0.8
"""The chance of having ended from which an early poll is worth its request."""
_MOURNING: Final = 30
"""Tasks to end after a loss before evidence is believed again."""
_WORTH: Final = 5 * SECOND // (2 * SLOT)
"""Slots by which a promise is worth moving: not at each of several early polls."""
_NEWCOMER: Final = -1
_KINDS: Final = 64
"""Kinds of tasks whose durations are remembered."""


@attrs.define(eq=False)
class _Kind:
    """Tasks that last alike: of one feature with one number of outputs.

    `horizon` is the age that hardly any of them outlasts, 0 while nothing is known; by `placed` all
    of them were last looked at.
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
        """Whether so much is new that it is worth looking at the durations again."""
        known = max(len(self.durations), len(self.young) + len(self.old))
        return self.news >= max(1, known // 8)


@attrs.define(eq=False)
class _Task:
    """A task as admission sees it: it ran for sure at the age `low`.

    `cap` is the last slot before it is given up, `last` that of its promises.
    """

    ref: int
    kind: _Kind
    created: int
    began: int
    cap: int
    last: int
    low: int = 0


class AdmissionController:
    """The plan of who is polled until when; `insured` and `give_up` as in `Polling`.

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

    # What happens to tasks.

    def created(self, job: ScheduledJob, now: int) -> None:
        """The creation of `job` leaves, or the first poll of a task that existed before."""
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
        """Its creation is answered: it began by now at the latest."""
        self._tasks[ref].began = now

    def runs(self, ref: int, left: int, now: int) -> None:
        """A poll that left at `left` found it running."""
        task = self._tasks[ref]
        task.low = max(task.low, left - task.began)
        self._news += 1
        to = left // SLOT + self._table.cycle
        if to - self._table.next_poll(ref) // SLOT >= _WORTH:
            # Its lease was renewed between two promises: the next one can wait as long.
            self._table.shift(ref, to, now // SLOT, self._pacer.firm)

    def release(self, ref: int, *, ended: int | None = None, lost: bool = False) -> None:
        """It is polled no longer: seen to have `ended`, or else nobody knows how long it lasts."""
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

    # What is asked.

    def admits(self, job: ScheduledJob, now: int, limit: int) -> bool:
        """Whether `job` can be created now and kept alive as promised."""
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
        # Less fits as nothing but time goes by only until the next bucket.
        self._full = here
        return False

    def spares(self, now: int, limit: int) -> bool:
        """Whether a request that nobody was promised leaves room for all that may still run long.

        An early poll is no better than a creation: it must not take what a suspect may need.
        """
        return not self._short and (self._certain(limit) or self._believable(now, limit))

    def _certain(self, limit: int) -> bool:
        """Whether no evidence is needed: all are promised polls for as long as they may run, or
        whoever is young may be polled for as long as any window lasts (and, quicker, whoever runs).
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
        """Whether one more request fits if evidence is taken at its word but for the tail.

        `newcomer` is a task that it creates, whose `last` is its origin.
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
        # One that is the first of its kind is not among them.
        last = ends.pop(newcomer.ref, newcomer.cap)
        return table.would_admit(slot, newcomer.last, last, ends, limit)

    def reserved_each(self, now: int) -> int:
        """How many requests are reserved for a task like the last one when it is created."""
        kind = next(reversed(self._kinds.values()), None)
        if kind is None:
            return self._give_up // SLOT // self._table.cycle + 1
        return (self._last(kind, now, now) - now // SLOT) // self._table.cycle + 1

    def likely_end(self, ref: int) -> int | None:
        """When `ref`, as far as it is known to run, has rather ended than not; None if unknown."""
        task = self._tasks[ref]
        if task.kind.outlook is None:
            return None
        if (age := task.kind.outlook.likely(task.low, _RATHER)) is None:
            # None was seen to end so late: in mid-cycle it tells something new either way.
            age = task.low + self._table.cycle * SLOT // 2
        return task.created + age

    # What follows from news and time.

    def review(self, now: int) -> None:
        """After any news: who is old, and who is promised what."""
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
            # A horizon that trembles moves nothing.
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
        """Promise less at once, more when there is room."""
        last = self._last(task.kind, task.created, now)
        if last > task.last:
            self._short[task.ref] = task
        else:
            self._short.pop(task.ref, None)
            if last < task.last:
                self._promise(task, last, self._pacer.firm, now)

    def _lengthen(self, now: int) -> None:
        """Promise more to those that ought to have more, the oldest first."""
        crowded = False
        for task in sorted(self._short.values(), key=lambda task: task.created):
            last = self._last(task.kind, task.created, now)
            if not crowded and self._promise(task, last, self._pacer.firm, now):
                del self._short[task.ref]
                continue
            crowded = True
            if self._table.lapsed(task.ref):
                # Its last promise is used up: one more poll, if need be of those kept for tries.
                kept = (self._pacer.firm + self._table.account.requests) // 2
                self._promise(task, task.last + self._table.cycle, kept, now)

    def _promise(self, task: _Task, last: int, limit: int, now: int) -> bool:
        if not self._table.extend(task.ref, last, now // SLOT, limit):
            return False
        task.last = last
        return True

    def _last(self, kind: _Kind, created: int, now: int) -> int:
        """The last slot that a task that was created then ought to be promised."""
        if not self._young(kind, created, now):
            return (created + self._give_up) // SLOT
        # One poll after it: what has ended by then is heard, what has not becomes old.
        insured = max(self._insured, kind.horizon) + self._table.cycle * SLOT
        return (created + min(self._give_up, insured)) // SLOT

    def _young(self, kind: _Kind, created: int, now: int) -> bool:
        return not self._strict and now - created < kind.horizon

    def _kind(self, job: ScheduledJob) -> _Kind:
        return self._kinds.get(job.kind) or _Kind(DurationEstimator(job.kind.usual))

    def _remember(self, job: ScheduledJob) -> _Kind:
        """The kind of `job`, which is the last one to be forgotten now."""
        kind = self._kind(job)
        self._kinds.pop(job.kind, None)
        if len(self._kinds) >= _KINDS:
            idle = [name for name, kind in self._kinds.items() if not kind.young and not kind.old]
            for name in idle[: len(self._kinds) - _KINDS + 1]:
                del self._kinds[name]
        self._kinds[job.kind] = kind
        return kind
