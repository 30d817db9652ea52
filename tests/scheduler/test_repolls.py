"""Polls beside the promised ones: tries and early polls."""

import pytest

from perfect_async._time import NEVER, SLOT
from perfect_async.events import TaskKind
from perfect_async.models import Limits
from perfect_async.scheduler._job import JobState, ScheduledJob
from perfect_async.scheduler._pacer import Pacer
from perfect_async.scheduler._polling import ExtraPolls

SECOND = 1_000_000


class Desk:
    def __init__(self) -> None:
        self.pacer = Pacer(Limits(), lease=10 * SECOND, horizon=120 * SECOND)
        self.extra_polls = ExtraPolls(self.pacer, lease=10 * SECOND, interval=2 * SECOND)
        self.job = ScheduledJob(
            1, TaskKind("ai-smile"), 1.0, uploads=False, channel=0, state=JobState.RUNNING
        )
        self.pacer.table.promise(1, 0, 120 * SECOND // SLOT)
        self.pacer.table.arm(1)
        self.extra_polls.created(self.job)
        self.cycle = self.pacer.table.cycle * SLOT
        self.patience = self.pacer.network.patience


def wakes(extra: ExtraPolls) -> list[int]:
    """When each queue that is not empty wakes."""
    return [at for at in (extra.try_at(), extra.early_at(), extra.likely_at()) if at != NEVER]


def first(queue: list[tuple[int, int, ScheduledJob]]) -> tuple[int, int] | None:
    """When which task (by ref) is the first of a queue, None where there is none."""
    at, ref, _ = queue[0]
    return None if at == NEVER else (at, ref)


def test_an_early_poll_after_the_interval() -> None:
    """The first early poll may come an interval after the creation."""
    session = Desk()
    assert (2 * SECOND, 1) == first(session.extra_polls.early)
    assert None is first(session.extra_polls.tries)


def test_a_silent_promised_poll_is_tried_again() -> None:
    """A promised poll that is silent is tried again inside the lease; an early one is not."""
    session = Desk()
    session.extra_polls.left(session.job, 3 * SECOND)
    assert None is session.job.try_at
    session.pacer.table.keep(1, session.cycle)
    session.extra_polls.left(session.job, session.cycle)
    assert (session.cycle + session.patience, 1) == first(session.extra_polls.tries)


def test_a_short_cycle_is_cut_for_its_tries() -> None:
    """A promised poll that fails is tried at once, even if the next is promised in the lease."""
    session = Desk()
    pacer = Pacer(Limits(), lease=30 * SECOND, horizon=120 * SECOND)
    session.extra_polls = ExtraPolls(pacer, lease=30 * SECOND, interval=2 * SECOND)
    pacer.table.recut(80, pacer.table.guard, 0, 250)
    pacer.table.promise(1, 0, 120 * SECOND // SLOT)
    pacer.table.arm(1)
    pacer.table.keep(1, 4 * SECOND)
    assert pacer.table.next_poll(1) < 30 * SECOND
    session.extra_polls.failed(session.job, 4 * SECOND + 100_000)
    assert 4 * SECOND + 100_000 == session.job.try_at


def test_tries_end() -> None:
    """After six tries, and past the lease, no other try is made."""
    session = Desk()
    session.pacer.table.keep(1, session.cycle)
    session.job.tries = 6
    session.extra_polls.failed(session.job, session.cycle)
    assert None is session.job.try_at
    session.job.tries = 0
    session.extra_polls.failed(session.job, 10 * SECOND)
    assert None is session.job.try_at


def test_tries_are_spread_over_the_lease() -> None:
    """Polls that fail at once are not all spent at once: the last leaves near the lease's end."""
    session, left = Desk(), []
    session.pacer.table.keep(1, session.cycle)
    session.extra_polls.left(session.job, session.cycle)
    session.extra_polls.failed(session.job, session.cycle)
    while (found := first(session.extra_polls.tries)) is not None:
        left.append(found[0])
        session.job.tries += 1
        session.extra_polls.left(session.job, found[0])
        session.extra_polls.failed(session.job, found[0])
        session.extra_polls.tidy()
    assert 6 == len(left)
    assert session.cycle == left[0]
    assert 9 * SECOND < left[-1] < 10 * SECOND


def test_an_answer_ends_the_tries() -> None:
    """A renewed lease that reaches the next promise needs no try, and the queue forgets it."""
    session = Desk()
    session.pacer.table.keep(1, session.cycle)
    session.extra_polls.left(session.job, session.cycle)
    session.extra_polls.renewed(
        session.job, session.cycle, None, session.cycle, session.cycle + 100_000
    )
    session.extra_polls.tidy()
    assert None is first(session.extra_polls.tries)
    assert session.cycle == session.job.accepted


def test_an_old_answer_keeps_the_try() -> None:
    """An answer to an older poll renews the lease from when that one left, and no more."""
    session = Desk()
    session.pacer.table.keep(1, session.cycle)
    session.extra_polls.left(session.job, session.cycle)
    session.extra_polls.renewed(
        session.job, 2 * SECOND, None, session.cycle, session.cycle + 100_000
    )
    session.extra_polls.tidy()
    assert 2 * SECOND == session.job.accepted
    assert (session.cycle + session.patience, 1) == first(session.extra_polls.tries)


@pytest.mark.parametrize(
    ("said", "kept"), [(None, 2 * SECOND), (0, SECOND // 2), (3 * SECOND, 3 * SECOND)]
)
def test_the_vendors_interval(said: int | None, kept: int) -> None:
    """The vendor's interval is followed on the next early poll, from half a second up."""
    session = Desk()
    session.extra_polls.left(session.job, 3 * SECOND)
    session.extra_polls.renewed(session.job, 3 * SECOND, said, 3 * SECOND, 3 * SECOND)
    session.extra_polls.tidy()
    assert (3 * SECOND + kept, 1) == first(session.extra_polls.early)


def test_no_early_poll_at_the_promise() -> None:
    """An early poll that would come with the promise is none."""
    session = Desk()
    session.extra_polls.renewed(session.job, 3 * SECOND, 10**15, 3 * SECOND, 3 * SECOND)
    assert None is session.job.early_at
    session.extra_polls.tidy()
    assert None is first(session.extra_polls.early)


def test_thrift() -> None:
    """Where requests are scarce a seventh of the task's age passes before an early poll."""
    session = Desk()
    for number in range(220):
        session.pacer.table.leave(number, 0, SECOND)
    session.extra_polls.left(session.job, SECOND)
    session.extra_polls.renewed(session.job, SECOND, None, 28 * SECOND, SECOND)
    assert 5 * SECOND == session.job.early_at


def test_wary() -> None:
    """While the key is used elsewhere a poll is wanted in mid-lease."""
    session = Desk()
    session.pacer.allowance.wary_until = 120 * SECOND
    session.extra_polls.renewed(session.job, 0, 8 * SECOND, 0, 0)
    assert 6 * SECOND == session.job.early_at


# Tasks that have rather ended than not.


def test_a_poll_when_it_is_likely_to_have_ended() -> None:
    """It is worth asking when the task has rather ended, and not before the interval."""
    session = Desk()
    assert None is first(session.extra_polls.likely)
    session.extra_polls.expect_end(session.job, 5 * SECOND)
    assert (5 * SECOND, 1) == first(session.extra_polls.likely)
    session.extra_polls.expect_end(session.job, SECOND)
    session.extra_polls.tidy()
    assert (2 * SECOND, 1) == first(session.extra_polls.likely)


@pytest.mark.parametrize("before", [0, SECOND - 1])
def test_a_promise_that_hears_it_soon_enough(before: int) -> None:
    """What is promised within a second of the likely end needs no poll beside it."""
    session = Desk()
    promised = session.pacer.table.next_poll(1)
    session.extra_polls.expect_end(session.job, promised - before)
    assert None is session.job.likely_at
    assert None is first(session.extra_polls.likely)
    session.extra_polls.expect_end(session.job, promised - SECOND)
    assert (promised - SECOND, 1) == first(session.extra_polls.likely)


def test_hope_ends_with_a_poll_and_with_news() -> None:
    """A poll that leaves, and not knowing any longer, take the likely one out of the queue."""
    for polled in (True, False):
        session = Desk()
        session.extra_polls.expect_end(session.job, 5 * SECOND)
        if polled:
            session.extra_polls.left(session.job, 3 * SECOND)
        else:
            session.extra_polls.expect_end(session.job, None)
        session.extra_polls.tidy()
        assert None is session.job.likely_at
        assert None is first(session.extra_polls.likely)


def test_when_something_may_be_worth_asking() -> None:
    """Of tries, early and likely polls the first of each may wake."""
    session = Desk()
    assert [2 * SECOND] == wakes(session.extra_polls)
    session.extra_polls.expect_end(session.job, 5 * SECOND)
    assert [2 * SECOND, 5 * SECOND] == wakes(session.extra_polls)
    session.pacer.table.keep(1, session.cycle)
    session.extra_polls.failed(session.job, session.cycle)
    assert [session.cycle, 2 * SECOND, 5 * SECOND] == wakes(session.extra_polls)
    session.extra_polls.left(session.job, session.cycle)
    session.job.try_at = None
    session.extra_polls.tidy()
    assert [] == wakes(session.extra_polls)


# Tasks that nothing is promised any longer.


def test_a_task_without_a_promise_is_asked_where_there_is_room() -> None:
    """Its next poll is a try a cycle after the last one, inside the lease."""
    session = Desk()
    session.pacer.table.extend(1, 100, 0, 250)
    session.job.tries = 3
    session.extra_polls.left(session.job, 4 * SECOND)
    session.extra_polls.renewed(session.job, 4 * SECOND, None, 4 * SECOND, 4 * SECOND + 100_000)
    session.extra_polls.tidy()
    assert (4 * SECOND + session.cycle, 1) == first(session.extra_polls.tries)
    assert 0 == session.job.tries


def test_a_late_answer_without_a_promise() -> None:
    """Where the answer comes after the time of the next poll that leaves at once."""
    session = Desk()
    session.pacer.table.extend(1, 100, 0, 250)
    session.extra_polls.left(session.job, SECOND)
    late = SECOND + session.cycle + SECOND // 2
    session.extra_polls.renewed(session.job, SECOND, None, SECOND, late)
    session.extra_polls.tidy()
    assert (late, 1) == first(session.extra_polls.tries)
