"""A task goes on without its caller, and any caller may wait for it again."""

import asyncio
from pathlib import Path

import anyio
import httpx
import pytest

from perfect_async import (
    Avatar,
    Client,
    ConfigurationError,
    Smile,
    TaskExpired,
    TaskFailed,
    WaitTimeout,
)
from perfect_async.sandbox import Durations, Faults
from tests.support.journaled import JournalHarness, adds_up, done, face, faces, job, resumed, until
from tests.support.sandboxed import avatar, client, smile

MP = pytest.MonkeyPatch
LONG = {"ai-smile": Durations.fixed(40.0)}


async def timed_out(c: Client, number: int = 1, timeout: float = 5.0) -> str:
    """The id of a task whose caller stopped waiting."""
    with pytest.raises(WaitTimeout) as caught:
        await c.run(job(number), timeout=timeout)
    assert isinstance(caught.value, TimeoutError)
    assert 1.0 == caught.value.units_at_stake
    assert caught.value.task_id is not None
    return caught.value.task_id


@pytest.mark.parametrize("pause", [0.0, 20.0, 60.0])
@pytest.mark.parametrize("journal", [True, False])
async def test_attaching_in_the_same_client(
    tmp_path: Path, monkeypatch: MP, journal: bool, pause: float
) -> None:
    """After a `WaitTimeout` the task goes on, and is attached while it runs or when it is done."""
    harness = JournalHarness(tmp_path, monkeypatch, durations=LONG)
    async with (harness.client if journal else harness.plain)() as c:
        task_id = await timed_out(c)
        await asyncio.sleep(pause)
        result = await c.attach(Smile, task_id)
        assert task_id == result.task_id
        assert [1] == faces(await result.save(harness.out))
        adds_up(c, harness.sandbox)
    assert 1 == harness.sandbox.ledger.units_charged
    assert 0 == harness.sandbox.ledger.units_wasted


@pytest.mark.parametrize("crash", [True, False])
async def test_attaching_in_another_process(tmp_path: Path, monkeypatch: MP, crash: bool) -> None:
    """Another process on the journal attaches a task that the former one left."""
    harness = JournalHarness(tmp_path, monkeypatch, durations=LONG)
    c = await harness.client(drain=1.0).open()
    task_id = await timed_out(c)
    await (harness.crash(c) if crash else c.close())
    async with harness.client() as c:
        result = await c.attach(Smile, task_id)
        assert [1] == faces(await result.save(harness.out))
        adds_up(c, harness.sandbox)
        assert [] == await resumed(c)
    async with harness.client() as c:
        assert [] == await resumed(c)


async def test_attaching_without_the_journal(tmp_path: Path, monkeypatch: MP) -> None:
    """A client that has only the id attaches the task, beside the one that keeps it."""
    harness = JournalHarness(tmp_path, monkeypatch, durations=LONG)
    async with (
        harness.client() as owner,
        client(harness.sandbox, base_url="https://yce-api-01.perfectcorp.com") as c,
    ):
        task_id = await timed_out(owner)
        result = await c.attach(Smile, task_id)
        assert [1] == faces(await result.save(harness.out))
        adds_up(owner, harness.sandbox)
        # Units that another client was charged do not count here.
        assert (0.0, 0.0, 0.0) == _units(c)


def _units(c: Client) -> tuple[float, float, float]:
    units = c.statistics().units
    return units.charged, units.returned, units.at_stake


async def test_two_clients_on_one_key_share_the_task(tmp_path: Path, monkeypatch: MP) -> None:
    """The task is not polled twice."""
    harness = JournalHarness(tmp_path, monkeypatch, durations=LONG)
    async with (
        harness.client() as owner,
        harness.client(journal=None, transport=owner._transport) as c,
    ):
        task_id = await timed_out(owner)
        attached = asyncio.ensure_future(c.attach(Smile, task_id))
        await asyncio.sleep(1)
        assert c._session is not None
        assert 1 == len(c._session.driver.registry)
        await attached
        adds_up(c, harness.sandbox)


async def test_attaching_after_a_cancelled_call(tmp_path: Path, monkeypatch: MP) -> None:
    """After a dropped web request the next one attaches the task."""
    harness = JournalHarness(tmp_path, monkeypatch, durations=LONG)
    async with harness.client() as c:
        with anyio.move_on_after(5):
            await c.run(job(1))
        [task] = harness.sandbox.ledger.tasks
        with anyio.move_on_after(5):
            await c.attach(Smile, task.task_id)
        result = await c.attach(Smile, task.task_id)
        assert [1] == faces(await result.save(harness.out))
        adds_up(c, harness.sandbox)


