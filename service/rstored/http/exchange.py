"""The body of a request while it arrives, and its answer while it is sent."""

from __future__ import annotations

import asyncio
import http
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from rstored.api.front_door import SendReply
from rstored.api.replies import CLIENT_GONE, CLOSE, ON_ALL, Header, Reply
from rstored.api.requests import ClientGone, Request

if TYPE_CHECKING:
    from rstored.http.connection import Connection

# It answers a request. It gets the request and the function that writes the reply, like FrontDoor.serve.
App: TypeAlias = Callable[[Request, SendReply], Coroutine[Any, Any, None]]

# This many bytes may wait in this process for the client to read them. Before more is written, some must go. A
# longer answer keeps its request under way until the client has read the rest. So the number of requests bounds the
# memory.
UNSENT_BYTES_MAX: Final = 4 * 1024
# Copying a longer answer behind its head would take longer than a second write.
_JOINED_BYTES_MAX: Final = 64 * 1024

_LAST_CHUNK: Final = b"0\r\n\r\n"
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in http.HTTPStatus
}


class Exchange:
    """What the connection knows of a request under way. :meth:`receive` reads its body, :meth:`write` sends its reply.

    ``returned`` says whether the app has returned. Until then it runs, in ``task`` if it could not answer at once.
    ``complete_body`` says whether the whole body has arrived, ``started`` whether the answer has begun, and
    ``answered`` whether it is complete. ``keep_alive`` says whether the connection may go on afterwards, and
    ``knows_chunks`` whether the client speaks HTTP/1.1.
    """

    # The request refers to its exchange, so the exchange must not refer to the request. A cycle would keep both until
    # the collector runs.
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
        # The part of the body that has arrived and that the app has not received.
        self._pieces: list[bytes] = []
        self.unread_bytes = 0
        self.complete_body = False
        self._arrival: asyncio.Future[None] | None = None
        # The answer.
        self.started = False
        self.answered = False
        self._lost = False

    def feed(self, body: bytes) -> None:
        """Take a part of the body that has arrived."""
        self.unread_bytes += len(body)
        if not self.answered:
            self._pieces.append(body)
            self._wake()

    def complete(self) -> None:
        """Note that the whole body has arrived."""
        self.complete_body = True
        self._wake()

    def lose(self) -> None:
        """Note that the client is gone, or is treated as gone."""
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
        """Send the reply. Returns when the client has read most of it. Raises ClientGone if a stream is cut off."""
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
            # Until the client has read most of it, the answer is in memory and the request is under way.
            await asyncio.shield(connection.drained)
            if self._lost:
                return
        self._end()

    async def _stream(self, request: Request, reply: Reply, body: AsyncGenerator[bytes, None]) -> None:
        connection = self._connection
        in_chunks = self.knows_chunks and request.method != "HEAD"
        if not self.knows_chunks:
            # For an old client, the end of the connection is the end of the body.
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
        """The head of the answer. It says where the body ends, and whether the connection ends."""
        self.started = True
        connection = self._connection
        headers = request.headers_of(reply)
        on_all = _ON_ALL_LINES if request.on_all is ON_ALL else header_lines(request.on_all)
        if CLOSE in headers:
            self.keep_alive = False
        elif connection.is_last(self):
            self.keep_alive = False
            framing += b"connection: close\r\n"
        parts = STATUS_LINES[reply.status], connection.server.date_line, header_lines(headers), on_all, framing
        return b"%b%b%b%b%b\r\n" % parts


def header_lines(headers: Collection[Header]) -> bytes:
    """The header fields as lines.

    >>> header_lines([(b"etag", b'"5f1c"'), (b"date", b"today")])
    b'etag: "5f1c"\\r\\ndate: today\\r\\n'
    """
    lines = b"\r\n".join([*map(b": ".join, headers), b""])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
        raise RuntimeError("a header holds a line break")
    return lines


# Most answers have just these. To put them together takes longer than all that is an answer's own.
_ON_ALL_LINES: Final = header_lines(ON_ALL)


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body) if body else b""
