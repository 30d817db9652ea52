"""The client that users open: one key, one host, any number of callers."""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

import anyio

from perfect_async._api import account, history
from perfect_async._api.tasks import Request, Response
from perfect_async._api.urls import normalised_base
from perfect_async._client import settings
from perfect_async._client.batch import Batch, each
from perfect_async._client.lease import GAPS, LeaseMeasurement, checked_gaps, known_lease
from perfect_async._client.results import Result
from perfect_async._client.session import ClientSession
from perfect_async._client.settings import (
    BASE_URL,
    KEY_VARIABLE,
    SECRET_VARIABLE,
    UNSET,
    URL_VARIABLE,
    Unset,
)
from perfect_async._client.task import Task, TrackedJob
from perfect_async._journal.journal import open_journal
from perfect_async._ledger.leases import LeaseFile
from perfect_async._log import switch_on
from perfect_async._runtime.clock import Clock
from perfect_async._runtime.driver import driver_for
from perfect_async._runtime.executors import Executor, LoopExecutor, running_loop
from perfect_async._runtime.handle import warn_of_unfinished
from perfect_async._runtime.spec import JobSpec
from perfect_async._transport.transport import HttpTransport, VendorTransport
from perfect_async.errors import (
    BadAnswer,
    ClientClosed,
    ConfigurationError,
    JobRefused,
    RequestRefused,
    ServiceUnavailable,
    redacted,
)
from perfect_async.events import Observer, TaskKind
from perfect_async.models import (
    Avatar,
    Feature,
    FileId,
    Job,
    Limits,
    Polling,
    Source,
    Timeouts,
    Units,
    must_be_job,
)
from perfect_async.reports import (
    Estimate,
    HistoryEntry,
    LeaseBracket,
    Statistics,
    TaskStatus,
    Template,
)
from perfect_async.scheduler import Scheduler

if TYPE_CHECKING:
    from perfect_async._client.event_pump import EventPump, OnEvent
    from perfect_async._client.notifications import WebhookReceiver
    from perfect_async.webhooks import Secrets

T = TypeVar("T")

_MAX_PAGES: Final = 500
"""Pages of twenty entries; a list that is longer goes round in circles."""


