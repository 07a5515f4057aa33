"""A call: a request as data, and what reads its answer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from rstore.core.errors import (
    StoreError,
)
from rstore.core.memory import Spend, free

__all__ = [
    "RETRIED_STATUSES",
    "SPENDING",
    "Answer",
    "Call",
    "Head",
    "Reader",
    "Spending",
    "Steps",
    "TryAgain",
    "Whole",
    "whole",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
# What says that the service, or a proxy before it, is busy or away for a moment.
RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})


class Head(NamedTuple):
    """The head of an answer."""

    status: int
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """A whole answer. ``spend`` is told how much memory is taken by what is made of it, before it is made."""

    head: Head
    body: bytes
    spend: Spend = free


class Reader(Protocol[T_co]):
    """Reads one answer: is fed the chunks of its body, then asked for the result."""

    def feed(self, chunk: bytes, /) -> None: ...

    def finish(self) -> T_co: ...


@dataclasses.dataclass(slots=True)
class Call(Generic[T]):
    """A request, and what reads its answer. ``target`` is percent-encoded path and query.

    A reader is made of the answer's head and of what counts the memory that it takes: it says how much that will be
    before it takes it. The bytes that it is fed are counted already.

    An operation of one or several steps is a generator of calls: ``found = yield from call`` yields the call and is
    sent what its reader made of the answer. ``own_budget``: the memory that the answers of an operation may take is not
    shared with this one, as the operation keeps nothing of it. What is not ``repeatable`` must not be carried out twice
    and has no id by which the service would see to that.
    """

    method: str
    target: str
    reader: Callable[[Head, Spend], Reader[T]]
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    own_budget: bool = False
    repeatable: bool = True

    def __iter__(self) -> Steps[T]:
        answer: T = yield self
        return answer


class Spending:
    """What an operation yields to be given the :data:`~rstore.core.memory.Spend` of its budget."""


SPENDING: Final = Spending()
Steps: TypeAlias = Generator[Call[Any] | Spending, Any, T]
"""The steps of an operation: it yields calls, is sent their answers, and returns its result."""


class TryAgain(Exception):
    """The attempt failed in a way that the next one may not.

    ``error`` is what to raise if there is no next one; ``after_seconds`` what the service asked to wait, or None;
    ``unsent``: there was no connection, so nothing was sent.
    """

    def __init__(self, error: StoreError, after_seconds: float | None = None, *, unsent: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_seconds = after_seconds
        self.unsent = unsent


class Whole(Generic[T]):
    """A reader that gathers the body and decodes it at once."""

    __slots__ = ("_body", "_decode", "_head", "_spend")

    def __init__(self, decode: Callable[[Answer], T], head: Head, spend: Spend) -> None:
        self._decode = decode
        self._head = head
        self._spend = spend
        self._body: bytes | bytearray = b""

    def feed(self, chunk: bytes, /) -> None:
        if not self._body:
            self._body = chunk
            return
        # Many small chunks would take many times their bytes in a list.
        if isinstance(self._body, bytes):
            self._body = bytearray(self._body)
        self._body += chunk

    def finish(self) -> T:
        body, self._body = bytes(self._body), b""
        return self._decode(Answer(self._head, body, self._spend))


def whole(decode: Callable[[Answer], T]) -> Callable[[Head, Spend], Reader[T]]:
    return functools.partial(Whole, decode)
