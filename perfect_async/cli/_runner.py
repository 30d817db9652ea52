"""Run a command: make its client and its loop, run a batch, stop it on Ctrl-C and its signals."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from perfect_async.cli._key import api_key
from perfect_async.cli._output import print_error
from perfect_async.errors import ConfigurationError, JournalError, Unauthorized, quoted

# `--help` runs none of this, so the client and asyncio are loaded by the functions that need them.
if TYPE_CHECKING:
    import anyio

    from perfect_async import Batch, Client, Done, Outcome, Polling
    from perfect_async.cli._display import Display, JobReport, RunSummary
    from perfect_async.cli._manifest import Manifest, Plan
    from perfect_async.cli._outage import Outage
    from perfect_async.errors import PerfectError
    from perfect_async.fleet import Worker

T = TypeVar("T")

FAILED: Final = 1
USAGE: Final = 2

# SIGHUP is what a closing terminal sends; Windows has none.
STOP_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ()),
)

_ONE_HANGUP: Final = 1.0
"""Seconds within which several SIGHUPs are one: a closing terminal and its shell both send it."""


def make_client(
    journal: Path | None = None,
    polling: Polling | None = None,
    *,
    sole_user: bool = False,
    fit: bool = False,
) -> Client:
    """Make the client of a command; tests replace this."""
    from perfect_async import Client, Polling

    return Client(
        api_key(), journal=journal, polling=polling or Polling(), sole_user=sole_user, fit=fit
    )


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main` on an event loop; tests replace this by virtual time."""
    import asyncio

    return asyncio.run(main())


def exit_status(summary: RunSummary) -> int:
    """Return the exit status of a run."""
    if summary.stopped_by not in {None, signal.SIGINT}:
        return signal_status(summary.stopped_by)
    if any(isinstance(report.error, Unauthorized) for report in summary.reports):
        return USAGE
    done = summary.done + summary.already_there
    return FAILED if done < summary.jobs or summary.output_failed else 0


def signal_status(number: int | None = None) -> int:
    """Return the exit status of a program that was ended by a signal, by default by Ctrl-C."""
    return 128 + (number or signal.SIGINT)


def make_folder(folder: Path) -> None:
    """Make the folder for results before anything is bought that could not be saved there."""
    from perfect_async._client.folder import prepare_folder

    try:
        prepare_folder(folder)
    except (FileExistsError, NotADirectoryError) as exc:
        raise ConfigurationError(
            f"--out {quoted(folder)} is no folder: there is a file of that name."
        ) from exc
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise ConfigurationError(f"--out {quoted(folder)} cannot be written: {reason}.") from exc


def require_journal(journal: Path) -> None:
    """Raise `JournalError` unless `journal` exists: a mistyped path must not make a new journal."""
    if not os.path.lexists(journal):
        raise JournalError(
            f"There is no journal {quoted(journal)}: name the file that --journal of the run named."
        )


def missing_extra(error: ImportError) -> str:
    """Return the message for an extra that is not installed; raise any other import error."""
    library = (error.name or "perfect_async").partition(".")[0]
    if library == "perfect_async":
        raise error
    return (
        f"this command needs {library}, which is not installed: pip install 'perfect_async[demo]'"
    )


def rebuild(manifest: Manifest) -> str:
    """Rebuild a broken manifest, and return the message that says so."""
    try:
        manifest.rebuild()
    except OSError as exc:
        raise ConfigurationError(
            f"the manifest in {quoted(manifest.folder)} is broken, and cannot be rebuilt: "
            f"{exc.strerror}."
        ) from exc
    return (
        f"The manifest in {manifest.folder} was broken. It was rebuilt from the {len(manifest)} "
        "results that are there."
    )


def record_former(manifest: Manifest, plan: Plan) -> None:
    """Record the results of former runs that this run takes over, before anything is bought."""
    try:
        manifest.record_former(plan)
        manifest.make_copies(plan)
    except OSError as exc:
        raise ConfigurationError(
            f"--out {quoted(manifest.folder)} cannot be written: {exc.strerror}."
        ) from exc


