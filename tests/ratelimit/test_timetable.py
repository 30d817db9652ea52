"""Slots, phases and reservations that stay within both limits."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._ratelimit.timetable import Timetable
from perfect_async._time import SLOT
from tests.support.scheduler_harness import head

SECOND = 1_000_000
MINUTE = 60 * SECOND


def table(
    *, requests: int = 250, per_second: int = 5, cycle: int = 176, guard: int = 150_000
) -> Timetable:
    made = Timetable(
        requests=requests, period=300 * SECOND, per_second=per_second, horizon=600 * SECOND
    )
    assert made.recut(cycle, guard, 0, requests)
    return made


def reserved(made: Timetable) -> int:
    """Return how many polls the account's buckets hold."""
    made.account._settle()
    return sum(made.account._reserved)


def state(made: Timetable) -> tuple[object, ...]:
    tasks = {ref: (task.next, task.last) for ref, task in made._tasks.items()}
    sums = (
        sum(made.account._left),
        reserved(made),
        made.account._total,
        sum(made._phases._owners),
    )
    return made.cycle, made.guard, tasks, sums, list(made.queue), list(made._phases._owners)


def fill(made: Timetable, *, start: int = 0, last: int = 12_000, limit: int = 250) -> int:
    """Reserve tasks until no more are admitted; return how many."""
    count, slot = 0, start
    while made.admits(slot, slot, slot + last, limit):
        if made.free(slot):
            made.reserve(count, slot, slot + last)
            made.arm(count)
            count += 1
        slot += 1
    return count


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda made: made.reserve(3, 20, 2000), {3}),
        (lambda made: made.keep(1, 176 * SLOT), {1}),
        (lambda made: made.extend(1, 3000, 5, 250), {1}),
        (lambda made: made.shift(1, 200, 5, 250), {1}),
        (lambda made: made.mirror(-1, 200, 300), {-1}),
        (lambda made: made.adopt_plan(100, 150_000, {}), {1, 2}),
        (lambda made: made.recut(100, 150_000, 5 * SLOT, 250), {1, 2}),
        (lambda made: made.extend(1, 10**9, 5, 1), set()),
        (lambda made: made.release(1), set()),
    ],
)
def test_changed_reservations_are_known(
    change: Callable[[Timetable], object], changed: set[int]
) -> None:
    """Other members must read of each task whose reserved polls have moved."""
    made = table()
    for ref, slot in ((1, 0), (2, 10)):
        made.reserve(ref, slot, slot + 2000)
        made.arm(ref)
    made.changed.clear()

    change(made)

    assert changed == made.changed


def test_seven_tasks_fit() -> None:
    """The vendor's limits hold seven tasks with a poll every 8.8 s."""
    assert 7 == fill(table())


def test_reserved_polls_leave_in_order() -> None:
    """The first reserved poll of a task with an id is next; then it moves on by a cycle."""
    made = table()
    made.reserve(1, 10, 1000)
    made.reserve(2, 5, 1000)
    assert None is head(made.queue)
    made.arm(1)
    assert (186, 1) == head(made.queue)
    made.arm(2)
    assert (181, 2) == head(made.queue)
    made.keep(2, 181 * SLOT)
    assert (186, 1) == head(made.queue)
    assert 357 * SLOT == made.next_poll(2)


@pytest.mark.parametrize("late", [0, 1, 175, 176, 177, 1000])
def test_a_late_poll_keeps_its_phase(late: int) -> None:
    """After a late poll the next one is in the task's phase and in the future."""
    made = table()
    made.reserve(1, 10, 100_000)
    made.arm(1)
    made.keep(1, (186 + late) * SLOT)
    first = head(made.queue)
    assert first is not None
    assert 10 == first[0] % 176
    assert 186 + late < first[0] <= 186 + late + 176


def test_no_poll_after_the_last_slot() -> None:
    """A task has no reserved poll after its last slot, and leaves no trace when it ends."""
    made = table()
    before = state(made)
    made.reserve(1, 10, 100)
    made.arm(1)
    assert None is head(made.queue)
    made.release(1)
    made.reserve(2, 10, 200)
    made.arm(2)
    made.keep(2, 186 * SLOT)
    assert None is head(made.queue)
    made.release(2)
    assert before == state(made)
    assert 0 == len(made)


