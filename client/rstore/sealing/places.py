"""The places for which values are sealed."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, TypeAlias

from rstore.core.errors import StoreRequestError

POINT_KIND: Final = "ts"
int64_bytes: Final = struct.Struct(">q").pack


class PairContext(NamedTuple):
    """The place of a key/value pair."""

    namespace: str
    key: str

    @property
    def kind(self) -> str:
        """The kind of thing at this place, which is in the derivation of the subkey."""
        return "kv"

    def authenticated(self) -> bytes:
        """The bytes to authenticate beside the envelope's head. None: the subkey depends on the whole place."""
        return b""


class PointContext(NamedTuple):
    """The place of a point of a time series. ``timestamp`` is an int64."""

    namespace: str
    key: str
    timestamp: int

    @property
    def kind(self) -> str:
        """The kind of thing at this place, which is in the derivation of the subkey."""
        return POINT_KIND

    def authenticated(self) -> bytes:
        """The bytes to authenticate beside the envelope's head: the timestamp."""
        return _timestamp(self.timestamp)


class EventContext(NamedTuple):
    """The place of an event. ``timestamp`` is POSIX milliseconds, an int64. ``op`` is the operator's name."""

    namespace: str
    key: str
    timestamp: int
    item: str
    op: str

    @property
    def kind(self) -> str:
        """The kind of thing at this place, which is in the derivation of the subkey."""
        return "es"

    def authenticated(self) -> bytes:
        """The bytes to authenticate beside the envelope's head: timestamp, item and operator."""
        return _timestamp(self.timestamp) + prefixed(self.item) + prefixed(self.op)


Context: TypeAlias = PairContext | PointContext | EventContext


def beyond_int64() -> StoreRequestError:
    """The error for a timestamp that is not an int64."""
    return StoreRequestError("a timestamp is an int from -2**63 to 2**63-1", code="invalid-parameter")


def prefixed(text: str) -> bytes:
    """The length of ``text`` in UTF-8, and then its bytes. So no two lists of texts give the same bytes."""
    data = text.encode()
    return len(data).to_bytes(4, "big") + data


def _timestamp(timestamp: int) -> bytes:
    try:
        return int64_bytes(timestamp)
    except struct.error:
        raise beyond_int64() from None
