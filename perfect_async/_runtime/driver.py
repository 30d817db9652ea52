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

from perfect_async import events as ev
from perfect_async._api import tasks
from perfect_async._journal.journal import JobJournal
from perfect_async._log import LOG, type_name
from perfect_async._runtime import commands
from perfect_async._runtime.clock import LoopWatchdog
from perfect_async._runtime.commands import Submitter, failure_event
from perfect_async._runtime.failures import closed
from perfect_async._runtime.handle import Channel, JobHandle
from perfect_async._runtime.registry import JobRegistry
from perfect_async._time import SECOND, TtlSet
from perfect_async._transport.transport import VendorTransport
from perfect_async.errors import PerfectError, ServiceUnavailable, twin
from perfect_async.models import Timeouts
from perfect_async.scheduler import NEVER, Scheduler

_MICRO: Final = 1_000_000
_EARLY_FOR: Final = 600 * SECOND
"""A notification may overtake the answer to its task's creation; later than this, that answer is in
doubt and nobody waits for the task.
"""


@attrs.define(eq=False)
class _Question:
    channel: Channel
    call: tasks.Request
    reply: tasks.Response | None = None
    error: ev.Succeeded | PerfectError | None = None
    done: anyio.Event = attrs.field(factory=anyio.Event)


class Driver:
    """The hands of one scheduler, at work from when the first client joins until the last leaves.

    `who` names the key (hashed) and the host that it serves; `failure` is why it ended by itself;
    `registry` takes jobs in.
    """

    def __init__(self, scheduler: Scheduler, who: tuple[str, str]) -> None:
        self.scheduler = scheduler
        self.who = who
        self._allowed = scheduler.statistics().window_limit
        self._warned = -math.inf
        self.failure: BaseException | None = None
        self.watch = LoopWatchdog()
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._began_at = datetime.now(UTC)
        self._refs = itertools.count(1)
        self._numbers = itertools.count(1)
        self._channels: set[Channel] = set()
        self._over = anyio.Event()
        self.submitter = Submitter(partial(self.ask, urgent=True, lasting=True), self)
        self.registry = JobRegistry(self._refs, self._tell, self.start, self.submitter, self)
        self._early = TtlSet(_EARLY_FOR)
        self._questions: dict[int, _Question] = {}
        self._news = anyio.Event()
        self._scope = anyio.CancelScope()
        self._host: asyncio.Task[None] | None = None
        self._group: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Driver {len(self.registry)} jobs {self.scheduler!r}>"

    # The clock.

    def now(self) -> datetime:
        """The time in UTC, moving with the loop's clock."""
        return self._began_at + timedelta(seconds=self._loop.time() - self._began)

    def utc(self) -> int:
        """UTC microseconds, moving with the loop's clock."""
        return round(self._began_at.timestamp() * _MICRO) + self._micros()

    def seconds(self) -> float:
        """The loop's time."""
        return self._loop.time()

    def past(self) -> tuple[tuple[int, int], ...]:
        """What of the window is spent: (age in microseconds, requests), the oldest first."""
        return self.scheduler.past(self._micros())

    def _micros(self) -> int:
        return round((self._loop.time() - self._began) * _MICRO)

    # Opening and closing.

    @property
    def alive(self) -> bool:
        """Whether it performs anything; False from when the last client has left."""
        return bool(self._channels) and not self._over.is_set() and not self._loop.is_closed()

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
                LOG.error(
                    "The driver failed: %s. Its tasks are no longer kept alive.", type_name(exc)
                )
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
        self.registry.give_up(self.failure)
        questions = list(self._questions.values())
        self._questions.clear()
        for question in questions:
            question.error = closed(self.failure)
            question.done.set()

    # What the door asks for.

    async def join(
        self, transport: VendorTransport, timeouts: Timeouts, journal: JobJournal
    ) -> Channel:
        """A lane for one more client; the first one starts the host task."""
        channel = Channel(next(self._numbers), transport, timeouts, journal)
        self._channels.add(channel)
        self.registry.alone = any(each.journal.writer.persistent for each in self._channels)
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
            self._channels.discard(channel)
            if not self._channels:
                self._scope.cancel()
            raise
        self.check()
        return channel

    async def leave(self, channel: Channel) -> None:
        """Let go of what is left in `channel`; the last one ends the host task and waits for it."""
        try:
            if self.alive:
                self.registry.drop(channel)
                self._tell(ev.Dropped(channel.number))
                # What that ends is settled at the driver's next turn, without a wait in between.
                while self.left(channel) and self.alive:  # noqa: ASYNC110
                    await asyncio.sleep(0)
        finally:
            self._channels.discard(channel)
            self.registry.alone = any(each.journal.writer.persistent for each in self._channels)
            if not self._channels:
                self._scope.cancel()
            try:
                if not self._channels:
                    await self._over.wait()
            finally:
                await channel.transport.aclose()

    def start(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run `work` beside the commands, in the context of the caller; its failing is its own."""
        self.check()
        self._tasks.start_soon(self._beside, work)

    async def _beside(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        try:
            await work()
        except asyncio.CancelledError:
            # Code of the user's that is cancelled on its own takes no task along.
            if self.ending:
                raise
        except Exception as exc:  # noqa: BLE001 - nor does a mistake in it
            LOG.error("What ran beside the driver failed: %s.", type_name(exc))

    def ceiling(self, most: float) -> int:
        """A purse whose jobs may be charged `most` units together; empty it at the end."""
        ceiling = next(self._numbers)
        self._tell(ev.Opened(ceiling, most))
        return ceiling

    def empty(self, ceiling: int) -> None:
        """No job of `ceiling` comes any more."""
        if self.alive:
            self._tell(ev.Emptied(ceiling))

    def check(self, channel: Channel | None = None) -> None:
        """Raises `ClientClosed` where nothing is performed any more (for `channel`)."""
        left = channel is not None and channel not in self._channels
        if left or self.failure is not None or not self.alive:
            raise closed(self.failure)

    def notify(self, task_id: str) -> None:
        """The vendor says that a task has ended: it is asked for soon, now or when it is known."""
        handle = self.registry.of_task(task_id)
        if handle is not None:
            self._tell(ev.Notified(handle.ref))
        else:
            self._early.add(task_id, self._micros())

    def withdraw(self, handle: JobHandle) -> None:
        """Nobody waits for `handle`: it is not created; what was created is kept to its end."""
        if handle.ending is None and self.alive:
            self.registry.withdraw(handle)

    async def ask(
        self, channel: Channel, call: tasks.Request, *, urgent: bool = False, lasting: bool = False
    ) -> tasks.Response:
        """Send a question when the window has room; `urgent`: before all that is not promised.

        `lasting`: also while the client closes. Raises what came instead of an answer.
        """
        self.check()
        ref, question = next(self._refs), _Question(channel, call)
        # What changes something at the vendor is not done again where it may have been done.
        repeats = call.method == "GET"
        self._tell(ev.Asked(ref, channel.number, repeats=repeats, urgent=urgent, lasting=lasting))
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

    def closing(self, channel: Channel) -> None:
        """Create nothing more for `channel`."""
        if self.alive:
            self._tell(ev.Closed(channel.number))

    async def drain(self, channel: Channel) -> None:
        """Wait until every job of `channel` has ended."""
        while handles := self.left(channel):
            await handles[0].done.wait()

    def left(self, channel: Channel) -> list[JobHandle]:
        """The jobs of `channel` that have not ended."""
        return self.registry.left(channel)

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
                if isinstance(command, ev.Request):
                    for channel in self._channels:
                        channel.journal.writer.request_sent()
                continue
            wake = self.scheduler.wakes_at(now)
            self._news = anyio.Event()
            if wake == NEVER:
                await self._news.wait()
            else:
                with anyio.CancelScope(deadline=self._began + wake / _MICRO):
                    await self._news.wait()
                self.watch.woke(self._micros() - wake)

    def _perform(self, command: ev.Command) -> None:
        # Whom a command is about is looked up now: by the time it is on its way a hedged answer may
        # have ended them.
        match command:
            case ev.Settle():
                self._settle(command)
            case ev.Register():
                handles = [self.registry[ref] for ref in command.refs]
                self._start(command, partial(commands.register, command, handles))
            case ev.Upload():
                self._start(command, partial(commands.upload, command, self.registry[command.ref]))
            case ev.Submit():
                self._start(command, partial(self._submit, command, self.registry[command.ref]))
            case ev.Poll():
                handle = self.registry[command.ref]
                self._start(command, partial(commands.poll, command, handle, str(handle.task_id)))
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
        else:
            # Else it was a question that nobody waits for any longer.
            self.registry.settle(command)

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
            event = failure_event(command, exc)
        if isinstance(command, ev.Submit) and not isinstance(event, ev.Accepted | ev.NoAnswer):
            handle = self.registry.get(command.ref)
            if handle is not None:
                handle.refused()
                handle.entry.not_created()
        with self._blaming():
            self._tell(event)
            if isinstance(event, ev.Accepted) and self._early.remove(event.task_id, self._micros()):
                self._tell(ev.Notified(event.command.ref))
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

    async def _submit(self, command: ev.Submit, handle: JobHandle) -> ev.Answer:
        event = await self.submitter.create(command, handle)
        if isinstance(event, ev.Accepted):
            handle.created(event.task_id)
        return event

    async def _answer(self, command: ev.Ask, question: _Question) -> ev.Answer:
        response = await commands.call(question.channel, question.call)
        event = tasks.read_answer(command, response)
        if isinstance(event, ev.Answered):
            question.reply = response
            self._questions.pop(command.ref, None)
            question.done.set()
        return event
