"""What a former process left in the journal, and how it goes on: adopted, settled, or created.

Nobody knows how much of a lease is left, so a task that may run is asked for at once; a creation
without an answer is settled from the unit history; what was not created yet is created, if its
picture can still be had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from perfect_async._files.images import inspect
from perfect_async._journal.model import Known, Phase
from perfect_async._log import LOG
from perfect_async._runtime.handle import Lane, Ticket
from perfect_async._runtime.registry import Intake
from perfect_async._runtime.spec import Errand
from perfect_async.errors import JobRefused, RequestRefused, SourceLost, quoted
from perfect_async.models import FileId, Job

_RANK: Final = {
    Phase.RUNNING: 0,
    Phase.CREATING: 1,
    Phase.DONE: 2,
    Phase.ENDED: 3,
    Phase.ENTERED: 4,
}
"""What comes first: leases run."""

Heard = Callable[[], None]


@attrs.frozen
class Leftover:
    """One job of a former process, by its number in the journal."""

    number: int
    job: Job


class Leftovers:
    """The jobs of a former process that nobody has taken up, for the client on `lane`."""

    def __init__(self, intake: Intake, lane: Lane, purses: tuple[int, ...]) -> None:
        self._purses = purses
        self._intake = intake
        self._lane = lane
        self._records = lane.records
        self._taken_up: dict[int, tuple[Ticket, Errand]] = {}

    def all(self) -> list[Leftover]:
        """Those whose outcome nobody has heard, the most urgent first."""
        left = [known for known in self._records.leftovers.values() if not known.told]
        left.sort(key=lambda known: (_RANK[known.phase], known.job))
        return [leftover for leftover in map(self._leftover, left) if leftover is not None]

    @staticmethod
    def _leftover(known: Known) -> Leftover | None:
        try:
            return Leftover(known.job, Errand.job_of(known.order, known.file_id))
        except JobRefused as exc:
            # Others may have a lease that runs.
            LOG.warning("A job of the journal is left there as it is: %s", exc.message)
            return None

    def copies(self) -> list[tuple[Known, FileId | None]]:
        """Those that were told, and whose copies at the vendor are still to be deleted.

        Each with the file that went in.
        """
        told = [known for known in self._records.leftovers.values() if known.told]
        taken = [known for known in map(self._records.take, [k.job for k in told]) if known]
        return [(known, _file(known)) for known in taken]

    def uses(self, file: FileId) -> bool:
        """Whether a job that nobody has taken up needs this file at the vendor."""
        return any(_file(known) == file for known in self._records.leftovers.values())

    # Taking up.

    async def resume(self, leftover: Leftover, heard: Heard) -> Ticket:
        """The job goes on: beside whoever has taken it up already, if somebody has.

        Raises `JobRefused`.
        """
        known = self._records.take(leftover.number)
        if known is None:
            return self._beside(leftover, heard)
        errand = self._errand(known)
        if (ticket := self._taken(known, errand, heard)) is not None:
            return ticket
        try:
            errand = await self._looked_at(known, errand)
        except JobRefused as exc:
            record = self._records.resume(known)
            record.ended(exc)
            record.told()
            raise
        return self._enter(known, errand, heard)

    def _beside(self, leftover: Leftover, heard: Heard) -> Ticket:
        """A ticket beside the one that goes on with the job, or has."""
        taken = self._taken_up.get(leftover.number)
        if taken is None:
            raise JobRefused("this job of the former process was ended by somebody else.")
        leader, errand = taken
        if leader.ending is None:
            return self._intake.follow(leader, errand, heard)
        ticket = Ticket(0, errand, self._lane, self._records.nothing(), heard)
        ticket.source, ticket.task_id = leader.source, leader.task_id
        ticket.end(leader.ending, 0.0, leader.ended_at or 0.0)
        return ticket

    def _enter(self, known: Known, errand: Errand, heard: Heard) -> Ticket:
        ticket = self._intake.enter(self._lane, errand, self._records.resume(known), heard)
        return self._remember(known, ticket)

    def _remember(self, known: Known, ticket: Ticket) -> Ticket:
        # As it was asked for then: whoever resumes it beside wants it where it was to go.
        self._taken_up[known.job] = ticket, self._errand(known)
        return ticket

    def equal(self, errand: Errand, heard: Heard) -> Ticket | None:
        """The former process was at the same job: it goes on, with the picture of `errand`."""
        known = self._records.equal(errand.identity)
        if known is None:
            return None
        # Its results are called as they would have been, and go where they are wanted now.
        ticket = self._taken(known, attrs.evolve(errand, stem=known.order.stem), heard)
        if ticket is not None:
            return ticket
        return self._enter(known, errand, heard)

    def of_task(self, task_id: str, heard: Heard) -> Ticket | None:
        """The job of a former process whose task this is, taken up."""
        known = self._records.of_task(task_id)
        return None if known is None else self._taken(known, self._errand(known), heard)

    def _taken(self, known: Known, errand: Errand, heard: Heard) -> Ticket | None:
        """A ticket for what was created or may have been; None for what is to be created."""
        record, lane = self._records.resume(known), self._lane
        if known.phase is Phase.CREATING or known.how == "doubt":
            ticket = self._intake.doubt(lane, errand, record, known.since, heard)
            return self._remember(known, ticket)
        if known.saved and known.task_id is not None:
            # Done, also where the vendor has nothing of it any longer.
            task = known.task_id, known.order.outputs
            return self._intake.ended(lane, errand, record, task, heard)
        if known.task_id is not None:
            age = self._records.now() - known.since
            ticket = self._intake.adopt(lane, errand, record, (known.task_id, age), heard)
            return self._remember(known, ticket)
        if known.how == "failed":
            refused = RequestRefused("The job failed, uncharged, before the former process ended.")
            ticket = self._intake.forgo(lane, errand, record, refused, heard)
            return self._remember(known, ticket)
        return None

    def _errand(self, known: Known) -> Errand:
        return Errand.recalled(known.order, known.file_id, self._purses)

    @staticmethod
    async def _looked_at(known: Known, errand: Errand) -> Errand:
        """The errand with its picture, if it has to be uploaded and is still the same."""
        order, job = known.order, errand.job
        if errand.source is not None:
            return errand
        if job is None or order.kind != "path":
            what = "as bytes" if order.kind == "bytes" else "by a signed URL"
            raise SourceLost(
                f"The picture was given {what}, which no journal keeps, and was not uploaded "
                "before the former process ended."
            )
        picture = await inspect(job.source, type(job))
        if picture is None or picture.digest != order.digest:
            raise SourceLost(f"{quoted(order.place)} is another picture than it was.")
        return attrs.evolve(errand, picture=picture)


def _file(known: Known) -> FileId | None:
    """What went into the task of `known`, if it is a file at the vendor."""
    file_id = known.order.place if known.order.kind == "file" else known.file_id
    return None if file_id is None else FileId(file_id)
