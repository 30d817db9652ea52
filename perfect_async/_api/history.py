"""The unit history, and what it says about a creation whose answer never came.

The history's rows name a task and an action, and no picture: a wrong guess would hand one person's
face to another. So a task is taken for the one in doubt only if it is the only one that it can be:
one id that nobody here knows, of this feature, created between the sending and now, while nothing
else here is in doubt that it may be as well, and nobody else seems to create on the key. Anything
else stays in doubt. So does an unknown task from shortly before the sending: somebody else uses the
account then, or the clocks are too far apart to tell.

The set of actions is open (contract: History). An action that names another feature belongs to a
task of that feature; one that names none may belong to any task. Times are UTC microseconds.

This is a file of its own beside `account`, which only asks and reads: the search keeps state over
several pages and decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from enum import Enum, auto
from typing import Final

import attrs

from perfect_async._api.account import page_query
from perfect_async._api.responses import (
    Malformed,
    Page,
    Response,
    as_text,
    as_whole,
    bad_answer,
    is_task_id,
    read,
)
from perfect_async._api.tasks import Request
from perfect_async._time import SECOND
from perfect_async._value import Value

# Rows on one page, the most that the vendor gives.
_PAGE_SIZE: Final = 30

SKEW: Final = 60 * SECOND
"""How far the vendor's clock and ours may be apart; our own ids in that time are known anyway."""
NEAR: Final = 240 * SECOND
"""How long before the sending other creations count: one in doubt, whose task may appear as late,
or an unknown task, whose owner may have created another one since.
"""

# How far before the sending, by the vendor's clock, a task may still be the one in doubt.
_EARLIEST: Final = 5 * SECOND


@attrs.frozen(eq=False, repr=False)
class Movement(Value):
    """One row of the unit history: the units of `task_id` moved `at`, in UTC microseconds.

    `action` is the vendor's name for it, in lower case with hyphens between its words.
    """

    at: int
    action: str
    task_id: str


@attrs.frozen(eq=False, repr=False)
class _HistoryRow(Value):
    timestamp: object = None
    action: object = None
    target_id: object = None


def history(token: str | None) -> Request:
    """Ask for a page of the history; `token` is the previous page's (contract: History)."""
    return Request("GET", "/s2s/v1.0/client/credit/history", page_query(token, _PAGE_SIZE))


def read_history(reply: Response) -> tuple[tuple[Movement, ...], str | None]:
    """Return a page's movements and the next page's token, None on the last.

    Raises `BadAnswer` where a row has no time, since the search must not miss one. A row without a
    task (units that were bought) is left out, whether its task is null, absent or blank.
    """
    found: list[Movement] = []
    for index, row in enumerate(read(reply, list[_HistoryRow], "result", "history")):
        if row.target_id is None or (isinstance(row.target_id, str) and not row.target_id.strip()):
            continue
        movement = _movement(row)
        if movement is None:
            raise bad_answer(reply, f"result.history[{index}] has no time or no task")
        found.append(movement)
    return tuple(found), read(reply, Page, "result").next_token or None


def _movement(row: _HistoryRow) -> Movement | None:
    try:
        at, task_id = as_whole(row.timestamp), as_text(row.target_id)
    except Malformed:
        return None
    action = re.sub(r"[\W_]+", "-", str(row.action or "").lower()).strip("-")
    return Movement(at * 1000, action, task_id) if is_task_id(task_id) else None


class Unresolved(Enum):
    """Why no task is taken for the one in doubt."""

    NOTHING = auto()
    """The history shows no task that it could be."""
    AMBIGUOUS = auto()
    """The history shows several, or one may have been missed."""


class HistorySearch:
    """Search the history, page by page, for the task of one creation.

    `feature` was sent at `sent`; `features` are the names of all features that an action may name.
    """

    def __init__(self, feature: str, features: Collection[str], sent: int) -> None:
        self._feature = feature
        self._features = tuple(features)
        self._sent = sent
        self._since = sent - SKEW
        self._near = sent - NEAR + SKEW
        # Whether the action names the feature, and when it first moved: a failure gives back later.
        self._found: dict[str, tuple[bool, int]] = {}
        self._before: set[str] = set()
        # Of the times read so far: the first, the lowest and the last.
        self._first: int | None = None
        self._lowest = self._last = 0
        self._descends = True

    @property
    def found(self) -> frozenset[str]:
        """The tasks that it may be, including those that are known here."""
        return frozenset(self._found)

    def read(self, rows: Iterable[Movement]) -> bool:
        """Read the rows of a page, and return whether the next page is needed.

        Pages are expected newest first; where they are not, all of them are needed.
        """
        for row in rows:
            if self._first is None:
                self._first = self._lowest = row.at
            # Compared with the lowest: oldest first, each may be only a little later than the last.
            self._descends = self._descends and row.at <= self._lowest + SKEW
            self._lowest, self._last = min(self._lowest, row.at), row.at
            if row.at < self._since:
                if row.at >= self._near:
                    self._before.add(row.task_id)
            elif (named := self._names_feature(row.action)) is not None:
                before, first = self._found.get(row.task_id, (False, row.at))
                self._found[row.task_id] = named or before, min(first, row.at)
        if self._first is None or not self._descends:
            return True
        return self._last >= self._since or self._first < self._last

    def _names_feature(self, action: str) -> bool | None:
        """Return whether `action` names the feature; None where it names another one."""
        named = [name for name in self._features if name in action]
        # One name may contain another: the longer one is meant.
        meant = [name for name in named if not any(name in other != name for other in named)]
        return None if meant and self._feature not in meant else bool(meant)

    def shared(self, known: Callable[[str], bool]) -> bool:
        """Return whether somebody else created on the key shortly before the sending."""
        return any(not known(task_id) for task_id in self._before - self._found.keys())

    def verdict(
        self, known: Callable[[str], bool], doubtful: Collection[str] = ()
    ) -> str | Unresolved:
        """Return the id of the task if exactly one is unknown here, else why there is none.

        `doubtful` are the features of the other creations here whose outcome is unknown.
        """
        unknown = [task_id for task_id in self._found if not known(task_id)]
        if not unknown:
            return Unresolved.NOTHING
        named, first = self._found[unknown[0]]
        others = any(name == self._feature or not named for name in doubtful)
        if others or len(unknown) > 1 or first < self._sent - _EARLIEST:
            return Unresolved.AMBIGUOUS
        return unknown[0]
