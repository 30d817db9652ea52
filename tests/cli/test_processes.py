"""The program as a process of its own: real time, real signals, real ports."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from perfect_async.sandbox import portrait
from tests.support.terminal import ROOT, program, read_until, serve_sandbox


@pytest.mark.real_time
def test_demo_for_real(tmp_path: Path) -> None:
    """In real time the demo's exit status and summary are right."""
    with program("demo", "--fail", "0.05", cwd=tmp_path) as process:
        out, err = process.communicate()

    assert 1 == process.returncode
    assert "23 done, 1 failed, 23 units" in err
    assert "\x1b" not in out + err
    assert "23 done, 1 failed" in (tmp_path / "perfect-async-demo" / "summary.md").read_text()


def pictures(folder: Path, number: int) -> Path:
    """Make pictures; 60 are more than the demo's limits let it send at once."""
    face = portrait(0, 64)
    (folder / "in").mkdir()
    for seed in range(number):
        # Bytes after the end of a picture make it another one, sooner than drawing it.
        (folder / "in" / f"{seed}.jpg").write_bytes(face + bytes([seed]))
    return folder / "in"


def wait_for_results(folder: Path) -> None:
    while not list(folder.glob("perfect-async-demo/results/[!.]*")):
        time.sleep(0.02)


@contextlib.contextmanager
def stopped_demos(
    folder: Path, numbers: Iterable[int]
) -> Iterator["dict[int, subprocess.Popen[str]]"]:
    """Run a demo for each signal, all at once since each waits for most of its time.

    Each has saved its first results, and was sent its signal; a folder is named after the signal.
    """
    with contextlib.ExitStack() as stack:
        demos: dict[int, subprocess.Popen[str]] = {}
        for number in numbers:
            (folder / str(number)).mkdir()
            sources = str(pictures(folder / str(number), 60))
            demo = program("demo", sources, cwd=folder / str(number))
            demos[number] = stack.enter_context(demo)
        for number, process in demos.items():
            wait_for_results(folder / str(number))
            process.send_signal(number)
        yield demos


# What each signal does is asked in virtual time (test_runner.py); a demo of 60 takes 3 s of a core.
@pytest.mark.real_time
@pytest.mark.parametrize(
    "statuses",
    [
        {signal.SIGTERM: 143},
        pytest.param({signal.SIGINT: 1, signal.SIGHUP: 129}, marks=pytest.mark.long),
    ],
    ids=["SIGTERM", "others"],
)
def test_a_signal_for_real(tmp_path: Path, statuses: dict[int, int]) -> None:
    """A signal while pictures are being sent: running tasks are saved, and the status names it."""
    with stopped_demos(tmp_path, statuses) as demos:
        said = {number: process.communicate()[1] for number, process in demos.items()}

    assert statuses == {number: process.returncode for number, process in demos.items()}
    for number, err in said.items():
        saved = list(tmp_path.glob(f"{number}/perfect-async-demo/results/[!.]*"))
        assert "Stopping: nothing more is sent" in err
        assert f"{len(saved)} done, 0 failed, {60 - len(saved)} not sent" in err
        assert "Traceback" not in err


@pytest.mark.real_time
@pytest.mark.parametrize(
    "statuses",
    [
        {signal.SIGINT: 130},
        # Two SIGHUPs are one: a terminal that closes and its shell both send it.
        pytest.param({signal.SIGTERM: 143, signal.SIGHUP: 143}, marks=pytest.mark.long),
    ],
    ids=["SIGINT", "others"],
)
def test_two_signals_for_real(tmp_path: Path, statuses: dict[int, int]) -> None:
    """A second signal leaves at once: no traceback and no half-written picture."""
    with stopped_demos(tmp_path, statuses) as demos:
        for number, process in demos.items():
            read_until(process, "Stopping")
            process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
        said = [process.communicate()[1] for process in demos.values()]

    assert statuses == {number: process.returncode for number, process in demos.items()}
    for err in said:
        assert "Left at once" in err
        assert "Traceback" not in err
    assert [] == list(tmp_path.rglob(".*"))


