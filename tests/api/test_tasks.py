"""The requests of a task, and the events of their answers."""

import json
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perfect_async import Client, events
from perfect_async._api.responses import Malformed, decode
from perfect_async._api.tasks import (
    FEATURES,
    FileFacts,
    Request,
    Response,
    creation,
    is_unknown_task,
    pictures_only,
    read_answer,
    read_creation,
    read_registration,
    read_status,
    registration,
    says_more,
    status,
)
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
)
from perfect_async.events import (
    Accepted,
    Answer,
    Answered,
    Ask,
    EngineFailed,
    FileGrant,
    KeyRefused,
    Limited,
    NoAnswer,
    NotSent,
    OutOfUnits,
    Poll,
    Refused,
    Register,
    Registered,
    Running,
    Submit,
    Succeeded,
    TaskUnknown,
    TimedOut,
    Unreadable,
)
from perfect_async.models import (
    Avatar,
    Feature,
    FileId,
    Job,
    Placeholder,
    Smile,
    Source,
    must_be_job,
)
from tests.api.test_responses import json_values, replies

REGISTER = Register(1, (7, 8), None)
SUBMIT = Submit(2, 7)
POLL = Poll(3, 7)
ASK = Ask(4, 9)
SIGNED = "https://results.example/a.jpg?X-Amz-Signature=secret"


def reply(value: object, status: int = 200, retry_after: str | None = None) -> Response:
    return Response(status, json.dumps(value).encode(), "17", retry_after)


def polling(value: object, status: int = 200) -> Answer:
    return read_status(POLL, reply(value, status), pictures_only=True, task_id="t", units=3.0)


def body_of(call: Request) -> object:
    assert call.content is not None
    return json.loads(call.content)


def error_of(answer: Answer) -> PerfectError:
    error = getattr(answer, "error", None)
    assert isinstance(error, PerfectError)
    return error


# Failures of any command.

FAILURES = [
    (KeyRefused, Unauthorized, 401, {"error": "no", "error_code": "InvalidApiKey"}),
    (KeyRefused, Unauthorized, 200, {"status": 401, "error_code": "InvalidApiKey"}),
    (Limited, RateLimited, 429, {"status": 429, "error": "Too many requests"}),
    (Limited, RateLimited, 429, "<html>"),
    (Limited, RateLimited, 200, {"status": 429, "error": "Too many requests"}),
    (Refused, RequestRefused, 400, {"error": "no", "error_code": "InvalidParameters"}),
    (Refused, RequestRefused, 403, {"error": "forbidden"}),
    (Refused, RequestRefused, 409, {"status": 409}),
    (Refused, RequestRefused, 200, {"status": 400, "error": "no"}),
    (NotSent, ServiceUnavailable, 407, "<html>"),
    (NoAnswer, ServiceUnavailable, 408, None),
    (NoAnswer, ServiceUnavailable, 500, {"error": "Internal Server Error"}),
    (NoAnswer, ServiceUnavailable, 200, {"status": 500, "error": "Internal Server Error"}),
    (NoAnswer, ServiceUnavailable, 502, "<html>"),
    (NoAnswer, ServiceUnavailable, 503, {}),
    (NoAnswer, BadAnswer, 302, {}),
    (NoAnswer, BadAnswer, 999, {}),
]


def answers(answered: Response) -> list[tuple[events.Request, Answer]]:
    """Return each command with the event of the answer for it."""
    return [
        (REGISTER, read_registration(REGISTER, answered)),
        (SUBMIT, read_creation(SUBMIT, answered)),
        (POLL, read_status(POLL, answered, pictures_only=True, task_id="t", units=1.0)),
        (ASK, read_answer(ASK, answered)),
    ]


@pytest.mark.parametrize(("event", "error", "status", "value"), FAILURES, ids=repr)
def test_failures_are_the_same_for_all_commands(
    event: type[Answer], error: type[PerfectError], status: int, value: object
) -> None:
    """A common error gives the same event for every command."""
    for command, answer in answers(reply(value, status)):
        assert event is type(answer)
        assert command is getattr(answer, "command", None)
        assert error is type(error_of(answer))
        if status != 407:
            assert "17" == getattr(error_of(answer), "request_id", None)
        if isinstance(answer, Refused):
            assert (400 if status == 200 else status) == answer.status


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 410, 413, 418, 499])
@pytest.mark.parametrize("value", ["<html>", {"message": "no route"}, {}, []], ids=repr)
def test_a_4xx_without_the_vendors_json_is_no_answer(status: int, value: object) -> None:
    """A proxy's 4xx leaves open whether the vendor has seen the request, so no task ends."""
    registration, *others = answers(reply(value, status))

    assert (KeyRefused if status == 401 else Refused) is type(registration[1])
    for _, answer in others:
        assert isinstance(answer, NoAnswer)
        assert ServiceUnavailable is type(answer.error)
        assert f"HTTP {status}" in str(answer.error)


