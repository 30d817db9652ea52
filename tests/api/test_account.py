"""The requests for templates, units, prices and deletion, and the reading of their answers."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async._api.account import (
    Price,
    delete,
    feature_costs,
    price_of,
    read_deleted,
    read_feature_costs,
    read_templates,
    read_units,
    templates,
    units,
)
from perfect_async._api.tasks import Request, Response
from perfect_async.errors import BadAnswer, PerfectError, RequestRefused, ServiceUnavailable
from perfect_async.models import Grant, Units
from perfect_async.reports import Template
from tests.api.test_responses import bodies, json_values


def reply(value: object, status: int = 200) -> Response:
    return Response(status, json.dumps(value).encode(), "17")


@pytest.mark.parametrize(
    ("expected", "call"),
    [
        (Request("GET", "/s2s/v1.0/client/credit"), units()),
        (
            Request("GET", "/s2s/v2.0/task/template/ai-avatar", (("page_size", "20"),)),
            templates("ai-avatar", None),
        ),
        (
            Request(
                "GET",
                "/s2s/v2.0/task/template/ai-avatar",
                (("page_size", "20"), ("starting_token", "a&b")),
            ),
            templates("ai-avatar", "a&b"),
        ),
        (
            Request("GET", "/s2s/v2.0/credit/feature-cost", (("page_size", "20"),)),
            feature_costs(None),
        ),
        (Request("POST", "/s2s/v2.0/task/delete", (), b'{"task_id":"a\\"b"}'), delete('a"b')),
    ],
    ids=repr,
)
def test_each_call_builds_its_request(expected: Request, call: Request) -> None:
    """The first page sends no token, since the vendor answers null with 400."""
    assert expected == call


def test_templates_are_read() -> None:
    """A page has its templates, with encoded thumb URLs, and the next page's token."""
    rows = [
        {
            "id": "male_1",
            "thumb": "https://cdn.example/头 像/a.jpg?v=1",
            "title": "Suit",
            "category_name": "Business",
        },
        {"id": 7, "thumb": None, "title": None},
    ]

    found = read_templates(reply({"data": {"templates": rows, "next_token": "n"}}))

    thumb = "https://cdn.example/%E5%A4%B4%20%E5%83%8F/a.jpg?v=1"
    assert (
        (Template("male_1", "Suit", "Business", thumb), Template("7", "", "", None)),
        "n",
    ) == found


@pytest.mark.parametrize("token", [None, "", ...])
def test_the_last_page_has_no_token(token: object) -> None:
    """A null, empty or absent token means that there is no further page."""
    data = {"templates": []} | ({} if token is ... else {"next_token": token})

    assert ((), None) == read_templates(reply({"data": data}))


@pytest.mark.parametrize(
    "thumb",
    [
        *(None, 1, [], "", "javascript:alert(1)", "http://a.example/b", "https://10.0.0.1/a"),
        *(
            "https://u:p@a.example/",
            "https://localhost/a",
            "https://a.example/\n",
            "/a.jpg",
            "\ud800",
        ),
        "https://a.example/\ud800",
    ],
    ids=repr,
)
def test_unsafe_thumbs_are_none(thumb: object) -> None:
    """An unsafe thumb URL is dropped; its template is kept."""
    (found,), _ = read_templates(reply({"data": {"templates": [{"id": "a", "thumb": thumb}]}}))

    assert Template("a", "", "", None) == found


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("data is missing", {}),
        ("data.templates is missing", {"data": {}}),
        (r"data.templates\[1\].id is missing", {"data": {"templates": [{"id": "a"}, {}]}}),
        (r"data.templates\[0\] is not an object", {"data": {"templates": ["a"]}}),
        ("data.templates is not a list", {"data": {"templates": {}}}),
        ("data.templates is not a list", {"data": {"templates": ""}}),
        ("data.next_token is not text", {"data": {"templates": [], "next_token": {}}}),
    ],
    ids=repr,
)
def test_a_malformed_templates_page_is_refused_by_path(expected: str, value: object) -> None:
    """The error names the path of the wrong field."""
    with pytest.raises(BadAnswer, match=expected):
        read_templates(reply(value))


