"""Stores that are taken away from a running service: deleted, moved, replaced, or behind another server.

Nothing is acknowledged that is not in the store which the DSN names, and nothing is read from another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from tests.faults.load import BOUND_SECONDS, RECOVERY_SECONDS, check_unavailable
from tests.servers import PostgreSQLServer, RedisCluster, RedisServer, missing_postgresql, missing_redis

pytestmark = pytest.mark.anyio

NOTICE_SECONDS = 30.0
"""Within this all reads are refused too, also on a busy machine; the service looks once a second."""


class Sent(NamedTuple):
    """A write: when it was sent, the namespace and key, and the status of its answer."""

    at: float
    namespace: str
    key: str
    status: int


class Writers:
    """Clients of some processes that write unique keys without pause, in a namespace that is there and in new ones."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls
        self.sent: list[Sent] = []
        self._numbers = itertools.count()
        self._client = httpx2.AsyncClient(timeout=BOUND_SECONDS + 10)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Writers]:
        stopping = asyncio.Event()
        async with self._client, asyncio.TaskGroup() as group:
            for number, url in enumerate(self.urls * 3):
                group.create_task(self._work(url, number, stopping))
            try:
                yield self
            finally:
                stopping.set()

    async def _work(self, url: str, number: int, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            n = next(self._numbers)
            namespace = f"n{n}" if number % 3 == 2 else "n"
            key = f"k{n}"
            at = time.monotonic()
            response = await self._client.put(f"{url}/ns/{namespace}/kv/{key}", json=key)
            self.sent.append(Sent(at, namespace, key, response.status_code))
            if response.status_code == 503:
                check_unavailable(response)
                await asyncio.sleep(0.02)
            else:
                assert response.status_code == 201, response.text

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(NOTICE_SECONDS + BOUND_SECONDS):
            while not holds():
                await asyncio.sleep(0.02)

    async def healthy(self, since: float = 0.0) -> None:
        await self.until(lambda: sum(sent.status == 201 and sent.at > since for sent in self.sent) > 40)

    def acknowledged(self, since: float = 0.0, until: float = float("inf")) -> list[Sent]:
        return [sent for sent in self.sent if sent.status == 201 and since <= sent.at < until]

    async def refused(self, since: float) -> None:
        """Wait until every process refuses all that is asked of it."""
        for url in self.urls:
            for path in ("/readyz", "/ns/n/kv/k0", "/ns/n/kv", "/ns", "/ns/n"):
                async with asyncio.timeout(NOTICE_SECONDS):
                    while (answer := await self._client.get(url + path)).status_code != 503:
                        await asyncio.sleep(0.05)
                check_unavailable(answer)
        refused_since = time.monotonic()
        await self.until(lambda: sum(sent.at > refused_since for sent in self.sent) > 10)
        assert not self.acknowledged(refused_since)


async def found(url: str, writes: list[Sent]) -> None:
    """Each of these writes is there, once the process serves again."""
    async with httpx2.AsyncClient(timeout=BOUND_SECONDS) as client:
        async with asyncio.timeout(RECOVERY_SECONDS):
            while (await client.get(f"{url}/readyz")).status_code != 200:
                await asyncio.sleep(0.05)
        for sent in writes:
            response = await client.get(f"{url}/ns/{sent.namespace}/kv/{sent.key}")
            assert response.status_code == 200, f"acknowledged and lost: {sent}"
            assert response.json() == sent.key


async def run(
    serve: Any,
    dsn: str,
    deed: Callable[[], Any],
    undo: Callable[[], Any] | None,
    *,
    processes: int = 1,
    later: bool = False,
) -> None:
    """Take the store away by ``deed`` while clients write, and give it back by ``undo`` if it can be.

    ``later``: a process that starts meanwhile makes a store of its own there.
    """
    urls = [(await asyncio.to_thread(serve, dsn)).url for _ in range(processes)]
    async with Writers(urls).running() as writers:
        await writers.healthy()
        begun = time.monotonic()
        await asyncio.to_thread(deed)
        done = time.monotonic()
        if later:
            newer = (await asyncio.to_thread(serve, dsn)).url
        await writers.refused(done)
        if undo is not None:
            await asyncio.to_thread(undo)
            undone = time.monotonic()
            await writers.healthy(undone)
    if undo is not None:
        # The same store is back, and goes on. What was acknowledged in between would have to be there too.
        for url in urls:
            await found(url, writers.acknowledged())
        return
    if not later:
        newer = (await asyncio.to_thread(serve, dsn)).url
    # Whatever was acknowledged after the deed is in the store that is there now.
    await found(newer, writers.acknowledged(since=done))
    assert writers.acknowledged(until=begun)


# --- SQLite ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """Where a file of a store is."""

    path: Path

    @property
    def dsn(self) -> str:
        return f"sqlite:///{self.path}/store.db"

    @property
    def file(self) -> Path:
        return self.path / "store.db"

    @property
    def log(self) -> Path:
        return self.path / "store.db-wal"

    @property
    def index(self) -> Path:
        return self.path / "store.db-shm"

    @property
    def aside(self) -> Path:
        return self.path.with_name("aside")


def replace_by_copy(folder: Folder) -> None:
    """As a restore does that forgets to stop the service and to remove the log: a copy takes the file's name."""
    copy = folder.path / "copy.db"
    with contextlib.closing(sqlite3.connect(folder.file)) as source:
        source.execute("VACUUM INTO ?", (str(copy),))
    copy.replace(folder.file)


def restore(folder: Folder) -> None:
    """As a restore does that only forgets to stop the service."""
    copy = folder.path / "copy.db"
    with contextlib.closing(sqlite3.connect(folder.file)) as source:
        source.execute("VACUUM INTO ?", (str(copy),))
    folder.log.unlink()
    folder.index.unlink()
    copy.replace(folder.file)


def replace_by_nothing(folder: Folder) -> None:
    empty = folder.path / "empty"
    empty.touch()
    empty.replace(folder.file)


def replace_folder(folder: Folder) -> None:
    folder.path.rename(folder.aside)
    shutil.copytree(folder.aside, folder.path)


def delete_all(folder: Folder) -> None:
    for file in folder.path.iterdir():
        file.unlink()


def truncate_log_by_rename(folder: Folder) -> None:
    shutil.copy(folder.log, folder.aside)
    folder.aside.replace(folder.log)


TAKEN: dict[str, Callable[[Folder], Any]] = {
    "deleted": lambda folder: folder.file.unlink(),
    "all deleted": delete_all,
    "its log deleted": lambda folder: folder.log.unlink(),
    "its log's index deleted": lambda folder: folder.index.unlink(),
    "its log truncated by a rename": truncate_log_by_rename,
    "replaced by a copy": replace_by_copy,
    "restored": restore,
    "replaced by nothing": replace_by_nothing,
    "its folder deleted": lambda folder: shutil.rmtree(folder.path),
    "its folder replaced": replace_folder,
}
MOVED: dict[str, tuple[Callable[[Folder], Any], Callable[[Folder], Any]]] = {
    "renamed": (lambda f: f.file.rename(f.aside), lambda f: f.aside.rename(f.file)),
    "its log renamed": (lambda f: f.log.rename(f.aside), lambda f: f.aside.rename(f.log)),
    "its index renamed": (lambda f: f.index.rename(f.aside), lambda f: f.aside.rename(f.index)),
    "its folder renamed": (lambda f: f.path.rename(f.aside), lambda f: f.aside.rename(f.path)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "data")
    folder.path.mkdir()
    return folder


@pytest.mark.parametrize("how", TAKEN)
async def test_a_file_that_is_taken_away_acknowledges_nothing(serve, folder: Folder, how: str) -> None:
    processes = 2 if how in ("deleted", "replaced by a copy") else 1
    urls = [(await asyncio.to_thread(serve, folder.dsn)).url for _ in range(processes)]
    async with Writers(urls).running() as writers:
        await writers.healthy()
        TAKEN[how](folder)
        taken = time.monotonic()
        await writers.refused(taken)
    # Here it is exact: not one write is acknowledged that was sent afterwards.
    assert not writers.acknowledged(since=taken)


@pytest.mark.parametrize("how", MOVED)
async def test_a_file_that_comes_back_goes_on(serve, folder: Folder, how: str) -> None:
    deed, undo = MOVED[how]
    await run(serve, folder.dsn, lambda: deed(folder), lambda: undo(folder))
    with contextlib.closing(sqlite3.connect(folder.file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("how", ["deleted", "all deleted", "restored", "its folder replaced"])
async def test_a_process_that_starts_meanwhile_keeps_what_it_acknowledges(serve, folder: Folder, how: str) -> None:
    """The older ones do not write into its files, and do not take them along when they stop."""
    older = [await asyncio.to_thread(serve, folder.dsn) for _ in range(2)]
    async with httpx2.AsyncClient(timeout=BOUND_SECONDS) as client:
        assert (await client.put(f"{older[0].url}/kv/before", json=1)).status_code == 201
        TAKEN[how](folder)
        try:
            newer = await asyncio.to_thread(serve, folder.dsn)
        except RuntimeError as error:
            # SQLite refuses the log of another file while others have it open. Once they have stopped it starts.
            assert "rstored: the database file" in str(error)  # noqa: PT017
            for service in older:
                assert await asyncio.to_thread(service.stop) == 0
            older.clear()
            newer = await asyncio.to_thread(serve, folder.dsn)
        for number in range(20):
            assert (await client.put(f"{newer.url}/kv/k{number}", json=number)).status_code == 201
            for service in older:
                check_unavailable(await client.put(f"{service.url}/kv/lost", json=number))
        for service in older:
            assert await asyncio.to_thread(service.stop) == 0
        assert (await client.put(f"{newer.url}/kv/last", json=1)).status_code == 201
        newer.process.kill()
        await asyncio.to_thread(newer.process.wait)
        again = await asyncio.to_thread(serve, folder.dsn)
        keys = [item["key"] for item in (await client.get(f"{again.url}/kv")).json()["items"]]
        assert set(keys) >= {"last", *(f"k{number}" for number in range(20))}
        assert "lost" not in keys


async def test_a_log_that_was_deleted_is_saved_by_a_stop(serve, folder: Folder) -> None:
    service = await asyncio.to_thread(serve, folder.dsn)
    async with httpx2.AsyncClient(timeout=BOUND_SECONDS) as client:
        for number in range(20):
            assert (await client.put(f"{service.url}/kv/k{number}", json=number)).status_code == 201
        folder.log.unlink()
        check_unavailable(await client.put(f"{service.url}/kv/k", json=1))
        await asyncio.to_thread(service.stop)
        again = await asyncio.to_thread(serve, folder.dsn)
        assert len((await client.get(f"{again.url}/kv")).json()["items"]) >= 20


@pytest.mark.skipif(os.geteuid() != 0, reason="to mount a file system takes root")
async def test_a_file_system_that_is_mounted_over_it(serve, folder: Folder) -> None:
    def mount() -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "rstore-test", str(folder.path)], check=True)

    def unmount() -> None:
        subprocess.run(["umount", "--lazy", str(folder.path)], check=True)

    try:
        mount()
    except subprocess.CalledProcessError:
        pytest.skip("no file system can be mounted here")
    unmount()
    await run(serve, folder.dsn, mount, unmount)


async def test_a_file_that_is_made_read_only(serve, folder: Folder) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write every file")
    await run(serve, folder.dsn, lambda: folder.file.chmod(0o400), lambda: folder.file.chmod(0o600))


async def test_workers_refuse_alike(serve, folder: Folder) -> None:
    service = await asyncio.to_thread(serve, folder.dsn, env={"RSTORED_WORKERS": "3"})
    async with Writers([service.url]).running() as writers:
        await writers.healthy()
        folder.file.unlink()
        taken = time.monotonic()
        await writers.refused(taken)
    assert not writers.acknowledged(since=taken)


# --- PostgreSQL --------------------------------------------------------------------------------------------

_NO_POSTGRESQL = missing_postgresql()
needs_postgresql = pytest.mark.skipif(_NO_POSTGRESQL is not None, reason=str(_NO_POSTGRESQL))


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgreSQLServer]:
    with PostgreSQLServer() as server:
        yield server


@pytest.fixture
def schema() -> str:
    return f"s{secrets.token_hex(4)}"


LOST_SCHEMAS = {
    "dropped": ("DROP SCHEMA {s} CASCADE", None),
    "a table dropped": ("DROP TABLE {s}.record CASCADE", None),
    "emptied": ("TRUNCATE {s}.record CASCADE", None),
    "renamed": ("ALTER SCHEMA {s} RENAME TO {s}_aside", "ALTER SCHEMA {s}_aside RENAME TO {s}"),
    "a table renamed": ("ALTER TABLE {s}.record RENAME TO aside", "ALTER TABLE {s}.aside RENAME TO record"),
}


@needs_postgresql
@pytest.mark.parametrize("how", LOST_SCHEMAS)
async def test_a_schema_that_is_taken_away(serve, postgresql: PostgreSQLServer, schema: str, how: str) -> None:
    deed, undo = LOST_SCHEMAS[how]
    dsn = f"{postgresql.dsn}?schema={schema}"
    if undo is None:
        urls = [(await asyncio.to_thread(serve, dsn)).url]
        async with Writers(urls).running() as writers:
            await writers.healthy()
            await asyncio.to_thread(postgresql.sql, deed.format(s=schema))
            taken = time.monotonic()
            await writers.refused(taken)
        assert not writers.acknowledged(since=taken)
    else:
        back = undo.format(s=schema)
        await run(serve, dsn, lambda: postgresql.sql(deed.format(s=schema)), lambda: postgresql.sql(back))


@needs_postgresql
async def test_a_schema_that_another_process_makes_again(serve, postgresql: PostgreSQLServer, schema: str) -> None:
    def deed() -> None:
        postgresql.sql(f"DROP SCHEMA {schema} CASCADE")

    await run(serve, f"{postgresql.dsn}?schema={schema}", deed, None, processes=2, later=True)


@needs_postgresql
async def test_another_database_behind_the_same_address(
    serve, postgresql: PostgreSQLServer, schema: str, through: Callable[[int], Awaitable[Any]]
) -> None:
    """A connection that leads to another store is not used, whichever of the pool's it is."""
    with PostgreSQLServer() as other:
        for server in (postgresql, other):
            await asyncio.to_thread(serve, f"{server.dsn}?schema={schema}")
        proxy = await through(postgresql.port)
        dsn = f"postgresql://test@127.0.0.1:{proxy.port}/test?schema={schema}"
        urls = [(await asyncio.to_thread(serve, dsn)).url for _ in range(2)]
        async with Writers(urls).running() as writers:
            await writers.healthy()
            proxy.redirect(other.port)
            redirected = time.monotonic()
            await writers.refused(redirected)
            proxy.redirect(postgresql.port, cut=False)
            await writers.healthy(time.monotonic())
        assert other.sql(f"SELECT count(*) FROM {schema}.record WHERE kind = 1") == "0"
        await found(urls[0], writers.acknowledged())


@needs_postgresql
async def test_a_standby_is_neither_written_nor_read(serve, through: Callable[[int], Awaitable[Any]]) -> None:
    with PostgreSQLServer() as primary, PostgreSQLServer(primary=primary) as standby:
        proxy = await through(primary.port)
        urls = [(await asyncio.to_thread(serve, f"postgresql://test@127.0.0.1:{proxy.port}/test")).url]
        async with Writers(urls).running() as writers:
            await writers.healthy()
            proxy.redirect(standby.port)
            redirected = time.monotonic()
            await writers.refused(redirected)
            proxy.redirect(primary.port, cut=False)
            await writers.healthy(time.monotonic())
        await found(urls[0], writers.acknowledged())


# --- Redis -------------------------------------------------------------------------------------------------

_NO_REDIS = missing_redis()
needs_redis = pytest.mark.skipif(_NO_REDIS is not None, reason=str(_NO_REDIS))


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@needs_redis
@pytest.mark.parametrize("command", ["FLUSHALL", "FLUSHDB ASYNC", "DEL {rstore}:store", "HDEL {rstore}:store h"])
async def test_a_redis_that_is_flushed(serve, redis: RedisServer, command: str) -> None:
    # Without that record a process that starts has to be told what it says.
    await run(serve, f"{redis.dsn}?buckets=1", lambda: redis.cli(*command.split()), None)


@needs_redis
async def test_a_cluster_whose_list_of_namespaces_is_flushed(serve) -> None:
    """The other masters do not know of it. The service sees it when it looks at the store again."""
    with RedisCluster() as cluster:
        url = (await asyncio.to_thread(serve, cluster.dsn)).url
        async with Writers([url]).running() as writers:
            await writers.healthy()
            (master,) = (node for node in cluster.masters() if node.cli("EXISTS", "{rstore}:store") == "1")
            assert master.cli("FLUSHALL") == "OK"
            await writers.refused(time.monotonic())


@needs_redis
@pytest.mark.parametrize("buckets", [1, 8])
async def test_a_redis_in_which_another_process_makes_the_store_again(serve, redis: RedisServer, buckets: int) -> None:
    """It has another number of buckets, so what the older ones wrote there would not be found."""
    urls = [(await asyncio.to_thread(serve, f"{redis.dsn}?buckets={buckets}")).url for _ in range(2)]
    async with Writers(urls).running() as writers:
        await writers.healthy()
        redis.cli("FLUSHALL")
        flushed = time.monotonic()
        newer = (await asyncio.to_thread(serve, f"{redis.dsn}?buckets=4")).url
        await writers.refused(flushed)
    await found(newer, writers.acknowledged(since=flushed))


@needs_redis
async def test_databases_that_are_swapped(serve, redis: RedisServer) -> None:
    def swap() -> None:
        redis.cli("SWAPDB", "0", "1")

    await run(serve, redis.dsn, swap, swap)


@needs_redis
async def test_a_redis_that_comes_back_empty(serve) -> None:
    """It keeps nothing on disk, so after a restart it is another store."""
    with RedisServer("appendonly no") as server:

        def restart() -> None:
            server.kill()
            server.start()

        await run(serve, server.dsn, restart, None)


@needs_redis
async def test_another_redis_behind_the_same_address(serve, redis: RedisServer, through) -> None:
    with RedisServer() as other:
        await asyncio.to_thread(serve, other.dsn)
        proxy = await through(redis.port)
        urls = [(await asyncio.to_thread(serve, f"redis://127.0.0.1:{proxy.port}")).url for _ in range(2)]
        async with Writers(urls).running() as writers:
            await writers.healthy()
            proxy.redirect(other.port)
            redirected = time.monotonic()
            await writers.refused(redirected)
            proxy.redirect(redis.port, cut=False)
            await writers.healthy(time.monotonic())
        assert other.cli("ZCARD", "{rstore}:i:0") == "0"
        await found(urls[0], writers.acknowledged())


@needs_redis
async def test_a_redis_that_becomes_a_replica(serve, redis: RedisServer) -> None:
    with RedisServer() as primary:

        def demote() -> None:
            redis.cli("CONFIG", "SET", "replica-serve-stale-data", "yes")
            # It does not reach its primary, so it keeps what it has.
            primary.pause()
            redis.cli("REPLICAOF", "127.0.0.1", str(primary.port))

        def promote() -> None:
            redis.cli("REPLICAOF", "NO", "ONE")
            primary.resume()

        await run(serve, redis.dsn, demote, promote)


@needs_redis
@pytest.mark.parametrize("setting", ["min-replicas-to-write", "maxmemory"])
async def test_a_redis_that_refuses_writes_is_still_read(serve, redis: RedisServer, setting: str) -> None:
    url = (await asyncio.to_thread(serve, redis.dsn)).url
    async with httpx2.AsyncClient(timeout=BOUND_SECONDS) as client:
        assert (await client.put(f"{url}/kv/k", json=1)).status_code == 201
        redis.cli("CONFIG", "SET", setting, "1")
        for number in range(5):
            answer = await client.put(f"{url}/kv/lost{number}", json=1)
            assert answer.status_code in (503, 507), answer.text
        assert (await client.get(f"{url}/kv/k")).json() == 1
        redis.cli("CONFIG", "SET", setting, "0")
        async with asyncio.timeout(RECOVERY_SECONDS):
            while (await client.put(f"{url}/kv/k", json=2)).status_code != 204:
                await asyncio.sleep(0.05)
        assert len((await client.get(f"{url}/kv")).json()["items"]) == 1
