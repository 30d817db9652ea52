"""A creation without a usable answer is in doubt, or is settled for the only user of the key."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from perfect_async import Client, Failed, Outcome, PerfectError, Smile, SubmissionInDoubt
from perfect_async._runtime import commands
from perfect_async.sandbox import Durations, Faults
from tests.support.journaled import (
    MINUTE,
    Shop,
    adds_up,
    all_of,
    creates,
    done,
    errors,
    faces,
    hung,
    job,
    paid,
    resumed,
    until,
)
from tests.support.sandboxed import avatar, client, clock, smile

MP = pytest.MonkeyPatch


def nobody_else(outcomes: list[Outcome]) -> None:
    """Each picture that was saved shows the face that went in."""
    for outcome in done(outcomes):
        assert outcome.files
        assert {int(str(outcome.job.key))} == set(faces(outcome.files))


@asynccontextmanager
async def stranger(shop: Shop) -> AsyncGenerator[Client]:
    """Somebody else's open client on the same key, in another process and without a journal."""
    # By another host name, or the two would share a ledger.
    async with client(shop.sandbox, base_url="https://yce-api-01.perfectcorp.com") as other:
        assert other._session is not None
        commands._submitters.discard(other._session.driver.submitter)
        yield other


# Settled.


@pytest.mark.parametrize("fate", ["lose", (200, "<html>")])
async def test_lost(tmp_path: Path, monkeypatch: MP, fate: object) -> None:
    """A task whose creation was executed and not answered is found, and paid for once."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", "lose")
    async with shop.sole() as c:
        outcomes = await all_of(c.batch([job(n) for n in range(4)], save_to=shop.out))
        adds_up(c, shop.sandbox)

    assert 4 == len(done(outcomes)) == shop.sandbox.ledger.units_charged
    nobody_else(outcomes)
    paid(outcomes, shop.sandbox)


@pytest.mark.parametrize("fate", ["drop", (502, "<html>Bad Gateway</html>"), (200, "<html>")])
async def test_not_executed(tmp_path: Path, monkeypatch: MP, fate: object) -> None:
    """Where the history shows nothing the job stays in doubt, is told once and is not repeated."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", fate)  # type: ignore[arg-type]
    async with shop.client() as c:
        outcomes = await all_of(c.batch([job(n) for n in range(4)], save_to=shop.out))
        adds_up(c, shop.sandbox)
        assert 4 == shop.sandbox.ledger.requests["task"]

    assert [SubmissionInDoubt] == errors(outcomes)
    nobody_else(outcomes)
    paid(outcomes, shop.sandbox)
    async with shop.client() as c:
        assert [] == await resumed(c)


async def test_never_taken_by_guess(tmp_path: Path, monkeypatch: MP) -> None:
    """Without the user's word the only task of the history is a candidate, and is not taken."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", "lose")
    async with shop.client() as c:
        outcomes = await all_of(c.batch([job(n) for n in range(4)], save_to=shop.out))
        adds_up(c, shop.sandbox, elsewhere=1)

    [failed] = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert isinstance(failed.error, SubmissionInDoubt)
    lost = shop.sandbox.ledger.tasks[0].task_id
    assert ((lost,), 1.0) == (failed.error.candidates, failed.error.units_at_stake)
    nobody_else(outcomes)
    paid(outcomes, shop.sandbox)


@pytest.mark.parametrize("journal", [True, False])
@pytest.mark.parametrize("fate", ["lose", "drop"])
async def test_the_same_doubt_until_the_process_ends(
    tmp_path: Path, monkeypatch: MP, journal: bool, fate: str
) -> None:
    """An equal job gets the same doubt, in this client and the next one, unless it is consented."""
    shop = Shop(tmp_path, monkeypatch)
    make = shop.client if journal else shop.plain
    shop.sandbox.script("task", fate)  # type: ignore[arg-type]
    async with make() as c:
        with pytest.raises(SubmissionInDoubt) as first:
            await c.run(job(1))
        assert 1.0 == first.value.units_at_stake
        with pytest.raises(SubmissionInDoubt) as second:
            await c.run(job(1))
        outcomes = await all_of(c.batch([job(1), job(2)], save_to=shop.out))
    async with make() as c:
        with pytest.raises(SubmissionInDoubt) as third:
            await c.run(job(1))
        assert {str(first.value)} == {str(each.value) for each in (second, third)}
        assert first.value is not second.value
        assert [SubmissionInDoubt] == errors(outcomes)
        assert 2 == shop.sandbox.ledger.requests["task"]

        result = await c.run(job(1), buy_in_doubt=True)
        assert [1] == faces(await result.save(shop.out))
        # It is in doubt no longer.
        again = await all_of(c.batch([job(1)], save_to=shop.out))
    assert [] == errors(again)


async def test_consent_for_a_batch(tmp_path: Path, monkeypatch: MP) -> None:
    """A batch may consent as well."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", "drop")
    async with shop.client() as c:
        assert [SubmissionInDoubt] == errors(await all_of(c.batch([job(1)], save_to=shop.out)))
        outcomes = await all_of(c.batch([job(1)], save_to=shop.out, buy_in_doubt=True))

    nobody_else(outcomes)
    assert 1 == len(done(outcomes)) == shop.sandbox.ledger.units_charged


