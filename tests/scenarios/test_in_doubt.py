"""A creation whose answer never came: settled from the unit history, or left alone; no face goes to
anybody else.
"""

import asyncio
from pathlib import Path

import httpx
import pytest

from perfect_async import Client, Failed, Outcome, PerfectError, Smile, SubmissionInDoubt
from perfect_async._api.history import HistorySearch, Movement, Unresolved
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
from tests.support.sandboxed import avatar, client, smile

MP = pytest.MonkeyPatch


def nobody_else(outcomes: list[Outcome]) -> None:
    """Each picture that was saved shows the face that went in."""
    for outcome in done(outcomes):
        assert outcome.files
        assert {int(str(outcome.job.key))} == set(faces(outcome.files))


def stranger(shop: Shop) -> Client:
    """Somebody else's client on the same key, in another process and without a journal."""
    # By another host name, or the two would share a ledger.
    return client(shop.sandbox, base_url="https://yce-api-01.perfectcorp.com")


# Settled.


@pytest.mark.parametrize("fate", ["lose", (200, "<html>")])
async def test_lost(tmp_path: Path, monkeypatch: MP, fate: object) -> None:
    """A task whose creation was executed and not answered is found, and paid for once."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", "lose")
    async with shop.client() as c:
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


async def test_submitted_again(tmp_path: Path, monkeypatch: MP) -> None:
    """Submitting a job in doubt again consents to a second charge, and creates it."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", "drop")
    async with shop.client() as c:
        with pytest.raises(SubmissionInDoubt, match="shows no charge") as caught:
            await c.run(job(1))
        assert 0.0 == caught.value.units_at_stake
        result = await c.run(job(1))
        adds_up(c, shop.sandbox)
        files = await result.save(shop.out)

    assert [1] == faces(files)
    assert 1 == shop.sandbox.ledger.units_charged


async def test_asked_at_once(tmp_path: Path, monkeypatch: MP) -> None:
    """The history is asked as soon as the answer is lost, before other creations and questions."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", "pass", "pass", "lose")
    async with shop.client() as c:
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
    async with shop.client(hung(60.0)(shop.sandbox)) as c:
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

    async with shop.client(change) as c:
        await c.run(smile(1))
        adds_up(c, shop.sandbox)
    assert {"success": 1} == dict(shop.sandbox.ledger.tasks_by_state)


async def test_an_answer_that_is_late(tmp_path: Path, monkeypatch: MP) -> None:
    """An answer that comes while the history is read is believed."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client(hung(4.05)(shop.sandbox)) as c:
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
        async with shop.client() as c:
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
    async with shop.client() as c:
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
    async with shop.client() as c:
        outcomes = await all_of(c.batch([job(1), job(2)], save_to=shop.out))
        adds_up(c, shop.sandbox, elsewhere=1)
    assert [SubmissionInDoubt] * 2 == errors(outcomes)


async def test_the_task_of_one_that_has_no_journal(tmp_path: Path, monkeypatch: MP) -> None:
    """Nor that of one in doubt of a client beside it that has no journal."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", "lose", "drop")
    async with (
        shop.client() as c,
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

    async with shop.client(change) as c:
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
        async with shop.client() as c:
            with pytest.raises(SubmissionInDoubt, match="does not tell"):
                await c.run(job(1))
            adds_up(c, shop.sandbox, elsewhere=2)


@pytest.mark.parametrize(
    ("action", "doubtful", "found"),
    [
        ("ai-smile", ("ai-avatar",), True),
        ("consume", ("ai-avatar",), False),
        ("ai-smile", ("ai-smile",), False),
        ("consume", (), True),
    ],
)
def test_others_in_doubt(action: str, doubtful: tuple[str, ...], found: bool) -> None:
    """Another creation in doubt matters if the task may be its: by the action, if that tells."""
    search = HistorySearch("ai-smile", ("ai-smile", "ai-avatar"), 10**9)
    search.read([Movement(10**9, action, "t"), Movement(10**9, "refund", "t")])
    verdict = search.verdict(lambda _: False, doubtful)
    assert ("t" if found else Unresolved.AMBIGUOUS) == verdict


@pytest.mark.parametrize(("before", "shared"), [(61, True), (59, False), (179, True), (181, False)])
def test_shared(before: int, shared: bool) -> None:
    """A stranger's task counts from shortly before what may be ours, unless it is known."""
    search = HistorySearch("ai-smile", ("ai-smile",), 10**9)
    search.read([Movement(10**9 - before * 1_000_000, "consume", "t")])
    assert shared is search.shared(lambda _: False)
    assert not search.shared(lambda _: True)


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
    c = await shop.client(stop).open()
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
    async with shop.client() as c:
        rest = await resumed(c)
    assert ([] if executed else [SubmissionInDoubt]) == errors(rest)
    nobody_else([*told, *rest])
    paid([*told, *rest], shop.sandbox)
    assert (3 if executed else 2) == shop.sandbox.ledger.units_charged


async def test_two_in_doubt_after_a_crash(tmp_path: Path, monkeypatch: MP) -> None:
    """What the history knew nothing of does not take the next one's task, nor keep it from it."""
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

    c = await shop.client(change).open()
    waiting = [asyncio.ensure_future(c.run(job(n))) for n in (1, 2)]
    await stop.stopped.wait()
    # The first has ended in doubt, and nobody has heard of it yet.
    await asyncio.sleep(0.3)
    await shop.crash(c, *waiting)
    async with shop.client() as c:
        outcomes = await resumed(c)
        [outcome] = done(outcomes)
        files = await outcome.result.save(tmp_path / "own")
        adds_up(c, shop.sandbox)
    assert {int(str(outcome.job.key))} == set(faces(files))


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
    c = await shop.client(stop).open()
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
    async with shop.client() as c:
        outcomes = await resumed(c)
    assert [SubmissionInDoubt] == errors(outcomes)
    assert 1 == len(outcomes)


async def test_a_failed_try_of_the_same_job(tmp_path: Path, monkeypatch: MP) -> None:
    """A task that the engine failed is not found again as the next try, which was under way."""
    faults = Faults(engine_errors=1.0, engine_error_codes=("error_inference",))
    shop = Shop(tmp_path, monkeypatch, faults=faults)
    stop = Stop(shop, 1, executed=True)
    c = await shop.client(stop).open()
    waiting = asyncio.ensure_future(c.run(smile(1)))
    await until(lambda: shop.sandbox.ledger.units_returned > 0)
    shop.sandbox.faults = Faults()
    await stop.stopped.wait()
    await shop.crash(c, waiting)
    async with shop.client() as c:
        outcomes = await resumed(c)
    assert 1 == len(done(outcomes))
    paid(outcomes, shop.sandbox)


async def test_it_arrives_after_the_crash(tmp_path: Path, monkeypatch: MP) -> None:
    """A creation that was on its way when the process died is found, if it is there in time."""
    shop = Shop(tmp_path, monkeypatch, latency=2.0, jitter=0.0)
    c = await shop.client().open()
    waiting = asyncio.ensure_future(c.run(smile(1)))
    await until(lambda: bool(shop.wire.sent))
    await shop.crash(c, waiting)
    async with shop.client() as c:
        outcomes = await resumed(c)
        adds_up(c, shop.sandbox)
    assert 1 == len(done(outcomes)) == shop.sandbox.ledger.units_charged
