from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest
from tests.waiting import SECONDS_MAX

from rstore.core.encodings import Encoding, Value
from rstored.backends.abc import UnfitStorage
from rstored.backends.sqlite import SQLiteBackend
from rstored.engine.batching import Storage
from rstored.engine.kv import KeyValues
from rstored.engine.maintenance import Maintenance
from rstored.engine.namespaces import Namespaces
from rstored.limits import Limits
from rstored.problems import Problem

pytestmark = pytest.mark.anyio


class Store:
    """An engine's parts on one file, with a clock that the test turns."""

    def __init__(self, path: Path, backend: SQLiteBackend) -> None:
        self.path = path
        self.now = 1_000
        self.backend = backend
        self.storage = Storage(backend)
        self.kv = KeyValues(self.storage, Limits(), lambda: self.now)
        self.namespaces = Namespaces(self.storage, Limits(), lambda: self.now)
        self.maintenance = Maintenance(self.storage, lambda: self.now, sweep_seconds=0.01)

    async def put(self, key: str, ttl_seconds: float) -> None:
        value = Value(Encoding.BYTES, b"x")
        await self.kv.put("ns", key, value=value, media_type="x/y", ttl_seconds=ttl_seconds)

    def records(self) -> int:
        """How many records the file has, but for the root and the namespaces."""
        connection = sqlite3.connect(self.path)
        try:
            (n,) = connection.execute("SELECT count(*) FROM record WHERE kind <> 0").fetchone()
            return int(n)
        finally:
            connection.close()

    async def emptied(self) -> None:
        async with asyncio.timeout(SECONDS_MAX):
            while self.records():
                await asyncio.sleep(0.01)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    path = tmp_path / "store.db"
    backend = await SQLiteBackend.open(f"sqlite:///{path}")
    store = Store(path, backend)
    yield store
    await store.maintenance.stop()
    await backend.close()


async def test_a_sweep_deletes_what_has_expired_and_nothing_else(store: Store) -> None:
    await asyncio.gather(*(store.put(f"{n}", 1 + n % 2) for n in range(1000)))
    await store.maintenance.sweep()
    assert store.records() == 1000
    store.now += 1000
    await store.maintenance.sweep()
    assert store.records() == 500
    assert await store.kv.count("ns") == 500


async def test_a_key_written_again_is_not_deleted_by_a_sweep_that_saw_it_expired(store: Store) -> None:
    await store.put("k", 1)
    store.now += 1000
    # Both go into one batch, the put first.
    await asyncio.gather(store.put("k", 1), store.maintenance.sweep())
    assert await store.kv.get("ns", "k") is not None


async def test_the_task_expires_and_erases_by_itself(store: Store) -> None:
    store.maintenance.start()
    await store.put("k", 1)
    store.now += 1000
    await store.emptied()
    await asyncio.gather(*(store.put(f"{n}", 100) for n in range(50)))
    await store.namespaces.discard("ns")
    await store.emptied()


async def away() -> NoReturn:
    raise Problem("backend-unavailable", "it is away")


async def test_the_task_goes_on_after_a_failure(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put("secret-key", 1)
    store.now += 1000
    with monkeypatch.context() as patches:
        patches.setattr(store.backend, "ping", away)
        store.maintenance.start()
        async with asyncio.timeout(SECONDS_MAX):
            while "maintenance failed and will be tried again: it is away" not in caplog.text:
                await asyncio.sleep(0.01)
    await store.emptied()
    assert "secret-key" not in caplog.text


async def test_stop_ends_the_task_and_may_be_called_twice(store: Store) -> None:
    store.maintenance.start()
    await store.maintenance.stop()
    await store.maintenance.stop()
    await store.put("k", 1)
    store.now += 1000
    await asyncio.sleep(0.05)
    assert store.records() == 1


async def test_a_stopped_storage_refuses_a_sweep(store: Store) -> None:
    await store.put("k", 1)
    store.now += 1000
    await store.storage.close()
    with pytest.raises(Problem, match="stopping"):
        await store.maintenance.sweep()


@pytest.mark.parametrize("step", ["ping", "purge"])
async def test_a_stop_ends_though_a_driver_swallows_the_cancellation(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    begun = asyncio.Event()

    async def swallow() -> bool:
        begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)
        return False

    monkeypatch.setattr(store.backend, step, swallow)
    store.maintenance.start()
    await begun.wait()
    async with asyncio.timeout(SECONDS_MAX):
        await store.maintenance.stop()


async def test_a_failure_is_logged_once_for_each_reason(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = iter(["a", "a", "b", "b", "b", "a", None, "a"])
    ended = asyncio.Event()

    async def ping() -> None:
        try:
            reason = next(reasons)
        except StopIteration:
            ended.set()
            return
        if reason:
            raise Problem("backend-unavailable", f"because of {reason}")

    monkeypatch.setattr(store.backend, "ping", ping)
    store.maintenance.start()
    async with asyncio.timeout(SECONDS_MAX):
        await ended.wait()
    assert [record.args for record in caplog.records] == [(f"because of {reason}",) for reason in "abaa"]


async def test_what_a_ping_says_of_the_store_is_heeded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unfit() -> None:
        raise UnfitStorage("another store")

    await store.put("k", 100)
    ping = store.backend.ping
    monkeypatch.setattr(store.backend, "ping", unfit)
    with pytest.raises(UnfitStorage):
        await store.storage.ping()
    for _ in range(2):
        with pytest.raises(UnfitStorage):
            await store.kv.get("ns", "k")
        with pytest.raises(UnfitStorage):
            await store.put("other", 100)
    monkeypatch.setattr(store.backend, "ping", ping)
    await store.storage.ping()
    assert await store.kv.get("ns", "k") is not None
    assert await store.kv.get("ns", "other") is None


async def test_a_ping_that_fails_for_a_moment_refuses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away() -> None:
        raise Problem("backend-unavailable", "try again")

    monkeypatch.setattr(store.backend, "ping", away)
    with pytest.raises(Problem):
        await store.storage.ping()
    await store.put("k", 100)
    assert await store.kv.get("ns", "k") is not None
