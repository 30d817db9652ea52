"""`Client(on_event=...)` gets each event of a job, in order, and delays nothing."""

import asyncio
import threading
import time

import pytest

from perfect_async import Client, ConfigurationError, JobEvent, JobRefused, Smile
from perfect_async._client.event_pump import EventPump
from tests.support.sandboxed import FACE, clock, smile, smiles, vendor
from tests.support.sandboxed import client as make


def kinds(events: list[JobEvent]) -> list[str]:
    """The kinds of events, with polls in a row as one."""
    told = [event.kind for event in events]
    return [kind for index, kind in enumerate(told) if kind != "polled" or told[index - 1] != kind]


ALL = ["queued", "uploaded", "submitted", "polled", "finished"]


async def test_a_plain_function_gets_each_event() -> None:
    """It gets all events of a job, as `Task.events` yields them."""
    seen: list[JobEvent] = []
    async with make(vendor(), on_event=seen.append) as c:
        task = await c.submit(Smile(FACE))
        await task
        mine = [event async for event in task.events()]
    assert ALL == kinds(seen)
    assert mine == seen


async def test_an_async_function_gets_each_event_of_a_batch() -> None:
    """Each job of a batch has its events, and they come one after another."""
    seen: list[JobEvent] = []
    busy = False

    async def on_event(event: JobEvent) -> None:
        nonlocal busy
        assert not busy
        busy = True
        await asyncio.sleep(0.01)
        busy = False
        seen.append(event)

    async with (
        make(vendor(), on_event=on_event) as c,
        c.batch(list(smiles(3))) as batch,
    ):
        outcomes = [outcome async for outcome in batch]
    for outcome in outcomes:
        mine = [event for event in seen if event.job is outcome.job]
        assert ["queued", "submitted", "polled", "finished"] == kinds(mine)
        assert outcome.task_id == mine[-1].task_id


async def test_a_slow_callback_delays_no_poll_and_no_caller() -> None:
    """A callback that takes a minute for each event does not delay the job."""

    async def on_event(_: JobEvent) -> None:
        await asyncio.sleep(60)

    sandbox = vendor()
    async with make(sandbox, on_event=on_event) as c:
        began = clock()
        await c.run(smile())
        assert clock() - began < 20
    assert {"success": 1} == dict(sandbox.ledger.tasks_by_state)


async def test_an_error_of_the_callback_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """It ends no job, and is logged again only after the callback has worked once."""

    def on_event(_: JobEvent) -> None:
        raise ZeroDivisionError

    async with make(vendor(), on_event=on_event) as c:
        await c.run(smile())
    assert 1 == caplog.text.count("on_event failed: 'ZeroDivisionError'")


async def test_a_callback_that_cancels_itself_ends_nothing() -> None:
    """A cancellation inside the callback counts as an error of it."""
    seen: list[JobEvent] = []

    async def on_event(event: JobEvent) -> None:
        seen.append(event)
        raise asyncio.CancelledError

    async with make(vendor(), on_event=on_event) as c:
        await c.run(smile())
    assert ["queued", "submitted", "polled", "finished"] == kinds(seen)


async def test_a_callback_that_never_returns_is_cancelled_with_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Closing waits 5 s for it and logs that."""

    async def on_event(_: JobEvent) -> None:
        await asyncio.Event().wait()

    async with make(vendor(), on_event=on_event) as c:
        await c.run(smile())
        began = clock()
    assert 5 <= clock() - began < 6
    assert "still busy" in caplog.text


async def test_a_callback_may_close_the_client() -> None:
    """Closing does not wait for the callback that called it."""
    made: list[Client] = []

    async def on_event(event: JobEvent) -> None:
        if event.kind == "finished":
            await made[0].close()

    made.append(make(vendor(), on_event=on_event))
    async with made[0] as c:
        await c.run(smile())
        began = clock()
    assert clock() - began < 1


async def test_a_refused_job_is_finished() -> None:
    """A job that is refused before anything is sent has one event, alone and in a batch."""
    seen: list[JobEvent] = []
    bad = Smile(b"no picture")
    async with make(vendor(), on_event=seen.append) as c:
        with pytest.raises(JobRefused):
            await c.run(bad)
        async with c.batch([bad]) as batch:
            outcomes = [outcome async for outcome in batch]
    assert [False] == [outcome.ok for outcome in outcomes]
    assert [("finished", bad)] * 2 == [(event.kind, event.job) for event in seen]


@pytest.mark.real_time
async def test_an_isolated_client_calls_back_in_the_callers_loop() -> None:
    """The callback runs in the thread and loop that opened the client, and may block them."""
    threads: list[threading.Thread] = []

    def on_event(_: JobEvent) -> None:
        threads.append(threading.current_thread())
        time.sleep(0.01)

    sandbox = vendor(latency=0.0, jitter=0.0, durations={})
    async with make(sandbox, on_event=on_event, isolated=True) as c:
        with pytest.raises(JobRefused):
            await c.run(Smile(b"no picture"))
    assert [threading.current_thread()] == threads


async def test_too_many_events_drop_the_oldest(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback that is too slow gets the newest events, and one warning says so."""
    monkeypatch.setattr("perfect_async._client.event_pump._MOST", 2)
    seen: list[JobEvent] = []
    pump = EventPump(seen.append)
    events = [JobEvent("polled", None, str(number), None) for number in range(4)]  # type: ignore[arg-type]
    for event in events:
        pump.post(event)
    await pump.aclose()
    assert events[2:] == seen
    assert 1 == caplog.text.count("on_event is too slow")


def test_on_event_must_be_a_function() -> None:
    """Anything else is refused when the client is made."""
    with pytest.raises(ConfigurationError, match="on_event"):
        Client("key", on_event="print")  # type: ignore[arg-type]


async def test_statistics_count_local_refusals_as_progress_does() -> None:
    """A job that is refused before anything is sent counts as failed in both."""
    async with make(vendor()) as c:
        async with c.batch([Smile(b"no picture"), smile()]) as batch:
            async for _ in batch:
                pass
            assert (1, 1) == (batch.progress.done, batch.progress.failed)
        assert (1, 1) == (c.statistics().done, c.statistics().failed)