def test_a_window_is_taken_until_a_period_after_the_answer() -> None:
    """A request counts while it is unanswered, and for a period (and the guard) afterwards."""
    made = table()
    made.leave(1, 0, SECOND)
    assert 1 == made.occupied(0)
    assert 30 * SECOND == made.answered(1, 30 * SECOND)
    assert 249 == made.account.spare(329 * SECOND)
    assert 250 == made.account.spare(340 * SECOND)
    assert 0 == made.occupied(340 * SECOND)


def test_a_creation_counts_twice_until_its_answer() -> None:
    """A creation counts twice, so a first poll after a late answer has room."""
    made = table()
    made.leave(1, 0, SECOND, creates=True)
    assert 248 == made.account.spare(0)
    made.answered(1, SECOND)
    assert 249 == made.account.spare(SECOND)


def test_the_second() -> None:
    """Five requests fill a second until a second after their answers."""
    made = table()
    for number in range(5):
        assert made.room(0)
        made.leave(number, 0, SECOND)
    assert not made.room(0)
    for number in range(5):
        made.answered(number, 50_000)
    assert not made.room(SECOND)
    assert made.room(SECOND + 2 * SLOT)


def test_the_second_beside_an_unanswered_request() -> None:
    """An unanswered request counts for its patience, and only for the guard if it is urgent."""
    made = table(per_second=1)
    made.leave(1, 0, 2 * SECOND)
    assert not made.room(2 * SECOND)
    assert made.room(3 * SECOND + SLOT)
    assert not made.room(SECOND, urgent=True)
    assert made.room(SECOND + 4 * SLOT, urgent=True)


def test_the_second_beside_reserved_polls() -> None:
    """A request leaves only if reserved polls within the second, its own included, have room."""
    made = table(per_second=2)
    made.reserve(1, 10, 10_000)
    made.reserve(2, 12, 10_000)
    assert not made.room(180 * SLOT)
    assert made.room(200 * SLOT)
    tight = table(per_second=2, cycle=8)
    tight.reserve(1, 3, 10_000)
    assert not tight.room(8 * SLOT, creates=True)


def test_one_request_a_second_leaves_room_for_tries() -> None:
    """At one request per second two phases are so far apart that a retry fits between them."""
    made = table(per_second=1)
    made.reserve(1, 0, 10_000)
    assert not made.free(40)
    assert made.free(60)


def test_crowded_slots_and_seconds() -> None:
    """A slot has one phase, a second has four of five, and three if retries need two."""
    made = table()
    made.reserve(1, 0, 10_000)
    assert not made.free(176)
    for ref, slot in ((2, 4), (3, 8)):
        made.reserve(ref, slot, 10_000)
    assert made.free(12)
    made.spared = 2
    assert not made.free(12)


def test_growing_and_shrinking_the_cycle() -> None:
    """A new cycle moves no poll later and keeps one owner for each phase."""
    made = table(cycle=160)
    fill(made, limit=200)
    before = {ref: task.next for ref, task in made._tasks.items()}
    for cycle in (176, 140):
        assert made.recut(cycle, 300_000, 5 * SECOND, 250)
        assert all(before[ref] >= task.next > 100 for ref, task in made._tasks.items())
        assert all(task.next <= 100 + cycle for task in made._tasks.values())
        assert 1 == max(made._phases._owners)
        assert len(made) == sum(made._phases._owners)
    for ref in list(before):
        made.release(ref)
    assert 0 == made.account._total == reserved(made)


def test_a_plan_that_does_not_fit_changes_nothing() -> None:
    """If a shorter cycle would exceed the window, the plan stays unchanged."""
    made = table()
    fill(made)
    before = state(made)
    assert not made.recut(80, 150_000, 15 * SECOND, 246)
    assert before == state(made)


def test_a_plan_without_room_for_the_phases() -> None:
    """If a cycle has no phase for each task, the plan stays unchanged."""
    made = table(requests=10_000)
    for ref in range(12):
        made.reserve(ref, ref * 12, 10_000)
    before = state(made)
    assert not made.recut(30, SECOND, 145 * SLOT, 10_000)
    assert before == state(made)


def test_a_plan_beside_recent_requests() -> None:
    """A plan that moves polls beside recent requests beyond the limit is refused."""
    made = table(cycle=176, per_second=2, requests=10_000)
    for ref in range(2):
        made.reserve(ref, ref * 40, 10_000)
    now = 60 * SLOT
    for number in range(2):
        made.leave(number, now, SECOND)
    before = state(made)
    assert not made.recut(10, 150_000, now, 10_000)
    assert before == state(made)


