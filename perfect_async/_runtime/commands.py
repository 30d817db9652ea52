"""The scheduler's commands: what each sends over the wire, and the event that comes back.

Registering, uploading and polling are one request each. Creating a task is billed and has no
idempotency key. With a journal the intent is on the disk before the request is sent, and a creation
whose answer is lost is settled from the unit history. Only one creation is under way on the key
then, of whatever feature, since the history's actions need not name one: so the only unknown task
is the one in doubt, unless other creations of this process are in doubt too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
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
from perfect_async.models import FileId

_DISK_TOO_SLOW: Final = 1.0
"""Seconds after which a creation that waited for the disk is sent in another slot: in its own the
limit per second would no longer hold.
"""
_ANSWER_OVERDUE: Final = 4.0
"""Seconds without an answer after which the history is asked, since the task's lease runs."""
_LOOK_PAUSES: Final = (0.0, 2.0, 4.0)
"""Seconds before each look into the history: a new task may not be listed yet."""
_MOST_PAGES: Final = 20
_MOST_REMEMBERED: Final = 10_000

Ask = Callable[[Channel, tasks.Request], Awaitable[tasks.Response]]


async def call(channel: Channel, request: tasks.Request) -> tasks.Response:
    """Send `request` through the transport of `channel`."""
    return await channel.transport.call(request, within=channel.timeouts.request)


async def register(command: ev.Register, handles: Sequence[JobHandle]) -> ev.Answer:
    """Register the pictures of `handles`, all of one channel, in the order of the command."""
    pictures = [handle.spec.picture for handle in handles]
    facts = [picture.facts for picture in pictures if picture is not None]
    response = await call(handles[0].channel, tasks.registration(facts, command.feature))
    event = tasks.read_registration(command, response)
    if isinstance(event, ev.Registered):
        for handle, grant in zip(handles, event.grants, strict=True):
            handle.grant, handle.source = grant, FileId(grant.file_id)
    return event


async def upload(command: ev.Upload, handle: JobHandle) -> ev.Answer:
    """Upload the picture of `handle` to the URL of its registration."""
    grant, picture = handle.grant, handle.spec.picture
    if grant is None or picture is None:
        raise AssertionError(handle)
    await handle.channel.transport.upload(grant, picture.chunks)
    handle.entry.uploaded(grant.file_id)
    return ev.Uploaded(command)


async def poll(command: ev.Poll, handle: JobHandle, task_id: str) -> ev.Answer:
    """Ask for the state of `task_id`, the task that `handle` had when the command was issued."""
    spec = handle.spec
    response = await call(handle.channel, tasks.status(spec.feature, task_id))
    event = tasks.read_status(command, response, task_id=task_id, units=spec.units)
    if isinstance(event, ev.EngineFailed):
        handle.failed(task_id)
    return event


