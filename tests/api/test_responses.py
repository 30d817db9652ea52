"""The reading of answers, and the errors of failed ones."""

import json
import math
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perfect_async._api.responses import (
    Credit,
    Headers,
    Malformed,
    Page,
    RegisteredFile,
    Response,
    TaskState,
    UploadRequest,
    as_delay,
    as_interval,
    as_moment,
    as_number,
    as_text,
    as_whole,
    bad_answer,
    code_of,
    decode,
    error_details,
    interval,
    quoted_text,
    read,
    response_error,
    same_code,
    structure,
)
from perfect_async.errors import (
    ApiError,
    BadAnswer,
    PerfectError,
    RateLimited,
    RequestRefused,
    ServiceUnavailable,
    Unauthorized,
    UnitsExhausted,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["error", "InvalidTaskId", "CreditInsufficiency", "https://a.example/b?c"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "error_code", "data", "files", "polling_interval"])
            | st.text(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
bodies = st.binary() | json_values.map(lambda value: json.dumps(value).encode())
replies = st.builds(
    Response,
    status=st.sampled_from([*range(200, 206), 301, 400, 401, 403, 404, 408, 425, 429, 500, 502])
    | st.integers(100, 999),
    content=bodies,
    request_id=st.none() | st.text(),
    retry_after=st.none() | st.text() | st.integers().map(str) | st.floats().map(str),
)


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def test_the_repr_of_a_response_hides_its_content() -> None:
    """The repr shows the length of the body, which may hold signed URLs."""
    assert "<6 bytes>" in repr(Response(200, b"secret"))
    assert "secret" not in repr(Response(200, b"secret"))


@pytest.mark.parametrize(
    ("good", "denied", "status"),
    [
        *((False, False, 199), (True, False, 200), (True, False, 299), (False, False, 300)),
        *((False, False, 399), (False, True, 400), (False, True, 499), (False, False, 500)),
    ],
    ids=repr,
)
def test_a_status_belongs_to_a_class(good: bool, denied: bool, status: int) -> None:
    """2xx is a success, 4xx a client error, any other status neither."""
    assert (good, denied) == (
        Response(status, b"").is_success,
        Response(status, b"").is_client_error,
    )


@pytest.mark.parametrize(
    ("expected", "header"),
    [
        ("864691128455135232", "864691128455135232"),
        ("aZ_9-", "aZ_9-"),
        ("a" * 64, "a" * 64),
        *((None, text) for text in ("", "a" * 65, "a b", "a\n", "\x1b[0m", "é", "1, 2")),
        (None, None),
    ],
    ids=repr,
)
def test_a_request_id_is_kept_if_it_is_plain(expected: str | None, header: str | None) -> None:
    """An `x-request-id` is kept if it has at most 64 plain characters."""
    assert expected == Response(200, b"", header).safe_request_id


@pytest.mark.parametrize(
    ("expected", "value"),
    [("a", "a"), ("", ""), ("29490", 29490), ("1.5", 1.5), ("9007199254740993", 9007199254740993)],
)
def test_text_may_be_a_number(expected: str, value: object) -> None:
    """A number becomes text: the vendor's documents show header values as numbers."""
    assert expected == as_text(value)


@pytest.mark.parametrize("value", [None, True, False, [], {}], ids=repr)
def test_other_values_are_not_text(value: object) -> None:
    """A boolean, a list or an object is not text."""
    with pytest.raises(Malformed, match="is not text"):
        as_text(value)


@pytest.mark.parametrize(
    ("expected", "value"),
    [(1.0, 1), (1.5, "1.5"), (-2.0, " -2 "), (0.0, 0), (1e3, "1e3")],
    ids=repr,
)
def test_numbers_may_be_text(expected: float, value: object) -> None:
    """A number is read from text, too."""
    assert expected == as_number(value)


@pytest.mark.parametrize(
    "value",
    [None, True, "", "a", "nan", "inf", math.nan, math.inf, -math.inf, 10**400, "1e400", [], {}],
    ids=repr,
)
def test_numbers_are_finite(value: object) -> None:
    """NaN, infinities and values that overflow are refused."""
    with pytest.raises(Malformed, match="is not a finite number"):
        as_number(value)


@given(st.integers(-(2**100), 2**100))
def test_whole_numbers_are_exact(value: int) -> None:
    """Ids beyond 2^53 keep every digit, as numbers and as text."""
    assert value == as_whole(value)
    assert value == as_whole(str(value))


@pytest.mark.parametrize(("expected", "value"), [(3, 3.0), (3, "3.0"), (-1, "-1")], ids=repr)
def test_whole_numbers_may_be_written_as_fractions(expected: int, value: object) -> None:
    """3.0 is read as 3."""
    assert expected == as_whole(value)


@pytest.mark.parametrize("value", [None, True, 1.5, "1.5", "a", math.nan, "9" * 400, []], ids=repr)
def test_other_values_are_not_whole_numbers(value: object) -> None:
    """A fraction, a boolean or a text without a number is refused."""
    with pytest.raises(Malformed, match="number"):
        as_whole(value)


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        (datetime(2026, 10, 1, tzinfo=UTC), 1790812800000),
        (datetime(2026, 10, 1, tzinfo=UTC), "1790812800000"),
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        *((None, v) for v in (None, "soon", 1e300, -1e300, 10**400, math.nan, True, ["0"])),
    ],
    ids=repr,
)
def test_milliseconds_are_read_as_a_time(expected: datetime | None, value: object) -> None:
    """Milliseconds since 1970 become a time in UTC; other values become None."""
    assert expected == as_moment(value)


