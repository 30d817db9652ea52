"""The other calls: templates, units, their history, prices, deletion (contract: Other calls).

As in `_wire`, what is built here is a `Request` and what is read is a `Response`; `read_*` raise
`ApiError`s.
"""

from __future__ import annotations

import re
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
    bad,
    read,
    refusal,
)
from perfect_async._api.tasks import Request, as_json, segment, usable
from perfect_async._api.urls import encoded, followed
from perfect_async.errors import BadAnswer
from perfect_async.models import Grant, Units
from perfect_async.reports import Template

# The most that a page of templates or prices may hold, and one of the history.
_PAGE: Final = 20
_HISTORY_PAGE: Final = 30
# Beyond, it is no number of units any more.
_MOST_UNITS: Final = 1e15


@attrs.frozen
class Price:
    """`amount` units per `per` of `unit` ("result_image", "second") for `feature`."""

    feature: str
    amount: float
    per: int
    unit: str


def templates(feature: str, token: str | None) -> Request:
    """A page of templates; `token` is the one before's (contract: Other calls)."""
    return Request("GET", f"/s2s/v2.0/task/template/{segment(feature)}", _page(token, _PAGE))


def read_templates(reply: Response) -> tuple[tuple[Template, ...], str | None]:
    """A page's templates and the next page's token, None on the last. Raises `ApiError`s."""
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
    """The balance (contract: Other calls)."""
    return Request("GET", "/s2s/v1.0/client/credit")


def read_units(reply: Response) -> Units:
    """The balance and its grants; none at all mean that it is unknown. Raises `ApiError`s."""
    rows = read(reply, Credits).results or []
    grants: list[Grant] = []
    for place, row in enumerate(rows):
        amount = row.amount if row.amount_dec is None else row.amount_dec
        if amount is None or abs(amount) > _MOST_UNITS:
            raise bad(reply, f"results[{place}].amount_dec is no amount")
        grants.append(Grant(row.id, row.type or "", amount, as_moment(row.expiry)))
    # As decimals, so that 10.1 and 5.2 are 15.3.
    balance = float(sum(Decimal(str(grant.amount)) for grant in grants)) if grants else None
    return Units(balance, tuple(grants))


def feature_costs(token: str | None) -> Request:
    """A page of prices; `token` is the one before's (contract: Other calls)."""
    return Request("GET", "/s2s/v2.0/credit/feature-cost", _page(token, _PAGE))


def read_feature_costs(reply: Response) -> tuple[tuple[Price, ...], str | None]:
    """A page's prices and the next page's token, None on the last. Raises `ApiError`s.

    A price without a task's URL is for something that this SDK does not run, and is left out.
    """
    prices: list[Price] = []
    for place, row in enumerate(read(reply, list[Sku], "result", "skus")):
        feature = re.split(r"[?#]", row.run_task_url or "")[0].rstrip("/").rpartition("/")[2]
        if row.proc_unit < 1 or row.amount < 0:
            raise bad(reply, f"result.skus[{place}] is no price")
        if feature:
            prices.append(Price(feature, row.amount, row.proc_unit, row.unit or ""))
    return tuple(prices), read(reply, Page, "result").next_token or None


def delete(task_id: str) -> Request:
    """Delete a finished task, its outputs and its input files (contract: Other calls)."""
    return Request("POST", "/s2s/v2.0/task/delete", content=as_json({"task_id": task_id}))


def read_deleted(reply: Response) -> None:
    """Nothing, when the task is deleted; the status alone says so. Raises `ApiError`s."""
    if not reply.good:
        raise refusal(reply)


@attrs.frozen
class Movement:
    """One line of the unit history: when units of which task moved, in UTC microseconds.

    `action` is the vendor's word for it, in lower case with hyphens between its words.
    """

    at: int
    action: str
    task_id: str


@attrs.frozen
class _HistoryRow:
    timestamp: object = None
    action: object = None
    target_id: object = None


def history(token: str | None) -> Request:
    """A page of the unit history; `token` is the one before's."""
    return Request("GET", "/s2s/v1.0/client/credit/history", _page(token, _HISTORY_PAGE))


def read_history(reply: Response) -> tuple[tuple[Movement, ...], str | None]:
    """A page's movements and the next page's token, None on the last.

    Raises `BadAnswer` where a line has no time: whoever asks must not miss one. A line without a
    task (units that were bought) is left out, whether its task is null, absent or blank.
    """
    found: list[Movement] = []
    for place, row in enumerate(read(reply, list[_HistoryRow], "result", "history")):
        if row.target_id is None or (isinstance(row.target_id, str) and not row.target_id.strip()):
            continue
        movement = _movement(row)
        if movement is None:
            raise bad(reply, f"result.history[{place}] has no time or no task")
        found.append(movement)
    return tuple(found), read(reply, Page, "result").next_token or None


def _movement(row: _HistoryRow) -> Movement | None:
    try:
        at, task_id = as_whole(row.timestamp), as_text(row.target_id)
    except Malformed:
        return None
    action = re.sub(r"[\W_]+", "-", str(row.action or "").lower()).strip("-")
    return Movement(at * 1000, action, task_id) if usable(task_id) else None


def _page(token: str | None, size: int) -> tuple[tuple[str, str], ...]:
    # The literal null as a token is a 400: left out on the first page.
    of = ("page_size", str(size))
    return (of,) if token is None else (of, ("starting_token", token))
