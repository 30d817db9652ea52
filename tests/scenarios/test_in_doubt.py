"""A creation without a usable answer is in doubt, or is settled for the only user of the key."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from perfect_async import Client, Failed, Outcome, PerfectError, Smile, SubmissionInDoubt
from perfect_async._journal.journal import JobEntry
from perfect_async._runtime import commands
from perfect_async._runtime import driver as drivers
from perfect_async._runtime.commands import Submitter
from perfect_async._runtime.sharing import SharedKey
from perfect_async.sandbox import Durations, Faults
from tests.support.journaled import (
    MINUTE,
    Change,
    JournalHarness,
    adds_up,
    all_of,
    creates,
    done,
    errors,
    face,
    faces,
    hung,
    job,
    paid,
    resumed,
    until,
)
from tests.support.sandboxed import avatar, client, clock, smile

MP = pytest.MonkeyPatch


def own_faces_only(outcomes: list[Outcome]) -> None:
    """Check that each saved picture shows the face that was sent."""
    for outcome in done(outcomes):
        assert outcome.files
        assert {int(str(outcome.job.key))} == set(faces(outcome.files))


@asynccontextmanager
async def other_user(harness: JournalHarness) -> AsyncGenerator[Client]:
    """Another user's open client on the same key, in another process and without a journal."""
    # It uses the other host name, since the two would otherwise share a ledger.
    async with client(harness.sandbox, base_url="https://yce-api-01.perfectcorp.com") as other:
        assert other._session is not None
        commands._submitters.discard(other._session.driver.submitter)
        yield other


# Settled.


@pytest.mark.parametrize("fate", ["lose", (200, "<html>")])
async def test_a_lost_answer_is_settled(tmp_path: Path, monkeypatch: MP, fate: object) -> None:
    """A task whose creation was executed and not answered is found, and charged once."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.sandbox.script("task", "lose")
    async with harness.sole() as c:
        outcomes = await all_of(c.batch([job(n) for n in range(4)], save_to=harness.out))
        adds_up(c, harness.sandbox)

    assert 4 == len(done(outcomes)) == harness.sandbox.ledger.units_charged
    own_faces_only(outcomes)
    paid(outcomes, harness.sandbox)


@pytest.mark.parametrize("fate", ["drop", (502, "<html>Bad Gateway</html>"), (200, "<html>")])
async def test_an_empty_history_leaves_the_doubt(
    tmp_path: Path, monkeypatch: MP, fate: object
) -> None:
    """The job stays in doubt, is reported once, and is not created again."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.sandbox.script("task", fate)  # type: ignore[arg-type]
    async with harness.client() as c:
        outcomes = await all_of(c.batch([job(n) for n in range(4)], save_to=harness.out))
        adds_up(c, harness.sandbox)
        assert 4 == harness.sandbox.ledger.requests["task"]

    assert [SubmissionInDoubt] == errors(outcomes)
    own_faces_only(outcomes)
    paid(outcomes, harness.sandbox)
    async with harness.client() as c:
        assert [] == await resumed(c)


