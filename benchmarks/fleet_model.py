"""Several members on one key, in virtual time: the real schedulers and a ledger in memory.

Each member is a process with a scheduler of its own. It wakes at its own times only: for its
answers, when its scheduler wants to, and once a second while it has work. A member may be stopped
(Ctrl-Z) or killed and may join late, each of its steps may be late or miss the ledger's lock, and
the ledger may be lost or come back as an older copy.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import attrs

from benchmarks.loads import SMILE, bound
from benchmarks.model import LEASE, SECOND, Failures, Vendor, answer, kind_of, times
from perfect_async import events as ev
from perfect_async._time import SLOT
from perfect_async.errors import ServiceUnavailable
from perfect_async.models import Job, Limits, Polling
from perfect_async.scheduler import NEVER, Scheduler

_HEARTBEAT = SECOND
_HURRY = 50_000
"""How long a step waits for the lock while a reserved poll is due; then it tries again."""
_MISSED = 200_000
"""For so long at most a member misses the lock that nothing cuts off."""
_CROWD = 3 * SECOND // 2
"""Polls in so long a time may share a second: the guard and what is late are added."""
_LATE = 300_000
"""A poll that is so late may have been sent by another member."""
_DUE = 7 * SECOND
"""Before then no poll is due; counted from the last one."""

_Rows = dict[tuple[object, ...], tuple[int, str, ev.LedgerRow]]


class MemoryLedger:
    """What a store does, without one: rows by what they replace, stamped by one counter."""

    def __init__(self) -> None:
        self.version = 0
        self.rows: _Rows = {}
        self.marker = 0
        self.gone: list[str] = []
        self.writes = 0
        self.steps = 0
        self.copies: list[tuple[int, _Rows]] | None = None
        self._read: dict[str, tuple[int, int, int]] = {}

    def read(self, member: str) -> ev.LedgerRead:
        """What others wrote since `member` read the last time."""
        self.steps += 1
        marker, version, gone = self._read.get(member, (-1, 0, 0))
        afresh = marker != self.marker
        if afresh:
            version, gone = 0, 0
        rows = tuple(
            row
            for stamp, writer, row in self.rows.values()
            if stamp > version and (writer != member or afresh)
        )
        self._read[member] = self.marker, self.version, len(self.gone)
        return ev.LedgerRead(rows, tuple(self.gone[gone:]), afresh=afresh)

    def write(self, member: str, rows: Sequence[ev.LedgerRow], now: int) -> None:
        """Write the changed rows of `member`, and drop what nobody needs."""
        for row in rows:
            self.version += 1
            self.rows[_key(row)] = self.version, member, row
        self.writes += bool(rows)
        self._read[member] = self.marker, self.version, len(self.gone)
        if self.version % 64 < len(rows):
            old = now - 320 * SECOND
            self.rows = {
                key: entry
                for key, entry in self.rows.items()
                if not (isinstance(entry[2], ev.RequestRow) and 0 < (entry[2].answered or 0) < old)
            }
        if self.copies is not None and (not self.copies or now >= self.copies[-1][0] + SECOND):
            self.copies.append((now, dict(self.rows)))

    def lose(self) -> None:
        """Lose everything, as where the file is deleted."""
        self.marker += 1
        self.rows.clear()

    def restore(self, at: int) -> None:
        """Come back as the ledger was at `at`, as a replica that had fallen behind."""
        self.marker += 1
        copies = self.copies or []
        place = bisect_right([when for when, _ in copies], at)
        self.rows = dict(copies[place - 1][1]) if place else {}
        for member in self.gone:
            self._forget(member)

    def leave(self, member: str) -> None:
        """Note that `member` has died."""
        self.gone.append(member)
        self._forget(member)

    def _forget(self, member: str) -> None:
        for key in [key for key in self.rows if key[:2] == ("MemberRow", member)]:
            del self.rows[key]


def _key(row: ev.LedgerRow) -> tuple[object, ...]:
    name = type(row).__name__
    match row:
        case ev.MemberRow():
            return name, row.member
        case ev.RequestRow() | ev.DurationRow():
            return name, row.member, row.number
        case ev.TaskRow() | ev.IntentRow():
            return name, row.member, row.ref
        case ev.DoneRow():
            return name, row.identity, row.digest
        case ev.PlanRow():
            return (name,)


@attrs.frozen
class Fault:
    """One member does nothing from `at` to `until` (seconds); without an end it is killed."""

    member: int
    at: float
    until: float = math.inf


@attrs.define(eq=False)
class Member:
    """One process: its scheduler, the jobs that it was given and where it stands.

    `known` are the tasks of others that it has read of, `ends` how its own jobs ended.
    """

    name: str
    scheduler: Scheduler
    jobs: list[int]
    fed: int = 0
    wake: int = 0
    beat: int = 0
    stopped_until: int = 0
    missed_since: int | None = None
    killed: bool = False
    ended_at: int = 0
    inbox: list[ev.Answer] = attrs.field(factory=list)
    known: dict[int, int] = attrs.field(factory=dict)
    ends: Counter[int] = attrs.field(factory=Counter)


@attrs.frozen
class FleetOutcome:
    """What a run came to; times in seconds.

    `lost`: tasks that nobody asked in time. `unsaved`: those of them that a member which was awake
    knew of, or whose owner was awake, although one of two polls came through and the second had
    room. `rescued`: polls that were sent for another member. `steps` and `writes`: how often the
    ledger was taken, and how often something was written. `ends`: when each member had its last
    end. `errors`: how jobs
    ended badly. `twice`: creations beyond the first of a job. `odd`: jobs of living members that
    did not end exactly once. `astray`: polls that left without the lock and so late that another
    member may have sent them too.
    """

    makespan: float
    bound: float
    requests: int
    lost: int
    unsaved: tuple[int, ...]
    refused: int
    rescued: int
    steps: int
    writes: int
    done: int
    ends: tuple[float, ...]
    errors: tuple[str, ...]
    twice: int
    odd: tuple[int, ...]
    astray: int

    @property
    def ratio(self) -> float:
        """Time over the clairvoyant lower bound."""
        return self.makespan / self.bound


class Fleet:
    """One load, job by job in turn given to `members`, on one key.

    `shared` is whether they have a ledger; `starts` when a member begins; `lose_at` when the ledger
    is lost; `restore_at` when it comes back as it was so many seconds earlier; `lateness` how late
    a step is; `unlocked` whether a step does not get the ledger's lock, `unkept` whether what it
    wrote is not kept, `cut_off` when a member does not reach the ledger at all; `settings` the
    limits and the polling of members that differ.
    """

    def __init__(
        self,
        durations: Sequence[float],
        members: int,
        *,
        seed: int = 0,
        limits: Limits | None = None,
        polling: Polling | None = None,
        settings: Mapping[int, tuple[Limits, Polling]] | None = None,
        job: Job = SMILE,
        shared: bool = True,
        faults: Sequence[Fault] = (),
        failures: Failures | None = None,
        starts: Mapping[int, float] | None = None,
        lateness: Callable[[random.Random], int] | None = None,
        lose_at: Sequence[float] = (),
        restore_at: Sequence[tuple[float, float]] = (),
        unlocked: Callable[[random.Random], bool] | None = None,
        unkept: Callable[[random.Random], bool] | None = None,
        cut_off: Sequence[Fault] = (),
        until: float = 36_000,
    ) -> None:
        usual = limits or Limits(), polling or Polling()
        self.durations, self.shared, self.until = durations, shared, round(until * SECOND)
        self.rng = random.Random(seed)
        self.vendor, self.ledger = Vendor(usual[0], self.rng), MemoryLedger()
        self.failures = failures or Failures(0.0)
        self.lateness, self.unlocked, self.unkept = lateness, unlocked, unkept
        self.faults, self.cut_off = faults, cut_off
        self.members = [
            Member(
                f"m{number}",
                Scheduler(
                    *(settings or {}).get(number, usual),
                    member=f"m{number}" if shared else "",
                    pid=number,
                ),
                [ref for ref in range(len(durations)) if ref % members == number],
                wake=round((starts or {}).get(number, 0.0) * SECOND),
            )
            for number in range(members)
        ]
        self._wanted = ev.JobAdded(0, kind_of(job), job.units, uploads=True)
        self._queue: list[tuple[int, int, str, int, ev.Request | ev.Upload]] = []
        self._answers: dict[tuple[int, int], ev.Answer] = {}
        self._incidents = sorted(
            [
                *((round(fault.at * SECOND), 0, fault) for fault in faults),
                *((round(at * SECOND), 1, None) for at in lose_at),
                *((round(at * SECOND), 2, round(age * SECOND)) for at, age in restore_at),
            ],
            key=lambda incident: incident[:2],
        )
        if restore_at:
            self.ledger.copies = []
        self._order = self.now = self.requests = self.rescued = self.twice = 0
        self.astray = 0
        self._finished: set[int] = set()
        self._errors: list[str] = []
        # By task: polls that failed since the last one that counted, and when it was lost.
        self._failed: Counter[int] = Counter()

    def run(self) -> FleetOutcome:
        """Run it to its end."""
        while not self._ended() and self.now < self.until:
            wakes = [
                (max(member.wake, member.stopped_until), number)
                for number, member in enumerate(self.members)
                if not member.killed
            ]
            wake = min((at for at, _ in wakes), default=NEVER)
            event = min(self._queue[0][0] if self._queue else NEVER, wake)
            if self._incidents and self._incidents[0][0] <= event:
                self._befall()
            elif event == NEVER:
                schedulers = [member.scheduler for member in self.members]
                raise AssertionError(f"nothing will ever happen again: {schedulers}")
            elif self._queue and self._queue[0][0] <= wake:
                self._deliver()
            else:
                self.now = max(self.now, wake)
                ready = [number for at, number in wakes if at <= self.now]
                self.rng.shuffle(ready)
                for number in ready:
                    self._step(number)
        return self._outcome()

    def _ended(self) -> bool:
        return all(
            member.killed
            or (
                member.fed == len(member.jobs)
                and not member.inbox
                and _idle(member.scheduler.statistics())
            )
            for member in self.members
        )

    def _befall(self) -> None:
        """A member is stopped or killed, or something happens to the ledger."""
        at, _, what = self._incidents.pop(0)
        self.now = max(self.now, at)
        if what is None:
            self.ledger.lose()
        elif isinstance(what, int):
            self.ledger.restore(at - what)
        elif what.until == math.inf:
            self.members[what.member].killed = True
            self.ledger.leave(self.members[what.member].name)
        else:
            self.members[what.member].stopped_until = round(what.until * SECOND)

    def _deliver(self) -> None:
        """A request arrives at the vendor, or its answer at its member."""
        self.now, _, what, number, command = heapq.heappop(self._queue)
        member = self.members[number]
        if what != "answered":
            # What has left arrives, whatever became of its sender.
            self._answers[number, command.number] = self._answer(command, fails=what == "fails")
            return
        given = self._answers.pop((number, command.number))
        if member.killed:
            return
        member.inbox.append(given)
        if member.stopped_until <= self.now:
            self._step(number)
        else:
            member.wake = min(member.wake, member.stopped_until)

    def _answer(self, command: ev.Request | ev.Upload, *, fails: bool) -> ev.Answer:
        vendor, request = self.vendor, _as_poll(command)
        if isinstance(request, ev.Poll):
            if request.ref in self._finished:
                # Whoever has seen it end, its result is kept for hours (contract: Results).
                vendor.seen[request.ref] = self.now
            self._failed[request.ref] += fails
        again = isinstance(request, ev.Submit) and request.ref in vendor.tasks
        given = answer(vendor, request, self.durations, self.now, fails=fails)
        self.twice += again and isinstance(given, ev.Accepted)
        if isinstance(given, ev.Succeeded):
            self._finished.add(given.command.ref)
        if isinstance(given, ev.Running):
            self._failed[given.command.ref] = 0
        return _of(command, given)

    def _step(self, number: int) -> None:
        member, now, ledger = self.members[number], self.now, self.ledger
        scheduler = member.scheduler
        for answered in member.inbox:
            scheduler.receive(answered, now)
        member.inbox.clear()
        locked = self.shared and self._takes(number)
        self._feed(member)
        if locked:
            read = ledger.read(member.name)
            for row in read.rows:
                if isinstance(row, ev.TaskRow) and row.task_id:
                    member.known.setdefault(_task(row.task_id), now)
            scheduler.receive(read, now)
            member.beat = now + _HEARTBEAT
        issued, waits = self._issue(member, locked=locked)
        if locked:
            issued = self._publish(member, issued)
        for each in issued:
            self._perform(number, each)
        wake = scheduler.wakes_at(now)
        if waits or (self.shared and not locked):
            wake = min(wake, now + _HURRY)
        elif self.shared and not _idle(scheduler.statistics()):
            wake = min(wake, max(member.beat, now + 1))
        if self.lateness is not None and wake != NEVER:
            wake += self.lateness(self.rng)
        member.wake = wake if wake == NEVER else max(wake, now + 1)

    def _issue(self, member: Member, *, locked: bool) -> tuple[list[ev.Command], bool]:
        """Issue what may leave; gives also whether something has to wait for the lock."""
        scheduler, now, issued = member.scheduler, self.now, list[ev.Command]()
        while (command := scheduler.due(now)) is not None:
            if self.shared and not locked:
                tried = now - (member.missed_since or now)
                if not scheduler.may_leave_unlocked(command, now, tried=tried):
                    return issued, True
                self.astray += isinstance(command, ev.Poll) and _late(scheduler, now) >= _LATE
            scheduler.receive(ev.Issued(command), now)
            issued.append(command)
            if isinstance(command, ev.Settle):
                self._feed(member)
        return issued, False

    def _takes(self, number: int) -> bool:
        """Whether a step of the member gets the lock."""
        member, now = self.members[number], self.now
        away = any(
            each.member == number and each.at * SECOND <= now < each.until * SECOND
            for each in self.cut_off
        )
        if away or (
            self.unlocked is not None
            and (member.missed_since is None or now < member.missed_since + _MISSED)
            and self.unlocked(self.rng)
        ):
            member.missed_since = now if member.missed_since is None else member.missed_since
            return False
        member.missed_since = None
        return True

    def _publish(self, member: Member, issued: list[ev.Command]) -> list[ev.Command]:
        """Write what changed; gives what may be performed."""
        scheduler, now = member.scheduler, self.now
        rows = scheduler.changes(now)
        if self.unkept is None or not self.unkept(self.rng):
            self.ledger.write(member.name, rows, now)
            return issued
        scheduler.publish_again()
        error = ServiceUnavailable("not written", never_sent=True)
        free: list[ev.Command] = [
            each for each in issued if isinstance(each, ev.Settle | ev.Upload)
        ]
        for each in issued:
            if not isinstance(each, ev.Settle | ev.Upload):
                if isinstance(each, ev.Poll):
                    self._failed[_vendor_ref(each)] += 1
                scheduler.receive(ev.NotSent(each, error, unwritten=True), now)
        return free

    def _feed(self, member: Member) -> None:
        statistics = member.scheduler.statistics()
        waiting = statistics.waiting + statistics.preparing + statistics.ready
        while member.fed < len(member.jobs) and waiting < member.scheduler.lookahead():
            wanted = attrs.evolve(self._wanted, ref=member.jobs[member.fed])
            member.scheduler.receive(wanted, self.now)
            member.fed, waiting = member.fed + 1, waiting + 1

    def _perform(self, number: int, command: ev.Command) -> None:
        member = self.members[number]
        if isinstance(command, ev.Settle):
            member.ended_at = self.now
            member.ends[command.ref] += 1
            self.vendor.settled(command, self.now)
            if not isinstance(command.ending, ev.Succeeded):
                self._errors.append(type(command.ending).__name__)
            return
        self._order += 1
        arrives, takes = times(command, self.rng)
        fails = isinstance(command, ev.Poll) and self.failures.hit(_vendor_ref(command))
        what, ends = ("fails", arrives) if fails else ("arrives", takes)
        arrival = self.now + arrives, 2 * self._order, what, number, command
        heapq.heappush(self._queue, arrival)
        answered = self.now + ends, 2 * self._order + 1, "answered", number, command
        heapq.heappush(self._queue, answered)
        self.requests += not isinstance(command, ev.Upload)
        self.rescued += isinstance(command, ev.Rescue)

    def _outcome(self) -> FleetOutcome:
        vendor, members = self.vendor, self.members
        lost = vendor.lost | {
            ref
            for ref in vendor.tasks
            if ref not in self._finished and self._held_until(ref) - vendor.seen[ref] > LEASE
        }
        return FleetOutcome(
            self.now / SECOND,
            bound(self.durations),
            self.requests,
            len(lost),
            tuple(sorted(filter(self._could_be_saved, lost))),
            vendor.refused,
            self.rescued,
            self.ledger.steps,
            self.ledger.writes,
            sum(member.ends.total() for member in members),
            tuple(member.ended_at / SECOND for member in members),
            tuple(self._errors),
            self.twice,
            tuple(
                ref
                for member in members
                if not member.killed
                for ref in member.jobs
                if member.ends[ref] != 1
            ),
            self.astray,
        )

    def _held_until(self, ref: int) -> int:
        return min(self.vendor.ends(ref), self.now)

    def _could_be_saved(self, ref: int) -> bool:
        """Whether a member was awake that could have polled the lost task `ref` in time."""
        if self._failed[ref] > (len(self.members) > 1):
            # Alone, a retry may find the window full of reserved polls, as without a ledger.
            return False
        due, over = self.vendor.seen[ref] + _DUE, self.vendor.seen[ref] + LEASE
        if self._crowded(over):
            return False
        for number, member in enumerate(self.members):
            if ref not in member.jobs and member.known.get(ref, due) >= due:
                continue
            asleep = (
                fault.member == number and fault.at * SECOND < over and due < fault.until * SECOND
                for fault in (*self.faults, *self.cut_off)
            )
            if not any(asleep):
                return True
        return False

    def _crowded(self, over: int) -> bool:
        """Whether the second had no room for another poll around `over`, for polls alone."""
        polls = [
            round(sent.at * SECOND)
            for sent in self.vendor.sent
            if sent.kind == "Poll" and abs(sent.at * SECOND - over) < _CROWD + SECOND
        ]
        most = self.vendor.limits.per_second
        return any(
            last - first < _CROWD and first < over
            for first, last in zip(polls, polls[most - 1 :], strict=False)
        )


def simulate_fleet(durations: Sequence[float], members: int, **settings: object) -> FleetOutcome:
    """Run one load as `Fleet` says."""
    return Fleet(durations, members, **settings).run()  # type: ignore[arg-type] # as given


def _idle(statistics: object) -> bool:
    names = "waiting", "preparing", "ready", "running"
    return not any(getattr(statistics, name) for name in names)


def _late(scheduler: Scheduler, now: int) -> int:
    """How late the reserved poll is that is due."""
    reserved = scheduler._state.table.due(now // SLOT)  # noqa: SLF001 - nobody else asks
    return 0 if reserved is None else now - reserved[0] * SLOT


def _task(task_id: str) -> int:
    """The vendor's number of a task."""
    return int(task_id.removeprefix("task-"))


def _vendor_ref(command: ev.Poll) -> int:
    """The vendor's number of the task that `command` asks for."""
    return _task(command.task_id) if isinstance(command, ev.Rescue) else command.ref


def _as_poll(command: ev.Request | ev.Upload) -> ev.Request | ev.Upload:
    if isinstance(command, ev.Rescue):
        return ev.Poll(command.number, _vendor_ref(command))
    return command


def _of(command: ev.Request | ev.Upload, given: ev.Answer) -> ev.Answer:
    """The same answer, to the command that was sent."""
    if not isinstance(command, ev.Rescue):
        return given
    return attrs.evolve(given, command=command)  # type: ignore[arg-type] # a rescue is a poll


__all__ = ["LEASE", "Fault", "Fleet", "FleetOutcome", "MemoryLedger", "simulate_fleet"]
