"""The sandbox signs and sends notifications, well and badly on request."""

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
    """A receiver that keeps what came and when; `does` may fail or wait."""

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


def shop(
    inbox: Inbox | None = None,
    faults: WebhookFaults | None = None,
    *,
    engine: Faults | None = None,
    smile: Durations | None = None,
    **settings: object,
) -> Sandbox:
    """A sandbox without limits whose smiles take 8 s, and that tells `inbox` of them."""
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


async def ordered(sandbox: Sandbox, count: int = 1) -> list[str]:
    """Create tasks at once and return their ids."""
    async with Customer(sandbox) as customer:
        return [await customer.task() for _ in range(count)]


# What is sent.


async def test_the_end_is_announced() -> None:
    """When the engine is done, asked or not, the contract's body goes out under three headers."""
    inbox = Inbox()
    async with shop(inbox) as sandbox:
        start = clock()
        (task,) = await ordered(sandbox)
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


async def test_the_signature_is_the_libraries() -> None:
    """`standardwebhooks` makes the same signature, and our receiver believes it."""
    inbox = Inbox()
    async with shop(inbox) as sandbox:
        (task,) = await ordered(sandbox)
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
async def test_what_becomes_of_the_task(engine: Faults, expected: list[str]) -> None:
    """Failures are announced as such, stuck tasks never, creations without answer all the same."""
    inbox = Inbox()
    async with shop(inbox, engine=engine) as sandbox, Customer(sandbox) as customer:
        try:
            await customer.create()
        except httpx.RemoteProtocolError:
            assert engine.lost_creations
        await asyncio.sleep(60)

    assert expected == [json.loads(body)["data"]["task_status"] for _, body, _ in inbox.came]


async def test_a_lost_task_is_not_announced() -> None:
    """Of two tasks the one whose lease ran out is not announced."""
    inbox = Inbox()
    async with (
        shop(inbox, smile=Durations.fixed(12.0)) as sandbox,
        Customer(sandbox) as customer,
    ):
        kept, _ = await customer.task(), await customer.task()
        await asyncio.sleep(6)
        await customer.poll(kept)
        await asyncio.sleep(20)

    assert [kept] == inbox.tasks


async def test_a_webhook_may_lift_the_lease() -> None:
    """As in the vendor's own flow: no poll between creation and notification, and a result."""
    inbox = Inbox()
    async with (
        shop(inbox, smile=Durations.fixed(90.0), webhook_lifts_lease=True) as sandbox,
        Customer(sandbox) as customer,
    ):
        task = await customer.task()
        await asyncio.sleep(100)
        data = data_of(await customer.poll(task))

    assert [task] == inbox.tasks
    assert "success" == data["task_status"]


# What goes wrong.


async def test_nothing_is_sent_of_what_is_lost() -> None:
    """Lost notifications never come."""
    inbox = Inbox()
    async with shop(inbox, WebhookFaults(lost=1.0)) as sandbox:
        await ordered(sandbox, 3)
        await asyncio.sleep(9)

    assert [] == inbox.came
    assert [] == sandbox.ledger.webhooks


