"""Lines on stdout and stderr: escaped, whole, and without a traceback for a closed pipe."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from perfect_async.cli._output import (
    OutputError,
    escape_unencodable,
    flush,
    print_error,
    print_line,
    printable,
)

HOSTILE = "[red]a\x1b[31m\u202eb\n"
ESCAPED = "[red]a\\x1b[31m\\u202eb\\n"


def test_hostile_text_is_escaped() -> None:
    """Control characters and direction marks are shown, letters of all scripts stay."""
    assert ESCAPED == printable(HOSTILE)
    assert "Grüße 古风 😀" == printable("Grüße 古风 😀")


def test_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """A message is one line that begins with the program's name."""
    print_error(HOSTILE)

    assert ("", f"perfect-async: {ESCAPED}\n") == capsys.readouterr()


def test_stdout_takes_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters that the encoding lacks are escaped; a stdout of another kind is left alone."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    escape_unencodable()
    print_line("古\udcff")

    assert b"\\u53e4\\udcff\n" == raw.getvalue()

    monkeypatch.setattr("sys.stdout", io.StringIO())
    escape_unencodable()


@pytest.mark.real_time
def test_a_reader_that_leaves() -> None:
    """After `| head` the program runs on without a traceback and with its own exit status."""
    code = (
        "import sys; from perfect_async.cli._output import print_line\n"
        "print_line('first'); sys.stdin.read()\n"
        "for _ in range(3): print_line('x' * 100_000)\n"
        "sys.exit(7)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert b"first\n" == process.stdout.readline()
        process.stdout.close()
        process.stdin.close()
        err = process.stderr.read()

    assert (7, b"") == (process.returncode, err)


class Broken(io.StringIO):
    """A stdout that fails: when it is written, or when it is flushed."""

    def __init__(self, number: int, *, writing: bool) -> None:
        super().__init__()
        self.number = number
        self.writing = writing

    def fileno(self) -> int:
        return self.number

    def write(self, text: str) -> int:
        if self.writing:
            raise OSError(errno.EIO, "Input/output error")
        return len(text)

    def flush(self) -> None:
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("writing", [True, False])
def test_a_stdout_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writing: bool
) -> None:
    """What cannot be printed is an error that says why."""
    with (tmp_path / "out").open("wb") as file:
        monkeypatch.setattr("sys.stdout", Broken(file.fileno(), writing=writing))
        with pytest.raises(OutputError, match="Input/output error"):
            print_line("x")
        with pytest.raises(OutputError, match="Input/output error"):
            flush()


def test_a_stderr_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that cannot be printed is dropped."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("sys.stderr", Closed())

    print_error("nobody reads this")


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("closing", "arguments", "status"),
    [("<&-", "smile -", 2), (">&-", "--version", 0), ("2>&-", "smile nowhere.jpg", 2)],
)
def test_a_closed_stream(tmp_path: Path, closing: str, arguments: str, status: int) -> None:
    """A stream that is closed from the start leads nowhere; there is no traceback."""
    done = subprocess.run(
        f"{sys.executable} -m perfect_async {arguments} {closing}",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert status == done.returncode
    assert "Traceback" not in done.stderr
