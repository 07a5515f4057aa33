"""How this process serves: from settings and a socket to an exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import ssl
import sys

import uvloop

from rstored import __version__
from rstored.addresses import is_loopback
from rstored.app import running_app
from rstored.backends import backend_class
from rstored.problems import Problem
from rstored.process.server import Server, bind
from rstored.process.workers import Worker
from rstored.settings import Settings

logger = logging.getLogger("rstored")


def serve_as_worker(settings: Settings, tls: ssl.SSLContext | None, worker: Worker) -> int:
    with bind(settings.host, settings.port, shared=True) as listener:
        return serve(settings, tls, listener, worker)


def serve(settings: Settings, tls: ssl.SSLContext | None, listener: socket.socket, worker: Worker | None = None) -> int:
    """Serve in this process until a signal stops it. Returns the exit code."""
    try:
        uvloop.run(_serve(settings, tls, listener, worker))
    except (Problem, _OpenToAll) as error:
        print(f"rstored: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


class _OpenToAll(Exception):
    """Other machines could reach the service, and nothing would keep anybody out."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"other machines can reach {host}, and nothing keeps anybody out: make a token "
            "(`rstored token create --namespace '*' --access admin`), or set RSTORED_ADMIN_TOKEN, or listen on "
            "127.0.0.1, or give --insecure if that is what you want"
        )


async def _serve(
    settings: Settings, tls: ssl.SSLContext | None, listener: socket.socket, worker: Worker | None
) -> None:
    reachable = not is_loopback(settings.host)
    if reachable and not (settings.insecure or settings.closed or settings.admin_token):
        versions = await backend_class(settings.dsn).schema_versions(settings.dsn)
        if not versions.present:
            # A store that does not exist has no token, and a refused start must not make it.
            raise _OpenToAll(settings.host)
    async with running_app(settings, worker=None if worker is None else worker.number) as app:
        authentication = app.state.authentication
        is_closed = await authentication.is_closed()
        if reachable and not is_closed and not settings.insecure:
            raise _OpenToAll(settings.host)
        try:
            await authentication.check_storage()
        except Problem as problem:
            logger.error(problem.code, extra={"detail": problem.detail})
        host, port = listener.getsockname()[:2]
        scheme = "http" if tls is None else "https"
        address = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        backend = app.state.backend.describe()

        def started() -> None:
            if worker is not None:
                if worker.serves is None:
                    return
                os.write(worker.serves, b"!")
            line = f"rstored {__version__} listens on {address}, data in {without_password(settings.dsn)}"
            print(line, flush=True)  # noqa: T201
            logger.info("listening", extra={"address": address, "backend": backend["name"]})
            if "warning" in backend:
                logger.warning(backend["warning"], extra={"backend": backend["name"]})
            if reachable and is_closed and tls is None:
                logger.warning("tokens and data cross the network unencrypted, unless a proxy adds TLS")

        server = Server(app.front_door, settings, tls, started)
        if worker is not None:
            asyncio.get_running_loop().add_reader(worker.parent, _stop_without, worker.parent)
        await server.serve(listener)
        logger.info("stopped")


def _stop_without(parent: int) -> None:
    """Stop this worker. Its parent is gone, and nobody else would stop it."""
    asyncio.get_running_loop().remove_reader(parent)
    signal.raise_signal(signal.SIGTERM)


def without_password(dsn: str) -> str:
    # Everything up to the last @ is hidden, because a password may have an @. A parameter may be a secret too, and a
    # backend of somebody else has parameters of its own.
    without = re.sub(r"(://[^/@:]*):.*@", r"\1:***@", dsn)
    return re.sub(r"(\w*(?:pass|secret|token|key|credential|auth)\w*=)[^&]*", r"\1***", without, flags=re.IGNORECASE)
