"""Somebody else's task on the same account is not taken for the one in doubt."""

from pathlib import Path

import anyio
import pytest

from perfect_async import Client, Smile, SubmissionInDoubt
from perfect_async._api.history import SKEW, HistorySearch, Movement, Unresolved
from perfect_async._time import SECOND
from perfect_async.sandbox import Sandbox, portrait

SENT = 1_800_000_000 * SECOND


@pytest.mark.parametrize("pause", [6.0, 20.0, 55.0])
async def test_no_face_is_handed_to_another(tmp_path: Path, pause: float) -> None:
    """A creation that was never executed does not get the task that another client had before."""
    sandbox = Sandbox()
    url = "https://sandbox.example"
    async with (
        Client("other", base_url=url, transport=sandbox.transport()) as other,
        Client("key", base_url=url, transport=sandbox.transport(), journal=tmp_path / "j") as mine,
    ):
        await other.run(Smile(portrait(1, 64)))
        await anyio.sleep(pause)
        sandbox.script("task", "drop")
        async with mine.batch([Smile(portrait(2, 64))], save_to=tmp_path / "out") as batch:
            [outcome] = [outcome async for outcome in batch]

    assert isinstance(outcome.error, SubmissionInDoubt)
    assert not (tmp_path / "out").exists()


def row(task_id: str, at: int) -> Movement:
    return Movement(at, "consume", task_id)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([row("t", SENT + SECOND)], "t", id="after"),
        pytest.param([row("t", SENT - SECOND)], "t", id="clocks a second apart"),
        pytest.param([row("t", SENT - 10 * SECOND)], Unresolved.AMBIGUOUS, id="before"),
        pytest.param(
            [row("t", SENT + 9 * SECOND), row("t", SENT - 10 * SECOND)],
            Unresolved.AMBIGUOUS,
            id="before, and given back since",
        ),
        pytest.param([row("t", SENT - SKEW - 1)], Unresolved.NOTHING, id="long before"),
    ],
)
def test_when_a_task_may_be_ours(rows: list[Movement], expected: object) -> None:
    """The only unknown task is taken if it came to be with our sending, by its first row."""
    search = HistorySearch("ai-smile", ["ai-smile", "ai-avatar"], SENT)
    search.read(rows)

    assert expected == search.verdict(lambda _: False)
