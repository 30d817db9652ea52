"""The unit history, and the search in it for a task whose creation was never answered.

A row of the history names a task and an action, but no picture. A wrong guess would give one
person's face to another, so the search lists candidates and rarely picks one. It picks a task only
for a client whose user says that nobody else creates tasks with the key, and only if all of these
hold:

- exactly one unknown task is a candidate, and its action names the feature of the creation;
- the task was created between the sending and now, by the vendor's clock within a tolerance;
- no other creation is in doubt, and every row of the history could be read.

In all other cases the creation stays in doubt. An unknown task from shortly before the sending
also keeps it in doubt: somebody else uses the account, or the two clocks differ too much.

The set of actions is open (contract: History). Purchases are not tasks, whatever their target. An
action that names another feature belongs to a task of that feature. An action that names no feature
may belong to any task: its task is a candidate, but is never picked. Times are UTC microseconds.

`account` holds the calls that only ask and read. The search keeps state over several pages and
decides, so it has its own file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from decimal import Decimal
from enum import Enum, auto
from typing import Final

import attrs

from perfect_async._api.account import page_query
from perfect_async._api.responses import (
    Credit,
    Malformed,
    Page,
    Response,
    as_moment,
    as_number,
    as_text,
    as_whole,
    is_task_id,
    read,
)
from perfect_async._api.tasks import Request
from perfect_async._time import SECOND
from perfect_async._value import Value
from perfect_async.reports import HistoryEntry

# Rows per page: the vendor's maximum.
_PAGE_SIZE: Final = 30

SKEW: Final = 60 * SECOND
"""The tolerated difference of the vendor's clock and ours. It may be large, since tasks that this
client created in that time are known and do not count as candidates.
"""
NEAR: Final = 240 * SECOND
"""How long before the sending another creation still matters. The task of an earlier creation in
doubt may appear this late, and the owner of an unknown task may have created another one since.
"""

# The vendor's clock may show a task up to this long before the sending of its creation.
_EARLIEST: Final = 5 * SECOND
# In milliseconds (1973). A smaller number is a time in seconds, so the row is not understood.
_FIRST_TIME: Final = 10**11

_PUBLISHED_WITHOUT_TASK: Final = frozenset(
    {
        *("trial-gift-text-to-image", "sign-up-gift", "subscription-credits", "subscriber-gift"),
        *("permanent-credits", "compensation-from-customer-service", "renew", "expire"),
    }
)
"""The published actions that belong to no task, such as purchases (contract: History).

Spelled like `Movement.action`, as those below.
"""
_PUBLISHED_OF_TASKS: Final = frozenset(
    {
        *("photo-enhance", "object-removal", "background-removal", "colorize", "text-to-image"),
        *("hair-style", "blur-background", "change-background", "wig"),
    }
)
"""The published actions of tasks. The features that they stand for have no class here."""
_UNPUBLISHED_FEATURES: Final = frozenset({"ai-smile", "ai-avatar", "ai-studio"})
"""Features whose action is not published, so that none of the published actions is theirs."""


@attrs.frozen(eq=False, repr=False)
class Movement(Value):
    """One row of the unit history: `task_id` was charged or refunded `at`, in UTC microseconds.

    `action` is the vendor's name of the action, in lower case with hyphens between its words.
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


def read_history(reply: Response) -> tuple[tuple[Movement | None, ...], str | None]:
    """Return a page's movements and the next page's token, None on the last.

    A row that cannot be understood is None: it may be about any task. Purchases are left out.
    """
    rows = read(reply, list[_HistoryRow], "result", "history")
    actions = [re.sub(r"[\W_]+", "-", str(row.action or "").lower()).strip("-") for row in rows]
    found = tuple(
        _movement(row, action)
        for row, action in zip(rows, actions, strict=True)
        if action.removeprefix("api-") not in _PUBLISHED_WITHOUT_TASK
    )
    return found, read(reply, Page, "result").next_token or None


def _movement(row: _HistoryRow, action: str) -> Movement | None:
    try:
        at, task_id = as_whole(row.timestamp), as_text(row.target_id)
    except Malformed:
        return None
    if at < _FIRST_TIME or not is_task_id(task_id):
        return None
    return Movement(at * 1000, action, task_id)


@attrs.frozen(eq=False, repr=False)
class _Info(Value):
    credits: list[Credit] | None = None


@attrs.frozen(eq=False, repr=False)
class _EntryRow(Value):
    timestamp: object = None
    action: object = None
    target_id: object = None
    info: _Info | None = None


def read_entries(reply: Response) -> tuple[tuple[HistoryEntry, ...], str | None]:
    """Return a page's entries for the user, and the next page's token, None on the last.

    An unreadable value is None; an unreadable action is "". Raises `ApiError`.
    """
    rows = read(reply, list[_EntryRow], "result", "history")
    return tuple(_entry(row) for row in rows), read(reply, Page, "result").next_token or None


def _entry(row: _EntryRow) -> HistoryEntry:
    at = None
    with suppress(Malformed):
        at = as_moment(as_number(row.timestamp))
    return HistoryEntry(at, _text(row.action) or "", _change(row.info), _text(row.target_id))


