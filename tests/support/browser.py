"""Controls headless Chromium by its DevTools protocol over two pipes, without a library.

    with Browser(program, patience=10.0) as browser:
        page = browser.page(width=1000, height=800)
        page.go("http://127.0.0.1:8000/")
        page.until("document.title === 'Smile'")

Every wait is bounded by `Browser.patience`. (chromedevtools.github.io/devtools-protocol;
`--remote-debugging-pipe`: JSON ended by NUL, read from descriptor 3, written to 4.)

`python -m tests.support.browser` prints the path of a Chromium, or exits with 1 without one.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, Self

PROGRAMS: Final = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")

# The browser uses descriptors 3 and 4, which this process may have in use.
_START: Final = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


def installed() -> str | None:
    """Return the path of a Chromium, or None."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


class Refused(AssertionError):
    """The browser refused a command, or a script in it raised."""


class Browser:
    """A browser with its own profile; both are gone after the block."""

    def __init__(self, program: str, patience: float) -> None:
        # Files that a killed helper process still writes are left to the system.
        self._profile = TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        profile = self._profile.name
        self.patience = patience
        self.events: list[dict[str, Any]] = []
        self._last = 0
        self._rest = b""
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        os.close(theirs_in)
        os.close(theirs_out)
        flags = [
            "--headless=new",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--no-sandbox",  # it refuses to run as root with one; only our own pages are loaded
            "--disable-dev-shm-usage",  # which is small in containers
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-default-apps",
            "--disable-extensions",
            "--disable-sync",
            "--hide-scrollbars",
            "--no-first-run",
        ]
        # Its other files go into the profile's folder, too.
        homes = ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, high), program, *flags, "about:blank"],
            pass_fds=high,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **dict.fromkeys(homes, profile)},
            # Its helpers are in its process group, and end with it.
            start_new_session=True,
        )
        for end in high:
            os.close(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._to)
        os.close(self._from)
        with suppress(subprocess.TimeoutExpired):
            # It ends when the other end of its pipe is closed.
            self._process.wait(3)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._profile.cleanup()

    def call(self, method: str, session: str | None = None, **params: object) -> dict[str, Any]:
        """Call `method` and return its answer; other messages are added to `events`."""
        self._last += 1
        order = {"id": self._last, "method": method, "params": params}
        if session is not None:
            order["sessionId"] = session
        os.write(self._to, json.dumps(order).encode() + b"\0")
        until = time.monotonic() + self.patience
        while True:
            message = self._read(until, method)
            if message.get("id") == self._last:
                if "error" in message:
                    raise Refused(message)
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def _read(self, until: float, what: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready = select.select([self._from], [], [], max(0.0, until - time.monotonic()))[0]
            piece = os.read(self._from, 1 << 20) if ready else b""
            assert piece, f"the browser does not answer: {what}"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def page(self, *, width: int, height: int) -> "Page":
        """Open a page of `width` x `height` CSS pixels."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "DOM"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        return page


class Page:
    """One page of a browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Call `method` for this page, like `Browser.call`."""
        return self._browser.call(method, self._session, **params)

    def resize(self, width: int, height: int) -> None:
        """Resize the page to `width` x `height` CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def go(self, url: str) -> None:
        """Load `url`."""
        self.call("Page.navigate", url=url)
        self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def value(self, expression: str) -> Any:  # noqa: ANN401 - any JavaScript value
        """Return the awaited value of a JavaScript expression."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise Refused(answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until `expression` is true."""
        until = time.monotonic() + self._browser.patience
        while not self._holds(expression):
            assert time.monotonic() < until, (expression, self.value("document.body.innerText"))
            time.sleep(0.05)

    def _holds(self, expression: str) -> bool:
        try:
            return bool(self.value(expression))
        except Refused:
            # Between two documents no expression can be evaluated.
            return False

    def choose(self, selector: str, *files: Path) -> None:
        """Choose files in an input, like a user in the dialog."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def complaints(self) -> list[str]:
        """Return the errors of scripts and requests so far: a breach of the policy, a 404."""
        mine = [each for each in self._browser.events if each.get("sessionId") == self._session]
        return [
            json.dumps(each["params"])
            for each in mine
            if each["method"] in {"Runtime.exceptionThrown", "Log.entryAdded"}
        ]

    def picture(self) -> bytes:
        """Return the whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


if __name__ == "__main__":
    found = installed()
    if found is None:
        sys.exit(1)
    print(found)
