"""The settings for details that the contract leaves open."""

import asyncio
from typing import Any

import httpx
import pytest

from perfect_async.sandbox import Dialect, Durations, Faults, Sandbox
from tests.sandbox.customer import SMILE, TEETH, Customer, avatar, data_of, unlimited_sandbox

HISTORY = "/s2s/v1.0/client/credit/history"


def dialect(**settings: str) -> Dialect:
    """Return a dialect of settings that come from a parametrized test."""
    return Dialect(**settings)  # type: ignore[arg-type]  # each is a Literal


async def ended(spoken: Dialect, *, feature: str = "ai-smile", **faults: float) -> httpx.Response:
    """Create a task, wait for its end, and return the answer to a poll."""
    sandbox = unlimited_sandbox(Faults(engine_error_codes=("error_no_face",), **faults))  # type: ignore[arg-type]
    sandbox.dialect = spoken
    async with Customer(sandbox) as customer:
        task = await customer.task(SMILE if feature == "ai-smile" else avatar(4), feature)
        await asyncio.sleep(8)
        return await customer.poll(task, feature)


@pytest.mark.parametrize(
    ("style", "fields"),
    [
        ("both", {"status", "error", "error_code"}),
        ("text", {"status", "error"}),
        ("code", {"status", "error_code"}),
        ("errorCode", {"status", "error", "errorCode"}),
    ],
)
async def test_errors_have_different_fields(style: str, fields: set[str]) -> None:
    """An error has a code, a text, both, or a code with another spelling."""
    sandbox = Sandbox(units=0, dialect=dialect(errors=style))
    async with Customer(sandbox) as customer:
        answer = await customer.create()

    assert (400, fields) == (answer.status_code, set(answer.json()))
    assert answer.json().get("error_code", "CreditInsufficiency") == "CreditInsufficiency"


async def test_an_error_without_a_code_keeps_its_text() -> None:
    """A 429 has no code, so it keeps its text with the setting for codes only."""
    sandbox = Sandbox(per_second=0, dialect=Dialect(errors="code"))
    async with Customer(sandbox) as customer:
        answer = await customer.create()

    assert {"status": 429, "error": "Too many requests"} == answer.json()


@pytest.mark.parametrize(
    ("settings", "status"),
    [({"units": 0}, 400), ({"per_second": 0}, 429), ({"api_keys": ["another"]}, 401)],
)
async def test_an_error_may_have_http_200(settings: dict[str, Any], status: int) -> None:
    """Only the body may have the status of an error; a 429 also counts as refused."""
    sandbox = Sandbox(dialect=Dialect(error_status="body"), **settings)
    async with Customer(sandbox) as customer:
        answer = await customer.create()

    assert (200, status) == (answer.status_code, answer.json()["status"])
    assert (status == 429) == (1 == sandbox.ledger.refused["task"])


@pytest.mark.parametrize(
    ("form", "http", "body"),
    [
        ("code", 400, {"status": 400, "error": "Invalid task ID", "error_code": "InvalidTaskId"}),
        ("text", 400, {"status": 400, "error": "Invalid task ID"}),
        ("not_found", 404, {"status": 404, "error": "Invalid task ID"}),
        ("body", 200, {"status": 400, "error": "Invalid task ID", "error_code": "InvalidTaskId"}),
    ],
)
async def test_an_unknown_task_has_several_errors(
    form: str, http: int, body: dict[str, object]
) -> None:
    """An unknown task gives one of the published errors."""
    async with Customer(Sandbox(dialect=dialect(invalid_task_id=form))) as customer:
        answer = await customer.poll("nobody")

    assert (http, body) == (answer.status_code, answer.json())


