"""The display: lines in a log, a live view on a terminal, and no escape codes from outside."""

import io
import json
from pathlib import Path

import attrs
import pytest

from perfect_async import (
    ClientClosed,
    Feature,
    FileId,
    JobRefused,
    Limits,
    PictureRefused,
    Polling,
    Progress,
    Smile,
    Statistics,
    TaskAbandoned,
    TaskFailed,
    UnitsExhausted,
)
from perfect_async.cli._display import (
    PLAIN_EACH,
    PLAIN_TICK,
    TICK,
    Display,
    JobReport,
    Results,
    RunSummary,
    format_duration,
    line_of,
    name_of,
    print_table,
    waits_for,
)
from perfect_async.models import Job, Source
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
        (Smile("https://host/a.jpg?sig=1"), "https://host/a.jpg"),
        (Feature("text-to-image/youcam", {"prompt": "a fox"}), "text-to-image/youcam"),
    ],
)
def test_names_hold_no_secrets(source: "Source | Job", text: str) -> None:
    """A URL loses its credentials and its query; a job without an input is named by its feature."""
    assert text == name_of(source)


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
    assert "1 done, 0 failed, 1 unit, in 0:01" == str(RunSummary([DONE], 1, 1.0))


def test_json_of_a_failure() -> None:
    """Type, message, hint and code, ASCII only."""
    facts = failed("ü").as_dict()

    assert {
        "source": "ü",
        "key": None,
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
    """In a log some ticks are a line without escape codes, whatever FORCE_COLOR says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        display = Display()
        with display:
            for _ in range(PLAIN_EACH):
                display.update(PROGRESS, statistics())
            display.update(attrs.evolve(PROGRESS, eta=None), statistics())
    err = capsys.readouterr().err

    first = "12 of 24: 10 done, 2 failed, 5 running, 7 waiting"
    last = "10 units, 250 of 250 requests left"
    assert [f"{first}, 1:15 to go, {last}", f"{first}, {last}"] == err.splitlines()
    assert PLAIN_TICK == display.interval


def test_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    """A full window is said from the first line on; in a log its countdown is said once."""
    nothing = attrs.evolve(PROGRESS, done=0, failed=0, running=0, waiting=24, eta=None)
    display = Display()
    for wait in (130.0, 129.0):
        display.update(nothing, attrs.evolve(statistics(), window_wait=wait))
    display.update(nothing, attrs.evolve(statistics(), reached=True, preparing=2))

    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("0 of 24: waiting for the request window: 2:10, 0 done")
    assert second.startswith("0 of 24: sending pictures, 0 done")


@pytest.mark.parametrize(
    ("changes", "progress", "text"),
    [
        ({"window_wait": 130.0}, {}, "waiting for the request window: 2:10"),
        ({}, {}, "waiting for the vendor's first answer"),
        ({"reached": True}, {}, "sending pictures"),
        ({"reached": True, "ready": 3}, {}, None),
        ({}, {"running": 1}, None),
        ({}, {"waiting": 0}, None),
    ],
)
def test_reasons_to_wait(
    changes: dict[str, object], progress: dict[str, object], text: str | None
) -> None:
    """While something runs, a run waits for nothing but the vendor's engine."""
    waiting = attrs.evolve(attrs.evolve(PROGRESS, running=0), **progress)  # type: ignore[arg-type]
    found = attrs.evolve(statistics(), **changes)  # type: ignore[arg-type]

    assert text == waits_for(waiting, found)


@pytest.mark.parametrize("width", [20, 40, 60, 79, 80, 200])
def test_the_line_fits(width: int) -> None:
    """In any width the line ends before the last column, with whole words where they fit."""
    line = line_of(PROGRESS, statistics(), None, width)

    assert len(line) < max(width, len("12 of 24: 10 done") + 1)
    assert line.startswith("12 of 24: 10 done")
    assert (width > 100) is line.endswith("requests left")


def test_a_shared_cause_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Failures come as they happen; one that all pictures share is printed once."""
    display = Display("nothing")
    for number in range(3):
        report = attrs.evolve(failed(f"{number}.jpg"), error=UnitsExhausted("No units are left."))
        display.report(report)
        display.report(failed(f"{number}.jpg"))

    assert [
        "failed: No units are left.",
        *(f"failed: {number}.jpg: no face was found (error_no_face)." for number in range(3)),
    ] == capsys.readouterr().err.splitlines()


def test_a_quiet_display(capsys: pytest.CaptureFixture[str]) -> None:
    """A quiet display prints results and, at the end, why some are missing."""
    display = Display(quiet=True)
    display.update(PROGRESS, statistics())
    display.wait_for("something")
    display.report(DONE)
    display.close(RunSummary([DONE, failed()], 2, 3.0), Path("out"))
    out, err = capsys.readouterr()

    assert "o.png\n" == out
    assert err.startswith("1 failed: no face was found")
    assert "1 done" not in err


def test_a_verbose_display(capsys: pytest.CaptureFixture[str]) -> None:
    """A verbose display prints each picture."""
    display = Display("nothing", verbose=True)
    display.report(DONE)
    display.report(attrs.evolve(DONE, already_there=True))

    assert ["done: a.jpg (1 unit, 2.0 s)", "already there: a.jpg"] == (
        capsys.readouterr().err.splitlines()
    )


def test_a_line_that_is_there_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line does not flicker: it is written where it changes, or the window does."""
    tty = on_a_tty(monkeypatch)
    with Display() as display:
        display.update(PROGRESS, statistics())
        drawn = len(tty.getvalue())
        display.update(PROGRESS, statistics())
        assert drawn == len(tty.getvalue())
        display._console.width = 40
        display.update(PROGRESS, statistics())
        assert drawn < len(tty.getvalue())


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


def test_failures_have_their_cause(capsys: pytest.CaptureFixture[str]) -> None:
    """Cause, advice and picture, without reading markup; then the summary in one line."""
    error = JobRefused("Found [bold]no[/bold] face.\x1b[31m")
    report = attrs.evolve(failed("[link=x]b.jpg"), error=error)
    Display().close(RunSummary([report, DONE], 2, 3.0), Path("out"))
    out, err = capsys.readouterr()
    hint = "Nothing was sent; correct the option named here."

    assert "" == out
    assert err.splitlines() == [
        f"1 failed: Found [bold]no[/bold] face.\\x1b[31m {hint}",
        "  [link=x]b.jpg",
        "1 done, 1 failed, 1 unit, in 0:03; saved in out",
    ]


def test_many_failures_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Failures of one cause are one line with some of the pictures; --verbose names all."""
    summary = RunSummary([failed(f"{n}.jpg") for n in range(103)], 103, 3.0)
    Display().close(summary, Path("out"))
    short = capsys.readouterr().err
    Display(verbose=True).close(summary, Path("out"))
    whole = capsys.readouterr().err

    assert "103 failed: no face was found (error_no_face)." in short
    assert "  0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 98 more\n" in short
    assert short.endswith("0 done, 103 failed, 0 units, in 0:03\n")
    assert "102.jpg\n" in whole


def test_many_causes_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """Of many causes the most frequent are named, and the others counted."""
    reports = [
        attrs.evolve(failed(f"{n}.jpg"), error=JobRefused(f"Reason {n}.")) for n in range(23)
    ]
    Display().close(RunSummary(reports, 23, 3.0), Path("out"))

    assert "3 failed for other reasons; --json prints all of them" in capsys.readouterr().err


def test_a_failure_without_an_error_has_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure without a cause has no row."""
    Display().close(RunSummary([attrs.evolve(DONE, ok=False)], 1, 3.0), Path("out"))

    assert "a.jpg" not in capsys.readouterr().err


def test_a_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal one line is drawn over itself and gone at the end; results stay."""
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
    line = "12 of 24: 10 done, 2 failed, 5 running, 7 waiting, 1:15 to go, 10 units"
    assert line in first
    assert "\n" not in first
    assert "\r\x1b[2K" in text[len(first) :]
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


def test_units_at_stake_are_printed() -> None:
    """An abandoned task counts its units among those at stake."""
    error = TaskAbandoned("late", task_id="t", units_at_stake=1.0)
    report = JobReport("a.jpg", False, "t", 1.0, 600.0, (), error)

    assert "0 done, 1 failed, 1 unit, 1 at stake, in 10:00" == str(RunSummary([report], 1, 600.0))
