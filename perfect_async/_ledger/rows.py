"""The rows of a ledger as text, how long each is kept, and the interface of a ledger's store.

A row is one flat JSON array: the number of the format, the kind of row, and its fields in order. A
reader drops rows that it cannot read, since another version of this package may have written them.
All times are integer microseconds on a clock that all members share; slots are `_time.SLOT` long.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, assert_never, cast

import attrs

from perfect_async._time import NEVER, SECOND, SLOT
from perfect_async._value import Value
from perfect_async.events import (
    DoneRow,
    DurationRow,
    IntentRow,
    LedgerRow,
    MemberRow,
    PlanRow,
    RequestRow,
    SharedLimits,
    TaskKind,
    TaskRow,
)

FORMAT: Final = 1
"""The number of the rows' format; members with different formats do not share a ledger."""
MOST: Final = 2**53
"""The largest number in a row: as microseconds, 285 years."""
MOST_DURATIONS: Final = 400
"""How many durations of one kind of task are kept (`series`), the newest ones."""
PERIOD: Final = 300 * SECOND
"""The period of the limits until a member writes its own."""
AWAY: Final = 100 * SECOND
"""A member that has not read for so long reads everything again, since the end of a task may have
been written and dropped in between: it is the kind of row that is dropped first.
"""

_DAY: Final = 24 * 3600 * SECOND
_LATE: Final = 2 * SECOND
"""How long a request is kept after the period, since members read it at different times."""
_TIMEOUT: Final = 60 * SECOND
"""After this a dead member's request has reached the vendor or never will; twice the default."""
_ENDED_KEPT: Final = 120 * SECOND
_CAP_KEPT: Final = 900 * SECOND
_MOST_OUTPUTS: Final = 10_000
_CLOCKS_APART: Final = 60 * SECOND
"""The largest difference between two members' clocks."""
_MOST_AHEAD: Final = 10 * _DAY
"""The longest time that is planned or measured."""
_MOST_SLOTS: Final = 10 * _DAY // SLOT
"""The longest reservation of polls that is accepted."""
_LONGEST: Final = 4096
"""The longest text of a row, in characters."""
_DIGITS: Final = 16
"""The number of hex digits in the name of a host or a key."""
_PORTS: Final = {"https": "443", "http": "80"}
SAME_HOST: Final = {"yce-api-01.perfectcorp.com": "yce-api-01.makeupar.com"}
"""The vendor's two names of one host (contract: Base URL and headers)."""

_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False)
_OUTCOMES: Final = ("", "accepted", "refused", "failed")
_STATES: Final = ("sent", "accepted", "refused", "doubt")


class LedgerUnavailable(Exception):
    """The ledger cannot be used; the text is the reason, fit for a log line and without secrets.

    `ordinary`: the reason is no fault, such as a read-only home or a system without file locks, so
    a process that is alone on its key needs no warning.
    """

    def __init__(self, reason: str, *, ordinary: bool = False) -> None:
        super().__init__(reason)
        self.ordinary = ordinary


# The interface of a store.


@attrs.frozen(eq=False, repr=False)
class Snapshot(Value):
    """The news in a ledger whose lock is held now.

    `rows` are those that other members wrote since the last publication of this member, oldest
    first, without intents and done jobs (`find_intents`) and without unreadable rows. `gone` are
    the members that left or died since then. `now` is the shared time.

    `afresh`: this is the member's first read, or the ledger has lost rows (it was deleted, emptied
    or put back from a copy), or this member was silent for too long or was taken for dead. Then
    `rows` are all rows of others, `gone` are all members that are known to be gone, and the next
    publication must have all rows of this member.
    """

    rows: tuple[LedgerRow, ...]
    gone: tuple[str, ...]
    afresh: bool
    now: int