class Client:
    """Perfect Corp's YouCam API on one key; asyncio only.

    `api_key`: the key, else the variable YOUCAM_API_KEY. `base_url`: the vendor's host, else
    YOUCAM_BASE_URL, else the documented one. `limits`, `polling`, `timeouts`: see there.
    `transport`: an `httpx.AsyncBaseTransport` that carries all traffic, uploads and downloads too
    (for a proxy or a private CA: `httpx.AsyncHTTPTransport(...)`); it is closed with the client.
    `drain`: seconds for which a closing client goes on polling running tasks. `engine_retries`: how
    often a failure of the engine that may pass is tried again as a new task (the vendor returns the
    units of the failed one). `max_units`: the most units that all jobs together may be charged; a
    job that would exceed it fails with `CeilingReached` and is not sent.

    `journal`: the path of a file that saves money after a crash. It is made if it is missing; one
    client uses it at a time. Every creation is on the disk before it is sent. A job that finished
    within a day is fetched again instead of bought again (`reuse`: True for all kinds of jobs,
    False for none, None for all but avatars), or copied from another folder where the vendor has no
    copy. A result that was saved counts as done as long as its files are there; those that are gone
    are fetched or bought again, and none of the others is replaced. After a crash `resume()` goes
    on where the last process was. The file holds paths, URLs that are not signed, ids and times; no
    pictures, no key, no signed URLs. Opening raises `JournalError` for a file that cannot be used.

    `sole_user`: say that nothing else creates tasks on this account while the client is open: no
    other program, no other worker, no other machine. A creation whose answer never came is then
    settled from the unit history, if the client has a journal and only one task of the history can
    be the lost one. **A face is at stake**: the history names no picture, so where somebody else
    does create tasks, their result may be handed out as yours. Otherwise such a job ends in
    `SubmissionInDoubt`, with the tasks that it may be (`candidates`) and its units at stake.

    `webhook_secret`: the secret of the webhook in the vendor's console (several while one is
    replaced), else YOUCAM_WEBHOOK_SECRET. Tasks then end as soon as the vendor says so, by `both`
    polls and notifications unless `Polling.completion` says otherwise.

    `isolated`: keep tasks alive in a thread with an event loop of its own, for programs that block
    their event loop now and then: a loop that is blocked for longer than `Polling.lease` loses the
    tasks that it polls. All calls are the same, and any event loop of the process may make them;
    the `jobs` of a batch are read in the loop that entered it, and the batch must be left in the
    same task. A `transport` is used in that thread only. Isolated clients of one process share the
    thread.

    `share`: how the request window of the key is shared with other processes. `"machine"` (the
    default): by a small file in the user's state folder, so all processes of one user on one
    machine together keep to the limits, and no server is needed. The absolute path of a folder:
    by a file there (a volume of several containers of one machine). `"redis://..."` or
    `"rediss://..."`: by a Redis server, over machines (extra `redis`). None, or the variable
    PERFECT_ASYNC_SHARE=off: not at all; then give each process its share with `Limits.split`. With
    a `transport` of your own, other than `httpx.AsyncHTTPTransport`, nothing is shared unless
    asked for. The file holds times, task ids and digests; no key, no URL and no path. Clients of
    one key in one event loop must agree: one that says nothing does as the first, and another value
    than the first one's is a `ConfigurationError` at opening.

    `reuse=True` without a journal asks the processes that share the key: a job that one of them has
    under way is waited for, a running task is kept alive, a result of the last day is fetched again
    at no charge, and a creation whose outcome nobody knows raises `SubmissionInDoubt`. So a job is
    bought once, although several processes are given it, or one after another. It is the same job
    where its identity and the digest of its picture (or its full URL) are the same. By default a
    job that another process has bought is bought again.

    `fit`: make pictures into what the vendor takes (extra `fit`, which is Pillow): those over 4096
    px or 10 MiB, webp, gif, bmp and tiff, and those that would be shown wrongly: turned by EXIF, in
    CMYK, with 16 bits for a colour. As little as possible is changed, `Done.changes` and
    `Result.changes` say what, and a picture that is taken as it is stays as it is. What is changed
    loses its EXIF data. The identity of a job is then that of the picture that is sent.

    `on_event`: a function, plain or async, that is called with each `JobEvent` of the client's
    jobs, in order, in the event loop that opened the client. Events wait for it, and neither polls
    nor callers do; its exceptions are logged. A closing client waits 5 s for it. The logger
    `perfect_async` says at DEBUG what each request came to, and at INFO what became of each job;
    PERFECT_ASYNC_LOG=debug (or info) shows that on stderr.

    Use `async with Client() as client:`, or `await client.open()` and `await client.close()`, which
    may be in different tasks. One client serves any number of concurrent callers and batches in one
    event loop; a second one that is opened on the same key and host in that loop shares the first
    one's request ledger (and its `limits`, `polling` and `engine_retries`). Raises
    `ConfigurationError` for a key or setting that cannot work, and where it is used unopened,
    opened twice, from another loop or after a fork; `ClientClosed` where it is used closed.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        polling: Polling = Polling(),  # noqa: B008 - as above
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - as above
        transport: HttpTransport | None = None,
        drain: float = 30.0,
        engine_retries: int = 1,
        max_units: float | None = None,
        journal: str | os.PathLike[str] | None = None,
        reuse: bool | None = None,
        webhook_secret: str | Iterable[str] | None = None,
        isolated: bool = False,
        sole_user: bool = False,
        share: str | os.PathLike[str] | Unset | None = UNSET,
        fit: bool = False,
        on_event: OnEvent | None = None,
    ) -> None:
        switch_on()
        self._base_url = base_url or os.environ.get(URL_VARIABLE) or BASE_URL
        self._opening = self._closing = False
        self._session: ClientSession | None = None
        self._webhooks: WebhookReceiver | None = None
        key = settings.stripped(os.environ.get(KEY_VARIABLE) if api_key is None else api_key)
        problem = settings.key_problem(key)
        self._key = "" if problem is not None or key is None else key
        given = [webhook_secret or os.environ.get(SECRET_VARIABLE) or None]
        # A traceback that shows the locals of this frame must not show the key and the secret.
        del api_key, key, webhook_secret
        self._secrets = _read_secrets(given)
        if problem is not None:
            raise ConfigurationError(problem)
        self._base_url = normalised_base(self._base_url if base_url is None else base_url)
        settings.kind("limits", limits, Limits)
        settings.kind("polling", polling, Polling)
        self._lease_file = LeaseFile(self._base_url, self._key)
        polling = known_lease(polling, self._lease_file)
        settings.kind("timeouts", timeouts, Timeouts)
        if transport is not None:
            settings.kind("transport", transport, HttpTransport)
        self._timeouts = timeouts
        self._transport = transport
        self._drain = settings.number("drain", drain)
        settings.retries(engine_retries)
        self._polling = polling
        self._max_units = None if max_units is None else settings.units(max_units)
        self._journal = journal
        self._reuse = reuse
        self._sole_user = sole_user
        self._fit = settings.fit(fit)
        settings.callback(on_event)
        self._on_event = on_event
        self._pump: EventPump | None = None
        self._observers: list[Observer] = []
        self._share = settings.share(share, transport)
        self._insists_on_share = share is not UNSET
        self._executor: Executor = LoopExecutor()
        self._batch = Batch
        if isolated:
            self._executor, self._batch = _isolated()
        # Settings that cannot work are refused here, not when the first job waits.
        self._scheduler = Scheduler(limits, polling, engine_retries=engine_retries)
        if polling.completion in {"webhook", "both"} and self._secrets is None:
            raise ConfigurationError(
                f'Polling(completion="{polling.completion}") needs a webhook_secret.'
            )

    def __repr__(self) -> str:
        state = (
            "unopened" if self._session is None else "closed" if self._session.closed else "open"
        )
        return f"<Client {redacted(self._base_url)} {state}>"

    # A default, since the interpreter clears the module's globals when it ends.
    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # Then nobody reads a warning, and what makes its text may be gone.
        session = None if _is_finalizing() else getattr(self, "_session", None)
        if session is not None and not session.closed:
            warnings.warn(f"{self!r} was never closed.", ResourceWarning, stacklevel=2, source=self)

    def observe(self, observer: Observer) -> None:
        """Let `observer` watch all requests on the key in this event loop, once the client is open.

        This is what `perfect_async.telemetry.instrument` calls; for events of jobs see `on_event`.
        Raises `ConfigurationError` where the client is open already.
        """
        if self._session is not None or self._opening:
            raise ConfigurationError("Observe a client before it is opened.")
        self._observers.append(observer)

    # Opening and closing.

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self) -> Self:
        """Start to keep tasks alive, as entering `async with` does; returns the client itself."""
        running_loop()
        if self._session is not None and self._session.closed:
            raise ConfigurationError("This client was closed; make a new one.")
        if self._session is not None or self._opening:
            raise ConfigurationError("This client is open already.")
        self._opening = True
        try:
            await self._executor.open()
            try:
                if self._on_event is not None:
                    from perfect_async._client.event_pump import EventPump  # noqa: PLC0415 - rare

                    # Its loop is the caller's, also where the client has one of its own.
                    self._pump = EventPump(self._on_event)
                await self._executor.call(self._open)
            except BaseException:
                await _shielded(self.close)
                await _shielded(self._executor.close)
                await _shielded(self._close_pump)
                raise
        finally:
            self._opening = False
        return self

    async def _open(self) -> None:
        transport = VendorTransport(
            self._base_url, self._key, timeouts=self._timeouts, transport=self._transport
        )
        async with AsyncExitStack() as undo:
            undo.push_async_callback(_shielded, transport.aclose)
            clock = Clock()
            journal = await open_journal(self._journal, clock.utc)
            undo.push_async_callback(_shielded, journal.writer.aclose)
            driver = driver_for(
                self._key,
                self._base_url,
                self._scheduler,
                clock,
                transport=self._transport,
                past=journal.writer.past,
                share=self._share,
                insists=self._insists_on_share,
            )
            channel = await driver.join(
                transport, self._timeouts, journal, sole_user=self._sole_user
            )
            undo.pop_all()
        driver.observers += [each for each in self._observers if each not in driver.observers]
        most, reuse = self._max_units, self._reuse
        self._session = ClientSession(
            self._executor,
            driver,
            channel,
            max_units=most,
            reuse=reuse,
            fit=self._fit,
            on_event=None if self._pump is None else self._pump.post,
        )
        self._session.begin()

    async def close(self) -> None:
        """Stop new work and keep running tasks alive for up to `drain` seconds.

        Leaving `async with` does the same, whatever ended the block. A warning of the logger
        `perfect_async` names the tasks that still run after that, with the units at stake. Closing
        again does nothing. Raises `ConfigurationError` in another loop or process.
        """
        session = self._session
        if session is None or session.closed or self._closing:
            return
        self._executor.check()
        self._closing = True
        # A block that was cancelled may be cancelled again, by a second timeout around it.
        task = asyncio.current_task()
        again = task is not None and task.cancelling() > 0
        # Shielded for the same reason as in `_close`.
        with anyio.CancelScope(shield=True):
            try:
                await self._executor.call(partial(self._close, session, cancelled=again))
            except ClientClosed:
                # The thread of an isolated client has ended already.
                session.closed = True
            finally:
                await self._executor.close()
                await self._close_pump()

    async def _close_pump(self) -> None:
        pump, self._pump = self._pump, None
        if pump is not None:
            await pump.aclose()

    async def _close(self, session: ClientSession, *, cancelled: bool) -> None:
        session.close()
        driver, channel = session.driver, session.channel
        channel.journal.closing = True
        # Shielded, since running tasks are paid for; bounded, since the caller waits.
        with anyio.CancelScope(shield=True):
            driver.stop_creating(channel)
            began = driver.clock.seconds()
            try:
                await self._drain_session(session, began + self._drain, cancelled=cancelled)
            finally:
                session.left = True
                # Also where asyncio itself cancels this task, which no shield stops.
                drained = driver.clock.seconds() - began
                warn_of_unfinished(driver.registry.left(channel), drained)
                try:
                    await driver.leave(channel)
                finally:
                    await channel.journal.writer.aclose()

    async def _drain_session(
        self, session: ClientSession, deadline: float, *, cancelled: bool
    ) -> None:
        """Wait until every job has ended and is saved, or until `deadline`.

        Where the client closes because its caller was cancelled (`cancelled`), another cancellation
        waits for that too. Else a cancellation ends the wait: the caller asks for it.
        """
        pending: asyncio.CancelledError | None = None
        while True:
            try:
                with anyio.CancelScope(deadline=deadline):
                    await session.driver.drain(session.channel)
                    await session.drain()
                break
            except asyncio.CancelledError as exc:
                if not cancelled or session.driver.ending:
                    raise
                pending = exc
        if pending is not None:
            raise pending

    # The main job.

    async def run(
        self,
        job: Job,
        timeout: float | None = None,
        *,
        save_to: str | os.PathLike[str] | None = None,
        delete: bool = False,
        give_up_after: float | None = None,
        engine_retries: int | None = None,
        buy_in_doubt: bool = False,
    ) -> Result:
        """Run one job and wait for its pictures.

            result = await client.run(Smile("selfie.jpg"), timeout=60, save_to="out/")
            print(result.files, result.units)

        `timeout` in seconds bounds the wait, not the task: a task that was created goes on, and
        `WaitTimeout` carries its `task_id`; a job that was not sent by then is not sent any more.
        The same holds for a caller that is cancelled. Costs `job.units`; raises any error of
        `Failed.error` (see `perfect_async.errors`).

        `save_to`: a folder in which the result is saved as part of the job, as in `batch`, also
        where the caller waits no longer; `result.files` names the files. `delete`: the vendor's
        copies are deleted after that. `give_up_after` (seconds, from `Polling.lease` to
        `Polling.give_up_after`) and `engine_retries` hold for this job in place of the client's. A
        job that equals one on its way shares its task, and so the options of the first one.

        A job that equals one in doubt raises the same `SubmissionInDoubt` until this process ends.
        `buy_in_doubt=True` consents to a second charge and creates it.
        """
        session = self._ready()
        options = settings.job_options(
            self._polling,
            save_to=save_to,
            delete=delete,
            give_up_after=give_up_after,
            engine_retries=engine_retries,
            buy_in_doubt=buy_in_doubt,
        )
        return await self._run(session, partial(session.track, job, options), timeout)

    async def submit(
        self,
        job: Job,
        timeout: float | None = None,
        *,
        save_to: str | os.PathLike[str] | None = None,
        delete: bool = False,
        give_up_after: float | None = None,
        engine_retries: int | None = None,
        buy_in_doubt: bool = False,
    ) -> Task:
        """Return a handle of one job as soon as the vendor has accepted its task.

            task = await client.submit(Smile("selfie.jpg"), save_to="out/")
            print(task.id)                     # units are charged from here on
            result = await task

        The client keeps the task to its end and saves its result where that was asked for, also
        where the handle is dropped. `timeout` in seconds ends at the acceptance: a job that was not
        sent by then is not sent any more, and raises `WaitTimeout`; it may have to wait for its
        turn in the key's request window. The other options are those of `run`. Costs `job.units`;
        raises the error of a job that the vendor has not accepted. Later errors are the task's.
        """
        session = self._ready()
        options = settings.job_options(
            self._polling,
            save_to=save_to,
            delete=delete,
            give_up_after=give_up_after,
            engine_retries=engine_retries,
            buy_in_doubt=buy_in_doubt,
        )
        track = partial(session.track, job, options)
        tracked = await self._track(session.submit, track, timeout)
        if tracked.task_id is None:
            self._executor.soon(tracked.report)
            tracked.unwrap()
            raise AssertionError(tracked)
        feature, task_id = job.feature, tracked.task_id
        return Task(session, task_id, partial(session.track_task, feature, task_id), tracked)

    def task(self, feature: type[Job] | str, task_id: str, *, version: str = "v2.0") -> Task:
        """Return a handle of a task whose id came from elsewhere; no request.

            task = client.task(Smile, "task id of another process")
            result = await task                # keeps it alive from here on

        `feature` and `version` are as in `attach`. Nothing is sent and nothing is kept alive until
        the handle is awaited or its events are read; then it does what `attach` does. Raises
        `ConfigurationError` for what is no feature or no task id.
        """
        name, known = settings.feature(feature, version), settings.task_id(task_id)
        session = self._ready()
        return Task(session, known, partial(session.track_task, name, known))

    async def status(
        self, feature: type[Job] | str, task_id: str, *, version: str = "v2.0"
    ) -> TaskStatus:
        """Ask the vendor once how a task stands, and adopt nothing; one request.

            status = await client.status(Smile, task.id)
            print(status.status)               # running, success or error

        A running task has to be polled every 10 s by somebody; this is no promise to do so (use
        `task` or `attach`). `feature` and `version` are as in `attach`. Raises `TaskExpired` if the
        vendor does not know the task (any longer), `ConfigurationError` as `task` does, and the
        errors of a request.
        """
        name, known = settings.feature(feature, version), settings.task_id(task_id)
        session = self._ready()
        return await self._executor.call(partial(session.status, name, known))

    async def upload(self, source: Source) -> FileId:
        """Upload a picture or a video for any number of jobs, and return its id; one request.

            file = await client.upload("selfie.jpg")
            results = await asyncio.gather(
                client.run(Smile(file)), client.run(Avatar(file, "male_studio_00"))
            )

        `source` is what a job takes, but for a URL, which the vendor fetches itself; a `FileId` is
        returned as it is. It must be a jpg, png or heic under 10 MiB whose long side has at most
        4096 px, or an mp4 or mov under 100 MiB; a feature may ask for more. The vendor keeps the
        file for a while, and deletes it with any task that used it. Raises `PictureRefused` and the
        errors of a request.
        """
        return await self._executor.call(partial(self._ready().upload, source))

    async def attach(
        self,
        feature: type[Job] | str,
        task_id: str,
        timeout: float | None = None,
        *,
        version: str = "v2.0",
    ) -> Result:
        """Wait for a task that exists: of this client, of another process, of a former one.

            result = await client.attach("skin-analysis", task_id, version="v2.1")

        `feature` is a class, as `Smile`, or the path of any feature, as in `Feature`, with its
        `version`. `task_id` is as in `WaitTimeout` or `Failed`. A running task is kept alive from
        now on, for up to `Polling.give_up_after`; a finished one is fetched for one request.
        Nothing is created or charged. Raises as `run` does; `TaskExpired` if the vendor does not
        know the task (any longer).
        """
        name, known = settings.feature(feature, version), settings.task_id(task_id)
        session = self._ready()
        return await self._run(session, partial(session.track_task, name, known), timeout)

    async def _run(
        self,
        session: ClientSession,
        track: Callable[[], Awaitable[TrackedJob]],
        timeout: float | None,
    ) -> Result:
        job = await self._track(session.wait, track, timeout)
        # Not earlier: a caller that is cancelled before has not got the result.
        self._executor.soon(job.report)
        return job.unwrap()

    async def _track(
        self,
        wait: Callable[[Callable[[], Awaitable[TrackedJob]], float | None], Awaitable[TrackedJob]],
        track: Callable[[], Awaitable[TrackedJob]],
        timeout: float | None,
    ) -> TrackedJob:
        """Return the job that `track` gives once `wait` has waited for it, `timeout` at most."""
        if timeout is not None:
            settings.number("timeout", timeout)
        tracked: list[TrackedJob] = []

        async def track_and_keep() -> TrackedJob:
            tracked.append(await track())
            return tracked[0]

        try:
            return await self._executor.call(partial(wait, track_and_keep, timeout))
        except ClientClosed as exc:
            if not tracked:
                raise
            # The thread of an isolated client ended under the job, which may have a task.
            tracked[0].end_with_thread(exc)
            return tracked[0]

    def batch(
        self,
        jobs: Iterable[Job] | AsyncIterable[Job],
        *,
        max_units: float | None = None,
        ordered: bool = False,
        save_to: str | os.PathLike[str] | None = None,
        delete: bool = False,
        give_up_after: float | None = None,
        engine_retries: int | None = None,
        buy_in_doubt: bool = False,
        resume: bool = False,
    ) -> Batch:
        """Run many jobs: an async context manager, then an async iterator of `Outcome`.

        `jobs` is read lazily, a few dozen ahead of the creations; it must not block the event loop.
        Outcomes come as the jobs end, or in the order of `jobs` with `ordered`. A slow consumer
        stops the creating, not the polling; leaving the block early stops new work. An error of
        `jobs` itself is raised after the outcomes of the jobs before it. An item that is no job is
        refused here in a list, tuple or set (`JobRefused`); of other sources it is a `Failed`.

        `max_units`: the most units that the jobs may be charged; a job that would exceed it fails
        with `CeilingReached` and is not sent. `save_to`: a folder in which each result is saved as
        part of its job: a job is done when its files are on the disk, and `Done.files` names them.
        They are called as in `Result.save`, but no file is replaced: where other files have the
        names, 8 hex digits of the task's own stand before the identity. `Failed` with `NotSaved`
        says why they are not saved. `delete`: the vendor's copies of the picture and its result are
        deleted after that, once no other job uses the same file. `give_up_after`, `engine_retries`
        and `buy_in_doubt`: as in `run`, for each of the jobs.

        `resume`: begin with what the former process on the journal left, as `resume` does, and go
        on with `jobs`, as one batch with one progress:

            async with client.batch(jobs, save_to="out/", resume=True) as batch:
                async for outcome in batch: ...

        Jobs that were left keep the options of then, and count against no `max_units` of a batch.
        One that is among `jobs` too has two outcomes and one task. Raises `ConfigurationError`
        without a journal.
        """
        if resume:
            self._must_have_journal()
        options = settings.job_options(
            self._polling,
            save_to=save_to,
            delete=delete,
            give_up_after=give_up_after,
            engine_retries=engine_retries,
            buy_in_doubt=buy_in_doubt,
        )
        most = None if max_units is None else settings.units(max_units)
        return self._batch(
            self._ready, jobs, ordered=ordered, options=options, max_units=most, resume=resume
        )

    def resume(self) -> Batch:
        """Go on with the jobs that the former process on this journal left, as a batch.

        It is empty on a new journal. Running tasks are polled at once and kept alive (`TaskExpired`
        if their lease had ended). Finished ones whose outcome nobody took are fetched. A creation
        without an answer fails with `SubmissionInDoubt`, once, unless it can be settled (see
        `sole_user`); an equal job gets the same error until this process ends. Jobs that were not
        created are created, or fail with `SourceLost` if their picture is not known any longer.
        Results are saved where the former process was to save them. Raises `ConfigurationError`
        without a journal.
        """
        self._must_have_journal()
        return self._batch(self._ready, self._executor.ask(self._ready().recovery.all))

    def _must_have_journal(self) -> None:
        if self._journal is None:
            raise ConfigurationError("resume needs a journal: Client(journal=...).")

    # The other calls.

    async def templates(
        self, feature: type[Job] | str = Avatar, *, version: str = "v2.0"
    ) -> AsyncIterator[Template]:
        """Yield the styles that `feature` offers; one request for 20 (contract: Other calls).

        `feature` and `version` are as in `attach`.
        """
        found = _paginate(
            self._ready().ask,
            partial(account.templates, settings.feature(feature, version)),
            account.read_templates,
        )
        async with aclosing(found):
            async for template in found:
                yield template

    async def units(self) -> Units:
        """Ask for the balance of units; one request. A balance of None is unknown, not zero."""
        session = self._ready()
        response = await session.ask(account.units())
        return account.read_units(response, session.driver.clock.now())

    async def history(self) -> AsyncIterator[HistoryEntry]:
        """Yield what the account was charged and credited, as the vendor lists it.

            async for entry in client.history():
                print(entry.at, entry.action, entry.units, entry.target_id)

        One request for 30 entries, sent as they are read: leave the loop when you have seen enough.
        The vendor lists the newest first. Raises the errors of a request.
        """
        found = _paginate(self._ready().ask, history.history, history.read_entries)
        async with aclosing(found):
            async for entry in found:
                yield entry

    async def estimate(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> Estimate:
        """Estimate what `jobs` would cost in units and seconds, if they were run now.

            estimate = await client.estimate(jobs)
            print(estimate.units, estimate.seconds, estimate.measured)

        Units are by the vendor's price list where it names the feature; a price that was given
        (`Feature(units=)`) comes first. Seconds are the scheduler's reckoning: how the request
        window is filled, how long tasks took (`measured`: some of each kind were seen), and what
        this client has to do already. Reads all of `jobs`, sends none of them; one request for each
        20 lines of the price list. Raises `JobRefused` for an item that is no job, and for a
        `Feature` whose price nobody names.
        """
        prices: list[account.Price] = []
        # Without the price list the documented prices are used.
        with suppress(BadAnswer, RequestRefused, ServiceUnavailable):
            pages = _paginate(self._ready().ask, account.feature_costs, account.read_feature_costs)
            prices = [listed async for listed in pages]
        costs: dict[str, float] = {}
        kinds: Counter[TaskKind] = Counter()
        count, documented = 0, False
        async for job in each(jobs):
            must_be_job(job)
            price = None
            if not isinstance(job, Feature) or not job.priced:
                price = account.price_of(prices, job.feature)
            if price is None:
                if not job.priced:
                    raise JobRefused(
                        f"the price list names no single price of {job.feature}: pass units=."
                    )
                documented, units = True, float(job.units)
            else:
                units = price.amount * -(-job.outputs // price.per)
            costs[job.feature] = costs.get(job.feature, 0.0) + units
            kinds[JobSpec.kind_of(job)] += 1
            count += 1
        scheduler = self._ready().driver.scheduler
        seconds, measured = self._executor.ask(lambda: scheduler.estimate(kinds))
        return Estimate(count, sum(costs.values()), costs, documented, seconds, measured)

    async def delete(self, task_id: str) -> None:
        """Delete a finished task at the vendor, with its pictures and its input files; one request.

        An input file that another task shares dies with it, result URLs answer 404 at once, and
        units are not returned (contract: Other calls). Raises `RequestRefused` for a task that is
        not finished, `ConfigurationError` for what is no task id.
        """
        await self._executor.call(partial(self._ready().delete, settings.task_id(task_id)))

    async def measure_lease(
        self, job: Job, gaps: Sequence[float] = GAPS
    ) -> AsyncIterator[LeaseBracket]:
        """Create one task of `job` and poll it after each of `gaps` seconds only, until it is lost.

        Yields what is known after each gap. The last one is kept in the state folder, for this key
        and host, and `Polling(lease="measured")` uses it. Take a job that runs for longer than the
        gaps together, such as an `Avatar` of one picture. It costs `job.units`, which are charged
        also where the task is lost; what the task makes is not fetched. Nothing of it is in the
        journal, and `max_units` does not count it. Raises as `run` does.
        """
        session = self._ready()
        # An isolated client's loop is another thread's: each step there is one call.
        measurement = LeaseMeasurement(session, job, checked_gaps(gaps), self._lease_file)
        found = measurement.brackets()
        try:
            while True:
                bracket = await self._executor.call(partial(anext, found, None))
                if bracket is None:
                    return
                yield bracket
        finally:
            await self._executor.call(found.aclose)

    @property
    def webhooks(self) -> WebhookReceiver:
        """Takes the vendor's notifications: `await client.webhooks.deliver(body, headers)`.

        `perfect_async.webhooks.WebhookApp(client.webhooks)` is an endpoint for any ASGI framework.
        It may be had before the client is open, to build an app with; `deliver` then raises
        `ConfigurationError`, so that the sender tries again. Raises `ConfigurationError` without a
        `webhook_secret`.
        """
        self._executor.check_process()
        if self._webhooks is not None:
            return self._webhooks
        if self._secrets is None:
            raise ConfigurationError(
                "Webhooks need their secret from the vendor's console: Client(webhook_secret=...) "
                f"or {SECRET_VARIABLE}."
            )
        from perfect_async._client.notifications import WebhookReceiver  # noqa: PLC0415 - as below

        self._webhooks = WebhookReceiver(self._opened, self._secrets)
        return self._webhooks

    def statistics(self) -> Statistics:
        """Return the state of the key's scheduler: jobs, window, units; see `Statistics`."""
        if self._session is None:
            return self._scheduler.statistics()
        session = self._session
        return self._executor.ask(lambda: session.driver.statistics(session.channel))

    def _ready(self) -> ClientSession:
        session = self._opened()
        session.ready()
        return session

    def _opened(self) -> ClientSession:
        """Return the session, also while the client closes: running tasks are still awaited."""
        if self._session is None:
            raise ConfigurationError(
                "This client is not open: use `async with Client() as client:`."
            )
        return self._session


