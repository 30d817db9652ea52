"""The sandbox signs and sends notifications, with faults on request."""

import asyncio
import base64
import json
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from perfect_async.sandbox import Durations, Faults, Sandbox, WebhookFaults, WebhookRecord
from perfect_async.webhooks import WebhookApp, verify
from tests.sandbox.customer import Customer, data_of

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
OTHER = base64.b64encode(b"another secret, without prefix").decode().rstrip("=")
EPOCH = 1_800_000_000.0
URL = "https://shop.example/webhooks/youcam"


class Inbox:
    """A receiver that keeps the notifications and their times; `does` may fail or wait."""

    def __init__(self, does: Callable[[], Awaitable[object]] | None = None) -> None:
        self.came: list[tuple[float, bytes, dict[str, str]]] = []
        self._does = does

    async def deliver(self, body: bytes, headers: dict[str, str]) -> None:
        self.came.append((clock(), body, dict(headers)))
        if self._does is not None:
            await self._does()

    @property
    def tasks(self) -> list[str]:
        return [json.loads(body)["data"]["task_id"] for _, body, _ in self.came]


def clock() -> float:
    return asyncio.get_running_loop().time()


def notifying_sandbox(
    inbox: Inbox | None = None,
    faults: WebhookFaults | None = None,
    *,
    engine: Faults | None = None,
    smile: Durations | None = None,
    **settings: object,
) -> Sandbox:
    """Return a sandbox without limits whose smiles take 8 s, and which notifies `inbox`."""
    given: dict[str, Any] = {"webhook": None if inbox is None else inbox.deliver}
    return Sandbox(
        requests=10**6,
        per_second=10**6,
        units=10_000,
        epoch=EPOCH,
        faults=engine,
        durations={"ai-smile": Durations.fixed(8.0) if smile is None else smile},
        **{**given, "webhook_secret": SECRET, "webhook_faults": faults, **settings},
    )


async def create_tasks(sandbox: Sandbox, count: int = 1) -> list[str]:
    """Create tasks at once and return their ids."""
    async with Customer(sandbox) as customer:
        return [await customer.task() for _ in range(count)]


# Notifications.


async def test_the_end_is_announced() -> None:
    """When the engine is done, the contract's body is sent with three headers."""
    inbox = Inbox()
    async with notifying_sandbox(inbox) as sandbox:
        start = clock()
        (task,) = await create_tasks(sandbox)
        await asyncio.sleep(9)

    ((when, body, headers),) = inbox.came
    created = int(EPOCH) + 8
    assert 8.0 == pytest.approx(when - start, abs=1e-5)
    assert body == (
        b'{"created_at":%d,"data":{"task_id":"%s","task_status":"success"}}'
        % (created, task.encode())
    )
    assert "application/json" == headers["content-type"]
    assert str(created) == headers["webhook-timestamp"]
    assert [
        WebhookRecord(
            time=when,
            webhook_id=headers["webhook-id"],
            task_id=task,
            task_status="success",
            attempt=1,
            answer=204,
        )
    ] == sandbox.ledger.webhooks


async def test_standardwebhooks_makes_the_same_signature() -> None:
    """`standardwebhooks` makes the same signature, and `verify` accepts it."""
    inbox = Inbox()
    async with notifying_sandbox(inbox) as sandbox:
        (task,) = await create_tasks(sandbox)
        await asyncio.sleep(9)

    ((_, body, headers),) = inbox.came
    at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    signature = Webhook(SECRET).sign(headers["webhook-id"], at, body.decode())
    assert signature == headers["webhook-signature"]
    assert task == verify(body, headers, SECRET, EPOCH + 8).task_id


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (Faults(engine_errors=1.0), ["error"]),
        (Faults(timeouts=1.0), ["error"]),
        (Faults(stuck=1.0), []),
        (Faults(lost_creations=1.0), ["success"]),
    ],
)
async def test_each_end_has_its_notification(engine: Faults, expected: list[str]) -> None:
    """Failures are announced, stuck tasks never, and creations without an answer are, too."""
    inbox = Inbox()
    async with notifying_sandbox(inbox, engine=engine) as sandbox, Customer(sandbox) as customer:
        try:
            await customer.create()
        except httpx.RemoteProtocolError:
            assert engine.lost_creations
        await asyncio.sleep(60)

    assert expected == [json.loads(body)["data"]["task_status"] for _, body, _ in inbox.came]


