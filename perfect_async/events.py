"""The commands of the scheduler (imperative) and the events that the driver reports (past tense).

A job has a `ref`, a number from the driver. A command that is sent over the wire has a `number`
from the scheduler. Every issued command ends in exactly one event, which carries the command. A
poll without an answer is sent again beside the first one, and the end of each is reported. Times
are integer microseconds, here and in the whole scheduler.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol, TypeAlias

import attrs

from perfect_async._time import SECOND
from perfect_async._value import Value
from perfect_async.errors import PerfectError
from perfect_async.reports import Statistics


@attrs.frozen(eq=False, repr=False)
class TaskKind(Value):
    """A kind of task; tasks of one kind have similar durations.

    They have the same `feature` and the same number of `outputs` (resulting pictures). `usual` is
    the shortest and longest documented duration; None if none is documented.
    """

    feature: str
    outputs: int = 1
    usual: tuple[int, int] | None = attrs.field(default=None, eq=False)


# Commands.


@attrs.frozen(eq=False, repr=False)
class Register(Value):
    """Register the files of `refs` with one call.

    `feature` names the path; None means the common one. The first picture of a job has the number
    of the job, and further ones have numbers of their own.
    """

    number: int
    refs: tuple[int, ...]
    feature: str | None


@attrs.frozen(eq=False, repr=False)
class Upload(Value):
    """Upload the bytes of `ref` to the URL of its registration; it costs no request."""

    number: int
    ref: int


@attrs.frozen(eq=False, repr=False)
class Submit(Value):
    """Create the task of `ref`; it spends units and is never repeated if its outcome is unknown."""

    number: int
    ref: int


@attrs.frozen(eq=False, repr=False)
class Poll(Value):
    """Ask for the state of the task of `ref`."""

    number: int
    ref: int


@attrs.frozen(eq=False, repr=False)
class Rescue(Poll):
    """Poll the task of another member of the key, whose own poll is overdue.

    `ref` is a number below 0. `feature` and `task_id` name the task.
    """

    feature: str
    task_id: str


@attrs.frozen(eq=False, repr=False)
class Ask(Value):
    """Send the query `ref` (templates, units, prices, history, delete)."""

    number: int
    ref: int


@attrs.frozen(eq=False, repr=False)
class Settle(Value):
    """Report the outcome of `ref`; `units` are those charged, less those returned."""

    ref: int
    ending: Succeeded | PerfectError
    units: float


Request: TypeAlias = Register | Submit | Poll | Ask
Command: TypeAlias = Request | Upload | Settle

# Events.


@attrs.frozen(eq=False, repr=False)
class JobAdded(Value):
    """A job was added.

    `channel`: the client and its transport; files are registered together only within one channel.
    `uploads`: its picture must be registered and uploaded. `more`: the numbers of its further
    pictures, which must be uploaded too before it is created; `Register` and `Upload` use them.
    `units`: its documented price. `spending_limits`: the limits that its units count against
    (`SpendingLimitOpened`). `alone`: it is created only while no other creation is under way, so
    that the unit history can settle a creation without an answer. `give_up` (at most that of all
    jobs) and `engine_retries` are those of this job; None means those of all jobs.
    """

    ref: int
    kind: TaskKind
    units: float
    uploads: bool
    channel: int = 0
    spending_limits: tuple[int, ...] = ()
    alone: bool = False
    more: tuple[int, ...] = ()
    give_up: int | None = None
    engine_retries: int | None = None


@attrs.frozen(eq=False, repr=False)
class TaskAdopted(Value):
    """A job was added whose task exists; it is polled at once, since its lease is unknown.

    `age` is how long ago it was created, as far as it is known. The rest is as in `JobAdded`.
    """

    ref: int
    kind: TaskKind
    units: float
    task_id: str
    channel: int = 0
    age: int = 0


@attrs.frozen(eq=False, repr=False)
class JobRejected(Value):
    """A job was added that has failed already with `error`, which has the units at stake."""

    ref: int
    error: PerfectError
    channel: int = 0


@attrs.frozen(eq=False, repr=False)
class SpendingLimitOpened(Value):
    """All jobs that name `spending_limit` together may be charged `most` units."""

    spending_limit: int
    most: float


@attrs.frozen(eq=False, repr=False)
class SpendingLimitClosed(Value):
    """No further job will name `spending_limit`."""

    spending_limit: int


@attrs.frozen(eq=False, repr=False)
class Notified(Value):
    """The vendor says that the task of `ref` has ended; it must still be polled."""

    ref: int


@attrs.frozen(eq=False, repr=False)
class JobCancelled(Value):
    """The caller of `ref` has gone: an unsent job is not created, a task is kept to its end."""

    ref: int


@attrs.frozen(eq=False, repr=False)
class QueryAdded(Value):
    """A query was added; `ref` is its own number, `channel` the client's.

    `repeats`: it may be sent again if no answer comes. `urgent`: units depend on the answer, so it
    leaves before all requests that are not reserved. `lasting`: it is sent even while its channel
    closes.
    """

    ref: int
    channel: int = 0
    repeats: bool = True
    urgent: bool = False
    lasting: bool = False


@attrs.frozen(eq=False, repr=False)
class ChannelClosed(Value):
    """`channel` creates no more tasks; its running tasks are kept alive."""

    channel: int = 0


@attrs.frozen(eq=False, repr=False)
class ChannelAborted(Value):
    """`channel` has ended: its tasks are not polled any longer, and running ones are abandoned.

    `leaves`: no channel is left, so that other members may poll the running ones from now on.
    """

    channel: int = 0
    leaves: bool = False


@attrs.frozen(eq=False, repr=False)
class Issued(Value):
    """`command` is being performed; this is reported before the next question to the scheduler."""

    command: Command


@attrs.frozen(eq=False, repr=False)
class NotSent(Value):
    """`command` certainly did not reach the vendor: no connection was made, or it was not recorded.

    `unwritten`: it could not be written to the key's ledger, so it was not sent and occupies no
    window.
    """

    command: Request | Upload
    error: PerfectError
    unwritten: bool = False


@attrs.frozen(eq=False, repr=False)
class NoAnswer(Value):
    """`command` was sent, and no usable answer came: timed out, dropped, 5xx or malformed."""

    command: Request | Upload
    error: PerfectError


@attrs.frozen(eq=False, repr=False)
class Limited(Value):
    """The vendor answered `command` with 429; it was not executed, but counts against the limits.

    `retry_after` is None if the answer named none.
    """

    command: Request
    error: PerfectError
    retry_after: int | None = None


@attrs.frozen(eq=False, repr=False)
class KeyRefused(Value):
    """The vendor answered `command` with 401, which is final for the whole client.

    A 401 to a poll is final only when it is repeated.
    """

    command: Request
    error: PerfectError


@attrs.frozen(eq=False, repr=False)
class Refused(Value):
    """The vendor read `command` and refused it. `status` is the HTTP status."""

    command: Request | Upload
    error: PerfectError
    status: int


@attrs.frozen(eq=False, repr=False)
class FileGrant(Value):
    """The upload request of one registered picture; `url` is signed, so no repr shows it."""

    file_id: str = attrs.field(repr=False)
    method: str
    url: str = attrs.field(repr=False)
    headers: tuple[tuple[str, str], ...]


@attrs.frozen(eq=False, repr=False)
class Registered(Value):
    """The vendor registered the files, in the order of `command.refs`."""

    command: Register
    grants: tuple[FileGrant, ...]


@attrs.frozen(eq=False, repr=False)
class Uploaded(Value):
    """The vendor has the bytes of the picture."""

    command: Upload


@attrs.frozen(eq=False, repr=False)
class Accepted(Value):
    """The task exists and its units are charged.

    `interval` is the polling interval that the vendor asks for; None if it asks for none.
    """

    command: Submit
    task_id: str
    interval: int | None = None


@attrs.frozen(eq=False, repr=False)
class OutOfUnits(Value):
    """The balance does not cover the job of `command`; nothing was charged."""

    command: Submit
    error: PerfectError


@attrs.frozen(eq=False, repr=False)
class Running(Value):
    """The task still runs, and its lease is renewed; `polling_interval` is None if not given."""

    command: Poll
    polling_interval: int | None = None


@attrs.frozen(eq=False, repr=False)
class Succeeded(Value):
    """The task succeeded; `urls` are signed, so no repr shows them.

    `results` is the vendor's whole answer, decoded; None if the vendor was not asked.
    """

    command: Poll
    urls: tuple[str, ...] = attrs.field(repr=lambda urls: f"<{len(urls)} urls>")
    results: object = attrs.field(default=None, repr=False, eq=False)


@attrs.frozen(eq=False, repr=False)
class EngineFailed(Value):
    """The engine failed and the units are returned; `passing`: another try may succeed."""

    command: Poll
    error: PerfectError
    passing: bool


@attrs.frozen(eq=False, repr=False)
class TaskUnknown(Value):
    """The vendor does not know the task, or no longer (400 InvalidTaskId)."""

    command: Poll
    error: PerfectError


@attrs.frozen(eq=False, repr=False)
class TimedOut(Value):
    """The vendor's own time limit ended the task (500 "Task execution timed out"); it is final."""

    command: Poll
    error: PerfectError


