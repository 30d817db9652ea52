"""A process ends at any moment, and the next one on its journal loses no charged task."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from perfect_async import (
    Client,
    ConfigurationError,
    Failed,
    FileId,
    Job,
    JobRefused,
    Limits,
    Outcome,
    PictureRefused,
    Polling,
    Smile,
    SubmissionInDoubt,
    TaskExpired,
)
from perfect_async._client import recovery
from perfect_async._files.images import inspect
from perfect_async._runtime.commands import Submitter
from perfect_async._transport.transport import VendorTransport
from perfect_async.errors import JournalError, SourceLost
from perfect_async.sandbox import Durations, Faults
from tests.support.journaled import (
    JournalHarness,
    adds_up,
    all_of,
    creates,
    done,
    drawn,
    each,
    errors,
    face,
    faces,
    job,
    paid,
    resumed,
    until,
)
from tests.support.sandboxed import KEY, avatar, smile

MP = pytest.MonkeyPatch


def on_disk(folder: Path, numbers: range) -> list[Smile]:
    """Smiles of faces in files."""
    folder.mkdir(exist_ok=True)
    jobs = []
    for number in numbers:
        path = folder / f"{number}.jpg"
        path.write_bytes(face(number))
        jobs.append(Smile(path))
    return jobs


def number_of(outcome: Outcome) -> int:
    """The number of the face in a file, by the file's name."""
    return int(Path(str(outcome.job.source)).stem)


# Any moment.


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.long] * (seed >= 4)) for seed in range(24)]
)
async def test_any_moment(tmp_path: Path, monkeypatch: MP, seed: int) -> None:
    """However often it crashes, each picture ends with its own result, charged once.

    A batch of twelve with uploads, engine failures, retries, lost answers, saves and deletions;
    then the jobs that the dead processes had not come to.
    """
    rng = random.Random(seed)
    faults = Faults(
        engine_errors=0.15,
        engine_error_codes=("error_inference",),
        lost_creations=0.05 * (seed % 3),
        dropped={"poll": 0.05, "task": 0.03 * (seed % 2)},
        hang={"task": 0.02 * (seed % 4)},
        bad_gateway={"delete": 0.1, "upload": 0.1},
    )
    spread = Durations(6.0, 0.8)
    harness = JournalHarness(
        tmp_path, monkeypatch, seed=seed, faults=faults, durations={"ai-smile": spread}
    )
    jobs = on_disk(tmp_path / "in", range(12))
    delete = bool(seed % 2)
    told: list[Outcome] = []

    async def work(c: Client, *, first: bool) -> None:
        batches = [c.resume()]
        if first or not rng.randrange(3):
            batches.append(c.batch(each(jobs, 0.3), save_to=harness.out, delete=delete))
        for batch in batches:
            async with batch:
                async for outcome in batch:
                    told.append(outcome)

    for life in range(3):
        c = await harness.client(engine_retries=3).open()
        working = asyncio.ensure_future(work(c, first=not life))
        await asyncio.wait([working], timeout=rng.uniform(0, 25))
        seen = len(told)
        await harness.crash(c, working)
        # The output of a dead process is lost.
        del told[seen:]
        await asyncio.sleep(rng.choice([0.0, 1.0, 4.0, 30.0]))
    # The last one meets no faults, and runs the failed jobs again.
    harness.sandbox.faults = Faults()
    async with harness.client() as c:
        told += await resumed(c)
        again = await all_of(c.batch(jobs, save_to=harness.out, delete=delete, buy_in_doubt=True))
        assert [] == await resumed(c)
    assert [] == [o.error for o in again if not o.ok]
    assert 12 == len(done(again))
    for outcome in [*done(again)]:
        assert [number_of(outcome)] == faces(outcome.files)
    for outcome in done(told):
        assert [number_of(outcome)] == faces(outcome.files)
    counts = drawn(harness.sandbox)
    doubts = sum(isinstance(o.error, SubmissionInDoubt) for o in told)
    lost = sum(isinstance(o.error, TaskExpired) for o in told)
    assert set(range(12)) == set(counts)
    # A picture was charged again only if its caller agreed, or (with `delete`)
    # if the vendor's copy was gone and the job was run again.
    if not delete:
        assert counts.total() <= 12 + doubts
    ledger = harness.sandbox.ledger
    assert ledger.units_wasted <= lost + doubts
    assert [] == ledger.violations