@attrs.frozen(eq=False, repr=False)
class MemberStatus(Value):
    """The state of a member, for people to read.

    `age` is how long ago it wrote last, in microseconds. `work`: how many jobs wait for their
    creation. `running`: how many of its tasks the vendor has.
    """

    member: str
    pid: int
    work: int
    running: int
    age: int


class LedgerStore(Protocol):
    """One member's access to the ledger of a key.

    A step is `take`, a decision that awaits nothing, and `publish`. Only one member at a time is
    between the two. Each method is an `async def`, and raises `LedgerUnavailable` if the store
    cannot be used; then nothing was written and the lock is not held. A later call may succeed.
    """

    @property
    def member(self) -> str:
        """The name of this member: 16 random hexadecimal digits."""
        ...

    @property
    def renewed_every(self) -> int:
        """How often, in microseconds, an idle member takes a step, so that it counts as living.

        NEVER if the operating system shows others that the member lives.
        """
        ...

    def take(self, within: float) -> Awaitable[Snapshot | None]:
        """Lock the ledger and read it; return None if that takes longer than `within` seconds."""
        ...

    def publish(self, rows: Sequence[LedgerRow]) -> Awaitable[bool]:
        """Write `rows`, each in place of the one with its `key`, and unlock the ledger.

        Publishing no rows records that the snapshot was read. False means that the lock was lost,
        so nothing was written and the step does not count; the next snapshot is `afresh` or has the
        same rows again.
        """
        ...

    def release(self) -> Awaitable[None]:
        """Unlock the ledger without writing; the next `take` reads the same rows again."""
        ...

    def aclose(self) -> Awaitable[None]:
        """Leave the ledger; the others read at once that this member is gone. Raises nothing."""
        ...

    def has_news(self) -> Awaitable[bool]:
        """Return whether an idle member should take a step, since others wrote, left or died.

        It asks without the lock, and costs next to nothing. A store whose `renewed_every` is short
        may always answer False.
        """
        ...

    def members(self) -> Awaitable[tuple[MemberStatus, ...]]:
        """Return all living members of the ledger, this one included, without a lock."""
        ...

    def find_intents(
        self, identity: str, digest: str
    ) -> Awaitable[tuple[IntentRow | DoneRow, ...]]:
        """Return all rows of one job, this member's included; with or without the lock."""
        ...

    def known_task(self, task_id: str) -> Awaitable[bool]:
        """Return whether `task_id` is a task of any member; with or without the lock."""
        ...


# Names.


def host_digest(base_url: str) -> str:
    """Return the name of the ledgers of a host: 16 hexadecimal digits.

    `base_url` is normalised, "scheme://host[:port][/path]". The name covers the port but not the
    path. The vendor's two host names are one host.
    """
    scheme, _, rest = base_url.partition("://")
    authority = rest.partition("/")[0]
    # An IPv6 address has colons too: "[::1]:8000".
    host, colon, port = authority.rpartition(":")
    if not colon or not port.isdigit():
        host, port = authority, _PORTS.get(scheme, "")
    host = SAME_HOST.get(host, host)
    return hashlib.sha256(f"{host}:{port}".encode()).hexdigest()[:_DIGITS]


def key_digest(api_key: str) -> str:
    """Return the name of a key's ledger: 16 hexadecimal digits, which do not reveal the key."""
    return hashlib.sha256(b"perfect_async " + api_key.encode()).hexdigest()[:_DIGITS]


def key(row: LedgerRow) -> str:
    """Return the key of `row`; a row with the same key replaces it."""
    match row:
        case MemberRow():
            return f"member {row.member}"
        case RequestRow():
            return f"request {row.member} {row.number}"
        case TaskRow():
            return f"task {row.member} {row.ref}"
        case DurationRow():
            return f"duration {row.member} {row.number}"
        case PlanRow():
            return "plan"
        case IntentRow():
            return f"intent {row.member} {row.ref}"
        case DoneRow():
            return f"done {job(row)}"
        case _:
            assert_never(row)


