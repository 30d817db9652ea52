"""The scheduler hears of tasks that exist already, of ceilings, and of creations one by one."""

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


def adopted(ref: int = 1, **facts: object) -> ev.Adopted:
    """A smile's task."""
    return ev.Adopted(ref, SMILE, 1.0, f"task-{ref}", **facts)  # type: ignore[arg-type]


class Former(World):
    """A world in which a former process has left tasks."""

    def leave_over(self, lasts: float, seen: float = 0.0) -> int:
        """A task that ends `lasts` seconds from now and was polled `seen` seconds ago."""
        ref = len(self.jobs) + 1
        self.jobs[ref] = 1.0
        at = self.now - round(seen * SECOND)
        self.tasks[ref] = Task(self.now + round(lasts * SECOND), at)
        self.tell(adopted(ref, age=round((seen + 5) * SECOND)))
        return ref


# Adopted.


@pytest.mark.parametrize("count", [1, 7, 30])
@pytest.mark.parametrize("busy", [True, False])
def test_asked_for_at_once(count: int, busy: bool) -> None:
    """Tasks that are taken over are asked for five a second, before anything else, and kept."""
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
def test_kept_like_others(seed: int) -> None:
    """Adopted tasks among others keep every limit and reserved poll; lost ones are reported."""
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


def test_counted_as_running() -> None:
    """A task that is taken over is charged and counts as running at once."""
    session = SchedulerHarness()
    session.tell(adopted())
    assert 1 == session.scheduler.statistics().running
    assert 1.0 == session.scheduler.statistics().units.charged
    assert session.now < session.scheduler.wakes_at(session.now)


def test_adopted_and_done() -> None:
    """One that has ended is told after one request, and is no evidence of how long they last."""
    session = SchedulerHarness()
    session.tell(adopted())
    poll = session.poll()
    assert 0 == session.now
    session.tell(ev.Succeeded(poll, ("https://r.example/1",)))
    assert 1.0 == session.settle().units
    assert None is session.scheduler.eta(1, 0)
    assert 1 == session.scheduler.statistics().done


def test_adopted_and_unknown() -> None:
    """One that the vendor does not know is believed lost at once, with its units at stake."""
    session = SchedulerHarness()
    session.tell(adopted())
    session.tell(ev.TaskUnknown(session.poll(), TaskExpired("gone", task_id="task-1")))
    settle = session.settle()
    assert isinstance(settle.ending, TaskExpired)
    assert (1.0, 1.0) == (settle.ending.units_at_stake, settle.units)
    assert 1.0 == session.scheduler.statistics().units.at_stake


def test_adopted_and_failed() -> None:
    """One whose engine fails is not created anew: its job is known to nobody here."""
    session = SchedulerHarness(engine_retries=3)
    session.tell(adopted())
    session.tell(failed(session.poll()))
    assert 0.0 == session.settle().units
    assert 1.0 == session.scheduler.statistics().units.returned


def test_adopted_and_silent() -> None:
    """The first poll that fails is tried again soon: nobody knows how much of the lease is left."""
    session = SchedulerHarness()
    session.tell(adopted())
    session.tell(ev.NoAnswer(session.poll(), DOWN))
    again = session.poll()
    assert 3 * SECOND > session.now
    session.tell(ev.Running(again))
    session.poll()
    assert 10 * SECOND > session.now


@pytest.mark.parametrize("answer", [ev.TimedOut, ev.KeyRefused])
def test_adopted_and_refused(answer: type[ev.TimedOut | ev.KeyRefused]) -> None:
    """Other ends of one that was taken over leave its unit at stake."""
    session = SchedulerHarness()
    session.tell(adopted())
    for _ in range(1 + (answer is ev.KeyRefused)):
        session.tell(answer(session.poll(), TaskTimedOut("x")))
    assert 1.0 == session.settle().units
    assert 1.0 == session.scheduler.statistics().units.at_stake


