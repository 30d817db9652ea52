"""The steps of a driver in the ledger of its key: two members of one event loop, and a bad store.

The vendor's two host names are one host with two drivers, so one loop can hold two members.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import pytest

from perfect_async import (
    Avatar,
    Client,
    ClientClosed,
    ConfigurationError,
    Feature,
    Job,
    Limits,
    PerfectError,
    Placeholder,
    Smile,
    SubmissionInDoubt,
)
from perfect_async._files.images import _look_at_bytes
from perfect_async._ledger.local import LocalLedger
from perfect_async._ledger.rows import LedgerUnavailable, MemberStatus, Snapshot
from perfect_async._runtime import sharing
from perfect_async._runtime.doubts import ProcessMemory
from perfect_async._runtime.sharing import SharedKey, ShareSetting
from perfect_async._runtime.spec import PLAIN, JobSpec
from perfect_async._time import NEVER, SECOND
from perfect_async.events import (
    DoneRow,
    IntentRow,
    LedgerRow,
    MemberRow,
    RequestRow,
    SharedLimits,
)
from perfect_async.sandbox import Durations, Faults, Sandbox, portrait
from tests.support.sandboxed import avatar, client, smile, smiles, vendor
from tests.support.virtual_time import VirtualTimeLoop

HOSTS = "https://yce-api-01.makeupar.com", "https://yce-api-01.perfectcorp.com"


def members(sandbox: Sandbox, folder: Path, **settings: object) -> tuple[Client, Client]:
    """Two unopened clients of one key that share its ledger in `folder`."""
    one, other = (client(sandbox, base_url=host, share=str(folder), **settings) for host in HOSTS)
    return one, other


class ScriptedStore:
    """A ledger without other members, whose calls can be made to fail."""

    member = "a" * 16

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self.renewed_every = NEVER
        self.takes = 0
        self.hangs = False
        self.fresh = True
        self.published: list[LedgerRow] = []
        self.refuses = 0
        self.busy = 0
        self.fails_at: set[str] = set()
        self.closed = False
        self.asked = 0
        self.looks = 0
        self.news = False
        self.rows: tuple[LedgerRow, ...] = ()

    def _check(self, what: str) -> None:
        if what in self.fails_at:
            raise LedgerUnavailable(f"{what} failed")

    async def take(self, within: float) -> Snapshot | None:
        self._check("take")
        self.takes += 1
        if self.busy:
            self.busy -= 1
            await anyio.sleep(within)
            return None
        fresh, self.fresh = self.fresh, False
        rows, self.rows = self.rows, ()
        return Snapshot(rows, (), fresh, self.now())

    async def publish(self, rows: Sequence[LedgerRow]) -> bool:
        self._check("publish")
        if self.hangs:
            self.hangs = False
            await anyio.sleep_forever()
        if self.refuses:
            self.refuses -= 1
            return False
        self.published += rows
        return True

    async def release(self) -> None:
        self.fresh = True

    async def aclose(self) -> None:
        self.closed = True

    async def has_news(self) -> bool:
        self._check("has_news")
        self.looks += 1
        return self.news

    async def members(self) -> tuple[MemberStatus, ...]:
        self._check("members")
        return ()

    async def find_intents(self, identity: str, digest: str) -> tuple[IntentRow | DoneRow, ...]:
        self._check("find_intents")
        return ()

    async def known_task(self, task_id: str) -> bool:
        self._check("known_task")
        return False


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedStore]:
    """The stores that clients open in this test, in order."""
    opened: list[ScriptedStore] = []

    async def open_scripted(_: SharedKey, now: Callable[[], int]) -> ScriptedStore:
        opened.append(ScriptedStore(now))
        return opened[-1]

    monkeypatch.setattr(SharedKey, "_opened", open_scripted)
    return opened


async def both(*work: Awaitable[object]) -> None:
    """Do all of `work` at once."""
    await asyncio.gather(*work)


# Two members.


async def test_two_members_keep_to_the_limits_together(tmp_path: Path) -> None:
    """Two clients that open on one key run their batches without a refusal or a loss."""
    sandbox = vendor()

    async def run(one: Client, first: int) -> None:
        async with one, one.batch([smile(first + number) for number in range(30)]) as batch:
            assert 30 == len([outcome async for outcome in batch if outcome.ok])

    await both(*(run(one, 100 * n) for n, one in enumerate(members(sandbox, tmp_path))))

    assert not sandbox.ledger.refused
    assert 0 == sandbox.ledger.units_wasted
    assert 60 == sandbox.ledger.units_charged


async def test_no_member_polls_for_others_after_the_ledger_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first member to return waits for the polls that the others could not write."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(25.0)})
    one, other = members(sandbox, tmp_path)
    take, away = LocalLedger.take, False

    async def try_to_take(ledger: LocalLedger, within: float) -> Snapshot | None:
        until = asyncio.get_running_loop().time() + within
        while away:
            if asyncio.get_running_loop().time() >= until:
                return None
            await asyncio.sleep(0.05)
        return await take(ledger, within)

    monkeypatch.setattr(LocalLedger, "take", try_to_take)
    async with one, other:
        runs = [
            asyncio.create_task(both(*(each.run(smile(first + n)) for n in range(12))))
            for first, each in ((0, one), (100, other))
        ]
        for _ in range(4):
            await asyncio.sleep(5)
            away = True
            await asyncio.sleep(4)
            away = False
        await asyncio.gather(*runs)

        assert not any("rescue" in each.statistics().requests for each in (one, other))
    assert (24, 0) == (sandbox.ledger.units_charged, sandbox.ledger.refused.total())


def kill(opened: Client) -> None:
    """End the driver of `opened` as kill -9 does: it writes nothing more, and its lock is free."""
    session = opened._session
    assert session is not None
    driver = session.driver
    shared, host = driver._shared, driver._host
    assert shared is not None
    assert host is not None
    store = shared._store
    assert isinstance(store, LocalLedger)

    async def vanish(now: Callable[[], int]) -> None:
        store._close("killed")

    shared.leave = vanish  # type: ignore[method-assign] # a dead process leaves no ledger
    host.cancel()


@pytest.mark.parametrize("killed_after", [0.5, 3.0, 15.0])
async def test_an_idle_member_polls_the_task_of_a_dead_one(
    tmp_path: Path, killed_after: float
) -> None:
    """A client that waits for work keeps the task of a killed process alive to its end."""
    sandbox = vendor()
    one, other = members(sandbox, tmp_path)
    async with other:
        await one.open()
        task = await one.submit(avatar())
        assert task.id
        await asyncio.sleep(killed_after)
        kill(one)
        await asyncio.sleep(60)

        assert 0 < other.statistics().requests["rescue"]
        await asyncio.sleep(60)
    await one.close()
    assert (1, 0) == (len(sandbox.ledger.tasks), sandbox.ledger.units_wasted)


@pytest.mark.parametrize("drain", [0.0, 12.0])
async def test_a_member_that_leaves_hands_its_running_tasks_over(
    tmp_path: Path, drain: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that closes leaves them to a living process, as a killed one does."""
    sandbox = vendor()
    one, other = members(sandbox, tmp_path, drain=drain)
    async with other:
        async with one:
            tasks = [await one.submit(avatar(key=str(number))) for number in range(3)]
            await asyncio.sleep(2)
        assert "3 tasks still run and are left to the other processes on this key" in caplog.text
        await asyncio.sleep(60)

        assert 6 < other.statistics().requests["rescue"]
        for task in tasks:
            assert "success" == (await other.status(Avatar, task.id)).status
    assert (3, 0) == (sandbox.ledger.units_charged, sandbox.ledger.units_wasted)


