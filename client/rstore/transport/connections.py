"""Transports: the connections of one process, and of one event loop."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncGenerator
from typing import Any, Final

import httpx2

from rstore.core.errors import StoreNotAvailableError
from rstore.transport.budget import TOO_SLOW

# The SDK keeps all connections that a burst opened, for less time than a service (75 s) or a proxy (60 s) keeps them.
_CONNECTIONS: Final = httpx2.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=50)
_inherited: Final[list[object]] = []


class LoopTransport:
    """A transport under one event loop. The loop closes it at its end, as it does with all asynchronous generators."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, *, owned: bool) -> None:
        self.transport = transport
        self._closing = _closing(transport if owned else None)

    async def begin(self) -> LoopTransport:
        """Register the transport with the event loop."""
        await anext(self._closing)
        return self

    async def close(self) -> None:
        """Close the transport if it is owned."""
        await self._closing.aclose()


def awaited_transport(tls: ssl.SSLContext | bool) -> httpx2.AsyncHTTPTransport:
    """A transport for AsyncStore. The store can stop to await it, so it needs no bounds of its own."""
    return httpx2.AsyncHTTPTransport(verify=tls, trust_env=False, limits=_CONNECTIONS)


def blocking_transport(tls: ssl.SSLContext | bool, seconds_max: float) -> httpx2.HTTPTransport:
    """A transport that reads from a connection for at most ``seconds_max`` after it last wrote to it.

    The HTTP library bounds how long one read takes, but not how many reads there are. A head that arrives byte by byte,
    or one answer 103 after the other, would keep it reading for ever.
    """
    transport = httpx2.HTTPTransport(verify=tls, trust_env=False, limits=_CONNECTIONS)
    pool: Any = transport._pool  # noqa: SLF001
    pool._network_backend = _BoundedBackend(pool._network_backend, seconds_max)  # noqa: SLF001
    return transport


def leave_to_parent(connected: object) -> None:
    """Keep what a forked process inherited, and never touch it again.

    The connections belong to the parent process. Closing them in the child would take locks that a thread of the parent
    held during the fork, and would change the state of an event loop that both processes share.
    """
    _inherited.append(connected)


async def _closing(transport: httpx2.AsyncBaseTransport | None) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        if transport is not None:
            await transport.aclose()


class _BoundedBackend:
    """The HTTP library's network, whose connections are bounded."""

    def __init__(self, backend: Any, seconds_max: float) -> None:
        self._backend = backend
        self._seconds_max = seconds_max

    def connect_tcp(self, *args: Any, **options: Any) -> _BoundedStream:
        return _BoundedStream(self._backend.connect_tcp(*args, **options), self._seconds_max)


class _BoundedStream:
    """A connection from which nothing is read later than ``seconds_max`` after something was written."""

    def __init__(self, stream: Any, seconds_max: float) -> None:
        self._stream = stream
        self._seconds_max = seconds_max
        self._end = 0.0
        self.close = stream.close
        self.get_extra_info = stream.get_extra_info

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)
        self._end = time.monotonic() + self._seconds_max

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if time.monotonic() > self._end:
            raise StoreNotAvailableError(TOO_SLOW)
        data: bytes = self._stream.read(max_bytes, timeout)
        return data

    def start_tls(self, *args: Any, **options: Any) -> _BoundedStream:
        return _BoundedStream(self._stream.start_tls(*args, **options), self._seconds_max)
