"""Jobs of a former process whose results were saved, but not taken."""

import asyncio
import json
import re
from pathlib import Path

import attrs
import pytest

from perfect_async import Done, Feature, Job, RequestRefused
from perfect_async._client.results import Answer
from tests.support.journaled import JournalHarness, resumed
from tests.support.sandboxed import FACE

MP = pytest.MonkeyPatch
SKIN = {"dst_actions": ["acne", "wrinkle"]}

JOBS = {
    "json": (
        Feature("skin-analysis", {**SKIN, "format": "json"}, src=FACE, units=9),
        [".json", ".png", ".png"],
    ),
    "zip": (Feature("skin-analysis", SKIN, src=FACE, units=9), [".zip"]),
    "tone": (Feature("skin-tone-analysis", src=FACE), [".json"]),
    "signed": (
        Feature(
            "skin-analysis",
            {**SKIN, "format": "json"},
            src="https://pictures.example/1.jpg?Signature=a&Expires=9",
        ),
        [".json", ".png", ".png"],
    ),
}


async def saved(harness: JournalHarness, job: Job, **options: object) -> list[Path]:
    """Save the result of `job` in a process that ends before its caller has the outcome."""
    c = await harness.client().open()
    _ = await c.submit(job, save_to=harness.out, **options)  # type: ignore[arg-type]
    await asyncio.sleep(60)
    await harness.crash(c)
    return sorted(harness.out.iterdir())


def suffixes(files: list[Path]) -> list[str]:
    """Return the types of the files, sorted."""
    return sorted(file.suffix for file in files)


def contents(folder: Path) -> dict[str, object]:
    """Return the files of `folder`; URLs in JSON lose their signatures, which differ each time."""
    return {
        file.name: re.sub(rb"\?[^\"]*", b"", file.read_bytes())
        if file.suffix == ".json"
        else file.read_bytes()
        for file in folder.iterdir()
    }


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        *((name, missing) for name in JOBS for missing in (None, -1)),
        # Files of a job with a signed URL are not in the record, so a new JSON needs a new name.
        *((name, 0) for name in JOBS if name != "signed"),
    ],
)
async def test_a_saved_feature_can_be_read_after_a_crash(
    tmp_path: Path, monkeypatch: MP, name: str, missing: int | None
) -> None:
    """Its files are kept, a missing one is written again, and the result can be read and saved."""
    job, kinds = JOBS[name]
    harness = JournalHarness(tmp_path, monkeypatch)
    files = await saved(harness, job)
    assert kinds == suffixes(files)
    before = contents(harness.out)
    if missing is not None:
        files[missing].unlink()
    async with harness.client() as c:
        [outcome] = await resumed(c)
        assert isinstance(outcome, Done), outcome
        data = await outcome.result.read()
        again = await outcome.result.save(tmp_path / "again")

    assert files == sorted(outcome.files)
    assert before == contents(harness.out)
    assert kinds == suffixes(again)
    pictures = [file.read_bytes() for file in again if file.suffix != ".json"]
    assert pictures == data
    assert 1 == harness.sandbox.ledger.requests["task"]


@pytest.mark.parametrize("missing", [None, -1], ids=["whole", "a file missing"])
async def test_a_saved_feature_asks_the_vendor_once(
    tmp_path: Path, monkeypatch: MP, missing: int | None
) -> None:
    """However often its result is read and saved, also at once, the answer is asked for once."""
    job, kinds = JOBS["json"]
    harness = JournalHarness(tmp_path, monkeypatch)
    files = await saved(harness, job)
    if missing is not None:
        files[missing].unlink()
    before = harness.sandbox.ledger.requests["poll"]

    async with harness.client() as c:
        [outcome] = await resumed(c)
        assert isinstance(outcome, Done), outcome
        result = outcome.result
        first, second = await asyncio.gather(result.read(), result.read())
        again = await result.save(tmp_path / "again")
        third = await result.read()

    assert first == second == third
    assert kinds == suffixes(again)
    assert 1 == harness.sandbox.ledger.requests["poll"] - before


async def test_a_saved_feature_asks_again_after_a_failure(tmp_path: Path, monkeypatch: MP) -> None:
    """An answer that did not come, and a reader that left, do not count."""
    job, _ = JOBS["json"]
    harness = JournalHarness(tmp_path, monkeypatch)
    await saved(harness, job)

    async with harness.client() as c:
        [outcome] = await resumed(c)
        assert isinstance(outcome, Done), outcome
        leaving = asyncio.ensure_future(outcome.result.read())
        staying = asyncio.ensure_future(outcome.result.read())
        await asyncio.sleep(0.05)
        leaving.cancel()
        assert 2 == len(await staying)
        other = attrs.evolve(outcome.result, answer=Answer())
        harness.sandbox.script("poll", (400, {"status": 400, "error": "Bad Request"}))
        with pytest.raises(RequestRefused):
            await other.read()
        assert 2 == len(await other.read())


@pytest.mark.parametrize("name", ["json", "zip", "tone"])
async def test_an_equal_feature_takes_a_saved_result(
    tmp_path: Path, monkeypatch: MP, name: str
) -> None:
    """An equal job in another folder gets the result that the former process has paid for."""
    job, kinds = JOBS[name]
    harness = JournalHarness(tmp_path, monkeypatch)
    await saved(harness, job)
    async with harness.client(reuse=False) as c:
        result = await c.run(job, save_to=tmp_path / "other")

    assert kinds == suffixes(list(result.files))
    assert 1 == harness.sandbox.ledger.requests["task"]


@pytest.mark.parametrize("name", ["json", "zip", "tone"])
async def test_attaching_to_a_saved_feature(tmp_path: Path, monkeypatch: MP, name: str) -> None:
    """The id of the task is enough to read its result."""
    job, kinds = JOBS[name]
    harness = JournalHarness(tmp_path, monkeypatch)
    await saved(harness, job)
    async with harness.client() as c:
        result = await c.attach(
            "skin-tone-analysis" if name == "tone" else "skin-analysis",
            harness.sandbox.ledger.tasks[0].task_id,
        )
        again = await result.save(tmp_path / "again")

    assert kinds == suffixes(again)


@pytest.mark.parametrize("name", ["json", "zip", "tone"])
async def test_saved_files_outlive_the_vendors_copy(
    tmp_path: Path, monkeypatch: MP, name: str
) -> None:
    """The job is done by its files, even if the vendor has deleted the task."""
    job, _ = JOBS[name]
    harness = JournalHarness(tmp_path, monkeypatch)
    files = await saved(harness, job, delete=True)
    assert 1 == harness.sandbox.ledger.requests["delete"]
    async with harness.client() as c:
        [outcome] = await resumed(c)

    assert isinstance(outcome, Done)
    assert files == sorted(outcome.files)
    assert all(json.loads(file.read_text()) for file in files if file.suffix == ".json")
