"""What the driver and the door say to each other about a job: a ticket, on the lane of one client."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import attrs

from perfect_async import events as ev
from perfect_async._pictures import Picture
from perfect_async._transport import Transport
from perfect_async.errors import PerfectError
from perfect_async.models import FileId, Job, Timeouts


@attrs.frozen(eq=False)
class Lane:
    """One client's way to the vendor, known to the scheduler by `number`."""

    number: int
    transport: Transport
    timeouts: Timeouts


@attrs.define(eq=False)
class Ticket:
    """One job on its way: what the driver knows of it, and what its waiter looks at.

    `heard` is called whenever `task_id` or `ending` have changed.
    """

    ref: int
    job: Job
    lane: Lane
    picture: Picture | None
    heard: Callable[[], None]
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
    def duration(self) -> float | None:
        """Seconds from the creation to the end, as far as either was seen."""
        if self.created_at is None or self.ended_at is None:
            return None
        return self.ended_at - self.created_at

    def end(self, ending: ev.Succeeded | PerfectError, units: float, at: float) -> None:
        """Tell the waiter."""
        self.ending, self.units, self.ended_at = ending, units, at
        self.done.set()
        self.heard()
