"""JSON <-> models and events: with `_reply` and `_enquiries`, all that knows the vendor's keys.

What is built here is a `Request`; what is read is a `Response`. An answer to a command becomes an
`events.Answer`, whatever its bytes are; the `read_*` functions, which have no command, raise. Keys,
paths and the numbers of steps are those of the contract page throughout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final, Literal

import attrs

from perfect_async import events
from perfect_async._api.responses import (
    File,
    Response,
    Results,
    State,
    as_delay,
    as_interval,
    bad,
    error_details,
    outer_interval,
    read,
    refusal,
    same_code,
    unsigned,
)
from perfect_async._api.urls import percent
from perfect_async.errors import (
    BadAnswer,
    JobRefused,
    RateLimited,
    RequestRefused,
    TaskExpired,
    TaskFailed,
    TaskTimedOut,
    Unauthorized,
    UnitsExhausted,
    quoted,
)
from perfect_async.models import Avatar, FileId, Job, Smile

__all__ = [
    "FEATURES",
    "FileFacts",
    "Request",
    "Response",
    "asked",
    "poll",
    "polled",
    "refusal",
    "register",
    "registered",
    "submit",
    "submitted",
    "usable",
]

# The fields of a job as the vendor calls them. A new feature is a line here.
_PARAMETERS: Final[dict[type[Job], dict[str, str]]] = {
    Smile: {"expression": "expression_type"},
    Avatar: {"template_id": "template_id", "output_count": "output_count"},
}

# contract: Errors. All other engine codes are about the picture and stay.
_PASSING: Final = frozenset(
    {"error_inference", "error_upload", "error_download_image", "unknown_internal_error"}
)

_LONGEST_ID: Final = 1024
_HTTP: Final = re.compile(r"https?://", re.IGNORECASE)
# A segment that percent-encoding leaves as it is, and that does not climb.
_PLAIN: Final = re.compile(r"(?=.*[A-Za-z0-9_~-])[A-Za-z0-9._~-]+")


FEATURES: Final[dict[str, type[Job]]] = {kind.feature: kind for kind in _PARAMETERS}
"""The kinds of jobs that can be sent, by the vendor's names for their features."""


@attrs.frozen
class Request:
    """A request to the API's host: `path` from the root, percent-encoded; `content` is JSON."""

    method: Literal["GET", "POST"]
    path: str
    query: tuple[tuple[str, str], ...] = ()
    content: bytes | None = None


@attrs.frozen
class FileFacts:
    """What the vendor is told of a picture: its MIME type, an ASCII name, its size in bytes."""

    content_type: str
    file_name: str
    file_size: int


def _setback(
    command: events.Request, reply: Response
) -> events.KeyRefused | events.Limited | events.NoAnswer | events.Refused:
    """What `reply`, no success, means for any command."""
    error = refusal(reply)
    match error:
        case Unauthorized():
            return events.KeyRefused(command, error)
        case RateLimited():
            return events.Limited(command, error, as_delay(reply.retry_after))
        case RequestRefused() | UnitsExhausted():
            return events.Refused(command, error, reply.status)
        case _:
            return events.NoAnswer(command, error)


def register(files: Sequence[FileFacts], feature: str | None) -> Request:
    """Register `files` in order, on the path of `feature` or the universal one (the flow, 1)."""
    rows = [
        {
            "content_type": file.content_type,
            "file_name": re.sub(r"[^A-Za-z0-9._ -]", "_", file.file_name)[-80:] or "picture",
            "file_size": file.file_size,
        }
        for file in files
    ]
    path = "/s2s/v2.0/file" if feature is None else f"/s2s/v2.0/file/{segment(feature)}"
    return Request("POST", path, content=as_json({"files": rows}))


def registered(command: events.Register, reply: Response) -> events.Answer:
    """`Registered` with a grant per ref, or `Refused`, `Limited`, `KeyRefused`, `NoAnswer`."""
    if not reply.good:
        return _setback(command, reply)
    try:
        files = read(reply, list[File], "data", "files")
        if len(files) != len(command.refs):
            raise bad(reply, f"data.files has {len(files)} entries for {len(command.refs)} files")
        return events.Registered(
            command, tuple(_grant(reply, place, file) for place, file in enumerate(files))
        )
    except BadAnswer as error:
        return events.NoAnswer(command, error)


def _grant(reply: Response, place: int, file: File) -> events.FileGrant:
    if not file.file_id:
        raise bad(reply, f"data.files[{place}].file_id is empty")
    if not file.requests:
        raise bad(reply, f"data.files[{place}].requests[0] is missing")
    put = file.requests[0]
    return events.FileGrant(file.file_id, put.method or "PUT", put.url, put.headers)


def submit(job: Job, source: FileId | str) -> Request:
    """Create the task of `job` on `source`, a file's id or a URL (contract: the flow, 3).

    Raises `JobRefused` for a kind of job that has no line in the table here.
    """
    names = next((_PARAMETERS[kind] for kind in type(job).__mro__ if kind in _PARAMETERS), None)
    if names is None:
        raise JobRefused(f"{quoted(type(job).__name__)} is no feature that this version can send.")
    body: dict[str, object] = (
        {"src_file_id": source.value} if isinstance(source, FileId) else {"src_file_url": source}
    )
    for field, key in names.items():
        value: object = getattr(job, field)
        # Left out rather than null, which is a 400.
        if value is not None:
            body[key] = value
    return Request("POST", f"/s2s/v2.0/task/{segment(job.feature)}", content=as_json(body))


