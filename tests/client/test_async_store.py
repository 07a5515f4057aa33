"""AsyncStore: that it is Store, awaited; and that it runs over ASGI and concurrently."""

from __future__ import annotations

import asyncio
import inspect
import operator
from pathlib import Path

import httpx2
import pytest

import rstore
from rstore import AsyncStore, FrozenStoreError, Store, StoreConflictError, StoreError, StoreNotAvailableError
from rstored.app import running_app
from rstored.settings import load_settings

pytestmark = pytest.mark.anyio


def methods(kind):
    return {name: member for name, member in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_both_classes_have_the_same_methods():
    assert list(methods(Store)) == list(methods(AsyncStore))
    assert len(methods(Store)) > 25


@pytest.mark.parametrize("name", methods(Store))
def test_both_classes_have_the_same_signatures_and_docstrings(name):
    blocking, awaited = methods(Store)[name], methods(AsyncStore)[name]
    assert inspect.iscoroutinefunction(awaited)
    assert not inspect.iscoroutinefunction(blocking)
    assert str(inspect.signature(awaited)).replace("AsyncStore", "Store") == str(inspect.signature(blocking))
    told, told_blocking = (inspect.cleandoc(method.__doc__ or "") for method in (awaited, blocking))
    if name in ("open", "close"):
        # The examples show how each class is opened and closed.
        told, told_blocking = told.partition("Example:")[0], told_blocking.partition("Example:")[0]
        told = told.replace("``async with``", "``with``")
    assert told == told_blocking
    assert awaited.__name__ == blocking.__name__


def test_both_constructors_are_the_same():
    assert inspect.signature(Store) == inspect.signature(AsyncStore)


@pytest.fixture(params=["plain", "sealed"])
async def store(request, tmp_path: Path, namespace):
    async with running_app(load_settings(dsn=f"sqlite:///{tmp_path / 'store.db'}")) as app:
        key = rstore.generate_key() if request.param == "sealed" else None
        transport = httpx2.ASGITransport(app)
        async with AsyncStore("http://localhost", namespace, key, frozen=False, transport=transport) as store:
            yield store


async def test_everything_over_asgi(store):
    assert await store.set("k", {"a": (1, 2)})
    assert await store.get("k") == {"a": (1, 2)}
    assert await store.has("k")
    assert [key async for key in store] == ["k"]
    await store.extend("s", *[(t, t / 2) for t in range(1_000)])
    assert await store.range("s", 10, n=2) == [(10, 5.0), (11, 5.5)]
    assert await store.missing("s", 0, 1_001, freq=1) == [1_000, 1_001]
    assert await store.apply("e", {"n": 1}) == {"n": 1}
    assert await store.apply("e", {"n": (operator.add, 1)}) == {"n": 2}
    assert await store.count() == 1
    await store.discard()
    assert await store.count() == 0


@pytest.mark.parametrize("key", ["a/b", "..", ".", "%2F", "a?b#c"])
async def test_keys_over_asgi(store, key):
    await store.set(key, key)
    assert await store.find() == [(key, key)]
    assert await store.get(key) == key


async def test_many_at_once(service_url, namespace):
    async with AsyncStore(service_url, namespace, frozen=False) as store:
        await asyncio.gather(*[store.set(f"k{number}", number) for number in range(100)])
        assert await asyncio.gather(*[store.get(f"k{number}") for number in range(100)]) == list(range(100))
        await store.discard()


async def test_a_cancelled_call_leaves_the_store_usable(service_url, namespace):
    async with AsyncStore(service_url, namespace, frozen=False) as store:
        for _ in range(20):
            task = asyncio.create_task(store.set("k", 1))
            await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await store.set("k", 2)
        assert await store.get("k") == 2
        await store.discard()


async def test_opening_closing_and_frozen(service_url, namespace):
    store = AsyncStore(service_url, namespace)
    with pytest.raises(StoreError, match="not open"):
        await store.get("k")
    with pytest.raises(StoreNotAvailableError):
        await store.open()
    async with AsyncStore(service_url, namespace, frozen=False):
        pass
    async with store:
        with pytest.raises(FrozenStoreError):
            await store.set("k", 1)
    with pytest.raises(StoreError, match="not open"):
        await store.get("k")


async def test_a_subclass_may_build_on_an_operation(service_url, namespace):
    class Counting(AsyncStore):
        async def increment(self, key: str) -> int:
            while True:
                entry = await self.entry(key)
                try:
                    value = 1 if entry is None else entry.value + 1
                    await self.set(key, value, if_match=entry and entry.etag, if_absent=entry is None)
                except StoreConflictError:
                    continue
                return value

        async def get(self, key: str, default: object = 0) -> object:
            return await super().get(key, default)

    async with Counting(service_url, namespace, frozen=False) as store:
        assert await store.get("n") == 0
        await asyncio.gather(*[store.increment("n") for _ in range(10)])
        assert await store.get("n") == 10
        await store.discard()


async def test_the_policy_is_set_by_opening(service_url, namespace):
    async with AsyncStore(service_url, namespace, rstore.generate_key(), frozen=False, sealed_only=True) as store:
        await store.set("k", 1)
        async with AsyncStore(service_url, namespace, frozen=False) as keyless:
            with pytest.raises(StoreError) as caught:
                await keyless.set("k", 2)
            assert caught.value.code == "sealed-only"
        await store.discard()
