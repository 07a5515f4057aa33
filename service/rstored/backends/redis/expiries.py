"""When something expires in the buckets of a Redis store."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Final

from rstored.backends.abc import ExpiredRead, Kind, Place
from rstored.backends.redis.calls import Call
from rstored.backends.redis.layout import EXACT, Bucket, expiry_bound, unpacked_expiry
from rstored.backends.redis.store import Store
from rstored.problems import of_storage

_BUCKETS_KNOWN_MAX: Final = 10_000
_DUE_BUCKETS_MAX: Final = 1_000
_DUE_RECHECK_MS: Final = 600_000


class Expiries:
    """The buckets of a store in which something expires, and when."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._key = store.registry.tag + b":due"
        self._slot = store.registry.slot
        # The time before which nothing in a bucket expires, as this process last wrote it to `due`.
        self._due: dict[bytes, int] = {}

    async def tell_due(self, due: Mapping[bytes, int]) -> None:
        """Note by bucket when the first of some written records expires, unless an earlier time is noted.

        The noted time is never later than the first expiry in the bucket. A write lowers it after it has written the
        record, and whoever raises it looks at the bucket afterwards. It stays as long as the namespace exists.
        """
        now = self._store.clock()
        news = {}
        for member, expires_ms in due.items():
            known = self._due.get(member)
            # Other processes may have raised a time in the past.
            if known is None or known > expires_ms or known <= now:
                news[member] = expires_ms
        if not news:
            return
        calls = [self._lower_due(member, expires_ms) for member, expires_ms in news.items()]
        for (member, expires_ms), reply in zip(news.items(), await self._store.servers.exchange(calls), strict=True):
            if isinstance(reply, Exception):
                # The records are written. They may only be erased late.
                self._due.pop(member, None)
            else:
                if len(self._due) > _BUCKETS_KNOWN_MAX:
                    self._due.clear()
                self._due[member] = expires_ms

    async def expired(self, read: ExpiredRead) -> list[Place]:
        """At most ``read.limit`` records that have expired, in order of expiry."""
        search = ("ZRANGEBYSCORE", self._key, "-inf", _score(read.now_ms), "LIMIT", 0, _DUE_BUCKETS_MAX)
        (members,) = await self._store.exchange([Call(self._slot, None, search)])
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
            await self._store.exchange(
                [Call(self._slot, None, ("ZADD", self._key, "XX", _score(recheck), member)) for member in quiet]
            )
            lower = {}
            for member, (first, _) in (await self._due_in(quiet, read.now_ms, 0)).items():
                self._due[member] = recheck if first is None else min(first, recheck)
                if first is not None:
                    lower[member] = first
            await self._store.exchange([self._lower_due(member, first) for member, first in lower.items()])
        return [place for _, place in heapq.nsmallest(read.limit, found)]

    def _lower_due(self, member: bytes, expires_ms: int) -> Call:
        return Call(self._slot, None, ("ZADD", self._key, "LT", _score(expires_ms), member))

    async def _due_in(
        self, members: Iterable[bytes], now_ms: int, limit: int
    ) -> dict[bytes, tuple[int | None, list[tuple[bytes, Place]]]]:
        """When something expires next in each of these buckets, and what has expired. Deleted buckets are left out."""
        reading = self._store.reading()
        refs = {}
        bound = expiry_bound(now_ms + 1)
        for member in members:
            reading.fence()
            tag = b"{%b/%b}" % (self._store.prefix, member) if member else self._store.registry.tag
            refs[member] = reading.ask(Bucket(tag, self._store.servers.slot(tag)), "x", tag, bound, limit)
        replies = await self._store.exchange(reading.calls())
        found: dict[bytes, tuple[int | None, list[tuple[bytes, Place]]]] = {}
        gone = []
        for member, (call, number) in refs.items():
            name, *kinds = replies[call][number]
            if name is None and member:
                gone.append(member)
            else:
                found[member] = _expiring(name, kinds)
        if gone:
            await self._store.exchange([Call(self._slot, None, ("ZREM", self._key, *gone))])
        return found


@of_storage("when a record expires")
def _expiring(name: bytes | None, kinds: list[list[bytes | None]]) -> tuple[int | None, list[tuple[bytes, Place]]]:
    """When something expires next in a bucket of the namespace ``name``, and what has expired."""
    namespace = name.decode() if name else ""
    firsts = [unpacked_expiry(first[:8]) for first, *_ in kinds if first is not None]
    places = [
        (entry[:8], Place(namespace, Kind(kind), entry[8:].decode()))
        for kind, (_, *expired) in enumerate(kinds)
        for entry in expired
        if entry is not None
    ]
    return min((first for first in firsts if first is not None), default=None), places


def _score(expires_ms: int) -> int:
    """The moment as a score. Scores are exact only up to 2^53, and a lower one is as good."""
    return max(-EXACT, min(expires_ms, EXACT))
