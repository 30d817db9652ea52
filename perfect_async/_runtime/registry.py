"""How jobs come in: new ones, equal ones, and those whose tasks exist already or may.

What the scheduler is told of them, and whom it speaks of when it says a `ref`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from functools import partial

from perfect_async import events as ev
from perfect_async._journal.journal import JobEntry, unrecorded
from perfect_async._journal.model import EndKind
from perfect_async._runtime.commands import Clock, Submitter
from perfect_async._runtime.failures import given_up
from perfect_async._runtime.handle import Channel, JobHandle
from perfect_async._runtime.spec import JobSpec
from perfect_async.errors import (
    ClientClosed,
    PerfectError,
    SubmissionInDoubt,
    TaskAbandoned,
    TaskExpired,
    TaskTimedOut,
)
from perfect_async.models import FileId

Heard = Callable[[], None]
Start = Callable[[Callable[[], Coroutine[object, object, None]]], None]


class JobRegistry:
    """The tickets of all jobs that have not ended, on one key and host.

    `refs` numbers jobs and questions, `tell` speaks to the scheduler, `start` runs beside it.
    """

    def __init__(
        self,
        refs: Iterator[int],
        tell: Callable[[ev.Event], None],
        start: Start,
        submitter: Submitter,
        clock: Clock,
    ) -> None:
        self._refs = refs
        self._tell = tell
        self._start = start
        self._submitter = submitter
        self._clock = clock
        self._handles: dict[int, JobHandle] = {}
        self._equal: dict[tuple[int, str], JobHandle] = {}
        self._settling: set[int] = set()
        # Whether some client has a journal: creations then go one by one.
        self.alone = False

    def __len__(self) -> int:
        return len(self._handles)

    def __getitem__(self, ref: int) -> JobHandle:
        return self._handles[ref]

    def get(self, ref: int) -> JobHandle | None:
        """The ticket of a job that has not ended."""
        return self._handles.get(ref)

    def left(self, channel: Channel) -> list[JobHandle]:
        """The jobs of `channel` that have not ended."""
        return [handle for handle in self._handles.values() if handle.channel is channel]

    def uses(self, task_id: str, file: FileId | None) -> bool:
        """Whether a job that has not ended needs this task, or this file at the vendor."""
        return any(handle.needs(task_id, file) for handle in self._handles.values())

    def of_task(self, task_id: str) -> JobHandle | None:
        """The job whose task this is."""
        found = (handle for handle in self._handles.values() if handle.task_id == task_id)
        return next(found, None)

    # Coming in.

    def equal(self, channel: Channel, spec: JobSpec, heard: Heard) -> JobHandle | None:
        """A ticket beside the equal job that is on its way, if there is one."""
        leader = self._equal.get((channel.number, spec.identity)) if spec.sure else None
        if leader is None or not (leader.awaited or leader.at_stake):
            # Nobody waits for that one, and it has not left: it will not.
            return None
        return self.follow(leader, spec, heard)

    def follow(self, leader: JobHandle, spec: JobSpec, heard: Heard) -> JobHandle:
        """A ticket beside `leader`."""
        nothing = unrecorded()
        handle = JobHandle(leader.ref, spec, leader.channel, nothing, heard)
        handle.follow(leader)
        return handle

    def enter(self, channel: Channel, spec: JobSpec, entry: JobEntry, heard: Heard) -> JobHandle:
        """A job that is to be created."""
        handle = self._handle(channel, spec, entry, heard)
        handle.source = spec.source
        wanted = ev.Wanted(
            handle.ref,
            spec.feature,
            spec.units,
            uploads=spec.picture is not None,
            channel=channel.number,
            outputs=spec.outputs,
            usual=spec.usual,
            purses=spec.options.purses,
            alone=self.alone,
        )
        self._take(handle, wanted)
        return handle

    def adopt(
        self, channel: Channel, spec: JobSpec, entry: JobEntry, task: tuple[str, int], heard: Heard
    ) -> JobHandle:
        """A job whose `task` exists: its id, and how many microseconds ago it was created."""
        handle = self._handle(channel, spec, entry, heard)
        self._adopt(handle, *task)
        return handle

    def doubt(
        self, channel: Channel, spec: JobSpec, entry: JobEntry, sent: int, heard: Heard
    ) -> JobHandle:
        """A job that may have a task: its creation left at `sent` (UTC microseconds)."""
        handle = self._handle(channel, spec, entry, heard)
        handle.submitting = True
        self._known(handle)
        self._settling.add(handle.ref)
        self._start(partial(self._settle_doubt, handle, sent))
        return handle

    def ended(
        self, channel: Channel, spec: JobSpec, entry: JobEntry, task: tuple[str, int], heard: Heard
    ) -> JobHandle:
        """A job whose `task` was done, of which so many pictures are: its id, and how many.

        Nothing is asked for: the result has no URLs until it is saved once more.
        """
        handle, (task_id, pictures) = self._handle(channel, spec, entry, heard), task
        handle.task_id = task_id
        done = ev.Succeeded(ev.Poll(0, handle.ref), ("",) * pictures)
        handle.end(done, spec.units, self._clock.seconds())
        return handle

    def forgo(
        self, channel: Channel, spec: JobSpec, entry: JobEntry, error: PerfectError, heard: Heard
    ) -> JobHandle:
        """A job whose end is known already."""
        handle = self._handle(channel, spec, entry, heard)
        self._take(handle, ev.Forgone(handle.ref, error, channel.number))
        return handle

    async def _settle_doubt(self, handle: JobHandle, sent: int) -> None:
        found = await self._submitter.settle(handle, sent)
        if handle.ref not in self._settling:
            return
        self._settling.discard(handle.ref)
        if isinstance(found, PerfectError):
            del self._handles[handle.ref]
            self._take(handle, ev.Forgone(handle.ref, found, handle.channel.number))
        else:
            handle.created(found)
            self._adopt(handle, found, self._clock.utc() - sent)

    def _handle(self, channel: Channel, spec: JobSpec, entry: JobEntry, heard: Heard) -> JobHandle:
        return JobHandle(next(self._refs), spec, channel, entry, heard)

    def _adopt(self, handle: JobHandle, task_id: str, age: int) -> None:
        spec = handle.spec
        handle.task_id = task_id
        self._submitter.know(task_id)
        adopted = ev.Adopted(
            handle.ref,
            spec.feature,
            # Of a task that is known by its id alone somebody else was charged, or we were before.
            0.0 if spec.job is None else spec.units,
            task_id,
            channel=handle.channel.number,
            outputs=spec.outputs,
            usual=spec.usual,
            age=max(0, age),
        )
        self._take(handle, adopted)

    def _take(self, handle: JobHandle, event: ev.Event) -> None:
        self._tell(event)
        self._known(handle)

    def _known(self, handle: JobHandle) -> None:
        self._handles[handle.ref] = handle
        if handle.spec.sure:
            self._equal[handle.channel.number, handle.spec.identity] = handle

    # Going out.

    def withdraw(self, handle: JobHandle) -> None:
        """Nobody waits for `handle`: it is not created; what was created is kept to its end."""
        handle.wanted = False
        leader = handle.leader or handle
        if handle is not leader and handle.task_id is None and not handle.submitting:
            leader.followers.remove(handle)
            handle.end(ClientClosed("Nobody waits for this job."), 0.0, self._clock.seconds())
        if not leader.awaited:
            self._tell(ev.Withdrawn(leader.ref))

    def settle(self, command: ev.Settle) -> bool:
        """Tell whoever waits how the job ended; False where it is no job of ours."""
        handle = self._handles.pop(command.ref, None)
        if handle is None:
            return False
        kind = _end_kind(command.ending, closing=handle.channel.journal.closing)
        if kind is not None:
            handle.entry.ended(kind)
        self._end(handle, command.ending, command.units)
        return True

    def drop(self, channel: Channel) -> None:
        """`channel` ends: what is being settled in it is left as it is."""
        for handle in self.left(channel):
            if handle.ref in self._settling:
                self._abandon(handle, None)

    def give_up(self, cause: BaseException | None) -> None:
        """Nobody hangs: whoever still waits is told, and why."""
        for handle in list(self._handles.values()):
            self._abandon(handle, cause)

    def _abandon(self, handle: JobHandle, cause: BaseException | None) -> None:
        del self._handles[handle.ref]
        self._settling.discard(handle.ref)
        units = 0.0 if handle.task_id is None else handle.at_stake
        # Not written down: what ends with us goes on in the next process.
        self._end(handle, given_up(handle, cause), units)

    def _end(self, handle: JobHandle, ending: ev.Succeeded | PerfectError, units: float) -> None:
        if self._equal.get((handle.channel.number, handle.spec.identity)) is handle:
            del self._equal[handle.channel.number, handle.spec.identity]
        handle.end(ending, units, self._clock.seconds())


def _end_kind(ending: ev.Succeeded | PerfectError, *, closing: bool) -> EndKind | None:
    """Return what the journal says of a job that ended so; None where the job stays open in it."""
    match ending:
        case ev.Succeeded():
            return "done"
        case TaskAbandoned() | SubmissionInDoubt() if closing:
            # It ends with the client only: the next process goes on with it.
            return None
        case ClientClosed():
            return "unsent"
        case SubmissionInDoubt() if ending.units_at_stake:
            return "doubt"
        case TaskExpired() | TaskTimedOut() | TaskAbandoned():
            return "lost"
        case _:
            # Also a creation without an answer of which the history shows nothing: a task that
            # turns up later cannot be its own, and only the caller's consent creates it again.
            return "failed"
