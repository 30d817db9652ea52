"""Learn about the network and the key from answers, and set the pace of requests accordingly.

Round trips and failures determine the cycle of the timetable and the requests that are never
reserved. 429s determine the assumed limit. Requests without an answer cause a pause, so that no
task is created during an outage. All times are integer microseconds.
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
"""Cycles are multiples of so many slots, so that small changes do not change the plan."""
_SHORT: Final = 88
"""The longest cycle, in percent of the lease, so that an end is found soon."""
_LONG: Final = 93
"""The same while more work waits than a window holds. Fewer polls let more tasks run side by side.
The rest of a lease of 10 s still holds two tries, or the poll of another member for a stopped one.
"""
_LATE: Final = 4
"""The number of slots from which a late poll shows that the process stood still."""
_PUNCTUAL: Final = 400
"""The number of punctual polls after a late one from which a long cycle may be used again."""
_RARE: Final = 20 * SECOND
"""The cycle from which polls are rare: it is much longer than most tasks last."""
_KEPT_FOR_ENDS: Final = 4
_MOST_KEPT: Final = 8
"""The requests that creations leave to early polls then: 4, or 8 if the cycle is twice as long."""
_MOST_SPARED: Final = 2
_SPARE: Final = 0.016
"""The share of a window that is not reserved on a good network: 4 of 250."""
_LONGEST_PAUSE: Final = 30 * SECOND
_DOUBT: Final = 2 * SECOND
_LONGEST_DOUBT: Final = 120 * SECOND
"""The first and the longest pause after creations without an answer, which may cost units."""
_SILENT: Final = 3
"""The number of creations that may be overdue before no other creation is sent."""
_JITTER_TOLERANCE: Final = 2 * SLOT
"""The guard shrinks only where jitter is lower by this much."""
_FAILED: Final = (ev.NotSent, ev.NoAnswer, ev.Refused, ev.KeyRefused)
"""The answers to a poll that do not tell the state of its task."""
_NOTHING: Final = 4
"""The number of our requests in a window up to which it counts as empty."""
_PROBING: Final = 30 * SECOND
"""How long polls leave in mid-lease after an event while a higher limit is being tried."""
_GROW: Final = 30 * SECOND
"""The least time between two changes of the plan. Shrinking is tried each second."""


class Pacer:
    """The observations of the network and the key, and the timetable that is planned by them.

    `lease` and `horizon` (how long polls are reserved for a task) are in microseconds. No new work
    is sent before `hold`. `overcommitted` is True while the plan assumes a better network than the
    present one, so that no more polls may be reserved. `plan_is_current` is True while `replan`
    would change nothing: the plan suits the network, and no other user of the key was seen. `long`
    is True while more work waits than a window holds, and until the tasks that ran then have ended.
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
        self.plan_is_current = False
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
        # The cycle, guard and spared requests of a second that the worst network elsewhere needs.
        self._elsewhere: tuple[int, int, int] | None = None
        self._sized: tuple[float, int] = (0.0, 0)
        self._reserve = 0
        if limits.per_second == 1:
            # A retry cannot leave sooner than a second and the guard after the poll.
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
        self._sized, self._cut_for, self._crowded, self.plan_is_current = (0.0, 0), -1, True, False
        # A shorter lease applies at once.
        self._cut_at = 0

    def reserve(self) -> int:
        """Return how many requests of a window are kept for retries and late polls."""
        sized = self.network.failing, self.table.cycle
        if self._sized != sized:
            self._sized, share = sized, max(_SPARE, 1.25 * self.network.failing)
            most = max(1, min(self._requests // 4, self._requests - self.alone()))
            self._reserve = min(math.ceil(share * self._requests), most)
        return self._reserve

    @property
    def reservable(self) -> int:
        """The number of requests of a window that may be reserved for running tasks."""
        return self._requests - self.reserve()

    def limit(self, now: int) -> int:
        """Return how many requests of a window creations may use."""
        limit, reserve = self.allowance.limit(now), self.reserve()
        if limit == self._requests:
            return limit - reserve
        least = min(self._requests, self.alone() + reserve)
        if limit < least and self.allowance.quiet(now):
            # The limit does not hold all polls that one task may need. One is tried anyway if half
            # of the limit is free, since most tasks need far fewer. One is also tried if the window
            # has hardly any request of ours, since only requests show what the key allows.
            free = self.table.occupied(now) <= max(limit // 2, _NOTHING)
            limit = least if free else limit
        return limit - reserve

    def plenty(self, now: int) -> bool:
        """Return whether half of the window is free, or twice the running tasks would fit.

        A single task is then polled at its interval, while another one could still be created.
        Where polls are rare, one poll of each running task is left for when it has probably ended.
        """
        running = len(self.table)
        again = (self.alone() + self.reserve()) * max(1, running)
        most = min(self._requests // 2, again) + self.rare * running
        return self.table.account.fits(now, most + 1, self._requests)

    def paused_until(self) -> int:
        """Return until when only requests that keep tasks alive are sent."""
        return max(self.hold, self.allowance.paused_until)

    def silent(self, now: int, *, asking: bool) -> bool:
        """Return whether no request at all may be sent.

        After the window was full, one request at a time probes whether it still is. `asking` is
        whether such a request is under way.
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
        """Return whether an answer to a creation can be expected.

        A creation without an answer may be charged. After such a one the next creation waits, and
        is the only one under way until it is answered.
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
        """Learn about the network and the key from an answer that came after `took`."""
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
                    # Creations during an outage may be charged: pause, longer each time.
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
            # A 429 is no sign of a bad network. Polling more often, as on a bad network, would only
            # cause more 429s.
            self.network.polled(failed=isinstance(event, _FAILED))
        self._check_plan()

    def on_poll_nearby(self, *, failed: bool) -> None:
        """Learn about the network from the answer to a poll of another member on it."""
        self.network.polled_nearby(failed=failed)
        self._check_plan()

    def _check_plan(self) -> None:
        if self._cut_for != self.network.changes:
            self.plan_is_current = False

    def on_refused(self, left: int, retry_after: int | None, now: int) -> None:
        """Learn from a 429 to a request of ours or of another member, sent at `left`."""
        self.allowance.refused(now, left, self.table.occupied(now), retry_after)
        self.plan_is_current = False

    def on_accepted(self, now: int) -> None:
        """Learn from an answer, to us or to another member, that was not a 429."""
        if self.allowance.doubted:
            own = self.table.occupied(now) if self.allowance.full else 0
            self.allowance.accepted(now, own)

    def wanted(self) -> tuple[int, int, int]:
        """Return the cycle, the guard and the spared requests per second that our network needs."""
        return self._own_cycle(), self._own_guard(), self._own_spared()

    def adapt_to_others(self, elsewhere: tuple[int, int, int] | None) -> None:
        """Take into account what the worst network of another member needs; see `wanted`."""
        if elsewhere != self._elsewhere:
            self._elsewhere = elsewhere
            self.plan_is_current, self._cut_for = False, -1

    @property
    def rare(self) -> bool:
        """Whether most tasks end long before their first reserved poll."""
        return self.table.cycle * SLOT >= _RARE

    @property
    def kept_for_ends(self) -> int:
        """The number of requests that creations leave to early polls, where polls are rare.

        An early poll frees all that is reserved for a task that has ended. Without early polls the
        window fills with reservations, and no task is created until the first reserved polls.
        Where no poll is reserved within a window of a creation, each running task needs one.

        It is 0 while nothing is reserved, since a small window may hold no more than one task.
        """
        running, cycle = len(self.table), self.table.cycle
        if not running:
            return 0
        least = min(_KEPT_FOR_ENDS * (cycle * SLOT // _RARE), _MOST_KEPT)
        return max(least, running) if cycle > self.table.account.reach else least

    @property
    def even_pause(self) -> int:
        """The time between two requests with which a window lasts for its whole length."""
        return self.table.account.reach * SLOT // self._requests

    def expect(self, requests: int) -> None:
        """Adapt the plan to the waiting work, which needs so many `requests` at least.

        A long cycle stays while tasks run, since a change of the cycle moves all polls.
        """
        long = requests > self._requests or (self.long and len(self.table) > 0)
        if long != self.long:
            self.long = long
            self.plan_is_current, self._cut_for = False, -1

    def polled(self, late: int) -> None:
        """Record that a reserved poll leaves `late` slots late."""
        if late >= _LATE:
            changed, self._unpunctual = not self._unpunctual, _PUNCTUAL
        elif self._unpunctual:
            self._unpunctual -= 1
            changed = not self._unpunctual
        else:
            return
        if changed:
            self.plan_is_current, self._cut_for = False, -1

    def plan_adopted(self, now: int) -> None:
        """Record that the timetable now has the plan of another member."""
        self.overcommitted = self._settled = self.plan_is_current = False
        self._cut_for = -1
        self._cut_at = now + _GROW

    def replan(self, now: int) -> None:
        """Change the timetable to the cycle and the guard that suit the network, if they fit."""
        if self.allowance.probing(now):
            # While a poll may be refused, polls leave in mid-lease, so that no task is lost by it.
            self.allowance.contended_until = max(self.allowance.contended_until, now + _PROBING)
        waits = len(self.table) > 0 and now < self._cut_at
        if self._cut_for != self.network.changes or not (self._settled or waits):
            self._recut(now)
        self.plan_is_current = self._settled and not self.allowance.met

    def _recut(self, now: int) -> None:
        self._cut_for, self._settled = self.network.changes, False
        cycle, guard, spared = self._wanted_cycle(), self._wanted_guard(), self._wanted_spared()
        worse = cycle < self.table.cycle or guard > self.table.guard
        # Tasks whose polls leave too little room for so many retries are moved.
        self._crowded |= spared > self.table.spared
        self.table.spared = spared
        if (cycle, guard) == (self.table.cycle, self.table.guard) and not self._crowded:
            self.overcommitted, self._settled = False, True
        elif not len(self.table) or now >= self._cut_at:
            fitted = self.table.recut(cycle, guard, now, self.reservable)
            self._crowded &= not fitted
            # No more polls are reserved by a plan that the network no longer allows.
            self.overcommitted = not fitted and worse
            self._cut_at = now + (SECOND if self.overcommitted else _GROW)

    def lends(self, now: int) -> bool:
        """Return whether an unreserved request may leave and all retries still come in time."""
        left = self._lease - self.table.cycle * SLOT - self.table.guard
        spent = (self.network.tries - 2) * self.network.patience
        return self.table.lends(now, max(0, left - spent) // SLOT - 1)

    def alone(self) -> int:
        """Return how many requests of a window one task needs; its creation counts twice."""
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
        """Return how many requests of a second are kept for retries.

        Two of three tries may fall into the same second. It is the same for more tries, since the
        rest of the lease is then longer than a second.
        """
        return min(self.network.tries - 1, _MOST_SPARED)

    def _own_cycle(self) -> int:
        """Return the slots between two polls on our own network.

        The last retry, and a poll that another member sends for a stopped owner, must arrive inside
        the lease. The cycle is never so short that not even one task can be polled, since late
        retries are better than none.
        """
        jitter = self.network.jitter
        apart = max(self.network.patience, self._gap and self._gap + self.table.guard)
        rest = max((self.network.tries - 1) * apart, RESCUE_AFTER * SLOT + jitter) + jitter
        cycle = max(self._lease - rest, self._lease * 4 // 10)
        longest = self._percent(_SHORT if self._unpunctual else _LONG)
        return max(1, self._least_cycle(), min(cycle // SLOT // _STEP * _STEP, longest))

    def _least_cycle(self) -> int:
        """Return the shortest cycle, in slots, in which one task can be polled."""
        polls = self._requests - math.ceil(_SPARE * self._requests) - 2
        longest = self._lease * _SHORT // 100 // SLOT
        return min(-(-self.table.account.reach // max(1, polls)), longest)

    def _percent(self, share: int) -> int:
        """Return `share` percent of the lease, in slots."""
        slots = self._lease * share // 100 // SLOT
        return max(1, slots // 2 * 2)
