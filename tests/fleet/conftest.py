"""Fixtures of the fleet's tests: a real Redis server."""

from tests.ledger.conftest import redis_server, start_redis

__all__ = ["redis_server", "start_redis"]
