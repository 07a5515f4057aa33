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

logger = logging.getLogger("rstored.server")

# How many connections are accepted before the open ones have a turn.
_ACCEPTED_AT_ONCE: Final = 16
# How long no connection is accepted after a failure: the first if a connection was closed for it, otherwise the second.
_EVICTION_SECONDS: Final = 0.1
_ACCEPT_PAUSE_SECONDS: Final = 1.0
_HANDSHAKE_SECONDS: Final = 10


class Entrance:
    """Accepts connections on a socket, over TLS or not.

    It replaces the server of the event loop. That one reports a connection only after its handshake, so connections
    that never finish one would not be counted. It may also close for good when no file can be opened.
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
                # Without free files, accept fails even if no client waits. Only at the first call is it certain that
                # one does.
                if number == 0:
                    self._pause(error)
                return
            connection = Connection(self._app, self._connections, accepted, address)
            if self._connections.accept(connection, self._loop.time()):
                self._connect(connection, accepted)
            else:
                accepted.close()

    def _connect(self, connection: Connection, accepted: socket.socket) -> None:
        arrival = self._loop.connect_accepted_socket(lambda: connection, accepted, **self._tls)
        task = self._loop.create_task(arrival)
        self.arriving.add(task)
        task.add_done_callback(functools.partial(self._arrived, connection))

    def _pause(self, error: OSError) -> None:
        """Pause, because the process or the system lacks files or memory. Close an idle connection to make room."""
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
            # A failed handshake is the fault of the client, so it is not logged.
            self._connections.forget(connection)

    def close(self) -> None:
        """Accept no more connections."""
        self._is_open = False
        self._loop.remove_reader(self._listener)
