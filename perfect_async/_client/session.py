"""Where an open client takes jobs and questions in, and looks after what came of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Protocol, TypeVar

import anyio
import attrs

from perfect_async import events as ev
from perfect_async._api import account, tasks
from perfect_async._api.responses import same_code
from perfect_async._client.recovery import Leftover, Leftovers
from perfect_async._client.results import Done, Failed, Outcome, Result, ResultImage
from perfect_async._client.retention import Copy, Custody
from perfect_async._files.images import inspect
from perfect_async._log import type_name
from perfect_async._runtime.driver import Driver
from perfect_async._runtime.executors import Home
from perfect_async._runtime.failures import closed
from perfect_async._runtime.handle import Lane, Ticket
from perfect_async._runtime.spec import PLAIN, Errand, Terms
from perfect_async.errors import (
    BadAnswer,
    ClientClosed,
    JobRefused,
    PerfectError,
    RequestRefused,
    TaskError,
    TaskExpired,
    WaitTimeout,
)
from perfect_async.models import FileId, Job, must_be_job
from perfect_async.reports import Statistics

T = TypeVar("T")

_RESULT_LIVES: Final = timedelta(seconds=7200)
"""How long a result URL lives (contract: The flow of one picture, 5)."""


class Cut(Protocol):
    """What reads jobs for a client, and must stop when it closes."""

    def cut(self) -> None:
        """Read no more."""
        ...


class Desk:
    """One open client's place at a driver; also the `Store` of its results.

    It belongs to its home, where all of it is to be called but `ready`, `ask` and `result`.
    `closed`: takes nothing more in; `left`: nor does it save what came of it. `max_units` and
    `reuse` as in `Client`.
    """

    def __init__(
        self, home: Home, driver: Driver, lane: Lane, *, max_units: float | None, reuse: bool | None
    ) -> None:
        self.home = home
        self.driver = driver
        self.lane = lane
        self.closed = self.left = False
        self.batches: set[Cut] = set()
        self._purses = purses = () if max_units is None else (driver.purse(max_units),)
        self._reuse = reuse
        self.custody = Custody(self._forget, self._uses)
        self.leftovers = Leftovers(driver.intake, lane, purses)

    def ready(self) -> None:
        """Raises `ConfigurationError` as its home does, and `ClientClosed`."""
        self._here(self.closed)

    def _here(self, closed: bool = False) -> None:  # noqa: FBT001, FBT002 - private
        """As `ready`, but a client that closes still saves what it has."""
        self.home.check()
        if closed or self.left:
            raise ClientClosed("This client is closed; its results are saved while it is open.")

    # Jobs.

    async def enter(
        self, job: Job | Leftover, heard: Callable[[], None], terms: Terms = PLAIN
    ) -> Ticket:
        """Look at the job's picture and take it in; raises `JobRefused` and `ClientClosed`.

        A job that equals one on its way, one of the former process or one that is finished and can
        be fetched again, is not created a second time.
        """
        if isinstance(job, Leftover):
            self.ready()
            self.driver.check()
            return await self.leftovers.resume(job, heard)
        must_be_job(job)
        self.ready()
        try:
            picture = await inspect(job.source, type(job))
            self.ready()
            terms = attrs.evolve(terms, purses=(*self._purses, *terms.purses))
            return await self._enter(Errand.of(job, picture, terms), heard)
        except PerfectError:
            raise
        except Exception as exc:
            # A path of the user's own making may raise anything; it is one job's matter.
            raise JobRefused(f"the job cannot be looked at ({type_name(exc)}).") from exc

    async def _enter(self, errand: Errand, heard: Callable[[], None]) -> Ticket:
        intake, records = self.driver.intake, self.lane.records
        if errand.sure and records:
            former = intake.equal(self.lane, errand, heard) or self.leftovers.equal(errand, heard)
            former = former or await self._finished(errand, heard)
            if former is not None:
                return former
            self.ready()
        self.driver.check()
        # Asked last, and without a wait in between: two that are equal may come at once.
        equal = intake.equal(self.lane, errand, heard)
        return equal or intake.enter(self.lane, errand, records.enter(errand), heard)

    async def _finished(self, errand: Errand, heard: Callable[[], None]) -> Ticket | None:
        """The end of an equal job whose pictures the vendor still has; one request, no unit."""
        reusable = errand.job is not None and errand.job.reusable
        if not (reusable if self._reuse is None else self._reuse):
            return None
        records = self.lane.records
        task_id = await records.finished(errand.identity)
        if task_id is None:
            return None
        with self.custody.fetching(task_id) as there:
            if not there:
                return None
            try:
                event = await self._again(errand.feature, task_id)
            except TaskError:
                # It cannot be fetched any longer, whatever the journal says.
                await records.drop(task_id)
                return None
            ticket = Ticket(0, errand, self.lane, records.nothing(), heard, source=errand.source)
            ticket.task_id = task_id
            ticket.end(event, 0.0, self.driver.seconds())
            if errand.terms.save_to is not None:
                # Here and now, since what is to be saved must not be deleted in between.
                self.custody.begin(ticket)
            return ticket

    async def attach(self, feature: type[Job], task_id: str, heard: Callable[[], None]) -> Ticket:
        """Wait beside whoever keeps the task `task_id`, or keep it from now on."""
        intake, errand = self.driver.intake, Errand.attached(feature, task_id)
        if (leader := intake.of_task(task_id)) is not None:
            return intake.follow(leader, attrs.evolve(leader.errand, terms=Terms()), heard)
        if (former := self.leftovers.of_task(task_id, heard)) is not None:
            return former
        self.driver.check()
        return intake.adopt(self.lane, errand, self.lane.records.nothing(), (task_id, 0), heard)

    async def wait(self, enter: Callable[[], Awaitable[Ticket]], timeout: float | None) -> Ticket:
        """The ticket that `enter` gives, once it has ended; raises `WaitTimeout`."""
        ticket: Ticket | None = None
        try:
            with anyio.move_on_after(timeout):
                ticket = await enter()
                await ticket.done.wait()
        finally:
            if ticket is not None:
                self.withdraw(ticket)
        if ticket is None or ticket.ending is None:
            raise WaitTimeout(
                f"The job had not ended after {timeout:g} s.",
                task_id=None if ticket is None else ticket.task_id,
                units_at_stake=0.0 if ticket is None else ticket.at_stake,
            )
        return ticket

    async def keep(self, ticket: Ticket) -> Outcome:
        """How the job of `ticket`, which has ended, ended: saved, if it was to be."""
        outcome = self.outcome(ticket)
        try:
            outcome = await self.custody.keep(ticket, outcome)
        finally:
            self.custody.end(ticket, outcome)
        return outcome

    def sweep(self) -> None:
        """Delete what was to be deleted and is needed by nobody any more."""
        if self.driver.alive and (copies := self.custody.free()):
            self.start(lambda: self.custody.erase(copies))

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody waits for `ticket`: it is not created; what was created is kept to its end."""
        self.driver.withdraw(ticket)

    def start(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run `work` beside the keeping, in the context of the caller."""
        self.driver.start(work)

    def appetite(self) -> int:
        """How many jobs that are not created yet it is good to know ahead."""
        return self.driver.scheduler.appetite()

    def eta(self, waiting: int, running: int) -> float | None:
        """Seconds until so many jobs more have ended, None where nothing is known."""
        return self.driver.scheduler.eta(waiting, running)

    def statistics(self) -> Statistics:
        """How the scheduler is, and the loop it runs in."""
        return self.driver.watch.noted(self.driver.scheduler.statistics())

    def cut_off(self) -> ClientClosed:
        """The error for jobs that will not be read or sent any more."""
        if self.closed or self.driver.ending:
            return closed(self.driver.failure)
        return ClientClosed("The reading of the jobs was cancelled from within their source.")

    def outcome(self, ticket: Ticket) -> Outcome:
        """How the job of `ticket`, which has ended, ended."""
        job = ticket.errand.job
        if job is None or ticket.ending is None:
            raise AssertionError(ticket)
        if isinstance(ticket.ending, ev.Succeeded):
            result = self.result(ticket)
            return Done(job, result, result.task_id, ticket.units, ticket.duration)
        error = ticket.ending
        task_id = error.task_id if isinstance(error, TaskError) else ticket.task_id
        return Failed(job, error, task_id, ticket.units, ticket.duration)

    def result(self, ticket: Ticket) -> Result:
        """The pictures of `ticket`, which has ended; raises why there are none."""
        errand = ticket.errand
        match ticket.ending:
            case ev.Succeeded() as event:
                return Result(
                    str(ticket.task_id),
                    self._images(event),
                    feature=errand.feature,
                    stem=errand.stem,
                    identity=errand.identity,
                    store=self,
                )
            case None:
                raise AssertionError(ticket)
            case error:
                raise error

    # Questions, and what results ask for.

    async def ask(self, call: tasks.Call) -> tasks.Reply:
        """Send a question; raises what came instead of an answer."""
        self.ready()
        return await self.home.call(partial(self.driver.ask, self.lane, call))

    def begin(self) -> None:
        """Write in the background, and delete what a former process had saved and not deleted."""
        records, driver = self.lane.records, self.driver
        if records.journal is None:
            return
        records.journal.window = driver.past
        driver.start(records.journal.run)
        self.custody.delete(
            Copy(str(known.task_id), records.resume(known), file)
            for known, file in self.leftovers.copies()
        )
        self.sweep()

    async def drain(self) -> None:
        """Wait until what has ended is saved, and deleted if that was asked for."""
        self.sweep()
        while not self.custody.idle:
            await self.custody.change()

    def close(self) -> None:
        """Take nothing more in, and stop those who read jobs."""
        self.closed = True
        for batch in list(self.batches):
            batch.cut()

    async def at_home(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do `work` where the client's connections are."""
        return await self.home.call(work)

    async def refresh(self, feature: str, task_id: str) -> tuple[ResultImage, ...]:
        """Fresh URLs for a finished task's pictures; one request. `TaskExpired` after a day."""
        return self._images(await self._again(feature, task_id))

    async def _again(self, feature: str, task_id: str) -> ev.Succeeded:
        self._here()
        try:
            reply = await self.driver.ask(self.lane, tasks.poll(feature, task_id), lasting=True)
        except RequestRefused as exc:
            if not same_code(exc.code, "InvalidTaskId"):
                raise
            gone = "the vendor no longer knows the task; its pictures can no longer be asked for."
            raise TaskExpired(gone, task_id=task_id, request_id=exc.request_id) from None
        match tasks.polled(ev.Poll(0, 0), reply, task_id=task_id, units=0.0):
            case ev.Succeeded() as event:
                return event
            case ev.EngineFailed(error=error) | ev.NoAnswer(error=error):
                raise error
            case _:
                raise BadAnswer("a task that had ended runs again.")

    async def forget(self, task_id: str) -> None:
        """Delete a finished task at the vendor; the journal no longer offers it."""
        account.read_deleted(await self.ask(account.delete(task_id)))
        await self.lane.records.drop(task_id)

    async def _forget(self, task_id: str) -> None:
        # Also while the client closes: what was to be deleted is deleted while it drains.
        reply = await self.driver.ask(self.lane, account.delete(task_id), lasting=True)
        account.read_deleted(reply)

    def _uses(self, task_id: str, file: FileId | None) -> bool:
        former = file is not None and self.leftovers.uses(file)
        return former or self.driver.intake.uses(task_id, file)

    def download(self, url: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes behind a result URL, in pieces; costs no request of the window."""
        self._here()
        return self.lane.transport.download(url)

    def now(self) -> datetime:
        """The time in UTC by the client's clock."""
        self._here()
        return self.driver.now()

    def _images(self, event: ev.Succeeded) -> tuple[ResultImage, ...]:
        now = self.driver.now()
        # A URL that nobody has asked for yet is one that ended.
        return tuple(ResultImage(url, now + _RESULT_LIVES if url else now) for url in event.urls)
