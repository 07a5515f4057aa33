"""Every open connection of the process, and the bounds on their number and on their idle time."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

from rstored.api.metrics import Metrics
from rstored.http.proxies import NO_PROXIES, Proxies
from rstored.limits import Limits

if TYPE_CHECKING:
    from rstored.http.connection import Connection

logger = logging.getLogger("rstored.server")

# The most bytes of one read. A client that sends ahead of its turn has this many bytes in the memory of the service.
_READ_BYTES: Final = 64 * 1024
# This many malformed requests per second get a line each in the log. The log counts the others.
_REFUSALS_LOGGED_MAX: Final = 50


class Connections:
    """Every open connection: which are idle, the longest idle first, and how many each client has.

    A connection is idle while it has no request under way, even during a TLS handshake and while a head arrives. So a
    client that sends a head byte by byte gets no more time than one that sends nothing, and makes room for others too.
    """

    def __init__(
        self,
        limits: Limits,
        metrics: Metrics,
        renew: Callable[[], None] = lambda: None,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        """``renew`` makes later reads see everything that is committed by then (``Backend.renew``). ``proxies`` are
        trusted, and no bound on the connections of one client applies to them."""
        self.connections: set[Connection] = set()
        # The rest of each request that could not be answered at once.
        self.tasks: set[asyncio.Task[None]] = set()
        self.limits = limits
        self.renew = renew
        self.idle: dict[Connection, float] = {}
        self.proxies = proxies
        # All connections read into one buffer, because each at once takes out what it has read.
        self.read_buffer = bytearray(_READ_BYTES)
        self.metrics = metrics
        self.of_client: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()
        self._refused = 0
        self._in_round = False
        self._changed = asyncio.Event()
        self.date_line = _date_line()

    def join_round(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make sure that the app reads nothing older than this round of the event loop. Called before the app answers.

        The requests of one round may share a snapshot of the storage. A task may have taken one before the round, and
        it would last until the end of the round. So the first request of a round renews it.
        """
        if not self._in_round:
            self._in_round = True
            self.renew()
            # The event loop reads from all sockets that are ready, and then runs this.
            loop.call_soon(self._leave_round)

    def _leave_round(self) -> None:
        self._in_round = False

    def accept(self, connection: Connection, now: float) -> bool:
        """Take in a new connection. False if it may not stay. If there are too many, the longest idle one is closed."""
        client = connection.address
        if self.of_client[client] >= self.limits.connections_per_client_max and client not in self.proxies:
            self.count_closed("client-connections")
            return False
        if len(self.connections) >= self.limits.connections_max and not self.evict("evicted"):
            self.count_closed("connections")
            return False
        self.of_client[client] += 1
        self.connections.add(connection)
        self.idle[connection] = now
        return True

    def evict(self, reason: str) -> bool:
        """Close the longest idle connection at once, if any is idle."""
        longest_idle = next(iter(self.idle), None)
        if longest_idle is None:
            return False
        self.count_closed(reason)
        del self.idle[longest_idle]
        # With TLS, a proper close would wait for the client, and the connection would stay as long.
        longest_idle.abort()
        return True

    def forget(self, connection: Connection) -> None:
        """Drop a closed connection. Nothing happens if it was dropped before."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.idle.pop(connection, None)
            client = connection.address
            self.of_client[client] -= 1
            if not self.of_client[client]:
                del self.of_client[client]
            self._changed.set()

    def end_task(self, task: asyncio.Task[None]) -> None:
        """Drop a task that is done."""
        self.tasks.discard(task)
        self._changed.set()

    async def wait_until_gone(self) -> None:
        """Return when no connection is open and no request is under way."""
        while self.connections or self.tasks:
            self._changed.clear()
            await self._changed.wait()

    def shut_down(self) -> None:
        """Close each connection as soon as its request is answered, and begin no other request."""
        for connection in list(self.connections):
            connection.shutdown()

    def count_closed(self, reason: str) -> None:
        """Count a connection that the service closed. The log gets one line for all of a second."""
        self._closed[reason] += 1
        self.metrics.count_closed_connection(reason)

    def log_refusal(self, request_id: str, client: str) -> None:
        """Log a malformed request. The log gets the first few of each second, and the number of all."""
        self._refused += 1
        if self._refused <= _REFUSALS_LOGGED_MAX:
            logger.info("malformed request", extra={"request_id": request_id, "client": client})

    def sweep(self) -> None:
        """End connections that were idle too long, whose clients read too slowly, or that nobody owns. The sweep of the
        front door calls this once a second."""
        now = asyncio.get_running_loop().time()
        self.date_line = _date_line()
        for idle, since in list(self.idle.items()):
            if now - since < self.limits.idle_seconds_max:
                break
            idle.close_idle()
        for connection in list(self.connections):
            try:
                connection.check(now)
            except Exception:
                logger.exception("a connection failed")
                connection.abort()
        self.metrics.connections = len(self.connections)
        if self._closed:
            logger.warning("connections closed", extra={"open": len(self.connections), **self._closed})
            self._closed.clear()
        if self._refused > _REFUSALS_LOGGED_MAX:
            logger.info("malformed requests", extra={"count": self._refused})
        self._refused = 0


def _date_line() -> bytes:
    return b"date: %b\r\n" % formatdate(usegmt=True).encode()
