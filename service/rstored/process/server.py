"""The server of this process: how it listens, which signals stop it, and how it drains."""

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
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

from rstored.api.front_door import FrontDoor
from rstored.http.connections import Connections
from rstored.http.entrance import Entrance
from rstored.http.proxies import Proxies
from rstored.limits import Limits
from rstored.settings import Settings

logger = logging.getLogger("rstored.server")

_GARBAGE_OBJECTS_MAX: Final = 10_000
_MMAP_THRESHOLD: Final = -3  # as malloc.h names it
_LARGE_BYTES: Final = 2**20
# Open files that are not connections of clients: those of the backend, the log, listeners, and files open for a moment.
_OTHER_FILES: Final = 100


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A bound socket. ``OSError`` if the address is taken or does not belong to this machine.

    If all sockets are ``shared``, they may have one address, and the system spreads new connections over the listeners.
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
    """The limits, with no more connections than the system allows after this process has raised its limit on files."""
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


class Server:
    """Serves ``app`` until SIGTERM or SIGINT. Then ``/readyz`` answers 503, and after the drain the server stops.

    Requests under way may finish within the grace period. A second signal ends drain and grace at once.
    """

    def __init__(
        self, app: FrontDoor, settings: Settings, tls: ssl.SSLContext | None, started: Callable[[], None]
    ) -> None:
        self._app = app
        self._settings = settings
        self._tls = tls
        self._started = started
        self._told_to_stop = asyncio.Event()
        self._told_again = asyncio.Event()

    async def serve(self, listener: socket.socket) -> None:
        """Serve connections to a bound socket. Returns when everything is answered, or the grace period is over."""
        settings = self._settings
        state = self._app.state
        proxies = Proxies(settings.trusted_proxy_list)
        connections = Connections(settings.limits, state.metrics, state.backend.renew, proxies)
        with self._signals():
            entrance = Entrance(listener, settings.backlog, self._app.serve, connections, self._tls)
            self._app.sweeps.append(connections.sweep)
            _settle_memory()
            self._started()
            await self._told_to_stop.wait()
            await self._unless_told_again(asyncio.sleep(settings.drain_seconds), None)
            entrance.close()
            listener.close()
            connections.shut_down()
            # The sweep still ends clients that are too slow.
            if not await self._unless_told_again(connections.wait_until_gone(), settings.shutdown_grace_seconds):
                if not self._told_again.is_set():
                    counts = {"requests": len(connections.tasks), "connections": len(connections.connections)}
                    logger.error("the grace period is over: what is under way is cut off", extra=counts)
                for task in connections.tasks:
                    task.cancel()
            self._app.sweeps.remove(connections.sweep)

    async def _unless_told_again(self, waiting: Coroutine[Any, Any, None], seconds_max: float | None) -> bool:
        """Whether ``waiting`` ended within ``seconds_max`` seconds, and before a second signal arrived."""
        waits = asyncio.create_task(waiting)
        signalled = asyncio.create_task(self._told_again.wait())
        await asyncio.wait((waits, signalled), timeout=seconds_max, return_when=asyncio.FIRST_COMPLETED)
        ended = waits.done()
        waits.cancel()
        signalled.cancel()
        return ended

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals stop the service properly, so the exit code is 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self._told_to_stop.is_set():
            self._told_again.set()
        else:
            self._app.state.stopping = True
            self._told_to_stop.set()


def _settle_memory() -> None:
    # Everything imported and built by now lives as long as the process, so the collector need not look at it. A request
    # makes hundreds of objects without cycles, and a collection after every 700 objects takes a tenth of all time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_OBJECTS_MAX)
    _give_large_memory_back()


def _give_large_memory_back() -> None:
    """Make glibc return large blocks to the system as soon as they are free.

    Otherwise it would keep blocks of the size of the first large body, in each thread, and copy blocks that grow.
    """
    # macOS and musl do not have this function, and do not need it.
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