@pytest.mark.parametrize(
    ("expected", "header"),
    [(None, None), (7_000_000, "7"), (None, "Wed, 21 Oct 2026 07:28:00 GMT"), (None, "-1")],
)
def test_a_limit_carries_retry_after(expected: int | None, header: str | None) -> None:
    """The event of a 429 has the delay of `Retry-After` in microseconds."""
    answer = read_creation(SUBMIT, reply({}, 429, header))

    assert Limited(SUBMIT, error_of(answer), expected) == answer


# Registration.


def test_registering_several_files_is_one_call() -> None:
    """One request on the universal path registers the files in order."""
    files = [FileFacts("image/jpeg", "me.jpg", 29490), FileFacts("image/heic", "b", 1)]

    call = registration(files, None)

    assert ("POST", "/s2s/v2.0/file", ()) == (call.method, call.path, call.query)
    assert {
        "files": [
            {"content_type": "image/jpeg", "file_name": "me.jpg", "file_size": 29490},
            {"content_type": "image/heic", "file_name": "b", "file_size": 1},
        ]
    } == body_of(call)


def test_files_may_be_registered_on_the_path_of_a_feature() -> None:
    """A feature replaces the universal path with its own."""
    assert "/s2s/v2.0/file/ai-smile" == registration([], "ai-smile").path


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ("me.jpg", "me.jpg"),
        ("my photo-1.jpg", "my photo-1.jpg"),
        ("___.jpg", "фот.jpg"),
        (".._etc_passwd", "../etc/passwd"),
        ("a__b", "a\r\nb"),
        ("picture", ""),
        ("a" * 76 + ".jpg", "a" * 300 + ".jpg"),
    ],
)
def test_file_names_are_plain(expected: str, name: str) -> None:
    """Special characters of a file name are replaced; a long name keeps its suffix."""
    body = body_of(registration([FileFacts("image/jpeg", name, 1)], None))

    assert {
        "files": [{"content_type": "image/jpeg", "file_name": expected, "file_size": 1}]
    } == body


@given(st.lists(st.builds(FileFacts, st.text(), st.text(), st.integers(0)), max_size=3), st.text())
def test_any_files_can_be_registered(files: list[FileFacts], feature: str) -> None:
    """For any facts, the request is ASCII JSON with all files, on the path of the feature."""
    call = registration(files, feature)

    assert call.content is not None
    assert call.content.isascii()
    assert len(files) == len(json.loads(call.content)["files"])
    assert call.path.isascii()
    assert 4 + feature.partition("@")[0].count("/") == call.path.count("/")


def file(name: str = "f", **changes: object) -> dict[str, object]:
    put = {
        "method": "PUT",
        "url": "https://up.example/a?s",
        "headers": {"Content-Type": "image/jpeg"},
    }
    return {"file_id": name, "requests": [put], "content_type": "image/jpeg"} | changes


def test_grants_are_in_the_order_of_the_files() -> None:
    """Each file gets its grant, and unknown fields are ignored."""
    answer = read_registration(
        REGISTER, reply({"status": 200, "data": {"files": [file("a/+="), file("b")]}})
    )

    headers = (("Content-Type", "image/jpeg"),)
    first = FileGrant("a/+=", "PUT", "https://up.example/a?s", headers)
    second = FileGrant("b", "PUT", "https://up.example/a?s", headers)
    assert Registered(REGISTER, (first, second)) == answer


