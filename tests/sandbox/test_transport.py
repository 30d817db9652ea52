"""The sandbox as an httpx transport."""

import asyncio

import httpx
import pytest

from perfect_async.sandbox import Durations, Faults, Sandbox
from perfect_async.sandbox._engine import picture_format
from tests.sandbox.customer import (
    API,
    FACE,
    TEETH,
    Customer,
    avatar,
    data_of,
    unlimited_sandbox,
)

CREDIT = "/s2s/v1.0/client/credit"
KEY = {"authorization": "Bearer a-key"}


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_without_latency_no_time_passes() -> None:
    """By default a request takes no time, but other tasks run meanwhile."""
    sandbox = unlimited_sandbox()
    turns: list[str] = []

    async def other() -> None:
        turns.append("other")

    async with Customer(sandbox) as customer, asyncio.TaskGroup() as group:
        start = now()
        group.create_task(other())
        await customer.get(CREDIT)
        turns.append("call")

    assert ["other", "call"] == turns
    assert start == now()


async def test_latency_is_the_round_trip() -> None:
    """The round trip takes the latency; the arrival is anywhere in between."""
    sandbox = Sandbox(latency=0.15, requests=10**6, per_second=10**6)
    shares: list[float] = []
    async with Customer(sandbox) as customer:
        for _ in range(300):
            start = now()
            await customer.get(CREDIT)
            assert 0.15 == pytest.approx(now() - start)
            shares.append((sandbox.ledger.log[-1].time - start) / 0.15)

    assert min(shares) < 0.02
    assert max(shares) > 0.98


async def test_jitter_is_added_to_the_latency() -> None:
    """A round trip is between latency and latency plus jitter; a transport may have others."""
    sandbox = Sandbox(latency=5.0, requests=10**6, per_second=10**6)
    trips: list[float] = []
    async with httpx.AsyncClient(
        transport=sandbox.transport(latency=0.1, jitter=0.4), base_url=API
    ) as http:
        for _ in range(300):
            start = now()
            await http.get(CREDIT, headers=KEY)
            trips.append(now() - start)

    assert 0.1 <= min(trips) < 0.12
    assert 0.48 < max(trips) <= 0.5 + 1e-6


async def test_requests_may_overtake_each_other() -> None:
    """With jitter the order of arrival may differ from the order of sending."""
    sandbox = Sandbox(jitter=1.0, requests=10**6, per_second=10**6)
    async with Customer(sandbox) as customer:
        async with asyncio.TaskGroup() as group:
            for count in range(1, 21):
                group.create_task(customer.create(avatar(count), "ai-avatar"))
        found = [task.params["output_count"] for task in sandbox.ledger.tasks]

    assert set(range(1, 21)) == set(found)
    assert list(range(1, 21)) != found


async def test_a_request_cancelled_before_its_arrival() -> None:
    """A request that is cancelled before its arrival is not executed."""
    sandbox = Sandbox(latency=10.0)
    async with Customer(sandbox) as customer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.0001):
                await customer.create()

    assert 0 == sandbox.ledger.units_charged


async def test_a_request_cancelled_after_its_arrival() -> None:
    """A request that is cancelled after its arrival was executed."""
    sandbox = Sandbox(seed=1, latency=10.0)
    async with Customer(sandbox) as customer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(9.9999):
                await customer.create()

    assert 1 == sandbox.ledger.units_charged


async def test_a_hanging_answer_takes_the_latency_too() -> None:
    """The hang is added to the latency, and no timeout of httpx ends it."""
    sandbox = Sandbox(latency=0.5, faults=Faults(hang={"credit": 1.0}))
    async with httpx.AsyncClient(transport=sandbox.transport(), base_url=API, timeout=1) as http:
        start = now()
        answer = await http.get(CREDIT, headers=KEY)

    assert 504 == answer.status_code
    assert 30.5 == pytest.approx(now() - start)


async def test_errors_carry_their_request() -> None:
    """An error has the failed request."""
    sandbox = unlimited_sandbox(Faults(refused_connections={"credit": 1.0}, dropped={"task": 1.0}))
    async with Customer(sandbox) as customer:
        with pytest.raises(httpx.ConnectError) as refused:
            await customer.get(CREDIT)
        with pytest.raises(httpx.RemoteProtocolError) as dropped:
            await customer.create()

    assert CREDIT == refused.value.request.url.path
    assert "/s2s/v2.0/task/ai-smile" == dropped.value.request.url.path


async def test_a_picture_is_processed_with_plain_httpx() -> None:
    """From the bytes of a face to the bytes of its smile."""
    async with Customer(unlimited_sandbox()) as customer:
        body = {"src_file_id": await customer.uploaded(), "expression_type": TEETH}
        task = await customer.task(body)
        await asyncio.sleep(1)
        url = data_of(await customer.poll(task))["results"]["url"]
        first, second = await customer.http.get(url), await customer.http.get(url)

    assert url.partition("?")[0].endswith(".jpg")
    assert "binary/octet-stream" == first.headers["content-type"]
    assert picture_format(first.content) in {"jpeg", "png"}
    assert first.content == second.content


async def test_a_result_named_jpg_may_be_a_png() -> None:
    """Some results are PNG, although their name ends in `.jpg`."""
    async with Customer(unlimited_sandbox()) as customer:
        found: list[str | None] = []
        for _ in range(30):
            task = await customer.task()
            await asyncio.sleep(1)
            url = data_of(await customer.poll(task))["results"]["url"]
            found.append(picture_format((await customer.http.get(url)).content))

    assert {"jpeg", "png"} == set(found)
    assert found.count("png") < found.count("jpeg")


async def test_many_concurrent_jobs_succeed() -> None:
    """Concurrent jobs all succeed, and none loses its lease."""
    sandbox = Sandbox(
        requests=10**6,
        per_second=10**6,
        latency=0.15,
        durations={"ai-smile": Durations.uniform(60.0, 65.0)},
    )

    async def job(customer: Customer) -> str:
        file_id = await customer.uploaded(FACE)
        task = await customer.task({"src_file_id": file_id, "expression_type": TEETH})
        while True:
            await asyncio.sleep(9)
            data = data_of(await customer.poll(task))
            if data["task_status"] != "running":
                return str(data["task_status"])

    async with Customer(sandbox) as customer, asyncio.TaskGroup() as group:
        jobs = [group.create_task(job(customer)) for _ in range(60)]

    assert {"success"} == {found.result() for found in jobs}
    assert 0 == sandbox.ledger.units_wasted
