"""The fixtures for users' tests: on by one line, plain, and away from the user's own state."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perfect_async import Avatar, Client, Smile
from perfect_async.sandbox import Sandbox, portrait
from tests.support.sandboxed import clock

pytest_plugins = ["perfect_async.pytest_plugin"]

ROOT = Path(__file__).parents[1]

THEIRS = """
import asyncio
from perfect_async import Smile
from perfect_async.sandbox import portrait

def test_one(youcam_client, youcam_sandbox):
    async def main():
        async with youcam_client as client:
            await client.run(Smile(portrait(1)))
    asyncio.run(main())
    assert youcam_sandbox.ledger.units_charged == 1

def test_another(youcam_sandbox):
    assert youcam_sandbox.ledger.units_charged == 0
"""


async def test_the_client_reaches_the_sandbox(
    youcam_client: Client, youcam_sandbox: Sandbox
) -> None:
    """A smile and an avatar end within a second, and the ledger knows of both."""
    began = clock()
    async with youcam_client as client:
        await client.run(Smile(portrait(1)))
        await client.run(Avatar(portrait(1), "male_studio_00"))
    assert clock() - began < 2
    assert {"success": 2} == dict(youcam_sandbox.ledger.tasks_by_state)
    assert [] == youcam_sandbox.ledger.violations
    assert "off" == os.environ["PERFECT_ASYNC_SHARE"]


def run_theirs(folder: Path, conftest: str) -> tuple[int, str]:
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_theirs.py").write_text(THEIRS)
    state = folder / "state"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PERFECT_ASYNC_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert not state.exists()
    return ran.returncode, ran.stdout


def test_one_line_switches_it_on(tmp_path: Path) -> None:
    """In a project of its own, without a plugin for async tests; each test has its own sandbox."""
    status, said = run_theirs(tmp_path, 'pytest_plugins = ["perfect_async.pytest_plugin"]\n')
    assert 0 == status, said
    assert "2 passed" in said


def test_it_is_off_without_the_line(tmp_path: Path) -> None:
    """Being installed is not enough: other people's runs do not load it."""
    status, said = run_theirs(tmp_path, "")
    assert 1 == status
    assert "fixture 'youcam_client' not found" in said


@pytest.fixture
def youcam_settings() -> str:
    """Stand in for a fixture of the user's own."""
    return "theirs"


async def test_it_lives_beside_other_fixtures(youcam_client: Client, youcam_settings: str) -> None:
    """A client that a test never opens warns of nothing."""
    assert "<Client https://yce-api-01.makeupar.com unopened>" == repr(youcam_client)
    assert "theirs" == youcam_settings
