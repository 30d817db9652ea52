"""The display: lines in a log, a live view on a terminal, and no escape codes from outside."""

import io
import json
from pathlib import Path

import attrs
import pytest

from perfect_async import (
    ClientClosed,
    FileId,
    Limits,
    PictureRefused,
    Polling,
    Progress,
    Statistics,
    TaskAbandoned,
    TaskFailed,
)
from perfect_async.cli._display import (
    PLAIN_TICK,
    TICK,
    Display,
    JobReport,
    Results,
    RunSummary,
    format_duration,
    print_table,
    redacted_source,
)
from perfect_async.models import Source
from perfect_async.scheduler import Scheduler

HOSTILE = "[red]a\x1b[31m\u202eb\n"
ESCAPED = "[red]a\\x1b[31m\\u202eb\\n"

PROGRESS = Progress(total=24, done=10, failed=2, running=5, waiting=7, units=10.0, eta=75.4)
DONE = JobReport("a.jpg", True, "t", 1.0, 2.0, (Path("o.png"),), None)


def statistics() -> Statistics:
    return Scheduler(Limits(), Polling(), engine_retries=1).statistics()


def failed(source: str = "b.jpg", *, units: float = 0.0, text: str = "No [b]face[/].") -> JobReport:
    error = TaskFailed(text, code="error_no_face", passing=False, task_id="u")
    error.units_at_stake = units
    return JobReport(source, False, "u", units, 1.23456, (), error)


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def on_a_tty(monkeypatch: pytest.MonkeyPatch) -> Tty:
    """Make both streams one terminal, 100 columns wide.

    No fixture: pytest puts its own streams in place between a fixture and its test.
    """
    stream = Tty()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return stream


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Path("me.jpg"), "me.jpg"),
        ("me?.jpg", "me?.jpg"),
        ("at 12:30@home.jpg", "at 12:30@home.jpg"),
        ("https://u:p@host/a.jpg?X-Amz-Signature=s#f", "https://host/a.jpg"),
        ("https://host?sig=1", "https://host"),
        (FileId("f"), "FileId(value='f')"),
    ],
)
def test_sources_are_shown_without_secrets(source: Source, text: str) -> None:
    """A URL loses its credentials and its query, nothing else changes."""
    assert text == redacted_source(source)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (75.4, "1:15"), (3661, "1:01:01")])
def test_durations(seconds: float, text: str) -> None:
    """Seconds are minutes and hours, too."""
    assert text == format_duration(seconds)


def test_the_summary_counts() -> None:
    """Done, failed, not sent (reported or not), units, and units at stake."""
    unsent = JobReport("c.jpg", False, None, 0.0, None, (), ClientClosed("stopped"))
    reports = [DONE, failed(units=2.0), unsent]
    summary = RunSummary(reports, 5, 75.0)

    assert "1 done, 1 failed, 3 not sent, 3 units, 2 at stake, in 1:15" == str(summary)
    assert [reports[1]] == summary.failures
    assert "1 done, 0 failed, 1 units, in 0:01" == str(RunSummary([DONE], 1, 1.0))


def test_json_of_a_failure() -> None:
    """Type, message, hint and code, ASCII only."""
    facts = failed("ü").as_dict()

    assert {
        "source": "ü",
        "ok": False,
        "task_id": "u",
        "units": 0.0,
        "duration": 1.235,
        "files": [],
        "already_there": False,
        "changes": [],
        "error": {
            "type": "TaskFailed",
            "message": "No [b]face[/].",
            "hint": TaskFailed.hint,
            "code": "error_no_face",
        },
    } == facts
    assert json.dumps(facts).isascii()


