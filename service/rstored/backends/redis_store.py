"""What is in a Redis store, and how it is read. ``redis.py`` draws the keys."""

from __future__ import annotations

import heapq
import itertools
import secrets
import struct
import time
from binascii import crc_hqx
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from redis.exceptions import ResponseError

from rstored.backends.abc import (
    COUNTED,
    CountRead,
    ExpiredRead,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    Query,
    Read,
    Row,
    RowOrder,
    RowScan,
    Slice,
    UnfitStorage,
)
from rstored.backends.clock import Clock
from rstored.backends.redis_servers import FAILURES, Argument, Call, Script, Servers, facts_of, problem_of, translated
from rstored.problems import Problem

__all__ = [
    "ABSENT",
    "U64",
    "Bucket",
    "Owner",
    "Part",
    "Reading",
    "Ref",
    "Stale",
    "Store",
    "bounds",
    "due_member",
    "lost",
    "namespace_of",
    "new_copy",
    "no_copy",
    "packed_expiry",
    "packed_update",
    "unpacked",
]

_NAMESPACES_KNOWN_MAX: Final = 10_000
_READS_PER_CALL: Final = 64
_DUE_BUCKETS_MAX: Final = 1_000
_DUE_RECHECK_MS: Final = 600_000

READ: Final = Script.load("read.lua")
COMMIT: Final = Script.load("commit.lua")

ABSENT: Final = b""
"""The version of a record that does not exist."""

_NEVER: Final = bytes(8)
_SIGN: Final = 2**63
U64: Final = struct.Struct(">Q")
_EXACT: Final = 2**53

Ref: TypeAlias = tuple[int, int]
"""Where an answer is found: the number of the call, and of the answer in it."""


class Bucket:
    """A part of a namespace (or the registry, which has no ``ns_key``) that lies in one slot.

    ``life_key`` is the key that is there as long as the namespace, or the store, is.
    """

    __slots__ = ("life_key", "ns_key", "slot", "tag")

    def __init__(self, tag: bytes, slot: int, ns_key: bytes = b"") -> None:
        self.tag = tag
        self.slot = slot
        self.ns_key = ns_key
        self.life_key = ns_key or tag + b":store"

    def record_key(self, kind: int, key: bytes) -> bytes:
        return b"%b:h:%d:%b" % (self.tag, kind, key)


class Owner:
    """A namespace that exists, or the registry, which owns the namespaces."""

    __slots__ = ("buckets", "id", "name")

    def __init__(self, name: str, owner_id: bytes, buckets: list[Bucket]) -> None:
        self.name = name
        self.id = owner_id
        self.buckets = buckets

    def bucket(self, place: Place) -> Bucket:
        buckets = self.buckets
        return buckets[0] if len(buckets) == 1 else buckets[_hash(place) & (len(buckets) - 1)]


def _hash(place: Place) -> int:
    """The CRC16 of the key, or of the first ``{part}`` in braces that is not empty."""
    key = (place.key.partition(" ")[2] if place.kind is Kind.WRITE else place.key).encode()
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return crc_hqx(key, 0)


LOST: Final = (
    "the store that was opened is not in Redis any more: restore it, or restart the service to use what is there now"
)


def lost() -> Problem:
    """The problem of whoever needs a store that is not there any more."""
    return Problem("backend-unavailable", LOST)


