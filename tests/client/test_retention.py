"""Pictures are saved as part of their jobs, and the vendor's copies are deleted after that."""

import asyncio
import errno
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from hashlib import sha256
from pathlib import Path

import anyio
import httpx
import pytest

from perfect_async import (
    Avatar,
    Batch,
    Client,
    ConfigurationError,
    Done,
    Failed,
    FileId,
    Job,
    JobRefused,
    Outcome,
    Smile,
    TaskExpired,
)
from perfect_async._files import saving
from perfect_async._journal.model import Ended, Saved
from perfect_async._journal.sqlite import Row, SqliteJournal
from perfect_async._runtime.commands import Submitter
from perfect_async._runtime.spec import identity
from perfect_async._transport import transport as transports
from perfect_async.errors import JournalError, NotSaved
from perfect_async.sandbox import Sandbox, portrait
from tests.support.journaled import (
    JournalHarness,
    adds_up,
    all_of,
    done,
    errors,
    face,
    faces,
    job,
    paid,
    resumed,
    until,
)
from tests.support.sandboxed import STYLE, client, smile, vendor

MP = pytest.MonkeyPatch


def states(harness: JournalHarness) -> dict[str, int]:
    """The number of tasks in each state."""
    return dict(harness.sandbox.ledger.tasks_by_state)


async def file_of(c: Client, harness: JournalHarness, number: int) -> FileId:
    """A file at the vendor with this face, which one task has used."""
    await c.run(job(number))
    return FileId(harness.sandbox.ledger.tasks[-1].source)


async def all_without_folder(batch: Batch, folder: Path) -> list[Outcome]:
    """Take the outcomes of a batch whose folder becomes a file after its tasks are created."""
    async with batch:
        await asyncio.sleep(3)
        await asyncio.to_thread(replace_by_file, folder)
        return [outcome async for outcome in batch]


def replace_by_file(folder: Path) -> None:
    """Make it impossible to write to `folder`, as on a full disk."""
    folder.rmdir()
    folder.write_bytes(b"full")


async def forever(*_: object) -> None:
    """Wait for ever."""
    await asyncio.sleep(1e6)


# Saving.


@pytest.mark.parametrize("journal", [True, False])
async def test_a_done_job_has_its_files(tmp_path: Path, monkeypatch: MP, journal: bool) -> None:
    """The files of a job that is done are on the disk, and its outcome names them."""
    harness = JournalHarness(tmp_path, monkeypatch)
    jobs: list[Job] = [job(n) for n in range(5)]
    jobs.append(Avatar(face(5), STYLE, output_count=3, key="5"))
    async with (
        (harness.client if journal else harness.plain)() as c,
        c.batch(jobs, save_to=harness.out) as batch,
    ):
        async for outcome in batch:
            assert isinstance(outcome, Done)
            assert outcome.job.outputs == len(outcome.files)
            if isinstance(outcome.job, Smile):
                assert [int(str(outcome.job.key))] == faces(outcome.files)
    adds_up(c, harness.sandbox)
    assert 8 == len(list(harness.out.iterdir()))


async def test_eight_results_are_downloaded_at_once(tmp_path: Path, monkeypatch: MP) -> None:
    """Polls go on beside the downloads."""
    # A given transport, such as the sandbox's, carries at most six uploads at once.
    monkeypatch.setattr(transports, "_PARALLEL_GIVEN", 24)
    harness = JournalHarness(tmp_path, monkeypatch)
    now, most = 0, 0
    inner = harness.sandbox.transport()

    async def slow(request: httpx.Request) -> httpx.Response | None:
        nonlocal now, most
        if not request.url.host.startswith("results"):
            return None
        now += 1
        most = max(most, now)
        await asyncio.sleep(90)
        now -= 1
        return await inner.handle_async_request(request)

    async with harness.client(slow) as c:
        outcomes = await all_of(c.batch([job(n) for n in range(18)], save_to=harness.out))
    adds_up(c, harness.sandbox)
    assert 8 == most
    assert 18 == len(done(outcomes))
    assert 0 == harness.sandbox.ledger.units_wasted


