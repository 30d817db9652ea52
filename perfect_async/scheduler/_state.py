"""What is known: who waits, who runs, what was sent, what it cost. Only news changes it.

The receiving half of the scheduler: each kind of news has its method, and each leaves the book such
that the deciding half (`scheduler.py`) only has to look: the heads of the queues are always true.
All times are integer microseconds.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final, assert_never, cast

from perfect_async import events as ev
from perfect_async._time import SECOND, SLOT
from perfect_async.errors import (
    ClientClosed,
    PerfectError,
    twin,
)
from perfect_async.scheduler._job import ANSWERS, IllegalEvent, JobState, ScheduledJob
from perfect_async.scheduler._pacer import Pacer
from perfect_async.scheduler._polling import PollQueue, strategies
from perfect_async.scheduler._questions import Query, QueryQueue
from perfect_async.scheduler._queues import UploadQueue
from perfect_async.scheduler._refusals import Refusals, abandoned, in_doubt
from perfect_async.scheduler._settlement import Settlements
from perfect_async.scheduler._units import UnitLedger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from perfect_async.models import Limits, Polling

_MOST_FAILURES: Final = 8
_MOST_REFUSALS: Final = 20

_RUNNING: Final = JobState.RUNNING
_CREATED: Final = frozenset(
    {JobState.SUBMITTING, JobState.ADOPTED, JobState.RUNNING, JobState.ENDED, JobState.TOLD}
)


class SchedulerState:
    """The jobs, the questions and the requests on one key and host."""

    def __init__(
        self, limits: Limits, polling: Polling, *, engine_retries: int, files_per_call: int
    ) -> None:
        self.lease = round(polling.lease * SECOND)
        self.give_up = round(polling.give_up_after * SECOND)
        self.engine_retries = engine_retries
        self.pacer = Pacer(limits, lease=self.lease, horizon=self.give_up)
        self.table = self.pacer.table
        self.asks = PollQueue()
        keeping, self.strategy = strategies(self.pacer, self.asks, polling)
        # Without polls in between there is nothing to promise, and nothing to admit by.
        self.kept = self.strategy is keeping
        self.admission, self.extra_polls = keeping.admission, keeping.extra_polls
        self.counts = keeping.counts
        self.jobs: dict[int, ScheduledJob] = {}
        self.preparation = UploadQueue(files_per_call)
        self.ready: deque[ScheduledJob] = deque()
        self.questions = QueryQueue()
        self.number = 0
        self.heard = 0
        self.kinds: Counter[str] = Counter()
        self.units = UnitLedger()
        self.endings = Settlements(self.jobs, self.strategy, self.units, self.counts)
        self.adoptions: deque[ScheduledJob] = deque()
        self.ended, self.lasted = 0, 0
        self._sent: dict[int, tuple[ev.Request | ev.Upload, int, int]] = {}
        self.reasons = Refusals()

    # What the deciding half asks.

    def last(self, now: int) -> int:
        """The last slot that may hold a poll of a task created now."""
        return (now + self.give_up) // SLOT

    def creation(self) -> ScheduledJob | None:
        """The job to create next, None where there is none or it has to wait for another."""
        job = self.ready[0] if self.ready else None
        if job is not None and job.alone and self.pacer.creating:
            return None
        return job

    def abandoned(self, job: ScheduledJob) -> PerfectError:
        """Why a task that still runs is asked for no longer."""
        return abandoned(job, self.give_up, closed=job.channel in self.reasons.closed)

    # News from the driver about itself.

    def issue(self, command: ev.Command, now: int) -> None:
        """`command`, which was due, is being performed."""
        task = 0
        match command:
            case ev.Poll():
                kind, job = "poll", self.jobs[command.ref]
                if job.state is JobState.ADOPTED:
                    self._take_over(self.adoptions.popleft(), command, now)
                task = job.task
                self.strategy.left(job, now)
            case ev.Settle():
                self.endings.settled(command, self.questions)
                return
            case ev.Submit():
                # Unlike any other task's number, of this job or of another by the same ref.
                kind, task = "submit", command.number
                self._submit(self.ready.popleft(), command, now)
            case ev.Register():
                kind = "register"
                self.preparation.issued(command, now)
            case ev.Upload():
                kind = ""
                self.preparation.issued(command, now)
            case ev.Ask():
                kind = "ask"
                self.questions.issued()
            case _:
                assert_never(command)
        self.number = number = command.number
        self._sent[number] = command, now, task
        if kind:
            self.table.leave(number, now, self.pacer.network.patience, creates=kind == "submit")
            self.kinds[kind] += 1

    def _submit(self, job: ScheduledJob, command: ev.Submit, now: int) -> None:
        job.move(command, JobState.SUBMITTING)
        self.units.reserve(job)
        if job.purses:
            self._end_unaffordable(job.purses)
        job.task = command.number
        self.pacer.created(command.number, now)
        job.task_id, job.doubted, job.tries, job.try_at, job.early_at = None, False, 0, None, None
        job.announced = 0
        job.trouble = None
        job.accepted = job.last_left = now
        job.given_up = now + self.give_up
        self.strategy.created(job, now)

    def _take_over(self, job: ScheduledJob, command: ev.Poll, now: int) -> None:
        """The first poll of a task that was created by somebody else leaves."""
        job.move(command, JobState.RUNNING)
        job.task = command.number
        # Nobody knows how much of its lease is left: a silent poll is tried again at once.
        job.accepted, job.last_left = now - self.lease // 2, now
        self.strategy.created(job, now)
        self._runs(job, now)

    def _runs(self, job: ScheduledJob, now: int) -> None:
        self.strategy.accepted(job, now)
        self.endings.expect(job)

    def take_in(self, event: ev.Wanted | ev.Adopted | ev.Forgone | ev.Asked, now: int) -> None:
        """A job or a question came in."""
        if event.ref in self.jobs or event.ref in self.questions:
            raise IllegalEvent(f"{event.ref} is known already.")
        match event:
            case ev.Wanted():
                self._want(ScheduledJob.of(event), now)
            case ev.Adopted():
                # However old it is: once it is asked for, and kept for a while if it runs.
                given_up = max(now + 2 * self.lease, now - event.age + self.give_up)
                self.jobs[event.ref] = job = ScheduledJob.adopting(event, given_up)
                self.units.charge(job)
                self.adoptions.append(job)
            case ev.Forgone():
                self.jobs[event.ref] = job = ScheduledJob.forgone(event)
                self.endings.end(job, event.error, at_stake=job.units)
            case ev.Asked():
                asked = event.repeats, event.urgent, event.lasting
                self.questions.add(Query(event.ref, event.channel, now, *asked))
                if event.channel in self.reasons.closed:
                    self._close_questions(event.channel, ClientClosed("The client is closing."))
            case _:
                assert_never(event)

    def _want(self, job: ScheduledJob, now: int) -> None:
        self.jobs[job.ref] = job
        error = self.reasons.refusal(job, now) or self.units.refusal(job)
        if error is not None:
            self.endings.end(job, error)
        elif job.uploads:
            self.preparation.add(job, now)
        else:
            self.ready.append(job)

    def announce(self, ref: int, now: int) -> None:
        """The vendor says that the task of `ref` has ended."""
        job = self.jobs.get(ref)
        # Announced once, it is about to be asked for, or is being: again adds nothing.
        if job is not None and job.state in {JobState.ADOPTED, _RUNNING} and job.announced != 1:
            job.announced = 1
            if job.state is _RUNNING:
                self.asks.put(job, now)

    def withdraw(self, ref: int) -> None:
        """Nobody waits for `ref`: what was not created ends, what was is not tried again."""
        self.questions.withdraw(ref)
        if (job := self.jobs.get(ref)) is not None:
            job.wanted = False
            self._end_uncreated([job], ClientClosed("Nobody waits for this job."))

    def close(self, channel: int, now: int) -> None:
        """`channel` creates nothing more."""
        self.reasons.closed.add(channel)
        error = ClientClosed("The client closed before this was sent.")
        self._end_uncreated([job for job in self.jobs.values() if job.channel == channel], error)
        self._close_questions(channel, error)
        if not self.kept:
            # Who closes has no time to wait for what is announced late, or no longer to anybody.
            for ref in [job.ref for job in self.jobs.values() if job.channel == channel]:
                self.announce(ref, now)

    def _close_questions(self, channel: int, error: PerfectError, *, dropped: bool = False) -> None:
        for question in self.questions.close(channel, dropped=dropped):
            self.endings.answer(question, error)

    def drop(self, channel: int, now: int) -> None:
        """`channel` ends now, with all that runs in it."""
        self.close(channel, now)
        self._close_questions(channel, ClientClosed("The client is closed."), dropped=True)
        for job in [job for job in self.jobs.values() if job.channel == channel]:
            if job.state in {JobState.ADOPTED, JobState.RUNNING}:
                if job.state is JobState.ADOPTED:
                    self.adoptions.remove(job)
                self.endings.end(job, self.abandoned(job), at_stake=job.charged)
            elif job.state is JobState.SUBMITTING:
                self.endings.end(job, in_doubt(job, None), at_stake=job.units)

    # News from the vendor.

    def hear(self, event: ev.Answer, now: int) -> None:
        """A command ended in `event`."""
        command = event.command
        sent = self._sent.get(command.number)
        if (
            sent is None
            or (sent[0] is not command and sent[0] != command)
            or type(event) not in ANSWERS[type(command)]
        ):
            raise IllegalEvent(f"{event!r} answers nothing that was sent.")
        del self._sent[command.number]
        if isinstance(command, ev.Upload):
            self._prepared(command, event, now)
            return
        self.pacer.learn(event, self.table.answered(command.number, now), now)
        match command:
            case ev.Poll():
                self._polled(command, event, sent, now)
            case ev.Submit():
                self._submitted(command, event, now)
            case ev.Register():
                self._prepared(command, event, now)
            case ev.Ask():
                lane_open = self.questions.channel(command.ref) not in self.reasons.closed
                if (end := self.questions.hear(command, event, again=lane_open)) is not None:
                    self.endings.answer(*end)
            case _:
                assert_never(command)
        if isinstance(event, ev.KeyRefused) and self.reasons.dead is None:
            self.reasons.dead = event.error
            self._end_uncreated(list(self.jobs.values()), event.error)

    def _prepared(self, command: ev.Register | ev.Upload, event: ev.Answer, now: int) -> None:
        ready, failed = self.preparation.hear(command, event, now)
        self.ready.extend(ready)
        for job, error in failed:
            self.endings.end(job, error, cause=event)

    def _submitted(self, command: ev.Submit, event: ev.Answer, now: int) -> None:
        job = self.jobs.get(command.ref)
        if job is None or job.state is not JobState.SUBMITTING:
            return
        event = cast("ev.OfSubmit", event)
        match event:
            case ev.Accepted():
                job.move(event, JobState.RUNNING)
                job.task_id, job.failures = event.task_id, 0
                self.units.charge(job)
                self._runs(job, now)
            case ev.NoAnswer():
                error = in_doubt(job, event.error)
                self.endings.end(job, error, cause=event, at_stake=error.units_at_stake)
            case ev.NotSent() | ev.Limited():
                job.failures += 1
                most = _MOST_REFUSALS if isinstance(event, ev.Limited) else _MOST_FAILURES
                refusal = self.reasons.refusal(job, now)
                if refusal is not None or not job.wanted or job.failures >= most:
                    self.endings.end(job, refusal or event.error, cause=event)
                else:
                    self._again(job, event)
            case ev.OutOfUnits():
                self.endings.end(job, event.error, cause=event)
                self.reasons.out_of_units(job, event.error, now)
                dearer = [other for other in self.jobs.values() if other.units >= job.units]
                self._end_uncreated(dearer, event.error)
            case ev.KeyRefused() | ev.Refused():
                self.endings.end(job, event.error, cause=event)
            case _:
                assert_never(event)

    def _again(self, job: ScheduledJob, cause: ev.Answer) -> None:
        """Create the job (again) before those that came later."""
        self.strategy.release(job, ended=None, lost=False)
        self.units.release(job)
        job.move(cause, JobState.READY)
        self.endings.tidy()
        self.ready.appendleft(job)

    def _polled(
        self, command: ev.Poll, event: ev.Answer, sent: tuple[object, int, int], now: int
    ) -> None:
        job, (_, left, task) = self.jobs.get(command.ref), sent
        if job is None or job.state is not _RUNNING or job.task != task:
            # A hedged poll, a task that was given up or made anew: what comes second changes
            # nothing.
            return
        event = cast("ev.OfPoll", event)
        match event:
            case ev.Running():
                job.trouble = None
                self.strategy.runs(job, left, event.polling_interval, now)
            case ev.Succeeded():
                self.endings.end(job, event, cause=event, ended=self._lasted(job, now))
            case ev.EngineFailed():
                self._lasted(job, now)
                self.units.give_back(job)
                mine = job.wanted and not job.adopted
                again = event.passing and mine and self.reasons.refusal(job, now) is None
                if again and job.engine_failures < self.engine_retries:
                    job.engine_failures += 1
                    self._again(job, event)
                else:
                    self.endings.end(job, event.error, cause=event)
            case ev.TaskUnknown() if not job.doubted and left < job.accepted + self.lease:
                # By our account the lease held: ask once more before believing it.
                job.doubted = True
                self.strategy.failed(job, now)
            case ev.TaskUnknown() | ev.TimedOut() | ev.Unreadable() | ev.KeyRefused():
                # A twin: the same error may be told to others who have nothing at stake.
                error = twin(event.error)
                error.units_at_stake = job.charged
                self.endings.end(job, error, cause=event, at_stake=job.charged)
            case ev.Limited():
                self.strategy.failed(job, now + SECOND)
            case ev.NotSent() | ev.NoAnswer() | ev.Refused():
                job.trouble = event.error
                self.strategy.failed(job, now)
            case _:
                assert_never(event)

    def _lasted(self, job: ScheduledJob, now: int) -> int | None:
        """The task ended by `now`: evidence, if its creation was seen."""
        if job.adopted:
            return None
        self.ended += 1
        self.lasted += now - (job.given_up - self.give_up)
        return now

    def after(self, now: int) -> None:
        """After any news: true heads of the queues, and a plan that suits the network."""
        self.heard = now
        self.extra_polls.tidy()
        self.asks.tidy()
        if not self.pacer.calm:
            self.pacer.cut(now)
        if now >= self.admission.acts_at or self.pacer.allowance.wary_until:
            self.admission.review(now)

    # How things end.

    def _end_uncreated(self, jobs: Iterable[ScheduledJob], error: PerfectError) -> None:
        gone = [job for job in jobs if job.state not in _CREATED]
        self._discard(gone)
        for job in gone:
            self.endings.end(job, error)

    def _end_unaffordable(self, purses: tuple[int, ...]) -> None:
        """What no longer fits under the ceilings of `purses` is not prepared either."""
        uncreated = (job for job in self.jobs.values() if job.state not in _CREATED)
        poor = self.units.poor(uncreated, purses)
        self._discard([job for job, _ in poor])
        for job, error in poor:
            self.endings.end(job, error)

    def _discard(self, jobs: list[ScheduledJob]) -> None:
        self.preparation.remove(jobs)
        gone = {job.ref for job in jobs}
        self.ready = deque(job for job in self.ready if job.ref not in gone)
