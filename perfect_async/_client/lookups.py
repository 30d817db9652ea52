"""What the vendor tells page by page: its templates, and what jobs would cost by its price list."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final, TypeAlias, TypeVar

from perfect_async._api import account, tasks
from perfect_async._client.batch import each
from perfect_async.errors import BadAnswer, RequestRefused, ServiceUnavailable
from perfect_async.models import Job, must_be_job
from perfect_async.reports import Estimate

T = TypeVar("T")

Ask: TypeAlias = Callable[[tasks.Request], Awaitable[tasks.Response]]

_MOST_PAGES: Final = 500
"""Twenty entries each; a list that is longer leads round in circles."""


async def paginate(
    ask: Ask,
    call: Callable[[str | None], tasks.Request],
    read: Callable[[tasks.Response], tuple[tuple[T, ...], str | None]],
) -> AsyncGenerator[T]:
    """The entries of every page, one request a page; `BadAnswer` for a list without an end."""
    token: str | None = None
    for _ in range(_MOST_PAGES):
        page, following = read(await ask(call(token)))
        for entry in page:
            yield entry
        if following is None or following == token:
            return
        token = following
    raise BadAnswer(f"a list of the vendor's goes on after {_MOST_PAGES} pages.")


async def estimate(ask: Ask, jobs: Iterable[Job] | AsyncIterable[Job]) -> Estimate:
    """What `jobs` would cost, by the vendor's price list where it names the feature."""
    prices: dict[str, account.Price] = {}
    # A list that cannot be had is no reason to tell nothing: the documented prices stand in.
    with suppress(BadAnswer, RequestRefused, ServiceUnavailable):
        async for listed in paginate(ask, account.feature_costs, account.read_feature_costs):
            prices[listed.feature] = listed
    costs: dict[str, float] = {}
    count, documented = 0, False
    async for job in each(jobs):
        must_be_job(job)
        price = prices.get(job.feature)
        if price is None or price.unit != "result_image":
            documented, units = True, float(job.units)
        else:
            units = price.amount * -(-job.outputs // price.per)
        costs[job.feature] = costs.get(job.feature, 0.0) + units
        count += 1
    return Estimate(count, sum(costs.values()), costs, documented)
