"""Another user of the same key without a ledger: through the client, and the benchmark."""

import asyncio
import math
import random
from pathlib import Path

import httpx
import pytest

from benchmarks import shared_key
from benchmarks.loads import lognormal
from benchmarks.model import SECOND, Foreign, Outcome, Sent, Vendor, simulate
from perfect_async import Failed, TaskExpired
from perfect_async import Outcome as Ended
from perfect_async.models import Limits
from perfect_async.sandbox import Durations, Sandbox
from tests.support.sandboxed import KEY, avatar, client, clock, smiles, vendor


async def other(sandbox: Sandbox, share: float, until: float) -> None:
    """Use `share` of the key's window until the end, whatever is refused."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(
        transport=sandbox.transport(), base_url="https://yce-api-01.makeupar.com", headers=headers
    ) as raw:
        while clock() < until:
            await raw.get("/s2s/v1.0/client/credit")
            await asyncio.sleep(300 / 250 / share)


def silence(sandbox: Sandbox) -> float:
    """The longest time from a refusal to the client's next accepted request."""
    ours = [entry for entry in sandbox.ledger.log if entry.kind in {"task", "poll"}]
    longest, since = 0.0, math.inf
    for entry in ours:
        if entry.status == 429:
            since = min(since, entry.time)
        else:
            longest, since = max(longest, entry.time - since), math.inf
    return longest


async def test_what_is_lost_is_told_and_nobody_is_locked_out() -> None:
    """Another client takes 60 % from the middle on: the losses told are the vendor's, requests are
    accepted again within a window, the limit that is assumed falls, and recovers when he is gone.
    """
    sandbox = vendor(durations={"ai-avatar": Durations.fixed(40.0)})
    async with client(sandbox) as ours, asyncio.TaskGroup() as group:
        group.create_task(later(sandbox, ours_end := asyncio.Event()))
        ended: list[Ended] = []
        async with ours.batch(avatar(key=str(n)) for n in range(60)) as batch:
            ended.extend([outcome async for outcome in batch])
        during = ours.statistics()
        ours_end.set()
        for _ in range(2):
            await asyncio.sleep(1800)
            async with ours.batch(smiles(3)) as batch:
                assert [True] * 3 == [outcome.ok async for outcome in batch]
        after = ours.statistics()
    ledger = sandbox.ledger
    lost = [outcome for outcome in ended if isinstance(outcome, Failed)]

    assert 60 == len(ended)
    assert 0 < len(lost) <= 15
    assert {TaskExpired} == {type(outcome.error) for outcome in lost}
    assert ledger.units_wasted == sum(outcome.error.units_at_stake for outcome in lost)
    assert ledger.units_wasted == during.units.at_stake
    assert silence(sandbox) <= 360
    assert 40 <= during.window_limit <= 130
    assert 250 == after.window_limit


async def later(sandbox: Sandbox, end: asyncio.Event) -> None:
    """A foreign user who takes 60 % from 100 s on, until `end`."""
    await asyncio.sleep(100)
    while not end.is_set():
        await other(sandbox, 0.6, clock() + 60)


def test_refused_requests_of_others_count() -> None:
    """The model's window counts the requests of others, their refused ones and retries included."""
    foreign = Foreign(0.5, start=-100, stop=0, retries=2, pause=1.0)
    model = Vendor(Limits(10, 100.0, 5), random.Random(1), [foreign])
    assert [True] * 5 == [model.admits(second * SECOND, "Poll") for second in range(5)]
    assert not model.admits(5 * SECOND, "Poll")
    assert 1 == model.refused
    assert 5 == len(model.others)
    busy = Vendor(Limits(1, 100.0, 5), random.Random(1), [Foreign(4.0, 0, 50, retries=2)])
    busy.admits(100 * SECOND, "Poll")
    # One is accepted, and one is refused and tried twice more.
    assert 4 == len(busy.others)


