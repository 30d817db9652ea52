"""The library's log in the terminal: which lines are shown, where, and in which words."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfect_async import cli
from perfect_async.cli._display import Display
from perfect_async.cli._log_lines import LOG
from tests.support.terminal import serve_sandbox, use_sandbox

from .test_display import PROGRESS, on_a_tty, statistics

KEY = "sk-0123456789abcdef"
SIGNED = "https://pictures.example/a.jpg?X-Amz-Signature=5ec7e7"


@pytest.fixture(autouse=True)
def unchanged_log() -> Iterator[None]:
    """Every test leaves the logger's level and handlers as they were."""
    level, handlers = LOG.level, LOG.handlers[:]
    yield
    assert (level, handlers) == (LOG.level, LOG.handlers)


def log_all() -> None:
    LOG.debug("a request")
    LOG.info("a job")
    LOG.warning("a risk")
    LOG.error("a defect")


@pytest.mark.parametrize(
    ("quiet", "verbose", "shown"),
    [
        (False, True, "debug: a request\ninfo: a job\nwarning: a risk\nerror: a defect\n"),
        (False, False, "warning: a risk\nerror: a defect\n"),
        (True, False, "error: a defect\n"),
        (True, True, "error: a defect\n"),
    ],
)
def test_levels(
    capsys: pytest.CaptureFixture[str], *, quiet: bool, verbose: bool, shown: str
) -> None:
    """`--verbose` shows every line, `--quiet` shows errors only, and the default warnings too."""
    with Display(quiet=quiet, verbose=verbose):
        log_all()

    assert shown == capsys.readouterr().err


def test_a_line_stands_above_the_steady_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a line of the log takes the steady line's place, which is drawn below it."""
    stream = on_a_tty(monkeypatch)
    with Display(verbose=True) as display:
        display.update(PROGRESS, statistics())
        LOG.info("a job\x1b[31m")
        display.update(PROGRESS, statistics())
    lines = stream.getvalue().split("\n")

    assert any(line.rstrip("\r").endswith("info: a job\\x1b[31m") for line in lines)
    assert "12 of 24" in stream.getvalue().partition("info: a job")[2]


def test_a_long_line_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal wraps a long line itself, so that an id in it can be copied."""
    stream = on_a_tty(monkeypatch)
    with Display():
        LOG.warning("the task %s is lost", "x" * 120)

    assert f"the task {'x' * 120} is lost\n" in stream.getvalue()


def test_the_words_are_those_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A line names no setting of the library."""
    with Display():
        LOG.warning(
            "The window is not shared: %s. Run one process at a time on the key, or give each its "
            "share with Limits().split(n) and share=None.",
            "no space",
        )

    assert (
        "warning: The window is not shared: no space. Run one process at a time on the key.\n"
    ) == capsys.readouterr().err


def test_a_line_that_cannot_be_formatted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake in a call of the logger does not end the run."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with Display():
        LOG.warning("%d", "no number")
        LOG.warning("the next line")

    assert "warning: the next line\n" == capsys.readouterr().err


def test_the_variable_keeps_its_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of PERFECT_ASYNC_LOG come in its format, above the steady line, and once."""
    stream = on_a_tty(monkeypatch)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("at noon: %(message)s"))
    LOG.addHandler(handler)
    former = LOG.level
    LOG.setLevel(logging.INFO)
    try:
        with Display() as display:
            display.update(PROGRESS, statistics())
            log_all()
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(former)

    assert "a request" not in stream.getvalue()
    assert 1 == stream.getvalue().count("at noon: a job\n")
    assert "info: " not in stream.getvalue()


def test_the_variable_in_a_plain_log(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a steady line the handler of PERFECT_ASYNC_LOG writes its lines itself."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    LOG.addHandler(handler)
    try:
        with Display(verbose=True):
            LOG.warning("a risk")
    finally:
        LOG.removeHandler(handler)

    assert ["a risk"] == lines
    assert "" == capsys.readouterr().err


def test_a_handler_that_comes_later(capsys: pytest.CaptureFixture[str]) -> None:
    """A client that is made while a display is open may add the handler of PERFECT_ASYNC_LOG."""
    handler = logging.NullHandler()
    with Display():
        LOG.addHandler(handler)
        LOG.warning("a risk")
        LOG.removeHandler(handler)

    assert "" == capsys.readouterr().err


def test_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With `--verbose` a run shows each request with its answer, and the end of each job."""
    use_sandbox(monkeypatch)

    assert 0 == cli.main(["smile", "in/0.jpg", "-v", "--out", "out"])
    err = capsys.readouterr().err
    assert "debug: POST /s2s/v2.0/task/ai-smile 200 in " in err
    assert "info: Job ai-smile, task " in err
    assert folder.is_dir()


@pytest.mark.real_time
def test_no_line_holds_a_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the key nor a signature of a URL is in any line."""
    with serve_sandbox(folder) as (url, _):
        monkeypatch.setenv("YOUCAM_API_KEY", KEY)
        monkeypatch.setenv("YOUCAM_BASE_URL", url)
        cli.main(["smile", SIGNED, "in/0.jpg", "--verbose"])
    out, err = capsys.readouterr()

    assert 2 <= err.count("debug: POST /s2s/v2.0/task/ai-smile")
    assert "debug: PUT" in err
    assert KEY not in out + err
    assert "5ec7e7" not in out + err
