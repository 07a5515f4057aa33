"""Reads on their way to Redis, and their answers on the way back."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeAlias

from rstored.backends.redis.calls import Argument, Call
from rstored.backends.redis.commits import READ, read_keys
from rstored.backends.redis.layout import Bucket, Owner

__all__ = ["Part", "Reading", "Ref"]

_READS_PER_CALL: Final = 64

Ref: TypeAlias = tuple[int, int]
"""Where an answer is found: the number of the call, and of the answer in it."""


class Part(NamedTuple):
    """A read that is under way: where its answers will be and what makes its result of them, or else how to get it."""

    refs: tuple[Ref, ...]
    decode: Callable[[list[Any]], Any] | None
    fetch: Callable[[], Coroutine[Any, Any, Any]] | None = None

    async def answer(self, replies: list[Any]) -> Any:
        """The result; raises the problem that the read met."""
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
    """Reads on their way, gathered into one call for each slot, or a few if they are many.

    With ``check`` each bucket that is read is also asked whether its namespace lives.
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
        """What is asked up to the next fence is answered together; between fences a call may end."""
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
        """Have the query under way depend on the namespace, or the store, being there."""
        if self._check:
            self._checks.append((owner.name, self.life(bucket)))

    def life(self, bucket: Bucket) -> Ref:
        """Ask for the head of the namespace in its bucket, or for the id of the store, once in a call."""
        ref = self._checked.get(bucket.tag)
        if ref is None or ref[0] != self._open.get(bucket.slot):
            ref = self._checked[bucket.tag] = self.ask(bucket, "h", bucket.life_key)
        return ref

    def checks(self) -> list[tuple[str, Ref]]:
        """What the query that was just put together depends on."""
        checks, self._checks = self._checks, []
        return checks

    def calls(self) -> list[Call]:
        if not self._declare:
            return [Call(slot, READ, arguments) for slot, arguments in self._calls]
        return [Call(slot, READ, arguments, read_keys(arguments)) for slot, arguments in self._calls]
