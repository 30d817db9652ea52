"""What is known: who waits, who runs, what was sent, what it cost. Only news changes it.

The receiving half of the scheduler: each kind of news has its method, and each leaves the book such
that the deciding half (`scheduler.py`) only has to look: the heads of the queues are always true.
All times are integer microseconds.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, assert_never, cast

from perfect_async import events as ev
from perfect_async._admission import Admission
from perfect_async._jobs import ANSWERS, IllegalEvent, Job, State
from perfect_async._pace import Pace
from perfect_async._preparation import Preparation
from perfect_async._questions import Question, Questions
from perfect_async._reasons import Reasons, abandoned, in_doubt
from perfect_async._repolls import Repolls
from perfect_async._second import SLOT
from perfect_async.errors import (
    ClientClosed,
    PerfectError,
    twin,
)
from perfect_async.events import SECOND

if TYPE_CHECKING:
    from collections.abc import Iterable

    from perfect_async.models import Limits, Polling

_MOST_FAILURES: Final = 8
_MOST_REFUSALS: Final = 20

_RUNNING: Final = State.RUNNING
_AT_STAKE: Final = frozenset({State.SUBMITTING, State.RUNNING})
_CREATED: Final = frozenset({State.SUBMITTING, State.RUNNING, State.ENDED, State.TOLD})


class Book:
    """The jobs, the questions and the requests on one key and host."""

    def __init__(
        self, limits: Limits, polling: Polling, *, engine_retries: int, files_per_call: int
    ) -> None:
        self.lease = round(polling.lease * SECOND)
        self.give_up = round(polling.give_up_after * SECOND)
        self.engine_retries = engine_retries
        self.pace = Pace(limits, lease=self.lease, horizon=self.give_up)
        self.table = self.pace.table
        insured = round(polling.insured * SECOND)
        self.admission = Admission(self.pace, insured=insured, give_up=self.give_up)
        self.jobs: dict[int, Job] = {}
        self.preparation = Preparation(files_per_call)
        self.ready: deque[Job] = deque()
        self.questions = Questions()
        self.endings: deque[tuple[ev.Settle, Job | Question]] = deque()
        self.ages: list[tuple[int, int, Job]] = []
        self.repolls = Repolls(
            self.pace, lease=self.lease, interval=round(polling.interval * SECOND)
        )
        self.number = 0
        self.heard = 0
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.charged = self.returned = self.at_stake = 0.0
        self.ended, self.lasted = 0, 0
        self._sent: dict[int, tuple[ev.Request | ev.Upload, int, int]] = {}
        self.reasons = Reasons()

    # What the deciding half asks.

    def last(self, now: int) -> int:
        """The last slot that may hold a poll of a task created now."""
        return (now + self.give_up) // SLOT

    def abandoned(self, job: Job) -> PerfectError:
        """Why a task that still runs is asked for no longer."""
        return abandoned(job, self.give_up, closed=job.lane in self.reasons.closed)

    # News from the driver about itself.

    def issue(self, command: ev.Command, now: int) -> None:
        """`command`, which was due, is being performed."""
        task = 0
        match command:
            case ev.Poll():
                kind, job = "poll", self.jobs[command.ref]
                task = job.task
                self._poll(job, now)
            case ev.Settle():
                self._settled(command)
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
            self.table.leave(number, now, self.pace.network.patience, creates=kind == "submit")
            self.kinds[kind] += 1

    def _submit(self, job: Job, command: ev.Submit, now: int) -> None:
        job.move(command, State.SUBMITTING)
        job.task = command.number
        self.pace.created(command.number, now)
        job.task_id, job.doubted, job.tries, job.try_at, job.early_at = None, False, 0, None, None
        job.trouble = None
        job.accepted = job.last_left = now
        job.given_up = now + self.give_up
        self.admission.created(job, now)

    def _poll(self, job: Job, now: int) -> None:
        first = self.table.first(now // SLOT)
        if first is not None and first[1] == job.ref and first[0] <= now // SLOT:
            self.counts["late"] += first[0] < now // SLOT
            self.table.keep(job.ref, now)
            job.tries = 0
        elif job.try_at is not None and job.try_at <= now:
            self.counts["tries"] += 1
            job.tries += 1
        self.repolls.left(job, now)

    def want(self, event: ev.Wanted, now: int) -> None:
        """A job came in."""
        self._unknown(event.ref)
        state = State.WAITING if event.uploads else State.READY
        job = Job(
            event.ref,
            event.feature,
            event.units,
            event.uploads,
            event.lane,
            state,
            event.outputs,
            event.usual,
        )
        self.jobs[job.ref] = job
        error = self.reasons.refusal(job, now)
        if error is not None:
            self._end(job, error)
        elif event.uploads:
            self.preparation.add(job, now)
        else:
            self.ready.append(job)

    def ask(self, event: ev.Asked, now: int) -> None:
        """A question came in."""
        self._unknown(event.ref)
        question = Question(event.ref, event.lane, since=now, repeats=event.repeats)
        self.questions.add(question)
        if event.lane in self.reasons.closed:
            self._close_questions(event.lane, ClientClosed("The client is closing."))

    def _unknown(self, ref: int) -> None:
        if ref in self.jobs or ref in self.questions:
            raise IllegalEvent(f"{ref} is known already.")

    def withdraw(self, ref: int) -> None:
        """Nobody waits for `ref`: what was not created ends, what was is not tried again."""
        self.questions.withdraw(ref)
        if (job := self.jobs.get(ref)) is not None:
            job.wanted = False
            self._end_uncreated([job], ClientClosed("Nobody waits for this job."))

    def close(self, lane: int) -> None:
        """`lane` creates nothing more."""
        self.reasons.closed.add(lane)
        error = ClientClosed("The client closed before this was sent.")
        self._end_uncreated([job for job in self.jobs.values() if job.lane == lane], error)
        self._close_questions(lane, error)

    def _close_questions(self, lane: int, error: PerfectError) -> None:
        for question in self.questions.close(lane):
            self.endings.append((ev.Settle(question.ref, error, 0.0), question))

    def drop(self, lane: int) -> None:
        """`lane` ends now, with all that runs in it."""
        self.close(lane)
        for job in [job for job in self.jobs.values() if job.lane == lane]:
            if job.state is State.RUNNING:
                self._end(job, self.abandoned(job), at_stake=job.charged)
            elif job.state is State.SUBMITTING:
                self._end(job, in_doubt(job, None), at_stake=job.units)

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
        self.pace.learn(event, self.table.answered(command.number, now), now)
        match command:
            case ev.Poll():
                self._polled(command, event, sent, now)
            case ev.Submit():
                self._submitted(command, event, now)
            case ev.Register():
                self._prepared(command, event, now)
            case ev.Ask():
                lane_open = self.questions.lane(command.ref) not in self.reasons.closed
                if (end := self.questions.hear(command, event, again=lane_open)) is not None:
                    self.endings.append((ev.Settle(end[0].ref, end[1], 0.0), end[0]))
            case _:
                assert_never(command)
        if isinstance(event, ev.KeyRefused) and self.reasons.dead is None:
            self.reasons.dead = event.error
            self._end_uncreated(list(self.jobs.values()), event.error)

    def _prepared(self, command: ev.Register | ev.Upload, event: ev.Answer, now: int) -> None:
        ready, failed = self.preparation.hear(command, event, now)
        self.ready.extend(ready)
        for job, error in failed:
            self._end(job, error, cause=event)

    def _submitted(self, command: ev.Submit, event: ev.Answer, now: int) -> None:
        job = self.jobs.get(command.ref)
        if job is None or job.state is not State.SUBMITTING:
            return
        event = cast("ev.OfSubmit", event)
        match event:
            case ev.Accepted():
                job.move(event, State.RUNNING)
                job.task_id, job.charged, job.failures = event.task_id, job.units, 0
                self.charged += job.units
                self.table.arm(job.ref)
                self.admission.accepted(job.ref, now)
                heapq.heappush(self.ages, (job.given_up, job.ref, job))
                self.repolls.created(job)
                self.repolls.hopes(job, self.admission.likely_end(job.ref))
            case ev.NoAnswer():
                self._end(job, in_doubt(job, event.error), cause=event, at_stake=job.units)
            case ev.NotSent() | ev.Limited():
                job.failures += 1
                most = _MOST_REFUSALS if isinstance(event, ev.Limited) else _MOST_FAILURES
                refusal = self.reasons.refusal(job, now)
                if refusal is not None or not job.wanted or job.failures >= most:
                    self._end(job, refusal or event.error, cause=event)
                else:
                    self._again(job, event)
            case ev.OutOfUnits():
                self._end(job, event.error, cause=event)
                self.reasons.out_of_units(job, event.error, now)
                dearer = [other for other in self.jobs.values() if other.units >= job.units]
                self._end_uncreated(dearer, event.error)
            case ev.KeyRefused() | ev.Refused():
                self._end(job, event.error, cause=event)
            case _:
                assert_never(event)

    def _again(self, job: Job, cause: ev.Answer) -> None:
        """Create the job (again) before those that came later."""
        self.admission.release(job.ref)
        job.move(cause, State.READY)
        self._stop_polling(job)
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
                self.admission.runs(job.ref, left, now)
                age = now - job.given_up + self.give_up
                self.repolls.renewed(job, left, event.polling_interval, age, now)
                self.repolls.hopes(job, self.admission.likely_end(job.ref))
            case ev.Succeeded():
                self._lasted(job, now)
                self._end(job, event, cause=event, ended=now)
            case ev.EngineFailed():
                self._lasted(job, now)
                self.returned += job.charged
                job.charged = 0.0
                again = event.passing and job.wanted and self.reasons.refusal(job, now) is None
                if again and job.engine_failures < self.engine_retries:
                    job.engine_failures += 1
                    self._again(job, event)
                else:
                    self._end(job, event.error, cause=event)
            case ev.TaskUnknown() if not job.doubted and left < job.accepted + self.lease:
                # By our account the lease held: ask once more before believing it.
                job.doubted = True
                self.repolls.failed(job, now)
            case ev.TaskUnknown() | ev.TimedOut() | ev.KeyRefused():
                # A twin: the same error may be told to others who have nothing at stake.
                error = twin(event.error)
                error.units_at_stake = job.charged
                self._end(job, error, cause=event, at_stake=job.charged)
            case ev.Limited():
                self.repolls.failed(job, now + SECOND)
            case ev.NotSent() | ev.NoAnswer() | ev.Refused():
                job.trouble = event.error
                self.repolls.failed(job, now)
            case _:
                assert_never(event)

    def _lasted(self, job: Job, now: int) -> None:
        self.ended += 1
        self.lasted += now - (job.given_up - self.give_up)

    def after(self, now: int) -> None:
        """After any news: true heads of the queues, and a plan that suits the network."""
        self.heard = now
        self.repolls.tidy()
        if not self.pace.calm:
            self.pace.cut(now)
        if now >= self.admission.acts_at or self.pace.allowance.wary_until:
            self.admission.review(now)

    # How things end.

    def _end_uncreated(self, jobs: Iterable[Job], error: PerfectError) -> None:
        gone = [job for job in jobs if job.state not in _CREATED]
        self._discard(gone)
        for job in gone:
            self._end(job, error)

    def _discard(self, jobs: list[Job]) -> None:
        self.preparation.remove(jobs)
        gone = {job.ref for job in jobs}
        self.ready = deque(job for job in self.ready if job.ref not in gone)

    def _end(
        self,
        job: Job,
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
            job.state = State.ENDED
        else:
            job.move(cause, State.ENDED)
        if created:
            self.admission.release(job.ref, ended=ended, lost=isinstance(cause, ev.TaskUnknown))
            self._stop_polling(job)
        self.at_stake += at_stake
        self.endings.append((ev.Settle(job.ref, ending, job.charged), job))

    def _stop_polling(self, job: Job) -> None:
        job.try_at = job.early_at = job.likely_at = None
        ages = self.ages
        while ages and (ages[0][2].state is not _RUNNING or ages[0][2].given_up != ages[0][0]):
            heapq.heappop(ages)

    def _settled(self, command: ev.Settle) -> None:
        if self.endings:
            _, ended = self.endings.popleft()
        else:
            # Too old: nobody asks for it any longer, so the promises go and the units are lost.
            ended = heapq.heappop(self.ages)[2]
            self._end(ended, command.ending, at_stake=ended.charged)
            self.endings.clear()
        if isinstance(ended, Question):
            self.questions.forget(ended)
            return
        ended.state = State.TOLD
        if not isinstance(command.ending, ClientClosed):
            self.counts["done" if isinstance(command.ending, ev.Succeeded) else "failed"] += 1
        del self.jobs[ended.ref]
