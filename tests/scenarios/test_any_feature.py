"""Any feature of the vendor, from the call to the files, in virtual time on the sandbox."""

import asyncio
import io
import json
import zipfile
from pathlib import Path

import httpx
import pytest
from PIL import Image

from perfect_async import (
    Client,
    ConfigurationError,
    Done,
    Failed,
    Feature,
    FileId,
    JobRefused,
    PictureRefused,
    Placeholder,
    ResultUnreadable,
    SourceLost,
    Studio,
    SubmissionInDoubt,
    TaskExpired,
    TaskFailed,
)
from perfect_async.sandbox import Durations, Faults, portrait
from tests.support.journaled import JournalHarness, resumed
from tests.support.sandboxed import FACE, STYLE, Between, client, vendor
from tests.support.webhooks import make_endpoint, open_client

MP = pytest.MonkeyPatch
VIDEO = (
    (24).to_bytes(4, "big") + b"ftypisom\0\0\2\0isommp41" + (4096).to_bytes(4, "big") + b"mdat"
).ljust(24 + 4096, b"\1")
RING = {
    "source_info": {"name": Placeholder("src"), "mask_name": Placeholder("srcmsk")},
    "object_infos": [
        {
            "name": Placeholder("ref", index),
            "mask_name": Placeholder("refmsk", index),
            "parameter": {"ring_wearing_finger": index},
        }
        for index in range(2)
    ],
}
SKIN = {"dst_actions": ["acne", "wrinkle"]}


def face(number: int) -> bytes:
    """Draw a face."""
    return portrait(number, size=96)


def ring(**more: object) -> Feature:
    """Make a try-on of two rings: six pictures."""
    return Feature(
        "2d-vto/ring",
        RING,
        src=face(1),
        ref=[face(2), face(3)],
        srcmsk=face(4),
        refmsk=[face(5), face(6)],
        **more,  # type: ignore[arg-type]
    )


def skin(**more: object) -> Feature:
    """Make an analysis that answers with scores and masks."""
    given = {"version": "v2.1", "units": 9, "src": FACE, **more}
    return Feature("skin-analysis", {**SKIN, "format": "json"}, **given)  # type: ignore[arg-type]


def tones(**more: object) -> Feature:
    """Make an analysis whose answer has no URL."""
    return Feature("skin-tone-analysis", **{"src": FACE, **more})  # type: ignore[arg-type]


JOBS = {
    "skin-analysis@v2.1": (skin(), [".png", ".png", ".json"], 9),
    "skin-analysis": (Feature("skin-analysis", SKIN, src=FACE), [".zip"], 9),
    "skin-tone-analysis": (tones(), [".json"], 20),
    "cloth-v4": (
        Feature("cloth-v4", {"garment_category": "auto"}, src=FACE, ref=face(2)),
        [".jpg"],
        2,
    ),
    "2d-vto/ring": (ring(), [".jpg"], 2),
    "generative-fill": (Feature("generative-fill", src=FACE, mask=face(2)), [".jpg"], 1),
    "text-to-image/youcam": (
        Feature("text-to-image/youcam", {"model": "youcam-image-v2", "prompt": "a fox"}),
        [".jpg"],
        1,
    ),
    "video-sr": (Feature("video-sr", {"dst_duration": 5}, src=VIDEO), [".mp4"], 3),
}


@pytest.mark.parametrize("name", JOBS)
async def test_every_feature_of_the_sandbox_runs(name: str, tmp_path: Path) -> None:
    """Each is charged once, and its files are saved whole."""
    job, kinds, units = JOBS[name]
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(job)
        files = await result.save(tmp_path)

    [task] = sandbox.ledger.tasks
    # A result may be PNG although its URL says JPEG.
    assert kinds == [".jpg" if kinds == [".jpg"] else file.suffix for file in files]
    assert (name, "success", units) == (task.feature, task.state, task.units)
    assert units == sandbox.ledger.units_charged
    assert [] == sandbox.ledger.violations
    assert result.raw is not None
    assert result.outputs == result.images


@pytest.mark.parametrize("name", JOBS)
async def test_a_long_task_of_any_feature_is_kept_alive(name: str) -> None:
    """It is polled within its lease, whatever its path and version."""
    sandbox = vendor(durations={name: Durations.fixed(90.0)})
    async with client(sandbox) as c:
        await c.run(JOBS[name][0])

    assert sandbox.ledger.requests["poll"] >= 9
    assert {"success": 1} == sandbox.ledger.tasks_by_state


