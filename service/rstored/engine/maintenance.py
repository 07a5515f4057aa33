"""The one background task: it deletes what has expired and erases what deleted records left behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final

from rstored.backends.abc import Commit, DeleteRecord, ExpiredRead, Head, Place, Query
from rstored.engine.batching import Storage
from rstored.problems import Problem

__all__ = ["Maintenance"]

SWEEP_SECONDS: Final = 1.0
_EXPIRED_AT_ONCE: Final = 200

_log: Final = logging.getLogger(__name__)


class Maintenance:
    """Sweeps at the start and then once a second, each time until nothing is left to do.

    Expired entries are invisible from the moment they expire and deleted records from the moment they are
    deleted; this only gives their room back, so it may lag, and a failure is logged and tried again.
    """

    def __init__(self, storage: Storage, clock: Callable[[], int], *, sweep_seconds: float = SWEEP_SECONDS) -> None:
        """``clock`` gives POSIX milliseconds."""
        self._storage = storage
        self._clock = clock
        self._sweep_seconds = sweep_seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sweep, first what an earlier run left."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End the task. What is left to erase is erased after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def sweep(self) -> None:
        """Delete everything that has expired, then erase everything that deleted records left behind."""
        while await self._expire():
            pass
        # Each step is short, and the writes that come meanwhile go before the next one.
        while await self._storage.backend.purge():
            pass

    async def _expire(self) -> bool:
        """Delete some expired records; True if there may be more."""
        now = self._clock()
        places: list[Place]
        (places,) = await self._storage.read(ExpiredRead(now, _EXPIRED_AT_ONCE))
        if places:
            await asyncio.gather(*(self._delete_expired(place, now) for place in places))
        return len(places) == _EXPIRED_AT_ONCE

    async def _delete_expired(self, place: Place, now: int) -> None:
        """Delete the record if it is still expired: it may have been written again since it was found."""

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[None]]:
            head = heads[place]
            expired = head is not None and head.expires_ms is not None and head.expires_ms <= now
            return Commit([DeleteRecord(place)] if expired else [], None)
            yield

        await self._storage.update((place,), plan)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Problem as problem:
                _log.warning("maintenance failed and will be tried again: %s", problem.detail)
            except Exception:
                _log.exception("maintenance failed and will be tried again")
            await asyncio.sleep(self._sweep_seconds)
