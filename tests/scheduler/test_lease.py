"""What the lease changes: the longer it is, the fewer polls keep tasks alive."""

import random
from functools import cache
from itertools import pairwise
from statistics import median

import pytest

import benchmarks.model
from benchmarks.loads import AVATAR, Load, lognormal
from perfect_async.errors import ConfigurationError
from perfect_async.models import Limits, Polling
from perfect_async.scheduler import Scheduler

SECOND = 1_000_000
LEASES = (10, 20, 30, 45, 60, 120, 300, 600)
LOADS = {
    load.name: load
    for load in (
        Load("50 smiles", lognormal(50, 8, 0.35)),
        Load("100 smiles", lognormal(100, 8, 0.35)),
        Load("300 smiles", lognormal(300, 8, 0.35)),
        Load("40 avatars", lognormal(40, 60, 0.4), job=AVATAR),
        Load("100 avatars", lognormal(100, 60, 0.4), job=AVATAR),
    )
}


@cache
def takes(name: str, lease: int, seeds: int) -> float:
    """Seconds that a batch usually takes; asserts that nothing was lost or refused.

    It is the median, since a few seeds take up to twice the time: their last tasks have ended long
    before they are polled.
    """
    load, patch = LOADS[name], pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(benchmarks.model, "LEASE", lease * SECOND)
        outcomes = [
            benchmarks.model.simulate(
                load.durations(random.Random(seed)),
                seed=seed,
                job=load.job,
                polling=Polling(lease=lease),
            )
            for seed in range(seeds)
        ]
    assert [(0, 0)] * seeds == [(outcome.lost, outcome.refused) for outcome in outcomes]
    return median(outcome.makespan for outcome in outcomes)


@pytest.mark.parametrize(
    ("name", "leases"),
    [
        ("50 smiles", (10, 120, 600)),
        ("300 smiles", (120, 600)),
        ("40 avatars", (20, 120, 600)),
        ("100 avatars", (120, 300, 600)),
    ],
)
def test_a_much_longer_lease_is_not_slower(name: str, leases: tuple[int, ...]) -> None:
    """Early polls find ends where the polls that keep tasks alive are rare."""
    times = [takes(name, lease, 1) for lease in leases]
    for shorter, longer in pairwise(times):
        assert longer <= 1.03 * shorter + 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "seeds", "shorter", "longer"),
    [
        (name, seeds, *pair)
        for name, seeds, leases in (
            ("50 smiles", 10, LEASES),
            ("100 smiles", 10, LEASES),
            # These take the most time to simulate, so their grids are coarser.
            ("300 smiles", 3, (10, 20, 30, 60, 120, 300, 600)),
            ("40 avatars", 10, (10, 20, 45, 120, 600)),
            ("100 avatars", 3, (20, 60, 120, 300, 600)),
        )
        for pair in pairwise(leases)
    ],
)
def test_no_longer_lease_is_slower(name: str, seeds: int, shorter: int, longer: int) -> None:
    """The same for each lease of a grid."""
    assert takes(name, longer, seeds) <= 1.03 * takes(name, shorter, seeds) + 1


@pytest.mark.parametrize("lease", LEASES)
def test_a_lone_job_is_created_in_a_small_window(
    monkeypatch: pytest.MonkeyPatch, lease: int
) -> None:
    """It ends under all limits that are accepted, however few requests they allow."""
    monkeypatch.setattr(benchmarks.model, "LEASE", lease * SECOND)
    accepted, polling = 0, Polling(lease=lease)
    for requests in (*range(3, 21), 40):
        limits = Limits(requests)
        try:
            Scheduler(limits, polling)
        except ConfigurationError:
            continue
        accepted += 1
        outcome = benchmarks.model.simulate([8.0], limits=limits, polling=polling, until=1000)
        assert (True, 1) == (outcome.ended, outcome.done), limits
    assert accepted
