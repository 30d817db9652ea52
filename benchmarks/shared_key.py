"""A key that somebody else uses too and does not say so: what is lost, and how soon we adapt.

Another client takes 30, 60 or 90 % of the window, from long before us or from the middle of our
work, evenly or at random; or it comes with more than its share, tries again what is refused and
leaves after a while. The vendor counts refused requests, theirs and ours. Each load runs through
the scheduler alone, against the model of `model.py`.

    python benchmarks/shared_key.py [SEED ...] [--out shared_key.png]    # seeds 0 to 4 if none

`contact` is our first request that met a full window. Columns, means over the seeds:

- lost: tasks lost that were in flight at contact, and of those created later;
- refused: requests of ours that met a limit;
- adapted: seconds from contact to the last creation of a task that was lost (0: none was);
- locked: the most seconds from a refusal to the next accepted request in which there would have
  been room but for our own refused requests and our silence; more than two windows are a lockout
  (the maximum over the seeds);
- share: requests the window was assumed to hold for us, over what the other left, at the end;
- ratio: time from the other's coming on, over the least that a clairvoyant client needs for the
  same jobs beside him.

Exit status 1 where the client was locked out, did not end, or reported other losses than the vendor
saw.
"""

from __future__ import annotations

import math
import random
import sys
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from statistics import mean

import attrs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import seeded, seeds_of
from benchmarks.loads import lognormal
from benchmarks.model import SECOND, Foreign, Outcome, simulate
from perfect_async.models import Limits

LIMITS = Limits()
LONGEST = 40_000.0
"""Seconds after which a run is stopped."""

LOADS: dict[str, Callable[[random.Random], Sequence[float]]] = {
    "60 avatars": lognormal(60, 60, 0.4),
    "200 smiles": lognormal(200, 8, 0.35),
}
MIDDLE = {"60 avatars": 400.0, "200 smiles": 400.0}
"""When the other comes: after the first window's rush, with most of the work to be done."""


@attrs.frozen
class Company:
    """Who else uses the key, by the time at which he comes in the middle."""

    name: str
    clients: Callable[[float], Sequence[Foreign]]


def _shares() -> tuple[Company, ...]:
    return tuple(
        Company(
            f"{share:.0%} {when}{', at random' if poisson else ''}",
            lambda middle, share=share, when=when, poisson=poisson: [  # type: ignore[misc]
                Foreign(share, -300.0 if when == "from the start" else middle, poisson=poisson)
            ],
        )
        for poisson in (False, True)
        for share in (0.3, 0.6, 0.9)
        for when in ("from the start", "from the middle")
    )


COMPANY: tuple[Company, ...] = (
    *_shares(),
    # Ten minutes of somebody who tries again at once: his refused requests alone fill the window.
    Company(
        "60 % for 600 s, 5 tries each",
        lambda middle: [Foreign(0.6, middle, middle + 600, retries=4)],
    ),
    Company("90 % for 600 s, then nobody", lambda middle: [Foreign(0.9, middle, middle + 600)]),
)


def left_over(foreign: Sequence[Foreign], at: float) -> int:
    """Requests of a window that `foreign` leave us when they have been there for a window."""
    there = sum(other.share for other in foreign if other.start <= at < other.stop)
    return max(0, round((1 - there) * LIMITS.requests))


def least_time(
    durations: Sequence[float], outcome: Outcome, foreign: Sequence[Foreign], seed: int
) -> float:
    """The least time in seconds for what was not created when the first of `foreign` came.

    As `model.bound`: every duration is known, polls are at exactly 10 s, and each request leaves as
    soon as both limits have room beside those of the others (without their retries) and what we
    had sent by then.
    """
    start = max(0.0, min(other.start for other in foreign))
    rest = [
        duration
        for duration, created in zip(durations, outcome.created, strict=True)
        if created >= start
    ]
    requests = len(rest) + sum(max(1, math.ceil(duration / 10)) for duration in rest)
    requests += math.ceil(len(rest) / 20) if start == 0 else 0
    rng, period, horizon = random.Random(seed), round(LIMITS.period * SECOND), LONGEST * SECOND
    sent = [round(sent.at * SECOND) for sent in outcome.sent if sent.at < start]
    for other in foreign:
        sent.extend(takewhile(lambda at: at < horizon, other.times(LIMITS, rng)))
    coming = deque(sorted(sent))
    window: deque[int] = deque()
    now = round(start * SECOND)
    for _ in range(requests):
        while True:
            while coming and coming[0] <= now:
                window.append(coming.popleft())
            while window and window[0] <= now - period:
                window.popleft()
            if len(window) >= LIMITS.requests:
                now = window[len(window) - LIMITS.requests] + period
            elif len(window) >= LIMITS.per_second and window[-LIMITS.per_second] > now - SECOND:
                now = window[-LIMITS.per_second] + SECOND
            else:
                break
        window.append(now)
    return max([*rest, now / SECOND - start])


@attrs.frozen
class Row:
    """What one run came to; see the module's docstring."""

    in_flight: int
    later: int
    refused: int
    adapted: float
    locked: float
    share: float
    ratio: float
    ended: bool
    reported: bool

    @property
    def locked_out(self) -> bool:
        return self.locked > 2 * LIMITS.period or not self.ended


