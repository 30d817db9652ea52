"""The logger logs each request at DEBUG and each outcome at INFO, and no secrets."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perfect_async import (
    Client,
    ConfigurationError,
    JobRefused,
    ServiceUnavailable,
    Smile,
    TaskExpired,
)
from perfect_async.sandbox import Faults
from tests.support.sandboxed import FACE, KEY, client, smile, vendor

ROOT = Path(__file__).parents[2]
LogCapture = pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def capture(caplog: LogCapture) -> None:
    """Capture everything that is logged."""
    caplog.set_level(logging.DEBUG, "perfect_async")


def requests(caplog: LogCapture) -> list[logging.LogRecord]:
    return [each for each in caplog.records if each.levelno == logging.DEBUG]


async def test_each_request_is_a_line(caplog: LogCapture) -> None:
    """Method, path, status, time, request id and task id are in the text and in attributes."""
    sandbox = vendor()
    async with client(sandbox) as c:
        result = await c.run(Smile(FACE))
        image = result.images[0]
        await c.delete(result.task_id)
        with pytest.raises(TaskExpired):
            await image.read()
    said = [vars(each) for each in requests(caplog)]
    known = result.task_id
    assert len(known) > 8
    shown = f"/s2s/v2.0/task/ai-smile/{known[:8]}..."
    assert [
        ("POST", "/s2s/v2.0/file", None),
        ("PUT", "upload", None),
        ("POST", "/s2s/v2.0/task/ai-smile", known),
        *[("GET", shown, known)] * sandbox.ledger.tasks[0].polls,
        ("POST", "/s2s/v2.0/task/delete", known),
        ("GET", "download", None),
        ("GET", shown, known),
    ] == [(each["method"], each["path"], each["task_id"]) for each in said]
    assert [404, 400] == [each["status"] for each in said if each["status"] != 200]
    api = [each for each in said if each["path"] not in {"upload", "download"}]
    assert all(each["request_id"] and each["seconds"] > 0 for each in api)
    assert known in caplog.text


async def test_nothing_secret_is_logged(caplog: LogCapture) -> None:
    """No URL, key, query or file name is logged."""
    sandbox = vendor(faults=Faults(by_picture={"bad.jpg": "error_no_face"}))
    async with client(sandbox) as c:
        async with c.batch([Smile(FACE), smile(), Smile("https://x.example/p?sig=secret")]) as b:
            results = [outcome.result async for outcome in b]
        for result in results:
            assert result is not None
            await result.read()
        [_ async for _ in c.templates()]
    assert len(requests(caplog)) > 10
    for secret in (KEY, "http", "://", "?", "page_size", "secret", ".jpg", "Bearer"):
        assert secret not in caplog.text


async def test_a_request_without_an_answer_says_so(caplog: LogCapture) -> None:
    """Its line has the class of the failure in place of the status."""
    async with client(vendor(faults=Faults(dropped={"credit": 1.0})), drain=0.0) as c:
        with pytest.raises(ServiceUnavailable):
            await c.units()
    assert any("GET /s2s/v1.0/client/credit " in text for text in caplog.messages)
    assert "ServiceUnavailable" in caplog.text


async def test_the_outcome_of_each_job_is_logged(caplog: LogCapture) -> None:
    """At INFO: done with its task, time and units, or failed with its error."""
    async with client(vendor()) as c:
        result = await c.run(Smile("https://x.example/a.jpg", key="order 7"))
        with pytest.raises(JobRefused):
            await c.run(Smile(b"no picture"))
    said = [each.getMessage() for each in caplog.records if each.levelno == logging.INFO]
    [done] = [text for text in said if text.startswith("Job ai-smile 'order 7'")]
    assert f"task '{result.task_id}' done in" in done
    assert done.endswith(", 1 unit")
    [failed] = [text for text in said if text.startswith("A job failed: 'PictureRefused'")]
    assert failed.endswith("Nothing was sent.")


def program(level: str, code: str) -> str:
    """The text that a program writes to stderr when it runs a smile, with the variable set."""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PERFECT_ASYNC_LOG": level, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stderr


SMILE = """
import asyncio
from perfect_async import Client
from perfect_async.sandbox import Sandbox

async def main():
    async with Client("key", transport=Sandbox().transport()) as client:
        await client.units()
        {more}
    Client("key")

asyncio.run(main())
"""


def test_a_variable_switches_the_lines_on() -> None:
    """Each line comes once, also if the program has a handler of its own."""
    loud = "import logging; logging.basicConfig()"
    line = "GET /s2s/v1.0/client/credit 200"
    own, loudly = (program("debug", SMILE.format(more=more)) for more in ("pass", loud))
    assert (1, 1) == (own.count(line), loudly.count(line))
    assert "DEBUG perfect_async: GET" in own
    assert line not in program("info", SMILE.format(more="pass"))


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first client says which levels the variable may have."""
    monkeypatch.setenv("PERFECT_ASYNC_LOG", "loud")
    with pytest.raises(ConfigurationError, match="debug, info or off"):
        Client("key")
