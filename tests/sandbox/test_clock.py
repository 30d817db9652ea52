"""The sandbox's clock and its random streams."""

import asyncio
import random
import time

import pytest

from perfect_async.sandbox._clock import Chance, Clock, split_latency


async def test_the_clock_is_the_loops() -> None:
    """Time is the time of the running loop in whole microseconds."""
    clock = Clock()
    start = clock.now()

    await asyncio.sleep(0.1)

    assert 100_000 == clock.now() - start
    assert round(asyncio.get_running_loop().time() * 1e6) == clock.now()


async def test_the_wall_clock_follows_the_loop() -> None:
    """The wall clock starts at the epoch at the first use and runs with the loop."""
    clock = Clock(epoch=1_000_000.0)
    clock.now()

    await asyncio.sleep(7200)

    assert 1_007_200.0 == clock.wall(clock.now())


async def test_the_epoch_is_read_once() -> None:
    """Without an epoch the real wall clock is read, in whole seconds, at the first use."""
    clock = Clock()
    before = int(time.time())

    first = clock.wall(clock.now())

    assert before <= first <= time.time()
    assert first == clock.wall(clock.now())


async def test_the_wall_clock_is_read_when_the_loop_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is first asked for the wall clock after five minutes is not five minutes ahead.

    The sandbox's sender of webhooks reads the loop's time when it starts, and the wall clock when
    the first task ends.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    monkeypatch.setattr(time, "time", lambda: 1_000_000 + loop.time() - began)
    clock = Clock()
    clock.now()

    await asyncio.sleep(300)

    assert 1_000_300.0 == clock.wall(clock.now())


def test_outside_a_loop_time_stands() -> None:
    """Without a running loop the last time is returned."""
    clock = Clock(epoch=5.0)

    assert 0 == clock.now()
    asyncio.run(_look(clock))
    assert clock.now() > 0
    assert clock.now() == clock.now()


async def _look(clock: Clock) -> None:
    clock.now()


def test_an_unused_clock_shows_the_epoch() -> None:
    """Before the first use the wall clock shows the epoch."""
    assert 5.0 == Clock(epoch=5.0).wall(77)


def test_streams_are_independent_and_repeatable() -> None:
    """The same seed and purpose give the same numbers; another purpose gives others."""
    one, two = Chance(3), Chance(3)
    two.stream("other").random()

    assert one.stream("a").random() == two.stream("a").random()
    assert one.stream("b").random() != one.stream("c").random()
    assert Chance(4).stream("a").random() != Chance(3).stream("a").random()


def test_certain_and_impossible_events() -> None:
    """Probability 1 always happens, 0 never does."""
    chance = Chance(0)

    assert [True] * 50 == [chance.happens(1.0, "x") for _ in range(50)]
    assert [False] * 50 == [chance.happens(0.0, "x") for _ in range(50)]


def test_waits_share_one_round_trip() -> None:
    """The arrival is anywhere between sending and answer."""
    rng = random.Random(0)
    pairs = [split_latency(0.2, 0.1, rng) for _ in range(2000)]
    totals = [before + after for before, after in pairs]
    shares = [before / (before + after) for before, after in pairs]

    assert 0.2 <= min(totals)
    assert max(totals) <= 0.3 + 1e-9
    assert min(shares) < 0.01
    assert max(shares) > 0.99
    assert 0.5 == pytest.approx(sum(shares) / len(shares), abs=0.03)


def test_no_latency_is_no_wait() -> None:
    """Without latency both waits are zero."""
    assert (0.0, 0.0) == split_latency(0.0, 0.0, random.Random(0))