async def test_a_lost_task_is_not_announced() -> None:
    """A task whose lease ran out is not announced."""
    inbox = Inbox()
    async with (
        notifying_sandbox(inbox, smile=Durations.fixed(12.0)) as sandbox,
        Customer(sandbox) as customer,
    ):
        kept, _ = await customer.task(), await customer.task()
        await asyncio.sleep(6)
        await customer.poll(kept)
        await asyncio.sleep(20)

    assert [kept] == inbox.tasks


async def test_a_webhook_may_lift_the_lease() -> None:
    """In the vendor's own flow a task has no polls until its notification, and a result."""
    inbox = Inbox()
    async with (
        notifying_sandbox(inbox, smile=Durations.fixed(90.0), webhook_lifts_lease=True) as sandbox,
        Customer(sandbox) as customer,
    ):
        task = await customer.task()
        await asyncio.sleep(100)
        data = data_of(await customer.poll(task))

    assert [task] == inbox.tasks
    assert "success" == data["task_status"]


# Faults.


async def test_a_lost_notification_is_never_sent() -> None:
    """A lost notification is never sent."""
    inbox = Inbox()
    async with notifying_sandbox(inbox, WebhookFaults(lost=1.0)) as sandbox:
        await create_tasks(sandbox, 3)
        await asyncio.sleep(9)

    assert [] == inbox.came
    assert [] == sandbox.ledger.webhooks


async def test_an_early_notification_precedes_the_end() -> None:
    """The notification is there while the task still runs."""
    inbox = Inbox()
    async with (
        notifying_sandbox(inbox, WebhookFaults(early=1.0, early_seconds=2.0)) as sandbox,
        Customer(sandbox) as customer,
    ):
        start = clock()
        task = await customer.task()
        await asyncio.sleep(7)
        data = data_of(await customer.poll(task))
        await asyncio.sleep(9)

    assert "running" == data["task_status"]
    assert [6.0] == [pytest.approx(when - start, abs=1e-5) for when, _, _ in inbox.came]


async def test_a_notification_may_overtake_the_creations_answer() -> None:
    """A very early notification comes before the answer to the creation."""
    inbox = Inbox()
    faults = WebhookFaults(early=1.0, early_seconds=600.0)
    async with notifying_sandbox(inbox, faults, latency=2.0) as sandbox:
        (task,) = await create_tasks(sandbox)
        answered = clock()

    assert [task] == inbox.tasks
    assert inbox.came[0][0] < answered


async def test_a_duplicate_has_the_same_id() -> None:
    """A duplicate has the same body and id; another task has another id."""
    inbox = Inbox()
    async with notifying_sandbox(inbox, WebhookFaults(duplicated=1.0)) as sandbox:
        await create_tasks(sandbox, 2)
        await asyncio.sleep(9)

    assert 4 == len(inbox.came)
    assert 2 == len({body for _, body, _ in inbox.came})
    assert 2 == len({headers["webhook-id"] for _, _, headers in inbox.came})
    assert [1] * 4 == [record.attempt for record in sandbox.ledger.webhooks]


async def test_a_delayed_notification_comes_later() -> None:
    """A delayed notification comes `delay_seconds` later and has the time of the end."""
    inbox = Inbox()
    async with notifying_sandbox(inbox, WebhookFaults(delayed=1.0, delay_seconds=40.0)) as sandbox:
        start = clock()
        await create_tasks(sandbox)
        await asyncio.sleep(7.5)
        async with Customer(sandbox) as customer:
            await customer.poll(sandbox.ledger.tasks[0].task_id)
            await asyncio.sleep(1)
            await customer.poll(sandbox.ledger.tasks[0].task_id)
        await asyncio.sleep(60)

    ((when, body, headers),) = inbox.came
    assert 48.0 == pytest.approx(when - start, abs=1e-5)
    assert int(EPOCH) + 8 == json.loads(body)["created_at"]
    assert str(int(EPOCH) + 48) == headers["webhook-timestamp"]


async def test_notifications_may_overtake_each_other() -> None:
    """Drawn delays change the order, and the same seed gives the same order."""
    orders: list[list[int]] = []
    for seed in (1, 1, 2):
        inbox = Inbox()
        faults = WebhookFaults(reorder_seconds=5.0, lost=0.2, duplicated=0.3)
        async with notifying_sandbox(inbox, faults, seed=seed, webhook_lifts_lease=True) as sandbox:
            tasks = await create_tasks(sandbox, 20)
            await asyncio.sleep(20)
        orders.append([tasks.index(task) for task in inbox.tasks])

    first, again, other = orders
    assert sorted(first) != first == again != other
    assert 10 < len(set(first)) < 20 < len(first) + 5


