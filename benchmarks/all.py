"""Run all benchmarks, one after another, and keep what each prints and draws.

Each runs in a process of its own. What it prints is in `benchmarks/results/NAME.txt`, below its
command and above the time that it took; what it draws is in `benchmarks/NAME.png`.

    python benchmarks/all.py [NAME ...]     # all, or those named
    python benchmarks/all.py --quick        # fewer seeds and smaller sizes
    python benchmarks/all.py --write        # and then put the results into the READMEs
    python benchmarks/all.py --last --write # only that, with the results that are there

Exit status 1 where a benchmark failed or missed a target; the others run all the same.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"
README: Final = HERE / "README.md"
SCHEDULER: Final = HERE.parent / "perfect_async" / "scheduler" / "README.md"
"""The page that shows some of the tables where they explain how scheduling works."""
NOT_RUN: Final = "(has not run yet)"


@attrs.frozen
class Benchmark:
    """A script of this folder: its arguments, those of a quick run, and the option of its PNG."""

    name: str
    script: str
    usual: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    draws: str | None = None

    def command(self, *, quick: bool) -> list[str]:
        """Return its command, as one types it in the folder above."""
        given = self.quick if quick else self.usual
        drawn = () if self.draws is None else (self.draws, f"benchmarks/{self.name}.png")
        return ["python", f"benchmarks/{self.script}", *given, *drawn]


ONE_SEED: Final = ("--count", "1")
BENCHMARKS: Final = (
    Benchmark("policies", "policies.py", (), (*ONE_SEED, "--most", "200"), "--out"),
    Benchmark("webhooks", "webhooks.py", (), ONE_SEED, "--out"),
    Benchmark("table", "table.py", (), ONE_SEED),
    Benchmark("insured", "table.py", ("--insured",), ("--insured", *ONE_SEED)),
    Benchmark("fleet", "fleet.py", (), ONE_SEED, "--out"),
    Benchmark("fleet-real", "fleet.py", ("--real",), ("--real",)),
    Benchmark("shared-key", "shared_key.py", (), ONE_SEED, "--out"),
    Benchmark("latency", "latency.py", (), ONE_SEED, "--out"),
    Benchmark("faults", "faults.py", (), ONE_SEED),
    Benchmark("overhead", "overhead.py", (), ("--quick",), "--png"),
    Benchmark("journal", "journal.py", (), ("1000", "10000"), "--out"),
    Benchmark("months", "months.py", ("20000", "10000"), ("2000", "1000")),
)
"""In the order of the README."""


def perform(benchmark: Benchmark, *, quick: bool) -> int:
    """Run `benchmark` and keep what it printed; returns its exit status."""
    command = benchmark.command(quick=quick)
    print(f"{benchmark.name}: {' '.join(command)}", flush=True)
    began = time.perf_counter()
    run = subprocess.run(  # noqa: S603 - a script of ours
        [sys.executable, *command[1:]],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.perf_counter() - began
    if run.returncode:
        print(run.stderr or run.stdout, file=sys.stderr)
    RESULTS.mkdir(exist_ok=True)
    # Not the spaces before the head of a table.
    printed = run.stdout.strip("\n")
    text = f"$ {' '.join(command)}\n{printed}\n({took:.0f} s in all)\n"
    (RESULTS / f"{benchmark.name}.txt").write_text(text, encoding="utf-8")
    print(f"  exit status {run.returncode}, {took:.0f} s", flush=True)
    return run.returncode


def written(readme: str, results: dict[str, str]) -> str:
    """Return `readme` with each of `results` between the markers of its name.

    Raises `ValueError` where one has no markers.
    """
    for name, text in results.items():
        block = f"<!-- {name} -->\n```text\n{text.rstrip()}\n```\n<!-- end -->"
        places = list(
            re.finditer(rf"<!-- {re.escape(name)} -->\n.*?<!-- end -->", readme, re.DOTALL)
        )
        if len(places) != 1:
            raise ValueError(f"the README has {len(places)} places for {name}")
        readme = readme[: places[0].start()] + block + readme[places[0].end() :]
    return readme


def shown_on(page: str, results: dict[str, str]) -> dict[str, str]:
    """Return those of `results` for which `page` has markers."""
    return {name: text for name, text in results.items() if f"<!-- {name} -->" in page}


def last_results() -> dict[str, str]:
    """Return the last result of each benchmark, in place of one that has not run its command."""
    paths = {each.name: RESULTS / f"{each.name}.txt" for each in BENCHMARKS}
    return {
        name: path.read_text("utf-8")
        if path.exists()
        else f"$ python benchmarks/all.py {name}\n{NOT_RUN}\n"
        for name, path in paths.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit status."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    names = [each.name for each in BENCHMARKS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--write", action="store_true", help="write the results to the README")
    parser.add_argument("--last", action="store_true", help="run nothing")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in names]:
        parser.error(f"{unknown[0]!r} is none of {', '.join(names)}")
    failed: list[str] = []
    for benchmark in BENCHMARKS:
        wanted = benchmark.name in given.names or not given.names
        if wanted and not given.last and perform(benchmark, quick=given.quick):
            failed.append(benchmark.name)
    if given.write:
        results = last_results()
        README.write_text(written(README.read_text("utf-8"), results), encoding="utf-8")
        page = SCHEDULER.read_text("utf-8")
        SCHEDULER.write_text(written(page, shown_on(page, results)), encoding="utf-8")
    if failed:
        print(f"failed, or missed a target: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
