"""The calls of a task: register its files, create it, ask for its status.

A function `<name>` builds a `Request`; `read_<name>` turns its `Response`, with any bytes, into an
`events.Answer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal, cast

import attrs

from perfect_async import events
from perfect_async._api.responses import (
    CreatedTask,
    RegisteredFile,
    Response,
    TaskState,
    as_delay,
    as_plain,
    bad_answer,
    code_of,
    error_details,
    error_parts,
    interval,
    is_task_id,
    quoted_text,
    read,
    response_error,
    same_code,
)
from perfect_async._api.urls import percent
from perfect_async._value import Value
from perfect_async.errors import (
    BadAnswer,
    JobRefused,
    PerfectError,
    RateLimited,
    RequestRefused,
    ResultUnreadable,
    ServiceUnavailable,
    TaskExpired,
    TaskFailed,
    TaskTimedOut,
    Unauthorized,
    UnitsExhausted,
    quoted,
)
from perfect_async.models import Avatar, Feature, FileId, Job, Smile, Studio, placeholders_filled

__all__ = [
    "FEATURES",
    "FileFacts",
    "Request",
    "Response",
    "as_json",
    "creation",
    "feature_path",
    "is_unknown_task",
    "mixed_inputs",
    "pictures_only",
    "read_answer",
    "read_creation",
    "read_registration",
    "read_status",
    "registration",
    "says_more",
    "segment",
    "status",
    "task_path",
]

# The vendor's names for the fields of a job. A new typed feature needs one line here and a class in
# `models`: see README.md, "A typed feature".
_PARAMETERS: Final[dict[type[Job], dict[str, str]]] = {
    Smile: {"expression": "expression_type"},
    Avatar: {"template_id": "template_id", "output_count": "output_count"},
    Studio: {"template_id": "template_id", "output_count": "output_count"},
}

_NOT_FOUND: Final = 404
_SERVER_ERROR: Final = 500
# Engine codes of failures that may pass on another try. All other codes are about the picture
# (contract: Engine codes).
_PASSING: Final = frozenset(
    {"error_inference", "error_upload", "error_download_image", "unknown_internal_error"}
)

_HTTP: Final = re.compile(r"https?://", re.IGNORECASE)
# A segment of a path that needs no percent-encoding and is not "." or "..".
_PLAIN: Final = re.compile(r"(?=.*[A-Za-z0-9_~-])[A-Za-z0-9._~-]+")


FEATURES: Final[dict[str, type[Job]]] = {kind.feature: kind for kind in _PARAMETERS}
"""The typed features: classes of jobs by the vendor's names for their features."""


def pictures_only(feature: str, job: Job | None) -> bool:
    """Return whether the results of a task of `feature` must be pictures.

    The job decides: a `Feature` may name the path of a class. If the task is known by its id alone,
    so that `job` is None, the class of the feature decides.
    """
    kind = FEATURES.get(feature) if job is None else job
    return kind is not None and kind.pictures_only


@attrs.frozen(eq=False, repr=False)
class Request(Value):
    """A request to the API's host: a percent-encoded `path` from the root, `content` as JSON.

    `task_id` names the task of the request for the log; None for a request about no task.
    """

    method: Literal["GET", "POST"]
    path: str
    query: tuple[tuple[str, str], ...] = ()
    content: bytes | None = None
    task_id: str | None = attrs.field(default=None, eq=False)


@attrs.frozen(eq=False, repr=False)
class FileFacts(Value):
    """The facts of a picture that its registration needs: MIME type, ASCII name, size in bytes."""

    content_type: str
    file_name: str
    file_size: int


def _failure(
    command: events.Request, reply: Response
) -> events.KeyRefused | events.Limited | events.NotSent | events.NoAnswer | events.Refused:
    """Return the event for a failed `reply` to any command."""
    error = response_error(reply)
    match error:
        case RateLimited():
            return events.Limited(command, error, as_delay(reply.retry_after))
        case ServiceUnavailable(never_sent=True):
            return events.NotSent(command, error)
        case _ if _is_gateway_error(command, reply):
            return events.NoAnswer(command, _gateway_error(reply))
        case Unauthorized():
            return events.KeyRefused(command, error)
        case RequestRefused() | UnitsExhausted():
            return events.Refused(command, error, reply.error_status)
        case _:
            return events.NoAnswer(command, error)


