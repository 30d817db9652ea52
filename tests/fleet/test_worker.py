"""The queue on a real Redis server, with workers in this process, in real time."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from streaq import Worker as Engine

from perfect_async import Client, ConfigurationError, Limits, Smile, Unauthorized
from perfect_async._runtime import driver as drivers
from perfect_async.fleet import Answer, Order, Worker, enqueue, make_order
from perfect_async.sandbox import Durations, Sandbox
from tests.support.redis_server import RedisServer
from tests.support.sandboxed import FACE, KEY

pytestmark = pytest.mark.real_time

StartRedis = Callable[..., RedisServer]


class Fleet:
    """Workers on one queue, in front of one sandbox, and their answers."""

    def __init__(self, redis: RedisServer, folder: Path, duration: float = 0.2) -> None:
        durations = {"ai-smile": Durations.fixed(duration)}
        self.sandbox = Sandbox(durations=durations, requests=10_000, per_second=1000)
        self.redis = redis
        self.folder = folder
        self.answers: list[tuple[Order, Answer]] = []
        self.answered = anyio.Event()
        self.limits = Limits(10_000, 300.0, 1000)

    def orders(self, count: int) -> list[Order]:
        found: list[Order] = []
        for number in range(count):
            picture = self.folder / f"{number}.jpg"
            picture.write_bytes(FACE + bytes([number]))
            found.append(make_order(Smile(picture), self.folder / "out"))
        return found

    def client(self) -> Client:
        # One driver serves all clients of a loop with the same key; this is its registry.
        drivers._drivers.clear()
        transport = self.sandbox.transport()
        share = self.redis.url()
        return Client(KEY, transport=transport, limits=self.limits, share=share, reuse=True)

    def _answer(self, order: Order, answer: Answer) -> None:
        self.answers.append((order, answer))
        self.answered.set()

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Worker]:
        worker = Worker(
            self.redis.url(), [self.folder], make_client=self.client, on_answer=self._answer
        )
        async with anyio.create_task_group() as group:
            group.start_soon(worker.run)
            yield worker
            worker.stop()

    async def wait_for(self, count: int) -> None:
        while len(self.answers) < count:
            self.answered = anyio.Event()
            await self.answered.wait()

    async def pending(self) -> int:
        async with Engine(redis_url=self.redis.url(), queue_name="perfect_async") as engine:
            return await engine.queue_size()


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - others change it
        await anyio.sleep(0.05)


@pytest.fixture
def fleet(redis_server: RedisServer, tmp_path: Path) -> Fleet:
    return Fleet(redis_server, tmp_path)


async def test_orders_are_performed_and_acknowledged(fleet: Fleet) -> None:
    """Two workers perform each order once, and the queue is empty afterwards."""
    orders = fleet.orders(6)
    assert 6 == await enqueue(fleet.redis.url(), orders)
    # No worker has begun, so the same orders are still in the queue.
    await enqueue(fleet.redis.url(), orders)
    async with fleet.worker(), fleet.worker():
        await fleet.wait_for(6)

    assert [True] * 6 == [answer["ok"] for _, answer in fleet.answers]
    assert 6 == len(fleet.sandbox.ledger.tasks)
    assert 6 == len(list((fleet.folder / "out").iterdir()))
    assert 0 == await fleet.pending()


async def test_a_finished_order_is_answered_again_for_free(fleet: Fleet) -> None:
    """An order that is delivered again after its end is answered from the same task."""
    for _ in range(2):
        await enqueue(fleet.redis.url(), fleet.orders(1))
        async with fleet.worker():
            await fleet.wait_for(len(fleet.answers) + 1)

    [(_, first), (_, second)] = fleet.answers
    assert first == second
    assert 1 == len(fleet.sandbox.ledger.tasks)


async def test_a_stopped_worker_returns_its_orders(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Stopping performs the orders with running tasks; the next worker gets the others at once."""
    fleet = Fleet(redis_server, tmp_path, duration=1.0)
    fleet.sandbox = Sandbox(
        durations={"ai-smile": Durations.fixed(1.0)}, requests=10_000, per_second=2
    )
    await enqueue(redis_server.url(), fleet.orders(6))
    fleet.limits = Limits(10_000, 300.0, 2)
    async with fleet.worker():
        await until(lambda: bool(fleet.sandbox.ledger.tasks))
    performed = len(fleet.answers)
    created = len(fleet.sandbox.ledger.tasks)
    async with fleet.worker():
        await fleet.wait_for(6)

    assert 0 < performed == created < 6
    assert 6 == len(fleet.sandbox.ledger.tasks)
    assert [True] * 6 == [answer["ok"] for _, answer in fleet.answers]


async def test_hostile_messages_do_no_harm(fleet: Fleet) -> None:
    """A message that is not an order is answered; invalid JSON and a pickle are dropped."""
    async with Engine(redis_url=fleet.redis.url(), queue_name="perfect_async") as pickled:
        _ = await pickled.enqueue_unsafe("perform", {"feature": "ai-smile"})
    await enqueue(fleet.redis.url(), [{"feature": "?"}, *fleet.orders(1)])
    async with fleet.worker():
        await fleet.wait_for(2)

    assert {False, True} == {answer["ok"] for _, answer in fleet.answers}
    assert 0 == await fleet.pending()


async def test_a_wrong_key_stops_the_worker_and_loses_no_order(fleet: Fleet) -> None:
    """The worker raises, and the order waits for a worker with a right key."""
    await enqueue(fleet.redis.url(), fleet.orders(1))
    fleet.sandbox.script("file", (401, {"status": 401, "error": "Invalid token"}))
    worker = Worker(fleet.redis.url(), [fleet.folder], make_client=fleet.client)
    with pytest.raises(Unauthorized):
        await worker.run()

    assert 1 == await fleet.pending()


async def test_a_worker_survives_a_restart_of_redis(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker goes on with the orders of a restarted server."""
    async with fleet.worker():
        await enqueue(fleet.redis.url(), fleet.orders(1))
        await fleet.wait_for(1)
        fleet.redis.kill()
        await until(lambda: "cannot be reached" in caplog.text)
        fleet.redis.start()
        await enqueue(fleet.redis.url(), fleet.orders(2)[1:])
        await fleet.wait_for(2)

    assert [True, True] == [answer["ok"] for _, answer in fleet.answers]


async def test_an_unreachable_server_is_an_error() -> None:
    """The error names the server without its password."""
    with pytest.raises(ConfigurationError, match="cannot be used") as raised:
        await enqueue("redis://user:secret@127.0.0.1:1/0", [])

    assert "secret" not in str(raised.value)


async def test_without_streaq_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named if the library is missing."""
    monkeypatch.setitem(sys.modules, "streaq", None)
    with pytest.raises(ConfigurationError, match=r"perfect_async\[fleet\]"):
        Worker("redis://host", ["/shared"])


def test_streaq_is_loaded_when_it_is_used() -> None:
    """Importing the module imports neither streaq nor coredis."""
    code = "import sys, perfect_async.fleet; print({'streaq', 'coredis', 'redis'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "set()" == found.stdout.strip()
