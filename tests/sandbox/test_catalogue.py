"""Untyped features: their inputs, parameters, prices and results."""

import asyncio
import io
import zipfile
from typing import Any

import pytest

from perfect_async.sandbox._catalogue import FEATURES
from tests.sandbox.customer import FACE, Customer, data_of, error_of, unlimited_sandbox

URL = "https://pictures.example/{}.jpg".format
SRC: dict[str, object] = {"src_file_url": URL(1)}
ACNE = ["acne", "pore", "wrinkle", "radiance", "texture"]
RING: dict[str, object] = {
    **SRC,
    "ref_file_urls": [URL(2), URL(3)],
    "source_info": {"name": URL(1)},
    "object_infos": [{"name": URL(3), "parameter": {"ring_wearing_finger": 4}}],
}
WHOLE: dict[str, dict[str, object]] = {
    "skin-analysis": {**SRC, "dst_actions": ACNE[:2]},
    "skin-tone-analysis": SRC,
    "cloth-v4": {**SRC, "ref_file_url": URL(2), "garment_category": "auto"},
    "2d-vto/ring": RING,
    "generative-fill": {**SRC, "msk_file_url": URL(2)},
    "text-to-image/youcam": {"model": "youcam-image-v2", "prompt": "a fox"},
    "video-sr": {**SRC, "dst_duration": 5},
}


async def results_of(customer: Customer, body: object, feature: str) -> Any:  # noqa: ANN401 - JSON
    """Create a task, wait for its end, and return its results."""
    task = await customer.task(body, feature)
    return (await end_of(customer, task, feature))["results"]


async def end_of(customer: Customer, task: str, feature: str) -> dict[str, Any]:
    """Keep a task alive until its end, and return its last status."""
    while True:
        await asyncio.sleep(5)
        data = data_of(await customer.poll(task, feature))
        if data["task_status"] != "running":
            return data


