"""How jobs and queries end, which reservations an end frees, and which units are charged."""

from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from perfect_async import events as ev
from perfect_async.errors import (
    CeilingReached,
    ClientClosed,
    TaskAbandoned,
    TaskExpired,
    TaskFailed,
)
from perfect_async.events import TaskKind
from perfect_async.reports import Spending
from perfect_async.scheduler._job import IllegalEvent, JobState, ScheduledJob
from perfect_async.scheduler._queues import Query, QueryQueue
from perfect_async.scheduler._settlement import Settlements, UnitLedger
from tests.support.searching import examples

SUCCEEDED = ev.Succeeded(ev.Poll(1, 1), ("https://results.example/1",))
FAILED = TaskFailed("x", code="x", passing=False)


class FakeStrategy:
    """A strategy that records which tasks are released."""

    held = 0

    def __init__(self) -> None:
        self.released: list[tuple[int, int | None, bool]] = []

    def admits(self, job: ScheduledJob, now: int, limit: int) -> bool:
        return True

    def created(self, job: ScheduledJob, now: int) -> None: ...

    def accepted(self, job: ScheduledJob, now: int) -> None: ...

    def left(self, job: ScheduledJob, now: int) -> None: ...

    def runs(self, job: ScheduledJob, left: int, interval: int | None, now: int) -> None: ...

    def failed(self, job: ScheduledJob, at: int) -> None: ...

    def release(self, job: ScheduledJob, *, ended: int | None, lost: bool) -> None:
        self.released.append((job.ref, ended, lost))


class SettlementHarness:
    def __init__(self) -> None:
        self.jobs: dict[int, ScheduledJob] = {}
        self.strategy, self.units = FakeStrategy(), UnitLedger()
        self.counts: Counter[str] = Counter()
        self.settlements = Settlements(self.jobs, self.strategy, self.units, self.counts)
        self.queries = QueryQueue()

    def job(
        self, ref: int, state: JobState = JobState.RUNNING, given_up: int = 600
    ) -> ScheduledJob:
        job = ScheduledJob(
            ref, TaskKind("ai-smile"), 1.0, uploads=False, channel=0, state=state, given_up=given_up
        )
        self.jobs[ref] = job
        if state is JobState.RUNNING:
            self.units.charge(job)
            self.settlements.expect(job)
        return job

    def settle(self) -> ev.Settle:
        command = self.settlements.queue[0][0]
        self.settlements.settled(command, self.queries)
        return command


def test_an_end_is_reported_once() -> None:
    """The job's end is reported with its cost, and the job is forgotten."""
    bench = SettlementHarness()
    job = bench.job(1)
    bench.settlements.end(job, SUCCEEDED, cause=SUCCEEDED, ended=5)
    assert JobState.ENDED is job.state
    assert ev.Settle(1, SUCCEEDED, 1.0) == bench.settle()
    assert (JobState.SETTLED, {}, {"done": 1}) == (job.state, bench.jobs, bench.counts)
    assert [(1, 5, False)] == bench.strategy.released


def test_ends_are_reported_in_their_order() -> None:
    """Ends are reported in their order; failures count as failed, closed clients as neither."""
    bench = SettlementHarness()
    failed, closed, done = bench.job(1), bench.job(2, JobState.READY), bench.job(3)
    failure = ev.EngineFailed(ev.Poll(1, 1), FAILED, passing=False)
    bench.settlements.end(failed, FAILED, cause=failure)
    bench.settlements.end(closed, ClientClosed("closed"))
    bench.settlements.end(done, SUCCEEDED, cause=SUCCEEDED)
    assert [1, 2, 3] == [bench.settle().ref for _ in range(3)]
    assert {"done": 1, "failed": 1} == bench.counts
    assert [1, 3] == [ref for ref, _, _ in bench.strategy.released]