def submitted(command: events.Submit, reply: Response) -> events.Answer:
    """`Accepted`, `OutOfUnits`, `Refused`, `Limited` or `KeyRefused`.

    `NoAnswer` leaves open whether the task exists: a 5xx, or a success without a usable task id.
    """
    if not reply.good:
        setback = _setback(command, reply)
        if isinstance(setback.error, UnitsExhausted):
            return events.OutOfUnits(command, setback.error)
        return setback
    try:
        task_id = read(reply, str, "data", "task_id")
        if not usable(task_id):
            raise bad(reply, "data.task_id is no usable id")
    except BadAnswer as error:
        return events.NoAnswer(command, error)
    return events.Accepted(command, task_id)


def usable(task_id: str) -> bool:
    """Whether this can be a task's id: opaque, but neither blank nor endless, and fit to print."""
    fits = 1 <= len(task_id) <= _LONGEST_ID
    return fits and task_id.isprintable() and not task_id.isspace()


def poll(feature: str, task_id: str) -> Request:
    """Ask for the state of a task (contract: the flow, 4)."""
    return Request("GET", f"/s2s/v2.0/task/{segment(feature)}/{segment(task_id)}")


def polled(command: events.Poll, reply: Response, *, task_id: str, units: float) -> events.Answer:
    """How the task stands; `units` is what is at stake if the vendor no longer knows it.

    `Running`, `Succeeded`, `EngineFailed`, `TaskUnknown`, `TimedOut`, or as for any command
    `Limited`, `KeyRefused`, `Refused`, and `NoAnswer` for whatever can be asked again. A status
    that nobody knows is running.
    """
    if not reply.good:
        return _ended(command, reply, task_id, units) or _setback(command, reply)
    try:
        state = read(reply, State, "data")
        match state.task_status.strip().lower():
            case "success":
                return events.Succeeded(command, _urls(reply))
            case "error":
                return _failed(command, reply, state, task_id)
            case _:
                said = as_interval(state.polling_interval) or as_interval(outer_interval(reply))
                return events.Running(command, said)
    except BadAnswer as error:
        return events.NoAnswer(command, error)


def _ended(
    command: events.Poll, reply: Response, task_id: str, units: float
) -> events.TaskUnknown | events.TimedOut | None:
    """The two refusals that are about the task and not about the request (contract: Errors)."""
    if reply.status == 500 and b"task execution timed out" in reply.content.lower():  # noqa: PLR2004
        timeout = TaskTimedOut(
            "the task ran into the vendor's own time limit.",
            task_id=task_id,
            request_id=reply.identity,
            units_at_stake=units,
        )
        return events.TimedOut(command, timeout)
    if reply.denied and same_code(error_details(reply)[1], "InvalidTaskId"):
        expired = TaskExpired(
            "the vendor does not know the task: it expired, and its units may have been charged.",
            task_id=task_id,
            request_id=reply.identity,
            units_at_stake=units,
        )
        return events.TaskUnknown(command, expired)
    return None


def _failed(
    command: events.Poll, reply: Response, state: State, task_id: str
) -> events.EngineFailed:
    # A missing code is not taken for one that may pass: a further try costs units and requests.
    said = str(state.error).strip() if state.error else "unspecified"
    code = "".join(c if c.isprintable() else " " for c in said.lower())[:100]
    detail = f" ({unsigned(state.error_message)})" if state.error_message else ""
    passing = code in _PASSING
    error = TaskFailed(
        f"the engine failed with {unsigned(code)}{detail}.",
        code=code,
        passing=passing,
        task_id=task_id,
        request_id=reply.identity,
    )
    return events.EngineFailed(command, error, passing)


def _urls(reply: Response) -> tuple[str, ...]:
    """The pictures' URLs: `output[].url` where there is an output, else `url` (the flow, 4).

    An entry without a usable URL is left out, so that it does not take the others along.
    """
    results = read(reply, Results, "data", "results")
    pictures = results.output or [results]
    urls = [p.url for p in pictures if isinstance(p.url, str) and _HTTP.match(p.url)]
    if not urls:
        raise bad(reply, "data.results has no usable url")
    return tuple(urls)


def asked(command: events.Ask, reply: Response) -> events.Answer:
    """`Answered` for a success, whose body a `read_*` function reads; else as any command."""
    return events.Answered(command) if reply.good else _setback(command, reply)


def segment(text: str) -> str:
    """`text` as one segment of a path; also "." and "..", which would climb if left as they are."""
    if _PLAIN.fullmatch(text):
        return text
    if not text.strip("."):
        return text.replace(".", "%2E")
    # Ids of our own come through `submitted`, which takes no surrogates; a user's may hold them.
    return percent(text.encode(errors="replace").decode())


def as_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
