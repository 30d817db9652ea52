"""When creating stops and paid tasks end: refusals, doubts, and repeated ids and results."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async import events as ev
from perfect_async._time import SLOT
from perfect_async.errors import (
    BadAnswer,
    JobRefused,
    PerfectError,
    RateLimited,
    RequestRefused,
    ResultUnreadable,
    ServiceUnavailable,
    SubmissionInDoubt,
    TaskFailed,
    Unauthorized,
)
from perfect_async.models import Limits, Polling
from perfect_async.scheduler import NEVER, IllegalEvent, Scheduler
from perfect_async.scheduler._job import JobState, ScheduledJob
from perfect_async.scheduler._settlement import Refusals
from tests.support.scheduler_harness import SECOND, SMILE, SchedulerHarness, grants

DOWN = ServiceUnavailable("down")
FULL = RateLimited("full")


def submit(harness: SchedulerHarness, ref: int) -> ev.Submit:
    """Send the creation of a new job."""
    harness.tell(ev.JobAdded(ref, SMILE, 1.0, uploads=False))
    while not isinstance(command := harness.take(), ev.Submit):
        assert isinstance(command, ev.Settle | ev.Poll)
    return command


def in_doubt(harness: SchedulerHarness, *refs: int) -> None:
    """Send creations that get no answer, one after another."""
    for ref in refs:
        harness.tell(ev.NoAnswer(submit(harness, ref), DOWN))
        assert isinstance(harness.settle().ending, SubmissionInDoubt)


# Creations without an answer.


def test_three_doubts_stop_creating() -> None:
    """After three creations without an answer, jobs that are not sent end unsent."""
    harness = SchedulerHarness()
    in_doubt(harness, 1, 2)
    third = submit(harness, 3)
    harness.tell(ev.JobAdded(4, SMILE, 1.0, uploads=False))
    harness.tell(ev.JobAdded(5, SMILE, 1.0, uploads=True))
    harness.tell(ev.NoAnswer(third, DOWN))
    endings = {settle.ref: settle.ending for settle in (harness.settle() for _ in range(3))}
    assert isinstance(endings[3], SubmissionInDoubt)
    for ref in (4, 5):
        assert isinstance(endings[ref], JobRefused)
        assert "nothing was sent" in str(endings[ref]).lower()
        assert "correct the job" not in str(endings[ref])
        assert 0.0 == getattr(endings[ref], "units_at_stake", None)
    harness.tell(ev.JobAdded(6, SMILE, 1.0, uploads=True))
    assert isinstance(harness.settle().ending, JobRefused)


def test_only_an_accepted_creation_starts_the_count_anew() -> None:
    """A refused and an unsent one between the doubts do not, and the message says exactly that."""
    refusals, command = Refusals(), ev.Submit(0, 1)
    job = ScheduledJob(9, SMILE, 1.0, uploads=False, channel=0, state=JobState.READY)
    silent, accepted = ev.NoAnswer(command, DOWN), ev.Accepted(command, "task")
    for event in (silent, silent, accepted, silent, ev.NotSent(command, DOWN), silent):
        assert None is refusals.created(event, 0)
    assert None is refusals.created(ev.Refused(command, RequestRefused("no"), 400), 0)
    assert None is refusals.refusal(job, 0)

    assert isinstance(refusals.created(silent, 0), JobRefused)
    error = refusals.refusal(job, 1)
    assert isinstance(error, JobRefused)
    assert "3 creations without an answer and none accepted between them" in error.message
    assert "in a row" not in error.message


def test_creating_is_tried_again() -> None:
    """One creation is sent after five minutes, and its answer decides about the others."""
    harness = SchedulerHarness()
    in_doubt(harness, 1, 2, 3)
    harness.now += 299 * SECOND
    harness.tell(ev.JobAdded(4, SMILE, 1.0, uploads=False))
    assert isinstance(harness.settle().ending, JobRefused)
    harness.now += SECOND
    for ref in (5, 6):
        harness.tell(ev.JobAdded(ref, SMILE, 1.0, uploads=False))
    trial = harness.take()
    assert isinstance(trial, ev.Submit)
    assert None is harness.scheduler.due(harness.now)
    harness.tell(ev.NoAnswer(trial, DOWN))
    assert isinstance(harness.settle().ending, SubmissionInDoubt)
    assert isinstance(harness.settle().ending, JobRefused)
    harness.now += 300 * SECOND
    harness.tell(ev.JobAdded(7, SMILE, 1.0, uploads=False))
    trial = harness.take()
    assert isinstance(trial, ev.Submit)
    harness.tell(ev.Accepted(trial, "task-7"))
    in_doubt(harness, 8, 9)
    harness.tell(ev.JobAdded(10, SMILE, 1.0, uploads=False))
    assert JobState.READY is harness.scheduler._state.jobs[10].state


def test_what_counts_as_a_doubt() -> None:
    """An accepted creation resets the count; refused and unsent ones, and doubts of a former
    process, do not count.
    """
    harness = SchedulerHarness()
    for ref in range(100, 105):
        harness.tell(ev.JobRejected(ref, SubmissionInDoubt("x", units_at_stake=1.0)))
        harness.settle()
    in_doubt(harness, 1, 2)
    harness.tell(ev.Refused(submit(harness, 3), RequestRefused("no"), 400))
    harness.settle()
    command = submit(harness, 4)
    harness.tell(ev.NotSent(command, DOWN))
    again = harness.take()
    assert isinstance(again, ev.Submit)
    harness.tell(ev.Accepted(again, "task-4"))
    in_doubt(harness, 5, 6)
    harness.tell(ev.JobAdded(7, SMILE, 1.0, uploads=False))
    assert JobState.READY is harness.scheduler._state.jobs[7].state


def test_a_creation_of_a_dropped_client_counts() -> None:
    """A creation without an answer counts after its client was aborted, since it may be charged."""
    harness = SchedulerHarness()
    in_doubt(harness, 1, 2)
    third = submit(harness, 3)
    harness.tell(ev.ChannelAborted())
    harness.settle()
    harness.tell(ev.NoAnswer(third, DOWN))
    harness.tell(ev.JobAdded(4, SMILE, 1.0, uploads=False, channel=1))
    assert isinstance(harness.settle().ending, JobRefused)


def test_an_engine_failure_is_final_while_creating_is_stopped() -> None:
    """While creating is stopped, a passing failure of the engine is final."""
    harness = SchedulerHarness()
    harness.running(9)
    poll = harness.poll()
    in_doubt(harness, 1, 2, 3)
    failure = TaskFailed("x", code="x", passing=True)
    harness.tell(ev.EngineFailed(poll, failure, passing=True))
    assert failure is harness.settle().ending


# Refused polls.


def test_one_401_on_a_poll() -> None:
    """One 401 on a poll ends no job; the task is polled again inside its lease."""
    harness = SchedulerHarness()
    harness.running()
    poll = harness.poll()
    accepted = harness.scheduler._state.jobs[1].accepted
    harness.tell(ev.KeyRefused(poll, Unauthorized("no")))
    again = harness.poll()
    assert harness.now < accepted + 10 * SECOND
    harness.tell(ev.Running(again))
    harness.tell(ev.KeyRefused(harness.poll(), Unauthorized("no")))
    harness.tell(ev.JobAdded(2, SMILE, 1.0, uploads=False))
    assert JobState.READY is harness.scheduler._state.jobs[2].state


def test_two_401_on_polls() -> None:
    """The second 401 in a row ends the task with its units at stake, and stops creating."""
    harness = SchedulerHarness()
    harness.running()
    for _ in range(2):
        harness.tell(ev.KeyRefused(harness.poll(), Unauthorized("no")))
    settle = harness.settle()
    assert isinstance(settle.ending, Unauthorized)
    assert 1.0 == settle.ending.units_at_stake
    harness.tell(ev.JobAdded(2, SMILE, 1.0, uploads=False))
    assert isinstance(harness.settle().ending, Unauthorized)


def refused(status: int, code: str | None = None, message: str = "no") -> tuple[PerfectError, int]:
    """Return a refusal by the vendor with its error and status."""
    return RequestRefused(message, status=status, code=code), status


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 422])
@pytest.mark.parametrize("code", [None, "OperationInvalid"])
def test_refused_three_times(status: int, code: str | None) -> None:
    """A poll that is refused three times for the same reason ends the task, its units at stake."""
    harness = SchedulerHarness()
    harness.running()
    for number in range(3):
        message = "no" if code is None else f"no, said {number} times"
        harness.tell(ev.Refused(harness.poll(), *refused(status, code, message)))
    settle = harness.settle()
    assert isinstance(settle.ending, RequestRefused)
    assert 1.0 == settle.ending.units_at_stake == settle.units
    assert 1.0 == harness.scheduler.statistics().units.at_stake


@pytest.mark.parametrize("status", [0, 408, 429, 500, 502, 503])
def test_refusals_that_may_pass(status: int) -> None:
    """408, 429 and 5xx are never final."""
    harness = SchedulerHarness()
    harness.running()
    for _ in range(8):
        harness.tell(ev.Refused(harness.poll(), *refused(status)))
    assert JobState.RUNNING is harness.scheduler._state.jobs[1].state


def test_different_reasons() -> None:
    """Another reason, or a running answer in between, resets the count."""
    harness = SchedulerHarness()
    harness.running()
    for status, message in ((400, "a"), (400, "b"), (400, "b"), (404, "b"), (404, "b")):
        harness.tell(ev.Refused(harness.poll(), *refused(status, None, message)))
    harness.tell(ev.Running(harness.poll()))
    for _ in range(2):
        harness.tell(ev.Refused(harness.poll(), *refused(404, None, "b")))
    # A failure that says nothing about the task does not interrupt the row.
    harness.tell(ev.NoAnswer(harness.poll(), DOWN))
    assert JobState.RUNNING is harness.scheduler._state.jobs[1].state
    harness.tell(ev.Refused(harness.poll(), *refused(404, None, "b")))
    assert isinstance(harness.settle().ending, RequestRefused)


# The interval of the creation's answer.


@pytest.mark.parametrize("interval", [None, 1, 4 * SECOND])
def test_the_creations_interval(interval: int | None) -> None:
    """The interval of the creation's answer counts until a poll's answer names another."""
    harness = SchedulerHarness()
    harness.tell(ev.JobAdded(1, SMILE, 1.0, uploads=False))
    command = harness.take()
    assert isinstance(command, ev.Submit)
    harness.tell(ev.Accepted(command, "task-1", interval))
    state = harness.scheduler._state
    wanted = 2 * SECOND if interval is None else max(interval, SECOND // 2)
    assert wanted == state.jobs[1].interval
    began = harness.now
    poll = harness.poll()
    assert wanted <= harness.now - began < wanted + SECOND
    harness.tell(ev.Running(poll, 3 * SECOND))
    assert 3 * SECOND == state.jobs[1].interval
    harness.tell(ev.Running(harness.poll()))
    assert wanted == state.jobs[1].interval


def test_an_interval_beyond_the_lease() -> None:
    """The lease is kept for any interval in the creation's answer."""
    harness = SchedulerHarness()
    harness.tell(ev.JobAdded(1, SMILE, 1.0, uploads=False))
    command = harness.take()
    assert isinstance(command, ev.Submit)
    harness.tell(ev.Accepted(command, "task-1", 10**15))
    state, began = harness.scheduler._state, harness.now
    assert 8 * SECOND <= state.jobs[1].interval <= state.table.cycle * SLOT
    harness.poll()
    assert harness.now < began + 10 * SECOND


