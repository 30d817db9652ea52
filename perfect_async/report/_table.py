"""The report as a table: CSV with one row for each job."""

from __future__ import annotations

import csv
import io
from typing import Final

from perfect_async.report._account import TaskLine, timeline
from perfect_async.report._values import Report, ReportJob, shown

COLUMNS: Final = (
    *("number", "source", "feature", "details", "outcome", "task_id", "units", "duration"),
    *("created", "ended", "polls", "files", "error", "code", "message", "hint", "units_at_stake"),
)

_FORMULA: Final = frozenset("=+-@\uff1d\uff0b\uff0d\uff20\t\r\n")
"""What begins a formula in a spreadsheet, in both widths (OWASP: CSV Injection)."""

_LONGEST_CELL: Final = 32_000
"""Characters of a cell before any is escaped; Excel takes 32,767."""


def render_table(report: Report) -> bytes:
    """Return the table in UTF-8 with a mark at its beginning, without which Excel garbles letters.

    Times are in seconds, `created` and `ended` since the beginning of the run. A text that a
    spreadsheet would take for a formula begins with an apostrophe.
    """
    lines = {line.job.number: line for line in timeline(report)}
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for job in report.jobs:
        writer.writerow(_row(job, lines.get(job.number)))
    return out.getvalue().encode("utf-8-sig")


def _row(job: ReportJob, line: TaskLine | None) -> list[str]:
    failure = job.failure
    cells = (
        _number(job.number),
        _text(job.source),
        _text(job.feature),
        _text(", ".join(f"{name}={value}" for name, value in job.details.items())),
        job.outcome,
        _text(job.task_id or ""),
        _number(job.units),
        _number(job.duration),
        _number(None if line is None else line.began),
        _number(job.ended),
        _number(None if line is None else len(line.polls)),
        _text(" | ".join(str(path) for path in job.files)),
        _text("" if failure is None else failure.kind),
        _text("" if failure is None else failure.code or ""),
        _text("" if failure is None else failure.message),
        _text("" if failure is None else failure.hint),
        _number(None if failure is None else failure.units_at_stake),
    )
    return list(cells)


def _number(value: float | None) -> str:
    return "" if value is None else f"{round(value, 3):g}"


def _text(text: str) -> str:
    """Return a cell that a spreadsheet shows and does not calculate."""
    cell = shown(text, _LONGEST_CELL)
    # The escapes of `shown` begin with a backslash, so what is cut off here is white space alone.
    return f"'{cell}" if text[:1] in _FORMULA or cell.lstrip()[:1] in _FORMULA else cell