def test_the_method_defaults_to_put() -> None:
    """An answer without a method means PUT."""
    put = {"url": "https://up.example/a"}

    answer = read_registration(
        Register(1, (7,), None), reply({"data": {"files": [file(requests=[put])]}})
    )

    assert isinstance(answer, Registered)
    assert FileGrant("f", "PUT", "https://up.example/a", ()) == answer.grants[0]


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("not JSON", ...),
        ("the answer is not an object", []),
        ("data is missing", {}),
        ("data.files is missing", {"data": {}}),
        ("data.files has 0 entries for 2 files", {"data": {"files": []}}),
        ("data.files has 1 entries for 2 files", {"data": {"files": [file()]}}),
        ("data.files has 3 entries for 2 files", {"data": {"files": [file()] * 3}}),
        ("data.files[1].file_id is empty", {"data": {"files": [file(), file("")]}}),
        (
            "data.files[1].requests[0] is missing",
            {"data": {"files": [file(), file(requests=[])]}},
        ),
        (
            "data.files[1].requests[0].url is missing",
            {"data": {"files": [file(), file(requests=[{}])]}},
        ),
    ],
    ids=repr,
)
def test_an_unusable_registration_is_no_answer(expected: str, value: object) -> None:
    """Too few, too many or incomplete grants are `NoAnswer` with the path of the problem."""
    answered = Response(200, b"<html>") if value is ... else reply(value)

    answer = read_registration(REGISTER, answered)

    assert isinstance(answer, NoAnswer)
    assert BadAnswer is type(answer.error)
    assert expected in str(answer.error)


# Creation.


@pytest.mark.parametrize(
    ("expected", "job"),
    [
        ({"expression_type": "smile_with_teeth_visible"}, Smile("x")),
        ({"expression_type": "closed_mouth_smile"}, Smile("x", "closed_mouth_smile", key="k")),
        ({"template_id": "male_1", "output_count": 4}, Avatar("x", "male_1")),
        ({"template_id": "male_1", "output_count": 200}, Avatar("x", "male_1", 200)),
    ],
)
def test_a_task_has_one_source_and_its_parameters(expected: dict[str, object], job: Job) -> None:
    """The body has a file's id or a URL and the feature's fields, and no null."""
    assert expected | {"src_file_id": "a/+="} == body_of(creation(job, [FileId("a/+=")]))
    assert expected | {"src_file_url": SIGNED} == body_of(creation(job, [SIGNED]))
    assert f"/s2s/v2.0/task/{job.feature}" == creation(job, [SIGNED]).path
    assert "POST" == creation(job, [SIGNED]).method