async def test_a_batch_mixes_features(tmp_path: Path) -> None:
    """Features and typed jobs share a batch, a journal and one window."""
    sandbox = vendor()
    jobs = [*(job for job, _, _ in JOBS.values()), Studio(FACE, STYLE, 2)]
    async with (
        client(sandbox, journal=tmp_path / "jobs.db") as c,
        c.batch(jobs, save_to=tmp_path / "out") as batch,
    ):
        outcomes = [outcome async for outcome in batch]

    assert [Done] * len(jobs) == [type(outcome) for outcome in outcomes]
    assert all(outcome.files for outcome in outcomes)
    assert [] == sandbox.ledger.violations


async def test_scores_are_raw_and_masks_are_files() -> None:
    """Parts of the answer with a URL are files; the others are only in `raw`."""
    async with client(vendor()) as c:
        result = await c.run(skin())

    assert isinstance(result.raw, dict)
    assert ["acne", "wrinkle"] == [entry["type"] for entry in result.raw["output"]]
    assert [70, 71] == [entry["ui_score"] for entry in result.raw["output"]]
    assert 2 == len(result.outputs)


async def test_colours_are_saved_as_json(tmp_path: Path) -> None:
    """An answer without a URL has no files, and is saved as JSON."""
    async with client(vendor()) as c:
        result = await c.run(tones())
        [path] = await result.save(tmp_path / "colours.json")

    assert () == result.outputs
    assert tmp_path / "colours.json" == path
    assert result.raw == json.loads(path.read_text("utf-8"))


async def test_a_saved_zip_is_whole(tmp_path: Path) -> None:
    """The archive can be opened."""
    async with client(vendor()) as c:
        result = await c.run(Feature("skin-analysis", SKIN, src=FACE))
        [path] = await result.save(tmp_path / "scores.zip")

    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert ["skinanalysisResult/score_info.json"] == archive.namelist()


# Inputs.


async def test_six_pictures_cost_one_registration() -> None:
    """The pictures of one job are registered with one call, and each is uploaded."""
    sandbox = vendor()
    async with client(sandbox) as c:
        await c.run(ring())

    assert (1, 6, 1) == tuple(sandbox.ledger.requests[kind] for kind in ("file", "upload", "task"))


@pytest.mark.parametrize("number", range(6))
async def test_placeholders_are_sent_as_ids(number: int) -> None:
    """Each placeholder is the id of its input, whichever upload is the slowest."""
    seen = 0

    async def slow(request: httpx.Request) -> httpx.Response | None:
        nonlocal seen
        if request.method == "PUT":
            seen += 1
            if seen == number + 1:
                return httpx.Response(503)
        return None

    sandbox = vendor()
    async with client(sandbox, transport=Between(sandbox.transport(), slow)) as c:
        await c.run(ring())

    assert [] == sandbox.ledger.violations
    assert 7 == seen


async def test_many_pictures_need_several_registrations() -> None:
    """A job with more pictures than one call can register uses several."""
    refs = [face(number) for number in range(45)]
    job = Feature(
        "2d-vto/ring",
        {
            "source_info": {"name": Placeholder("src")},
            "object_infos": [
                {"name": Placeholder("ref", 44), "parameter": {"ring_wearing_finger": 0}}
            ],
        },
        src=FACE,
        ref=refs,
    )
    sandbox = vendor()
    async with client(sandbox) as c:
        await c.run(job)

    # The first call holds 20 of them, and the second one could hold 40.
    assert (2, 46) == (sandbox.ledger.requests["file"], sandbox.ledger.requests["upload"])
    assert [] == sandbox.ledger.violations


async def test_a_webhook_ends_the_wait_for_any_feature() -> None:
    """A notification names only the task, so it works for any feature."""
    endpoint = make_endpoint(lifts=True, durations={"skin-analysis@v2.1": Durations.fixed(33.3)})
    async with open_client(endpoint, "webhook") as c:
        result = await c.run(skin())

    assert 2 == len(result.outputs)
    assert 1 == endpoint.sandbox.ledger.requests["poll"]


