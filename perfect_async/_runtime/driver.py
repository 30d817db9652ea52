"""The driver of one key: performs the scheduler's commands and reports how they ended.

One driver serves one key on one host in one event loop, however many clients are open on them,
since the request window belongs to the key. It runs in a host task of its own: a caller that is
cancelled, slow or gone does not stop the polls of its task. The scheduler makes all decisions.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from functools import partial
from typing import Final, assert_never, cast
from weakref import ReferenceType, WeakKeyDictionary, WeakValueDictionary, ref

import anyio
import attrs
from anyio.abc import TaskGroup

from perfect_async import events as ev
from perfect_async._api import tasks
from perfect_async._files.threads import in_thread
from perfect_async._journal.journal import JobJournal
from perfect_async._ledger.leases import LeaseFile
from perfect_async._ledger.rows import LedgerUnavailable
from perfect_async._log import LOG, type_name
from perfect_async._runtime import commands
from perfect_async._runtime.clock import Clock, LoopWatchdog
from perfect_async._runtime.commands import Submitter, failure_event
from perfect_async._runtime.doubts import ProcessMemory, memory_for
from perfect_async._runtime.elsewhere import Bought, Submission
from perfect_async._runtime.handle import Channel, JobHandle, closed
from perfect_async._runtime.hosting import host
from perfect_async._runtime.recorder import RequestRecorder
from perfect_async._runtime.registry import JobRegistry
from perfect_async._runtime.sharing import (
    SharedKey,
    ShareSetting,
    doubt_elsewhere,
    submission,
)
from perfect_async._runtime.spec import JobSpec
from perfect_async._time import NEVER, SECOND, TtlSet
from perfect_async._transport.request_log import RequestLog, RequestNote
from perfect_async._transport.transport import HttpTransport, NetworkTransport, VendorTransport
from perfect_async.errors import (
    BadAnswer,
    ClientClosed,
    ConfigurationError,
    PerfectError,
    ServiceUnavailable,
    copy_error,
)
from perfect_async.models import ASSUMED_LEASE, Timeouts
from perfect_async.reports import Statistics
from perfect_async.scheduler import Scheduler

_INTERRUPTS: Final = KeyboardInterrupt, SystemExit
_WARNED_FOR: Final = 300.0
"""Seconds for which a warning about the key is not repeated."""
_LONG_WAIT: Final = 3.0
"""Seconds of waiting for the window that are worth a line."""
_LOOK_EVERY: Final = SECOND // 2
"""How often the ledger is read for the sake of tasks that other processes run."""
_EARLY_FOR: Final = 600 * SECOND
"""A notification may overtake the answer to its task's creation; later than this, that answer is in
doubt and nobody waits for the task.
"""
_NEWS_WITHIN: Final = 60 * SECOND
"""Within this another process has the answer to a creation, and has published its task."""


@attrs.define(eq=False)
class _Query:
    """One question for the vendor that is no part of a job, and its answer or error."""

    channel: Channel
    call: tasks.Request
    reply: tasks.Response | None = None
    error: ev.Succeeded | PerfectError | None = None
    done: anyio.Event = attrs.field(factory=anyio.Event)


class Driver:
    """Performs the commands of one scheduler while at least one client is open.

    `identity` is the key (hashed) and the host. `failure` is the error that ended the driver, if
    one did. Jobs enter through `registry`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        identity: tuple[str, str],
        clock: Clock,
        memory: ProcessMemory,
        *,
        key: str = "",
        share: ShareSetting | None = None,
        past: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.scheduler = scheduler
        self.identity = identity
        self.clock = clock
        self._warned = self._waited = -math.inf
        self._looked_at = -NEVER
        self.failure: BaseException | None = None
        self.watchdog = LoopWatchdog()
        self._reached = False
        self._last_failure: PerfectError | None = None
        self.observers: list[ev.Observer] = []
        # Jobs that were refused before they reached the scheduler.
        self.refused_here = 0
        self.share = share
        self._past = past
        self._shared: SharedKey | None = None
        if share is not None:
            self._shared = SharedKey(
                share, identity[1], key, scheduler, self._describe, give_way=self._give_way
            )
        self._refused: ConfigurationError | None = None
        self._lease_file = LeaseFile(identity[1], key)
        self._refuted = False
        self._unread = True
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._refs = itertools.count(1)
        self._numbers = itertools.count(1)
        self._channels: set[Channel] = set()
        self._started = anyio.Event()
        self._over = anyio.Event()
        ask = partial(self.ask, urgent=True, lasting=True)
        submitter = Submitter(ask, clock, self._channels, memory)
        self.submitter = submitter
        submitter.shared = self._shared
        self.registry = JobRegistry(
            self._refs, self.receive, self.start, submitter, clock, is_kept=self._is_kept
        )
        self._early = TtlSet(_EARLY_FOR)
        self._looks_until = 0
        self._queries: dict[int, _Query] = {}
        self._recorder: Callable[[], RequestRecorder | None] = _nobody
        self._wakeup = anyio.Event()
        self._scope = anyio.CancelScope()
        self._host: asyncio.Task[None] | None = None
        self._group: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Driver {len(self.registry)} jobs {self.scheduler!r}>"

    def _now(self) -> int:
        """Microseconds since the driver was made: the scheduler's time."""
        return self.at(self._loop.time())

    def at(self, seconds: float) -> int:
        """Return a time of the loop, in seconds, as the driver's microseconds."""
        return round((seconds - self._began) * SECOND)

    def record(self) -> RequestRecorder:
        """Return the recorder of all requests from now on, for as long as anybody holds it."""
        recorder = self._recorder()
        if recorder is None:
            recorder = RequestRecorder(self.scheduler.occupied)
            self._recorder = ref(recorder)
        return recorder

    def statistics(self, channel: Channel | None = None) -> Statistics:
        """Return the scheduler's statistics with what this loop and the transport have seen.

        The jobs that were refused before either count as failed. `channel` is the client's.
        """
        found = self.scheduler.statistics()
        found = attrs.evolve(
            found,
            blocked=self.watchdog.blocked,
            failed=found.failed + self.refused_here,
            reached=self._reached,
            last_failure=self._last_failure,
        )
        last = None if channel is None else channel.transport.last
        if last is None:
            return found
        skew = None
        if last.date is not None:
            skew = self.clock.skew(last.date, last.sent, last.answered)
        return attrs.evolve(
            found, connect=last.connect, round_trip=last.round_trip, clock_skew=skew
        )

    def past(self) -> tuple[tuple[int, int], ...]:
        """Return the requests of this window as (age in microseconds, count), the oldest first."""
        return self.scheduler.past(self._now())

    # Opening and closing.

    @property
    def alive(self) -> bool:
        """Whether commands are performed; False once the last client has left."""
        return bool(self._channels) and not self._over.is_set() and not self._loop.is_closed()

    @property
    def _tasks(self) -> TaskGroup:
        if self._group is None:
            raise AssertionError(self)
        return self._group

    @property
    def ending(self) -> bool:
        """Whether the host task is being stopped: from outside, by a failure or with its loop."""
        group = self._group
        if group is None or not self._loop.is_running():
            return True
        return group.cancel_scope.cancel_called or self._scope.cancel_called

    async def _run(self) -> None:
        try:
            with self._scope:
                if not await self._open_shared():
                    return
                async with anyio.create_task_group() as self._group:
                    self._started.set()
                    with self._noting_failure():
                        await self._perform_commands()
        except BaseException as exc:
            self.failure = self.failure or _only(exc)
            if not isinstance(exc, asyncio.CancelledError):
                # No traceback: it may hold secrets. The waiters get the error as their cause.
                LOG.error(
                    "The driver failed: %s. Its tasks are no longer kept alive.", type_name(exc)
                )
            if not isinstance(exc, Exception):
                raise
        finally:
            if self._shared is not None:
                with anyio.CancelScope(shield=True):
                    await self._shared.leave(self._now)
            self._over.set()
            self._give_up()
            for observer in self.observers:
                observer.leave()

    @contextmanager
    def _noting_failure(self) -> Generator[None]:
        """Note a failure at once: the tasks that it cancels name it before the group ends."""
        try:
            yield
        except Exception as exc:
            self.failure = self.failure or exc
            raise

    async def _open_shared(self) -> bool:
        """Share the key, where that was asked for; False where it was asked for in vain."""
        offset: int | None = None
        if self._shared is not None:
            try:
                offset = await self._shared.open(self.scheduler.limits.whole, self._loop_now)
            except ConfigurationError as exc:
                self._refused = exc
                return False
        if offset is not None:
            self._began = -offset / SECOND
        elif self._past:
            # Where the key is shared the ledger has them.
            self.scheduler.remember(self._past)
        return True

    def _loop_now(self) -> int:
        return round(self._loop.time() * SECOND)

    def _describe(self, command: ev.Submit) -> Submission:
        handle = self.registry[command.ref]
        return submission(handle.spec, handle.gone)

    def _give_way(self, ref: int) -> None:
        self.registry.give_way(ref)

    async def bought(self, spec: JobSpec) -> Bought | None:
        """Return how far another process has come with buying `spec`; None where none has."""
        return None if self._shared is None else await self._shared.bought(submission(spec))

    def _is_kept(self, task_id: str) -> bool:
        """Whether a task is polled: for another job, or by another process that lives.

        The answer is that of the last look into the ledger, and this asks for another look if that
        was a while ago: many jobs may be waiting, and a look takes the lock from all members.
        """
        if self._now() >= self._looked_at + _LOOK_EVERY:
            self._wake_up()
        ours = self.registry.of_task(task_id) is not None
        return ours or self.scheduler.is_kept_elsewhere(task_id)

    def _give_up(self) -> None:
        """End all jobs and queries that are left, so that nobody waits in vain."""
        self.registry.give_up(self.failure)
        queries = list(self._queries.values())
        self._queries.clear()
        for query in queries:
            query.error = closed(self.failure)
            query.done.set()

    # What clients call.

    async def join(
        self,
        transport: VendorTransport,
        timeouts: Timeouts,
        journal: JobJournal,
        *,
        sole_user: bool = False,
    ) -> Channel:
        """Return a channel for one more client; the first client starts the host task."""
        channel = Channel(next(self._numbers), transport, timeouts, journal, sole_user)
        self._channels.add(channel)
        self.registry.alone = any(each.journal.writer.persistent for each in self._channels)
        if self._host is None:
            # `leave` is its closing brace.
            self._host = host(self._loop, self._run(), "perfect_async driver")
            self._host.add_done_callback(self._ended)
        try:
            await self._started.wait()
        except BaseException:
            self._channels.discard(channel)
            if not self._channels:
                self._scope.cancel()
            raise
        if self._refused is not None:
            self._channels.discard(channel)
            raise copy_error(self._refused)
        self.check()
        return channel

    def _ended(self, _: object) -> None:
        # Also where the host task was cancelled before it began.
        self._over.set()
        self._started.set()

    async def leave(self, channel: Channel) -> None:
        """Drop the jobs of `channel`; the last client ends the host task and waits for it."""
        try:
            if self.alive:
                self.registry.drop(channel)
                self.receive(ev.ChannelAborted(channel.number))
                # The driver settles those jobs at its next turn, or gives them up where it ends.
                await self.drain(channel)
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
        """Run `work` in the background, in the context of the caller; its errors are logged."""
        self.check()
        self._tasks.start_soon(self._run_background, work)

    async def _run_background(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        try:
            await work()
        except (asyncio.CancelledError, GeneratorExit):
            # Code of the user's that cancels itself does not end the driver.
            if self.ending:
                raise
        except _INTERRUPTS:
            # asyncio ends the whole loop for these.
            raise
        except BaseException as exc:  # noqa: BLE001 - an error of the user's ends nothing either
            LOG.error("Background work of the driver failed: %s.", type_name(exc))

    def open_limit(self, units: float) -> int:
        """Return the number of a new spending limit: its jobs are charged `units` at most."""
        number = next(self._numbers)
        self.receive(ev.SpendingLimitOpened(number, units))
        return number

    def close_limit(self, number: int) -> None:
        """Forget a spending limit that no new job counts against."""
        if self.alive:
            self.receive(ev.SpendingLimitClosed(number))

    def stop_creating(self, channel: Channel) -> None:
        """Create no more tasks for `channel`; its running tasks are kept alive."""
        if self.alive:
            self.receive(ev.ChannelClosed(channel.number))

    def check(self, channel: Channel | None = None) -> None:
        """Raise `ClientClosed` where commands (of `channel`) are no longer performed."""
        left = channel is not None and channel not in self._channels
        if left or self.failure is not None or not self.alive:
            raise closed(self.failure)

    def notify(self, task_id: str) -> None:
        """Poll a task soon that the vendor says has ended, or once its creation is answered."""
        handle = self.registry.of_task(task_id)
        foreign = None if handle is not None else self.scheduler.foreign_task(task_id)
        if handle is not None:
            self.receive(ev.Notified(handle.ref))
        elif foreign is not None:
            # Another process polls it: the ledger tells that one.
            self.receive(ev.Notified(foreign))
        else:
            self._early.add(task_id, self._now())
            self._looks_until = self._now() + _NEWS_WITHIN
            self._wake_up()

    def withdraw(self, handle: JobHandle) -> None:
        """Stop waiting for `handle`: an unsent job is not created, a task is kept to its end."""
        if handle.ending is None and self.alive:
            self.registry.withdraw(handle)

    async def ask(
        self, channel: Channel, call: tasks.Request, *, urgent: bool = False, lasting: bool = False
    ) -> tasks.Response:
        """Send a query when the window has room, and return its answer.

        `urgent`: before everything but reserved polls. `lasting`: also while the client closes.
        Raises the error that came instead of an answer.
        """
        self.check()
        number, query = next(self._refs), _Query(channel, call)
        # A request that changes something at the vendor is not repeated: it may have been executed.
        repeats = call.method == "GET"
        asked = ev.QueryAdded(
            number, channel.number, repeats=repeats, urgent=urgent, lasting=lasting
        )
        self.receive(asked)
        self._queries[number] = query
        try:
            await query.done.wait()
        except BaseException:
            # Nobody waits for the answer: an unsent query is not sent.
            if self._queries.pop(number, None) is not None and self.alive:
                self.receive(ev.JobCancelled(number))
            raise
        if query.reply is None:
            wrong = AssertionError(query)
            raise copy_error(query.error) if isinstance(query.error, PerfectError) else wrong
        return query.reply

    async def drain(self, channel: Channel) -> None:
        """Wait until every job of `channel` has ended."""
        while handles := self.registry.left(channel):
            await handles[0].done.wait()

    async def wait_unless_over(self, wait: Callable[[], Awaitable[object]]) -> None:
        """Await `wait` for background work, but not for work that the driver's end overtook.

        A task that is cancelled before its first step runs none of its `finally` clauses, so
        nothing says that such work has ended.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._cancel_when_over, group.cancel_scope)
            await wait()
            group.cancel_scope.cancel()

    async def _cancel_when_over(self, scope: anyio.CancelScope) -> None:
        await self._over.wait()
        scope.cancel()

    # The loop.

    def receive(self, event: ev.Event, request: RequestLog | None = None) -> None:
        """Give `event` to the scheduler, and wake the driver to perform what follows from it.

        `request` is what was logged of the request that it answers.
        """
        now = self._now()
        self.scheduler.receive(event, now)
        if (recorder := self._recorder()) is not None:
            recorder.received(event, now)
        if self.observers:
            self._observe(event, request)
        self._wake_up()

    def _observe(self, event: ev.Event, request: RequestLog | None = None) -> None:
        status, request_id = (
            (None, None) if request is None else (request.status, request.request_id)
        )
        observed = ev.Observed(event, self.clock.now(), status, request_id)
        for observer in self.observers:
            try:
                observer.observe(observed, self.statistics)
            except Exception as exc:  # noqa: BLE001 - whoever watches ends nothing
                LOG.error("An observer failed: %s.", type_name(exc), exc_info=exc)

    def _wake_up(self) -> None:
        self._unread = True
        self._wakeup.set()

    async def _perform_commands(self) -> None:
        while True:
            now = self._now()
            command = self.scheduler.due(now)
            if self._is_shared(command, now):
                if await self._step(command):
                    continue
                now = self._now()
                command = self.scheduler.due(now)
            if command is not None:
                self._issue(command, now)
                continue
            await self._sleep_until(self._wakes_at(now))

    def _is_shared(self, command: ev.Command | None, now: int) -> bool:
        """Whether the ledger is needed now: for `command`, for news of ours, or for a look."""
        shared = self._shared
        if shared is None or shared.alone or isinstance(command, ev.Settle | ev.Upload):
            return False
        if command is not None or self._unread:
            return True
        return shared.next_step(now, busy=self._is_curious(now)) <= now

    def _is_curious(self, now: int) -> bool:
        """Whether news of other processes matters: to our tasks, or to a notification of theirs."""
        return self.scheduler.busy() or (now < self._looks_until and len(self._early) > 0)

    async def _step(self, command: ev.Command | None) -> bool:
        """Take one step in the ledger; False where `command` has to leave without."""
        shared, hurry = self._shared, False
        if shared is None:
            raise AssertionError(self)
        if command is not None:
            hurry = self.scheduler.may_leave_unlocked(command, self._now())
        self._unread = False
        commands = await shared.step(self._now, hurry=hurry)
        if commands is None:
            self._unread = True
            now = self._now()
            command = self.scheduler.due(now)
            return command is None or not self.scheduler.may_leave_unlocked(command, now)
        self._looked_at = self._now()
        for each in commands:
            self._do_command(each)
        self._say_waiting()
        if len(self._early):
            self._announce_early()
        return True

    def _announce_early(self) -> None:
        """Tell other processes of notifications that came here before their tasks were known."""
        for task_id in self._early:
            if (ref := self.scheduler.foreign_task(task_id)) is not None:
                self._early.remove(task_id, self._now())
                self.receive(ev.Notified(ref))

    def _wakes_at(self, now: int) -> int:
        wake = self.scheduler.wakes_at(now)
        if self._shared is not None and not self._shared.alone:
            wake = min(wake, self._shared.next_step(now, busy=self._is_curious(now)))
        return wake

    def _issue(self, command: ev.Command, now: int) -> None:
        self.scheduler.receive(ev.Issued(command), now)
        self._do_command(command)

    def _do_command(self, command: ev.Command) -> None:
        if self.observers:
            self._observe(ev.Issued(command))
        self._perform(command)
        if (recorder := self._recorder()) is not None:
            recorder.issued(command, self._now())
        if isinstance(command, ev.Request):
            for channel in self._channels:
                channel.journal.writer.request_sent()

    async def _sleep_until(self, wake: int) -> None:
        self._wakeup = anyio.Event()
        if wake == NEVER:
            await self._wakeup.wait()
            return
        # A timer costs less than a cancel scope with a deadline, and this is done at each answer.
        timer = self._loop.call_at(self._began + wake / SECOND, self._wakeup.set)
        try:
            await self._wakeup.wait()
        finally:
            timer.cancel()
        self.watchdog.woke(self._now() - wake)

    def _perform(self, command: ev.Command) -> None:
        # The handle is looked up now: a hedged answer may end the job before the command is sent.
        match command:
            case ev.Settle():
                self._settle(command)
            case ev.Register():
                pictures = [self.registry.picture(ref) for ref in command.refs]
                self._start(command, partial(commands.register, command, pictures))
            case ev.Upload():
                picture = self.registry.picture(command.ref)
                self._start(command, partial(commands.upload, command, *picture))
            case ev.Submit():
                self._start(command, partial(self._submit, command, self.registry[command.ref]))
            case ev.Rescue():
                channel = next(iter(self._channels))
                self._start(command, partial(commands.rescue, command, channel))
            case ev.Poll():
                handle = self.registry[command.ref]
                self._start(command, partial(self._poll, command, handle, str(handle.task_id)))
            case ev.Ask():
                self._start(command, partial(self._answer, command, self._queries[command.ref]))
            case _:
                assert_never(command)

    def _start(
        self, command: ev.Request | ev.Upload, work: Callable[[], Awaitable[ev.Answer]]
    ) -> None:
        name = f"perfect_async {type(command).__name__} {command.number}"
        self._tasks.start_soon(self._do, command, work, name=name)

    def _settle(self, command: ev.Settle) -> None:
        if (query := self._queries.pop(command.ref, None)) is not None:
            query.error = command.ending
            query.done.set()
        else:
            # A job, or a query that nobody waits for any longer.
            self.registry.settle(command)

    # One command each.

    async def _do(
        self, command: ev.Request | ev.Upload, work: Callable[[], Awaitable[ev.Answer]]
    ) -> None:
        note = RequestNote()
        try:
            event = await work()
        except (asyncio.CancelledError, GeneratorExit):
            if self.ending:
                raise
            # Something inside the transport was cancelled: the answer is lost.
            event = ev.NoAnswer(command, ServiceUnavailable("the transport cancelled the request."))
        except BaseException as exc:
            # The transport is the user's, and so is the picture of an upload. asyncio ends the
            # whole loop for an interrupt, but reading a picture is never what was interrupted.
            if isinstance(exc, _INTERRUPTS) and not isinstance(command, ev.Upload):
                raise
            event = failure_event(command, exc)
        self._note_failure(command, event)
        if isinstance(command, ev.Submit) and self._shared is not None:
            self._shared.submitted(command, event)
        if isinstance(command, ev.Submit) and not isinstance(event, ev.Accepted | ev.NoAnswer):
            handle = self.registry.get(command.ref)
            if handle is not None:
                handle.refused()
                handle.entry.not_created()
        with self._noting_failure():
            self.receive(event, note.last)
            self._say_lease()
            if isinstance(event, ev.Accepted) and self._early.remove(event.task_id, self._now()):
                self.receive(ev.Notified(event.command.ref))
        if isinstance(event, ev.Limited):
            self._warn()

    def _note_failure(self, command: ev.Request | ev.Upload, event: ev.Answer) -> None:
        """Remember why the last request failed; an answer of the vendor's ends that."""
        failure: PerfectError | None = None
        if isinstance(event, ev.NoAnswer | ev.NotSent):
            failure = event.error
            if isinstance(failure, ClientClosed):
                # It was not sent, since nobody waits for it.
                return
        if not isinstance(command, ev.Upload):
            # An upload goes to another host.
            answered = failure is None or isinstance(failure, BadAnswer)
            answered = answered or getattr(failure, "status", None) is not None
            self._reached, self._last_failure = self._reached or answered, failure
        numbers = command.refs if isinstance(command, ev.Register) else (command.ref,)
        for handle in map(self.registry.get, numbers):
            if handle is not None:
                handle.last_failure = handle.channel.last_failure = failure
        if isinstance(command, ev.Ask) and (query := self._queries.get(command.ref)) is not None:
            query.channel.last_failure = failure

    def _warn(self) -> None:
        """Warn that a stranger uses the key, once in five minutes."""
        now = self.clock.seconds()
        if not self.scheduler.contended() or now < self._warned + _WARNED_FOR:
            return
        self._warned = now
        if self._shared is None or self._shared.alone:
            known = (
                "Processes that do not share it do not know of each other: give each its share "
                "with Limits().split(n)."
            )
        else:
            known = (
                f"It is none of the {self.scheduler.others()} other processes that share the key's "
                "ledger: another machine, another user, or another program."
            )
        LOG.warning(
            "The key is used elsewhere: the vendor refuses requests that our own account allows. "
            "Fewer tasks are created for a while. %s",
            known,
        )

    def _say_lease(self) -> None:
        """Say once that a measured lease was too long, and note it for other processes."""
        refuted = self.scheduler.refuted_lease
        if not refuted or self._refuted:
            return
        self._refuted = True
        LOG.warning(
            "A task was lost inside the measured lease of %.1f s: tasks are polled for a lease of "
            "%g s from now on, and by later processes too. `perfect-async doctor --measure-lease` "
            "measures it again.",
            refuted,
            ASSUMED_LEASE,
        )
        self.start(self._note_refuted)

    async def _note_refuted(self) -> None:
        try:
            await in_thread(self._lease_file.refute)
        except LedgerUnavailable as exc:
            LOG.warning("The refuted lease cannot be noted: %s.", exc)

    def _say_waiting(self) -> None:
        """Say, once in five minutes, that jobs wait for a window that others have used."""
        now = self.clock.seconds()
        if now < self._waited + _WARNED_FOR or (wait := self.scheduler.window_wait()) < _LONG_WAIT:
            return
        self._waited = now
        statistics = self.scheduler.statistics()
        LOG.warning(
            "The request window of this key is full (%d of its %d requests are other processes'): "
            "the first job is sent in about %.0f s.",
            statistics.requests_by_others,
            statistics.window_limit,
            wait,
        )

    async def _submit(self, command: ev.Submit, handle: JobHandle) -> ev.Answer:
        shared, spec = self._shared, handle.spec
        consents = shared is None or spec.options.buy_in_doubt
        if shared is not None and not consents and await shared.in_doubt(submission(spec)):
            return ev.Refused(command, doubt_elsewhere(spec.units), 0)
        event = await self.submitter.create(command, handle)
        if isinstance(event, ev.Accepted):
            handle.created(event.task_id)
        return event

    async def _poll(self, command: ev.Poll, handle: JobHandle, task_id: str) -> ev.Answer:
        event = await commands.poll(command, handle, task_id)
        if isinstance(event, ev.EngineFailed) and self._shared is not None:
            self._shared.failed(task_id)
        return event

    async def _answer(self, command: ev.Ask, query: _Query) -> ev.Answer:
        response = await commands.call(query.channel, query.call)
        event = tasks.read_answer(command, response)
        if isinstance(event, ev.Answered):
            query.reply = response
            self._queries.pop(command.ref, None)
            query.done.set()
        return event


def _nobody() -> None:
    """Return None, as a reference to a recorder that is gone does."""


def _only(error: BaseException) -> BaseException:
    """Return what a group consists of where that is one kind of error, else the error itself."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    found = [_only(each) for each in group.exceptions]
    return found[0] if len({type(each) for each in found}) == 1 else group


# Which driver serves a key.

_drivers: WeakValueDictionary[tuple[str, str, int], Driver] = WeakValueDictionary()
"""Drivers by key (hashed), host and loop."""


@attrs.frozen(eq=False)
class _Former:
    """The last scheduler of a key in a loop, when its time began, and its transport."""

    scheduler: Scheduler
    began: float
    transport: ReferenceType[object] | None


_former: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], _Former]] = (
    WeakKeyDictionary()
)
"""Clients that open one after another share one window: the requests of the last one count."""

_former_in_threads: Final[dict[tuple[str, str], _Former]] = {}


def share_past(loop: asyncio.AbstractEventLoop) -> None:
    """Let `loop`, which runs in a thread of ours, count the requests of such loops before it."""
    _former[loop] = _former_in_threads


def driver_for(
    key: str,
    base_url: str,
    scheduler: Scheduler,
    clock: Clock,
    *,
    transport: HttpTransport | None = None,
    past: tuple[tuple[int, int], ...] = (),
    share: ShareSetting | None = None,
    insists: bool = False,
) -> Driver:
    """Return the driver for `key` on `base_url` in this loop; a new one performs for `scheduler`.

    A new driver counts the requests of the one before it in this loop, or else those of a former
    process: `past` as (age in microseconds, requests). Behind a transport that the user made may be
    another vendor, so there the driver before must have had the same one.

    `share` is where the ledger of the key is, None where the key is not shared with other
    processes. Where it `insists` on it, this raises `ConfigurationError` if a client that is open
    has another one; else it is that one's.
    """
    loop = asyncio.get_running_loop()
    identity = hashlib.sha256(key.encode()).hexdigest(), base_url
    driver = _drivers.get((*identity, id(loop)))
    if driver is not None and driver.alive:
        if insists and driver.share != share:
            raise ConfigurationError(
                "A client is open on this key with another `share`: all clients of a key in one "
                "event loop must agree on it."
            )
        return driver
    # A list made in one go: another loop's thread may be opening a client just now.
    for found in [reference() for reference in _drivers.valuerefs()]:
        used = found is not None and found.alive and found.identity == identity
        if used and share is None:
            LOG.warning(
                "This key is in use in another event loop of this process, with a request ledger "
                "of its own: give each its share with Limits().split(n)."
            )
            break
    formers = _former.setdefault(loop, {})
    now, former = loop.time(), formers.get(identity)
    reference: ReferenceType[object] | None = None
    if transport is not None and not isinstance(transport, NetworkTransport):
        reference = ref(transport)
    if former is not None and former.transport == reference:
        past = former.scheduler.past(round((now - former.began) * SECOND))
    formers[identity] = _Former(scheduler, now, reference)
    memory = memory_for(identity, transport)
    driver = _drivers[(*identity, id(loop))] = Driver(
        scheduler, identity, clock, memory, key=key, share=share, past=past
    )
    return driver
