"""Creating a task: written down before, and settled from the unit history where no answer comes.

Creating is billed and has no idempotency key. With a journal the intent is on the disk before the
request leaves, and at most one creation is under way on the key, of whatever feature, since the
history's actions need not name one: so its only unknown task is the one in doubt, unless others
that left here are in doubt too. Without a journal nothing can be settled so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Final

import anyio
import attrs

from perfect_async import events as ev
from perfect_async._api import history, tasks
from perfect_async._api.history import NEAR, HistorySearch, Unresolved
from perfect_async._log import LOG, type_name
from perfect_async._runtime.clock import Clock
from perfect_async._runtime.handle import Channel, JobHandle
from perfect_async.errors import (
    BadAnswer,
    ClientClosed,
    JobRefused,
    JournalError,
    PerfectError,
    RequestRefused,
    ServiceUnavailable,
    SubmissionInDoubt,
)

_SLOW: Final = 1.0
"""Seconds after which a creation that waited for the disk no longer leaves in the place that it was
given: the second's limit would not hold.
"""
_SILENT: Final = 4.0
"""Seconds without an answer after which the history is asked: the task's lease is running."""
_PAUSES: Final = (0.0, 2.0, 4.0)
"""Seconds before each look into the history: what is executed now may not stand there yet."""
_MOST_PAGES: Final = 20
_MOST_KNOWN: Final = 10_000

Ask = Callable[[Channel, tasks.Request], Awaitable[tasks.Response]]


@attrs.define(eq=False)
class _Flight:
    """One creation of `feature` that left at `sent` (UTC microseconds), for job `number`.

    `answered`: an answer came, or none can come any more. `lost`: nobody knows what became of it.
    """

    feature: str
    sent: int
    number: int
    lost: bool = False
    answered: anyio.Event = attrs.field(factory=anyio.Event)


