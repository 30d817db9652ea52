"""A typed feature costs one small class and one line, whatever the form of its results."""

import asyncio
import json
from pathlib import Path

import attrs
import pytest

from perfect_async import Feature, Job, RequestRefused, Smile
from perfect_async._api import tasks
from perfect_async.events import Poll, Succeeded, Unreadable
from perfect_async.models import Source
from perfect_async.sandbox import Sandbox
from tests.support.journaled import JournalHarness, resumed
from tests.support.sandboxed import FACE, client, vendor

MP = pytest.MonkeyPatch


@attrs.frozen(eq=False, repr=False)
class SkinTone(Job):
    """Measure the colours of a face: the answer is JSON and has no file."""

    feature = "skin-tone-analysis"
    formats = ("jpg",)

    source: Source
    strictness: str = "high"
    key: str | None = None

    @property
    def units(self) -> int:
        return 20


@pytest.fixture(autouse=True)
def typed(monkeypatch: MP) -> None:
    """Add the one line of the class to the table."""
    names = {"strictness": "face_angle_strictness_level"}
    monkeypatch.setitem(tasks._PARAMETERS, SkinTone, names)
    monkeypatch.setitem(tasks.FEATURES, SkinTone.feature, SkinTone)


async def checked(sandbox: Sandbox, job: Job, folder: Path) -> None:
    """Run `job`, and check that its colours are saved as JSON."""
    async with client(sandbox) as c:
        task = await c.submit(job, save_to=folder)
        result = await task
        [file] = result.files

        assert ".json" == file.suffix
        assert result.raw == json.loads(file.read_text("utf-8"))
        assert "color" in json.loads(file.read_text("utf-8"))
        assert ([], 20) == (await result.read(), sandbox.ledger.units_charged)
        assert "done: 0 files" in repr(task)


async def test_a_typed_feature_without_files_runs(tmp_path: Path) -> None:
    """Its parameter is sent under the vendor's name, and its answer is saved as JSON."""
    sandbox = vendor()
    await checked(sandbox, SkinTone(FACE, "low"), tmp_path)

    assert [] == sandbox.ledger.violations
    assert {"success": 1} == sandbox.ledger.tasks_by_state


async def test_a_wrong_parameter_reaches_the_vendor() -> None:
    """The parameter is really sent, since the vendor refuses a wrong value."""
    async with client(vendor()) as c:
        with pytest.raises(RequestRefused, match="face_angle_strictness_level"):
            await c.run(SkinTone(FACE, "nonsense"))


async def test_the_same_feature_by_path_still_works(tmp_path: Path) -> None:
    """A class for the feature changes nothing for jobs that name its path."""
    await checked(vendor(), Feature("skin-tone-analysis", src=FACE, units=20), tmp_path)


@pytest.mark.parametrize("feature", [SkinTone, "skin-tone-analysis"])
async def test_a_typed_feature_is_attached(feature: type[Job] | str) -> None:
    """A task that is known by its id alone is read by the feature's class."""
    async with client(vendor()) as c:
        task = await c.submit(SkinTone(FACE))
        result = await c.attach(feature, task.id)
        status = await c.status(feature, task.id)

    assert result.raw == status.results == (await task).raw
    assert "color" in status.results  # type: ignore[operator]


async def test_a_typed_feature_is_resumed(tmp_path: Path, monkeypatch: MP) -> None:
    """The journal gives the class and its parameters back."""
    harness = JournalHarness(tmp_path, monkeypatch)
    c = await harness.client().open()
    working = asyncio.ensure_future(c.run(SkinTone(FACE, "low", key="k")))
    await asyncio.sleep(3)
    await harness.crash(c, working)
    async with harness.client() as c:
        [outcome] = await resumed(c)
        [file] = await outcome.unwrap().save(tmp_path / "out")

    assert SkinTone(outcome.job.source, "low", key="k") == outcome.job
    assert ".json" == file.suffix
    assert 1 == harness.sandbox.ledger.requests["task"]


@pytest.mark.parametrize(("expected", "kind"), [(Unreadable, Smile), (Succeeded, Feature)])
def test_a_class_promises_pictures(expected: type[object], kind: type[Job]) -> None:
    """Results without a picture are unreadable for such a class, and may be anything otherwise."""
    content = b'{"data": {"task_status": "success", "results": {"score": 1}}}'
    answer = tasks.read_status(
        Poll(0, 1),
        tasks.Response(200, content),
        pictures_only=kind.pictures_only,
        task_id="t",
        units=1,
    )

    assert expected is type(answer)