@pytest.mark.parametrize(
    ("feature", "changes", "units"),
    [
        ("skin-analysis", {"dst_actions": ACNE[:4]}, 9),
        ("skin-analysis", {"dst_actions": ACNE}, 12),
        ("skin-analysis", {"dst_actions": [f"hd_{each}" for each in ACNE]}, 16),
        ("skin-tone-analysis", {}, 20),
        ("cloth-v4", {}, 2),
        ("2d-vto/ring", {}, 1),
        ("2d-vto/ring", {"object_infos": RING["object_infos"] * 2}, 2),  # type: ignore[operator]
        ("generative-fill", {}, 1),
        ("text-to-image/youcam", {}, 1),
        ("video-sr", {}, 3),
        ("video-sr", {"dst_duration": 4.0}, 2),
    ],
)
async def test_features_are_charged_by_their_parameters(
    feature: str, changes: dict[str, object], units: int
) -> None:
    """The price depends on the concerns, the rings or the seconds."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        await customer.task({**WHOLE[feature], **changes}, feature)

    assert units == sandbox.ledger.units_charged
    assert [] == sandbox.ledger.violations


@pytest.mark.parametrize(
    ("feature", "field"),
    [
        ("skin-analysis", "dst_actions"),
        ("cloth-v4", "garment_category"),
        ("cloth-v4", "ref_file_url"),
        ("2d-vto/ring", "source_info"),
        ("2d-vto/ring", "object_infos"),
        ("2d-vto/ring", "ref_file_urls"),
        ("generative-fill", "msk_file_url"),
        ("text-to-image/youcam", "model"),
        ("text-to-image/youcam", "prompt"),
        ("video-sr", "dst_duration"),
        ("video-sr", "src_file_url"),
    ],
)
async def test_a_missing_field_is_named(feature: str, field: str) -> None:
    """The error names a missing field, or the id of a missing input, and costs nothing."""
    sandbox = unlimited_sandbox()
    body = {name: value for name, value in WHOLE[feature].items() if name != field}
    async with Customer(sandbox) as customer:
        answer = await customer.create(body, feature)

    text = f"{field.replace('url', 'id')} is required but wasn't included in your request."
    assert (400, "InvalidParameters", text) == error_of(answer)
    assert 0 == sandbox.ledger.units_charged


@pytest.mark.parametrize(
    ("feature", "field", "value"),
    [
        ("skin-analysis", "dst_actions", []),
        ("skin-analysis", "dst_actions", "acne"),
        ("skin-analysis", "dst_actions", ["acne", "hd_pore"]),
        ("skin-analysis", "dst_actions", ["acne"] * 16),
        ("skin-analysis", "format", "xml"),
        ("skin-tone-analysis", "face_angle_strictness_level", "none"),
        ("cloth-v4", "garment_category", "hat"),
        ("2d-vto/ring", "ref_file_urls", []),
        ("2d-vto/ring", "ref_file_urls", "x"),
        ("2d-vto/ring", "ref_file_urls", ["ftp://x"]),
        ("text-to-image/youcam", "model", "other"),
        ("text-to-image/youcam", "prompt", "x" * 801),
        ("video-sr", "dst_duration", 0),
        ("video-sr", "dst_duration", 61),
        ("video-sr", "dst_duration", True),
        ("video-sr", "dst_duration", "5"),
    ],
)
async def test_a_wrong_value_is_named(feature: str, field: str, value: object) -> None:
    """The error names a field whose value is not accepted."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.create({**WHOLE[feature], field: value}, feature)

    assert (400, f"{field} is not one of the accepted values.") == error_of(answer)[::2]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"source_info": {"name": URL(9)}}, "name"),
        ({"source_info": {}}, "name"),
        ({"source_info": {"name": URL(1), "mask_name": URL(1)}}, "mask_name"),
        ({"object_infos": [7]}, "`0`"),
        ({"object_infos": [{"name": URL(1)}]}, "name"),
        ({"object_infos": [{"name": URL(2)}]}, "ring_wearing_finger"),
    ],
)
async def test_a_nested_id_must_repeat_an_input(changes: dict[str, object], named: str) -> None:
    """An id inside the parameters must equal that of the right input."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.create({**RING, **changes}, "2d-vto/ring")

    assert (400, f"{named} is not one of the accepted values.") == error_of(answer)[::2]


async def test_a_wrong_member_of_a_list_has_its_index() -> None:
    """The error of a value in an array names its index."""
    async with Customer(unlimited_sandbox()) as customer:
        body = {**WHOLE["skin-analysis"], "dst_actions": ["acne", 7]}
        answer = await customer.create(body, "skin-analysis")

    assert "`1` is not one of the accepted values." == error_of(answer)[2]


async def test_a_template_replaces_a_reference() -> None:
    """Clothes may come from a template."""
    async with Customer(unlimited_sandbox()) as customer:
        body = {**SRC, "template_id": "t", "garment_category": "auto"}
        assert await customer.task(body, "cloth-v4")


async def test_results_have_different_shapes() -> None:
    """Results are a bare URL, an object with a URL, scores and masks, or have no URL."""
    async with Customer(unlimited_sandbox()) as customer:
        bare = await results_of(customer, WHOLE["skin-analysis"], "skin-analysis")
        archive = (await customer.http.get(bare)).content
        one = await results_of(customer, WHOLE["cloth-v4"], "cloth-v4")
        tones = await results_of(customer, WHOLE["skin-tone-analysis"], "skin-tone-analysis")
        body = {**WHOLE["skin-analysis"], "format": "json"}
        scores = await results_of(customer, body, "skin-analysis")
        mask = (await customer.http.get(scores["output"][0]["mask_urls"][0])).content
        film = await results_of(customer, WHOLE["video-sr"], "video-sr")

    assert zipfile.is_zipfile(io.BytesIO(archive))
    assert ["url"] == list(one)
    assert ["color"] == list(tones)
    assert ["acne", "pore"] == [entry["type"] for entry in scores["output"]]
    assert mask.startswith(b"\x89PNG")
    assert ".mp4?" in film["url"]


async def test_a_version_has_separate_tasks() -> None:
    """A task of v2.1 is polled at v2.1."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        created = await customer.post("/s2s/v2.1/task/skin-analysis", WHOLE["skin-analysis"])
        task = data_of(created)["task_id"]
        assert "InvalidTaskId" == error_of(await customer.poll(task, "skin-analysis"))[1]
        assert data_of(await customer.get(f"/s2s/v2.1/task/skin-analysis/{task}"))
        assert 404 == (await customer.post("/s2s/v2.1/task/ai-smile", {})).status_code

    assert "skin-analysis@v2.1" == sandbox.ledger.tasks[0].feature


async def test_the_engine_checks_every_input() -> None:
    """A mask that is no picture fails the task, and a picture is no video."""
    async with Customer(unlimited_sandbox()) as customer:
        files = [await customer.uploaded(), await customer.uploaded(b"\xff\xd9none")]
        body = {"src_file_id": files[0], "msk_file_id": files[1]}
        task = await customer.task(body, "generative-fill")
        ends = [await end_of(customer, task, "generative-fill")]
        film = await customer.task({"src_file_id": files[0], "dst_duration": 1}, "video-sr")
        ends.append(await end_of(customer, film, "video-sr"))

    assert ["error_decode_image", "error_decode_video"] == [end["error"] for end in ends]


async def test_deleting_removes_every_input() -> None:
    """All input files of a deleted task are deleted."""
    async with Customer(unlimited_sandbox()) as customer:
        files = [await customer.uploaded(), await customer.uploaded(FACE, "mask.jpg")]
        body = {"src_file_id": files[0], "msk_file_id": files[1]}
        task = await customer.task(body, "generative-fill")
        for _ in range(8):
            await asyncio.sleep(5)
            await customer.poll(task, "generative-fill")
        assert 200 == (await customer.delete(task)).status_code
        again = [
            await customer.create({**SRC, "msk_file_id": files[1]}, "generative-fill"),
            await customer.create({**SRC, "msk_file_id": files[0]}, "generative-fill"),
        ]

    assert [400, 400] == [answer.status_code for answer in again]


def test_the_sandbox_has_these_features() -> None:
    """The sandbox has three typed features and these."""
    assert {*WHOLE, "skin-analysis@v2.1", "ai-smile", "ai-avatar", "ai-studio"} == set(FEATURES)
