"""`examples/fastapi_app.py`, tested as a user would test it: with the fixtures of the package."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from examples import fastapi_app
from perfect_async import Client
from perfect_async.sandbox import Sandbox, portrait

pytest_plugins = ["perfect_async.pytest_plugin"]


@pytest.fixture
async def http(youcam_client: Client) -> AsyncIterator[httpx.AsyncClient]:
    """Call the app, whose client is one of the sandbox."""
    fastapi_app.app.dependency_overrides[fastapi_app.get_client] = lambda: youcam_client
    transport = httpx.ASGITransport(fastapi_app.app)
    async with youcam_client, httpx.AsyncClient(transport=transport, base_url="http://app") as one:
        yield one
    fastapi_app.app.dependency_overrides.clear()


async def test_a_portrait_comes_back_smiling(
    http: httpx.AsyncClient, youcam_sandbox: Sandbox
) -> None:
    """The answer is the picture, and one unit is charged."""
    answer = await http.post("/smile", content=portrait(1))

    assert (200, "image/jpeg") == (answer.status_code, answer.headers["content-type"])
    assert answer.content.startswith(b"\xff\xd8\xff")
    assert 1 == youcam_sandbox.ledger.units_charged


async def test_the_type_of_the_answer_follows_its_bytes(http: httpx.AsyncClient) -> None:
    """The vendor answers with a JPEG or a PNG, whatever it was sent."""
    posts = (http.post("/smile", content=portrait(number)) for number in range(12))
    answers = await asyncio.gather(*posts)

    types = {each.content[:4]: each.headers["content-type"] for each in answers}
    assert {b"\xff\xd8\xff\xe0": "image/jpeg", b"\x89PNG": "image/png"} == types


async def test_what_is_no_picture_is_the_visitors_mistake(http: httpx.AsyncClient) -> None:
    """It is answered with 422 and what is wrong."""
    answer = await http.post("/smile", content=b"no picture")

    assert 422 == answer.status_code
    assert "jpg, png, heic" in answer.json()["detail"]


async def test_what_the_vendor_cannot_do_is_a_502(
    http: httpx.AsyncClient, youcam_sandbox: Sandbox
) -> None:
    """The visitor learns that it was not their mistake."""
    youcam_sandbox.script("task", (401, {"status": 401, "error": "no"}))
    answer = await http.post("/smile", content=portrait(1))

    assert 502 == answer.status_code


async def test_the_app_opens_one_client(
    monkeypatch: pytest.MonkeyPatch, youcam_client: Client
) -> None:
    """The client lives as long as the app."""
    monkeypatch.setattr(fastapi_app, "Client", lambda: youcam_client)
    async with fastapi_app.app.router.lifespan_context(fastapi_app.app):
        assert "open" in repr(fastapi_app.app.state.client)
    assert "closed" in repr(youcam_client)
