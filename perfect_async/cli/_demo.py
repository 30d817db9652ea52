"""The demo: drawn portraits, a sandbox in this process, and everything a run leaves on the disk.

Importing it needs the extra `demo`. The batch itself goes through the public API, as any other.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont, ImageOps

from perfect_async import Client, Limits, Polling, Smile
from perfect_async.cli._display import Display, JobReport, RunSummary, clock, printable, shown
from perfect_async.cli._inputs import Found
from perfect_async.cli._runner import process

PORTRAITS: Final = 24
LIMITS: Final = Limits(requests=600, period=60.0, per_second=10)
POLLING: Final = Polling(interval=0.5, give_up_after=60.0)

# Of the codes that no other try mends: the same pictures fail each time.
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


class Demo:
    """One demo in the folder `out`: make it (draws the portraits), `run` it, let it `report`.

    `pictures` replaces the drawn portraits. Of the pictures a share of `fail` (at least one, if it
    is above 0) is failed by the engine; which ones, and which portraits, follows from `seed`.
    """

    def __init__(
        self, out: Path, pictures: Sequence[Found] | None, *, fail: float, seed: int
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
        """What is about to happen, and in what it is kinder than the real service."""
        what = "drawn portraits" if self._drawn else "of your pictures"
        fails = f", {self._fails} of which the engine will fail" if self._fails else ""
        return (
            f"{len(self._pictures)} {what}{fails}, on a sandbox in this process: no key, "
            f"no network. Its engine takes a second, and it allows {LIMITS.requests} requests a "
            "minute; the real one takes 5 to 20 s, and allows 250 in 5 minutes."
        )

    async def run(self, screen: Display) -> RunSummary:
        """Make all of them smile, and save what comes."""
        client = Client(
            "demo",
            base_url="https://sandbox.example",
            transport=self._sandbox.transport(),
            limits=LIMITS,
            polling=POLLING,
        )
        jobs = [Smile(one) for one in self._pictures]
        return await process(client, lambda one: one.batch(jobs, save_to=self.results), screen)

    def report(self, summary: RunSummary) -> list[Path]:
        """Write the contact sheet and the summary, and give the places worth a look."""
        paths = [self.out / name for name in ("contact-sheet.png", "summary.md", "summary.json")]
        sheet, text, data = paths
        self.out.mkdir(parents=True, exist_ok=True)
        _sheet(self._pictures, summary).save(sheet)
        text.write_text(self._summary(summary), encoding="utf-8")
        data.write_text(json.dumps(self._facts(summary), indent=2) + "\n", encoding="utf-8")
        return [*paths, self.results]

    def _facts(self, summary: RunSummary) -> dict[str, object]:
        ledger = self._sandbox.ledger
        return {
            "pictures": summary.jobs,
            "done": summary.done,
            "failed": len(summary.failures),
            "not_sent": summary.unsent,
            "seconds": round(summary.seconds, 1),
            # The vendor's side of it, not the client's.
            "units_charged": ledger.units_charged,
            "units_returned": ledger.units_returned,
            "units_wasted": ledger.units_wasted,
            "requests": dict(ledger.requests),
            "requests_refused": sum(ledger.refused.values()),
            "violations": list(ledger.violations),
            "outcomes": [told.as_dict() for told in summary.told],
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

The results are drawn by the sandbox's engine, which takes the place of the vendor's: a drawn face
is drawn again with a smile, any other picture gets a stamp.
"""
        if not summary.failures:
            return text
        return "\n".join([text, "## Failed", "", *map(_failure, summary.failures), ""])


def _failure(told: JobReport) -> str:
    error = told.error
    why = "" if error is None else f"{error.message} {error.mend}"
    return f"    {printable(told.source)}: {printable(why)}"


def _left_out(pictures: int) -> str:
    return f" (the first {_MOST})" if pictures > _MOST else ""


def _draw(folder: Path, seed: int) -> list[Found]:
    """Draw the portraits of `seed` into `folder`; each number has one face and one file."""
    from perfect_async.sandbox import portrait

    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Found] = []
    for number in range(seed * PORTRAITS, (seed + 1) * PORTRAITS):
        path = folder / f"portrait-{number:02}.jpg"
        path.write_bytes(portrait(number))
        paths.append(path)
    return paths


def _failing(pictures: Iterable[Found], share: float, seed: int) -> list[str]:
    """The pictures that are to fail, by what the sandbox knows them by: digest or URL."""
    names = sorted({_name(picture) for picture in pictures})
    number = max(1, round(share * len(names))) if share > 0 else 0
    return random.Random(seed).sample(names, number)  # noqa: S311 - nothing secret


def _name(picture: Found) -> str:
    if isinstance(picture, str):
        return picture
    try:
        with picture.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        # The client refuses it in a better way.
        return str(picture)


# The contact sheet.


def _sheet(pictures: Sequence[Found], summary: RunSummary) -> Image.Image:
    """Every picture before and after, side by side; what failed has a red frame."""
    outcomes = {told.source: told for told in summary.told}
    shown_here = pictures[:_MOST]
    across = min(_ACROSS, len(shown_here))
    down = -(-len(shown_here) // across)
    pair = 2 * _SIDE + _GAP
    size = (
        max(across * (pair + _GAP) + _GAP, 2 * (pair + _GAP)),
        _HEAD + down * (_SIDE + _FOOT + _GAP),
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 12), "perfect_async: before and after", _INK, ImageFont.load_default(20))
    line = f"{summary.done} done, {len(summary.failures)} failed, in {clock(summary.seconds)}"
    draw.text((_GAP, 38), line, _INK, ImageFont.load_default(14))
    for index, picture in enumerate(shown_here):
        row, column = divmod(index, across)
        left = _GAP + column * (pair + _GAP)
        top = _HEAD + row * (_SIDE + _FOOT + _GAP)
        told = outcomes.get(shown(picture))
        _place(sheet, picture if isinstance(picture, Path) else None, left, top)
        _place(sheet, told.files[0] if told and told.files else None, left + _SIDE, top)
        label, colour = Path(shown(picture)).name, _INK
        if told is None or not told.ok:
            box = (left + _SIDE, top, left + 2 * _SIDE - 1, top + _SIDE - 1)
            draw.rectangle(box, outline=_RED, width=3)
            label, colour = f"{label}: {_why(told)}", _RED
        _write(draw, (left, top + _SIDE + 3), label, colour)
    return sheet


def _why(told: JobReport | None) -> str:
    if told is None or not told.sent:
        return "not sent"
    return str(getattr(told.error, "code", None) or type(told.error).__name__)


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, colour: str) -> None:
    """One line that stays below its pair; the built-in font knows Latin letters only."""
    font = ImageFont.load_default(12)
    words = printable(text).encode("ascii", "backslashreplace").decode("ascii")
    while font.getlength(words) > 2 * _SIDE:
        words = words[1:]
    draw.text(at, words, colour, font)


def _place(sheet: Image.Image, path: Path | None, left: int, top: int) -> None:
    """Put the picture of `path` into its square; a grey square where there is none to be read."""
    small = Image.new("RGB", (_SIDE, _SIDE), _GREY)
    if path is not None:
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                image.draft("RGB", (2 * _SIDE, 2 * _SIDE))
                upright = ImageOps.exif_transpose(image).convert("RGB")
            small = ImageOps.pad(upright, (_SIDE, _SIDE), color=_GREY)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            # HEIC needs a plugin, and a file may be no picture at all: the run tells.
            pass
    sheet.paste(small, (left, top))
