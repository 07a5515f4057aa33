"""Writes that take effect once, however often and however late they arrive.

A client that hears nothing sends its write again, while the first one may still be on its way: it could arrive after
later writes and undo them. So a write may carry an id. Its answer, or its refusal, is remembered in the very update
that carries it out, and whatever comes under that id later changes nothing and gets the same answer. An id is one
client's: the API puts the token's into it, so that no client is answered for another.

A memory is a record of kind ``WRITE`` whose key is the id, a space and the key that is written. It expires, and
maintenance erases it. It takes room in proportion to the request: an answer that holds what was only read is remembered
without that, and the operation reads it again for a repeat. It lies in the namespace of what is written and goes with
it; that of a namespace itself lies outside. A write that finds no namespace and makes none is not remembered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from rstored.backends.abc import Commit, Head, HeadRead, Kind, Place, Plan, PutHead, Query, namespace_place
from rstored.engine.batching import Storage
from rstored.limits import Limits
from rstored.problems import Problem

__all__ = ["Answers", "Once", "answers_of"]

T = TypeVar("T")

_MARK_BYTES: Final = 16
_encode: Final = msgspec.msgpack.Encoder().encode


class Answers(NamedTuple, Generic[T]):
    """How an answer is remembered. What packs to None is not the last answer yet, and is not remembered."""

    pack: Callable[[T], bytes | None]
    unpack: Callable[[bytes], T]


def answers_of(kind: type[T]) -> Answers[T]:
    """Remembers answers of a plain type as they are."""
    return Answers(_encode, msgspec.msgpack.Decoder(kind).decode)


class _Refusal(msgspec.Struct, array_like=True, frozen=True):
    code: str
    detail: str
    members: dict[str, Any]


_decode_refusal: Final = msgspec.msgpack.Decoder(_Refusal).decode


class Once:
    """Carries out updates, those with an id once."""

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
        """Carry out the update, and return its answer or that of the one which came under this id before.

        ``request`` is what tells the write from others: Problem ``idempotency-conflict`` if the id was used for
        another one. Raises what the plan or the backend raises, or the refusal that is remembered.
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
    if known.meta[:_MARK_BYTES] != mark:
        detail = "Idempotency-Key: this one was used for another write; give each write one of its own"
        return Problem("idempotency-conflict", detail, parameter="Idempotency-Key")
    head: Head
    (head,) = yield (HeadRead(memory),)
    if not known.meta[_MARK_BYTES]:
        return answers.unpack(head.value)
    refusal = _decode_refusal(head.value)
    return Problem(refusal.code, refusal.detail, **refusal.members)
