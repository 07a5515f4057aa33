"""Key/value pairs: the operations."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from rstore.core.encodings import Encoding, Value
from rstored.backends.abc import Commit, CountRead, Head, HeadRead, Kind, Place, Query, Write
from rstored.engine.batching import Storage
from rstored.engine.kv.heads import entry_of, packed_meta, present, size_of, unexpired
from rstored.engine.kv.plans import delete_writes, in_part, put_writes
from rstored.engine.listing import list_page
from rstored.engine.model import (
    ANY,
    KEEP,
    BatchDelete,
    BatchGet,
    BatchResult,
    BatchSet,
    Condition,
    Entry,
    Expiry,
    Page,
    PutResult,
)
from rstored.engine.namespaces import ensure_namespace
from rstored.engine.once import Answers, Once, answers_of
from rstored.engine.values import check_stored, check_value
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.threads import run_sized
from rstored.turns import SHORT

# More than three centuries; in milliseconds it is far from the end of int64.
TTL_SECONDS_MAX: Final = 1e10

# How many bytes of values are read for a request without waiting for a turn. Of those that take turns, one answer is
# counted in the memory of requests before the next one is read.
_TOGETHER_BYTES_MAX: Final = 256 * 2**10


class _BatchMemory(NamedTuple):
    """What is remembered of a batch's answer: what it wrote, and the values that it got and then replaced or deleted.

    These values exist nowhere else, and they take no more room here than they had before. The other values that a
    batch gets may be of any size. They are not remembered, and are read again for a repeat.
    """

    replaced: list[tuple[str, Entry]]
    puts: list[tuple[str, PutResult]]
    deleted: list[str]

    @classmethod
    def pack(cls, result: BatchResult | _BatchMemory) -> bytes:
        assert isinstance(result, BatchResult)
        written = {key for key, _ in result.puts}.union(result.deleted)
        # A key may be got more than once.
        replaced = {key: entry for key, entry in result.entries if key in written}
        return msgspec.msgpack.encode(cls([*replaced.items()], result.puts, result.deleted))


_PUT: Final = answers_of(PutResult)
_WHETHER: Final = answers_of(bool)
_BATCH: Final[Answers[BatchResult | _BatchMemory]] = Answers(
    _BatchMemory.pack, msgspec.msgpack.Decoder(_BatchMemory).decode
)


class KeyValues:
    """The key/value operations. Namespaces and keys are already checked by ``rstore.core.names``; all raise Problem."""

    def __init__(self, storage: Storage, limits: Limits, clock: Callable[[], int]) -> None:
        """``clock`` gives POSIX milliseconds."""
        self._storage = storage
        self._limits = limits
        self._clock = clock
        self._once = Once(storage, limits, clock)

    async def get(self, namespace: str, key: str) -> Entry | None:
        """The entry, or None if it does not exist or has expired."""
        place = Place(namespace, Kind.KV, key)
        head: Head | None
        (head,) = await self._storage.read(HeadRead(place, _TOGETHER_BYTES_MAX))
        if head is not None and not head.value and size_of(head):
            (head,) = await self._storage.read_in_turn(HeadRead(place))
        if head is None or (head.expires_ms is not None and head.expires_ms <= self._clock()):
            return None
        return entry_of(head)

    async def put(
        self,
        namespace: str,
        key: str,
        *,
        value: Value,
        media_type: str,
        ttl_seconds: float | Expiry = KEEP,
        condition: Condition = ANY,
        write_id: str | None = None,
    ) -> PutResult:
        """Store the value if the condition holds. A namespace that does not exist is created.

        The entry expires ``ttl_seconds`` from now, never (``NEVER``), or when it would have without this write
        (``KEEP``). A put with a ``write_id`` happens once (see :mod:`rstored.engine.once`). Raises
        ``precondition-failed``, ``value-too-large``, ``invalid-value``, ``nesting-too-deep``, ``invalid-parameter``
        (the ttl), ``sealed-only``.
        """
        part = BatchSet(key, value, media_type, ttl_seconds, condition)
        place = Place(namespace, Kind.KV, key)
        now = self._clock()
        head = await run_sized(len(value.data), self._new_head, part, now, write_id)

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[PutResult]]:
            creation = ensure_namespace(heads, namespace, (value.encoding,))
            writes, result = put_writes(heads, place, part, head, now)
            return Commit([*creation, *writes], result)
            yield

        request = "put", head.meta, ttl_seconds, condition
        return await self._once.update((place,), plan, write_id, request, _PUT)

    async def delete(
        self, namespace: str, key: str, *, condition: Condition = ANY, write_id: str | None = None
    ) -> bool:
        """Delete the entry if the condition holds. True if it existed. Raises ``precondition-failed``."""
        place = Place(namespace, Kind.KV, key)
        now = self._clock()

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[bool]]:
            writes, found = delete_writes(heads, place, condition, now)
            return Commit(writes, found)
            yield

        return await self._once.update((place,), plan, write_id, ("delete", condition), _WHETHER)

    async def list(
        self,
        namespace: str,
        *,
        match: str | None = None,
        prefix: str = "",
        after: str | None = None,
        limit: int = 1_000,
        values: bool = False,
    ) -> Page[tuple[str, Entry]]:
        """A page of entries in key order, after the key ``after``. Without ``values``, their values are empty.

        ``match`` is a glob over the whole key. A page may be short or empty, and still have a cursor.
        """
        now = self._clock()
        page = await list_page(
            self._storage,
            namespace,
            Kind.KV,
            match=match,
            prefix=prefix,
            after=after,
            limit=limit,
            values=values,
            bytes_max=self._limits.page_bytes_max,
            accept=lambda _, head: unexpired(head, now) is not None,
        )
        return Page([(key, entry_of(head, with_value=values)) for key, head in page.items], page.cursor)

    async def count(self, namespace: str) -> int:
        """How many entries the namespace has. A namespace that does not exist has 0."""
        (counts,) = await self._storage.read(CountRead(namespace, self._clock()))
        found: int = counts[Kind.KV]
        return found

    def check_count(self, parts: int) -> None:
        """Raise ``batch-too-large`` if a batch may not have this many parts. Call it before reading them."""
        limit = self._limits.batch_parts_max
        if parts > limit:
            raise Problem.beyond("batch-too-large", f"the batch has {parts} parts", limit)

    async def batch(
        self,
        namespace: str,
        *,
        gets: Sequence[BatchGet],
        sets: Sequence[BatchSet],
        deletes: Sequence[BatchDelete],
        write_id: str | None = None,
    ) -> BatchResult:
        """Carry out all parts or none, in one step. The gets see the values from before that step.

        A repeat with the same ``write_id`` gets the keys that the batch wrote as they were before the batch. It gets
        all other keys as they are when it arrives.

        Raises what :meth:`put` and :meth:`delete` raise, with a ``pointer`` to the part (``/set/3``); ``invalid-body``
        for a key that is written twice; ``batch-too-large``; ``answer-too-large`` if the values to get are more
        than ``body_bytes_max`` bytes.
        """
        self.check_count(len(gets) + len(sets) + len(deletes))
        get_places = [Place(namespace, Kind.KV, part.key) for part in gets]
        now = self._clock()
        if not sets and not deletes:
            return await self._read_together(get_places, now)

        parts: tuple[BatchSet | BatchDelete, ...] = (*sets, *deletes)
        size = sum(len(part.value.data) for part in sets)
        written = await run_sized(size, self._written, namespace, parts, len(sets), now, write_id)
        places = tuple({*get_places, *written})

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[BatchResult | _BatchMemory]]:
            self._check_answer_size(heads[place] for place in get_places)
            entries: list[tuple[str, Entry]] = []
            if get_places:
                found = yield tuple(HeadRead(place) for place in get_places)
                entries = present(get_places, found, now)
                # After the commit it would be too late to find out that they cannot be answered.
                for _, entry in entries:
                    check_stored(entry.value)
            result = BatchResult(entries, [], [])
            creation: list[Write] = []
            allowed: set[Encoding] = set()
            writes: list[Write] = []
            done = 0
            try:
                for part, (place, new) in zip(parts, written.items(), strict=True):
                    if isinstance(part, BatchSet) and new is not None:
                        encoding = part.value.encoding
                        if encoding not in allowed:
                            creation = ensure_namespace(heads, namespace, (encoding,))
                            allowed.add(encoding)
                        changes, put = put_writes(heads, place, part, new, now)
                        result.puts.append((part.key, put))
                    else:
                        changes, deleted = delete_writes(heads, place, part.condition, now)
                        result.deleted.extend([part.key] if deleted else [])
                    writes += changes
                    done += 1
            except Problem as problem:
                raise in_part(problem, done, len(sets)) from None
            return Commit([*creation, *writes], result)

        request: tuple[Any, ...] = ()
        if write_id is not None:
            metas = {place.key: head and head.meta for place, head in written.items()}
            request = "batch", gets, metas, [(part.ttl_seconds, part.condition) for part in sets], deletes
        answer = await self._once.update(places, plan, write_id, request, _BATCH)
        if isinstance(answer, BatchResult):
            return answer
        return await self._answer_again(answer, get_places, written)

    async def _answer_again(
        self, memory: _BatchMemory, get_places: Sequence[Place], written: Collection[Place]
    ) -> BatchResult:
        """The answer to the repeat of a batch."""
        entries = dict(memory.replaced)
        try:
            unwritten = [place for place in get_places if place not in written]
            entries |= (await self._read_together(unwritten, self._clock())).entries
        except Problem as problem:
            if problem.code != "answer-too-large":
                raise
            detail = f"the first attempt carried out the batch, but its answer is now too large: {problem.detail}"
            raise Problem(problem.code, detail, **problem.members) from None
        found = [(place.key, entries[place.key]) for place in get_places if place.key in entries]
        return BatchResult(found, memory.puts, memory.deleted)

    async def _read_together(self, places: Sequence[Place], now: int) -> BatchResult:
        """The answer to a batch that has only gets, all from one snapshot.

        The first read leaves out every value that is larger than its share, so that it takes little memory, or for many
        keys no more than an answer may have. If values were left out and all fit, a second read gets all of them.
        """
        few = len(places) <= SHORT
        read = self._storage.read if few else self._storage.read_in_turn
        limit = self._limits.body_bytes_max
        share = (min(_TOGETHER_BYTES_MAX, limit) if few else limit) // max(1, len(places))
        heads: list[Head | None] = await read(*[HeadRead(place, share) for place in places])
        if any(head is not None and not head.value and size_of(head) for head in heads):
            self._check_answer_size(heads)
            heads = await self._storage.read_in_turn(*map(HeadRead, places))
        return BatchResult(present(places, heads, now), [], [])

    def _check_answer_size(self, heads: Iterable[Head | None]) -> None:
        """Raise ``answer-too-large`` if the values of these heads do not fit into one answer."""
        limit = self._limits.body_bytes_max
        size = sum(size_of(head) for head in heads if head is not None)
        if size > limit:
            raise Problem.beyond("answer-too-large", f"the values have {size} bytes", limit, ": get fewer at once")

    def _written(
        self,
        namespace: str,
        parts: Sequence[BatchSet | BatchDelete],
        set_count: int,
        now: int,
        write_id: str | None,
    ) -> dict[Place, Head | None]:
        """The head that a batch stores at each place, or None where it deletes, in the order of its parts."""
        heads: dict[Place, Head | None] = {}
        try:
            for part in parts:
                place = Place(namespace, Kind.KV, part.key)
                if place in heads:
                    raise Problem("invalid-body", "a key is written twice in one batch")
                heads[place] = self._new_head(part, now, write_id) if isinstance(part, BatchSet) else None
        except Problem as problem:
            raise in_part(problem, len(heads), set_count) from None
        return heads

    def _new_head(self, part: BatchSet, now: int, write_id: str | None) -> Head:
        """The head that a write stores. A write with ``KEEP`` then copies the expiry of the entry into it."""
        check_value(part.value, self._limits)
        expires_ms = None
        if not isinstance(part.ttl_seconds, Expiry):
            if not 0 < part.ttl_seconds <= TTL_SECONDS_MAX:
                detail = f"the ttl is a number of seconds greater than 0 and at most {TTL_SECONDS_MAX:.0f}"
                raise Problem("invalid-parameter", detail, parameter="ttl")
            expires_ms = now + math.ceil(part.ttl_seconds * 1000)
        # A conditional write has an ETag of its own. Otherwise two writers of equal content would both think they won.
        salt = "" if part.condition == ANY else write_id or secrets.token_hex(16)
        return Head(packed_meta(part.value, part.media_type, salt), part.value.data, expires_ms)
