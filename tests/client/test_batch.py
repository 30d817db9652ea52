"""Batches: when jobs are read, the order of outcomes, how a batch ends, and its progress."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import attrs
import pytest

from perfect_async import (
    Batch,
    Client,
    ClientClosed,
    ConfigurationError,
    Done,
    Failed,
    Job,
    JobRefused,
    Limits,
    Outcome,
    PictureRefused,
    Polling,
    Progress,
    Smile,
    Unauthorized,
)
from perfect_async._client import session
from perfect_async._runtime.executors import ThreadExecutor
from perfect_async.events import Command
from perfect_async.sandbox import Durations, Faults, portrait
from perfect_async.scheduler import Scheduler
from tests.support.sandboxed import FACE, avatar, client, clock, later, smile, smiles, vendor

MANY: Any = {"requests": 100_000, "per_second": 100, "units": 1e6}
ROOM = Limits(100_000, 300, 100)


class Counted:
    """A source that counts how many jobs were read, and records whether it was closed."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.jobs = iter(jobs)
        self.read = 0
        self.closed = False

    def __iter__(self) -> Iterator[Job]:
        for job in self.jobs:
            self.read += 1
            yield job

    async def later(self) -> AsyncIterator[Job]:
        try:
            for job in self.jobs:
                await asyncio.sleep(0)
                self.read += 1
                yield job
        finally:
            await asyncio.sleep(1)
            self.closed = True


# Reading the source.


@pytest.mark.parametrize("kind", ["generator", "async generator"])
async def test_a_million_jobs_are_read_about_90_ahead(kind: str) -> None:
    """A source of any length is read as needed, and closed when the block is left."""
    sandbox = vendor()
    source = Counted(smiles(10**6))
    jobs = iter(source) if kind == "generator" else source.later()
    async with client(sandbox) as c:
        async with c.batch(jobs) as batch:
            taken = 0
            async for outcome in batch:
                taken += 1
                created = sandbox.ledger.units_charged
                assert outcome.ok
                assert created <= source.read <= created + 93
                if taken == 20:
                    # Between two reads, since a cancelled read cleans up by itself.
                    await asyncio.sleep(0.01)
                    break
        read = source.read

    assert source.closed is (kind == "async generator")
    assert read == source.read
    assert read < 140
    assert sandbox.ledger.units_charged == sandbox.ledger.tasks_by_state["success"]


@pytest.mark.parametrize("kind", ["list", "generator", "async generator"])
async def test_an_empty_source_ends_at_once(kind: str) -> None:
    """A batch without jobs has no outcomes."""
    empty: list[Job] = []
    jobs: Any = {"list": empty, "generator": iter(empty), "async generator": later(iter(empty))}
    sandbox = vendor()
    async with client(sandbox) as c, c.batch(jobs[kind]) as batch:
        assert [] == [outcome async for outcome in batch]
        assert Progress(0, 0, 0, 0, 0, 0.0, 0.0) == batch.progress

    assert 0 == sum(sandbox.ledger.requests.values())


class Endless:
    """An async iterable that is not a generator, so it has no `aclose`."""

    def __init__(self) -> None:
        self.number = 0

    def __aiter__(self) -> "Endless":
        return self

    async def __anext__(self) -> Job:
        self.number += 1
        return smile(self.number)


async def test_any_async_iterable_is_a_source() -> None:
    """The jobs may come from any object that `async for` accepts."""
    source = Endless()
    async with client(vendor()) as c, c.batch(source) as batch:
        assert (await anext(batch)).ok
        assert None is batch.progress.total

    assert source.number < 100


