"""The ledger on a real Redis server: steps, members, and a server that stops or loses data.

The limits of time are the module's own, shortened where a test would only wait for them.
"""

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import attrs
import pytest

from perfect_async._ledger import redis as module
from perfect_async._ledger.redis import RedisLedger, open_redis
from perfect_async._ledger.rows import (
    LedgerStore,
    LedgerUnavailable,
    Snapshot,
    host_digest,
    key_digest,
)
from perfect_async._time import SECOND, SLOT
from perfect_async.errors import ConfigurationError
from perfect_async.events import (
    DoneRow,
    DurationRow,
    IntentRow,
    LedgerRow,
    MemberRow,
    PlanRow,
    RequestRow,
    SharedLimits,
    TaskKind,
    TaskRow,
)
from tests.ledger.conftest import StartRedis
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import Proxy

pytestmark = pytest.mark.real_time

HOST = host_digest("https://yce-api-01.makeupar.com")
KEY = key_digest("a key")
TAG = f"{{perfect_async:1:{HOST}:{KEY}}}"
LIMITS = SharedLimits(250, 300 * SECOND, 5, 10 * SECOND)
SMILE = TaskKind("ai-smile")
USER = "alibaba"
SECRET = "sesame-is-secret"

Open = Callable[..., Awaitable[RedisLedger]]


@pytest.fixture
async def join(redis_server: RedisServer) -> AsyncIterator[Open]:
    """Join the ledger of one key as one more member; all leave at the end of the test."""
    opened: list[RedisLedger] = []

    async def join(
        url: str = redis_server.url(), clock: Callable[[], int] = time.monotonic_ns
    ) -> RedisLedger:
        opened.append(await open_redis(url, HOST, KEY, clock=clock))
        return opened[-1]

    yield join
    for each in opened:
        await each.aclose()


def member_row(ledger: RedisLedger, at: int = 0) -> MemberRow:
    return MemberRow(ledger.member, 7, LIMITS, at, work=2, running=1)


def request(ledger: RedisLedger, number: int, left: int, answered: int | None = None) -> RequestRow:
    outcome = "" if answered is None else "accepted"
    return RequestRow(ledger.member, number, left, answered=answered, outcome=outcome)


async def taken(ledger: RedisLedger) -> Snapshot:
    snapshot = await ledger.take(5)
    assert snapshot is not None
    return snapshot


async def step(ledger: RedisLedger, *rows: LedgerRow) -> Snapshot:
    """Take, and publish `rows`."""
    snapshot = await taken(ledger)
    assert await ledger.publish(rows)
    return snapshot


async def joined(join: Open, number: int = 1) -> tuple[RedisLedger, RequestRow]:
    """A member that has written its own row and one unanswered request."""
    ledger = await join()
    store: LedgerStore = ledger
    assert store.member
    snapshot = await taken(ledger)
    row = request(ledger, number, snapshot.now)
    assert await ledger.publish([member_row(ledger, snapshot.now), row])
    return ledger, row


@contextmanager
def shortened(monkeypatch: pytest.MonkeyPatch, limit: str) -> Iterator[None]:
    """Limit the wait for a silent server to 0.2 s."""
    with monkeypatch.context() as inside:
        inside.setattr(module, limit, 0.2)
        yield


def requests(snapshot: Snapshot) -> list[LedgerRow]:
    return [row for row in snapshot.rows if isinstance(row, RequestRow)]


# Steps.


async def test_a_member_reads_the_rows_of_others_once(join: Open) -> None:
    """They come in the order of writing; its own rows never come."""
    one, two = await join(), await join()
    await step(one, member_row(one))
    await step(two, member_row(two))
    rows = [request(one, number, number) for number in (3, 2, 1)]
    for row in rows:
        await step(one, row)

    first, second = await step(two), await step(two)

    assert rows == list(first.rows)
    assert () == second.rows
    assert () == (await step(one)).rows


async def test_a_later_row_replaces_an_earlier_one_with_its_key(join: Open) -> None:
    """Of two rows with one key only the later one is there."""
    one, two = await join(), await join()
    await step(one, request(one, 1, 5))
    await step(one, request(one, 1, 5, answered=6))

    assert [request(one, 1, 5, answered=6)] == requests(await taken(two))


