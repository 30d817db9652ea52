"""Tasks: creation, polling, results, expiry, deletion."""

import asyncio
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conformance.vendor import Vendor, assumed, clock, costs, error_code

pytestmark = clock

PICTURE = "https://pictures.example/a.jpg"


@pytest.mark.parametrize(
    ("feature", "body", "field"),
    [
        ("ai-smile", {"src_file_url": PICTURE}, "expression_type"),
        ("ai-avatar", {"src_file_url": PICTURE, "output_count": 1}, "template_id"),
    ],
)
async def test_a_required_field_is_named(
    vendor: Vendor, feature: str, body: dict[str, object], field: str
) -> None:
    """A creation without a required field is a 400 with the observed text."""
    answer = await vendor.post(f"/s2s/v2.0/task/{feature}", body)

    assert (400, "InvalidParameters") == (answer.status_code, error_code(answer))
    expected = f"{field} is required but wasn't included in your request."
    assert expected == answer.json()["error"]


async def test_an_unknown_expression_is_a_400(vendor: Vendor) -> None:
    """A value that is not accepted is a 400 that names the field."""
    body = {"src_file_url": PICTURE, "expression_type": "grin"}

    answer = await vendor.post("/s2s/v2.0/task/ai-smile", body)

    assert (400, "InvalidParameters") == (answer.status_code, error_code(answer))
    assert "expression_type" in answer.json()["error"]


async def test_null_is_not_absence(vendor: Vendor) -> None:
    """A null source beside a good one is a 400."""
    body = {
        "src_file_id": None,
        "src_file_url": PICTURE,
        "expression_type": "closed_mouth_smile",
    }

    answer = await vendor.post("/s2s/v2.0/task/ai-smile", body)

    assert 400 == answer.status_code
    assert error_code(answer) in {"InvalidParameters", "BadRequest"}


async def test_an_unknown_task_is_a_400(vendor: Vendor) -> None:
    """Any unknown id is a 400, with the code or with the published text alone."""
    answer = await vendor.poll("no-such-task")

    assert 400 == answer.status_code
    # The published example has no code, only the text.
    assert error_code(answer) == "InvalidTaskId" or "Invalid task ID" == answer.json()["error"]


async def test_an_unknown_task_cannot_be_deleted(vendor: Vendor) -> None:
    """An id of no task cannot be deleted."""
    answer = await vendor.post("/s2s/v2.0/task/delete", {"task_id": "no-such-task"})

    assert 400 == answer.status_code
    assert error_code(answer) in {"OperationNotSupport", "InvalidTaskId", "InvalidParameters"}


@costs
async def test_an_unknown_template_is_a_400(vendor: Vendor) -> None:
    """A template that is not in the list is `400 InvalidTemplate` and costs nothing."""
    before = await vendor.balance()
    body = {"src_file_id": await vendor.uploaded(), "template_id": "none", "output_count": 1}

    answer = await vendor.post("/s2s/v2.0/task/ai-avatar", body)

    assert (400, "InvalidTemplate") == (answer.status_code, error_code(answer))
    assert before == await vendor.balance()


@costs
async def test_a_smile_becomes_a_picture(vendor: Vendor) -> None:
    """From bytes to a picture on another host; one unit; no key is needed for the download."""
    before = await vendor.balance()

    data = await vendor.finished(await vendor.smile())
    picture = await vendor.http.get(data["results"]["url"])

    assert "success" == data["task_status"]
    assert data.get("error") is None
    assert 200 == picture.status_code
    assert picture.content.startswith((b"\xff\xd8\xff", b"\x89PNG"))
    assert ["7200"] == parse_qs(urlsplit(data["results"]["url"]).query)["X-Amz-Expires"]
    assert before - 1 == await vendor.balance()


@costs
async def test_avatars_become_pictures(vendor: Vendor) -> None:
    """The task has as many pictures as asked for, and costs a unit per four, rounded up."""
    before = await vendor.balance()
    listed = (await vendor.get("/s2s/v2.0/task/template/ai-avatar")).json()["data"]["templates"]
    body = {"src_file_url": PICTURE, "template_id": listed[0]["id"], "output_count": 5}

    data = await vendor.finished(await vendor.create("ai-avatar", body), "ai-avatar")
    urls = [entry["url"] for entry in data["results"]["output"]]

    assert 5 == len(set(urls))
    assert {200} == {(await vendor.http.get(url)).status_code for url in urls}
    assert before - 2 == await vendor.balance()


@costs
async def test_unknown_fields_are_ignored(vendor: Vendor) -> None:
    """A field that the vendor does not know changes nothing."""
    body = {
        "src_file_url": PICTURE,
        "expression_type": "closed_mouth_smile",
        "a_field_of_tomorrow": 1,
    }

    assert await vendor.create("ai-smile", body)


@costs
async def test_a_finished_task_gives_fresh_urls(vendor: Vendor) -> None:
    """After two hours the old URL is expired and the task gives a new one."""
    task = await vendor.smile()
    old = (await vendor.finished(task))["results"]["url"]
    await asyncio.sleep(7210)

    fresh = (await vendor.finished(task))["results"]["url"]

    assert 403 == (await vendor.http.get(old)).status_code
    assert 200 == (await vendor.http.get(fresh)).status_code


@costs
async def test_a_task_that_is_not_polled_is_lost(vendor: Vendor) -> None:
    """Its id becomes invalid, and its unit is not returned."""
    before = await vendor.balance()
    task = await vendor.smile()
    await asyncio.sleep(60)

    answer = await vendor.poll(task)

    assert 400 == answer.status_code
    assert error_code(answer) in {"InvalidTaskId", None}
    assert before - 1 == await vendor.balance()


@assumed
async def test_a_file_that_was_never_uploaded_is_refused(vendor: Vendor) -> None:
    """A task on a file without bytes is refused and costs nothing."""
    before = await vendor.balance()
    file = (await vendor.register("a.jpg"))[0]
    body = {"src_file_id": file["file_id"], "expression_type": "closed_mouth_smile"}

    answer = await vendor.post("/s2s/v2.0/task/ai-smile", body)

    assert (answer.status_code, error_code(answer)) in {
        (400, None),
        (404, "NotFound"),
        (500, "unknown_internal_error"),
    }
    assert before == await vendor.balance()


@costs
async def test_an_engine_failure_returns_the_unit(failing_vendor: Vendor) -> None:
    """HTTP 200, `task_status` error, a code, no results, and the balance of before."""
    vendor = failing_vendor
    before = await vendor.balance()

    data = await vendor.finished(await vendor.smile())

    assert ("error", "error_no_face") == (data["task_status"], data["error"])
    assert data.get("results") is None
    assert before == await vendor.balance()


@costs
async def test_deletion_removes_the_files(vendor: Vendor) -> None:
    """Outputs and the input file are removed at once, and the units stay spent."""
    source = await vendor.uploaded()
    task = await vendor.smile(source)
    running = await vendor.post("/s2s/v2.0/task/delete", {"task_id": task})
    url = (await vendor.finished(task))["results"]["url"]
    before = await vendor.balance()

    deleted = await vendor.post("/s2s/v2.0/task/delete", {"task_id": task})

    assert (400, "OperationInvalid") == (running.status_code, error_code(running))
    assert {"status": 200} == deleted.json()
    assert 404 == (await vendor.http.get(url)).status_code
    body = {"src_file_id": source, "expression_type": "closed_mouth_smile"}
    assert (await vendor.post("/s2s/v2.0/task/ai-smile", body)).status_code in {400, 404, 500}
    assert before == await vendor.balance()
