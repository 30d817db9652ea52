"""What this package costs by itself, where no limit binds, measured against something known.

- A decision of the scheduler (`receive` and `due`), in push-pop pairs of heapq: `decisions.py`.
- A task in flight in memory, and jobs that have not been read: `memory.py`.
- Jobs a second over the loopback interface, beside a hand-written httpx loop: `loopback.py`.
- The import, beside that of httpx, attrs and cattrs, with their bytecode cached, as after an
  installation. "pip" leaves out what httpx loads for its own terminal program where click and rich
  happen to be there, as they are beside our extras.

All of it is repeated, in turns with what it is compared to, and reported as medians: machines are
noisy. Draws the first two over the number of tasks in flight.

    python benchmarks/overhead.py [SEED ...]      # seeds 0 to 2 where none is given; minutes
    python benchmarks/overhead.py --quick         # up to 1000 tasks, fewer rounds

Exit status 1 where a target is missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median

import attrs
import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import decisions, loopback, memory
from benchmarks.arguments import seeded, seeds_of

PAIRS, GROWTH, BYTES, SHARE, IMPORT = 24.0, 2.5, 8_000.0, 0.85, 1.8
"""The targets: pairs a decision, its growth to 10,000 tasks, bytes a task, our share of the rate of
the hand-written loop, and the ratio of the imports.
"""
LIBRARIES = "import httpx, attrs, cattrs"
EXTRAS = ("PIL", "cyclopts", "rich", "starlette", "uvicorn")
WITHOUT_CLICK = "import sys; sys.modules['click'] = None\n"
UNREAD = (1_000, 100_000)
BESIDE = Path(__file__).with_suffix(".png")


@attrs.frozen
class Line:
    """One row of the verdict."""

    what: str
    measured: str
    target: str
    met: bool


# The import.


def imports(rounds: int) -> dict[str, float]:
    """Seconds of processor for a bare interpreter, the libraries and us; both also "by pip".

    The clock says the same on a machine that does nothing else; an import waits for nothing.
    """
    programs = {
        "bare": "",
        "libraries": LIBRARIES,
        "ours": "from perfect_async import Client",
        "libraries, pip": WITHOUT_CLICK + LIBRARIES,
        "ours, pip": WITHOUT_CLICK + "from perfect_async import Client",
    }
    took: dict[str, list[float]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as cache:
        for turn in range(rounds + 1):
            for name, program in programs.items():
                before = getrusage(RUSAGE_CHILDREN)
                _python(program, cache)
                after = getrusage(RUSAGE_CHILDREN)
                # The first turn writes the bytecode.
                if turn:
                    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                    took[name].append(spent)
    return {name: median(times) for name, times in took.items()}


def loaded(packages: Sequence[str]) -> list[str]:
    """Return which of `packages` importing the client loads, in order."""
    program = (
        "import sys; from perfect_async import Client; "
        f"print(*{{*{tuple(packages)}}} & {{*sys.modules}})"
    )
    return sorted(_python(WITHOUT_CLICK + program).split())


def _python(program: str, cache: str | None = None) -> str:
    known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    here = str(Path(__file__).resolve().parents[1])
    environment = {**known, "PYTHONPATH": here, **({"PYTHONPYCACHEPREFIX": cache} if cache else {})}
    run = subprocess.run(  # noqa: S603 - a program of ours
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    return run.stdout


# The lines of the report.


def decision_lines(costs: Sequence[decisions.Cost], held: Sequence[float]) -> Iterator[Line]:
    """Print the scaling, and judge it."""
    columns = f"{'in flight':>9} {'decision us':>12} {'p99 us':>8} {'pair us':>8} {'pairs':>7}"
    print(f"{columns} {'bytes a task':>13}")
    for cost, bytes_each in zip(costs, held, strict=True):
        print(
            f"{cost.tasks:9} {cost.decision:12.2f} {cost.slow:8.1f} {cost.pair:8.3f} "
            f"{cost.ratio:7.1f} {bytes_each:13.0f}"
        )
    by_size = {cost.tasks: cost for cost in costs}
    at, most = by_size.get(100, costs[0]), costs[-1]
    yield Line(
        f"a decision at {at.tasks} in flight, in heapq pairs",
        f"{at.ratio:.1f}",
        f"<= {PAIRS:g}",
        at.ratio <= PAIRS,
    )
    growth = most.decision / at.decision
    yield Line(
        f"a decision at {most.tasks}, over one at {at.tasks}",
        f"{growth:.2f}",
        f"<= {GROWTH:g}",
        growth <= GROWTH,
    )
    yield Line(
        "bytes for a task in flight, at most",
        f"{max(held):.0f}",
        f"< {BYTES:g}",
        max(held) < BYTES,
    )


def unread_line() -> Line:
    """Judge what jobs cost that have not been read."""
    few, many = (memory.unread(jobs) for jobs in UNREAD)
    return Line(
        f"memory with {UNREAD[1]} jobs unread, over {UNREAD[0]}",
        f"{many / few:.3f}",
        "<= 1.05",
        many <= 1.05 * few,
    )


def round_lines(kind: str, found: dict[str, list[loopback.Round]]) -> Iterator[Line]:
    """Print what each way came to, and judge ours."""
    print(
        f"\n{kind:17} {'jobs/s':>8} {'share':>6} {'ms of CPU':>10} {'share':>6} {'busy':>5}  calls"
    )
    beside = found["by hand"]
    for name, rounds in found.items():
        # Share by share, since neighbours in time had the same machine.
        rate = median(ours.rate / hand.rate for ours, hand in zip(rounds, beside, strict=True))
        spent = median(hand.cost / ours.cost for ours, hand in zip(rounds, beside, strict=True))
        calls = ", ".join(
            f"{n / rounds[-1].jobs:.3g} {kind}" for kind, n in rounds[-1].calls.items()
        )
        print(
            f"{name:17} {median(r.rate for r in rounds):8.0f} {rate:6.2f} "
            f"{median(r.cost for r in rounds) * 1000:10.2f} {spent:6.2f} "
            f"{median(r.busy / r.seconds for r in rounds):5.2f}  {calls}"
        )
        if rounds is not beside:
            yield Line(
                f"jobs/s of {name}, {kind}, over a loop",
                f"{rate:.2f} ({spent:.2f} by CPU)",
                f">= {SHARE:g}",
                rate >= SHARE,
            )


def import_lines(took: dict[str, float]) -> Iterator[Line]:
    """Print what the imports took, and judge them."""
    print(f"\n{'import':18} {'ms CPU':>7} {'less bare':>10}")
    for name, seconds in took.items():
        print(f"{name:18} {seconds * 1000:7.1f} {(seconds - took['bare']) * 1000:10.1f}")
    for end in ("", ", pip"):
        ours, theirs = took["ours" + end], took["libraries" + end]
        ratio = (ours - took["bare"]) / (theirs - took["bare"])
        yield Line(
            f"the import{end}, over {LIBRARIES.removeprefix('import ')}",
            f"{ratio:.2f} ({ours / theirs:.2f} with the interpreter)",
            f"<= {IMPORT:g}",
            ratio <= IMPORT,
        )
    found = loaded(EXTRAS)
    yield Line("extras loaded by it", ", ".join(found) or "none", "none", not found)


def draw(costs: Sequence[decisions.Cost], held: Sequence[float], path: Path) -> None:
    """The scaling, log-log."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    sizes = [cost.tasks for cost in costs]
    left.loglog(sizes, [cost.ratio for cost in costs], "o-", label="in heapq push-pop pairs")
    left.loglog(sizes, [cost.decision for cost in costs], "s--", label="in microseconds")
    left.axhline(PAIRS, color="grey", linestyle=":", label=f"{PAIRS:g} pairs")
    left.set_title("A decision (receive and due)")
    right.loglog(sizes, list(held), "o-", label="of the whole client")
    right.axhline(BYTES, color="grey", linestyle=":", label=f"{BYTES:g} bytes")
    right.set_title("Memory for a task in flight, bytes")
    for axes in (left, right):
        axes.set_xlabel("tasks in flight")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(seeds: Sequence[int], path: Path, *, quick: bool) -> int:
    sizes = (10, 100, 1_000) if quick else (10, 30, 100, 300, 1_000, 3_000, 10_000)
    turns, rounds, jobs = (10, 3, 300) if quick else (40, 7, 600)
    costs = decisions.measure(sizes, turns=turns, seeds=seeds)
    held = memory.in_flight(sizes)
    lines = [*decision_lines(costs, held), unread_line()]
    draw(costs, held, path)
    for kind, upload in (("from URLs", False), ("with uploads", True)):
        found = loopback.measure(jobs, upload=upload, at_once=64, rounds=rounds)
        lines += round_lines(kind, found)
    lines += import_lines(imports(3 * rounds))
    print(f"\n{'':58} {'measured':>32}  {'target':8}")
    for line in lines:
        verdict = "" if line.met else "MISSED"
        print(f"{line.what:58} {line.measured:>32}  {line.target:8} {verdict}")
    print(f"seeds {', '.join(map(str, seeds))}; drawn to {path.name}")
    return 0 if all(line.met for line in lines) else 1


if __name__ == "__main__":
    parser = seeded(__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--png", type=Path, default=BESIDE, help="where to draw to")
    given = parser.parse_args()
    sys.exit(main(seeds_of(given, 3), given.png, quick=given.quick))
