"""Failures grouped by their cause, each cause with its hint once, in the terminal's words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from perfect_async.cli._outage import hint_of_unreached
from perfect_async.cli._wording import in_terminal_terms
from perfect_async.errors import (
    ApiError,
    CeilingReached,
    PerfectError,
    PictureRefused,
    RequestRefused,
    SubmissionInDoubt,
    TaskFailed,
    Unauthorized,
    UnitsExhausted,
)

if TYPE_CHECKING:
    from perfect_async.cli._display import JobReport

_SHOWN: Final = 5
"""Pictures that a cause names on one line."""

# These are not the picture's fault: the next one fails in the same way.
_ALIKE: Final = (Unauthorized, UnitsExhausted, CeilingReached)

_TEMPLATE_CODES: Final = frozenset({"InvalidTemplate", "InvalidStyle", "InvalidStyleGroup"})

_UNKNOWN_PATH: Final = 404

# Reasons that mean a wrong path or URL; nothing is wrong with the picture.
_CHECK_PATH: Final = frozenset({"missing", "no path", "no usable URL", "folder"})

# Reasons for which a file cannot be converted either.
_NO_PICTURE: Final = frozenset({"no picture", "0 bytes", "damaged", "too narrow", "zip", "pdf"})

# What an engine's code means (contract: Engine codes), for people.
_CODES: Final = {
    "error_no_face": "no face was found",
    "error_src_face_too_small": "the face is too small",
    "error_multiple_people": "there is more than one person",
    "error_pose": "the head is turned too far",
    "error_large_face_angle": "the head is turned too far",
    "error_face_parsing": "the face could not be made out",
    "error_lighting_dark": "the picture is too dark",
    "error_nsfw_content_detected": "the vendor takes it for indecent",
    "exceed_nsfw_retry_limits": "the vendor takes the results for indecent",
    "error_exceed_max_image_size": "the picture has too many pixels",
    "exceed_max_filesize": "the file is too large",
    "error_below_min_image_size": "the picture is too small",
    "error_decode_image": "the vendor cannot read the picture",
    "error_download_image": "the vendor could not download the picture",
    "error_inference": "the engine failed",
    "unknown_internal_error": "the engine failed",
    "invalid_parameter": "the vendor refuses the options",
}


@attrs.frozen
class Cause:
    """One cause of failures: what happened, what to do, and the pictures."""

    message: str
    hint: str
    sources: tuple[str, ...]

    def lines(self, *, whole: bool = False) -> list[str]:
        """Return the lines that say so; `whole` names every picture."""
        most = len(self.sources) if whole else _SHOWN
        names = ", ".join(self.sources[:most])
        more = len(self.sources) - most
        rest = f" and {more} more" if more > 0 else ""
        lines = [f"{len(self.sources)} failed: {self.message} {self.hint}"]
        return lines if self.sources[0] in self.message else [*lines, f"  {names}{rest}"]


def is_shared(error: PerfectError) -> bool:
    """Return whether the cause lies outside of the picture, so that others fail in the same way."""
    return isinstance(error, _ALIKE) or _is_unknown_style(error) or _is_unknown_path(error)


def _is_unknown_style(error: PerfectError) -> bool:
    return isinstance(error, ApiError) and error.code in _TEMPLATE_CODES


def _is_unknown_path(error: PerfectError) -> bool:
    return isinstance(error, RequestRefused) and error.status == _UNKNOWN_PATH


def may_succeed(error: PerfectError) -> bool:
    """Return whether the same command may have success with the picture another time."""
    if isinstance(error, PictureRefused):
        return error.reason == "changing"
    return not isinstance(error, RequestRefused) and not _is_unknown_style(error)


def cause_of(error: PerfectError) -> tuple[object, ...]:
    """Return what is equal for errors of one cause."""
    match error:
        case TaskFailed():
            return TaskFailed, error.code
        case PictureRefused():
            return PictureRefused, error.reason, error.hint
        case ApiError():
            return type(error), error.status, error.code
        case SubmissionInDoubt() | UnitsExhausted():
            return (type(error),)
        case _:
            return type(error), error.message


def engine_message(code: str | None) -> str | None:
    """Return what a code of the engine means, None for one that is not known."""
    meaning = None if code is None else _CODES.get(code)
    return None if meaning is None else f"{meaning} ({code})."


def message_of(error: PerfectError) -> str:
    """Return what happened, in the terminal's words."""
    if isinstance(error, TaskFailed):
        return engine_message(error.code) or error.message
    if _is_unknown_style(error):
        return "the vendor has no such style."
    if _is_unknown_path(error):
        return "the vendor does not know the address of the request (404 Not Found)."
    return in_terminal_terms(error.message)


def hint_of(error: PerfectError) -> str:
    """Return what to do, in the terminal's words."""
    if _is_unknown_style(error):
        return "Nothing was charged; perfect-async templates lists those for --template."
    if _is_unknown_path(error):
        return (
            "Nothing was charged; compare the feature's path and --api-version with its page, and "
            "YOUCAM_BASE_URL if it is set."
        )
    if isinstance(error, PictureRefused) and error.reason in _CHECK_PATH:
        return "Nothing was sent; correct its path or URL."
    if isinstance(error, PictureRefused) and error.reason in _NO_PICTURE:
        return "Nothing was sent; use another picture."
    return hint_of_unreached(error) or in_terminal_terms(error.hint)


def causes(failures: Iterable[JobReport]) -> list[Cause]:
    """Group `failures` by their cause, the one with most pictures first."""
    groups: dict[tuple[object, ...], list[tuple[str, PerfectError]]] = {}
    for report in failures:
        if report.error is not None:
            groups.setdefault(cause_of(report.error), []).append((report.source, report.error))
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [_cause(group) for group in ordered]


def _cause(group: Sequence[tuple[str, PerfectError]]) -> Cause:
    first = group[0][1]
    messages = {message_of(error) for _, error in group}
    message = message_of(first)
    if len(messages) > 1 and isinstance(first, PictureRefused):
        # Each message names its picture, and so does the list.
        message = f"pictures that cannot be sent: {first.reason}."
    elif len(messages) > 1:
        message = f"{message_of(first)} (and the like)"
    sources = tuple(source for source, _ in group)
    return Cause(message, hint_of(first), sources)
