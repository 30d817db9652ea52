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
from perfect_async.models import Job, Limits, Polling
from perfect_async.scheduler import NEVER, Scheduler

_HEARTBEAT = SECOND
_UNLOCKED = 2_000
"""How soon a step that missed the lock is tried again, in microseconds."""
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
        self.copies: list[tuple[int, _Rows]] | None = None
        self._read: dict[str, tuple[int, int, int]] = {}

    def read(self, member: str) -> ev.LedgerRead:
        """What others wrote since `member` read the last time."""
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
    killed: bool = False
    ended_at: int = 0
    inbox: list[ev.Answer] = attrs.field(factory=list)
    known: dict[int, int] = attrs.field(factory=dict)
    ends: Counter[int] = attrs.field(factory=Counter)


@attrs.frozen
class FleetOutcome:
    """What a run came to; times in seconds.

    `lost`: tasks that nobody asked in time. `unsaved`: those of them that a member which was awake
    knew of, or whose owner was awake, although not all their polls failed. `rescued`: polls that
    were sent for another member. `ends`: when each member had its last end. `errors`: how jobs
    ended badly. `twice`: creations beyond the first of a job. `odd`: jobs of living members that
    did not end exactly once.
    """

    makespan: float
    bound: float
    requests: int
    lost: int
    unsaved: tuple[int, ...]
    refused: int
    rescued: int
    writes: int
    done: int
    ends: tuple[float, ...]
    errors: tuple[str, ...]
    twice: int
    odd: tuple[int, ...]

    @property
    def ratio(self) -> float:
        """Time over the clairvoyant lower bound."""
        return self.makespan / self.bound


class Fleet:
    """One load, job by job in turn given to `members`, on one key.

    `shared` is whether they have a ledger; `starts` when a member begins; `lose_at` when the ledger
    is lost; `restore_at` when it comes back as it was so many seconds earlier; `lateness` how late
    a step is; `unlocked` whether a step does not get the ledger's lock; `settings` the limits and
    the polling of members that differ.
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
        until: float = 36_000,
    ) -> None:
        usual = limits or Limits(), polling or Polling()
        self.durations, self.shared, self.until = durations, shared, round(until * SECOND)
        self.rng = random.Random(seed)
        self.vendor, self.ledger = Vendor(usual[0], self.rng), MemoryLedger()
        self.failures = failures or Failures(0.0)
        self.lateness, self.unlocked, self.faults = lateness, unlocked, faults
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
        self._created: set[int] = set()
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
        given = answer(vendor, request, self.durations, self.now, fails=fails)
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
        locked = self.shared and not (self.unlocked is not None and self.unlocked(self.rng))
        self._feed(member)
        if locked:
            read = ledger.read(member.name)
            for row in read.rows:
                if isinstance(row, ev.TaskRow) and row.task_id:
                    member.known.setdefault(_task(row.task_id), now)
            scheduler.receive(read, now)
            member.beat = now + _HEARTBEAT
        issued: list[ev.Command] = []
        while (command := scheduler.due(now)) is not None:
            if self.shared and not locked and not scheduler.may_leave_unlocked(command, now):
                break
            scheduler.receive(ev.Issued(command), now)
            issued.append(command)
            if isinstance(command, ev.Settle):
                self._feed(member)
        if locked:
            ledger.write(member.name, scheduler.changes(now), now)
        for each in issued:
            self._perform(number, each)
        wake = scheduler.wakes_at(now) if command is None else now + _UNLOCKED
        if self.shared and not _idle(scheduler.statistics()):
            wake = min(wake, max(member.beat, now + 1))
        if self.lateness is not None and wake != NEVER:
            wake += self.lateness(self.rng)
        member.wake = wake if wake == NEVER else max(wake, now + 1)

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
        if isinstance(command, ev.Submit):
            self.twice += command.ref in self._created
            self._created.add(command.ref)

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
        )

    def _held_until(self, ref: int) -> int:
        return min(self.vendor.ends(ref), self.now)

    def _could_be_saved(self, ref: int) -> bool:
        """Whether a member was awake that could have polled the lost task `ref` in time."""
        if self._failed[ref] > 1:
            return False
        due, over = self.vendor.seen[ref] + _DUE, self.vendor.seen[ref] + LEASE
        for number, member in enumerate(self.members):
            if ref not in member.jobs and member.known.get(ref, due) >= due:
                continue
            asleep = (
                fault.member == number and fault.at * SECOND < over and due < fault.until * SECOND
                for fault in self.faults
            )
            if not any(asleep):
                return True
        return False


def simulate_fleet(durations: Sequence[float], members: int, **settings: object) -> FleetOutcome:
    """Run one load as `Fleet` says."""
    return Fleet(durations, members, **settings).run()  # type: ignore[arg-type] # as given


def _idle(statistics: object) -> bool:
    names = "waiting", "preparing", "ready", "running"
    return not any(getattr(statistics, name) for name in names)


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
    return attrs.evolve(given, command=command) if isinstance(command, ev.Rescue) else given


__all__ = ["LEASE", "Fault", "Fleet", "FleetOutcome", "MemoryLedger", "simulate_fleet"]
