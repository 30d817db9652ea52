"""Measure how soon a single `run` on an idle client returns after the end of its task.

Each run goes through the public client against the sandbox in virtual time, with nothing else going
on and an empty window: smiles of 8 s and avatars of 60 s (lognormal, at most 150 s), a round trip
of 0.15 s, and
the polling interval that the client takes where the vendor names none (2 s), or one that he names
(1 and 5 s). Measured is the time from the end at the vendor to the return of `run`. It should be an
interval and a round trip at most, and half an interval and a round trip at the median.

    python benchmarks/latency.py [SEED ...] [--out latency.png]        # seeds 0 to 4 if none

Each seed is 40 runs of each kind and interval. Exit status 1 where a target is missed, or anything
was refused or lost.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist, median

import attrs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import seeded, seeds_of
from perfect_async import Avatar, Client, Job, Smile
from perfect_async.sandbox import Durations, Sandbox
from tests.support.virtual_time import run

ROUND_TRIP = 0.15
RUNS = 40
TICK = 1e-6
"""The sandbox counts in microseconds."""
IDLE = 311.0
"""Seconds between two runs: nothing of the one before is left in the window."""
DURATIONS = {"ai-smile": (8.0, 0.35, 60.0), "ai-avatar": (60.0, 0.4, 150.0)}
"""Median, sigma and the longest: what the contract page has seen. A poll a second for longer would
need the whole window.
"""
INTERVALS: tuple[tuple[float, int | None], ...] = ((2.0, None), (1.0, 1000), (5.0, 5000))
"""Seconds, and what the vendor says in milliseconds."""


@attrs.frozen
class Case:
    """One kind of task at one polling interval."""

    feature: str
    interval: float
    vendor_interval: int | None

    def job(self, number: int) -> Job:
        """A job of a picture at a URL, which needs no upload."""
        url = f"https://pictures.example/{number}.jpg"
        if self.feature == "ai-smile":
            return Smile(url, key=str(number))
        return Avatar(url, "male_studio_00", key=str(number))

    def __str__(self) -> str:
        who = "vendor" if self.vendor_interval else "ours"
        return f"{self.feature.removeprefix('ai-')}, {self.interval:g} s ({who})"


CASES = tuple(
    Case(feature, interval, vendor_interval)
    for interval, vendor_interval in INTERVALS
    for feature in DURATIONS
)


@attrs.frozen
class Delays:
    """The seconds from the end of each task to the return of `run`.

    `problems` counts what was refused, lost or wrong.
    """

    delays: tuple[float, ...]
    polls: int
    problems: int

    def quantile(self, share: float) -> float:
        """The smallest delay that so many are not above."""
        ordered = sorted(self.delays)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def durations(feature: str, seed: int, runs: int) -> Durations:
    """So many quantiles of the feature's distribution, evenly spaced, in an order of chance.

    Drawn at random they would have to be thousands: the median of 200 that are uniform in an
    interval is off by 4 % of it, and the target leaves half a round trip.
    """
    median_, sigma, longest = DURATIONS[feature]
    rng = random.Random(seed)
    shift, shares = rng.random(), list(range(runs))
    rng.shuffle(shares)
    normal = (NormalDist().inv_cdf((share + shift) / runs) for share in shares)
    drawn = iter([min(longest, median_ * math.exp(sigma * each)) for each in normal])
    return Durations.of(lambda _: next(drawn))


async def measure(case: Case, seed: int, runs: int = RUNS) -> Delays:
    """Run so many jobs, one after the other, each on a client that was idle for a window."""
    sandbox = Sandbox(
        seed=seed,
        durations={case.feature: durations(case.feature, seed, runs)},
        latency=ROUND_TRIP,
        polling_interval=case.vendor_interval,
        units=100_000,
    )
    loop, delays = asyncio.get_running_loop(), list[float]()
    async with Client("sandbox", transport=sandbox.transport()) as client:
        for number in range(runs):
            # Runs begin anywhere in a slot of the timetable.
            await asyncio.sleep(IDLE + number * 0.0137)
            await client.run(case.job(number))
            task = sandbox.ledger.tasks[-1]
            delays.append(loop.time() - task.created_at - task.duration)
    ledger = sandbox.ledger
    problems = sum(ledger.refused.values()) + ledger.units_wasted + len(ledger.violations)
    return Delays(tuple(delays), ledger.requests["poll"], problems)


def draw(measured: Sequence[tuple[Case, Delays]], path: Path) -> None:
    """The share of ends that were seen within a time, a panel for each interval."""
    import matplotlib as mpl  # noqa: PLC0415 (only who draws needs it)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - only to draw

    intervals = sorted({case.interval for case, _ in measured})
    figure, panels = plt.subplots(
        1, len(intervals), figsize=(4 * len(intervals), 4), layout="constrained", squeeze=False
    )
    for panel, interval in zip(panels[0], intervals, strict=True):
        for case, each in measured:
            if case.interval == interval:
                delays = sorted(each.delays)
                shares = [(place + 1) / len(delays) for place in range(len(delays))]
                panel.step(delays, shares, where="post", label=case.feature.removeprefix("ai-"))
        panel.axvline(
            interval / 2 + ROUND_TRIP, color="gray", linestyle=":", label="target of the median"
        )
        panel.axvline(interval + ROUND_TRIP, color="gray", linestyle="--", label="target of all")
        panel.set(
            title=f"asked every {interval:g} s",
            xlabel="seconds from the end to the news",
            xlim=(0, None),
            ylim=(0, 1.02),
        )
    panels[0][0].set_ylabel("share of runs")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(
    seeds: Sequence[int], out: Path | None, *, cases: Sequence[Case] = CASES, runs: int = RUNS
) -> int:
    began, missed = time.perf_counter(), 0
    print(
        f"{'task, polling interval':24} {'runs':>5} {'median':>7} {'target':>7} {'p95':>6} "
        f"{'max':>6} {'target':>7} {'polls each':>11}"
    )
    results: list[tuple[Case, Delays]] = []
    for case in cases:
        parts = [run(measure, case, seed, runs) for seed in seeds]
        found = Delays(
            tuple(delay for part in parts for delay in part.delays),
            sum(part.polls for part in parts),
            sum(part.problems for part in parts),
        )
        results.append((case, found))
        half, whole = case.interval / 2 + ROUND_TRIP, case.interval + ROUND_TRIP
        middle, most = median(found.delays), max(found.delays)
        late = sum(delay > whole + TICK for delay in found.delays)
        wrong = [
            *(["median late"] if middle > half + TICK else []),
            *([f"{late} late"] if late else []),
            *([f"{found.problems} problems"] if found.problems else []),
        ]
        missed += bool(wrong)
        print(
            f"{case!s:24} {len(found.delays):5} {middle:7.3f} {half:7.3f} "
            f"{found.quantile(0.95):6.3f} {most:6.3f} {whole:7.3f} "
            f"{found.polls / len(found.delays):11.1f} {', '.join(wrong)}".rstrip(),
            flush=True,
        )
    print(f"{len(seeds)} seeds, {time.perf_counter() - began:.0f} s")
    if out is not None:
        draw(results, out)
        print(f"drawn: {out}")
    return 1 if missed else 0


if __name__ == "__main__":
    parser = seeded(__doc__)
    parser.add_argument("--out", type=Path, metavar="PNG", help="draw the distributions")
    arguments = parser.parse_args()
    sys.exit(main(seeds_of(arguments, 5), arguments.out))
