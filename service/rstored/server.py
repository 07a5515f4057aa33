"""The HTTP server: uvicorn, made to drain, to exit with 0 and to answer what it cannot parse with a problem."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, MutableMapping
from types import FrameType
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from rstored.api.front_door import FrontDoor
from rstored.api.metrics import Metrics
from rstored.api.problems import problem_reply
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.settings import Settings

__all__ = ["Server", "bind", "within_open_files"]

logger = logging.getLogger("rstored.server")

# uvicorn ticks ten times a second.
_TICKS_A_SWEEP: Final = 10
# Open beside the connections: the backend's, the log, what listens, and what is opened for a moment.
_OTHER_FILES: Final = 100
# A longer body would cost more to copy behind its head than a second write costs.
_JOINED_BYTES_MAX: Final = 64 * 1024


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; ``OSError`` if the address is taken or is not one of this machine."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def within_open_files(limits: Limits) -> Limits:
    """The limits with no more connections than this process may have; it may have as many as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.connections_max + _OTHER_FILES
    allowed = max(soft, wanted) if hard == resource.RLIM_INFINITY else hard
    if allowed != soft:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed >= wanted:
        return limits
    fitting = max(allowed - _OTHER_FILES, 1)
    logger.warning(
        "the system lets this process open too few files for connections_max, which is now less; raise `ulimit -n`",
        extra={"open_files_max": allowed, "connections_max": fitting},
    )
    return limits.model_copy(update={"connections_max": fitting})


class _Cycle(RequestResponseCycle):
    """uvicorn's request and its answer, but a short answer goes out in one write, not its head and then its body."""

    _head: MutableMapping[str, Any] | None = None

    async def send(self, message: MutableMapping[str, Any]) -> None:  # type: ignore[override]
        if message["type"] == "http.response.start" and not self.response_started:
            self._head = message
            return
        head, self._head = self._head, None
        if head is not None:
            if not message.get("more_body") and self._sent_at_once(head, message["body"]):
                return
            await super().send(head)  # type: ignore[arg-type]
        await super().send(message)  # type: ignore[arg-type]

    def _sent_at_once(self, head: MutableMapping[str, Any], body: bytes) -> bool:
        """Send the whole answer; False, and nothing is sent, if it is one that uvicorn has to see to."""
        headers = [*self.default_headers, *head["headers"]]
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        if self.disconnected or self.flow.write_paused or len(body) > _JOINED_BYTES_MAX:
            return False
        if head["status"] not in (204, 304) and not any(name == b"content-length" for name, _ in headers):
            return False
        if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
            raise RuntimeError("a header holds a line break")
        if (b"connection", b"close") in headers:
            self.keep_alive = False
        elif not self.keep_alive:
            lines += b"connection: close\r\n"
        if self.scope["method"] == "HEAD":
            body = b""
        self.waiting_for_100_continue = False
        self.response_started = self.response_complete = True
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[head["status"]], lines, body))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
        return True


