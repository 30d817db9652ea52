"""The hands: clock, lanes, and what becomes of a failure."""

import asyncio
import logging
from datetime import timedelta

import pytest

from perfect_async import (
    Avatar,
    Client,
    ClientClosed,
    Limits,
    Smile,
    SubmissionInDoubt,
    TaskAbandoned,
)
from perfect_async import events as ev
from perfect_async._journal.journal import JobJournal, NullWriter, unrecorded
from perfect_async._log import type_name
from perfect_async._runtime.commands import failure_event
from perfect_async._runtime.driver import Driver
from perfect_async._runtime.failures import given_up, warn_of
from perfect_async._runtime.handle import Channel, JobHandle
from perfect_async._runtime.keys import driver_for, flaw
from perfect_async._runtime.spec import PLAIN, JobSpec
from perfect_async._transport.transport import VendorTransport
from perfect_async.errors import (
    BadAnswer,
    PerfectError,
    PictureRefused,
    RequestRefused,
    ServiceUnavailable,
)
from perfect_async.models import Polling, Timeouts
from perfect_async.scheduler import Scheduler
from tests.support.sandboxed import FACE, KEY, client, clock, smile, smiles, vendor

ERRAND = JobSpec.of(smile(), None, PLAIN)
POLL = ev.Poll(1, 1)
UPLOAD = ev.Upload(1, 1)


async def channel(number: int = 1) -> Channel:
    """A lane that nothing goes along."""
    sandbox = vendor()
    timeouts = Timeouts()
    transport = VendorTransport(
        "https://v.example", KEY, timeouts=timeouts, transport=sandbox.transport()
    )
    return Channel(number, transport, timeouts, JobJournal(NullWriter(), lambda: 0))


async def handle(**known: object) -> JobHandle:
    """A ticket of a job for 1 unit."""
    here = await channel()
    made = JobHandle(1, ERRAND, here, unrecorded())
    for name, value in known.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("error", "news"),
    [
        (ServiceUnavailable("x", never_sent=True), ev.NotSent),
        (ServiceUnavailable("x"), ev.NoAnswer),
        (BadAnswer("x"), ev.NoAnswer),
        (RequestRefused("x", status=403), ev.Refused),
        (RequestRefused("x"), ev.Refused),
        (PictureRefused("x"), ev.Refused),
        (ZeroDivisionError("x"), ev.NoAnswer),
    ],
    ids=["unsent", "unanswered", "malformed", "403", "refused", "picture", "foreign"],
)
def test_every_failure_is_news(error: Exception, news: type[ev.Answer]) -> None:
    """What a command raises becomes news for the scheduler, without frames that hold pictures."""
    try:
        raise error
    except type(error) as exc:
        event = failure_event(UPLOAD, exc)

    assert type(event) is news
    assert None is error.__traceback__
    if isinstance(event, ev.Refused):
        assert (getattr(error, "status", None) or 0) == event.status


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("s3cret"), "'ValueError'"),
        (
            ExceptionGroup("s3cret", [ValueError(), KeyError(), KeyError()]),
            "'KeyError', 'ValueError'",
        ),
        (
            BaseExceptionGroup("s3cret", [ExceptionGroup("", [OSError()]), KeyboardInterrupt()]),
            "'KeyboardInterrupt', 'OSError'",
        ),
    ],
    ids=["one", "group", "nested"],
)
def test_foreign_errors_are_named_by_their_kind(error: BaseException, expected: str) -> None:
    """Their texts may hold anything, so only their types are told."""
    assert expected == type_name(error)


@pytest.mark.parametrize(
    ("known", "error", "units"),
    [
        ({}, ClientClosed, 0.0),
        ({"submitting": True}, SubmissionInDoubt, 1.0),
        ({"task_id": "t"}, TaskAbandoned, 1.0),
    ],
    ids=["waiting", "creating", "running"],
)
async def test_what_is_given_up(
    known: dict[str, object], error: type[PerfectError], units: float
) -> None:
    """What is looked after no longer is told by how far it was, with the cause."""
    cause = ZeroDivisionError()

    found = given_up(await handle(**known), cause)

    assert type(found) is error
    assert units == found.units_at_stake
    assert cause is found.__cause__
    assert "ZeroDivisionError" in str(found)


async def test_the_life_of_a_ticket() -> None:
    """What is at stake follows the creation, its refusal, the task and its failure."""
    heard: list[float] = []
    made = await handle()
    made.heard = lambda: heard.append(made.at_stake)

    made.creating(5.0)
    made.refused()
    assert None is made.created_at
    made.creating(7.0)
    made.created("one")
    made.failed("another")
    made.failed("one")
    made.creating(9.0)
    made.created("two")
    made.end(ClientClosed("x"), 1.0, 12.5)

    assert [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0] == heard
    assert 3.5 == made.duration
    assert made.done.is_set()
    assert None is (await handle()).duration


