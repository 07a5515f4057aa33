"""How the Redis backend answers reads.

All reads of a batch in one slot are one call of ``read.lua``, or a few. A single server is one slot. So a query is one
snapshot, unless it reads several slots of a cluster.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from redis.exceptions import ResponseError

from rstored.backends.abc import (
    COUNTED,
    CountRead,
    ExpiredRead,
    Head,
    HeadRead,
    Kind,
    Listing,
    Query,
    Read,
    Row,
    RowOrder,
    RowScan,
    Slice,
)
from rstored.backends.redis.calls import Argument
from rstored.backends.redis.expiries import Expiries
from rstored.backends.redis.failures import FAILURES, Stale, lost, problem_of
from rstored.backends.redis.layout import Bucket, Owner, bounds, expiry_bound, unpacked
from rstored.backends.redis.reading import Part, Reading, Ref
from rstored.backends.redis.store import Store
from rstored.problems import Problem, of_storage


class Reader:
    """Answers reads of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.expiries = Expiries(store)

    async def read(
        self, queries: Sequence[Query], positions: Sequence[int], answers: list[Any], *, heal: bool
    ) -> list[int]:
        """Answer some of the queries. Returns those to ask again, because their namespace has changed."""
        names = {namespace_of(read) for position in positions for read in queries[position]}
        owners = await self.store.owners(names)
        reading = self.store.reading(check=True)
        asked: list[tuple[int, list[Part], list[tuple[str, Ref]]]] = []
        for position in positions:
            reading.fence()
            try:
                parts = [self.part(read, owners, reading) for read in queries[position]]
            except Problem as problem:
                answers[position] = problem
                continue
            asked.append((position, parts, reading.checks()))
        replies = await self.store.servers.exchange(reading.calls()) if reading else []
        again: list[int] = []
        alone: list[int] = []
        stale: set[str] = set()
        for position, parts, checks in asked:
            if any(not name and self.store.is_lost(replies, ref) for name, ref in checks):
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
                # One bad read spoils its whole call. Sent alone, each query gets its own answer.
                if isinstance(error, ResponseError):
                    alone.append(position)
                answers[position] = problem_of(error)
            except Exception as error:
                answers[position] = error
        if len(positions) > 1:
            for position in alone:
                again += await self.read(queries, [position], answers, heal=heal)
        for name in stale:
            self.store.forget(name)
            damage = await self.store.heal_quietly(name) if heal else None
            if damage is not None:
                hit = {n for n in again if any(namespace_of(read) == name for read in queries[n])}
                again = [n for n in again if n not in hit]
                for position in hit:
                    answers[position] = problem_of(damage)
        return again

    def part(self, read: Read, owners: Mapping[str, Any], reading: Reading) -> Part:
        """Add a read to ``reading``. The part that is returned finds the answer in the replies."""
        if isinstance(read, ExpiredRead):
            return Part((), None, lambda: self.expiries.expired(read))
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
            buckets = owner.buckets if owner is not None and owner is not self.store.root else []
            refs = []
            for bucket in buckets:
                reading.check(owner, bucket)
                refs.append(reading.ask(bucket, "c", bucket.tag, expiry_bound(read.now_ms + 1)))
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
        """Merge the listings of the buckets. It reads keys and sizes first, then the values that fit into the page."""
        low, high = _listing_bounds(listing)
        lows = dict.fromkeys(owner.buckets, low)
        each = min(listing.limit, 2 * listing.limit // len(owner.buckets) + 8)
        found: list[tuple[bytes, Bucket, bytes, int]] = []
        while True:
            reading = self.store.reading(check=True)
            refs = {}
            for bucket, start in lows.items():
                reading.check(owner, bucket)
                mode = 2 if listing.values else 0
                refs[bucket] = reading.ask(bucket, "l", bucket.tag, int(listing.kind), start, high, each, -1, mode)
            replies = await self.store.exchange(reading.calls())
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
            # Each bucket has listed its keys up to some key. Beyond the least of these, keys may be missing.
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
            return Slice([(_text(key), unpacked(head, b"")) for key, _, head, _ in page], more)
        reading = self.store.reading()
        places = [(key, reading.ask(bucket, "v", bucket.record_key(listing.kind, key))) for key, bucket, *_ in page]
        replies = await self.store.exchange(reading.calls())
        heads = [(_text(key), _head_and_value([replies[call][number]])) for key, (call, number) in places]
        present = [(key, head) for key, head in heads if head is not None]
        if page and more and not present:
            return await self._list_buckets(listing._replace(after=heads[-1][0]), owner)
        return Slice(present, more)


@of_storage("the key of a record")
def _text(key: bytes) -> str:
    return key.decode()


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


def _listing_bounds(listing: Listing) -> tuple[bytes, bytes]:
    prefix, after = listing.prefix.encode(), (listing.after or "").encode()
    # No UTF-8 has a byte 0xFF.
    high = b"(" + prefix + b"\xff" if prefix else b"+"
    if listing.after is not None and after >= prefix:
        return b"(" + after, high
    return b"[" + prefix if prefix else b"-", high


def _head_and_value(replies: list[Any]) -> Head | None:
    packed, value = replies[0]
    return None if packed is None else unpacked(packed, value or b"")


@of_storage("a row of a record")
def _rows(replies: list[Any]) -> Slice[Row]:
    more, *found = replies[0]
    return Slice(list(map(Row, found[::3], found[1::3], found[2::3])), bool(more))


@of_storage("a record")
def _listed(replies: list[Any], values: bool) -> Slice[tuple[str, Head]]:
    more, *found = replies[0]
    kept = found[2::3] if values else itertools.repeat(b"")
    heads = zip(found[::3], found[1::3], kept, strict=False)
    return Slice([(_text(key), unpacked(packed, value or b"")) for key, packed, value in heads], bool(more))


def _counts(replies: list[Any]) -> dict[Kind, int]:
    counts = dict.fromkeys(COUNTED, 0)
    for found in replies:
        for kind in counts:
            counts[kind] += found[2 * kind - 2] - found[2 * kind - 1]
    return counts