async def test_the_first_snapshot_is_afresh_until_something_is_published(join: Open) -> None:
    """A member that took and did not publish reads everything again."""
    one, row = await joined(join)
    two = await join()

    first = await taken(two)
    await two.release()
    second = await step(two, member_row(two))
    third = await step(two)

    assert [True, True, False] == [each.afresh for each in (first, second, third)]
    assert [row] == requests(first) == requests(second)
    assert one.member != two.member


async def test_only_one_member_is_between_take_and_publish(join: Open) -> None:
    """Another member gets the lock only after it."""
    one, two = await join(), await join()
    await taken(one)

    assert await two.take(0.05) is None
    assert await two.take(0) is None
    await one.publish([])
    await taken(two)


async def test_a_released_lock_is_free_at_once(join: Open) -> None:
    """Releasing writes nothing, and frees the lock."""
    one, two = await join(), await join()
    await taken(one)
    await one.release()
    await one.release()

    await taken(two)


async def test_a_step_has_an_order(join: Open) -> None:
    """Publishing without the lock, and taking it twice, are errors of the caller."""
    one = await join()

    with pytest.raises(RuntimeError, match="not locked"):
        await one.publish([])
    await taken(one)
    with pytest.raises(RuntimeError, match="already"):
        await one.take(1)


async def test_many_members_do_not_disturb_each_other(join: Open) -> None:
    """Each of 160 steps of eight members has the rows of the step before it."""
    members = [await join() for _ in range(8)]

    async def count(ledger: RedisLedger) -> None:
        epoch = 0
        for _ in range(20):
            snapshot = await ledger.take(60)
            assert snapshot is not None
            plans = [row.epoch for row in snapshot.rows if isinstance(row, PlanRow)]
            epoch = max([epoch, *plans]) + 1
            assert await ledger.publish([PlanRow(epoch, 176, 1)])

    async with anyio.create_task_group() as group:
        for each in members:
            group.start_soon(count, each)

    rows = (await taken(await join())).rows
    assert [8 * 20] == [row.epoch for row in rows if isinstance(row, PlanRow)]


# A member that stalls.


async def test_a_member_that_stalls_is_fenced_off(join: Open, redis_server: RedisServer) -> None:
    """A member whose lock has expired writes nothing, and reads the same rows again."""
    one, two = await join(), await join()
    await step(two, member_row(two))
    await taken(one)
    redis_server.call("PEXPIRE", f"{TAG}:lock", 1)
    await step(two, request(two, 1, 5))

    refused = await one.publish([request(one, 1, 5)])

    assert not refused
    assert [request(two, 1, 5)] == requests(await taken(one))
    await one.release()
    assert [] == requests(await taken(two))


@pytest.mark.long
async def test_the_lock_expires_after_two_seconds(join: Open) -> None:
    """A member that stalls for longer loses the lock to the next one, and is refused."""
    one, two = await join(), await join()
    await taken(one)

    await taken(two)

    assert not await one.publish([request(one, 1, 5)])
    assert await two.publish([request(two, 1, 5)])


