"""Processes that share a key over a real Redis server, as if each ran on a machine of its own.

What is asserted are counts of the vendor's own ledger: nothing refused, nothing lost, each picture
paid once. While Redis is away a process creates nothing and polls its tasks on time. No time is
measured.
"""

import asyncio
import logging
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from perfect_async import Client, ClientClosed, ConfigurationError
from perfect_async._ledger import redis as redis_module
from perfect_async._runtime.sharing import SharedKey
from perfect_async.events import Command
from perfect_async.sandbox import Durations, Sandbox
from tests.ledger.conftest import StartRedis
from tests.support.processes import KEY as SECRET_KEY
from tests.support.processes import (
    Program,
    Town,
    all_done,
    all_of,
    begun,
    check,
    different_limits,
    four_share,
    one_stops,
    two_runs,
)
from tests.support.redis_server import RedisServer
from tests.support.sandboxed import client, smile, vendor
from tests.support.tcp_proxy import Proxy

pytestmark = [pytest.mark.real_time, pytest.mark.timeout(600)]
long = pytest.mark.long


@pytest.fixture
def town(tmp_path: Path, redis_server: RedisServer) -> Iterator[Town]:
    """A vendor with wide limits and its lease of 10 s."""
    with Town(tmp_path, share=redis_server.url()) as made:
        yield made


@pytest.fixture
def narrow(tmp_path: Path, redis_server: RedisServer) -> Iterator[Town]:
    """The vendor's own limits, four times as fast."""
    with Town(
        tmp_path,
        share=redis_server.url(),
        requests=250,
        period=75.0,
        per_second=20,
        lease=2.5,
        durations=(2.0, 10.0),
    ) as made:
        yield made


@pytest.fixture
def quick(tmp_path: Path, redis_server: RedisServer) -> Iterator[Town]:
    """A vendor with wide limits whose smiles take a second."""
    with Town(tmp_path, share=redis_server.url(), durations=(1.0, 1.0)) as made:
        yield made


@pytest.fixture
def brisk(tmp_path: Path, redis_server: RedisServer) -> Iterator[Town]:
    """Creating takes ten seconds, and a task that is not polled for 5 s is lost."""
    with Town(
        tmp_path,
        share=redis_server.url(),
        per_second=10,
        lease=5.0,
        durations=(8.0, 16.0),
    ) as made:
        yield made


@pytest.fixture
def slow(tmp_path: Path, redis_server: RedisServer) -> Iterator[Town]:
    """A vendor with wide limits whose smiles take half a minute."""
    with Town(tmp_path, share=redis_server.url(), durations=(30.0, 30.0)) as made:
        yield made


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    """A connection to the Redis server that can be cut."""
    with Proxy(redis_server.port) as made:
        yield made


def gone_and_back(program: Program, times: int = 1) -> None:
    """Check that the process logged once that Redis is gone and once that it is back."""
    said = [line for line in program.said().splitlines() if "shared ledger" in line]
    levels = [line.partition(" ")[0] for line in said]
    assert ["WARNING", "INFO"] * times == levels, program.said()
    for gone, back in zip(said[::2], said[1::2], strict=True):
        assert "No task is created until it does; running tasks are kept alive" in gone
        assert back.endswith("answers again.")


# Ordinary programs.


def test_two_processes_side_by_side(quick: Town, redis_server: RedisServer) -> None:
    """Two processes know of each other, and no output names their key or a file of theirs."""
    programs = begun(quick, 2, 3)
    told = b"".join(redis_server.dump(name) for name in redis_server.names())
    reports = [report for program in programs for report in program.reports()]

    all_done(reports, 6)
    assert {2} == {report["most_members"] for report in reports}
    check(quick, 6)
    assert [] == quick.files()
    for secret in (SECRET_KEY, quick.url, str(quick.folder), ".jpg"):
        assert secret.encode() not in told
        assert not any(secret in name for name in redis_server.names())
    for program in programs:
        assert "ledger" not in program.said()


@long
@pytest.mark.minutes
def test_two_runs_one_after_another(narrow: Town) -> None:
    """A second run within the period waits for the window, logs that once, and loses nothing."""
    two_runs(narrow)