def test_a_task_that_the_vendor_lost() -> None:
    """The strategy is told that the task was lost, and its units are at stake."""
    bench = SettlementHarness()
    gone = TaskExpired("gone")
    unknown = ev.TaskUnknown(ev.Poll(1, 1), gone)
    bench.settlements.end(bench.job(1), gone, cause=unknown, at_stake=1.0)
    assert [(1, None, True)] == bench.strategy.released
    assert 1.0 == bench.units.totals().at_stake


def test_an_illegal_end_is_refused() -> None:
    """An end that the table does not have is refused."""
    bench = SettlementHarness()
    job = bench.job(1, JobState.READY)
    with pytest.raises(IllegalEvent):
        bench.settlements.end(job, SUCCEEDED, cause=SUCCEEDED)
    assert JobState.READY is job.state
    assert not bench.settlements.queue


def test_too_old() -> None:
    """The oldest task is given up at its time, and no end is reported twice."""
    bench = SettlementHarness()
    young, old = bench.job(1, given_up=700), bench.job(2, given_up=600)
    assert 600 == bench.settlements.ages[0][0]
    command = ev.Settle(2, TaskAbandoned("too old"), 1.0)
    bench.settlements.settled(command, bench.queries)
    assert (JobState.SETTLED, JobState.RUNNING) == (old.state, young.state)
    assert [(2, None, False)] == bench.strategy.released
    assert not bench.settlements.queue
    assert 1.0 == bench.units.totals().at_stake
    assert [700] == [age for age, _, _ in bench.settlements.ages]


def test_the_first_age_is_valid() -> None:
    """Tasks that have ended or got another time are not at the head."""
    bench = SettlementHarness()
    first, second, third = bench.job(1, given_up=1), bench.job(2, given_up=2), bench.job(3)
    bench.settlements.end(first, SUCCEEDED, cause=SUCCEEDED)
    second.given_up = 900
    bench.settlements.expect(second)
    bench.settlements.tidy()
    assert (600, third) == (bench.settlements.ages[0][0], bench.settlements.ages[0][2])
    bench.settlements.end(third, SUCCEEDED, cause=SUCCEEDED)
    bench.settlements.end(second, SUCCEEDED, cause=SUCCEEDED)
    assert [] == bench.settlements.ages


def test_a_query_without_an_answer() -> None:
    """The error is reported and the query is forgotten; it cost no units."""
    bench = SettlementHarness()
    question = Query(7, 0, 0, repeats=True, urgent=False)
    bench.queries.add(question)
    bench.settlements.answer(question, ClientClosed("closed"))
    assert (7, 0.0) == (bench.settle().ref, bench.settlements._units.totals().charged)
    assert 7 not in bench.queries
    assert {} == bench.counts


# Units.


def job(units: float = 1.0, *spending_limits: int, ref: int = 1) -> ScheduledJob:
    return ScheduledJob(ref, TaskKind("ai-smile"), units, False, 1, JobState.READY, spending_limits)


def limited(*limits_of: float) -> UnitLedger:
    units = UnitLedger()
    for number, most in enumerate(limits_of, 1):
        units.on_limit(ev.SpendingLimitOpened(number, most))
    return units


def refused(units: UnitLedger, one: ScheduledJob) -> bool:
    return units.refusal(one) is not None


def test_nothing_is_spent_at_first() -> None:
    """Without jobs all totals are 0, and without limits no job is refused."""
    assert Spending(0.0, 0.0, 0.0) == UnitLedger().totals()
    assert not refused(UnitLedger(), job(1e9))


def test_a_limit_is_reached_exactly() -> None:
    """The last unit may be spent and the one after it may not; the error has both numbers."""
    units, first, second = limited(3.0), job(2.0, 1), job(1.0, 1, ref=2)
    units.reserve(first)

    assert not refused(units, second)
    units.reserve(second)
    error = units.refusal(job(1.0, 1, ref=3))

    assert isinstance(error, CeilingReached)
    assert "costs 1 unit; 3 of max_units=3 are spent or reserved" in str(error)
    assert 0.0 == error.units_at_stake


