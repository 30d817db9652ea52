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
from perfect_async._client.recovery import RecoveredJob, Recovery
from perfect_async._client.results import Done, Failed, Outcome, Result, ResultImage
from perfect_async._client.retention import Copy, Retention
from perfect_async._files.images import inspect
from perfect_async._journal.journal import unrecorded
from perfect_async._log import type_name
from perfect_async._runtime.driver import Driver
from perfect_async._runtime.executors import Executor
from perfect_async._runtime.failures import closed
from perfect_async._runtime.handle import Channel, JobHandle
from perfect_async._runtime.spec import PLAIN, JobOptions, JobSpec
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
"""How long a result URL lives (contract: Download the result)."""


class Cut(Protocol):
    """What reads jobs for a client, and must stop when it closes."""

    def cut(self) -> None:
        """Read no more."""
        ...


class ClientSession:
    """One open client's place at a driver; also the `Store` of its results.

    It belongs to its home, where all of it is to be called but `ready`, `ask` and `result`.
    `closed`: takes nothing more in; `left`: nor does it save what came of it. `max_units` and
    `reuse` as in `Client`.
    """

    def __init__(
        self,
        home: Executor,
        driver: Driver,
        channel: Channel,
        *,
        max_units: float | None,
        reuse: bool | None,
    ) -> None:
        self.home = home
        self.driver = driver
        self.channel = channel
        self.closed = self.left = False
        self.batches: set[Cut] = set()
        self._purses = purses = () if max_units is None else (driver.ceiling(max_units),)
        self._reuse = reuse
        self.retention = Retention(self._forget, self._uses)
        self.recovery = Recovery(driver.registry, channel, purses)

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
        self, job: Job | RecoveredJob, heard: Callable[[], None], options: JobOptions = PLAIN
    ) -> JobHandle:
        """Look at the job's picture and take it in; raises `JobRefused` and `ClientClosed`.

        A job that equals one on its way, one of the former process or one that is finished and can
        be fetched again, is not created a second time.
        """
        if isinstance(job, RecoveredJob):
            self.ready()
            self.driver.check()
            return await self.recovery.resume(job, heard)
        must_be_job(job)
        self.ready()
        try:
            picture = await inspect(job.source, type(job))
            self.ready()
            options = attrs.evolve(options, purses=(*self._purses, *options.purses))
            return await self._enter(JobSpec.of(job, picture, options), heard)
        except PerfectError:
            raise
        except Exception as exc:
            # A path of the user's own making may raise anything; it is one job's matter.
            raise JobRefused(f"the job cannot be looked at ({type_name(exc)}).") from exc

    async def _enter(self, spec: JobSpec, heard: Callable[[], None]) -> JobHandle:
        registry, journal = self.driver.registry, self.channel.journal
        if spec.sure and journal.writer.persistent:
            former = registry.equal(self.channel, spec, heard) or self.recovery.equal(spec, heard)
            former = former or await self._finished(spec, heard)
            if former is not None:
                return former
            self.ready()
        self.driver.check()
        # Asked last, and without a wait in between: two that are equal may come at once.
        equal = registry.equal(self.channel, spec, heard)
        return equal or registry.enter(self.channel, spec, journal.enter(spec.stored()), heard)

    async def _finished(self, spec: JobSpec, heard: Callable[[], None]) -> JobHandle | None:
        """The end of an equal job whose pictures the vendor still has; one request, no unit."""
        reusable = spec.job is not None and spec.job.reusable
        if not (reusable if self._reuse is None else self._reuse):
            return None
        journal = self.channel.journal
        task_id = await journal.finished(spec.identity)
        if task_id is None:
            return None
        with self.retention.fetching(task_id) as there:
            if not there:
                return None
            try:
                event = await self._again(spec.feature, task_id)
            except TaskError:
                # It cannot be fetched any longer, whatever the journal says.
                await journal.writer.drop(task_id)
                return None
            handle = JobHandle(0, spec, self.channel, unrecorded(), heard, source=spec.source)
            handle.task_id = task_id
            handle.end(event, 0.0, self.driver.seconds())
            if spec.options.save_to is not None:
                # Here and now, since what is to be saved must not be deleted in between.
                self.retention.begin(handle)
            return handle

    async def attach(
        self, feature: type[Job], task_id: str, heard: Callable[[], None]
    ) -> JobHandle:
        """Wait beside whoever keeps the task `task_id`, or keep it from now on."""
        registry, spec = self.driver.registry, JobSpec.attached(feature, task_id)
        if (leader := registry.of_task(task_id)) is not None:
            return registry.follow(leader, attrs.evolve(leader.spec, options=JobOptions()), heard)
        if (former := self.recovery.of_task(task_id, heard)) is not None:
            return former
        self.driver.check()
        return registry.adopt(self.channel, spec, unrecorded(), (task_id, 0), heard)

    async def wait(
        self, enter: Callable[[], Awaitable[JobHandle]], timeout: float | None
    ) -> JobHandle:
        """The ticket that `enter` gives, once it has ended; raises `WaitTimeout`."""
        handle: JobHandle | None = None
        try:
            with anyio.move_on_after(timeout):
                handle = await enter()
                await handle.done.wait()
        finally:
            if handle is not None:
                self.withdraw(handle)
        if handle is None or handle.ending is None:
            raise WaitTimeout(
                f"The job had not ended after {timeout:g} s.",
                task_id=None if handle is None else handle.task_id,
                units_at_stake=0.0 if handle is None else handle.at_stake,
            )
        return handle

    async def keep(self, handle: JobHandle) -> Outcome:
        """How the job of `handle`, which has ended, ended: saved, if it was to be."""
        outcome = self.outcome(handle)
        try:
            outcome = await self.retention.keep(handle, outcome)
        finally:
            self.retention.end(handle, outcome)
        return outcome

    def sweep(self) -> None:
        """Delete what was to be deleted and is needed by nobody any more."""
        if self.driver.alive and (copies := self.retention.free()):
            self.start(lambda: self.retention.erase(copies))

    def withdraw(self, handle: JobHandle) -> None:
        """Nobody waits for `handle`: it is not created; what was created is kept to its end."""
        self.driver.withdraw(handle)

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

    def outcome(self, handle: JobHandle) -> Outcome:
        """How the job of `handle`, which has ended, ended."""
        job = handle.spec.job
        if job is None or handle.ending is None:
            raise AssertionError(handle)
        if isinstance(handle.ending, ev.Succeeded):
            result = self.result(handle)
            return Done(job, result, result.task_id, handle.units, handle.duration)
        error = handle.ending
        task_id = error.task_id if isinstance(error, TaskError) else handle.task_id
        return Failed(job, error, task_id, handle.units, handle.duration)

    def result(self, handle: JobHandle) -> Result:
        """The pictures of `handle`, which has ended; raises why there are none."""
        spec = handle.spec
        match handle.ending:
            case ev.Succeeded() as event:
                return Result(
                    str(handle.task_id),
                    self._images(event),
                    feature=spec.feature,
                    stem=spec.stem,
                    identity=spec.identity,
                    store=self,
                )
            case None:
                raise AssertionError(handle)
            case error:
                raise error

    # Questions, and what results ask for.

    async def ask(self, call: tasks.Request) -> tasks.Response:
        """Send a question; raises what came instead of an answer."""
        self.ready()
        return await self.home.call(partial(self.driver.ask, self.channel, call))

    def begin(self) -> None:
        """Write in the background, and delete what a former process had saved and not deleted."""
        journal, driver = self.channel.journal, self.driver
        if not journal.writer.persistent:
            return
        journal.writer.window = driver.past
        driver.start(journal.writer.run)
        self.retention.delete(
            Copy(str(snapshot.task_id), journal.resume(snapshot), file)
            for snapshot, file in self.recovery.copies()
        )
        self.sweep()

    async def drain(self) -> None:
        """Wait until what has ended is saved, and deleted if that was asked for."""
        self.sweep()
        while not self.retention.idle:
            await self.retention.change()

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
            question = tasks.status(feature, task_id)
            reply = await self.driver.ask(self.channel, question, lasting=True)
        except RequestRefused as exc:
            if not same_code(exc.code, "InvalidTaskId"):
                raise
            gone = "the vendor no longer knows the task; its pictures can no longer be asked for."
            raise TaskExpired(gone, task_id=task_id, request_id=exc.request_id) from None
        match tasks.read_status(ev.Poll(0, 0), reply, task_id=task_id, units=0.0):
            case ev.Succeeded() as event:
                return event
            case ev.EngineFailed(error=error) | ev.NoAnswer(error=error):
                raise error
            case _:
                raise BadAnswer("a task that had ended runs again.")

    async def forget(self, task_id: str) -> None:
        """Delete a finished task at the vendor; the journal no longer offers it."""
        account.read_deleted(await self.ask(account.delete(task_id)))
        await self.channel.journal.writer.drop(task_id)

    async def _forget(self, task_id: str) -> None:
        # Also while the client closes: what was to be deleted is deleted while it drains.
        reply = await self.driver.ask(self.channel, account.delete(task_id), lasting=True)
        account.read_deleted(reply)

    def _uses(self, task_id: str, file: FileId | None) -> bool:
        former = file is not None and self.recovery.uses(file)
        return former or self.driver.registry.uses(task_id, file)

    def download(self, url: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes behind a result URL, in pieces; costs no request of the window."""
        self._here()
        return self.channel.transport.download(url)

    def now(self) -> datetime:
        """The time in UTC by the client's clock."""
        self._here()
        return self.driver.now()

    def _images(self, event: ev.Succeeded) -> tuple[ResultImage, ...]:
        now = self.driver.now()
        # A URL that nobody has asked for yet is one that ended.
        return tuple(ResultImage(url, now + _RESULT_LIVES if url else now) for url in event.urls)
