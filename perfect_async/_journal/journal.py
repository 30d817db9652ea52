"""What is written down of each job and when, for a client that has a journal; else nothing is.

A record says what has happened to one job. What has to be on the disk before something is done is
awaited (`creating`); the rest is written soon after.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Final

from perfect_async import events as ev
from perfect_async._journal import model as words
from perfect_async._journal.model import JobSnapshot, Phase
from perfect_async._runtime.spec import JobSpec
from perfect_async._time import SECOND
from perfect_async.errors import (
    ClientClosed,
    PerfectError,
    SubmissionInDoubt,
    TaskAbandoned,
    TaskExpired,
    TaskTimedOut,
)

if TYPE_CHECKING:
    from perfect_async._journal.writer import JournalWriter

_FETCHABLE: Final = 24 * 3600 * SECOND
"""For how long the vendor gives a finished task's pictures again, at least (contract: Download the
result).
"""


class JobEntry:
    """One job's line in the journal; without a journal it does nothing."""

    def __init__(self, records: JobJournal, number: int, phase: Phase | None = None) -> None:
        self._records = records
        self._journal = records.journal
        self.number = number
        # Whether the disk says that it is being created, and whether it is to go on saying so.
        self._creating = phase is Phase.CREATING
        self.ahead = False

    def __bool__(self) -> bool:
        return self._journal is not None

    @property
    def known(self) -> JobSnapshot | None:
        """What the journal knows of the job, None once it is over."""
        return None if self._journal is None else self._journal.memory.live.get(self.number)

    async def creating(self) -> None:
        """Its creation is about to leave; raises `JournalError`, and then it must not."""
        if self._journal is not None and not self._creating:
            await self._journal.write(words.Creating(self.number, self._records.now()))
            self._creating = True

    def uploaded(self, file_id: str) -> None:
        """Its picture is at the vendor."""
        self._note(words.Uploaded, file_id)

    def not_created(self) -> None:
        """Its creation was certainly not executed."""
        if self._creating and not self.ahead:
            self._creating = False
            self._note(words.NotCreated)
        self.ahead = False

    def created(self, task_id: str) -> None:
        """Its task exists."""
        self._creating = False
        self._note(words.Created, task_id)

    def returned(self) -> None:
        """The engine failed its task and gave the units back."""
        known = self.known
        if known is not None and known.phase is Phase.RUNNING:
            self._note(words.Returned)

    def ended(self, ending: ev.Succeeded | PerfectError) -> None:
        """It ended so. What merely ends with the client goes on in the next process."""
        match ending:
            case ev.Succeeded():
                self._note(words.Ended, "done")
            case TaskAbandoned() | SubmissionInDoubt() if self._records.closing:
                pass
            case ClientClosed():
                self._note(words.Ended, "unsent")
                self.told()
            case SubmissionInDoubt() if ending.units_at_stake:
                self._note(words.Ended, "doubt")
            case TaskExpired() | TaskTimedOut() | TaskAbandoned():
                self._note(words.Ended, "lost")
            case _:
                # Also a creation without an answer of which the history shows nothing: no task that
                # turns up there can be this one's, and it is created again for consent alone.
                self._note(words.Ended, "failed")

    def saved(self) -> None:
        """Its pictures are on the disk."""
        self._note(words.Saved)

    def told(self, *, unsaved: bool = False) -> None:
        """Whoever waited knows; what was to be saved and is not, goes on unless `unsaved` says."""
        known = self.known
        if known is None or known.phase not in {Phase.DONE, Phase.ENDED}:
            return
        to_save = known.phase is Phase.DONE and known.order.save_to is not None and not known.saved
        if unsaved or not to_save:
            self._note(words.Told)

    def deleted(self) -> None:
        """The vendor's copies are deleted."""
        self._note(words.Deleted)

    def _note(self, word: Callable[..., words.JournalEntry], *facts: str) -> None:
        if self._journal is not None and self.known is not None:
            self._journal.note(word(self.number, self._records.now(), *facts))
            self._records.look(self.number)


