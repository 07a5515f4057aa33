"""The records that the updates of a batch name: where they are, and their heads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from rstored.backends.abc import Head, Kind, Place
from rstored.backends.redis.failures import Stale, lost, not_atomic, problem_of
from rstored.backends.redis.layout import ABSENT, Owner, unpacked
from rstored.backends.redis.reading import Ref
from rstored.backends.redis.store import Store
from rstored.problems import Problem, damaged, of_storage


class Records:
    """Heads as they were read, with the changes of the updates so far.

    ``owners`` are the namespaces by name. ``copies`` are the version and head of a namespace, by the tag of the bucket
    that they were read from.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.owners: dict[str, Any] = {}
        self.heads: dict[Place, Head | None] = {}
        self.versions: dict[Place, bytes] = {}
        # The lanes that a record uses, if any.
        self.lanes: dict[Place, set[int]] = {}
        self.copies: dict[bytes, tuple[bytes, Head]] = {}

    async def find(self, updates: Iterable[Sequence[Place]]) -> None:
        """Look up the namespaces of the places of some updates."""
        self.owners = await self._store.owners(
            {place.namespace for places in updates for place in places if place.kind is not Kind.NAMESPACE}
        )

    def refusal(self, places: Sequence[Place]) -> Exception | None:
        """Why an update of these places cannot be carried out; None if it can."""
        for place in places:
            owner = self.owners.get(place.namespace)
            if isinstance(owner, Exception):
                return problem_of(owner)
        if not self._store.servers.cluster or len(places) == 1:
            return None
        number = self._store.bucket_number
        if len({(place.namespace, number(place) if place.namespace else 0) for place in places}) == 1:
            return None
        return not_atomic()

    async def read(self, updates: Iterable[Sequence[Place]]) -> dict[Place, Exception]:
        """Read the heads of the places of some updates. Returns the places whose heads could not be read, and why."""
        store, registry = self._store, self._store.registry
        reading = store.reading()
        refs: dict[Place, Ref] = {}
        # By the tags of the buckets, the heads of their namespaces.
        copies: dict[bytes, tuple[str, Ref]] = {}
        # The places of the store's id, which is read with the record of each namespace.
        lives: dict[Place, Ref] = {}
        for places in updates:
            reading.fence()
            for place in places:
                if place in refs:
                    continue
                key = place.key.encode()
                if place.kind is Kind.NAMESPACE:
                    lives[place] = reading.life(registry)
                    refs[place] = reading.ask(registry, "i", registry.record_key(0, key))
                elif isinstance(owner := self.owners[place.namespace], Owner):
                    bucket = owner.bucket(place)
                    if bucket.ns_key:
                        copies[bucket.tag] = place.namespace, reading.life(bucket)
                    refs[place] = reading.ask(bucket, "p", bucket.record_key(place.kind, key))
        replies = await store.servers.exchange(reading.calls()) if reading else []
        failed = self._take(updates, refs, copies, replies)
        return failed | {place: lost() for place, life in lives.items() if store.is_lost(replies, life)}

    def _take(
        self,
        updates: Iterable[Sequence[Place]],
        refs: dict[Place, Ref],
        copies: dict[bytes, tuple[str, Ref]],
        replies: list[Any],
    ) -> dict[Place, Exception]:
        """Take over the replies. Returns the places whose heads could not be read."""
        failed: dict[Place, Exception] = {}
        gone: dict[str, Stale] = {}
        damaged_copies: dict[bytes, Problem] = {}
        for tag, (name, (call, number)) in copies.items():
            reply = replies[call]
            if isinstance(reply, Exception):
                continue
            packed = reply[number]
            if packed is None:
                gone[name] = Stale(name)
                continue
            try:
                self.copies[tag] = packed[:8], unpacked(packed, b"")
            except Problem as problem:
                damaged_copies[tag] = problem
        for place, (call, number) in refs.items():
            reply = replies[call]
            if isinstance(reply, Exception):
                failed[place] = reply
                continue
            try:
                packed, further = reply[number]
                self._take_record(place, packed, further, gone)
                if damaged_copies and isinstance(owner := self.owners.get(place.namespace), Owner):
                    # A namespace that is gone has no bucket.
                    tag = owner.bucket(place).tag
                    if tag in damaged_copies:
                        failed[place] = damaged_copies[tag]
            except Problem as problem:
                failed[place] = problem
        if gone:
            for place in itertools.chain.from_iterable(updates):
                name = place.key if place.kind is Kind.NAMESPACE else place.namespace
                if name in gone:
                    failed.setdefault(place, gone[name])
        return failed

    def _take_record(self, place: Place, packed: bytes | None, further: bytes | None, gone: dict[str, Stale]) -> None:
        """Take over the head of a record, and its lanes or namespace id. Raises Problem ``backend-corrupt``."""
        head = None if packed is None else unpacked(packed, b"")
        if place.kind is not Kind.NAMESPACE:
            if further:
                self.lanes[place] = _lanes_of(further)
        elif packed is not None:
            self._take_owner(place.key, further, gone)
        elif further is not None:
            raise damaged("a namespace's record")
        else:
            if self.owners.get(place.key) is not None:
                gone[place.key] = Stale(place.key)
            self.owners[place.key] = None
        self.heads[place], self.versions[place] = head, ABSENT if packed is None else packed[:8]

    def _take_owner(self, name: str, owner_id: bytes | None, gone: dict[str, Stale]) -> None:
        """Take over the id of a namespace that an update names. If another id was expected, its updates start again."""
        expected = self.owners.get(name)
        if isinstance(expected, Owner) and expected.id == owner_id:
            return
        if name in self.owners:
            gone[name] = Stale(name)
        self.owners[name] = self._store.owner(name, owner_id)


@of_storage("a record")
def _lanes_of(packed: bytes) -> set[int]:
    return set(map(int, packed.split(b",")))