@long
@pytest.mark.minutes
@pytest.mark.parametrize(("each", "avatars"), [(30, 0), (10, 4)], ids=["smiles", "avatars"])
def test_four_processes_share_a_window(narrow: Town, each: int, avatars: int) -> None:
    """With more work than a window holds nothing is refused or lost."""
    four_share(narrow, each, avatars)


@long
@pytest.mark.minutes
def test_processes_with_different_limits(narrow: Town) -> None:
    """The strictest limits hold for both, and the process with wider limits logs that."""
    different_limits(narrow)


# Signals.


@long
@pytest.mark.minutes
@pytest.mark.parametrize(
    ("stops", "avatars"), [(4.0, 0), (15.0, 0), (15.0, 4)], ids=["4 s", "15 s", "15 s, avatars"]
)
def test_a_member_that_is_stopped(town: Town, stops: float, avatars: int) -> None:
    """The others poll its tasks, and it loses none when it goes on."""
    one_stops(town, 4, stops, avatars)


@long
@pytest.mark.minutes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_member_that_is_killed(town: Town, number: int) -> None:
    """The others poll its tasks to their ends, and are not delayed."""
    killed, *others = begun(town, 4, 10)
    time.sleep(3)
    killed.send(number)
    assert -number == killed.process.wait()

    all_of(others, 30)
    ledger = town.ledger()
    assert (0, [], 0) == (ledger["refused"], ledger["violations"], ledger["wasted"])
    assert {"success"} == set(ledger["states"])
    assert ledger["charged"] > 30


@long
@pytest.mark.minutes
def test_members_that_are_killed_repeatedly(narrow: Town, redis_server: RedisServer) -> None:
    """A member that comes after kills counts the requests of the dead ones: none is refused."""
    steady = narrow.worker("steady", narrow.work(0, 60))
    for life in range(8):
        victim = narrow.worker(f"victim {life}", narrow.work(1000 + 20 * life, 20))
        victim.wait_for("begun")
        time.sleep(life / 4)
        victim.send(signal.SIGKILL)
        victim.process.wait()

    all_of([steady], 60)
    ledger = narrow.ledger()
    assert (0, []) == (ledger["refused"], ledger["violations"])
    # A task is lost only if the kill came before its id was known.
    lost = [task["task_id"] for task in ledger["tasks"] if task["state"] == "expired"]
    [rows] = [name for name in redis_server.names() if name.endswith(":rows")]
    told = " ".join(redis_server.call("HVALS", rows))
    assert [] == [task_id for task_id in lost if f'"{task_id}"' in told]
    assert len(lost) <= 16


@long
@pytest.mark.minutes
def test_all_members_but_one_are_killed_while_redis_is_away(
    town: Town, redis_server: RedisServer
) -> None:
    """The tasks of the killed ones are polled once Redis is back."""
    steady, *others = begun(town, 4, 10)
    time.sleep(3)
    redis_server.pause()
    for program in others:
        program.send(signal.SIGKILL)
        program.process.wait()
    time.sleep(4)
    redis_server.resume()

    all_of([steady], 10)
    gone_and_back(steady)
    ledger = town.ledger()
    assert (0, [], 0) == (ledger["refused"], ledger["violations"], ledger["wasted"])


# Redis.


@long
@pytest.mark.minutes
@pytest.mark.parametrize("avatars", [0, 4], ids=["smiles", "avatars"])
def test_redis_is_stopped_for_4_s(brisk: Town, redis_server: RedisServer, avatars: int) -> None:
    """Nothing is created, all polls go on, and each process logs two lines."""
    programs = begun(brisk, 4, 15, avatars=avatars)
    time.sleep(2)
    redis_server.pause()
    # Requests that were under way when the server stopped arrive.
    time.sleep(1)
    before = brisk.ledger()["requests"]
    time.sleep(3)
    during = brisk.ledger()["requests"]
    redis_server.resume()

    all_of(programs, 60)
    check(brisk, 60)
    assert 0 < before["task"] == during["task"] < 60
    assert during["poll"] > before.get("poll", 0)
    for program in programs:
        gone_and_back(program)


