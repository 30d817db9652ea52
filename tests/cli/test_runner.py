"""A run from a terminal: saved, shown, and stopped when asked; in virtual time."""

import asyncio
import errno
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, cast

import pytest

from perfect_async import Avatar, Client, Job, Progress, Smile, Statistics
from perfect_async._files.saving import AtomicFile
from perfect_async.cli._display import Display, JobReport, RunSummary
from perfect_async.cli._runner import STOP_SIGNALS, _stop_signals, run_batch, signal_status
from perfect_async.errors import ConfigurationError, NotSaved
from perfect_async.sandbox import Durations, Faults, Sandbox, portrait
from tests.support import virtual_time

SMILES = {"ai-smile": Durations.fixed(8.0)}


class RecordingDisplay(Display):
    """A display that records what it is given."""

    def __init__(
        self, interval: float = 10.0, presses: Sequence[int] = (), number: int = signal.SIGINT
    ) -> None:
        super().__init__("nothing")
        self.progress: list[Progress] = []
        self.lines: list[str] = []
        self.reports: list[JobReport] = []
        self._interval = interval
        self._presses = presses
        self._number = number

    @property
    def interval(self) -> float:
        return self._interval

    def update(self, progress: Progress, statistics: Statistics) -> None:
        self.progress.append(progress)

    def message(self, text: str) -> None:
        self.lines.append(text)

    def report(self, report: JobReport) -> None:
        self.reports.append(report)
        if len(self.reports) in self._presses:
            signal.raise_signal(self._number)


def client(sandbox: Sandbox) -> Client:
    return Client("key", base_url="https://sandbox.example", transport=sandbox.transport())


async def process(on: Client, jobs: Sequence[Job], out: Path, display: Display) -> RunSummary:
    return await run_batch(on, lambda opened: opened.batch(jobs, save_to=out), display)


def smiles(number: int) -> list[Job]:
    return [Smile(portrait(seed, 64)) for seed in range(number)]


async def test_all_are_saved_and_reported(tmp_path: Path) -> None:
    """Each outcome is reported once with its files, and the summary counts them."""
    jobs = [*smiles(5), Avatar(portrait(9, 64), template_id="male_studio_00", output_count=2)]
    sandbox, display = Sandbox(durations=SMILES), RecordingDisplay()

    summary = await process(client(sandbox), jobs, tmp_path / "not there yet", display)

    assert (6, 6, [], 0, 6.0) == (
        *(summary.done, summary.jobs, summary.failures),
        *(summary.unsent, summary.units),
    )
    assert display.reports == list(summary.reports)
    files = [path for report in summary.reports for path in report.files]
    assert 7 == len(set(files)) == len([path for path in files if path.is_file()])
    assert summary.seconds > 8
    assert 0 == sandbox.ledger.units_wasted


async def test_progress_is_shown_to_the_end(tmp_path: Path) -> None:
    """Progress is shown at once, every `interval` seconds, and at the end."""
    display = RecordingDisplay(interval=1.0)

    summary = await process(client(Sandbox(durations=SMILES)), smiles(3), tmp_path, display)

    first, last = display.progress[0], display.progress[-1]
    assert (3, 0, 3) == (first.total, first.done, first.waiting)
    assert (3, 3, 0, 0) == (last.total, last.done, last.running, last.waiting)
    assert summary.seconds == pytest.approx(len(display.progress), abs=2)


async def test_failures_do_not_stop_the_rest(tmp_path: Path) -> None:
    """A refused picture and a failed task are reported, and the others are saved."""
    jobs = [*smiles(2), Smile(tmp_path / "missing.jpg"), Smile("https://x/bad.jpg?sig=s")]
    sandbox = Sandbox(faults=Faults(by_picture={"https://x/bad.jpg?sig=s": "error_no_face"}))

    summary = await process(client(sandbox), jobs, tmp_path, RecordingDisplay())

    failures = {report.source: type(report.error).__name__ for report in summary.failures}
    assert {
        str(tmp_path / "missing.jpg"): "PictureRefused",
        "https://x/bad.jpg": "TaskFailed",
    } == failures
    assert 2 == summary.done