def test_overdue_polls_get_a_phase_of_their_own() -> None:
    """After a stall overdue polls leave at once, and their tasks share no phase with others."""
    made = table(requests=1000, cycle=176)
    for ref in range(10):
        made.reserve(ref, ref * 15, 12_000)
        made.arm(ref)
    now = 400 * SLOT
    assert made.recut(120, 150_000, now, 1000)
    assert 1 == max(made._phases._owners)
    for _ in range(10):
        first = head(made.queue)
        assert first is not None
        assert first[0] <= 400
        made.keep(first[1], now)
    assert 10 == len({task.next % 120 for task in made._tasks.values()})


@pytest.mark.parametrize("gap", [10, 600, 36_000, 10**12])
def test_idle(gap: int) -> None:
    """The account stays small and correct after a long idle time."""
    made = table()
    for number in range(100):
        made.leave(number, 0, SECOND)
        made.answered(number, SECOND)
    now = gap * SECOND
    made.leave(1000, now, SECOND)
    assert (149 if gap < 300 else 249) == made.account.spare(now)
    assert 6_000 > len(made.account._left)


def test_overdue_for_long() -> None:
    """A reserved poll that is older than all buckets can still be kept and released."""
    made = table()
    made.reserve(1, 10, 200)
    made.reserve(2, 10, 190)
    made.arm(1)
    for minutes in (30, 60, 90):
        made.leave(minutes, minutes * MINUTE, SECOND)
    made.keep(1, 90 * MINUTE)
    made.release(2)
    made.release(1)
    assert 0 == reserved(made)
    assert 3 == made.occupied(90 * MINUTE)


def test_the_next_change_is_ahead() -> None:
    """A full window may change at the next bucket, which is after now."""
    made = table()
    for now in (0, 499_999, 500_000, 123_456_789):
        assert now < made.account.next_change(now) <= now + SECOND


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 3, 5, 8, 40]), st.sampled_from([8, 40, 176]))
def test_any_history_keeps_the_second(seed: int, per_second: int, cycle: int) -> None:
    """No second exceeds its limit, whatever requests leave beside reserved polls."""
    rng = random.Random(seed)
    made = table(per_second=per_second, cycle=cycle, requests=10**6)
    left: list[int] = []
    number = ref = 0
    for slot in range(400):
        now = slot * SLOT
        while (first := head(made.queue)) is not None and first[0] <= slot:
            assert first[0] == slot
            made.keep(first[1], now)
            number += 1
            made.leave(number, now, SECOND)
            left.append(now)
        if rng.random() < 0.5 and made.room(now, creates=True) and made.free(slot):
            ref, number = ref + 1, number + 1
            made.leave(number, now, SECOND, creates=True)
            made.reserve(ref, slot, slot + 12_000)
            made.arm(ref)
            left.append(now)
        elif rng.random() < 0.5 and made.room(now):
            number += 1
            made.leave(number, now, SECOND)
            left.append(now)
    span = SECOND + made.guard
    for at in left:
        assert per_second >= sum(at <= other < at + span for other in left)


def test_repr() -> None:
    """The repr says how many tasks are polled how often."""
    made = table()
    made.leave(1, 0, SECOND)
    assert "<Timetable 0 tasks every 8.8 s, 1 requests unanswered>" == repr(made)


def test_the_past_of_another_account_counts() -> None:
    """A new account with the past of another one has the same room, in window and second."""
    before, after = table(), table()
    for number in range(200):
        before.leave(number, number * SECOND, 450_000)
        before.answered(number, number * SECOND + 100_000)
    for number in range(200, 205):
        before.leave(number, 210 * SECOND, 450_000)
    before.answered(200, 210 * SECOND + 100_000)
    now = 210 * SECOND + 200_000
    after.remember(before.past(now))

    assert before.occupied(now) == after.occupied(0)
    assert before.account.spare(now) == after.account.spare(0)
    assert not after.room(0)
    assert after.room(2 * SECOND)
    assert 250 == after.account.spare(330 * SECOND)


def test_an_unused_account_has_no_past() -> None:
    """An account that was never used has no past."""
    assert ((0, 0),) == table().past(5 * SECOND)
    fresh = table()
    fresh.remember(())
    assert 250 == fresh.account.spare(0)


