"""Several processes on one key: how much time sharing it costs, and what is lost without.

The first table is in virtual time, with the real schedulers on the project's model of the vendor:
1, 2, 4 and 8 processes that share the key by a ledger, beside shares (`Limits().split`) and
processes that do not know of each other. The second one has faults: processes that are killed,
stopped, or stand still now and then. "x one" is the time over that of one process with the same
pictures; "steps" and "writes" are those of the ledger for each picture (Redis: two commands a
step). `--real` runs processes and a sandbox server in real time, scaled by 4.

    python benchmarks/fleet.py [SEED ...] [--out fleet.png] [--real]    # seeds 0 to 4 by default
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

import attrs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import seeded, seeds_of
from benchmarks.fleet_model import Fault, FleetOutcome, simulate_fleet
from benchmarks.loads import AVATAR, SMILE, lognormal
from benchmarks.model import Failures
from perfect_async import Client, Limits, Polling, Smile
from perfect_async.errors import ConfigurationError
from perfect_async.models import Job
from perfect_async.sandbox import Durations, Sandbox, portrait, serve
from tests.support.ports import free_port

PROCESSES = (1, 2, 4, 8)
WAYS = ("shared", "split", "apart")
NAMES = {
    "shared": "a shared ledger",
    "split": "Limits().split",
    "apart": "not shared",
}


@attrs.frozen
class Load:
    """Pictures of one kind: how many, and how long they take (seconds, lognormal)."""

    name: str
    count: int
    median: float
    sigma: float
    job: Job

    def durations(self, seed: int) -> list[float]:
        return lognormal(self.count, self.median, self.sigma)(random.Random(seed))


LOADS = (
    Load("400 smiles", 400, 8, 0.35, SMILE),
    Load("1000 smiles", 1000, 8, 0.35, SMILE),
    Load("200 avatars", 200, 60, 0.4, AVATAR),
)
FAULTY = Load("200 smiles", 200, 8, 0.35, SMILE)


def _stalls(rng: random.Random) -> int:
    """One step in a hundred comes 1 to 3 s late."""
    return rng.randint(1_000_000, 3_000_000) if rng.random() < 0.01 else 0


def _slow(rng: random.Random) -> int:
    """Each step comes 10 to 40 ms late, as with a Redis far away."""
    return rng.randint(10_000, 40_000)


FAULTS: Mapping[str, Callable[[int], dict[str, object]]] = {
    "nothing": lambda _: {},
    "1 % of the polls fail": lambda seed: {"failures": Failures(0.01, seed=seed)},
    "3 % of the polls fail": lambda seed: {"failures": Failures(0.03, seed=seed)},
    "every step 10 to 40 ms late": lambda _: {"lateness": _slow},
    "1 in 100 steps 1 to 3 s late": lambda _: {"lateness": _stalls},
    "two stopped for 4 s": lambda _: {"faults": [Fault(1, 20, 24), Fault(2, 100, 104)]},
    "two stopped for 15 s": lambda _: {"faults": [Fault(1, 20, 35), Fault(2, 100, 115)]},
    "one stopped for 60 s": lambda _: {"faults": [Fault(1, 20, 80)]},
    "two killed": lambda _: {"faults": [Fault(1, 20), Fault(2, 100)]},
    "the ledger deleted 3 times": lambda _: {"lose_at": [15, 40, 100]},
    "three start later": lambda _: {"starts": {1: 30, 2: 100, 3: 200}},
}


def one(task: tuple[int, str, int, int]) -> FleetOutcome | None:
    """Run one load with so many processes in one of the `WAYS`; None where that cannot be."""
    load, way, processes, seed = LOADS[task[0]], *task[1:]
    share: tuple[Limits, Polling] | None = None
    if way == "split" and processes > 1:
        try:
            share = Limits().split(processes), Polling()
        except ConfigurationError:
            return None
    with suppress(ConfigurationError):
        return simulate_fleet(
            load.durations(seed),
            processes,
            seed=seed,
            settings=None if share is None else dict.fromkeys(range(processes), share),
            job=load.job,
            shared=way == "shared",
        )
    return None


def with_fault(task: tuple[str, int]) -> FleetOutcome:
    """Run the faulty load with four processes that share the key."""
    name, seed = task
    options = FAULTS[name](seed)
    return simulate_fleet(FAULTY.durations(seed), 4, seed=seed, **options)


@attrs.frozen
class Row:
    """The same run with several seeds; `alone` are those of one process."""

    name: str
    pictures: int
    outcomes: Sequence[FleetOutcome]
    alone: Sequence[FleetOutcome]

    @property
    def ratio(self) -> float:
        """Time over one process's, the mean of all seeds."""
        pairs = zip(self.outcomes, self.alone, strict=True)
        return mean(found.makespan / one.makespan for found, one in pairs)

    def __str__(self) -> str:
        def of(what: str) -> float:
            return float(mean(getattr(found, what) for found in self.outcomes))

        return (
            f"{self.name:42} {self.ratio:6.3f} {of('lost'):6.1f} {of('refused'):8.1f} "
            f"{of('rescued'):8.1f} {of('requests') / self.pictures:8.2f} "
            f"{of('steps') / self.pictures:6.1f} {of('writes') / self.pictures:7.1f}"
        )


HEAD = (
    f"{'':42} {'x one':>6} {'lost':>6} {'refused':>8} {'rescued':>8} {'requests':>8} "
    f"{'steps':>6} {'writes':>7}"
)


