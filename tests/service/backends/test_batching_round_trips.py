"""Batching over a network: what arrives together travels together, and no request suffers from others in its batch."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import psycopg
import pytest
from tests import servers
from tests.faults.proxy import Proxy, proxied

from rstored.backends import backend_class
from rstored.backends.abc import Commit, Head, HeadRead, Kind, Place, PutHead, PutRow, Row, RowScan, namespace_place
from rstored.engine.batching import Storage
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

N = 60
NS = namespace_place("ns")


class Remote(NamedTuple):
    """A store behind a proxy. ``commits()`` counts the transactions, or scripts, that have written so far."""

    storage: Storage
    proxy: Proxy
    server: Any
    name: str
    commits: Callable[[], int]


@pytest.fixture(params=["postgresql", "redis"])
async def remote(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Remote]:
    on_postgresql = request.param == "postgresql"
    reason = servers.missing_postgresql() if on_postgresql else servers.missing_redis()
    if reason is not None:
        pytest.skip(reason)
    server: Any = servers.postgresql_server() if on_postgresql else servers.redis_server()
    dsn = servers.fresh_dsn(server)
    name = dsn.rpartition("=")[2]
    async with proxied("127.0.0.1", server.port) as proxy:
        backend = await backend_class(dsn).open(dsn.replace(f":{server.port}", f":{proxy.port}"))
        storage = Storage(backend)

        def transactions() -> int:
            # A row keeps the number of the transaction that wrote it.
            return int(server.sql(f"SELECT count(DISTINCT xmin::text) FROM {name}.record WHERE kind = 1"))

        def scripts() -> int:
            said = server.cli("INFO", "commandstats")
            return sum(int(calls) for calls in re.findall(r"cmdstat_eval(?:sha)?:calls=(\d+)", said))

        try:
            await put(storage, "first")
            yield Remote(storage, proxy, server, name, transactions if on_postgresql else scripts)
        finally:
            await storage.close()
            await backend.close()


def kv(key: str) -> Place:
    return Place("ns", Kind.KV, key)


async def put(storage: Storage, key: str, value: bytes = b"1") -> str:
    def plan(heads):
        return Commit([PutHead(NS, Head(b"")), PutHead(kv(key), Head(b"", value))], key)
        yield

    return await storage.update((kv(key),), plan)


async def value(storage: Storage, key: str) -> bytes | None:
    (head,) = await storage.read(HeadRead(kv(key), 100))
    return None if head is None else head.value


async def test_reads_that_come_together_are_one_round_trip(remote: Remote) -> None:
    keys = [f"k{n}" for n in range(N)]
    await asyncio.gather(*(put(remote.storage, key, key.encode()) for key in keys))
    before = remote.proxy.round_trips
    assert await asyncio.gather(*(value(remote.storage, key) for key in keys)) == [key.encode() for key in keys]
    together = remote.proxy.round_trips - before
    assert together <= 2
    for key in keys[:10]:
        await value(remote.storage, key)
    assert remote.proxy.round_trips - before - together >= 10


async def test_writes_that_come_together_commit_together(remote: Remote) -> None:
    before, commits = remote.proxy.round_trips, remote.commits()
    # Also those of one record: the second one sees what the first is going to write.
    keys = [f"k{n // 2}" for n in range(N)]
    assert await asyncio.gather(*(put(remote.storage, key, b"%d" % n) for n, key in enumerate(keys))) == keys
    # Looking for what is there, room for new records, and writing it all.
    assert remote.proxy.round_trips - before <= 4
    assert remote.commits() - commits <= 3
    before = remote.proxy.round_trips
    for n in range(10):
        await put(remote.storage, f"alone{n}")
    assert remote.proxy.round_trips - before >= 20
    assert [await value(remote.storage, f"k{n}") for n in range(N // 2)] == [b"%d" % (2 * n + 1) for n in range(N // 2)]


async def test_what_arrives_while_a_batch_is_under_way_is_the_next_one(remote: Remote) -> None:
    before, commits = remote.proxy.round_trips, remote.commits()
    remote.proxy.freeze()
    first = asyncio.create_task(put(remote.storage, "under way"))
    while remote.proxy.held == 0:
        await asyncio.sleep(0.001)
    others = []
    for n in range(N):
        others.append(asyncio.create_task(put(remote.storage, f"k{n}")))
        await asyncio.sleep(0)
    remote.proxy.heal()
    await asyncio.gather(first, *others)
    # Two batches.
    assert remote.proxy.round_trips - before <= 7
    assert remote.commits() - commits <= 5


async def test_one_that_fails_does_not_fail_the_others(remote: Remote) -> None:
    storage, series = remote.storage, Place("ns", Kind.TS, "series")

    def refused(heads):
        raise Problem("precondition-failed", "no")
        yield

    def broken(heads):
        raise ZeroDivisionError
        yield

    def spoiled(heads):
        # The server itself finds out that two rows of a lane have the same `by`, when the others are on their way.
        rows = [PutRow(series, 0, Row(b"%d" % n, b"", b"same")) for n in range(2)]
        return Commit([PutHead(series, Head(b"")), *rows], None)
        yield

    tasks: list[Any] = [put(storage, f"a{n}") for n in range(10)]
    tasks += [storage.update((kv("refused"),), refused), storage.update((kv("broken"),), broken)]
    tasks += [storage.update((series,), spoiled)]
    tasks += [put(storage, f"b{n}") for n in range(10)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[:10] + results[13:] == [f"{letter}{n}" for letter in "ab" for n in range(10)]
    assert [type(result) for result in results[10:12]] == [Problem, ZeroDivisionError]
    assert isinstance(results[12], Exception)
    assert [await value(storage, key) for key in ("a9", "b0", "refused", "broken")] == [b"1", b"1", None, None]
    assert (await storage.read(HeadRead(series)))[0] is None


async def test_one_that_is_slow_does_not_fail_the_others(remote: Remote) -> None:
    """One plan asks again and again; what has ended meanwhile waits for it, and is done."""
    storage, steps = remote.storage, 0

    def slow(heads):
        nonlocal steps
        for _ in range(50):
            steps += 1
            yield (RowScan(kv("slow"), 0),)
        return Commit([PutHead(kv("slow"), Head(b"", b"slow"))], "slow")

    others = [put(storage, f"k{n}") for n in range(20)]
    results = await asyncio.gather(storage.update((kv("slow"),), slow), *others)
    assert results == ["slow", *(f"k{n}" for n in range(20))]
    assert steps >= 50
    assert await value(storage, "slow") == b"slow"


@pytest.mark.parametrize("remote", ["postgresql"], indirect=True)
async def test_one_that_waits_for_a_lock_does_not_fail_the_others(remote: Remote) -> None:
    async with await psycopg.AsyncConnection.connect(remote.server.dsn) as other:
        await other.execute(f"SELECT FROM {remote.name}.record WHERE key = 'first' FOR UPDATE")
        tasks = [put(remote.storage, key) for key in ("first", *(f"k{n}" for n in range(20)))]
        blocked, *done = await asyncio.gather(*tasks, return_exceptions=True)
        await other.rollback()
    assert isinstance(blocked, Problem)
    assert blocked.code == "backend-unavailable"
    assert done == [f"k{n}" for n in range(20)]
    assert await put(remote.storage, "first", b"2") == "first"
