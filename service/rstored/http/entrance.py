"""Accepts connections, plain or over TLS."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import ssl
from typing import Any, Final

from rstored.http.connection import FAREWELL_SECONDS, Connection
from rstored.http.connections import Connections
from rstored.http.exchange import App

__all__ = ["Entrance"]

logger = logging.getLogger("rstored.server")

# How many connections are accepted before the others have a turn.
_ACCEPTED_AT_ONCE: Final = 16
# How long none is accepted when one could not be, with a connection closed for it and without.
_EVICTION_SECONDS: Final = 0.1
_ACCEPT_PAUSE_SECONDS: Final = 1.0
_HANDSHAKE_SECONDS: Final = 10


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
            self._tls = {
                "ssl": tls,
                "ssl_handshake_timeout": _HANDSHAKE_SECONDS,
                "ssl_shutdown_timeout": FAREWELL_SECONDS,
            }
        self.arriving: set[asyncio.Task[Any]] = set()
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
        self.arriving.add(task)
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
        self.arriving.discard(task)
        if task.cancelled() or task.exception() is not None:
            # What a client does in a handshake is no failure of the service.
            self._connections.forget(connection)

    def close(self) -> None:
        """Accept no more."""
        self._is_open = False
        self._loop.remove_reader(self._listener)