async def test_a_webhook_changes_no_duration() -> None:
    """Durations and ids of tasks are the same with a webhook and without."""
    drawn: list[list[tuple[str, float]]] = []
    for webhook in (True, False):
        settings: dict[str, Any] = {} if webhook else {"webhook_secret": None}
        async with notifying_sandbox(
            Inbox() if webhook else None, smile=Durations(8.0, 0.3), **settings
        ) as sandbox:
            await create_tasks(sandbox, 3)
        drawn.append([(task.task_id, task.duration) for task in sandbox.ledger.tasks])

    assert drawn[0] == drawn[1]


async def test_webhook_faults_may_be_assigned_later() -> None:
    """Assigned faults are for tasks that are created from then on."""
    inbox = Inbox()
    async with notifying_sandbox(inbox) as sandbox:
        (first,) = await create_tasks(sandbox)
        sandbox.webhook_faults = WebhookFaults(lost=1.0)
        await create_tasks(sandbox)
        await asyncio.sleep(9)

    assert WebhookFaults(lost=1.0) == sandbox.webhook_faults
    assert [first] == inbox.tasks


@pytest.mark.parametrize("name", ["lost", "duplicated", "early", "delayed"])
def test_wrong_probabilities_are_refused(name: str) -> None:
    """A share outside of 0 to 1 is refused with its name."""
    with pytest.raises(ValueError, match=f"{name} must be a probability"):
        WebhookFaults(**{name: 1.5})


@pytest.mark.parametrize("name", ["early_seconds", "delay_seconds", "reorder_seconds"])
@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_wrong_times_are_refused(name: str, seconds: float) -> None:
    """An infinite or negative time is refused with its name."""
    with pytest.raises(ValueError, match=f"{name} must be a time in seconds"):
        WebhookFaults(**{name: seconds})


# Retries.


async def test_a_refused_notification_is_retried() -> None:
    """Retries have the same id and body, a new timestamp, and the configured waits."""
    answers = iter([ValueError("no"), ValueError("no"), None])

    async def does() -> None:
        if (error := next(answers)) is not None:
            raise error

    inbox = Inbox(does)
    async with notifying_sandbox(inbox, webhook_retries=(5.0, 60.0, 60.0)) as sandbox:
        start = clock()
        await create_tasks(sandbox)
        await asyncio.sleep(1000)

    assert [8.0, 13.0, 73.0] == [pytest.approx(when - start, abs=1e-4) for when, _, _ in inbox.came]
    assert 1 == len({(body, headers["webhook-id"]) for _, body, headers in inbox.came})
    assert [str(int(EPOCH) + at) for at in (8, 13, 73)] == [
        headers["webhook-timestamp"] for _, _, headers in inbox.came
    ]
    assert [(1, 500, "ValueError('no')"), (2, 500, "ValueError('no')"), (3, 204, None)] == [
        (record.attempt, record.answer, record.error) for record in sandbox.ledger.webhooks
    ]


async def test_retries_end_after_the_last_wait() -> None:
    """After the last wait nothing more is sent."""

    async def does() -> None:
        raise ValueError

    inbox = Inbox(does)
    async with notifying_sandbox(inbox) as sandbox:
        await create_tasks(sandbox)
        await asyncio.sleep(100_000)

    assert [1, 2, 3, 4, 5] == [record.attempt for record in sandbox.ledger.webhooks]


async def test_a_hanging_receiver_delays_no_other_notification() -> None:
    """Without an answer in 15 s the notification is retried; others are sent meanwhile."""
    hangs = iter([True, False, False])

    async def does() -> None:
        if next(hangs):
            await asyncio.sleep(3600)

    inbox = Inbox(does)
    async with notifying_sandbox(inbox, webhook_retries=(1.0,)) as sandbox:
        start = clock()
        await create_tasks(sandbox, 2)
        await asyncio.sleep(100)

    assert [8.0, 8.0, 24.0] == [pytest.approx(when - start, abs=1e-4) for when, _, _ in inbox.came]
    assert [204, 0, 204] == [record.answer for record in sandbox.ledger.webhooks]


# Secrets.


