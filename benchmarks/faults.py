"""A bad night: 500 mixed jobs at the vendor's limits, with everything going wrong that may go
wrong.

5 % of the tasks fail in the engine and 2 % never end; 3 % of the polls hang for 30 s and 3 % are
answered
502. Smiles and avatars, uploads and URLs, through the client and the sandbox in virtual time. Every
job must have one outcome; the tasks that never end are abandoned at their deadline and are the only
units at stake; nothing else expires, nothing is wasted, nothing is refused, and the sandbox sees no
violation.

    python benchmarks/faults.py [SEED ...]        # seeds 0 to 19 where none is given
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arguments import seeded, seeds_of
from perfect_async import Avatar, Client, Job, Outcome, Smile, Statistics, TaskAbandoned
from perfect_async.sandbox import Faults, Ledger, Sandbox, portrait
from tests.support.virtual_time import run

JOBS = 500
FAULTS = Faults(
    engine_errors=0.05,
    stuck=0.02,
    hang={"poll": 0.03},
    hang_seconds=30.0,
    bad_gateway={"poll": 0.03},
)


@attrs.frozen
class Night:
    """What one seed came to; `problems` is empty where everything held."""

    seed: int
    hours: float
    outcomes: Counter[str]
    statistics: Statistics
    ledger: Ledger
    problems: tuple[str, ...]


def jobs(seed: int, count: int, template: str) -> Iterator[Job]:
    """Smiles and avatars, uploads and URLs, as the seed says."""
    rng = random.Random(seed)
    pictures = [portrait(number, size=96) for number in range(8)]
    for number in range(count):
        url = f"https://pictures.example/{number}.jpg"
        source: str | bytes = url if rng.random() < 0.3 else rng.choice(pictures)
        if rng.random() < 0.2:
            yield Avatar(source, template, output_count=rng.randint(1, 9), key=str(number))
        else:
            yield Smile(source, key=str(number))


async def night(seed: int, count: int = JOBS) -> Night:
    """Run the jobs of `seed` to their ends and check what the sandbox saw."""
    sandbox = Sandbox(seed=seed, units=100_000, faults=FAULTS, latency=0.15, jitter=0.1)
    outcomes: list[Outcome] = []
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with Client("sandbox", transport=sandbox.transport()) as client:
        template = await anext(client.templates())
        async with client.batch(jobs(seed, count, template.id)) as batch:
            outcomes.extend([outcome async for outcome in batch])
        hours = (loop.time() - began) / 3600
        statistics = client.statistics()
    # The last one that was abandoned is lost when its lease ends.
    await asyncio.sleep(11)
    return Night(
        seed,
        hours,
        Counter("Done" if each.ok else type(each.error).__name__ for each in outcomes),
        statistics,
        sandbox.ledger,
        tuple(_problems(outcomes, statistics, sandbox.ledger, count)),
    )


def _problems(
    outcomes: list[Outcome], statistics: Statistics, ledger: Ledger, count: int
) -> Iterator[str]:
    reported = Counter(outcome.job.key for outcome in outcomes)
    if reported != Counter(str(number) for number in range(count)):
        yield f"{count} jobs had {reported.total()} outcomes"
    stuck = {task.task_id: task.units for task in ledger.tasks if task.stuck}
    abandoned = {o.task_id: o.units for o in outcomes if isinstance(o.error, TaskAbandoned)}
    if stuck != abandoned:
        yield f"{len(stuck)} tasks were stuck, {len(abandoned)} abandoned"
    expired = {task.task_id for task in ledger.tasks if task.state == "expired"}
    if not expired <= set(stuck):
        yield f"{len(expired - set(stuck))} tasks expired that would have ended"
    at_stake = sum(outcome.error.units_at_stake for outcome in outcomes if outcome.error)
    counts = {
        "wasted": ledger.units_wasted,
        "reported": at_stake,
        "counted": statistics.units.at_stake,
    }
    for name, units in counts.items():
        if units != sum(stuck.values()):
            yield f"{sum(stuck.values()):g} units were at stake, {units:g} {name}"
    if ledger.refused:
        yield f"refused: {dict(ledger.refused)}"
    if ledger.violations:
        yield f"{len(ledger.violations)} violations, the first: {ledger.violations[0]}"
    if (most := ledger.max_in_window(300)) > 250:
        yield f"{most} requests in a window"
    if (most := ledger.max_in_window(1)) > 5:
        yield f"{most} requests in a second"
    if statistics.units.charged != ledger.units_charged:
        yield f"{ledger.units_charged:g} units charged, {statistics.units.charged:g} counted"
    if statistics.units.returned != ledger.units_returned:
        yield f"{ledger.units_returned:g} units returned, {statistics.units.returned:g} counted"


def main(seeds: list[int]) -> int:
    logging.getLogger("perfect_async").setLevel(logging.ERROR)
    print("seed  done  failed  abandoned  tries  late  requests  hours  real s  problems")
    bad = 0
    for seed in seeds:
        began = time.perf_counter()
        result = run(night, seed)
        abandoned = result.outcomes["TaskAbandoned"]
        failed = result.outcomes.total() - result.outcomes["Done"] - abandoned
        print(
            f"{seed:4}  {result.outcomes['Done']:4}  {failed:6}  {abandoned:9}  "
            f"{result.statistics.tries:5}  {result.statistics.late:4}  "
            f"{sum(result.statistics.requests.values()):8}  {result.hours:5.2f}  "
            f"{time.perf_counter() - began:6.1f}  {'; '.join(result.problems) or 'none'}"
        )
        bad += bool(result.problems)
    print(f"{len(seeds) - bad} of {len(seeds)} nights without a problem")
    return 1 if bad else 0


if __name__ == "__main__":
    parser = seeded(__doc__)
    sys.exit(main(seeds_of(parser.parse_args(), 20)))
