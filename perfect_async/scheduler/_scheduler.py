"""Decide which request leaves next, and when to ask again.

`Scheduler.receive(event, now)` is the only call that changes the state. `due(now)` returns the next
command and changes nothing. `wakes_at(now)` returns when to ask again if no event comes. The
scheduler keeps the only account of requests (the timetable), so each retry is a new command that
must fit into the limits.

The commands come from a list of sources, in the order of their priority:

1. Reports of ends, and of tasks that are too old. They cost no request.
2. Reserved polls, each in its slot. An overdue one leaves as soon as the second has room.
3. Retries of polls that failed or have no answer, inside the lease, from the requests that are not
   reserved. First polls of adopted tasks, whose lease is unknown. Polls of tasks whose end was
   announced, or that are long overdue.
4. Uploads. They cost no request.
5. A query that has waited for long, creations, and enough registrations that no creation waits for
   one.
6. Other queries. Early polls, while the window holds more than the waiting work needs, or where
   reserved polls are rare.

All times are integer microseconds of one clock, which the driver chooses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar, cast

import attrs

from perfect_async import events as ev
from perfect_async._ratelimit.timetable import RESCUE_AFTER
from perfect_async._time import NEVER, SECOND, SLOT
from perfect_async.errors import ConfigurationError
from perfect_async.reports import Statistics
from perfect_async.scheduler._job import RESPONSES, UNKNOWN, IllegalEvent, JobState
from perfect_async.scheduler._state import LEAST_REQUESTS, SchedulerState

if TYPE_CHECKING:
    from perfect_async.models import Limits, Polling

__all__ = ["NEVER", "IllegalEvent", "Scheduler"]

_AHEAD: Final = 4
"""The number of pictures ready or under way below which registrations come before creations.

