"""The programs in examples/ against the sandbox; the web app has a file of its own."""

import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import bulk_folder, script
from perfect_async import Client, Polling
from perfect_async.sandbox import Durations, Sandbox, portrait

ROOT = Path(__file__).parents[2]

real_time = pytest.mark.real_time


@pytest.fixture(scope="module")
def sandbox_url() -> Iterator[str]:
    """A sandbox on a real port, twenty times as fast as the vendor, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = f"from perfect_async.sandbox import run; run(port={port}, speed=20, lease=60)"
    with subprocess.Popen(
        [sys.executable, "-c", serve], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                except OSError:
                    time.sleep(0.05)
                else:
                    break
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def python(url: str, *arguments: str | Path, key: str = "any") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "YOUCAM_API_KEY": key, "YOUCAM_BASE_URL": url}
    # For whoever runs the tests without having installed the checkout.
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@real_time
def test_the_script_saves_one_picture(sandbox_url: str, tmp_path: Path) -> None:
    """`script.py` prints the path that it wrote and ends with 0."""
    source, target = tmp_path / "selfie.jpg", tmp_path / "smiling.jpg"
    source.write_bytes(portrait(1))

    ran = python(sandbox_url, "examples/script.py", source, target)

    assert (0, f"{target}\n", "") == (ran.returncode, ran.stdout, ran.stderr)
    assert target.read_bytes().startswith(b"\xff\xd8\xff")
    assert target.read_bytes() != source.read_bytes()


@real_time
def test_the_traced_picture_prints_its_spans(sandbox_url: str, tmp_path: Path) -> None:
    """`traced.py` saves the picture and prints the job's span, its requests and the gauges."""
    source, target = tmp_path / "selfie.jpg", tmp_path / "smiling.jpg"
    source.write_bytes(portrait(1))

    ran = python(sandbox_url, "examples/traced.py", source, target)

    assert (0, "") == (ran.returncode, ran.stderr)
    assert target.read_bytes().startswith(b"\xff\xd8\xff")
    for told in ('"name": "perfect_async job"', '"perfect_async.request_id"', "window.requests"):
        assert told in ran.stdout


@real_time
def test_the_terminal_tells_its_requests(sandbox_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PERFECT_ASYNC_LOG works there as in programs: lines on stderr, and stdout as ever."""
    monkeypatch.setenv("PERFECT_ASYNC_LOG", "debug")

    ran = python(sandbox_url, "-m", "perfect_async", "units")

    assert 0 == ran.returncode
    assert "DEBUG perfect_async: GET /s2s/v1.0/client/credit 200 in " in ran.stderr
    assert "DEBUG" not in ran.stdout


@real_time
def test_the_script_says_what_to_do(sandbox_url: str, tmp_path: Path) -> None:
    """A picture that is none ends with 1 and the error's own words."""
    source = tmp_path / "notes.jpg"
    source.write_bytes(b"not a picture")

    ran = python(sandbox_url, "examples/script.py", source, tmp_path / "out.jpg")

    assert (1, "") == (ran.returncode, ran.stdout)
    assert "use another picture" in ran.stderr
    assert "Traceback" not in ran.stderr


@real_time
def test_the_folder_goes_through_one_batch(sandbox_url: str, tmp_path: Path) -> None:
    """`bulk_folder.py` saves what is done, explains what is not, and ends with 1 for it."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(4):
        (photos / f"{number}.jpg").write_bytes(portrait(number))
    (photos / "notes.jpg").write_bytes(b"not a picture")
    (photos / "ignored.txt").write_text("no suffix of a picture")

    ran = python(sandbox_url, "examples/bulk_folder.py", photos, out)

    assert 1 == ran.returncode, ran.stderr
    assert ["0", "1", "2", "3"] == sorted(path.name.split("-")[0] for path in out.iterdir())
    assert "notes.jpg" in ran.stderr
    assert "use another picture or convert this one" in ran.stderr
    assert "4 done, 1 failed of 5" in ran.stderr


@real_time
def test_the_folder_without_pictures(sandbox_url: str, tmp_path: Path) -> None:
    """An empty folder is a mistake in the call: 2."""
    ran = python(sandbox_url, "examples/bulk_folder.py", tmp_path, tmp_path / "out")

    assert 2 == ran.returncode
    assert "no pictures in" in ran.stderr


@real_time
def test_the_folder_without_a_key(tmp_path: Path) -> None:
    """A missing key is a mistake in the settings: 2, and the variable is named."""
    (tmp_path / "me.jpg").write_bytes(portrait(1))

    ran = python("", "examples/bulk_folder.py", tmp_path, tmp_path / "out", key="")

    assert 2 == ran.returncode
    assert "YOUCAM_API_KEY" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.fixture
def sandbox() -> Sandbox:
    return Sandbox(latency=0.15, durations={"ai-smile": Durations.fixed(8.0)})


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    for module in (bulk_folder, script):
        made = functools.partial(
            Client, "key", transport=sandbox.transport(), polling=Polling(give_up_after=300.0)
        )
        monkeypatch.setattr(module, "Client", made)


@pytest.mark.usefixtures("patched")
async def test_the_script_in_virtual_time(sandbox: Sandbox, tmp_path: Path) -> None:
    """`script.main` asks for what its text says."""
    source = tmp_path / "selfie.jpg"
    source.write_bytes(portrait(1))

    status = await script.main(str(source), str(tmp_path / "smiling.jpg"))

    assert 0 == status
    assert ["closed_mouth_smile"] == [t.params["expression_type"] for t in sandbox.ledger.tasks]


@pytest.mark.usefixtures("patched")
async def test_a_result_that_cannot_be_saved(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that refuses one picture stops neither the batch nor the others."""
    sources = [tmp_path / f"{number}.jpg" for number in range(3)]
    for number, source in enumerate(sources):
        source.write_bytes(portrait(number))
    out = tmp_path / "out"
    out.write_text("a file where the folder should be")

    status = await bulk_folder.main(sources, out / "below")

    assert 1 == status
    assert 3 == capsys.readouterr().err.count("is done and not saved")
    assert 3 == sandbox.ledger.tasks_by_state["success"]