@pytest.mark.parametrize("delete", [True, False])
async def test_a_result_that_cannot_be_saved(tmp_path: Path, monkeypatch: MP, delete: bool) -> None:
    """A full disk fails the job with `NotSaved`; nothing is deleted, and resuming saves it."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        batch = c.batch([job(1), job(2)], save_to=harness.out, delete=delete)
        outcomes = await all_without_folder(batch, harness.out)
        adds_up(c, harness.sandbox)
    assert [NotSaved] * 2 == errors(outcomes)
    assert {1.0} == {o.error.units_at_stake for o in outcomes if isinstance(o, Failed)}
    async with harness.client():
        await asyncio.sleep(60)
    assert {"success": 2} == states(harness)

    harness.out.unlink()
    async with harness.client() as c:
        again = await resumed(c)
    assert [1, 2] == sorted(faces(path for outcome in done(again) for path in outcome.files))
    assert ({"deleted": 2} if delete else {"success": 2}) == states(harness)
    assert 2 == harness.sandbox.ledger.units_charged
    async with harness.client() as c:
        assert [] == await resumed(c)


# Folders are checked before a job is charged.


def fill(monkeypatch: MP) -> None:
    """Fill the disk."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("obstacle", ["file", "file above", "full", "read-only"])
async def test_a_folder_that_cannot_be_written_costs_nothing(
    tmp_path: Path, monkeypatch: MP, obstacle: str
) -> None:
    """Entering the batch raises an error, and nothing is sent."""
    sandbox = vendor()
    out = tmp_path / "out"
    if obstacle == "full":
        fill(monkeypatch)
    elif obstacle == "read-only":
        monkeypatch.setattr(Path, "mkdir", refuse_writing)
    else:
        out.write_bytes(b"a file")
    folder = out / "below" if obstacle == "file above" else out

    async with client(sandbox) as c:
        with pytest.raises(ConfigurationError, match=r"save_to is .*out.*cannot be written: \w+"):
            async with c.batch([smile(1)], save_to=folder):
                pass
        monkeypatch.undo()
        if out.is_file():
            out.unlink()
        async with c.batch([smile(1)], save_to=folder) as batch:
            assert [True] == [outcome.ok async for outcome in batch]
    assert 1 == sandbox.ledger.units_charged