@pytest.mark.parametrize(
    ("expected", "values"),
    [
        (1_000_000, (1000,)),
        (1_000_000, ("1000",)),
        (1_500, (1.5,)),
        (1, (1e-9,)),
        (3_600_000_000, (1e308,)),
        (3_600_000_000, (10**300,)),
        (2_000_000, (None, 2000)),
        (2_000_000, (0, 2000)),
        (2_000_000, (-1, "nonsense", math.nan, [], {}, True, 2000, 3000)),
        *((None, (v,)) for v in (None, 0, -1, math.nan, math.inf, "NaN", "-Infinity", 10**400)),
        (None, ()),
    ],
    ids=repr,
)
def test_polling_intervals_become_microseconds(
    expected: int | None, values: tuple[object, ...]
) -> None:
    """The first usable number of milliseconds becomes microseconds, at most an hour."""
    assert expected == as_interval(*values)


@given(st.lists(json_values).map(tuple))
def test_polling_intervals_are_none_or_in_range(values: tuple[object, ...]) -> None:
    """For any values, an interval is None or between a microsecond and an hour."""
    found = as_interval(*values)

    assert found is None or (type(found) is int and 1 <= found <= 3_600_000_000)


@pytest.mark.parametrize(
    ("expected", "header"),
    [
        (0, "0"),
        (30_000_000, "30"),
        (1_500_000, " 1.5 "),
        (2_000_000, "2."),
        (3_600_000_000, "3601"),
        (3_600_000_000, "9" * 500),
        *(
            (None, h)
            for h in (None, "", "-1", "+1", "1e3", "nan", "inf", ".5", "\u0661", "1 2", "0x1")
        ),
        (None, "Wed, 21 Oct 2026 07:28:00 GMT"),
    ],
    ids=repr,
)
def test_retry_after_becomes_microseconds(expected: int | None, header: str | None) -> None:
    """Seconds become microseconds, at most an hour; a date, which needs a clock, becomes None."""
    assert expected == as_delay(header)


@given(st.none() | st.text() | st.floats().map(str) | st.integers().map(str))
def test_any_retry_after_is_none_or_in_range(header: str | None) -> None:
    """For any header, the delay is None or between zero and an hour."""
    found = as_delay(header)

    assert found is None or (type(found) is int and 0 <= found <= 3_600_000_000)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "image/jpeg", "Content-Length": "29490"},
        {"Content-Type": "image/jpeg", "Content-Length": 29490},
        [
            {"key": "Content-Type", "value": "image/jpeg"},
            {"name": "Content-Length", "value": 29490, "extra": None},
        ],
    ],
    ids=repr,
)
def test_upload_headers_are_read_in_three_shapes(headers: object) -> None:
    """An object of texts, an object with numbers, and a list of pairs give the same headers."""
    expected = UploadRequest(
        "u", "PUT", Headers((("Content-Type", "image/jpeg"), ("Content-Length", "29490")))
    )

    assert expected == structure({"url": "u", "method": "PUT", "headers": headers}, UploadRequest)