# Jobs of a former process.


async def test_a_new_journal_has_nothing_to_resume(tmp_path: Path, monkeypatch: MP) -> None:
    """Nor has one whose outcomes were all taken."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        assert [] == await resumed(c)
        await c.run(smile(1))
    async with harness.client() as c:
        assert [] == await resumed(c)
        adds_up(c, harness.sandbox, elsewhere=1)


async def test_resuming_needs_a_journal(tmp_path: Path, monkeypatch: MP) -> None:
    """It also needs an open client."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.plain() as c:
        with pytest.raises(ConfigurationError, match="journal"):
            c.resume()
    with pytest.raises(ConfigurationError, match="not open"):
        harness.client().resume()


async def test_running_tasks_are_resumed_first(tmp_path: Path, monkeypatch: MP) -> None:
    """They are polled before doubts are settled and new jobs are created."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(30.0)})
    stop = Stop(harness, 6)
    c = await harness.client(stop).open()
    working = asyncio.ensure_future(all_of(c.batch([smile(n) for n in range(12)])))
    await stop.stopped.wait()
    await asyncio.sleep(1)
    await harness.crash(c, working)
    async with harness.client() as c:
        outcomes = await resumed(c)
    kinds = [path.rpartition("/")[2] for _, _, path in harness.wire.sent]
    assert ["poll"] * 6 == ["poll" if len(kind) > 50 else kind for kind in kinds[:6]]
    assert "history" == kinds[6]
    assert 1 == kinds[:9].count("ai-smile") or "ai-smile" not in kinds[:9]
    assert [SubmissionInDoubt] == errors(outcomes)
    assert 11 == len(done(outcomes))
    paid(outcomes, harness.sandbox)


class Stop:
    """After `left` creations nothing is answered or executed."""

    def __init__(self, harness: JournalHarness, left: int) -> None:
        self._left = left
        self.stopped = asyncio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response | None:
        if creates(request):
            self._left -= 1
            if self._left < 0:
                self.stopped.set()
                await asyncio.sleep(1e6)
        return None


async def test_a_lost_task_is_reported_once(tmp_path: Path, monkeypatch: MP) -> None:
    """A task whose lease had ended raises `TaskExpired` with its units."""
    harness = JournalHarness(tmp_path, monkeypatch)
    c = await harness.client().open()
    jobs: list[Job] = [smile(1), avatar(8, key="a")]
    working = [asyncio.ensure_future(c.run(one)) for one in jobs]
    await until(lambda: len(harness.sandbox.ledger.tasks) == 2)
    await asyncio.sleep(1)
    await harness.crash(c, *working)
    await asyncio.sleep(60)
    async with harness.client() as c:
        outcomes = await resumed(c)
        adds_up(c, harness.sandbox)
        assert 3.0 == c.statistics().units.at_stake
        assert [] == await resumed(c)
    assert [TaskExpired] * 2 == errors(outcomes)
    assert [1.0, 2.0] == sorted(o.error.units_at_stake for o in outcomes if isinstance(o, Failed))
    paid(outcomes, harness.sandbox)
    async with harness.client() as c:
        assert [] == await resumed(c)


async def frozen(harness: JournalHarness, jobs: list[Smile], monkeypatch: MP) -> None:
    """A process that has accepted `jobs` and dies before an upload."""

    async def forever(*_: object, **__: object) -> None:
        await asyncio.sleep(1e6)

    c = await harness.client().open()
    with monkeypatch.context() as patch:
        patch.setattr(VendorTransport, "upload", forever)
        working = [asyncio.ensure_future(c.run(one)) for one in jobs]
        await asyncio.sleep(5)
        await harness.crash(c, *working)


async def test_sources_of_former_jobs(tmp_path: Path, monkeypatch: MP) -> None:
    """A file that was not uploaded is used again; bytes and changed files are `SourceLost`."""
    harness = JournalHarness(tmp_path, monkeypatch)
    jobs = [*on_disk(tmp_path / "in", range(1, 4)), job(4)]
    await frozen(harness, jobs, monkeypatch)
    (tmp_path / "in" / "2.jpg").write_bytes(face(9))
    (tmp_path / "in" / "3.jpg").unlink()
    async with harness.client() as c:
        outcomes = await resumed(c)
        adds_up(c, harness.sandbox)
        [outcome] = done(outcomes)
        assert [1] == faces(await outcome.result.save(harness.out))
        assert [] == await resumed(c)
    assert [SourceLost, SourceLost, PictureRefused] == sorted(errors(outcomes), key=str)[::-1]
    assert 1 == harness.sandbox.ledger.units_charged


async def test_uploaded_bytes_are_used_again(tmp_path: Path, monkeypatch: MP) -> None:
    """The job is created from the vendor's copy."""
    harness = JournalHarness(tmp_path, monkeypatch)
    stop = Stop(harness, 0)

    async def forever(*_: object) -> None:
        await asyncio.sleep(1e6)

    c = await harness.client(stop).open()
    with monkeypatch.context() as patch:
        patch.setattr(Submitter, "create", forever)
        working = asyncio.ensure_future(c.run(job(3)))
        await asyncio.sleep(5)
        await harness.crash(c, working)
    async with harness.client() as c:
        [outcome] = done(await resumed(c))
        assert [3] == faces(await outcome.result.save(harness.out))
        adds_up(c, harness.sandbox)
    assert isinstance(outcome.job.source, FileId)
    assert 1 == harness.sandbox.ledger.requests["upload"]