def test_a_field_without_a_value_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optional field that is None is not sent, since the vendor answers null with 400."""

    @attrs.frozen
    class Older(Job):
        feature = "ai-older"
        source: Source
        key: str | None = None
        age: int | None = None

    monkeypatch.setitem(creation.__globals__["_PARAMETERS"], Older, {"age": "target_age"})

    assert {"src_file_url": "u"} == body_of(creation(Older("u"), ["u"]))
    assert {"src_file_url": "u", "target_age": 80} == body_of(creation(Older("u", age=80), ["u"]))


def test_a_subclass_of_a_job_is_sent_like_the_job() -> None:
    """A subclass of `Smile` gives the body of a smile."""

    class Grin(Smile):
        pass

    assert body_of(creation(Smile("x"), ["u"])) == body_of(creation(Grin("x"), ["u"]))


def test_a_job_of_an_unknown_class_is_refused() -> None:
    """A class of jobs that is not in the table raises `JobRefused`."""

    @attrs.frozen
    class Frown(Job):
        feature = "ai-frown"
        source: Source
        key: str | None = None

    with pytest.raises(JobRefused, match="Frown"):
        creation(Frown(source="x"), ["u"])


@pytest.mark.parametrize(
    "task_id", ["a", "a" * 107, "a" * 1024, "a/b+c=", "идентификатор", "..", "a b", 42]
)
def test_an_accepted_task_has_an_id(task_id: object) -> None:
    """A task id is opaque text in any alphabet, up to 1024 characters."""
    assert Accepted(SUBMIT, str(task_id)) == read_creation(
        SUBMIT, reply({"data": {"task_id": task_id}})
    )


@pytest.mark.parametrize(
    "value",
    [
        *({}, [], None, "t", {"data": None}, {"data": {}}, {"data": "t"}, {"task_id": "t"}),
        *({"data": {"task_id": bad}} for bad in ("", " ", "a" * 1025, "a\nb", "a\x00", "\ud800")),
        *({"data": {"task_id": bad}} for bad in (None, True, ["t"])),
    ],
    ids=repr,
)
def test_a_creation_without_a_usable_id_is_in_doubt(value: object) -> None:
    """A success without a task id may have created a task, so it is `NoAnswer`."""
    answer = read_creation(SUBMIT, reply(value))

    assert isinstance(answer, NoAnswer)
    assert BadAnswer is type(answer.error)


@pytest.mark.parametrize(
    ("expected", "inside", "beside"), [(None, None, None), (7_000, 7, 9), (9_000, "x", 9)]
)
def test_a_creation_may_name_an_interval(
    expected: int | None, inside: object, beside: object
) -> None:
    """The `polling_interval` of an answer to a creation is read."""
    data = {"task_id": "t", "polling_interval": inside}

    answer = read_creation(SUBMIT, reply({"data": data, "polling_interval": beside}))

    assert Accepted(SUBMIT, "t", expected) == answer


@pytest.mark.parametrize("status", [200, 400, 402])
@pytest.mark.parametrize(
    "fields",
    [
        {"error_code": "CreditInsufficiency"},
        {"error": "no", "error_code": "creditinsufficiency"},
        {"errorCode": "CreditInsufficiency"},
        {"error": "CreditInsufficiency"},
        {"error": "Insufficient credits."},
    ],
    ids=repr,
)
def test_a_creation_beyond_the_balance_is_out_of_units(
    status: int, fields: dict[str, object]
) -> None:
    """Every form of the error gives `OutOfUnits` for a creation and `Refused` otherwise."""
    answered = reply({"status": 400} | fields, status)

    answer = read_creation(SUBMIT, answered)

    assert OutOfUnits(SUBMIT, error_of(answer)) == answer
    assert UnitsExhausted is type(error_of(answer))
    assert Refused is type(read_answer(ASK, answered))
    assert UnitsExhausted is type(error_of(read_answer(ASK, answered)))


# Polling.


@given(st.text(min_size=1).filter(str.isprintable), st.sampled_from(["ai-smile", "ai-avatar"]))
@example("a/b?c#d%2F+ é", "ai-smile")
def test_a_tasks_id_is_one_segment(task_id: str, feature: str) -> None:
    """Any id is one segment of the path and decodes to itself."""
    call = status(feature, task_id)

    head, _, last = call.path.rpartition("/")
    assert ("GET", (), None) == (call.method, call.query, call.content)
    assert f"/s2s/v2.0/task/{feature}" == head
    assert task_id == unquote(last)
    assert last.strip(".")
    assert call.path.isascii()
    assert not set("?#") & set(call.path)


def test_an_id_with_a_surrogate_can_be_polled() -> None:
    """An id that UTF-8 cannot encode does not raise; the vendor will not know it."""
    assert "/s2s/v2.0/task/ai-smile/a%3F" == status("ai-smile", "a\ud800").path


@pytest.mark.parametrize(
    "status", ["running", "RUNNING", "queued", "processing", "", "pending", "successful", 7]
)
@pytest.mark.parametrize("beside", [{}, {"error": None, "results": None}, {"results": {"url": 1}}])
def test_any_other_status_is_running(status: object, beside: dict[str, object]) -> None:
    """An unknown status counts as running, and its partial results are ignored."""
    assert Running(POLL) == polling({"data": {"task_status": status} | beside})


@pytest.mark.parametrize(
    ("expected", "inside", "outside"),
    [
        (1_000_000, 1000, None),
        (1_000_000, "1000", 2000),
        (2_500, None, 2.5),
        (2_000_000, "nonsense", 2000),
        (2_000_000, -1, 2000),
        (None, 0, None),
        (3_600_000_000, 10**300, None),
        (None, [], {}),
    ],
)
def test_a_running_task_may_name_an_interval(
    expected: int | None, inside: object, outside: object
) -> None:
    """The `polling_interval` beside the status is preferred to the one beside `data`."""
    data = {"task_status": "running", "polling_interval": inside}

    assert Running(POLL, expected) == polling({"data": data, "polling_interval": outside})


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"null"])
def test_an_interval_that_is_not_a_number_is_ignored(constant: bytes) -> None:
    """Constants that Python's parser accepts beyond JSON do not spoil the poll."""
    content = b'{"data":{"task_status":"running","polling_interval":' + constant + b"}}"

    assert Running(POLL) == read_status(
        POLL, Response(200, content), pictures_only=True, task_id="t", units=1.0
    )


