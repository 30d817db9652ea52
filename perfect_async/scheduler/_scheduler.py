"""Which request goes next, and when to wake: the thought behind everything that costs money.

The scheduler is a value that hears news and answers a question. `receive(event, now)` is the only
thing that changes it; `due(now)` says what to do, and asking twice changes nothing; `wakes_at(now)`
says when to ask again without news. It owns the only request ledger (the timetable), so a retry is
a new command that it may or may not afford. In order of rank:

1. telling who waits how a job ended, and giving up what is too old: costs nothing;
2. promised polls, each in its slot; one that is overdue leaves as soon as the second has room;
3. tries: a poll that failed or is silent is sent again inside its lease, from the unpromised rest;
   the first polls of tasks that are taken over, whose lease nobody knows; tasks that the vendor
   has announced to have ended, or that are long overdue;
4. uploads: cost no request;
5. a question that has waited long, creations, and registrations so far ahead that no creation
   waits;
6. questions; early polls, when the budget holds more than the work that waits.

All times are integer microseconds of one clock; which one is the driver's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from perfect_async import events as ev
from perfect_async._time import NEVER, SECOND, SLOT
from perfect_async.errors import ConfigurationError
from perfect_async.reports import Statistics
from perfect_async.scheduler._job import IllegalEvent, JobState
from perfect_async.scheduler._state import SchedulerState

if TYPE_CHECKING:
    from perfect_async.models import Limits, Polling

__all__ = ["NEVER", "IllegalEvent", "Scheduler"]

_AHEAD: Final = 4
"""Pictures ready or on their way there, below which registering comes before creating (or a
second's worth).
"""
_PATIENT: Final = 15 * SECOND
"""A question that has waited for so long comes before creations."""
_KNOWN: Final = 20
"""Jobs that ended before their own cost is believed."""
_REQUESTS_PER_JOB: Final = 3.0
"""A creation, a share of a registration and two polls: a smile, before anything is seen."""


class Scheduler:
    """Decides for all jobs on one key and host.

    `limits` and `polling` are the settings of the same names; `engine_retries` is how often a
    passing failure of the engine is tried again as a new task; `files_per_call` how many files one
    registration holds at first. Raises `ConfigurationError` where not even one task could be kept
    alive.
    """

    def __init__(
        self, limits: Limits, polling: Polling, *, engine_retries: int = 1, files_per_call: int = 20
    ) -> None:
        self._limits = limits
        self._few = max(_AHEAD, limits.per_second)
        self._book = book = SchedulerState(
            limits, polling, engine_retries=engine_retries, files_per_call=files_per_call
        )
        # What was answered last and when, None where there was news since.
        self._answer: ev.Command | None = None
        self._answered: int | None = None
        if book.kept and not book.table.admits(0, 0, book.last(0), book.pacer.limit(0)):
            message = (
                f"{limits!r} cannot keep even one task alive that is polled every "
                f"{book.table.cycle * SLOT / SECOND:g} s for up to {polling.give_up_after:g} s."
            )
            raise ConfigurationError(message)

    def __repr__(self) -> str:
        states = Counter(job.state.name.lower() for job in self._book.jobs.values())
        return f"<Scheduler {dict(states)} {self._book.table!r}>"

    # The seam.

    def receive(self, event: ev.Event, now: int) -> None:
        """Hear `event` at `now`. Raises `IllegalEvent`, and stays as it was, for news that cannot
        be.
        """
        book = self._book
        match event:
            case ev.Issued():
                due = self._answer if self._answered == now else self.due(now)
                if event.command is not due and event.command != due:
                    raise IllegalEvent(f"{event.command!r} is not what is due.")
                book.issue(event.command, now)
            case ev.Wanted() | ev.Adopted() | ev.Forgone() | ev.Asked():
                book.take_in(event, now)
            case ev.Notified():
                book.announce(event.ref, now)
            case ev.Withdrawn():
                book.withdraw(event.ref)
            case ev.Closed():
                book.close(event.channel, now)
            case ev.Dropped():
                book.drop(event.channel, now)
            case ev.Opened() | ev.Emptied():
                book.units.hear(event)
            case _:
                book.hear(event, now)
        book.after(now)
        self._answered = None

    def due(self, now: int) -> ev.Command | None:
        """What to do at `now`, None for nothing. Say `Issued` before asking again."""
        # Remembered, since saying Issued asks once more; only news makes the answer another.
        if self._answered != now:
            self._answer, self._answered = self._due(now), now
        return self._answer

    def wakes_at(self, now: int) -> int:
        """When `due`, which had nothing to do at `now`, may have something without news; after
        `now`.

        `NEVER` when only news can wake it.
        """
        book, slot = self._book, now // SLOT
        times = book.preparation.wakes()
        times += book.extra_polls.wakes()
        times += [age for age, _, _ in book.endings.ages[:1]]
        times += [now] * bool(book.adoptions)
        if (asked := book.asks.first()) is not None:
            times.append(asked[0])
        if (first := book.table.first()) is not None:
            times.append(first[0] * SLOT)
        if book.ready or book.questions.waiting:
            times.append(book.pacer.paused_until())
        soon = [at for at in times if at > now]
        if self._silent(now):
            # The end of the silence, or the answer of what asks, is all that counts.
            soon.append(max(book.pacer.allowance.silent_until, now + SLOT))
        elif len(soon) < len(times):
            # Something is due but does not fit. The second and the phases free in slots, the window
            # in buckets.
            taking_over = bool(book.adoptions) and self._fits(now)
            crowded = (
                (first is not None and first[0] <= slot)
                or taking_over
                or (
                    book.table.account.fits(now, 1, book.pacer.limit(now))
                    and (
                        not (book.table.ample(now) or book.pacer.lends(now))
                        or (bool(book.ready) and book.table.origin(slot) is None)
                    )
                )
            )
            soon.append((slot + 1) * SLOT if crowded else book.table.account.next_change(now))
        return min(soon, default=NEVER)

    def statistics(self) -> Statistics:
        """How it stood at the last news."""
        book = self._book
        states = Counter(job.state for job in book.jobs.values())
        return Statistics(
            waiting=states[JobState.WAITING],
            preparing=book.preparation.under_way,
            ready=states[JobState.READY],
            running=states[JobState.SUBMITTING]
            + states[JobState.ADOPTED]
            + states[JobState.RUNNING],
            done=book.counts["done"],
            failed=book.counts["failed"],
            requests_in_window=book.table.occupied(book.heard),
            window_limit=book.pacer.allowance.limit(book.heard),
            requests=dict(book.kinds),
            refused=book.pacer.refused,
            tries=book.counts["tries"],
            late=book.counts["late"],
            cycle=book.table.cycle * SLOT / SECOND,
            patience=book.pacer.network.patience / SECOND,
            units=book.units.totals(),
        )

    def appetite(self) -> int:
        """How many jobs that are not created yet it likes to know: two registrations and a few."""
        return max(48, 8 * self._limits.per_second)

    def eta(self, waiting: int, running: int) -> float | None:
        """Seconds until so many jobs more have ended, None before any has.

        By the request budget, which bounds twice: a window holds so many requests, and so many
        promises beside each other. What runs is half over, on the average.
        """
        book, left = self._book, waiting + running / 2
        if not book.ended or not left:
            return None if left else 0.0
        limit = max(1, book.pacer.allowance.limit(book.heard))
        per_job = book.kinds.total() / book.ended if book.ended >= _KNOWN else _REQUESTS_PER_JOB
        lasts = book.lasted / book.ended / SECOND
        needed, free = left * per_job, limit - book.table.occupied(book.heard)
        # Without promises a task holds its creation and its result; else a poll each cycle.
        share = book.table.cycle * SLOT / SECOND / self._limits.period if book.kept else 0.5
        at_once = max(1.0, limit * share)
        if needed <= free and book.kept:
            # The window holds all of it: as many beside each other as their promises allow.
            promised = book.admission.promised(book.heard)
            at_once = max(at_once, (free - needed / 2) / promised)
        budget = max(self._allowed_in(needed - free), needed / self._limits.per_second)
        return max(budget, left * lasts / at_once) + lasts / 2

    def _allowed_in(self, requests: float) -> float:
        """Seconds until the window has let go of so many requests, if all are used at once."""
        period, waits = self._limits.period, 0.0
        for age, count in self._book.table.past(self._book.heard):
            if requests <= 0:
                return waits
            waits, requests = period - age / SECOND, requests - count
        return waits + max(0.0, requests) * period / max(1, self._book.pacer.allowance.requests)

    def past(self, now: int) -> tuple[tuple[int, int], ...]:
        """What of the window is spent, as (age in microseconds, requests), the oldest first."""
        return self._book.table.past(now)

    def remember(self, past: Iterable[tuple[int, int]]) -> None:
        """Before anything else: the key was used before time 0, as `past` of another told."""
        period = round(self._limits.period * SECOND)
        self._book.table.remember((age, count) for age, count in past if age < period)

    # What leaves next.

    def _due(self, now: int) -> ev.Command | None:
        book, number, slot = self._book, self._book.number + 1, now // SLOT
        if book.endings.queue:
            return book.endings.queue[0][0]
        if book.endings.ages and book.endings.ages[0][0] <= now:
            job = book.endings.ages[0][2]
            return ev.Settle(job.ref, book.abandoned(job), job.charged)
        table, tried = book.table, book.extra_polls.tries[0]
        first = table.first(slot) if table.queue and table.queue[0][0] <= slot else None
        owed = first is not None
        again = tried[0] <= now and not owed
        upload = book.preparation.upload(now)
        if not (owed or again or self._wanting(now)):
            return None if upload is None else ev.Upload(number, upload)
        silent = book.pacer.allowance.full and self._silent(now)
        ample = table.ample(now)
        room = not silent and (ample or table.room(now))
        if first is not None and (room or (first[0] == slot and not silent)):
            return ev.Poll(number, first[1])
        if (
            again
            and not silent
            and self._fits(now)
            # A lease is at stake: a poll that hangs is counted where it left, not where it may be.
            and (room or table.room(now, urgent=True))
        ):
            return ev.Poll(number, tried[1])
        if book.adoptions and not owed and room and self._fits(now):
            # Nobody knows how much of its lease is left: sooner than anything that can wait.
            return ev.Poll(number, book.adoptions[0].ref)
        asked = book.asks.first()
        if (
            asked is not None
            and asked[0] <= now
            and room
            and not owed
            and table.account.fits(now, 1, book.pacer.limit(now))
        ):
            return ev.Poll(number, asked[1])
        if upload is not None:
            return ev.Upload(number, upload)
        if owed or not room or not (ample or book.pacer.lends(now)):
            return None
        return self._unpromised(number, now, ample=ample)

    def _fits(self, now: int) -> bool:
        """Whether a lease that is at stake may have a request of the window.

        Of tasks that were taken over there may be more than the plan has room for: a former process
        knew how long they last, and admitted as many. Then the window as it is counts: most end
        long before the end of their promises, and what is not asked for now is lost for certain.
        """
        book, most = self._book, self._limits.requests
        if book.table.account.fits(now, 1, most):
            return True
        former = any(job.adopted for job in book.jobs.values())
        return former and book.table.occupied(now) < most

    def _wanting(self, now: int) -> bool:
        """Whether there is anything that nobody was promised and that may want to leave."""
        book, extra_polls = self._book, self._book.extra_polls
        preparation = book.preparation
        if book.ready or book.questions.waiting or book.adoptions:
            return True
        if (asked := book.asks.first()) is not None and asked[0] <= now:
            return True
        if not (preparation.waiting or preparation.under_way):
            return extra_polls.early[0][0] <= now
        # As below: early polls are for when nothing else waits, likely ones for when it does.
        return (
            preparation.registers(now)
            or extra_polls.likely[0][0] <= now
            or extra_polls.early[0][0] <= now < book.pacer.allowance.wary_until
        )

    def _silent(self, now: int) -> bool:
        """Whether the window is full with requests of others, and it is not the time to ask."""
        pacer, table = self._book.pacer, self._book.table
        asking = pacer.allowance.full and table.asking(now - pacer.network.patience)
        return pacer.silent(now, asking=asking)

    def _unpromised(self, number: int, now: int, *, ample: bool) -> ev.Command | None:
        """A request that nobody was promised: it leaves where every window holds."""
        book, pacer = self._book, self._book.pacer
        limit = pacer.limit(now)
        if not book.table.account.fits(now, 1 + book.strategy.held, limit):
            return None
        if pacer.allowance.wary_until > now and (poll := self._early(number, now)) is not None:
            return poll
        if now < pacer.paused_until():
            return None
        question = book.questions.waiting[0] if book.questions.waiting else None
        if question is not None and (question.urgent or now - question.since >= _PATIENT):
            return ev.Ask(number, question.ref)
        registration = None
        if book.preparation.waiting:
            low = book.preparation.under_way + len(book.ready) < self._few
            registration = book.preparation.registration(now, partly=low)
            if registration is not None and low:
                return ev.Register(number, *registration)
        job = book.creation()
        if (
            job is not None
            and pacer.may_create(now)
            and (ample or book.table.room(now, creates=True))
            and book.strategy.admits(job, now, limit)
        ):
            return ev.Submit(number, job.ref)
        if registration is not None:
            return ev.Register(number, *registration)
        if question is not None:
            return ev.Ask(number, question.ref)
        work = len(book.ready) + len(book.preparation.waiting) + book.preparation.under_way
        poll = self._likely(number, now, limit, work) if work else self._early(number, now)
        return poll if poll is not None and book.admission.spares(now, limit) else None

    def _likely(self, number: int, now: int, limit: int, work: int) -> ev.Poll | None:
        """Ask a task that has rather ended than not: what it holds is free the sooner.

        Where the window holds all the work there is: where it does not, requests are time.
        """
        book = self._book
        likely = book.extra_polls.likely[0]
        # The source may have more than we know of.
        if likely[0] > now or work >= self.appetite() - _AHEAD:
            return None
        needed = book.table.occupied(now) + _REQUESTS_PER_JOB * work + 2 * len(book.table)
        if needed > limit:
            return None
        return ev.Poll(number, likely[1])

    def _early(self, number: int, now: int) -> ev.Poll | None:
        """Ask a task before its promise, where nothing else waits."""
        at, ref, _ = self._book.extra_polls.early[0]
        return ev.Poll(number, ref) if at <= now else None
