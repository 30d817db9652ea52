"""Resumes the jobs that a former process left in the journal.

A task that may still run is polled at once, since the rest of its lease is unknown. A creation
without an answer is settled from the unit history. A job that was not created is created if its
picture can still be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

import attrs

from perfect_async._files.images import inspect
from perfect_async._journal.journal import unrecorded
from perfect_async._journal.model import JobSnapshot, Phase, StoredInput
from perfect_async._log import LOG
from perfect_async._runtime.elsewhere import LostCreation
from perfect_async._runtime.handle import Channel, JobHandle
from perfect_async._runtime.registry import JobRegistry
from perfect_async._runtime.sharing import submission
from perfect_async._runtime.spec import InputSpec, JobSpec
from perfect_async._value import Value
from perfect_async.errors import JobRefused, JournalError, RequestRefused, SourceLost, quoted
from perfect_async.models import FileId, Job, JobInput

_RANK: Final = {
    Phase.RUNNING: 0,
    Phase.CREATING: 1,
    Phase.DONE: 2,
    Phase.ENDED: 3,
    Phase.ENTERED: 4,
}
"""The order of resuming: tasks with a running lease come first."""


@attrs.frozen(eq=False, repr=False)
class RecoveredJob(Value):
    """One job of a former process, with its number in the journal."""

    number: int
    job: Job


class Recovery:
    """Resumes the jobs of a former process for the client on `channel`.

    `ready` raises `ClientClosed` if the client accepts no more jobs. A job stays in the journal's
    `recoverable` until it is in the registry, with no await in between, so that an equal job finds
    it in one of the two.
    """

    def __init__(
        self,
        registry: JobRegistry,
        channel: Channel,
        spending_limits: tuple[int, ...],
        *,
        ready: Callable[[], None],
        fit: bool = False,
    ) -> None:
        self._ready = ready
        self._fit = fit
        self._spending_limits = spending_limits
        self._registry = registry
        self._channel = channel
        self._journal = channel.journal
        self._resumed_jobs: dict[int, tuple[JobHandle, JobSpec]] = {}

    def all(self) -> list[RecoveredJob]:
        """Return the jobs whose outcome nobody has taken, the most urgent first."""
        left = [
            snapshot for snapshot in self._journal.recoverable.values() if not snapshot.reported
        ]
        left.sort(key=lambda snapshot: (_RANK[snapshot.phase], snapshot.job))
        return [recovered for recovered in map(self._recovered, left) if recovered is not None]

    @staticmethod
    def _recovered(snapshot: JobSnapshot) -> RecoveredJob | None:
        try:
            return RecoveredJob(
                snapshot.job,
                JobSpec.job_of(snapshot.stored, snapshot.file_id, snapshot.more_ids),
            )
        except JobRefused as exc:
            # The others are resumed, since they may have a running lease.
            LOG.warning("A job of the journal cannot be resumed and stays in it: %s", exc.message)
            return None

    def copies(self) -> list[tuple[JobSnapshot, tuple[FileId, ...]]]:
        """Take the reported jobs whose copies at the vendor must still be deleted.

        Each is returned with its input files.
        """
        reported = [each for each in self._journal.recoverable.values() if each.reported]
        for snapshot in reported:
            self._journal.take(snapshot.job)
        return [(snapshot, _files(snapshot)) for snapshot in reported]

    def uses(self, files: Sequence[FileId]) -> bool:
        """Return whether a job that was not resumed yet needs one of `files` at the vendor."""
        needed = map(_files, self._journal.recoverable.values())
        return any(file in each for each in needed for file in files)

    def folder_of(self, recovered: RecoveredJob) -> str | None:
        """Return the folder of the job's results, if the job was not created yet."""
        snapshot = self._journal.recoverable.get(recovered.number)
        if snapshot is None or snapshot.phase is not Phase.ENTERED:
            return None
        return snapshot.stored.save_to

    # Resuming.

    async def resume(self, recovered: RecoveredJob) -> JobHandle:
        """Resume the job, or follow it if it was resumed already.

        Raises `JobRefused` and `ClientClosed`.
        """
        snapshot = self._journal.recoverable.get(recovered.number)
        if snapshot is None:
            return self._follow(recovered)
        spec = self._spec(snapshot)
        count = await self._saved_count(snapshot)
        if self._journal.recoverable.get(recovered.number) is not snapshot:
            return self._follow(recovered)
        if (handle := self._resumed(snapshot, spec, count)) is not None:
            self._journal.take(snapshot.job)
            return handle
        refused: JobRefused | None = None
        try:
            spec = await self._with_pictures(snapshot, spec)
        except JobRefused as exc:
            refused = exc
        self._ready()
        if self._journal.take(snapshot.job) is None:
            # An equal job, or another `resume`, has resumed it while its pictures were read.
            return self._follow(recovered)
        if refused is not None:
            entry = self._journal.resume(snapshot)
            entry.ended("failed")
            entry.reported()
            raise refused
        return self._enter(snapshot, spec)

    def _follow(self, recovered: RecoveredJob) -> JobHandle:
        """Return a handle that follows the job, which was resumed already."""
        resumed = self._resumed_jobs.get(recovered.number)
        if resumed is None:
            raise JobRefused("another call has ended this job of the former process already.")
        leader, spec = resumed
        if leader.ending is None:
            return self._registry.follow(leader, spec)
        handle = JobHandle(0, spec, self._channel, unrecorded())
        handle.sources, handle.task_id = leader.sources, leader.task_id
        handle.end(leader.ending, 0.0, leader.ended_at or 0.0)
        return handle

    def _enter(self, snapshot: JobSnapshot, spec: JobSpec) -> JobHandle:
        entry = self._journal.resume(snapshot)
        equal = self._registry.equal_purchase(self._channel, spec)
        if equal is None:
            handle = self._registry.enter(self._channel, spec, entry)
            return self._remember(snapshot, handle)
        # The journal has this job twice; one task serves both.
        entry.ended("unsent")
        self._remember(snapshot, equal.leader or equal)
        return equal

    def _remember(self, snapshot: JobSnapshot, handle: JobHandle) -> JobHandle:
        # The spec has the former options, so that others who resume it save to the same folder.
        self._resumed_jobs[snapshot.job] = handle, self._spec(snapshot)
        return handle

    async def equal(self, spec: JobSpec) -> JobHandle | None:
        """Resume the equal job of the former process, if any, with the picture of `spec`."""
        taken = await self._take(lambda: self._journal.find_equal(spec.identity))
        if taken is None:
            return None
        snapshot, count = taken
        if snapshot.in_doubt and spec.options.buy_in_doubt:
            # The caller consents to a second charge, and buys another task.
            entry = self._journal.resume(snapshot)
            entry.ended("doubt")
            entry.reported()
            return None
        # Its results keep their names, and are saved in the folder of `spec`.
        handle = self._resumed(snapshot, attrs.evolve(spec, stem=snapshot.stored.stem), count)
        if handle is not None:
            return handle
        return self._enter(snapshot, spec)

    async def of_task(self, task_id: str) -> JobHandle | None:
        """Resume the job of the former process with this task, if there is one."""
        taken = await self._take(lambda: self._journal.find_task(task_id))
        if taken is None:
            return None
        snapshot, count = taken
        return self._resumed(snapshot, self._spec(snapshot), count)

    async def _take(self, find: Callable[[], JobSnapshot | None]) -> tuple[JobSnapshot, int] | None:
        """Take the job that `find` finds, and return it with its saved count, or None.

        It stays findable until then: an equal job that found nothing would be bought.
        """
        while (snapshot := find()) is not None:
            count = await self._saved_count(snapshot)
            if find() is snapshot:
                self._journal.take(snapshot.job)
                return snapshot, count
        return None

    def _resumed(self, snapshot: JobSnapshot, spec: JobSpec, count: int) -> JobHandle | None:
        """Return a handle if the job was, or may have been, created; otherwise None.

        `count` is that of `_saved_count`.
        """
        entry, channel = self._journal.resume(snapshot), self._channel
        if snapshot.in_doubt:
            # The ledger has the job as the former process sent it.
            sent = submission(self._spec(snapshot))
            lost = LostCreation(snapshot.since, sent, snapshot.intent)
            handle = self._registry.doubt(channel, spec, entry, lost)
            return self._remember(snapshot, handle)
        if snapshot.saved and snapshot.task_id is not None:
            # The job is done even if the vendor no longer has its result.
            return self._registry.ended(channel, spec, entry, (snapshot.task_id, count))
        if snapshot.task_id is not None:
            age = self._journal.now() - snapshot.since
            handle = self._registry.adopt(channel, spec, entry, (snapshot.task_id, age))
            return self._remember(snapshot, handle)
        if snapshot.end == "failed":
            refused = RequestRefused("The job failed, uncharged, before the former process ended.")
            handle = self._registry.reject(channel, spec, entry, refused)
            return self._remember(snapshot, handle)
        return None

    async def _saved_count(self, snapshot: JobSnapshot) -> int:
        """Return how many URLs the result of a saved job had; the job's own number for any other.

        If the job does not say it, the files that were saved do. Where neither is known, the job's
        own number is returned, and the result asks the vendor before it is read.
        """
        if snapshot.saved and not self._spec(snapshot).pictures_only:
            try:
                results = await self._journal.writer.saved_results(snapshot.stored.identity)
            except JournalError:
                results = {}
            for saved in results.values():
                if saved.task_id == snapshot.task_id:
                    return count_pictures(saved.files)
        return snapshot.stored.outputs

    def _spec(self, snapshot: JobSnapshot) -> JobSpec:
        return JobSpec.restored(
            snapshot.stored, snapshot.file_id, self._spending_limits, snapshot.more_ids
        )

    async def _with_pictures(self, snapshot: JobSnapshot, spec: JobSpec) -> JobSpec:
        """Return `spec` with the pictures that have to be uploaded, if they are unchanged."""
        job = spec.job
        if job is None:
            raise AssertionError(spec)
        if spec.options.spending_limits:
            spec.check_price()
        found = [
            each if each.source is not None else await self._with_picture(stored, each, given, job)
            for stored, each, given in zip(
                snapshot.stored.inputs, spec.inputs, job.inputs, strict=True
            )
        ]
        return attrs.evolve(spec, inputs=tuple(found))

    async def _with_picture(
        self, stored: StoredInput, prepared: InputSpec, given: JobInput, job: Job
    ) -> InputSpec:
        """Return `prepared` with its picture, if it is unchanged. Raises `JobRefused`."""
        if stored.kind != "path":
            what = "as bytes" if stored.kind == "bytes" else "by a signed URL"
            raise SourceLost(
                f"The picture was given {what}, which a journal does not keep, and was not "
                "uploaded before the former process ended."
            )
        picture = await inspect(given.source, job, fit=self._fit)
        if picture is None or picture.digest != stored.digest:
            raise SourceLost(f"{quoted(stored.place)} has changed since the job was entered.")
        return attrs.evolve(prepared, picture=picture)


def count_pictures(files: Iterable[Path]) -> int:
    """Return how many of the files of a result have a URL; a file of JSON has none."""
    return sum(file.suffix != ".json" for file in files)


def _files(snapshot: JobSnapshot) -> tuple[FileId, ...]:
    """Return the input files of the job that are at the vendor."""
    return tuple(map(FileId, snapshot.file_ids))