async def run_batch(
    client: Client,
    start: Callable[[Client], Batch],
    display: Display,
    journal: Path | None = None,
    before: Sequence[JobReport] = (),
    *,
    recorded: bool = True,
    prepare: Callable[[Client, Outage], Awaitable[None]] | None = None,
    reported: bool = False,
) -> RunSummary:
    """Open `client`, run the batch that `start` makes on it, and report every outcome.

    `before` are reports of jobs that are not part of the batch; they are reported first. With
    `recorded` the manifest of a folder records what is saved there; with `reported` the summary has
    what a report needs. `prepare` is awaited before anything is sent. Raises what it raises, and
    the error of a host that was never reached.

    The first Ctrl-C, SIGTERM or SIGHUP stops sending, waits until the running tasks have ended, and
    saves them; the second raises `KeyboardInterrupt` with its number. `journal` is the client's:
    unfinished work can be resumed with it.
    """
    import anyio

    from perfect_async import Done
    from perfect_async.cli._display import RunSummary
    from perfect_async.cli._outage import Outage

    outage = Outage(anyio.current_time())
    reports = list(before)
    signals: list[int] = []
    resume_command = (
        None if journal is None else f"perfect-async resume --journal {shlex.quote(str(journal))}"
    )

    async with _opened(client, outage, prepare), start(client) as batch:
        began = anyio.current_time()
        for report in before:
            display.report(report)
        # The total is known from the start, because every batch is made from a list.
        jobs = batch.progress.total or 0
        watch = _Watch(client, batch, display, outage, jobs)

        def stop(number: int) -> None:
            signals.append(number)
            _stop(batch, display, resume_command)

        with _stop_signals(stop, partial(_leave, batch, display, resume_command)):
            async with anyio.create_task_group() as group:
                group.start_soon(watch.run, group.cancel_scope)
                async for outcome in batch:
                    if isinstance(outcome, Done) and recorded:
                        await _record(outcome, display)
                    reports.append(_report(outcome))
                    if reports[-1].sent:
                        display.report(reports[-1])
                    else:
                        watch.unsent += 1
                group.cancel_scope.cancel()
        watch.update()
        if watch.given_up is not None:
            # The client closes first: a batch that is left withdraws its jobs, and they would be
            # gone from the journal.
            await client.close()
    if watch.given_up is not None:
        raise watch.given_up
    of_batch = await batch.report() if reported else None
    return RunSummary(
        reports,
        jobs + len(before),
        anyio.current_time() - began,
        stopped_by=signals[0] if signals else None,
        output_failed=display.output_failed,
        report=of_batch,
        before=tuple(before),
    )


def run_worker(worker: Worker) -> int:
    """Perform orders until a signal, and return the exit status.

    The first Ctrl-C, SIGTERM or SIGHUP stops new work and waits for running tasks; the second
    raises `KeyboardInterrupt` with its number.
    """
    signals: list[int] = []

    def stop(number: int) -> None:
        signals.append(number)
        print_error(
            "Stopping: nothing more is sent; running tasks finish and are saved. Ctrl-C again "
            "leaves at once: other workers then take over the running tasks."
        )
        worker.stop()

    def leave(number: int) -> NoReturn:
        raise KeyboardInterrupt(number)

    async def main() -> None:
        with _stop_signals(stop, leave):
            await worker.run()

    run(main)
    return 0 if signals[:1] in ([], [signal.SIGINT]) else signal_status(signals[0])


class _Watch:
    """Shows how a batch of `jobs` jobs stands, and ends it where the vendor is never reached.

    `unsent` of its outcomes are of jobs that were not sent; `given_up` says why it was ended.
    """

    def __init__(
        self, client: Client, batch: Batch, display: Display, outage: Outage, jobs: int
    ) -> None:
        self._client = client
        self._batch = batch
        self._display = display
        self._outage = outage
        self._jobs = jobs
        self.unsent = 0
        self.given_up: PerfectError | None = None

    async def run(self, scope: anyio.CancelScope) -> None:
        """Show the progress until the batch ends; cancel `scope` where it is given up."""
        import anyio

        while True:
            self.update()
            now, statistics = anyio.current_time(), self._client.statistics()
            self.given_up = self._outage.end(now, statistics)
            if self.given_up is not None:
                scope.cancel()
            await anyio.sleep(self._display.interval)

    def update(self) -> None:
        """Show the progress now."""
        import anyio
        import attrs

        if not self._jobs or self.given_up is not None:
            return
        # A job that was not sent has not failed.
        progress, statistics = self._batch.progress, self._client.statistics()
        failed, total = progress.failed - self.unsent, self._jobs - self.unsent
        self._display.wait_for(self._outage.look(anyio.current_time(), statistics))
        self._display.update(attrs.evolve(progress, failed=failed, total=total), statistics)


