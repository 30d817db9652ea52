"""The lease, the end, and deletion (contract: Expiry and charging)."""

import asyncio
from urllib.parse import unquote

import pytest

from perfect_async.sandbox import Durations, Faults, Sandbox
from tests.sandbox.customer import (
    FACE,
    SMILE,
    TEETH,
    Customer,
    avatar,
    data_of,
    error_of,
    unlimited_sandbox,
)

LONG = {"ai-smile": Durations.fixed(35.0), "ai-avatar": Durations.fixed(60.0)}
DAY = 86_400


async def test_a_smile_runs_and_succeeds() -> None:
    """The task is running until the engine is done, then a success with one URL."""
    async with Customer(Sandbox(durations=LONG)) as customer:
        task = await customer.task()
        seen = []
        for _ in range(4):
            await asyncio.sleep(9)
            seen.append(data_of(await customer.poll(task)))

    assert ["running", "running", "running", "success"] == [data["task_status"] for data in seen]
    assert {"url"} == set(seen[-1]["results"])
    assert seen[-1].get("error") is None


async def test_the_end_is_the_instant_of_the_duration() -> None:
    """A poll at exactly the duration reports the end."""
    async with Customer(unlimited_sandbox(smile=Durations.fixed(8.0))) as customer:
        task = await customer.task()
        await asyncio.sleep(7.999)
        assert "running" == data_of(await customer.poll(task))["task_status"]
        await asyncio.sleep(0.001)
        assert "success" == data_of(await customer.poll(task))["task_status"]


async def test_a_lease_holds_for_ten_seconds() -> None:
    """Polls ten seconds apart keep a task."""
    sandbox = Sandbox(durations=LONG)
    async with Customer(sandbox) as customer:
        task = await customer.task()
        states = []
        for _ in range(4):
            await asyncio.sleep(10)
            states.append(data_of(await customer.poll(task))["task_status"])

    assert ["running", "running", "running", "success"] == states
    assert 4 == sandbox.ledger.tasks[0].polls


async def test_a_lease_does_not_hold_longer() -> None:
    """A poll that is a millisecond late finds no task, and the unit is not returned."""
    sandbox = Sandbox(durations=LONG)
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(10.001)
        assert (400, "InvalidTaskId") == error_of(await customer.poll(task))[:2]

    assert (1, 0, 1, 999) == (
        sandbox.ledger.units_charged,
        sandbox.ledger.units_returned,
        sandbox.ledger.units_wasted,
        sandbox.ledger.balance,
    )
    assert [] == sandbox.ledger.violations


async def test_an_expired_task_stays_expired() -> None:
    """Also after the engine is done, and forever."""
    async with Customer(unlimited_sandbox()) as customer:
        task = await customer.task()
        await asyncio.sleep(11)
        for _ in range(3):
            assert 400 == (await customer.poll(task)).status_code
            await asyncio.sleep(1)


async def test_an_unpolled_engine_error_is_not_refunded() -> None:
    """If the lease runs out first, the units of a failed task are not returned."""
    sandbox = unlimited_sandbox(Faults(engine_errors=1.0))
    async with Customer(sandbox) as customer:
        await customer.task()
        await asyncio.sleep(11)

    assert (0, 1) == (sandbox.ledger.units_returned, sandbox.ledger.units_wasted)


async def test_the_lease_is_a_setting() -> None:
    """With a longer lease polls may be rarer."""
    async with Customer(Sandbox(durations=LONG, lease=30)) as customer:
        task = await customer.task()
        await asyncio.sleep(30)
        assert 200 == (await customer.poll(task)).status_code


async def test_a_reported_task_needs_no_more_polls() -> None:
    """A reported task has no lease; each later poll gives a new URL, for a day."""
    async with Customer(unlimited_sandbox()) as customer:
        task = await customer.task()
        await asyncio.sleep(1)
        urls = [data_of(await customer.poll(task))["results"]["url"]]
        urls.append(data_of(await customer.poll(task))["results"]["url"])
        await asyncio.sleep(DAY - 1)
        urls.append(data_of(await customer.poll(task))["results"]["url"])
        assert 200 == (await customer.http.get(urls[-1])).status_code
        await asyncio.sleep(2)
        assert (400, "InvalidTaskId") == error_of(await customer.poll(task))[:2]

    assert 3 == len(set(urls))


async def test_an_error_is_reported_again() -> None:
    """A failed task reports the same code each time, and returns its units once."""
    sandbox = unlimited_sandbox(Faults(engine_errors=1.0))
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(1)
        codes = {data_of(await customer.poll(task))["error"] for _ in range(5)}

    assert 1 == len(codes)
    assert 10_000 == sandbox.ledger.balance


