"""The object you open: one key, one host, any number of callers."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Final, Self

import anyio

from perfect_async import _wire
from perfect_async._batch import Batch
from perfect_async._desk import Desk, running_loop
from perfect_async._failures import warn_of
from perfect_async._keys import KEY_VARIABLE, driver_for, flaw
from perfect_async._lookups import estimated, pages
from perfect_async._result import Result
from perfect_async._ticket import Ticket
from perfect_async._transport import HttpTransport, Transport
from perfect_async._urls import normalised_base, redacted
from perfect_async.errors import ConfigurationError, WaitTimeout, quoted
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
URL_VARIABLE: Final = "YOUCAM_BASE_URL"


class Client:
    """Perfect Corp's YouCam API on one key; asyncio only.

    `api_key`: the key, else the variable YOUCAM_API_KEY. `base_url`: the vendor's host, else
    YOUCAM_BASE_URL, else the documented one. `limits`, `polling`, `timeouts`: see there.
    `transport`: an `httpx.AsyncBaseTransport` that carries all traffic, uploads and downloads too
    (for a proxy or a private CA: `httpx.AsyncHTTPTransport(...)`); it is closed with the client.
    `drain`: seconds for which closing goes on polling what runs. `engine_retries`: how often a
    failure of the engine that may pass is tried again as a new task (the vendor returns the units
    of the failed one).

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
    ) -> None:
        self._base_url = base_url or os.environ.get(URL_VARIABLE) or BASE_URL
        self._opening = False
        self._desk: Desk | None = None
        key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
        problem = flaw(key)
        self._key = "" if problem is not None or key is None else key
        # Whatever shows the locals of this frame must not show the key.
        del api_key, key
        if problem is not None:
            raise ConfigurationError(problem)
        self._base_url = normalised_base(self._base_url if base_url is None else base_url)
        _kind("limits", limits, Limits)
        _kind("polling", polling, Polling)
        _kind("timeouts", timeouts, Timeouts)
        if transport is not None:
            _kind("transport", transport, HttpTransport)
        self._timeouts = timeouts
        self._given = transport
        self._drain = _number("drain", drain)
        if type(engine_retries) is not int or engine_retries < 0:
            raise ConfigurationError(
                f"engine_retries is {quoted(engine_retries)}; it must be a whole number from 0."
            )
        # Settings that cannot work are refused here, not when the first picture waits.
        self._scheduler = Scheduler(limits, polling, engine_retries=engine_retries)

    def __repr__(self) -> str:
        state = "unopened" if self._desk is None else "closed" if self._desk.closed else "open"
        return f"<Client {redacted(self._base_url)} {state}>"

    def __del__(self) -> None:
        desk = getattr(self, "_desk", None)
        if desk is not None and not desk.closed:
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
        if self._desk is not None and self._desk.closed:
            raise ConfigurationError("This client was closed; make a new one.")
        if self._desk is not None or self._opening:
            raise ConfigurationError("This client is open already.")
        self._opening = True
        try:
            transport = Transport(
                self._base_url, self._key, timeouts=self._timeouts, transport=self._given
            )
            driver = driver_for(self._key, self._base_url, self._scheduler, self._given)
            try:
                self._desk = Desk(driver, await driver.join(transport, self._timeouts))
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await transport.aclose()
                raise
        finally:
            self._opening = False
        return self

    async def close(self) -> None:
        """Create nothing more, keep what runs for up to `drain` seconds, and let go.

        The same on the way out of `async with`, whatever ended the block. Tasks that still run then
        are named in a warning of the logger `perfect_async`, with the units lost with them. Closing
        again does nothing. Raises `ConfigurationError` in another loop or process.
        """
        desk = self._desk
        if desk is None or desk.closed:
            return
        desk.at_home()
        desk.close()
        driver, lane = desk.driver, desk.lane
        # Shielded, since the units of what runs are spent; bounded, since somebody waits.
        with anyio.CancelScope(shield=True):
            driver.closing(lane)
            try:
                with anyio.move_on_after(self._drain):
                    await driver.drain(lane)
            finally:
                # Also where asyncio itself cancels us, which goes through every shield.
                warn_of(driver.left(lane), self._drain)
                await driver.leave(lane)

    # The main job.

    async def run(self, job: Job, timeout: float | None = None) -> Result:
        """Run one job and wait for its pictures.

        `timeout` in seconds bounds the waiting, not the task: `WaitTimeout` carries the `task_id`
        of a task that goes on; a job that was not sent by then is not sent any more. The same holds
        for a caller that is cancelled. Costs `job.units`; raises what `Failed.error` may be (see
        `perfect_async.errors`).
        """
        desk = self._ready()
        if timeout is not None:
            _number("timeout", timeout)
        ticket: Ticket | None = None
        try:
            with anyio.move_on_after(timeout):
                ticket = await desk.enter(job, lambda: None)
                await ticket.done.wait()
        finally:
            if ticket is not None:
                desk.withdraw(ticket)
        if ticket is None or ticket.ending is None:
            raise WaitTimeout(
                f"The job had not ended after {timeout:g} s.",
                task_id=None if ticket is None else ticket.task_id,
                units_at_stake=0.0 if ticket is None else ticket.at_stake,
            )
        return desk.outcome(ticket).unwrap()

    def batch(self, jobs: Iterable[Job] | AsyncIterable[Job], *, ordered: bool = False) -> Batch:
        """Many jobs: an async context manager, then an async iterator of `Outcome`.

        `jobs` is read lazily, a few dozen ahead of what is created; it must not block the event
        loop. Outcomes come as they end, or in the order of `jobs` with `ordered`. A consumer that
        is slow stops the creating, not the polling; leaving the block early creates nothing more.
        What `jobs` itself raises comes after the outcomes of the jobs before.
        """
        return Batch(self._ready, jobs, ordered=ordered)

    # The other calls.

    async def templates(self, feature: type[Job] = Avatar) -> AsyncIterator[Template]:
        """The styles that `feature` offers; one request for 20 of them (contract: Other calls)."""
        found = pages(
            self._ready().ask, partial(_wire.templates, feature.feature), _wire.read_templates
        )
        async with aclosing(found):
            async for template in found:
                yield template

    async def units(self) -> Units:
        """The balance of units; one request. A balance of None is unknown, not zero."""
        return _wire.read_units(await self._ready().ask(_wire.units()))

    async def estimate(self, jobs: Iterable[Job] | AsyncIterable[Job]) -> Estimate:
        """What `jobs` would cost, by the vendor's price list where it names the feature.

        Reads all of `jobs`, sends none of them; one request for 20 lines of the price list. Raises
        `JobRefused` for what is no job.
        """
        return await estimated(self._ready().ask, jobs)

    async def delete(self, task_id: str) -> None:
        """Delete a finished task at the vendor, with its pictures and its input files; one request.

        An input file that another task shares dies with it, result URLs answer 404 at once, and
        units are not returned (contract: Other calls). Raises `RequestRefused` for a task that is
        not finished, `ConfigurationError` for what is no task id.
        """
        _wire.read_deleted(await self._ready().ask(_wire.delete(_task_id(task_id))))

    def statistics(self) -> Statistics:
        """How the key's scheduler is: jobs by state, the window, units; see `Statistics`."""
        return (self._scheduler if self._desk is None else self._desk.driver.scheduler).statistics()

    def _ready(self) -> Desk:
        if self._desk is None:
            raise ConfigurationError(
                "This client is not open: use `async with Client() as client:`."
            )
        self._desk.ready()
        return self._desk


def _kind(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ConfigurationError(f"{name} is {quoted(value)}; it must be of type {kind.__name__}.")


def _task_id(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigurationError(f"{quoted(value)} is no task id.")
    return value


def _number(name: str, value: float) -> float:
    if type(value) not in {int, float} or not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} is {quoted(value)}; it must be seconds from 0.")
    return float(value)