def _text(value: object) -> str | None:
    with suppress(Malformed):
        return as_text(value)
    return None


def _change(info: _Info | None) -> float | None:
    """Return the sum of the amounts; an entry may be paid from several sources of units."""
    parts = (info and info.credits) or []
    amounts = [part.amount if part.amount_dec is None else part.amount_dec for part in parts]
    known = [Decimal(str(amount)) for amount in amounts if amount is not None]
    # Decimals, so that 0.1 + 0.2 is 0.3.
    return float(sum(known)) if known else None


class Unresolved(Enum):
    """Why the search picks no task for the creation in doubt."""

    NOTHING = auto()
    """The history shows no candidate."""
    AMBIGUOUS = auto()
    """The history shows several candidates, or a row that could not be read may hide one."""


class HistorySearch:
    """Searches the history, page by page, for the task of one creation.

    The creation of a task of `feature` was sent at `sent`. `features` are the names of all features
    that an action may name.
    """

    def __init__(self, feature: str, features: Collection[str], sent: int) -> None:
        # Actions spell the separators of a path as hyphens.
        self._feature = re.sub(r"[\W_]+", "-", feature.partition("@")[0])
        self._features = (*features, self._feature)
        # It is not documented which feature each published action stands for, so it may stand for
        # any feature but these.
        self._is_unpublished = feature in _UNPUBLISHED_FEATURES
        self._sent = sent
        self._since = sent - SKEW
        self._near = sent - NEAR + SKEW
        # For each task: whether an action names the feature, and the first time. A failed task has
        # a second row, the refund.
        self._found: dict[str, tuple[bool, int]] = {}
        self._before: dict[str, int] = {}
        # False once a row could not be read.
        self._complete = True
        # The first, the lowest and the last of the times read so far.
        self._first: int | None = None
        self._lowest = self._last = 0
        self._descends = True

    @property
    def found(self) -> frozenset[str]:
        """The tasks that may be the one in doubt, including tasks that are known here."""
        return frozenset(self._found)

    def read(self, rows: Iterable[Movement | None]) -> bool:
        """Read the rows of a page, and return whether the next page is needed.

        Rows are expected newest first. If they are in another order, all pages are needed.
        """
        for row in rows:
            if row is None:
                self._complete = False
                continue
            if self._first is None:
                self._first = self._lowest = row.at
            # The lowest time, not the last one, is compared: rows that ascend in small steps never
            # exceed the last one by more than the tolerance.
            self._descends = self._descends and row.at <= self._lowest + SKEW
            self._lowest, self._last = min(self._lowest, row.at), row.at
            if row.at < self._since:
                if row.at >= self._near and self._names_feature(row.action) is not None:
                    first = self._before.get(row.task_id, row.at)
                    self._before[row.task_id] = min(first, row.at)
            elif (named := self._names_feature(row.action)) is not None:
                before, first = self._found.get(row.task_id, (False, row.at))
                self._found[row.task_id] = named or before, min(first, row.at)
        if self._first is None or not self._descends:
            return True
        return self._last >= self._near or self._first < self._last

    def _names_feature(self, action: str) -> bool | None:
        """Return whether `action` names the feature; None if it names another one."""
        named = [name for name in self._features if _names(action, name)]
        # If one name contains another, the action means the longer one.
        meant = [name for name in named if not any(name in other != name for other in named)]
        if not meant:
            published = action.removeprefix("api-") in _PUBLISHED_OF_TASKS
            return None if published and self._is_unpublished else False
        return True if self._feature in meant else None

    def candidates(self, known: Callable[[str], bool]) -> tuple[str, ...]:
        """Return the unknown tasks that may be the one in doubt, oldest first.

        They include tasks from shortly before the sending, since the vendor's clock may be behind.
        """
        times = {task_id: at for task_id, (_, at) in self._found.items()} | self._before
        unknown = [task_id for task_id in times if not known(task_id)]
        return tuple(sorted(unknown, key=lambda task_id: (times[task_id], task_id)))

    def verdict(
        self, known: Callable[[str], bool], *, now: int, others_in_doubt: bool = False
    ) -> str | Unresolved:
        """Return the id of the task if only one task is possible, else the reason for none.

        Call it only if the user says that nobody else creates tasks with the key.
        `others_in_doubt`: another creation of this process or journal is in doubt as well.
        """
        candidates = self.candidates(known)
        if not candidates and self._complete:
            return Unresolved.NOTHING
        if len(candidates) != 1 or others_in_doubt or not self._complete:
            return Unresolved.AMBIGUOUS
        [task_id] = candidates
        named, first = self._found.get(task_id, (False, 0))
        in_time = self._sent - _EARLIEST <= first <= now + SKEW and task_id not in self._before
        return task_id if named and in_time else Unresolved.AMBIGUOUS


def _names(action: str, feature: str) -> bool:
    """Return whether an action names a feature, with or without the "ai-" before its name."""
    return feature in action or f"-{feature.removeprefix('ai-')}-" in f"-{action}-"
