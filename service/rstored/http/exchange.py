"""A request and its answer, as an ASGI app sees them."""

from __future__ import annotations

import asyncio
import http
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from rstored.http.connection import Connection

__all__ = ["STATUS_LINES", "UNSENT_BYTES_MAX", "App", "Exchange", "Message", "Receive", "Send", "header_lines"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Coroutine[Any, Any, None]]

# How much may wait in this process for the client to read before more is written. A longer answer keeps its request
# under way until the client has read the rest of it, so the number of requests under way bounds what waits.
UNSENT_BYTES_MAX: Final = 4 * 1024
# To copy a longer answer behind its head would cost more than a second write.
_JOINED_BYTES_MAX: Final = 64 * 1024

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
STATUS_LINES: Final = {status.value: b"HTTP/1.1 %d %b" % (status, status.phrase.encode()) for status in http.HTTPStatus}
_WITHOUT_BODY: Final = frozenset({204, 304})


class Exchange:
    """A request and its answer, as an ASGI app sees them: ``scope``, :meth:`receive` and :meth:`send`.

    The app has ``begun``, or waits for the connection to ask it; it has ``returned``, or still runs. The request has
    its ``complete_body``; the answer has ``started``, or is ``answered`` to its end.
    ``keep_alive``: the connection may go on afterwards.
    """

    __slots__ = (
        "_arrival",
        "_chunked",
        "_connection",
        "_head",
        "_lost",
        "_pieces",
        "_received",
        "answered",
        "begun",
        "complete_body",
        "expects_continue",
        "keep_alive",
        "returned",
        "scope",
        "started",
        "unread_bytes",
    )

    def __init__(self, connection: Connection, scope: Message, *, keep_alive: bool) -> None:
        self._connection = connection
        self.scope = scope
        self.keep_alive = keep_alive
        self.expects_continue = False
        self.begun = False
        self.returned = False
        # The body, as far as it has arrived and the app has not received it.
        self._pieces: list[bytes] = []
        self.unread_bytes = 0
        self.complete_body = False
        self._received = False
        self._arrival: asyncio.Future[None] | None = None
        # The answer.
        self._head: Message | None = None
        self._chunked = False
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

    async def receive(self) -> Message:
        """The next part of the body; after the last, or without the client, ``http.disconnect`` once it is over."""
        while not self._lost and not self.answered:
            if self._pieces or (self.complete_body and not self._received):
                pieces, self._pieces = self._pieces, []
                self.unread_bytes = 0
                self._received = self.complete_body
                body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                return {"type": "http.request", "body": body, "more_body": not self.complete_body}
            if self.expects_continue and not self.started:
                self.expects_continue = False
                self._connection.transport.write(_CONTINUE)
            if not self.complete_body:
                self._connection.resume_reading()
            if self._arrival is None:
                self._arrival = self._connection.loop.create_future()
            await self._arrival
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Send the head, which waits for the first part of the body, or a part of the body."""
        if self._lost:
            return
        if message["type"] == "http.response.start":
            self._head = message
            return
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        connection = self._connection
        transport = connection.transport
        head, self._head = self._head, None
        if head is not None:
            self.started = True
            begin = self._begin(head, len(body), more=more)
            if self.scope["method"] == "HEAD":
                body = b""
            if self._chunked:
                body = _chunk(body)
            if len(body) <= _JOINED_BYTES_MAX:
                transport.write(begin + body)
            else:
                transport.write(begin)
                transport.write(body)
        elif self._chunked:
            transport.write(_chunk(body) if more else _chunk(body) + b"0\r\n\r\n")
        elif body:
            transport.write(body)
        if connection.drained is not None and (more or len(body) > UNSENT_BYTES_MAX):
            await asyncio.shield(connection.drained)
        if not more:
            self.answered = True
            self._wake()

    def _begin(self, message: Message, size: int, *, more: bool) -> bytes:
        """The head of the answer; it says how the body ends and whether the connection does."""
        connection = self._connection
        lines = header_lines([*connection.server.default_headers, *message["headers"]])
        status: int = message["status"]
        closes = b"\r\nconnection: close\r\n" in lines
        if closes:
            self.keep_alive = False
        last = b""
        if b"\r\ncontent-length: " not in lines:
            if not more:
                if status not in _WITHOUT_BODY:
                    last = b"content-length: %d\r\n" % size
            elif self.scope["method"] != "HEAD":
                if self.scope["http_version"] == "1.0":
                    # An old client knows the end of the body by the end of the connection.
                    self.keep_alive = False
                else:
                    self._chunked = True
                    last = b"transfer-encoding: chunked\r\n"
        if not closes and connection.is_last(self):
            self.keep_alive = False
            last += b"connection: close\r\n"
        return b"%b%b%b\r\n" % (STATUS_LINES[status], lines, last)


def header_lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The header fields, each between two line breaks: that before the first one is the end of the status line."""
    lines = b"\r\n".join([b"", *map(b": ".join, headers), b""])
    if lines.count(b"\n") != len(headers) + 1 or lines.count(b"\r") != len(headers) + 1:
        raise RuntimeError("a header holds a line break")
    return lines


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body) if body else b""
