"""The demo: drawn portraits, a sandbox in this process, a report, a sheet and a summary.

Importing it needs the extra `demo`. The batch itself uses the public API, as any other.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from PIL import Image, ImageDraw, ImageFont, ImageOps

from perfect_async import Client, Limits, Polling, Smile
from perfect_async.cli._display import (
    Display,
    JobReport,
    RunSummary,
    format_duration,
    name_of,
)
from perfect_async.cli._inputs import Picture
from perfect_async.cli._output import printable
from perfect_async.cli._report import write_run
from perfect_async.cli._runner import run_batch
from perfect_async.cli._summary import hint_of, message_of

PORTRAITS: Final = 24
LIMITS: Final = Limits(requests=600, period=60.0, per_second=10)
POLLING: Final = Polling(interval=0.5, give_up_after=60.0)

# A code of failures that are not tried again: the same pictures fail each time.
_FAILURE: Final = "error_no_face"

_SIDE: Final = 112  # px of one picture on the sheet
_GAP: Final = 12
_HEAD: Final = 64
_FOOT: Final = 20
_ACROSS: Final = 4
_MOST: Final = 80  # pairs on the sheet
_PAPER: Final = "#fafafa"
_INK: Final = "#2c3e50"
_GREY: Final = "#dfe4ea"
_RED: Final = "#c0392b"


_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Demo:
    """A demo in the folder `out`: making it draws the portraits; call `run`, then `write_report`.

    `pictures` replaces the drawn portraits. The engine fails a share of `fail` of them (at least
    one, if it is above 0). `seed` selects the portraits and the pictures that fail.
    """

    def __init__(
        self, out: Path, pictures: Sequence[Picture] | None, *, fail: float, seed: int
    ) -> None:
        from perfect_async.sandbox import Durations, Faults, Sandbox

        self.out = out
        self.results = out / "results"
        self._drawn = pictures is None
        self._pictures = _draw(out / "originals", seed) if pictures is None else pictures
        failing = _failing(self._pictures, fail, seed)
        self._fails = len(failing)
        self._sandbox = Sandbox(
            seed=seed,
            requests=LIMITS.requests,
            period=LIMITS.period,
            per_second=LIMITS.per_second,
            lease=POLLING.lease,
            durations={"ai-smile": Durations(1.0, 0.3, high=1.8)},
            units=float(max(1000, len(self._pictures))),
            faults=Faults(by_picture=dict.fromkeys(failing, _FAILURE)),
            latency=0.02,
            jitter=0.03,
        )

    @property
    def announcement(self) -> str:
        """What the demo will do, and how its sandbox differs from the real service."""
        what = "drawn portraits" if self._drawn else "of your pictures"
        fails = f", {self._fails} of which the engine will fail" if self._fails else ""
        return (
            f"{len(self._pictures)} {what}{fails}, on a sandbox in this process: no key, "
            "no network. Its engine takes about a second, and a picture 2 to 5 s with its polls. "
            f"It allows {LIMITS.requests} requests a minute. The real engine takes 5 to 20 s, and "
            "250 requests in 5 minutes are allowed."
        )

    async def run(self, display: Display) -> RunSummary:
        """Make all pictures smile, and save the results."""
        client = Client(
            "demo",
            base_url="https://sandbox.example",
            transport=self._sandbox.transport(),
            limits=LIMITS,
            polling=POLLING,
        )
        jobs = [Smile(picture) for picture in self._pictures]
        return await run_batch(
            client,
            lambda opened: opened.batch(jobs, save_to=self.results),
            display,
            # A run for the vendor's results must not take those of the sandbox for its own.
            recorded=False,
            reported=True,
        )

    def write_report(self, summary: RunSummary) -> list[Path]:
        """Write the report, the contact sheet and the summary; return the paths to look at."""
        names = ("report.html", "contact-sheet.png", "summary.md", "summary.json")
        paths = [self.out / name for name in names]
        page, sheet, text, data = paths
        self.out.mkdir(parents=True, exist_ok=True)
        write_run(summary, page)
        _sheet(self._pictures, summary).save(sheet)
        text.write_text(self._summary(summary), encoding="utf-8")
        data.write_text(json.dumps(self._fields(summary), indent=2) + "\n", encoding="utf-8")
        return [*paths, self.results]

    def _fields(self, summary: RunSummary) -> dict[str, object]:
        ledger = self._sandbox.ledger
        return {
            "pictures": summary.jobs,
            "done": summary.done,
            "failed": len(summary.failures),
            "not_sent": summary.unsent,
            "seconds": round(summary.seconds, 1),
            # These are the vendor's numbers, not the client's.
            "units_charged": ledger.units_charged,
            "units_returned": ledger.units_returned,
            "units_wasted": ledger.units_wasted,
            "requests": dict(ledger.requests),
            "requests_refused": sum(ledger.refused.values()),
            "violations": list(ledger.violations),
            "outcomes": [report.as_dict() for report in summary.reports],
        }

    def _summary(self, summary: RunSummary) -> str:
        ledger = self._sandbox.ledger
        calls = ", ".join(f"{number} {kind}" for kind, number in sorted(ledger.requests.items()))
        text = f"""# A demo of perfect_async

