"""Finds out from the ledger of a key whether a process has bought a job already.

Two jobs are the same if their identity and the digest of their picture (or its full URL) are equal.
Only a client with `reuse=True` asks before it buys a job; all others buy it. A client with a
journal asks for the task of a creation whose answer the former process did not record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum, auto
from typing import Final

import attrs

from perfect_async import events as ev
from perfect_async._ledger.rows import key
from perfect_async._time import SECOND

_UNRESOLVED: Final = 300 * SECOND
"""A creation is answered, refused or in doubt long before this. An older one belongs to a process
that does not run, and its outcome is unknown.
"""
_CLOCKS_APART: Final = 5 * SECOND
"""How far the times of a journal and of a ledger may differ. A ledger's time is written before."""


@attrs.frozen
class Submission:
    """The job of a creation, in the form of the ledger.

    `once`: the creation is not sent if the job is bought already. `consents`: the caller agrees to
    a second charge if the outcome of an earlier creation is unknown. `gone` is a task of the job
    whose result the vendor no longer has.
    """

    identity: str
    digest: str
    feature: str
    once: bool = False
    consents: bool = False
    gone: str = ""


class Purchase(Enum):
    """The progress of a job's purchase by any process."""

    SENT = auto()
    """Its creation is under way, and its answer will be known soon."""
    CREATED = auto()
    """Its task was created, and may still run."""
    DONE = auto()
    """Its task has succeeded, and the result can be fetched again."""
    IN_DOUBT = auto()
    """Its creation was sent and its outcome is unknown."""


@attrs.frozen
class Bought:
    """The purchase of a job by the creation of `member`, `age` microseconds ago.

    `task_id` is the task of a job that is CREATED or DONE.
    """

    purchase: Purchase
    row: ev.IntentRow | ev.DoneRow
    age: int = 0

    @property
    def task_id(self) -> str:
        """The task; empty if it is unknown."""
        return self.row.task_id

    @property
    def member(self) -> str:
        """The process that created the task; empty if it is unknown."""
        return self.row.member if isinstance(self.row, ev.IntentRow) else ""


def bought(
    job: Submission,
    rows: Iterable[ev.IntentRow | ev.DoneRow],
    living: Collection[str],
    now: int,
) -> Bought | None:
    """Return the purchase of `job` according to `rows`, all that the ledger has of the job.

    None means that it is not bought. `living` are the members that have neither left nor died. A
    result decides first; of several creations the newest one that was not refused decides.
    """
    found = [row for row in rows if not job.gone or row.task_id != job.gone]
    done = [row for row in found if isinstance(row, ev.DoneRow)]
    if done:
        newest = max(done, key=lambda row: row.at)
        return Bought(Purchase.DONE, newest, now - newest.at)
    intents = [row for row in found if isinstance(row, ev.IntentRow)]
    for row in sorted(intents, key=lambda row: row.sent, reverse=True):
        age = now - row.sent
        if row.state == "refused":
            continue
        if row.state == "accepted":
            return Bought(Purchase.CREATED, row, age)
        if row.state == "sent" and row.member in living and age < _UNRESOLVED:
            return Bought(Purchase.SENT, row, age)
        if not job.consents:
            return Bought(Purchase.IN_DOUBT, row, age)
    return None


@attrs.frozen
class LostCreation:
    """A creation of `job`, sent at `sent` (UTC microseconds), whose answer is not known.

    `intent` is the key of its row in the ledger; empty if that was not recorded.
    """

    sent: int
    job: Submission
    intent: str = ""


@attrs.frozen
class Recorded:
    """The task that the ledger names for a creation; None if it names none for certain.

    `candidates` are tasks of the same job that may be the creation's, the oldest first.
    """

    row: ev.IntentRow | None = None
    candidates: tuple[str, ...] = ()


def recorded(
    creation: LostCreation, rows: Iterable[ev.IntentRow | ev.DoneRow], since: int
) -> Recorded:
    """Return the task of `creation` according to `rows`, all that the ledger has of its job.

    `since` is when it was sent, in the ledger's time. The task is certain only if the creation's
    own row names it: another row may belong to another purchase of an equal job.
    """
    job, earliest = creation.job, since - _CLOCKS_APART
    candidates: dict[str, int] = {}
    for row in rows:
        if (row.identity, row.digest, row.feature) != (job.identity, job.digest, job.feature):
            continue
        at = row.sent if isinstance(row, ev.IntentRow) else row.at
        if isinstance(row, ev.IntentRow):
            if row.state == "refused":
                continue
            if key(row) == creation.intent:
                # Without an answer in it, the tasks of other rows are not this creation's either.
                return Recorded(row if row.task_id else None)
        if row.task_id and at >= earliest:
            candidates[row.task_id] = min(at, candidates.get(row.task_id, at))
    return Recorded(candidates=tuple(sorted(candidates, key=lambda task: (candidates[task], task))))
