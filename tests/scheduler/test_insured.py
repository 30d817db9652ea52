"""The insured time holds in the model of the vendor, and observed durations make batches faster."""

import random
from functools import cache
from statistics import mean

import pytest

from benchmarks.loads import (
    FOOLING,
    Load,
    Slowdown,
    drifting,
    first_long,
    lognormal,
    mixed,
    slowing,
    stuck,
)
from benchmarks.model import Outcome, Vendor, simulate
from perfect_async.models import Limits, Polling

SECOND = 1_000_000
SMILES = lognormal(50, 8, 0.35)
SEEN = lognormal(60, 8, 0.35)

# The shapes of FOOLING, each with fewer tasks.
FEW = (
    Load("5 x slower", drifting(100, 8, 0.35, 5)),
    Load("the first of 90-120 s", first_long(60, 15, (90, 120), 8, 0.35)),
    Load("smiles, at once 120 s", lognormal(40, 8, 0.35), slowing(40, 120)),
    Load("15-40 s, at once 120 s", mixed(40, (1, 15, 40)), slowing(90, 120)),
    Load("avatars, at once 120 s", lognormal(25, 60, 0.2), slowing(120, 120)),
)


@cache
def warm(
    seed: int, count: int = 50, *, slowdown: Slowdown | None = None, polling: Polling | None = None
) -> Outcome:
    """Run so many smiles after sixty others."""
    rng = random.Random(seed)
    known = SEEN(rng)
    durations = lognormal(count, 8, 0.35)(rng)
    return simulate(durations, seed=seed, known=known, slowdown=slowdown, polling=polling)


@cache
def cold(seed: int, polling: Polling | None = None) -> Outcome:
    rng = random.Random(seed)
    SEEN(rng)
    return simulate(SMILES(rng), seed=seed, polling=polling)


# Nothing is lost.


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
@pytest.mark.parametrize("load", FEW, ids=lambda load: load.name)
def test_no_loss_within_insured(load: Load, seed: int) -> None:
    """No task is lost and no request refused, whatever the durations are up to `insured`."""
    rng = random.Random(seed)
    durations = load.durations(rng)
    slowdown = load.slowdown(rng) if load.slowdown else None

    outcome = simulate(durations, seed=seed, slowdown=slowdown)

    assert (len(durations), 0, 0) == (outcome.done, outcome.lost, outcome.refused)


@pytest.mark.parametrize(("at", "seed"), [(4.0, 1), (15.0, 1), (15.0, 2)])
def test_a_slowdown_up_to_insured(at: float, seed: int) -> None:
    """After sixty smiles of 8 s, thirty that last 120 s are all kept."""
    outcome = warm(seed, 30, slowdown=Slowdown(at, 120))

    assert (0, 0) == (outcome.lost, outcome.refused)
    assert 120 < outcome.makespan


@pytest.mark.parametrize(
    ("lasts", "seed"),
    [
        (300, 1),
        pytest.param(300, 2, marks=pytest.mark.long),
        pytest.param(600, 1, marks=pytest.mark.long),
    ],
)
def test_insured_for_longer(lasts: int, seed: int) -> None:
    """With 600 s insured no task is lost if all last that long."""
    slowdown = Slowdown(15, lasts)

    outcome = warm(seed, 15, slowdown=slowdown, polling=Polling(insured=600))

    assert (0, 0) == (outcome.lost, outcome.refused)
    assert lasts < outcome.makespan


def test_a_slowdown_beyond_insured_loses_tasks() -> None:
    """The model does lose tasks that last far longer than `insured`."""
    outcome = warm(1, 30, slowdown=Slowdown(15, 600), polling=Polling(insured=20))

    assert 0 < outcome.lost < 20
    # 60 were known before.
    assert 90 == outcome.done + outcome.lost


# It pays.