class JobJournal:
    """The journal of one client: `journal` None where it has none; `now` in UTC microseconds.

    `recovery` are the jobs of the former process that nobody has taken up yet. `closing`: tasks
    that are given up now live on in the journal.
    """

    def __init__(self, journal: JournalWriter | None, now: Callable[[], int]) -> None:
        self.journal = journal
        self.now = now
        self.closing = False
        self.recovery: dict[int, JobSnapshot] = {} if journal is None else dict(journal.memory.live)
        self._former = frozenset(self.recovery)
        self._done: dict[str, int] = {}
        self._untold: dict[int, str] = {}
        self._numbers = {
            known.order.identity: number
            for number, known in self.recovery.items()
            if known.order.sure
        }

    def __bool__(self) -> bool:
        return self.journal is not None

    def enter(self, spec: JobSpec) -> JobEntry:
        """A job comes in."""
        if self.journal is None:
            return JobEntry(self, 0)
        self._retire(self.journal)
        number = self.journal.number()
        self.journal.note(words.Entered(number, self.now(), spec.order()))
        return JobEntry(self, number)

    def resume(self, known: JobSnapshot) -> JobEntry:
        """A job of the former process goes on."""
        return JobEntry(self, known.job, known.phase)

    def nothing(self) -> JobEntry:
        """No record: of what is followed, fetched or attached, another one tells."""
        return JobEntry(_NOWHERE, 0)

    def take(self, number: int) -> JobSnapshot | None:
        """Job `number` of the former process, if nobody else has taken it up."""
        known = self.recovery.pop(number, None)
        if known is not None and self._numbers.get(known.order.identity) == number:
            del self._numbers[known.order.identity]
        return known

    def equal(self, identity: str) -> JobSnapshot | None:
        """The job of the former process that is the same, if nobody else has taken it up."""
        number = self._numbers.get(identity)
        return None if number is None else self.take(number)

    def of_task(self, task_id: str) -> JobSnapshot | None:
        """The job of the former process whose task this is, if nobody else has taken it up."""
        found = (number for number, known in self.recovery.items() if known.task_id == task_id)
        number = next(found, None)
        return None if number is None else self.take(number)

    async def finished(self, identity: str) -> str | None:
        """The task of an equal job whose pictures can still be fetched."""
        if self.journal is None:
            return None
        since = self.now() - _FETCHABLE
        live = self.journal.memory.live.get(self._done.get(identity, 0))
        if live is not None and live.since >= since:
            return live.task_id
        return await self.journal.lookup(identity, since)

    def look(self, number: int) -> None:
        """Something was written about job `number`: keep track of those whose end nobody heard."""
        if self.journal is None:
            return
        known = self.journal.memory.live.get(number)
        if known is None:
            # Over: from now on it is in the journal's index.
            identity = self._untold.pop(number, "")
            if self._done.get(identity) == number:
                del self._done[identity]
        elif known.phase in {Phase.DONE, Phase.ENDED}:
            self._untold[number] = known.order.identity
            if known.phase is Phase.DONE and known.order.sure:
                self._done[known.order.identity] = number

    def _retire(self, journal: JournalWriter) -> None:
        """The oldest end that nobody heard is told to nobody once it can no longer be fetched."""
        number = next(iter(self._untold), 0)
        known = journal.memory.live.get(number)
        if known is not None and known.since < self.now() - _FETCHABLE:
            JobEntry(self, number).told(unsaved=True)

    async def drop(self, task_id: str) -> None:
        """The vendor no longer has the pictures of this task."""
        if self.journal is not None:
            await self.journal.drop(task_id)

    async def settled(self) -> None:
        """Wait until all that was said is on the disk. Raises `JournalError` where it cannot be."""
        if self.journal is not None:
            await self.journal.settled()

    def past(self) -> tuple[tuple[int, int], ...]:
        """What the former process had spent of the window: (age in microseconds, requests)."""
        return () if self.journal is None else self.journal.past

    async def aclose(self) -> None:
        """Write what is left, and let go of the file."""
        if self.journal is not None:
            await self.journal.aclose()

    def used(self) -> None:
        """A request was sent: the next process must know what is left of the window."""
        if self.journal is not None:
            self.journal.used()

    async def ids(self, since: int) -> frozenset[str]:
        """Every task that the journal knows from `since` on; "" if one stayed in doubt."""
        return frozenset() if self.journal is None else await self.journal.ids(since)

    def doubtful(self, since: int, but: Container[int]) -> list[str]:
        """The features of the former process's creations of which nobody knows yet what became.

        Those from `since` on, without the jobs `but`.
        """
        if self.journal is None:
            return []
        return [
            known.order.feature
            for known in self.journal.memory.live.values()
            if known.job in self._former
            and known.job not in but
            and (known.phase is Phase.CREATING or known.how == "doubt")
            and known.since >= since
        ]


_NOWHERE: Final = JobJournal(None, lambda: 0)


async def open_journal(path: str | os.PathLike[str] | None, now: Callable[[], int]) -> JobJournal:
    """Open the journal at `path`; `now` is UTC microseconds. Raises `JournalError`."""
    if path is None:
        return JobJournal(None, now)
    # Loaded with the first journal: sqlite is no small import.
    from perfect_async._journal.writer import JournalWriter  # noqa: PLC0415

    return JobJournal(await JournalWriter.open(path, now=now), now)