@asynccontextmanager
async def _opened(
    client: Client,
    outage: Outage,
    prepare: Callable[[Client, Outage], Awaitable[None]] | None,
) -> AsyncGenerator[None]:
    async with client:
        if prepare is not None:
            await prepare(client, outage)
        yield


def report_only(reports: Sequence[JobReport], display: Display) -> RunSummary:
    """Report jobs of which none is to be sent."""
    from perfect_async.cli._display import RunSummary

    for report in reports:
        display.report(report)
    return RunSummary(
        reports, len(reports), 0.0, output_failed=display.output_failed, before=tuple(reports)
    )


async def _record(outcome: Done, display: Display) -> None:
    """Append the files of `outcome` to the manifest of their folder."""
    import anyio.to_thread

    from perfect_async.cli._manifest import record

    try:
        await anyio.to_thread.run_sync(record, outcome)
    except OSError as exc:
        display.message(
            f"The manifest of {outcome.files[0].parent} cannot be written: {exc.strerror}. Another "
            "run may buy these results again."
        )


def _report(outcome: Outcome) -> JobReport:
    from perfect_async.cli._display import JobReport, name_of
    from perfect_async.cli._manifest import key_of

    return JobReport(
        name_of(outcome.job),
        outcome.ok,
        outcome.task_id,
        outcome.units,
        outcome.duration,
        outcome.files,
        outcome.error,
        changes=outcome.changes,
        key=key_of(outcome.job),
    )


def _stop(batch: Batch, display: Display, resume_command: str | None) -> None:
    batch.stop()
    rest = (
        ", and their units are lost"
        if resume_command is None
        else f"; then go on with {resume_command}"
    )
    display.message(
        f"Stopping: nothing more is sent; {_tasks(batch.progress.running)} running, which finish "
        f"and are saved. Ctrl-C again leaves at once{rest}."
    )


def _leave(batch: Batch, display: Display, resume_command: str | None, number: int) -> NoReturn:
    rest = (
        ""
        if resume_command is None
        else f"; go on with {resume_command} within seconds, before the vendor drops them"
    )
    running = batch.progress.running
    were = "task was" if running == 1 else "tasks were"
    display.message(f"Left at once: {running} {were} running{rest}.")
    raise KeyboardInterrupt(number)


def _tasks(number: int) -> str:
    return "1 task is" if number == 1 else f"{number} tasks are"


@contextmanager
def _stop_signals(stop: Callable[[int], None], leave: Callable[[int], NoReturn]) -> Generator[None]:
    """Call `stop` in the loop at the first of `STOP_SIGNALS` in the block, `leave` at the second.

    This does not use `loop.add_signal_handler`, which Windows lacks. A signal that is ignored stays
    ignored (`nohup`, a shell's background job), and outside of the main thread nothing changes.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    received: list[tuple[int, float]] = []

    def handle(number: int, _: FrameType | None) -> None:
        now = loop.time()
        hangups = [at for former, at in received if former == number and is_hangup(number)]
        if hangups and now - hangups[0] < _ONE_HANGUP:
            return
        received.append((number, now))
        if len(received) > 2:  # noqa: PLR2004 - the loop did not get to the second
            raise KeyboardInterrupt(number)
        # Here any line of the loop may be half done, so the call is made in it. This wakes it, too.
        loop.call_soon_threadsafe(stop if len(received) == 1 else leave, number)

    former: dict[int, Any] = {}
    with suppress(ValueError):  # in another thread than the main one
        for number in STOP_SIGNALS:
            # Python did not install a handler that is None, and could not put it back.
            if signal.getsignal(number) not in {signal.SIG_IGN, None}:
                former[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def is_hangup(number: int) -> bool:
    """Return whether a signal is SIGHUP, which Windows lacks."""
    return number == getattr(signal, "SIGHUP", None)
