"""What is insured holds, against the model of the vendor; and believing what was seen pays."""

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
    """So many smiles for who has seen sixty."""
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
def test_who_believes_the_durations_is_not_fooled(load: Load, seed: int) -> None:
    """Whatever durations do up to what is insured, nothing is lost and nothing refused."""
    rng = random.Random(seed)
    durations = load.durations(rng)
    slowdown = load.slowdown(rng) if load.slowdown else None

    outcome = simulate(durations, seed=seed, slowdown=slowdown)

    assert (len(durations), 0, 0) == (outcome.done, outcome.lost, outcome.refused)


@pytest.mark.parametrize(("at", "seed"), [(4.0, 1), (15.0, 1), (15.0, 2)])
def test_all_slow_down_to_what_is_insured(at: float, seed: int) -> None:
    """Thirty smiles that last 120 s instead, for who has seen sixty of 8 s, are all kept."""
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
    """Who insures 600 s loses nothing when everything lasts so long."""
    slowdown = Slowdown(15, lasts)

    outcome = warm(seed, 15, slowdown=slowdown, polling=Polling(insured=600))

    assert (0, 0) == (outcome.lost, outcome.refused)
    assert lasts < outcome.makespan


def test_what_is_not_insured_is_at_stake() -> None:
    """The model does lose: what lasts far longer than is insured finds no room in the window."""
    outcome = warm(1, 30, slowdown=Slowdown(15, 600), polling=Polling(insured=20))

    assert 0 < outcome.lost < 20
    # 60 were known before.
    assert 90 == outcome.done + outcome.lost


# It pays.


def test_what_was_seen_makes_fifty_smiles_faster() -> None:
    """Fifty smiles: strict takes 1.5 times as long as believing sixty at least; 30 s are faster
    still.
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
    """Who has seen nothing believes after the first ends, and is hardly slower."""
    seeds = (0, 1, 2)
    before = mean(cold(seed).ratio for seed in seeds)
    known = mean(warm(seed).ratio for seed in seeds)

    assert before <= 1.3 * known
    assert 1.4 * before <= mean(cold(seed, Polling(insured=600)).ratio for seed in seeds)


# The model itself.


def test_a_slowdown_in_the_model() -> None:
    """What still runs when everything slows down lasts as long as all that begins afterwards."""
    vendor = Vendor(Limits(), random.Random(1))
    vendor.tasks = {1: (0, 8 * SECOND), 2: (5 * SECOND, 15 * SECOND), 3: (30 * SECOND, 31 * SECOND)}

    assert [8, 15, 31] == [vendor.ends(ref) // SECOND for ref in (1, 2, 3)]
    vendor.slowdown = Slowdown(10, 120)
    assert [8, 125, 150] == [vendor.ends(ref) // SECOND for ref in (1, 2, 3)]


def test_slowing_down_at_a_random_moment() -> None:
    """The moment is drawn up to the latest one, how long tasks last then is given."""
    slowdowns = [slowing(90, 120)(random.Random(seed)) for seed in range(20)]

    assert {120} == {slowdown.lasts for slowdown in slowdowns}
    assert all(0 <= slowdown.at <= 90 for slowdown in slowdowns)
    assert 20 == len({slowdown.at for slowdown in slowdowns})


def test_drifting_durations() -> None:
    """The median grows evenly from the first to the factor."""
    durations = drifting(100, 8, 0.0, 5)(random.Random(1))

    assert 8 == pytest.approx(durations[0])
    assert 8 * 5**0.5 == pytest.approx(durations[50])
    assert 40 == pytest.approx(durations[-1], rel=0.02)
    assert sorted(durations) == durations


def test_the_first_long() -> None:
    """The first ones last as long as they are given, then come the others."""
    durations = first_long(60, 15, (90, 120), 8, 0.35)(random.Random(1))

    assert 60 == len(durations)
    assert all(90 <= duration <= 120 for duration in durations[:15])
    assert all(duration < 40 for duration in durations[15:])


@pytest.mark.parametrize("load", FOOLING, ids=lambda load: load.name)
def test_the_loads_are_what_their_names_say(load: Load) -> None:
    """Each draws the same from the same seed, and as many as it is called after."""
    once, again, other = (load.durations(random.Random(seed)) for seed in (1, 1, 2))

    assert int(load.name.split()[0].rstrip(",")) == len(once)
    assert once == again != other
    assert ("at once" in load.name) == (load.slowdown is not None)


def test_what_was_known_does_not_count() -> None:
    """Time and bound are those of the load alone, in an empty window; what was done is all."""
    outcome = simulate([8.0], known=[8.0] * 5)

    assert 6 == outcome.done
    assert 8.0 == outcome.bound
    assert 8 < outcome.makespan < 20
    assert 3 <= outcome.requests < sum(outcome.kinds.values()) // 2


@pytest.mark.parametrize(
    "seed", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)]
)
def test_nothing_is_refused_beside_stuck_tasks(seed: int) -> None:
    """Where a few of sixty smiles hang for 600 s neither limit is overdrawn."""
    outcome = simulate(stuck(60, 8, 0.35, 0.08, 600)(random.Random(seed)), seed=seed)

    assert 0 == outcome.refused
