"""What an answer of the vendor says: its shapes, read with tolerance, and what a refusal is.

The half of the wire that reads; `_wire` knows the calls, and what an answer means for a command.
Whatever the bytes are, nothing but `PerfectError` is raised. Unknown fields are ignored, null is as
good as absent, and a field that is wrong is named by its path. No message quotes the body of a
success: such bodies hold signed URLs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NewType, TypeVar, cast

import attrs
from cattrs import Converter, transform_error
from cattrs.gen import make_dict_structure_fn

from perfect_async.errors import (
    BadAnswer,
    PerfectError,
    RateLimited,
    RequestRefused,
    ServiceUnavailable,
    Unauthorized,
    UnitsExhausted,
    quoted,
)

_T = TypeVar("_T")

_HOUR: Final = 3_600_000_000

# By number, since `http` is no import for the floor of thought.
_UNAUTHORIZED: Final = 401
_REQUEST_TIMEOUT: Final = 408
_TOO_EARLY: Final = 425
_TOO_MANY_REQUESTS: Final = 429


@attrs.frozen
class Response:
    """An answer of the API's host as it came: headers as text; its repr tells the body's length."""

    status: int
    content: bytes = attrs.field(repr=lambda content: f"<{len(content)} bytes>")
    request_id: str | None = None
    retry_after: str | None = None

    @property
    def good(self) -> bool:
        """Whether the status is of the 2xx class."""
        return 200 <= self.status < 300  # noqa: PLR2004 -- the class's bounds

    @property
    def denied(self) -> bool:
        """Whether the status is of the 4xx class: the vendor read the request and says no."""
        return 400 <= self.status < 500  # noqa: PLR2004 -- the class's bounds

    @property
    def identity(self) -> str | None:
        """The `x-request-id`, if it is one: it comes from outside and goes into messages."""
        known = re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.request_id or "")
        return known and known[0]


# The shapes. `object` is taken as it comes and judged where it is used.

Headers = NewType("Headers", tuple[tuple[str, str], ...])


@attrs.frozen
class _Header:
    value: str
    key: str | None = None
    name: str | None = None


@attrs.frozen
class Put:
    """Where a registered file goes up."""

    url: str
    method: str | None = None
    headers: Headers = Headers(())


@attrs.frozen
class File:
    """A registered file; the first of `requests` is the one to follow."""

    file_id: str
    requests: list[Put]


@attrs.frozen
class State:
    """How a task stands, without its results, which mean something at the end only."""

    task_status: str
    error: object = None
    error_message: object = None
    polling_interval: object = None


@attrs.frozen
class Picture:
    """One result."""

    url: object = None


@attrs.frozen
class Results(Picture):
    """A task's results: `output` where there may be several, else `url`."""

    output: list[Picture] | None = None


@attrs.frozen
class TemplateRow:
    """One template of a page."""

    id: str
    thumb: object = None
    title: str | None = None
    category_name: str | None = None


@attrs.frozen
class Credit:
    """One source of units; `amount` is deprecated, `expiry` in milliseconds since 1970."""

    id: int
    type: str | None = None
    amount: float | None = None
    amount_dec: float | None = None
    expiry: object = None


@attrs.frozen
class Credits:
    """All sources of units."""

    results: list[Credit] | None = None


@attrs.frozen
class Sku:
    """One price: `amount` units per `proc_unit` of `unit`."""

    amount: float
    proc_unit: int
    unit: str | None = None
    run_task_url: str | None = None


@attrs.frozen
class Page:
    """What leads to the next page."""

    next_token: str | None = None


@attrs.frozen
class _Envelope:
    error: object = None
    error_code: object = None
    polling_interval: object = None


# Single values.


class Malformed(ValueError):
    """What is wrong with a value or an answer; goes into messages and quotes nothing."""


def as_text(value: object, _: object = None) -> str:
    """Text, also from a number (contract: the flow, 1). Raises `Malformed`."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Malformed("is not text")


def as_number(value: object, _: object = None) -> float:
    """A finite number, also from text (docs and wire differ on which it is). Raises `Malformed`."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise Malformed("is not a finite number")


def as_whole(value: object, _: object = None) -> int:
    """A whole number, also from text; exact, since ids go beyond 2^53. Raises `Malformed`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,40}", value):
        return int(value)
    number = as_number(value)
    if number.is_integer():
        return int(number)
    raise Malformed("is not a whole number")


def as_moment(value: object) -> datetime | None:
    """A time from milliseconds since 1970, None where it is none."""
    try:
        return datetime.fromtimestamp(as_number(value) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def as_interval(*said: object) -> int | None:
    """The first usable `polling_interval` in `said`, milliseconds, as 1 to 3.6e9 microseconds.

    Where it stands and whether it is a number is open (the flow, 4); nonsense is not said.
    """
    for value in said:
        try:
            milliseconds = as_number(value)
        except Malformed:
            continue
        if milliseconds > 0:
            return max(1, round(min(milliseconds * 1000, _HOUR)))
    return None


def as_delay(header: str | None) -> int | None:
    """`Retry-After` in microseconds, at most an hour; None for a date, which would need a clock."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*", header or "", re.ASCII)
    return None if found is None else int(min(float(found[1]) * 1_000_000, _HOUR))


def _as_headers(value: object, _: object = None) -> Headers:
    """Read upload headers in any of three shapes (contract: the flow, 1). Raises `Malformed`."""
    if value is None:
        return Headers(())
    if isinstance(value, list):
        rows = _converter.structure(cast("object", value), list[_Header])
        return Headers(tuple((row.key or row.name or "", row.value) for row in rows))
    if isinstance(value, dict):
        return Headers(tuple(_converter.structure(cast("object", value), dict[str, str]).items()))
    raise Malformed("is neither an object nor a list")