@pytest.mark.parametrize(
    ("expected", "results"),
    [
        ((SIGNED,), {"url": SIGNED}),
        ((SIGNED,), {"download_url": SIGNED}),
        ((SIGNED,), {"url": SIGNED, "output": None}),
        ((SIGNED,), {"url": SIGNED, "output": []}),
        ((SIGNED,), {"url": SIGNED, "output": [None]}),
        ((SIGNED, "http://b"), {"output": [{"url": SIGNED}, {"url": "http://b", "x": 1}]}),
        ((SIGNED,), {"url": "https://other", "output": [{"url": SIGNED}]}),
        ((SIGNED,), {"output": [{"url": None}, {}, {"url": 1}, {"url": ""}, {"url": SIGNED}]}),
        ((SIGNED,), {"output": [None, {"url": SIGNED}, 7, [], "", True]}),
        ((SIGNED, "https://b"), {"output": [{"download_url": SIGNED}, "https://b"]}),
        ((SIGNED,), {"output": {"url": SIGNED}}),
        ((SIGNED,), [{"download_url": SIGNED}]),
        ((SIGNED, "https://b"), [None, {"url": SIGNED}, "https://b"]),
        ((SIGNED,), SIGNED),
        (("HTTPS://a",), {"url": "HTTPS://a"}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("status", ["success", "Success", "completed"])
def test_a_success_has_urls(expected: tuple[str, ...], results: object, status: str) -> None:
    """URLs are read from every published form; only an entry without a URL is left out."""
    answer = polling({"data": {"task_status": status, "error": None, "results": results}})

    assert Succeeded(POLL, expected) == answer
    assert "secret" not in repr(answer)


@pytest.mark.parametrize(
    "results",
    [
        *({}, [], "", "a", 7, True, {"url": None}, {"url": ""}, {"url": "ftp://a"}),
        *({"url": ["x"]}, {"url": "a"}, {"output": {}}, {"output": [{}]}, {"output": 1}),
        *([None], [[SIGNED]], {"score": 7}, {"output": [{"mask_urls": [SIGNED]}]}),
    ],
    ids=repr,
)
def test_a_success_without_a_picture_is_final(results: object) -> None:
    """A success without a readable picture is `Unreadable` with the task id and the results."""
    answer = polling({"data": {"task_status": "success", "results": results}})

    assert isinstance(answer, Unreadable)
    assert isinstance(answer.error, ResultUnreadable)
    assert ("t", "17", 3.0, results) == (
        answer.error.task_id,
        answer.error.request_id,
        answer.error.units_at_stake,
        answer.error.raw,
    )
    assert "secret" not in str(answer.error)


def test_a_success_without_results_keeps_the_answer() -> None:
    """If the results are null, the error keeps the whole answer as `raw`."""
    value = {"status": 200, "data": {"task_status": "success", "results": None, "dst_id": "d"}}

    answer = polling(value)

    assert isinstance(answer, Unreadable)
    assert isinstance(answer.error, ResultUnreadable)
    assert value == answer.error.raw


@pytest.mark.parametrize(
    ("code", "passing", "error"),
    [
        ("error_no_face", False, "error_no_face"),
        ("error_no_face", False, "ERROR_NO_FACE"),
        ("error_inference", True, "error_inference"),
        ("error_inference", True, " Error_Inference "),
        ("error_upload", True, "error_upload"),
        ("error_download_image", True, "error_download_image"),
        ("unknown_internal_error", True, "UNKNOWN_INTERNAL_ERROR"),
        ("error_download_mask", False, "error_download_mask"),
        ("face alignment failed", False, "face alignment failed"),
        ("a b [31m", False, "a\nb\x1b[31m"),
        ("a" * 100, False, "A" * 500),
        ("7", False, 7),
        ("unspecified", False, None),
        ("unspecified", False, ""),
        ("{'code': 1}", False, {"code": 1}),
        ("error_no_face", False, {"code": "ERROR_NO_FACE", "message": "no face"}),
        ("error_inference", True, {"error_code": "error_inference"}),
        ("no face", False, {"message": "no face"}),
    ],
)
@pytest.mark.parametrize("status", ["error", "Error", "failed", "cancelled", "canceled", "aborted"])
def test_an_engine_error_has_a_code(code: str, passing: bool, error: object, status: str) -> None:
    """The code is printable and in lower case; four codes may pass on another try."""
    answer = polling({"data": {"task_status": status, "error": error, "results": None}})

    assert isinstance(answer, EngineFailed)
    assert isinstance(answer.error, TaskFailed)
    assert (code, passing, passing) == (answer.error.code, answer.error.passing, answer.passing)
    assert ("t", "17", 0.0) == (
        answer.error.task_id,
        answer.error.request_id,
        answer.error.units_at_stake,
    )


def test_an_engine_error_quotes_its_message() -> None:
    """The message contains the engine's text, with the secrets of URLs removed."""
    data = {
        "task_status": "error",
        "error": "error_download_image",
        "error_message": f"no {SIGNED}\n",
    }

    text = str(error_of(polling({"data": data})))

    assert "error_download_image" in text
    assert "no https://results.example/a.jpg" in text
    assert "secret" not in text


@pytest.mark.parametrize("status", [200, 400, 404, 410])
@pytest.mark.parametrize(
    "fields",
    [
        {"error": "no", "error_code": "InvalidTaskId"},
        {"error": "no", "error_code": "invalidtaskid"},
        {"errorCode": "InvalidTaskId"},
        {"error": "Invalid task ID"},
        {"error": "INVALID TASK ID."},
        {"error": {"code": "InvalidTaskId"}},
    ],
    ids=repr,
)
def test_an_unknown_task_may_have_been_charged(status: int, fields: dict[str, object]) -> None:
    """Every form of InvalidTaskId gives an error with the task's id and the units at stake."""
    answer = polling({"status": 400} | fields, status)

    assert isinstance(answer, TaskUnknown)
    assert TaskExpired is type(answer.error)
    assert 3.0 == answer.error.units_at_stake
    assert "task 't'" in str(answer.error)
    assert "charged" in str(answer.error)


@pytest.mark.parametrize(
    ("status", "value"),
    [
        (404, {"status": 404, "error": "Not Found", "error_code": "NotFound"}),
        (404, {"error": "Not Found"}),
        (404, {"status": 404}),
        (200, {"status": 404, "error": "Not Found"}),
    ],
    ids=repr,
)
def test_a_404_of_the_vendor_means_an_unknown_task(status: int, value: object) -> None:
    """A 404 with the vendor's JSON is `TaskUnknown`."""
    assert TaskUnknown is type(polling(value, status))


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (500, b'{"status":500,"error":"Task execution timed out"}'),
        (500, b'{"status":500,"error":"TASK EXECUTION TIMED OUT.","error_code":null}'),
        (500, b"Task execution timed out"),
        (500, b'{"status":500,"error_code":"TaskTimeout"}'),
        (500, b'{"error":"no","error_code":"tasktimeout"}'),
        (400, b'{"errorCode":"TaskTimeout"}'),
        (200, b'{"status":500,"error":"Task execution timed out"}'),
        (200, b'{"data":{"task_status":"error","error":"TaskTimeout"}}'),
        (200, b'{"data":{"task_status":"failed","error_message":"Task execution timed out"}}'),
    ],
)
def test_the_vendors_own_time_limit_is_final(status: int, content: bytes) -> None:
    """Every form of the vendor's time limit, by code or text, is `TimedOut`."""
    answer = read_status(
        POLL, Response(status, content, "17"), pictures_only=True, task_id="t", units=3.0
    )

    assert isinstance(answer, TimedOut)
    assert isinstance(answer.error, TaskTimedOut)
    assert ("t", "17", 3.0) == (
        answer.error.task_id,
        answer.error.request_id,
        answer.error.units_at_stake,
    )


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 407, 408, 409, 410, 429, 500, 503])
@pytest.mark.parametrize(
    ("unknown_at", "content"),
    [
        (
            {200, 400, 401, 403, 404, 407, 408, 409, 410, 429},
            b'{"status":400,"error_code":"InvalidTaskId"}',
        ),
        (
            {200, 400, 401, 403, 404, 407, 408, 409, 410, 429},
            b'{"status":400,"error":"Invalid task ID"}',
        ),
        ({200, 404}, b'{"status":404,"error":"Not Found"}'),
        ({404}, b'{"status":400,"error":"no","error_code":"InvalidParameters"}'),
        ({404}, b'{"status":401,"error":"no","error_code":"NotFound"}'),
        (set[int](), b"<html>404 Not Found</html>"),
        (set[int](), b'{"message":"no route"}'),
        (set[int](), b""),
    ],
)
def test_asks_and_polls_agree_on_unknown_tasks(
    unknown_at: set[int], content: bytes, status: int
) -> None:
    """The same answers mean an unknown task to `Ask` and to `Poll`."""
    answered = Response(status, content)

    question = read_answer(ASK, answered)
    poll = read_status(POLL, answered, pictures_only=True, task_id="t", units=1.0)

    assert (status in unknown_at) is isinstance(poll, TaskUnknown)
    unknown = isinstance(question, Refused) and is_unknown_task(question.error)
    assert (status in unknown_at) is unknown


