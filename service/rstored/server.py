"""The HTTP server: uvicorn, made to drain, to exit with 0 and to answer what it cannot parse with a problem."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping
from types import FrameType
from typing import Any, Final

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from rstored.api.front_door import FrontDoor
from rstored.api.problems import problem_reply
from rstored.problems import Problem
from rstored.settings import Settings

__all__ = ["Server", "bind"]

logger = logging.getLogger("rstored.server")

HEAD_BYTES_MAX: Final = 64 * 1024
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


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, with bounds on connections and heads, and with problems for requests that are no HTTP."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # uvicorn's own bound answers with plain text; a connection too many is closed here before it asks anything.
        self._connections_max = self.limit_concurrency
        self.limit_concurrency = None
        self._asks_for_upgrade = False
        self._begun = False
        self._in_head = True
        self._silent_bytes = 0
        self._stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._connections_max is not None and len(self.connections) > self._connections_max:
            logger.warning("too many connections", extra={"connections_max": self._connections_max})
            transport.abort()
            return
        # The first head has as long to arrive as each later one: a connection that sends nothing must not stay.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        # Heads and trailers are kept until the message ends, so there is a bound on what brings no body. A packet
        # may bring much more than a head, so only what came in earlier ones is held against it.
        if self._silent_bytes > HEAD_BYTES_MAX:
            self.send_400_response(f"The head of the request, or its trailers, are longer than {HEAD_BYTES_MAX} bytes.")
            return
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._asks_for_upgrade:
                self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("What arrived is not an HTTP/1.1 request.")

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
        # Only now: who sends a head byte by byte is held to the time that an idle connection has.
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        if self._stopping:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._asks_for_upgrade:
            return
        super().on_message_complete()
        self._begun = False
        self._in_head = True
        self._silent_bytes = 0

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
        request_id = secrets.token_hex(8)
        logger.info("malformed request", extra={"request_id": request_id})
        reply = problem_reply(Problem("malformed-request", msg), request_id)
        body = reply.body
        assert isinstance(body, bytes)
        headers = [
            *reply.headers,
            (b"x-request-id", request_id.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + lines + b"\r\n" + body)
        self.transport.close()


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
                limit_concurrency=settings.connections_max,
                timeout_keep_alive=settings.keep_alive_seconds,
                timeout_graceful_shutdown=settings.shutdown_grace_seconds,
            )
        )
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
        return await super().on_tick(counter)
