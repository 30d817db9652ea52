"""Reads the vendor's answers, and maps failed ones to errors.

`tasks` knows the calls and maps an answer to an event. For any bytes, only `PerfectError`s are
raised. Unknown fields are ignored, null counts as absent, and an error names a wrong field by its
path. No message quotes the body of a success, since it holds signed URLs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from typing import Final, NewType, TypeVar, cast, get_origin

import attrs
from cattrs import Converter, transform_error
from cattrs.gen import make_dict_structure_fn

from perfect_async._time import SECOND
from perfect_async._value import Value
from perfect_async.errors import (
    BadAnswer,
    PerfectError,
    RateLimited,
    RequestRefused,
    ServiceUnavailable,
    Unauthorized,
    UnitsExhausted,
    quoted,
    without_secrets,
)

_T = TypeVar("_T")

_HOUR: Final = 3600 * SECOND
# About 107 characters were seen (contract: Poll the task).
_LONGEST_ID: Final = 1024
_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KEY_CODES: Final = frozenset(
    {
        *("InvalidApiKey", "InactiveApiKey", "ExpiredApiKey"),
        *("InvalidAccessToken", "InvalidAuthentication"),
    }
)
# Codes by the texts that the vendor sends for them, reduced to lower-case letters (contract:
# Errors): the code itself, and other published wordings.
_CODES: Final = {
    **{code.lower(): code for code in _KEY_CODES},
    **{
        code.lower(): code
        for code in (
            *("InvalidTaskId", "TaskTimeout", "CreditInsufficiency", "TooManyRequests"),
            *("InvalidParameters", "BadRequest", "InvalidTemplate", "InvalidStyle"),
            *("InvalidStyleGroup", "OperationNotSupport", "OperationInvalid", "NotFound"),
        )
    },
    "thetaskidisinvalid": "InvalidTaskId",
    "taskexecutiontimedout": "TaskTimeout",
    "insufficientcredit": "CreditInsufficiency",
    "insufficientcredits": "CreditInsufficiency",
    "notenoughcredits": "CreditInsufficiency",
    "theunitsarenotenough": "CreditInsufficiency",
}
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")

# Plain numbers: the sans-IO packages do not import `http`.
_BAD_REQUEST: Final = 400
_UNAUTHORIZED: Final = 401
_PROXY_AUTHENTICATION: Final = 407
_REQUEST_TIMEOUT: Final = 408
_TOO_EARLY: Final = 425
_TOO_MANY_REQUESTS: Final = 429


@attrs.frozen(eq=False, repr=False)
class Response(Value):
    """An unread answer of the API's host; its repr shows only the length of the body."""

    status: int
    content: bytes = attrs.field(repr=lambda content: f"<{len(content)} bytes>")
    request_id: str | None = None
    retry_after: str | None = None

    @cached_property
    def json(self) -> object:
        """The decoded body, or `Malformed` if it is not JSON."""
        return decode(self.content)

    @cached_property
    def envelope(self) -> ErrorEnvelope | None:
        """The vendor's error envelope, or None if the body has none (contract: Errors)."""
        return _error_envelope(self.json, success=200 <= self.status < 300)  # noqa: PLR2004 -- 2xx

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx and the body names no error."""
        return 200 <= self.status < 300 and self.envelope is None  # noqa: PLR2004 -- 2xx

    @property
    def error_status(self) -> int:
        """The HTTP status, or the body's status if the HTTP status is 2xx and the body an error."""
        if 200 <= self.status < 300 and self.envelope is not None:  # noqa: PLR2004 -- 2xx
            return self.envelope.status or _BAD_REQUEST
        return self.status

    @property
    def is_client_error(self) -> bool:
        """Whether the error status is 4xx."""
        return 400 <= self.error_status < 500  # noqa: PLR2004 -- the bounds of 4xx

    @property
    def safe_request_id(self) -> str | None:
        """The `x-request-id` if it is a short plain word, else None: messages show it."""
        found = re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.request_id or "")
        return found and found[0]