async def test_early_is_before_the_status_flips() -> None:
    """The notification is there and the task still runs."""
    inbox = Inbox()
    async with (
        shop(inbox, WebhookFaults(early=1.0, early_seconds=2.0)) as sandbox,
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
    """With more seconds early than the task has, it comes before the customer knows the task."""
    inbox = Inbox()
    faults = WebhookFaults(early=1.0, early_seconds=600.0)
    async with shop(inbox, faults, latency=2.0) as sandbox:
        (task,) = await ordered(sandbox)
        answered = clock()

    assert [task] == inbox.tasks
    assert inbox.came[0][0] < answered


async def test_a_duplicate_has_the_same_id() -> None:
    """Twice the same body under one id; another task has another id."""
    inbox = Inbox()
    async with shop(inbox, WebhookFaults(duplicated=1.0)) as sandbox:
        await ordered(sandbox, 2)
        await asyncio.sleep(9)

    assert 4 == len(inbox.came)
    assert 2 == len({body for _, body, _ in inbox.came})
    assert 2 == len({headers["webhook-id"] for _, _, headers in inbox.came})
    assert [1] * 4 == [record.attempt for record in sandbox.ledger.webhooks]


async def test_late_is_late() -> None:
    """A delayed notification comes so much later, as of then, about the time of the end."""
    inbox = Inbox()
    async with shop(inbox, WebhookFaults(delayed=1.0, delay_seconds=40.0)) as sandbox:
        start = clock()
        await ordered(sandbox)
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


async def test_they_overtake_each_other() -> None:
    """Drawn delays change the order, and the same seed changes it in the same way."""
    orders: list[list[int]] = []
    for seed in (1, 1, 2):
        inbox = Inbox()
        faults = WebhookFaults(reorder_seconds=5.0, lost=0.2, duplicated=0.3)
        async with shop(inbox, faults, seed=seed, webhook_lifts_lease=True) as sandbox:
            tasks = await ordered(sandbox, 20)
            await asyncio.sleep(20)
        orders.append([tasks.index(task) for task in inbox.tasks])

    first, again, other = orders
    assert sorted(first) != first == again != other
    assert 10 < len(set(first)) < 20 < len(first) + 5


async def test_other_faults_move_nothing() -> None:
    """Durations and ids of tasks are the same with a webhook and without."""
    drawn: list[list[tuple[str, float]]] = []
    for webhook in (True, False):
        settings: dict[str, Any] = {} if webhook else {"webhook_secret": None}
        async with shop(
            Inbox() if webhook else None, smile=Durations(8.0, 0.3), **settings
        ) as sandbox:
            await ordered(sandbox, 3)
        drawn.append([(task.task_id, task.duration) for task in sandbox.ledger.tasks])

    assert drawn[0] == drawn[1]


async def test_faults_may_change() -> None:
    """From now on means the tasks created from now on."""
    inbox = Inbox()
    async with shop(inbox) as sandbox:
        (first,) = await ordered(sandbox)
        sandbox.webhook_faults = WebhookFaults(lost=1.0)
        await ordered(sandbox)
        await asyncio.sleep(9)

    assert WebhookFaults(lost=1.0) == sandbox.webhook_faults
    assert [first] == inbox.tasks


@pytest.mark.parametrize("name", ["lost", "duplicated", "early", "delayed"])
def test_shares_are_shares(name: str) -> None:
    """A share outside 0..1 is refused with its name."""
    with pytest.raises(ValueError, match=f"{name} is a probability"):
        WebhookFaults(**{name: 1.5})


@pytest.mark.parametrize("name", ["early_seconds", "delay_seconds", "reorder_seconds"])
@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_seconds_are_seconds(name: str, seconds: float) -> None:
    """A time that never comes is refused with its name."""
    with pytest.raises(ValueError, match=f"{name} is a time in seconds"):
        WebhookFaults(**{name: seconds})


# Once more.


async def test_a_refusal_is_sent_again() -> None:
    """Same id, same body, a new timestamp, after the waits asked for, until it is taken."""
    answers = iter([ValueError("no"), ValueError("no"), None])

    async def does() -> None:
        if (error := next(answers)) is not None:
            raise error

    inbox = Inbox(does)
    async with shop(inbox, webhook_retries=(5.0, 60.0, 60.0)) as sandbox:
        start = clock()
        await ordered(sandbox)
        await asyncio.sleep(1000)

    assert [8.0, 13.0, 73.0] == [pytest.approx(when - start, abs=1e-4) for when, _, _ in inbox.came]
    assert 1 == len({(body, headers["webhook-id"]) for _, body, headers in inbox.came})
    assert [str(int(EPOCH) + at) for at in (8, 13, 73)] == [
        headers["webhook-timestamp"] for _, _, headers in inbox.came
    ]
    assert [(1, 500, "ValueError('no')"), (2, 500, "ValueError('no')"), (3, 204, None)] == [
        (record.attempt, record.answer, record.error) for record in sandbox.ledger.webhooks
    ]


async def test_at_last_it_gives_up() -> None:
    """After the last of the waits nothing more is sent."""

    async def does() -> None:
        raise ValueError

    inbox = Inbox(does)
    async with shop(inbox) as sandbox:
        await ordered(sandbox)
        await asyncio.sleep(100_000)

    assert [1, 2, 3, 4, 5] == [record.attempt for record in sandbox.ledger.webhooks]


async def test_a_receiver_that_hangs() -> None:
    """Without an answer in 15 s it is sent again, and nothing else waits for it."""
    hangs = iter([True, False, False])

    async def does() -> None:
        if next(hangs):
            await asyncio.sleep(3600)

    inbox = Inbox(does)
    async with shop(inbox, webhook_retries=(1.0,)) as sandbox:
        start = clock()
        await ordered(sandbox, 2)
        await asyncio.sleep(100)

    assert [8.0, 8.0, 24.0] == [pytest.approx(when - start, abs=1e-4) for when, _, _ in inbox.came]
    assert [204, 0, 204] == [record.answer for record in sandbox.ledger.webhooks]


# Secrets.


async def test_while_the_secret_is_replaced() -> None:
    """With two secrets there are two signatures; afterwards the new one signs alone."""
    inbox = Inbox()
    async with shop(inbox) as sandbox:
        sandbox.rotate_webhook_secret([SECRET, OTHER])
        await ordered(sandbox)
        await asyncio.sleep(9)
        sandbox.rotate_webhook_secret(OTHER)
        await ordered(sandbox)
        await asyncio.sleep(9)

    (_, body, both), (_, later, alone) = inbox.came
    assert [2, 1] == [len(each["webhook-signature"].split(" ")) for each in (both, alone)]
    for secret in (SECRET, OTHER):
        verify(body, both, secret, EPOCH + 8)
    verify(later, alone, OTHER, EPOCH + 17)


@pytest.mark.parametrize("secret", ["", "whsec_", "s3cret!", [], [SECRET, ""], "abcde"])
def test_a_secret_that_is_none(secret: str | list[str]) -> None:
    """It is refused at once and not repeated."""
    with pytest.raises(ValueError, match="webhook_secret is whsec_ and base64") as caught:
        shop(Inbox(), webhook_secret=secret)
    assert "s3cret" not in str(caught.value)


# On the way.


class Receiver:
    """A receiver of ours behind the endpoint of ours."""

    def __init__(self) -> None:
        self.ids: list[str | None] = []

    async def deliver(self, body: bytes, headers: list[tuple[str, str]]) -> None:
        self.ids.append(verify(body, headers, SECRET, EPOCH + 8).task_id)


async def test_over_http_into_an_app() -> None:
    """A POST to the URL through the transport that was given, answered by our endpoint."""
    receiver = Receiver()
    over = httpx.ASGITransport(WebhookApp(receiver))
    async with shop(webhook_url=URL, webhook_transport=over) as sandbox:
        tasks = await ordered(sandbox)
        await asyncio.sleep(9)
        sandbox.rotate_webhook_secret(OTHER)
        await ordered(sandbox)
        await asyncio.sleep(9)

    assert tasks == receiver.ids
    assert [204, 400] == [record.answer for record in sandbox.ledger.webhooks]


async def test_over_a_network_that_fails() -> None:
    """No answer is 0 and why; a redirect is not followed; an app that raises is 500."""
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
    async with shop(webhook_url=URL, webhook_transport=over, webhook_retries=waits) as sandbox:
        await ordered(sandbox)
        await asyncio.sleep(20)

    assert [
        (0, "ConnectError('refused')"),
        (307, None),
        (500, "ZeroDivisionError()"),
        (204, None),
    ] == [(record.answer, record.error) for record in sandbox.ledger.webhooks]
    assert {("POST", URL)} == {(each.method, str(each.url)) for each in seen}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"webhook_secret": SECRET}, "give webhook or webhook_url, too"),
        ({"webhook_faults": WebhookFaults()}, "give webhook or webhook_url, too"),
        ({"webhook_transport": httpx.MockTransport(lambda _: httpx.Response(204))}, "give webhook"),
        ({"webhook_url": URL}, "give webhook_secret, too"),
        ({"webhook_url": "shop.example", "webhook_secret": SECRET}, "webhook_url is http"),
        (
            {"webhook": Inbox().deliver, "webhook_url": URL, "webhook_secret": SECRET},
            "not both",
        ),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    """Half a webhook, or two, is refused at construction."""
    with pytest.raises(ValueError, match=said):
        Sandbox(**settings)


