"""Performs what the scheduler asks for, feeds back what came of it, and keeps the clock.

One driver serves one key on one host in one event loop, however many clients are open on them: the
request window is the key's. It runs in a host task of its own, so that whoever asked for a picture
may be cancelled, slow or gone: from `Accepted` on the task is kept alive all the same. Nothing is
decided here.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, assert_never

import anyio
import attrs
from anyio.abc import TaskGroup

from perfect_async import _names, _wire
from perfect_async import events as ev
from perfect_async._failures import LOG, closed, given_up, kind, setback
from perfect_async._pictures import Picture
from perfect_async._ticket import Lane, Ticket
from perfect_async._transport import Transport
from perfect_async._urls import picture_url
from perfect_async.errors import PerfectError, ServiceUnavailable, twin
from perfect_async.models import FileId, Job, Timeouts
from perfect_async.scheduler import NEVER, Scheduler

_MICRO: Final = 1_000_000


@attrs.define(eq=False)
class _Question:
    lane: Lane
    call: _wire.Call
    reply: _wire.Reply | None = None
    error: ev.Succeeded | PerfectError | None = None
    done: anyio.Event = attrs.field(factory=anyio.Event)


class Driver:
    """The hands of one scheduler, at work from when the first client joins until the last leaves.

    `who` names the key (hashed) and the host that it serves; `failure` is why it ended by itself.
    """

    def __init__(self, scheduler: Scheduler, who: tuple[str, str]) -> None:
        self.scheduler = scheduler
        self.who = who
        self._allowed = scheduler.statistics().window_limit
        self._warned = -math.inf
        self.failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._began_at = datetime.now(UTC)
        self._refs = itertools.count(1)
        self._numbers = itertools.count(1)
        self._lanes: set[Lane] = set()
        self._over = anyio.Event()
        self._tickets: dict[int, Ticket] = {}
        self._questions: dict[int, _Question] = {}
        self._news = anyio.Event()
        self._scope = anyio.CancelScope()
        self._host: asyncio.Task[None] | None = None
        self._group: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Driver {len(self._tickets)} jobs {self.scheduler!r}>"

    # The clock.

    def now(self) -> datetime:
        """The time in UTC, moving with the loop's clock."""
        return self._began_at + timedelta(seconds=self._loop.time() - self._began)

    def _micros(self) -> int:
        return round((self._loop.time() - self._began) * _MICRO)

    # Opening and closing.

    @property
    def alive(self) -> bool:
        """Whether it performs anything; False from when the last client has left."""
        return bool(self._lanes) and not self._over.is_set() and not self._loop.is_closed()

    @property
    def _tasks(self) -> TaskGroup:
        if self._group is None:
            raise AssertionError(self)
        return self._group

    @property
    def ending(self) -> bool:
        """Whether the host task is being stopped, from outside or by a failure in it."""
        group = self._group
        return group is None or group.cancel_scope.cancel_called or self._scope.cancel_called

    async def _run(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as self._group:
                    with self._blaming():
                        await self._drive()
        except BaseException as exc:
            self.failure = self.failure or exc
            if not isinstance(exc, asyncio.CancelledError):
                # No traceback: it may hold what no log may. The waiters get it as their cause.
                LOG.error("The driver failed: %s. Its tasks are no longer kept alive.", kind(exc))
            if not isinstance(exc, Exception):
                raise
        finally:
            self._over.set()
            self._give_up()

    @contextmanager
    def _blaming(self) -> Generator[None]:
        """Note what fails in here at once: those whom it cancels tell it before the group ends."""
        try:
            yield
        except Exception as exc:
            self.failure = self.failure or exc
            raise

    def _give_up(self) -> None:
        """Nobody hangs: whoever still waits is told, and why."""
        tickets, questions = list(self._tickets.values()), list(self._questions.values())
        self._tickets.clear()
        self._questions.clear()
        for ticket in tickets:
            error = given_up(ticket, self.failure)
            units = 0.0 if ticket.task_id is None else ticket.at_stake
            ticket.end(error, units, self._loop.time())
        for question in questions:
            question.error = closed(self.failure)
            question.done.set()

    # What the door asks for.

    async def join(self, transport: Transport, timeouts: Timeouts) -> Lane:
        """A lane for one more client; the first one starts the host task."""
        lane = Lane(next(self._numbers), transport, timeouts)
        self._lanes.add(lane)
        if self._host is None:
            # The one task that no task group owns: a group that a client entered in one task could
            # not be left in another (fixtures, notebooks, containers). `leave` is its closing
            # brace, and it ends with the loop.
            self._host = self._loop.create_task(self._run(), name="perfect_async driver")
            self._host.add_done_callback(lambda _: self._over.set())
        try:
            # One turn of the loop, whoever of us runs first.
            while self._group is None and not self._over.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0)
        except BaseException:
            self._lanes.discard(lane)
            if not self._lanes:
                self._scope.cancel()
            raise
        self._check()
        return lane

    async def leave(self, lane: Lane) -> None:
        """Let go of what is left in `lane`; the last one ends the host task and waits for it."""
        try:
            if self.alive:
                self._tell(ev.Dropped(lane.number))
                # What that ends is settled at the driver's next turn, without a wait in between.
                while self.left(lane) and self.alive:  # noqa: ASYNC110
                    await asyncio.sleep(0)
        finally:
            self._lanes.discard(lane)
            if not self._lanes:
                self._scope.cancel()
            try:
                if not self._lanes:
                    await self._over.wait()
            finally:
                await lane.transport.aclose()

    def start(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run `work` beside the commands, in the context of the caller; its failing is its own."""
        self._check()
        self._tasks.start_soon(self._beside, work)

    async def _beside(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            # Code of the user's that is cancelled on its own takes no task along.
            if self.ending:
                raise
        except Exception as exc:  # noqa: BLE001 - nor does a mistake in it
            LOG.error("What ran beside the driver failed: %s.", kind(exc))

    def enter(
        self,
        lane: Lane,
        job: Job,
        picture: Picture | None,
        heard: Callable[[], None],
    ) -> Ticket:
        """Take a job in; its end comes to the ticket, whoever waits. Raises `JobRefused`."""
        self._check()
        # Named now: what cannot be named is refused before anything is bought for it.
        stem, identity = _names.stem(job), _names.identity(job, picture)
        ticket = Ticket(next(self._refs), job, lane, picture, stem, identity, heard)
        if picture is None:
            source = job.source
            ticket.source = source if isinstance(source, FileId) else picture_url(str(source))
        self._tell(ticket.wanted)
        self._tickets[ticket.ref] = ticket
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody waits for `ticket`: it is not created; what was created is kept to its end."""
        if ticket.ending is None and self.alive:
            self._tell(ev.Withdrawn(ticket.ref))

    async def ask(self, lane: Lane, call: _wire.Call) -> _wire.Reply:
        """Send a question when the window has room. Raises what came instead of an answer."""
        self._check()
        ref, question = next(self._refs), _Question(lane, call)
        # What changes something at the vendor is not done again where it may have been done.
        self._tell(ev.Asked(ref, lane.number, repeats=call.method == "GET"))
        self._questions[ref] = question
        try:
            await question.done.wait()
        except BaseException:
            # Nobody waits for the answer: what has not left does not leave.
            if self._questions.pop(ref, None) is not None and self.alive:
                self._tell(ev.Withdrawn(ref))
            raise
        if question.reply is None:
            wrong = AssertionError(question)
            raise twin(question.error) if isinstance(question.error, PerfectError) else wrong
        return question.reply

    def closing(self, lane: Lane) -> None:
        """Create nothing more for `lane`."""
        if self.alive:
            self._tell(ev.Closed(lane.number))

    async def drain(self, lane: Lane) -> None:
        """Wait until every job of `lane` has ended."""
        while tickets := self.left(lane):
            await tickets[0].done.wait()

    def left(self, lane: Lane) -> list[Ticket]:
        """The jobs of `lane` that have not ended."""
        return [ticket for ticket in self._tickets.values() if ticket.lane is lane]

    def _check(self) -> None:
        if self.failure is not None or not self.alive:
            raise closed(self.failure)

    # The loop.

    def _tell(self, event: ev.Event) -> None:
        self.scheduler.receive(event, self._micros())
        self._news.set()

    async def _drive(self) -> None:
        while True:
            now = self._micros()
            command = self.scheduler.due(now)
            if command is not None:
                self.scheduler.receive(ev.Issued(command), now)
                self._perform(command)
                continue
            wake = self.scheduler.wakes_at(now)
            self._news = anyio.Event()
            if wake == NEVER:
                await self._news.wait()
            else:
                with anyio.CancelScope(deadline=self._began + wake / _MICRO):
                    await self._news.wait()

    def _perform(self, command: ev.Command) -> None:
        # Whom a command is about is looked up now: by the time it is on its way a hedged answer may
        # have ended them.
        match command:
            case ev.Settle():
                self._settle(command)
            case ev.Register():
                tickets = [self._tickets[ref] for ref in command.refs]
                self._start(command, partial(self._register, command, tickets))
            case ev.Upload():
                self._start(command, partial(self._upload, command, self._tickets[command.ref]))
            case ev.Submit():
                ticket = self._tickets[command.ref]
                ticket.creating(self._loop.time())
                self._start(command, partial(self._submit, command, ticket))
            case ev.Poll():
                ticket = self._tickets[command.ref]
                self._start(command, partial(self._poll, command, ticket, str(ticket.task_id)))
            case ev.Ask():
                self._start(command, partial(self._answer, command, self._questions[command.ref]))
            case _:
                assert_never(command)

    def _start(
        self, command: ev.Request | ev.Upload, work: Callable[[], Awaitable[ev.Answer]]
    ) -> None:
        name = f"perfect_async {type(command).__name__} {command.number}"
        self._tasks.start_soon(self._do, command, work, name=name)

    def _settle(self, command: ev.Settle) -> None:
        if (question := self._questions.pop(command.ref, None)) is not None:
            question.error = command.ending
            question.done.set()
        elif (ticket := self._tickets.pop(command.ref, None)) is not None:
            # Else it was a question that nobody waits for any longer.
            ticket.end(command.ending, command.units, self._loop.time())

    # One command each.

    async def _do(
        self, command: ev.Request | ev.Upload, work: Callable[[], Awaitable[ev.Answer]]
    ) -> None:
        try:
            event = await work()
        except asyncio.CancelledError:
            if self.ending:
                raise
            # Not ours: something inside of the transport was cancelled, and its answer is lost.
            event = ev.NoAnswer(command, ServiceUnavailable("the transport cancelled the request."))
        except Exception as exc:  # noqa: BLE001 - a transport is the user's
            event = setback(command, exc)
        if isinstance(command, ev.Submit) and not isinstance(event, ev.Accepted | ev.NoAnswer):
            ticket = self._tickets.get(command.ref)
            if ticket is not None:
                ticket.refused()
        with self._blaming():
            self._tell(event)
        if isinstance(event, ev.Limited):
            self._warn()

    def _warn(self) -> None:
        """Say once in five minutes that somebody else uses the key."""
        statistics, now = self.scheduler.statistics(), self._loop.time()
        if statistics.window_limit < self._allowed and now >= self._warned + 300:
            self._warned = now
            LOG.warning(
                "The key is used elsewhere: the vendor refuses requests that our own account "
                "allows. Fewer tasks are created for a while; give each user of the key its share "
                "with Limits().split(n)."
            )

    async def _register(self, command: ev.Register, tickets: list[Ticket]) -> ev.Answer:
        facts = [ticket.picture.facts for ticket in tickets if ticket.picture is not None]
        reply = await self._call(tickets[0].lane, _wire.register(facts, command.feature))
        event = _wire.registered(command, reply)
        if isinstance(event, ev.Registered):
            for ticket, grant in zip(tickets, event.grants, strict=True):
                ticket.grant, ticket.source = grant, FileId(grant.file_id)
        return event

    async def _upload(self, command: ev.Upload, ticket: Ticket) -> ev.Answer:
        if ticket.grant is None or ticket.picture is None:
            raise AssertionError(ticket)
        await ticket.lane.transport.upload(ticket.grant, ticket.picture.chunks)
        return ev.Uploaded(command)

    async def _submit(self, command: ev.Submit, ticket: Ticket) -> ev.Answer:
        if ticket.source is None:
            raise AssertionError(ticket)
        reply = await self._call(ticket.lane, _wire.submit(ticket.job, ticket.source))
        event = _wire.submitted(command, reply)
        if isinstance(event, ev.Accepted):
            ticket.created(event.task_id)
        return event

    async def _poll(self, command: ev.Poll, ticket: Ticket, task_id: str) -> ev.Answer:
        reply = await self._call(ticket.lane, _wire.poll(ticket.job.feature, task_id))
        event = _wire.polled(command, reply, task_id=task_id, units=float(ticket.job.units))
        if isinstance(event, ev.EngineFailed):
            ticket.failed(task_id)
        return event

    async def _answer(self, command: ev.Ask, question: _Question) -> ev.Answer:
        reply = await self._call(question.lane, question.call)
        event = _wire.asked(command, reply)
        if isinstance(event, ev.Answered):
            question.reply = reply
            self._questions.pop(command.ref, None)
            question.done.set()
        return event

    @staticmethod
    async def _call(lane: Lane, call: _wire.Call) -> _wire.Reply:
        return await lane.transport.call(call, within=lane.timeouts.request)
