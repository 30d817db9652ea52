"""What round trips, failed polls and refusals make plausible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._network import Allowance, RoundTrips
from perfect_async.events import SECOND


def test_before_anything_is_seen() -> None:
    """A network that nobody knows is taken for a fair one."""
    network = RoundTrips()
    assert 3 == network.tries
    assert 600_000 == network.patience
    assert 300_000 == network.jitter


@pytest.mark.parametrize(
    ("took", "patience", "jitter"),
    [(1_000, 300_000, 150_000), (150_000, 450_000, 225_000), (9 * SECOND, 2 * SECOND, SECOND)],
)
def test_patience_follows_the_round_trips(took: int, patience: int, jitter: int) -> None:
    """Patience is three times the 95th percentile and jitter half as much, both inside bounds."""
    network = RoundTrips()
    for _ in range(100):
        network.answered(took)
    assert patience == network.patience
    assert jitter == network.jitter


@given(st.lists(st.integers(0, 60 * SECOND), max_size=600))
def test_a_twentieth_may_be_slow(times: list[int]) -> None:
    """Whatever the round trips are, patience and jitter stay inside their bounds."""
    network = RoundTrips()
    for took in times:
        network.answered(took)
    assert 300_000 <= network.patience <= 2 * SECOND
    assert 150_000 <= network.jitter <= SECOND


@pytest.mark.parametrize(
    ("clean", "failed", "tries"), [(200, 0, 2), (100, 3, 4), (0, 50, 6), (400, 400, 6)]
)
def test_tries_follow_the_failures(clean: int, failed: int, tries: int) -> None:
    """The lease holds as many tries as the share of failures asks for, from 2 to 6."""
    network = RoundTrips()
    for lost in [False] * clean + [True] * failed:
        network.polled(failed=lost)
    assert tries == network.tries


@given(st.lists(st.booleans(), max_size=1000))
def test_old_polls_are_forgotten(polls: list[bool]) -> None:
    """Only the last 400 polls count."""
    network = RoundTrips()
    for failed in polls:
        network.polled(failed=failed)
    last = polls[-400:]
    assert (sum(last) + 0.2) / (len(last) + 20) == network.failing


def test_one_refusal_is_a_second() -> None:
    """One 429 may be the second's limit: a pause of a second and nothing else."""
    allowance = Allowance(250)
    allowance.refused(10 * SECOND, 10 * SECOND, 100, None)
    assert 11 * SECOND == allowance.paused_until
    assert 250 == allowance.limit(10 * SECOND)
    assert 0 == allowance.wary_until


def test_two_running_are_the_window() -> None:
    """Two 429s running: 0.8 of our own, a pause of 15 s, two wary minutes, and a slow recovery."""
    allowance, now = Allowance(250), 10 * SECOND
    allowance.refused(now - 2 * SECOND, now - 2 * SECOND, 100, None)
    allowance.refused(now, now, 100, None)
    assert 80 == allowance.limit(now)
    assert now + 15 * SECOND == allowance.paused_until
    assert now + 120 * SECOND == allowance.wary_until
    assert 85 == allowance.limit(now + 100 * SECOND)
    assert 250 == allowance.limit(now + 10_000 * SECOND)


def test_what_was_under_way_tells_no_more() -> None:
    """Many 429s to requests that left before the pause after the first are one."""
    allowance = Allowance(250)
    for number in range(5):
        allowance.refused(10 * SECOND + number, 9 * SECOND + number, 100, None)
    assert 250 == allowance.limit(10 * SECOND)
    assert 11 * SECOND + 4 == allowance.paused_until


def test_little_of_ours_says_nothing() -> None:
    """After a quiet time, longer each time, as much as one task needs is assumed again."""
    allowance = Allowance(250, least=40)
    allowance.refused(0, 0, 1, None)
    allowance.refused(2 * SECOND, 2 * SECOND, 2, None)
    assert 1 == allowance.limit(31 * SECOND) // 2
    assert 40 == allowance.limit(32 * SECOND)
    allowance.refused(40 * SECOND, 40 * SECOND, 3, None)
    assert 40 > allowance.limit(99 * SECOND)
    assert 40 == allowance.limit(100 * SECOND)
    allowance.refused(10_000 * SECOND, 10_000 * SECOND, 3, None)
    assert 40 == allowance.limit(10_030 * SECOND)


def test_an_accepted_request_between() -> None:
    """Two 429s with an accepted request between them are not running."""
    allowance = Allowance(250)
    allowance.refused(0, 0, 100, None)
    allowance.accepted()
    allowance.refused(5 * SECOND, 5 * SECOND, 100, None)
    assert 250 == allowance.limit(5 * SECOND)


def test_retry_after_is_honoured() -> None:
    """A longer pause that the vendor asks for is kept; a shorter one is not."""
    allowance = Allowance(250)
    allowance.refused(0, 0, 100, 40 * SECOND)
    assert 40 * SECOND == allowance.paused_until
    allowance.refused(0, 0, 100, 1)
    assert 40 * SECOND == allowance.paused_until


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 300)), max_size=60))
def test_never_above_the_limit_nor_locked_out(refusals: list[tuple[int, int]]) -> None:
    """After any refusals the assumed limit is inside the real one and comes back to it."""
    allowance, now = Allowance(250), 0
    for after, own in refusals:
        now += after * SECOND
        allowance.refused(now, now, own, None)
        assert 0 <= allowance.limit(now) <= 250
    assert 250 == allowance.limit(now + 5_000 * SECOND)
    assert allowance.paused_until <= now + 15 * SECOND
