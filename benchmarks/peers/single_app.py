"""The peer of the backends benchmark: an ASGI app that does one statement, or one command, for each request.

It does so over the driver that the service uses, with the same durability, and checks and remembers nothing else: what
one would write first. ``PEER_DSN`` says on which server, ``PEER_CONNECTIONS`` over how many connections.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster

_CONNECTIONS = int(os.environ["PEER_CONNECTIONS"])


class _Peer(Protocol):
    async def open(self) -> None: ...
    async def get(self, key: str) -> bytes: ...
    async def put(self, key: str, value: bytes) -> None: ...
    async def close(self) -> None: ...


class _PostgreSQL:
    def __init__(self, dsn: str) -> None:
        self.pool: AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]] = AsyncConnectionPool(
            dsn, min_size=_CONNECTIONS, max_size=_CONNECTIONS, kwargs={"autocommit": True}, open=False
        )

    async def open(self) -> None:
        await self.pool.open(wait=True)
        async with self.pool.connection() as connection:
            await connection.execute("CREATE SCHEMA IF NOT EXISTS peer")
            await connection.execute(
                "CREATE TABLE IF NOT EXISTS peer.record (key text PRIMARY KEY, value bytea NOT NULL)"
            )

    async def get(self, key: str) -> bytes:
        async with self.pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT value FROM peer.record WHERE key = %b", (key,), prepare=True, binary=True
            )
            row = await cursor.fetchone()
        assert row is not None
        value: bytes = row[0]
        return value

    async def put(self, key: str, value: bytes) -> None:
        async with self.pool.connection() as connection:
            await connection.execute(
                "INSERT INTO peer.record VALUES (%b, %b) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, value),
                prepare=True,
            )

    async def close(self) -> None:
        await self.pool.close()


class _Redis:
    client: Any

    def __init__(self, dsn: str) -> None:
        if dsn.startswith("redis+cluster://"):
            addresses = [host.rsplit(":", 1) for host in dsn.partition("://")[2].split(",")]
            self.client = RedisCluster(
                startup_nodes=[ClusterNode(host, int(port)) for host, port in addresses], max_connections=_CONNECTIONS
            )
        else:
            self.client = Redis(connection_pool=BlockingConnectionPool.from_url(dsn, max_connections=_CONNECTIONS))

    async def open(self) -> None:
        await self.client.initialize()

    async def get(self, key: str) -> bytes:
        value: bytes = await self.client.get(f"peer:{key}")
        return value

    async def put(self, key: str, value: bytes) -> None:
        await self.client.set(f"peer:{key}", value)

    async def close(self) -> None:
        await self.client.aclose()


_PEERS: dict[str, Callable[[str], _Peer]] = {"postgresql": _PostgreSQL, "redis": _Redis}

_dsn = os.environ["PEER_DSN"]
_peer = _PEERS[_dsn.partition("://")[0].partition("+")[0]](_dsn)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """GET and PUT of ``/kv/<key>``."""
    if scope["type"] == "lifespan":
        await receive()
        await _peer.open()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await _peer.close()
        await send({"type": "lifespan.shutdown.complete"})
        return
    key = scope["path"].removeprefix("/kv/")
    if scope["method"] == "GET":
        value = await _peer.get(key)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(value))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": value})
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await _peer.put(key, body)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})
