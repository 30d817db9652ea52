"""The scheduler against a vendor and a driver that misbehave, and its decisions one by one."""

import heapq
import math
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
from perfect_async._time import SLOT
from perfect_async.errors import (
    ClientClosed,
    ConfigurationError,
    JobRefused,
    RateLimited,
    RequestRefused,
    ServiceUnavailable,
    SubmissionInDoubt,
    TaskAbandoned,
    TaskExpired,
    TaskFailed,
    Unauthorized,
    UnitsExhausted,
)
from perfect_async.models import Limits, Polling
from perfect_async.scheduler import NEVER, IllegalEvent, Scheduler
from perfect_async.scheduler._scheduler import _Moment
from tests.support.scheduler_harness import SMILE, SchedulerHarness, grants, head
from tests.support.searching import examples

SECOND = 1_000_000
DOWN = ServiceUnavailable("down")
NEVER_SENT = ServiceUnavailable("not connected", never_sent=True)
FULL = RateLimited("Too many requests", status=429)
LEAST = 1_000


def dump(thing: object, seen: set[int] | None = None) -> object:
    """Return all state of `thing` as comparable values; repeated objects are named."""
    if isinstance(thing, int | float | str | None | Enum | BaseException | range | type):
        return repr(thing)
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return type(thing).__name__
    seen.add(id(thing))
    if isinstance(thing, Mapping):
        return sorted((repr(dump(key, seen)), dump(each, seen)) for key, each in thing.items())
    if isinstance(thing, set | frozenset):
        return sorted(map(repr, thing))
    if isinstance(thing, list | tuple | deque):
        return [dump(each, seen) for each in thing]
    fields = getattr(thing, "__attrs_attrs__", None)
    names = [field.name for field in fields] if fields else list(vars(thing))
    return [type(thing).__name__, *((name, dump(getattr(thing, name), seen)) for name in names)]


