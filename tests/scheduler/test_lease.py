"""How long a batch takes by the lease: the longer it is, the fewer polls keep tasks alive."""

import random
from itertools import pairwise
from statistics import mean

import pytest

import benchmarks.model
from benchmarks.loads import lognormal
from perfect_async.models import Polling
from perfect_async.scheduler._pacer import _RARE

SECOND = 1_000_000


def takes(lease: float, count: int, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(benchmarks.model, "LEASE", round(lease * SECOND))
    smiles = lognormal(count, 8, 0.35)
    outcomes = [
        benchmarks.model.simulate(
            smiles(random.Random(seed)), seed=seed, polling=Polling(lease=lease)
        )
        for seed in range(3)
    ]
    assert [(0, 0)] * 3 == [(outcome.lost, outcome.refused) for outcome in outcomes]
    return mean(outcome.makespan for outcome in outcomes)


@pytest.mark.parametrize("count", [50, 100])
def test_a_longer_lease_is_never_slower(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the lease, ends are asked for early where polls to keep tasks alive are rare."""
    times = [takes(lease, count, monkeypatch) for lease in (10, 20, 30, 45, 60, 120, 300, 600)]
    for shorter, longer in pairwise(times):
        assert longer <= shorter + 1


def test_first_ends_are_asked_for_only_under_long_leases() -> None:
    """Under the assumed lease the reserved polls come as soon as such a poll would."""
    assert _RARE > 10 * SECOND
