"""A request's body as it arrives, and its answer as it is sent."""

from __future__ import annotations

import asyncio
import http
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from rstored.api.front_door import Write
from rstored.api.replies import CLIENT_GONE, Header, Reply
from rstored.api.requests import ClientGone, Request

if TYPE_CHECKING:
    from rstored.http.connection import Connection

__all__ = ["STATUS_LINES", "UNSENT_BYTES_MAX", "App", "Exchange", "header_lines"]

# What answers requests: it is given one and what writes its reply, as FrontDoor.serve is.
App: TypeAlias = Callable[[Request, Write], Coroutine[Any, Any, None]]

# How much may wait in this process for the client to read before more is written. A longer answer keeps its request
# under way until the client has read the rest of it, so the number of requests under way bounds what waits.
UNSENT_BYTES_MAX: Final = 4 * 1024
# To copy a longer answer behind its head would cost more than a second write.
_JOINED_BYTES_MAX: Final = 64 * 1024

_LAST_CHUNK: Final = b"0\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
STATUS_LINES: Final = {status.value: b"HTTP/1.1 %d %b" % (status, status.phrase.encode()) for status in http.HTTPStatus}


class Exchange:
    """What the connection knows of a request under way: :meth:`receive` its body, and :meth:`write` its reply.

    The app has ``returned``, or still runs, in ``task`` unless it does all at once. The request has its
    ``complete_body``; the answer has ``started``, or is ``answered`` to its end. ``keep_alive``: the connection may go
    on afterwards. ``knows_chunks``: the client is not an old one.
    """

    # It knows no request, since that knows it: a cycle would keep both, with what they hold, until the collector comes.
    __slots__ = (
        "_arrival",
        "_connection",
        "_lost",
        "_pieces",
        "answered",
        "complete_body",
        "expects_continue",
        "keep_alive",
        "knows_chunks",
        "returned",
        "started",
        "task",
        "unread_bytes",
    )

    def __init__(self, connection: Connection, *, keep_alive: bool, knows_chunks: bool) -> None:
        self._connection = connection
        self.keep_alive = keep_alive
        self.knows_chunks = knows_chunks
        self.expects_continue = False
        self.returned = False
        self.task: asyncio.Task[None] | None = None
        # The body, as far as it has arrived and the app has not received it.
        self._pieces: list[bytes] = []
        self.unread_bytes = 0
        self.complete_body = False
        self._arrival: asyncio.Future[None] | None = None
        # The answer.
        self.started = False
        self.answered = False
        self._lost = False

    def feed(self, body: bytes) -> None:
        """A part of the body has arrived."""
        self.unread_bytes += len(body)
        if not self.answered:
            self._pieces.append(body)
            self._wake()

    def complete(self) -> None:
        """The body has arrived to its end."""
        self.complete_body = True
        self._wake()

    def lose(self) -> None:
        """The client is gone, or treated so."""
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None and not arrival.done():
            arrival.set_result(None)

    async def receive(self) -> tuple[bytes, bool]:
        """The next part of the body, and whether more follows. Raises ClientGone."""
        while not self._lost and not self.answered:
            if self._pieces or self.complete_body:
                pieces, self._pieces = self._pieces, []
                self.unread_bytes = 0
                return pieces[0] if len(pieces) == 1 else b"".join(pieces), not self.complete_body
            if self.expects_continue and not self.started:
                self.expects_continue = False
                self._connection.transport.write(_CONTINUE)
            self._connection.resume_reading()
            if self._arrival is None:
                self._arrival = self._connection.loop.create_future()
            await self._arrival
        raise ClientGone

    async def write(self, request: Request, reply: Reply) -> None:
        """Send the reply; returns when the client has read most of it. Raises ClientGone where that breaks a stream."""
        body = reply.body
        if not isinstance(body, bytes):
            await self._stream(request, reply, body)
            return
        if self._lost or reply.status == CLIENT_GONE:
            return
        connection = self._connection
        transport = connection.transport
        head = self._head(request, reply, b"content-length: %d\r\n" % len(body) if reply.has_length else b"")
        if request.method == "HEAD":
            body = b""
        if len(body) <= _JOINED_BYTES_MAX:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        if connection.drained is not None and len(body) > UNSENT_BYTES_MAX:
            # Until then the answer is in memory, and the request under way.
            await asyncio.shield(connection.drained)
            if self._lost:
                return
        self._end()

    async def _stream(self, request: Request, reply: Reply, body: AsyncGenerator[bytes, None]) -> None:
        connection = self._connection
        in_chunks = self.knows_chunks and request.method != "HEAD"
        if not self.knows_chunks:
            # An old client knows the end of the body by the end of the connection.
            self.keep_alive = False
        written = self._head(request, reply, b"transfer-encoding: chunked\r\n" if in_chunks else b"")
        for part in reply.begun:
            await self._send(written + (_chunk(part) if in_chunks else part))
            written = b""
        async for part in body:
            await self._send(_chunk(part) if in_chunks else part)
        if self._lost:
            raise ClientGone
        if in_chunks:
            connection.transport.write(_LAST_CHUNK)
        self._end()

    async def _send(self, part: bytes) -> None:
        if self._lost:
            raise ClientGone
        connection = self._connection
        if part:
            connection.transport.write(part)
        if connection.drained is not None:
            await asyncio.shield(connection.drained)

    def _end(self) -> None:
        self.answered = True
        self._wake()

    def _head(self, request: Request, reply: Reply, framing: bytes) -> bytes:
        """The head of the answer; it says how the body ends and whether the connection does."""
        self.started = True
        connection = self._connection
        lines = header_lines([*connection.server.default_headers, *request.headers_of(reply)])
        if b"\r\nconnection: close\r\n" in lines:
            self.keep_alive = False
        elif connection.is_last(self):
            self.keep_alive = False
            framing += b"connection: close\r\n"
        return b"%b%b%b\r\n" % (STATUS_LINES[reply.status], lines, framing)


def header_lines(headers: list[Header]) -> bytes:
    """The header fields, each between two line breaks: that before the first one is the end of the status line."""
    lines = b"\r\n".join([b"", *map(b": ".join, headers), b""])
    if lines.count(b"\n") != len(headers) + 1 or lines.count(b"\r") != len(headers) + 1:
        raise RuntimeError("a header holds a line break")
    return lines


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body) if body else b""