def test_json_of_an_error_without_a_code() -> None:
    """The code is null where the error has none."""
    report = attrs.evolve(failed(), error=PictureRefused("x"), duration=None)

    assert {
        "type": "PictureRefused",
        "message": "x",
        "hint": PictureRefused.hint,
        "code": None,
    } == (report.as_dict()["error"])
    assert report.as_dict()["duration"] is None


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """In a log each tick is a line without escape codes, whatever FORCE_COLOR says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        display = Display()
        with display:
            display.update(PROGRESS, statistics())
            display.update(attrs.evolve(PROGRESS, eta=None), statistics())
    err = capsys.readouterr().err

    line = "12 of 24: 10 done, 5 running, 7 waiting, 2 failed, 250 of 250 requests left, 10 units"
    assert [f"{line}, 1:15 to go", line] == err.splitlines()
    assert PLAIN_TICK == display.interval


def test_long_lines_stay_whole_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    """A message in a log is one line, however long."""
    Display().message("word " * 100)

    assert 1 == len(capsys.readouterr().err.splitlines())


@pytest.mark.parametrize(
    ("results", "out"),
    [
        ("paths", "o.png\n"),
        ("json", json.dumps(DONE.as_dict()) + "\n"),
        ("nothing", ""),
    ],
)
def test_results_go_to_stdout(
    capsys: pytest.CaptureFixture[str], results: Results, out: str
) -> None:
    """Paths or JSON, and nothing of it on stderr."""
    Display(results).report(DONE)

    assert (out, "") == capsys.readouterr()


def test_failures_have_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Picture, cause and advice, without reading markup; then the summary in one line."""
    text = "The engine found [bold]no[/bold] face.\x1b[31m"
    Display().close(RunSummary([failed("[link=x]b.jpg", text=text), DONE], 2, 3.0), Path("out"))
    out, err = capsys.readouterr()
    words = " ".join(err.replace("│", " ").split())

    assert "" == out
    assert "[link=x]b.jpg" in words
    assert "[bold]no[/bold]" in words
    assert "The vendor returns the units;" in words
    assert "\x1b" not in err
    assert err.endswith("1 done, 1 failed, 1 units, in 0:03; saved in out\n")


def test_many_failures_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """A table of over a hundred failures says how many are left out."""
    Display().close(RunSummary([failed(f"{n}.jpg") for n in range(103)], 103, 3.0), Path("out"))
    err = capsys.readouterr().err

    assert "and 3 more failures; --json prints all of them" in err
    assert "99.jpg" in err
    assert "100.jpg" not in err
    assert err.endswith("0 done, 103 failed, 0 units, in 0:03\n")


def test_a_failure_without_an_error_has_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure without a cause has no row."""
    Display().close(RunSummary([attrs.evolve(DONE, ok=False)], 1, 3.0), Path("out"))

    assert "a.jpg" not in capsys.readouterr().err


def test_a_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the view is drawn over itself and gone at the end; results stay."""
    tty = on_a_tty(monkeypatch)
    display = Display()
    with display:
        display.update(PROGRESS, statistics())
        first = tty.getvalue()
        display.update(attrs.evolve(PROGRESS, total=None), statistics())
        display.report(DONE)
        display.message(HOSTILE)
    text = tty.getvalue()

    assert TICK == display.interval
    assert "12 of 24" in first
    assert "10 done, 5 running, 7 waiting, 2 failed, 250 of 250 requests left, 10 units" in first
    assert "\x1b[1A\x1b[2K" in text[len(first) :]
    assert "o.png\n" in text
    assert ESCAPED in text
    assert "\x1b[31m" not in text


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that cannot move its cursor is treated as a log."""
    tty = on_a_tty(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")

    with Display() as display:
        display.update(PROGRESS, statistics())

    assert tty.getvalue().startswith("12 of 24: ")
    assert PLAIN_TICK == display.interval


def test_results_of_a_live_run_can_be_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results go to stdout where it leads elsewhere, and not onto the terminal."""
    tty = on_a_tty(monkeypatch)
    piped = io.StringIO()
    monkeypatch.setattr("sys.stdout", piped)

    with Display() as display:
        display.report(DONE)

    assert "o.png\n" == piped.getvalue()
    assert "o.png" not in tty.getvalue()


def test_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a table has titles and a frame; no markup is read."""
    tty = on_a_tty(monkeypatch)
    print_table(["id", "title"], [("male_1", "[red]古风\x1b")])

    assert "id" in tty.getvalue()
    assert "[red]古风\\x1b" in tty.getvalue()
    assert "┃" in tty.getvalue()


def test_a_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe a table is tab-separated lines."""
    print_table(["id", "title"], [("male_1", "a\tb"), ("x", "y")])

    assert "male_1\ta\\tb\nx\ty\n" == capsys.readouterr().out


def test_units_at_stake_are_said() -> None:
    """An abandoned task counts its units among those at stake."""
    error = TaskAbandoned("late", task_id="t", units_at_stake=1.0)
    report = JobReport("a.jpg", False, "t", 1.0, 600.0, (), error)

    assert "0 done, 1 failed, 1 units, 1 at stake, in 10:00" == str(RunSummary([report], 1, 600.0))
