"""The pytest fixtures for users: loaded by one line, plain, without access to the user's state."""

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

USER_TESTS = """
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
    """A smile and an avatar end within two seconds, and the ledger counts both."""
    began = clock()
    async with youcam_client as client:
        await client.run(Smile(portrait(1)))
        await client.run(Avatar(portrait(1), "male_studio_00"))
    assert clock() - began < 2
    assert {"success": 2} == dict(youcam_sandbox.ledger.tasks_by_state)
    assert [] == youcam_sandbox.ledger.violations
    assert "off" == os.environ["PERFECT_ASYNC_SHARE"]


def run_user_tests(folder: Path, conftest: str) -> tuple[int, str]:
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_theirs.py").write_text(USER_TESTS)
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


def test_one_line_loads_the_plugin(tmp_path: Path) -> None:
    """The fixtures work in a project without async plugins; each test has its own sandbox."""
    status, output = run_user_tests(tmp_path, 'pytest_plugins = ["perfect_async.pytest_plugin"]\n')
    assert 0 == status, output
    assert "2 passed" in output


def test_the_plugin_is_not_loaded_without_the_line(tmp_path: Path) -> None:
    """Installing the package does not load the plugin into test runs."""
    status, output = run_user_tests(tmp_path, "")
    assert 1 == status
    assert "fixture 'youcam_client' not found" in output


@pytest.fixture
def youcam_settings() -> str:
    """Stand in for a fixture of the user's own."""
    return "theirs"


async def test_an_unopened_client_does_not_warn(
    youcam_client: Client, youcam_settings: str
) -> None:
    """A test may use other fixtures and leave the client unopened."""
    assert "<Client https://yce-api-01.makeupar.com unopened>" == repr(youcam_client)
    assert "theirs" == youcam_settings
