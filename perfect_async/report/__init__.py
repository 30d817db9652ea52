"""The report of a run: one self-contained page (HTML), or a table (CSV).

    report = await batch.report("report.html")     # or "report.csv"

The page needs the extra `report` (jinja2, pillow); the values and the table need nothing. Pages
and tables are made of a `Report`, which `Batch.report` gives and `write` takes.
"""

from __future__ import annotations

from perfect_async.report._values import JobOutcome, Report, ReportFailure, ReportJob, ReportRequest
from perfect_async.report._writing import check_path, write

__all__ = [
    "JobOutcome",
    "Report",
    "ReportFailure",
    "ReportJob",
    "ReportRequest",
    "check_path",
    "write",
]
