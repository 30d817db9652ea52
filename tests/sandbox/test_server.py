"""The sandbox on a real port."""

import asyncio
import base64
import contextlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from perfect_async.sandbox import Durations, Faults, Sandbox, run, serve
from perfect_async.sandbox._charges import WebhookRecord
from perfect_async.sandbox._server import _print_failure
from perfect_async.webhooks import Notification, WebhookApp, verify
from tests.sandbox.clients import CLIENTS, RawClient
from tests.sandbox.customer import FACE, TEETH, Customer, data_of
from tests.support.ports import free_port

pytestmark = pytest.mark.real_time

ROOT = Path(__file__).parents[2]
KEY = {"authorization": "Bearer a-secret-key"}
CREDIT = "/s2s/v1.0/client/credit"
FETCH = """
fetch("{url}", {{headers: {{authorization: "Bearer k"}}}}).then(r => r.text()).then(console.log)
"""


@contextlib.asynccontextmanager
async def served(sandbox: Sandbox, port: int) -> AsyncIterator[httpx.AsyncClient]:
    """Serve in a task and wait until the port answers."""
    async with asyncio.TaskGroup() as group:
        server = group.create_task(serve(sandbox, port=port))
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=KEY, trust_env=False
        ) as http:
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    await http.get("/ready")
                    break
                await asyncio.sleep(0.02)
            yield http
        server.cancel()


