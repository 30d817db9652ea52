"""How jobs come in: new ones, equal ones, and those whose tasks exist already or may.

What the scheduler is told of them, and whom it speaks of when it says a `ref`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from functools import partial

from perfect_async import events as ev
from perfect_async._journal.journal import Record
from perfect_async._runtime.commands import Clock, Creations
from perfect_async._runtime.failures import given_up
from perfect_async._runtime.handle import Lane, Ticket
from perfect_async._runtime.spec import Errand
from perfect_async.errors import ClientClosed, PerfectError
from perfect_async.models import FileId

Heard = Callable[[], None]
Start = Callable[[Callable[[], Coroutine[object, object, None]]], None]


class Intake:
    """The tickets of all jobs that have not ended, on one key and host.

    `refs` numbers jobs and questions, `tell` speaks to the scheduler, `start` runs beside it.
    """

    def __init__(
        self,
        refs: Iterator[int],
        tell: Callable[[ev.Event], None],
        start: Start,
        creations: Creations,
        clock: Clock,
    ) -> None:
        self._refs = refs
        self._tell = tell
        self._start = start
        self._creations = creations
        self._clock = clock
        self._tickets: dict[int, Ticket] = {}
        self._equal: dict[tuple[int, str], Ticket] = {}
        self._settling: set[int] = set()
        # Whether some client has a journal: creations then go one by one.
        self.alone = False

    def __len__(self) -> int:
        return len(self._tickets)

    def __getitem__(self, ref: int) -> Ticket:
        return self._tickets[ref]

    def get(self, ref: int) -> Ticket | None:
        """The ticket of a job that has not ended."""
        return self._tickets.get(ref)

    def left(self, lane: Lane) -> list[Ticket]:
        """The jobs of `lane` that have not ended."""
        return [ticket for ticket in self._tickets.values() if ticket.lane is lane]

    def uses(self, task_id: str, file: FileId | None) -> bool:
        """Whether a job that has not ended needs this task, or this file at the vendor."""
        return any(ticket.needs(task_id, file) for ticket in self._tickets.values())

    def of_task(self, task_id: str) -> Ticket | None:
        """The job whose task this is."""
        found = (ticket for ticket in self._tickets.values() if ticket.task_id == task_id)
        return next(found, None)

    # Coming in.

    def equal(self, lane: Lane, errand: Errand, heard: Heard) -> Ticket | None:
        """A ticket beside the equal job that is on its way, if there is one."""
        leader = self._equal.get((lane.number, errand.identity)) if errand.sure else None
        if leader is None or not (leader.awaited or leader.at_stake):
            # Nobody waits for that one, and it has not left: it will not.
            return None
        return self.follow(leader, errand, heard)

    def follow(self, leader: Ticket, errand: Errand, heard: Heard) -> Ticket:
        """A ticket beside `leader`."""
        nothing = leader.lane.records.nothing()
        ticket = Ticket(leader.ref, errand, leader.lane, nothing, heard)
        ticket.follow(leader)
        return ticket

    def enter(self, lane: Lane, errand: Errand, record: Record, heard: Heard) -> Ticket:
        """A job that is to be created."""
        ticket = self._ticket(lane, errand, record, heard)
        ticket.source = errand.source
        wanted = ev.Wanted(
            ticket.ref,
            errand.feature,
            errand.units,
            uploads=errand.picture is not None,
            lane=lane.number,
            outputs=errand.outputs,
            usual=errand.usual,
            purses=errand.terms.purses,
            alone=self.alone,
        )
        self._take(ticket, wanted)
        return ticket

    def adopt(
        self, lane: Lane, errand: Errand, record: Record, task: tuple[str, int], heard: Heard
    ) -> Ticket:
        """A job whose `task` exists: its id, and how many microseconds ago it was created."""
        ticket = self._ticket(lane, errand, record, heard)
        self._adopt(ticket, *task)
        return ticket

    def doubt(self, lane: Lane, errand: Errand, record: Record, sent: int, heard: Heard) -> Ticket:
        """A job that may have a task: its creation left at `sent` (UTC microseconds)."""
        ticket = self._ticket(lane, errand, record, heard)
        ticket.submitting = True
        self._known(ticket)
        self._settling.add(ticket.ref)
        self._start(partial(self._settle_doubt, ticket, sent))
        return ticket

    def ended(
        self, lane: Lane, errand: Errand, record: Record, task: tuple[str, int], heard: Heard
    ) -> Ticket:
        """A job whose `task` was done, of which so many pictures are: its id, and how many.

        Nothing is asked for: the result has no URLs until it is saved once more.
        """
        ticket, (task_id, pictures) = self._ticket(lane, errand, record, heard), task
        ticket.task_id = task_id
        done = ev.Succeeded(ev.Poll(0, ticket.ref), ("",) * pictures)
        ticket.end(done, errand.units, self._clock.seconds())
        return ticket

    def forgo(
        self, lane: Lane, errand: Errand, record: Record, error: PerfectError, heard: Heard
    ) -> Ticket:
        """A job whose end is known already."""
        ticket = self._ticket(lane, errand, record, heard)
        self._take(ticket, ev.Forgone(ticket.ref, error, lane.number))
        return ticket

    async def _settle_doubt(self, ticket: Ticket, sent: int) -> None:
        found = await self._creations.settle(ticket, sent)
        if ticket.ref not in self._settling:
            return
        self._settling.discard(ticket.ref)
        if isinstance(found, PerfectError):
            del self._tickets[ticket.ref]
            self._take(ticket, ev.Forgone(ticket.ref, found, ticket.lane.number))
        else:
            ticket.created(found)
            self._adopt(ticket, found, self._clock.utc() - sent)

    def _ticket(self, lane: Lane, errand: Errand, record: Record, heard: Heard) -> Ticket:
        return Ticket(next(self._refs), errand, lane, record, heard)

    def _adopt(self, ticket: Ticket, task_id: str, age: int) -> None:
        errand = ticket.errand
        ticket.task_id = task_id
        self._creations.know(task_id)
        adopted = ev.Adopted(
            ticket.ref,
            errand.feature,
            # Of a task that is known by its id alone somebody else was charged, or we were before.
            0.0 if errand.job is None else errand.units,
            task_id,
            lane=ticket.lane.number,
            outputs=errand.outputs,
            usual=errand.usual,
            age=max(0, age),
        )
        self._take(ticket, adopted)

    def _take(self, ticket: Ticket, event: ev.Event) -> None:
        self._tell(event)
        self._known(ticket)

    def _known(self, ticket: Ticket) -> None:
        self._tickets[ticket.ref] = ticket
        if ticket.errand.sure:
            self._equal[ticket.lane.number, ticket.errand.identity] = ticket

    # Going out.

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody waits for `ticket`: it is not created; what was created is kept to its end."""
        ticket.wanted = False
        leader = ticket.leader or ticket
        if ticket is not leader and ticket.task_id is None and not ticket.submitting:
            leader.followers.remove(ticket)
            ticket.end(ClientClosed("Nobody waits for this job."), 0.0, self._clock.seconds())
        if not leader.awaited:
            self._tell(ev.Withdrawn(leader.ref))

    def settle(self, command: ev.Settle) -> bool:
        """Tell whoever waits how the job ended; False where it is no job of ours."""
        ticket = self._tickets.pop(command.ref, None)
        if ticket is None:
            return False
        ticket.record.ended(command.ending)
        self._end(ticket, command.ending, command.units)
        return True

    def drop(self, lane: Lane) -> None:
        """`lane` ends: what is being settled in it is left as it is."""
        for ticket in self.left(lane):
            if ticket.ref in self._settling:
                self._abandon(ticket, None)

    def give_up(self, cause: BaseException | None) -> None:
        """Nobody hangs: whoever still waits is told, and why."""
        for ticket in list(self._tickets.values()):
            self._abandon(ticket, cause)

    def _abandon(self, ticket: Ticket, cause: BaseException | None) -> None:
        del self._tickets[ticket.ref]
        self._settling.discard(ticket.ref)
        units = 0.0 if ticket.task_id is None else ticket.at_stake
        # Not written down: what ends with us goes on in the next process.
        self._end(ticket, given_up(ticket, cause), units)

    def _end(self, ticket: Ticket, ending: ev.Succeeded | PerfectError, units: float) -> None:
        if self._equal.get((ticket.lane.number, ticket.errand.identity)) is ticket:
            del self._equal[ticket.lane.number, ticket.errand.identity]
        ticket.end(ending, units, self._clock.seconds())
