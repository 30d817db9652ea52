"""What is written down when: before a creation leaves, and after everything that happens to it."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from perfect_async import Client, Smile
from perfect_async._journal import model as words
from perfect_async._journal.journal import JobEntry, JobJournal, open_journal
from perfect_async._journal.sqlite import SqliteJournal
from perfect_async._runtime.clock import Clock
from perfect_async._runtime.spec import PLAIN, JobSpec
from perfect_async.errors import JournalError
from perfect_async.sandbox import Durations, Faults
from tests.support.journaled import Shop, adds_up, all_of, creates, done, errors, job, paid, resumed
from tests.support.sandboxed import clock, smile
from tests.support.virtual_time import hanging

MP = pytest.MonkeyPatch


def journal_of(c: Client) -> SqliteJournal:
    """The file under an open client."""
    assert c._session is not None
    journal = c._session.channel.records.journal
    assert journal is not None
    return journal._file


def blocking(file: SqliteJournal, monkeypatch: MP) -> Callable[[], None]:
    """From now on a worker thread that commits hangs; until what is given is called."""
    go = threading.Event()
    commit = file.commit

    def hang(*args: object) -> None:
        with hanging():
            go.wait()
        commit(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(file, "commit", hang)
    return go.set


# Before it leaves.


async def test_written_before_it_leaves(tmp_path: Path, monkeypatch: MP) -> None:
    """When a creation leaves, its intent is on the disk already: also of a try of ours."""
    shop = Shop(tmp_path, monkeypatch, faults=Faults(engine_errors=0.5))
    c = shop.client()
    found: list[int] = []
    last = "SELECT count(*) FROM words AS a WHERE kind = 'Creating' AND seq = "
    last += "(SELECT max(seq) FROM words AS b WHERE a.job = b.job)"

    async def look(request: httpx.Request) -> httpx.Response | None:
        if creates(request):
            found.extend(number for (number,) in journal_of(c)._db.execute(last))
        return None

    c = shop.client(look)
    async with c:
        await all_of(c.batch(smile(n) for n in range(8)))
        adds_up(c, shop.sandbox)
    assert len(found) > 8
    assert {1} == set(found)


async def test_a_disk_that_hangs(tmp_path: Path, monkeypatch: MP) -> None:
    """A disk that blocks for a minute stops creations, delays no poll and loses nothing."""
    shop = Shop(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(70.0)})
    async with shop.client() as c:
        working = asyncio.ensure_future(all_of(c.batch([smile(n) for n in range(12)])))
        await asyncio.sleep(1.5)
        go = blocking(journal_of(c), monkeypatch)
        began = clock()
        await asyncio.sleep(60)
        go()
        outcomes = await working
        late = c.statistics().late
        adds_up(c, shop.sandbox)
    created = [task.created_at for task in shop.sandbox.ledger.tasks]
    # One was written down already.
    assert 1 >= sum(began + 0.5 < at < began + 60 for at in created)
    assert any(at > began + 60 for at in created)
    assert 12 == len(done(outcomes)) == shop.sandbox.ledger.units_charged
    assert 0 == late == shop.sandbox.ledger.units_wasted
    assert [] == shop.sandbox.ledger.violations
    async with shop.client() as c:
        assert [] == await resumed(c)


async def test_a_disk_that_hangs_at_the_end(
    tmp_path: Path, monkeypatch: MP, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing waits for the disk for a few seconds and no longer; the next process goes on."""
    shop = Shop(tmp_path, monkeypatch)
    c = await shop.client().open()
    await c.run(smile(1))
    await asyncio.sleep(1)
    go = blocking(journal_of(c), monkeypatch)
    running = asyncio.ensure_future(c.run(smile(2)))
    await asyncio.sleep(3)
    began = clock()
    await c.close()
    assert 45 > clock() - began
    await asyncio.gather(running, return_exceptions=True)
    go()
    await asyncio.sleep(1)
    assert "not written" in caplog.text
    with journal_of(c)._lock:
        journal_of(c)._db.close()


async def test_a_crash_while_the_disk_hangs(tmp_path: Path, monkeypatch: MP) -> None:
    """Nothing that was paid is lost if the process ends before the disk works again."""
    shop = Shop(tmp_path, monkeypatch)
    c = await shop.client().open()
    working = asyncio.ensure_future(all_of(c.batch([smile(n) for n in range(12)])))
    await asyncio.sleep(1.5)
    go = blocking(journal_of(c), monkeypatch)
    await asyncio.sleep(4)
    await shop.crash(c, working)
    go()
    async with shop.client() as c:
        outcomes = await resumed(c)
        adds_up(c, shop.sandbox)
    paid(outcomes, shop.sandbox)