async def test_a_lone_member_leaves_no_task_behind(tmp_path: Path) -> None:
    """A later process does not poll the tasks that a client gave up when it was alone."""
    sandbox = vendor()
    one, other = members(sandbox, tmp_path, drain=0.0)
    async with one:
        assert (await one.submit(avatar())).id
    async with other:
        await asyncio.sleep(30)

        assert "rescue" not in other.statistics().requests


async def test_an_idle_member_does_not_poll_for_a_living_one(tmp_path: Path) -> None:
    """It reads when a poll of another should have left, and finds that it has."""
    sandbox = vendor()
    one, other = members(sandbox, tmp_path)
    async with one, other:
        await both(*(one.run(avatar(key=str(n))) for n in range(5)))

        assert "rescue" not in other.statistics().requests
    assert 0 == sandbox.ledger.units_wasted


async def test_a_member_sees_the_others(tmp_path: Path) -> None:
    """Statistics show how many processes share the key, and how many requests the others sent."""
    one, other = members(vendor(), tmp_path)
    async with one, other:
        await one.run(smile(1))
        await other.run(smile(2))
        seen = other.statistics()

    assert 2 == seen.members
    assert 0 < seen.requests_by_others < seen.requests_in_window


async def test_a_second_run_waits_for_the_window_of_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that opens on a full window waits, logs that once, and loses no task."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(1.0)})
    one, other = members(sandbox, tmp_path)
    async with one, one.batch(smiles(122)) as batch:
        assert 122 == len([outcome async for outcome in batch if outcome.ok])
    async with other, other.batch([smile(1000 + number) for number in range(20)]) as batch:
        with anyio.fail_after(60):
            while not (waits := other.statistics().window_wait):  # noqa: ASYNC110 - as a user
                await anyio.sleep(1)
            began, eta = anyio.current_time(), batch.progress.eta
            while "submit" not in other.statistics().requests:  # noqa: ASYNC110 - as above
                await anyio.sleep(0.1)
            waited = anyio.current_time() - began
        assert 20 == len([outcome async for outcome in batch if outcome.ok])

    assert not sandbox.ledger.refused
    assert waits / 2 < waited < 2 * waits
    assert eta is not None
    assert 1 == caplog.text.count("The request window of this key is full")


