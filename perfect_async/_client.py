"""The object you open: one key, one host, any number of callers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Final, Self
from weakref import WeakValueDictionary

import anyio

from perfect_async import _names, _wire
from perfect_async import events as ev
from perfect_async._batch import Batch, each
from perfect_async._driver import LOG, Driver
from perfect_async._pictures import inspect
from perfect_async._result import Done, Failed, Outcome, Result, ResultImage
from perfect_async._ticket import Lane, Ticket
from perfect_async._transport import HttpTransport, Transport
from perfect_async._urls import normalised_base
from perfect_async.errors import (
    BadAnswer,
    ClientClosed,
    ConfigurationError,
    JobRefused,
    PerfectError,
    TaskError,
    WaitTimeout,
    quoted,
)
from perfect_async.models import (
    Avatar,
    Estimate,
    Job,
    Limits,
    Polling,
    Statistics,
    Template,
    Timeouts,
    Units,
)
from perfect_async.scheduler import Scheduler

BASE_URL: Final = "https://yce-api-01.makeupar.com"
KEY_VARIABLE: Final = "YOUCAM_API_KEY"
URL_VARIABLE: Final = "YOUCAM_BASE_URL"

_RESULT_LIVES: Final = timedelta(seconds=7200)
"""How long a result URL lives (contract: The flow of one picture, 5)."""

_open_drivers: WeakValueDictionary[tuple[str, str, int], Driver] = WeakValueDictionary()
"""Drivers by key (hashed), host and loop: the request window belongs to the key, not to a client."""


class Client:
    """Perfect Corp's YouCam API on one key; asyncio only.

    `api_key`: the key, else the variable YOUCAM_API_KEY. `base_url`: the vendor's host, else
    YOUCAM_BASE_URL, else the documented one. `limits`, `polling`, `timeouts`: see there. `transport`:
    an `httpx.AsyncBaseTransport` that carries all traffic, uploads and downloads too (for a proxy or a
    private CA: `httpx.AsyncHTTPTransport(...)`); it is closed with the client. `drain`: seconds for which
    closing goes on polling what runs. `engine_retries`: how often a failure of the engine that may pass is
    tried again as a new task (the vendor returns the units of the failed one).

    Use `async with Client() as client:`, or `await client.open()` and `await client.close()`, which may be
    in different tasks. One client serves any number of concurrent callers and batches in one event loop; a
    second one on the same key and host in that loop shares the first one's request ledger (and its
    `limits`, `polling` and `engine_retries`). Raises `ConfigurationError` for a key or setting that cannot
    work, and where it is used unopened, closed, opened twice, from another loop or after a fork.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        limits: Limits = Limits(),
        polling: Polling = Polling(),
        timeouts: Timeouts = Timeouts(),
        transport: HttpTransport | None = None,
        drain: float = 30.0,
        engine_retries: int = 1,
    ) -> None:
        self._key = _checked_key(os.environ.get(KEY_VARIABLE) if api_key is None else api_key)
        self._base_url = normalised_base(base_url or os.environ.get(URL_VARIABLE) or BASE_URL)
        self._timeouts = timeouts
        self._given = transport
        if not 0 <= drain < float("inf"):
            raise ConfigurationError(
                f"drain is {quoted(drain)}; it must be a number of seconds from 0."
            )
        if isinstance(engine_retries, bool) or engine_retries < 0:
            raise ConfigurationError(
                f"engine_retries is {quoted(engine_retries)}; it must be 0 or more."
            )
        self._drain = drain
        # Settings that cannot work are refused here, not when the first picture waits.
        self._scheduler = Scheduler(limits, polling, engine_retries=engine_retries)
        self._driver: Driver | None = None
        self._lane: Lane | None = None
        self._home: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._lane is not None else "unopened"
        return f"<Client {self._base_url} {state}>"

    def __del__(self) -> None:
        if getattr(self, "_lane", None) is not None and not self._closed:
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
        loop = _running_loop()
        if self._lane is not None:
            raise ConfigurationError(
                "This client was closed; make a new one."
                if self._closed
                else "This client is open already."
            )
        self._home = loop, os.getpid()
        who = hashlib.sha256(self._key.encode()).hexdigest(), self._base_url
        driver = _open_drivers.get((*who, id(loop)))
        if driver is None or not driver.alive:
            if any(other[:2] == who and found.alive for other, found in _open_drivers.items()):
                LOG.warning(
                    "This key is in use in another event loop of this process, with a request ledger of its "
                    "own: give each its share with Limits().split(n)."
                )
            driver = _open_drivers[(*who, id(loop))] = Driver(self._scheduler)
        self._driver = driver
        transport = Transport(
            self._base_url, self._key, timeouts=self._timeouts, transport=self._given
        )
        self._lane = await driver.join(transport, self._timeouts)
        return self

    async def close(self) -> None:
        """Create nothing more, keep what runs for up to `drain` seconds, and let go.

        The same on the way out of `async with`, whatever ended the block. Tasks that still run then are
        named in a warning of the logger `perfect_async`, with the units that are lost with them.
        """
        if self._closed or self._driver is None or self._lane is None:
            return
        self._at_home()
        self._closed = True
        driver, lane = self._driver, self._lane
        # Shielded, since the units of what runs are spent; bounded, since somebody waits for us to go.
        with anyio.CancelScope(shield=True):
            driver.closing(lane)
            with anyio.move_on_after(self._drain):
                await driver.drain(lane)
            left = [ticket for ticket in driver.left(lane) if ticket.task_id or ticket.submitting]
            if left:
                _warn_of(left, self._drain)
            await driver.leave(lane)

    # The main job.

    async def run(self, job: Job, timeout: float | None = None) -> Result:
        """Run one job and wait for its pictures.

        `timeout` in seconds bounds the waiting, not the task: `WaitTimeout` carries the `task_id` of a
        task that goes on; a job that was not sent by then is not sent any more. The same holds for a
        caller that is cancelled. Raises what `Failed.error` may be (see `perfect_async.errors`).
        """
        self._ready()
        ticket: Ticket | None = None
        try:
            with anyio.move_on_after(timeout):
                ticket = await self._enter(job)
                await ticket.done.wait()
        finally:
            if ticket is not None:
                self._withdraw(ticket)
        if ticket is None or ticket.ending is None:
            created = ticket is not None and ticket.submitting
            raise WaitTimeout(
                f"The job had not ended after {timeout:g} s.",
                task_id=None if ticket is None else ticket.task_id,
                units_at_stake=float(job.units) if created else 0.0,
            )
        return self._outcome(ticket).unwrap()

    def batch(self, jobs: Iterable[Job] | AsyncIterable[Job], *, ordered: bool = False) -> Batch:
        """Many jobs: an async context manager, then an async iterator of `Outcome`.

        `jobs` is read lazily, a few dozen ahead of what is created. Outcomes come as they end, or in the
        order of `jobs` with `ordered`. A consumer that is slow stops the creating, not the polling;
        leaving the block early creates nothing more. What `jobs` itself raises comes after the outcomes
        of the jobs before.
        """
        return Batch(self, jobs, ordered=ordered)

    # The other calls.

    async def templates(self, feature: type[Job] = Avatar) -> AsyncIterator[Template]:
        """The styles that `feature` offers, page after page; one request for 20 (contract: Other calls)."""
        token: str | None = None
        while True:
            reply = await self._ask(_wire.templates(feature.feature, token))
            page, following = _wire.read_templates(reply)
            for template in page:
                yield template
            if following is None or not page or following == token:
                return
            token = following

    async def units(self) -> Units:
        """The balance of units; one request. A balance of None is unknown, not zero."""
        return _wire.read_units(await self._ask(_wire.units()))

    async def estimate(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> Estimate:
        """What `jobs` would cost, by the vendor's price list where it names the feature.

        Reads all of `jobs`, sends none of them; one request a page of the price list.
        """
        prices: dict[str, _wire.Price] = {}
        token: str | None = None
        while True:
            reply = await self._ask(_wire.feature_costs(token))
            page, following = _wire.read_feature_costs(reply)
            prices.update((price.feature, price) for price in page)
            if following is None or not page or following == token:
                break
            token = following
        costs: dict[str, float] = {}
        count, documented = 0, False
        async for job in each(jobs):
            price = prices.get(job.feature)
            if price is None or price.unit != "result_image":
                documented, units = True, float(job.units)
            else:
                units = price.amount * -(-job.outputs // price.per)
            costs[job.feature] = costs.get(job.feature, 0.0) + units
            count += 1
        return Estimate(count, sum(costs.values()), costs, documented)

    async def delete(self, task_id: str) -> None:
        """Delete a finished task at the vendor, with its pictures and its input files; one request.

        An input file that another task shares dies with it, result URLs answer 404 at once, and units are
        not returned (contract: Other calls). Raises `RequestRefused` for a task that is not finished.
        """
        _wire.read_deleted(await self._ask(_wire.delete(task_id)))

    def statistics(self) -> Statistics:
        """How the key's scheduler is: jobs by state, the window, units; see `Statistics`."""
        return (
            self._driver.scheduler if self._driver is not None else self._scheduler
        ).statistics()

    # What a result asks of the client that it came from.

    async def refresh(self, feature: str, task_id: str) -> tuple[ResultImage, ...]:
        """Fresh URLs for the pictures of a finished task; one request."""
        reply = await self._ask(_wire.poll(feature, task_id))
        match _wire.polled(ev.Poll(0, 0), reply, task_id=task_id, units=0.0):
            case ev.Succeeded() as event:
                return self._images(event)
            case ev.Running():
                raise BadAnswer("a task that had ended runs again.")
            case other:
                error = getattr(other, "error", None)
                raise error if isinstance(error, PerfectError) else BadAnswer("no result.")

    def download(self, url: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes behind a result URL, in pieces; costs no request of the window."""
        return self._ready()[1].transport.download(url)

    def now(self) -> datetime:
        """The time in UTC by the client's clock."""
        return self._ready()[0].now()

    # Inside; the batch is of this house.

    def _ready(self) -> tuple[Driver, Lane]:
        if self._driver is None or self._lane is None:
            raise ConfigurationError(
                "This client is not open: use `async with Client() as client:`."
            )
        self._at_home()
        if self._closed:
            raise ClientClosed("This client is closed.")
        return self._driver, self._lane

    def _at_home(self) -> None:
        loop, process = self._home or (None, 0)
        if os.getpid() != process:
            raise ConfigurationError(
                "This client was opened before a fork: open one in each process."
            )
        if _running_loop() is not loop:
            raise ConfigurationError(
                "This client was opened in another event loop: open one in each."
            )

    async def _enter(self, job: Job, heard: Callable[[], None] = lambda: None) -> Ticket:
        """Look at the job's picture and take it in; raises `JobRefused`."""
        if not isinstance(job, Job):
            raise JobRefused(f"{quoted(type(job).__name__)} is no job: pass a Smile or an Avatar.")
        self._ready()
        picture = await inspect(job.source, type(job))
        driver, lane = self._ready()
        return driver.enter(lane, job, picture, heard)

    def _withdraw(self, ticket: Ticket) -> None:
        if self._driver is not None:
            self._driver.withdraw(ticket)

    def _start(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run `work` in the driver's group, in the context of the caller."""
        self._ready()[0].start(work)

    def _appetite(self) -> int:
        return self._ready()[0].scheduler.appetite()

    def _eta(self, jobs: int) -> float | None:
        return self._driver.scheduler.eta(jobs) if self._driver is not None else None

    def _outcome(self, ticket: Ticket) -> Outcome:
        job = ticket.job
        match ticket.ending:
            case ev.Succeeded() as event:
                result = Result(
                    str(ticket.task_id),
                    self._images(event),
                    feature=job.feature,
                    stem=_names.stem(job),
                    identity=_names.identity(job, ticket.picture),
                    store=self,
                )
                return Done(job, result, result.task_id, ticket.units, ticket.duration)
            case PerfectError() as error:
                task_id = error.task_id if isinstance(error, TaskError) else ticket.task_id
                return Failed(job, error, task_id, ticket.units, ticket.duration)
            case None:
                raise AssertionError(ticket)

    def _images(self, event: ev.Succeeded) -> tuple[ResultImage, ...]:
        expires = (self._driver.now() if self._driver is not None else datetime.min) + _RESULT_LIVES
        return tuple(ResultImage(url, expires) for url in event.urls)

    async def _ask(self, call: _wire.Call) -> _wire.Reply:
        driver, lane = self._ready()
        return await driver.ask(lane, call)


def _checked_key(key: str | None) -> str:
    """The key, if it can be one. Nothing of it is quoted: an error ends up in logs."""
    if not key:
        problem = "is missing" if key is None else "is empty"
    elif not key.isascii() or not key.isprintable() or " " in key:
        problem = "holds white space, control or non-ASCII characters"
        if key.lower().startswith("bearer "):
            problem = 'starts with "Bearer ", which the client adds itself'
    else:
        return key
    raise ConfigurationError(f"The API key {problem}: set {KEY_VARIABLE} or pass api_key.")


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError("perfect_async needs a running asyncio event loop.") from None


def _warn_of(left: list[Ticket], drain: float) -> None:
    units = sum(float(ticket.job.units) for ticket in left)
    named = ", ".join(quoted(ticket.task_id or "(creation under way)") for ticket in left[:20])
    more = f" and {len(left) - 20} more" if len(left) > 20 else ""
    LOG.warning(
        "Closing after %g s of draining: %d tasks still run and are no longer kept alive, %g units are at stake: %s%s",
        drain,
        len(left),
        units,
        named,
        more,
    )
