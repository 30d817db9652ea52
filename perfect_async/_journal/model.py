"""The entries of a journal, and the state of each job as their fold.

A job has a few entries, named in the past tense. A transition table folds them to the state of the
job, both while they are written and when they are read again. A job is over once its end was
reported and, if requested, its copies at the vendor are deleted; the state then drops it. All times
are UTC microseconds since 1970.

    Entered ──> ENTERED ── Creating ──> CREATING ── Created ──> RUNNING ── Ended(done) ──> DONE
    CREATING ── NotCreated ──> ENTERED        RUNNING ── Returned ──> ENTERED
    anything ── Ended(failed, lost, doubt, unsent) ──> ENDED
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, cast, get_args

import attrs

from perfect_async._value import Value

_MOST_UNITS: Final = 1e15
_MOST_OUTPUTS: Final = 10_000
_MOST_INPUTS: Final = 10_000

MOST: Final = 2**53
"""The largest number in a journal; as a time, it is in the year 2255."""


class Phase(Enum):
    """The phase of a job."""

    ENTERED = auto()
    CREATING = auto()
    RUNNING = auto()
    DONE = auto()
    ENDED = auto()


EndKind: TypeAlias = Literal["done", "failed", "lost", "doubt", "unsent"]
SourceKind: TypeAlias = Literal["path", "url", "file", "bytes", "none"]


def source_digest(digest: str | None, place: str | None) -> str | None:
    """Return a SHA-256 that identifies a picture, or None without both arguments.

    It is the `digest` of the bytes, or else that of the `place` (a URL or a file id).
    """
    if digest is not None or place is None:
        return digest
    return hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()


def joined_digest(digests: Sequence[str | None]) -> str | None:
    """Return a SHA-256 that identifies several pictures, or None if one of them has no digest.

    For a single picture it is the digest of that picture.
    """
    if not digests or None in digests:
        return None
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


class IllegalEntry(Exception):
    """An entry that the phase of its job does not allow: a bug, or a damaged journal."""


class Damaged(ValueError):
    """A row of a journal that is not an entry; the message names the field and quotes nothing."""


@attrs.frozen(eq=False, repr=False)
class StoredInput(Value):
    """One input of a job, without its bytes.

    `place` is a path, a URL or a file id, according to `kind`; None if it is not kept. `digest` is
    the SHA-256 of the picture, or of a signed URL; None for other URLs and for file ids.
    """

    kind: SourceKind
    place: str | None = attrs.field(repr=False)
    digest: str | None

    @property
    def source_digest(self) -> str | None:
        """A SHA-256 that identifies the picture; None for a signed URL."""
        return None if self.is_signed else source_digest(self.digest, self.place)

    @property
    def is_signed(self) -> bool:
        """Whether the picture is at a signed URL, which is not kept."""
        return self.kind == "url" and self.place is None


NO_STORED_INPUT: Final = StoredInput("none", None, None)
"""The input of a job that has none."""


@attrs.frozen(eq=False, repr=False)
class StoredJob(Value):
    """A submitted job, without its picture, API key or signed URLs.

    `identity` and `stem` name its results; `sure` says whether equal identities mean equal jobs.
    `feature` includes a version other than v2.0, as in "skin-analysis@v2.1". `kind`, `place` and
    `digest` are those of the first input; `more` holds the other inputs. `save_to` is the folder
    for the results; `delete` says whether the vendor's copies are to be deleted.
    """

    identity: str
    sure: bool
    stem: str
    feature: str
    units: float
    outputs: int
    parameters: tuple[tuple[str, str | int], ...]
    key: str | None
    kind: SourceKind
    place: str | None = attrs.field(repr=False)
    digest: str | None
    save_to: str | None
    delete: bool
    more: tuple[StoredInput, ...] = ()

    @property
    def inputs(self) -> tuple[StoredInput, ...]:
        """The inputs in order; there may be none."""
        if self.kind == "none":
            return ()
        return (StoredInput(self.kind, self.place, self.digest), *self.more)

    @property
    def source_digest(self) -> str | None:
        """A SHA-256 that identifies the pictures; None without inputs or with a signed URL."""
        return joined_digest([each.source_digest for each in self.inputs])


# The entries. The names in `ENTRY_TYPES` are part of the file format.


@attrs.frozen(eq=False, repr=False)
class Entered(Value):
    """The job was submitted."""

    job: int
    at: int
    stored: StoredJob


@attrs.frozen(eq=False, repr=False)
class Uploaded(Value):
    """The picture of the input `number`, counted from 0, was uploaded."""

    job: int
    at: int
    file_id: str = attrs.field(repr=False)
    number: int = 0


@attrs.frozen(eq=False, repr=False)
class Creating(Value):
    """The creation is about to be sent: units may be charged from now on.

    `intent` is the key of the creation's row in the ledger; empty if the key is not shared.
    """

    job: int
    at: int
    intent: str = ""


@attrs.frozen(eq=False, repr=False)
class NotCreated(Value):
    """The vendor certainly did not execute the creation."""

    job: int
    at: int


@attrs.frozen(eq=False, repr=False)
class Created(Value):
    """The vendor created the task."""

    job: int
    at: int
    task_id: str


@attrs.frozen(eq=False, repr=False)
class Returned(Value):
    """The engine failed the task, and its units were returned; the job may be created again."""

    job: int
    at: int


@attrs.frozen(eq=False, repr=False)
class Ended(Value):
    """The job ended."""

    job: int
    at: int
    end: EndKind


@attrs.frozen(eq=False, repr=False)
class Saved(Value):
    """The results are on the disk."""

    job: int
    at: int


@attrs.frozen(eq=False, repr=False)
class Reported(Value):
    """The caller knows how the job ended."""

    job: int
    at: int


@attrs.frozen(eq=False, repr=False)
class Deleted(Value):
    """The vendor's copies were deleted."""

    job: int
    at: int


