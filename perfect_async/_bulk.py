"""Many pictures from a terminal: run, save, show, and stop when asked."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import anyio
import attrs

from perfect_async import Batch, Client, Done, Job, Outcome, PerfectError
from perfect_async._terminal import Screen, Tally, Told, shown

# Enough to keep up with any limits: saving costs no requests, and holds up nobody's polls.
_SAVES: Final = 4


class NotSaved(PerfectError):
    """A picture was made, and then not saved."""

    mend = (
        "Its units are spent. The vendor keeps the picture for a day at least; mend the cause "
        "before you run it again, which is charged again."
    )


async def process(client: Client, jobs: Sequence[Job], out: Path, screen: Screen) -> Tally:
    """Run `jobs` on an unopened `client`, save what comes in the folder `out`, and tell all of it.

    The first Ctrl-C creates nothing more and stays until what runs has ended and is saved; the
    second raises `KeyboardInterrupt`.
    """
    began = anyio.current_time()
    told: list[Told] = []
    slots = anyio.Semaphore(_SAVES)

    async def settle(outcome: Outcome) -> None:
        try:
            found = await _saved(outcome, out)
        finally:
            slots.release()
        told.append(found)
        if found.sent:
            screen.tell(found)

    def tick() -> None:
        # What was not sent has not failed.
        progress, unsent = batch.progress, sum(not one.sent for one in told)
        failed, total = progress.failed - unsent, len(jobs) - unsent
        screen.tick(attrs.evolve(progress, failed=failed, total=total), client.statistics())

    async def watch() -> None:
        while True:
            tick()
            await anyio.sleep(screen.every)

    async with client, client.batch(jobs) as batch:
        with _interrupts(lambda: _stop(batch, screen), lambda: _leave(batch, screen)):
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                async with anyio.create_task_group() as saves:
                    async for outcome in batch:
                        await slots.acquire()
                        saves.start_soon(settle, outcome)
                group.cancel_scope.cancel()
        tick()
    return Tally(told, len(jobs), anyio.current_time() - began)


async def _saved(outcome: Outcome, out: Path) -> Told:
    files: list[Path] = []
    error: PerfectError | None = outcome.error
    if isinstance(outcome, Done):
        try:
            # The separator says that a folder is meant, also where somebody has removed it.
            files = await outcome.result.save(os.path.join(out, ""))  # noqa: PTH118 - Path drops it
        except (PerfectError, OSError) as exc:
            # The mend of a refused download ("nothing was charged") would be wrong here.
            what = exc.message if isinstance(exc, PerfectError) else str(exc)
            error = NotSaved(f"made, but not saved: {what}", units_at_stake=outcome.units)
    return Told(
        shown(outcome.job.source),
        error is None,
        outcome.task_id,
        outcome.units,
        outcome.duration,
        tuple(files),
        error,
    )


def _stop(batch: Batch, screen: Screen) -> None:
    batch.stop()
    screen.say(
        f"Stopping: nothing more is sent; {batch.progress.running} running tasks are kept to their "
        "end and saved. Ctrl-C again leaves at once, and their units are lost."
    )


def _leave(batch: Batch, screen: Screen) -> NoReturn:
    screen.say(f"Left at once: {batch.progress.running} tasks were running.")
    raise KeyboardInterrupt


@contextmanager
def _interrupts(stop: Callable[[], None], leave: Callable[[], NoReturn]) -> Generator[None]:
    """While in here, the first Ctrl-C calls `stop` in the loop, the second `leave`.

    Not through `loop.add_signal_handler`, which Windows lacks. Where Ctrl-C is not for us (another
    thread, or a background job whose shell told it to ignore the signal), nothing changes.
    """
    loop = asyncio.get_running_loop()
    presses = count(1)

    def pressed(_: int, __: FrameType | None) -> None:
        number = next(presses)
        if number > 2:  # noqa: PLR2004 - the loop had its chance
            raise KeyboardInterrupt
        # In the loop and not here, where any line of it may be half done; this also wakes it.
        loop.call_soon_threadsafe(stop if number == 1 else leave)

    before = signal.getsignal(signal.SIGINT)
    try:
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, pressed)
    except ValueError:
        before = signal.SIG_IGN
    try:
        yield
    finally:
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)
