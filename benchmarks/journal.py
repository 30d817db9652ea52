"""What a journal costs: its size and its opening by finished jobs, its commits beside bare sqlite.

Finished jobs are what a journal keeps of jobs that are over: one task each, with an id of 107
characters as the vendor's. Opening is timed as the next process does it: the file is checked, its
entries are folded, and what is too old leaves; the best of five, since what else runs can only slow
it. With them, 200 jobs are under way.

A commit of one entry (`Creating`) is compared with the least that sqlite could do for it: one row
inserted and committed, with the same settings (WAL, synchronous=FULL), on the same disk in the same
run. The two take turns in portions of fifty; the median portion counts.

    python benchmarks/journal.py [JOBS ...] [--out PNG]    # 1,000, 10,000, 30,000 and 100,000 jobs

Exit status 1 where 100,000 finished jobs take 60 MB or more, or opening them takes a second.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import attrs
import matplotlib as mpl
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from perfect_async._journal.model import (
    Created,
    Creating,
    Ended,
    Entered,
    JournalEntry,
    Reported,
    StoredJob,
    Uploaded,
)
from perfect_async._journal.sqlite import Row, SqliteJournal

JOBS: Final = (1_000, 10_000, 30_000, 100_000)
MOST_BYTES: Final = 600.0
"""For each finished job: 60 MB for 100,000."""
MOST_SECONDS: Final = 1e-5
"""For each finished job: a second for 100,000; a tenth of a second is always granted."""
UNDER_WAY: Final = 200
PORTION, PORTIONS = 50, 20
NOW: Final = 1_790_000_000_000_000


@attrs.frozen
class Measurement:
    """Of so many finished jobs: bytes on the disk, and seconds to open it."""

    jobs: int
    size: int
    opening: float


class Writer:
    """Writes the entries of jobs into a journal."""

    def __init__(self, path: Path) -> None:
        self.file = SqliteJournal(path, NOW)
        self._seq, self._rng = self.file.seq, random.Random(0)

    def rows(self, appended: Sequence[JournalEntry]) -> list[Row]:
        """Number the entries."""
        made: list[Row] = []
        for entry in appended:
            self._seq += 1
            made.append(Row(self._seq, entry, self.file.state.receive(entry)))
        return made

    def job(self, number: int, *, over: bool) -> list[Row]:
        """Return the entries of one job."""
        task_id = "".join(self._rng.choices("abcdefghijklmnopqrstuvwxyz-_0123456789", k=107))
        order = StoredJob(
            identity=self._rng.randbytes(32).hex(),
            sure=True,
            stem=f"DSC_{number:06}",
            feature="ai-smile",
            units=1.0,
            outputs=1,
            parameters=(("expression", "smile_with_teeth_visible"),),
            key=None,
            kind="path",
            place=f"/home/somebody/pictures/2026/DSC_{number:06}.jpg",
            digest=self._rng.randbytes(32).hex(),
            save_to="/home/somebody/pictures/smiling",
            delete=False,
        )
        begins: list[JournalEntry] = [
            Entered(number, NOW, order),
            Uploaded(number, NOW, "v2/" + task_id),
            Creating(number, NOW + number),
            Created(number, NOW + number, task_id),
        ]
        ends: list[JournalEntry] = [Ended(number, NOW, "done"), Reported(number, NOW)]
        return self.rows(begins + ends if over else begins)


def filled(path: Path, jobs: int) -> Measurement:
    """A journal with so many finished jobs, measured."""
    writer = Writer(path)
    for start in range(0, jobs, 500):
        numbers = range(start + 1, min(jobs, start + 500) + 1)
        writer.file.commit([e for n in numbers for e in writer.job(n, over=True)], (), NOW)
    under_way = range(jobs + 1, jobs + UNDER_WAY + 1)
    writer.file.commit([e for n in under_way for e in writer.job(n, over=False)], (), NOW)
    writer.file.close()
    times: list[float] = []
    for _ in range(5):
        began = time.perf_counter()
        file = SqliteJournal(path, NOW)
        times.append(time.perf_counter() - began)
        if len(file.state.live) != UNDER_WAY or len(file.known_tasks) != jobs + UNDER_WAY:
            raise AssertionError(path)
        file.close()
    return Measurement(jobs, path.stat().st_size, min(times))


def commits(folder: Path) -> tuple[float, float]:
    """Commits a second: of bare sqlite and of a journal."""
    bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
        bare.execute(f"PRAGMA {pragma}")
    bare.execute("CREATE TABLE words (seq INTEGER PRIMARY KEY, text TEXT)")
    writer, number = Writer(folder / "commits.db"), 0
    # A window as it is at full speed: each commit writes it, too.
    window = [(age * 1_000_000, 1) for age in range(250)]

    def insert() -> None:
        bare.execute("BEGIN IMMEDIATE")
        bare.execute("INSERT INTO words (text) VALUES ('{}')")
        bare.execute("COMMIT")

    def write() -> None:
        nonlocal number
        writer.file.commit([entries.pop()], window, NOW)

    rates: tuple[list[float], list[float]] = [], []
    for _ in range(PORTIONS):
        entries: list[Row] = []
        for _ in range(PORTION):
            number += 1
            made = writer.job(number, over=False)[:3]
            writer.file.commit(made[:2], window, NOW)
            entries.insert(0, made[2])
        for rate, one in zip(rates, (insert, write), strict=True):
            rate.append(PORTION / _took(one))
    bare.close()
    writer.file.close()
    return median(rates[0]), median(rates[1])


def _took(one: Callable[[], None]) -> float:
    began = time.perf_counter()
    for _ in range(PORTION):
        one()
    return time.perf_counter() - began


def draw(rows: Sequence[Measurement], rates: tuple[float, float], path: Path) -> None:
    """Size and opening by jobs, and commits beside bare sqlite."""
    mpl.use("agg")
    figure, (sizes, times, bars) = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    jobs = [row.jobs for row in rows]
    sizes.plot(jobs, [row.size / 1e6 for row in rows], "o-", color="#30475e")
    sizes.plot(jobs, [MOST_BYTES * count / 1e6 for count in jobs], "--", color="#a0a0a0")
    sizes.set(title="size, MB (dashed: the limit)", xlabel="finished jobs")
    times.plot(jobs, [row.opening * 1e3 for row in rows], "o-", color="#30475e")
    times.plot(jobs, [MOST_SECONDS * count * 1e3 for count in jobs], "--", color="#a0a0a0")
    times.set(title="opening, ms (dashed: the limit)", xlabel="finished jobs")
    for axes in (sizes, times):
        axes.set(xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    bars.bar(["bare sqlite", "journal"], rates, color=["#a0a0a0", "#30475e"])
    bars.set(title="commits a second")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(jobs: Sequence[int], out: Path) -> int:
    """Measure, print and draw; returns the exit status."""
    rows: list[Measurement] = []
    wrong: list[str] = []
    print(f"{'finished jobs':>13} {'MB':>7} {'bytes each':>11} {'opening, ms':>12}")
    with tempfile.TemporaryDirectory() as name:
        for count in jobs:
            row = filled(Path(name, f"{count}.db"), count)
            rows.append(row)
            each = row.size / count
            print(f"{count:13,} {row.size / 1e6:7.2f} {each:11.0f} {row.opening * 1e3:12.1f}")
            if count >= 10_000 and each >= MOST_BYTES:
                wrong.append(f"{count:,} jobs take {row.size / 1e6:.1f} MB")
            if row.opening >= max(0.1, MOST_SECONDS * count):
                wrong.append(f"{count:,} jobs take {row.opening:.2f} s to open")
        rates = commits(Path(name))
    print(
        f"commits a second: bare sqlite {rates[0]:.0f}, journal {rates[1]:.0f}; "
        f"{rates[0] / rates[1]:.2f} times as long"
    )
    draw(rows, rates, out)
    print(out)
    for line in wrong:
        print(f"not as it should be: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", type=int, metavar="JOBS")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/journal.png"))
    given = parser.parse_args()
    sys.exit(main(given.jobs or JOBS, given.out))
