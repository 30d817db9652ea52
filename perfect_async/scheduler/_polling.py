"""Poll the tasks that exist: by reserved polls that renew their leases, or once they are announced.

`LeasePolling` keeps to the contract's lease: polls reserved in the timetable, retries inside the
lease, early polls where they pay. `WebhookPolling` is the vendor's own flow with webhooks, without
polls between the creation and the notification: a task holds only its last request, and is polled
when a notification arrives or when it is long overdue. Both receive the same events. All times are
integer microseconds.
"""

from __future__ import annotations

import heapq
from collections import Counter
from math import isqrt
from typing import Final, Protocol

from perfect_async._ratelimit.estimators import MOST_TRIES
from perfect_async._time import NEVER, SECOND, SLOT
from perfect_async.events import TaskKind
from perfect_async.models import Polling
from perfect_async.scheduler._admission import AdmissionController
from perfect_async.scheduler._job import JobState, ScheduledJob
from perfect_async.scheduler._pacer import Pacer

_OVERDUE: Final = 2
"""A task is long overdue after this many times its usual duration."""
_UNKNOWN: Final = 120 * SECOND
"""How long a task may last if nothing is known of its kind."""
_LONGEST: Final = 60 * SECOND
"""The longest pause between two polls of a task that was announced and still runs."""
_SOON: Final = 5 * SECOND
"""When a poll that failed is sent again where no lease runs; longer each time it fails again."""
_SUPPOSED: Final = 5
"""How many tasks are assumed to have been polled twice, before anything is known of any."""
_OF_LATE: Final = 200
"""How many ended tasks at most count in the average of polls sent in vain."""
_MOST_IN_VAIN: Final = 3
"""The most requests held for a task beside the one for its result."""

_LEAST_INTERVAL: Final = SECOND // 2
_WORTH: Final = SECOND
"""A poll that is early by less is not worth a request."""
_LAST: Final = ScheduledJob(-1, TaskKind(""), 0.0, uploads=False, channel=-1, state=JobState.TOLD)
_LAST.try_at = _LAST.early_at = _LAST.likely_at = NEVER
"""The end of each queue, so that there is always a first entry."""


class PollingStrategy(Protocol):
    """The reaction of a polling strategy to each event of a task."""

    @property
    def held(self) -> int:
        """How many requests its tasks will need that the timetable does not reserve."""
        ...

    def admits(self, job: ScheduledJob, now: int, limit: int) -> bool:
        """Return whether `job` may be created now beside those that exist; changes nothing."""
        ...

    def created(self, job: ScheduledJob, now: int) -> None:
        """Record that its creation, or the first poll of an adopted task, leaves."""
        ...

    def accepted(self, job: ScheduledJob, now: int) -> None:
        """Record that its task exists and can be polled."""
        ...

    def left(self, job: ScheduledJob, now: int) -> None:
        """Record that a poll of it leaves."""
        ...

    def runs(self, job: ScheduledJob, left: int, interval: int | None, now: int) -> None:
        """Record that a poll that left at `left` found it running."""
        ...

    def failed(self, job: ScheduledJob, at: int) -> None:
        """Record that a poll of it failed; from `at` on another may leave."""
        ...

    def release(self, job: ScheduledJob, *, ended: int | None, lost: bool) -> None:
        """Stop polling it: it `ended`, or was `lost`, or its end is unknown."""
        ...


class PollQueue:
    """The tasks to poll beside the reserved polls, by time: they are notified or overdue."""

    def __init__(self) -> None:
        self._queue: list[tuple[int, int, ScheduledJob]] = []

    def put(self, job: ScheduledJob, at: int) -> None:
        """Poll the task of `job` at `at`, and not at another time."""
        job.ask_at = at
        heapq.heappush(self._queue, (at, job.ref, job))

    def wakes(self) -> int:
        """Return when the next task is to be polled."""
        return self._queue[0][0] if self._queue else NEVER

    def first(self) -> int:
        """Return the ref of that task."""
        return self._queue[0][1]

    def tidy(self) -> None:
        """Drop entries that are no longer valid from the head."""
        while self._queue and (
            self._queue[0][2].ask_at != self._queue[0][0]
            or self._queue[0][2].state is not JobState.RUNNING
        ):
            heapq.heappop(self._queue)


