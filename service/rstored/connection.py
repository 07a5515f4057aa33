"""HTTP/1.1 connections: parsed by httptools, answered by an ASGI app, and bounded in number, size and time.

uvicorn runs and stops; this stands where its servers and its protocol would. It is an ordinary ASGI server, but spends
less: a body that comes with its head is here before the app is asked for the answer; an app that can answer at once
runs at once, without a task; a short answer is one write; and nothing has a timer, since one sweep looks at everything.

An app begins outside a task, so what it does before it first waits may not ask for the current one (as
``asyncio.timeout`` does). From then on ``scope["task"]`` is the task that it runs in.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http
import logging
import math
import secrets
import socket
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Container, Coroutine, Generator, MutableMapping
from typing import Any, Final, TypeAlias, cast
from urllib.parse import unquote

import httptools
from uvicorn.server import ServerState

from rstored.api.metrics import Metrics
from rstored.api.problems import problem_reply
from rstored.api.replies import ON_ALL
from rstored.limits import Limits
from rstored.problems import Problem

__all__ = ["App", "Connection", "Connections", "Entrance"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Coroutine[Any, Any, None]]

logger = logging.getLogger("rstored.server")

# When so much of a body lies here that the app has not asked for, the client is made to wait.
_UNREAD_BYTES_MAX: Final = 256 * 1024
# To copy a longer answer behind its head would cost more than a second write.
_JOINED_BYTES_MAX: Final = 64 * 1024
# How long, and for how many bytes, an answered client may go on sending a body that nobody wants: closing at
# once would reset the connection, and the answer could be lost on its way.
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 64 * 2**20
# How many connections are accepted before the others have a turn.
_ACCEPTED_AT_ONCE: Final = 16
# How long none is accepted when one could not be, with a connection closed for it and without.
_EVICTION_SECONDS: Final = 0.1
_ACCEPT_PAUSE_SECONDS: Final = 1.0
_HANDSHAKE_SECONDS: Final = 10
# Where more have something to say at once (1024 in libuv), the event loop looks again before the round is over.
_CONNECTIONS_A_ROUND_MAX: Final = 1_000

# How many lines a second the log gets of what is no request, whoever sends how much of it.
_REFUSALS_LOGGED_MAX: Final = 50

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b" % (status, status.phrase.encode()) for status in http.HTTPStatus
}
# What the parser says of versions that it does not know, and of the preface of HTTP/2.
_OTHER_VERSIONS: Final = frozenset(
    {"Invalid HTTP version", "Pause on PRI/Upgrade", "Expected HTTP/2 Connection Preface"}
)
_WITHOUT_BODY: Final = frozenset({204, 304})
# Where a transport is not to know its connection any more.
_NOBODY: Final = asyncio.Protocol()


class Connections(ServerState):
    """Every open connection: which are idle, the longest idle first, and how many each client has.

    A connection is idle while no request is under way, also while a handshake of TLS or a head arrives: so whoever
    sends one byte by byte is held to the time that an idle connection has, and makes room for others as one.
    """

    def __init__(
        self, limits: Limits, metrics: Metrics, trusted: Container[str], renew: Callable[[], None] = lambda: None
    ) -> None:
        """``renew`` is called where what is read next may not be older than that moment (``Backend.renew``)."""
        super().__init__()
        self.limits = limits
        self.renew = renew
        self.idle: dict[Connection, float] = {}
        self._metrics = metrics
        self.trusted = trusted
        self._of_client: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()
        self._refused = 0

    def admit(self, connection: Connection, now: float) -> bool:
        """Whether a new connection may stay, which then is one of these. If there are too many, the longest idle one
        is closed for it."""
        client = connection.address
        if self._of_client[client] >= self.limits.connections_per_client_max and client not in self.trusted:
            self.count_closed("client-connections")
            return False
        if len(self.connections) >= self.limits.connections_max and not self.evict("evicted"):
            self.count_closed("connections")
            return False
        self._of_client[client] += 1
        connections: set[Any] = self.connections
        connections.add(connection)
        self.idle[connection] = now
        return True

    def evict(self, reason: str) -> bool:
        """Close the longest idle connection at once, if any is idle."""
        longest_idle = next(iter(self.idle), None)
        if longest_idle is None:
            return False
        self.count_closed(reason)
        del self.idle[longest_idle]
        # With TLS a proper close would wait for the client, and the connection would be there as long.
        longest_idle.abort()
        return True

    def forget(self, connection: Connection) -> None:
        """The connection is closed; nothing happens if it was no longer one of these."""
        connections: set[Any] = self.connections
        if connection in connections:
            connections.remove(connection)
            self.idle.pop(connection, None)
            client = connection.address
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]

    def count_closed(self, reason: str) -> None:
        """One connection was closed by the service; the log gets one line for those of a second."""
        self._closed[reason] += 1
        self._metrics.count_closed_connection(reason)

    def log_refusal(self, request_id: str, client: str) -> None:
        """What arrived was no request. Of those of a second the log gets the first few, and how many there were."""
        self._refused += 1
        if self._refused <= _REFUSALS_LOGGED_MAX:
            logger.info("malformed request", extra={"request_id": request_id, "client": client})

    def sweep(self, now: float) -> None:
        """End what was idle too long and whose reader is too slow: one look at all, not a timer for each request."""
        for idle, since in list(self.idle.items()):
            if now - since < self.limits.idle_seconds_max:
                break
            idle.close_idle()
        for connection in cast("list[Connection]", list(self.connections)):
            connection.check(now)
        self._metrics.connections = len(self.connections)
        if self._closed:
            logger.warning("connections closed", extra={"open": len(self.connections), **self._closed})
            self._closed.clear()
        if self._refused > _REFUSALS_LOGGED_MAX:
            logger.info("malformed requests", extra={"count": self._refused})
        self._refused = 0


class Entrance:
    """Accepts connections on a socket, over TLS or not.

    It stands where the event loop's own server would. That one tells of a connection when the handshake is over, so
    those who never finish one would be in no count; and it may close for good when no file can be opened.
    """

    def __init__(
        self, listener: socket.socket, backlog: int, app: App, connections: Connections, tls: ssl.SSLContext | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._app = app
        self._connections = connections
        self._tls: dict[str, Any] = {}
        if tls is not None:
            times = dict.fromkeys(("ssl_handshake_timeout", "ssl_shutdown_timeout"), _HANDSHAKE_SECONDS)
            self._tls = {"ssl": tls, **times}
        self._arriving: set[asyncio.Task[Any]] = set()
        self._is_open = True
        listener.listen(backlog)
        self._loop.add_reader(listener, self._accept)

    def _accept(self) -> None:
        for number in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Without files it fails even if nobody waits any more; that somebody does is known of the first alone.
                if number == 0:
                    self._pause(error)
                return
            connection = Connection(self._app, self._connections, accepted, address)
            if self._connections.admit(connection, self._loop.time()):
                self._connect(connection, accepted)
            else:
                accepted.close()

    def _connect(self, connection: Connection, accepted: socket.socket) -> None:
        arrival = self._loop.connect_accepted_socket(lambda: connection, accepted, **self._tls)
        task = self._loop.create_task(arrival)
        self._arriving.add(task)
        task.add_done_callback(functools.partial(self._arrived, connection))

    def _pause(self, error: OSError) -> None:
        """Files lack, of this process or the system, or memory: what is idle makes room, one after the other."""
        pause = _EVICTION_SECONDS
        if not self._connections.evict("open-files"):
            logger.warning("no connection can be accepted", extra={"reason": error.strerror})
            pause = _ACCEPT_PAUSE_SECONDS
        self._loop.remove_reader(self._listener)
        self._loop.call_later(pause, self._go_on)

    def _go_on(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._listener, self._accept)

    def _arrived(self, connection: Connection, task: asyncio.Task[Any]) -> None:
        self._arriving.discard(task)
        if task.cancelled() or task.exception() is not None:
            # What a client does in a handshake is no failure of the service.
            self._connections.forget(connection)

    def close(self) -> None:
        """Accept no more."""
        self._is_open = False
        self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """Return at once: nothing is left behind."""


class Connection(asyncio.Protocol):
    """A connection, and the requests on it: one is answered at a time, and those that came ahead of their turn wait.

    It begins where the socket is accepted, and has its transport when the handshake, if any, is over.
    """

    def __init__(self, app: App, connections: Connections, accepted: socket.socket, address: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = connections
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self._client = _address(address)
        self.address = self._client[0] if self._client else ""
        self._accepted: socket.socket | None = accepted
        # What streams wait for while the client is slow to read; None while it is not.
        self.drained: asyncio.Future[None] | None = None
        self._app = app
        self._limits = connections.limits
        # There is none before there is a transport, since it knows the connection.
        self._parser: httptools.HttpRequestParser
        self._base: Message = {}
        self._arriving: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []
        # Whether what is being parsed had a whole request in it already.
        self._had_request = False
        self._in_message = False
        self._in_head = True
        self._asks_for_upgrade = False
        self._silent_bytes = 0
        self._pipelines_too_much = False
        # What arrives from now on is no request any more.
        self._deaf = False
        # What arrived and is no request, to be told once the requests before it are answered.
        self._refusal: Problem | None = None
        self._stopping = False
        self._reading = True
        self._lingers_until = math.inf
        self._has_read = False
        self._unread_since: tuple[float, int] | None = None

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # What a client sends behind its last request is nobody's, but no reason to refuse that request.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # --- called by the transport ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it
        self._accepted = None
        self._parser = self._new_parser()
        self._base = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http" if transport.get_extra_info("sslcontext") is None else "https",
            "server": _address(transport.get_extra_info("sockname")),
            "client": self._client,
            "root_path": "",
            "task": None,
        }

    def connection_lost(self, error: Exception | None) -> None:
        self.server.forget(self)
        self._waiting.clear()
        for exchange in (self._current, self._arriving):
            if exchange is not None:
                exchange.lose()
        self.resume_writing()
        # No cycle may be left, or the buffers of its TLS, a quarter of a mebibyte and more, would be there until the
        # collector comes, which is seldom.
        self._arriving = None
        del self._parser
        self.transport.set_protocol(_NOBODY)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        # Heads and trailers are kept until the message ends, so there is a bound on what brings no body. A packet
        # may bring much more than a head, so only what came in earlier ones is held against it.
        if self._silent_bytes > self._limits.header_bytes_max:
            self._refuse(_head_too_large(self._limits))
            return
        self._had_request = False
        self._silent_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._asks_for_upgrade:
                self._go_on_without_upgrade(data[upgrade.args[0] :])
                return
        except (httptools.HttpParserError, httptools.HttpParserInvalidURLError) as error:
            problem = error.__context__
            if not isinstance(problem, Problem):
                code = "unsupported-http-version" if str(error) in _OTHER_VERSIONS else "malformed-request"
                problem = Problem(code, "What arrived is not an HTTP/1.1 request.")
            # Its traceback would hold the parser, which holds it.
            self._refuse(problem.with_traceback(None))
            return
        exchange = self._arriving
        if exchange is not None and not exchange.queued:
            self._enqueue(exchange)

    def eof_received(self) -> bool:
        """The client sends no more, but may still read: what arrived whole is answered before the connection closes."""
        self._deaf = self._stopping = True
        self._in_message = False
        exchange, self._arriving = self._arriving, None
        if exchange is not None and exchange in self._waiting:
            self._waiting.remove(exchange)
        elif exchange is not None:
            exchange.lose()
        # Over TLS nothing can be sent after the end.
        return self._base["scheme"] == "http" and self._owes_answers()

    def pause_writing(self) -> None:
        if self.drained is None:
            self.drained = self.loop.create_future()

    def resume_writing(self) -> None:
        self._has_read = True
        drained, self.drained = self.drained, None
        if drained is not None:
            if not drained.done():
                drained.set_result(None)
            self._answer_waiting()

    # --- called by the parser ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        # While the service stops, no request begins.
        self._in_message = not self._stopping
        self._deaf |= self._stopping
        self._url = b""
        self._fields = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers come here as well, and nobody asks for them.
        if self._in_head:
            self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser, fields = self._parser, self._fields
        method = parser.get_method()
        if method == b"CONNECT":
            raise Problem("malformed-request", "The service is no proxy: it opens no tunnel.")
        self._asks_for_upgrade = parser.should_upgrade()
        if self._asks_for_upgrade:
            return
        self._in_head = False
        if len(fields) > self._limits.headers_max or (
            self._silent_bytes > self._limits.header_bytes_max
            and sum(len(name) + len(value) for name, value in fields) > self._limits.header_bytes_max
        ):
            raise _head_too_large(self._limits)
        if len(self._waiting) >= self._limits.pipelined_requests_max:
            # What waits is answered, and then the connection is closed: nobody may leave more and more to do.
            self._pipelines_too_much = self._deaf = True
        if self._deaf or self.transport.is_closing():
            return
        target = self._url
        if not target.startswith(b"/"):
            parts = httptools.parse_url(target)
            target = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
        raw_path, _, query = target.partition(b"?")
        scope: Message = {**self._base}
        scope["method"] = method.decode("ascii")
        scope["raw_path"] = raw_path
        scope["path"] = path = raw_path.decode("latin-1")
        if "%" in path:
            scope["path"] = unquote(path)
        scope["query_string"] = query
        scope["headers"] = fields
        exchange = self._arriving = Exchange(self, scope, keep_alive=parser.should_keep_alive())
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                raise Problem("unsupported-http-version", "What arrived is not an HTTP/1.1 request.")
            # An older client may not know chunks.
            scope["http_version"] = "1.0"
            exchange.keep_alive = False
        elif [name for name, _ in fields].count(b"host") != 1:
            # RFC 9112, 3.2: a proxy that sees another one than we do must not be believed.
            raise Problem("malformed-request", "An HTTP/1.1 request has one Host.")
        exchange.expects_continue = (b"expect", b"100-continue") in fields

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        exchange = self._arriving
        if exchange is None:
            return
        exchange.feed(body)
        if exchange.answered:
            if exchange.unread_bytes > _LINGER_BYTES:
                self.transport.close()
        elif exchange.unread_bytes > _UNREAD_BYTES_MAX:
            self._pause_reading()

    def on_message_complete(self) -> None:
        if self._asks_for_upgrade:
            return
        self._in_message = False
        self._in_head = True
        self._silent_bytes = 0
        exchange, self._arriving = self._arriving, None
        if exchange is None:
            return
        exchange.complete()
        if exchange.answered:
            self.end(exchange)
        elif not exchange.queued:
            self._enqueue(exchange)

    # --- answering -----------------------------------------------------------------------------------------

    def _enqueue(self, exchange: Exchange) -> None:
        exchange.queued = True
        exchange.pipelined = self._had_request or self._current is not None
        self._had_request = True
        self.server.idle.pop(self, None)
        self._waiting.append(exchange)
        self._answer_waiting()

    def _answer_waiting(self) -> None:
        """Answer the requests that wait, in turn, as long as the client reads the answers."""
        waiting = self._waiting
        while waiting and self._current is None and self.drained is None and not self.transport.is_closing():
            self._answer(waiting.popleft())
        if waiting:
            self._pause_reading()
        elif self._refusal is not None:
            if self._current is None:
                self._send_refusal(self._refusal)
        elif not self._reading and (self._arriving is None or self._arriving.unread_bytes <= _UNREAD_BYTES_MAX):
            self.resume_reading()

    def _answer(self, exchange: Exchange) -> None:
        """Run the app until it waits for something, which often is to its end; the rest of it is a task."""
        self._current = exchange
        server = self.server
        if exchange.pipelined or len(server.connections) > _CONNECTIONS_A_ROUND_MAX:
            # It may have been sent long after the round of the event loop began in which it arrived.
            server.renew()
        running = self._app(exchange.scope, exchange.receive, exchange.send)
        try:
            awaited = running.send(None)
        except StopIteration:
            self._returned(exchange)
        except Exception:
            logger.exception("the app failed")
            self._returned(exchange)
        else:
            task = self.loop.create_task(_Rest(running, awaited))
            exchange.scope["task"] = task
            self.server.tasks.add(task)
            task.add_done_callback(lambda task: self._ended(exchange, task))

    def _ended(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self.server.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the app failed", exc_info=error)
        self._returned(exchange)
        self._answer_waiting()

    def _owes_answers(self) -> bool:
        return bool(self._waiting) or (self._current is not None and not self._current.answered)

    def _returned(self, exchange: Exchange) -> None:
        self._current = None
        if not exchange.answered and (exchange.started or self._refusal is None):
            # Without a proper end nobody takes a part of an answer for the whole.
            self.transport.abort()

    def end(self, exchange: Exchange) -> None:
        """Go on after an answer: with the next request, or with the rest of a body that nobody wants, or not at all."""
        if not exchange.complete_body:
            self.resume_reading()
            self._lingers_until = self.loop.time() + _LINGER_SECONDS
            return
        self._lingers_until = math.inf
        if self.is_last(exchange):
            if self._pipelines_too_much:
                self.server.count_closed("pipelined")
            self.transport.close()
        elif not self._waiting:
            self.server.idle[self] = self.loop.time()

    def is_last(self, exchange: Exchange) -> bool:
        """Whether the connection ends with this request."""
        if not exchange.keep_alive:
            return True
        if not self._stopping and not self._pipelines_too_much:
            return False
        more = self._waiting or (self._in_message and self._arriving is not exchange)
        return (self._stopping and not more) or (self._pipelines_too_much and not self._waiting)

    def _refuse(self, problem: Problem) -> None:
        """Answer what no app can answer with a problem, after the requests before it, and end the connection."""
        self._refusal = problem
        self._deaf = True
        exchange, self._arriving = self._arriving, None
        if exchange is not None:
            # The rest of its body cannot be read.
            if exchange.answered:
                self.transport.close()
            elif exchange in self._waiting:
                self._waiting.remove(exchange)
            else:
                exchange.lose()
        self.server.idle.pop(self, None)
        self._answer_waiting()

    def _send_refusal(self, problem: Problem) -> None:
        if self.transport.is_closing():
            return
        request_id = secrets.token_hex(8)
        self.server.log_refusal(request_id, self.address)
        reply = problem_reply(problem, request_id)
        body = reply.body
        assert isinstance(body, bytes)
        headers = [*reply.headers, *ON_ALL, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
        headers.append((b"content-length", b"%d" % len(body)))
        self.transport.write(b"%b%b\r\n%b" % (_STATUS_LINES[reply.status], _lines(headers), body))
        self.transport.close()

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Take the request for one that asks for no other protocol, as it may be.

        Some clients ask for HTTP/2 with every request. The parser stops at the end of such a head, and what follows,
        the body, would be lost: an empty value would be stored.
        """
        parser = self._parser
        lines = [b"%b %b HTTP/%b\r\n" % (parser.get_method(), self._url, parser.get_http_version().encode())]
        for name, value in self._fields:
            if name == b"connection":
                # It may ask for other things as well, as for the end of the connection.
                value = b", ".join(part for part in value.split(b",") if part.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%b: %b\r\n" % (name, value))
        self._parser = self._new_parser()
        self._silent_bytes = 0
        self.data_received(b"".join(lines) + b"\r\n" + rest)

    # --- bounds --------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End what has taken too long at the time ``now`` of the event loop."""
        if self._accepted is not None:
            return
        if now >= self._lingers_until:
            self.transport.close()
        if self._reader_stalls(now):
            self.server.count_closed("slow-reader")
            self.transport.abort()

    def _reader_stalls(self, now: float) -> bool:
        """Whether the client reads what was sent to it at less than the least rate.

        It counts only while the service adds nothing: because the client must read first, or all is sent.
        """
        unread = self.transport.get_write_buffer_size()
        current = self._current
        all_is_sent = current is None or current.answered or self.transport.is_closing()
        if not unread or (self.drained is None and not all_is_sent):
            self._unread_since = None
            return False
        if self._unread_since is None or self._has_read:
            self._unread_since = now, unread
            self._has_read = False
            return False
        since, unread_then = self._unread_since
        if now - since < self._limits.stall_seconds_max:
            return False
        least = self._limits.transfer_bytes_per_second_min * self._limits.stall_seconds_max
        self._unread_since = now, unread
        return unread_then - unread < least

    def close_idle(self) -> None:
        """Close the connection, on which nothing is under way."""
        self.server.idle.pop(self, None)
        if self._accepted is not None or self.transport.get_write_buffer_size():
            # Closing would wait for the client to read what it has not read in all this time.
            self.abort()
        else:
            self.transport.close()

    def abort(self) -> None:
        """Close the connection at once, whatever is under way."""
        if self._accepted is None:
            self.transport.abort()
        else:
            # There may be a transport that is not known here yet, and sees the end.
            with contextlib.suppress(OSError):
                self._accepted.shutdown(socket.SHUT_RDWR)

    def shutdown(self) -> None:
        """Close if idle. Requests of which at least a part has arrived are answered first, and no others."""
        self._stopping = True
        if self._accepted is not None:
            self.abort()
        elif not self._in_message and not self._owes_answers():
            self.transport.close()

    def _pause_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, if reading was paused."""
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()


class Exchange:
    """A request and its answer, as an ASGI app sees them: ``scope``, :meth:`receive` and :meth:`send`.

    ``queued``: the app is asked or is about to be. ``pipelined``: it came behind a request that was not answered yet.
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
        "complete_body",
        "expects_continue",
        "keep_alive",
        "pipelined",
        "queued",
        "scope",
        "started",
        "unread_bytes",
    )

    def __init__(self, connection: Connection, scope: Message, *, keep_alive: bool) -> None:
        self._connection = connection
        self.scope = scope
        self.keep_alive = keep_alive
        self.queued = False
        self.pipelined = False
        self.expects_continue = False
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
        if not more:
            self.answered = True
            self._wake()
            connection.end(self)
        elif connection.drained is not None:
            await asyncio.shield(connection.drained)

    def _begin(self, message: Message, size: int, *, more: bool) -> bytes:
        """The head of the answer; it says how the body ends and whether the connection does."""
        connection = self._connection
        lines = _lines([*connection.server.default_headers, *message["headers"]])
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
        return b"%b%b%b\r\n" % (_STATUS_LINES[status], lines, last)


