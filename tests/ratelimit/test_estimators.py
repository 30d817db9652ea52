"""The estimates from observed durations, round trips and failed polls."""

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
    """Return an estimator with tasks whose durations are known to a tenth of a second."""
    return [(round(10 * each), 0) for each in seconds]


@given(AGES, AGES)
def test_no_model_before_the_first_end(lost: list[int], running: list[int]) -> None:
    """Running and lost tasks give no model before the first end."""
    assert None is seen([], lost).outlook(running, CYCLE)
    assert None is DurationEstimator((1, 2)).outlook(running, CYCLE)


@given(ENDS, AGES, AGES)
def test_the_horizon_is_beyond_most(
    ends: list[tuple[int, int]], lost: list[int], running: list[int]
) -> None:
    """The horizon is at least 1.2 times the 95th percentile, and more while few ends are known."""
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
    """The horizon is (1.2 + 1/sqrt(n)) times the 95th percentile, and a quarter of a cycle."""
    assert round(horizon * SECOND) == outlook(lasted(*ends)).horizon


@given(ENDS, AGES, AGES, st.integers(0, 900))
def test_tasks_without_an_end_never_shorten_the_horizon(
    ends: list[tuple[int, int]], lost: list[int], running: list[int], age: int
) -> None:
    """A lost or running task never makes the horizon shorter."""
    before = outlook(ends, lost, running)
    for after in (outlook(ends, [*lost, age], running), outlook(ends, lost, [*running, age])):
        assert before.horizon <= after.horizon
        for at in range(0, 100 * SECOND, 7 * SECOND):
            assert before._share(at) <= after._share(at) + 1e-9


def test_long_running_tasks_lengthen_the_horizon_before_they_end() -> None:
    """Long running tasks count before they end, so the first short ends do not represent all."""
    ends = lasted(*[8.0] * 20)
    assert 15 * SECOND > outlook(ends).horizon
    assert 100 * SECOND < outlook(ends, running=[900] * 5).horizon
    assert 100 * SECOND < outlook(ends, [900] * 5).horizon