@pytest.mark.parametrize("signed", [True, False])
async def test_urls_of_former_jobs(tmp_path: Path, monkeypatch: MP, signed: bool) -> None:
    """A URL is used again; a signed one is not in the journal, so its job is lost."""
    harness = JournalHarness(tmp_path, monkeypatch)
    one = Smile(f"https://pictures.example/1.jpg{'?X-Amz-Signature=SECRET' if signed else ''}")

    async def forever(*_: object) -> None:
        await asyncio.sleep(1e6)

    c = await harness.client().open()
    with monkeypatch.context() as patch:
        patch.setattr(Submitter, "create", forever)
        working = asyncio.ensure_future(c.run(one))
        await asyncio.sleep(5)
        await harness.crash(c, working)
    held = b"".join(path.read_bytes() for path in harness.folder.glob("jobs-1.db*"))
    assert (b"pictures.example" in held) is not signed
    assert b"SECRET" not in held
    async with harness.client() as c:
        outcomes = await resumed(c)
        adds_up(c, harness.sandbox)
    assert ([SourceLost] if signed else []) == errors(outcomes)


async def test_the_journal_has_no_picture_and_no_key(tmp_path: Path, monkeypatch: MP) -> None:
    """Only its user can read it."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        await c.run(Smile(face(3)))
        files = list(harness.folder.glob("jobs.db*"))
        held = b"".join(path.read_bytes() for path in files)
        assert {0o600} == {path.stat().st_mode & 0o777 for path in files}
    assert face(3)[200:260] not in held
    assert KEY.encode() not in held


async def test_the_window_of_the_former_process_counts(tmp_path: Path, monkeypatch: MP) -> None:
    """Its requests are not sent a second time."""
    harness = JournalHarness(tmp_path, monkeypatch, requests=60, period=100.0)
    limits = Limits(requests=60, period=100.0)
    polling = Polling(insured=10.0, give_up_after=60.0)
    for _ in range(4):
        c = await harness.client(limits=limits, polling=polling).open()
        first = asyncio.ensure_future(resumed(c))
        working = asyncio.ensure_future(all_of(c.batch([smile(n) for n in range(40)])))
        await asyncio.sleep(15)
        await harness.crash(c, first, working)
    assert 0 == sum(harness.sandbox.ledger.refused.values())


async def test_a_second_client_on_a_journal_is_refused(tmp_path: Path, monkeypatch: MP) -> None:
    """It gets a clear error, and the first one goes on."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        with pytest.raises(JournalError, match="in use"):
            await harness.client().open()
        await c.run(smile(1))
        adds_up(c, harness.sandbox)


