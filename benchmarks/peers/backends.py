"""The servers that rstore can keep its data on, throwaway ones of the tests: they end with the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests import servers


class Backend(NamedTuple):
    """A server, started when it is first asked for; ``missing`` says why there can be none, or None."""

    name: str
    missing: Callable[[], str | None]
    server: Callable[[], servers.PostgreSQLServer | servers.RedisServer | servers.RedisCluster]

    def fresh_dsn(self) -> str:
        """An empty store for rstored."""
        return servers.fresh_dsn(self.server())

    def dsn(self) -> str:
        """The server itself, for peers."""
        return self.server().dsn


POSTGRESQL = Backend("PostgreSQL", servers.missing_postgresql, servers.postgresql_server)
REDIS = Backend("Redis", servers.missing_redis, servers.redis_server)
REDIS_CLUSTER = Backend("Redis Cluster", servers.missing_redis, servers.redis_cluster)
