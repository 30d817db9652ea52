"""Keys, limits, templates, units and prices."""

import asyncio
import base64
import json

import pytest

from tests.conformance.vendor import Vendor, assumed, clock, costs, error_code, rude

pytestmark = clock

CREDIT = "/s2s/v1.0/client/credit"
HISTORY = "/s2s/v1.0/client/credit/history"
AUTH = "/s2s/v1.0/client/auth"
COST = "/s2s/v2.0/credit/feature-cost"
TEMPLATES = "/s2s/v2.0/task/template/ai-avatar"


async def test_an_unknown_key_is_a_401(vendor: Vendor) -> None:
    """An unknown key is a 401 with one of the four codes."""
    answer = await vendor.call("GET", CREDIT, key="sk-not-a-key")

    assert 401 == answer.status_code
    assert error_code(answer) in {
        "InvalidApiKey",
        "InactiveApiKey",
        "ExpiredApiKey",
        "InvalidAccessToken",
    }


async def test_a_missing_key_is_a_401(vendor: Vendor) -> None:
    """A call without an Authorization header is a `401 InvalidApiKey`."""
    answer = await vendor.http.get(CREDIT)

    assert (401, "InvalidApiKey") == (answer.status_code, error_code(answer))


async def test_a_corrupt_id_token_is_refused(vendor: Vendor) -> None:
    """An id token that is not encrypted for the client gives no access token."""
    body = {"client_id": "nobody", "id_token": "corrupt"}

    answer = await vendor.http.post(AUTH, json=body)

    assert (401, "InvalidAuthentication") == (answer.status_code, error_code(answer))


@assumed
async def test_an_access_token_is_accepted_on_v2(vendor: Vendor) -> None:
    """An access token is accepted as Bearer on V2 paths, too."""
    token = base64.b64encode(bytes(128)).decode()
    body = {"client_id": vendor.key, "id_token": token}

    answer = (await vendor.http.post(AUTH, json=body)).json()

    key = answer["result"]["access_token"]
    assert 200 == answer["status"]
    assert 200 == (await vendor.call("GET", TEMPLATES, key=key)).status_code


async def test_an_unknown_path_is_a_404(vendor: Vendor) -> None:
    """A path that does not exist is a `404 NotFound`."""
    answer = await vendor.get("/s2s/v2.0/no-such-thing")

    assert (404, "NotFound") == (answer.status_code, error_code(answer))


async def test_a_body_nested_too_deeply_is_a_400(vendor: Vendor) -> None:
    """Such a body is a 400, like other bodies that are not a JSON object."""
    headers = {"authorization": f"Bearer {vendor.key}", "content-type": "application/json"}

    answer = await vendor.http.post("/s2s/v2.0/file", headers=headers, content=b"[" * 100_000)

    assert 400 == answer.status_code


@pytest.mark.parametrize("path", [CREDIT, TEMPLATES, "/s2s/v2.0/task/ai-smile/nobody"])
async def test_every_answer_has_a_request_id(vendor: Vendor, path: str) -> None:
    """`x-request-id` is an integer of at most 60 bits as text, on errors too."""
    answer = await vendor.get(path)

    assert 0 <= int(answer.headers["x-request-id"]) < 2**60


async def test_templates_come_in_pages(vendor: Vendor) -> None:
    """Following the tokens gives every template once; all ids are of men or women."""
    ids: list[str] = []
    params: dict[str, str | int] = {"page_size": 20}
    while True:
        data = (await vendor.get(TEMPLATES, **params)).json()["data"]
        ids += [template["id"] for template in data["templates"]]
        assert all({"id", "thumb", "title"} <= set(entry) for entry in data["templates"])
        if data["next_token"] is None:
            break
        params["starting_token"] = data["next_token"]

    assert 20 < len(ids) == len(set(ids))
    assert {"male", "female"} == {name.partition("_")[0] for name in ids}
    assert "female_manga_mood" in ids
    assert "male_manga_mood" not in ids


async def test_the_page_size_is_kept(vendor: Vendor) -> None:
    """A page holds as many templates as asked for."""
    data = (await vendor.get(TEMPLATES, page_size=3)).json()["data"]

    assert 3 == len(data["templates"])


async def test_the_literal_null_is_not_a_token(vendor: Vendor) -> None:
    """`starting_token=null` is a 400."""
    assert 400 == (await vendor.get(TEMPLATES, starting_token="null")).status_code


async def test_the_credit_is_a_list_of_grants(vendor: Vendor) -> None:
    """A grant has an id, a type, a decimal amount and an expiry in milliseconds."""
    body = (await vendor.get(CREDIT)).json()

    assert 200 == body["status"]
    for grant in body["results"]:
        assert isinstance(grant["id"], int)
        assert grant["type"] in {"ApiSubsToken", "ApiPaygToken"}
        assert grant["amount_dec"] >= 0
        assert grant["expiry"] > 1e12


@costs
async def test_ids_are_whole_numbers_beyond_floats(vendor: Vendor) -> None:
    """Ids above 2**53 are JSON integers."""
    text = (await vendor.get(CREDIT)).text

    assert all(grant["id"] > 2**53 for grant in json.loads(text)["results"])


async def test_the_history_has_times_and_actions(vendor: Vendor) -> None:
    """A row has a time in milliseconds, an action, and parts per grant."""
    result = (await vendor.get(HISTORY, page_size=30)).json()["result"]

    assert "next_token" in result
    for line in result["history"]:
        assert line["timestamp"] > 1e12
        assert {"id", "action", "target_id", "info"} <= set(line)


@costs
async def test_the_history_names_the_task(vendor: Vendor) -> None:
    """A charge is in the history with its task id."""
    task = await vendor.smile()
    # Some vendors charge only a success.
    await vendor.finished(task)

    line = (await vendor.get(HISTORY, page_size=1)).json()["result"]["history"][0]

    assert task == line["target_id"]
    assert 1 == abs(sum(part["amount_dec"] for part in line["info"]["credits"]))


async def test_the_price_list_has_smiles_and_avatars(vendor: Vendor) -> None:
    """A smile costs 1 per picture, avatars cost 1 per 4."""
    prices: dict[str, object] = {}
    params: dict[str, str | int] = {"page_size": 20}
    while True:
        result = (await vendor.get(COST, **params)).json()["result"]
        for line in result["skus"]:
            name = line["run_task_url"].rstrip("/").rpartition("/")[2]
            prices[name] = (line["amount"], line["unit"], line.get("proc_unit", 1))
        if result["next_token"] is None:
            break
        params["starting_token"] = result["next_token"]

    assert (1, "result_image", 1) == prices["ai-smile"]
    assert (1, "result_image", 4) == prices["ai-avatar"]


@rude
async def test_too_many_requests_are_a_429(vendor: Vendor) -> None:
    """Above five per second the answer is a 429 with its envelope."""
    vendor.pace = 0.0
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(vendor.get(CREDIT)) for _ in range(12)]
    answers = [call.result() for call in calls]
    refused = [answer for answer in answers if answer.status_code != 200]

    assert 7 == len(refused)
    assert all({"status": 429, "error": "Too many requests"} == a.json() for a in refused)
    assert {429} == {answer.status_code for answer in refused}
