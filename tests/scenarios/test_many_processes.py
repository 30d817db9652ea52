"""Processes on one key: real ones on a real port, and two members of one ledger in virtual time.

What is asserted are counts of the vendor's own ledger: nothing refused, nothing lost, each picture
paid once. No time is measured.
"""

import asyncio
import contextlib
import json
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from perfect_async import Client, Job, Limits, Polling, Smile
from perfect_async._ledger import folder as ledger_folder
from perfect_async._ledger.local import open_local
from perfect_async._ledger.rows import host_digest, key_digest
from perfect_async.sandbox import Durations, Sandbox, portrait
from tests.support.ports import free_port
from tests.support.processes import KEY as SECRET_KEY
from tests.support.processes import (
    PATIENCE,
    Town,
    all_done,
    check,
    different_limits,
    four_share,
    one_stops,
    two_runs,
    wait_for_port,
)
from tests.support.sandboxed import KEY, client, clock, smile, vendor
from tests.support.webhooks import SECRET

real = pytest.mark.real_time
slow = pytest.mark.timeout(600)


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """A vendor with wide limits and its lease of 10 s."""
    with Town(tmp_path) as made:
        yield made


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Town]:
    """The vendor's own limits, four times as fast."""
    with Town(
        tmp_path, requests=250, period=75.0, per_second=20, lease=2.5, durations=(2.0, 10.0)
    ) as made:
        yield made


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Town]:
    """A vendor with wide limits whose smiles take a second."""
    with Town(tmp_path, durations=(1.0, 1.0)) as made:
        yield made


# Ordinary programs.


@real
@slow
def test_two_processes_side_by_side(quick: Town) -> None:
    """Two processes know of each other, lose nothing, and leave no file that names their key."""
    work = quick.work(0, 3), quick.work(3, 3)
    programs = [quick.worker(str(number), each) for number, each in enumerate(work)]
    for program in programs:
        program.wait_for("begun")
    found = quick.files()
    told = b"".join(path.read_bytes() for path in found)
    modes = {path.stat().st_mode & 0o777 for path in found}
    folders = {path.stat().st_mode & 0o777 for path in quick.state.rglob("*") if path.is_dir()}

    all_done([report for program in programs for report in program.reports()], 6)

    check(quick, 6)
    assert 0o600 == max(modes) == min(modes)
    assert {0o700} == folders | {quick.state.stat().st_mode & 0o777}
    assert b'"task"' in told
    for secret in (SECRET_KEY, "127.0.0.1", "http", str(quick.folder), ".jpg"):
        assert secret.encode() not in told
        assert not any(secret in str(path.relative_to(quick.state)) for path in found)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_two_runs_one_after_another(narrow: Town) -> None:
    """A second run within the period waits for the window, logs that once, and loses nothing."""
    two_runs(narrow)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
@pytest.mark.parametrize(("each", "avatars"), [(30, 0), (10, 4)], ids=["smiles", "avatars"])
def test_four_processes_share_a_window(narrow: Town, each: int, avatars: int) -> None:
    """With more work than a window holds nothing is refused or lost."""
    four_share(narrow, each, avatars)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_processes_are_members(town: Town, method: str) -> None:
    """A process with an open client makes children that open clients of their own."""
    parent = town.program(
        "parent", "tests.support.processes", "fork", method, json.dumps(town.work(0, 24))
    )
    reports = parent.reports(4)

    all_done(reports, 24)
    assert 4 == len({report["pid"] for report in reports})
    assert 4 == max(report["most_members"] for report in reports)
    assert {"codes": [0, 0, 0]} == parent.lines()[-1]
    check(town, 24)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_event_loops_and_isolated_clients_are_members(town: Town) -> None:
    """Each event loop of a process, and the isolated clients' thread, is a member."""
    program = town.program(
        "threads", "tests.support.processes", "threads", json.dumps(town.work(0, 12))
    )
    reports = program.reports(3)

    all_done(reports, 12)
    assert 3 == max(report["most_members"] for report in reports)
    check(town, 12)


# Web apps.