@attrs.define
class Flight:
    """One request or upload under way."""

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

    `round_trip(command)` is how long the answer to `command` takes in microseconds, and
    `fate(command)` is a failure instead of the vendor's answer, or None.
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
        # Strict where nothing else is said: what is proved holds whatever the durations are.
        self.limits, self.polling = limits or Limits(), polling or Polling(insured=600)
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
        self._slow: set[int] = set()
        self.on_time = True
        self.pure = True
        self.fate: Callable[[ev.Request | ev.Upload], ev.Answer | None] = lambda _: None
        self.round_trip: Callable[[ev.Request | ev.Upload], int] = lambda _: self.rng.randint(
            20_000, 140_000
        )

    # What comes in.

    def want(self, *, uploads: bool = True, channel: int = 0, units: float = 1.0) -> int:
        ref = len(self.jobs) + 1
        self.jobs[ref] = units
        feature = "ai-smile" if ref % 2 else "ai-avatar"
        self.tell(ev.JobAdded(ref, ev.TaskKind(feature), units, uploads, channel))
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
            self.check_reserved_poll(command)
            self.tell(ev.Issued(command))
            self.sent.append((self.now, command))
            if isinstance(command, ev.Settle):
                assert command.ref not in self.settled
                self.settled[command.ref] = command
                self.settled_at[command.ref] = self.now
            else:
                self.leave(command)
        raise AssertionError("it never rests")

    def check_reserved_poll(self, command: ev.Command) -> None:
        """Check that a reserved poll leaves in its slot, if its task had an id, the driver was
        awake, and others did not fill the window.
        """
        if isinstance(command, ev.Poll) and self.on_time:
            first = self.scheduler._state.table.due(self.now // SLOT)
            if first is not None and first[1] == command.ref and first[0] < self.now // SLOT:
                contended = self.now < self.scheduler._state.pacer.allowance.contended_until
                assert contended or command.ref in self.slow

    @property
    def slow(self) -> set[int]:
        """Return the tasks whose creation was answered after their first reserved poll."""
        return self._slow

    def leave(self, command: ev.Request | ev.Upload) -> None:
        if isinstance(command, ev.Submit):
            assert command.ref not in self.doubtful
        table = self.scheduler._state.table
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
        """Check that no window is exceeded, whenever each request arrived before its answer."""
        period = round(self.limits.period * SECOND)
        while self.past and (self.past[0].answered or 0) < self.now - period:
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
        """Let time pass, awake whenever a command may be due."""
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
            # The first reserved poll may take a phase up to a quarter of a cycle earlier.
            cycle = self.scheduler._state.table.cycle * SLOT
            if self.now > flight.left + cycle * 3 // 4 - SLOT:
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
                return ev.Registered(command, grants(command))
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
                    return ev.Succeeded(command, (f"https://results.example/{command.ref}",))
                return ev.Running(command)

    # What is to be seen.

    def endings(self) -> Counter[str]:
        return Counter(type(each.ending).__name__ for each in self.settled.values())

    def kinds(self) -> Counter[str]:
        return Counter(type(command).__name__ for _, command in self.sent)

    def units_add_up(self) -> None:
        statistics = self.scheduler.statistics()
        jobs = self.scheduler._state.jobs.values()
        charged = sum(each.units for each in self.settled.values())
        charged += sum(job.charged for job in jobs)
        assert round(charged, 6) == round(statistics.units.charged - statistics.units.returned, 6)

    def reservations_hold(self) -> None:
        """Every running task has a reserved poll within a cycle, and the plan fits the limits."""
        table, slot = self.scheduler._state.table, self.now // SLOT
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
        short, low = table._reach, 0
        ahead.sort()
        for high, at in enumerate(ahead):
            while ahead[low] < at - short + 1:
                low += 1
            assert high - low < self.limits.per_second


SETTINGS = (
    (Limits(), Polling(give_up_after=120)),
    (Limits(), Polling()),
    (Limits(), Polling(insured=600)),
    (Limits(), Polling(insured=20, give_up_after=90)),
    (Limits().split(4), Polling(give_up_after=60)),
    (Limits(60, 30.0, 2), Polling(lease=6, give_up_after=30)),
    (Limits(30, 10.0, 5), Polling(lease=2, give_up_after=8)),
    (Limits(2000, 300.0, 40), Polling(give_up_after=60)),
    (Limits(1000, 300.0, 1), Polling(give_up_after=40)),
    (Limits(300, 60.0, 7), Polling(lease=5, interval=0.5, give_up_after=20)),
)


class Machine(RuleBasedStateMachine):
    """A machine in which any event may come at any time, while the reservations hold."""

    @initialize(
        setting=st.sampled_from(SETTINGS),
        seed=st.integers(0, 2**32),
        faults=st.sampled_from(["none", "network", "all"]),
        start=st.sampled_from([0, 12_345_678_901]),
    )
    def begin(self, setting: tuple[Limits, Polling], seed: int, faults: str, start: int) -> None:
        self.world = world = World(*setting, seed=seed, start=start)
        self.faults, self.rng = faults, world.rng
        self.channels: set[int] = set()
        self.asked = 0
        if faults != "none":
            world.round_trip = self.round_trip
            world.fate = self.fate
        lasts: list[Callable[[random.Random], float]] = [
            lambda rng: rng.uniform(0, 3),
            lambda rng: rng.lognormvariate(2, 0.6),
            lambda rng: rng.choice([1, 1000]),
        ]
        drawn = self.rng.choice(lasts)
        insured, given_up = setting[1].insured, setting[1].give_up_after
        # What lasts no longer than that is insured, whatever the scheduler has seen before.
        longest = insured if insured < given_up else math.inf
        world.duration = lambda rng: min(drawn(rng), longest)

    def round_trip(self, command: ev.Request | ev.Upload) -> int:
        if self.rng.random() < 0.03:
            return self.rng.randint(SECOND // 2, 30 * SECOND)
        return self.rng.randint(5_000, 150_000)

    def fate(self, command: ev.Request | ev.Upload) -> ev.Answer | None:
        rng, no = self.rng, ServiceUnavailable("502", status=502)
        if rng.random() < 0.04:
            return ev.NotSent(command, no) if rng.random() < 0.5 else ev.NoAnswer(command, no)
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
                news: list[ev.Answer] = [
                    ev.Running(command, rng.choice([0, -5, 10**12, 700_000, 3_000_000])),
                    ev.EngineFailed(command, TaskFailed("x", code="x", passing=True), True),
                    ev.EngineFailed(command, TaskFailed("x", code="x", passing=False), False),
                    ev.TaskUnknown(command, TaskExpired("unknown")),
                    ev.TimedOut(command, TaskExpired("timed out")),
                    ev.Refused(command, refused, 409),
                ]
                return rng.choice(news)

    @rule(count=st.integers(1, 60), uploads=st.booleans(), channel=st.integers(0, 2))
    def jobs_come(self, count: int, uploads: bool, channel: int) -> None:
        for _ in range(count):
            self.world.want(uploads=uploads, channel=channel, units=self.rng.choice([1.0, 2.0]))
        self.world.perform()

    @rule(count=st.sampled_from([1, 7, 40, 200]))
    def questions(self, count: int) -> None:
        for _ in range(count):
            self.asked += 1
            self.world.tell(ev.QueryAdded(1_000_000 + self.asked, self.rng.randint(0, 2)))
        self.world.perform()

    @rule(seconds=st.floats(0, 90))
    def time_passes(self, seconds: float) -> None:
        self.world.run(self.world.now + round(seconds * SECOND))

    @precondition(lambda self: self.rng.random() < 0.1)
    @rule(seconds=st.sampled_from([0.2, 3, 60, 40_000]))
    def overslept(self, seconds: float) -> None:
        """Stall the loop; the guarantees for a driver that is awake do not apply afterwards."""
        world = self.world
        world.on_time = world.pure = False
        world.now += round(seconds * SECOND)
        while world.queue and world.queue[0][0] <= world.now:
            world.happen()
        world.perform()

    @rule()
    def cancelled(self) -> None:
        self.world.tell(ev.JobCancelled(self.rng.randint(1, len(self.world.jobs) + 3)))
        self.world.perform()

    @precondition(lambda self: self.rng.random() < 0.15)
    @rule(event=st.sampled_from([ev.ChannelClosed, ev.ChannelAborted]), channel=st.integers(0, 2))
    def lane_ends(self, event: type[ev.ChannelClosed | ev.ChannelAborted], channel: int) -> None:
        self.world.tell(event(channel))
        self.world.perform()

    @rule()
    def illegal(self) -> None:
        """An impossible event raises and changes nothing."""
        world, scheduler = self.world, self.world.scheduler
        scheduler.due(world.now)
        poll, upload = ev.Poll(10**9, 1), ev.Upload(10**9, 1)
        news: list[ev.Event] = [
            ev.Issued(poll),
            ev.Issued(ev.Settle(1, ClientClosed("x"), 1.0)),
            ev.Running(poll),
            ev.Uploaded(upload),
            *(ev.JobAdded(ref, SMILE, 1, True) for ref in list(scheduler._state.jobs)[:1]),
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
        # Once for all of them: a look at everything costs far more than all the rest.
        assert before == dump(scheduler)

    @rule()
    def only_a_question(self) -> None:
        """Questions change nothing but their cached answers."""
        world, scheduler = self.world, self.world.scheduler
        scheduler.due(world.now)
        scheduler.wakes_at(world.now)
        before = dump(scheduler)
        scheduler.due(world.now)
        scheduler.wakes_at(world.now)
        scheduler.statistics()
        scheduler.eta(10, 1, world.now)
        repr(scheduler)
        assert before == dump(scheduler)

    @invariant()
    def holds(self) -> None:
        world, scheduler = self.world, self.world.scheduler
        world.units_add_up()
        # The quick checks agree with the sources.
        urgent = any(source.wakes() <= world.now for source in scheduler._urgent)
        assert urgent == scheduler._state.is_urgent(world.now)
        idle = scheduler._state.idle(world.now)
        sources = (*scheduler._urgent, *(scheduler._idle if idle else scheduler._optional))
        first = scheduler._first(sources, _Moment(scheduler._state, world.now))
        assert first == scheduler.due(world.now)
        assert len(world.sent) < 200_000
        if world.on_time and world.pure:
            world.reservations_hold()
        if self.faults == "none" and world.on_time:
            assert not any(task.lost for task in world.tasks.values())

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        give_up = self.world.polling.give_up_after
        for channel in range(3):
            world.tell(ev.ChannelClosed(channel))
        world.run(world.now + round((2 * give_up + 100) * SECOND))
        jobs = {ref for ref in world.jobs if ref < 1_000_000}
        assert jobs == jobs & set(world.settled)
        self.holds()
        assert not world.scheduler._state.jobs
        assert 0 == len(world.scheduler._state.table)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=examples(25), stateful_step_count=20)
# A failure that is being shrunk must not outlast the gate.
TestMachine.pytestmark = [pytest.mark.timeout(900)]  # type: ignore[attr-defined]


# Bad days, each in one piece.


def busy(jobs: int = 120, *, uploads: bool = False, seed: int = 1) -> World:
    """Return a world a minute into its work."""
    world = World(seed=seed)
    for _ in range(jobs):
        world.want(uploads=uploads)
    world.run(60 * SECOND)
    return world


@pytest.mark.parametrize(
    ("kind", "uploads"),
    [
        (ev.NotSent, True),
        (ev.NoAnswer, False),
        pytest.param(ev.NotSent, False, marks=pytest.mark.long),
        pytest.param(ev.NoAnswer, True, marks=pytest.mark.long),
    ],
)
def test_an_outage_costs_what_was_in_flight(
    kind: type[ev.NotSent | ev.NoAnswer], uploads: bool
) -> None:
    """Ten minutes without an answer end a handful of jobs, and few requests are sent."""
    world = busy(uploads=uploads)
    sent = len(world.sent)
    world.fate = lambda command: kind(command, DOWN)
    if kind is ev.NoAnswer:
        world.round_trip = lambda _: 30 * SECOND
    world.run(660 * SECOND)
    during = Counter(type(command).__name__ for _, command in world.sent[sent:])
    world.fate = lambda _: None
    world.round_trip = lambda _: SECOND // 10
    world.finish()
    assert 120 == len(world.settled)
    assert 8 >= 120 - world.endings()["Succeeded"]
    assert 30 >= during["Submit"] + during["Register"] + during["Upload"]
    world.units_add_up()


def test_creations_alone_fail() -> None:
    """While polls are answered and creations are not, few creations are in doubt."""
    world = busy()
    world.duration = lambda _: 5.0
    world.fate = lambda command: (
        ev.NoAnswer(command, DOWN) if isinstance(command, ev.Submit) else None
    )
    world.run(660 * SECOND)
    assert 10 >= world.endings()["SubmissionInDoubt"] >= 1


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_somebody_else_uses_the_key(share: float) -> None:
    """Creations adapt, losses are few, and the client is never locked out for good."""
    world = World(seed=1)
    world.pure = False
    for _ in range(90):
        world.want(uploads=False)
    gap, following, vendor = round(300 * SECOND / 250 / share), 0, world.vendor

    def shared(command: ev.Request | ev.Upload) -> ev.Answer:
        nonlocal following
        now = world.now
        while following <= now:
            world.now, following = following, following + gap
            world.admits()
        world.now = now
        return vendor(command)

    world.vendor = shared  # type: ignore[method-assign]
    world.run(3600 * SECOND)
    before = world.endings()["Succeeded"]
    assert 8 >= len(world.settled) - before
    assert before >= {0.3: 80, 0.6: 80, 0.9: 50}[share]
    assert 500 >= world.scheduler.statistics().refused
    assert world.scheduler.statistics().window_limit <= 250
    world.run(5 * 3600 * SECOND, stop=lambda: len(world.settled) == 90)
    assert world.endings()["Succeeded"] > before or 90 == len(world.settled)


@pytest.mark.parametrize("seconds", [0.3, 3, 60])
def test_after_a_stall(seconds: float) -> None:
    """Overdue polls leave first, within the limit per second, keep their phases and are counted."""
    world = busy()
    world.duration = lambda _: 500.0
    world.run(120 * SECOND)
    table = world.scheduler._state.table
    phases = {ref: task.next % table.cycle for ref, task in table._tasks.items()}
    # That polls leave late asks for a shorter cycle, which would move the phases.
    world.scheduler._state.pacer._cut_at = NEVER
    world.on_time = world.pure = False
    first = head(table.queue)
    assert first is not None
    at = first[0] * SLOT + SLOT + round(seconds * SECOND)
    while world.queue and world.queue[0][0] <= first[0] * SLOT - LEAST:
        world.now = world.queue[0][0]
        world.happen()
    world.now, sent = at, len(world.sent)
    world.perform()
    leaving = [command for _, command in world.sent[sent:] if not isinstance(command, ev.Settle)]
    assert leaving
    assert isinstance(leaving[0], ev.Poll)
    assert leaving[0].ref == first[1]
    assert 5 >= len(leaving)
    assert world.scheduler.statistics().late >= 1
    after = {ref: task.next % table.cycle for ref, task in table._tasks.items()}
    assert {ref: phases[ref] for ref in after if ref in phases} == {
        ref: after[ref] for ref in after if ref in phases
    }


def test_a_creation_answered_after_its_first_reserved_poll() -> None:
    """A task whose creation hung is polled as soon as its id is known, within the window."""
    world = World(seed=2)
    world.round_trip = lambda command: (
        12 * SECOND if isinstance(command, ev.Submit) else SECOND // 10
    )
    for _ in range(12):
        world.want(uploads=False)
    world.finish()
    assert 12 == len(world.settled)
    created = next(at for at, command in world.sent if isinstance(command, ev.Submit))
    polled = next(at for at, command in world.sent if isinstance(command, ev.Poll))
    assert 12 * SECOND == polled - created


@pytest.mark.parametrize(
    "limits", [Limits(per_second=1), Limits(10**6, 300.0, 10**4), Limits(40, 300.0, 5)]
)
def test_limits_of_any_size(limits: Limits) -> None:
    """All jobs end, from limits for hardly one task to ten thousand requests per second."""
    world = World(limits, Polling(give_up_after=60), seed=3)
    count = 400 if limits.per_second > 5 else 8
    for _ in range(count):
        world.want(uploads=True)
    world.finish()
    assert Counter(Succeeded=count) == world.endings()
    assert NEVER == world.scheduler.wakes_at(world.now + SECOND)


def test_limits_too_small() -> None:
    """Settings that could not keep one task alive are refused."""
    with pytest.raises(ConfigurationError, match="cannot keep even one task alive"):
        Scheduler(Limits(10), Polling())


def test_idle_for_long() -> None:
    """After years without events the account starts again and is small."""
    world = World(seed=4)
    world.want()
    world.finish()
    world.now += 10**15
    world.want()
    world.finish()
    assert Counter(Succeeded=2) == world.endings()
    assert 5_000 > len(world.scheduler._state.table.account._left)


def test_a_scheduler_after_another_knows_the_window() -> None:
    """The requests of one scheduler count for the next one."""
    world = World(seed=6)
    for _ in range(40):
        world.want()
    world.finish()
    after = Scheduler(Limits(), Polling())
    after.remember(world.scheduler.past(world.now))
    past = [count for _, count in world.scheduler.past(world.now)]
    assert past == [count for _, count in after.past(0)]
    assert 80 < sum(past) < 250


def test_an_estimate_uses_observed_durations() -> None:
    """Observed durations count, then documented ones, then two minutes; no jobs take 0 s."""
    world = SchedulerHarness()
    documented = ev.TaskKind("other", usual=(10 * SECOND, 30 * SECOND))
    assert (0.0, True) == world.scheduler.estimate({}, world.now)
    assert (20.0, False) == world.scheduler.estimate({documented: 1}, world.now)
    assert (120.0, False) == world.scheduler.estimate({SMILE: 1}, world.now)

    world.running()
    while not isinstance(command := world.take(), ev.Settle):
        assert isinstance(command, ev.Poll)
        done = world.now >= 8 * SECOND
        world.tell(ev.Succeeded(command, ("u",)) if done else ev.Running(command))
    seconds, seen = world.scheduler.estimate({SMILE: 1}, world.now)
    assert seen
    assert 2 < seconds < 20
    many, _ = world.scheduler.estimate({SMILE: 1000}, world.now)
    assert many > 1000 * 2 / 250 * 300 - 300
    assert not world.scheduler.estimate({SMILE: 1, documented: 1}, world.now)[1]


def test_an_estimate_with_webhooks_needs_no_polls() -> None:
    """With webhooks a job costs its creation and its result."""
    announced = Scheduler(Limits(), Polling(completion="webhook"))
    polled = Scheduler(Limits(), Polling())
    kind = ev.TaskKind("other", usual=(40 * SECOND, 40 * SECOND))

    assert announced.estimate({kind: 500}, 0)[0] < polled.estimate({kind: 500}, 0)[0]


def test_the_estimate_of_a_long_batch() -> None:
    """The estimate of a long batch is right within a third."""
    world = World(seed=5)
    assert 0.0 == world.scheduler.eta(0, 0, world.now)
    assert None is world.scheduler.eta(5, 0, world.now)
    for _ in range(400):
        world.want(uploads=False)
    world.run(3600 * SECOND, stop=lambda: len(world.settled) >= 100)
    eta, began = world.scheduler.eta(300, 0, world.now), world.now
    world.finish()
    assert eta is not None
    assert 0.67 < (world.now - began) / SECOND / eta < 1.5


def test_the_time_left_shrinks_while_all_wait_for_the_window() -> None:
    """It is the time until the window has room, from now on and not from the last event."""
    harness = SchedulerHarness()
    harness.scheduler.remember([(0, 250)])
    harness.tell(ev.JobAdded(1, SMILE, 1.0, uploads=False))
    left = [harness.scheduler.eta(1, 0, at * SECOND) for at in (0, 100, 250)]
    assert [300, 200, 50] == pytest.approx(left, abs=5)


def test_estimates_by_durations_shrink_while_nothing_happens() -> None:
    """After a first end both estimates count the requests that have left the window by now."""
    harness = SchedulerHarness()
    harness.scheduler.remember([(0, 140)])
    harness.running()
    harness.tell(ev.Succeeded(harness.poll(), ("u",)))
    harness.settle()
    at = harness.now
    left, later = (harness.scheduler.eta(100, 0, at + each * SECOND) for each in (0, 100))
    assert left is not None
    assert later == pytest.approx(left - 100, abs=1)
    (long, _), (short, _) = (
        harness.scheduler.estimate({SMILE: 100}, at + each * SECOND) for each in (0, 100)
    )
    assert short == pytest.approx(long - 100, abs=1)


# One decision each.


def failed(command: ev.Poll, *, passing: bool = True) -> ev.EngineFailed:
    return ev.EngineFailed(command, TaskFailed("x", code="x", passing=passing), passing)


def test_a_passing_failure_is_tried_again() -> None:
    """A failure of the engine that may pass is tried again as often as set, then reported."""
    harness = SchedulerHarness(engine_retries=1)
    harness.running()
    harness.tell(failed(harness.poll()))
    again = harness.take()
    assert isinstance(again, ev.Submit)
    harness.tell(ev.Accepted(again, "task-2"))
    harness.tell(failed(harness.poll()))
    settle = harness.settle()
    assert isinstance(settle.ending, TaskFailed)
    assert 0.0 == settle.units
    assert 2.0 == harness.scheduler.statistics().units.returned


@pytest.mark.parametrize("how", ["final", "cancelled", "closed", "no retries"])
def test_a_failure_that_is_not_tried_again(how: str) -> None:
    """A final failure, and any failure of a cancelled job, is reported at once."""
    harness = SchedulerHarness(engine_retries=0 if how == "no retries" else 1)
    harness.running()
    poll = harness.poll()
    if how == "cancelled":
        harness.tell(ev.JobCancelled(1))
    if how == "closed":
        harness.tell(ev.ChannelClosed())
    harness.tell(failed(poll, passing=how != "final"))
    assert isinstance(harness.settle().ending, TaskFailed)


def test_an_unknown_task_is_polled_once_more() -> None:
    """An unknown task inside its lease is polled again, and only the second answer is final."""
    harness = SchedulerHarness()
    harness.running()
    harness.tell(ev.TaskUnknown(harness.poll(), TaskExpired("unknown")))
    harness.tell(ev.TaskUnknown(harness.poll(), TaskExpired("unknown")))
    settle = harness.settle()
    assert isinstance(settle.ending, TaskExpired)
    assert 1.0 == settle.ending.units_at_stake == settle.units
    assert 1.0 == harness.scheduler.statistics().units.at_stake


def test_a_late_answer_leaves_the_retry_in_place() -> None:
    """A late answer renews the lease of its own poll, and not that of a newer one."""
    harness = SchedulerHarness()
    harness.running()
    old = harness.poll()
    harness.poll()
    harness.tell(ev.Running(old))
    assert None is not harness.scheduler._state.jobs[1].try_at
    before = harness.now
    harness.poll()
    assert SECOND > harness.now - before


def test_aborted() -> None:
    """An aborted channel ends at once: running tasks are abandoned, creations are in doubt."""
    harness = SchedulerHarness()
    harness.running(1)
    harness.tell(ev.JobAdded(2, SMILE, 3.0, uploads=False))
    submit = harness.take()
    assert isinstance(submit, ev.Submit)
    harness.tell(ev.JobAdded(3, SMILE, 1.0, uploads=True))
    harness.tell(ev.ChannelAborted())
    endings = {settle.ref: settle.ending for settle in (harness.settle() for _ in range(3))}
    assert isinstance(endings[1], TaskAbandoned)
    assert isinstance(endings[2], SubmissionInDoubt)
    assert isinstance(endings[3], ClientClosed)
    harness.tell(ev.Accepted(submit, "late"))
    assert None is harness.scheduler.due(harness.now)
    assert 4.0 == harness.scheduler.statistics().units.at_stake


def test_abandoned_at_its_deadline() -> None:
    """A task that still runs at `give_up_after` is reported as abandoned, its units at stake."""
    harness = SchedulerHarness()
    harness.running()
    while isinstance(command := harness.take(), ev.Poll):
        harness.tell(ev.Running(command))
    assert isinstance(command, ev.Settle)
    assert isinstance(command.ending, TaskAbandoned)
    assert 120 * SECOND == harness.now
    assert 1.0 == harness.scheduler.statistics().units.at_stake


def test_out_of_units() -> None:
    """A refused balance ends unsent jobs that cost as much, keeps cheaper ones, and is tried again
    later.
    """
    harness = SchedulerHarness()
    for ref, units in ((1, 5.0), (2, 9.0), (3, 1.0)):
        harness.tell(ev.JobAdded(ref, SMILE, units, uploads=False))
    first, second = harness.take(), harness.take()
    assert isinstance(first, ev.Submit)
    assert isinstance(second, ev.Submit)
    harness.tell(ev.OutOfUnits(first, UnitsExhausted("poor")))
    harness.tell(ev.OutOfUnits(second, UnitsExhausted("poor")))
    harness.tell(ev.JobAdded(4, SMILE, 6.0, uploads=False))
    assert {1, 2, 4} == {harness.settle().ref for _ in range(3)}
    cheap = harness.take()
    assert isinstance(cheap, ev.Submit)
    assert 3 == cheap.ref
    harness.tell(ev.Accepted(cheap, "task"))
    harness.now += 61 * SECOND
    harness.tell(ev.JobAdded(5, SMILE, 6.0, uploads=False))
    assert [5] == [job.ref for job in harness.scheduler._state.ready]


@pytest.mark.parametrize("answer", [ev.Limited, ev.NotSent])
def test_a_refused_key_stops_creating(answer: type[ev.Limited | ev.NotSent]) -> None:
    """401 ends the jobs that are not created, later ones, and those to be repeated."""
    harness = SchedulerHarness()
    for ref in (1, 2, 3):
        harness.tell(ev.JobAdded(ref, SMILE, 1.0, uploads=False))
    first, second = harness.take(), harness.take()
    assert isinstance(first, ev.Submit)
    assert isinstance(second, ev.Submit)
    harness.tell(ev.KeyRefused(first, Unauthorized("no")))
    harness.tell(answer(second, FULL))
    harness.tell(ev.JobAdded(4, SMILE, 1.0, uploads=True))
    endings = [harness.settle().ending for _ in range(4)]
    assert all(isinstance(ending, Unauthorized) for ending in endings)
    assert not harness.scheduler._state.jobs


@pytest.mark.parametrize(
    ("answer", "most"), [(ev.NotSent, 8), (ev.Limited, 20), (ev.Refused, 1), (ev.KeyRefused, 1)]
)
def test_how_often_a_creation_is_sent(answer: Callable[..., ev.Answer], most: int) -> None:
    """A creation that was certainly not executed is repeated so often; a refused one never."""
    harness = SchedulerHarness()
    harness.tell(ev.JobAdded(1, SMILE, 1.0, uploads=False))
    sent = 0
    while isinstance(command := harness.take(), ev.Submit):
        sent += 1
        more = (400,) if answer is ev.Refused else ()
        harness.now += SECOND // 10
        harness.tell(answer(command, FULL, *more))
    assert most == sent
    assert 0.0 == harness.scheduler.statistics().units.charged


@pytest.mark.parametrize("polling_interval", [None, 1, -3, 5 * SECOND, 10**15])
def test_the_vendors_interval(polling_interval: int | None) -> None:
    """The interval that an answer names is kept between half a second and the cycle."""
    harness = SchedulerHarness()
    harness.running()
    harness.tell(ev.Running(harness.poll(), polling_interval))
    cycle = harness.scheduler._state.table.cycle * SLOT
    wanted = 2 * SECOND if polling_interval is None else min(max(polling_interval, 500_000), cycle)
    assert wanted == harness.scheduler._state.jobs[1].interval


def test_queries_have_their_turn() -> None:
    """A query that waited long comes before creations; passing failures are retried."""
    harness = SchedulerHarness()
    harness.tell(ev.QueryAdded(90))
    for _ in range(7):
        ask = harness.take()
        assert isinstance(ask, ev.Ask)
        harness.tell(ev.NoAnswer(ask, DOWN))
    assert DOWN is harness.settle().ending
    harness.tell(ev.ChannelClosed(3))
    harness.tell(ev.QueryAdded(91, 3))
    assert isinstance(harness.settle().ending, ClientClosed)
    harness.tell(ev.QueryAdded(1))
    with pytest.raises(IllegalEvent):
        harness.tell(ev.QueryAdded(1))


def test_a_picture_whose_upload_is_refused() -> None:
    """A picture whose upload is refused ends the job before its task is created."""
    harness = SchedulerHarness()
    harness.tell(ev.JobAdded(1, SMILE, 1.0, uploads=True))
    register = harness.take()
    assert isinstance(register, ev.Register)
    harness.tell(ev.Registered(register, grants(register)))
    upload = harness.take()
    assert isinstance(upload, ev.Upload)
    harness.tell(ev.Refused(upload, JobRefused("gone"), 0))
    assert isinstance(harness.settle().ending, JobRefused)


def test_repr() -> None:
    """The repr says how many jobs are in each state, and the cycle of the plan."""
    harness = SchedulerHarness()
    harness.running()
    assert "<Scheduler {'running': 1} <Timetable 1 tasks every 8.8 s, 0 requests unanswered>>" == (
        repr(harness.scheduler)
    )


def test_statistics_have_the_limits_and_the_lease_in_force() -> None:
    """If the key is not shared they are those that the scheduler was created with."""
    limits = Limits(requests=100, period=60.5, per_second=2)

    seen = Scheduler(limits, Polling(lease=8.0)).statistics()

    assert (limits, 8.0, 0.0) == (seen.limits, seen.lease, seen.longest_gap)


# What it tells of the key.


def test_what_the_scheduler_tells_of_the_key() -> None:
    """The requests in the window, the lease, the next reserved poll, and whether others use it."""
    harness = SchedulerHarness()
    harness.running()
    scheduler = harness.scheduler
    assert 1 == scheduler.occupied(harness.now)
    assert (10.0, 0.0) == (scheduler.lease, scheduler.refuted_lease)
    assert scheduler._state.table.next_poll(1) == scheduler.reserved_at()
    for _ in range(2):
        assert not scheduler.contended()
        harness.tell(ev.Limited(harness.poll(), RateLimited("no")))
    assert scheduler.contended()
