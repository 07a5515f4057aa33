"""Redis and Valkey: one server, or a cluster."""

from rstored.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
