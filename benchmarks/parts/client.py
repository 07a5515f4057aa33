"""What the SDK costs: one value at a time, beside the bare HTTP client under it; and 1,000 at once, beside Redis."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import httpcore2
import httpx2
import redis

from benchmarks.figures import Figure, Note, Row, Size, each
from benchmarks.peers.backends import REDIS
from benchmarks.peers.rstored import Rstored
from rstore import AsyncStore

CALLS = 2_000
KEY = "key"
PAIRS = 1_000
NEAR_BARE = 0.9
NEAR_PIPELINE = 0.5


def measure(size: Size) -> list[Row]:
    calls = size.of(CALLS, least=50)
    with ExitStack() as stack:
        service = stack.enter_context(Rstored())
        rows = [*_one_at_a_time(service, size, calls), *asyncio.run(_awaited(service, size, calls))]
        if missing := REDIS.missing():
            return [*rows, Note("redis-py", f"not measured: {missing}")]
        server = stack.enter_context(redis.Redis.from_url(REDIS.dsn(), decode_responses=True))
        server.set(KEY, json.dumps(_text()))
        store = stack.enter_context(service.store())
        rows.append(_against("Store.get", "redis-py get", size, calls, lambda: store.get(KEY), lambda: server.get(KEY)))
        return [*rows, *_many_at_once(service, server, size)]


def _text() -> str:
    return random.randbytes(49).hex()


def _against(
    what: str,
    peer: str,
    size: Size,
    calls: int,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    reach: float | None = None,
) -> Figure:
    rates: tuple[list[float], list[float]] = [], []
    for _ in range(size.rounds):
        for rate, work in zip(rates, (ours, theirs), strict=True):
            rate.append(1 / each(calls, work))
    return Figure(what, peer, "calls/s", *rates, reach)


def _one_at_a_time(service: Rstored, size: Size, calls: int) -> list[Row]:
    url, headers = f"{service.dsn}/kv/{KEY}", service.headers()
    with (
        service.store() as store,
        httpx2.Client(headers=headers, trust_env=False) as client,
        httpcore2.ConnectionPool() as pool,
    ):
        store.set(KEY, _text())
        store.get(KEY)

        def bare() -> object:
            return client.get(url).raise_for_status().json()

        def lower() -> object:
            answer = pool.request("GET", url, headers=list(headers.items()))
            return json.loads(answer.content)

        for peer in (bare, lower):
            if peer() != store.get(KEY):
                raise RuntimeError("they do not read the same")
        return [
            _against("Store.get", "bare httpx2", size, calls, lambda: store.get(KEY), bare, NEAR_BARE),
            _against("Store.get", "bare httpcore2", size, calls, lambda: store.get(KEY), lower),
        ]


async def _awaited(service: Rstored, size: Size, calls: int) -> list[Row]:
    async def rate(work: Callable[[], Awaitable[object]]) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            await work()
        return calls / (time.perf_counter() - started)

    url = f"{service.dsn}/kv/{KEY}"
    ours: list[float] = []
    theirs: list[float] = []
    async with (
        AsyncStore(service.dsn, token=service.token) as store,
        httpx2.AsyncClient(headers=service.headers(), trust_env=False) as client,
    ):

        async def bare() -> object:
            return (await client.get(url)).raise_for_status().json()

        for _ in range(size.rounds):
            ours.append(await rate(lambda: store.get(KEY)))
            theirs.append(await rate(bare))
    return [Figure("AsyncStore.get", "bare httpx2.AsyncClient", "calls/s", ours, theirs, NEAR_BARE)]


def _many_at_once(service: Rstored, server: redis.Redis, size: Size) -> list[Row]:
    """Each write brings fresh values; a pipeline of redis-py is a transaction, as a batch of ours is."""
    calls = size.of(50, least=3)
    keys = [f"many-{number}" for number in range(PAIRS)]
    batches = [{key: _text() for key in keys} for _ in range(5)]
    turns = [0, 0]
    with service.store() as store:

        def next_batch(side: int) -> dict[str, str]:
            turns[side] += 1
            return batches[turns[side] % len(batches)]

        def pipeline_set() -> None:
            pipeline = server.pipeline()
            for key, value in next_batch(1).items():
                pipeline.set(key, value)
            pipeline.execute()

        def pipeline_get() -> list[object]:
            pipeline = server.pipeline()
            for key in keys:
                pipeline.get(key)
            return pipeline.execute()

        rows: list[Row] = [
            _against(
                "set_many of 1,000",
                "redis-py pipeline",
                size,
                calls,
                lambda: store.set_many(next_batch(0)),
                pipeline_set,
                NEAR_PIPELINE,
            ),
            _against(
                "get_many of 1,000",
                "redis-py pipeline",
                size,
                calls,
                lambda: store.get_many(keys),
                pipeline_get,
                NEAR_PIPELINE,
            ),
        ]
        if list(store.get_many(keys).values()) not in [list(batch.values()) for batch in batches]:
            raise RuntimeError("what was read is not what was written")
    return rows