JournalEntry: TypeAlias = (
    Entered
    | Uploaded
    | Creating
    | NotCreated
    | Created
    | Returned
    | Ended
    | Saved
    | Reported
    | Deleted
)
ENTRY_TYPES: Final[Mapping[str, type[JournalEntry]]] = {
    # Format 1 calls `Reported` "Told".
    "Told" if kind is Reported else kind.__name__: kind
    for kind in get_args(JournalEntry)
}
_NAMES: Final[Mapping[type[JournalEntry], str]] = {kind: name for name, kind in ENTRY_TYPES.items()}


@attrs.frozen(eq=False, repr=False)
class JobSnapshot(Value):
    """The state of one job; `since` is the time just before its last creation was sent.

    `intent` is the key of that creation's row in the ledger, if it has one.
    `file_id` is the id of the first input once it was uploaded; `more_ids` holds the number and the
    id of the other uploaded inputs.
    """

    job: int
    stored: StoredJob
    phase: Phase = Phase.ENTERED
    file_id: str | None = attrs.field(default=None, repr=False)
    task_id: str | None = None
    since: int = 0
    end: EndKind | None = None
    saved: bool = False
    reported: bool = False
    deleted: bool = False
    more_ids: tuple[tuple[int, str], ...] = attrs.field(default=(), repr=False)
    intent: str = ""

    @property
    def file_ids(self) -> tuple[str, ...]:
        """The ids of all inputs that the vendor has."""
        given = {n: each.place for n, each in enumerate(self.stored.inputs) if each.kind == "file"}
        found = {0: self.file_id, **dict(self.more_ids), **given}
        return tuple(each for each in found.values() if each is not None)

    @property
    def in_doubt(self) -> bool:
        """Whether it is unknown if the job has a task."""
        return self.phase is Phase.CREATING or self.end == "doubt"

    @property
    def over(self) -> bool:
        """Whether the job needs no further work."""
        copies = self.saved and self.stored.delete and not self.deleted
        return self.reported and not copies


# The entries that each phase allows, and the phase after them. `_ENDS` is the table for `Ended`.
_LEADS: Final[Mapping[tuple[Phase, type[JournalEntry]], Phase]] = {
    (Phase.ENTERED, Uploaded): Phase.ENTERED,
    (Phase.ENTERED, Creating): Phase.CREATING,
    (Phase.CREATING, Creating): Phase.CREATING,
    (Phase.CREATING, NotCreated): Phase.ENTERED,
    (Phase.CREATING, Created): Phase.RUNNING,
    (Phase.RUNNING, Returned): Phase.ENTERED,
    (Phase.DONE, Saved): Phase.DONE,
    (Phase.DONE, Reported): Phase.DONE,
    (Phase.DONE, Deleted): Phase.DONE,
    (Phase.ENDED, Reported): Phase.ENDED,
    # After a restart, the task may be found in the unit history, or its creation be sent again.
    (Phase.ENDED, Created): Phase.RUNNING,
    (Phase.ENDED, Creating): Phase.CREATING,
    (Phase.ENDED, Uploaded): Phase.ENDED,
}
_ENDS: Final[Mapping[Phase, frozenset[EndKind]]] = {
    Phase.ENTERED: frozenset({"failed", "unsent"}),
    Phase.CREATING: frozenset({"failed", "unsent", "doubt"}),
    Phase.RUNNING: frozenset({"done", "failed", "lost"}),
    # A task that is polled again after a restart may have another end.
    Phase.DONE: frozenset({"done", "failed", "lost"}),
    Phase.ENDED: frozenset({"done", "failed", "lost", "doubt", "unsent"}),
}


