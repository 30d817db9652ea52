"""Another program's task on the same account is not taken for the one in doubt."""

from pathlib import Path

import anyio
import pytest

from perfect_async import Client, Smile, SubmissionInDoubt
from perfect_async.sandbox import Sandbox, portrait


@pytest.mark.parametrize("sole", [True, False])
@pytest.mark.parametrize("pause", [0.0, 6.0, 20.0, 55.0])
async def test_no_face_is_handed_to_another(tmp_path: Path, pause: float, sole: bool) -> None:
    """A creation that was never executed does not get the task that another client had before."""
    sandbox = Sandbox()
    url = "https://sandbox.example"
    async with (
        Client("other", base_url=url, transport=sandbox.transport()) as other,
        Client(
            "key",
            base_url=url,
            transport=sandbox.transport(),
            journal=tmp_path / "j",
            sole_user=sole,
        ) as mine,
    ):
        await other.run(Smile(portrait(1, 64)))
        await anyio.sleep(pause)
        sandbox.script("task", "drop")
        async with mine.batch([Smile(portrait(2, 64))], save_to=tmp_path / "out") as batch:
            [outcome] = [outcome async for outcome in batch]

    assert isinstance(outcome.error, SubmissionInDoubt)
    assert [] == list((tmp_path / "out").iterdir())
