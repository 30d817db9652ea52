"""The one place that asks an event loop for a task which no task group owns."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


def host(
    loop: asyncio.AbstractEventLoop, work: Coroutine[object, object, None], name: str
) -> asyncio.Task[None]:
    """Run `work` as a task of its own: its owner must see to its end, and it ends with the loop.

    A group that a client entered in one task could not be left in another (fixtures, notebooks,
    containers), and clients may be opened and closed in different tasks.
    """
    return loop.create_task(work, name=name)
