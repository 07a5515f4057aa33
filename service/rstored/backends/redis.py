"""The Redis backend: one server, or a Redis Cluster, and the same with Valkey.

**The model.** Namespaces are records of the *registry*, whose keys all carry the tag ``{prefix}``. Every namespace has a
random id that is never used again, and ``buckets`` buckets; a record lives in the bucket that the CRC16 of its key, or of
the ``{part}`` of it in braces, picks (Redis Cluster's own rule, so users can keep keys together). The tag of a bucket is
``{prefix/id/bucket}``; as all its keys carry it, they lie in one slot. With T a tag, the registry's or a bucket's:

    T:h:<kind>:<key>          hash: ``h`` the head (version 8 bytes, expiry 8 bytes, meta), ``v`` the value if it is not
                              empty, ``l<lane>`` for each lane that was ever used; of a namespace ``i``: its id
    T:i:<kind>                sorted set of keys, all of score 0: listed by ZRANGEBYLEX, counted by ZCARD
    T:x:<kind>                sorted set of expiry ‖ key, all of score 0
    T:s:<kind>:<lane>:<key>   sorted set of the rows' ``sort``, all of score 0
    T:b:<kind>:<lane>:<key>   sorted set of the rows' ``by``, all of score 0
    T:d:<kind>:<lane>:<key>   hash of the rows: ``s``+sort → value, ``y``+sort → by, ``b``+by → sort
    T:ns                      hash in each bucket: ``h`` a copy of the namespace's head, ``n`` its name. There as long as
                              the namespace lives: a process that knows an id finds here whether it is still the id.

    {prefix}:store            hash: the version of this layout and the number of buckets, fixed by whoever came first
    {prefix}:trash            set of ids whose buckets are still to be erased
    {prefix}:due              sorted set of buckets (id/bucket) that have records with an expiry, by a time in ms before
                              which none of them expires
    {prefix}:pending          sorted set of ids that are being made (cluster), by when in seconds
    {prefix}:unsettled        set of names whose new head may not yet be in every bucket (cluster)

Order comes from members at one score, never from scores: those are doubles and would confuse int64 beyond 2^53.

**Reading.** All reads of a batch that concern one slot (on a single server: all of it) are one call of ``read.lua``, so a
query is one snapshot. Only a query over several slots of a cluster is not.

**Writing.** Optimistic: heads are read with their versions, plans run in step, and ``commit.lua`` writes an update if
no head has changed. An update that lost is started again, its neighbours are not. Plans after the first on one record
see what those before them are going to write, so a batch costs two round trips (and one for each step of reading)
however often it touches a record. Versions are random, hence never seen twice.

In a cluster only what lies in one slot can be atomic: an update of records in several buckets is refused with
``batch-not-atomic``, and a namespace is created, changed or deleted in steps: what others decide by comes last on the
way in and first on the way out, and :meth:`RedisBackend.purge` completes what a crash cut short.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import re
import secrets
import struct
import time
from binascii import crc_hqx
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from redis.exceptions import AuthenticationError, NoPermissionError, OutOfMemoryError, ResponseError

from rstored.backends.abc import (
    Backend,
    Capabilities,
    Commit,
    CountRead,
    DeleteRecord,
    DeleteRow,
    DeleteRows,
    ExpiredRead,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    PutHead,
    PutRow,
    Query,
    Read,
    Row,
    RowOrder,
    RowScan,
    Slice,
    Update,
    Write,
    namespace_place,
)
from rstored.backends.redis_servers import FAILURES, Argument, Call, Script, Servers, open_servers
from rstored.backends.waves import waves
from rstored.problems import Problem

__all__ = ["RedisBackend"]

_LAYOUT: Final = 1
_BUCKETS_MAX: Final = 1024
_CLUSTER_BUCKETS: Final = 64
_PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_VERSION_MIN: Final = (6, 2)

_READ: Final = Script.load("read.lua")
_COMMIT: Final = Script.load("commit.lua")
_PURGE: Final = Script.load("purge.lua")

_PING_SECONDS: Final = 2.0
_UPDATE_SECONDS: Final = 10.0
_RESOLVES_MAX: Final = 5
_NAMESPACES_KNOWN_MAX: Final = 10_000
_READS_PER_CALL: Final = 64
_UPDATES_PER_CALL: Final = 128
_CALL_BYTES_MAX: Final = 16 * 2**20
_PURGE_RECORDS_MAX: Final = 1_000
_DUE_BUCKETS_MAX: Final = 1_000
_DUE_RECHECK_MS: Final = 600_000
_PENDING_SECONDS: Final = 600

_NEVER: Final = bytes(8)
_ABSENT: Final = b""
_SIGN: Final = 2**63
_U64: Final = struct.Struct(">Q")
_EXACT: Final = 2**53

Ref: TypeAlias = tuple[int, int]
"""Where an answer is found: the number of the call, and of the answer in it."""

Planning: TypeAlias = Generator[Query, list[Any], Commit[Any]]


class _Bucket:
    """A part of a namespace (or the registry, which has no ``ns_key``) that lies in one slot."""

    __slots__ = ("ns_key", "slot", "tag")

    def __init__(self, tag: bytes, slot: int, ns_key: bytes = b"") -> None:
        self.tag = tag
        self.slot = slot
        self.ns_key = ns_key

    def record_key(self, kind: int, key: bytes) -> bytes:
        return b"%b:h:%d:%b" % (self.tag, kind, key)


class _Owner:
    """A namespace that exists, or the registry, which owns the namespaces."""

    __slots__ = ("buckets", "id", "name")

    def __init__(self, name: str, owner_id: bytes, buckets: list[_Bucket]) -> None:
        self.name = name
        self.id = owner_id
        self.buckets = buckets

    def bucket(self, key: bytes) -> _Bucket:
        buckets = self.buckets
        return buckets[0] if len(buckets) == 1 else buckets[_hash(key) & (len(buckets) - 1)]


def _hash(key: bytes) -> int:
    """The CRC16 of the key, or of the first ``{part}`` in braces that is not empty."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0)