@pytest.mark.parametrize(("expected", "prices"), [(10, [0.1] * 11), (3, [0.6, 0.3, 0.1, 0.1])])
def test_fractions_of_a_unit_add_up(expected: int, prices: list[float]) -> None:
    """Prices that fit exactly are not refused because of rounding errors."""
    units, taken = limited(1.0), 0
    for ref, price in enumerate(prices):
        one = job(price, 1, ref=ref)
        if not refused(units, one):
            units.reserve(one)
            taken += 1

    assert expected == taken


def test_each_of_several_limits_applies() -> None:
    """A job with the limits of the client and the batch must fit under both."""
    units = limited(10.0, 2.0)
    units.reserve(job(2.0, 1, 2))

    assert refused(units, job(1.0, 1, 2, ref=2))
    assert not refused(units, job(8.0, 1, ref=3))
    assert refused(units, job(9.0, 1, ref=3))


def test_a_closed_limit_has_no_reservations() -> None:
    """After a batch is over, its running tasks reserve nothing under its limit."""
    units, one = limited(1.0), job(1.0, 1)
    units.reserve(one)
    units.on_limit(ev.SpendingLimitClosed(1))
    units.on_limit(ev.SpendingLimitClosed(1))

    assert not refused(units, job(5.0, 1, ref=2))
    units.charge(one)
    units.end(one, 0.0)
    assert Spending(1.0, 0.0, 0.0) == units.totals()


def test_a_success_is_spent() -> None:
    """Units with a result are not at stake, and stay spent under the limit."""
    units, one = limited(1.0), job(1.0, 1)
    units.reserve(one)
    units.charge(one)
    units.end(one, 0.0)

    assert Spending(1.0, 0.0, 0.0) == units.totals()
    assert refused(units, job(1.0, 1, ref=2))


def test_an_engine_failure_gives_its_units_back() -> None:
    """The units of an engine failure are free again, and returned once."""
    units, one = limited(1.0), job(1.0, 1)
    units.reserve(one)
    units.charge(one)
    units.give_back(one)

    assert not refused(units, job(1.0, 1, ref=2))
    units.end(one, 0.0)
    assert Spending(1.0, 1.0, 0.0) == units.totals()
    assert not refused(units, job(1.0, 1, ref=2))


def test_a_retry_reserves_again() -> None:
    """A task that is created again reserves its units under the same limit."""
    units, one = limited(1.0), job(1.0, 1)
    units.reserve(one)
    units.charge(one)
    units.give_back(one)
    units.release(one)
    units.reserve(one)
    units.charge(one)
    units.end(one, 0.0)

    assert Spending(2.0, 1.0, 0.0) == units.totals()
    assert refused(units, job(1.0, 1, ref=2))


def test_a_creation_that_was_not_executed_costs_nothing() -> None:
    """A refused creation reserves and reports no units."""
    units, one = limited(1.0), job(1.0, 1)
    units.reserve(one)
    units.release(one)
    units.end(one, 0.0)

    assert Spending(0.0, 0.0, 0.0) == units.totals()
    assert not refused(units, job(1.0, 1, ref=2))


def test_a_creation_in_doubt_stays_under_the_limit() -> None:
    """A creation that may have been charged is at stake, and its units are not free."""
    units, one = limited(1.0), job(1.0, 1)
    units.reserve(one)
    units.end(one, 1.0)

    assert Spending(0.0, 0.0, 1.0) == units.totals()
    assert refused(units, job(1.0, 1, ref=2))


def test_a_lost_task_is_charged_and_at_stake() -> None:
    """The units of a lost task count once under the limit."""
    units, one = limited(2.0), job(1.0, 1)
    units.reserve(one)
    units.charge(one)
    units.end(one, 1.0)

    assert Spending(1.0, 0.0, 1.0) == units.totals()
    assert not refused(units, job(1.0, 1, ref=2))