async def test_a_whole_picture_over_a_socket(caplog: pytest.LogCaptureFixture) -> None:
    """Register, upload, create, poll, download; the server logs neither key nor URLs."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.WARNING, logger="httpx")
    caplog.set_level(logging.WARNING, logger="httpcore")
    port = free_port()
    sandbox = Sandbox(
        origin=f"http://127.0.0.1:{port}",
        durations={"ai-smile": Durations.fixed(0.05)},
        per_second=50,
    )
    async with served(sandbox, port) as http:
        entry = {"content_type": "image/jpeg", "file_name": "a.jpg", "file_size": len(FACE)}
        file = data_of(await http.post("/s2s/v2.0/file", json={"files": [entry]}))["files"][0]
        request = file["requests"][0]
        async with httpx.AsyncClient(trust_env=False) as storage:
            put = await storage.put(request["url"], headers=request["headers"], content=FACE)
            assert 200 == put.status_code
            body = {"src_file_id": file["file_id"], "expression_type": TEETH}
            task = data_of(await http.post("/s2s/v2.0/task/ai-smile", json=body))["task_id"]
            await asyncio.sleep(0.1)
            data = data_of(await http.get(f"/s2s/v2.0/task/ai-smile/{task}"))
            picture = await storage.get(data["results"]["url"])

    assert 200 == picture.status_code
    assert ["unknown: unknown path GET /ready"] == sandbox.ledger.violations
    assert "a-secret-key" not in caplog.text
    assert "X-Amz" not in caplog.text


@pytest.mark.parametrize("name", sorted(CLIENTS))
async def test_other_http_clients_are_served(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each client gets a picture without a violation or a line in the server's log."""
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    sandbox = Sandbox(origin=origin, durations={"ai-smile": Durations.fixed(0.05)}, per_second=50)
    json_type = {**KEY, "Content-Type": "application/json"}
    async with served(sandbox, port), RawClient(CLIENTS[name]) as client:
        entry = {"content_type": "image/jpeg", "file_name": "a.jpg", "file_size": len(FACE)}
        body = json.dumps({"files": [entry]}).encode()
        answer = await client.send("POST", f"{origin}/s2s/v2.0/file", json_type, body)
        file = json.loads(answer.body)["data"]["files"][0]
        request = file["requests"][0]
        put = await client.send("PUT", request["url"], request["headers"], FACE)
        body = json.dumps({"src_file_id": file["file_id"], "expression_type": TEETH}).encode()
        answer = await client.send("POST", f"{origin}/s2s/v2.0/task/ai-smile", json_type, body)
        task = json.loads(answer.body)["data"]["task_id"]
        await asyncio.sleep(0.1)
        answer = await client.send("GET", f"{origin}/s2s/v2.0/task/ai-smile/{task}", KEY)
        picture = await client.send("GET", json.loads(answer.body)["data"]["results"]["url"])

    assert [200, 200] == [put.status, picture.status]
    assert ["unknown: unknown path GET /ready"] == sandbox.ledger.violations
    assert [] == [each for each in caplog.records if each.name.startswith("uvicorn")]


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("curl", ["-sS", "--fail", "-H", "Authorization: Bearer k", "{url}"]),
        ("curl", ["-sS", "--http2", "--fail", "-H", "Authorization: Bearer k", "{url}"]),
        (
            "node",
            ["-e", FETCH],
        ),
    ],
)
async def test_real_programs_are_served(
    tool: str, arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The programs themselves read the balance."""
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"{tool} is not installed")
    port = free_port()
    sandbox = Sandbox()
    async with served(sandbox, port):
        process = await asyncio.create_subprocess_exec(
            program,
            *(each.format(url=f"http://127.0.0.1:{port}{CREDIT}") for each in arguments),
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "NO_PROXY": "*"},
        )
        output, _ = await process.communicate()

    assert 1000 == sum(grant["amount_dec"] for grant in json.loads(output)["results"])
    assert [] == [each for each in caplog.records if each.name.startswith("uvicorn")]


async def test_a_notification_is_sent_over_a_socket() -> None:
    """A served sandbox notifies a served `WebhookApp` after a task has ended."""
    secret = "whsec_" + base64.b64encode(b"of the served sandbox").decode()
    notified = asyncio.Event()
    received: list[Notification] = []

    class Receiver:
        async def deliver(self, body: bytes, headers: list[tuple[str, str]]) -> None:
            received.append(verify(body, headers, secret, time.time()))
            notified.set()

    shop, port = free_port(), free_port()
    config = uvicorn.Config(WebhookApp(Receiver()), port=shop, log_config=None)
    endpoint = uvicorn.Server(config)
    sandbox = Sandbox(
        origin=f"http://127.0.0.1:{port}",
        durations={"ai-smile": Durations.fixed(0.05)},
        webhook_url=f"http://127.0.0.1:{shop}/webhooks/youcam",
        webhook_secret=secret,
        webhook_retries=[0.05] * 2000,  # the endpoint may be up only later
    )
    async with asyncio.TaskGroup() as group:
        shop_task = group.create_task(endpoint.serve())
        async with served(sandbox, port) as http:
            body = {"src_file_url": "https://p.example/a.jpg", "expression_type": TEETH}
            task = data_of(await http.post("/s2s/v2.0/task/ai-smile", json=body))["task_id"]
            await notified.wait()
        endpoint.should_exit = True
        await shop_task

    assert [(task, "success")] == [(each.task_id, each.status) for each in received]


async def test_a_lost_answer_closes_the_socket() -> None:
    """The connection is closed before the answer is whole."""
    port = free_port()
    sandbox = Sandbox(faults=Faults(dropped={"credit": 1.0}))
    async with served(sandbox, port) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(CREDIT)


async def test_the_port_is_free_after_cancelling() -> None:
    """A cancelled server leaves no socket behind."""
    port = free_port()
    for _ in range(2):
        async with served(Sandbox(), port) as http:
            assert 200 == (await http.get(CREDIT)).status_code


async def test_a_server_may_be_cancelled_before_it_starts() -> None:
    """Cancelling at once leaves nothing to clean up."""
    server = asyncio.create_task(serve(Sandbox(), port=free_port()))
    server.cancel()

    with pytest.raises(asyncio.CancelledError):
        await server


@pytest.mark.parametrize(
    "more", ["", ", webhook_url='http://127.0.0.1:9/', webhook_secret='whsec_c2VjcmV0'"]
)
def test_run_serves_until_interrupted(more: str) -> None:
    """`run` serves until Ctrl-C, prints its address to stderr, and ends with the ledger."""
    port = free_port()
    code = f"from perfect_async.sandbox import run; run(port={port}, speed=100.0, units=7{more})"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        with httpx.Client(trust_env=False, headers=KEY) as http:
            answer = None
            while answer is None:
                with contextlib.suppress(httpx.ConnectError):
                    answer = http.get(f"http://127.0.0.1:{port}{CREDIT}")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()

    assert f"sandbox on http://127.0.0.1:{port}" in first
    assert 7 == sum(grant["amount_dec"] for grant in json.loads(answer.text)["results"])
    assert "7 left" in rest
    assert "Traceback" not in rest
    assert "a-secret-key" not in first + rest
    assert 0 == process.returncode


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1", "http://127.0.0.1:8787"),
        ("0.0.0.0", "http://127.0.0.1:8787"),
        ("::", "http://[::1]:8787"),
        ("::1", "http://[::1]:8787"),
        ("box.example", "http://box.example:8787"),
    ],
)
def test_urls_have_the_served_address(
    host: str, origin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """URLs have the served address, an IPv6 one in brackets, or loopback for all interfaces."""
    given: list[object] = []

    async def serve_nothing(*arguments: object) -> None:
        given.extend(arguments[1:])

    monkeypatch.setattr("perfect_async.sandbox._server.serve", serve_nothing)

    run(host=host)

    assert [host, 8787] == given
    assert f"sandbox on {origin} (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (httpx.Response(400), "attempt 1 for task {} was answered 400; the next attempt is in 5 s"),
        (httpx.ConnectError("refused"), "attempt 1 for task {} failed: ConnectError('refused'); "),
        (None, "attempt 1 for task {} was not answered in 0.1 s; the next attempt is in 5 s"),
    ],
)
def test_a_failed_notification_is_printed(
    answer: httpx.Response | Exception | None,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The terminal says which notification failed, why, and when the next attempt is."""
    named: list[str] = []

    async def receive(_: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await asyncio.sleep(60)
        return answer or httpx.Response(204)

    async def serve_one(sandbox: Sandbox, *_: object) -> None:
        sender = sandbox._sender
        assert sender is not None
        sender._transport = httpx.MockTransport(receive)
        async with sandbox, Customer(sandbox) as customer:
            named.append((await customer.task())[:16] + "...")
            async with asyncio.timeout(10):
                while not sandbox.ledger.webhooks:  # noqa: ASYNC110 - there is no event for it
                    await asyncio.sleep(0.01)

    for module in ("_server", "_webhooks"):
        monkeypatch.setattr(f"perfect_async.sandbox.{module}.TIMEOUT", 0.1)
    monkeypatch.setattr("perfect_async.sandbox._server.serve", serve_one)

    run(speed=10_000.0, webhook_url="http://127.0.0.1:9/", webhook_secret="whsec_c2VjcmV0")

    assert f"webhook: {line.format(*named)}" in capsys.readouterr().err


class _LineBuffer(io.StringIO):
    """A stderr that shows what was flushed."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = ""

    def flush(self) -> None:
        """Show all that was written."""
        self.shown = self.getvalue()


def test_lines_are_escaped_and_shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text from outside cannot steer the terminal, and a buffered stderr delays no line."""
    stderr = _LineBuffer()
    monkeypatch.setattr(sys, "stderr", stderr)
    seen: list[str] = []

    async def fail(sandbox: Sandbox, *_: object) -> None:
        record = WebhookRecord(0.0, "id", "task\n\x1b[2J", "success", 1, 0, "Error(\x1b[31m\u202e)")
        _print_failure(record, None)
        seen.append(stderr.shown)

    monkeypatch.setattr("perfect_async.sandbox._server.serve", fail)

    run(host="a\x1b]0;b")

    assert r"sandbox on http://a\x1b]0;b:8787 (" in seen[0]
    assert (
        r"webhook: attempt 1 for task task\n\x1b[2J... failed: Error(\x1b[31m\u202e); " in seen[0]
    )
    assert 3 == seen[0].count("\n")
    assert "The sandbox's ledger" in stderr.shown


def test_a_restarted_server_repeats_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart with the same seed gives new ids."""
    sandboxes: list[Sandbox] = []

    async def serve_nothing(sandbox: Sandbox, *_: object) -> None:
        sandboxes.append(sandbox)

    monkeypatch.setattr("perfect_async.sandbox._server.serve", serve_nothing)

    run(seed=1)
    run(seed=1)

    first, second = ({sandbox._tasks.new_id() for _ in range(9)} for sandbox in sandboxes)
    assert first.isdisjoint(second)
