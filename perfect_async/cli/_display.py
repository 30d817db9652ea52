"""What a person or a program sees of a run: results on stdout, all else on stderr.

The only file that imports rich. Names and what the vendor wrote are shown as they are: no markup is
read in them, and control characters are escaped.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias, assert_never

import attrs
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from perfect_async import ClientClosed, PerfectError, Progress, Statistics
from perfect_async.models import Source

TICK: Final = 0.25
"""Seconds between two pictures of a live display."""

PLAIN_TICK: Final = 10.0
"""Seconds between two lines where nobody watches live: a log."""

Results: TypeAlias = Literal["paths", "json", "nothing"]

_MOST_ROWS: Final = 100
_LOG_WIDTH: Final = 120


@attrs.frozen
class JobReport:
    """What became of one job, saving included; `source` as it may be shown (`shown`)."""

    source: str
    ok: bool
    task_id: str | None
    units: float
    duration: float | None
    files: tuple[Path, ...]
    error: PerfectError | None

    @property
    def sent(self) -> bool:
        """Whether it got as far as being tried: not where Ctrl-C came first."""
        return not isinstance(self.error, ClientClosed)

    def as_dict(self) -> dict[str, object]:
        """What `--json` says about it."""
        error = self.error
        return {
            "source": self.source,
            "ok": self.ok,
            "task_id": self.task_id,
            "units": self.units,
            "duration": None if self.duration is None else round(self.duration, 3),
            "files": [str(path) for path in self.files],
            "error": None
            if error is None
            else {
                "type": type(error).__name__,
                "message": error.message,
                "mend": error.mend,
                "code": getattr(error, "code", None),
            },
        }


@attrs.frozen
class RunSummary:
    """A run of `jobs` jobs, when it is over: what was told, and the seconds it took."""

    told: Sequence[JobReport]
    jobs: int
    seconds: float

    @property
    def done(self) -> int:
        """Jobs whose pictures were made and saved."""
        return sum(told.ok for told in self.told)

    @property
    def failures(self) -> list[JobReport]:
        """Jobs that were tried and have no saved pictures."""
        return [told for told in self.told if not told.ok and told.sent]

    @property
    def unsent(self) -> int:
        """Jobs that Ctrl-C came before."""
        return self.jobs - sum(told.sent for told in self.told)

    @property
    def units(self) -> float:
        """Units charged and not given back."""
        return sum(told.units for told in self.told)

    def __str__(self) -> str:
        at_stake = sum(told.error.units_at_stake for told in self.failures if told.error)
        parts = [f"{self.done} done", f"{len(self.failures)} failed"]
        parts += [f"{self.unsent} not sent"] if self.unsent else []
        parts += [f"{self.units:g} units"]
        parts += [f"{at_stake:g} at stake"] if at_stake else []
        return f"{', '.join(parts)}, in {clock(self.seconds)}"


def shown(source: Source) -> str:
    """A source as it may be shown: of a URL no credentials and no query, which may sign it."""
    text = os.fsdecode(source) if isinstance(source, str | os.PathLike) else repr(source)
    scheme, found, rest = text.partition("://")
    if not found:
        return text
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def printable(text: str) -> str:
    """`text` with everything escaped that a terminal would obey or not show."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def tolerant() -> None:
    """Let stdout escape what its encoding lacks: a name is no reason to stop paying attention."""
    stdout: object = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")


