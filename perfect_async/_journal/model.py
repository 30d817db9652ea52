"""What a journal holds, as words, and what they come to: a fold, the same live and afterwards.

A job's history is a handful of words in the past tense; what is known of it is all of them, one
after another, by a table. A job that is over (its end was told, and its copies at the vendor are
deleted if they were to be) is known no longer. All times are UTC microseconds since 1970.

    Entered ──> ENTERED ── Creating ──> CREATING ── Created ──> RUNNING ── Ended(done) ──> DONE
    CREATING ── NotCreated ──> ENTERED        RUNNING ── Returned ──> ENTERED
    anything ── Ended(failed, lost, doubt, unsent) ──> ENDED
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, cast, get_args

import attrs

_ENDLESS: Final = 1e15  # units


class Phase(Enum):
    """Where a job is."""

    ENTERED = auto()
    CREATING = auto()
    RUNNING = auto()
    DONE = auto()
    ENDED = auto()


How: TypeAlias = Literal["done", "failed", "lost", "doubt", "unsent"]
Kind: TypeAlias = Literal["path", "url", "file", "bytes"]


class IllegalEntry(Exception):
    """A word that cannot follow: a mistake of ours, or a journal that is damaged."""


class Damaged(ValueError):
    """What stands in a journal is no word; says where, and quotes nothing."""


@attrs.frozen
class StoredJob:
    """A job as it was asked for; nothing here is a picture, a key or a signed URL.

    `identity` and `stem` name its results, `sure` tells whether equal identities are equal jobs.
    `place` is a path, a URL or a file's id by `kind`, None where it is not kept. `digest` is the
    picture's. `save_to` is the folder for its results, `delete` whether the vendor's copies go.
    """

    identity: str
    sure: bool
    stem: str
    feature: str
    units: float
    outputs: int
    parameters: tuple[tuple[str, str | int], ...]
    key: str | None
    kind: Kind
    place: str | None = attrs.field(repr=False)
    digest: str | None
    save_to: str | None
    delete: bool


# The words.


@attrs.frozen
class Entered:
    """A job came in."""

    job: int
    at: int
    order: StoredJob


@attrs.frozen
class Uploaded:
    """Its picture is at the vendor."""

    job: int
    at: int
    file_id: str = attrs.field(repr=False)


@attrs.frozen
class Creating:
    """Its creation is about to be sent: from here on units may be charged."""

    job: int
    at: int


@attrs.frozen
class NotCreated:
    """The creation was certainly not executed."""

    job: int
    at: int


@attrs.frozen
class Created:
    """Its task exists."""

    job: int
    at: int
    task_id: str


@attrs.frozen
class Returned:
    """The engine failed its task and gave the units back; it may be created again."""

    job: int
    at: int


@attrs.frozen
class Ended:
    """It ended, and how."""

    job: int
    at: int
    how: How


@attrs.frozen
class Saved:
    """Its pictures are on the disk."""

    job: int
    at: int


@attrs.frozen
class Told:
    """Whoever waited for it knows."""

    job: int
    at: int


@attrs.frozen
class Deleted:
    """The vendor's copies are deleted."""

    job: int
    at: int


JournalEntry: TypeAlias = (
    Entered | Uploaded | Creating | NotCreated | Created | Returned | Ended | Saved | Told | Deleted
)
WORDS: Final[Mapping[str, type[JournalEntry]]] = {
    kind.__name__: kind for kind in get_args(JournalEntry)
}


