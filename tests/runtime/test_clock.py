"""A loop that other people's code blocks is noticed, counted and told of once."""

import asyncio
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._runtime.clock import LoopWatchdog
from perfect_async._time import SECOND
from tests.support.sandboxed import client, smile, vendor
from tests.support.virtual_time import VirtualTimeLoop


@given(st.lists(st.integers(-10 * SECOND, 10 * SECOND)))
def test_what_is_late_is_counted(lates: list[int]) -> None:
    """Half a second and less is a busy loop; more is a blocked one."""
    watch = LoopWatchdog()

    for late in lates:
        watch.woke(late)

    assert len([late for late in lates if late > SECOND / 2]) == watch.blocked


def test_it_is_said_once_and_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    """One warning, whatever happens afterwards, that says for how long and what to do."""
    watch = LoopWatchdog()

    for late in (100_000, 3_200_000, 9_000_000):
        watch.woke(late)

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


async def test_a_blocked_loop_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """A poll that was due while the loop was blocked shows that it was, in number and in words."""
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
