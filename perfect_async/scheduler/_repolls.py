"""Polls beside the promised ones: tries inside a lease that may end, and early ones that buy time.

Neither is promised, so each leaves only where the windows have room for it. All times are integer
microseconds.
"""

from __future__ import annotations

import heapq
from typing import Final

from perfect_async._ratelimit.network import MOST_TRIES
from perfect_async._time import NEVER, SECOND, SLOT
from perfect_async.scheduler._job import JobState, ScheduledJob
from perfect_async.scheduler._pacer import Pacer

_LEAST_INTERVAL: Final = SECOND // 2
_WORTH: Final = SECOND
"""A poll that is early by less is not worth a request."""
_LAST: Final = ScheduledJob(-1, "", 0.0, uploads=False, channel=-1, state=JobState.TOLD)
_LAST.try_at = _LAST.early_at = _LAST.likely_at = NEVER
"""Ends each queue, so that there is a first one always."""


class ExtraPolls:
    """Which tasks are to be asked again beside their promises, and when.

    `lease` and `interval` as in `Polling`. `tries`, `early` and `likely` are heaps of when, which
    task (by ref) and its job; their heads are true after `tidy`, at `NEVER` where there is none.
    """

    def __init__(self, pacer: Pacer, *, lease: int, interval: int) -> None:
        self._pacer = pacer
        self._lease = lease
        self.interval = interval
        # Whether asking is the way to hear of an end: not while the vendor tells it by itself.
        self.eager = True
        # To be tried again; may be asked early; has rather ended than not.
        self.tries: list[tuple[int, int, ScheduledJob]] = [(NEVER, -1, _LAST)]
        self.early: list[tuple[int, int, ScheduledJob]] = [(NEVER, -1, _LAST)]
        self.likely: list[tuple[int, int, ScheduledJob]] = [(NEVER, -1, _LAST)]

    def wakes(self) -> list[int]:
        """When something may be worth asking."""
        heads = (self.tries[0][0], self.early[0][0], self.likely[0][0])
        return [at for at in heads if at != NEVER]

    def created(self, job: ScheduledJob) -> None:
        """The task exists; its first poll may come after the interval."""
        job.interval = self.interval
        self._early_at(job, job.accepted + job.interval)

    def left(self, job: ScheduledJob, now: int) -> None:
        """A poll of the task leaves; if it stays silent another leaves beside it."""
        job.last_left, job.early_at, job.likely_at = now, None, None
        self.failed(job, now + self._pacer.network.patience)

    def failed(self, job: ScheduledJob, at: int) -> None:
        """Send a poll again at `at`, where the lease would not hold until the next promised one."""
        end = job.accepted + self._lease
        if job.tries:
            # The first try may leave at once; the others share what is left of the lease, since
            # what fails at once now may pass in half a second.
            at = max(at, job.last_left + (end - job.last_left) // (MOST_TRIES - job.tries + 1))
        # The next promise renews in time unless the one before it failed: short as the cycle may
        # be, its tries come at once, as the cycle was cut for them.
        table = self._pacer.table
        if (
            at < end
            and job.tries < MOST_TRIES
            and not table.polled_by(job.ref, job.accepted + (table.cycle + 1) * SLOT)
        ):
            job.try_at = at
            heapq.heappush(self.tries, (at, job.ref, job))
        else:
            job.try_at = None

    def renewed(
        self, job: ScheduledJob, left: int, interval: int | None, age: int, now: int
    ) -> None:
        """A poll that left at `left` renewed the lease; `interval` is what the vendor asks for.

        A later poll may be unanswered still, and its try stays where the lease needs it. The
        interval is kept between half a second and the cycle. Where requests are not plenty, a
        seventh of the task's age passes first: asking an old task often learns little, and so the
        delay is in proportion.
        """
        job.doubted, job.accepted = False, max(job.accepted, left)
        table = self._pacer.table
        if table.lapsed(job.ref):
            # Nothing is promised any longer: it leaves if there is room when it must.
            job.tries = 0
            self.failed(job, max(now, job.last_left + table.cycle * SLOT))
        elif job.try_at is not None:
            self.failed(job, job.try_at)
        job.interval = wait = self.interval
        if interval is not None:
            job.interval = wait = min(max(interval, _LEAST_INTERVAL), table.cycle * SLOT)
        if age // 7 > wait and not self._pacer.plenty(now):
            wait = age // 7
        self._early_at(job, job.last_left + wait)

    def hopes(self, job: ScheduledJob, at: int | None) -> None:
        """By `at` the task has rather ended than not (None: nobody knows): worth asking then.

        But not for what the promised poll hears soon enough.
        """
        job.likely_at = None
        if at is not None and self.eager:
            at = max(at, job.last_left + job.interval)
            if at + _WORTH <= self._pacer.table.next_poll(job.ref):
                job.likely_at = at
                heapq.heappush(self.likely, (at, job.ref, job))

    def tidy(self) -> None:
        """Drop from the heads of the queues what no longer holds."""
        tries, early, likely = self.tries, self.early, self.likely
        while tries[0][2].try_at != tries[0][0]:
            heapq.heappop(tries)
        while early[0][2].early_at != early[0][0]:
            heapq.heappop(early)
        while likely[0][2].likely_at != likely[0][0]:
            heapq.heappop(likely)

    def _early_at(self, job: ScheduledJob, at: int) -> None:
        """Allow a poll before the promise; under foreign use, want one in mid-lease."""
        wary = self._pacer.allowance.wary_until > job.last_left
        if wary:
            at = min(at, job.accepted + self._lease * 6 // 10)
        if (self.eager or wary) and at < self._pacer.table.next_poll(job.ref):
            job.early_at = at
            heapq.heappush(self.early, (at, job.ref, job))
        else:
            job.early_at = None
