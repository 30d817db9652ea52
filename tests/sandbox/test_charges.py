"""The ledger: the vendor's view of units, tasks and requests."""

import asyncio

import attrs
import pytest

from perfect_async.sandbox import Durations, Faults, LogEntry, Sandbox
from perfect_async.sandbox._charges import Ledger
from tests.sandbox.customer import SMILE, Customer, avatar, unlimited_sandbox


async def test_the_ledger_of_a_success() -> None:
    """One task is charged, nothing is returned or wasted, and requests are counted by kind."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        file_id = await customer.uploaded(name="anna.jpg")
        task = await customer.task({"src_file_id": file_id, **_expression()})
        await asyncio.sleep(1)
        await customer.poll(task)
    ledger = sandbox.ledger

    assert (1, 0, 0, 9999) == (
        ledger.units_charged,
        ledger.units_returned,
        ledger.units_wasted,
        ledger.balance,
    )
    assert {"file": 1, "upload": 1, "task": 1, "poll": 1} == dict(ledger.requests)
    assert [] == ledger.violations
    record = ledger.tasks[0]
    assert (task, "ai-smile", "success", False, 1, 1) == (
        record.task_id,
        record.feature,
        record.state,
        record.stuck,
        record.units,
        record.polls,
    )
    assert (file_id, "anna.jpg") == (record.source, record.file_name)
    assert _expression() == record.params
    assert record.ended_at is not None
    assert 1.0 == record.ended_at - record.created_at
    assert 1.0 == record.duration
    assert record.error is None


def _expression() -> dict[str, object]:
    return {"expression_type": SMILE["expression_type"]}


async def test_readings_are_live() -> None:
    """A task is wasted as soon as its lease is over, also without another request."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        await customer.task(avatar(200), "ai-avatar")
        start = asyncio.get_running_loop().time()
        await asyncio.sleep(10)
        assert {"running": 1} == dict(sandbox.ledger.tasks_by_state)
        assert 0 == sandbox.ledger.units_wasted
        await asyncio.sleep(0.001)
        assert {"expired": 1} == dict(sandbox.ledger.tasks_by_state)
        assert 50 == sandbox.ledger.units_wasted
        assert start + 10 == sandbox.ledger.tasks[0].ended_at
        await asyncio.sleep(100)
        assert start + 10 == sandbox.ledger.tasks[0].ended_at


def test_the_ledger_can_be_read_outside_a_loop() -> None:
    """After the loop has closed, the ledger shows the last moment."""
    sandbox = unlimited_sandbox()

    async def create() -> None:
        async with Customer(sandbox) as customer:
            await customer.task()

    asyncio.run(create())

    assert {"running": 1} == dict(sandbox.ledger.tasks_by_state)


async def test_the_balance_adds_up() -> None:
    """The balance is the start, minus charged, plus returned units."""
    sandbox = unlimited_sandbox(Faults(engine_errors=0.3, stuck=0.1, timeouts=0.1))
    async with Customer(sandbox) as customer:
        tasks = [await customer.task() for _ in range(60)]
        await asyncio.sleep(2)
        for task in tasks[:50]:
            await customer.poll(task)
        await asyncio.sleep(60)
    ledger = sandbox.ledger
    states = ledger.tasks_by_state

    assert 60 == ledger.units_charged == sum(states.values())
    assert states["error"] == ledger.units_returned > 0
    assert states["expired"] + states["timed_out"] == ledger.units_wasted > 10
    assert 10_000 - 60 + ledger.units_returned == ledger.balance


async def test_records_are_frozen() -> None:
    """A record does not change with its task."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        task = await customer.task()
        before = sandbox.ledger.tasks[0]
        await asyncio.sleep(1)
        await customer.poll(task)

    assert "running" == before.state
    assert "success" == sandbox.ledger.tasks[0].state
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        before.state = "error"  # type: ignore[misc]


async def test_the_log_has_every_arrival() -> None:
    """The log has the time of arrival, kind and status of every call, in order."""
    sandbox = Sandbox(per_second=2)
    sandbox.script("credit", "drop")
    async with Customer(sandbox) as customer:
        start = asyncio.get_running_loop().time()
        await customer.task()
        await asyncio.sleep(0.5)
        await customer.get("/s2s/v2.0/task/template/ai-avatar")
        await customer.create()
        await asyncio.sleep(2)
        with pytest.raises(Exception, match="disconnected"):
            await customer.get("/s2s/v1.0/client/credit")

    assert [
        LogEntry(start, "task", 200),
        LogEntry(start + 0.5, "template", 200),
        LogEntry(start + 0.5, "task", 429),
        LogEntry(start + 2.5, "credit", 0),
    ] == sandbox.ledger.log


def log_of(*entries: tuple[float, str]) -> Ledger:
    ledger = Ledger(lambda: (), lambda: 0.0)
    ledger.log += [LogEntry(time, kind, 200) for time, kind in entries]
    return ledger


def test_the_fullest_window_is_counted() -> None:
    """The largest number of calls in any half-open period, without those to the storage."""
    ledger = log_of(
        (0.0, "task"), (0.4, "upload"), (0.5, "poll"), (0.9, "poll"), (1.0, "poll"), (1.9, "file")
    )

    assert 3 == ledger.max_in_window(1.0)
    assert 5 == ledger.max_in_window(300.0)
    assert 1 == ledger.max_in_window(0.1)


def test_an_empty_log_has_an_empty_window() -> None:
    """Without calls the fullest window has none."""
    assert 0 == log_of().max_in_window(300.0)


async def test_the_repr_of_the_ledger_is_one_line() -> None:
    """The repr has units, tasks, requests and violations in one line."""
    sandbox = Sandbox(per_second=2, durations={"ai-smile": Durations.fixed(1)})
    async with Customer(sandbox) as customer:
        await customer.task()
        await customer.create({})
        await customer.create()

    assert (
        "<Ledger: 1 units charged, 0 returned, 0 wasted, 999 left; tasks: 1 running; "
        "3 requests, 1 refused, 1 violations>"
    ) == repr(sandbox.ledger)
    assert f"<perfect_async.sandbox.Sandbox {sandbox.ledger!r}>" == repr(sandbox)
    assert "tasks: none" in repr(Sandbox().ledger)


async def test_the_repr_of_a_record_hides_its_source() -> None:
    """The repr shows no file id, no URL and no whole task id."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        task = await customer.task()
    shown = repr(sandbox.ledger.tasks[0])

    assert task not in shown
    assert "pictures.example" not in shown
