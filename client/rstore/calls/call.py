"""A call: a request as data, and a reader for its answer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from rstore.core.errors import StoreError
from rstore.core.memory import Spend, free

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
# With these the service, or a proxy before it, says that it is busy or away for a moment.
RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})


class Head(NamedTuple):
    """The head of an answer."""

    status: int
    headers: Mapping[str, str]


class Answer(NamedTuple):
    """A whole answer. Whoever makes something of it first calls ``spend`` with the bytes of memory that this takes."""

    head: Head
    body: bytes
    spend: Spend = free


class Reader(Protocol[T_co]):
    """Reads one answer: it gets the chunks of the body, and then returns the result."""

    def feed(self, chunk: bytes, /) -> None: ...

    def finish(self) -> T_co: ...


@dataclasses.dataclass(slots=True)
class Call(Generic[T]):
    """A request, and a reader for its answer. ``target`` is the percent-encoded path and query.

    ``reader`` makes a reader out of the answer's head and a :data:`~rstore.core.memory.Spend`. The reader says how much
    memory it will take before it takes it. The chunks that it gets are counted already.

    An operation is a generator of calls: ``found = yield from call`` yields the call, and ``found`` is what its reader
    made of the answer. A call with ``own_budget`` does not share the memory that the answers of its operation may take,
    because the operation keeps nothing of its answer. A call that is not ``repeatable`` must not be carried out twice,
    and has no id by which the service would prevent that.
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
    """An operation yields this to get the :data:`~rstore.core.memory.Spend` of its budget."""


SPENDING: Final = Spending()
Steps: TypeAlias = Generator[Call[Any] | Spending, Any, T]
"""The steps of an operation: it yields calls, gets their answers, and returns its result."""


class TryAgain(Exception):
    """An attempt failed, and the next one may succeed.

    ``error`` is the error to raise if there is no next one. ``after_seconds`` is how long the service asks to wait, or
    None. ``unsent`` is True if there was no connection, so that nothing was sent.
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
        # A list of many small chunks would take many times their bytes.
        if isinstance(self._body, bytes):
            self._body = bytearray(self._body)
        self._body += chunk

    def finish(self) -> T:
        body, self._body = bytes(self._body), b""
        return self._decode(Answer(self._head, body, self._spend))


def whole(decode: Callable[[Answer], T]) -> Callable[[Head, Spend], Reader[T]]:
    """What makes a :class:`Whole` for an answer."""
    return functools.partial(Whole, decode)
