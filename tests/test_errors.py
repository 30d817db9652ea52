"""The tree of what can go wrong: as drawn, told, copied."""

import copy
import inspect
import pickle
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

import perfect_async
from perfect_async import errors
from perfect_async.errors import (
    ApiError,
    BadAnswer,
    CeilingReached,
    ClientClosed,
    ConfigurationError,
    JobRefused,
    JournalError,
    NotSaved,
    PerfectError,
    PictureRefused,
    RateLimited,
    RequestRefused,
    ResultUnreadable,
    ServiceUnavailable,
    SourceLost,
    SubmissionInDoubt,
    TaskAbandoned,
    TaskError,
    TaskExpired,
    TaskFailed,
    TaskTimedOut,
    Unauthorized,
    UnitsExhausted,
    WaitTimeout,
    WebhookRejected,
    copy_error,
    quoted,
    redacted,
    shown_source,
)

MAKE: dict[type[PerfectError], Callable[[str], PerfectError]] = {
    PerfectError: PerfectError,
    ConfigurationError: ConfigurationError,
    JournalError: lambda text: JournalError(text, in_use=True),
    ClientClosed: ClientClosed,
    JobRefused: JobRefused,
    PictureRefused: PictureRefused,
    SourceLost: SourceLost,
    ApiError: lambda text: ApiError(text, status=418, code="Teapot", request_id="7"),
    Unauthorized: lambda text: Unauthorized(text, status=401, code="InvalidApiKey"),
    RequestRefused: lambda text: RequestRefused(text, status=400, request_id="7"),
    RateLimited: lambda text: RateLimited(text, status=429),
    ServiceUnavailable: lambda text: ServiceUnavailable(text, never_sent=True),
    BadAnswer: BadAnswer,
    UnitsExhausted: lambda text: UnitsExhausted(text, request_id="7"),
    CeilingReached: CeilingReached,
    WebhookRejected: WebhookRejected,
    TaskError: lambda text: TaskError(text, task_id="t"),
    TaskFailed: lambda text: TaskFailed(text, code="error_pose", passing=False, task_id="t"),
    TaskExpired: lambda text: TaskExpired(text, task_id="t", units_at_stake=1.0),
    TaskTimedOut: lambda text: TaskTimedOut(text, task_id="t", units_at_stake=3.0),
    TaskAbandoned: lambda text: TaskAbandoned(text, task_id="t", units_at_stake=2.5),
    NotSaved: lambda text: NotSaved(text, task_id="t", units_at_stake=1.0),
    WaitTimeout: lambda text: WaitTimeout(text, task_id="t"),
    ResultUnreadable: lambda text: ResultUnreadable(
        text, raw={"output": [{"url": 5}]}, task_id="t", units_at_stake=1.0
    ),
    SubmissionInDoubt: lambda text: SubmissionInDoubt(
        text, candidates=("a", "b"), units_at_stake=2.0
    ),
}

every_error = pytest.mark.parametrize("kind", MAKE, ids=lambda kind: kind.__name__)


def classes() -> dict[str, type[PerfectError]]:
    """Every error of the module, by name."""
    return {
        name: thing
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, PerfectError)
    }


def drawn() -> dict[str, str | None]:
    """Each error in the drawing and its parent."""
    parents: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│ ├└─]*)([A-Z][A-Za-z]+)(?:\s|$)", line)
        if found is None:
            continue
        depth = len(found[1]) // 4
        del above[depth:]
        parents[found[2]] = above[-1] if above else None
        above.append(found[2])
    return parents


def test_the_drawing_is_the_tree() -> None:
    """The module's docstring draws every class under the class that it derives from."""
    tree = {name: kind.__bases__[0].__name__ for name, kind in classes().items()}

    assert {**tree, "PerfectError": None} == drawn()


def test_every_error_is_public() -> None:
    """Every error can be imported from `perfect_async`."""
    assert set(classes()) <= set(perfect_async.__all__)


def test_this_file_makes_every_error() -> None:
    """The tests of this file make every class of error."""
    assert set(classes().values()) == set(MAKE)


@every_error
def test_the_message_says_what_happened_and_the_hint(kind: type[PerfectError]) -> None:
    """The text of an error says first what happened and then what to do next."""
    error = MAKE[kind]("it broke.")

    assert "it broke." == error.message
    assert str(error).startswith("it broke. ")
    assert kind.hint in str(error)
    assert kind.hint.endswith(".")


