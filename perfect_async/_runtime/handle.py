"""The state of one job that the driver and the client share, and the channel of one client."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import anyio
import attrs

from perfect_async import events as ev
from perfect_async._journal.journal import JobEntry, JobJournal
from perfect_async._log import LOG, type_name
from perfect_async._runtime.spec import JobSpec
from perfect_async._transport.transport import VendorTransport
from perfect_async.errors import (
    ClientClosed,
    PerfectError,
    SubmissionInDoubt,
    TaskAbandoned,
    copy_error,
    quoted,
)
from perfect_async.models import FileId, Timeouts
from perfect_async.reports import JobEventKind

_MOST_NAMED: Final = 20
"""How many tasks the warning of a closing client names; it counts the others."""


@attrs.define(eq=False)
class Channel:
    """The transport and the journal of one client, known to the scheduler by `number`.

    `sole_user`: the user promises that nothing else creates tasks on the account. `last_failure` is
    the error of its last request, None if that one succeeded.
    """

    number: int
    transport: VendorTransport
    timeouts: Timeouts
    journal: JobJournal
    sole_user: bool = False
    last_failure: PerfectError | None = attrs.field(default=None, repr=False)


@attrs.define(eq=False)
class JobHandle:
    """The state of one running job, which the driver changes and the client reads.

    `task_id` is the task that runs now. `submitting` is True while a creation was sent and has no
    answer. `ending` is the outcome of the job. Subscribers are called when one of the three
    changes; observers are called with the events of the job.

    An equal job has a handle of its own among the `followers` of the first one, its `leader`. They
    share one task, which is charged to the leader.

    `files` are those of a result that was saved before. `sources` has the file id or URL to send
    for each input, None while the input is not registered at the vendor. `grants` has the
    registrations by the numbers of the inputs, `pictures` the scheduler's numbers of the pictures
    to upload. `fetched` is the finished task of another process whose result the job waits for;
    `gone` is one whose result the vendor no longer has. Times are the loop's, in seconds.
    """

    ref: int
    spec: JobSpec
    channel: Channel
    entry: JobEntry
    sources: list[FileId | str | None] = attrs.field(
        factory=list["FileId | str | None"], repr=False
    )
    grants: dict[int, ev.FileGrant] = attrs.field(factory=dict[int, ev.FileGrant], repr=False)
    pictures: tuple[int, ...] = ()
    _uploaded: set[int] = attrs.field(factory=set[int], init=False, repr=False)
    created_at: float | None = None
    ended_at: float | None = None
    task_id: str | None = None
    submitting: bool = False
    wanted: bool = True
    ending: ev.Succeeded | PerfectError | None = None
    units: float = 0.0
    last_failure: PerfectError | None = attrs.field(default=None, repr=False)
    leader: JobHandle | None = attrs.field(default=None, repr=False)
    files: tuple[Path, ...] = ()
    fetched: str = ""
    gone: str = ""
    followers: list[JobHandle] = attrs.field(factory=list["JobHandle"], repr=False)
    done: anyio.Event = attrs.field(factory=anyio.Event, repr=False)
    _subscribers: list[Callable[[], None]] = attrs.field(
        factory=list[Callable[[], None]], init=False, repr=False
    )
    _observers: list[Callable[[JobEventKind], None]] = attrs.field(
        factory=list[Callable[[JobEventKind], None]], init=False, repr=False
    )

    @property
    def duration(self) -> float | None:
        """The seconds from the creation to the end; None if one of them is unknown."""
        if self.created_at is None or self.ended_at is None:
            return None
        return self.ended_at - self.created_at

    @property
    def at_stake(self) -> float:
        """The units that are, or may be, charged for the job now."""
        return self.spec.units if self.task_id is not None or self.submitting else 0.0

    @property
    def awaited(self) -> bool:
        """Whether a caller waits for this job or for an equal one."""
        return any(one.wanted for one in (self, *self.followers))

    @property
    def failure(self) -> PerfectError | None:
        """The error of its last request, or of its client's last one; None if both succeeded."""
        return (self.leader or self).last_failure or self.channel.last_failure

    @property
    def inputs(self) -> tuple[FileId, ...]:
        """The job's input files at the vendor."""
        return tuple(source for source in self.sources if isinstance(source, FileId))

    def needs(self, task_id: str, files: Sequence[FileId]) -> bool:
        """Return whether the job uses the task `task_id`, or one of `files` at the vendor."""
        return self.task_id == task_id or any(file in self.sources for file in files)

    @property
    def preparing(self) -> bool:
        """Whether some of its pictures are registered but not all of them are uploaded."""
        return bool(self.grants) and not self._is_uploaded

    @property
    def _is_uploaded(self) -> bool:
        pictures = (n for n, each in enumerate(self.spec.inputs) if each.picture is not None)
        return self._uploaded.issuperset(pictures)

    def registered(self, number: int, grant: ev.FileGrant) -> None:
        """Record that the picture of the input `number` may be uploaded."""
        self.grants[number], self.sources[number] = grant, FileId(grant.file_id)
        self._uploaded.discard(number)

    def uploaded(self, number: int, grant: ev.FileGrant) -> None:
        """Record that the picture of the input `number` was uploaded."""
        self.entry.uploaded(grant.file_id, number)
        self._uploaded.add(number)
        if self._is_uploaded:
            self.emit("uploaded")

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each change of `task_id`, `submitting` and `ending`.

        The end is the last change; after it `callback` is not called any more.
        """
        if self.ending is None:
            self._subscribers.append(callback)

    def observe(self, callback: Callable[[JobEventKind], None]) -> None:
        """Call `callback` when the pictures are uploaded, or the task is created or polled."""
        if self.ending is None:
            self._observers.append(callback)

    def emit(self, kind: JobEventKind) -> None:
        """Call the observers of this job, and of the equal ones that share its task."""
        for handle in (self, *self.followers):
            for callback in handle._observers:  # noqa: SLF001 - also another handle's
                callback(kind)

    def follow(self, leader: JobHandle) -> None:
        """Share the task of `leader`, an equal job that has not ended."""
        self.leader = leader
        leader.followers.append(self)
        self._copy(leader)

    def creating(self, at: float) -> None:
        """Record that the creation is being sent."""
        self.submitting, self.task_id, self.created_at = True, None, at
        self._changed()

    def created(self, task_id: str) -> None:
        """Record that the task exists."""
        self.submitting, self.task_id = False, task_id
        self.entry.created(task_id)
        self._changed()
        self.emit("submitted")

    def refused(self) -> None:
        """Record that the vendor certainly did not execute the creation."""
        self.submitting, self.created_at = False, None
        self._changed()

    def failed(self, task_id: str) -> None:
        """Record that the engine failed on `task_id` and its units return; a retry may follow."""
        if self.task_id == task_id:
            self.task_id = None
            self.entry.returned()
            self._changed()

    def end(self, ending: ev.Succeeded | PerfectError, units: float, at: float) -> None:
        """Record the end of the job, and wake its waiters."""
        # One refusal may end many jobs, and each job raises an error of its own.
        self.ending = copy_error(ending) if isinstance(ending, PerfectError) else ending
        self.submitting, self.units, self.ended_at = False, units, at
        self._log_end()
        self.done.set()
        self._call_subscribers()
        for follower in self.followers:
            follower.end(ending, 0.0, at)
        # Breaks the reference cycle with subscribers, so that the picture is freed at once.
        self._subscribers.clear()
        self._observers.clear()
        self.leader = None
        self.followers.clear()

    def _log_end(self) -> None:
        """Log the outcome of the job, at INFO, without file names, which may name a person."""
        if not LOG.isEnabledFor(logging.INFO):
            return
        key = self.spec.job and self.spec.job.key
        what = self.spec.feature if key is None else f"{self.spec.feature} {quoted(key)}"
        task = "" if self.task_id is None else f", task {quoted(self.task_id)}"
        lasted = "" if self.duration is None else f" in {self.duration:.1f} s"
        how = "done"
        if isinstance(self.ending, ClientClosed):
            how = f"was not sent: {self.ending.message.rstrip('.')}"
        elif isinstance(self.ending, PerfectError):
            how = f"failed: {type_name(self.ending)}: {self.ending.message}"
        cost = f"{self.units:g} {'unit' if self.units == 1 else 'units'}"
        if self.units and self.spec.job is not None and not self.spec.job.priced:
            cost = f"at least {cost} (no price was given)"
        LOG.info(
            "Job %s%s %s%s, %s",
            *(what, task, how, lasted, cost),
            extra={
                "feature": self.spec.feature,
                "task_id": self.task_id,
                "units": self.units,
                "seconds": self.duration,
            },
        )

    def abandoned(self, cause: BaseException | None) -> PerfectError:
        """Return the error of this job if the driver ends before it; `cause` ended the driver."""
        error: PerfectError = closed(cause)
        why, units = error.message, self.at_stake
        if self.task_id is not None:
            error = TaskAbandoned(why, task_id=self.task_id, units_at_stake=units)
        elif self.submitting:
            error = SubmissionInDoubt(
                f"{why} The task's creation had been sent and had no answer yet.",
                units_at_stake=units,
            )
        error.__cause__ = cause
        return error

    def _changed(self) -> None:
        self._call_subscribers()
        for follower in self.followers:
            follower._copy(self)  # noqa: SLF001 - another handle
            follower._call_subscribers()  # noqa: SLF001 - as above

    def _call_subscribers(self) -> None:
        for callback in self._subscribers:
            callback()

    def _copy(self, leader: JobHandle) -> None:
        self.task_id, self.submitting = leader.task_id, leader.submitting
        # The list is shared, so that an upload of the leader counts for the follower.
        self.created_at, self.sources = leader.created_at, leader.sources


def closed(cause: BaseException | None) -> ClientClosed:
    """Return the error for a request after the driver's end; `cause` is the error that ended it."""
    why = (
        "The client is closed."
        if cause is None
        else f"The client's driver failed: {type_name(cause)}."
    )
    error = ClientClosed(why)
    error.__cause__ = cause
    return error


def warn_of_unfinished(handles: Sequence[JobHandle], drain: float, *, others: bool = False) -> None:
    """Warn of tasks that still run after a closing client has waited for `drain` seconds.

    `others`: other processes that share the key poll them from now on.
    """
    left = [handle for handle in handles if handle.at_stake]
    if not left:
        return
    named = [quoted(handle.task_id or "(creation under way)") for handle in left[:_MOST_NAMED]]
    more = len(left) - len(named)
    LOG.warning(
        "Closing after %g s of draining: %d tasks still run and are %s, "
        "%g units are at stake: %s%s",
        drain,
        len(left),
        "left to the other processes on this key" if others else "no longer kept alive",
        sum(handle.at_stake for handle in left),
        ", ".join(named),
        f" and {more} more" if more else "",
    )
