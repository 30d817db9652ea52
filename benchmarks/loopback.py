"""Jobs a second through the client and through the tightest loop that one would write with httpx.

Both run against the same sandbox, served by uvicorn on 127.0.0.1 from a process of its own, with
limits raised so that they do not bind. A job is the upload of a small picture (or its URL), a
creation, and one poll, since the engine is done before the interval is over. Both have the same
number of jobs under way, enough that the client's processor bounds them (a job waits for its turn
longer than for its poll), on the same pool of connections, and are run in turns. The ledger counts
the calls. Processor time tells the same as the rate where nothing else runs, and more where the
machine is busy.

Two differences remain, both to the client's disadvantage. The loop knows all pictures, and waits
until it can register 80 of them in one call; the client registers those that it has been given,
since the limits have room. And by default the client shares its key with other processes, which the
loop does not: it writes each request to a ledger. "share=None" is the client without that.
"""

from __future__ import annotations

import asyncio
import gc
import math
import socket
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Final, TypeAlias

import attrs
import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from perfect_async import Client, Limits, Polling, Smile
from perfect_async.models import FILES_PER_CALL
from perfect_async.sandbox import Durations, Sandbox, portrait, serve

HOST: Final = "127.0.0.1"
KEY: Final = "loopback-key"
CONNECTIONS: Final = 8
INTERVAL: Final = 0.05
LASTS: Final = 0.01
LEASE: Final = 600.0
"""Long enough for a machine that is busy: nothing here is about losses."""
LIMITS: Final = Limits(requests=10**9, period=300.0, per_second=10**6)


@attrs.frozen
class Round:
    """`jobs` in `seconds` of a clock and `busy` seconds of our processor, and the calls made."""

    jobs: int
    seconds: float
    busy: float
    calls: Counter[str]

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.seconds

    @property
    def cost(self) -> float:
        """Seconds of our processor a job."""
        return self.busy / self.jobs


Took: TypeAlias = tuple[float, float]
"""Seconds of a clock, and of our processor."""
Runner: TypeAlias = Callable[[str, list[str | bytes], int], Coroutine[None, None, Took]]
"""Runs a job on each of the pictures, so many at a time, against an origin."""


# The sandbox, in a process of its own.


