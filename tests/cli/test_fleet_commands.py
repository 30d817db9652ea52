"""`enqueue` and `worker`, as processes in front of a real Redis server and a served sandbox."""

import json
import signal
from pathlib import Path

import pytest

from perfect_async.cli import main
from perfect_async.sandbox import portrait
from tests.ledger.conftest import redis_server, start_redis
from tests.support.redis_server import RedisServer
from tests.support.terminal import program, read_until, serve_sandbox

__all__ = ["redis_server", "start_redis"]


def draw(folder: Path, count: int) -> None:
    (folder / "in").mkdir()
    for number in range(count):
        (folder / "in" / f"{number}.jpg").write_bytes(portrait(number, size=96))


def queue(folder: Path, server: RedisServer, *arguments: str) -> str:
    with program("enqueue", *arguments, "--redis", server.url(), cwd=folder) as process:
        out, err = process.communicate()
    assert (0, "") == (process.returncode, err)
    return out


@pytest.mark.real_time
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    # Ctrl-C ends the worker of the next test.
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM],
)
def test_a_worker_for_real(
    tmp_path: Path, redis_server: RedisServer, number: signal.Signals
) -> None:
    """It prints what it saves; a signal lets it finish what runs, and the status names it."""
    draw(tmp_path, 3)
    printed = queue(tmp_path, redis_server, "in", "--out", "out")
    queue(tmp_path, redis_server, "in/0.jpg", "--template", "male_studio_00", "--count", "2")
    variables = {"YOUCAM_API_KEY": "key", "PERFECT_ASYNC_SHARE": redis_server.url()}
    with serve_sandbox(tmp_path) as (url, _):
        arguments = "worker", "--folder", "in", "--folder", ".", "--json"
        with program(*arguments, cwd=tmp_path, YOUCAM_BASE_URL=url, **variables) as process:
            assert process.stdout is not None
            answers = [json.loads(process.stdout.readline()) for _ in range(4)]
            process.send_signal(number)
            rest, err = process.communicate()

    assert "3 orders in the queue\n" == printed
    assert [True] * 4 == [answer["ok"] for answer in answers]
    assert 5 == sum(len(answer["files"]) for answer in answers)
    assert all(Path(file).is_file() for answer in answers for file in answer["files"])
    assert "" == rest
    assert "Stopping" in err
    assert "Traceback" not in err
    assert {signal.SIGINT: 0, signal.SIGTERM: 143}[number] == process.returncode


@pytest.mark.real_time
@pytest.mark.timeout(60)
def test_a_failed_order_is_printed(tmp_path: Path, redis_server: RedisServer) -> None:
    """A worker says on stderr why, and goes on with the next one."""
    draw(tmp_path, 1)
    (tmp_path / "notes.jpg").write_text("not a picture")
    queue(tmp_path, redis_server, "notes.jpg")
    variables = {"YOUCAM_API_KEY": "key", "PERFECT_ASYNC_SHARE": redis_server.url()}
    with (
        serve_sandbox(tmp_path) as (url, _),
        program(
            "worker", "--folder", ".", cwd=tmp_path, YOUCAM_BASE_URL=url, **variables
        ) as process,
    ):
        printed = read_until(process, "notes.jpg")
        queue(tmp_path, redis_server, "in")
        assert process.stdout is not None
        saved = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate()

    assert "Nothing was sent" in printed
    assert "Stopping" in rest
    assert 0 == process.returncode
    assert Path(saved.strip()).is_file()


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["enqueue", "a.jpg"], "--redis"),
        (["enqueue", "a.jpg", "--redis", "http://host"], "--redis"),
        (["enqueue", "a.jpg", "--redis", "redis://127.0.0.1:1"], "cannot be reached: start it"),
        (
            ["enqueue", "b.jpg", "--redis", "redis://127.0.0.1:1"],
            "there is no file or folder 'b.jpg'; did you mean 'a.jpg'?",
        ),
        (["enqueue", "a.jpg", "--template", " ", "--redis", "redis://127.0.0.1:1"], "template"),
        (["worker", "--folder", "."], "pass --redis redis://HOST:6379, or set PERFECT_ASYNC_SHARE"),
        (
            ["worker", "--folder", ".", "--redis", "https://me:secret@x"],
            "--redis is 'https://x'; it must begin with redis:// or rediss://.",
        ),
        (["worker", "--folder", "no", "--redis", "redis://x"], "--folder 'no' is no folder."),
        (["worker", "--redis", "redis://127.0.0.1:1"], "folder"),
        (["worker", "--folder", ".", "--redis", "redis://127.0.0.1:1"], "cannot be reached"),
    ],
    ids=" ".join,
)
def test_wrong_options_are_named(
    arguments: list[str],
    printed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A missing or wrong option ends the command before anything is queued."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOUCAM_API_KEY", "key")
    Path("a.jpg").write_bytes(portrait(1, size=96))

    assert 2 == main(arguments)
    assert printed in capsys.readouterr().err