NOW = datetime(2026, 10, 1, tzinfo=UTC)
MILLISECONDS = 1_790_812_800_000  # NOW


def test_units_are_summed() -> None:
    """The balance is the sum of the grants; `amount_dec` is preferred to `amount`."""
    rows = [
        {
            "id": 9007199254740993,
            "type": "ApiSubsToken",
            "amount": 10,
            "amount_dec": 10.1,
            "expiry": MILLISECONDS + 1,
        },
        {"id": "2", "type": "ApiPaygToken", "amount": 5, "amount_dec": None, "expiry": None},
        {"id": None, "type": "apiGift", "amount_dec": "0.2"},
    ]

    found = read_units(reply({"status": 200, "results": rows}), NOW)

    assert 15.3 == found.balance
    assert (
        Grant(9007199254740993, "ApiSubsToken", 10.1, NOW + timedelta(milliseconds=1)),
        Grant(2, "ApiPaygToken", 5.0, None),
        Grant(None, "apiGift", 0.2, None),
    ) == found.grants


@pytest.mark.parametrize(
    ("expected", "row"),
    [
        (5.0, {"id": 1, "type": "ApiSubsToken", "expiry": MILLISECONDS + 1}),
        (5.0, {"type": "ApiPaygToken", "expiry": "never"}),
        (5.0, {"id": [], "type": "ApiTrialToken"}),
        (0.0, {"id": 1, "type": "ApiSubsToken", "expiry": MILLISECONDS}),
        (0.0, {"id": 1, "type": "ApiSubsToken", "expiry": 1000}),
        (0.0, {"id": 1, "type": "SubsToken"}),
        (0.0, {"id": 1, "type": "AppApiToken"}),
        (0.0, {"id": 1}),
    ],
    ids=repr,
)
def test_the_balance_counts_only_grants_for_the_api(
    expected: float, row: dict[str, object]
) -> None:
    """A grant counts if its type begins with "Api" and it has not expired."""
    found = read_units(reply({"results": [row | {"amount": 5}]}), NOW)

    assert expected == found.balance
    assert 5.0 == found.grants[0].amount


@pytest.mark.parametrize("value", [{"results": []}, {"results": None}, {}], ids=repr)
def test_the_balance_is_unknown_without_grants(value: object) -> None:
    """An empty list does not mean a balance of zero."""
    assert Units(None, ()) == read_units(reply(value), NOW)


@pytest.mark.parametrize(
    ("expected", "row"),
    [
        (r"results\[0\].amount_dec is no amount", {"id": 1}),
        (r"results\[0\].amount_dec is no amount", {"id": 1, "amount_dec": 1e308}),
        (r"results\[0\].amount is not a finite number", {"id": 1, "amount": 10**400}),
        (r"results\[0\] is not an object", []),
    ],
    ids=repr,
)
def test_a_malformed_grant_is_refused_by_path(expected: str, row: object) -> None:
    """A grant without a usable amount is an error, not zero."""
    with pytest.raises(BadAnswer, match=expected):
        read_units(reply({"results": [row]}), NOW)


