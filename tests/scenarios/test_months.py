"""A client that runs for long: memory, files and threads do not grow, and no log has a secret."""

import logging
import multiprocessing
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import attrs
import pytest

from benchmarks import months
from perfect_async._runtime import recorder

NOT_OURS = {"Failed", "TaskFailed", "Size", "Counter", "ReferenceType"}
"""What the program itself still holds, and the weak references of sqlite's to its last 200 cursors.
"""


@attrs.frozen
class Findings:
    """The differences after a client has run: objects, open files, threads and logs."""

    grown: Counter[str]
    opened: set[str]
    started: Counter[str]
    logged: list[tuple[str, int, str]]


class Records(logging.Handler):
    """A handler that keeps the logger, level and text of each record."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record.name, record.levelno, record.getMessage()))


def grown(sizes: list[months.Size]) -> Counter[str]:
    """Types of which there are more at the end than after the first stop, measuring aside."""
    early, late = sizes
    return Counter(
        {
            kind: number
            for kind, number in (late.objects - early.objects).items()
            if kind.rpartition(".")[2] not in NOT_OURS
        }
    )


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def names() -> Counter[str]:
    """Threads, without those of anyio's that end by themselves."""
    return Counter(each.name for each in threading.enumerate() if "AnyIO" not in each.name)


def prepare() -> None:
    """Fill what remembers the last few hundred URLs: what is full grows no more.

    What is kept for the reports of batches is full before the first stop.
    """
    setattr(recorder, "_MOST", 100)  # noqa: B010 - a constant
    months.months([400])


def run(stops: list[int], journal: Path | None) -> Findings:
    root, records = logging.getLogger(), Records()
    root.addHandler(records)
    root.setLevel(logging.DEBUG)
    files, threads = descriptors(), names()
    sizes = months.months(stops, journal)
    root.removeHandler(records)
    return Findings(grown(sizes), descriptors() - files, names() - threads, records.records)


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """Another process: in this one other tests have left objects, files and threads that go.

    Their ends cannot be told from what the client does.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=prepare) as executor:
        yield executor


@pytest.mark.parametrize(
    ("stops", "journal"),
    [
        ([100, 400], False),
        ([100, 200], True),
        pytest.param([1000, 3000], False, marks=pytest.mark.long),
        pytest.param([100, 300], True, marks=pytest.mark.long),
    ],
)
@pytest.mark.timeout(900)
def test_nothing_grows(
    process: ProcessPoolExecutor, stops: list[int], journal: bool, tmp_path: Path
) -> None:
    """There are as many objects of each type after all jobs as after the first ones."""
    found = process.submit(run, stops, tmp_path / "jobs.db" if journal else None).result()

    # Differences of one or two are the interpreter's caches; a leak grows by hundreds.
    assert {} == {kind: number for kind, number in found.grown.items() if number > 10}
    assert set() == found.opened
    assert Counter() == found.started
    assert not [text for _, _, text in found.logged if "s3cret" in text]
    assert [] == [record for record in found.logged if record[1] >= logging.WARNING]
    assert {name for name, _, _ in found.logged} <= {"perfect_async", "asyncio"}
