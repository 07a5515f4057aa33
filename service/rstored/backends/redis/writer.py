"""How the Redis backend carries out updates: optimistically. Each is atomic over the records that it names.

Heads are read with their versions, plans run in step, and ``commit.lua`` writes an update if no head has changed. An
update that lost is started again, and the others are not. A later plan on a record sees what the earlier plans will
write. So a batch takes two round trips, and one for each step of reading, however often it touches a record. Versions
start at random and count up, so none occurs twice.

In a cluster only writes in one slot can be atomic. An update of records in several buckets is refused with
``batch-not-atomic``. A namespace is created, changed or deleted in steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from rstored.backends.abc import Head, Kind, Place, Query, Update, Write, namespace_place
from rstored.backends.executor import Executor
from rstored.backends.redis.changes import Changes
from rstored.backends.redis.failures import Stale, problem_of
from rstored.backends.redis.reader import Reader, namespace_of
from rstored.backends.redis.reading import Part, Reading
from rstored.backends.redis.records import Records
from rstored.backends.redis.sending import Sending
from rstored.problems import Problem


class Attempt(Executor):
    """One attempt at a batch of updates, or at those of them that other processes disturbed."""

    def __init__(
        self, reader: Reader, updates: Sequence[Update[Any]], positions: list[int], results: list[Any]
    ) -> None:
        super().__init__(updates, results)
        self._reader = reader
        self._store = reader.store
        self._places = {position: updates[position].places for position in positions}
        if self._store.servers.cluster:
            self._places = {position: _in_one_slot(places) for position, places in self._places.items()}
        self._records = Records(self._store)
        self._changes = Changes(self._store, self._records)
        self._sending = Sending(self._store)
        self._again: set[int] = set()
        self._asked: set[int] = set()
        # Updates whose heads could not be read together with those of the others.
        self._alone: list[int] = []

    async def run(self, *, heal: bool) -> list[int]:
        """Carry out the updates. Returns, in order, the positions of those to start again."""
        loaded = await self._load(heal=heal)
        self._again.update(await self.execute(loaded))
        await self._send(self._store.reading())
        self._again |= self._sending.again
        for position, problem in self._sending.failed.items():
            self.results[position] = problem
        if self._changes.due:
            await self._reader.expiries.tell_due(self._changes.due)
        for position in self._alone:
            self._again.update(await Attempt(self._reader, self.updates, [position], self.results).run(heal=heal))
        for position in self._again:
            for place in self.updates[position].places:
                self._store.forget(place.key if place.kind is Kind.NAMESPACE else place.namespace)
        return sorted(self._again)

    async def _load(self, *, heal: bool) -> list[int]:
        """Read the heads of all places. Returns the positions of the updates that can start."""
        records = self._records
        await records.find(self._places.values())
        possible: dict[int, tuple[Place, ...]] = {}
        for position, places in self._places.items():
            problem = records.refusal(places)
            if problem is None:
                possible[position] = places
            else:
                self.results[position] = problem
        failed = await records.read(possible.values())
        loaded = []
        stale: dict[str, list[int]] = {}
        for position, places in possible.items():
            failure = next((failed[place] for place in places if place in failed), None)
            if failure is None:
                loaded.append(position)
            elif isinstance(failure, Stale):
                stale.setdefault(failure.name, []).append(position)
                self._again.add(position)
            elif isinstance(failure, ResponseError) and len(self._places) > 1:
                self._alone.append(position)
            else:
                self.results[position] = problem_of(failure)
        for name, positions in stale.items():
            self._store.forget(name)
            problem = await self._store.heal_quietly(name) if heal else None
            if problem is not None:
                self._again.difference_update(positions)
                for position in positions:
                    self.results[position] = problem_of(problem)
        return loaded

    def heads(self, update: Update[Any]) -> dict[Place, Head | None]:
        records = self._records
        heads: dict[Place, Head | None] = {}
        for place in update.places:
            if place.kind is not Kind.NAMESPACE:
                heads[place] = records.heads.get(place)
                named = namespace_place(place.namespace)
                if named not in heads:
                    owner = records.owners[place.namespace]
                    copy = records.copies.get(owner.bucket(place).tag) if owner is not None else None
                    heads[named] = copy and copy[1]
            elif place in records.versions:
                heads[place] = records.heads[place]
        return heads

    async def ask(self, asked: Sequence[tuple[int, Query]]) -> list[list[Any] | Exception]:
        store, records = self._store, self._records
        names = {namespace_of(read) for _, query in asked for read in query} - records.owners.keys()
        owners = {**await store.owners(names), **records.owners, "": store.root} if names else records.owners
        reading = store.reading()
        parts: list[list[Part]] = []
        for position, query in asked:
            self._asked.add(position)
            reading.fence()
            parts.append([self._reader.part(read, owners, reading) for read in query])
        replies = await self._send(reading)
        answers: list[list[Any] | Exception] = []
        for query_parts in parts:
            try:
                answers.append([await part.answer(replies) for part in query_parts])
            except Stale:
                answers.append(Problem("backend-unavailable", "another process has replaced the namespace: try again"))
            except Exception as error:
                answers.append(problem_of(error))
        return answers

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
            or not self._changes.written.isdisjoint((*update.places, namespace_place(update.places[0].namespace)))
        ):
            try:
                self._sending.pending.append(self._changes.section(position, self._places[position], writes))
            except Exception as error:
                # The plan has a mistake. What was noted for it is dropped with the whole attempt.
                self.results[position] = error
                self.stopped = True

    async def _send(self, reading: Reading) -> list[Any]:
        """Send the writes and then the reads. Returns the replies to the reads."""
        replies = await self._sending.send(reading)
        self.stopped = self.stopped or self._sending.unknown
        return replies


def _in_one_slot(places: tuple[Place, ...]) -> tuple[Place, ...]:
    """The places of an update in a cluster: the copy of a namespace beside the record stands for the namespace."""
    if len(places) == 1:
        return places
    inside = {place.namespace for place in places}
    return tuple(place for place in places if place.kind is not Kind.NAMESPACE or place.key not in inside)
