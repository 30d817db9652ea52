"""Running tasks are kept alive, whatever happens to the callers who wait for them."""

import asyncio
import contextvars
import logging
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import httpx
import pytest

from perfect_async import (
    Client,
    ClientClosed,
    Done,
    Failed,
    Job,
    Limits,
    Outcome,
    PerfectError,
    Polling,
    Result,
    ResultUnreadable,
    ServiceUnavailable,
    Smile,
    SubmissionInDoubt,
    TaskAbandoned,
    Timeouts,
    Unauthorized,
)
from perfect_async._transport.transport import VendorTransport as _Transport
from perfect_async.sandbox import Durations, Faults
from tests.support.sandboxed import FACE, KEY, Between, avatar, client, clock, smile, smiles, vendor
from tests.support.virtual_time import run

REQUEST_OF = contextvars.ContextVar("request_of", default="nobody")


# Callers that leave.


async def test_a_cancelled_caller_loses_no_task() -> None:
    """The task of a cancelled caller is polled to its end."""
    sandbox = vendor()
    async with client(sandbox) as c:
        caller = asyncio.ensure_future(c.run(smile()))
        await asyncio.sleep(3)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await asyncio.sleep(20)
        assert (1, 0.0) == (c.statistics().done, c.statistics().units.at_stake)

    assert {"success": 1} == dict(sandbox.ledger.tasks_by_state)
    assert 0 == sandbox.ledger.units_wasted


async def test_a_caller_cancelled_before_the_creation_buys_nothing() -> None:
    """The job of a caller who has gone is not created."""
    sandbox = vendor()
    async with client(sandbox) as c:
        callers = [asyncio.ensure_future(c.run(Smile(FACE, key=str(n)))) for n in range(9)]
        await asyncio.sleep(0.2)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await asyncio.sleep(60)

    assert 0 == sandbox.ledger.units_charged


async def test_a_failed_task_is_not_created_again_for_a_caller_that_is_gone() -> None:
    """A failure that may pass is not retried if no caller waits."""
    faults = Faults(engine_errors=1.0, engine_error_codes=("error_inference",))
    sandbox = vendor(faults=faults)
    async with client(sandbox, engine_retries=5) as c:
        with anyio.move_on_after(3):
            await c.run(smile())
        await asyncio.sleep(60)

    assert 1 == sandbox.ledger.units_charged == sandbox.ledger.units_returned


async def test_polls_run_in_the_context_of_the_opener() -> None:
    """Polls have the opener's context variables, and a batch's source has the caller's."""
    polled: set[str] = set()
    read: set[str] = set()

    async def see(request: httpx.Request) -> None:
        polled.add(REQUEST_OF.get())

    def source() -> Iterator[Job]:
        for job in smiles(3):
            read.add(REQUEST_OF.get())
            yield job

    sandbox = vendor()
    REQUEST_OF.set("opener")
    async with client(sandbox, transport=Between(sandbox.transport(), see)) as c:
        REQUEST_OF.set("caller")
        await c.run(smile())
        async with c.batch(source()) as batch:
            assert 3 == len([outcome async for outcome in batch])

    assert ({"opener"}, {"caller"}) == (polled, read)


