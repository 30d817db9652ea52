"""The scheduler against the clairvoyant bound: time / bound, for the ways to set `Polling.insured`.

Each load runs through the scheduler alone, against a model of the vendor (`model.py`: both limits
on a sliding window, a lease of 10 s, a round trip of 0.15 s), one fresh scheduler a seed. The bound
knows all durations beforehand and polls at exactly 10 s. `reference` is the mean of the prototype
that the design was written from, `relative` is ours over it. The columns:

    strict  every task is insured for as long as it may run, 600 s
    cold    for 120 s, the default; nothing is known
    warm    the same after 150 tasks of the same load, drawn with other seeds
    30      for 30 s, warm; the reference believed the durations seen with nothing insured

Then come loads that are meant to fool whoever believes the durations seen: in the warm columns the
150 tasks before were as they used to be. What is slower than a column insures may be lost there,
which is reported and no failure.

    python benchmarks/table.py [SEED ...] [--columns strict,cold,warm,30]    # seeds 0 to 9
    python benchmarks/table.py --certify [TASKS]
    python benchmarks/table.py --insured [--count SEEDS]    # seeds 0 to 4

`--certify` counts what is lost in column 30 of the loads that stay as they are, over so many seeds
as make TASKS tasks a load, 80,000 where none are given.

`--insured` is the table by which one chooses `Polling.insured`: for each of some values the seconds
that batches take, and how many of 100 tasks are lost where durations change or some are long. The
batches of 50 start cold and warm, that of 200 cold. The smiles that slow down, at a random moment
from 20 to 60 s on, come after 150 that did not; nothing is known of the last two loads.

Exit status 1 where a mean is more than 5 % over the reference (in column 30: 50 smiles over 1.65),
anything insured was lost, or anything was refused (the last two with `--insured`, too); with
`--certify` where more than one task of 10,000 was lost. What it was is printed last.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Final

import attrs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import seeded, seeds_of
from benchmarks.loads import BEYOND, FOOLING, LOADS, Load, Slowdown, lognormal
from benchmarks.model import simulate
from perfect_async.models import Polling

TOLERANCE: Final = 1.05
CERTIFIED: Final = 80_000
MOST_LOST: Final = 1e-4
FIRST_SEED: Final = 10_000
"""Certificates are of seeds from here on, which nobody looks at otherwise."""
EVERY: Final = (*LOADS, *FOOLING, *BEYOND)
STATIONARY: Final = LOADS[:-1]
"""All but the one with stuck tasks."""


def _slowing(lasts: float) -> Load:
    """100 smiles that last so many seconds from the middle of the batch on."""
    return Load(
        f"100 smiles, then {lasts:g} s",
        lognormal(100, 8, 0.35),
        lambda rng: Slowdown(rng.uniform(20, 60), lasts),
    )


SLOWING: Final = tuple(_slowing(lasts) for lasts in (60, 120, 200))
KNOWN: Final = (*EVERY, *SLOWING)
"""Every load that a case can name by its number."""


@attrs.frozen
class Column:
    """A setting, and whether durations are known; the design's means, and what they may be."""

    title: str
    insured: float
    warm: bool
    reference: tuple[float, ...]
    most: tuple[float, ...]


def column(
    title: str, insured: float, *reference: float, warm: bool = False, most: float | None = None
) -> Column:
    """A column whose means may be 5 % over the reference, or only the first bounded by `most`."""
    limits = [TOLERANCE * mean for mean in reference]
    if most is not None:
        limits = [most] + [math.inf] * (len(reference) - 1)
    return Column(title, insured, warm, reference, tuple(limits))


# The references are the columns of the design's table, in the order of LOADS.
COLUMNS: Final = {
    "strict": column("strict", 600, 4.52, 1.71, 1.08, 1.21, 1.14, 1.23, 1.32, 1.39, 1.66),
    "cold": column("insured 120, cold", 120, 2.76, 1.70, 1.07, 1.21, 1.14, 1.21, 1.31, 1.37, 1.64),
    "warm": column(
        *("insured 120, warm", 120, 2.35, 1.72, 1.07, 1.21, 1.14, 1.20, 1.31, 1.34, 1.63), warm=True
    ),
    "30": column(
        *("insured 30, warm", 30, 1.59, 1.63, 1.06, 1.21, 1.14, 1.14, 1.31, 1.34, 1.61),
        warm=True,
        most=1.65,
    ),
}


@attrs.frozen
class Case:
    """One run: which of the KNOWN loads, how, with which seed."""

    load: int
    insured: float
    warm: bool
    seed: int


