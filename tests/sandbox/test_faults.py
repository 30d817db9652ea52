"""Faults by chance and by script."""

import asyncio
import hashlib

import httpx
import pytest

from perfect_async.sandbox import ENGINE_ERROR_CODES, KINDS, Durations, Faults, Sandbox, portrait
from tests.sandbox.customer import FACE, TEETH, Customer, data_of, error_of, unlimited_sandbox


@pytest.mark.parametrize("share", [-0.1, 1.1])
@pytest.mark.parametrize("name", ["engine_errors", "stuck", "timeouts", "lost_creations"])
def test_a_probability_is_between_0_and_1(name: str, share: float) -> None:
    """A share outside of 0 to 1 is refused with its name."""
    with pytest.raises(ValueError, match=name):
        Faults(**{name: share})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["refused_connections", "dropped", "hang", "malformed"])
def test_kinds_and_shares_are_checked(name: str) -> None:
    """An unknown kind, and a share outside of 0 to 1, are refused with their names."""
    with pytest.raises(ValueError, match=f"{name} names 'pol'"):
        Faults(**{name: {"pol": 0.1}})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{name}.'poll'. must be a probability"):
        Faults(**{name: {"poll": 2.0}})  # type: ignore[arg-type]


def test_scripts_are_checked() -> None:
    """A script for an unknown kind or with an unknown action is refused."""
    sandbox = Sandbox()

    with pytest.raises(ValueError, match="'polls' is no kind of request"):
        sandbox.script("polls", "drop")
    with pytest.raises(ValueError, match="'explode' is no action"):
        sandbox.script("poll", "explode")  # type: ignore[arg-type]


def test_every_kind_may_have_faults() -> None:
    """All kinds of requests may have faults."""
    faults = Faults(bad_gateway=dict.fromkeys(KINDS, 0.5))

    assert len(KINDS) == len(faults.bad_gateway)


async def test_an_engine_error_returns_the_units() -> None:
    """HTTP 200 with `task_status` error, a code, no results, and returned units."""
    sandbox = unlimited_sandbox(Faults(engine_errors=1.0))
    async with Customer(sandbox) as customer:
        task = await customer.task()
        assert 9999 == sandbox.ledger.balance
        await asyncio.sleep(1)
        data = data_of(await customer.poll(task))

    assert "error" == data["task_status"]
    assert data["error"] in ENGINE_ERROR_CODES
    assert data.get("results") is None
    assert (1, 1, 0, 10_000) == (
        sandbox.ledger.units_charged,
        sandbox.ledger.units_returned,
        sandbox.ledger.units_wasted,
        sandbox.ledger.balance,
    )
    assert data["error"] == sandbox.ledger.tasks[0].error


async def test_the_share_of_engine_errors_is_kept() -> None:
    """About as many tasks fail as configured."""
    sandbox = unlimited_sandbox(Faults(engine_errors=0.3))
    async with Customer(sandbox) as customer:
        tasks = [await customer.task() for _ in range(300)]
        await asyncio.sleep(1)
        for task in tasks:
            await customer.poll(task)

    assert 90 == pytest.approx(sandbox.ledger.tasks_by_state["error"], abs=25)


async def test_a_picture_may_have_an_engine_error() -> None:
    """A file name, a URL or the digest of the bytes selects the engine's error."""
    other = FACE + b"\0"
    digest = hashlib.sha256(other).hexdigest()
    url = "https://pictures.example/two.jpg"
    sandbox = unlimited_sandbox(
        Faults(by_picture={"wall.jpg": "error_no_face", url: "error_pose", digest: "error_nsfw"})
    )
    async with Customer(sandbox) as customer:
        sources = [
            {"src_file_id": await customer.uploaded(name="wall.jpg")},
            {"src_file_url": url},
            {"src_file_id": await customer.uploaded(other)},
            {"src_file_id": await customer.uploaded(name="face.jpg")},
        ]
        tasks = [await customer.task({**source, "expression_type": TEETH}) for source in sources]
        await asyncio.sleep(1)
        found = [data_of(await customer.poll(task)).get("error") for task in tasks]

    assert ["error_no_face", "error_pose", "error_nsfw", None] == found


async def test_a_stuck_task_never_ends() -> None:
    """A stuck task is running while it is polled, and lost without polls."""
    sandbox = unlimited_sandbox(Faults(stuck=1.0))
    async with Customer(sandbox) as customer:
        task = await customer.task()
        for _ in range(200):
            await asyncio.sleep(9)
            assert "running" == data_of(await customer.poll(task))["task_status"]
        assert sandbox.ledger.tasks[0].stuck
        await asyncio.sleep(10.1)

    assert {"expired": 1} == dict(sandbox.ledger.tasks_by_state)
    assert 1 == sandbox.ledger.units_wasted


