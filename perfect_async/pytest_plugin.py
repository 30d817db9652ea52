"""Fixtures for tests of programs that use this package: a sandbox, and a client of it.

    pytest_plugins = ["perfect_async.pytest_plugin"]     # in the conftest.py beside pyproject.toml

    async def test_a_smile(youcam_client, youcam_sandbox):
        async with youcam_client as client:
            await client.run(Smile("selfie.jpg"))
        assert youcam_sandbox.ledger.units_charged == 1

It needs the extra `sandbox`, and no plugin for async tests in particular: the fixtures are plain,
and the client is opened in the test. It is switched on by the line above alone, so that no other
test run loads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from perfect_async import Client, Polling

if TYPE_CHECKING:
    from perfect_async.sandbox import Sandbox

_SECONDS: Final = 0.2
"""How long a task lasts: a test waits for it in real time."""
_INTERVAL: Final = 0.1
"""How soon a task is asked for, at the earliest; the vendor's pace would be 2 s."""


@pytest.fixture
def youcam_sandbox(monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Give each test a vendor of its own inside the process, whose smiles and avatars take 0.2 s.

    `youcam_sandbox.ledger` says what was charged, and `youcam_sandbox.script(...)` sets single
    answers. Define a fixture of the same name to have other settings: `youcam_client` uses it. The
    request window is not shared with other processes while the test runs.
    """
    from perfect_async.sandbox import Durations, Sandbox  # noqa: PLC0415 - an extra

    monkeypatch.setenv("PERFECT_ASYNC_SHARE", "off")
    short = Durations.fixed(_SECONDS)
    return Sandbox(durations={"ai-smile": short, "ai-avatar": short})


@pytest.fixture
def youcam_client(youcam_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Give the test a client of its sandbox, unopened: `async with youcam_client as client:`."""
    monkeypatch.setenv("PERFECT_ASYNC_SHARE", "off")
    polling = Polling(interval=_INTERVAL)
    return Client("sandbox-key", transport=youcam_sandbox.transport(), polling=polling)
