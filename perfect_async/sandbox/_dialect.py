"""The wording of answers where documents and recordings disagree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args

import attrs

ErrorStyle = Literal["both", "text", "code", "errorCode"]
ErrorStatus = Literal["http", "body"]
InvalidTask = Literal["code", "text", "not_found", "body"]
TimeoutStyle = Literal["text", "code", "both"]
MissingFile = Literal["invalid", "not_found", "internal_error", "engine_error"]
EngineErrorStyle = Literal["code", "upper", "sentence", "object"]
ResultsStyle = Literal["object", "list", "download_url", "bare", "no_url", "missing"]
IntervalPlace = Literal["polls", "creation", "both"]
HistorySign = Literal["negative", "positive"]
HistoryStyle = Literal["rows", "no_target", "seconds", "negative_time", "object"]

STATES: Final = ("running", "success", "error")


def one_of(literal: object) -> Callable[[object, attrs.Attribute[Any], object], None]:
    """Return a validator that raises `ValueError` for a value outside the `Literal`."""
    accepted = get_args(literal)

    def check(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in accepted:
            raise ValueError(
                f"{attribute.name} must be one of {', '.join(accepted)}, not {value!r}"
            )

    return check


def _check_words(_: object, attribute: attrs.Attribute[Any], words: Mapping[str, str]) -> None:
    for state in words:
        if state not in STATES:
            raise ValueError(f"{attribute.name} must be for {', '.join(STATES)}, not {state!r}")


@attrs.frozen(kw_only=True)
class Dialect:
    """Settings for details that the contract leaves open; each default is the likeliest reading.

        sandbox = Sandbox(dialect=Dialect(errors="text", results="bare"))

    Errors (contract: Errors):

    - `errors`: the fields of an error: `"both"` (`error` and `error_code`), `"text"` (only
      `error`), `"code"` (only `error_code`, if it has one), `"errorCode"` (`error` and
      `errorCode`).
    - `error_status`: `"http"`, or `"body"`: HTTP 200 with the status only in the body.
    - `invalid_task_id`: `"code"` (400 with the code), `"text"` (400 without), `"not_found"` (404
      without), `"body"` (HTTP 200 with status 400 in the body).
    - `task_timeout`: the 500 of a task that timed out has the `"text"`, the `"code"` or `"both"`.
    - `missing_file`: the answer to a creation whose file has no bytes or is unknown: `"invalid"`
      (400), `"not_found"` (404 `NotFound`), `"internal_error"` (500 `unknown_internal_error`), or
      `"engine_error"` (the task is created, charged, and fails).

    Tasks (contract: The flow of one picture):

    - `status_words`: other words for `task_status`, such as `{"success": "completed"}`, `{"error":
      "aborted"}`, `{"running": "queued"}`.
    - `engine_errors`: the `error` of a failed task as a `"code"`, an `"upper"`-case code, a
      `"sentence"`, or an `"object"` with code and message.
    - `results`: the results of a success: `"object"` (the documented shape), `"list"` (of objects
      with `url`), `"download_url"` (a list of objects with `download_url`), `"bare"` (URL strings),
      `"no_url"` (an object without a URL), `"missing"` (null).
    - `null_outputs`: the number of outputs, from the first, that are `null` if there are several.
    - `polling_interval_in`: the answers that have the sandbox's `polling_interval`: `"polls"`,
      `"creation"` or `"both"`.

    The account (contract: Other calls):

    - `history_sign`: the sign of a charge's amount in the unit history.
    - `history`: `"rows"`; or rows with `"no_target"`, with timestamps in `"seconds"`, with
      `"negative_time"`; or an `"object"` (`{}`) instead of rows.
    - `proc_unit`: whether a price per one unit has the field `proc_unit`.
    """

    errors: ErrorStyle = attrs.field(default="both", validator=one_of(ErrorStyle))
    error_status: ErrorStatus = attrs.field(default="http", validator=one_of(ErrorStatus))
    invalid_task_id: InvalidTask = attrs.field(default="code", validator=one_of(InvalidTask))
    task_timeout: TimeoutStyle = attrs.field(default="text", validator=one_of(TimeoutStyle))
    missing_file: MissingFile = attrs.field(default="invalid", validator=one_of(MissingFile))
    status_words: Mapping[str, str] = attrs.field(factory=dict[str, str], validator=_check_words)
    engine_errors: EngineErrorStyle = attrs.field(
        default="code", validator=one_of(EngineErrorStyle)
    )
    results: ResultsStyle = attrs.field(default="object", validator=one_of(ResultsStyle))
    null_outputs: int = 0
    polling_interval_in: IntervalPlace = attrs.field(
        default="polls", validator=one_of(IntervalPlace)
    )
    history_sign: HistorySign = attrs.field(default="negative", validator=one_of(HistorySign))
    history: HistoryStyle = attrs.field(default="rows", validator=one_of(HistoryStyle))
    proc_unit: bool = True
