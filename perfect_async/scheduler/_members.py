"""Share one key with other members: read their rows from the ledger, and publish our own.

A member is a scheduler, usually in another process. All members write rows to one ledger
(`ev.LedgerRow`). A scheduler takes the ledger's lock, reads the rows of others (`ev.LedgerRead`),
decides, writes the rows that changed (`Members.changes`), releases the lock, and performs its
decisions. No other member decides between reading and writing, so all members know of a request, a
reservation or a new task before it leaves.

The requests and reservations of others enter the timetable. Their tasks enter admission, and their
refusals and durations count like our own. A member plans only for itself, with two exceptions. A
new cycle moves the phases of all members at once. A poll that is overdue is sent for its owner
(`ev.Rescue`), since polling twice is harmless and a lost task is not.

All times are integer microseconds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import attrs

from perfect_async import events as ev
from perfect_async._ratelimit.timetable import RESCUE_AFTER
from perfect_async._time import NEVER, SECOND, SLOT
from perfect_async.scheduler._job import JobState, ScheduledJob

if TYPE_CHECKING:
    from perfect_async.scheduler._state import SchedulerState

_STOPPED: Final = 10 * SECOND
"""How long a member with work may write nothing before it is assumed to have stopped."""
_WAITING: Final = SECOND
"""How long a member counts as waiting after it wrote that it waits for its turn."""
_BEAT: Final = SECOND
"""The interval of the heartbeat of a member that has work."""
_WAIT_REPORTED: Final = 300_000
"""The interval in which a member writes that it still waits for its turn."""
_REQUEST_TIMEOUT: Final = 30 * SECOND
"""How long a request can be unanswered unless its member has stopped."""
_RECOVERY: Final = _BEAT * 6 // 5
"""The time in which all running members rewrite the rows that a ledger has lost."""
_CATCHES_UP: Final = SECOND // 2
"""How long a living member has to write the polls that it sent while it could not have the lock."""
_MOST_LEARNED: Final = 10_000
"""The number of members whose last counted duration is remembered."""
_RETRY: Final = SECOND // 2
_MOST_RETRIES: Final = 4
_RUNNING: Final = frozenset({JobState.SUBMITTING, JobState.RUNNING})

_Row = TypeVar("_Row", bound=ev.LedgerRow)
_TaskFacts: TypeAlias = tuple[int, int, int, int, int, int, int, str, int, bool, bool, bool]
"""The fields of a `TaskRow` in their order, without its member and its kind."""


@attrs.define(eq=False)
class ForeignTask:
    """A task of another member: its last row, and the outcome of our own polls of it.

    It is `mirrored` while polls are reserved for it. `try_at` is when a failed poll of ours is sent
    again. No poll is sent for its owner before `from_at`.
    """

    ref: int
    row: ev.TaskRow
    mirrored: bool = False
    tries: int = 0
    try_at: int = NEVER
    from_at: int = 0


class Members:
    """The other members of the key, as they are known from the ledger.

    `member` is our own name in the ledger. It is empty where the key is not shared; then `shared`
    is False, and there are no other members. `same_network` is whether all members use one network.
    `locked` is whether the ledger's lock is held, so that reservations may move.
    """

    def __init__(self, state: SchedulerState, limits: ev.SharedLimits) -> None:
        self.member = ""
        self.shared = self.same_network = self.locked = False
        # Whether there ever was another member. The plan may have no room for all of its tasks.
        self.met = False
        self._state = state
        self._pid = 0
        self._limits = limits
        self._holds = limits
        # The rows of others. A member that is `missing` in a ledger that was read anew counts as
        # gone unless it writes before `_missing_until`.
        self._rows: dict[str, ev.MemberRow] = {}
        self._missing: set[str] = set()
        self._missing_until = 0
        self._tasks: dict[tuple[str, int], ForeignTask] = {}
        self._refs: dict[int, ForeignTask] = {}
        self._next_ref = -1
        # The requests of others that are counted: unanswered ones by their number here, and
        # answered ones.
        self._open: dict[tuple[str, int], tuple[int, ev.RequestRow]] = {}
        self._answered: OrderedDict[tuple[str, int], ev.RequestRow] = OrderedDict()
        self._creations: dict[str, deque[int]] = {}
        # The number of the last duration of each member. Members that are gone are included, since
        # a ledger that is read anew has their rows again.
        self._learned: OrderedDict[str, int] = OrderedDict()
        # By feature, when the last task ended whose id was never known.
        self._unknown: dict[str, int] = {}
        self.updated_at = 0
        # The rows that were published.
        self._published: ev.MemberRow | None = None
        self._published_tasks: dict[int, ev.TaskRow] = {}
        # Our jobs that an event has changed since the rows of tasks were published.
        self._touched: set[int] = set()
        self._published_requests: OrderedDict[int, ev.RequestRow] = OrderedDict()
        self._changed_requests: dict[int, ev.RequestRow] = {}
        self._durations: list[ev.DurationRow] = []
        self._number = 0
        self._epoch = 0
        self._plan: tuple[int, int] | None = None
        self._foreign_changes: dict[int, ev.TaskRow] = {}
        # Our tasks that others poll once we have left.
        self._left_behind: set[int] = set()
        self._republished: list[ev.RequestRow | ev.TaskRow] = []
        # The rows that were published last, in case they were not written.
        self._last_rows: tuple[ev.RequestRow | ev.TaskRow, ...] = ()
        self._last_durations: list[ev.DurationRow] = []
        self._last_foreign: dict[int, ev.TaskRow] = {}
        self._waited_at = 0
        self._everything = self._recovers = False

    def __repr__(self) -> str:
        return f"<Members {len(self._rows)} others, {len(self._tasks)} of their tasks>"

    def share(self, member: str, pid: int, limits: ev.SharedLimits, *, same_network: bool) -> None:
        """Take part in the ledger as `member` from now on, with the settings `limits`."""
        self.member, self._pid, self._limits = member, pid, limits
        self.shared, self.same_network = True, same_network
        if limits != self._holds:
            self._holds = limits
            self._state.set_limits(limits)

    def unshare(self, limits: ev.SharedLimits, now: int) -> None:
        """Leave the ledger. Reservations of others count for as long as they may be used."""
        self.member, self.shared, self.locked = "", False, False
        self._rows.clear()
        for member in {name for name, _ in self._open}:
            # Their answers will not be known.
            self._answer_all(member, now)
        self._state.pacer.adapt_to_others(None)
        if limits != self._holds:
            self._holds = limits
            self._state.set_limits(limits)

    def shorten_lease(self, lease: int) -> None:
        """Use a shorter lease, here and in all other members.

        Where the key is shared, the plan changes at the next step, while the ledger is locked.
        """
        self._limits = attrs.evolve(self._limits, lease=lease)
        if not self.shared:
            self._holds = self._limits
            self._state.set_limits(self._limits)

    def in_doubt(self, feature: str, age: int) -> bool:
        """Return whether another member recently created a task of unknown id of `feature`."""
        unknown = any(
            not task.row.task_id and task.row.kind.feature == feature
            for task in self._tasks.values()
        )
        ended = self._unknown.get(feature)
        return unknown or (ended is not None and ended >= self.updated_at - age)

    @property
    def own_limits(self) -> ev.SharedLimits:
        """The settings of this member."""
        return self._limits

    @property
    def others(self) -> int:
        """The number of other members, stopped ones included."""
        return len(self._rows)

    def publish_again(self) -> None:
        """Return all rows at the next `changes`, those of the last one included."""
        self._everything = True
        self._republished = [*self._last_rows, *self._republished]
        self._durations = [*self._last_durations, *self._durations]
        self._foreign_changes = self._last_foreign | self._foreign_changes

    # Questions.

    @property
    def limits(self) -> ev.SharedLimits:
        """The limits and the lease in force, which are the strictest of all members."""
        return self._holds

    def living(self, now: int) -> list[ev.MemberRow]:
        """Return the rows of the members that have not stopped."""
        return [row for row in self._rows.values() if not self._stopped(row, now)]

    def work(self, now: int) -> int:
        """Return how many jobs of other members wait for their creation."""
        return sum(row.work for row in self.living(now)) if self._rows else 0

    def held(self, now: int) -> int:
        """Return how many requests others will need for results and have not reserved."""
        return sum(row.held for row in self.living(now)) if self._rows else 0

    def requests(self, now: int) -> int:
        """Return how many requests of other members occupy the window."""
        oldest = now - self._holds.period
        return len(self._open) + sum(
            row.answered is not None and row.answered > oldest for row in self._answered.values()
        )

    def has_turn(self, now: int) -> bool:
        """Return whether no waiting member has created fewer tasks than we have."""
        if not self._rows:
            return True
        mine = self._created(self.member, now)
        return not any(
            row.waited_at > now - _WAITING and self._created(row.member, now) < mine
            for row in self.living(now)
        )

    def rescue_at(self) -> int:
        """Return when a poll may have to be sent for another member."""
        return min(map(self._rescue_at, self._tasks.values()), default=NEVER)

    def to_rescue(self, now: int, *, again: bool) -> ForeignTask | None:
        """Return the task of another member whose poll is overdue, or None.

        With `again` tasks whose rescue failed count as well, and tasks of stopped members for which
        no poll is reserved any longer.
        """
        rescue_at = partial(self._rescue_at, again=again)
        task = min(self._tasks.values(), key=rescue_at, default=None)
        return None if task is None or rescue_at(task) > now else task

    def _rescue_at(self, task: ForeignTask, *, again: bool = True) -> int:
        if not task.mirrored or not task.row.task_id:
            return NEVER
        following, last = self._state.table.reserved(task.ref)
        overdue = (following + RESCUE_AFTER) * SLOT
        if following > last and not (again and self._left_alone(task)):
            # Its owner polls it as a retry.
            overdue = NEVER
        return max(task.from_at, min(task.try_at, overdue) if again else overdue)

    def _left_alone(self, task: ForeignTask) -> bool:
        """Return whether the owner of a task has died or stopped."""
        owner = self._rows.get(task.row.member)
        return owner is None or self._stopped(owner, self.updated_at)

    def foreign_task(self, task_id: str) -> int | None:
        """Return the number of another member's running task with this id, or None."""
        found = (task.ref for task in self._tasks.values() if task.row.task_id == task_id)
        return next(found, None) if task_id else None

    def keeps(self, task_id: str) -> bool:
        """Return whether another member that wrote recently still polls this task."""
        active = {
            row.member
            for row in self._rows.values()
            if self.updated_at - row.stepped_at < ev.SILENT_AFTER
        }
        return any(
            task.row.task_id == task_id and task.row.member in active and not task.row.announced
            for task in self._tasks.values()
        )

    # Events.

    def on_read(self, event: ev.LedgerRead, now: int) -> None:
        """Process the rows of others. The lock is held from now until `changes`."""
        state = self._state
        self.locked = state.admission.may_move = True
        before, self.updated_at = self.updated_at, now
        # Before the rows are counted, whose requests may have left a while ago.
        state.table.account.begin(now)
        self._everything |= event.afresh
        self._recovers = event.afresh and self.met
        known = dict(self._rows) if event.afresh else {}
        if event.rows:
            self._on_rows(event.rows, now)
        if event.afresh:
            self._on_afresh(event, known, now)
            if self._recovers and now - before > 2 * _BEAT:
                # This process stood still, so others may have sent the polls that seem overdue.
                for task in self._tasks.values():
                    task.from_at = now + _RECOVERY
        for member in event.gone:
            self._on_gone(member, now)
        if self._missing and now >= self._missing_until:
            for member in list(self._missing):
                self._on_gone(member, now)
        if event.waited:
            self._let_catch_up(now)
        self._tidy(now)
        self._adapt_to_others(now)

    def _let_catch_up(self, now: int) -> None:
        """Send no poll for a living member before it can have written those that it sent."""
        for task in self._tasks.values():
            if task.row.member in self._rows:
                task.from_at = max(task.from_at, now + _CATCHES_UP)

    def _on_afresh(self, event: ev.LedgerRead, known: dict[str, ev.MemberRow], now: int) -> None:
        """Publish all rows again, since the ledger is new, or an older copy of itself.

        The rows of others are published too, since they may have died or stopped, and a member that
        joins later knows of them only from the ledger. `known` are the members that were known
        before.
        """
        published = {row.member: row.stepped_at for row in _of(event.rows, ev.MemberRow)}
        left = {*event.gone}
        joins = not known and bool(self._rows)
        if joins or any(
            published.get(name, -NEVER) < row.stepped_at
            for name, row in known.items()
            if name not in left
        ):
            # Rows were lost, or may have been lost just before we joined. The others write their
            # recent requests again when they see it, at their next heartbeat.
            pacer = self._state.pacer
            pacer.hold = max(pacer.hold, now + _RECOVERY)
        # The ledger does not name a member as gone that died while the ledger was lost.
        self._missing = {*self._rows} - {*published}
        self._missing_until = now + _STOPPED
        answered = {
            (row.member, row.number)
            for row in _of(event.rows, ev.RequestRow)
            if row.answered is not None
        }
        requests = [*self._answered.values(), *(row for _, row in self._open.values())]
        self._republished += (row for row in requests if (row.member, row.number) not in answered)
        self._foreign_changes.update((task.ref, task.row) for task in self._refs.values())

    def _on_rows(self, rows: Iterable[ev.LedgerRow], now: int) -> None:
        for member in _of(rows, ev.MemberRow):
            if member.member != self.member:
                self._rows[member.member] = member
                self._missing.discard(member.member)
                self.met = True
        for duration in _of(rows, ev.DurationRow):
            if duration.member != self.member:
                self._on_duration(duration)
        tasks = _of(rows, ev.TaskRow)
        for plan in _of(rows, ev.PlanRow):
            self._take_plan(plan, tasks, now)
        for task in tasks:
            if task.member == self.member:
                self._on_own_task(task, now)
            else:
                self._on_task(task, now)
        for request in sorted(_of(rows, ev.RequestRow), key=_happened):
            if request.member != self.member:
                self._on_request(request, now)

    def touch(self, ref: int) -> None:
        """Record that an event may have changed our job `ref`."""
        if self.shared:
            self._touched.add(ref)

    def on_issued(self, command: ev.Request, now: int) -> None:
        """Record that a request of ours leaves."""
        creates = isinstance(command, ev.Submit)
        self._touch_task(command)
        if creates:
            self._note_creation(self.member, now)
        row = ev.RequestRow(self.member, command.number, now, creates=creates)
        self._publish(row)

    def on_response(self, event: ev.Answer, left: int, now: int) -> None:
        """Record that a request of ours (not an upload) is answered."""
        command = event.command
        self._touch_task(command)
        if isinstance(event, ev.NotSent) and event.unwritten:
            self._changed_requests.pop(command.number, None)
            self._published_requests.pop(command.number, None)
            return
        outcome, retry_after = "accepted", None
        if isinstance(event, ev.Limited):
            outcome, retry_after = "refused", event.retry_after
        elif isinstance(event, (ev.NotSent, ev.NoAnswer)):
            outcome = "failed"
        creates = isinstance(command, ev.Submit)
        self._publish(
            ev.RequestRow(self.member, command.number, left, creates, now, outcome, retry_after)
        )

    def _touch_task(self, command: ev.Request | ev.Upload) -> None:
        if isinstance(command, (ev.Submit, ev.Poll)):
            self._touched.add(command.ref)

    def on_duration(self, kind: ev.TaskKind, low: int, high: int | None) -> None:
        """Record the duration of a task that was observed here."""
        self._number += 1
        self._durations.append(ev.DurationRow(self.member, self._number, kind, low, high))

    def on_adopted(self, task_id: str) -> None:
        """Record that we own a task from now on, if its former owner is gone."""
        for task in [task for task in self._tasks.values() if task.row.task_id == task_id]:
            if task.row.member not in self._rows:
                self._foreign_changes[task.ref] = attrs.evolve(task.row, ended=True)
                self._drop(task)

    def leave_behind(self, job: ScheduledJob, now: int) -> None:
        """Leave our running task to the others as if we had died: its result can be fetched later.

        Where no other member lives, the task is written as ended, as nobody polls it.
        """
        if self.living(now) and not job.announced:
            facts = self._facts(job)
            self._published_tasks.pop(job.ref, None)
            self._left_behind.add(job.task)
            self._republished.append(ev.TaskRow(self.member, facts[0], job.kind, *facts[1:]))

    def on_rescue(self, command: ev.Rescue, now: int) -> None:
        """Record that a poll leaves that another member should have sent."""
        task = self._refs[command.ref]
        task.try_at = NEVER
        if self._rescue_at(task) <= now:
            # This is the reserved poll and no retry; the next reserved one is a cycle later.
            self._state.table.keep(task.ref, now)
            task.tries = 0
        self._foreign_changes[task.ref] = task.row

    def on_rescued(self, command: ev.Rescue, event: ev.Answer, left: int, now: int) -> None:
        """Process the answer to a poll that was sent for another member."""
        task = self._refs.get(command.ref)
        if task is None:
            return
        match event:
            case ev.Running():
                task.tries = 0
                task.row = attrs.evolve(task.row, renewed=max(task.row.renewed, left))
                self._foreign_changes[task.ref] = task.row
            case ev.Limited() | ev.NotSent() | ev.NoAnswer() | ev.KeyRefused() | ev.Refused():
                task.tries += 1
                if task.tries <= _MOST_RETRIES:
                    # The first retry leaves at once, since the rescue was late already.
                    pause = _RETRY if task.tries > 1 else 0
                    task.try_at = now + (SECOND if isinstance(event, ev.Limited) else pause)
            case _:
                self.announce(task.ref)

    def on_notified(self, ref: int) -> None:
        """Announce the end of a task, if it is one of another member."""
        if ref in self._refs:
            self.announce(ref)

    def announce(self, ref: int) -> None:
        """Tell the owner of a task that it has ended. A running owner polls it at once."""
        task = self._refs[ref]
        owned = task.row.member in self._rows
        task.row = attrs.evolve(task.row, announced=True, ended=not owned)
        self._foreign_changes[task.ref] = task.row
        if not owned:
            self._drop(task)
        elif task.mirrored:
            # Its owner polls it at once, so its reserved polls are free.
            self._state.admission.forget(task.ref)
            task.mirrored = False

    # Publishing.

    def changes(self, now: int) -> tuple[ev.LedgerRow, ...]:
        """Return the rows that changed since the last call, to be written under the lock."""
        state = self._state
        rows: list[ev.LedgerRow] = []
        everything = self._everything
        if everything:
            self._published, self._plan, self._everything = None, None, False
            self._changed_requests = dict(self._published_requests)
        rows += self._changed_plan()
        rows += self._changed_foreign()
        touched = self._all_touched(everything=everything)
        ended = self._ended_tasks(touched)
        rows += self._republished
        rows += ended
        self._last_rows, self._republished = (*self._republished, *ended), []
        if everything:
            self._published_tasks.clear()
        rows += self._changed_tasks(touched)
        rows += self._changed_requests.values()
        self._changed_requests = {}
        rows += self._durations
        self._last_durations, self._durations = self._durations, []
        rows += self._changed_member(now)
        self.locked = state.admission.may_move = False
        return tuple(rows)

    def _changed_plan(self) -> list[ev.LedgerRow]:
        table = self._state.table
        plan = table.cycle, table.guard
        if plan == self._plan:
            return []
        if self._plan is not None:
            # A new cycle moves the phases of all members.
            mirrored = (task for task in self._refs.values() if task.mirrored)
            self._foreign_changes.update((task.ref, task.row) for task in mirrored)
        self._plan = plan
        self._epoch += 1
        return [ev.PlanRow(self._epoch, *plan)]

    def _changed_foreign(self) -> list[ev.TaskRow]:
        """Return the tasks of others that were polled, moved or found to have ended here."""
        rows: list[ev.TaskRow] = []
        for ref, row in self._foreign_changes.items():
            task = self._refs.get(ref)
            if task is None:
                rows.append(row)
                continue
            if task.mirrored:
                following, last = self._state.table.reserved(ref)
                task.row = attrs.evolve(task.row, next=following, last=last)
            rows.append(task.row)
        self._last_foreign, self._foreign_changes = self._foreign_changes, {}
        return rows

    def _changed_member(self, now: int) -> list[ev.MemberRow]:
        state = self._state
        if now - self._waited_at >= _WAIT_REPORTED and state.waits_for_turn(now):
            self._waited_at = now
        cycle, guard, spared = state.pacer.wanted()
        row = ev.MemberRow(
            self.member,
            self._pid,
            self._limits,
            now,
            state.uncreated(),
            len(self._published_tasks),
            self._waited_at,
            state.admission.short,
            state.strategy.held,
            cycle,
            guard,
            spared,
        )
        published = self._published
        busy = row.work or row.running
        if published is not None and (
            attrs.evolve(row, stepped_at=published.stepped_at) == published
            and not (busy and now - published.stepped_at >= _BEAT)
        ):
            return []
        self._published = row
        return [row]

    def _all_touched(self, *, everything: bool) -> list[int]:
        """Return our jobs whose rows may have changed, or all of them, in their order.

        A task changes with an event of its job, or when its reservations move.
        """
        moved = self._state.table.changed
        touched = self._touched | moved
        if everything:
            touched.update(self._published_tasks, self._state.jobs)
        self._touched.clear()
        moved.clear()
        return sorted(touched)

    def _ended_tasks(self, touched: Iterable[int]) -> list[ev.TaskRow]:
        """Return the rows of our tasks that need no more polls."""
        jobs, published, lost = self._state.jobs, self._published_tasks, self._state.admission.lost
        ended: list[ev.TaskRow] = []
        for ref in touched:
            row, job = published.get(ref), jobs.get(ref)
            if row is None:
                continue
            # A job that was created again has another task.
            if job is None or job.state not in _RUNNING or job.task != row.ref:
                ended.append(attrs.evolve(row, ended=True, lost=ref in lost))
                del published[ref]
        lost.clear()
        return ended

    def _changed_tasks(self, touched: Iterable[int]) -> list[ev.TaskRow]:
        jobs, published, rows = self._state.jobs, self._published_tasks, list[ev.TaskRow]()
        for ref in touched:
            job = jobs.get(ref)
            if job is not None and job.state in _RUNNING:
                facts, before = self._facts(job), published.get(ref)
                # An event may have changed nothing that is published.
                if before is None or _facts_of(before) != facts:
                    row = ev.TaskRow(self.member, facts[0], job.kind, *facts[1:])
                    published[ref] = row
                    rows.append(row)
        return rows

    def _facts(self, job: ScheduledJob) -> _TaskFacts:
        """Return the fields of the row of a task of ours; see `_TaskFacts`."""
        state = self._state
        created = job.given_up - state.give_up
        following, last, began, low = 1, 0, created, 0
        if state.keeps_alive:
            following, last = state.table.reserved(job.ref)
            created, began, low = state.admission.facts(job.ref)
        return (
            job.task,
            created,
            began,
            job.given_up,
            following,
            last,
            low,
            job.task_id or "",
            job.accepted,
            job.announced > 0,
            False,
            False,
        )

    def _publish(self, row: ev.RequestRow) -> None:
        self._changed_requests[row.number] = row
        self._published_requests.pop(row.number, None)
        self._published_requests[row.number] = row
        oldest = next(iter(self._published_requests.values()))
        if oldest.answered is not None and (
            row.left - oldest.answered > self._holds.period + _REQUEST_TIMEOUT
        ):
            del self._published_requests[oldest.number]

    # Helpers.

    def _take_plan(self, plan: ev.PlanRow, tasks: Iterable[ev.TaskRow], now: int) -> None:
        """Change the plan to that of another member, for all tasks."""
        state = self._state
        self._epoch = max(self._epoch, plan.epoch)
        if self._plan is not None and plan.epoch < self._epoch:
            # This plan is older than ours, since the ledger lost rows: publish ours again.
            self._plan = None
            return
        self._plan = plan.cycle, plan.guard
        if (state.table.cycle, state.table.guard) == self._plan:
            return
        mine = {job.task: job.ref for job in state.jobs.values() if job.state in _RUNNING}
        places: dict[int, tuple[int, int]] = {}
        for row in tasks:
            if row.member == self.member:
                if row.ref in mine:
                    places[mine[row.ref]] = row.next, row.last
            elif (row.member, row.ref) in self._tasks:
                places[self._tasks[row.member, row.ref].ref] = row.next, row.last
        state.table.adopt_plan(plan.cycle, plan.guard, places)
        state.pacer.plan_adopted(now)

    def _on_own_task(self, row: ev.TaskRow, now: int) -> None:
        """Process a row of a task of ours, which another member wrote."""
        state = self._state
        job = next((job for job in state.jobs.values() if job.task == row.ref), None)
        if job is None or job.state not in _RUNNING:
            if not row.ended and row.ref not in self._left_behind:
                # An older copy of the ledger, or a member that knew the task, has restored it.
                self._republished.append(attrs.evolve(row, ended=True))
            return
        self._published_tasks[job.ref] = row
        self._touched.add(job.ref)
        # While all rows are published again, our own data are newer.
        if state.keeps_alive and not self._everything:
            following = row.next
            while following * SLOT <= job.last_left:
                # This poll has left since the row was written, without the lock.
                following += state.table.cycle
            if (following, row.last) != state.table.reserved(job.ref):
                state.table.mirror(job.ref, following, row.last)
                state.admission.moved(job.ref, row.last)
        job.accepted = max(job.accepted, row.renewed)
        if row.announced:
            state.on_notified(job.ref, now)

    def _on_task(self, row: ev.TaskRow, now: int) -> None:
        name = row.member, row.ref
        task = self._tasks.get(name)
        if row.ended or row.cap + _REQUEST_TIMEOUT < now:
            if task is not None:
                self._drop(task, lost=row.lost)
            return
        if task is None:
            self._next_ref -= 1
            # It may have ended since an older copy was taken; its owner writes that soon.
            from_at = now + _RECOVERY if self._recovers else 0
            task = self._tasks[name] = self._refs[self._next_ref] = ForeignTask(
                self._next_ref, row, from_at=from_at
            )
        if self._everything and not row.announced and _is_older(row, task.row):
            # The row is from an older copy of the ledger. Ours is published again.
            return
        # Keep what is not published yet.
        announced, renewed = task.row.announced or row.announced, task.row.renewed
        task.row = row = attrs.evolve(row, announced=announced, renewed=max(renewed, row.renewed))
        if row.announced:
            if task.mirrored:
                self._state.admission.forget(task.ref)
                task.mirrored = False
        elif task.mirrored or row.next <= row.last:
            self._state.table.mirror(task.ref, row.next, row.last)
            self._state.admission.mirror(row, task.ref)
            task.mirrored = True

    def _drop(self, task: ForeignTask, *, lost: bool = False) -> None:
        del self._tasks[task.row.member, task.row.ref], self._refs[task.ref]
        if not task.row.task_id:
            self._unknown[task.row.kind.feature] = self.updated_at
        if task.mirrored:
            self._state.admission.forget(task.ref, lost=lost)

    def _on_request(self, row: ev.RequestRow, now: int) -> None:
        """Count a request of another member once."""
        name, table, pacer = (row.member, row.number), self._state.table, self._state.pacer
        forgotten = now - self._holds.period - _REQUEST_TIMEOUT
        if name in self._answered or _happened(row) < forgotten:
            return
        if name not in self._open:
            if row.creates:
                self._note_creation(row.member, row.left)
            if row.answered is not None and row.answered < now - 2 * SECOND:
                # It is too old for the limit per second.
                table.account.answered(row.answered)
                self._answered[name] = row
                self._learn_from(row)
                return
            self._next_ref -= 1
            patience = pacer.network.patience
            table.leave(self._next_ref, row.left, patience, creates=row.creates)
            self._open[name] = self._next_ref, row
        if row.answered is not None:
            table.answered(self._open.pop(name)[0], row.answered)
            self._answered[name] = row
            self._learn_from(row)

    def _learn_from(self, row: ev.RequestRow) -> None:
        """Learn from the answer to another member's request."""
        pacer, at = self._state.pacer, _happened(row)
        if row.outcome == "refused":
            pacer.on_refused(row.left, row.retry_after, at)
            return
        if row.outcome == "accepted":
            pacer.on_accepted(at)
        if self.same_network and not row.creates and row.member in self._rows:
            # Nearly all of these requests are polls; the others show as well whether requests fail.
            pacer.on_poll_nearby(failed=row.outcome == "failed")

    def _on_duration(self, row: ev.DurationRow) -> None:
        if row.number > self._learned.get(row.member, 0):
            self._learned[row.member] = row.number
            self._learned.move_to_end(row.member)
            if len(self._learned) > _MOST_LEARNED:
                self._learned.popitem(last=False)
            self._state.admission.learn(row.kind, row.low, row.high)

    def _on_gone(self, member: str, now: int) -> None:
        """Forget a member that left or died. Polls it may have sent count as sent."""
        self._rows.pop(member, None)
        self._missing.discard(member)
        self._answer_all(member, now)
        self._creations.pop(member, None)
        for task in [task for task in self._tasks.values() if task.row.member == member]:
            if not task.row.task_id or task.row.announced:
                # Its id is unknown, or its end is known to all members.
                self._drop(task)
            elif self._state.table.polled_by(task.ref, now):
                # A reserved poll may leave before it is written, so this one may have left.
                self._state.table.account.answered(now)

    def _answer_all(self, member: str, now: int, *, before: int = NEVER) -> None:
        """Count the requests that `member` sent before `before` as answered now."""
        for name, (key, row) in list(self._open.items()):
            if name[0] == member and row.left < before:
                self._state.table.answered(key, now)
                del self._open[name]
                self._answered[name] = attrs.evolve(row, answered=now, outcome="failed")

    def _tidy(self, now: int) -> None:
        while self._answered:
            name, row = next(iter(self._answered.items()))
            if _happened(row) >= now - self._holds.period - _REQUEST_TIMEOUT:
                break
            del self._answered[name]
        for member in self._rows.values():
            if self._stopped(member, now):
                self._answer_all(member.member, now, before=now - _REQUEST_TIMEOUT)
        self.forget_old(now)

    def forget_old(self, now: int) -> None:
        """Forget the tasks of others that are given up by now."""
        if self._tasks:
            for task in [task for task in self._tasks.values() if task.row.cap <= now]:
                self._drop(task)

    def _adapt_to_others(self, now: int) -> None:
        """Adapt our plan and our limits to the networks and settings of the others."""
        state, living = self._state, self.living(now)
        state.admission.short_elsewhere = any(row.short for row in living)
        worst = None
        # The values of a member that has not written for a whole period are outdated.
        polling = [row for row in living if now - row.stepped_at <= self._holds.period]
        if polling:
            worst = (
                min(row.cycle for row in polling),
                max(row.guard for row in polling),
                max(row.spared for row in polling),
            )
        state.pacer.adapt_to_others(worst)
        strictest = self._limits
        for row in self._rows.values():
            strictest = strictest.stricter(row.limits)
        if strictest != self._holds:
            self._holds = strictest
            state.set_limits(strictest)

    def _stopped(self, row: ev.MemberRow, now: int) -> bool:
        return bool(row.work or row.running) and now - row.stepped_at > _STOPPED

    def _note_creation(self, member: str, at: int) -> None:
        self._creations.setdefault(member, deque()).append(at)
        self._created(member, at)

    def _created(self, member: str, now: int) -> int:
        """Return how many tasks `member` created in the last period."""
        creations = self._creations.get(member)
        if creations is None:
            return 0
        while creations and creations[0] <= now - self._holds.period:
            creations.popleft()
        return len(creations)


def _of(rows: Iterable[ev.LedgerRow], kind: type[_Row]) -> list[_Row]:
    """Return the rows of one kind, in their order."""
    return [row for row in rows if isinstance(row, kind)]


def _is_older(row: ev.TaskRow, known: ev.TaskRow) -> bool:
    """Return whether `row` was written before `known`, a row of the same task."""
    return row.next < known.next or (not row.task_id and bool(known.task_id))


def _facts_of(row: ev.TaskRow) -> _TaskFacts:
    return (
        row.ref,
        row.created,
        row.began,
        row.cap,
        row.next,
        row.last,
        row.low,
        row.task_id,
        row.renewed,
        row.announced,
        row.ended,
        row.lost,
    )


def _happened(row: ev.RequestRow) -> int:
    return row.left if row.answered is None else row.answered
