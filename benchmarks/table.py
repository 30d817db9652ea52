"""The strict timetable against the clairvoyant bound: time / bound over the loads of the design.

Each load runs through the scheduler alone, against a model of the vendor (`model.py`: both limits
on a sliding window, a lease of 10 s, a round trip of 0.15 s), one fresh scheduler a seed. The bound
knows all durations beforehand and polls at exactly 10 s. `reference` is the mean of the prototype
that the design was written from; `relative` is ours over it.

    python benchmarks/table.py [SEED ...]        # seeds 0 to 9 where none is given

Exit status 1 where anything was lost or refused, or a mean is more than 5 % over the reference.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.loads import LOADS
from benchmarks.model import Outcome, simulate

# The strict column of the design's table, in the order of LOADS.
REFERENCE = (4.52, 1.71, 1.08, 1.21, 1.14, 1.23, 1.32, 1.39, 1.66)
TOLERANCE = 1.05


def one(task: tuple[int, int]) -> Outcome:
    """Run one load with one seed."""
    load, seed = task
    return simulate(LOADS[load].durations(random.Random(seed)), seed=seed)


def main(seeds: list[int]) -> int:
    began = time.perf_counter()
    tasks = [(load, seed) for load in range(len(LOADS)) for seed in seeds]
    with get_context("spawn").Pool(2) as pool:
        outcomes = dict(zip(tasks, pool.map(one, tasks, chunksize=1), strict=True))
    columns = f"{'load':26} {'mean':>6} {'max':>6} {'reference':>10} {'relative':>9}"
    print(f"{columns} {'lost':>5} {'refused':>8}")
    failed = False
    for load, (described, reference) in enumerate(zip(LOADS, REFERENCE, strict=True)):
        runs = [outcomes[load, seed] for seed in seeds]
        ratio = mean(run.ratio for run in runs)
        lost, refused = sum(run.lost for run in runs), sum(run.refused for run in runs)
        failed |= bool(lost or refused) or ratio > reference * TOLERANCE
        print(
            f"{described.name:26} {ratio:6.3f} {max(run.ratio for run in runs):6.3f} "
            f"{reference:10.2f} {ratio / reference:9.3f} {lost:5} {refused:8}"
        )
    print(f"{len(seeds)} seeds a load, {time.perf_counter() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED")
    sys.exit(main(parser.parse_args().seeds or list(range(10))))
