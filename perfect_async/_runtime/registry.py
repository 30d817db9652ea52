"""The jobs of one key that have not ended, and how each kind of job enters.

The registry tells the scheduler of each job, and finds the handle for a number of the scheduler's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Final

import anyio

from perfect_async import events as ev
from perfect_async._journal.journal import JobEntry, unrecorded
from perfect_async._journal.model import EndKind
from perfect_async._runtime.clock import Clock
from perfect_async._runtime.commands import Submitter
from perfect_async._runtime.elsewhere import Bought, Purchase
from perfect_async._runtime.handle import Channel, JobHandle
from perfect_async._runtime.sharing import doubt_elsewhere, submission
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

_AGAIN: Final = 0.5
"""Seconds between two looks at a job that another process has bought."""

Start = Callable[[Callable[[], Coroutine[object, object, None]]], None]


class JobRegistry:
    """The handles of all jobs that have not ended, on one key and host.

    `refs` numbers jobs and queries, `receive` gives an event to the scheduler, and `start` runs
    work in the background. `is_kept` says whether a task is polled for another job or by another
    process; ask again after `_AGAIN` seconds for what is true now.
    """

    def __init__(
        self,
        refs: Iterator[int],
        receive: Callable[[ev.Event], None],
        start: Start,
        submitter: Submitter,
        clock: Clock,
        *,
        is_kept: Callable[[str], bool],
    ) -> None:
        self._is_kept = is_kept
        self._refs = refs
        self._receive = receive
        self._start = start
        self._submitter = submitter
        self._clock = clock
        self._handles: dict[int, JobHandle] = {}
        # The input that each number of a picture stands for, by the jobs that have not ended.
        self._pictures: dict[int, tuple[JobHandle, int]] = {}
        self._equal: dict[tuple[int, str], JobHandle] = {}
        self._settling: set[int] = set()
        # Jobs that another process was found to have bought, while the scheduler lets go of them.
        self._giving_way: set[int] = set()
        # Whether some client has a journal: creations are then sent one at a time.
        self.alone = False

    def __len__(self) -> int:
        return len(self._handles)

    def __getitem__(self, ref: int) -> JobHandle:
        return self._handles[ref]

    def get(self, ref: int) -> JobHandle | None:
        """Return the handle of a job that has not ended, by its number or that of a picture."""
        handle, _ = self._pictures.get(ref, (None, 0))
        return handle or self._handles.get(ref)

    def picture(self, ref: int) -> tuple[JobHandle, int]:
        """Return the job and the input that the number of a picture stands for."""
        return self._pictures[ref]

    def left(self, channel: Channel) -> list[JobHandle]:
        """Return the jobs of `channel` that have not ended."""
        return [handle for handle in self._handles.values() if handle.channel is channel]

    def uses(self, task_id: str, files: Sequence[FileId]) -> bool:
        """Whether a job that has not ended needs this task, or one of these files at the vendor."""
        return any(handle.needs(task_id, files) for handle in self._handles.values())

    def of_task(self, task_id: str) -> JobHandle | None:
        """Return the job whose task this is."""
        found = (handle for handle in self._handles.values() if handle.task_id == task_id)
        return next(found, None)

    # Jobs that enter.

    def equal(self, channel: Channel, spec: JobSpec) -> JobHandle | None:
        """Return a handle that follows the equal job on its way, if there is one."""
        leader = self._equal.get((channel.number, spec.identity)) if spec.sure else None
        if leader is None or not (leader.awaited or leader.at_stake):
            # Nobody waits for that job and it was not sent: it will not be.
            return None
        return self.follow(leader, spec)

    def follow(self, leader: JobHandle, spec: JobSpec) -> JobHandle:
        """Return a handle that shares the task of `leader`."""
        handle = JobHandle(leader.ref, spec, leader.channel, unrecorded())
        handle.follow(leader)
        return handle

    def enter(self, channel: Channel, spec: JobSpec, entry: JobEntry) -> JobHandle:
        """Enter a job that is to be created."""
        handle = self._handle(channel, spec, entry)
        self._buy(handle)
        return handle

    def _buy(self, handle: JobHandle) -> None:
        spec = handle.spec
        for ref in handle.pictures:
            self._pictures.pop(ref, None)
        # A picture that is at the vendor already is not sent again.
        numbers = [
            number
            for number, (each, source) in enumerate(zip(spec.inputs, handle.sources, strict=True))
            if each.picture is not None and source is None
        ]
        # The first picture has the number of the job.
        more = tuple(next(self._refs) for _ in numbers[1:])
        wanted = ev.JobAdded(
            handle.ref,
            spec.kind,
            spec.units,
            uploads=bool(numbers),
            channel=handle.channel.number,
            spending_limits=spec.options.spending_limits,
            alone=self.alone,
            more=more,
            give_up=spec.options.give_up,
            engine_retries=spec.options.engine_retries,
        )
        self._tell(handle, wanted)
        handle.pictures = (handle.ref, *more)
        for ref, number in zip(handle.pictures, numbers, strict=False):
            self._pictures[ref] = handle, number

    def await_other(self, channel: Channel, spec: JobSpec, entry: JobEntry) -> JobHandle:
        """Enter a job that some process on the key has bought, or may have.

        It gets that task's result; it is created only where the purchase turns out to be none.
        """
        handle = self._handle(channel, spec, entry)
        self._await_other(handle)
        return handle

    def _await_other(self, handle: JobHandle) -> None:
        self._add(handle)
        self._settling.add(handle.ref)
        self._start(partial(self._follow_other, handle))

    def give_way(self, ref: int) -> None:
        """Wait for the task of another process once the scheduler has let go of the job."""
        self._giving_way.add(ref)

    def adopt(
        self, channel: Channel, spec: JobSpec, entry: JobEntry, task: tuple[str, int]
    ) -> JobHandle:
        """Enter a job whose `task` exists: its id, and its age in microseconds."""
        handle = self._handle(channel, spec, entry)
        self._adopt(handle, *task)
        return handle

    def doubt(self, channel: Channel, spec: JobSpec, entry: JobEntry, sent: int) -> JobHandle:
        """Enter a job that may have a task: its creation was sent at `sent` (UTC microseconds)."""
        handle = self._handle(channel, spec, entry)
        handle.submitting = True
        self._add(handle)
        self._settling.add(handle.ref)
        self._start(partial(self._settle_doubt, handle, sent))
        return handle

    def ended(
        self, channel: Channel, spec: JobSpec, entry: JobEntry, task: tuple[str, int]
    ) -> JobHandle:
        """Return the handle of a job whose `task` was done: its id, and its number of pictures.

        No request is sent: the result has no URLs until it is saved once more.
        """
        handle, (task_id, pictures) = self._handle(channel, spec, entry), task
        handle.task_id = task_id
        done = ev.Succeeded(ev.Poll(0, handle.ref), ("",) * pictures)
        handle.end(done, spec.units, self._clock.seconds())
        return handle

    def forgo(
        self, channel: Channel, spec: JobSpec, entry: JobEntry, error: PerfectError
    ) -> JobHandle:
        """Enter a job that is known to have failed with `error`."""
        handle = self._handle(channel, spec, entry)
        self._tell(handle, ev.JobRejected(handle.ref, error, channel.number))
        return handle

    def in_doubt(self, channel: Channel, spec: JobSpec) -> JobHandle | None:
        """Return the handle of a job that equals one in doubt: with that doubt, and not created."""
        error = self._submitter.memory.doubts.find(spec)
        if error is None:
            return None
        handle = self._handle(channel, spec, unrecorded())
        handle.end(error, 0.0, self._clock.seconds())
        return handle

    def consent(self, spec: JobSpec) -> None:
        """Forget the doubt of a job: its caller agrees to a second charge."""
        self._submitter.memory.doubts.discard(spec)

    async def _settle_doubt(self, handle: JobHandle, sent: int) -> None:
        found = await self._submitter.settle(handle, sent)
        if handle.ref not in self._settling:
            return
        self._settling.discard(handle.ref)
        if isinstance(found, PerfectError):
            del self._handles[handle.ref]
            self._tell(handle, ev.JobRejected(handle.ref, found, handle.channel.number))
        else:
            handle.created(found)
            self._adopt(handle, found, self._clock.utc() - sent)

    async def _follow_other(self, handle: JobHandle) -> None:
        """Find out what became of the purchase by another process, and go on from there."""
        looked = False
        while True:
            shared = self._submitter.shared
            job = submission(handle.spec, handle.gone)
            found = None if shared is None else await shared.bought(job)
            alive = found is not None and shared is not None and await shared.is_alert(found.member)
            if handle.ref not in self._settling:
                return
            if not handle.awaited:
                self._resolve(handle, ClientClosed("Nobody waits for this job."))
                return
            if found is None:
                self._settling.discard(handle.ref)
                del self._handles[handle.ref]
                self._buy(handle)
                return
            if found.purchase is Purchase.IN_DOUBT:
                self._resolve(handle, doubt_elsewhere(handle.spec.units))
                return
            # A process that works keeps its task alive: a second one need not poll it too. What is
            # known of that is old until the ledger was looked into once more.
            kept = found.purchase is Purchase.SENT
            if found.purchase is Purchase.CREATED:
                kept = self._is_kept(found.task_id) or (alive and not looked)
            if not kept:
                self._take_over(handle, found, paid_elsewhere=alive)
                return
            await anyio.sleep(_AGAIN)
            looked = True
            # Many jobs may wait: only what is known here is asked while the task is kept alive. No
            # event says when it no longer is.
            while self._waits(handle) and self._is_kept(found.task_id):  # noqa: ASYNC110
                await anyio.sleep(_AGAIN)

    def _waits(self, handle: JobHandle) -> bool:
        return handle.ref in self._settling and handle.awaited

    def _resolve(self, handle: JobHandle, error: PerfectError) -> None:
        self._settling.discard(handle.ref)
        del self._handles[handle.ref]
        self._tell(handle, ev.JobRejected(handle.ref, error, handle.channel.number))

    def _take_over(self, handle: JobHandle, found: Bought, *, paid_elsewhere: bool) -> None:
        """Poll the task of another process: to fetch its result, or to keep it alive."""
        self._settling.discard(handle.ref)
        handle.created(found.task_id)
        done = found.purchase is Purchase.DONE
        # A result that is gone is bought again; a task that was lost is not, without consent.
        handle.fetched = found.task_id if done or handle.spec.options.buy_in_doubt else ""
        if (shared := self._submitter.shared) is not None:
            shared.adopted(found)
        # The units are its owner's, unless that one died and nobody else can tell of them.
        units = 0.0 if done or paid_elsewhere else handle.spec.units
        self._adopt(handle, found.task_id, found.age, units)

    def _handle(self, channel: Channel, spec: JobSpec, entry: JobEntry) -> JobHandle:
        return JobHandle(next(self._refs), spec, channel, entry, sources=spec.sources)

    def _adopt(self, handle: JobHandle, task_id: str, age: int, units: float | None = None) -> None:
        spec = handle.spec
        handle.task_id = task_id
        self._submitter.know(task_id)
        if units is None:
            # A task that is known by its id alone was charged to somebody else, or to us before.
            units = 0.0 if spec.job is None else spec.units
        adopted = ev.TaskAdopted(
            handle.ref,
            spec.kind,
            units,
            task_id,
            channel=handle.channel.number,
            age=max(0, age),
        )
        self._tell(handle, adopted)

    def _tell(self, handle: JobHandle, event: ev.Event) -> None:
        # The event first: a job that the scheduler refuses is not kept.
        self._receive(event)
        self._add(handle)

    def _add(self, handle: JobHandle) -> None:
        self._handles[handle.ref] = handle
        if handle.spec.sure:
            self._equal[handle.channel.number, handle.spec.identity] = handle

    # Jobs that end.

    def withdraw(self, handle: JobHandle) -> None:
        """Stop waiting for `handle`: an unsent job is not created, a task is kept to its end."""
        handle.wanted = False
        leader = handle.leader or handle
        if handle is not leader and handle.task_id is None and not handle.submitting:
            leader.followers.remove(handle)
            handle.end(ClientClosed("Nobody waits for this job."), 0.0, self._clock.seconds())
        if not leader.awaited:
            self._receive(ev.JobCancelled(leader.ref))

    def settle(self, command: ev.Settle) -> bool:
        """End the job of `command`; False where it is no job in the registry."""
        handle = self._handles.pop(command.ref, None)
        if handle is None:
            return False
        if self._goes_on(handle, command.ending):
            return True
        kind = _end_kind(command.ending, closing=handle.channel.journal.closing)
        if kind is not None:
            handle.entry.ended(kind)
        self._end(handle, command.ending, command.units)
        return True

    def _goes_on(self, handle: JobHandle, ending: ev.Succeeded | PerfectError) -> bool:
        """Whether the job goes on, although the scheduler has let go of it."""
        gives_way = handle.ref in self._giving_way
        self._giving_way.discard(handle.ref)
        if isinstance(ending, ClientClosed) and gives_way:
            self._await_other(handle)
            return True
        if isinstance(ending, TaskExpired) and handle.fetched:
            handle.gone, handle.fetched, handle.task_id = handle.fetched, "", None
            self._await_other(handle)
            return True
        shared = self._submitter.shared
        if isinstance(ending, ev.Succeeded) and shared is not None and handle.spec.job is not None:
            shared.done(submission(handle.spec), str(handle.task_id))
        return False

    def drop(self, channel: Channel) -> None:
        """Abandon the doubts of `channel`, which ends; they stay in the journal as they are.

        Its other jobs end as the scheduler says: none of them waits for another process any more.
        """
        for handle in self.left(channel):
            self._giving_way.discard(handle.ref)
            handle.fetched = ""
            if handle.ref in self._settling:
                self._abandon(handle, None)

    def give_up(self, cause: BaseException | None) -> None:
        """End every job that is left, since the driver has ended: nobody waits in vain."""
        for handle in list(self._handles.values()):
            self._abandon(handle, cause)

    def _abandon(self, handle: JobHandle, cause: BaseException | None) -> None:
        del self._handles[handle.ref]
        self._settling.discard(handle.ref)
        units = 0.0 if handle.task_id is None else handle.at_stake
        # Not written down: the next process goes on with it.
        self._end(handle, handle.abandoned(cause), units)

    def _end(self, handle: JobHandle, ending: ev.Succeeded | PerfectError, units: float) -> None:
        for ref in handle.pictures:
            self._pictures.pop(ref, None)
        if self._equal.get((handle.channel.number, handle.spec.identity)) is handle:
            del self._equal[handle.channel.number, handle.spec.identity]
        doubts = self._submitter.memory.doubts
        if isinstance(ending, SubmissionInDoubt):
            doubts.add(handle.spec, ending)
        elif isinstance(ending, ev.Succeeded):
            doubts.discard(handle.spec)
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
        case SubmissionInDoubt():
            return "doubt"
        case TaskExpired() | TaskTimedOut() | TaskAbandoned():
            return "lost"
        case _:
            # What is paid for is not told as uncharged later: a result that cannot be read, a poll
            # that the vendor refuses for good.
            return "lost" if ending.units_at_stake else "failed"
