"""One command each: what goes over the wire for it, and the news that comes back.

Only creating a task is more than that (`_creation`). What goes wrong is raised as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from perfect_async import events as ev
from perfect_async._api import tasks
from perfect_async._runtime.handle import Lane, Ticket
from perfect_async.models import FileId


async def call(lane: Lane, call: tasks.Call) -> tasks.Reply:
    """Send `call` along `lane`."""
    return await lane.transport.call(call, within=lane.timeouts.request)


async def register(command: ev.Register, tickets: Sequence[Ticket]) -> ev.Answer:
    """Register the pictures of `tickets`, which are of one lane, in the order of the command."""
    pictures = [ticket.errand.picture for ticket in tickets]
    facts = [picture.facts for picture in pictures if picture is not None]
    reply = await call(tickets[0].lane, tasks.register(facts, command.feature))
    event = tasks.registered(command, reply)
    if isinstance(event, ev.Registered):
        for ticket, grant in zip(tickets, event.grants, strict=True):
            ticket.grant, ticket.source = grant, FileId(grant.file_id)
    return event


async def upload(command: ev.Upload, ticket: Ticket) -> ev.Answer:
    """Put the picture of `ticket` where its registration said."""
    grant, picture = ticket.grant, ticket.errand.picture
    if grant is None or picture is None:
        raise AssertionError(ticket)
    await ticket.lane.transport.upload(grant, picture.chunks)
    ticket.record.uploaded(grant.file_id)
    return ev.Uploaded(command)


async def poll(command: ev.Poll, ticket: Ticket, task_id: str) -> ev.Answer:
    """Ask for the state of the task that `ticket` had when the command was given."""
    errand = ticket.errand
    reply = await call(ticket.lane, tasks.poll(errand.feature, task_id))
    event = tasks.polled(command, reply, task_id=task_id, units=errand.units)
    if isinstance(event, ev.EngineFailed):
        ticket.failed(task_id)
    return event
