"""Ours beside what people write: the same pictures, the same vendor, the same seeds, in one run.

Everybody talks over httpx to the sandbox in virtual time, at the documented limits (a sliding
window that counts refused requests too), with a lease of 10 s and a round trip of 0.15 s. Smiles
take 8 s in the median (lognormal, sigma 0.35); a seed fixes how long the n-th task that is created
takes, whoever creates it. All pictures are uploads. The peers are in `peers.py`.

    python benchmarks/policies.py [SEED ...] [--count SEEDS] [--out PNG]    # 3 seeds by default

In the last load everything slows down: from a random moment in the first 90 s on every task lasts
120 s, those that run included.

"lost, paid" are tasks that were charged and expired; "failed" are pictures that never became a
task; "refused" were answered 429. "req/picture" are the requests to the API, refused ones too, for
each picture done. "x bound" is the time over that of a clairvoyant schedule that keeps every task
(`bound` in `loads.py`), in brackets where fewer than 99 % of the pictures were done in it. "warm"
is a client that has run 150 smiles before and then waited until its window was empty; only what
came after is counted. `--median` changes how long smiles take: no policy knows them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextvars import Context
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol, TypeVar, TypeVarTuple, Unpack

import attrs
import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import seeded, seeds_of
from benchmarks.loads import bound, lognormal
from benchmarks.peers import PEERS
from benchmarks.rows import Runs
from perfect_async import Client, Polling, Smile
from perfect_async.sandbox import Durations, Sandbox, portrait
from tests.support import virtual_time
from tests.support.virtual_time import VirtualTimeLoop

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

WARM_UP = 150
PERIOD = 300.0
LEASE = 10.0
SLOW = 120.0
# A policy that has locked itself out goes on for ever; its row says that it was stopped.
CAP = 6 * 3600.0
# Where fewer pictures come back, the time that it took says little.
MOST = 0.99


class TickingLoop(VirtualTimeLoop):
    """Virtual time in which a timer takes a microsecond at least, as it does on a real clock.

    aiolimiter reckons its waits with floats, and asks for what is left of a second until nothing
    is: on a clock that stands, for ever.
    """

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return super().call_at(max(when, self.time() + 1e-6), callback, *args, context=context)


def run(main: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts) -> T:
    """Run `main(*args)` to its end in virtual time."""
    return virtual_time.run(main, *args, loop_factory=TickingLoop)


class Policy(Protocol):
    """A way to run many pictures."""

    @property
    def name(self) -> str: ...

    async def run(
        self,
        transport: httpx.AsyncBaseTransport,
        pictures: Sequence[bytes],
        seed: int,
        start: Callable[[], None],
    ) -> int:
        """Run `pictures` to their ends and say how many came back; what was before `start()` is
        not counted.
        """
        ...


@attrs.frozen
class Ours:
    """The public client; `warm` lets it learn how long smiles take before it is measured."""

    name: str
    polling: Polling
    warm: bool = False

    async def run(
        self,
        transport: httpx.AsyncBaseTransport,
        pictures: Sequence[bytes],
        seed: int,
        start: Callable[[], None],
    ) -> int:
        del seed  # it draws nothing
        async with Client("a-key", transport=transport, polling=self.polling) as client:
            if self.warm:
                await self._done(client, [pictures[0]] * WARM_UP, "warm-up ")
                await asyncio.sleep(PERIOD + LEASE)
            start()
            return await self._done(client, pictures)

    async def _done(self, client: Client, pictures: Sequence[bytes], prefix: str = "") -> int:
        # A key for each: else equal pictures would be one job.
        jobs = (Smile(picture, key=f"{prefix}{number}") for number, picture in enumerate(pictures))
        async with client.batch(jobs) as batch:
            return sum([outcome.ok async for outcome in batch])


POLICIES: tuple[Policy, ...] = (
    Ours("ours, strict", Polling(insured=600.0)),
    Ours("ours, cold", Polling()),
    Ours("ours, warm", Polling(), warm=True),
    Ours("ours, insured 30 s, warm", Polling(insured=30.0), warm=True),
    *PEERS,
)


@attrs.frozen
class Load:
    """So many smiles; from a random moment up to `slows_within` seconds on all last `SLOW`."""

    count: int
    slows_within: float | None = None

    def describe(self, median: float) -> str:
        """Say what it is; smiles take `median` seconds."""
        smiles = f"{self.count} smiles of {median:g} s"
        if self.slows_within is None:
            return smiles
        return f"{smiles}, from a moment in the first {self.slows_within:g} s on of {SLOW:g} s"

    def slows_at(self, seed: int) -> float:
        """Return the seconds after which everything is slow."""
        within = self.slows_within
        return math.inf if within is None else random.Random(f"slow {seed}").uniform(0, within)

    def __str__(self) -> str:
        return f"{self.count} smiles" + (f", then {SLOW:g} s" if self.slows_within else "")


LOADS = (Load(50), Load(200), Load(1000), Load(100, slows_within=90.0))


@attrs.frozen
class Run:
    """What one policy made of one load: pictures, requests and seconds."""

    pictures: int
    done: int
    lost: int
    refused: int
    requests: int
    seconds: float
    bound: float
    capped: bool


async def measure(policy: Policy, load: Load, seed: int, median: float = 8.0) -> Run:
    """Run the load's pictures and read in the vendor's ledger what became of them."""
    count = load.count
    durations = lognormal(count, median, 0.35)(random.Random(seed))
    before = lognormal(WARM_UP, median, 0.35)(random.Random(f"warm-up {seed}"))
    # Nobody creates more tasks than pictures: one more is an error here.
    drawn = chain(before if isinstance(policy, Ours) and policy.warm else (), durations)
    slow_from = math.inf

    def lasts(_: object) -> float:
        usual = next(drawn)
        return usual if loop.time() + usual <= slow_from else SLOW

    sandbox = Sandbox(
        seed=seed,
        units=count + WARM_UP,
        latency=0.15,
        durations={"ai-smile": Durations.of(lasts)},
    )
    ledger, loop = sandbox.ledger, asyncio.get_running_loop()
    faces = [portrait(number, size=96) for number in range(8)]
    pictures = [faces[number % len(faces)] for number in range(count)]
    tasks = entries = 0
    began = loop.time()

    def start() -> None:
        nonlocal tasks, entries, began, slow_from
        tasks, entries, began = len(ledger.tasks), len(ledger.log), loop.time()
        slow_from = began + load.slows_at(seed)

    reported = None
    try:
        async with asyncio.timeout(CAP):
            reported = await policy.run(sandbox.transport(), pictures, seed, start)
    except TimeoutError:
        pass
    seconds = loop.time() - began
    # What nobody polls any more is lost when its lease ends.
    await asyncio.sleep(LEASE + 1)
    created = ledger.tasks[tasks:]
    states = [task.state for task in created]
    done, lost = states.count("success"), states.count("expired")
    lasted = [task.duration for task in created]
    slow = [
        usual if took == usual else SLOW for took, usual in zip(lasted, durations, strict=False)
    ]
    if lasted != (durations[: len(created)] if load.slows_within is None else slow):
        raise AssertionError(f"{policy.name}: other smiles than everybody's")
    if ledger.violations or done + lost != len(created) or reported not in {None, done}:
        raise AssertionError(f"{policy.name}: {reported} reported, {done} done, {ledger!r}")
    asked = [entry.status for entry in ledger.log[entries:] if entry.kind != "upload"]
    # Of what the run met: whoever is slower meets more that is slow.
    least = bound([*lasted, *durations[len(lasted) :]])
    return Run(count, done, lost, asked.count(429), len(asked), seconds, least, reported is None)


@attrs.frozen
class Row(Runs[Run]):
    """A policy's runs of one load."""

    @property
    def done(self) -> float:
        """The share of the pictures that came back."""
        return self.mean(lambda run: run.done / run.pictures)

    @property
    def lost(self) -> float:
        """The share of the pictures that were paid for and did not."""
        return self.mean(lambda run: run.lost / run.pictures)

    @property
    def ratio(self) -> float:
        """Time over the bound."""
        return self.mean(lambda run: run.seconds / run.bound)

    def __str__(self) -> str:
        done, lost = self.mean(lambda run: run.done), self.mean(lambda run: run.lost)
        failed = self.mean(lambda run: run.pictures - run.done - run.lost)
        requests = self.mean(lambda run: run.requests) / done if done else None
        stopped = ">" if any(run.capped for run in self.runs) else ""
        ratio = f"{stopped}{self.ratio:.2f}"
        return (
            f"{self.name:34} {_short(done):>6} {_short(lost):>10} {_short(failed):>7} "
            f"{_short(self.mean(lambda run: run.refused)):>8} "
            f"{'-' if requests is None else f'{requests:.1f}':>11} "
            f"{stopped + _clock(self.mean(lambda run: run.seconds)):>9} "
            f"{ratio if self.done >= MOST else f'({ratio})':>9}"
        )


