from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest
from tests.waiting import SECONDS_MAX

from rstored.threads import INLINE_BYTES_MAX, run_sized

pytestmark = pytest.mark.anyio


async def test_who_is_cancelled_keeps_the_turn_until_the_thread_ends() -> None:
    begun, release = threading.Event(), threading.Event()
    order: list[str] = []

    def first() -> None:
        begun.set()
        release.wait(SECONDS_MAX)
        order.append("first")
        raise ValueError

    cancelled = asyncio.create_task(run_sized(INLINE_BYTES_MAX + 1, first))
    await asyncio.to_thread(begun.wait, SECONDS_MAX)
    second = asyncio.create_task(run_sized(INLINE_BYTES_MAX + 1, order.append, "second"))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    await asyncio.sleep(0.05)
    assert order == []
    release.set()
    await second
    assert order == ["first", "second"]


async def test_what_is_raised_in_a_thread_leaves_no_cycle() -> None:
    class Failure(Exception):
        pass

    raised: list[weakref.ref[Failure]] = []

    def fail() -> None:
        failure = Failure()
        raised.append(weakref.ref(failure))
        try:
            raise failure
        finally:
            del failure

    gc.disable()
    try:
        with pytest.raises(Failure):
            await run_sized(INLINE_BYTES_MAX + 1, fail)
        for _ in range(100):
            await asyncio.sleep(0.01)
            if raised[0]() is None:
                break
        assert raised[0]() is None
    finally:
        gc.enable()


async def test_the_next_piece_begins_when_nobody_holds_the_last_result() -> None:
    class Result:
        pass

    results: list[weakref.ref[Result]] = []
    held: list[int] = []

    def make() -> Result:
        held.append(sum(result() is not None for result in results))
        result = Result()
        results.append(weakref.ref(result))
        return result

    async def look_at_one() -> None:
        await run_sized(INLINE_BYTES_MAX + 1, make)

    # Threads that work all the time, so that each waits for the interpreter again and again.
    stopped = threading.Event()

    def keep_working() -> None:
        while not stopped.is_set():
            sum(range(1000))

    others = [threading.Thread(target=keep_working) for _ in range(3)]
    for other in others:
        other.start()
    try:
        await asyncio.gather(*(look_at_one() for _ in range(100)))
    finally:
        stopped.set()
        for other in others:
            other.join()
    assert held == [0] * 100
