"""A Redis store and its namespaces: where they are, and how calls reach them."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from rstored.backends.abc import Place, UnfitStorage
from rstored.backends.clock import Clock
from rstored.backends.redis.calls import Argument, Call
from rstored.backends.redis.commits import COMMIT, commit_keys, new_copy, no_copy, packed_update
from rstored.backends.redis.failures import LOST, lost, problem_of, translated
from rstored.backends.redis.layout import ABSENT, U64, Bucket, Owner, record_hash
from rstored.backends.redis.reading import Reading, Ref
from rstored.backends.redis.servers import Servers, facts_of
from rstored.problems import Problem, damaged

_NAMESPACES_KNOWN_MAX: Final = 10_000
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

    async def exchange(self, calls: Iterable[Call]) -> list[Any]:
        """The answers to the calls. Raises the first failure among them, translated."""
        calls = list(calls)
        replies = await self.servers.exchange(calls) if calls else []
        for reply in replies:
            if isinstance(reply, Exception):
                raise translated(reply) from reply
        return replies

    def reading(self, *, check: bool = False) -> Reading:
        """An empty :class:`Reading`. With ``check``, it asks each bucket whether its namespace exists."""
        return Reading(declare=self.servers.cluster, check=check)

    def commit_call(self, bucket: Bucket, updates: Iterable[Sequence[Argument]]) -> Call:
        """The call that carries out updates in the slot of ``bucket``. :func:`packed_update` makes each of them."""
        arguments = list(itertools.chain.from_iterable(updates))
        return Call(bucket.slot, COMMIT, arguments, commit_keys(arguments) if self.servers.cluster else (), once=True)

    def new_version(self) -> bytes:
        return U64.pack(next(self._versions) % 2**64)

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
            if head is None and owner_id is None:
                found[name] = None
            elif head is None:
                found[name] = damaged("a namespace's record")
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

    async def heal_quietly(self, name: str) -> Problem | None:
        """As :meth:`heal`; returns the problem of a namespace that is damaged."""
        try:
            await self.heal(name)
        except Problem as problem:
            # Whoever needs the namespace gets any other problem too.
            return problem if problem.code == "backend-corrupt" else None
        return None

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
