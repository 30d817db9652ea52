"""The program as a process of its own: real time, real signals, real ports."""

import json
import signal
import time
from pathlib import Path

import pytest

from perfect_async.sandbox import portrait
from tests.support.terminal import program, read_until, serve_sandbox


@pytest.mark.real_time
def test_demo_for_real(tmp_path: Path) -> None:
    """In real time the demo's exit status and summary are right."""
    with program("demo", "--fail", "0.05", cwd=tmp_path) as process:
        out, err = process.communicate()

    assert 1 == process.returncode
    assert "23 done, 1 failed, 23 units" in err
    assert "\x1b" not in out + err
    assert "23 done, 1 failed" in (tmp_path / "perfect-async-demo" / "summary.md").read_text()


@pytest.mark.real_time
def test_ctrl_c_for_real(tmp_path: Path) -> None:
    """One Ctrl-C while pictures are being sent: what runs is saved, status 1."""
    with program("demo", cwd=tmp_path) as process:
        read_until(process, "0 of 24")
        while not list(tmp_path.glob("perfect-async-demo/results/*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()

    saved = list(tmp_path.glob("perfect-async-demo/results/portrait-*"))
    assert 1 == process.returncode
    assert "Stopping: nothing more is sent" in err
    assert f"{len(saved)} done, 0 failed, {24 - len(saved)} not sent" in err


@pytest.mark.real_time
def test_ctrl_c_twice_for_real(tmp_path: Path) -> None:
    """Two Ctrl-C: gone with status 130, no traceback and no half-written picture."""
    with program("demo", cwd=tmp_path) as process:
        read_until(process, "0 of 24")
        while not list(tmp_path.glob("perfect-async-demo/results/portrait-*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        read_until(process, "Stopping")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()

    assert 130 == process.returncode
    assert "Left at once" in err
    assert "Traceback" not in err
    assert [] == list(tmp_path.rglob(".*"))


@pytest.mark.real_time
def test_one_process_serves_another(tmp_path: Path) -> None:
    """`smile` in one process is served by `sandbox` in another, which ends with its ledger."""
    (tmp_path / "me.jpg").write_bytes(portrait(1))
    with serve_sandbox(tmp_path) as (url, server):
        with program(
            *("smile", "me.jpg", "--json"),
            cwd=tmp_path,
            YOUCAM_BASE_URL=url,
            YOUCAM_API_KEY="a-secret-key",
        ) as process:
            out, err = process.communicate()
        server.send_signal(signal.SIGINT)
        _, ledger = server.communicate()

    report = json.loads(out)
    assert (0, 0) == (process.returncode, server.returncode)
    assert (True, "me.jpg") == (report["ok"], report["source"])
    assert (tmp_path / report["files"][0]).is_file()
    assert "1 done, 0 failed, 1 units" in err
    assert "1 units charged, 0 returned, 0 wasted" in ledger
    assert "a-secret-key" not in out + err + ledger
    assert "Amz" not in out + err + ledger


@pytest.mark.real_time
@pytest.mark.timeout(60)
def test_killed_and_resumed(tmp_path: Path) -> None:
    """After `kill -9` the command `resume` saves what was paid for; nothing is paid twice."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(portrait(number))
    with serve_sandbox(tmp_path) as (url, server):
        key = {"YOUCAM_BASE_URL": url, "YOUCAM_API_KEY": "a-secret-key"}
        journal = ("--journal", "jobs.db")
        with program("smile", "in", *journal, cwd=tmp_path, **key) as process:
            until = time.monotonic() + 10
            while not (tmp_path / "jobs.db").exists() and time.monotonic() < until:
                time.sleep(0.02)
            # Some are running now, or on their way; it makes no difference to what comes.
            time.sleep(0.7)
            process.kill()
            process.communicate()
        with program("resume", *journal, "--json", cwd=tmp_path, **key) as process:
            out, err = process.communicate()
        # 1 where the kill came between the note of a creation and its sending: it stays in doubt.
        assert process.returncode in {0, 1}, err
        with program("resume", *journal, cwd=tmp_path, **key) as process:
            again, _ = process.communicate()
        with program("smile", "in", *journal, cwd=tmp_path, **key) as process:
            same, _ = process.communicate()
        server.send_signal(signal.SIGINT)
        _, ledger = server.communicate()

    reports = [json.loads(line) for line in out.splitlines()]
    files = [path for report in reports for path in report["files"]]
    assert "" == again
    assert 4 == len(same.splitlines())
    assert set(files) <= set(same.splitlines())
    assert all((tmp_path / path).is_file() for path in same.splitlines())
    assert "4 units charged, 0 returned, 0 wasted" in ledger
    assert "a-secret-key" not in out + err
    assert b"a-secret-key" not in (tmp_path / "jobs.db").read_bytes()