# Files.


def register(harness: SchedulerHarness) -> ev.Register:
    """Return the registration that is due next."""
    command = harness.take()
    assert isinstance(command, ev.Register)
    return command


def test_a_file_id_twice_in_one_call() -> None:
    """Files with the same id are registered again one by one; the others are uploaded."""
    harness = SchedulerHarness()
    for ref in range(1, 5):
        harness.tell(ev.JobAdded(ref, SMILE, 1.0, uploads=True))
    harness.now += SECOND
    command = register(harness)
    harness.tell(ev.Registered(command, grants(command, "a", "b", "a", "c")))
    uploads: list[int] = []
    single: list[tuple[int, ...]] = []
    while len(uploads) < 4:
        match harness.take():
            case ev.Upload() as upload:
                uploads.append(upload.ref)
            case ev.Register() as again:
                single.append(again.refs)
                harness.tell(ev.Registered(again, grants(again)))
    assert [(1,), (3,)] == single
    assert [1, 2, 3, 4] == sorted(uploads)


def test_a_file_id_of_an_earlier_call() -> None:
    """An id of an earlier job is not used; the same job may get its own id again."""
    harness = SchedulerHarness()
    harness.tell(ev.JobAdded(1, SMILE, 1.0, uploads=True))
    command = register(harness)
    harness.tell(ev.Registered(command, grants(command, "a")))
    upload = harness.take()
    assert isinstance(upload, ev.Upload)
    harness.tell(ev.Refused(upload, RequestRefused("expired"), 403))
    command = register(harness)
    harness.tell(ev.Registered(command, grants(command, "a")))
    assert isinstance(harness.take(), ev.Upload)
    harness.tell(ev.JobAdded(2, SMILE, 1.0, uploads=True))
    command = register(harness)
    harness.tell(ev.Registered(command, grants(command, "a")))
    command = register(harness)
    assert (2,) == command.refs
    harness.tell(ev.Registered(command, grants(command, "b")))
    upload = harness.take()
    assert isinstance(upload, ev.Upload)
    assert 2 == upload.ref


