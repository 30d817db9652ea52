"""The limit of a period, in buckets: answers agree with counting one window after another."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._ratelimit.window import SlidingWindow
from perfect_async._time import SLOT

SECOND = 1_000_000
LATEST = 2 * SECOND
REQUESTS = 20

# What happened: (slots since what was before, what, how many slots a reserved poll is long, every
# so many of them).
MOVES = st.lists(
    st.tuples(
        st.integers(0, 90),
        st.sampled_from(["answered", "reserved", "unanswered"]),
        st.integers(1, 400),
        st.integers(1, 60),
    ),
    max_size=25,
)
POLLS = st.tuples(st.integers(0, 60), st.integers(1, 400), st.integers(1, 60))
LIMITS = st.integers(0, 40)
NEAR = st.integers(0, 2)


def account(
    *, requests: int = REQUESTS, period: int = 3 * SECOND, horizon: int = 4000
) -> SlidingWindow:
    """Return an account of buckets of two slots that begins at 0; `horizon` is in slots."""
    made = SlidingWindow(requests=requests, period=period, horizon=horizon * SLOT)
    made.index(0)
    return made


def reserved(made: SlidingWindow) -> list[int]:
    """Return the reserved polls of each bucket."""
    made._settle()
    return list(made._reserved)


class Plain:
    """The same account, counted one window after another."""

    def __init__(self, made: SlidingWindow) -> None:
        self.bucket, self.run = made._bucket, made._run
        self.left: Counter[int] = Counter()
        self.reserved: Counter[int] = Counter()
        self.unanswered = 0

    def count(self, polls: range, by: int) -> None:
        for slot in polls:
            self.reserved[slot // self.bucket] += by

    def peak(self, slot: int, last: int, polls: Sequence[int] = (), leaving: int = 0) -> int:
        """Return the most in a window that ends from `slot` to `last`, with these requests."""
        here, last = slot // self.bucket, max(slot, last) // self.bucket
        counts = self.left + self.reserved + Counter(poll // self.bucket for poll in polls)
        counts[here] += self.unanswered + leaving
        return max(
            sum(counts[bucket] for bucket in range(first, first + self.run))
            for first in range(here - self.run + 1, last - self.run + 2)
        )

    def beyond(self, last: int) -> int:
        """Return a slot in the last bucket of the windows that contain `last`."""
        return last + (self.run - 1) * self.bucket


def played(
    moves: Sequence[tuple[int, str, int, int]], *, forgets: bool = False
) -> tuple[SlidingWindow, Plain, int]:
    """Return an account, the same counted plainly, and the slot in which `moves` ended."""
    made = account()
    plain, slot = Plain(made), 0
    for gap, what, length, step in moves:
        slot += gap
        if what == "answered":
            made.answered(slot * SLOT)
            plain.left[slot // plain.bucket] += 1
        elif what == "reserved":
            made.reserve(len(made._plans), range(slot, slot + length, step))
            plain.count(range(slot, slot + length, step), 1)
        else:
            made.unanswered += 1
            plain.unanswered += 1
        if forgets:
            made.forget(slot * SLOT)
    return made, plain, slot


# Windows.


@pytest.mark.parametrize(("period", "horizon"), [(3, 4000), (300, 12_000), (300, 2400), (1, 200)])
def test_two_requests_within_a_period_share_a_window(period: int, horizon: int) -> None:
    """Requests closer than a period and the latest arrival share a run; others hardly ever do."""
    made = account(period=period * SECOND, horizon=horizon)
    span = (period * SECOND + LATEST) // SLOT
    for first in range(made._bucket):
        buckets = (first + span) // made._bucket - first // made._bucket
        assert buckets < made._run
    assert (made._run - 2) * made._bucket < span


@pytest.mark.parametrize(("period", "horizon"), [(300, 600), (86_400, 600), (300, 86_400), (1, 1)])
def test_there_are_not_too_many_buckets(period: int, horizon: int) -> None:
    """For any period and horizon there are at most some thousands of buckets."""
    made = SlidingWindow(requests=250, period=period * SECOND, horizon=horizon * SECOND)
    assert 4001 >= (period + horizon) * SECOND // (made._bucket * SLOT)


def test_the_reach_of_a_task() -> None:
    """A window holds no more reservations of a task than the task has, and than fit its length."""
    assert 20 == account(period=300 * SECOND, horizon=20).reach
    made = account()
    assert made._run * made._bucket == made.reach
    assert (3 * SECOND + LATEST) // SLOT <= made.reach


def test_the_next_change_is_the_next_bucket() -> None:
    """The present bucket is the same until the next change, and not longer."""
    made = account()
    for now in (0, SLOT, 2 * SLOT - 1, 2 * SLOT, 12_345_678):
        later = made.next_change(now)
        assert now < later <= now + 2 * SLOT
        assert made.bucket(now) == made.bucket(later - 1) == made.bucket(later) - 1


@given(MOVES, st.integers(600, 1000))
def test_the_peak_is_that_of_the_windows(moves: list[tuple[int, str, int, int]], to: int) -> None:
    """The peak is the most in a window of those that contain a slot and those after it."""
    made, plain, slot = played(moves)
    assert plain.peak(slot, slot + to) == made.peak(slot, slot + to)


# What fits.


@given(MOVES)
def test_spare_requests(moves: list[tuple[int, str, int, int]]) -> None:
    """The spare requests could leave now, also after more is reserved or sent."""
    made, plain, slot = played(moves)
    made.spare(slot * SLOT)
    made.reserve(-1, range(slot, slot + 10))
    plain.count(range(slot, slot + 10), 1)
    peak = plain.peak(slot, plain.beyond(slot))
    assert REQUESTS - peak == made.spare(slot * SLOT) == made.spare(slot * SLOT)
    made.unanswered += 1
    assert REQUESTS - peak - 1 == made.spare(slot * SLOT)
    made.answered(slot * SLOT)
    assert REQUESTS - peak - 2 == made.spare(slot * SLOT)


@given(MOVES, st.integers(0, 10), LIMITS)
def test_requests_that_fit_now(
    moves: list[tuple[int, str, int, int]], count: int, limit: int
) -> None:
    """More requests fit now if every window that contains the present has room for them."""
    made, plain, slot = played(moves)
    peak = plain.peak(slot, plain.beyond(slot))
    assert (peak + count <= limit) == made.fits(slot * SLOT, count, limit)


@given(MOVES, POLLS, st.integers(0, 2), NEAR)
def test_polls_that_fit(
    moves: list[tuple[int, str, int, int]],
    polls: tuple[int, int, int],
    leaving: int,
    near: int,
) -> None:
    """Polls fit only if every window up to the last of them has room, and are refused only for a
    window that contains one of them.
    """
    made, plain, slot = played(moves)
    more = range(slot + polls[0], slot + polls[0] + polls[1], polls[2])
    by, beyond = (
        plain.peak(slot, last, more, leaving) for last in (more[-1], plain.beyond(more[-1]))
    )
    assert by <= beyond
    assert not made.holds(slot, more, by - 1, leaving=leaving)
    assert made.holds(slot, more, beyond + near, leaving=leaving)


@given(MOVES, st.lists(POLLS, max_size=4), st.integers(0, 2), NEAR)
def test_another_plan(
    moves: list[tuple[int, str, int, int]],
    plan: list[tuple[int, int, int]],
    leaving: int,
    near: int,
) -> None:
    """Another plan is checked against the requests that left, and replaces the reservations."""
    made, plain, slot = played(moves)
    before = made.spare(slot * SLOT), made._total, reserved(made)
    more = [range(slot + after, slot + after + length, step) for after, length, step in plan]
    plain.reserved.clear()
    polls = [poll for some in more for poll in some]
    made.index(slot)
    peak = plain.peak(slot, plain.beyond(max(polls, default=slot)), polls, leaving)
    assert not made.would_hold(slot, more, peak - 1, leaving=leaving)
    assert made.would_hold(slot, more, peak + near, leaving=leaving)
    assert before[:2] == (made.spare(slot * SLOT), made._total)
    assert before[2] == reserved(made)[: len(before[2])]


@given(MOVES, POLLS, LIMITS)
def test_both_checks_agree_without_reservations(
    moves: list[tuple[int, str, int, int]], polls: tuple[int, int, int], limit: int
) -> None:
    """Without reservations both checks have the same answer."""
    made, _, slot = played([move for move in moves if move[1] != "reserved"])
    more = range(slot + polls[0], slot + polls[0] + polls[1], polls[2])
    made.index(slot)
    assert made.would_hold(slot, [more], limit) == made.holds(slot, more, limit)


@given(MOVES, st.integers(0, 10), LIMITS)
def test_the_quick_check_is_correct(
    moves: list[tuple[int, str, int, int]], count: int, limit: int
) -> None:
    """Requests that pass the quick check fit in every window."""
    made, plain, slot = played(moves)
    if made.at_most(count, limit):
        assert made.fits(slot * SLOT, count, limit)
        assert plain.peak(slot, slot + 600) + count <= limit


def test_an_empty_reservation() -> None:
    """A reservation without polls fits exactly if the request that leaves does."""
    made = account(requests=1)
    made.reserve(1, range(5, 5))
    assert 0 == made._total
    assert made.holds(0, range(5, 5), 1, leaving=1)
    made.answered(0)
    assert not made.holds(0, range(5, 5), 1, leaving=1)


def test_past_windows_do_not_count() -> None:
    """A window is full until its first request is older than a period and the latest arrival."""
    made = account(requests=3)
    for _ in range(3):
        made.answered(0)
    assert not made.fits((3 * SECOND + LATEST), 1, 3)
    assert made.fits(3 * SECOND + LATEST + 2 * 2 * SLOT, 3, 3)


# What is reserved, what left.


@given(MOVES, POLLS, st.booleans())
def test_a_reservation_taken_back_leaves_no_trace(
    moves: list[tuple[int, str, int, int]], polls: tuple[int, int, int], looked: bool
) -> None:
    """A reservation that was taken back changes no answer, whether it was counted or not."""
    made, _, slot = played(moves)
    more = range(slot + polls[0], slot + polls[0] + polls[1], polls[2])
    made.index(more[-1])
    before = made._total, reserved(made), made.spare(slot * SLOT)
    made.reserve(-1, more)
    assert before[0] + len(more) == made._total
    if looked:
        made.spare(slot * SLOT)
    made.reserve(-1, range(0))
    assert before == (made._total, reserved(made), made.spare(slot * SLOT))


# What happens to the reservations of a few tasks: whose, from which slot on, so many, every so many
# of them, and whether anybody looks at the buckets afterwards.
PLANS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 60),
        st.integers(0, 12),
        st.sampled_from([3, 7]),
        st.booleans(),
    ),
    max_size=30,
)


@given(PLANS)
def test_the_last_reservation_counts(plans: list[tuple[int, int, int, int, bool]]) -> None:
    """However often a reservation changes, the buckets hold the last one."""
    made, last = account(), dict[int, range]()
    for ref, first, count, step, looked in plans:
        last[ref] = range(first, first + count * step, step)
        made.reserve(ref, last[ref])
        assert sum(len(polls) for polls in last.values()) == made._total
        if looked:
            made.spare(0)
    expected = Counter(slot // made._bucket for polls in last.values() for slot in polls)
    assert expected == Counter({at: count for at, count in enumerate(reserved(made)) if count})


@given(PLANS)
def test_some_reserved_polls_have_left(plans: list[tuple[int, int, int, int, bool]]) -> None:
    """A reservation without its first polls, or with them again, is counted correctly."""
    made, last = account(), dict[int, range]()
    for ref, first, _, _, looked in plans:
        last[ref] = range(7 * (first % 9), 63, 7)
        made.reserve(ref, last[ref])
        if looked:
            made.spare(0)
    expected = Counter(slot // made._bucket for polls in last.values() for slot in polls)
    assert expected == Counter({at: count for at, count in enumerate(reserved(made)) if count})


def test_uncounted_tasks_leave_nothing_behind() -> None:
    """Tasks that are added and removed while all requests fit leave nothing behind."""
    made = account()
    for ref in range(100):
        made.reserve(ref, range(10, 400, 7))
        made.reserve(ref, range(17, 400, 7))
        assert made.fits(0, 1, 10**6)
        made.reserve(ref, range(0))
    assert (0, 0, 0) == (len(made._plans), len(made._counted), len(made._changed))
    assert not any(made._reserved)


@given(MOVES, st.integers(0, 300), POLLS, LIMITS)
def test_forgetting_changes_no_answer(
    moves: list[tuple[int, str, int, int]], later: int, polls: tuple[int, int, int], limit: int
) -> None:
    """Requests that are dropped are in no window from now on."""
    made, _, slot = played(moves)
    other, _, _ = played(moves, forgets=True)
    slot += later
    more = range(slot + polls[0], slot + polls[0] + polls[1], polls[2])
    assert made.spare(slot * SLOT) == other.spare(slot * SLOT)
    assert made.occupied(slot * SLOT) == other.occupied(slot * SLOT)
    assert made.past(slot * SLOT) == other.past(slot * SLOT)
    assert made.peak(slot, slot + 400) == other.peak(slot, slot + 400)
    assert made.fits(slot * SLOT, 1, limit) <= other.fits(slot * SLOT, 1, limit)
    assert made.holds(slot, more, limit) <= other.holds(slot, more, limit)


def test_old_requests_are_dropped() -> None:
    """The account stays small, and a reservation that was overdue can still be removed."""
    made = account()
    made.reserve(1, range(10, 20, 5))
    made.answered(0)
    for second in range(0, 600, 5):
        made.forget(second * SECOND)
        assert 4 * made._run > len(made._left)
    assert 2 == made._total == sum(reserved(made))
    made.reserve(1, range(0))
    assert 0 == made._total == sum(reserved(made))
    made.forget(10**6 * SECOND)
    assert 0 == made._total
    assert REQUESTS == made.spare(10**6 * SECOND)


@given(MOVES, st.integers(0, 2 * SLOT - 1), st.integers(0, 200))
def test_the_past_is_counted_in_full(
    moves: list[tuple[int, str, int, int]], part: int, later: int
) -> None:
    """An account with the past of another counts all of it, for at least as long."""
    made, _, slot = played([move for move in moves if move[1] == "answered"])
    now = slot * SLOT + part
    told = SlidingWindow(requests=REQUESTS, period=3 * SECOND, horizon=4000 * SLOT)
    told.remember(made.past(now))
    assert made.occupied(now) == told.occupied(0) == told._total
    assert made.occupied(now + later * SLOT) <= told.occupied(later * SLOT)
    assert 0 == told.occupied(3 * SECOND + LATEST + 3 * 2 * SLOT)


def test_the_past_by_age() -> None:
    """The past lists the oldest requests first, with their least ages."""
    made = account()
    for now in (0, 10 * SLOT, 11 * SLOT, 20 * SLOT):
        made.answered(now)
    assert [(18 * SLOT, 1), (8 * SLOT, 2), (0, 1)] == made.past(20 * SLOT)
    assert 4 == made.occupied(20 * SLOT)
    assert [] == made.past(10**9)


@given(MOVES, POLLS, st.integers(0, 2))
def test_polls_that_fit_are_within_every_window(
    moves: list[tuple[int, str, int, int]], polls: tuple[int, int, int], leaving: int
) -> None:
    """Polls fit only if every window that contains one of them has room."""
    made, plain, slot = played(moves)
    more = range(slot + polls[0], slot + polls[0] + polls[1], polls[2])
    peak = plain.peak(slot, plain.beyond(more[-1]), more, leaving)
    assert made.holds(slot, more, peak, leaving=leaving)
    assert not made.holds(slot, more, peak - 1, leaving=leaving)


def test_a_begun_account_counts_earlier_requests_from_when_they_left() -> None:
    """Requests of other processes, read later, leave the window a period after they were sent."""
    made = SlidingWindow(requests=REQUESTS, period=3 * SECOND, horizon=4000 * SLOT)
    known_since_0 = account()
    now = 40 * SLOT
    made.begin(now)
    made.begin(now)
    for at in (0, 10 * SLOT, 39 * SLOT):
        made.answered(at)
        known_since_0.answered(at)

    for later in range(200):
        at = now + later * SLOT
        assert known_since_0.occupied(at) == made.occupied(at)
    assert 3 == made._total


@pytest.mark.parametrize("period", [3, 6])
def test_a_copy_keeps_the_times_before_0(period: int) -> None:
    """Requests that left before time 0 count in the copy for as long as in the original."""
    made = SlidingWindow(requests=REQUESTS, period=3 * SECOND, horizon=4000 * SLOT)
    made.remember([(2 * SECOND, 3)])
    other = SlidingWindow(requests=REQUESTS, period=period * SECOND, horizon=4000 * SLOT)
    other.copy(made)

    assert 3 == other.occupied(0) == other._total
    assert 3 == other.occupied((period - 2) * SECOND)
    assert 0 == other.occupied((period - 2) * SECOND + LATEST + 4 * 2 * SLOT)


def test_any_plan_of_an_empty_account() -> None:
    """An empty account answers for any plan."""
    made = SlidingWindow(requests=10, period=3 * SECOND, horizon=4000 * SLOT)
    assert made.would_hold(100, [range(100, 101)], 10)


@given(PLANS, POLLS, LIMITS)
def test_replace(
    plans: list[tuple[int, int, int, int, bool]], polls: tuple[int, int, int], limit: int
) -> None:
    """A task gets other polls if they fit without its own, and otherwise keeps its own."""
    made, other = account(), account()
    for ref, first, count, step, _ in plans:
        for each in (made, other):
            each.reserve(ref, range(first, first + count * step, step))
    before = made._total, reserved(made)
    more = range(polls[0], polls[0] + polls[1], polls[2])
    other.reserve(0, range(0))
    fits = other.holds(0, more, limit)
    assert fits == made.replace(0, more, 0, limit)
    if fits:
        other.reserve(0, more)
        assert (other._total, other.peak(0, 900)) == (made._total, made.peak(0, 900))
    else:
        made.index(len(before[1]) * made._bucket)
        assert before == (made._total, reserved(made)[: len(before[1])])
