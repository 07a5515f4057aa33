"""The app. It opens the backend, starts the engine, and owns both as long as it runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator

from rstored.api.access import Authentication
from rstored.api.asgi import ASGIApp, Message, Receive, Send
from rstored.api.front_door import FrontDoor
from rstored.api.metrics import Metrics
from rstored.api.openapi import declare_routes
from rstored.api.origins import Origins
from rstored.api.state import ServiceState
from rstored.backends import backend_class
from rstored.engine.engine import Engine
from rstored.settings import InvalidSettings, Settings, load_settings


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """The app with the settings of the environment, which it reads when a server first calls it."""
    try:
        serving = _app_of_the_environment()
    except InvalidSettings as error:
        if scope["type"] != "lifespan":
            raise
        # Without this answer, servers take the app for one that needs no lifespan, and go on.
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await serving(scope, receive, send)


def create_app(settings: Settings | None = None, worker: int | None = None) -> ASGIApp:
    """The ASGI app, by default with the settings of the environment.

    It opens nothing yet. The lifespan of a server does that, or ``async with app.running()``.
    """
    settings = settings or load_settings()
    declared = declare_routes(docs=settings.docs, root_path=settings.root_path)
    return ASGIApp(FrontDoor(declared, functools.partial(_open_state, settings, worker)))


@contextlib.asynccontextmanager
async def running_app(settings: Settings, worker: int | None = None) -> AsyncIterator[ASGIApp]:
    """The open app, for tests and for servers of others. Raises :class:`~rstored.problems.Problem`.

    ``worker`` is the number of this process if several serve together. Its metrics have it as a label.
    """
    app = create_app(settings, worker)
    async with app.running():
        yield app


@functools.cache
def _app_of_the_environment() -> ASGIApp:
    return create_app()


@contextlib.asynccontextmanager
async def _open_state(settings: Settings, worker: int | None) -> AsyncIterator[ServiceState]:
    metrics = Metrics(worker)
    backend = await backend_class(settings.dsn).open(settings.dsn)
    metrics.clock = backend.clock
    try:
        engine = Engine(backend, settings.limits, observe=metrics.observe_backend)
        await engine.start()
        try:
            if settings.admin_token is not None:
                # Otherwise the store would be open in another process, now or later, that does not have the token.
                await engine.tokens.close_store()
            yield ServiceState(
                backend,
                engine,
                settings.limits,
                metrics,
                Authentication(
                    engine.tokens,
                    settings.limits,
                    backend.clock,
                    closed=settings.closed,
                    admin_token=settings.admin_token,
                    cache_seconds=settings.token_cache_seconds,
                ),
                Origins(settings),
                root_path=settings.root_path,
                access_log=settings.access_log,
                docs=settings.docs,
            )
        finally:
            await engine.stop()
    finally:
        await backend.close()
