"""Logs each request as one line at DEBUG."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import anyio
import attrs

from perfect_async._log import LOG, type_name
from perfect_async.errors import quoted

_observed: Final[ContextVar[RequestNote | None]] = ContextVar("perfect_async_note", default=None)

_SHOWN: Final = 8
"""Characters of a task's id that are logged in a path; the whole id is logged separately."""


class RequestNote:
    """Remembers the last request that this context, or a context copied from it, has sent.

    Create it before the requests: another asyncio task, which copies the context, may send them.
    """

    def __init__(self) -> None:
        self.last: RequestLog | None = None
        _observed.set(self)


@attrs.define(eq=False)
class RequestLog:
    """The log entry of one request; its sender sets `status`, `request_id` and `task_id`.

    `path` is the path of an API call without its query, or the word "upload" or "download" for a
    request to the vendor's storage, whose URLs are signed.
    """

    method: str
    path: str
    task_id: str | None = None
    status: int | None = None
    request_id: str | None = None

    def write(self, seconds: float, failure: BaseException | None) -> None:
        """Write the line; log processors find the same values as attributes of the record."""
        path, task_id = self.path, self.task_id
        if task_id is not None and len(task_id) > _SHOWN:
            path = path.replace(task_id, f"{task_id[:_SHOWN]}...")
        outcome = "no answer" if failure is None else type_name(failure)
        LOG.debug(
            "%s %s %s in %.3f s, request %s, task %s",
            self.method,
            path,
            outcome if self.status is None else self.status,
            seconds,
            "-" if self.request_id is None else quoted(self.request_id),
            "-" if task_id is None else quoted(task_id),
            extra={
                "method": self.method,
                "path": path,
                "status": self.status,
                "seconds": seconds,
                "request_id": self.request_id,
                "task_id": task_id,
            },
        )


@contextmanager
def logged_request(method: str, path: str, task_id: str | None = None) -> Generator[RequestLog]:
    """Log the request that this block sends, also if no answer comes.

    `path` must have no query. The line is not built while DEBUG is off.
    """
    log = RequestLog(method, path, task_id)
    if (note := _observed.get()) is not None:
        note.last = log
    if not LOG.isEnabledFor(logging.DEBUG):
        yield log
        return
    began = anyio.current_time()
    try:
        yield log
    except BaseException as exc:
        log.write(anyio.current_time() - began, exc)
        raise
    log.write(anyio.current_time() - began, None)
