"""The report as a page: one HTML file that loads nothing from anywhere.

The only file that imports jinja2. Every text is escaped by the template (autoescape); the page's
policy (CSP) allows its own script and style alone, by their digests, and pictures in `data:` URLs.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast
from urllib.parse import quote

import attrs
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from perfect_async._value import Value
from perfect_async.report import _chart
from perfect_async.report._account import Account, account, causes, timeline
from perfect_async.report._thumbnails import Thumbnail, thumbnails
from perfect_async.report._values import JobOutcome, Report, ReportJob, short_name, shown

_HERE: Final = Path(__file__).parent
_OUTCOMES: Final[tuple[JobOutcome, ...]] = (
    "done",
    "failed",
    "running",
    "not sent",
    "already there",
)
_MOST_CAUSES: Final = 20
_SHORT: Final = 100.0  # seconds
_NAMED: Final = 3
"""Pictures that a cause of failures names; it counts the others."""


@attrs.frozen(eq=False, repr=False)
class ResultView(Value):
    """A result on its card: its thumbnail, its name, and where the page finds its file."""

    thumbnail: Thumbnail | None
    name: str
    place: str


@attrs.frozen(eq=False, repr=False)
class Card(Value):
    """A job on the page: short `facts` below its name, `details`, and what a search looks at."""

    job: ReportJob
    name: str
    before: Thumbnail | None
    results: tuple[ResultView, ...]
    facts: tuple[str, ...]
    details: tuple[str, ...]
    search: str


@attrs.frozen(eq=False, repr=False)
class Tile(Value):
    """A number at the head of the page, with what it is and a note below it."""

    label: str
    value: str
    note: str


def render_page(report: Report, folder: Path) -> bytes:
    """Return the page in UTF-8; its links lead to results as seen from `folder`."""
    lines = timeline(report)
    style, script = (Markup((_HERE / name).read_text("utf-8")) for name in ("page.css", "page.js"))  # noqa: S704 - ours
    pictures = [job.picture for job in report.jobs if job.picture is not None]
    pictures += [path for job in report.jobs for path in job.files]
    small = thumbnails(pictures)
    counts = {outcome: sum(job.outcome == outcome for job in report.jobs) for outcome in _OUTCOMES}
    context: Mapping[str, object] = {
        "report": report,
        "heading": heading(report),
        "tiles": tiles(report, account(report, lines)),
        "counts": {outcome: count for outcome, count in counts.items() if count},
        "causes": causes(report.jobs),
        "most_causes": _MOST_CAUSES,
        "named": _NAMED,
        "chart": _chart.chart(report, lines),
        "window_height": _chart.WINDOW_HEIGHT,
        "width": _chart.WIDTH,
        "cards": [_card(job, small, folder) for job in report.jobs],
        "style": style,
        "script": script,
        "style_digest": _digest(style),
        "script_digest": _digest(script),
    }
    return _template().render(context).encode()


@functools.cache
def _template() -> Template:
    """Return the compiled template; compiling takes longer than rendering a small page."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Jinja types this as a dict without parameters.
    filters = cast("dict[str, object]", environment.filters)  # pyright: ignore[reportUnknownMemberType]
    filters.update(shown=shown, name=short_name, minutes=_chart.minutes)
    return environment.get_template("page.html")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def heading(report: Report) -> str:
    """Return the line below the title: when it was, and how long it took."""
    count = len(report.jobs) + report.left_out
    parts = [f"{count} {'picture' if count == 1 else 'pictures'}"]
    if report.began is not None:
        parts.append(f"{report.began:%d %B %Y, %H:%M} UTC")
    if report.seconds is not None:
        parts.append(f"in {_lasting(report.seconds)}")
    if report.left_out:
        parts.append(f"the last {len(report.jobs)} are shown")
    return " · ".join(parts)


def tiles(report: Report, numbers: Account) -> list[Tile]:
    """Return the account of a run as people read it."""
    rest = [
        f"{count} {what}"
        for count, what in (
            (numbers.failed, "failed"),
            (numbers.running, "running"),
            (numbers.unsent, "not sent"),
            (numbers.already_there, "already there"),
        )
        if count
    ]
    found = [Tile("done", str(numbers.done), ", ".join(rest) or "none failed")]
    if report.charged or report.at_stake or report.requests:
        spent = report.charged - report.returned
        note = f"{units(report.charged)} charged, {units(report.returned)} returned"
        found.append(Tile("units spent", units(spent), note))
        stake = (
            "charged, or perhaps, without a result"
            if report.at_stake
            else "nothing lost or in doubt"
        )
        found.append(Tile("units at stake", units(report.at_stake), stake))
    if numbers.per_picture is not None:
        fewest = numbers.bound_per_picture
        note = "" if fewest is None else f"no schedule needs fewer than {fewest:.2f}"
        found.append(Tile("requests a picture", f"{numbers.per_picture:.2f}", note))
    if numbers.requests:
        kinds = ", ".join(
            f"{count} {_KINDS[kind]}{'' if count == 1 else 's'}"
            for kind, count in numbers.by_kind
            if count
        )
        refused = f"; {numbers.refused} refused" if numbers.refused else ""
        found.append(Tile("requests", str(numbers.requests), f"{kinds}{refused}"))
    if numbers.median is not None:
        slow = f"19 of 20 within {_seconds(numbers.slow)} (p95)"
        found.append(Tile("median duration (p50)", _seconds(numbers.median), slow))
    if numbers.bound is not None and report.seconds is not None:
        least = f"no schedule needs less than {_lasting(numbers.bound.seconds)}"
        found.append(Tile("time", _lasting(report.seconds), least))
    if numbers.margin is not None:
        note = f"left of a {report.lease:g} s lease at its closest poll"
        found.append(Tile("lease to spare", _seconds(numbers.margin), note))
    return found


_KINDS: Final = {"register": "registration", "create": "creation", "poll": "poll"}


def units(amount: float) -> str:
    """Return an amount of units, without a fraction where there is none."""
    return f"{amount:g}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"


def _lasting(seconds: float) -> str:
    """Return how long a run took: to a tenth of a second where that is much of it."""
    return _seconds(seconds) if seconds < _SHORT else _chart.minutes(seconds)


def _card(job: ReportJob, small: Mapping[Path, Thumbnail], folder: Path) -> Card:
    details = [shown(f"{name}: {value}", 200) for name, value in job.details.items()]
    facts = [shown(job.feature, 80)] if job.feature else []
    if job.units:
        facts.append(f"{units(job.units)} {'unit' if job.units == 1 else 'units'}")
    if job.duration is not None:
        facts.append(_seconds(job.duration))
    failure = job.failure
    searched = [job.source, job.outcome, job.task_id or "", *facts, *details]
    if failure is not None:
        searched += [failure.kind, failure.code or "", failure.message]
    return Card(
        job=job,
        name=short_name(job.source),
        before=None if job.picture is None else small.get(job.picture),
        results=tuple(
            ResultView(small.get(path), shown(path.name, 120), _place(path, folder))
            for path in job.files
        ),
        facts=tuple(facts),
        details=tuple(details),
        search=shown(" ".join(searched)).lower(),
    )


def _place(path: Path, folder: Path) -> str:
    """Return the URL of a file, relative so that both may be moved together."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:
        # On Windows the file may be on another drive.
        return path.absolute().as_uri()
    parts = Path(relative).parts
    # A colon is escaped too, so that no browser takes a name for a scheme.
    return "/".join(quote(os.fsencode(part), safe="") for part in parts)
