"""The commands of the scheduler (imperative) and the events that the driver reports (past tense).

A job is known by its `ref`, a number that the driver gives; a command that goes over the wire by
its `number`, which the scheduler gives. Every command that was issued ends in exactly one event
that carries it. A poll that is silent for long is sent again beside the first one, whose own end is
reported too. Times are integer microseconds, here and in the whole scheduler.
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
    """Tasks that last alike: equal `feature`, equal number of `outputs` (pictures that come back).

    `usual` is the shortest and longest documented duration, None where none is documented.
    """

    feature: str
    outputs: int = 1
    usual: tuple[int, int] | None = attrs.field(default=None, eq=False)


# Commands.


@attrs.frozen(eq=False, repr=False)
class Register(Value):
    """Register the files of `refs` with one call; `feature` names the path, None the usual one.

    A job's first picture has the number of the job, and others have numbers of their own.
    """

    number: int
    refs: tuple[int, ...]
    feature: str | None


@attrs.frozen(eq=False, repr=False)
class Upload(Value):
    """Put the bytes of `ref` where its registration said. It costs no request of the limits."""

    number: int
    ref: int


@attrs.frozen(eq=False, repr=False)
class Submit(Value):
    """Create the task of `ref`. It spends units and is never repeated blindly."""

    number: int
    ref: int


@attrs.frozen(eq=False, repr=False)
class Poll(Value):
    """Ask for the state of the task of `ref`."""

    number: int
    ref: int


@attrs.frozen(eq=False, repr=False)
class Rescue(Poll):
    """Poll the task of another member of the key, which should have done so a moment ago.

    `ref` is a number below 0, `feature` and `task_id` name the task.
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
    """Report how `ref` ended; `units` is what it cost, less what came back."""

    ref: int
    ending: Succeeded | PerfectError
    units: float


Request: TypeAlias = Register | Submit | Poll | Ask
Command: TypeAlias = Request | Upload | Settle

# Events.


@attrs.frozen(eq=False, repr=False)
class JobAdded(Value):
    """A job came in.

    `channel`: one client on one transport; files are registered together only within it. `uploads`:
    its picture must be registered and uploaded. `more`: numbers of further pictures of it, which
    must be at the vendor too before it is created; `Register` and `Upload` name them. `units`: its
    documented price. `spending_limits`: the limits that its units count against
    (`SpendingLimitOpened`). `alone`: it is created while no other creation is under way, so that
    the unit history can tell what became of one without an answer. `give_up` (at most that of all
    jobs) and `engine_retries` hold for this job alone, None: as for all.
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
    """A job came in whose task exists already. It is polled at once, since its lease is unknown.

    `age` is how long ago it was created, as far as anybody knows; the rest as in `JobAdded`.
    """

    ref: int
    kind: TaskKind
    units: float
    task_id: str
    channel: int = 0
    age: int = 0


@attrs.frozen(eq=False, repr=False)
class JobRejected(Value):
    """A job came in whose end is known already: `error`, which says what is at stake."""

    ref: int
    error: PerfectError
    channel: int = 0


@attrs.frozen(eq=False, repr=False)
class SpendingLimitOpened(Value):
    """Jobs that name `spending_limit` may be charged `most` units together."""

    spending_limit: int
    most: float


@attrs.frozen(eq=False, repr=False)
class SpendingLimitClosed(Value):
    """No job that names `spending_limit` comes any more."""

    spending_limit: int


@attrs.frozen(eq=False, repr=False)
class Notified(Value):
    """The vendor says that the task of `ref` has ended. It still has to be polled."""

    ref: int


@attrs.frozen(eq=False, repr=False)
class JobCancelled(Value):
    """Nobody waits for `ref`: it is not created, or kept to its end and not created again."""

    ref: int


@attrs.frozen(eq=False, repr=False)
class QueryAdded(Value):
    """A query came in; `ref` is its own, `channel` the client's.

    `repeats`: it may be sent again where no answer came. `urgent`: units depend on the answer, so
    it leaves before what is not reserved. `lasting`: it is also sent while its channel closes.
    """

    ref: int
    channel: int = 0
    repeats: bool = True
    urgent: bool = False
    lasting: bool = False


@attrs.frozen(eq=False, repr=False)
class ChannelClosed(Value):
    """`channel` creates nothing more; its running tasks are kept alive."""

    channel: int = 0


@attrs.frozen(eq=False, repr=False)
class ChannelAborted(Value):
    """`channel` ends now: none of its tasks is polled any longer, running ones are abandoned."""

    channel: int = 0


@attrs.frozen(eq=False, repr=False)
class Issued(Value):
    """`command` is being performed. Reported before the scheduler is asked again."""

    command: Command


@attrs.frozen(eq=False, repr=False)
class NotSent(Value):
    """`command` certainly did not reach the vendor (never connected, or it could not be written
    down).

    `unwritten`: the ledger of the key did not take it, so it was not even tried. It occupies no
    window.
    """

    command: Request | Upload
    error: PerfectError
    unwritten: bool = False


@attrs.frozen(eq=False, repr=False)
class NoAnswer(Value):
    """`command` went out and no usable answer came back: hung, dropped, 5xx, malformed."""

    command: Request | Upload
    error: PerfectError


@attrs.frozen(eq=False, repr=False)
class Limited(Value):
    """429 to `command`: not executed, but it counts against the limits.

    `retry_after` is None where the answer named none.
    """

    command: Request
    error: PerfectError
    retry_after: int | None = None


@attrs.frozen(eq=False, repr=False)
class KeyRefused(Value):
    """401 to `command`: final for the whole client, but to a poll only when it comes again."""

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
    """Where and how one registered picture is uploaded; `url` is signed and shows in no repr."""

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
    """The vendor has the picture's bytes."""

    command: Upload


