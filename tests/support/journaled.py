"""A sandbox, a journal, and clients on them that crash, for tests of money safety."""

import asyncio
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import datetime, tzinfo
from functools import cache
from pathlib import Path
from typing import Self

import httpx
import pytest

from perfect_async import Batch, Client, Done, Failed, Outcome, Smile, SubmissionInDoubt
from perfect_async._journal.writer import JournalWriter
from perfect_async._runtime import clock as clock_module
from perfect_async._runtime import commands, doubts
from perfect_async._transport.transport import HttpTransport
from perfect_async.sandbox import Faults, Sandbox, portrait
from tests.support.sandboxed import client, clock, vendor
from tests.support.virtual_time import START

EPOCH = 1_800_000_000
MINUTE, DAY = 60.0, 86_400.0
_FACE = re.compile(rb"sandbox portrait (\d+)\.")

Change = Callable[[httpx.Request], Awaitable[httpx.Response | None]]


@cache
def face(number: int) -> bytes:
    """Return the portrait of this number, small; the number can be read from its result."""
    return portrait(number, size=48)


def seen_in(data: bytes) -> int:
    """Return the number of the face in a result."""
    found = _FACE.search(data[:4096])
    assert found is not None
    return int(found[1])


def faces(paths: Iterable[Path]) -> list[int]:
    """Return the numbers of the faces in these files."""
    return [seen_in(path.read_bytes()) for path in paths]


def job(number: int) -> Smile:
    """Return a smile of this face, given as bytes."""
    return Smile(face(number), key=str(number))


def wall() -> float:
    """Return seconds since 1970 by a wall clock that follows the loop."""
    return EPOCH + clock() - START


