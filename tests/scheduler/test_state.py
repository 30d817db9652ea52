"""What the book knows after each kind of news."""

import pytest

from perfect_async import events as ev
from perfect_async.errors import ClientClosed, PerfectError, TaskAbandoned, TaskExpired
from perfect_async.models import Limits, Polling
from perfect_async.scheduler._job import IllegalEvent, JobState, ScheduledJob
from perfect_async.scheduler._state import SchedulerState

SECOND = 1_000_000
NO = PerfectError("no")


def book() -> SchedulerState:
    return SchedulerState(Limits(), Polling(give_up_after=120), engine_retries=1, files_per_call=20)


def running(here: SchedulerState, ref: int = 1, number: int = 1, now: int = 0) -> None:
    here.take_in(ev.Wanted(ref, "ai-smile", 2.0, uploads=False), now)
    command = ev.Submit(number, ref)
    here.issue(command, now)
    here.hear(ev.Accepted(command, f"task-{number}"), now + 100_000)


def test_a_task_is_charged_and_settled() -> None:
    """What was charged is told with the ending, and the job is forgotten once it is told."""
    here = book()
    running(here)
    assert 2.0 == here.units.totals().charged
    poll = ev.Poll(2, 1)
    here.issue(poll, 5 * SECOND)
    here.hear(ev.Succeeded(poll, ("u",)), 6 * SECOND)
    settle, job = here.endings.queue[0]
    assert 2.0 == settle.units
    assert JobState.ENDED is getattr(job, "state", None)
    here.issue(settle, 6 * SECOND)
    assert {} == here.jobs
    assert 1 == here.counts["done"]
    assert 0 == len(here.table)


def test_a_hedged_poll_comes_second() -> None:
    """An answer about a job that ended, or was told, changes nothing but the window."""
    here = book()
    running(here)
    polls = [ev.Poll(number, 1) for number in (2, 3, 4)]
    for poll in polls:
        here.issue(poll, 5 * SECOND)
    here.hear(ev.Succeeded(polls[0], ("u",)), 6 * SECOND)
    here.hear(ev.TaskUnknown(polls[1], TaskExpired("x")), 6 * SECOND)
    here.issue(here.endings.queue[0][0], 6 * SECOND)
    here.hear(ev.NoAnswer(polls[2], NO), 7 * SECOND)
    assert not here.endings.queue
    assert 0.0 == here.units.totals().at_stake


def test_a_number_used_again() -> None:
    """An old poll says nothing about another job of the same number."""
    here = book()
    running(here)
    old, new = ev.Poll(2, 1), ev.Poll(3, 1)
    here.issue(old, 5 * SECOND)
    here.issue(new, 5 * SECOND)
    here.hear(ev.Succeeded(new, ("u",)), 6 * SECOND)
    here.issue(here.endings.queue[0][0], 6 * SECOND)
    running(here, number=4, now=7 * SECOND)
    here.hear(ev.Succeeded(old, ("wrong",)), 8 * SECOND)
    assert JobState.RUNNING is here.jobs[1].state


def test_a_closed_lane_takes_nothing() -> None:
    """A closed lane ends what is not created and what comes later, and is counted as neither."""
    here = book()
    here.close(0, 0)
    here.take_in(ev.Wanted(1, "ai-smile", 1.0, uploads=True), 0)
    here.take_in(ev.Asked(2), 0)
    assert 2 == len(here.endings.queue)
    for settle in [settle for settle, _ in here.endings.queue]:
        assert isinstance(settle.ending, ClientClosed)
        here.issue(settle, 0)
    assert not here.counts
    assert 2 not in here.questions


def test_known_numbers() -> None:
    """A number that is known cannot come in again, as a job or as a question."""
    here = book()
    here.take_in(ev.Wanted(1, "ai-smile", 1.0, uploads=True), 0)
    here.take_in(ev.Asked(2), 0)
    for event in (1, 2):
        with pytest.raises(IllegalEvent, match="is known already"):
            here.take_in(ev.Asked(event), 0)
    here.withdraw(99)
    assert not here.endings.queue


def test_abandoned_after_closing() -> None:
    """The reason for which a task is let go is the closing where there was one."""
    here = book()
    running(here)
    assert "after 120 s" in str(here.abandoned(here.jobs[1]))
    here.close(0, 0)
    assert "client closed" in str(here.abandoned(here.jobs[1]))


def test_a_try_is_counted() -> None:
    """A poll that repeats a silent promised one is counted as a try, a late one as late."""
    here = book()
    running(here)
    first = here.table.first()
    assert first is not None
    at = first[0] * 50_000 + 50_000
    here.issue(ev.Poll(2, 1), at)
    assert 1 == here.counts["late"]
    here.issue(ev.Poll(3, 1), at + here.pacer.network.patience)
    assert 1 == here.counts["tries"] == here.jobs[1].tries


def adopted(here: SchedulerState, now: int = 0) -> ScheduledJob:
    here.take_in(ev.Adopted(1, "ai-smile", 1.0, "t1"), now)
    return here.jobs[1]


def test_a_task_that_was_not_asked_for_yet_is_dropped() -> None:
    """What is taken over and has not left is abandoned with its client, and asked for no longer."""
    here = book()
    job = adopted(here)
    here.drop(0, 0)
    assert (JobState.ENDED, 0) == (job.state, len(here.adoptions))
    assert isinstance(here.endings.queue[0][0].ending, TaskAbandoned)


@pytest.mark.parametrize("times", [1, 2])
def test_an_announcement_is_heard_once(times: int) -> None:
    """Until its answer, a second one asks for nothing more."""
    here = book()
    running(here)
    job = here.jobs[1]
    for now in range(times):
        here.announce(1, now)
    assert (1, 0) == (job.announced, job.ask_at)
    assert (0, 1) == here.asks.first()


def test_an_announcement_after_a_vain_poll() -> None:
    """One that comes when the task was found running asks at once."""
    here = book()
    running(here)
    job = here.jobs[1]
    here.announce(1, 0)
    job.announced, job.ask_at = 3, 60
    here.announce(1, 5)
    assert (1, 5) == (job.announced, job.ask_at)
    here.announce(99, 6)
    here.asks.tidy()
    assert (5, 1) == here.asks.first()


def test_what_is_taken_over_remembers_its_announcement() -> None:
    """It is asked for at once in any case."""
    here = book()
    job = adopted(here)
    here.announce(1, 0)
    assert (1, None, None) == (job.announced, job.ask_at, here.asks.first())