async def test_a_timeout_is_final() -> None:
    """`500 Task execution timed out` is final, and the units are not returned."""
    sandbox = unlimited_sandbox(Faults(timeouts=1.0))
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(1)
        for _ in range(2):
            assert (500, None, "Task execution timed out") == error_of(await customer.poll(task))

    assert (1, 0, 1) == (
        sandbox.ledger.units_charged,
        sandbox.ledger.units_returned,
        sandbox.ledger.units_wasted,
    )
    assert "timed_out" == sandbox.ledger.tasks[0].state


async def test_a_refused_connection_never_arrives() -> None:
    """The request is neither executed nor counted."""
    sandbox = unlimited_sandbox(Faults(refused_connections={"task": 1.0}))
    async with Customer(sandbox) as customer:
        with pytest.raises(httpx.ConnectError):
            await customer.create()

    assert 0 == sandbox.ledger.requests["task"]
    assert 0 == sandbox.ledger.units_charged


async def test_a_dropped_request_is_not_executed() -> None:
    """It arrives, is not executed, and ends in a protocol error."""
    sandbox = unlimited_sandbox(Faults(dropped={"task": 1.0}))
    async with Customer(sandbox) as customer:
        with pytest.raises(httpx.RemoteProtocolError):
            await customer.create()

    assert 1 == sandbox.ledger.requests["task"]
    assert 0 == sandbox.ledger.log[-1].status
    assert 0 == sandbox.ledger.units_charged


async def test_a_lost_creation_is_charged() -> None:
    """The task is created and charged, its id is lost, and its unit is wasted."""
    sandbox = unlimited_sandbox(Faults(lost_creations=1.0))
    async with Customer(sandbox) as customer:
        with pytest.raises(httpx.RemoteProtocolError):
            await customer.create()
        assert (1, 0) == (sandbox.ledger.units_charged, sandbox.ledger.units_wasted)
        await asyncio.sleep(10.1)

    assert (1, 1) == (sandbox.ledger.units_charged, sandbox.ledger.units_wasted)


async def test_a_hanging_request_is_not_executed() -> None:
    """It takes `hang_seconds`, and ends with a gateway's 504."""
    sandbox = unlimited_sandbox(Faults(hang={"task": 1.0}, hang_seconds=45.0))
    async with Customer(sandbox) as customer:
        start = asyncio.get_running_loop().time()
        answer = await customer.create()

    assert 45.0 == asyncio.get_running_loop().time() - start
    assert (504, "text/html") == (answer.status_code, answer.headers["content-type"])
    assert 0 == sandbox.ledger.units_charged


async def test_a_bad_gateway_executes_nothing() -> None:
    """The answer is a 502 with HTML."""
    sandbox = unlimited_sandbox(Faults(bad_gateway={"task": 1.0}))
    async with Customer(sandbox) as customer:
        answer = await customer.create()

    assert 502 == answer.status_code
    assert "<title>502 Bad Gateway</title>" in answer.text
    assert 0 == sandbox.ledger.units_charged


async def test_a_malformed_answer_is_executed() -> None:
    """The 200 has broken JSON or no task id, although the task was created."""
    sandbox = unlimited_sandbox(Faults(malformed={"task": 1.0}))
    async with Customer(sandbox) as customer:
        answers = [await customer.create() for _ in range(30)]

    assert {200} == {answer.status_code for answer in answers}
    assert not any(b"task_id" in answer.content for answer in answers)
    assert 1 < len({answer.content for answer in answers})
    assert 30 == sandbox.ledger.units_charged


@pytest.mark.parametrize("action", ["drop", "lose", "hang"])
async def test_a_failed_poll_does_not_renew_the_lease(action: str) -> None:
    """The lease runs from the last poll that was answered."""
    sandbox = unlimited_sandbox(Faults(stuck=1.0, hang_seconds=0.0))
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(6)
        sandbox.script("poll", action)  # type: ignore[arg-type]
        try:
            await customer.poll(task)
        except httpx.RemoteProtocolError:
            assert action != "hang"
        await asyncio.sleep(6)
        assert (400, "InvalidTaskId") == error_of(await customer.poll(task))[:2]

    assert 0 == sandbox.ledger.tasks[0].polls


@pytest.mark.parametrize("name", ["bad_gateway", "malformed"])
async def test_a_poll_with_a_bad_answer_does_not_renew_the_lease(name: str) -> None:
    """A 502 and a malformed answer to a poll do not renew the lease."""
    sandbox = unlimited_sandbox(Faults(stuck=1.0))
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(6)
        sandbox.faults = Faults(**{name: {"poll": 1.0}})  # type: ignore[arg-type]
        await customer.poll(task)
        sandbox.faults = Faults()
        await asyncio.sleep(6)
        assert 400 == (await customer.poll(task)).status_code


async def test_a_limited_poll_does_not_renew_the_lease() -> None:
    """A 429 to a poll does not renew the lease."""
    sandbox = Sandbox(requests=2, period=9.0, faults=Faults(stuck=1.0))
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(1)
        await customer.poll(task)
        await asyncio.sleep(7)
        assert 429 == (await customer.poll(task)).status_code
        await asyncio.sleep(7)
        assert 400 == (await customer.poll(task)).status_code


