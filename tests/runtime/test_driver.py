"""The driver: its host task, its queries, and the events and errors that failures become."""

import asyncio
import logging

import attrs
import pytest

from perfect_async import (
    Avatar,
    Client,
    ClientClosed,
    Limits,
    Smile,
)
from perfect_async import events as ev
from perfect_async._journal.journal import JobJournal, NullWriter, unrecorded
from perfect_async._log import type_name
from perfect_async._runtime.clock import Clock
from perfect_async._runtime.commands import failure_event
from perfect_async._runtime.doubts import ProcessMemory
from perfect_async._runtime.driver import Driver
from perfect_async._runtime.handle import Channel
from perfect_async._runtime.spec import PLAIN, JobSpec
from perfect_async._transport.transport import VendorTransport
from perfect_async.errors import (
    BadAnswer,
    PictureRefused,
    RequestRefused,
    ServiceUnavailable,
)
from perfect_async.models import Polling, Timeouts
from perfect_async.scheduler import Scheduler
from tests.support.sandboxed import FACE, KEY, client, clock, smile, smiles, vendor

SPEC = JobSpec.of(smile(), None, PLAIN)
POLL = ev.Poll(1, 1)
UPLOAD = ev.Upload(1, 1)


async def channel(number: int = 1) -> Channel:
    """A channel that sends nothing."""
    sandbox = vendor()
    timeouts = Timeouts()
    transport = VendorTransport(
        "https://v.example", KEY, timeouts=timeouts, transport=sandbox.transport()
    )
    return Channel(number, transport, timeouts, JobJournal(NullWriter(), lambda: 0))


@pytest.mark.parametrize(
    ("error", "expected"),
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
def test_every_failure_is_an_event(error: Exception, expected: type[ev.Answer]) -> None:
    """An error of a command becomes an event without frames that hold pictures."""
    try:
        raise error
    except type(error) as exc:
        event = failure_event(UPLOAD, exc)

    assert type(event) is expected
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
def test_unknown_errors_are_named_by_their_class(error: BaseException, expected: str) -> None:
    """An unknown error is named by its class, since its text may hold secrets."""
    assert expected == type_name(error)


async def test_a_driver_without_a_client_takes_no_work() -> None:
    """A driver without a client has no host task, so it refuses work."""
    driver = Driver(Scheduler(Limits(), Polling()), ("key", "host"), Clock(), ProcessMemory())

    assert not driver.alive
    with pytest.raises(ClientClosed):
        driver.check()
    with pytest.raises(ClientClosed):
        driver.start(asyncio.Event().wait)  # type: ignore[arg-type]


async def test_background_work_that_cancels_itself_ends_no_task() -> None:
    """Code of the user's that cancels itself does not end the tasks."""

    async def work() -> None:
        raise asyncio.CancelledError

    async with client(vendor()) as c:
        assert c._session is not None
        c._session.driver.start(work)
        assert (await c.run(smile())).images


async def test_a_host_task_that_is_cancelled_before_it_begins() -> None:
    """No caller waits for a host task that will never run."""
    driver = Driver(Scheduler(Limits(), Polling()), ("key", "host"), Clock(), ProcessMemory())
    nowhere = await channel()
    joining = asyncio.ensure_future(driver.join(nowhere.transport, Timeouts(), nowhere.journal))
    await asyncio.sleep(0)
    host = next(task for task in asyncio.all_tasks() if task.get_name() == "perfect_async driver")
    host.cancel()

    with pytest.raises(ClientClosed):
        await joining


async def test_reserved_polls_leave_in_their_slot() -> None:
    """None of hundreds of polls leaves after its slot."""
    sandbox = vendor()
    async with client(sandbox) as c:
        async with c.batch(smiles(60)) as batch:
            assert 60 == len([outcome async for outcome in batch])

        assert (0, 60) == (c.statistics().late, c.statistics().done)


async def test_other_users_of_the_key_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Refusals that the client's own requests do not explain are logged once in five minutes."""
    sandbox = vendor()
    async with client(sandbox) as c:
        sandbox.foreign(250)
        async with c.batch(smiles(10)) as batch:
            outcomes = [outcome async for outcome in batch]

    assert 10 == sum(outcome.ok for outcome in outcomes)
    warned = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert 1 == len(warned)
    assert "Another program uses this key" in caplog.text


async def test_a_picture_is_uploaded_once_for_all_tries() -> None:
    """A task that is created again uses the file that the vendor has already."""
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
async def test_the_scheduler_gets_the_kind_of_each_task(
    count: int, usual: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is added with its number of pictures and its documented durations, in microseconds."""
    received: list[ev.JobAdded] = []
    receive = Scheduler.receive

    def listen(scheduler: Scheduler, event: ev.Event, now: int) -> None:
        if isinstance(event, ev.JobAdded):
            received.append(event)
        receive(scheduler, event, now)

    monkeypatch.setattr(Scheduler, "receive", listen)
    async with client(vendor()) as c:
        await c.run(Avatar(FACE, template_id="male_studio_00", output_count=count))
        await c.run(smile())

    avatar, smiling = received
    assert ("ai-avatar", count, usual) == attrs.astuple(avatar.kind)
    assert ("ai-smile", 1, (5_000_000, 20_000_000)) == attrs.astuple(smiling.kind)


async def test_a_job_that_the_scheduler_refuses_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error while a job enters is raised to the caller, and closing does not wait for it."""
    c: Client
    async with client(vendor()) as c:
        assert c._session is not None
        with monkeypatch.context() as patch:
            patch.setattr(c._session.driver.scheduler, "receive", lambda *_: 1 / 0)
            here = c._session.channel
            with pytest.raises(ZeroDivisionError):
                c._session.driver.registry.enter(here, SPEC, unrecorded())
        began = clock()
    assert began == clock()
