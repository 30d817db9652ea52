"""What is measured: loads of jobs by their durations, and the time that they need at the least."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import attrs

from perfect_async.models import Avatar, Job, Smile

SMILE = Smile(b"")
AVATAR = Avatar(b"", template_id="any", output_count=1)


@attrs.frozen
class Slowdown:
    """From `at` seconds on every task lasts `lasts` seconds, those that run included."""

    at: float
    lasts: float


@attrs.frozen
class Load:
    """Jobs by the duration of each in seconds; `slowdown` draws when everything slows down.

    `earlier` are durations as they were before the load came, the same where it is None.
    """

    name: str
    durations: Callable[[random.Random], Sequence[float]]
    slowdown: Callable[[random.Random], Slowdown] | None = None
    job: Job = SMILE
    earlier: Callable[[random.Random], Sequence[float]] | None = None

    def known(self, seed: int, count: int = 150) -> list[float]:
        """`count` durations of earlier tasks, drawn with other seeds than the load's own."""
        found: list[float] = []
        while len(found) < count:
            rng = random.Random(f"{self.name}, known, {seed}, {len(found)}")
            found += (self.earlier or self.durations)(rng)
        return found[:count]


def lognormal(count: int, median: float, sigma: float) -> Callable[[random.Random], list[float]]:
    """`count` durations around `median` seconds."""
    return lambda rng: [rng.lognormvariate(math.log(median), sigma) for _ in range(count)]


def mixed(count: int, *parts: tuple[float, float, float]) -> Callable[[random.Random], list[float]]:
    """`count` durations, a share of them uniform in each (share, low, high) of `parts`."""

    def draw(rng: random.Random) -> list[float]:
        shares = [share for share, _, _ in parts]
        return [rng.uniform(*rng.choices(parts, shares)[0][1:]) for _ in range(count)]

    return draw


def stuck(
    count: int, median: float, sigma: float, share: float, lasts: float
) -> Callable[[random.Random], list[float]]:
    """Lognormal durations, a `share` of them `lasts` seconds instead."""

    def draw(rng: random.Random) -> list[float]:
        return [
            lasts if rng.random() < share else rng.lognormvariate(math.log(median), sigma)
            for _ in range(count)
        ]

    return draw


LOADS: tuple[Load, ...] = (
    Load("50 smiles", lognormal(50, 8, 0.35)),
    Load("200 smiles", lognormal(200, 8, 0.35)),
    Load("1000 smiles", lognormal(1000, 8, 0.35)),
    Load("200 avatars", lognormal(200, 60, 0.4), job=AVATAR),
    Load("1000 avatars", lognormal(1000, 60, 0.4), job=AVATAR),
    Load("200 of 15-40 s", mixed(200, (1, 15, 40))),
    Load("200, 5 % of 240 s", mixed(200, (0.95, 15, 40), (0.05, 240, 240))),
    Load("200, 20 % of 60-90 s", mixed(200, (0.8, 5, 8), (0.2, 60, 90))),
    Load("200 smiles, 2 % stuck", stuck(200, 8, 0.35, 0.02, 600)),
)


def drifting(
    count: int, median: float, sigma: float, factor: float
) -> Callable[[random.Random], list[float]]:
    """Lognormal durations whose median grows to `factor` times itself, evenly over the jobs."""

    def draw(rng: random.Random) -> list[float]:
        steps = [math.log(median) + math.log(factor) * k / count for k in range(count)]
        return [rng.lognormvariate(step, sigma) for step in steps]

    return draw


def first_long(
    count: int, long: int, lasts: tuple[float, float], median: float, sigma: float
) -> Callable[[random.Random], list[float]]:
    """`long` jobs of `lasts` (from, to) seconds, then lognormal ones."""

    def draw(rng: random.Random) -> list[float]:
        head = [rng.uniform(*lasts) for _ in range(long)]
        return head + [rng.lognormvariate(math.log(median), sigma) for _ in range(count - long)]

    return draw


def slowing(latest: float, lasts: float) -> Callable[[random.Random], Slowdown]:
    """Everything slows down at a random moment up to `latest` seconds."""
    return lambda rng: Slowdown(rng.uniform(0, latest), lasts)


FOOLING: tuple[Load, ...] = (
    Load("400 smiles, 5 x slower", drifting(400, 8, 0.35, 5), earlier=lognormal(400, 8, 0.35)),
    Load(
        "200, the first 30 of 90-120 s",
        first_long(200, 30, (90, 120), 8, 0.35),
        earlier=lognormal(200, 8, 0.35),
    ),
    Load("100 smiles, all at once 120 s", lognormal(100, 8, 0.35), slowing(90, 120)),
    Load("200 of 15-40 s, at once 120 s", mixed(200, (1, 15, 40)), slowing(400, 120)),
    Load("100 avatars, at once 120 s", lognormal(100, 60, 0.2), slowing(400, 120), job=AVATAR),
)
"""Meant to fool who believes the durations seen so far, up to about 120 s."""

BEYOND: tuple[Load, ...] = tuple(
    Load(f"100 {what}, at once {lasts} s", draw, slowing(90, lasts), job=job)
    for lasts in (300, 600)
    for what, draw, job in (
        ("smiles", lognormal(100, 8, 0.35), SMILE),
        ("avatars", lognormal(100, 60, 0.2), AVATAR),
    )
)
"""Slower than the default insures."""


def bound(durations: Sequence[float], files: int = 20) -> float:
    """The clairvoyant lower bound on the time, polls at exactly 10 s (design: the scheduling
    problem).

    A registration holds `files`. The design counts 20, so figures compare with earlier ones; the
    client registers up to 80 at once, by which the bound is 2 % lower for 50 pictures and 0.3 % for
    1000.
    """
    requests = len(durations) + math.ceil(len(durations) / files)
    requests += sum(max(1, math.ceil(duration / 10)) for duration in durations)
    windows = (requests - 1) // 250
    longest = max(durations)
    return max(longest, requests / 5, windows * 300 + (requests - windows * 250) / 5)
