"""Decide when running tasks are polled: inside their lease, or when a webhook announces their end.

`LeasePolling` keeps to the contract's lease. It reserves polls in the timetable, retries inside the
lease, and polls early where that frees more than it costs. `WebhookPolling` is the vendor's flow
with webhooks, without polls between the creation and the notification. A task then holds only the
request for its result, and is polled when a notification arrives or when it is long overdue. Both
strategies receive the same events. All times are integer microseconds.
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
from perfect_async.scheduler._job import UNKNOWN, JobState, ScheduledJob
from perfect_async.scheduler._pacer import Pacer

_OVERDUE: Final = 2
"""A task is long overdue after so many times its usual duration."""
_LONGEST: Final = 60 * SECOND
"""The longest pause between two polls of a task that was announced and still runs."""
_SOON: Final = 5 * SECOND
"""The pause before a failed poll is sent again where no lease runs; it grows with each failure."""
_SUPPOSED: Final = 5
"""The number of assumed tasks with one wasted poll each, which count before any is observed."""
_RECENT: Final = 200
"""The number of tasks after which the counts of tasks and wasted polls are halved."""
_MOST_WASTED: Final = 3
"""The most requests that are held for a task beside the one for its result."""

_SCOUT_FROM: Final = 5 * SECOND
"""The least time after which a task is polled early while nobody knows when it ends."""
_SHARE_OF_AGE: Final = 7
"""Where requests are scarce, a seventh of a task's age passes before it is polled early."""
_MANY_SCOUTS: Final = 8
"""The number of such tasks from which the time between two polls grows with their age."""

_LEAST_INTERVAL: Final = SECOND // 2
_WORTH: Final = SECOND
"""The least time before the reserved poll for which an early poll is worth a request."""
_LAST: Final = ScheduledJob(
    -1, TaskKind(""), 0.0, uploads=False, channel=-1, state=JobState.SETTLED
)
_LAST.try_at = _LAST.early_at = _LAST.likely_at = _LAST.scout_at = NEVER
"""The last entry of each queue, so that no queue is ever empty."""


class PollingStrategy(Protocol):
    """The interface of a polling strategy: one method for each event of a task."""

    @property
    def held(self) -> int:
        """The requests that its tasks will need and that are not reserved in the timetable."""
        ...

    def admits(self, job: ScheduledJob, now: int, limit: int) -> bool:
        """Return whether `job` may be created now beside the tasks that exist."""
        ...

    def created(self, job: ScheduledJob, now: int) -> None:
        """Record that the creation of `job` leaves, or the first poll of an adopted task."""
        ...

    def accepted(self, job: ScheduledJob, now: int) -> None:
        """Record that the task of `job` exists and can be polled."""
        ...

    def left(self, job: ScheduledJob, now: int) -> None:
        """Record that a poll of `job` leaves."""
        ...

    def runs(self, job: ScheduledJob, left: int, interval: int | None, now: int) -> None:
        """Record that a poll that left at `left` found the task running."""
        ...

    def failed(self, job: ScheduledJob, at: int) -> None:
        """Record that a poll of `job` failed; another one may leave from `at` on."""
        ...

    def release(self, job: ScheduledJob, *, ended: int | None, lost: bool) -> None:
        """Stop polling `job`: it `ended`, or was `lost`, or its end is unknown."""
        ...


class PollQueue:
    """Tasks to poll beside their reserved polls, by time: announced and overdue ones.

    `queue` is a heap of (time, ref, job), whose head is valid after `tidy`.
    """

    def __init__(self) -> None:
        self.queue: list[tuple[int, int, ScheduledJob]] = []

    def put(self, job: ScheduledJob, at: int) -> None:
        """Poll the task of `job` at `at`; an earlier call no longer counts."""
        job.ask_at = at
        heapq.heappush(self.queue, (at, job.ref, job))

    def wakes(self) -> int:
        """Return when the next task is to be polled."""
        return self.queue[0][0] if self.queue else NEVER

    def first(self) -> int:
        """Return the ref of the task that is polled next."""
        return self.queue[0][1]

    def tidy(self) -> None:
        """Drop invalid entries from the head of the queue."""
        while self.queue and (
            self.queue[0][2].ask_at != self.queue[0][0]
            or self.queue[0][2].state is not JobState.RUNNING
        ):
            heapq.heappop(self.queue)


