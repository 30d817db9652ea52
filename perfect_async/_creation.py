"""Creating a task: written down before, and settled from the unit history where no answer comes.

Creating is billed and has no idempotency key. With a journal the intent is on the disk before the
request leaves, and at most one creation per feature is under way on the key: so the history's only
unknown task of that feature is the one in doubt. Without a journal nothing can be settled so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import anyio

from perfect_async import _enquiries, _wire
from perfect_async import events as ev
from perfect_async._doubt import SKEW, Inquiry, Unsettled
from perfect_async._failures import setback
from perfect_async._ticket import Lane, Ticket
from perfect_async.errors import (
    JournalError,
    PerfectError,
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

Ask = Callable[[Lane, _wire.Call], Awaitable[_wire.Reply]]


class Clock(Protocol):
    """The driver's clock."""

    def utc(self) -> int:
        """UTC microseconds, moving with the loop's clock."""
        ...

    def seconds(self) -> float:
        """The loop's time."""
        ...


class Creations:
    """How tasks come to be, on one key and host. `ask` asks a question before anything else."""

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._turns: dict[str, anyio.Lock] = {}
        self._known: OrderedDict[str, None] = OrderedDict()

    def know(self, task_id: str) -> None:
        """A task that is somebody's here: it is not the one in doubt."""
        self._known[task_id] = None
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    async def create(self, command: ev.Submit, ticket: Ticket) -> ev.Answer:
        """Send the creation of `ticket`, and tell what came of it."""
        if not ticket.record:
            ticket.creating(self._clock.seconds())
            return await self._sent(command, ticket)
        began = self._clock.seconds()
        async with self._turn(ticket.errand.feature):
            try:
                await ticket.record.creating()
            except JournalError as exc:
                return ev.Refused(command, exc, 0)
            if self._clock.seconds() > began + _SLOW:
                # It stays written down, so that the next try need not wait for the disk.
                ticket.record.ahead = True
                late = ServiceUnavailable("The journal's disk was slow.", never_sent=True)
                return ev.NotSent(command, late)
            return await self._certain(command, ticket)

    async def settle(self, ticket: Ticket, sent: int) -> str | PerfectError:
        """The task of `ticket`, whose creation left at `sent` (UTC microseconds), or why nobody
        knows it.
        """
        async with self._turn(ticket.errand.feature):
            return await self._settled(ticket, sent, None)

    def _turn(self, feature: str) -> anyio.Lock:
        """Held by the one creation of `feature` that is under way, or is being settled."""
        return self._turns.setdefault(feature, anyio.Lock())

    async def _certain(self, command: ev.Submit, ticket: Ticket) -> ev.Answer:
        """Create, and ask the history beside where the answer keeps us waiting."""
        sent = self._clock.utc()
        ticket.creating(self._clock.seconds())
        answers: list[ev.Answer] = []

        async def answer() -> None:
            try:
                answers.append(await self._sent(command, ticket))
            except Exception as exc:  # noqa: BLE001 - a transport is the user's
                answers.append(setback(command, exc))
            group.cancel_scope.cancel()

        async def look() -> None:
            await anyio.sleep(_SILENT)
            found = await self._look(ticket, sent)
            if isinstance(found, str) and not answers:
                answers.append(ev.Accepted(command, found))
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            group.start_soon(look)
        silent = ServiceUnavailable("the transport cancelled the request.")
        event = answers[0] if answers else ev.NoAnswer(command, silent)
        if isinstance(event, ev.NoAnswer):
            found = await self._settled(ticket, sent, event.error)
            if isinstance(found, str):
                return ev.Accepted(command, found)
            return ev.NoAnswer(command, found)
        return event

    async def _sent(self, command: ev.Submit, ticket: Ticket) -> ev.Answer:
        if ticket.source is None or ticket.errand.job is None:
            raise AssertionError(ticket)
        lane, call = ticket.lane, _wire.submit(ticket.errand.job, ticket.source)
        reply = await lane.transport.call(call, within=lane.timeouts.request)
        return _wire.submitted(command, reply)

    # Doubt.

    async def _settled(
        self, ticket: Ticket, sent: int, error: PerfectError | None
    ) -> str | PerfectError:
        found: str | Unsettled | PerfectError = Unsettled.NOTHING
        for pause in _PAUSES:
            await anyio.sleep(pause)
            found = await self._look(ticket, sent)
            if found is not Unsettled.NOTHING:
                break
        if isinstance(found, str):
            return found
        why = "The process ended while it was under way." if error is None else error.message
        units = ticket.errand.units
        match found:
            case Unsettled.NOTHING:
                told, units = "the unit history shows no charge for it.", 0.0
            case Unsettled.AMBIGUOUS:
                told = "the unit history shows more than one task that it may be."
            case _:
                told = f"the unit history could not be read: {found.message}"
        return SubmissionInDoubt(
            f"The creation's answer never came, and {told} {why}",
            request_id=getattr(error, "request_id", None),
            units_at_stake=units,
        )

    async def _look(self, ticket: Ticket, sent: int) -> str | Unsettled | PerfectError:
        """What the history tells about the creation that left at `sent`."""
        inquiry = Inquiry(ticket.errand.feature, _wire.FEATURES, sent)
        token: str | None = None
        try:
            for _ in range(_MOST_PAGES):
                reply = await self._ask(ticket.lane, _enquiries.history(token))
                rows, following = _enquiries.read_history(reply)
                if not inquiry.read(rows) or following in {None, token}:
                    break
                token = following
            else:
                return Unsettled.AMBIGUOUS
            known = await ticket.lane.records.ids(sent - 2 * SKEW)
        except PerfectError as exc:
            return exc
        return inquiry.verdict(lambda task_id: task_id in known or task_id in self._known)
