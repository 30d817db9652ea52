"""A job's handle: its life, its subscribers, and the errors and warnings of a client that ends."""

import logging

import pytest

from perfect_async import ClientClosed, SubmissionInDoubt, TaskAbandoned
from perfect_async._journal.journal import JobJournal, NullWriter, unrecorded
from perfect_async._runtime.handle import Channel, JobHandle, warn_of_unfinished
from perfect_async._runtime.spec import PLAIN, JobSpec
from perfect_async._transport.transport import VendorTransport
from perfect_async.errors import PerfectError
from perfect_async.models import Timeouts
from tests.support.sandboxed import KEY, smile, vendor


async def make_handle(**state: object) -> JobHandle:
    """Make a handle of a job for 1 unit."""
    timeouts = Timeouts()
    transport = VendorTransport(
        "https://v.example", KEY, timeouts=timeouts, transport=vendor().transport()
    )
    channel = Channel(1, transport, timeouts, JobJournal(NullWriter(), lambda: 0))
    made = JobHandle(1, JobSpec.of(smile(), None, PLAIN), channel, unrecorded())
    for name, value in state.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("state", "error", "units"),
    [
        ({}, ClientClosed, 0.0),
        ({"submitting": True}, SubmissionInDoubt, 1.0),
        ({"task_id": "t"}, TaskAbandoned, 1.0),
    ],
    ids=["waiting", "creating", "running"],
)
async def test_an_abandoned_job_names_its_stake(
    state: dict[str, object], error: type[PerfectError], units: float
) -> None:
    """The error depends on the state of the job, and has the units at stake and the cause."""
    cause = ZeroDivisionError()

    found = (await make_handle(**state)).abandoned(cause)

    assert type(found) is error
    assert units == found.units_at_stake
    assert cause is found.__cause__
    assert "ZeroDivisionError" in str(found)


async def test_the_units_at_stake_follow_the_job() -> None:
    """The units at stake follow the creation, its refusal, the task and its failure."""
    seen: list[float] = []
    handle = await make_handle()
    handle.subscribe(lambda: seen.append(handle.at_stake))

    handle.creating(5.0)
    handle.refused()
    assert None is handle.created_at
    handle.creating(7.0)
    handle.created("one")
    handle.failed("another")
    handle.failed("one")
    handle.creating(9.0)
    handle.created("two")
    handle.end(ClientClosed("x"), 1.0, 12.5)

    assert [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0] == seen
    assert 3.5 == handle.duration
    assert handle.done.is_set()
    assert None is (await make_handle()).duration


async def test_followers_have_subscribers_of_their_own() -> None:
    """A change of the leader is a change of each follower, and the end is the last change."""
    seen: list[str] = []
    leader, follower = await make_handle(), await make_handle()
    follower.follow(leader)
    leader.subscribe(lambda: seen.append(f"leader {leader.task_id}"))
    follower.subscribe(lambda: seen.append(f"follower {follower.task_id}"))

    leader.created("t")
    leader.end(ClientClosed("x"), 1.0, 12.5)
    leader.subscribe(lambda: seen.append("late"))
    leader.failed("t")

    assert ["leader t", "follower t"] * 2 == seen
    assert (1.0, 0.0) == (leader.units, follower.units)


async def test_unfinished_tasks_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """The warning of a closing client names twenty tasks and counts the others."""
    handles = [await make_handle(task_id=f"t{number}") for number in range(22)]

    warn_of_unfinished(handles, 30.0)

    assert [logging.WARNING] == [each.levelno for each in caplog.records]
    assert "22 tasks" in caplog.text
    assert "'t19' and 2 more" in caplog.text
    assert "'t20'" not in caplog.text


async def test_a_job_without_a_charge_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A job that is not charged yet is dropped without a warning."""
    warn_of_unfinished([await make_handle()], 30.0)

    assert "" == caplog.text