@pytest.mark.real_time
def test_nohup(tmp_path: Path) -> None:
    """A program that was started with SIGHUP ignored runs to its end."""
    ignoring = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    ignoring += "os.execv(sys.executable, [sys.executable, '-m', 'perfect_async', *sys.argv[1:]])"
    with subprocess.Popen(
        [sys.executable, "-c", ignoring, "demo", str(pictures(tmp_path, 2))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for_results(tmp_path)
        process.send_signal(signal.SIGHUP)
        _, err = process.communicate()

    assert 0 == process.returncode
    assert "2 done, 0 failed" in err


@pytest.mark.real_time
def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """Closing the terminal saves what runs, although nothing can be printed any more."""
    main, side = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "perfect_async", "demo", str(pictures(tmp_path, 60))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=side,
        stderr=side,
    ) as process:
        os.close(side)
        while not list(tmp_path.glob("perfect-async-demo/results/[!.]*")):
            os.read(main, 1 << 16)
        os.close(main)
        process.send_signal(signal.SIGHUP)
        process.wait()

    assert 129 == process.returncode
    assert (tmp_path / "perfect-async-demo" / "summary.md").exists()


@pytest.mark.real_time
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["smile", "--help"], ["demo", "in"]]
)
def test_a_full_disk_behind_stdout(tmp_path: Path, arguments: list[str]) -> None:
    """`> /dev/full` is one line that says so, and status 1."""
    pictures(tmp_path, 2)
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "perfect_async", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    message = "perfect-async: stdout cannot be written: No space left on device."
    assert 1 == ran.returncode
    assert message == ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    assert "Exception ignored" not in ran.stderr


@pytest.mark.real_time
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_results_that_cannot_be_printed(tmp_path: Path) -> None:
    """A run whose stdout is full saves all of its results, says so once, and is status 1."""
    (tmp_path / "me.jpg").write_bytes(portrait(1))
    (tmp_path / "you.jpg").write_bytes(portrait(2))
    with serve_sandbox(tmp_path) as (url, _), Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "perfect_async", "smile", "me.jpg", "you.jpg", "--out", "out"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "YOUCAM_BASE_URL": url,
                "YOUCAM_API_KEY": "a-secret-key",
            },
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert 1 == ran.returncode
    assert 1 == ran.stderr.count("No space left on device")
    assert "2 done, 0 failed" in ran.stderr
    assert 2 == len(list((tmp_path / "out").glob("*.jpg")))


@pytest.mark.real_time
@pytest.mark.parametrize("arguments", [["--help"], ["demo", "in"]])
def test_a_pipe_without_a_reader(tmp_path: Path, arguments: list[str]) -> None:
    """Without a reader of stdout and stderr the program does its work, without a traceback."""
    pictures(tmp_path, 2)
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "perfect_async", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=writer,
        stderr=writer,
        check=False,
    )
    os.close(writer)

    assert ran.returncode in {0, 1}
    if arguments == ["demo", "in"]:
        assert 0 == ran.returncode
        assert 2 == len(list(tmp_path.glob("perfect-async-demo/results/[!.]*")))


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
    assert "1 done, 0 failed, 1 unit," in err
    assert "1 units charged, 0 returned, 0 wasted" in ledger
    assert "a-secret-key" not in out + err + ledger
    assert "Amz" not in out + err + ledger


@pytest.mark.real_time
def test_killed_and_resumed(tmp_path: Path) -> None:
    """After `kill -9` the command `resume` saves what was paid for; nothing is paid twice."""
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(portrait(number))
    with serve_sandbox(tmp_path) as (url, server):
        key = {"YOUCAM_BASE_URL": url, "YOUCAM_API_KEY": "a-secret-key"}
        journal = ("--journal", "jobs.db")
        with program("smile", "in", *journal, cwd=tmp_path, **key) as process:
            while not (tmp_path / "jobs.db").exists():
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


@pytest.mark.real_time
def test_a_sandbox_that_is_terminated(tmp_path: Path) -> None:
    """SIGTERM prints the ledger of the sandbox, too: status 143."""
    with serve_sandbox(tmp_path) as (_, server):
        server.send_signal(signal.SIGTERM)
        _, ledger = server.communicate()

    assert 143 == server.returncode
    assert "0 units charged" in ledger
    assert "Traceback" not in ledger
