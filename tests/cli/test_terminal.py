"""The program on a terminal: a question, one steady line, a window that changes its size."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfect_async.sandbox import portrait
from tests.support.terminal import ROOT, serve_sandbox

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A terminal of `columns` columns, and what the program has written on it."""

    def __init__(self, main: int, process: "subprocess.Popen[bytes]") -> None:
        self.main = main
        self.process = process
        self.text = ""

    def resize(self, columns: int) -> None:
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(self.main, termios.TIOCSWINSZ, size)

    def read(self) -> bool:
        """Read what is there; False once the program has ended."""
        ready, _, _ = select.select([self.main], [], [], 0.1)
        if ready:
            try:
                piece = os.read(self.main, 1 << 16)
            except OSError:
                return False
            self.text += piece.decode("utf-8", "replace")
            return bool(piece)
        return self.process.poll() is None

    def read_until(self, text: str) -> None:
        while text not in self.text:
            assert self.read(), self.text

    def finish(self) -> int:
        while self.read():
            pass
        return self.process.wait()

    def type(self, text: str) -> None:
        os.write(self.main, text.encode())

    def lines(self, start: int = 0) -> list[str]:
        """Return what stood in a line of the screen at any time."""
        return [ESCAPE.sub("", line) for line in re.split(r"[\r\n]+", self.text[start:])]


@contextlib.contextmanager
def terminal(*arguments: str, cwd: Path, columns: int = 80, **variables: str) -> Iterator[Terminal]:
    """Run the program on a terminal of its own, and kill it at the end of the block."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **variables}
    environment.pop("COLUMNS", None)
    with subprocess.Popen(
        [sys.executable, "-m", "perfect_async", *arguments],
        cwd=cwd,
        env=environment,
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        # Ctrl-C is a signal only in the terminal that controls the program.
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
    ) as process:
        os.close(side)
        try:
            yield Terminal(main, process)
        finally:
            if process.poll() is None:
                process.kill()
            os.close(main)


def pictures(folder: Path, number: int) -> None:
    (folder / "in").mkdir()
    face = portrait(0, 64)
    for seed in range(number):
        # Bytes after the end of a picture make it another one.
        (folder / "in" / f"picture-with-a-long-name-{seed}.jpg").write_bytes(face + bytes([seed]))


@pytest.mark.real_time
def test_a_run_on_a_terminal(tmp_path: Path) -> None:
    """It asks, shows one line that fits, follows the window's size, and writes no colour."""
    pictures(tmp_path, 20)
    with (
        serve_sandbox(tmp_path) as (url, _),
        terminal(
            *("smile", "in"),
            cwd=tmp_path,
            YOUCAM_BASE_URL=url,
            YOUCAM_API_KEY="key",
            NO_COLOR="1",
        ) as screen,
    ):
        screen.read_until("Go on? [y/N]")
        assert "20 to send, 20 units of a balance of 1000, about 1 min." in screen.text
        asked = len(screen.text)
        assert not (tmp_path / "perfect-async-out" / ".perfect-async-manifest").exists()
        screen.type("y\n")
        screen.read_until("of 20: ")
        screen.resize(40)
        time.sleep(0.5)
        screen.read()
        narrow = len(screen.text)
        assert 0 == screen.finish()

    progress = [line for line in screen.lines(asked) if " of 20: " in line]
    assert progress
    assert all(len(line) < 80 for line in progress)
    assert all(len(line) < 40 for line in screen.lines(narrow) if " of 20: " in line)
    assert not re.search(r"\x1b\[[0-9;]*m", screen.text)
    # Nothing of the line is left, and the cursor is back.
    assert screen.text.count("\x1b[?25l") == screen.text.count("\x1b[?25h")
    assert "20 done, 0 failed, 20 units, in " in screen.text


@pytest.mark.real_time
def test_any_other_answer_sends_nothing(tmp_path: Path) -> None:
    """Anything but yes, the end of the input too, sends nothing: status 1."""
    pictures(tmp_path, 20)
    with serve_sandbox(tmp_path) as (url, server):
        for typed in ("n\n", "\n", "\x04"):
            with terminal(
                "smile", "in", cwd=tmp_path, YOUCAM_BASE_URL=url, YOUCAM_API_KEY="key"
            ) as screen:
                screen.read_until("Go on? [y/N]")
                screen.type(typed)
                assert 1 == screen.finish(), typed
            assert "Nothing was sent." in screen.text, typed
        server.send_signal(signal.SIGINT)
        _, ledger = server.communicate()

    assert "0 units charged" in ledger


@pytest.mark.real_time
def test_ctrl_c_at_the_question(tmp_path: Path) -> None:
    """Ctrl-C at the question leaves at once, with status 130 and without a traceback."""
    pictures(tmp_path, 20)
    with (
        serve_sandbox(tmp_path) as (url, _),
        terminal("smile", "in", cwd=tmp_path, YOUCAM_BASE_URL=url, YOUCAM_API_KEY="key") as screen,
    ):
        screen.read_until("Go on? [y/N]")
        screen.type("\x03")
        assert 130 == screen.finish()

    assert "Traceback" not in screen.text
    assert "Fatal" not in screen.text


@pytest.mark.real_time
def test_a_closed_port_is_named_on_the_line(tmp_path: Path) -> None:
    """Within seconds the line says that the host cannot be reached, and why; Ctrl-C leaves."""
    pictures(tmp_path, 1)
    with terminal(
        *("smile", "in"),
        cwd=tmp_path,
        YOUCAM_BASE_URL="http://127.0.0.1:9",
        YOUCAM_API_KEY="key",
    ) as screen:
        screen.read_until("cannot reach 127.0.0.1:9: Connection refused; trying for 20 s")
        screen.type("\x03")
        assert 130 == screen.finish()

    assert all(len(line.removesuffix("^C")) < 80 for line in screen.lines())