STALLS = f"""
import asyncio, sys
from perfect_async._ledger.redis import open_redis
from perfect_async.events import PlanRow

async def main():
    ledger = await open_redis(sys.argv[1], {HOST!r}, {KEY!r})
    await ledger.take(5)
    print("taken", flush=True)
    sys.stdin.readline()
    print(await ledger.publish([PlanRow(9, 9, 9)]), flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


@pytest.mark.long
async def test_a_stopped_process_is_fenced_off(join: Open, redis_server: RedisServer) -> None:
    """A process that was stopped between the two calls has written nothing."""
    two = await join()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", STALLS, redis_server.url()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert b"taken\n" == await process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    process.stdin.write(b"\n")
    await step(two, member_row(two))
    process.send_signal(signal.SIGCONT)

    assert b"False\n" == await process.stdout.readline()
    process.kill()
    await process.wait()
    assert () == (await step(two)).rows


async def test_a_cancelled_take_leaves_no_lock(join: Open, redis_server: RedisServer) -> None:
    """A take that is cancelled while the server is silent does not block others."""
    one, two = await join(), await join()
    redis_server.pause()
    with anyio.move_on_after(0.1):
        await one.take(5)
    redis_server.resume()

    assert await two.take(1) is not None


async def test_a_take_that_arrives_late_does_not_lock(
    join: Open, redis_server: RedisServer
) -> None:
    """After a pause the server gets takes whose callers have given up."""
    one, two = await join(), await join()
    redis_server.pause()
    assert await one.take(0.1) is None
    redis_server.resume()

    assert await two.take(1) is not None


# Members that leave or die.


async def test_a_member_that_leaves_is_gone_at_once(join: Open) -> None:
    """The others read that it left, and its row is removed."""
    one, _ = await joined(join)
    two, _ = await joined(join)
    await one.aclose()
    await one.aclose()

    assert (one.member,) == (await step(two)).gone
    assert () == (await step(two)).gone
    assert [two.member] == [each.member for each in await two.members()]
    with pytest.raises(LedgerUnavailable, match="left"):
        await one.take(1)


async def test_a_member_that_is_silent_for_15_s_is_dead(
    join: Open, redis_server: RedisServer
) -> None:
    """It is recorded as gone, and its open requests are dropped by time."""
    one, row = await joined(join)
    two, _ = await joined(join)
    silence(redis_server, one, seconds=16)

    assert (one.member,) == (await step(two)).gone
    end = int(redis_server.call("ZSCORE", f"{TAG}:ends", f"request {one.member} {row.number}"))
    assert 359 * SECOND < end - server_time(redis_server) <= 360 * SECOND


async def test_a_dead_member_that_comes_back_writes_everything_again(
    join: Open, redis_server: RedisServer
) -> None:
    """Its next snapshot is afresh, and it counts as living again."""
    one, row = await joined(join)
    two, other = await joined(join)
    silence(redis_server, one, seconds=16)
    await step(two)

    snapshot = await step(one, member_row(one), row)

    assert snapshot.afresh
    assert [other] == requests(snapshot)
    assert [member_row(one), row] == list((await step(two)).rows)
    assert (one.member,) != (await taken(await join())).gone


def silence(server: RedisServer, ledger: RedisLedger, seconds: int) -> None:
    """Make a member seem silent for so long."""
    at = server_time(server) - seconds * SECOND
    server.call("ZADD", f"{TAG}:seen", at, ledger.member)


def server_time(server: RedisServer) -> int:
    seconds, rest = server.call("TIME")
    return int(seconds) * SECOND + int(rest)


# A server that loses its data.


async def test_a_flushed_server_is_filled_again(join: Open, redis_server: RedisServer) -> None:
    """The first member puts back the rows of others; each writes its own again."""
    one, first = await joined(join)
    two, second = await joined(join, 2)
    await step(one)
    redis_server.call("FLUSHALL")

    mine = await step(one, member_row(one), first)
    newcomer = await taken(await join())

    assert mine.afresh
    assert [second] == requests(mine)
    assert {second, first} == set(requests(newcomer))
    assert {one.member, two.member} == {
        row.member for row in newcomer.rows if isinstance(row, MemberRow)
    }


async def test_each_member_notices_a_flush(join: Open, redis_server: RedisServer) -> None:
    """The second member also reads and writes everything."""
    one, first = await joined(join)
    two, second = await joined(join)
    await step(one)
    redis_server.call("FLUSHALL")
    await step(one, member_row(one), first)

    snapshot = await step(two, member_row(two), second)

    assert snapshot.afresh
    assert [first] == requests(snapshot)
    assert not (await step(two)).afresh
    assert not (await step(one)).afresh


async def test_the_dead_stay_dead_after_a_flush(join: Open, redis_server: RedisServer) -> None:
    """The requests of a dead member still count, and the others read that it is gone."""
    one, row = await joined(join)
    two, _ = await joined(join)
    await one.aclose()
    await step(two)
    redis_server.call("FLUSHALL")

    assert (one.member,) == (await step(two, member_row(two))).gone
    newcomer = await taken(await join())
    assert (one.member,) == newcomer.gone
    assert row in requests(newcomer)


async def test_remembered_rows_do_not_replace_newer_ones(
    join: Open, redis_server: RedisServer
) -> None:
    """A row that its owner has written again is newer than another member's copy of it."""
    one, first = await joined(join)
    two, _ = await joined(join)
    redis_server.call("FLUSHALL")
    answered = request(one, 1, first.left, answered=first.left + 9)
    await step(one, member_row(one), answered)

    snapshot = await step(two, member_row(two))

    assert [answered] == requests(snapshot)
    assert () == (await step(one)).gone


