"""Fixtures that tests of several packages share."""

from pathlib import Path
from typing import Protocol

import pytest

from perfect_async import Client
from perfect_async.sandbox import Faults, Sandbox
from tests.support import ports, sandboxed


class MakeSandbox(Protocol):
    """Make a sandbox; see `tests.support.sandboxed.vendor`."""

    def __call__(self, *, faults: Faults | None = None, **settings: object) -> Sandbox: ...


class MakeClient(Protocol):
    """Make a client of a sandbox, unopened; see `tests.support.sandboxed.client`."""

    def __call__(self, sandbox: Sandbox, **settings: object) -> Client: ...


@pytest.fixture
def make_sandbox() -> MakeSandbox:
    """Make sandboxes with a round trip of 150 to 200 ms, in which a smile takes 8 s."""
    return sandboxed.vendor


@pytest.fixture
def make_client() -> MakeClient:
    """Make clients of a sandbox, unopened."""
    return sandboxed.client


@pytest.fixture
def journal_path(tmp_path: Path) -> Path:
    """Return the path of the test's journal."""
    return tmp_path / "jobs.db"


@pytest.fixture
def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    return ports.free_port()