def failure_event(command: ev.Request | ev.Upload, error: BaseException) -> ev.Answer:
    """Return the event that `error`, raised by the transport, is for `command`.

    The error loses its traceback, whose frames hold pictures. An error of another kind comes from
    a transport that the user made; it must not end other tasks.
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


@attrs.define(eq=False)
class _Flight:
    """One creation of `feature` that was sent at `sent` (UTC microseconds) for job `number`.

    `answered`: an answer came, or none can come any more. `lost`: its outcome is unknown.
    """

    feature: str
    sent: int
    number: int
    lost: bool = False
    answered: anyio.Event = attrs.field(factory=anyio.Event)


class Submitter:
    """Creates the tasks of one key and host. `ask` sends a query before any other request."""

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        # Held by the one creation that is under way or being settled.
        self._turn = anyio.Lock()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._flights: list[_Flight] = []

    def know(self, task_id: str) -> None:
        """Remember a task that belongs to a job of this process, so it is not the one in doubt."""
        self._known[task_id] = None
        while len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)

    async def create(self, command: ev.Submit, handle: JobHandle) -> ev.Answer:
        """Send the creation of `handle` and return its outcome."""
        if not handle.entry.persistent:
            with self._flight(handle, self._clock.utc()) as flight:
                return await self._sent(command, handle, flight)
        began = self._clock.seconds()
        async with self._turn:
            with self._flight(handle, self._clock.utc()) as flight:
                try:
                    await handle.entry.creating()
                except JournalError as exc:
                    return ev.Refused(command, exc, 0)
                if self._clock.seconds() > began + _DISK_TOO_SLOW:
                    # The entry stays, so that the next try need not wait for the disk.
                    handle.entry.written_ahead = True
                    late = ServiceUnavailable("The journal's disk was slow.", never_sent=True)
                    return ev.NotSent(command, late)
                return await self._certain(command, handle, flight)

    async def settle(self, handle: JobHandle, sent: int) -> str | PerfectError:
        """Return the task of `handle`, or the error that says why it is unknown.

        Its creation was sent at `sent` (UTC microseconds), by this process or the former one.
        """
        with self._flight(handle, sent) as flight:
            flight.lost = True
            flight.answered.set()
            async with self._turn:
                found = await self._settled(handle, flight, None)
            flight.lost = _unsettled(found)
            return found

    @contextmanager
    def _flight(self, handle: JobHandle, sent: int) -> Generator[_Flight]:
        """Track the creation of `handle`, beyond the block while it is in doubt."""
        flight = _Flight(handle.spec.feature, sent, handle.entry.number)
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
        """Send the creation, and ask the history too where the answer is overdue."""
        answers: list[ev.Answer] = []

        async def answer() -> None:
            answers.append(await self._sent(command, handle, flight))
            group.cancel_scope.cancel()

        async def look() -> None:
            found = await self._look_again(handle, flight, (_ANSWER_OVERDUE, *_LOOK_PAUSES[1:]))
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
            flight.lost = _unsettled(found)
            return ev.NoAnswer(command, found)
        return event

    async def _sent(self, command: ev.Submit, handle: JobHandle, flight: _Flight) -> ev.Answer:
        if handle.source is None or handle.spec.job is None:
            raise AssertionError(handle)
        channel, call = handle.channel, tasks.creation(handle.spec.job, handle.source)
        if not handle.awaited:
            # Its caller went away while it waited for the disk or for another creation.
            return ev.NotSent(command, ClientClosed("Nobody waits for this job."))
        handle.creating(self._clock.seconds())
        flight.lost = True
        event: ev.Answer
        try:
            response = await channel.transport.call(call, within=channel.timeouts.request)
            event = tasks.read_creation(command, response)
        except Exception as exc:  # noqa: BLE001 - a transport is the user's
            event = failure_event(command, exc)
        finally:
            flight.answered.set()
        flight.lost = isinstance(event, ev.NoAnswer)
        if isinstance(event, ev.Accepted):
            # At once, so that no concurrent look into the history takes it for another's.
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
        found = await self._look_again(handle, flight, _LOOK_PAUSES)
        if isinstance(found, str):
            return found
        why = "The process ended while it was under way." if error is None else error.message
        units = handle.spec.units
        match found:
            case Unresolved.NOTHING:
                found_there, units = "the unit history shows no charge for it.", 0.0
            case Unresolved.AMBIGUOUS:
                found_there = "the unit history does not tell which task it is, if any."
            case _:
                found_there = f"the unit history could not be read: {found.message}"
        return SubmissionInDoubt(
            f"The creation's answer never came, and {found_there} {why}",
            request_id=getattr(error, "request_id", None),
            units_at_stake=units,
        )

    async def _look_again(
        self, handle: JobHandle, flight: _Flight, pauses: Iterable[float]
    ) -> str | Unresolved | PerfectError:
        """Look after each of `pauses` until something is found: it may be executed late."""
        found: str | Unresolved | PerfectError = Unresolved.NOTHING
        for pause in pauses:
            await anyio.sleep(pause)
            found = await self._look(handle, flight)
            if found is not Unresolved.NOTHING:
                break
        return found

    async def _look(self, handle: JobHandle, flight: _Flight) -> str | Unresolved | PerfectError:
        """Return what the history says about the creation of `handle`, tracked by `flight`."""
        search = HistorySearch(handle.spec.feature, tasks.FEATURES, flight.sent)
        journal, near = handle.channel.journal, flight.sent - NEAR
        token: str | None = None
        try:
            for _ in range(_MOST_PAGES):
                response = await self._ask(handle.channel, history.history(token))
                rows, following = history.read_history(response)
                if not search.read(rows) or following in {None, token}:
                    break
                token = following
            else:
                return Unresolved.AMBIGUOUS
            # Other creations whose tasks may be listed as well.
            others = [other for other in self._flights if other is not flight]
            in_doubt = journal.features_in_doubt(near, {each.number for each in self._flights})
            recorded = await journal.writer.task_ids(near)
        except PerfectError as exc:
            return exc

        def known(task_id: str) -> bool:
            return task_id in recorded or task_id in self._known

        if search.verdict(known) is Unresolved.NOTHING:
            return Unresolved.NOTHING
        for other in others:
            await other.answered.wait()
        in_doubt += [other.feature for other in others if other.lost and other.sent >= near]
        if "" in recorded or search.shared(known):
            return Unresolved.AMBIGUOUS
        return search.verdict(known, in_doubt)


def _unsettled(found: str | PerfectError) -> bool:
    """Whether a task in the history may still be this one's: not where it lists none at all."""
    return isinstance(found, PerfectError) and found.units_at_stake > 0
