"""What the vendor's notifications say, which were seen before, and which came before their task.

Contract: Webhooks. Nobody knows how often, how late or in which order they come, so everything here
tells a receiver what to leave alone. Both memories are bounded, in number and in age: what comes
from outside may not grow. Times are integer microseconds of one clock.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, Generic, Literal, TypeAlias, TypeVar

import attrs

from perfect_async._api.responses import Malformed, as_moment, as_number, structure
from perfect_async._time import SECOND

V = TypeVar("V")

Status: TypeAlias = Literal["success", "error"]

_LONGEST_ID: Final = 1024
"""Characters of a task's id; ~107 were seen."""

MOST: Final = 4096
"""Entries of a memory: hours of a key with the usual limits, in about a megabyte."""

SEEN_FOR: Final = 24 * 3600 * SECOND
"""A genuine notification passes as fresh for 2 * 300 s, from its being ahead of our clock to its
being behind, so a replay must be known for longer. Retries go on for hours and are worth knowing,
too; a task itself is kept for a day."""

EARLY_FOR: Final = 600 * SECOND
"""A creation whose answer is later than this is in doubt, and nobody waits for its task."""


@attrs.frozen
class Notification:
    """A genuine notification: the task `task_id` has ended, by what the vendor says.

    `id` is the `webhook-id`, the same on every retry. `created_at` is the vendor's time in UTC, or
    None where it gave none. A body that is genuine and not understood has neither `task_id` nor
    `status`, and `flaw` says why, quoting nothing of it: to be logged once and acknowledged, since
    a refusal makes the sender try again and at last give the endpoint up.

    The end is hearsay until the task was asked: it holds no result, may come before the status
    flips, and may be about a task of another process.
    """

    id: str
    created_at: datetime | None = None
    task_id: str | None = None
    status: Status | None = None
    flaw: str | None = None


@attrs.frozen
class _Data:
    task_id: object
    task_status: object


@attrs.frozen
class _Body:
    data: _Data
    created_at: object = None


def read_notification(webhook_id: str, body: bytes) -> Notification:
    """What `body`, known to be genuine, says. Whatever its bytes are, nothing is raised."""
    found = structure(body, _Body)
    if isinstance(found, Malformed):
        return Notification(webhook_id, flaw=str(found).replace("the answer", "the body"))
    created_at = _moment(found.created_at)
    task_id = found.data.task_id
    # As strict as the reading of a creation's answer: another id is no task of ours.
    if (
        not isinstance(task_id, str)
        or not 1 <= len(task_id) <= _LONGEST_ID
        or not task_id.isprintable()
        or task_id.isspace()
    ):
        return Notification(webhook_id, created_at, flaw="data.task_id is no usable id")
    match found.data.task_status:
        case "success":
            return Notification(webhook_id, created_at, task_id, "success")
        case "error":
            return Notification(webhook_id, created_at, task_id, "error")
        case _:
            flaw = "data.task_status is neither success nor error"
            return Notification(webhook_id, created_at, flaw=flaw)


def _moment(seconds: object) -> datetime | None:
    try:
        return as_moment(as_number(seconds) * 1000)
    except Malformed:
        return None


class _Fading(Generic[V]):
    """What was said of a key, for a while: at most `most` keys, and none older than `age` is shown.

    Entries are in the order of their times, since `now` never goes back: the old ones are in front.
    """

    def __init__(self, most: int, age: int) -> None:
        if most < 1 or age < 1:
            raise ValueError(f"a memory of {most} entries for {age} us remembers nothing")
        self._most = most
        self._age = age
        self._kept: dict[str, tuple[V, int]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: str, value: V, now: int) -> None:
        self._kept.pop(key, None)
        self._kept[key] = value, now
        while len(self._kept) > self._most or not self._holds(next(iter(self._kept)), now):
            del self._kept[next(iter(self._kept))]

    def get(self, key: str, now: int) -> V | None:
        return self._kept[key][0] if self._holds(key, now) else None

    def pop(self, key: str, now: int) -> V | None:
        found = self.get(key, now)
        self._kept.pop(key, None)
        return found

    def _holds(self, key: str, now: int) -> bool:
        return key in self._kept and now - self._kept[key][1] <= self._age


class Seen:
    """The `webhook-id`s that were taken in: the last `most`, for `age` microseconds.

    `add` is apart from the question, so that whoever fails to take one in can leave it out.
    """

    def __init__(self, most: int = MOST, age: int = SEEN_FOR) -> None:
        self._ids = _Fading[Literal[True]](most, age)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"<Seen {len(self)} ids>"

    def knows(self, webhook_id: str, now: int) -> bool:
        """Whether this id was added, less than `age` and `most` additions ago."""
        return self._ids.get(webhook_id, now) is not None

    def add(self, webhook_id: str, now: int) -> None:
        """The notification of this id was taken in; again, it is as new."""
        self._ids.put(webhook_id, True, now)  # noqa: FBT003 - a set that fades


class Early:
    """What was said of tasks that nobody here knows yet: the last `most`, for `age` microseconds.

    A notification may overtake the answer to its task's creation. Most that stay here are for
    tasks of other processes, which share the endpoint.
    """

    def __init__(self, most: int = MOST, age: int = EARLY_FOR) -> None:
        self._said = _Fading[tuple[Status, int]](most, age)

    def __len__(self) -> int:
        return len(self._said)

    def __repr__(self) -> str:
        return f"<Early {len(self)} tasks>"

    def put(self, task_id: str, status: Status, now: int) -> None:
        """The task is unknown and is said to have ended; the last word counts."""
        self._said.put(task_id, (status, now), now)

    def take(self, task_id: str, now: int) -> tuple[Status, int] | None:
        """What was said of this task and when, once; None if nothing was, or too long ago."""
        return self._said.pop(task_id, now)
