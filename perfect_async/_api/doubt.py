"""What became of a creation whose answer never came, as far as the unit history tells.

The history's rows name a task and an action, and no picture: a wrong guess would hand one person's
face to another. So a task is taken for the one in doubt only if it is the only one that it can be:
one id that nobody here knows, of this feature, between the sending and now, and nothing else here
is in doubt that it may be as well, and nobody else seems to create on the key. What is not read to
that point, or looks otherwise, stays in doubt: an unknown task from shortly before the sending too,
for then somebody else uses the account, or the clocks are too far apart to tell.

What the vendor calls the actions is open (contract: Other calls): one that names another feature is
another's, one that names none may be anybody's. All times are UTC microseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from enum import Enum, auto
from typing import Final

from perfect_async._api.account import Movement
from perfect_async._time import SECOND

SKEW: Final = 60 * SECOND
"""How far the vendor's clock and ours may be apart; ids of ours in that time are known anyway."""
NEAR: Final = 240 * SECOND
"""How long before the sending others count: a creation in doubt, whose task may come as late, or a
task of nobody here, whose owner may have created another one since.
"""

_APART: Final = 5 * SECOND
"""How far before the sending, by the vendor's clock, a task may be ours and nobody else's."""


class Unresolved(Enum):
    """Why no task is taken for the one in doubt."""

    NOTHING = auto()
    """The history shows no task that it could be: nothing was charged, as far as it tells."""
    AMBIGUOUS = auto()
    """There are several, or one may have been missed."""


class HistorySearch:
    """What the history says of one creation of `feature`, sent at `sent`, page by page.

    `features` are the names of all features: what an action may name.
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
            if row.at < self._since:
                if row.at >= self._near:
                    self._before.add(row.task_id)
            elif (named := self._named(row.action)) is not None:
                before, first = self._found.get(row.task_id, (False, row.at))
                self._found[row.task_id] = named or before, min(first, row.at)
        if self._first is None or not self._descends:
            return True
        return self._last >= self._since or self._first < self._last

    def _named(self, action: str) -> bool | None:
        """Whether `action` names the feature; None where it names another."""
        named = [name for name in self._features if name in action]
        # One name may hold another: the longer one is meant.
        meant = [name for name in named if not any(name in other != name for other in named)]
        return None if meant and self._feature not in meant else bool(meant)

    def shared(self, known: Callable[[str], bool]) -> bool:
        """Whether somebody else created on the key shortly before, as far as was read."""
        return any(not known(task_id) for task_id in self._before - self._found.keys())

    def verdict(
        self, known: Callable[[str], bool], doubtful: Collection[str] = ()
    ) -> str | Unresolved:
        """The task, if there is exactly one that nobody here knows.

        `doubtful` are the features of the other creations here of which nobody knows what became.
        """
        unknown = [task_id for task_id in self._found if not known(task_id)]
        if not unknown:
            return Unresolved.NOTHING
        named, first = self._found[unknown[0]]
        others = any(name == self._feature or not named for name in doubtful)
        if others or len(unknown) > 1 or first < self._sent - _APART:
            return Unresolved.AMBIGUOUS
        return unknown[0]
