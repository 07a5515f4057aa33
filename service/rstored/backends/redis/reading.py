"""Reads on their way to Redis, and their answers on the way back."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeAlias

from rstored.backends.redis.calls import Argument, Call
from rstored.backends.redis.commits import READ, read_keys
from rstored.backends.redis.layout import Bucket, Owner

_READS_PER_CALL: Final = 64

Ref: TypeAlias = tuple[int, int]
"""The place of an answer: the number of its call, and its number in the call."""


class Part(NamedTuple):
    """A read under way: the places of its answers and the function that makes its result, or a way to get it."""

    refs: tuple[Ref, ...]
    decode: Callable[[list[Any]], Any] | None
    fetch: Callable[[], Coroutine[Any, Any, Any]] | None = None

    async def answer(self, replies: list[Any]) -> Any:
        """The result. Raises the problem of the read."""
        if self.decode is None:
            assert self.fetch is not None
            return await self.fetch()
        found = []
        for call, number in self.refs:
            reply = replies[call]
            if isinstance(reply, Exception):
                raise reply
            found.append(reply[number])
        return self.decode(found)


class Reading:
    """Reads on their way, gathered into one call for each slot, or a few calls if they are many.

    With ``check``, each bucket is also asked whether its namespace exists.
    """

    def __init__(self, *, declare: bool, check: bool) -> None:
        self._declare = declare
        self._check = check
        self._calls: list[tuple[int, list[Argument]]] = []
        self._sizes: list[int] = []
        self._open: dict[int, int] = {}
        self._checked: dict[bytes, Ref] = {}
        self._checks: list[tuple[str, Ref]] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    def fence(self) -> None:
        """Keep the reads up to the next fence in one call. A call may end at a fence."""
        for slot in [slot for slot, call in self._open.items() if self._sizes[call] >= _READS_PER_CALL]:
            del self._open[slot]

    def ask(self, bucket: Bucket, *arguments: Argument) -> Ref:
        call = self._open.get(bucket.slot)
        if call is None:
            call = self._open[bucket.slot] = len(self._calls)
            self._calls.append((bucket.slot, []))
            self._sizes.append(0)
        self._calls[call][1].extend(arguments)
        number = self._sizes[call]
        self._sizes[call] = number + 1
        return call, number

    def check(self, owner: Owner, bucket: Bucket) -> None:
        """Make the present query depend on the existence of the namespace or the store."""
        if self._check:
            self._checks.append((owner.name, self.life(bucket)))

    def life(self, bucket: Bucket) -> Ref:
        """Ask once in a call for the head of the namespace in its bucket, or for the id of the store."""
        ref = self._checked.get(bucket.tag)
        if ref is None or ref[0] != self._open.get(bucket.slot):
            ref = self._checked[bucket.tag] = self.ask(bucket, "h", bucket.life_key)
        return ref

    def checks(self) -> list[tuple[str, Ref]]:
        """The namespaces that the last query depends on, with the places of their heads."""
        checks, self._checks = self._checks, []
        return checks

    def calls(self) -> list[Call]:
        if not self._declare:
            return [Call(slot, READ, arguments) for slot, arguments in self._calls]
        return [Call(slot, READ, arguments, read_keys(arguments)) for slot, arguments in self._calls]
