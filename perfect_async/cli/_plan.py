"""The plan of a run before anything is bought: which pictures, at what price, how long.

Looking at the pictures here reads them once; the client looks at each again before it is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import attrs

from perfect_async._client.folder import look_at
from perfect_async.cli._exif import is_turned
from perfect_async.cli._inputs import Entry, Picture, Skipped, count_reasons
from perfect_async.errors import PictureRefused, quoted
from perfect_async.models import ASSUMED_LEASE, Job

ASKS_FROM: Final = 20.0
"""Units from which on a run on a terminal asks before it buys."""

_THREADS: Final = 4
# These numbers give the rough duration of a run. With a lease of 10 s a smile takes 2.5 requests
# and an avatar about 13, with one poll for each 8.8 s. The client polls every 9.3 s while more work
# waits than a window holds, which the estimate leaves out. The first window of 250 requests is
# free, and then 5 requests are possible in 6 s.
_WINDOW: Final = 250
_SUSTAINED: Final = 250 / 300
_AT_FIRST: Final = 2.5
_POLLED_EVERY: Final = 0.88
"""Seconds between two polls of a task, for each second of the lease."""
_CREATING: Final = 1.1
_SPARED: Final = 60.0
# Seconds of a task where none is documented: the avatars that were seen (contract: Durations seen).
_UNKNOWN: Final = (60.0, 150.0)
_MUCH: Final = 0.25
"""The share of the window from which on its use by others is printed."""
_MINUTE: Final = 60
_HOURS: Final = 90 * _MINUTE


@attrs.frozen
class Looked:
    """What looking at pictures gave: `refused` were named, `skipped` were found in a folder.

    `digests` are the SHA-256 of local pictures that can be sent. `equal` are pictures with the same
    content as an earlier one, with that one. `turned` are those that EXIF turns.
    """

    entries: list[Entry] = attrs.field(factory=list[Entry])
    digests: dict[Picture, str] = attrs.field(factory=dict[Picture, str])
    refused: list[tuple[Entry, PictureRefused]] = attrs.field(
        factory=list[tuple[Entry, PictureRefused]]
    )
    skipped: list[Skipped] = attrs.field(factory=list[Skipped])
    equal: list[tuple[Picture, Picture]] = attrs.field(factory=list[tuple[Picture, Picture]])
    turned: set[Picture] = attrs.field(factory=set[Picture])


def look_at_all(
    entries: Sequence[Entry],
    job_type: type[Job],
    *,
    fit: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Looked:
    """Look at the pictures of `entries`, in order; URLs stay as they are.

    Equal pictures come one after another, so that they are one task. With `fit` only those are
    refused here that cannot be made to fit. `on_step` is called with the number of those that were
    looked at.
    """
    looked = Looked()
    by_content: dict[tuple[str, str | None], list[Entry]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(partial(_look, job_type=job_type, fit=fit), entries)
        for number, (entry, (found, turned)) in enumerate(zip(entries, results, strict=True), 1):
            if on_step is not None:
                on_step(number)
            if isinstance(found, PictureRefused):
                if entry.named or isinstance(entry.picture, str):
                    looked.refused.append((entry, found))
                else:
                    message = found.message
                    if found.fittable:
                        message = f"{message.removesuffix('.')}; --fit makes it fit."
                    looked.skipped.append(Skipped(entry.picture, found.reason, message))
                continue
            if turned:
                looked.turned.add(entry.picture)
            content = found or str(entry.picture)
            if found is not None:
                looked.digests[entry.picture] = found
            by_content.setdefault((content, entry.key), []).append(entry)
    for first, *others in by_content.values():
        looked.entries.extend([first, *others])
        looked.equal.extend((other.picture, first.picture) for other in others)
    return looked


def _look(
    entry: Entry, job_type: type[Job], *, fit: bool
) -> tuple[str | PictureRefused | None, bool]:
    """Return the digest of a picture or why it is refused, and whether EXIF turns it."""
    picture = entry.picture
    if entry.problem is not None:
        return PictureRefused(entry.problem, reason="missing"), False
    try:
        found = look_at(picture, job_type)
    except PictureRefused as exc:
        return None if fit and exc.fittable else exc, False
    return found, not fit and isinstance(picture, Path) and is_turned(picture)


def cost_of(jobs: Sequence[Job], digests: Mapping[Picture, str]) -> float:
    """Return the units that `jobs` cost; equal ones are one task."""
    seen: set[object] = set()
    units = 0.0
    for job in jobs:
        source = job.source
        known = digests.get(source) if isinstance(source, Path | str) else None
        same = None if known is None else (known, job.key)
        if same is None or same not in seen:
            units += job.units
        seen.add(same)
    return units


def estimate_seconds(jobs: Sequence[Job], lease: float = ASSUMED_LEASE) -> float | None:
    """Estimate roughly how long `jobs` take with the documented limits; None for none."""
    if not jobs:
        return None
    lasts = sum(sum(job.usual or _UNKNOWN) / 2 for job in jobs) / len(jobs)
    requests = len(jobs) * (_CREATING + lasts / (_POLLED_EVERY * lease))
    at_first = requests / _AT_FIRST
    if requests > _WINDOW * 0.7:
        at_first = max(at_first, requests / _SUSTAINED - _SPARED)
    return lasts + at_first


def about(seconds: float) -> str:
    """Return a rough time for people: "under 1 min", "about 5 min", "about 2 h"."""
    if seconds < _MINUTE / 2:
        return "under 1 min"
    if seconds < _HOURS:
        return f"about {max(1, round(seconds / _MINUTE))} min"
    return f"about {round(seconds / _MINUTE / 60)} h"


def units_text(units: float) -> str:
    """Return a number of units: "1 unit", "2.5 units"."""
    return f"{units:g} {'unit' if units == 1 else 'units'}"


@attrs.frozen
class Order:
    """What a run will do; `str` is the line that says so.

    `send` jobs are sent for `units`, at most `max_units`, of a `balance` (None: unknown); with
    `at_most` a journal may know some of them. `there` are done already, `refused` were named and
    cannot be sent, `equal` share a task with another. `used_by_others` is the share of the request
    window that other processes have used. `priced`: the price is known, so that `units` is right.
    `turned` of those to send are turned by EXIF.
    """

    send: int
    there: int
    refused: int
    skipped: Sequence[Skipped]
    equal: int
    units: float
    seconds: float | None
    max_units: float | None = None
    at_most: bool = False
    balance: float | None = None
    used_by_others: float = 0.0
    priced: bool = True
    turned: int = 0

    @property
    def cost(self) -> float:
        """The units that the run may be charged at most."""
        return self.units if self.max_units is None else min(self.units, self.max_units)

    @property
    def suffices(self) -> bool:
        """Whether the balance is enough, as far as it is known."""
        return self.balance is None or self.cost <= self.balance

    @property
    def needs_consent(self) -> bool:
        """Whether a run on a terminal asks before it buys."""
        # An unknown price may be high.
        much = self.cost >= ASKS_FROM or not self.priced
        return self.send > 0 and (much or not self.suffices)

    def __str__(self) -> str:
        parts = [f"{self.send} to send"]
        parts += [f"{self.there} already there"] if self.there else []
        parts += [f"{self.refused} that cannot be sent"] if self.refused else []
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped ({count_reasons(self.skipped)})")
        parts += [f"{self.equal} equal to another"] if self.equal else []
        if not self.send:
            return f"{', '.join(parts)}: nothing to buy."
        limit = " (--max-units)" if self.cost < self.units else ""
        whole = "at most " if limit or self.at_most else ""
        balance = (
            " (balance unknown)" if self.balance is None else f" of a balance of {self.balance:g}"
        )
        price = "at an unknown price (its page names it, and --units passes it on)"
        if self.priced:
            price = f"{whole}{units_text(self.cost)}{limit}"
        parts.append(f"{price}{balance}")
        parts += [about(self.seconds)] if self.seconds is not None else []
        text = ", ".join(parts) + "."
        if self.turned:
            are, them = ("is", "it") if self.turned == 1 else ("are", "them")
            text += (
                f" {self.turned} {are} turned by EXIF and may come out turned; --fit turns {them} "
                "upright."
            )
        if self.used_by_others >= _MUCH:
            text += (
                f" Other processes have used {self.used_by_others:.0%} of the request window: it "
                "takes longer."
            )
        if not self.suffices:
            text += (
                " The balance does not suffice: what it does not cover is not sent and not charged."
            )
        return text


def equal_text(equal: tuple[Picture, Picture]) -> str:
    """Say that two pictures are the same."""
    one, other = (quoted(os.fspath(picture), 160) for picture in equal)
    return f"{one} is the same picture as {other}: one task, bought once."