class Site:
    """A web app of several workers."""

    def __init__(self, town: Town, *arguments: str, port: int = 0, **settings: object) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        address = [word.replace("PORT", str(self.port)) for word in arguments]
        work = json.dumps(town.work(0, 0, **settings))
        self.program = town.program("site", *address, WORK=work)
        wait_for_port(self.program, self.port)

    def smiles(self, first: int, count: int) -> list[int]:
        """Request so many smiles at once, and return the process that made each."""
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(self._smile, range(first, first + count)))

    def _smile(self, number: int) -> int:
        answer = httpx.get(f"{self.url}/smile?number={number}", timeout=PATIENCE)
        assert 200 == answer.status_code, self.program.said()
        assert 1 == answer.json()["pictures"]
        pid: int = answer.json()["pid"]
        return pid

    def stop(self) -> None:
        """End the app with SIGTERM, as its manager does."""
        self.program.send(signal.SIGTERM)
        self.program.process.wait(PATIENCE)
        assert "Traceback" not in self.program.said(), self.program.said()


UVICORN = ("uvicorn", "--port", "PORT", "--workers", "4", "tests.support.processes:app")
GUNICORN = (
    *("gunicorn", "--bind", "127.0.0.1:PORT", "--workers", "4", "--preload"),
    *("--worker-class", "uvicorn_worker.UvicornWorker", "tests.support.processes:app"),
)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
@pytest.mark.parametrize("server", [UVICORN, GUNICORN], ids=["uvicorn", "gunicorn"])
def test_a_web_app_with_four_workers(town: Town, server: tuple[str, ...]) -> None:
    """Four workers of a web app are members of one ledger, beside a cron job."""
    if server is GUNICORN:
        pytest.importorskip("uvicorn_worker")
    site = Site(town, *server)
    cron = town.worker("cron", town.work(0, 10))
    workers = site.smiles(100, 30)
    all_done(cron.reports(), 10)
    # Which worker takes a connection is up to the system: on a busy machine the first to wake up
    # may take all that come together, so ask until a second one has answered.
    for first in range(200, 400, 10):
        workers += site.smiles(first, 10)
        if len(set(workers)) > 1:
            break
    site.stop()

    assert len(set(workers)) > 1
    check(town, 10 + len(workers))


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_a_web_app_with_too_many_requests(narrow: Town) -> None:
    """Requests of the workers beyond the window are sent later."""
    site = Site(narrow, *UVICORN)
    site.smiles(0, 100)
    site.stop()
    check(narrow, 100)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_webhooks_that_reach_any_worker(tmp_path: Path) -> None:
    """A notification reaches one of four workers, and the task's own worker polls at once."""
    port = free_port()
    with Town(
        tmp_path,
        durations=(20.0, 20.0),
        webhook_url=f"http://127.0.0.1:{port}/webhook/",
        webhook_secret=SECRET,
    ) as town:
        site = Site(town, *UVICORN, port=port, secret=SECRET)
        site.smiles(0, 12)
        site.stop()

        check(town, 12)
        ledger = town.ledger()
        assert [204] * 12 == ledger["webhooks"]


# Signals.


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
@pytest.mark.parametrize(
    ("stops", "avatars"), [(4.0, 0), (15.0, 0), (15.0, 4)], ids=["4 s", "15 s", "15 s, avatars"]
)
def test_a_member_that_is_stopped(town: Town, stops: float, avatars: int) -> None:
    """The others poll its tasks, and it loses none when it goes on."""
    one_stops(town, 3, stops, avatars)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_member_that_is_killed(town: Town, number: int) -> None:
    """The others poll its tasks to their ends, and are not delayed."""
    works = [town.work(10 * part, 10) for part in range(3)]
    killed, *others = [town.worker(str(part), work) for part, work in enumerate(works)]
    for program in (killed, *others):
        program.wait_for("begun")
    time.sleep(3)
    killed.send(number)
    assert -number == killed.process.wait()

    all_done([report for each in others for report in each.reports()], 20)
    ledger = town.ledger()
    assert (0, [], 0) == (ledger["refused"], ledger["violations"], ledger["wasted"])
    assert {"success"} == set(ledger["states"])
    assert ledger["charged"] > 20


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_members_that_are_killed_repeatedly(narrow: Town) -> None:
    """A member that comes after kills counts the requests of the dead ones: none is refused."""
    steady = narrow.worker("steady", narrow.work(0, 60))
    for life in range(8):
        victim = narrow.worker(f"victim {life}", narrow.work(1000 + 20 * life, 20))
        victim.wait_for("begun")
        time.sleep(life / 4)
        victim.send(signal.SIGKILL)
        victim.process.wait()

    all_done(steady.reports(), 60)
    ledger = narrow.ledger()
    assert (0, []) == (ledger["refused"], ledger["violations"])
    # A task is lost only if the kill came before its id was known.
    lost = [task["task_id"] for task in ledger["tasks"] if task["state"] == "expired"]
    assert [] == [task_id for task_id in lost if task_id in known_tasks(narrow)]
    assert len(lost) <= 16


