"""Equal jobs share one task, and a finished one is fetched again instead of bought again."""

import asyncio
from pathlib import Path

import pytest

from perfect_async import Avatar, ClientClosed, Done, Job, JobRefused, Smile
from perfect_async._journal.sqlite import SqliteJournal
from perfect_async.errors import JournalError
from perfect_async.sandbox import Faults
from tests.support.journaled import (
    DAY,
    JournalHarness,
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


# Running jobs.


@pytest.mark.parametrize("journal", [True, False])
async def test_equal_runs_share_one_task(tmp_path: Path, monkeypatch: MP, journal: bool) -> None:
    """Equal jobs that run at once are one task, which the first one pays."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with (harness.client if journal else harness.plain)() as c:
        results = await asyncio.gather(*(c.run(Smile(face(3))) for _ in range(5)))
        adds_up(c, harness.sandbox)
    assert 1 == len({result.task_id for result in results})
    assert 1 == harness.sandbox.ledger.units_charged == harness.sandbox.ledger.requests["upload"]


async def test_equal_jobs_of_a_batch_share_one_task(tmp_path: Path, monkeypatch: MP) -> None:
    """Each has an outcome, and progress counts the units once."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        batch = c.batch([Smile(face(n % 3)) for n in range(12)], save_to=harness.out)
        outcomes = await all_of(batch)
        adds_up(c, harness.sandbox)
        assert (12, 3.0) == (batch.progress.done, batch.progress.units)
    assert 3.0 == sum(outcome.units for outcome in outcomes)
    assert [0, 1, 2] == sorted(faces(harness.out.iterdir()))


@pytest.mark.parametrize(
    "other",
    [
        Smile(face(3), expression="closed_mouth_smile"),
        Smile(face(4)),
        Smile(face(3), key="b"),
        Avatar(face(3), STYLE, output_count=1),
    ],
)
async def test_different_jobs_have_different_tasks(
    tmp_path: Path, monkeypatch: MP, other: Job
) -> None:
    """Another picture, parameter, feature or key makes another job."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        await asyncio.gather(c.run(Smile(face(3))), c.run(other))
        adds_up(c, harness.sandbox)
    assert 2 == len(harness.sandbox.ledger.tasks)


async def test_equal_urls_are_equal_jobs(tmp_path: Path, monkeypatch: MP) -> None:
    """URLs are equal by their text; signed ones are equal only by their `key`."""
    url = "https://pictures.example/1.jpg"
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        for jobs, tasks in (
            ([Smile(url), Smile(url)], 1),
            ([Smile(f"{url}?X-Amz-Signature=a")] * 2, 2),
            ([Smile(f"{url}?X-Amz-Signature={n}", key="k") for n in range(2)], 1),
        ):
            before = len(harness.sandbox.ledger.tasks)
            await all_of(c.batch(jobs))
            assert tasks == len(harness.sandbox.ledger.tasks) - before
        adds_up(c, harness.sandbox)


@pytest.mark.parametrize("pause", [0.0, 0.1, 0.7, 3.0])
@pytest.mark.parametrize("who", ["leader", "follower", "both"])
async def test_a_cancelled_caller_does_not_affect_an_equal_job(
    tmp_path: Path, monkeypatch: MP, pause: float, who: str
) -> None:
    """If both callers are cancelled, an unsent job is not sent."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        both = [asyncio.ensure_future(c.run(job(1))) for _ in range(2)]
        await asyncio.sleep(pause)
        gone = {"leader": both[:1], "follower": both[1:], "both": both}[who]
        for each in gone:
            each.cancel()
        results = await asyncio.gather(*both, return_exceptions=True)
        await asyncio.sleep(30)
        adds_up(c, harness.sandbox)
    assert 2 - len(gone) == sum(not isinstance(each, BaseException) for each in results)
    assert (0 if who == "both" and pause < 0.5 else 1) == harness.sandbox.ledger.units_charged


@pytest.mark.parametrize("turns", range(6))
async def test_an_equal_job_that_comes_as_another_is_cancelled(
    tmp_path: Path, monkeypatch: MP, turns: int
) -> None:
    """It is done, although nobody waits for the first one any longer."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.plain() as c:
        first = asyncio.ensure_future(c.run(smile(1)))
        second = asyncio.ensure_future(c.run(job(1)))
        await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        await c.run(smile(1))
        await asyncio.gather(first, second, return_exceptions=True)
        adds_up(c, harness.sandbox)
    assert 1 == harness.sandbox.ledger.units_charged


async def test_an_equal_job_does_not_follow_a_cancelled_one(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """It does not follow a job that is being cancelled and was not created."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.plain() as c:
        session = c._session
        assert session is not None
        first = await session.enter(smile(1))
        session.driver.withdraw(first)
        second = await session.enter(smile(1))
        await second.done.wait()
        adds_up(c, harness.sandbox)
    assert isinstance(first.ending, ClientClosed)
    assert not isinstance(second.ending, Exception)


async def test_equal_jobs_fail_alike(tmp_path: Path, monkeypatch: MP) -> None:
    """Each has an error of its own."""
    faults = Faults(engine_errors=1.0, engine_error_codes=("error_no_face",))
    harness = JournalHarness(tmp_path, monkeypatch, faults=faults)
    async with harness.client() as c:
        outcomes = await all_of(c.batch([job(1)] * 3))
        adds_up(c, harness.sandbox)
    assert 3 == len({id(outcome.error) for outcome in outcomes})
    assert 1 == harness.sandbox.ledger.units_returned


# Finished jobs.


async def test_a_finished_job_is_fetched_again(tmp_path: Path, monkeypatch: MP) -> None:
    """It costs one status request within a day, in the same process and in the next."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        await all_of(c.batch([job(1)], save_to=tmp_path / "a"))
        before = sum(harness.sandbox.ledger.requests.values())
        outcomes = await all_of(c.batch([job(1)], save_to=tmp_path / "b"))
        # One for the status, and the download.
        assert 2 == sum(harness.sandbox.ledger.requests.values()) - before
        adds_up(c, harness.sandbox)
    await asyncio.sleep(23 * HOUR)
    async with harness.client() as c:
        before = sum(harness.sandbox.ledger.requests.values())
        outcomes += await all_of(c.batch([job(1)], save_to=tmp_path / "c"))
        assert 2 == sum(harness.sandbox.ledger.requests.values()) - before
    assert 1 == harness.sandbox.ledger.units_charged
    assert [0.0, 0.0] == [outcome.units for outcome in done(outcomes)]
    assert [1, 1] == faces(path for outcome in done(outcomes) for path in outcome.files)


async def test_a_job_is_bought_again_after_a_day(tmp_path: Path, monkeypatch: MP) -> None:
    """The vendor no longer has the result then."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        first = await c.run(job(1))
        await asyncio.sleep(DAY + 60)
        second = await c.run(job(1))
        adds_up(c, harness.sandbox)
    assert first.task_id != second.task_id
    assert 2 == harness.sandbox.ledger.units_charged


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
    harness = JournalHarness(tmp_path, monkeypatch)
    wanted = smile(1) if one == "smile" else avatar()
    async with harness.client(reuse=reuse) as c:
        await c.run(wanted)
        await c.run(wanted)
        adds_up(c, harness.sandbox)
    assert bought == len(harness.sandbox.ledger.tasks)


async def test_without_a_journal_each_job_is_bought(tmp_path: Path, monkeypatch: MP) -> None:
    """Nothing is remembered."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.plain() as c:
        await c.run(smile(1))
        await c.run(smile(1))
        adds_up(c, harness.sandbox)
    assert 2 == harness.sandbox.ledger.units_charged


async def test_a_deleted_task_is_not_fetched_again(tmp_path: Path, monkeypatch: MP) -> None:
    """Nor is one that the vendor has lost."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        first = await c.run(smile(1))
        await c.delete(first.task_id)
        before = harness.sandbox.ledger.requests["poll"]
        second = await c.run(smile(1))
        assert first.task_id != second.task_id
        adds_up(c, harness.sandbox)
    # By another program.
    async with harness.plain() as c:
        await c.delete(second.task_id)
    async with harness.client() as c:
        third = await c.run(smile(1))
    assert 3 == len({first.task_id, second.task_id, third.task_id})
    assert before < harness.sandbox.ledger.requests["poll"]


async def test_a_result_that_nobody_took_is_fetched(tmp_path: Path, monkeypatch: MP) -> None:
    """The job of a caller that left is found finished by the next one."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        gone = asyncio.ensure_future(c.run(job(1)))
        await until(lambda: len(harness.sandbox.ledger.tasks) > 0)
        gone.cancel()
        await asyncio.sleep(30)
        result = await c.run(job(1))
        assert [1] == faces(await result.save(harness.out))
        adds_up(c, harness.sandbox)
    async with harness.client() as c:
        assert result.task_id == (await c.run(job(1))).task_id
    assert 1 == harness.sandbox.ledger.units_charged


async def test_untaken_outcomes_are_kept_for_a_day(tmp_path: Path, monkeypatch: MP) -> None:
    """They are dropped after that."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        assert c._session is not None
        for number in range(6):
            gone = asyncio.ensure_future(c.run(smile(number)))
            await asyncio.sleep(5)
            gone.cancel()
            await asyncio.sleep(12 * HOUR)
        journal = c._session.channel.journal.writer
        assert 3 >= len(journal.state.live)
        adds_up(c, harness.sandbox)
    async with harness.client() as c:
        assert 3 >= len(await resumed(c))


async def test_a_finished_job_is_not_bought_again_during_an_outage(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """If it cannot be asked for, the job fails."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        await c.run(smile(1))
        harness.sandbox.faults = Faults(bad_gateway={"poll": 1.0})
        assert 1 == len(errors(await all_of(c.batch([smile(1)]))))
        harness.sandbox.faults = Faults()
        assert isinstance((await all_of(c.batch([smile(1)])))[0], Done)
        adds_up(c, harness.sandbox)
    assert 1 == harness.sandbox.ledger.units_charged


# Saved results.


@pytest.mark.parametrize("kind", ["smile", "avatar"])
async def test_a_saved_job_is_done(tmp_path: Path, monkeypatch: MP, kind: str) -> None:
    """Three runs of a batch with a journal, a folder and `delete` cost once."""
    harness = JournalHarness(tmp_path, monkeypatch)
    jobs: list[Job] = [job(n) if kind == "smile" else avatar(4, key=str(n)) for n in range(5)]
    units = len(jobs) * jobs[0].units
    kept: dict[Path, bytes] = {}
    for turn in range(3):
        async with harness.client() as c:
            outcomes = await all_of(c.batch(jobs, save_to=harness.out, delete=True))
            assert len(jobs) == len(done(outcomes))
            again = await all_of(c.batch(jobs, save_to=harness.out, delete=True))
            assert [0.0] * len(jobs) == [outcome.units for outcome in again]
        files = [path for outcome in [*done(outcomes), *done(again)] for path in outcome.files]
        assert set(harness.out.iterdir()) == set(files)
        if turn == 0:
            # The user has edited one of them, and it is never overwritten.
            files[0].write_bytes(b"retouched")
            kept = {path: path.read_bytes() for path in files}
        assert kept == {path: path.read_bytes() for path in files}
        deletions = harness.sandbox.ledger.requests["delete"]
        assert len(jobs) == deletions
        assert units == harness.sandbox.ledger.units_charged
        await asyncio.sleep(40 * DAY)


async def test_a_saved_job_whose_file_is_gone(tmp_path: Path, monkeypatch: MP) -> None:
    """The file is fetched again while that is possible, and bought again after that."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        [outcome] = done(await all_of(c.batch([job(1)], save_to=harness.out)))
        outcome.files[0].unlink()
        [outcome] = done(await all_of(c.batch([job(1)], save_to=harness.out)))
        assert 1 == harness.sandbox.ledger.units_charged
        await asyncio.sleep(2 * DAY)
        outcome.files[0].unlink()
        [outcome] = done(await all_of(c.batch([job(1)], save_to=harness.out)))
    assert [1] == faces(outcome.files)
    assert 2 == harness.sandbox.ledger.units_charged


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("retouched", [False, True])
async def test_a_set_of_which_a_file_is_gone(
    tmp_path: Path, monkeypatch: MP, delete: bool, retouched: bool
) -> None:
    """The missing file is fetched or bought again; no file is replaced."""
    harness = JournalHarness(tmp_path, monkeypatch)
    jobs = [avatar(4)]
    async with harness.client() as c:
        [outcome] = done(await all_of(c.batch(jobs, save_to=harness.out, delete=delete)))
        outcome.files[0].unlink()
        if retouched:
            outcome.files[1].write_bytes(b"retouched")
        kept = {path: path.read_bytes() for path in outcome.files[1:]}
        for _ in range(2):
            [again] = done(await all_of(c.batch(jobs, save_to=harness.out, delete=delete)))
            assert 4 == len(again.files) == len({file for file in again.files if file.is_file()})
            assert kept == {path: path.read_bytes() for path in kept}
            # A set that is bought again stays together.
            anew = delete and retouched
            assert anew is set(outcome.files).isdisjoint(again.files)
        adds_up(c, harness.sandbox)
    assert (2 if delete else 1) == harness.sandbox.ledger.units_charged


async def test_a_batch_without_a_journal_replaces_no_file(tmp_path: Path, monkeypatch: MP) -> None:
    """The files of unknown jobs stay."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.plain() as c:
        [first] = done(await all_of(c.batch([job(1)], save_to=harness.out)))
        [second] = done(await all_of(c.batch([job(1)], save_to=harness.out)))
        # The vendor returns the same bytes again.
        assert first.files == second.files
        first.files[0].write_bytes(b"retouched")
        [third] = done(await all_of(c.batch([job(1)], save_to=harness.out)))
    assert b"retouched" == first.files[0].read_bytes()
    assert [1] == faces(third.files)


@pytest.mark.parametrize("kind", ["smile", "avatar"])
async def test_a_crash_between_two_files(tmp_path: Path, monkeypatch: MP, kind: str) -> None:
    """Files that were written before the crash are part of the set that the next process saves."""
    harness = JournalHarness(tmp_path, monkeypatch)
    c = await harness.client().open()

    def full(*_: object) -> None:
        raise JournalError("full")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteJournal, "save_result", full)
        wanted: Job = job(1) if kind == "smile" else avatar(4, key="1")
        async with c.batch([wanted], save_to=harness.out) as batch:
            [outcome] = [outcome async for outcome in batch]
            assert isinstance(outcome, Done)
            await harness.crash(c)
    outcome.files[-1].unlink()
    async with harness.client() as c:
        [again] = done(await resumed(c))
    assert outcome.files == again.files
    assert sorted(harness.out.iterdir()) == sorted(again.files)


# Results in another folder.


@pytest.mark.parametrize("reason", ["deleted", "after a day"])
async def test_another_folder_gets_copies(tmp_path: Path, monkeypatch: MP, reason: str) -> None:
    """Files are copied if the vendor no longer has the result, and nothing is bought."""
    harness = JournalHarness(tmp_path, monkeypatch)
    delete = reason == "deleted"
    async with harness.client() as c:
        await all_of(c.batch([job(1)], save_to=tmp_path / "a", delete=delete))
        await asyncio.sleep(2 * DAY)
    async with harness.client() as c:
        before = sum(harness.sandbox.ledger.requests.values())
        [copied] = done(await all_of(c.batch([job(1)], save_to=tmp_path / "b", delete=delete)))
        [there] = done(await all_of(c.batch([job(1)], save_to=tmp_path / "b", delete=delete)))
        assert before == sum(harness.sandbox.ledger.requests.values())
    assert copied.files == there.files
    assert [1] == faces(copied.files)
    assert [tmp_path / "b"] == [file.parent for file in copied.files]
    assert 0 == copied.units
    assert 1 == harness.sandbox.ledger.units_charged


async def test_another_folder_without_the_files(tmp_path: Path, monkeypatch: MP) -> None:
    """If neither the vendor nor another folder has the files, the job is bought again."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        [gone] = done(await all_of(c.batch([job(1)], save_to=tmp_path / "a", delete=True)))
        gone.files[0].unlink()
        [bought] = done(await all_of(c.batch([job(1)], save_to=tmp_path / "b", delete=True)))
    assert [1] == faces(bought.files)
    assert 2 == harness.sandbox.ledger.units_charged


async def test_copies_replace_nothing(tmp_path: Path, monkeypatch: MP) -> None:
    """A copy beside a file of the same name gets another name."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        [saved] = done(await all_of(c.batch([job(1)], save_to=tmp_path / "a", delete=True)))
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / saved.files[0].name).write_bytes(b"somebody's")
        [copied] = done(await all_of(c.batch([job(1)], save_to=tmp_path / "b", delete=True)))
    assert [1] == faces(copied.files)
    assert b"somebody's" == (tmp_path / "b" / saved.files[0].name).read_bytes()
    assert 1 == harness.sandbox.ledger.units_charged


@pytest.mark.parametrize(("reuse", "bought"), [(None, 2), (True, 1), (False, 2)])
async def test_avatars_of_another_folder(
    tmp_path: Path, monkeypatch: MP, reuse: bool | None, bought: int
) -> None:
    """With `reuse=True` avatars are copied; by default another folder gets new ones."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client(reuse=reuse) as c:
        for folder in ("a", "b"):
            await all_of(c.batch([avatar(4)], save_to=tmp_path / folder, delete=True))
    assert bought == harness.sandbox.ledger.units_charged
    assert 4 == len(list((tmp_path / "b").iterdir()))


async def test_reading_a_saved_result(tmp_path: Path, monkeypatch: MP) -> None:
    """The result of a saved job can be saved elsewhere while the vendor has it."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        await all_of(c.batch([job(1)], save_to=harness.out))
        [outcome] = done(await all_of(c.batch([job(1)], save_to=harness.out)))
        files = await outcome.result.save(tmp_path / "else")
    assert [1] == faces(files)


async def test_the_vendors_copies_are_deleted_later(tmp_path: Path, monkeypatch: MP) -> None:
    """`delete` works, once, for a result that was saved without it before."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        await all_of(c.batch([job(1)], save_to=harness.out))
        for _ in range(3):
            await all_of(c.batch([job(1)], save_to=harness.out, delete=True))
            await asyncio.sleep(60)
        assert 1 == harness.sandbox.ledger.requests["delete"]
    assert 1 == harness.sandbox.ledger.units_charged


@pytest.mark.parametrize("delete", [True, False])
async def test_a_run_that_stopped_at_its_ceiling(
    tmp_path: Path, monkeypatch: MP, delete: bool
) -> None:
    """A second run buys only the missing jobs."""
    harness = JournalHarness(tmp_path, monkeypatch)
    jobs = [job(n) for n in range(6)]
    for turn in (1, 2, 3, 4):
        async with harness.client() as c:
            outcomes = await all_of(c.batch(jobs, save_to=harness.out, delete=delete, max_units=2))
        assert min(2 * turn, 6) == len(done(outcomes)) == harness.sandbox.ledger.units_charged
        await asyncio.sleep(2 * DAY)


async def test_a_journal_that_cannot_record_a_result(
    tmp_path: Path, monkeypatch: MP, caplog: pytest.LogCaptureFixture
) -> None:
    """The vendor's copy of the saved result is kept, and nothing is bought."""
    harness = JournalHarness(tmp_path, monkeypatch)

    def full(*_: object) -> None:
        raise JournalError("full")

    async with harness.client() as c:
        with monkeypatch.context() as patch:
            patch.setattr(SqliteJournal, "save_result", full)
            [outcome] = done(await all_of(c.batch([job(1)], save_to=harness.out, delete=True)))
        assert outcome.files
        assert "could not be written to the journal" in caplog.text
        assert "Nothing was bought" not in caplog.text
    async with harness.client() as c:
        assert 1 == len(done(await all_of(c.batch([job(1)], save_to=harness.out, delete=True))))
    assert 1 == harness.sandbox.ledger.units_charged


# The picture of a key.


@pytest.mark.parametrize("journal", [True, False])
async def test_another_picture_in_one_batch(tmp_path: Path, monkeypatch: MP, journal: bool) -> None:
    """A job whose key names another picture is refused with both names, and the others go on."""
    harness = JournalHarness(tmp_path, monkeypatch)
    (tmp_path / "one.jpg").write_bytes(face(1))
    (tmp_path / "two.jpg").write_bytes(face(2))
    jobs = [
        *(Smile(tmp_path / "one.jpg", key="k"), Smile(tmp_path / "two.jpg", key="k")),
        *(Smile(face(1), key="k"), job(3)),
    ]
    async with (harness.client if journal else harness.plain)() as c:
        outcomes = await all_of(c.batch(jobs, save_to=harness.out, ordered=True))
        with pytest.raises(JobRefused, match="another picture"):
            await c.run(jobs[1])
        later = await all_of(c.batch([jobs[1]], save_to=harness.out))
    assert [True, False, True, True] == [outcome.ok for outcome in outcomes]
    assert [JobRefused] == errors(outcomes) == errors(later)
    assert "one.jpg" in str(outcomes[1].error)
    assert "two.jpg" in str(outcomes[1].error)
    assert 2 == harness.sandbox.ledger.units_charged


@pytest.mark.parametrize("state", ["over", "running"])
async def test_another_picture_in_another_run(tmp_path: Path, monkeypatch: MP, state: str) -> None:
    """The journal knows the picture of a key, of ended and of unended jobs."""
    harness = JournalHarness(tmp_path, monkeypatch)
    c = await harness.client().open()
    running = asyncio.ensure_future(c.run(Smile(face(1), key="k")))
    if state == "over":
        await running
        await c.close()
    else:
        await until(lambda: bool(harness.sandbox.ledger.tasks))
        await asyncio.sleep(0.5)
        await harness.crash(c, running)
    async with harness.client() as c:
        with pytest.raises(JobRefused, match="another picture"):
            await c.run(Smile(face(2), key="k"))
        result = await c.run(Smile(face(1), key="k"))
        assert [1] == faces(await result.save(harness.out))
    assert 1 == harness.sandbox.ledger.units_charged


async def test_a_key_is_free_again_after_a_failure(tmp_path: Path, monkeypatch: MP) -> None:
    """A key whose job failed without a charge may name another picture."""
    faults = Faults(engine_errors=1.0, engine_error_codes=("error_no_face",))
    harness = JournalHarness(tmp_path, monkeypatch, faults=faults)
    async with harness.client() as c:
        assert 1 == len(errors(await all_of(c.batch([Smile(face(1), key="k")]))))
        harness.sandbox.faults = Faults()
        result = await c.run(Smile(face(2), key="k"))
        assert [2] == faces(await result.save(harness.out))
