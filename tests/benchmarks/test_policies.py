"""The benchmark of policies: every one runs, and does what its name says."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from benchmarks.peers import (
    PEERS,
    Api,
    BackingOff,
    Dispatcher,
    Ended,
    Even,
    Limited,
    Peer,
    gathered,
    in_semaphore,
    in_turn,
    metered,
    polled,
    sampled,
)
from benchmarks.policies import (
    LOADS,
    POLICIES,
    SLOW,
    Load,
    Ours,
    Policy,
    Row,
    Run,
    draw,
    measure,
    run,
)
from perfect_async.sandbox import Durations, Faults, Ledger, Sandbox, portrait

FACE = portrait(1, size=96)
EIGHT = {"ai-smile": Durations.fixed(8.1)}


def ledger(peer: Peer | Dispatcher, count: int, **settings: object) -> Ledger:
    """What the vendor saw of `count` pictures of 8.1 s on a network without latency."""
    sandbox = Sandbox(**{"durations": EIGHT, **settings})  # type: ignore[arg-type]
    run(peer.run, sandbox.transport(), [FACE] * count, 1, lambda: None)
    assert [] == sandbox.ledger.violations
    return sandbox.ledger


def arrivals(seen: Ledger, kind: str) -> list[float]:
    return [entry.time for entry in seen.log if entry.kind == kind]


def gaps(seen: Ledger, kind: str) -> list[float]:
    return [round(b - a, 3) for a, b in pairwise(arrivals(seen, kind))]


def most_at_once(seen: Ledger) -> int:
    ends = [task.ended_at for task in seen.tasks]
    assert None not in ends
    moves = [(task.created_at, 1) for task in seen.tasks]
    moves += [(end, -1) for end in ends if end is not None]
    running = most = 0
    for _, step in sorted(moves):
        running += step
        most = max(most, running)
    return most


def is_warm(policy: Policy) -> bool:
    """Whether it runs 150 pictures before those that are measured."""
    return isinstance(policy, Ours) and policy.warm


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(policy, id=policy.name, marks=[pytest.mark.long] * is_warm(policy))
        for policy in POLICIES
    ],
)
def test_every_policy_runs(policy: Policy) -> None:
    """Six pictures: each is done, lost or failed, and the ledger's counts agree."""
    found = run(measure, policy, Load(6), 3)

    assert not found.capped
    assert 0 <= found.done + found.lost <= found.pictures == 6
    # A registration, and for each task at least its creation.
    assert found.requests >= 1 + found.done + found.lost
    assert found.done >= 4
    assert found.refused == 0 or not isinstance(policy, Ours)
    if found.refused == 0:
        assert 6 == found.done + found.lost
    if found.done == 6:
        assert found.bound <= found.seconds


def test_the_policies_are_told_apart() -> None:
    """No two rows of the table have one name."""
    names = [policy.name for policy in POLICIES]

    assert sorted(set(names)) == sorted(names)
    assert list(PEERS) == [policy for policy in POLICIES if not isinstance(policy, Ours)]


def test_what_was_before_is_not_counted() -> None:
    """A client that is warm has run 150 pictures that its row does not show."""
    warm = next(filter(is_warm, POLICIES))

    found = run(measure, warm, Load(2), 1)

    assert (2, 0, 0) == (found.done, found.lost, found.refused)
    assert found.requests < 20
    assert found.seconds < 60


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_semaphore_bounds_what_is_in_flight(at_once: int) -> None:
    """Never more than n tasks run, and n do."""
    seen = ledger(Peer("", Api, partial(polled, 2), partial(in_semaphore, at_once)), 7)

    assert at_once == most_at_once(seen)
    assert 7 == seen.tasks_by_state["success"]


def test_in_turn_is_one_after_another() -> None:
    """The next task is created when the one before has ended."""
    assert 1 == most_at_once(ledger(Peer("", Api, sampled, in_turn), 3))


def test_gather_creates_all_at_once() -> None:
    """Nothing holds a creation back; the vendor refuses those beyond five in a second."""
    seen = ledger(Peer("", Api, partial(polled, 8), gathered), 7)

    assert 7 == len(arrivals(seen, "task"))
    assert 1 == len(set(arrivals(seen, "task")))
    assert 2 == seen.refused["task"]


