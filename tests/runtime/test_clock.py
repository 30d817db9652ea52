"""The driver's clock, and the watchdog that notices a blocked loop."""

import asyncio
import logging
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._runtime.clock import Clock, LoopWatchdog
from perfect_async._time import SECOND
from tests.support.sandboxed import client, smile, vendor
from tests.support.virtual_time import VirtualTimeLoop


async def test_the_clock_moves_with_the_loop() -> None:
    """The time of day follows the loop's clock, so virtual hours count as hours."""
    clock = Clock()
    now, utc, seconds = clock.now(), clock.utc(), clock.seconds()
    await asyncio.sleep(3600)

    assert timedelta(hours=1) == clock.now() - now
    assert (3600 * SECOND, 3600.0) == (clock.utc() - utc, clock.seconds() - seconds)
    assert abs(clock.now().timestamp() - clock.utc() / SECOND) < 0.001


@given(st.lists(st.integers(-10 * SECOND, 10 * SECOND)))
def test_late_wake_ups_are_counted(lates: list[int]) -> None:
    """A wake-up more than half a second late counts as a blocked loop."""
    watchdog = LoopWatchdog()

    for late in lates:
        watchdog.woke(late)

    assert len([late for late in lates if late > SECOND / 2]) == watchdog.blocked


def test_a_blocked_loop_is_logged_once_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    """One warning says how long the loop was blocked and what to do."""
    watchdog = LoopWatchdog()

    for late in (100_000, 3_200_000, 9_000_000):
        watchdog.woke(late)

    (record,) = caplog.records
    assert ("perfect_async", logging.WARNING) == (record.name, record.levelno)
    assert "blocked for 3.2 s" in record.getMessage()
    assert "Client(isolated=True)" in record.getMessage()
    assert "asyncio.to_thread" in record.getMessage()


async def test_an_unblocked_loop_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A client at its ordinary work never wakes late."""
    async with client(vendor()) as c:
        await c.run(smile())
        assert 0 == c.statistics().blocked

    assert [] == caplog.records


async def test_a_blocked_loop_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """The statistics and the log show that a poll was due while the loop was blocked."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    async with client(vendor()) as c:
        task = asyncio.ensure_future(c.run(smile()))
        await asyncio.sleep(0.45)
        # The scheduler looks again within two seconds.
        loop.block(3.0)
        await task
        assert 1 == c.statistics().blocked

    assert 1 == len([record for record in caplog.records if "blocked for" in record.getMessage()])
