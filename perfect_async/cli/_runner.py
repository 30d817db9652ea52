"""Many pictures from a terminal: run, show, and stop when asked."""

from __future__ import annotations

import asyncio
import shlex
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import NoReturn

import anyio
import attrs

from perfect_async import Batch, Client, Done, Outcome
from perfect_async.cli._display import Display, JobReport, RunSummary, shown


async def process(
    client: Client, start: Callable[[Client], Batch], screen: Display, journal: Path | None = None
) -> RunSummary:
    """Run the batch that `start` makes on `client`, which it opens, and tell all of it.

    The first Ctrl-C creates nothing more and stays until what runs has ended and is saved; the
    second raises `KeyboardInterrupt`. `journal` is the client's: what is left behind can be resumed
    with it.
    """
    began = anyio.current_time()
    told: list[JobReport] = []
    later = (
        None if journal is None else f"perfect-async resume --journal {shlex.quote(str(journal))}"
    )

    def tick() -> None:
        # What was not sent has not failed.
        progress, unsent = batch.progress, sum(not one.sent for one in told)
        failed, total = progress.failed - unsent, jobs - unsent
        screen.tick(attrs.evolve(progress, failed=failed, total=total), client.statistics())

    async def watch() -> None:
        while True:
            tick()
            await anyio.sleep(screen.every)

    async with client, start(client) as batch:
        # Known from the start: both kinds of batches come from lists.
        jobs = batch.progress.total or 0
        with _interrupts(lambda: _stop(batch, screen, later), lambda: _leave(batch, screen, later)):
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                async for outcome in batch:
                    told.append(_told(outcome))
                    if told[-1].sent:
                        screen.tell(told[-1])
                group.cancel_scope.cancel()
        tick()
    return RunSummary(told, jobs, anyio.current_time() - began)


def _told(outcome: Outcome) -> JobReport:
    return JobReport(
        shown(outcome.job.source),
        outcome.ok,
        outcome.task_id,
        outcome.units,
        outcome.duration,
        outcome.files if isinstance(outcome, Done) else (),
        outcome.error,
    )


def _stop(batch: Batch, screen: Display, later: str | None) -> None:
    batch.stop()
    rest = ", and their units are lost" if later is None else f"; then go on with {later}"
    screen.say(
        f"Stopping: nothing more is sent; {batch.progress.running} running tasks are kept to their "
        f"end and saved. Ctrl-C again leaves at once{rest}."
    )


def _leave(batch: Batch, screen: Display, later: str | None) -> NoReturn:
    rest = "" if later is None else f"; go on with {later}, and soon: their leases are seconds"
    screen.say(f"Left at once: {batch.progress.running} tasks were running{rest}.")
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
