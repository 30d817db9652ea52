"""The object you open: one key, one host, any number of callers."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, aclosing
from functools import partial
from types import TracebackType
from typing import Final, Self

import anyio

from perfect_async._api import account
from perfect_async._api.tasks import FEATURES
from perfect_async._api.urls import normalised_base
from perfect_async._client import settings
from perfect_async._client.batch import Batch
from perfect_async._client.lookups import estimate, paginate
from perfect_async._client.notifications import WebhookReceiver, secrets_of
from perfect_async._client.results import Result
from perfect_async._client.session import ClientSession
from perfect_async._client.threaded_batch import ThreadedBatch
from perfect_async._journal.journal import open_journal
from perfect_async._runtime.apart import ThreadExecutor
from perfect_async._runtime.executors import Executor, LoopExecutor, running_loop
from perfect_async._runtime.failures import warn_of
from perfect_async._runtime.handle import JobHandle
from perfect_async._runtime.keys import KEY_VARIABLE, driver_for, flaw
from perfect_async._runtime.spec import JobOptions
from perfect_async._transport.transport import HttpTransport, VendorTransport
from perfect_async.errors import ClientClosed, ConfigurationError, quoted, redacted
from perfect_async.models import Avatar, Job, Limits, Polling, Timeouts, Units
from perfect_async.reports import Estimate, Statistics, Template
from perfect_async.scheduler import Scheduler

BASE_URL: Final = "https://yce-api-01.makeupar.com"
URL_VARIABLE: Final = "YOUCAM_BASE_URL"
SECRET_VARIABLE: Final = "YOUCAM_WEBHOOK_SECRET"  # noqa: S105 - its name


class Client:
    """Perfect Corp's YouCam API on one key; asyncio only.

    `api_key`: the key, else the variable YOUCAM_API_KEY. `base_url`: the vendor's host, else
    YOUCAM_BASE_URL, else the documented one. `limits`, `polling`, `timeouts`: see there.
    `transport`: an `httpx.AsyncBaseTransport` that carries all traffic, uploads and downloads too
    (for a proxy or a private CA: `httpx.AsyncHTTPTransport(...)`); it is closed with the client.
    `drain`: seconds for which closing goes on polling what runs. `engine_retries`: how often a
    failure of the engine that may pass is tried again as a new task (the vendor returns the units
    of the failed one). `max_units`: the most that all jobs together may be charged; what would cost
    more fails with `CeilingReached`, unsent.

    `journal`: the path of a file (made where it is missing, one client at a time) that makes money
    safe: every creation is on the disk before it is sent, a job that was finished within a day is
    fetched again rather than bought again (`reuse`: True for all kinds of jobs, False for none,
    None for all but avatars), a creation whose answer never came is settled from the unit history,
    and after a crash `resume()` goes on where the last process was. It holds paths, URLs that are
    not signed, ids and times; no pictures, no key, no signed URLs. Opening raises `JournalError`
    for a file that cannot be used.

    `webhook_secret`: the secret of the webhook in the vendor's console (several while one is
    replaced), else YOUCAM_WEBHOOK_SECRET. Tasks then end as soon as the vendor says so, by `both`
    polls and notifications unless `Polling.completion` says otherwise.

    `isolated`: keep tasks alive in a thread of its own, for programs that block the event loop now
    and then: a loop that is blocked for longer than `Polling.lease` loses what is running, unless
    it is another one. All calls are the same, and any event loop of the process may make them;
    `jobs` of a batch are read in the loop that entered it, which is to leave it in the same task. A
    `transport` is used in that thread only. Isolated clients of one process share the thread.

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
    ) -> None:
        self._base_url = base_url or os.environ.get(URL_VARIABLE) or BASE_URL
        self._opening = self._closing = False
        self._session: ClientSession | None = None
        self._webhooks: WebhookReceiver | None = None
        key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
        problem = flaw(key)
        self._key = "" if problem is not None or key is None else key
        # Whatever shows the locals of this frame must not show the key.
        del api_key, key
        if problem is not None:
            raise ConfigurationError(problem)
        self._base_url = normalised_base(self._base_url if base_url is None else base_url)
        settings.kind("limits", limits, Limits)
        settings.kind("polling", polling, Polling)
        settings.kind("timeouts", timeouts, Timeouts)
        if transport is not None:
            settings.kind("transport", transport, HttpTransport)
        self._timeouts = timeouts
        self._given = transport
        self._drain = settings.number("drain", drain)
        if type(engine_retries) is not int or engine_retries < 0:
            raise ConfigurationError(
                f"engine_retries is {quoted(engine_retries)}; it must be a whole number from 0."
            )
        self._max_units = None if max_units is None else settings.units(max_units)
        self._journal = journal
        self._reuse = reuse
        given = webhook_secret or os.environ.get(SECRET_VARIABLE) or None
        self._secrets = secrets_of(given)
        del webhook_secret, given
        self._home: Executor = ThreadExecutor() if isolated else LoopExecutor()
        self._batch = ThreadedBatch if isolated else Batch
        # Settings that cannot work are refused here, not when the first picture waits.
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

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None and not session.closed:
            warnings.warn(f"{self!r} was never closed.", ResourceWarning, stacklevel=2, source=self)

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
        """Start keeping tasks alive; the same as entering `async with`. Gives the client itself."""
        running_loop()
        if self._session is not None and self._session.closed:
            raise ConfigurationError("This client was closed; make a new one.")
        if self._session is not None or self._opening:
            raise ConfigurationError("This client is open already.")
        self._opening = True
        try:
            await self._home.open()
            try:
                await self._home.call(self._open)
            except BaseException:
                await _shielded(self.close)
                await _shielded(self._home.close)
                raise
        finally:
            self._opening = False
        return self

    async def _open(self) -> None:
        transport = VendorTransport(
            self._base_url, self._key, timeouts=self._timeouts, transport=self._given
        )
        async with AsyncExitStack() as undo:
            undo.push_async_callback(_shielded, transport.aclose)
            journal = await open_journal(self._journal)
            undo.push_async_callback(_shielded, journal.writer.aclose)
            driver = driver_for(
                self._key, self._base_url, self._scheduler, self._given, journal.writer.past
            )
            channel = await driver.join(transport, self._timeouts, journal)
            undo.pop_all()
        most, reuse = self._max_units, self._reuse
        self._session = ClientSession(self._home, driver, channel, max_units=most, reuse=reuse)
        self._session.begin()

    async def close(self) -> None:
        """Create nothing more, keep what runs for up to `drain` seconds, and let go.

        The same on the way out of `async with`, whatever ended the block. Tasks that still run then
        are named in a warning of the logger `perfect_async`, with the units lost with them. Closing
        again does nothing. Raises `ConfigurationError` in another loop or process.
        """
        session = self._session
        if session is None or session.closed or self._closing:
            return
        self._home.check()
        self._closing = True
        # Shielded for the same reason as what it does there.
        with anyio.CancelScope(shield=True):
            try:
                await self._home.call(partial(self._close, session))
            except ClientClosed:
                # Its thread has ended already.
                session.closed = True
            finally:
                await self._home.close()

    async def _close(self, session: ClientSession) -> None:
        session.close()
        driver, channel = session.driver, session.channel
        channel.journal.closing = True
        # Shielded, since the units of what runs are spent; bounded, since somebody waits.
        with anyio.CancelScope(shield=True):
            driver.closing(channel)
            try:
                with anyio.move_on_after(self._drain):
                    await driver.drain(channel)
                    await session.drain()
            finally:
                session.left = True
                # Also where asyncio itself cancels us, which goes through every shield.
                warn_of(driver.left(channel), self._drain)
                try:
                    await driver.leave(channel)
                finally:
                    await channel.journal.writer.aclose()

    # The main job.

    async def run(self, job: Job, timeout: float | None = None) -> Result:
        """Run one job and wait for its pictures.

        `timeout` in seconds bounds the waiting, not the task: `WaitTimeout` carries the `task_id`
        of a task that goes on; a job that was not sent by then is not sent any more. The same holds
        for a caller that is cancelled. Costs `job.units`; raises what `Failed.error` may be (see
        `perfect_async.errors`).
        """
        session = self._ready()
        return await self._wait(session, lambda: session.enter(job, lambda: None), timeout)

    async def attach(
        self, feature: type[Job], task_id: str, timeout: float | None = None
    ) -> Result:
        """Wait for a task that exists: of this client, of another process, of a former one.

        `feature` is `Smile` or `Avatar`, `task_id` as in `WaitTimeout` or `Failed`. A task that
        runs is kept alive from now on, for up to `Polling.give_up_after`; one that is finished is
        fetched for one request. Nothing is created and nothing charged. Raises as `run` does;
        `TaskExpired` where the vendor does not know the task (any longer).
        """
        session = self._ready()
        if getattr(feature, "feature", None) not in FEATURES:
            raise ConfigurationError(f"{quoted(feature)} is no feature: pass Smile or Avatar.")
        known = settings.task_id(task_id)
        return await self._wait(
            session, lambda: session.attach(feature, known, lambda: None), timeout
        )

    async def _wait(
        self,
        session: ClientSession,
        enter: Callable[[], Awaitable[JobHandle]],
        timeout: float | None,
    ) -> Result:
        if timeout is not None:
            settings.number("timeout", timeout)
        handle = await self._home.call(partial(session.wait, enter, timeout))
        # Only now: before, whoever waits may be cancelled, and has not heard of it.
        self._home.soon(handle.entry.reported)
        return session.result(handle)

    def batch(
        self,
        jobs: Iterable[Job] | AsyncIterable[Job],
        *,
        max_units: float | None = None,
        ordered: bool = False,
        save_to: str | os.PathLike[str] | None = None,
        delete: bool = False,
    ) -> Batch:
        """Many jobs: an async context manager, then an async iterator of `Outcome`.

        `jobs` is read lazily, a few dozen ahead of what is created; it must not block the event
        loop. Outcomes come as they end, or in the order of `jobs` with `ordered`. A consumer that
        is slow stops the creating, not the polling; leaving the block early creates nothing more.
        What `jobs` itself raises comes after the outcomes of the jobs before.

        `max_units`: the most that the jobs may be charged; what would cost more fails with
        `CeilingReached`, unsent. `save_to`: a folder in which each result is saved as part of its
        job (names as in `Result.save`): a job is done when its files are on the disk, and
        `Done.files` names them; `Failed` with `NotSaved` says why they are not. `delete`: then the
        vendor's copies, the face and its result, are deleted, once no other job uses the same file.
        """
        options = JobOptions(settings.folder(save_to), delete)
        if delete and save_to is None:
            raise ConfigurationError("delete needs save_to: what is not saved is not deleted.")
        most = None if max_units is None else settings.units(max_units)
        return self._batch(self._ready, jobs, ordered=ordered, options=options, max_units=most)

    def resume(self) -> Batch:
        """What the former process on this journal left, as a batch: empty on a new journal.

        Tasks that were in flight are asked for at once and kept alive (`TaskExpired` where their
        lease had ended); finished ones that nobody was told of are fetched; a creation without an
        answer is settled from the unit history, or `SubmissionInDoubt`; what had not been created
        is created, or `SourceLost` where its picture is not known any longer. What was to be saved
        is saved where it was to be. Raises `ConfigurationError` without a journal.
        """
        if self._journal is None:
            raise ConfigurationError("resume needs a journal: Client(journal=...).")
        return self._batch(self._ready, self._home.ask(self._ready().recovery.all))

    # The other calls.

    async def templates(self, feature: type[Job] = Avatar) -> AsyncIterator[Template]:
        """The styles that `feature` offers; one request for 20 of them (contract: Other calls)."""
        found = paginate(
            self._ready().ask,
            partial(account.templates, feature.feature),
            account.read_templates,
        )
        async with aclosing(found):
            async for template in found:
                yield template

    async def units(self) -> Units:
        """The balance of units; one request. A balance of None is unknown, not zero."""
        return account.read_units(await self._ready().ask(account.units()))

    async def estimate(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> Estimate:
        """What `jobs` would cost, by the vendor's price list where it names the feature.

        Reads all of `jobs`, sends none of them; one request for 20 lines of the price list. Raises
        `JobRefused` for what is no job.
        """
        return await estimate(self._ready().ask, jobs)

    async def delete(self, task_id: str) -> None:
        """Delete a finished task at the vendor, with its pictures and its input files; one request.

        An input file that another task shares dies with it, result URLs answer 404 at once, and
        units are not returned (contract: Other calls). Raises `RequestRefused` for a task that is
        not finished, `ConfigurationError` for what is no task id.
        """
        await self._home.call(partial(self._ready().forget, settings.task_id(task_id)))

    @property
    def webhooks(self) -> WebhookReceiver:
        """Where the vendor's notifications go: `await client.webhooks.deliver(body, headers)`.

        `perfect_async.webhooks.WebhookApp(client.webhooks)` is an endpoint for any ASGI framework.
        Raises `ConfigurationError` without a `webhook_secret`, and where the client is not open.
        """
        if self._webhooks is not None:
            # Also while it closes: what runs is still waited for.
            return self._webhooks
        session = self._ready()
        if self._secrets is None:
            raise ConfigurationError(
                "Webhooks need their secret from the vendor's console: Client(webhook_secret=...) "
                f"or {SECRET_VARIABLE}."
            )
        self._webhooks = WebhookReceiver(session, self._secrets)
        return self._webhooks

    def statistics(self) -> Statistics:
        """How the key's scheduler is: jobs by state, the window, units; see `Statistics`."""
        if self._session is None:
            return self._scheduler.statistics()
        return self._home.ask(self._session.statistics)

    def _ready(self) -> ClientSession:
        if self._session is None:
            raise ConfigurationError(
                "This client is not open: use `async with Client() as client:`."
            )
        self._session.ready()
        return self._session


async def _shielded(undo: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope(shield=True):
        await undo()