@pytest.mark.parametrize("poisson", [False, True])
def test_others_take_their_share(poisson: bool) -> None:
    """The foreign user sends as many requests as its share of the window, from start to stop."""
    times = list(Foreign(0.6, -300, 2700, poisson=poisson).times(Limits(), random.Random(1)))
    assert len(times) == pytest.approx(1500, rel=0.07)
    assert -300 * SECOND <= times[0] < times[-1] < 2700 * SECOND


def test_a_lone_user_is_not_refused() -> None:
    """Without foreign use nothing is lost or refused, and the whole window is assumed."""
    outcome = simulate(lognormal(20, 8, 0.35)(random.Random(1)), seed=1)
    assert (0, 0, 0.0) == (outcome.lost, outcome.refused, outcome.at_stake)
    assert ((0.0, 250),) == outcome.assumed
    assert outcome.ended


@pytest.mark.parametrize(
    ("share", "most", "start"),
    [
        (0.3, 9, 400.0),
        (0.6, 10, -300.0),
        pytest.param(0.3, 9, -300.0, marks=pytest.mark.long),
        pytest.param(0.6, 10, 400.0, marks=pytest.mark.long),
    ],
)
def test_creations_adapt(share: float, start: float, most: int) -> None:
    """Tasks in flight at the first contact may be lost; later ones hardly are."""
    durations = lognormal(60, 60, 0.4)(random.Random(3))
    foreign = [Foreign(share, start)]
    outcome = simulate(durations, seed=3, foreign=foreign, until=10_000)
    row = shared_key.measure(
        outcome, foreign, shared_key.least_time(durations, outcome, foreign, 3)
    )
    assert row.ended
    assert row.reported
    assert not row.locked_out
    assert 0 < row.in_flight + row.later <= most
    assert row.later <= 3
    assert row.refused < 60
    assert 0.6 < row.share <= 1.1
    assert 1 <= row.ratio < 4


def test_the_least_time() -> None:
    """It is the model's bound; beside others a window holds what they leave."""
    durations = [15.0] * 60
    nothing = outcome_of(created=(0.0,) * 60)
    # 3 registrations, 60 creations and 120 polls, five at once each second.
    gone = [Foreign(0.01, -300.0, -299.0)]
    assert 36.0 == shared_key.least_time(durations, nothing, gone, 1)
    beside = shared_key.least_time(durations, nothing, [Foreign(0.6)], 1)
    assert 300 < beside < 400
    # Everything was created before the foreign use began.
    assert 0 == shared_key.least_time(durations, nothing, [Foreign(0.6, 10_000.0)], 1)


def outcome_of(
    *, created: tuple[float, ...] = (), sent: tuple[Sent, ...] = (), others: tuple[float, ...] = ()
) -> Outcome:
    return Outcome(
        1000.0, 1.0, 0, {}, 0, 0, 0, created=created, sent=sent, others=others, ended=True
    )


def test_a_lockout_counts_only_own_refusals() -> None:
    """Time counts in which the window would have room without the client's refused requests."""
    sent = (
        Sent(0.0, "Poll", refused=True, full=True),
        Sent(700.0, "Poll", refused=False, full=False),
    )
    assert 700 == shared_key.locked(outcome_of(sent=sent))
    # 250 requests of theirs, the first of which leaves the window after 250 s.
    others = tuple(-50 + number / 5 for number in range(250))
    assert 450 == shared_key.locked(outcome_of(sent=sent, others=others))


def test_the_benchmark(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It prints a row for each load and company, and draws a run."""
    monkeypatch.setattr(shared_key, "LOADS", {"60 avatars": lognormal(12, 20, 0.4)})
    monkeypatch.setattr(shared_key, "COMPANY", [shared_key.COMPANY[2]] * 4)
    picture = tmp_path / "shared_key.png"
    assert 0 == shared_key.main([1], shared_key.COMPANY[:1], picture)
    told = capsys.readouterr().out
    assert "60 avatars  60% from the start" in told
    assert picture.read_bytes().startswith(b"\x89PNG")
