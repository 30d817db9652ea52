"""The driver's clock, and the watchdog that notices a blocked loop."""

import asyncio
import logging
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._runtime.clock import Clock, LoopWatchdog
from perfect_async._time import SECOND
from tests.support.sandboxed import client, smile, vendor


async def test_the_clock_moves_with_the_loop() -> None:
    """The time of day is the loop's, so that virtual hours are hours to it."""
    clock = Clock()
    now, utc, seconds = clock.now(), clock.utc(), clock.seconds()
    await asyncio.sleep(3600)

    assert timedelta(hours=1) == clock.now() - now
    assert (3600 * SECOND, 3600.0) == (clock.utc() - utc, clock.seconds() - seconds)
    assert abs(clock.now().timestamp() - clock.utc() / SECOND) < 0.001


@given(st.lists(st.integers(-10 * SECOND, 10 * SECOND)))
def test_what_is_late_is_counted(lates: list[int]) -> None:
    """Half a second and less is a busy loop; more is a blocked one."""
    watchdog = LoopWatchdog()

    for late in lates:
        watchdog.woke(late)

    assert len([late for late in lates if late > SECOND / 2]) == watchdog.blocked


def test_it_is_said_once_and_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    """One warning, whatever happens afterwards, that says for how long and what to do."""
    watchdog = LoopWatchdog()

    for late in (100_000, 3_200_000, 9_000_000):
        watchdog.woke(late)

    (record,) = caplog.records
    assert ("perfect_async", logging.WARNING) == (record.name, record.levelno)
    assert "blocked for 3.2 s" in record.getMessage()
    assert "Client(isolated=True)" in record.getMessage()
    assert "asyncio.to_thread" in record.getMessage()


async def test_nothing_is_noticed_where_nothing_blocks(caplog: pytest.LogCaptureFixture) -> None:
    """A client at its ordinary work never wakes late."""
    async with client(vendor()) as c:
        await c.run(smile())
        assert 0 == c.statistics().blocked

    assert [] == caplog.records


@pytest.mark.real_time
async def test_a_blocked_loop_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """A poll that was due while the loop was blocked shows it, in the statistics and in the log."""
    async with client(vendor(durations={})) as c:
        task = asyncio.ensure_future(c.run(smile(), timeout=0.5))
        await asyncio.sleep(0.45)
        # The scheduler looks again within two seconds.
        time.sleep(3.0)  # noqa: ASYNC251 - what others do
        await asyncio.wait([task])
        await asyncio.sleep(0.1)
        assert 1 == c.statistics().blocked
        c._drain = 0.0
        assert task.exception() is not None

    assert 1 == len([record for record in caplog.records if "blocked for" in record.getMessage()])