async def test_the_only_candidate_is_not_taken_without_sole_user(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """The only task of the history is a candidate, but its result is not returned."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.sandbox.script("task", "lose")
    async with harness.client() as c:
        outcomes = await all_of(c.batch([job(n) for n in range(4)], save_to=harness.out))
        adds_up(c, harness.sandbox, elsewhere=1)

    [failed] = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert isinstance(failed.error, SubmissionInDoubt)
    lost = harness.sandbox.ledger.tasks[0].task_id
    assert ((lost,), 1.0) == (failed.error.candidates, failed.error.units_at_stake)
    own_faces_only(outcomes)
    paid(outcomes, harness.sandbox)


@pytest.mark.parametrize("journal", [True, False])
@pytest.mark.parametrize("fate", ["lose", "drop"])
async def test_the_same_doubt_until_the_process_ends(
    tmp_path: Path, monkeypatch: MP, journal: bool, fate: str
) -> None:
    """An equal job gets the same doubt, in this client and the next, unless the caller consents."""
    harness = JournalHarness(tmp_path, monkeypatch)
    make = harness.client if journal else harness.plain
    harness.sandbox.script("task", fate)  # type: ignore[arg-type]
    async with make() as c:
        with pytest.raises(SubmissionInDoubt) as first:
            await c.run(job(1))
        assert 1.0 == first.value.units_at_stake
        with pytest.raises(SubmissionInDoubt) as second:
            await c.run(job(1))
        outcomes = await all_of(c.batch([job(1), job(2)], save_to=harness.out))
    async with make() as c:
        with pytest.raises(SubmissionInDoubt) as third:
            await c.run(job(1))
        assert {str(first.value)} == {str(each.value) for each in (second, third)}
        assert first.value is not second.value
        assert [SubmissionInDoubt] == errors(outcomes)
        assert 2 == harness.sandbox.ledger.requests["task"]

        result = await c.run(job(1), buy_in_doubt=True)
        assert [1] == faces(await result.save(harness.out))
        # It is no longer in doubt.
        again = await all_of(c.batch([job(1)], save_to=harness.out))
    assert [] == errors(again)


async def test_consent_for_a_batch(tmp_path: Path, monkeypatch: MP) -> None:
    """`buy_in_doubt` of a batch consents for its jobs."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.sandbox.script("task", "drop")
    async with harness.client() as c:
        assert [SubmissionInDoubt] == errors(await all_of(c.batch([job(1)], save_to=harness.out)))
        outcomes = await all_of(c.batch([job(1)], save_to=harness.out, buy_in_doubt=True))

    own_faces_only(outcomes)
    assert 1 == len(done(outcomes)) == harness.sandbox.ledger.units_charged


async def test_the_batch_after_resuming(tmp_path: Path, monkeypatch: MP) -> None:
    """Resuming reports a doubt once, the next batch gets the same, and a later process buys."""
    harness = JournalHarness(tmp_path, monkeypatch)
    stop = Stop(harness, 0, executed=True)
    c = await harness.client(stop).open()
    waiting = asyncio.ensure_future(c.run(job(1)))
    await stop.stopped.wait()
    await harness.crash(c, waiting)
    async with harness.client() as c:
        [told] = await resumed(c)
        assert isinstance(told.error, SubmissionInDoubt)
        assert (harness.sandbox.ledger.tasks[0].task_id,) == told.error.candidates
        assert [] == await resumed(c)
        [again] = await all_of(c.batch([job(1)], save_to=harness.out))
        assert str(told.error) == str(again.error)
        assert 1 == harness.sandbox.ledger.units_charged
        await harness.crash(c)
    async with harness.client() as c:
        assert [] == await resumed(c)
        outcomes = await all_of(c.batch([job(1)], save_to=harness.out))
    own_faces_only(outcomes)
    assert 2 == harness.sandbox.ledger.units_charged


@pytest.mark.parametrize("consent", [True, False])
async def test_a_doubt_that_was_not_resumed(tmp_path: Path, monkeypatch: MP, consent: bool) -> None:
    """A doubt after a crash is reported before the job is bought, unless the caller consents."""
    harness = JournalHarness(tmp_path, monkeypatch)
    stop = Stop(harness, 0, executed=False)
    c = await harness.client(stop).open()
    waiting = asyncio.ensure_future(c.run(job(1)))
    await stop.stopped.wait()
    await harness.crash(c, waiting)
    async with harness.client() as c:
        options = {"buy_in_doubt": consent}
        outcomes = await all_of(c.batch([job(1)], save_to=harness.out, **options))
        assert [] == await resumed(c)
    assert consent == (not errors(outcomes))
    assert int(consent) == harness.sandbox.ledger.units_charged


@pytest.mark.parametrize("sole", [True, False])
async def test_a_history_that_is_refused(tmp_path: Path, monkeypatch: MP, sole: bool) -> None:
    """A doubt is reported within seconds although the history answers 429, and others go on."""
    harness = JournalHarness(tmp_path, monkeypatch)
    refusal = (429, {"status": 429, "error": "Too many requests"})
    harness.sandbox.script("history", *[refusal] * 50)
    harness.sandbox.script("task", "lose")
    async with harness.client(sole_user=sole) as c:
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
    """The task is a candidate, and its units are at stake, whatever the vendor's clock."""
    harness = JournalHarness(tmp_path, monkeypatch)
    inner = harness.sandbox.transport()

    async def change(request: httpx.Request) -> httpx.Response | None:
        if not request.url.path.endswith("history"):
            return None
        answer = await inner.handle_async_request(request)
        body = json.loads(await answer.aread())
        for row in body["result"]["history"]:
            row["timestamp"] -= round(behind * 1000)
        return httpx.Response(200, json=body)

    harness.sandbox.script("task", "lose")
    async with harness.client(change) as c:
        with pytest.raises(SubmissionInDoubt) as caught:
            await c.run(job(1))
    lost = harness.sandbox.ledger.tasks[0].task_id
    assert (1.0, (lost,)) == (caught.value.units_at_stake, caught.value.candidates)


async def test_two_workers_on_one_key(tmp_path: Path, monkeypatch: MP) -> None:
    """Two clients with a journal each never return each other's face."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.sandbox.script("task", "pass", (502, "<html>Bad Gateway</html>"), "pass")
    url = "https://yce-api-01.perfectcorp.com"
    async with (
        harness.client(journal=tmp_path / "a.db") as one,
        harness.client(journal=tmp_path / "b.db", base_url=url) as two,
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
    own_faces_only(outcomes)


async def test_every_open_client_is_asked(tmp_path: Path, monkeypatch: MP) -> None:
    """The task of another open client is not taken, even with `sole_user`."""
    harness = JournalHarness(tmp_path, monkeypatch)
    url = "https://yce-api-01.perfectcorp.com"
    async with (
        harness.sole(journal=tmp_path / "a.db") as one,
        harness.sole(journal=tmp_path / "b.db", base_url=url) as two,
    ):
        running = asyncio.ensure_future(one.run(job(1)))
        await until(lambda: bool(harness.sandbox.ledger.tasks))
        await asyncio.sleep(0.2)
        harness.sandbox.script("task", "drop")
        with pytest.raises(SubmissionInDoubt) as caught:
            await two.run(job(2))
        assert () == caught.value.candidates
        await running


@pytest.mark.parametrize("journal", [True, False])
async def test_an_id_that_comes_twice(tmp_path: Path, monkeypatch: MP, journal: bool) -> None:
    """A task id that was given before puts the second creation in doubt; the first job goes on."""
    harness = JournalHarness(tmp_path, monkeypatch)
    inner, first = harness.sandbox.transport(), asyncio.Event()
    answers: list[dict[str, object]] = []

    async def change(request: httpx.Request) -> httpx.Response | None:
        if not creates(request):
            return None
        answer = await inner.handle_async_request(request)
        answers.append(json.loads(await answer.aread()))
        first.set()
        return httpx.Response(200, json=answers[0])

    made = harness.client(change) if journal else harness.client(change, journal=None)
    async with made as c:
        running = asyncio.ensure_future(c.run(job(1)))
        await first.wait()
        await asyncio.sleep(1)
        with pytest.raises(SubmissionInDoubt, match="another job's task") as caught:
            await c.run(job(2))
        assert 1.0 == caught.value.units_at_stake
        result = await running
        assert [1] == faces(await result.save(harness.out))
    if journal:
        harness.sandbox.script("task", (200, answers[0]))
        async with harness.client() as c:
            with pytest.raises(SubmissionInDoubt, match="another job's task"):
                await c.run(job(3))


async def test_the_history_is_read_at_once(tmp_path: Path, monkeypatch: MP) -> None:
    """It is read as soon as the answer is lost, before other creations and queries."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.sandbox.script("task", "pass", "pass", "lose")
    async with harness.sole() as c:
        outcomes = await all_of(c.batch([smile(n) for n in range(12)]))
        adds_up(c, harness.sandbox)

    calls = [path.rpartition("/")[2] for _, _, path in harness.wire.sent]
    third = [at for at, call in enumerate(calls) if call == "ai-smile"][2]
    assert "history" in calls[third + 1 : third + 4]
    times = [at for at, _, path in harness.wire.sent if path.endswith("history")]
    assert times[0] - harness.wire.sent[third][0] < 1.0
    assert 12 == len(done(outcomes))


async def test_a_task_is_found_while_the_answer_hangs(tmp_path: Path, monkeypatch: MP) -> None:
    """A task whose answer takes longer than the lease is found and kept alive."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(25.0)})
    async with harness.sole(hung(60.0)(harness.sandbox)) as c:
        outcomes = await all_of(c.batch([job(n) for n in range(3)], save_to=harness.out))
        adds_up(c, harness.sandbox)

    assert 3 == len(done(outcomes)) == harness.sandbox.ledger.units_charged
    assert 0 == harness.sandbox.ledger.units_wasted
    own_faces_only(outcomes)


async def test_a_creation_that_is_executed_late_is_found(tmp_path: Path, monkeypatch: MP) -> None:
    """A creation that is executed while the client waits is found before its lease ends."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(25.0)})
    inner = harness.sandbox.transport()
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

    async with harness.sole(change) as c:
        await c.run(smile(1))
        adds_up(c, harness.sandbox)
    assert {"success": 1} == dict(harness.sandbox.ledger.tasks_by_state)


async def test_a_late_answer_counts(tmp_path: Path, monkeypatch: MP) -> None:
    """An answer that comes while the history is read is used."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.sole(hung(4.05)(harness.sandbox)) as c:
        outcomes = await all_of(c.batch([job(n) for n in range(2)], save_to=harness.out))
        adds_up(c, harness.sandbox)

    assert 2 == len(done(outcomes))
    own_faces_only(outcomes)


async def test_creations_with_a_journal_go_one_at_a_time(tmp_path: Path, monkeypatch: MP) -> None:
    """Without a journal they may overlap."""
    most = {True: 0, False: 0}
    for journal in (True, False):
        harness = JournalHarness(tmp_path / str(journal), monkeypatch, latency=0.9)
        harness.folder.mkdir()
        flying = 0
        inner = harness.sandbox.transport()

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

        made = harness.client(count) if journal else harness.client(count, journal=None)
        async with made as c:
            outcomes = await all_of(c.batch([smile(n) for n in range(20)]))
            adds_up(c, harness.sandbox)
        assert 20 == len(done(outcomes))
    assert (1, True) == (most[True], most[False] > 1)


# Doubts that stay.


async def test_another_users_task_in_the_same_minute(tmp_path: Path, monkeypatch: MP) -> None:
    """The job stays in doubt, with its unit at stake."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with other_user(harness) as other:
        await other.run(job(99))
        harness.sandbox.script("task", "lose")
        async with harness.sole() as c:
            outcomes = await all_of(c.batch([job(n) for n in range(3)], save_to=harness.out))
            adds_up(c, harness.sandbox, elsewhere=2)

    assert [SubmissionInDoubt] == errors(outcomes)
    [failed] = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert 1.0 == failed.error.units_at_stake
    own_faces_only(outcomes)


async def test_an_unreadable_history_leaves_the_doubt(tmp_path: Path, monkeypatch: MP) -> None:
    """Without the history the job stays in doubt."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.sandbox.script("task", "lose")
    harness.sandbox.script("history", (400, {"status": 400, "error": "no"}))
    async with harness.sole() as c:
        with pytest.raises(SubmissionInDoubt, match="could not be read") as caught:
            await c.run(job(1))
        adds_up(c, harness.sandbox, elsewhere=1)
    assert 1.0 == caught.value.units_at_stake


async def test_a_candidate_of_two_jobs_is_given_to_neither(tmp_path: Path, monkeypatch: MP) -> None:
    """A task that may belong to one job in doubt is not given to another."""
    harness = JournalHarness(tmp_path, monkeypatch)
    # The first is executed and cannot be read; the second is not, and finds the first's task.
    harness.sandbox.script("task", "lose", "drop")
    harness.sandbox.script("history", (400, {"status": 400, "error": "no"}))
    async with harness.sole() as c:
        outcomes = await all_of(c.batch([job(1), job(2)], save_to=harness.out))
        adds_up(c, harness.sandbox, elsewhere=1)
    assert [SubmissionInDoubt] * 2 == errors(outcomes)


async def test_a_candidate_of_a_client_without_a_journal(tmp_path: Path, monkeypatch: MP) -> None:
    """A task that may belong to another client's job in doubt is not taken."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.sandbox.script("task", "lose", "drop")
    async with (
        harness.sole() as c,
        harness.client(journal=None, transport=c._transport) as plain,
    ):
        with pytest.raises(SubmissionInDoubt):
            await plain.run(job(1))
        with pytest.raises(SubmissionInDoubt):
            await c.run(job(2))
        adds_up(c, harness.sandbox, elsewhere=1)


async def test_the_task_of_another_feature(tmp_path: Path, monkeypatch: MP) -> None:
    """A task that is being created meanwhile for another feature is not taken for the one in doubt.

    The history's actions name no feature here, so all that tells them apart is to wait.
    """
    harness = JournalHarness(tmp_path, monkeypatch)
    inner = harness.sandbox.transport(latency=0.05, jitter=0.0)

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

    async with harness.sole(change) as c:
        outcomes = await all_of(c.batch([smile(1), avatar()]))
        adds_up(c, harness.sandbox)
    assert [SubmissionInDoubt] == errors(outcomes)
    assert ["ai-avatar"] == [outcome.job.feature for outcome in done(outcomes)]


async def test_a_key_that_others_use(tmp_path: Path, monkeypatch: MP) -> None:
    """If another user created a task shortly before, the only unknown task may be theirs too."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with other_user(harness) as other:
        await other.run(job(98))
        await asyncio.sleep(2 * MINUTE)
        harness.sandbox.script("task", "pass", "drop")
        await other.run(job(99))
        async with harness.sole() as c:
            with pytest.raises(SubmissionInDoubt, match="does not show which task"):
                await c.run(job(1))
            adds_up(c, harness.sandbox, elsewhere=2)


# After a crash.


class Stop:
    """From the `at`-th creation on nothing is answered; the first of these is `executed` or not."""

    def __init__(self, harness: JournalHarness, at: int, *, executed: bool) -> None:
        self._inner = harness.sandbox.transport()
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


async def crashed_at(
    harness: JournalHarness, jobs: list[Smile], at: int, *, executed: bool
) -> list[Outcome]:
    """A process that creates `at` tasks, takes their outcomes, and dies during another creation."""
    stop = Stop(harness, at, executed=executed)
    c = await harness.sole(stop).open()
    told: list[Outcome] = []
    async with c.batch(jobs, save_to=harness.out) as batch:
        told += [await anext(batch) for _ in range(at)]
        await stop.stopped.wait()
        await asyncio.sleep(0.2)
        await harness.crash(c)
    return told


@pytest.mark.parametrize("executed", [True, False])
async def test_a_crash_before_the_answer(tmp_path: Path, monkeypatch: MP, executed: bool) -> None:
    """The next process finds the task that was under way, or reports that there is none."""
    harness = JournalHarness(tmp_path, monkeypatch)
    told = await crashed_at(harness, [job(n) for n in range(3)], 2, executed=executed)
    async with harness.sole() as c:
        rest = await resumed(c)
    assert ([] if executed else [SubmissionInDoubt]) == errors(rest)
    own_faces_only([*told, *rest])
    paid([*told, *rest], harness.sandbox)
    assert (3 if executed else 2) == harness.sandbox.ledger.units_charged


async def test_two_in_doubt_after_a_crash(tmp_path: Path, monkeypatch: MP) -> None:
    """Neither of two creations in doubt gets the only task of the history."""
    harness = JournalHarness(tmp_path, monkeypatch)
    stop = Stop(harness, 1, executed=True)
    inner = harness.sandbox.transport()
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

    c = await harness.sole(change).open()
    waiting = [asyncio.ensure_future(c.run(job(n))) for n in (1, 2)]
    await stop.stopped.wait()
    # The first has ended in doubt, which was reported.
    await asyncio.sleep(0.3)
    await harness.crash(c, *waiting)
    async with harness.sole() as c:
        outcomes = await resumed(c)
        adds_up(c, harness.sandbox, elsewhere=1)
    assert [SubmissionInDoubt] == errors(outcomes)
    lost = (harness.sandbox.ledger.tasks[0].task_id,)
    assert [lost] == [getattr(outcome.error, "candidates", ()) for outcome in outcomes]


@pytest.mark.parametrize("how", ["unsure", "failed", "returned", "deleted", "lost", "doubt"])
async def test_ended_tasks_are_known_after_a_crash(
    tmp_path: Path, monkeypatch: MP, how: str
) -> None:
    """The tasks of ended jobs are no candidates, however they ended."""
    faults, jobs = Faults(), [job(1), job(2)]
    if how in {"failed", "returned"}:
        code = "error_no_face" if how == "failed" else "error_inference"
        faults = Faults(engine_errors=1.0, engine_error_codes=(code,))
    harness = JournalHarness(tmp_path, monkeypatch, faults=faults)
    if how == "unsure":
        # Signed URLs do not show whether two jobs are equal.
        jobs[0] = Smile("https://pictures.example/1.jpg?X-Amz-Signature=a")
    if how == "lost":
        jobs[0] = smile(1)
        for _ in range(3):
            harness.sandbox.script(
                "poll", (400, {"status": 400, "error": "", "error_code": "InvalidTaskId"})
            )
    if how == "doubt":
        harness.sandbox.script("task", "lose")
        harness.sandbox.script("history", (400, {"status": 400, "error": "no"}))
    stop = Stop(harness, 1 if how != "returned" else 2, executed=False)
    c = await harness.sole(stop).open()
    try:
        result = await c.run(jobs[0])
    except PerfectError:
        assert how not in {"unsure", "deleted"}
    else:
        if how == "deleted":
            await c.delete(result.task_id)
    harness.sandbox.faults = Faults()
    second = asyncio.ensure_future(c.run(jobs[1]))
    await stop.stopped.wait()
    await asyncio.sleep(0.1)
    await harness.crash(c, second)
    async with harness.sole() as c:
        outcomes = await resumed(c)
    assert [SubmissionInDoubt] == errors(outcomes)
    assert 1 == len(outcomes)


async def test_a_failed_try_of_the_same_job(tmp_path: Path, monkeypatch: MP) -> None:
    """A task on which the engine failed is not found as the next try, which was under way."""
    faults = Faults(engine_errors=1.0, engine_error_codes=("error_inference",))
    harness = JournalHarness(tmp_path, monkeypatch, faults=faults)
    stop = Stop(harness, 1, executed=True)
    c = await harness.sole(stop).open()
    waiting = asyncio.ensure_future(c.run(smile(1)))
    await until(lambda: harness.sandbox.ledger.units_returned > 0)
    harness.sandbox.faults = Faults()
    await stop.stopped.wait()
    await harness.crash(c, waiting)
    async with harness.sole() as c:
        outcomes = await resumed(c)
    assert 1 == len(done(outcomes))
    paid(outcomes, harness.sandbox)


async def test_a_creation_that_arrives_after_the_crash(tmp_path: Path, monkeypatch: MP) -> None:
    """It is found if the vendor executes it in time."""
    harness = JournalHarness(tmp_path, monkeypatch, latency=2.0, jitter=0.0)
    c = await harness.sole().open()
    waiting = asyncio.ensure_future(c.run(smile(1)))
    await until(lambda: bool(harness.wire.sent))
    await harness.crash(c, waiting)
    async with harness.sole() as c:
        outcomes = await resumed(c)
        adds_up(c, harness.sandbox)
    assert 1 == len(done(outcomes)) == harness.sandbox.ledger.units_charged


# A process on a shared key that was killed before its journal had the answer.


async def killed_before_the_journal(
    harness: JournalHarness,
    monkeypatch: MP,
    share: Path,
    one: Smile,
    *,
    change: Change | None = None,
    after: float = 0.5,
    **settings: object,
) -> None:
    """Run a process that creates a task for `one`, writes its ledger, and dies.

    Its journal has no answer to the creation.
    """
    ran = sum(harness.sandbox.ledger.tasks_by_state.values())
    c = await harness.client(change, share=str(share), **settings).open()
    with monkeypatch.context() as patch:
        patch.setattr(JobEntry, "created", lambda *_: None)
        working = asyncio.ensure_future(c.run(one))
        await until(lambda: sum(harness.sandbox.ledger.tasks_by_state.values()) > ran)
        await asyncio.sleep(after)
        await harness.crash(c, working)


@pytest.mark.parametrize("after", [0.5, 3.0])
@pytest.mark.parametrize("by", ["resume", "run", "batch"])
async def test_the_ledger_settles_a_doubt(
    tmp_path: Path, monkeypatch: MP, by: str, after: float
) -> None:
    """The ledger names the task of the creation, so the task is fetched and charged once."""
    harness = JournalHarness(tmp_path, monkeypatch)
    share = tmp_path / "state"
    await killed_before_the_journal(harness, monkeypatch, share, job(1), after=after)
    # Another customer of the account has a task, which the history shows too.
    async with other_user(harness) as other:
        _ = await other.submit(job(2))
        async with harness.client(share=str(share)) as c:
            if by == "run":
                results = [await c.run(job(1))]
            elif by == "resume":
                results = [each.result for each in done(await resumed(c))]
            else:
                batch = c.batch([job(1)], resume=True)
                results = [each.result for each in done(await all_of(batch))]
            assert results
            for result in results:
                assert [1] == faces(await result.save(harness.out))
                assert harness.sandbox.ledger.tasks[0].task_id == result.task_id
            assert "history" not in harness.sandbox.ledger.requests
            assert 0 == c.statistics().units.at_stake
    assert 2 == harness.sandbox.ledger.units_charged
    async with harness.client(share=str(share)) as c:
        assert [] == await resumed(c)


async def test_the_ledger_settles_the_doubt_of_a_resumed_job(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """The job is the same in the ledger when a second process creates it from a former upload."""
    harness = JournalHarness(tmp_path, monkeypatch)
    share, one = tmp_path / "state", Smile(face(1))
    c = await harness.client(share=str(share)).open()

    async def forever(*_: object) -> None:
        await asyncio.sleep(1e6)

    with monkeypatch.context() as patch:
        patch.setattr(Submitter, "create", forever)
        working = asyncio.ensure_future(c.run(one))
        await asyncio.sleep(5)
        await harness.crash(c, working)
    c = await harness.client(share=str(share)).open()
    with monkeypatch.context() as patch:
        patch.setattr(JobEntry, "created", lambda *_: None)
        resuming = asyncio.ensure_future(resumed(c))
        await until(lambda: bool(harness.sandbox.ledger.tasks))
        await asyncio.sleep(0.5)
        await harness.crash(c, resuming)
    async with harness.client(share=str(share)) as c:
        [outcome] = done(await resumed(c))
        assert [1] == faces(await outcome.result.save(harness.out))
    # Another process that asks the ledger finds the job too.
    drivers._drivers.clear()
    async with harness.client(share=str(share), journal=None, reuse=True) as c:
        assert outcome.task_id == (await c.run(one)).task_id
    assert 1 == harness.sandbox.ledger.requests["upload"]
    assert 1 == harness.sandbox.ledger.units_charged


async def test_an_older_purchase_settles_no_doubt(tmp_path: Path, monkeypatch: MP) -> None:
    """The task of an earlier, equal job is not taken for the lost one."""
    harness = JournalHarness(tmp_path, monkeypatch)
    share = tmp_path / "state"
    async with harness.client(share=str(share), reuse=False) as c:
        first = await c.run(job(1))
    lose = hung(1e6)(harness.sandbox)
    await killed_before_the_journal(
        harness, monkeypatch, share, job(1), change=lose, after=3.0, reuse=False
    )
    async with harness.client(share=str(share), reuse=False) as c:
        [outcome] = await resumed(c)
    assert isinstance(outcome.error, SubmissionInDoubt)
    assert first.task_id not in outcome.error.candidates
    [lost] = [t.task_id for t in harness.sandbox.ledger.tasks if t.task_id != first.task_id]
    assert (lost,) == outcome.error.candidates


@pytest.mark.parametrize("sole", [True, False])
async def test_tasks_of_the_job_are_the_first_candidates(
    tmp_path: Path, monkeypatch: MP, sole: bool
) -> None:
    """Without the creation's row the doubt stays, and names the job's own tasks first.

    A journal of a former version does not name the row.
    """
    harness = JournalHarness(tmp_path, monkeypatch)
    share = tmp_path / "state"
    with monkeypatch.context() as patch:
        patch.setattr(SharedKey, "intent", lambda *_: "")
        await killed_before_the_journal(harness, monkeypatch, share, job(1))
    own = harness.sandbox.ledger.tasks[0].task_id
    async with other_user(harness) as other:
        task = await other.submit(job(2))
        async with harness.client(share=str(share), sole_user=sole) as c:
            [outcome] = await resumed(c)
    assert isinstance(outcome.error, SubmissionInDoubt)
    assert (own, task.id) == outcome.error.candidates


async def test_a_process_without_its_ledger_stays_in_doubt(tmp_path: Path, monkeypatch: MP) -> None:
    """A client that does not share the key, or shares it elsewhere, adopts nothing."""
    harness = JournalHarness(tmp_path, monkeypatch)
    await killed_before_the_journal(harness, monkeypatch, tmp_path / "state", job(1))
    async with harness.client(share=str(tmp_path / "other")) as c:
        [outcome] = await resumed(c)
    assert isinstance(outcome.error, SubmissionInDoubt)
    assert (harness.sandbox.ledger.tasks[0].task_id,) == outcome.error.candidates