def test_there_is_no_webhook() -> None:
    """What belongs to a webhook needs one."""
    with pytest.raises(ValueError, match="this sandbox has no webhook"):
        Sandbox().rotate_webhook_secret(SECRET)
    with pytest.raises(ValueError, match="this sandbox has no webhook"):
        _ = Sandbox().webhook_faults


# Open and closed.


async def test_it_has_to_be_open() -> None:
    """Unopened, a sandbox with a webhook says what to write, to every way into it."""
    sandbox = shop(Inbox())
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


async def test_without_a_webhook_there_is_nothing_to_open() -> None:
    """The block does no harm, and is not needed."""
    async with Sandbox() as sandbox:
        await ordered(sandbox)
    await ordered(sandbox)


async def test_what_is_due_later_is_never_sent() -> None:
    """The end of the block is the end of it, under way or not; open again, it starts afresh."""

    async def does() -> None:
        await asyncio.sleep(10)

    inbox = Inbox(does)
    sandbox = shop(inbox)
    async with sandbox:
        await ordered(sandbox)
        await asyncio.sleep(4)
        await ordered(sandbox)
        await asyncio.sleep(5)
    assert 1 == len(inbox.came)
    async with sandbox:
        await asyncio.sleep(60)
    assert 1 == len(inbox.came)
    assert [] == sandbox.ledger.webhooks


