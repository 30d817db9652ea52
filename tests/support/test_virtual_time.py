"""The loop in virtual time: when its clock moves, and when it must not."""

import asyncio
import selectors
import socket
import threading
import time
from collections.abc import Awaitable, Callable

import anyio
import anyio.abc
import anyio.to_thread
import pytest
from blockbuster import BlockBuster

from tests.support.virtual_time import START, VirtualTimeLoop, hanging, run

# Real seconds, long enough that a clock that does not wait for the thread would have jumped.
NAP = 0.03


def now() -> float:
    """Return the running loop's time."""
    return asyncio.get_running_loop().time()


async def test_time_starts_away_from_zero() -> None:
    """A new loop's clock shows START."""
    assert START == now()


async def test_hours_pass_on_the_clock() -> None:
    """A thousand hours of sleep end at once, and the clock shows them exactly."""
    for _ in range(1000):
        await anyio.sleep(3600)

    assert START + 3_600_000 == now()


async def test_the_clock_jumps_exactly_to_the_timer() -> None:
    """The clock shows exactly the time of the timer, with any fraction."""
    loop = asyncio.get_running_loop()
    whens = [START + k * 0.1 for k in range(1, 200)] + [START + 1e6 + 1 / 3]
    landed: list[float] = []
    for when in whens:
        loop.call_at(when, lambda: landed.append(now()))

    await asyncio.sleep(2e6)

    assert whens == landed


async def test_timers_fire_in_order() -> None:
    """Timers fire by time, and at the same time in the order in which they were set."""
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        seen.append((name, now() - START))

    async with anyio.create_task_group() as group:
        group.start_soon(sleeper, "late", 3.0)
        group.start_soon(sleeper, "first", 1.0)
        group.start_soon(sleeper, "second", 1.0)

    assert [("first", 1.0), ("second", 1.0), ("late", 3.0)] == seen


async def test_move_on_after_works() -> None:
    """`anyio.move_on_after` cancels at its deadline in virtual time."""
    with anyio.move_on_after(60) as scope:
        await anyio.sleep(3600)

    assert scope.cancelled_caught
    assert START + 60 == now()


async def test_fail_after_works() -> None:
    """`anyio.fail_after` raises at its deadline, also around a call that never ends."""
    with pytest.raises(TimeoutError), anyio.fail_after(60):
        await anyio.sleep_forever()

    assert START + 60 == now()


async def test_asyncio_timeout_works() -> None:
    """`asyncio.timeout` works in virtual time."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await asyncio.Event().wait()

    assert START + 60 == now()


async def in_anyio_thread() -> None:
    await anyio.to_thread.run_sync(time.sleep, NAP)


async def in_abandonable_thread() -> None:
    await anyio.to_thread.run_sync(time.sleep, NAP, abandon_on_cancel=True)


async def in_thread_under_own_limiter() -> None:
    await anyio.to_thread.run_sync(time.sleep, NAP, limiter=anyio.CapacityLimiter(1))


async def in_asyncio_thread() -> None:
    await asyncio.to_thread(time.sleep, NAP)


async def in_default_executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, time.sleep, NAP)


@pytest.mark.parametrize(
    "work",
    [
        in_anyio_thread,
        in_abandonable_thread,
        in_thread_under_own_limiter,
        in_asyncio_thread,
        in_default_executor,
    ],
)
async def test_a_busy_thread_stops_the_clock(work: Callable[[], Awaitable[None]]) -> None:
    """While a worker thread is busy, no virtual time passes, although a timer is set."""
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            await anyio.sleep(0.001)
            ticks.append(now())

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await anyio.sleep(1.0005)
        before = len(ticks)
        for _ in range(3):
            await work()
        assert START + 1.0005 == now()
        assert before == len(ticks)
        group.cancel_scope.cancel()


async def test_threads_leave_no_gap() -> None:
    """The clock stands from the end of a thread's work until its result has arrived."""

    async def chain() -> None:
        for _ in range(300):
            await anyio.to_thread.run_sync(int)

    with anyio.fail_after(0.001):
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(chain)

    assert START == now()


async def test_idle_threads_do_not_stop_the_clock() -> None:
    """Threads that have finished, or that anyio ends, do not stop the clock."""
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(anyio.to_thread.run_sync, time.sleep, NAP)
    for _ in range(100):
        await anyio.sleep(60)
        await anyio.to_thread.run_sync(int)

    assert START + 6000 == now()


