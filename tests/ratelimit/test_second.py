"""The second's limit: what left counts until nothing new can arrive within a second of it."""

from hypothesis import given
from hypothesis import strategies as st

from perfect_async._ratelimit.slots import SecondWindow
from perfect_async._time import SLOT

MICROS = 1_000_000
GUARD = 150_000
PATIENCE = 450_000
RUN = (MICROS + GUARD) // SLOT + 1


def test_it_counts_until_a_second_after_its_arrival() -> None:
    """Unanswered, a request counts for a second and the guard, or the patience where it is late."""
    second = SecondWindow()
    second.leave(0, GUARD, PATIENCE)
    assert [1] == second.held((MICROS + GUARD) // SLOT, 1)
    assert [0] == second.held((MICROS + GUARD) // SLOT + 1, 1)
    assert [1] == second.held((MICROS + PATIENCE) // SLOT, 1, urgent=False)
    assert [0] == second.held((MICROS + PATIENCE) // SLOT + 1, 1, urgent=False)


def test_an_answer_tells_when_it_had_arrived() -> None:
    """An early answer ends what it counts a second later; a late one changes nothing."""
    second = SecondWindow()
    second.answered(*second.leave(0, GUARD, PATIENCE), 50_000)
    assert [0] == second.held((MICROS + 50_000) // SLOT + 1, 1, urgent=False)
    second.answered(*second.leave(0, GUARD, PATIENCE), 10 * MICROS)
    assert [1] == second.held((MICROS + PATIENCE) // SLOT, 1, urgent=False)
    assert [0] == second.held((MICROS + PATIENCE) // SLOT + 1, 1, urgent=False)


def test_what_counts_later_counts_before() -> None:
    """From a slot on the counts only fall."""
    second = SecondWindow()
    for left in (0, 4 * SLOT, 8 * SLOT):
        second.leave(left, GUARD, PATIENCE)
    held = second.held(0, RUN + 8)
    assert 3 == held[0]
    assert sorted(held, reverse=True) == held
    assert 1 == held[-1]


def test_the_past_counts_as_far_as_it_reaches() -> None:
    """What an earlier account spent less than a second ago counts, older requests do not."""
    second = SecondWindow()
    second.remember(200_000, GUARD, 3)
    second.remember(0, GUARD, 0)
    second.remember(5 * MICROS, GUARD, 7)
    assert [3] == second.held(0, 1)
    assert [0] == second.held((MICROS + GUARD - 200_000) // SLOT + 1, 1)


@given(st.lists(st.integers(0, 60 * MICROS), max_size=50), st.integers(0, 60))
def test_forgetting_changes_no_count(left: list[int], at: int) -> None:
    """What is dropped counted nowhere any more."""
    one, other = SecondWindow(), SecondWindow()
    for second in (one, other):
        for now in sorted(left):
            second.leave(now, GUARD, PATIENCE)
    slot = at * MICROS // SLOT
    counted = other.count(slot)
    assert one.held(slot, RUN) == other.held(slot, RUN)
    assert one.held(slot, RUN, urgent=False) == other.held(slot, RUN, urgent=False)
    assert counted == other.count(slot) == one.held(slot, 1, urgent=False)[0]
    assert counted == sum(1 for now in left if (now + PATIENCE + MICROS) // SLOT >= slot)


@given(st.lists(st.integers(0, 20 * MICROS), max_size=50))
def test_the_count_bounds_what_is_held(steps: list[int]) -> None:
    """Slot by slot or at one leap, with answers between: no run holds more than the count."""
    second, now = SecondWindow(), 0
    for step in steps:
        ends, late = second.leave(now, GUARD, PATIENCE)
        second.answered(ends, late, now + min(step, PATIENCE))
        now += step
        count = second.count(now // SLOT)
        assert second.held(now // SLOT, RUN)[0] <= count
        assert second.held(now // SLOT, RUN, urgent=False)[0] == count
