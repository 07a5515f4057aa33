"""The thread that writes. One queue leads to it, and one call of the event loop leads back.

An executor of the standard library locks and wakes several times for each piece of work, and this took a tenth of the
time of a lone write.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class WriterThread:
    """A thread that carries out one piece of work after another. It belongs to the event loop that makes it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._work: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._work = queue.SimpleQueue()
        # If the process ends in the middle of a write, that write is not acknowledged.
        threading.Thread(target=self._carry_out_all, name="sqlite-writer", daemon=True).start()

    def run(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """What ``work`` returns or raises. It is carried out even if nobody waits for it any more."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._work.put((future, work, arguments))
        return future

    def end(self) -> None:
        """Let the thread end when all its work is done. This does not wait: the event loop would be held up."""
        self._work.put(None)

    def _carry_out_all(self) -> None:
        while (item := self._work.get()) is not None:
            self._carry_out(*item)
            # An idle thread keeps nothing.
            del item

    def _carry_out(self, future: asyncio.Future[T], work: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work(*arguments)
        except BaseException as raised:
            error = raised
        # If the loop is closed, nobody waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_settle, future, result, error)
        # The traceback of an error holds this frame. If the frame held the error, both would stay for a long time.
        del future, error


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
