"""The drawing of a timeline: times become coordinates, which the page's template writes as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from perfect_async._value import Value
from perfect_async.report._account import TaskLine, percentile
from perfect_async.report._values import Report, ReportJob, short_name

WIDTH: Final = 1000
"""Units from the beginning to the end, however wide the page is."""
WINDOW_HEIGHT: Final = 88

_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200)
_MOST_LABELS: Final = 6
"""Labels in the width of a page."""
_LAST_LABEL: Final = 0.96
"""The share of the width after which a label ends at its moment, instead of being cut off."""
_ROWS: Final = ((48, 22), (200, 14))
"""Lines up to which each is so many pixels high, and has room for a name."""
_LOWEST_ROW: Final = 7
_LEAST_SHARE: Final = 0.04
"""The share of the page's width that a usual line has at least; else the drawing is wider."""
_MOST_PAGES: Final = 25
_LEAST_PIXELS: Final = 700
"""The width of the drawing on the narrowest page, where it can be scrolled (page.css)."""
_LETTER: Final = 7
"""The width of a letter in pixels, roughly."""


@attrs.frozen(eq=False, repr=False)
class Bar(Value):
    """A rectangle: its left edge and its width."""

    x: str
    width: str


@attrs.frozen(eq=False, repr=False)
class Row(Value):
    """One task's line: `y` is its upper edge.

    `polls` and `unanswered` are paths of ticks; `label_x` is where its name begins, or ends.
    """

    job: ReportJob
    y: int
    leases: tuple[Bar, ...]
    runs: tuple[Bar, ...]
    polls: str
    unanswered: str
    label_x: str
    label_ends: bool
    line: TaskLine


@attrs.frozen(eq=False, repr=False)
class Label(Value):
    """A moment on the axis, at a share of the width; the `anchor` of its text as in SVG."""

    x: str
    text: str
    anchor: str


@attrs.frozen(eq=False, repr=False)
class Chart(Value):
    """A timeline with its axis, `pages` times as wide as the page.

    `window` is the path of the window's use, `limit_y` where its limit is. `named`: lines have room
    for a name.
    """

    pages: int
    rows: tuple[Row, ...]
    row_height: int
    height: int
    labels: tuple[Label, ...]
    window: str
    limit_y: str
    most_in_window: int
    named: bool


def chart(report: Report, lines: Sequence[TaskLine]) -> Chart | None:
    """Return the drawing of `lines`, None where nothing was seen."""
    if not lines:
        return None
    end = max(
        *(line.until for line in lines),
        *(request.left for request in report.requests),
        report.seconds or 0.0,
        1.0,
    )
    row_height = next((height for most, height in _ROWS if len(lines) <= most), _LOWEST_ROW)
    usual = percentile((line.until - line.began for line in lines), 0.5) or end
    pages = min(_MOST_PAGES, max(1, round(_LEAST_SHARE * end / usual)))
    scale = WIDTH / end
    used = list(_window_use(report, end))
    top = max(report.requests_limit, *(count for _, count in used))
    return Chart(
        pages=pages,
        rows=tuple(
            _row(line, index * row_height, row_height, scale, pages)
            for index, line in enumerate(lines)
        ),
        row_height=row_height,
        height=len(lines) * row_height,
        labels=_labels(end, pages),
        window=_steps(used, scale, top),
        limit_y=_n(_height(report.requests_limit, top)),
        most_in_window=max(count for _, count in used),
        named=row_height > _LOWEST_ROW,
    )


def _row(line: TaskLine, y: int, row_height: int, scale: float, pages: int) -> Row:
    ticks = {
        answered: [at for at, was in line.polls if was is answered] for answered in (True, False)
    }
    first, last = line.began * scale, line.until * scale
    # The name stands beside the line, on the side with more room. Text that is cut off on the left
    # cannot be scrolled to.
    room = first * pages * _LEAST_PIXELS / WIDTH
    ends = WIDTH - last < first and len(short_name(line.job.source)) * _LETTER < room
    until = [end if end is not None else line.until for _, end in line.runs]
    return Row(
        job=line.job,
        y=y,
        leases=tuple(_bar(*lease, scale) for lease in line.leases),
        runs=tuple(
            _bar(began, end, scale) for (began, _), end in zip(line.runs, until, strict=True)
        ),
        polls=_ticks(ticks[True], y, row_height, scale),
        unanswered=_ticks(ticks[False], y, row_height, scale),
        label_x=f"{_n((first if ends else last) * 100 / WIDTH)}%",
        label_ends=ends,
        line=line,
    )


def _bar(began: float, end: float, scale: float) -> Bar:
    return Bar(_n(began * scale), _n(max(1.0, (end - began) * scale)))


def _ticks(times: Iterable[float], y: int, row_height: int, scale: float) -> str:
    return "".join(f"M{_n(at * scale)} {y + 1}v{row_height - 2}" for at in times)


def _window_use(report: Report, end: float) -> Iterable[tuple[float, int]]:
    """Yield the requests that occupy the window, as (since when, how many)."""
    # Between two requests the count falls as older ones leave the window.
    changes = [(request.left, request.in_window) for request in report.requests]
    changes += [
        (request.answered + report.period, -1)
        for request in report.requests
        if request.answered is not None and request.answered + report.period < end
    ]
    used = 0
    yield 0.0, 0
    for at, count in sorted(changes):
        used = count if count > 0 else max(0, used - 1)
        yield at, used
    yield end, used


def _steps(used: Iterable[tuple[float, int]], scale: float, top: int) -> str:
    """Return the path of an area: the most in each unit of the width."""
    columns: dict[int, int] = {}
    for at, count in used:
        column = round(at * scale)
        columns[column] = max(count, columns.get(column, 0))
    path, before = [f"M0 {WINDOW_HEIGHT}"], 0
    for column, count in sorted(columns.items()):
        if count != before:
            path.append(f"H{column}V{_n(_height(count, top))}")
            before = count
    return f"{''.join(path)}H{WIDTH}V{WINDOW_HEIGHT}Z"


def _height(count: int, top: int) -> float:
    # The margin keeps the line of the limit whole at the top.
    return 2 + (WINDOW_HEIGHT - 2) * (1 - count / top)


def _labels(end: float, pages: int) -> tuple[Label, ...]:
    step = next((step for step in _STEPS if end / step <= _MOST_LABELS * pages), _STEPS[-1])
    return tuple(
        Label(
            f"{_n(at * 100 / end)}%",
            minutes(at),
            "start" if at == 0 else "end" if at > _LAST_LABEL * end else "middle",
        )
        for at in range(0, int(end) + 1, step)
    )


def minutes(seconds: float) -> str:
    """Return `seconds` as m:ss or h:mm:ss."""
    whole, rest = divmod(round(seconds), 60)
    hours, whole = divmod(whole, 60)
    return f"{hours}:{whole:02}:{rest:02}" if hours else f"{whole}:{rest:02}"


def _n(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