async def test_a_slow_consumer_delays_creations_but_no_polls() -> None:
    """While nobody takes outcomes, few jobs are created, and running tasks are kept alive."""
    sandbox = vendor(**MANY)
    source = Counted(smiles(10**6))
    async with client(sandbox, limits=Limits(10_000, 300, 5)) as c:
        async with c.batch(source) as batch:
            assert (await anext(batch)).ok
            await asyncio.sleep(300)
            held = sandbox.ledger.units_charged
            await asyncio.sleep(300)
            assert held == sandbox.ledger.units_charged == batch.progress.done
            assert 0 == batch.progress.running
            for _ in range(held):
                assert (await anext(batch)).ok
            assert sandbox.ledger.units_charged > held
        ahead = source.read - sandbox.ledger.units_charged

    # 200 outcomes that wait, the running tasks, and 200 jobs that are ready to be created.
    assert held <= 200 + 5 * 9 + 200
    assert ahead <= 200
    assert 0 == sandbox.ledger.units_wasted


# Outcomes.


async def test_outcomes_come_as_they_end_or_in_order() -> None:
    """A slow first job delays the others only with `ordered`."""
    slow = {"ai-avatar": Durations.fixed(60.0), "ai-smile": Durations.fixed(5.0)}
    jobs = [avatar(), smile(1), Smile(b"none"), smile(2)]
    async with client(vendor(durations=slow)) as c:
        async with c.batch(jobs) as batch:
            ended = [outcome.job async for outcome in batch]
        async with c.batch(jobs, ordered=True) as batch:
            ordered = [outcome.job async for outcome in batch]

    assert jobs == ordered
    assert (jobs[2], jobs[0]) == (ended[0], ended[-1])


async def test_a_slow_first_job_holds_back_a_bounded_number() -> None:
    """With `ordered` a bounded number of outcomes wait for a slow first job."""
    slow = {"ai-avatar": Durations.fixed(500.0), "ai-smile": Durations.fixed(1.0)}
    source = Counted([avatar(), *smiles(400)])
    sandbox = vendor(**MANY, durations=slow)
    limits = Limits(10_000, 300, 5)
    async with client(sandbox, limits=limits) as c, c.batch(source, ordered=True) as batch:
        await asyncio.sleep(400)
        assert 256 <= batch.progress.done < 400
        assert source.read < 370
        assert 1 == batch.progress.running
        assert isinstance((await anext(batch)).job, type(avatar()))
        outcomes = [outcome async for outcome in batch]

    assert [str(number) for number in range(400)] == [outcome.job.key for outcome in outcomes]


@pytest.mark.parametrize(
    ("job", "error"),
    [
        (Smile(b"no picture"), PictureRefused),
        (Smile("/nowhere/at.all"), PictureRefused),
        ("a.jpg", JobRefused),
        (None, JobRefused),
    ],
    ids=["bytes", "path", "text", "None"],
)
async def test_one_bad_job_is_one_failure(job: Job, error: type[JobRefused]) -> None:
    """A job that cannot be sent has an outcome, and the others go on."""
    async with client(vendor()) as c, c.batch(iter([smile(1), job, smile(2)])) as batch:
        outcomes = [outcome async for outcome in batch]
    bad = [outcome for outcome in outcomes if isinstance(outcome, Failed)]

    assert 3 == len(outcomes)
    assert [job] == [outcome.job for outcome in bad]
    assert type(bad[0].error) is error
    assert (None, 0.0, None) == (bad[0].task_id, bad[0].units, bad[0].duration)
    with pytest.raises(error):
        bad[0].unwrap()


@pytest.mark.parametrize("collection", [list, tuple, set])
async def test_an_item_that_is_not_a_job_is_refused_at_the_call(collection: type) -> None:
    """A path in a list of jobs raises an error when the batch is made, before anything is sent."""
    async with client(vendor()) as c:
        with pytest.raises(JobRefused, match="'str' is not a job"):
            c.batch(collection(["a.jpg"]))
        with pytest.raises(ConfigurationError, match="Smile"):
            c.batch("a.jpg")  # type: ignore[arg-type]


