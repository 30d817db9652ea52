"""The measuring of ourselves: its pieces on tiny sizes, and what needs no clock to hold."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import decisions, loopback, memory, overhead
from perfect_async import Smile


def test_decisions_are_counted_and_compared() -> None:
    """Each size has its own costs, over as many decisions as were asked for."""
    costs = decisions.measure((2, 20), turns=3, each=40, seeds=(0, 1))

    assert [2, 20] == [cost.tasks for cost in costs]
    assert [240, 240] == [cost.decisions for cost in costs]
    assert all(cost.decision > 0 and cost.pair > 0 and cost.ratio > 0 for cost in costs)


def test_a_drive_holds_its_tasks_in_flight() -> None:
    """In the steady state almost all of the tasks run; the others are on their way there."""
    drive = decisions.Drive(50)
    drive.until(decisions.SETTLING)
    now = drive.scheduler.statistics()

    assert 50 == now.waiting + now.preparing + now.ready + now.running
    assert 40 <= now.running
    assert 0 < now.done
    assert (0, 0, 0) == (now.failed, now.refused, now.tries)
    assert {"register", "submit", "poll"} == set(now.requests)


def test_a_task_in_flight_is_small() -> None:
    """A running task of a batch costs less than 8 KB, the client's own things left out."""
    (bytes_each,) = memory.in_flight((60,))

    assert 500 < bytes_each < 8_000


def test_unread_jobs_cost_nothing() -> None:
    """What a batch holds does not grow with its source: jobs are read as they are needed."""
    memory.unread(1_000, read=10)
    few, many = memory.unread(1_000, read=10), memory.unread(5_000, read=10)

    assert many < 1.1 * few


def test_an_ended_job_leaves_little(tmp_path: Path) -> None:
    """What a client remembers of a job that has ended takes less than 2 KB, estimates included."""
    few, many = memory.journaled([200, 300], tmp_path / "jobs.db")

    assert many - few < 100 * 2_000


def test_a_batch_that_reads_all_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same measure tells a source that is a list of so many jobs from one that is not."""

    def listed(jobs: Iterator[Smile], count: int) -> Iterator[Smile]:
        return iter([next(jobs) for _ in range(count)])

    monkeypatch.setattr(memory, "islice", listed)
    few, many = memory.unread(1_000, read=10), memory.unread(5_000, read=10)

    assert many > 1.1 * few


@pytest.mark.parametrize("upload", [pytest.param(False, marks=pytest.mark.long), True])
def test_each_way_does_the_same_calls(upload: bool) -> None:
    """By hand or through the client, the sandbox is asked for the same things."""
    found = loopback.measure(6, upload=upload, at_once=3, rounds=1)
    expected = {"upload": 6, "task": 6} if upload else {"task": 6}

    for name, (once,) in found.items():
        assert 6 == once.jobs, name
        assert once.rate > 0, name
        assert once.cost > 0, name
        assert expected == {kind: once.calls[kind] for kind in expected}, name
        # With few jobs a registration may be for one, and on a slow machine a poll comes early.
        assert 6 <= once.calls["poll"], name
        assert bool(once.calls["file"]) is upload, name


@pytest.mark.parametrize("upload", [False, True])
def test_no_two_pictures_are_equal(upload: bool) -> None:
    """Each job of a round is about another picture: the client uploads equal ones once."""
    assert 600 == len(set(loopback.pictures_of(600, upload=upload)))


def test_the_import_loads_no_extra() -> None:
    """`import perfect_async` loads none of the extras' packages."""
    assert [] == overhead.loaded(overhead.EXTRAS)


def test_the_import_leaves_for_later_what_it_can() -> None:
    """What is needed at the first connection or picture is loaded then."""
    assert [] == overhead.loaded(("httpcore", "imagesize", "xml.etree.ElementTree"))


def test_what_is_loaded_is_seen() -> None:
    """The look at what is loaded finds what is."""
    assert ["anyio", "httpx"] == overhead.loaded(("httpx", "anyio", "rich"))


@pytest.mark.long
def test_imports_are_measured() -> None:
    """Each program takes its time, and the libraries more than nothing."""
    took = overhead.imports(1)

    assert 0 < took["bare"] < took["libraries"]
    assert took["bare"] < took["ours"]


def test_the_verdict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Each target is told with what was measured and whether it is met; the scaling is drawn."""
    costs = [
        decisions.Cost(100, 4.0, 9.0, 0.2, 20.0, 1_000),
        decisions.Cost(10_000, 10.4, 30.0, 0.4, 26.0, 1_000),
    ]
    held = [3_000.0, 9_000.0]
    beside = loopback.Round(100, 1.0, 0.8, Counter(task=100))
    rounds = {
        "by hand": [beside],
        "Client.run": [loopback.Round(100, 1.25, 1.0, Counter(task=100))],
    }
    took = {
        "bare": 0.01,
        "libraries": 0.11,
        "ours": 0.18,
        "libraries, pip": 0.08,
        "ours, pip": 0.15,
    }
    lines = [
        *overhead.decision_lines(costs, held),
        *overhead.round_lines("from URLs", rounds),
        *overhead.import_lines(took),
    ]
    overhead.draw(costs, held, tmp_path / "drawn.png")

    assert [
        ("20.0", True),
        ("2.60", False),
        ("9000", False),
        ("0.80 (0.80 by CPU)", False),
        ("1.70 (1.64 with the interpreter)", True),
        ("2.00 (1.88 with the interpreter)", False),
        ("none", True),
    ] == [(line.measured, line.met) for line in lines]
    assert "10000" in capsys.readouterr().out
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