def test_a_vendor_that_repeats_ids_forever() -> None:
    """A job that never gets an id of its own ends before its task is created."""
    harness = SchedulerHarness()
    for ref in (1, 2):
        harness.tell(ev.JobAdded(ref, SMILE, 1.0, uploads=True))
    calls, ended = 0, list[int]()
    while len(ended) < 2:
        match harness.take():
            case ev.Register() as command:
                calls += 1
                harness.tell(ev.Registered(command, grants(command, *["a"] * len(command.refs))))
            case ev.Upload() as upload:
                harness.tell(ev.Uploaded(upload))
                ended.append(upload.ref)
            case ev.Settle() as settle:
                assert isinstance(settle.ending, BadAnswer)
                assert 0.0 == settle.ending.units_at_stake
                ended.append(settle.ref)
    assert 20 > calls


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=8))
def test_no_file_id_is_uploaded_twice(answers: list[list[int]]) -> None:
    """Each uploaded id belongs to one job, whatever ids the vendor gives."""
    harness = SchedulerHarness()
    for ref in range(1, 6):
        harness.tell(ev.JobAdded(ref, SMILE, 1.0, uploads=True))
    harness.now += SECOND
    ids: dict[int, str] = {}
    uploaded: dict[str, int] = {}
    number = 0
    while len(uploaded) < 5:
        command = harness.take()
        if isinstance(command, ev.Register):
            given = answers[number] if number < len(answers) else [10 + number * 5]
            chosen = [given[k % len(given)] + (k * 0) for k in range(len(command.refs))]
            if number >= len(answers):
                chosen = [given[0] + k for k in range(len(command.refs))]
            number += 1
            ids |= {ref: f"file-{k}" for ref, k in zip(command.refs, chosen, strict=True)}
            names = [ids[ref] for ref in command.refs]
            harness.tell(ev.Registered(command, grants(command, *names)))
        elif isinstance(command, ev.Upload):
            assert uploaded.setdefault(ids[command.ref], command.ref) == command.ref
            harness.tell(ev.Uploaded(command))
        elif isinstance(command, ev.Settle):
            assert isinstance(command.ending, BadAnswer)
            uploaded[f"ended {command.ref}"] = command.ref
        else:
            assert isinstance(command, ev.Submit)
            harness.tell(ev.Accepted(command, f"task-{command.ref}"))


