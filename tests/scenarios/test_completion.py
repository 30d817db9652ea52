"""The end of a task is found by polls, by notifications, or by both, end to end."""

import asyncio
from pathlib import Path

import pytest

from perfect_async import Client, Done, Failed, Outcome, Polling, Smile, TaskAbandoned
from perfect_async.models import Completion
from perfect_async.sandbox import Durations, Faults, WebhookFaults
from tests.support.sandboxed import FACE, avatar, client, clock, smile, smiles
from tests.support.webhooks import (
    SECRET,
    Endpoint,
    client_of,
    make_endpoint,
    open_client,
)

LIKE_SMILES = {"ai-smile": Durations(8.0, 0.35), "ai-avatar": Durations(60.0, 0.4)}
TROUBLE = [
    WebhookFaults(early=1.0, early_seconds=2.0),
    WebhookFaults(early=0.5, early_seconds=20.0),
    WebhookFaults(delayed=1.0, delay_seconds=5.0),
    WebhookFaults(duplicated=1.0, reorder_seconds=30.0),
    WebhookFaults(lost=0.3, duplicated=0.3, early=0.3, delayed=0.3, reorder_seconds=5.0),
    WebhookFaults(lost=1.0),
]


async def all_of(c: Client, count: int) -> list[Outcome]:
    async with c.batch(smiles(count)) as batch:
        return [outcome async for outcome in batch]


def nothing_was_lost(endpoint: Endpoint, count: int) -> None:
    assert {"success": count} == dict(endpoint.sandbox.ledger.tasks_by_state)
    assert {} == dict(endpoint.sandbox.ledger.refused)
    assert [] == endpoint.sandbox.ledger.violations


async def test_a_notification_ends_the_wait_at_once() -> None:
    """With a secret and no other setting, a task ends when it is announced."""
    endpoint = make_endpoint(durations={"ai-smile": Durations.fixed(13.3)})
    async with open_client(endpoint) as c:
        await c.run(smile())

    assert [0.2] == pytest.approx(endpoint.delays(), abs=0.2)
    nothing_was_lost(endpoint, 1)


@pytest.mark.parametrize("kind", ["smile", "avatar"])
async def test_webhooks_alone_cost_two_requests_a_picture(kind: str) -> None:
    """No poll is sent between a creation and its notification."""
    endpoint = make_endpoint(lifts=True, durations=LIKE_SMILES)
    async with open_client(endpoint, "webhook") as c:
        jobs = [
            Smile(FACE, key=str(n)) if kind == "smile" else avatar(1, str(n)) for n in range(60)
        ]
        async with c.batch(jobs) as batch:
            assert all([outcome.ok async for outcome in batch])
        statistics = c.statistics()

    registered = {"register": 2} if kind == "smile" else {}
    assert {**registered, "submit": 60, "poll": 60} == dict(statistics.requests)
    assert (60, 0, 0) == (statistics.done, statistics.failed, statistics.late)
    assert endpoint.delays()[-1] < 3
    nothing_was_lost(endpoint, 60)


@pytest.mark.parametrize("completion", ["webhook", "both"])
@pytest.mark.parametrize("faults", TROUBLE, ids=lambda faults: repr(faults)[14:60])
async def test_notifications_of_any_order(faults: WebhookFaults, completion: Completion) -> None:
    """With early, late, duplicate, disordered and lost ones every job is done within the limits."""
    endpoint = make_endpoint(faults, lifts=completion == "webhook", durations=LIKE_SMILES)
    async with open_client(endpoint, completion) as c:
        outcomes = await all_of(c, 30)

    assert all(outcome.ok for outcome in outcomes)
    assert endpoint.polls() <= 30 * (3.2 if completion == "webhook" else 4)
    nothing_was_lost(endpoint, 30)


async def test_missing_notifications_cost_no_time_beside_polls() -> None:
    """Late and lost notifications cost no time if tasks are polled."""
    took: list[float] = []
    for completion in ("poll", "both"):
        endpoint = make_endpoint(
            WebhookFaults(delayed=0.5, delay_seconds=60, lost=0.3), durations=LIKE_SMILES
        )
        async with open_client(endpoint, completion) as c:
            began = clock()
            assert all(outcome.ok for outcome in await all_of(c, 60))
            took.append(clock() - began)
        nothing_was_lost(endpoint, 60)

    assert took[1] < 1.1 * took[0]


async def test_a_slow_notification_does_not_delay_the_next() -> None:
    """A task whose notification is late is found by its polls."""
    endpoint = make_endpoint()
    async with open_client(endpoint) as c:
        for number in range(3):
            await c.run(smile(number))
        endpoint.sandbox.webhook_faults = WebhookFaults(lost=1.0)
        await c.run(smile(3))
        assert endpoint.delays()[-1] < 9
        # Polls come early again from then on.
        await c.run(smile(4))

    assert endpoint.delays()[-2] < 2.5


async def test_leases_are_kept_beside_webhooks() -> None:
    """Tasks of a minute are kept alive, since no document says that a webhook replaces polls."""
    endpoint = make_endpoint(durations={"ai-avatar": Durations.fixed(61.0)})
    async with open_client(endpoint) as c, c.batch(avatar(1, str(n)) for n in range(12)) as batch:
        assert all([outcome.ok async for outcome in batch])

    assert 6 * 12 < endpoint.polls()
    nothing_was_lost(endpoint, 12)


