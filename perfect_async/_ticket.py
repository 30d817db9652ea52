"""What driver and door say to each other about a job: a ticket, on the lane of one client."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import attrs

from perfect_async import events as ev
from perfect_async._pictures import Picture
from perfect_async._transport import Transport
from perfect_async.errors import PerfectError, twin
from perfect_async.models import FileId, Job, Timeouts


@attrs.frozen(eq=False)
class Lane:
    """One client's way to the vendor, known to the scheduler by `number`."""

    number: int
    transport: Transport
    timeouts: Timeouts


def _nobody() -> None:
    """Nobody listens: whoever waits for the ticket waits for `done`."""


@attrs.define(eq=False)
class Ticket:
    """One job on its way: what the driver knows of it, and what its waiter looks at.

    `stem` and `identity` name its results. `task_id` is that of the task that runs now;
    `submitting` is True while a creation is out whose answer is not known. `heard` is called
    whenever either of them or `ending` has changed. Times are the loop's, in seconds.
    """

    ref: int
    job: Job
    lane: Lane
    picture: Picture | None
    stem: str
    identity: str
    heard: Callable[[], None] = attrs.field(default=_nobody, repr=False)
    source: FileId | str | None = attrs.field(default=None, repr=False)
    grant: ev.FileGrant | None = None
    created_at: float | None = None
    ended_at: float | None = None
    task_id: str | None = None
    submitting: bool = False
    ending: ev.Succeeded | PerfectError | None = None
    units: float = 0.0
    done: anyio.Event = attrs.field(factory=anyio.Event, repr=False)

    @property
    def wanted(self) -> ev.Wanted:
        """What the scheduler is told of the job."""
        usual = self.job.usual
        return ev.Wanted(
            self.ref,
            self.job.feature,
            self.job.units,
            uploads=self.picture is not None,
            lane=self.lane.number,
            outputs=self.job.outputs,
            usual=usual and (round(usual[0] * ev.SECOND), round(usual[1] * ev.SECOND)),
        )

    @property
    def duration(self) -> float | None:
        """Seconds from the creation to the end, as far as either was seen."""
        if self.created_at is None or self.ended_at is None:
            return None
        return self.ended_at - self.created_at

    @property
    def at_stake(self) -> float:
        """Units that are charged for it now, or may be."""
        return float(self.job.units) if self.task_id is not None or self.submitting else 0.0

    def creating(self, at: float) -> None:
        """The creation leaves."""
        self.submitting, self.task_id, self.created_at = True, None, at
        self.heard()

    def created(self, task_id: str) -> None:
        """The task exists."""
        self.submitting, self.task_id = False, task_id
        self.heard()

    def refused(self) -> None:
        """The creation was certainly not executed."""
        self.submitting, self.created_at = False, None
        self.heard()

    def failed(self, task_id: str) -> None:
        """The engine gave up on `task_id`, whose units come back; there may be another task."""
        if self.task_id == task_id:
            self.task_id = None
            self.heard()

    def end(self, ending: ev.Succeeded | PerfectError, units: float, at: float) -> None:
        """Tell the waiter."""
        # One refusal may end many jobs, and each of them is raised on its own.
        self.ending = twin(ending) if isinstance(ending, PerfectError) else ending
        self.submitting, self.units, self.ended_at = False, units, at
        self.done.set()
        self.heard()
        # Who heard it may hold the ticket: let go, or only a garbage collection frees its picture.
        self.heard = _nobody