async def test_the_fields_of_an_outcome() -> None:
    """Task, units and duration are those of the vendor's ledger."""
    faults = Faults(by_picture={"https://pictures.example/1.jpg": "error_pose"})
    sandbox = vendor(faults=faults)
    async with client(sandbox) as c, c.batch([smile(0), smile(1), avatar(9)]) as batch:
        outcomes = {outcome.job.key: outcome async for outcome in batch}
    tasks = {task.source: task for task in sandbox.ledger.tasks}
    done, failed, many = outcomes["0"], outcomes["1"], outcomes[None]

    assert isinstance(done, Done)
    assert done.unwrap() is done.result
    assert tasks["https://pictures.example/0.jpg"].task_id == done.task_id == done.result.task_id
    assert tasks["https://pictures.example/1.jpg"].task_id == failed.task_id
    assert (1.0, 0.0, 3.0) == (done.units, failed.units, many.units)
    for outcome in outcomes.values():
        assert outcome.duration is not None
        assert 8 <= outcome.duration < 60


# The end of a batch.


@pytest.mark.parametrize("kind", ["generator", "async generator"])
@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, StopAsyncIteration])
async def test_an_error_of_the_source_comes_last(kind: str, error: type[BaseException]) -> None:
    """An error of the source is raised after the outcomes of the jobs before it."""

    def source() -> Iterator[Job]:
        yield from smiles(5)
        raise error

    outcomes: list[Outcome] = []
    jobs: Any = source() if kind == "generator" else later(source())
    expected = {
        ZeroDivisionError: ZeroDivisionError,
        asyncio.CancelledError: ClientClosed,
        # A generator turns it into a RuntimeError.
        StopAsyncIteration: RuntimeError,
    }[error]
    async with client(vendor()) as c, c.batch(jobs) as batch:
        with pytest.raises(expected):  # noqa: PT012
            async for outcome in batch:
                outcomes.append(outcome)  # noqa: PERF401 - they count although it raises
        assert [] == [outcome async for outcome in batch]
        assert (await c.run(smile())).images

    assert [True] * 5 == [outcome.ok for outcome in outcomes]


async def test_an_error_while_the_source_closes_comes_last() -> None:
    """An error of the source's own cleanup is raised after all outcomes."""

    async def source(count: int) -> AsyncIterator[Job]:
        try:
            for job in smiles(count):
                yield job
        finally:
            raise ZeroDivisionError

    outcomes: list[Outcome] = []
    async with client(vendor()) as c:
        batch = c.batch(source(3))
        async with batch:
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async for outcome in batch:
                    outcomes.append(outcome)  # noqa: PERF401
        async with c.batch(source(1000)) as left:
            assert (await anext(left)).ok

    assert 3 == len(outcomes)


async def test_a_source_that_hangs_when_it_is_closed() -> None:
    """Leaving the block takes bounded time, whatever the source does."""

    async def source() -> AsyncIterator[Job]:
        try:
            yield smile()
            await asyncio.sleep(10_000)
        finally:
            await asyncio.sleep(10_000)

    async with client(vendor(), drain=0) as c:
        began = clock()
        async with c.batch(source()) as batch:
            assert (await anext(batch)).ok
        took = clock() - began

    assert took < 30


async def test_stopping_a_batch() -> None:
    """A stopped batch ends when its running tasks have ended; the other jobs are not bought."""
    sandbox = vendor()
    source = Counted(Smile(portrait(n % 7, size=96), key=str(n)) for n in range(10**6))
    async with client(sandbox) as c, c.batch(source) as batch:
        first = await anext(batch)
        batch.stop()
        batch.stop()
        outcomes = [first] + [outcome async for outcome in batch]

    assert source.read == len(outcomes) < 100
    assert sandbox.ledger.tasks_by_state["success"] == sum(outcome.ok for outcome in outcomes)
    assert {ClientClosed} == {type(outcome.error) for outcome in outcomes if not outcome.ok}


