"""The template list (contract: Other calls)."""

import httpx

from perfect_async.sandbox._engine import picture_format
from tests.sandbox.customer import Customer, avatar, data_of, error_of, roomy

PATH = "/s2s/v2.0/task/template/ai-avatar"


async def test_seventy_one_templates_in_four_pages() -> None:
    """Without a page size there are twenty on a page."""
    async with Customer(roomy()) as customer:
        pages = [data_of(await customer.get(PATH))]
        while pages[-1]["next_token"] is not None:
            pages.append(data_of(await customer.get(PATH, starting_token=pages[-1]["next_token"])))
    templates = [template for page in pages for template in page["templates"]]

    assert [20, 20, 20, 11] == [len(page["templates"]) for page in pages]
    assert 71 == len({template["id"] for template in templates})
    assert {"male", "female"} == {template["id"].partition("_")[0] for template in templates}
    assert all(template["id"].isascii() for template in templates)
    assert {"id", "thumb", "title", "category_name"} == set(templates[0])


async def test_every_template_can_be_asked_for() -> None:
    """What the list names a creation takes."""
    async with Customer(roomy()) as customer:
        for template in data_of(await customer.get(PATH, page_size=3))["templates"]:
            await customer.task(avatar(1, template["id"]), "ai-avatar")


async def test_the_literal_null_is_refused() -> None:
    """`starting_token=null` is a 400 and a violation."""
    sandbox = roomy()
    async with Customer(sandbox) as customer:
        answer = await customer.get(PATH, starting_token="null")

    assert (400, "InvalidParameters") == error_of(answer)[:2]
    assert ["template: starting_token=null"] == sandbox.ledger.violations


async def test_thumbs_are_awkward_and_work() -> None:
    """Their URLs hold raw spaces and Chinese characters; encoded, they give a JPEG."""
    async with Customer(roomy()) as customer:
        templates = data_of(await customer.get(PATH))["templates"]
        thumbs = [template["thumb"] for template in templates]
        answers = [await customer.http.get(httpx.URL(thumb)) for thumb in thumbs[:5]]

    assert all(" " in thumb and not thumb.isascii() for thumb in thumbs)
    assert {200} == {answer.status_code for answer in answers}
    assert {"jpeg"} == {picture_format(answer.content) for answer in answers}


async def test_a_thumb_that_is_not_there() -> None:
    """An unknown thumbnail is a 404 of the storage."""
    async with Customer(roomy()) as customer:
        answer = await customer.http.get("https://results.sandbox.example/templates/none.jpg")

    assert (404, True) == (answer.status_code, "NoSuchKey" in answer.text)
