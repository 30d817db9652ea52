"""Runs blocking calls of the disk in worker threads."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import anyio
import anyio.to_thread

T = TypeVar("T")

_TOO_MANY_FILES: Final = {errno.EMFILE, errno.ENFILE}
"""The errors for a process, or a machine, without free file handles."""
_PAUSES: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before each retry."""


def is_passing(error: OSError) -> bool:
    """Return whether the call may succeed a little later, since too many files are open."""
    return error.errno in _TOO_MANY_FILES


async def in_thread(
    function: Callable[..., T], *args: object, limiter: anyio.CapacityLimiter | None = None
) -> T:
    """Call `function` in a worker thread, and retry it while too many files are open.

    A cancelled caller does not wait for the thread, so that a hanging disk blocks no caller.
    `function` must therefore leave nothing behind if it ends later.
    """
    for pause in _PAUSES:
        try:
            return await _once(partial(function, *args), limiter)
        except OSError as exc:
            if not is_passing(exc):
                raise
        await anyio.sleep(pause)
    return await _once(partial(function, *args), limiter)


async def _once(function: Callable[[], T], limiter: anyio.CapacityLimiter | None) -> T:
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=limiter)