async def test_a_server_that_was_restarted_is_used_again(
    join: Open, redis_server: RedisServer
) -> None:
    """Connections, scripts and rows are restored with the next step."""
    one, first = await joined(join)
    redis_server.restart()

    assert (await step(one, member_row(one), first)).afresh
    assert [first] == requests(await taken(await join()))


async def test_an_old_replica_is_noticed(join: Open, redis_server: RedisServer) -> None:
    """After a failover to a replica without the last steps all members write again."""
    one, first = await joined(join)
    two, _ = await joined(join)
    old = {name: redis_server.dump(name) for name in redis_server.names()}
    await step(one, request(one, 2, 6))
    await step(two)
    await step(two, request(two, 3, 7))
    redis_server.call("FLUSHALL")
    for name, value in old.items():
        redis_server.restore(name, value)

    assert (await step(one, member_row(one), first, request(one, 2, 6))).afresh
    assert (await step(two, member_row(two), request(two, 3, 7))).afresh
    assert {first, request(one, 2, 6)} == set(requests(await taken(await join()))) & {
        first,
        request(one, 2, 6),
    }


async def test_the_ledger_is_not_trusted_after_a_long_absence(join: Open) -> None:
    """A member that was away for longer than rows are kept reads everything."""
    one = await join()
    await step(one, member_row(one))
    one._read_at -= 101 * SECOND

    assert (await taken(one)).afresh


# A server that does not answer.