# Whole answers.


def _objects_only(kind: type[object], converter: Converter) -> Callable[[object, object], object]:
    """The usual hook for `kind`, after a look whether there is an object at all."""
    inner = make_dict_structure_fn(kind, converter)

    def structure(value: object, shape: object) -> object:
        if not isinstance(value, dict):
            raise Malformed("is not an object")
        return inner(cast("dict[str, object]", value), shape)

    return structure


_converter: Final = Converter()
_converter.register_structure_hook(str, as_text)
_converter.register_structure_hook(float, as_number)
_converter.register_structure_hook(int, as_whole)
_converter.register_structure_hook(Headers, _as_headers)
_converter.register_structure_hook_func(lambda shape: shape is object, lambda value, _: value)
_converter.register_structure_hook_factory(attrs.has, _objects_only)


def _described(error: BaseException, _: type | None) -> str:
    match error:
        case Malformed():
            return str(error)
        case KeyError():
            return "is missing"
        case _:
            return "has a wrong shape"


def structure(content: bytes, shape: type[_T], *at: str) -> _T | Malformed:
    """What stands in `content` under the keys `at`, as `shape`, or what is wrong with it."""
    path = ""
    try:
        value = cast("object", json.loads(content.decode("utf-8-sig")))
    except (ValueError, RecursionError):
        return Malformed("the answer is not JSON")
    for key in at:
        if not isinstance(value, dict):
            return Malformed(f"{path or 'the answer'} is not an object")
        path = f"{path}.{key}".lstrip(".")
        value = cast("dict[str, object]", value).get(key)
        if value is None:
            return Malformed(f"{path} is missing")
    try:
        return _converter.structure(value, shape)
    except Exception as error:  # noqa: BLE001 -- cattrs raises groups of whatever a hook raises
        what, _, where = transform_error(error, path, _described)[0].rpartition(" @ ")
        return Malformed(f"{where.lstrip('.') or 'the answer'} {what}")


def read(reply: Response, shape: type[_T], *at: str) -> _T:
    """As `structure`. Raises `BadAnswer` naming the path that is wrong, or the refusal that it is.

    The body is taken apart in a frame that is gone when this raises, and no exception of a parser
    is kept as a cause: a JSONDecodeError holds the whole document.
    """
    if not reply.good:
        raise refusal(reply)
    found = structure(reply.content, shape, *at)
    if isinstance(found, Malformed):
        raise bad(reply, str(found))
    return found


def bad(reply: Response, problem: str) -> BadAnswer:
    """The error for an answer that cannot be used; `problem` quotes nothing of it."""
    return BadAnswer(
        f"an answer of the vendor is not as documented: {problem}.",
        status=reply.status,
        request_id=reply.identity,
    )


def outer_interval(reply: Response) -> object:
    """`polling_interval` beside `data`, where an answer could also have it; raw."""
    found = structure(reply.content, _Envelope)
    return None if isinstance(found, Malformed) else found.polling_interval


def error_details(reply: Response) -> tuple[str, str | None]:
    """What the vendor wrote into an error envelope: its text, quoted, and its `error_code`.

    A code that is not a plain word is dropped, since it goes into messages as it is.
    """
    found = structure(reply.content, _Envelope)
    if isinstance(found, Malformed):
        return "", None
    code = found.error_code if isinstance(found.error_code, str) else ""
    known = re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", code)
    return "" if found.error is None else unsigned(found.error), known and known[0]


def same_code(code: str | None, name: str) -> bool:
    """Whether the vendor's `code` is `name`, whatever their case."""
    return code is not None and code.casefold() == name.casefold()


def unsigned(text: object) -> str:
    """`text` of the vendor, quoted, without the queries of URLs in it, which may sign them."""
    return quoted(re.sub(r"(://[^\s?#]*)[?#]\S*", r"\1", str(text)))


def refusal(reply: Response) -> PerfectError:
    """The error that `reply` is, whatever it answers (contract: Errors).

    401 `Unauthorized`, 429 `RateLimited`, 4xx CreditInsufficiency `UnitsExhausted`, other 4xx
    `RequestRefused`, 5xx `ServiceUnavailable`, anything else `BadAnswer`. 408 and 425 are a
    gateway's and say that nobody read the request to its end: `ServiceUnavailable`.
    """
    text, code = error_details(reply)
    said = f": {text}" if text else ""
    status, identity = reply.status, reply.identity
    if status == _UNAUTHORIZED:
        # Not quoted: an answer about a key may repeat the key.
        message = "the vendor does not accept the API key."
        return Unauthorized(message, status=status, code=code, request_id=identity)
    if status == _TOO_MANY_REQUESTS:
        message = f"the key's request limit was met{said}."
        return RateLimited(message, status=status, code=code, request_id=identity)
    if status in {_REQUEST_TIMEOUT, _TOO_EARLY} or 500 <= status < 600:  # noqa: PLR2004 -- 5xx
        message = f"the vendor's service answered HTTP {status}{said}."
        return ServiceUnavailable(message, status=status, code=code, request_id=identity)
    if reply.denied and same_code(code, "CreditInsufficiency"):
        return UnitsExhausted("the balance does not cover the job.", request_id=identity)
    if reply.denied:
        message = f"the vendor refused the request{said}."
        return RequestRefused(message, status=status, code=code, request_id=identity)
    return bad(reply, f"HTTP {status} is none of its statuses")