@attrs.frozen(eq=False, repr=False)
class Accepted(Value):
    """The task exists and its units are taken.

    `interval` is the polling interval that the vendor asks for, None if not given.
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
    """The task still runs and its lease is renewed. `polling_interval` is None if not given."""

    command: Poll
    polling_interval: int | None = None


@attrs.frozen(eq=False, repr=False)
class Succeeded(Value):
    """The task succeeded; `urls` are signed and show in no repr.

    `results` is what the vendor answered, decoded and whole; None where it was not asked.
    """

    command: Poll
    urls: tuple[str, ...] = attrs.field(repr=lambda urls: f"<{len(urls)} urls>")
    results: object = attrs.field(default=None, repr=False, eq=False)


@attrs.frozen(eq=False, repr=False)
class EngineFailed(Value):
    """The engine failed and the units come back; `passing`: another try may succeed."""

    command: Poll
    error: PerfectError
    passing: bool


@attrs.frozen(eq=False, repr=False)
class TaskUnknown(Value):
    """400 InvalidTaskId: the vendor does not know the task (any longer)."""

    command: Poll
    error: PerfectError


@attrs.frozen(eq=False, repr=False)
class TimedOut(Value):
    """500 "Task execution timed out": final."""

    command: Poll
    error: PerfectError


@attrs.frozen(eq=False, repr=False)
class Unreadable(Value):
    """The task succeeded and nothing can be read from its results: final, the units are spent."""

    command: Poll
    error: PerfectError


@attrs.frozen(eq=False, repr=False)
class Answered(Value):
    """The query of `command` is answered."""

    command: Ask


# What the members of one key tell each other. A member is one scheduler: a process, or an event
# loop of it. Times and slots count from a moment that all members of the ledger share.

SILENT_AFTER: Final = 3 * SECOND
"""A member with work writes every second: after this long without a row from it, no other member
relies on it to keep a task alive.
"""


@attrs.frozen(eq=False, repr=False)
class SharedLimits(Value):
    """The settings of a member that must hold for all: the strictest of each does.

    `requests` per `period` and `per_second` as in `Limits`, `lease` as in `Polling`; times in
    microseconds.
    """

    requests: int
    period: int
    per_second: int
    lease: int

    def stricter(self, other: SharedLimits) -> SharedLimits:
        """The strictest of both, setting by setting."""
        return SharedLimits(
            min(self.requests, other.requests),
            max(self.period, other.period),
            min(self.per_second, other.per_second),
            min(self.lease, other.lease),
        )


@attrs.frozen(eq=False, repr=False)
class MemberRow(Value):
    """How a member stands; `pid` is for people to read.

    `work`: jobs that wait for their creation. `waited_at`: when one of them last waited for its
    turn. `short`: polls are missing that keep its tasks alive, so nobody creates. `held`: requests
    that it will need for results and that are not reserved. `cycle`, `guard`
    and `spared`: the plan that its own network asks for. `stepped_at`: when this was written.
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

    `outcome`: empty while it is not answered, else `accepted`, `refused` (429) or `failed`.
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

    `next` and `last` are slots: one poll a cycle from `next` to `last`. `task_id` is empty while
    its creation is not answered. `created`, `began`, `low`, `cap` as admission sees it; `renewed`
    is when its lease was last renewed. `announced`: it is known to have ended, and its owner has
    not asked yet. `ended`: nobody polls it any longer; `lost`: since the vendor did not know it.
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
    """A task of `kind` ran at the age `low`, and had ended by `high` (None: unknown)."""

    member: str
    number: int
    kind: TaskKind
    low: int
    high: int | None


@attrs.frozen(eq=False, repr=False)
class PlanRow(Value):
    """The plan that all tasks are polled by; a later one has a larger `epoch`."""

    epoch: int
    cycle: int
    guard: int


@attrs.frozen(eq=False, repr=False)
class IntentRow(Value):
    """A creation that a member sent or is about to send, at `sent`.

    `identity` and `digest` say which job it is for. `state`: `sent`, `accepted` (then `task_id`
    names its task), `refused` (nothing was charged), or `doubt`.
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
    """A job whose task succeeded at `at`: its result can be fetched again by `task_id`."""

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
    """What other members wrote since the last time; the ledger's lock is held.

    `gone` are members that left or died. `afresh`: the ledger was new, so `rows` are all that there
    are, and what was known of other members no longer counts.
    """

    rows: tuple[LedgerRow, ...] = ()
    gone: tuple[str, ...] = ()
    afresh: bool = False


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


# What observers of a driver are told.


@attrs.frozen(eq=False, repr=False)
class Observed(Value):
    """An event as the driver hands it to the scheduler, `at` in UTC, with what the wire said.

    `status` and `request_id` are those of the answer, None where none came or it was no answer.
    """

    event: Event
    at: datetime
    status: int | None = None
    request_id: str | None = None


class Observer(Protocol):
    """Somebody who watches a driver, in its event loop; errors are logged, and nothing waits."""

    def observe(self, observed: Observed, statistics: Callable[[], Statistics]) -> None:
        """Take note of an event; `statistics` describes the state after it."""
        ...

    def leave(self) -> None:
        """Take note that the driver has ended: nothing more comes of it."""
        ...
