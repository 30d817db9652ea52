"""What the SDK is for, whole: a bad night through client and sandbox, and the benchmarks."""

import random

import pytest

from benchmarks.faults import night
from benchmarks.loads import LOADS, Load, bound
from benchmarks.model import simulate


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.timeout(60)
async def test_a_bad_night_costs_only_the_tasks_that_never_end(seed: int) -> None:
    """500 mixed jobs with engine errors, stuck tasks, hanging and failing polls all end as they
    should.
    """
    result = await night(seed)

    assert () == result.problems
    assert 500 == result.outcomes.total()
    assert {"Done", "TaskFailed", "TaskAbandoned"} == set(result.outcomes)
    assert 440 < result.outcomes["Done"]


@pytest.mark.parametrize("load", [LOADS[0], LOADS[1], LOADS[8]], ids=lambda load: load.name)
def test_the_strict_timetable_loses_nothing_and_is_not_refused(load: Load) -> None:
    """Whatever the durations are, nothing is lost or refused, and the time is bounded."""
    outcome = simulate(load.durations(random.Random(7)), seed=7)

    assert (0, 0) == (outcome.lost, outcome.refused)
    assert 1.0 <= outcome.ratio < 5.5


def test_the_bound_is_what_the_design_says() -> None:
    """A window holds 250 requests, a second five; what is beyond waits for the next window."""
    assert 12.0 == bound([12.0])
    # 1 registration, 5 creations, 5 polls, at 5 a second: the longest task takes longer.
    assert 9.0 == bound([9.0] * 5)
    # 10 registrations, 200 creations and 400 polls: two windows are full, and 110 requests are
    # left.
    assert 600 + 110 / 5 == bound([15.0] * 200)