async def test_two_secrets_give_two_signatures() -> None:
    """With two secrets there are two signatures; afterwards only the new one signs."""
    inbox = Inbox()
    async with notifying_sandbox(inbox) as sandbox:
        sandbox.rotate_webhook_secret([SECRET, OTHER])
        await create_tasks(sandbox)
        await asyncio.sleep(9)
        sandbox.rotate_webhook_secret(OTHER)
        await create_tasks(sandbox)
        await asyncio.sleep(9)

    (_, body, both), (_, later, alone) = inbox.came
    assert [2, 1] == [len(each["webhook-signature"].split(" ")) for each in (both, alone)]
    for secret in (SECRET, OTHER):
        verify(body, both, secret, EPOCH + 8)
    verify(later, alone, OTHER, EPOCH + 17)


@pytest.mark.parametrize("secret", ["", "whsec_", "s3cret!", [], [SECRET, ""], "abcde"])
def test_a_malformed_secret_is_refused(secret: str | list[str]) -> None:
    """A malformed secret is refused at once and not shown."""
    with pytest.raises(
        ValueError, match="webhook_secret must be whsec_ followed by base64"
    ) as caught:
        notifying_sandbox(Inbox(), webhook_secret=secret)
    assert "s3cret" not in str(caught.value)


# Receivers.


class Receiver:
    """A receiver that verifies, behind a `WebhookApp`."""

    def __init__(self) -> None:
        self.ids: list[str | None] = []

    async def deliver(self, body: bytes, headers: list[tuple[str, str]]) -> None:
        self.ids.append(verify(body, headers, SECRET, EPOCH + 8).task_id)


async def test_a_notification_is_posted_to_an_app() -> None:
    """A POST to the URL by the given transport is answered by `WebhookApp`."""
    receiver = Receiver()
    over = httpx.ASGITransport(WebhookApp(receiver))
    async with notifying_sandbox(webhook_url=URL, webhook_transport=over) as sandbox:
        tasks = await create_tasks(sandbox)
        await asyncio.sleep(9)
        sandbox.rotate_webhook_secret(OTHER)
        await create_tasks(sandbox)
        await asyncio.sleep(9)

    assert tasks == receiver.ids
    assert [204, 400] == [record.answer for record in sandbox.ledger.webhooks]


