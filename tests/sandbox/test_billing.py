"""Units, their history, and the price list (contract: Other calls)."""

import asyncio
import json
import math

import pytest

from perfect_async.sandbox import Faults, Grant, Sandbox
from perfect_async.sandbox._billing import UnitAccount
from perfect_async.sandbox._clock import Clock
from tests.sandbox.customer import Customer, avatar, data_of, error_of, unlimited_sandbox

CREDIT = "/s2s/v1.0/client/credit"
HISTORY = "/s2s/v1.0/client/credit/history"
COST = "/s2s/v2.0/credit/feature-cost"


async def test_the_balance_is_the_sum_of_grants() -> None:
    """Two grants have big ids, whole and decimal amounts, and an expiry in milliseconds."""
    sandbox = Sandbox(units=1000, epoch=1e9)
    async with Customer(sandbox) as customer:
        await customer.task(avatar(8), "ai-avatar")
        grants = (await customer.get(CREDIT)).json()["results"]

    assert ["ApiSubsToken", "ApiPaygToken"] == [grant["type"] for grant in grants]
    assert 998 == sum(grant["amount_dec"] for grant in grants) == sandbox.ledger.balance
    assert [598, 400] == [grant["amount"] for grant in grants]
    assert all(grant["expiry"] > 1e12 for grant in grants)


async def test_ids_are_too_big_for_floats() -> None:
    """A client that reads ids as floats confuses them."""
    async with Customer(unlimited_sandbox()) as customer:
        text = (await customer.get(CREDIT)).text
    exact = [grant["id"] for grant in json.loads(text)["results"]]
    floats = [int(grant["id"]) for grant in json.loads(text, parse_int=float)["results"]]

    assert all(number > 2**53 for number in exact)
    assert exact != floats


async def test_no_grants_means_unknown() -> None:
    """An account with infinite units answers an empty list, and nothing is refused."""
    sandbox = Sandbox(units=math.inf)
    async with Customer(sandbox) as customer:
        await customer.task(avatar(200), "ai-avatar")
        answer = await customer.get(CREDIT)

    assert {"status": 200, "results": []} == answer.json()
    assert math.inf == sandbox.ledger.balance


@pytest.mark.parametrize("units", [0.0, 0.5, 1.0, 2.75])
def test_the_grants_add_up_to_the_units(units: float) -> None:
    """The sum of the grants is the units, with decimals."""
    assert units == UnitAccount(units, Clock(0.0)).balance


def test_a_charge_may_need_both_grants() -> None:
    """A charge takes the rest from the next grant, and a refund returns each part."""
    account = UnitAccount(10, Clock(0.0))
    account.charge(8, "t", 0.0)

    assert ([6.0, 2.0], 2.0) == (
        [part.amount for part in account.history()[0].parts],
        account.balance,
    )
    account.refund("t", 1.0)
    assert [6.0, 4.0] == [
        entry["amount_dec"] for entry in account.as_json() if isinstance(entry, dict)
    ]


async def test_the_history_has_charges_and_refunds() -> None:
    """The newest row is first: refunds and charges with the ids of their tasks."""
    sandbox = Sandbox(epoch=1e9, faults=Faults(engine_errors=1.0))
    async with Customer(sandbox) as customer:
        task = await customer.task(avatar(5), "ai-avatar")
        for _ in range(40):
            await asyncio.sleep(9)
            await customer.poll(task, "ai-avatar")
        body = (await customer.get(HISTORY)).json()["result"]

    assert body["next_token"] is None
    refund, consume = body["history"]
    assert ["refund", "api_ai_avatar"] == [refund["action"], consume["action"]]
    assert {task} == {refund["target_id"], consume["target_id"]}
    assert 1e12 == consume["timestamp"] < refund["timestamp"]
    assert [-2.0] == [part["amount_dec"] for part in consume["info"]["credits"]]
    assert [2.0] == [part["amount_dec"] for part in refund["info"]["credits"]]


async def test_the_history_comes_in_pages() -> None:
    """Following the tokens gives every row once."""
    async with Customer(unlimited_sandbox()) as customer:
        tasks = [await customer.task() for _ in range(65)]
        found: list[str] = []
        token = ""
        while True:
            page = (await customer.get(HISTORY, page_size=30, starting_token=token)).json()[
                "result"
            ]
            found += [line["target_id"] for line in page["history"]]
            if page["next_token"] is None:
                break
            token = page["next_token"]

    assert tasks[::-1] == found


@pytest.mark.parametrize(("path", "most"), [(HISTORY, 30), (COST, 20)])
@pytest.mark.parametrize("size", ["0", "x", "", "-1", "1.5", "9" * 5000, "\u00b2"])
async def test_a_wrong_page_size_is_a_400(path: str, most: int, size: str) -> None:
    """A page size outside of its range is a 400."""
    async with Customer(unlimited_sandbox()) as customer:
        assert 400 == (await customer.get(path, page_size=size)).status_code
        assert 400 == (await customer.get(path, page_size=most + 1)).status_code
        assert 200 == (await customer.get(path, page_size=most)).status_code