HEAD = (
    f"{'':34} {'done':>6} {'lost, paid':>10} {'failed':>7} {'refused':>8} {'req/picture':>11} "
    f"{'time':>9} {'x bound':>9}"
)


def _short(number: float) -> str:
    """A mean with a decimal where it has one to show."""
    return f"{number:.1f}".removesuffix(".0")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def one(task: tuple[int, int, int, float]) -> Run:
    """Run one policy on one load with one seed."""
    logging.getLogger("perfect_async").setLevel(logging.ERROR)
    policy, load, seed, median = task
    return run(measure, POLICIES[policy], LOADS[load], seed, median)


def rows(
    seeds: Iterable[int], median: float, loads: Sequence[Load] = LOADS
) -> Iterator[tuple[Load, list[Row]]]:
    """The policies in their order, load by load."""
    tasks = [
        (policy, load, seed, median)
        for load in map(LOADS.index, loads)
        for policy in range(len(POLICIES))
        for seed in seeds
    ]
    with get_context("spawn").Pool(2) as pool:
        results = pool.imap(one, tasks, chunksize=1)
        for load in loads:
            yield load, [Row(p.name, tuple(next(results) for _ in seeds)) for p in POLICIES]


def draw(loads: dict[Load, list[Row]], path: Path) -> None:
    """For each load what became of the pictures, and beside it how long that took."""
    import matplotlib as mpl  # noqa: PLC0415 - whoever only measures need not wait for it

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only to draw
    from matplotlib.lines import Line2D  # noqa: PLC0415 - only to draw

    places = range(len(POLICIES))
    figure, axes = plt.subplots(
        1,
        2 * len(loads),
        figsize=(5 * len(loads), 0.26 * len(POLICIES) + 1.4),
        width_ratios=[3, 2] * len(loads),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for index, (load, found) in enumerate(loads.items()):
        shares, times = axes[0, 2 * index : 2 * index + 2]
        done, lost = ([100 * getattr(row, what) for row in found] for what in ("done", "lost"))
        paid = [sum(both) for both in zip(done, lost, strict=True)]
        shares.barh(places, 100, color="#dcdfe3", label="failed, not paid")
        shares.barh(places, paid, color="#d1495b", label="lost and paid")
        shares.barh(places, done, color="#4c9f70", label="done")
        shares.set(xlim=(0, 100), xlabel="% of the pictures", title=str(load))
        for place, row in zip(places, found, strict=True):
            face = "#30475e" if row.done >= MOST else "white"
            times.plot(row.ratio, place, "o", color="#30475e", markerfacecolor=face)
            # A few in a thousand are too few to be seen.
            if row.lost:
                text = f"{_short(row.lost * load.count)} lost"
                shares.text(98, place, text, ha="right", va="center", fontsize=7)
        times.axvline(1, color="#30475e", linewidth=1)
        # What is left of 0.7 failed before it began.
        times.set(xscale="log", xlim=(0.7, 40), xlabel="time / bound", title="time")
        times.set_xticks([1, 2, 5, 10, 20], labels=["1", "2", "5", "10", "20"])
        times.minorticks_off()
        times.grid(alpha=0.3)
    names = [policy.name for policy in POLICIES]
    axes[0, 0].set(yticks=places, yticklabels=names, ylim=(len(names) - 0.4, -0.6))
    for label, policy in zip(axes[0, 0].get_yticklabels(), POLICIES, strict=True):
        label.set_fontweight("bold" if isinstance(policy, Ours) else "normal")
    marks, labels = axes[0, 0].get_legend_handles_labels()
    hollow = Line2D([], [], marker="o", color="#30475e", markerfacecolor="white", linestyle="")
    figure.legend(
        [*marks[::-1], hollow],
        [*labels[::-1], f"the time of a run with less than {MOST:.0%} done"],
        loc="outside upper center",
        ncols=4,
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(seeds: Sequence[int], out: Path, median: float, most: int) -> None:
    began = time.perf_counter()
    loads: dict[Load, list[Row]] = {}
    for load, found in rows(seeds, median, [load for load in LOADS if load.count <= most]):
        loads[load] = found
        print(f"{load.describe(median)}, mean of {len(seeds)} seeds")
        print("\n".join([HEAD, *map(str, found), ""]), flush=True)
    draw(loads, out)
    print(f"{out}; {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    parser = seeded(__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/policies.png"))
    parser.add_argument("--median", type=float, default=8.0, metavar="SECONDS")
    parser.add_argument(
        "--most", type=int, default=1000, metavar="PICTURES", help="skip larger loads"
    )
    given = parser.parse_args()
    main(seeds_of(given, 3), given.out, given.median, given.most)
