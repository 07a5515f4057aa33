"""Programs that fork with an open store, or use one under several event loops. ``test_processes.py`` runs them.

``python forking.py PROGRAM URL NAMESPACE``. The exit code is 0 if everybody got the values that they asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import httpx2

from rstore import AsyncStore, Store, StoreError

PROCESSES = 8
KEYS = 30
WAIT_SECONDS = 60

address: str
store: Store
awaited: AsyncStore


def own_keys(name: str, count: int = KEYS) -> None:
    """Write and read keys that nobody else has."""
    for number in range(count):
        key = f"{name}/{number}"
        store.set(key, key)
        assert store.get(key) == key, key
        assert store.get(f"{key}/absent", key) == key


async def own_keys_awaited(name: str, count: int = KEYS) -> None:
    async def one(key: str) -> None:
        await awaited.set(key, key)
        assert await awaited.get(key) == key, key

    for start in range(0, count, 10):
        await asyncio.gather(*[one(f"{name}/{number}") for number in range(start, start + 10)])


def child(work: Callable[[], object]) -> int:
    """Do the work in a forked process; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def wait(*processes: int) -> None:
    """Wait for children that must end well, and soon: one that waits for a lock never ends."""
    deadline = time.monotonic() + WAIT_SECONDS
    left = list(processes)
    while left:
        ended, status = os.waitpid(left[0], os.WNOHANG)
        if ended:
            assert status == 0, f"the child ended with {status}"
            left.pop(0)
            continue
        if time.monotonic() > deadline:
            for process in left:
                os.kill(process, 9)
            raise AssertionError("a child hangs")
        time.sleep(0.01)


def refused(call: Callable[[], object], reason: str) -> None:
    """The call must raise a StoreError that gives this reason."""
    try:
        call()
    except StoreError as error:
        if reason in str(error):
            return
        raise
    raise AssertionError("the call is carried out")


def pool() -> None:
    """A pool of forked processes that share an open store with their parent."""
    own_keys("parent", 1)
    with multiprocessing.get_context("fork").Pool(PROCESSES) as processes:
        working = processes.map_async(own_keys, [f"child-{number}" for number in range(2 * PROCESSES)], chunksize=1)
        own_keys("parent")
        working.get(WAIT_SECONDS)
    own_keys("parent")


def threads() -> None:
    """Forks while other threads are in the middle of calls, and hold whatever locks those take."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def busy(number: int) -> None:
        try:
            while not stop.is_set():
                own_keys(f"thread-{number}", 5)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=busy, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()

    def work(number: int) -> None:
        # The child's own threads all need its first connection at once.
        several = [threading.Thread(target=own_keys, args=(f"child-{number}-{part}", 3)) for part in range(3)]
        for thread in several:
            thread.start()
        own_keys(f"child-{number}", 3)
        for thread in several:
            thread.join()

    try:
        for number in range(30):
            wait(child(functools.partial(work, number)))
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert not failures, failures


def generations() -> None:
    """Children of children, each of which closes its store and opens it again."""

    def work(depth: int) -> None:
        own_keys(f"depth-{depth}", 5)
        if depth:
            wait(child(lambda: work(depth - 1)))
        own_keys(f"depth-{depth}", 5)
        store.close()
        refused(lambda: store.get("k"), "not open")
        store.open()
        own_keys(f"depth-{depth}", 5)

    wait(child(lambda: work(4)))
    own_keys("parent", 5)


def loop() -> None:
    """Forks inside a running event loop; the children run loops of their own."""

    async def parent() -> None:
        await own_keys_awaited("parent", 10)
        working = [asyncio.create_task(own_keys_awaited(f"task-{number}")) for number in range(4)]
        processes = []
        for number in range(PROCESSES):
            processes.append(child(functools.partial(in_loops, f"child-{number}")))
            await own_keys_awaited("parent", 10)
        await asyncio.gather(*working)
        await asyncio.to_thread(wait, *processes)
        await own_keys_awaited("parent", 10)

    def in_loops(name: str) -> None:
        # This thread still is inside of the parent's event loop.
        thread = threading.Thread(target=lambda: [asyncio.run(own_keys_awaited(name, 10)) for _ in range(3)])
        thread.start()
        thread.join()

    asyncio.run(parent())


def loops() -> None:
    """One event loop after the other, and two at the same time."""
    for number in range(5):
        asyncio.run(own_keys_awaited(f"loop-{number}", 10))
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            for _ in range(3):
                asyncio.run(own_keys_awaited(f"thread-{number}"))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures

    async def close_and_open() -> None:
        await awaited.close()
        await awaited.open()
        await own_keys_awaited("again", 10)

    asyncio.run(close_and_open())


def uvloops() -> None:
    """The same under the other implementation of the event loop."""
    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    loops()


def given() -> None:
    """A transport that was given is the caller's, so nothing else can be made of it in another process."""
    transport = httpx2.HTTPTransport()
    with (
        contextlib.closing(transport),
        Store(address, store.namespace, transport=transport) as with_transport,
    ):
        assert with_transport.get("k", 0) == 0

        def work() -> None:
            refused(lambda: with_transport.get("k"), "transport")
            with_transport.close()
            refused(with_transport.open, "transport")

        wait(child(work))
        assert with_transport.get("k", 0) == 0


PROGRAMS = {program.__name__: program for program in (pool, threads, generations, loop, loops, uvloops, given)}


def main(name: str, url: str, namespace: str, *options: str) -> None:
    global address, store, awaited
    address = url
    # What an event loop, a socket or a coroutine complains of when it is thrown away fails the program.
    complaints: list[object] = []
    sys.unraisablehook = complaints.append
    warnings.simplefilter("error", ResourceWarning)
    warnings.simplefilter("error", RuntimeWarning)
    settings: dict[str, Any] = {"verify": options[0]} if options else {}
    store = Store(url, namespace, frozen=False, **settings).open()
    awaited = AsyncStore(url, namespace, frozen=False, **settings)
    asyncio.run(awaited.open())
    PROGRAMS[name]()
    store.close()
    asyncio.run(awaited.close())
    del store, awaited
    assert not complaints, complaints


if __name__ == "__main__":
    main(*sys.argv[1:])