def complain(text: str) -> None:
    """One line on stderr that begins with the program's name."""
    sys.stderr.write(f"perfect-async: {printable(text)}\n")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows on stdout: a table for a person, tab-separated lines for a program."""
    if not sys.stdout.isatty():
        for row in rows:
            write("\t".join(printable(cell) for cell in row))
        return
    grid = Table()
    for title in titles:
        grid.add_column(title, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    Console(highlight=False).print(grid)


def write(line: str) -> None:
    """One line on stdout, at once; nothing where its reader has gone."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # `... | head`: the pictures are paid for and are saved all the same. What is still in the
        # buffer would raise again at the exit (Python's documentation of SIGPIPE).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Display:
    """One run's face: enter it, `tick` every `every` seconds, `tell` each outcome, `close`.

    `results` is what goes to stdout for each outcome: the paths of its files, or a line of JSON.
    """

    def __init__(self, results: Results = "paths") -> None:
        self._results: Results = results
        watched = sys.stderr.isatty()
        # Decided by the stream alone: FORCE_COLOR in a log would otherwise bring escape codes.
        self._console = Console(
            stderr=True,
            force_terminal=watched,
            width=None if watched else _LOG_WIDTH,
            highlight=False,
        )
        self._live: Live | None = None
        if watched and not self._console.is_dumb_terminal:
            # stderr passes through it, so that a warning does not break the picture; stdout may
            # lead elsewhere. No thread: `tick` draws.
            self._live = Live(
                console=self._console, auto_refresh=False, redirect_stdout=False, transient=True
            )

    @property
    def every(self) -> float:
        """Seconds from one `tick` to the next."""
        return PLAIN_TICK if self._live is None else TICK

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line for the person."""
        # A log keeps its lines whole.
        self._console.print(Text(printable(text)), soft_wrap=not self._console.is_terminal)

    def tick(self, progress: Progress, statistics: Statistics) -> None:
        """Show how it stands."""
        if self._live is None:
            self.say(_line(progress, statistics))
        else:
            self._live.update(_picture(progress, statistics), refresh=True)

    def tell(self, told: JobReport) -> None:
        """One outcome, as a result on stdout."""
        match self._results:
            case "json":
                lines = [json.dumps(told.as_dict())]
            case "paths":
                lines = [str(path) for path in told.files]
            case "nothing":
                lines = []
            case _:
                assert_never(self._results)
        for line in lines:
            if self._live is not None and sys.stdout.isatty():
                # Both streams are one screen: the line goes above the live picture.
                self._console.print(Text(printable(line)), soft_wrap=True)
            else:
                write(line)

    def close(self, summary: RunSummary, where: Path | None) -> None:
        """The failures, each with its mend, and the whole in one line; `where` it was saved, if in
        one place.
        """
        failures = summary.failures
        if failures:
            self._console.print(_failures(failures[:_MOST_ROWS]))
        if len(failures) > _MOST_ROWS:
            self.say(f"and {len(failures) - _MOST_ROWS} more failures; --json tells all of them")
        self.say(f"{summary}; saved in {where}" if summary.done and where else str(summary))


def _line(progress: Progress, statistics: Statistics) -> str:
    ended = progress.done + progress.failed
    return f"{ended} of {progress.total}: {', '.join(_facts(progress, statistics))}"


def _facts(progress: Progress, statistics: Statistics) -> list[str]:
    left = max(statistics.window_limit - statistics.requests_in_window, 0)
    facts = [
        f"{progress.done} done",
        f"{progress.running} running",
        f"{progress.waiting} waiting",
        f"{progress.failed} failed",
        f"{left} of {statistics.window_limit} requests left",
        f"{progress.units:g} units",
    ]
    return facts if progress.eta is None else [*facts, f"{clock(progress.eta)} to go"]


def _picture(progress: Progress, statistics: Statistics) -> Group:
    total = progress.total or 1
    ended = progress.done + progress.failed
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total, ended, width=40), Text(f"{ended} of {total}"))
    return Group(bar, Text(", ".join(_facts(progress, statistics))))


def _failures(failures: Iterable[JobReport]) -> Table:
    grid = Table(title="Failed", title_justify="left")
    grid.add_column("picture", overflow="fold", ratio=2)
    grid.add_column("what happened", overflow="fold", ratio=3)
    grid.add_column("what to do", overflow="fold", ratio=3)
    for told in failures:
        if told.error is not None:
            texts = (told.source, told.error.message, told.error.mend)
            grid.add_row(*(Text(printable(text)) for text in texts))
    return grid
