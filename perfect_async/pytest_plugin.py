"""pytest fixtures for programs that use this package: a sandbox, and a client of it.

    pytest_plugins = ["perfect_async.pytest_plugin"]     # in the conftest.py beside pyproject.toml

    async def test_a_smile(youcam_client, youcam_sandbox):
        async with youcam_client as client:
            await client.run(Smile("selfie.jpg"))
        assert youcam_sandbox.ledger.units_charged == 1

The plugin needs the extra `sandbox`. It works with any plugin for async tests, since the fixtures
are plain functions and the test itself opens the client. Only the line above loads the plugin; it
is no pytest entry point, so that other test runs do not load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from perfect_async import Client, Polling

if TYPE_CHECKING:
    from perfect_async.sandbox import Sandbox

_SECONDS: Final = 0.2
"""The duration of a task. Tests wait for it in real time, so it is short."""
_INTERVAL: Final = 0.1
"""The shortest time between two polls of a task; the default of `Polling` is 2 s."""


@pytest.fixture
def youcam_sandbox(monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Give each test its own sandbox: the vendor inside the process; tasks take 0.2 s.

    `youcam_sandbox.ledger` shows what was charged, and `youcam_sandbox.script(...)` sets single
    answers. For other settings, define a fixture of the same name; `youcam_client` then uses it.
    While the test runs, the request window is not shared with other processes.
    """
    from perfect_async.sandbox import Durations, Sandbox  # noqa: PLC0415 - an extra

    monkeypatch.setenv("PERFECT_ASYNC_SHARE", "off")
    short = Durations.fixed(_SECONDS)
    return Sandbox(durations={"ai-smile": short, "ai-avatar": short})


@pytest.fixture
def youcam_client(youcam_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Client:
    """Give the test an unopened client of its sandbox: `async with youcam_client as client:`."""
    monkeypatch.setenv("PERFECT_ASYNC_SHARE", "off")
    polling = Polling(interval=_INTERVAL)
    return Client("sandbox-key", transport=youcam_sandbox.transport(), polling=polling)
