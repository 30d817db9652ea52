"""The life of a job, as a table: its states, the news that each state may hear, and where that
leads.

    WAITING ── Issued ──> REGISTERING ── Registered ──> REGISTERED
    REGISTERED ── Issued ──> UPLOADING ── Uploaded ──> READY
    READY ── Issued ──> SUBMITTING ── Accepted ──> RUNNING
    ADOPTED ── Issued ──> RUNNING
    RUNNING ── the task's end ──> ENDED ── Issued(Settle) ──> TOLD

A job whose picture is at a URL or at the vendor starts READY, one that has a task already ADOPTED.
Failures that may pass lead back to the state before; final ones, from anywhere, to ENDED. What
happens to the client (it closes, the key is refused, the balance is exhausted, nobody waits any
longer) may end a job in any state and is not in the table. TOLD is a job whose waiter knows and of
which a hedged poll is still unanswered: what it says changes nothing.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import attrs

from perfect_async import events as ev
from perfect_async.errors import PerfectError

if TYPE_CHECKING:
    from collections.abc import Mapping


class IllegalEvent(Exception):
    """News that cannot be: a mistake in the driver. The scheduler is as it was."""


class JobState(Enum):
    """Where a job is."""

    # Each state is one object; Enum's own hash is of the name, which costs as much as a decision's
    # other look-ups together.
    __hash__ = object.__hash__

    WAITING = auto()
    REGISTERING = auto()
    REGISTERED = auto()
    UPLOADING = auto()
    READY = auto()
    SUBMITTING = auto()
    ADOPTED = auto()
    RUNNING = auto()
    ENDED = auto()
    TOLD = auto()


S = JobState

_FAILURES = (ev.NotSent, ev.NoAnswer, ev.Limited, ev.KeyRefused, ev.Refused)

ANSWERS: Final[Mapping[type, frozenset[type]]] = {
    ev.Register: frozenset({ev.Registered, *_FAILURES}),
    ev.Upload: frozenset({ev.Uploaded, ev.NotSent, ev.NoAnswer, ev.Refused}),
    ev.Submit: frozenset({ev.Accepted, ev.OutOfUnits, *_FAILURES}),
    ev.Poll: frozenset(
        {
            *(ev.Running, ev.Succeeded, ev.EngineFailed, ev.TaskUnknown, ev.TimedOut),
            *(ev.Unreadable, *_FAILURES),
        }
    ),
    ev.Ask: frozenset({ev.Answered, *_FAILURES}),
}
"""What may answer a command; each command is answered once."""

TRANSITIONS: Final[Mapping[tuple[JobState, type], frozenset[JobState]]] = {
    (S.WAITING, ev.Register): frozenset({S.REGISTERING}),
    (S.REGISTERING, ev.Registered): frozenset({S.REGISTERED}),
    (S.REGISTERING, ev.NotSent): frozenset({S.WAITING, S.ENDED}),
    (S.REGISTERING, ev.NoAnswer): frozenset({S.WAITING, S.ENDED}),
    (S.REGISTERING, ev.Limited): frozenset({S.WAITING, S.ENDED}),
    (S.REGISTERING, ev.KeyRefused): frozenset({S.ENDED}),
    (S.REGISTERING, ev.Refused): frozenset({S.WAITING, S.ENDED}),
    (S.REGISTERED, ev.Upload): frozenset({S.UPLOADING}),
    (S.UPLOADING, ev.Uploaded): frozenset({S.READY}),
    (S.UPLOADING, ev.NotSent): frozenset({S.REGISTERED, S.ENDED}),
    (S.UPLOADING, ev.NoAnswer): frozenset({S.REGISTERED, S.ENDED}),
    (S.UPLOADING, ev.Refused): frozenset({S.WAITING, S.ENDED}),
    (S.READY, ev.Submit): frozenset({S.SUBMITTING}),
    (S.ADOPTED, ev.Poll): frozenset({S.RUNNING}),
    (S.SUBMITTING, ev.Accepted): frozenset({S.RUNNING}),
    (S.SUBMITTING, ev.OutOfUnits): frozenset({S.ENDED}),
    (S.SUBMITTING, ev.NotSent): frozenset({S.READY, S.ENDED}),
    (S.SUBMITTING, ev.Limited): frozenset({S.READY, S.ENDED}),
    (S.SUBMITTING, ev.NoAnswer): frozenset({S.ENDED}),
    (S.SUBMITTING, ev.KeyRefused): frozenset({S.ENDED}),
    (S.SUBMITTING, ev.Refused): frozenset({S.ENDED}),
    (S.RUNNING, ev.Poll): frozenset({S.RUNNING}),
    (S.RUNNING, ev.Running): frozenset({S.RUNNING}),
    (S.RUNNING, ev.NotSent): frozenset({S.RUNNING}),
    (S.RUNNING, ev.NoAnswer): frozenset({S.RUNNING}),
    (S.RUNNING, ev.Limited): frozenset({S.RUNNING}),
    (S.RUNNING, ev.Refused): frozenset({S.RUNNING}),
    (S.RUNNING, ev.Succeeded): frozenset({S.ENDED}),
    (S.RUNNING, ev.EngineFailed): frozenset({S.READY, S.ENDED}),
    (S.RUNNING, ev.TaskUnknown): frozenset({S.RUNNING, S.ENDED}),
    (S.RUNNING, ev.TimedOut): frozenset({S.ENDED}),
    (S.RUNNING, ev.Unreadable): frozenset({S.ENDED}),
    (S.RUNNING, ev.KeyRefused): frozenset({S.ENDED}),
    (S.ENDED, ev.Settle): frozenset({S.TOLD}),
}
"""What a state may hear (an answer, or the command that was issued) and where that may lead."""


@attrs.define(eq=False)
class ScheduledJob:
    """What the scheduler knows of one job; times in microseconds.

    `outputs` (pictures that come back) and `usual` (durations that are documented) tell which tasks
    last alike. `given_up` is the time at which the task is abandoned, `accepted` when the last poll
    that renewed the lease (or the creation) left, `try_at` when a poll that failed or is silent is
    sent again, `early_at` when another poll may leave before its promise, `likely_at` when its task
    has rather ended than not. `adopted`: its creation was not seen, so how long it lasts will not
    be known. `ask_at` is when it is asked for whatever is promised, `announced` how often it was
    since the vendor said that it ended. `reserved` units count against the ceilings of its
    `purses`.
    """

    ref: int
    feature: str
    units: float
    uploads: bool
    channel: int
    state: JobState
    outputs: int = 1
    usual: tuple[int, int] | None = None
    purses: tuple[int, ...] = ()
    alone: bool = False
    adopted: bool = False
    wanted: bool = True
    failures: int = 0
    engine_failures: int = 0
    task_id: str | None = None
    task: int = 0
    given_up: int = 0
    accepted: int = 0
    last_left: int = 0
    interval: int = 0
    tries: int = 0
    try_at: int | None = None
    ask_at: int | None = None
    announced: int = 0
    early_at: int | None = None
    likely_at: int | None = None
    doubted: bool = False
    trouble: PerfectError | None = None
    charged: float = 0.0
    reserved: float = 0.0

    @classmethod
    def of(cls, event: ev.Wanted) -> ScheduledJob:
        """A job that is to be created."""
        return cls(
            event.ref,
            event.feature,
            event.units,
            event.uploads,
            event.channel,
            JobState.WAITING if event.uploads else JobState.READY,
            event.outputs,
            event.usual,
            event.purses,
            event.alone,
        )

    @classmethod
    def adopting(cls, event: ev.Adopted, given_up: int) -> ScheduledJob:
        """A job whose task exists."""
        return cls(
            event.ref,
            event.feature,
            event.units,
            uploads=False,
            channel=event.channel,
            state=JobState.ADOPTED,
            outputs=event.outputs,
            usual=event.usual,
            adopted=True,
            task_id=event.task_id,
            given_up=given_up,
            # What the vendor does not know is believed at once: by no account of ours it must.
            doubted=True,
        )

    @classmethod
    def forgone(cls, event: ev.Forgone) -> ScheduledJob:
        """A job whose end is known already."""
        units = event.error.units_at_stake
        return cls(event.ref, "", units, uploads=False, channel=event.channel, state=JobState.READY)

    def move(self, cause: ev.Answer | ev.Command, state: JobState) -> None:
        """Go to `state` because of `cause`; raises `IllegalEvent` where no way leads."""
        if state not in TRANSITIONS.get((self.state, type(cause)), ()):
            raise IllegalEvent(f"{cause!r} does not lead from {self.state.name} to {state.name}.")
        self.state = state
