"""Time in integer microseconds: units, slots, and a set whose keys expire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

SECOND: Final = 1_000_000
"""Microseconds in a second."""
NEVER: Final = 2**63 - 1
"""A time later than all others: only an event can wake the scheduler."""
SLOT: Final = 50_000
"""The length of a slot: too short for a user to notice, long enough for a timer to hit it."""


class TtlSet:
    """A set of text keys that forgets each one after `age` microseconds and keeps at most `most`.

    Time is an argument and never goes back, so the keys stay in the order of their times.
    (`TTLCache` of cachetools calls a clock. Setting a fake clock before each call would take more
    code than this class, and would add a dependency.)
    """

    __slots__ = ("_added", "_age", "_most")

    def __init__(self, age: int, most: int = 4096) -> None:
        if most < 1 or age < 1:
            raise ValueError(f"most and age must be at least 1; they are {most} and {age}")
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
        """Add `key` as the newest, and drop the keys that are too old or beyond `most`."""
        self._added.pop(key, None)
        self._added[key] = now
        while len(self._added) > self._most or not self.holds(next(iter(self._added)), now):
            del self._added[next(iter(self._added))]

    def holds(self, key: str, now: int) -> bool:
        """Return whether `key` is in the set and not too old."""
        return key in self._added and now - self._added[key] <= self._age

    def remove(self, key: str, now: int) -> bool:
        """Remove `key` and return whether the set held it."""
        held = self.holds(key, now)
        self._added.pop(key, None)
        return held