@pytest.mark.parametrize("interval", [2.0, 8.0])
def test_polls_come_an_interval_apart(interval: float) -> None:
    """The loop sleeps before every poll, the first one too."""
    seen = ledger(Peer("", Api, partial(polled, interval), gathered), 1)

    assert {interval} == set(gaps(seen, "poll"))
    assert [interval] == [arrivals(seen, "poll")[0] - seen.tasks[0].created_at]


def test_the_sample_asks_at_once_and_gives_up() -> None:
    """The vendor's loop polls right after the creation, every 2 s, 300 times."""
    seen = ledger(Peer("", Api, sampled, in_turn), 1, faults=Faults(stuck=1.0))

    assert arrivals(seen, "task") == arrivals(seen, "poll")[:1]
    assert {2.0} == set(gaps(seen, "poll"))
    assert 300 == len(arrivals(seen, "poll"))


def test_a_failure_of_the_engine_ends_its_picture_only() -> None:
    """A failed task is no result, and the others go on."""
    broken, api = Faults(engine_errors=1.0), Peer("", Api, partial(polled, 2), gathered)
    sandbox = Sandbox(faults=broken, durations=EIGHT)

    assert 0 == run(api.run, sandbox.transport(), [FACE] * 3, 1, lambda: None)
    assert 3 == sandbox.ledger.tasks_by_state["error"]


def test_backoff_waits_longer_each_time_and_gives_up() -> None:
    """Ten tries after the first, at random up to 1, 2, 4 ... 60 s later; then it is an error."""
    sandbox = Sandbox(durations=EIGHT)
    refusals: deque[tuple[int, object]] = deque([(429, {"error": "Too many requests"})] * 11)

    async def calls() -> None:
        api = BackingOff(sandbox.transport(), 1)
        sandbox.script("poll", *refusals)
        with pytest.raises(httpx.HTTPStatusError):
            await api.result("nothing")
        await api.aclose()

    run(calls)
    waits = gaps(sandbox.ledger, "poll")

    assert 10 == len(waits)
    assert all(wait <= min(60, 2**attempt) for attempt, wait in enumerate(waits))
    assert max(waits) > 8


def test_a_refused_creation_comes_back() -> None:
    """With backoff a burst of creations only takes longer."""
    seen = ledger(Peer("", BackingOff, partial(polled, 2), gathered), 7)

    assert seen.refused["task"] > 0
    assert 7 == seen.tasks_by_state["success"]


def test_aiometer_starts_pictures_at_its_rate() -> None:
    """One picture in 5 s, and no more than two of them at once."""
    seen = ledger(Peer("", Api, partial(polled, 2), partial(metered, 0.2, None)), 4)
    bounded = ledger(Peer("", Api, partial(polled, 2), partial(metered, 5, 2)), 4)

    assert {5.0} == set(gaps(seen, "task"))
    assert 2 == most_at_once(bounded)


def test_an_even_limiter_spaces_every_request() -> None:
    """Registration, creations and polls leave 1.2 s apart at least."""
    seen = ledger(Peer("", Even, partial(polled, 5), partial(in_semaphore, 4)), 6)
    times = sorted(time for kind in ("file", "task", "poll") for time in arrivals(seen, kind))

    assert min(b - a for a, b in pairwise(times)) > 1.19
    assert 6 == seen.tasks_by_state["success"]


def test_a_limiter_lets_a_burst_through() -> None:
    """Both limits around every request: five at once, then five a second."""
    limits = {"requests": 1000, "per_second": 1000}
    seen = ledger(Peer("", Limited, partial(polled, 8), gathered), 20, **limits)
    times = arrivals(seen, "task")

    assert 5 == times.count(times[0])
    assert 3.0 == pytest.approx(times[-1] - times[0], abs=0.01)


def test_the_loop_gives_up() -> None:
    """A task that never ends is given up after 300 polls."""
    sandbox = Sandbox(faults=Faults(stuck=1.0), requests=1000)

    async def calls() -> None:
        api = Api(sandbox.transport(), 1)
        [file_id] = await api.upload([FACE])
        with pytest.raises(Ended):
            await polled(2, api, file_id)
        await api.aclose()

    run(calls)

    assert 300 == len(arrivals(sandbox.ledger, "poll"))