async def test_failed_attempts_are_recorded() -> None:
    """No answer is 0 with its error; a redirect is not followed; an app that raises is 500."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        match len(seen):
            case 1:
                raise httpx.ConnectError("refused")
            case 2:
                return httpx.Response(307, headers={"location": URL + "/"})
            case 3:
                raise ZeroDivisionError
            case _:
                return httpx.Response(204)

    over = httpx.MockTransport(answer)
    waits = [1.0] * 5
    failures: list[tuple[int, float | None]] = []
    async with notifying_sandbox(
        webhook_url=URL, webhook_transport=over, webhook_retries=waits
    ) as sandbox:
        sandbox.on_webhook_failure(lambda record, wait: failures.append((record.attempt, wait)))
        await create_tasks(sandbox)
        await asyncio.sleep(20)

    assert [
        (0, "ConnectError('refused')"),
        (307, None),
        (500, "ZeroDivisionError()"),
        (204, None),
    ] == [(record.answer, record.error) for record in sandbox.ledger.webhooks]
    assert [(1, 1.0), (2, 1.0), (3, 1.0)] == failures
    assert {("POST", URL)} == {(each.method, str(each.url)) for each in seen}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"webhook_secret": SECRET}, "pass webhook or webhook_url, too"),
        ({"webhook_faults": WebhookFaults()}, "pass webhook or webhook_url, too"),
        ({"webhook_transport": httpx.MockTransport(lambda _: httpx.Response(204))}, "pass webhook"),
        ({"webhook_url": URL}, "pass webhook_secret, too"),
        ({"webhook_url": "shop.example", "webhook_secret": SECRET}, "webhook_url must be http"),
        (
            {"webhook": Inbox().deliver, "webhook_url": URL, "webhook_secret": SECRET},
            "not both",
        ),
    ],
)
def test_incompatible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    """An incomplete webhook, and two webhooks, are refused at construction."""
    with pytest.raises(ValueError, match=message):
        Sandbox(**settings)


def test_webhook_calls_need_a_webhook() -> None:
    """Settings of a webhook cannot be changed without one."""
    with pytest.raises(ValueError, match="this sandbox has no webhook"):
        Sandbox().rotate_webhook_secret(SECRET)
    with pytest.raises(ValueError, match="this sandbox has no webhook"):
        _ = Sandbox().webhook_faults


# Open and closed.


async def test_a_sandbox_with_a_webhook_must_be_open() -> None:
    """Each way into an unopened sandbox raises, and the message says how to open it."""
    sandbox = notifying_sandbox(Inbox())
    with pytest.raises(RuntimeError, match="async with sandbox:"):
        sandbox.transport()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(sandbox)) as http:
        with pytest.raises(RuntimeError, match="async with sandbox:"):
            await http.get("http://sandbox.test/")
    async with sandbox:
        customer = Customer(sandbox)
    async with customer:
        with pytest.raises(RuntimeError, match="async with sandbox:"):
            await customer.task()


async def test_a_sandbox_without_a_webhook_need_not_be_open() -> None:
    """Opening it is possible, but not needed."""
    async with Sandbox() as sandbox:
        await create_tasks(sandbox)
    await create_tasks(sandbox)


async def test_closing_cancels_notifications() -> None:
    """The end of the block cancels running and later notifications; it may be opened again."""

    async def does() -> None:
        await asyncio.sleep(10)

    inbox = Inbox(does)
    sandbox = notifying_sandbox(inbox)
    async with sandbox:
        await create_tasks(sandbox)
        await asyncio.sleep(4)
        await create_tasks(sandbox)
        await asyncio.sleep(5)
    assert 1 == len(inbox.came)
    async with sandbox:
        await asyncio.sleep(60)
    assert 1 == len(inbox.came)
    assert [] == sandbox.ledger.webhooks


async def test_a_task_created_after_the_end_is_not_announced() -> None:
    """A creation that arrives after the closing is created and not announced."""
    inbox = Inbox()
    sandbox = notifying_sandbox(inbox, latency=4.0)
    async with asyncio.TaskGroup() as group, sandbox:
        group.create_task(create_tasks(sandbox))
        await asyncio.sleep(1)
    await asyncio.sleep(20)

    assert 1 == len(sandbox.ledger.tasks)
    assert [] == inbox.came


async def test_a_sandbox_opens_once() -> None:
    """Opening an open sandbox raises."""
    sandbox = notifying_sandbox(Inbox())
    async with sandbox:
        with pytest.raises(RuntimeError, match="already"):
            async with sandbox:
                pass


async def test_errors_of_the_block_are_not_wrapped() -> None:
    """An error of the block is not raised as a group."""
    with pytest.raises(ZeroDivisionError):
        async with notifying_sandbox(Inbox()):
            raise ZeroDivisionError


async def test_a_cancelled_block_is_cancelled() -> None:
    """A cancellation is not caught, and later notifications are not sent."""
    inbox = Inbox()

    async def open_for_long() -> None:
        async with notifying_sandbox(inbox) as sandbox:
            await create_tasks(sandbox)
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(open_for_long(), 3)
    await asyncio.sleep(60)

    assert [] == inbox.came


@pytest.mark.parametrize("open_already", [False, True])
async def test_the_lifespan_opens_the_sandbox(open_already: bool) -> None:
    """A server that sends the lifespan opens it, unless it is open already."""
    inbox = Inbox()
    sandbox = notifying_sandbox(inbox)
    messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    sent: asyncio.Queue[str] = asyncio.Queue()

    async def send(message: MutableMapping[str, Any]) -> None:
        await sent.put(message["type"])

    async def live() -> None:
        await sandbox({"type": "lifespan"}, messages.get, send)

    async with asyncio.TaskGroup() as group:
        if open_already:
            await sandbox.__aenter__()
        group.create_task(live())
        await messages.put({"type": "lifespan.startup"})
        assert "lifespan.startup.complete" == await sent.get()
        await create_tasks(sandbox)
        await asyncio.sleep(9)
        await messages.put({"type": "lifespan.shutdown"})
        assert "lifespan.shutdown.complete" == await sent.get()
        if open_already:
            sandbox.transport()
            await sandbox.__aexit__(None, None, None)

    assert 1 == len(inbox.came)
    with pytest.raises(RuntimeError, match="async with sandbox:"):
        sandbox.transport()


@pytest.mark.real_time
async def test_a_client_may_be_in_another_thread() -> None:
    """Tasks that another thread's loop creates are announced in the loop that opened it."""
    came = asyncio.Event()

    async def does() -> None:
        came.set()

    inbox = Inbox(does)
    async with notifying_sandbox(inbox, smile=Durations.fixed(0.01)) as sandbox:
        thread = threading.Thread(target=lambda: asyncio.run(create_tasks(sandbox)))
        thread.start()
        await came.wait()
        thread.join()

    assert [sandbox.ledger.tasks[0].task_id] == inbox.tasks