def _is_gateway_error(command: events.Request, reply: Response) -> bool:
    """Return whether a 4xx comes from a proxy or gateway on the way, not from the vendor.

    The vendor's 4xx have the vendor's JSON. A proxy may or may not have forwarded the request, so
    its answer to a creation leaves open whether the task exists. For a registration every 4xx
    counts as a refusal: it buys nothing, and older paths may answer 404 without JSON.
    """
    registers = isinstance(command, events.Register)
    return reply.is_client_error and reply.envelope is None and not registers


def _gateway_error(reply: Response) -> ServiceUnavailable:
    return ServiceUnavailable(
        f"HTTP {reply.status} came without the vendor's JSON, from a proxy or gateway on the way.",
        status=reply.status,
        request_id=reply.safe_request_id,
    )


def registration(files: Sequence[FileFacts], feature: str | None) -> Request:
    """Register `files` in order, on the path of `feature` or, without one, the universal path.

    (contract: Register the file)
    """
    rows = [
        {
            "content_type": file.content_type,
            "file_name": re.sub(r"[^A-Za-z0-9._ -]", "_", file.file_name)[-80:] or "picture",
            "file_size": file.file_size,
        }
        for file in files
    ]
    # All features register files with version 2.0 (contract: Other features).
    path = "/s2s/v2.0/file" if feature is None else f"/s2s/v2.0/file/{feature_path(feature)[1]}"
    return Request("POST", path, content=as_json({"files": rows}))


def read_registration(command: events.Register, reply: Response) -> events.Answer:
    """Return `Registered` with a grant for each ref, or the failure.

    A failure is `Refused`, `Limited`, `NotSent`, `KeyRefused` or `NoAnswer`.
    """
    if not reply.is_success:
        return _failure(command, reply)
    try:
        files = read(reply, list[RegisteredFile], "data", "files")
        if len(files) != len(command.refs):
            raise bad_answer(
                reply, f"data.files has {len(files)} entries for {len(command.refs)} files"
            )
        return events.Registered(
            command, tuple(_grant(reply, index, file) for index, file in enumerate(files))
        )
    except BadAnswer as error:
        return events.NoAnswer(command, error)


def _grant(reply: Response, index: int, file: RegisteredFile) -> events.FileGrant:
    if not file.file_id:
        raise bad_answer(reply, f"data.files[{index}].file_id is empty")
    if not file.requests:
        raise bad_answer(reply, f"data.files[{index}].requests[0] is missing")
    upload = file.requests[0]
    return events.FileGrant(file.file_id, upload.method or "PUT", upload.url, upload.headers)


def creation(job: Job, sources: Sequence[FileId | str]) -> Request:
    """Create the task of `job` with `sources`: a file's id or a URL for each input.

    Raises `JobRefused` for a class of jobs that is not in the table above, and for inputs of one
    name that are partly files and partly URLs. (contract: Create the task)
    """
    body = _input_fields(job, sources)
    if isinstance(job, Feature):
        at = {
            (each.name, each.index or 0): source
            for each, source in zip(job.inputs, sources, strict=True)
        }
        filled = placeholders_filled(job.params_json, lambda each: _sent(at[each.name, each.index]))
        body.update(cast("dict[str, object]", filled))
        return Request("POST", task_path(job.feature), content=as_json(body))
    names = next((_PARAMETERS[kind] for kind in type(job).__mro__ if kind in _PARAMETERS), None)
    if names is None:
        raise JobRefused(
            f"{quoted(type(job).__name__)} is not a job that this version can send; use "
            f"{', '.join(kind.__name__ for kind in _PARAMETERS)}, a subclass of them, or Feature."
        )
    for field, key in names.items():
        value: object = getattr(job, field)
        # None is left out: the vendor answers null with 400.
        if value is not None:
            body[key] = value
    return Request("POST", task_path(job.feature), content=as_json(body))


def _input_fields(job: Job, sources: Sequence[FileId | str]) -> dict[str, object]:
    """Return the fields of the inputs of `job`: `<name>_file_id(s)` or `<name>_file_url(s)`."""
    groups: dict[str, list[FileId | str]] = {}
    for each, source in zip(job.inputs, sources, strict=True):
        groups.setdefault(each.name, []).append(source)
    several = {each.name for each in job.inputs if each.index is not None}
    fields: dict[str, object] = {}
    for name, group in groups.items():
        files = [isinstance(source, FileId) for source in group]
        if any(files) != all(files):
            raise JobRefused(mixed_inputs(name))
        end, sent = "_file_id" if all(files) else "_file_url", [_sent(each) for each in group]
        fields[name + end + "s" * (name in several)] = sent if name in several else sent[0]
    return fields