async def test_stopping_while_pictures_are_inspected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that were not entered yet have outcomes that say why."""
    monkeypatch.setattr(session, "inspect", slowly)
    async with client(vendor()) as c, c.batch(smiles(5)) as batch:
        await asyncio.sleep(0.5)
        batch.stop()
        outcomes = [outcome async for outcome in batch]

    assert 5 == len(outcomes)
    assert all("batch was stopped" in str(outcome.error) for outcome in outcomes)


async def test_closing_while_pictures_are_inspected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose inspection ends after the client has closed is not sent."""
    sandbox = vendor()
    c = await client(sandbox).open()
    kept = asyncio.ensure_future(c.run(smile()))
    await asyncio.sleep(3)
    monkeypatch.setattr(session, "inspect", slowly)
    batch = await c.batch(later_on(smiles(1))).__aenter__()
    await asyncio.sleep(0.5)
    await c.close()
    failed = await anext(batch)

    assert (await kept).images
    assert isinstance(failed.error, ClientClosed)
    with pytest.raises(ClientClosed):
        await anext(batch)
    assert 1 == sandbox.ledger.units_charged


async def slowly(*_: object, fit: bool) -> None:
    """An inspection of a picture that takes a second."""
    await asyncio.sleep(1)


async def later_on(source: Iterable[Job]) -> AsyncIterator[Job]:
    """`source`, followed by a long pause."""
    for job in source:
        yield job
    await asyncio.sleep(10_000)


async def test_leaving_the_block_early() -> None:
    """No more tasks are created, and the client keeps running ones to their ends."""
    sandbox = vendor()
    async with client(sandbox) as c:
        batch = c.batch(smiles(1000))
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with batch:
                await asyncio.sleep(4)
                raise ZeroDivisionError
        created = sandbox.ledger.units_charged
        assert 0 < created < 1000
        await asyncio.sleep(200)
        assert 0 == c.statistics().waiting
        assert (await c.run(smile())).images

    assert batch.progress.done == created == sandbox.ledger.units_charged - 1
    assert 0 == sandbox.ledger.units_wasted


async def test_a_batch_is_entered_once() -> None:
    """Entering twice, and iterating before entering, raise an error."""
    async with client(vendor()) as c:
        batch = c.batch(smiles(1))
        with pytest.raises(ConfigurationError, match="Enter the batch first"):
            await anext(batch)
        assert Progress(None, 0, 0, 0, 0, 0.0, None) == batch.progress
        async with batch:
            assert "<Batch Progress(total=None" in repr(batch)
            with pytest.raises(ConfigurationError, match="entered already"):
                await batch.__aenter__()
        with pytest.raises(ConfigurationError, match="'int'"):
            c.batch(7)  # type: ignore[arg-type]


async def test_a_batch_may_be_made_before_its_client_is_open() -> None:
    """Only entering needs an open client, and may be tried again."""
    c = client(vendor())
    batch = c.batch(smiles(2))
    with pytest.raises(ConfigurationError, match="not open"):
        await batch.__aenter__()
    async with c, batch:
        assert 2 == len([outcome async for outcome in batch])


async def test_iterating_may_stop_and_go_on() -> None:
    """An outcome that a cancelled wait did not get is there for the next one."""
    async with client(vendor()) as c, c.batch(smiles(3)) as batch:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(batch), 1)
        assert 3 == len([outcome async for outcome in batch])


@pytest.mark.parametrize("drain", [0, 30])
async def test_a_client_that_closes_during_a_batch(drain: float) -> None:
    """Every job that was read has an outcome, and an error says that others were not read."""
    sandbox = vendor()
    c = await client(sandbox, drain=drain).open()
    source = Counted(Smile(portrait(n % 7, size=96), key=str(n)) for n in range(10**6))
    outcomes: list[Outcome] = []

    async def consume() -> None:
        async with c.batch(source) as batch:
            async for outcome in batch:
                outcomes.append(outcome)  # noqa: PERF401

    consumer = asyncio.ensure_future(consume())
    await asyncio.sleep(20)
    await c.close()
    with pytest.raises(ClientClosed):
        await consumer

    assert source.read == len(outcomes)
    assert (0 < sum(outcome.ok for outcome in outcomes)) is True
    assert {"ClientClosed", "TaskAbandoned"} >= {
        type(o.error).__name__ for o in outcomes if not o.ok
    }