@every_error
def test_the_message_names_the_units_at_stake(kind: type[PerfectError]) -> None:
    """The text names the units at stake, and says nothing if there are none."""
    error = MAKE[kind]("it broke.")
    error.units_at_stake = 2.0
    several = str(error)
    error.units_at_stake = 1.0
    one = str(error)
    error.units_at_stake = 0.0

    assert "it broke. 2 units are at stake." in several
    assert "it broke. 1 unit is at stake." in one
    assert "at stake" not in str(error)


@every_error
def test_every_error_has_a_hint_of_its_own(kind: type[PerfectError]) -> None:
    """No two errors share a hint, except the two that end a task at the vendor."""
    assert "hint" in vars(kind)
    assert 1 == sum(other.hint == kind.hint for other in MAKE) or kind in {
        TaskExpired,
        TaskTimedOut,
    }


@every_error
@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, copy_error, lambda error: pickle.loads(pickle.dumps(error))],
    ids=["copy", "deepcopy", "copy_error", "pickle"],
)
def test_copies_are_equal(
    kind: type[PerfectError], again: Callable[[PerfectError], PerfectError]
) -> None:
    """An error is unchanged by a copy, a process pool or a queue."""
    error = MAKE[kind]("it broke.")

    other = again(error)

    assert other is not error
    assert type(error) is type(other)
    assert str(error) == str(other)
    assert vars(error) == vars(other)


def test_a_copied_error_keeps_the_cause_and_not_the_traceback() -> None:
    """A copied error keeps its cause and drops its traceback."""
    cause = ValueError("why")
    error = ClientClosed("gone.").with_traceback(None)
    error.__cause__ = cause
    with pytest.raises(ClientClosed):
        raise error
    other = copy_error(error)

    assert cause is other.__cause__
    assert None is other.__traceback__
    assert None is copy_error(ClientClosed("gone.")).__cause__


def test_a_rejection_has_a_reason() -> None:
    """`WebhookRejected.reason` is the message without the hint."""
    assert "stale." == WebhookRejected("stale.").reason


def test_the_message_ends_with_status_code_and_request_id() -> None:
    """The text ends with the status, code and request id that are known."""
    full = str(ApiError("no.", status=500, code="Oops", request_id="12"))

    assert full.endswith("(HTTP 500, code Oops, request id 12)")
    assert not str(ApiError("no.")).endswith(")")


def test_the_message_names_the_task() -> None:
    """The text ends with the task's id, quoted since it comes from outside."""
    assert str(TaskExpired("gone.", task_id="a\nb")).endswith("(task 'a\\nb')")
    assert not str(TaskExpired("gone.")).endswith(")")


def test_the_message_names_candidates() -> None:
    """The text names up to three candidates, quoted, and counts the others."""
    assert not str(SubmissionInDoubt("lost.")).endswith(")")
    assert str(SubmissionInDoubt("lost.", candidates=("a\nb",))).endswith("(it may be 'a\\nb')")
    assert str(SubmissionInDoubt("lost.", candidates=tuple("abcde"))).endswith(
        "(it may be 'a', 'b', 'c' or one of 2 others)"
    )


def test_the_raw_result_is_an_attribute_and_in_no_text() -> None:
    """The vendor's answer may hold signed URLs, so it is in no text of the error."""
    raw = {"url": ["https://store.example/a.jpg?X-Amz-Signature=s3cret"]}
    error = ResultUnreadable("no picture.", raw=raw, task_id="t")

    assert raw == error.raw
    assert "s3cret" not in str(error) + repr(error) + repr(error.args)


@pytest.mark.parametrize(
    ("passing", "lasting"),
    [
        (
            TaskFailed("x.", code="error_inference", passing=True),
            TaskFailed("x.", code="error_pose", passing=False),
        ),
        (PictureRefused("x.", passing=True), PictureRefused("x.")),
    ],
    ids=["TaskFailed", "PictureRefused"],
)
def test_a_failure_that_may_pass_says_try_again(
    passing: PerfectError, lasting: PerfectError
) -> None:
    """The hint advises another try if the failure may pass, and another picture if not."""
    assert "try again" in str(passing)
    assert "another picture" not in str(passing)
    assert "another picture" in str(lasting)
    assert str(passing) == str(copy_error(passing)) == str(pickle.loads(pickle.dumps(passing)))