async def test_a_stopped_server_stops_no_caller(
    join: Open,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each call ends in time; a warning says that Redis is gone, and a line that it is back."""
    monkeypatch.setattr(module, "_LOST_AFTER", 0.15)
    monkeypatch.setattr(module, "_RETRIED_AFTER", 0.1)
    caplog.set_level(logging.INFO, "perfect_async")
    one, row = await joined(join)
    redis_server.pause()
    # redis-py itself would try again for four seconds.
    with anyio.fail_after(10):
        assert [None] * 20 == [await one.take(0.05) for _ in range(20)]
        with (
            shortened(monkeypatch, "_CALL"),
            pytest.raises(LedgerUnavailable, match="does not answer"),
        ):
            await one.known_task("t")
    redis_server.resume()

    await step(one, row)

    told = [(each.levelname, each.getMessage()) for each in caplog.records]
    assert ["WARNING", "INFO"] == [level for level, _ in told]
    assert "does not answer" in told[0][1]
    assert "answers again" in told[1][1]


@pytest.mark.long
async def test_four_seconds_without_a_server(join: Open, redis_server: RedisServer) -> None:
    """A server that was stopped for four seconds is used again with its rows."""
    one, row = await joined(join)
    two, _ = await joined(join)
    redis_server.pause()
    with anyio.move_on_after(4):
        while True:
            assert await one.take(0.05) is None
            await anyio.sleep(0.1)
    redis_server.resume()

    await step(one, member_row(one), row)
    assert not (await step(two)).gone


async def test_a_publication_without_an_answer_does_not_count(
    join: Open, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it was written, the next publication takes back the requests that were not sent."""
    one, _ = await joined(join)
    two, _ = await joined(join)
    now = (await taken(one)).now
    phantom = request(one, 9, now)
    task = TaskRow(one.member, 9, SMILE, now, now, now + 9 * SECOND, 1, 2)
    intent = IntentRow(one.member, 9, "i", "d", "ai-smile", now)
    redis_server.pause()
    with shortened(monkeypatch, "_CALL"):
        assert not await one.publish([phantom, task, intent, member_row(one)])
    redis_server.resume()
    assert phantom in (await step(two)).rows

    assert (await step(one, member_row(one))).afresh

    assert {
        member_row(one),
        attrs.evolve(phantom, answered=now, outcome="failed"),
        attrs.evolve(task, ended=True),
    } == set((await step(two)).rows)
    assert (attrs.evolve(intent, state="refused"),) == await two.find_intents("i", "d")


async def test_jobs_are_not_read_by_a_step_but_are_put_back(
    join: Open, redis_server: RedisServer
) -> None:
    """There may be tens of thousands; a job is found by its name, also after a loss."""
    one, _ = await joined(join)
    two, _ = await joined(join)
    await step(two)
    now = (await taken(one)).now
    intent = IntentRow(one.member, 1, "i", "d", "ai-smile", now, "accepted", "t")
    await one.publish([intent, DoneRow("i", "d", "ai-smile", "t", now)])

    read = (await step(two)).rows
    redis_server.call("FLUSHALL")
    await step(two, member_row(two))

    assert () == read
    assert 2 == len(await two.find_intents("i", "d"))


async def test_a_publication_that_never_arrived_leaves_nothing(
    join: Open, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking it back writes no row of its own."""
    one, _ = await joined(join)
    two, _ = await joined(join)
    await step(two)
    await taken(one)
    redis_server.call("DEL", f"{TAG}:lock")
    redis_server.pause()
    with shortened(monkeypatch, "_CALL"):
        assert not await one.publish([request(one, 9, 5)])
    redis_server.resume()

    await step(one, member_row(one))

    assert [member_row(one)] == list((await step(two)).rows)


async def test_a_server_that_only_some_reach(join: Open, redis_server: RedisServer) -> None:
    """A member that cannot reach it has no lock, counts as dead, and comes back whole."""
    with Proxy(redis_server.port) as proxy:
        one = await join(f"redis://127.0.0.1:{proxy.port}/0")
        await step(one, member_row(one), request(one, 1, 5))
        two, other = await joined(join)
        proxy.cut()
        assert await one.take(0.3) is None
        silence(redis_server, one, seconds=16)
        assert (one.member,) == (await step(two)).gone
        proxy.mend()

        snapshot = await step(one, member_row(one), request(one, 1, 5))

        assert snapshot.afresh
        assert [other] == requests(snapshot)
        await one.aclose()


# Time.


async def test_members_with_different_clocks_share_time_and_slots(join: Open) -> None:
    """Whatever a machine's clock counts from, slots begin together at the server's time."""
    ahead = 12_345_678_912_345

    one = await join(clock=time.monotonic_ns)
    two = await join(clock=lambda: time.monotonic_ns() + ahead)

    shifts = one._shift, two._shift
    assert (0, 0) == (shifts[0] % SLOT, shifts[1] % SLOT)
    assert abs(shifts[0] - shifts[1] - ahead // 1000) <= SLOT


async def test_a_ledger_is_emptied_when_the_servers_clock_was_set(
    join: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """The first member to notice empties it, and the others write their rows again."""
    behind = 0

    def clock() -> int:
        return time.monotonic_ns() - behind

    one, two = await join(clock=clock), await join(clock=clock)
    await step(one, member_row(one), request(one, 1, 5))
    await step(two, member_row(two), request(two, 1, 5))
    before = one._shift
    # It looks the same as a server's clock that is set forward.
    behind = 3600 * 10**9

    first = await step(one, member_row(one), request(one, 1, 6))
    second = await step(two, member_row(two))

    assert (True, ()) == (first.afresh, first.rows)
    assert (True, [request(one, 1, 6)]) == (second.afresh, requests(second))
    assert one._shift - before == pytest.approx(3600 * SECOND, abs=SLOT)
    assert 2 == caplog.text.count("clock of Redis")


async def test_a_servers_clock_that_goes_back_empties_the_ledger(
    join: Open, redis_server: RedisServer
) -> None:
    """Rows with times of the future cannot be used."""
    one, _ = await joined(join)
    redis_server.call("HSET", f"{TAG}:facts", "at", server_time(redis_server) + 60 * SECOND)

    newcomer = await taken(await join())

    assert () == newcomer.rows
    await one.release()


async def test_drift_is_corrected(join: Open) -> None:
    """The clocks of members stay together, and no take comes too late."""
    drift = 0
    one = await join(clock=lambda: time.monotonic_ns() + drift)
    two, other = await joined(join)
    await step(one, member_row(one))
    afresh = 0
    for _ in range(30):
        drift += 60_000_000
        snapshot = await step(one, member_row(one))
        afresh += snapshot.afresh
        if snapshot.afresh:
            assert [other] == requests(snapshot)
        assert await one.take(5) is not None
        await one.release()
        assert abs(one._shift + drift // 1000 - two._shift) < 4 * SLOT

    assert 5 < afresh < 30
    assert not (await step(two)).afresh


# Keys and rows in Redis.


async def test_all_keys_expire_and_are_in_one_slot_of_a_cluster(
    join: Open, redis_server: RedisServer
) -> None:
    """An abandoned ledger is gone after 25 hours."""
    one, row = await joined(join)
    await step(one, attrs.evolve(row, answered=row.left))
    await step(one, TaskRow(one.member, 1, SMILE, 1, 1, 2, 1, 2, task_id="t"))
    other, _ = await joined(join)
    await other.aclose()

    names = redis_server.names()
    assert 8 == len(names)
    assert all(name.startswith(f"{TAG}:") for name in names)
    assert all(0 < redis_server.call("PTTL", name) <= 25 * 3600 * 1000 for name in names)


async def test_rows_are_dropped_after_their_time(
    join: Open, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that no longer counts is removed from all keys."""
    monkeypatch.setattr(module, "_PRUNED_EVERY", 0)
    one = await join()
    now = (await taken(one)).now
    old = now - 4000 * SECOND
    await one.publish(
        [
            member_row(one, now),
            RequestRow(one.member, 1, old, answered=old),
            RequestRow(one.member, 2, old),
            TaskRow(one.member, 1, SMILE, old, old, old, 1, 2, task_id="t"),
        ]
    )
    await step(one)

    assert not await one.known_task("t")
    left = {f"member {one.member}", f"request {one.member} 2"}
    assert left == set(redis_server.call("HKEYS", f"{TAG}:rows"))
    assert left == set(redis_server.call("ZRANGE", f"{TAG}:versions", 0, -1))
    assert [] == redis_server.call("ZRANGE", f"{TAG}:ends", 0, -1)
    assert [] == redis_server.call("ZRANGE", f"{TAG}:index", 0, -1)


async def test_the_newest_400_durations_of_a_kind_are_kept(
    join: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older duration of the same kind of task is dropped, one of another kind is not."""
    monkeypatch.setattr(module, "_PRUNED_EVERY", 0)
    monkeypatch.setattr(module, "_COPIES_PRUNED_EVERY", 0)
    one = await join()
    await step(one, DurationRow(one.member, 0, TaskKind("ai-avatar"), 1, 2))
    for first in range(1, 411, 41):
        await step(one, *(DurationRow(one.member, first + n, SMILE, 1, 2) for n in range(41)))
    await step(one)

    found = (await taken(await join())).rows
    numbers = {row.number for row in found if isinstance(row, DurationRow)}
    assert 401 == len(numbers)
    # The ten oldest are gone.
    assert {0, *range(42, 411)} < numbers
    assert 401 == len(one._copies)


async def test_the_copy_of_other_rows_is_bounded(
    join: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member keeps the newest rows of others, and none whose time is over."""
    monkeypatch.setattr(module, "_COPIES_PRUNED_EVERY", 0)
    monkeypatch.setattr(module, "_MOST_COPIES", 2)
    one = await join()
    now = (await taken(one)).now
    await one.publish([request(one, number, now) for number in range(5)])
    assert 2 == len(one._copies)
    await step(one, RequestRow(one.member, 9, 1, answered=1))

    assert 2 == len(one._copies)


async def test_unreadable_rows_are_ignored(join: Open, redis_server: RedisServer) -> None:
    """Text of another version, or of another program, is neither a row nor an error."""
    one, row = await joined(join)
    for number, text in enumerate(["", "x", "\xff" * 80, "-" * 68 + '[2,"plan",1,2,3]']):
        redis_server.call("HSET", f"{TAG}:rows", f"junk {number}", text)
        redis_server.call("ZADD", f"{TAG}:versions", 1, f"junk {number}")
    redis_server.call("ZADD", f"{TAG}:versions", 1, "no such row")

    assert [row] == requests(await taken(await join()))
    assert one.member


# Questions.


async def test_jobs_and_tasks_are_found_with_and_without_the_lock(join: Open) -> None:
    """Intents and results are found by identity and digest, tasks by their id."""
    one, two = await join(), await join()
    now = (await taken(one)).now
    intent = IntentRow(one.member, 1, "an identity", "d", "ai-smile", now)
    done = DoneRow("an identity", "d", "ai-smile", "task-7", now + 1)
    await one.publish([done, IntentRow(one.member, 2, "an", "identity d", "ai-smile", now)])
    await step(one, intent, IntentRow(one.member, 3, "\udcff", "d", "ai-smile", now))
    await step(two, TaskRow(two.member, 1, SMILE, 1, 1, 2, 1, 2))
    assert not await one.known_task("task-8")
    await step(two, TaskRow(two.member, 1, SMILE, 1, 1, 2, 1, 2, task_id="task-8"))
    await taken(one)

    assert (intent, done) == await two.find_intents("an identity", "d")
    assert (intent, done) == await one.find_intents("an identity", "d")
    assert () == await two.find_intents("another", "d")
    assert [True, True, False] == [
        await two.known_task(name) for name in ("task-7", "task-8", "task-9")
    ]


async def test_members_are_listed(join: Open) -> None:
    """All living members are listed with their work, the caller included."""
    one, _ = await joined(join)
    await joined(join)

    found = await one.members()

    assert 2 == len(found)
    assert {(7, 2, 1)} == {(each.pid, each.work, each.running) for each in found}
    assert all(0 <= each.age < 60 * SECOND for each in found)


async def test_an_idle_member_does_not_ask_the_server_for_news(join: Open) -> None:
    """It takes a step within a few seconds anyway, so that it counts as living."""
    one, _ = await joined(join)
    await joined(join)

    assert not await one.has_news()
    assert 5 * SECOND >= one.renewed_every


async def test_a_forked_child_opens_its_own(join: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connections of the parent are not used in a child."""
    one, _ = await joined(join)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        with pytest.raises(LedgerUnavailable, match="fork"):
            await one.take(1)

    assert await one.take(1) is not None


# Opening.


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis:///0",
        f"http://{USER}:{SECRET}@127.0.0.1/0",
        f"unix://{USER}:{SECRET}@/tmp/redis.sock",
        f"redis://{USER}:{SECRET}@127.0.0.1:port/0",
        f"redis://{USER}:{SECRET}@127.0.0.1:6379:6379/0",
        f"redis://{USER}:{SECRET}@127.0.0.1:99999/0",
        f"redis://{USER}:{SECRET}@127.0.0.1/zero",
        f"redis://{USER}:{SECRET}@[::1/0",
        f"redis://{USER}:{SECRET}@127.0.0.1/0?db=x",
        f"redis://{USER}:{SECRET}@127.0.0.1/0?{SECRET}=1",
    ],
)
async def test_a_malformed_url_is_refused(url: str) -> None:
    """The error shows how to write one, and no part of the given one."""
    with pytest.raises(ConfigurationError, match="redis://") as found:
        await open_redis(url, HOST, KEY)

    assert_no_secret(found.value)


async def test_an_unreachable_server_is_refused(tmp_path: Path) -> None:
    """The error names host and port, and says what to do."""
    free_port = RedisServer("", tmp_path).port
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{free_port}.*Start it") as found:
        await open_redis(f"redis://{USER}:{SECRET}@127.0.0.1:{free_port}/0", HOST, KEY)

    assert_no_secret(found.value)


async def test_a_stopped_server_is_refused_after_a_while(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening does not wait for ever."""
    redis_server.pause()
    with (
        shortened(monkeypatch, "_OPENS_WITHIN"),
        pytest.raises(ConfigurationError, match="cannot be reached"),
    ):
        await open_redis(redis_server.url(), HOST, KEY)


async def test_tls_to_a_server_without_it_is_refused(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the scheme."""
    with (
        shortened(monkeypatch, "_OPENS_WITHIN"),
        pytest.raises(ConfigurationError, match="rediss for TLS"),
    ):
        await open_redis(redis_server.url().replace("redis:", "rediss:"), HOST, KEY)


@pytest.mark.parametrize("credentials", ["", f":{SECRET}@", f"{USER}:{SECRET}@"])
async def test_a_wrong_password_is_refused(start_redis: StartRedis, credentials: str) -> None:
    """The error says so, and does not show it."""
    server = start_redis(requirepass="right")
    with pytest.raises(ConfigurationError, match="password") as found:
        await open_redis(server.url(credentials), HOST, KEY)

    assert_no_secret(found.value)


async def test_the_password_is_not_shown(
    start_redis: StartRedis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the log nor the ledger's repr shows it, also when the server is gone."""
    monkeypatch.setattr(module, "_LOST_AFTER", 0.0)
    caplog.set_level(logging.DEBUG, "perfect_async")
    server = start_redis(requirepass=SECRET)
    ledger = await open_redis(server.url(f":{SECRET}@"), HOST, KEY)
    await step(ledger, member_row(ledger))
    server.kill()
    assert await ledger.take(0.2) is None
    await ledger.aclose()

    assert f"127.0.0.1:{server.port}" in repr(ledger)
    assert SECRET not in caplog.text + repr(ledger)
    assert "does not answer" in caplog.text


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_may_drop_rows_is_refused(start_redis: StartRedis, policy: str) -> None:
    """A ledger that loses rows when memory is full would exceed the limits."""
    server = start_redis(maxmemory_policy=policy)
    with pytest.raises(ConfigurationError, match=f"{policy}.*noeviction"):
        await open_redis(server.url(), HOST, KEY)


async def test_the_policy_is_found_without_config(start_redis: StartRedis) -> None:
    """Managed servers forbid CONFIG, but INFO has the policy."""
    server = start_redis(maxmemory_policy="allkeys-lru")
    server.call(*f"ACL SETUSER {USER} on >{SECRET} ~* +@all -config".split())
    with pytest.raises(ConfigurationError, match="noeviction"):
        await open_redis(server.url(f"{USER}:{SECRET}@"), HOST, KEY)


async def test_a_server_with_an_unknown_policy_is_used(
    start_redis: StartRedis, caplog: pytest.LogCaptureFixture
) -> None:
    """A line in the log says which policy it must have."""
    caplog.set_level(logging.INFO, "perfect_async")
    server = start_redis()
    server.call(*f"ACL SETUSER {USER} on >{SECRET} ~* +@all -config -info".split())
    ledger = await open_redis(server.url(f"{USER}:{SECRET}@"), HOST, KEY)
    await step(ledger, member_row(ledger))
    await ledger.aclose()

    assert "must be noeviction" in caplog.text


async def test_a_user_without_rights_is_refused(start_redis: StartRedis) -> None:
    """A user that may not run scripts cannot keep a ledger."""
    server = start_redis()
    server.call(*f"ACL SETUSER {USER} on >{SECRET} ~* +@all -@scripting".split())
    with pytest.raises(ConfigurationError, match="scripts") as found:
        await open_redis(server.url(f"{USER}:{SECRET}@"), HOST, KEY)

    assert_no_secret(found.value)


async def test_a_replica_is_refused(start_redis: StartRedis, redis_server: RedisServer) -> None:
    """A replica accepts no rows."""
    replica = start_redis(replicaof=f"127.0.0.1 {redis_server.port}")
    with pytest.raises(ConfigurationError, match="ReadOnlyError"):
        await open_redis(replica.url(), HOST, KEY)


async def test_a_server_with_full_memory_counts_as_silent(
    join: Open,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is written or raised, and the log has the reason."""
    monkeypatch.setattr(module, "_LOST_AFTER", 0.0)
    one, _ = await joined(join)
    redis_server.call("CONFIG", "SET", "maxmemory", "1")

    assert await one.take(0.4) is None

    assert "OutOfMemoryError" in caplog.text


async def test_tls_works(start_redis: StartRedis, tmp_path: Path) -> None:
    """rediss:// reaches the same ledger over TLS."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    await anyio.run_process(
        [
            *(program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ]
    )
    server = start_redis(
        tls_cert_file=str(certificate),
        tls_key_file=str(key),
        tls_ca_cert_file=str(certificate),
        tls_auth_clients="no",
        tls=True,
    )
    url = server.url().replace("redis:", "rediss:")
    with pytest.raises(ConfigurationError, match="cannot be reached"):
        await open_redis(url, HOST, KEY)

    ledger = await open_redis(f"{url}?ssl_ca_certs={certificate}", HOST, KEY)

    await step(ledger, member_row(ledger))
    await ledger.aclose()


def test_without_the_extra_the_error_says_how_to_install_it() -> None:
    """The module loads without redis, and opening says what is missing."""
    program = (
        "import sys; sys.modules['redis'] = None\n"
        "import asyncio\n"
        "from perfect_async._ledger.redis import open_redis\n"
        "from perfect_async.errors import ConfigurationError\n"
        "try: asyncio.run(open_redis('redis://127.0.0.1', 'h', 'k'))\n"
        "except ConfigurationError as exc: print(exc)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )

    assert 'pip install "perfect_async[redis]"' in found.stdout


def assert_no_secret(error: BaseException) -> None:
    """Neither an error nor those that it came from show the credentials."""
    shown: BaseException | None = error
    while shown is not None:
        assert SECRET not in f"{shown!r} {shown}"
        assert USER not in f"{shown!r} {shown}"
        shown = shown.__cause__ or shown.__context__
