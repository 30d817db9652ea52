"""Writes the journal beside the event loop: what must be on the disk is awaited, the rest follows.

Words are taken to the disk by one worker thread, all that wait in one transaction. A disk that
hangs holds up whoever awaits it, and nobody else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Self, TypeVar

import anyio
import anyio.to_thread
import attrs

from perfect_async._journal.model import Created, JournalEntry, JournalState
from perfect_async._journal.sqlite import Entry, SqliteJournal
from perfect_async._log import LOG
from perfect_async.errors import JournalError, PerfectError

T = TypeVar("T")

_AGAIN: Final = 5.0
"""Seconds before words that could not be written are tried again."""
_SOON: Final = 2.0
"""Seconds within which it is written down that requests were sent."""


@attrs.define(eq=False)
class _Waiting:
    """A word on its way to the disk; somebody waits for it if there is a `done`. `holds`: it is in
    the memory already.
    """

    entry: Entry
    done: anyio.Event | None = None
    error: JournalError | None = None
    holds: bool = True


def _nothing() -> tuple[tuple[int, int], ...]:
    return ()


class JournalWriter:
    """One client's memory of its jobs; `memory` holds those that are not over.

    `past` is what the former process had spent of the window, as (age in microseconds, requests);
    `window` is asked for the same of this one. `run` must be running for anything to be written,
    and `aclose` be called at the end. Times are UTC microseconds, by `now`.
    """

    def __init__(self, file: SqliteJournal, now: Callable[[], int]) -> None:
        self._file = file
        self._now = now
        self.memory: JournalState = file.memory
        self.past = file.past
        self.window: Callable[[], Iterable[tuple[int, int]]] = _nothing
        self._seq, self._number = file.seq, file.job
        self._waiting: list[_Waiting] = []
        # Of each job the word that somebody waits for, if there is one.
        self._awaited: dict[int, _Waiting] = {}
        # By their tasks: identities and when they were created.
        self._finished: dict[str, tuple[str, int]] = {}
        self._news = anyio.Event()
        self._failing = self._closed = False
        self._flushed = anyio.Event()
        # One transaction at a time: another's failure refuses nothing that this one writes.
        self._flushing = anyio.Lock()
        # One thread: sqlite takes one at a time anyway, and a disk that hangs holds no other.
        self._limiter = anyio.CapacityLimiter(1)

    @classmethod
    async def open(cls, path: str | os.PathLike[str], *, now: Callable[[], int]) -> Self:
        """The journal at `path`, made where it is missing. Raises `JournalError`."""
        return cls(await anyio.to_thread.run_sync(SqliteJournal, path, now()), now)

    @staticmethod
    async def forget(path: str | os.PathLike[str]) -> int:
        """Purge what the journal at `path` knows of finished jobs; tells how many they were.

        Raises `JournalError`, also where a client has it open.
        """

        def purge() -> int:
            file = SqliteJournal(path, time.time_ns() // 1000, make=False)
            try:
                return file.forget()
            finally:
                file.close()

        return await anyio.to_thread.run_sync(purge)

    # Words.

    def number(self) -> int:
        """A number for another job."""
        self._number += 1
        return self._number

    def note(self, word: JournalEntry) -> None:
        """`word` holds from now on, and is written soon. Raises `IllegalEntry`."""
        self._catch_up(word.job)
        self._seq += 1
        entry = Entry(self._seq, word, self.memory.receive(word))
        if entry.finished:
            known = entry.known
            self._finished[str(known.task_id)] = known.order.identity, known.since
        self._put(_Waiting(entry))

    async def write(self, word: JournalEntry) -> None:
        """`word` and all before it are on the disk when this returns.

        Raises `JournalError` where they cannot be written, and then it was never said.
        """
        self._catch_up(word.job)
        self._seq += 1
        done = anyio.Event()
        entry = Entry(self._seq, word, self.memory.after(word))
        waiting = self._awaited[word.job] = _Waiting(entry, done, holds=False)
        self._put(waiting)
        await done.wait()
        if waiting.error is not None:
            raise waiting.error

    async def settled(self) -> None:
        """Wait until all that was noted is on the disk; raises `JournalError` where it cannot."""
        while self._waiting:
            if self._failing:
                raise JournalError("The journal cannot be written at the moment.")
            await self._flushed.wait()

    def used(self) -> None:
        """Requests were sent: what is left of the window is written soon."""
        self._news.set()

    def _catch_up(self, job: int) -> None:
        """More is said of `job`: what is on its way to the disk comes before, so it holds."""
        waiting = self._awaited.pop(job, None)
        if waiting is not None:
            waiting.holds = True
            self.memory.receive(waiting.entry.word)

    def _put(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        self._news.set()

    # What is known of finished jobs.

    async def lookup(self, identity: str, since: int) -> str | None:
        """The task of the latest finished job of that identity created at `since` or later."""
        for task_id, (of, created) in reversed(self._finished.items()):
            if of == identity and created >= since:
                return task_id
        return await self._in_thread(self._file.lookup, identity, since)

    async def ids(self, since: int) -> frozenset[str]:
        """Every task that is known here and was created at `since` or later.

        "" is among them if a creation since then stayed in doubt.
        """
        live = {known.task_id for known in self.memory.live.values() if known.task_id is not None}
        words = (one.entry.word for one in self._waiting)
        fresh = {word.task_id for word in words if isinstance(word, Created)}
        return await self._in_thread(self._file.ids, since) | live | fresh

    async def drop(self, task_id: str) -> None:
        """The pictures of this task can no longer be fetched."""
        await self._flush()
        await self._in_thread(self._file.drop, task_id)

    # The writer.

    async def run(self) -> None:
        """Write what there is to be written, until cancelled or closed."""
        while not self._closed:
            await self._news.wait()
            if not self._waiting:
                # Nothing but requests: several of them are one line.
                with anyio.move_on_after(_SOON):
                    while not self._waiting and not self._closed:
                        self._news = anyio.Event()
                        await self._news.wait()
            self._news = anyio.Event()
            await self._flush()
            if self._waiting and self._failing:
                with anyio.move_on_after(_AGAIN):
                    # Who waits is told at once; nobody else makes a disk that fails work more.
                    while all(one.done is None for one in self._waiting):
                        await self._news.wait()
                        self._news = anyio.Event()
                self._news.set()

    async def aclose(self, grace: float = 5.0) -> None:
        """Write what is left, for up to `grace` seconds, and let go of the file."""
        self._closed = True
        self._news.set()
        with anyio.CancelScope(shield=True), anyio.move_on_after(grace):
            await self._flush()
            try:
                await self._in_thread(self._file.close)
            except JournalError as exc:
                LOG.error("Closing the journal: %s", exc)
        if self._waiting:
            LOG.error("Closing the journal: %d words were not written.", len(self._waiting))
            self._refuse("The client closed before the journal was written.")

    async def _flush(self) -> None:
        """One transaction with all that waits."""
        async with self._flushing:
            batch = list(self._waiting)
            if batch or not self._failing:
                await self._commit(batch)

    async def _commit(self, batch: list[_Waiting]) -> None:
        commit = partial(
            self._file.commit, [one.entry for one in batch], list(self.window()), self._now()
        )
        try:
            await self._written(commit, batch)
        finally:
            flushed, self._flushed = self._flushed, anyio.Event()
            flushed.set()

    async def _written(self, commit: Callable[[], None], batch: list[_Waiting]) -> None:
        try:
            await self._in_thread(commit)
        except PerfectError as exc:
            if not self._failing:
                LOG.error("%s What is known already is kept in memory and tried again.", exc)
            self._failing = True
            self._refuse(exc.message)
            return
        self._failing = False
        written = set(map(id, batch))
        self._waiting = [one for one in self._waiting if id(one) not in written]
        for one in batch:
            if not one.holds:
                self._catch_up(one.entry.word.job)
            if one.done is not None:
                one.done.set()
            if one.entry.finished:
                self._finished.pop(str(one.entry.known.task_id), None)

    def _refuse(self, why: str) -> None:
        """Nothing is created that could not be written down; what happened stays to be written."""
        for one in self._waiting:
            if one.done is not None:
                one.error = JournalError(why)
                one.done.set()
                one.done = None
            if not one.holds:
                del self._awaited[one.entry.word.job]
        self._waiting = [one for one in self._waiting if one.holds]

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        # Abandoned on cancellation, so that a disk that hangs holds nobody: writing again what was
        # written changes nothing.
        return await anyio.to_thread.run_sync(
            partial(function, *args), abandon_on_cancel=True, limiter=self._limiter
        )
