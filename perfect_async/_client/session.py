"""An open client: accepts jobs and requests, and makes outcomes and results of their ends."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import anyio
import attrs

from perfect_async import events as ev
from perfect_async._api import account, tasks
from perfect_async._client.keys import Keys, check_former
from perfect_async._client.recovery import RecoveredJob, Recovery, count_pictures
from perfect_async._client.results import (
    Done,
    Failed,
    ImagePlace,
    Outcome,
    Result,
    ResultImage,
)
from perfect_async._client.retention import Copy, Retention
from perfect_async._client.task import TrackedJob, wait_timeout
from perfect_async._files.images import ImageFile, inspect
from perfect_async._files.saving import is_new_file, unwritable
from perfect_async._files.threads import in_thread
from perfect_async._journal.journal import unrecorded
from perfect_async._log import LOG, type_name
from perfect_async._runtime.driver import Driver
from perfect_async._runtime.executors import Executor
from perfect_async._runtime.handle import Channel, JobHandle, closed
from perfect_async._runtime.spec import PLAIN, JobOptions, JobSpec
from perfect_async.errors import (
    BadAnswer,
    ClientClosed,
    ConfigurationError,
    JobRefused,
    PerfectError,
    RequestRefused,
    ResultUnreadable,
    ServiceUnavailable,
    TaskError,
    TaskExpired,
    quoted,
)
from perfect_async.models import FileId, Job, Smile, Source, must_be_job
from perfect_async.reports import JobEvent, JobEventKind, TaskStatus

if TYPE_CHECKING:
    from perfect_async._journal.sqlite import SavedResult

_NOT_FOUND: Final = 404
_UPLOAD_PAUSES: Final = (0.5, 2.0)
"""Seconds before the second and third try of `ClientSession.upload_picture`."""
_URL_LIFETIME: Final = timedelta(seconds=7200)
"""How long a result URL can be downloaded (contract: Download the result)."""


class _AnyFile(Job):
    """A picture or a video that belongs to no job, within the limits of some feature."""

    feature = "the vendor"
    formats = ("jpg", "png", "heic", "mp4", "mov")


class ClientSession:
    """One open client on its `driver`.

    Call its methods in the loop of its `executor`; only `ready`, `ask` and `result` may be called
    elsewhere. `closed`: it accepts no more jobs. `left`: it saves no more results. `interrupts`
    stop the batches that are reading jobs. `max_units`, `reuse` and `fit` as in `Client`.
    `on_event` is called with each event of a job, and returns at once.
    """

    def __init__(
        self,
        executor: Executor,
        driver: Driver,
        channel: Channel,
        *,
        max_units: float | None,
        reuse: bool | None,
        fit: bool = False,
        on_event: Callable[[JobEvent], None] | None = None,
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
        self._fit = fit
        self._on_event = on_event
        self.recovery = Recovery(
            driver.registry, channel, limits, ready=self._check_accepting, fit=fit
        )

    def ready(self) -> None:
        """Raise `ClientClosed` if it accepts no more jobs, and the errors of `Executor.check`."""
        self._check_open()
        if self.closed:
            raise self._closed()

    def _check_accepting(self) -> None:
        """Raise `ClientClosed` if a job that enters now would not be performed."""
        self.ready()
        self.driver.check()

    def _check_open(self) -> None:
        """Raise `ClientClosed` if it saves no more results; a closing client still saves them."""
        self.executor.check()
        if self.left:
            raise self._closed()

    @staticmethod
    def _closed() -> ClientClosed:
        return ClientClosed("This client is closed.")

    # Jobs.

    async def enter(self, job: Job | RecoveredJob, options: JobOptions = PLAIN) -> JobHandle:
        """Inspect the job's picture and register the job. Raises `JobRefused`, `ClientClosed`.

        A job is not created again if an equal one runs, was left by the former process, or has
        finished and can be fetched again.
        """
        try:
            return await self._enter_any(job, options)
        except ClientClosed:
            raise
        except PerfectError as exc:
            # The scheduler does not know the job, so it is counted here.
            self.driver.refused_here += 1
            LOG.info("A job failed: %s: %s Nothing was sent.", type_name(exc), exc.message)
            raise

    async def _enter_any(self, job: Job | RecoveredJob, options: JobOptions) -> JobHandle:
        if isinstance(job, RecoveredJob):
            self.ready()
            await self._check_folder(self.recovery.folder_of(job))
            self.driver.check()
            return await self.recovery.resume(job)
        must_be_job(job)
        self.ready()
        try:
            async with self._keys.turn(job):
                pictures = [await inspect(each.source, job, fit=self._fit) for each in job.inputs]
                self.ready()
                limits = *self._limits, *options.spending_limits
                options = attrs.evolve(options, spending_limits=limits)
                first, *more = pictures or [None]
                return await self._enter(JobSpec.of(job, first, options, *more))
        except PerfectError:
            raise
        except Exception as exc:
            # A path object of the user's may raise anything; only this job fails.
            raise JobRefused(f"the job cannot be inspected ({type_name(exc)}).") from exc

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
            former = registry.equal(self.channel, spec) or await self.recovery.equal(spec)
            former = former or await self._former(spec)
            if former is not None:
                return former
            self.ready()
        found = None
        if self._reuse and not journal.writer.persistent:
            # The ledger is asked again when the task would be created.
            spec = attrs.evolve(spec, options=attrs.evolve(spec.options, once=True))
            found = await self.driver.bought(spec)
            self.ready()
        self.driver.check()
        # Looked up last, with no await before `enter`, since two equal jobs may come at once.
        if (equal := registry.equal(self.channel, spec)) is not None:
            return equal
        if spec.options.buy_in_doubt:
            registry.consent(spec)
        elif (doubt := registry.in_doubt(self.channel, spec)) is not None:
            self.driver.refused_here += 1
            return doubt
        if found is not None:
            return registry.await_other(self.channel, spec, journal.enter(spec.stored()))
        return registry.enter(self.channel, spec, journal.enter(spec.stored()))

    async def _check_folder(self, folder: str | None) -> None:
        """Check that the result can be saved in `folder`. Raises `JobRefused` if not."""
        if folder is not None:
            try:
                await self.retention.check_folder(folder)
            except OSError as exc:
                raise JobRefused(unwritable(folder, exc)) from exc
            self.ready()

    async def _former(self, spec: JobSpec) -> JobHandle | None:
        """Return a handle of an equal job that has ended, if its pictures can still be found.

        They are looked for in the folder of `spec`, then at the vendor, then in other folders.
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

        If some of them are gone, the vendor is asked for the result again, which is one request. If
        all are gone, the user may want a new result, so `reuse` decides.
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

        Saving it copies them.
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
        # The URLs are empty and are asked for when the result is read.
        done = ev.Succeeded(ev.Poll(0, 0), ("",) * count_pictures(saved.files))
        handle.end(done, 0.0, self.driver.clock.seconds())
        return handle

    def _reuses(self, spec: JobSpec) -> bool:
        """Return whether `spec` may have the result of an equal job."""
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
                event = await self._poll(spec.feature, task_id, pictures_only=spec.pictures_only)
            except TaskError:
                # The journal knows the task, but the vendor no longer has it.
                await self.channel.journal.writer.drop(task_id)
                return None
            handle = JobHandle(0, spec, self.channel, unrecorded(), sources=spec.sources)
            handle.task_id = task_id
            handle.end(event, 0.0, self.driver.clock.seconds())
            if spec.options.save_to is not None:
                # Called before the next await, so that a task to be saved is not deleted.
                self.retention.begin(handle)
            return handle

    async def attach(self, feature: str, task_id: str) -> JobHandle:
        """Follow the job of this task, or keep the task alive from now on."""
        registry, spec = self.driver.registry, JobSpec.attached(feature, task_id)
        if (leader := registry.of_task(task_id)) is not None:
            return registry.follow(leader, attrs.evolve(leader.spec, options=JobOptions()))
        if (former := await self.recovery.of_task(task_id)) is not None:
            return former
        self.driver.check()
        return registry.adopt(self.channel, spec, unrecorded(), (task_id, 0))

    async def track(self, job: Job, options: JobOptions) -> TrackedJob:
        """Enter `job` as `enter` does, and return its tracked job.

        Raises `ConfigurationError` if its results could not be saved.
        """
        self.ready()
        options = await self.with_checked_folder(options)
        try:
            handle = await self.enter(job, options)
        except PerfectError:
            # The caller may have passed an object that is not a job.
            if isinstance(cast("object", job), Job):
                self.emit("finished", job, None)
            raise
        return TrackedJob(self, handle)

    async def track_task(self, feature: str, task_id: str) -> TrackedJob:
        """Follow a task as `attach` does, and return its tracked job.

        Its result is not saved, even if a former process was to save it.
        """
        self.ready()
        return TrackedJob(self, await self.attach(feature, task_id), saves=False)

    def emit(self, kind: JobEventKind, job: Job | None, task_id: str | None) -> JobEvent:
        """Make an event of `job`, call the client's `on_event` with it, and return it."""
        event = JobEvent(kind, job, task_id, self.driver.clock.now())
        if self._on_event is not None:
            self._on_event(event)
        return event

    def watch(self, handle: JobHandle) -> None:
        """Call `on_event` with all events of `handle` except "finished"."""
        if self._on_event is None or handle.spec.job is None:
            return
        self.emit("queued", handle.spec.job, handle.task_id)
        if handle.task_id is not None:
            self.emit("submitted", handle.spec.job, handle.task_id)

        def emit(kind: JobEventKind) -> None:
            self.emit(kind, handle.spec.job, handle.task_id)

        handle.observe(emit)

    async def with_checked_folder(self, options: JobOptions) -> JobOptions:
        """Check that `save_to` can be written, and return `options` with its absolute path.

        It is checked before any job is charged. Raises `ConfigurationError`.
        """
        if options.save_to is None:
            return options
        # Absolute, since this process may change its folder, and another one may resume the job.
        given = options.save_to
        try:
            folder: str = await in_thread(partial(os.path.abspath, given))
        except OSError as exc:
            raise ConfigurationError(
                f"save_to is {quoted(given)}, which starts from the working folder, which was "
                "removed; pass an absolute path."
            ) from exc
        if not given.endswith((os.sep, os.altsep or os.sep)) and await in_thread(
            partial(is_new_file, Path(folder))
        ):
            raise ConfigurationError(
                f"save_to is {quoted(given)}, which is the name of a file, and save_to is a "
                f"folder. result.save({quoted(given)}) writes one file."
            )
        try:
            await self.retention.check_folder(folder)
        except OSError as exc:
            raise ConfigurationError(unwritable(folder, exc)) from exc
        return attrs.evolve(options, save_to=folder)

    async def wait(
        self, track: Callable[[], Awaitable[TrackedJob]], timeout: float | None
    ) -> TrackedJob:
        """Wait until the job of `track` has ended, and return it. Raises `WaitTimeout`."""
        return await self._wait(track, timeout, lambda job: job.ended, "The job had not ended")

    async def submit(
        self, track: Callable[[], Awaitable[TrackedJob]], timeout: float | None
    ) -> TrackedJob:
        """Wait until the job of `track` is accepted, and return it. Raises `WaitTimeout`."""
        what = "The vendor had not accepted the job"
        return await self._wait(track, timeout, lambda job: job.accepted, what)

    async def _wait(
        self,
        track: Callable[[], Awaitable[TrackedJob]],
        timeout: float | None,
        awaited: Callable[[TrackedJob], anyio.Event],
        what: str,
    ) -> TrackedJob:
        """Wait for the `awaited` event of a job; withdraw the job if the wait ends before it."""
        job: TrackedJob | None = None
        came, window_wait = False, 0.0
        try:
            with anyio.move_on_after(timeout):
                job = await track()
                await awaited(job).wait()
            came = job is not None and awaited(job).is_set()
        finally:
            if job is not None and not came:
                window_wait = self.driver.window_wait()
                self.driver.withdraw(job.handle)
        if job is not None and came:
            return job
        handle = None if job is None else job.handle
        failure = self.channel.last_failure if handle is None else handle.failure
        error = wait_timeout(timeout or 0.0, what, handle, failure, window_wait)
        raise error from error.__cause__

    async def status(self, feature: str, task_id: str) -> TaskStatus:
        """Ask once for the state of a task. Raises the request's failure, and `TaskExpired`."""
        only = tasks.pictures_only(feature, None)
        event = await self._ask_status(feature, task_id, self.ask, pictures_only=only)
        match event:
            case ev.Succeeded():
                return TaskStatus(task_id, "success", event.results)
            case ev.Unreadable(error=ResultUnreadable() as error):
                return TaskStatus(task_id, "success", error.raw, error)
            case ev.EngineFailed(error=TaskError() as error):
                return TaskStatus(task_id, "error", None, error)
            case ev.TimedOut(error=TaskError() as error):
                return TaskStatus(task_id, "error", None, error)
            case ev.Running():
                return TaskStatus(task_id, "running")
            case ev.NoAnswer():
                raise event.error
            case _:
                raise AssertionError(event)

    async def save_outcome(self, handle: JobHandle) -> Outcome:
        """Save the pictures of an ended `handle` if its options say so, and return its outcome."""
        outcome = self.outcome(handle)
        try:
            outcome = await self.retention.save_outcome(handle, outcome)
        finally:
            self.retention.end(handle, outcome)
        return outcome

    def delete_unused(self) -> None:
        """Start to delete the vendor's copies that no job needs."""
        if self.driver.alive and (copies := self.retention.take_unused()):
            self.driver.start(lambda: self.retention.delete_now(copies))

    def interruption(self) -> ClientClosed:
        """Return the error for jobs that will not be read or sent."""
        if self.closed or self.driver.ending:
            return closed(self.driver.failure)
        return ClientClosed("The source of the jobs cancelled its own reading.")

    def outcome(self, handle: JobHandle) -> Outcome:
        """Return the outcome of an ended `handle`."""
        job = handle.spec.job
        if job is None or handle.ending is None:
            raise AssertionError(handle)
        if isinstance(handle.ending, ev.Succeeded):
            result = self.result(handle)
            changes = handle.spec.changes
            return Done(job, result, result.task_id, handle.units, handle.duration, changes=changes)
        error = handle.ending
        task_id = error.task_id if isinstance(error, TaskError) else handle.task_id
        changes = handle.spec.changes
        return Failed(job, error, task_id, handle.units, handle.duration, changes=changes)

    def result(self, handle: JobHandle) -> Result:
        """Return the result of an ended `handle`. Raises its error if it has none."""
        spec = handle.spec
        match handle.ending:
            case ev.Succeeded() as event:
                return Result(
                    str(handle.task_id),
                    self._images(
                        event,
                        spec.feature,
                        str(handle.task_id),
                        pictures_only=spec.pictures_only,
                    ),
                    feature=spec.feature,
                    stem=spec.stem,
                    identity=spec.file_identity,
                    session=self,
                    job=spec.job,
                    units=handle.units,
                    duration=handle.duration,
                    raw=event.results,
                    changes=spec.changes,
                )
            case None:
                raise AssertionError(handle)
            case error:
                raise error

    # Requests, and the calls that results need.

    async def ask(self, call: tasks.Request) -> tasks.Response:
        """Send a request and return its response. Raises its failure."""
        self.ready()
        return await self.executor.call(partial(self.driver.ask, self.channel, call))

    def begin(self) -> None:
        """Start the journal's writer, and finish the deletions that the former process left."""
        journal, driver = self.channel.journal, self.driver
        if not journal.writer.persistent:
            return
        journal.writer.window = driver.past
        driver.start(journal.writer.run)
        self.retention.delete_later(
            Copy(str(snapshot.task_id), journal.resume(snapshot), files)
            for snapshot, files in self.recovery.copies()
        )
        self.delete_unused()

    async def drain(self) -> None:
        """Wait until all results are saved, and deleted at the vendor if `delete` is set.

        If the driver ends, the wait ends too.
        """
        self.delete_unused()
        if not self.retention.idle:
            await self.driver.wait_unless_over(self.retention.wait_until_idle)

    def close(self) -> None:
        """Accept no more jobs, and stop batches from reading theirs."""
        self.closed = True
        for interrupt in list(self.interrupts):
            interrupt()

    async def refresh(
        self, feature: str, task_id: str, *, pictures_only: bool
    ) -> tuple[ResultImage, ...]:
        """Ask for new URLs of a finished task's pictures, in the same order; one request.

        Raises `TaskExpired` after a day.
        """
        event = await self._poll(feature, task_id, pictures_only=pictures_only)
        return self._images(event, feature, task_id, pictures_only=pictures_only)

    async def answer(self, feature: str, task_id: str) -> tuple[tuple[ResultImage, ...], object]:
        """Ask for the whole answer of a finished task again; one request. Raises as `refresh`.

        Returns its files and the answer, of a task whose results may be anything.
        """
        event = await self._poll(feature, task_id, pictures_only=False)
        return self._images(event, feature, task_id, pictures_only=False), event.results

    async def _poll(self, feature: str, task_id: str, *, pictures_only: bool) -> ev.Succeeded:
        self._check_open()
        ask = partial(self.driver.ask, self.channel, lasting=True)
        match await self._ask_status(feature, task_id, ask, pictures_only=pictures_only):
            case ev.Succeeded() as event:
                return event
            case ev.EngineFailed() | ev.NoAnswer() | ev.Unreadable() | ev.TimedOut() as event:
                raise event.error
            case _:
                raise BadAnswer("the vendor says that a task runs which had ended before.")

    async def _ask_status(
        self,
        feature: str,
        task_id: str,
        ask: Callable[[tasks.Request], Awaitable[tasks.Response]],
        *,
        pictures_only: bool,
    ) -> ev.Answer:
        """Ask for the state of a task; one request. Raises its failure, and `TaskExpired`."""
        try:
            reply = await ask(tasks.status(feature, task_id))
        except RequestRefused as exc:
            if not tasks.is_unknown_task(exc):
                raise
            gone = (
                "the vendor does not know the task, so its pictures cannot be fetched: it expired "
                "or was deleted, or the id, the feature, its version or the key is not the one it "
                "was created with."
            )
            raise TaskExpired(gone, task_id=task_id, request_id=exc.request_id) from None
        return tasks.read_status(
            ev.Poll(0, 0), reply, pictures_only=pictures_only, task_id=task_id, units=0.0
        )

    async def upload(self, source: Source) -> FileId:
        """Upload `source`, and return its id at the vendor. Raises `JobRefused`, or a failure."""
        self.ready()
        if isinstance(source, FileId):
            return source
        picture = await inspect(source, _AnyFile, fit=self._fit)
        if picture is None:
            raise JobRefused(
                "a URL cannot be uploaded, since the vendor fetches it itself: pass the URL to the "
                "job."
            )
        return await self.upload_picture(picture)

    async def upload_picture(self, picture: ImageFile, feature: str = Smile.feature) -> FileId:
        """Register and upload `picture` outside of a job, and return its id. Raises a failure.

        It is registered for `feature` if the vendor has no path for all features.
        """
        for pause in _UPLOAD_PAUSES:
            try:
                return await self._upload(picture, feature)
            except ServiceUnavailable:
                # Registering and uploading cost no units, so both are tried again.
                await anyio.sleep(pause)
        return await self._upload(picture, feature)

    async def _upload(self, picture: ImageFile, feature: str) -> FileId:
        try:
            reply = await self.ask(tasks.registration([picture.facts], None))
        except RequestRefused as exc:
            if exc.status != _NOT_FOUND:
                raise
            reply = await self.ask(tasks.registration([picture.facts], feature))
        match tasks.read_registration(ev.Register(0, (0,), None), reply):
            case ev.Registered(grants=(grant,)):
                channel = self.channel
                within = channel.timeouts.video if picture.is_video else None
                await channel.transport.upload(grant, picture.chunks, within=within)
                return FileId(grant.file_id)
            case ev.NoAnswer(error=error):
                raise error
            case event:
                raise AssertionError(event)

    async def delete(self, task_id: str) -> None:
        """Delete a finished task at the vendor, and drop it from the journal."""
        account.read_deleted(await self.ask(account.delete(task_id)))
        await self.channel.journal.writer.drop(task_id)

    async def _delete_copy(self, task_id: str) -> None:
        # The journal must record that the result is saved before the task is deleted: otherwise the
        # next process takes the task for a lost one.
        await self.channel.journal.writer.flushed()
        # `lasting`, since copies are deleted while the client drains too.
        reply = await self.driver.ask(self.channel, account.delete(task_id), lasting=True)
        account.read_deleted(reply)
        await self.channel.journal.writer.drop(task_id)

    def _uses(self, task_id: str, files: Sequence[FileId]) -> bool:
        return self.recovery.uses(files) or self.driver.registry.uses(task_id, files)

    def download(
        self, url: str, *, large: bool = False
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Download a result URL in pieces; costs no request of the window.

        `large`: the file may be a video. Entering or iterating raises `RequestRefused`,
        `ServiceUnavailable` or `BadAnswer`.
        """
        self._check_open()
        return self.channel.transport.download(url, large=large)

    def now(self) -> datetime:
        """Return the time in UTC by the client's clock."""
        self._check_open()
        return self.driver.clock.now()

    def _images(
        self, event: ev.Succeeded, feature: str, task_id: str, *, pictures_only: bool
    ) -> tuple[ResultImage, ...]:
        now, count = self.driver.clock.now(), len(event.urls)
        return tuple(
            ResultImage(
                url,
                # A URL that is still to be asked for counts as expired.
                now + _URL_LIFETIME if url else now,
                place=ImagePlace(self, feature, task_id, index, count, pictures_only),
            )
            for index, url in enumerate(event.urls)
        )


def _are_there(files: Iterable[Path]) -> bool:
    return all(file.is_file() for file in files)