@pytest.mark.parametrize(
    "value", [{"url": "u"}, {"url": "u", "headers": None, "method": None}], ids=repr
)
def test_upload_headers_may_be_missing(value: object) -> None:
    """A null counts as absent."""
    assert UploadRequest("u") == structure((value), UploadRequest)


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("data.files[1].requests[0].url is missing", [{}, {"requests": [{}]}]),
        ("data.files[1].requests[0].url is not text", [{}, {"requests": [{"url": []}]}]),
        ("data.files[1].requests[0].url is not text", [{}, {"requests": [{"url": None}]}]),
        ("data.files[1].requests[0] is not an object", [{}, {"requests": ["u"]}]),
        ("data.files[1].requests has a wrong shape", [{}, {"requests": 1}]),
        ("data.files[1].requests is missing", [{}, {"requests": ...}]),
        ("data.files[1].file_id is not text", [{}, {"file_id": False}]),
        ("data.files[1] is not an object", [{}, None]),
        (
            "data.files[1].requests[0].headers is neither an object nor a list",
            [{}, {"requests": [{"url": "u", "headers": 1}]}],
        ),
        ("data.files is missing", None),
        ("data.files is not a list", 1),
    ],
    ids=repr,
)
def test_a_wrong_field_is_named_by_its_path(
    expected: str, value: list[dict[str, object] | None] | int | None
) -> None:
    """The problem names the path of the wrong field and does not quote its value."""
    right: dict[str, object] = {"file_id": "f", "requests": [{"url": "u"}]}
    files: object = value
    if isinstance(value, list):
        rows = [row if row is None else right | row for row in value]
        files = [
            row if row is None else {k: v for k, v in row.items() if v is not ...} for row in rows
        ]

    found = structure(({"data": {"files": files}}), list[RegisteredFile], "data", "files")

    assert isinstance(found, Malformed)
    assert expected == str(found)


@pytest.mark.parametrize(
    "wrong", [{"A": []}, [{"key": "A"}], ["A"], [{"value": "v", "key": 1.5}, 2]]
)
def test_wrong_upload_headers_are_named_by_their_path(wrong: object) -> None:
    """The problem of a wrong header begins with the path of the headers."""
    found = structure(({"url": "u", "headers": wrong}), UploadRequest)

    assert isinstance(found, Malformed)
    assert str(found).startswith("headers")


@pytest.mark.parametrize(
    ("expected", "content"),
    [
        ("the answer is not JSON", b""),
        ("the answer is not JSON", b"<html>502 Bad Gateway</html>"),
        ("the answer is not JSON", b"\xff\xfe"),
        ("the answer is not JSON", b'{"next_token":"a"'),
        ("the answer is not JSON", b"[" * 100_000),
        ("the answer is not JSON", b'{"a":' * 100_000),
        ("the answer is not JSON", b"9" * 10_000),
        ("the answer is not an object", b"[]"),
        ("the answer is not an object", b"null"),
        ("the answer is not an object", b'"next_token"'),
        ("next_token is not text", b'{"next_token":[]}'),
    ],
    ids=repr,
)
def test_an_unusable_body_is_malformed(expected: str, content: bytes) -> None:
    """HTML, bytes that are no UTF-8, too deep nesting and a list instead of an object are wrong."""
    found = structure(decode(content), Page)

    assert isinstance(found, Malformed)
    assert expected == str(found)


@pytest.mark.parametrize(
    "content", [b"[]", b"1", b'{"data":[]}', b'{"data":{}}', b'{"data":null}'], ids=repr
)
def test_keys_above_the_value_must_exist(content: bytes) -> None:
    """A missing or wrong parent of the wanted value is malformed."""
    assert isinstance(structure(decode(content), Page, "data", "page"), Malformed)


