"""What became of a creation whose answer never came, as far as the unit history tells.

The history's rows name a task and an action, and no picture: a wrong guess would hand one person's
face to another. So a task is taken for the one in doubt only if it is the only one that it can be:
one id that nobody here knows, of this feature, between the sending and now. What is not read to
that point, or looks otherwise, stays in doubt.

What the vendor calls the actions is open (contract: Other calls): one that names another feature is
another's, one that names none may be anybody's. All times are UTC microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import Enum, auto
from typing import Final

from perfect_async._enquiries import Movement
from perfect_async.events import SECOND

SKEW: Final = 60 * SECOND
"""How far the vendor's clock and ours may be apart; ids of ours in that time are known anyway."""


class Unsettled(Enum):
    """Why no task is taken for the one in doubt."""

    NOTHING = auto()
    """The history shows no task that it could be: nothing was charged, as far as it tells."""
    AMBIGUOUS = auto()
    """There are several, or one may have been missed."""


class Inquiry:
    """What the history says of one creation of `feature`, sent at `sent`, page by page.

    `features` are the names of all features: what an action may name.
    """

    def __init__(self, feature: str, features: Collection[str], sent: int) -> None:
        self._feature = feature
        self._features = tuple(features)
        self._since = sent - SKEW
        self._found: set[str] = set()
        # Of the times read so far: the first, the lowest and the last.
        self._first: int | None = None
        self._lowest = self._last = 0
        self._descends = True

    @property
    def found(self) -> frozenset[str]:
        """Tasks that it may be, those that are known here included."""
        return frozenset(self._found)

    def read(self, rows: Iterable[Movement]) -> bool:
        """Take a page in, and tell whether the next one is needed.

        Pages come newest first by all that is known; where they do not, all of them are read.
        """
        for row in rows:
            if self._first is None:
                self._first = self._lowest = row.at
            # Against the lowest: oldest first, each may be but a little later than the one before.
            self._descends = self._descends and row.at <= self._lowest + SKEW
            self._lowest, self._last = min(self._lowest, row.at), row.at
            if row.at >= self._since and self._may_be(row.action):
                self._found.add(row.task_id)
        if self._first is None or not self._descends:
            return True
        return self._last >= self._since or self._first < self._last

    def _may_be(self, action: str) -> bool:
        named = [name for name in self._features if name in action]
        # One name may hold another: the longer one is meant.
        meant = [name for name in named if not any(name in other != name for other in named)]
        return not meant or self._feature in meant

    def verdict(self, known: Callable[[str], bool]) -> str | Unsettled:
        """The task, if there is exactly one that nobody here knows."""
        unknown = [task_id for task_id in self._found if not known(task_id)]
        if len(unknown) == 1:
            return unknown[0]
        return Unsettled.AMBIGUOUS if unknown else Unsettled.NOTHING