- {summary}.
- The sandbox's ledger: {ledger.units_charged} charged, {ledger.units_returned} returned for
  failures, {ledger.units_wasted} wasted.
- Calls: {calls}; {sum(ledger.refused.values())} refused by its limits.
- Before and after: contact-sheet.png{_left_out(summary.jobs)}; the pictures: {self.results.name}/

The sandbox's engine draws the results in place of the vendor's: a drawn face is drawn again with a
smile, any other picture gets a stamp.
"""
        if not summary.failures:
            return text
        return "\n".join([text, "## Failed", "", *map(_failure, summary.failures), ""])


def _failure(report: JobReport) -> str:
    error = report.error
    reason = "" if error is None else f"{message_of(error)} {hint_of(error)}"
    return f"    {printable(report.source)}: {printable(reason)}"


def _left_out(pictures: int) -> str:
    return f" (the first {_MOST})" if pictures > _MOST else ""


def _draw(folder: Path, seed: int) -> list[Picture]:
    """Draw the portraits of `seed` into `folder`: one face and one file for each number."""
    from perfect_async.sandbox import portrait

    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Picture] = []
    for number in range(seed * PORTRAITS, (seed + 1) * PORTRAITS):
        path = folder / f"portrait-{number:02}.jpg"
        path.write_bytes(portrait(number))
        paths.append(path)
    return paths


def _failing(pictures: Iterable[Picture], share: float, seed: int) -> list[str]:
    """Choose the pictures that will fail; the sandbox knows them by digest or URL."""
    names = sorted({_name(picture) for picture in pictures})
    number = max(1, round(share * len(names))) if share > 0 else 0
    return random.Random(seed).sample(names, number)  # noqa: S311 - nothing secret


def _name(picture: Picture) -> str:
    if isinstance(picture, str):
        return picture
    try:
        with picture.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        # The client refuses it with a better message.
        return str(picture)


# The contact sheet.


def _sheet(pictures: Sequence[Picture], summary: RunSummary) -> Image.Image:
    """Draw every picture before and after, side by side; failures have a red frame."""
    reports = {report.source: report for report in summary.reports}
    pictured = pictures[:_MOST]
    across = min(_ACROSS, len(pictured))
    down = -(-len(pictured) // across)
    pair = 2 * _SIDE + _GAP
    size = (
        max(across * (pair + _GAP) + _GAP, 2 * (pair + _GAP)),
        _HEAD + down * (_SIDE + _FOOT + _GAP),
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 12), "perfect_async: before and after", _INK, ImageFont.load_default(20))
    counts = f"{summary.done} done, {len(summary.failures)} failed"
    line = f"{counts}, in {format_duration(summary.seconds)}"
    draw.text((_GAP, 38), line, _INK, ImageFont.load_default(14))
    for index, picture in enumerate(pictured):
        row, column = divmod(index, across)
        left = _GAP + column * (pair + _GAP)
        top = _HEAD + row * (_SIDE + _FOOT + _GAP)
        report = reports.get(name_of(picture))
        _paste(sheet, picture if isinstance(picture, Path) else None, left, top)
        _paste(sheet, report.files[0] if report and report.files else None, left + _SIDE, top)
        label, colour = Path(name_of(picture)).name, _INK
        if report is None or not report.ok:
            box = (left + _SIDE, top, left + 2 * _SIDE - 1, top + _SIDE - 1)
            draw.rectangle(box, outline=_RED, width=3)
            label, colour = f"{label}: {_reason(report)}", _RED
        _write(draw, (left, top + _SIDE + 3), label, colour)
    return sheet


def _reason(report: JobReport | None) -> str:
    if report is None or not report.sent:
        return "not sent"
    return str(getattr(report.error, "code", None) or type(report.error).__name__)


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: str) -> None:
    """Write the end of a line that is no wider than a pair."""
    font = ImageFont.load_default(12)
    draw.text(at, _line_of(text, font, 2 * _SIDE), colour, font)


def _line_of(text: str, font: _Font, width: int) -> str:
    """Return as much of the end of `text` as fits, escaped."""
    # The text is cut and not its escapes, which would be other characters then.
    while font.getlength(_escaped(text)) > width:
        text = text[1:]
    return _escaped(text)


def _escaped(text: str) -> str:
    """Escape what the built-in font lacks: it has Latin letters only."""
    return printable(text).encode("ascii", "backslashreplace").decode("ascii")


def _paste(sheet: Image.Image, path: Path | None, left: int, top: int) -> None:
    """Paste the picture at `path` into its square; grey where it cannot be read."""
    small = Image.new("RGB", (_SIDE, _SIDE), _GREY)
    if path is not None:
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                image.draft("RGB", (2 * _SIDE, 2 * _SIDE))
                upright = ImageOps.exif_transpose(image).convert("RGB")
            small = ImageOps.pad(upright, (_SIDE, _SIDE), color=_GREY)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            # Pillow cannot read HEIC without a plugin, and the file may not be a picture. The run
            # reports that.
            pass
    sheet.paste(small, (left, top))
