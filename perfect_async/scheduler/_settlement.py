"""How jobs and questions end, and who is told next: the last thing that happens to each.

A job ends by the vendor's answer, by its age, or by what becomes of its client; its waiter is told
by a command of its own, in the order of the ends. All times are integer microseconds.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from perfect_async import events as ev
from perfect_async.errors import ClientClosed, PerfectError
from perfect_async.scheduler._job import JobState, ScheduledJob
from perfect_async.scheduler._questions import Query, QueryQueue

if TYPE_CHECKING:
    from perfect_async.scheduler._polling import PollingStrategy
    from perfect_async.scheduler._units import UnitLedger

_AT_STAKE: Final = frozenset({JobState.SUBMITTING, JobState.RUNNING})


class Settlements:
    """What has ended and was not told yet, and which task grows too old next.

    `queue` holds what is to be told, `ages` is a heap of when which task is given up; its head is
    true after `tidy`.
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
        """The task of `job` exists, and is given up at its time."""
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
        """The job ends, by the table where the vendor's answer is the `cause`.

        `ended` is when its task was seen to have ended well.
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

    def answer(self, question: Query, error: PerfectError) -> None:
        """A question ends without an answer."""
        self.queue.append((ev.Settle(question.ref, error, 0.0), question))

    def settled(self, command: ev.Settle, questions: QueryQueue) -> None:
        """What was to be told next is told."""
        if self.queue:
            _, ended = self.queue.popleft()
        else:
            # Too old: nobody asks for it any longer, so the promises go and the units are lost.
            ended = heapq.heappop(self.ages)[2]
            self.end(ended, command.ending, at_stake=ended.charged)
            self.queue.clear()
        if isinstance(ended, Query):
            questions.forget(ended)
            return
        ended.state = JobState.TOLD
        if not isinstance(command.ending, ClientClosed):
            self._counts["done" if isinstance(command.ending, ev.Succeeded) else "failed"] += 1
        del self._jobs[ended.ref]

    def tidy(self) -> None:
        """Drop from the head of `ages` what no longer holds."""
        ages = self.ages
        while ages and (
            ages[0][2].state is not JobState.RUNNING or ages[0][2].given_up != ages[0][0]
        ):
            heapq.heappop(ages)