CEILINGS = (7.0, 4.0)


class Limits(RuleBasedStateMachine):
    """A machine of jobs in any order under two limits, and the expected account beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.units = limited(*CEILINGS)
        self.refs = 0
        self.waiting: list[ScheduledJob] = []
        self.sent: list[ScheduledJob] = []
        self.running: list[ScheduledJob] = []
        self.over: list[tuple[ScheduledJob, float]] = []
        self.charged = self.returned = self.at_stake = 0.0

    @rule(units=st.sampled_from([1.0, 2.0, 3.0]), limits=st.sampled_from([(), (1,), (2,), (1, 2)]))
    def comes(self, units: float, limits: tuple[int, ...]) -> None:
        self.refs += 1
        self.waiting.append(job(units, *limits, ref=self.refs))

    @precondition(lambda self: self.waiting)
    @rule()
    def leaves_or_is_refused(self) -> None:
        one = self.waiting.pop(0)
        if refused(self.units, one):
            self._end(one, 0.0, 0.0)
        else:
            self.units.reserve(one)
            self.sent.append(one)

    @precondition(lambda self: self.sent)
    @rule(what=st.sampled_from(["accepted", "again", "refused", "doubt", "settled"]))
    def answers(self, what: str) -> None:
        one = self.sent.pop(0)
        match what:
            case "accepted":
                self.units.charge(one)
                self.charged += one.units
                self.running.append(one)
            case "again":
                self.units.release(one)
                self.waiting.insert(0, one)
            case "doubt":
                self._end(one, one.units, one.units)
            case _:
                self._end(one, 0.0, 0.0)

    @precondition(lambda self: self.running)
    @rule(what=st.sampled_from(["done", "lost", "engine", "engine again"]))
    def ends(self, what: str) -> None:
        one = self.running.pop(0)
        match what:
            case "done":
                self._end(one, 0.0, one.units)
            case "lost":
                self._end(one, one.charged, one.units)
            case _:
                self.units.give_back(one)
                self.returned += one.units
                if what == "engine":
                    self._end(one, 0.0, 0.0)
                else:
                    self.units.release(one)
                    self.waiting.insert(0, one)

    def _end(self, one: ScheduledJob, at_stake: float, spent: float) -> None:
        self.units.end(one, at_stake)
        self.at_stake += at_stake
        self.over.append((one, spent))

    @invariant()
    def the_ceilings_hold(self) -> None:
        for number, most in enumerate(CEILINGS, 1):
            spent = self.units._spending_limits[number].spent
            runs = sum(
                job.units for job in self.sent + self.running if number in job.spending_limits
            )
            gone = sum(units for one, units in self.over if number in one.spending_limits)
            assert runs + gone == spent
            assert 0.0 <= spent <= most

    @invariant()
    def the_totals_are_the_ledgers(self) -> None:
        assert Spending(self.charged, self.returned, self.at_stake) == self.units.totals()

    @invariant()
    def only_what_runs_is_reserved(self) -> None:
        assert all(not one.reserved for one in self.waiting)
        assert all(one.reserved == one.units for one in self.sent + self.running)
        assert all(one.reserved == spent for one, spent in self.over)


TestCeilings = Limits.TestCase
TestCeilings.settings = settings(max_examples=examples(60), stateful_step_count=40)


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 100))
@example([1, 2], 3)
def test_a_limit_is_used_fully(tenths: list[int], most: int) -> None:
    """For any prices, refused jobs would not have fitted, and accepted ones do."""
    units, taken = limited(most / 10), 0
    for ref, price in enumerate(tenths):
        one = job(price / 10, 1, ref=ref)
        if refused(units, one):
            assert taken + price > most
        else:
            units.reserve(one)
            taken += price
            assert taken <= most