def mixed_inputs(name: str) -> str:
    """Return the message for inputs under `name` that are partly files and partly URLs."""
    return (
        f"{name} names files and URLs, and the vendor takes only one kind under a name. Pass only "
        "files (paths, bytes, file ids) or only URLs."
    )


def _sent(source: FileId | str) -> str:
    return source.value if isinstance(source, FileId) else source


def feature_path(feature: str) -> tuple[str, str]:
    """Return the version and the percent-encoded path of a feature by its name."""
    path, _, version = feature.partition("@")
    return segment(version or "v2.0"), "/".join(segment(each) for each in path.split("/"))


def task_path(feature: str, *task: str) -> str:
    """Return the path of the tasks of `feature`, or the path of one `task` by its id."""
    version, path = feature_path(feature)
    return "/".join((f"/s2s/{version}/task/{path}", *map(segment, task)))


def read_creation(command: events.Submit, reply: Response) -> events.Answer:
    """Return `Accepted`, `OutOfUnits`, `Refused`, `Limited`, `NotSent`, `KeyRefused` or `NoAnswer`.

    `NoAnswer` leaves open whether the task exists. It stands for a 5xx, a 4xx of a proxy, and a
    success without a usable task id.
    """
    if not reply.is_success:
        failure = _failure(command, reply)
        if isinstance(failure, events.Refused) and isinstance(failure.error, UnitsExhausted):
            return events.OutOfUnits(command, failure.error)
        return failure
    try:
        created = read(reply, CreatedTask, "data")
        if not is_task_id(created.task_id):
            raise bad_answer(reply, "data.task_id is no usable id")
    except BadAnswer as error:
        return events.NoAnswer(command, error)
    return events.Accepted(command, created.task_id, interval(reply, created.polling_interval))


def status(feature: str, task_id: str) -> Request:
    """Ask for the status of a task (contract: Poll the task)."""
    return Request("GET", task_path(feature, task_id), task_id=task_id)


def read_status(
    command: events.Poll, reply: Response, *, pictures_only: bool, task_id: str, units: float
) -> events.Answer:
    """Return the status of the task as an event.

    The event is `Running`, `Succeeded`, `EngineFailed`, `TaskUnknown`, `TimedOut` or `Unreadable`,
    or, as for any command, `Limited`, `NotSent`, `KeyRefused`, `Refused`, or `NoAnswer` if the poll
    may be repeated. An unknown status counts as running. With `pictures_only` the
    results must name pictures; other results may hold anything. `units` are at stake if the task is
    lost.
    """
    if not reply.is_success:
        return _ending(command, reply, task_id, units) or _failure(command, reply)
    try:
        state = read(reply, TaskState, "data")
    except BadAnswer as error:
        return events.NoAnswer(command, error)
    match state.task_status.strip().lower():
        case "success" | "completed":
            return _success(command, reply, state, task_id, units, pictures_only=pictures_only)
        case "error" | "failed" | "cancelled" | "canceled" | "aborted":
            if code_of(state.error, state.error_message) == "TaskTimeout":
                return _timed_out(command, reply, task_id, units)
            return _engine_failure(command, reply, state, task_id)
        case _:
            return events.Running(command, interval(reply, state.polling_interval))


def _ending(
    command: events.Poll, reply: Response, task_id: str, units: float
) -> events.TaskUnknown | events.TimedOut | None:
    """Return the event for an error that ends the task, None for others (contract: Errors)."""
    if _is_task_timeout(reply):
        return _timed_out(command, reply, task_id, units)
    failure = _failure(command, reply)
    if isinstance(failure, events.Refused) and is_unknown_task(failure.error):
        expired = TaskExpired(
            "the vendor does not know the task: it expired, and its units may have been charged; "
            "or the id, the feature, its version or the key is not the one it was created with.",
            task_id=task_id,
            request_id=reply.safe_request_id,
            units_at_stake=units,
        )
        return events.TaskUnknown(command, expired)
    return None


def _is_task_timeout(reply: Response) -> bool:
    """Return whether the task ran into the vendor's time limit (contract: Errors)."""
    # The vendor also sends a 500 with the text alone.
    bare = reply.status == _SERVER_ERROR and b"task execution timed out" in reply.content.lower()
    return bare or same_code(error_details(reply)[1], "TaskTimeout")


def is_unknown_task(error: PerfectError) -> bool:
    """Return whether the vendor refused a request because it does not know the task.

    Any 404 with the vendor's JSON means this, since the id is the last part of the path. A 404
    without that JSON is a proxy's answer and not a refusal.
    """
    return isinstance(error, RequestRefused) and (
        same_code(error.code, "InvalidTaskId") or error.status == _NOT_FOUND
    )