def test_prices_are_read() -> None:
    """A price belongs to the feature in its task's URL; prices without one are left out."""
    task = "https://yce-api-01.makeupar.com/s2s/v2.0/task/"
    sku = {"description": "x", "amount": 1, "unit": "result_image", "proc_unit": 4}
    rows = [
        sku | {"run_task_url": task + "ai-avatar"},
        sku | {"run_task_url": "/s2s/v2.0/task/ai-smile/?a=b/c#d", "proc_unit": "1", "unit": None},
        sku
        | {"run_task_url": "/s2s/v2.1/task/2d-vto/ring", "description": "HD", "proc_unit": None},
        {"amount": 2, "run_task_url": "/s2s/v2.1/task/2d-vto/ring/?a", "unit": "result_image"},
        sku | {"run_task_url": None},
        sku | {"run_task_url": ""},
        sku | {"run_task_url": "/s2s/v2.0/file/ai-smile"},
        sku | {"run_task_url": "/s2s/v2.0/task/"},
        sku,
    ]

    found = read_feature_costs(reply({"result": {"skus": rows, "next_token": "n"}}))

    prices = (
        Price("ai-avatar", 1.0, 4, "result_image"),
        Price("ai-smile", 1.0, 1, ""),
        Price("2d-vto/ring", 1.0, 1, "result_image"),
        Price("2d-vto/ring", 2.0, 1, "result_image"),
    )
    assert (prices, "n") == found


def test_a_feature_with_several_prices_has_no_single_price() -> None:
    """`price_of` returns None for several prices per picture and ignores prices of other units."""
    one, other = Price("a", 1.0, 1, "result_image"), Price("a", 2.0, 1, "result_image")
    second = Price("a", 3.0, 1, "second")

    assert one == price_of([one, second], "a")
    assert one == price_of([one, one, Price("b", 9.0, 1, "result_image")], "a")
    assert None is price_of([one, other], "a")
    assert None is price_of([second], "a")


@pytest.mark.parametrize(
    ("expected", "row"),
    [
        (r"result.skus\[0\] is no price", {"amount": 1, "proc_unit": 0}),
        (r"result.skus\[0\] is no price", {"amount": -1, "proc_unit": 1}),
        (r"result.skus\[0\].proc_unit is not a whole number", {"amount": 1, "proc_unit": 1.5}),
        (r"result.skus\[0\].amount is missing", {}),
        (r"result.skus\[0\].amount is not a finite number", {"amount": "x", "proc_unit": 1}),
    ],
    ids=repr,
)
def test_a_malformed_price_is_refused_by_path(expected: str, row: object) -> None:
    """A price without a usable amount or unit is an error."""
    with pytest.raises(BadAnswer, match=expected):
        read_feature_costs(reply({"result": {"skus": [row]}}))


@pytest.mark.parametrize("content", [b'{"status":200}', b"", b"<html>"])
def test_a_deletion_is_read_from_its_status(content: bytes) -> None:
    """A 2xx means that the task is deleted, with any body."""
    read_deleted(Response(200, content))


def test_a_refused_deletion_is_raised() -> None:
    """The error for a task that has not ended carries the vendor's code."""
    with pytest.raises(RequestRefused) as caught:
        read_deleted(reply({"error": "no", "error_code": "OperationInvalid"}, 400))

    assert "OperationInvalid" == caught.value.code


def read_units_now(reply: Response) -> Units:
    return read_units(reply, NOW)


@pytest.mark.parametrize("read", [read_templates, read_units_now, read_feature_costs])
def test_readers_raise_the_error_of_a_failed_reply(read: object) -> None:
    """Each reader raises `ServiceUnavailable` for a 503."""
    assert callable(read)
    with pytest.raises(ServiceUnavailable):
        read(reply({}, 503))


@given(
    st.sampled_from([200, 400, 503]),
    bodies
    | st.fixed_dictionaries(
        {},
        optional={
            "data": st.fixed_dictionaries({"templates": json_values}),
            "results": st.lists(
                st.fixed_dictionaries({"id": st.integers(), "amount": json_values})
            ),
            "result": st.fixed_dictionaries({"skus": json_values}),
        },
    ).map(lambda value: json.dumps(value).encode()),
)
def test_any_page_is_read_or_refused(status: int, content: bytes) -> None:
    """For any bytes, a reader returns its values or raises a `PerfectError`."""
    for read in (read_templates, read_units_now, read_feature_costs, read_deleted):
        try:
            read(Response(status, content))
        except PerfectError as error:
            assert error.__context__ is None  # noqa: PT017 -- it may also not raise
