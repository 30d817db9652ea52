"""Estimate from 429s how much of the key's window others use.

All times are integer microseconds.
"""

from __future__ import annotations

from typing import Final

import attrs

from perfect_async._time import SECOND

_FULL = 2
"""The number of 429s in a row that mean a full window. One may be the limit per second."""
_SECOND_LOOK: Final = 10 * SECOND
"""The least time after the first full window from which the rate of others is estimated."""
_FIRST_PAUSE: Final = 40 * SECOND
_PAUSE: Final = 15 * SECOND
"""How long no task is created after the first full window, and after each later one."""
_CONTENDED: Final = 120 * SECOND
"""How long others count as using the key after a full window."""
_SHRINK: Final = 0.8
_TOP: Final = 0.9
"""The shares of our requests in a full window that are assumed to fit, at once and later."""
_GROWTH: Final = 0.05
"""The growth of the assumed limit in requests per second, slower than any window empties."""
_HOLD: Final = 600 * SECOND
_LONGEST_HOLD: Final = 3600 * SECOND
_QUIET: Final = 30 * SECOND
_LONGEST_QUIET: Final = 300 * SECOND
_LONGEST_SILENCE: Final = 30 * SECOND


@attrs.define
class AdaptiveLimit:
    """The number of requests that a window is assumed to hold, where others may use the key too.

    One 429 may be the limit per second, so creations pause for a second. Two 429s in a row mean
    that the window is full with requests of others. The second one counts only if its request left
    after the pause: a request that was under way at the first refusal shows nothing new.

    In a full window others have at least `requests` less our own. Our own requests at a refusal are
    therefore a ceiling. The limit is assumed to be 0.8 of it, grows by 0.05 a second to 0.9 of it,
    and stays there for ten minutes. The stay doubles each time that more was tried and refused, to
    an hour at most. Then the limit grows further, and faster while no request is refused, so that
    the share of a user that has left is soon used again.

    At the first full window the other user may have started just now. It then has few requests in
    the window and sends more until a period has passed, so the ceiling shows nothing. No task is
    created for 40 s. The requests of the other user between this refusal and the next answer give
    its rate, and the rate gives the share that will be left.

    While the window is `full`, one request at a time probes it, after 1, 2, 4 and at most 30 s
    (`silent_until`). Refused requests fill the window too (contract: Limits), so a client that
    continues at its pace would lock itself out.

    Others are assumed to use the key until `contended_until`.
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
        """Use other limits from now on."""
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
        """Record an answer other than a 429; `own` requests of ours occupy the window."""
        if self.full:
            self._extrapolate(now, (self._theirs + self.requests - own) / 2)
        self._running = self.silent_until = 0
        self._silence, self.full = SECOND, False

    def limit(self, now: int) -> int:
        """Return how many requests the window is assumed to hold."""
        if self._met_at is None:
            return self.requests
        grown = self._assumed + _GROWTH * (now - self._since) / SECOND
        # More is tried only after the hold, and then at a growing rate.
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
        """Whether a window was ever full with requests of others."""
        return self._met_at is not None

    def probing(self, now: int) -> bool:
        """Return whether the limit is above the number of requests that was seen to fit."""
        return (
            self._met_at is not None and now > self._held_until and self.limit(now) < self.requests
        )

    def quiet(self, now: int) -> bool:
        """Return whether no window was full for 30 s, twice as long each time, 5 minutes at most.

        One task may then be tried even if it needs more than the limit, since few requests of ours
        in a full window do not mean that no more of them fit.
        """
        return now >= self._quiet_until

    def _met(self, now: int, own: int) -> int:
        """Record that the window is full; return how long no task may be created."""
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
        """Estimate the final share of others, of whose requests `theirs` are in the window."""
        since = now - (self._met_at or 0)
        if self._met_at is not None and _SECOND_LOOK <= since < self.period:
            rate = max(0.0, (theirs - self._theirs_then) / since)
            left = max(1.0, self.requests - self._theirs_then - rate * self.period)
            self._ceiling = min(self._ceiling, left)
            self._assumed, self._since = min(float(self.limit(now)), _TOP * left), now
