"""A run from a terminal: saved, shown, and stopped when asked; in virtual time."""

import asyncio
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, cast

import pytest

from perfect_async import Avatar, Client, Job, Progress, Smile, Statistics
from perfect_async.cli import _runner
from perfect_async.cli._display import Display, JobReport, RunSummary
from perfect_async.cli._runner import _interrupts
from perfect_async.errors import ConfigurationError
from perfect_async.sandbox import Durations, Faults, Sandbox, portrait
from tests.support import virtual_time

SMILES = {"ai-smile": Durations.fixed(8.0)}


class Notes(Display):
    """A screen that remembers; a live one if `every` is short."""

    def __init__(self, every: float = 10.0, presses: Sequence[int] = ()) -> None:
        super().__init__("nothing")
        self.progress: list[Progress] = []
        self.lines: list[str] = []
        self.told: list[JobReport] = []
        self._every = every
        self._presses = presses

    @property
    def every(self) -> float:
        return self._every

    def tick(self, progress: Progress, statistics: Statistics) -> None:
        self.progress.append(progress)

    def say(self, text: str) -> None:
        self.lines.append(text)

    def tell(self, told: JobReport) -> None:
        self.told.append(told)
        if len(self.told) in self._presses:
            signal.raise_signal(signal.SIGINT)


def client(sandbox: Sandbox) -> Client:
    return Client("key", base_url="https://sandbox.example", transport=sandbox.transport())


async def process(on: Client, jobs: Sequence[Job], out: Path, screen: Display) -> RunSummary:
    return await _runner.process(on, lambda one: one.batch(jobs, save_to=out), screen)


def smiles(number: int) -> list[Job]:
    return [Smile(portrait(seed, 64)) for seed in range(number)]


async def test_all_are_saved_and_told(tmp_path: Path) -> None:
    """Each outcome is told once with its files, and the tally counts them."""
    jobs = [*smiles(5), Avatar(portrait(9, 64), template_id="male_studio_00", output_count=2)]
    sandbox, screen = Sandbox(durations=SMILES), Notes()

    summary = await process(client(sandbox), jobs, tmp_path / "not there yet", screen)

    assert (6, 6, [], 0, 6.0) == (
        *(summary.done, summary.jobs, summary.failures),
        *(summary.unsent, summary.units),
    )
    assert screen.told == list(summary.told)
    files = [path for told in summary.told for path in told.files]
    assert 7 == len(set(files)) == len([path for path in files if path.is_file()])
    assert summary.seconds > 8
    assert 0 == sandbox.ledger.units_wasted


async def test_it_is_watched_to_the_end(tmp_path: Path) -> None:
    """Progress is shown at once, every `every` seconds, and when all is over."""
    screen = Notes(every=1.0)

    summary = await process(client(Sandbox(durations=SMILES)), smiles(3), tmp_path, screen)

    first, last = screen.progress[0], screen.progress[-1]
    assert (3, 0, 3) == (first.total, first.done, first.waiting)
    assert (3, 3, 0, 0) == (last.total, last.done, last.running, last.waiting)
    assert summary.seconds == pytest.approx(len(screen.progress), abs=2)


async def test_failures_are_told_beside_the_rest(tmp_path: Path) -> None:
    """A refused picture and a failed task are told, and keep nothing from being saved."""
    jobs = [*smiles(2), Smile(tmp_path / "missing.jpg"), Smile("https://x/bad.jpg?sig=s")]
    sandbox = Sandbox(faults=Faults(by_picture={"https://x/bad.jpg?sig=s": "error_no_face"}))

    summary = await process(client(sandbox), jobs, tmp_path, Notes())

    failures = {told.source: type(told.error).__name__ for told in summary.failures}
    assert {
        str(tmp_path / "missing.jpg"): "PictureRefused",
        "https://x/bad.jpg": "TaskFailed",
    } == failures
    assert 2 == summary.done


async def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    """A file in the way of the folder is found before anything is sent."""
    (tmp_path / "file").write_bytes(b"")
    sandbox = Sandbox()

    with pytest.raises(ConfigurationError, match="cannot be written: File exists"):
        await process(client(sandbox), smiles(1), tmp_path / "file", Notes())

    assert {} == dict(sandbox.ledger.requests)


async def test_what_cannot_be_fetched_has_failed(tmp_path: Path) -> None:
    """A download that is refused does not claim that nothing was charged."""
    sandbox = Sandbox()
    sandbox.script("result", *[(404, "gone")] * 2)

    summary = await process(client(sandbox), smiles(1), tmp_path, Notes())

    (told,) = summary.told
    assert "Nothing was charged" not in str(told.error)
    assert told.error is not None
    assert told.error.message.startswith("The pictures were made, but not saved: ")


async def test_ctrl_c_creates_nothing_more(tmp_path: Path) -> None:
    """One Ctrl-C: what runs is kept and saved, what was not sent is counted and not told."""
    sandbox, screen = Sandbox(durations=SMILES), Notes(presses=[1])
    before = signal.getsignal(signal.SIGINT)

    summary = await process(client(sandbox), smiles(200), tmp_path, screen)

    assert [] == summary.failures
    assert 1 < summary.done < 40
    assert 200 == summary.done + summary.unsent
    assert summary.done == len(sandbox.ledger.tasks) == len(screen.told)
    assert {"success": summary.done} == dict(sandbox.ledger.tasks_by_state)
    assert screen.lines[0].startswith("Stopping: nothing more is sent; ")
    assert (0, summary.done) == (screen.progress[-1].failed, screen.progress[-1].done)
    assert before is signal.getsignal(signal.SIGINT)


def test_ctrl_c_twice_leaves_at_once(tmp_path: Path) -> None:
    """The second Ctrl-C does not wait for anything."""
    screen = Notes(presses=[1, 2])
    began, ended = [], []

    async def main() -> RunSummary:
        began.append(asyncio.get_running_loop().time())
        try:
            return await process(
                client(Sandbox(durations={"ai-smile": Durations.uniform(5.0, 100.0)})),
                smiles(30),
                tmp_path,
                screen,
            )
        finally:
            ended.append(asyncio.get_running_loop().time())

    with pytest.raises(KeyboardInterrupt):
        virtual_time.run(main)

    assert [2, 2] == [len(screen.lines), len(screen.told)]
    assert screen.lines[1].startswith("Left at once: ")
    assert ended[0] - began[0] < 60


async def test_the_third_ctrl_c_needs_no_loop() -> None:
    """Where the loop does not get to the second, the third raises where it is."""
    calls: list[str] = []

    leave = cast("Callable[[], NoReturn]", lambda: calls.append("leave"))
    with _interrupts(lambda: calls.append("stop"), leave):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert [] == calls
        await asyncio.sleep(0)

    assert ["stop", "leave"] == calls


async def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """A background job whose shell had it ignore the signal goes on ignoring it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _interrupts(lambda: pytest.fail("stopped"), lambda: pytest.fail("left")):
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0)
        assert signal.SIG_IGN == signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_gets_no_signals(tmp_path: Path) -> None:
    """Outside of the main thread a run works, and Ctrl-C is somebody else's."""
    tallies: list[RunSummary] = []

    def work() -> None:
        tallies.append(
            virtual_time.run(lambda: process(client(Sandbox()), smiles(1), tmp_path, Notes()))
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert 1 == tallies[0].done