async def test_clients_with_and_without_a_journal(
    tmp_path: Path, monkeypatch: MP, caplog: pytest.LogCaptureFixture
) -> None:
    """A client with a journal may close before another one on the key, and be opened again."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.plain() as other:
        transport = other._transport
        for number in range(3):
            async with harness.client(transport=transport) as c:
                await c.run(smile(number))
                beside = len(asyncio.all_tasks())
            await asyncio.sleep(30)
            assert beside > len(asyncio.all_tasks())
            assert 2 == len(asyncio.all_tasks())
        await other.run(smile(9))
        adds_up(other, harness.sandbox)
    assert [] == caplog.records


# Together with other calls.


async def started(harness: JournalHarness, jobs: list[Smile]) -> list[str]:
    """A process that has created `jobs` and dies, and the ids of its tasks."""
    c = await harness.client().open()
    working = [asyncio.ensure_future(c.run(one)) for one in jobs]
    await until(lambda: len(harness.sandbox.ledger.tasks) == len(jobs))
    await asyncio.sleep(0.5)
    await harness.crash(c, *working)
    return [task.task_id for task in harness.sandbox.ledger.tasks]


async def test_a_former_job_is_submitted_again(tmp_path: Path, monkeypatch: MP) -> None:
    """It goes on as the former process left it; the others are resumed."""
    harness = JournalHarness(tmp_path, monkeypatch)
    ids = await started(harness, [job(n) for n in range(3)])
    async with harness.client() as c:
        batch = c.resume()
        result = await c.run(job(1))
        assert result.task_id in ids
        assert [1] == faces(await result.save(harness.out))
        outcomes = await all_of(batch)
        adds_up(c, harness.sandbox)
    assert 3 == harness.sandbox.ledger.units_charged
    assert set(ids) == {outcome.task_id for outcome in done(outcomes)}


async def test_a_batch_without_resume_continues_former_jobs(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """Each job that is given again has one outcome, and none is charged twice.

    The former process has saved one, runs two, and had not come to the others.
    """
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(20.0)})
    jobs = on_disk(tmp_path / "in", range(6))
    c = await harness.client().open()
    saved = await c.run(jobs[0], save_to=harness.out)
    running = [await c.submit(one, save_to=harness.out) for one in jobs[1:3]]
    await asyncio.sleep(1)
    await harness.crash(c)

    async with harness.client() as c:
        outcomes = await all_of(c.batch(jobs, save_to=harness.out))
        adds_up(c, harness.sandbox, elsewhere=saved.units)
        assert [] == await resumed(c)
    assert list(range(6)) == sorted(map(number_of, done(outcomes)))
    assert list(range(6)) == sorted(faces(path for each in outcomes for path in each.files))
    assert {saved.task_id, *(task.id for task in running)} < {each.task_id for each in outcomes}
    assert 6 == harness.sandbox.ledger.units_charged
    assert 0 == harness.sandbox.ledger.units_wasted


@pytest.mark.parametrize("pause", [0.0, 0.2, 6.0])
async def test_a_task_is_resumed_and_attached_at_once(
    tmp_path: Path, monkeypatch: MP, pause: float
) -> None:
    """The other tasks go on."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(4.0)})
    ids = await started(harness, [smile(n) for n in range(3)])
    async with harness.client() as c:
        batch = c.resume()
        attached = asyncio.ensure_future(c.attach(Smile, ids[0]))
        await asyncio.sleep(pause)
        outcomes = await all_of(batch)
        assert ids[0] == (await attached).task_id
        adds_up(c, harness.sandbox)
    assert 3 == len(done(outcomes))


