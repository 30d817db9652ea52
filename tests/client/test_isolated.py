"""A client on a thread of its own: the same calls, and nothing that blocks the caller's loop hurts.

In real time, since two loops and the operating system's threads are what it is about.
"""

import asyncio
import contextlib
import contextvars
import gc
import os
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import anyio
import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from perfect_async import (
    Client,
    ClientClosed,
    ConfigurationError,
    Job,
    JobRefused,
    Limits,
    Outcome,
    Polling,
    RequestRefused,
    ResultImage,
    Smile,
    SubmissionInDoubt,
    TaskAbandoned,
    TaskFailed,
)
from perfect_async._client.batch import Batch
from perfect_async._client.threaded_batch import ThreadedBatch
from perfect_async._runtime.executors import _threads
from perfect_async.sandbox import Durations, Faults, Sandbox, serve
from tests.support.sandboxed import FACE, KEY, Between, avatar, client, smile, smiles

pytestmark = pytest.mark.real_time

WIDE = Limits(100_000, 300.0, 500)
QUICK = Polling(interval=0.05)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """Check that the thread ends with the last client of the test."""
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "perfect_async"]
    assert not _threads


def vendor(*, lasts: float = 0.1, faults: Faults | None = None, **settings: object) -> Sandbox:
    """A sandbox that is fast enough for real time."""
    durations = {"ai-smile": Durations.fixed(lasts), "ai-avatar": Durations.fixed(lasts)}
    return Sandbox(
        **{  # type: ignore[arg-type]
            "requests": 100_000,
            "per_second": 500,
            "durations": durations,
            "latency": 0.005,
            "faults": faults,
            **settings,
        }
    )


