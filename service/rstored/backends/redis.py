"""The Redis backend: one server, or a Redis Cluster, and the same with Valkey.

**The model.** Namespaces are records of the *registry*, whose keys all carry the tag ``{prefix}``. A namespace has a
random id that is never used again, and ``buckets`` buckets. A record lives in the bucket that the CRC16 of its key
picks, or of the ``{part}`` of it in braces (Redis Cluster's own rule, so users can keep keys together). The tag of a
bucket is ``{prefix/id/bucket}``; as all its keys carry it, they lie in one slot. T is the registry's or a bucket's tag:

    T:h:<kind>:<key>          hash: ``h`` the head (version 8 bytes, expiry 8 bytes, meta), ``v`` the value if it is not
                              empty, ``l`` the lanes that were ever used (``0,2``); of a namespace ``i``: its id
    T:i:<kind>                sorted set of keys, all of score 0: listed by ZRANGEBYLEX, counted by ZCARD
    T:x:<kind>                sorted set of expiry ‖ key, all of score 0
    T:s:<kind>:<lane>:<key>   sorted set of the rows' ``sort``, all of score 0
    T:b:<kind>:<lane>:<key>   sorted set of the rows' ``by``, all of score 0
    T:d:<kind>:<lane>:<key>   hash of the rows: ``s``+sort → value, ``y``+sort → by, ``b``+by → sort
    T:ns                      hash in each bucket: ``h`` a copy of the namespace's head, ``n`` its name. It is there as
                              long as the namespace lives: who knows an id finds here whether it is still the id.

    {prefix}:store            hash: the version of this layout, the number of buckets, and ``h``: the store's id, of 8
                              random bytes; all are fixed by whoever came first
    {prefix}:trash            set of ids whose buckets are still to be erased
    {prefix}:due              sorted set of buckets (id/bucket) that have records with an expiry, by a time in ms before
                              which none of them expires
    {prefix}:pending          sorted set of ids that are being made (cluster), by when in seconds
    {prefix}:unsettled        set of names whose new head may not yet be in every bucket (cluster)

Order comes from members at one score, never from scores: those are doubles and would confuse int64 beyond 2^53.

**Reading.** All reads of a batch that concern one slot (on a single server: all of it) are one call of ``read.lua``,
or a few, so a query is one snapshot. Only a query over several slots of a cluster is not.

**Writing.** Optimistic: heads are read with their versions, plans run in step, and ``commit.lua`` writes an update if
no head has changed. An update that lost is started again, its neighbours are not. Plans after the first on one record
see what those before them are going to write, so a batch costs two round trips (and one for each step of reading)
however often it touches a record. Versions start at random and count, hence none is seen twice.

In a cluster only what lies in one slot can be atomic: an update of records in several buckets is refused with
``batch-not-atomic``, and a namespace is created, changed or deleted in steps: what others decide by comes last on the
way in and first on the way out, and :meth:`RedisBackend.purge` completes what a crash cut short.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

from rstored.backends.abc import Backend, Capabilities, Kind, Query, SchemaVersions, UnfitStorage, Update
from rstored.backends.clock import Clock
from rstored.backends.redis_dsn import parse_dsn
from rstored.backends.redis_servers import (
    FAILURES,
    IS_REPLICA,
    Call,
    Script,
    Servers,
    facts_of,
    open_servers,
    translated,
    unusable,
)
from rstored.backends.redis_store import Bucket, Store, due_member, packed_update
from rstored.backends.redis_updates import Attempt
from rstored.problems import Problem

__all__ = ["RedisBackend"]

_LAYOUT: Final = 1
_BUCKETS_MAX: Final = 1024
_BUCKETS: Final = 1
_PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_VERSION_MIN: Final = (6, 2)

_PURGE: Final = Script.load("purge.lua")

_FACTS: Final = (("INFO", "server"), ("INFO", "memory"), ("INFO", "replication"), ("CONFIG", "GET", "append*"))
# Policies under which Redis keeps what has no time to live, and no key of a store has one.
_KEEPING: Final = re.compile(r"noeviction|volatile-[a-z-]+")

_PING_SECONDS: Final = 2.0
_UPDATE_SECONDS: Final = 10.0
_RESOLVES_MAX: Final = 5
_PURGE_RECORDS_MAX: Final = 1_000
_PENDING_SECONDS: Final = 600


class RedisBackend(Backend):
    """A store under one prefix of a Redis server or Redis Cluster.

    The DSN takes ``prefix`` (``rstore``), ``buckets`` (1; a power of two; fixed when the store is first opened), and
    ``eviction=accept``, without which a server that may evict the store's keys is refused; other
    parameters are of the connection, see :mod:`rstored.backends.redis_dsn`.
    """

    def __init__(self, store: Store, description: dict[str, str]) -> None:
        servers = store.servers
        self.clock = store.clock
        self.capabilities = Capabilities(atomic_batches=not servers.cluster or store.buckets == 1)
        self._servers = servers
        self._store = store
        self._description = description
        self._closed = False

    @classmethod
    async def open(cls, dsn: str) -> RedisBackend:
        """Connect, and create the store or see that it is one of ours."""
        servers, prefix, wanted, accepts_eviction = _parsed(dsn)
        try:
            description = await _described(servers, accepts_eviction=accepts_eviction)
            buckets, store_id = await _claim(servers, prefix, wanted)
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
        """The versions of the layout that ``redis.py`` draws."""
        servers, prefix, _, _ = _parsed(dsn)
        try:
            await _described(servers)
            (layout,) = await servers.exchange([Call(servers.slot(_tag(prefix)), None, ("HGET", *_layout_at(prefix)))])
            if isinstance(layout, Exception):
                raise layout
        except Exception as error:
            raise unusable(error) from error
        finally:
            await servers.close()
        return SchemaVersions(int(layout or 0), _LAYOUT)

    async def close(self) -> None:
        self._closed = True
        await self._servers.close()

    async def ping(self) -> None:
        self._check_open()
        try:
            async with asyncio.timeout(_PING_SECONDS):
                self._description = await _described(self._servers)
                await self._store.look()
        except UnfitStorage:
            # A new connection may be to another server, where the store is.
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
            waiting = await self._store.read(queries, waiting, answers, heal=attempt > 1)
            if not waiting:
                return answers
        for position in waiting:
            answers[position] = Problem("backend-unavailable", "the namespace keeps being replaced: try again")
        return answers

    async def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        self._check_open()
        results: list[Any] = [None] * len(updates)
        waiting: list[int] = list(range(len(updates)))
        deadline = time.monotonic() + _UPDATE_SECONDS
        for tries in itertools.count():
            waiting = await Attempt(self._store, updates, waiting, results).run(heal=tries > 1)
            if not waiting:
                break
            if time.monotonic() > deadline:
                for position in waiting:
                    detail = "other processes keep writing the same records: try again"
                    results[position] = Problem("backend-unavailable", detail)
                break
            await asyncio.sleep(random.random() * min(0.001 * 2**tries, 0.05))  # noqa: S311 - not a secret
        return results

    async def purge(self) -> bool:
        self._check_open()
        store = self._store
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


# --- opening -----------------------------------------------------------------------------------------------


def _parsed(dsn: str) -> tuple[Servers, bytes, int | None, bool]:
    """The servers, the prefix, the number of buckets if the DSN says one, and whether eviction is accepted."""
    parsed = parse_dsn(dsn, ("prefix", "buckets", "eviction"))
    servers, options = open_servers(parsed), parsed.own
    prefix, text, eviction = options.get("prefix", "rstore"), options.get("buckets"), options.get("eviction")
    if _PREFIX.match(prefix) is None:
        detail = "the DSN's prefix is 1 to 64 characters out of A-Z, a-z, 0-9, '.', '_', ':' and '-'"
        raise Problem("backend-unavailable", detail)
    if eviction not in (None, "accept"):
        raise Problem("backend-unavailable", "the DSN's eviction can only be accept; leave it out to refuse eviction")
    if text is None:
        return servers, prefix.encode(), None, eviction is not None
    buckets = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    if not 1 <= buckets <= _BUCKETS_MAX or buckets & (buckets - 1):
        raise Problem("backend-unavailable", f"the DSN's buckets is a power of two from 1 to {_BUCKETS_MAX}")
    return servers, prefix.encode(), buckets, eviction is not None


def _purge_keys(store: Store, bucket: Bucket) -> list[bytes]:
    """The keys of a bucket that tell whether there is still something in it (cluster)."""
    if not store.servers.cluster:
        return []
    return [bucket.ns_key, *(b"%b:%b:%d" % (bucket.tag, part, kind) for part in (b"i", b"x") for kind in Kind if kind)]


def _tag(prefix: bytes) -> bytes:
    return b"{%b}" % prefix


def _layout_at(prefix: bytes) -> tuple[bytes, str]:
    """The key and field that hold the layout's version."""
    return _tag(prefix) + b":store", "layout"