async def test_nulls_may_be_absent() -> None:
    """`error`, `results` and `error_message` are null or absent."""
    sandbox = unlimited_sandbox(Faults(engine_errors=0.5))
    shapes: set[tuple[str, ...]] = set()
    async with Customer(sandbox) as customer:
        for _ in range(60):
            task = await customer.task()
            shapes.add(tuple(data_of(await customer.poll(task))))
            await asyncio.sleep(1)
            shapes.add(tuple(data_of(await customer.poll(task))))

    assert {
        ("task_status",),
        ("task_status", "error"),
        ("task_status", "results"),
        ("task_status", "error", "results"),
        ("task_status", "error", "error_message"),
        ("task_status", "error", "error_message", "results"),
    } == shapes


async def test_the_polling_interval_is_optional() -> None:
    """The interval is absent by default, and in milliseconds if set."""
    for interval in (None, 1000):
        async with Customer(Sandbox(polling_interval=interval)) as customer:
            data = data_of(await customer.poll(await customer.task()))
        assert interval == data.get("polling_interval")
        assert (interval is not None) == ("polling_interval" in data)


async def test_a_running_avatar_shows_partial_results() -> None:
    """Results grow while the task runs, and are whole only at success."""
    async with Customer(unlimited_sandbox()) as customer:
        task = await customer.task(avatar(4), "ai-avatar")
        seen = []
        for _ in range(5):
            seen.append(data_of(await customer.poll(task, "ai-avatar")))
            await asyncio.sleep(2)
        output = seen[-1]["results"]["output"]
        for entry in output:
            assert 200 == (await customer.http.get(entry["url"])).status_code
    shown = [data.get("results") or {"output": []} for data in seen]

    assert ["running"] * 4 + ["success"] == [data["task_status"] for data in seen]
    assert [0, 1, 2, 3, 4] == [len(results["output"]) for results in shown]
    assert 4 == len({entry["url"] for entry in output})


async def test_a_failing_avatar_shows_none() -> None:
    """A task that will fail has no partial results."""
    async with Customer(unlimited_sandbox(Faults(engine_errors=1.0))) as customer:
        task = await customer.task(avatar(4), "ai-avatar")
        await asyncio.sleep(6)
        assert data_of(await customer.poll(task, "ai-avatar")).get("results") is None


async def test_an_unknown_task_is_not_a_violation() -> None:
    """An unknown id is an InvalidTaskId and not a violation, since users type ids."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        assert (400, "InvalidTaskId") == error_of(await customer.poll("nobody"))[:2]

    assert [] == sandbox.ledger.violations


async def test_a_task_of_another_feature_is_unknown() -> None:
    """A smile that is polled as an avatar is unknown, a violation, and not renewed."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        task = await customer.task()
        assert 400 == (await customer.poll(task, "ai-avatar")).status_code

    assert ["poll: a task of ai-smile asked as one of ai-avatar"] == sandbox.ledger.violations
    assert 0 == sandbox.ledger.tasks[0].polls


async def test_ids_are_url_safe_by_default() -> None:
    """An id has 107 URL-safe characters."""
    async with Customer(unlimited_sandbox()) as customer:
        task = await customer.task()

    assert 107 == len(task)
    assert task.replace("-", "").replace("_", "").isalnum()


async def test_ids_may_need_encoding() -> None:
    """With `base64`, ids have `/`, `+` and `=`, and work if percent-encoded."""
    sandbox = unlimited_sandbox(task_ids="base64")
    async with Customer(sandbox) as customer:
        task = await customer.task()
        assert set("/+=") <= set(task)
        assert 200 == (await customer.poll(task)).status_code
        raw = await customer.get(f"/s2s/v2.0/task/ai-smile/{task}")

    assert 404 == raw.status_code
    assert ["unknown: task_id not percent-encoded"] == sandbox.ledger.violations


async def test_credit_insufficiency_refuses_the_creation() -> None:
    """Only a creation is refused, and a cheaper one passes."""
    sandbox = Sandbox(units=2)
    async with Customer(sandbox) as customer:
        refused = await customer.create(avatar(9), "ai-avatar")
        taken = await customer.create(avatar(8), "ai-avatar")
        again = await customer.create(SMILE)

    assert (400, "CreditInsufficiency") == error_of(refused)[:2]
    assert 200 == taken.status_code
    assert (400, "CreditInsufficiency") == error_of(again)[:2]
    assert 0 == sandbox.ledger.balance
    assert [] == sandbox.ledger.violations