async def test_nothing_left_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A job that costs nothing is let go without a word."""
    warn_of([await handle()], 30.0)

    assert "" == caplog.text


async def test_the_clock_moves_with_the_loop() -> None:
    """The driver's time of day is the loop's, so that virtual hours are hours to it."""
    driver = driver_for("clock", "https://v.example", Scheduler(Limits(), Polling()))
    before = driver.now()
    await asyncio.sleep(3600)

    assert timedelta(hours=1) == driver.now() - before
    assert "<Driver 0 jobs" in repr(driver)


async def test_a_driver_that_nobody_joined_takes_nothing() -> None:
    """Without a client there is no host, and so nobody who would do the work."""
    driver = Driver(Scheduler(Limits(), Polling()), ("who", "where"))

    assert not driver.alive
    with pytest.raises(ClientClosed):
        driver.check()
    with pytest.raises(ClientClosed):
        driver.start(asyncio.Event().wait)  # type: ignore[arg-type]


async def test_work_beside_that_is_cancelled_takes_nothing_along() -> None:
    """Code of the user's may cancel itself; the tasks are kept all the same."""

    async def work() -> None:
        raise asyncio.CancelledError

    async with client(vendor()) as c:
        assert c._session is not None
        c._session.driver.start(work)
        assert (await c.run(smile())).images


async def test_a_host_that_is_cancelled_before_it_begins() -> None:
    """Nobody waits for a host task that will never run."""
    driver = Driver(Scheduler(Limits(), Polling()), ("who", "where"))
    nowhere = await channel()
    joining = asyncio.ensure_future(driver.join(nowhere.transport, Timeouts(), nowhere.journal))
    await asyncio.sleep(0)
    host = next(task for task in asyncio.all_tasks() if task.get_name() == "perfect_async driver")
    host.cancel()

    with pytest.raises(ClientClosed):
        await joining


@pytest.mark.parametrize("key", ["a", "sk-1234.~_/+=", "Bearer", "x" * 500])
def test_keys_that_may_be_keys(key: str) -> None:
    """Nothing else is known about keys, so nothing else is asked of them."""
    assert None is flaw(key)


async def test_promised_polls_leave_in_their_slot() -> None:
    """The clock is kept: among hundreds of polls none is late."""
    sandbox = vendor()
    async with client(sandbox) as c:
        async with c.batch(smiles(60)) as batch:
            assert 60 == len([outcome async for outcome in batch])

        assert (0, 60) == (c.statistics().late, c.statistics().done)


async def test_other_users_of_the_key_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Refusals that our own account does not explain are told, once in five minutes."""
    sandbox = vendor()
    async with client(sandbox) as c:
        sandbox.foreign(250)
        async with c.batch(smiles(10)) as batch:
            outcomes = [outcome async for outcome in batch]

    assert 10 == sum(outcome.ok for outcome in outcomes)
    warned = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert 1 == len(warned)
    assert "used elsewhere" in caplog.text


async def test_a_picture_that_goes_up_twice_is_not_held() -> None:
    """A task that is made anew uses the file that is at the vendor already."""
    sandbox = vendor()
    sandbox.script("task", (429, {"status": 429, "error": "Too many requests"}))
    async with client(sandbox) as c:
        began = clock()
        result = await c.run(Smile(FACE))

    assert result.images
    assert 1 == sandbox.ledger.requests["upload"]
    assert clock() - began < 30


@pytest.mark.parametrize(
    ("count", "usual"), [(1, (60_000_000, 150_000_000)), (2, None)], ids=["one", "two"]
)
async def test_the_scheduler_hears_which_tasks_last_alike(
    count: int, usual: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job comes in with its pictures and the durations that are documented, in microseconds."""
    heard: list[ev.Wanted] = []
    receive = Scheduler.receive

    def listen(scheduler: Scheduler, event: ev.Event, now: int) -> None:
        if isinstance(event, ev.Wanted):
            heard.append(event)
        receive(scheduler, event, now)

    monkeypatch.setattr(Scheduler, "receive", listen)
    async with client(vendor()) as c:
        await c.run(Avatar(FACE, template_id="male_studio_00", output_count=count))
        await c.run(smile())

    avatar, smiling = heard
    assert ("ai-avatar", count, usual) == (avatar.feature, avatar.outputs, avatar.usual)
    assert ("ai-smile", 1, (5_000_000, 20_000_000)) == (
        smiling.feature,
        smiling.outputs,
        smiling.usual,
    )


async def test_a_job_that_the_scheduler_refuses_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error at the entrance goes to the caller, and closing does not wait for its job."""
    c: Client
    async with client(vendor()) as c:
        assert c._session is not None
        with monkeypatch.context() as patch:
            patch.setattr(c._session.driver.scheduler, "receive", lambda *_: 1 / 0)
            here = c._session.channel
            with pytest.raises(ZeroDivisionError):
                c._session.driver.registry.enter(here, ERRAND, unrecorded(), lambda: None)
        began = clock()
    assert began == clock()
