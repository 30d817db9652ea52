"""Perfect Corp's YouCam API for asyncio: pictures in bulk, no task that cannot be kept alive.

    async with Client() as client:                       # key from YOUCAM_API_KEY
        result = await client.run(Smile("selfie.jpg"))
        await result.save("smiling.jpg")

The README tells the rest; `perfect_async.errors` draws the tree of what can go wrong.
"""

from __future__ import annotations

from perfect_async._client.batch import Batch
from perfect_async._client.client import Client
from perfect_async._client.results import Done, Failed, Outcome, Result, ResultImage
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
    FileId,
    Grant,
    Job,
    Limits,
    Polling,
    Progress,
    Smile,
    Timeouts,
    Units,
)
from perfect_async.reports import Estimate, Spending, Statistics, Template

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
    "FileId",
    "Grant",
    "Job",
    "JobRefused",
    "JournalError",
    "Limits",
    "NotSaved",
    "Outcome",
    "PerfectError",
    "PictureRefused",
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
    "SubmissionInDoubt",
    "TaskAbandoned",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "TaskTimedOut",
    "Template",
    "Timeouts",
    "Unauthorized",
    "Units",
    "UnitsExhausted",
    "WaitTimeout",
    "WebhookRejected",
]

# Objects say where people import them from, not which file holds them.
for _thing in [value for name, value in globals().items() if name in __all__]:
    if isinstance(_thing, type):
        _thing.__module__ = __name__
