"""The HTTP server: uvicorn, made to drain, to exit with 0 and to answer what it cannot parse with a problem."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import resource
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

import uvicorn

from rstored.api.front_door import FrontDoor
from rstored.http.connections import Connections
from rstored.http.entrance import Entrance
from rstored.http.exchange import App
from rstored.http.proxies import BehindProxies, Proxies
from rstored.limits import Limits
from rstored.settings import Settings

__all__ = ["Server", "bind", "within_open_files"]

logger = logging.getLogger("rstored.server")

_GARBAGE_OBJECTS_MAX: Final = 10_000
_MMAP_THRESHOLD: Final = -3  # as malloc.h names it
_LARGE_BYTES: Final = 2**20
# Open beside the connections: the backend's, the log, what listens, and what is opened for a moment.
_OTHER_FILES: Final = 100


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A bound socket; ``OSError`` if the address is taken or is not one of this machine.

    Sockets that are all ``shared`` may have one address, and the system spreads new connections over those that listen.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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


class Server(uvicorn.Server):
    """Serves ``app`` until SIGTERM or SIGINT; then ``/readyz`` says so, and after the drain it stops.

    Requests under way may finish within the grace period.
    """

    def __init__(
        self, app: FrontDoor, settings: Settings, tls: ssl.SSLContext | None, started: Callable[[], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
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
        self._connections = self.server_state = Connections(
            settings.limits, app.state.metrics, (), app.state.backend.renew
        )
        self._served: App = app
        if settings.trusted_proxies:
            proxies = Proxies(settings.trusted_proxy_list)
            self._served = BehindProxies(app, proxies)
            self._connections.trusted = proxies
        self._tls = tls
        self._app = app
        self._drain_seconds = settings.drain_seconds
        self._told_to_stop: float | None = None
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        self.servers = [
            Entrance(listener, self.config.backlog, self._served, self._connections, self._tls)  # type: ignore[misc]
            for listener in sockets or ()
        ]
        self.started = True
        self._sweeper = asyncio.create_task(self._connections.keep_sweeping())
        # What has been imported and built by now lives as long as the process: never look at it again. And a request
        # makes hundreds of objects that leave no cycles behind, so to look after every 700 costs a tenth of all time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE_OBJECTS_MAX)
        _give_large_memory_back()
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what is under way finish within the grace period. Whoever is too slow is looked for all the while."""
        await super().shutdown(sockets)
        self._sweeper.cancel()


def _give_large_memory_back() -> None:
    """Let the C library give large blocks back to the system as soon as they are free, where it is glibc.

    Else the first large body teaches it to keep blocks of that size, in each thread, and to copy what grows.
    """
    # Neither macOS nor musl has this, nor needs it.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