async def test_a_preparing_step_is_a_task_of_its_own() -> None:
    """It has a path of its own."""
    faces = {"url": "https://x.example/a.jpg", "faces": [{"bbox": [1, 2, 3, 4]}]}

    async def prepared(request: httpx.Request) -> httpx.Response | None:
        if "/task/face-swap/pre-process" not in request.url.path:
            return None
        if request.method == "POST":
            return httpx.Response(200, json={"data": {"task_id": "p"}})
        return httpx.Response(200, json={"data": {"task_status": "success", "results": faces}})

    sandbox = vendor()
    async with client(sandbox, transport=Between(sandbox.transport(), prepared)) as c:
        result = await c.run(Feature("face-swap/pre-process", src=FACE))

    assert faces == result.raw
    assert ["https://x.example/a.jpg"] == [output.url for output in result.outputs]


async def test_urls_and_ids_need_no_upload() -> None:
    """File ids and URLs are sent unchanged; a list has only one of the two."""
    sandbox = vendor()
    url = "https://pictures.example/{}.jpg".format
    async with client(sandbox) as c:
        job = Feature(
            "2d-vto/ring",
            {
                "source_info": {"name": Placeholder("src")},
                "object_infos": [
                    {"name": Placeholder("ref", 1), "parameter": {"ring_wearing_finger": 0}}
                ],
            },
            src=url(1),
            ref=[url(2), url(3)],
        )
        await c.run(job)
        with pytest.raises(JobRefused, match="ref names files and URLs"):
            await c.run(Feature("2d-vto/ring", {}, src=url(1), ref=[url(2), FACE]))

    assert 0 == sandbox.ledger.requests["file"]
    assert 1 == sandbox.ledger.requests["task"]


async def test_a_broken_input_sends_nothing() -> None:
    """A job with one input that is not a picture is refused before any registration."""
    sandbox = vendor()
    async with client(sandbox) as c:
        with pytest.raises(PictureRefused, match="unknown type"):
            await c.run(Feature("generative-fill", src=FACE, mask=b"nothing"))

    assert 0 == sandbox.ledger.requests.total()


async def test_files_are_registered_at_the_features_path() -> None:
    """It is used if the common path is missing, also for a path with a slash."""
    sandbox = vendor(universal_path=False)
    async with client(sandbox) as c:
        await c.run(ring())
        await c.run(skin())

    assert {"success": 2} == sandbox.ledger.tasks_by_state


async def test_a_video_has_limits_of_its_own(tmp_path: Path) -> None:
    """A video may be larger than a picture, and has another timeout."""
    path = tmp_path / "film.mp4"
    with path.open("wb") as file:
        file.write(VIDEO[:24] + (12 * 2**20).to_bytes(4, "big") + b"mdat")
        file.truncate(24 + 12 * 2**20)
    sandbox = vendor()
    async with client(sandbox) as c:
        await c.run(Feature("video-sr", {"dst_duration": 1}, src=path))
        with path.open("r+b") as file:
            file.truncate(100 * 2**20)
        with pytest.raises(PictureRefused, match=r"100\.0 MiB; .* less than 100\.0 MiB"):
            await c.run(Feature("video-sr", {"dst_duration": 1}, src=path))

    assert {"success": 1} == sandbox.ledger.tasks_by_state


# Prices and charges.


async def test_a_spending_limit_needs_a_price() -> None:
    """A job without a price is refused, and a given one counts."""
    sandbox = vendor()
    async with client(sandbox, max_units=30) as c:
        with pytest.raises(JobRefused, match="pass units="):
            await c.run(tones())
        async with c.batch([tones(units=20), tones(units=20, key="again")]) as batch:
            outcomes = [outcome async for outcome in batch]

    assert [True, False] == sorted((outcome.ok for outcome in outcomes), reverse=True)
    assert 20 == sandbox.ledger.units_charged


async def test_an_estimate_of_any_feature() -> None:
    """The price list counts if it has a single price; otherwise `units=` is needed."""
    async with client(vendor()) as c:
        assert 22 == (await c.estimate([tones(), JOBS["cloth-v4"][0]])).units
        assert 12 == (await c.estimate([skin(units=12)])).units
        with pytest.raises(JobRefused, match=r"has no single price for skin-analysis@v2\.1"):
            await c.estimate([skin(units=None)])


