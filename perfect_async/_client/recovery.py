"""What a former process left in the journal, and how it goes on: adopted, settled, or created.

Nobody knows how much of a lease is left, so a task that may run is asked for at once; a creation
without an answer is settled from the unit history; what was not created yet is created, if its
picture can still be had.
"""

from __future__ import annotations

from typing import Final

import attrs

from perfect_async._files.images import inspect
from perfect_async._journal.model import JobSnapshot, Phase
from perfect_async._log import LOG
from perfect_async._runtime.handle import Channel, JobHandle
from perfect_async._runtime.registry import JobRegistry
from perfect_async._runtime.spec import JobSpec
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


@attrs.frozen
class RecoveredJob:
    """One job of a former process, by its number in the journal."""

    number: int
    job: Job


class Recovery:
    """The jobs of a former process that nobody has taken up, for the client on `channel`."""

    def __init__(
        self, registry: JobRegistry, channel: Channel, unit_limits: tuple[int, ...]
    ) -> None:
        self._unit_limits = unit_limits
        self._registry = registry
        self._channel = channel
        self._records = channel.records
        self._taken_up: dict[int, tuple[JobHandle, JobSpec]] = {}

    def all(self) -> list[RecoveredJob]:
        """Those whose outcome nobody has heard, the most urgent first."""
        left = [known for known in self._records.recovery.values() if not known.told]
        left.sort(key=lambda known: (_RANK[known.phase], known.job))
        return [recovered for recovered in map(self._recovered, left) if recovered is not None]

    @staticmethod
    def _recovered(known: JobSnapshot) -> RecoveredJob | None:
        try:
            return RecoveredJob(known.job, JobSpec.job_of(known.order, known.file_id))
        except JobRefused as exc:
            # Others may have a lease that runs.
            LOG.warning("A job of the journal is left there as it is: %s", exc.message)
            return None

    def copies(self) -> list[tuple[JobSnapshot, FileId | None]]:
        """Those that were told, and whose copies at the vendor are still to be deleted.

        Each with the file that went in.
        """
        told = [known for known in self._records.recovery.values() if known.told]
        taken = [known for known in map(self._records.take, [k.job for k in told]) if known]
        return [(known, _file(known)) for known in taken]

    def uses(self, file: FileId) -> bool:
        """Whether a job that nobody has taken up needs this file at the vendor."""
        return any(_file(known) == file for known in self._records.recovery.values())

    # Taking up.

    async def resume(self, recovered: RecoveredJob) -> JobHandle:
        """The job goes on: beside whoever has taken it up already, if somebody has.

        Raises `JobRefused`.
        """
        known = self._records.take(recovered.number)
        if known is None:
            return self._beside(recovered)
        spec = self._spec(known)
        if (handle := self._taken(known, spec)) is not None:
            return handle
        try:
            spec = await self._looked_at(known, spec)
        except JobRefused as exc:
            record = self._records.resume(known)
            record.ended(exc)
            record.told()
            raise
        return self._enter(known, spec)

    def _beside(self, recovered: RecoveredJob) -> JobHandle:
        """A ticket beside the one that goes on with the job, or has."""
        taken = self._taken_up.get(recovered.number)
        if taken is None:
            raise JobRefused("this job of the former process was ended by somebody else.")
        leader, spec = taken
        if leader.ending is None:
            return self._registry.follow(leader, spec)
        handle = JobHandle(0, spec, self._channel, self._records.nothing())
        handle.source, handle.task_id = leader.source, leader.task_id
        handle.end(leader.ending, 0.0, leader.ended_at or 0.0)
        return handle

    def _enter(self, known: JobSnapshot, spec: JobSpec) -> JobHandle:
        handle = self._registry.enter(self._channel, spec, self._records.resume(known))
        return self._remember(known, handle)

    def _remember(self, known: JobSnapshot, handle: JobHandle) -> JobHandle:
        # As it was asked for then: whoever resumes it beside wants it where it was to go.
        self._taken_up[known.job] = handle, self._spec(known)
        return handle

    def equal(self, spec: JobSpec) -> JobHandle | None:
        """The former process was at the same job: it goes on, with the picture of `spec`."""
        known = self._records.equal(spec.identity)
        if known is None:
            return None
        # Its results are called as they would have been, and go where they are wanted now.
        handle = self._taken(known, attrs.evolve(spec, stem=known.order.stem))
        if handle is not None:
            return handle
        return self._enter(known, spec)

    def of_task(self, task_id: str) -> JobHandle | None:
        """The job of a former process whose task this is, taken up."""
        known = self._records.of_task(task_id)
        return None if known is None else self._taken(known, self._spec(known))

    def _taken(self, known: JobSnapshot, spec: JobSpec) -> JobHandle | None:
        """A ticket for what was created or may have been; None for what is to be created."""
        record, channel = self._records.resume(known), self._channel
        if known.phase is Phase.CREATING or known.how == "doubt":
            handle = self._registry.doubt(channel, spec, record, known.since)
            return self._remember(known, handle)
        if known.saved and known.task_id is not None:
            # Done, also where the vendor has nothing of it any longer.
            task = known.task_id, known.order.outputs
            return self._registry.ended(channel, spec, record, task)
        if known.task_id is not None:
            age = self._records.now() - known.since
            handle = self._registry.adopt(channel, spec, record, (known.task_id, age))
            return self._remember(known, handle)
        if known.how == "failed":
            refused = RequestRefused("The job failed, uncharged, before the former process ended.")
            handle = self._registry.forgo(channel, spec, record, refused)
            return self._remember(known, handle)
        return None

    def _spec(self, known: JobSnapshot) -> JobSpec:
        return JobSpec.restored(known.order, known.file_id, self._unit_limits)

    @staticmethod
    async def _looked_at(known: JobSnapshot, spec: JobSpec) -> JobSpec:
        """The errand with its picture, if it has to be uploaded and is still the same."""
        order, job = known.order, spec.job
        if spec.source is not None:
            return spec
        if job is None or order.kind != "path":
            what = "as bytes" if order.kind == "bytes" else "by a signed URL"
            raise SourceLost(
                f"The picture was given {what}, which no journal keeps, and was not uploaded "
                "before the former process ended."
            )
        picture = await inspect(job.source, type(job))
        if picture is None or picture.digest != order.digest:
            raise SourceLost(f"{quoted(order.place)} is another picture than it was.")
        return attrs.evolve(spec, picture=picture)


def _file(known: JobSnapshot) -> FileId | None:
    """What went into the task of `known`, if it is a file at the vendor."""
    file_id = known.order.place if known.order.kind == "file" else known.file_id
    return None if file_id is None else FileId(file_id)
