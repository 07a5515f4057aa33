"""The engine, which the API calls. It owns the batching and the maintenance. Whoever opened the backend closes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rstored.backends.abc import Backend
from rstored.engine.batching import Observe, Storage
from rstored.engine.es import EventSequences
from rstored.engine.kv import KeyValues
from rstored.engine.maintenance import Maintenance
from rstored.engine.namespaces import Namespaces
from rstored.engine.tokens import Tokens
from rstored.engine.ts import TimeSeries
from rstored.limits import Limits


class Engine:
    """The operations on an open backend, between :meth:`start` and :meth:`stop`."""

    def __init__(
        self,
        backend: Backend,
        limits: Limits | None = None,
        clock: Callable[[], int] | None = None,
        observe: Observe | None = None,
    ) -> None:
        """``clock`` gives POSIX milliseconds, by default the backend's; ``observe`` is called for every batch."""
        limits = limits or Limits()
        self.storage = Storage(backend, observe)
        self.maintenance = Maintenance(self.storage, clock or backend.clock.earlier)
        clock = clock or backend.clock
        self.kv = KeyValues(self.storage, limits, clock)
        self.ts = TimeSeries(self.storage, limits, clock)
        self.es = EventSequences(self.storage, limits, clock)
        self.namespaces = Namespaces(self.storage, limits, clock)
        self.tokens = Tokens(self.storage, limits, clock)

    async def start(self) -> None:
        """Begin maintenance."""
        self.maintenance.start()

    async def stop(self) -> None:
        """Finish what is under way, and refuse what comes later. The backend stays open."""
        await self.maintenance.stop()
        await self.storage.close()

    async def ping(self) -> None:
        """Return if the backend answers, otherwise raise Problem ``backend-unavailable``."""
        # Drivers limit the time of their calls, which works only in a task. A request may run outside of one.
        await asyncio.create_task(self.storage.ping())
