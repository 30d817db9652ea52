"""Whether a client that runs for months grows: 200,000 jobs through one client in virtual time.

On a vendor that forgets its tasks after a minute, under limits that do not bind. Of the jobs
some equal one on its way, some fail, and some have a caller who does not wait for the end. Measured
when nothing is on its way: what the program holds (`tracemalloc`), how many objects of each type
the garbage collector knows, and what the process occupies.

`python benchmarks/months.py [jobs] [first]`: without a journal, and a tenth of it with one (whose
disk is real). Some 15 minutes each for 200,000. What a client remembers on purpose is bounded and
has to be full before the first measurement: the last 10,000 task ids, and with a journal the jobs
of a day whose end nobody received.
"""

from __future__ import annotations

import asyncio
import gc
import json
import pathlib
import resource
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final

import anyio
import attrs
import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from perfect_async import Client, Limits, Smile, TaskFailed
from tests.support.virtual_time import run

UNBOUND: Final = Limits(requests=10**6, period=300.0, per_second=2_000)
CHUNK: Final = 100
CALLERS: Final = 12
"""Of each chunk so many are single callers; the rest comes as a batch."""


class Passing(httpx.AsyncBaseTransport):
    """A vendor with tasks of 8 s, every twentieth of which fails for good."""

    def __init__(self) -> None:
        self.tasks: dict[str, tuple[float, bool]] = {}
        self._numbers = count(1)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.1)
        now = asyncio.get_running_loop().time()
        if request.method == "POST":
            number = next(self._numbers)
            data: dict[str, object] = {"task_id": f"{number:0108d}"}
            self.tasks[str(data["task_id"])] = now + 8.0, number % 20 == 0
        else:
            task_id = request.url.path.rpartition("/")[2]
            over, fails = self.tasks[task_id]
            # Some are asked twice at once; nobody asks much later.
            while self.tasks and next(iter(self.tasks.values()))[0] + 60 < now:
                del self.tasks[next(iter(self.tasks))]
            data = {"task_status": "running"}
            if now >= over:
                url = f"https://results.example/{task_id}.jpg?X-Amz-Signature=s3cret"
                data = {"task_status": "success", "results": {"url": url}}
                if fails:
                    data = {"task_status": "error", "error": "error_no_face"}
        return httpx.Response(200, content=json.dumps({"status": 200, "data": data}).encode())


@attrs.frozen
class Size:
    """What there is when nothing is on its way, after so many `jobs`."""

    jobs: int
    held: int
    occupied: int
    objects: Counter[str]


def months(stops: list[int], journal: Path | None = None) -> list[Size]:
    """The sizes after each of `stops` jobs."""
    return run(_months, stops, journal)


async def _months(stops: list[int], journal: Path | None) -> list[Size]:
    vendor, sizes, number = Passing(), list[Size](), 0
    async with Client("s3cret", limits=UNBOUND, transport=vendor, journal=journal) as client:
        for stop in stops:
            while number < stop:
                async with anyio.create_task_group() as group:
                    for caller in range(CALLERS):
                        group.start_soon(_call, client, number + caller)
                    async with client.batch(_smiles(number + CALLERS, number + CHUNK)) as batch:
                        async for _ in batch:
                            pass
                number += CHUNK
            # Until the last tasks of those who did not wait are over too.
            await anyio.sleep(60)
            vendor.tasks.clear()
            sizes.append(_size(number))
    return sizes


async def _call(client: Client, number: int) -> None:
    # Half of them leave before the end, and some before the creation.
    with anyio.move_on_after((0.0, 1.0, 60.0, 60.0)[number % 4]):
        # Every twentieth fails.
        with suppress(TaskFailed):
            await client.run(_smile(number))


def _smiles(first: int, last: int) -> Iterator[Smile]:
    return (_smile(number) for number in range(first, last))


def _smile(number: int) -> Smile:
    # Every tenth is the same as the one before.
    number -= number % 10 == 9
    return Smile(f"https://pictures.example/{number}.jpg", key=f"picture {number}")


def _size(jobs: int) -> Size:
    gc.collect()
    held = 0
    if tracemalloc.is_tracing():
        # pathlib interns names, in a table of the interpreter's that now and then doubles.
        pathlibs = tracemalloc.Filter(inclusive=False, filename_pattern=pathlib.__file__)
        snapshot = tracemalloc.take_snapshot().filter_traces([pathlibs])
        held = sum(trace.size for trace in snapshot.traces)
        del snapshot
    occupied = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    kinds = Counter(f"{type(it).__module__}.{type(it).__qualname__}" for it in gc.get_objects())
    return Size(jobs, held, occupied, kinds)


def main(jobs: int = 200_000, first: int = 20_000) -> None:
    for name, part in (("", 1), ("jobs.db", 10)):
        with tempfile.TemporaryDirectory() as folder:
            tracemalloc.start()
            stops = [first // part, jobs // part]
            early, late = months(stops, Path(folder, name) if name else None)
            tracemalloc.stop()
        print("with a journal" if name else "without a journal")
        for size in (early, late):
            total = size.objects.total()
            print(
                f"  after {size.jobs:7,} jobs: {size.held / 1e6:7.2f} MB held, "
                f"{total:8,} objects, at most {size.occupied / 1e6:6.1f} MB occupied"
            )
        print(f"  {late.held / early.held - 1:+.1%} held")
        for kind, grown in (late.objects - early.objects).most_common(8):
            print(f"    {grown:+8,} {kind}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
