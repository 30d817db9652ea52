"""Equal jobs are one task, and what is finished is fetched again rather than bought again."""

import asyncio
from pathlib import Path

import pytest

from perfect_async import Avatar, ClientClosed, Done, Job, Smile
from perfect_async.sandbox import Faults
from tests.support.journaled import (
    DAY,
    Shop,
    adds_up,
    all_of,
    done,
    errors,
    face,
    faces,
    job,
    resumed,
    until,
)
from tests.support.sandboxed import STYLE, avatar, smile

MP = pytest.MonkeyPatch
HOUR = 3600.0


# In flight.


@pytest.mark.parametrize("journal", [True, False])
async def test_equal_runs(tmp_path: Path, monkeypatch: MP, journal: bool) -> None:
    """Equal jobs that run at once are one task, of which the first pays."""
    shop = Shop(tmp_path, monkeypatch)
    async with (shop.client if journal else shop.plain)() as c:
        results = await asyncio.gather(*(c.run(Smile(face(3))) for _ in range(5)))
        adds_up(c, shop.sandbox)
    assert 1 == len({result.task_id for result in results})
    assert 1 == shop.sandbox.ledger.units_charged == shop.sandbox.ledger.requests["upload"]


async def test_equal_in_a_batch(tmp_path: Path, monkeypatch: MP) -> None:
    """In a batch each of them has an outcome, and progress counts the units once."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client() as c:
        batch = c.batch([Smile(face(n % 3)) for n in range(12)], save_to=shop.out)
        outcomes = await all_of(batch)
        adds_up(c, shop.sandbox)
        assert (12, 3.0) == (batch.progress.done, batch.progress.units)
    assert 3.0 == sum(outcome.units for outcome in outcomes)
    assert [0, 1, 2] == sorted(faces(shop.out.iterdir()))


@pytest.mark.parametrize(
    "other",
    [
        Smile(face(3), expression="closed_mouth_smile"),
        Smile(face(4)),
        Smile(face(3), key="b"),
        Avatar(face(3), STYLE, output_count=1),
    ],
)
async def test_other_jobs(tmp_path: Path, monkeypatch: MP, other: Job) -> None:
    """Another picture, parameter, feature or key is another job."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client() as c:
        await asyncio.gather(c.run(Smile(face(3))), c.run(other))
        adds_up(c, shop.sandbox)
    assert 2 == len(shop.sandbox.ledger.tasks)


async def test_urls(tmp_path: Path, monkeypatch: MP) -> None:
    """URLs are equal by their text; signed ones are not, but by `key`."""
    url = "https://pictures.example/1.jpg"
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client() as c:
        for jobs, tasks in (
            ([Smile(url), Smile(url)], 1),
            ([Smile(f"{url}?X-Amz-Signature=a")] * 2, 2),
            ([Smile(f"{url}?X-Amz-Signature={n}", key="k") for n in range(2)], 1),
        ):
            before = len(shop.sandbox.ledger.tasks)
            await all_of(c.batch(jobs))
            assert tasks == len(shop.sandbox.ledger.tasks) - before
        adds_up(c, shop.sandbox)


@pytest.mark.parametrize("pause", [0.0, 0.1, 0.7, 3.0])
@pytest.mark.parametrize("who", ["leader", "follower", "both"])
async def test_one_goes_away(tmp_path: Path, monkeypatch: MP, pause: float, who: str) -> None:
    """Who is cancelled takes nothing from the other; if both are, what was not sent is not."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client() as c:
        both = [asyncio.ensure_future(c.run(job(1))) for _ in range(2)]
        await asyncio.sleep(pause)
        gone = {"leader": both[:1], "follower": both[1:], "both": both}[who]
        for each in gone:
            each.cancel()
        results = await asyncio.gather(*both, return_exceptions=True)
        await asyncio.sleep(30)
        adds_up(c, shop.sandbox)
    assert 2 - len(gone) == sum(not isinstance(each, BaseException) for each in results)
    assert (0 if who == "both" and pause < 0.5 else 1) == shop.sandbox.ledger.units_charged


@pytest.mark.parametrize("turns", range(6))
async def test_another_comes_as_one_goes(tmp_path: Path, monkeypatch: MP, turns: int) -> None:
    """An equal job that comes just when nobody waits for the first one any longer is done."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.plain() as c:
        first = asyncio.ensure_future(c.run(smile(1)))
        second = asyncio.ensure_future(c.run(job(1)))
        await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        await c.run(smile(1))
        await asyncio.gather(first, second, return_exceptions=True)
        adds_up(c, shop.sandbox)
    assert 1 == shop.sandbox.ledger.units_charged


