"""A picture that was made and could not be saved waits in the journal until it is."""

from pathlib import Path

import anyio
import pytest

from perfect_async import Client, Done, Outcome, Smile
from perfect_async.errors import NotSaved
from perfect_async.sandbox import Sandbox, portrait

SMILE = Smile(portrait(1, 64))


def opened(sandbox: Sandbox, folder: Path) -> Client:
    transport = sandbox.transport()
    url, journal = "https://sandbox.example", folder / "jobs.db"
    return Client("key", base_url=url, transport=transport, journal=journal)


async def not_saved(sandbox: Sandbox, folder: Path, *, delete: bool) -> None:
    """A process that made a picture for a folder that cannot be, and told of it."""
    (folder / "out").write_bytes(b"a file")
    async with (
        opened(sandbox, folder) as client,
        client.batch([SMILE], save_to=folder / "out", delete=delete) as batch,
    ):
        [outcome] = [outcome async for outcome in batch]
    assert isinstance(outcome.error, NotSaved)
    assert {"success": 1} == dict(sandbox.ledger.tasks_by_state)


@pytest.mark.parametrize("delete", [False, True])
async def test_it_is_saved_by_resuming(tmp_path: Path, delete: bool) -> None:
    """Once the cause is mended the next process saves it, and only then deletes the copies."""
    sandbox = Sandbox()
    await not_saved(sandbox, tmp_path, delete=delete)
    (tmp_path / "out").unlink()

    async with opened(sandbox, tmp_path) as client:
        await anyio.sleep(60)
        assert {"success": 1} == dict(sandbox.ledger.tasks_by_state)
        async with client.resume() as batch:
            outcomes: list[Outcome] = [outcome async for outcome in batch]
        await anyio.sleep(60)

    [done] = outcomes
    assert isinstance(done, Done)
    assert list((tmp_path / "out").iterdir()) == list(done.files)
    assert {"deleted" if delete else "success": 1} == dict(sandbox.ledger.tasks_by_state)
    assert 1 == sandbox.ledger.units_charged
    async with opened(sandbox, tmp_path) as client, client.resume() as batch:
        assert [] == [outcome async for outcome in batch]


async def test_it_stays_until_it_is_saved(tmp_path: Path) -> None:
    """A cause that is not mended is told again, and still nothing is lost."""
    sandbox = Sandbox()
    await not_saved(sandbox, tmp_path, delete=True)

    for _ in range(2):
        async with opened(sandbox, tmp_path) as client, client.resume() as batch:
            [outcome] = [outcome async for outcome in batch]
        assert isinstance(outcome.error, NotSaved)
    assert {"success": 1} == dict(sandbox.ledger.tasks_by_state)