class JournalState:
    """All jobs that are not over, by number, in order of submission."""

    def __init__(self) -> None:
        self._live: dict[int, JobSnapshot] = {}
        self.live: Mapping[int, JobSnapshot] = MappingProxyType(self._live)
        self.last = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JournalState) and self._live == other._live

    __hash__ = None  # type: ignore[assignment] # it changes

    def receive(self, entry: JournalEntry) -> JobSnapshot:
        """Apply one entry and return the new state of its job, also if the job is over now.

        Raises `IllegalEntry` for an entry that the job's phase does not allow; nothing changes.
        """
        snapshot = self.after(entry)
        if snapshot.over:
            self._live.pop(entry.job, None)
        else:
            self._live[entry.job] = snapshot
        self.last = max(self.last, entry.job)
        return snapshot

    def discard(self, job: int) -> None:
        """Drop a job that was purged from the file."""
        del self._live[job]

    def after(self, entry: JournalEntry) -> JobSnapshot:
        """Return the state of the job after `entry`, without applying it. Raises `IllegalEntry`."""
        snapshot = self._live.get(entry.job)
        if isinstance(entry, Entered):
            if snapshot is not None or entry.job < 1:
                raise IllegalEntry(f"job {entry.job} was entered twice.")
            return JobSnapshot(entry.job, entry.stored)
        if snapshot is None:
            raise IllegalEntry(f"{type(entry).__name__} of job {entry.job}, which is not known.")
        if isinstance(entry, Ended):
            # A job without a task has no result.
            if entry.end not in _ENDS[snapshot.phase] or (
                entry.end == "done" and not snapshot.task_id
            ):
                raise _illegal(entry, snapshot)
            phase = Phase.DONE if entry.end == "done" else Phase.ENDED
            return attrs.evolve(snapshot, phase=phase, end=entry.end)
        leads = _LEADS.get((snapshot.phase, type(entry)))
        if leads is None:
            raise _illegal(entry, snapshot)
        return _step(attrs.evolve(snapshot, phase=leads), entry, snapshot)


def _illegal(entry: JournalEntry, snapshot: JobSnapshot) -> IllegalEntry:
    return IllegalEntry(
        f"{type(entry).__name__} of job {snapshot.job}, which is {snapshot.phase.name}."
    )


def _step(snapshot: JobSnapshot, entry: JournalEntry, before: JobSnapshot) -> JobSnapshot:
    """Return `snapshot`, which has the new phase already, with the other changes of `entry`."""
    match entry:
        case Uploaded(number=0):
            return attrs.evolve(snapshot, file_id=entry.file_id)
        case Uploaded():
            ids = {**dict(snapshot.more_ids), entry.number: entry.file_id}
            return attrs.evolve(snapshot, more_ids=tuple(sorted(ids.items())))
        case Creating():
            # The new task has its own results and its own copies at the vendor.
            again = attrs.evolve(snapshot, task_id=None, end=None, saved=False, deleted=False)
            return attrs.evolve(again, since=entry.at, intent=entry.intent)
        case Created():
            return attrs.evolve(snapshot, task_id=entry.task_id, end=None)
        case Returned():
            return attrs.evolve(snapshot, task_id=None)
        case Saved():
            return attrs.evolve(snapshot, saved=True)
        case Reported():
            return attrs.evolve(snapshot, reported=True)
        case Deleted():
            if not before.saved:
                raise _illegal(entry, before)
            return attrs.evolve(snapshot, deleted=True)
        case _:
            return snapshot


# As rows of a file.


def encode(entry: JournalEntry) -> tuple[int, int, str, str]:
    """Return the job, the time, the name of the type and the other fields (as JSON) of `entry`."""
    match entry:
        case Entered():
            stored = attrs.asdict(entry.stored)
            if not entry.stored.more:
                # Former versions write jobs with one input without this field.
                del stored["more"]
            fields: dict[str, object] = {"order": stored}
        case Uploaded():
            fields = {"file_id": entry.file_id}
            if entry.number:
                fields["number"] = entry.number
        case Creating():
            # Former versions write and read this entry without the field.
            fields = {"intent": entry.intent} if entry.intent else {}
        case Created():
            fields = {"task_id": entry.task_id}
        case Ended():
            fields = {"how": entry.end}
        case _:
            fields = {}
    return entry.job, entry.at, _NAMES[type(entry)], json.dumps(fields, separators=(",", ":"))