def _head_too_large(limits: Limits) -> Problem:
    return Problem(
        "headers-too-large",
        f"the head of the request, or its trailers, have more than {limits.headers_max} fields "
        f"or {limits.header_bytes_max} bytes",
        limit=limits.header_bytes_max,
    )


def _lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The header fields, each between two line breaks: that before the first one is the end of the status line."""
    lines = b"\r\n".join([b"", *map(b": ".join, headers), b""])
    if lines.count(b"\n") != len(headers) + 1 or lines.count(b"\r") != len(headers) + 1:
        raise RuntimeError("a header holds a line break")
    return lines


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body) if body else b""


def _address(name: Any) -> tuple[str, int] | None:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None


class _Rest(Coroutine[Any, Any, None]):
    """What is left of a coroutine that has run until it awaited ``awaited``.

    A task that is cancelled before its first step tells the coroutine so, which then undoes what it has begun.
    """

    def __init__(self, running: Coroutine[Any, Any, None], awaited: Any) -> None:
        self._running = running
        self._awaited = awaited
        self._resumed = False

    def send(self, value: Any) -> Any:
        if self._resumed:
            return self._running.send(value)
        self._resumed = True
        return self._awaited

    def throw(self, *error: Any) -> Any:
        self._resumed = True
        return self._running.throw(*error)

    def close(self) -> None:
        self._running.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise NotImplementedError("it is for a task")