async def test_a_closing_client_reads_no_more_jobs() -> None:
    """While the client drains, the batch raises an error for the jobs that it did not read."""
    c = await client(vendor(durations={"ai-smile": Durations.fixed(20.0)})).open()
    source = Counted(smiles(10**6))
    batch = await c.batch(source).__aenter__()
    await asyncio.sleep(3)
    closing = asyncio.ensure_future(c.close())
    await asyncio.sleep(0)
    outcomes = []
    with pytest.raises(ClientClosed):  # noqa: PT012
        async for outcome in batch:
            outcomes.append(outcome)  # noqa: PERF401
    await closing

    assert source.read == len(outcomes) < 100
    assert {True, False} == {outcome.ok for outcome in outcomes}


async def test_a_key_that_is_refused_fails_every_job() -> None:
    """With a wrong key each job has an outcome, and few requests are sent."""
    sandbox = vendor(api_keys=["another"])
    async with client(sandbox) as c, c.batch(smiles(300)) as batch:
        outcomes = [outcome async for outcome in batch]

    assert 300 == len(outcomes)
    assert {Unauthorized} == {type(outcome.error) for outcome in outcomes}
    assert sandbox.ledger.requests["task"] <= 5


# Progress.


async def watch(batch: Batch, every: float, seen: list[tuple[float, Progress]]) -> None:
    """Record a batch's progress again and again."""
    while True:
        seen.append((clock(), batch.progress))
        await asyncio.sleep(every)


async def test_progress_adds_up_at_every_moment() -> None:
    """The counts of jobs and units are consistent at any time."""
    faults = Faults(
        engine_errors=0.3,
        engine_error_codes=("error_inference", "error_pose"),
        refused_connections={"task": 0.1},
    )
    sandbox = vendor(faults=faults, seed=2)
    jobs: list[Any] = [*smiles(40), Smile(b"none"), *(Smile(FACE, key=f"u{n}") for n in range(9))]
    seen: list[tuple[float, Progress]] = []
    async with client(sandbox) as c, c.batch(jobs) as batch:
        watcher = asyncio.ensure_future(watch(batch, 0.1, seen))
        outcomes = [outcome async for outcome in batch]
        last = batch.progress
        watcher.cancel()

    for _, each in seen:
        assert each.total == 50 == each.done + each.failed + each.running + each.waiting
        assert min(attrs.astuple(each)[:6]) >= 0
        assert each.units <= 50
    assert any(each.running for _, each in seen)
    ledger = sandbox.ledger
    ok = sum(outcome.ok for outcome in outcomes)
    units = float(ledger.units_charged - ledger.units_returned)
    assert Progress(50, ok, 50 - ok, 0, 0, units, 0.0) == last


async def test_progress_of_a_source_without_a_length() -> None:
    """The total is known only when the source has ended."""
    async with client(vendor()) as c, c.batch(smiles(110)) as batch:
        await asyncio.sleep(4)
        early = batch.progress
        assert 110 == len([outcome async for outcome in batch])
        late = batch.progress

    assert (None, None) == (early.total, early.eta)
    assert early.waiting + early.running + early.done < 110
    assert (110, 110, 0.0) == (late.total, late.done, late.eta)


class Liar(list[Job]):
    """A list whose length is too small."""

    def __len__(self) -> int:
        return 2


async def test_progress_of_a_source_with_a_wrong_length() -> None:
    """A wrong length of the source does not make the counts wrong."""
    async with client(vendor()) as c, c.batch(Liar(smiles(5))) as batch:
        await asyncio.sleep(4)
        assert 5 == batch.progress.total
        assert 5 == len([outcome async for outcome in batch])


@pytest.mark.parametrize(
    ("durations", "count"),
    [
        pytest.param(Durations(8.0, 0.35), 150, id="smiles"),
        pytest.param(Durations.uniform(15, 40), 120, id="slow", marks=pytest.mark.long),
        pytest.param(Durations.fixed(5), 200, id="quick", marks=pytest.mark.long),
    ],
)
async def test_the_eta_is_within_two_thirds(durations: Durations, count: int) -> None:
    """After thirty outcomes the estimate of the time left is right to within two thirds."""
    sandbox = vendor(durations={"ai-smile": durations}, seed=4)
    told: list[tuple[float, float]] = []
    async with client(sandbox) as c, c.batch(list(smiles(count))) as batch:
        async for _ in batch:
            progress = batch.progress
            if progress.done >= 30 and progress.eta:
                told.append((clock(), progress.eta))
        end = clock()
    ratios = [eta / (end - at) for at, eta in told if end - at > 30]

    assert len(ratios) > 10
    assert min(ratios) > 1 / 1.75
    assert max(ratios) < 1.75