async def test_the_price_list_comes_in_pages() -> None:
    """Both features are in the list, over several pages."""
    async with Customer(unlimited_sandbox()) as customer:
        first = (await customer.get(COST)).json()["result"]
        second = (await customer.get(COST, starting_token=first["next_token"])).json()["result"]
    prices = {
        line["run_task_url"].rpartition("/")[2]: (line["amount"], line["unit"], line["proc_unit"])
        for line in first["skus"] + second["skus"]
    }

    assert 20 == len(first["skus"])
    assert second["next_token"] is None
    assert (1, "result_image", 1) == prices["ai-smile"]
    assert (1, "result_image", 4) == prices["ai-avatar"]


async def test_returned_units_are_in_the_credit() -> None:
    """The balance in the answer changes with an engine failure."""
    sandbox = unlimited_sandbox(Faults(engine_errors=1.0))
    async with Customer(sandbox) as customer:
        task = await customer.task()
        assert 9999 == await _balance(customer)
        await asyncio.sleep(1)
        assert "error" == data_of(await customer.poll(task))["task_status"]
        assert 10_000 == await _balance(customer)


async def _balance(customer: Customer) -> float:
    grants = (await customer.get(CREDIT)).json()["results"]
    return float(sum(grant["amount_dec"] for grant in grants))


async def test_an_unknown_token_is_a_400() -> None:
    """A token that was never returned is a 400."""
    async with Customer(unlimited_sandbox()) as customer:
        for token in ("abc", "bm9uZQ==", "é", "ZnJvbTotNQ==", "A" * 9999):
            answer = await customer.get(HISTORY, starting_token=token)
            assert (400, "InvalidParameters") == error_of(answer)[:2]


async def test_only_some_grants_are_spent() -> None:
    """Only unexpired grants whose type begins with Api are spent, in order of their expiry."""
    grants = [
        Grant("ApiPaygToken", 5.0, days=300),
        Grant("SubsToken", 100.0),
        Grant("ApiSubsToken", 2.0, days=30, has_id=False),
        Grant("ApiPaygToken", 50.0, days=-1),
    ]
    sandbox = Sandbox(units=grants, epoch=1e9, lease="flexible")
    async with Customer(sandbox) as customer:
        assert 7 == sandbox.ledger.balance
        await customer.task(avatar(12), "ai-avatar")
        rows = (await customer.get(CREDIT)).json()["results"]
        parts = (await customer.get(HISTORY)).json()["result"]["history"][0]["info"]["credits"]

    assert [4.0, 100.0, 0.0, 50.0] == [row["amount_dec"] for row in rows]
    assert [True, True, False, True] == ["id" in row for row in rows]
    assert [-2.0, -1.0] == [part["amount_dec"] for part in parts]
    assert [False, True] == ["id" in part for part in parts]
    assert rows[3]["expiry"] < 1e12 < rows[0]["expiry"]


async def test_a_grant_expires() -> None:
    """Units are gone once their grant has expired."""
    sandbox = Sandbox(units=[Grant("ApiSubsToken", 2.0, days=1)])
    async with Customer(sandbox) as customer:
        await customer.task()
        await asyncio.sleep(86_400)
        answer = await customer.create()

    assert (400, "CreditInsufficiency") == error_of(answer)[:2]
    assert 0 == sandbox.ledger.balance


async def test_rows_of_other_programs_change_the_balance() -> None:
    """Charges and purchases of others are in the history by their time, and change the balance."""
    sandbox = Sandbox(units=10, epoch=1e9)
    async with Customer(sandbox) as customer:
        task = await customer.task()
        foreign = sandbox.book("api_photo_enhance", -3, ago=30)
        sandbox.book("renew", 50, target_id="order-1", ago=60)
        rows = (await customer.get(HISTORY)).json()["result"]["history"]

    assert [
        ("api_ai_smile", task, -1),
        ("api_photo_enhance", foreign, -3),
        ("renew", "order-1", 50),
    ] == [
        (row["action"], row["target_id"], sum(p["amount"] for p in row["info"]["credits"]))
        for row in rows
    ]
    assert [1e12, 1e12 - 30_000, 1e12 - 60_000] == [row["timestamp"] for row in rows]
    assert 56 == sandbox.ledger.balance


@pytest.mark.parametrize("skew", [90.0, -90.0])
async def test_a_wrong_clock_breaks_no_url(skew: float) -> None:
    """The vendor's clock is ahead or behind, and presigned URLs work."""
    sandbox = Sandbox(epoch=1e9, clock_skew=skew)
    async with Customer(sandbox) as customer:
        await customer.task()
        row = (await customer.get(HISTORY)).json()["result"]["history"][0]
        await customer.uploaded()

    assert (1e9 + skew) * 1000 == row["timestamp"]


async def test_a_feature_may_have_several_prices() -> None:
    """Some features have several prices, or a path with a slash."""
    async with Customer(unlimited_sandbox()) as customer:
        skus = (await customer.get(COST)).json()["result"]["skus"]
    urls = [sku["run_task_url"] for sku in skus]

    assert 3 == urls.count("/s2s/v2.0/task/skin-analysis")
    assert "/s2s/v2.0/task/2d-vto/ring" in urls