# Draining.


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The texts that were logged as warnings."""
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


async def test_closing_waits_for_running_tasks(caplog: pytest.LogCaptureFixture) -> None:
    """A closing client creates no more tasks and polls running ones to their ends."""
    sandbox = vendor()
    async with client(sandbox) as c:
        callers = [asyncio.ensure_future(c.run(smile(n))) for n in range(12)]
        await asyncio.sleep(0.9)
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    created = sandbox.ledger.units_charged

    assert 0 < created < 12
    assert created == sandbox.ledger.tasks_by_state["success"]
    assert 12 - created == sum(isinstance(each, ClientClosed) for each in outcomes)
    assert [] == warnings_of(caplog)


@pytest.mark.parametrize("how", ["returns", "raises", "cancelled", "cancelled natively"])
async def test_closing_ends_after_the_drain_time(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After `drain` seconds one warning names the tasks and units left, however the block ended."""
    sandbox = vendor()
    ended: list[BaseException | None] = []
    waiting: list[asyncio.Task[object]] = []

    async def body() -> None:
        async with client(sandbox, drain=15.0) as c:
            waiting.append(asyncio.ensure_future(c.run(avatar(8))))
            waiting.append(asyncio.ensure_future(c.run(smile())))
            await asyncio.sleep(2)
            if how == "raises":
                raise ZeroDivisionError
            if how != "returns":
                await asyncio.sleep(100)

    began = clock()
    task = asyncio.ensure_future(body())
    if how == "cancelled":
        with anyio.move_on_after(2):
            await body()
        task.cancel()
    elif how == "cancelled natively":
        await asyncio.sleep(2)
        task.cancel()
    if how != "cancelled":
        ended += await asyncio.gather(task, return_exceptions=True)
        assert {"returns": "NoneType", "raises": "ZeroDivisionError"}.get(
            how, "CancelledError"
        ) == type(ended[0]).__name__
    took = clock() - began
    lost, saved = await asyncio.gather(*waiting[:2], return_exceptions=True)

    assert 17 == pytest.approx(took, abs=0.5)
    assert isinstance(lost, TaskAbandoned)
    assert 2.0 == lost.units_at_stake
    assert not isinstance(saved, BaseException)
    assert 1 == len(warnings_of(caplog))
    assert "1 tasks still run" in caplog.text
    assert "2 units are at stake" in caplog.text
    assert str(lost.task_id) in caplog.text