async def test_the_batch_after_resuming(tmp_path: Path, monkeypatch: MP) -> None:
    """Resuming tells a doubt once, the batch after it gets the same, and a later process buys."""
    shop = Shop(tmp_path, monkeypatch)
    stop = Stop(shop, 0, executed=True)
    c = await shop.client(stop).open()
    waiting = asyncio.ensure_future(c.run(job(1)))
    await stop.stopped.wait()
    await shop.crash(c, waiting)
    async with shop.client() as c:
        [told] = await resumed(c)
        assert isinstance(told.error, SubmissionInDoubt)
        assert (shop.sandbox.ledger.tasks[0].task_id,) == told.error.candidates
        assert [] == await resumed(c)
        [again] = await all_of(c.batch([job(1)], save_to=shop.out))
        assert str(told.error) == str(again.error)
        assert 1 == shop.sandbox.ledger.units_charged
        await shop.crash(c)
    async with shop.client() as c:
        assert [] == await resumed(c)
        outcomes = await all_of(c.batch([job(1)], save_to=shop.out))
    nobody_else(outcomes)
    assert 2 == shop.sandbox.ledger.units_charged


@pytest.mark.parametrize("consent", [True, False])
async def test_a_doubt_that_was_not_resumed(tmp_path: Path, monkeypatch: MP, consent: bool) -> None:
    """A job that a crash left in doubt is told so before it is bought, unless it is consented."""
    shop = Shop(tmp_path, monkeypatch)
    stop = Stop(shop, 0, executed=False)
    c = await shop.client(stop).open()
    waiting = asyncio.ensure_future(c.run(job(1)))
    await stop.stopped.wait()
    await shop.crash(c, waiting)
    async with shop.client() as c:
        options = {"buy_in_doubt": consent}
        outcomes = await all_of(c.batch([job(1)], save_to=shop.out, **options))
        assert [] == await resumed(c)
    assert consent == (not errors(outcomes))
    assert int(consent) == shop.sandbox.ledger.units_charged


@pytest.mark.parametrize("sole", [True, False])
async def test_a_history_that_is_refused(tmp_path: Path, monkeypatch: MP, sole: bool) -> None:
    """A doubt is told within seconds although the history answers 429, and others go on."""
    shop = Shop(tmp_path, monkeypatch)
    refusal = (429, {"status": 429, "error": "Too many requests"})
    shop.sandbox.script("history", *[refusal] * 50)
    shop.sandbox.script("task", "lose")
    async with shop.client(sole_user=sole) as c:
        began = clock()
        first = asyncio.ensure_future(c.run(job(1)))
        await asyncio.sleep(1)
        second = asyncio.ensure_future(c.run(job(2)))
        with pytest.raises(SubmissionInDoubt):
            await first
        assert 20 > clock() - began
        await second