class ExtraPolls:
    """Retries and early polls, which leave beside the reserved polls.

    `lease` and `interval` are those of `Polling`. `tries`, `early`, `likely` and `scouts` are heaps
    of (time, ref, job). Their heads are valid after `tidy`; the time is `NEVER` where a heap has no
    task.
    """

    def __init__(self, pacer: Pacer, *, lease: int, interval: int) -> None:
        self._pacer = pacer
        self.lease = lease
        self.interval = interval
        # Whether early polls are useful. They are not while the vendor announces ends.
        self.eager = True
        # When the next task may be polled of which nobody knows when it ends.
        self._scout_from = 0
        # Polls to retry; tasks that may be polled early; tasks that have probably ended; tasks of
        # which nobody knows when they end.
        self.tries: list[tuple[int, int, ScheduledJob]] = [(NEVER, -1, _LAST)]
        self.early: list[tuple[int, int, ScheduledJob]] = [(NEVER, -1, _LAST)]
        self.likely: list[tuple[int, int, ScheduledJob]] = [(NEVER, -1, _LAST)]
        self.scouts: list[tuple[int, int, ScheduledJob]] = [(NEVER, -1, _LAST)]

    def try_at(self) -> int:
        """Return when the next poll is to be retried."""
        return self.tries[0][0]

    def early_at(self) -> int:
        """Return when the next task may be polled before its reserved poll."""
        return self.early[0][0]

    def likely_at(self) -> int:
        """Return when the next task has probably ended."""
        return self.likely[0][0]

    def scout_at(self) -> int:
        """Return when the next task may be polled of which nobody knows when it ends."""
        return max(self.scouts[0][0], self._scout_from)

    def created(self, job: ScheduledJob) -> None:
        """Allow the first early poll of a new task after its interval."""
        job.interval = self._usual(job)
        self._early_at(job, job.accepted + job.interval)

    def left(self, job: ScheduledJob, now: int) -> None:
        """Record that a poll leaves; while it has no answer another one is sent later."""
        job.last_left, job.early_at, job.likely_at, job.scout_at = now, None, None, None
        self.failed(job, now + self._pacer.network.patience)

    def failed(self, job: ScheduledJob, at: int) -> None:
        """Retry a poll at `at` if the lease would end before the next reserved poll."""
        end = job.accepted + self.lease
        if job.tries:
            # The first retry may leave at once. The others share the rest of the lease, since a
            # failure may pass in half a second.
            at = max(at, job.last_left + (end - job.last_left) // (MOST_TRIES - job.tries + 1))
        # The next reserved poll renews the lease in time, unless the reserved poll before it
        # failed. Then the retries leave soon, since the cycle leaves room for them.
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
        """Record that a poll that left at `left` renewed the lease.

        `interval` is the one that the vendor asks for. It is kept between half a second and the
        cycle. A later poll may still be unanswered; its retry stays if the lease needs it. Where
        requests are scarce, a seventh of the task's age passes before an early poll: frequent polls
        of an old task reveal little, and the delay is in proportion to its age.
        """
        job.doubted, job.accepted = False, max(job.accepted, left)
        table = self._pacer.table
        if table.lapsed(job.ref):
            # Nothing is reserved for it, so it is polled as a retry where there is room.
            job.tries = 0
            self.failed(job, max(now, job.last_left + table.cycle * SLOT))
        elif job.try_at is not None:
            self.failed(job, job.try_at)
        job.interval = wait = self._usual(job) if interval is None else self._clamped(interval)
        if age // _SHARE_OF_AGE > wait and not self._pacer.plenty(now):
            wait = age // _SHARE_OF_AGE
        self._early_at(job, job.last_left + wait)

    def expect_end(self, job: ScheduledJob, at: int) -> None:
        """Poll at `at`, when the task has probably ended, unless the reserved poll follows soon."""
        job.likely_at = job.scout_at = None
        at = max(at, job.last_left + job.interval)
        if self._worth(job, at):
            job.likely_at = at
            heapq.heappush(self.likely, (at, job.ref, job))

    def scout(self, job: ScheduledJob, age: int) -> None:
        """Poll `job` early, in turns with other tasks of which nobody knows when they end.

        It was polled last at `age`. Such polls leave only where reserved polls are rare, and not if
        one of them follows soon.
        """
        job.likely_at = job.scout_at = None
        at = job.last_left + max(_SCOUT_FROM, age // _SHARE_OF_AGE)
        if self._pacer.rare and self._worth(job, at):
            job.scout_at = at
            heapq.heappush(self.scouts, (at, job.ref, job))

    def scouted(self, age: int, now: int) -> None:
        """Record that a task of this `age` is polled of which nobody knew when it ends.

        The next one follows when the window has room for one more on average, and later where many
        such tasks are old.
        """
        many = len(self.scouts) > _MANY_SCOUTS
        self._scout_from = now + max(self._pacer.even_pause, age // 16 if many else 0)

    def unknown(self) -> list[ScheduledJob]:
        """Return the jobs to poll of which nobody knows when they end."""
        return [job for at, _, job in self.scouts if job.scout_at == at < NEVER]

    def tidy(self) -> None:
        """Drop invalid entries from the heads of the queues."""
        at, _, job = self.tries[0]
        while job.try_at != at:
            heapq.heappop(self.tries)
            at, _, job = self.tries[0]
        at, _, job = self.early[0]
        while job.early_at != at:
            heapq.heappop(self.early)
            at, _, job = self.early[0]
        at, _, job = self.likely[0]
        while job.likely_at != at:
            heapq.heappop(self.likely)
            at, _, job = self.likely[0]
        at, _, job = self.scouts[0]
        while job.scout_at != at:
            heapq.heappop(self.scouts)
            at, _, job = self.scouts[0]

    def _worth(self, job: ScheduledJob, at: int) -> bool:
        """Return whether a poll at `at` may tell an end well before the next reserved poll does."""
        return self.eager and at + _WORTH <= self._pacer.table.next_poll(job.ref)

    def _usual(self, job: ScheduledJob) -> int:
        """Return the interval between polls of `job` where the answers name none."""
        return self.interval if job.given_interval is None else self._clamped(job.given_interval)

    def _clamped(self, interval: int) -> int:
        """Clamp the vendor's interval to half a second at least and the cycle at most."""
        return min(max(interval, _LEAST_INTERVAL), self._pacer.table.cycle * SLOT)

    def _early_at(self, job: ScheduledJob, at: int) -> None:
        """Allow a poll before the reserved one, in mid-lease while the key is contended."""
        contended = self._pacer.allowance.contended_until > job.last_left
        if contended:
            at = min(at, job.accepted + self.lease * 6 // 10)
        if (self.eager or contended) and at < self._pacer.table.next_poll(job.ref):
            job.early_at = at
            heapq.heappush(self.early, (at, job.ref, job))
        else:
            job.early_at = None


class LeasePolling:
    """The strategy that polls each task inside its lease, whatever its duration is.

    See `AdmissionController`, `Timetable` and `ExtraPolls`. `lease`, `interval`, `insured` and
    `give_up` are those of `Polling`. `counts` holds the numbers of late polls and of retries.
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
        self._pacer = pacer
        self._table = pacer.table
        self._poll_queue = poll_queue
        self._give_up = give_up
        self.admission = AdmissionController(pacer, insured=insured, give_up=give_up)
        self.extra_polls = ExtraPolls(pacer, lease=lease, interval=interval)
        self.counts: Counter[str] = Counter()
        # All requests that its tasks need are reserved.
        self.held = 0

    def admits(self, job: ScheduledJob, now: int, limit: int) -> bool:
        """Return whether all polls fit that must be reserved for it."""
        return self.admission.admits(job, now, limit)

    def created(self, job: ScheduledJob, now: int) -> None:
        """Reserve its polls."""
        self.admission.created(job, now)

    def accepted(self, job: ScheduledJob, now: int) -> None:
        """Allow its reserved polls to leave from now on."""
        self._table.arm(job.ref)
        self.admission.accepted(job.ref, now)
        self.extra_polls.created(job)
        if not job.adopted:
            self._expect_end(job)

    def left(self, job: ScheduledJob, now: int) -> None:
        """Record that a poll leaves: a reserved one, a retry, or an early one."""
        reserved = self._table.due(now // SLOT)
        if reserved is not None and reserved[1] == job.ref:
            late = now // SLOT - reserved[0]
            self.counts["late"] += late > 0
            self._pacer.polled(late)
            self._table.keep(job.ref, now)
            job.tries = 0
        elif job.try_at is not None and job.try_at <= now:
            self.counts["tries"] += 1
            job.tries += 1
        if job.scout_at is not None and job.scout_at <= now:
            self.extra_polls.scouted(self._age(job, now), now)
        job.ask_at = None
        self.extra_polls.left(job, now)

    def runs(self, job: ScheduledJob, left: int, interval: int | None, now: int) -> None:
        """Renew its lease, and poll an announced task again after its interval."""
        self.admission.runs(job.ref, left, now)
        self.extra_polls.renewed(job, left, interval, self._age(job, now), now)
        self._expect_end(job)
        if job.announced:
            self._poll_queue.put(job, now + pause(job))

    def _age(self, job: ScheduledJob, now: int) -> int:
        return max(0, now - job.given_up + job.gives_up_after(self._give_up))

    def reviewed(self) -> None:
        """Schedule early polls of the tasks that now are known to end soon, by new durations.

        The others keep their turns.
        """
        for job in self.extra_polls.unknown():
            if (at := self.admission.likely_end(job.ref)) is not None:
                self.extra_polls.expect_end(job, at)

    def _expect_end(self, job: ScheduledJob) -> None:
        at = self.admission.likely_end(job.ref)
        if at is None:
            self._scout(job)
        else:
            self.extra_polls.expect_end(job, at)

    def _scout(self, job: ScheduledJob) -> None:
        self.extra_polls.scout(job, self._age(job, job.last_left))

    def failed(self, job: ScheduledJob, at: int) -> None:
        """Retry inside the lease if the next reserved poll comes too late.

        Where reserved polls are rare, another early poll follows in its turn.
        """
        self.extra_polls.failed(job, at)
        if job.try_at is None:
            self._scout(job)
        if job.announced:
            # The task has ended or ends soon: do not wait for the next reserved poll.
            self._poll_queue.put(job, at + pause(job))

    def release(self, job: ScheduledJob, *, ended: int | None, lost: bool) -> None:
        """Free its reserved polls."""
        if ended is not None:
            # Early polls are useful only where the vendor did not announce this end.
            self.extra_polls.eager = not job.announced
        self.admission.release(job.ref, ended=ended, lost=lost)
        job.try_at = job.early_at = job.likely_at = job.scout_at = job.ask_at = None


class WebhookPolling:
    """The strategy that polls a task only after its notification; it renews no lease.

    A task holds the request for its result, or more where tasks are announced too early. A task
    without a notification is polled after twice the longest duration of its kind that was announced
    recently (at first: the documented duration), then at growing intervals, and once more before it
    is given up.
    """

    def __init__(self, pacer: Pacer, poll_queue: PollQueue, *, interval: int) -> None:
        self._account = pacer.table.account
        self._poll_queue = poll_queue
        self._interval = interval
        self._tasks: dict[int, int] = {}
        self._longest: dict[TaskKind, int] = {}
        self._wasted, self._ended = 0, 0

    @property
    def held(self) -> int:
        """The requests for the results of all tasks, and the expected number of wasted polls.

        The expected number is that of recent tasks, with a margin for small numbers. Without
        observations it is one for each task.
        """
        count, known = len(self._tasks), self._ended + _SUPPOSED
        wasted = min(-(-count * (self._wasted + _SUPPOSED) // known), _MOST_WASTED * count)
        return count + wasted + 2 * isqrt(wasted)

    def admits(self, job: ScheduledJob, now: int, limit: int) -> bool:  # noqa: ARG002 - all jobs need the same
        """Return whether its creation and its result fit beside the results of other tasks."""
        return self._account.fits(now, 2 + self.held, limit)

    def created(self, job: ScheduledJob, now: int) -> None:
        """Hold a request for its result."""
        self._tasks[job.ref] = now

    def accepted(self, job: ScheduledJob, now: int) -> None:
        """Schedule a poll for when it is long overdue."""
        job.interval = self._interval
        self._ask(job, now + _OVERDUE * self._lasts(job), now)

    def left(self, job: ScheduledJob, now: int) -> None:
        """Record that a poll leaves; another one follows later if it has no answer."""
        job.accepted = job.last_left = now
        self._ask(job, now + 2 * _SOON, now)

    def runs(self, job: ScheduledJob, left: int, interval: int | None, now: int) -> None:  # noqa: ARG002
        """Poll it again later, since it was announced too early or is slow."""
        self._wasted += job.announced > 0
        job.doubted, job.tries = False, 0
        lasted = now - self._tasks[job.ref]
        self._ask(job, now + (pause(job) if job.announced else max(UNKNOWN, lasted // 2)), now)

    def failed(self, job: ScheduledJob, at: int) -> None:
        """Poll again soon, then at growing intervals, to save the window during an outage."""
        self._wasted += 1
        job.tries += 1
        self._ask(job, at + min(_SOON << min(job.tries - 1, 10), _LONGEST), at)

    def release(self, job: ScheduledJob, *, ended: int | None, lost: bool) -> None:  # noqa: ARG002 - as above
        """Forget it, and learn from its duration when others are overdue."""
        began = self._tasks.pop(job.ref)
        job.ask_at, job.tries = None, 0
        self._ended += 1
        if self._ended >= _RECENT:
            self._ended, self._wasted = self._ended // 2, self._wasted // 2
        if ended is not None and job.announced:
            # An end that a poll found may be long ago, so it does not count. The first tasks that
            # end are the shortest, so the documented duration decays slowly.
            self._longest[job.kind] = max(self._lasts(job) * 63 // 64, ended - began)

    def _lasts(self, job: ScheduledJob) -> int:
        """Return how long tasks of the same kind as that of `job` last at most."""
        usual = UNKNOWN if job.kind.usual is None else job.kind.usual[1]
        return self._longest.get(job.kind, usual)

    def _ask(self, job: ScheduledJob, at: int, now: int) -> None:
        """Poll at `at`, or sooner if that leaves no time for a retry before it is given up."""
        half = max((job.given_up - now) // 2, self._interval)
        last = max(job.given_up - 2 * _SOON, now + half)
        self._poll_queue.put(job, min(at, last))


def strategies(
    pacer: Pacer, poll_queue: PollQueue, polling: Polling
) -> tuple[LeasePolling, PollingStrategy]:
    """Return the lease strategy, and the one that `Polling.completion` selects."""
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
    """Return how long an announced task that still runs is not polled; it grows each time."""
    job.announced += 1
    return min(job.interval << min(job.announced - 2, 10), _LONGEST)
