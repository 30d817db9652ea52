"""Starts the only tasks that no task group owns."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


def host(
    loop: asyncio.AbstractEventLoop, work: Coroutine[object, object, None], name: str
) -> asyncio.Task[None]:
    """Run `work` as a task of its own; the caller must end it, and it ends with the loop.

    A task group must be left in the task that entered it, but a client may be opened and closed in
    different tasks (fixtures, notebooks, containers).
    """
    return loop.create_task(work, name=name)
