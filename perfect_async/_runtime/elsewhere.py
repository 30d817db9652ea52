"""What the ledger of a key says of one job: whether some process has bought it already.

A job is the same job only where its identity and the digest of its picture (or its full URL) are
the same. Only jobs of a client with `reuse=True` are asked about; everybody else buys.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import Enum, auto
from typing import Final

import attrs

from perfect_async import events as ev
from perfect_async._time import SECOND

_UNRESOLVED: Final = 300 * SECOND
"""A creation is answered, refused or in doubt long before this. One that is not belongs to a
process that stands still, and nobody knows what became of it.
"""


@attrs.frozen
class Submission:
    """What a creation is for, as the ledger tells of it.

    `once`: it is not sent where the job is bought already. `consents`: the caller agrees to a
    second charge where nobody knows whether it is. `gone` is a task of the job whose result the
    vendor no longer has.
    """

    identity: str
    digest: str
    feature: str
    once: bool = False
    consents: bool = False
    gone: str = ""


class Purchase(Enum):
    """How far the purchase of a job has come in some process."""

    SENT = auto()
    """Its creation is under way: the answer is soon known."""
    CREATED = auto()
    """Its task was created, and may still run."""
    DONE = auto()
    """Its task has succeeded: the result can be fetched again."""
    IN_DOUBT = auto()
    """Its creation went out and nobody knows what became of it."""


@attrs.frozen
class Bought:
    """That a job is bought: by the creation of `member`, `age` microseconds ago.

    `task_id` is the task of a job that is CREATED or DONE.
    """

    purchase: Purchase
    row: ev.IntentRow | ev.DoneRow
    age: int = 0

    @property
    def task_id(self) -> str:
        """The task, "" where it is not known."""
        return self.row.task_id

    @property
    def member(self) -> str:
        """The process that created the task, "" where it is not known."""
        return self.row.member if isinstance(self.row, ev.IntentRow) else ""


def bought(
    job: Submission,
    rows: Iterable[ev.IntentRow | ev.DoneRow],
    living: Collection[str],
    now: int,
) -> Bought | None:
    """Return what `rows`, all that the ledger has of `job`, say at `now`; None: it is not bought.

    `living` are the members that have neither left nor died. A result counts before everything
    else; of several creations the newest one that was not refused decides.
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
