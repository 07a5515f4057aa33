"""The one background task. It pings the backend, deletes expired records and erases what deleted records leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, Final, TypeVar

from rstored.backends.abc import Commit, DeleteRecord, ExpiredRead, Head, Place, Query
from rstored.backends.clock import Clock
from rstored.engine.batching import Storage
from rstored.problems import Problem

_SWEEP_SECONDS: Final = 1.0
_CLOCKS_DIFFER_SECONDS: Final = 5.0
_EXPIRED_AT_ONCE: Final = 200

_log: Final = logging.getLogger(__name__)

T = TypeVar("T")


class Maintenance:
    """Pings the backend and sweeps, at the start and then once a second, each time until nothing is left to do.

    Nobody sees an entry after it expires, nor a record after it is deleted. The sweep only frees their room, so it may
    lag behind. It logs a failure and tries again.
    """

    def __init__(self, storage: Storage, clock: Callable[[], int], *, sweep_seconds: float = _SWEEP_SECONDS) -> None:
        """``clock`` gives POSIX milliseconds."""
        self._storage = storage
        self._clock = clock
        self._sweep_seconds = sweep_seconds
        # What was logged last: a failure, the warning of the backend, and whether the clocks differ.
        self._failure: str | None = None
        self._warning = storage.backend.describe().get("warning")
        self._clocks_differ = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to sweep. The first sweep erases what an earlier run left."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End the task. The next start erases what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def sweep(self) -> None:
        """Delete everything that has expired, then erase everything that deleted records left behind."""
        while await self._expire():
            pass
        # Each step is short, and writes that arrive meanwhile go before the next step.
        while await _to_its_end(self._storage.backend.purge()):
            pass

    async def _expire(self) -> bool:
        """Delete some expired records. True if there may be more."""
        now = self._clock()
        places: list[Place]
        (places,) = await self._storage.read(ExpiredRead(now, _EXPIRED_AT_ONCE))
        if places:
            await asyncio.gather(*(self._delete_expired(place, now) for place in places))
        return len(places) == _EXPIRED_AT_ONCE

    async def _delete_expired(self, place: Place, now: int) -> None:
        """Delete the record if it is still expired. Somebody may have written it again since it was found."""

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[None]]:
            head = heads[place]
            expired = head is not None and head.expires_ms is not None and head.expires_ms <= now
            return Commit([DeleteRecord(place)] if expired else [], None)
            yield

        await self._storage.update((place,), plan)

    async def _run(self) -> None:
        while True:
            try:
                await _to_its_end(self._storage.ping())
                self._compare_warnings()
                self._compare_clocks()
                await self.sweep()
                self._failure = None
            except Problem as problem:
                # It is logged once for each reason, because a backend may be away for long.
                if problem.detail != self._failure:
                    self._failure = problem.detail
                    _log.warning("maintenance failed and will be tried again: %s", problem.detail)
            except Exception:
                _log.exception("maintenance failed and will be tried again")
            await asyncio.sleep(self._sweep_seconds)

    def _compare_warnings(self) -> None:
        """Log when the backend begins or ceases to warn. Its server may have got other settings."""
        warning = self._storage.backend.describe().get("warning")
        if warning != self._warning:
            self._warning = warning
            if warning is None:
                _log.info("the backend again keeps what it acknowledges")
            else:
                _log.warning(warning)

    def _compare_clocks(self) -> None:
        """Log when this machine's clock begins or ceases to differ from the storage's."""
        warning = clock_warning(self._storage.backend.clock)
        if (warning is not None) != self._clocks_differ:
            self._clocks_differ = warning is not None
            if warning is None:
                _log.info("this machine's clock and the storage's agree again")
            else:
                _log.warning(warning)


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What the work returns. A cancellation first waits until the work has ended.

    A driver can lose a cancellation: before Python 3.12, ``asyncio.wait_for`` drops it if the awaited call ends at the
    same moment. The task would then go on, and a stop would wait for it for ever.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


def clock_warning(clock: Clock) -> str | None:
    """The warning that this machine's clock is off by seconds; None if it is not."""
    seconds = clock.machine_ahead_seconds
    if abs(seconds) < _CLOCKS_DIFFER_SECONDS:
        return None
    direction = "ahead of" if seconds > 0 else "behind"
    return f"this machine's clock is {abs(seconds):.0f} seconds {direction} the storage's: set it by NTP"