class Connections(ServerState):
    """Every open connection: which are idle, the longest idle first, and how many each client has.

    A connection is idle while no request is under way, also while a head arrives: so whoever sends one byte by byte
    is held to the time that an idle connection has, and makes room for others as one.
    """

    def __init__(self, limits: Limits, metrics: Metrics, trusted: Collection[str]) -> None:
        super().__init__()
        self.limits = limits
        self.idle: dict[Protocol, float] = {}
        self._metrics = metrics
        self._trusted = trusted
        self._of_client: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()

    def admits(self, connection: Protocol) -> bool:
        """Whether a new connection may stay. If there are too many, the longest idle one is closed for it."""
        client = connection.address
        self._of_client[client] += 1
        if self._of_client[client] > self.limits.connections_per_client_max and client not in self._trusted:
            self.count_closed("client-connections")
            return False
        if len(self.connections) > self.limits.connections_max:
            longest_idle = next(iter(self.idle), None)
            if longest_idle is None:
                self.count_closed("connections")
                return False
            self.count_closed("evicted")
            longest_idle.end()
        return True

    def forget(self, connection: Protocol) -> None:
        """The connection is closed."""
        self.idle.pop(connection, None)
        client = connection.address
        self._of_client[client] -= 1
        if not self._of_client[client]:
            del self._of_client[client]

    def count_closed(self, reason: str) -> None:
        """One connection was closed by the service; the log gets one line for those of a second."""
        self._closed[reason] += 1
        self._metrics.count_closed_connection(reason)

    def sweep(self, now: float) -> None:
        """End what was idle too long and whose reader is too slow: one look at all, not a timer for each request."""
        for idle, since in list(self.idle.items()):
            if now - since < self.limits.idle_seconds_max:
                break
            idle.end()
        for connection in cast("list[Protocol]", list(self.connections)):
            if connection.reader_stalls(now):
                self.count_closed("slow-reader")
                connection.transport.abort()
        self._metrics.connections = len(self.connections)
        if self._closed:
            logger.warning("connections closed", extra={"open": len(self.connections), **self._closed})
            self._closed.clear()


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds on connections and heads, and with problems for requests that are no HTTP."""

    server_state: Connections

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.address = ""
        self._limits = self.server_state.limits
        self._asks_for_upgrade = False
        self._begun = False
        self._in_head = True
        self._silent_bytes = 0
        self._stopping = False
        self._pipelines_too_much = False
        self._has_read = False
        self._unread_since: tuple[float, int] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        if self.server_state.admits(self):
            self.server_state.idle[self] = self.loop.time()
        else:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.forget(self)
        super().connection_lost(exc)

    def end(self) -> None:
        """Close an idle connection."""
        self.server_state.idle.pop(self, None)
        if self.transport.get_write_buffer_size():
            # Closing would wait for the client to read what it has not read in all this time.
            self.transport.abort()
        else:
            self.transport.close()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._has_read = True

    def reader_stalls(self, now: float) -> bool:
        """Whether the client reads what was sent to it at less than the least rate.

        It counts only while the service adds nothing: because the client must read first, or all is sent.
        """
        unread = self.transport.get_write_buffer_size()
        added_to = not (
            self.flow.write_paused or self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        )
        if not unread or added_to:
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

    def data_received(self, data: bytes) -> None:
        if self._pipelines_too_much:
            return
        # Heads and trailers are kept until the message ends, so there is a bound on what brings no body. A packet
        # may bring much more than a head, so only what came in earlier ones is held against it.
        if self._silent_bytes > self._limits.header_bytes_max:
            self._refuse(_head_too_large(self._limits))
            return
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._asks_for_upgrade:
                self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            problem = error.__context__
            if not isinstance(problem, Problem):
                problem = Problem("malformed-request", "What arrived is not an HTTP/1.1 request.")
            self._refuse(problem)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # uvicorn has no other way to give it a cycle of one's own.
        cycle.__class__ = _Cycle
        super()._start_asgi_task(cycle, app)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True

    def on_headers_complete(self) -> None:
        self._asks_for_upgrade = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._asks_for_upgrade:
            return
        self._in_head = False
        if len(self.headers) > self._limits.headers_max or (
            self._silent_bytes > self._limits.header_bytes_max
            and sum(len(name) + len(value) for name, value in self.headers) > self._limits.header_bytes_max
        ):
            raise _head_too_large(self._limits)
        if len(self.pipeline) >= self._limits.pipelined_requests_max:
            # What waits is answered, and then the connection is closed: nobody may leave more and more to do.
            self._pipelines_too_much = True
        if self._pipelines_too_much:
            return
        self.server_state.idle.pop(self, None)
        super().on_headers_complete()
        if self._stopping:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        if not self._pipelines_too_much:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._asks_for_upgrade or self._pipelines_too_much:
            return
        super().on_message_complete()
        self._begun = False
        self._in_head = True
        self._silent_bytes = 0

    def on_response_complete(self) -> None:
        """Go on with the next request that waits, or be idle: as uvicorn's, but without a timer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._pipelines_too_much:
            self.server_state.count_closed("pipelined")
            self.transport.close()
        else:
            self.server_state.idle[self] = self.loop.time()

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """Take the request for one that asks for no other protocol, as it may be.

        Some clients ask for HTTP/2 with every request. The parser stops at the end of such a head, and what follows,
        the body, would be lost: an empty value would be stored.
        """
        lines = [b"%b %b HTTP/1.1\r\n" % (self.parser.get_method(), self.url)]
        lines += (b"%b: %b\r\n" % header for header in self.headers if header[0] not in (b"upgrade", b"connection"))
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join(lines) + b"\r\n" + rest)

    def shutdown(self) -> None:
        """Close if idle. A request of which a part has arrived is answered first."""
        if self._begun and self._in_head:
            self._stopping = True
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem("malformed-request", msg))

    def _refuse(self, problem: Problem) -> None:
        """Answer what is no request that could be served, and close."""
        request_id = secrets.token_hex(8)
        logger.info("malformed request", extra={"request_id": request_id})
        reply = problem_reply(problem, request_id)
        body = reply.body
        assert isinstance(body, bytes)
        headers = [
            *reply.headers,
            (b"x-request-id", request_id.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[reply.status] + lines + b"\r\n" + body)
        self.transport.close()


def _head_too_large(limits: Limits) -> Problem:
    return Problem(
        "headers-too-large",
        f"the head of the request, or its trailers, have more than {limits.headers_max} fields "
        f"or {limits.header_bytes_max} bytes",
        limit=limits.header_bytes_max,
    )


class Server(uvicorn.Server):
    """Serves ``app`` until SIGTERM or SIGINT; then ``/readyz`` says so, and after the drain it stops.

    Requests under way may finish within the grace period.
    """

    def __init__(self, app: FrontDoor, settings: Settings, started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                loop="uvloop",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=settings.backlog,
                timeout_graceful_shutdown=settings.shutdown_grace_seconds,
            )
        )
        self._connections = self.server_state = Connections(settings.limits, app.state.metrics, ())
        self._app = app
        self._drain_seconds = settings.drain_seconds
        self._told_to_stop: float | None = None
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What has been imported and built by now lives as long as the process: never look at it again.
        gc.collect()
        gc.freeze()
        self._started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was obeyed is not raised again at the end, so the exit code is 0."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._told_to_stop is None:
            self._told_to_stop = time.monotonic()
            self._app.state.stopping = True
        else:
            # A second signal means: at once.
            self.force_exit = True
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._told_to_stop is not None and time.monotonic() - self._told_to_stop >= self._drain_seconds:
            self.should_exit = True
        if counter % _TICKS_A_SWEEP == 0:
            self._connections.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)