def isolated(sandbox: Sandbox, **settings: object) -> Client:
    """An unopened client on `sandbox` in a thread of its own."""
    return client(sandbox, isolated=True, limits=WIDE, polling=QUICK, **settings)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def till(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - another thread makes it true
        await asyncio.sleep(0.01)


async def taken(batch: Batch, error: type[Exception]) -> list[Outcome]:
    """Iterate until `error` is raised."""
    outcomes = list[Outcome]()
    with contextlib.suppress(error):
        while True:
            outcomes.append(await anext(batch))
    return outcomes


class Spy:
    """A hook that records in which threads requests leave."""

    def __init__(self) -> None:
        self.threads: set[str] = set()
        self.paths: list[str] = []
        self.hold: Callable[[httpx.Request], bool] = lambda _: False
        self.fail: Callable[[httpx.Request], BaseException | None] = lambda _: None

    async def __call__(self, request: httpx.Request) -> httpx.Response | None:
        self.threads.add(threading.current_thread().name)
        self.paths.append(request.url.path)
        if (error := self.fail(request)) is not None:
            raise error
        await till(lambda: not self.hold(request))
        return None


def is_poll(request: httpx.Request) -> bool:
    """Whether a request is a poll; a test that delays polls keeps a task running."""
    return request.method == "GET" and "/task/ai-" in request.url.path


# The same calls.


async def test_every_call_is_made_in_the_thread(tmp_path: Path) -> None:
    """Jobs, results, questions and deletions work as in one loop."""
    sandbox, spy = vendor(), Spy()
    c = isolated(sandbox, transport=Between(sandbox.transport(), spy))

    async with c as same:
        assert same is c
        result = await c.run(Smile(FACE, key="me"))
        (path,) = await result.save(tmp_path)
        again = await c.attach(Smile, result.task_id)
        styles = [template.id async for template in c.templates()]
        units = await c.units()
        estimate = await c.estimate([smile(), avatar()])
        await c.delete(result.task_id)
        with pytest.raises(RequestRefused):
            await c.delete(result.task_id)
        statistics = c.statistics()

    assert path.parent == tmp_path
    assert path.stat().st_size
    assert result.task_id == again.task_id
    assert len(styles) > 20
    assert 999 == units.balance
    assert 2 == estimate.units
    assert 2 == statistics.done
    assert {"perfect_async"} == spy.threads
    assert statistics == c.statistics()


async def test_tasks_and_events_work_across_threads(tmp_path: Path) -> None:
    """Tasks, their events and `status` work as in one loop."""
    sandbox, spy = vendor(lasts=0.3), Spy()

    async with isolated(sandbox, transport=Between(sandbox.transport(), spy)) as c:
        task = await c.submit(Smile(FACE), timeout=20, save_to=tmp_path)
        assert "running" == task.state
        status = await c.status(Smile, task.id)
        told = [event.kind async for event in task.events()]
        result = await task
        same = await c.task(Smile, task.id).result(timeout=20)
        data = await result.read()
        one = await result.images[0].read()

    assert "running" == status.status
    assert ["queued", "uploaded", "submitted", "polled"] == told[:4]
    assert "finished" == told[-1]
    assert same.task_id == task.id
    assert [one] == data == [path.read_bytes() for path in result.files]
    assert {"perfect_async"} == spy.threads
    # No client needs the thread now.
    assert (result, "done") == (await task, task.state)
    assert told == [event.kind async for event in task.events()]


async def test_errors_of_the_thread_reach_the_caller(tmp_path: Path) -> None:
    """The caller gets the type, the message and the attributes of an error."""
    sandbox = vendor(faults=Faults(engine_errors=1.0))

    async with isolated(sandbox, engine_retries=0) as c:
        with pytest.raises(TaskFailed) as failed:
            await c.run(smile())
        with pytest.raises(JobRefused):
            await c.run("no job")  # type: ignore[arg-type]
        with pytest.raises(JobRefused):
            await c.run(Smile(tmp_path / "none.jpg"))
        with pytest.raises(ConfigurationError, match="timeout"):
            await c.run(smile(), timeout=-1)
        with pytest.raises(ConfigurationError, match="task_id is"):
            await c.delete("")
        with pytest.raises(ConfigurationError, match="journal"):
            c.resume()

    assert failed.value.task_id in {task.task_id for task in sandbox.ledger.tasks}


async def test_a_result_is_not_saved_when_the_client_is_closed(tmp_path: Path) -> None:
    """Saving later says that the client is closed, as in one loop."""
    async with isolated(vendor()) as c:
        result = await c.run(smile())

    with pytest.raises(ClientClosed) as caught:
        await result.save(tmp_path)
    assert f"client.attach(Smile, {result.task_id!r})" in caught.value.hint
    assert isinstance(result.images[0], ResultImage)


async def test_wrong_uses_have_the_same_errors() -> None:
    """Each wrong use has the error that it has in one loop; closing again does nothing."""
    c = isolated(vendor())

    for batch in (c.batch([smile()]), c.batch(smiles(1))):
        with pytest.raises(ConfigurationError, match="not open"):
            async with batch:
                pass
        with pytest.raises(ConfigurationError, match="Enter the batch"):
            await anext(batch)
        batch.stop()
        assert 0 == batch.progress.done
    with pytest.raises(ConfigurationError, match="not open"):
        await c.run(smile())
    assert 0 == c.statistics().done
    await c.close()

    await c.open()
    with pytest.raises(ConfigurationError, match="open already"):
        await c.open()
    assert "open>" in repr(c)
    await c.close()
    await c.close()
    assert "closed>" in repr(c)
    with pytest.raises(ConfigurationError, match="was closed"):
        await c.open()
    with pytest.raises(ClientClosed):
        await c.run(smile())


async def test_an_opening_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    """`open` raises for a journal that cannot be used, and the thread ends."""
    (tmp_path / "jobs.db").write_bytes(b"no journal" * 100)
    c = isolated(vendor(), journal=tmp_path / "jobs.db")

    with pytest.raises(Exception, match="journal"):
        await c.open()

    assert not _threads


async def test_an_opening_that_is_cancelled_leaves_no_thread() -> None:
    """No thread and no driver are left, whenever the opening is cancelled."""
    for turns in range(12):
        c = isolated(vendor())
        async with anyio.create_task_group() as group:
            group.start_soon(c.open)
            for _ in range(turns):
                await asyncio.sleep(0.0005)
            group.cancel_scope.cancel()
        await c.close()
        assert not _threads


def test_opening_needs_a_running_loop() -> None:
    """Without a running event loop the client cannot wait."""

    def step() -> None:
        with (
            contextlib.closing(isolated(vendor()).open()) as opening,
            pytest.raises(ConfigurationError, match="event loop"),
        ):
            opening.send(None)

    step()


def test_another_loop_may_close_the_client() -> None:
    """The loop that opened the client may end; its task goes on, and another loop closes."""
    sandbox, spy = vendor(), Spy()
    spy.hold = is_poll
    c = isolated(sandbox, transport=Between(sandbox.transport(), spy))

    async def begin() -> str:
        await c.open()
        waiting = asyncio.ensure_future(c.run(smile()))
        await till(lambda: any("/ai-smile/" in path for path in spy.paths))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return sandbox.ledger.tasks[0].task_id

    async def go_on(task_id: str) -> None:
        spy.hold = lambda _: False
        try:
            assert task_id == (await c.attach(Smile, task_id)).task_id
        finally:
            await c.close()

    task_id = asyncio.run(begin())
    asyncio.run(go_on(task_id))

    assert ["success"] == [task.state for task in sandbox.ledger.tasks]
    assert 1 == c.statistics().done


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_forked_child_is_refused() -> None:
    """A forked child does not have the thread, so its calls raise an error."""
    async with isolated(vendor()) as c:
        pid = os.fork()
        if pid == 0:  # pragma: no cover - the child
            code = 1
            try:
                c.statistics()
                c._ready()
            except ConfigurationError as exc:
                code = 0 if "fork" in str(exc) else 2
            finally:
                os._exit(code)
        assert 0 == os.waitpid(pid, 0)[1]  # noqa: ASYNC222 - it ends at once


# One thread for all.


async def test_two_clients_share_the_thread_and_the_ledger() -> None:
    """Clients on one key share one window; the last one ends the thread."""
    sandbox = vendor()
    one, two = isolated(sandbox), isolated(sandbox)

    async with one:
        (thread,) = _threads
        async with two:
            assert [thread] == _threads
            await two.run(smile())
        assert [thread] == _threads
        assert 1 == one.statistics().done
        await one.run(smile(1))

    assert thread.over
    assert not _threads


async def test_the_next_client_knows_what_the_last_one_spent() -> None:
    """The window belongs to the key, also when the thread is another one."""
    sandbox = vendor()
    async with isolated(sandbox) as one:
        await one.run(smile())
        spent = one.statistics().requests_in_window

    # These clients have no transport, but send nothing over the network.
    async with isolated(sandbox, transport=one._transport) as two:
        assert spent == two.statistics().requests_in_window
    assert spent > 1


# Cancelled callers.


async def test_cancelling_the_caller_cancels_the_waiting() -> None:
    """The task of a cancelled caller is kept alive to its end."""
    sandbox, spy = vendor(), Spy()
    spy.hold = is_poll

    async with isolated(sandbox, transport=Between(sandbox.transport(), spy)) as c:
        async with anyio.create_task_group() as group:
            group.start_soon(c.run, smile())
            await till(lambda: c.statistics().running == 1)
            group.cancel_scope.cancel()
        assert 1 == c.statistics().running
        spy.hold = lambda _: False

    assert ["success"] == [task.state for task in sandbox.ledger.tasks]
    assert 1 == c.statistics().done


async def test_a_job_that_is_cancelled_early_is_not_created() -> None:
    """A job whose caller has gone before it was sent costs nothing."""
    sandbox = vendor()
    closed = Between(sandbox.transport(), spy := Spy())
    spy.hold = lambda request: request.method == "PUT"

    async with isolated(sandbox, transport=closed) as c:
        job = asyncio.ensure_future(c.run(Smile(FACE)))
        await till(lambda: bool(spy.paths))
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        spy.hold = lambda _: False

    assert [] == list(sandbox.ledger.tasks)


async def test_a_cancelled_save_leaves_no_file(tmp_path: Path) -> None:
    """Another save after it works."""
    sandbox = vendor()
    spy = Spy()
    spy.hold = lambda request: request.url.path.endswith(".jpg")

    async with isolated(sandbox, transport=Between(sandbox.transport(), spy)) as c:
        result = await c.run(smile())
        with anyio.move_on_after(0.2) as scope:
            await result.save(tmp_path)
        assert scope.cancelled_caught
        assert set() == names(tmp_path)
        spy.hold = lambda _: False
        assert 1 == len(await result.save(tmp_path))


async def test_closing_drains_unless_the_task_itself_is_cancelled() -> None:
    """A cancelled scope does not end the drain; `Task.cancel` does."""
    sandbox = vendor(lasts=0.4)
    async with isolated(sandbox) as c:
        await left_running(c, sandbox)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await c.close()
    assert ["success"] == [task.state for task in sandbox.ledger.tasks]

    # Waiting for the end of this one would take ten minutes.
    sandbox = vendor(lasts=1000.0)
    c = await isolated(sandbox).open()
    await left_running(c, sandbox)
    closing = asyncio.ensure_future(c.close())
    await asyncio.sleep(0.1)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert ["running"] == [task.state for task in sandbox.ledger.tasks]
    assert "closed>" in repr(c)


async def left_running(c: Client, sandbox: Sandbox, number: int = 0) -> None:
    """Start a job and leave it while it runs."""
    waiting = asyncio.ensure_future(c.run(smile(number)))
    await till(lambda: 1 == len(sandbox.ledger.tasks))
    waiting.cancel()
    await asyncio.wait([waiting])


# Batches.


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("kind", ["list", "generator", "async"])
async def test_batches_of_all_kinds(kind: str, ordered: bool, tmp_path: Path) -> None:
    """Every job has its outcome, for all sources and orders."""
    sandbox, count = vendor(), 30

    async def asynchronous() -> AsyncIterator[Job]:
        for job in smiles(count):
            await asyncio.sleep(0)
            yield job

    sources: dict[str, Iterable[Job] | AsyncIterable[Job]]
    sources = {"list": list(smiles(count)), "generator": smiles(count), "async": asynchronous()}
    async with isolated(sandbox) as c:
        async with c.batch(sources[kind], ordered=ordered, save_to=tmp_path) as batch:
            assert isinstance(batch, ThreadedBatch)
            assert (count if kind == "list" else None) == batch.progress.total
            keys = [outcome.job.key async for outcome in batch if outcome.ok]
        progress = batch.progress

    expected = [str(number) for number in range(count)]
    assert expected == (keys if ordered else sorted(keys, key=lambda key: int(str(key))))
    assert (count, count, 0) == (progress.total, progress.done, progress.running)
    assert count == len(names(tmp_path))
    assert "done=30" in repr(batch)


WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO", default="nobody")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_jobs_are_read_in_the_callers_loop(asynchronous: bool) -> None:
    """The source runs in the caller's loop and context, in one task, and is closed there."""
    seen: list[tuple[object, str, object]] = []
    here = asyncio.get_running_loop()

    def note() -> None:
        seen.append((asyncio.get_running_loop(), WHO.get(), asyncio.current_task()))

    def plain() -> Iterator[Job]:
        for job in smiles(3):
            note()
            yield job

    async def waiting() -> AsyncIterator[Job]:
        try:
            # A user's source may have a scope across a yield.
            async with asyncio.timeout(10):
                for job in smiles(3):
                    note()
                    await asyncio.sleep(0)
                    yield job
        finally:
            note()

    async with isolated(vendor()) as c:
        WHO.set("me")
        async with c.batch(waiting() if asynchronous else plain()) as batch:
            assert 3 == len([outcome async for outcome in batch if outcome.ok])

    assert {(here, "me")} == {(loop, who) for loop, who, _ in seen}
    assert 1 == len({task for _, _, task in seen})
    assert (4 if asynchronous else 3) == len(seen)


async def test_the_source_is_read_lazily() -> None:
    """An endless source is read only as far as the batch has room, and not after the block."""
    read = 0

    def endless() -> Iterator[Job]:
        nonlocal read
        while True:
            read += 1
            yield smile(read)

    async with isolated(vendor()) as c:
        async with c.batch(endless()) as batch:
            await anext(batch)
            await asyncio.sleep(0.1)
        before = read
        await asyncio.sleep(0.05)

    assert before == read < 5_000


async def test_an_error_of_the_source_comes_last() -> None:
    """It is raised after the outcomes of the jobs before it, unchanged."""

    def broken() -> Iterator[Job]:
        yield from smiles(2)
        raise KeyError("mine")

    async with isolated(vendor()) as c, c.batch(broken()) as batch:
        outcomes = [await anext(batch), await anext(batch)]
        with pytest.raises(KeyError, match="mine"):
            await anext(batch)
        with pytest.raises(StopAsyncIteration):
            await anext(batch)

    assert all(outcome.ok for outcome in outcomes)


async def test_a_source_that_cancels_itself() -> None:
    """It ends the reading with `ClientClosed`; jobs that were read are done."""

    async def cancelled() -> AsyncIterator[Job]:
        yield smile()
        raise asyncio.CancelledError

    async with isolated(vendor()) as c, c.batch(cancelled()) as batch:
        assert (await anext(batch)).ok
        with pytest.raises(ClientClosed, match="cancelled its own reading"):
            await anext(batch)


async def test_a_source_whose_closing_fails() -> None:
    """Its error is raised after the outcomes."""

    async def clumsy() -> AsyncIterator[Job]:
        try:
            for job in smiles(1000):
                await asyncio.sleep(0.001)
                yield job
        finally:
            raise KeyError("closing")

    async with isolated(vendor()) as c, c.batch(clumsy()) as batch:
        await anext(batch)
        batch.stop()
        await taken(batch, KeyError)


async def test_an_error_in_the_block_is_not_wrapped() -> None:
    """It is not put into an exception group, and running tasks are kept."""
    sandbox = vendor(lasts=0.2)

    async with isolated(sandbox) as c:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the block is what it is about
            async with c.batch(smiles(3)):
                await till(lambda: 3 == len(sandbox.ledger.tasks))
                raise ZeroDivisionError

    assert 3 == [task.state for task in sandbox.ledger.tasks].count("success")


async def test_a_stopped_batch_has_all_outcomes() -> None:
    """Unsent jobs come as `Failed`, and the source is not waited for."""
    sandbox = vendor(lasts=0.3)
    read = 0

    async def slowly() -> AsyncIterator[Job]:
        nonlocal read
        for job in smiles(10_000):
            await asyncio.sleep(0.001)
            read += 1
            yield job

    async with isolated(sandbox) as c, c.batch(slowly()) as batch:
        outcomes = [await anext(batch)]
        batch.stop()
        batch.stop()
        outcomes += [outcome async for outcome in batch]
        assert batch.progress.total == read

    assert read == len(outcomes) < 10_000


async def test_no_outcome_is_lost_to_a_cancelled_consumer() -> None:
    """A consumer whose waits are cancelled still gets every outcome once."""
    sandbox, keys = vendor(lasts=0.02), list[str | None]()

    async with isolated(sandbox) as c, c.batch(smiles(150)) as batch:
        while len(keys) < 150:
            with anyio.move_on_after(0.0005 * (len(keys) % 5)):
                keys.append((await anext(batch)).job.key)
        with pytest.raises(StopAsyncIteration):
            await anext(batch)

    assert sorted(str(number) for number in range(150)) == sorted(map(str, keys))


async def test_entering_that_is_cancelled_buys_nothing_more() -> None:
    """A batch whose entering was cancelled reads no jobs."""
    sandbox = vendor()

    async with isolated(sandbox) as c:
        for turns in range(8):
            batch = c.batch(smiles(5))
            with anyio.move_on_after(0.0002 * turns) as scope:
                async with batch:
                    scope.cancel()
        with pytest.raises(ConfigurationError, match="entered already"):
            async with c.batch(smiles(1)) as batch, batch:
                pass
        assert 0 == c.statistics().waiting


async def test_a_batch_that_outlives_its_client() -> None:
    """Outcomes that had come are returned, and then `ClientClosed` is raised."""
    c = await isolated(vendor()).open()

    async with c.batch(smiles(100_000)) as batch:
        await till(lambda: batch.progress.done >= 5)
        await c.close()
        outcomes = await taken(batch, ClientClosed)

    assert len([outcome for outcome in outcomes if outcome.ok]) >= 5


def test_resuming_what_a_former_client_left(tmp_path: Path) -> None:
    """With a journal an isolated client resumes another one's jobs."""
    sandbox, journal = vendor(), tmp_path / "jobs.db"
    keys: list[str | None] = []

    async def first() -> None:
        spy = Spy()
        spy.hold = is_poll
        held = Between(sandbox.transport(), spy)
        async with isolated(sandbox, journal=journal, drain=0.0, transport=held) as c:
            waiting = asyncio.ensure_future(c.run(smile(7)))
            # It is polled once its creation has been answered.
            await till(lambda: any("/ai-smile/" in path for path in spy.paths))
            waiting.cancel()
            await asyncio.wait([waiting])

    async def second() -> None:
        async with isolated(sandbox, journal=journal) as c:
            async with c.resume() as batch:
                keys.extend([outcome.job.key async for outcome in batch if outcome.ok])
            async with c.resume() as batch:
                assert [] == [outcome async for outcome in batch]

    asyncio.run(first())
    asyncio.run(second())

    assert ["7"] == keys
    assert 1.0 == sandbox.ledger.units_charged


async def test_a_result_for_a_cancelled_caller_comes_at_resume(tmp_path: Path) -> None:
    """A result that came for a cancelled caller counts as not taken."""
    sandbox, journal, spy = vendor(), tmp_path / "jobs.db", Spy()
    spy.hold = is_poll
    held = Between(sandbox.transport(), spy)

    async with isolated(sandbox, journal=journal, transport=held) as c:
        await left_running(c, sandbox, 7)
        spy.hold = lambda _: False
        await till(lambda: c.statistics().done == 1)
        await c.run(smile(8))

    async with isolated(sandbox, journal=journal) as c, c.resume() as batch:
        assert ["7"] == [outcome.job.key async for outcome in batch]


# When the thread fails.


async def test_a_crash_in_the_thread_ends_all_calls(caplog: pytest.LogCaptureFixture) -> None:
    """Callers get `ClientClosed` with the cause, or `TaskAbandoned` if a task is at stake."""
    sandbox, spy = vendor(lasts=30.0), Spy()
    c = await isolated(sandbox, transport=Between(sandbox.transport(), spy)).open()
    waiting = asyncio.ensure_future(c.run(smile(9)))
    task = await c.submit(smile(8))

    async with c.batch(smiles(3)) as batch:
        # They are polled once their creations have been answered.
        await till(lambda: 5 == len({path for path in spy.paths if "/ai-smile/" in path}))
        (thread,) = _threads
        spy.fail = lambda _: SystemExit(3)
        asking = asyncio.ensure_future(c.units())
        outcomes = await taken(batch, ClientClosed)
        for call in (asking, c.run(smile())):
            with pytest.raises(ClientClosed) as closed:
                await call
            assert isinstance(closed.value.__cause__, SystemExit)
        with pytest.raises(TaskAbandoned) as abandoned:
            await waiting
        assert isinstance(abandoned.value.__cause__, SystemExit)
        assert abandoned.value.task_id in {task.task_id for task in sandbox.ledger.tasks}
        assert 1.0 == abandoned.value.units_at_stake
        with pytest.raises(TaskAbandoned, match="SystemExit"):
            await task
        with pytest.raises(ClientClosed):
            await c.task(Smile, "another")

    assert [TaskAbandoned] * 3 == [type(outcome.error) for outcome in outcomes]
    assert thread.over
    assert c.statistics().requests["submit"] == 5
    await c.close()
    assert "closed>" in repr(c)
    assert "The thread of isolated clients failed: 'SystemExit'." in caplog.text


async def test_an_interrupt_in_a_job_is_its_callers(tmp_path: Path) -> None:
    """A picture that raises an interrupt ends neither the thread nor other tasks."""

    class Odd(os.PathLike[str]):
        def __fspath__(self) -> str:
            raise SystemExit(3)

    def broken() -> Iterator[Job]:
        yield smile(1)
        raise KeyboardInterrupt

    sandbox = vendor(lasts=0.5)
    async with isolated(sandbox) as other, isolated(sandbox) as c:
        running = asyncio.ensure_future(other.run(smile()))
        with pytest.raises(SystemExit):
            await c.run(Smile(Odd()))
        async with c.batch(broken()) as batch:
            assert (await anext(batch)).ok
            with pytest.raises(KeyboardInterrupt):
                await anext(batch)
        assert (await c.run(smile())).images
        assert (await running).images


async def test_a_second_cancellation_does_not_break_the_drain() -> None:
    """A client that closes for a cancellation keeps running tasks to their ends."""
    sandbox = vendor(lasts=0.5)

    async def body() -> None:
        async with isolated(sandbox, drain=10.0) as c:
            await c.run(smile())

    task = asyncio.ensure_future(body())
    await till(lambda: 1 == len(sandbox.ledger.tasks))
    for _ in range(4):
        task.cancel()
        await asyncio.sleep(0.02)
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ["success"] == [each.state for each in sandbox.ledger.tasks]
    assert 0 == sandbox.ledger.units_wasted


async def test_the_opener_that_starts_the_thread_is_cancelled() -> None:
    """Another client that opens at the same time starts the thread instead."""
    sandbox = vendor()
    one, two = isolated(sandbox), isolated(sandbox)
    first = asyncio.ensure_future(one.open())
    second = asyncio.ensure_future(two.open())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first, second], timeout=10)

    assert first.cancelled()
    assert (await two.run(smile())).images
    await two.close()