async def test_an_answer_after_the_end() -> None:
    """A creation that arrives after the closing is created and not announced."""
    inbox = Inbox()
    sandbox = shop(inbox, latency=4.0)
    async with asyncio.TaskGroup() as group, sandbox:
        group.create_task(ordered(sandbox))
        await asyncio.sleep(1)
    await asyncio.sleep(20)

    assert 1 == len(sandbox.ledger.tasks)
    assert [] == inbox.came


async def test_it_opens_once() -> None:
    """A second opening of an open one is a mistake."""
    sandbox = shop(Inbox())
    async with sandbox:
        with pytest.raises(RuntimeError, match="already"):
            async with sandbox:
                pass


async def test_errors_come_out_as_they_are() -> None:
    """What the block raises is no group of errors, whatever sends inside."""
    with pytest.raises(ZeroDivisionError):
        async with shop(Inbox()):
            raise ZeroDivisionError


async def test_a_cancelled_block_is_cancelled() -> None:
    """A cancellation goes through, and what was due is never sent."""
    inbox = Inbox()

    async def open_for_long() -> None:
        async with shop(inbox) as sandbox:
            await ordered(sandbox)
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(open_for_long(), 3)
    await asyncio.sleep(60)

    assert [] == inbox.came


@pytest.mark.parametrize("open_already", [False, True])
async def test_the_lifespan_opens_it(open_already: bool) -> None:
    """A server that sends the lifespan opens it, unless it is open already."""
    inbox = Inbox()
    sandbox = shop(inbox)
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
        await ordered(sandbox)
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
async def test_a_customer_in_another_thread() -> None:
    """Tasks created from a loop in another thread are announced in the loop that opened it."""
    came = asyncio.Event()

    async def does() -> None:
        came.set()

    inbox = Inbox(does)
    async with shop(inbox, smile=Durations.fixed(0.01)) as sandbox:
        thread = threading.Thread(target=lambda: asyncio.run(ordered(sandbox)))
        thread.start()
        await came.wait()
        thread.join()

    assert [sandbox.ledger.tasks[0].task_id] == inbox.tasks
