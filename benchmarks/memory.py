"""What a task in flight costs in memory, what jobs cost that have not been read, and what is left
of jobs that have ended.

A whole client in virtual time, on a transport that answers at once and remembers nothing, under
limits that do not bind. A task in flight is one that a batch has created and that runs; what it
costs is what the program holds while so many run, less what it holds while one does.
"""

from __future__ import annotations

import asyncio
import gc
import json
import pathlib
import sys
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Final

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from perfect_async import Client, Limits, Polling, Smile
from tests.support.virtual_time import run

UNBOUND: Final = Limits(requests=10**9, period=300.0, per_second=10**6)
_PATHLIB: Final = pathlib.__file__
SECONDS: Final = 14.0
"""From the first creation until all run and have been polled for their leases."""


class Forgetful(httpx.AsyncBaseTransport):
    """A vendor in which tasks end when `over` says so, and who remembers none of them."""

    def __init__(self) -> None:
        self.over = False
        self._numbers = count(1)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.1)
        data: dict[str, object] = {"task_status": "running"}
        if request.method == "POST":
            # As long as the vendor's.
            data = {"task_id": f"{next(self._numbers):0108d}"}
        elif self.over:
            task_id = request.url.path.rpartition("/")[2]
            url = f"https://results.example/{task_id}.jpg"
            data = {"task_status": "success", "results": {"url": url}}
        return httpx.Response(200, content=json.dumps({"status": 200, "data": data}).encode())


def smiles() -> Iterator[Smile]:
    """Jobs without an end."""
    return (Smile(f"https://pictures.example/{number}.jpg") for number in count())


def in_flight(sizes: Sequence[int]) -> list[float]:
    """Bytes for each task, with each of `sizes` in flight; all of them above 1."""
    alone = run(_held, 1)
    return [(run(_held, tasks) - alone) / (tasks - 1) for tasks in sizes]


async def _held(tasks: int) -> int:
    vendor = Forgetful()
    # Asked for their leases alone: what is in the air is not what is in flight.
    polling = Polling(interval=60.0)
    async with Client("memory", limits=UNBOUND, polling=polling, transport=vendor) as client:
        # What is allocated once and stays is no task's.
        async with client.batch(islice(smiles(), 20)) as batch:
            await asyncio.sleep(SECONDS)
            vendor.over = True
            async for outcome in batch:
                outcome.unwrap()
        vendor.over = False
        gc.collect()
        tracemalloc.start()
        async with client.batch(_spread(tasks)) as batch:
            # All are created, and each has been polled a few times.
            await asyncio.sleep(SECONDS)
            if batch.progress.running != tasks:
                raise AssertionError(batch)
            gc.collect()
            snapshot = tracemalloc.take_snapshot()
            tracemalloc.stop()
            vendor.over = True
            async for outcome in batch:
                outcome.unwrap()
    return _size(snapshot)


def _size(snapshot: tracemalloc.Snapshot) -> int:
    # pathlib interns names, in a table of the interpreter's that now and then doubles.
    pathlibs = tracemalloc.Filter(inclusive=False, filename_pattern=_PATHLIB)
    return sum(trace.size for trace in snapshot.filter_traces([pathlibs]).traces)


async def _spread(tasks: int) -> AsyncIterator[Smile]:
    """So many jobs over the first third of the time, so that their polls do not leave at once."""
    for job in islice(smiles(), tasks):
        await asyncio.sleep(SECONDS / 3 / tasks)
        yield job


def unread(jobs: int, read: int = 200) -> int:
    """The most bytes held until `read` of `jobs` have ended, at five requests a second."""
    return run(_unread, jobs, read)


async def _unread(jobs: int, read: int) -> int:
    vendor = Forgetful()
    vendor.over = True
    limits = Limits(requests=1_500, period=300.0, per_second=5)
    async with Client("memory", limits=limits, transport=vendor) as client:
        gc.collect()
        tracemalloc.start()
        async with client.batch(islice(smiles(), jobs)) as batch:
            for _ in range(read):
                (await anext(batch)).unwrap()
            most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most


def journaled(stops: Sequence[int], journal: Path) -> list[int]:
    """Bytes that one client with a `journal` holds after each of `stops` jobs, once all ended."""
    return run(_journaled, stops, journal)


async def _journaled(stops: Sequence[int], journal: Path) -> list[int]:
    vendor, jobs, held = Forgetful(), smiles(), list[int]()
    vendor.over = True
    tracemalloc.start()
    async with Client("memory", limits=UNBOUND, transport=vendor, journal=journal) as client:
        for done, stop in zip((0, *stops), stops, strict=False):
            async with client.batch(islice(jobs, stop - done)) as batch:
                async for outcome in batch:
                    outcome.unwrap()
                    del outcome
            del batch
            gc.collect()
            held.append(_size(tracemalloc.take_snapshot()))
    tracemalloc.stop()
    return held