class ExtraPolls:
    """The tasks to poll beside their reserved polls, and when.

    `lease` and `interval` as in `Polling`. `tries`, `early` and `likely` are heaps of (when, ref of
    the task, its job); their heads are valid after `tidy`, at `NEVER` where there is none.
    """

    def __init__(self, pacer: Pacer, *, lease: int, interval: int) -> None:
        self._pacer = pacer
        self._lease = lease
        self.interval = interval
        # Whether polls are needed to see an end: not while the vendor sends notifications.
        self.eager = True
        # Polls to retry; tasks that may be polled early; tasks that have probably ended.
        self.tries: list[tuple[int, int, ScheduledJob]] = [(NEVER, -1, _LAST)]
        self.early: list[tuple[int, int, ScheduledJob]] = [(NEVER, -1, _LAST)]
        self.likely: list[tuple[int, int, ScheduledJob]] = [(NEVER, -1, _LAST)]

    def try_at(self) -> int:
        """Return when a poll is to be sent again."""
        return self.tries[0][0]

    def early_at(self) -> int:
        """Return when a task may be polled before its reserved poll."""
        return self.early[0][0]

    def likely_at(self) -> int:
        """Return when a task has probably ended."""
        return self.likely[0][0]

    def created(self, job: ScheduledJob) -> None:
        """Record that the task exists; its first poll may come after the interval."""
        job.interval = self._usual(job)
        self._early_at(job, job.accepted + job.interval)

    def left(self, job: ScheduledJob, now: int) -> None:
        """Record that a poll of the task leaves; if it stays unanswered another leaves beside
        it.
        """
        job.last_left, job.early_at, job.likely_at = now, None, None
        self.failed(job, now + self._pacer.network.patience)

    def failed(self, job: ScheduledJob, at: int) -> None:
        """Send a poll again at `at`, where the lease would not hold until the next reserved one."""
        end = job.accepted + self._lease
        if job.tries:
            # The first retry may leave at once; the others share the rest of the lease, since a
            # failure that comes at once may pass in half a second.
            at = max(at, job.last_left + (end - job.last_left) // (MOST_TRIES - job.tries + 1))
        # The next reserved poll renews in time unless the one before it failed. However short the
        # cycle is, retries then come at once, as the cycle was cut for them.
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
        """Record that a poll that left at `left` renewed the lease; the vendor named `interval`.

        A later poll may be unanswered still, and its retry stays where the lease needs it. The
        interval is kept between half a second and the cycle. Where requests are not plenty, a
        seventh of the task's age passes first: a poll of an old task often finds it running, so the
        delay is in proportion.
        """
        job.doubted, job.accepted = False, max(job.accepted, left)
        table = self._pacer.table
        if table.lapsed(job.ref):
            # No poll is reserved any longer: one leaves when the lease needs it, if there is room.
            job.tries = 0
            self.failed(job, max(now, job.last_left + table.cycle * SLOT))
        elif job.try_at is not None:
            self.failed(job, job.try_at)
        job.interval = wait = self._usual(job) if interval is None else self._clamped(interval)
        if age // 7 > wait and not self._pacer.plenty(now):
            wait = age // 7
        self._early_at(job, job.last_left + wait)

    def expect_end(self, job: ScheduledJob, at: int | None) -> None:
        """Poll early at `at`, by when the task has probably ended (None: unknown).

        But not where the reserved poll comes soon enough.
        """
        job.likely_at = None
        if at is not None and self.eager:
            at = max(at, job.last_left + job.interval)
            if at + _WORTH <= self._pacer.table.next_poll(job.ref):
                job.likely_at = at
                heapq.heappush(self.likely, (at, job.ref, job))

    def tidy(self) -> None:
        """Drop entries that are no longer valid from the heads of the queues."""
        tries, early, likely = self.tries, self.early, self.likely
        while tries[0][2].try_at != tries[0][0]:
            heapq.heappop(tries)
        while early[0][2].early_at != early[0][0]:
            heapq.heappop(early)
        while likely[0][2].likely_at != likely[0][0]:
            heapq.heappop(likely)

    def _usual(self, job: ScheduledJob) -> int:
        """Return the interval between polls of `job` where their answers name none."""
        return self.interval if job.given_interval is None else self._clamped(job.given_interval)

    def _clamped(self, interval: int) -> int:
        """Keep an interval that the vendor names between half a second and the cycle."""
        return min(max(interval, _LEAST_INTERVAL), self._pacer.table.cycle * SLOT)

    def _early_at(self, job: ScheduledJob, at: int) -> None:
        """Allow a poll before the reserved one; under foreign use, want one in mid-lease."""
        wary = self._pacer.allowance.wary_until > job.last_left
        if wary:
            at = min(at, job.accepted + self._lease * 6 // 10)
        if (self.eager or wary) and at < self._pacer.table.next_poll(job.ref):
            job.early_at = at
            heapq.heappush(self.early, (at, job.ref, job))
        else:
            job.early_at = None


class LeasePolling:
    """Polling by reserved polls, which keep tasks alive whatever their durations.

    See `AdmissionController`, `Timetable` and `ExtraPolls`.

    `lease`, `interval`, `insured` and `give_up` as in `Polling`; `counts` has the numbers of late
    polls and of retries.
    """

    def __init__(
        self,
        pacer: Pacer,
        poll_queue: PollQueue,
        *,
        interval: int,
        insured: int,
        lease: int,
        give_up: int,
    ) -> None:
        self._table = pacer.table
        self._poll_queue = poll_queue
        self._give_up = give_up
        self.admission = AdmissionController(pacer, insured=insured, give_up=give_up)
        self.extra_polls = ExtraPolls(pacer, lease=lease, interval=interval)
        self.counts: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """How many requests its tasks need beside the reserved ones: none."""
        return 0

    def admits(self, job: ScheduledJob, now: int, limit: int) -> bool:
        """Return whether all polls to reserve for it fit."""
        return self.admission.admits(job, now, limit)

    def created(self, job: ScheduledJob, now: int) -> None:
        """Reserve its polls."""
        self.admission.created(job, now)

    def accepted(self, job: ScheduledJob, now: int) -> None:
        """Allow its reserved polls from now on."""
        self._table.arm(job.ref)
        self.admission.accepted(job.ref, now)
        self.extra_polls.created(job)
        if not job.adopted:
            self.extra_polls.expect_end(job, self.admission.likely_end(job.ref))

    def left(self, job: ScheduledJob, now: int) -> None:
        """Record a poll that leaves: its reserved one, a retry, or an extra one."""
        reserved = self._table.due(now // SLOT)
        if reserved is not None and reserved[1] == job.ref:
            self.counts["late"] += reserved[0] < now // SLOT
            self._table.keep(job.ref, now)
            job.tries = 0
        elif job.try_at is not None and job.try_at <= now:
            self.counts["tries"] += 1
            job.tries += 1
        job.ask_at = None
        self.extra_polls.left(job, now)

    def runs(self, job: ScheduledJob, left: int, interval: int | None, now: int) -> None:
        """Renew its lease; a task that was announced is polled again at its interval."""
        self.admission.runs(job.ref, left, now)
        age = now - job.given_up + self._give_up
        self.extra_polls.renewed(job, left, interval, age, now)
        self.extra_polls.expect_end(job, self.admission.likely_end(job.ref))
        if job.announced:
            self._poll_queue.put(job, now + pause(job))

    def failed(self, job: ScheduledJob, at: int) -> None:
        """Send another poll inside the lease, if the next reserved one comes too late."""
        self.extra_polls.failed(job, at)
        if job.announced:
            # It is about to end: poll again before the next reserved poll, so its caller waits
            # less.
            self._poll_queue.put(job, at + pause(job))

    def release(self, job: ScheduledJob, *, ended: int | None, lost: bool) -> None:
        """Free its reserved polls."""
        if ended is not None:
            # This end shows whether the vendor sends notifications (still).
            self.extra_polls.eager = not job.announced
        self.admission.release(job.ref, ended=ended, lost=lost)
        job.try_at = job.early_at = job.likely_at = job.ask_at = None


class WebhookPolling:
    """Polling only of tasks that are announced or overdue; nothing here renews a lease.

    A task holds the request that fetches its result, or more of them where tasks are announced too
    early. Where no notification comes, the task is polled once it has lasted twice as long as the
    longest of its kind that was announced of late (at first: twice the documented duration), ever
    more rarely from then on, and once more before it is given up.
    """

    def __init__(self, pacer: Pacer, poll_queue: PollQueue, *, interval: int) -> None:
        self._account = pacer.table.account
        self._poll_queue = poll_queue
        self._interval = interval
        self._tasks: dict[int, int] = {}
        self._longest: dict[TaskKind, int] = {}
        self._vain, self._ended = 0, 0

    @property
    def held(self) -> int:
        """How many requests its tasks need: one for each result, and those that are sent in vain.

        The latter are as many for each task as of late, plus the error of that estimate for so few
        tasks; one for each task until more is known.
        """
        count, known = len(self._tasks), self._ended + _SUPPOSED
        vain = min(-(-count * (self._vain + _SUPPOSED) // known), _MOST_IN_VAIN * count)
        return count + vain + 2 * isqrt(vain)

    def admits(self, job: ScheduledJob, now: int, limit: int) -> bool:  # noqa: ARG002 - another's business
        """Return whether its creation and its result fit beside the results of those that exist."""
        return self._account.fits(now, 2 + self.held, limit)

    def created(self, job: ScheduledJob, now: int) -> None:
        """Hold a request for it."""
        self._tasks[job.ref] = now

    def accepted(self, job: ScheduledJob, now: int) -> None:
        """Poll it once it is long overdue."""
        job.interval = self._interval
        self._ask(job, now + _OVERDUE * self._lasts(job), now)

    def left(self, job: ScheduledJob, now: int) -> None:
        """Record a poll that leaves; if its answer never comes, another leaves after a while."""
        job.accepted = job.last_left = now
        self._ask(job, now + 2 * _SOON, now)

    def runs(self, job: ScheduledJob, left: int, interval: int | None, now: int) -> None:  # noqa: ARG002
        """Poll it again later: it was announced too early, or is slow."""
        self._vain += job.announced > 0
        job.doubted, job.tries = False, 0
        lasted = now - self._tasks[job.ref]
        self._ask(job, now + (pause(job) if job.announced else max(_UNKNOWN, lasted // 2)), now)

    def failed(self, job: ScheduledJob, at: int) -> None:
        """Poll it again soon, and ever more rarely: an outage must not use up the window."""
        self._vain += 1
        job.tries += 1
        self._ask(job, at + min(_SOON << min(job.tries - 1, 10), _LONGEST), at)

    def release(self, job: ScheduledJob, *, ended: int | None, lost: bool) -> None:  # noqa: ARG002 - as above
        """Learn from its duration, if that is known, when other tasks are overdue."""
        began = self._tasks.pop(job.ref)
        job.ask_at, job.tries = None, 0
        self._ended += 1
        if self._ended >= _OF_LATE:
            self._ended, self._vain = self._ended // 2, self._vain // 2
        if ended is not None and job.announced:
            # Otherwise a poll for an overdue task found it ended, maybe long after its end. The
            # first tasks to end are the shortest, so the documented duration loses its weight only
            # slowly.
            self._longest[job.kind] = max(self._lasts(job) * 63 // 64, ended - began)

    def _lasts(self, job: ScheduledJob) -> int:
        """Return how long tasks like that of `job` last at the most."""
        usual = _UNKNOWN if job.kind.usual is None else job.kind.usual[1]
        return self._longest.get(job.kind, usual)

    def _ask(self, job: ScheduledJob, at: int, now: int) -> None:
        """Poll at `at`, or sooner, so that it is not given up yet and there is time for another
        try.
        """
        half = max((job.given_up - now) // 2, self._interval)
        last = max(job.given_up - 2 * _SOON, now + half)
        self._poll_queue.put(job, min(at, last))


def strategies(
    pacer: Pacer, poll_queue: PollQueue, polling: Polling
) -> tuple[LeasePolling, PollingStrategy]:
    """Return the strategy that renews leases, and the one to use by `Polling.completion`."""
    interval = round(polling.interval * SECOND)
    keeping = LeasePolling(
        pacer,
        poll_queue,
        interval=interval,
        insured=round(polling.insured * SECOND),
        lease=round(polling.lease * SECOND),
        give_up=round(polling.give_up_after * SECOND),
    )
    if polling.completion != "webhook":
        return keeping, keeping
    return keeping, WebhookPolling(pacer, poll_queue, interval=interval)


def pause(job: ScheduledJob) -> int:
    """Return how long not to poll a task that was announced and still runs: longer each time."""
    job.announced += 1
    return min(job.interval << min(job.announced - 2, 10), _LONGEST)