@pytest.mark.parametrize("behind", [0.0, 30.0, 90.0])
async def test_a_clock_that_is_behind(tmp_path: Path, monkeypatch: MP, behind: float) -> None:
    """Whatever the vendor's clock says, units stay at stake, and the task is a candidate."""
    shop = Shop(tmp_path, monkeypatch)
    inner = shop.sandbox.transport()

    async def change(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith("history"):
            return None
        answer = await inner.handle_async_request(request)
        body = json.loads(await answer.aread())
        for row in body["result"]["history"]:
            row["timestamp"] -= round(behind * 1000)
        return httpx.Response(200, json=body)

    shop.sandbox.script("task", "lose")
    async with shop.client(change) as c:
        with pytest.raises(SubmissionInDoubt) as caught:
            await c.run(job(1))
    lost = shop.sandbox.ledger.tasks[0].task_id
    assert (1.0, (lost,)) == (caught.value.units_at_stake, caught.value.candidates)


async def test_two_workers_on_one_key(tmp_path: Path, monkeypatch: MP) -> None:
    """Two clients with a journal each never hand over each other's face."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", "pass", (502, "<html>Bad Gateway</html>"), "pass")
    url = "https://yce-api-01.perfectcorp.com"
    async with (
        shop.client(journal=tmp_path / "a.db") as one,
        shop.client(journal=tmp_path / "b.db", base_url=url) as two,
    ):
        both = await asyncio.gather(
            *(
                all_of(c.batch([job(n + place)], save_to=tmp_path / str(place)))
                for place, c in ((0, one), (10, two))
                for n in range(3)
            )
        )
    outcomes = [outcome for each in both for outcome in each]
    assert [SubmissionInDoubt] == errors(outcomes)
    nobody_else(outcomes)


async def test_every_open_client_is_asked(tmp_path: Path, monkeypatch: MP) -> None:
    """The task of another open client of the process is not taken, on the word of either."""
    shop = Shop(tmp_path, monkeypatch)
    url = "https://yce-api-01.perfectcorp.com"
    async with (
        shop.sole(journal=tmp_path / "a.db") as one,
        shop.sole(journal=tmp_path / "b.db", base_url=url) as two,
    ):
        running = asyncio.ensure_future(one.run(job(1)))
        await until(lambda: bool(shop.sandbox.ledger.tasks))
        await asyncio.sleep(0.2)
        shop.sandbox.script("task", "drop")
        with pytest.raises(SubmissionInDoubt) as caught:
            await two.run(job(2))
        assert () == caught.value.candidates
        await running


@pytest.mark.parametrize("journal", [True, False])
async def test_an_id_that_comes_twice(tmp_path: Path, monkeypatch: MP, journal: bool) -> None:
    """A task id that was given before makes the second creation a doubt; the first job goes on."""
    shop = Shop(tmp_path, monkeypatch)
    inner, first = shop.sandbox.transport(), asyncio.Event()
    answers: list[dict[str, object]] = []

    async def change(request: httpx.Request) -> httpx.Response | None:
        if not creates(request):
            return None
        answer = await inner.handle_async_request(request)
        answers.append(json.loads(await answer.aread()))
        first.set()
        return httpx.Response(200, json=answers[0])

    made = shop.client(change) if journal else shop.client(change, journal=None)
    async with made as c:
        running = asyncio.ensure_future(c.run(job(1)))
        await first.wait()
        await asyncio.sleep(1)
        with pytest.raises(SubmissionInDoubt, match="another job's task") as caught:
            await c.run(job(2))
        assert 1.0 == caught.value.units_at_stake
        result = await running
        assert [1] == faces(await result.save(shop.out))
    if journal:
        shop.sandbox.script("task", (200, answers[0]))
        async with shop.client() as c:
            with pytest.raises(SubmissionInDoubt, match="another job's task"):
                await c.run(job(3))


async def test_asked_at_once(tmp_path: Path, monkeypatch: MP) -> None:
    """The history is asked as soon as the answer is lost, before other creations and questions."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", "pass", "pass", "lose")
    async with shop.sole() as c:
        outcomes = await all_of(c.batch([smile(n) for n in range(12)]))
        adds_up(c, shop.sandbox)

    calls = [path.rpartition("/")[2] for _, _, path in shop.wire.sent]
    third = [at for at, call in enumerate(calls) if call == "ai-smile"][2]
    assert "history" in calls[third + 1 : third + 4]
    times = [at for at, _, path in shop.wire.sent if path.endswith("history")]
    assert times[0] - shop.wire.sent[third][0] < 1.0
    assert 12 == len(done(outcomes))


