"""The sandbox, the processes and Ctrl-C for tests of the terminal program."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfect_async import Client, Polling
from perfect_async.cli import _runner
from perfect_async.cli._display import Display, JobReport
from perfect_async.sandbox import Sandbox
from tests.support import virtual_time
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]


def use_sandbox(monkeypatch: pytest.MonkeyPatch, **settings: object) -> Sandbox:
    """Let the commands use a sandbox in virtual time."""
    sandbox = Sandbox(**settings)  # type: ignore[arg-type]
    monkeypatch.setattr(
        _runner,
        "make_client",
        lambda journal=None, polling=None, sole_user=False, fit=False: Client(
            "key",
            base_url="https://sandbox.example",
            transport=sandbox.transport(),
            polling=polling or Polling(),
            journal=journal,
            sole_user=sole_user,
            fit=fit,
        ),
    )
    monkeypatch.setattr(_runner, "run", virtual_time.run)
    return sandbox


def interrupt_at(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Press Ctrl-C at the outcomes with these numbers, counted from 1."""
    reports: list[JobReport] = []

    def report(_: Display, outcome: JobReport) -> None:
        reports.append(outcome)
        if len(reports) in numbers:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, "report", report)


def advance_start(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the loop of the next command begin `seconds` later than the last one's."""
    monkeypatch.setattr(virtual_time, "START", virtual_time.START + seconds)


@contextlib.contextmanager
def program(*arguments: str, cwd: Path, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the program as a process, and kill it at the end of the block if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "perfect_async", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """Read stderr up to a line with `text`."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            break
    return "".join(lines)


@contextlib.contextmanager
def serve_sandbox(cwd: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run the command `sandbox` as a process; yield its URL and the process once it answers."""
    port = free_port()
    # A busy machine may keep a client from polling for longer than the vendor's 10 s.
    arguments = ("--port", str(port), "--speed", "20", "--lease", "120")
    with program("sandbox", *arguments, cwd=cwd) as server:
        read_until(server, "sandbox on")
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
        yield f"http://127.0.0.1:{port}", server
