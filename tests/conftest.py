"""What every test gets: virtual time, a home, a watch for blocking calls, a steady Hypothesis."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

from tests.support.searching import LONG, SHORT
from tests.support.virtual_time import VirtualTimeLoop

_HOMES: Final = (
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"),
    "MPLCONFIGDIR",
)
"""Variables that place folders of the user's; without them these are in `HOME`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--long`."""
    parser.addoption(
        "--long",
        action="store_true",
        help="also run the tests marked `long`, and give Hypothesis five times as many examples",
    )
    parser.addoption(
        "--minutes",
        action="store_true",
        help="with --long: also run the tests that wait for minutes, for windows of real processes",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Choose how Hypothesis searches, before any test is imported."""
    long = config.getoption("--long")
    settings.register_profile(
        "perfect_async",
        max_examples=LONG if long else SHORT,
        # On CI the examples are the same each time, so that a red run can be repeated; at a desk
        # they are new each time and find new things.
        derandomize=bool(os.environ.get("CI")),
        # Both of these measure the machine.
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("perfect_async")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked `long`, or with `--long` let each test search for as long as it needs."""
    long, minutes = config.getoption("--long"), config.getoption("--minutes")
    for item in items:
        if not minutes and item.get_closest_marker("minutes") is not None:
            item.add_marker(pytest.mark.skip(reason="waits for minutes: needs --long --minutes"))
            continue
        if long and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(900))
        elif not long and item.get_closest_marker("long") is not None:
            item.add_marker(pytest.mark.skip(reason="searches for long: needs --long"))


# What is started in the background of a script inherits SIGINT as ignored, and hands that on to
# the programs that it starts: tests about Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Likewise what is started by nohup inherits SIGHUP as ignored. Windows has none.
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run async tests in virtual time unless they are marked `real_time`."""
    if item.get_closest_marker("real_time") is not None:
        return {"real": asyncio.new_event_loop}
    return {"virtual": VirtualTimeLoop}


@pytest.fixture(autouse=True, scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the tests, and the processes that they start, a home instead of the user's."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in _HOMES:
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True, scope="session")
def no_blocking_calls() -> Iterator[BlockBuster]:
    """Make a blocking call of ours inside a running event loop raise `BlockingError`.

    Only calls that come from the package count: a test may read a small file itself.
    """
    blockbuster = BlockBuster("perfect_async")
    for function in blockbuster.functions.values():
        # The default transport loads the certificate bundle once, when a client is made;
        # httpx offers no other way.
        function.can_block_in("httpx/_config.py", {"create_ssl_context"})
        # What is asked of an isolated client without waiting takes one turn of its thread's loop.
        function.can_block_in("perfect_async/_runtime/executors.py", {"ask"})
        # Coverage has a lock of its own, which two threads that are measured may both want.
        function.can_block_in("coverage/collector.py", {"lock_data", "unlock_data"})
        # A step of the ledger takes some 50 microseconds, which no thread would make shorter.
        function.can_block_in(
            "perfect_async/_ledger/local.py",
            {"open_local", "look", "_take", "publish", "release", "aclose", "_ask", "_before_fork"},
        )
        # A client that asks for the measured lease reads it when it is made: some 100 bytes.
        function.can_block_in("perfect_async/_ledger/leases.py", {"read"})
        function.can_block_in(
            "perfect_async/_ledger/folder.py", {"make", "files", "guard", "forget"}
        )
        # A test that is stopped for its time prints where it was, inside the loop that hangs.
        function.can_block_in("pytest_timeout.py", {"dump_stacks"})
    blockbuster.activate()
    yield blockbuster
    blockbuster.deactivate()


@pytest.fixture(autouse=True, scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep every test, and each process that it starts, out of the user's own state folder."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFECT_ASYNC_STATE", str(folder))
        yield folder


@pytest.fixture
def no_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the working folder, as another program may do at any moment."""
    if sys.platform == "win32":
        pytest.skip("Windows removes no folder that is in use")
    folder = tmp_path / "working"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
