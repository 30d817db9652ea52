"""Adopted tasks, spending limits, and creations that must be alone."""

from collections import Counter

import pytest

from perfect_async import events as ev
from perfect_async._time import SLOT
from perfect_async.errors import (
    CeilingReached,
    ClientClosed,
    RequestRefused,
    ServiceUnavailable,
    SubmissionInDoubt,
    TaskAbandoned,
    TaskExpired,
    TaskTimedOut,
)
from perfect_async.models import Limits, Polling
from perfect_async.scheduler import NEVER, Scheduler
from perfect_async.scheduler._job import IllegalEvent, JobState
from tests.scheduler.test_scheduler import Task, World, failed
from tests.support.scheduler_harness import SMILE, SchedulerHarness

SECOND = 1_000_000
DOWN = ServiceUnavailable("down")


def adopted(ref: int = 1, **facts: object) -> ev.TaskAdopted:
    """Return the event for an adopted smile."""
    return ev.TaskAdopted(ref, SMILE, 1.0, f"task-{ref}", **facts)  # type: ignore[arg-type]


class Former(World):
    """A world in which a former process has left tasks."""

    def leave_over(self, lasts: float, seen: float = 0.0) -> int:
        """Return a task that ends in `lasts` seconds and was polled `seen` seconds ago."""
        ref = len(self.jobs) + 1
        self.jobs[ref] = 1.0
        at = self.now - round(seen * SECOND)
        self.tasks[ref] = Task(self.now + round(lasts * SECOND), at)
        self.tell(adopted(ref, age=round((seen + 5) * SECOND)))
        return ref


# Adopted.


