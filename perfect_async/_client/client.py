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
from perfect_async._client.batch import Batch, each, must_be_iterable
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
"""How many pages of a list are read; a longer list is taken to have no end."""


class Client:
    """Perfect Corp's YouCam API on one API key, for asyncio.

        async with Client() as client:                       # key from YOUCAM_API_KEY
            result = await client.run(Smile("selfie.jpg"))
            await result.save("smiling.jpg")

    Use `async with`, or `await client.open()` and `await client.close()`, which may be in different
    tasks. One client serves any number of concurrent callers and batches in one event loop. All
    clients of a key and host in one loop share the request window, the `limits`, `polling` and
    `engine_retries` of the first one.

    - `api_key`: the key; by default the variable YOUCAM_API_KEY.
    - `base_url`: the vendor's host; by default the variable YOUCAM_BASE_URL, else the documented
      host.
    - `limits`: the request limits of the key, see `Limits`.
    - `polling`: how running tasks are kept alive, see `Polling`.
    - `timeouts`: how long single requests may take, see `Timeouts`.
    - `transport`: an `httpx.AsyncBaseTransport` that carries all traffic, uploads and downloads
      included, for a proxy or a private CA: `httpx.AsyncHTTPTransport(...)`. The client closes it.
    - `drain`: for how many seconds a closing client keeps polling its running tasks; 30.
    - `engine_retries`: how often a task is created again after a failure of the vendor's engine
      that may pass; 1. The vendor returns the units of the failed task.
    - `max_units`: the most units that all jobs together may be charged. A job that would exceed it
      fails with `CeilingReached` and is not sent.
    - `journal`: the path of a file that remembers jobs over a crash, see below.
    - `reuse`: whether a job that has finished is fetched again instead of bought again. True: for
      all kinds of jobs; False: for none; None: for all that give the same result each time, which
      avatars do not. It needs a journal, or `reuse=True` and a shared key (see below).
    - `webhook_secret`: the secret of the webhook from the vendor's console, or several while one is
      replaced; by default the variable YOUCAM_WEBHOOK_SECRET. A wait then ends when the vendor
      notifies the client, see `webhooks` and `Polling.completion`.
    - `isolated`: poll in a thread with an event loop of its own, see below.
    - `sole_user`: promise that nothing else creates tasks on this account, see below.
    - `share`: how the request window of the key is shared with other processes, see below.
    - `fit`: convert pictures into what the vendor accepts, see below.
    - `on_event`: a function, plain or async, that is called with each `JobEvent` of the client's
      jobs, see below.

    **`journal`** saves money after a crash. The file is made if it is missing, and one client uses
    it at a time. Every creation is on the disk before it is sent. A job that finished within a day
    is fetched again instead of bought again, or its files are copied if the vendor has deleted its
    copy. A result that was saved stays done while its files are there; missing files are fetched or
    bought again, and the others are not replaced. After a crash, `resume()` goes on with the jobs
    of the last process. The file holds paths, unsigned URLs, ids and times, but no pictures, no key
    and no signed URLs.

    **`share`**: `"machine"`, the default, shares the window between all processes of one user on
    one machine, by a small file in the user's state folder; no server is needed. The absolute path
    of a folder shares it by a file there, for containers with a common volume. `"redis://..."` or
    `"rediss://..."` shares it over machines by a Redis server (extra `redis`). None, or the
    variable PERFECT_ASYNC_SHARE=off, shares nothing; then give each process its share with
    `Limits.split`. With a `transport` other than `httpx.AsyncHTTPTransport` nothing is shared
    unless `share` is given. The ledger holds times, task ids and digests, but no key, no URL and no
    path. The clients of a key in one event loop must agree on `share`.

    **`reuse=True` without a journal** asks the processes that share the key, so a job is bought
    once although several processes run it. The client waits for a job that another process is
    running and keeps its task alive, fetches a result of the last day again at no charge, and
    raises `SubmissionInDoubt` if the outcome of a creation is unknown. Two jobs are the same if
    their identity and the digest of their picture (or its full URL) are equal. Without `reuse=True`
    a job that another process has bought is bought again.

    **`isolated=True`** is for programs that block their event loop now and then: a loop that is
    blocked for longer than `Polling.lease` loses the tasks that it polls. All calls stay the same,
    and any event loop of the process may make them. The `jobs` of a batch are read in the loop that
    entered it, and the batch must be left in the same task. A `transport` is used in that thread
    only. The isolated clients of a process share one thread.

    **`sole_user=True`** settles a creation whose answer never came from the unit history, if the
    client has a journal and only one task of the history can be the lost one. The history does not
    name pictures. **If another program does create tasks on the account, you may get its result:
    the face of another person.** Without `sole_user` such a job raises `SubmissionInDoubt`, which
    has the ids of tasks that it may be (`candidates`) and the units at stake.

    **`fit=True`** converts pictures over 4096 px or 10 MiB, webp, gif, bmp and tiff, and pictures
    that the vendor would show wrongly: turned by EXIF, in CMYK, or with 16 bits per colour (extra
    `fit`, which is Pillow). It changes as little as possible and says what in `Done.changes` and
    `Result.changes`. A picture that the vendor accepts is sent unchanged; one that is converted
    loses its EXIF data. The identity of a job is that of the picture that is sent.

    **`on_event`** is called in the event loop that opened the client, with one event after another.
    Slow functions delay later events, but no poll and no caller; exceptions are logged. A closing
    client waits for it for 5 s. The logger `perfect_async` logs every request at DEBUG and the
    outcome of every job at INFO; PERFECT_ASYNC_LOG=debug (or info) shows that on stderr.

    Raises `ConfigurationError` for a key or setting that cannot work, and for a client that is used
    unopened, opened twice, or used from another loop or after a fork; `ClientClosed` if it is used
    closed; `JournalError`, at opening, for a journal that cannot be used.
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
        # A traceback with the locals of this frame must not show the key and the secret.
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
        # Made here, so that settings that cannot work are refused before the first job waits.
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

    # The check is a default, since the interpreter clears the module's globals when it ends.
    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the interpreter's end nobody reads a warning, and modules may be gone.
        session = None if _is_finalizing() else getattr(self, "_session", None)
        if session is not None and not session.closed:
            warnings.warn(f"{self!r} was never closed.", ResourceWarning, stacklevel=2, source=self)

    def observe(self, observer: Observer) -> None:
        """Let `observer` watch all requests on the key in this event loop, once the client is open.

        `perfect_async.telemetry.instrument` uses it. For the events of jobs, use `on_event`. Raises
        `ConfigurationError` if the client is open already.
        """
        if self._session is not None or self._opening:
            raise ConfigurationError(
                "The client is open already; call observe before it is opened."
            )
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
        """Open the client, as `async with` does, and return it.

            client = await Client().open()
            try:
                result = await client.run(Smile("selfie.jpg"))
            finally:
                await client.close()

        Raises `ConfigurationError` if it is open or was closed, and `JournalError` for a journal
        that cannot be used.
        """
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

                    # Its loop is the caller's, also for a client with a loop of its own.
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
        """Stop new work, wait up to `drain` seconds for running tasks, and close the client.

        Leaving `async with` does the same, also after an error. The logger `perfect_async` warns of
        tasks that still run after that, with the units at stake. Closing again does nothing. Raises
        `ConfigurationError` in another loop or process.
        """
        session = self._session
        if session is None or session.closed or self._closing:
            return
        self._executor.check()
        self._closing = True
        # A second timeout around the block may cancel it again.
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
        # Shielded, since running tasks are charged; bounded, since the caller waits.
        with anyio.CancelScope(shield=True):
            driver.stop_creating(channel)
            began = driver.clock.seconds()
            try:
                await self._drain_session(session, began + self._drain, cancelled=cancelled)
            finally:
                session.left = True
                # Done also if asyncio itself cancels this task, which no shield stops.
                drained = driver.clock.seconds() - began
                others = driver.hands_over(channel)
                warn_of_unfinished(driver.registry.left(channel), drained, others=others)
                try:
                    await driver.leave(channel)
                finally:
                    await channel.journal.writer.aclose()

    async def _drain_session(
        self, session: ClientSession, deadline: float, *, cancelled: bool
    ) -> None:
        """Wait until every job has ended and is saved, or until `deadline`.

        If the client closes because its caller was cancelled (`cancelled`), a second cancellation
        is raised after the wait. Otherwise a cancellation ends the wait.
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
        """Run one job and wait for its pictures; costs `job.units`.

            result = await client.run(Smile("selfie.jpg"), timeout=60, save_to="out/")
            print(result.files, result.units)

        - `job`: a `Smile`, `Avatar`, `Studio` or `Feature`.
        - `timeout`: how many seconds to wait. After that the call raises `WaitTimeout`, which has
          the `task_id`; a task that was created goes on, and a job that was not sent is cancelled.
          Cancelling the call does the same.
        - `save_to`: a folder, made if it is missing, in which the result is saved as part of the
          job, even if the caller has stopped waiting. It is not the name of a file: a missing
          folder with the suffix of a picture raises `ConfigurationError`. `result.files` names the
          files, see `batch`.
        - `delete`: delete the vendor's copies of the picture and the result once they are saved.
        - `give_up_after`: abandon this task after so many seconds instead of after
          `Polling.give_up_after`, which is the most; the least is `Polling.lease`.
        - `engine_retries`: as in `Client`, for this job.
        - `buy_in_doubt`: create the job even if an equal one is in doubt, and so consent to a
          second charge. Without it an equal job raises the same `SubmissionInDoubt` until this
          process ends.

        A job that equals a running one shares its task and its options, at no charge.

        The usual errors are `PictureRefused` (the picture cannot be sent), `TaskFailed` (the
        vendor's engine refuses it, mostly since it finds no face; the units are returned),
        `UnitsExhausted` (the balance or `max_units`), `WaitTimeout` (only with `timeout`), and
        `ServiceUnavailable` (the vendor cannot be reached). All errors are a `PerfectError`;
        `perfect_async.errors` draws the others.
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
        """Submit one job, wait until the vendor accepts it, and return its `Task`.

        Costs `job.units`.

            task = await client.submit(Smile("selfie.jpg"), save_to="out/")
            print(task.id)                     # the units are charged now
            result = await task

        The client keeps the task alive to its end and saves its result if `save_to` is given, even
        if you drop the `Task`.

        - `job`: a `Smile`, `Avatar`, `Studio` or `Feature`.
        - `timeout`: how many seconds to wait until the vendor has accepted the job, which may have
          to wait for the key's request window. After that the call raises `WaitTimeout`, and a job
          that was not sent is cancelled.
        - `save_to`, `delete`, `give_up_after`, `engine_retries`, `buy_in_doubt`: as in `run`.

        Raises the error of a job that the vendor does not accept; `Task.result` raises later ones.
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
        """Return the `Task` of an id that came from elsewhere; no request.

            task = client.task(Smile, "task id of another process")
            result = await task                # the client keeps it alive from here on

        `feature`, `task_id` and `version` are as in `attach`. Nothing is sent, and the task is not
        kept alive, until you await the `Task` or read its events; then it does what `attach` does.
        Raises `ConfigurationError` for an unknown feature or an empty id.
        """
        name, known = settings.feature(feature, version), settings.task_id(task_id)
        session = self._ready()
        return Task(session, known, partial(session.track_task, name, known))

    async def status(
        self, feature: type[Job] | str, task_id: str, *, version: str = "v2.0"
    ) -> TaskStatus:
        """Ask the vendor once for the state of a task; one request.

            status = await client.status(Smile, task.id)
            print(status.status)               # running, success or error

        `feature`, `task_id` and `version` are as in `attach`. The client does not keep the task
        alive; `task` and `attach` do. A running task that nobody polls every 10 s is lost. Raises
        `TaskExpired` if the vendor does not know the task, `ConfigurationError` for an unknown
        feature or an empty id, and `ApiError` if the request fails.
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

        `source` is a source as in `Smile`, except a URL, which the vendor fetches itself; a
        `FileId` is returned unchanged. It must be a jpg, png or heic under 10 MiB whose long side
        has at most 4096 px, or an mp4 or mov under 100 MiB; a feature may have stricter limits. The
        vendor keeps the file for a while, and deletes it with any task that used it. Raises
        `PictureRefused`, and `ApiError` if a request fails. (contract: Register the file)
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
        """Wait for a task that exists already, of this or another process; nothing is charged.

            result = await client.attach(Smile, error.task_id)
            result = await client.attach("skin-analysis", task_id, version="v2.1")

        - `feature`: a class such as `Smile`, or the path of any feature as in `Feature`.
        - `task_id`: the vendor's id, such as `Task.id`, `WaitTimeout.task_id` or `Failed.task_id`.
        - `timeout`: how many seconds to wait; then the call raises `WaitTimeout` and the task goes
          on.
        - `version`: the version of a feature that is given by its path, as in `Feature`.

        A running task is kept alive from now on, for up to `Polling.give_up_after`; a finished one
        costs one request. Raises as `run` does, and `TaskExpired` if the vendor does not know the
        task.
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
        # Reported last, since a caller that is cancelled before has no result.
        self._executor.soon(job.report)
        return job.unwrap()

    async def _track(
        self,
        wait: Callable[[Callable[[], Awaitable[TrackedJob]], float | None], Awaitable[TrackedJob]],
        track: Callable[[], Awaitable[TrackedJob]],
        timeout: float | None,
    ) -> TrackedJob:
        """Return the job of `track` after `wait` has waited for it, for `timeout` s at most."""
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
            # The thread of an isolated client ended before the job, which may have a task.
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
        """Run many jobs and yield their outcomes as they end; costs the units of the jobs.

            async with client.batch([Smile(path) for path in paths], save_to="out/") as batch:
                async for outcome in batch:
                    print(outcome.job, outcome.files if outcome.ok else outcome.error)

        - `jobs`: any iterable or async iterable of jobs, also an endless one. It is read about 90
          jobs ahead and must not block the event loop.
        - `max_units`: the most units that the batch may be charged. A job that would exceed it
          fails with `CeilingReached` and is not sent.
        - `ordered`: yield outcomes in the order of `jobs` instead of as they end.
        - `save_to`: a folder in which each result is saved; a job is done when its files are on the
          disk, and `Done.files` names them. Names are those of `Result.save`, but no file is
          replaced: if other files have these names, 8 hex digits of the task come before the
          identity. If saving fails, the outcome is a `Failed` with `NotSaved`.
        - `delete`: delete the vendor's copies of the picture and the result once they are saved and
          no other job uses the same file.
        - `give_up_after`, `engine_retries`, `buy_in_doubt`: as in `run`, for each job.
        - `resume`: first go on with the jobs that the former process on this journal left, as
          `resume()` does, and then run `jobs`, as one batch with one progress. The former jobs keep
          their own options and do not count against `max_units`. A job that is also among `jobs`
          has two outcomes and one task.

        A slow consumer delays creations, but no polls. Leaving the block early stops new work;
        running tasks are kept alive to their ends. An error that `jobs` raises comes after the
        outcomes of the jobs before it. An item that is not a job raises `JobRefused` here if `jobs`
        is a list, tuple or set, and otherwise comes as a `Failed`. Raises `ConfigurationError` for
        options that cannot work, and for `resume=True` without a journal.
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

            async with Client(journal="jobs.db") as client, client.resume() as batch:
                async for outcome in batch:
                    print(outcome)

        - Running tasks are polled at once and kept alive; they fail with `TaskExpired` if their
          lease has ended.
        - Finished tasks whose outcome nobody has taken are fetched.
        - Jobs that were not created are created, or fail with `SourceLost` if their picture cannot
          be found any longer.
        - A creation without an answer fails with `SubmissionInDoubt`, once, unless it can be
          settled (`Client(sole_user=...)`). An equal job gets the same error until this process
          ends.

        Results are saved in the folders that the former process was given. On a new journal the
        batch is empty. Raises `ConfigurationError` without a journal.
        """
        self._must_have_journal()
        return self._batch(self._ready, self._executor.ask(self._ready().recovery.all))

    def _must_have_journal(self) -> None:
        if self._journal is None:
            raise ConfigurationError("resume needs a journal: pass Client(journal=...).")

    # The other calls.

    async def templates(
        self, feature: type[Job] | str = Avatar, *, version: str = "v2.0"
    ) -> AsyncIterator[Template]:
        """Yield the styles that `feature` offers; one request for 20 of them.

            async for template in client.templates(Studio):
                print(template.id, template.title)

        `feature` and `version` are as in `attach`; `Avatar` by default. Raises `ApiError` if a
        request fails. (contract: Other calls)
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
        """Ask for the account's balance of units; one request.

            print((await client.units()).balance)

        A balance of None is unknown, not zero. Raises `ApiError` if the request fails.
        """
        session = self._ready()
        response = await session.ask(account.units())
        return account.read_units(response, session.driver.clock.now())

    async def history(self) -> AsyncIterator[HistoryEntry]:
        """Yield the charges and credits of the account, the newest first.

            async for entry in client.history():
                print(entry.at, entry.action, entry.units, entry.target_id)

        Each 30 entries cost one request, which is sent when you reach them; leave the loop when you
        have seen enough. Raises `ApiError` if a request fails. (contract: History)
        """
        found = _paginate(self._ready().ask, history.history, history.read_entries)
        async with aclosing(found):
            async for entry in found:
                yield entry

    async def estimate(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> Estimate:
        """Estimate the units and seconds that `jobs` would take if they were run now.

            estimate = await client.estimate(jobs)
            print(estimate.units, estimate.seconds, estimate.measured)

        All of `jobs` is read and none is sent. Units follow the given price (`Feature(units=...)`),
        else the vendor's price list, else the documented prices. Seconds follow the request window,
        the durations of tasks seen so far, and the client's other jobs. Each 20 lines of the price
        list cost one request. Raises `JobRefused` for an item that is not a job, and for a
        `Feature` whose price is unknown, and `ConfigurationError` if `jobs` is no iterable.
        """
        prices: list[account.Price] = []
        # If the price list cannot be read, the documented prices are used.
        with suppress(BadAnswer, RequestRefused, ServiceUnavailable):
            pages = _paginate(self._ready().ask, account.feature_costs, account.read_feature_costs)
            prices = [listed async for listed in pages]
        costs: dict[str, float] = {}
        kinds: Counter[TaskKind] = Counter()
        count, documented = 0, False
        must_be_iterable(jobs)
        async for job in each(jobs):
            must_be_job(job)
            price = None
            if not isinstance(job, Feature) or not job.priced:
                price = account.price_of(prices, job.feature)
            if price is None:
                if not job.priced:
                    raise JobRefused(
                        f"the vendor's price list has no single price for {job.feature}: pass "
                        "units=."
                    )
                documented, units = True, float(job.units)
            else:
                units = price.amount * -(-job.outputs // price.per)
            costs[job.feature] = costs.get(job.feature, 0.0) + units
            kinds[JobSpec.kind_of(job)] += 1
            count += 1
        driver = self._ready().driver
        seconds, measured = self._executor.ask(lambda: driver.estimate(kinds))
        return Estimate(count, sum(costs.values()), costs, documented, seconds, measured)

    async def delete(self, task_id: str) -> None:
        """Delete a finished task at the vendor, with its results and its input files; one request.

            await client.delete(result.task_id)

        `task_id` is the vendor's id, as in `attach`. The task's input files are deleted even if
        another task uses them, its result URLs answer 404 at once, and no units are returned.
        Raises `RequestRefused` for a task that has not finished, `ConfigurationError` for an empty
        id, and `ApiError` if the request fails. (contract: Other calls)
        """
        await self._executor.call(partial(self._ready().delete, settings.task_id(task_id)))

    async def measure_lease(
        self, job: Job, gaps: Sequence[float] = GAPS
    ) -> AsyncIterator[LeaseBracket]:
        """Measure how long a task survives without a poll, on one task of `job`; costs `job.units`.

            job = Avatar("selfie.jpg", "male_studio_00", output_count=1)
            async for bracket in client.measure_lease(job):
                print(bracket.survived, bracket.lost)

        The task is created, left without a poll for each of `gaps` seconds in turn, and polled
        once after each, until it is lost or has ended; each poll yields a `LeaseBracket`. The last
        one is saved in the state folder for this key and host, and `Polling(lease="measured")` uses
        it. Use a job that runs for longer than all gaps together. Its units are charged even if
        the task is lost, and its result is not fetched. The task is not in the journal and does not
        count against `max_units`. Raises as `run` does.
        """
        session = self._ready()
        # An isolated client has its loop in another thread, so each step there is one call.
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
        """The receiver of the vendor's notifications, which end the wait for a task.

            await client.webhooks.deliver(body, headers)

        `perfect_async.webhooks.WebhookApp(client.webhooks)` is an endpoint for any ASGI framework.
        The receiver can be built into an app before the client is open; until then `deliver` raises
        `ConfigurationError`, so that the vendor sends the notification again. Raises
        `ConfigurationError` without a `webhook_secret`.
        """
        self._executor.check_process()
        if self._webhooks is not None:
            return self._webhooks
        if self._secrets is None:
            raise ConfigurationError(
                "Webhooks need their secret from the vendor's console: pass "
                f"Client(webhook_secret=...) or set {SECRET_VARIABLE}."
            )
        from perfect_async._client.notifications import WebhookReceiver  # noqa: PLC0415 - as below

        self._webhooks = WebhookReceiver(self._opened, self._secrets)
        return self._webhooks

    def statistics(self) -> Statistics:
        """Return counts of jobs, requests and units, and the state of the key's request window.

            print(client.statistics().running)

        No request is sent. See `Statistics` for the fields.
        """
        if self._session is None:
            return self._scheduler.statistics()
        session = self._session
        return self._executor.ask(lambda: session.driver.statistics(session.channel))

    def _ready(self) -> ClientSession:
        session = self._opened()
        session.ready()
        return session

    def _opened(self) -> ClientSession:
        """Return the session, also while the client closes and still waits for running tasks."""
        if self._session is None:
            raise ConfigurationError(
                "This client is not open: use `async with Client() as client:`."
            )
        return self._session


# Most programs use neither webhooks nor threads, so their modules are loaded when they are used.


def _read_secrets(given: list[str | Iterable[str] | None]) -> Secrets | None:
    """Return the secrets of `given`, and empty it, so that no frame holds a refused secret."""
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
    """Yield the entries of every page, one request each. Raises `BadAnswer` for an endless list."""
    token: str | None = None
    for _ in range(_MAX_PAGES):
        page, following = read(await ask(call(token)))
        for entry in page:
            yield entry
        if following is None or following == token:
            return
        token = following
    raise BadAnswer(f"the vendor's list has no end: it goes on after {_MAX_PAGES} pages.")