async def test_a_closing_that_is_cancelled_at_once_still_closes() -> None:
    """The client leaves the thread, and other clients go on."""
    async with isolated(vendor()) as other:
        c = await isolated(vendor()).open()
        session = c._session
        assert session is not None
        closing = asyncio.ensure_future(c.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await till(lambda: session.left)
        assert (await other.run(smile())).images


async def test_a_closing_that_is_cancelled_repeatedly_ends_the_thread() -> None:
    """The last client stops the thread, even if it cannot wait for its end."""
    c = await isolated(vendor()).open()
    closing = asyncio.ensure_future(c.close())
    while not closing.done():
        await asyncio.sleep(0)
        closing.cancel()

    await till(lambda: "perfect_async" not in {each.name for each in threading.enumerate()})


async def test_a_client_after_a_crash_has_a_new_thread() -> None:
    """A failed thread is not used again, even while a client has it open."""
    sandbox, spy = vendor(), Spy()
    one = await isolated(sandbox, transport=Between(sandbox.transport(), spy)).open()
    spy.fail = lambda _: SystemExit(3)
    with pytest.raises(ClientClosed):
        await one.units()

    async with isolated(sandbox) as two:
        await one.close()
        assert 1 == len((await two.run(smile())).images)


async def test_a_client_that_is_never_closed_is_a_warning() -> None:
    """A forgotten client causes a warning, as in one loop."""
    c = await isolated(vendor()).open()
    home, known = c._executor, weakref.ref(c)

    with pytest.warns(ResourceWarning, match="never closed"):  # noqa: PT031 - nor has it one
        del c
        gc.collect()

    assert known() is None
    await home.close()


# A blocked loop.


@contextlib.contextmanager
def served(*, lasts: float, lease: float) -> Iterator[tuple[Sandbox, str]]:
    """A sandbox on a real port, in a thread of its own, and its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    origin = f"http://127.0.0.1:{port}"
    sandbox = vendor(origin=origin, latency=0.0, lasts=lasts, lease=lease)
    with start_blocking_portal() as portal:
        serving = portal.start_task_soon(serve, sandbox, "127.0.0.1", port)
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        yield sandbox, origin
        serving.cancel()


async def blocked(sandbox: Sandbox, origin: str, *, apart: bool) -> list[Outcome]:
    """Run four tasks, and block the loop until all of them are over."""
    polling = Polling(lease=LEASE, interval=0.25)
    c = Client(KEY, base_url=origin, isolated=apart, limits=WIDE, polling=polling)
    async with c, c.batch(smiles(4)) as batch:
        await till(lambda: 4 == len(sandbox.ledger.tasks))
        while any(task.state == "running" for task in sandbox.ledger.tasks):
            time.sleep(0.05)  # noqa: ASYNC251 - what others do
        return [outcome async for outcome in batch]


LEASE = 3.0


@pytest.mark.parametrize("apart", [True, False])
async def test_a_blocked_loop_loses_no_task(apart: bool) -> None:
    """No task is lost in an isolated client; without isolation they are."""
    with served(lasts=1.3 * LEASE, lease=LEASE) as (sandbox, origin):
        outcomes = await blocked(sandbox, origin, apart=apart)
        states = [task.state for task in sandbox.ledger.tasks]

    assert 4 == len(outcomes)
    assert apart == all(outcome.ok for outcome in outcomes)
    assert ["success" if apart else "expired"] * 4 == states


async def test_a_crash_while_a_job_is_submitted() -> None:
    """The creation that was under way is in doubt, so the job is not bought again."""
    sandbox, spy = vendor(), Spy()
    c = await isolated(sandbox, transport=Between(sandbox.transport(), spy)).open()
    spy.hold = lambda request: request.method == "POST"
    waiting = asyncio.ensure_future(c.submit(smile()))
    await till(lambda: bool(spy.paths))
    spy.fail = lambda _: SystemExit(3)

    with pytest.raises(ClientClosed):
        await c.units()
    with pytest.raises(SubmissionInDoubt) as doubt:
        _ = await waiting
    with pytest.raises(ClientClosed):
        _ = await c.submit(smile())
    await c.close()

    assert 1.0 == doubt.value.units_at_stake


async def test_a_batch_in_the_thread_resumes_first(tmp_path: Path) -> None:
    """The last process's jobs come before the given ones, which the caller's loop reads."""
    sandbox, path = vendor(), tmp_path / "jobs.db"
    async with isolated(sandbox, journal=path) as c:
        _ = await c.submit(smile(1))
    async with (
        isolated(sandbox, journal=path) as c,
        c.batch(smiles(1), ordered=True, resume=True) as batch,
    ):
        outcomes = [outcome async for outcome in batch]
    assert ["1", "0"] == [outcome.job.key for outcome in outcomes]
    assert 2 == sandbox.ledger.units_charged