async def test_a_failure_of_the_engine() -> None:
    """The task is created and announced again; a final failure is raised, and its units return."""
    faults = Faults(engine_errors=0.4, engine_error_codes=("error_inference",))
    endpoint = make_endpoint(lifts=True, faults=faults, durations=LIKE_SMILES)
    async with open_client(endpoint, "webhook", engine_retries=1) as c:
        outcomes = await all_of(c, 40)
        units = c.statistics().units

    created = len(endpoint.sandbox.ledger.tasks)
    assert 40 < created == endpoint.polls()
    assert sum(outcome.ok for outcome in outcomes) == units.charged - units.returned
    assert 0.0 == units.at_stake
    assert endpoint.delays()[-1] < 3


async def test_a_task_that_never_ends() -> None:
    """It is polled once more and abandoned in time, with its units at stake."""
    endpoint = make_endpoint(lifts=True, faults=Faults(stuck=1.0))
    async with open_client(
        endpoint, None, polling=Polling(completion="webhook", give_up_after=60)
    ) as c:
        began = clock()
        with pytest.raises(TaskAbandoned) as caught:
            await c.run(smile())

    assert 60.2 == pytest.approx(clock() - began, abs=1)
    assert (1.0, 5) >= (caught.value.units_at_stake, endpoint.polls())
    assert endpoint.polls() > 0


async def test_a_ceiling_holds_with_webhooks() -> None:
    """More tasks are created at once, but no unit beyond the ceiling is charged."""
    endpoint = make_endpoint(lifts=True)
    async with open_client(endpoint, "webhook") as c, c.batch(smiles(60), max_units=25) as batch:
        outcomes = [outcome async for outcome in batch]

    assert 25 == sum(outcome.ok for outcome in outcomes) == endpoint.sandbox.ledger.units_charged
    assert 35 == sum(isinstance(outcome, Failed) for outcome in outcomes)


async def test_progress_and_forecast() -> None:
    """The progress of a batch with webhooks is right, and its forecast is near after a third."""
    endpoint = make_endpoint(lifts=True, durations=LIKE_SMILES)
    seen: list[tuple[float, float]] = []
    async with open_client(endpoint, "webhook") as c:
        began = clock()
        async with c.batch([avatar(1, str(n)) for n in range(200)]) as batch:
            async for _ in batch:
                progress = batch.progress
                assert 200 == progress.done + progress.failed + progress.running + progress.waiting
                if progress.done in {60, 90, 130, 170} and progress.eta is not None:
                    seen.append((clock() - began, progress.eta))
        took = clock() - began

    assert 4 == len(seen)
    for at, eta in seen:
        assert 0.3 * (took - at) < eta < 2 * (took - at) + 10


@pytest.mark.parametrize("completion", ["webhook", "both"])
async def test_attaching_with_webhooks(completion: Completion) -> None:
    """`attach` polls once, and then waits for the notification."""
    endpoint = make_endpoint(lifts=True, durations={"ai-smile": Durations.fixed(50.0)})
    async with endpoint.sandbox:
        async with client(endpoint.sandbox, drain=0.0, webhook_secret=SECRET) as first:
            waits = asyncio.ensure_future(first.run(smile()))
            await asyncio.sleep(3)
        with pytest.raises(TaskAbandoned):
            await waits
        before, task_id = endpoint.polls(), endpoint.sandbox.ledger.tasks[0].task_id
        async with client_of(endpoint, completion) as c:
            result = await c.attach(Smile, task_id)
            again = await c.attach(Smile, task_id)

    assert task_id == result.task_id == again.task_id
    assert [0.2] == pytest.approx(endpoint.delays(), abs=0.2)
    if completion == "webhook":
        # At once, after the notification, and again for the second `attach`.
        assert 3 == endpoint.polls() - before


@pytest.mark.parametrize("lost", [0.0, 1.0])
async def test_a_restart_with_webhooks(lost: float, tmp_path: Path) -> None:
    """The former process's tasks are polled at once, and then announced as before."""
    endpoint = make_endpoint(
        WebhookFaults(lost=lost), lifts=True, durations={"ai-smile": Durations.fixed(40.0)}
    )
    journal = tmp_path / "jobs.db"
    async with endpoint.sandbox:
        first = client_of(endpoint, "webhook", drain=0.0, journal=journal)
        async with first as c, c.batch(smiles(30)) as batch:
            waits = asyncio.ensure_future(anext(batch))
            await asyncio.sleep(20)
            waits.cancel()
        created, asked = endpoint.sandbox.ledger.units_charged, endpoint.polls()
        began = clock()
        async with client_of(endpoint, "webhook", journal=journal) as c, c.resume() as left:
            outcomes = [outcome async for outcome in left]

    assert created == 30 == len(outcomes)
    assert all(isinstance(outcome, Done) for outcome in outcomes)
    assert 30 == endpoint.sandbox.ledger.units_charged
    assert endpoint.polls() - asked <= 60
    assert clock() - began < (60 if not lost else 200)


async def test_webhooks_alone_risk_tasks_beyond_the_lease() -> None:
    """A task that runs beyond the lease is lost without polls; a shorter one is not."""
    endpoint = make_endpoint(
        durations={"ai-smile": Durations.fixed(9.0), "ai-avatar": Durations.fixed(11.0)}
    )
    async with open_client(endpoint, "webhook") as c:
        assert (await c.run(smile())).task_id
        async with c.batch([avatar(1)]) as batch:
            [outcome] = [outcome async for outcome in batch]

    assert isinstance(outcome, Failed)
    assert {"success": 1, "expired": 1} == dict(endpoint.sandbox.ledger.tasks_by_state)
