"""The state after each kind of event."""

import pytest

from perfect_async import events as ev
from perfect_async._time import NEVER, SLOT
from perfect_async.errors import ClientClosed, PerfectError, TaskAbandoned, TaskExpired
from perfect_async.models import Limits, MeasuredLease, Polling
from perfect_async.scheduler._job import IllegalEvent, JobState, ScheduledJob
from perfect_async.scheduler._state import SchedulerState
from tests.support.scheduler_harness import head

SECOND = 1_000_000
SMILE = ev.TaskKind("ai-smile")
NO = PerfectError("no")


def state() -> SchedulerState:
    return SchedulerState(Limits(), Polling(give_up_after=120), engine_retries=1, files_per_call=20)


def running(here: SchedulerState, ref: int = 1, number: int = 1, now: int = 0) -> None:
    here.on_arrival(ev.JobAdded(ref, SMILE, 2.0, uploads=False), now)
    command = ev.Submit(number, ref)
    here.on_issued(command, now)
    here.on_response(ev.Accepted(command, f"task-{number}"), now + 100_000)


def test_a_task_is_charged_and_settled() -> None:
    """The charge is reported with the end, and then the job is forgotten."""
    here = state()
    running(here)
    assert 2.0 == here.units.totals().charged
    poll = ev.Poll(2, 1)
    here.on_issued(poll, 5 * SECOND)
    here.on_response(ev.Succeeded(poll, ("u",)), 6 * SECOND)
    settle, job = here.settlements.queue[0]
    assert 2.0 == settle.units
    assert JobState.ENDED is getattr(job, "state", None)
    here.on_issued(settle, 6 * SECOND)
    assert {} == here.jobs
    assert 1 == here.counts["done"]
    assert 0 == len(here.table)


def test_a_hedged_poll_comes_second() -> None:
    """The second answer about a job that ended or was reported changes only the window."""
    here = state()
    running(here)
    polls = [ev.Poll(number, 1) for number in (2, 3, 4)]
    for poll in polls:
        here.on_issued(poll, 5 * SECOND)
    here.on_response(ev.Succeeded(polls[0], ("u",)), 6 * SECOND)
    here.on_response(ev.TaskUnknown(polls[1], TaskExpired("x")), 6 * SECOND)
    here.on_issued(here.settlements.queue[0][0], 6 * SECOND)
    here.on_response(ev.NoAnswer(polls[2], NO), 7 * SECOND)
    assert not here.settlements.queue
    assert 0.0 == here.units.totals().at_stake


def test_a_number_used_again() -> None:
    """An old poll does not affect another job with the same number."""
    here = state()
    running(here)
    old, new = ev.Poll(2, 1), ev.Poll(3, 1)
    here.on_issued(old, 5 * SECOND)
    here.on_issued(new, 5 * SECOND)
    here.on_response(ev.Succeeded(new, ("u",)), 6 * SECOND)
    here.on_issued(here.settlements.queue[0][0], 6 * SECOND)
    running(here, number=4, now=7 * SECOND)
    here.on_response(ev.Succeeded(old, ("wrong",)), 8 * SECOND)
    assert JobState.RUNNING is here.jobs[1].state


def test_a_closed_channel_takes_no_jobs() -> None:
    """A closed channel ends jobs that are not created and later ones, and counts neither."""
    here = state()
    here.on_channel_closed(0, 0)
    here.on_arrival(ev.JobAdded(1, SMILE, 1.0, uploads=True), 0)
    here.on_arrival(ev.QueryAdded(2), 0)
    assert 2 == len(here.settlements.queue)
    for settle in [settle for settle, _ in here.settlements.queue]:
        assert isinstance(settle.ending, ClientClosed)
        here.on_issued(settle, 0)
    assert not here.counts
    assert 2 not in here.queries


def test_numbers_in_use() -> None:
    """A number in use cannot be added again, as a job or as a query."""
    here = state()
    here.on_arrival(ev.JobAdded(1, SMILE, 1.0, uploads=True), 0)
    here.on_arrival(ev.QueryAdded(2), 0)
    for event in (1, 2):
        with pytest.raises(IllegalEvent, match="is already in use"):
            here.on_arrival(ev.QueryAdded(event), 0)
    here.on_cancelled(99)
    assert not here.settlements.queue