@pytest.mark.parametrize(
    ("expected", "source"),
    [
        *((path, path) for path in ("a.jpg", "C:/Users/a@b/c.jpg", "a#b?c.jpg", "me@home/a.jpg")),
        ("https://a.example/b.jpg", "https://user:secret@a.example/b.jpg?secret#secret"),
        ("https:/a.example/b.jpg", "https:/user:secret@a.example/b.jpg?secret"),
        ("https//a.example/b.jpg", "https//user:secret@a.example/b.jpg?secret"),
        ("htps://a.example/b", "htps://secret@a.example/b"),
        ("http;//a.example/b", "http;//user:secret@a.example/b?secret"),
        ("s3://a.example/b", "s3://user:secret@a.example/b?secret"),
        ("a.example/b.jpg", "user:secret@a.example/b.jpg"),
        ("folder/a.example", "folder/user:secret@a.example"),
        ("data:image/png…", "data:image/png;base64,secret"),
        (" DATA:…", " DATA:,secret"),
        ("data:" + "x" * 35 + "…", "data:" + "x" * 9999),
    ],
)
def test_sources_are_shown_without_secrets(expected: str, source: str) -> None:
    """A path is shown as it is; a URL, also a mistyped one, without its secrets."""
    assert expected == shown_source(source)


@given(st.text() | st.lists(st.sampled_from([*"/\\@:?#.a", "http", "data:"])).map("".join))
def test_any_source_can_be_shown(source: str) -> None:
    """Showing any source does not fail, and shows no credentials."""
    shown = shown_source(source)

    assert not re.search(r"[^/\\\s]:[^/\\\s]*@", shown)


def test_a_wait_timeout_is_a_timeout_error() -> None:
    """`except TimeoutError` catches `WaitTimeout`."""
    assert issubclass(WaitTimeout, TimeoutError)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "'plain'"),
        ("two\nlines\x1b[31m", "'two\\nlines\\x1b[31m'"),
        ("smörgås", "'sm\\xf6rg\\xe5s'"),
        (7, "'7'"),
        ("'", '"\'"'),
    ],
)
def test_foreign_text_is_quoted(text: object, expected: str) -> None:
    """Text from outside is shown as ASCII, escaped and in quotes."""
    assert expected == quoted(text)


@pytest.mark.parametrize("text", ["x" * 301, "ü" * 100, "\U0001f600" * 10_000])
def test_foreign_text_is_cut(text: str) -> None:
    """Text and its escapes are cut at 300 characters, which end with a quote."""
    shown = quoted(text)

    assert 300 == len(shown)
    assert shown.endswith("…'")


@pytest.mark.parametrize(
    ("expected", "url"),
    [
        (
            "https://bucket.s3-accelerate.amazonaws.com/a/b%20c/d.jpg",
            "https://bucket.s3-accelerate.amazonaws.com/a/b%20c/d.jpg?X-Amz-Signature=0123abcd",
        ),
        ("https://a.example/b", "https://user:secret@a.example/b#secret"),
        ("https://a.example/b@c", "https://a.example/b@c"),
        ("https://b.example", "https://a.example:secret@b.example?secret"),
        ("https://b\\\\@c", "https://secret@b\\@c"),
        ("a.example/b", "secret@a.example/b?secret"),
        ("//a.example/b", "//secret@a.example/b"),
        ("https:/a.example/b", "https:/secret@a.example/b"),
        ("https://a.example/\\n\\x1b[0m\\ud800", "https://a.example/\n\x1b[0m\ud800"),
        ("", ""),
        ("", "?secret"),
        ("https://a.example/" + "b" * 181 + "…", "https://a.example/" + "b" * 300),
    ],
)
def test_urls_are_shown_without_their_secrets(expected: str, url: str) -> None:
    """A shown URL has no query, fragment or credentials, is escaped, and has bounded length."""
    assert expected == redacted(url)


@given(st.text() | st.lists(st.sampled_from([*"/\\@:?#.a\n", "https:", "é"])).map("".join))
def test_any_text_can_be_shown(url: str) -> None:
    """Showing any URL does not fail, breaks no line, and is at most 200 characters long."""
    shown = redacted(url)

    assert len(shown) <= 200
    assert shown.isprintable()
    assert not set("?#") & set(shown)


@given(
    st.sampled_from(["https://", "HTTP://", "https:/", "//", "ftp://", ""]),
    st.from_regex(r"[A-Za-z0-9]{12}(:[A-Za-z0-9@]{0,6})?", fullmatch=True),
    st.sampled_from(["a.example", "127.0.0.1"]),
)
def test_credentials_are_never_shown(scheme: str, credentials: str, host: str) -> None:
    """Credentials before the host are dropped, however the URL begins."""
    assert credentials not in redacted(f"{scheme}{credentials}@{host}/a?b")


@pytest.mark.parametrize("passing", [True, False])
def test_a_failure_that_may_pass_does_not_ask_for_another_picture(passing: bool) -> None:
    """An error that may pass says "try again", also after pickling."""
    error = TaskFailed("it broke.", code="error_inference", passing=passing, task_id="t")
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert passing is ("try again" in str(each))
        assert passing is ("use another picture." not in str(each))