@attrs.frozen(eq=False, repr=False)
class ErrorEnvelope(Value):
    """The contents of the vendor's error envelope.

    `status` is the status in the body, or None if that is not 4xx or 5xx. `code` is the vendor's
    code, or the code that `text` is a wording of, or None.
    """

    status: int | None
    text: object
    code: str | None


# The shapes. A field of type `object` is not checked here, but where it is used.

Headers = NewType("Headers", tuple[tuple[str, str], ...])


@attrs.frozen(eq=False, repr=False)
class _Header(Value):
    value: str
    key: str | None = None
    name: str | None = None


@attrs.frozen(eq=False, repr=False)
class UploadRequest(Value):
    """The request that uploads the bytes of a registered file."""

    url: str
    method: str | None = None
    headers: Headers = Headers(())


@attrs.frozen(eq=False, repr=False)
class RegisteredFile(Value):
    """A registered file; the first of `requests` uploads its bytes."""

    file_id: str
    requests: list[UploadRequest]


@attrs.frozen(eq=False, repr=False)
class CreatedTask(Value):
    """A created task."""

    task_id: str
    polling_interval: object = None


@attrs.frozen(eq=False, repr=False)
class TaskState(Value):
    """The state of a task; `results` are read only once it has succeeded."""

    task_status: str
    error: object = None
    error_message: object = None
    polling_interval: object = None
    results: object = None


@attrs.frozen(eq=False, repr=False)
class TemplateRow(Value):
    """One template on a page."""

    id: str
    thumb: object = None
    title: str | None = None
    category_name: str | None = None


@attrs.frozen(eq=False, repr=False)
class Credit(Value):
    """One source of units; `amount` is deprecated, `expiry` in milliseconds since 1970."""

    id: object = None
    type: str | None = None
    amount: float | None = None
    amount_dec: float | None = None
    expiry: object = None


@attrs.frozen(eq=False, repr=False)
class Credits(Value):
    """All sources of units."""

    results: list[Credit] | None = None


@attrs.frozen(eq=False, repr=False)
class Sku(Value):
    """One price: `amount` units per `proc_unit` of `unit`."""

    amount: float
    proc_unit: int | None = None
    unit: str | None = None
    run_task_url: str | None = None


@attrs.frozen(eq=False, repr=False)
class Page(Value):
    """The token of the next page."""

    next_token: str | None = None


# Single values.


class Malformed(ValueError):
    """The problem of a value or an answer, as a text for a message that quotes nothing of it."""


def as_text(value: object, _: object = None) -> str:
    """Return `value` as text, also from a number. Raises `Malformed`."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Malformed("is not text")


def as_number(value: object, _: object = None) -> float:
    """Return `value` as a finite number, also from text. Raises `Malformed`."""
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise Malformed("is not a finite number")


def as_whole(value: object, _: object = None) -> int:
    """Return `value` as an exact whole number, also from text. Raises `Malformed`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,40}", value):
        return int(value)
    number = as_number(value)
    if number.is_integer():
        return int(number)
    raise Malformed("is not a whole number")