It is the limit per second where that is more.
"""
_LEAST_AHEAD: Final = 88
"""The jobs to hand over at least. They need more requests than a window holds, and the plan must
know that (`Pacer.expect`). They are more than `FILES_PER_CALL`, so pictures are ready before a call
is full.
"""
_MOST_AHEAD: Final = 240
"""The jobs to hand over at most, whatever the limits are, since each may hold a picture."""
_PATIENT: Final = 15 * SECOND
"""How long a query waits before it is sent ahead of creations."""
_KNOWN: Final = 20
"""The number of jobs that must have ended before their average cost is used."""
_RESCUE: Final = 5
"""The index of the polls for other members among the urgent sources, after those of our tasks."""
_INSIST: Final = SECOND // 2
"""How long the lock must be tried before a poll leaves that another member may have sent."""


class Scheduler:
    """Decides which command is due, for all jobs on one key and host.

    `limits` and `polling` are the settings of the same names. `engine_retries` is how often a job
    whose engine failed is tried again as a new task, if the failure may pass. `files_per_call` is
    how many files one registration holds at first. The constructor raises `ConfigurationError` if
    the limits do not allow one task to be polled for as long as it may run, or with webhooks, to be
    created and polled once.

    Where a ledger shares the key, `member` is the scheduler's name in it, and `pid` is its process,
    for people to read. Each step then begins with `LedgerRead` and ends with `changes`, while the
    ledger's lock is held. Only a reserved poll, an upload and the report of an end may leave
    without the lock.
    """

    def __init__(
        self,
        limits: Limits,
        polling: Polling,
        *,
        engine_retries: int = 1,
        files_per_call: int = 20,
        member: str = "",
        pid: int = 0,
    ) -> None:
        self._limits = limits
        self._few = max(_AHEAD, limits.per_second)
        self._state = state = SchedulerState(
            limits,
            polling,
            engine_retries=engine_retries,
            files_per_call=files_per_call,
            member=member,
            pid=pid,
        )
        extra, uploads = state.extra_polls, state.uploads
        self._urgent: tuple[_Source, ...] = (
            _Source(state.settlements.wakes, self._settlement),
            _Source(state.queries.expires_at, self._expired_query),
            _Source(state.table.wakes, self._reserved_poll),
            _Source(extra.try_at, self._retry),
            _Source(state.takeover_at, self._takeover),
            _Source(state.poll_queue.wakes, self._announced_poll),
            _Source(uploads.upload_at, self._upload),
        )
        # No request of these is reserved, and no task is lost if they wait.
        self._optional: Final = (
            _Source(extra.early_at, self._contended_poll),
            _Source(state.query_at, self._urgent_query),
            _Source(uploads.registration_at, self._early_registration),
            _Source(state.creation_at, self._creation),
            _Source(uploads.registration_at, self._registration),
            _Source(state.query_at, self._query),
            _Source(extra.likely_at, self._likely_poll),
            _Source(extra.scout_at, self._scout_poll),
        )
        # While no work waits, only these are asked instead of them.
        self._idle: Final = (
            _Source(extra.early_at, self._contended_poll),
            _Source(extra.early_at, self._early_poll),
            _Source(extra.likely_at, self._likely_poll),
            _Source(extra.scout_at, self._scout_poll),
        )
        self._wakes: tuple[Callable[[], int], ...] = ()
        self._rank(shared=bool(member))
        # The last answer of `due` and its time. Only an event can change the answer for that time.
        self._answer: ev.Command | None = None
        self._answered_at: int | None = None
        if not state.can_keep_one():
            message = (
                f"{limits!r} cannot keep even one task alive that is polled every "
                f"{state.table.cycle * SLOT / SECOND:g} s for up to {polling.give_up_after:g} s."
            )
            if not state.keeps_alive:
                message = (
                    f"{limits!r} has no room for a task: with webhooks it needs 3 requests, for "
                    "its creation, its result and a retry."
                )
            raise ConfigurationError(message)

    def __repr__(self) -> str:
        states = Counter(job.state.name.lower() for job in self._state.jobs.values())
        return f"<Scheduler {dict(states)} {self._state.table!r}>"

    # The interface of the driver.

    def receive(self, event: ev.Event, now: int) -> None:
        """Process `event` at `now`.

        If the event is impossible now, raise `IllegalEvent` and change nothing.
        """
        state = self._state
        # Nearly every event is of one of the first two kinds.
        if isinstance(event, ev.Issued):
            due = self.due(now)
            if event.command is not due and event.command != due:
                raise IllegalEvent(f"{event.command!r} is not the command that is due.")
            state.on_issued(event.command, now)
        elif type(event) in RESPONSES:
            if TYPE_CHECKING:
                # Not at run time, since a cast is a call.
                event = cast("ev.Answer", event)
            state.on_response(event, now)
        elif isinstance(event, ev.LedgerRead):
            if not state.members.shared:
                raise IllegalEvent("The key is not shared, so there is no ledger to read.")
            state.members.on_read(event, now)
        else:
            state.on_client_event(cast("ev.ClientEvent", event), now)
        state.refresh(now)
        self._answered_at = None

    def due(self, now: int) -> ev.Command | None:
        """Return the command to perform at `now`, or None. Report `Issued` before asking again."""
        if self._answered_at != now:
            state = self._state
            sources = self._urgent if state.is_urgent(now) else ()
            if state.idle(now):
                if state.wants_extra(now):
                    sources += self._idle
            elif state.wants_more(now):
                sources += self._optional
            self._answer = self._first(sources, _Moment(state, now)) if sources else None
            self._answered_at = now
        return self._answer

    def wakes_at(self, now: int) -> int:
        """Return when `due` may return a command without an event, if it returned None at `now`.

        The time is after `now`. It is `NEVER` if only an event can make a command due.
        """
        soonest, waits = NEVER, False
        for wakes in self._wakes:
            if (at := wakes()) <= now:
                waits = True
            elif at < soonest:
                soonest = at
        if self._state.silent(now):
            # Only the end of the silence, or the answer to the probing request, changes that.
            return min(soonest, max(self._state.pacer.allowance.silent_until, now + SLOT))
        return min(soonest, self._fits_at(_Moment(self._state, now))) if waits else soonest

    def share(self, member: str, pid: int, limits: Limits, *, same_network: bool = True) -> None:
        """Share the key from now on under `limits`; call it before the first event.

        `same_network` is whether all members are processes of one machine. They then judge
        together how often polls fail.
        """
        self._state.share(member, pid, limits, same_network=same_network)
        self._rank(shared=True)

    def unshare(self, now: int) -> None:
        """Stop sharing the key. The reservations of other members still count."""
        self._state.unshare(self._limits, now)
        self._rank(shared=False)
        self._answered_at = None

    @property
    def limits(self) -> Limits:
        """The limits that the scheduler was created with."""
        return self._limits

    def shared_limits(self) -> tuple[ev.SharedLimits, ev.SharedLimits]:
        """Return the settings of this member, and those in force for all members."""
        members = self._state.members
        return members.own_limits, members.limits

    @property
    def refuted_lease(self) -> float:
        """The measured lease inside which a task was lost, in seconds, or 0."""
        return self._state.refuted_lease / SECOND

    @property
    def lease(self) -> float:
        """The seconds after which a task that is not polled is lost, as all members assume."""
        return self._state.lease / SECOND

    def occupied(self, now: int) -> int:
        """Return how many requests of all members occupy the window at `now`."""
        return self._state.table.occupied(now)

    def busy(self) -> bool:
        """Return whether there are jobs that have not ended."""
        return bool(self._state.jobs)

    def others_in_doubt(self, feature: str, age: int) -> bool:
        """Return whether another member created a task of unknown id of `feature` recently.

        Recently means at most `age` ago.
        """
        return self._state.members.in_doubt(feature, age)

    def others(self) -> int:
        """Return how many other members of the key there are."""
        return self._state.members.others

    def publish_again(self) -> None:
        """Return all rows at the next `changes`, since the last ones were not written."""
        self._state.members.publish_again()

    def changes(self, now: int) -> tuple[ev.LedgerRow, ...]:
        """Return the rows that changed since the last call, to be written under the lock.

        This ends the step. Until the next `LedgerRead` only reserved polls, uploads and reports may
        leave.
        """
        return self._state.members.changes(now)

    def may_leave_unlocked(self, command: ev.Command, now: int, *, tried: int) -> bool:
        """Return whether `command`, which is due, may leave without the ledger's lock.

        A command that costs no request may, and so may a reserved poll, which all members know of.
        Another member may already have sent a poll that is overdue. Such a poll leaves only after
        the lock was tried for half a second, since its task may be lost otherwise. `tried` is how
        long the lock has been tried.
        """
        if isinstance(command, (ev.Settle, ev.Upload)):
            return True
        if not isinstance(command, ev.Poll) or isinstance(command, ev.Rescue):
            return False
        reserved = self._state.table.due(now // SLOT)
        if reserved is None or reserved[1] != command.ref:
            return False
        return now // SLOT < reserved[0] + RESCUE_AFTER or tried >= _INSIST

    def reserved_at(self) -> int:
        """Return when the next reserved poll, which may leave without the lock, is due."""
        return self._state.table.wakes()

    def foreign_task(self, task_id: str) -> int | None:
        """Return the number of another member's running task, to be used in `Notified`."""
        return self._state.members.foreign_task(task_id)

    def is_kept_elsewhere(self, task_id: str) -> bool:
        """Return whether another member that has not left or died still polls `task_id`."""
        return self._state.members.keeps(task_id)

    def statistics(self, now: int | None = None) -> Statistics:
        """Return the state at `now`, or after the last event."""
        state, table, pacer = self._state, self._state.table, self._state.pacer
        now = state.updated_at if now is None else max(now, state.updated_at)
        states = Counter(job.state for job in state.jobs.values())
        return Statistics(
            waiting=states[JobState.WAITING],
            preparing=len(state.uploads.unready) - states[JobState.WAITING],
            ready=states[JobState.READY],
            running=states[JobState.SUBMITTING]
            + states[JobState.ADOPTED]
            + states[JobState.RUNNING],
            done=state.counts["done"],
            failed=state.counts["failed"],
            requests_in_window=table.occupied(now),
            window_limit=pacer.allowance.limit(now),
            requests=dict(state.requests),
            refused=pacer.refused,
            tries=state.counts["tries"],
            late=state.counts["late"],
            cycle=table.cycle * SLOT / SECOND,
            patience=pacer.network.patience / SECOND,
            units=state.units.totals(),
            members=1 + state.members.others,
            requests_by_others=state.members.requests(now),
            window_wait=self.window_wait(now),
            limits=self._in_force(),
            lease=state.lease / SECOND,
            longest_gap=state.longest_gap / SECOND,
        )

    def _in_force(self) -> Limits:
        held = self._state.members.limits
        period = held.period / SECOND
        return attrs.evolve(
            self._limits, requests=held.requests, period=period, per_second=held.per_second
        )

    def lookahead(self) -> int:
        """Return how many jobs without a task the caller should hand over at most.

        They need more requests than one window holds, and there are more where the limits are
        larger. A long batch is not handed over at once.
        """
        return min(max(_LEAST_AHEAD, 8 * self._limits.per_second), _MOST_AHEAD)

    def eta(self, waiting: int, running: int, now: int) -> float | None:
        """Estimate the seconds from `now` until so many more jobs have ended.

        Before the first end it is None, or the wait for a full window. Afterwards two limits
        bound it: the requests of a window, and the tasks that can be polled side by side. Running
        tasks are assumed to be half done on average.
        """
        state, left = self._state, waiting + running / 2
        if not left:
            return 0.0
        if not state.ended:
            return self.window_wait(now) or None
        known = state.ended >= _KNOWN
        per_job = state.requests.total() / state.ended if known else float(LEAST_REQUESTS)
        lasts = state.lasted / state.ended / SECOND
        return self._ends_in(left, per_job, lasts, now) + lasts / 2

    def estimate(self, jobs: Mapping[ev.TaskKind, int], now: int) -> tuple[float, bool]:
        """Estimate the seconds until `jobs`, so many of each kind, have ended if added at `now`.

        Also return whether a task of each kind has ended here. For other kinds the documented
        duration is used, or two minutes. Jobs that already wait or run come first.
        """
        state, count = self._state, sum(jobs.values())
        if not count:
            return 0.0, True
        means = {kind: state.admission.mean(kind) for kind in jobs}
        lasting = {
            kind: (_usual(kind) if mean is None else mean) / SECOND for kind, mean in means.items()
        }
        lasts = sum(lasting[kind] * number for kind, number in jobs.items()) / count
        cycle = state.table.cycle * SLOT / SECOND
        polls = math.ceil(lasts / cycle) if state.keeps_alive else 1
        waiting = state.uncreated()
        left = count + waiting + (len(state.jobs) - waiting) / 2
        # The batch does not end before its longest kind of task.
        ends_in = self._ends_in(left, 1 + polls, lasts, now)
        seconds = max(ends_in + lasts / 2, *lasting.values())
        return seconds, None not in means.values()

    def _ends_in(self, left: float, per_job: float, lasts: float, now: int) -> float:
        """Estimate the seconds from `now` until `left` more jobs are under way.

        Each needs `per_job` requests and lasts `lasts` seconds.
        """
        state = self._state
        limit = max(1, state.pacer.allowance.limit(now))
        needed, free = left * per_job, limit - state.table.occupied(now)
        # With webhooks a task needs its creation and its result; otherwise a poll each cycle.
        cycle = state.table.cycle * SLOT / SECOND
        share = cycle / self._limits.period if state.keeps_alive else 0.5
        at_once = max(1.0, limit * share)
        if needed <= free and state.keeps_alive:
            # The window holds all requests, so only reserved polls limit the tasks side by side.
            at_once = max(at_once, (free - needed / 2) / state.admission.reserved_each(now))
        budget = max(self._allowed_in(needed - free, now), needed / self._limits.per_second)
        return max(budget, left * lasts / at_once)

    def window_wait(self, now: int) -> float:
        """Estimate the seconds from `now` until the first job can be sent, if the window is full.

        It is 0 while a job runs. The requests of this process and of others count alike.
        """
        state = self._state
        waiting = state.uncreated()
        if not waiting or len(state.jobs) > waiting:
            return 0.0
        table, pacer = state.table, state.pacer
        period, cycle = self._limits.period, table.cycle * SLOT / SECOND
        # A first task may be one of those that last long. Its creation counts twice, and each of
        # its polls only leaves when some of the others' requests have left the window again.
        needed = table.occupied(now) + state.members.held(now) + 2 - pacer.limit(now)
        past, room, at, wait = iter(table.past(now)), 0, 0.0, 0.0
        for polls in range(pacer.alone() - 1):
            while room < needed + polls:
                age, count = next(past, (0, needed + polls))
                at, room = period - age / SECOND, room + count
            wait = max(wait, at - polls * cycle)
        return wait

    def contended(self) -> bool:
        """Return whether refusals suggest that somebody outside the ledger uses the key."""
        allowance = self._state.pacer.allowance
        return allowance.limit(self._state.updated_at) < allowance.requests

    def _allowed_in(self, requests: float, now: int) -> float:
        """Estimate the seconds from `now` until the window has room for so many more requests."""
        period, waits = self._limits.period, 0.0
        for age, count in self._state.table.past(now):
            if requests <= 0:
                return waits
            if count:
                waits, requests = period - age / SECOND, requests - count
        allowed = self._state.pacer.allowance.requests
        return waits + max(0.0, requests) * period / max(1, allowed)

    def past(self, now: int) -> tuple[tuple[int, int], ...]:
        """Return the requests in the window as (age in microseconds, count), oldest first."""
        return self._state.table.past(now)

    def remember(self, past: Iterable[tuple[int, int]]) -> None:
        """Count the `past` of a former scheduler on the key; call it before the first event."""
        period = round(self._limits.period * SECOND)
        self._state.table.remember((age, count) for age, count in past if age < period)

    # The choice of the next command.

    def _rank(self, *, shared: bool) -> None:
        """Order the sources. Polls for other members are one only if the key is `shared`."""
        rescue = _Source(self._state.members.rescue_at, self._rescue)
        urgent = [source for source in self._urgent if source != rescue]
        if shared:
            urgent.insert(_RESCUE, rescue)
        self._urgent = tuple(urgent)
        sources = (*self._urgent, *self._optional)
        self._wakes = tuple(dict.fromkeys(source.wakes for source in sources))

    @staticmethod
    def _first(sources: Iterable[_Source], moment: _Moment) -> ev.Command | None:
        """Return the command of the first of `sources` that has one."""
        now = moment.now
        for wakes, following in sources:
            if wakes() <= now and (command := following(moment)) is not None:
                return command
        return None

    def _fits_at(self, moment: _Moment) -> int:
        """Return when a command that does not fit now may fit.

        Room in the second and in the phases changes with each slot, room in the window with each
        bucket.
        """
        state, table, now = self._state, self._state.table, moment.now
        crowded = (
            moment.reserved is not None
            or (
                (bool(state.takeovers) or state.extra_polls.try_at() <= now)
                and state.fits_urgently(now)
            )
            or (state.members.shared and state.members.rescue_at() <= now)
            or (
                state.fits(now, moment.limit)
                and (
                    not moment.lends() or (bool(state.ready) and table.origin(moment.slot) is None)
                )
            )
        )
        return (moment.slot + 1) * SLOT if crowded else table.account.next_change(now)

    # The sources, in their order.

    def _settlement(self, moment: _Moment) -> ev.Command | None:
        return self._state.settlement(moment.now)

    def _expired_query(self, moment: _Moment) -> ev.Command | None:  # noqa: ARG002 - costs nothing
        ref, error = self._state.queries.expired()
        return ev.Settle(ref, error, 0.0)

    def _reserved_poll(self, moment: _Moment) -> ev.Command | None:
        # A poll in its own slot always leaves, since its place in the second is reserved.
        slot, ref = moment.reserved or (0, 0)
        if moment.room or (slot == moment.slot and not moment.silent()):
            return ev.Poll(moment.number, ref)
        return None

    def _retry(self, moment: _Moment) -> ev.Command | None:
        state, now = self._state, moment.now
        if (
            moment.reserved is None
            and not moment.silent()
            and state.fits_urgently(now)
            # A task may be lost, so a hanging poll counts only for the guard, not its patience.
            and (moment.room or state.table.room(now, urgent=True))
        ):
            return ev.Poll(moment.number, state.extra_polls.tries[0][1])
        return None

    def _takeover(self, moment: _Moment) -> ev.Command | None:
        # The rest of the lease is unknown, so this comes before work that can wait.
        if moment.reserved is None and moment.room and self._state.fits_urgently(moment.now):
            return ev.Poll(moment.number, self._state.takeovers[0].ref)
        return None

    def _rescue(self, moment: _Moment) -> ev.Command | None:
        state, now = self._state, moment.now
        if moment.reserved is not None or moment.silent():
            return None
        if not moment.room and not state.table.room(now, urgent=True):
            return None
        # The first poll uses the reserved request; a retry needs another one.
        task = state.members.to_rescue(now, again=state.fits_urgently(now))
        if task is None:
            return None
        return ev.Rescue(moment.number, task.ref, task.row.kind.feature, task.row.task_id)

    def _announced_poll(self, moment: _Moment) -> ev.Command | None:
        if moment.room and moment.reserved is None and self._state.fits(moment.now, moment.limit):
            return ev.Poll(moment.number, self._state.poll_queue.first())
        return None

    def _upload(self, moment: _Moment) -> ev.Command | None:
        return ev.Upload(moment.number, self._state.uploads.next_upload())

    def _contended_poll(self, moment: _Moment) -> ev.Command | None:
        """Poll in mid-lease while the key is contended."""
        if self._state.pacer.allowance.contended_until > moment.now and moment.fits_unreserved():
            return ev.Poll(moment.number, self._state.extra_polls.early[0][1])
        return None

    def _urgent_query(self, moment: _Moment) -> ev.Command | None:
        query = self._state.queries.waiting[0]
        if query.urgent or moment.now - query.since >= _PATIENT:
            return self._query(moment)
        return None

    def _query(self, moment: _Moment) -> ev.Command | None:
        if moment.free:
            return ev.Ask(moment.number, self._state.queries.waiting[0].ref)
        return None

    def _early_registration(self, moment: _Moment) -> ev.Command | None:
        """Register before creating where few pictures are ready."""
        return self._register(moment, partly=True) if self._low() else None

    def _registration(self, moment: _Moment) -> ev.Command | None:
        return None if self._low() else self._register(moment, partly=False)

    def _low(self) -> bool:
        return self._state.uploads.under_way + len(self._state.ready) < self._few

    def _register(self, moment: _Moment, *, partly: bool) -> ev.Command | None:
        if not moment.free:
            return None
        found = self._state.uploads.registration(moment.now, partly=partly)
        return None if found is None else ev.Register(moment.number, *found)

    def _creation(self, moment: _Moment) -> ev.Command | None:
        state, now = self._state, moment.now
        job = state.creation()
        if (
            job is not None
            and moment.free
            and state.pacer.may_create(now)
            and (not state.members.shared or state.members.has_turn(now))
            and (moment.ample or state.table.room(now, creates=True))
            and state.strategy.admits(job, now, moment.limit - state.pacer.kept_for_ends)
        ):
            return ev.Submit(moment.number, job.ref)
        return None

    def _likely_poll(self, moment: _Moment) -> ev.Command | None:
        """Poll a task that has probably ended, to free its reserved polls sooner.

        Where polls are rare, this is the one that finds its end. Elsewhere it is sent only where
        the window holds all waiting work, since an extra request delays the batch.
        """
        if moment.free and (self._state.pacer.rare or self._holds_all(moment)):
            return self._extra_poll(moment, self._state.extra_polls.likely)
        return None

    def _holds_all(self, moment: _Moment) -> bool:
        """Return whether work waits, and the window has room for all of it.

        The caller may have more jobs than it has handed over.
        """
        state, work = self._state, self._state.work(moment.now)
        if not 0 < work < self.lookahead() - _AHEAD:
            return False
        # A running task needs no creation.
        needed = LEAST_REQUESTS * work + (LEAST_REQUESTS - 1) * len(state.table)
        return state.table.occupied(moment.now) + needed <= moment.limit

    def _scout_poll(self, moment: _Moment) -> ev.Command | None:
        """Poll a task of which nobody knows when it ends, where polls are rare."""
        if moment.free and self._state.pacer.rare:
            return self._extra_poll(moment, self._state.extra_polls.scouts)
        return None

    def _early_poll(self, moment: _Moment) -> ev.Command | None:
        """Poll a task before its reserved poll while no work waits."""
        if moment.free and (not self._state.pacer.rare or self._state.pacer.plenty(moment.now)):
            return self._extra_poll(moment, self._state.extra_polls.early)
        return None

    def _extra_poll(
        self, moment: _Moment, queue: Sequence[tuple[int, int, object]]
    ) -> ev.Command | None:
        """Poll the first task of `queue` if that takes no request that another may need."""
        if self._state.admission.leaves_room(moment.now, moment.limit):
            return ev.Poll(moment.number, queue[0][1])
        return None


