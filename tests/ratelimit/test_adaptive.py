"""The limit that is assumed after 429s, which shows how much of the window others use."""

from hypothesis import given
from hypothesis import strategies as st

from perfect_async._ratelimit.adaptive import AdaptiveLimit
from perfect_async._time import SECOND


def test_one_429_pauses_a_second() -> None:
    """One 429 may be the limit per second, so it only pauses creations for a second."""
    allowance = AdaptiveLimit(250)
    allowance.refused(10 * SECOND, 10 * SECOND, 100, None)
    assert 11 * SECOND == allowance.paused_until
    assert 250 == allowance.limit(10 * SECOND)
    assert 0 == allowance.contended_until


def full(allowance: AdaptiveLimit, now: int, own: int) -> None:
    """The window is full at `now`, while `own` requests of ours are in it."""
    allowance.refused(now - 2 * SECOND, now - 2 * SECOND, own, None)
    allowance.refused(now, now, own, None)


def test_two_429s_in_a_row_mean_a_full_window() -> None:
    """After two 429s in a row the limit is 0.8 of our own requests, creations pause for 40 s and
    the key is contended for two minutes; the limit grows slowly to 0.9, and beyond after ten
    minutes.
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
    """After the other user has left, each window adds more to the limit than the one before."""
    allowance = AdaptiveLimit(250)
    full(allowance, 0, 50)
    limits = [allowance.limit((600 + 300 * window) * SECOND) for window in range(6)]
    assert [45, 67, 105, 157, 225, 250] == limits


def test_each_refused_attempt_doubles_the_hold() -> None:
    """A higher limit that was refused is not tried again for twice as long, an hour at most."""
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


def test_the_rate_of_a_new_user_is_extrapolated() -> None:
    """The requests of others between the first full window and the next answer give their rate."""
    allowance = AdaptiveLimit(250)
    full(allowance, 0, 246)
    # 30 s later they hold between 4 + 14 and 4 + 16: 0.5 a second, 150 in a window.
    allowance.refused(29 * SECOND, 29 * SECOND, 232, None)
    allowance.accepted(30 * SECOND, 230)
    assert 86 == allowance.limit(30 * SECOND)
    assert allowance.limit(300 * SECOND) <= 90


def test_a_steady_user_does_not_lower_the_ceiling() -> None:
    """The ceiling stays if others have as many requests later as at the first full window."""
    allowance = AdaptiveLimit(250)
    full(allowance, 0, 100)
    allowance.accepted(60 * SECOND, 100)
    assert 80 <= allowance.limit(60 * SECOND)
    assert 90 == allowance.limit(400 * SECOND)


def test_silence_grows_while_the_window_is_full() -> None:
    """One request probes a full window after 1, 2, 4 and at most 30 s."""
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


def test_one_429_does_not_stop_polls() -> None:
    """One 429 may be the limit per second, so polls that keep tasks alive go on."""
    allowance = AdaptiveLimit(250)
    allowance.refused(10 * SECOND, 10 * SECOND, 100, None)
    assert 0 == allowance.silent_until
    assert not allowance.full


def test_requests_under_way_count_as_one_429() -> None:
    """429s to requests that left before the pause after the first one count as one."""
    allowance = AdaptiveLimit(250)
    for number in range(5):
        allowance.refused(10 * SECOND + number, 9 * SECOND + number, 100, None)
    assert 250 == allowance.limit(10 * SECOND)
    assert 11 * SECOND + 4 == allowance.paused_until


def test_quiet_times() -> None:
    """The window is quiet 30 s after it was full, and twice as long each time, at most 5 min."""
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
    """Two 429s with an accepted request between them are not in a row."""
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
    """After any refusals the assumed limit is within the real one and grows back to it."""
    allowance, now = AdaptiveLimit(250), 0
    for after, own in refusals:
        now += after * SECOND
        allowance.refused(now, now, own, None)
        assert 0 <= allowance.limit(now) <= 250
        assert allowance.silent_until <= now + 30 * SECOND
    assert 250 == allowance.limit(now + 10_000 * SECOND)
    assert allowance.paused_until <= now + 40 * SECOND


def test_new_limits_keep_the_assumed_limit() -> None:
    """Stricter limits bound the assumed limit; without refusals it equals them."""
    quiet, met = AdaptiveLimit(250), AdaptiveLimit(250)
    full(met, 10 * SECOND, 200)

    for allowance in (quiet, met):
        allowance.set_limits(100, 600 * SECOND)

    assert (100, 100) == (quiet.limit(10 * SECOND), met.limit(10 * SECOND))
    met.set_limits(250, 300 * SECOND)
    assert 110 > met.limit(10 * SECOND)
