"""The calls for templates, units, prices and deletion (contract: Other calls).

A function `<name>` builds a `Request`; `read_<name>` reads its `Response` or raises an `ApiError`.
The unit history is in `history`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Final

import attrs

from perfect_async._api.responses import (
    Credits,
    Malformed,
    Page,
    Response,
    Sku,
    TemplateRow,
    as_moment,
    as_text,
    as_whole,
    bad_answer,
    read,
    response_error,
)
from perfect_async._api.tasks import Request, as_json, feature_path
from perfect_async._api.urls import encoded, followed
from perfect_async._value import Value
from perfect_async.errors import BadAnswer
from perfect_async.models import Grant, Units
from perfect_async.reports import Template

# Entries per page: the vendor's maximum.
_PAGE_SIZE: Final = 20
# The feature is the path of a task's URL after `/task/`, slashes included (contract: Prices).
_FEATURE: Final = re.compile(r"/task/([^?#]*[^?#/])")
# No balance is as large: a larger number cannot be an amount of units.
_MOST_UNITS: Final = 1e15


@attrs.frozen(eq=False, repr=False)
class Price(Value):
    """A price of `feature`: `amount` units for every `per` of `unit` ("result_image", "second").

    A feature may have several prices, for example by resolution or by number of concerns.
    """

    feature: str
    amount: float
    per: int
    unit: str


def templates(feature: str, token: str | None) -> Request:
    """Ask for a page of templates; `token` is the previous page's (contract: Templates)."""
    version, path = feature_path(feature)
    return Request("GET", f"/s2s/{version}/task/template/{path}", page_query(token, _PAGE_SIZE))


def read_templates(reply: Response) -> tuple[tuple[Template, ...], str | None]:
    """Return a page's templates and the next page's token, None on the last. Raises `ApiError`."""
    rows = read(reply, list[TemplateRow], "data", "templates")
    found = tuple(
        Template(row.id, row.title or "", row.category_name or "", _thumb(row.thumb))
        for row in rows
    )
    return found, read(reply, Page, "data").next_token or None


def _thumb(url: object) -> str | None:
    try:
        return followed(encoded(as_text(url)), base_url="https://vendor.invalid")
    except (ValueError, BadAnswer):
        return None


def units() -> Request:
    """Ask for the balance (contract: Units)."""
    return Request("GET", "/s2s/v1.0/client/credit")


def read_units(reply: Response, now: datetime) -> Units:
    """Return the balance and all grants; without grants the balance is None. Raises `ApiError`.

    The balance sums the grants that the API can spend: their type begins with "Api", and they
    have not expired `now` (contract: Units).
    """
    rows = read(reply, Credits).results or []
    grants: list[Grant] = []
    for index, row in enumerate(rows):
        amount = row.amount if row.amount_dec is None else row.amount_dec
        if amount is None or abs(amount) > _MOST_UNITS:
            raise bad_answer(reply, f"results[{index}].amount_dec is no amount")
        grants.append(Grant(_id(row.id), row.type or "", amount, as_moment(row.expiry)))
    spendable = [grant.amount for grant in grants if _is_spendable(grant, now)]
    # Decimals, so that 10.1 + 5.2 is 15.3.
    balance = float(sum(Decimal(str(amount)) for amount in spendable)) if grants else None
    return Units(balance, tuple(grants))


def _id(value: object) -> int | None:
    try:
        return as_whole(value)
    except Malformed:
        return None


def _is_spendable(grant: Grant, now: datetime) -> bool:
    expired = grant.expires_at is not None and grant.expires_at <= now
    return grant.kind.lower().startswith("api") and not expired


def feature_costs(token: str | None) -> Request:
    """Ask for a page of prices; `token` is the previous page's (contract: Prices)."""
    return Request("GET", "/s2s/v2.0/credit/feature-cost", page_query(token, _PAGE_SIZE))


def read_feature_costs(reply: Response) -> tuple[tuple[Price, ...], str | None]:
    """Return a page's prices and the next page's token, None on the last. Raises `ApiError`.

    Prices without a task's URL are left out: they are not for tasks.
    """
    prices: list[Price] = []
    for index, row in enumerate(read(reply, list[Sku], "result", "skus")):
        per = 1 if row.proc_unit is None else row.proc_unit
        if per < 1 or row.amount < 0:
            raise bad_answer(reply, f"result.skus[{index}] is no price")
        found = _FEATURE.search(row.run_task_url or "")
        if found is not None:
            prices.append(Price(found[1], row.amount, per, row.unit or ""))
    return tuple(prices), read(reply, Page, "result").next_token or None


def delete(task_id: str) -> Request:
    """Ask to delete a finished task, its outputs and its input files (contract: Deletion)."""
    content = as_json({"task_id": task_id})
    return Request("POST", "/s2s/v2.0/task/delete", content=content, task_id=task_id)


def price_of(prices: Iterable[Price], feature: str) -> Price | None:
    """Return the price of a picture of `feature`, or None if it has no price or several.

    The vendor's list has no versions of features, so the version is ignored.
    """
    feature = feature.partition("@")[0]
    found = {
        (price.amount, price.per): price
        for price in prices
        if price.feature == feature and price.unit == "result_image"
    }
    return next(iter(found.values())) if len(found) == 1 else None


def read_deleted(reply: Response) -> None:
    """Return None if the status says that the task is deleted. Raises `ApiError` otherwise."""
    if not reply.is_success:
        raise response_error(reply)


def page_query(token: str | None, size: int) -> tuple[tuple[str, str], ...]:
    """Return the query for a page of `size` entries; `token` is the previous page's."""
    page_size = ("page_size", str(size))
    # The first page sends no token: a literal null is answered with 400 (contract: Templates).
    return (page_size,) if token is None else (page_size, ("starting_token", token))
