"""Keep the state of all jobs, queries and requests. Only events change it.

This is the receiving half of the scheduler. Each kind of event has a method, which leaves the heads
of all queues valid. The deciding half (`_scheduler.py`) only reads. All times are integer
microseconds.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final, assert_never, cast

from perfect_async import events as ev
from perfect_async._time import NEVER, SECOND, SLOT
from perfect_async.errors import ClientClosed, PerfectError, ResultUnreadable, copy_error
from perfect_async.models import ASSUMED_LEASE
from perfect_async.scheduler._job import ANSWERS, IllegalEvent, JobState, ScheduledJob
from perfect_async.scheduler._members import Members
from perfect_async.scheduler._pacer import Pacer
from perfect_async.scheduler._polling import PollQueue, strategies
from perfect_async.scheduler._queues import Query, QueryQueue, UploadQueue
from perfect_async.scheduler._settlement import (
    Refusals,
    Results,
    Settlements,
    UnitLedger,
    abandoned,
    in_doubt,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from perfect_async.models import Limits, Polling

LEAST_REQUESTS: Final = 3
"""The least requests of a smile: a creation, a share of a registration and two polls."""
_LEAST_WITH_WEBHOOKS: Final = 2
"""The same if a webhook announces the end: a creation and a poll for the result."""
_MOST_FAILURES: Final = 8
_MOST_REFUSALS: Final = 20
_SAME_REFUSALS: Final = 3
"""The number of polls in a row refused for the same reason from which that is final."""
_SAME_KEY_REFUSALS: Final = 2
"""The same for 401. A single one may be a passing fault, and the task is paid for."""
_CLIENT_ERROR: Final = 4
_PASSING: Final = frozenset({408, 429})

_RUNNING: Final = JobState.RUNNING
_CREATED: Final = frozenset(
    {JobState.SUBMITTING, JobState.ADOPTED, JobState.RUNNING, JobState.ENDED, JobState.SETTLED}
)


class SchedulerState:
    """The jobs, the queries and the requests on one key and host."""

    def __init__(
        self,
        limits: Limits,
        polling: Polling,
        *,
        engine_retries: int,
        files_per_call: int,
        member: str = "",
        pid: int = 0,
    ) -> None:
        self.lease = round(polling.lease * SECOND)
        self.give_up = round(polling.give_up_after * SECOND)
        self.engine_retries = engine_retries
        # The lease to return to if a task is lost inside a measured one, and that measured one.
        self._assumed_lease = round(ASSUMED_LEASE * SECOND) if polling.measured else None
        self.refuted_lease = 0
        self.longest_gap = 0
        self.pacer = Pacer(limits, lease=self.lease, horizon=self.give_up)
        self.table = self.pacer.table
        self.poll_queue = PollQueue()
        keeping, self.strategy = strategies(self.pacer, self.poll_queue, polling)
        self._keeping = keeping
        # Where tasks are polled only after notifications, no polls are reserved.
        self.keeps_alive = self.strategy is keeping
        self.admission, self.extra_polls = keeping.admission, keeping.extra_polls
        self.counts = keeping.counts
        self.jobs: dict[int, ScheduledJob] = {}
        self.uploads = UploadQueue(files_per_call)
        self.ready: deque[ScheduledJob] = deque()
        self.queries = QueryQueue()
        self.number = 0
        self.updated_at = 0
        self.requests: Counter[str] = Counter()
        self.units = UnitLedger()
        self.settlements = Settlements(self.jobs, self.strategy, self.units, self.counts)
        self.takeovers: deque[ScheduledJob] = deque()
        # The number of tasks whose creation and end were seen, and the sum of their durations.
        self.ended, self.lasted = 0, 0
        self._sent: dict[int, tuple[ev.Request | ev.Upload, int, int]] = {}
        self.refusals = Refusals()
        self._results = Results()
        self.members = Members(self, self._shared(limits))
        if member:
            self.share(member, pid, limits)

    def _shared(self, limits: Limits) -> ev.SharedLimits:
        period = round(limits.period * SECOND)
        return ev.SharedLimits(limits.requests, period, limits.per_second, self.lease)

    def share(self, member: str, pid: int, limits: Limits, *, same_network: bool = True) -> None:
        """Share the key with other members under `limits`."""
        self.admission.may_move = False
        self.admission.on_duration = self.members.on_duration
        self.members.share(member, pid, self._shared(limits), same_network=same_network)

    def unshare(self, limits: Limits, now: int) -> None:
        """Stop sharing the key, and keep to `limits`."""
        self.admission.may_move = True
        self.admission.on_duration = None
        self.admission.short_elsewhere = False
        self.members.unshare(self._shared(limits), now)
        self.refresh(now)

    # Questions of the deciding half.

    def can_keep_one(self) -> bool:
        """Return whether the limits allow one task to be polled for as long as it may run.

        With webhooks one poll for its result is enough.
        """
        limit = self.pacer.limit(0)
        if not self.keeps_alive:
            return limit >= _LEAST_WITH_WEBHOOKS
        return self.table.admits(0, 0, self.give_up // SLOT, limit)

    def settlement(self, now: int) -> ev.Settle | None:
        """Return the end to report now: the first one queued, or that of a task too old."""
        if self.settlements.queue:
            return self.settlements.queue[0][0]
        at, _, job = self.settlements.ages[0]
        return ev.Settle(job.ref, self.abandoned(job), job.charged) if at <= now else None

    def takeover_at(self) -> int:
        """Return when the first poll of an adopted task is due."""
        return 0 if self.takeovers else NEVER

    def creation_at(self) -> int:
        """Return when a creation may leave if only pauses count."""
        return self.pacer.paused_until() if self.ready else NEVER

    def query_at(self) -> int:
        """Return when a query may leave if only pauses count."""
        return self.pacer.paused_until() if self.queries.waiting else NEVER

    def creation(self) -> ScheduledJob | None:
        """Return the job to create next, or None if it must wait for another creation."""
        job = self.ready[0]
        return None if job.alone and self.pacer.creating else job

    def waits_for_turn(self, now: int) -> bool:
        """Return whether a job waits only for room for its creation and for its turn."""
        return (
            self.creation_at() <= now and self.creation() is not None and self.pacer.may_create(now)
        )

    def uncreated(self) -> int:
        """Return how many jobs wait for their creation."""
        return len(self.ready) + len(self.uploads.unready)

    def work(self, now: int) -> int:
        """Return how many jobs of all members wait for their creation."""
        work = self.uncreated()
        if self.members.shared:
            work += self.members.work(now)
        return work

    def set_limits(self, limits: ev.SharedLimits) -> None:
        """Use the limits and the lease that apply to all members from now on."""
        self.lease = self.extra_polls.lease = limits.lease
        self.pacer.set_limits(limits)

    def _refute_lease(self) -> None:
        """Return from a measured lease to the assumed one, since a task was lost inside it."""
        assumed, self._assumed_lease = self._assumed_lease, None
        if assumed is not None and assumed < self.lease:
            self.refuted_lease = self.lease
            self.lease = self.extra_polls.lease = assumed
            self.members.shorten_lease(assumed)

    def is_urgent(self, now: int) -> bool:
        """Return whether one of the scheduler's urgent sources may have a command.

        This is a quick check, since after most events none of them has. It reads the heads of the
        queues itself where it can, since a call for each takes longer than the check.
        """
        ages, polls = self.settlements.ages, self.table.queue
        return bool(
            self.settlements.queue
            or self.takeovers
            or (polls and polls[0][0] * SLOT <= now)
            or self.extra_polls.tries[0][0] <= now
            or (ages and ages[0][0] <= now)
            or (self.uploads.under_way and self.uploads.upload_at() <= now)
            or (self.poll_queue.queue and self.poll_queue.wakes() <= now)
            or (self.queries.waiting and self.queries.expires_at() <= now)
            or (self.members.shared and self.members.rescue_at() <= now)
        )

    def idle(self, now: int) -> bool:
        """Return whether no work waits, also none of other members: tasks are only polled."""
        return not (
            self.ready
            or self.uploads.unready
            or self.queries.waiting
            or (self.members.shared and self.members.work(now))
        )

    def wants_more(self, now: int) -> bool:
        """Return whether a command that is not reserved may be due while work waits.

        This is a quick check: where it is True, still no command may be due.
        """
        # Beside other work, polls of tasks that have probably ended leave early, and polls in
        # mid-lease while the key is contended.
        return bool(
            self.ready
            or self.queries.waiting
            or self.uploads.registration_at() <= now
            or self.extra_polls.likely_at() <= now
            or self.extra_polls.scout_at() <= now
            or (self.extra_polls.early_at() <= now and self.pacer.allowance.contended_until > now)
        )

    def wants_extra(self, now: int) -> bool:
        """Return whether an early poll may be due while no work waits."""
        extra = self.extra_polls
        return extra.early_at() <= now or (
            self.pacer.rare and (extra.likely_at() <= now or extra.scout_at() <= now)
        )

    def silent(self, now: int) -> bool:
        """Return whether others fill the window and it is not the time to probe it."""
        if not self.pacer.allowance.full:
            return False
        probing = self.table.asking(now - self.pacer.network.patience)
        return self.pacer.silent(now, asking=probing)

    def fits(self, now: int, limit: int, count: int = 1) -> bool:
        """Return whether `count` more requests fit if every window may hold `limit`."""
        return self.table.account.fits(now, count, limit)

    def fits_urgently(self, now: int) -> bool:
        """Return whether the window has room for a poll without which a task may be lost.

        There may be more tasks than the plan has room for, where tasks were adopted or belong to
        other members: the process that created them knew more durations. Then only the present
        window counts. Most tasks end long before their last reserved poll, and a task that is not
        polled now is certainly lost.
        """
        most = self.table.account.requests
        if self.fits(now, most):
            return True
        foreign = self.members.met or any(job.adopted for job in self.jobs.values())
        return foreign and self.table.occupied(now) < most

    def abandoned(self, job: ScheduledJob) -> PerfectError:
        """Return the error of a task that still runs and is given up."""
        give_up = job.gives_up_after(self.give_up)
        return abandoned(job, give_up, closed=job.channel in self.refusals.closed)

    # Events of the driver.

    def on_issued(self, command: ev.Command, now: int) -> None:
        """Record that `command`, which was due, is being performed."""
        task = 0
        match command:
            case ev.Rescue():
                kind = "rescue"
                self.members.on_rescue(command, now)
            case ev.Poll():
                kind, job = "poll", self.jobs[command.ref]
                if job.state is JobState.ADOPTED:
                    self._take_over(self.takeovers.popleft(), command, now)
                task = job.task
                job.gap = now - job.last_left
                self.strategy.left(job, now)
            case ev.Settle():
                self.members.touch(command.ref)
                self.settlements.settled(command, self.queries)
                return
            case ev.Submit():
                # The number of the command identifies the task; a ref may be used again.
                kind, task = "submit", command.number
                self._submit(self.ready.popleft(), command, now)
            case ev.Register():
                kind = "register"
                self.uploads.issued(command, now)
            case ev.Upload():
                kind = ""
                self.uploads.issued(command, now)
            case ev.Ask():
                kind = "ask"
                self.queries.issued()
            case _:
                assert_never(command)
        self.number = command.number
        self._sent[command.number] = command, now, task
        if kind:
            self._count(command, kind, now)

    def _count(self, command: ev.Request | ev.Upload, kind: str, now: int) -> None:
        """Count a request that leaves."""
        patience = self.pacer.network.patience
        self.table.leave(command.number, now, patience, creates=kind == "submit")
        self.requests[kind] += 1
        if self.members.shared:
            self.members.on_issued(cast("ev.Request", command), now)

    def _submit(self, job: ScheduledJob, command: ev.Submit, now: int) -> None:
        job.move(command, JobState.SUBMITTING)
        self.units.reserve(job)
        if job.spending_limits:
            self._end_unaffordable(job.spending_limits)
        job.task = command.number
        self.pacer.created(command.number, now)
        job.task_id, job.doubted, job.tries, job.try_at, job.early_at = None, False, 0, None, None
        job.announced = 0
        job.trouble = job.given_interval = job.refused_for = None
        job.confirming = False
        job.accepted = job.last_left = now
        job.given_up = now + job.gives_up_after(self.give_up)
        self.strategy.created(job, now)

    def _take_over(self, job: ScheduledJob, command: ev.Poll, now: int) -> None:
        """Start to poll an adopted task, whose first poll leaves."""
        job.move(command, JobState.RUNNING)
        job.task = command.number
        # The rest of its lease is unknown, so a poll without an answer is retried soon.
        job.accepted, job.last_left = now - self.lease // 2, now
        self.strategy.created(job, now)
        self._runs(job, now)

    def _runs(self, job: ScheduledJob, now: int) -> None:
        self.strategy.accepted(job, now)
        self.settlements.expect(job)

    def on_client_event(self, event: ev.ClientEvent, now: int) -> None:
        """Process a request of a client, or a notification of the vendor."""
        match event:
            case ev.JobAdded() | ev.TaskAdopted() | ev.JobRejected() | ev.QueryAdded():
                self.on_arrival(event, now)
            case ev.Notified():
                self.on_notified(event.ref, now)
            case ev.JobCancelled():
                self.on_cancelled(event.ref)
            case ev.ChannelClosed():
                self.on_channel_closed(event.channel, now)
            case ev.ChannelAborted():
                self.on_channel_aborted(event.channel, now, leaves=event.leaves)
            case ev.SpendingLimitOpened() | ev.SpendingLimitClosed():
                self.units.on_limit(event)
            case _:
                raise IllegalEvent(f"{event!r} is not an event.")

    def on_arrival(
        self, event: ev.JobAdded | ev.TaskAdopted | ev.JobRejected | ev.QueryAdded, now: int
    ) -> None:
        """Add a job or a query."""
        more = event.more if isinstance(event, ev.JobAdded) else ()
        for ref in (event.ref, *more):
            if ref in self.jobs or ref in self.queries:
                raise IllegalEvent(f"The number {ref} is already in use.")
        match event:
            case ev.JobAdded():
                self._add(ScheduledJob.of(event), now)
            case ev.TaskAdopted():
                # A task of any age is polled once, and for at least two leases if it runs.
                given_up = max(now + 2 * self.lease, now - event.age + self.give_up)
                self.jobs[event.ref] = job = ScheduledJob.adopting(event, given_up)
                self.units.charge(job)
                self.takeovers.append(job)
                self.members.on_adopted(event.task_id)
            case ev.JobRejected():
                self.jobs[event.ref] = job = ScheduledJob.rejected(event)
                self.settlements.end(job, event.error, at_stake=job.units)
            case ev.QueryAdded():
                options = event.repeats, event.urgent, event.lasting
                self.queries.add(Query(event.ref, event.channel, now, *options))
                if event.channel in self.refusals.closed:
                    self._close_queries(event.channel, ClientClosed("The client is closing."))
            case _:
                assert_never(event)

    def _add(self, job: ScheduledJob, now: int) -> None:
        self.jobs[job.ref] = job
        error = self.refusals.refusal(job, now) or self.units.refusal(job)
        if error is not None:
            self.settlements.end(job, error)
        elif job.uploads:
            self.uploads.add(job, now)
        else:
            self.ready.append(job)

    def on_notified(self, ref: int, now: int) -> None:
        """Poll the task of `ref` soon, since the vendor announced its end."""
        self.members.on_notified(ref)
        job = self.jobs.get(ref)
        # A task that was announced once is about to be polled, so a second time adds nothing.
        if job is not None and job.state in {JobState.ADOPTED, _RUNNING} and job.announced != 1:
            job.announced = 1
            self.members.touch(ref)
            if job.state is _RUNNING:
                self.poll_queue.put(job, now)

    def on_cancelled(self, ref: int) -> None:
        """End `ref` if its task does not exist; otherwise do not create it again."""
        self.queries.cancel(ref)
        if (job := self.jobs.get(ref)) is not None:
            job.wanted = False
            self._end_uncreated([job], ClientClosed("The caller no longer waits for this job."))

    def on_channel_closed(self, channel: int, now: int) -> None:
        """End the jobs of `channel` that are not created yet; its running tasks go on."""
        self.refusals.closed.add(channel)
        error = ClientClosed("The client closed before this was sent.")
        self._end_uncreated([job for job in self.jobs.values() if job.channel == channel], error)
        self._close_queries(channel, error)
        if not self.keeps_alive:
            # A client that closes may receive no more notifications, so its tasks are polled now.
            for ref in [job.ref for job in self.jobs.values() if job.channel == channel]:
                self.on_notified(ref, now)

    def _close_queries(self, channel: int, error: PerfectError, *, aborted: bool = False) -> None:
        for query in self.queries.close(channel, aborted=aborted):
            self.settlements.answer(query, error)

    def on_channel_aborted(self, channel: int, now: int, *, leaves: bool = False) -> None:
        """End all jobs and queries of `channel` now, and abandon its running tasks.

        `leaves`: other members poll them from now on.
        """
        self.on_channel_closed(channel, now)
        self._close_queries(channel, ClientClosed("The client is closed."), aborted=True)
        for job in [job for job in self.jobs.values() if job.channel == channel]:
            self.members.touch(job.ref)
            if job.state in {JobState.ADOPTED, JobState.RUNNING}:
                if job.state is JobState.ADOPTED:
                    self.takeovers.remove(job)
                elif leaves:
                    self.members.leave_behind(job, now)
                self.settlements.end(job, self.abandoned(job), at_stake=job.charged)
            elif job.state is JobState.SUBMITTING:
                self.settlements.end(job, in_doubt(job, None), at_stake=job.units)

    # Events of the vendor.

    def on_response(self, event: ev.Answer, now: int) -> None:
        """Process the answer to a command."""
        command, sent = event.command, self._take_sent(event)
        if isinstance(command, ev.Upload):
            self._prepared(command, event, now)
            return
        unwritten = isinstance(event, ev.NotSent) and event.unwritten
        forget = self.table.withdraw if unwritten else self.table.answered
        self.pacer.on_response(event, forget(command.number, now), now)
        if self.members.shared:
            self.members.on_response(event, sent[1], now)
        self._on_answer(command, event, sent, now)
        if isinstance(event, ev.KeyRefused) and not isinstance(command, ev.Poll):
            self._key_refused(event.error)

    def _take_sent(self, event: ev.Answer) -> tuple[ev.Request | ev.Upload, int, int]:
        """Return the command that `event` answers, when it left, and for which task."""
        command = event.command
        sent = self._sent.get(command.number)
        if (
            sent is None
            or (sent[0] is not command and sent[0] != command)
            or type(event) not in ANSWERS[type(command)]
        ):
            raise IllegalEvent(f"{event!r} does not answer any command that was sent.")
        del self._sent[command.number]
        return sent

    def _on_answer(
        self, command: ev.Request, event: ev.Answer, sent: tuple[object, int, int], now: int
    ) -> None:
        match command:
            case ev.Rescue():
                self.members.on_rescued(command, event, sent[1], now)
            case ev.Poll():
                if TYPE_CHECKING:
                    # Not at run time, since a cast is a call.
                    event = cast("ev.OfPoll", event)
                self._polled(command, event, sent, now)
            case ev.Submit():
                self._submitted(command, event, now)
                if (stop := self.refusals.created(event, now)) is not None:
                    self._end_uncreated(list(self.jobs.values()), stop)
            case ev.Register():
                self._prepared(command, event, now)
            case ev.Ask():
                again = self.queries.channel(command.ref) not in self.refusals.closed
                if (end := self.queries.on_response(command, event, now, again=again)) is not None:
                    self.settlements.answer(*end)
            case _:
                assert_never(command)

    def _prepared(self, command: ev.Register | ev.Upload, event: ev.Answer, now: int) -> None:
        ready, failed = self.uploads.on_response(command, event, now)
        self.ready.extend(ready)
        for job, error in failed:
            # The failure of one of several pictures ends the job in whatever state it is.
            self.settlements.end(job, error, cause=None if job.parts else event)

    def _key_refused(self, error: PerfectError) -> None:
        """Stop creating, since the vendor refuses the key."""
        if self.refusals.key_error is None:
            self.refusals.key_error = error
            self._end_uncreated(list(self.jobs.values()), error)

    def _submitted(self, command: ev.Submit, event: ev.Answer, now: int) -> None:
        job = self.jobs.get(command.ref)
        if job is None or job.state is not JobState.SUBMITTING:
            return
        event = cast("ev.OfSubmit", event)
        match event:
            case ev.Accepted():
                job.move(event, JobState.RUNNING)
                job.task_id, job.failures = event.task_id, 0
                job.given_interval = event.interval
                self.units.charge(job)
                self._runs(job, now)
            case ev.NoAnswer():
                error = in_doubt(job, event.error)
                self.settlements.end(job, error, cause=event, at_stake=error.units_at_stake)
            case ev.NotSent() | ev.Limited():
                job.failures += 1
                most = _MOST_REFUSALS if isinstance(event, ev.Limited) else _MOST_FAILURES
                refusal = self.refusals.refusal(job, now)
                if refusal is not None or not job.wanted or job.failures >= most:
                    self.settlements.end(job, refusal or event.error, cause=event)
                else:
                    self._again(job, event)
            case ev.OutOfUnits():
                self.settlements.end(job, event.error, cause=event)
                self.refusals.out_of_units(job, event.error, now)
                dearer = [other for other in self.jobs.values() if other.units >= job.units]
                self._end_uncreated(dearer, event.error)
            case ev.KeyRefused() | ev.Refused():
                self.settlements.end(job, event.error, cause=event)
            case _:
                assert_never(event)

    def _again(self, job: ScheduledJob, cause: ev.Answer) -> None:
        """Create the job again, before the jobs that were added later."""
        self.strategy.release(job, ended=None, lost=False)
        self.units.release(job)
        job.move(cause, JobState.READY)
        self.settlements.tidy()
        self.ready.appendleft(job)

    def _polled(
        self, command: ev.Poll, event: ev.OfPoll, sent: tuple[object, int, int], now: int
    ) -> None:
        job, (_, left, task) = self.jobs.get(command.ref), sent
        if job is None or job.state is not _RUNNING or job.task != task:
            # The answer belongs to a hedged poll, or to a task that was abandoned or created again.
            return
        match event:
            case ev.Running():
                job.trouble = job.refused_for = None
                self._note_gap(job, left)
                self.strategy.runs(job, left, event.polling_interval, now)
            case ev.Succeeded():
                self._succeeded(job, event, now)
            case ev.EngineFailed():
                self._engine_failed(job, event, now)
            case ev.TaskUnknown() if not job.doubted and left < job.accepted + self.lease:
                # The lease had not run out by our account: poll once more before it is final.
                job.doubted = True
                self.strategy.failed(job, now)
            case ev.TaskUnknown() | ev.TimedOut() | ev.Unreadable():
                self._end_at_stake(job, event)
            case ev.Limited():
                self.strategy.failed(job, now + SECOND)
            case ev.KeyRefused() | ev.Refused():
                self._refused(job, event, now)
            case ev.NotSent() | ev.NoAnswer():
                job.trouble = event.error
                self.strategy.failed(job, now)
            case _:
                assert_never(event)

    def _note_gap(self, job: ScheduledJob, left: int) -> None:
        """Record how long the task ran without a poll before the one that left at `left`."""
        if left == job.last_left:
            self.longest_gap = max(self.longest_gap, job.gap)

    def _engine_failed(self, job: ScheduledJob, event: ev.EngineFailed, now: int) -> None:
        self._lasted(job, now)
        self.units.give_back(job)
        mine = job.wanted and not job.adopted
        again = event.passing and mine and self.refusals.refusal(job, now) is None
        most = self.engine_retries if job.engine_retries is None else job.engine_retries
        if again and job.engine_failures < most:
            job.engine_failures += 1
            self._again(job, event)
        else:
            self.settlements.end(job, event.error, cause=event)

    def _refused(self, job: ScheduledJob, event: ev.KeyRefused | ev.Refused, now: int) -> None:
        """Poll again inside the lease, unless the refusal is final by `_is_final`."""
        if not _is_final(job, event):
            job.trouble = event.error
            self.strategy.failed(job, now)
            return
        if isinstance(event, ev.KeyRefused):
            self._key_refused(event.error)
        self._end_at_stake(job, event)

    def _end_at_stake(
        self,
        job: ScheduledJob,
        event: ev.TaskUnknown | ev.TimedOut | ev.Unreadable | ev.KeyRefused | ev.Refused,
    ) -> None:
        """End a task that is paid for with the error of `event`."""
        if job.doubted and isinstance(event, ev.TaskUnknown):
            self._refute_lease()
        # The error is copied, since other jobs with no units at stake may get the same one.
        error = copy_error(event.error)
        error.units_at_stake = job.charged
        self.settlements.end(job, error, cause=event, at_stake=job.charged)

    def _succeeded(self, job: ScheduledJob, event: ev.Succeeded, now: int) -> None:
        """End `job` with its result, unless another task has the same one.

        An answer does not name its task, so it may be the answer of another task. In that case both
        tasks are polled again, unless the end of the other one was already reported. This one ends
        with an error if the vendor names the same result again, since one of the two is wrong.
        """
        task_id = job.task_id or ""
        other = self._results.other(event.urls, task_id)
        if other is None:
            self._results.add(event.urls, task_id)
            self.settlements.end(job, event, cause=event, ended=self._lasted(job, now))
        elif not job.confirming:
            job.confirming = True
            self.poll_queue.put(job, now)
            for recalled in self.settlements.recall(other):
                self._results.remove(other)
                recalled.state, recalled.confirming = JobState.ADOPTED, True
                # Its duration is counted already, and it must not be created again.
                recalled.adopted = True
                self.takeovers.append(recalled)
        else:
            self._lasted(job, now)
            message = (
                f"The vendor named the same result for this task and for task {other} twice, so "
                "one of the two is wrong."
            )
            stake = job.charged
            error = ResultUnreadable(message, task_id=job.task_id, units_at_stake=stake)
            self.settlements.end(job, error, cause=event, at_stake=stake)

    def _lasted(self, job: ScheduledJob, now: int) -> int | None:
        """Record the duration of the task if its creation was seen; return when it ended."""
        if job.adopted:
            return None
        self.ended += 1
        self.lasted += now - (job.given_up - job.gives_up_after(self.give_up))
        return now

    def refresh(self, now: int) -> None:
        """Update the heads of the queues and the plan; called after each event."""
        self.updated_at = now
        self.extra_polls.tidy()
        if self.poll_queue.queue:
            self.poll_queue.tidy()
        if self.members.shared:
            if not self.members.locked:
                # The plan changes only while the ledger's lock is held, so that all members see it.
                return
            self.admission.move(now)
        elif self.members.met:
            self.members.forget_old(now)
        work = self.work(now)
        if work or self.pacer.long:
            self.pacer.expect(LEAST_REQUESTS * work)
        if not self.pacer.plan_is_current:
            self.pacer.replan(now)
        if now >= self.admission.acts_at or self.pacer.allowance.contended_until:
            self.admission.review(now)
            self._keeping.reviewed()

    # Ends of jobs.

    def _end_uncreated(self, jobs: Iterable[ScheduledJob], error: PerfectError) -> None:
        gone = [job for job in jobs if job.state not in _CREATED]
        self._discard(gone)
        for job in gone:
            self.settlements.end(job, error)

    def _end_unaffordable(self, spending_limits: tuple[int, ...]) -> None:
        """End the jobs that no longer fit under one of `spending_limits`, before they upload."""
        uncreated = (job for job in self.jobs.values() if job.state not in _CREATED)
        unaffordable = self.units.unaffordable(uncreated, spending_limits)
        self._discard([job for job, _ in unaffordable])
        for job, error in unaffordable:
            self.settlements.end(job, error)

    def _discard(self, jobs: list[ScheduledJob]) -> None:
        self.uploads.remove(jobs)
        gone = {job.ref for job in jobs}
        self.ready = deque(job for job in self.ready if job.ref not in gone)


def _is_final(job: ScheduledJob, event: ev.KeyRefused | ev.Refused) -> bool:
    """Count a refused poll of `job`; return whether refusals for this reason are final now.

    408, 429 and 5xx are never final.
    """
    status = 401 if isinstance(event, ev.KeyRefused) else event.status
    if status // 100 != _CLIENT_ERROR or status in _PASSING:
        return False
    code = getattr(event.error, "code", None)
    reason = status, type(event.error), code or event.error.message
    job.refusals = job.refusals + 1 if job.refused_for == reason else 1
    job.refused_for = reason
    most = _SAME_KEY_REFUSALS if isinstance(event, ev.KeyRefused) else _SAME_REFUSALS
    return job.refusals >= most
