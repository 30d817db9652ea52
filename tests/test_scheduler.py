"""The scheduler against a vendor and a driver that do their worst, and its decisions one by one."""

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from enum import Enum

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from perfect_async import events as ev
from perfect_async._timetable import SLOT
from perfect_async.errors import (
    ClientClosed,
    ConfigurationError,
    JobRefused,
    PerfectError,
    RateLimited,
    RequestRefused,
    ServiceUnavailable,
    SubmissionInDoubt,
    TaskAbandoned,
    TaskError,
    TaskExpired,
    TaskFailed,
    Unauthorized,
    UnitsExhausted,
)
from perfect_async.models import Limits, Polling
from perfect_async.scheduler import NEVER, IllegalEvent, Scheduler

SECOND = 1_000_000
DOWN = ServiceUnavailable("down")
NEVER_SENT = ServiceUnavailable("not connected", never_sent=True)
FULL = RateLimited("Too many requests", status=429)
LEAST = 1_000
GRANT = ev.FileGrant("f", "PUT", "https://up.example/1", ())


def dump(thing: object) -> object:
    """Everything that `thing` holds, as values that can be compared."""
    if isinstance(thing, int | float | str | None | Enum | BaseException | range | type):
        return repr(thing)
    if isinstance(thing, Mapping):
        return sorted((repr(dump(key)), dump(value)) for key, value in thing.items())
    if isinstance(thing, set | frozenset):
        return sorted(map(repr, thing))
    if isinstance(thing, list | tuple | deque):
        return [dump(each) for each in thing]
    fields = getattr(thing, "__attrs_attrs__", None)
    names = [field.name for field in fields] if fields else list(vars(thing))
    return [type(thing).__name__, *((name, dump(getattr(thing, name))) for name in names)]


@attrs.define
class Flight:
    """One request or upload on its way."""

    command: ev.Request | ev.Upload
    left: int
    # The latest arrival by the fault model, in the period's and in the second's limit.
    latest: int
    soonest: int
    answered: int | None = None


@attrs.define
class Task:
    """One task at the vendor."""

    ends: int
    seen: int
    lost: bool = False


