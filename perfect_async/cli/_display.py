"""Show a run: results on stdout; progress, messages and failures on stderr.

The only file that imports rich. Names and vendor texts are printed as they are: no markup is read
in them, and control characters are escaped.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, assert_never

import attrs
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from perfect_async.cli._output import OutputError, in_terminal_terms, print_line, printable
from perfect_async.errors import ClientClosed, PerfectError, shown_source
from perfect_async.models import Job, Progress, Source
from perfect_async.reports import Statistics

TICK: Final = 0.25
"""Seconds between two updates of a live display."""

PLAIN_TICK: Final = 10.0
"""Seconds between two lines of progress in a log."""

Results: TypeAlias = Literal["paths", "json", "nothing"]

_MOST_ROWS: Final = 100
_LOG_WIDTH: Final = 120


@attrs.frozen
class JobReport:
    """The outcome of one job, saving included; `source` is free of secrets (`redacted_source`).

    `already_there`: its files are of a former run, and nothing was bought. `changes`: what was
    changed in the picture to make it fit.
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

    @property
    def sent(self) -> bool:
        """Whether the job was tried; False where the run was stopped before."""
        return not isinstance(self.error, ClientClosed)

    def as_dict(self) -> dict[str, object]:
        """Return the fields that `--json` prints."""
        error = self.error
        return {
            "source": self.source,
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
                "message": error.message,
                "hint": error.hint,
                "code": getattr(error, "code", None),
            },
        }


@attrs.frozen
class RunSummary:
    """A finished run of `jobs` jobs: what became of each, and the seconds that all took.

    `stopped_by` is the signal that stopped it early; `output_failed` says that results could not
    be printed.
    """

    reports: Sequence[JobReport]
    jobs: int
    seconds: float
    stopped_by: int | None = attrs.field(default=None, kw_only=True)
    output_failed: bool = attrs.field(default=False, kw_only=True)

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
        parts += [f"{self.unsent} not sent"] if self.unsent else []
        parts += [f"{fitted} made to fit"] if fitted else []
        parts += [f"{self.units:g} units"]
        parts += [f"{at_stake:g} at stake"] if at_stake else []
        return f"{', '.join(parts)}, in {format_duration(self.seconds)}"


def report_there(job: Job, files: tuple[Path, ...]) -> JobReport:
    """Return the report of a job whose results are there already."""
    return JobReport(
        source=redacted_source(job.source),
        ok=True,
        task_id=None,
        units=0.0,
        duration=None,
        files=files,
        error=None,
        already_there=True,
    )


def report_refused(job: Job, error: PerfectError) -> JobReport:
    """Return the report of a job that was not sent because of `error`."""
    return JobReport(
        source=redacted_source(job.source),
        ok=False,
        task_id=None,
        units=0.0,
        duration=None,
        files=(),
        error=error,
    )


def redacted_source(source: Source) -> str:
    """Return the text of a source; of a URL without credentials and query, which may sign it."""
    text = os.fsdecode(source) if isinstance(source, str | os.PathLike) else repr(source)
    # The path of a file is whole: it tells one picture from another.
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
    line of JSON. An output that cannot be written any more does not end the run.
    """

    def __init__(self, results: Results = "paths") -> None:
        self._results: Results = results
        self.output_failed = False
        terminal = sys.stderr.isatty()
        # Only the stream decides: FORCE_COLOR would otherwise write escape codes into a log.
        self._console = _Stderr(
            stderr=True,
            force_terminal=terminal,
            width=None if terminal else _LOG_WIDTH,
            highlight=False,
        )
        self._live: Live | None = None
        if terminal and not self._console.is_dumb_terminal:
            # A warning on stderr is printed above the live display; stdout may lead elsewhere.
            # There is no thread: `update` draws.
            self._live = Live(
                console=self._console, auto_refresh=False, redirect_stdout=False, transient=True
            )

    @property
    def interval(self) -> float:
        """The seconds from one `update` to the next."""
        return PLAIN_TICK if self._live is None else TICK

    def __enter__(self) -> Self:
        if self._live is not None:
            with self._printing():
                self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
        """Print a message on stderr."""
        with self._printing():
            # A log keeps its lines whole.
            self._console.print(Text(printable(text)), soft_wrap=not self._console.is_terminal)

    def update(self, progress: Progress, statistics: Statistics) -> None:
        """Show the progress."""
        if self._live is None:
            self.message(_line(progress, statistics))
        else:
            with self._printing():
                self._live.update(_live_view(progress, statistics), refresh=True)

    def report(self, report: JobReport) -> None:
        """Print one outcome on stdout."""
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
                with self._printing():
                    self._console.print(Text(printable(line)), soft_wrap=True)
                continue
            try:
                print_line(line)
            except OutputError as exc:
                self.output_failed = True
                self.message(f"{exc} Results are saved and not printed.")

    def close(self, summary: RunSummary, where: Path | None) -> None:
        """Print the failures, and one line about the whole run, saved in the folder `where`."""
        failures = summary.failures
        if failures:
            with self._printing():
                self._console.print(_failures(failures[:_MOST_ROWS]))
        if len(failures) > _MOST_ROWS:
            self.message(
                f"and {len(failures) - _MOST_ROWS} more failures; --json prints all of them"
            )
        saved = summary.done or summary.already_there
        self.message(f"{summary}; saved in {where}" if saved and where else str(summary))


def _line(progress: Progress, statistics: Statistics) -> str:
    ended = progress.done + progress.failed
    return f"{ended} of {progress.total}: {', '.join(_counts(progress, statistics))}"


def _counts(progress: Progress, statistics: Statistics) -> list[str]:
    left = max(statistics.window_limit - statistics.requests_in_window, 0)
    counts = [
        f"{progress.done} done",
        f"{progress.running} running",
        f"{progress.waiting} waiting",
        f"{progress.failed} failed",
        f"{left} of {statistics.window_limit} requests left",
        f"{progress.units:g} units",
    ]
    return counts if progress.eta is None else [*counts, f"{format_duration(progress.eta)} to go"]


def _live_view(progress: Progress, statistics: Statistics) -> Group:
    total = progress.total or 1
    ended = progress.done + progress.failed
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total, ended, width=40), Text(f"{ended} of {total}"))
    return Group(bar, Text(", ".join(_counts(progress, statistics))))


def _failures(failures: Iterable[JobReport]) -> Table:
    grid = Table(title="Failed", title_justify="left")
    grid.add_column("picture", overflow="fold", ratio=2)
    grid.add_column("what happened", overflow="fold", ratio=3)
    grid.add_column("what to do", overflow="fold", ratio=3)
    for report in failures:
        if report.error is not None:
            texts = (report.error.message, report.error.hint)
            advice = [in_terminal_terms(text) for text in texts]
            grid.add_row(*(Text(printable(text)) for text in (report.source, *advice)))
    return grid
