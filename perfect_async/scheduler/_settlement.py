"""End jobs and queries, refuse jobs that must not be sent, and keep the account of units.

A job ends by the vendor's answer, by its age, or by an event of its client. The command `Settle`
reports each end, in the order in which they happened. Units are reserved when a creation leaves, by
the price of the feature. Units that were not charged or were given back are free again. A job that
does not fit under a spending limit is not sent. All times are integer microseconds.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, assert_never

import attrs

from perfect_async import events as ev
from perfect_async._recent import Recent
from perfect_async._time import NEVER, SECOND
from perfect_async.errors import (
    CeilingReached,
    ClientClosed,
    JobRefused,
    PerfectError,
    SubmissionInDoubt,
    TaskAbandoned,
)
from perfect_async.reports import Spending
from perfect_async.scheduler._job import JobState, ScheduledJob
from perfect_async.scheduler._queues import Query, QueryQueue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from perfect_async.scheduler._polling import PollingStrategy

_BALANCE_REFUSED: Final = 60 * SECOND
"""How long no job is created after a refusal of the balance; then one job is tried again."""
_MOST_DOUBTS: Final = 3
"""Creating stops after so many creations without an answer and none accepted between them."""
_STOPPED: Final = 300 * SECOND
"""How long creating stops; then one creation is tried."""
_LEAST_RESULTS: Final = 5_000
"""The number of newest results that are remembered at least; at most twice as many are."""
_ROUNDING: Final = 1e-6
"""Units by which sums of prices may be off, since they are floats. This is far below any price."""
_AT_STAKE: Final = frozenset({JobState.SUBMITTING, JobState.RUNNING})


class Settlements:
    """The ends to report, and the times at which running tasks are given up.

    `queue` holds the reports. `ages` is a heap of (time, ref, job) for the tasks to give up; its
    head is valid after `tidy`.
    """

    def __init__(
        self,
        jobs: dict[int, ScheduledJob],
        strategy: PollingStrategy,
        units: UnitLedger,
        counts: Counter[str],
    ) -> None:
        self._jobs = jobs
        self._strategy = strategy
        self._units = units
        self._counts = counts
        self.queue: deque[tuple[ev.Settle, ScheduledJob | Query]] = deque()
        self.ages: list[tuple[int, int, ScheduledJob]] = []

    def expect(self, job: ScheduledJob) -> None:
        """Schedule the task of `job` to be given up at its time."""
        heapq.heappush(self.ages, (job.given_up, job.ref, job))

    def end(
        self,
        job: ScheduledJob,
        ending: ev.Succeeded | PerfectError,
        *,
        cause: ev.Answer | None = None,
        ended: int | None = None,
        at_stake: float = 0.0,
    ) -> None:
        """End a job.

        The table of states is checked if the vendor's answer is the `cause`. `ended` is when its
        task was seen to have succeeded.
        """
        created = job.state in _AT_STAKE
        if cause is None:
            job.state = JobState.ENDED
        else:
            job.move(cause, JobState.ENDED)
        if created:
            self._strategy.release(job, ended=ended, lost=isinstance(cause, ev.TaskUnknown))
            self.tidy()
        self._units.end(job, at_stake)
        self.queue.append((ev.Settle(job.ref, ending, job.charged), job))

    def answer(self, query: Query, error: PerfectError) -> None:
        """End a query without an answer."""
        self.queue.append((ev.Settle(query.ref, error, 0.0), query))

    def wakes(self) -> int:
        """Return when there is an end to report."""
        if self.queue:
            return 0
        return self.ages[0][0] if self.ages else NEVER

    def settled(self, command: ev.Settle, queries: QueryQueue) -> None:
        """Record that the next end is reported, and forget its job or query."""
        if self.queue:
            _, ended = self.queue.popleft()
        elif command.ref in queries:
            ended = queries.expire(command.ref)
        else:
            # The task is too old. Its reserved polls are freed and its units are lost.
            ended = heapq.heappop(self.ages)[2]
            self.end(ended, command.ending, at_stake=ended.charged)
            self.queue.clear()
        if isinstance(ended, Query):
            queries.forget(ended)
            return
        ended.state = JobState.SETTLED
        if not isinstance(command.ending, ClientClosed):
            self._counts["done" if isinstance(command.ending, ev.Succeeded) else "failed"] += 1
        del self._jobs[ended.ref]

    def recall(self, task_id: str) -> list[ScheduledJob]:
        """Take back successes of `task_id` that are not reported yet, and return their jobs."""
        recalled = [
            job
            for settle, job in self.queue
            if isinstance(settle.ending, ev.Succeeded)
            and isinstance(job, ScheduledJob)
            and job.task_id == task_id
        ]
        self.queue = deque(entry for entry in self.queue if entry[1] not in recalled)
        return recalled

    def tidy(self) -> None:
        """Drop invalid entries from the head of `ages`."""
        ages = self.ages
        while ages and (
            ages[0][2].state is not JobState.RUNNING or ages[0][2].given_up != ages[0][0]
        ):
            heapq.heappop(ages)


class Refusals:
    """The reasons not to create: closed channels, a refused key, a low balance, many doubts."""

    def __init__(self) -> None:
        self.closed: set[int] = set()
        self.key_error: PerfectError | None = None
        # Until when the balance counts as too low, for jobs of how many units, and the error.
        self._balance: tuple[int, float, PerfectError] | None = None
        self._doubts = 0
        self._stopped_until = 0

    def created(self, event: ev.Answer, now: int) -> PerfectError | None:
        """Count a creation that ended in `event`; return the error if creating stops now.

        Each creation without an answer may be charged, so after three of them, with none accepted
        in between, creating stops. A refused or unsent creation between them shows nothing about
        them, so it does not start the count anew.
        """
        if isinstance(event, ev.Accepted):
            self._doubts = self._stopped_until = 0
        elif isinstance(event, ev.NoAnswer):
            self._doubts += 1
            if self._doubts >= _MOST_DOUBTS:
                self._stopped_until = now + _STOPPED
                return self._stopped()
        return None

    def _stopped(self) -> PerfectError:
        error = JobRefused(
            f"Nothing was sent: {self._doubts} creations without an answer and none accepted "
            "between them; each of the unanswered ones may be charged. Creating stops for "
            f"{_STOPPED // SECOND // 60} minutes."
        )
        # The usual hint is to correct the job, which would not help.
        vars(error)["hint"] = "Check the connection to the vendor, then run the job again."
        return error

    def out_of_units(self, job: ScheduledJob, error: PerfectError, now: int) -> None:
        """Record that the balance is too low for `job`, and for any job that costs as much."""
        least = job.units
        if self._balance is not None and now < self._balance[0]:
            least = min(least, self._balance[1])
        self._balance = now + _BALANCE_REFUSED, least, error

    def refusal(self, job: ScheduledJob, now: int) -> PerfectError | None:
        """Return why `job` must not be sent, or None if it may be sent."""
        if job.channel in self.closed:
            return ClientClosed("The client is closing.")
        if self.key_error is not None:
            return self.key_error
        if now < self._stopped_until:
            return self._stopped()
        balance = self._balance
        if balance is not None and now < balance[0] and job.units >= balance[1]:
            return balance[2]
        return None


class Results:
    """The task of each of the newest results, by the URL of the result without its signature."""

    def __init__(self) -> None:
        self._tasks: Recent[str] = Recent(_LEAST_RESULTS)

    def other(self, urls: Iterable[str], task_id: str) -> str | None:
        """Return the id of another task that has one of these results already, or None."""
        found = (self._tasks.get(_object(url), task_id) for url in urls)
        return next((other for other in found if other != task_id), None)

    def add(self, urls: Iterable[str], task_id: str) -> None:
        """Record that the results belong to `task_id`."""
        for url in urls:
            self._tasks.put(_object(url), task_id)

    def remove(self, task_id: str) -> None:
        """Forget the results of `task_id`."""
        self._tasks.forget(task_id)


def _object(url: str) -> str:
    """Return a signed URL without its signature."""
    return url.partition("#")[0].partition("?")[0]


def abandoned(job: ScheduledJob, give_up: int, *, closed: bool) -> PerfectError:
    """Return the error of a running task that is given up after `give_up`."""
    message = f"The task had not ended after {give_up / SECOND:g} s and is abandoned."
    if closed:
        message = "The client closed while the task was still running."
    if job.trouble is not None:
        message = f"{message} Last seen: {job.trouble.message}"
    return TaskAbandoned(
        message,
        task_id=job.task_id,
        request_id=getattr(job.trouble, "request_id", None),
        units_at_stake=job.charged,
    )


def in_doubt(job: ScheduledJob, error: PerfectError | None) -> PerfectError:
    """Return the error of a creation without an answer.

    `error` is None if the client closed first. A `SubmissionInDoubt` comes from the unit history
    and is returned as it is, since it states the units at stake.
    """
    if isinstance(error, SubmissionInDoubt):
        return error
    why = "the client closed first." if error is None else error.message
    message = f"The task's creation was sent and no usable answer came back: {why}"
    request_id = getattr(error, "request_id", None)
    return SubmissionInDoubt(message, request_id=request_id, units_at_stake=job.units)


@attrs.define
class _SpendingLimit:
    """A spending limit of `most` units, of which `spent` are spent or reserved."""

    most: float
    spent: float = 0.0


class UnitLedger:
    """The units of all jobs on one key and host, and the spending limits over them."""

    def __init__(self) -> None:
        self._spending_limits: dict[int, _SpendingLimit] = {}
        self._charged = self._returned = self._at_stake = 0.0

    def totals(self) -> Spending:
        """Return the units that were charged, given back, and are at stake."""
        return Spending(self._charged, self._returned, self._at_stake)

    def on_limit(self, event: ev.SpendingLimitOpened | ev.SpendingLimitClosed) -> None:
        """Open or close a spending limit."""
        match event:
            case ev.SpendingLimitOpened():
                self._spending_limits[event.spending_limit] = _SpendingLimit(event.most)
            case ev.SpendingLimitClosed():
                self._spending_limits.pop(event.spending_limit, None)
            case _:
                assert_never(event)

    def refusal(self, job: ScheduledJob) -> PerfectError | None:
        """Return why `job` does not fit under its spending limits, or None if it does."""
        for name in job.spending_limits:
            limit = self._spending_limits.get(name)
            if limit is not None and limit.spent + job.units > limit.most + _ROUNDING:
                units = "unit" if job.units == 1 else "units"
                return CeilingReached(
                    f"The job costs {job.units:g} {units}; {limit.spent:g} of "
                    f"max_units={limit.most:g} are spent or reserved."
                )
        return None

    def unaffordable(
        self, jobs: Iterable[ScheduledJob], spending_limits: tuple[int, ...]
    ) -> list[tuple[ScheduledJob, PerfectError]]:
        """Return those of `jobs` that no longer fit under `spending_limits`, with errors."""
        paid = [job for job in jobs if not set(spending_limits).isdisjoint(job.spending_limits)]
        return [(job, error) for job in paid if (error := self.refusal(job)) is not None]

    def reserve(self, job: ScheduledJob) -> None:
        """Reserve the units of `job`, whose creation leaves."""
        self._move(job, job.units)

    def charge(self, job: ScheduledJob) -> None:
        """Charge the units of `job`, whose task exists."""
        job.charged = job.units
        self._charged += job.units

    def give_back(self, job: ScheduledJob) -> None:
        """Give back the units of `job`, whose engine failed."""
        self._returned += job.charged
        job.charged = 0.0
        self._move(job, 0.0)

    def release(self, job: ScheduledJob) -> None:
        """Release the units of `job`, whose creation was not executed."""
        self._move(job, 0.0)

    def end(self, job: ScheduledJob, at_stake: float) -> None:
        """End `job`; `at_stake` units are charged, or may be charged, without a result."""
        self._at_stake += at_stake
        self._move(job, max(job.charged, at_stake))

    def _move(self, job: ScheduledJob, reserved: float) -> None:
        for name in job.spending_limits:
            if (limit := self._spending_limits.get(name)) is not None:
                limit.spent += reserved - job.reserved
        job.reserved = reserved
