"""How soon a single run hears of the end, and that it sends nothing which is missed later."""

import asyncio
import re
from pathlib import Path

import pytest

from benchmarks import latency
from benchmarks.latency import CASES, ROUND_TRIP, Case, measure
from perfect_async import Client
from perfect_async.sandbox import Durations, Sandbox
from tests.support.sandboxed import client, clock, smile, vendor


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_run_hears_within_an_interval_and_a_round_trip(case: Case) -> None:
    """On an idle client, whatever the interval is and however long the task takes."""
    found = await measure(case, seed=11, runs=6)
    assert 6 == len(found.delays)
    assert 0 <= min(found.delays)
    assert max(found.delays) <= case.interval + ROUND_TRIP + latency.TICK
    assert 0 == found.problems


async def polls(sandbox: Sandbox, questions: int) -> int:
    """The polls of one run of 30 s after so many questions in the same window."""
    async with client(sandbox) as ours:
        await ask(ours, questions)
        before = sandbox.ledger.requests["poll"]
        await ours.run(smile())
        assert {} == sandbox.ledger.refused
        assert 0 == sandbox.ledger.units_wasted
        return sandbox.ledger.requests["poll"] - before


async def ask(ours: Client, questions: int) -> None:
    for _ in range(questions):
        await ours.units()


async def test_early_polls_leave_what_the_plan_needs() -> None:
    """With an empty window a run is asked for every 2 s, with one nearly full when promised."""
    thirty = {"ai-smile": Durations.fixed(30.0)}
    assert 15 <= await polls(vendor(durations=thirty), 0)
    # The questions, a creation, the promises of 300 s and what is kept for tries: nothing is left.
    assert 4 >= await polls(vendor(durations=thirty), 216)


async def test_an_early_poll_keeps_nobody_waiting() -> None:
    """While a run is asked for at its interval, another one can still be created at once."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(120.0)}, polling_interval=1000)
    async with client(sandbox) as ours, asyncio.TaskGroup() as group:
        group.create_task(ours.run(smile(1)))
        await asyncio.sleep(110)
        began = clock()
        group.create_task(ours.run(smile(2)))
        await asyncio.sleep(1)
        first, second = sandbox.ledger.tasks
        assert 100 <= first.polls
        assert second.created_at - began < 0.5
    assert {} == sandbox.ledger.refused
    assert {"success": 2} == sandbox.ledger.tasks_by_state


def test_the_benchmark(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """It prints a row for each case, draws them, and fails where a target is missed."""
    picture = tmp_path / "latency.png"
    # So few runs are no median, but they know whether one of them was late.
    latency.main([1], picture, cases=CASES[:1], runs=6)
    printed = capsys.readouterr().out
    assert "smile, 2 s (ours)" in printed
    assert re.search(r"\d late|problems", printed) is None
    assert picture.read_bytes().startswith(b"\x89PNG")
    # Nobody asks every second where the vendor says 5.
    slow = Case("ai-avatar", 1.0, 5000)
    assert 1 == latency.main([1], None, cases=[slow], runs=4)
    assert re.search(r"\d late", capsys.readouterr().out)
