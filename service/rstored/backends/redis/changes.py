"""How the writes of updates become arguments of ``commit.lua``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from rstored.backends.abc import DeleteRecord, DeleteRow, Head, Kind, Place, PutHead, PutRow, Write
from rstored.backends.redis.commits import new_copy, no_copy, packed_update
from rstored.backends.redis.failures import not_atomic
from rstored.backends.redis.layout import ABSENT, U64, Bucket, Owner, bounds, due_member, packed_expiry
from rstored.backends.redis.records import Records
from rstored.backends.redis.sections import NamespaceChanges, Section, Writing
from rstored.backends.redis.store import Store


class Changes:
    """The changes of a batch to its ``records``.

    ``written`` are the places that were written, and ``due`` is by bucket when the first of the records expires.
    """

    def __init__(self, store: Store, records: Records) -> None:
        self._store = store
        self._registry = store.registry
        self._records = records
        self.written: set[Place] = set()
        self.due: dict[bytes, int] = {}

    def section(self, position: int, places: Sequence[Place], writes: Sequence[Write]) -> Section:
        """The writes of an update, and what must still be true of ``places`` at the commit. Later updates see them."""
        records = self._records
        changes = NamespaceChanges()
        checks: dict[bytes, bytes] = {}
        home = self._registry
        for place in places:
            key = place.key.encode()
            if not place.namespace:
                changes.checks[self._registry.record_key(place.kind, key)] = records.versions[place]
            elif (owner := records.owners[place.namespace]) is None:
                changes.checks[self._registry.record_key(0, place.namespace.encode())] = ABSENT
            else:
                home = owner.bucket(place)
                checks[home.ns_key] = records.copies[home.tag][0]
                checks[home.record_key(place.kind, key)] = records.versions.get(place, ABSENT)
        if changes.checks:
            # A namespace is made only in the store that was opened.
            changes.checks[self._registry.life_key] = self._store.id
        writing = Writing(self._store.new_version())
        for write in writes:
            if write.place.kind is Kind.NAMESPACE:
                self._write_namespace(write, changes, named=write.place in places)
            else:
                home = self._write(write, writing) or home
        for place in writing.touched:
            if (head := records.heads.get(place)) is not None and records.versions[place] != writing.version:
                bucket = records.owners[place.namespace].bucket(place)
                packed = writing.version + packed_expiry(head.expires_ms) + head.meta
                writing.arguments += ("t", bucket.record_key(place.kind, place.key.encode()), packed)
                records.versions[place] = writing.version
        if home is self._registry:
            # Records outside of every namespace are written together with the changes of namespaces.
            changes.registry += writing.arguments
            writing.arguments = []
        if self._store.servers.cluster:
            if not changes.registry and changes.checks and not checks:
                # Nothing is written. The registry checks that the namespace does not exist.
                return Section(position, self._registry, packed_update(changes.checks.items(), (), ()), 0)
            if writing.arguments and not checks:
                # The namespace is made just before, and others may see it then.
                for place in places:
                    home = records.owners[place.namespace].bucket(place)
                    checks[home.ns_key] = records.copies[home.tag][0]
                    checks[home.record_key(place.kind, place.key.encode())] = ABSENT
            arguments = (
                packed_update(checks.items(), writing.claims, writing.arguments) if checks or writing.arguments else []
            )
            return Section(position, home, arguments, writing.size, changes if changes.registry else None)
        everything = [argument for _, arguments in changes.before for argument in arguments]
        everything += changes.registry
        everything += writing.arguments
        everything += [argument for _, arguments in changes.after for argument in arguments]
        checks |= changes.checks
        arguments = packed_update(checks.items(), writing.claims, everything)
        return Section(position, home, arguments, writing.size, changes if changes.registry else None)

    def _write(self, write: Write, writing: Writing) -> Bucket | None:
        """Note a write to a record, and the head after it. Returns the bucket, or None if the write does nothing."""
        place, records = write.place, self._records
        owner = records.owners[place.namespace]
        key = place.key.encode()
        if isinstance(write, PutHead):
            if owner is None:
                raise AssertionError("a record was put into a namespace that does not exist")
            bucket: Bucket = owner.bucket(place)
            meta, value, expires_ms = write.head
            packed = writing.version + packed_expiry(expires_ms) + meta
            expiring = expires_ms is not None or _expires(records.heads.get(place))
            writing.arguments += ("h", bucket.tag, int(place.kind), key, packed, value, int(expiring))
            writing.size += len(value)
            if expires_ms is not None:
                self._note_due(bucket, expires_ms)
            records.heads[place], records.versions[place] = Head(meta, b"", expires_ms), writing.version
            self.written.add(place)
            return bucket
        if owner is None or records.heads.get(place) is None:
            if isinstance(write, PutRow):
                raise AssertionError("a row was put into a record that does not exist")
            return None
        bucket = owner.bucket(place)
        self.written.add(place)
        if isinstance(write, DeleteRecord):
            for lane in records.lanes.pop(place, ()):
                writing.arguments += ("R", bucket.tag, b"%d:%d:%b" % (place.kind, lane, key), b"-", b"+")
            expiring = _expires(records.heads[place])
            writing.arguments += ("D", bucket.tag, int(place.kind), key, int(expiring))
            writing.forget(place)
            records.heads[place], records.versions[place] = None, ABSENT
            return bucket
        writing.touched[place] = None
        lane_key = b"%d:%d:%b" % (place.kind, write.lane, key)
        if isinstance(write, PutRow):
            lanes = records.lanes.setdefault(place, set())
            if write.lane not in lanes:
                lanes.add(write.lane)
                writing.arguments += ("f", bucket.record_key(place.kind, key), "l", ",".join(map(str, sorted(lanes))))
            sort, value, by = write.row
            writing.arguments += ("r", bucket.tag, lane_key, sort, value, int(by is not None), by or b"")
            writing.size += len(value)
            if by is not None:
                writing.claim(place, write.lane, b"%b:d:%b" % (bucket.tag, lane_key), by, sort)
        elif isinstance(write, DeleteRow):
            writing.freed.add((place, write.lane))
            writing.arguments += ("d", bucket.tag, lane_key, write.sort)
        else:
            writing.freed.add((place, write.lane))
            writing.arguments += ("R", bucket.tag, lane_key, *bounds(write.low, write.high))
        return bucket

    def _write_namespace(self, write: Write, changes: NamespaceChanges, *, named: bool) -> None:
        """Note a write to a namespace. ``named`` says whether the update names it among its places."""
        place, registry, records = write.place, self._registry, self._records
        name = place.key.encode()
        record_key = registry.record_key(0, name)
        owner = records.owners.get(place.key)
        if isinstance(write, DeleteRecord):
            if owner is None:
                return
            if place not in records.versions:
                raise not_atomic()
            expiring = _expires(records.heads[place])
            changes.registry += ("D", registry.tag, 0, name, int(expiring), "a", registry.tag + b":trash", owner.id)
            changes.after += [(bucket, no_copy(bucket)) for bucket in owner.buckets]
            changes.changed.append(place.key)
            records.owners[place.key] = None
            gone = [inner for inner in records.heads if inner.namespace == place.key]
            for inner in (place, *gone):
                records.heads[inner], records.versions[inner] = None, ABSENT
                records.lanes.pop(inner, None)
                self.written.add(inner)
            return
        assert isinstance(write, PutHead), "a namespace has no rows"
        head = write.head
        if owner is None:
            owner = self._store.owner(place.key, secrets.token_urlsafe(8).encode())
            version = U64.pack(time.time_ns() // 1000)
            packed = version + packed_expiry(head.expires_ms) + head.meta
            changes.before += [(bucket, new_copy(bucket, packed, place.key)) for bucket in owner.buckets]
            expiring = head.expires_ms is not None
            changes.registry += ("h", registry.tag, 0, name, packed, head.value, int(expiring))
            changes.registry += ("f", record_key, "i", owner.id)
            changes.made.append(owner)
            records.owners[place.key] = owner
        else:
            if not named and not head.value and head in self._heads_known(place, owner):
                # The plan only made sure that the namespace exists.
                return
            if place not in records.versions:
                raise not_atomic()
            version = U64.pack(max(time.time_ns() // 1000, U64.unpack(records.versions[place])[0] + 1))
            packed = version + packed_expiry(head.expires_ms) + head.meta
            expiring = head.expires_ms is not None or _expires(records.heads[place])
            changes.registry += ("h", registry.tag, 0, name, packed, head.value, int(expiring))
            changes.after += [(bucket, ("g", bucket.ns_key, packed)) for bucket in owner.buckets]
            changes.changed.append(place.key)
        if head.expires_ms is not None:
            self._note_due(registry, head.expires_ms)
        bare = head._replace(value=b"")
        records.heads[place], records.versions[place] = bare, version
        records.copies.update((bucket.tag, (version, bare)) for bucket in owner.buckets)
        self.written.add(place)

    def _heads_known(self, place: Place, owner: Owner) -> list[Head | None]:
        """The known heads of a namespace."""
        records = self._records
        if place in records.versions:
            return [records.heads[place]]
        return [records.copies[bucket.tag][1] for bucket in owner.buckets if bucket.tag in records.copies]

    def _note_due(self, bucket: Bucket, expires_ms: int) -> None:
        member = due_member(bucket)
        self.due[member] = min(expires_ms, self.due.get(member, expires_ms))


def _expires(head: Head | None) -> bool:
    return head is not None and head.expires_ms is not None
