"""What driver and door say to each other about a job: a ticket, on the lane of one client."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import attrs

from perfect_async import events as ev
from perfect_async._journal.journal import JobEntry, JobJournal
from perfect_async._runtime.spec import JobSpec
from perfect_async._transport.transport import VendorTransport
from perfect_async.errors import PerfectError, twin
from perfect_async.models import FileId, Timeouts


@attrs.frozen(eq=False)
class Channel:
    """One client's way to the vendor, known to the scheduler by `number`."""

    number: int
    transport: VendorTransport
    timeouts: Timeouts
    journal: JobJournal


def _nobody() -> None:
    """Nobody listens: whoever waits for the ticket waits for `done`."""


@attrs.define(eq=False)
class JobHandle:
    """One job on its way: what the driver knows of it, and what its waiter looks at.

    `task_id` is that of the task that runs now; `submitting` is True while a creation is out whose
    answer is not known. `heard` is called whenever either of them or `ending` has changed. A job
    that equals one on its way has a ticket of its own among the `followers` of that one's: one task
    with several ends, of which the first is charged. Times are the loop's, in seconds.
    """

    ref: int
    spec: JobSpec
    channel: Channel
    entry: JobEntry
    heard: Callable[[], None] = attrs.field(default=_nobody, repr=False)
    source: FileId | str | None = attrs.field(default=None, repr=False)
    grant: ev.FileGrant | None = None
    created_at: float | None = None
    ended_at: float | None = None
    task_id: str | None = None
    submitting: bool = False
    wanted: bool = True
    ending: ev.Succeeded | PerfectError | None = None
    units: float = 0.0
    leader: JobHandle | None = attrs.field(default=None, repr=False)
    followers: list[JobHandle] = attrs.field(factory=list["JobHandle"], repr=False)
    done: anyio.Event = attrs.field(factory=anyio.Event, repr=False)

    @property
    def duration(self) -> float | None:
        """Seconds from the creation to the end, as far as either was seen."""
        if self.created_at is None or self.ended_at is None:
            return None
        return self.ended_at - self.created_at

    @property
    def at_stake(self) -> float:
        """Units that are charged for it now, or may be."""
        return self.spec.units if self.task_id is not None or self.submitting else 0.0

    @property
    def awaited(self) -> bool:
        """Whether anybody waits for it, or beside it."""
        return any(one.wanted for one in (self, *self.followers))

    def needs(self, task_id: str, file: FileId | None) -> bool:
        """Whether it needs this task, or this file at the vendor."""
        return self.task_id == task_id or (file is not None and self.source == file)

    def follow(self, leader: JobHandle) -> None:
        """Its job is the same as that of `leader`, which has not ended."""
        self.leader = leader
        leader.followers.append(self)
        self._copy(leader)

    def creating(self, at: float) -> None:
        """The creation leaves."""
        self.submitting, self.task_id, self.created_at = True, None, at
        self._told()

    def created(self, task_id: str) -> None:
        """The task exists."""
        self.submitting, self.task_id = False, task_id
        self.entry.created(task_id)
        self._told()

    def refused(self) -> None:
        """The creation was certainly not executed."""
        self.submitting, self.created_at = False, None
        self._told()

    def failed(self, task_id: str) -> None:
        """The engine gave up on `task_id`, whose units come back; there may be another task."""
        if self.task_id == task_id:
            self.task_id = None
            self.entry.returned()
            self._told()

    def end(self, ending: ev.Succeeded | PerfectError, units: float, at: float) -> None:
        """Tell the waiter."""
        # One refusal may end many jobs, and each of them is raised on its own.
        self.ending = twin(ending) if isinstance(ending, PerfectError) else ending
        self.submitting, self.units, self.ended_at = False, units, at
        self.done.set()
        self.heard()
        for follower in self.followers:
            follower.end(ending, 0.0, at)
        # Who heard it may hold the ticket: let go, or only a garbage collection frees its picture.
        self.heard, self.leader = _nobody, None
        self.followers.clear()

    def _told(self) -> None:
        self.heard()
        for follower in self.followers:
            follower._copy(self)  # noqa: SLF001 - another ticket
            follower.heard()

    def _copy(self, leader: JobHandle) -> None:
        self.task_id, self.submitting = leader.task_id, leader.submitting
        self.created_at, self.source = leader.created_at, leader.source