@attrs.frozen(eq=False, repr=False)
class Unreadable(Value):
    """The task succeeded but its results cannot be read; it is final and the units are spent."""

    command: Poll
    error: PerfectError


@attrs.frozen(eq=False, repr=False)
class Answered(Value):
    """The query of `command` is answered."""

    command: Ask


# The rows of a key's ledger. A member is one scheduler: a process, or an event loop of it. Times
# and slots count from a moment that all members of the ledger share.

SILENT_AFTER: Final = 3 * SECOND
"""A member with work writes every second: after this long without a row from it, no other member
relies on it to keep a task alive.
"""


@attrs.frozen(eq=False, repr=False)
class SharedLimits(Value):
    """The settings that members must share; the strictest of each holds for all of them.

    `requests` per `period` and `per_second` are as in `Limits`, `lease` as in `Polling`; times in
    microseconds.
    """

    requests: int
    period: int
    per_second: int
    lease: int

    def stricter(self, other: SharedLimits) -> SharedLimits:
        """Return the stricter of both values for each setting."""
        return SharedLimits(
            min(self.requests, other.requests),
            max(self.period, other.period),
            min(self.per_second, other.per_second),
            min(self.lease, other.lease),
        )


@attrs.frozen(eq=False, repr=False)
class MemberRow(Value):
    """The state of a member; `pid` is for people to read.

    `work`: how many jobs wait for their creation. `waited_at`: when one of them last waited for its
    turn. `short`: it lacks polls to keep its tasks alive, so no member creates tasks. `held`: the
    requests that it will need for results and that are not reserved. `cycle`, `guard` and `spared`:
    the plan that its own network needs. `stepped_at`: when this row was written.
    """

    member: str
    pid: int
    limits: SharedLimits
    stepped_at: int
    work: int = 0
    running: int = 0
    waited_at: int = 0
    short: bool = False
    held: int = 0
    cycle: int = 0
    guard: int = 0
    spared: int = 0


