"""`Batch.report`: the records of a batch, and the report that is made of them."""

import csv
import gc
from pathlib import Path

import pytest

from perfect_async import Client, ConfigurationError, Feature, FileId, Smile
from perfect_async._client import records
from perfect_async.report import Report
from perfect_async.report._account import account, timeline
from perfect_async.sandbox import Durations, Faults
from tests.support.sandboxed import EIGHT, FACE, avatar, client, smile, smiles, vendor


async def taken(batch: object) -> None:
    async for _ in batch:  # type: ignore[attr-defined]
        pass


async def test_a_report_has_the_outcome_of_each_job(tmp_path: Path) -> None:
    """Jobs come in the order of reading, with outcomes, files, units and failures."""
    face = tmp_path / "face.jpg"
    face.write_bytes(FACE)
    faults = Faults(by_picture={"https://pictures.example/1.jpg": "error_pose"})
    jobs = [Smile(face), smile(1), Smile(b"none"), avatar(5), Smile(FileId("unknown"))]
    async with client(vendor(faults=faults)) as c:
        async with c.batch(jobs, save_to=tmp_path / "out") as batch:
            await taken(batch)
        report = await batch.report()
        spent = c.statistics().units

    sources = [str(face), "https://pictures.example/1.jpg", "4 bytes"]
    sources += ["https://pictures.example/a.jpg", "file unknown"]
    assert [1, 2, 3, 4, 5] == [job.number for job in report.jobs]
    assert sources == [job.source for job in report.jobs]
    assert ["done", "failed", "failed", "done", "failed"] == [job.outcome for job in report.jobs]
    assert [face, None, None, None, None] == [job.picture for job in report.jobs]
    assert [1, 0, 0, 5, 0] == [len(job.files) for job in report.jobs]
    assert [1.0, 0.0, 0.0, 2.0, 0.0] == [job.units for job in report.jobs]
    assert "5" == report.jobs[3].details["output_count"]
    failure = report.jobs[1].failure
    assert failure is not None
    assert ("TaskFailed", "error_pose") == (failure.kind, failure.code)
    assert (spent.charged, spent.returned, spent.at_stake) == (
        report.charged,
        report.returned,
        report.at_stake,
    )
    assert (250, 300.0, 5, 10.0) == (
        report.requests_limit,
        report.period,
        report.per_second,
        report.lease,
    )


async def test_a_job_without_an_input_is_named_by_its_feature() -> None:
    """A job without an input has its feature's path as a name, and no original on this disk."""
    job = Feature("text-to-image/youcam", {"model": "youcam-image-v2", "prompt": "a fox"})
    async with client(vendor()) as c, c.batch([job]) as batch:
        await taken(batch)
        report = await batch.report()

    assert [("text-to-image/youcam", None)] == [(each.source, each.picture) for each in report.jobs]


async def test_the_timeline_has_the_vendors_requests() -> None:
    """Every creation and poll is recorded at its time, within the lease of its task."""
    sandbox = vendor()
    async with client(sandbox) as c, c.batch(smiles(30)) as batch:
        await taken(batch)
        report = await batch.report()
        statistics = c.statistics()

    kinds = [request.kind for request in report.requests]
    assert dict(sandbox.ledger.requests)["task"] == kinds.count("create") == 30
    assert statistics.requests["poll"] == kinds.count("poll")
    assert statistics.requests_in_window == report.requests[-1].in_window
    assert all(request.answered is not None for request in report.requests)
    lines = timeline(report)
    assert 30 == len(lines)
    for line in lines:
        assert 1 == len(line.leases)
        assert all(line.leases[0][0] <= at <= line.leases[0][1] for at, _ in line.polls)
    found = account(report, lines)
    assert found.per_picture == pytest.approx(len(kinds) / 30)
    assert found.per_picture is not None
    assert found.bound_per_picture is not None
    assert found.bound_per_picture <= found.per_picture
    assert found.bound is not None
    assert report.seconds is not None
    assert found.bound.seconds <= report.seconds


async def test_equal_jobs_share_one_line() -> None:
    """The second of two equal jobs is done at no cost, and has the first one's task."""
    async with client(vendor()) as c, c.batch([smile(1), smile(1)]) as batch:
        await taken(batch)
        report = await batch.report()

    assert [1.0, 0.0] == [job.units for job in report.jobs]
    assert (1.0, 0.0) == (report.charged, report.returned)
    assert [1] == [line.job.number for line in timeline(report)]


async def test_a_report_of_a_running_batch() -> None:
    """The units of a running task are neither returned nor at stake."""
    async with client(vendor(durations=EIGHT)) as c, c.batch([smile(1), avatar()]) as batch:
        await anext(batch)
        report = await batch.report()
        batch.stop()
        await taken(batch)

    assert ["done", "running"] == [job.outcome for job in report.jobs]
    assert (2.0, 0.0, 0.0) == (report.charged, report.returned, report.at_stake)
    assert 2 == len(timeline(report))


