"""The sandbox as an ASGI app, without a server."""

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest

from perfect_async.sandbox import Durations, Faults, Sandbox
from tests.sandbox.customer import FACE, TEETH, Customer, data_of, unlimited_sandbox

KEY = {"authorization": "Bearer a-key"}
CREDIT = "/s2s/v1.0/client/credit"


def over_asgi(sandbox: Sandbox) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(sandbox), base_url="http://sandbox.test")


async def test_a_whole_picture_over_asgi() -> None:
    """Register, upload, create, poll and download through the ASGI interface."""
    sandbox = unlimited_sandbox()
    async with over_asgi(sandbox) as http:
        entry = {"content_type": "image/jpeg", "file_name": "a.jpg", "file_size": len(FACE)}
        answer = await http.post("/s2s/v2.0/file", json={"files": [entry]}, headers=KEY)
        file = data_of(answer)["files"][0]
        request = file["requests"][0]
        put = await http.put(request["url"], headers=request["headers"], content=FACE)
        assert 200 == put.status_code
        body = {"src_file_id": file["file_id"], "expression_type": TEETH}
        answer = await http.post("/s2s/v2.0/task/ai-smile", json=body, headers=KEY)
        path = f"/s2s/v2.0/task/ai-smile/{data_of(answer)['task_id']}"
        await asyncio.sleep(1)
        url = data_of(await http.get(path, headers=KEY))["results"]["url"]
        picture = await http.get(url)

    assert "binary/octet-stream" == picture.headers["content-type"]
    assert picture.headers["x-request-id"].isdigit()
    assert [] == sandbox.ledger.violations


async def test_an_encoded_id_stays_one_part_of_the_path() -> None:
    """An id with a slash is one part of the path."""
    sandbox = unlimited_sandbox(task_ids="base64")
    async with over_asgi(sandbox) as http:
        body = {"src_file_url": "https://p.example/a.jpg", "expression_type": TEETH}
        answer = await http.post("/s2s/v2.0/task/ai-smile", json=body, headers=KEY)
        task = data_of(answer)["task_id"].replace("/", "%2F").replace("+", "%2B")
        answer = await http.get(f"/s2s/v2.0/task/ai-smile/{task}", headers=KEY)

    assert "running" == data_of(answer)["task_status"]