def test_a_time_limit_with_another_status_is_not_final() -> None:
    """The text of the vendor's time limit in a gateway's 504 does not end the task."""
    answered = Response(504, b"Task execution timed out")

    assert NoAnswer is type(read_status(POLL, answered, pictures_only=True, task_id="t", units=1.0))


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"null", b"[]", b"{}", b'{"data":null}', b'{"data":{}}', b"<html>", b"\xff"),
        *(b'{"data":{"task_status":null}}', b'{"data":{"task_status":[]}}', b"[" * 100_000),
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_malformed_answer_to_a_poll_is_no_answer(content: bytes) -> None:
    """A 200 without a readable status is `NoAnswer`, so the poll is repeated."""
    answer = read_status(POLL, Response(200, content), pictures_only=True, task_id="t", units=1.0)

    assert NoAnswer is type(answer)
    assert BadAnswer is type(error_of(answer))


# `Ask` commands.


def test_a_success_answers_an_ask() -> None:
    """The scheduler learns only that an answer came; its body is read elsewhere."""
    assert Answered(ASK) == read_answer(ASK, reply(None))


@pytest.mark.parametrize(
    "content",
    [b'{"status":500,"error":"Task execution timed out"}', b"Task execution timed out"],
)
def test_the_vendors_time_limit_answers_an_ask(content: bytes) -> None:
    """The time limit is final, so the request is not repeated."""
    assert Answered(ASK) == read_answer(ASK, Response(500, content))
    assert NoAnswer is type(read_answer(ASK, Response(500, b"out of order")))


