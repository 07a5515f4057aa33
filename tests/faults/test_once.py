"""Clients and service processes on a network that loses, cuts, delays, holds back and repeats: all happens once.

``make fault-test`` runs longer, for ``RSTORE_FAULT_SECONDS`` on each backend and with seeds of its own.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import operator
import random
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest
from tests.conformance.backends import BACKENDS
from tests.faults.mischief import Mischief, mischievous
from tests.knobs import knob

import rstore
from rstore import AsyncStore, Store, StoreConflictError, StoreIntegrityError, StoreNotAvailableError, calls
from rstore.store.bare import open_unasked

pytestmark = pytest.mark.anyio

SECONDS = float(knob("RSTORE_FAULT_SECONDS", "2"))
SEED = int(knob("RSTORE_FAULT_SEED", "0")) or (secrets.randbits(32) if knob("RSTORE_FAULT_SECONDS", "") else 7)
SEALING_KEY = rstore.generate_key()
Maker: TypeAlias = Callable[[str], Any]
"""Makes a store of a service at a URL; it is not open yet."""

EMPTY: dict[str, Any] = {"pairs": {}, "points": {}, "total": None}


class Writer:
    """One client, and a plain dict of what there must be.

    After a write of unknown outcome it goes on under new names, and what it leaves behind is as before the write or
    as after it. Whatever else differs is wrong.
    """

    def __init__(self, store: Store | AsyncStore, name: str, chance: random.Random) -> None:
        self.store = store
        self.chance = chance
        self.name = name
        self.generation = 0
        self.numbers = iter(range(1, 1_000_000))
        self.model: dict[str, Any] = copy.deepcopy(EMPTY)
        self.left: dict[str, list[dict[str, Any]]] = {}
        self.writes = self.unknown = self.failed = 0

    @property
    def prefix(self) -> str:
        # What is in braces keeps the keys of a batch together on a cluster.
        return f"{{{self.name}-{self.generation}}}"

    async def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        found = getattr(self.store, method)
        if inspect.iscoroutinefunction(found):
            return await found(*arguments, **options)
        return await asyncio.to_thread(found, *arguments, **options)

    async def work(self, until: float) -> None:
        while time.monotonic() < until:
            await self.write()
            if self.chance.random() < 0.3:
                await self.check()
        self.left[self.prefix] = [self.model]

    async def write(self) -> None:
        after = copy.deepcopy(self.model)
        n, prefix = next(self.numbers), self.prefix
        pairs, points = after["pairs"], after["points"]
        match self.chance.choice(("set", "create", "swap", "delete", "many", "extend", "remove", "apply", "prune")):
            case "set":
                pairs["k"] = n
                call = self.call("set", prefix + "k", n)
            case "create":
                refused = "k" in pairs
                pairs.setdefault("k", n)
                call = self.conflicting(refused, self.call("set", prefix + "k", n, if_absent=True))
            case "swap":
                refused = "k" not in pairs
                pairs |= {} if refused else {"k": n}
                call = self.conflicting(refused, self.call("set", prefix + "k", n, if_match="*"))
            case "delete":
                pairs.pop("k", None)
                call = self.call("delete", prefix + "k")
            case "many":
                pairs |= {"a": n, "b": n}
                call = self.call("set_many", {prefix + "a": n, prefix + "b": n})
            case "extend":
                points |= {n % 5: n, 5 + n % 7: n}
                call = self.call("extend", prefix, (n % 5, n), (5 + n % 7, n))
            case "remove":
                for t in [t for t in points if t <= n % 5]:
                    del points[t]
                call = self.call("remove", prefix, end=n % 5)
            case "apply":
                change = 0 if after["total"] is None else (operator.add, 1)
                after["total"] = 0 if after["total"] is None else after["total"] + 1
                call = self.call("apply", prefix, {"total": change})
            case _:
                call = self.call("prune", prefix)
        self.writes += 1
        try:
            await call
        except StoreNotAvailableError as error:
            if error.outcome_unknown:
                self.unknown += 1
                self.left[prefix] = [self.model, after]
                self.generation += 1
                self.model = copy.deepcopy(EMPTY)
            else:
                self.failed += 1
        else:
            self.model = after

    async def conflicting(self, refused: bool, call: Any) -> None:
        try:
            await call
        except StoreConflictError:
            assert refused, "a condition that held was refused"
        else:
            assert not refused, "a condition that did not hold was overlooked"

    async def check(self) -> None:
        try:
            found = await self.found(self.prefix)
        except StoreNotAvailableError:
            return
        assert found == self.model, (self.prefix, found, self.model)

    async def found(self, prefix: str) -> dict[str, Any]:
        pairs = await self.call("get_many", [prefix + name for name in "kab"])
        state = await self.call("current", prefix)
        return {
            "pairs": {key[-1]: value for key, value in pairs.items()},
            "points": dict(await self.call("range", prefix)),
            "total": None if state is None else state["total"],
        }


async def run(urls: list[str], namespace: str, seed: int, seconds: float) -> tuple[list[Writer], Mischief]:
    chance = random.Random(seed)
    ports = [int(url.rpartition(":")[2]) for url in urls]
    writers = []
    makers: list[Maker] = []
    async with AsyncExitStack() as stack:
        mischief = await stack.enter_async_context(mischievous(ports, chance))
        for number in range(6):
            key = SEALING_KEY if number % 3 == 2 else None
            bounds: dict[str, Any] = {"timeout": 2.0, "retries": 1 + number % 3, "deadline": 8.0}
            kind = (Store, AsyncStore)[number % 2]
            make: Maker = functools.partial(kind, namespace=f"{namespace}-{number}", key=key, frozen=False, **bounds)
            # The namespace is made in peace; all else meets the mischief.
            in_peace = make(urls[0])
            await settled(in_peace.open())
            await closed(in_peace)
            store = make(mischief.url)
            open_unasked(store)
            stack.push_async_callback(closed, store)
            writers.append(Writer(store, f"w{number}", random.Random(seed + number)))
            makers.append(make)
        until = time.monotonic() + seconds
        for failure in await asyncio.gather(*[writer.work(until) for writer in writers], return_exceptions=True):
            if failure is not None:
                raise failure
        await mischief.settled()
        for writer, make in zip(writers, makers, strict=True):
            writer.store = make(urls[-1])
            await settled(writer.store.open())
            stack.push_async_callback(closed, writer.store)
            for prefix, states in writer.left.items():
                found = await writer.found(prefix)
                assert found in states, (prefix, found, states)
    return writers, mischief


async def closed(store: Store | AsyncStore) -> None:
    await settled(store.close())


async def settled(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


@pytest.mark.parametrize("backend", BACKENDS)
async def test_everything_happens_once_or_is_reported(backend, serve, tmp_path):
    missing = BACKENDS[backend].missing()
    if missing:
        pytest.skip(missing)
    dsn = BACKENDS[backend].fresh(tmp_path)
    urls = [(await asyncio.to_thread(serve, dsn)).url for _ in range(2)]
    print(f"RSTORE_FAULT_SEED={SEED}")
    writers, mischief = await run(urls, f"f{secrets.token_hex(4)}", SEED, SECONDS)
    told = {name: sum(getattr(writer, name) for writer in writers) for name in ("writes", "unknown", "failed")}
    print(told, mischief.done)
    assert all(mischief.done.get(deed, 0) for deed in ("repeat", "hold", "lose", "cut answer"))
    assert told["writes"] > 3 * told["unknown"] > 0


async def test_it_is_found_out_when_nothing_is_known_again(serve, tmp_path, monkeypatch):
    for kind in (calls.es, calls.kv, calls.namespaces, calls.ts):
        monkeypatch.setattr(kind, "once", lambda: ())
    urls = [(await asyncio.to_thread(serve, f"sqlite:///{tmp_path}/store.db")).url]
    with pytest.raises((AssertionError, StoreIntegrityError)):
        await run(urls, "planted", SEED, 4)
