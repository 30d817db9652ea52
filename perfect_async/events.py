"""What happened (past tense) and what to do (imperative): the words between scheduler and driver.

A job is known by its `ref`, a number that the driver gives; a command that goes over the wire by
its `number`, which the scheduler gives. Every command that was issued ends in exactly one piece of
news that carries it (a poll that is silent for long is asked again beside, but its own end comes
too). Times are integer microseconds, here and in all of the thought.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs

from perfect_async.errors import PerfectError

# Imperative: what the scheduler asks for.


@attrs.frozen
class Register:
    """Register the files of `refs` with one call; `feature` names the path, None the usual one."""

    number: int
    refs: tuple[int, ...]
    feature: str | None


@attrs.frozen
class Upload:
    """Put the bytes of `ref` where its registration said; costs no request."""

    number: int
    ref: int


@attrs.frozen
class Submit:
    """Create the task of `ref`: spends units, and is never repeated blindly."""

    number: int
    ref: int


@attrs.frozen
class Poll:
    """Ask for the state of the task of `ref`."""

    number: int
    ref: int


@attrs.frozen
class Ask:
    """Send the question `ref` (templates, units, prices, history, delete)."""

    number: int
    ref: int


@attrs.frozen
class Settle:
    """Tell who waits for `ref` how it ended; `units` is what it cost, net of what came back."""

    ref: int
    ending: Succeeded | PerfectError
    units: float


Request: TypeAlias = Register | Submit | Poll | Ask
Command: TypeAlias = Request | Upload | Settle

# Past tense: what the driver reports.


@attrs.frozen
class Wanted:
    """A job came in.

    `channel`: files are registered together only within one lane (one client, one transport).
    `uploads`: its picture must be registered and uploaded. `units`: its documented price.
    `outputs`: pictures that come back. `usual`: the shortest and longest duration that are
    documented, None where none are. `purses`: whose ceilings it counts against (`Opened`). `alone`:
    it is created while no other creation is under way, so that the unit history can tell what
    became of one without an answer.
    """

    ref: int
    feature: str
    units: float
    uploads: bool
    channel: int = 0
    outputs: int = 1
    usual: tuple[int, int] | None = None
    purses: tuple[int, ...] = ()
    alone: bool = False


@attrs.frozen
class Adopted:
    """A task came in that exists already: it is asked for now, since its lease is unknown.

    `age` is how long ago it was created, in microseconds, as far as anybody knows; the rest as in
    `Wanted`.
    """

    ref: int
    feature: str
    units: float
    task_id: str
    channel: int = 0
    outputs: int = 1
    usual: tuple[int, int] | None = None
    age: int = 0


@attrs.frozen
class Forgone:
    """A job came in whose end is known already: `error`, which says what is at stake."""

    ref: int
    error: PerfectError
    channel: int = 0


@attrs.frozen
class Opened:
    """Jobs with `ceiling` among their purses may be charged `most` units together."""

    ceiling: int
    most: float


@attrs.frozen
class Emptied:
    """No job with `ceiling` comes any more."""

    ceiling: int


@attrs.frozen
class Notified:
    """The vendor says that the task of `ref` has ended; it has to be asked."""

    ref: int


@attrs.frozen
class Withdrawn:
    """Nobody waits for `ref`: it is not created, or kept to its end and not tried again."""

    ref: int


@attrs.frozen
class Asked:
    """A question came in; `ref` is its own, `channel` the client's.

    `repeats`: it may be asked again where no answer came. `urgent`: units depend on the answer, so
    that it leaves before what is not promised. `lasting`: it is asked also while its lane closes.
    """

    ref: int
    channel: int = 0
    repeats: bool = True
    urgent: bool = False
    lasting: bool = False


@attrs.frozen
class Closed:
    """Lane `channel` creates nothing more; what runs in it is kept."""

    channel: int = 0


@attrs.frozen
class Dropped:
    """Lane `channel` ends now: nothing of it is polled any longer, what runs is abandoned."""

    channel: int = 0


@attrs.frozen
class Issued:
    """`command` is being performed; said before anything else is asked for."""

    command: Command


@attrs.frozen
class NotSent:
    """`command` certainly did not reach the vendor (never connected, or it could not be written
    down).
    """

    command: Request | Upload
    error: PerfectError


@attrs.frozen
class NoAnswer:
    """`command` went out and nothing usable came back: hung, dropped, 5xx, malformed."""

    command: Request | Upload
    error: PerfectError


@attrs.frozen
class Limited:
    """429 to `command`: not executed, and counted all the same. `retry_after` in microseconds, if
    said.
    """

    command: Request
    error: PerfectError
    retry_after: int | None = None


@attrs.frozen
class KeyRefused:
    """401 to `command`."""

    command: Request
    error: PerfectError


@attrs.frozen
class Refused:
    """The vendor read `command` and said no: final for it. `status` is the HTTP status."""

    command: Request | Upload
    error: PerfectError
    status: int


@attrs.frozen
class FileGrant:
    """Where and how one registered picture goes up; `url` is signed and shows in no repr."""

    file_id: str = attrs.field(repr=False)
    method: str
    url: str = attrs.field(repr=False)
    headers: tuple[tuple[str, str], ...]


@attrs.frozen
class Registered:
    """The vendor took the files, in the order of `command.refs`."""

    command: Register
    grants: tuple[FileGrant, ...]


@attrs.frozen
class Uploaded:
    """The picture's bytes are at the vendor."""

    command: Upload


@attrs.frozen
class Accepted:
    """The task exists and its units are taken; `polling_interval` in microseconds, if given."""

    command: Submit
    task_id: str
    polling_interval: int | None = None


@attrs.frozen
class OutOfUnits:
    """The balance does not cover the job of `command`; nothing was charged."""

    command: Submit
    error: PerfectError


@attrs.frozen
class Running:
    """The task runs on and its lease is renewed; `polling_interval` in microseconds, if said."""

    command: Poll
    polling_interval: int | None = None


@attrs.frozen
class Succeeded:
    """The task is done; `urls` are signed and show in no repr."""

    command: Poll
    urls: tuple[str, ...] = attrs.field(repr=lambda urls: f"<{len(urls)} urls>")


@attrs.frozen
class EngineFailed:
    """The engine gave up and the units come back; `passing`: another try may do it."""

    command: Poll
    error: PerfectError
    passing: bool


@attrs.frozen
class TaskUnknown:
    """400 InvalidTaskId: the vendor does not know the task (any longer)."""

    command: Poll
    error: PerfectError


@attrs.frozen
class TimedOut:
    """500 "Task execution timed out": final."""

    command: Poll
    error: PerfectError


@attrs.frozen
class Unreadable:
    """The task succeeded and nothing can be read from its results: final, the units are spent."""

    command: Poll
    error: PerfectError


@attrs.frozen
class Answered:
    """The question of `command` is answered."""

    command: Ask


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
Failure: TypeAlias = NotSent | NoAnswer | Limited | KeyRefused | Refused
OfSubmit: TypeAlias = Accepted | OutOfUnits | Failure
OfPoll: TypeAlias = (
    Running | Succeeded | EngineFailed | TaskUnknown | TimedOut | Unreadable | Failure
)
Event: TypeAlias = (
    Wanted
    | Adopted
    | Forgone
    | Opened
    | Emptied
    | Notified
    | Withdrawn
    | Asked
    | Closed
    | Dropped
    | Issued
    | Answer
)