# One result for two tasks.


def url(name: str, signature: int = 0) -> tuple[str]:
    """Return the signed URL of a result."""
    return (f"https://results.example/{name}.jpg?X-Amz-Signature={signature}",)


def next_polls(harness: SchedulerHarness, *refs: int) -> dict[int, ev.Poll]:
    """Return the next polls, which are of these tasks, each once."""
    polls = [harness.poll() for _ in refs]
    assert sorted(refs) == sorted(poll.ref for poll in polls)
    return {poll.ref: poll for poll in polls}


def test_a_result_of_another_task() -> None:
    """A task with the result of another task is polled again before its end counts."""
    harness = SchedulerHarness()
    harness.running(1)
    harness.running(2)
    polls = next_polls(harness, 1, 2)
    harness.tell(ev.Succeeded(polls[1], url("one", 1)))
    assert 1 == harness.settle().ref
    harness.tell(ev.Succeeded(polls[2], url("one", 2)))
    before = harness.now
    again = harness.poll()
    assert (2, before) == (again.ref, harness.now)
    harness.tell(ev.Succeeded(again, url("two")))
    settle = harness.settle()
    assert isinstance(settle.ending, ev.Succeeded)
    assert url("two") == settle.ending.urls


def test_both_tasks_are_polled_again() -> None:
    """If the first end is not reported yet, it is taken back and both tasks are polled again."""
    harness = SchedulerHarness()
    harness.running(1)
    harness.running(2)
    polls = next_polls(harness, 1, 2)
    harness.tell(ev.Succeeded(polls[1], url("two", 1)))
    harness.tell(ev.Succeeded(polls[2], url("two", 2)))
    polls = next_polls(harness, 1, 2)
    harness.tell(ev.Succeeded(polls[1], url("one")))
    harness.tell(ev.Succeeded(polls[2], url("two")))
    endings = {settle.ref: settle.ending for settle in (harness.settle() for _ in range(2))}
    assert [url("one"), url("two")] == [
        ending.urls for ending in (endings[1], endings[2]) if isinstance(ending, ev.Succeeded)
    ]
    assert 2 == harness.scheduler.statistics().done
    assert NEVER == harness.scheduler.wakes_at(harness.now + SECOND)


