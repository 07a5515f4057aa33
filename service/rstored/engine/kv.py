"""Key/value pairs: get, put, delete, list and the atomic batch, with conditions and expiry.

A pair is a record. The value of its head is the stored bytes. Its meta is the ETag, the encoding (1 byte), the size of
the value (4 bytes, big-endian) and the media type. No operation sees an entry whose expiry has passed, even if it has
not been erased yet.
"""

from __future__ import annotations

import binascii
import functools
import hashlib
import math
import re
import secrets
import struct
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from rstore.core.encodings import Encoding, Value
from rstored.backends.abc import Commit, CountRead, DeleteRecord, Head, HeadRead, Kind, Place, PutHead, Query, Write
from rstored.engine.batching import Storage
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
from rstored.engine.values import check_value
from rstored.limits import Limits
from rstored.problems import Problem, damaged, of_storage
from rstored.threads import run_sized
from rstored.turns import SHORT

__all__ = ["TTL_SECONDS_MAX", "KeyValues"]

# More than three centuries; in milliseconds it is far from the end of int64.
TTL_SECONDS_MAX: Final = 1e10


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


# How many bytes of values are read for a request without waiting for a turn. Of those that take turns, one answer is
# counted in the memory of requests before the next one is read.
_TOGETHER_BYTES_MAX: Final = 256 * 2**10

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
        if head is not None and not head.value and _size(head):
            (head,) = await self._storage.read_in_turn(HeadRead(place))
        if head is None or (head.expires_ms is not None and head.expires_ms <= self._clock()):
            return None
        return _entry(head)

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
            writes, result = _put(heads, place, part, head, now)
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
            writes, found = _delete(heads, place, condition, now)
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
            accept=lambda _, head: head.expires_ms is None or head.expires_ms > now,
        )
        entry = _entry if values else _entry_without_value
        return Page([(key, entry(head)) for key, head in page.items], page.cursor)

    async def count(self, namespace: str) -> int:
        """How many entries the namespace has. A namespace that does not exist has 0."""
        (counts,) = await self._storage.read(CountRead(namespace, self._clock()))
        found: int = counts[Kind.KV]
        return found

    def check_count(self, parts: int) -> None:
        """Raise ``batch-too-large`` if a batch may not have so many parts. Call it before reading them."""
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
                entries = _present(get_places, found, now)
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
                        changes, put = _put(heads, place, part, new, now)
                        result.puts.append((part.key, put))
                    else:
                        changes, deleted = _delete(heads, place, part.condition, now)
                        result.deleted.extend([part.key] if deleted else [])
                    writes += changes
                    done += 1
            except Problem as problem:
                raise _in_part(problem, done, len(sets)) from None
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
        if any(head is not None and not head.value and _size(head) for head in heads):
            self._check_answer_size(heads)
            heads = await self._storage.read_in_turn(*map(HeadRead, places))
        return BatchResult(_present(places, heads, now), [], [])

    def _check_answer_size(self, heads: Iterable[Head | None]) -> None:
        """Raise ``answer-too-large`` if the values of these heads do not fit into one answer."""
        limit = self._limits.body_bytes_max
        size = sum(_size(head) for head in heads if head is not None)
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
            raise _in_part(problem, len(heads), set_count) from None
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
        return Head(_meta(part.value, part.media_type, salt), part.value.data, expires_ms)


# --- inside plans ------------------------------------------------------------------------------------------


def _put(
    heads: Mapping[Place, Head | None], place: Place, part: BatchSet, new: Head, now: int
) -> tuple[list[Write], PutResult]:
    """What a put writes, and its result."""
    current = _unexpired(heads[place], now)
    if part.condition is not ANY and not _holds(part.condition, current):
        raise _precondition_failed(current)
    if part.ttl_seconds is KEEP and current is not None and current.expires_ms is not None:
        new = new._replace(expires_ms=current.expires_ms)
    return [PutHead(place, new)], PutResult(_etag(new), current is None)