def test_observed_durations_make_fifty_smiles_faster() -> None:
    """Strict takes at least 1.5 times as long as the default after sixty smiles; 30 s insured is
    faster still.
    """
    seeds, strict = (0, 1, 2), Polling(insured=600)
    unbelieving = [cold(seed, strict) for seed in seeds]
    believing = [warm(seed) for seed in seeds]
    bold = [warm(seed, polling=Polling(insured=30)) for seed in seeds]

    for outcome in [*unbelieving, *believing, *bold]:
        assert (0, 0) == (outcome.lost, outcome.refused)
    times = [mean(each.makespan for each in some) for some in (unbelieving, believing, bold)]
    assert times[0] >= 1.5 * times[1]
    assert times[1] >= 1.1 * times[2]


def test_the_first_ends_are_enough() -> None:
    """A cold start is hardly slower, since the first ends are enough."""
    seeds = (0, 1, 2)
    before = mean(cold(seed).ratio for seed in seeds)
    known = mean(warm(seed).ratio for seed in seeds)

    assert before <= 1.3 * known
    assert 1.4 * before <= mean(cold(seed, Polling(insured=600)).ratio for seed in seeds)


# The model itself.


def test_a_slowdown_in_the_model() -> None:
    """In a slowdown running tasks last as long as those created afterwards."""
    vendor = Vendor(Limits(), random.Random(1))
    vendor.tasks = {1: (0, 8 * SECOND), 2: (5 * SECOND, 15 * SECOND), 3: (30 * SECOND, 31 * SECOND)}

    assert [8, 15, 31] == [vendor.ends(ref) // SECOND for ref in (1, 2, 3)]
    vendor.slowdown = Slowdown(10, 120)
    assert [8, 125, 150] == [vendor.ends(ref) // SECOND for ref in (1, 2, 3)]


def test_slowing_down_at_a_random_moment() -> None:
    """The moment is random up to the latest one; the new duration is given."""
    slowdowns = [slowing(90, 120)(random.Random(seed)) for seed in range(20)]

    assert {120} == {slowdown.lasts for slowdown in slowdowns}
    assert all(0 <= slowdown.at <= 90 for slowdown in slowdowns)
    assert 20 == len({slowdown.at for slowdown in slowdowns})


def test_drifting_durations() -> None:
    """The median grows evenly from the first value by the factor."""
    durations = drifting(100, 8, 0.0, 5)(random.Random(1))

    assert 8 == pytest.approx(durations[0])
    assert 8 * 5**0.5 == pytest.approx(durations[50])
    assert 40 == pytest.approx(durations[-1], rel=0.02)
    assert sorted(durations) == durations


def test_the_first_tasks_are_long() -> None:
    """The first tasks have the given duration, and then others follow."""
    durations = first_long(60, 15, (90, 120), 8, 0.35)(random.Random(1))

    assert 60 == len(durations)
    assert all(90 <= duration <= 120 for duration in durations[:15])
    assert all(duration < 40 for duration in durations[15:])


@pytest.mark.parametrize("load", FOOLING, ids=lambda load: load.name)
def test_loads_are_reproducible(load: Load) -> None:
    """Each load is the same for the same seed, and has the size in its name."""
    once, again, other = (load.durations(random.Random(seed)) for seed in (1, 1, 2))

    assert int(load.name.split()[0].rstrip(",")) == len(once)
    assert once == again != other
    assert ("at once" in load.name) == (load.slowdown is not None)


def test_the_warm_up_does_not_count() -> None:
    """Time and bound are those of the load alone, in an empty window."""
    outcome = simulate([8.0], known=[8.0] * 5)

    assert 6 == outcome.done
    assert 8.0 == outcome.bound
    assert 8 < outcome.makespan < 20
    assert 3 <= outcome.requests < sum(outcome.kinds.values()) // 2


@pytest.mark.parametrize(
    "seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)]
)
def test_nothing_is_refused_beside_stuck_tasks(seed: int) -> None:
    """Neither limit is exceeded if a few of sixty smiles hang for 600 s."""
    outcome = simulate(stuck(60, 8, 0.35, 0.08, 600)(random.Random(seed)), seed=seed)

    assert 0 == outcome.refused