@pytest.mark.parametrize(
    ("form", "body"),
    [
        ("text", {"status": 500, "error": "Task execution timed out"}),
        ("code", {"status": 500, "error_code": "TaskTimeout"}),
        (
            "both",
            {"status": 500, "error": "Task execution timed out", "error_code": "TaskTimeout"},
        ),
    ],
)
async def test_a_timeout_has_a_text_or_a_code(form: str, body: dict[str, object]) -> None:
    """A task that timed out gives a 500 with its text, its code, or both."""
    answer = await ended(dialect(task_timeout=form), timeouts=1.0)

    assert (500, body) == (answer.status_code, answer.json())


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        ("invalid", 400, None),
        ("not_found", 404, "NotFound"),
        ("internal_error", 500, "unknown_internal_error"),
    ],
)
async def test_a_missing_file_refuses_the_creation(
    form: str, status: int, code: str | None
) -> None:
    """A creation without uploaded bytes is refused, costs nothing, and is a violation."""
    sandbox = Sandbox(dialect=dialect(missing_file=form))
    async with Customer(sandbox) as customer:
        entry = await customer.file()
        answer = await customer.create({"src_file_id": entry["file_id"], "expression_type": TEETH})

    assert (status, code) == (answer.status_code, answer.json().get("error_code"))
    assert 0 == sandbox.ledger.units_charged
    assert ["task: task on a file whose bytes never arrived"] == sandbox.ledger.violations


async def test_a_missing_file_may_fail_the_task() -> None:
    """A task on an unknown file may be created and then fail, with its units returned."""
    sandbox = unlimited_sandbox()
    sandbox.dialect = Dialect(missing_file="engine_error")
    async with Customer(sandbox) as customer:
        task = await customer.task({"src_file_id": "abc", "expression_type": TEETH})
        await asyncio.sleep(1)
        data = data_of(await customer.poll(task))

    assert ("error", "unknown_internal_error") == (data["task_status"], data["error"])
    assert 1 == sandbox.ledger.units_charged == sandbox.ledger.units_returned


@pytest.mark.parametrize(
    ("words", "failing", "expected"),
    [
        ({"success": "completed"}, 0.0, "completed"),
        ({"error": "failed"}, 1.0, "failed"),
        ({"error": "cancelled"}, 1.0, "cancelled"),
        ({"error": "aborted"}, 1.0, "aborted"),
    ],
)
async def test_the_end_may_have_other_words(
    words: dict[str, str], failing: float, expected: str
) -> None:
    """An ended task has another word for its status; the ledger keeps the usual one."""
    answer = await ended(Dialect(status_words=words), engine_errors=failing)

    assert expected == data_of(answer)["task_status"]


async def test_running_may_have_another_word() -> None:
    """A running task may be "queued"."""
    sandbox = Sandbox(dialect=Dialect(status_words={"running": "queued"}))
    async with Customer(sandbox) as customer:
        data = data_of(await customer.poll(await customer.task()))

    assert "queued" == data["task_status"]
    assert {"running": 1} == dict(sandbox.ledger.tasks_by_state)


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("code", "error_no_face"),
        ("upper", "ERROR_NO_FACE"),
        ("sentence", "no face detected"),
        ("object", {"code": "error_no_face", "message": "no face detected"}),
    ],
)
async def test_engine_errors_have_different_forms(style: str, expected: object) -> None:
    """The error of a failed task is a code, a sentence, or an object."""
    answer = await ended(dialect(engine_errors=style), engine_errors=1.0)

    assert expected == data_of(answer)["error"]


def shape(value: object) -> object:
    """Return `value` with every URL replaced by "URL"."""
    match value:
        case dict():
            return {key: shape(each) for key, each in value.items()}
        case list():
            return [shape(each) for each in value]
        case str():
            return "URL" if value.startswith("https://results.sandbox.example/") else value
        case _:
            return value


@pytest.mark.parametrize(
    ("style", "smile", "avatars"),
    [
        ("object", {"url": "URL"}, {"output": [{"url": "URL"}] * 4}),
        ("list", [{"url": "URL"}], [{"url": "URL"}] * 4),
        ("download_url", [{"download_url": "URL"}], [{"download_url": "URL"}] * 4),
        ("bare", "URL", ["URL"] * 4),
        ("no_url", {"scores": {"smile": 71}}, {"scores": {"smile": 71}}),
        ("missing", None, None),
    ],
)
async def test_results_have_different_shapes(style: str, smile: object, avatars: object) -> None:
    """Results have each published shape, and two shapes without a URL."""
    one = await ended(dialect(results=style))
    four = await ended(dialect(results=style), feature="ai-avatar")

    assert smile == shape(data_of(one).get("results"))
    assert avatars == shape(data_of(four).get("results"))


