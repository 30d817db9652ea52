"""A client that runs for long: nothing grows, nothing is left, and no secret is in any log."""

import logging
import threading
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import months
from perfect_async._runtime import recorder

NOT_OURS = {"Failed", "TaskFailed", "Size", "Counter", "ReferenceType"}
"""What the program itself still holds, and the weak references of sqlite's to its last 200 cursors.
"""


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


def names() -> list[str]:
    """Threads, without those of anyio's that end by themselves."""
    return [each.name for each in threading.enumerate() if "AnyIO" not in each.name]


@pytest.fixture(scope="module", autouse=True)
def full_caches() -> None:
    """Fill what remembers the last few hundred URLs: what is full grows no more."""
    months.months([400])


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
    stops: list[int],
    journal: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many objects of each type after all jobs as after the first: done, failed, left, equal."""
    # What is kept for the reports of batches is full before the first stop.
    monkeypatch.setattr(recorder, "_MOST", 100)
    caplog.set_level(logging.DEBUG)
    files, threads = descriptors(), names()

    sizes = months.months(stops, tmp_path / "jobs.db" if journal else None)

    # Ones and twos are caches of the interpreter's; what grows, grows by the hundred.
    assert {} == {kind: number for kind, number in grown(sizes).items() if number > 10}
    assert files >= descriptors()
    assert threads == names()
    assert not [record for record in caplog.records if "s3cret" in record.getMessage()]
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {record.name for record in caplog.records} <= {"perfect_async", "asyncio"}