@pytest.mark.parametrize("age", [0, 100, 10_000])
def test_too_old(age: int) -> None:
    """However old it is, it is asked for, and kept for a while if it runs."""
    session = SchedulerHarness()
    session.tell(adopted(age=age * SECOND))
    while not isinstance(command := session.take(), ev.Settle):
        assert isinstance(command, ev.Poll)
        session.now += SLOT
        session.tell(ev.Running(command))
    assert isinstance(command.ending, TaskAbandoned)
    assert max(20, 120 - age) - 1 <= session.now / SECOND <= max(20, 120 - age) + 10
    assert 1.0 == command.ending.units_at_stake


@pytest.mark.parametrize("polled", [True, False])
def test_dropped(polled: bool) -> None:
    """A client that ends abandons what it has taken over, asked for or not."""
    session = SchedulerHarness()
    session.tell(adopted())
    if polled:
        session.poll()
    session.tell(ev.Dropped())
    settle = session.settle()
    assert isinstance(settle.ending, TaskAbandoned)
    assert 1.0 == settle.ending.units_at_stake == session.scheduler.statistics().units.at_stake
    assert None is session.scheduler.due(session.now)
    assert not polled or NEVER == session.scheduler.wakes_at(session.now + 400 * SECOND)


def test_closing_keeps_it() -> None:
    """A client that only closes keeps what it has taken over; so does one that nobody waits for."""
    session = SchedulerHarness()
    session.tell(adopted())
    session.tell(ev.Closed())
    session.tell(ev.Withdrawn(1))
    session.tell(ev.Succeeded(session.poll(), ("https://r.example/1",)))
    assert isinstance(session.settle().ending, ev.Succeeded)


@pytest.mark.parametrize(
    "event",
    [adopted(), ev.Forgone(1, RequestRefused("x")), ev.Wanted(1, SMILE, 1.0, uploads=False)],
)
def test_known_already(event: ev.Event) -> None:
    """A number that is known is nobody else's, and nothing has changed."""
    session = SchedulerHarness()
    session.tell(adopted())
    before = session.scheduler.statistics()
    with pytest.raises(IllegalEvent):
        session.tell(event)
    assert before == session.scheduler.statistics()


def test_a_full_window() -> None:
    """Where the window is full they wait until it is not, and no longer."""
    session = SchedulerHarness()
    session.scheduler.remember([(250 * SECOND, 246), (1, 4)])
    session.tell(adopted())
    poll = session.poll()
    assert 49 * SECOND < session.now < 56 * SECOND
    session.tell(ev.Running(poll))


# Forgone.


@pytest.mark.parametrize("at_stake", [0.0, 2.0])
def test_forgone(at_stake: float) -> None:
    """A job whose end is known is told so, with what is at stake, and costs no request."""
    session = SchedulerHarness()
    session.tell(ev.Forgone(1, SubmissionInDoubt("x", units_at_stake=at_stake)))
    assert isinstance(session.settle().ending, SubmissionInDoubt)
    statistics = session.scheduler.statistics()
    assert (0.0, at_stake) == (statistics.units.charged, statistics.units.at_stake)
    assert {} == statistics.requests
    assert 1 == statistics.failed


# One by one.


def wanted(ref: int, feature: str = "ai-smile", **facts: object) -> ev.Wanted:
    """A job that is created alone."""
    return ev.Wanted(ref, ev.TaskKind(feature), 1.0, uploads=False, alone=True, **facts)  # type: ignore[arg-type]


def test_alone() -> None:
    """A creation waits for the one before it, until that is answered in whatever way."""
    session = SchedulerHarness()
    for ref in range(1, 5):
        session.tell(wanted(ref))
    for answer in (
        lambda command: ev.Accepted(command, "t"),
        lambda command: ev.NoAnswer(command, DOWN),
        lambda command: ev.Refused(command, RequestRefused("x"), 400),
    ):
        command = session.take()
        while isinstance(command, ev.Settle):
            command = session.take()
        assert isinstance(command, ev.Submit)
        # Nothing wakes it but the answer.
        assert None is session.scheduler.due(session.now)
        session.now += SECOND
        assert None is session.scheduler.due(session.now)
        session.tell(answer(command))
    assert 4 == sum(session.scheduler.statistics().requests.values()) + 1


