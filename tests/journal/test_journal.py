"""The entries that a client records in its journal, and when."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from perfect_async import Client, Smile
from perfect_async._journal import model as entries
from perfect_async._journal.journal import JobEntry, JobJournal, open_journal
from perfect_async._journal.sqlite import SqliteJournal
from perfect_async._journal.writer import JournalWriter
from perfect_async._runtime.clock import Clock
from perfect_async._runtime.spec import PLAIN, JobSpec
from perfect_async.errors import JournalError
from perfect_async.sandbox import Durations, Faults
from tests.support.journaled import (
    JournalHarness,
    adds_up,
    all_of,
    creates,
    done,
    errors,
    job,
    paid,
    resumed,
)
from tests.support.sandboxed import clock, smile
from tests.support.virtual_time import hanging

MP = pytest.MonkeyPatch


def journal_of(c: Client) -> SqliteJournal:
    """Return the journal's file of an open client."""
    assert c._session is not None
    writer = c._session.channel.journal.writer
    assert isinstance(writer, JournalWriter)
    return writer._file


def blocking(file: SqliteJournal, monkeypatch: MP) -> Callable[[], None]:
    """Make commits hang until the returned function is called."""
    go = threading.Event()
    commit = file.commit

    def hang(*args: object) -> None:
        with hanging():
            go.wait()
        commit(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(file, "commit", hang)
    return go.set


# Durable entries.


async def test_a_creation_is_recorded_before_it_is_sent(tmp_path: Path, monkeypatch: MP) -> None:
    """Every creation, also a retry, is on the disk before it is sent."""
    harness = JournalHarness(tmp_path, monkeypatch, faults=Faults(engine_errors=0.5))
    c = harness.client()
    found: list[int] = []
    last = "SELECT count(*) FROM words AS a WHERE kind = 'Creating' AND seq = "
    last += "(SELECT max(seq) FROM words AS b WHERE a.job = b.job)"

    async def look(request: httpx.Request) -> httpx.Response | None:
        if creates(request):
            found.extend(number for (number,) in journal_of(c)._db.execute(last))
        return None

    c = harness.client(look)
    async with c:
        await all_of(c.batch(smile(n) for n in range(8)))
        adds_up(c, harness.sandbox)
    assert len(found) > 8
    assert {1} == set(found)


async def test_a_hanging_disk_stops_only_creations(tmp_path: Path, monkeypatch: MP) -> None:
    """A disk that hangs for a minute stops creations, delays no poll and loses nothing."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(70.0)})
    async with harness.client() as c:
        working = asyncio.ensure_future(all_of(c.batch([smile(n) for n in range(12)])))
        await asyncio.sleep(1.5)
        go = blocking(journal_of(c), monkeypatch)
        began = clock()
        await asyncio.sleep(60)
        go()
        outcomes = await working
        late = c.statistics().late
        adds_up(c, harness.sandbox)
    created = [task.created_at for task in harness.sandbox.ledger.tasks]
    # One creation was recorded already.
    assert 1 >= sum(began + 0.5 < at < began + 60 for at in created)
    assert any(at > began + 60 for at in created)
    assert 12 == len(done(outcomes)) == harness.sandbox.ledger.units_charged
    assert 0 == late == harness.sandbox.ledger.units_wasted
    assert [] == harness.sandbox.ledger.violations
    async with harness.client() as c:
        assert [] == await resumed(c)


async def test_closing_waits_only_seconds_for_the_disk(
    tmp_path: Path, monkeypatch: MP, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing gives up on a hanging disk after some seconds."""
    harness = JournalHarness(tmp_path, monkeypatch)
    c = await harness.client().open()
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


async def test_a_crash_while_the_disk_hangs_loses_nothing(tmp_path: Path, monkeypatch: MP) -> None:
    """No paid task is lost if the process ends before the disk works again."""
    harness = JournalHarness(tmp_path, monkeypatch)
    c = await harness.client().open()
    working = asyncio.ensure_future(all_of(c.batch([smile(n) for n in range(12)])))
    await asyncio.sleep(1.5)
    go = blocking(journal_of(c), monkeypatch)
    await asyncio.sleep(4)
    await harness.crash(c, working)
    go()
    async with harness.client() as c:
        outcomes = await resumed(c)
        adds_up(c, harness.sandbox)
    paid(outcomes, harness.sandbox)


async def test_a_full_disk_stops_only_creations(
    tmp_path: Path, monkeypatch: MP, caplog: pytest.LogCaptureFixture
) -> None:
    """A creation that cannot be recorded raises `JournalError`; running tasks go on."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        running = asyncio.ensure_future(c.run(smile(1)))
        await asyncio.sleep(2)
        file = journal_of(c)

        def full(*_: object) -> None:
            raise JournalError("full")

        with monkeypatch.context() as patch:
            patch.setattr(file, "commit", full)
            assert [JournalError] == errors(await all_of(c.batch([smile(2)])))
            await running
        assert 1 == harness.sandbox.ledger.units_charged
        await asyncio.sleep(10)
        await c.run(smile(2))
        adds_up(c, harness.sandbox)
    assert 1 == sum("full" in each.getMessage() for each in caplog.records)
    async with harness.client() as c:
        assert {"1", "2"} >= {str(outcome.job.key) for outcome in await resumed(c)}
        assert 2 == harness.sandbox.ledger.units_charged


# The journal without a client.


async def opened_journal(tmp_path: Path) -> JobJournal:
    """Return a journal whose writer does not run."""
    return await open_journal(tmp_path / "jobs.db", Clock().utc)


def spec(number: int = 1) -> JobSpec:
    """Return the spec of a smile."""
    return JobSpec.of(smile(number), None, PLAIN)


def phase_of(entry: JobEntry) -> str | None:
    """Return the phase of a job in the journal."""
    return None if entry.snapshot is None else entry.snapshot.phase.name


async def test_a_missing_journal_does_nothing() -> None:
    """Without a journal every call does nothing, and no job is known."""
    none = await open_journal(None, lambda: 0)
    entry = none.enter(spec().stored())
    assert not entry.persistent
    assert None is entry.snapshot
    await entry.creating()
    entry.uploaded("f")
    entry.created("t")
    entry.saved()
    entry.reported()
    entry.not_created()
    entry.returned()
    entry.deleted()
    entry.ended("unsent")
    none.track(1)
    none.writer.request_sent()
    await none.writer.run()
    await none.writer.flushed()
    assert ([], (), None) == (
        none.features_in_doubt(0, ()),
        none.writer.past,
        await none.finished("ab"),
    )
    await none.writer.save_result("ab", "out", "t", ["out/me.jpg"])
    assert ({}, None) == (
        await none.writer.saved_results("ab"),
        await none.writer.key_picture("ab"),
    )
    assert not none.writer.knows("t")
    assert not none.writer.in_doubt(0)
    assert () == tuple(none.writer.window())
    await none.writer.drop("t")
    await none.writer.aclose()


async def test_a_job_that_is_over_gets_no_entries(tmp_path: Path) -> None:
    """Calls on a job that is over write nothing."""
    these = await opened_journal(tmp_path)
    entry = these.enter(spec().stored())
    these.writer.append(entries.Creating(entry.number, these.now()))
    entry.created("t")
    assert "RUNNING" == phase_of(entry)
    entry.ended("failed")
    entry.reported()
    assert None is phase_of(entry)
    entry.saved()
    entry.reported()
    await these.writer.aclose()


async def test_a_former_job_is_taken_once(tmp_path: Path) -> None:
    """A job of the former process is taken once, by number, identity or task."""
    these = await opened_journal(tmp_path)
    for number in range(3):
        entry = these.enter(spec(number).stored())
        these.writer.append(entries.Creating(entry.number, these.now()))
        entry.created(f"t{number}")
    await these.writer.aclose()
    those = await opened_journal(tmp_path)
    known = those.take(1)
    assert known is not None
    assert "t0" == known.task_id
    assert None is those.take(1)
    assert None is those.find_equal(spec(0).identity)
    assert None is those.find_task("t0")
    for found in (those.find_equal(spec(1).identity), those.find_task("t2")):
        assert found is not None
        assert found is those.take(found.job)
    assert None is those.find_task("t1")
    assert {} == those.recoverable
    await those.writer.aclose()


async def test_an_unexecuted_creation_is_recorded(tmp_path: Path) -> None:
    """`not_created` is recorded, except once if the creation will be sent again."""
    these = await opened_journal(tmp_path)
    entry = these.enter(spec().stored())
    these.writer.append(entries.Creating(entry.number, these.now()))
    again = JobEntry(these, entry.number, entries.Phase.CREATING)
    again.written_ahead = True
    again.not_created()
    assert "CREATING" == phase_of(again)
    again.not_created()
    assert "ENTERED" == phase_of(again)
    await these.writer.aclose()


async def test_a_creation_that_is_sent_again_has_another_row(tmp_path: Path) -> None:
    """The entry that was written ahead names the row of the creation that is sent."""
    these = await opened_journal(tmp_path)
    entry = these.enter(spec().stored())
    these.writer.append(entries.Creating(entry.number, these.now(), "intent a 1"))
    entry = JobEntry(these, entry.number, entries.Phase.CREATING)
    await entry.creating()
    assert entry.snapshot is not None
    assert "intent a 1" == entry.snapshot.intent
    await entry.creating("intent a 2")
    assert entry.snapshot is not None
    assert "intent a 2" == entry.snapshot.intent
    await these.writer.aclose()


async def test_a_refused_creation_is_not_resumed(tmp_path: Path, monkeypatch: MP) -> None:
    """A job whose creation was refused is over, and the next process does not resume it."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.sandbox.script("task", (400, {"status": 400, "error": "no"}))
    async with harness.client() as c:
        outcomes = await all_of(c.batch([smile(1), job(2)]))
        assert 1 == len(done(outcomes)) == len(errors(outcomes))
        adds_up(c, harness.sandbox)
    async with harness.client() as c:
        assert [] == await resumed(c)


async def test_an_unreported_failure_is_reported_later(tmp_path: Path, monkeypatch: MP) -> None:
    """The next process reports a failure that no caller received, and buys nothing."""
    faults = Faults(engine_errors=1.0, engine_error_codes=("error_no_face",))
    harness = JournalHarness(tmp_path, monkeypatch, faults=faults)
    async with harness.client() as c:
        gone = asyncio.ensure_future(c.run(smile(1)))
        await asyncio.sleep(3)
        gone.cancel()
        await asyncio.sleep(20)
    async with harness.client() as c:
        assert 1 == len(errors(await resumed(c)))
        assert [] == await resumed(c)
    assert 1 == harness.sandbox.ledger.units_returned == harness.sandbox.ledger.units_charged


def test_the_key_is_the_identity() -> None:
    """Jobs with the same key are equal; an attached task equals no job."""
    other = Smile("https://a.example/b", key="1")
    assert spec().identity == JobSpec.of(other, None, PLAIN).identity
    assert not JobSpec.attached("ai-smile", "t").sure
