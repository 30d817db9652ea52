"""The report as CSV."""

import csv
import io
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from perfect_async.report import Report, ReportFailure, ReportJob
from perfect_async.report._table import COLUMNS, render_table
from tests.report.made import HOSTILE, smile_run

FORMULAS = "=+-@\uff1d\uff0b\uff0d\uff20"
"""In both widths."""


def rows(report: Report) -> list[dict[str, str]]:
    text = render_table(report).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def hostile_job(text: str) -> ReportJob:
    failure = ReportFailure(text, text, text, text, 1.0)
    details = {"template_id": text}
    return ReportJob(1, text, "failed", None, text, details, text, failure=failure)


def test_a_row_has_what_is_known_of_a_job() -> None:
    """Outcome, units, times and polls of each job, in the order of the jobs."""
    first, second = rows(smile_run())

    assert set(COLUMNS) == set(first)
    assert ("1", "in/a.jpg", "done", "1", "9.05", "0", "9.05", "1", "") == tuple(
        first[name]
        for name in (
            *("number", "source", "outcome", "units", "duration", "created", "ended", "polls"),
            "error",
        )
    )
    assert ("failed", "2", "TaskFailed", "error_no_face", "Use another picture.") == tuple(
        second[name] for name in ("outcome", "polls", "error", "code", "hint")
    )


def test_letters_of_every_script_stay() -> None:
    """The table is UTF-8 with a mark, by which spreadsheets know it."""
    report = Report((ReportJob(1, "Zoë-猫.jpg", "done", files=(Path("a.jpg"), Path("b.jpg"))),))

    assert render_table(report).startswith(b"\xef\xbb\xbf")
    assert ("Zoë-猫.jpg", "a.jpg | b.jpg") == tuple(rows(report)[0][n] for n in ("source", "files"))


@given(
    st.one_of(st.text(max_size=60), st.sampled_from(HOSTILE)), st.sampled_from(FORMULAS + "\t\r")
)
def test_no_cell_begins_a_formula(text: str, first: str) -> None:
    """Whatever a text begins with, no spreadsheet calculates it, and each job stays one row."""
    for each in (text, first + text, f"  {first}{text}"):
        [row] = rows(Report((hostile_job(each),)))

        for cell in row.values():
            assert cell.lstrip()[:1] not in set(FORMULAS)
            assert all(char.isprintable() for char in cell)