@long
@pytest.mark.minutes
def test_redis_is_stopped_repeatedly(narrow: Town, redis_server: RedisServer) -> None:
    """With a full window, a short lease and a server that hangs, the limits hold."""
    programs = begun(narrow, 4, 25)
    while any(program.process.poll() is None for program in programs):
        time.sleep(5)
        redis_server.pause()
        time.sleep(1.5)
        redis_server.resume()

    all_of(programs, 100)
    check(narrow, 100)


@long
@pytest.mark.minutes
@pytest.mark.parametrize("away", [0.0, 4.0])
def test_redis_is_restarted(town: Town, redis_server: RedisServer, away: float) -> None:
    """The server has lost everything: all members write it again, and no task is lost."""
    programs = begun(town, 4, 10)
    time.sleep(1)
    redis_server.kill()
    time.sleep(away)
    redis_server.start()

    all_of(programs, 40)
    check(town, 40)
    for program in programs:
        gone_and_back(program, 1 if away else 0)


@long
@pytest.mark.minutes
@pytest.mark.parametrize("restarts", [False, True], ids=["flushed", "restarted"])
def test_redis_loses_its_data_repeatedly(
    narrow: Town, redis_server: RedisServer, restarts: bool
) -> None:
    """With a full window and a ledger that is lost every three seconds, the limits hold."""
    programs = begun(narrow, 4, 25)
    while any(program.process.poll() is None for program in programs):
        time.sleep(3)
        if restarts:
            redis_server.restart()
        else:
            redis_server.call("FLUSHALL")

    all_of(programs, 100)
    check(narrow, 100)


@long
@pytest.mark.minutes
def test_a_process_begins_after_redis_was_flushed(narrow: Town, redis_server: RedisServer) -> None:
    """The requests that others sent before the flush count for a later process."""
    programs = begun(narrow, 2, 30)
    time.sleep(8)
    redis_server.call("FLUSHALL")
    programs.append(narrow.worker("late", narrow.work(1000, 30)))

    all_of(programs, 90)
    check(narrow, 90)


@long
@pytest.mark.minutes
@pytest.mark.parametrize("silently", [False, True], ids=["refused", "silent"])
@pytest.mark.parametrize("away", [4.0, 20.0])
def test_some_do_not_reach_redis(slow: Town, proxy: Proxy, away: float, silently: bool) -> None:
    """A process without Redis polls its tasks, and so do the others: no task is lost.

    These tasks are polled twice. If the window has no room for that, the vendor refuses some polls,
    and tasks may be lost.
    """
    through = f"redis://127.0.0.1:{proxy.port}/0"
    ways = slow.share, slow.share, through, through
    programs = [
        slow.worker(str(part), slow.work(10 * part, 10, share=way)) for part, way in enumerate(ways)
    ]
    for program in programs:
        program.wait_for("begun")
    time.sleep(2)
    if silently:
        proxy.silence()
    else:
        proxy.cut()
    time.sleep(away)
    proxy.mend()

    all_of(programs, 40)
    check(slow, 40)
    for program, way in zip(programs, ways, strict=True):
        gone_and_back(program, 1 if way == through else 0)


@long
@pytest.mark.minutes
def test_without_redis_nothing_is_created(brisk: Town, proxy: Proxy) -> None:
    """If no process reaches Redis, no task is created, and running ones are polled."""
    through = f"redis://127.0.0.1:{proxy.port}/0"
    programs = [
        brisk.worker(str(part), brisk.work(30 * part, 30, share=through)) for part in (0, 1)
    ]
    for program in programs:
        program.wait_for("begun")
    proxy.silence()
    time.sleep(1)
    before = brisk.ledger()["requests"]
    time.sleep(5)
    during = brisk.ledger()["requests"]
    proxy.mend()

    all_of(programs, 60)
    check(brisk, 60)
    assert 0 < before["task"] == during["task"] < 60
    assert during["poll"] > before.get("poll", 0)


# Within one process: opening, closing, and waiting for Redis.


SECRET = "sesame-is-secret"
USER = "alibaba"


def share_on(server: RedisServer, **settings: object) -> Client:
    """An unopened client on a vendor of its own whose smiles take 3 s."""
    return client(swift(), **{"share": server.url(), **settings})