async def test_while_the_answer_hangs(tmp_path: Path, monkeypatch: MP) -> None:
    """An answer that takes longer than the lease costs nothing: the task is found and kept."""
    shop = Shop(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(25.0)})
    async with shop.sole(hung(60.0)(shop.sandbox)) as c:
        outcomes = await all_of(c.batch([job(n) for n in range(3)], save_to=shop.out))
        adds_up(c, shop.sandbox)

    assert 3 == len(done(outcomes)) == shop.sandbox.ledger.units_charged
    assert 0 == shop.sandbox.ledger.units_wasted
    nobody_else(outcomes)


async def test_executed_late(tmp_path: Path, monkeypatch: MP) -> None:
    """A creation that is executed only while we wait is found before its lease ends."""
    shop = Shop(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(25.0)})
    inner = shop.sandbox.transport()
    first = True

    async def change(request: httpx.Request) -> httpx.Response | None:
        nonlocal first
        if not creates(request) or not first:
            return None
        first = False
        await asyncio.sleep(5)
        await inner.handle_async_request(request)
        await asyncio.sleep(100)
        return None

    async with shop.sole(change) as c:
        await c.run(smile(1))
        adds_up(c, shop.sandbox)
    assert {"success": 1} == dict(shop.sandbox.ledger.tasks_by_state)


async def test_an_answer_that_is_late(tmp_path: Path, monkeypatch: MP) -> None:
    """An answer that comes while the history is read is believed."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.sole(hung(4.05)(shop.sandbox)) as c:
        outcomes = await all_of(c.batch([job(n) for n in range(2)], save_to=shop.out))
        adds_up(c, shop.sandbox)

    assert 2 == len(done(outcomes))
    nobody_else(outcomes)


async def test_one_at_a_time(tmp_path: Path, monkeypatch: MP) -> None:
    """With a journal creations of one feature are under way one at a time, without one not."""
    most = {True: 0, False: 0}
    for journal in (True, False):
        shop = Shop(tmp_path / str(journal), monkeypatch, latency=0.9)
        shop.folder.mkdir()
        flying = 0
        inner = shop.sandbox.transport()

        async def count(
            request: httpx.Request, journal: bool = journal, inner: httpx.AsyncBaseTransport = inner
        ) -> httpx.Response | None:
            nonlocal flying
            if not creates(request):
                return None
            flying += 1
            most[journal] = max(most[journal], flying)
            try:
                return await inner.handle_async_request(request)
            finally:
                flying -= 1

        made = shop.client(count) if journal else shop.client(count, journal=None)
        async with made as c:
            outcomes = await all_of(c.batch([smile(n) for n in range(20)]))
            adds_up(c, shop.sandbox)
        assert 20 == len(done(outcomes))
    assert (1, True) == (most[True], most[False] > 1)


# Left alone.


async def test_somebody_else_in_the_same_minute(tmp_path: Path, monkeypatch: MP) -> None:
    """Another client's task in the same minute makes it stay in doubt, with its unit at stake."""
    shop = Shop(tmp_path, monkeypatch)
    async with stranger(shop) as other:
        await other.run(job(99))
        shop.sandbox.script("task", "lose")
        async with shop.sole() as c:
            outcomes = await all_of(c.batch([job(n) for n in range(3)], save_to=shop.out))
            adds_up(c, shop.sandbox, elsewhere=2)

    assert [SubmissionInDoubt] == errors(outcomes)
    [failed] = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert 1.0 == failed.error.units_at_stake
    nobody_else(outcomes)


async def test_an_unreadable_history(tmp_path: Path, monkeypatch: MP) -> None:
    """Without the history it stays in doubt."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", "lose")
    shop.sandbox.script("history", (400, {"status": 400, "error": "no"}))
    async with shop.sole() as c:
        with pytest.raises(SubmissionInDoubt, match="could not be read") as caught:
            await c.run(job(1))
        adds_up(c, shop.sandbox, elsewhere=1)
    assert 1.0 == caught.value.units_at_stake


async def test_the_task_of_one_in_doubt(tmp_path: Path, monkeypatch: MP) -> None:
    """What may be the task of one job in doubt is not given to another one."""
    shop = Shop(tmp_path, monkeypatch)
    # The first is executed, but nobody can read so; the second is not, and finds the first's task.
    shop.sandbox.script("task", "lose", "drop")
    shop.sandbox.script("history", (400, {"status": 400, "error": "no"}))
    async with shop.sole() as c:
        outcomes = await all_of(c.batch([job(1), job(2)], save_to=shop.out))
        adds_up(c, shop.sandbox, elsewhere=1)
    assert [SubmissionInDoubt] * 2 == errors(outcomes)


async def test_the_task_of_one_that_has_no_journal(tmp_path: Path, monkeypatch: MP) -> None:
    """Nor that of one in doubt of a client beside it that has no journal."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", "lose", "drop")
    async with (
        shop.sole() as c,
        shop.client(journal=None, transport=c._transport) as plain,
    ):
        with pytest.raises(SubmissionInDoubt):
            await plain.run(job(1))
        with pytest.raises(SubmissionInDoubt):
            await c.run(job(2))
        adds_up(c, shop.sandbox, elsewhere=1)


