"""A picture that a former process has saved is done, whatever the vendor still has of it."""

import shutil
from collections import Counter
from pathlib import Path

import anyio
import pytest

from perfect_async import Avatar, Client, Done, Outcome, Smile, TaskExpired
from perfect_async.sandbox import Sandbox, portrait

SMILE = Smile(portrait(1, 64))
AVATAR = Avatar(portrait(2, 64), "male_studio_00", output_count=3)


def opened(sandbox: Sandbox, journal: Path) -> Client:
    return Client(
        "key",
        base_url="https://sandbox.example",
        transport=sandbox.transport(),
        journal=journal,
        reuse=False,
        drain=10.0,
    )


async def crashed(sandbox: Sandbox, folder: Path, *, delete: bool) -> Path:
    """The journal of a process that had saved all and told nobody; it ends in order elsewhere."""
    jobs = folder / "jobs.db"
    async with (
        opened(sandbox, jobs) as client,
        client.batch([SMILE, AVATAR], save_to=folder / "out", delete=delete),
    ):
        await anyio.sleep(300)
        for end in ("", "-wal"):
            shutil.copy(f"{jobs}{end}", folder / f"crashed.db{end}")
    assert {"deleted" if delete else "success": 2} == dict(sandbox.ledger.tasks_by_state)
    return folder / "crashed.db"


async def resumed(client: Client) -> list[Outcome]:
    async with client.resume() as batch:
        return [outcome async for outcome in batch]


@pytest.mark.parametrize("delete", [True, False])
async def test_it_is_told_as_done(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, delete: bool
) -> None:
    """Its files are named and nothing is asked for, created or at stake."""
    sandbox = Sandbox()
    journal = await crashed(sandbox, tmp_path, delete=delete)
    saved, before = sorted((tmp_path / "out").iterdir()), dict(sandbox.ledger.requests)

    async with opened(sandbox, journal) as client:
        outcomes = await resumed(client)

    files = [path for outcome in outcomes if isinstance(outcome, Done) for path in outcome.files]
    assert saved == sorted(files)
    assert [1, 1] == [outcome.units for outcome in outcomes]
    # What was not known to be deleted is deleted once more, while the client closes.
    again = Counter(sandbox.ledger.requests) - Counter(before)
    assert ({"delete": 2} if delete else {}) == dict(again)
    assert [] == caplog.messages
    async with opened(sandbox, journal) as client:
        assert [] == await resumed(client)


async def test_it_can_be_had_again(tmp_path: Path) -> None:
    """Its result has no URLs until they are asked for, which a saving does."""
    sandbox = Sandbox()
    journal = await crashed(sandbox, tmp_path, delete=False)

    async with opened(sandbox, journal) as client:
        outcomes = await resumed(client)
        again = [path for one in outcomes for path in await one.unwrap().save(tmp_path / "again")]

    assert 4 == len(again)
    assert {path.name for path in again} == {path.name for path in (tmp_path / "out").iterdir()}


async def test_it_cannot_be_had_again_once_deleted(tmp_path: Path) -> None:
    """Asking for what the vendor has deleted says so."""
    sandbox = Sandbox()
    journal = await crashed(sandbox, tmp_path, delete=True)

    async with opened(sandbox, journal) as client:
        outcomes = await resumed(client)
        with pytest.raises(TaskExpired):
            await outcomes[0].unwrap().save(tmp_path / "again")


async def test_the_same_job_instead_of_resuming(tmp_path: Path) -> None:
    """Who runs the jobs again gets what was saved, in the same folder for no request at all."""
    sandbox = Sandbox()
    journal = await crashed(sandbox, tmp_path, delete=True)
    saved, tasks = sorted((tmp_path / "out").iterdir()), len(sandbox.ledger.tasks)

    async with (
        opened(sandbox, journal) as client,
        client.batch([SMILE, AVATAR], save_to=tmp_path / "out") as batch,
    ):
        outcomes = [outcome async for outcome in batch]

    files = [path for outcome in outcomes if isinstance(outcome, Done) for path in outcome.files]
    assert saved == sorted(files)
    assert tasks == len(sandbox.ledger.tasks)


async def test_saved_files_that_are_gone_are_saved_again(tmp_path: Path) -> None:
    """Half a result on the disk is none: it is fetched while the vendor has it."""
    sandbox = Sandbox()
    journal = await crashed(sandbox, tmp_path, delete=False)
    saved = sorted((tmp_path / "out").iterdir())
    saved[0].unlink()

    async with opened(sandbox, journal) as client:
        outcomes = await resumed(client)

    assert [True, True] == [outcome.ok for outcome in outcomes]
    assert saved == sorted((tmp_path / "out").iterdir())
