"""An open client: it takes jobs and requests, and turns their ends into outcomes and results."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import attrs

from perfect_async import events as ev
from perfect_async._api import account, tasks
from perfect_async._client.keys import Keys, check_former
from perfect_async._client.recovery import RecoveredJob, Recovery
from perfect_async._client.results import Done, Failed, Outcome, Result, ResultImage
from perfect_async._client.retention import Copy, Retention
from perfect_async._files.images import inspect
from perfect_async._files.saving import unwritable
from perfect_async._files.threads import in_thread
from perfect_async._journal.journal import unrecorded
from perfect_async._log import type_name
from perfect_async._runtime.driver import Driver
from perfect_async._runtime.executors import Executor
from perfect_async._runtime.handle import Channel, JobHandle, closed
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
    copy_error,
)
from perfect_async.models import FileId, Job, must_be_job

if TYPE_CHECKING:
    from perfect_async._journal.sqlite import SavedResult

_URL_LIFETIME: Final = timedelta(seconds=7200)
"""How long a result URL can be downloaded (contract: Download the result)."""


class ClientSession:
    """One open client on its `driver`.

    Call its methods in the loop of its `executor`; only `ready`, `ask` and `result` may be called
    elsewhere. `closed`: it takes no more jobs. `left`: it saves no more results. `interrupts` stop
    the batches that read jobs now. `max_units` and `reuse` as in `Client`.
    """

    def __init__(
        self,
        executor: Executor,
        driver: Driver,
        channel: Channel,
        *,
        max_units: float | None,
        reuse: bool | None,
    ) -> None:
        self.executor = executor
        self.driver = driver
        self.channel = channel
        self.closed = self.left = False
        self.interrupts: set[Callable[[], None]] = set()
        self._limits = limits = () if max_units is None else (driver.open_limit(max_units),)
        self._reuse = reuse
        self._keys = Keys()
        self.retention = Retention(self._delete_copy, self._uses)
        self.recovery = Recovery(driver.registry, channel, limits)

    def ready(self) -> None:
        """Raise `ClientClosed` if it takes no more jobs; raises as its executor does too."""
        self._check_open()
        if self.closed:
            raise self._closed()

    def _check_open(self) -> None:
        """Raise `ClientClosed` if it saves no more results, which it does while it closes."""
        self.executor.check()
        if self.left:
            raise self._closed()

    @staticmethod
    def _closed() -> ClientClosed:
        return ClientClosed("This client is closed; its results are saved while it is open.")

    # Jobs.

    async def enter(self, job: Job | RecoveredJob, options: JobOptions = PLAIN) -> JobHandle:
        """Inspect the job's picture and register the job. Raises `JobRefused`, `ClientClosed`.

        A job is not created a second time if it equals one that runs, one of the former process, or
        one that is finished and can be fetched again.
        """
        if isinstance(job, RecoveredJob):
            self.ready()
            await self._check_folder(self.recovery.folder_of(job))
            self.driver.check()
            return await self.recovery.resume(job)
        must_be_job(job)
        self.ready()
        try:
            async with self._keys.turn(job):
                pictures = [await inspect(each.source, job) for each in job.inputs]
                self.ready()
                limits = *self._limits, *options.spending_limits
                options = attrs.evolve(options, spending_limits=limits)
                first, *more = pictures or [None]
                return await self._enter(JobSpec.of(job, first, options, *more))
        except PerfectError:
            raise
        except Exception as exc:
            # A path object of the user's may raise anything; only this job fails.
            raise JobRefused(f"the job cannot be looked at ({type_name(exc)}).") from exc

    async def _enter(self, spec: JobSpec) -> JobHandle:
        await self._check_folder(spec.options.save_to)
        claimed = self._keys.claim(spec)
        try:
            if claimed:
                await self._check_former_key(spec)
            handle = await self._find_or_enter(spec)
        except BaseException:
            if claimed:
                self._keys.release(spec)
            raise
        if claimed:
            self._keys.follow(handle)
        return handle

    async def _check_former_key(self, spec: JobSpec) -> None:
        """Refuse a job whose key named another picture in a former process."""
        journal = self.channel.journal
        former = journal.former_source(spec.identity)
        check_former(spec, former, await journal.writer.key_picture(spec.identity))

    async def _find_or_enter(self, spec: JobSpec) -> JobHandle:
        registry, journal = self.driver.registry, self.channel.journal
        if spec.sure and journal.writer.persistent:
            former = registry.equal(self.channel, spec) or self.recovery.equal(spec)
            former = former or await self._former(spec)
            if former is not None:
                return former
            self.ready()
        self.driver.check()
        # Looked up last, with no await before `enter`: two equal jobs may come at once.
        if (equal := registry.equal(self.channel, spec)) is not None:
            return equal
        if spec.options.buy_in_doubt:
            registry.consent(spec)
        elif (doubt := registry.in_doubt(self.channel, spec)) is not None:
            return doubt
        return registry.enter(self.channel, spec, journal.enter(spec.stored()))

    async def _check_folder(self, folder: str | None) -> None:
        """Refuse a job that would be paid for and could not be saved. Raises `JobRefused`."""
        if folder is not None:
            try:
                await self.retention.check_folder(folder)
            except OSError as exc:
                raise JobRefused(unwritable(folder, exc)) from exc
            self.ready()

    async def _former(self, spec: JobSpec) -> JobHandle | None:
        """Return a handle of an equal job that is over, if its pictures are still somewhere.

        They are taken from the folder of `spec`, then from the vendor, then from other folders.
        """
        folder = spec.options.save_to
        saved: dict[str, SavedResult] = {}
        if folder is not None and self._reuse is not False:
            saved = await self.channel.journal.writer.saved_results(spec.identity)
        here = None if folder is None else saved.pop(folder, None)
        found = None if here is None else await self._saved(spec, here)
        found = found or await self._finished(spec)
        return found or await self._saved_elsewhere(spec, saved.values())

    async def _saved(self, spec: JobSpec, saved: SavedResult) -> JobHandle | None:
        """Return a handle of a job whose files are still in its folder; no request.

        Where some of them are gone, the vendor is asked for its result again: one request. Where
        all are gone, another try may be wanted, so that `reuse` decides.
        """
        there = await in_thread(lambda: [file.is_file() for file in saved.files])
        if all(there):
            return self._done(spec, saved)
        wanted = any(there) and not saved.deleted
        return await self._fetched(spec, saved.task_id) if wanted else None

    async def _saved_elsewhere(
        self, spec: JobSpec, results: Iterable[SavedResult]
    ) -> JobHandle | None:
        """Return a handle of a job whose files are in another folder; no request.

        They are copied when it is saved.
        """
        for saved in results if self._reuses(spec) else ():
            if await in_thread(_are_there, saved.files):
                return self._done(spec, saved)
        return None

    def _done(self, spec: JobSpec, saved: SavedResult) -> JobHandle:
        """Return a handle of a job that is done, with its files."""
        if saved.deleted:
            spec = attrs.evolve(spec, options=attrs.evolve(spec.options, delete=False))
        handle = JobHandle(0, spec, self.channel, unrecorded(), sources=spec.sources)
        handle.task_id, handle.files = saved.task_id, saved.files
        # Without URLs: they are asked for where somebody reads the result again. JSON is ours.
        count = sum(file.suffix != ".json" for file in saved.files)
        done = ev.Succeeded(ev.Poll(0, 0), ("",) * count)
        handle.end(done, 0.0, self.driver.clock.seconds())
        return handle

    def _reuses(self, spec: JobSpec) -> bool:
        """Return whether a result of an equal job is taken for that of `spec`."""
        reusable = spec.job is not None and spec.job.reusable
        return reusable if self._reuse is None else self._reuse

    async def _finished(self, spec: JobSpec) -> JobHandle | None:
        """Return a handle of an equal job whose pictures the vendor still has; one request."""
        if not self._reuses(spec):
            return None
        task_id = await self.channel.journal.finished(spec.identity)
        return None if task_id is None else await self._fetched(spec, task_id)

    async def _fetched(self, spec: JobSpec, task_id: str) -> JobHandle | None:
        """Return a handle of the finished task `task_id`, if the vendor has it; one request."""
        with self.retention.fetching(task_id) as available:
            if not available:
                return None
            try:
                event = await self._poll(spec.feature, task_id)
            except TaskError:
                # It cannot be fetched any more, although the journal offers it.
                await self.channel.journal.writer.drop(task_id)
                return None
            handle = JobHandle(0, spec, self.channel, unrecorded(), sources=spec.sources)
            handle.task_id = task_id
            handle.end(event, 0.0, self.driver.clock.seconds())
            if spec.options.save_to is not None:
                # Before the next await: a task that is to be saved must not be deleted.
                self.retention.begin(handle)
            return handle

    async def attach(self, feature: str, task_id: str) -> JobHandle:
        """Follow the job whose task this is, or keep the task alive from now on."""
        registry, spec = self.driver.registry, JobSpec.attached(feature, task_id)
        if (leader := registry.of_task(task_id)) is not None:
            return registry.follow(leader, attrs.evolve(leader.spec, options=JobOptions()))
        if (former := self.recovery.of_task(task_id)) is not None:
            return former
        self.driver.check()
        return registry.adopt(self.channel, spec, unrecorded(), (task_id, 0))

    async def wait(
        self, enter: Callable[[], Awaitable[JobHandle]], timeout: float | None
    ) -> JobHandle:
        """Return the handle that `enter` gives once its job has ended. Raises `WaitTimeout`."""
        handle: JobHandle | None = None
        try:
            with anyio.move_on_after(timeout):
                handle = await enter()
                await handle.done.wait()
        finally:
            if handle is not None:
                self.driver.withdraw(handle)
        if handle is None or handle.ending is None:
            failure = self.channel.last_failure if handle is None else handle.failure
            last = "" if failure is None else f" The last request failed: {failure.message}"
            raise WaitTimeout(
                f"The job had not ended after {timeout:g} s.{last}",
                task_id=None if handle is None else handle.task_id,
                units_at_stake=0.0 if handle is None else handle.at_stake,
            ) from (failure and copy_error(failure))
        return handle

    async def keep(self, handle: JobHandle) -> Outcome:
        """Save the pictures of `handle`, which has ended, if asked for, and return its outcome."""
        outcome = self.outcome(handle)
        try:
            outcome = await self.retention.keep(handle, outcome)
        finally:
            self.retention.end(handle, outcome)
        return outcome

    def sweep(self) -> None:
        """Start to delete the vendor's copies that no job needs any more."""
        if self.driver.alive and (copies := self.retention.free()):
            self.driver.start(lambda: self.retention.delete_now(copies))

    def interruption(self) -> ClientClosed:
        """Return the error for jobs that are not read or sent any more."""
        if self.closed or self.driver.ending:
            return closed(self.driver.failure)
        return ClientClosed("The reading of the jobs was cancelled from within their source.")

    def outcome(self, handle: JobHandle) -> Outcome:
        """Return the outcome of `handle`, which has ended."""
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
        """Return the result of `handle`, which has ended; raises its error if it has none."""
        spec = handle.spec
        match handle.ending:
            case ev.Succeeded() as event:
                return Result(
                    str(handle.task_id),
                    self._images(event),
                    feature=spec.feature,
                    stem=spec.stem,
                    identity=spec.file_identity,
                    session=self,
                    raw=event.results,
                )
            case None:
                raise AssertionError(handle)
            case error:
                raise error

    # Requests, and what results need.

    async def ask(self, call: tasks.Request) -> tasks.Response:
        """Send a request and return its response; raises its failure."""
        self.ready()
        return await self.executor.call(partial(self.driver.ask, self.channel, call))

    def begin(self) -> None:
        """Start the journal's writer, and the deletions that the former process left."""
        journal, driver = self.channel.journal, self.driver
        if not journal.writer.persistent:
            return
        journal.writer.window = driver.past
        driver.start(journal.writer.run)
        self.retention.delete_later(
            Copy(str(snapshot.task_id), journal.resume(snapshot), files)
            for snapshot, files in self.recovery.copies()
        )
        self.sweep()

    async def drain(self) -> None:
        """Wait until all results are saved, and deleted at the vendor where asked for."""
        self.sweep()
        while not self.retention.idle:
            await self.retention.wait_for_change()

    def close(self) -> None:
        """Take no more jobs, and stop the reading of batches."""
        self.closed = True
        for interrupt in list(self.interrupts):
            interrupt()

    async def refresh(self, feature: str, task_id: str) -> tuple[ResultImage, ...]:
        """Ask for a finished task's pictures again: the same order, fresh URLs; one request.

        Raises `TaskExpired` after a day.
        """
        return self._images(await self._poll(feature, task_id))

    async def answer(self, feature: str, task_id: str) -> object:
        """Ask for the whole answer of a finished task again; one request. Raises as `refresh`."""
        return (await self._poll(feature, task_id)).results

    async def _poll(self, feature: str, task_id: str) -> ev.Succeeded:
        self._check_open()
        try:
            question = tasks.status(feature, task_id)
            reply = await self.driver.ask(self.channel, question, lasting=True)
        except RequestRefused as exc:
            if not tasks.is_unknown_task(exc):
                raise
            gone = "the vendor no longer knows the task; its pictures can no longer be asked for."
            raise TaskExpired(gone, task_id=task_id, request_id=exc.request_id) from None
        asked = ev.Poll(0, 0)
        match tasks.read_status(asked, reply, feature=feature, task_id=task_id, units=0.0):
            case ev.Succeeded() as event:
                return event
            case ev.EngineFailed() | ev.NoAnswer() | ev.Unreadable() as event:
                raise event.error
            case _:
                raise BadAnswer("a task that had ended runs again.")

    async def delete(self, task_id: str) -> None:
        """Delete a finished task at the vendor; the journal no longer offers it."""
        account.read_deleted(await self.ask(account.delete(task_id)))
        await self.channel.journal.writer.drop(task_id)

    async def _delete_copy(self, task_id: str) -> None:
        # Also while the client drains.
        reply = await self.driver.ask(self.channel, account.delete(task_id), lasting=True)
        account.read_deleted(reply)
        await self.channel.journal.writer.drop(task_id)

    def _uses(self, task_id: str, files: Sequence[FileId]) -> bool:
        return self.recovery.uses(files) or self.driver.registry.uses(task_id, files)

    def download(
        self, url: str, *, large: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Download a result URL in pieces; costs no request of the window.

        `large`: it may be a video.

        Entering or iterating raises `RequestRefused`, `ServiceUnavailable` or `BadAnswer`.
        """
        self._check_open()
        return self.channel.transport.download(url, large=large)

    def now(self) -> datetime:
        """Return the time in UTC by the client's clock."""
        self._check_open()
        return self.driver.clock.now()

    def _images(self, event: ev.Succeeded) -> tuple[ResultImage, ...]:
        now = self.driver.clock.now()
        # A URL that was not asked for yet counts as expired.
        return tuple(ResultImage(url, now + _URL_LIFETIME if url else now) for url in event.urls)


def _are_there(files: Iterable[Path]) -> bool:
    return all(file.is_file() for file in files)