class _Source(NamedTuple):
    """A source of one kind of command.

    `wakes()` is when it may have a command without an event. It is not in the future if the command
    only waits for room. From then on `next(moment)` is the command, or None where it must wait.
    """

    wakes: Callable[[], int]
    next: Callable[[_Moment], ev.Command | None]


_T = TypeVar("_T")


class _lazy(Generic[_T]):  # noqa: N801 - used as a decorator
    """A property that is computed once.

    `functools.cached_property` takes a lock in Python 3.11, which costs more than the computation.
    """

    def __init__(self, compute: Callable[[_Moment], _T]) -> None:
        self._compute, self._name = compute, compute.__name__

    def __get__(self, moment: _Moment, owner: type[_Moment]) -> _T:
        value = moment.__dict__[self._name] = self._compute(moment)
        return value


class _Moment:
    """What the limits allow at `now`. Each answer is computed when it is first needed."""

    def __init__(self, state: SchedulerState, now: int) -> None:
        self._state = state
        self.now = now
        self.slot = now // SLOT
        self.number = state.number + 1
        # The reserved poll whose slot has come, as (slot, ref). Nearly all sources ask for it.
        self.reserved = state.table.due(self.slot)

    @_lazy
    def ample(self) -> bool:
        """Whether the second certainly has room."""
        return self._state.table.ample(self.now)

    @_lazy
    def room(self) -> bool:
        """Whether the second has room for one more request beside the reserved ones."""
        return not self._state.silent(self.now) and (self.ample or self._state.table.room(self.now))

    @_lazy
    def limit(self) -> int:
        """The number of requests of a window that creations may use."""
        return self._state.pacer.limit(self.now)

    @_lazy
    def free(self) -> bool:
        """Whether a request that keeps no task alive may leave."""
        return self.fits_unreserved() and self.now >= self._state.pacer.paused_until()

    def silent(self) -> bool:
        """Return whether no request at all may be sent."""
        return self._state.silent(self.now)

    def lends(self) -> bool:
        """Return whether the second has room for one more request and for all retries."""
        return self.ample or self._state.pacer.lends(self.now)

    def fits_unreserved(self) -> bool:
        """Return whether an unreserved request may leave."""
        # Asked after nearly every event, so it calls neither `lends` nor `state.fits`.
        state = self._state
        if self.reserved is not None or not self.room:
            return False
        if not (self.ample or state.pacer.lends(self.now)):
            return False
        held, members = state.strategy.held, state.members
        if members.shared:
            held += members.held(self.now)
        return state.table.account.fits(self.now, 1 + held, self.limit)


def _usual(kind: ev.TaskKind) -> int:
    """Return the middle of the documented durations of `kind`, or the assumed duration."""
    return UNKNOWN if kind.usual is None else sum(kind.usual) // 2