def test_an_overdue_poll_waits_for_the_one_of_the_slot() -> None:
    """The poll of the present slot leaves before overdue ones, which then take it into account."""
    made = table()
    for ref, slot in ((1, 0), (2, 10), (3, 20)):
        made.reserve(ref, slot, 12_000)
        made.arm(ref)
    assert (176, 1) == head(made.queue)
    assert (176, 1) == made.due(176)
    assert (186, 2) == made.due(186)
    assert (176, 1) == made.due(187)
    made.keep(2, 186 * SLOT)
    assert (176, 1) == made.due(186)
    made.keep(1, 187 * SLOT)
    assert (196, 3) == head(made.queue)
    assert 176 * 2 * SLOT == made.next_poll(1)


# Promises that change.


def test_longer_and_shorter() -> None:
    """A reservation becomes longer if that fits and shorter at once; freed it leaves no trace."""
    made = table()
    before = state(made)
    made.reserve(1, 0, 1000)
    made.arm(1)
    assert 5 == reserved(made)
    assert made.extend(1, 12_000, 0, 250)
    assert 68 == reserved(made)
    assert made.extend(1, 400, 0, 250)
    assert 2 == reserved(made)
    assert (176, 1) == head(made.queue)
    made.release(1)
    assert before == state(made)


def test_longer_where_it_does_not_fit() -> None:
    """A longer reservation that does not fit changes nothing; a shorter one always fits."""
    made = table()
    fill(made)
    made.reserve(99, 5000, 5100)
    before = state(made)
    assert not made.extend(99, 12_000, 5000, 250)
    assert before == state(made)
    assert made.extend(99, 5000, 5000, 0)


def test_a_lapsed_reservation() -> None:
    """A task has lapsed after its last reserved poll, and is extended in its phase and ahead."""
    made = table()
    made.reserve(1, 10, 200)
    made.arm(1)
    assert not made.lapsed(1)
    made.keep(1, 186 * SLOT)
    assert made.lapsed(1)
    assert None is head(made.queue)
    assert made.extend(1, 2000, 1000, 250)
    assert not made.lapsed(1)
    assert (10 + 6 * 176, 1) == head(made.queue)
    assert 6 == reserved(made)


def test_shorter_than_the_next_poll() -> None:
    """If a reservation ends before its next poll, that poll leaves the queue as well."""
    made = table()
    made.reserve(1, 10, 1000)
    made.arm(1)
    assert made.extend(1, 100, 50, 250)
    assert made.lapsed(1)
    assert None is head(made.queue)
    assert 0 == reserved(made)
    # One more, in its phase, as if nothing had been.
    assert made.extend(1, 200, 50, 250)
    assert (186, 1) == head(made.queue)


def test_a_reserved_poll_moves_later() -> None:
    """An early poll moves the next reserved one, and the phase, to a later slot."""
    made = table()
    made.reserve(1, 0, 12_000)
    made.arm(1)
    made.shift(1, 220, 100, 250)
    assert (220, 1) == head(made.queue)
    assert made.free(176)
    assert not made.free(220)
    assert 1 == sum(made._phases._owners)
    assert 67 == made.account._total


@pytest.mark.parametrize("to", [100, 176, 2001])
def test_a_reserved_poll_moves_only_later_and_not_beyond_the_last(to: int) -> None:
    """A poll moves neither to an earlier slot nor behind the last reserved one."""
    made = table()
    made.reserve(1, 0, 2000)
    made.arm(1)
    before = state(made)
    made.shift(1, to, 50, 250)
    assert before == state(made)


def test_a_reserved_poll_stays_where_the_new_slot_is_taken() -> None:
    """A poll does not move if another task owns the phase or the windows are full."""
    made = table()
    for ref, slot in ((1, 0), (2, 44)):
        made.reserve(ref, slot, 12_000)
        made.arm(ref)
    before = state(made)
    made.shift(1, 220, 100, 250)
    assert before == state(made)
    made.shift(1, 230, 100, 20)
    assert before == state(made)
    made.shift(1, 230, 100, 250)
    assert (220, 2) == head(made.queue)


