"""The parameters of each feature, and the avatar templates (contract: The flow of one picture)."""

import httpx
import pytest

from perfect_async.sandbox._engine import picture_format
from tests.sandbox.customer import (
    SMILE,
    TEETH,
    Customer,
    avatar,
    data_of,
    error_of,
    unlimited_sandbox,
)

TEMPLATES = "/s2s/v2.0/task/template/ai-avatar"
URL = "https://pictures.example/a.jpg"


@pytest.mark.parametrize(
    ("feature", "field"),
    [
        ("ai-smile", "expression_type"),
        ("ai-avatar", "template_id"),
        ("ai-avatar", "output_count"),
    ],
)
@pytest.mark.parametrize("null", [True, False])
async def test_a_required_field_is_named(feature: str, field: str, null: bool) -> None:
    """A missing field and a null have the same answer, cost nothing, and are violations."""
    whole = {**avatar(), **SMILE}
    body = {**whole, field: None} if null else {k: v for k, v in whole.items() if k != field}
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        answer = await customer.create(body, feature)

    text = f"{field} is required but wasn't included in your request."
    assert (400, "InvalidParameters", text) == error_of(answer)
    assert [f"task: required field {field} is missing or null"] == sandbox.ledger.violations
    assert 0 == sandbox.ledger.units_charged


@pytest.mark.parametrize(
    ("feature", "field", "value"),
    [
        ("ai-smile", "expression_type", "grin"),
        ("ai-smile", "expression_type", 3),
        ("ai-smile", "expression_type", ""),
        ("ai-smile", "src_file_url", "ftp://pictures.example/a.jpg"),
        ("ai-smile", "src_file_url", 7),
        ("ai-avatar", "output_count", 0),
        ("ai-avatar", "output_count", 201),
        ("ai-avatar", "output_count", "4"),
        ("ai-avatar", "output_count", 4.0),
        ("ai-avatar", "output_count", True),
        ("ai-avatar", "template_id", 1),
    ],
)
async def test_a_wrong_value_is_named(feature: str, field: str, value: object) -> None:
    """A value that is not accepted is named and is a violation."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        answer = await customer.create({**avatar(), **SMILE, field: value}, feature)

    text = f"{field} is not one of the accepted values."
    assert (400, "InvalidParameters", text) == error_of(answer)
    assert [f"task: {field} has a wrong value"] == sandbox.ledger.violations


@pytest.mark.parametrize(
    ("sources", "violation"),
    [
        ({}, "required field src_file_id is missing or null"),
        ({"src_file_id": None}, "src_file_id is null"),
        ({"src_file_url": None}, "src_file_url is null"),
        ({"src_file_id": None, "src_file_url": URL}, "src_file_id is null"),
        ({"src_file_id": "x", "src_file_url": URL}, "both src_file_id and src_file_url are given"),
    ],
)
async def test_exactly_one_source_is_needed(sources: dict[str, object], violation: str) -> None:
    """No source, both sources, and null beside a source are a 400 each."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        answer = await customer.create({**sources, "expression_type": TEETH})

    assert (400, "InvalidParameters") == error_of(answer)[:2]
    assert [f"task: {violation}"] == sandbox.ledger.violations


@pytest.mark.parametrize("expression", ["smile_with_teeth_visible", "closed_mouth_smile"])
async def test_both_expressions_are_accepted(expression: str) -> None:
    """Both expressions are accepted."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        await customer.task({"src_file_url": URL, "expression_type": expression})

    assert {"expression_type": expression} == sandbox.ledger.tasks[0].params
    assert URL == sandbox.ledger.tasks[0].source
    assert sandbox.ledger.tasks[0].file_name is None


async def test_unknown_fields_are_ignored() -> None:
    """Fields that the vendor does not know change nothing, null or not."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        await customer.task({**SMILE, "mood": "good", "tone": None})

    assert [] == sandbox.ledger.violations