@pytest.mark.parametrize(
    ("expected", "content"),
    [
        (Page("b"), b'{"next_token":"a","next_token":"b"}'),
        (Page("a"), b'\xef\xbb\xbf{"next_token":"a","other":{"x":[1]}}'),
        (Page(None), b"{}"),
        (Page("\ud800"), b'{"next_token":"\\ud800"}'),
        (Page("7"), b'{"next_token":7,"x":NaN,"y":-Infinity}'),
    ],
    ids=repr,
)
def test_unusual_json_is_tolerated(expected: Page, content: bytes) -> None:
    """Unknown and repeated keys, a byte order mark, NaN and lone surrogates are accepted."""
    assert expected == structure(decode(content), Page)


def test_big_ids_are_exact() -> None:
    """An id above 2^53 is kept exactly."""
    assert Credit(9007199254740993) == structure(decode(b'{"id":9007199254740993}'), Credit)


def test_unchecked_fields_are_kept_unchanged() -> None:
    """A field of type `object` is kept without conversion."""
    content = body({"task_status": "running", "error": {"a": 1}, "polling_interval": "x"})

    assert TaskState("running", {"a": 1}, None, "x") == structure(decode(content), TaskState)


def test_read_returns_the_value_of_a_success() -> None:
    """A success is read as the requested shape."""
    assert "t" == read(Response(200, b'{"data":{"task_id":"t"}}'), str, "data", "task_id")


def test_read_raises_with_the_path() -> None:
    """A success with a wrong field raises `BadAnswer` with the field and the request id."""
    with pytest.raises(BadAnswer, match=r"data\.task_id is missing") as caught:
        read(Response(200, b'{"data":{}}', "17"), str, "data", "task_id")

    assert (200, "17") == (caught.value.status, caught.value.request_id)
    assert (None, None) == (caught.value.__cause__, caught.value.__context__)


def test_read_raises_the_error_of_a_failed_reply() -> None:
    """A 401 raises `Unauthorized`."""
    with pytest.raises(Unauthorized):
        read(Response(401, b"{}"), str, "data")


def test_no_error_holds_a_successful_body() -> None:
    """A signed URL in a broken answer gets neither into the error's text nor into its context."""
    content = b'{"data":{"files":[{"url":"https://s.example/a?X-Amz-Signature=abc"'

    with pytest.raises(BadAnswer) as caught:
        read(Response(200, content), list[RegisteredFile], "data", "files")

    assert "Signature" not in f"{caught.value}{caught.value.args}{caught.value.__context__}"


@pytest.mark.parametrize(
    ("expected", "content"),
    [
        (5_000, b'{"polling_interval":5,"data":{}}'),
        (7_000, b'{"polling_interval":5,"data":{"polling_interval":7}}'),
        (None, b"[]"),
        (None, b""),
    ],
)
def test_an_interval_is_read_in_or_beside_the_data(expected: int | None, content: bytes) -> None:
    """`polling_interval` in `data` is preferred to one beside it; without both it is None."""
    reply = Response(200, content)
    data = structure(reply.json, dict[str, int], "data")

    assert expected == interval(
        reply, data.get("polling_interval") if isinstance(data, dict) else None
    )


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        (("'Too many requests'", "TooManyRequests"), {"status": 429, "error": "Too many requests"}),
        (("'no'", "InvalidTaskId"), {"error": "no", "error_code": "InvalidTaskId"}),
        (("'no'", "InvalidTaskId"), {"error": "no", "errorCode": "INVALID_TASK_ID"}),
        (("'Invalid task ID'", "InvalidTaskId"), {"error": "Invalid task ID"}),
        (
            ("'Invalid task ID.'", "InvalidTaskId"),
            {"error": "Invalid task ID.", "error_code": "E7"},
        ),
        (("'Invalid task ID'", "NotFound"), {"error": "Invalid task ID", "error_code": "NotFound"}),
        (("'no'", "InvalidTaskId"), {"error": {"code": "InvalidTaskId", "message": "no"}}),
        (("", "NotFound"), {"status": 404, "error": {"code": "NotFound"}}),
        (("", None), {"status": 404, "message": "no route"}),
        (("", None), {"message": "no route"}),
        (("", "A"), {"error": None, "error_code": "A"}),
        (("", None), {"error": {"a": 1}, "error_code": {"b": 2}}),
        (("", None), {"error_code": "two words"}),
        (("", None), {"error_code": "A" * 65}),
        (("", None), {"error_code": "\x1b[0m"}),
        (("'\\x1b[0m'", None), {"error": "\x1b[0m"}),
        (("", None), []),
        (("", None), "error"),
    ],
    ids=repr,
)
def test_an_envelope_has_a_text_and_a_code(expected: tuple[str, str | None], value: object) -> None:
    """The text of an envelope is quoted, and its code is kept if it is a plain word."""
    assert expected == error_details(Response(400, body(value)))