async def _claim(servers: Servers, prefix: bytes, wanted: int | None) -> tuple[int, bytes]:
    """Make the store if it is not there; returns its number of buckets and its id."""
    (key, layout_field), slot = _layout_at(prefix), servers.slot(_tag(prefix))
    known, namespaces = await servers.exchange(
        [
            Call(slot, None, ("HEXISTS", key, "buckets")),
            Call(slot, None, ("EXISTS", b"%b:i:%d" % (_tag(prefix), Kind.NAMESPACE))),
        ]
    )
    if (known, namespaces, wanted) == (0, 1, None):
        # With another number of them, nothing of what is there would be found, and what is written would lie beside it.
        detail = "Redis has lost the record of how many buckets the store has: say so in the DSN, or restore a backup"
        raise Problem("backend-corrupt", detail)
    preset = wanted or _BUCKETS
    replies = await servers.exchange(
        [
            Call(slot, None, ("HSETNX", key, "buckets", preset)),
            Call(slot, None, ("HSETNX", key, layout_field, _LAYOUT)),
            Call(slot, None, ("HSETNX", key, "h", secrets.token_bytes(8))),
            Call(slot, None, ("HMGET", key, "buckets", layout_field, "h")),
        ]
    )
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    *numbers, store_id = replies[-1]
    buckets, layout = map(int, numbers)
    if layout > _LAYOUT:
        raise Problem(
            "backend-unavailable",
            f"the store has layout {layout}, made by a newer rstored; this one knows layouts up to {_LAYOUT}: "
            "run that newer one",
        )
    if wanted is not None and wanted != buckets:
        detail = f"the store has {buckets} buckets for good: say so in the DSN, leave it out, or use another prefix"
        raise Problem("backend-unavailable", detail)
    return buckets, store_id