async def test_a_job_that_was_not_sent_has_no_id(tmp_path: Path, monkeypatch: MP) -> None:
    """A job that was not sent before its timeout is cancelled."""
    harness = JournalHarness(tmp_path, monkeypatch)

    async def slow(request: httpx.Request) -> httpx.Response | None:
        if request.method == "PUT":
            await asyncio.sleep(30)
        return None

    async with harness.client(slow) as c:
        with pytest.raises(WaitTimeout) as caught:
            await c.run(job(1), timeout=10)
        assert (None, 0.0) == (caught.value.task_id, caught.value.units_at_stake)
        await asyncio.sleep(60)
        adds_up(c, harness.sandbox)
    assert 0 == harness.sandbox.ledger.units_charged
    async with harness.client() as c:
        assert [] == await resumed(c)


async def test_attaching_an_unknown_id(tmp_path: Path, monkeypatch: MP) -> None:
    """It raises `TaskExpired` at once, with no units at stake."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        with anyio.fail_after(3), pytest.raises(TaskExpired) as caught:
            await c.attach(Smile, "nobody's")
        assert "nobody's" == caught.value.task_id
        adds_up(c, harness.sandbox)
        assert (0.0, 0.0, 0.0) == _units(c)
    async with harness.client() as c:
        assert [] == await resumed(c)


async def test_attaching_a_wrong_feature_or_id(tmp_path: Path, monkeypatch: MP) -> None:
    """A wrong feature or id is refused before anything is sent."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        with pytest.raises(ConfigurationError, match="feature"):
            await c.attach(str, "a")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="task_id is"):
            await c.attach(Smile, "")
    assert not harness.wire.sent


async def test_attaching_an_avatar(tmp_path: Path, monkeypatch: MP) -> None:
    """All pictures of an attached task are returned."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        with pytest.raises(WaitTimeout) as caught:
            await c.run(avatar(5), timeout=5)
        result = await c.attach(Avatar, str(caught.value.task_id))
        assert 5 == len(result.images)
        adds_up(c, harness.sandbox)


async def test_attaching_may_time_out(tmp_path: Path, monkeypatch: MP) -> None:
    """Attaching may time out, and be called again."""
    harness = JournalHarness(tmp_path, monkeypatch, durations=LONG)
    async with harness.client() as c:
        task_id = await timed_out(c)
        for _ in range(3):
            with pytest.raises(WaitTimeout) as caught:
                await c.attach(Smile, task_id, timeout=5)
            assert task_id == caught.value.task_id
        await c.attach(Smile, task_id)
        adds_up(c, harness.sandbox)


@pytest.mark.parametrize("journal", [True, False])
async def test_attaching_a_task_that_fails(tmp_path: Path, monkeypatch: MP, journal: bool) -> None:
    """A failed task is not created again by the caller that attached it."""
    faults = Faults(engine_errors=1.0, engine_error_codes=("error_inference",))
    harness = JournalHarness(tmp_path, monkeypatch, durations=LONG, faults=faults)
    c = await harness.client(drain=1.0, engine_retries=0).open()
    task_id = await timed_out(c)
    await c.close()
    async with (harness.client if journal else harness.plain)() as c:
        with pytest.raises(TaskFailed):
            await c.attach(Smile, task_id)
    assert 1 == harness.sandbox.ledger.units_charged == harness.sandbox.ledger.units_returned


async def test_attaching_a_former_try(tmp_path: Path, monkeypatch: MP) -> None:
    """After the engine failed and the task was created again, the first id has the failure."""
    faults = Faults(engine_errors=1.0, engine_error_codes=("error_inference",))
    harness = JournalHarness(tmp_path, monkeypatch, faults=faults)
    async with harness.client() as c:
        running = asyncio.ensure_future(c.run(smile(1)))
        await until(lambda: harness.sandbox.ledger.units_returned > 0)
        harness.sandbox.faults = Faults()
        [first] = [task.task_id for task in harness.sandbox.ledger.tasks]
        await asyncio.sleep(0.2)
        with pytest.raises(TaskFailed):
            await c.attach(Smile, first)
        result = await running
    assert first != result.task_id
    assert {"error": 1, "success": 1} == dict(harness.sandbox.ledger.tasks_by_state)


async def test_attaching_a_finished_task(tmp_path: Path, monkeypatch: MP) -> None:
    """The result of another process's task costs one request, and no units here."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.plain() as c:
        task_id = (await c.run(Smile(face(4)))).task_id
    async with harness.client() as c:
        before = harness.sandbox.ledger.requests["poll"]
        result = await c.attach(Smile, task_id)
        assert 1 == harness.sandbox.ledger.requests["poll"] - before
        assert [4] == faces(await result.save(harness.out))
        assert (0.0, 0.0, 0.0) == _units(c)
        assert [] == done(await resumed(c))