async def test_a_cancelled_closing_ends_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A client that is cancelled while it drains leaves no running task behind."""
    c = await client(vendor(), drain=1000).open()
    waiting = asyncio.ensure_future(c.run(avatar()))
    await asyncio.sleep(3)
    closing = asyncio.ensure_future(c.close())
    await asyncio.sleep(3)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing

    with pytest.raises(TaskAbandoned):
        await waiting
    assert 1 == len(warnings_of(caplog))
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_closing_without_a_drain_is_immediate(caplog: pytest.LogCaptureFixture) -> None:
    """With `drain=0` closing is immediate, and a job that was not created says so."""
    sandbox = vendor(latency=1.0)
    c = await client(sandbox, drain=0).open()
    callers = [asyncio.ensure_future(c.run(smile(n))) for n in range(40)]
    assert c._session is not None
    handles = c._session.driver.registry._handles.values()
    await asyncio.sleep(1)
    while {True, False} != {t.submitting for t in handles if t.at_stake}:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    question = asyncio.ensure_future(c.units())
    await asyncio.sleep(0)
    began = clock()
    await c.close()
    ends = await asyncio.gather(*callers, return_exceptions=True)
    kinds = {type(end) for end in ends}
    at_stake = sum(end.units_at_stake for end in ends if isinstance(end, PerfectError))

    assert began == clock()
    assert {TaskAbandoned, SubmissionInDoubt, ClientClosed} == kinds - {Result}
    kept = sandbox.ledger.units_charged - c.statistics().done
    assert at_stake == c.statistics().units.at_stake >= kept > 0
    assert "(creation under way)" in caplog.text
    assert f"{at_stake:g} units are at stake" in caplog.text
    assert isinstance((await asyncio.gather(question, return_exceptions=True))[0], ClientClosed)


async def test_the_warning_names_twenty_tasks(caplog: pytest.LogCaptureFixture) -> None:
    """The warning names twenty tasks and counts the others."""
    sandbox = vendor(requests=100_000, per_second=100)
    c = await client(sandbox, drain=0, limits=Limits(100_000, 300, 100)).open()
    callers = [asyncio.ensure_future(c.run(avatar(key=str(n)))) for n in range(30)]
    await asyncio.sleep(5)
    await c.close()
    await asyncio.gather(*callers, return_exceptions=True)

    assert caplog.text.count("'") == 40
    assert "and 10 more" in caplog.text


# Loops that end.


def test_a_loop_that_ends_with_an_open_client(caplog: pytest.LogCaptureFixture) -> None:
    """`asyncio.run` cancels everything: no caller hangs, and no task is left pending."""
    ends: list[object] = []

    async def forget() -> None:
        c = await client(vendor()).open()
        batch = await c.batch(smiles(50)).__aenter__()

        async def wait(what: object) -> None:
            try:
                ends.append(await what)  # type: ignore[misc]
            except BaseException as exc:
                ends.append(exc)
                raise

        waiting = [
            asyncio.ensure_future(wait(each)) for each in (c.run(smile()), batch.__anext__())
        ]
        await asyncio.sleep(3)
        assert not any(each.done() for each in waiting)
        # The task has begun, but has not taken a step.
        ends.append(asyncio.ensure_future(c.close()))
        keep.append(c)

    keep: list[Client] = []
    run(forget)

    assert 3 == len(ends)
    assert not [record for record in caplog.records if "pending" in record.getMessage()]


# Drivers that fail.


def break_down(monkeypatch: pytest.MonkeyPatch, c: Client, what: str) -> None:
    """Make the scheduler of `c` raise from now on."""

    def raises(*_: object) -> None:
        raise ZeroDivisionError("a secret of the scheduler")

    assert c._session is not None
    monkeypatch.setattr(c._session.driver.scheduler, what, raises)


@pytest.mark.parametrize("what", ["due", "receive", "wakes_at"])
async def test_a_failed_driver_ends_all_waits(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every caller gets an error with that cause, and with the task if there is one."""
    sandbox = vendor()
    c = await client(sandbox).open()
    caller = asyncio.ensure_future(c.run(smile(10**7)))
    await asyncio.sleep(2)
    batch = c.batch(smiles(10**6))
    outcomes: list[Outcome] = []

    async def consume() -> None:
        async with batch:
            async for outcome in batch:
                outcomes.append(outcome)  # noqa: PERF401 - they count although it raises

    consumer = asyncio.ensure_future(consume())
    await asyncio.sleep(4)
    question = asyncio.ensure_future(c.units())
    await asyncio.sleep(0)
    break_down(monkeypatch, c, what)
    ends = await asyncio.gather(caller, consumer, question, return_exceptions=True)

    run_error, batch_error, question_error = ends
    assert isinstance(run_error, TaskAbandoned)
    assert isinstance(batch_error, ClientClosed)
    assert isinstance(question_error, ClientClosed)
    assert sandbox.ledger.tasks[0].task_id == run_error.task_id
    for error in (run_error, batch_error, question_error):
        assert "ZeroDivisionError" in str(error)
        assert isinstance(error.__cause__, ExceptionGroup | ZeroDivisionError)
    assert {Failed} == {type(outcome) for outcome in outcomes}
    assert {TaskAbandoned, ClientClosed} >= {type(outcome.error) for outcome in outcomes}
    assert 1 <= sum(isinstance(outcome.error, TaskAbandoned) for outcome in outcomes)
    assert len(sandbox.ledger.tasks) == 1 + sum(o.task_id is not None for o in outcomes)
    assert "secret" not in caplog.text
    assert "The driver failed: 'ZeroDivisionError'" in caplog.text
    with pytest.raises(ClientClosed, match="ZeroDivisionError"):
        await c.run(smile())
    await c.close()
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_after_a_failure_a_new_client_can_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed driver serves no other client."""
    sandbox = vendor()
    async with client(sandbox) as broken:
        break_down(monkeypatch, broken, "due")
        with pytest.raises(ClientClosed):
            await broken.run(smile())
        monkeypatch.undo()
        async with client(sandbox) as other:
            assert (await other.run(smile())).images


# Transports with unexpected errors.


class Odd(httpx.AsyncBaseTransport):
    """Raises errors that no transport should raise."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("s3cret"),
        ExceptionGroup("s3cret", [KeyError("s3cret")]),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_transport_that_always_fails(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """No caller hangs, whatever a transport raises; each gets a clear error in time."""
    async with client(vendor(), transport=Odd(error)) as c:
        with anyio.fail_after(600):
            async with c.batch([smile(), Smile(FACE), avatar()]) as batch:
                outcomes = [outcome async for outcome in batch]
            with pytest.raises(PerfectError, match="transport"):
                await c.units()

    assert ["ServiceUnavailable", "SubmissionInDoubt", "SubmissionInDoubt"] == sorted(
        type(outcome.error).__name__ for outcome in outcomes
    )
    assert all("transport" in str(outcome.error) for outcome in outcomes)
    assert "s3cret" not in caplog.text + "".join(str(outcome.error) for outcome in outcomes)


@pytest.mark.parametrize("error", [RuntimeError(), asyncio.CancelledError()], ids=repr)
async def test_a_transport_that_fails_now_and_then(error: BaseException) -> None:
    """A poll that a transport fails is repeated like any other, and the task is not lost."""
    polls = 0

    async def change(request: httpx.Request) -> None:
        nonlocal polls
        if "/ai-smile/" in request.url.path:
            polls += 1
            if polls % 2:
                raise error

    sandbox = vendor(durations={"ai-smile": Durations.fixed(60.0)})
    async with client(sandbox, transport=Between(sandbox.transport(), change)) as c:
        assert (await c.run(smile())).images

    assert polls > 8
    assert 0 == sandbox.ledger.units_wasted


# Secrets.


async def test_no_secret_is_shown(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Neither the key nor a signature is in any log, repr or error, whatever fails."""
    caplog.set_level(logging.DEBUG)
    faults = Faults(
        engine_errors=0.2,
        timeouts=0.1,
        dropped={"poll": 0.1, "upload": 0.1},
        malformed={"poll": 0.05, "file": 0.1},
        lost_creations=0.1,
    )
    sandbox = vendor(faults=faults, seed=5)
    shown: list[str] = []
    picture = "https://bucket.example/me.jpg?X-Amz-Signature=s1gned"
    jobs = [Smile(FACE, key=str(n)) for n in range(20)]
    jobs += [Smile(picture, key=f"u{n}") for n in range(10)]
    async with client(sandbox, drain=0) as c:
        async with c.batch(jobs) as batch:
            async for outcome in batch:
                shown += [repr(outcome), repr(batch)]
                if isinstance(outcome, Done):
                    shown += [str(path) for path in await outcome.result.save(tmp_path)]
                    continue
                shown += [str(outcome.error), *frames(outcome.error)]
        sandbox.script("credit", (401, {"status": 401, "error": f"{KEY} is wrong"}))
        with pytest.raises(Unauthorized) as caught:
            await c.units()
        shown += [str(caught.value), *frames(caught.value)]
        shown += [repr(c), repr(c.statistics()), repr(c._session), repr(vars(c)["_session"].driver)]
    shown.append(caplog.text)
    text = "\n".join(shown)

    assert 1 < sum("Failed(" in each for each in shown)
    for secret in (KEY, "s1gned", "Signature", "X-Amz", "Bearer"):
        assert secret not in text, secret


def frames(error: BaseException) -> list[str]:
    """A traceback as error reporters send it, with the locals of the package's frames."""
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [frame for frame in found.stack if "/perfect_async/" in frame.filename]
    return [f"{frame.name} {frame.locals}" for frame in ours] + list(
        traceback.format_exception(error)
    )


# Full windows and bad networks.


@pytest.mark.parametrize(
    ("settings", "faults", "latency"),
    [
        pytest.param(
            *({"limits": Limits().split(4)}, Faults(hang={"poll": 0.05}), 0.2),
            id="split and hanging",
        ),
        pytest.param(
            *({"limits": Limits().split(4)}, None, 1.5), id="split and far", marks=pytest.mark.long
        ),
        pytest.param(
            *({"limits": Limits().split(5)}, None, 0.5), id="split in five", marks=pytest.mark.long
        ),
        pytest.param({"limits": Limits(45)}, Faults(hang={"poll": 0.05}), 0.2, id="few requests"),
        pytest.param({"polling": Polling(lease=3.0)}, None, 0.2, id="short lease"),
    ],
)
async def test_tasks_are_created_on_a_bad_network(
    settings: dict[str, object], faults: Faults | None, latency: float
) -> None:
    """Tasks are still created if the network needs more tries than the limits allow."""
    lease = 3.0 if "polling" in settings else 10.0
    sandbox = vendor(faults=faults, latency=latency, jitter=0.0, lease=lease)
    with anyio.fail_after(5 * 3600):
        async with client(sandbox, **settings) as c, c.batch(list(smiles(30))) as batch:
            outcomes = [outcome async for outcome in batch]

    assert 30 == len(outcomes)
    assert 27 <= sum(outcome.ok for outcome in outcomes)
    assert not sandbox.ledger.refused


async def test_two_refusals_do_not_stop_an_idle_client() -> None:
    """Two 429s to a client that has sent nothing yet cost it less than a minute."""
    sandbox = vendor()
    refusal = (429, {"status": 429, "error": "Too many requests"})
    sandbox.script("task", refusal, refusal)
    async with client(sandbox) as c:
        began = clock()
        await c.run(smile())

    assert 60 > clock() - began


async def test_an_unreadable_success_is_final() -> None:
    """A success without a usable result ends at once, with the vendor's answer."""
    sandbox = vendor()
    good = {"status": 200, "data": {"task_status": "success", "results": {"url": ""}}}
    sandbox.script("poll", *[(200, good)] * 400)
    async with client(sandbox, polling=Polling(give_up_after=60.0)) as c:
        with pytest.raises(ResultUnreadable) as caught:
            await c.run(smile())
        spent = c.statistics().units

    assert None is not caught.value.request_id
    assert None is not caught.value.task_id
    assert {"url": ""} == caught.value.raw
    assert (1.0, 1.0) == (caught.value.units_at_stake, spent.at_stake)
    assert 1 == sandbox.ledger.requests["poll"]


async def test_an_abandoned_task_names_its_last_bad_answer() -> None:
    """The error of an abandoned task names the last answer if none was usable."""
    sandbox = vendor()
    sandbox.script("poll", *[(200, {"status": 200, "data": {}})] * 400)
    async with client(sandbox, polling=Polling(give_up_after=60.0)) as c:
        with pytest.raises(TaskAbandoned, match="Last seen: ") as caught:
            await c.run(smile())

    assert None is not caught.value.request_id
    assert 1.0 == caught.value.units_at_stake


async def test_a_doubt_has_the_request_id() -> None:
    """The doubt about a creation that was answered 500 has the request id for support."""
    sandbox = vendor()
    sandbox.script("task", (500, {"status": 500, "error": "oops"}))
    async with client(sandbox) as c:
        with pytest.raises(SubmissionInDoubt) as caught:
            await c.run(smile())

    assert None is not caught.value.request_id


async def test_many_slow_uploads_at_once() -> None:
    """On its own transport the client sends many uploads at a time to a slow storage."""
    assert 24 == _Transport("https://v.example", KEY, timeouts=Timeouts())._slots.value
    given = vendor().transport()
    few = _Transport("https://v.example", KEY, timeouts=Timeouts(), transport=given)
    assert 6 == few._slots.value


# Rare cases.


async def test_stopping_before_the_first_turn_buys_nothing() -> None:
    """A batch that is stopped or left at once creates nothing."""
    sandbox = vendor()
    async with client(sandbox) as c:
        async with c.batch(smiles(50)) as batch:
            batch.stop()
            assert [] == [outcome async for outcome in batch if outcome.ok]
        async with c.batch(smiles(50)):
            pass

    assert 0 == sandbox.ledger.units_charged


async def test_a_batch_that_is_entered_while_the_client_closes() -> None:
    """It ends with `ClientClosed`, and does not affect other clients on the key."""
    sandbox = vendor()
    async with client(sandbox) as other:
        going = asyncio.ensure_future(other.run(smile()))
        await asyncio.sleep(3)
        c = await client(sandbox).open()
        async with c.batch(smiles(5)) as batch:
            closing = asyncio.ensure_future(c.close())
            with pytest.raises(ClientClosed):
                async for _ in batch:
                    pass
        await closing
        result = await going

    assert sandbox.ledger.tasks[0].task_id == result.task_id


async def test_a_batch_of_a_closed_client_ends() -> None:
    """A waiting source does not keep the consumer waiting after the client has closed."""
    sandbox = vendor()

    async def endless() -> AsyncIterator[Job]:
        yield smile()
        await asyncio.sleep(10**9)

    async with client(sandbox):
        c = await client(sandbox).open()
        async with c.batch(endless()) as batch:
            assert (await anext(batch)).ok
            closing = asyncio.ensure_future(c.close())
            with anyio.fail_after(60), pytest.raises(ClientClosed):
                await anext(batch)
        await closing


async def test_a_refused_key_puts_only_its_own_task_at_stake() -> None:
    """A 401 to each poll puts the task's units at stake; a job that was never sent has none."""
    refused: list[str] = []

    async def change(request: httpx.Request) -> httpx.Response | None:
        path = request.url.path
        if "/ai-smile/" not in path or path not in [*refused, path][:1]:
            return None
        refused.append(path)
        body = {"status": 401, "error": "no", "error_code": "InvalidApiKey"}
        return httpx.Response(401, json=body)

    sandbox = vendor()
    transport = Between(sandbox.transport(), change)
    async with client(sandbox, transport=transport) as c, c.batch(list(smiles(20))) as batch:
        errors = [outcome.error async for outcome in batch if outcome.error]

    assert len(refused) > 1
    assert 1.0 == sum(error.units_at_stake for error in errors)


async def test_a_cancelled_query_is_not_sent() -> None:
    """A cancelled query that has not left is not sent, and delays no other one."""
    sandbox = vendor()
    sandbox.script("credit", (429, {"status": 429, "error": "Too many requests"}))
    async with client(sandbox) as c:
        with anyio.move_on_after(0.5):
            await c.units()
        with anyio.move_on_after(0.1):
            await c.delete("during the pause")
        await asyncio.sleep(60)
        with anyio.move_on_after(0.01):
            await c.delete("it leaves at once, and its refusal is nobody's")
        await asyncio.sleep(60)
        assert None is not (await c.units()).balance

    assert 1 == sandbox.ledger.requests["delete"]
    assert 2 == sandbox.ledger.requests["credit"]


async def test_a_deletion_without_an_answer_is_not_repeated() -> None:
    """A deletion that may have worked is not repeated, since it would be refused."""
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(smile())
        sandbox.script("delete", "lose")
        with pytest.raises(ServiceUnavailable):
            await c.delete(result.task_id)

    assert 1 == sandbox.ledger.requests["delete"]


async def test_opening_that_fails_closes_the_transport() -> None:
    """A client that was cancelled while it opened leaves nothing open."""
    way = Between(vendor().transport(), lambda _: asyncio.sleep(0))
    closed: list[bool] = []

    async def noted() -> None:
        closed.append(True)

    way.aclose = noted  # type: ignore[method-assign]
    opening = asyncio.ensure_future(Client(KEY, transport=way).open())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait({opening})

    assert opening.cancelled() == bool(closed)