def job(row: IntentRow | DoneRow) -> str:
    """Return the text by which `find_intents` finds the job of `row`."""
    return job_name(row.identity, row.digest)


def job_name(identity: str, digest: str) -> str:
    """Return the text that stands for a job in a ledger."""
    # It begins with the length, since an identity may have a space in it.
    return f"{len(identity)} {identity} {digest}"


def task_id(row: LedgerRow) -> str:
    """Return the task that `row` names; empty if it names none."""
    match row:
        case TaskRow() | IntentRow() | DoneRow():
            return row.task_id
        case _:
            return ""


def series(row: LedgerRow) -> str:
    """Return the series of `row`, whose newest `MOST_DURATIONS` are kept; empty if all are kept."""
    if isinstance(row, DurationRow):
        return f"{row.kind.outputs} {row.kind.feature}"
    return ""


# How long rows are kept.


def kept_until(row: LedgerRow, written: int, *, period: int) -> int:
    """Return the time after which `row` is dropped; `NEVER` if it is not dropped by time.

    `written` is when it was published. `period` is the longest for which a member counts requests.
    A member's row is dropped when the member is gone, its unanswered requests by `kept_when_gone`,
    and the oldest durations by `series`.
    """
    match row:
        case RequestRow() if row.answered is not None:
            return row.answered + period + _LATE
        case TaskRow() if row.ended:
            return written + _ENDED_KEPT
        case TaskRow():
            return row.cap + _CAP_KEPT
        case IntentRow():
            return row.sent + _DAY
        case DoneRow():
            return row.at + _DAY
        case MemberRow() | RequestRow() | DurationRow() | PlanRow():
            return NEVER
        case _:
            assert_never(row)


def kept_when_gone(gone: int, *, period: int) -> int:
    """Return the time after which an unanswered request of a member is dropped.

    `gone` is when the member left or died.
    """
    return gone + _TIMEOUT + period


def longest_period(rows: Iterable[LedgerRow], period: int) -> int:
    """Return the longest of `period` and the periods of the members among `rows`."""
    for row in rows:
        if isinstance(row, MemberRow):
            period = max(period, row.limits.period)
    return period


def status(row: MemberRow, now: int) -> MemberStatus:
    """Return the state of the member of `row`, for people to read."""
    age = max(0, now - row.stepped_at)
    return MemberStatus(row.member, row.pid, row.work, row.running, age)


# Checks of rows.


def believable(row: LedgerRow, now: int) -> bool:
    """Return whether `row`, read at `now`, has plausible values.

    It has not if its member uses another clock, or if the file is damaged. Such a row could use up
    all memory, or block every member for ever.
    """
    soon, ahead = now + _CLOCKS_APART, now + _MOST_AHEAD
    match row:
        case MemberRow(limits=limits):
            return (
                max(row.stepped_at, row.waited_at) <= soon
                and _is_plan(row.cycle, row.guard)
                and limits.period <= _MOST_AHEAD
                and limits.lease >= SECOND
            )
        case RequestRow():
            latest = row.left if row.answered is None else max(row.left, row.answered)
            return latest <= soon and (row.retry_after or 0) <= _DAY
        case TaskRow():
            return (
                max(row.created, row.began, row.renewed) <= soon
                and max(row.cap, row.last * SLOT) <= ahead
                and row.low <= _MOST_AHEAD
                and (row.next > row.last or row.next * SLOT >= now - _DAY)
            )
        case DurationRow():
            return max(row.low, row.high or 0) <= _MOST_AHEAD
        case PlanRow():
            return _is_plan(row.cycle, row.guard)
        case IntentRow():
            return row.sent <= soon
        case DoneRow():
            return row.at <= soon
        case _:
            assert_never(row)


def _is_plan(cycle: int, guard: int) -> bool:
    return 1 <= cycle * SLOT <= _DAY and guard <= _TIMEOUT


