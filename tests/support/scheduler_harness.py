"""A scheduler that a test drives by hand, command by command."""

from collections.abc import Sequence
from typing import TypeVar

from perfect_async import events as ev
from perfect_async.models import Limits, Polling
from perfect_async.scheduler import Scheduler

SECOND = 1_000_000
SMILE = ev.TaskKind("ai-smile")

T = TypeVar("T")


def head(queue: Sequence[T]) -> T | None:
    """Return the first entry of `queue`, or None if it is empty."""
    return queue[0] if queue else None


def grants(command: ev.Register, *file_ids: str) -> tuple[ev.FileGrant, ...]:
    """Return grants for the files of `command`: with `file_ids`, or an id for each."""
    ids = file_ids or tuple(f"file-{ref}" for ref in command.refs)
    return tuple(ev.FileGrant(name, "PUT", f"https://up.example/{name}", ()) for name in ids)


class SchedulerHarness:
    """A scheduler whose commands the test takes and answers."""

    def __init__(self, **settings: object) -> None:
        polling = Polling(give_up_after=120)
        self.scheduler = Scheduler(Limits(), polling, **settings)  # type: ignore[arg-type] # as given
        self.now = 0

    def tell(self, event: ev.Event) -> None:
        """Pass `event` to the scheduler now."""
        self.scheduler.receive(event, self.now)

    def take(self) -> ev.Command:
        """Issue the next due command, after waiting for it."""
        while (command := self.scheduler.due(self.now)) is None:
            self.now = self.scheduler.wakes_at(self.now)
        self.tell(ev.Issued(command))
        return command

    def running(self, ref: int = 1, *, units: float = 1.0) -> None:
        """Create a task for a new job."""
        self.tell(ev.JobAdded(ref, SMILE, units, uploads=False))
        command = self.take()
        assert isinstance(command, ev.Submit)
        self.tell(ev.Accepted(command, f"task-{ref}"))

    def poll(self) -> ev.Poll:
        """Issue a poll, which must be due next."""
        command = self.take()
        assert isinstance(command, ev.Poll)
        return command

    def settle(self) -> ev.Settle:
        """Issue the report of an end, which must be due next."""
        command = self.take()
        assert isinstance(command, ev.Settle)
        return command
