"""Every open connection of the process, and what bounds them: their number, their idle time, and one look a second."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

from rstored.api.metrics import Metrics
from rstored.api.replies import Header
from rstored.http.proxies import NO_PROXIES, Proxies
from rstored.limits import Limits

if TYPE_CHECKING:
    from rstored.http.connection import Connection

__all__ = ["Connections"]

logger = logging.getLogger("rstored.server")

# What one read takes of a connection. A client that sends ahead of its turn has as much in the service's memory.
_READ_BYTES: Final = 64 * 1024
# How many malformed requests a second get a line in the log; of the others it gets the count.
_REFUSALS_LOGGED_MAX: Final = 50


class Connections:
    """Every open connection: which are idle, the longest idle first, and how many each client has.

    A connection is idle while it has no request under way, also during a TLS handshake and while a head arrives. So
    whoever sends a head byte by byte has no more time than an idle connection, and makes room for others as one.
    """

    def __init__(
        self,
        limits: Limits,
        metrics: Metrics,
        renew: Callable[[], None] = lambda: None,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        """``renew`` is called where what is read next may not be older than that moment (``Backend.renew``).
        ``proxies`` are believed, and may have as many connections as they like."""
        self.connections: set[Connection] = set()
        # The rest of each request that could not be answered at once.
        self.tasks: set[asyncio.Task[None]] = set()
        self.limits = limits
        self.renew = renew
        self.idle: dict[Connection, float] = {}
        self.proxies = proxies
        # All connections read into the same buffer, since each takes out what it read at once.
        self.read_buffer = bytearray(_READ_BYTES)
        self.metrics = metrics
        self.of_client: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()
        self._refused = 0
        self._in_round = False
        self._changed = asyncio.Event()
        self.default_headers = _date_header()

    def join_round(self) -> None:
        """Called before the app answers: what it reads may not be older than this round of reading.

        The requests of one round may share what the storage showed at one moment of it. A task may have looked at the
        storage before the round, and what it saw would stay until the round is over. So the first request renews.
        """
        if not self._in_round:
            self._in_round = True
            self.renew()
            # The event loop reads from all sockets that are ready, and then runs this.
            asyncio.get_running_loop().call_soon(self._leave_round)

    def _leave_round(self) -> None:
        self._in_round = False

    def admit(self, connection: Connection, now: float) -> bool:
        """Whether a new connection may stay, which then is one of these. If there are too many, the longest idle one
        is closed for it."""
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
        # With TLS a proper close would wait for the client, and the connection would be there as long.
        longest_idle.abort()
        return True

    def forget(self, connection: Connection) -> None:
        """The connection is closed; nothing happens if it was no longer one of these."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.idle.pop(connection, None)
            client = connection.address
            self.of_client[client] -= 1
            if not self.of_client[client]:
                del self.of_client[client]
            self._changed.set()

    def end_task(self, task: asyncio.Task[None]) -> None:
        """The task is done."""
        self.tasks.discard(task)
        self._changed.set()

    async def wait_until_gone(self) -> None:
        """Return when no connection is open and no request under way."""
        while self.connections or self.tasks:
            self._changed.clear()
            await self._changed.wait()

    def shut_down(self) -> None:
        """Close each connection as soon as its request is answered, and begin no other request."""
        for connection in list(self.connections):
            connection.shutdown()

    def count_closed(self, reason: str) -> None:
        """One connection was closed by the service; the log gets one line for those of a second."""
        self._closed[reason] += 1
        self.metrics.count_closed_connection(reason)

    def log_refusal(self, request_id: str, client: str) -> None:
        """What arrived was no request. Of those of a second the log gets the first few, and how many there were."""
        self._refused += 1
        if self._refused <= _REFUSALS_LOGGED_MAX:
            logger.info("malformed request", extra={"request_id": request_id, "client": client})

    def sweep(self) -> None:
        """End what was idle too long, whose reader is too slow, and what has no owner. The front door's sweep calls it
        once a second."""
        now = asyncio.get_running_loop().time()
        self.default_headers = _date_header()
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


def _date_header() -> list[Header]:
    return [(b"date", formatdate(usegmt=True).encode())]