@given(ENDS)
def test_with_ends_only_the_estimate_is_the_empirical_share(ends: list[tuple[int, int]]) -> None:
    """If all tasks have ended, the product-limit estimate is the share that lasted longer."""
    found = outlook(ends)
    highs = [(low + width) * SECOND // 10 for low, width in ends]
    for age in {0, *highs, *(high - 1 for high in highs), *(high + 1 for high in highs)}:
        longer = sum(high > age for high in highs) / len(highs)
        assert longer == pytest.approx(found._share(age), abs=1e-9)


def test_the_product_limit_estimate() -> None:
    """The estimate agrees with a textbook: 6, 6, 6, 7, 10, 13, 16, 22, 23 ended; 12 censored."""
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


def test_running_tasks_count_at_their_next_poll() -> None:
    """A task that runs at a poll is still at risk when ends found at that poll are counted."""
    durations = DurationEstimator()
    for _ in range(5):
        durations.ended(0, CYCLE)
    found = durations.outlook([CYCLE - SECOND] * 5, CYCLE)
    assert found is not None
    assert 0.5 == found._share(CYCLE)


@given(ENDS, AGES, AGES)
def test_older_tasks_are_more_likely_to_outlast_the_horizon(
    ends: list[tuple[int, int]], lost: list[int], running: list[int]
) -> None:
    """The probability to outlast the horizon is above 0 and never falls with age."""
    found = outlook(ends, lost, running)
    chances = [found.outlasts(age) for age in range(0, found.horizon + CYCLE, SECOND)]
    assert all(0.5 / (len(ends) + 1) <= chance <= 1 for chance in chances)
    assert sorted(chances) == chances


def test_the_chance_is_conditional() -> None:
    """Of a hundred tasks of 5 s and ten of 100 s, those that reach 50 s outlast the horizon."""
    found = outlook(lasted(*[5.0] * 100), running=[500] * 4)
    assert found.outlasts(0) < found.outlasts(6 * SECOND) == found.outlasts(50 * SECOND)
    assert 20 * found.outlasts(0) < found.outlasts(6 * SECOND)


def test_a_task_older_than_all_ends_outlasts_the_horizon() -> None:
    """A task that is older than all observed ends is expected to outlast the horizon."""
    found = outlook(lasted(*[5.0] * 10))
    assert 0.5 / 11 == found.outlasts(0)
    assert 1.0 == found.outlasts(5 * SECOND) == found.outlasts(50 * SECOND)


@given(ENDS, st.integers(0, 90 * SECOND))
def test_ages_are_rounded_up(ends: list[tuple[int, int]], age: int) -> None:
    """An age counts as the next half second, which errs towards long durations."""
    found = outlook(ends)
    assert found.outlasts(-(-age // COARSE) * COARSE) == found.outlasts(age)


@given(ENDS, st.integers(0, 40 * SECOND), st.integers(0, 40 * SECOND))
def test_the_likely_end_grows(ends: list[tuple[int, int]], age: int, more: int) -> None:
    """The likely end is later for a higher age and probability, and always ahead."""
    found = outlook(ends)
    chances = [found.likely(age, chance) for chance in (0.2, 0.5, 0.8, 1.0)]
    known = [each for each in chances if each is not None]
    assert len(known) in {0, 4}
    assert sorted(known) == known
    assert all(each > age for each in known)
    later = found.likely(age + more, 0.8)
    assert later is None or later >= known[2]


@given(ENDS)
def test_the_certain_end_is_in_the_last_interval(ends: list[tuple[int, int]]) -> None:
    """With probability 1 a task has ended by the middle of the last interval; no later end is
    known.
    """
    last = max((low + low + width) * SECOND // 20 for low, width in ends)
    found = outlook(ends)
    assert (last or None) == found.likely(0, 1.0)
    assert None is found.likely(last, 0.5)


def test_the_likely_end() -> None:
    """Eight of ten tasks that still run have ended by the likely end."""
    found = outlook([(10 * each, 20) for each in range(10)])
    assert 8 * SECOND == found.likely(0, 0.8)
    assert 9 * SECOND == found.likely(5 * SECOND, 0.8)
    assert None is found.likely(10 * SECOND, 0.8)


@given(ENDS, AGES, AGES, st.integers(0, 400))
def test_the_likely_end_where_polls_are_rare(
    ends: list[tuple[int, int]], lost: list[int], running: list[int], age: int
) -> None:
    """It is the first middle of an end that a fifth of the tasks alive at the age outlasts, by the
    estimate that counts other tasks until they were last seen running.
    """
    age, last = age * SECOND // 10, [each * SECOND // 10 for each in (*lost, *running)]
    middles = sorted((low + low + width) * SECOND // 20 for low, width in ends)
    share, here, expected = Fraction(1), Fraction(1), None
    for middle in sorted(set(middles)):
        at_risk = sum(each >= middle for each in (*middles, *last))
        share *= 1 - Fraction(middles.count(middle), at_risk)
        if middle <= age:
            here = share
        elif share <= here / 5 and expected is None:
            expected = middle
    found = seen(ends, lost).outlook([each * SECOND // 10 for each in running], CYCLE, rare=True)
    assert found is not None
    assert expected == found.likely(age, 0.8)


@given(st.lists(st.booleans(), max_size=1000))
def test_old_durations_are_forgotten(ends: list[bool]) -> None:
    """The last 400 durations count, and so do the ends among them."""
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
    """A duration no longer counts after 400 others."""
    made = seen(lasted(*[100.0] * 300, *[5.0] * 400))
    found = made.outlook([], CYCLE)
    assert found is not None
    assert round(1.25 * 5 * SECOND) + CYCLE // 4 == found.horizon


def test_the_documented_interval_counts_as_one_task() -> None:
    """The documented interval changes the first model and hardly any later one."""
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
    """Return the probability of more than r events by Poisson's distribution with many digits."""
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
    """More than r events are rarer than the chance, and more than r - 1 are not."""
    mean = tenths / 10
    r = tail(mean, chance)
    assert exact(mean, r) < chance
    assert r == 0 or exact(mean, r - 1) >= chance


@pytest.mark.parametrize("mean", [500.0, 500.5, 700.0, 2000.0])
def test_the_tail_of_many(mean: float) -> None:
    """From a mean of 500 on the tail is five deviations, which is more than enough."""
    logs = [-mean + k * math.log(mean) - math.lgamma(k + 1) for k in range(round(3 * mean))]
    r = tail(mean, 1e-4)
    assert 1e-4 > sum(math.exp(each) for each in logs[r + 1 :])
    assert mean + 3 * math.sqrt(mean) < r <= mean + 5 * math.sqrt(mean) + 1


@given(st.floats(0, 600), st.floats(0, 30), st.sampled_from([1e-2, 1e-3, 1e-4]))
def test_the_tail_grows(mean: float, more: float, chance: float) -> None:
    """The tail never shrinks for a higher mean or a lower probability."""
    assert tail(mean, chance) <= tail(mean + more, chance)
    assert tail(mean, chance) <= tail(mean, chance / 10)
    assert mean - 1 < tail(mean, chance)


def test_a_few_tails() -> None:
    """The tail of a mean of 0 is 0; that of a tenth is 2."""
    assert [0, 2, 5, 10] == [tail(mean, 1e-3) for mean in (0, 0.1, 1, 3)]
    assert all(a < b for a, b in pairwise(tail(mean, 1e-4) for mean in range(0, 50, 5)))


@given(ENDS, AGES, AGES)
def test_the_estimate_step_by_step(
    ends: list[tuple[int, int]], lost: list[int], running: list[int]
) -> None:
    """At each age with ends, the remaining share is that of the tasks still at risk; the quantile
    is the first age that at most a twentieth outlasts.
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


def test_the_initial_assumptions() -> None:
    """Before any answer the network is assumed to be fair."""
    network = LatencyEstimator()
    assert 3 == network.tries
    assert 600_000 == network.patience
    assert 300_000 == network.jitter


@pytest.mark.parametrize(
    ("took", "patience", "jitter"),
    [(1_000, 300_000, 150_000), (150_000, 450_000, 225_000), (9 * SECOND, 2 * SECOND, SECOND)],
)
def test_patience_follows_the_round_trips(took: int, patience: int, jitter: int) -> None:
    """Patience is three times the 95th percentile and jitter 1.5 times, within their bounds."""
    network = LatencyEstimator()
    for _ in range(100):
        network.answered(took)
    assert patience == network.patience
    assert jitter == network.jitter


@given(st.lists(st.integers(0, 60 * SECOND), max_size=600))
def test_patience_and_jitter_have_bounds(times: list[int]) -> None:
    """Patience and jitter stay within their bounds for any round trips."""
    network = LatencyEstimator()
    for took in times:
        network.answered(took)
    assert 300_000 <= network.patience <= 2 * SECOND
    assert 150_000 <= network.jitter <= SECOND


@given(st.integers(25, 60), st.integers(0, 2**32))
def test_old_round_trips_are_forgotten(sixteens: int, seed: int) -> None:
    """Patience and jitter are those of the last 400 round trips."""
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
    """The lease holds as many tries as the share of failures needs, from 2 to 6."""
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
    assert (sum(last) + 0.12) / (len(last) + 20) == network.failing


@given(st.integers(0, 99), st.integers(2, 100))
def test_polls_of_other_processes_count_like_ours(own: int, nearby: int) -> None:
    """While none of ours has failed, polls on the same network count like ours."""
    network = LatencyEstimator()
    for _ in range(own):
        network.polled(failed=False)
    for _ in range(101 - own):
        network.polled_nearby(failed=False)
    assert 2 == network.tries
    for _ in range(nearby):
        network.polled_nearby(failed=True)
    assert (nearby + 0.12) / (121 + nearby) == network.failing


def test_polls_of_other_processes_hide_no_failures_of_ours() -> None:
    """A process may have another network than its neighbours, for example behind a proxy."""
    network = LatencyEstimator()
    network.polled(failed=True)
    for _ in range(29):
        network.polled(failed=False)
    for _ in range(400):
        network.polled_nearby(failed=False)
    assert 1.12 / 50 == network.failing
    assert 4 == network.tries


def test_old_polls_of_other_processes_are_forgotten() -> None:
    """Only their last 400 count."""
    network = LatencyEstimator()
    for _ in range(50):
        network.polled_nearby(failed=True)
    for _ in range(400):
        network.polled_nearby(failed=False)
    assert 0.12 / 420 == network.failing


def test_polls_of_processes_that_left_are_forgotten() -> None:
    """400 polls of ours take the place of all others."""
    network = LatencyEstimator()
    for _ in range(300):
        network.polled_nearby(failed=True)
    for _ in range(400):
        network.polled(failed=False)
    assert 0.12 / 420 == network.failing


def test_polls_of_processes_that_came_later_are_forgotten_too() -> None:
    """So it is where 400 polls of ours were known before, none of which failed."""
    network = LatencyEstimator()
    for _ in range(400):
        network.polled(failed=False)
    for _ in range(300):
        network.polled_nearby(failed=True)
    for _ in range(400):
        network.polled(failed=False)
    assert 0.12 / 420 == network.failing


def test_jitter_ignores_a_few_slow_answers() -> None:
    """With a hundred round trips jitter is their 99th percentile, if that is less."""
    for slow, jitter in ((250_000, 250_000), (900_000, 300_000)):
        network = LatencyEstimator()
        for took in [200_000] * 108 + [slow] * 4:
            network.answered(took)
        assert jitter == network.jitter


def test_jitter_before_a_hundred_round_trips() -> None:
    """With fewer round trips jitter is 1.5 times the 95th percentile."""
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
    """95 of 100 of the last 400 round trips are within jitter, updated at every sixteenth."""
    network = LatencyEstimator()
    for took in times:
        network.answered(took)
    looked = times[: len(times) // 16 * 16][-400:]
    assert sum(took <= network.jitter for took in looked) >= 0.95 * len(looked)
    assert network.jitter <= max(looked)


@given(st.lists(st.integers(50_000, 900_000), min_size=1, max_size=40), st.integers(1, 60))
def test_only_the_last_round_trips_count(times: list[int], again: int) -> None:
    """Patience and jitter are those of the last 400 round trips at their last update."""
    network, told = LatencyEstimator(), times * again
    for took in told:
        network.answered(took)
    looked = len(told) if len(told) <= 20 else max(20, len(told) // 16 * 16)
    last = sorted(told[:looked][-400:])
    p95 = last[math.ceil(0.95 * len(last)) - 1]
    p99 = last[math.ceil(0.99 * len(last)) - 1] if len(last) >= 100 else p95 * 2
    assert min(max(3 * p95, 300_000), 2 * SECOND) == network.patience
    assert min(max(min(p95 * 3 // 2, p99), 150_000), SECOND) == network.jitter