def as_moment(value: object) -> datetime | None:
    """Return the time of `value` (milliseconds since 1970), or None if it is not a time."""
    try:
        return datetime.fromtimestamp(as_number(value) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def as_interval(*values: object) -> int | None:
    """Return the first usable `polling_interval` of `values` in microseconds, at most an hour.

    The vendor sends milliseconds. The place and the type of the field are not documented
    (contract: Poll the task).
    """
    for value in values:
        try:
            milliseconds = as_number(value)
        except Malformed:
            continue
        if milliseconds > 0:
            return max(1, round(min(milliseconds * 1000, _HOUR)))
    return None


def as_delay(header: str | None) -> int | None:
    """Return `Retry-After` in microseconds, at most an hour; None for a date (needs a clock)."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?)\s*", header or "", re.ASCII)
    return None if found is None else int(min(float(found[1]) * 1_000_000, _HOUR))


def _as_headers(value: object, _: object = None) -> Headers:
    """Read upload headers in any of the three shapes (contract: Register the file)."""
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
    """Return the structure hook of cattrs for `kind`, with a check that the value is an object."""
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


def _describe(error: BaseException, _: type | None) -> str:
    match error:
        case Malformed():
            return str(error)
        case KeyError():
            return "is missing"
        case _:
            return "has a wrong shape"


def decode(content: bytes) -> object:
    """Return the JSON value of `content`, or `Malformed` if it is not JSON."""
    try:
        return cast("object", json.loads(content.decode("utf-8-sig")))
    except (ValueError, RecursionError):
        # The parser's error holds the whole document, so it is dropped.
        return Malformed("the answer is not JSON")


def structure(value: object, shape: type[_T], *keys: str) -> _T | Malformed:
    """Return the value under the nested `keys` of `value` as a `shape`, or a `Malformed`."""
    if isinstance(value, Malformed):
        return value
    path = ""
    for key in keys:
        if not isinstance(value, dict):
            return Malformed(f"{path or 'the answer'} is not an object")
        path = f"{path}.{key}".lstrip(".")
        value = cast("dict[str, object]", value).get(key)
        if value is None:
            return Malformed(f"{path} is missing")
    if get_origin(shape) is list and not isinstance(value, list):
        # cattrs would read an object as the list of its keys.
        return Malformed(f"{path or 'the answer'} is not a list")
    try:
        return _converter.structure(value, shape)
    except Exception as error:  # noqa: BLE001 -- cattrs raises groups of whatever a hook raises
        what, _, where = transform_error(error, path, _describe)[0].rpartition(" @ ")
        return Malformed(f"{where.lstrip('.') or 'the answer'} {what}")


def read(reply: Response, shape: type[_T], *keys: str) -> _T:
    """Read a success by `structure`. Raises `BadAnswer`, or the error of a failed `reply`.

    The traceback of the error has no frame with the parsed body, and no error of a parser as its
    cause: both would hold signed URLs.
    """
    if not reply.is_success:
        raise response_error(reply)
    found = structure(reply.json, shape, *keys)
    if isinstance(found, Malformed):
        raise bad_answer(reply, str(found))
    return found


def bad_answer(reply: Response, problem: str) -> BadAnswer:
    """Return the error for an unusable answer; `problem` must not quote the answer."""
    return BadAnswer(
        f"an answer of the vendor is not as documented: {problem}.",
        status=reply.status,
        request_id=reply.safe_request_id,
    )


def interval(reply: Response, *values: object) -> int | None:
    """Return the `polling_interval` of an answer: one of `values`, else the one beside `data`."""
    body = reply.json
    outer = (
        cast("dict[str, object]", body).get("polling_interval") if isinstance(body, dict) else None
    )
    return as_interval(*values, outer)


def _error_envelope(body: object, *, success: bool) -> ErrorEnvelope | None:
    """Read the error envelope of `body`; in a `success`, a text alone is not an error."""
    if not isinstance(body, dict):
        return None
    fields = cast("dict[str, object]", body)
    named, text = error_parts(fields.get("error"))
    given = as_code(fields.get("error_code")) or as_code(fields.get("errorCode")) or named
    # The text is preferred to an unknown code, if the text stands for a known one.
    code = _CODES.get(_squashed(given)) or _CODES.get(_squashed(text)) or given
    status = _as_error_status(fields.get("status"))
    if success:
        bare = all(fields.get(key) is None for key in ("data", "results", "result"))
        is_error = status is not None or (bare and code is not None)
    else:
        is_error = status is not None or code is not None or text is not None
    return ErrorEnvelope(status, text, code) if is_error else None


def _as_error_status(value: object) -> int | None:
    try:
        status = as_whole(value)
    except Malformed:
        return None
    return status if 400 <= status < 600 else None  # noqa: PLR2004 -- 4xx and 5xx


def error_parts(error: object) -> tuple[str | None, object]:
    """Return the code and the text of an `error`, which may be an object with both."""
    if not isinstance(error, dict):
        return None, error
    fields = cast("dict[str, object]", error)
    codes = (as_code(fields.get(key)) for key in ("error_code", "errorCode", "code", "name"))
    texts = (fields.get(key) for key in ("message", "error_message", "error", "text"))
    return next(filter(None, codes), None), next((each for each in texts if each), None)


def as_code(value: object) -> str | None:
    """Return `value` if it is a short plain word: messages show a code unquoted."""
    return value if isinstance(value, str) and _CODE.fullmatch(value) else None


def _squashed(text: object) -> str:
    return re.sub(r"[^a-z]", "", text.lower()[:200]) if isinstance(text, str) else ""


def error_details(reply: Response) -> tuple[str, str | None]:
    """Return the quoted text of an error envelope ("" without one), and its code."""
    envelope = reply.envelope
    if envelope is None:
        return "", None
    return "" if envelope.text is None else quoted_text(envelope.text), envelope.code


def code_of(error: object, text: object = None) -> str | None:
    """Return the known code of an `error` in a task's data, or None."""
    named, inner = error_parts(error)
    found = (_CODES.get(_squashed(each)) for each in (named, inner, text))
    return next(filter(None, found), None)


def same_code(code: str | None, name: str) -> bool:
    """Return whether the vendor's `code` is `name`, without regard to case."""
    return code is not None and code.casefold() == name.casefold()


def quoted_text(text: object) -> str:
    """Quote the vendor's `text` for a message, without the secrets of the URLs in it."""
    return quoted(_URL.sub(lambda url: without_secrets(url[0]), as_plain(text)))


def as_plain(value: object) -> str:
    """Return any JSON value as text, or "nested too deep" for one that Python cannot print."""
    try:
        return str(value)
    except RecursionError:
        return "nested too deep"


def is_task_id(text: str) -> bool:
    """Return whether `text` can be a task's id: printable, not blank, at most 1,024 characters."""
    return 1 <= len(text) <= _LONGEST_ID and text.isprintable() and not text.isspace()


def response_error(reply: Response) -> PerfectError:
    """Return the error for a failed `reply` (contract: Errors).

    The code counts more than the status. In this order:

    - `InvalidTaskId` with any 4xx: `RequestRefused`
    - 407, from a proxy that has forwarded nothing: `ServiceUnavailable`
    - 401, and `InvalidApiKey` and similar codes: `Unauthorized`
    - 429 and `TooManyRequests`: `RateLimited`
    - 5xx, and 408 and 425 of a gateway that did not read the whole request: `ServiceUnavailable`
    - `CreditInsufficiency`: `UnitsExhausted`
    - any other 4xx: `RequestRefused`
    - anything else: `BadAnswer`
    """
    text, code = error_details(reply)
    detail = f": {text}" if text else ""
    status, request_id = reply.error_status, reply.safe_request_id
    refused = reply.is_client_error
    refusal = RequestRefused(
        f"the vendor refused the request{detail}.", status=status, code=code, request_id=request_id
    )
    if refused and same_code(code, "InvalidTaskId"):
        return refusal
    if status == _PROXY_AUTHENTICATION:
        return ServiceUnavailable(
            "the proxy on the way to the vendor refuses its credentials; nothing was forwarded. "
            "Check the user and password in the proxy's URL.",
            status=status,
            never_sent=True,
        )
    if status == _UNAUTHORIZED or (refused and code in _KEY_CODES):
        # The text is not quoted: an answer about a key may repeat the key.
        message = "the vendor does not accept the API key."
        return Unauthorized(message, status=status, code=code, request_id=request_id)
    if status == _TOO_MANY_REQUESTS or (refused and code == "TooManyRequests"):
        message = f"the key's request limit was met{detail}."
        return RateLimited(message, status=status, code=code, request_id=request_id)
    if status in {_REQUEST_TIMEOUT, _TOO_EARLY} or 500 <= status < 600:  # noqa: PLR2004 -- 5xx
        message = f"the vendor's service answered HTTP {status}{detail}."
        return ServiceUnavailable(message, status=status, code=code, request_id=request_id)
    if refused and same_code(code, "CreditInsufficiency"):
        return UnitsExhausted("the balance does not cover the job.", request_id=request_id)
    if refused:
        return refusal
    return bad_answer(reply, f"HTTP {status} is none of its statuses")