def locked(outcome: Outcome) -> float:
    """The longest time in seconds from a refusal to the next accepted request in which the window
    would have had room for us, but for our own refused requests and our silence.
    """
    accepted = [sent.at for sent in outcome.sent if not sent.refused]
    refused = [sent.at for sent in outcome.sent if sent.refused and sent.full]
    longest, after = 0.0, 0.0
    for at in refused:
        if at < after:
            continue
        place = bisect_right(accepted, at)
        after = accepted[place] if place < len(accepted) else outcome.makespan
        room = 0.0
        for second in range(math.ceil(at), math.ceil(after)):
            held = sum(
                bisect_right(times, second) - bisect_right(times, second - LIMITS.period)
                for times in (accepted, outcome.others)
            )
            room += held < LIMITS.requests
        longest = max(longest, room)
    return longest


def measure(outcome: Outcome, foreign: Sequence[Foreign], least: float) -> Row:
    """Read one run; `least` is the clairvoyant time from the other's coming on."""
    contact = next((sent.at for sent in outcome.sent if sent.full and sent.refused), math.inf)
    later = [created for created in outcome.losses if created > contact]
    end = outcome.makespan
    left = left_over(foreign, end)
    return Row(
        in_flight=outcome.lost - len(later),
        later=len(later),
        refused=outcome.refused,
        adapted=max(later) - contact if later else 0.0,
        locked=locked(outcome),
        share=outcome.assumed[-1][1] / left if left else math.inf,
        ratio=(end - max(0.0, min(other.start for other in foreign))) / (least or math.nan),
        ended=outcome.ended,
        reported=outcome.at_stake == outcome.lost == len(outcome.losses),
    )


def one(load: str, company: Company, seed: int) -> tuple[Outcome, Row]:
    """Run one load beside one company."""
    durations = LOADS[load](random.Random(seed))
    foreign = company.clients(MIDDLE[load])
    outcome = simulate(durations, seed=seed, foreign=foreign, until=LONGEST)
    return outcome, measure(outcome, foreign, least_time(durations, outcome, foreign, seed))


def draw(outcome: Outcome, title: str, path: Path) -> None:
    """Requests of ours in the window over time, and what was assumed."""
    import matplotlib as mpl  # noqa: PLC0415 (only who draws needs it)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - only to draw

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    accepted = [sent.at for sent in outcome.sent if not sent.refused]
    times = [10.0 * k for k in range(int(outcome.makespan / 10) + 1)]
    held = [bisect_right(accepted, at) - bisect_right(accepted, at - LIMITS.period) for at in times]
    others = [
        LIMITS.requests
        - bisect_right(outcome.others, at)
        + bisect_right(outcome.others, at - LIMITS.period)
        for at in times
    ]
    axes.plot(times, held, label="ours, accepted, of the last 300 s")
    axes.plot(times, others, color="gray", linestyle=":", label="left by the other")
    steps = [*outcome.assumed, (outcome.makespan, outcome.assumed[-1][1])]
    axes.step(
        [at for at, _ in steps], [limit for _, limit in steps], where="post", label="assumed limit"
    )
    refused = [sent.at for sent in outcome.sent if sent.refused]
    axes.plot(refused, [0.0] * len(refused), "|", color="tab:red", label="refused")
    for number, created in enumerate(outcome.losses):
        label = "creation of a task that was lost" if not number else None
        axes.axvline(created, color="tab:red", alpha=0.3, linewidth=0.8, label=label)
    axes.set(title=title, xlabel="seconds", ylabel="requests", ylim=(-8, 260))
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(seeds: Sequence[int], companies: Sequence[Company], out: Path | None) -> int:
    began = time.perf_counter()
    print(
        f"{'load':11} {'the other':31} {'lost':>11} {'refused':>8} {'adapted':>8} {'locked':>8} "
        f"{'share':>6} {'ratio':>6}"
    )
    bad = 0
    for load in LOADS:
        for company in companies:
            rows = [one(load, company, seed)[1] for seed in seeds]
            wrong = [
                *(["locked out"] if any(row.locked_out for row in rows) else []),
                *([] if all(row.reported for row in rows) else ["reported wrongly"]),
            ]
            bad += bool(wrong)
            lost = f"{mean(r.in_flight for r in rows):.1f} + {mean(r.later for r in rows):.1f}"
            print(
                f"{load:11} {company.name:31} {lost:>11} {mean(r.refused for r in rows):8.1f} "
                f"{mean(r.adapted for r in rows):8.0f} {max(r.locked for r in rows):8.0f} "
                f"{mean(r.share for r in rows):6.2f} {mean(r.ratio for r in rows):6.2f} "
                f"{', '.join(wrong)}".rstrip(),
                flush=True,
            )
    print(f"{len(seeds)} seeds a row, {time.perf_counter() - began:.0f} s")
    if out is not None:
        company = COMPANY[3]
        draw(one("60 avatars", company, seeds[0])[0], f"60 avatars, {company.name}", out)
        print(f"drawn: {out}")
    return 1 if bad else 0


if __name__ == "__main__":
    parser = seeded(__doc__)
    parser.add_argument(
        "--out", type=Path, metavar="PNG", help="draw the first seed's run at 60 %%"
    )
    arguments = parser.parse_args()
    sys.exit(main(seeds_of(arguments, 5), COMPANY, arguments.out))
