"""Several polls that fail at once: each second keeps requests for their retries."""

import random
from itertools import islice

import pytest

from benchmarks.loads import LOADS
from benchmarks.model import Failures, simulate
from perfect_async import events as ev
from perfect_async._time import SLOT
from perfect_async.errors import ServiceUnavailable
from perfect_async.models import Limits
from perfect_async.scheduler._pacer import Pacer
from tests.support.scheduler_harness import SECOND, SchedulerHarness

DOWN = ServiceUnavailable("down")


@pytest.mark.parametrize("seed", [11, 12])
def test_two_fast_failures_in_a_full_second(seed: int) -> None:
    """The third poll of a lease has room, however full the second is with other polls.

    With one place kept in a second, seed 11 lost a task.
    """
    load = next(load for load in LOADS if load.name == "200 of 15-40 s")
    durations = load.durations(random.Random(seed))[:60]
    outcome = simulate(durations, seed=seed, failures=Failures(0.004, row=2, seed=seed))
    assert (60, 0, 0) == (outcome.done, outcome.lost, outcome.refused)


def polled(pacer: Pacer, failures: int, count: int, now: int = 0) -> None:
    """Report `count` polls at `now`, the first `failures` of which failed."""
    for number in range(count):
        poll = ev.Poll(number, 1)
        pacer.table.leave(number, now, SECOND)
        failed = number < failures
        pacer.table.answered(number, now)
        pacer.on_response(
            ev.NoAnswer(poll, DOWN) if failed else ev.Running(poll), SECOND // 10, now
        )
    pacer.replan(now)


@pytest.mark.parametrize(
    ("failures", "tries", "spared"), [(0, 2, 1), (1, 3, 2), (6, 4, 2), (20, 5, 2), (60, 6, 2)]
)
def test_spared_requests_follow_the_retries(failures: int, tries: int, spared: int) -> None:
    """A second keeps a request for the one retry of a good network, and two for more retries."""
    pacer = Pacer(Limits(), lease=10 * SECOND, horizon=600 * SECOND)
    assert 2 == pacer.table.spared
    polled(pacer, failures, 400)
    assert (tries, spared) == (pacer.network.tries, pacer.table.spared)


@pytest.mark.parametrize(
    ("per_second", "most"), [(1, 1), (2, 1), (3, 1), (5, 3), (10, 6), (40, 24)]
)
def test_spared_requests_at_other_limits(per_second: int, most: int) -> None:
    """At least two requests of a second are kept if it has so many, and one can be reserved."""
    limits = Limits(requests=2000, per_second=per_second)
    pacer = Pacer(limits, lease=10 * SECOND, horizon=600 * SECOND)
    assert most == pacer.table._bounds[1]


def test_tasks_that_are_too_close_move_apart() -> None:
    """When more requests are kept than before, tasks whose polls fill a second are moved."""
    pacer = Pacer(Limits(), lease=10 * SECOND, horizon=600 * SECOND)
    polled(pacer, 0, 400)
    table = pacer.table
    now = 60 * SECOND
    for ref, slot in enumerate(range(now // SLOT, now // SLOT + 4)):
        assert table.free(slot)
        table.reserve(ref, slot, 600 * SECOND // SLOT)
        table.arm(ref)
    polled(pacer, 3, 3, now)
    assert 2 == table.spared
    slots = sorted(table._tasks[ref].next for ref in range(4))
    assert max(sum(low <= slot < low + SECOND // SLOT for slot in slots) for low in slots) <= 3


def test_a_retry_waits_only_for_the_second() -> None:
    """In a window that is full but for what is kept for retries, it may leave in the next slot."""
    harness = SchedulerHarness()
    harness.running()
    state = harness.scheduler._state
    numbers = iter(range(1000, 2000))

    def others(count: int) -> None:
        for number in islice(numbers, count):
            state.table.leave(number, harness.now, SECOND)
            state.table.answered(number, harness.now)

    others(state.table.account.spare(0) - 7)
    harness.now = state.table.wakes()
    poll = harness.poll()
    others(5)
    harness.tell(ev.NoAnswer(poll, DOWN))
    assert state.fits_urgently(harness.now)
    assert not state.fits(harness.now, state.pacer.limit(harness.now))
    assert None is harness.scheduler.due(harness.now)
    assert harness.now + SLOT >= harness.scheduler.wakes_at(harness.now)