def refuse_writing(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


async def test_a_disk_that_fills_up_stops_the_buying(tmp_path: Path, monkeypatch: MP) -> None:
    """After a result could not be saved, no other job is bought until the folder can be written."""
    sandbox = vendor()
    async with (
        client(sandbox) as c,
        c.batch(slow_smiles(), save_to=tmp_path / "out", ordered=True) as batch,
    ):
        assert (await anext(batch)).ok
        with monkeypatch.context() as patch:
            fill(patch)
            assert isinstance((await anext(batch)).error, NotSaved)
            refused = await anext(batch)
            assert isinstance(refused.error, JobRefused)
            assert "No space left" in str(refused.error)
        assert (await anext(batch)).ok
    assert 3 == sandbox.ledger.units_charged


async def test_resuming_buys_nothing_for_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """A job that was not created stays in the journal until its result can be saved."""
    harness = JournalHarness(tmp_path, monkeypatch)

    async def hang(request: httpx.Request) -> httpx.Response | None:
        if request.method == "PUT":
            await asyncio.sleep(1e6)
        return None

    c = await harness.client(hang).open()
    batch = await c.batch([job(1)], save_to=harness.out).__aenter__()
    await asyncio.sleep(3)
    assert 1 == batch.progress.waiting
    await harness.crash(c)
    await asyncio.to_thread(replace_by_file, harness.out)

    async with harness.client() as c:
        [refused] = await resumed(c)
        assert isinstance(refused.error, JobRefused)
        assert "cannot be written: File exists" in str(refused.error)
        harness.out.unlink()
        # Bytes are not in the journal, so the job is passed again.
        [outcome] = await all_of(c.batch([job(1)], save_to=harness.out))
        assert outcome.ok
    assert 1 == harness.sandbox.ledger.units_charged


async def slow_smiles() -> AsyncIterator[Job]:
    """Yield a job each minute."""
    for number in range(4):
        yield smile(number)
        await asyncio.sleep(60)


async def test_too_many_open_files_delay_a_save(tmp_path: Path, monkeypatch: MP) -> None:
    """A result that finds no free file handle is saved a little later."""
    harness = JournalHarness(tmp_path, monkeypatch)
    failures = 3

    def crowded(path: str, flags: int) -> int:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError(errno.EMFILE, "Too many open files")
        return os.open(path, flags, 0o600)

    async with harness.client() as c, c.batch([job(1)], save_to=harness.out) as batch:
        await asyncio.sleep(3)
        monkeypatch.setattr(saving, "_private", crowded)
        [outcome] = [outcome async for outcome in batch]
    assert outcome.ok
    assert failures < 0


# A download that was cut short.


@pytest.mark.parametrize("cuts", [1, 2, 3])
async def test_a_picture_without_its_end_is_not_saved(
    tmp_path: Path, monkeypatch: MP, cuts: int
) -> None:
    """Half a body of unknown length is fetched again, and never counts as saved."""
    harness = JournalHarness(tmp_path, monkeypatch)
    inner = harness.sandbox.transport()
    left = cuts

    async def cut(request: httpx.Request) -> httpx.Response | None:
        nonlocal left
        if not request.url.host.startswith("results") or not left:
            return None
        left -= 1
        answer = await inner.handle_async_request(request)
        body = await answer.aread()
        return httpx.Response(200, content=halves(body))

    async with harness.client(cut) as c:
        [outcome] = await all_of(c.batch([job(1)], save_to=harness.out, delete=True))
        await asyncio.sleep(60)
    assert (cuts < 3) is outcome.ok
    if outcome.ok:
        assert [1] == faces(outcome.files)
        assert {"deleted": 1} == states(harness)
    else:
        assert isinstance(outcome.error, NotSaved)
        assert "ended early" in str(outcome.error)
        assert {"success": 1} == states(harness)
        assert [] == list(harness.out.iterdir())


async def halves(body: bytes) -> AsyncIterator[bytes]:
    """Yield half of a body, without its length."""
    yield body[: len(body) // 2]


# Files that killed runs leave.


@pytest.mark.parametrize("save", ["batch", "result"])
async def test_files_of_killed_runs_are_removed(tmp_path: Path, monkeypatch: MP, save: str) -> None:
    """The next run that writes to the folder removes them, once."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.out.mkdir()
    left = harness.out / ".0123456789abcdef.part"
    left.write_bytes(b"half")
    async with harness.client() as c:
        if save == "batch":
            [outcome] = await all_of(c.batch([job(1)], save_to=harness.out))
            assert outcome.ok
        else:
            await (await c.run(job(1))).save(harness.out)
    assert [".jpg"] == [path.suffix for path in harness.out.iterdir()]


async def test_a_result_that_was_never_saved_is_lost(tmp_path: Path, monkeypatch: MP) -> None:
    """It is reported once, after the vendor has it no longer."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        batch = c.batch([job(1)], save_to=harness.out)
        assert [NotSaved] == errors(await all_without_folder(batch, harness.out))
    await asyncio.sleep(31 * 3600)
    async with harness.client() as c:
        assert 1 == len(errors(await resumed(c)))
        assert [] == await resumed(c)
    async with harness.client() as c:
        assert [] == await resumed(c)


async def test_the_next_process_saves_a_result(tmp_path: Path, monkeypatch: MP) -> None:
    """A crash between success and download loses nothing."""
    harness = JournalHarness(tmp_path, monkeypatch)

    async def hang(request: httpx.Request) -> httpx.Response | None:
        if request.url.host.startswith("results"):
            await asyncio.sleep(1e6)
        return None

    c = await harness.client(hang).open()
    async with c.batch([job(1), job(2)], save_to=harness.out):
        await until(lambda: {"success": 2} == states(harness))
        await asyncio.sleep(1)
        await harness.crash(c)
    async with harness.client() as c:
        outcomes = await resumed(c)
    assert [1, 2] == sorted(faces(path for outcome in done(outcomes) for path in outcome.files))
    paid(outcomes, harness.sandbox)


async def test_a_relative_folder_is_made_absolute(tmp_path: Path, monkeypatch: MP) -> None:
    """It is the same folder for the next process, wherever that runs."""
    harness = JournalHarness(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    c = await harness.client().open()
    async with c.batch([job(1)], save_to="here"):
        await until(lambda: len(harness.sandbox.ledger.tasks) > 0)
        await asyncio.sleep(1)
        await harness.crash(c)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    async with harness.client() as c:
        [outcome] = done(await resumed(c))
    assert [tmp_path / "here"] == [path.parent for path in outcome.files]


@pytest.mark.usefixtures("no_working_folder")
async def test_a_relative_folder_needs_a_working_folder(tmp_path: Path) -> None:
    """Nothing is bought if the working folder was removed; an absolute path still works."""
    sandbox = vendor()
    async with client(sandbox) as c:
        with pytest.raises(ConfigurationError, match="working folder, which was removed"):
            await c.run(job(1), save_to="here")
        assert 0 == sandbox.ledger.units_charged
        assert [tmp_path / "out"] == [
            path.parent for path in (await c.run(job(1), save_to=tmp_path / "out")).files
        ]


async def test_equal_jobs_are_saved_to_both_folders(tmp_path: Path, monkeypatch: MP) -> None:
    """Equal jobs of two batches share one task."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        both = [
            c.batch([job(1)], save_to=tmp_path / "a"),
            c.batch([job(1)], save_to=tmp_path / "b"),
        ]
        first, second = await asyncio.gather(*map(all_of, both))
        adds_up(c, harness.sandbox)
    files = [path for outcome in done([*first, *second]) for path in outcome.files]
    assert [tmp_path / "a", tmp_path / "b"] == [path.parent for path in files]
    assert [1, 1] == faces(files)
    assert [1.0, 0.0] == sorted((o.units for o in [*first, *second]), reverse=True)
    assert 1 == harness.sandbox.ledger.units_charged


# Deleting.


@pytest.mark.parametrize("journal", [True, False])
async def test_copies_are_deleted_after_saving(
    tmp_path: Path, monkeypatch: MP, journal: bool
) -> None:
    """With `delete` the vendor keeps nothing, and the files are there."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with (harness.client if journal else harness.plain)() as c:
        outcomes = await all_of(
            c.batch([job(n) for n in range(4)], save_to=harness.out, delete=True)
        )
    adds_up(c, harness.sandbox)
    assert [0, 1, 2, 3] == sorted(faces(p for o in done(outcomes) for p in o.files))
    assert {"deleted": 4} == states(harness)
    if journal:
        async with harness.client() as c:
            assert [] == await resumed(c)
        assert 4 == harness.sandbox.ledger.requests["delete"]


async def test_delete_needs_a_folder(tmp_path: Path, monkeypatch: MP) -> None:
    """`delete` without `save_to` is refused before anything is sent."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        with pytest.raises(ConfigurationError, match="save_to"):
            c.batch([job(1)], delete=True)
    assert not harness.wire.sent


async def test_deletion_is_tried_again(
    tmp_path: Path, monkeypatch: MP, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed deletion is tried four times, then by the next process on the journal."""
    harness = JournalHarness(tmp_path, monkeypatch)
    no = (400, {"status": 400, "error": "no", "error_code": "OperationInvalid"})
    harness.sandbox.script("delete", no, (502, "<html>"), no, no)
    async with harness.client(drain=100) as c:
        outcomes = await all_of(c.batch([job(1)], save_to=harness.out, delete=True))
    assert 1 == len(done(outcomes))
    assert {"success": 1} == states(harness)
    assert ["WARNING"] == [each.levelname for each in caplog.records]
    assert "could not be deleted" in caplog.text

    async with harness.client():
        await asyncio.sleep(10)
    assert {"deleted": 1} == states(harness)
    async with harness.client() as c:
        await asyncio.sleep(10)
        assert [] == await resumed(c)
    assert 5 == harness.sandbox.ledger.requests["delete"]


async def test_a_deletion_whose_answer_is_lost(tmp_path: Path, monkeypatch: MP) -> None:
    """A deletion that worked is over once the vendor says that the task is gone."""
    harness = JournalHarness(tmp_path, monkeypatch)
    harness.sandbox.script("delete", "lose")
    async with harness.client() as c:
        await all_of(c.batch([job(1)], save_to=harness.out, delete=True))
    assert {"deleted": 1} == states(harness)
    assert 2 == harness.sandbox.ledger.requests["delete"]
    async with harness.client():
        await asyncio.sleep(10)
    assert 2 == harness.sandbox.ledger.requests["delete"]


async def test_the_next_process_deletes_copies(tmp_path: Path, monkeypatch: MP) -> None:
    """A crash between saving and deleting leaves the deletion to the next process."""
    harness = JournalHarness(tmp_path, monkeypatch)

    async def hang(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith("/task/delete"):
            await asyncio.sleep(1e6)
        return None

    c = await harness.client(hang).open()
    assert 2 == len(done(await all_of(c.batch([job(1), job(2)], save_to=harness.out, delete=True))))
    await asyncio.sleep(3)
    await harness.crash(c)
    async with harness.client() as c:
        # Their outcomes were reported.
        assert [] == await resumed(c)
        await asyncio.sleep(10)
    assert {"deleted": 2} == states(harness)


async def test_copies_are_deleted_after_the_journal_is_written(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """Otherwise a crash would make the next process look for a task that is gone."""
    harness, commit = JournalHarness(tmp_path, monkeypatch), SqliteJournal.commit

    def full(
        file: SqliteJournal, rows: Iterable[Row], window: Iterable[tuple[int, int]], now: int
    ) -> None:
        rows = list(rows)
        if any(isinstance(row.entry, Ended | Saved) for row in rows):
            raise JournalError("The disk is full.")
        commit(file, rows, window, now)

    c = await harness.client().open()
    with monkeypatch.context() as patch:
        patch.setattr(SqliteJournal, "commit", full)
        assert 1 == len(done(await all_of(c.batch([job(1)], save_to=harness.out, delete=True))))
        await asyncio.sleep(10)
        assert {"success": 1} == states(harness)
        await harness.crash(c)
    async with harness.client() as c:
        assert [] == errors(await resumed(c))

    assert {"deleted": 1} == states(harness)


async def test_a_file_of_several_jobs_is_kept(tmp_path: Path, monkeypatch: MP) -> None:
    """Nothing is deleted while a job of this or another batch still uses its file."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        file = await file_of(c, harness, 7)
        jobs: list[Job] = [
            Smile(file),
            Avatar(file, STYLE, output_count=2),
            *(smile(n) for n in range(10, 35)),
            Smile(file, expression="closed_mouth_smile"),
        ]
        later = c.batch([Avatar(file, STYLE, output_count=1)], save_to=tmp_path / "b")
        outcomes, others = await asyncio.gather(
            all_of(c.batch(jobs, save_to=harness.out, delete=True)), all_of(later)
        )
    adds_up(c, harness.sandbox)
    assert [] == errors([*outcomes, *others])
    sevens = [outcome for outcome in done(outcomes) if outcome.job.source == file]
    assert 3 == len(sevens)
    smiling = [outcome for outcome in sevens if isinstance(outcome.job, Smile)]
    assert [7, 7] == faces(path for outcome in smiling for path in outcome.files)
    # The first one and the other batch's are kept.
    assert {"deleted": 28, "success": 2} == states(harness)


async def test_a_file_of_a_former_job_is_kept(tmp_path: Path, monkeypatch: MP) -> None:
    """Nothing is deleted while a job that was not resumed yet uses its file."""
    harness = JournalHarness(tmp_path, monkeypatch)

    async def hang(request: httpx.Request) -> httpx.Response | None:
        if request.url.path.endswith("/task/delete"):
            await asyncio.sleep(1e6)
        return None

    c = await harness.client(hang).open()
    file = await file_of(c, harness, 7)
    assert [] == errors(await all_of(c.batch([Smile(file)], save_to=harness.out, delete=True)))
    # The next job enters, and then waits.
    with monkeypatch.context() as patch:
        patch.setattr(Submitter, "create", forever)
        waiting = asyncio.ensure_future(c.run(Smile(file, expression="closed_mouth_smile")))
        await asyncio.sleep(5)
        await harness.crash(c, waiting)
    async with harness.client() as c:
        await asyncio.sleep(30)
        assert "deleted" not in states(harness)
        outcomes = await resumed(c)
        assert [] == errors(outcomes)
        [path] = await done(outcomes)[0].result.save(harness.out)
        await asyncio.sleep(10)
    assert [7] == faces([path])


@pytest.mark.parametrize(
    "pauses", [range(0, 12, 4), pytest.param(range(12), marks=pytest.mark.long)], ids=len
)
async def test_an_equal_job_during_a_deletion(
    tmp_path: Path, monkeypatch: MP, pauses: range
) -> None:
    """It gets the pictures before they are deleted, or buys its own."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        for pause in pauses:
            one = job(100 + pause)
            first = await all_of(c.batch([one], save_to=tmp_path / "a", delete=True))
            await asyncio.sleep(pause / 20)
            second = await all_of(c.batch([one], save_to=tmp_path / "b"))
            assert [] == errors([*first, *second])
            files = [path for outcome in done([*first, *second]) for path in outcome.files]
            assert [100 + pause] * 2 == faces(files)
    adds_up(c, harness.sandbox)


async def test_two_batches_of_which_one_deletes(tmp_path: Path, monkeypatch: MP) -> None:
    """The copies are deleted after an equal job of the other batch is saved."""
    harness = JournalHarness(tmp_path, monkeypatch)
    first = True
    inner = harness.sandbox.transport()

    async def change(request: httpx.Request) -> httpx.Response | None:
        nonlocal first
        if request.url.host.startswith("results") and not first:
            await asyncio.sleep(5)
        first = first and not request.url.host.startswith("results")
        return await inner.handle_async_request(request)

    async with harness.client(change) as c:
        both = await asyncio.gather(
            all_of(c.batch([smile(1)], save_to=tmp_path / "a", delete=True)),
            all_of(c.batch([smile(1)], save_to=tmp_path / "b")),
        )
    assert [] == errors([*both[0], *both[1]])
    assert {"deleted": 1} == states(harness)


async def test_closing_saves_and_deletes(tmp_path: Path, monkeypatch: MP) -> None:
    """Closing waits until results are saved and copies are deleted."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        batch = c.batch([job(1)], save_to=harness.out, delete=True)
        async with batch:
            await until(lambda: len(harness.sandbox.ledger.tasks) > 0)
    assert [1] == faces(harness.out.iterdir())
    assert {"deleted": 1} == states(harness)


# A result that a former process saved, or could not save.


ONE_SMILE = Smile(portrait(1, 64))
ONE_AVATAR = Avatar(portrait(2, 64), "male_studio_00", output_count=3)


def open_with(sandbox: Sandbox, journal: Path) -> Client:
    return client(sandbox, journal=journal, reuse=False, drain=10.0)


async def not_saved(sandbox: Sandbox, folder: Path, *, delete: bool) -> None:
    """A process that could not save its picture, and reported that."""
    async with open_with(sandbox, folder / "jobs.db") as client:
        batch = client.batch([ONE_SMILE], save_to=folder / "out", delete=delete)
        [outcome] = await all_without_folder(batch, folder / "out")
    assert isinstance(outcome.error, NotSaved)
    assert {"success": 1} == dict(sandbox.ledger.tasks_by_state)


@pytest.mark.parametrize("delete", [False, True])
async def test_a_result_that_was_not_saved_is_saved_by_resuming(
    tmp_path: Path, delete: bool
) -> None:
    """After the cause is fixed the next process saves it, and then deletes the copies."""
    sandbox = Sandbox()
    await not_saved(sandbox, tmp_path, delete=delete)
    (tmp_path / "out").unlink()

    async with open_with(sandbox, tmp_path / "jobs.db") as client:
        await anyio.sleep(60)
        assert {"success": 1} == dict(sandbox.ledger.tasks_by_state)
        async with client.resume() as batch:
            outcomes: list[Outcome] = [outcome async for outcome in batch]
        await anyio.sleep(60)

    [done] = outcomes
    assert isinstance(done, Done)
    assert list((tmp_path / "out").iterdir()) == list(done.files)
    assert {"deleted" if delete else "success": 1} == dict(sandbox.ledger.tasks_by_state)
    assert 1 == sandbox.ledger.units_charged
    async with open_with(sandbox, tmp_path / "jobs.db") as client, client.resume() as batch:
        assert [] == [outcome async for outcome in batch]


async def test_a_result_stays_in_the_journal_until_it_is_saved(tmp_path: Path) -> None:
    """A cause that is not fixed is reported again, and nothing is lost."""
    sandbox = Sandbox()
    await not_saved(sandbox, tmp_path, delete=True)

    for _ in range(2):
        async with open_with(sandbox, tmp_path / "jobs.db") as client, client.resume() as batch:
            [outcome] = [outcome async for outcome in batch]
        assert isinstance(outcome.error, NotSaved)
    assert {"success": 1} == dict(sandbox.ledger.tasks_by_state)


async def crashed(sandbox: Sandbox, folder: Path, *, delete: bool) -> Path:
    """The journal of a process that had saved all results and reported none."""
    jobs = folder / "jobs.db"
    async with (
        open_with(sandbox, jobs) as client,
        client.batch([ONE_SMILE, ONE_AVATAR], save_to=folder / "out", delete=delete),
    ):
        await anyio.sleep(300)
        for end in ("", "-wal"):
            shutil.copy(f"{jobs}{end}", folder / f"crashed.db{end}")
    assert {"deleted" if delete else "success": 2} == dict(sandbox.ledger.tasks_by_state)
    return folder / "crashed.db"


async def resume_all(client: Client) -> list[Outcome]:
    async with client.resume() as batch:
        return [outcome async for outcome in batch]


@pytest.mark.parametrize("delete", [True, False])
async def test_a_result_saved_before_a_crash_is_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, delete: bool
) -> None:
    """Its files are named, and no request is sent."""
    sandbox = Sandbox()
    journal = await crashed(sandbox, tmp_path, delete=delete)
    saved, before = sorted((tmp_path / "out").iterdir()), dict(sandbox.ledger.requests)

    async with open_with(sandbox, journal) as client:
        outcomes = await resume_all(client)

    files = [path for outcome in outcomes if isinstance(outcome, Done) for path in outcome.files]
    assert saved == sorted(files)
    assert [1, 1] == [outcome.units for outcome in outcomes]
    # A task whose deletion had no answer is deleted again while the client closes.
    again = Counter(sandbox.ledger.requests) - Counter(before)
    assert ({"delete": 2} if delete else {}) == dict(again)
    assert [] == caplog.messages
    async with open_with(sandbox, journal) as client:
        assert [] == await resume_all(client)


async def test_a_result_saved_before_a_crash_can_be_fetched_again(tmp_path: Path) -> None:
    """It has no URLs until they are asked for, which saving does."""
    sandbox = Sandbox()
    journal = await crashed(sandbox, tmp_path, delete=False)

    async with open_with(sandbox, journal) as client:
        outcomes = await resume_all(client)
        again = [path for one in outcomes for path in await one.unwrap().save(tmp_path / "again")]

    assert 4 == len(again)
    assert {path.name for path in again} == {path.name for path in (tmp_path / "out").iterdir()}


async def test_deleted_results_cannot_be_fetched_again(tmp_path: Path) -> None:
    """Fetching a result that the vendor has deleted raises an error that says so."""
    sandbox = Sandbox()
    journal = await crashed(sandbox, tmp_path, delete=True)

    async with open_with(sandbox, journal) as client:
        outcomes = await resume_all(client)
        with pytest.raises(TaskExpired):
            await outcomes[0].unwrap().save(tmp_path / "again")


async def test_the_same_job_instead_of_resuming_takes_the_saved_files(tmp_path: Path) -> None:
    """Running the jobs again returns the saved files, without a request."""
    sandbox = Sandbox()
    journal = await crashed(sandbox, tmp_path, delete=True)
    saved, tasks = sorted((tmp_path / "out").iterdir()), len(sandbox.ledger.tasks)

    async with (
        open_with(sandbox, journal) as client,
        client.batch([ONE_SMILE, ONE_AVATAR], save_to=tmp_path / "out") as batch,
    ):
        outcomes = [outcome async for outcome in batch]

    files = [path for outcome in outcomes if isinstance(outcome, Done) for path in outcome.files]
    assert saved == sorted(files)
    assert tasks == len(sandbox.ledger.tasks)


async def test_saved_files_that_are_gone_are_saved_again(tmp_path: Path) -> None:
    """A result with missing files is fetched while the vendor has it."""
    sandbox = Sandbox()
    journal = await crashed(sandbox, tmp_path, delete=False)
    saved = sorted((tmp_path / "out").iterdir())
    saved[0].unlink()

    async with open_with(sandbox, journal) as client:
        outcomes = await resume_all(client)

    assert [True, True] == [outcome.ok for outcome in outcomes]
    assert saved == sorted((tmp_path / "out").iterdir())


# Files under the names of former versions, which had eight digits.


def rename_as_formerly(folder: Path, identities: Iterable[str]) -> list[Path]:
    """Give the files of these jobs the names of former versions."""
    named: list[Path] = []
    for path in sorted(folder.iterdir()):
        stem, digits, *rest = path.stem.split("-")
        [identity] = {one for one in identities if one.startswith(digits)}
        named.append(path.with_name("-".join([stem, identity[:8], *rest]) + path.suffix))
        path.replace(named[-1])
    return named


async def test_files_under_former_names_count(tmp_path: Path) -> None:
    """A result that a former version saved is done, and is not fetched again."""
    sandbox = Sandbox()
    journal = await crashed(sandbox, tmp_path, delete=False)
    jobs: list[Job] = [ONE_SMILE, ONE_AVATAR]
    identities = [identity(job, sha256(bytes_of(job)).hexdigest()) for job in jobs]
    saved = rename_as_formerly(tmp_path / "out", identities)
    before = dict(sandbox.ledger.requests)

    async with open_with(sandbox, journal) as client:
        outcomes = await resume_all(client)

    files = [path for outcome in outcomes if isinstance(outcome, Done) for path in outcome.files]
    assert saved == sorted(files) == sorted((tmp_path / "out").iterdir())
    assert before == dict(sandbox.ledger.requests)


def bytes_of(job: Job) -> bytes:
    assert isinstance(job.source, bytes)
    return job.source


async def test_a_former_name_of_two_jobs_counts_for_neither(tmp_path: Path) -> None:
    """The results of both are fetched again, at no charge."""
    keys = ["order-54476", "order-78921"]
    jobs = [Smile(portrait(number, 64), key=key) for number, key in enumerate(keys)]
    [shared] = {identity(job, None)[:8] for job in jobs}
    sandbox = Sandbox()
    live = tmp_path / "jobs.db"
    async with open_with(sandbox, live) as client, client.batch(jobs, save_to=tmp_path / "out"):
        await anyio.sleep(300)
        for end in ("", "-wal"):
            await asyncio.to_thread(shutil.copy, f"{live}{end}", tmp_path / f"crashed.db{end}")
    first, second = sorted((tmp_path / "out").iterdir())
    second.unlink()
    former = first.rename(first.with_name(f"picture-{shared}.jpg"))

    async with open_with(sandbox, tmp_path / "crashed.db") as client:
        outcomes = await resume_all(client)

    assert 2 == sandbox.ledger.units_charged
    files = {path for outcome in outcomes for path in outcome.files}
    assert {first, second} == files
    assert {first, second, former} == set((tmp_path / "out").iterdir())
