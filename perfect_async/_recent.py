"""A mapping that remembers its newest entries in bounded memory."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """A mapping by text of the newest `least` entries at least, and twice as many at most.

    Entries are put into one dict until it has `least`, which then replaces an older dict. If each
    new entry took the place of the oldest one, the dict would keep the gaps of removed entries and
    become twice as large once it is full.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._newer: dict[str, T] = {}
        self._older: dict[str, T] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._newer or key in self._older

    def get(self, key: str, default: T) -> T:
        """Return the value of `key`, or `default` if it is not known."""
        return self._newer[key] if key in self._newer else self._older.get(key, default)

    def put(self, key: str, value: T) -> None:
        """Remember `value` as the newest value of `key`."""
        if len(self._newer) >= self._least:
            self._older, self._newer = self._newer, {}
        self._newer[key] = value

    def forget(self, value: T) -> None:
        """Forget all keys with this value."""
        for key, known in (self._older | self._newer).items():
            if known == value:
                # Also an older value of the key, which would be found otherwise.
                self._newer.pop(key, None)
                self._older.pop(key, None)