def test_codes_are_compared_without_case() -> None:
    """The vendor spells codes in several ways."""
    assert same_code("invalidTASKid", "InvalidTaskId")
    assert not same_code("InvalidTask", "InvalidTaskId")
    assert not same_code(None, "InvalidTaskId")


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("'plain'", "plain"),
        (
            "'cannot load https://s.example/a of it'",
            "cannot load https://s.example/a?X=1&Y=2 of it",
        ),
        ("'https://s.example/a'", "https://s.example/a#b"),
        ("'s3://b/c d://e'", "s3://b/c?secret d://e?secret"),
        ("'ftp://a.example/b'", "ftp://user:secret@a.example/b"),
        ("'what? yes'", "what? yes"),
    ],
    ids=repr,
)
def test_urls_in_texts_lose_their_secrets(expected: str, text: str) -> None:
    """The vendor's text may repeat the user's URL of a picture, which may be signed."""
    assert expected == quoted_text(text)


def test_a_value_nested_too_deep_is_not_shown() -> None:
    """A value that Python cannot print does not raise."""
    value: list[object] = []
    for _ in range(100_000):
        value = [value]

    assert "'nested too deep'" == quoted_text(value)


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (Unauthorized, 401, "InvalidApiKey"),
        (Unauthorized, 401, None),
        (Unauthorized, 403, "ExpiredApiKey"),
        (RateLimited, 429, None),
        (UnitsExhausted, 400, "CreditInsufficiency"),
        (UnitsExhausted, 402, "CreditInsufficiency"),
        (RateLimited, 400, "TooManyRequests"),
        (RequestRefused, 400, "InvalidParameters"),
        (RequestRefused, 400, None),
        (RequestRefused, 403, None),
        (RequestRefused, 404, None),
        (RequestRefused, 499, None),
        (ServiceUnavailable, 408, None),
        (ServiceUnavailable, 425, None),
        (ServiceUnavailable, 500, None),
        (ServiceUnavailable, 503, "CreditInsufficiency"),
        (ServiceUnavailable, 599, None),
        *((BadAnswer, status, None) for status in (100, 200, 204, 301, 302, 304, 399, 600, 999)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("html", [False, True])
def test_a_failed_reply_has_an_error(
    kind: type[PerfectError], status: int, code: str | None, html: bool
) -> None:
    """The status decides the error, unless a 4xx has a known code."""
    if html and status < 500 and code not in {None, "InvalidApiKey"}:
        kind = RequestRefused
    content = b"<html>no</html>" if html else body({"error": "no", "error_code": code})

    error = response_error(Response(status, content, "17"))

    assert kind is type(error)
    assert "17" == getattr(error, "request_id", None)
    if isinstance(error, ApiError):
        assert status == error.status
        assert (None if html or kind is BadAnswer else code) == error.code
    if isinstance(error, ServiceUnavailable):
        assert not error.never_sent


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (RequestRefused, {"status": 400, "error": "no"}),
        (RequestRefused, {"status": "404"}),
        (RequestRefused, {"error_code": "InvalidParameters"}),
        (RequestRefused, {"status": 200, "error": "Invalid task ID", "data": None}),
        (Unauthorized, {"status": 401, "error_code": "InvalidApiKey"}),
        (Unauthorized, {"status": 400, "error": "Invalid API key"}),
        (RateLimited, {"status": 429, "error": "Too many requests"}),
        (UnitsExhausted, {"status": 400, "errorCode": "creditInsufficiency"}),
        (UnitsExhausted, {"status": 400, "error": "Credit insufficiency"}),
        (ServiceUnavailable, {"status": 500, "error": "Internal"}),
    ],
    ids=repr,
)
def test_an_error_in_the_body_of_a_200_is_an_error(
    kind: type[PerfectError], value: dict[str, object]
) -> None:
    """HTTP 200 with an error in its body is the same error as with the status in the body."""
    reply = Response(200, body(value), "17")

    assert not reply.is_success
    assert kind is type(response_error(reply))
    with pytest.raises(kind):
        read(reply, dict[str, object])


