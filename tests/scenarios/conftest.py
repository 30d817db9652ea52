"""Fixtures of the scenarios: a real Redis server."""

from tests.ledger.conftest import redis_server, start_redis

__all__ = ["redis_server", "start_redis"]