class Submitter:
    """How tasks come to be, on one key and host. `ask` asks a question before anything else."""

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        # Held by the one creation that is under way, or is being settled.
        self._turn = anyio.Lock()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._flights: list[_Flight] = []

    def know(self, task_id: str) -> None:
        """A task that is somebody's here: it is not the one in doubt."""
        self._known[task_id] = None
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    async def create(self, command: ev.Submit, handle: JobHandle) -> ev.Answer:
        """Send the creation of `handle`, and tell what came of it."""
        if not handle.record:
            with self._flight(handle, self._clock.utc()) as flight:
                return await self._sent(command, handle, flight)
        began = self._clock.seconds()
        async with self._turn:
            with self._flight(handle, self._clock.utc()) as flight:
                try:
                    await handle.record.creating()
                except JournalError as exc:
                    return ev.Refused(command, exc, 0)
                if self._clock.seconds() > began + _SLOW:
                    # It stays written down, so that the next try need not wait for the disk.
                    handle.record.ahead = True
                    late = ServiceUnavailable("The journal's disk was slow.", never_sent=True)
                    return ev.NotSent(command, late)
                return await self._certain(command, handle, flight)

    async def settle(self, handle: JobHandle, sent: int) -> str | PerfectError:
        """The task of `handle`, whose creation left at `sent` (UTC microseconds), or why nobody
        knows it.
        """
        with self._flight(handle, sent) as flight:
            flight.lost = True
            flight.answered.set()
            async with self._turn:
                found = await self._settled(handle, flight, None)
            flight.lost = _open(found)
            return found

    @contextmanager
    def _flight(self, handle: JobHandle, sent: int) -> Generator[_Flight]:
        """The creation of `handle`, from its leaving on; known on while it is in doubt."""
        flight = _Flight(handle.spec.feature, sent, handle.record.number)
        self._flights.append(flight)
        try:
            yield flight
        finally:
            flight.answered.set()
            near = self._clock.utc() - NEAR
            self._flights = [
                other
                for other in self._flights
                if (other.lost and other.sent >= near) or not other.answered.is_set()
            ]

    async def _certain(self, command: ev.Submit, handle: JobHandle, flight: _Flight) -> ev.Answer:
        """Create, and ask the history beside where the answer keeps us waiting."""
        answers: list[ev.Answer] = []

        async def answer() -> None:
            answers.append(await self._sent(command, handle, flight))
            group.cancel_scope.cancel()

        async def look() -> None:
            found = await self._look_again(handle, flight, (_SILENT, *_PAUSES[1:]))
            if isinstance(found, str) and not answers:
                answers.append(self._found(command, found, flight))
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            group.start_soon(look)
        silent = ServiceUnavailable("the transport cancelled the request.")
        event = answers[0] if answers else ev.NoAnswer(command, silent)
        if isinstance(event, ev.NoAnswer):
            found = await self._settled(handle, flight, event.error)
            if isinstance(found, str):
                return self._found(command, found, flight)
            flight.lost = _open(found)
            return ev.NoAnswer(command, found)
        return event

    async def _sent(self, command: ev.Submit, handle: JobHandle, flight: _Flight) -> ev.Answer:
        if handle.source is None or handle.spec.job is None:
            raise AssertionError(handle)
        channel, call = handle.channel, tasks.creation(handle.spec.job, handle.source)
        if not handle.awaited:
            # It waited for the disk, or for another creation, and nobody waits for it any more.
            return ev.NotSent(command, ClientClosed("Nobody waits for this job."))
        handle.creating(self._clock.seconds())
        flight.lost = True
        event: ev.Answer
        try:
            reply = await channel.transport.call(call, within=channel.timeouts.request)
            event = tasks.read_creation(command, reply)
        except Exception as exc:  # noqa: BLE001 - a transport is the user's
            event = failure_event(command, exc)
        finally:
            flight.answered.set()
        flight.lost = isinstance(event, ev.NoAnswer)
        if isinstance(event, ev.Accepted):
            # At once: whoever reads the history beside must not take it for another's.
            self.know(event.task_id)
        return event

    def _found(self, command: ev.Submit, task_id: str, flight: _Flight) -> ev.Accepted:
        flight.lost = False
        self.know(task_id)
        return ev.Accepted(command, task_id)

    # Doubt.

    async def _settled(
        self, handle: JobHandle, flight: _Flight, error: PerfectError | None
    ) -> str | PerfectError:
        found = await self._look_again(handle, flight, _PAUSES)
        if isinstance(found, str):
            return found
        why = "The process ended while it was under way." if error is None else error.message
        units = handle.spec.units
        match found:
            case Unresolved.NOTHING:
                told, units = "the unit history shows no charge for it.", 0.0
            case Unresolved.AMBIGUOUS:
                told = "the unit history does not tell which task it is, if any."
            case _:
                told = f"the unit history could not be read: {found.message}"
        return SubmissionInDoubt(
            f"The creation's answer never came, and {told} {why}",
            request_id=getattr(error, "request_id", None),
            units_at_stake=units,
        )

    async def _look_again(
        self, handle: JobHandle, flight: _Flight, pauses: Iterable[float]
    ) -> str | Unresolved | PerfectError:
        """As `_look`, after each of `pauses` while there is nothing: it may only be under way."""
        found: str | Unresolved | PerfectError = Unresolved.NOTHING
        for pause in pauses:
            await anyio.sleep(pause)
            found = await self._look(handle, flight)
            if found is not Unresolved.NOTHING:
                break
        return found

    async def _look(self, handle: JobHandle, flight: _Flight) -> str | Unresolved | PerfectError:
        """What the history tells about the creation of `handle`, which is in `flight`."""
        search = HistorySearch(handle.spec.feature, tasks.FEATURES, flight.sent)
        records, near = handle.channel.records, flight.sent - NEAR
        token: str | None = None
        try:
            for _ in range(_MOST_PAGES):
                reply = await self._ask(handle.channel, history.history(token))
                rows, following = history.read_history(reply)
                if not search.read(rows) or following in {None, token}:
                    break
                token = following
            else:
                return Unresolved.AMBIGUOUS
            # Whose tasks may stand in what was read, beside this one's.
            others = [other for other in self._flights if other is not flight]
            doubtful = records.doubtful(near, {each.number for each in self._flights})
            ours = await records.ids(near)
        except PerfectError as exc:
            return exc

        def known(task_id: str) -> bool:
            return task_id in ours or task_id in self._known

        if search.verdict(known) is Unresolved.NOTHING:
            return Unresolved.NOTHING
        for other in others:
            await other.answered.wait()
        doubtful += [other.feature for other in others if other.lost and other.sent >= near]
        if "" in ours or search.shared(known):
            return Unresolved.AMBIGUOUS
        return search.verdict(known, doubtful)


def _open(found: str | PerfectError) -> bool:
    """Whether a task in the history may still be this one's: not where it shows none at all."""
    return isinstance(found, PerfectError) and found.units_at_stake > 0


def failure_event(command: ev.Request | ev.Upload, error: Exception) -> ev.Answer:
    """Return the event that reports `error` for `command` to the scheduler.

    The error goes on without its traceback, whose frames hold pictures. An error that is none of
    the package's comes from a transport that the user made: its mistakes do not cost other tasks.
    """
    error = error.with_traceback(None)
    match error:
        case ServiceUnavailable(never_sent=True):
            return ev.NotSent(command, error)
        case ServiceUnavailable() | BadAnswer():
            return ev.NoAnswer(command, error)
        case RequestRefused():
            return ev.Refused(command, error, error.status or 0)
        case JobRefused():
            return ev.Refused(command, error, 0)
        case _:
            LOG.error("The transport failed in a way of its own: %s.", type_name(error))
            return ev.NoAnswer(
                command, ServiceUnavailable(f"the transport failed: {type_name(error)}.")
            )