def _delete(
    heads: Mapping[Place, Head | None], place: Place, condition: Condition, now: int
) -> tuple[list[Write], bool]:
    """What a delete writes, and whether the entry was there."""
    current = _unexpired(heads[place], now)
    if not _holds(condition, current):
        raise _precondition_failed(current)
    return [DeleteRecord(place)], current is not None


def _unexpired(head: Head | None, now: int) -> Head | None:
    return None if head is None or (head.expires_ms is not None and head.expires_ms <= now) else head


def _holds(condition: Condition, current: Head | None) -> bool:
    match, none_match = condition
    if match is not None and (current is None or not _named(match, current)):
        return False
    return none_match is None or current is None or not _named(none_match, current)


def _named(etags: tuple[str, ...], current: Head) -> bool:
    return "*" in etags or _etag(current) in etags


def _precondition_failed(current: Head | None) -> Problem:
    reason = "the key does not exist" if current is None else "the key exists, and the condition excludes its ETag"
    return Problem("precondition-failed", f"{reason}: read the key again and decide again")


def _in_part(problem: Problem, position: int, set_count: int) -> Problem:
    """The problem, with the JSON pointer to the part of the batch. The sets come before the deletes."""
    pointer = f"/set/{position}" if position < set_count else f"/delete/{position - set_count}"
    return Problem(problem.code, problem.detail, pointer=pointer, **problem.members)


def _present(places: Sequence[Place], heads: Sequence[Head | None], now: int) -> list[tuple[str, Entry]]:
    return [
        (place.key, _entry(head))
        for place, head in zip(places, heads, strict=True)
        if head is not None and (head.expires_ms is None or head.expires_ms > now)
    ]


# --- meta --------------------------------------------------------------------------------------------------

_ETAG_LENGTH: Final = 22
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
_SIZE: Final = struct.Struct(">I")
_SIZE_AT: Final = _ETAG_LENGTH + 1
_MEDIA_TYPE_AT: Final = _SIZE_AT + 4
_ENCODINGS: Final = tuple(Encoding)
_META: Final = re.compile(rb"[A-Za-z0-9_-]{%d}[\0-\3].{4}[ -~]+/[\t -~]+" % _ETAG_LENGTH, re.DOTALL)


@functools.lru_cache(maxsize=64)
def _begun(media_type: str) -> tuple[bytes, hashlib.blake2b]:
    """The media type as bytes, and a hash that has read them. Beginning a hash takes longer than a short value does."""
    name = media_type.encode()
    return name, hashlib.blake2b(b"%b\0" % name, digest_size=16)


def _meta(value: Value, media_type: str, salt: str) -> bytes:
    """ETag, encoding, size and media type of a value. The ETag is a hash of media type, salt and content."""
    name, begun = _begun(media_type)
    digest = begun.copy()
    digest.update(b"%b\0" % salt.encode())
    digest.update(value.data)
    etag = binascii.b2a_base64(digest.digest(), newline=False)[:_ETAG_LENGTH].translate(_URL_SAFE)
    return b"%b%c%b%b" % (etag, value.encoding, _SIZE.pack(len(value.data)), name)


@of_storage("a key's record")
def _etag(head: Head) -> str:
    return _sound(head.meta)[:_ETAG_LENGTH].decode()


@of_storage("a key's record")
def _size(head: Head) -> int:
    """How many bytes the value has, even if it was not read."""
    size: int = _SIZE.unpack_from(_sound(head.meta), _SIZE_AT)[0]
    return size


@of_storage("a key's record")
def _entry_without_value(head: Head) -> Entry:
    """The entry of a head that was read without its value."""
    meta = _sound(head.meta)
    value = Value(_ENCODINGS[meta[_ETAG_LENGTH]], head.value)
    return Entry(value, meta[_MEDIA_TYPE_AT:].decode(), meta[:_ETAG_LENGTH].decode(), head.expires_ms)


def _entry(head: Head) -> Entry:
    entry = _entry_without_value(head)
    if len(head.value) != _size(head):
        raise damaged("a key's value")
    return entry


def _sound(meta: bytes) -> bytes:
    """The meta, which is as :func:`_meta` makes it: what it holds goes into the head of an answer."""
    if _META.fullmatch(meta) is None:
        raise ValueError("not the meta of a key")
    return meta
