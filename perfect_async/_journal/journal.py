"""The journal of a client: records the steps of each job.

A `JobEntry` records the steps of one job. Its caller awaits `creating`, which must be on the disk
before the creation is sent; all other entries are written soon after. A client without a journal
has a `NullWriter`, which does nothing, so that callers need not distinguish the two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING, Final

from perfect_async._journal import model as entries
from perfect_async._journal.model import (
    EndKind,
    JobSnapshot,
    JournalEntry,
    JournalState,
    Phase,
    StoredJob,
)
from perfect_async._time import SECOND

if TYPE_CHECKING:
    from perfect_async._journal.sqlite import SavedResult
    from perfect_async._journal.writer import JournalWriter

_FETCHABLE: Final = 24 * 3600 * SECOND
"""The shortest time for which the vendor returns the results of a finished task again (contract:
Download the result).
"""


class NullWriter:
    """The writer of a client without a journal: it writes nothing and knows no job."""

    persistent: Final = False
    past: Final[tuple[tuple[int, int], ...]] = ()

    def __init__(self) -> None:
        self.state = JournalState()
        self.window: Callable[[], Iterable[tuple[int, int]]] = tuple

    def next_number(self) -> int:
        """Return 0, the number of every job that is not recorded."""
        return 0

    def append(self, entry: JournalEntry) -> None:
        """Do nothing."""

    async def write(self, entry: JournalEntry) -> None:
        """Do nothing."""

    def request_sent(self) -> None:
        """Do nothing."""

    async def lookup(self, identity: str, since: int) -> None:
        """Return None: no job is known."""

    def knows(self, _task_id: str) -> bool:
        """Return False: no task is known."""
        return False

    def in_doubt(self, _since: int) -> bool:
        """Return False: no creation is known."""
        return False

    async def saved_results(self, _identity: str) -> dict[str, SavedResult]:
        """Return nothing: no result is known."""
        return {}

    async def save_result(
        self, identity: str, folder: str, task_id: str, files: Iterable[str]
    ) -> None:
        """Do nothing."""

    async def key_picture(self, identity: str) -> None:
        """Return None: no job is known."""

    async def drop(self, task_id: str) -> None:
        """Do nothing."""

    async def flushed(self) -> None:
        """Return at once."""

    async def run(self) -> None:
        """Return at once."""

    async def aclose(self) -> None:
        """Do nothing."""


class JobEntry:
    """One job's entries in the journal."""

    def __init__(self, journal: JobJournal, number: int, phase: Phase | None = None) -> None:
        self._journal = journal
        self.number = number
        # Whether the disk says that the task is being created.
        self._creating = phase is Phase.CREATING
        # Whether `not_created` keeps that entry once: the creation will be sent again.
        self.written_ahead = False

    @property
    def persistent(self) -> bool:
        """Whether the job survives this process."""
        return self._journal.writer.persistent

    @property
    def snapshot(self) -> JobSnapshot | None:
        """The state of the job in the journal; None without a journal and once the job is over."""
        return self._journal.writer.state.live.get(self.number)

    async def creating(self, intent: str = "") -> None:
        """Record durably that the creation is about to be sent.

        `intent` is the key of its row in the ledger. If it raises `JournalError`, the creation must
        not be sent.
        """
        if not self._creating:
            creating = entries.Creating(self.number, self._journal.now(), intent)
            await self._journal.writer.write(creating)
            self._creating = True
        elif intent:
            # The entry was written for a former try; this one has another row in the ledger.
            self._append(entries.Creating, intent)

    def uploaded(self, file_id: str, number: int = 0) -> None:
        """Record that the input `number` was uploaded."""
        self._append(entries.Uploaded, file_id, number)

    def not_created(self) -> None:
        """Record that the vendor certainly did not execute the creation."""
        if self._creating and not self.written_ahead:
            self._creating = False
            self._append(entries.NotCreated)
        self.written_ahead = False

    def created(self, task_id: str) -> None:
        """Record that the vendor created the task."""
        self._creating = False
        self._append(entries.Created, task_id)

    def returned(self) -> None:
        """Record that the engine failed the task and the vendor returned the units."""
        snapshot = self.snapshot
        if snapshot is not None and snapshot.phase is Phase.RUNNING:
            self._append(entries.Returned)

    def ended(self, kind: EndKind) -> None:
        """Record how the job ended."""
        self._append(entries.Ended, kind)
        if kind == "unsent":
            # No caller waits for this job, so its end counts as reported.
            self.reported()

    def saved(self) -> None:
        """Record that the results are on the disk."""
        self._append(entries.Saved)

    def reported(self, *, unsaved: bool = False) -> None:
        """Record that the caller knows how the job ended.

        A job whose results should be saved but are not stays open, unless `unsaved` is set.
        """
        snapshot = self.snapshot
        if snapshot is None or snapshot.phase not in {Phase.DONE, Phase.ENDED}:
            return
        done, stored = snapshot.phase is Phase.DONE, snapshot.stored
        to_save = done and stored.save_to is not None and not snapshot.saved
        if unsaved or not to_save:
            self._append(entries.Reported)

    def deleted(self) -> None:
        """Record that the vendor's copies were deleted."""
        self._append(entries.Deleted)

    def _append(self, kind: Callable[..., JournalEntry], *details: str | int) -> None:
        if self.snapshot is not None:
            self._journal.writer.append(kind(self.number, self._journal.now(), *details))
            self._journal.track(self.number)


