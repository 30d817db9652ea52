"""Asyncio client for Perfect Corp's YouCam API that creates only tasks it can keep alive.

    async with Client() as client:                       # key from YOUCAM_API_KEY
        result = await client.run(Smile("selfie.jpg"))
        await result.save("smiling.jpg")

The README shows the rest. `perfect_async.errors` has the tree of errors. "(contract: Limits)" in a
docstring or comment names a section of `perfect_async/_api/README.md`, the page that says what the
vendor does, and how that is known.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from perfect_async.errors import (
    ApiError,
    BadAnswer,
    CeilingReached,
    ClientClosed,
    ConfigurationError,
    JobRefused,
    JournalError,
    NotSaved,
    PerfectError,
    PictureRefused,
    RateLimited,
    RequestRefused,
    ResultUnreadable,
    ServiceUnavailable,
    SourceLost,
    SubmissionInDoubt,
    TaskAbandoned,
    TaskError,
    TaskExpired,
    TaskFailed,
    TaskTimedOut,
    Unauthorized,
    UnitsExhausted,
    WaitTimeout,
    WebhookRejected,
)
from perfect_async.models import (
    Avatar,
    Feature,
    FileId,
    Grant,
    Job,
    JobInput,
    Limits,
    Placeholder,
    Polling,
    Progress,
    Smile,
    Studio,
    Timeouts,
    Units,
)
from perfect_async.reports import (
    Estimate,
    HistoryEntry,
    JobEvent,
    LeaseBracket,
    Spending,
    Statistics,
    TaskStatus,
    Template,
)

if TYPE_CHECKING:
    from perfect_async._client.batch import Batch
    from perfect_async._client.client import Client
    from perfect_async._client.results import Done, Failed, Outcome, Result, ResultImage
    from perfect_async._client.task import Task

__all__ = [
    "ApiError",
    "Avatar",
    "BadAnswer",
    "Batch",
    "CeilingReached",
    "Client",
    "ClientClosed",
    "ConfigurationError",
    "Done",
    "Estimate",
    "Failed",
    "Feature",
    "FileId",
    "Grant",
    "HistoryEntry",
    "Job",
    "JobEvent",
    "JobInput",
    "JobRefused",
    "JournalError",
    "LeaseBracket",
    "Limits",
    "NotSaved",
    "Outcome",
    "PerfectError",
    "PictureRefused",
    "Placeholder",
    "Polling",
    "Progress",
    "RateLimited",
    "RequestRefused",
    "Result",
    "ResultImage",
    "ResultUnreadable",
    "ServiceUnavailable",
    "Smile",
    "SourceLost",
    "Spending",
    "Statistics",
    "Studio",
    "SubmissionInDoubt",
    "Task",
    "TaskAbandoned",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "TaskStatus",
    "TaskTimedOut",
    "Template",
    "Timeouts",
    "Unauthorized",
    "Units",
    "UnitsExhausted",
    "WaitTimeout",
    "WebhookRejected",
]

# Loading httpx, asyncio and the scheduler takes most of the time of an import. Programs that only
# need values or errors, and `perfect-async --help`, do not wait for it.
_LOADED_WHEN_USED: Final = {
    "Batch": "perfect_async._client.batch",
    "Client": "perfect_async._client.client",
    "Done": "perfect_async._client.results",
    "Failed": "perfect_async._client.results",
    "Outcome": "perfect_async._client.results",
    "Result": "perfect_async._client.results",
    "ResultImage": "perfect_async._client.results",
    "Task": "perfect_async._client.task",
}


def _claim(thing: object) -> None:
    # Objects name the module that people import them from, not the file that defines them.
    if isinstance(thing, type):
        thing.__module__ = __name__


def __getattr__(name: str) -> object:
    if name not in _LOADED_WHEN_USED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    thing: object = getattr(import_module(_LOADED_WHEN_USED[name]), name)
    _claim(thing)
    globals()[name] = thing
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


for _thing in [value for name, value in globals().items() if name in __all__]:
    _claim(_thing)
