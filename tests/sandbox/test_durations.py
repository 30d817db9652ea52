"""How long the engine takes."""

import random
import statistics

import pytest

from perfect_async.sandbox import Durations


def draws(durations: Durations, count: int = 4000) -> list[float]:
    rng = random.Random(1)
    return [durations.draw(rng) for _ in range(count)]


def test_the_median_is_the_median() -> None:
    """Half of the lognormal durations lie below the median."""
    assert statistics.median(draws(Durations(8.0, 0.35))) == pytest.approx(8.0, rel=0.03)


def test_sigma_is_that_of_the_logarithm() -> None:
    """84 % lie below median times e to the sigma."""
    found = sorted(draws(Durations(60.0, 0.4)))

    assert found[int(0.8413 * len(found))] == pytest.approx(60 * 1.4918, rel=0.05)


def test_low_and_high_clip() -> None:
    """Nothing is shorter than `low` or longer than `high`."""
    found = draws(Durations(8.0, 2.0, low=5.0, high=20.0))

    assert (5.0, 20.0) == (min(found), max(found))


def test_fixed_is_always_the_same() -> None:
    """A fixed duration has one value."""
    assert {3.5} == set(draws(Durations.fixed(3.5), 10))


def test_uniform_fills_its_interval() -> None:
    """Uniform durations reach both ends and stay between them."""
    found = draws(Durations.uniform(15.0, 40.0))

    assert min(found) >= 15.0
    assert max(found) <= 40.0
    assert statistics.mean(found) == pytest.approx(27.5, rel=0.03)


def test_of_asks_the_function() -> None:
    """Any function of a generator can draw."""
    found = draws(Durations.of(lambda rng: rng.choice([1.0, 240.0])), 50)

    assert {1.0, 240.0} == set(found)


@pytest.mark.parametrize(
    "numbers",
    [
        (-1.0, 0.0, 0.0, 9.0),
        (1.0, -0.1, 0.0, 9.0),
        (1.0, 0.0, 3.0, 2.0),
        (1.0, 0.0, -3.0, 9.0),
    ],
)
def test_nonsense_is_refused(numbers: tuple[float, float, float, float]) -> None:
    """Impossible settings fail where they are written."""
    with pytest.raises(ValueError, match="urations"):
        Durations(*numbers)


def test_durations_are_values() -> None:
    """Equal settings are equal, whatever their sampler's repr."""
    assert Durations(8.0, 0.35) == Durations(8.0, 0.35)
    assert "Durations(median=8.0, sigma=0.35, low=0.0, high=inf)" == repr(Durations(8.0, 0.35))
