"""Show a run: results on stdout; progress, messages and failures on stderr.

The only file that imports rich. Names and vendor texts are printed as they are: no markup is read
in them, and control characters are escaped.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, assert_never

import attrs
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from perfect_async.cli._log_lines import LogLines
from perfect_async.cli._manifest import key_of
from perfect_async.cli._output import OutputError, print_line, printable
from perfect_async.cli._plan import units_text
from perfect_async.cli._summary import cause_of, causes, hint_of, is_shared, message_of
from perfect_async.cli._wording import in_terminal_terms
from perfect_async.errors import ClientClosed, PerfectError, shown_source
from perfect_async.models import Job, Progress, Source
from perfect_async.report import Report
from perfect_async.reports import Statistics

TICK: Final = 0.25
"""Seconds between two updates of a live display."""

PLAIN_TICK: Final = 1.0
"""Seconds between two updates of a log, which prints one of `PLAIN_EACH`, and what is new."""

PLAIN_EACH: Final = 10

Results: TypeAlias = Literal["paths", "json", "nothing"]

_LOG_WIDTH: Final = 120
_MOST_CAUSES: Final = 20


@attrs.frozen
class JobReport:
    """The outcome of one job, saving included; `source` is its name (`name_of`).

    `already_there`: its files are of a former run, and nothing was bought. `changes`: what was
    changed in the picture to make it fit. `key`: the job's own name, where a list gave it one.
    """

    source: str
    ok: bool
    task_id: str | None
    units: float
    duration: float | None
    files: tuple[Path, ...]
    error: PerfectError | None
    already_there: bool = attrs.field(default=False, kw_only=True)
    changes: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    key: str | None = attrs.field(default=None, kw_only=True)

    @property
    def sent(self) -> bool:
        """Whether the job was tried; False where the run was stopped before."""
        return not isinstance(self.error, ClientClosed)

    def as_dict(self) -> dict[str, object]:
        """Return the fields that `--json` prints."""
        error = self.error
        return {
            "source": self.source,
            "key": self.key,
            "ok": self.ok,
            "task_id": self.task_id,
            "units": self.units,
            "duration": None if self.duration is None else round(self.duration, 3),
            "files": [str(path) for path in self.files],
            "already_there": self.already_there,
            "changes": list(self.changes),
            "error": None
            if error is None
            else {
                "type": type(error).__name__,
                "message": in_terminal_terms(error.message),
                "hint": hint_of(error),
                "code": getattr(error, "code", None),
            },
        }


@attrs.frozen
class RunSummary:
    """A finished run of `jobs` jobs: what became of each, and the seconds that all took.

    `report` is that of the batch, if one is to be written, and `before` the first of `reports`,
    which are of jobs that were not part of it. `skipped` pictures of a folder cannot be sent and
    are no jobs. `stopped_by` is the signal that stopped it early;
    `output_failed` says that results could not be printed.
    """

    reports: Sequence[JobReport]
    jobs: int
    seconds: float
    stopped_by: int | None = attrs.field(default=None, kw_only=True)
    output_failed: bool = attrs.field(default=False, kw_only=True)
    skipped: int = attrs.field(default=0, kw_only=True)
    report: Report | None = attrs.field(default=None, kw_only=True, repr=False)
    before: Sequence[JobReport] = attrs.field(default=(), kw_only=True)

    @property
    def done(self) -> int:
        """The number of jobs whose pictures were made and saved."""
        return sum(report.ok and not report.already_there for report in self.reports)

    @property
    def already_there(self) -> int:
        """The number of jobs whose results were there before the run."""
        return sum(report.already_there for report in self.reports)

    @property
    def failures(self) -> list[JobReport]:
        """The jobs that were tried and have no saved pictures."""
        return [report for report in self.reports if not report.ok and report.sent]

    @property
    def unsent(self) -> int:
        """The number of jobs that were not sent before the run was stopped."""
        return self.jobs - sum(report.sent for report in self.reports)

    @property
    def units(self) -> float:
        """Units charged and not given back."""
        return sum(report.units for report in self.reports)

    def __str__(self) -> str:
        errors = [report.error for report in self.failures if report.error is not None]
        at_stake = sum(error.units_at_stake for error in errors)
        fitted = sum(bool(report.changes) for report in self.reports)
        parts = [f"{self.done} done", f"{len(self.failures)} failed"]
        parts += [f"{self.already_there} already there"] if self.already_there else []
        parts += [f"{self.skipped} skipped"] if self.skipped else []
        parts += [f"{self.unsent} not sent"] if self.unsent else []
        parts += [f"{fitted} made to fit"] if fitted else []
        parts += [units_text(self.units)]
        parts += [f"{at_stake:g} at stake"] if at_stake else []
        return f"{', '.join(parts)}, in {format_duration(self.seconds)}"


def report_there(job: Job, files: tuple[Path, ...]) -> JobReport:
    """Return the report of a job whose results are there already."""
    return JobReport(
        source=name_of(job),
        ok=True,
        task_id=None,
        units=0.0,
        duration=None,
        files=files,
        error=None,
        already_there=True,
        key=key_of(job),
    )


def report_refused(job: Job, error: PerfectError) -> JobReport:
    """Return the report of a job that was not sent because of `error`."""
    return JobReport(
        source=name_of(job),
        ok=False,
        task_id=None,
        units=0.0,
        duration=None,
        files=(),
        error=error,
        key=key_of(job),
    )


def name_of(shown: Job | Source) -> str:
    """Return the name of a job or a source; of a URL without credentials and query.

    Those may sign it. A job without an input has its feature's name.
    """
    if isinstance(shown, Job):
        return name_of(shown.source) or shown.feature
    text = os.fsdecode(shown) if isinstance(shown, str | os.PathLike) else repr(shown)
    # The path of a file stays whole, because it tells one picture from another.
    return shown_source(text) if "://" in text else text


def format_duration(seconds: float) -> str:
    """Return `seconds` as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows on stdout: as a table on a terminal, as tab-separated lines elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            print_line("\t".join(printable(cell) for cell in row))
        return
    grid = Table()
    for title in titles:
        grid.add_column(title, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    Console(highlight=False).print(grid)


class _Stderr(Console):
    """A console on stderr, which may be a terminal that was closed or a pipe without a reader."""

    def on_broken_pipe(self) -> None:
        """Print nothing more; rich would end the program, and lose the tasks that run."""
        self.quiet = True


class Display:
    """The display of one run.

    Enter it, call `update` every `interval` seconds and `report` for each outcome, leave it, and
    call `close`. `results` selects what stdout gets for each outcome: the paths of its files, or a
    line of JSON. A `quiet` one prints nothing else but errors; a `verbose` one each outcome, all
    names, and the library's log. An output that cannot be written any more does not end the run.
    """

    def __init__(
        self, results: Results = "paths", *, quiet: bool = False, verbose: bool = False
    ) -> None:
        self._results: Results = results
        self.quiet = quiet
        self.verbose = verbose
        self._waits_for: str | None = None
        self._printed_wait: str | None = None
        self._shown: tuple[str, int] | None = None
        self._updates = 0
        self._printed_causes: set[tuple[object, ...]] = set()
        self._refused: set[str] = set()
        self._named: set[str] = set()
        self.output_failed = False
        terminal = sys.stderr.isatty()
        # FORCE_COLOR must not write escape codes into a log, so the stream alone decides.
        self._console = _Stderr(
            stderr=True,
            force_terminal=terminal,
            width=None if terminal else _LOG_WIDTH,
            highlight=False,
        )
        self._live: Live | None = None
        if terminal and not self._console.is_dumb_terminal and not quiet:
            # A warning on stderr is printed above the live display; stdout may lead elsewhere.
            # rich starts no thread: `update` draws.
            self._live = Live(
                console=self._console, auto_refresh=False, redirect_stdout=False, transient=True
            )
        level = logging.DEBUG if verbose else logging.WARNING
        self._log = LogLines(self.log, logging.ERROR if quiet else level)

    @property
    def interval(self) -> float:
        """The seconds from one `update` to the next."""
        return PLAIN_TICK if self._live is None else TICK

    @property
    def is_live(self) -> bool:
        """Whether it draws over what it has drawn, so that what passes may be shown."""
        return self._live is not None

    def __enter__(self) -> Self:
        self._log.attach(alone=self.is_live)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._log.detach()
        self._stop()

    def _stop(self) -> None:
        """Take the line of a live display off the screen, until it is drawn again."""
        self._shown = None
        if self._live is not None:
            with self._printing():
                self._live.stop()

    @contextmanager
    def _printing(self) -> Generator[None]:
        """Print nothing more where stderr fails, as it does after its terminal was closed."""
        try:
            yield
        except OSError:
            self._console.quiet = True

    def message(self, text: str) -> None:
        """Print a message on stderr, unless it is quiet."""
        if not self.quiet:
            self.error(text)

    def error(self, text: str) -> None:
        """Print a message on stderr, also if it is quiet."""
        self._say(text, whole=not self._console.is_terminal)

    def log(self, text: str) -> None:
        """Print a line of the library's log on stderr, whole: ids in it can be copied."""
        self._say(text)

    def _say(self, text: str, *, whole: bool = True, end: str = "\n") -> None:
        """Print a text on stderr, above the live line; a `whole` one is not wrapped."""
        with self._printing():
            self._console.print(Text(printable(text)), end=end, soft_wrap=whole)

    def wait_for(self, text: str | None) -> None:
        """Show what the run waits for until the next call; None for what its progress says."""
        self._waits_for = text
        if text is None or text == self._printed_wait:
            return
        if self._live is None:
            self.message(text)
            self._printed_wait = text
        else:
            self._draw(text)

    def update(self, progress: Progress, statistics: Statistics) -> None:
        """Show the progress: on a terminal by one line, in a log by a line now and then."""
        waiting = self._waits_for or waits_for(progress, statistics)
        if self._live is not None:
            self._draw(line_of(progress, statistics, waiting, self._console.width))
        elif self._updates % PLAIN_EACH == 0 or self._is_new_wait(waiting):
            self.message(line_of(progress, statistics, waiting))
            self._printed_wait = waiting
        self._updates += 1

    def _is_new_wait(self, waiting: str | None) -> bool:
        """Whether a log has not said yet what the run waits for; a countdown is said once."""
        return waiting is not None and _stem(waiting) != _stem(self._printed_wait or "")

    def _draw(self, text: str) -> None:
        """Draw the line of a live display, unless it is there already."""
        shown = (printable(text), self._console.width)
        if self._live is None or shown == self._shown:
            return
        self._shown = shown
        with self._printing():
            line = Text(shown[0], no_wrap=True)
            # The last column stays empty: some terminals begin a new line there.
            line.truncate(shown[1] - 1, overflow="ellipsis")
            self._live.update(line)
            # An empty display takes a line too, so it starts with the first text.
            self._live.start()
            self._live.refresh()

    def ask(self, question: str) -> None:
        """Print a question on the terminal, and leave the cursor behind it."""
        self._stop()
        self._say(question, end=" ")

    def refused(self, job: Job, error: PerfectError) -> None:
        """Say that a picture cannot be sent, before its outcome is reported."""
        self._refused.add(name_of(job))
        if not self.quiet:
            self._named.add(name_of(job))
        self.message(f"cannot be sent: {message_of(error)} {hint_of(error)}")

    def _print_outcome(self, report: JobReport) -> None:
        """Print an outcome on stderr: a failure always, a success with `verbose`."""
        error = report.error
        if error is None:
            if self.verbose:
                self.message(_success_text(report))
        elif report.source in self._refused:
            pass
        elif is_shared(error):
            # All that fail in the same way are one line.
            if cause_of(error) not in self._printed_causes:
                self._printed_causes.add(cause_of(error))
                self.message(f"failed: {message_of(error)}")
        else:
            text = message_of(error)
            self.message(f"failed: {text if report.source in text else f'{report.source}: {text}'}")

    def report(self, report: JobReport) -> None:
        """Print one outcome: its results on stdout, and a failure on stderr."""
        self._print_outcome(report)
        match self._results:
            case "json":
                lines = [json.dumps(report.as_dict())]
            case "paths":
                lines = [str(path) for path in report.files]
            case "nothing":
                lines = []
            case _:
                assert_never(self._results)
        for line in lines:
            if self._live is not None and sys.stdout.isatty():
                # Both streams are one screen: the line goes above the live display.
                self._say(line)
                continue
            try:
                print_line(line)
            except OutputError as exc:
                self.output_failed = True
                self.message(f"{exc} Results are saved and not printed.")

    def close(self, summary: RunSummary, where: Path | None) -> None:
        """Print the failures, and one line about the whole run, saved in the folder `where`."""
        found = causes(summary.failures)
        # A single picture that cannot be sent was named with its cause before the run.
        found = [
            one for one in found if len(one.sources) > 1 or self._named.isdisjoint(one.sources)
        ]
        for cause in found[:_MOST_CAUSES]:
            for line in cause.lines(whole=self.verbose):
                self.error(line)
        if len(found) > _MOST_CAUSES:
            left = sum(len(cause.sources) for cause in found[_MOST_CAUSES:])
            self.error(f"{left} failed for other reasons; --json prints all of them")
        saved = summary.done or summary.already_there
        self.message(f"{summary}; saved in {where}" if saved and where else str(summary))


def waits_for(progress: Progress, statistics: Statistics) -> str | None:
    """Return what keeps a run from going on, None while it does."""
    if statistics.window_wait >= 1:
        return f"waiting for the request window: {format_duration(statistics.window_wait)}"
    if progress.running or not progress.waiting:
        return None
    if not statistics.reached:
        return "waiting for the vendor's first answer"
    return "sending pictures" if statistics.preparing or not statistics.ready else None


def line_of(
    progress: Progress, statistics: Statistics, waiting: str | None, width: int | None = None
) -> str:
    """Return the line that shows a run, with as much as fits into `width` columns."""
    ended = progress.done + progress.failed
    parts = [] if waiting is None else [waiting]
    parts += [f"{progress.done} done"]
    parts += [f"{progress.failed} failed"] if progress.failed else []
    parts += [f"{progress.running} running", f"{progress.waiting} waiting"]
    if progress.eta is not None and statistics.window_wait < 1:
        parts.append(f"{format_duration(progress.eta)} to go")
    left = max(statistics.window_limit - statistics.requests_in_window, 0)
    parts += [units_text(progress.units)]
    parts += [f"{left} of {statistics.window_limit} requests left"]
    line = f"{ended} of {progress.total}: {parts[0]}"
    for part in parts[1:]:
        if width is not None and len(line) + len(part) + 2 >= width:
            break
        line += f", {part}"
    return line


def _stem(waiting: str) -> str:
    return re.sub(r"[0-9:]+$", "", waiting)


def _success_text(report: JobReport) -> str:
    if report.already_there:
        return f"already there: {report.source}"
    lasted = "" if report.duration is None else f", {report.duration:.1f} s"
    return f"done: {report.source} ({units_text(report.units)}{lasted})"