@attrs.frozen
class Run:
    """What came of it; `tasks`, `lost` and `refused` are of the warm-up, too."""

    ratio: float
    tasks: int
    lost: int
    refused: int
    makespan: float = 0.0


def one(case: Case) -> Run:
    """Run one load with one seed."""
    load, rng = KNOWN[case.load], random.Random(case.seed)
    outcome = simulate(
        load.durations(rng),
        seed=case.seed,
        polling=Polling(insured=case.insured),
        job=load.job,
        known=load.known(case.seed) if case.warm else (),
        slowdown=load.slowdown and load.slowdown(rng),
    )
    tasks = outcome.done + outcome.lost
    return Run(outcome.ratio, tasks, outcome.lost, outcome.refused, outcome.makespan)


@contextmanager
def measured(cases: Sequence[Case]) -> Iterator[Iterator[Run]]:
    """The runs in the order of the cases, each when it is there."""
    with get_context("spawn").Pool(2) as pool:
        yield pool.imap(one, cases)


def ratios(column: Column, rows: Iterable[Sequence[Run]]) -> list[str]:
    """Print how each of LOADS came out in a column; returns what is not as it should be."""
    print(f"{column.title:26} {'mean':>6} {'max':>6} {'reference':>10} {'relative':>9}", end="")
    print(f" {'lost':>5} {'refused':>8}")
    wrong: list[str] = []
    for load, reference, most, runs in zip(LOADS, column.reference, column.most, rows, strict=True):
        ratio = mean(run.ratio for run in runs)
        lost, refused = sum(run.lost for run in runs), sum(run.refused for run in runs)
        print(
            f"{load.name:26} {ratio:6.3f} {max(run.ratio for run in runs):6.3f} {reference:10.2f} "
            f"{ratio / reference:9.3f} {lost:5} {refused:8}",
            flush=True,
        )
        where = f"{column.title}, {load.name}"
        if ratio > most:
            wrong.append(f"{where}: {ratio:.3f}, which is over {most:.3f}")
        if lost or refused:
            wrong.append(f"{where}: {lost} lost, {refused} refused")
    print()
    return wrong


def ways(names: Iterable[str]) -> list[Column]:
    """The columns that are fooled; the strict one warm as well."""
    found: list[Column] = []
    for name in names:
        found.append(COLUMNS[name])
        if name == "strict":
            found += [attrs.evolve(COLUMNS[name], title="strict, warm", warm=True)]
    return found


def fooled(columns: Sequence[Column], rows: Iterable[Sequence[Sequence[Run]]]) -> list[str]:
    """Print what was lost of the loads that are meant to fool; returns what should not have been.

    A row has the runs of each column.
    """
    print(f"{'lost, of tasks':31}" + "".join(f" {column.title:>19}" for column in columns))
    wrong: list[str] = []
    for load, row in zip((*FOOLING, *BEYOND), rows, strict=True):
        print(f"{load.name:31}", end="")
        for column, runs in zip(columns, row, strict=True):
            lost, refused = sum(run.lost for run in runs), sum(run.refused for run in runs)
            print(f" {lost:8} of {sum(run.tasks for run in runs):7}", end="")
            insured = column.insured >= (600 if load in BEYOND else 120)
            if refused or (lost and insured):
                wrong.append(f"{column.title}, {load.name}: {lost} lost, {refused} refused")
        print(flush=True)
    print()
    return wrong


def table(seeds: Sequence[int], names: Sequence[str]) -> list[str]:
    """Measure and print the columns of these names; returns what is not as it should be."""
    columns, every = ways(names), range(len(EVERY))
    cases = [
        Case(load, COLUMNS[name].insured, COLUMNS[name].warm, seed)
        for name in names
        for load in every[: len(LOADS)]
        for seed in seeds
    ]
    cases += [
        Case(load, column.insured, column.warm, seed)
        for load in every[len(LOADS) :]
        for column in columns
        for seed in seeds
    ]
    with measured(cases) as runs:
        wrong: list[str] = []
        for name in names:
            wrong += ratios(COLUMNS[name], ([*islice(runs, len(seeds))] for _ in LOADS))
        wrong += fooled(
            columns,
            ([[*islice(runs, len(seeds))] for _ in columns] for _ in every[len(LOADS) :]),
        )
    return wrong