@given(
    st.integers(1, 400),
    st.lists(st.tuples(st.sampled_from(["extend", "shift", "keep"]), st.integers(0, 900))),
)
def test_the_account_matches_the_reservations(last: int, moves: list[tuple[str, int]]) -> None:
    """However reservations change, exactly the reserved polls are counted."""
    made = table(cycle=40, requests=30)
    before, slot = state(made), 0
    for ref in (1, 2):
        made.reserve(ref, ref * 12, ref * 12 + last)
        made.arm(ref)
    for what, by in moves:
        slot += by % 7
        if what == "extend":
            made.extend(1, slot + by, slot, 30)
        elif what == "shift":
            made.shift(1, slot + by, slot, 30)
        elif (first := head(made.queue)) is not None:
            slot = max(slot, first[0])
            made.keep(first[1], slot * SLOT)
        tasks = made._tasks.values()
        assert sum(len(made._polls(task)) for task in tasks) == made.account._total
        first = head(made.queue)
        assert min((task.next for task in tasks if task.next <= task.last), default=None) == (
            first and first[0]
        )
    for ref in (1, 2):
        made.release(ref)
    assert before == state(made)


# Where a task may begin.


def test_the_origin_is_the_latest_free_phase() -> None:
    """A new task gets the phase of its slot, or the nearest free one before it."""
    made = table()
    assert 500 == made.origin(500)
    made.reserve(1, 500, 12_000)
    assert 499 == made.origin(500)
    for ref in range(2, 5):
        place = made.origin(500)
        assert place is not None
        made.reserve(ref, place, 12_000)
    # Four in any second and guard: the next is as far before them.
    reach = made._reach
    assert 500 - reach == made.origin(500)


def test_no_origin() -> None:
    """A new task gets no phase more than a quarter of the cycle before its creation."""
    made = table()
    taken = 0
    while (place := made.origin(500)) is not None:
        assert 500 - 44 <= place <= 500
        made.reserve(taken, place, 12_000)
        taken += 1
    assert 4 <= taken <= 8


def test_admission_under_another_plan() -> None:
    """A task that does not fit is admitted under a plan in which running tasks end sooner."""
    made = table()
    count = fill(made)
    slot = next(slot for slot in range(5000, 5200) if made.free(slot))
    assert not made.admits(slot, slot, slot + 12_000, 250)
    assert not made.would_admit(slot, slot, slot + 12_000, dict.fromkeys(range(count), 17_000), 250)
    assert made.would_admit(slot, slot, slot + 12_000, dict.fromkeys(range(count), 5600), 250)
    before = state(made)
    made.would_admit(slot, slot, 40_000, dict.fromkeys(range(count), 40_000), 250)
    assert before[:3] == state(made)[:3]


# What is lent.


def test_the_last_request_of_a_second_is_used() -> None:
    """It may be used at one request per second if none is unanswered and no retry needs it."""
    made = table(per_second=1)
    made.reserve(1, 0, 12_000)
    reach = made._reach
    assert not made.room(20 * SLOT, kept=1)
    assert made.lends(20 * SLOT, 10)
    # What is reserved next leaves in time for its try, but not for one with less slack.
    late = 176 - reach + 5
    assert not made.room(late * SLOT)
    assert made.lends((176 - reach) * SLOT, 10)
    assert not made.lends((176 - reach) * SLOT, 0)
    assert not made.lends(late * SLOT, 10)
    made.leave(1, 20 * SLOT, SECOND)
    assert not made.lends(50 * SLOT, 10)
    made.answered(1, 21 * SLOT)
    assert not made.lends(30 * SLOT, 10)
    assert made.lends(60 * SLOT, 10)


def test_one_of_two_free_requests_is_used() -> None:
    """If a second has room for two requests, one may be used beside unanswered ones."""
    made = table()
    for number in range(3):
        made.leave(number, 0, SECOND)
    assert made.lends(0, 0)
    made.leave(4, 0, SECOND)
    assert made.room(0)
    assert not made.lends(0, 100)