@attrs.frozen(eq=False, repr=False)
class RequestRow(Value):
    """A request of a member that occupies the window: when it `left` and was `answered`.

    `outcome` is empty until it is answered, then `accepted`, `refused` (429) or `failed`.
    """

    member: str
    number: int
    left: int
    creates: bool = False
    answered: int | None = None
    outcome: str = ""
    retry_after: int | None = None


@attrs.frozen(eq=False, repr=False)
class TaskRow(Value):
    """A task of a member and the polls that are reserved for it.

    `next` and `last` are slots: one poll per cycle is reserved from `next` to `last`. `task_id` is
    empty until its creation is answered. `created`, `began`, `low` and `cap` are the values of
    admission. `renewed` is when its lease was last renewed. `announced`: it is known to have ended,
    and its owner has not polled it yet. `ended`: no member polls it any longer; `lost`: because the
    vendor did not know it.
    """

    member: str
    ref: int
    kind: TaskKind
    created: int
    began: int
    cap: int
    next: int
    last: int
    low: int = 0
    task_id: str = ""
    renewed: int = 0
    announced: bool = False
    ended: bool = False
    lost: bool = False


@attrs.frozen(eq=False, repr=False)
class DurationRow(Value):
    """A task of `kind` still ran at the age `low` and had ended at `high` (None: unknown)."""

    member: str
    number: int
    kind: TaskKind
    low: int
    high: int | None


