"""The units charged stay within `max_units`, and the spending adds up."""

import asyncio
from pathlib import Path

import pytest

from perfect_async import ConfigurationError, Job
from perfect_async.errors import CeilingReached
from perfect_async.sandbox import Faults
from tests.support.journaled import JournalHarness, adds_up, all_of, done, errors, job
from tests.support.sandboxed import avatar, smile

MP = pytest.MonkeyPatch


@pytest.mark.parametrize("journal", [True, False])
@pytest.mark.parametrize("most", [0, 1, 5, 5.5, 12])
async def test_the_ceiling_of_a_batch(
    tmp_path: Path, monkeypatch: MP, most: float, journal: bool
) -> None:
    """Jobs within it are done; the others fail unsent and without an upload."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with (harness.client if journal else harness.plain)() as c:
        outcomes = await all_of(c.batch([job(n) for n in range(10)], max_units=most))
        adds_up(c, harness.sandbox)
    fits = min(int(most), 10)
    assert fits == len(done(outcomes)) == harness.sandbox.ledger.units_charged
    assert [CeilingReached] * (10 - fits) == errors(outcomes)
    assert fits == harness.sandbox.ledger.requests["task"]
    if most == 0:
        assert not harness.sandbox.ledger.requests


async def test_the_ceiling_of_a_client(tmp_path: Path, monkeypatch: MP) -> None:
    """It holds for runs and batches together, from the first job on."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client(max_units=6) as c:
        runs = [asyncio.ensure_future(c.run(smile(n))) for n in range(4)]
        outcomes = await all_of(c.batch([smile(n) for n in range(10, 20)]))
        results = await asyncio.gather(*runs, return_exceptions=True)
        adds_up(c, harness.sandbox)
        with pytest.raises(CeilingReached, match="6 of max_units=6 are spent") as caught:
            await c.run(smile(99))
        assert 0.0 == caught.value.units_at_stake
        # Finished jobs are still fetched.
        for outcome in done(outcomes)[:1]:
            await c.run(outcome.job)
    good = sum(not isinstance(each, BaseException) for each in results)
    assert 6 == good + len(done(outcomes)) == harness.sandbox.ledger.units_charged


async def test_ceilings_of_a_batch_and_its_client(tmp_path: Path, monkeypatch: MP) -> None:
    """Both hold, and two batches do not share theirs."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client(max_units=7) as c:
        first = await all_of(c.batch([smile(n) for n in range(5)], max_units=3))
        second = await all_of(c.batch([smile(n) for n in range(10, 20)], max_units=6))
        adds_up(c, harness.sandbox)
    assert (3, 4) == (len(done(first)), len(done(second)))


async def test_a_ceiling_counts_prices(tmp_path: Path, monkeypatch: MP) -> None:
    """A cheap job may fit where a dear one does not."""
    harness = JournalHarness(tmp_path, monkeypatch)
    jobs: list[Job] = [avatar(12, key="a"), avatar(12, key="b"), smile(1), smile(2)]
    async with harness.client() as c:
        outcomes = await all_of(c.batch(jobs, max_units=4))
        adds_up(c, harness.sandbox)
    assert 4 >= harness.sandbox.ledger.units_charged
    assert harness.sandbox.ledger.units_charged == sum(o.job.units for o in done(outcomes))
    assert len(errors(outcomes)) >= 2


@pytest.mark.parametrize("seed", range(6))
async def test_retries_count_once(tmp_path: Path, monkeypatch: MP, seed: int) -> None:
    """Units that were returned after a failure of the engine can be used again."""
    faults = Faults(engine_errors=0.4, engine_error_codes=("error_inference",))
    harness = JournalHarness(tmp_path, monkeypatch, faults=faults, seed=seed)
    async with harness.client(engine_retries=3) as c:
        outcomes = await all_of(c.batch([smile(n) for n in range(12)], max_units=5))
        adds_up(c, harness.sandbox)
    ledger = harness.sandbox.ledger
    assert 5 >= ledger.units_charged - ledger.units_returned == len(done(outcomes))
    net, most = 0, 0
    times = [(task.created_at, task.units) for task in ledger.tasks]
    times += [(task.ended_at or 0, -task.units) for task in ledger.tasks if task.state == "error"]
    for _, units in sorted(times):
        net += units
        most = max(most, net)
    assert 5 >= most


@pytest.mark.parametrize("fate", ["drop", "lose", (400, {"status": 400, "error": "no"}), "refuse"])
async def test_a_ceiling_counts_possible_charges(
    tmp_path: Path, monkeypatch: MP, fate: object
) -> None:
    """Units that were certainly not charged are free again; others are not."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.sandbox.script("task", fate)  # type: ignore[arg-type]
    async with harness.plain() as c:
        await all_of(c.batch([smile(0)], max_units=1))
    harness.sandbox.script("task", fate)  # type: ignore[arg-type]
    async with harness.client(max_units=2, journal=None) as c:
        outcomes = await all_of(c.batch([smile(1)]))
        outcomes += await all_of(c.batch([smile(2)]))
        outcomes += await all_of(c.batch([smile(3)]))
        lost = 1 if fate == "lose" else 0
        assert 2 >= c.statistics().units.charged + lost
    free = isinstance(fate, tuple)
    assert (2 if free or fate == "refuse" else 1) == len(done(outcomes))


async def test_resumed_tasks_ignore_the_ceiling(tmp_path: Path, monkeypatch: MP) -> None:
    """A former process's tasks go on under any ceiling; new ones count."""
    harness = JournalHarness(tmp_path, monkeypatch)
    c = await harness.client().open()
    working = asyncio.ensure_future(all_of(c.batch([smile(n) for n in range(30)])))
    await asyncio.sleep(4)
    created = len(harness.sandbox.ledger.tasks)
    await harness.crash(c, working)
    async with harness.client(max_units=3) as c:
        outcomes = await all_of(c.resume())
        adds_up(c, harness.sandbox)
    assert created <= len(done(outcomes)) <= created + 4
    assert 3 >= harness.sandbox.ledger.units_charged - created


@pytest.mark.parametrize("most", [-1, float("nan"), float("inf"), "3", True])
async def test_a_wrong_ceiling_is_refused(tmp_path: Path, monkeypatch: MP, most: object) -> None:
    """A value that is not a number of units is refused."""
    harness = JournalHarness(tmp_path, monkeypatch)
    with pytest.raises(ConfigurationError, match="max_units"):
        harness.client(max_units=most)
    async with harness.client() as c:
        with pytest.raises(ConfigurationError, match="max_units"):
            c.batch([], max_units=most)  # type: ignore[arg-type]


async def test_the_ceiling_of_an_ended_batch_is_freed(tmp_path: Path, monkeypatch: MP) -> None:
    """No state of it stays in memory."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.plain() as c:
        for number in range(3):
            await all_of(c.batch([smile(number), smile(number + 10)], max_units=1))
        assert c._session is not None
        assert {} == c._session.driver.scheduler._state.units._spending_limits