@pytest.mark.parametrize("reported", [True, False])
def test_the_same_result_again(reported: bool) -> None:
    """A result that is named for two tasks twice counts for at most one of them."""
    harness = SchedulerHarness()
    harness.running(1)
    harness.running(2)
    polls = next_polls(harness, 1, 2)
    harness.tell(ev.Succeeded(polls[1], url("one", 1)))
    endings = [harness.settle()] if reported else []
    harness.tell(ev.Succeeded(polls[2], url("one", 2)))
    again = next_polls(harness, 2) if reported else next_polls(harness, 1, 2)
    for ref, poll in again.items():
        harness.tell(ev.Succeeded(poll, url("one", ref + 2)))
    endings += [harness.settle() for _ in range(2 - reported)]
    errors = [settle.ending for settle in endings if isinstance(settle.ending, PerfectError)]
    assert [ResultUnreadable] == [type(error) for error in errors]
    assert 1.0 == errors[0].units_at_stake
    assert "Signature" not in str(errors[0])
    assert "task-" in str(errors[0])


def test_one_task_twice_is_no_conflict() -> None:
    """Two jobs of the same task have the same result."""
    harness = SchedulerHarness()
    for ref in (1, 2):
        harness.tell(ev.TaskAdopted(ref, SMILE, 1.0, "the same"))
    polls = next_polls(harness, 1, 2)
    for poll in polls.values():
        harness.tell(ev.Succeeded(poll, url("one")))
    assert {1, 2} == {harness.settle().ref for _ in range(2)}
    assert 2 == harness.scheduler.statistics().done


def test_results_without_urls() -> None:
    """Results without URLs (scores) never conflict."""
    harness = SchedulerHarness()
    harness.running(1)
    harness.running(2)
    for poll in next_polls(harness, 1, 2).values():
        harness.tell(ev.Succeeded(poll, ()))
    assert {1, 2} == {harness.settle().ref for _ in range(2)}


def test_an_aborted_client_ends_a_task_to_confirm() -> None:
    """A task that waits to be polled again ends with its client."""
    harness = SchedulerHarness()
    harness.running(1)
    harness.running(2)
    polls = next_polls(harness, 1, 2)
    harness.tell(ev.Succeeded(polls[1], url("one")))
    harness.tell(ev.Succeeded(polls[2], url("one")))
    harness.tell(ev.ChannelAborted())
    assert {1, 2} == {harness.settle().ref for _ in range(2)}
    assert NEVER == harness.scheduler.wakes_at(harness.now)


