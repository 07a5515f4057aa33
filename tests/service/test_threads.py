from __future__ import annotations

import asyncio
import threading

import pytest

from rstored.threads import INLINE_BYTES_MAX, run_sized

pytestmark = pytest.mark.anyio


async def test_who_is_cancelled_keeps_the_turn_until_the_thread_ends() -> None:
    begun, release = threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        begun.set()
        release.wait(10)
        order.append("first")
        raise ValueError

    cancelled = asyncio.create_task(run_sized(INLINE_BYTES_MAX + 1, first))
    await asyncio.to_thread(begun.wait, 10)
    second = asyncio.create_task(run_sized(INLINE_BYTES_MAX + 1, order.append, "second"))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await asyncio.sleep(0.05)
    assert order == []
    release.set()
    await second
    assert order == ["first", "second"]
