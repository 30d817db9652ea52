"""Measuring the lease and using the measured one, in virtual time."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import httpx
import pytest

from perfect_async import (
    Client,
    ConfigurationError,
    Feature,
    JobRefused,
    LeaseBracket,
    Polling,
    Smile,
    SubmissionInDoubt,
    TaskFailed,
    UnitsExhausted,
)
from perfect_async._files.threads import in_thread
from perfect_async._ledger.leases import LeaseFile, LeaseRecord
from perfect_async.sandbox import Durations, Faults, Sandbox, portrait
from tests.support.sandboxed import FACE, KEY, STYLE, Between, avatar, client, smiles, vendor

URL = "https://yce-api-01.makeupar.com"
LONG = {"ai-avatar": Durations.fixed(150.0), "ai-smile": Durations.fixed(60.0)}
# Tasks are polled before the lease demands it, since there are enough requests here.
RARELY = Polling(lease="measured", interval=30.0)
Lease = float | Literal["polling_interval", "retention", "flexible"]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder for each test."""
    monkeypatch.setenv("PERFECT_ASYNC_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


def make(lease: Lease, **settings: object) -> Sandbox:
    return vendor(**{"lease": lease, "durations": LONG, **settings})  # type: ignore[arg-type]


async def measured(sandbox: Sandbox, gaps: Sequence[float] | None = None) -> list[LeaseBracket]:
    async with client(sandbox) as one:
        given = () if gaps is None else (gaps,)
        return [bracket async for bracket in one.measure_lease(avatar(1), *given)]


@pytest.mark.parametrize(
    ("lease", "settings", "survived", "lost", "polls"),
    [
        (10.0, {}, 0.0, 13.0, 2),
        (30.0, {}, 20.0, 41.0, 4),
        ("polling_interval", {"polling_interval": 1000}, 0.0, 13.0, 2),
        ("retention", {}, 40.0, None, 3),
        ("flexible", {}, 40.0, None, 3),
    ],
)
async def test_each_documented_lease_is_measured(
    lease: Lease,
    settings: dict[str, object],
    survived: float,
    lost: float | None,
    polls: int,
) -> None:
    """One task is created and polled after 12, 20 and 40 s only, until it is lost."""
    sandbox = make(lease, **settings)

    found = await measured(sandbox)

    assert (survived, lost) == (found[-1].survived, found[-1].lost)
    # A lost task is polled twice.
    assert polls == sandbox.ledger.requests["poll"]
    assert 1 == sandbox.ledger.units_charged == len(sandbox.ledger.tasks)
    assert [] == sandbox.ledger.violations
    record = LeaseFile(URL, KEY).read()
    assert record is not None
    assert (survived, lost, False) == (record.survived, record.lost, record.refuted)


async def test_each_gap_yields_a_bracket() -> None:
    """Each bracket has the lease that follows from it."""
    found = await measured(make(30.0))

    assert [(12.0, None, 10.0), (20.0, None, 16.0), (20.0, 41.0, 16.0)] == [
        (bracket.survived, bracket.lost, bracket.lease) for bracket in found
    ]


async def test_a_picture_of_this_machine_is_uploaded() -> None:
    """A path or bytes are registered and uploaded before the task is created."""
    sandbox = make("flexible")
    job = type(avatar(1))(FACE, template_id=STYLE, output_count=1)

    async with client(sandbox) as one:
        found = [bracket async for bracket in one.measure_lease(job, (12.0,))]

    assert [12.0] == [bracket.survived for bracket in found]
    assert 1 == sandbox.ledger.requests["upload"]


async def test_an_upload_is_tried_again() -> None:
    """A registration or an upload that fails costs nothing, so the measurement goes on."""
    sandbox = make("flexible")
    sandbox.script("file", "lose_502")
    sandbox.script("upload", "drop")
    job = type(avatar(1))(FACE, template_id=STYLE, output_count=1)

    async with client(sandbox) as one:
        found = [bracket async for bracket in one.measure_lease(job, (12.0,))]

    assert [12.0] == [bracket.survived for bracket in found]
    assert 1 == sandbox.ledger.units_charged


async def test_a_picture_is_registered_for_its_feature_without_the_common_path() -> None:
    """A picture is then registered on the path of the job's own feature."""
    sandbox = make("flexible")
    paths: list[str] = []

    async def missing(request: httpx.Request) -> httpx.Response | None:
        if "/file" in request.url.path:
            paths.append(request.url.path)
        if request.url.path == "/s2s/v2.0/file":
            return httpx.Response(404, json={"status": 404, "error_code": "NotFound"})
        return None

    job = type(avatar(1))(FACE, template_id=STYLE, output_count=1)
    async with client(sandbox, transport=Between(sandbox.transport(), missing)) as one:
        found = [bracket async for bracket in one.measure_lease(job, (12.0,))]

    assert [12.0] == [bracket.survived for bracket in found]
    assert ["/s2s/v2.0/file", "/s2s/v2.0/file/ai-avatar"] == paths
    assert [] == sandbox.ledger.violations


async def test_a_task_that_ends_during_a_gap_shows_nothing(state: Path) -> None:
    """Only a gap after which the task still runs counts as survived."""
    sandbox = make("flexible", durations={"ai-avatar": Durations.fixed(25.0)})

    found = await measured(sandbox)

    assert [(12.0, False), (12.0, True)] == [(one.survived, one.ended) for one in found]
    sandbox = make("flexible", durations={"ai-avatar": Durations.fixed(5.0)})
    next(state.rglob("lease.json")).unlink()  # noqa: ASYNC240 - a small file

    assert [(0.0, True)] == [(one.survived, one.ended) for one in await measured(sandbox)]
    assert LeaseFile(URL, KEY).read() is None


async def test_one_unknown_answer_is_not_a_loss() -> None:
    """A task that the vendor does not know once, and knows at the next poll, is not lost."""
    sandbox = make("flexible")
    unknown = (400, {"status": 400, "error": "Invalid task ID"})
    sandbox.script("poll", unknown)

    assert 12.0 == (await measured(sandbox, (12.0,)))[-1].survived


async def test_failures_are_raised_as_for_a_job() -> None:
    """A low balance, a failure of the engine and a missing answer raise errors."""
    with pytest.raises(UnitsExhausted):
        await measured(make(10.0, units=0.5))
    failing = Faults(engine_errors=1.0, engine_error_codes=("error_no_face",))
    durations = {"ai-avatar": Durations.fixed(5.0)}
    with pytest.raises(TaskFailed, match="error_no_face"):
        await measured(make(10.0 * 9, faults=failing, durations=durations))
    sandbox = make(10.0)
    sandbox.script("task", "lose")
    with pytest.raises(SubmissionInDoubt) as caught:
        await measured(sandbox)
    assert 1.0 == caught.value.units_at_stake
    async with client(make(10.0)) as one:
        with pytest.raises(ConfigurationError, match="gaps is"):
            await anext(one.measure_lease(avatar(1), (0.0,)))
        with pytest.raises(JobRefused):
            await anext(one.measure_lease("a.jpg"))  # type: ignore[arg-type]


async def test_nothing_is_bought_if_the_lease_cannot_be_saved(state: Path) -> None:
    """A state folder that cannot be written is an error before the task is created."""
    state.write_text("")  # noqa: ASYNC240 - a small file
    sandbox = make(10.0)

    with pytest.raises(ConfigurationError, match="The measured lease cannot be saved: the folder"):
        await measured(sandbox)

    assert 0 == sandbox.ledger.units_charged


# Using the measured lease.


async def keep(survived: float, lost: float, *, refuted: bool = False) -> None:
    at = datetime(2026, 7, 1, tzinfo=UTC)
    await in_thread(LeaseFile(URL, KEY).write, LeaseRecord(survived, lost, at, refuted))


def test_a_missing_measurement_is_an_error_with_advice() -> None:
    """A measured lease that was never measured is refused when the client is made."""
    with pytest.raises(ConfigurationError, match="doctor --measure-lease"):
        client(make(10.0), polling=Polling(lease="measured"))


def test_the_setting_reads_as_seconds() -> None:
    """`Polling.lease` is a number: the assumed lease until the measured one is known."""
    polling = Polling(lease="measured")

    assert (10.0, True) == (polling.lease, polling.measured)
    assert "lease='measured'" in repr(polling)
    assert not Polling(lease=16.0).measured
    with pytest.raises(ConfigurationError, match="'mesured'; it must be a number of seconds or"):
        Polling(lease="mesured")  # type: ignore[arg-type]


async def test_a_measured_lease_saves_polls() -> None:
    """With 20 s survived, tasks are polled for a lease of 16 s and none is lost."""
    await keep(20.0, 41.0)
    polls, gaps = {}, {}
    leases: tuple[float | Literal["measured"], ...] = (10.0, "measured")
    for lease in leases:
        sandbox = make(30.0)
        polling = Polling(lease=lease, interval=30.0)
        async with client(sandbox, polling=polling) as one, one.batch(smiles(5)) as batch:
            outcomes = [outcome async for outcome in batch]
            seen = one.statistics()
        assert all(outcome.ok for outcome in outcomes)
        polls[lease] = sandbox.ledger.requests["poll"]
        gaps[lease] = seen.longest_gap
        assert {10.0: 10.0, "measured": 16.0}[lease] == seen.lease

    assert polls["measured"] < 0.75 * polls[10.0]
    # A survived gap that the client sees is shown.
    assert 12.0 < gaps["measured"] < 15.0


async def test_a_loss_within_the_measured_lease_restores_the_default(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A task that is lost within it puts the client back to 10 s, logged once."""
    await keep(20.0, 41.0)
    sandbox = make(10.0)
    polling = RARELY
    caplog.set_level(logging.WARNING, "perfect_async")

    async with client(sandbox, polling=polling) as one:
        async with one.batch(smiles(3)) as batch:
            lost = [outcome async for outcome in batch]
        assert 10.0 == one.statistics().lease
        async with one.batch(list(smiles(9))[3:]) as batch:
            later = [outcome async for outcome in batch]
        assert one.statistics().cycle < 9.0

    assert not any(outcome.ok for outcome in lost)
    assert all(outcome.ok for outcome in later)
    said = [line for line in caplog.messages if "measured lease of 16.0 s" in line]
    assert 1 == len(said)
    assert "doctor --measure-lease" in said[0]
    found = LeaseFile(URL, KEY).read()
    assert found is not None
    assert found.refuted


async def test_a_refuted_lease_is_used_by_no_later_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A refuted lease counts as 10 s from then on, which is logged when a client is made."""
    await keep(20.0, 41.0, refuted=True)

    async with client(make(10.0), polling=Polling(lease="measured")) as one:
        assert 10.0 == one.statistics().lease

    assert "was lost within the lease that was measured on 2026-07-01" in caplog.text


async def test_a_loss_without_a_measurement_changes_nothing() -> None:
    """A lease that the user gave stays the same, whatever is lost."""
    sandbox = make(10.0)

    async with client(sandbox, polling=Polling(lease=16.0, interval=30.0)) as one:
        async with one.batch(smiles(2)) as batch:
            assert not any([outcome.ok async for outcome in batch])
        assert 16.0 == one.statistics().lease


async def test_members_of_a_key_fall_back_together(tmp_path: Path) -> None:
    """On a shared key the loss of one member shortens the lease of the other."""
    await keep(20.0, 41.0)
    sandbox = make(10.0)
    shared = {"share": tmp_path / "ledger", "polling": RARELY}
    async with client(sandbox, **shared) as one:
        async with one.batch(smiles(2)) as batch:
            assert not any([outcome.ok async for outcome in batch])
        assert 10.0 == one.statistics().lease
        async with one.batch([Smile("https://pictures.example/n.jpg", key="n")]) as batch:
            assert all([outcome.ok async for outcome in batch])


@pytest.mark.real_time
async def test_an_isolated_client_measures_too() -> None:
    """The measurement runs in the thread of an isolated client."""
    async with Client(KEY, transport=make("flexible").transport(), isolated=True) as one:
        gaps = (0.01,)
        assert [0.01] == [found.survived async for found in one.measure_lease(avatar(1), gaps)]


@pytest.mark.parametrize(
    ("job", "uploads"),
    [
        (Feature("generative-fill", src=FACE, mask=portrait(2, size=96)), 2),
        (Feature("generative-fill", src="https://pictures.example/1.jpg", mask=FACE), 1),
        (Feature("text-to-image/youcam", {"model": "youcam-image-v2", "prompt": "a fox"}), 0),
    ],
    ids=["two pictures", "a URL and a picture", "no picture"],
)
async def test_a_feature_with_any_inputs_is_measured(job: Feature, uploads: int) -> None:
    """Each picture is uploaded before the task is created."""
    sandbox = vendor(durations={job.feature: Durations.fixed(60.0)})
    async with client(sandbox) as c:
        brackets = [bracket async for bracket in c.measure_lease(job, [4.0, 6.0])]

    assert [4.0, 6.0] == [bracket.survived for bracket in brackets]
    assert uploads == sandbox.ledger.requests["upload"]
    assert 1 == sandbox.ledger.requests["task"]
    assert [] == sandbox.ledger.violations


async def test_a_broken_second_input_charges_nothing() -> None:
    """All inputs are checked before the first request."""
    sandbox = vendor()
    async with client(sandbox) as c:
        with pytest.raises(JobRefused, match="unknown type"):
            await anext(c.measure_lease(Feature("generative-fill", src=FACE, mask=b"nothing")))

    assert 0 == sandbox.ledger.requests.total()
