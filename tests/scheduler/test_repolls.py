"""Polls beside the promised ones: tries and early polls."""

import pytest

from perfect_async._time import NEVER, SLOT
from perfect_async.models import Limits
from perfect_async.scheduler._job import Job, State
from perfect_async.scheduler._pacer import Pace
from perfect_async.scheduler._repolls import Repolls

SECOND = 1_000_000


class Desk:
    def __init__(self) -> None:
        self.pace = Pace(Limits(), lease=10 * SECOND, horizon=120 * SECOND)
        self.repolls = Repolls(self.pace, lease=10 * SECOND, interval=2 * SECOND)
        self.job = Job(1, "ai-smile", 1.0, uploads=False, lane=0, state=State.RUNNING)
        self.pace.table.promise(1, 0, 120 * SECOND // SLOT)
        self.pace.table.arm(1)
        self.repolls.created(self.job)
        self.cycle = self.pace.table.cycle * SLOT
        self.patience = self.pace.network.patience


def first(queue: list[tuple[int, int, Job]]) -> tuple[int, int] | None:
    """When which task (by ref) is the first of a queue, None where there is none."""
    at, ref, _ = queue[0]
    return None if at == NEVER else (at, ref)


def test_an_early_poll_after_the_interval() -> None:
    """The first early poll may come an interval after the creation."""
    desk = Desk()
    assert (2 * SECOND, 1) == first(desk.repolls.early)
    assert None is first(desk.repolls.tries)


def test_a_silent_promised_poll_is_tried_again() -> None:
    """A promised poll that is silent is tried again inside the lease; an early one is not."""
    desk = Desk()
    desk.repolls.left(desk.job, 3 * SECOND)
    assert None is desk.job.try_at
    desk.pace.table.keep(1, desk.cycle)
    desk.repolls.left(desk.job, desk.cycle)
    assert (desk.cycle + desk.patience, 1) == first(desk.repolls.tries)


def test_a_short_cycle_is_cut_for_its_tries() -> None:
    """A promised poll that fails is tried at once, even if the next is promised in the lease."""
    desk = Desk()
    pace = Pace(Limits(), lease=30 * SECOND, horizon=120 * SECOND)
    desk.repolls = Repolls(pace, lease=30 * SECOND, interval=2 * SECOND)
    pace.table.recut(80, pace.table.guard, 0, 250)
    pace.table.promise(1, 0, 120 * SECOND // SLOT)
    pace.table.arm(1)
    pace.table.keep(1, 4 * SECOND)
    assert pace.table.next_poll(1) < 30 * SECOND
    desk.repolls.failed(desk.job, 4 * SECOND + 100_000)
    assert 4 * SECOND + 100_000 == desk.job.try_at


def test_tries_end() -> None:
    """After six tries, and past the lease, no other try is made."""
    desk = Desk()
    desk.pace.table.keep(1, desk.cycle)
    desk.job.tries = 6
    desk.repolls.failed(desk.job, desk.cycle)
    assert None is desk.job.try_at
    desk.job.tries = 0
    desk.repolls.failed(desk.job, 10 * SECOND)
    assert None is desk.job.try_at


def test_tries_are_spread_over_the_lease() -> None:
    """Polls that fail at once are not all spent at once: the last leaves near the lease's end."""
    desk, left = Desk(), []
    desk.pace.table.keep(1, desk.cycle)
    desk.repolls.left(desk.job, desk.cycle)
    desk.repolls.failed(desk.job, desk.cycle)
    while (found := first(desk.repolls.tries)) is not None:
        left.append(found[0])
        desk.job.tries += 1
        desk.repolls.left(desk.job, found[0])
        desk.repolls.failed(desk.job, found[0])
        desk.repolls.tidy()
    assert 6 == len(left)
    assert desk.cycle == left[0]
    assert 9 * SECOND < left[-1] < 10 * SECOND


def test_an_answer_ends_the_tries() -> None:
    """A renewed lease that reaches the next promise needs no try, and the queue forgets it."""
    desk = Desk()
    desk.pace.table.keep(1, desk.cycle)
    desk.repolls.left(desk.job, desk.cycle)
    desk.repolls.renewed(desk.job, desk.cycle, None, desk.cycle, desk.cycle + 100_000)
    desk.repolls.tidy()
    assert None is first(desk.repolls.tries)
    assert desk.cycle == desk.job.accepted


def test_an_old_answer_keeps_the_try() -> None:
    """An answer to an older poll renews the lease from when that one left, and no more."""
    desk = Desk()
    desk.pace.table.keep(1, desk.cycle)
    desk.repolls.left(desk.job, desk.cycle)
    desk.repolls.renewed(desk.job, 2 * SECOND, None, desk.cycle, desk.cycle + 100_000)
    desk.repolls.tidy()
    assert 2 * SECOND == desk.job.accepted
    assert (desk.cycle + desk.patience, 1) == first(desk.repolls.tries)


@pytest.mark.parametrize(
    ("said", "kept"), [(None, 2 * SECOND), (0, SECOND // 2), (3 * SECOND, 3 * SECOND)]
)
def test_the_vendors_interval(said: int | None, kept: int) -> None:
    """The vendor's interval is followed on the next early poll, from half a second up."""
    desk = Desk()
    desk.repolls.left(desk.job, 3 * SECOND)
    desk.repolls.renewed(desk.job, 3 * SECOND, said, 3 * SECOND, 3 * SECOND)
    desk.repolls.tidy()
    assert (3 * SECOND + kept, 1) == first(desk.repolls.early)


def test_no_early_poll_at_the_promise() -> None:
    """An early poll that would come with the promise is none."""
    desk = Desk()
    desk.repolls.renewed(desk.job, 3 * SECOND, 10**15, 3 * SECOND, 3 * SECOND)
    assert None is desk.job.early_at
    desk.repolls.tidy()
    assert None is first(desk.repolls.early)


def test_thrift() -> None:
    """Where requests are scarce a seventh of the task's age passes before an early poll."""
    desk = Desk()
    for number in range(220):
        desk.pace.table.leave(number, 0, SECOND)
    desk.repolls.left(desk.job, SECOND)
    desk.repolls.renewed(desk.job, SECOND, None, 28 * SECOND, SECOND)
    assert 5 * SECOND == desk.job.early_at


def test_wary() -> None:
    """While the key is used elsewhere a poll is wanted in mid-lease."""
    desk = Desk()
    desk.pace.allowance.wary_until = 120 * SECOND
    desk.repolls.renewed(desk.job, 0, 8 * SECOND, 0, 0)
    assert 6 * SECOND == desk.job.early_at


# Tasks that have rather ended than not.


def test_a_poll_when_it_is_likely_to_have_ended() -> None:
    """It is worth asking when the task has rather ended, and not before the interval."""
    desk = Desk()
    assert None is first(desk.repolls.likely)
    desk.repolls.hopes(desk.job, 5 * SECOND)
    assert (5 * SECOND, 1) == first(desk.repolls.likely)
    desk.repolls.hopes(desk.job, SECOND)
    desk.repolls.tidy()
    assert (2 * SECOND, 1) == first(desk.repolls.likely)


@pytest.mark.parametrize("before", [0, SECOND - 1])
def test_a_promise_that_hears_it_soon_enough(before: int) -> None:
    """What is promised within a second of the likely end needs no poll beside it."""
    desk = Desk()
    promised = desk.pace.table.next_poll(1)
    desk.repolls.hopes(desk.job, promised - before)
    assert None is desk.job.likely_at
    assert None is first(desk.repolls.likely)
    desk.repolls.hopes(desk.job, promised - SECOND)
    assert (promised - SECOND, 1) == first(desk.repolls.likely)


def test_hope_ends_with_a_poll_and_with_news() -> None:
    """A poll that leaves, and not knowing any longer, take the likely one out of the queue."""
    for polled in (True, False):
        desk = Desk()
        desk.repolls.hopes(desk.job, 5 * SECOND)
        if polled:
            desk.repolls.left(desk.job, 3 * SECOND)
        else:
            desk.repolls.hopes(desk.job, None)
        desk.repolls.tidy()
        assert None is desk.job.likely_at
        assert None is first(desk.repolls.likely)


def test_when_something_may_be_worth_asking() -> None:
    """Of tries, early and likely polls the first of each may wake."""
    desk = Desk()
    assert [2 * SECOND] == desk.repolls.wakes()
    desk.repolls.hopes(desk.job, 5 * SECOND)
    assert [2 * SECOND, 5 * SECOND] == desk.repolls.wakes()
    desk.pace.table.keep(1, desk.cycle)
    desk.repolls.failed(desk.job, desk.cycle)
    assert [desk.cycle, 2 * SECOND, 5 * SECOND] == desk.repolls.wakes()
    desk.repolls.left(desk.job, desk.cycle)
    desk.job.try_at = None
    desk.repolls.tidy()
    assert [] == desk.repolls.wakes()


# Tasks that nothing is promised any longer.


def test_a_task_without_a_promise_is_asked_where_there_is_room() -> None:
    """Its next poll is a try a cycle after the last one, inside the lease."""
    desk = Desk()
    desk.pace.table.extend(1, 100, 0, 250)
    desk.job.tries = 3
    desk.repolls.left(desk.job, 4 * SECOND)
    desk.repolls.renewed(desk.job, 4 * SECOND, None, 4 * SECOND, 4 * SECOND + 100_000)
    desk.repolls.tidy()
    assert (4 * SECOND + desk.cycle, 1) == first(desk.repolls.tries)
    assert 0 == desk.job.tries


def test_a_late_answer_without_a_promise() -> None:
    """Where the answer comes after the time of the next poll that leaves at once."""
    desk = Desk()
    desk.pace.table.extend(1, 100, 0, 250)
    desk.repolls.left(desk.job, SECOND)
    late = SECOND + desk.cycle + SECOND // 2
    desk.repolls.renewed(desk.job, SECOND, None, SECOND, late)
    desk.repolls.tidy()
    assert (late, 1) == first(desk.repolls.tries)