async def test_requests_of_an_earlier_run_count_from_when_they_were_sent(tmp_path: Path) -> None:
    """A client that opens 200 s after requests of another process has them for 100 s only."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(1.0)})
    one, other = members(sandbox, tmp_path)
    async with one, one.batch(smiles(60)) as batch:
        assert 60 == len([outcome async for outcome in batch if outcome.ok])
        sent = one.statistics().requests_in_window
    await asyncio.sleep(200)
    async with other:
        await other.run(smile(100))
        before = other.statistics().requests_in_window
        await asyncio.sleep(120)
        after = other.statistics().requests_in_window

    assert before >= sent
    assert 2 == after


async def test_a_doubt_holds_for_all_members(tmp_path: Path) -> None:
    """An equal job in another process gets the doubt too, until its caller consents."""
    sandbox = vendor(faults=Faults(lost_creations=1.0))
    one, other = members(sandbox, tmp_path)
    async with one, other:
        session = other._session
        assert session is not None
        # As in another process, since one process remembers the doubts of all its clients.
        session.driver.submitter.memory = ProcessMemory()
        with pytest.raises(SubmissionInDoubt):
            await one.run(smile(1))
        sandbox.faults = Faults()
        with pytest.raises(SubmissionInDoubt, match="another process"):
            await other.run(smile(1))
        charged = sandbox.ledger.units_charged
        result = await other.run(smile(1), buy_in_doubt=True)

    assert 1 == charged
    assert result.task_id


async def test_a_notification_that_reaches_another_process_ends_the_wait(tmp_path: Path) -> None:
    """The owner of a task polls it within a second of a notification elsewhere."""
    sandbox = vendor()
    one, other = members(sandbox, tmp_path)
    loop = asyncio.get_running_loop()
    async with one, other, anyio.create_task_group() as group:
        group.start_soon(one.run, smile(1))
        await anyio.sleep(8.25)
        (task,) = sandbox.ledger.tasks
        session = other._session
        assert session is not None
        began = loop.time()
        session.driver.notify(task.task_id)
        while not one.statistics().done:  # noqa: ASYNC110 - as a user would see it
            await anyio.sleep(0.05)
        assert 1.5 > loop.time() - began


async def test_shares_of_the_limits_count_as_the_whole(tmp_path: Path) -> None:
    """Shares of the limits count as the whole if the key is shared."""
    sandbox = vendor()
    one, other = members(sandbox, tmp_path, limits=Limits().split(5))
    async with one, other:
        await both(one.run(smile(1)), other.run(smile(2)))

        assert 250 == one.statistics().window_limit
        assert 250 == other.statistics().window_limit


async def test_clients_of_one_driver_agree_on_the_ledger(tmp_path: Path) -> None:
    """A second client on a key in the same loop with another `share` is refused at opening."""
    sandbox = vendor()
    transport = sandbox.transport()
    async with client(sandbox, transport=transport, share=str(tmp_path)):
        with pytest.raises(ConfigurationError, match="must agree"):
            await client(sandbox, transport=transport, share=None).open()


# A bad store.


def shared(stores: list[ScriptedStore], **settings: object) -> tuple[Client, Sandbox]:
    """A client whose ledger is the next of `stores`, and its vendor."""
    sandbox = vendor()
    stores.clear()
    return client(sandbox, share="machine", **settings), sandbox


async def test_unwritten_commands_are_not_sent(stores: list[ScriptedStore]) -> None:
    """If the ledger refuses the rows of a step, nothing is sent and the step is repeated."""
    one, sandbox = shared(stores)
    async with one:
        stores[0].refuses = 3
        await one.run(smile(1))

    assert 1 == sandbox.ledger.units_charged
    assert 0 == sandbox.ledger.units_wasted


async def test_a_reserved_poll_leaves_without_the_lock(stores: list[ScriptedStore]) -> None:
    """A running task is kept alive while the lock cannot be taken for a long time."""
    sandbox = vendor()
    one = client(sandbox, share="machine")
    async with one, anyio.create_task_group() as group:
        group.start_soon(one.run, smile(1))
        while not one.statistics().running:  # noqa: ASYNC110 - as above
            await anyio.sleep(0.1)
        await anyio.sleep(1)
        stores[0].busy = 200
        await anyio.sleep(60)
        stores[0].busy = 0

    assert 1 == one.statistics().done
    assert 0 == sandbox.ledger.units_wasted


@pytest.mark.parametrize(("busy", "waited"), [(5, 0.25), (200, 0.5)])
async def test_an_overdue_poll_waits_for_the_lock_for_half_a_second(
    stores: list[ScriptedStore], busy: int, waited: float
) -> None:
    """Another process may have sent the poll of a process that stood still."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(60.0)}, latency=0.0, jitter=0.0)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    async with client(sandbox, share="machine") as one:
        running = asyncio.create_task(one.run(smile(1)))
        await asyncio.sleep(5)
        assert one._session is not None
        driver = one._session.driver
        reserved_in = (driver.scheduler.reserved_at() - driver._now()) / SECOND
        stores[0].busy = busy
        loop.block(reserved_in + 0.4)
        awake, sent = loop.time(), sandbox.ledger.requests["poll"]
        while sandbox.ledger.requests["poll"] == sent:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)

        assert pytest.approx(waited, abs=0.03) == loop.time() - awake
        stores[0].busy = 0
        await running
    assert 0 == sandbox.ledger.units_wasted


