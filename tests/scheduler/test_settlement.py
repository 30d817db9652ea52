"""How jobs and questions end, who is told next, and what an end releases."""

from collections import Counter

import pytest

from perfect_async import events as ev
from perfect_async.errors import ClientClosed, TaskAbandoned, TaskExpired, TaskFailed
from perfect_async.events import TaskKind
from perfect_async.scheduler._job import IllegalEvent, JobState, ScheduledJob
from perfect_async.scheduler._queues import Query, QueryQueue
from perfect_async.scheduler._settlement import Settlements, UnitLedger

SUCCEEDED = ev.Succeeded(ev.Poll(1, 1), ("https://results.example/1",))
FAILED = TaskFailed("x", code="x", passing=False)


class Keeper:
    """A keeper that notes what is released."""

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


class Bench:
    def __init__(self) -> None:
        self.jobs: dict[int, ScheduledJob] = {}
        self.strategy, self.units = Keeper(), UnitLedger()
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


def test_an_end_is_told_once() -> None:
    """The job's waiter is told what it cost, and the job is forgotten."""
    bench = Bench()
    job = bench.job(1)
    bench.settlements.end(job, SUCCEEDED, cause=SUCCEEDED, ended=5)
    assert JobState.ENDED is job.state
    assert ev.Settle(1, SUCCEEDED, 1.0) == bench.settle()
    assert (JobState.TOLD, {}, {"done": 1}) == (job.state, bench.jobs, bench.counts)
    assert [(1, 5, False)] == bench.strategy.released


def test_ends_are_told_in_their_order() -> None:
    """First ended, first told; what fails counts as failed, what the client left as neither."""
    bench = Bench()
    failed, closed, done = bench.job(1), bench.job(2, JobState.READY), bench.job(3)
    failure = ev.EngineFailed(ev.Poll(1, 1), FAILED, passing=False)
    bench.settlements.end(failed, FAILED, cause=failure)
    bench.settlements.end(closed, ClientClosed("closed"))
    bench.settlements.end(done, SUCCEEDED, cause=SUCCEEDED)
    assert [1, 2, 3] == [bench.settle().ref for _ in range(3)]
    assert {"done": 1, "failed": 1} == bench.counts
    assert [1, 3] == [ref for ref, _, _ in bench.strategy.released]


def test_a_task_that_the_vendor_lost() -> None:
    """The keeper hears that it was lost, and its units are at stake."""
    bench = Bench()
    gone = TaskExpired("gone")
    unknown = ev.TaskUnknown(ev.Poll(1, 1), gone)
    bench.settlements.end(bench.job(1), gone, cause=unknown, at_stake=1.0)
    assert [(1, None, True)] == bench.strategy.released
    assert 1.0 == bench.units.totals().at_stake


def test_no_way_leads_there() -> None:
    """An end that the table does not know is refused."""
    bench = Bench()
    job = bench.job(1, JobState.READY)
    with pytest.raises(IllegalEvent):
        bench.settlements.end(job, SUCCEEDED, cause=SUCCEEDED)
    assert JobState.READY is job.state
    assert not bench.settlements.queue


def test_too_old() -> None:
    """The oldest task is given up when that is said; nobody is told twice."""
    bench = Bench()
    young, old = bench.job(1, given_up=700), bench.job(2, given_up=600)
    assert 600 == bench.settlements.ages[0][0]
    command = ev.Settle(2, TaskAbandoned("too old"), 1.0)
    bench.settlements.settled(command, bench.queries)
    assert (JobState.TOLD, JobState.RUNNING) == (old.state, young.state)
    assert [(2, None, False)] == bench.strategy.released
    assert not bench.settlements.queue
    assert 1.0 == bench.units.totals().at_stake
    assert [700] == [age for age, _, _ in bench.settlements.ages]


def test_the_ages_tell_the_truth() -> None:
    """What has ended or got another time is not at the head."""
    bench = Bench()
    first, second, third = bench.job(1, given_up=1), bench.job(2, given_up=2), bench.job(3)
    bench.settlements.end(first, SUCCEEDED, cause=SUCCEEDED)
    second.given_up = 900
    bench.settlements.expect(second)
    bench.settlements.tidy()
    assert (600, third) == (bench.settlements.ages[0][0], bench.settlements.ages[0][2])
    bench.settlements.end(third, SUCCEEDED, cause=SUCCEEDED)
    bench.settlements.end(second, SUCCEEDED, cause=SUCCEEDED)
    assert [] == bench.settlements.ages


def test_a_question_without_an_answer() -> None:
    """Whoever asked is told, and the question is forgotten; it cost nothing."""
    bench = Bench()
    question = Query(7, 0, 0, repeats=True, urgent=False)
    bench.queries.add(question)
    bench.settlements.answer(question, ClientClosed("closed"))
    assert (7, 0.0) == (bench.settle().ref, bench.settlements._units.totals().charged)
    assert 7 not in bench.queries
    assert {} == bench.counts