async def test_a_result_says_whether_its_units_are_known(caplog: pytest.LogCaptureFixture) -> None:
    """Without a price, `units` is the least that was charged, and `priced` is False."""
    caplog.set_level("INFO", "perfect_async")
    sandbox = vendor()
    async with client(sandbox) as c:
        unknown = await c.run(skin(units=None))
        known = await c.run(skin(key="known"))
        attached = await c.attach("skin-analysis", known.task_id, version="v2.1")

    assert (1.0, False) == (unknown.units, unknown.priced)
    assert (9.0, True) == (known.units, known.priced)
    assert (0.0, True) == (attached.units, attached.priced)
    assert 1 == caplog.text.count("s, at least 1 unit (no price was given)")


async def test_a_failure_returns_the_units() -> None:
    """A task on which the engine failed costs nothing in the end, and may be tried again."""
    sandbox = vendor(faults=Faults(engine_errors=1.0, engine_error_codes=("error_inference",)))
    async with client(sandbox) as c:
        with pytest.raises(TaskFailed, match="error_inference"):
            await c.run(tones())

    assert (40, 40) == (sandbox.ledger.units_charged, sandbox.ledger.units_returned)


async def test_a_lost_answer_is_not_bought_again() -> None:
    """A creation without an answer is in doubt, and an equal job is not sent."""
    sandbox = vendor(faults=Faults(lost_creations=1.0))
    async with client(sandbox) as c:
        with pytest.raises(SubmissionInDoubt):
            await c.run(ring())
        with pytest.raises(SubmissionInDoubt) as caught:
            await c.run(ring())

    assert 1 == sandbox.ledger.requests["task"]
    assert (sandbox.ledger.tasks[0].task_id,) == caught.value.candidates


async def test_a_success_without_results() -> None:
    """It ends at once with an error that has the answer."""
    sandbox = vendor()

    async def emptied(request: httpx.Request) -> httpx.Response | None:
        if request.method == "GET" and "/task/" in request.url.path:
            return httpx.Response(200, json={"data": {"task_status": "success", "results": None}})
        return None

    async with client(sandbox, transport=Between(sandbox.transport(), emptied)) as c:
        with pytest.raises(ResultUnreadable, match="has no results"):
            await c.run(tones())


# Other processes.


async def test_attaching_by_path_and_version() -> None:
    """A task from elsewhere is kept alive and fetched."""
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(skin())
        again = await c.attach("skin-analysis", result.task_id, version="v2.1")
        ringed = await c.run(ring())
        other = await c.attach("2d-vto/ring", ringed.task_id)

    assert result.raw["output"][0]["type"] == again.raw["output"][0]["type"]  # type: ignore[index]
    assert 1 == len(other.outputs)
    assert [] == sandbox.ledger.violations


@pytest.mark.parametrize("path", ["../credit", "/skin-analysis", "a?b", "task/delete", 3, Feature])
async def test_attaching_to_a_wrong_path_is_refused(path: object) -> None:
    """It is refused before a request."""
    sandbox = vendor()
    async with client(sandbox) as c:
        with pytest.raises(ConfigurationError, match="feature"):
            await c.attach(path, "id")  # type: ignore[arg-type]

    assert 0 == sandbox.ledger.requests.total()


async def crashed(
    harness: JournalHarness, job: Feature, seconds: float, *, fit: bool = False
) -> None:
    """Run `job` for so long, then end like a killed process."""
    c = await harness.client(fit=fit).open()
    working = asyncio.ensure_future(c.run(job))
    await asyncio.wait([working], timeout=seconds)
    await harness.crash(c, working)


