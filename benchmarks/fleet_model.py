"""Several members on one key, in virtual time: the real schedulers and a ledger in memory.

Each member is a process with a scheduler of its own. It wakes at its own times only: for its
answers, when its scheduler wants to, and once a second while it has work. A member may be stopped
(Ctrl-Z) or killed, each of its steps may be late, and the ledger may be lost.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence

import attrs

from benchmarks.loads import SMILE, bound
from benchmarks.model import LEASE, SECOND, Failures, Vendor, answer, kind_of, times
from perfect_async import events as ev
from perfect_async.models import Job, Limits, Polling
from perfect_async.scheduler import NEVER, Scheduler

_HEARTBEAT = SECOND


class MemoryLedger:
    """What a store does, without one: rows by what they replace, stamped by one counter."""

    def __init__(self) -> None:
        self.version = 0
        self.rows: dict[tuple[object, ...], tuple[int, str, ev.LedgerRow]] = {}
        self.marker = 0
        self.gone: list[str] = []
        self.writes = 0
        self.steps = 0
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

    def lose(self) -> None:
        """Lose everything, as where the file is deleted."""
        self.marker += 1
        self.rows.clear()

    def leave(self, member: str) -> None:
        """Note that `member` has died."""
        self.gone.append(member)
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
    until: float = float("inf")


@attrs.define(eq=False)
class Member:
    """One process: its scheduler, the jobs that it was given and where it stands."""

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


@attrs.frozen
class FleetOutcome:
    """What a run came to; times in seconds.

    `done`: jobs that ended well. `lost`: tasks that nobody asked in time. `steps` and `writes`: how
    often the ledger was taken, and how often something was written. `rescued`: polls that were sent for another member.
    `ends`: when each member had its last end. `errors`: how jobs of living members ended badly.
    `twice`: creations that were sent twice.
    """

    makespan: float
    bound: float
    requests: int
    lost: int
    refused: int
    rescued: int
    steps: int
    writes: int
    done: int
    ends: tuple[float, ...]
    errors: tuple[str, ...]
    twice: int

    @property
    def ratio(self) -> float:
        """Time over the clairvoyant lower bound."""
        return self.makespan / self.bound


def simulate_fleet(
    durations: Sequence[float],
    members: int,
    *,
    seed: int = 0,
    limits: Limits | None = None,
    share: Limits | None = None,
    polling: Polling | None = None,
    job: Job = SMILE,
    shared: bool = True,
    faults: Sequence[Fault] = (),
    failures: Failures | None = None,
    starts: Mapping[int, float] | None = None,
    lateness: Callable[[random.Random], int] | None = None,
    lose_at: Sequence[float] = (),
    unlocked: Callable[[random.Random], bool] | None = None,
    until: float = 36_000,
) -> FleetOutcome:
    """Run one load, job by job in turn given to `members`, on one key.

    `shared` is whether they have a ledger; `share` are the limits that each member keeps to where
    they are not those of the key. `starts` when a member begins; `lose_at` when the ledger
    is lost; `unlocked` whether a step does not get the ledger's lock.
    """
    limits, polling = limits or Limits(), polling or Polling()
    rng = random.Random(seed)
    vendor, ledger = Vendor(limits, rng), MemoryLedger()
    failures = failures or Failures(0.0)
    fleet = [
        Member(
            f"m{number}",
            Scheduler(share or limits, polling, member=f"m{number}" if shared else "", pid=number),
            [ref for ref in range(len(durations)) if ref % members == number],
            wake=round((starts or {}).get(number, 0.0) * SECOND),
        )
        for number in range(members)
    ]
    wanted = ev.JobAdded(0, kind_of(job), job.units, uploads=True)
    queue: list[tuple[int, int, str, int, ev.Request | ev.Upload]] = []
    answers: dict[tuple[int, int], ev.Answer] = {}
    plans = sorted(faults, key=lambda fault: fault.at)
    losses = sorted(lose_at)
    order, now, requests, rescued, twice = 0, 0, 0, 0, 0
    created: set[int] = set()
    finished: set[int] = set()
    errors: list[str] = []
    done = 0

    def perform(number: int, command: ev.Command) -> None:
        nonlocal order, requests, rescued, done, twice
        member = fleet[number]
        if isinstance(command, ev.Settle):
            done += 1
            member.ended_at = now
            vendor.settled(command, now)
            if not isinstance(command.ending, ev.Succeeded):
                errors.append(type(command.ending).__name__)
            return
        order += 1
        arrives, takes = times(command, rng)
        fails = isinstance(command, ev.Poll) and failures.hit(_vendor_ref(command))
        what, ends = ("fails", now + arrives) if fails else ("arrives", now + takes)
        heapq.heappush(queue, (now + arrives, 2 * order, what, number, command))
        heapq.heappush(queue, (ends, 2 * order + 1, "answered", number, command))
        requests += not isinstance(command, ev.Upload)
        rescued += isinstance(command, ev.Rescue)
        if isinstance(command, ev.Submit):
            twice += command.ref in created
            created.add(command.ref)

    def feed(member: Member) -> None:
        statistics = member.scheduler.statistics()
        waiting = statistics.waiting + statistics.preparing + statistics.ready
        while member.fed < len(member.jobs) and waiting < member.scheduler.lookahead():
            member.scheduler.receive(attrs.evolve(wanted, ref=member.jobs[member.fed]), now)
            member.fed, waiting = member.fed + 1, waiting + 1

    def step(number: int) -> None:
        member = fleet[number]
        scheduler = member.scheduler
        for answered in member.inbox:
            scheduler.receive(answered, now)
        member.inbox.clear()
        locked = shared and not (unlocked is not None and unlocked(rng))
        feed(member)
        if locked:
            scheduler.receive(ledger.read(member.name), now)
            member.beat = now + _HEARTBEAT
        issued: list[ev.Command] = []
        while (command := scheduler.due(now)) is not None:
            if shared and not locked and not scheduler.may_leave_unlocked(command, now):
                break
            scheduler.receive(ev.Issued(command), now)
            issued.append(command)
            if isinstance(command, ev.Settle):
                feed(member)
        if locked:
            ledger.write(member.name, scheduler.changes(now), now)
        for command in issued:
            perform(number, command)
        wake = scheduler.wakes_at(now) if command is None else now + 2_000
        statistics = scheduler.statistics()
        busy = statistics.running or statistics.waiting + statistics.preparing + statistics.ready
        if shared and busy:
            wake = min(wake, max(member.beat, now + 1))
        if lateness is not None and wake != NEVER:
            wake += lateness(rng)
        member.wake = wake if wake == NEVER else max(wake, now + 1)

    def all_ended() -> bool:
        return all(
            member.killed
            or (
                member.fed == len(member.jobs)
                and not member.inbox
                and _idle(member.scheduler.statistics())
            )
            for member in fleet
        )

    while not all_ended() and now < until * SECOND:
        wakes = [
            (max(member.wake, member.stopped_until), number)
            for number, member in enumerate(fleet)
            if not member.killed
        ]
        wake = min((at for at, _ in wakes), default=NEVER)
        event = min(queue[0][0] if queue else NEVER, wake)
        if plans and plans[0].at * SECOND <= event:
            fault = plans.pop(0)
            now = max(now, round(fault.at * SECOND))
            if fault.until == float("inf"):
                fleet[fault.member].killed = True
                ledger.leave(fleet[fault.member].name)
            else:
                fleet[fault.member].stopped_until = round(fault.until * SECOND)
            continue
        if losses and losses[0] * SECOND <= event:
            now = max(now, round(losses.pop(0) * SECOND))
            ledger.lose()
            continue
        if event == NEVER:
            raise AssertionError(f"nothing will ever happen again: {[m.scheduler for m in fleet]}")
        if queue and queue[0][0] <= wake:
            now, _, what, number, command = heapq.heappop(queue)
            member = fleet[number]
            if what != "answered":
                # What has left arrives, whatever became of its sender.
                request = _as_poll(command)
                if isinstance(request, ev.Poll) and request.ref in finished:
                    # Whoever has seen it end, its result is kept for hours (contract: Results).
                    vendor.seen[request.ref] = now
                given = answer(vendor, request, durations, now, fails=what == "fails")
                answers[number, command.number] = _of(command, given)
                if isinstance(given, ev.Succeeded):
                    finished.add(given.command.ref)
                continue
            given = answers.pop((number, command.number))
            if member.killed:
                continue
            member.inbox.append(given)
            if member.stopped_until <= now:
                step(number)
            else:
                member.wake = min(member.wake, member.stopped_until)
        else:
            now = max(now, wake)
            ready = [number for at, number in wakes if at <= now]
            rng.shuffle(ready)
            for number in ready:
                step(number)
    lost = vendor.lost | {
        ref
        for ref in vendor.tasks
        if ref not in finished and min(vendor.ends(ref), now) - vendor.seen[ref] > LEASE
    }
    return FleetOutcome(
        now / SECOND,
        bound(durations),
        requests,
        len(lost),
        vendor.refused,
        rescued,
        ledger.steps,
        ledger.writes,
        done - len(errors),
        tuple(member.ended_at / SECOND for member in fleet),
        tuple(errors),
        twice,
    )


def _idle(statistics: object) -> bool:
    names = "waiting", "preparing", "ready", "running"
    return not any(getattr(statistics, name) for name in names)


def _vendor_ref(command: ev.Poll) -> int:
    """The vendor's number of the task that `command` asks for."""
    if isinstance(command, ev.Rescue):
        return int(command.task_id.removeprefix("task-"))
    return command.ref


def _as_poll(command: ev.Request | ev.Upload) -> ev.Request | ev.Upload:
    if isinstance(command, ev.Rescue):
        return ev.Poll(command.number, _vendor_ref(command))
    return command


def _of(command: ev.Request | ev.Upload, given: ev.Answer) -> ev.Answer:
    """The same answer, to the command that was sent."""
    if isinstance(command, ev.Rescue):
        return attrs.evolve(given, command=command)  # type: ignore[arg-type] # a rescue is a poll
    return given


__all__ = ["LEASE", "Fault", "FleetOutcome", "MemoryLedger", "simulate_fleet"]
