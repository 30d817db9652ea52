"""What a client does with a notification: believe, wake, remember, and acknowledge."""

import asyncio
import logging
import sqlite3
import threading
from pathlib import Path

import httpx
import pytest

from perfect_async import (
    Client,
    ClientClosed,
    ConfigurationError,
    JournalError,
    Result,
    Smile,
    TaskExpired,
    WebhookRejected,
)
from perfect_async._journal.sqlite import SqliteJournal
from perfect_async.sandbox import Durations, WebhookFaults
from perfect_async.webhooks import WebhookApp
from tests.support.sandboxed import FACE, Between, client, clock, smile
from tests.support.virtual_time import hanging
from tests.support.webhooks import (
    OTHER,
    SECRET,
    Endpoint,
    client_of,
    make_endpoint,
    notification,
    open_client,
    task_end,
)

EIGHTEEN = Durations.fixed(18.0)
SILENT = WebhookFaults(lost=1.0)


async def begun(
    c: Client, endpoint: Endpoint, number: int = 0
) -> tuple[asyncio.Future[Result], str]:
    """A smile of 8 s that runs, and its task."""
    waits = asyncio.ensure_future(c.run(smile(number)))
    await asyncio.sleep(1)
    return waits, endpoint.sandbox.ledger.tasks[-1].task_id


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("status", ["success", "error"])
async def test_a_notification_wakes_its_task(status: str) -> None:
    """Whatever it says of the end, the task is asked for at once."""
    endpoint = make_endpoint(SILENT, lifts=True)
    async with open_client(endpoint, "webhook") as c:
        waits, task_id = await begun(c, endpoint)
        await asyncio.sleep(7.5)
        assert 0 == endpoint.polls()
        await c.webhooks.deliver(*notification(c, task_end(task_id, status)))
        began = clock()
        await waits

    assert clock() - began < 1
    assert 1 == endpoint.polls()


async def test_twice_is_once() -> None:
    """The same id again, at once or an hour later, asks for nothing and is acknowledged."""
    endpoint = make_endpoint(SILENT, lifts=True)
    async with open_client(endpoint, "webhook") as c:
        waits, task_id = await begun(c, endpoint)
        await asyncio.sleep(8)
        message = notification(c, task_end(task_id))
        await asyncio.gather(*(c.webhooks.deliver(*message) for _ in range(20)))
        await waits
        await asyncio.sleep(3600)
        await c.webhooks.deliver(*notification(c, task_end(task_id)))
        await asyncio.sleep(60)

    assert 1 == endpoint.polls()


async def test_concurrent_ones_with_ids_of_their_own() -> None:
    """Many notifications of one task at one moment are one poll."""
    endpoint = make_endpoint(SILENT, lifts=True)
    async with open_client(endpoint, "webhook") as c:
        waits, task_id = await begun(c, endpoint)
        await asyncio.sleep(8)
        message = [notification(c, task_end(task_id), webhook_id=f"msg_{n}") for n in range(20)]
        await asyncio.gather(*(c.webhooks.deliver(*each) for each in message))
        await waits

    assert 1 == endpoint.polls()


async def test_a_notification_before_the_creations_answer() -> None:
    """What overtakes the answer is kept for it."""
    endpoint = make_endpoint(SILENT, lifts=True)

    async def slow(request: httpx.Request) -> httpx.Response | None:
        if request.method != "POST":
            return None
        answer = await endpoint.sandbox.transport().handle_async_request(request)
        await asyncio.sleep(9)
        assert endpoint.client is not None
        message = notification(endpoint.client, task_end(endpoint.sandbox.ledger.tasks[0].task_id))
        await endpoint.client.webhooks.deliver(*message)
        await asyncio.sleep(5)
        return answer

    async with endpoint.sandbox:
        transport = Between(endpoint.sandbox.transport(), slow)
        async with client_of(endpoint, "webhook", transport=transport) as c:
            began = clock()
            await c.run(smile())

    assert clock() - began < 15
    assert 1 == endpoint.polls()


async def test_of_a_task_of_somebody_else() -> None:
    """It is acknowledged, and neither asked for nor remembered for long."""
    endpoint = make_endpoint(SILENT)
    async with open_client(endpoint) as c:
        for number in range(10):
            message = notification(c, task_end(f"task-{number}"), webhook_id=f"msg_{number}")
            await c.webhooks.deliver(*message)
        await asyncio.sleep(60)

    assert {} == dict(endpoint.sandbox.ledger.requests)


async def test_two_clients_on_one_key() -> None:
    """Clients of one key in one process share what they hear, whichever was told."""
    endpoint = make_endpoint(SILENT, lifts=True)
    async with open_client(endpoint, "webhook") as c:
        async with client_of(endpoint, "webhook") as other:
            waits, task_id = await begun(c, endpoint)
            await asyncio.sleep(8)
            await other.webhooks.deliver(*notification(other, task_end(task_id)))
            await asyncio.wait_for(waits, 2)
        with pytest.raises(ClientClosed):
            await other._webhooks.deliver(  # type: ignore[union-attr]
                *notification(c, task_end("x"), webhook_id="msg_2")
            )

    assert 1 == endpoint.polls()