@pytest.mark.parametrize(
    ("count", "units"), [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (199, 50), (200, 50)]
)
async def test_avatars_cost_a_unit_per_four(count: int, units: int) -> None:
    """The price is one unit per four pictures, rounded up."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        await customer.task(avatar(count), "ai-avatar")

    assert units == sandbox.ledger.units_charged == sandbox.ledger.tasks[0].units


async def test_an_unknown_template_is_not_a_violation() -> None:
    """`InvalidTemplate` is the user's mistake and not a violation."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        answer = await customer.create(avatar(template="male_nowhere"), "ai-avatar")

    assert (400, "InvalidTemplate") == error_of(answer)[:2]
    assert [] == sandbox.ledger.violations


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff"])
async def test_a_body_must_be_an_object(body: bytes) -> None:
    """Any body that is not a JSON object is a BadRequest."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        answer = await customer.http.post(
            "/s2s/v2.0/task/ai-smile", content=body, headers=customer.key
        )

    assert (400, "BadRequest") == error_of(answer)[:2]
    assert ["task: body is no JSON object"] == sandbox.ledger.violations


async def test_an_unknown_feature_is_a_404() -> None:
    """Features of the vendor that the sandbox does not have are unknown paths."""
    async with Customer(unlimited_sandbox()) as customer:
        assert 404 == (await customer.create(SMILE, "hair-color")).status_code


async def test_features_have_their_own_durations() -> None:
    """A smile takes seconds, an avatar longer."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        await customer.task()
        await customer.task(avatar(), "ai-avatar")
        poll = data_of(await customer.poll(await customer.task()))

    assert [1.0, 8.0, 1.0] == [task.duration for task in sandbox.ledger.tasks]
    assert "running" == poll["task_status"]


async def test_there_are_71_templates_in_four_pages() -> None:
    """Without a page size there are twenty on a page."""
    async with Customer(unlimited_sandbox()) as customer:
        pages = [data_of(await customer.get(TEMPLATES))]
        while pages[-1]["next_token"] is not None:
            pages.append(
                data_of(await customer.get(TEMPLATES, starting_token=pages[-1]["next_token"]))
            )
    templates = [template for page in pages for template in page["templates"]]

    assert [20, 20, 20, 11] == [len(page["templates"]) for page in pages]
    assert 71 == len({template["id"] for template in templates})
    assert {"male", "female"} == {template["id"].partition("_")[0] for template in templates}
    assert all(template["id"].isascii() for template in templates)
    assert {"id", "thumb", "title", "category_name"} == set(templates[0])


async def test_every_template_is_accepted() -> None:
    """A creation accepts every template of the list."""
    async with Customer(unlimited_sandbox()) as customer:
        for template in data_of(await customer.get(TEMPLATES, page_size=3))["templates"]:
            await customer.task(avatar(1, template["id"]), "ai-avatar")


async def test_the_literal_null_is_refused() -> None:
    """`starting_token=null` is a 400 and a violation."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        answer = await customer.get(TEMPLATES, starting_token="null")

    assert (400, "InvalidParameters") == error_of(answer)[:2]
    assert ["template: starting_token=null"] == sandbox.ledger.violations


async def test_thumbs_have_unencoded_urls() -> None:
    """Their URLs have raw spaces and Chinese characters; encoded, they give a JPEG."""
    async with Customer(unlimited_sandbox()) as customer:
        templates = data_of(await customer.get(TEMPLATES))["templates"]
        thumbs = [template["thumb"] for template in templates]
        answers = [await customer.http.get(httpx.URL(thumb)) for thumb in thumbs[:5]]

    assert all(" " in thumb and not thumb.isascii() for thumb in thumbs)
    assert {200} == {answer.status_code for answer in answers}
    assert {"jpeg"} == {picture_format(answer.content) for answer in answers}


async def test_an_unknown_thumb_is_a_404() -> None:
    """An unknown thumbnail is a 404 of the storage."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.http.get("https://results.sandbox.example/templates/none.jpg")

    assert (404, True) == (answer.status_code, "NoSuchKey" in answer.text)


async def test_the_contracts_templates_behave_as_documented() -> None:
    """`female_manga_mood` is accepted; `male_manga_mood` is an `InvalidTemplate`."""
    async with Customer(unlimited_sandbox()) as customer:
        good = await customer.create(avatar(1, "female_manga_mood"), "ai-avatar")
        wrong = await customer.create(avatar(1, "male_manga_mood"), "ai-avatar")

    assert 200 == good.status_code
    assert (400, "InvalidTemplate") == error_of(wrong)[:2]
