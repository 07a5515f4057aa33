"""How much memory the answers to one operation may take, and how long they may take to come."""

from __future__ import annotations

import time
from typing import Final, TypeVar

import httpx2

from rstore.calls import Call, Head, Reader
from rstore.core.errors import StoreNotAvailableError, StoreProtocolError

__all__ = ["TOO_SLOW", "Budget"]

T = TypeVar("T")
TOO_SLOW: Final = "the service took longer than an operation may take"
_ANSWER_OVERHEAD_BYTES: Final = 1024


class Budget:
    """How many bytes of memory the answers to one operation may still take, and until when."""

    __slots__ = ("_end", "_left")

    def __init__(self, size: int, seconds: float) -> None:
        self._left = size
        self._end = time.monotonic() + seconds

    def spend(self, size: int) -> None:
        """Take ``size`` bytes, or give them back if it is negative. Raises StoreProtocolError if that is too much."""
        if size > self._left:
            raise StoreProtocolError("the answer takes more memory than answer_bytes_max allows")
        self._left -= size

    def receive(self, size: int) -> None:
        """Take ``size`` bytes that have come. Raises as :meth:`spend`, and StoreNotAvailableError if it is too late."""
        self.spend(size)
        if time.monotonic() > self._end:
            raise StoreNotAvailableError(TOO_SLOW)

    def seconds_left(self) -> float:
        return max(self._end - time.monotonic(), 0)

    def reader(self, call: Call[T], response: httpx2.Response) -> Reader[T]:
        """What reads this answer to the call."""
        headers = _fields(response)
        # A server that answers a paged listing with empty pages for ever runs out of budget as well.
        self.receive(_ANSWER_OVERHEAD_BYTES)
        if headers.get("content-encoding", "identity") != "identity":
            raise StoreProtocolError("the answer is compressed, which was not asked for", status=response.status_code)
        return call.reader(Head(response.status_code, headers), self.spend)


def _fields(response: httpx2.Response) -> dict[str, str]:
    """The fields of an answer's head by lower-case name. Those of one name are joined, as in RFC 9110, 5.2."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in response.headers.raw:
        name, value = raw_name.lower().decode("latin-1"), raw_value.decode("latin-1")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields
