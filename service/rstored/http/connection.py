"""One HTTP/1.1 connection. It reads requests in turn, and the app answers them.

It takes less time than a general server. A body that arrives with its head is complete before the app is called. An app
that can answer at once runs without a task. A short answer is one write. Nothing has a timer.

An app begins outside of a task. So, before it first waits, it must not ask for the current task, as ``asyncio.timeout``
does. From then on it runs in the ``task`` of the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import secrets
import socket
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, cast

from rstored.addresses import canonical_address
from rstored.api.problems import problem_reply
from rstored.api.replies import CLOSE, ON_ALL
from rstored.api.requests import Request
from rstored.http.connections import Connections
from rstored.http.exchange import STATUS_LINES, UNSENT_BYTES_MAX, App, Exchange, header_lines
from rstored.http.parser import RequestHead, RequestParser
from rstored.problems import Problem

logger = logging.getLogger("rstored.server")

# When this many bytes of a body have arrived that the app has not asked for, reading pauses.
_UNREAD_BYTES_MAX: Final = 64 * 1024
# How many requests that arrived together are answered before other connections have a turn.
_REQUESTS_A_TURN: Final = 16
# How long, and how many bytes, a client may go on sending after its last answer. When the service stops, the rest of a
# head and the client's closing of the connection have the same time.
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 64 * 2**20
# How long a client has to close TLS properly.
FAREWELL_SECONDS: Final = 10.0
# If more connections are ready at once (1024 in libuv), the event loop looks again before the round is over.
_CONNECTIONS_A_ROUND_MAX: Final = 1_000

# A transport that must not refer to its connection any more gets this protocol.
_NOBODY: Final = asyncio.BufferedProtocol()


class Connection(asyncio.BufferedProtocol):
    """A connection. It reads and answers one request at a time.

    Bytes that a client sends ahead of its turn are not parsed. At most one read of them is kept, and then reading
    pauses. So no client makes the service keep more than that, or work on more than one request.

    At any time somebody owns the connection and will end it. It is idle and in ``Connections.idle``, or its request is
    under way in a task whose time the app bounds, or it ends at its own time ``_ends_at``. :meth:`check` ends a
    connection that nobody owns.

    It begins when the socket is accepted, and has its transport when the handshake, if any, is over.
    """

    def __init__(self, app: App, connections: Connections, accepted: socket.socket, address: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = connections
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.address = canonical_address(address[0]) if isinstance(address, tuple) else ""
        self._accepted: socket.socket | None = accepted
        # An answer waits for this while the client reads slowly. Otherwise it is None.
        self.drained: asyncio.Future[None] | None = None
        self._proxies = connections.proxies if self.address in connections.proxies else None
        self._app = app
        self._limits = connections.limits
        self._is_tls = False
        # The next request, which has not begun, and the exchange that arrives or is under way.
        self._request: Request | None = None
        self.exchange: Exchange | None = None
        self._reading = True
        # There is none before there is a transport, since it is to be closed with that.
        self._parser: RequestParser
        # Whether later bytes are ignored, because no request follows.
        self._deaf = False
        self._ignored_bytes = 0
        # The problem of bytes that are not a request. It is sent when the app has returned.
        self.refusal: Problem | None = None
        self._stopping = False
        # Whether the connection ends with the request that arrives or is under way.
        self._takes_no_more = False
        self._ends_at = math.inf
        self._has_read = False
        self._unread_since: tuple[float, int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it
        self.transport.set_write_buffer_limits(high=UNSENT_BYTES_MAX)
        self._accepted = None
        self._parser = RequestParser(self._limits)
        self._is_tls = transport.get_extra_info("sslcontext") is not None

    def connection_lost(self, error: Exception | None) -> None:
        self.server.forget(self)
        exchange, self.exchange = self.exchange, None
        self._request = None
        if exchange is not None:
            exchange.lose()
        self._let_write()
        # No cycle may be left. Otherwise the buffers of TLS, a quarter of a mebibyte or more, would stay until the
        # collector runs, which is seldom.
        self._parser.close()
        self.transport.set_protocol(_NOBODY)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.server.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._deaf:
            self._ignored_bytes += nbytes
            if self._ignored_bytes > _LINGER_BYTES:
                self._close()
            return
        if self._stopping:
            # While the service stops, no new request begins.
            if self.exchange is not None and self.exchange.complete_body:
                return
            self._takes_no_more = True
        self._parser.feed(self.server.read_buffer[:nbytes])
        self._proceed(pipelined=False)

    def eof_received(self) -> bool:
        """The client sends no more, but may still read. A complete request is answered before the connection closes.

        Everything that arrived is parsed by now, because reading would have paused otherwise.
        """
        self._takes_no_more = self._deaf = True
        exchange = self.exchange
        if exchange is not None and not exchange.complete_body:
            exchange.lose()
        # Over TLS, nothing can be sent after the end.
        return not self._is_tls and exchange is not None and not exchange.returned

    def pause_writing(self) -> None:
        if self.drained is None:
            self.drained = self.loop.create_future()

    def resume_writing(self) -> None:
        self._let_write()
        self._proceed()

    def is_last(self, exchange: Exchange) -> bool:
        """Whether the connection ends with this request."""
        return not exchange.keep_alive or self._takes_no_more or (self._stopping and not self._parser.has_unread)

    def check(self, now: float) -> None:
        """End the connection if it takes too long at the time ``now`` of the event loop, or if nobody owns it."""
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
        elif not is_closing and not self._is_owned():
            logger.error("nobody owned a connection")
            self.server.count_closed("unowned")
            self.abort()

    def close_idle(self) -> None:
        """Close the connection. No request is under way on it."""
        if self._accepted is not None or self.transport.get_write_buffer_size():
            # A proper close would wait for the client to read, which it has not done in all this time.
            self.server.idle.pop(self, None)
            self.abort()
        else:
            self._close()

    def abort(self) -> None:
        """Close the connection at once, even with a request under way."""
        if self._accepted is None:
            self.transport.abort()
        else:
            # There may be a transport that is not known here yet. It notices the end.
            with contextlib.suppress(OSError):
                self._accepted.shutdown(socket.SHUT_RDWR)

    def shutdown(self) -> None:
        """Close the connection if it is idle. Otherwise first answer the request whose head has arrived."""
        self._stopping = True
        if self._accepted is not None:
            self.abort()
        elif self.exchange is None or self.exchange.returned:
            self._end_soon()

    def resume_reading(self) -> None:
        """Read on, if reading was paused."""
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    def _let_write(self) -> None:
        self._has_read = True
        drained, self.drained = self.drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def _proceed(self, *, pipelined: bool = True) -> None:
        """Parse and answer the requests that have arrived, in turn, as far as possible now.

        ``pipelined`` is false for the first request of a new read. An exception that escapes would leave a connection
        that nobody owns, so it aborts the connection.
        """
        turns = _REQUESTS_A_TURN
        parser = self._parser
        try:
            while not self.transport.is_closing():
                exchange = self.exchange
                try:
                    if exchange is None:
                        if not turns or self.drained is not None:
                            break
                        head = parser.read_head()
                        if head is None:
                            break
                        exchange = self._expect(head)
                    if not exchange.complete_body:
                        self._read_body(exchange)
                except Problem as problem:
                    # It may be kept, and the frames that it came through hold this connection.
                    self._refuse(problem.again())
                    continue
                if self._request is not None:
                    self._begin(self._request, exchange, pipelined)
                    pipelined = True
                    turns -= 1
                if not exchange.returned or not self._end(exchange):
                    break
            else:
                return
            if parser.has_unread:
                self._pause_reading()
                if not turns:
                    self.loop.call_soon(self._proceed)
                return
            exchange = self.exchange
            if not self._reading and (exchange is None or exchange.unread_bytes <= _UNREAD_BYTES_MAX):
                self.resume_reading()
            if self._stopping and exchange is None:
                self._end_soon()
        except BaseException:
            self.abort()
            raise

    def _expect(self, head: RequestHead) -> Exchange:
        """The exchange of a request. The caller reads the part of its body that has arrived, and then begins it."""
        method, raw_path, query, fields, keep_alive, knows_chunks = head
        exchange = Exchange(self, keep_alive=keep_alive, knows_chunks=knows_chunks)
        client, is_tls = self.address, self._is_tls
        if self._proxies is not None:
            client, is_tls = self._proxies.origin(client, fields, is_tls=is_tls)
        request = Request(method, raw_path, query, fields, exchange.receive, client, is_tls=is_tls)
        # RFC 9110, 10.1.1: an older client does not know this answer, whatever it expects.
        if b"expect" in fields and knows_chunks:
            exchange.expects_continue = b"100-continue" in fields[b"expect"].lower()
        exchange.complete_body = self._parser.complete
        self._request = request
        self.exchange = exchange
        return exchange

    def _read_body(self, exchange: Exchange) -> None:
        """Pass on the part of the body that has arrived. Raises Problem."""
        parser = self._parser
        body = parser.read_body()
        if body:
            exchange.feed(body)
            if exchange.answered:
                if exchange.unread_bytes > _LINGER_BYTES:
                    self._close()
            elif exchange.unread_bytes > _UNREAD_BYTES_MAX:
                self._pause_reading()
        if parser.complete:
            exchange.complete()

    def _begin(self, request: Request, exchange: Exchange, pipelined: bool) -> None:
        """Run the app until it first waits, which is often to its end. The rest of it runs in a task."""
        server = self.server
        server.idle.pop(self, None)
        self._ends_at = math.inf
        self._request = None
        if pipelined or self._is_tls or len(server.connections) > _CONNECTIONS_A_ROUND_MAX:
            # The client may have sent the request long after this round of the event loop began. Over TLS, it may have
            # been decrypted outside of the round.
            server.renew()
        else:
            # The loop is handed over: to ask which one is running is a system call in Python 3.11.
            server.join_round(self.loop)
        running = self._app(request, exchange.write)
        try:
            awaited = running.send(None)
        except StopIteration:
            exchange.returned = True
        except Exception:
            logger.exception("the app failed")
            exchange.returned = True
        else:
            task = self.loop.create_task(_Rest(running, awaited, functools.partial(self._returned, exchange)))
            request.task = exchange.task = task
            server.tasks.add(task)

    def _returned(self, exchange: Exchange) -> None:
        """The app has returned, in the last step of its task. A callback would come a round of the event loop later,
        and by then the next request may have arrived, and reading would have paused."""
        assert exchange.task is not None
        self.server.end_task(exchange.task)
        exchange.returned = True
        try:
            self._proceed()
        except (Exception, asyncio.CancelledError):
            # The connection is aborted. The task would keep the exception, whose frames hold the connection, and nobody
            # would hear of it before the collector runs.
            logger.exception("a connection failed")

    def _end(self, exchange: Exchange) -> bool:
        """The app has returned. True if the exchange is over, and the next one may begin."""
        if not exchange.answered:
            if self.refusal is not None and not exchange.started:
                self._send_refusal(self.refusal)
            else:
                # Without a proper end, no client takes a part of the answer for the whole.
                self.transport.abort()
        elif exchange.complete_body:
            self.exchange = None
            if not self.is_last(exchange):
                self._ends_at = math.inf
                self.server.idle[self] = self.loop.time()
                return True
            if self._parser.has_unread:
                self._linger()
            else:
                self._close()
        elif self.refusal is not None:
            self._close()
        elif self._ends_at == math.inf:
            self._ends_at = self.loop.time() + _LINGER_SECONDS
        return False

    def _refuse(self, problem: Problem) -> None:
        """Answer a malformed request with a problem, after the answer that has begun, and end the connection."""
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
        headers = [*reply.headers, *ON_ALL, (b"x-request-id", request_id.encode()), CLOSE]
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
            # TLS reads on until both sides have closed it.
            self._close()

    def _ignore_the_rest(self) -> None:
        self._deaf = True
        self._parser.discard()

    def _is_owned(self) -> bool:
        """Whether the sweep of idle connections, its own time, or the task of its request will end it."""
        exchange = self.exchange
        if exchange is None:
            return self in self.server.idle
        task = exchange.task
        return self._ends_at < math.inf or (task is not None and not task.done())

    def _reader_stalls(self, now: float) -> bool:
        """Whether the client reads more slowly than the least rate.

        It counts only while the service sends nothing: the client must read first, or everything is sent.
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

    def _close(self) -> None:
        """Close the connection when everything is sent, and over TLS when both sides have closed it."""
        self.server.idle.pop(self, None)
        self._ends_at = self.loop.time() + (_LINGER_SECONDS if self._stopping else FAREWELL_SECONDS)
        self.transport.close()

    def _end_soon(self) -> None:
        """Close at once if no head has begun to arrive. Otherwise wait a moment for the rest of the head."""
        if self.exchange is None and not self._ignored_bytes and self._parser.is_between_messages:
            self._close()
        else:
            self._ends_at = min(self._ends_at, self.loop.time() + _LINGER_SECONDS)

    def _pause_reading(self) -> None:
        if self._reading and not self.transport.is_closing():
            self._reading = False
            self.transport.pause_reading()


