"""A client of the sandbox that is written from the contract page, with plain httpx."""

from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx

from perfect_async.sandbox import Durations, Faults, Sandbox, portrait

API = "https://yce-api-01.makeupar.com"
TEETH = "smile_with_teeth_visible"
SMILE = {"src_file_url": "https://pictures.example/a.jpg", "expression_type": TEETH}
FACE = portrait(7, 64)


def unlimited_sandbox(
    faults: Faults | None = None,
    *,
    seed: int = 0,
    smile: Durations | None = None,
    task_ids: Literal["urlsafe", "base64"] = "urlsafe",
) -> Sandbox:
    """Return a sandbox without limits, with smiles of one second and avatars of eight."""
    return Sandbox(
        seed=seed,
        faults=faults,
        requests=10**6,
        per_second=10**6,
        units=10_000,
        durations={
            "ai-smile": Durations.fixed(1.0) if smile is None else smile,
            "ai-avatar": Durations.fixed(8.0),
        },
        task_ids=task_ids,
    )


def avatar(count: int = 4, template: str = "male_studio_00") -> dict[str, object]:
    return {
        "src_file_url": "https://pictures.example/a.jpg",
        "template_id": template,
        "output_count": count,
    }


def data_of(response: httpx.Response) -> dict[str, Any]:
    assert 200 == response.status_code, response.text
    body = response.json()
    assert 200 == body["status"]
    return dict(body["data"])


def error_of(response: httpx.Response) -> tuple[int, str | None, str]:
    body = response.json()
    assert response.status_code == body["status"]
    return response.status_code, body.get("error_code"), body["error"]


class Customer:
    """Every call of the API as one method; answers are httpx responses."""

    def __init__(self, sandbox: Sandbox, key: str = "a-key") -> None:
        self.http = httpx.AsyncClient(transport=sandbox.transport(), base_url=API)
        self.key = {"authorization": f"Bearer {key}"}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.http.aclose()

    async def get(self, path: str, **params: str | int) -> httpx.Response:
        return await self.http.get(path, params=params or None, headers=self.key)

    async def post(self, path: str, body: object) -> httpx.Response:
        return await self.http.post(path, json=body, headers=self.key)

    async def register(self, *files: dict[str, object], feature: str = "") -> httpx.Response:
        path = f"/s2s/v2.0/file/{feature}" if feature else "/s2s/v2.0/file"
        return await self.post(path, {"files": list(files)})

    async def file(
        self, data: bytes = FACE, name: str = "me.jpg", feature: str = ""
    ) -> dict[str, Any]:
        """Register one JPEG without its bytes and return its entry."""
        answer = await self.register(
            {"content_type": "image/jpeg", "file_name": name, "file_size": len(data)},
            feature=feature,
        )
        return dict(data_of(answer)["files"][0])

    async def put(self, entry: dict[str, Any], data: bytes) -> httpx.Response:
        request = entry["requests"][0]
        return await self.http.put(request["url"], headers=request["headers"], content=data)

    async def uploaded(self, data: bytes = FACE, name: str = "me.jpg", feature: str = "") -> str:
        """Register one JPEG, upload its bytes, and return its file id."""
        entry = await self.file(data, name, feature)
        assert 200 == (await self.put(entry, data)).status_code
        return str(entry["file_id"])

    async def create(self, body: object = SMILE, feature: str = "ai-smile") -> httpx.Response:
        return await self.post(f"/s2s/v2.0/task/{feature}", body)

    async def task(self, body: object = SMILE, feature: str = "ai-smile") -> str:
        """Create a task and return its id."""
        return str(data_of(await self.create(body, feature))["task_id"])

    async def poll(self, task_id: str, feature: str = "ai-smile") -> httpx.Response:
        return await self.get(f"/s2s/v2.0/task/{feature}/{quote(task_id, safe='')}")

    async def delete(self, task_id: str) -> httpx.Response:
        return await self.post("/s2s/v2.0/task/delete", {"task_id": task_id})
