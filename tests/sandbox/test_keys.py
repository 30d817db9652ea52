"""API keys and access tokens."""

import asyncio
import base64

import httpx
import pytest

from perfect_async.sandbox import Sandbox
from tests.sandbox.customer import Customer, error_of

AUTH = "/s2s/v1.0/client/auth"
CREDIT = "/s2s/v1.0/client/credit"
TOKEN = base64.b64encode(bytes(range(128))).decode()


async def authenticate(customer: Customer, **body: object) -> httpx.Response:
    """Ask for an access token, without a key."""
    return await customer.http.post(AUTH, json={"client_id": "me", "id_token": TOKEN, **body})


async def test_an_access_token_counts_as_a_key() -> None:
    """The token for a client id is accepted as Bearer on paths of both versions."""
    sandbox = Sandbox(api_keys=["me"])
    async with Customer(sandbox) as customer:
        answer = await authenticate(customer)
        header = {"authorization": f"Bearer {answer.json()['result']['access_token']}"}
        statuses = [
            (await customer.http.get(path, headers=header)).status_code
            for path in (CREDIT, "/s2s/v2.0/task/template/ai-avatar")
        ]

    assert (200, 200) == (answer.status_code, answer.json()["status"])
    assert [200, 200] == statuses
    assert {"auth": 1, "credit": 1, "template": 1} == dict(sandbox.ledger.requests)
    assert [] == sandbox.ledger.violations


@pytest.mark.parametrize(
    "body",
    [
        {"id_token": "corrupt"},
        {"id_token": "not base64!"},
        {"id_token": "c2hvcnQ="},
        {"client_id": "you"},
    ],
)
async def test_a_corrupt_token_is_refused(body: dict[str, object]) -> None:
    """A corrupt id token and an unknown client are a `401 InvalidAuthentication`."""
    async with Customer(Sandbox(api_keys=["me"])) as customer:
        answer = await authenticate(customer, **body)

    assert (401, "InvalidAuthentication") == error_of(answer)[:2]


@pytest.mark.parametrize("field", ["client_id", "id_token"])
async def test_both_fields_are_required(field: str) -> None:
    """A missing field is named."""
    async with Customer(Sandbox()) as customer:
        answer = await authenticate(customer, **{field: None})

    assert (400, "InvalidParameters") == error_of(answer)[:2]
    assert field in error_of(answer)[2]


async def test_an_access_token_expires() -> None:
    """After two hours the token is a `401 InvalidAccessToken`."""
    async with Customer(Sandbox()) as customer:
        token = (await authenticate(customer)).json()["result"]["access_token"]
        header = {"authorization": f"bearer {token}"}
        await asyncio.sleep(7200)
        assert 200 == (await customer.http.get(CREDIT, headers=header)).status_code
        await asyncio.sleep(1)
        answer = await customer.http.get(CREDIT, headers=header)

    assert (401, "InvalidAccessToken") == error_of(answer)[:2]


async def test_a_token_uses_the_limits_of_its_key() -> None:
    """Requests with a token and with its key share their limits."""
    async with Customer(Sandbox(per_second=2), "me") as customer:
        token = (await authenticate(customer)).json()["result"]["access_token"]
        header = {"authorization": f"Bearer {token}"}
        statuses = [
            (await customer.get(CREDIT)).status_code,
            (await customer.http.get(CREDIT, headers=header)).status_code,
            (await customer.get(CREDIT)).status_code,
        ]

    assert [200, 200, 429] == statuses


async def test_requests_for_tokens_are_limited() -> None:
    """Requests for tokens count for the limits, too."""
    async with Customer(Sandbox(per_second=1)) as customer:
        statuses = [(await authenticate(customer)).status_code for _ in range(2)]

    assert [200, 429] == statuses
