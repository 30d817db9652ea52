"""Processes on one key: real ones on a real port, and two members of one ledger in virtual time.

What is asserted are counts of the vendor's own ledger: nothing refused, nothing lost, each picture
paid once. No time is measured.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from perfect_async import Client, Limits, Polling
from perfect_async._ledger import folder as ledger_folder
from perfect_async._ledger import rows as ledger_rows
from perfect_async._ledger.local import open_local
from perfect_async._ledger.rows import host_digest, key_digest
from perfect_async.sandbox import Durations, Sandbox
from tests.support.processes import KEY as SECRET_KEY
from tests.support.processes import SIDE, Program, Report, Town
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


def check(town: Town, pictures: int, *, lost: int = 0) -> None:
    """The vendor refused nothing, and each picture was paid once but for the `lost` ones."""
    ledger = town.ledger()
    assert (0, []) == (ledger["refused"], ledger["violations"])
    assert lost == ledger["wasted"]
    assert pictures + lost == ledger["charged"]
    bought = [task["picture"] for task in ledger["tasks"] if task["state"] == "success"]
    assert pictures == len(set(bought)) == len(bought)
    assert ledger["most"] <= town.settings["requests"]  # type: ignore[operator]


def all_done(reports: list[Report], pictures: int) -> None:
    """Every job of `reports` is done, and so many they are."""
    assert [{}] * len(reports) == [report["errors"] for report in reports]
    assert pictures == sum(report["done"] for report in reports)
    assert {0} == {report["refused"] for report in reports}


# Ordinary programs.


@real
@slow
def test_two_processes_side_by_side(town: Town) -> None:
    """Two processes know of each other, lose nothing, and leave no file that names their key."""
    work = town.work(0, 3), town.work(3, 3)
    programs = [town.worker(str(number), each) for number, each in enumerate(work)]
    for program in programs:
        program.wait_for("begun")
    found = town.files()
    told = b"".join(path.read_bytes() for path in found)
    modes = {path.stat().st_mode & 0o777 for path in found}
    folders = {path.stat().st_mode & 0o777 for path in town.state.rglob("*") if path.is_dir()}

    all_done([report for program in programs for report in program.reports()], 6)

    check(town, 6)
    assert 0o600 == max(modes) == min(modes)
    assert {0o700} == folders | {town.state.stat().st_mode & 0o777}
    assert b'"task"' in told
    for secret in (SECRET_KEY, "127.0.0.1", "http", str(town.folder), ".jpg"):
        assert secret.encode() not in told
        assert not any(secret in str(path.relative_to(town.state)) for path in found)


# Two members in virtual time. One loop has one member for each of the vendor's two host names, and
# their ledger is one.


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv(ledger_folder.STATE_VARIABLE, str(tmp_path / "state"))
    return tmp_path / "state"


def members(sandbox: Sandbox, **settings: object) -> tuple[Client, Client]:
    """Two members of the ledger of one key, unopened."""
    hosts = ("yce-api-01.makeupar.com", "yce-api-01.perfectcorp.com")
    one, two = (
        client(sandbox, base_url=f"https://{host}", share="machine", **settings) for host in hosts
    )
    return one, two


async def outcomes(opened: Client, first: int, count: int) -> list[bool]:
    """Run a batch, and return which of its jobs are done."""
    async with opened.batch([smile(number) for number in range(first, first + count)]) as batch:
        return [outcome.ok async for outcome in batch]


def said(caplog: pytest.LogCaptureFixture, part: str) -> list[str]:
    """The lines of the log with this part."""
    return [line for line in caplog.messages if part in line]


@pytest.mark.usefixtures("state")
async def test_a_member_waits_for_the_window_of_another(caplog: pytest.LogCaptureFixture) -> None:
    """Two runs within a period: the second one waits, says so once, and loses nothing."""
    sandbox = vendor()
    first, second = members(sandbox)
    async with first:
        assert [True] * 100 == await outcomes(first, 0, 100)
    async with second, asyncio.TaskGroup() as group:
        run = group.create_task(outcomes(second, 100, 60))
        waits: list[float] = []
        while not run.done():
            waits.append(second.statistics().window_wait)
            await asyncio.sleep(1)
    [line] = said(caplog, "Other processes have used the request window")

    assert [True] * 60 == run.result()
    assert 30 < max(waits) < 300
    assert 0 == waits[-1]
    assert f"the first job is sent in about {max(waits):.0f} s" in line
    assert_kept(sandbox, 160)


def assert_kept(sandbox: Sandbox, pictures: int) -> None:
    """Nothing was refused, lost, or paid twice, and no window was overdrawn."""
    ledger = sandbox.ledger
    assert (0, [], 0) == (ledger.refused.total(), ledger.violations, ledger.units_wasted)
    assert pictures == ledger.units_charged == ledger.tasks_by_state["success"]
    assert ledger.max_in_window(300.0) <= 250


@pytest.mark.usefixtures("state")
async def test_the_strictest_settings_hold(caplog: pytest.LogCaptureFixture) -> None:
    """Of two settings the strictest hold for both, said once in a line that names both."""
    caplog.set_level("INFO", "perfect_async")
    sandbox = vendor(requests=60)
    one, _ = members(sandbox, polling=Polling(insured=30.0))
    _, two = members(sandbox, polling=Polling(insured=30.0), limits=Limits(60, 300.0, 3))
    async with one, two, asyncio.TaskGroup() as group:
        group.create_task(outcomes(one, 0, 30))
        group.create_task(outcomes(two, 100, 30))
    [line] = said(caplog, "has other settings")

    assert "This one has 250 requests in 300 s, 5 a second, and a lease of 10 s" in line
    assert "while both run: 60 requests in 300 s, 3 a second, and a lease of 10 s" in line
    assert_kept(sandbox, 60)


@pytest.mark.usefixtures("state")
async def test_a_notification_that_reaches_another_member() -> None:
    """Whoever gets the notification tells the owner, which polls its task within a second or so."""
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
async def test_a_notification_that_overtakes_the_news_of_its_task() -> None:
    """A member that is idle goes on looking for the owner of a task that it was told of."""
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
    """Somebody holds the lock nearly all the time, while work waits: no task is lost."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(25.0)})
    one, two = members(sandbox)
    async with one, two, asyncio.TaskGroup() as group:
        run = group.create_task(outcomes(one, 0, 30))
        await asyncio.sleep(4)
        host, key = host_digest(one._base_url), key_digest(KEY)
        holder = open_local(state, host, key, clock=lambda: round(clock() * 1e9))
        while not run.done():
            if await holder.take(1.0) is not None:
                await asyncio.sleep(1.8)
                await holder.release()
                await asyncio.sleep(0.01)
        await holder.aclose()

    assert [True] * 30 == run.result()
    assert_kept(sandbox, 30)


async def test_a_ledger_deleted_again_and_again(state: Path) -> None:
    """Members whose ledger is deleted while they work write their rows again, and lose nothing."""
    sandbox = vendor()
    one, two = members(sandbox)
    async with one, two, asyncio.TaskGroup() as group:
        runs = [group.create_task(outcomes(each, first, 60)) for first, each in ((0, one), (60, two))]
        while not all(run.done() for run in runs):
            await asyncio.sleep(7)
            shutil.rmtree(state)

    assert [[True] * 60] * 2 == [run.result() for run in runs]
    assert_kept(sandbox, 120)
