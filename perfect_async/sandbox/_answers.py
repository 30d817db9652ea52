"""The parts of task answers that depend on the dialect: errors, engine errors and results."""

from __future__ import annotations

from typing import Final, assert_never

from ._dialect import Dialect
from ._http import ApiError

_SENTENCES: Final = {
    "error_no_face": "no face detected",
    "error_face_parsing": "face alignment failed",
    "error_inference": "inference failed",
    "unknown_internal_error": "unknown internal error",
}


def unknown_task(dialect: Dialect, violation: str | None = None) -> ApiError:
    """Return the error of an unknown or expired task (contract: Expiry and charging)."""
    text, code = "Invalid task ID", "InvalidTaskId"
    match dialect.invalid_task_id:
        case "code":
            return ApiError(400, text, code, violation)
        case "text":
            return ApiError(400, text, None, violation)
        case "not_found":
            return ApiError(404, text, None, violation)
        case "body":
            return ApiError(400, text, code, violation, in_body=True)
        case _:
            assert_never(dialect.invalid_task_id)


def task_timeout(dialect: Dialect) -> ApiError:
    """Return the error of a task that timed out."""
    text, code = "Task execution timed out", "TaskTimeout"
    match dialect.task_timeout:
        case "text":
            return ApiError(500, text)
        case "code":
            return ApiError(500, None, code)
        case "both":
            return ApiError(500, text, code)
        case _:
            assert_never(dialect.task_timeout)


def missing_file(dialect: Dialect, violation: str | None) -> ApiError | str:
    """Return the error of a creation whose file has no bytes, or the engine's error code."""
    match dialect.missing_file:
        case "invalid":
            text = "One or more parameters in this request are invalid."
            return ApiError(400, text, None, violation)
        case "not_found":
            return ApiError(404, "Not Found", "NotFound", violation)
        case "internal_error":
            return ApiError(500, "Internal error", "unknown_internal_error", violation)
        case "engine_error":
            return "unknown_internal_error"
        case _:
            assert_never(dialect.missing_file)


def engine_error(code: str, dialect: Dialect) -> object:
    """Return the `error` of a failed task."""
    match dialect.engine_errors:
        case "code":
            return code
        case "upper":
            return code.upper()
        case "sentence":
            return _SENTENCES.get(code, code.replace("_", " "))
        case "object":
            return {"code": code, "message": _SENTENCES.get(code, code.replace("_", " "))}
        case _:
            assert_never(dialect.engine_errors)


def results_as_json(urls: list[str | None], dialect: Dialect, *, many: bool) -> object:
    """Return the `results` of a task (contract: The flow of one picture)."""

    def entries(field: str) -> list[object]:
        return [None if url is None else {field: url} for url in urls]

    match dialect.results:
        case "object":
            return {"output": entries("url")} if many else entries("url")[0]
        case "list":
            return entries("url")
        case "download_url":
            return entries("download_url")
        case "bare":
            return urls if many else urls[0]
        case "no_url":
            return {"scores": {"smile": 71}}
        case "missing":
            return None
        case _:
            assert_never(dialect.results)