async def test_a_full_disk(
    tmp_path: Path, monkeypatch: MP, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be written down is not created: `JournalError`; what runs is kept to its end."""
    shop = Shop(tmp_path, monkeypatch)
    async with shop.client() as c:
        running = asyncio.ensure_future(c.run(smile(1)))
        await asyncio.sleep(2)
        file = journal_of(c)

        def full(*_: object) -> None:
            raise JournalError("full")

        with monkeypatch.context() as patch:
            patch.setattr(file, "commit", full)
            assert [JournalError] == errors(await all_of(c.batch([smile(2)])))
            await running
        assert 1 == shop.sandbox.ledger.units_charged
        await asyncio.sleep(10)
        await c.run(smile(2))
        adds_up(c, shop.sandbox)
    assert 1 == sum("full" in each.getMessage() for each in caplog.records)
    async with shop.client() as c:
        assert {"1", "2"} >= {str(outcome.job.key) for outcome in await resumed(c)}
        assert 2 == shop.sandbox.ledger.units_charged


# The records themselves.


async def records(tmp_path: Path) -> JobJournal:
    """Records with a journal that nobody writes."""
    return await open_journal(tmp_path / "jobs.db", Clock().utc)


def spec(number: int = 1) -> JobSpec:
    """A smile's."""
    return JobSpec.of(smile(number), None, PLAIN)


def phase_of(record: JobEntry) -> str | None:
    """Where the journal has it."""
    return None if record.known is None else record.known.phase.name


async def test_nothing_without_a_journal() -> None:
    """Without a journal there is no record, and everything that happens to it is nothing."""
    none = await open_journal(None, lambda: 0)
    record = none.enter(spec())
    assert not none
    assert not record
    assert None is record.known
    await record.creating()
    record.uploaded("f")
    record.created("t")
    record.saved()
    record.told()
    record.not_created()
    record.returned()
    record.deleted()
    none.look(1)
    none.used()
    assert (frozenset(), [], (), None) == (
        await none.ids(0),
        none.doubtful(0, ()),
        none.past(),
        await none.finished("ab"),
    )
    await none.drop("t")
    await none.aclose()


async def test_no_more_words_once_it_is_over(tmp_path: Path) -> None:
    """What happens to a job that is over is not written."""
    these = await records(tmp_path)
    record = these.enter(spec())
    journal = these.journal
    assert journal is not None
    journal.note(words.Creating(record.number, these.now()))
    record.created("t")
    assert "RUNNING" == phase_of(record)
    record.ended(JournalError("x"))
    record.told()
    assert None is phase_of(record)
    record.saved()
    record.told()
    await these.aclose()


async def test_taken_once(tmp_path: Path) -> None:
    """A job of the former process is taken up once: by number, identity or task."""
    these = await records(tmp_path)
    for number in range(3):
        record = these.enter(spec(number))
        assert these.journal is not None
        these.journal.note(words.Creating(record.number, these.now()))
        record.created(f"t{number}")
    await these.aclose()
    those = await records(tmp_path)
    known = those.take(1)
    assert known is not None
    assert "t0" == known.task_id
    assert None is those.take(1)
    assert None is those.equal(spec(0).identity)
    assert None is those.of_task("t0")
    assert None is not those.equal(spec(1).identity)
    assert None is those.of_task("t1")
    assert None is not those.of_task("t2")
    assert {} == those.recovery
    await those.aclose()


async def test_not_executed(tmp_path: Path) -> None:
    """What was certainly not executed is written so, but where the next try is to be quick."""
    these = await records(tmp_path)
    record = these.enter(spec())
    assert these.journal is not None
    these.journal.note(words.Creating(record.number, these.now()))
    again = JobEntry(these, record.number, words.Phase.CREATING)
    again.ahead = True
    again.not_created()
    assert "CREATING" == phase_of(again)
    again.not_created()
    assert "ENTERED" == phase_of(again)
    await these.aclose()


async def test_what_was_ended_unsent(tmp_path: Path, monkeypatch: MP) -> None:
    """A creation that was refused is over when it was told, and is not resumed."""
    shop = Shop(tmp_path, monkeypatch)
    shop.sandbox.script("task", (400, {"status": 400, "error": "no"}))
    async with shop.client() as c:
        outcomes = await all_of(c.batch([smile(1), job(2)]))
        assert 1 == len(done(outcomes)) == len(errors(outcomes))
        adds_up(c, shop.sandbox)
    async with shop.client() as c:
        assert [] == await resumed(c)


async def test_failed_and_not_heard(tmp_path: Path, monkeypatch: MP) -> None:
    """A failure that nobody heard is told by the next process, which buys nothing."""
    faults = Faults(engine_errors=1.0, engine_error_codes=("error_no_face",))
    shop = Shop(tmp_path, monkeypatch, faults=faults)
    async with shop.client() as c:
        gone = asyncio.ensure_future(c.run(smile(1)))
        await asyncio.sleep(3)
        gone.cancel()
        await asyncio.sleep(20)
    async with shop.client() as c:
        assert 1 == len(errors(await resumed(c)))
        assert [] == await resumed(c)
    assert 1 == shop.sandbox.ledger.units_returned == shop.sandbox.ledger.units_charged


def test_the_key_is_the_identity() -> None:
    """Jobs of one key are equal whatever else they say; a task that is attached equals none."""
    other = Smile("https://a.example/b", key="1")
    assert spec().identity == JobSpec.of(other, None, PLAIN).identity
    assert not JobSpec.attached(Smile, "t").sure
