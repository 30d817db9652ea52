"""Both limits of a key (contract: Limits)."""

import asyncio
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfect_async.sandbox import Sandbox
from perfect_async.sandbox._limits import Limiter, Rules
from tests.sandbox.customer import FACE, SMILE, Customer, error_of

SECOND = 1_000_000


def limiter(
    requests: int = 3,
    period: float = 10.0,
    per_second: int = 2,
    kind: Literal["sliding", "fixed"] = "sliding",
    count_refused: bool = True,
) -> Limiter:
    return Limiter(Rules(requests, period, per_second, kind, count_refused))


def admitted(windows: Limiter, *times: float, key: str = "k") -> list[bool]:
    return [windows.admits(key, round(time * SECOND)) for time in times]


def test_the_second_is_limited() -> None:
    """The third request within a second is refused if two are allowed."""
    assert [True, True, False] == admitted(limiter(), 0.0, 0.2, 0.4)


def test_the_period_is_limited() -> None:
    """The fourth request within the period is refused if three are allowed."""
    assert [True, True, True, False] == admitted(limiter(), 0.0, 2.0, 4.0, 9.9)


def test_an_arrival_leaves_the_window_one_period_later() -> None:
    """An arrival leaves the window exactly one period later, and not a microsecond before."""
    windows = limiter(requests=1, count_refused=False)

    assert [True, False, True] == admitted(windows, 0.0, 9.999999, 10.0)


def test_refused_requests_count() -> None:
    """A client that retries at once stays refused."""
    times = [n * 0.25 for n in range(12)]

    patient = admitted(limiter(requests=100, per_second=2, count_refused=False), *times)
    impatient = admitted(limiter(requests=100, per_second=2), *times)

    assert 6 == sum(patient)
    assert 2 == sum(impatient)


def test_a_fixed_window_is_empty_at_its_border() -> None:
    """With fixed windows two bursts may meet at the border."""
    windows = limiter(requests=3, per_second=9, kind="fixed")

    assert [True, True, True, False] == admitted(windows, 9.0, 9.1, 9.2, 9.3)
    assert [True, True, True, False] == admitted(windows, 10.0, 10.1, 10.2, 10.3)


def test_keys_have_separate_windows() -> None:
    """Requests of one key do not use the window of another."""
    windows = limiter(per_second=1)

    assert [True, False] == admitted(windows, 0.0, 0.1)
    assert [True, False] == admitted(windows, 0.2, 0.3, key="other")


def test_foreign_requests_count_for_every_key() -> None:
    """Foreign requests count for known keys and for keys that are used later."""
    windows = limiter(requests=3, per_second=9)
    admitted(windows, 0.0, key="seen")

    windows.foreign(2, None, 5 * SECOND)

    assert [False] == admitted(windows, 6.0, key="seen")
    assert [True, False] == admitted(windows, 6.0, 6.1, key="later")


def test_foreign_requests_may_be_on_one_key() -> None:
    """Foreign requests may count for one key only."""
    windows = limiter(requests=3, per_second=9)

    windows.foreign(3, "a", 0)

    assert [False] == admitted(windows, 1.0, key="a")
    assert [True] == admitted(windows, 1.0, key="b")


@given(
    gaps=st.lists(st.integers(0, SECOND), max_size=80),
    limit=st.integers(1, 6),
    per_second=st.integers(1, 4),
)
def test_no_window_ever_holds_more(gaps: list[int], limit: int, per_second: int) -> None:
    """For any arrivals, no period and no second admits more than its limit."""
    windows = limiter(limit, 3.0, per_second, count_refused=False)
    now = 0
    passed: list[int] = []
    for gap in gaps:
        now += gap
        if windows.admits("k", now):
            passed.append(now)

    for span, most in ((3 * SECOND, limit), (SECOND, per_second)):
        for end in passed:
            assert most >= sum(end - span < time <= end for time in passed)


async def test_too_many_requests_are_a_429() -> None:
    """The sixth request of a second gets a 429 with its envelope and no Retry-After."""
    sandbox = Sandbox()
    async with Customer(sandbox) as customer:
        answers = [await customer.get("/s2s/v1.0/client/credit") for _ in range(6)]

    assert [200] * 5 + [429] == [answer.status_code for answer in answers]
    assert (429, None, "Too many requests") == error_of(answers[-1])
    assert "retry-after" not in answers[-1].headers
    assert {"credit": 1} == dict(sandbox.ledger.refused)


async def test_a_refused_creation_costs_nothing() -> None:
    """A 429 is never executed."""
    sandbox = Sandbox(per_second=1)
    async with Customer(sandbox) as customer:
        await customer.task()
        answer = await customer.create(SMILE)

    assert 429 == answer.status_code
    assert 1 == sandbox.ledger.units_charged


async def test_the_storage_is_not_limited() -> None:
    """Uploads do not count for the limits."""
    sandbox = Sandbox(per_second=2)
    async with Customer(sandbox) as customer:
        entry = await customer.file()
        answers = [await customer.put(entry, FACE) for _ in range(20)]

    assert {200} == {answer.status_code for answer in answers}
    assert 0 == sum(sandbox.ledger.refused.values())


async def test_foreign_requests_leave_the_rest_of_the_window() -> None:
    """Foreign requests leave the rest of the period."""
    sandbox = Sandbox(requests=10, per_second=99)
    sandbox.foreign(8)
    async with Customer(sandbox) as customer:
        await asyncio.sleep(200)
        answers = [await customer.get("/s2s/v1.0/client/credit") for _ in range(3)]
        assert [200, 200, 429] == [answer.status_code for answer in answers]
        await asyncio.sleep(101)
        assert 200 == (await customer.get("/s2s/v1.0/client/credit")).status_code


def test_foreign_requests_need_a_running_loop() -> None:
    """Outside of a running loop there is no present time."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        Sandbox().foreign(1)