class _Datetime(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls.fromtimestamp(wall(), tz)


class Wire(httpx.AsyncBaseTransport):
    """A transport whose requests arrive even if their sender is gone.

    `change` is called first and may return another answer; after None the vendor answers. `sent`
    has the time, method and path of each request.
    """

    def __init__(self, inner: HttpTransport, change: Change | None) -> None:
        self._inner = inner
        self._change = change
        self._tasks: set[asyncio.Future[httpx.Response]] = set()
        self.sent: list[tuple[float, str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.sent.append((clock(), request.method, request.url.path))
        answer = asyncio.ensure_future(self._answer(request))
        self._tasks.add(answer)
        answer.add_done_callback(self._over)
        return await asyncio.shield(answer)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        changed = None if self._change is None else await self._change(request)
        return await self._inner.handle_async_request(request) if changed is None else changed

    def _over(self, answer: asyncio.Future[httpx.Response]) -> None:
        self._tasks.discard(answer)
        if not answer.cancelled():
            answer.exception()


class JournalHarness:
    """A sandbox, a journal and clients on it, one after another; the wall clock follows the loop.

    `path` is the present path of the journal: each crash copies it to another one, so that the
    crashed client cannot write to it.
    """

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        faults: Faults | None = None,
        **settings: object,
    ) -> None:
        monkeypatch.setattr(clock_module, "datetime", _Datetime)
        self.folder = folder
        self.sandbox = vendor(faults=faults, epoch=wall(), **settings)
        # The sandbox's clock starts at its first use, which this is.
        assert not self.sandbox.ledger.tasks
        self.path = folder / "jobs.db"
        self.crashes = 0
        self.wire = Wire(self.sandbox.transport(), None)

    @property
    def out(self) -> Path:
        """The folder for results."""
        return self.folder / "out"

    def client(self, change: Change | None = None, **settings: object) -> Client:
        """Return an unopened client with the journal."""
        self.wire = Wire(self.sandbox.transport(), change)
        given: dict[str, object] = {"journal": self.path, "transport": self.wire, **settings}
        return client(self.sandbox, **given)

    def sole(self, change: Change | None = None, **settings: object) -> Client:
        """Return a client with the journal whose user says that nobody else uses the key."""
        return self.client(change, sole_user=True, **settings)

    def plain(self) -> Client:
        """Return a client without a journal."""
        return self.client(journal=None)

    async def crash(self, victim: Client, *working: Awaitable[object]) -> None:
        """Simulate a crash of `victim`: only its journal on the disk is left.

        `working` are the awaitables of that process, which end with it.
        """
        session = victim._session
        assert session is not None
        writer = session.channel.journal.writer
        assert isinstance(writer, JournalWriter)
        self.crashes += 1
        after = self.folder / f"jobs-{self.crashes}.db"
        file = writer._file
        with file._lock:
            shutil.copy(self.path, after)
            if (wal := Path(f"{self.path}-wal")).exists():
                shutil.copy(wal, f"{after}-wal")
        self.path = after
        session.closed = True
        # A new process does not know the doubts of this one.
        doubts._loop_doubts.clear()
        commands._submitters.clear()
        host = session.driver._host
        assert host is not None
        host.cancel()
        await asyncio.wait([host])
        with file._lock:
            file._db.close()
        await asyncio.gather(*working, return_exceptions=True)


def hung(seconds: float, *, times: int = 1) -> Callable[[Sandbox], Change]:
    """Return a change that delays the answers to the first creations, although the tasks exist."""

    def on(sandbox: Sandbox) -> Change:
        inner, left = sandbox.transport(), [times]

        async def change(request: httpx.Request) -> httpx.Response | None:
            if not creates(request) or not left[0]:
                return None
            left[0] -= 1
            answer = await inner.handle_async_request(request)
            await asyncio.sleep(seconds)
            return answer

        return change

    return on


def creates(request: httpx.Request) -> bool:
    """Return whether `request` is a creation."""
    return request.method == "POST" and "/task/ai-" in request.url.path


async def all_of(batch: Batch) -> list[Outcome]:
    """Open the batch and return its outcomes."""
    async with batch:
        return [outcome async for outcome in batch]


async def resumed(c: Client) -> list[Outcome]:
    """Return the outcomes of the jobs that the former process left."""
    return await all_of(c.resume())


def errors(outcomes: Iterable[Outcome]) -> list[type[Exception]]:
    """Return the types of the errors of failed outcomes."""
    return [type(outcome.error) for outcome in outcomes if isinstance(outcome, Failed)]


def done(outcomes: Iterable[Outcome]) -> list[Done]:
    """Return the outcomes that are done."""
    return [outcome for outcome in outcomes if isinstance(outcome, Done)]


def adds_up(c: Client, sandbox: Sandbox, *, elsewhere: float = 0.0) -> None:
    """Check that the client's units agree with the vendor's ledger, once no task runs.

    `elsewhere` are units that the vendor charged for tasks that the client does not know, or knows
    only as a creation in doubt.
    """
    units, ledger = c.statistics().units, sandbox.ledger
    assert ledger.units_charged - elsewhere == units.charged
    assert ledger.units_returned == units.returned
    kept = sum(task.units for task in ledger.tasks if task.state in {"success", "deleted"})
    assert [] == ledger.violations
    # Tasks without a picture are at stake; a creation in doubt may be, too.
    assert ledger.units_charged - ledger.units_returned - kept <= units.at_stake + elsewhere


def paid(outcomes: Iterable[Outcome], sandbox: Sandbox) -> None:
    """Check over all processes that the units were charged for delivered results or are at stake.

    No picture was charged twice. If a job was reported twice (by a process that crashed before it
    recorded this), the better outcome counts.
    """
    ledger = sandbox.ledger
    outcomes = {o.job.key: o for o in sorted(outcomes, key=lambda o: o.ok)}.values()
    net = ledger.units_charged - ledger.units_returned
    delivered = sum(outcome.job.units for outcome in done(outcomes))
    failed = [outcome.error for outcome in outcomes if isinstance(outcome, Failed)]
    sure = sum(e.units_at_stake for e in failed if not isinstance(e, SubmissionInDoubt))
    doubt = sum(e.units_at_stake for e in failed if isinstance(e, SubmissionInDoubt))
    assert delivered + sure <= net <= delivered + sure + doubt
    sources = [task.source for task in ledger.tasks if task.state in {"success", "deleted"}]
    assert len(sources) == len(set(sources))


def drawn(sandbox: Sandbox) -> Counter[int]:
    """Return the number of charged tasks with a picture, by the face of their input."""
    tasks = sandbox._router._tasks._by_id.values()
    good = [task for task in tasks if task.state in {"success", "deleted"}]
    return Counter(seen_in(task.picture.data) for task in good if task.picture.data is not None)


async def until(holds: Callable[[], bool], *, every: float = 0.01) -> None:
    """Wait until `holds` returns True, by polling it."""
    while not holds():  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(every)


async def each(jobs: Iterable[Smile], pause: float = 0.0) -> AsyncIterator[Smile]:
    """Yield `jobs` one after another, after a pause each."""
    for one in jobs:
        await asyncio.sleep(pause)
        yield one