async def test_the_task_of_another_feature(tmp_path: Path, monkeypatch: MP) -> None:
    """A task that is being created meanwhile for another feature is not taken for the one in doubt.

    The history's actions name no feature here, so all that tells them apart is to wait.
    """
    shop = Shop(tmp_path, monkeypatch)
    inner = shop.sandbox.transport(latency=0.05, jitter=0.0)

    async def change(request: httpx.Request) -> httpx.Response | None:
        if not creates(request):
            return None
        if request.url.path.endswith("ai-smile"):
            await asyncio.sleep(0.5)
            raise httpx.ReadError("gone")
        # Executed at once, answered late.
        answer = await inner.handle_async_request(request)
        await asyncio.sleep(3)
        return answer

    async with shop.sole(change) as c:
        outcomes = await all_of(c.batch([smile(1), avatar()]))
        adds_up(c, shop.sandbox)
    assert [SubmissionInDoubt] == errors(outcomes)
    assert ["ai-avatar"] == [outcome.job.feature for outcome in done(outcomes)]


async def test_a_key_that_others_use(tmp_path: Path, monkeypatch: MP) -> None:
    """Where somebody else created a task shortly before, the only unknown one may be theirs too."""
    shop = Shop(tmp_path, monkeypatch)
    async with stranger(shop) as other:
        await other.run(job(98))
        await asyncio.sleep(2 * MINUTE)
        shop.sandbox.script("task", "pass", "drop")
        await other.run(job(99))
        async with shop.sole() as c:
            with pytest.raises(SubmissionInDoubt, match="does not tell"):
                await c.run(job(1))
            adds_up(c, shop.sandbox, elsewhere=2)


# After a crash.


class Stop:
    """From the `at`-th creation on nothing is answered; the first of these is `executed` or not."""

    def __init__(self, shop: Shop, at: int, *, executed: bool) -> None:
        self._inner = shop.sandbox.transport()
        self._left = at
        self._executed = executed
        self.stopped = asyncio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response | None:
        if not creates(request):
            return None
        self._left -= 1
        if self._left >= 0:
            return None
        if self._executed:
            await self._inner.handle_async_request(request)
        self.stopped.set()
        await asyncio.sleep(1e6)
        return None


async def crashed_at(shop: Shop, jobs: list[Smile], at: int, *, executed: bool) -> list[Outcome]:
    """A process that creates `at` tasks, takes their outcomes, and dies with one more out."""
    stop = Stop(shop, at, executed=executed)
    c = await shop.sole(stop).open()
    told: list[Outcome] = []
    async with c.batch(jobs, save_to=shop.out) as batch:
        told += [await anext(batch) for _ in range(at)]
        await stop.stopped.wait()
        await asyncio.sleep(0.2)
        await shop.crash(c)
    return told


@pytest.mark.parametrize("executed", [True, False])
async def test_a_crash_before_the_answer(tmp_path: Path, monkeypatch: MP, executed: bool) -> None:
    """The next process finds the task that was under way, or says that there is none."""
    shop = Shop(tmp_path, monkeypatch)
    told = await crashed_at(shop, [job(n) for n in range(3)], 2, executed=executed)
    async with shop.sole() as c:
        rest = await resumed(c)
    assert ([] if executed else [SubmissionInDoubt]) == errors(rest)
    nobody_else([*told, *rest])
    paid([*told, *rest], shop.sandbox)
    assert (3 if executed else 2) == shop.sandbox.ledger.units_charged


