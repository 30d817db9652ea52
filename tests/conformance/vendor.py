"""The vendor under test, and a client for it that respects the limits.

By default the vendor is the sandbox. With `YOUCAM_CONFORMANCE=1` and a key in `YOUCAM_API_KEY` it
is the real service; tests that cost units, or many requests, are then skipped.
"""

import asyncio
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import attrs
import httpx
import pytest

BASE_URL = os.environ.get("YOUCAM_BASE_URL", "https://yce-api-01.makeupar.com")
REAL = os.environ.get("YOUCAM_CONFORMANCE") == "1" and bool(os.environ.get("YOUCAM_API_KEY"))

# The real service needs real time; pytest-asyncio reads this before fixtures exist.
clock = [pytest.mark.real_time, pytest.mark.timeout(120)] if REAL else []
costs = pytest.mark.skipif(REAL, reason="spends units of the account")
rude = pytest.mark.skipif(REAL, reason="would spend the whole window of the key")
assumed = pytest.mark.skipif(REAL, reason="the contract leaves it open; the sandbox assumes it")


@attrs.define
class Vendor:
    """An account: plain httpx, with the key on API calls only."""

    http: httpx.AsyncClient
    key: str
    picture: bytes
    # Seconds between calls, so that the suite respects both limits.
    pace: float

    async def call(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        params: dict[str, str | int] | None = None,
        json: object = None,
    ) -> httpx.Response:
        await asyncio.sleep(self.pace)
        headers = {"authorization": f"Bearer {self.key if key is None else key}"}
        return await self.http.request(method, path, headers=headers, params=params, json=json)

    async def get(self, path: str, **params: str | int) -> httpx.Response:
        return await self.call("GET", path, params=params or None)

    async def post(self, path: str, body: object) -> httpx.Response:
        return await self.call("POST", path, json=body)

    def entry(self, name: str = "me.jpg") -> dict[str, object]:
        size = len(self.picture)
        return {"content_type": "image/jpeg", "file_name": name, "file_size": size}

    async def register(self, *names: str, path: str = "/s2s/v2.0/file") -> list[dict[str, Any]]:
        answer = await self.post(path, {"files": [self.entry(name) for name in names]})
        assert 200 == answer.status_code, answer.text
        return list(answer.json()["data"]["files"])

    async def put(self, file: dict[str, Any], **more: str) -> httpx.Response:
        """Upload the bytes according to the registration, with `more` headers."""
        request = file["requests"][0]
        headers = {**headers_of(request["headers"]), **more}
        return await self.http.request(
            request["method"], request["url"], headers=headers, content=self.picture
        )

    async def uploaded(self) -> str:
        file = (await self.register("me.jpg"))[0]
        assert 200 == (await self.put(file)).status_code
        return str(file["file_id"])

    async def smile(self, source: str | None = None) -> str:
        """Create a smile and return its task id."""
        source = await self.uploaded() if source is None else source
        body = {"src_file_id": source, "expression_type": "closed_mouth_smile"}
        return await self.create("ai-smile", body)

    async def create(self, feature: str, body: Mapping[str, object]) -> str:
        answer = await self.post(f"/s2s/v2.0/task/{feature}", body)
        assert 200 == answer.status_code, answer.text
        return str(answer.json()["data"]["task_id"])

    async def poll(self, task_id: str, feature: str = "ai-smile") -> httpx.Response:
        return await self.get(f"/s2s/v2.0/task/{feature}/{quote(task_id, safe='')}")

    async def finished(self, task_id: str, feature: str = "ai-smile") -> dict[str, Any]:
        """Poll until the task is terminal and return its data."""
        while True:
            answer = await self.poll(task_id, feature)
            assert 200 == answer.status_code, answer.text
            data = dict(answer.json()["data"])
            if data["task_status"] in {"success", "error"}:
                return data
            await asyncio.sleep(5)

    async def balance(self) -> float:
        grants = (await self.get("/s2s/v1.0/client/credit")).json()["results"]
        return float(sum(grant["amount_dec"] for grant in grants))


def headers_of(given: object) -> dict[str, str]:
    """Return upload headers in any form of the contract: an object, or a list of pairs."""
    if isinstance(given, list):
        return {header.get("key", header.get("name")): str(header["value"]) for header in given}
    assert isinstance(given, dict)
    return {name: str(value) for name, value in given.items()}


def error_code(answer: httpx.Response) -> str | None:
    """Check the envelope of an error answer, and return its code."""
    body = answer.json()
    assert answer.status_code == body["status"]
    assert isinstance(body["error"], str)
    code = body.get("error_code")
    return None if code is None else str(code)