# Several batches.


async def test_batches_and_runs_share_fairly() -> None:
    """A later job does not wait for all earlier ones."""
    sandbox = vendor()
    ends: dict[str, list[float]] = {"one": [], "two": [], "run": []}

    async def use(c: Client, name: str, count: int) -> None:
        async with c.batch(smiles(count)) as batch:
            async for outcome in batch:
                assert outcome.ok
                ends[name].append(clock())

    async with client(sandbox) as c:
        one = asyncio.ensure_future(use(c, "one", 150))
        await asyncio.sleep(30)
        two = asyncio.ensure_future(use(c, "two", 50))
        await asyncio.sleep(30)
        await c.run(smile())
        ends["run"].append(clock())
        await asyncio.gather(one, two)

    assert max(ends["run"]) < max(ends["two"]) < max(ends["one"])
    assert sandbox.ledger.max_in_window(300) <= 250


async def test_delivered_outcomes_are_freed() -> None:
    """The client holds no job and no outcome that was delivered."""
    sandbox = vendor(**MANY)
    alive: weakref.WeakSet[Held] = weakref.WeakSet()

    def source() -> Iterator[Job]:
        for number in range(300):
            job = Held(f"https://pictures.example/{number}.jpg")
            alive.add(job)
            yield job

    most = 0
    async with client(sandbox, limits=ROOM) as c:
        async with c.batch(source()) as batch:
            async for outcome in batch:
                del outcome
                most = max(most, len(alive) - batch.progress.running)
        await asyncio.sleep(60)
        gc.collect()

        assert most < 200
        assert 0 == len(alive)
        assert batch.progress.done == 300


@attrs.frozen(eq=False, weakref_slot=True)
class Held(Smile):
    """A smile with weak references."""


async def test_hundreds_in_flight_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of calls to the scheduler per outcome does not grow with the running jobs."""
    asked = 0
    due = Scheduler.due

    def counted(scheduler: Scheduler, now: int) -> Command | None:
        nonlocal asked
        asked += 1
        return due(scheduler, now)

    monkeypatch.setattr(Scheduler, "due", counted)
    each = []
    for count in (40, 160):
        sandbox = vendor(**MANY, durations={"ai-smile": Durations.fixed(60.0)})
        asked = most = 0
        polling = Polling(interval=9.0)
        c = client(sandbox, limits=ROOM, polling=polling)
        async with c, c.batch(smiles(count)) as batch:
            async for outcome in batch:
                assert outcome.ok
                most = max(most, batch.progress.running)
        assert most > count / 2
        each.append(asked / count)

    assert each[1] < 1.2 * each[0]


def test_the_repr_of_an_isolated_batch_waits_for_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A log line about a batch never waits for the thread that runs it."""

    async def main() -> str:
        c = client(vendor(latency=0.0, jitter=0.0), isolated=True)
        async with c, c.batch([]) as batch:
            monkeypatch.setattr(ThreadExecutor, "ask", refuse)
            return repr(batch)

    def refuse(*_: object) -> None:
        raise AssertionError("the repr asked the thread")

    assert asyncio.run(main()).startswith("<Batch Progress(total=0, done=0")


async def test_the_look_ahead_is_bounded_for_all_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With limits that allow thousands of creations, few pictures are in memory."""
    monkeypatch.setattr(session, "inspect", slowly)
    source = Counted(smiles(1500))
    async with client(vendor(), limits=Limits(100_000, 300, 10_000)) as c, c.batch(source) as batch:
        await asyncio.sleep(0.5)
        assert 48 <= source.read == batch.progress.waiting <= 256
