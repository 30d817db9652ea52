"""The benchmark of webhooks: every way runs."""

from pathlib import Path

import attrs
import pytest

from benchmarks.webhooks import LOADS, WAYS, Load, Row, Run, Way, draw, measure
from tests.support.virtual_time import run


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_way_runs(way: Way, load: Load) -> None:
    """Six pictures: each is done, none is lost or refused, and the fewest requests are counted."""
    found = run(measure, way, load, 6, 3)

    assert (6, 6, 0, 0) == (found.pictures, found.done, found.lost, found.refused)
    # A registration, six creations, and each end is asked for.
    assert found.requests >= 13
    if way.name == "webhook":
        assert 13 == found.requests
    assert 0 <= found.waits[0] <= found.waits[1]


def test_a_seed_fixes_the_durations() -> None:
    """The same seed is the same run, and another one is another."""
    runs = [run(measure, WAYS[-1], LOADS[0], 6, seed) for seed in (1, 1, 2)]

    assert runs[0] == runs[1] != runs[2]


def test_a_row_says_what_was_measured() -> None:
    """Means of its runs."""
    first = Run(50, 50, 0, 0, 125, 1800.0, (0.1, 4.0))
    second = attrs.evolve(first, done=40, lost=10, requests=140, waits=(0.3, 8.0))

    assert ["both", "45", "5", "0", "3.00", "90", "0.2", "s", "6.0", "s"] == str(
        Row("both", (first, second))
    ).split()


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    """One picture for all loads."""
    runs = (Run(50, 50, 0, 0, 125, 1800.0, (0.1, 4.0)),)
    found = [(load, [Row(way.name, runs) for way in WAYS]) for load in LOADS]

    draw(found, tmp_path / "new" / "webhooks.png")

    assert (tmp_path / "new" / "webhooks.png").read_bytes().startswith(b"\x89PNG")
