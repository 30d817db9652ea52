"""Run a command: make its client and its loop, run a batch, stop it on Ctrl-C."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from perfect_async.errors import ConfigurationError, JournalError, Unauthorized, quoted

# `--help` runs none of this, so the client and asyncio are loaded by the functions that need them.
if TYPE_CHECKING:
    from perfect_async import Batch, Client, Outcome, Polling
    from perfect_async.cli._display import Display, JobReport, RunSummary

T = TypeVar("T")

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


def make_client(journal: Path | None = None, polling: Polling | None = None) -> Client:
    """Make the client of a command; tests replace this."""
    from perfect_async import Client, Polling

    return Client(journal=journal, polling=polling or Polling())


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main` on an event loop; tests replace this by virtual time."""
    import asyncio

    return asyncio.run(main())


def exit_status(summary: RunSummary) -> int:
    """Return the exit status of a run."""
    if any(isinstance(report.error, Unauthorized) for report in summary.reports):
        return USAGE
    return FAILED if summary.done < summary.jobs else 0


def make_folder(folder: Path) -> None:
    """Make the folder for results before anything is bought that could not be saved there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as exc:
        raise ConfigurationError(f"--out {quoted(folder)} cannot be made: {exc}.") from exc
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"--out {quoted(folder)} cannot be written to.")


def require_journal(journal: Path) -> None:
    """Raise `JournalError` unless `journal` exists: a mistyped path must not make a new journal."""
    if not os.path.lexists(journal):
        raise JournalError(f"There is no journal {quoted(journal)}.")


def missing_extra(error: ImportError) -> str:
    """Return the message for an extra that is not installed; raise any other import error."""
    library = (error.name or "perfect_async").partition(".")[0]
    if library == "perfect_async":
        raise error
    return (
        f"this command needs {library}, which is not installed: pip install 'perfect_async[demo]'"
    )


async def run_batch(
    client: Client, start: Callable[[Client], Batch], display: Display, journal: Path | None = None
) -> RunSummary:
    """Open `client`, run the batch that `start` makes on it, and report every outcome.

    The first Ctrl-C stops sending, waits until the running tasks have ended, and saves them; the
    second raises `KeyboardInterrupt`. `journal` is the client's: unfinished work can be resumed
    with it.
    """
    import anyio
    import attrs

    from perfect_async.cli._display import RunSummary

    began = anyio.current_time()
    reports: list[JobReport] = []
    resume_command = (
        None if journal is None else f"perfect-async resume --journal {shlex.quote(str(journal))}"
    )

    def update() -> None:
        # A job that was not sent has not failed.
        progress, unsent = batch.progress, sum(not report.sent for report in reports)
        failed, total = progress.failed - unsent, jobs - unsent
        display.update(attrs.evolve(progress, failed=failed, total=total), client.statistics())

    async def watch() -> None:
        while True:
            update()
            await anyio.sleep(display.interval)

    async with client, start(client) as batch:
        # Known from the start, because both kinds of batches are made from lists.
        jobs = batch.progress.total or 0
        with _interrupts(
            lambda: _stop(batch, display, resume_command),
            lambda: _leave(batch, display, resume_command),
        ):
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                async for outcome in batch:
                    reports.append(_report(outcome))
                    if reports[-1].sent:
                        display.report(reports[-1])
                group.cancel_scope.cancel()
        update()
    return RunSummary(reports, jobs, anyio.current_time() - began)


def _report(outcome: Outcome) -> JobReport:
    from perfect_async.cli._display import JobReport, redacted_source

    return JobReport(
        redacted_source(outcome.job.source),
        outcome.ok,
        outcome.task_id,
        outcome.units,
        outcome.duration,
        outcome.files,
        outcome.error,
    )


def _stop(batch: Batch, display: Display, resume_command: str | None) -> None:
    batch.stop()
    rest = (
        ", and their units are lost"
        if resume_command is None
        else f"; then go on with {resume_command}"
    )
    display.message(
        f"Stopping: nothing more is sent; {batch.progress.running} running tasks are kept to their "
        f"end and saved. Ctrl-C again leaves at once{rest}."
    )


def _leave(batch: Batch, display: Display, resume_command: str | None) -> NoReturn:
    rest = (
        ""
        if resume_command is None
        else f"; go on with {resume_command} within seconds, before the vendor drops them"
    )
    display.message(f"Left at once: {batch.progress.running} tasks were running{rest}.")
    raise KeyboardInterrupt


@contextmanager
def _interrupts(stop: Callable[[], None], leave: Callable[[], NoReturn]) -> Generator[None]:
    """Call `stop` in the loop on the first Ctrl-C of the block, and `leave` on the second.

    This does not use `loop.add_signal_handler`, which Windows lacks. Nothing changes in another
    thread than the main one, and where Ctrl-C is ignored, as in a shell's background job.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    presses = count(1)

    def handle(_: int, __: FrameType | None) -> None:
        number = next(presses)
        if number > 2:  # noqa: PLR2004 - the loop did not get to the second
            raise KeyboardInterrupt
        # In the loop: here any line of it may be half done. This also wakes the loop.
        loop.call_soon_threadsafe(stop if number == 1 else leave)

    before = signal.getsignal(signal.SIGINT)
    try:
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, handle)
    except ValueError:
        before = signal.SIG_IGN
    try:
        yield
    finally:
        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)