def tables(seeds: Sequence[int]) -> dict[str, list[tuple[str, int, Row | None]]]:
    """Print both tables; gives the rows of the first one by load, as (way, processes, row)."""
    tasks = [
        (load, way, processes, seed)
        for load in range(len(LOADS))
        for way in WAYS
        for processes in PROCESSES
        for seed in seeds
    ]
    found: dict[str, list[tuple[str, int, Row | None]]] = {}
    with get_context("spawn").Pool(2) as pool:
        outcomes = dict(zip(tasks, pool.imap(one, tasks, chunksize=1), strict=True))
        faulty = [(name, seed) for name in FAULTS for seed in seeds]
        results = dict(zip(faulty, pool.imap(with_fault, faulty, chunksize=1), strict=True))
    print(HEAD)
    for index, load in enumerate(LOADS):
        alone = [outcomes[index, "shared", 1, seed] for seed in seeds]
        for way in WAYS:
            for processes in PROCESSES:
                runs = [outcomes[index, way, processes, seed] for seed in seeds]
                name = f"{load.name}, {processes} processes, {NAMES[way]}"
                row = None
                if None in runs or None in alone:
                    print(f"{name:42} cannot be")
                else:
                    row = Row(name, load.count, _all(runs), _all(alone))
                    print(row)
                found.setdefault(load.name, []).append((way, processes, row))
    print(f"\n4 processes, {FAULTY.name}\n{HEAD}")
    calm = [results["nothing", seed] for seed in seeds]
    for name in FAULTS:
        print(Row(name, FAULTY.count, [results[name, seed] for seed in seeds], calm))
    return found


def _all(runs: Iterable[FleetOutcome | None]) -> list[FleetOutcome]:
    return [run for run in runs if run is not None]


def draw(loads: Mapping[str, list[tuple[str, int, Row | None]]], path: Path) -> None:
    """For each load the time and the lost tasks by the number of processes."""
    import matplotlib as mpl  # noqa: PLC0415 - whoever only measures need not wait for it

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only to draw

    colours = {"shared": "#4c9f70", "split": "#30475e", "apart": "#d1495b"}
    figure, axes = plt.subplots(
        2, len(loads), figsize=(11, 5.4), sharex=True, squeeze=False, layout="constrained"
    )
    for column, (name, rows) in enumerate(loads.items()):
        times, losses = axes[0, column], axes[1, column]
        for way in WAYS:
            points = [(n, row) for how, n, row in rows if how == way and row is not None]
            places = [n for n, _ in points]
            style = {"marker": "o", "color": colours[way], "label": NAMES[way]}
            times.plot(places, [row.ratio for _, row in points], **style)
            lost = [
                100 * mean(found.lost for found in row.outcomes) / row.pictures for _, row in points
            ]
            losses.plot(places, lost, **style)
        times.axhline(1, color="#30475e", linewidth=0.8, alpha=0.5)
        times.set(title=name, ylim=(0, None))
        losses.set(xlabel="processes", xscale="log", ymargin=0.1)
        losses.set_xticks(PROCESSES, labels=[str(number) for number in PROCESSES])
        losses.minorticks_off()
        for axis in (times, losses):
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("time / time of one process")
    axes[1, 0].set_ylabel("% of the tasks lost, and paid")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=len(WAYS),
        frameon=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


# In real time, by processes and a server.

_SCALE = 4
_LIMITS = Limits(requests=250, period=300 / _SCALE, per_second=5 * _SCALE)
_POLLING = Polling(lease=10 / _SCALE, interval=2 / _SCALE)


def _serve(port: int) -> None:
    sandbox = Sandbox(
        requests=_LIMITS.requests,
        period=_LIMITS.period,
        per_second=_LIMITS.per_second,
        lease=_POLLING.lease,
        durations={"ai-smile": Durations(8.0 / _SCALE, 0.35)},
        origin=f"http://127.0.0.1:{port}",
    )
    asyncio.run(serve(sandbox, port=port))


def _work(port: int, state: str, pictures: range) -> tuple[Counter[str], int]:
    """Run `pictures` in this process; how each ended, and how many requests were refused."""

    async def main() -> tuple[Counter[str], int]:
        ends = Counter[str]()
        async with Client(
            "benchmark",
            base_url=f"http://127.0.0.1:{port}",
            limits=_LIMITS,
            polling=_POLLING,
            share=state,
        ) as client:
            async with client.batch([Smile(portrait(number)) for number in pictures]) as batch:
                async for outcome in batch:
                    ends["done" if outcome.ok else type(outcome.error).__name__] += 1
            return ends, client.statistics().refused

    return asyncio.run(main())


def real(pictures: int = 100) -> None:
    """Print how long real processes take, each with its share, and how the pictures ended.

    Seconds are those of a clock: a quarter of what the vendor's limits make of it.
    """
    context = get_context("spawn")
    for processes in (1, 4):
        port = free_port()
        server = context.Process(target=_serve, args=(port,), daemon=True)
        server.start()
        time.sleep(3)
        with tempfile.TemporaryDirectory() as state, context.Pool(processes) as pool:
            shares = [range(number, pictures, processes) for number in range(processes)]
            began = time.monotonic()
            found = pool.map(partial(_work, port, state), shares)
            took = time.monotonic() - began
        server.terminate()
        server.join()
        ends = sum((each for each, _ in found), Counter[str]())
        refused = sum(number for _, number in found)
        told = ", ".join(f"{number} {end}" for end, number in ends.most_common())
        print(
            f"{processes} processes: {pictures} smiles in {took:.1f} s: {told}; {refused} refused"
        )


def main() -> None:
    """Print the tables, and draw the first one if asked to."""
    parser = seeded(__doc__)
    parser.add_argument("--out", type=Path, help="draw the first table into this PNG")
    parser.add_argument("--real", action="store_true", help="run real processes instead")
    given = parser.parse_args()
    if given.real:
        real()
        return
    found = tables(seeds_of(given, 5))
    if given.out is not None:
        draw(found, given.out)


if __name__ == "__main__":
    main()