async def test_a_client_that_closes_while_it_resumes(tmp_path: Path, monkeypatch: MP) -> None:
    """The rest is left to the next client."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(60.0)})
    await started(harness, [smile(n) for n in range(3)])
    async with harness.client(drain=1.0) as c, c.resume():
        await asyncio.sleep(5)
    async with harness.client(drain=1.0) as c:
        pass
    async with harness.client() as c:
        outcomes = await resumed(c)
        adds_up(c, harness.sandbox)
    assert 3 == len(done(outcomes))
    paid(outcomes, harness.sandbox)


async def test_a_client_that_closes_before_the_creation(tmp_path: Path, monkeypatch: MP) -> None:
    """Its callers were told that the jobs were not created, so they are not resumed."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        working = asyncio.ensure_future(all_of(c.batch([smile(n) for n in range(20)])))
        await asyncio.sleep(1)
    await asyncio.wait([working])
    created = harness.sandbox.ledger.units_charged
    assert 0 < created < 20
    async with harness.client() as c:
        assert [] == await resumed(c)
    assert created == harness.sandbox.ledger.units_charged


async def test_all_running_tasks_are_kept_alive(tmp_path: Path, monkeypatch: MP) -> None:
    """A new process would not have created as many."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(12.0)})
    c = await harness.client().open()
    working = asyncio.ensure_future(all_of(c.batch([smile(n) for n in range(60)])))
    await until(lambda: harness.sandbox.ledger.tasks_by_state["running"] >= 12, every=0.5)
    await harness.crash(c, working)
    async with harness.client() as c:
        outcomes = await resumed(c)
    assert 12 <= len(done(outcomes))
    assert [] == errors(outcomes)
    assert 0 == harness.sandbox.ledger.units_wasted


async def test_a_former_job_uses_the_new_picture(tmp_path: Path, monkeypatch: MP) -> None:
    """A job that was not created uses the picture that is submitted again."""
    harness = JournalHarness(tmp_path, monkeypatch)
    await frozen(harness, [job(4)], monkeypatch)
    async with harness.client() as c:
        batch = c.resume()
        result = await c.run(job(4))
        assert [4] == faces(await result.save(harness.out))
        [outcome] = done(await all_of(batch))
        assert result.task_id == outcome.task_id
        adds_up(c, harness.sandbox)
        assert [] == await resumed(c)
    assert 1 == harness.sandbox.ledger.units_charged


async def test_two_that_resume_get_the_same_outcomes(tmp_path: Path, monkeypatch: MP) -> None:
    """An outcome that can be reported only once goes to the first."""
    harness = JournalHarness(tmp_path, monkeypatch)
    await frozen(harness, [job(4)], monkeypatch)
    async with harness.client() as c:
        first, second = c.resume(), c.resume()
        assert [SourceLost] == errors(await all_of(first))
        assert [JobRefused] == errors(await all_of(second))


def slow_disk(monkeypatch: MP, seconds: float) -> None:
    """Let each picture of a former job take `seconds` to be read."""

    async def slow(*args: object, **options: object) -> object:
        await asyncio.sleep(seconds)
        return await inspect(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(recovery, "inspect", slow)


async def unsent(folder: Path, monkeypatch: MP) -> tuple[JournalHarness, Smile]:
    """A smile of a file that a dead process has not sent; reading the file takes 0.3 s."""
    harness = JournalHarness(folder, monkeypatch)
    [one] = on_disk(folder / "in", range(1, 2))
    await frozen(harness, [one], monkeypatch)
    slow_disk(monkeypatch, 0.3)
    return harness, one


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.29, 0.31, 1.0])
@pytest.mark.parametrize("resumed_first", [True, False])
async def test_a_job_runs_while_it_is_resumed(
    tmp_path: Path, monkeypatch: MP, pause: float, resumed_first: bool
) -> None:
    """Both calls share one task, although the resumed picture takes long to be read."""
    harness, one = await unsent(tmp_path, monkeypatch)
    async with harness.client() as c:
        calls = [lambda: resumed(c), lambda: c.run(one)]
        first, second = calls if resumed_first else reversed(calls)
        started = asyncio.ensure_future(first())
        await asyncio.sleep(pause)
        await asyncio.gather(started, second())
        adds_up(c, harness.sandbox)
        assert [] == await resumed(c)
    async with harness.client() as c:
        assert [] == await resumed(c)
    assert 1 == harness.sandbox.ledger.units_charged


async def test_a_batch_that_resumes_and_a_run_share_one_task(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """A batch with `resume=True`, a second one and a run of the same job cost one unit."""
    harness, one = await unsent(tmp_path, monkeypatch)
    async with harness.client() as c:
        batches = [all_of(c.batch([one], resume=True)) for _ in range(2)]
        running = asyncio.ensure_future(c.run(one))
        outcomes = await asyncio.gather(*batches)
        result = await running
        found = {outcome.task_id for each in outcomes for outcome in done(each)}
        assert {result.task_id} == found
        assert [2, 2] == [len(done(each)) for each in outcomes]
        adds_up(c, harness.sandbox)
    assert 1 == harness.sandbox.ledger.units_charged


async def test_a_stopped_resume_leaves_the_job(tmp_path: Path, monkeypatch: MP) -> None:
    """A job whose picture was still being read can be run, and the journal has it once."""
    harness, one = await unsent(tmp_path, monkeypatch)
    async with harness.client() as c:
        async with c.resume():
            await asyncio.sleep(0.1)
        await c.run(one)
        adds_up(c, harness.sandbox)
    async with harness.client() as c:
        assert [] == await resumed(c)
    assert 1 == harness.sandbox.ledger.units_charged


async def test_a_client_that_closes_while_a_picture_is_read(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """The next client resumes the job, which was neither sent nor given up."""
    harness, _ = await unsent(tmp_path, monkeypatch)
    c = await harness.client().open()
    working = asyncio.ensure_future(resumed(c))
    await asyncio.sleep(0.1)
    await c.close()
    await asyncio.wait([working])
    assert 0 == harness.sandbox.ledger.units_charged
    async with harness.client() as c:
        assert 1 == len(done(await resumed(c)))
    assert 1 == harness.sandbox.ledger.units_charged


async def test_a_run_with_the_picture_of_a_lost_file(tmp_path: Path, monkeypatch: MP) -> None:
    """A run has its own picture, so both calls get its result though the file is gone."""
    harness, _ = await unsent(tmp_path, monkeypatch)
    (tmp_path / "in" / "1.jpg").unlink()
    async with harness.client() as c:
        resuming = asyncio.ensure_future(resumed(c))
        await asyncio.sleep(0.1)
        result = await c.run(Smile(face(1)))
        [outcome] = done(await resuming)
        assert result.task_id == outcome.task_id
        adds_up(c, harness.sandbox)
    assert 1 == harness.sandbox.ledger.units_charged


@pytest.mark.parametrize("state", ["unsent", "running"])
async def test_a_job_that_the_journal_has_twice(
    tmp_path: Path, monkeypatch: MP, state: str
) -> None:
    """Former versions could enter a job twice; one task serves both."""
    durations = {"ai-smile": Durations.fixed(20.0)}
    harness = JournalHarness(tmp_path, monkeypatch, durations=durations)
    [one] = on_disk(tmp_path / "in", range(1, 2))
    if state == "unsent":
        await frozen(harness, [one], monkeypatch)
    else:
        await started(harness, [one])
    c = await harness.client().open()
    assert c._session is not None
    journal = c._session.channel.journal
    [snapshot] = journal.recoverable.values()
    journal.enter(snapshot.stored)
    await asyncio.sleep(0.5)
    await harness.crash(c)
    async with harness.client() as c:
        outcomes = await resumed(c)
        assert [] == errors(outcomes)
        assert [2, 1] == [len(outcomes), len({outcome.task_id for outcome in outcomes})]
        adds_up(c, harness.sandbox)
        assert [] == await resumed(c)
    assert 1 == harness.sandbox.ledger.units_charged


@pytest.mark.parametrize("pause", [0.1, 2.0])
@pytest.mark.parametrize("state", ["unsent", "running"])
async def test_another_picture_while_a_job_is_resumed(
    tmp_path: Path, monkeypatch: MP, state: str, pause: float
) -> None:
    """A key that a resumed job has names no other picture."""
    durations = {"ai-smile": Durations.fixed(20.0)}
    harness = JournalHarness(tmp_path, monkeypatch, durations=durations)
    path = tmp_path / "1.jpg"
    path.write_bytes(face(1))
    one = Smile(path, key="k")
    if state == "unsent":
        await frozen(harness, [one], monkeypatch)
    else:
        await started(harness, [one])
    slow_disk(monkeypatch, 0.3)
    async with harness.client() as c:
        resuming = asyncio.ensure_future(resumed(c))
        await asyncio.sleep(pause)
        with pytest.raises(JobRefused, match="another picture"):
            await c.run(Smile(face(2), key="k"))
        [outcome] = done(await resuming)
        assert [1] == faces(await outcome.result.save(harness.out))
    assert 1 == harness.sandbox.ledger.units_charged


# One batch for former and new jobs.


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_batch_begins_with_former_jobs(
    tmp_path: Path, monkeypatch: MP, ordered: bool
) -> None:
    """With `resume=True` they come before the given jobs, with one progress."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(20.0)})
    c = await harness.client().open()
    for number in (1, 2):
        _ = await c.submit(job(number), save_to=harness.out)
    await asyncio.sleep(3)
    await harness.crash(c)

    async with harness.client() as c:
        jobs = [job(3), job(4)]
        async with c.batch(jobs, save_to=harness.out, ordered=ordered, resume=True) as batch:
            assert 4 == batch.progress.total
            outcomes = [outcome async for outcome in batch]
            now = batch.progress
        assert (4, 4, 0, 0) == (now.total, now.done, now.running, now.waiting)
        if ordered:
            assert ["1", "2", "3", "4"] == [outcome.job.key for outcome in outcomes]
        assert [1, 2, 3, 4] == sorted(faces(path for each in outcomes for path in each.files))
        assert [] == await resumed(c)
    assert 4 == harness.sandbox.ledger.units_charged