class Store:
    """The records under one prefix: where they are, and how they are read."""

    def __init__(self, servers: Servers, prefix: bytes, buckets: int, store_id: bytes, clock: Clock) -> None:
        self.servers = servers
        self.prefix = prefix
        self.buckets = buckets
        self.id = store_id
        self.clock = clock
        self.registry = Bucket(b"{%b}" % prefix, servers.slot(b"{%b}" % prefix))
        self.root = Owner("", b"", [self.registry])
        self._versions = itertools.count(secrets.randbits(64))
        self._known: dict[str, Owner] = {"": self.root}
        # The time before which nothing in a bucket expires, as this process last told `due`.
        self._due: dict[bytes, int] = {}

    # --- the store -----------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Take over the time of the server that has the registry, and see whether the store is still there.

        Raises :class:`UnfitStorage` if it is not. In a cluster each master has a clock; this is the one for all.
        """
        slot = self.registry.slot
        asked = time.monotonic()
        info, store_id = await self.exchange(
            [Call(slot, None, ("INFO", "server")), Call(slot, None, ("HGET", self.registry.life_key, "h"))]
        )
        microseconds = facts_of(info).get("server_time_usec")
        if microseconds is not None:
            self.clock.follow(int(microseconds) / 1000, asked, time.monotonic())
        if store_id != self.id:
            raise UnfitStorage(LOST)

    # --- namespaces ----------------------------------------------------------------------------------------

    def owner(self, name: str, owner_id: bytes) -> Owner:
        """The namespace with this id."""
        buckets = []
        for number in range(self.buckets):
            tag = b"{%b/%b/%d}" % (self.prefix, owner_id, number)
            buckets.append(Bucket(tag, self.servers.slot(tag), tag + b":ns"))
        return Owner(name, owner_id, buckets)

    def bucket_number(self, place: Place) -> int:
        return 0 if self.buckets == 1 else _hash(place) & (self.buckets - 1)

    def reading(self, *, check: bool = False) -> Reading:
        """Reads to be put together. With ``check`` each bucket that is read is asked whether its namespace lives."""
        return Reading(declare=self.servers.cluster, check=check)

    def commit_call(self, bucket: Bucket, updates: Iterable[Sequence[Argument]]) -> Call:
        """What carries out updates, each made by :func:`packed_update`, that all lie in the slot of ``bucket``."""
        arguments = list(itertools.chain.from_iterable(updates))
        return Call(bucket.slot, COMMIT, arguments, _commit_keys(arguments) if self.servers.cluster else (), once=True)

    def new_version(self) -> bytes:
        return U64.pack(next(self._versions) % 2**64)

    def know(self, owner: Owner) -> None:
        """Remember where a namespace is."""
        if len(self._known) > _NAMESPACES_KNOWN_MAX:
            self._known = {"": self.root}
        self._known[owner.name] = owner

    def forget(self, name: str) -> None:
        """Look the namespace up again before it is used again."""
        if name:
            self._known.pop(name, None)

    async def owners(self, names: Iterable[str]) -> dict[str, Owner | Exception | None]:
        """The namespaces of these names; None for one that does not exist, a problem for one that is not found out."""
        found: dict[str, Owner | Exception | None] = {}
        asked: dict[str, Ref] = {}
        reading = self.reading()
        for name in names:
            owner = self._known.get(name)
            if owner is not None:
                found[name] = owner
            elif name not in asked:
                asked[name] = reading.ask(self.registry, "i", self.registry.record_key(0, name.encode()))
        if not asked:
            return found
        life = reading.life(self.registry)
        replies = await self.servers.exchange(reading.calls())
        for name, (call, number) in asked.items():
            reply = replies[call]
            if isinstance(reply, Exception):
                found[name] = problem_of(reply)
                continue
            if self.is_lost(replies, life):
                found[name] = lost()
                continue
            head, owner_id = reply[number]
            if head is None:
                found[name] = None
            else:
                found[name] = owner = self.owner(name, owner_id)
                self.know(owner)
        return found

    def is_lost(self, replies: Sequence[Any], life: Ref) -> bool:
        """Whether an answer to :meth:`Reading.life` of the registry says that the store is not there any more."""
        call, number = life
        return not isinstance(replies[call], Exception) and replies[call][number] != self.id

    async def heal(self, name: str) -> None:
        """Give a namespace's buckets back the copies of its head that a failover of the cluster lost."""
        owner = (await self.owners([name]))[name]
        if not isinstance(owner, Owner):
            return
        for restoring in (True, False):
            reading = self.reading()
            call, number = reading.ask(self.registry, "i", self.registry.record_key(0, name.encode()))
            replies = await self.exchange(reading.calls())
            head, owner_id = replies[call][number]
            alive = head is not None and owner_id == owner.id
            if restoring and alive:
                await self.exchange(
                    self.commit_call(
                        bucket, [packed_update([(bucket.ns_key, ABSENT)], (), new_copy(bucket, head, name))]
                    )
                    for bucket in owner.buckets
                )
            elif not alive:
                # It was deleted meanwhile.
                await self.exchange(
                    self.commit_call(bucket, [packed_update((), (), no_copy(bucket))]) for bucket in owner.buckets
                )
                self.forget(name)
                return

    async def settle(self, name: str) -> None:
        """See that every bucket of a namespace has its present head (cluster)."""
        record_key = self.registry.record_key(0, name.encode())
        reading = self.reading()
        call, number = reading.ask(self.registry, "i", record_key)
        replies = await self.exchange(reading.calls())
        head, owner_id = replies[call][number]
        if head is not None:
            owner = self.owner(name, owner_id)
            await self.exchange(
                self.commit_call(bucket, [packed_update((), (), ("g", bucket.ns_key, head))])
                for bucket in owner.buckets
            )
        settled = ("A", self.registry.tag + b":unsettled", name)
        version = head[:8] if head is not None else ABSENT
        await self.exchange([self.commit_call(self.registry, [packed_update([(record_key, version)], (), settled)])])

    # --- expiry --------------------------------------------------------------------------------------------

    async def tell_due(self, due: Mapping[bytes, int]) -> None:
        """Note when the first of some records that were written expires, by bucket, where that is not noted yet.

        What is noted is no later than what expires first: a write lowers it after the record is there, and whoever
        raises it looks at the bucket afterwards. It is never taken away while the namespace lives.
        """
        now = self.clock()
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
        reading = self.reading()
        refs = {}
        bound = _before(now_ms + 1)
        for member in members:
            reading.fence()
            tag = b"{%b/%b}" % (self.prefix, member) if member else self.registry.tag
            refs[member] = reading.ask(Bucket(tag, self.servers.slot(tag)), "x", tag, bound, limit)
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

    async def read(
        self, queries: Sequence[Query], positions: Sequence[int], answers: list[Any], *, heal: bool
    ) -> list[int]:
        """Answer some of the queries; returns those to be asked again, for their namespace was not what it was."""
        names = {namespace_of(read) for position in positions for read in queries[position]}
        owners = await self.owners(names)
        reading = self.reading(check=True)
        asked: list[tuple[int, list[Part], list[tuple[str, Ref]]]] = []
        for position in positions:
            reading.fence()
            try:
                parts = [self.part(read, owners, reading) for read in queries[position]]
            except Problem as problem:
                answers[position] = problem
                continue
            asked.append((position, parts, reading.checks()))
        replies = await self.servers.exchange(reading.calls()) if reading else []
        again: list[int] = []
        alone: list[int] = []
        stale: set[str] = set()
        for position, parts, checks in asked:
            if any(not name and self.is_lost(replies, ref) for name, ref in checks):
                answers[position] = lost()
                continue
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
            except Stale as error:
                stale.add(error.name)
                again.append(position)
            except FAILURES as error:
                # One bad read spoils the call that it is in: alone, each gets its own answer.
                if isinstance(error, ResponseError):
                    alone.append(position)
                answers[position] = problem_of(error)
            except Exception as error:
                answers[position] = error
        if len(positions) > 1:
            for position in alone:
                again += await self.read(queries, [position], answers, heal=heal)
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

    def part(self, read: Read, owners: Mapping[str, Any], reading: Reading) -> Part:
        """Put a read among those of ``reading``; what is returned finds its answer in the replies."""
        if isinstance(read, ExpiredRead):
            return Part((), None, lambda: self._expired(read))
        owner = owners[namespace_of(read)]
        if isinstance(owner, Exception):
            raise problem_of(owner)
        if isinstance(read, HeadRead):
            if owner is None:
                return Part((), lambda _: None)
            key = read.place.key.encode()
            bucket = owner.bucket(read.place)
            reading.check(owner, bucket)
            record_key = bucket.record_key(read.place.kind, key)
            if read.bytes_max is None:
                ref = reading.ask(bucket, "v", record_key)
            else:
                ref = reading.ask(bucket, "b", record_key, read.bytes_max)
            return Part((ref,), _head_and_value)
        if isinstance(read, RowScan):
            if owner is None:
                return Part((), lambda _: Slice([], False))
            bucket = owner.bucket(read.place)
            reading.check(owner, bucket)
            return Part((reading.ask(bucket, "s", bucket.tag, *_scan_arguments(read)),), _rows)
        if isinstance(read, CountRead):
            buckets = owner.buckets if owner is not None and owner is not self.root else []
            refs = []
            for bucket in buckets:
                reading.check(owner, bucket)
                refs.append(reading.ask(bucket, "c", bucket.tag, _before(read.now_ms + 1)))
            return Part(tuple(refs), _counts)
        if owner is None:
            return Part((), lambda _: Slice([], False))
        if len(owner.buckets) > 1:
            return Part((), None, lambda: self._list_buckets(read, owner))
        bucket = owner.buckets[0]
        reading.check(owner, bucket)
        low, high = _listing_bounds(read)
        bytes_max = -1 if read.bytes_max is None or not read.values else read.bytes_max
        arguments = (int(read.kind), low, high, read.limit, bytes_max, int(read.values))
        return Part((reading.ask(bucket, "l", bucket.tag, *arguments),), lambda replies: _listed(replies, read.values))

    async def _list_buckets(self, listing: Listing, owner: Owner) -> Slice[tuple[str, Head]]:
        """Merge what the buckets list: keys and sizes first, then the values of those that the page has room for."""
        low, high = _listing_bounds(listing)
        lows = dict.fromkeys(owner.buckets, low)
        each = min(listing.limit, 2 * listing.limit // len(owner.buckets) + 8)
        found: list[tuple[bytes, Bucket, bytes, int]] = []
        while True:
            reading = self.reading(check=True)
            refs = {}
            for bucket, start in lows.items():
                reading.check(owner, bucket)
                mode = 2 if listing.values else 0
                refs[bucket] = reading.ask(bucket, "l", bucket.tag, int(listing.kind), start, high, each, -1, mode)
            replies = await self.exchange(reading.calls())
            if any(replies[call][number] is None for _, (call, number) in reading.checks()):
                raise Stale(owner.name)
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
            return Slice([(key.decode(), unpacked(head, b"")) for key, _, head, _ in page], more)
        reading = self.reading()
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
                raise translated(reply) from reply
        return replies


# --- reading -----------------------------------------------------------------------------------------------


class Stale(Exception):
    """A bucket does not have the namespace (``name``) that it was taken to belong to."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Part(NamedTuple):
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
                raise reply
            found.append(reply[number])
        return self.decode(found)


class Reading:
    """Reads on their way, gathered into one call for each slot, or a few if they are many.

    With ``check`` each bucket that is read is also asked whether its namespace lives.
    """

    def __init__(self, *, declare: bool, check: bool) -> None:
        self._declare = declare
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

    def ask(self, bucket: Bucket, *arguments: Argument) -> Ref:
        call = self._open.get(bucket.slot)
        if call is None:
            call = self._open[bucket.slot] = len(self._calls)
            self._calls.append((bucket.slot, []))
            self._sizes.append(0)
        self._calls[call][1].extend(arguments)
        number = self._sizes[call]
        self._sizes[call] = number + 1
        return call, number

    def check(self, owner: Owner, bucket: Bucket) -> None:
        """Have the query under way depend on the namespace, or the store, being there."""
        if self._check:
            self._checks.append((owner.name, self.life(bucket)))

    def life(self, bucket: Bucket) -> Ref:
        """Ask for the head of the namespace in its bucket, or for the id of the store, once in a call."""
        ref = self._checked.get(bucket.tag)
        if ref is None or ref[0] != self._open.get(bucket.slot):
            ref = self._checked[bucket.tag] = self.ask(bucket, "h", bucket.life_key)
        return ref

    def checks(self) -> list[tuple[str, Ref]]:
        """What the query that was just put together depends on."""
        checks, self._checks = self._checks, []
        return checks

    def calls(self) -> list[Call]:
        if not self._declare:
            return [Call(slot, READ, arguments) for slot, arguments in self._calls]
        return [Call(slot, READ, arguments, _read_keys(arguments)) for slot, arguments in self._calls]


def namespace_of(read: Read) -> str:
    if isinstance(read, HeadRead | RowScan):
        return read.place.namespace
    return "" if isinstance(read, ExpiredRead) else read.namespace


def _scan_arguments(scan: RowScan) -> tuple[Argument, ...]:
    lane = b"%d:%d:%b" % (scan.place.kind, scan.lane, scan.place.key.encode())
    floor = scan.floor and scan.low is not None
    return (
        lane,
        "b" if scan.along is RowOrder.BY else "s",
        *bounds(scan.low, scan.high),
        int(floor),
        int(scan.descending),
        -1 if scan.limit is None else scan.limit,
        -1 if scan.bytes_max is None else scan.bytes_max,
    )


def bounds(low: bytes | None, high: bytes | None) -> tuple[bytes, bytes]:
    """Both inclusive, as ZRANGEBYLEX takes them."""
    return b"-" if low is None else b"[" + low, b"+" if high is None else b"[" + high


def _listing_bounds(listing: Listing) -> tuple[bytes, bytes]:
    prefix, after = listing.prefix.encode(), (listing.after or "").encode()
    # No UTF-8 has a byte 0xFF.
    high = b"(" + prefix + b"\xff" if prefix else b"+"
    if listing.after is not None and after >= prefix:
        return b"(" + after, high
    return b"[" + prefix if prefix else b"-", high


def unpacked(packed: bytes, value: bytes) -> Head:
    return Head(packed[16:], value, _expiry(packed[8:16]))


def _expiry(packed: bytes) -> int | None:
    return None if packed == _NEVER else U64.unpack(packed)[0] - _SIGN


def packed_expiry(expires_ms: int | None) -> bytes:
    return _NEVER if expires_ms is None else U64.pack(expires_ms + _SIGN)


def _before(expires_ms: int) -> bytes:
    """The bound, not included, below which all expire that do so before this moment."""
    return b"+" if expires_ms >= _SIGN else b"(" + packed_expiry(expires_ms)


def _score(expires_ms: int) -> int:
    """The moment as a score, which is exact only so far; one that is less is as good."""
    return max(-_EXACT, min(expires_ms, _EXACT))


def due_member(bucket: Bucket) -> bytes:
    """How ``due`` names a bucket: id/number; the registry is the empty name."""
    return bucket.tag[bucket.tag.index(b"/") + 1 : -1] if bucket.ns_key else b""


def _head_and_value(replies: list[Any]) -> Head | None:
    packed, value = replies[0]
    return None if packed is None else unpacked(packed, value or b"")


def _rows(replies: list[Any]) -> Slice[Row]:
    more, *found = replies[0]
    return Slice(list(map(Row, found[::3], found[1::3], found[2::3])), bool(more))


def _listed(replies: list[Any], values: bool) -> Slice[tuple[str, Head]]:
    more, *found = replies[0]
    kept = found[2::3] if values else itertools.repeat(b"")
    heads = zip(found[::3], found[1::3], kept, strict=False)
    return Slice([(key.decode(), unpacked(packed, value or b"")) for key, packed, value in heads], bool(more))


def _counts(replies: list[Any]) -> dict[Kind, int]:
    counts = dict.fromkeys(COUNTED, 0)
    for found in replies:
        for kind in counts:
            counts[kind] += found[2 * kind - 2] - found[2 * kind - 1]
    return counts


# --- committing ---------------------------------------------------------------------------------------------


def packed_update(
    checks: Iterable[tuple[bytes, bytes]], claims: Sequence[Argument], writes: Sequence[Argument]
) -> list[Argument]:
    """One update, as ``commit.lua`` takes it."""
    flat = [part for check in checks for part in check]
    counted = [len(flat) // 2, *flat, len(claims) // 3, *claims, *writes]
    return [len(counted), *counted]


def new_copy(bucket: Bucket, head: bytes, name: str) -> tuple[Argument, ...]:
    return "f", bucket.ns_key, "h", head, "f", bucket.ns_key, "n", name


def no_copy(bucket: Bucket) -> tuple[Argument, ...]:
    return "u", bucket.ns_key


# --- keys --------------------------------------------------------------------------------------------------

_Keys: TypeAlias = tuple[int, Callable[[Sequence[Any]], Iterable[bytes]]]


def _record_keys(arguments: Sequence[Any]) -> list[bytes]:
    tag, kind, key = arguments[:3]
    found = [b"%b:h:%d:%b" % (tag, kind, key), b"%b:i:%d" % (tag, kind)]
    if arguments[-1]:
        found.append(b"%b:x:%d" % (tag, kind))
    return found


def _lane_keys(arguments: Sequence[Any]) -> list[bytes]:
    tag, lane = arguments[:2]
    return [b"%b:%b:%b" % (tag, part, lane) for part in (b"s", b"b", b"d")]


def _first(arguments: Sequence[Any]) -> Sequence[bytes]:
    return arguments[:1]


def _index_key(arguments: Sequence[Any]) -> list[bytes]:
    return [b"%b:i:%d" % (arguments[0], arguments[1])]


def _kind_keys(arguments: Sequence[Any]) -> list[bytes]:
    return [b"%b:%b:%d" % (arguments[0], part, kind) for kind in Kind for part in (b"i", b"x")]


# By the letter of a read or write: how many arguments it has, and which keys they mean.
_READS: Final[dict[Any, _Keys]] = {
    **dict.fromkeys("hvip", (1, _first)),
    "b": (2, _first),
    "s": (9, _lane_keys),
    "l": (7, _index_key),
    "c": (2, _kind_keys),
    "x": (3, _kind_keys),
}
_WRITES: Final[dict[Any, _Keys]] = {
    "h": (6, _record_keys),
    "D": (4, _record_keys),
    "r": (6, _lane_keys),
    "d": (3, _lane_keys),
    "R": (4, _lane_keys),
    "f": (3, _first),
    "z": (3, _first),
    **dict.fromkeys("tgZaA", (2, _first)),
    "u": (1, _first),
}


def _keys(meanings: Mapping[Any, _Keys], arguments: Sequence[Argument], found: dict[bytes, None]) -> None:
    position = 0
    while position < len(arguments):
        length, keys = meanings[arguments[position]]
        found.update(dict.fromkeys(keys(arguments[position + 1 : position + 1 + length])))
        position += 1 + length


def _read_keys(arguments: Sequence[Argument]) -> Collection[bytes]:
    """The keys that a call of ``read.lua`` touches, but for those of the records of a listing."""
    found: dict[bytes, None] = {}
    _keys(_READS, arguments, found)
    return found


def _commit_keys(arguments: Sequence[Any]) -> Collection[bytes]:
    """The keys that a call of ``commit.lua`` touches."""
    found: dict[bytes, None] = {}
    position = 0
    while position < len(arguments):
        stop = position + 1 + arguments[position]
        checks_stop = position + 2 + 2 * arguments[position + 1]
        found.update(dict.fromkeys(arguments[position + 2 : checks_stop : 2]))
        _keys(_WRITES, arguments[checks_stop + 1 + 3 * arguments[checks_stop] : stop], found)
        position = stop
    return found