# Rows in the time of one member.


def shifted(row: LedgerRow, by: int) -> LedgerRow:
    """Return `row` with all its times moved by `by`, a multiple of `SLOT`."""
    match row:
        case MemberRow():
            return attrs.evolve(row, stepped_at=row.stepped_at + by, waited_at=row.waited_at + by)
        case RequestRow():
            answered = None if row.answered is None else row.answered + by
            return attrs.evolve(row, left=row.left + by, answered=answered)
        case TaskRow():
            return attrs.evolve(
                row,
                created=row.created + by,
                began=row.began + by,
                cap=row.cap + by,
                renewed=row.renewed + by,
                next=row.next + by // SLOT,
                last=row.last + by // SLOT,
            )
        case IntentRow():
            return attrs.evolve(row, sent=row.sent + by)
        case DoneRow():
            return attrs.evolve(row, at=row.at + by)
        case _:
            # Durations and plans hold no times.
            return row


# Rows as text.


def encode(row: LedgerRow) -> str:
    """Return `row` as text for `decode`, ASCII only."""
    return _ENCODER.encode([FORMAT, *_fields(row)])


def decode(text: object) -> LedgerRow | None:
    """Return the row that `encode` wrote; None if `text` is not a row of this format."""
    try:
        found = cast("object", json.loads(text if isinstance(text, str) else ""))
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list):
        return None
    fields = cast("list[object]", found)
    if len(fields) < 2 or type(fields[0]) is not int or fields[0] != FORMAT:  # noqa: PLR2004 - format, kind
        return None
    kind = fields[1]
    known = _READERS.get(kind) if isinstance(kind, str) else None
    if known is None or len(fields) != known[0]:
        return None
    try:
        return known[1](_Fields(fields))
    except _Unreadable:
        return None


def _fields(row: LedgerRow) -> tuple[object, ...]:
    match row:
        case MemberRow(limits=limits):
            return (
                *("member", row.member, row.pid),
                *(limits.requests, limits.period, limits.per_second, limits.lease),
                *(row.stepped_at, row.work, row.running, row.waited_at, row.short),
                *(row.held, row.cycle, row.guard, row.spared),
            )
        case RequestRow():
            return (
                *("request", row.member, row.number, row.left, row.creates),
                *(row.answered, row.outcome, row.retry_after),
            )
        case TaskRow():
            return (
                *("task", row.member, row.ref, *_kind_fields(row.kind)),
                *(row.created, row.began, row.cap, row.next, row.last, row.low),
                *(row.task_id, row.renewed, row.announced, row.ended, row.lost),
            )
        case DurationRow():
            return (
                *("duration", row.member, row.number, *_kind_fields(row.kind)),
                *(row.low, row.high),
            )
        case PlanRow():
            return "plan", row.epoch, row.cycle, row.guard
        case IntentRow():
            return (
                *("intent", row.member, row.ref, row.identity, row.digest),
                *(row.feature, row.sent, row.state, row.task_id),
            )
        case DoneRow():
            return "done", row.identity, row.digest, row.feature, row.task_id, row.at
        case _:
            assert_never(row)


def _kind_fields(kind: TaskKind) -> tuple[object, ...]:
    return kind.feature, kind.outputs, *(kind.usual or (None, None))


class _Unreadable(ValueError):
    """A field of a row has a wrong type or value."""


