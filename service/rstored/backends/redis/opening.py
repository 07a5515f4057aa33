"""How a store in Redis is opened: the DSN, the servers, and the record of the store itself."""

from __future__ import annotations

import re
import secrets
from typing import Final

from rstored.backends.abc import Kind, UnfitStorage
from rstored.backends.redis.calls import Call
from rstored.backends.redis.cluster import Cluster
from rstored.backends.redis.dsn import RedisDSN, parse_dsn
from rstored.backends.redis.failures import IS_REPLICA
from rstored.backends.redis.servers import Servers, SingleServer, facts_of
from rstored.problems import Problem, of_storage

LAYOUT: Final = 1
_BUCKETS_MAX: Final = 1024
_BUCKETS: Final = 1
_PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_VERSION_MIN: Final = (6, 2)

_FACTS: Final = (("INFO", "server"), ("INFO", "memory"), ("INFO", "replication"), ("CONFIG", "GET", "append*"))
# Policies under which Redis keeps keys without a time to live. No key of a store has one.
_KEEPING: Final = re.compile(r"noeviction|volatile-[a-z-]+")


def configured(dsn: str) -> tuple[Servers, bytes, int | None, bool]:
    """The servers, the prefix, the number of buckets if the DSN has one, and whether eviction is accepted."""
    parsed = parse_dsn(dsn, ("prefix", "buckets", "eviction"))
    servers, options = _open_servers(parsed), parsed.own
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


def registry_tag(prefix: bytes) -> bytes:
    return b"{%b}" % prefix


def layout_at(prefix: bytes) -> tuple[bytes, str]:
    """The key and field that hold the layout's version."""
    return registry_tag(prefix) + b":store", "layout"


async def claim(servers: Servers, prefix: bytes, wanted: int | None) -> tuple[int, bytes]:
    """Make the store if it does not exist. Returns its number of buckets and its id."""
    (key, layout_field), slot = layout_at(prefix), servers.slot(registry_tag(prefix))
    known, namespaces = await servers.exchange(
        [
            Call(slot, None, ("HEXISTS", key, "buckets")),
            Call(slot, None, ("EXISTS", b"%b:i:%d" % (registry_tag(prefix), Kind.NAMESPACE))),
        ]
    )
    if (known, namespaces, wanted) == (0, 1, None):
        # With another number of buckets, no old record would be found, and new ones would be written beside them.
        detail = "Redis has lost how many buckets the store has: give the number in the DSN, or restore a backup"
        raise Problem("backend-corrupt", detail)
    preset = wanted or _BUCKETS
    replies = await servers.exchange(
        [
            Call(slot, None, ("HSETNX", key, "buckets", preset)),
            Call(slot, None, ("HSETNX", key, layout_field, LAYOUT)),
            Call(slot, None, ("HSETNX", key, "h", secrets.token_bytes(8))),
            Call(slot, None, ("HMGET", key, "buckets", layout_field, "h")),
        ]
    )
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    *numbers, store_id = replies[-1]
    buckets, layout = map(stored_number, numbers)
    if layout > LAYOUT:
        raise Problem(
            "backend-unavailable",
            f"the store has layout {layout}, made by a newer rstored; this rstored knows layouts up to {LAYOUT}: "
            "run the newer rstored",
        )
    if wanted is not None and wanted != buckets:
        detail = f"the store has {buckets} buckets, which cannot change: give none in the DSN, or another prefix"
        raise Problem("backend-unavailable", detail)
    return buckets, store_id


@of_storage("the record of the store")
def stored_number(field: bytes) -> int:
    return int(field)


async def description_of(servers: Servers, *, accepts_eviction: bool = True) -> dict[str, str]:
    """What ``/`` says about the servers, as they are now. Raises Problem if one of them is not fit for a store."""
    described: dict[str, str] = {}
    settings = set()
    policies = set()
    for *infos, config in await servers.on_every_server(*_FACTS):
        facts: dict[str, str] = {}
        for info in infos:
            facts |= facts_of(info)
        if facts.get("redis_mode") == "cluster" and not servers.cluster:
            detail = "the server is part of a cluster: begin the DSN with redis+cluster://"
            raise Problem("backend-unavailable", detail)
        if facts.get("role") == "slave" and not servers.cluster:
            raise UnfitStorage(IS_REPLICA)
        version = facts.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2]) < _VERSION_MIN:
            raise Problem("backend-unavailable", f"the server is Redis {version}; 6.2 or later is needed")
        name = "valkey" if "valkey_version" in facts else "redis"
        described["name"] = f"{name} cluster" if servers.cluster else name
        described["version"] = facts.get("valkey_version", version)
        # If CONFIG is refused, this stays empty. INFO still tells the policy.
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
            f"Redis may evict keys of the store when its memory is full (maxmemory-policy {evicting[0]}), even "
            "the record that closes the store: set maxmemory-policy noeviction"
        )
        if not accepts_eviction:
            raise Problem("backend-unavailable", f"{eviction}, or accept it with eviction=accept in the DSN")
        warning = f"{eviction}; {warning}" if warning else eviction
    if warning:
        described["warning"] = warning
    return described


def _durability(appendonly: str, appendfsync: str) -> tuple[str, str | None]:
    """The sentence that says what an acknowledgement means, and a warning if it means less than it should."""
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
    return meaning, f"Redis does not say how durable it is (CONFIG is refused): {remedy}"


def _open_servers(dsn: RedisDSN) -> Servers:
    """The servers that a DSN names. They are not connected yet. One address of a cluster that answers is enough."""
    if dsn.cluster:
        return Cluster(dsn)
    return SingleServer(dsn)
