"""The memory that the answers to one operation may take, and the time in which they must arrive."""

from __future__ import annotations

import time
from typing import Final, TypeVar

import httpx2

from rstore.calls import Call, Head, Reader
from rstore.core.errors import StoreNotAvailableError, StoreProtocolError

T = TypeVar("T")
TOO_SLOW: Final = "the service took longer than an operation may take"
_ANSWER_OVERHEAD_BYTES: Final = 1024


class Budget:
    """The bytes of memory that the answers to one operation may still take, and the time when they must be there."""

    __slots__ = ("_end", "_left")

    def __init__(self, size: int, seconds: float) -> None:
        self._left = size
        self._end = time.monotonic() + seconds

    def spend(self, size: int) -> None:
        """Take ``size`` bytes, or give them back if it is negative. Raises StoreProtocolError if too few are left."""
        if size > self._left:
            raise StoreProtocolError("the answer takes more memory than answer_bytes_max allows")
        self._left -= size

    def receive(self, size: int) -> None:
        """Take ``size`` bytes that have arrived. Raises as :meth:`spend`, or StoreNotAvailableError if late."""
        self.spend(size)
        if time.monotonic() > self._end:
            raise StoreNotAvailableError(TOO_SLOW)

    def seconds_left(self) -> float:
        return max(self._end - time.monotonic(), 0)

    def reader(self, call: Call[T], response: httpx2.Response) -> Reader[T]:
        """The reader for this answer to the call."""
        headers = _fields(response)
        # A server that answers a listing with empty pages for ever uses up the budget as well.
        self.receive(_ANSWER_OVERHEAD_BYTES)
        if headers.get("content-encoding", "identity") != "identity":
            raise StoreProtocolError("the answer is compressed, which was not asked for", status=response.status_code)
        return call.reader(Head(response.status_code, headers), self.spend)


def _fields(response: httpx2.Response) -> dict[str, str]:
    """The header fields of an answer by lower-case name. Fields of one name are joined (RFC 9110, 5.2)."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in response.headers.raw:
        name, value = raw_name.lower().decode("latin-1"), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields
