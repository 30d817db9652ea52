"""What goes wrong on request."""

import asyncio
import hashlib

import httpx
import pytest

from perfect_async.sandbox import ENGINE_ERROR_CODES, KINDS, Durations, Faults, Sandbox, portrait
from tests.sandbox.customer import FACE, TEETH, Customer, data_of, error_of, roomy


@pytest.mark.parametrize("share", [-0.1, 1.1])
@pytest.mark.parametrize("name", ["engine_errors", "stuck", "timeouts", "lost_creations"])
def test_a_probability_is_between_0_and_1(name: str, share: float) -> None:
    """A share outside 0..1 is refused with its name."""
    with pytest.raises(ValueError, match=name):
        Faults(**{name: share})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["refused_connections", "dropped", "hang", "malformed"])
def test_kinds_and_shares_are_checked(name: str) -> None:
    """A kind that does not exist, or a share outside 0..1, is refused with its name."""
    with pytest.raises(ValueError, match=f"{name} names 'pol'"):
        Faults(**{name: {"pol": 0.1}})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"{name}.'poll'. is a probability"):
        Faults(**{name: {"poll": 2.0}})  # type: ignore[arg-type]


def test_scripts_are_checked() -> None:
    """A script for an unknown kind or with an unknown action is refused."""
    sandbox = Sandbox()

    with pytest.raises(ValueError, match="no requests of kind 'polls'"):
        sandbox.script("polls", "drop")
    with pytest.raises(ValueError, match="no action 'explode'"):
        sandbox.script("poll", "explode")  # type: ignore[arg-type]


def test_every_kind_can_be_named() -> None:
    """All kinds of calls may have faults."""
    faults = Faults(bad_gateway=dict.fromkeys(KINDS, 0.5))

    assert len(KINDS) == len(faults.bad_gateway)


async def test_an_engine_error_gives_the_units_back() -> None:
    """HTTP 200 with `task_status` error, a code of the list, no results, units returned."""
    sandbox = roomy(Faults(engine_errors=1.0))
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


async def test_the_share_of_engine_errors() -> None:
    """About as many tasks fail as asked for."""
    sandbox = roomy(Faults(engine_errors=0.3))
    async with Customer(sandbox) as customer:
        tasks = [await customer.task() for _ in range(300)]
        await asyncio.sleep(1)
        for task in tasks:
            await customer.poll(task)

    assert 90 == pytest.approx(sandbox.ledger.tasks_by_state["error"], abs=25)


async def test_an_engine_error_by_picture() -> None:
    """A file name, a URL or the digest of the bytes can name what the engine finds."""
    other = FACE + b"\0"
    digest = hashlib.sha256(other).hexdigest()
    url = "https://pictures.example/two.jpg"
    sandbox = roomy(
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


async def test_a_stuck_task_runs_for_ever() -> None:
    """A stuck task is running as long as it is polled, and lost when it is not."""
    sandbox = roomy(Faults(stuck=1.0))
    async with Customer(sandbox) as customer:
        task = await customer.task()
        for _ in range(200):
            await asyncio.sleep(9)
            assert "running" == data_of(await customer.poll(task))["task_status"]
        assert sandbox.ledger.tasks[0].stuck
        await asyncio.sleep(10.1)

    assert {"expired": 1} == dict(sandbox.ledger.tasks_by_state)
    assert 1 == sandbox.ledger.units_wasted


async def test_a_task_that_times_out() -> None:
    """`500 Task execution timed out` is final, and its units are gone."""
    sandbox = roomy(Faults(timeouts=1.0))
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


async def test_a_refused_connection() -> None:
    """It never arrives: nothing is executed, counted or booked."""
    sandbox = roomy(Faults(refused_connections={"task": 1.0}))
    async with Customer(sandbox) as customer:
        with pytest.raises(httpx.ConnectError):
            await customer.create()

    assert 0 == sandbox.ledger.requests["task"]
    assert 0 == sandbox.ledger.units_charged


async def test_a_dropped_call() -> None:
    """It arrives, is not executed, and ends in a protocol error."""
    sandbox = roomy(Faults(dropped={"task": 1.0}))
    async with Customer(sandbox) as customer:
        with pytest.raises(httpx.RemoteProtocolError):
            await customer.create()

    assert 1 == sandbox.ledger.requests["task"]
    assert 0 == sandbox.ledger.log[-1].status
    assert 0 == sandbox.ledger.units_charged


async def test_a_lost_creation() -> None:
    """The task is created and charged, its id is lost, and its unit is wasted."""
    sandbox = roomy(Faults(lost_creations=1.0))
    async with Customer(sandbox) as customer:
        with pytest.raises(httpx.RemoteProtocolError):
            await customer.create()
        assert (1, 0) == (sandbox.ledger.units_charged, sandbox.ledger.units_wasted)
        await asyncio.sleep(10.1)

    assert (1, 1) == (sandbox.ledger.units_charged, sandbox.ledger.units_wasted)


async def test_a_hanging_call() -> None:
    """It takes `hang_seconds`, ends in a gateway's 504, and was not executed."""
    sandbox = roomy(Faults(hang={"task": 1.0}, hang_seconds=45.0))
    async with Customer(sandbox) as customer:
        start = asyncio.get_running_loop().time()
        answer = await customer.create()

    assert 45.0 == asyncio.get_running_loop().time() - start
    assert (504, "text/html") == (answer.status_code, answer.headers["content-type"])
    assert 0 == sandbox.ledger.units_charged


async def test_a_bad_gateway() -> None:
    """A 502 with HTML, not executed."""
    sandbox = roomy(Faults(bad_gateway={"task": 1.0}))
    async with Customer(sandbox) as customer:
        answer = await customer.create()

    assert 502 == answer.status_code
    assert "<title>502 Bad Gateway</title>" in answer.text
    assert 0 == sandbox.ledger.units_charged


async def test_a_malformed_answer() -> None:
    """A 200 that is broken JSON or has no task id; the task was created all the same."""
    sandbox = roomy(Faults(malformed={"task": 1.0}))
    async with Customer(sandbox) as customer:
        answers = [await customer.create() for _ in range(30)]

    assert {200} == {answer.status_code for answer in answers}
    assert not any(b"task_id" in answer.content for answer in answers)
    assert 1 < len({answer.content for answer in answers})
    assert 30 == sandbox.ledger.units_charged


@pytest.mark.parametrize("action", ["drop", "lose", "hang"])
async def test_a_poll_that_went_wrong_renews_nothing(action: str) -> None:
    """The lease runs from the last poll that was answered."""
    sandbox = roomy(Faults(stuck=1.0, hang_seconds=0.0))
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
async def test_a_poll_with_a_bad_answer_renews_nothing(name: str) -> None:
    """502s and malformed answers are no keep-alive either."""
    sandbox = roomy(Faults(stuck=1.0))
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(6)
        sandbox.faults = Faults(**{name: {"poll": 1.0}})  # type: ignore[arg-type]
        await customer.poll(task)
        sandbox.faults = Faults()
        await asyncio.sleep(6)
        assert 400 == (await customer.poll(task)).status_code


async def test_a_refused_poll_renews_nothing() -> None:
    """A 429 to a poll is no keep-alive."""
    sandbox = Sandbox(requests=2, period=9.0, faults=Faults(stuck=1.0))
    async with Customer(sandbox) as customer:
        task = await customer.task()
        await asyncio.sleep(1)
        await customer.poll(task)
        await asyncio.sleep(7)
        assert 429 == (await customer.poll(task)).status_code
        await asyncio.sleep(7)
        assert 400 == (await customer.poll(task)).status_code


async def test_faults_are_switched_on_in_the_middle() -> None:
    """Assigning `faults` counts from the next call on."""
    sandbox = roomy()
    async with Customer(sandbox) as customer:
        assert 200 == (await customer.create()).status_code
        sandbox.faults = Faults(bad_gateway={"task": 1.0})
        assert 502 == (await customer.create()).status_code
        sandbox.faults = Faults()
        assert 200 == (await customer.create()).status_code

    assert Faults() == sandbox.faults


async def test_a_fault_moves_no_duration() -> None:
    """The same seed gives the same durations, with and without faults."""
    found: list[list[float]] = []
    for faults in (Faults(), Faults(engine_errors=0.5, bad_gateway={"poll": 0.5}, timeouts=0.1)):
        sandbox = roomy(faults, seed=5, smile=Durations(8.0, 0.35))
        async with Customer(sandbox) as customer:
            for _ in range(20):
                await customer.poll(await customer.task())
        found.append([task.duration for task in sandbox.ledger.tasks])

    assert found[0] == found[1]
    assert 20 == len(set(found[0]))


async def test_more_of_a_fault_only_adds_cases() -> None:
    """Raising a probability keeps the cases that were there."""
    found: list[set[int]] = []
    for share in (0.2, 0.4):
        sandbox = roomy(Faults(stuck=share))
        async with Customer(sandbox) as customer:
            for _ in range(100):
                await customer.task()
        found.append({i for i, task in enumerate(sandbox.ledger.tasks) if task.stuck})

    assert found[0] < found[1]


async def test_a_script_goes_first_and_ends() -> None:
    """Prepared answers come in order, then the ordinary ones again."""
    sandbox = roomy(Faults(bad_gateway={"credit": 1.0}))
    sandbox.script("credit", (500, {"status": 500, "error": "x"}), "pass", (503, "<b>busy</b>"))
    async with Customer(sandbox) as customer:
        answers = [await customer.get("/s2s/v1.0/client/credit") for _ in range(4)]

    assert [500, 200, 503, 502] == [answer.status_code for answer in answers]
    assert (500, None, "x") == error_of(answers[0])
    assert ("text/html", "<b>busy</b>") == (answers[2].headers["content-type"], answers[2].text)


async def test_a_scripted_refusal_of_the_connection() -> None:
    """A script can refuse one connection."""
    sandbox = roomy()
    sandbox.script("file", "refuse")
    async with Customer(sandbox) as customer:
        with pytest.raises(httpx.ConnectError):
            await customer.file()
        assert (await customer.file())["file_id"]


async def test_a_scripted_answer_spends_the_window() -> None:
    """A prepared answer is an arrival like any other."""
    sandbox = Sandbox(per_second=1)
    sandbox.script("credit", (418, {}))
    async with Customer(sandbox) as customer:
        first = await customer.get("/s2s/v1.0/client/credit")
        second = await customer.get("/s2s/v1.0/client/credit")

    assert [418, 429] == [first.status_code, second.status_code]


async def test_a_repeated_task_id() -> None:
    """The second creation answers the first one's id; both are charged, one is unseen."""
    sandbox = roomy(Faults(repeated_task_ids=1.0))
    async with Customer(sandbox) as customer:
        ids = [await customer.task() for _ in range(2)]

    assert ids[0] == ids[1]
    assert 2 == sandbox.ledger.units_charged == len({t.task_id for t in sandbox.ledger.tasks})


async def test_a_repeated_file_id() -> None:
    """The second file has the first one's id, whose bytes a task then takes."""
    sandbox = roomy(Faults(repeated_file_ids=1.0))
    async with Customer(sandbox) as customer:
        first = await customer.uploaded(FACE, "first.jpg")
        second = await customer.uploaded(portrait(8, 64), "second.jpg")
        await customer.task({"src_file_id": second, "expression_type": TEETH})

    assert first == second
    assert "first.jpg" == sandbox.ledger.tasks[0].file_name


async def test_a_limit_by_chance() -> None:
    """A 429 out of the blue executes nothing and counts as refused."""
    sandbox = roomy(Faults(limited={"history": 1.0, "task": 1.0}))
    async with Customer(sandbox) as customer:
        answers = [await customer.get("/s2s/v1.0/client/credit/history"), await customer.create()]

    assert [429, 429] == [answer.status_code for answer in answers]
    assert {"history": 1, "task": 1} == dict(sandbox.ledger.refused)
    assert 0 == sandbox.ledger.units_charged


async def test_a_gateway_that_hides_the_answer() -> None:
    """`lose_502` executes the request and answers as a gateway."""
    sandbox = roomy()
    sandbox.script("task", "lose_502")
    async with Customer(sandbox) as customer:
        answer = await customer.create()

    assert (502, "text/html") == (answer.status_code, answer.headers["content-type"])
    assert 1 == sandbox.ledger.units_charged