async def test_a_hanging_thread_does_not_stop_the_clock() -> None:
    """Inside `hanging()` a thread's work does not stop the clock."""
    release = threading.Event()

    def disk() -> None:
        with hanging():
            release.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, disk)
        await anyio.sleep(3600)
        assert START + 3600 == now()
        release.set()

    assert START + 3600 == now()


async def test_a_call_of_another_thread_runs_first() -> None:
    """A callback of `call_soon_threadsafe` runs before the clock jumps."""
    loop = asyncio.get_running_loop()
    seen: list[float] = []
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(lambda: seen.append(now()),))
    thread.start()
    thread.join()

    await anyio.sleep(10)

    assert [START] == seen


async def test_sockets_are_served_before_timers() -> None:
    """Both ends of a connection in one loop exchange data without time passing."""

    async def echo(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send(chunk)

    with anyio.move_on_after(0.001) as scope:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            group.start_soon(listener.serve, echo)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                for _ in range(100):
                    await stream.send(b"ping")
                    assert await stream.receive() == b"ping"
            group.cancel_scope.cancel()

    assert not scope.cancelled_caught
    assert START == now()


def test_a_deadlock_is_an_error() -> None:
    """If no event can come, the loop raises and names the tasks instead of hanging."""

    async def waits_for_nobody() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match=r"deadlock in virtual time(.|\n)*waits_for_nobody"):
        run(waits_for_nobody)


def test_sleeping_forever_is_a_deadlock() -> None:
    """A timer that never fires does not hide a deadlock."""
    with pytest.raises(RuntimeError, match="deadlock"):
        run(anyio.sleep_forever)


def test_a_socket_is_not_a_deadlock() -> None:
    """With a socket to listen to, the loop waits in real time, since data may come."""

    async def receive() -> bytes:
        here, there = socket.socketpair()
        with here, there:
            here.setblocking(False)
            sender = threading.Timer(NAP, there.send, args=(b"news",))
            sender.start()
            return await asyncio.get_running_loop().sock_recv(here, 10)

    assert run(receive) == b"news"


def test_run_returns_the_result_of_main() -> None:
    """`run` passes arguments and returns the result, each time on a new loop."""

    async def main(seconds: float) -> float:
        await anyio.sleep(seconds)
        return now()

    assert START + 5 == run(main, 5)
    assert START + 7 == run(main, 7)


def test_run_raises_the_error_of_main() -> None:
    """`run` does not wrap an error."""

    async def main() -> None:
        raise LookupError("this one")

    with pytest.raises(LookupError, match="this one"):
        run(main)


def test_run_joins_a_busy_executor() -> None:
    """Joining the default executor at the end is not a deadlock, even while it is busy."""

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, time.sleep, NAP).cancel()
        await asyncio.to_thread(int)

    run(main)


def test_an_iteration_asks_the_kernel_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer costs one look at the sockets, and a ready callback none."""
    asked = 0
    select = selectors.DefaultSelector.select

    def counted(
        selector: selectors.DefaultSelector, timeout: float | None = None
    ) -> list[tuple[selectors.SelectorKey, int]]:
        nonlocal asked
        asked += 1
        return select(selector, timeout)

    async def main() -> int:
        loop = asyncio.get_running_loop()
        before = asked
        for _ in range(1000):
            future = loop.create_future()
            loop.call_later(0.1, future.set_result, None)
            await future
        return asked - before

    monkeypatch.setattr(selectors.DefaultSelector, "select", counted)

    assert 1000 == run(main)


async def test_time_passes_while_the_loop_is_blocked() -> None:
    """While the loop is blocked time passes, and due timers fire afterwards."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    woken: list[float] = []
    loop.call_later(1, lambda: woken.append(now()))

    loop.block(5)
    assert [] == woken
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert [START + 5] == woken


@pytest.mark.real_time
async def test_the_real_time_marker_works() -> None:
    """A test marked `real_time` runs on an ordinary loop with the machine's clock."""
    loop = asyncio.get_running_loop()
    before = time.monotonic()

    await anyio.sleep(0.02)

    assert not isinstance(loop, VirtualTimeLoop)
    assert before + 0.02 <= loop.time()


async def test_blocking_calls_are_caught(no_blocking_calls: BlockBuster) -> None:
    """Blocking calls in the loop are detected; calls from tests are allowed."""
    assert no_blocking_calls.functions["time.sleep"].activated

    time.sleep(0)  # noqa: ASYNC251
