"""One command each: what goes over the wire for it, and the news that comes back.

Only creating a task is more than that (`_creation`). What goes wrong is raised as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from perfect_async import events as ev
from perfect_async._api import tasks
from perfect_async._runtime.handle import Channel, JobHandle
from perfect_async.models import FileId


async def call(channel: Channel, call: tasks.Request) -> tasks.Response:
    """Send `call` along `channel`."""
    return await channel.transport.call(call, within=channel.timeouts.request)


async def register(command: ev.Register, handles: Sequence[JobHandle]) -> ev.Answer:
    """Register the pictures of `handles`, which are of one lane, in the order of the command."""
    pictures = [handle.spec.picture for handle in handles]
    facts = [picture.facts for picture in pictures if picture is not None]
    reply = await call(handles[0].channel, tasks.registration(facts, command.feature))
    event = tasks.read_registration(command, reply)
    if isinstance(event, ev.Registered):
        for handle, grant in zip(handles, event.grants, strict=True):
            handle.grant, handle.source = grant, FileId(grant.file_id)
    return event


async def upload(command: ev.Upload, handle: JobHandle) -> ev.Answer:
    """Put the picture of `handle` where its registration said."""
    grant, picture = handle.grant, handle.spec.picture
    if grant is None or picture is None:
        raise AssertionError(handle)
    await handle.channel.transport.upload(grant, picture.chunks)
    handle.record.uploaded(grant.file_id)
    return ev.Uploaded(command)


async def poll(command: ev.Poll, handle: JobHandle, task_id: str) -> ev.Answer:
    """Ask for the state of the task that `handle` had when the command was given."""
    spec = handle.spec
    reply = await call(handle.channel, tasks.status(spec.feature, task_id))
    event = tasks.read_status(command, reply, task_id=task_id, units=spec.units)
    if isinstance(event, ev.EngineFailed):
        handle.failed(task_id)
    return event