async def test_an_unsaved_result_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result that the disk refuses is a failure whose units are spent."""

    def save(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AtomicFile, "put", save)

    summary = await process(client(Sandbox()), smiles(1), tmp_path, RecordingDisplay())

    (report,) = summary.reports
    assert isinstance(report.error, NotSaved)
    assert not report.ok
    assert report.error.message.startswith("The pictures were made, but not saved: ")
    assert report.task_id == report.error.task_id
    assert (1.0, 1.0) == (report.units, report.error.units_at_stake)


async def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    """A file in the way of the folder is found before anything is sent."""
    (tmp_path / "file").write_bytes(b"")
    sandbox = Sandbox()

    with pytest.raises(ConfigurationError, match="cannot be written: File exists"):
        await process(client(sandbox), smiles(1), tmp_path / "file", RecordingDisplay())

    assert {} == dict(sandbox.ledger.requests)


async def test_a_refused_download_has_failed(tmp_path: Path) -> None:
    """The message of a refused download does not claim that nothing was charged."""
    sandbox = Sandbox()
    sandbox.script("result", *[(404, "gone")] * 2)

    summary = await process(client(sandbox), smiles(1), tmp_path, RecordingDisplay())

    (report,) = summary.reports
    assert "Nothing was charged" not in str(report.error)
    assert report.error is not None
    assert report.error.message.startswith("The pictures were made, but not saved: ")


async def test_ctrl_c_stops_sending(tmp_path: Path) -> None:
    """One Ctrl-C: running tasks are saved; unsent jobs are counted and not reported."""
    sandbox, display = Sandbox(durations=SMILES), RecordingDisplay(presses=[1])
    before = signal.getsignal(signal.SIGINT)

    summary = await process(client(sandbox), smiles(200), tmp_path, display)

    assert [] == summary.failures
    assert 1 < summary.done < 40
    assert 200 == summary.done + summary.unsent
    assert summary.done == len(sandbox.ledger.tasks) == len(display.reports)
    assert {"success": summary.done} == dict(sandbox.ledger.tasks_by_state)
    assert display.lines[0].startswith("Stopping: nothing more is sent; ")
    assert (0, summary.done) == (display.progress[-1].failed, display.progress[-1].done)
    assert before is signal.getsignal(signal.SIGINT)


def test_ctrl_c_twice_leaves_at_once(tmp_path: Path) -> None:
    """The second Ctrl-C waits for nothing, although tasks run for minutes."""
    times: list[float] = []

    class TimedDisplay(RecordingDisplay):
        def message(self, text: str) -> None:
            super().message(text)
            times.append(asyncio.get_running_loop().time())

    display = TimedDisplay(presses=[1, 2])
    slow = {"ai-smile": Durations.uniform(5.0, 100.0)}

    async def main() -> None:
        try:
            await process(client(Sandbox(durations=slow)), smiles(30), tmp_path, display)
        finally:
            times.append(asyncio.get_running_loop().time())

    with pytest.raises(KeyboardInterrupt):
        virtual_time.run(main)

    assert [2, 2] == [len(display.lines), len(display.reports)]
    assert display.lines[1].startswith("Left at once: ")
    assert times[2] - times[1] < 1


async def test_the_third_ctrl_c_needs_no_loop() -> None:
    """The third Ctrl-C raises at once, where the loop did not get to the second."""
    calls: list[str] = []

    leave = cast("Callable[[int], NoReturn]", lambda number: calls.append("leave"))
    with _stop_signals(lambda number: calls.append("stop"), leave):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert [] == calls
        await asyncio.sleep(0)

    assert ["stop", "leave"] == calls


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_an_ignored_signal_stays_ignored(number: int) -> None:
    """A process that was started with a signal ignored (`nohup`) goes on ignoring it."""

    def fail(_: int) -> NoReturn:
        pytest.fail("handled")

    before = signal.signal(number, signal.SIG_IGN)
    try:
        with _stop_signals(fail, fail):
            signal.raise_signal(number)
            await asyncio.sleep(0)
        assert signal.SIG_IGN == signal.getsignal(number)
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_handlers_are_put_back(number: int) -> None:
    """After the block each signal does what it did before."""
    before = signal.getsignal(number)

    with _stop_signals(lambda _: None, cast("Callable[[int], NoReturn]", lambda _: None)):
        assert before is not signal.getsignal(number)

    assert before is signal.getsignal(number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_each_signal_stops_sending(tmp_path: Path, number: int) -> None:
    """Ctrl-C, SIGTERM and SIGHUP stop sending; running tasks are saved; the signal is reported."""
    sandbox, display = Sandbox(durations=SMILES), RecordingDisplay(presses=[1], number=number)

    summary = await process(client(sandbox), smiles(200), tmp_path, display)

    assert 1 < summary.done < 40
    assert 200 == summary.done + summary.unsent
    assert {"success": summary.done} == dict(sandbox.ledger.tasks_by_state)
    assert number == summary.stopped_by


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_second_signal_leaves(tmp_path: Path, number: int) -> None:
    """The second signal leaves at once, and its number becomes the exit status."""
    display = RecordingDisplay(presses=[1, 2], number=number)
    slow = {"ai-smile": Durations.uniform(5.0, 100.0)}

    with pytest.raises(KeyboardInterrupt) as left:
        virtual_time.run(
            lambda: process(client(Sandbox(durations=slow)), smiles(30), tmp_path, display)
        )

    assert 128 + number == signal_status(*left.value.args)
    assert 2 == len(display.reports)


async def test_a_closing_terminal_hangs_up_once() -> None:
    """Several SIGHUPs within a second are one: the terminal and its shell both send it."""
    calls: list[str] = []
    leave = cast("Callable[[int], NoReturn]", lambda number: calls.append("leave"))

    with _stop_signals(lambda number: calls.append("stop"), leave):
        for _ in range(3):
            signal.raise_signal(signal.SIGHUP)
        await asyncio.sleep(1)
        assert ["stop"] == calls
        signal.raise_signal(signal.SIGHUP)
        await asyncio.sleep(0)

    assert ["stop", "leave"] == calls


def test_another_thread_gets_no_signals(tmp_path: Path) -> None:
    """A run works outside of the main thread, without handling Ctrl-C."""
    summaries: list[RunSummary] = []

    def work() -> None:
        summaries.append(
            virtual_time.run(
                lambda: process(client(Sandbox()), smiles(1), tmp_path, RecordingDisplay())
            )
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert 1 == summaries[0].done
