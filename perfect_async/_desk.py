"""Where an open client takes jobs and questions in, and looks after what came of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Final, Protocol

from perfect_async import _wire
from perfect_async import events as ev
from perfect_async._driver import Driver
from perfect_async._failures import closed, kind
from perfect_async._pictures import inspect
from perfect_async._reply import same_code
from perfect_async._result import Done, Failed, Outcome, Result, ResultImage
from perfect_async._ticket import Lane, Ticket
from perfect_async.errors import (
    BadAnswer,
    ClientClosed,
    ConfigurationError,
    JobRefused,
    PerfectError,
    RequestRefused,
    TaskError,
    TaskExpired,
)
from perfect_async.models import Job, must_be_job

_RESULT_LIVES: Final = timedelta(seconds=7200)
"""How long a result URL lives (contract: The flow of one picture, 5)."""


class Cut(Protocol):
    """What reads jobs for a client, and must stop when it closes."""

    def cut(self) -> None:
        """Read no more."""
        ...


class Desk:
    """One open client's place at a driver; also the `Store` of its results.

    It belongs to the loop and the process in which it was made. `closed`: takes nothing more in.
    """

    def __init__(self, driver: Driver, lane: Lane) -> None:
        self.driver = driver
        self.lane = lane
        self.closed = False
        self.batches: set[Cut] = set()
        self._home = asyncio.get_running_loop(), os.getpid()

    def at_home(self) -> None:
        """Raises `ConfigurationError` in another loop or process than its own."""
        loop, process = self._home
        if os.getpid() != process:
            raise ConfigurationError(
                "This client was opened before a fork: open one in each process."
            )
        if running_loop() is not loop:
            raise ConfigurationError(
                "This client was opened in another event loop: open one in each."
            )

    def ready(self) -> None:
        """As `at_home`, and raises `ClientClosed`."""
        self.at_home()
        if self.closed:
            raise ClientClosed("This client is closed; its results are saved while it is open.")

    # Jobs.

    async def enter(self, job: Job, heard: Callable[[], None]) -> Ticket:
        """Look at the job's picture and take it in; raises `JobRefused` and `ClientClosed`."""
        must_be_job(job)
        self.ready()
        try:
            picture = await inspect(job.source, type(job))
            self.ready()
            return self.driver.enter(self.lane, job, picture, heard)
        except PerfectError:
            raise
        except Exception as exc:
            # A path of the user's own making may raise anything; it is one job's matter.
            raise JobRefused(f"the job cannot be looked at ({kind(exc)}).") from exc

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

    def cut_off(self) -> ClientClosed:
        """The error for jobs that will not be read or sent any more."""
        if self.closed or self.driver.ending:
            return closed(self.driver.failure)
        return ClientClosed("The reading of the jobs was cancelled from within their source.")

    def outcome(self, ticket: Ticket) -> Outcome:
        """How the job of `ticket`, which has ended, ended."""
        job = ticket.job
        if isinstance(ticket.ending, ev.Succeeded):
            result = Result(
                str(ticket.task_id),
                self._images(ticket.ending),
                feature=job.feature,
                stem=ticket.stem,
                identity=ticket.identity,
                store=self,
            )
            return Done(job, result, result.task_id, ticket.units, ticket.duration)
        if ticket.ending is None:
            raise AssertionError(ticket)
        error = ticket.ending
        task_id = error.task_id if isinstance(error, TaskError) else ticket.task_id
        return Failed(job, error, task_id, ticket.units, ticket.duration)

    # Questions, and what results ask for.

    async def ask(self, call: _wire.Call) -> _wire.Reply:
        """Send a question; raises what came instead of an answer."""
        self.ready()
        return await self.driver.ask(self.lane, call)

    def close(self) -> None:
        """Take nothing more in, and stop those who read jobs."""
        self.closed = True
        for batch in list(self.batches):
            batch.cut()

    async def refresh(self, feature: str, task_id: str) -> tuple[ResultImage, ...]:
        """Fresh URLs for a finished task's pictures; one request. `TaskExpired` after a day."""
        try:
            reply = await self.ask(_wire.poll(feature, task_id))
        except RequestRefused as exc:
            if not same_code(exc.code, "InvalidTaskId"):
                raise
            gone = "the vendor no longer knows the task; its pictures can no longer be asked for."
            raise TaskExpired(gone, task_id=task_id, request_id=exc.request_id) from None
        match _wire.polled(ev.Poll(0, 0), reply, task_id=task_id, units=0.0):
            case ev.Succeeded() as event:
                return self._images(event)
            case ev.EngineFailed(error=error) | ev.NoAnswer(error=error):
                raise error
            case _:
                raise BadAnswer("a task that had ended runs again.")

    def download(self, url: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The bytes behind a result URL, in pieces; costs no request of the window."""
        self.ready()
        return self.lane.transport.download(url)

    def now(self) -> datetime:
        """The time in UTC by the client's clock."""
        self.ready()
        return self.driver.now()

    def _images(self, event: ev.Succeeded) -> tuple[ResultImage, ...]:
        expires = self.driver.now() + _RESULT_LIVES
        return tuple(ResultImage(url, expires) for url in event.urls)


def running_loop() -> asyncio.AbstractEventLoop:
    """The loop that runs this. Raises `ConfigurationError` where none does (trio, plain code)."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError("perfect_async needs a running asyncio event loop.") from None
