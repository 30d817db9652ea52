"""Time in integer microseconds: units, slots, and a set whose keys expire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

SECOND: Final = 1_000_000
"""Microseconds in a second."""
NEVER: Final = 2**63 - 1
"""Later than any time: only an event can wake the scheduler."""
SLOT: Final = 50_000
"""The length of a slot: waiting for one is not felt, and a wake-up still lands in it."""


class TtlSet:
    """Text keys that were added at most `age` microseconds ago, and the newest `most` of them.

    Time is an argument and never goes back, so the entries stay in the order of their times.
    (cachetools has `TTLCache`, which calls a clock of its own: a mutable one that is set before
    each call would be longer than this, and a package to install.)
    """

    __slots__ = ("_added", "_age", "_most")

    def __init__(self, age: int, most: int = 4096) -> None:
        if most < 1 or age < 1:
            raise ValueError(f"a set of {most} keys for {age} us can hold nothing")
        self._age = age
        self._most = most
        self._added: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._added)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._added))

    def __repr__(self) -> str:
        return f"<TtlSet {len(self)} of {self._most} keys>"

    def add(self, key: str, now: int) -> None:
        """Add `key` as the newest, and drop what is too old or too many."""
        self._added.pop(key, None)
        self._added[key] = now
        while len(self._added) > self._most or not self.holds(next(iter(self._added)), now):
            del self._added[next(iter(self._added))]

    def holds(self, key: str, now: int) -> bool:
        """Return whether `key` was added and is neither too old nor dropped."""
        return key in self._added and now - self._added[key] <= self._age

    def remove(self, key: str, now: int) -> bool:
        """Remove `key` and return whether it was held."""
        held = self.holds(key, now)
        self._added.pop(key, None)
        return held
