"""A request and its response as plain values, and helpers for JSON bodies.

The router maps a request to a response without awaiting, so that the same rules serve a real port,
an in-process transport and tests.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast
from urllib.parse import parse_qsl

import attrs

from ._dialect import Dialect

_T = TypeVar("_T")

MICROSECONDS = 1_000_000


@attrs.frozen
class Request:
    """A received request, with header names in lower case and the path percent-encoded."""

    method: str
    host: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = attrs.field(default=b"", repr=False)

    def parameters(self) -> dict[str, str]:
        """Return the decoded query; the last value of a repeated name counts."""
        return dict(parse_qsl(self.query, keep_blank_values=True))


@attrs.frozen
class Response:
    """A response, which is sent after `delay` seconds, or never if `lost`."""

    status: int
    body: bytes = attrs.field(default=b"", repr=False)
    content_type: str = "application/json; charset=utf-8"
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    delay: float = 0.0
    lost: bool = False
    # The status in the body of an error, which may differ from the HTTP status.
    error: int | None = None


class ApiError(Exception):
    """An error answer of the API: `{"status", "error", "error_code"?}` (contract: Errors)."""

    def __init__(
        self,
        status: int,
        text: str | None,
        code: str | None = None,
        violation: str | None = None,
        *,
        in_body: bool = False,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.code = code
        # A sentence for the ledger if no correct client would have sent the request.
        self.violation = violation
        # Whether the HTTP status is 200 and only the body has the status of the error.
        self.in_body = in_body

    def response(self, dialect: Dialect) -> Response:
        """Return the JSON error envelope in the wording of the dialect."""
        envelope: dict[str, object] = {"status": self.status}
        style = dialect.errors
        if self.text is not None and (style != "code" or self.code is None):
            envelope["error"] = self.text
        if self.code is not None and style != "text":
            envelope["errorCode" if style == "errorCode" else "error_code"] = self.code
        status = 200 if self.in_body or dialect.error_status == "body" else self.status
        return attrs.evolve(json_response(status, envelope), error=self.status)


def invalid(text: str, violation: str | None = None) -> ApiError:
    """Return a `400 InvalidParameters`, the error of most wrong requests."""
    return ApiError(400, text, "InvalidParameters", violation)


def required(field: str) -> ApiError:
    """Return the observed error for a missing or null field (contract: Errors)."""
    text = f"{field} is required but wasn't included in your request."
    return invalid(text, f"required field {field} is missing or null")


def not_accepted(field: str) -> ApiError:
    """Return the observed error for a value that is not accepted (contract: Errors)."""
    return invalid(f"{field} is not one of the accepted values.", f"{field} has a wrong value")


def json_response(status: int, value: object) -> Response:
    """Return a response of compact UTF-8 JSON without escapes, like the vendor's."""
    # A lone surrogate, which JSON can escape, is not UTF-8 and becomes a question mark.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Response(status, text.encode(errors="replace"))


def html_response(status: int, title: str, *, delay: float = 0.0) -> Response:
    """Return the HTML error page of a gateway in front of the API."""
    page = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n"
        f"<body>\r\n<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n"
    )
    return Response(status, page.encode(), "text/html", delay=delay)


def as_object(value: object) -> dict[str, object] | None:
    """Return the value if it is a JSON object, else None."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def as_list(value: object) -> list[object] | None:
    """Return the value if it is a JSON array, else None."""
    return cast("list[object]", value) if isinstance(value, list) else None


def read_object(body: bytes) -> dict[str, object]:
    """Parse the request body, which must be a JSON object."""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        # The body is not JSON, or nested too deeply.
        value = None
    found = as_object(value)
    if found is None:
        raise ApiError(
            400, "The request body is not a JSON object.", "BadRequest", "body is no JSON object"
        )
    return found


def page_of(
    items: Sequence[_T], parameters: Mapping[str, str], *, limit: int
) -> tuple[Sequence[_T], str | None]:
    """Return one page and the token of the next page (contract: Other calls).

    `page_size` is from 1 to `limit`, by default `limit`. The literal `null` as `starting_token` is
    a 400; an empty token means the first page.
    """
    size = parameters.get("page_size", str(limit))
    # At most four digits, since Python refuses to convert thousands of digits.
    if re.fullmatch("[0-9]{1,4}", size) is None or not 1 <= int(size) <= limit:
        raise not_accepted("page_size")
    start = 0
    given = parameters.get("starting_token", "")
    if given:
        found = re.fullmatch(rb"from:([0-9]{1,9})", _decoded(given))
        if found is None:
            violation = "starting_token=null" if given == "null" else None
            raise invalid("starting_token is not valid.", violation)
        start = int(found[1])
    end = start + int(size)
    more = base64.urlsafe_b64encode(b"from:%d" % end).decode() if end < len(items) else None
    return items[start:end], more


def _decoded(token: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(token)
    except ValueError:
        return b""