@pytest.mark.parametrize(
    ("data", "feature", "code"),
    [
        (b"GIF89a" + bytes(20), "ai-smile", "error_decode_image"),
        (b"", "ai-smile", None),
        (b"\0\0\0\x18ftypheic" + bytes(20), "ai-smile", None),
        (b"\0\0\0\x18ftypheic" + bytes(20), "ai-avatar", "error_decode_image"),
        (b"\xff\xd8\xff" + bytes(10 * 2**20), "ai-smile", "exceed_max_filesize"),
    ],
)
async def test_the_engine_checks_the_bytes(data: bytes, feature: str, code: str | None) -> None:
    """Formats that a feature does not accept and too large files are engine errors."""
    async with Customer(unlimited_sandbox()) as customer:
        body = {**avatar(), "expression_type": TEETH}
        body["src_file_id"] = await customer.uploaded(data or FACE)
        del body["src_file_url"]
        task = await customer.task(body, feature)
        await asyncio.sleep(8)
        found = data_of(await customer.poll(task, feature))

    assert code == found.get("error")


async def test_deletion_removes_the_files() -> None:
    """The task, its outputs and its input file are deleted; result URLs are 404 at once."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        body = {"src_file_id": await customer.uploaded(), "expression_type": TEETH}
        task, second = await customer.task(body), await customer.task(body)
        await asyncio.sleep(1)
        url = data_of(await customer.poll(task))["results"]["url"]
        other = data_of(await customer.poll(second))["results"]["url"]
        assert 200 == (await customer.http.get(url)).status_code

        answer = await customer.delete(task)

        assert {"status": 200} == answer.json()
        gone = await customer.http.get(url)
        assert (404, True) == (gone.status_code, "NoSuchKey" in gone.text)
        assert 400 == (await customer.poll(task)).status_code
        assert 400 == (await customer.create(body)).status_code
        assert 200 == (await customer.http.get(other)).status_code

    assert {"deleted": 1, "success": 1} == dict(sandbox.ledger.tasks_by_state)
    assert (2, 0, 0) == (
        sandbox.ledger.units_charged,
        sandbox.ledger.units_returned,
        sandbox.ledger.units_wasted,
    )


async def test_a_deleted_file_accepts_no_upload() -> None:
    """An upload for a deleted file finds no key."""
    async with Customer(unlimited_sandbox()) as customer:
        entry = await customer.file()
        await customer.put(entry, FACE)
        task = await customer.task({"src_file_id": entry["file_id"], "expression_type": TEETH})
        await asyncio.sleep(1)
        await customer.delete(task)
        assert 404 == (await customer.put(entry, FACE)).status_code


async def test_an_unpolled_finished_task_can_be_deleted() -> None:
    """A task that the engine has finished can be deleted before a poll reports it."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(1)
        assert 200 == (await customer.delete(task)).status_code
        assert (400, "OperationNotSupport") == error_of(await customer.delete(task))[:2]

    assert 0 == sandbox.ledger.units_wasted


async def test_a_running_task_cannot_be_deleted() -> None:
    """An unfinished task is an OperationInvalid."""
    async with Customer(Sandbox(durations=LONG)) as customer:
        answer = await customer.delete(await customer.task())

    assert (400, "OperationInvalid") == error_of(answer)[:2]


@pytest.mark.parametrize("wait", [None, 11])
async def test_an_unknown_task_cannot_be_deleted(wait: float | None) -> None:
    """An unknown or expired id cannot be deleted."""
    async with Customer(unlimited_sandbox()) as customer:
        task = "nobody" if wait is None else await customer.task()
        await asyncio.sleep(wait or 0)
        assert (400, "OperationNotSupport") == error_of(await customer.delete(task))[:2]