async def test_a_creation_that_was_not_written_at_the_end_was_not_sent(
    stores: list[ScriptedStore],
) -> None:
    """A loop that ends while a creation is written records that it was not sent."""
    sandbox = vendor()
    async with client(sandbox, share="machine") as opened:
        await opened.run(smile(1))
        stores[0].hangs = True
        last = asyncio.create_task(opened.run(smile(2)))
        await asyncio.sleep(1)
        [driver] = [
            task for task in asyncio.all_tasks() if task.get_name() == "perfect_async driver"
        ]
        driver.cancel()
        await asyncio.gather(last, return_exceptions=True)

    intents = {row.ref: row for row in stores[0].published if isinstance(row, IntentRow)}
    assert ["accepted", "refused"] == [row.state for row in intents.values()]
    assert 1 == sandbox.ledger.units_charged


@pytest.mark.parametrize(("every", "takes"), [(NEVER, 0), (5 * SECOND, 12)])
async def test_an_idle_member_renews_its_row(
    stores: list[ScriptedStore], every: int, takes: int
) -> None:
    """It takes steps only if a silent member would count as dead."""
    async with client(vendor(), share="machine") as opened:
        stores[0].renewed_every = every
        await opened.run(smile(1))
        await asyncio.sleep(1)
        before = stores[0].takes
        await asyncio.sleep(61)

        assert takes == stores[0].takes - before


