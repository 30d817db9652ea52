"""Learn about the network and the key from answers, and set the pace of requests by it.

Round trips and failures give the cycle of the timetable and the requests that are never reserved;
429s give the limit that is assumed; requests without an answer give a pause, so that nothing is
created into an outage. All times are integer microseconds.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Final

from perfect_async import events as ev
from perfect_async._ratelimit.adaptive import AdaptiveLimit
from perfect_async._ratelimit.estimators import LatencyEstimator
from perfect_async._ratelimit.timetable import RESCUE_AFTER, Timetable
from perfect_async._time import SECOND, SLOT
from perfect_async.models import Limits

_STEP: Final = 4
"""Cycles change in steps of so many slots, so that small changes do not move the plan."""
_SHORT: Final = 88
"""The most of a lease, in percent, between two polls: an end is heard soon."""
_LONG: Final = 93
"""The same while more work waits than a window holds: fewer polls, so more tasks side by side. What
is left of a lease of 10 s holds two tries, or the poll of another member for one that stopped.
"""
_LATE: Final = 4
"""Slots by which a reserved poll leaves late where the process stood still."""
_PUNCTUAL: Final = 400
"""So many polls have to leave in time after a late one, until a long cycle is trusted again."""
_RARE: Final = 15 * SECOND
"""A longer cycle than this is much longer than most tasks last."""
_KEPT_FOR_ENDS: Final = 4
_MOST_KEPT: Final = 8
"""Requests that creations leave to early polls then: 4, and 8 where it is twice as long."""
_MOST_SPARED: Final = 2
_SPARE: Final = 0.008
"""The share of a window that is not reserved on a good network: 2 of 250."""
_LONGEST_PAUSE: Final = 30 * SECOND
_DOUBT: Final = 2 * SECOND
_LONGEST_DOUBT: Final = 120 * SECOND
"""Pauses after creations without an answer grow fast, to 2 minutes: each may cost units."""
_SILENT: Final = 3
"""So many creations may wait longer than the patience before no other leaves."""
_JITTER_TOLERANCE: Final = 2 * SLOT
"""The guard shrinks only by so much at once."""
_FAILED: Final = (ev.NotSent, ev.NoAnswer, ev.Refused, ev.KeyRefused)
"""Answers to a poll that contain nothing about its task."""
_NOTHING: Final = 4
"""So few requests of ours in a window count as none."""
_PROBING: Final = 30 * SECOND
"""How long polls are wanted in mid-lease after an event while more is tried."""
_GROW: Final = 30 * SECOND
"""The least time between two plans: growing can wait, shrinking is tried each second."""


class Pacer:
    """The evidence about network and key, and the timetable that is planned by it.

    `lease` and `horizon` (how long polls are reserved for a task) in microseconds. Nothing new is
    sent before `hold`. `overcommitted` is True while the plan suits a better network than there is,
    so that nothing new may be reserved. While `calm`, `replan` would change nothing at any time:
    the plan suits the network, and no other user of the key was seen. `long`: more work waits than
    a window holds, or did when the tasks that run began.
    """

    def __init__(self, limits: Limits, *, lease: int, horizon: int) -> None:
        self.network = LatencyEstimator()
        self.allowance = AdaptiveLimit(limits.requests, round(limits.period * SECOND))
        self.table = Timetable(
            requests=limits.requests,
            period=round(limits.period * SECOND),
            per_second=limits.per_second,
            horizon=horizon,
        )
        self.hold = 0
        self.overcommitted = False
        self.refused = 0
        self.calm = False
        self.long = False
        self._requests = limits.requests
        self._lease = lease
        self._outage = 0
        self._doubts = 0
        self._doubt_until = 0
        self._creating: dict[int, int] = {}
        self._cut_at = 0
        self._gap = 0
        self._unpunctual = 0
        self._cut_for = -1
        self._settled = self._crowded = False
        # The cycle, guard and spared places that the worst network of another member asks for.
        self._elsewhere: tuple[int, int, int] | None = None
        self._sized: tuple[float, int] = (0.0, 0)
        self._reserve = 0
        if limits.per_second == 1:
            # A retry leaves a second and the guard after the poll, however soon it is wanted.
            self._gap = SECOND
        self.table.spared = self._wanted_spared()
        self.table.recut(self._wanted_cycle(), self._wanted_guard(), 0, limits.requests)

    def set_limits(self, limits: ev.SharedLimits) -> None:
        """Plan by other limits and another lease from now on."""
        self._requests, self._lease = limits.requests, limits.lease
        self._gap = SECOND if limits.per_second == 1 else 0
        self.table.set_limits(
            requests=limits.requests, period=limits.period, per_second=limits.per_second
        )
        self.allowance.set_limits(limits.requests, limits.period)
        self._sized, self._cut_for, self._crowded, self.calm = (0.0, 0), -1, True, False
        # A shorter lease does not wait for the time of the next plan.
        self._cut_at = 0

    def reserve(self) -> int:
        """Requests of a window that are never reserved: for retries, and for late polls."""
        sized = self.network.failing, self.table.cycle
        if self._sized != sized:
            self._sized, share = sized, max(_SPARE, 1.25 * self.network.failing)
            most = max(1, min(self._requests // 4, self._requests - self.alone()))
            self._reserve = min(math.ceil(share * self._requests), most)
        return self._reserve

    @property
    def firm(self) -> int:
        """How many requests of a window may be reserved for running tasks."""
        return self._requests - self.reserve()

    def limit(self, now: int) -> int:
        """How many requests of a window creations may count on."""
        limit, reserve = self.allowance.limit(now), self.reserve()
        if limit == self._requests:
            return limit - reserve
        least = min(self._requests, self.alone() + reserve)
        if limit < least and self.allowance.quiet(now):
            # Not even one task can be insured for as long as it may run. One is tried anyway if
            # half of the limit is free, since most tasks need far less, or if next to nothing of
            # ours is in the window, since without requests nothing is learned.
            free = self.table.occupied(now) <= max(limit // 2, _NOTHING)
            limit = least if free else limit
        return limit - reserve

    def plenty(self, now: int) -> bool:
        """Whether more than half of the window is free, or as many tasks again as run would fit.

        So a single task is polled at its interval while another one could still be created.
        """
        again = (self.alone() + self.reserve()) * max(1, len(self.table))
        most = min(self._requests // 2, again)
        return self.table.account.fits(now, most + 1, self._requests)

    def paused_until(self) -> int:
        """Until when only requests that keep tasks alive are sent."""
        return max(self.hold, self.allowance.paused_until)

    def silent(self, now: int, *, asking: bool) -> bool:
        """Whether nothing at all is sent: the window was full, and one request at a time probes
        whether it still is; `asking`: such a request is under way.
        """
        return now < self.allowance.silent_until or (self.allowance.full and asking)

    @property
    def creating(self) -> bool:
        """Whether a creation is under way."""
        return bool(self._creating)

    def created(self, number: int, now: int) -> None:
        """Record that creation `number` leaves."""
        self._creating[number] = now

    def may_create(self, now: int) -> bool:
        """Whether an answer to a creation can be expected: one without may be charged.

        After a creation without an answer the next one waits, and goes alone until it is answered.
        """
        if self._doubts:
            return now >= self._doubt_until and not self._creating
        if self.overcommitted:
            return False
        oldest = islice(self._creating.values(), _SILENT)
        return len(self._creating) < _SILENT or any(
            now - left <= self.network.patience for left in oldest
        )

    def on_response(self, event: ev.Answer, took: int, now: int) -> None:
        """Learn about the network and the key from an answer that took `took`."""
        polled = isinstance(event.command, ev.Poll)
        if isinstance(event.command, ev.Submit):
            self._creating.pop(event.command.number)
            if isinstance(event, ev.NoAnswer):
                self._doubts += 1
                pause = _DOUBT * 3 ** min(self._doubts - 1, 10)
                self._doubt_until = now + min(pause, _LONGEST_DOUBT)
            elif not isinstance(event, (ev.NotSent, ev.Limited)):
                self._doubts = 0
        match event:
            case ev.NotSent() | ev.NoAnswer():
                if not polled:
                    # Creating into an outage buys doubts: pause, longer each time.
                    self._outage += 1
                    pause = SECOND * 2 ** min(self._outage - 1, 10) // 2
                    self.hold = now + min(pause, _LONGEST_PAUSE)
            case ev.Limited():
                self.refused += 1
                self.on_refused(now - took, event.retry_after, now)
            case _:
                self._outage = 0
                self.network.answered(took)
                self.on_accepted(now)
        if polled and not isinstance(event, ev.Limited):
            # A 429 tells nothing about the network: to poll more often, as on a bad network, would
            # only cause more of them.
            self.network.polled(failed=isinstance(event, _FAILED))
        if self._cut_for != self.network.changes:
            self.calm = False

    def on_refused(self, left: int, retry_after: int | None, now: int) -> None:
        """Learn from a 429 to what left at `left`: ours, or that of another member of the key."""
        self.allowance.refused(now, left, self.table.occupied(now), retry_after)
        self.calm = False

    def on_accepted(self, now: int) -> None:
        """Learn from an answer that was no 429: to us, or to another member of the key."""
        if self.allowance.doubted:
            own = self.table.occupied(now) if self.allowance.full else 0
            self.allowance.accepted(now, own)

    def wanted(self) -> tuple[int, int, int]:
        """The cycle, the guard and the spared places of a second that our own network asks for."""
        return self._own_cycle(), self._own_guard(), self._own_spared()

    def heed(self, elsewhere: tuple[int, int, int] | None) -> None:
        """Suit the plan to what the worst network of another member asks for, as `wanted` tells."""
        if elsewhere != self._elsewhere:
            self._elsewhere = elsewhere
            self.calm, self._cut_for = False, -1

    @property
    def rare(self) -> bool:
        """Whether polls are so rare that most tasks end long before their first reserved one."""
        return self.table.cycle * SLOT >= _RARE

    @property
    def kept_for_ends(self) -> int:
        """Requests that creations leave to early polls, where polls are rare.

        An early poll frees all that is reserved for a task that has ended. Without any the window
        fills with reservations, and nothing is created until the first of them come.
        """
        return min(_KEPT_FOR_ENDS * (self.table.cycle * SLOT // _RARE), _MOST_KEPT)

    @property
    def even_pause(self) -> int:
        """The pause between early polls of one task with which a window lasts for all tasks.

        0 where reserved polls come at least twice in a window. Where they do not, a window that is
        full of early polls finds no end until it moves on: a longer lease would be slower.
        """
        reach = self.table.account.reach
        if 2 * self.table.cycle <= reach:
            return 0
        return len(self.table) * reach * SLOT // self._requests

    def expect(self, requests: int) -> None:
        """Suit the plan to the work that waits, which takes so many `requests` at the least.

        A long cycle stays while tasks run: to change it moves all polls.
        """
        long = requests > self._requests or (self.long and len(self.table) > 0)
        if long != self.long:
            self.long = long
            self.calm, self._cut_for = False, -1

    def polled(self, late: int) -> None:
        """Record that a reserved poll leaves so many slots late."""
        if late >= _LATE:
            changed, self._unpunctual = not self._unpunctual, _PUNCTUAL
        elif self._unpunctual:
            self._unpunctual -= 1
            changed = not self._unpunctual
        else:
            return
        if changed:
            self.calm, self._cut_for = False, -1

    def take_over(self, now: int) -> None:
        """Note that the timetable has got the plan of another member."""
        self.overcommitted = self._settled = self.calm = False
        self._cut_for = -1
        self._cut_at = now + _GROW

    def replan(self, now: int) -> None:
        """Give the timetable the cycle and the guard that suit the network, if they fit."""
        if self.allowance.probing(now):
            # While requests may be refused, polls leave in mid-lease, where that costs no task.
            self.allowance.contended_until = max(self.allowance.contended_until, now + _PROBING)
        waits = len(self.table) > 0 and now < self._cut_at
        if self._cut_for != self.network.changes or not (self._settled or waits):
            self._recut(now)
        self.calm = self._settled and not self.allowance.met

    def _recut(self, now: int) -> None:
        self._cut_for, self._settled = self.network.changes, False
        cycle, guard, spared = self._wanted_cycle(), self._wanted_guard(), self._wanted_spared()
        worse = cycle < self.table.cycle or guard > self.table.guard
        # Tasks whose polls are too close together for so many retries move apart.
        self._crowded |= spared > self.table.spared
        self.table.spared = spared
        if (cycle, guard) == (self.table.cycle, self.table.guard) and not self._crowded:
            self.overcommitted, self._settled = False, True
        elif not len(self.table) or now >= self._cut_at:
            fitted = self.table.recut(cycle, guard, now, self.firm)
            self._crowded &= not fitted
            # Reserve nothing new by a plan that the network no longer allows.
            self.overcommitted = not fitted and worse
            self._cut_at = now + (SECOND if self.overcommitted else _GROW)

    def lends(self, now: int) -> bool:
        """Whether a request that is not reserved may leave and all retries still come in time."""
        left = self._lease - self.table.cycle * SLOT - self.table.guard
        spent = (self.network.tries - 2) * self.network.patience
        return self.table.lends(now, max(0, left - spent) // SLOT - 1)

    def alone(self) -> int:
        """Requests of a window that one task needs: its creation, counted twice, and its polls."""
        return -(-self.table.account.reach // self.table.cycle) + 2

    def _wanted_guard(self) -> int:
        guard = self._own_guard()
        return guard if self._elsewhere is None else max(guard, self._elsewhere[1])

    def _wanted_spared(self) -> int:
        spared = self._own_spared()
        return spared if self._elsewhere is None else max(spared, self._elsewhere[2])

    def _wanted_cycle(self) -> int:
        cycle = self._own_cycle()
        if self._elsewhere is not None:
            cycle = min(cycle, self._elsewhere[0])
        return cycle if self.long else min(cycle, max(self._least_cycle(), self._percent(_SHORT)))

    def _own_guard(self) -> int:
        guard, wanted = self.table.guard, -(-self.network.jitter // SLOT) * SLOT
        return guard if guard - _JITTER_TOLERANCE < wanted <= guard else wanted

    def _own_spared(self) -> int:
        """Places of a second that are kept for retries.

        Retries that fail at once come in the same second: of three tries two, and so of more, since
        the rest of the lease is longer than a second then.
        """
        return min(self.network.tries - 1, _MOST_SPARED)

    def _own_cycle(self) -> int:
        """Slots between two polls: as many as let the last retry arrive in the lease.

        So does a poll that another member sends because its owner has stopped. Not so few that not
        even one task could be polled: late retries are better than none.
        """
        jitter = self.network.jitter
        apart = max(self.network.patience, self._gap and self._gap + self.table.guard)
        rest = max((self.network.tries - 1) * apart, RESCUE_AFTER * SLOT + jitter) + jitter
        cycle = max(self._lease - rest, self._lease * 4 // 10)
        longest = self._percent(_SHORT if self._unpunctual else _LONG)
        return max(1, self._least_cycle(), min(cycle // SLOT // _STEP * _STEP, longest))

    def _least_cycle(self) -> int:
        """The slots between two polls with which one task can be polled at all."""
        polls = self._requests - math.ceil(_SPARE * self._requests) - 2
        return min(-(-self.table.account.reach // max(1, polls)), self._lease * 88 // 100 // SLOT)

    def _percent(self, share: int) -> int:
        """That many percent of the lease, in slots."""
        slots = self._lease * share // 100 // SLOT
        return max(1, slots // 2 * 2)
