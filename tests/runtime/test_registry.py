"""Jobs enter the registry: new ones, equal ones, and those that have, or may have, a task."""

import asyncio
from pathlib import Path

import attrs
import pytest

from perfect_async import ClientClosed, Smile, SubmissionInDoubt, TaskAbandoned
from perfect_async._journal import model as entries
from perfect_async._runtime.registry import _end_kind
from perfect_async._runtime.spec import PLAIN, JobSpec
from perfect_async.errors import PerfectError, RequestRefused, ResultUnreadable, TaskFailed
from tests.support.journaled import (
    JournalHarness,
    adds_up,
    creates,
    done,
    errors,
    job,
    resumed,
    until,
)
from tests.support.sandboxed import avatar, smile

MP = pytest.MonkeyPatch


async def in_doubt(harness: JournalHarness) -> None:
    """A process that dies while a creation is under way, which is not executed."""
    stopped = asyncio.Event()

    async def never(request: object) -> None:
        if creates(request):  # type: ignore[arg-type]
            stopped.set()
            await asyncio.sleep(1e6)

    c = await harness.client(never).open()
    working = asyncio.ensure_future(c.run(smile(1)))
    await stopped.wait()
    await harness.crash(c, working)


@pytest.mark.parametrize("pause", [0.0, 0.1, 3.0])
async def test_a_client_that_closes_while_it_settles_a_doubt(
    tmp_path: Path, monkeypatch: MP, pause: float
) -> None:
    """The doubt is left to the next process."""
    harness = JournalHarness(tmp_path, monkeypatch)
    await in_doubt(harness)
    async with harness.client(drain=0.0) as c, c.resume() as batch:
        await asyncio.sleep(pause)
    # A job that was not begun has no other state.
    assert [SubmissionInDoubt if pause else ClientClosed] == errors([o async for o in batch])
    async with harness.client() as c:
        assert [SubmissionInDoubt] == errors(await resumed(c))
        adds_up(c, harness.sandbox)
    async with harness.client() as c:
        assert [] == await resumed(c)


async def test_a_caller_that_leaves_while_a_doubt_is_settled(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """The next process still reports the doubt."""
    harness = JournalHarness(tmp_path, monkeypatch)
    await in_doubt(harness)
    async with harness.client() as c:
        async with c.resume():
            await asyncio.sleep(0.1)
        await asyncio.sleep(30)
        adds_up(c, harness.sandbox)
    async with harness.client() as c:
        assert [SubmissionInDoubt] == errors(await resumed(c))


async def test_an_equal_job_while_a_doubt_is_settled(tmp_path: Path, monkeypatch: MP) -> None:
    """It waits for the same outcome, and only a later one creates the job."""
    harness = JournalHarness(tmp_path, monkeypatch)
    await in_doubt(harness)
    async with harness.client() as c:
        both = await asyncio.gather(c.run(smile(1)), c.run(smile(1)), return_exceptions=True)
        assert [SubmissionInDoubt] * 2 == [type(each) for each in both]
        await c.run(smile(1), buy_in_doubt=True)
        adds_up(c, harness.sandbox)
    assert 1 == harness.sandbox.ledger.units_charged


async def test_the_driver_fails_meanwhile(tmp_path: Path, monkeypatch: MP) -> None:
    """Where the driver ends by itself nobody hangs, and the next process goes on.

    The avatar was created after the doubt was settled and reported.
    """
    harness = JournalHarness(tmp_path, monkeypatch)
    await in_doubt(harness)
    c = await harness.client().open()
    settling = asyncio.ensure_future(resumed(c))
    running = asyncio.ensure_future(c.run(avatar()))
    await until(lambda: len(harness.sandbox.ledger.tasks) > 0)
    await asyncio.sleep(1)
    await harness.crash(c)
    assert [SubmissionInDoubt] == errors(await settling)
    with pytest.raises(TaskAbandoned):
        await running
    async with harness.client() as c:
        outcomes = await resumed(c)
    assert (1, 0) == (len(done(outcomes)), len(errors(outcomes)))


async def test_jobs_of_another_version_stay_in_the_journal(
    tmp_path: Path, monkeypatch: MP, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that this version cannot make is left as it is, and the others go on."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        assert c._session is not None
        journal = c._session.channel.journal.writer
        order = JobSpec.of(smile(1), None, PLAIN).stored()
        strange = attrs.evolve(order, feature="ai-hat", identity="ab" * 32)
        journal.append(entries.Entered(journal.next_number(), 0, strange))
        journal.append(entries.Entered(journal.next_number(), 0, order))
    async with harness.client() as c:
        assert 1 == len(done(await resumed(c)))
        adds_up(c, harness.sandbox)
    assert ["WARNING"] == [each.levelname for each in caplog.records]
    async with harness.client() as c:
        assert c._session is not None
        left = c._session.channel.journal.recoverable
        assert ["ai-hat"] == [each.stored.feature for each in left.values()]


async def test_an_unseen_failure_is_reported_once(tmp_path: Path, monkeypatch: MP) -> None:
    """The next process reports a failure that nobody has seen, and does not send the job."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        assert c._session is not None
        journal = c._session.channel.journal.writer
        number = journal.next_number()
        order = JobSpec.of(smile(1), None, PLAIN).stored()
        journal.append(entries.Entered(number, 0, order))
        journal.append(entries.Ended(number, 0, "failed"))
    async with harness.client() as c:
        assert [RequestRefused] == errors(await resumed(c))
        assert [] == await resumed(c)
    assert not harness.sandbox.ledger.requests


@pytest.mark.parametrize("journal", [True, False])
async def test_a_caller_that_leaves_during_the_upload(
    tmp_path: Path, monkeypatch: MP, journal: bool
) -> None:
    """The caller gets the error, and nothing is bought."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with (harness.client if journal else harness.plain)() as c:
        running = asyncio.ensure_future(c.run(job(1)))
        await until(lambda: harness.sandbox.ledger.requests["file"] > 0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(30)
        adds_up(c, harness.sandbox)
    assert 0 == harness.sandbox.ledger.units_charged


async def test_a_closed_client_accepts_no_job(tmp_path: Path, monkeypatch: MP) -> None:
    """A closed client refuses every job."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        pass
    with pytest.raises(ClientClosed):
        await c.run(smile(1))
    with pytest.raises(ClientClosed):
        await c.attach(Smile, "t")
    assert not harness.sandbox.ledger.requests


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        ("lost", ResultUnreadable("x.", task_id="t", units_at_stake=1.0)),
        ("lost", RequestRefused("x.", units_at_stake=1.0)),
        ("failed", RequestRefused("x.")),
        ("failed", TaskFailed("x.", code="error_pose", passing=False, task_id="t")),
    ],
    ids=repr,
)
def test_a_charged_job_is_not_recorded_as_uncharged(expected: str, error: PerfectError) -> None:
    """A job that ends with units at stake is recorded as lost, not as failed without a charge."""
    assert expected == _end_kind(error, closing=False)