async def test_an_idle_member_looks_for_news_without_the_lock(stores: list[ScriptedStore]) -> None:
    """It takes steps while others write, else it looks once in two seconds, in vain."""
    async with client(vendor(), share="machine") as opened:
        await opened.run(smile(1))
        await asyncio.sleep(10)
        takes, looks = stores[0].takes, stores[0].looks
        await asyncio.sleep(20)
        assert (takes, looks + 10) == (stores[0].takes, stores[0].looks)
        stores[0].news = True
        await asyncio.sleep(20)

        assert takes + 10 == stores[0].takes


async def test_an_idle_process_goes_on_alone_if_its_look_fails(
    stores: list[ScriptedStore], caplog: pytest.LogCaptureFixture
) -> None:
    """A ledger that cannot be used is found out by the next step, which logs it once."""
    async with client(vendor(), share="machine") as opened:
        await opened.run(smile(1))
        stores[0].fails_at = {"has_news", "take"}
        await asyncio.sleep(10)

        assert stores[0].closed
        await opened.run(smile(2))
    assert 1 == caplog.text.count("does not share its key's request window")


@pytest.mark.parametrize("where", ["take", "publish"])
async def test_a_process_goes_on_alone_without_its_ledger(
    stores: list[ScriptedStore], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the ledger can no longer be used, the jobs go on, and one line says why."""
    one, sandbox = shared(stores)
    async with one:
        await one.run(smile(1))
        stores[0].fails_at = {where}
        async with one.batch([smile(number) for number in range(2, 8)]) as batch:
            assert 6 == len([outcome async for outcome in batch if outcome.ok])

    assert 7 == sandbox.ledger.units_charged
    assert stores[0].closed
    assert 1 == caplog.text.count("does not share its key's request window")
    assert f"{where} failed" in caplog.text


async def test_a_process_without_a_ledger_begins_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An ordinary reason, such as a read-only home, is logged at INFO and not as a warning."""

    async def refuse(*_: object) -> None:
        raise LedgerUnavailable("the home is read-only", ordinary=True)

    monkeypatch.setattr(SharedKey, "_opened", refuse)
    caplog.set_level(logging.INFO)
    one = client(vendor(), share="machine", limits=Limits().split(5))
    async with one:
        await one.run(smile(1))

        assert 50 == one.statistics().window_limit
    assert ["INFO"] == [
        record.levelname for record in caplog.records if "read-only" in record.getMessage()
    ]


async def test_a_ledger_that_is_locked_at_opening_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client goes on alone if the lock is held for too long when it opens."""
    made: list[ScriptedStore] = []

    async def open_busy(_: SharedKey, now: Callable[[], int]) -> ScriptedStore:
        made.append(ScriptedStore(now))
        made[0].busy = 10
        return made[0]

    monkeypatch.setattr(SharedKey, "_opened", open_busy)
    async with client(vendor(), share="machine") as one:
        await one.run(smile(1))

    assert made[0].closed
    assert "its lock was held" in caplog.text


async def test_a_server_that_stops_while_the_client_opens_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client does not go on alone if the Redis server of its key hangs."""

    async def open_busy(_: SharedKey, now: Callable[[], int]) -> ScriptedStore:
        store = ScriptedStore(now)
        store.busy = 10
        return store

    monkeypatch.setattr(SharedKey, "_opened", open_busy)
    with pytest.raises(ConfigurationError, match="stopped answering"):
        await client(vendor(), share="redis://127.0.0.1:1").open()


async def test_a_server_that_cannot_be_used_is_refused_at_opening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Redis server that cannot be reached is a `ConfigurationError`."""

    async def refuse(*_: object) -> None:
        raise ConfigurationError("no Redis there")

    monkeypatch.setattr(SharedKey, "_opened", refuse)
    one = client(vendor(), share="redis://127.0.0.1:1")

    with pytest.raises(ConfigurationError, match="no Redis there"):
        await one.open()


async def test_implausible_rows_are_ignored(stores: list[ScriptedStore]) -> None:
    """A request of a time in 285 years would occupy the window until then."""
    opened, _ = shared(stores)
    async with opened:
        stores[0].rows = (RequestRow("b" * 16, 1, 2**53, answered=2**53),)
        await opened.run(smile(1))
        await asyncio.sleep(310)
        await opened.run(smile(2))

        assert 0 == opened.statistics().requests_by_others
        assert 10 > opened.statistics().requests_in_window


@pytest.mark.parametrize(("place", "spared"), [("/ledgers", 1), ("redis://ledgers", 2)])
async def test_processes_of_one_machine_judge_their_network_together(
    stores: list[ScriptedStore], place: str, spared: int
) -> None:
    """Two tries are enough after the polls of others, unless they may be on other machines."""
    async with client(vendor(), share=place) as opened:
        now, limits = stores[0].now(), SharedLimits(250, 300 * SECOND, 5, 10 * SECOND)
        other = MemberRow("b" * 16, 1, limits, now, cycle=186, guard=150_000, spared=1)
        polls = (
            RequestRow(other.member, number, now, answered=now, outcome="accepted")
            for number in range(120)
        )
        stores[0].rows = (other, *polls)
        await opened.run(smile())

    wanted = [row.spared for row in stores[0].published if isinstance(row, MemberRow)]
    assert spared == wanted[-1]


async def test_nothing_is_created_while_the_ledger_cannot_be_asked_for_doubts(
    stores: list[ScriptedStore],
) -> None:
    """Another process may have created a task for the same job without an answer."""
    opened, sandbox = shared(stores)
    async with opened, anyio.create_task_group() as group:
        stores[0].fails_at = {"find_intents"}
        group.start_soon(opened.run, smile())
        await anyio.sleep(2)
        assert 0 == sandbox.ledger.units_charged
        stores[0].fails_at = set()

    assert 1 == sandbox.ledger.units_charged


async def test_a_job_that_ends_while_the_ledger_is_asked_is_over(
    stores: list[ScriptedStore],
) -> None:
    """A client that closes does not stay open for another process's task."""
    opened, sandbox = shared(stores, reuse=True)
    asked = anyio.Event()
    errors: list[PerfectError] = []

    async def find_intents(identity: str, digest: str) -> tuple[IntentRow | DoneRow, ...]:
        if not errors and stores[0].asked:
            asked.set()
            await anyio.sleep(0.1)
            return (IntentRow("b" * 16, 1, identity, digest, "ai-smile", 0, "accepted", "t"),)
        stores[0].asked += 1
        return ()

    async def run() -> None:
        try:
            await opened.run(smile())
        except PerfectError as exc:
            errors.append(exc)

    async with opened, anyio.create_task_group() as group:
        stores[0].find_intents = find_intents  # type: ignore[method-assign] # a script
        group.start_soon(run)
        await asked.wait()
        group.start_soon(opened.close)

    assert [ClientClosed] == [type(error) for error in errors]
    assert 0 == sandbox.ledger.requests["poll"]


async def test_a_setting_shows_no_password() -> None:
    """No repr shows the URL of a Redis server."""
    assert "secret" not in repr(ShareSetting(url="redis://:secret@host"))
    assert sharing.submission is not None


def test_the_ledger_has_digests_of_signed_urls() -> None:
    """The ledger identifies a job by digests, whatever its source."""
    url = "https://pictures.example/a.jpg?X-Amz-Signature=abc"
    submission = sharing.submission(JobSpec.of(Smile(url), None, PLAIN))

    assert "pictures" not in f"{submission.identity}{submission.digest}"
    assert 64 == len(submission.digest)


SIGNED = "https://pictures.example/a.jpg?X-Amz-Signature="


def in_ledger(job: Job) -> tuple[str, str]:
    """The identity and digest of `job` in the ledger; its pictures are bytes or URLs."""
    data = [each.source if isinstance(each.source, bytes) else None for each in job.inputs]
    found = [None if each is None else _look_at_bytes(each, job) for each in data]
    first, *more = found or [None]
    submission = sharing.submission(JobSpec.of(job, first, PLAIN, *more))
    return submission.identity, submission.digest


@pytest.mark.parametrize("key", [None, "k"])
def test_different_jobs_have_different_digests(key: str | None) -> None:
    """Each input counts in its place, a signed URL as a whole, and so does each parameter."""
    one, two = portrait(1), portrait(2)
    jobs = [
        Feature("a", src=one, ref=two, key=key),
        Feature("a", src=two, ref=one, key=key),
        Feature("a", src=one, mask=two, key=key),
        Feature("a", src=one, ref=[two], key=key),
        Feature("a", src=one, key=key),
        Feature("a", ref=one, key=key),
        Feature("a", {"n": 1}, src=one, ref=two, key=key),
        Feature("a", {"n": Placeholder("ref")}, src=one, ref=two, key=key),
        Feature("a", src=one, ref=two, version="v2.1", key=key),
        Feature("a/b", src=one, ref=two, key=key),
        Feature("a", src=one, ref=SIGNED + "1", key=key),
        Feature("a", src=two, ref=SIGNED + "1", key=key),
        Feature("a", src=one, ref=SIGNED + "2", key=key),
        Feature("a", src=SIGNED + "2", ref=SIGNED + "1", key=key),
        Feature("a", src=SIGNED + "1", ref=SIGNED + "2", key=key),
        Feature("a", key=key),
        Feature("a", {"prompt": "fox"}, key=key),
        Feature("a", {"prompt": "ox"}, key=key),
    ]

    assert len(jobs) == len({in_ledger(job) for job in jobs})
    assert all(64 == len(text) for job in jobs for text in in_ledger(job))
    assert [in_ledger(job) for job in jobs] == [in_ledger(job) for job in jobs]


def test_pictures_of_one_key_have_their_own_digests() -> None:
    """The picture of a typed job counts by its digest even if the job has a key."""
    one, two = Smile(portrait(1), key="k"), Smile(portrait(2), key="k")

    assert in_ledger(one)[0] == in_ledger(two)[0]
    assert hashlib.sha256(portrait(1)).hexdigest() == in_ledger(one)[1] != in_ledger(two)[1]


async def test_a_leaving_member_writes_which_tasks_have_ended(tmp_path: Path) -> None:
    """The other member polls no task of a client that has closed."""
    sandbox = vendor()
    one, other = members(sandbox, tmp_path)
    async with other, other.batch(smiles(30)) as batch:
        async with one:
            await one.run(smile(100))
        assert 30 == len([outcome async for outcome in batch if outcome.ok])
        assert "rescue" not in other.statistics().requests
