"""Work in proportion to a number of bytes. Work on many bytes is kept off the event loop."""

from __future__ import annotations

import asyncio
import functools
import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from rstored.turns import Turns

# Parsing, checking or rendering this many bytes takes a few milliseconds at most. A hop to a thread takes a tenth of
# one.
INLINE_BYTES_MAX: Final = 256 * 2**10

P = ParamSpec("P")
T = TypeVar("T")

# For each event loop the turns, and the thread. On a busy machine a thread may still hold a result after the caller has
# dropped it. With a second thread, the next piece would begin meanwhile, and both would be in memory.
_of_loop: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Turns, ThreadPoolExecutor]]] = (
    weakref.WeakKeyDictionary()
)


async def run_sized(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``work`` returns or raises. It runs in a thread if it goes through many bytes, so that others are served.

    ``work`` is pure: it touches nothing that the event loop owns. Only one runs at a time. The interpreter would not
    run two at once anyway, and a parsed body takes many times its size until its caller has looked at it.
    """
    if size <= INLINE_BYTES_MAX:
        return work(*args, **kwargs)
    loop = asyncio.get_running_loop()
    turns, thread = _of_loop.get(loop) or _of_loop.setdefault(loop, (Turns(), ThreadPoolExecutor(1, "sized-work")))
    # Without turns, the thread would begin the next piece before anybody has looked at the last result.
    await turns.begin()
    running = loop.run_in_executor(thread, _uncollected, functools.partial(work, *args, **kwargs))

    def end(ended: asyncio.Future[T]) -> None:
        # A caller that still waits gets the exception. If nobody waits, this keeps asyncio from reporting it.
        ended.exception()
        turns.end()

    try:
        await asyncio.wait([running])
    finally:
        if running.done():
            end(running)
        else:
            # The caller is cancelled, but a thread cannot be.
            running.add_done_callback(end)
    try:
        return running.result()
    finally:
        # An exception of the work holds this frame, and this frame would hold the exception. The cycle would keep the
        # request.
        del running


def _uncollected(work: Callable[[], T]) -> T:
    # The collector would go through the new objects again and again, and all threads would wait for it.
    gc.disable()
    try:
        return work()
    finally:
        gc.enable()