class World:
    """A driver that is awake when it should be, and a vendor whose answers `fate` decides.

    `fate(command, arrives)` says what happens to what left: the round trip in microseconds, where
    in it the request arrives, and the answer, or None for what the vendor would say.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        polling: Polling | None = None,
        *,
        seed: int = 0,
        start: int = 0,
        engine_retries: int = 1,
        duration: Callable[[random.Random], float] = lambda rng: rng.lognormvariate(2, 0.4),
    ) -> None:
        self.limits, self.polling = limits or Limits(), polling or Polling()
        self.scheduler = Scheduler(self.limits, self.polling, engine_retries=engine_retries)
        self.rng, self.now, self.duration = random.Random(seed), start, duration
        self.order = 0
        self.queue: list[tuple[int, int, str, Flight, ev.Answer | None]] = []
        self.said: dict[int, ev.Answer] = {}
        self.flights: dict[int, Flight] = {}
        self.past: deque[Flight] = deque()
        self.sent: list[tuple[int, ev.Command]] = []
        self.arrivals: deque[int] = deque()
        self.foreign: deque[int] = deque()
        self.tasks: dict[int, Task] = {}
        self.jobs: dict[int, float] = {}
        self.settled: dict[int, ev.Settle] = {}
        self.settled_at: dict[int, int] = {}
        self.doubtful: set[int] = set()
        self.on_time = True
        self.pure = True
        self.fate: Callable[[ev.Request | ev.Upload], ev.Answer | None] = lambda _: None
        self.round_trip: Callable[[ev.Request | ev.Upload], int] = lambda _: self.rng.randint(
            20_000, 140_000
        )

    # What comes in.

    def want(self, *, uploads: bool = True, lane: int = 0, units: float = 1.0) -> int:
        ref = len(self.jobs) + 1
        self.jobs[ref] = units
        feature = "ai-smile" if ref % 2 else "ai-avatar"
        self.tell(ev.Wanted(ref, feature, units, uploads, lane))
        return ref

    def tell(self, event: ev.Event) -> None:
        self.scheduler.receive(event, self.now)

    # The driver.

    def perform(self) -> None:
        for _ in range(100_000):
            command = self.scheduler.due(self.now)
            assert command == self.scheduler.due(self.now)
            if command is None:
                assert self.now < self.scheduler.wakes_at(self.now)
                return
            self.promise_kept(command)
            self.tell(ev.Issued(command))
            self.sent.append((self.now, command))
            if isinstance(command, ev.Settle):
                assert command.ref not in self.settled
                self.settled[command.ref] = command
                self.settled_at[command.ref] = self.now
            else:
                self.leave(command)
        raise AssertionError("it never rests")

    def promise_kept(self, command: ev.Command) -> None:
        """A promised poll leaves in its slot, if its task had an id by then and we were awake."""
        if isinstance(command, ev.Poll) and self.on_time:
            first = self.scheduler._book.table.first()
            if first is not None and first[1] == command.ref and first[0] < self.now // SLOT:
                assert command.ref in self.slow

    @property
    def slow(self) -> set[int]:
        return getattr(self, "_slow", set())

    def leave(self, command: ev.Request | ev.Upload) -> None:
        if isinstance(command, ev.Submit):
            assert command.ref not in self.doubtful
        table = self.scheduler._book.table
        flight = Flight(command, self.now, self.now + 2 * SECOND, self.now + table.guard)
        takes = max(LEAST, self.round_trip(command))
        arrives = self.now + self.rng.randint(0, min(takes, table.guard))
        answer = self.fate(command)
        self.order += 1
        heapq.heappush(self.queue, (arrives, self.order, "arrives", flight, answer))
        self.order += 1
        heapq.heappush(self.queue, (self.now + takes, self.order, "answers", flight, answer))
        if not isinstance(command, ev.Upload):
            self.flights[command.number] = flight
            if self.pure:
                self.windows_hold()

    def windows_hold(self) -> None:
        """No window is overdrawn wherever between leaving and answer each request arrived."""
        period = round(self.limits.period * SECOND)
        while self.past and self.past[0].answered < self.now - period:
            self.past.popleft()
        known = [*self.past, *self.flights.values()]
        for flight in known:
            if flight.answered is not None:
                flight.latest = min(flight.latest, flight.answered)
                flight.soonest = min(flight.soonest, flight.answered)
        held = sum(flight.latest > self.now - period for flight in known)
        assert held <= self.limits.requests
        if len(known) > self.limits.per_second:
            second = sum(flight.soonest > self.now - SECOND for flight in known)
            assert second <= self.limits.per_second

    def run(self, until: int, *, stop: Callable[[], bool] = lambda: False) -> None:
        """Let time pass, awake whenever there is something to do."""
        self.perform()
        while not stop():
            wake = self.scheduler.wakes_at(self.now)
            at = self.queue[0][0] if self.queue else NEVER
            if min(wake, at) > until:
                break
            self.now = max(self.now, min(wake, at))
            if at <= wake:
                self.happen()
            self.perform()
        else:
            return
        self.now = max(self.now, until)

    def happen(self) -> None:
        _, _, what, flight, answer = heapq.heappop(self.queue)
        command = flight.command
        if what == "arrives":
            if not isinstance(answer, ev.NotSent):
                self.said[command.number] = self.vendor(command)
            return
        said = self.said.pop(command.number, None)
        event = answer if answer is not None else said
        assert event is not None
        if isinstance(said, ev.Limited) and not isinstance(answer, ev.NoAnswer | ev.NotSent):
            event = said
        if not isinstance(command, ev.Upload):
            del self.flights[command.number]
            flight.answered = self.now
            self.past.append(flight)
        if isinstance(command, ev.Submit):
            if isinstance(event, ev.NoAnswer):
                self.doubtful.add(command.ref)
            cycle = self.scheduler._book.table.cycle * SLOT
            if self.now > flight.left + cycle - SLOT:
                self.slow.add(command.ref)
        self.tell(event)

    def finish(self, within: float = 3600) -> None:
        self.run(
            self.now + round(within * SECOND), stop=lambda: len(self.settled) >= len(self.jobs)
        )

    # The vendor.

    def admits(self) -> bool:
        period = round(self.limits.period * SECOND)
        while self.arrivals and self.arrivals[0] <= self.now - period:
            self.arrivals.popleft()
        second = 0
        for at in reversed(self.arrivals):
            if at <= self.now - SECOND:
                break
            second += 1
        fits = len(self.arrivals) < self.limits.requests and second < self.limits.per_second
        self.arrivals.append(self.now)
        return fits

    def vendor(self, command: ev.Request | ev.Upload) -> ev.Answer:
        if isinstance(command, ev.Upload):
            return ev.Uploaded(command)
        if not self.admits():
            assert not self.pure
            return ev.Limited(command, FULL)
        match command:
            case ev.Register():
                return ev.Registered(command, (GRANT,) * len(command.refs))
            case ev.Submit():
                lasts = round(self.duration(self.rng) * SECOND)
                self.tasks[command.ref] = Task(self.now + lasts, self.now)
                return ev.Accepted(command, f"task-{command.number}")
            case ev.Ask():
                return ev.Answered(command)
            case ev.Poll():
                task = self.tasks[command.ref]
                task.lost |= self.now - task.seen > round(self.polling.lease * SECOND)
                if task.lost:
                    return ev.TaskUnknown(command, TaskExpired("lost"))
                task.seen = self.now
                if self.now >= task.ends:
                    return ev.Succeeded(command, ("https://results.example/1",))
                return ev.Running(command)

    # What is to be seen.

    def endings(self) -> Counter[str]:
        return Counter(type(each.ending).__name__ for each in self.settled.values())

    def kinds(self) -> Counter[str]:
        return Counter(type(command).__name__ for _, command in self.sent)

    def units_add_up(self) -> None:
        statistics = self.scheduler.statistics()
        jobs = self.scheduler._book.jobs.values()
        charged = sum(each.units for each in self.settled.values())
        charged += sum(job.charged for job in jobs)
        assert round(charged, 6) == round(statistics.units_charged - statistics.units_returned, 6)

    def promises_hold(self) -> None:
        """Every task in flight has a promise within a cycle, and the plan is inside the limits."""
        table, slot = self.scheduler._book.table, self.now // SLOT
        for task in table._tasks.values():
            assert task.next <= slot + table.cycle + 1 or task.next > task.last
        left = [flight.left // SLOT for flight in (*self.past, *self.flights.values())]
        ahead = [
            at
            for task in table._tasks.values()
            for at in range(max(task.next, slot), task.last + 1, table.cycle)
        ]
        run = (round(self.limits.period * SECOND) + 2 * SECOND) // SLOT
        slots = sorted(left + ahead)
        low = 0
        for high, at in enumerate(slots):
            while slots[low] < at - run + 1:
                low += 1
            assert high - low < self.limits.requests
        short, low = table._second(), 0
        ahead.sort()
        for high, at in enumerate(ahead):
            while ahead[low] < at - short + 1:
                low += 1
            assert high - low < self.limits.per_second


SETTINGS = (
    (Limits(), Polling(give_up_after=120)),
    (Limits(), Polling()),
    (Limits().split(4), Polling(give_up_after=60)),
    (Limits(60, 30.0, 2), Polling(lease=6, give_up_after=30)),
    (Limits(30, 10.0, 5), Polling(lease=2, give_up_after=8)),
    (Limits(2000, 300.0, 40), Polling(give_up_after=60)),
    (Limits(1000, 300.0, 1), Polling(give_up_after=40)),
    (Limits(300, 60.0, 7), Polling(lease=5, interval=0.5, give_up_after=20)),
)


class Machine(RuleBasedStateMachine):
    """Anything may happen at any time; the promises of the scheduler hold all the same."""

    @initialize(
        setting=st.sampled_from(SETTINGS),
        seed=st.integers(0, 2**32),
        faults=st.sampled_from(["none", "network", "all"]),
        start=st.sampled_from([0, 12_345_678_901]),
    )
    def begin(
        self, setting: tuple[Limits, Polling], seed: int, faults: str, start: int
    ) -> None:
        self.world = world = World(*setting, seed=seed, start=start)
        world._slow = set()
        self.faults, self.rng = faults, world.rng
        self.lanes: set[int] = set()
        self.asked = 0
        if faults != "none":
            world.round_trip = self.round_trip
            world.fate = self.fate
        lasts = [
            lambda rng: rng.uniform(0, 3),
            lambda rng: rng.lognormvariate(2, 0.6),
            lambda rng: rng.choice([1, 1000]),
        ]
        world.duration = self.rng.choice(lasts)

    def round_trip(self, command: ev.Request | ev.Upload) -> int:
        if self.rng.random() < 0.03:
            return self.rng.randint(SECOND // 2, 30 * SECOND)
        return self.rng.randint(5_000, 150_000)

    def fate(self, command: ev.Request | ev.Upload) -> ev.Answer | None:
        rng, no = self.rng, ServiceUnavailable("502", status=502)
        if rng.random() < 0.04:
            return rng.choice([ev.NotSent, ev.NoAnswer])(command, no)
        if self.faults == "all" and rng.random() < 0.08:
            return self.strange(command)
        return None

    def strange(self, command: ev.Request | ev.Upload) -> ev.Answer | None:
        rng, refused = self.rng, RequestRefused("no", status=400)
        match command:
            case ev.Register():
                return ev.Refused(command, refused, rng.choice([400, 404, 403]))
            case ev.Upload():
                return ev.Refused(command, rng.choice([JobRefused("gone"), refused]), 403)
            case ev.Submit():
                if rng.random() < 0.1:
                    return ev.OutOfUnits(command, UnitsExhausted("poor"))
                return ev.Refused(command, refused, 400)
            case ev.Ask():
                return ev.Refused(command, refused, 400)
            case ev.Poll():
                return rng.choice(
                    [
                        ev.Running(command, rng.choice([0, -5, 10**12, 700_000, 3_000_000])),
                        ev.EngineFailed(command, TaskFailed("x", code="x", passing=True), True),
                        ev.EngineFailed(command, TaskFailed("x", code="x", passing=False), False),
                        ev.TaskUnknown(command, TaskExpired("unknown")),
                        ev.TimedOut(command, TaskExpired("timed out")),
                        ev.Refused(command, refused, 409),
                    ]
                )

    @rule(count=st.integers(1, 60), uploads=st.booleans(), lane=st.integers(0, 2))
    def jobs_come(self, count: int, uploads: bool, lane: int) -> None:
        for _ in range(count):
            self.world.want(uploads=uploads, lane=lane, units=self.rng.choice([1.0, 2.0]))
        self.world.perform()

    @rule(count=st.sampled_from([1, 7, 40, 200]))
    def questions(self, count: int) -> None:
        for _ in range(count):
            self.asked += 1
            self.world.tell(ev.Asked(1_000_000 + self.asked, self.rng.randint(0, 2)))
        self.world.perform()

    @rule(seconds=st.floats(0, 90))
    def time_passes(self, seconds: float) -> None:
        self.world.run(self.world.now + round(seconds * SECOND))

    @precondition(lambda self: self.rng.random() < 0.1)
    @rule(seconds=st.sampled_from([0.2, 3, 60, 40_000]))
    def overslept(self, seconds: float) -> None:
        """The loop was blocked; what is proved for a driver that is awake no longer binds."""
        world = self.world
        world.on_time = world.pure = False
        world.now += round(seconds * SECOND)
        while world.queue and world.queue[0][0] <= world.now:
            world.happen()
        world.perform()

    @rule()
    def withdrawn(self) -> None:
        self.world.tell(ev.Withdrawn(self.rng.randint(1, len(self.world.jobs) + 3)))
        self.world.perform()

    @precondition(lambda self: self.rng.random() < 0.15)
    @rule(event=st.sampled_from([ev.Closed, ev.Dropped]), lane=st.integers(0, 2))
    def lane_ends(self, event: type[ev.Closed | ev.Dropped], lane: int) -> None:
        self.world.tell(event(lane))
        self.world.perform()

    @rule()
    def illegal(self) -> None:
        """News that cannot be raises and changes nothing."""
        world, scheduler = self.world, self.world.scheduler
        scheduler.due(world.now)
        poll, upload = ev.Poll(10**9, 1), ev.Upload(10**9, 1)
        news: list[ev.Event] = [
            ev.Issued(poll),
            ev.Issued(ev.Settle(1, ClientClosed("x"), 1.0)),
            ev.Running(poll),
            ev.Uploaded(upload),
            *(ev.Wanted(ref, "ai-smile", 1, True) for ref in list(scheduler._book.jobs)[:1]),
        ]
        for flight in world.flights.values():
            command = flight.command
            news.append(ev.Uploaded(attrs.evolve(upload, number=command.number)))
            wrong = ev.Running if not isinstance(command, ev.Poll) else ev.Accepted
            news.append(wrong(command, 1))  # type: ignore[arg-type]
            news.append(ev.Issued(command))
        news += [ev.NoAnswer(flight.command, DOWN) for flight in list(world.past)[-3:]]
        before = dump(scheduler)
        for event in news:
            with pytest.raises(IllegalEvent):
                scheduler.receive(event, world.now)
            assert before == dump(scheduler)

    @rule()
    def only_a_question(self) -> None:
        """Asking changes nothing, what it remembers of the answer aside."""
        world, scheduler = self.world, self.world.scheduler
        scheduler.due(world.now)
        scheduler.wakes_at(world.now)
        before = dump(scheduler)
        scheduler.due(world.now)
        scheduler.wakes_at(world.now)
        scheduler.statistics()
        scheduler.eta(10)
        repr(scheduler)
        assert before == dump(scheduler)

    @invariant()
    def holds(self) -> None:
        world = self.world
        world.units_add_up()
        assert len(world.sent) < 200_000
        if world.on_time and world.pure:
            world.promises_hold()
        if self.faults == "none" and world.on_time:
            assert not any(task.lost for task in world.tasks.values())

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        give_up = self.world.polling.give_up_after
        for lane in range(3):
            world.tell(ev.Closed(lane))
        world.run(world.now + round((2 * give_up + 100) * SECOND))
        jobs = {ref for ref in world.jobs if ref < 1_000_000}
        assert jobs == jobs & set(world.settled)
        self.holds()
        assert not world.scheduler._book.jobs
        assert 0 == len(world.scheduler._book.table)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=25)
