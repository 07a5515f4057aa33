"""The Redis backend: one server, or a Redis Cluster, and the same with Valkey."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any, Final

from rstored.backends.abc import Backend, Capabilities, Kind, Query, SchemaVersions, UnfitStorage, Update
from rstored.backends.clock import Clock
from rstored.backends.executor import RACED, pause
from rstored.backends.redis.calls import Call, Script
from rstored.backends.redis.commits import packed_update
from rstored.backends.redis.failures import FAILURES, translated, unusable
from rstored.backends.redis.layout import Bucket, due_member
from rstored.backends.redis.opening import (
    LAYOUT,
    claim,
    configured,
    description_of,
    layout_at,
    registry_tag,
    stored_number,
)
from rstored.backends.redis.reader import Reader
from rstored.backends.redis.store import Store
from rstored.backends.redis.writer import Attempt
from rstored.problems import Problem

_PURGE: Final = Script.load("purge.lua")

_PING_SECONDS: Final = 2.0
_UPDATE_SECONDS: Final = 10.0
_PAUSE_SECONDS_MAX: Final = 0.05
_RESOLVES_MAX: Final = 5
_PURGE_RECORDS_MAX: Final = 1_000
_PENDING_SECONDS: Final = 600


class RedisBackend(Backend):
    """A store under one prefix of a Redis server or Redis Cluster.

    The DSN has three parameters for the store. ``prefix`` is ``rstore`` by default. ``buckets`` is a power of two, 1 by
    default, and fixed when the store is first opened. Without ``eviction=accept``, a server is refused if it may evict
    the store's keys. Other parameters are for the connection, see :mod:`rstored.backends.redis.dsn`.
    """

    def __init__(self, store: Store, description: dict[str, str]) -> None:
        servers = store.servers
        self.clock = store.clock
        self.capabilities = Capabilities(atomic_batches=not servers.cluster or store.buckets == 1)
        self._servers = servers
        self.store = store
        self._reader = Reader(store)
        self._description = description
        self._closed = False

    @classmethod
    async def open(cls, dsn: str) -> RedisBackend:
        """Connect, and create the store, or check that it is one of ours."""
        servers, prefix, wanted, accepts_eviction = configured(dsn)
        try:
            description = await description_of(servers, accepts_eviction=accepts_eviction)
            buckets, store_id = await claim(servers, prefix, wanted)
            store = Store(servers, prefix, buckets, store_id, Clock())
            await store.look()
        except Exception as error:
            await servers.close()
            raise unusable(error) from error
        except BaseException:
            await servers.close()
            raise
        return cls(store, description)

    @classmethod
    async def schema_versions(cls, dsn: str) -> SchemaVersions:
        """The versions of the layout that ``layout.py`` describes."""
        servers, prefix, _, _ = configured(dsn)
        try:
            await description_of(servers)
            (layout,) = await servers.exchange(
                [Call(servers.slot(registry_tag(prefix)), None, ("HGET", *layout_at(prefix)))]
            )
            if isinstance(layout, Exception):
                raise layout
        except Exception as error:
            raise unusable(error) from error
        finally:
            await servers.close()
        return SchemaVersions(0 if layout is None else stored_number(layout), LAYOUT)

    async def close(self) -> None:
        self._closed = True
        await self._servers.close()

    async def ping(self) -> None:
        self._check_open()
        try:
            async with asyncio.timeout(_PING_SECONDS):
                self._description = await description_of(self._servers)
                await self.store.look()
        except UnfitStorage:
            # A new connection may lead to another server, which has the store.
            await self._servers.close()
            raise
        except FAILURES as error:
            raise translated(error) from error

    def describe(self) -> dict[str, str]:
        return self._description

    async def read(self, queries: Sequence[Query]) -> list[list[Any] | Problem]:
        self._check_open()
        answers: list[Any] = [None] * len(queries)
        waiting: Sequence[int] = range(len(queries))
        for attempt in range(_RESOLVES_MAX):
            waiting = await self._reader.read(queries, waiting, answers, heal=attempt > 1)
            if not waiting:
                return answers
        for position in waiting:
            answers[position] = Problem("backend-unavailable", "others keep replacing the namespace: try again")
        return answers

    async def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        self._check_open()
        results: list[Any] = [None] * len(updates)
        waiting: list[int] = list(range(len(updates)))
        deadline = time.monotonic() + _UPDATE_SECONDS
        for tries in itertools.count():
            waiting = await Attempt(self._reader, updates, waiting, results).run(heal=tries > 1)
            if not waiting:
                break
            if time.monotonic() > deadline:
                for position in waiting:
                    results[position] = Problem("backend-unavailable", RACED)
                break
            await pause(tries, _PAUSE_SECONDS_MAX)
        return results

    async def purge(self) -> bool:
        self._check_open()
        store = self.store
        registry, slot = store.registry.tag, store.registry.slot
        stale = store.clock.earlier() // 1000 - _PENDING_SECONDS
        unsettled, pending, trash = await store.exchange(
            [
                Call(slot, None, ("SRANDMEMBER", registry + b":unsettled", 10)),
                Call(slot, None, ("ZRANGEBYSCORE", registry + b":pending", "-inf", stale, "LIMIT", 0, 10)),
                Call(slot, None, ("SRANDMEMBER", registry + b":trash")),
            ]
        )
        for name in unsettled:
            await store.settle(name.decode())
        for owner_id in pending:
            moves = ("a", registry + b":trash", owner_id, "Z", registry + b":pending", owner_id)
            await store.exchange([store.commit_call(store.registry, [packed_update((), (), moves)])])
        if trash is None:
            return bool(unsettled or pending)
        owner = store.owner("", trash)
        each = max(1, _PURGE_RECORDS_MAX // len(owner.buckets))
        erased = await store.exchange(
            [
                Call(bucket.slot, _PURGE, (bucket.tag, each), _purge_keys(store, bucket), once=True)
                for bucket in owner.buckets
            ]
        )
        if not any(erased):
            members = [due_member(bucket) for bucket in owner.buckets]
            await store.exchange(
                [
                    Call(slot, None, ("ZREM", registry + b":due", *members)),
                    Call(slot, None, ("SREM", registry + b":trash", trash)),
                ]
            )
        return True

    def _check_open(self) -> None:
        if self._closed:
            raise Problem("backend-unavailable", "the connection to Redis is closed")


def _purge_keys(store: Store, bucket: Bucket) -> list[bytes]:
    """The keys of a bucket that show whether something is still in it (cluster)."""
    if not store.servers.cluster:
        return []
    return [bucket.ns_key, *(b"%b:%b:%d" % (bucket.tag, part, kind) for part in (b"i", b"x") for kind in Kind if kind)]
