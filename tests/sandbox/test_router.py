"""Which call is meant, and who may make it."""

import httpx
import pytest

from perfect_async.sandbox import Sandbox
from perfect_async.sandbox._router import Route, route_api
from tests.sandbox.customer import API, SMILE, Customer, error_of, roomy

CREDIT = "/s2s/v1.0/client/credit"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/s2s/v2.0/file", Route("file")),
        ("POST", "/s2s/v2.0/file/", Route("file")),
        ("POST", "/s2s/v2.0/file/ai-smile", Route("file", ("ai-smile",))),
        ("POST", "/s2s/v2.0/file/other", Route("unknown")),
        ("POST", "/s2s/v2.0/task/ai-avatar", Route("task", ("ai-avatar",))),
        ("POST", "/s2s/v2.0/task/delete", Route("delete")),
        ("POST", "/s2s/v2.0/task/other", Route("unknown")),
        ("GET", "/s2s/v2.0/task/ai-smile/a%2Fb%2B", Route("poll", ("ai-smile", "a/b+"))),
        ("GET", "/s2s/v2.0/task/ai-smile/a/b", Route("unknown")),
        ("GET", "/s2s/v2.0/task/ai-smile", Route("unknown")),
        ("GET", "/s2s/v2.0/task/template/ai-avatar", Route("template")),
        ("GET", "/s2s/v2.0/task/template/ai-smile", Route("unknown")),
        ("GET", "/s2s/v1.0/client/credit", Route("credit")),
        ("GET", "/s2s/v2.0/client/credit", Route("unknown")),
        ("GET", "/s2s/v1.0/client/credit/history", Route("history")),
        ("GET", "/s2s/v2.0/credit/feature-cost", Route("feature_cost")),
        ("DELETE", "/s2s/v2.0/task/ai-smile/a", Route("unknown")),
        ("GET", "/", Route("unknown")),
    ],
)
def test_routes(method: str, path: str, expected: Route) -> None:
    """Every path of the contract, and nothing else."""
    assert expected == route_api(method, path, universal_path=True)


def test_the_universal_path_may_be_missing() -> None:
    """Before v1.14 there were only the features' own paths."""
    assert Route("unknown") == route_api("POST", "/s2s/v2.0/file", universal_path=False)


async def test_an_unknown_path() -> None:
    """A 404 with the envelope, and a violation that names it."""
    sandbox = roomy()
    async with Customer(sandbox) as customer:
        answer = await customer.get("/s2s/v2.0/tasks")

    assert (404, "NotFound", "Not Found") == error_of(answer)
    assert ["unknown: unknown path GET /s2s/v2.0/tasks"] == sandbox.ledger.violations


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic a-key", "Bearer a b", "a-key"])
async def test_no_proper_key(value: str) -> None:
    """Without a Bearer key every API request is a `401 InvalidApiKey`."""
    async with Customer(Sandbox()) as customer:
        answer = await customer.http.get(CREDIT, headers={"authorization": value} if value else {})

    assert (401, "InvalidApiKey") == error_of(answer)[:2]


async def test_known_keys_only() -> None:
    """With `api_keys` all others are a 401, which spends no window and executes nothing."""
    sandbox = Sandbox(api_keys=["right"], per_second=1)
    async with Customer(sandbox, "right") as right, Customer(sandbox, "wrong") as wrong:
        answers = [await wrong.create(SMILE) for _ in range(3)]
        assert 200 == (await right.get(CREDIT)).status_code

    assert {(401, "InvalidApiKey")} == {error_of(answer)[:2] for answer in answers}
    assert 0 == sandbox.ledger.units_charged


async def test_any_key_by_default() -> None:
    """Without `api_keys` every well-formed key passes."""
    async with Customer(Sandbox(), "whatever-0!") as customer:
        assert 200 == (await customer.get(CREDIT)).status_code


async def test_request_ids() -> None:
    """Every answer has an `x-request-id` of 60 bits, errors and storage included."""
    sandbox = roomy()
    async with Customer(sandbox) as customer:
        entry = await customer.file()
        answers = [
            await customer.get(CREDIT),
            await customer.get("/nowhere"),
            await customer.http.get(CREDIT),
            await customer.put(entry, b""),
        ]
    ids = [int(answer.headers["x-request-id"]) for answer in answers]

    assert 4 == len(set(ids))
    assert all(2**59 <= number < 2**60 for number in ids)


@pytest.mark.parametrize("host", [API, "https://yce-api-01.perfectcorp.com", "http://localhost"])
async def test_the_api_answers_on_any_host(host: str) -> None:
    """Only the two storage hosts are special."""
    async with Customer(roomy()) as customer:
        answer = await customer.http.get(host + CREDIT, headers=customer.key)

    assert 200 == answer.status_code


async def test_json_is_announced() -> None:
    """API answers say what they are."""
    async with Customer(roomy()) as customer:
        answer: httpx.Response = await customer.get(CREDIT)

    assert "application/json; charset=utf-8" == answer.headers["content-type"]