class RedisBackend(Backend):
    """A store under one prefix of a Redis server or Redis Cluster.

    The DSN takes ``prefix`` (``rstore``) and ``buckets`` (1, in a cluster 64; a power of two; fixed when the store is
    first opened); other parameters are redis-py's.
    """

    def __init__(self, servers: Servers, prefix: bytes, buckets: int, description: dict[str, str]) -> None:
        self.capabilities = Capabilities(atomic_batches=not servers.cluster or buckets == 1)
        self.servers = servers
        self.prefix = prefix
        self.registry = _Bucket(b"{%b}" % prefix, servers.slot(b"{%b}" % prefix))
        self._buckets = buckets
        self._description = description
        self._closed = False
        self.root = _Owner("", b"", [self.registry])
        self._known: dict[str, _Owner] = {"": self.root}
        # The time before which nothing in a bucket expires, as this process last told `due`.
        self._due: dict[bytes, int] = {}
        self._versions = itertools.count(secrets.randbits(64))

    @classmethod
    async def open(cls, dsn: str) -> RedisBackend:
        """Connect, and create the store or see that it is one of ours."""
        servers, options = open_servers(dsn, "prefix", "buckets")
        prefix, wanted = options.get("prefix", "rstore"), options.get("buckets")
        try:
            if _PREFIX.match(prefix) is None:
                detail = "the DSN's prefix is 1 to 64 characters out of A-Z, a-z, 0-9, '.', '_', ':' and '-'"
                raise Problem("backend-unavailable", detail)
            description = await _described(servers)
            buckets = await _claim(servers, prefix.encode(), _bucket_count(wanted))
        except FAILURES as error:
            await servers.close()
            raise _translated(error) from error
        except BaseException:
            await servers.close()
            raise
        return cls(servers, prefix.encode(), buckets, description)

    async def close(self) -> None:
        self._closed = True
        await self.servers.close()

    async def ping(self) -> None:
        self._check_open()
        try:
            async with asyncio.timeout(_PING_SECONDS):
                self._description = await _described(self.servers)
        except FAILURES as error:
            raise _translated(error) from error

    def describe(self) -> dict[str, str]:
        return self._description

    async def read(self, queries: Sequence[Query]) -> list[list[Any] | Problem]:
        self._check_open()
        answers: list[Any] = [None] * len(queries)
        waiting: Sequence[int] = range(len(queries))
        for attempt in range(_RESOLVES_MAX):
            waiting = await self._read(queries, waiting, answers, heal=attempt > 1)
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
            attempt = _Attempt(self, updates, waiting, results)
            waiting = await attempt.run(heal=tries > 1)
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
        registry, slot = self.registry.tag, self.registry.slot
        stale = f"{time.time() - _PENDING_SECONDS:.0f}"
        unsettled, pending, trash = await self.exchange(
            [
                Call(slot, None, ("SRANDMEMBER", registry + b":unsettled", 10)),
                Call(slot, None, ("ZRANGEBYSCORE", registry + b":pending", "-inf", stale, "LIMIT", 0, 10)),
                Call(slot, None, ("SRANDMEMBER", registry + b":trash")),
            ]
        )
        for name in unsettled:
            await self.settle(name.decode())
        for owner_id in pending:
            moves = ("a", registry + b":trash", owner_id, "Z", registry + b":pending", owner_id)
            await self.exchange([_commit_call(self.registry, [_section((), (), moves)])])
        if trash is None:
            return bool(unsettled or pending)
        owner = self.owner("", trash)
        each = max(1, _PURGE_RECORDS_MAX // len(owner.buckets))
        erased = await self.exchange(
            [Call(bucket.slot, _PURGE, (bucket.tag, bucket.tag, each), once=True) for bucket in owner.buckets]
        )
        if not any(erased):
            members = [_due_member(bucket) for bucket in owner.buckets]
            await self.exchange(
                [
                    Call(slot, None, ("ZREM", registry + b":due", *members)),
                    Call(slot, None, ("SREM", registry + b":trash", trash)),
                ]
            )
        return True

    # --- namespaces ----------------------------------------------------------------------------------------

    def owner(self, name: str, owner_id: bytes) -> _Owner:
        """The namespace with this id."""
        buckets = []
        for number in range(self._buckets):
            tag = b"{%b/%b/%d}" % (self.prefix, owner_id, number)
            buckets.append(_Bucket(tag, self.servers.slot(tag), tag + b":ns"))
        return _Owner(name, owner_id, buckets)

    def bucket_number(self, key: str) -> int:
        return 0 if self._buckets == 1 else _hash(key.encode()) & (self._buckets - 1)

    def know(self, owner: _Owner) -> None:
        """Remember where a namespace is."""
        if len(self._known) > _NAMESPACES_KNOWN_MAX:
            self._known = {"": self.root}
        self._known[owner.name] = owner

    def forget(self, name: str) -> None:
        """Look the namespace up again before it is used again."""
        if name:
            self._known.pop(name, None)

    async def owners(self, names: Iterable[str]) -> dict[str, _Owner | Problem | None]:
        """The namespaces of these names; None for one that does not exist, a problem for one that is not found out."""
        found: dict[str, _Owner | Problem | None] = {}
        asked: dict[str, Ref] = {}
        reading = _Reading()
        for name in names:
            owner = self._known.get(name)
            if owner is not None:
                found[name] = owner
            elif name not in asked:
                asked[name] = reading.ask(self.registry, "i", self.registry.record_key(0, name.encode()))
        if not asked:
            return found
        replies = await self.servers.exchange(reading.calls())
        for name, (call, number) in asked.items():
            reply = replies[call]
            if isinstance(reply, Exception):
                found[name] = _problem(reply)
                continue
            head, owner_id = reply[number]
            if head is None:
                found[name] = None
            else:
                found[name] = owner = self.owner(name, owner_id)
                self.know(owner)
        return found

    async def heal(self, name: str) -> None:
        """Give a namespace's buckets back the copies of its head that a failover of the cluster lost."""
        owner = (await self.owners([name]))[name]
        if not isinstance(owner, _Owner):
            return
        for restoring in (True, False):
            reading = _Reading()
            call, number = reading.ask(self.registry, "i", self.registry.record_key(0, name.encode()))
            replies = await self.exchange(reading.calls())
            head, owner_id = replies[call][number]
            alive = head is not None and owner_id == owner.id
            if restoring and alive:
                await self.exchange(
                    _commit_call(bucket, [_section([(bucket.ns_key, _ABSENT)], (), _new_copy(bucket, head, name))])
                    for bucket in owner.buckets
                )
            elif not alive:
                # It was deleted meanwhile.
                await self.exchange(
                    _commit_call(bucket, [_section((), (), _no_copy(bucket))]) for bucket in owner.buckets
                )
                self.forget(name)
                return

    async def settle(self, name: str) -> None:
        """See that every bucket of a namespace has its present head (cluster)."""
        record_key = self.registry.record_key(0, name.encode())
        reading = _Reading()
        call, number = reading.ask(self.registry, "i", record_key)
        replies = await self.exchange(reading.calls())
        head, owner_id = replies[call][number]
        if head is not None:
            owner = self.owner(name, owner_id)
            await self.exchange(
                _commit_call(bucket, [_section((), (), ("g", bucket.ns_key, head))]) for bucket in owner.buckets
            )
        settled = ("A", self.registry.tag + b":unsettled", name)
        version = head[:8] if head is not None else _ABSENT
        await self.exchange([_commit_call(self.registry, [_section([(record_key, version)], (), settled)])])

    # --- expiry --------------------------------------------------------------------------------------------

    async def tell_due(self, due: Mapping[bytes, int]) -> None:
        """Note when the first of some records that were written expires, by bucket, where that is not noted yet.

        What is noted is no later than what expires first: a write lowers it after the record is there, and whoever
        raises it looks at the bucket afterwards. It is never taken away while the namespace lives.
        """
        now = time.time_ns() // 1_000_000
        news = {}
        for member, expires_ms in due.items():
            known = self._due.get(member)
            # What lies in the past others may have raised.
            if known is None or known > expires_ms or known <= now:
                news[member] = expires_ms
        if not news:
            return
        calls = [self._lower_due(member, expires_ms) for member, expires_ms in news.items()]
        for (member, expires_ms), reply in zip(news.items(), await self.servers.exchange(calls), strict=True):
            if isinstance(reply, Exception):
                # The records are there; they only may be erased late.
                self._due.pop(member, None)
            else:
                if len(self._due) > _NAMESPACES_KNOWN_MAX:
                    self._due.clear()
                self._due[member] = expires_ms

    def _lower_due(self, member: bytes, expires_ms: int) -> Call:
        return Call(self.registry.slot, None, ("ZADD", self.registry.tag + b":due", "LT", _score(expires_ms), member))

    async def _expired(self, read: ExpiredRead) -> list[Place]:
        key, slot = self.registry.tag + b":due", self.registry.slot
        search = ("ZRANGEBYSCORE", key, "-inf", _score(read.now_ms), "LIMIT", 0, _DUE_BUCKETS_MAX)
        (members,) = await self.exchange([Call(slot, None, search)])
        if not members:
            return []
        found: list[tuple[bytes, Place]] = []
        quiet = []
        for member, (_, places) in (await self._due_in(members, read.now_ms, read.limit)).items():
            found += places
            if not places:
                quiet.append(member)
        if quiet:
            recheck = read.now_ms + _DUE_RECHECK_MS
            await self.exchange([Call(slot, None, ("ZADD", key, "XX", _score(recheck), member)) for member in quiet])
            lower = {}
            for member, (first, _) in (await self._due_in(quiet, read.now_ms, 0)).items():
                self._due[member] = recheck if first is None else min(first, recheck)
                if first is not None:
                    lower[member] = first
            await self.exchange([self._lower_due(member, first) for member, first in lower.items()])
        return [place for _, place in heapq.nsmallest(read.limit, found)]

    async def _due_in(
        self, members: Iterable[bytes], now_ms: int, limit: int
    ) -> dict[bytes, tuple[int | None, list[tuple[bytes, Place]]]]:
        """When something expires next in each of these buckets, and what has expired; gone buckets are left out."""
        reading = _Reading()
        refs = {}
        bound = _before(now_ms + 1)
        for member in members:
            reading.fence()
            tag = b"{%b/%b}" % (self.prefix, member) if member else self.registry.tag
            refs[member] = reading.ask(_Bucket(tag, self.servers.slot(tag)), "x", tag, bound, limit)
        replies = await self.exchange(reading.calls())
        found: dict[bytes, tuple[int | None, list[tuple[bytes, Place]]]] = {}
        gone = []
        for member, (call, number) in refs.items():
            name, *kinds = replies[call][number]
            if name is None and member:
                gone.append(member)
                continue
            namespace = name.decode() if name else ""
            firsts = [_expiry(first[:8]) for first, *_ in kinds if first is not None]
            places = [
                (entry[:8], Place(namespace, Kind(kind), entry[8:].decode()))
                for kind, (_, *expired) in enumerate(kinds)
                for entry in expired
            ]
            found[member] = min((first for first in firsts if first is not None), default=None), places
        if gone:
            await self.exchange([Call(self.registry.slot, None, ("ZREM", self.registry.tag + b":due", *gone))])
        return found

    # --- reading -------------------------------------------------------------------------------------------

    async def _read(
        self, queries: Sequence[Query], positions: Sequence[int], answers: list[Any], *, heal: bool
    ) -> list[int]:
        """Answer some of the queries; returns those to be asked again, for their namespace was not what it was."""
        names = {_namespace_of(read) for position in positions for read in queries[position]}
        owners = await self.owners(names)
        reading = _Reading(check=True)
        asked: list[tuple[int, list[_Part], list[tuple[str, Ref]]]] = []
        for position in positions:
            reading.fence()
            try:
                parts = [self.part(read, owners, reading) for read in queries[position]]
            except Problem as problem:
                answers[position] = problem
                continue
            asked.append((position, parts, reading.checks()))
        replies = await self.servers.exchange(reading.calls()) if reading else []
        again = []
        stale: set[str] = set()
        for position, parts, checks in asked:
            gone = {
                name
                for name, (call, number) in checks
                if not isinstance(replies[call], Exception) and replies[call][number] is None
            }
            if gone:
                stale |= gone
                again.append(position)
                continue
            try:
                answers[position] = [await part.answer(replies) for part in parts]
            except _Stale as error:
                stale.add(error.name)
                again.append(position)
            except Problem as problem:
                answers[position] = problem
        for name in stale:
            self.forget(name)
            if heal:
                await self.heal_quietly(name)
        return again

    async def heal_quietly(self, name: str) -> None:
        try:
            await self.heal(name)
        except Problem:
            # Whoever needs the namespace meets the same problem.
            return

    def part(self, read: Read, owners: Mapping[str, Any], reading: _Reading) -> _Part:
        """Put a read among those of ``reading``; what is returned finds its answer in the replies."""
        if isinstance(read, ExpiredRead):
            return _Part((), None, lambda: self._expired(read))
        owner = owners[_namespace_of(read)]
        if isinstance(owner, Problem):
            raise Problem(owner.code, owner.detail)
        if isinstance(read, HeadRead):
            if owner is None:
                return _Part((), lambda _: None)
            key = read.place.key.encode()
            bucket = owner.bucket(key)
            reading.check(owner, bucket)
            ref = reading.ask(bucket, "v" if read.values else "h", bucket.record_key(read.place.kind, key))
            return _Part((ref,), _head_and_value if read.values else _head_alone)
        if isinstance(read, RowScan):
            if owner is None:
                return _Part((), lambda _: Slice([], False))
            key = read.place.key.encode()
            bucket = owner.bucket(key)
            reading.check(owner, bucket)
            return _Part((reading.ask(bucket, "s", bucket.tag, *_scan_arguments(read)),), _rows)
        if isinstance(read, CountRead):
            buckets = owner.buckets if owner is not None and owner is not self.root else []
            refs = []
            for bucket in buckets:
                reading.check(owner, bucket)
                refs.append(reading.ask(bucket, "c", bucket.tag, _before(read.now_ms + 1)))
            return _Part(tuple(refs), _counts)
        if owner is None:
            return _Part((), lambda _: Slice([], False))
        if len(owner.buckets) > 1:
            return _Part((), None, lambda: self._list_buckets(read, owner))
        bucket = owner.buckets[0]
        reading.check(owner, bucket)
        low, high = _listing_bounds(read)
        bytes_max = -1 if read.bytes_max is None or not read.values else read.bytes_max
        arguments = (int(read.kind), low, high, read.limit, bytes_max, int(read.values))
        return _Part((reading.ask(bucket, "l", bucket.tag, *arguments),), lambda replies: _listed(replies, read.values))

    async def _list_buckets(self, listing: Listing, owner: _Owner) -> Slice[tuple[str, Head]]:
        """Merge what the buckets list: keys and sizes first, then the values of those that the page has room for."""
        low, high = _listing_bounds(listing)
        lows = dict.fromkeys(owner.buckets, low)
        each = min(listing.limit, 2 * listing.limit // len(owner.buckets) + 8)
        found: list[tuple[bytes, _Bucket, bytes, int]] = []
        while True:
            reading = _Reading(check=True)
            refs = {}
            for bucket, start in lows.items():
                reading.check(owner, bucket)
                mode = 2 if listing.values else 0
                refs[bucket] = reading.ask(bucket, "l", bucket.tag, int(listing.kind), start, high, each, -1, mode)
            replies = await self.exchange(reading.calls())
            if any(replies[call][number] is None for _, (call, number) in reading.checks()):
                raise _Stale(owner.name)
            for bucket, (call, number) in refs.items():
                more, *items = replies[call][number]
                found += [
                    (items[i], bucket, items[i + 1], items[i + 2] or 0)
                    for i in range(0, len(items), 3)
                    if items[i + 1] is not None
                ]
                if more:
                    lows[bucket] = b"(" + items[-3]
                else:
                    del lows[bucket]
            # Beyond the least key up to which some bucket has told, it may have more to tell.
            horizon = min((start[1:] for start in lows.values()), default=None)
            found.sort(key=lambda item: item[0])
            known = [item for item in found if horizon is None or item[0] <= horizon]
            if len(known) > listing.limit or not lows:
                break
        page = known[: listing.limit]
        if listing.values:
            size = 0
            for n, item in enumerate(page, 1):
                size += item[3]
                if listing.bytes_max is not None and size >= listing.bytes_max:
                    page = page[:n]
                    break
        more = len(page) < len(found) or bool(lows)
        if not listing.values:
            return Slice([(key.decode(), _head(head, b"")) for key, _, head, _ in page], more)
        reading = _Reading()
        places = [(key, reading.ask(bucket, "v", bucket.record_key(listing.kind, key))) for key, bucket, *_ in page]
        replies = await self.exchange(reading.calls())
        heads = [(key.decode(), _head_and_value([replies[call][number]])) for key, (call, number) in places]
        present = [(key, head) for key, head in heads if head is not None]
        if page and more and not present:
            return await self._list_buckets(listing._replace(after=heads[-1][0]), owner)
        return Slice(present, more)

    # --- calls ---------------------------------------------------------------------------------------------

    async def exchange(self, calls: Iterable[Call]) -> list[Any]:
        """The answers to the calls; the first failure among them is raised, translated."""
        calls = list(calls)
        replies = await self.servers.exchange(calls) if calls else []
        for reply in replies:
            if isinstance(reply, Exception):
                raise _translated(reply) from reply
        return replies

    def new_version(self) -> bytes:
        return _U64.pack(next(self._versions) % 2**64)

    def _check_open(self) -> None:
        if self._closed:
            raise Problem("backend-unavailable", "the connection to Redis is closed")


# --- opening -----------------------------------------------------------------------------------------------


def _bucket_count(text: str | None) -> int | None:
    if text is None:
        return None
    count = int(text) if text.isdecimal() and len(text) < 6 else 0
    if not 1 <= count <= _BUCKETS_MAX or count & (count - 1):
        raise Problem("backend-unavailable", f"the DSN's buckets is a power of two from 1 to {_BUCKETS_MAX}")
    return count


async def _claim(servers: Servers, prefix: bytes, wanted: int | None) -> int:
    """Make the store if it is not there; returns its number of buckets."""
    tag = b"{%b}" % prefix
    key, slot = tag + b":store", servers.slot(tag)
    preset = wanted or (_CLUSTER_BUCKETS if servers.cluster else 1)
    replies = await servers.exchange(
        [
            Call(slot, None, ("HSETNX", key, "buckets", preset)),
            Call(slot, None, ("HSETNX", key, "layout", _LAYOUT)),
            Call(slot, None, ("HMGET", key, "buckets", "layout")),
        ]
    )
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    buckets, layout = map(int, replies[-1])
    if layout > _LAYOUT:
        raise Problem(
            "backend-unavailable",
            f"the store has layout {layout}, made by a newer rstored; this one knows layouts up to {_LAYOUT}: "
            "run that newer one",
        )
    if wanted not in (None, buckets):
        detail = f"the store has {buckets} buckets for good: say so in the DSN, leave it out, or use another prefix"
        raise Problem("backend-unavailable", detail)
    return buckets


async def _described(servers: Servers) -> dict[str, str]:
    """What ``/`` says, read from the live servers."""
    described: dict[str, str] = {}
    settings = set()
    for info, config in await servers.on_every_server(("INFO", "server"), ("CONFIG", "GET", "append*")):
        if isinstance(info, Exception):
            raise info
        facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        if facts.get("redis_mode") == "cluster" and not servers.cluster:
            raise Problem(
                "backend-unavailable", "the server is part of a cluster: the DSN begins with redis+cluster://"
            )
        version = facts.get("redis_version", "0")
        if tuple(int(part) for part in version.split(".")[:2]) < _VERSION_MIN:
            raise Problem("backend-unavailable", f"the server is Redis {version}; 6.2 or later is needed")
        name = "valkey" if "valkey_version" in facts else "redis"
        described["name"] = f"{name} cluster" if servers.cluster else name
        described["version"] = facts.get("valkey_version", version)
        if isinstance(config, Exception):
            settings.add(("unknown", "unknown"))
        else:
            values = dict(zip(config[::2], config[1::2], strict=True))
            settings.add((values.get(b"appendonly", b"").decode(), values.get(b"appendfsync", b"").decode()))
    appendonly, appendfsync = min(settings, key=lambda pair: (pair[0] != "no", pair[1] == "always", pair))
    described["durability"], warning = _durability(appendonly, appendfsync)
    if servers.cluster:
        described["durability"] += (
            "; it reaches the replicas a moment later, so a failover may lose the last writes of the master that failed"
        )
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


# --- reading -----------------------------------------------------------------------------------------------


class _Stale(Exception):
    """A bucket does not have the namespace (``name``) that it was taken to belong to."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Part(NamedTuple):
    """A read that is under way: where its answers will be and what makes its result of them, or else how to get it."""

    refs: tuple[Ref, ...]
    decode: Callable[[list[Any]], Any] | None
    fetch: Callable[[], Coroutine[Any, Any, Any]] | None = None

    async def answer(self, replies: list[Any]) -> Any:
        """The result; raises the problem that the read met."""
        if self.decode is None:
            assert self.fetch is not None
            return await self.fetch()
        found = []
        for call, number in self.refs:
            reply = replies[call]
            if isinstance(reply, Exception):
                raise _translated(reply) from reply
            found.append(reply[number])
        return self.decode(found)


class _Reading:
    """Reads on their way, gathered into one call for each slot, or a few if they are many.

    With ``check`` each bucket that is read is also asked whether its namespace lives.
    """

    def __init__(self, *, check: bool = False) -> None:
        self._check = check
        self._calls: list[tuple[int, list[Argument]]] = []
        self._sizes: list[int] = []
        self._open: dict[int, int] = {}
        self._checked: dict[bytes, Ref] = {}
        self._checks: list[tuple[str, Ref]] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def fence(self) -> None:
        """What is asked up to the next fence is answered together; between fences a call may end."""
        for slot in [slot for slot, call in self._open.items() if self._sizes[call] >= _READS_PER_CALL]:
            del self._open[slot]

    def ask(self, bucket: _Bucket, *arguments: Argument) -> Ref:
        call = self._open.get(bucket.slot)
        if call is None:
            call = self._open[bucket.slot] = len(self._calls)
            self._calls.append((bucket.slot, [bucket.tag]))
            self._sizes.append(0)
        self._calls[call][1].extend(arguments)
        number = self._sizes[call]
        self._sizes[call] = number + 1
        return call, number

    def check(self, owner: _Owner, bucket: _Bucket) -> None:
        """Have the query under way depend on the namespace being there."""
        if self._check and bucket.ns_key:
            self._checks.append((owner.name, self.namespace(bucket)))

    def namespace(self, bucket: _Bucket) -> Ref:
        """Ask for the head of the namespace in its bucket, once in a call."""
        ref = self._checked.get(bucket.tag)
        if ref is None or ref[0] != self._open.get(bucket.slot):
            ref = self._checked[bucket.tag] = self.ask(bucket, "h", bucket.ns_key)
        return ref

    def checks(self) -> list[tuple[str, Ref]]:
        """What the query that was just put together depends on."""
        checks, self._checks = self._checks, []
        return checks

    def calls(self) -> list[Call]:
        return [Call(slot, _READ, arguments) for slot, arguments in self._calls]


def _namespace_of(read: Read) -> str:
    if isinstance(read, HeadRead | RowScan):
        return read.place.namespace
    return "" if isinstance(read, ExpiredRead) else read.namespace


def _scan_arguments(scan: RowScan) -> tuple[Argument, ...]:
    lane = b"%d:%d:%b" % (scan.place.kind, scan.lane, scan.place.key.encode())
    floor = scan.floor and scan.low is not None
    return (
        lane,
        "b" if scan.along is RowOrder.BY else "s",
        *_bounds(scan.low, scan.high),
        int(floor),
        int(scan.descending),
        -1 if scan.limit is None else scan.limit,
        -1 if scan.bytes_max is None else scan.bytes_max,
    )


def _bounds(low: bytes | None, high: bytes | None) -> tuple[bytes, bytes]:
    """Both inclusive, as ZRANGEBYLEX takes them."""
    return b"-" if low is None else b"[" + low, b"+" if high is None else b"[" + high


def _listing_bounds(listing: Listing) -> tuple[bytes, bytes]:
    prefix, after = listing.prefix.encode(), (listing.after or "").encode()
    # No UTF-8 has a byte 0xFF.
    high = b"(" + prefix + b"\xff" if prefix else b"+"
    if listing.after is not None and after >= prefix:
        return b"(" + after, high
    return b"[" + prefix if prefix else b"-", high


def _head(packed: bytes, value: bytes) -> Head:
    return Head(packed[16:], value, _expiry(packed[8:16]))


def _expiry(packed: bytes) -> int | None:
    return None if packed == _NEVER else _U64.unpack(packed)[0] - _SIGN


def _packed_expiry(expires_ms: int | None) -> bytes:
    return _NEVER if expires_ms is None else _U64.pack(expires_ms + _SIGN)


def _before(expires_ms: int) -> bytes:
    """The bound, not included, below which all expire that do so before this moment."""
    return b"+" if expires_ms >= _SIGN else b"(" + _packed_expiry(expires_ms)


def _score(expires_ms: int) -> int:
    """The moment as a score, which is exact only so far; one that is less is as good."""
    return max(-_EXACT, min(expires_ms, _EXACT))


def _due_member(bucket: _Bucket) -> bytes:
    """How ``due`` names a bucket: id/number; the registry is the empty name."""
    return bucket.tag[bucket.tag.index(b"/") + 1 : -1] if bucket.ns_key else b""


def _head_alone(replies: list[Any]) -> Head | None:
    (packed,) = replies
    return None if packed is None else _head(packed, b"")


def _head_and_value(replies: list[Any]) -> Head | None:
    packed, value = replies[0]
    return None if packed is None else _head(packed, value or b"")


def _rows(replies: list[Any]) -> Slice[Row]:
    more, *found = replies[0]
    return Slice(list(map(Row, found[::3], found[1::3], found[2::3])), bool(more))


def _listed(replies: list[Any], values: bool) -> Slice[tuple[str, Head]]:
    more, *found = replies[0]
    kept = found[2::3] if values else itertools.repeat(b"")
    heads = zip(found[::3], found[1::3], kept, strict=False)
    return Slice([(key.decode(), _head(packed, value or b"")) for key, packed, value in heads], bool(more))


def _counts(replies: list[Any]) -> dict[Kind, int]:
    counts = {Kind.KV: 0, Kind.TS: 0, Kind.ES: 0}
    for found in replies:
        for kind in counts:
            counts[kind] += found[2 * kind - 2] - found[2 * kind - 1]
    return counts


# --- writing -----------------------------------------------------------------------------------------------


def _section(
    checks: Iterable[tuple[bytes, bytes]], claims: Sequence[Argument], writes: Sequence[Argument]
) -> list[Argument]:
    """One update, as ``commit.lua`` takes it."""
    flat = [part for check in checks for part in check]
    return [len(flat) // 2, *flat, len(claims) // 3, *claims, len(writes), *writes]


def _commit_call(bucket: _Bucket, sections: Iterable[Sequence[Argument]]) -> Call:
    return Call(bucket.slot, _COMMIT, [bucket.tag, *itertools.chain.from_iterable(sections)], once=True)


def _new_copy(bucket: _Bucket, head: bytes, name: str) -> tuple[Argument, ...]:
    return "f", bucket.ns_key, "h", head, "f", bucket.ns_key, "n", name


def _no_copy(bucket: _Bucket) -> tuple[Argument, ...]:
    return "u", bucket.ns_key


class _Section(NamedTuple):
    """What an update is going to do. In a cluster, what it does to namespaces is done step by step, and first."""

    position: int
    bucket: _Bucket
    arguments: list[Argument]
    size: int
    changes: _Changes | None = None


class _Changes:
    """What an update does to namespaces: to the registry, and to the buckets before and after that."""

    def __init__(self) -> None:
        self.before: list[tuple[_Bucket, tuple[Argument, ...]]] = []
        self.registry: list[Argument] = []
        self.after: list[tuple[_Bucket, tuple[Argument, ...]]] = []
        self.checks: dict[bytes, bytes] = {}
        self.made: list[_Owner] = []
        self.changed: list[str] = []


class _Attempt:
    """One go at a batch of updates, or at those of it that others got in the way of."""

    def __init__(
        self, backend: RedisBackend, updates: Sequence[Update[Any]], positions: list[int], results: list[Any]
    ) -> None:
        self._backend = backend
        self._registry = backend.registry
        self._updates = updates
        self._positions = positions
        self._results = results
        self._again: set[int] = set()
        # What is there as far as this process knows: as it was read, and as the updates so far are going to leave it.
        self._owners: dict[str, Any] = {}
        self._heads: dict[Place, Head | None] = {}
        self._versions: dict[Place, bytes] = {}
        self._copies: dict[bytes, tuple[bytes, Head]] = {}
        self._written: set[Place] = set()
        self._asked: set[int] = set()
        self._pending: list[_Section] = []
        self._due: dict[bytes, int] = {}
        self._spoiled = False

    async def run(self, *, heal: bool) -> list[int]:
        """Carry out the updates; returns, in order, those to be started again."""
        loaded = await self._load(heal=heal)
        for wave in waves([self._updates[position] for position in loaded]):
            if self._spoiled:
                self._again.update(loaded[number] for number in wave)
            else:
                await self._run_wave([loaded[number] for number in wave])
        await self._flush(_Reading())
        if self._due:
            await self._backend.tell_due(self._due)
        for position in self._again:
            for place in self._updates[position].places:
                self._backend.forget(place.namespace)
        return sorted(self._again)

    # Reading.

    async def _load(self, *, heal: bool) -> list[int]:
        """Read the heads of all places; returns the updates that can be started."""
        backend, registry = self._backend, self._registry
        names = {
            place.namespace
            for position in self._positions
            for place in self._updates[position].places
            if place.kind is not Kind.NAMESPACE
        }
        self._owners = await backend.owners(names)
        reading = _Reading()
        refs: dict[Place, Ref] = {}
        copies: dict[str, dict[bytes, Ref]] = {}
        confined: list[int] = []
        for position in self._positions:
            places = self._updates[position].places
            problem = self._refusal(places)
            if problem is not None:
                self._results[position] = problem
                continue
            confined.append(position)
            reading.fence()
            for place in places:
                if place in refs:
                    continue
                key = place.key.encode()
                if place.kind is Kind.NAMESPACE:
                    refs[place] = reading.ask(registry, "i", registry.record_key(0, key))
                elif (owner := self._owners[place.namespace]) is not None:
                    bucket = owner.bucket(key)
                    copies.setdefault(place.namespace, {})[bucket.tag] = reading.namespace(bucket)
                    refs[place] = reading.ask(bucket, "h", bucket.record_key(place.kind, key))
        replies = await backend.servers.exchange(reading.calls()) if reading else []
        failed = self._take(refs, copies, replies)
        loaded = []
        stale: set[str] = set()
        for position in confined:
            places = self._updates[position].places
            failure = next((failed[place] for place in places if place in failed), None)
            if failure is None:
                loaded.append(position)
            elif isinstance(failure, _Stale):
                stale.add(failure.name)
                self._again.add(position)
            else:
                self._results[position] = _problem(failure)
        for name in stale:
            backend.forget(name)
            if heal:
                await backend.heal_quietly(name)
        return loaded

    def _refusal(self, places: tuple[Place, ...]) -> Problem | None:
        """Why an update of these places cannot be carried out, if so."""
        for place in places:
            owner = self._owners.get(place.namespace)
            if isinstance(owner, Problem):
                return Problem(owner.code, owner.detail)
        if not self._backend.servers.cluster or len(places) == 1:
            return None
        number = self._backend.bucket_number
        if len({(place.namespace, number(place.key) if place.namespace else 0) for place in places}) == 1:
            return None
        return Problem(
            "batch-not-atomic",
            "these keys lie in different parts of the Redis Cluster, which cannot change them in one step: give them a "
            "common {part} in braces, or send them one by one",
        )

    def _take(
        self, refs: dict[Place, Ref], copies: dict[str, dict[bytes, Ref]], replies: list[Any]
    ) -> dict[Place, Exception]:
        """Take over what was read; returns the places that it could not be read of."""
        failed: dict[Place, Exception] = {}
        gone: dict[str, _Stale] = {}
        for name, by_tag in copies.items():
            for tag, (call, number) in by_tag.items():
                reply = replies[call]
                if isinstance(reply, Exception):
                    continue
                packed = reply[number]
                if packed is None:
                    gone[name] = _Stale(name)
                else:
                    self._copies[tag] = packed[:8], _head(packed, b"")
        for place, (call, number) in refs.items():
            reply = replies[call]
            if isinstance(reply, Exception):
                failed[place] = reply
                continue
            packed = reply[number]
            if place.kind is Kind.NAMESPACE:
                packed, owner_id = packed
                if packed is not None:
                    self._take_owner(place.key, owner_id, gone)
                else:
                    if self._owners.get(place.key) is not None:
                        gone[place.key] = _Stale(place.key)
                    self._owners[place.key] = None
            if packed is None:
                self._heads[place], self._versions[place] = None, _ABSENT
            else:
                self._heads[place], self._versions[place] = _head(packed, b""), packed[:8]
        if gone:
            places = {place for position in self._positions for place in self._updates[position].places}
            for place in places:
                name = place.key if place.kind is Kind.NAMESPACE else place.namespace
                if name in gone:
                    failed.setdefault(place, gone[name])
        return failed

    def _take_owner(self, name: str, owner_id: bytes, gone: dict[str, _Stale]) -> None:
        """A namespace that an update names was found under this id; where another was expected, all begins anew."""
        expected = self._owners.get(name)
        if isinstance(expected, _Owner) and expected.id == owner_id:
            return
        if name in self._owners:
            gone[name] = _Stale(name)
        self._owners[name] = self._backend.owner(name, owner_id)

    # Planning.

    async def _run_wave(self, wave: list[int]) -> None:
        """Run the plans of a wave, which touch different records, in step, so that their queries travel together."""
        ended: dict[int, Commit[Any] | Exception] = {}
        asking: list[tuple[int, Planning, Query]] = []

        def advance(position: int, planning: Planning, answer: list[Any] | None) -> None:
            try:
                asking.append((position, planning, next(planning) if answer is None else planning.send(answer)))
            except StopIteration as stop:
                ended[position] = stop.value
            except Exception as error:
                ended[position] = error

        for position in wave:
            update = self._updates[position]
            advance(position, update.plan(self._heads_for(update)), None)
        while asking:
            asked, asking = asking, []
            for (position, planning, _), answer in zip(asked, await self._ask(asked), strict=True):
                if isinstance(answer, Problem):
                    planning.close()
                    self._results[position] = answer
                else:
                    advance(position, planning, answer)
        for position in wave:
            if position in ended and not self._spoiled:
                self._end(position, ended[position])
            elif position in ended:
                self._again.add(position)

    def _heads_for(self, update: Update[Any]) -> dict[Place, Head | None]:
        heads: dict[Place, Head | None] = {}
        for place in update.places:
            heads[place] = self._heads.get(place)
            if place.kind is not Kind.NAMESPACE:
                owner = self._owners[place.namespace]
                named = namespace_place(place.namespace)
                if owner is None:
                    heads[named] = None
                elif named not in heads:
                    copy = self._copies.get(owner.bucket(place.key.encode()).tag)
                    heads[named] = copy and copy[1]
        return heads

    async def _ask(self, asked: Sequence[tuple[int, Planning, Query]]) -> list[list[Any] | Problem]:
        """Answer the plans' queries in one round trip, after what is already to be written."""
        backend = self._backend
        names = {_namespace_of(read) for _, _, query in asked for read in query} - self._owners.keys()
        owners = {**await backend.owners(names), **self._owners, "": backend.root} if names else self._owners
        reading = _Reading()
        parts: list[list[_Part]] = []
        for position, _, query in asked:
            self._asked.add(position)
            reading.fence()
            parts.append([backend.part(read, owners, reading) for read in query])
        replies = await self._flush(reading)
        answers: list[list[Any] | Problem] = []
        for query_parts in parts:
            try:
                answers.append([await part.answer(replies) for part in query_parts])
            except _Stale as stale:
                answers.append(Problem("backend-unavailable", f"the namespace {stale.name} was replaced: try again"))
            except Problem as problem:
                answers.append(problem)
        return answers

    # Writing.

    def _end(self, position: int, outcome: Commit[Any] | Exception) -> None:
        """Take a plan's outcome, and put what it wants written, and checked, among what is to be sent."""
        update = self._updates[position]
        writes: Sequence[Write] = ()
        if isinstance(outcome, Exception):
            self._results[position] = outcome
        else:
            self._results[position] = outcome.answer
            writes = outcome.writes
        # What was decided by one moment's heads alone needs no check; all else has to be still so.
        if (
            writes
            or position in self._asked
            or len(update.places) > 1
            or not self._written.isdisjoint((*update.places, namespace_place(update.places[0].namespace)))
        ):
            try:
                self._pending.append(self._section(position, update, writes))
            except Exception as error:
                # A mistake in the plan; what was noted for it up to there is thrown away with the whole attempt.
                self._results[position] = error
                self._spoiled = True

    def _section(self, position: int, update: Update[Any], writes: Sequence[Write]) -> _Section:
        changes = _Changes()
        checks: dict[bytes, bytes] = {}
        home = self._registry
        for place in update.places:
            key = place.key.encode()
            if place.kind is Kind.NAMESPACE:
                changes.checks[self._registry.record_key(0, key)] = self._versions[place]
            elif (owner := self._owners[place.namespace]) is None:
                changes.checks[self._registry.record_key(0, place.namespace.encode())] = _ABSENT
            else:
                home = owner.bucket(key)
                checks[home.ns_key] = self._copies[home.tag][0]
                checks[home.record_key(place.kind, key)] = self._versions[place]
        writing = _Writing(self._backend.new_version())
        for write in writes:
            if write.place.kind is Kind.NAMESPACE:
                self._write_namespace(write, changes)
            else:
                home = self._write(write, writing) or home
        for place in writing.touched:
            if (head := self._heads.get(place)) is not None:
                bucket = self._owners[place.namespace].bucket(place.key.encode())
                packed = writing.version + _packed_expiry(head.expires_ms) + head.meta
                writing.arguments += ("t", bucket.record_key(place.kind, place.key.encode()), packed)
                self._versions[place] = writing.version
        if self._backend.servers.cluster:
            if not changes.registry and changes.checks and not checks:
                # Nothing is written; that there is no such namespace is checked where it would be.
                return _Section(position, self._registry, _section(changes.checks.items(), (), ()), 0)
            arguments = (
                _section(checks.items(), writing.claims, writing.arguments) if checks or writing.arguments else []
            )
            return _Section(position, home, arguments, writing.size, changes if changes.registry else None)
        everything = [argument for _, arguments in changes.before for argument in arguments]
        everything += changes.registry
        everything += writing.arguments
        everything += [argument for _, arguments in changes.after for argument in arguments]
        checks |= changes.checks
        section = _section(checks.items(), writing.claims, everything)
        return _Section(position, home, section, writing.size, changes if changes.registry else None)

    def _write(self, write: Write, writing: _Writing) -> _Bucket | None:
        """Note a write to a record and what it leaves behind; returns the bucket that it is about, if it does anything."""
        place = write.place
        owner = self._owners[place.namespace]
        key = place.key.encode()
        if isinstance(write, PutHead):
            if owner is None:
                raise AssertionError("a record was put into a namespace that does not exist")
            bucket: _Bucket = owner.bucket(key)
            meta, value, expires_ms = write.head
            packed = writing.version + _packed_expiry(expires_ms) + meta
            writing.arguments += ("h", bucket.tag, int(place.kind), key, packed, value)
            writing.size += len(value)
            if expires_ms is not None:
                self._note_due(bucket, expires_ms)
            self._heads[place], self._versions[place] = write.head._replace(value=b""), writing.version
            self._written.add(place)
            return bucket
        if owner is None or self._heads.get(place) is None:
            if isinstance(write, PutRow):
                raise AssertionError("a row was put into a record that does not exist")
            return None
        bucket = owner.bucket(key)
        self._written.add(place)
        if isinstance(write, DeleteRecord):
            writing.arguments += ("D", bucket.tag, int(place.kind), key)
            writing.forget(place)
            self._heads[place], self._versions[place] = None, _ABSENT
            return bucket
        writing.touched[place] = None
        lane = b"%d:%d:%b" % (place.kind, write.lane, key)
        if isinstance(write, PutRow):
            if (place, write.lane) not in writing.lanes:
                writing.lanes[place, write.lane] = {}
                writing.arguments += ("f", bucket.record_key(place.kind, key), f"l{write.lane}", "")
            sort, value, by = write.row
            writing.arguments += ("r", bucket.tag, lane, sort, value, int(by is not None), by or b"")
            writing.size += len(value)
            if by is not None:
                writing.claim(place, write.lane, b"%b:d:%b" % (bucket.tag, lane), by, sort)
        elif isinstance(write, DeleteRow):
            writing.freed.add((place, write.lane))
            writing.arguments += ("d", bucket.tag, lane, write.sort)
        else:
            writing.freed.add((place, write.lane))
            writing.arguments += ("R", bucket.tag, lane, *_bounds(write.low, write.high))
        return bucket

    def _write_namespace(self, write: Write, changes: _Changes) -> None:
        """Note what becomes of a namespace."""
        place, registry = write.place, self._registry
        name = place.key.encode()
        record_key = registry.record_key(0, name)
        owner = self._owners.get(place.key)
        if isinstance(write, DeleteRecord):
            if owner is None:
                return
            changes.registry += ("D", registry.tag, 0, name, "a", registry.tag + b":trash", owner.id)
            changes.after += [(bucket, _no_copy(bucket)) for bucket in owner.buckets]
            changes.changed.append(place.key)
            self._owners[place.key] = None
            gone = [inner for inner in self._heads if inner.namespace == place.key]
            for inner in (place, *gone):
                self._heads[inner], self._versions[inner] = None, _ABSENT
                self._written.add(inner)
            return
        assert isinstance(write, PutHead), "a namespace has no rows"
        head = write.head
        if owner is None:
            owner = self._backend.owner(place.key, secrets.token_urlsafe(8).encode())
            version = _U64.pack(time.time_ns() // 1000)
            packed = version + _packed_expiry(head.expires_ms) + head.meta
            changes.before += [(bucket, _new_copy(bucket, packed, place.key)) for bucket in owner.buckets]
            changes.registry += ("h", registry.tag, 0, name, packed, head.value, "f", record_key, "i", owner.id)
            changes.made.append(owner)
            self._owners[place.key] = owner
        else:
            if place not in self._versions:
                raise AssertionError("a namespace was changed by an update that does not name it")
            if self._heads[place] == head and not head.value:
                return
            version = _U64.pack(max(time.time_ns() // 1000, _U64.unpack(self._versions[place])[0] + 1))
            packed = version + _packed_expiry(head.expires_ms) + head.meta
            changes.registry += ("h", registry.tag, 0, name, packed, head.value)
            changes.after += [(bucket, ("g", bucket.ns_key, packed)) for bucket in owner.buckets]
            changes.changed.append(place.key)
        if head.expires_ms is not None:
            self._note_due(registry, head.expires_ms)
        bare = head._replace(value=b"")
        self._heads[place], self._versions[place] = bare, version
        self._copies.update((bucket.tag, (version, bare)) for bucket in owner.buckets)
        self._written.add(place)

    def _note_due(self, bucket: _Bucket, expires_ms: int) -> None:
        member = _due_member(bucket)
        self._due[member] = min(expires_ms, self._due.get(member, expires_ms))

    # Sending.

    async def _flush(self, reading: _Reading) -> list[Any]:
        """Carry out what is to be written, then the reads; returns the replies to these."""
        pending, self._pending = self._pending, []
        servers = self._backend.servers
        sections: list[_Section] = []
        for section in pending:
            if section.changes is not None and servers.cluster:
                self._settle(sections, await servers.exchange(_calls(sections)))
                sections = []
                if not await self._change_namespaces(section):
                    continue
            if section.arguments:
                sections.append(section)
        calls = _calls(sections)
        asked = reading.calls()
        if not calls and not asked:
            return []
        replies = await servers.exchange([*calls, *asked])
        self._settle(sections, replies[: len(calls)])
        return replies[len(calls) :]

    def _settle(self, sections: list[_Section], replies: list[Any]) -> None:
        """Take what became of the updates."""
        for section, status in zip(_in_calls(sections), _statuses(sections, replies), strict=True):
            if status == 1:
                if section.changes is not None:
                    for owner in section.changes.made:
                        self._backend.know(owner)
                    for name in section.changes.changed:
                        self._backend.forget(name)
            elif status == 0:
                self._again.add(section.position)
            else:
                self._results[section.position] = _problem(status)

    async def _change_namespaces(self, section: _Section) -> bool:
        """Carry out, step by step, what an update does to the namespaces of a cluster; True if it is done."""
        backend, registry, changes = self._backend, self._registry, section.changes
        assert changes is not None
        try:
            if changes.made:
                now = int(time.time())
                pending = [
                    Call(registry.slot, None, ("ZADD", registry.tag + b":pending", now, owner.id))
                    for owner in changes.made
                ]
                await backend.exchange(pending)
                await backend.exchange(
                    _commit_call(bucket, [_section((), (), writes)]) for bucket, writes in changes.before
                )
                for owner in changes.made:
                    changes.registry += ("Z", registry.tag + b":pending", owner.id)
            for name in changes.changed:
                changes.registry += ("a", registry.tag + b":unsettled", name)
            update = _section(changes.checks.items(), (), changes.registry)
            (((status),),) = await backend.exchange([_commit_call(registry, [update])])
            if status == 1:
                await backend.exchange(
                    _commit_call(bucket, [_section((), (), writes)]) for bucket, writes in changes.after
                )
                for name in changes.changed:
                    await backend.settle(name)
        except Problem as problem:
            self._results[section.position] = problem
            return False
        finally:
            for name in changes.changed:
                backend.forget(name)
        if status == 1:
            for owner in changes.made:
                backend.know(owner)
            return True
        self._settle([section._replace(changes=None)], [[status]])
        return False


class _Writing:
    """The writes of one update to records, as they are gathered."""

    def __init__(self, version: bytes) -> None:
        self.version = version
        self.arguments: list[Argument] = []
        self.claims: list[Argument] = []
        self.size = 0
        # Records whose rows are written: they get the new version too.
        self.touched: dict[Place, None] = {}
        # Which row has which `by` in the lanes that rows were put into, and the lanes that rows were deleted from.
        self.lanes: dict[tuple[Place, int], dict[bytes, bytes]] = {}
        self.freed: set[tuple[Place, int]] = set()

    def claim(self, place: Place, lane: int, data_key: bytes, by: bytes, sort: bytes) -> None:
        """A row takes a ``by``, which must be free. One that was freed before in the same update is taken on trust."""
        if self.lanes[place, lane].setdefault(by, sort) != sort and (place, lane) not in self.freed:
            raise AssertionError("two rows of a lane have the same by")
        if (place, lane) not in self.freed:
            self.claims += (data_key, by, sort)

    def forget(self, place: Place) -> None:
        """The record is deleted, and all that was in it."""
        self.touched.pop(place, None)
        for at in [at for at in self.lanes if at[0] == place]:
            del self.lanes[at]
            self.freed.add(at)


def _grouped(sections: list[_Section]) -> list[list[_Section]]:
    """The sections by slot, in order, in groups of bounded size: what becomes one call."""
    groups: list[list[_Section]] = []
    latest: dict[int, tuple[int, int]] = {}
    for section in sections:
        number, size = latest.get(section.bucket.slot, (-1, _CALL_BYTES_MAX))
        if size >= _CALL_BYTES_MAX or len(groups[number]) >= _UPDATES_PER_CALL:
            number, size = len(groups), 0
            groups.append([])
        groups[number].append(section)
        latest[section.bucket.slot] = number, size + section.size
    return groups


def _calls(sections: list[_Section]) -> list[Call]:
    return [_commit_call(group[0].bucket, (section.arguments for section in group)) for group in _grouped(sections)]


def _in_calls(sections: list[_Section]) -> list[_Section]:
    return [section for group in _grouped(sections) for section in group]


def _statuses(sections: list[_Section], replies: list[Any]) -> list[Any]:
    """What became of each section: 1, 0 or an exception, in the order of :func:`_in_calls`."""
    statuses: list[Any] = []
    for group, reply in zip(_grouped(sections), replies, strict=True):
        if isinstance(reply, Exception):
            statuses += [reply] * len(group)
        else:
            statuses += [ResponseError(status.decode()) if isinstance(status, bytes) else status for status in reply]
    return statuses


# --- failing -----------------------------------------------------------------------------------------------


def _problem(error: Exception) -> Exception:
    """As :func:`_translated`, anew for each who gets it."""
    return Problem(error.code, error.detail) if isinstance(error, Problem) else _translated(error)


def _translated(error: BaseException) -> Exception:
    """The problem that a driver's or a server's error means; the error itself if it can only be a mistake in here."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or text.startswith("OOM"):
        return Problem("storage-full", "Redis has reached its maxmemory: give it more or delete something")
    if isinstance(error, AuthenticationError | NoPermissionError) or text.startswith(("NOAUTH", "WRONGPASS", "NOPERM")):
        return Problem("backend-unavailable", "Redis refuses the DSN's user or password, or what it may do")
    if text.startswith("WRONGTYPE"):
        return Problem(
            "backend-corrupt", "a key of the store holds something else: is the prefix used by another program?"
        )
    if text.startswith("MISCONF"):
        return Problem("backend-unavailable", "Redis cannot write to its disk and takes no writes: see its log")
    if text.startswith("ROWS"):
        return AssertionError(text)
    if isinstance(error, ResponseError) and text.startswith("ERR"):
        return error
    return Problem("backend-unavailable", "Redis does not answer or turns requests away: try again")