async def test_deletion_needs_an_id() -> None:
    """`task_id` is required."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.post("/s2s/v2.0/task/delete", {})

    assert (400, "InvalidParameters") == error_of(answer)[:2]


async def test_ids_are_decoded_once() -> None:
    """An id in a path is decoded once."""
    async with Customer(unlimited_sandbox(task_ids="base64")) as customer:
        task = await customer.task()
        answer = await customer.poll(task)
        path = answer.request.url.raw_path.decode()

    assert task not in path
    assert unquote(path).endswith(task)


async def test_the_lease_may_be_the_polling_interval() -> None:
    """A task is lost if it is not polled within the interval of its answers."""
    sandbox = Sandbox(durations=LONG, lease="polling_interval", polling_interval=3000)
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(3)
        assert 200 == (await customer.poll(task)).status_code
        await asyncio.sleep(3.001)
        assert 400 == (await customer.poll(task)).status_code


async def test_the_lease_may_be_the_retention() -> None:
    """A running task is kept for a day without polls, but not longer."""
    forever = {"ai-smile": Durations.fixed(9 * DAY)}
    async with Customer(Sandbox(durations=forever, lease="retention")) as customer:
        task = await customer.task()
        await asyncio.sleep(DAY)
        assert "running" == data_of(await customer.poll(task))["task_status"]
        await asyncio.sleep(DAY + 1)
        assert 400 == (await customer.poll(task)).status_code


async def test_the_lease_may_be_flexible() -> None:
    """A running task needs no polls; its result is kept for a day after the engine's end."""
    week = {"ai-smile": Durations.fixed(7 * DAY)}
    async with Customer(Sandbox(durations=week, lease="flexible")) as customer:
        first, second = await customer.task(), await customer.task()
        await asyncio.sleep(8 * DAY)
        assert "success" == data_of(await customer.poll(first))["task_status"]
        await asyncio.sleep(1)
        assert 400 == (await customer.poll(second)).status_code


async def test_the_retention_is_a_setting() -> None:
    """A finished task is kept for thirty days if the retention is as long."""
    sandbox = Sandbox(durations={"ai-smile": Durations.fixed(1)}, retention=30 * DAY)
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(1)
        await customer.poll(task)
        await asyncio.sleep(30 * DAY)
        assert 200 == (await customer.poll(task)).status_code
        await asyncio.sleep(1)
        assert 400 == (await customer.poll(task)).status_code


def test_wrong_leases_are_refused() -> None:
    """An unknown reading is refused, and so is the polling interval without an interval."""
    with pytest.raises(
        ValueError, match=r"lease must be a number of seconds or one of polling_interval, .*'long'"
    ):
        Sandbox(lease="long")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a polling_interval"):
        Sandbox(lease="polling_interval")
    with pytest.raises(ValueError, match="charging must be one of creation, success, not 'never'"):
        Sandbox(charging="never")  # type: ignore[arg-type]


async def test_a_success_is_charged_when_the_engine_ends() -> None:
    """If only a success is charged, units are reserved first and charged at the end."""
    sandbox = Sandbox(units=1, durations={"ai-smile": Durations.fixed(5)}, charging="success")
    async with Customer(sandbox) as customer:
        task = await customer.task()
        refused = await customer.create()
        assert (0, 1) == (sandbox.ledger.units_charged, sandbox.ledger.balance)
        await asyncio.sleep(5)
        assert (1, 0) == (sandbox.ledger.units_charged, sandbox.ledger.balance)
        assert "success" == data_of(await customer.poll(task))["task_status"]

    assert (400, "CreditInsufficiency") == error_of(refused)[:2]


@pytest.mark.parametrize("faults", [Faults(engine_errors=1.0), Faults(timeouts=1.0)])
async def test_a_failure_is_not_charged(faults: Faults) -> None:
    """If only a success is charged, a failure does not change the units."""
    sandbox = Sandbox(
        units=1, durations={"ai-smile": Durations.fixed(5)}, charging="success", faults=faults
    )
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(5)
        await customer.poll(task)
        history = (await customer.get("/s2s/v1.0/client/credit/history")).json()["result"]
        assert 200 == (await customer.create()).status_code

    assert [] == history["history"]
    assert (0, 0, 0, 1) == (
        sandbox.ledger.units_charged,
        sandbox.ledger.units_returned,
        sandbox.ledger.units_wasted,
        sandbox.ledger.balance,
    )


async def test_a_lost_task_is_charged_when_its_engine_succeeds() -> None:
    """The engine does not stop with the lease, so a lost task is charged at its end."""
    sandbox = Sandbox(durations={"ai-smile": Durations.fixed(20)}, charging="success", epoch=1e9)
    async with Customer(sandbox) as customer:
        await customer.task()
        await asyncio.sleep(15)
        assert (0, {"expired": 1}) == (
            sandbox.ledger.units_wasted,
            dict(sandbox.ledger.tasks_by_state),
        )
        await asyncio.sleep(15)
        row = (await customer.get("/s2s/v1.0/client/credit/history")).json()["result"]["history"]

    assert 1 == sandbox.ledger.units_wasted == sandbox.ledger.units_charged
    assert [1e12 + 20_000] == [each["timestamp"] for each in row]
