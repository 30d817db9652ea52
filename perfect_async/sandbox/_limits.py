"""The two request limits of each key (contract: Limits)."""

from __future__ import annotations

from collections import deque
from typing import Literal

import attrs

from ._http import MICROSECONDS

WindowKind = Literal["sliding", "fixed"]


@attrs.define
class Window:
    """At most `limit` arrivals in `span` microseconds."""

    limit: int
    span: int
    kind: WindowKind
    _arrivals: deque[int] = attrs.field(factory=deque[int], repr=False)

    def has_room(self, now: int) -> bool:
        """Return whether one more arrival fits at `now`."""
        # A sliding window covers (now - span, now]: an arrival leaves it exactly one span later.
        start = now - self.span if self.kind == "sliding" else now // self.span * self.span - 1
        while self._arrivals and self._arrivals[0] <= start:
            self._arrivals.popleft()
        return len(self._arrivals) < self.limit

    def count(self, now: int) -> None:
        """Count an arrival."""
        self._arrivals.append(now)


@attrs.frozen
class Rules:
    """The limits of every key; `period` is in seconds."""

    requests: int
    period: float
    per_second: int
    kind: WindowKind
    count_refused: bool


class Limiter:
    """The windows of all keys that have been used."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._keys: dict[str, tuple[Window, Window]] = {}
        # Foreign requests on every key also count for keys that are first used later.
        self._foreign: list[tuple[int, int]] = []

    def admits(self, key: str, now: int) -> bool:
        """Count an arrival, and return whether both limits admit it."""
        windows = self._windows(key)
        passes = all(window.has_room(now) for window in windows)
        if passes or self._rules.count_refused:
            for window in windows:
                window.count(now)
        return passes

    def foreign(self, count: int, key: str | None, now: int) -> None:
        """Count `count` arrivals of another program on this key (`None`: on every key)."""
        if key is not None:
            self._count(self._windows(key), count, now)
            return
        for windows in self._keys.values():
            self._count(windows, count, now)
        self._foreign.append((now, count))

    def _windows(self, key: str) -> tuple[Window, Window]:
        found = self._keys.get(key)
        if found is None:
            rules = self._rules
            found = self._keys[key] = (
                Window(rules.requests, round(rules.period * MICROSECONDS), rules.kind),
                Window(rules.per_second, MICROSECONDS, rules.kind),
            )
            for then, count in self._foreign:
                self._count(found, count, then)
        return found

    @staticmethod
    def _count(windows: tuple[Window, Window], count: int, now: int) -> None:
        for window in windows:
            for _ in range(count):
                window.count(now)