async def test_signed_and_not_understood(caplog: pytest.LogCaptureFixture) -> None:
    """It is acknowledged, and one line says so however many come; nothing of it is in the log."""
    endpoint = make_endpoint(SILENT)
    async with open_client(endpoint) as c:
        puzzling: list[object] = [None, [], {"task_id": "selfie-of-quinn"}, {"x": "quinn"}]
        for number, data in enumerate(puzzling):
            await c.webhooks.deliver(*notification(c, data, webhook_id=f"msg_{number}"))

    [line] = warnings_of(caplog)
    assert "cannot be read" in line
    assert "quinn" not in line


@pytest.mark.parametrize("how", ["secret", "stale", "future", "body"])
async def test_what_is_not_genuine_changes_nothing(how: str) -> None:
    """A wrong secret, a timestamp that is off, another body: rejected, and nothing is asked."""
    endpoint = make_endpoint(SILENT, lifts=True)
    async with open_client(endpoint, "webhook") as c:
        waits, task_id = await begun(c, endpoint)
        late = {"stale": 301.0, "future": -302.0}.get(how, 0.0)
        message = notification(
            c, task_end(task_id), secret=OTHER if how == "secret" else SECRET, late=late
        )
        body = message[0] + b" " if how == "body" else message[0]
        with pytest.raises(WebhookRejected):
            await c.webhooks.deliver(body, message[1])
        await asyncio.sleep(10)
        assert 0 == endpoint.polls()
        # The id of what was rejected is not taken.
        await c.webhooks.deliver(*notification(c, task_end(task_id)))
        await asyncio.wait_for(waits, 2)


async def test_while_a_secret_is_replaced() -> None:
    """Either of two secrets is good, in the argument and in what was signed."""
    endpoint = make_endpoint()
    async with open_client(endpoint, "both", webhook_secret=[OTHER, SECRET]) as c:
        await c.run(smile(1))
        endpoint.sandbox.rotate_webhook_secret([OTHER, SECRET])
        await c.run(smile(2))
        endpoint.sandbox.rotate_webhook_secret(OTHER)
        await c.run(smile(3))

    assert {204} == {each.answer for each in endpoint.sandbox.ledger.webhooks}


async def test_after_the_end() -> None:
    """A client that has closed takes nothing in, nor does one that never opened."""
    endpoint = make_endpoint(SILENT)
    async with open_client(endpoint) as c:
        webhooks, message = c.webhooks, notification(c, task_end("x"))
        unopened = client(endpoint.sandbox, webhook_secret=SECRET)
        with pytest.raises(ConfigurationError, match="not open"):
            await unopened.webhooks.deliver(*message)
    with pytest.raises(ClientClosed):
        await webhooks.deliver(*message)


async def test_an_app_is_built_before_the_client_opens() -> None:
    """`client.webhooks` may be had at any time, and works once the client is open."""
    endpoint = make_endpoint(SILENT, lifts=True)
    async with endpoint.sandbox:
        c = client_of(endpoint, "webhook")
        receiver = c.webhooks
        async with c:
            assert receiver is c.webhooks
            waits, task_id = await begun(c, endpoint)
            await asyncio.sleep(8)
            await receiver.deliver(*notification(c, task_end(task_id)))
            await waits

    assert 1 == endpoint.polls()


async def test_without_a_secret() -> None:
    """There is nothing to believe by."""
    endpoint = make_endpoint(SILENT)
    async with endpoint.sandbox, client(endpoint.sandbox) as c:
        with pytest.raises(ConfigurationError):
            c.webhooks  # noqa: B018 - it raises


async def test_while_the_client_closes() -> None:
    """What still runs is heard of to the end."""
    endpoint = make_endpoint(lifts=True, durations={"ai-smile": EIGHTEEN})
    async with endpoint.sandbox:
        async with client_of(endpoint, "webhook", drain=30.0) as c:
            assert c.webhooks is c.webhooks
            waits, _ = await begun(c, endpoint)
        await waits

    assert {"success": 1} == dict(endpoint.sandbox.ledger.tasks_by_state)
    assert [204] == [each.answer for each in endpoint.sandbox.ledger.webhooks]
    assert [0.2] == pytest.approx(endpoint.delays(), abs=0.2)
    assert endpoint.polls() <= 5


async def test_in_another_thread_or_loop() -> None:
    """A handler in another loop is told so."""
    endpoint = make_endpoint(SILENT)
    async with open_client(endpoint) as c:
        webhooks, message = c.webhooks, notification(c, task_end("x"))
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(webhooks.deliver(*message)))


async def test_when_the_driver_has_failed() -> None:
    """Nobody would ask, so it is not acknowledged."""
    endpoint = make_endpoint(SILENT)
    async with open_client(endpoint) as c:
        assert c._session is not None
        message = notification(c, task_end("x"))
        c._session.driver.scheduler.due = None  # type: ignore[method-assign,assignment]
        with pytest.raises(ClientClosed):
            await c.run(smile())
        with pytest.raises(ClientClosed):
            await c.webhooks.deliver(*message)