def known_tasks(town: Town) -> str:
    """The ledger's rows about creations of the last day."""
    [ledger] = [path for path in town.files() if re.fullmatch("ledger-[0-9a-f]+", path.name)]
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        return "".join(body for (body,) in db.execute("SELECT body FROM jobs"))


# Disks and files.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    arguments = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(arguments, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_a_disk_that_becomes_full(town: Town, disk: Path) -> None:
    """Each process logs once that it goes on alone; none hangs, and nothing is lost."""
    town.environment["PERFECT_ASYNC_STATE"] = str(disk)
    programs = [town.worker(str(part), town.work(10 * part, 10)) for part in range(2)]
    for program in programs:
        program.wait_for("begun")
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
        while True:
            filler.write(b"x" * 4096)
            filler.flush()

    all_done([report for program in programs for report in program.reports()], 20)
    for program in programs:
        assert 1 == program.said().count("does not share its key's request window")
        assert "WARNING perfect_async This process does not share" in program.said()
    check(town, 20)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_a_disk_that_is_full(town: Town, disk: Path) -> None:
    """A process that cannot make a ledger logs that once, and works alone."""
    town.environment["PERFECT_ASYNC_STATE"] = str(disk)
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
        while True:
            filler.write(b"x" * 4096)
            filler.flush()
    program = town.worker("alone", town.work(0, 5))

    all_done(program.reports(), 5)
    assert 1 == program.said().count("WARNING perfect_async This process does not share")
    check(town, 5)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_a_file_that_must_not_grow(town: Town) -> None:
    """A limit of the process on file sizes ends the sharing, and nothing else."""
    limited = town.worker("limited", town.work(0, 10, file_size=40_000))
    other = town.worker("other", town.work(10, 10))

    all_done(limited.reports() + other.reports(), 20)
    assert 1 == limited.said().count("This process does not share")
    check(town, 20)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_a_home_that_is_read_only(town: Town, disk: Path) -> None:
    """A lone process works alone, and does not warn."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    town.environment["PERFECT_ASYNC_STATE"] = str(disk / "state")
    program = town.worker("alone", town.work(0, 5))

    all_done(program.reports(), 5)
    assert 1 == program.said().count("INFO perfect_async This process does not share")
    assert "WARNING" not in program.said()
    check(town, 5)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_a_state_folder_that_is_a_file(town: Town) -> None:
    """A process whose state folder is a file works alone."""
    town.state.write_text("not a folder")
    program = town.worker("alone", town.work(0, 5))

    all_done(program.reports(), 5)
    assert 1 == program.said().count("This process does not share")
    check(town, 5)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_a_state_folder_that_is_deleted_repeatedly(narrow: Town) -> None:
    """Processes whose ledger is deleted while they work meet again in a new one."""
    programs = [narrow.worker(str(part), narrow.work(30 * part, 30)) for part in range(3)]
    for program in programs:
        program.wait_for("begun")
    while any(program.process.poll() is None for program in programs):
        time.sleep(3)
        shutil.rmtree(narrow.state, ignore_errors=True)

    all_done([report for program in programs for report in program.reports()], 90)
    check(narrow, 90)


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_a_ledger_that_a_crash_left(narrow: Town) -> None:
    """The requests of a killed process count for the next one."""
    killed = narrow.worker("killed", narrow.work(0, 80))
    killed.until(lambda: sum(narrow.ledger()["requests"].values()) > 220)
    killed.send(signal.SIGKILL)
    killed.process.wait()
    following = narrow.worker("following", narrow.work(100, 20))

    all_done(following.reports(), 20)
    ledger = narrow.ledger()
    assert (0, []) == (ledger["refused"], ledger["violations"])


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
@pytest.mark.parametrize("kind", ["garbage", "empty", "another format", "another boot"])
def test_a_damaged_or_foreign_ledger(town: Town, kind: str) -> None:
    """A damaged ledger is made again; one of another version or boot is another file."""
    all_done(town.worker("first", town.work(0, 3)).reports(), 3)
    [ledger] = [path for path in town.files() if path.name.startswith("ledger-")]
    match kind:
        case "garbage":
            ledger.write_bytes(b"no database at all" * 1000)
        case "empty":
            ledger.write_bytes(b"")
        case "another format":
            with contextlib.closing(sqlite3.connect(ledger)) as db, db:
                db.execute("UPDATE rows SET body = replace(body, '[1,', '[99,')")
        case _:
            ledger.rename(ledger.with_name("ledger-00000000"))
    programs = [town.worker(str(part), town.work(3 + 3 * part, 3)) for part in range(2)]

    all_done([report for program in programs for report in program.reports()], 6)
    check(town, 9)
    assert [ledger.name] == [path.name for path in town.files() if path.name.startswith("ledger-")]


# Settings.


@real
@slow
@pytest.mark.long
@pytest.mark.minutes
def test_processes_with_different_limits(narrow: Town) -> None:
    """The strictest limits hold for both, and the process with wider limits logs that."""
    different_limits(narrow)


# Two members in virtual time. One loop has one member for each of the vendor's two host names, and
# their ledger is one.


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder for the test."""
    monkeypatch.setenv(ledger_folder.STATE_VARIABLE, str(tmp_path / "state"))
    return tmp_path / "state"


