"""Writes the journal in a worker thread: callers await durable entries; others are written soon.

One transaction writes all pending entries. A disk that hangs blocks only the callers that await a
durable entry.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Self, TypeVar

import anyio
import anyio.to_thread
import attrs

from perfect_async._journal.model import Created, JobSnapshot, JournalEntry, JournalState
from perfect_async._journal.sqlite import Row, SavedResult, SqliteJournal
from perfect_async._log import LOG
from perfect_async.errors import JournalError, PerfectError

T = TypeVar("T")

_RETRY_AFTER: Final = 5.0
"""Seconds before failed entries are written again."""
_WINDOW_DELAY: Final = 2.0
"""The longest time, in seconds, before the request window is written after a request."""


@attrs.define(eq=False)
class _Pending:
    """An entry that is not on the disk yet; a caller awaits it if `done` is set.

    `applied` says whether the entry is part of the state already.
    """

    row: Row
    done: anyio.Event | None = None
    error: JournalError | None = None
    applied: bool = True


def _empty_window() -> tuple[tuple[int, int], ...]:
    return ()


class JournalWriter:
    """The journal of one client; `state` holds the jobs that are not over.

    `past` holds the requests of the former process as (age in microseconds, requests); `window` is
    called for the requests of this process. Entries are written only while `run` is running. Call
    `aclose` at the end. `now` returns the time in UTC microseconds.
    """

    persistent: Final = True

    def __init__(self, file: SqliteJournal, now: Callable[[], int]) -> None:
        self._file = file
        self._now = now
        self.state: JournalState = file.state
        self.past = file.past
        self.window: Callable[[], Iterable[tuple[int, int]]] = _empty_window
        self._seq, self._number = file.seq, file.job
        self._pending: list[_Pending] = []
        # The entry that a caller awaits, by job.
        self._awaited: dict[int, _Pending] = {}
        # The identity of the finished job and the time of its creation, by task.
        self._finished: dict[str, tuple[str, int]] = {}
        # No task is forgotten, so the hashes of their ids are held once: those of new tasks are
        # added to the ones that the file had.
        self._known_tasks = file.known_tasks
        self._last_doubt = file.last_doubt
        self._work = anyio.Event()
        self._failing = self._closed = False
        self._flushed = anyio.Event()
        # One transaction at a time, so that a failure refuses only entries of its own transaction.
        self._flushing = anyio.Lock()
        # A thread of its own: sqlite uses one at a time, and a hanging disk blocks no other thread.
        self._limiter = anyio.CapacityLimiter(1)

    @classmethod
    async def open(cls, path: str | os.PathLike[str], *, now: Callable[[], int]) -> Self:
        """Open the journal at `path`, and create it if it is missing. Raises `JournalError`."""
        return cls(await anyio.to_thread.run_sync(SqliteJournal, path, now()), now)

    @staticmethod
    async def forget(path: str | os.PathLike[str]) -> int:
        """Purge the finished jobs from the journal at `path`, and return their number.

        Task ids are kept for a day. Raises `JournalError`, also if a client has the journal open,
        and `SubmissionInDoubt` if a creation of the last day is in doubt and was not reported yet.
        """

        def purge() -> int:
            now = time.time_ns() // 1000
            file = SqliteJournal(path, now, make=False)
            try:
                return file.forget(now)
            finally:
                file.close()

        return await anyio.to_thread.run_sync(purge)

    @staticmethod
    async def unfinished(path: str | os.PathLike[str]) -> tuple[JobSnapshot, ...]:
        """Return the jobs that are not over from the journal at `path`, without changing them.

        Raises `JournalError`, also if a client has the journal open.
        """

        def read() -> tuple[JobSnapshot, ...]:
            file = SqliteJournal(path, time.time_ns() // 1000, make=False)
            try:
                return tuple(file.state.live.values())
            finally:
                file.close()

        return await anyio.to_thread.run_sync(read)

    # Entries.

    def next_number(self) -> int:
        """Return a number for a new job."""
        self._number += 1
        return self._number

    def append(self, entry: JournalEntry) -> None:
        """Apply `entry` now and write it soon. Raises `IllegalEntry`; nothing is written then."""
        self._apply_pending(entry.job)
        self._seq += 1
        row = Row(self._seq, entry, self.state.receive(entry))
        if isinstance(entry, Created):
            insort(self._known_tasks, hash(entry.task_id))
        if row.finished:
            snapshot = row.snapshot
            self._finished[str(snapshot.task_id)] = snapshot.stored.identity, snapshot.since
        self._put(_Pending(row))

    async def write(self, entry: JournalEntry) -> None:
        """Write `entry` and all earlier entries to the disk, then apply it.

        Raises `JournalError` if they cannot be written; `entry` is dropped then.
        """
        self._apply_pending(entry.job)
        self._seq += 1
        done = anyio.Event()
        row = Row(self._seq, entry, self.state.after(entry))
        pending = self._awaited[entry.job] = _Pending(row, done, applied=False)
        self._put(pending)
        await done.wait()
        if pending.error is not None:
            raise pending.error

    async def flushed(self) -> None:
        """Wait until every entry is on the disk. Raises `JournalError` while writing fails."""
        while self._pending:
            if self._failing:
                raise JournalError(
                    "The journal cannot be written at the moment; its entries are kept in memory."
                )
            await self._flushed.wait()

    def request_sent(self) -> None:
        """Note that a request was sent; the request window is written soon."""
        self._work.set()

    def _apply_pending(self, job: int) -> None:
        """Apply the awaited entry of `job` before another entry of the job follows it."""
        pending = self._awaited.pop(job, None)
        if pending is not None:
            pending.applied = True
            self.state.receive(pending.row.entry)

    def _put(self, pending: _Pending) -> None:
        self._pending.append(pending)
        self._work.set()

    # Finished jobs.

    async def lookup(self, identity: str, since: int) -> str | None:
        """Return the task of the latest finished job of `identity` created since `since`."""
        for task_id, (of, created) in reversed(self._finished.items()):
            if of == identity and created >= since:
                return task_id
        return await self._in_thread(self._file.lookup, identity, since)

    def knows(self, task_id: str) -> bool:
        """Return whether a job of this journal has or had this task."""
        known, wanted = self._known_tasks, hash(task_id)
        place = bisect_left(known, wanted)
        return place < len(known) and known[place] == wanted

    def in_doubt(self, since: int) -> bool:
        """Return whether a creation of a former process, sent since `since`, is in doubt."""
        return self._last_doubt >= since

    async def saved_results(self, identity: str) -> dict[str, SavedResult]:
        """Return the saved results of a job, by folder."""
        return await self._in_thread(self._file.saved_results, identity)

    async def save_result(
        self, identity: str, folder: str, task_id: str, files: Iterable[str]
    ) -> None:
        """Record durably that `files` in `folder` are the result of a job.

        Raises `JournalError`.
        """
        await self._in_thread(self._file.save_result, identity, folder, task_id, list(files))

    async def key_picture(self, identity: str) -> str | None:
        """Return the digest of the picture of a finished job with a key, or None."""
        return await self._in_thread(self._file.key_picture, identity)

    async def drop(self, task_id: str) -> None:
        """Stop offering the task of a finished job, since its results are gone."""
        await self._flush()
        await self._in_thread(self._file.drop, task_id)

    # The writer.

    async def run(self) -> None:
        """Write pending entries until cancelled or closed."""
        while not self._closed:
            await self._work.wait()
            if not self._pending:
                # Only requests: wait, to write several of them at once.
                with anyio.move_on_after(_WINDOW_DELAY):
                    while not self._pending and not self._closed:
                        self._work = anyio.Event()
                        await self._work.wait()
            self._work = anyio.Event()
            await self._flush()
            if self._pending and self._failing:
                with anyio.move_on_after(_RETRY_AFTER):
                    # Only an awaited entry is tried at once; others spare a failing disk.
                    while all(one.done is None for one in self._pending):
                        await self._work.wait()
                        self._work = anyio.Event()
                self._work.set()

    async def aclose(self, grace: float = 5.0) -> None:
        """Write the pending entries, for up to `grace` seconds, and close the file."""
        self._closed = True
        self._work.set()
        with anyio.CancelScope(shield=True), anyio.move_on_after(grace):
            await self._flush()
            try:
                await self._in_thread(self._file.close)
            except JournalError as exc:
                LOG.error("Closing the journal: %s", exc)
        if self._pending:
            LOG.error("Closing the journal: %d entries were not written.", len(self._pending))
            self._fail_awaited("The client closed before the journal was written.")

    async def _flush(self) -> None:
        """Write all pending entries in one transaction."""
        async with self._flushing:
            batch = list(self._pending)
            if batch or not self._failing:
                await self._commit(batch)

    async def _commit(self, batch: list[_Pending]) -> None:
        commit = partial(
            self._file.commit, [one.row for one in batch], list(self.window()), self._now()
        )
        try:
            await self._write_batch(commit, batch)
        finally:
            flushed, self._flushed = self._flushed, anyio.Event()
            flushed.set()

    async def _write_batch(self, commit: Callable[[], None], batch: list[_Pending]) -> None:
        try:
            await self._in_thread(commit)
        except PerfectError as exc:
            if not self._failing:
                LOG.error(
                    "%s The entries are kept in memory and written again every %g s.",
                    exc,
                    _RETRY_AFTER,
                )
            self._failing = True
            self._fail_awaited(exc.message)
            return
        self._failing = False
        written = set(map(id, batch))
        self._pending = [one for one in self._pending if id(one) not in written]
        for one in batch:
            if not one.applied:
                self._apply_pending(one.row.entry.job)
            if one.done is not None:
                one.done.set()
            if one.row.finished:
                self._finished.pop(str(one.row.snapshot.task_id), None)

    def _fail_awaited(self, reason: str) -> None:
        """Fail the awaited entries; entries that were applied already stay pending."""
        for one in self._pending:
            if one.done is not None:
                one.error = JournalError(reason)
                one.done.set()
                one.done = None
            if not one.applied:
                del self._awaited[one.row.entry.job]
        self._pending = [one for one in self._pending if one.applied]

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        # The thread is abandoned on cancellation, so that a hanging disk blocks no caller. Its
        # entries are then written a second time, which changes nothing.
        return await anyio.to_thread.run_sync(
            partial(function, *args), abandon_on_cancel=True, limiter=self._limiter
        )
