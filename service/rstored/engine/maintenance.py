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
            await self._storage.update(tuple(places), lambda heads: _delete_expired(heads, places, now))
        return len(places) == _EXPIRED_AT_ONCE

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Problem as problem:
                _log.warning("maintenance failed and will be tried again: %s", problem.detail)
            except Exception:
                _log.exception("maintenance failed and will be tried again")
            await asyncio.sleep(self._sweep_seconds)


def _delete_expired(
    heads: Mapping[Place, Head | None], places: list[Place], now: int
) -> Generator[Query, list[Any], Commit[None]]:
    """Delete those that are still expired: one may have been written again since it was found."""
    expired = [place for place in places if (head := heads[place]) and head.expires_ms and head.expires_ms <= now]
    return Commit([DeleteRecord(place) for place in expired], None)
    yield