async def test_faults_may_be_assigned_later() -> None:
    """Assigned faults are used from the next request on."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        assert 200 == (await customer.create()).status_code
        sandbox.faults = Faults(bad_gateway={"task": 1.0})
        assert 502 == (await customer.create()).status_code
        sandbox.faults = Faults()
        assert 200 == (await customer.create()).status_code

    assert Faults() == sandbox.faults


async def test_a_fault_changes_no_duration() -> None:
    """The same seed gives the same durations, with and without faults."""
    found: list[list[float]] = []
    for faults in (Faults(), Faults(engine_errors=0.5, bad_gateway={"poll": 0.5}, timeouts=0.1)):
        sandbox = unlimited_sandbox(faults, seed=5, smile=Durations(8.0, 0.35))
        async with Customer(sandbox) as customer:
            for _ in range(20):
                await customer.poll(await customer.task())
        found.append([task.duration for task in sandbox.ledger.tasks])

    assert found[0] == found[1]
    assert 20 == len(set(found[0]))


async def test_a_higher_probability_only_adds_cases() -> None:
    """A higher probability keeps the earlier cases."""
    found: list[set[int]] = []
    for share in (0.2, 0.4):
        sandbox = unlimited_sandbox(Faults(stuck=share))
        async with Customer(sandbox) as customer:
            for _ in range(100):
                await customer.task()
        found.append({i for i, task in enumerate(sandbox.ledger.tasks) if task.stuck})

    assert found[0] < found[1]


async def test_a_script_takes_precedence_until_its_end() -> None:
    """Prepared answers come in order, then ordinary ones again."""
    sandbox = unlimited_sandbox(Faults(bad_gateway={"credit": 1.0}))
    sandbox.script("credit", (500, {"status": 500, "error": "x"}), "pass", (503, "<b>busy</b>"))
    async with Customer(sandbox) as customer:
        answers = [await customer.get("/s2s/v1.0/client/credit") for _ in range(4)]

    assert [500, 200, 503, 502] == [answer.status_code for answer in answers]
    assert (500, None, "x") == error_of(answers[0])
    assert ("text/html", "<b>busy</b>") == (answers[2].headers["content-type"], answers[2].text)


async def test_a_script_may_refuse_a_connection() -> None:
    """A script can refuse one connection."""
    sandbox = unlimited_sandbox()
    sandbox.script("file", "refuse")
    async with Customer(sandbox) as customer:
        with pytest.raises(httpx.ConnectError):
            await customer.file()
        assert (await customer.file())["file_id"]


async def test_a_scripted_answer_counts_for_the_limits() -> None:
    """A prepared answer is an arrival like any other."""
    sandbox = Sandbox(per_second=1)
    sandbox.script("credit", (418, {}))
    async with Customer(sandbox) as customer:
        first = await customer.get("/s2s/v1.0/client/credit")
        second = await customer.get("/s2s/v1.0/client/credit")

    assert [418, 429] == [first.status_code, second.status_code]


async def test_a_task_id_may_be_repeated() -> None:
    """The second creation has the id of the first; both tasks are charged."""
    sandbox = unlimited_sandbox(Faults(repeated_task_ids=1.0))
    async with Customer(sandbox) as customer:
        ids = [await customer.task() for _ in range(2)]

    assert ids[0] == ids[1]
    assert 2 == sandbox.ledger.units_charged == len({t.task_id for t in sandbox.ledger.tasks})


async def test_a_file_id_may_be_repeated() -> None:
    """The second file has the id of the first, whose bytes a task then uses."""
    sandbox = unlimited_sandbox(Faults(repeated_file_ids=1.0))
    async with Customer(sandbox) as customer:
        first = await customer.uploaded(FACE, "first.jpg")
        second = await customer.uploaded(portrait(8, 64), "second.jpg")
        await customer.task({"src_file_id": second, "expression_type": TEETH})

    assert first == second
    assert "first.jpg" == sandbox.ledger.tasks[0].file_name


async def test_a_429_may_be_drawn() -> None:
    """A drawn 429 executes nothing and counts as refused."""
    sandbox = unlimited_sandbox(Faults(limited={"history": 1.0, "task": 1.0}))
    async with Customer(sandbox) as customer:
        answers = [await customer.get("/s2s/v1.0/client/credit/history"), await customer.create()]

    assert [429, 429] == [answer.status_code for answer in answers]
    assert {"history": 1, "task": 1} == dict(sandbox.ledger.refused)
    assert 0 == sandbox.ledger.units_charged


async def test_a_gateway_may_hide_the_answer() -> None:
    """`lose_502` executes the request and answers like a gateway."""
    sandbox = unlimited_sandbox()
    sandbox.script("task", "lose_502")
    async with Customer(sandbox) as customer:
        answer = await customer.create()

    assert (502, "text/html") == (answer.status_code, answer.headers["content-type"])
    assert 1 == sandbox.ledger.units_charged
