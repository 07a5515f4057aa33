"""The parts of a Redis store beside its records: namespaces, and the buckets in which something expires."""

from __future__ import annotations

import heapq
import itertools
import re
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rstored.backends.abc import ExpiredRead, Kind, Place, UnfitStorage
from rstored.backends.clock import Clock
from rstored.backends.redis.calls import Argument, Call
from rstored.backends.redis.commits import COMMIT, commit_keys, new_copy, no_copy, packed_update
from rstored.backends.redis.failures import LOST, lost, problem_of, translated
from rstored.backends.redis.layout import ABSENT, EXACT, U64, Bucket, Owner, expiry_bound, record_hash, unpacked_expiry
from rstored.backends.redis.reading import Reading, Ref
from rstored.backends.redis.servers import Servers, facts_of
from rstored.problems import Problem, damaged, of_storage

__all__ = ["Store"]

_NAMESPACES_KNOWN_MAX: Final = 10_000
_DUE_BUCKETS_MAX: Final = 1_000
_DUE_RECHECK_MS: Final = 600_000
# What secrets.token_urlsafe makes of 8 bytes.
_ID: Final = re.compile(rb"[A-Za-z0-9_-]{11}")


class Store:
    """A store under one prefix: where its records are, and how they are read."""

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
        # The time before which nothing in a bucket expires, as this process last wrote it to `due`.
        self._due: dict[bytes, int] = {}

    # --- the store -----------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Take over the time of the server with the registry, and check that the store still exists.

        Raises :class:`UnfitStorage` if it does not. In a cluster each master has a clock, but only this one counts.
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

    def owner(self, name: str, owner_id: bytes | None) -> Owner:
        """The namespace with this id. Raises Problem ``backend-corrupt`` if it is none."""
        if owner_id is None or _ID.fullmatch(owner_id) is None:
            raise damaged("a namespace's record")
        buckets = []
        for number in range(self.buckets):
            tag = b"{%b/%b/%d}" % (self.prefix, owner_id, number)
            buckets.append(Bucket(tag, self.servers.slot(tag), tag + b":ns"))
        return Owner(name, owner_id, buckets)

    def bucket_number(self, place: Place) -> int:
        return 0 if self.buckets == 1 else record_hash(place) & (self.buckets - 1)

    def reading(self, *, check: bool = False) -> Reading:
        """An empty :class:`Reading`. With ``check``, it asks each bucket whether its namespace exists."""
        return Reading(declare=self.servers.cluster, check=check)

    def commit_call(self, bucket: Bucket, updates: Iterable[Sequence[Argument]]) -> Call:
        """The call that carries out updates in the slot of ``bucket``. :func:`packed_update` makes each of them."""
        arguments = list(itertools.chain.from_iterable(updates))
        return Call(bucket.slot, COMMIT, arguments, commit_keys(arguments) if self.servers.cluster else (), once=True)

    def new_version(self) -> bytes:
        return U64.pack(next(self._versions) % 2**64)

    def know(self, owner: Owner) -> None:
        """Remember where a namespace is."""
        if len(self._known) > _NAMESPACES_KNOWN_MAX:
            self._known = {"": self.root}
        self._known[owner.name] = owner

    def forget(self, name: str) -> None:
        """Forget the namespace. Its next use looks it up again."""
        if name:
            self._known.pop(name, None)

    async def owners(self, names: Iterable[str]) -> dict[str, Owner | Exception | None]:
        """The namespaces of these names: None if one does not exist, a problem if the lookup failed."""
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
                try:
                    found[name] = owner = self.owner(name, owner_id)
                    self.know(owner)
                except Problem as problem:
                    found[name] = problem
        return found

    def is_lost(self, replies: Sequence[Any], life: Ref) -> bool:
        """Whether an answer to :meth:`Reading.life` of the registry says that the store does not exist any more."""
        call, number = life
        return not isinstance(replies[call], Exception) and replies[call][number] != self.id

    async def heal(self, name: str) -> None:
        """Write the copies of a namespace's head again that a failover of the cluster has lost."""
        owner = (await self.owners([name]))[name]
        if not isinstance(owner, Owner):
            return
        if not self.servers.cluster:
            await self._check_copies(owner)
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
                # The namespace was deleted meanwhile.
                await self.exchange(
                    self.commit_call(bucket, [packed_update((), (), no_copy(bucket))]) for bucket in owner.buckets
                )
                self.forget(name)
                return

    async def _check_copies(self, owner: Owner) -> None:
        """Raise Problem ``backend-corrupt`` if a namespace of a single server, where all keys are of one moment, lacks
        its copies.
        """
        reading = self.reading()
        call, number = reading.ask(self.registry, "i", self.registry.record_key(0, owner.name.encode()))
        copies = [reading.life(bucket) for bucket in owner.buckets]
        replies = await self.exchange(reading.calls())
        head, owner_id = replies[call][number]
        if head is not None and owner_id == owner.id and any(replies[call][n] is None for call, n in copies):
            raise damaged("a namespace's record")

    async def settle(self, name: str) -> None:
        """Give every bucket of a namespace its present head (cluster)."""
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
        """Note by bucket when the first of some written records expires, unless an earlier time is noted.

        The noted time is never later than the first expiry in the bucket. A write lowers it after it has written the
        record, and whoever raises it looks at the bucket afterwards. It stays as long as the namespace exists.
        """
        now = self.clock()
        news = {}
        for member, expires_ms in due.items():
            known = self._due.get(member)
            # Other processes may have raised a time in the past.
            if known is None or known > expires_ms or known <= now:
                news[member] = expires_ms
        if not news:
            return
        calls = [self._lower_due(member, expires_ms) for member, expires_ms in news.items()]
        for (member, expires_ms), reply in zip(news.items(), await self.servers.exchange(calls), strict=True):
            if isinstance(reply, Exception):
                # The records are written. They may only be erased late.
                self._due.pop(member, None)
            else:
                if len(self._due) > _NAMESPACES_KNOWN_MAX:
                    self._due.clear()
                self._due[member] = expires_ms

    def _lower_due(self, member: bytes, expires_ms: int) -> Call:
        return Call(self.registry.slot, None, ("ZADD", self.registry.tag + b":due", "LT", _score(expires_ms), member))

    async def expired(self, read: ExpiredRead) -> list[Place]:
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
        """When something expires next in each of these buckets, and what has expired. Deleted buckets are left out."""
        reading = self.reading()
        refs = {}
        bound = expiry_bound(now_ms + 1)
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
            else:
                found[member] = _expiring(name, kinds)
        if gone:
            await self.exchange([Call(self.registry.slot, None, ("ZREM", self.registry.tag + b":due", *gone))])
        return found

    async def heal_quietly(self, name: str) -> Problem | None:
        """As :meth:`heal`; returns the problem of a namespace that is damaged."""
        try:
            await self.heal(name)
        except Problem as problem:
            # Whoever needs the namespace gets any other problem too.
            return problem if problem.code == "backend-corrupt" else None
        return None

    async def exchange(self, calls: Iterable[Call]) -> list[Any]:
        """The answers to the calls. Raises the first failure among them, translated."""
        calls = list(calls)
        replies = await self.servers.exchange(calls) if calls else []
        for reply in replies:
            if isinstance(reply, Exception):
                raise translated(reply) from reply
        return replies


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
