"""Sources of pictures: objects, uploads, and pictures that are converted to fit."""

import asyncio
import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import pytest
from PIL import Image

from perfect_async import (
    Avatar,
    Client,
    ConfigurationError,
    Done,
    Failed,
    FileId,
    JobRefused,
    PictureRefused,
    RequestRefused,
    ServiceUnavailable,
    Smile,
)
from perfect_async._client import settings
from perfect_async.models import Source
from perfect_async.sandbox import Faults, Sandbox
from tests.support.journaled import JournalHarness, all_of, done, resumed
from tests.support.sandboxed import FACE, STYLE, Between, client, vendor

MP = pytest.MonkeyPatch


def webp() -> bytes:
    """The face in a format that the vendor does not accept."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(FACE)) as image:
        image.save(file, "WEBP", lossless=True)
    return file.getvalue()


def uploaded(sandbox: Sandbox) -> list[bytes]:
    """The pictures of the tasks, in the order of their creation."""
    tasks = sandbox._router._tasks._by_id.values()
    return [task.picture.data for task in tasks if task.picture.data is not None]


# Objects.


@pytest.mark.parametrize("kind", ["bytearray", "memoryview", "file", "open file"])
async def test_bytes_in_any_form_are_one_job(tmp_path: Path, kind: str) -> None:
    """All kinds of bytes are uploaded, and equal bytes make equal jobs."""
    path = tmp_path / "me.jpg"
    path.write_bytes(FACE)
    sandbox = vendor()
    async with client(sandbox) as c:
        with path.open("rb") as file:
            sources: dict[str, Source] = {
                "bytearray": bytearray(FACE),
                "memoryview": memoryview(FACE),
                "file": io.BytesIO(FACE),
                "open file": file,
            }
            results = await asyncio.gather(c.run(Smile(sources[kind])), c.run(Smile(FACE)))
        assert 1 == len({result.task_id for result in results})
        [saved] = await results[0].save(tmp_path / "out")
        name = "me" if kind == "open file" else "picture"
        assert saved.name.startswith(f"{name}-")
    assert [FACE] == uploaded(sandbox)


async def test_a_pillow_image_is_a_source(tmp_path: Path) -> None:
    """It is sent as PNG with its own pixels, whose digest is the identity."""
    sandbox = vendor()
    image = Image.open(io.BytesIO(FACE))
    async with client(sandbox) as c:
        results = await asyncio.gather(c.run(Smile(image)), c.run(Smile(image.copy())))
        assert 1 == len({result.task_id for result in results})
    [data] = uploaded(sandbox)
    sent = Image.open(io.BytesIO(data))
    assert ("PNG", image.tobytes()) == (sent.format, sent.tobytes())


def test_pillow_is_loaded_only_when_it_is_used() -> None:
    """A program without Pillow images and without `fit` does not load it."""
    code = (
        "import sys\n"
        "from perfect_async import Client, Smile\n"
        "Client('key-1234567890'); Smile(b'x'); Smile(open(sys.executable, 'rb'))\n"
        "assert 'PIL' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


# Uploading alone.


async def test_an_uploaded_picture_serves_several_jobs() -> None:
    """An id is returned unchanged, and a URL is refused."""
    sandbox = vendor()
    async with client(sandbox) as c:
        file = await c.upload(io.BytesIO(FACE))
        assert isinstance(file, FileId)
        await asyncio.gather(c.run(Smile(file)), c.run(Avatar(file, STYLE)))
        assert file == await c.upload(file)
        with pytest.raises(JobRefused, match="a URL cannot be uploaded"):
            await c.upload("https://a.example/me.jpg")
    assert [FACE, FACE] == uploaded(sandbox)
    assert 1 == sandbox.ledger.requests["file"]


async def test_a_picture_outside_all_limits_is_not_uploaded() -> None:
    """It is refused before anything is sent."""
    sandbox = vendor()
    async with client(sandbox) as c:
        with pytest.raises(PictureRefused, match="the vendor takes jpg, png, heic"):
            await c.upload(b"text")
        with pytest.raises(PictureRefused):
            await c.upload(webp())
    assert 0 == sandbox.ledger.requests["file"]
    with pytest.raises(ConfigurationError, match="not open"):
        await client(vendor()).upload(FACE)


async def test_an_upload_is_tried_again() -> None:
    """Registering and uploading cost nothing, so a failure that may pass is tried again."""
    sandbox = vendor()
    async with client(sandbox) as c:
        sandbox.script("upload", "drop")
        assert isinstance(await c.upload(FACE), FileId)
        sandbox.script("file", "lose_502")
        assert isinstance(await c.upload(FACE), FileId)
        sandbox.script("file", (200, {"status": 200, "data": {"files": []}}))
        with pytest.raises(Exception, match="not as documented"):
            await c.upload(FACE)
    sandbox = vendor(faults=Faults(dropped={"upload": 1.0}))
    async with client(sandbox) as c:
        with pytest.raises(ServiceUnavailable):
            await c.upload(FACE)
    assert 3 == sandbox.ledger.requests["file"]


async def test_a_vendor_without_the_common_path() -> None:
    """The path of a feature is used if the common one is missing; other refusals are raised."""
    sandbox = vendor()
    paths: list[str] = []

    async def missing(request: httpx.Request) -> httpx.Response | None:
        paths.append(request.url.path)
        if request.url.path == "/s2s/v2.0/file":
            return httpx.Response(404, json={"status": 404, "error_code": "NotFound"})
        return None

    async with client(sandbox, transport=Between(sandbox.transport(), missing)) as c:
        assert isinstance(await c.upload(FACE), FileId)
    assert ["/s2s/v2.0/file", "/s2s/v2.0/file/ai-smile"] == paths[:2]
    async with client(sandbox) as c:
        sandbox.script("file", (400, {"status": 400, "error_code": "BadRequest"}))
        with pytest.raises(RequestRefused):
            await c.upload(FACE)


# Converting pictures.


async def test_pictures_are_made_to_fit(tmp_path: Path) -> None:
    """With `fit` a webp is sent as PNG, and the outcome says so; other pictures are unchanged."""
    path = tmp_path / "me.webp"
    path.write_bytes(webp())
    sandbox = vendor()
    async with client(sandbox, fit=True) as c:
        outcomes = await all_of(c.batch([Smile(path), Smile(FACE)], save_to=tmp_path, ordered=True))
        assert [("webp made png",), ()] == [outcome.changes for outcome in outcomes]
        assert [outcome.changes for outcome in outcomes] == [
            outcome.result.changes for outcome in done(outcomes)
        ]
        result = await c.run(Smile(webp(), "closed_mouth_smile"))
        assert ("webp made png",) == result.changes
        assert isinstance(await c.upload(webp()), FileId)
    sent = Counter(uploaded(sandbox))
    assert 1 == sent.pop(FACE)
    assert [2] == list(sent.values())


async def test_without_fit_the_hint_names_it() -> None:
    """Without `fit` the picture is refused, and the hint names the setting."""
    async with client(vendor()) as c:
        [outcome] = await all_of(c.batch([Smile(webp())]))
        assert isinstance(outcome, Failed)
        assert "Client(fit=True)" in outcome.error.hint
        assert () == outcome.changes


async def test_a_failure_says_what_was_changed() -> None:
    """A failed job has the changes of its picture too."""
    sandbox = vendor(faults=Faults(engine_errors=1.0, engine_error_codes=("error_no_face",)))
    async with client(sandbox, fit=True) as c:
        [outcome] = await all_of(c.batch([Smile(webp())]))
        assert isinstance(outcome, Failed)
        assert ("webp made png",) == outcome.changes


async def test_a_picture_that_was_fitted_is_not_bought_again(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """The same file is the same job in the next process, also after a crash."""
    path = tmp_path / "me.webp"
    path.write_bytes(webp())
    harness = JournalHarness(tmp_path, monkeypatch)
    async with harness.client(fit=True) as c:
        first = await c.run(Smile(path))
    async with harness.client(fit=True) as c:
        assert first.task_id == (await c.run(Smile(path))).task_id
    assert 1 == harness.sandbox.ledger.units_charged

    c = await harness.client(fit=True).open()
    batch = c.batch([Smile(path, "closed_mouth_smile")])
    await batch.__aenter__()
    await asyncio.sleep(0.2)
    await harness.crash(c)
    async with harness.client(fit=True) as c:
        [outcome] = await resumed(c)
        assert isinstance(outcome, Done)
    assert 2 == harness.sandbox.ledger.units_charged


@pytest.mark.parametrize("fit", [1, "yes", None])
def test_fit_must_be_true_or_false(fit: object) -> None:
    """Any other value is refused."""
    with pytest.raises(ConfigurationError, match="fit is"):
        client(vendor(), fit=fit)


def test_fitting_needs_pillow(monkeypatch: MP) -> None:
    """Without Pillow the error names the extra, before the client opens."""
    monkeypatch.setattr(settings, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'perfect_async\[fit\]'"):
        client(vendor(), fit=True)
    assert isinstance(client(vendor(), fit=False), Client)
