"""What the durations, round trips and failed polls seen so far make plausible."""

import math
import random
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfect_async._ratelimit.estimators import (
    DurationEstimator,
    DurationModel,
    LatencyEstimator,
    tail,
)
from perfect_async._time import SECOND
from tests.support.searching import examples

CYCLE = 8_800_000

# Intervals in which tasks ended, and ages at which others were last known to run, in tenths.
ENDS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 90)), min_size=1, max_size=60)
AGES = st.lists(st.integers(0, 900), max_size=30)
COARSE = SECOND // 2


def seen(ends: list[tuple[int, int]], outlasted: list[int] | None = None) -> DurationEstimator:
    made = DurationEstimator()
    for low, width in ends:
        made.ended(low * SECOND // 10, (low + width) * SECOND // 10)
    for low in outlasted or []:
        made.outlasted(low * SECOND // 10)
    return made


def outlook(
    ends: list[tuple[int, int]],
    outlasted: list[int] | None = None,
    running: list[int] | None = None,
) -> DurationModel:
    found = seen(ends, outlasted).outlook([age * SECOND // 10 for age in running or []], CYCLE)
    assert found is not None
    return found


def lasted(*seconds: float) -> list[tuple[int, int]]:
    """Tasks of which the duration is known to the tenth."""
    return [(round(10 * each), 0) for each in seconds]


@given(AGES, AGES)
def test_nothing_is_plausible_before_the_first_end(lost: list[int], running: list[int]) -> None:
    """Tasks that run and tasks that were lost tell no end."""
    assert None is seen([], lost).outlook(running, CYCLE)
    assert None is DurationEstimator((1, 2)).outlook(running, CYCLE)


@given(ENDS, AGES, AGES)
def test_the_horizon_is_beyond_most(
    ends: list[tuple[int, int]], lost: list[int], running: list[int]
) -> None:
    """It is 1.2 times the 95th percentile of what ended at least, and more while few did."""
    highs = sorted((low + width) * SECOND // 10 for low, width in ends)
    q95 = highs[math.ceil(0.95 * len(highs)) - 1]
    horizon = outlook(ends, lost, running).horizon
    assert horizon >= round((1.2 + 1 / math.sqrt(len(ends))) * q95) + CYCLE // 4


@pytest.mark.parametrize(
    ("ends", "horizon"),
    [
        ([8.0], 2.2 * 8 + 2.2),
        ([8.0] * 100, 1.3 * 8 + 2.2),
        ([8.0] * 94 + [20.0] * 6, 1.3 * 20 + 2.2),
        ([8.0] * 96 + [20.0] * 4, 1.3 * 8 + 2.2),
    ],
)
def test_a_horizon(ends: list[float], horizon: float) -> None:
    """(1.2 + 1/sqrt(n)) times the 95th percentile, and a quarter of a cycle."""
    assert round(horizon * SECOND) == outlook(lasted(*ends)).horizon


@given(ENDS, AGES, AGES, st.integers(0, 900))
def test_what_has_not_ended_never_makes_it_shorter(
    ends: list[tuple[int, int]], lost: list[int], running: list[int], age: int
) -> None:
    """A task that was lost, or still runs, is evidence for longer durations or for none."""
    before = outlook(ends, lost, running)
    for after in (outlook(ends, [*lost, age], running), outlook(ends, lost, [*running, age])):
        assert before.horizon <= after.horizon
        for at in range(0, 100 * SECOND, 7 * SECOND):
            assert before._share(at) <= after._share(at) + 1e-9


def test_many_that_run_long_are_believed_before_they_end() -> None:
    """Who counts only ends takes the first short ones for all."""
    ends = lasted(*[8.0] * 20)
    assert 15 * SECOND > outlook(ends).horizon
    assert 100 * SECOND < outlook(ends, running=[900] * 5).horizon
    assert 100 * SECOND < outlook(ends, [900] * 5).horizon


@given(ENDS)
def test_with_ends_only_it_is_the_empirical_share(ends: list[tuple[int, int]]) -> None:
    """Where all have ended the product-limit estimate is the share that lasted longer."""
    found = outlook(ends)
    highs = [(low + width) * SECOND // 10 for low, width in ends]
    for age in {0, *highs, *(high - 1 for high in highs), *(high + 1 for high in highs)}:
        longer = sum(high > age for high in highs) / len(highs)
        assert longer == pytest.approx(found._share(age), abs=1e-9)


def test_the_product_limit_estimate() -> None:
    """A table from a textbook: 6, 6, 6, 7, 10, 13, 16, 22, 23 ended, 12 were lost from sight."""
    ended = [6, 6, 6, 7, 10, 13, 16, 22, 23]
    lost = [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    # Without cycles between polls, as there.
    durations = DurationEstimator()
    for each in ended:
        durations.ended(each * SECOND, each * SECOND)
    found = durations.outlook([each * SECOND for each in lost], 0)
    assert found is not None
    # Freireich and others (1963), the remissions under 6-MP.
    expected = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    assert expected == {age: round(found._share(age * SECOND), 3) for age in expected}
    assert 0.857 == round(found._share(7 * SECOND - 1), 3)
    assert 1.0 == found._share(6 * SECOND - 1)
    # More than a twentieth outlasts all that is known: the longest of it is the quantile.
    assert round((1.2 + 1 / 3) * 35 * SECOND) == found.horizon


def test_who_runs_is_counted_at_the_next_poll() -> None:
    """Those that still run at a poll have not left before those that it saw to have ended."""
    durations = DurationEstimator()
    for _ in range(5):
        durations.ended(0, CYCLE)
    found = durations.outlook([CYCLE - SECOND] * 5, CYCLE)
    assert found is not None
    assert 0.5 == found._share(CYCLE)


@given(ENDS, AGES, AGES)
def test_the_older_the_more_suspicious(
    ends: list[tuple[int, int]], lost: list[int], running: list[int]
) -> None:
    """The chance to outlast the horizon is never nothing, and never falls with age."""
    found = outlook(ends, lost, running)
    chances = [found.outlasts(age) for age in range(0, found.horizon + CYCLE, SECOND)]
    assert all(0.5 / (len(ends) + 1) <= chance <= 1 for chance in chances)
    assert sorted(chances) == chances


def test_the_chance_is_conditional() -> None:
    """Of a hundred that last 5 s and ten that last 100, those of 50 s outlast the horizon."""
    found = outlook(lasted(*[5.0] * 100), running=[500] * 4)
    assert found.outlasts(0) < found.outlasts(6 * SECOND) == found.outlasts(50 * SECOND)
    assert 20 * found.outlasts(0) < found.outlasts(6 * SECOND)


def test_nobody_has_run_so_long() -> None:
    """A task that outlasts all that ended is expected to outlast the horizon."""
    found = outlook(lasted(*[5.0] * 10))
    assert 0.5 / 11 == found.outlasts(0)
    assert 1.0 == found.outlasts(5 * SECOND) == found.outlasts(50 * SECOND)


@given(ENDS, st.integers(0, 90 * SECOND))
def test_ages_are_rounded_up(ends: list[tuple[int, int]], age: int) -> None:
    """An age counts as the next half second, which errs towards long."""
    found = outlook(ends)
    assert found.outlasts(-(-age // COARSE) * COARSE) == found.outlasts(age)


@given(ENDS, st.integers(0, 40 * SECOND), st.integers(0, 40 * SECOND))
def test_what_is_likely_grows(ends: list[tuple[int, int]], age: int, more: int) -> None:
    """With the age, and with the chance, the likely end comes later; it is always ahead."""
    found = outlook(ends)
    chances = [found.likely(age, chance) for chance in (0.2, 0.5, 0.8, 1.0)]
    known = [each for each in chances if each is not None]
    assert len(known) in {0, 4}
    assert sorted(known) == known
    assert all(each > age for each in known)
    later = found.likely(age + more, 0.8)
    assert later is None or later >= known[2]


@given(ENDS)
def test_all_ended_by_the_last(ends: list[tuple[int, int]]) -> None:
    """With certainty a task has ended in the middle of the last interval; none is known later."""
    last = max((low + low + width) * SECOND // 20 for low, width in ends)
    found = outlook(ends)
    assert (last or None) == found.likely(0, 1.0)
    assert None is found.likely(last, 0.5)


def test_what_is_likely() -> None:
    """Eight of ten that may still end have ended by then."""
    found = outlook([(10 * each, 20) for each in range(10)])
    assert 8 * SECOND == found.likely(0, 0.8)
    assert 9 * SECOND == found.likely(5 * SECOND, 0.8)
    assert None is found.likely(10 * SECOND, 0.8)


@given(st.lists(st.booleans(), max_size=1000))
def test_old_durations_are_forgotten(ends: list[bool]) -> None:
    """Of any history the last 400 count, with how many of them ended."""
    made = DurationEstimator()
    for ended in ends:
        if ended:
            made.ended(SECOND, 2 * SECOND)
        else:
            made.outlasted(SECOND)
    assert min(400, len(ends)) == len(made)
    assert sum(ends[-400:]) == made._ended
    assert any(ends[-400:]) == (made.outlook([], CYCLE) is not None)


def test_durations_drift() -> None:
    """What 400 others have followed counts no longer."""
    made = seen(lasted(*[100.0] * 300, *[5.0] * 400))
    found = made.outlook([], CYCLE)
    assert found is not None
    assert round(1.25 * 5 * SECOND) + CYCLE // 4 == found.horizon


def test_what_is_documented_weighs_as_one() -> None:
    """The documented interval moves the first outlook and hardly a later one."""
    made, bare = DurationEstimator((60 * SECOND, 90 * SECOND)), DurationEstimator()
    for durations in (made, bare):
        durations.ended(4 * SECOND, 5 * SECOND)
    first, other = made.outlook([], CYCLE), bare.outlook([], CYCLE)
    assert first is not None
    assert other is not None
    assert round(2.2 * 90 * SECOND) + CYCLE // 4 == first.horizon
    assert round(2.2 * 5 * SECOND) + CYCLE // 4 == other.horizon
    assert 75 * SECOND == first.likely(5 * SECOND, 0.8)
    for _ in range(99):
        made.ended(4 * SECOND, 5 * SECOND)
    later = made.outlook([], CYCLE)
    assert later is not None
    assert round(1.3 * 5 * SECOND) + CYCLE // 4 == later.horizon


# The tail.


def exact(mean: float, r: int) -> Fraction:
    """The chance of more than r by Poisson's distribution, to far more digits than a float has."""
    term = total = Fraction(1)
    for k in range(1, r + 1):
        term *= Fraction(mean) / k
        total += term
    whole, k = total, r
    while term * 10**40 > whole or k < mean:
        k += 1
        term *= Fraction(mean) / k
        whole += term
        term = Fraction(round(term * 2**200), 2**200)
    return 1 - total / whole


@given(st.integers(0, 400), st.sampled_from([1e-2, 1e-3, 1e-4]))
def test_the_tail_is_the_smallest(tenths: int, chance: float) -> None:
    """More than r have less than the chance, and more than r - 1 have not."""
    mean = tenths / 10
    r = tail(mean, chance)
    assert exact(mean, r) < chance
    assert r == 0 or exact(mean, r - 1) >= chance


@pytest.mark.parametrize("mean", [500.0, 500.5, 700.0, 2000.0])
def test_the_tail_of_many(mean: float) -> None:
    """From 500 on the mean on it is five deviations, which is more than enough."""
    logs = [-mean + k * math.log(mean) - math.lgamma(k + 1) for k in range(round(3 * mean))]
    r = tail(mean, 1e-4)
    assert 1e-4 > sum(math.exp(each) for each in logs[r + 1 :])
    assert mean + 3 * math.sqrt(mean) < r <= mean + 5 * math.sqrt(mean) + 1


@given(st.floats(0, 600), st.floats(0, 30), st.sampled_from([1e-2, 1e-3, 1e-4]))
def test_the_tail_grows(mean: float, more: float, chance: float) -> None:
    """More on the mean, or less of a chance, is never a shorter tail."""
    assert tail(mean, chance) <= tail(mean + more, chance)
    assert tail(mean, chance) <= tail(mean, chance / 10)
    assert mean - 1 < tail(mean, chance)


def test_a_few_tails() -> None:
    """Of nothing nothing; of a tenth on the mean, two."""
    assert [0, 2, 5, 10] == [tail(mean, 1e-3) for mean in (0, 0.1, 1, 3)]
    assert all(a < b for a, b in pairwise(tail(mean, 1e-4) for mean in range(0, 50, 5)))


@given(ENDS, AGES, AGES)
def test_the_estimate_step_by_step(
    ends: list[tuple[int, int]], lost: list[int], running: list[int]
) -> None:
    """At each age at which some ended, the share that stays is of those that were there till then;
    the quantile is the first age that a twentieth outlasts at most.
    """
    found = outlook(ends, lost, running)
    highs = sorted((low + width) * SECOND // 10 for low, width in ends)
    exits = highs + [age * SECOND // 10 + CYCLE for age in (*lost, *running)]
    share, quantile = Fraction(1), max(exits)
    for age in sorted(set(highs)):
        there = sum(one >= age for one in exits)
        before, share = share, share * (1 - Fraction(highs.count(age), there))
        assert float(share) == pytest.approx(found._share(age), abs=1e-9)
        if before > Fraction(1, 20) >= share:
            quantile = age
    # Floats may take a share of just a twentieth for more.
    expected = round((1.2 + 1 / math.sqrt(len(ends))) * quantile) + CYCLE // 4
    assert expected <= found.horizon


# Latency.


def test_before_anything_is_seen() -> None:
    """A network that nobody knows is taken for a fair one."""
    network = LatencyEstimator()
    assert 3 == network.tries
    assert 600_000 == network.patience
    assert 300_000 == network.jitter


@pytest.mark.parametrize(
    ("took", "patience", "jitter"),
    [(1_000, 300_000, 150_000), (150_000, 450_000, 225_000), (9 * SECOND, 2 * SECOND, SECOND)],
)
def test_patience_follows_the_round_trips(took: int, patience: int, jitter: int) -> None:
    """Patience is three times the 95th percentile and jitter half as much, both inside bounds."""
    network = LatencyEstimator()
    for _ in range(100):
        network.answered(took)
    assert patience == network.patience
    assert jitter == network.jitter


@given(st.lists(st.integers(0, 60 * SECOND), max_size=600))
def test_a_twentieth_may_be_slow(times: list[int]) -> None:
    """Whatever the round trips are, patience and jitter stay inside their bounds."""
    network = LatencyEstimator()
    for took in times:
        network.answered(took)
    assert 300_000 <= network.patience <= 2 * SECOND
    assert 150_000 <= network.jitter <= SECOND


@given(st.integers(25, 60), st.integers(0, 2**32))
def test_old_round_trips_are_forgotten(sixteens: int, seed: int) -> None:
    """Patience and jitter are those of the last 400 round trips, whatever came before."""
    rng, times = random.Random(seed), list[int]()
    network = LatencyEstimator()
    for _ in range(16 * sixteens):
        times.append(rng.randint(100, 700) * 1_000)
        network.answered(times[-1])
    last = sorted(times[-400:])
    late = min(last[379] * 3 // 2, last[395])
    assert min(3 * last[379], 2 * SECOND) == network.patience
    assert min(max(late, 150_000), SECOND) == network.jitter


@pytest.mark.parametrize(
    ("clean", "failed", "tries"), [(200, 0, 2), (100, 3, 4), (0, 50, 6), (400, 400, 6)]
)
def test_tries_follow_the_failures(clean: int, failed: int, tries: int) -> None:
    """The lease holds as many tries as the share of failures asks for, from 2 to 6."""
    network = LatencyEstimator()
    for lost in [False] * clean + [True] * failed:
        network.polled(failed=lost)
    assert tries == network.tries


@given(st.lists(st.booleans(), max_size=1000))
def test_old_polls_are_forgotten(polls: list[bool]) -> None:
    """Only the last 400 polls count."""
    network = LatencyEstimator()
    for failed in polls:
        network.polled(failed=failed)
    last = polls[-400:]
    assert (sum(last) + 0.08) / (len(last) + 20) == network.failing


def test_a_few_slow_answers_are_no_jitter() -> None:
    """With a hundred round trips known jitter is their 99th percentile, where that is less."""
    for slow, jitter in ((250_000, 250_000), (900_000, 300_000)):
        network = LatencyEstimator()
        for took in [200_000] * 108 + [slow] * 4:
            network.answered(took)
        assert jitter == network.jitter


def test_before_a_hundred_are_known() -> None:
    """With fewer round trips jitter is the 95th percentile and half as much again."""
    network = LatencyEstimator()
    for _ in range(96):
        network.answered(200_000)
    assert 300_000 == network.jitter
    for _ in range(16):
        network.answered(200_000)
    assert 200_000 == network.jitter


@settings(max_examples=examples(30))
@given(st.lists(st.integers(150_000, SECOND), min_size=300, max_size=500))
def test_jitter_is_beyond_most(times: list[int]) -> None:
    """Of the last 400, looked at every sixteenth time, 95 of 100 arrive within it."""
    network = LatencyEstimator()
    for took in times:
        network.answered(took)
    looked = times[: len(times) // 16 * 16][-400:]
    assert sum(took <= network.jitter for took in looked) >= 0.95 * len(looked)
    assert network.jitter <= max(looked)


@given(st.lists(st.integers(50_000, 900_000), min_size=1, max_size=40), st.integers(1, 60))
def test_only_the_last_round_trips_count(times: list[int], again: int) -> None:
    """Patience and jitter are those of the last 400 round trips when they were looked at."""
    network, told = LatencyEstimator(), times * again
    for took in told:
        network.answered(took)
    looked = len(told) if len(told) <= 20 else max(20, len(told) // 16 * 16)
    last = sorted(told[:looked][-400:])
    p95 = last[math.ceil(0.95 * len(last)) - 1]
    p99 = last[math.ceil(0.99 * len(last)) - 1] if len(last) >= 100 else p95 * 2
    assert min(max(3 * p95, 300_000), 2 * SECOND) == network.patience
    assert min(max(min(p95 * 3 // 2, p99), 150_000), SECOND) == network.jitter