async def test_units_at_stake_are_reported() -> None:
    """An abandoned task is charged, and its units are at stake."""
    slow = {"ai-avatar": Durations.fixed(5000.0)}
    async with client(vendor(durations=slow)) as c, c.batch([avatar()]) as batch:
        await taken(batch)
        report = await batch.report()

    assert (1.0, 0.0, 1.0) == (report.charged, report.returned, report.at_stake)
    assert ["failed"] == [job.outcome for job in report.jobs]


async def test_the_last_jobs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long batch keeps a bounded number of jobs, counts the others, and has the units of all."""
    monkeypatch.setattr(records, "_MOST", 4)
    async with client(vendor()) as c, c.batch(smiles(10)) as batch:
        await taken(batch)
        report = await batch.report()

    assert (4, 6, 10.0) == (len(report.jobs), report.left_out, report.charged)


async def test_a_report_after_the_client_has_closed(tmp_path: Path) -> None:
    """A page and a table can be written after the client has closed."""
    async with client(vendor()) as c, c.batch(smiles(3)) as batch:
        await taken(batch)

    report = await batch.report(tmp_path / "a.html")
    await batch.report(str(tmp_path / "a.csv"))

    assert 3 == len(report.jobs)
    assert (tmp_path / "a.html").read_text().count('<li class="card') == 3
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        assert ["done"] * 3 == [row["outcome"] for row in csv.DictReader(file)]


@pytest.mark.usefixtures("no_working_folder")
async def test_a_report_needs_no_working_folder(tmp_path: Path) -> None:
    """A source that was a relative path has no picture if the working folder was removed."""
    async with client(vendor()) as c, c.batch([Smile("a.jpg")]) as batch:
        await taken(batch)
        report = await batch.report(tmp_path / "a.html")

    assert [("a.jpg", None)] == [(job.source, job.picture) for job in report.jobs]


async def test_no_secret_of_a_url_is_shown(tmp_path: Path) -> None:
    """A signed URL is shown without its query, and a password in it is never shown."""
    jobs = [Smile("https://me:s3cret@x.example/a.jpg?sig=s3cret")]
    async with client(vendor()) as c, c.batch(jobs) as batch:
        await taken(batch)
        await batch.report(tmp_path / "a.html")
        await batch.report(tmp_path / "a.csv")

    for name in ("a.html", "a.csv"):
        assert "s3cret" not in (tmp_path / name).read_text()


async def test_a_batch_that_was_not_entered_has_no_report(tmp_path: Path) -> None:
    """A report before entering, and a path that cannot work, are refused at once."""
    async with client(vendor()) as c:
        batch = c.batch([smile(1)])
        with pytest.raises(ConfigurationError, match="Enter the batch"):
            await batch.report()
        async with batch:
            with pytest.raises(ConfigurationError, match=r"\.html or \.csv"):
                await batch.report(tmp_path / "a.txt")


async def test_neither_pictures_nor_results_are_kept() -> None:
    """The records of a batch hold no picture and no result, so memory stays bounded."""
    async with client(vendor()) as c, c.batch([Smile(FACE)]) as batch:
        await taken(batch)
        report = await batch.report()
        kept = gc.get_referents(*batch._record._jobs)  # type: ignore[union-attr]

    assert f"{len(FACE)} bytes" == report.jobs[0].source
    assert not any(isinstance(each, bytes | Smile) for each in kept)
    assert "perfect_async.Result" not in {f"{type(e).__module__}.{type(e).__name__}" for e in kept}


async def test_single_jobs_are_not_recorded() -> None:
    """Nothing is recorded for a client without a batch, or after its batches are gone."""
    async with client(vendor()) as c:
        driver = c._session.driver  # type: ignore[union-attr]
        await c.run(smile(1))
        assert driver._recorder() is None
        async with c.batch([smile(2)]) as batch:
            await taken(batch)
            assert driver._recorder() is not None
        del batch
        gc.collect()
        assert driver._recorder() is None


@pytest.mark.real_time
async def test_the_report_of_an_isolated_client(tmp_path: Path) -> None:
    """A batch in a thread gives the same report."""
    sandbox = vendor(durations={"ai-smile": Durations.fixed(0.2)}, latency=0.01, jitter=0.0)
    isolated = Client("key", transport=sandbox.transport(), isolated=True)
    async with isolated, isolated.batch([Smile(FACE)]) as batch:
        await taken(batch)
        report: Report = await batch.report(tmp_path / "a.csv")

    assert ["done"] == [job.outcome for job in report.jobs]
    assert 1 == len(timeline(await batch.report()))