def _timed_out(
    command: events.Poll, reply: Response, task_id: str, units: float
) -> events.TimedOut:
    error = TaskTimedOut(
        "the vendor stopped the task at its own time limit.",
        task_id=task_id,
        request_id=reply.safe_request_id,
        units_at_stake=units,
    )
    return events.TimedOut(command, error)


def _engine_failure(
    command: events.Poll, reply: Response, state: TaskState, task_id: str
) -> events.EngineFailed:
    named, inner = error_parts(state.error)
    message = state.error_message or (inner if named else None)
    # A missing code does not count as one that may pass: another try costs units and requests.
    text = as_plain(named or inner or state.error or "unspecified").strip()
    code = "".join(c if c.isprintable() else " " for c in text.lower())[:100]
    detail = f" ({quoted_text(message)})" if message else ""
    passing = code in _PASSING
    error = TaskFailed(
        f"the engine failed with {quoted_text(code)}{detail}.",
        code=code,
        passing=passing,
        task_id=task_id,
        request_id=reply.safe_request_id,
    )
    return events.EngineFailed(command, error, passing)


def _success(
    command: events.Poll,
    reply: Response,
    state: TaskState,
    task_id: str,
    units: float,
    *,
    pictures_only: bool,
) -> events.Succeeded | events.Unreadable:
    results = state.results
    urls = result_urls(results) if pictures_only else all_urls(results)
    if urls or not (pictures_only or results is None or results == ""):
        return events.Succeeded(command, urls, results)
    error = ResultUnreadable(
        "the task succeeded, but its results name no picture."
        if pictures_only
        else "the task succeeded, but it has no results.",
        raw=reply.json if state.results is None else state.results,
        task_id=task_id,
        request_id=reply.safe_request_id,
        units_at_stake=units,
    )
    return events.Unreadable(command, error)


def result_urls(results: object) -> tuple[str, ...]:
    """Return the URLs of the pictures of a success (contract: Poll the task).

    They are in `output` if it has any, else in `results` itself. Either is an object, a list of
    objects, or a bare URL. Only an entry without a usable URL is left out.
    """
    if isinstance(results, dict):
        fields = cast("dict[str, object]", results)
        return _entry_urls(fields.get("output")) or _entry_url(fields)
    return _entry_urls(results)


def _entry_urls(entries: object) -> tuple[str, ...]:
    each = cast("list[object]", entries) if isinstance(entries, list) else [entries]
    return tuple(url for entry in each for url in _entry_url(entry))


def _entry_url(entry: object) -> tuple[str, ...]:
    """Return the URL of one picture, or nothing."""
    found = [entry]
    if isinstance(entry, dict):
        fields = cast("dict[str, object]", entry)
        found = [fields.get("url"), fields.get("download_url")]
    urls = (url for url in found if isinstance(url, str) and _HTTP.match(url))
    return tuple(urls)[:1]


def all_urls(results: object) -> tuple[str, ...]:
    """Return every URL in the results of a feature, in order and without repetitions.

    A URL may be at any depth: masks in lists, a file for each version (contract: Other features).
    """
    texts = (each for each in _leaves(results) if isinstance(each, str) and _HTTP.match(each))
    return tuple(dict.fromkeys(texts))


def says_more(results: object) -> bool:
    """Return whether the results hold anything besides URLs: scores, colours, an id."""
    return any(
        each is not None and not (isinstance(each, str) and _HTTP.match(each))
        for each in _leaves(results)
    )


def _leaves(results: object) -> Iterator[object]:
    """Yield the values in `results` that are neither objects nor lists, in order."""
    left = [results]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += reversed(list(cast("dict[str, object]", value).values()))
        elif isinstance(value, list):
            left += reversed(cast("list[object]", value))
        else:
            yield value


def read_answer(command: events.Ask, reply: Response) -> events.Answer:
    """Return `Answered` if another `read_...` can read the answer, else the event of the failure.

    Such an answer is a success, or a 500 for a task at the vendor's time limit, which no repetition
    changes.
    """
    answered = reply.is_success or _is_task_timeout(reply)
    return events.Answered(command) if answered else _failure(command, reply)


def segment(text: str) -> str:
    """Return `text` as one segment of a path; "." and ".." are encoded, so as not to climb."""
    if _PLAIN.fullmatch(text):
        return text
    if not text.strip("."):
        return text.replace(".", "%2E")
    # A task id of the vendor holds no surrogates (`is_task_id`), but an id from the user may.
    return percent(text.encode(errors="replace").decode())


def as_json(value: object) -> bytes:
    """Return `value` as JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()
