"""What refusals make plausible about the key: how much of its window others use."""

from hypothesis import given
from hypothesis import strategies as st

from perfect_async._ratelimit.adaptive import AdaptiveLimit
from perfect_async._time import SECOND


def test_one_refusal_is_a_second() -> None:
    """One 429 may be the second's limit: a pause of a second and nothing else."""
    allowance = AdaptiveLimit(250)
    allowance.refused(10 * SECOND, 10 * SECOND, 100, None)
    assert 11 * SECOND == allowance.paused_until
    assert 250 == allowance.limit(10 * SECOND)
    assert 0 == allowance.contended_until


def full(allowance: AdaptiveLimit, now: int, own: int) -> None:
    """The window is full at `now`, while `own` requests of ours are in it."""
    allowance.refused(now - 2 * SECOND, now - 2 * SECOND, own, None)
    allowance.refused(now, now, own, None)


def test_two_running_are_the_window() -> None:
    """Two 429s running: 0.8 of our own, a pause of 40 s, two contended minutes, slow growth to 0.9,
    and after ten minutes beyond.
    """
    allowance, now = AdaptiveLimit(250), 10 * SECOND
    full(allowance, now, 100)
    assert 80 == allowance.limit(now)
    assert now + 40 * SECOND == allowance.paused_until
    assert now + 120 * SECOND == allowance.contended_until
    assert 85 == allowance.limit(now + 100 * SECOND)
    assert 90 == allowance.limit(now + 600 * SECOND)
    assert not allowance.probing(now + 600 * SECOND)
    assert 91 == allowance.limit(now + 620 * SECOND)
    assert allowance.probing(now + 620 * SECOND)
    assert 250 == allowance.limit(now + 10_000 * SECOND)
    assert not allowance.probing(now + 10_000 * SECOND)


def test_growth_is_faster_while_nothing_is_refused() -> None:
    """Where the other left, each window brings more than the one before."""
    allowance = AdaptiveLimit(250)
    full(allowance, 0, 50)
    limits = [allowance.limit((600 + 300 * window) * SECOND) for window in range(6)]
    assert [45, 67, 105, 157, 225, 250] == limits


def test_more_that_is_refused_is_held_for_longer() -> None:
    """What was tried beyond and refused is not tried again for twice as long, an hour at most."""
    allowance, now = AdaptiveLimit(250), 10 * SECOND
    full(allowance, now, 100)
    tried = 600
    for hold in (1200, 2400, 3600, 3600):
        allowance.accepted(now, 100)
        now += (tried + 200) * SECOND
        tried = hold
        full(allowance, now, 100)
        assert 90 == allowance.limit(now + hold * SECOND)
        assert 90 < allowance.limit(now + (hold + 30) * SECOND)


def test_who_came_just_now_will_take_more() -> None:
    """What others took between contact and the next answer is taken for their rate."""
    allowance = AdaptiveLimit(250)
    full(allowance, 0, 246)
    # 30 s later they hold between 4 + 14 and 4 + 16: 0.5 a second, 150 in a window.
    allowance.refused(29 * SECOND, 29 * SECOND, 232, None)
    allowance.accepted(30 * SECOND, 230)
    assert 86 == allowance.limit(30 * SECOND)
    assert allowance.limit(300 * SECOND) <= 90


def test_who_was_there_before_takes_no_more() -> None:
    """Where others hold as much later as at contact, the ceiling stands."""
    allowance = AdaptiveLimit(250)
    full(allowance, 0, 100)
    allowance.accepted(60 * SECOND, 100)
    assert 80 <= allowance.limit(60 * SECOND)
    assert 90 == allowance.limit(400 * SECOND)


