"""Exceptions that are no `Exception`: code of the user's that raises them ends no other task."""

import asyncio
import gc
import itertools
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from perfect_async import Client, Job, JobRefused, Smile
from perfect_async._runtime.driver import Driver
from perfect_async.sandbox import Sandbox
from tests.support import virtual_time
from tests.support.sandboxed import (
    FACE,
    Between,
    avatar,
    client,
    clock,
    later,
    smile,
    smiles,
    vendor,
)


class Interrupt(BaseException):
    """An interrupt of the user's own class."""


INTERRUPTS = [Interrupt, KeyboardInterrupt, SystemExit]
every_interrupt = pytest.mark.parametrize("error", INTERRUPTS)


async def running_beside(sandbox: Sandbox) -> tuple[Client, asyncio.Task[Any]]:
    """Open another client on the same key, which runs a task."""
    other = await client(sandbox).open()
    running = asyncio.ensure_future(other.run(avatar(key="other")))
    while not sandbox.ledger.tasks:  # noqa: ASYNC110 - the sandbox has no event
        await asyncio.sleep(0.1)
    return other, running


@pytest.mark.parametrize("error", [*INTERRUPTS, GeneratorExit])
@pytest.mark.parametrize("kind", ["iterator", "generator", "async generator"])
async def test_an_interrupt_in_the_source_of_a_batch(kind: str, error: type[BaseException]) -> None:
    """The batch raises it after its outcomes, and the tasks of other clients go on."""

    def source() -> Iterator[Job]:
        yield from smiles(2)
        raise error

    class Source:
        def __init__(self) -> None:
            self.left = list(smiles(2))

        def __iter__(self) -> Iterator[Job]:
            return self

        def __next__(self) -> Job:
            if not self.left:
                raise error
            return self.left.pop()

    jobs: Any = {"iterator": Source, "generator": source}.get(kind, lambda: later(source()))()
    sandbox, ok = vendor(), 0
    other, running = await running_beside(sandbox)
    async with client(sandbox) as c, c.batch(jobs) as batch:
        with pytest.raises(error):  # noqa: PT012
            async for outcome in batch:
                ok += outcome.ok
        assert [] == [outcome async for outcome in batch]
        assert (await c.run(smile(7))).images
    assert 2 == ok
    assert (await running).images
    await other.close()


@every_interrupt
async def test_an_interrupt_while_the_source_closes(error: type[BaseException]) -> None:
    """The batch raises it after its outcomes."""

    async def source() -> AsyncIterator[Job]:
        try:
            for job in smiles(100):
                yield job
        finally:
            raise error

    async with client(vendor()) as c, c.batch(source()) as batch:
        assert (await anext(batch)).ok
        batch.stop()
        with pytest.raises(error):
            assert [outcome async for outcome in batch]
        assert (await c.run(smile(7))).images


class Odd(os.PathLike[str]):
    """A path that raises when its name is asked for."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __fspath__(self) -> str:
        raise self.error


@every_interrupt
async def test_an_interrupt_in_a_picture(error: type[BaseException]) -> None:
    """The job is refused, the batch raises the interrupt at its end, and other jobs go on."""
    sandbox = vendor()
    other, running = await running_beside(sandbox)
    async with client(sandbox) as c:
        async with c.batch([smile(1), Smile(Odd(error))]) as batch:
            outcomes = [await anext(batch), await anext(batch)]
            with pytest.raises(error):
                await anext(batch)
        with pytest.raises(error):
            await c.run(Smile(Odd(error)))
        assert (await c.run(smile(7))).images
    assert {True: type(None), False: JobRefused} == {o.ok: type(o.error) for o in outcomes}
    assert (await running).images
    await other.close()


async def test_an_interrupt_in_a_transport() -> None:
    """It counts as a failed poll, which is tried again."""
    failing = 2

    async def change(request: httpx.Request) -> None:
        nonlocal failing
        if "/ai-smile/" in request.url.path and failing:
            failing -= 1
            raise Interrupt

    sandbox = vendor()
    async with client(sandbox, transport=Between(sandbox.transport(), change)) as c:
        assert (await c.run(Smile(FACE))).images
    assert 0 == failing


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_the_program_in_a_transport(error: type[BaseException]) -> None:
    """It ends the loop as anywhere else, and waiting callers get it as the cause."""
    causes: list[object] = []

    async def change(request: httpx.Request) -> None:
        if "/ai-smile/" in request.url.path:
            raise error

    async def main() -> None:
        sandbox = vendor()
        c = await client(sandbox, transport=Between(sandbox.transport(), change), drain=0).open()
        waiting = asyncio.ensure_future(c.run(smile()))
        waiting.add_done_callback(
            lambda task: causes.append(None if task.cancelled() else task.exception())
        )
        try:
            await asyncio.sleep(100)
        finally:
            await c.close()

    with pytest.raises(error):
        asyncio.run(main())


@pytest.mark.parametrize("works", [1, 2], ids=["reading the jobs", "saving a result"])
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_an_interrupt_before_background_work_begins(
    works: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the program at once, and closing does not wait for work that never began."""
    start, started, times = Driver.start, itertools.count(1), list[float]()

    def interrupt() -> NoReturn:
        times.append(clock())
        raise KeyboardInterrupt

    def interrupted(driver: Driver, work: Callable[[], Coroutine[object, object, None]]) -> None:
        if next(started) == works:
            # Raised before the first step of the work's task, which the loop's end cancels.
            asyncio.get_running_loop().call_soon(interrupt)
        start(driver, work)

    monkeypatch.setattr(Driver, "start", interrupted)

    async def main() -> None:
        try:
            async with client(vendor()) as c, c.batch([smile()], save_to=tmp_path) as batch:
                assert [] == [outcome async for outcome in batch]
        finally:
            times.append(clock())

    with pytest.raises(KeyboardInterrupt):
        virtual_time.run(main)
    # anyio does not close the coroutine of a task that never began, which is a warning here.
    gc.collect()

    interrupted_at, ended_at = times
    assert ended_at - interrupted_at < 1
