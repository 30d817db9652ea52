"""Polls, webhooks, or both: what a picture costs and how many come in an hour, beside each other.

The public client over httpx on the sandbox in virtual time, at the documented limits, with a round
trip of 0.15 s. Smiles take 8 s in the median (lognormal, sigma 0.35), avatars of one picture 60 s
(sigma 0.4); a seed fixes how long the n-th task that is created takes, in every row. All pictures
are uploads.

    python benchmarks/webhooks.py [SEED ...] [--out webhooks.png]      # seeds 0, 1 and 2 by default

With polls and with both a task that nobody polls for 10 s is lost. With webhooks alone it is not:
that is the vendor's own flow, and what `Polling(completion="webhook")` bets on. In the rows that
say so one notification of ten never comes, or three of ten come 3 s before the status flips.

"req/picture" are all requests to the API for each picture done, "per hour" are the pictures done
over the time that all of them took. "known after" is from the end of a task to its result, in the
median and for the slowest of twenty.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path

import attrs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import seeded, seeds_of
from benchmarks.loads import lognormal
from benchmarks.rows import Runs
from perfect_async import Avatar, Client, Job, Polling, Smile
from perfect_async.models import Completion
from perfect_async.sandbox import Durations, Sandbox, WebhookFaults, portrait
from tests.support import virtual_time

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - the scheme's own example
LEASE = 10.0
FACES = tuple(portrait(number, size=96) for number in range(8))


@attrs.frozen
class Way:
    """How the ends become known, and what happens to notifications."""

    name: str
    completion: Completion
    faults: WebhookFaults | None = None


WAYS = (
    Way("poll", "poll"),
    Way("both", "both"),
    Way("both, 10 % lost", "both", WebhookFaults(lost=0.1)),
    Way("webhook", "webhook"),
    Way("webhook, 10 % lost", "webhook", WebhookFaults(lost=0.1)),
    Way("webhook, 30 % early", "webhook", WebhookFaults(early=0.3, early_seconds=3.0)),
)


def _smile(number: int) -> Job:
    return Smile(FACES[number % len(FACES)], key=str(number))


def _avatar(number: int) -> Job:
    style = "male_studio_00"
    return Avatar(FACES[number % len(FACES)], template_id=style, output_count=1, key=str(number))


@attrs.frozen
class Load:
    """So many pictures that take `median` seconds, in the median."""

    name: str
    count: int
    job: Callable[[int], Job]
    median: float
    sigma: float


LOADS = (
    Load("smiles", 1000, _smile, 8.0, 0.35),
    Load("avatars", 300, _avatar, 60.0, 0.4),
)


@attrs.frozen
class Run:
    """What one way made of one load: pictures, requests, seconds; `waits` from end to result."""

    pictures: int
    done: int
    lost: int
    refused: int
    requests: int
    seconds: float
    waits: tuple[float, float]


async def measure(way: Way, load: Load, count: int, seed: int) -> Run:
    """Run `count` pictures of `load` and read in the vendor's ledger what became of them."""
    drawn = iter(lognormal(count, load.median, load.sigma)(random.Random(seed)))
    clients: list[Client] = []

    async def deliver(body: bytes, headers: dict[str, str]) -> None:
        await clients[0].webhooks.deliver(body, headers)

    durations, tells = Durations.of(lambda _: next(drawn)), way.completion != "poll"
    sandbox = Sandbox(
        seed=seed,
        units=count,
        latency=0.15,
        lease=LEASE,
        durations={"ai-smile": durations, "ai-avatar": durations},
        webhook=deliver if tells else None,
        webhook_secret=SECRET if tells else None,
        webhook_faults=way.faults,
        webhook_lifts_lease=way.completion == "webhook",
    )
    ledger, loop = sandbox.ledger, asyncio.get_running_loop()
    polling = Polling(completion=way.completion)
    async with sandbox:
        client = Client(
            "a-key", transport=sandbox.transport(), polling=polling, webhook_secret=SECRET
        )
        began = loop.time()
        async with client:
            clients.append(client)
            async with client.batch(load.job(number) for number in range(count)) as batch:
                done = sum([outcome.ok async for outcome in batch])
        seconds = loop.time() - began
    states = [task.state for task in ledger.tasks]
    if ledger.violations or done != states.count("success") or len(states) != count:
        raise AssertionError(f"{way.name}: {done} reported done, {ledger!r}")
    waits = sorted(
        task.ended_at - task.created_at - task.duration
        for task in ledger.tasks
        if task.ended_at is not None and task.state == "success"
    )
    asked = [entry.status for entry in ledger.log if entry.kind != "upload"]
    known = waits[len(waits) // 2], waits[len(waits) * 19 // 20]
    return Run(count, done, states.count("expired"), asked.count(429), len(asked), seconds, known)


@attrs.frozen
class Row(Runs[Run]):
    """The runs of one way on one load."""

    @property
    def cost(self) -> float:
        """Requests for each picture done."""
        return self.mean(lambda run: run.requests / run.done)

    @property
    def rate(self) -> float:
        """Pictures an hour."""
        return self.mean(lambda run: 3600 * run.done / run.seconds)

    def __str__(self) -> str:
        known, slowest = self.mean(lambda run: run.waits[0]), self.mean(lambda run: run.waits[1])
        return (
            f"{self.name:20} {self.mean(lambda run: run.done):6.0f} "
            f"{self.mean(lambda run: run.lost):10.0f} {self.mean(lambda run: run.refused):8.0f} "
            f"{self.cost:11.2f} {self.rate:9.0f} "
            f"{known:9.1f} s {slowest:6.1f} s"
        )


HEAD = (
    f"{'':20} {'done':>6} {'lost, paid':>10} {'refused':>8} {'req/picture':>11} {'per hour':>9} "
    f"{'known after':>11} {'slowest':>8}"
)


def one(task: tuple[int, int, int]) -> Run:
    """Run one load in one way with one seed."""
    logging.getLogger("perfect_async").setLevel(logging.ERROR)
    load, way, seed = task
    return virtual_time.run(measure, WAYS[way], LOADS[load], LOADS[load].count, seed)


def rows(seeds: Sequence[int]) -> Iterator[tuple[Load, list[Row]]]:
    """The ways in their order, load by load."""
    tasks = [
        (load, way, seed)
        for load in range(len(LOADS))
        for way in range(len(WAYS))
        for seed in seeds
    ]
    with get_context("spawn").Pool(2) as pool:
        results = pool.imap(one, tasks, chunksize=1)
        for load in LOADS:
            yield load, [Row(way.name, tuple(next(results) for _ in seeds)) for way in WAYS]


def draw(found: Iterable[tuple[Load, list[Row]]], path: Path) -> None:
    """For each load what a picture costs, and beside it how many come in an hour."""
    import matplotlib as mpl  # noqa: PLC0415 - whoever only measures need not wait for it

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only to draw

    loads = list(found)
    figure, axes = plt.subplots(
        1, 2 * len(loads), figsize=(13, 2.6), sharey=True, squeeze=False, layout="constrained"
    )
    colours = {"poll": "#8d99ae", "both": "#30475e", "webhook": "#4c9f70"}
    names = [way.name for way in WAYS]
    for index, (load, ways) in enumerate(loads):
        title = f"{load.count} {load.name}"
        for axis, label, values in (
            (axes[0, 2 * index], "requests a picture", [row.cost for row in ways]),
            (axes[0, 2 * index + 1], "pictures an hour", [row.rate for row in ways]),
        ):
            bars = axis.barh(names, values, color=[colours[way.completion] for way in WAYS])
            form = "%.2f" if label.startswith("requests") else "%.0f"
            axis.bar_label(bars, fmt=form, padding=3, fontsize=8)
            axis.set(xlabel=label, title=title, xlim=(0, 1.2 * max(values)))
    axes[0, 0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(seeds: Sequence[int], out: Path) -> None:
    began = time.perf_counter()
    found: list[tuple[Load, list[Row]]] = []
    for load, ways in rows(seeds):
        found.append((load, ways))
        print(f"{load.count} {load.name} of {load.median:g} s, mean of {len(seeds)} seeds")
        print("\n".join([HEAD, *map(str, ways), ""]), flush=True)
    draw(found, out)
    print(f"{out}; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    parser = seeded(__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/webhooks.png"))
    given = parser.parse_args()
    main(seeds_of(given, 3), given.out)