class JobJournal:
    """The journal of one client; `now` returns the time in UTC microseconds.

    `recoverable` holds the jobs of the former process that were not resumed yet. While `closing`
    is set, jobs that are cancelled stay open in the journal.
    """

    def __init__(self, writer: JournalWriter | NullWriter, now: Callable[[], int]) -> None:
        self.writer = writer
        self.now = now
        self.closing = False
        self.recoverable: dict[int, JobSnapshot] = dict(writer.state.live)
        self._former = frozenset(self.recoverable)
        # Jobs that have ended but were not reported: done jobs by identity, all jobs by number.
        self._done: dict[str, int] = {}
        self._unreported: dict[int, str] = {}
        # Jobs of the former process by identity; it keeps those that were resumed.
        self._former_numbers = {
            snapshot.stored.identity: number
            for number, snapshot in self.recoverable.items()
            if snapshot.stored.sure
        }

    def enter(self, stored: StoredJob) -> JobEntry:
        """Record a new job."""
        self._retire()
        number = self.writer.next_number()
        self.writer.append(entries.Entered(number, self.now(), stored))
        return JobEntry(self, number)

    def resume(self, snapshot: JobSnapshot) -> JobEntry:
        """Continue the entries of a job of the former process."""
        return JobEntry(self, snapshot.job, snapshot.phase)

    def take(self, number: int) -> JobSnapshot | None:
        """Take job `number` of the former process, unless it was resumed already."""
        return self.recoverable.pop(number, None)

    def find_equal(self, identity: str) -> JobSnapshot | None:
        """Return the equal job of the former process, unless it was resumed already."""
        return self.recoverable.get(self._former_numbers.get(identity, 0))

    def former_source(self, identity: str) -> StoredJob | None:
        """Return the equal job of the former process if it is not over and did not fail."""
        # Also a job that was resumed, since an equal job gets its result.
        snapshot = self.writer.state.live.get(self._former_numbers.get(identity, 0))
        failed = snapshot is None or snapshot.end in {"failed", "unsent"}
        return None if snapshot is None or failed else snapshot.stored

    def find_task(self, task_id: str) -> JobSnapshot | None:
        """Return the job of the former process with this task, unless it was resumed already."""
        return next((each for each in self.recoverable.values() if each.task_id == task_id), None)

    async def finished(self, identity: str) -> str | None:
        """Return the task of an equal finished job whose results can still be fetched, or None."""
        since = self.now() - _FETCHABLE
        live = self.writer.state.live.get(self._done.get(identity, 0))
        if live is not None and live.since >= since:
            return live.task_id
        return await self.writer.lookup(identity, since)

    def track(self, number: int) -> None:
        """Update the lists of ended but unreported jobs after an entry of job `number`."""
        snapshot = self.writer.state.live.get(number)
        if snapshot is None:
            # The job is over: `lookup` finds it in the file from now on.
            identity = self._unreported.pop(number, "")
            if self._done.get(identity) == number:
                del self._done[identity]
        elif snapshot.phase in {Phase.DONE, Phase.ENDED}:
            self._unreported[number] = snapshot.stored.identity
            if snapshot.phase is Phase.DONE and snapshot.stored.sure:
                self._done[snapshot.stored.identity] = number

    def _retire(self) -> None:
        """Close the oldest unreported job if its result can no longer be fetched."""
        number = next(iter(self._unreported), 0)
        snapshot = self.writer.state.live.get(number)
        if snapshot is not None and snapshot.since < self.now() - _FETCHABLE:
            JobEntry(self, number).reported(unsaved=True)

    def features_in_doubt(self, since: int, but: Container[int]) -> list[str]:
        """Return the features of the former process's creations that are in doubt.

        Only creations sent since `since` count; the jobs in `but` do not.
        """
        return [
            snapshot.stored.feature
            for snapshot in self.writer.state.live.values()
            if snapshot.job in self._former
            and snapshot.job not in but
            and snapshot.in_doubt
            and snapshot.since >= since
        ]


_NO_JOURNAL: Final = JobJournal(NullWriter(), lambda: 0)


def unrecorded() -> JobEntry:
    """Return a `JobEntry` that records nothing: for a job without a journal, or an equal job."""
    return JobEntry(_NO_JOURNAL, 0)


async def open_journal(path: str | os.PathLike[str] | None, now: Callable[[], int]) -> JobJournal:
    """Open the journal at `path`; for None, return one that does nothing. Raises `JournalError`.

    `now` returns the time in UTC microseconds.
    """
    if path is None:
        return JobJournal(NullWriter(), now)
    # Imported with the first journal, since sqlite3 takes long to import.
    from perfect_async._journal.writer import JournalWriter  # noqa: PLC0415

    return JobJournal(await JournalWriter.open(path, now=now), now)