@pytest.mark.parametrize(
    "value",
    [
        {"status": 200, "data": {"task_status": "error", "error": "Invalid task ID"}},
        {"status": "ok", "data": {}},
        {"status": 200, "error": None, "results": []},
        {"status": 0, "error": "what is this"},
        {"status": 900},
        {"error_code": "InvalidTaskId", "data": {}},
        [],
    ],
    ids=repr,
)
def test_a_success_is_not_an_error(value: object) -> None:
    """An answer with HTTP 200 is an error only if its body is clearly one."""
    assert Response(200, body(value)).is_success


def test_a_proxy_that_wants_credentials_forwards_nothing() -> None:
    """A 407 comes from a proxy, and the vendor has not seen the request."""
    error = response_error(Response(407, b"<html>"))

    assert isinstance(error, ServiceUnavailable)
    assert error.never_sent


@pytest.mark.parametrize(
    ("expected", "error", "text"),
    [
        ("TaskTimeout", "TaskTimeout", None),
        ("TaskTimeout", "Task execution timed out.", None),
        ("TaskTimeout", "error_x", "Task execution timed out"),
        ("TaskTimeout", {"code": "TASK_TIMEOUT"}, None),
        ("TaskTimeout", {"code": 7, "message": "task execution timed out"}, None),
        (None, "error_no_face", None),
        (None, None, None),
        (None, [], {}),
    ],
)
def test_known_codes_are_found_in_the_data_of_a_task(
    expected: str | None, error: object, text: object
) -> None:
    """The error in a task's data may be a code, a text or an object with both."""
    assert expected == code_of(error, text)


def test_a_refusal_quotes_the_vendor() -> None:
    """The message contains the vendor's text."""
    content = body({"error": "template_id is required.", "error_code": "InvalidParameters"})

    assert "'template_id is required.'" in str(response_error(Response(400, content)))
    assert "'template_id is required.'" in str(response_error(Response(503, content)))
    assert "'template_id is required.'" in str(response_error(Response(429, content)))


def test_an_answer_about_a_key_is_not_quoted() -> None:
    """The message of a 401 has the vendor's code but not its text, which may repeat the key."""
    content = body({"error": "key sk-secret is not valid", "error_code": "InvalidApiKey"})

    text = str(response_error(Response(401, content)))

    assert "secret" not in text
    assert "InvalidApiKey" in text


def test_bad_answer_names_the_problem() -> None:
    """The error for an unusable answer has the problem, the status and the request id."""
    error = bad_answer(Response(200, b"", "17"), "data is missing")

    assert "data is missing" in str(error)
    assert (200, "17") == (error.status, error.request_id)


@given(replies)
@example(Response(400, b'{"error":' * 50_000))
def test_any_reply_has_a_printable_error(reply: Response) -> None:
    """`response_error` returns a printable `PerfectError` for any reply."""
    error = response_error(reply)

    assert isinstance(error, PerfectError)
    assert str(error).isprintable() or "…" in str(error)


@given(
    replies,
    st.sampled_from(
        [list[RegisteredFile], TaskState, UploadRequest, Credit, Page, str, list[Credit]]
    ),
)
def test_any_reply_is_read_or_refused(reply: Response, shape: type[object]) -> None:
    """`read` returns the shape or raises a `PerfectError` for any reply."""
    try:
        read(reply, shape)
    except PerfectError as error:
        assert "" != str(error)  # noqa: PT017 -- most replies do not raise
