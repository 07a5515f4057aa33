"""How the Redis backend carries out updates: optimistically. Each is atomic over the records that it names.

Heads are read with their versions, plans run in step, and ``commit.lua`` writes an update if no head has changed. An
update that lost is started again, and the others are not. A later plan on a record sees what the earlier plans will
write. So a batch takes two round trips, and one for each step of reading, however often it touches a record. Versions
start at random and count up, so none occurs twice.

In a cluster only writes in one slot can be atomic. An update of records in several buckets is refused with
``batch-not-atomic``. A namespace is created, changed or deleted in steps. Other processes decide by its record in the
registry, which is written last when it is created and first when it is deleted. After a crash,
:meth:`RedisBackend.purge` completes these steps.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from rstored.backends.abc import (
    DeleteRecord,
    DeleteRow,
    Head,
    Kind,
    Place,
    PutHead,
    PutRow,
    Query,
    Update,
    Write,
    namespace_place,
)
from rstored.backends.executor import Executor
from rstored.backends.redis.calls import Call
from rstored.backends.redis.commits import new_copy, no_copy, packed_update
from rstored.backends.redis.failures import Stale, lost, not_atomic, problem_of
from rstored.backends.redis.layout import ABSENT, U64, Bucket, Owner, bounds, due_member, packed_expiry, unpacked
from rstored.backends.redis.reader import Reader, namespace_of
from rstored.backends.redis.reading import Part, Reading, Ref
from rstored.backends.redis.sections import NamespaceChanges, Section, Writing, expires, grouped, statuses
from rstored.problems import Problem, damaged, of_storage


class Attempt(Executor):
    """One attempt at a batch of updates, or at those of them that other processes disturbed."""

    def __init__(
        self, reader: Reader, updates: Sequence[Update[Any]], positions: list[int], results: list[Any]
    ) -> None:
        super().__init__(updates, results)
        self._reader = reader
        self._store = reader.store
        self._registry = reader.store.registry
        self._positions = positions
        self._again: set[int] = set()
        # The present heads as they were read, with the changes of the updates so far.
        self._owners: dict[str, Any] = {}
        self._heads: dict[Place, Head | None] = {}
        self._versions: dict[Place, bytes] = {}
        # The lanes that a record uses, if any.
        self._lanes: dict[Place, set[int]] = {}
        self._copies: dict[bytes, tuple[bytes, Head]] = {}
        self._written: set[Place] = set()
        self._asked: set[int] = set()
        self._pending: list[Section] = []
        self._due: dict[bytes, int] = {}
        # Tags of the buckets of namespaces that could not be made.
        self._unmade: set[bytes] = set()
        # Updates whose heads could not be read together with those of the others.
        self._alone: list[int] = []

    async def run(self, *, heal: bool) -> list[int]:
        """Carry out the updates. Returns, in order, the positions of those to start again."""
        loaded = await self._load(heal=heal)
        self._again.update(await self.execute(loaded))
        await self._flush(self._store.reading())
        if self._due:
            await self._reader.expiries.tell_due(self._due)
        for position in self._alone:
            self._again.update(await Attempt(self._reader, self.updates, [position], self.results).run(heal=heal))
        for position in self._again:
            for place in self.updates[position].places:
                self._store.forget(place.key if place.kind is Kind.NAMESPACE else place.namespace)
        return sorted(self._again)

    # Reading.

    async def _load(self, *, heal: bool) -> list[int]:
        """Read the heads of all places. Returns the positions of the updates that can start."""
        store, registry = self._store, self._registry
        names = {
            place.namespace
            for position in self._positions
            for place in self.updates[position].places
            if place.kind is not Kind.NAMESPACE
        }
        self._owners = await store.owners(names)
        reading = store.reading()
        refs: dict[Place, Ref] = {}
        copies: dict[str, dict[bytes, Ref]] = {}
        # The places of the store's id, which is read with the record of each namespace.
        lives: dict[Place, Ref] = {}
        confined: list[int] = []
        for position in self._positions:
            places = self._places(position)
            problem = self._refusal(places)
            if problem is not None:
                self.results[position] = problem
                continue
            confined.append(position)
            reading.fence()
            for place in places:
                if place in refs:
                    continue
                key = place.key.encode()
                if place.kind is Kind.NAMESPACE:
                    lives[place] = reading.life(registry)
                    refs[place] = reading.ask(registry, "i", registry.record_key(0, key))
                elif isinstance(owner := self._owners[place.namespace], Owner):
                    bucket = owner.bucket(place)
                    if bucket.ns_key:
                        copies.setdefault(place.namespace, {})[bucket.tag] = reading.life(bucket)
                    refs[place] = reading.ask(bucket, "p", bucket.record_key(place.kind, key))
        replies = await store.servers.exchange(reading.calls()) if reading else []
        failed = self._take(refs, copies, replies)
        failed |= {place: lost() for place, life in lives.items() if store.is_lost(replies, life)}
        loaded = []
        stale: dict[str, list[int]] = {}
        for position in confined:
            places = self._places(position)
            failure = next((failed[place] for place in places if place in failed), None)
            if failure is None:
                loaded.append(position)
            elif isinstance(failure, Stale):
                stale.setdefault(failure.name, []).append(position)
                self._again.add(position)
            elif isinstance(failure, ResponseError) and len(self._positions) > 1:
                self._alone.append(position)
            else:
                self.results[position] = problem_of(failure)
        for name, positions in stale.items():
            store.forget(name)
            problem = await store.heal_quietly(name) if heal else None
            if problem is not None:
                self._again.difference_update(positions)
                for position in positions:
                    self.results[position] = problem_of(problem)
        return loaded

    def _places(self, position: int) -> tuple[Place, ...]:
        """The places of an update. In a cluster, the copy of a namespace beside the record stands for the namespace."""
        places = self.updates[position].places
        if not self._store.servers.cluster or len(places) == 1:
            return places
        inside = {place.namespace for place in places}
        return tuple(place for place in places if place.kind is not Kind.NAMESPACE or place.key not in inside)

    def _refusal(self, places: tuple[Place, ...]) -> Exception | None:
        """Why an update of these places cannot be carried out; None if it can."""
        for place in places:
            owner = self._owners.get(place.namespace)
            if isinstance(owner, Exception):
                return problem_of(owner)
        if not self._store.servers.cluster or len(places) == 1:
            return None
        number = self._store.bucket_number
        if len({(place.namespace, number(place) if place.namespace else 0) for place in places}) == 1:
            return None
        return not_atomic()

    def _take(
        self, refs: dict[Place, Ref], copies: dict[str, dict[bytes, Ref]], replies: list[Any]
    ) -> dict[Place, Exception]:
        """Take over the replies. Returns the places whose heads could not be read."""
        failed: dict[Place, Exception] = {}
        gone: dict[str, Stale] = {}
        damaged_copies: dict[bytes, Problem] = {}
        for name, by_tag in copies.items():
            for tag, (call, number) in by_tag.items():
                reply = replies[call]
                if isinstance(reply, Exception):
                    continue
                packed = reply[number]
                if packed is None:
                    gone[name] = Stale(name)
                    continue
                try:
                    self._copies[tag] = packed[:8], unpacked(packed, b"")
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
                if damaged_copies and place.kind is not Kind.NAMESPACE:
                    bucket = self._owners[place.namespace].bucket(place)
                    if bucket.tag in damaged_copies:
                        failed[place] = damaged_copies[bucket.tag]
            except Problem as problem:
                failed[place] = problem
        if gone:
            places = {place for position in self._positions for place in self._places(position)}
            for place in places:
                name = place.key if place.kind is Kind.NAMESPACE else place.namespace
                if name in gone:
                    failed.setdefault(place, gone[name])
        return failed

    def _take_record(self, place: Place, packed: bytes | None, further: bytes | None, gone: dict[str, Stale]) -> None:
        """Take over the head of a record, and its lanes or namespace id. Raises Problem ``backend-corrupt``."""
        head = None if packed is None else unpacked(packed, b"")
        if place.kind is not Kind.NAMESPACE:
            if further:
                self._lanes[place] = _lanes_of(further)
        elif packed is not None:
            self._take_owner(place.key, further, gone)
        elif further is not None:
            raise damaged("a namespace's record")
        else:
            if self._owners.get(place.key) is not None:
                gone[place.key] = Stale(place.key)
            self._owners[place.key] = None
        self._heads[place], self._versions[place] = head, ABSENT if packed is None else packed[:8]

    def _take_owner(self, name: str, owner_id: bytes | None, gone: dict[str, Stale]) -> None:
        """Take over the id of a namespace that an update names. If another id was expected, its updates start again."""
        expected = self._owners.get(name)
        if isinstance(expected, Owner) and expected.id == owner_id:
            return
        if name in self._owners:
            gone[name] = Stale(name)
        self._owners[name] = self._store.owner(name, owner_id)

    # Planning.

    def heads(self, update: Update[Any]) -> dict[Place, Head | None]:
        heads: dict[Place, Head | None] = {}
        for place in update.places:
            if place.kind is not Kind.NAMESPACE:
                heads[place] = self._heads.get(place)
                named = namespace_place(place.namespace)
                if named not in heads:
                    owner = self._owners[place.namespace]
                    copy = self._copies.get(owner.bucket(place).tag) if owner is not None else None
                    heads[named] = copy and copy[1]
            elif place in self._versions:
                heads[place] = self._heads[place]
        return heads

    async def ask(self, asked: Sequence[tuple[int, Query]]) -> list[list[Any] | Exception]:
        store = self._store
        names = {namespace_of(read) for _, query in asked for read in query} - self._owners.keys()
        owners = {**await store.owners(names), **self._owners, "": store.root} if names else self._owners
        reading = store.reading()
        parts: list[list[Part]] = []
        for position, query in asked:
            self._asked.add(position)
            reading.fence()
            parts.append([self._reader.part(read, owners, reading) for read in query])
        replies = await self._flush(reading)
        answers: list[list[Any] | Exception] = []
        for query_parts in parts:
            try:
                answers.append([await part.answer(replies) for part in query_parts])
            except Stale:
                answers.append(Problem("backend-unavailable", "another process has replaced the namespace: try again"))
            except Exception as error:
                answers.append(problem_of(error))
        return answers

    # Writing.

    async def take(self, ended: Sequence[tuple[int, Sequence[Write]]]) -> None:
        for position, writes in ended:
            if self.stopped:
                self._again.add(position)
            else:
                self._take_update(position, writes)

    def _take_update(self, position: int, writes: Sequence[Write]) -> None:
        """Add the writes of an update, and what they depend on, to what will be sent."""
        update = self.updates[position]
        # A decision by heads of one moment needs no check. Everything else must still be true at the commit.
        if (
            writes
            or position in self._asked
            or len(update.places) > 1
            or not self._written.isdisjoint((*update.places, namespace_place(update.places[0].namespace)))
        ):
            try:
                self._pending.append(self._section(position, writes))
            except Exception as error:
                # The plan has a mistake. What was noted for it is dropped with the whole attempt.
                self.results[position] = error
                self.stopped = True

    def _section(self, position: int, writes: Sequence[Write]) -> Section:
        changes = NamespaceChanges()
        checks: dict[bytes, bytes] = {}
        home = self._registry
        places = self._places(position)
        for place in places:
            key = place.key.encode()
            if not place.namespace:
                changes.checks[self._registry.record_key(place.kind, key)] = self._versions[place]
            elif (owner := self._owners[place.namespace]) is None:
                changes.checks[self._registry.record_key(0, place.namespace.encode())] = ABSENT
            else:
                home = owner.bucket(place)
                checks[home.ns_key] = self._copies[home.tag][0]
                checks[home.record_key(place.kind, key)] = self._versions.get(place, ABSENT)
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
            if (head := self._heads.get(place)) is not None and self._versions[place] != writing.version:
                bucket = self._owners[place.namespace].bucket(place)
                packed = writing.version + packed_expiry(head.expires_ms) + head.meta
                writing.arguments += ("t", bucket.record_key(place.kind, place.key.encode()), packed)
                self._versions[place] = writing.version
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
                    home = self._owners[place.namespace].bucket(place)
                    checks[home.ns_key] = self._copies[home.tag][0]
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
        place = write.place
        owner = self._owners[place.namespace]
        key = place.key.encode()
        if isinstance(write, PutHead):
            if owner is None:
                raise AssertionError("a record was put into a namespace that does not exist")
            bucket: Bucket = owner.bucket(place)
            meta, value, expires_ms = write.head
            packed = writing.version + packed_expiry(expires_ms) + meta
            expiring = expires_ms is not None or expires(self._heads.get(place))
            writing.arguments += ("h", bucket.tag, int(place.kind), key, packed, value, int(expiring))
            writing.size += len(value)
            if expires_ms is not None:
                self._note_due(bucket, expires_ms)
            self._heads[place], self._versions[place] = Head(meta, b"", expires_ms), writing.version
            self._written.add(place)
            return bucket
        if owner is None or self._heads.get(place) is None:
            if isinstance(write, PutRow):
                raise AssertionError("a row was put into a record that does not exist")
            return None
        bucket = owner.bucket(place)
        self._written.add(place)
        if isinstance(write, DeleteRecord):
            for lane in self._lanes.pop(place, ()):
                writing.arguments += ("R", bucket.tag, b"%d:%d:%b" % (place.kind, lane, key), b"-", b"+")
            expiring = expires(self._heads[place])
            writing.arguments += ("D", bucket.tag, int(place.kind), key, int(expiring))
            writing.forget(place)
            self._heads[place], self._versions[place] = None, ABSENT
            return bucket
        writing.touched[place] = None
        lane_key = b"%d:%d:%b" % (place.kind, write.lane, key)
        if isinstance(write, PutRow):
            lanes = self._lanes.setdefault(place, set())
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
        place, registry = write.place, self._registry
        name = place.key.encode()
        record_key = registry.record_key(0, name)
        owner = self._owners.get(place.key)
        if isinstance(write, DeleteRecord):
            if owner is None:
                return
            if place not in self._versions:
                raise not_atomic()
            expiring = expires(self._heads[place])
            changes.registry += ("D", registry.tag, 0, name, int(expiring), "a", registry.tag + b":trash", owner.id)
            changes.after += [(bucket, no_copy(bucket)) for bucket in owner.buckets]
            changes.changed.append(place.key)
            self._owners[place.key] = None
            gone = [inner for inner in self._heads if inner.namespace == place.key]
            for inner in (place, *gone):
                self._heads[inner], self._versions[inner] = None, ABSENT
                self._lanes.pop(inner, None)
                self._written.add(inner)
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
            self._owners[place.key] = owner
        else:
            if not named and not head.value and head in self._heads_known(place, owner):
                # The plan only made sure that the namespace exists.
                return
            if place not in self._versions:
                raise not_atomic()
            version = U64.pack(max(time.time_ns() // 1000, U64.unpack(self._versions[place])[0] + 1))
            packed = version + packed_expiry(head.expires_ms) + head.meta
            expiring = head.expires_ms is not None or expires(self._heads[place])
            changes.registry += ("h", registry.tag, 0, name, packed, head.value, int(expiring))
            changes.after += [(bucket, ("g", bucket.ns_key, packed)) for bucket in owner.buckets]
            changes.changed.append(place.key)
        if head.expires_ms is not None:
            self._note_due(registry, head.expires_ms)
        bare = head._replace(value=b"")
        self._heads[place], self._versions[place] = bare, version
        self._copies.update((bucket.tag, (version, bare)) for bucket in owner.buckets)
        self._written.add(place)

    def _heads_known(self, place: Place, owner: Owner) -> list[Head | None]:
        """The known heads of a namespace."""
        if place in self._versions:
            return [self._heads[place]]
        return [self._copies[bucket.tag][1] for bucket in owner.buckets if bucket.tag in self._copies]

    def _note_due(self, bucket: Bucket, expires_ms: int) -> None:
        member = due_member(bucket)
        self._due[member] = min(expires_ms, self._due.get(member, expires_ms))

    # Sending.

    async def _flush(self, reading: Reading) -> list[Any]:
        """Send the writes and then the reads. Returns the replies to the reads."""
        pending, self._pending = self._pending, []
        servers = self._store.servers
        sections: list[Section] = []
        unmade = self._unmade
        for section in pending:
            if section.changes is not None and servers.cluster:
                groups = grouped(sections)
                self._settle(groups, await servers.exchange(self._calls(groups)))
                sections = []
                if not await self._change_namespaces(section):
                    # Another process made the namespace. Updates for the one that could not be made start again.
                    unmade.update(bucket.tag for owner in section.changes.made for bucket in owner.buckets)
                    continue
            if section.bucket.tag in unmade:
                self._again.add(section.position)
            elif section.arguments:
                sections.append(section)
        groups = grouped(sections)
        calls = self._calls(groups)
        asked = reading.calls()
        if not calls and not asked:
            return []
        replies = await servers.exchange([*calls, *asked])
        self._settle(groups, replies[: len(calls)])
        return replies[len(calls) :]

    def _calls(self, groups: list[list[Section]]) -> list[Call]:
        return [self._store.commit_call(group[0].bucket, (section.arguments for section in group)) for group in groups]

    def _settle(self, groups: list[list[Section]], replies: list[Any]) -> None:
        """Take over the results of the updates."""
        sections = [section for group in groups for section in group]
        for section, status in zip(sections, statuses(groups, replies), strict=True):
            if status == 1:
                if section.changes is not None:
                    for owner in section.changes.made:
                        self._store.know(owner)
                    for name in section.changes.changed:
                        self._store.forget(name)
            elif status == 0:
                self._again.add(section.position)
            else:
                self.results[section.position] = problem_of(status)
                # It may still take place, so no later plan may be carried out.
                self.stopped = True

    async def _change_namespaces(self, section: Section) -> bool:
        """Carry out the changes of an update to namespaces of a cluster, step by step. True if they took place."""
        store, registry, changes = self._store, self._registry, section.changes
        assert changes is not None
        try:
            if changes.made:
                now = store.clock() // 1000
                pending = [
                    Call(registry.slot, None, ("ZADD", registry.tag + b":pending", now, owner.id))
                    for owner in changes.made
                ]
                await store.exchange(pending)
                await store.exchange(
                    store.commit_call(bucket, [packed_update((), (), writes)]) for bucket, writes in changes.before
                )
                for owner in changes.made:
                    changes.registry += ("Z", registry.tag + b":pending", owner.id)
            for name in changes.changed:
                changes.registry += ("a", registry.tag + b":unsettled", name)
            update = packed_update(changes.checks.items(), (), changes.registry)
            ((status,),) = await store.exchange([store.commit_call(registry, [update])])
            if status == 1:
                await store.exchange(
                    store.commit_call(bucket, [packed_update((), (), writes)]) for bucket, writes in changes.after
                )
                for name in changes.changed:
                    await store.settle(name)
        except Problem as problem:
            self.results[section.position] = problem
            return False
        finally:
            for name in changes.changed:
                store.forget(name)
        if status == 1:
            for owner in changes.made:
                store.know(owner)
            return True
        self._settle([[section._replace(changes=None)]], [[status]])
        return False


@of_storage("a record")
def _lanes_of(packed: bytes) -> set[int]:
    return set(map(int, packed.split(b",")))