# With a journal.


async def test_it_is_acknowledged_when_it_is_written(tmp_path: Path) -> None:
    """With a healthy disk the task's creation is in the file before the sender hears yes."""
    endpoint = make_endpoint(lifts=True)
    async with open_client(endpoint, "webhook", journal=tmp_path / "jobs.db") as c:
        await c.run(Smile(FACE))
        await asyncio.sleep(1)

    assert [204] == [each.answer for each in endpoint.sandbox.ledger.webhooks]


async def test_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The result comes, no notification is acknowledged, and the sender's next attempt is."""
    endpoint = make_endpoint(lifts=True, webhook_retries=[60.0])
    commit, failing = SqliteJournal.commit, True

    def fails(self: SqliteJournal, *words: object) -> None:
        if failing and endpoint.sandbox.ledger.tasks:
            raise JournalError("The disk is full.") from sqlite3.OperationalError()
        commit(self, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(SqliteJournal, "commit", fails)
    async with open_client(endpoint, "webhook", journal=tmp_path / "jobs.db") as c:
        began = clock()
        await c.run(Smile(FACE))
        assert clock() - began < 10
        await asyncio.sleep(15)
        assert [500] == [each.answer for each in endpoint.sandbox.ledger.webhooks]
        failing = False
        await asyncio.sleep(60)

    assert [500, 204] == [each.answer for each in endpoint.sandbox.ledger.webhooks]
    assert 1 == endpoint.polls()
    assert any("kept in memory" in line for line in warnings_of(caplog))


async def test_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll and result do not wait for it; the sender is told after ten seconds to try again."""
    endpoint = make_endpoint(lifts=True, webhook_retries=[60.0])
    commit, goes_on, over = SqliteJournal.commit, threading.Event(), threading.Event()

    def hangs(self: SqliteJournal, *words: object) -> None:
        if endpoint.sandbox.ledger.tasks and not goes_on.is_set():
            with hanging():
                goes_on.wait()
        commit(self, *words)  # type: ignore[arg-type]
        if goes_on.is_set():
            over.set()

    monkeypatch.setattr(SqliteJournal, "commit", hangs)
    try:
        async with open_client(endpoint, "webhook", journal=tmp_path / "jobs.db") as c:
            began = clock()
            await c.run(Smile(FACE))
            assert clock() - began < 10
            message = notification(
                c, task_end(endpoint.sandbox.ledger.tasks[0].task_id), webhook_id="msg_2"
            )
            asked = clock()
            with pytest.raises(JournalError, match="within 10 s"):
                await c.webhooks.deliver(*message)
            assert 10.0 == pytest.approx(clock() - asked)
            goes_on.set()
            await asyncio.to_thread(over.wait)
            await asyncio.sleep(80)
            await c.webhooks.deliver(*notification(c, task_end("x"), webhook_id="msg_3"))
    finally:
        goes_on.set()

    assert [500, 204] == [each.answer for each in endpoint.sandbox.ledger.webhooks]
    assert 1 == endpoint.polls()


async def test_the_endpoint_says_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounted as an app, a disk that fails is a 503, a wrong secret a 400, and the rest 204."""
    endpoint = make_endpoint(SILENT, lifts=True)
    commit = SqliteJournal.commit

    def fails(self: SqliteJournal, *words: object) -> None:
        if endpoint.sandbox.ledger.tasks:
            raise JournalError("The disk is full.")
        commit(self, *words)  # type: ignore[arg-type]

    async with open_client(endpoint, "webhook", journal=tmp_path / "jobs.db") as c:
        app = httpx.ASGITransport(WebhookApp(c.webhooks))
        async with httpx.AsyncClient(transport=app, base_url="https://shop.example") as http:

            async def status(**given: str) -> int:
                body, headers = notification(c, task_end("x"), **given)  # type: ignore[arg-type]
                return (await http.post("/hook", content=body, headers=headers)).status_code

            assert 204 == await status()
            assert 400 == await status(secret=OTHER)
            monkeypatch.setattr(SqliteJournal, "commit", fails)
            waits = asyncio.ensure_future(c.run(Smile(FACE)))
            await asyncio.sleep(5)
            assert 503 == await status(webhook_id="msg_2")
            monkeypatch.setattr(SqliteJournal, "commit", commit)
            await asyncio.sleep(10)
            assert 204 == await status(webhook_id="msg_2")
            await waits


async def test_a_task_that_its_lease_lost() -> None:
    """Where a webhook lifts no lease after all, the caller is told what became of the task."""
    endpoint = make_endpoint(SILENT, durations={"ai-smile": EIGHTEEN})
    async with open_client(endpoint, "webhook") as c:
        with pytest.raises(TaskExpired) as caught:
            await c.run(smile())

    assert 1.0 == caught.value.units_at_stake