@contextmanager
def served() -> Iterator[tuple[str, Callable[[], Counter[str]]]]:
    """A sandbox's origin, and what tells which calls it has had. Raises for a violation."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(port, theirs), daemon=True)
    process.start()
    theirs.close()

    def calls() -> Counter[str]:
        ours.send(None)
        requests, violations = ours.recv()
        if violations:
            raise AssertionError(violations[:3])
        return Counter(requests)

    try:
        ours.recv()
        yield f"http://{HOST}:{port}", calls
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()


def _serve(port: int, parent: Connection) -> None:
    asyncio.run(_served(port, parent))


async def _served(port: int, parent: Connection) -> None:
    sandbox = Sandbox(
        requests=10**9,
        per_second=10**9,
        units=math.inf,
        durations={"ai-smile": Durations.fixed(LASTS)},
        lease=LEASE,
        origin=f"http://{HOST}:{port}",
    )
    server = asyncio.ensure_future(serve(sandbox, HOST, port))
    over = asyncio.Event()

    def asked() -> None:
        try:
            parent.recv()
        except EOFError:
            over.set()
        else:
            parent.send((dict(sandbox.ledger.requests), sandbox.ledger.violations))

    while True:
        try:
            _, writer = await asyncio.open_connection(HOST, port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            break
    asyncio.get_running_loop().add_reader(parent.fileno(), asked)
    parent.send(None)
    await over.wait()
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)


# Both clients.


def pictures_of(jobs: int, *, upload: bool) -> list[str | bytes]:
    """What the jobs are about: bytes to upload, or URLs.

    No two are equal: the client uploads equal pictures once.
    """
    if upload:
        return [portrait(number, size=96) for number in range(jobs)]
    return [f"https://pictures.example/{number}.jpg" for number in range(jobs)]


def pool() -> httpx.AsyncHTTPTransport:
    """The connections of either client: few, since httpx goes through all of them at each call."""
    return httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=CONNECTIONS))


@asynccontextmanager
async def opened(origin: str, *, shared: bool) -> AsyncGenerator[Client]:
    """A client of ours on such a pool. Its ledger leaves nothing in the folder of the user."""
    polling = Polling(interval=INTERVAL)
    with TemporaryDirectory() as folder:
        share = folder if shared else None
        async with Client(
            KEY, base_url=origin, limits=LIMITS, polling=polling, transport=pool(), share=share
        ) as client:
            yield client


async def by_run(
    origin: str, pictures: list[str | bytes], at_once: int, *, shared: bool = True
) -> Took:
    """`Client.run`, called by so many tasks."""
    source = iter(pictures)

    async def work() -> None:
        for picture in source:
            await client.run(Smile(picture))

    async with opened(origin, shared=shared) as client:
        return await timed(work() for _ in range(at_once))


async def by_batch(
    origin: str, pictures: list[str | bytes], at_once: int, *, shared: bool = True
) -> Took:
    """`Client.batch` of a source that gives a job for each outcome, after so many at first."""
    slots = asyncio.Semaphore(at_once)

    async def jobs() -> AsyncIterator[Smile]:
        for picture in pictures:
            await slots.acquire()
            yield Smile(picture)

    async def work() -> None:
        async with client.batch(jobs()) as batch:
            async for outcome in batch:
                outcome.unwrap()
                slots.release()

    async with opened(origin, shared=shared) as client:
        return await timed([work()])


async def by_hand(origin: str, pictures: list[str | bytes], at_once: int) -> Took:
    """httpx and nothing else: no limits, no second try, no look at a picture.

    It raises for an error, as any loop must, which would otherwise poll a failed task for ever.
    """
    headers = {"Authorization": f"Bearer {KEY}"}
    source = iter(pictures)
    slots = asyncio.Semaphore(at_once)
    ready: asyncio.Queue[tuple[bytes, str, dict[str, str], str]] = asyncio.Queue()

    async def run(field: str, value: str) -> None:
        body = {field: value, "expression_type": "smile_with_teeth_visible"}
        reply = await api.post("/s2s/v2.0/task/ai-smile", json=body)
        path = f"/s2s/v2.0/task/ai-smile/{reply.raise_for_status().json()['data']['task_id']}"
        while True:
            await asyncio.sleep(INTERVAL)
            reply = await api.get(path)
            task = reply.raise_for_status().json()["data"]
            if task["task_status"] == "success":
                break
            if task["task_status"] == "error":
                raise RuntimeError(task["error"])

    async def register() -> None:
        most = min(FILES_PER_CALL, at_once)
        while chunk := [picture for picture in islice(source, most) if isinstance(picture, bytes)]:
            for _ in chunk:
                await slots.acquire()
            files = [
                {"content_type": "image/jpeg", "file_name": "a.jpg", "file_size": len(picture)}
                for picture in chunk
            ]
            reply = await api.post("/s2s/v2.0/file", json={"files": files})
            granted = reply.raise_for_status().json()["data"]["files"]
            for picture, file in zip(chunk, granted, strict=True):
                put = file["requests"][0]
                ready.put_nowait((picture, put["url"], put["headers"], file["file_id"]))

    async def work() -> None:
        for picture in source:
            await run("src_file_url", str(picture))

    async def upload(jobs: Iterator[int]) -> None:
        for _ in jobs:
            picture, url, headers, file_id = await ready.get()
            reply = await store.put(url, content=picture, headers=headers)
            reply.raise_for_status()
            await run("src_file_id", file_id)
            slots.release()

    async with (
        pool() as shared,
        httpx.AsyncClient(base_url=origin, headers=headers, transport=shared, timeout=30) as api,
        httpx.AsyncClient(transport=shared, timeout=30) as store,
    ):
        if isinstance(pictures[0], bytes):
            jobs = iter(range(len(pictures)))
            return await timed([register(), *(upload(jobs) for _ in range(at_once))])
        return await timed(work() for _ in range(at_once))


async def timed(work: Iterable[Coroutine[None, None, None]]) -> Took:
    """Seconds, and seconds of our processor, for all of it."""
    gc.collect()
    busy, began = process_time(), perf_counter()
    await asyncio.gather(*work)
    return perf_counter() - began, process_time() - busy


WAYS: Final[dict[str, Runner]] = {
    "by hand": by_hand,
    "Client.run": by_run,
    "Client.batch": by_batch,
    "run, share=None": partial(by_run, shared=False),
    "batch, share=None": partial(by_batch, shared=False),
}


def measure(jobs: int, *, upload: bool, at_once: int, rounds: int) -> dict[str, list[Round]]:
    """So many rounds of each way, in turns; the first turn warms up and does not count."""
    found: dict[str, list[Round]] = {name: [] for name in WAYS}
    with served() as (origin, calls):
        for turn in range(rounds + 1):
            for name, way in WAYS.items():
                before = calls()
                pictures = pictures_of(jobs if turn else min(jobs, 2 * at_once), upload=upload)
                seconds, busy = asyncio.run(way(origin, pictures, at_once))
                if turn:
                    found[name].append(Round(jobs, seconds, busy, calls() - before))
    return found