@attrs.frozen(eq=False, repr=False)
class PlanRow(Value):
    """The plan of the polls of all tasks; a later plan has a larger `epoch`."""

    epoch: int
    cycle: int
    guard: int


@attrs.frozen(eq=False, repr=False)
class IntentRow(Value):
    """A creation that a member sends, or has sent, at `sent`.

    `identity` and `digest` identify its job. `state` is `sent`, `accepted` (then `task_id` names
    its task), `refused` (nothing was charged) or `doubt`.
    """

    member: str
    ref: int
    identity: str
    digest: str
    feature: str
    sent: int
    state: str = "sent"
    task_id: str = ""


@attrs.frozen(eq=False, repr=False)
class DoneRow(Value):
    """A job whose task succeeded at `at`; its result can be fetched again by `task_id`."""

    identity: str
    digest: str
    feature: str
    task_id: str
    at: int


LedgerRow: TypeAlias = (
    MemberRow | RequestRow | TaskRow | DurationRow | PlanRow | IntentRow | DoneRow
)


@attrs.frozen(eq=False, repr=False)
class LedgerRead(Value):
    """The ledger was read: `rows` are those that other members wrote since the last time.

    The ledger's lock is held. `gone` are members that left or died. `afresh`: all of the ledger was
    read, so `rows` are all its rows, and former knowledge of other members no longer counts.
    `waited`: the lock was held for so long that others may have sent reserved polls without it.
    """

    rows: tuple[LedgerRow, ...] = ()
    gone: tuple[str, ...] = ()
    afresh: bool = False
    waited: bool = False


Answer: TypeAlias = (
    NotSent
    | NoAnswer
    | Limited
    | KeyRefused
    | Refused
    | Registered
    | Uploaded
    | Accepted
    | OutOfUnits
    | Running
    | Succeeded
    | EngineFailed
    | TaskUnknown
    | TimedOut
    | Unreadable
    | Answered
)
ClientEvent: TypeAlias = (
    JobAdded
    | TaskAdopted
    | JobRejected
    | SpendingLimitOpened
    | SpendingLimitClosed
    | Notified
    | JobCancelled
    | QueryAdded
    | ChannelClosed
    | ChannelAborted
)
Failure: TypeAlias = NotSent | NoAnswer | Limited | KeyRefused | Refused
OfSubmit: TypeAlias = Accepted | OutOfUnits | Failure
OfPoll: TypeAlias = (
    Running | Succeeded | EngineFailed | TaskUnknown | TimedOut | Unreadable | Failure
)
Event: TypeAlias = ClientEvent | Issued | LedgerRead | Answer


# The interface of a driver's observers.


@attrs.frozen(eq=False, repr=False)
class Observed(Value):
    """An event that the driver gives to the scheduler, at the time `at` in UTC.

    `status` and `request_id` are those of the answer; None if the event is not an answer.
    """

    event: Event
    at: datetime
    status: int | None = None
    request_id: str | None = None


class Observer(Protocol):
    """An observer of a driver, called in the driver's event loop; its errors are logged."""

    def observe(self, observed: Observed, statistics: Callable[[], Statistics]) -> None:
        """Handle an event; `statistics` returns the state after it."""
        ...

    def leave(self) -> None:
        """Handle the end of the driver; no further event comes."""
        ...
