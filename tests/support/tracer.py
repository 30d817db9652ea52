"""Counts the calls between files, and between packages, while the client performs one scenario.

`python -m tests.support.tracer` prints the table. The rules of counting:

- A call counts if the called function and its direct caller are in different files of
  `perfect_async`. Resuming a coroutine that another file awaits counts like a call. Calls by
  asyncio, attrs or another library have no caller in the package and do not count. Calls from and
  to the sandbox do not count either.
- A package is the first path component below `perfect_async/`; a module there counts as a package.
- A file is touched when one of its functions runs. Worker threads are counted, too.

Each scenario first runs once without being traced, so that all imports are done. The client is new
and open when the counting begins, and is still open when it ends. The picture is given as bytes and
uploaded; a request takes 0.15 to 0.2 s and the smile 8 s. The batch has one picture unless
`--pictures` says more.

The flat package of 60 private files had, in calls across files and files touched:

    run                           722   40
    run with journal              874   45
    batch with journal, folder  1,062   49

Without the worker threads that were started before (those of the journal), the last two had 865 and
1,051 calls. The journal's numbers vary by a few calls with the speed of its threads.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import attrs

import perfect_async
from perfect_async import Client, Smile
from perfect_async.sandbox import Durations, Sandbox, portrait

__all__ = ["SCENARIOS", "Trace", "Tracer", "measure"]

PACKAGE: Final = Path(perfect_async.__file__).parent


@attrs.frozen
class Trace:
    """The counted calls, by the files of caller and callee, and the touched files.

    Files are POSIX paths relative to the package.
    """

    calls: Counter[tuple[str, str]]
    files: frozenset[str]

    @property
    def across_files(self) -> int:
        """Calls from one file into another."""
        return self.calls.total()

    @property
    def across_packages(self) -> int:
        """Calls from one package into another."""
        return self.packages().total()

    def packages(self) -> Counter[tuple[str, str]]:
        """Return the calls from one package into another, by the names of both."""
        found: Counter[tuple[str, str]] = Counter()
        for (caller, callee), count in self.calls.items():
            ends = _package(caller), _package(callee)
            if ends[0] != ends[1]:
                found[ends] += count
        return found


def _package(file: str) -> str:
    return file.split("/", maxsplit=1)[0].removesuffix(".py")


class Tracer:
    """Counts the calls between files below `root` while `counting`, in all threads.

    Files below one of the folders `without` (relative to `root`) are treated as foreign.
    """

    def __init__(self, root: Path = PACKAGE, *, without: Sequence[str] = ("sandbox",)) -> None:
        self._root = f"{root}/"
        self._without = tuple(f"{folder}/" for folder in without)
        self._names: dict[str, str | None] = {}
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, str]] = Counter()
        self._files: set[str] = set()
        self._on = False

    @property
    def trace(self) -> Trace:
        """What was counted so far."""
        with self._lock:
            return Trace(self._calls.copy(), frozenset(self._files))

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch this thread and all threads that start inside the block."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is called inside the block."""
        self._on = True
        try:
            yield
        finally:
            self._on = False

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or not self._on:
            return
        callee = self._name(frame)
        if callee is None:
            return
        caller = None if frame.f_back is None else self._name(frame.f_back)
        with self._lock:
            self._files.add(callee)
            if caller is not None and caller != callee:
                self._calls[caller, callee] += 1

    def _name(self, frame: FrameType) -> str | None:
        """Return the file of `frame` relative to the root, or None for a foreign file."""
        path = frame.f_code.co_filename
        if path not in self._names:
            name = path.removeprefix(self._root)
            inside = name != path and not name.startswith(self._without)
            self._names[path] = name if inside else None
        return self._names[path]


Scenario = Callable[[Tracer, Path, int], Awaitable[None]]
"""A scenario: receives the tracer, a folder, and the number of pictures of a batch."""


def _client(journal: Path | None = None) -> Client:
    sandbox = Sandbox(latency=0.15, jitter=0.05, durations={"ai-smile": Durations.fixed(8.0)})
    return Client("sandbox-key-1234567890", transport=sandbox.transport(), journal=journal)


def _smile(number: int) -> Smile:
    return Smile(portrait(number, size=96), key=str(number))


async def _run(tracer: Tracer, _folder: Path, _pictures: int) -> None:
    async with _client() as client:
        job = _smile(0)
        with tracer.counting():
            await client.run(job)


async def _run_with_journal(tracer: Tracer, folder: Path, _pictures: int) -> None:
    async with _client(folder / "jobs.db") as client:
        job = _smile(0)
        with tracer.counting():
            await client.run(job)


async def _batch(tracer: Tracer, folder: Path, pictures: int) -> None:
    async with _client(folder / "jobs.db") as client:
        jobs = [_smile(number) for number in range(pictures)]
        with tracer.counting():
            async with client.batch(jobs, save_to=folder / "out") as batch:
                outcomes = [outcome async for outcome in batch]
        assert all(outcome.ok for outcome in outcomes)


SCENARIOS: Final[dict[str, Scenario]] = {
    "run": _run,
    "run with journal": _run_with_journal,
    "batch with journal, folder": _batch,
}


def measure(scenario: Scenario, pictures: int = 1) -> Trace:
    """Trace `scenario` in virtual time, after a first run that is not traced."""
    # The only import of this module here, so that a move changes one line.
    from tests.support import virtual_time

    tracer = Tracer()
    for tracing in (Tracer(), tracer):
        with tempfile.TemporaryDirectory() as folder, tracing.installed():
            virtual_time.run(scenario, tracing, Path(folder), pictures)
    return tracer.trace


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and with `--pairs` the busiest pairs of files and of packages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=1, metavar="N", help="in the batch")
    parser.add_argument("--pairs", type=int, default=0, metavar="N", help="the N busiest pairs")
    given = parser.parse_args(arguments)
    print(f"{'':28} {'across files':>12} {'across packages':>16} {'files':>6}")
    for name, scenario in SCENARIOS.items():
        trace = measure(scenario, given.pictures)
        counts = f"{trace.across_files:12,} {trace.across_packages:16,} {len(trace.files):6}"
        print(f"{name:28} {counts}")
        for pairs in (trace.calls, trace.packages()):
            for (caller, callee), count in pairs.most_common(given.pairs):
                print(f"    {count:5} {caller} -> {callee}")


if __name__ == "__main__":
    main()