def decode(job: object, at: object, kind: object, text: object) -> JournalEntry:
    """Return the entry that `encode` returned as a row. Raises `Damaged`."""
    if type(job) is not int or type(at) is not int:
        raise Damaged("a job or a time is not a number")
    if not (1 <= job <= MOST and 0 <= at <= MOST):
        raise Damaged("a job or a time is out of range")
    made = ENTRY_TYPES.get(kind) if isinstance(kind, str) else None
    if made is None:
        raise Damaged(f"job {job} has an entry of an unknown kind")
    try:
        fields = cast("object", json.loads(text if isinstance(text, str) else ""))
    except (ValueError, RecursionError):
        raise Damaged(f"{kind} of job {job} is not JSON") from None
    if not isinstance(fields, dict):
        raise Damaged(f"{kind} of job {job} is not an object")
    try:
        return _entry(made, job, at, cast("dict[str, object]", fields))
    except Damaged as exc:
        raise Damaged(f"{kind} of job {job}: {exc}") from None


def _entry(made: type[JournalEntry], job: int, at: int, held: dict[str, object]) -> JournalEntry:
    if made is Entered:
        return Entered(job, at, _stored(held.get("order")))
    if made is Uploaded:
        number = held.get("number", 0)
        if type(number) is not int or not 0 <= number <= _MOST_INPUTS:
            raise Damaged("number is not the number of an input")
        return Uploaded(job, at, _text(held, "file_id"), number)
    if made is Creating:
        return Creating(job, at, _text_or_none(held, "intent") or "")
    if made is Created:
        return Created(job, at, _text(held, "task_id"))
    if made is Ended:
        return Ended(job, at, cast("EndKind", _one_of(held, "how", get_args(EndKind))))
    bare = cast("Callable[[int, int], JournalEntry]", made)
    return bare(job, at)


def _stored(value: object) -> StoredJob:
    if not isinstance(value, dict):
        raise Damaged("order is not an object")
    held = cast("dict[str, object]", value)
    units, outputs = held.get("units"), held.get("outputs")
    # The comparison refuses NaN, and ints that are too large for a float.
    if type(units) not in {int, float} or not 0 <= cast("float", units) < _MOST_UNITS:
        raise Damaged("units is not a number of units")
    if type(outputs) is not int or not 1 <= outputs <= _MOST_OUTPUTS:
        raise Damaged("outputs is not a number of pictures")
    identity = _text(held, "identity")
    if not re.fullmatch(r"([0-9a-f]{2})+", identity):
        raise Damaged("identity is not a digest")
    return StoredJob(
        identity,
        sure=_flag(held, "sure"),
        stem=_text(held, "stem", empty=True),
        feature=_text(held, "feature"),
        units=float(cast("float", units)),
        outputs=outputs,
        parameters=tuple(_pairs(held.get("parameters"))),
        key=_text_or_none(held, "key"),
        kind=cast("SourceKind", _one_of(held, "kind", get_args(SourceKind))),
        place=_text_or_none(held, "place"),
        digest=_text_or_none(held, "digest"),
        save_to=_text_or_none(held, "save_to"),
        delete=_flag(held, "delete"),
        more=tuple(_inputs(held.get("more", []))),
    )


def _inputs(value: object) -> Iterable[StoredInput]:
    for each in cast("list[object]", value) if isinstance(value, list) else [None]:
        if not isinstance(each, dict):
            raise Damaged("more is not a list of inputs")
        held = cast("dict[str, object]", each)
        yield StoredInput(
            cast("SourceKind", _one_of(held, "kind", get_args(SourceKind))),
            _text_or_none(held, "place"),
            _text_or_none(held, "digest"),
        )


def _pairs(value: object) -> Iterable[tuple[str, str | int]]:
    for pair in cast("list[object]", value) if isinstance(value, list) else [None]:
        match pair:
            case [str() as name, (str() | int()) as held]:
                yield name, held
            case _:
                raise Damaged("parameters is not a list of pairs")


def _text(held: Mapping[str, object], name: str, *, empty: bool = False) -> str:
    value = held.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise Damaged(f"{name} is not text")
    return value


def _text_or_none(held: Mapping[str, object], name: str) -> str | None:
    return None if held.get(name) is None else _text(held, name)


def _flag(held: Mapping[str, object], name: str) -> bool:
    value = held.get(name)
    if not isinstance(value, bool):
        raise Damaged(f"{name} is neither true nor false")
    return value


def _one_of(held: Mapping[str, object], name: str, allowed: tuple[str, ...]) -> str:
    value = _text(held, name)
    if value not in allowed:
        raise Damaged(f"{name} is unknown")
    return value