async def test_two_in_doubt_after_a_crash(tmp_path: Path, monkeypatch: MP) -> None:
    """Of two creations in doubt neither gets the only task of the history: it may be either's."""
    shop = Shop(tmp_path, monkeypatch)
    stop = Stop(shop, 1, executed=True)
    inner = shop.sandbox.transport()
    first = True

    async def change(request: httpx.Request) -> httpx.Response | None:
        nonlocal first
        if request.url.path.endswith("history"):
            return await inner.handle_async_request(request)
        if creates(request) and first:
            first = False
            stop._left -= 1
            raise httpx.ReadError("gone")
        return await stop(request)

    c = await shop.sole(change).open()
    waiting = [asyncio.ensure_future(c.run(job(n))) for n in (1, 2)]
    await stop.stopped.wait()
    # The first has ended in doubt, and was told so.
    await asyncio.sleep(0.3)
    await shop.crash(c, *waiting)
    async with shop.sole() as c:
        outcomes = await resumed(c)
        adds_up(c, shop.sandbox, elsewhere=1)
    assert [SubmissionInDoubt] == errors(outcomes)
    lost = (shop.sandbox.ledger.tasks[0].task_id,)
    assert [lost] == [getattr(outcome.error, "candidates", ()) for outcome in outcomes]


@pytest.mark.parametrize("how", ["unsure", "failed", "returned", "deleted", "lost", "doubt"])
async def test_tasks_that_are_over(tmp_path: Path, monkeypatch: MP, how: str) -> None:
    """Tasks of jobs that are over are known after a crash as well, however they ended."""
    faults, jobs = Faults(), [job(1), job(2)]
    if how in {"failed", "returned"}:
        code = "error_no_face" if how == "failed" else "error_inference"
        faults = Faults(engine_errors=1.0, engine_error_codes=(code,))
    shop = Shop(tmp_path, monkeypatch, faults=faults)
    if how == "unsure":
        # A signed URL tells nobody whether two jobs are equal.
        jobs[0] = Smile("https://pictures.example/1.jpg?X-Amz-Signature=a")
    if how == "lost":
        jobs[0] = smile(1)
        for _ in range(3):
            shop.sandbox.script(
                "poll", (400, {"status": 400, "error": "", "error_code": "InvalidTaskId"})
            )
    if how == "doubt":
        shop.sandbox.script("task", "lose")
        shop.sandbox.script("history", (400, {"status": 400, "error": "no"}))
    stop = Stop(shop, 1 if how != "returned" else 2, executed=False)
    c = await shop.sole(stop).open()
    try:
        result = await c.run(jobs[0])
    except PerfectError:
        assert how not in {"unsure", "deleted"}
    else:
        if how == "deleted":
            await c.delete(result.task_id)
    shop.sandbox.faults = Faults()
    second = asyncio.ensure_future(c.run(jobs[1]))
    await stop.stopped.wait()
    await asyncio.sleep(0.1)
    await shop.crash(c, second)
    async with shop.sole() as c:
        outcomes = await resumed(c)
    assert [SubmissionInDoubt] == errors(outcomes)
    assert 1 == len(outcomes)


async def test_a_failed_try_of_the_same_job(tmp_path: Path, monkeypatch: MP) -> None:
    """A task that the engine failed is not found again as the next try, which was under way."""
    faults = Faults(engine_errors=1.0, engine_error_codes=("error_inference",))
    shop = Shop(tmp_path, monkeypatch, faults=faults)
    stop = Stop(shop, 1, executed=True)
    c = await shop.sole(stop).open()
    waiting = asyncio.ensure_future(c.run(smile(1)))
    await until(lambda: shop.sandbox.ledger.units_returned > 0)
    shop.sandbox.faults = Faults()
    await stop.stopped.wait()
    await shop.crash(c, waiting)
    async with shop.sole() as c:
        outcomes = await resumed(c)
    assert 1 == len(done(outcomes))
    paid(outcomes, shop.sandbox)


async def test_it_arrives_after_the_crash(tmp_path: Path, monkeypatch: MP) -> None:
    """A creation that was on its way when the process died is found, if it is there in time."""
    shop = Shop(tmp_path, monkeypatch, latency=2.0, jitter=0.0)
    c = await shop.sole().open()
    waiting = asyncio.ensure_future(c.run(smile(1)))
    await until(lambda: bool(shop.wire.sent))
    await shop.crash(c, waiting)
    async with shop.sole() as c:
        outcomes = await resumed(c)
        adds_up(c, shop.sandbox)
    assert 1 == len(done(outcomes)) == shop.sandbox.ledger.units_charged