def test_silence_grows_while_the_window_is_full() -> None:
    """One request asks after 1, 2, 4 and at most 30 s whether the window is still full."""
    allowance, now, silences = AdaptiveLimit(250), 10 * SECOND, []
    full(allowance, now, 100)
    for _ in range(7):
        assert allowance.full
        silences.append((allowance.silent_until - now) // SECOND)
        now = allowance.silent_until
        allowance.refused(now, now, 100, None)
    assert [1, 2, 4, 8, 16, 30, 30] == silences
    allowance.accepted(now, 100)
    assert not allowance.full
    assert 0 == allowance.silent_until
    # Not long after, one 429 is enough to be silent.
    allowance.refused(now + SECOND, now + SECOND, 100, None)
    assert now + 2 * SECOND == allowance.silent_until


def test_one_refusal_is_no_silence() -> None:
    """One 429 out of nowhere may be the second's limit: what keeps tasks alive goes on."""
    allowance = AdaptiveLimit(250)
    allowance.refused(10 * SECOND, 10 * SECOND, 100, None)
    assert 0 == allowance.silent_until
    assert not allowance.full


def test_what_was_under_way_tells_no_more() -> None:
    """Many 429s to requests that left before the pause after the first are one."""
    allowance = AdaptiveLimit(250)
    for number in range(5):
        allowance.refused(10 * SECOND + number, 9 * SECOND + number, 100, None)
    assert 250 == allowance.limit(10 * SECOND)
    assert 11 * SECOND + 4 == allowance.paused_until


def test_quiet_times() -> None:
    """The window is quiet 30 s after it was full, and each time later, 5 minutes at most."""
    allowance = AdaptiveLimit(250)
    assert allowance.quiet(0)
    full(allowance, 2 * SECOND, 1)
    assert not allowance.quiet(31 * SECOND)
    assert allowance.quiet(32 * SECOND)
    allowance.accepted(32 * SECOND, 1)
    full(allowance, 40 * SECOND, 3)
    assert not allowance.quiet(99 * SECOND)
    assert allowance.quiet(100 * SECOND)
    allowance.accepted(100 * SECOND, 1)
    full(allowance, 10_000 * SECOND, 3)
    assert allowance.quiet(10_030 * SECOND)


def test_an_accepted_request_between() -> None:
    """Two 429s with an accepted request between them are not running."""
    allowance = AdaptiveLimit(250)
    allowance.refused(0, 0, 100, None)
    allowance.accepted(0, 0)
    allowance.refused(5 * SECOND, 5 * SECOND, 100, None)
    assert 250 == allowance.limit(5 * SECOND)


def test_retry_after_is_honoured() -> None:
    """A longer pause that the vendor asks for is kept; a shorter one is not."""
    allowance = AdaptiveLimit(250)
    allowance.refused(0, 0, 100, 40 * SECOND)
    assert 40 * SECOND == allowance.paused_until
    allowance.refused(0, 0, 100, 1)
    assert 40 * SECOND == allowance.paused_until


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 300)), max_size=60))
def test_never_above_the_limit_nor_locked_out(refusals: list[tuple[int, int]]) -> None:
    """After any refusals the assumed limit is inside the real one and comes back to it."""
    allowance, now = AdaptiveLimit(250), 0
    for after, own in refusals:
        now += after * SECOND
        allowance.refused(now, now, own, None)
        assert 0 <= allowance.limit(now) <= 250
        assert allowance.silent_until <= now + 30 * SECOND
    assert 250 == allowance.limit(now + 10_000 * SECOND)
    assert allowance.paused_until <= now + 40 * SECOND


def test_other_limits_keep_what_refusals_told() -> None:
    """Stricter limits bound what is assumed; without refusals they are what is assumed."""
    quiet, met = AdaptiveLimit(250), AdaptiveLimit(250)
    full(met, 10 * SECOND, 200)

    for allowance in (quiet, met):
        allowance.set_limits(100, 600 * SECOND)

    assert (100, 100) == (quiet.limit(10 * SECOND), met.limit(10 * SECOND))
    met.set_limits(250, 300 * SECOND)
    assert 110 > met.limit(10 * SECOND)