def members(sandbox: Sandbox, **settings: object) -> tuple[Client, Client]:
    """Two unopened members of the ledger of one key."""
    hosts = ("yce-api-01.makeupar.com", "yce-api-01.perfectcorp.com")
    one, two = (
        client(sandbox, base_url=f"https://{host}", share="machine", **settings) for host in hosts
    )
    return one, two


async def outcomes(opened: Client, first: int, count: int) -> list[bool]:
    """Run a batch of smiles, and return which of its jobs are done."""
    return await done(opened, [smile(number) for number in range(first, first + count)])


async def done(opened: Client, jobs: Iterable[Job]) -> list[bool]:
    """Run a batch, and return which of its jobs are done."""
    async with opened.batch(jobs) as batch:
        return [outcome.ok async for outcome in batch]


def said(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    """The lines of the log with this part."""
    return [line for line in caplog.messages if part in line]


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("uploads", [False, True])
async def test_a_member_waits_for_the_window_of_another(
    caplog: pytest.LogCaptureFixture, uploads: bool
) -> None:
    """Of two runs within a period the second waits, logs that once, and loses nothing."""
    sandbox = vendor()
    first, second = members(sandbox)
    async with first:
        for _ in range(240):
            await first.units()
    async with second, asyncio.TaskGroup() as group:
        for _ in range(6):
            # Now there is no room for a registration either.
            await second.units()
        jobs = [Smile(portrait(number, 64)) if uploads else smile(number) for number in range(10)]
        run = group.create_task(done(second, jobs))
        waits: list[tuple[float, float | None]] = []
        while not run.done():
            await asyncio.sleep(1)
            waits.append((second.statistics().window_wait, second.statistics().requests_by_others))
    [line] = said(caplog, "The request window of this key is full")

    assert [True] * 10 == run.result()
    assert 100 < waits[0][0] < 300
    assert waits[0][0] > waits[60][0] > 0 == waits[-1][0]
    assert f"other processes have sent {waits[0][1]} of its 250 requests" in line
    seconds = float(line.rpartition("about ")[2].removesuffix(" s."))
    # A registration leaves in between, so that one poll more has to wait.
    assert waits[0][0] == pytest.approx(seconds, abs=9)
    assert_kept(sandbox, 10)


def assert_kept(sandbox: Sandbox, pictures: int) -> None:
    """Check that nothing was refused, lost or charged twice, and that the limits were kept."""
    ledger = sandbox.ledger
    assert (0, [], 0) == (ledger.refused.total(), ledger.violations, ledger.units_wasted)
    assert pictures == ledger.units_charged == ledger.tasks_by_state["success"]
    assert ledger.max_in_window(300.0) <= 250


@pytest.mark.usefixtures("state")
async def test_the_strictest_settings_hold(caplog: pytest.LogCaptureFixture) -> None:
    """The stricter of two settings hold for both, logged once in a line that names both."""
    caplog.set_level("INFO", "perfect_async")
    sandbox = vendor(requests=60)
    one, _ = members(sandbox, polling=Polling(insured=30.0))
    _, two = members(sandbox, polling=Polling(insured=30.0), limits=Limits(60, 300.0, 3))
    async with one, two, asyncio.TaskGroup() as group:
        group.create_task(outcomes(one, 0, 20))
        group.create_task(outcomes(two, 100, 20))
    [line] = said(caplog, "has other settings")

    assert "This one has 250 requests in 300 s, 5 a second, and a lease of 10 s" in line
    assert "the strictest of each hold: 60 requests in 300 s, 3 a second, and a lease" in line
    assert_kept(sandbox, 40)


@pytest.mark.usefixtures("state")
async def test_a_notification_that_reaches_another_member() -> None:
    """The owner of the task polls it within a second or so."""
    receiver: list[Client] = []

    async def deliver(body: bytes, headers: dict[str, str]) -> None:
        await receiver[0].webhooks.deliver(body, headers)

    sandbox = vendor(
        durations={"ai-smile": Durations.fixed(30.0)}, webhook=deliver, webhook_secret=SECRET
    )
    async with sandbox:
        owner, idle = members(sandbox, webhook_secret=SECRET)
        receiver.append(idle)
        async with owner, idle:
            assert [True] * 4 == await outcomes(owner, 0, 4)

    assert_kept(sandbox, 4)
    for task in sandbox.ledger.tasks:
        assert task.ended_at is not None
        assert task.ended_at - task.created_at - task.duration < 1.5


@pytest.mark.usefixtures("state")
async def test_a_notification_that_comes_before_its_tasks_row() -> None:
    """An idle member keeps looking for the task that it was notified of."""
    idle: list[Client] = []

    async def deliver(body: bytes, headers: dict[str, str]) -> None:
        await idle[0].webhooks.deliver(body, headers)

    async with vendor(
        durations={"ai-smile": Durations.fixed(0.01)},
        webhook=deliver,
        webhook_secret=SECRET,
        latency=2.0,
    ) as sandbox:
        # Without the notification the first poll comes in mid-lease.
        owner, other = members(sandbox, webhook_secret=SECRET, polling=Polling(interval=8.0))
        idle.append(other)
        async with owner, other:
            assert [True] * 2 == await outcomes(owner, 0, 2)

    assert_kept(sandbox, 2)
    for task in sandbox.ledger.tasks:
        assert task.ended_at is not None
        assert task.ended_at - task.created_at < 4.5


@pytest.mark.usefixtures("state")
async def test_reserved_polls_leave_while_the_ledger_is_locked(state: Path) -> None:
    """No task is lost while the lock is nearly always held and work waits."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(25.0)})
    one, two = members(sandbox)
    async with one, two, asyncio.TaskGroup() as group:
        run = group.create_task(outcomes(one, 0, 15))
        await asyncio.sleep(4)
        host, key = host_digest(one._base_url), key_digest(KEY)
        holder = open_local(state, host, key, clock=lambda: round(clock() * 1e9))
        while not run.done():
            if await holder.take(1.0) is not None:
                await asyncio.sleep(1.8)
                await holder.release()
                await asyncio.sleep(0.01)
        await holder.aclose()

    assert [True] * 15 == run.result()
    assert_kept(sandbox, 15)


async def test_a_ledger_that_is_deleted_repeatedly(state: Path) -> None:
    """Members whose ledger is deleted while they work write their rows again, and lose nothing."""
    sandbox = vendor()
    one, two = members(sandbox)
    async with one, two, asyncio.TaskGroup() as group:
        runs = [
            group.create_task(outcomes(each, first, 25)) for first, each in ((0, one), (25, two))
        ]
        while not all(run.done() for run in runs):
            await asyncio.sleep(7)
            shutil.rmtree(state)

    assert [[True] * 25] * 2 == [run.result() for run in runs]
    assert_kept(sandbox, 50)
