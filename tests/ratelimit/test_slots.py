"""Phases are free where every run that contains them has room; requests count for a second."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._ratelimit.slots import PhaseTable, SecondWindow
from perfect_async._time import SLOT

# Slots that own their phases in a cycle of 12.
CYCLE = 12
OWNED = st.lists(st.integers(0, 200), max_size=10)


def phases(owned: list[int], *, cycle: int = CYCLE, per_slot: int = 1) -> PhaseTable:
    made = PhaseTable(cycle, per_slot)
    for slot in owned:
        made.take(slot)
    return made


def polls(owned: list[int], slot: int, run: int, cycle: int = CYCLE) -> int:
    """Return how many polls each of the `run` slots from `slot` on holds."""
    return sum((at - one) % cycle == 0 for at in range(slot, slot + run) for one in owned)


def overfull(owned: list[int], slot: int, run: int, most: int) -> bool:
    """Return whether some run that contains `slot` holds more than `most`."""
    return any(polls(owned, first, run) > most for first in range(slot - run + 1, slot + 1))


@given(OWNED, st.integers(0, 60), st.integers(1, 40))
def test_polls_ahead(owned: list[int], slot: int, run: int) -> None:
    """Each slot ahead holds as many polls as tasks own its phase."""
    expected = [polls(owned, at, 1) for at in range(slot, slot + run)]
    assert expected == phases(owned).ahead(slot, run)


@given(OWNED, st.integers(0, 60), st.integers(1, CYCLE), st.integers(1, 5), st.integers(1, 3))
def test_a_phase_is_free_where_every_run_has_room(
    owned: list[int], slot: int, run: int, most: int, per_slot: int
) -> None:
    """A phase is free if no task owns it and no run that contains it becomes too full."""
    made = phases(owned, per_slot=per_slot)
    alone = polls(owned, slot, 1) < per_slot
    expected = alone and not overfull([*owned, slot], slot, run, most)
    assert expected == made.free(slot, run, most) == made.free(slot + CYCLE, run, most)


@given(OWNED, st.integers(0, 60), st.integers(CYCLE, 3 * CYCLE), st.integers(1, 9))
def test_a_run_longer_than_the_cycle(owned: list[int], slot: int, run: int, most: int) -> None:
    """A phase that a run contains several times is free only if all of its polls fit."""
    if phases(owned, per_slot=9).free(slot, run, most):
        assert not overfull([*owned, slot], slot, run, most)


def test_a_run_that_holds_a_phase_twice() -> None:
    """In a run of two cycles one task counts twice, so two tasks fit into five and three do not."""
    assert phases([0]).free(1, 2 * CYCLE, 5)
    assert not phases([0, 1]).free(2, 2 * CYCLE, 5)


@given(OWNED, st.integers(20, 60), st.integers(0, 15), st.integers(1, CYCLE), st.integers(1, 4))
def test_the_latest_is_the_nearest_free_one(
    owned: list[int], slot: int, back: int, run: int, most: int
) -> None:
    """The latest free slot is the last one up to a slot and within the distance before it."""
    made = phases(owned)
    free = [at for at in range(slot - back, slot + 1) if made.free(at, run, most)]
    assert max(free, default=None) == made.latest(slot, back, run, most)


@given(OWNED, st.lists(st.integers(0, 200), max_size=10), st.integers(1, 4))
def test_a_phase_given_back_leaves_no_trace(owned: list[int], more: list[int], most: int) -> None:
    """A phase that was taken and given back changes no answer."""
    made = phases(owned, per_slot=2)
    before = made.ahead(0, CYCLE), [made.free(slot, 5, most) for slot in range(CYCLE)]
    for slot in more:
        made.take(slot)
        made.free(slot, 5, most)
    for slot in more:
        made.give(slot + 7 * CYCLE)
    after = made.ahead(0, CYCLE), [made.free(slot, 5, most) for slot in range(CYCLE)]
    assert before == after


def test_another_question_has_another_answer() -> None:
    """An answer that is cached for one run and bound is not used for another."""
    made = phases([0, 3])
    assert not made.free(4, 5, 2)
    assert made.free(4, 5, 3)
    assert made.free(4, 4, 2)
    assert not made.free(4, 5, 2)


@pytest.mark.parametrize("cycle", [1, 2, 176])
def test_an_empty_cycle_is_free(cycle: int) -> None:
    """In an empty cycle every phase is free, and the latest free slot is the one asked for."""
    made = phases([], cycle=cycle)
    assert all(made.free(slot, 1, 1) for slot in range(2 * cycle))
    assert 5 * cycle == made.latest(5 * cycle, cycle // 4, 1, 1)
    assert None is made.latest(5 * cycle, cycle // 4, 1, 0)


# The second.


SECOND = 1_000_000
GUARD = 150_000
PATIENCE = 450_000
RUN = (SECOND + GUARD) // SLOT + 1


def test_a_request_counts_until_a_second_after_its_arrival() -> None:
    """An unanswered request counts for a second and the guard, or the patience if late."""
    second = SecondWindow()
    second.leave(0, GUARD, PATIENCE)
    assert [1] == second.held((SECOND + GUARD) // SLOT, 1)
    assert [0] == second.held((SECOND + GUARD) // SLOT + 1, 1)
    assert [1] == second.held((SECOND + PATIENCE) // SLOT, 1, urgent=False)
    assert [0] == second.held((SECOND + PATIENCE) // SLOT + 1, 1, urgent=False)


def test_an_early_answer_ends_the_count_a_second_later() -> None:
    """An early answer ends the count a second later; a late one changes nothing."""
    second = SecondWindow()
    second.answered(*second.leave(0, GUARD, PATIENCE), 50_000)
    assert [0] == second.held((SECOND + 50_000) // SLOT + 1, 1, urgent=False)
    second.answered(*second.leave(0, GUARD, PATIENCE), 10 * SECOND)
    assert [1] == second.held((SECOND + PATIENCE) // SLOT, 1, urgent=False)
    assert [0] == second.held((SECOND + PATIENCE) // SLOT + 1, 1, urgent=False)


def test_counts_fall_from_slot_to_slot() -> None:
    """The counts never rise from a slot to later ones."""
    second = SecondWindow()
    for left in (0, 4 * SLOT, 8 * SLOT):
        second.leave(left, GUARD, PATIENCE)
    held = second.held(0, RUN + 8)
    assert 3 == held[0]
    assert sorted(held, reverse=True) == held
    assert 1 == held[-1]


def test_the_past_counts_as_far_as_it_reaches() -> None:
    """Requests of an earlier account count if they left less than a second ago."""
    second = SecondWindow()
    second.remember(200_000, GUARD, 3)
    second.remember(0, GUARD, 0)
    second.remember(5 * SECOND, GUARD, 7)
    assert [3] == second.held(0, 1)
    assert [0] == second.held((SECOND + GUARD - 200_000) // SLOT + 1, 1)


@given(st.lists(st.integers(0, 60 * SECOND), max_size=50), st.integers(0, 60))
def test_forgetting_changes_no_count(left: list[int], at: int) -> None:
    """Requests that are dropped counted in no slot any more."""
    one, other = SecondWindow(), SecondWindow()
    for second in (one, other):
        for now in sorted(left):
            second.leave(now, GUARD, PATIENCE)
    slot = at * SECOND // SLOT
    counted = other.count(slot)
    assert one.held(slot, RUN) == other.held(slot, RUN)
    assert one.held(slot, RUN, urgent=False) == other.held(slot, RUN, urgent=False)
    assert counted == other.count(slot) == one.held(slot, 1, urgent=False)[0]
    assert counted == sum(1 for now in left if (now + PATIENCE + SECOND) // SLOT >= slot)


@given(st.lists(st.integers(0, 20 * SECOND), max_size=50))
def test_the_count_is_an_upper_bound(steps: list[int]) -> None:
    """No slot holds more than the count, whichever answers and slots come between."""
    second, now = SecondWindow(), 0
    for step in steps:
        ends, late = second.leave(now, GUARD, PATIENCE)
        second.answered(ends, late, now + min(step, PATIENCE))
        now += step
        count = second.count(now // SLOT)
        assert second.held(now // SLOT, RUN)[0] <= count
        assert second.held(now // SLOT, RUN, urgent=False)[0] == count


def test_a_request_reported_after_its_second_does_not_count() -> None:
    """Another process may report a request that late, and its answer even later."""
    window = SecondWindow()
    window.count(1_000)

    ends, late = window.leave(0, 150_000, 450_000)
    window.answered(ends, late, 100_000)

    assert 0 == window.count(1_000)
    assert [0, 0, 0] == window.held(1_000, 3, urgent=False)


def test_an_answer_reported_late_removes_the_request() -> None:
    """The request arrived so long ago that no new request shares a second with it."""
    window = SecondWindow()
    ends, late = window.leave(0, 150_000, 2_000_000)
    window.count(30)

    window.answered(ends, late, 100_000)

    assert 0 == window.count(30)
    assert [0, 0] == window.held(30, 2, urgent=False)