async def test_some_outputs_may_be_null() -> None:
    """Some of several outputs are null; a single result never is."""
    nulls = Dialect(null_outputs=2)
    one, four = await ended(nulls), await ended(nulls, feature="ai-avatar")

    assert {"url": "URL"} == shape(data_of(one)["results"])
    assert {"output": [None, None, {"url": "URL"}, {"url": "URL"}]} == shape(
        data_of(four)["results"]
    )


@pytest.mark.parametrize(
    ("place", "at_creation", "at_polls"),
    [("polls", None, 1500), ("creation", 1500, None), ("both", 1500, 1500)],
)
async def test_the_polling_interval_has_different_places(
    place: str, at_creation: int | None, at_polls: int | None
) -> None:
    """The interval is in the answers to polls, to the creation, or both."""
    sandbox = Sandbox(polling_interval=1500, dialect=dialect(polling_interval_in=place))
    async with Customer(sandbox) as customer:
        created = data_of(await customer.create())
        polled = data_of(await customer.poll(created["task_id"]))

    assert at_creation == created.get("polling_interval")
    assert at_polls == polled.get("polling_interval")


async def history(spoken: Dialect) -> list[dict[str, Any]]:
    """Return the unit history after one task, at the wall clock 1e9."""
    async with Customer(Sandbox(epoch=1e9, dialect=spoken)) as customer:
        await customer.task()
        answer = await customer.get(HISTORY)
    rows: list[dict[str, Any]] = answer.json()["result"]["history"]
    return rows


@pytest.mark.parametrize(("sign", "amount"), [("negative", -1), ("positive", 1)])
async def test_a_charge_has_either_sign(sign: str, amount: int) -> None:
    """A charge is negative in the documents, and could be positive."""
    rows = await history(dialect(history_sign=sign))

    assert [amount, amount] == [
        rows[0]["info"]["credits"][0][name] for name in ("amount", "amount_dec")
    ]


async def test_rows_of_the_history_may_be_odd() -> None:
    """Rows may lack the target, or have times with another unit or sign."""
    no_target = await history(Dialect(history="no_target"))

    assert "target_id" not in no_target[0]
    assert 10**9 == (await history(Dialect(history="seconds")))[0]["timestamp"]
    assert -(10**12) == (await history(Dialect(history="negative_time")))[0]["timestamp"]


async def test_the_history_may_have_no_rows() -> None:
    """An object may replace the rows."""
    async with Customer(Sandbox(dialect=Dialect(history="object"))) as customer:
        answer = await customer.get(HISTORY)

    assert {"next_token": None, "history": {}} == answer.json()["result"]


async def test_a_price_may_lack_its_number_of_units() -> None:
    """A price per one unit may lack the number; a price per four does not."""
    prices: dict[str, Any] = {}
    async with Customer(Sandbox(dialect=Dialect(proc_unit=False))) as customer:
        token: str | None = ""
        while token is not None:
            page = (
                await customer.get("/s2s/v2.0/credit/feature-cost", starting_token=token)
            ).json()["result"]
            prices |= {sku["run_task_url"].rpartition("/")[2]: sku for sku in page["skus"]}
            token = page["next_token"]

    assert "proc_unit" not in prices["ai-smile"]
    assert 4 == prices["ai-avatar"]["proc_unit"]


def test_a_wrong_setting_is_refused() -> None:
    """A wrong value is refused at construction, and the message lists the accepted ones."""
    with pytest.raises(ValueError, match=r"errors must be one of both, text, .*, not 'none'"):
        Dialect(errors="none")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="status_words must be for running, success, error, not 'x'"
    ):
        Dialect(status_words={"x": "y"})


async def test_the_dialect_can_change() -> None:
    """Another dialect is used from the next request on."""
    sandbox = Sandbox(durations={"ai-smile": Durations.fixed(1.0)})
    async with Customer(sandbox) as customer:
        assert "error_code" in (await customer.poll("nobody")).json()
        sandbox.dialect = Dialect(errors="text")
        assert "error_code" not in (await customer.poll("nobody")).json()

    assert Dialect(errors="text") == sandbox.dialect
