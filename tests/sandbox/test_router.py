"""The routes of requests, and the check of their keys."""

import json
import operator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async.sandbox import Sandbox
from perfect_async.sandbox._http import Request
from perfect_async.sandbox._router import Route, route_api
from tests.sandbox.customer import API, SMILE, Customer, error_of, unlimited_sandbox

CREDIT = "/s2s/v1.0/client/credit"
AUTH = "/s2s/v1.0/client/auth"
DELETE = "/s2s/v2.0/task/delete"


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
def test_every_path_has_its_route(method: str, path: str, expected: Route) -> None:
    """Every path of the contract has a route, and no other path."""
    assert expected == route_api(method, path, universal_path=True)


def test_the_universal_path_may_be_missing() -> None:
    """Before v1.14 only the paths of features existed."""
    assert Route("unknown") == route_api("POST", "/s2s/v2.0/file", universal_path=False)


async def test_an_unknown_path_is_a_404() -> None:
    """The answer is a 404 with the envelope, and a violation names the path."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        answer = await customer.get("/s2s/v2.0/tasks")

    assert (404, "NotFound", "Not Found") == error_of(answer)
    assert ["unknown: unknown path GET /s2s/v2.0/tasks"] == sandbox.ledger.violations


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Basic a-key", "Bearer a b", "a-key"])
async def test_a_malformed_key_is_a_401(value: str) -> None:
    """Without a Bearer key every API request is a `401 InvalidApiKey`."""
    async with Customer(Sandbox()) as customer:
        answer = await customer.http.get(CREDIT, headers={"authorization": value} if value else {})

    assert (401, "InvalidApiKey") == error_of(answer)[:2]


async def test_other_keys_are_a_401() -> None:
    """With `api_keys`, other keys are a 401 that is not counted and executes nothing."""
    sandbox = Sandbox(api_keys=["right"], per_second=1)
    async with Customer(sandbox, "right") as right, Customer(sandbox, "wrong") as wrong:
        answers = [await wrong.create(SMILE) for _ in range(3)]
        assert 200 == (await right.get(CREDIT)).status_code

    assert {(401, "InvalidApiKey")} == {error_of(answer)[:2] for answer in answers}
    assert 0 == sandbox.ledger.units_charged


async def test_any_key_is_accepted_by_default() -> None:
    """Without `api_keys` every well-formed key is accepted."""
    async with Customer(Sandbox(), "whatever-0!") as customer:
        assert 200 == (await customer.get(CREDIT)).status_code


async def test_every_answer_has_a_request_id() -> None:
    """Every answer has an `x-request-id` of 60 bits, also errors and answers of the storage."""
    sandbox = unlimited_sandbox()
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
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.http.get(host + CREDIT, headers=customer.key)

    assert 200 == answer.status_code


async def test_answers_have_a_content_type() -> None:
    """API answers have the content type of JSON."""
    async with Customer(unlimited_sandbox()) as customer:
        answer: httpx.Response = await customer.get(CREDIT)

    assert "application/json; charset=utf-8" == answer.headers["content-type"]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b'{"files":' * 100_000,
        b'{"files": [{"file_size": ' + b"9" * 5000 + b"}]}",
        b"\xff\xfe\x00",
        b"",
        b"null",
        b"NaN",
    ],
)
@pytest.mark.parametrize("path", ["/s2s/v2.0/file", "/s2s/v2.0/task/ai-smile", AUTH, DELETE])
async def test_a_body_that_is_no_object_is_a_400(path: str, body: bytes) -> None:
    """JSON that is broken, too deep or not an object is a 400, not an exception."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.http.post(path, content=body, headers=customer.key)

    assert (400, "BadRequest") == error_of(answer)[:2]


async def test_a_lone_surrogate_is_answered() -> None:
    """Text that is not valid Unicode is answered."""
    body = b'{"files":[{"content_type":"image/jpeg","file_name":"\\ud800","file_size":9}]}'
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.http.post("/s2s/v2.0/file", content=body, headers=customer.key)

    assert 200 == answer.status_code


async def test_head_is_a_get_without_a_body() -> None:
    """HEAD has the status and the length of GET."""
    sandbox = unlimited_sandbox()
    async with Customer(sandbox) as customer:
        got = await customer.http.get(CREDIT, headers=customer.key)
        head = await customer.http.head(CREDIT, headers=customer.key)

    assert (200, got.headers["content-length"], b"") == (
        head.status_code,
        head.headers["content-length"],
        head.content,
    )
    assert [] == sandbox.ledger.violations


@pytest.mark.parametrize("path", [CREDIT, "/", "/nowhere"])
async def test_options_need_no_key(path: str) -> None:
    """OPTIONS is answered without a key, is not limited, and is no violation."""
    sandbox = Sandbox(per_second=1)
    async with Customer(sandbox) as customer:
        answers = [await customer.http.options(path) for _ in range(3)]

    assert [204] * 3 == [answer.status_code for answer in answers]
    assert "GET" in answers[0].headers["allow"]
    assert [] == sandbox.ledger.violations


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "PROPFIND"])
async def test_other_methods_are_a_404(method: str) -> None:
    """A method that a path does not have is a `404 NotFound`."""
    async with Customer(unlimited_sandbox()) as customer:
        answer = await customer.http.request(method, CREDIT, headers=customer.key)

    assert (404, "NotFound") == error_of(answer)[:2]


KNOWN = st.sampled_from(
    [
        "/s2s/v2.0/file",
        "/s2s/v2.0/file/ai-smile",
        "/s2s/v2.0/task/ai-smile",
        "/s2s/v2.0/task/ai-avatar",
        "/s2s/v2.0/task/ai-smile/",
        DELETE,
        AUTH,
        CREDIT,
        f"{CREDIT}/history",
        "/s2s/v2.0/credit/feature-cost",
        "/s2s/v2.0/task/template/ai-avatar",
    ]
)
# Requests as a server decodes them from any bytes.
LATIN = st.text(st.characters(max_codepoint=255), max_size=20)
FIELDS = [
    "files",
    "content_type",
    "file_name",
    "file_size",
    "src_file_id",
    "src_file_url",
    "expression_type",
    "template_id",
    "output_count",
    "task_id",
    "id_token",
    "client_id",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5)
    ),
    max_leaves=10,
)
REQUESTS = st.builds(
    Request,
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "DELETE"]),
    host=st.sampled_from(["api.example", "uploads.sandbox.example", "results.sandbox.example"])
    | LATIN,
    path=KNOWN | st.builds(operator.add, KNOWN, LATIN) | LATIN,
    query=st.builds(operator.add, st.sampled_from(["", "page_size=", "starting_token="]), LATIN),
    headers=st.fixed_dictionaries(
        {"authorization": st.just("Bearer k") | LATIN, "content-length": LATIN}
    ),
    body=JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30),
)


@given(REQUESTS)
def test_any_request_gets_an_answer(request: Request) -> None:
    """No request raises or is answered as an error of the server."""
    router = Sandbox()._router

    response = router.arrive(request, router.leave(request))

    assert 200 <= response.status < 500