class _Fields:
    """The fields of a row after its format and kind, taken one by one in order."""

    __slots__ = ("_left",)

    def __init__(self, fields: list[object]) -> None:
        self._left = iter(fields[2:])

    def text(self) -> str:
        value = next(self._left)
        if type(value) is not str or len(value) > _LONGEST:
            raise _Unreadable
        return value

    def name(self) -> str:
        value = self.text()
        if not value:
            raise _Unreadable
        return value

    def one_of(self, known: tuple[str, ...]) -> str:
        value = self.text()
        if value not in known:
            raise _Unreadable
        return value

    def flag(self) -> bool:
        value = next(self._left)
        if type(value) is not bool:
            raise _Unreadable
        return value

    def number(self, least: int = 0, most: int = MOST) -> int:
        value = next(self._left)
        if type(value) is not int or not least <= value <= most:
            raise _Unreadable
        return value

    def number_or_none(self, least: int = 0) -> int | None:
        value = next(self._left)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= MOST:
            raise _Unreadable
        return value

    def time(self) -> int:
        """Return a time; it may be negative, since times count from a chosen moment."""
        return self.number(-MOST)

    def kind(self) -> TaskKind:
        feature, outputs = self.name(), self.number(1, _MOST_OUTPUTS)
        low, high = self.number_or_none(), self.number_or_none()
        if low is None and high is None:
            return TaskKind(feature, outputs)
        if low is None or high is None or low > high:
            raise _Unreadable
        return TaskKind(feature, outputs, (low, high))


def _read_member(fields: _Fields) -> MemberRow:
    return MemberRow(
        member=fields.name(),
        pid=fields.number(),
        limits=SharedLimits(
            requests=fields.number(1),
            period=fields.number(1),
            per_second=fields.number(1),
            lease=fields.number(1),
        ),
        stepped_at=fields.time(),
        work=fields.number(),
        running=fields.number(),
        waited_at=fields.time(),
        short=fields.flag(),
        held=fields.number(),
        cycle=fields.number(),
        guard=fields.number(),
        spared=fields.number(),
    )


def _read_request(fields: _Fields) -> RequestRow:
    return RequestRow(
        member=fields.name(),
        number=fields.number(-MOST),
        left=fields.time(),
        creates=fields.flag(),
        answered=fields.number_or_none(-MOST),
        outcome=fields.one_of(_OUTCOMES),
        retry_after=fields.number_or_none(),
    )


def _read_task(fields: _Fields) -> TaskRow:
    row = TaskRow(
        member=fields.name(),
        ref=fields.number(-MOST),
        kind=fields.kind(),
        created=fields.time(),
        began=fields.time(),
        cap=fields.time(),
        next=fields.number(-MOST),
        last=fields.number(-MOST),
        low=fields.number(-MOST),
        task_id=fields.text(),
        renewed=fields.time(),
        announced=fields.flag(),
        ended=fields.flag(),
        lost=fields.flag(),
    )
    if row.last - row.next > _MOST_SLOTS:
        raise _Unreadable
    return row


def _read_duration(fields: _Fields) -> DurationRow:
    return DurationRow(
        member=fields.name(),
        number=fields.number(-MOST),
        kind=fields.kind(),
        low=fields.number(),
        high=fields.number_or_none(),
    )


def _read_plan(fields: _Fields) -> PlanRow:
    return PlanRow(epoch=fields.number(), cycle=fields.number(1), guard=fields.number())


def _read_intent(fields: _Fields) -> IntentRow:
    return IntentRow(
        member=fields.name(),
        ref=fields.number(-MOST),
        identity=fields.text(),
        digest=fields.text(),
        feature=fields.text(),
        sent=fields.time(),
        state=fields.one_of(_STATES),
        task_id=fields.text(),
    )


def _read_done(fields: _Fields) -> DoneRow:
    return DoneRow(
        identity=fields.text(),
        digest=fields.text(),
        feature=fields.text(),
        task_id=fields.text(),
        at=fields.time(),
    )


_READERS: Final[Mapping[str, tuple[int, Callable[[_Fields], LedgerRow]]]] = {
    "member": (17, _read_member),
    "request": (9, _read_request),
    "task": (19, _read_task),
    "duration": (10, _read_duration),
    "plan": (5, _read_plan),
    "intent": (10, _read_intent),
    "done": (7, _read_done),
}
"""The length of each kind of row's array, and the function that reads it."""