# Any reply.


def check_answer(answer: Answer) -> None:
    """Check that an answer is of the union, and that its error prints and has no cause."""
    assert isinstance(answer, get_args(Answer))
    match answer:
        case (
            NoAnswer()
            | Limited()
            | KeyRefused()
            | Refused()
            | OutOfUnits()
            | EngineFailed()
            | TaskUnknown()
            | TimedOut()
            | Unreadable()
            | NotSent()
        ):
            assert "" != str(answer.error)
            assert answer.error.__context__ is None
            assert answer.error.__cause__ is None
        case Running():
            interval = answer.polling_interval
            assert interval is None or 1 <= interval <= 3_600_000_000
        case Succeeded():
            assert answer.urls
        case Registered():
            assert len(answer.command.refs) == len(answer.grants)
        case Accepted():
            assert answer.task_id
            assert answer.task_id.isprintable()
        case Answered():
            pass
        case _:
            pytest.fail(f"{answer!r} is not an event of an answer")


def deep(head: str, tail: str) -> bytes:
    """Return nested lists, as deep as the parser accepts."""
    depth = next(
        depth
        for depth in range(1000, 0, -1)
        if not isinstance(decode(("[" * depth + "]" * depth).encode()), Malformed)
    )
    return (head + "[" * (depth - 5) + "]" * (depth - 5) + tail).encode()


@given(replies)
@example(Response(200, b'{"data":{"task_status":"success","results":' + b'{"output":[' * 20_000))
@example(Response(200, deep('{"data":{"task_status":"success","results":', "}}")))
@example(Response(200, deep('{"data":{"task_status":"error","error":', "}}")))
@example(Response(400, deep('{"error":', "}")))
def test_any_reply_has_an_event(answered: Response) -> None:
    """For any status, headers and bytes, each command gets one of its events."""
    check_answer(read_registration(REGISTER, answered))
    check_answer(read_creation(SUBMIT, answered))
    check_answer(read_status(POLL, answered, pictures_only=True, task_id="t", units=1.0))
    check_answer(read_answer(ASK, answered))


data_values = st.dictionaries(
    st.sampled_from(["task_id", "task_status", "error", "error_message", "results", "files"]),
    json_values
    | st.sampled_from(["success", "error", "running"])
    | st.lists(
        st.fixed_dictionaries({"file_id": json_values, "requests": json_values}), max_size=2
    ),
)


@given(data_values)
def test_any_data_has_an_event(data: dict[str, object]) -> None:
    """For any `data`, reading a success never raises."""
    answered = reply({"data": data})

    check_answer(read_registration(REGISTER, answered))
    check_answer(read_creation(SUBMIT, answered))
    check_answer(read_status(POLL, answered, pictures_only=True, task_id="t", units=1.0))


# Features without a class.


def answered(results: object, feature: str = "skin-analysis@v2.1") -> Answer:
    """Read a success of `feature` with `results`."""
    body = {"data": {"task_status": "success", "results": results}}
    return read_status(
        POLL, reply(body), pictures_only=pictures_only(feature, None), task_id="t", units=9.0
    )