def test_alone_whatever_the_feature() -> None:
    """The history's actions need not name one, so another feature's creation waits as well."""
    session = SchedulerHarness()
    session.tell(wanted(1))
    session.tell(wanted(2, "ai-avatar"))
    first = session.take()
    assert isinstance(first, ev.Submit)
    session.now += SECOND
    assert None is session.scheduler.due(session.now)
    session.tell(ev.Accepted(first, "t"))
    assert 2 == getattr(session.take(), "ref", None)


def test_not_alone() -> None:
    """Jobs that need not be alone wait for none."""
    session = SchedulerHarness()
    for ref in (1, 2, 3):
        session.tell(ev.Wanted(ref, SMILE, 1.0, uploads=False))
    assert [1, 2, 3] == [getattr(session.take(), "ref", None) for _ in range(3)]


def test_an_error_that_knows() -> None:
    """What the unit history has told of a creation is told, with what is at stake."""
    session = SchedulerHarness()
    session.tell(wanted(1))
    command = session.take()
    assert isinstance(command, ev.Submit)
    session.tell(ev.NoAnswer(command, SubmissionInDoubt("nothing", units_at_stake=0.0)))
    settle = session.settle()
    assert isinstance(settle.ending, SubmissionInDoubt)
    assert "nothing" == settle.ending.message
    assert 0.0 == session.scheduler.statistics().units.at_stake


# Ceilings.


def test_a_purse() -> None:
    """What no longer fits ends when the last unit is reserved, prepared or not; what fits stays."""
    session = SchedulerHarness()
    session.tell(ev.SpendingLimitOpened(7, 2.0))
    session.tell(wanted(1, spending_limits=(7,)))
    session.tell(ev.Wanted(2, SMILE, 1.0, uploads=True, spending_limits=(7,)))
    session.tell(ev.Wanted(3, SMILE, 2.0, uploads=True, spending_limits=(7,)))
    session.tell(ev.Wanted(4, SMILE, 2.0, uploads=True))
    command = session.take()
    while not isinstance(command, ev.Submit):
        command = session.take()
    settle = session.settle()
    assert 3 == settle.ref
    assert isinstance(settle.ending, CeilingReached)
    session.tell(ev.Wanted(5, SMILE, 2.0, uploads=False, spending_limits=(7,)))
    assert 5 == session.settle().ref
    # Where nobody counts any longer there is no ceiling.
    session.tell(ev.SpendingLimitClosed(7))
    session.tell(ev.Wanted(6, SMILE, 9.0, uploads=False, spending_limits=(7,)))
    assert JobState.READY is session.scheduler._state.jobs[6].state


# Questions.


def test_an_urgent_question() -> None:
    """What units depend on leaves before creations and before questions that came sooner."""
    session = SchedulerHarness()
    session.tell(ev.Asked(1))
    session.tell(wanted(2))
    session.tell(ev.Asked(3, urgent=True))
    assert [3, 2] == [getattr(session.take(), "ref", None) for _ in range(2)]


def test_a_lasting_question() -> None:
    """What lasts is asked, and asked again, while its client closes, and not once it is gone."""
    session = SchedulerHarness()
    session.tell(ev.Asked(1, lasting=True))
    session.tell(ev.Closed())
    session.tell(ev.Asked(2))
    assert isinstance(session.settle().ending, ClientClosed)
    command = session.take()
    assert isinstance(command, ev.Ask)
    session.tell(ev.NoAnswer(command, DOWN))
    again = session.take()
    assert isinstance(again, ev.Ask)
    session.tell(ev.Asked(3, lasting=True))
    session.tell(ev.Dropped())
    assert 3 == session.settle().ref
    session.tell(ev.NoAnswer(again, DOWN))
    assert 1 == session.settle().ref


def test_settings_are_the_schedulers() -> None:
    """A scheduler that has taken nothing over wakes for nothing."""
    assert NEVER == Scheduler(Limits(), Polling()).wakes_at(0)