async def test_as_the_last_one_leaves(tmp_path: Path, monkeypatch: MP) -> None:
    """Nor does it follow one that is on its way out and was not created."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.plain() as c:
        session = c._session
        assert session is not None
        first = await session.enter(smile(1))
        session.driver.withdraw(first)
        second = await session.enter(smile(1))
        await second.done.wait()
        adds_up(c, shop.sandbox)
    assert isinstance(first.ending, ClientClosed)
    assert not isinstance(second.ending, Exception)


async def test_all_fail_alike(tmp_path: Path, monkeypatch: MP) -> None:
    """Equal jobs fail alike, each with an error of its own."""
    faults = Faults(engine_errors=1.0, engine_error_codes=("error_no_face",))
    shop = Shop(tmp_path, monkeypatch, faults=faults)
    async with shop.client() as c:
        outcomes = await all_of(c.batch([job(1)] * 3))
        adds_up(c, shop.sandbox)
    assert 3 == len({id(outcome.error) for outcome in outcomes})
    assert 1 == shop.sandbox.ledger.units_returned


# Finished.


async def test_fetched_again(tmp_path: Path, monkeypatch: MP) -> None:
    """A finished job costs one status request within a day, in the same process and in the next."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client() as c:
        await all_of(c.batch([job(1)], save_to=tmp_path / "a"))
        before = sum(shop.sandbox.ledger.requests.values())
        outcomes = await all_of(c.batch([job(1)], save_to=tmp_path / "b"))
        # A status, and the download.
        assert 2 == sum(shop.sandbox.ledger.requests.values()) - before
        adds_up(c, shop.sandbox)
    await asyncio.sleep(23 * HOUR)
    async with shop.client() as c:
        before = sum(shop.sandbox.ledger.requests.values())
        outcomes += await all_of(c.batch([job(1)], save_to=tmp_path / "c"))
        assert 2 == sum(shop.sandbox.ledger.requests.values()) - before
    assert 1 == shop.sandbox.ledger.units_charged
    assert [0.0, 0.0] == [outcome.units for outcome in done(outcomes)]
    assert [1, 1] == faces(path for outcome in done(outcomes) for path in outcome.files)


async def test_after_a_day(tmp_path: Path, monkeypatch: MP) -> None:
    """After a day it is bought again."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client() as c:
        first = await c.run(job(1))
        await asyncio.sleep(DAY + 60)
        second = await c.run(job(1))
        adds_up(c, shop.sandbox)
    assert first.task_id != second.task_id
    assert 2 == shop.sandbox.ledger.units_charged


@pytest.mark.parametrize(
    ("reuse", "one", "bought"),
    [
        (None, "smile", 1),
        (None, "avatar", 2),
        (True, "avatar", 1),
        (False, "smile", 2),
        (False, "avatar", 2),
    ],
)
async def test_reuse(
    tmp_path: Path, monkeypatch: MP, reuse: bool | None, one: str, bought: int
) -> None:
    """`reuse` says which jobs are fetched again; by default all but avatars."""
    shop = Shop(tmp_path, monkeypatch)
    wanted = smile(1) if one == "smile" else avatar()
    async with shop.client(reuse=reuse) as c:
        await c.run(wanted)
        await c.run(wanted)
        adds_up(c, shop.sandbox)
    assert bought == len(shop.sandbox.ledger.tasks)


async def test_without_a_journal(tmp_path: Path, monkeypatch: MP) -> None:
    """Without a journal nothing is remembered, and each is bought."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.plain() as c:
        await c.run(smile(1))
        await c.run(smile(1))
        adds_up(c, shop.sandbox)
    assert 2 == shop.sandbox.ledger.units_charged


async def test_deleted(tmp_path: Path, monkeypatch: MP) -> None:
    """A deleted task is not offered again; nor one that the vendor has lost."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client() as c:
        first = await c.run(smile(1))
        await c.delete(first.task_id)
        before = shop.sandbox.ledger.requests["poll"]
        second = await c.run(smile(1))
        assert first.task_id != second.task_id
        adds_up(c, shop.sandbox)
    # By somebody else.
    async with shop.plain() as c:
        await c.delete(second.task_id)
    async with shop.client() as c:
        third = await c.run(smile(1))
    assert 3 == len({first.task_id, second.task_id, third.task_id})
    assert before < shop.sandbox.ledger.requests["poll"]


async def test_what_nobody_heard(tmp_path: Path, monkeypatch: MP) -> None:
    """A job whose caller went away is found finished by the next one who asks."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client() as c:
        gone = asyncio.ensure_future(c.run(job(1)))
        await until(lambda: len(shop.sandbox.ledger.tasks) > 0)
        gone.cancel()
        await asyncio.sleep(30)
        result = await c.run(job(1))
        assert [1] == faces(await result.save(shop.out))
        adds_up(c, shop.sandbox)
    async with shop.client() as c:
        assert result.task_id == (await c.run(job(1))).task_id
    assert 1 == shop.sandbox.ledger.units_charged


async def test_no_growth(tmp_path: Path, monkeypatch: MP) -> None:
    """What nobody heard of is kept for a day and no longer."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client() as c:
        assert c._session is not None
        for number in range(6):
            gone = asyncio.ensure_future(c.run(smile(number)))
            await asyncio.sleep(5)
            gone.cancel()
            await asyncio.sleep(12 * HOUR)
        journal = c._session.channel.journal.writer
        assert 3 >= len(journal.state.live)
        adds_up(c, shop.sandbox)
    async with shop.client() as c:
        assert 3 >= len(await resumed(c))


async def test_the_vendor_is_down(tmp_path: Path, monkeypatch: MP) -> None:
    """Where a finished job cannot be asked for, it fails rather than being bought again."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client() as c:
        await c.run(smile(1))
        shop.sandbox.faults = Faults(bad_gateway={"poll": 1.0})
        assert 1 == len(errors(await all_of(c.batch([smile(1)]))))
        shop.sandbox.faults = Faults()
        assert isinstance((await all_of(c.batch([smile(1)])))[0], Done)
        adds_up(c, shop.sandbox)
    assert 1 == shop.sandbox.ledger.units_charged