def test_a_dispatcher_loses_tasks_that_become_slow() -> None:
    """What it keeps for a smile of 8 s is too little for one of 120 s; ours keeps that."""
    load = Load(100, slows_within=90.0)
    theirs = run(measure, Dispatcher("", 2), load, 1)
    ours = run(measure, next(each for each in POLICIES if each.name == "ours, cold"), load, 1)

    assert (100, 0, 0) == (ours.done, ours.lost, ours.refused)
    assert ours.seconds > SLOW
    assert theirs.lost > 0
    assert 0 == theirs.refused


def test_a_dispatcher_asks_before_it_creates() -> None:
    """Each task is asked for every 8 s, while others wait for their creation."""
    seen = ledger(Dispatcher("", 2), 60, durations={"ai-smile": Durations.fixed(17.0)})

    assert {3} == {task.polls for task in seen.tasks}
    assert 60 == seen.tasks_by_state["success"]
    assert 0 == seen.refused.total()


def test_a_dispatcher_creates_only_what_it_can_keep() -> None:
    """With 250 free requests in a window and 100 kept for each, two tasks run at a time."""
    seen = ledger(Dispatcher("", 100), 6)

    assert 2 == most_at_once(seen)
    assert 6 == seen.tasks_by_state["success"]


def test_a_dispatcher_tries_again_what_was_refused() -> None:
    """A 429 for somebody else's sake costs a request, and no picture."""
    sandbox = Sandbox(durations=EIGHT)
    sandbox.script("task", (429, {"error": "Too many requests"}))
    sandbox.script("poll", (429, {"error": "Too many requests"}))

    assert 3 == run(Dispatcher("", 2).run, sandbox.transport(), [FACE] * 3, 1, lambda: None)


def test_a_failure_of_the_engine_does_not_stop_a_dispatcher() -> None:
    """It goes on with the other pictures."""
    sandbox = Sandbox(faults=Faults(engine_errors=1.0), durations=EIGHT)

    assert 0 == run(Dispatcher("", 2).run, sandbox.transport(), [FACE] * 3, 1, lambda: None)
    assert 3 == sandbox.ledger.tasks_by_state["error"]


class LockedOut:
    """A policy that never comes to an end."""

    name = "locked out"

    async def run(
        self,
        transport: httpx.AsyncBaseTransport,
        pictures: Sequence[bytes],
        seed: int,
        start: Callable[[], None],
    ) -> int:
        api = Api(transport, seed)
        await api.create((await api.upload(pictures))[0])
        while True:
            await asyncio.sleep(60)
            await api.once("GET", "/s2s/v1.0/client/credit", None)


def test_who_never_ends_is_stopped() -> None:
    """After six hours the run ends, its row says so, and what it paid for is lost."""
    found = run(measure, LockedOut(), Load(2), 1)

    assert found.capped
    assert (0, 1) == (found.done, found.lost)
    assert ">6:00:00" in str(Row("locked out", (found,)))


def test_a_row_says_what_was_measured() -> None:
    """Means of its runs; the ratio is in brackets where pictures are missing."""
    whole = Run(50, 50, 0, 0, 125, 60.0, 30.0, capped=False)
    part = Run(50, 40, 6, 3, 115, 60.0, 30.0, capped=False)

    assert ["all", "50", "0", "0", "0", "2.5", "0:01:00", "2.00"] == str(
        Row("all", (whole, whole))
    ).split()
    assert ["half", "45", "3", "2", "1.5", "2.7", "0:01:00", "(2.00)"] == str(
        Row("half", (whole, part))
    ).split()


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    """One picture for all loads."""
    runs = (Run(50, 40, 6, 3, 115, 60.0, 30.0, capped=False),)
    found = [Row(policy.name, runs) for policy in POLICIES]

    draw(dict.fromkeys(LOADS, found), tmp_path / "new" / "policies.png")

    assert (tmp_path / "new" / "policies.png").read_bytes().startswith(b"\x89PNG")
