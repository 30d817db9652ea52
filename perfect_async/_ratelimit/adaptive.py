"""Estimate from 429s how much of the key's window something else uses.

All times are integer microseconds.
"""

from __future__ import annotations

from typing import Final

import attrs

from perfect_async._time import SECOND

_FULL = 2
"""429s running that mean a full window; one may be the second's limit."""
_SECOND_LOOK: Final = 10 * SECOND
"""So soon after contact what others took meanwhile is too little to tell their rate."""
_FIRST_PAUSE: Final = 40 * SECOND
_PAUSE: Final = 15 * SECOND
"""How long nothing is created after contact, and after each later sign of a full window."""
_CONTENDED: Final = 120 * SECOND
"""How long others count as using the key after a full window."""
_SHRINK: Final = 0.8
_TOP: Final = 0.9
"""What is assumed at once, and later, of what was in the window when something was refused."""
_GROWTH: Final = 0.05
"""Requests a second: slower than anybody's window empties."""
_HOLD: Final = 600 * SECOND
_LONGEST_HOLD: Final = 3600 * SECOND
_QUIET: Final = 30 * SECOND
_LONGEST_QUIET: Final = 300 * SECOND
_LONGEST_SILENCE: Final = 30 * SECOND


@attrs.define
class AdaptiveLimit:
    """How many requests a window may be assumed to hold when the key may be used elsewhere too.

    One 429 may be the per-second limit: creations pause a second. Two running mean that the window
    is full with requests that are not ours. Two running are two of which the second left after the
    pause: requests that were under way when the first was refused tell no more than it did.

    A full window tells that others hold at least `requests` less our own in it. So what is ours at
    a refusal is a ceiling: assume 0.8 of it, grow by 0.05 a second to 0.9 of it, and stay there for
    ten minutes, twice as long after each time that more was tried and refused, an hour at most.
    Then try more, faster while nothing is refused: who left is not missed for long, and who stays
    costs little.

    At contact the other may have come just now. Then he holds little, takes more every second until
    a window has passed, and the ceiling tells nothing: nothing is created for 40 s, and what he
    took between contact and the next answer tells his rate, and so what he will leave in the end.

    While the window is `full` one request at a time asks whether it still is, after 1, 2, 4 and at
    most 30 s (`silent_until`): refused requests fill the window too (contract: Limits), so a client
    that goes on at its pace locks itself out for as long as it does.

    Until `contended_until` others are taken to use the key.
    """

    requests: int
    period: int = 300 * SECOND
    paused_until: int = 0
    contended_until: int = 0
    silent_until: int = 0
    full: bool = False
    _assumed: float = attrs.field(init=False)
    _since: int = 0
    _ceiling: float = attrs.field(init=False)
    _hold: int = _HOLD
    _held_until: int = 0
    _running: int = 0
    _refused_at: int = 0
    _silence: int = SECOND
    _quiet: int = _QUIET
    _quiet_until: int = 0
    _met_at: int | None = None
    _episode_until: int = 0
    _theirs_then: int = 0
    _theirs: int = 0

    def __attrs_post_init__(self) -> None:
        self._assumed = self._ceiling = float(self.requests)

    def set_limits(self, requests: int, period: int) -> None:
        """Count by other limits from now on."""
        if self._met_at is None:
            self._assumed = self._ceiling = float(requests)
        else:
            self._assumed = min(self._assumed, requests)
            self._ceiling = min(self._ceiling, requests)
        self.requests, self.period = requests, period

    def refused(self, now: int, left: int, own: int, retry_after: int | None) -> None:
        """Record a 429 to a request sent at `left`; `own` requests of ours occupy the window."""
        pause, again = SECOND, not self._running or left >= self._refused_at + SECOND
        if again:
            self._running += 1
            self._refused_at = now
            if self._running >= _FULL:
                pause = self._met(now, own)
            if now < self.contended_until:
                self.full = True
                self.silent_until = now + self._silence
                self._silence = min(2 * self._silence, _LONGEST_SILENCE)
        self.paused_until = max(self.paused_until, now + max(pause, retry_after or 0))

    def accepted(self, now: int, own: int) -> None:
        """Record an answer that was no 429; `own` requests of ours occupy the window."""
        if self.full:
            self._extrapolate(now, (self._theirs + self.requests - own) / 2)
        self._running = self.silent_until = 0
        self._silence, self.full = SECOND, False

    def limit(self, now: int) -> int:
        """Requests that the window is assumed to hold."""
        if self._met_at is None:
            return self.requests
        grown = self._assumed + _GROWTH * (now - self._since) / SECOND
        # What was refused is not tried again before the hold is over, and then ever faster.
        past = max(0, now - self._held_until)
        top = max(self._assumed, _TOP * self._ceiling)
        grown = min(grown, top) + _GROWTH * past / SECOND * (1 + past / (2 * self.period))
        return min(self.requests, int(grown))

    @property
    def doubted(self) -> bool:
        """Whether the last answer was a 429."""
        return self._running > 0

    @property
    def met(self) -> bool:
        """Whether a window was ever full with requests that are not ours."""
        return self._met_at is not None

    def probing(self, now: int) -> bool:
        """Whether more is tried than was seen to fit."""
        return (
            self._met_at is not None and now > self._held_until and self.limit(now) < self.requests
        )

    def quiet(self, now: int) -> bool:
        """Whether no window was full for a while: 30 s, twice as long each time, at most 5 minutes.

        Then one task may be tried where even that is more than the limit: how few requests of ours
        were in a full window does not tell how many fit.
        """
        return now >= self._quiet_until

    def _met(self, now: int, own: int) -> int:
        """Record that the window is full; return how long to create nothing."""
        lately = now < self._quiet_until + _LONGEST_QUIET and self._quiet_until > 0
        self._quiet = min(2 * self._quiet, _LONGEST_QUIET) if lately else _QUIET
        self._quiet_until = now + self._quiet
        limit, pause = self.limit(now), _PAUSE
        self._theirs = self.requests - own
        if self._met_at is None or limit == self.requests:
            self._met_at, self._theirs_then = now, self._theirs
            self._hold, self._ceiling, pause = _HOLD, float(own), _FIRST_PAUSE
        elif now >= self._episode_until:
            self._hold, self._ceiling = min(2 * self._hold, _LONGEST_HOLD), float(own)
        self._ceiling = min(self._ceiling, own)
        self._assumed, self._since = min(float(limit), _SHRINK * own), now
        self._held_until = now + self._hold
        self.contended_until = self._episode_until = now + _CONTENDED
        self._extrapolate(now, self._theirs)
        return pause

    def _extrapolate(self, now: int, theirs: float) -> None:
        """Estimate what others will hold if they came at contact and now hold `theirs`."""
        since = now - (self._met_at or 0)
        if self._met_at is not None and _SECOND_LOOK <= since < self.period:
            rate = max(0.0, (theirs - self._theirs_then) / since)
            left = max(1.0, self.requests - self._theirs_then - rate * self.period)
            self._ceiling = min(self._ceiling, left)
            self._assumed, self._since = min(float(self.limit(now)), _TOP * left), now