@pytest.mark.parametrize("asleep", [700, 1000, 3600])
def test_longer_after_a_stall(asleep: int) -> None:
    """A task whose reserved polls are all overdue by more than a window can be extended."""
    made = table()
    for ref in range(7):
        made.reserve(ref, ref * 20, ref * 20 + 2400)
        made.arm(ref)
    now = asleep * SECOND
    made.leave(100, now, SECOND)
    for ref in range(7):
        made.extend(ref, ref * 20 + 12_000, now // SLOT, 246)
    for ref in range(7):
        made.release(ref)
    assert 0 == made.account._total == reserved(made)


def test_a_short_reservation_beside_long_ones() -> None:
    """No run of a period exceeds the limit, also after the last reserved poll of a task."""
    made = table()
    for ref in range(7):
        made.reserve(ref, ref * 20, ref * 20 + 12_000)
    ref, slot = 7, 140
    while made.admits(slot, slot, slot + 2400, 246):
        made.reserve(ref, slot, slot + 2400)
        ref, slot = ref + 1, slot + 20
    assert 246 >= made.account.peak(slot, slot + 12_000)


def test_more_requests_are_spared_at_once() -> None:
    """If another fifth of a second is kept for retries, fewer phases are free from then on."""
    made = table()
    for ref, slot in enumerate((0, 2, 4)):
        made.reserve(ref, slot, 12_000)
    assert made.free(6)
    made.spared = 2
    assert 2 == made.spared
    assert not made.free(6)
    made.spared = 1
    assert made.free(6)


def test_whether_a_poll_is_reserved_by_a_time() -> None:
    """A reserved poll counts if it exists and leaves by that time."""
    made = table()
    made.reserve(1, 0, 200)
    assert made.polled_by(1, 176 * SLOT)
    assert not made.polled_by(1, 176 * SLOT - 1)
    made.arm(1)
    made.keep(1, 176 * SLOT)
    assert made.lapsed(1)
    assert not made.polled_by(1, 1000 * SLOT)


def test_an_existing_task_takes_a_request_of_retries() -> None:
    """If the other phases are taken, a task that exists gets four of five all the same."""
    made = table()
    made.spared = 2
    count = 0
    while (place := made.origin(500)) is not None:
        made.reserve(count, place, 10_000)
        count += 1
    place = made.origin(500, exists=True)
    assert place is not None
    assert 500 - made.cycle // 4 <= place <= 500
    while (place := made.origin(500, exists=True)) is not None:
        made.reserve(count, place, 10_000)
        count += 1
    made.spared = 1
    assert None is made.origin(500)


# Other members of the key.


def test_polls_of_others_count_and_are_never_due() -> None:
    """Polls of other members count in the window, and only their owners send them."""
    made = table()
    made.account.forget(0)

    made.mirror(-2, 100, 12_000)
    made.mirror(-2, 110, 12_000)

    assert (110, 12_000) == made.reserved(-2)
    assert made.due(110) is None
    assert 6 == fill(made)
    made.release(-2)
    assert 0 == reserved(made) - sum(len(made._polls(task)) for task in made._tasks.values())


def test_a_poll_of_another_member_keeps_its_place_in_the_second_for_a_while() -> None:
    """A poll of another member counts in its slot and for 0.3 s more, since it may be late."""
    made = table(per_second=1, guard=0)
    made.account.forget(0)
    made.mirror(-2, 100, 12_000)

    due = [made.foreign_due(slot) for slot in (99, 100, 105, 106)]

    assert [0, 1, 1, 0] == due
    assert not made.room(100 * SLOT)


def test_the_plan_of_another_member_moves_all_tasks() -> None:
    """Tasks that the plan names move to their new slots; the others get only the new cycle."""
    made = table()
    for ref in (1, 2):
        made.reserve(ref, 10 * ref, 12_000)
        made.arm(ref)

    made.adopt_plan(140, 200_000, {1: (90, 11_000)})

    assert (140, 200_000) == (made.cycle, made.guard)
    assert [(90, 11_000), (196, 12_000)] == [made.reserved(ref) for ref in (1, 2)]
    assert (90, 1) == head(made.queue)
    assert sum(len(made._polls(task)) for task in made._tasks.values()) == reserved(made)


def test_new_limits_keep_requests_and_reservations() -> None:
    """Answered requests count in a longer window, and all reservations stay."""
    made = table()
    made.leave(1, 10 * SECOND, 450_000)
    made.answered(1, 11 * SECOND)
    made.leave(2, 12 * SECOND, 450_000)
    made.reserve(1, 240, 12_000)
    before = reserved(made)

    made.set_limits(requests=100, period=600 * SECOND, per_second=2)

    assert (100, 2) == (made.account.requests, made.per_second)
    assert before == reserved(made)
    assert 2 == made.occupied(13 * SECOND)
    assert 2 == made.occupied(500 * SECOND)


def test_new_limits_before_any_request() -> None:
    """The new account begins where the old one did, and not at the last reserved poll."""
    made = table()
    made.account.forget(0)
    made.mirror(-2, 100, 12_000)

    made.set_limits(requests=100, period=300 * SECOND, per_second=5)

    assert made.recut(160, 150_000, 0, 98)