# Most programs use neither webhooks nor threads: what these need is loaded when it is used.


def _read_secrets(given: list[str | Iterable[str] | None]) -> Secrets | None:
    """Take the secret out of `given`, so that no frame holds it when it is refused."""
    if given == [None]:
        return None
    from perfect_async.webhooks import Secrets  # noqa: PLC0415 - see above

    return Secrets(given.pop() or "")


def _isolated() -> tuple[Executor, type[Batch]]:
    from perfect_async._client.threaded_batch import ThreadedBatch  # noqa: PLC0415 - see above
    from perfect_async._runtime.executors import ThreadExecutor  # noqa: PLC0415 - see above

    return ThreadExecutor(), ThreadedBatch


async def _shielded(undo: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope(shield=True):
        await undo()


async def _paginate(
    ask: Callable[[Request], Awaitable[Response]],
    call: Callable[[str | None], Request],
    read: Callable[[Response], tuple[tuple[T, ...], str | None]],
) -> AsyncGenerator[T]:
    """Yield the entries of every page, one request each; `BadAnswer` for a list without an end."""
    token: str | None = None
    for _ in range(_MAX_PAGES):
        page, following = read(await ask(call(token)))
        for entry in page:
            yield entry
        if following is None or following == token:
            return
        token = following
    raise BadAnswer(f"a list of the vendor's goes on after {_MAX_PAGES} pages.")
