"""Holds the unended jobs of one key, and enters jobs of each kind.

The registry adds each job to the scheduler, and finds the handle for a number of the scheduler's.
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
from perfect_async._runtime.elsewhere import Bought, LostCreation, Purchase
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

_CHECK_PAUSE: Final = 0.5
"""Seconds between two checks of a job that another process has bought."""

Start = Callable[[Callable[[], Coroutine[object, object, None]]], None]


class JobRegistry:
    """The handles of all jobs that have not ended, on one key and host.

    `refs` numbers jobs and queries, `receive` gives an event to the scheduler, and `start` runs
    work in the background. `is_kept` returns whether a task is polled for another job or by another
    process, as of the last step in the ledger; a second call after `_CHECK_PAUSE` seconds returns
    the present state.
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
        # For the number of each picture, its job and the number of its input.
        self._pictures: dict[int, tuple[JobHandle, int]] = {}
        self._equal: dict[tuple[int, str], JobHandle] = {}
        self._settling: set[int] = set()
        # Jobs that another process has bought, until the scheduler has released them.
        self._giving_way: set[int] = set()
        # Whether some client has a journal, so that creations are sent one at a time.
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
        """Return the job of a picture by its number, and the number of its input."""
        return self._pictures[ref]

    def left(self, channel: Channel) -> list[JobHandle]:
        """Return the jobs of `channel` that have not ended."""
        return [handle for handle in self._handles.values() if handle.channel is channel]

    def uses(self, task_id: str, files: Sequence[FileId]) -> bool:
        """Return whether an unended job needs the task `task_id`, or one of `files`."""
        return any(handle.needs(task_id, files) for handle in self._handles.values())

    def of_task(self, task_id: str) -> JobHandle | None:
        """Return the job that has the task `task_id`, if there is one."""
        found = (handle for handle in self._handles.values() if handle.task_id == task_id)
        return next(found, None)

    # Jobs that enter.

    def equal(self, channel: Channel, spec: JobSpec) -> JobHandle | None:
        """Return a handle that follows a running equal job, if there is one."""
        leader = self._equal.get((channel.number, spec.identity)) if spec.sure else None
        if leader is None or not (leader.awaited or leader.at_stake):
            # That job was not sent and no caller waits for it, so it will not be created.
            return None
        return self.follow(leader, spec)

    def equal_purchase(self, channel: Channel, spec: JobSpec) -> JobHandle | None:
        """Return a handle that follows an equal job with the same pictures, if there is one.

        Unlike `equal`, only a job counts that has a task, may have one, or will be created.
        """
        leader = self._equal.get((channel.number, spec.identity)) if spec.sure else None
        if leader is None or not (leader.at_stake or (leader.pictures and leader.awaited)):
            return None
        same = leader.spec.source_digest == spec.source_digest
        return self.follow(leader, spec) if same else None

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
        # A picture that the vendor has already is not uploaded again.
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
        self._register(handle, wanted)
        handle.pictures = (handle.ref, *more)
        for ref, number in zip(handle.pictures, numbers, strict=False):
            self._pictures[ref] = handle, number

    def await_other(self, channel: Channel, spec: JobSpec, entry: JobEntry) -> JobHandle:
        """Enter a job that a process on the key has bought, or may have bought.

        It gets the result of that task; it is created only if the job turns out not to be bought.
        """
        handle = self._handle(channel, spec, entry)
        self._await_other(handle)
        return handle

    def _await_other(self, handle: JobHandle) -> None:
        self._add(handle)
        self._settling.add(handle.ref)
        self._start(partial(self._follow_other, handle))

    def give_way(self, ref: int) -> None:
        """Wait for another process's task as soon as the scheduler has released the job."""
        self._giving_way.add(ref)

    def adopt(
        self, channel: Channel, spec: JobSpec, entry: JobEntry, task: tuple[str, int]
    ) -> JobHandle:
        """Enter a job whose `task` exists: its id, and its age in microseconds."""
        handle = self._handle(channel, spec, entry)
        self._adopt(handle, *task)
        return handle

    def doubt(
        self, channel: Channel, spec: JobSpec, entry: JobEntry, lost: LostCreation
    ) -> JobHandle:
        """Enter a job that may have a task, since its creation `lost` was sent."""
        handle = self._handle(channel, spec, entry)
        handle.submitting = True
        self._add(handle)
        self._settling.add(handle.ref)
        self._start(partial(self._settle_doubt, handle, lost))
        return handle

    def ended(
        self, channel: Channel, spec: JobSpec, entry: JobEntry, task: tuple[str, int]
    ) -> JobHandle:
        """Return the handle of a job whose `task` is done: its id, and its number of pictures.

        No request is sent, so the result has no URLs until it is saved again.
        """
        handle, (task_id, pictures) = self._handle(channel, spec, entry), task
        handle.task_id = task_id
        done = ev.Succeeded(ev.Poll(0, handle.ref), ("",) * pictures)
        handle.end(done, spec.units, self._clock.seconds())
        return handle

    def reject(
        self, channel: Channel, spec: JobSpec, entry: JobEntry, error: PerfectError
    ) -> JobHandle:
        """Enter a job that is known to have failed with `error`."""
        handle = self._handle(channel, spec, entry)
        self._register(handle, ev.JobRejected(handle.ref, error, channel.number))
        return handle

    def in_doubt(self, channel: Channel, spec: JobSpec) -> JobHandle | None:
        """Return a handle that has failed with the doubt of an equal job, if there is one."""
        error = self._submitter.memory.doubts.find(spec)
        if error is None:
            return None
        handle = self._handle(channel, spec, unrecorded())
        handle.end(error, 0.0, self._clock.seconds())
        return handle

    def consent(self, spec: JobSpec) -> None:
        """Forget the doubt of a job, whose caller agrees to a second charge."""
        self._submitter.memory.doubts.discard(spec)

    async def _settle_doubt(self, handle: JobHandle, lost: LostCreation) -> None:
        found = await self._submitter.settle(handle, lost)
        if handle.ref not in self._settling:
            return
        self._settling.discard(handle.ref)
        if isinstance(found, PerfectError):
            del self._handles[handle.ref]
            self._register(handle, ev.JobRejected(handle.ref, found, handle.channel.number))
        else:
            handle.created(found)
            self._adopt(handle, found, self._clock.utc() - lost.sent)

    async def _follow_other(self, handle: JobHandle) -> None:
        """Wait for another process to buy the job, and then fetch, take over or buy its task."""
        looked = False
        while True:
            shared = self._submitter.shared
            job = submission(handle.spec, handle.gone)
            found = None if shared is None else await shared.bought(job)
            active = (
                found is not None and shared is not None and await shared.is_active(found.member)
            )
            if handle.ref not in self._settling:
                return
            if not handle.awaited:
                self._resolve(handle, ClientClosed("The caller no longer waits for this job."))
                return
            if found is None:
                self._settling.discard(handle.ref)
                del self._handles[handle.ref]
                self._buy(handle)
                return
            if found.purchase is Purchase.IN_DOUBT:
                self._resolve(handle, doubt_elsewhere(handle.spec.units))
                return
            # An active process keeps its task alive, so this one need not poll it too. The answer
            # of `_is_kept` is outdated until the ledger was read once more.
            kept = found.purchase is Purchase.SENT
            if found.purchase is Purchase.CREATED:
                kept = self._is_kept(found.task_id) or (active and not looked)
            if not kept:
                self._take_over(handle, found, paid_elsewhere=active)
                return
            await anyio.sleep(_CHECK_PAUSE)
            looked = True
            # Many jobs may wait, so the ledger is not read while the task is kept alive; the loop
            # polls, since no event reports that it is no longer kept.
            while self._is_waiting(handle) and self._is_kept(found.task_id):  # noqa: ASYNC110
                await anyio.sleep(_CHECK_PAUSE)

    def _is_waiting(self, handle: JobHandle) -> bool:
        return handle.ref in self._settling and handle.awaited

    def _resolve(self, handle: JobHandle, error: PerfectError) -> None:
        self._settling.discard(handle.ref)
        del self._handles[handle.ref]
        self._register(handle, ev.JobRejected(handle.ref, error, handle.channel.number))

    def _take_over(self, handle: JobHandle, found: Bought, *, paid_elsewhere: bool) -> None:
        """Poll another process's task, to fetch its result or to keep it alive."""
        self._settling.discard(handle.ref)
        handle.created(found.task_id)
        done = found.purchase is Purchase.DONE
        # A job whose result is gone is bought again; one whose task was lost only with consent.
        handle.fetched = found.task_id if done or handle.spec.options.buy_in_doubt else ""
        if (shared := self._submitter.shared) is not None:
            shared.adopted(found)
        # Its owner reports the units, unless the owner has died.
        units = 0.0 if done or paid_elsewhere else handle.spec.units
        self._adopt(handle, found.task_id, found.age, units)

    def _handle(self, channel: Channel, spec: JobSpec, entry: JobEntry) -> JobHandle:
        return JobHandle(next(self._refs), spec, channel, entry, sources=spec.sources)

    def _adopt(self, handle: JobHandle, task_id: str, age: int, units: float | None = None) -> None:
        spec = handle.spec
        handle.task_id = task_id
        self._submitter.remember(task_id)
        if units is None:
            # A task that is known by its id alone was charged elsewhere, or here before.
            units = 0.0 if spec.job is None else spec.units
        adopted = ev.TaskAdopted(
            handle.ref,
            spec.kind,
            units,
            task_id,
            channel=handle.channel.number,
            age=max(0, age),
        )
        self._register(handle, adopted)

    def _register(self, handle: JobHandle, event: ev.Event) -> None:
        # The event comes first, so that a job that the scheduler refuses is not kept.
        self._receive(event)
        self._add(handle)

    def _add(self, handle: JobHandle) -> None:
        self._handles[handle.ref] = handle
        if handle.spec.sure:
            self._equal[handle.channel.number, handle.spec.identity] = handle

    # Jobs that end.

    def withdraw(self, handle: JobHandle) -> None:
        """Stop waiting for `handle`; an unsent job is cancelled, and a task is kept to its end."""
        handle.wanted = False
        leader = handle.leader or handle
        if handle is not leader and handle.task_id is None and not handle.submitting:
            leader.followers.remove(handle)
            error = ClientClosed("The caller no longer waits for this job.")
            handle.end(error, 0.0, self._clock.seconds())
        if not leader.awaited:
            self._receive(ev.JobCancelled(leader.ref))

    def settle(self, command: ev.Settle) -> bool:
        """End the job of `command`; return False if the registry has no such job."""
        handle = self._handles.pop(command.ref, None)
        if handle is None:
            return False
        if self._continues(handle, command.ending):
            return True
        kind = _end_kind(command.ending, closing=handle.channel.journal.closing)
        if kind is not None:
            handle.entry.ended(kind)
        self._end(handle, command.ending, command.units)
        return True

    def _continues(self, handle: JobHandle, ending: ev.Succeeded | PerfectError) -> bool:
        """Return whether the job continues, although the scheduler has released it."""
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
        """Abandon the jobs of the ending `channel` that are in doubt; the journal keeps them.

        Its other jobs no longer wait for other processes, and end as the scheduler decides.
        """
        for handle in self.left(channel):
            self._giving_way.discard(handle.ref)
            handle.fetched = ""
            if handle.ref in self._settling:
                self._abandon(handle, None)

    def give_up(self, cause: BaseException | None) -> None:
        """End all unended jobs, since the driver has ended, so that no caller waits for ever."""
        for handle in list(self._handles.values()):
            self._abandon(handle, cause)

    def _abandon(self, handle: JobHandle, cause: BaseException | None) -> None:
        del self._handles[handle.ref]
        self._settling.discard(handle.ref)
        units = 0.0 if handle.task_id is None else handle.at_stake
        # The journal does not record this end, so the next process goes on with the job.
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
    """Return how the journal records the `ending` of a job; None if the job stays open in it."""
    match ending:
        case ev.Succeeded():
            return "done"
        case TaskAbandoned() | SubmissionInDoubt() if closing:
            # The job ends only because the client closes, so the next process goes on with it.
            return None
        case ClientClosed():
            return "unsent"
        case SubmissionInDoubt():
            return "doubt"
        case TaskExpired() | TaskTimedOut() | TaskAbandoned():
            return "lost"
        case _:
            # A charged job must not look uncharged to a later process, such as one whose result
            # cannot be read or whose polls the vendor refuses for good.
            return "lost" if ending.units_at_stake else "failed"