def certify(tasks: int) -> list[str]:
    """Print how many of so many tasks a load are lost in column 30; returns what is too much."""
    counts = [-(-tasks // len(load.durations(random.Random(0)))) for load in STATIONARY]
    column = COLUMNS["30"]
    cases = [
        Case(load, column.insured, column.warm, FIRST_SEED + seed)
        for load, count in enumerate(counts)
        for seed in range(count)
    ]
    print(
        f"{column.title:26} {'seeds':>6} {'tasks':>8} {'lost':>5} {'per 10,000':>11} {'refused':>8}"
    )
    total: list[Run] = []

    def row(name: str, runs: Sequence[Run]) -> None:
        tasks, lost = sum(run.tasks for run in runs), sum(run.lost for run in runs)
        print(f"{name:26} {len(runs):6} {tasks:8} {lost:5} {1e4 * lost / tasks:11.3f}", end="")
        print(f" {sum(run.refused for run in runs):8}", flush=True)

    with measured(cases) as found:
        for load, count in zip(STATIONARY, counts, strict=True):
            runs = [*islice(found, count)]
            row(load.name, runs)
            total += runs
    row("all", total)
    wrong: list[str] = []
    if sum(run.lost for run in total) > MOST_LOST * sum(run.tasks for run in total):
        wrong.append(f"more than {MOST_LOST * 1e4:g} of 10,000 tasks was lost")
    if refused := sum(run.refused for run in total):
        wrong.append(f"{refused} requests were refused")
    return wrong


@attrs.frozen
class Choice:
    """A column of the table by which one chooses what to insure: a load, and whether it is warm.

    `longest` is how many seconds its tasks last at most where some are lost if less is insured,
    None where the column shows how long the batch takes.
    """

    title: str
    load: Load
    warm: bool = False
    longest: float | None = None

    def cell(self, runs: Sequence[Run]) -> str:
        """Return the mean seconds of `runs`, or how many of 100 tasks they lost."""
        if self.longest is None:
            return f"{mean(run.makespan for run in runs):.0f}"
        # Nothing is lost of the warm-up, which is as it always was.
        known = len(self.load.known(0)) if self.warm else 0
        lost, tasks = sum(run.lost for run in runs), sum(run.tasks - known for run in runs)
        return f"{100 * lost / tasks:.1f}"


CHOICES: Final = (
    Choice("50, cold", LOADS[0]),
    Choice("50, warm", LOADS[0], warm=True),
    Choice("200", LOADS[1]),
    *(
        Choice(f"to {load.name.split()[-2]} s", load, warm=True, longest=longest)
        for load, longest in zip(SLOWING, (60, 120, 200), strict=True)
    ),
    Choice("5 % 240 s", LOADS[6], longest=240),
    Choice("2 % stuck", LOADS[8], longest=600),
)
INSURED: Final = (30, 60, 90, 120, 240)


def insured(seeds: Sequence[int]) -> list[str]:
    """Print times and losses by what is insured; returns what should not have been lost."""
    cases = [
        Case(KNOWN.index(choice.load), value, choice.warm, seed)
        for value in INSURED
        for choice in CHOICES
        for seed in seeds
    ]
    times = sum(choice.longest is None for choice in CHOICES)
    print(f"{'':8}{'seconds for smiles':>{10 * times}}   lost of 100: slowing down, or some long")
    print(f"{'insured':8}" + "".join(f"{choice.title:>10}" for choice in CHOICES))
    wrong: list[str] = []
    with measured(cases) as found:
        for value in INSURED:
            print(f"{f'{value} s':8}", end="")
            for choice in CHOICES:
                runs = [*islice(found, len(seeds))]
                print(f"{choice.cell(runs):>10}", end="", flush=True)
                lost, refused = sum(run.lost for run in runs), sum(run.refused for run in runs)
                if refused or (lost and value >= (choice.longest or 0)):
                    what = f"{value} s insured, {choice.load.name}"
                    wrong.append(f"{what}: {lost} lost, {refused} refused")
            print()
    print()
    return wrong


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in COLUMNS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(COLUMNS)}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; returns the exit status."""
    parser = seeded(__doc__)
    parser.add_argument("--columns", type=_names, default=[*COLUMNS], metavar="NAME,...")
    parser.add_argument("--certify", nargs="?", type=int, const=CERTIFIED, metavar="TASKS")
    parser.add_argument("--insured", action="store_true", help="the table to choose `insured` by")
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    if given.insured:
        seeds = seeds_of(given, 5)
        wrong = insured(seeds)
        print(f"{len(seeds)} seeds each, {time.perf_counter() - began:.0f} s")
    elif given.certify is None:
        seeds = seeds_of(given, 10)
        wrong = table(seeds, given.columns)
        print(f"{len(seeds)} seeds a load, {time.perf_counter() - began:.0f} s")
    else:
        wrong = certify(given.certify)
        print(f"{time.perf_counter() - began:.0f} s")
    for line in wrong:
        print(f"not as it should be: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