async def exchange(sandbox: Sandbox, **changes: object) -> list[dict[str, Any]]:
    """Send one GET by direct ASGI calls and return the messages of the app."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": CREDIT,
        "query_string": b"",
        "headers": [(b"Authorization", b"Bearer a-key")],
        **changes,
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(dict(message))

    await sandbox(scope, receive, send)
    return sent


async def test_a_server_may_leave_out_raw_path() -> None:
    """Without `raw_path` and Host, the decoded path is used."""
    start, body = await exchange(unlimited_sandbox())

    assert 200 == start["status"]
    assert 200 == json.loads(body["body"])["status"]


async def test_a_lost_answer_is_an_incomplete_body() -> None:
    """The body is shorter than announced, so that a server closes the connection."""
    sandbox = unlimited_sandbox(Faults(dropped={"credit": 1.0}))

    assert [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]}
    ] == await exchange(sandbox)


async def test_a_refused_connection_is_dropped_over_asgi() -> None:
    """A port has accepted the connection already, so "refuse" works like "drop"."""
    sandbox = unlimited_sandbox(Faults(refused_connections={"credit": 1.0}))

    assert 1 == len(await exchange(sandbox))
    assert 0 == sandbox.ledger.log[0].status


async def test_latency_also_applies_over_asgi() -> None:
    """Latency and hangs take their time, too."""
    sandbox = Sandbox(latency=0.25, faults=Faults(hang={"credit": 1.0}, hang_seconds=3.0))
    start = asyncio.get_running_loop().time()

    sent = await exchange(sandbox)

    assert 504 == sent[0]["status"]
    assert 3.25 == pytest.approx(asyncio.get_running_loop().time() - start)


async def test_the_lifespan_is_answered() -> None:
    """Startup and shutdown are answered."""
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return dict(next(messages))

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message["type"])

    await Sandbox()({"type": "lifespan"}, receive, send)

    assert ["lifespan.startup.complete", "lifespan.shutdown.complete"] == sent


async def test_websockets_are_refused() -> None:
    """The handshake of a WebSocket is refused without an exception."""
    assert [{"type": "websocket.close"}] == await exchange(Sandbox(), type="websocket")


def test_durations_of_an_unknown_feature_are_refused() -> None:
    """A feature that does not exist is refused at construction."""
    with pytest.raises(ValueError, match=r"durations has smile; the features are ai-smile, "):
        Sandbox(durations={"smile": Durations.fixed(1.0)})


def test_unnamed_features_keep_their_durations() -> None:
    """The durations of one feature do not change those of others."""
    sandbox = Sandbox(durations={"ai-smile": Durations.fixed(1.0)})

    assert "0 units charged" in repr(sandbox)
    assert Faults() == sandbox.faults


async def test_an_incomplete_request_is_ignored() -> None:
    """A request that did not arrive whole is not answered and not counted, and raises nothing."""
    sandbox = unlimited_sandbox()
    received: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"src_', "more_body": True},
        {"type": "http.disconnect"},
    ]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/s2s/v2.0/task/ai-smile",
        "query_string": b"",
        "headers": [(b"Authorization", b"Bearer a-key")],
    }
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return received.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await sandbox(scope, receive, send)

    assert [] == sent
    assert [] == sandbox.ledger.log


@pytest.mark.parametrize(
    "changes",
    [
        {"raw_path": b"/s2s/\xff\xfe%ff/\x80"},
        {"query_string": b"page_size=\xff&starting_token=%ff%00"},
        {"headers": [(b"host", b"["), (b"authorization", b"Bearer \xff\xfe")]},
        {"method": "P\u00d6ST"},
    ],
)
async def test_unusual_bytes_are_answered(changes: dict[str, object]) -> None:
    """Bytes that are no text in a path, a query or a header give an error, not an exception."""
    sent = await exchange(Sandbox(), **{"raw_path": CREDIT.encode() + b"/history", **changes})

    assert sent[0]["status"] in {400, 401, 404}


async def test_head_has_no_body() -> None:
    """The answer to HEAD has the headers of the body without the body."""
    get, head = await exchange(Sandbox()), await exchange(Sandbox(), method="HEAD")

    assert get[0]["status"] == head[0]["status"] == 200
    assert dict(get[0]["headers"])[b"content-length"] == dict(head[0]["headers"])[b"content-length"]
    assert b"" == head[1]["body"]


async def test_options_has_no_body() -> None:
    """The answer to OPTIONS has no body and no headers for one."""
    head, body = await exchange(Sandbox(), method="OPTIONS")

    assert (204, b"") == (head["status"], body["body"])
    assert {b"content-type", b"content-length"}.isdisjoint(dict(head["headers"]))


@pytest.mark.parametrize(("other", "same"), [("1", True), ("2", False)])
async def test_two_runs_have_different_ids(other: str, same: bool) -> None:
    """Two runs with one seed have different ids, and nothing else differs."""
    runs: list[list[set[str]]] = []
    engine: list[object] = []
    for run_id in ("1", other):
        sandbox = Sandbox(seed=3, run_id=run_id, epoch=1e9)
        async with Customer(sandbox) as customer:
            file = await customer.file()
            task = await customer.task()
            answer = await customer.get("/s2s/v1.0/client/credit")
            runs.append(
                [
                    {file["file_id"]},
                    {file["requests"][0]["url"]},
                    {task},
                    {answer.headers["x-request-id"]},
                ]
            )
        engine.append([(one.units, one.duration) for one in sandbox.ledger.tasks])

    assert engine[0] == engine[1]
    for first, second in zip(*runs, strict=True):
        assert (first == second) if same else first.isdisjoint(second)