def swift() -> Sandbox:
    return vendor(durations={"ai-smile": Durations.fixed(3.0)}, latency=0.01, jitter=0.01)


@pytest.mark.parametrize(
    ("settings", "scheme", "mend"),
    [
        (None, "redis", "Start it, or correct host, port and scheme"),
        ({"requirepass": "right"}, "redis", "Correct them in the URL"),
        ({"maxmemory_policy": "allkeys-lru"}, "redis", "Set it to noeviction"),
        ({}, "rediss", "rediss for TLS"),
    ],
    ids=["unreachable", "password", "policy", "scheme"],
)
async def test_an_unusable_server_is_refused_at_opening(
    start_redis: StartRedis,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, str] | None,
    scheme: str,
    mend: str,
) -> None:
    """The error says what to do; neither it nor the log nor a repr shows the credentials."""
    caplog.set_level(logging.DEBUG)
    server = start_redis(**settings or {})
    # The default user accepts any password if none is set.
    name = "" if settings == {"maxmemory_policy": "allkeys-lru"} else f"{USER}:{SECRET}@"
    url = server.url(name).replace("redis:", f"{scheme}:")
    if settings is None:
        server.kill()
    for isolated in (False, True):
        opened = share_on(server, share=url, isolated=isolated)
        with pytest.raises(ConfigurationError, match=mend) as found:
            await opened.open()

        shown = "".join(traceback.format_exception(found.value))
        for text in (shown, repr(opened), caplog.text):
            assert SECRET not in text
            assert USER not in text


@pytest.mark.parametrize("isolated", [False, True])
async def test_a_missing_extra_is_refused_at_opening(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, isolated: bool
) -> None:
    """The error says how to install it."""
    monkeypatch.setattr(redis_module, "_INSTALLED", False)
    with pytest.raises(ConfigurationError, match=r'pip install "perfect_async\[redis\]"'):
        await share_on(redis_server, isolated=isolated).open()


@pytest.mark.parametrize("isolated", [False, True])
async def test_a_client_closes_while_redis_is_away(
    redis_server: RedisServer, isolated: bool
) -> None:
    """Waiting jobs fail as not sent, and closing does not wait for Redis."""
    opened = share_on(redis_server, isolated=isolated)
    async with opened:
        await opened.units()
        redis_server.pause()
        waiting = asyncio.create_task(opened.run(smile(1)))
        await asyncio.sleep(0.5)
        with anyio.fail_after(10):
            await opened.close()
    with pytest.raises(ClientClosed):
        await waiting


@long
@pytest.mark.minutes
async def test_a_client_does_not_spin_while_redis_is_away(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tries a few times a second, also with polls of its own."""
    steps = 0
    step = SharedKey.step

    async def counted(
        shared: SharedKey, now: Callable[[], int], *, hurry: bool
    ) -> list[Command] | None:
        nonlocal steps
        steps += 1
        return await step(shared, now, hurry=hurry)

    async with share_on(redis_server) as opened:
        running = asyncio.create_task(opened.run(smile(1)))
        await asyncio.sleep(1)
        monkeypatch.setattr(SharedKey, "step", counted)
        redis_server.pause()
        waiting = asyncio.create_task(opened.run(smile(2)))
        await asyncio.sleep(3)
        assert 0 < steps <= 60
        assert not waiting.done()
        redis_server.resume()
        await asyncio.gather(running, waiting)


@long
@pytest.mark.minutes
async def test_an_idle_client_is_not_taken_for_dead(redis_server: RedisServer) -> None:
    """A client that has been idle for 16 s is still a member, and has read everything."""
    hosts = "https://yce-api-01.makeupar.com", "https://yce-api-01.perfectcorp.com"
    sandbox, url = swift(), redis_server.url()
    busy, idle = (client(sandbox, base_url=host, share=url) for host in hosts)
    async with busy, idle:
        await idle.run(smile(1))
        await busy.run(smile(2))
        await asyncio.sleep(16)
        await busy.run(smile(3))
        [seen] = [name for name in redis_server.names() if name.endswith(":seen")]

        assert 2 == busy.statistics().members == redis_server.call("ZCARD", seen)