async def _described(servers: Servers, *, accepts_eviction: bool = True) -> dict[str, str]:
    """What ``/`` says, read from the live servers. Raises Problem if one of them is not fit for a store."""
    described: dict[str, str] = {}
    settings = set()
    policies = set()
    for *infos, config in await servers.on_every_server(*_FACTS):
        facts: dict[str, str] = {}
        for info in infos:
            facts |= facts_of(info)
        if facts.get("redis_mode") == "cluster" and not servers.cluster:
            detail = "the server is part of a cluster: the DSN begins with redis+cluster://"
            raise Problem("backend-unavailable", detail)
        if facts.get("role") == "slave" and not servers.cluster:
            raise UnfitStorage(IS_REPLICA)
        version = facts.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2]) < _VERSION_MIN:
            raise Problem("backend-unavailable", f"the server is Redis {version}; 6.2 or later is needed")
        name = "valkey" if "valkey_version" in facts else "redis"
        described["name"] = f"{name} cluster" if servers.cluster else name
        described["version"] = facts.get("valkey_version", version)
        # CONFIG may be refused; then this stays empty. INFO tells the policy all the same.
        known = [] if isinstance(config, Exception) else [part.decode() for part in config]
        values = dict(zip(known[::2], known[1::2], strict=True))
        settings.add((values.get("appendonly", "unknown"), values.get("appendfsync", "unknown")))
        policies.add(facts.get("maxmemory_policy", "unknown"))
    # A cluster is as durable as its weakest master.
    weakest = min(settings, key=lambda pair: (pair[0] != "no", pair[0] == "yes", pair[1] == "always"))
    described["durability"], warning = _durability(*weakest)
    if servers.cluster:
        described["durability"] += (
            "; it reaches the replicas a moment later, so a failover may lose the last writes of the master that failed"
        )
    evicting = sorted(policy for policy in policies if _KEEPING.fullmatch(policy) is None)
    if evicting:
        eviction = (
            f"Redis may evict keys of the store when its memory is full (maxmemory-policy {evicting[0]}), the record "
            "by which the store is closed among them: set maxmemory-policy noeviction"
        )
        if not accepts_eviction:
            raise Problem("backend-unavailable", f"{eviction}, or accept it by eviction=accept in the DSN")
        warning = f"{eviction}; {warning}" if warning else eviction
    if warning:
        described["warning"] = warning
    return described


def _durability(appendonly: str, appendfsync: str) -> tuple[str, str | None]:
    """The sentence on what an acknowledgement means, and a warning where that is less than it should be."""
    said = f"(appendonly={appendonly}, appendfsync={appendfsync})"
    if appendonly == "yes" and appendfsync == "always":
        return f"an acknowledged write is synced to Redis's append-only file {said}: it survives a crash", None
    remedy = "set appendonly yes and appendfsync always"
    if appendonly == "yes":
        meaning = f"an acknowledged write is in Redis's append-only file, but not yet synced {said}"
        return f"{meaning}: a crash of the machine may lose about the last second", f"Redis may lose writes: {remedy}"
    if appendonly == "no":
        meaning = f"an acknowledged write is in Redis's memory {said}: a crash or restart may lose it"
        return meaning, f"Redis keeps acknowledged writes in memory only: {remedy}"
    meaning = "an acknowledged write is in Redis's memory; the server does not say whether it keeps an append-only file"
    return meaning, f"Redis does not tell how durable it is (CONFIG is refused): {remedy}"
