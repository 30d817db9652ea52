"""The driver of one key: performs the scheduler's commands and reports their outcomes to it.

All clients of one key and host in one event loop share one driver, since the request window belongs
to the key. The driver runs in a host task of its own, so a caller that is cancelled, slow or gone
does not stop the polls of its task. The scheduler makes all decisions.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
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
"""Seconds; a longer wait for the window is logged."""
_LOOK_EVERY: Final = SECOND // 2
"""How often the ledger is read for news of tasks that other processes run."""
_EARLY_FOR: Final = 600 * SECOND
"""How long a notification is remembered that comes before the answer to its task's creation. Later
than this, the creation is in doubt and no job waits for the task.
"""
_NEWS_WITHIN: Final = 60 * SECOND
"""How long another process may take to get the answer to a creation and to write its task."""


@attrs.define(eq=False)
class _Query:
    """One request that does not belong to a job, and its answer or error."""

    channel: Channel
    call: tasks.Request
    reply: tasks.Response | None = None
    error: ev.Succeeded | PerfectError | None = None
    done: anyio.Event = attrs.field(factory=anyio.Event)


class Driver:
    """Performs the commands of one scheduler while at least one client is open.

    `identity` is the key (hashed) and the host. `failure` is the error that ended the driver, or
    None. Jobs enter through `registry`.
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
        # How many jobs were refused before they reached the scheduler.
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
        self._recorder: Callable[[], RequestRecorder | None] = _no_recorder
        self._wakeup = anyio.Event()
        self._scope = anyio.CancelScope()
        self._host: asyncio.Task[None] | None = None
        self._group: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Driver {len(self.registry)} jobs {self.scheduler!r}>"

    def _now(self) -> int:
        """Return the scheduler's time: microseconds since the driver was made."""
        return self.at(self._loop.time())

    def at(self, seconds: float) -> int:
        """Convert a time of the loop, in seconds, to the driver's microseconds."""
        return round((seconds - self._began) * SECOND)

    def record(self) -> RequestRecorder:
        """Return a recorder of all requests from now on, until its last user drops it."""
        recorder = self._recorder()
        if recorder is None:
            recorder = RequestRecorder(self.scheduler.occupied)
            self._recorder = ref(recorder)
        return recorder

    def statistics(self, channel: Channel | None = None) -> Statistics:
        """Return the scheduler's statistics with those of this loop and of the transport.

        Jobs that were refused before they reached the scheduler count as failed. `channel` is the
        client's.
        """
        found = self.scheduler.statistics(self._now())
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

    def window_wait(self) -> float:
        """Return the seconds until the first job can be sent, if the request window is full."""
        return self.scheduler.window_wait(self._now())

    def eta(self, waiting: int, running: int) -> float | None:
        """Return the seconds until so many more jobs have ended; see `Scheduler.eta`."""
        return self.scheduler.eta(waiting, running, self._now())

    def estimate(self, jobs: Mapping[ev.TaskKind, int]) -> tuple[float, bool]:
        """Return the seconds that `jobs` would take from now on; see `Scheduler.estimate`."""
        return self.scheduler.estimate(jobs, self._now())

    # Opening and closing.

    @property
    def alive(self) -> bool:
        """Whether commands are performed; False after the last client has left."""
        return bool(self._channels) and not self._over.is_set() and not self._loop.is_closed()

    @property
    def _tasks(self) -> TaskGroup:
        if self._group is None:
            raise AssertionError(self)
        return self._group

    @property
    def ending(self) -> bool:
        """Whether the host task is being stopped: by a caller, by a failure or with its loop."""
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
                    with self._recording_failure():
                        await self._perform_commands()
        except BaseException as exc:
            self.failure = self.failure or _single_error(exc)
            if not isinstance(exc, asyncio.CancelledError):
                # Without a traceback, which may hold secrets. The waiters' errors have it as cause.
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
    def _recording_failure(self) -> Generator[None]:
        """Record a failure at once, so that the tasks which it cancels can name it."""
        try:
            yield
        except Exception as exc:
            self.failure = self.failure or exc
            raise

    async def _open_shared(self) -> bool:
        """Share the key, if `share` is set; return False if a ledger that was named is refused."""
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
            # Only for a key that is not shared; otherwise the ledger has these requests.
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
        """Return the purchase of `spec` by another process; None if there is none."""
        return None if self._shared is None else await self._shared.bought(submission(spec))

    def _is_kept(self, task_id: str) -> bool:
        """Return whether a task is polled for another job, or by another living process.

        The answer is that of the last step in the ledger. If that was a while ago, this call
        requests another step for the next call. Many jobs may be waiting, and each step takes the
        lock from all members.
        """
        if self._now() >= self._looked_at + _LOOK_EVERY:
            self._wake_up()
        ours = self.registry.of_task(task_id) is not None
        return ours or self.scheduler.is_kept_elsewhere(task_id)

    def _give_up(self) -> None:
        """End all unended jobs and queries, so that no caller waits for ever."""
        self.registry.give_up(self.failure)
        queries = list(self._queries.values())
        self._queries.clear()
        for query in queries:
            query.error = closed(self.failure)
            query.done.set()

    # Called by clients.

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
            # `leave` ends it.
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
        # Called also if the host task was cancelled before its first step.
        self._over.set()
        self._started.set()

    def hands_over(self, channel: Channel) -> bool:
        """Return whether other processes poll the running tasks of `channel` once it has left."""
        shared = self._shared is not None and not self._shared.alone
        return shared and self._channels == {channel} and self.scheduler.others() > 0

    async def leave(self, channel: Channel) -> None:
        """Drop the jobs of `channel`; the last client ends the host task and waits for it."""
        try:
            if self.alive:
                self.registry.drop(channel)
                leaves = self.hands_over(channel)
                self.receive(ev.ChannelAborted(channel.number, leaves=leaves))
                # The driver settles those jobs at its next turn, or gives them up if it ends.
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
        """Run `work` in the background, in the context of the caller, and log its errors."""
        self.check()
        self._tasks.start_soon(self._run_background, work)

    async def _run_background(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        try:
            await work()
        except (asyncio.CancelledError, GeneratorExit):
            # Code of the user's that cancels itself must not end the driver.
            if self.ending:
                raise
        except _INTERRUPTS:
            # asyncio ends the whole loop for these.
            raise
        except BaseException as exc:  # noqa: BLE001 - an error of the user's must not end it either
            LOG.error("Background work of the driver failed: %s.", type_name(exc))

    def open_limit(self, units: float) -> int:
        """Open a spending limit of `units` for all its jobs together, and return its number."""
        number = next(self._numbers)
        self.receive(ev.SpendingLimitOpened(number, units))
        return number

    def close_limit(self, number: int) -> None:
        """Close a spending limit that no new job counts against."""
        if self.alive:
            self.receive(ev.SpendingLimitClosed(number))

    def stop_creating(self, channel: Channel) -> None:
        """Stop creating tasks for `channel`; its running tasks are kept alive."""
        if self.alive:
            self.receive(ev.ChannelClosed(channel.number))

    def check(self, channel: Channel | None = None) -> None:
        """Raise `ClientClosed` if commands (of `channel`) are no longer performed."""
        left = channel is not None and channel not in self._channels
        if left or self.failure is not None or not self.alive:
            raise closed(self.failure)

    def notify(self, task_id: str) -> None:
        """Poll a task at once, since the vendor says that it has ended.

        An unknown task is polled once the answer to its creation comes.
        """
        handle = self.registry.of_task(task_id)
        foreign = None if handle is not None else self.scheduler.foreign_task(task_id)
        if handle is not None:
            self.receive(ev.Notified(handle.ref))
        elif foreign is not None:
            # Another process polls it, and learns of the notification from the ledger.
            self.receive(ev.Notified(foreign))
        else:
            self._early.add(task_id, self._now())
            self._looks_until = self._now() + _NEWS_WITHIN
            self._wake_up()

    def withdraw(self, handle: JobHandle) -> None:
        """Stop waiting for `handle`; an unsent job is cancelled, and a task is kept to its end."""
        if handle.ending is None and self.alive:
            self.registry.withdraw(handle)

    async def ask(
        self, channel: Channel, call: tasks.Request, *, urgent: bool = False, lasting: bool = False
    ) -> tasks.Response:
        """Send a query when the window has room, and return its answer. Raises its error.

        `urgent`: it leaves before all requests except reserved polls. `lasting`: it is sent even
        while the client closes.
        """
        self.check()
        number, query = next(self._refs), _Query(channel, call)
        # A request that changes something at the vendor is not repeated, since it may have worked.
        repeats = call.method == "GET"
        asked = ev.QueryAdded(
            number, channel.number, repeats=repeats, urgent=urgent, lasting=lasting
        )
        self.receive(asked)
        self._queries[number] = query
        try:
            await query.done.wait()
        except BaseException:
            # The caller has gone, so an unsent query is not sent.
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
        """Await `wait`, which waits for background work, until the driver ends.

        A background task that the driver's end cancels before its first step runs no `finally`
        clause, so it never reports its end.
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
        """Give `event` to the scheduler, and wake the driver to perform the next commands.

        `request` is the log of the request that the event answers.
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
            except Exception as exc:  # noqa: BLE001 - an observer must not end the driver
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
            self._warn_of_full_window()
            await self._sleep_until(self._wakes_at(now))

    def _is_shared(self, command: ev.Command | None, now: int) -> bool:
        """Return whether a step in the ledger is needed: for `command`, own news, or a look."""
        shared = self._shared
        if shared is None or shared.alone or isinstance(command, ev.Settle | ev.Upload):
            return False
        if command is not None or self._unread:
            return True
        return shared.next_step(now, busy=self._is_curious(now)) <= now

    def _is_curious(self, now: int) -> bool:
        """Return whether rows of other processes matter: to own tasks, or to a notification."""
        return self.scheduler.busy() or (now < self._looks_until and len(self._early) > 0)

    async def _step(self, command: ev.Command | None) -> bool:
        """Take one step in the ledger; return False if `command` must leave without one."""
        shared, hurry = self._shared, False
        if shared is None:
            raise AssertionError(self)
        idle = command is None and not self._unread and not self._is_curious(self._now())
        if idle and not await shared.look(self._now()):
            return True
        if command is not None:
            hurry = self._may_leave_unlocked(command, self._now(), shared)
        self._unread = False
        commands = await shared.step(self._now, hurry=hurry)
        if commands is None:
            self._unread = True
            now = self._now()
            command = self.scheduler.due(now)
            return command is None or not self._may_leave_unlocked(command, now, shared)
        self._looked_at = self._now()
        for each in commands:
            self._do_command(each)
        if len(self._early):
            self._announce_early()
        return True

    def _may_leave_unlocked(self, command: ev.Command, now: int, shared: SharedKey) -> bool:
        return self.scheduler.may_leave_unlocked(command, now, tried=shared.tried_for(now))

    def _announce_early(self) -> None:
        """Announce notifications that came before their tasks, of other processes, were known."""
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
        # The handle is looked up now, since a hedged answer may end the job before the request.
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
            # It is a job, or a query whose caller has gone.
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
            # The transport cancelled itself, so the answer is lost.
            event = ev.NoAnswer(command, ServiceUnavailable("the transport cancelled the request."))
        except BaseException as exc:
            # The error comes from a transport or a picture of the user's. asyncio ends the whole
            # loop for an interrupt, except for one that reading a picture raises.
            if isinstance(exc, _INTERRUPTS) and not isinstance(command, ev.Upload):
                raise
            event = failure_event(command, exc)
        self._record_failure(command, event)
        if isinstance(command, ev.Submit) and self._shared is not None:
            self._shared.submitted(command, event)
        if isinstance(command, ev.Submit) and not isinstance(event, ev.Accepted | ev.NoAnswer):
            handle = self.registry.get(command.ref)
            if handle is not None:
                handle.refused()
                handle.entry.not_created()
        with self._recording_failure():
            self.receive(event, note.last)
            self._warn_of_refuted_lease()
            if isinstance(event, ev.Accepted) and self._early.remove(event.task_id, self._now()):
                self.receive(ev.Notified(event.command.ref))
        if isinstance(event, ev.Limited):
            self._warn_of_foreign_use()

    def _record_failure(self, command: ev.Request | ev.Upload, event: ev.Answer) -> None:
        """Record the error of the last request; an answer of the vendor's clears it."""
        failure: PerfectError | None = None
        if isinstance(event, ev.NoAnswer | ev.NotSent):
            failure = event.error
            if isinstance(failure, ClientClosed):
                # The request was not sent, since its caller has gone.
                return
        if not isinstance(command, ev.Upload):
            # An upload says nothing about the API's host, since it goes to another one.
            answered = failure is None or isinstance(failure, BadAnswer)
            answered = answered or getattr(failure, "status", None) is not None
            self._reached, self._last_failure = self._reached or answered, failure
        numbers = command.refs if isinstance(command, ev.Register) else (command.ref,)
        for handle in map(self.registry.get, numbers):
            if handle is not None:
                handle.last_failure = handle.channel.last_failure = failure
        if isinstance(command, ev.Ask) and (query := self._queries.get(command.ref)) is not None:
            query.channel.last_failure = failure

    def _warn_of_foreign_use(self) -> None:
        """Warn that another program uses the key, once in five minutes."""
        now = self.clock.seconds()
        if not self.scheduler.contended() or now < self._warned + _WARNED_FOR:
            return
        self._warned = now
        if self._shared is None or self._shared.alone:
            known = (
                "If it is another process of yours that does not share the key, give each its "
                "share with Limits().split(n)."
            )
        else:
            known = (
                f"It is not one of the {self.scheduler.others()} other processes that share the "
                "key's ledger, but another machine, another user, or another program."
            )
        LOG.warning(
            "Another program uses this key: the vendor refuses requests that are within the "
            "limits. Fewer tasks are created for a while. %s",
            known,
        )

    def _warn_of_refuted_lease(self) -> None:
        """Warn once that a measured lease was too long, and record that for other processes."""
        refuted = self.scheduler.refuted_lease
        if not refuted or self._refuted:
            return
        self._refuted = True
        LOG.warning(
            "A task was lost within the measured lease of %.1f s. This and later processes use a "
            "lease of %g s from now on. `perfect-async doctor --measure-lease` measures it again.",
            refuted,
            ASSUMED_LEASE,
        )
        self.start(self._save_refuted_lease)

    async def _save_refuted_lease(self) -> None:
        try:
            await in_thread(self._lease_file.refute)
        except LedgerUnavailable as exc:
            LOG.warning(
                "The measured lease is too long, but that could not be saved for later processes: "
                "%s.",
                exc,
            )

    def _warn_of_full_window(self) -> None:
        """Log, once in five minutes, that jobs wait for a full window; warn if others filled it."""
        now, at = self.clock.seconds(), self._now()
        if now < self._waited + _WARNED_FOR:
            return
        if (wait := self.scheduler.window_wait(at)) < _LONG_WAIT:
            return
        self._waited = now
        statistics = self.scheduler.statistics(at)
        if not statistics.requests_by_others:
            LOG.info(
                "The request window of this key is full: %d of its %d requests were sent. The "
                "first job is sent in about %.0f s.",
                statistics.requests_in_window,
                statistics.window_limit,
                wait,
            )
            return
        LOG.warning(
            "The request window of this key is full: other processes have sent %d of its %d "
            "requests. The first job is sent in about %.0f s.",
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


def _no_recorder() -> None:
    """Return None, as a dead reference to a recorder does."""


def _single_error(error: BaseException) -> BaseException:
    """Return the first error of a group with errors of one class, else the error itself."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    found = [_single_error(each) for each in group.exceptions]
    return found[0] if len({type(each) for each in found}) == 1 else group


# The driver of each key.

_drivers: WeakValueDictionary[tuple[str, str, int], Driver] = WeakValueDictionary()
"""Drivers by key (hashed), host and loop."""


@attrs.frozen(eq=False)
class _Former:
    """The last scheduler of a key in a loop, the start of its time, and its transport."""

    scheduler: Scheduler
    began: float
    transport: ReferenceType[object] | None


_former: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str], _Former]] = (
    WeakKeyDictionary()
)
"""The former schedulers of each loop, since clients that open in turn share one window."""

_former_in_threads: Final[dict[tuple[str, str], _Former]] = {}


def share_past(loop: asyncio.AbstractEventLoop) -> None:
    """Let `loop`, which runs in the isolated clients' thread, count the requests of such loops."""
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
    """Return the driver for `key` on `base_url` in this loop; a new one uses `scheduler`.

    A new driver counts the requests of the last driver in this loop, or else those of a former
    process: `past`, as (age in microseconds, requests). A transport of the user's may lead to
    another vendor, so the last driver counts only if it had the same one.

    `share` is the place of the key's ledger; None means that the key is not shared. If an open
    client has another `share`, this raises `ConfigurationError` if `insists` is True, and otherwise
    uses that client's.
    """
    loop = asyncio.get_running_loop()
    identity = hashlib.sha256(key.encode()).hexdigest(), base_url
    driver = _drivers.get((*identity, id(loop)))
    if driver is not None and driver.alive:
        if insists and driver.share != share:
            raise ConfigurationError(
                "Another client is open on this key with another `share`; all clients of a key in "
                "one event loop must agree on it."
            )
        return driver
    # Copied to a list at once, since another loop's thread may open a client at the same time.
    for found in [reference() for reference in _drivers.valuerefs()]:
        used = found is not None and found.alive and found.identity == identity
        if used and share is None:
            LOG.warning(
                "Another event loop of this process uses this key too, and neither counts the "
                "other's requests: give each its share with Limits().split(n)."
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
