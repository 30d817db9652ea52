"""The states of a job, and a table of the events that each accepts and where they lead.

    WAITING ── Issued ──> REGISTERING ── Registered ──> REGISTERED
    REGISTERED ── Issued ──> UPLOADING ── Uploaded ──> UPLOADED
    UPLOADED ── the last picture's Uploaded ──> READY
    READY ── Issued ──> SUBMITTING ── Accepted ──> RUNNING
    ADOPTED ── Issued ──> RUNNING
    RUNNING ── the task's end ──> ENDED ── Issued(Settle) ──> SETTLED

A job starts READY when its picture is at a URL or at the vendor, and ADOPTED when its task exists.
It is UPLOADED while other pictures of it are not at the vendor yet. Each of those is prepared like
a job of its own, up to UPLOADED, and refers to its job by `whole`.
Failures that may pass lead back to the state before; final ones lead from any state to ENDED. Some
events may end a job in any state and are not in the table: the client closes, the key is refused,
the balance is exhausted, or the job is cancelled. SETTLED means that the end was reported. The
answer to a hedged poll that comes afterwards changes nothing.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import attrs

from perfect_async import events as ev
from perfect_async._time import SECOND
from perfect_async.errors import PerfectError

if TYPE_CHECKING:
    from collections.abc import Mapping

UNKNOWN: Final = 120 * SECOND
"""How long a task lasts of which nothing is documented and none has ended."""


class IllegalEvent(Exception):
    """An event that is impossible now, by a mistake of the driver. The scheduler is unchanged."""


class JobState(Enum):
    """The states of a job."""

    # Each state is one object. Enum hashes the name, which costs as much as all other look-ups of a
    # decision together.
    __hash__ = object.__hash__

    WAITING = auto()
    REGISTERING = auto()
    REGISTERED = auto()
    UPLOADING = auto()
    UPLOADED = auto()
    READY = auto()
    SUBMITTING = auto()
    ADOPTED = auto()
    RUNNING = auto()
    ENDED = auto()
    SETTLED = auto()


S = JobState

_FAILURES = (ev.NotSent, ev.NoAnswer, ev.Limited, ev.KeyRefused, ev.Refused)

ANSWERS: Final[dict[type, frozenset[type]]] = {
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
ANSWERS[ev.Rescue] = ANSWERS[ev.Poll]
"""The answers that each command may have. Each command is answered once."""
RESPONSES: Final = frozenset[type]().union(*ANSWERS.values())
"""The answers that any command may have."""

TRANSITIONS: Final[Mapping[tuple[JobState, type], frozenset[JobState]]] = {
    (S.WAITING, ev.Register): frozenset({S.REGISTERING}),
    (S.REGISTERING, ev.Registered): frozenset({S.REGISTERED, S.WAITING, S.ENDED}),
    (S.REGISTERING, ev.NotSent): frozenset({S.WAITING, S.ENDED}),
    (S.REGISTERING, ev.NoAnswer): frozenset({S.WAITING, S.ENDED}),
    (S.REGISTERING, ev.Limited): frozenset({S.WAITING, S.ENDED}),
    (S.REGISTERING, ev.KeyRefused): frozenset({S.ENDED}),
    (S.REGISTERING, ev.Refused): frozenset({S.WAITING, S.ENDED}),
    (S.REGISTERED, ev.Upload): frozenset({S.UPLOADING}),
    (S.UPLOADING, ev.Uploaded): frozenset({S.UPLOADED}),
    (S.UPLOADED, ev.Uploaded): frozenset({S.READY}),
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
    (S.RUNNING, ev.Refused): frozenset({S.RUNNING, S.ENDED}),
    (S.RUNNING, ev.Succeeded): frozenset({S.RUNNING, S.ENDED}),
    (S.RUNNING, ev.EngineFailed): frozenset({S.READY, S.ENDED}),
    (S.RUNNING, ev.TaskUnknown): frozenset({S.RUNNING, S.ENDED}),
    (S.RUNNING, ev.TimedOut): frozenset({S.ENDED}),
    (S.RUNNING, ev.Unreadable): frozenset({S.ENDED}),
    (S.RUNNING, ev.KeyRefused): frozenset({S.RUNNING, S.ENDED}),
    (S.ENDED, ev.Settle): frozenset({S.SETTLED}),
}
"""The states that an answer or an issued command may lead to from each state."""


@attrs.define(eq=False)
class ScheduledJob:
    """The state of one job. All times are in microseconds.

    Times: `given_up` is when the task is abandoned. `accepted` is when the last poll that renewed
    the lease (or the creation) left. `try_at` is when a poll that failed or has no answer is sent
    again. `early_at` is when another poll may leave before the reserved one. `likely_at` is when
    the task has probably ended; `scout_at` is when it may be polled if nobody knows when. `ask_at`
    is when the task is polled beside its reserved polls. `gap` is the time between the last two
    polls (or the creation and the first one).

    Polls: `announced` counts the polls since the vendor announced the end. `given_interval` is the
    interval that the answer to the creation asked for. The last `refusals` polls were refused for
    the same reason, `refused_for`. A job is `confirming` when its result was named for another
    task too, so it is polled once more. A job is `adopted` when its creation was not seen, so its
    duration is not known.

    `reserved` units count against its `spending_limits`. `give_up` and `engine_retries` are the
    job's own settings, and None where those of all jobs apply. `parts` are its further pictures,
    and `whole` is the job that such a picture belongs to.
    """

    ref: int
    kind: ev.TaskKind
    units: float
    uploads: bool
    channel: int
    state: JobState
    spending_limits: tuple[int, ...] = ()
    alone: bool = False
    adopted: bool = False
    give_up: int | None = None
    engine_retries: int | None = None
    wanted: bool = True
    failures: int = 0
    engine_failures: int = 0
    task_id: str | None = None
    task: int = 0
    given_up: int = 0
    accepted: int = 0
    last_left: int = 0
    gap: int = 0
    interval: int = 0
    given_interval: int | None = None
    tries: int = 0
    try_at: int | None = None
    ask_at: int | None = None
    announced: int = 0
    early_at: int | None = None
    likely_at: int | None = None
    scout_at: int | None = None
    doubted: bool = False
    refused_for: tuple[object, ...] | None = None
    refusals: int = 0
    confirming: bool = False
    trouble: PerfectError | None = None
    charged: float = 0.0
    reserved: float = 0.0
    parts: tuple[ScheduledJob, ...] = attrs.field(default=(), repr=False)
    whole: ScheduledJob | None = attrs.field(default=None, repr=False)

    @classmethod
    def of(cls, event: ev.JobAdded) -> ScheduledJob:
        """Return a job whose task is to be created."""
        job = cls(
            event.ref,
            event.kind,
            event.units,
            event.uploads,
            event.channel,
            JobState.WAITING if event.uploads else JobState.READY,
            event.spending_limits,
            event.alone,
            give_up=event.give_up,
            engine_retries=event.engine_retries,
        )
        job.parts = tuple(cls._part(ref, job) for ref in event.more)
        return job

    @classmethod
    def _part(cls, ref: int, whole: ScheduledJob) -> ScheduledJob:
        """Return the state of one further picture of `whole`."""
        channel, state = whole.channel, JobState.WAITING
        return cls(ref, whole.kind, 0.0, uploads=True, channel=channel, state=state, whole=whole)

    @property
    def uploaded(self) -> bool:
        """Whether all pictures of the job are at the vendor."""
        return all(each.state is JobState.UPLOADED for each in (self, *self.parts))

    @classmethod
    def adopting(cls, event: ev.TaskAdopted, given_up: int) -> ScheduledJob:
        """Return a job whose task exists already."""
        return cls(
            event.ref,
            event.kind,
            event.units,
            uploads=False,
            channel=event.channel,
            state=JobState.ADOPTED,
            adopted=True,
            task_id=event.task_id,
            given_up=given_up,
            # The first "unknown task" is final, since it is not known whether the lease held.
            doubted=True,
        )

    @classmethod
    def rejected(cls, event: ev.JobRejected) -> ScheduledJob:
        """Return a job whose end is known already."""
        units, kind = event.error.units_at_stake, ev.TaskKind("")
        channel, state = event.channel, JobState.READY
        return cls(event.ref, kind, units, uploads=False, channel=channel, state=state)

    def gives_up_after(self, usual: int) -> int:
        """Return how long its task may run: `usual`, or its own setting where that is less.

        A longer one is not possible, since polls are planned for `usual`.
        """
        return usual if self.give_up is None else min(self.give_up, usual)

    def move(self, cause: ev.Answer | ev.Command, state: JobState) -> None:
        """Go to `state` because of `cause`. Raise `IllegalEvent` if the table forbids it."""
        if state not in TRANSITIONS.get((self.state, type(cause)), ()):
            raise IllegalEvent(f"{cause!r} does not lead from {self.state.name} to {state.name}.")
        self.state = state
