"""A client verifies, remembers and acknowledges notifications, and polls their tasks."""

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
    """A running smile of 8 s, and its task."""
    waits = asyncio.ensure_future(c.run(smile(number)))
    await asyncio.sleep(1)
    return waits, endpoint.sandbox.ledger.tasks[-1].task_id


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.parametrize("status", ["success", "error"])
async def test_a_notification_polls_its_task(status: str) -> None:
    """The task is polled at once, whatever the notification says of its end."""
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


async def test_a_duplicate_is_acknowledged_and_ignored() -> None:
    """The same id again, at once or an hour later, causes no poll."""
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


async def test_concurrent_notifications_are_one_poll() -> None:
    """Many notifications of one task at one moment cause one poll."""
    endpoint = make_endpoint(SILENT, lifts=True)
    async with open_client(endpoint, "webhook") as c:
        waits, task_id = await begun(c, endpoint)
        await asyncio.sleep(8)
        message = [notification(c, task_end(task_id), webhook_id=f"msg_{n}") for n in range(20)]
        await asyncio.gather(*(c.webhooks.deliver(*each) for each in message))
        await waits

    assert 1 == endpoint.polls()


async def test_a_notification_before_the_creations_answer() -> None:
    """It is remembered until the answer to the creation comes."""
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


async def test_a_notification_of_another_programs_task() -> None:
    """It is acknowledged, causes no poll, and is not remembered for long."""
    endpoint = make_endpoint(SILENT)
    async with open_client(endpoint) as c:
        for number in range(10):
            message = notification(c, task_end(f"task-{number}"), webhook_id=f"msg_{number}")
            await c.webhooks.deliver(*message)
        await asyncio.sleep(60)

    assert {} == dict(endpoint.sandbox.ledger.requests)


async def test_clients_on_one_key_share_notifications() -> None:
    """Either of two clients may receive the notification."""
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


async def test_a_signed_but_unreadable_notification(caplog: pytest.LogCaptureFixture) -> None:
    """It is acknowledged and logged once, without its content."""
    endpoint = make_endpoint(SILENT)
    async with open_client(endpoint) as c:
        puzzling: list[object] = [None, [], {"task_id": "selfie-of-quinn"}, {"x": "quinn"}]
        for number, data in enumerate(puzzling):
            await c.webhooks.deliver(*notification(c, data, webhook_id=f"msg_{number}"))

    [line] = warnings_of(caplog)
    assert "cannot be read" in line
    assert "quinn" not in line


@pytest.mark.parametrize("how", ["secret", "stale", "future", "body"])
async def test_an_invalid_notification_is_rejected(how: str) -> None:
    """A wrong secret, an old timestamp or another body is rejected and causes no poll."""
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
        # The id of a rejected notification is not remembered.
        await c.webhooks.deliver(*notification(c, task_end(task_id)))
        await asyncio.wait_for(waits, 2)


async def test_both_secrets_are_valid_while_one_is_replaced() -> None:
    """Either of two secrets is accepted, in the argument and in the signature."""
    endpoint = make_endpoint()
    async with open_client(endpoint, "both", webhook_secret=[OTHER, SECRET]) as c:
        await c.run(smile(1))
        endpoint.sandbox.rotate_webhook_secret([OTHER, SECRET])
        await c.run(smile(2))
        endpoint.sandbox.rotate_webhook_secret(OTHER)
        await c.run(smile(3))

    assert {204} == {each.answer for each in endpoint.sandbox.ledger.webhooks}


async def test_a_client_that_is_not_open_accepts_no_notification() -> None:
    """A client that has closed, or never opened, refuses it."""
    endpoint = make_endpoint(SILENT)
    async with open_client(endpoint) as c:
        webhooks, message = c.webhooks, notification(c, task_end("x"))
        unopened = client(endpoint.sandbox, webhook_secret=SECRET)
        with pytest.raises(ConfigurationError, match="not open"):
            await unopened.webhooks.deliver(*message)
    with pytest.raises(ClientClosed):
        await webhooks.deliver(*message)


async def test_an_app_is_built_before_the_client_opens() -> None:
    """`client.webhooks` is available at any time, and works once the client is open."""
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


async def test_webhooks_need_a_secret() -> None:
    """Without a secret `client.webhooks` raises an error."""
    endpoint = make_endpoint(SILENT)
    async with endpoint.sandbox, client(endpoint.sandbox) as c:
        with pytest.raises(ConfigurationError):
            c.webhooks  # noqa: B018 - it raises


async def test_a_closing_client_accepts_notifications() -> None:
    """Running tasks get their notifications to the end."""
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


async def test_another_loop_is_refused() -> None:
    """A handler in another loop gets an error."""
    endpoint = make_endpoint(SILENT)
    async with open_client(endpoint) as c:
        webhooks, message = c.webhooks, notification(c, task_end("x"))
        with pytest.raises(ConfigurationError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(webhooks.deliver(*message)))


async def test_a_failed_driver_acknowledges_nothing() -> None:
    """Nobody would poll the task, so the notification is not acknowledged."""
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


async def test_it_is_acknowledged_once_it_is_written(tmp_path: Path) -> None:
    """With a healthy disk the task's creation is in the file before the acknowledgement."""
    endpoint = make_endpoint(lifts=True)
    async with open_client(endpoint, "webhook", journal=tmp_path / "jobs.db") as c:
        await c.run(Smile(FACE))
        await asyncio.sleep(1)

    assert [204] == [each.answer for each in endpoint.sandbox.ledger.webhooks]


async def test_a_disk_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The result comes, no notification is acknowledged, and the next attempt is."""
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
    """Poll and result do not wait for it; after ten seconds the sender is asked to try again."""
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


async def test_the_status_codes_of_the_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounted as an app, a failing disk is a 503, a wrong secret a 400, and the rest 204."""
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


async def test_a_task_that_is_lost_without_polls() -> None:
    """If a webhook does not keep an unpolled task alive, the caller gets the error."""
    endpoint = make_endpoint(SILENT, durations={"ai-smile": EIGHTEEN})
    async with open_client(endpoint, "webhook") as c:
        with pytest.raises(TaskExpired) as caught:
            await c.run(smile())

    assert 1.0 == caught.value.units_at_stake
