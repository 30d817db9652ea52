"""Fixtures of the ledger's tests: a real Redis server."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.redis_server import RedisServer, installed

StartRedis = Callable[..., RedisServer]


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[StartRedis]:
    """Start servers, with lines of redis.conf as keywords; they end with the test.

    Without redis-server the test is skipped, but not on CI: `.ci/run` installs it.
    """
    program = installed()
    if program is None:
        why = "redis-server is not installed (Debian: apt-get install redis-server)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with ExitStack() as servers:
        yield lambda **settings: servers.enter_context(RedisServer(program, tmp_path, **settings))


@pytest.fixture
def redis_server(start_redis: StartRedis) -> RedisServer:
    """Return a server as it is after its installation."""
    return start_redis()