@pytest.mark.parametrize("count", [1, 7, 30])
@pytest.mark.parametrize("busy", [True, False])
def test_adopted_tasks_are_polled_at_once(count: int, busy: bool) -> None:
    """Adopted tasks are polled first, five a second, and kept alive."""
    world = Former(Limits(), Polling(insured=120), seed=1)
    if busy:
        for _ in range(20):
            world.want(uploads=False)
    refs = [world.leave_over(20 if number % 2 else 3) for number in range(count)]
    world.run(count * SECOND // 5 + 2 * SECOND)
    first = [command for _, command in world.sent if isinstance(command, ev.Poll)][:count]
    assert set(refs) == {command.ref for command in first}
    submits = [at for at, command in world.sent if isinstance(command, ev.Submit)]
    last = max(at for at, command in world.sent if command in first)
    assert count * SECOND / 5 + SECOND > last
    assert not submits or last <= submits[0]
    world.finish()
    assert Counter(Succeeded=len(world.jobs)) == world.endings()
    world.units_add_up()
    assert 0 == sum(task.lost for task in world.tasks.values())


@pytest.mark.parametrize("seed", range(8))
def test_adopted_tasks_among_others(seed: int) -> None:
    """Adopted tasks keep within every limit and reserved poll; lost ones are reported."""
    world = Former(Limits(), Polling(insured=60), seed=seed)
    for number in range(30):
        if number % 3:
            world.want()
        else:
            world.leave_over(world.rng.uniform(0, 40), world.rng.choice([1, 3, 30]))
        world.run(world.now + world.rng.randint(0, SECOND))
    world.finish()
    lost = sum(task.lost for task in world.tasks.values())
    assert Counter(Succeeded=30 - lost, TaskExpired=lost) == world.endings()
    world.units_add_up()
    assert float(lost) == world.scheduler.statistics().units.at_stake
    assert NEVER == world.scheduler.wakes_at(world.now + SECOND)


def test_an_adopted_task_counts_as_running() -> None:
    """An adopted task is charged and counts as running at once."""
    harness = SchedulerHarness()
    harness.tell(adopted())
    assert 1 == harness.scheduler.statistics().running
    assert 1.0 == harness.scheduler.statistics().units.charged
    assert harness.now < harness.scheduler.wakes_at(harness.now)


def test_adopted_and_done() -> None:
    """An adopted task that has ended takes one request, and its duration does not count."""
    harness = SchedulerHarness()
    harness.tell(adopted())
    poll = harness.poll()
    assert 0 == harness.now
    harness.tell(ev.Succeeded(poll, ("https://r.example/1",)))
    assert 1.0 == harness.settle().units
    assert None is harness.scheduler.eta(1, 0, harness.now)
    assert 1 == harness.scheduler.statistics().done


def test_adopted_and_unknown() -> None:
    """An adopted task that the vendor does not know is lost at once, its units at stake."""
    harness = SchedulerHarness()
    harness.tell(adopted())
    harness.tell(ev.TaskUnknown(harness.poll(), TaskExpired("gone", task_id="task-1")))
    settle = harness.settle()
    assert isinstance(settle.ending, TaskExpired)
    assert (1.0, 1.0) == (settle.ending.units_at_stake, settle.units)
    assert 1.0 == harness.scheduler.statistics().units.at_stake


def test_adopted_and_failed() -> None:
    """An adopted task whose engine fails is not created again, since its job is unknown."""
    harness = SchedulerHarness(engine_retries=3)
    harness.tell(adopted())
    harness.tell(failed(harness.poll()))
    assert 0.0 == harness.settle().units
    assert 1.0 == harness.scheduler.statistics().units.returned


def test_adopted_without_an_answer() -> None:
    """A first poll without an answer is retried soon, since the rest of the lease is unknown."""
    harness = SchedulerHarness()
    harness.tell(adopted())
    harness.tell(ev.NoAnswer(harness.poll(), DOWN))
    again = harness.poll()
    assert 3 * SECOND > harness.now
    harness.tell(ev.Running(again))
    harness.poll()
    assert 10 * SECOND > harness.now


@pytest.mark.parametrize("answer", [ev.TimedOut, ev.KeyRefused])
def test_adopted_and_refused(answer: type[ev.TimedOut | ev.KeyRefused]) -> None:
    """Other ends of an adopted task leave its units at stake."""
    harness = SchedulerHarness()
    harness.tell(adopted())
    for _ in range(1 + (answer is ev.KeyRefused)):
        harness.tell(answer(harness.poll(), TaskTimedOut("x")))
    assert 1.0 == harness.settle().units
    assert 1.0 == harness.scheduler.statistics().units.at_stake


@pytest.mark.parametrize("age", [0, 100, 10_000])
def test_too_old(age: int) -> None:
    """An adopted task of any age is polled, and kept for a while if it runs."""
    harness = SchedulerHarness()
    harness.tell(adopted(age=age * SECOND))
    while not isinstance(command := harness.take(), ev.Settle):
        assert isinstance(command, ev.Poll)
        harness.now += SLOT
        harness.tell(ev.Running(command))
    assert isinstance(command.ending, TaskAbandoned)
    assert max(20, 120 - age) - 1 <= harness.now / SECOND <= max(20, 120 - age) + 10
    assert 1.0 == command.ending.units_at_stake


@pytest.mark.parametrize("polled", [True, False])
def test_dropped(polled: bool) -> None:
    """A client that is aborted abandons its adopted tasks, polled or not."""
    harness = SchedulerHarness()
    harness.tell(adopted())
    if polled:
        harness.poll()
    harness.tell(ev.ChannelAborted())
    settle = harness.settle()
    assert isinstance(settle.ending, TaskAbandoned)
    assert 1.0 == settle.ending.units_at_stake == harness.scheduler.statistics().units.at_stake
    assert None is harness.scheduler.due(harness.now)
    assert not polled or NEVER == harness.scheduler.wakes_at(harness.now + 400 * SECOND)


def test_closing_keeps_adopted_tasks() -> None:
    """Adopted tasks run on if their client closes or their caller no longer waits."""
    harness = SchedulerHarness()
    harness.tell(adopted())
    harness.tell(ev.ChannelClosed())
    harness.tell(ev.JobCancelled(1))
    harness.tell(ev.Succeeded(harness.poll(), ("https://r.example/1",)))
    assert isinstance(harness.settle().ending, ev.Succeeded)


@pytest.mark.parametrize(
    "event",
    [adopted(), ev.JobRejected(1, RequestRefused("x")), ev.JobAdded(1, SMILE, 1.0, uploads=False)],
)
def test_a_number_in_use(event: ev.Event) -> None:
    """A number in use is refused, and the state is unchanged."""
    harness = SchedulerHarness()
    harness.tell(adopted())
    before = harness.scheduler.statistics()
    with pytest.raises(IllegalEvent):
        harness.tell(event)
    assert before == harness.scheduler.statistics()


def test_a_full_window() -> None:
    """Adopted tasks wait only while the window is full."""
    harness = SchedulerHarness()
    harness.scheduler.remember([(250 * SECOND, 246), (1, 4)])
    harness.tell(adopted())
    poll = harness.poll()
    assert 49 * SECOND < harness.now < 56 * SECOND
    harness.tell(ev.Running(poll))


# Rejected.


@pytest.mark.parametrize("at_stake", [0.0, 2.0])
def test_rejected(at_stake: float) -> None:
    """A job whose end is known is reported with its units at stake, and costs no request."""
    harness = SchedulerHarness()
    harness.tell(ev.JobRejected(1, SubmissionInDoubt("x", units_at_stake=at_stake)))
    assert isinstance(harness.settle().ending, SubmissionInDoubt)
    statistics = harness.scheduler.statistics()
    assert (0.0, at_stake) == (statistics.units.charged, statistics.units.at_stake)
    assert {} == statistics.requests
    assert 1 == statistics.failed


# One by one.


def wanted(ref: int, feature: str = "ai-smile", **facts: object) -> ev.JobAdded:
    """Return a job that must be created alone."""
    return ev.JobAdded(ref, ev.TaskKind(feature), 1.0, uploads=False, alone=True, **facts)  # type: ignore[arg-type]


def test_alone() -> None:
    """A creation waits until the one before it has an answer of any kind."""
    harness = SchedulerHarness()
    for ref in range(1, 5):
        harness.tell(wanted(ref))
    for answer in (
        lambda command: ev.Accepted(command, "t"),
        lambda command: ev.NoAnswer(command, DOWN),
        lambda command: ev.Refused(command, RequestRefused("x"), 400),
    ):
        command = harness.take()
        while isinstance(command, ev.Settle):
            command = harness.take()
        assert isinstance(command, ev.Submit)
        # Nothing wakes it but the answer.
        assert None is harness.scheduler.due(harness.now)
        harness.now += SECOND
        assert None is harness.scheduler.due(harness.now)
        harness.tell(answer(command))
    assert 4 == sum(harness.scheduler.statistics().requests.values()) + 1


def test_alone_whatever_the_feature() -> None:
    """Creations of other features wait as well, since the unit history may name none."""
    harness = SchedulerHarness()
    harness.tell(wanted(1))
    harness.tell(wanted(2, "ai-avatar"))
    first = harness.take()
    assert isinstance(first, ev.Submit)
    harness.now += SECOND
    assert None is harness.scheduler.due(harness.now)
    harness.tell(ev.Accepted(first, "t"))
    assert 2 == getattr(harness.take(), "ref", None)


def test_not_alone() -> None:
    """Jobs that need not be alone do not wait."""
    harness = SchedulerHarness()
    for ref in (1, 2, 3):
        harness.tell(ev.JobAdded(ref, SMILE, 1.0, uploads=False))
    assert [1, 2, 3] == [getattr(harness.take(), "ref", None) for _ in range(3)]


def test_an_error_from_the_unit_history() -> None:
    """An error from the unit history is reported with its units at stake."""
    harness = SchedulerHarness()
    harness.tell(wanted(1))
    command = harness.take()
    assert isinstance(command, ev.Submit)
    harness.tell(ev.NoAnswer(command, SubmissionInDoubt("nothing", units_at_stake=0.0)))
    settle = harness.settle()
    assert isinstance(settle.ending, SubmissionInDoubt)
    assert "nothing" == settle.ending.message
    assert 0.0 == harness.scheduler.statistics().units.at_stake


# Ceilings.


def test_a_spending_limit() -> None:
    """Jobs that no longer fit end when the last unit is reserved; jobs that fit stay."""
    harness = SchedulerHarness()
    harness.tell(ev.SpendingLimitOpened(7, 2.0))
    harness.tell(wanted(1, spending_limits=(7,)))
    harness.tell(ev.JobAdded(2, SMILE, 1.0, uploads=True, spending_limits=(7,)))
    harness.tell(ev.JobAdded(3, SMILE, 2.0, uploads=True, spending_limits=(7,)))
    harness.tell(ev.JobAdded(4, SMILE, 2.0, uploads=True))
    command = harness.take()
    while not isinstance(command, ev.Submit):
        command = harness.take()
    settle = harness.settle()
    assert 3 == settle.ref
    assert isinstance(settle.ending, CeilingReached)
    harness.tell(ev.JobAdded(5, SMILE, 2.0, uploads=False, spending_limits=(7,)))
    assert 5 == harness.settle().ref
    # Where nobody counts any longer there is no ceiling.
    harness.tell(ev.SpendingLimitClosed(7))
    harness.tell(ev.JobAdded(6, SMILE, 9.0, uploads=False, spending_limits=(7,)))
    assert JobState.READY is harness.scheduler._state.jobs[6].state


# Questions.


def test_an_urgent_query() -> None:
    """An urgent query leaves before creations and before earlier queries."""
    harness = SchedulerHarness()
    harness.tell(ev.QueryAdded(1))
    harness.tell(wanted(2))
    harness.tell(ev.QueryAdded(3, urgent=True))
    assert [3, 2] == [getattr(harness.take(), "ref", None) for _ in range(2)]


def test_a_lasting_query() -> None:
    """A lasting query is sent and retried while its client closes, and not after an abort."""
    harness = SchedulerHarness()
    harness.tell(ev.QueryAdded(1, lasting=True))
    harness.tell(ev.ChannelClosed())
    harness.tell(ev.QueryAdded(2))
    assert isinstance(harness.settle().ending, ClientClosed)
    command = harness.take()
    assert isinstance(command, ev.Ask)
    harness.tell(ev.NoAnswer(command, DOWN))
    again = harness.take()
    assert isinstance(again, ev.Ask)
    harness.tell(ev.QueryAdded(3, lasting=True))
    harness.tell(ev.ChannelAborted())
    assert 3 == harness.settle().ref
    harness.tell(ev.NoAnswer(again, DOWN))
    assert 1 == harness.settle().ref


def test_nothing_wakes_without_adopted_tasks() -> None:
    """A scheduler without adopted tasks does not wake for them."""
    assert NEVER == Scheduler(Limits(), Polling()).wakes_at(0)


def test_an_adopted_task_of_a_member_that_is_gone_has_one_owner() -> None:
    """A member that adopts the task of a gone member ends that row; the task of a running member
    stays with it.
    """
    limits = ev.SharedLimits(250, 300 * SECOND, 5, 10 * SECOND)
    scheduler = Scheduler(Limits(), Polling())
    scheduler.share("me", 1, Limits())
    plan = scheduler._state.pacer.wanted()
    rows: list[ev.LedgerRow] = []
    for number, owner in enumerate(("dead", "alive"), 1):
        rows += [
            ev.MemberRow(owner, number, limits, 0, 0, 1, 0, False, 0, *plan),
            ev.TaskRow(
                *(owner, number, SMILE, 0, 0, 600 * SECOND),
                *(10 * number, 1000, 0, f"task-{number}"),
            ),
        ]
    scheduler.receive(ev.LedgerRead(tuple(rows)), 0)
    kept = [scheduler.is_kept_elsewhere(f"task-{number}") for number in (1, 2, 3)]
    scheduler.changes(0)
    scheduler.receive(ev.LedgerRead((), ("dead",)), SECOND)
    kept.append(scheduler.is_kept_elsewhere("task-1"))
    scheduler.receive(adopted(1), SECOND)
    scheduler.receive(adopted(2), SECOND)
    told = [row for row in scheduler.changes(SECOND) if isinstance(row, ev.TaskRow)]

    assert [True, True, False, False] == kept
    assert ["task-1"] == [row.task_id for row in told if row.ended]
    assert scheduler.foreign_task("task-1") is None
    assert scheduler.is_kept_elsewhere("task-2")
