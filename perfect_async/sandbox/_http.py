"""One call and its answer, as plain values, and the JSON between them.

Everything is decided between these two without awaiting, so that the same rules serve a
real port, an in-process client and a test that calls them directly.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast
from urllib.parse import parse_qsl

import attrs

T = TypeVar("T")

MICROSECONDS = 1_000_000


@attrs.frozen
class Call:
    """A request as it arrived: header names in lower case, the path still percent-encoded."""

    method: str
    host: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = attrs.field(default=b"", repr=False)

    def parameters(self) -> dict[str, str]:
        """The decoded query; of a repeated name the last one counts."""
        return dict(parse_qsl(self.query, keep_blank_values=True))


@attrs.frozen
class Answer:
    """What goes back: after `delay` seconds, and not at all when `lost`."""

    status: int
    body: bytes = attrs.field(default=b"", repr=False)
    content_type: str = "application/json; charset=utf-8"
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    delay: float = 0.0
    lost: bool = False


class Refused(Exception):
    """An error answer of the API: `{"status", "error", "error_code"?}` (contract: Errors)."""

    def __init__(
        self, status: int, text: str, code: str | None = None, violation: str | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.code = code
        # What the ledger writes down when no correct client would have sent this.
        self.violation = violation

    def answer(self) -> Answer:
        """The envelope on the wire."""
        envelope: dict[str, object] = {"status": self.status, "error": self.text}
        if self.code is not None:
            envelope["error_code"] = self.code
        return json_answer(self.status, envelope)


def invalid(text: str, violation: str | None = None) -> Refused:
    """The `400 InvalidParameters` that most mistakes get."""
    return Refused(400, text, "InvalidParameters", violation)


def required(field: str) -> Refused:
    """The text seen for a field that is missing or null (contract: Errors)."""
    text = f"{field} is required but wasn't included in your request."
    return invalid(text, f"required field {field} is missing or null")


def not_accepted(field: str) -> Refused:
    """The text seen for a value outside the accepted ones (contract: Errors)."""
    return invalid(f"{field} is not one of the accepted values.", f"{field} has a wrong value")


def json_answer(status: int, value: object) -> Answer:
    """UTF-8 JSON without escapes, as the vendor writes it."""
    return Answer(status, json.dumps(value, ensure_ascii=False).encode())


def html_answer(status: int, title: str, *, delay: float = 0.0) -> Answer:
    """What a gateway in front of the API says: HTML, no envelope."""
    page = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n"
        f"<body>\r\n<center><h1>{title}</h1></center>\r\n</body>\r\n</html>\r\n"
    )
    return Answer(status, page.encode(), "text/html", delay=delay)


def as_object(value: object) -> dict[str, object] | None:
    """The value when it is a JSON object."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def as_list(value: object) -> list[object] | None:
    """The value when it is a JSON array."""
    return cast("list[object]", value) if isinstance(value, list) else None


def read_object(body: bytes) -> dict[str, object]:
    """The request body, which has to be a JSON object."""
    try:
        value: object = json.loads(body)
    except ValueError:
        value = None
    found = as_object(value)
    if found is None:
        raise Refused(
            400, "The request body is not a JSON object.", "BadRequest", "body is no JSON object"
        )
    return found


def page_of(
    items: Sequence[T], parameters: Mapping[str, str], *, most: int
) -> tuple[Sequence[T], str | None]:
    """One page and the token of the next (contract: Other calls).

    `page_size` is 1..`most` and `most` when absent. The literal `null` as `starting_token` is
    a 400; an empty one is the first page.
    """
    size_text = parameters.get("page_size", str(most))
    if not size_text.isascii() or not size_text.isdigit() or not 1 <= int(size_text) <= most:
        raise not_accepted("page_size")
    start = 0
    given = parameters.get("starting_token", "")
    if given:
        try:
            start = int(base64.urlsafe_b64decode(given.encode()).removeprefix(b"from:"))
        except ValueError:
            violation = "starting_token=null" if given == "null" else None
            raise invalid("starting_token is not valid.", violation) from None
    end = start + int(size_text)
    more = base64.urlsafe_b64encode(b"from:%d" % end).decode() if end < len(items) else None
    return items[start:end], more
