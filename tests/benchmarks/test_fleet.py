"""The benchmark of several processes: it measures what its table says."""

from pathlib import Path

import attrs
import pytest

from benchmarks import fleet
from benchmarks.fleet import FAULTS, LOADS, Row, draw, one, with_fault


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_sharing_costs_next_to_nothing(processes: int) -> None:
    """Processes that share the key take hardly longer than one, and nothing is lost or refused."""
    alone, found = one((0, "shared", 1, 0)), one((0, "shared", processes, 0))

    assert alone is not None
    assert found is not None
    assert 400 == found.done
    assert (0, 0, 0) == (found.lost, found.refused, found.twice)
    assert found.makespan <= 1.05 * alone.makespan


@pytest.mark.long
def test_processes_that_do_not_share_lose_tasks() -> None:
    """The model of the vendor shows what the table compares with."""
    found = one((0, "apart", 4, 0))

    assert found is not None
    assert found.refused
    assert found.lost


def test_eight_shares_cannot_be() -> None:
    """A share of less than one request a second is no row."""
    assert None is one((0, "split", 8, 0))


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_by_a_fault(name: str) -> None:
    """Each fault of the second table costs time, and no task."""
    found = with_fault((name, 0))

    assert 0 == found.lost
    assert found.refused <= 1


def test_the_plot_has_a_line_for_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The drawing is a PNG, also where shares cannot be."""
    monkeypatch.setattr(fleet, "FAULTY", attrs.evolve(fleet.FAULTY, count=10))
    found = with_fault(("nothing", 0))
    row = Row("a row", 200, [found], [found])
    ways: list[tuple[str, int, Row | None]] = [(way, 1, row) for way in fleet.WAYS]
    rows = {LOADS[0].name: [*ways, ("split", 8, None)]}

    draw(rows, tmp_path / "fleet.png")

    assert "1.000" in str(row)
    assert b"\x89PNG" == (tmp_path / "fleet.png").read_bytes()[:4]
