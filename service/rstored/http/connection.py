"""One HTTP/1.1 connection: parsed by httptools, answered by the app.

It spends less than a general server: a body that comes with its head is here before the app is asked for the answer;
an app that can answer at once runs at once, without a task; a short answer is one write; nothing has a timer.

An app begins outside a task, so what it does before it first waits may not ask for the current one (as
``asyncio.timeout`` does). From then on the request's ``task`` is the one that it runs in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import secrets
import socket
from collections.abc import Coroutine, Generator
from typing import Any, Final, cast

import httptools

from rstored.addresses import canonical_address
from rstored.api.problems import problem_reply
from rstored.api.replies import ON_ALL
from rstored.api.requests import Request
from rstored.http.connections import Connections
from rstored.http.exchange import STATUS_LINES, UNSENT_BYTES_MAX, App, Exchange, header_lines
from rstored.problems import Problem

__all__ = ["FAREWELL_SECONDS", "Connection"]

logger = logging.getLogger("rstored.server")

# When so much of a body lies here that the app has not asked for, the client is made to wait.
_UNREAD_BYTES_MAX: Final = 64 * 1024
# How many requests that arrived together are answered before other connections have a turn.
_REQUESTS_A_TURN: Final = 16
# How long, and for how many bytes, a client that has its last answer may go on sending what nobody wants. When the
# service stops, the end of a head and the client's own farewell have as long.
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 64 * 2**20
# How long a client has to take leave, as TLS wants it.
FAREWELL_SECONDS: Final = 10.0
# Where more have something to say at once (1024 in libuv), the event loop looks again before the round is over.
_CONNECTIONS_A_ROUND_MAX: Final = 1_000

_BLANK_LINE: Final = b"\r\n\r\n"
# What the parser says of versions that it does not know, and of the preface of HTTP/2.
_OTHER_VERSIONS: Final = frozenset(
    {"Invalid HTTP version", "Pause on PRI/Upgrade", "Expected HTTP/2 Connection Preface"}
)
# What stands before and behind the authority in a target that is a whole URL.
_BESIDE_AUTHORITY: Final = re.compile(rb"\A[^:/?#]*://|[/?#].*\Z", re.DOTALL)
_NOTHING: Final = bytearray()
# Where a transport is not to know its connection any more.
_NOBODY: Final = asyncio.BufferedProtocol()


class Connection(asyncio.BufferedProtocol):
    """A connection, on which one request at a time is read and answered.

    What a client sends ahead of its turn is not parsed: at most one read of it is kept, and reading pauses. So no
    client makes the service keep more than that, or do more than the request under way.

    At any time a connection is in the care of somebody who will end it: it is idle and in ``Connections.idle``; its
    request is under way in a task, whose time the app bounds; or it ends at a time that it has itself
    (``_ends_at``). :meth:`check` ends a connection that is in nobody's care.

    It begins where the socket is accepted, and has its transport when the handshake, if any, is over.
    """

    def __init__(self, app: App, connections: Connections, accepted: socket.socket, address: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = connections
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.address = canonical_address(address[0]) if isinstance(address, tuple) else ""
        self._accepted: socket.socket | None = accepted
        # What an answer waits for while the client is slow to read; None while it is not.
        self.drained: asyncio.Future[None] | None = None
        self._proxies = connections.proxies if self.address in connections.proxies else None
        self._app = app
        self._limits = connections.limits
        self._is_tls = False
        # The request that has not begun, and what is known of the one that arrives or is under way.
        self._request: Request | None = None
        self.exchange: Exchange | None = None
        # What has arrived, and how much of that has been parsed.
        self._data = _NOTHING
        self._parsed = 0
        self._reading = True
        # There is none before there is a transport, since it knows the connection.
        self._parser: httptools.HttpRequestParser
        self._url = b""
        # Of the head that arrives, or the trailers.
        self._fields: list[tuple[bytes, bytes]] = []
        # How much of the body is to come, or -1 where that is not known since it comes in chunks.
        self._body_left = 0
        # How much was parsed since the last message ended, or since the last part of its body.
        self._silent_bytes = 0
        # The end of what was parsed, where a blank line may have begun.
        self._seam = _NOTHING
        # What arrives from now on is no request any more.
        self._deaf = False
        # What arrived and is no request, to be told when the app has returned.
        self.refusal: Problem | None = None
        self._stopping = False
        # The connection ends with the request that is under way or arrives.
        self._takes_no_more = False
        self._ends_at = math.inf
        self._has_read = False
        self._unread_since: tuple[float, int] | None = None
        self._unowned: Exchange | Connection | None = None

    # --- called by the transport ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it
        self.transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        self._accepted = None
        self._parser = self._new_parser()
        self._is_tls = transport.get_extra_info("sslcontext") is not None

    def connection_lost(self, error: Exception | None) -> None:
        self.server.forget(self)
        exchange, self.exchange = self.exchange, None
        self._request = None
        if exchange is not None:
            exchange.lose()
        self._unowned = None
        self._data = _NOTHING
        self._let_write()
        # No cycle may be left, or the buffers of its TLS, a quarter of a mebibyte and more, would be there until the
        # collector comes, which is seldom.
        del self._parser
        self.transport.set_protocol(_NOBODY)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.server.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._deaf:
            self._silent_bytes += nbytes
            if self._silent_bytes > _LINGER_BYTES:
                self._close()
            return
        if self._stopping:
            # While the service stops, no request begins.
            if self.exchange is not None and self.exchange.complete_body:
                return
            self._takes_no_more = True
        arrived = self.server.read_buffer[:nbytes]
        self._data = self._data[self._parsed :] + arrived if self._data else arrived
        self._parsed = 0
        self._proceed(pipelined=False)

    def eof_received(self) -> bool:
        """The client sends no more, but may still read: what arrived whole is answered before the connection closes.

        Nothing lies here unparsed then, since reading would have paused.
        """
        self._takes_no_more = self._deaf = True
        exchange = self.exchange
        if exchange is not None and not exchange.complete_body:
            exchange.lose()
        # Over TLS nothing can be sent after the end.
        return not self._is_tls and exchange is not None and not exchange.returned

    def pause_writing(self) -> None:
        if self.drained is None:
            self.drained = self.loop.create_future()

    def resume_writing(self) -> None:
        self._let_write()
        self._proceed()

    def _let_write(self) -> None:
        self._has_read = True
        drained, self.drained = self.drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # --- reading and answering in turn ---------------------------------------------------------------------

    def _proceed(self, *, pipelined: bool = True) -> None:
        """Parse and answer what has arrived, in turn, as far as that goes now.

        ``pipelined`` is false for what has just been read and comes first in it. Whatever escapes from here would leave
        the connection in nobody's care, so that is the end of it.
        """
        turns = _REQUESTS_A_TURN
        try:
            while not self.transport.is_closing():
                exchange = self.exchange
                try:
                    if exchange is None:
                        if not turns or self.drained is not None:
                            break
                        self._read_head()
                        exchange = self.exchange
                        if exchange is None:
                            break
                    if not exchange.complete_body:
                        self._read_body(exchange)
                except (Problem, httptools.HttpParserError) as error:
                    self._refuse(_problem_of(error))
                    continue
                if self._request is not None:
                    self._begin(self._request, exchange, pipelined)
                    pipelined = True
                    turns -= 1
                if not exchange.returned or not self._end(exchange):
                    break
            else:
                return
            if self._parsed < len(self._data):
                self._pause_reading()
                if not turns:
                    self.loop.call_soon(self._proceed)
                return
            self._data = _NOTHING
            self._parsed = 0
            exchange = self.exchange
            if not self._reading and (exchange is None or exchange.unread_bytes <= _UNREAD_BYTES_MAX):
                self.resume_reading()
            if self._stopping and exchange is None:
                self._end_soon()
        except BaseException:
            self.abort()
            raise

    def _begin(self, request: Request, exchange: Exchange, pipelined: bool) -> None:
        """Run the app until it waits for something, which often is to its end; the rest of it is a task."""
        server = self.server
        server.idle.pop(self, None)
        self._ends_at = math.inf
        self._request = None
        if pipelined or self._is_tls or len(server.connections) > _CONNECTIONS_A_ROUND_MAX:
            # It may have been sent long after the round of the event loop began in which it arrived. Over TLS it may
            # have been decrypted outside of the round.
            server.renew()
        else:
            server.join_round()
        running = self._app(request, exchange.write)
        try:
            awaited = running.send(None)
        except StopIteration:
            exchange.returned = True
        except Exception:
            logger.exception("the app failed")
            exchange.returned = True
        else:
            task = self.loop.create_task(_Rest(running, awaited))
            request.task = exchange.task = task
            server.tasks.add(task)
            task.add_done_callback(lambda task: self._returned(exchange, task))

    def _returned(self, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self.server.end_task(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the app failed", exc_info=error)
        exchange.returned = True
        self._proceed()

    def _end(self, exchange: Exchange) -> bool:
        """What happens when the app has returned. True if that is the end of the exchange and the next may begin."""
        if not exchange.answered:
            if self.refusal is not None and not exchange.started:
                self._send_refusal(self.refusal)
            else:
                # Without a proper end nobody takes a part of an answer for the whole.
                self.transport.abort()
        elif exchange.complete_body:
            self.exchange = None
            if not self.is_last(exchange):
                self._ends_at = math.inf
                self.server.idle[self] = self.loop.time()
                return True
            if self._parsed < len(self._data):
                self._linger()
            else:
                self._close()
        elif self.refusal is not None:
            self._close()
        elif self._ends_at == math.inf:
            self._ends_at = self.loop.time() + _LINGER_SECONDS
        return False

    def is_last(self, exchange: Exchange) -> bool:
        """Whether the connection ends with this request."""
        return not exchange.keep_alive or self._takes_no_more or (self._stopping and self._parsed == len(self._data))

    def _refuse(self, problem: Problem) -> None:
        """Answer what no app can answer with a problem, after what has begun, and end the connection."""
        exchange = self.exchange
        if exchange is None or self._request is not None:
            self._send_refusal(problem)
        else:
            # The rest of its body cannot be read.
            self._ignore_the_rest()
            self.refusal = problem
            exchange.lose()

    def _send_refusal(self, problem: Problem) -> None:
        self.exchange = self._request = None
        request_id = secrets.token_hex(8)
        self.server.log_refusal(request_id, self.address)
        reply = problem_reply(problem, request_id)
        body = reply.body
        assert isinstance(body, bytes)
        headers = [*reply.headers, *ON_ALL, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
        headers.append((b"content-length", b"%d" % len(body)))
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINES[reply.status], header_lines(headers), body))
        self._linger()

    def _linger(self) -> None:
        """End the connection after the last answer, although the client still sends.

        Closing at once would reset the connection, and the answer could be lost on its way.
        """
        self._ignore_the_rest()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            now = self.loop.time()
            self._ends_at = now + _LINGER_SECONDS
            self.server.idle.pop(self, None)
            self.server.idle[self] = now
        else:
            # TLS reads on until both have taken leave.
            self._close()

    def _ignore_the_rest(self) -> None:
        self._deaf = True
        self._data = _NOTHING
        self._parsed = 0

    # --- parsing -------------------------------------------------------------------------------------------

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # What a client sends behind its last request is nobody's, but no reason to refuse that request.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _read_head(self) -> None:
        """Parse what has arrived of the next head. With its end there is an exchange."""
        while self.exchange is None and self._parsed < len(self._data):
            self._parse_to_blank_line()

    def _read_body(self, exchange: Exchange) -> None:
        """Parse what has arrived of the body, and nothing behind it."""
        if self._body_left < 0:
            while not exchange.complete_body and self._parsed < len(self._data):
                self._parse_to_blank_line()
            return
        body = memoryview(self._data)[self._parsed : self._parsed + self._body_left]
        self._parsed += len(body)
        self._body_left -= len(body)
        self._parser.feed_data(body)

    def _parse_to_blank_line(self) -> None:
        """Parse up to the next blank line, or all that has arrived. Raises Problem, or what the parser raises.

        A head ends with its first blank line, and a body in chunks with one, so nothing behind them is parsed.
        """
        data, start, seam = self._data, self._parsed, self._seam
        silent_bytes_max = self._silent_bytes_max()
        most = start + silent_bytes_max + 1 - self._silent_bytes
        found = data.find(_BLANK_LINE, start, most)
        end = found + len(_BLANK_LINE) if found >= 0 else 0
        if seam:
            found = (seam + data[start : start + 3]).find(_BLANK_LINE)
            if found >= 0:
                end = start + found + len(_BLANK_LINE) - len(seam)
        if end:
            self._seam = _NOTHING
        else:
            end = min(most, len(data))
            self._seam = (seam + data[max(start, end - 3) : end])[-3:]
        self._parsed = end
        self._silent_bytes += end - start
        asks_for_upgrade = False
        try:
            self._parser.feed_data(data if end - start == len(data) else data[start:end])
        except httptools.HttpParserUpgrade:
            asks_for_upgrade = True
        except httptools.HttpParserError:
            # What is wrong first counts, wherever the packets are cut.
            if self._fields_are_too_many():
                raise self._too_large() from None
            raise
        if asks_for_upgrade:
            # Not in the handler: its exception would replace the context that tells why a callback failed.
            head = self._head_without_upgrade()
            self._parser = self._new_parser()
            self._url = b""
            self._fields = []
            self._parser.feed_data(head)
        # What brings no body is kept, or is nothing but work.
        if self._silent_bytes > silent_bytes_max or self._fields_are_too_many():
            raise self._too_large()

    def _silent_bytes_max(self) -> int:
        """How many bytes may bring neither the end of a head nor a part of a body.

        In a body, what stands before its first trailer may be counted with the trailers, or not: that depends on where
        the packets are cut. So the fields are counted there, and this bound comes into play only for what is no field.
        """
        return self._limits.header_bytes_max * (1 if self.exchange is None else 2)

    def _fields_are_too_many(self) -> bool:
        fields, limits = self._fields, self._limits
        if len(fields) > limits.headers_max:
            return True
        if self.exchange is None:
            # The bytes of a head are counted before it is parsed.
            return False
        return sum(len(name) + len(value) + len(b": \r\n") for name, value in fields) > limits.header_bytes_max

    def _head_without_upgrade(self) -> bytes:
        """The head that was just parsed, as of a request that asks for no other protocol.

        The service may answer it so. Some clients ask for HTTP/2 with every request. The parser stops at the end of
        such a head and takes the body for the other protocol: an empty value would be stored.
        """
        parser = self._parser
        lines = [b"%b %b HTTP/%b\r\n" % (parser.get_method(), self._url, parser.get_http_version().encode())]
        for name, value in self._fields:
            if name == b"connection":
                # It may ask for other things as well, as for the end of the connection.
                value = b", ".join(part for part in value.split(b",") if part.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%b: %b\r\n" % (name, value))
        return b"".join(lines) + b"\r\n"

    def _too_large(self) -> Problem:
        limits = self._limits
        if self.exchange is None and len(self._url) > limits.uri_bytes_max:
            most = limits.uri_bytes_max
            return Problem("uri-too-long", f"the request target is longer than {most} bytes", limit=most)
        most, what = limits.header_bytes_max, "bytes"
        if len(self._fields) > limits.headers_max:
            most, what = limits.headers_max, "fields"
        part = "trailers of the request have" if self.exchange is not None else "head of the request has"
        return Problem("headers-too-large", f"the {part} more than {most} {what}", limit=most)

    # --- called by the parser ------------------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or a trailer: nobody asks for those, but they are counted as well."""
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self._fields
        method = parser.get_method()
        if method == b"CONNECT":
            raise Problem("malformed-request", "The service is no proxy: it opens no tunnel.")
        if parser.should_upgrade():
            return
        limits = self._limits
        if self._silent_bytes > limits.header_bytes_max or len(headers) > limits.headers_max:
            raise self._too_large()
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Problem("unsupported-http-version", "What arrived is not an HTTP/1.1 request.")
        if version == "1.1" and [name for name, _ in headers].count(b"host") != 1:
            # RFC 9112, 3.2: a proxy that sees another one than we do must not be believed.
            raise Problem("malformed-request", "An HTTP/1.1 request has one Host.")
        target = self._url
        self._silent_bytes = 0
        self._url = b""
        self._fields = []
        authority = None
        if not target.startswith(b"/"):
            parts = httptools.parse_url(target)
            if parts.host is not None:
                authority = _BESIDE_AUTHORITY.sub(b"", target)
            target = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
        raw_path, _, query = target.partition(b"?")
        if authority is not None:
            # RFC 9112, 3.2.2: a target that names the host counts, and not the field.
            headers = [(b"host", authority), *(field for field in headers if field[0] != b"host")]
        # An older client may not know chunks.
        is_old = version == "1.0"
        exchange = Exchange(self, keep_alive=parser.should_keep_alive() and not is_old, knows_chunks=not is_old)
        client, is_tls = self.address, self._is_tls
        if self._proxies is not None:
            client, is_tls = self._proxies.origin(client, headers, is_tls=is_tls)
        request = Request(method.decode("ascii"), raw_path, query, headers, exchange.receive, client, is_tls=is_tls)
        fields = request.fields
        if b"expect" in fields:
            exchange.expects_continue = (b"expect", b"100-continue") in headers
        self._body_left = int(fields.get(b"content-length", -1))
        self._request = request
        self.exchange = exchange

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        exchange = self.exchange
        if exchange is None:
            return
        exchange.feed(body)
        if exchange.answered:
            if exchange.unread_bytes > _LINGER_BYTES:
                self._close()
        elif exchange.unread_bytes > _UNREAD_BYTES_MAX:
            self._pause_reading()

    def on_message_complete(self) -> None:
        exchange = self.exchange
        # There is none where the head asks for another protocol.
        if exchange is not None:
            if self._fields:
                if self._fields_are_too_many():
                    raise self._too_large()
                self._fields = []
            self._silent_bytes = 0
            exchange.complete()

    # --- bounds --------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End what has taken too long at the time ``now`` of the event loop, and what is in nobody's care."""
        if self._accepted is not None:
            return
        is_closing = self.transport.is_closing()
        is_late = now >= self._ends_at
        if is_late and not is_closing:
            self._close()
        elif is_late and (self._stopping or not self.transport.get_write_buffer_size()):
            self.transport.abort()
        elif self._reader_stalls(now):
            self.server.count_closed("slow-reader")
            self.transport.abort()
        elif is_closing or self._is_owned():
            self._unowned = None
        elif self._unowned is not (self.exchange or self):
            # It may be between two steps: its task has ended, and the loop is about to say so.
            self._unowned = self.exchange or self
        else:
            logger.error("a connection was in nobody's care")
            self.server.count_closed("unowned")
            self.abort()

    def _is_owned(self) -> bool:
        """Whether somebody will end it: the sweep of idle connections, itself at a set time, or its request's task."""
        exchange = self.exchange
        if exchange is None:
            return self in self.server.idle
        task = exchange.task
        return self._ends_at < math.inf or (task is not None and not task.done())

    def _reader_stalls(self, now: float) -> bool:
        """Whether the client reads what was sent to it at less than the least rate.

        It counts only while the service adds nothing: because the client must read first, or all is sent.
        """
        unread = self.transport.get_write_buffer_size()
        exchange = self.exchange
        all_is_sent = exchange is None or exchange.answered or self.transport.is_closing()
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
        if self._accepted is not None or self.transport.get_write_buffer_size():
            # Closing would wait for the client to read what it has not read in all this time.
            self.server.idle.pop(self, None)
            self.abort()
        else:
            self._close()

    def abort(self) -> None:
        """Close the connection at once, whatever is under way."""
        if self._accepted is None:
            self.transport.abort()
        else:
            # There may be a transport that is not known here yet, and sees the end.
            with contextlib.suppress(OSError):
                self._accepted.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        """Close the connection when everything is sent, and over TLS when both have taken leave."""
        self.server.idle.pop(self, None)
        self._ends_at = self.loop.time() + (_LINGER_SECONDS if self._stopping else FAREWELL_SECONDS)
        self.transport.close()

    def shutdown(self) -> None:
        """Close if idle. A request whose head has arrived is answered first, and no other."""
        self._stopping = True
        if self._accepted is not None:
            self.abort()
        elif self.exchange is None or self.exchange.returned:
            self._end_soon()

    def _end_soon(self) -> None:
        """Close at once if nothing has begun, else in a moment: a head whose rest arrives by then is a request."""
        if self.exchange is None and not self._silent_bytes and self._parsed == len(self._data):
            self._close()
        else:
            self._ends_at = min(self._ends_at, self.loop.time() + _LINGER_SECONDS)

    def _pause_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on, if reading was paused."""
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()


def _problem_of(error: Exception) -> Problem:
    """What to tell of an error that ended the parsing. Raises ``error`` if it is a fault of the service."""
    problem = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else error
    if isinstance(problem, Problem):
        # The connection may keep the problem. Its traceback and its context lead to frames that hold the connection.
        problem.__context__ = None
        return problem.with_traceback(None)
    if not isinstance(problem, httptools.HttpParserError):
        raise error
    code = "unsupported-http-version" if str(error) in _OTHER_VERSIONS else "malformed-request"
    return Problem(code, "What arrived is not an HTTP/1.1 request.")


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
