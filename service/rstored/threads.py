"""Work in proportion to the bytes it is done on, kept off the event loop where there are many."""

from __future__ import annotations

import asyncio
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from rstored.turns import Turns

__all__ = ["INLINE_BYTES_MAX", "run_sized"]

# To parse, check or render as many bytes takes some milliseconds at most; a hop to a thread takes a tenth of one.
INLINE_BYTES_MAX: Final = 256 * 2**10

P = ParamSpec("P")
T = TypeVar("T")

_turns: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Turns]] = weakref.WeakKeyDictionary()


async def run_sized(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``work`` returns or raises, run in a thread if it goes through many bytes, so that others are served.

    ``work`` is pure: it touches nothing that the event loop owns. One runs at a time: the interpreter lets no two work
    at once anyway, and what is parsed may take many times its bytes until whoever waits for it has looked at it.
    """
    if size <= INLINE_BYTES_MAX:
        return work(*args, **kwargs)
    # A thread of its own that takes one after the other would begin the next while nobody has looked at the last.
    loop = asyncio.get_running_loop()
    turns = _turns.setdefault(loop, Turns())
    await turns.begin()
    running = loop.run_in_executor(None, _uncollected, functools.partial(work, *args, **kwargs))

    def end(ended: asyncio.Future[T]) -> None:
        # Whoever still waits gets what it raised.
        ended.exception()
        turns.end()

    try:
        await asyncio.wait([running])
    finally:
        if running.done():
            end(running)
        else:
            # This one is cancelled, which a thread cannot be.
            running.add_done_callback(end)
    try:
        return running.result()
    finally:
        # What it raised holds this frame, and this would hold it: a cycle, with the request in it.
        del running


def _uncollected(work: Callable[[], T]) -> T:
    # The cyclic collector would go through all that is being made again and again, and all threads would wait for it.
    gc.disable()
    try:
        return work()
    finally:
        gc.enable()