def test_many_results_are_remembered() -> None:
    """The newest 5,000 results are known; older ones are forgotten at some time."""
    harness = SchedulerHarness()
    harness.running(1)
    harness.tell(ev.Succeeded(harness.poll(), tuple(url(f"{n}")[0] for n in range(10_001))))
    harness.settle()
    for ref, name in ((2, "4999"), (3, "5001")):
        harness.running(ref)
        harness.tell(ev.Succeeded(harness.poll(), url(name)))
        command = harness.take()
        assert isinstance(command, ev.Settle if ref == 2 else ev.Poll)


# Queries that creations wait for.


def test_an_urgent_query_ends_in_a_minute() -> None:
    """While others fill the window, an urgent query ends after 60 s."""
    harness = SchedulerHarness()
    harness.tell(ev.QueryAdded(90, urgent=True, lasting=True))
    while isinstance(command := harness.take(), ev.Ask):
        harness.now += SECOND // 10
        harness.tell(ev.Limited(command, FULL))
    assert isinstance(command, ev.Settle)
    assert FULL is command.ending
    assert harness.now <= 61 * SECOND
    assert 90 not in harness.scheduler._state.queries


def test_an_urgent_query_that_cannot_leave() -> None:
    """An urgent query without room for a minute ends as well; other queries wait on."""
    harness = SchedulerHarness()
    harness.scheduler.remember([(0, 250)])
    harness.tell(ev.QueryAdded(91))
    harness.tell(ev.QueryAdded(90, urgent=True))
    settle = harness.settle()
    assert isinstance(settle.ending, RateLimited)
    assert (90, 60 * SECOND) == (settle.ref, harness.now)
    assert 91 in harness.scheduler._state.queries


# The look-ahead.


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_the_look_ahead_is_bounded(requests: int, per_second: int) -> None:
    """The number of jobs handed over is bounded for any limits."""
    limits = Limits(requests=requests + 50, per_second=per_second)
    assert 48 <= Scheduler(limits, Polling(insured=10)).lookahead() <= 240


def test_two_tasks_with_401_twice() -> None:
    """A key that is refused again for another task ends that task as well."""
    harness = SchedulerHarness()
    harness.running(1)
    harness.running(2)
    ended: list[int] = []
    while len(ended) < 2:
        match harness.take():
            case ev.Poll() as poll:
                harness.tell(ev.KeyRefused(poll, Unauthorized("no")))
            case ev.Settle(ending=Unauthorized()) as settle:
                ended.append(settle.ref)
    assert [1, 2] == sorted(ended)
    assert 2.0 == harness.scheduler.statistics().units.at_stake


def test_many_file_ids_are_remembered() -> None:
    """The newest 5,000 file ids are known; an older one may come again."""
    queue = SchedulerHarness().scheduler._state.uploads

    def given(ref: int, name: str) -> None:
        queue.add(ScheduledJob(ref, SMILE, 1.0, True, 0, JobState.WAITING), 0)
        command = ev.Register(ref, (ref,), None)
        queue.issued(command, 0)
        queue.on_response(command, ev.Registered(command, grants(command, name)), 0)

    for ref in range(10_001):
        given(ref, f"file-{ref}")
    given(10_001, "file-4999")
    assert not queue.waiting
    given(10_002, "file-5002")
    assert [10_002] == [job.ref for job in queue.waiting]


@pytest.mark.parametrize("sent", [False, True])
def test_a_cancelled_query(sent: bool) -> None:
    """A cancelled query is not sent, and not retried if it was sent."""
    harness = SchedulerHarness()
    harness.tell(ev.QueryAdded(90))
    command = harness.take() if sent else None
    harness.tell(ev.JobCancelled(90))
    if isinstance(command, ev.Ask):
        harness.tell(ev.NoAnswer(command, DOWN))
        assert DOWN is harness.settle().ending
    assert None is harness.scheduler.due(harness.now)
    assert 90 not in harness.scheduler._state.queries


def test_an_object_that_is_not_an_event() -> None:
    """An object that is not an event raises."""
    with pytest.raises(IllegalEvent):
        SchedulerHarness().tell("no event")  # type: ignore[arg-type] # on purpose