def test_a_feature_and_its_version_make_the_path() -> None:
    """The path has the slashes and the version of a feature; a task's id is one segment."""
    assert "/s2s/v2.0/task/2d-vto/ring/a%2Fb" == status("2d-vto/ring", "a/b").path
    assert "/s2s/v2.1/task/skin-analysis/t" == status("skin-analysis@v2.1", "t").path
    assert "/s2s/v2.0/file/2d-vto/ring" == registration([], "2d-vto/ring@v2.1").path


def test_inputs_are_sent_by_their_names() -> None:
    """One input is an id or a URL, several are a list; placeholders are filled with the same."""
    job = Feature(
        "a/b",
        {"x": [{"y": Placeholder("ref", 1)}, Placeholder("src"), 5]},
        src="a.jpg",
        ref=["https://x/1", "https://x/2"],
        mask="m.png",
        version="v2.1",
    )
    sent = creation(job, [FileId("s"), "https://x/1", "https://x/2", FileId("m")])

    assert "/s2s/v2.1/task/a/b" == sent.path
    assert {
        "src_file_id": "s",
        "ref_file_urls": ["https://x/1", "https://x/2"],
        "msk_file_id": "m",
        "x": [{"y": "https://x/2"}, "s", 5],
    } == body_of(sent)
    assert {"prompt": "a"} == body_of(creation(Feature("a", {"prompt": "a"}), []))


def test_inputs_of_two_kinds_are_refused() -> None:
    """One list cannot hold ids and URLs."""
    with pytest.raises(JobRefused, match="ref names files and URLs"):
        creation(Feature("a", ref=["a.jpg", "https://x/1"]), [FileId("f"), "https://x/1"])


@pytest.mark.parametrize(
    ("results", "urls", "more"),
    [
        ("https://x/a.zip", ("https://x/a.zip",), False),
        ({"url": "https://x/a", "dst_id": "d"}, ("https://x/a",), True),
        ({"color": {"skin": "#fff"}}, (), True),
        ({"url": "https://x/a", "note": None}, ("https://x/a",), False),
        ([{"download_url": "HTTP://x/a"}, {"download_url": "HTTP://x/a"}], ("HTTP://x/a",), False),
        (
            {"output": [{"score": 1, "mask_urls": ["https://x/1", "https://x/2"]}, None]},
            ("https://x/1", "https://x/2"),
            True,
        ),
        ([], (), False),
        ({}, (), False),
        (0, (), True),
    ],
)
def test_results_of_a_feature_may_have_any_form(
    results: object, urls: tuple[str, ...], more: bool
) -> None:
    """URLs are found at any depth, and the event keeps the results."""
    event = answered(results)

    assert isinstance(event, Succeeded)
    assert (urls, results, more) == (event.urls, event.results, says_more(event.results))


@pytest.mark.parametrize("results", [None, ""])
def test_a_success_without_results_is_final(results: object) -> None:
    """A success of a feature with null or empty results is `Unreadable`."""
    event = answered(results)

    assert isinstance(event, Unreadable)
    assert "has no results" in event.error.message


def test_a_typed_feature_needs_pictures() -> None:
    """Scores without a picture are not a result of a typed feature."""
    assert isinstance(answered({"scores": 1}, "ai-smile"), Unreadable)
    assert isinstance(answered({"scores": 1}, "ai-studio"), Unreadable)


def test_texts_name_every_typed_feature() -> None:
    """Texts that cannot be derived from the table, since their modules do not know it, agree."""
    with pytest.raises(JobRefused) as caught:
        must_be_job(None)
    root = Path(__file__).parents[2]
    limits = (root / "README.md").read_text("utf-8").partition("## Limits and assumptions")[2]
    contract = (root / "perfect_async/_api/README.md").read_text("utf-8")
    others = contract.partition("## Other features")[2]
    docs = (Client.run.__doc__, Client.submit.__doc__, Job.__doc__)
    for kind in FEATURES.values():
        assert kind.__name__ in str(caught.value)
        assert all(f"`{kind.__name__}`" in str(text) for text in (limits, others, *docs))


def test_a_refused_class_is_told_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is made from the table."""

    @attrs.frozen
    class Older(Job):
        feature = "ai-older"
        source: Source
        key: str | None = None

    with pytest.raises(JobRefused, match="use Smile, Avatar, Studio, a subclass of them, or Feat"):
        creation(Older("u"), ["u"])
    monkeypatch.setitem(creation.__globals__["_PARAMETERS"], type("Grin", (Smile,), {}), {})
    with pytest.raises(JobRefused, match="use Smile, Avatar, Studio, Grin, a subclass"):
        creation(Older("u"), ["u"])
