"""Writes that take effect once, however often and however late they arrive.

A client that gets no answer sends its write again. The first attempt may still be on its way, and could arrive after
later writes and undo them. So a write may carry an id. The update that carries out the write also remembers its answer
or its refusal. A later write with the same id changes nothing and gets the same answer. The API puts the id of the
token into the id of the write, so no client gets an answer that is meant for another.

A memory is a record of kind ``WRITE``. Its key is the id, a space and the key that is written. It expires, and then
maintenance erases it. Its size is in proportion to the request: a part of the answer that was only read is not
remembered, and the operation reads it again for a repeat. The memory lies in the namespace of the write and is deleted
with that namespace. The memory of creating or deleting a namespace lies outside of it. A write that finds no namespace
and makes none is not remembered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from rstored.backends.abc import Commit, Head, HeadRead, Kind, Place, Plan, PutHead, Query, namespace_place
from rstored.engine.batching import Storage
from rstored.limits import Limits
from rstored.problems import Problem, of_storage

T = TypeVar("T")

_MARK_BYTES: Final = 16
_MEMORY: Final = "what is remembered of a write"
_encode: Final = msgspec.msgpack.Encoder().encode


class Answers(NamedTuple, Generic[T]):
    """How an answer is remembered. An answer that packs to None is not final, and is not remembered."""

    pack: Callable[[T], bytes | None]
    unpack: Callable[[bytes], T]


def answers_of(kind: type[T]) -> Answers[T]:
    """How answers of a plain type are remembered: as they are."""
    return Answers(_encode, msgspec.msgpack.Decoder(kind).decode)


class _Refusal(msgspec.Struct, array_like=True, frozen=True):
    code: str
    detail: str
    members: dict[str, Any]


_decode_refusal: Final = msgspec.msgpack.Decoder(_Refusal).decode


class Once:
    """Carries out updates. It carries out an update with an id once."""

    def __init__(self, storage: Storage, limits: Limits, clock: Callable[[], int]) -> None:
        """``clock`` gives POSIX milliseconds."""
        self._storage = storage
        self._retention_ms = limits.write_id_retention_seconds * 1000
        self._clock = clock

    async def update(
        self,
        places: tuple[Place, ...],
        plan: Plan[T],
        write_id: str | None,
        request: tuple[Any, ...],
        answers: Answers[T],
    ) -> T:
        """Carry out the update and return its answer. If the id is known, return the answer that is remembered.

        ``request`` identifies the write. Raises Problem ``idempotency-conflict`` if the id was used for another write,
        what the plan or the backend raises, or the refusal that is remembered.
        """
        if write_id is None:
            return await self._storage.update(places, plan)
        written = min(places)
        memory = Place(written.namespace, Kind.WRITE, f"{write_id} {written.key}")
        mark = hashlib.blake2b(_encode((written.kind, *request)), digest_size=_MARK_BYTES).digest()
        now = self._clock()

        def once(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[T | Problem]]:
            known = heads[memory]
            if known is not None and known.expires_ms is not None and known.expires_ms > now:
                return Commit((), (yield from _remembered(memory, known, mark, answers)))
            answer: T | Problem
            try:
                writes, answer = yield from plan(heads)
                packed = answers.pack(answer)
            except Problem as problem:
                if problem.type.status >= 500:
                    raise
                writes, answer = (), problem
                packed = _encode(_Refusal(problem.code, problem.detail, problem.members))
            home = namespace_place(memory.namespace)
            there = not home.key or heads[home] is not None or any(write.place == home for write in writes)
            if packed is not None and there:
                meta = mark + bytes((isinstance(answer, Problem),))
                writes = (*writes, PutHead(memory, Head(meta, packed, now + self._retention_ms)))
            return Commit(writes, answer)

        answer = await self._storage.update((*places, memory), once)
        if isinstance(answer, Problem):
            raise answer
        return answer


def _remembered(
    memory: Place, known: Head, mark: bytes, answers: Answers[T]
) -> Generator[Query, list[Any], T | Problem]:
    """The answer in a memory, read within a plan."""
    kept_mark, refused = _marks(known)
    if kept_mark != mark:
        detail = "this Idempotency-Key was used for another write; give each write a key of its own"
        return Problem("idempotency-conflict", detail, parameter="Idempotency-Key")
    head: Head
    (head,) = yield (HeadRead(memory),)
    return _refusal(head.value) if refused else of_storage(_MEMORY)(answers.unpack)(head.value)


@of_storage(_MEMORY)
def _marks(known: Head) -> tuple[bytes, bool]:
    """The hash of the request that is remembered, and whether it was refused."""
    if len(known.meta) != _MARK_BYTES + 1:
        raise ValueError("not the meta of a write")
    return known.meta[:_MARK_BYTES], (False, True)[known.meta[_MARK_BYTES]]


@of_storage(_MEMORY)
def _refusal(value: bytes) -> Problem:
    refusal = _decode_refusal(value)
    problem = Problem(refusal.code, refusal.detail, **refusal.members)
    if problem.type.status >= 500:
        raise ValueError("such a problem is not remembered")
    return problem