@attrs.frozen
class JobSnapshot:
    """What the words about one job come to; `since` is when it was last about to be created."""

    job: int
    order: StoredJob
    phase: Phase = Phase.ENTERED
    file_id: str | None = attrs.field(default=None, repr=False)
    task_id: str | None = None
    since: int = 0
    how: How | None = None
    saved: bool = False
    told: bool = False
    deleted: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing is left to do for it."""
        copies = self.saved and self.order.delete and not self.deleted
        return self.told and not copies


# Which word may follow in which phase, and to which it leads. `Ended` goes by how, below.
_LEADS: Final[Mapping[tuple[Phase, type[JournalEntry]], Phase]] = {
    (Phase.ENTERED, Uploaded): Phase.ENTERED,
    (Phase.ENTERED, Creating): Phase.CREATING,
    (Phase.CREATING, Creating): Phase.CREATING,
    (Phase.CREATING, NotCreated): Phase.ENTERED,
    (Phase.CREATING, Created): Phase.RUNNING,
    (Phase.RUNNING, Returned): Phase.ENTERED,
    (Phase.DONE, Saved): Phase.DONE,
    (Phase.DONE, Told): Phase.DONE,
    (Phase.DONE, Deleted): Phase.DONE,
    (Phase.ENDED, Told): Phase.ENDED,
    # After a restart: found in the history, or sent after all.
    (Phase.ENDED, Created): Phase.RUNNING,
    (Phase.ENDED, Creating): Phase.CREATING,
    (Phase.ENDED, Uploaded): Phase.ENDED,
}
_ENDS: Final[Mapping[Phase, frozenset[How]]] = {
    Phase.ENTERED: frozenset({"failed", "unsent"}),
    Phase.CREATING: frozenset({"failed", "unsent", "doubt"}),
    Phase.RUNNING: frozenset({"done", "failed", "lost"}),
    # Asked for again after a restart, it may have come to another end.
    Phase.DONE: frozenset({"done", "failed", "lost"}),
    Phase.ENDED: frozenset({"done", "failed", "lost", "doubt", "unsent"}),
}


class JournalState:
    """All jobs that are not over, by their numbers, in the order in which they came in."""

    def __init__(self) -> None:
        self._live: dict[int, JobSnapshot] = {}
        self.live: Mapping[int, JobSnapshot] = MappingProxyType(self._live)
        self.last = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JournalState) and self._live == other._live

    __hash__ = None  # type: ignore[assignment] # it changes

    @classmethod
    def fold(cls, words: Iterable[JournalEntry]) -> JournalState:
        """What `words` come to. Raises `IllegalEntry`."""
        memory = cls()
        for word in words:
            memory.receive(word)
        return memory

    def receive(self, word: JournalEntry) -> JobSnapshot:
        """Take one word in, and give what is known of its job then: also of one that is over now.

        Raises `IllegalEntry` for one that cannot follow, and stays as it was.
        """
        known = self.after(word)
        if known.over:
            self._live.pop(word.job, None)
        else:
            self._live[word.job] = known
        self.last = max(self.last, word.job)
        return known

    def after(self, word: JournalEntry) -> JobSnapshot:
        """What would be known of the job of `word` after it. Raises `IllegalEntry`."""
        known = self._live.get(word.job)
        if isinstance(word, Entered):
            if known is not None or word.job < 1:
                raise IllegalEntry(f"job {word.job} came in twice.")
            return JobSnapshot(word.job, word.order)
        if known is None:
            raise IllegalEntry(f"{type(word).__name__} of job {word.job}, which is not known.")
        if isinstance(word, Ended):
            # Without a task there is no result.
            if word.how not in _ENDS[known.phase] or (word.how == "done" and not known.task_id):
                raise _illegal(word, known)
            phase = Phase.DONE if word.how == "done" else Phase.ENDED
            return attrs.evolve(known, phase=phase, how=word.how)
        leads = _LEADS.get((known.phase, type(word)))
        if leads is None:
            raise _illegal(word, known)
        return _step(attrs.evolve(known, phase=leads), word, known)


def _illegal(word: JournalEntry, known: JobSnapshot) -> IllegalEntry:
    return IllegalEntry(f"{type(word).__name__} of job {known.job}, which is {known.phase.name}.")


def _step(known: JobSnapshot, word: JournalEntry, before: JobSnapshot) -> JobSnapshot:
    """`known`, which is in the phase that `word` leads to, with what else it says."""
    match word:
        case Uploaded():
            return attrs.evolve(known, file_id=word.file_id)
        case Creating():
            # Another task has other pictures, and other copies at the vendor.
            anew = attrs.evolve(known, task_id=None, how=None, saved=False, deleted=False)
            return attrs.evolve(anew, since=word.at)
        case Created():
            return attrs.evolve(known, task_id=word.task_id, how=None)
        case Returned():
            return attrs.evolve(known, task_id=None)
        case Saved():
            return attrs.evolve(known, saved=True)
        case Told():
            return attrs.evolve(known, told=True)
        case Deleted():
            if not before.saved:
                raise _illegal(word, before)
            return attrs.evolve(known, deleted=True)
        case _:
            return known


# On the disk.


def encode(word: JournalEntry) -> tuple[int, int, str, str]:
    """`word` as its job, its time, its kind and the rest as JSON."""
    facts = attrs.asdict(word)
    job, at = facts.pop("job"), facts.pop("at")
    return job, at, type(word).__name__, json.dumps(facts, separators=(",", ":"))


def decode(job: object, at: object, kind: object, text: object) -> JournalEntry:
    """The word that `encode` took apart. Raises `Damaged`."""
    if type(job) is not int or type(at) is not int or job < 1:
        raise Damaged("a job or a time is no number")
    made = WORDS.get(kind) if isinstance(kind, str) else None
    if made is None:
        raise Damaged(f"job {job} has a word of an unknown kind")
    try:
        facts = cast("object", json.loads(text if isinstance(text, str) else ""))
    except (ValueError, RecursionError):
        raise Damaged(f"{made.__name__} of job {job} is no JSON") from None
    if not isinstance(facts, dict):
        raise Damaged(f"{made.__name__} of job {job} is no object")
    held = cast("dict[str, object]", facts)
    try:
        match made.__name__:
            case "Entered":
                return Entered(job, at, _order(held.get("order")))
            case "Uploaded":
                return Uploaded(job, at, _text(held, "file_id"))
            case "Created":
                return Created(job, at, _text(held, "task_id"))
            case "Ended":
                return Ended(job, at, cast("How", _one_of(held, "how", get_args(How))))
            case _:
                simple: Callable[[int, int], JournalEntry] = cast(
                    "Callable[[int, int], JournalEntry]", made
                )
                return simple(job, at)
    except Damaged as exc:
        raise Damaged(f"{made.__name__} of job {job}: {exc}") from None


def _order(value: object) -> StoredJob:
    if not isinstance(value, dict):
        raise Damaged("order is no object")
    held = cast("dict[str, object]", value)
    units, outputs = held.get("units"), held.get("outputs")
    # NaN is in no range, and not every int becomes a float.
    if type(units) not in {int, float} or not 0 <= cast("float", units) < _ENDLESS:
        raise Damaged("units is no number of units")
    if type(outputs) is not int or outputs < 1:
        raise Damaged("outputs is no number of pictures")
    identity = _text(held, "identity")
    if not re.fullmatch(r"([0-9a-f]{2})+", identity):
        raise Damaged("identity is no digest")
    return StoredJob(
        identity,
        sure=_flag(held, "sure"),
        stem=_text(held, "stem", empty=True),
        feature=_text(held, "feature"),
        units=float(cast("float", units)),
        outputs=outputs,
        parameters=tuple(_pairs(held.get("parameters"))),
        key=_text_or_none(held, "key"),
        kind=cast("Kind", _one_of(held, "kind", get_args(Kind))),
        place=_text_or_none(held, "place"),
        digest=_text_or_none(held, "digest"),
        save_to=_text_or_none(held, "save_to"),
        delete=_flag(held, "delete"),
    )


def _pairs(value: object) -> Iterable[tuple[str, str | int]]:
    for pair in cast("list[object]", value) if isinstance(value, list) else [None]:
        match pair:
            case [str() as name, (str() | int()) as held]:
                yield name, held
            case _:
                raise Damaged("parameters are no pairs")


def _text(held: Mapping[str, object], name: str, *, empty: bool = False) -> str:
    value = held.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise Damaged(f"{name} is no text")
    return value


def _text_or_none(held: Mapping[str, object], name: str) -> str | None:
    return None if held.get(name) is None else _text(held, name)


def _flag(held: Mapping[str, object], name: str) -> bool:
    value = held.get(name)
    if not isinstance(value, bool):
        raise Damaged(f"{name} is neither true nor false")
    return value


def _one_of(held: Mapping[str, object], name: str, known: tuple[str, ...]) -> str:
    value = _text(held, name)
    if value not in known:
        raise Damaged(f"{name} is unknown")
    return value