class _Rest(Coroutine[Any, Any, None]):
    """The rest of a coroutine that has run until it awaited ``awaited``.

    If the task is cancelled before its first step, the coroutine gets the cancellation, and undoes what it has begun.
    """

    def __init__(self, running: Coroutine[Any, Any, None], awaited: Any, returned: Callable[[], None]) -> None:
        self._running = running
        self._awaited = awaited
        self._returned = returned
        self._resumed = False

    def send(self, value: Any) -> Any:
        if not self._resumed:
            self._resumed = True
            # If it ends in an exception, the frames of that lead to the task. A cycle would keep the connection.
            awaited, self._awaited = self._awaited, None
            return awaited
        return self._step(self._running.send, value)

    def throw(self, *error: Any) -> Any:
        self._resumed = True
        return self._step(self._running.throw, *error)

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return step(*arguments)
        except (StopIteration, asyncio.CancelledError):
            # Nobody asks how the task ended.
            pass
        except Exception:
            logger.exception("the app failed")
        # The task keeps this object, and the exchange keeps the task. A cycle would keep the connection.
        returned = self._returned
        del self._returned
        # This may answer further requests. So it must not run while an exception is handled, which would become the
        # context of theirs.
        returned()
        raise StopIteration

    def close(self) -> None:
        self._running.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise NotImplementedError("it is for a task")