def test_abandoned_after_closing() -> None:
    """If the client closed, that is the reason for which a task is abandoned."""
    here = state()
    running(here)
    assert "after 120 s" in str(here.abandoned(here.jobs[1]))
    here.on_channel_closed(0, 0)
    assert "client closed" in str(here.abandoned(here.jobs[1]))


def test_a_retry_is_counted() -> None:
    """A retry of a reserved poll counts as a retry, and a late poll as late."""
    here = state()
    running(here)
    first = head(here.table.queue)
    assert first is not None
    at = first[0] * 50_000 + 50_000
    here.on_issued(ev.Poll(2, 1), at)
    assert 1 == here.counts["late"]
    here.on_issued(ev.Poll(3, 1), at + here.pacer.network.patience)
    assert 1 == here.counts["tries"] == here.jobs[1].tries


def adopted(here: SchedulerState, now: int = 0) -> ScheduledJob:
    here.on_arrival(ev.TaskAdopted(1, SMILE, 1.0, "t1"), now)
    return here.jobs[1]


def test_a_task_that_was_not_polled_yet_is_abandoned() -> None:
    """An adopted task that was not polled yet is abandoned with its client, and not polled."""
    here = state()
    job = adopted(here)
    here.on_channel_aborted(0, 0)
    assert (JobState.ENDED, 0) == (job.state, len(here.takeovers))
    assert isinstance(here.settlements.queue[0][0].ending, TaskAbandoned)


@pytest.mark.parametrize("times", [1, 2])
def test_an_announcement_counts_once(times: int) -> None:
    """A second announcement before the answer causes no other poll."""
    here = state()
    running(here)
    job = here.jobs[1]
    for now in range(times):
        here.on_notified(1, now)
    assert (1, 0) == (job.announced, job.ask_at)
    assert (0, 1) == (here.poll_queue.wakes(), here.poll_queue.first())


def test_an_announcement_after_a_wasted_poll() -> None:
    """An announcement of a task that was found running causes a poll at once."""
    here = state()
    running(here)
    job = here.jobs[1]
    here.on_notified(1, 0)
    job.announced, job.ask_at = 3, 60
    here.on_notified(1, 5)
    assert (1, 5) == (job.announced, job.ask_at)
    here.on_notified(99, 6)
    here.poll_queue.tidy()
    assert (5, 1) == (here.poll_queue.wakes(), here.poll_queue.first())


def test_an_adopted_task_remembers_its_announcement() -> None:
    """An adopted task is polled at once in any case."""
    here = state()
    job = adopted(here)
    here.on_notified(1, 0)
    assert (1, None, NEVER) == (job.announced, job.ask_at, here.poll_queue.wakes())


def lost(here: SchedulerState, now: int) -> None:
    """Both polls of a running task find it unknown at `now`."""
    for number in (2, 3):
        poll = ev.Poll(number, 1)
        here.on_issued(poll, now)
        here.on_response(ev.TaskUnknown(poll, TaskExpired("x")), now)


@pytest.mark.parametrize(
    ("measured", "refuted", "after"),
    [(40.0, 40 * SECOND, 10 * SECOND), (8.0, 0, 8 * SECOND), (None, 0, 40 * SECOND)],
)
def test_a_task_lost_inside_a_measured_lease(
    measured: float | None, refuted: int, after: int
) -> None:
    """The assumed lease holds again, unless the measured one is shorter or none was measured."""
    lease = 40.0 if measured is None else MeasuredLease(measured)
    here = SchedulerState(Limits(), Polling(lease=lease), engine_retries=1, files_per_call=20)
    running(here)
    lost(here, 5 * SECOND)
    assert (refuted, after, after) == (here.refuted_lease, here.lease, here.extra_polls.lease)
    here.refresh(6 * SECOND)
    assert after > here.table.cycle * SLOT