async def test_a_batch_that_names_a_former_job(tmp_path: Path, monkeypatch: MP) -> None:
    """A former job that is also among the given ones has one task, and is charged once."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={"ai-smile": Durations.fixed(20.0)})
    c = await harness.client().open()
    for number in (1, 2):
        _ = await c.submit(job(number))
    await asyncio.sleep(1)
    await harness.crash(c)

    async with harness.client() as c:
        outcomes = await all_of(c.batch((job(number) for number in (1, 2, 3)), resume=True))
    assert ["1", "1", "2", "2", "3"] == sorted(str(outcome.job.key) for outcome in done(outcomes))
    assert 3 == harness.sandbox.ledger.units_charged


async def test_a_batch_on_a_new_journal_resumes_nothing(tmp_path: Path, monkeypatch: MP) -> None:
    """The batch has only the given jobs; without a journal it is refused."""
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client() as c:
        batch = c.batch([job(1)], resume=True)
        assert 1 == batch.progress.total
        assert 1 == len(done(await all_of(batch)))
        assert [] == await all_of(c.batch([], resume=True))
    async with harness.plain() as c:
        with pytest.raises(ConfigurationError, match="needs a journal"):
            c.batch([job(1)], resume=True)


async def test_leaving_a_batch_that_resumes_closes_its_source(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """The source is closed when the block is left, and its error is raised."""
    harness = JournalHarness(tmp_path, monkeypatch)
    closed: list[bool] = []

    async def source() -> AsyncIterator[Job]:
        try:
            for number in range(1000):
                yield job(number)
                if number == 1:
                    raise OSError("the share is gone")
        finally:
            closed.append(True)

    async with harness.client() as c:
        async with c.batch(source(), resume=True) as batch:
            assert 2 == len(done([await anext(batch), await anext(batch)]))
            with pytest.raises(OSError, match="share is gone"):
                await anext(batch)
        assert [True] == closed

        async with c.batch(source(), resume=True):
            await asyncio.sleep(1)
        assert [True, True] == closed
