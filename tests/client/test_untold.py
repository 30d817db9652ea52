"""What a client with a journal keeps in mind of its jobs, and for how long."""

from pathlib import Path

import anyio
import pytest

from perfect_async import Smile, WaitTimeout
from perfect_async.sandbox import Faults
from tests.support.sandboxed import client, smile, vendor


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("sure", [True, False])
async def test_what_nobody_heard_is_forgotten_after_a_day(
    fails: bool, sure: bool, tmp_path: Path
) -> None:
    """A job whose caller left is kept for `resume`, but not for longer than its result is there."""
    sandbox = vendor(faults=Faults(engine_errors=float(fails)))
    signed = Smile("https://pictures.example/1.jpg?X-Amz-Signature=abc")

    c = client(sandbox, journal=tmp_path / "jobs.db", engine_retries=0)
    async with c:
        assert c._session is not None
        journal = c._session.channel.journal.writer
        with pytest.raises(WaitTimeout):
            await c.run(smile() if sure else signed, timeout=3)
        await anyio.sleep(60)
        assert 1 == len(journal.state.live)
        await anyio.sleep(25 * 3600)
        async with c.batch([smile(1), smile(2)]) as batch:
            async for _ in batch:
                pass
        await anyio.sleep(60)
        assert {} == journal.state.live
