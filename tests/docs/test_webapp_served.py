"""`examples/webapp.py` as it is run: by uvicorn, beside a sandbox that calls its webhook.

Three processes and a browser, in real time. Where there is no Chromium the test with it is skipped,
but not where CI says that it is CI: `.ci/run` installs it. SCREENSHOTS names a folder to which the
pictures of the page go, to be looked at.
"""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from perfect_async.sandbox import portrait
from tests.support.browser import PROGRAMS, Browser, installed
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
SECRET = "whsec_" + base64.b64encode(b"the secret of the console").decode()
FACE = portrait(7)

pytestmark = [pytest.mark.real_time, pytest.mark.timeout(300)]

PATIENCE = 60.0
"""Nothing here takes longer, not even where six others want the cores as well."""


@contextmanager
def process(
    port: int, log: Path, *arguments: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program that listens on `port`; what it writes goes to `log`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with (
        log.open("ab") as out,
        subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, stdout=out, stderr=out
        ) as started,
    ):
        try:
            until = time.monotonic() + PATIENCE
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert started.poll() is None, log.read_text()
                    assert time.monotonic() < until, log.read_text()
                    time.sleep(0.05)
            yield started
        finally:
            started.terminate()
            try:
                started.wait(5)
            except subprocess.TimeoutExpired:
                started.kill()


class Town:
    """A sandbox, and where the app is to be: on `url`, with what it keeps in `folder`."""

    def __init__(self, folder: Path, speed: float) -> None:
        self.speed = speed
        self.folder = folder
        self.port, self.vendor = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log, self.vendor_log = folder / "app.log", folder / "sandbox.log"

    @contextmanager
    def sandbox(self) -> Iterator[None]:
        with process(
            self.vendor,
            self.vendor_log,
            *("perfect_async", "sandbox", "--port", str(self.vendor), "--speed", str(self.speed)),
            # A machine that is slow to start the app again is not what is tested.
            *("--webhook-url", f"{self.url}/webhook", "--lease", "60"),
            YOUCAM_WEBHOOK_SECRET=SECRET,
        ):
            yield

    @contextmanager
    def app(self) -> Iterator[subprocess.Popen[bytes]]:
        with process(
            self.port,
            self.log,
            *("uvicorn", "--port", str(self.port), "--timeout-graceful-shutdown", "1"),
            "examples.webapp:app",
            YOUCAM_API_KEY="any",
            YOUCAM_BASE_URL=f"http://127.0.0.1:{self.vendor}",
            YOUCAM_WEBHOOK_SECRET=SECRET,
            SMILES_FOLDER=str(self.folder / "smiles"),
        ) as started:
            yield started

    def said(self) -> str:
        """What the app logged."""
        return self.log.read_text()


@pytest.fixture
def chromium() -> str:
    program = installed()
    if program is None:
        why = f"none of {', '.join(PROGRAMS)} is installed (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return program


def test_somebody_with_a_browser(chromium: str, tmp_path: Path) -> None:
    """Who chooses a picture on the page sees it, how it goes, and it smiling beside it."""
    town = Town(tmp_path, speed=5)
    selfie = tmp_path / "<img src=x onerror=alert(1)>.jpg"
    selfie.write_bytes(FACE)
    notes = tmp_path / "notes.jpg"
    notes.write_text("not a picture")
    seen = "(s => document.querySelector(s + ' img').naturalWidth)"
    tops = "['#before', '#after'].map(s => document.querySelector(s).offsetTop)"
    words = "document.querySelector('#status').innerText"

    with town.sandbox(), town.app(), Browser(chromium, PATIENCE) as browser:
        page = browser.page(width=1000, height=760)
        page.go(f"{town.url}/")
        page.value(
            f"window.said = []; new MutationObserver(() => said.push({words})).observe("
            "document.querySelector('#status'), {childList: true, subtree: true})"
        )
        page.choose("input", selfie)
        page.until(f"{words} === 'Here it is.' && {seen}('#after')")
        sizes = [page.value(f"{seen}('{figure}')") for figure in ("#before", "#after")]
        beside = [page.value(tops)]
        wide = page.picture()
        page.resize(360, 780)
        beside.append(page.value(tops))
        narrow = page.picture()
        widths = page.value("[document.documentElement.scrollWidth, innerWidth]")
        stages = page.value("said")
        page.call("Page.reload")
        page.until(f"!window.said && {words} === 'Here it is.' && {seen}('#after')")
        troubles = page.complaints()
        page.choose("input", notes)
        page.until(f"{words}.includes('jpg, png, heic')")
        hidden = page.value("document.querySelector('#after').hidden")
        refused = page.picture()

    shots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    for name, shot in {"wide": wide, "narrow": narrow, "refused": refused}.items():
        (shots / f"webapp-{name}.png").write_bytes(shot)
        assert shot.startswith(b"\x89PNG")
    assert all(each > 300 for each in sizes)
    assert [1, 1] == [len(set(each)) for each in beside]
    assert widths[0] <= widths[1]
    assert "Uploading" in stages
    assert "Smiling" in stages
    assert [] == troubles
    assert hidden
    assert '"POST /webhook HTTP/1.1" 204' in town.said()
    assert "Traceback" not in town.said()


def test_somebody_who_leaves_and_an_app_that_is_killed(tmp_path: Path) -> None:
    """Neither a connection that drops nor SIGKILL loses a picture that is on its way."""
    town = Town(tmp_path, speed=2)

    with town.sandbox():
        with town.app() as app:
            taken = post(town)
            # Another one, whose connection is gone before any answer.
            with socket.create_connection(("127.0.0.1", town.port)) as rude:
                rude.sendall(
                    b"POST /smiles HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
                    b"Content-Length: %d\r\n\r\n" % len(FACE) + FACE
                )
            # And one that is gone before its picture is there.
            with socket.create_connection(("127.0.0.1", town.port)) as rude:
                rude.sendall(
                    b"POST /smiles HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
                    b"Content-Length: %d\r\n\r\n" % len(FACE) + FACE[:999]
                )
            # Both are paid for, so both tasks exist.
            until(lambda: 998.0 == balance(town))
            app.send_signal(signal.SIGKILL)
            app.wait(5)
        with town.app():
            events = httpx.get(f"{town.url}{taken}/events", timeout=PATIENCE).text
            picture = httpx.get(f"{town.url}{taken}/result")
            until(lambda: 2 == len(list((town.folder / "smiles" / "results").glob("*/*.jpg"))))

    assert "done" == json.loads(events.strip().rpartition("data: ")[2])["state"]
    assert picture.content.startswith(b"\xff\xd8\xff")
    assert "Traceback" not in town.said()


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.25)


def balance(town: Town) -> float:
    """The units that the sandbox has left."""
    url = f"http://127.0.0.1:{town.vendor}/s2s/v1.0/client/credit"
    # With another key, which has limits of its own.
    answer = httpx.get(url, headers={"Authorization": "Bearer other"}).json()
    return float(sum(grant["amount_dec"] for grant in answer["results"]))


def post(town: Town) -> str:
    answer = httpx.post(
        f"{town.url}/smiles", content=FACE, headers={"Content-Type": "image/jpeg"}, timeout=PATIENCE
    )
    assert 202 == answer.status_code, answer.text
    place: str = answer.headers["location"]
    return place