@pytest.mark.parametrize("seconds", [2.5, 6.0])
@pytest.mark.parametrize("name", ["skin-analysis@v2.1", "text-to-image/youcam", "2d-vto/ring"])
async def test_a_running_feature_is_resumed(
    tmp_path: Path, monkeypatch: MP, name: str, seconds: float
) -> None:
    """A former process's task is found by path and version, and not bought again."""
    harness = JournalHarness(tmp_path, monkeypatch, durations={name: Durations.fixed(12.0)})
    await crashed(harness, JOBS[name][0], seconds)
    async with harness.client() as c:
        [outcome] = await resumed(c)

    assert isinstance(outcome, Done)
    assert outcome.result.raw is not None
    assert 1 == harness.sandbox.ledger.requests["task"]


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.4])
async def test_a_feature_is_resumed_before_its_creation(
    tmp_path: Path, monkeypatch: MP, seconds: float
) -> None:
    """The next process creates it from its files, placeholders included."""
    paths = [tmp_path / f"{number}.jpg" for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(face(number))
    given = {"src": paths[0], "ref": paths[1:3], "srcmsk": paths[3], "refmsk": paths[4:]}
    job = Feature("2d-vto/ring", RING, units=2, key="k", **given)  # type: ignore[arg-type]
    harness = JournalHarness(tmp_path, monkeypatch)
    await crashed(harness, job, seconds)
    before = harness.sandbox.ledger.requests["task"]
    async with harness.client() as c:
        [outcome] = await resumed(c)

    ledger = harness.sandbox.ledger
    assert (0, 1) == (before, ledger.requests["task"])
    assert isinstance(outcome, Done)
    assert isinstance(outcome.job, Feature)
    assert (job.params, 2, "k") == (outcome.job.params, outcome.job.units, outcome.job.key)
    assert [each.name for each in job.inputs] == [each.name for each in outcome.job.inputs]
    assert [] == ledger.violations


async def test_bytes_that_were_not_uploaded_are_lost(tmp_path: Path, monkeypatch: MP) -> None:
    """They are lost with the process, and nothing is bought."""
    harness = JournalHarness(tmp_path, monkeypatch)
    await crashed(harness, ring(), 0.1)
    async with harness.client() as c:
        [outcome] = await resumed(c)

    assert isinstance(outcome.error, SourceLost)
    assert 0 == harness.sandbox.ledger.requests["task"]


async def test_a_resumed_feature_needs_a_price_under_a_limit(
    tmp_path: Path, monkeypatch: MP
) -> None:
    """A job that is created again needs a price, even if the former process had no limit."""
    path = tmp_path / "me.jpg"
    path.write_bytes(FACE)
    harness = JournalHarness(tmp_path, monkeypatch)
    await crashed(harness, tones(src=path), 0.1)
    async with harness.client(max_units=50) as c:
        [outcome] = await resumed(c)

    assert "pass units=" in str(outcome.error)
    assert 0 == harness.sandbox.ledger.requests["task"]


async def test_an_equal_feature_is_fetched_again(tmp_path: Path) -> None:
    """A job with inputs is fetched again; one with only text is bought again."""
    sandbox = vendor()
    for _ in range(2):
        async with client(sandbox, journal=tmp_path / "jobs.db") as c:
            await c.run(skin())
            await c.run(JOBS["text-to-image/youcam"][0])

    assert 3 == sandbox.ledger.requests["task"]


async def test_a_batch_finds_its_saved_files(tmp_path: Path) -> None:
    """A repeated batch finds all its files, JSON included, and buys nothing."""
    sandbox = vendor()
    files = []
    for _ in range(2):
        async with (
            client(sandbox, journal=tmp_path / "jobs.db") as c,
            c.batch([tones(), skin()], save_to=tmp_path / "out", ordered=True) as batch,
        ):
            files.append([outcome.files async for outcome in batch])

    assert files[0] == files[1]
    assert [1, 3] == [len(each) for each in files[0]]
    assert 2 == sandbox.ledger.requests["task"]


async def test_a_shared_file_outlives_the_first_task(tmp_path: Path) -> None:
    """A file that several jobs use is deleted with the last of them."""
    sandbox = vendor()
    async with client(sandbox) as c:
        first = await c.run(JOBS["generative-fill"][0])
        garment = FileId(sandbox.ledger.tasks[0].source)
        jobs = [
            Feature("cloth-v4", {"garment_category": "auto"}, src=face(n), ref=garment)
            for n in range(3)
        ]
        async with c.batch(jobs, save_to=tmp_path, delete=True) as batch:
            outcomes = [outcome async for outcome in batch]

    assert first.task_id
    assert [] == [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert 3 == sandbox.ledger.requests["delete"]


async def test_the_studio_class() -> None:
    """It has its price, its styles and its pictures."""
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(Studio(FACE, STYLE, output_count=3))
        styles = [template.id async for template in c.templates(Studio)]
        named = [template.id async for template in c.templates("ai-studio")]

    assert 3 == len(result.images)
    assert STYLE in styles
    assert styles == named
    assert 2 == sandbox.ledger.units_charged


def test_making_a_job_sends_nothing() -> None:
    """A job needs a client to run."""
    assert "Feature('skin-tone-analysis', {}, src=<" in repr(tones())
    assert isinstance(client(vendor()), Client)


# Tasks, results in memory, and pictures that are objects or converted.


@pytest.mark.parametrize("name", ["skin-analysis@v2.1", "2d-vto/ring", "text-to-image/youcam"])
async def test_tasks_of_any_feature(name: str) -> None:
    """`submit` has all pictures at once; `task` and `status` take a path and a version."""
    path, _, version = name.partition("@")
    where = {"version": version} if version else {}
    sandbox = vendor(durations={name: Durations.fixed(30.0)})
    async with client(sandbox) as c:
        task = await c.submit(JOBS[name][0])
        assert "running" == task.state
        status = await c.status(path, task.id, **where)
        assert ("running", None) == (status.status, status.results)
        elsewhere = c.task(path, task.id, **where)
        assert repr(task.id) in repr(elsewhere)
        results = await asyncio.gather(task, elsewhere.result(timeout=60))
        kinds = [event.kind async for event in task.events()]
        status = await c.status(path, task.id, **where)

    assert "success" == status.status
    assert isinstance(status.results, dict)
    assert [task.id] * 2 == [result.task_id for result in results]
    assert [JOBS[name][0]] * 2 == [result.job for result in results]
    uploads = [] if name.startswith("text") else ["uploaded"]
    assert ["queued", *uploads, "submitted"] == [
        kind for kind in kinds if kind not in {"polled", "finished"}
    ]
    assert 1 == sandbox.ledger.requests["task"]
    assert f"{len(results[0].outputs)} file" in repr(task)


@pytest.mark.parametrize("version", ["v1.0", "../v2.0", "", None])
async def test_wrong_paths_and_versions_are_refused(version: str) -> None:
    """They are refused before a request."""
    sandbox = vendor()
    async with client(sandbox) as c:
        with pytest.raises(ConfigurationError, match="version"):
            _ = c.task("skin-analysis", "id", version=version)
        with pytest.raises(ConfigurationError, match="version"):
            await c.status("skin-analysis", "id", version=version)
        with pytest.raises(ConfigurationError, match="not the path of a feature"):
            _ = c.task("../credit", "id")

    assert 0 == sandbox.ledger.requests.total()


async def test_a_status_at_another_path() -> None:
    """The vendor knows a task only at its own path and version."""
    async with client(vendor()) as c:
        task = await c.submit(skin())
        with pytest.raises(TaskExpired):
            await c.status("skin-analysis", task.id)
        _ = await task


@pytest.mark.parametrize("name", JOBS)
async def test_results_in_memory(name: str, tmp_path: Path) -> None:
    """`read` returns the files that `save` writes, except for the JSON of `raw`."""
    async with client(vendor()) as c:
        result = await c.run(JOBS[name][0])
        data = await result.read()
        single = [await output.read() for output in result.outputs]
        files = await result.save(tmp_path)

    saved = [file.read_bytes() for file in files if file.suffix != ".json"]
    assert saved == data == single
    assert len(result.outputs) == len(data)


async def test_results_in_memory_when_the_urls_have_expired() -> None:
    """New URLs are asked for at the feature's path and version."""
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(skin())
        await asyncio.sleep(3 * 3600)
        assert 2 == len(await result.read())


async def test_inputs_that_are_objects(tmp_path: Path) -> None:
    """Binary files, all kinds of bytes and Pillow images are inputs of any feature."""
    path = tmp_path / "me.jpg"
    path.write_bytes(FACE)
    image = Image.open(io.BytesIO(face(2)))
    sandbox = vendor()
    params = {**RING, "source_info": {"name": Placeholder("src")}}
    with path.open("rb") as file:
        job = Feature(
            "2d-vto/ring",
            params,
            src=file,
            ref=[bytearray(face(1)), image],
            refmsk=[memoryview(face(3)), io.BytesIO(face(4))],
        )
        assert "<file object>" in repr(job)
        async with client(sandbox) as c:
            result = await c.run(job)
            [saved] = await result.save(tmp_path / "out")
            with pytest.raises(JobRefused, match="nothing left to read"):
                await c.run(job)

    assert saved.name.startswith("me-")
    assert 5 == sandbox.ledger.requests["upload"]
    assert [] == sandbox.ledger.violations


async def test_a_video_from_a_file_object() -> None:
    """It may have the size of a video, and can be uploaded alone."""
    video = VIDEO[:24] + (20 << 20).to_bytes(4, "big") + b"mdat"
    video = video.ljust(24 + (20 << 20), b"\1")
    sandbox = vendor()
    async with client(sandbox) as c:
        await c.run(Feature("video-sr", {"dst_duration": 5}, src=io.BytesIO(video)))
        file = await c.upload(io.BytesIO(video))
        await c.run(Feature("video-sr", {"dst_duration": 5}, src=file))

    assert 2 == sandbox.ledger.requests["upload"]
    assert [] == sandbox.ledger.violations


def turned() -> bytes:
    """The face on its side, with EXIF data that says so."""
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(FACE)) as image:
        image.save(file, "JPEG", exif=exif)
    return file.getvalue()


async def test_inputs_are_made_to_fit() -> None:
    """With `fit` each picture that needs it is changed, and the outcome says which."""
    sandbox = vendor()
    job = ring()
    job = Feature("2d-vto/ring", job.params, **{**_inputs(job), "ref": [face(2), turned()]})  # type: ignore[arg-type]
    async with client(sandbox, fit=True) as c:
        result = await c.run(job)
        alone = await c.run(tones(src=turned()))

    assert ("ref[1]: turned upright",) == result.changes
    assert ("turned upright",) == alone.changes
    assert [] == sandbox.ledger.violations


def _inputs(job: Feature) -> dict[str, object]:
    found: dict[str, list[object]] = {}
    for each in job.inputs:
        found.setdefault(each.name, []).append(each.source)
    several = {each.name for each in job.inputs if each.index is not None}
    return {name: given if name in several else given[0] for name, given in found.items()}


async def test_a_video_is_not_made_to_fit() -> None:
    """`fit` leaves a video unchanged."""
    async with client(vendor(), fit=True) as c:
        result = await c.run(Feature("video-sr", {"dst_duration": 5}, src=VIDEO))

    assert () == result.changes


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.4])
async def test_a_resumed_feature_is_made_to_fit(
    tmp_path: Path, monkeypatch: MP, seconds: float
) -> None:
    """The next process converts the files in the same way, and creates the job."""
    paths = [tmp_path / f"{number}.jpg" for number in range(3)]
    for path, data in zip(paths, [turned(), face(1), turned()], strict=True):
        path.write_bytes(data)
    job = Feature(
        "2d-vto/ring",
        {
            "source_info": {"name": Placeholder("src")},
            "object_infos": [{"name": Placeholder("ref"), "parameter": {"ring_wearing_finger": 0}}],
        },
        src=paths[0],
        ref=paths[1:2],
        refmsk=paths[2:],
    )
    harness = JournalHarness(tmp_path, monkeypatch)
    await crashed(harness, job, seconds, fit=True)
    async with harness.client(fit=True) as c:
        [outcome] = await resumed(c)

    assert isinstance(outcome, Done)
    assert 1 == harness.sandbox.ledger.requests["task"]
    assert [] == harness.sandbox.ledger.violations


async def test_a_fitted_feature_is_not_resumed_without_fit(tmp_path: Path, monkeypatch: MP) -> None:
    """A process without `fit` has another picture, so it buys nothing."""
    path = tmp_path / "me.jpg"
    path.write_bytes(turned())
    harness = JournalHarness(tmp_path, monkeypatch)
    await crashed(harness, tones(src=path), 0.1, fit=True)
    async with harness.client() as c:
        [outcome] = await resumed(c)

    assert isinstance(outcome.error, SourceLost)
    assert 0 == harness.sandbox.ledger.requests["task"]


async def test_options_of_a_call(tmp_path: Path) -> None:
    """Saving, deleting and retries can be set for a single job of any feature."""
    sandbox = vendor(faults=Faults(engine_errors=1.0, engine_error_codes=("error_inference",)))
    async with client(sandbox, engine_retries=3) as c:
        with pytest.raises(TaskFailed):
            await c.run(skin(), engine_retries=0)
    assert 1 == sandbox.ledger.requests["task"]

    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(skin(), save_to=tmp_path, delete=True)
    assert [".png", ".png", ".json"] == [file.suffix for file in result.files]
    assert {"deleted": 1} == sandbox.ledger.tasks_by_state
