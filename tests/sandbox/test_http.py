"""Requests and responses as plain values."""

import json

from hypothesis import given
from hypothesis import strategies as st

from perfect_async.sandbox import Dialect
from perfect_async.sandbox._http import (
    ApiError,
    Request,
    as_list,
    as_object,
    html_response,
    json_response,
    page_of,
)


def test_the_last_of_a_repeated_parameter_counts() -> None:
    """Queries are decoded, and blank values kept."""
    call = Request("GET", "h", "/", "a=1&a=2%20x&b=", {})

    assert {"a": "2 x", "b": ""} == call.parameters()


def test_an_envelope_may_have_no_code() -> None:
    """`error_code` is left out without a code."""
    assert {"status": 404, "error": "x"} == json.loads(ApiError(404, "x").response(Dialect()).body)
    assert {"status": 400, "error": "x", "error_code": "C"} == json.loads(
        ApiError(400, "x", "C").response(Dialect()).body
    )


def test_json_is_utf8() -> None:
    """Characters are sent without escapes."""
    assert '{"a":"缩"}'.encode() == json_response(200, {"a": "缩"}).body


def test_a_gateways_page_is_html() -> None:
    """The page has a title, and its response a delay."""
    answer = html_response(502, "502 Bad Gateway", delay=3.0)

    assert (502, "text/html", 3.0) == (answer.status, answer.content_type, answer.delay)
    assert b"<h1>502 Bad Gateway</h1>" in answer.body


def test_objects_and_lists_are_checked() -> None:
    """Only the right kind of JSON value passes."""
    assert {} == as_object({})
    assert as_object([]) is None
    assert [] == as_list([])
    assert as_list("ab") is None


def test_reprs_show_no_bodies() -> None:
    """A repr does not show megabytes of a picture."""
    assert "secret" not in repr(Request("PUT", "h", "/", "", {}, b"secret"))


@given(st.lists(st.integers(), max_size=60), st.integers(1, 20))
def test_pages_give_everything_once(items: list[int], size: int) -> None:
    """Following the tokens gives every item in order, and no empty last page."""
    found: list[int] = []
    parameters = {"page_size": str(size)}
    while True:
        shown, token = page_of(items, parameters, limit=20)
        found += shown
        if token is None:
            break
        assert size == len(shown)
        parameters["starting_token"] = token

    assert items == found
    assert shown or not items
