"""Disks that are full: small file systems of their own, which take root."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests import servers
from tests.faults.load import BOUND_SECONDS

from rstored.backends.sqlite import SQLiteBackend
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

LARGE = "x" * 10_000


class Disk:
    """A file system of some MiB, and a file on it that takes what is left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    @property
    def dsn(self) -> str:
        return f"sqlite:///{self.folder}/store.db"

    def fill(self, *, but_bytes: int = 0) -> None:
        """Leave so many bytes, and no more."""
        with self._filler.open("ab", buffering=0) as file:
            status = os.statvfs(self.folder)
            if (size := status.f_bavail * status.f_frsize - but_bytes) > 0:
                os.posix_fallocate(file.fileno(), file.tell(), size)

    def free(self) -> None:
        self._filler.unlink()

    def check(self) -> None:
        """The file on it is sound."""
        with closing(sqlite3.connect(self.folder / "store.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@contextmanager
def mounted(folder: Path, size_mib: int) -> Iterator[Disk]:
    """A small file system in a new folder."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "rstore-test", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = f"FULL DISKS ARE NOT TESTED: no file system can be mounted here: {done.stderr.strip()}"
        if os.geteuid() == 0 and os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", 4) as disk:
        yield disk


class Writer:
    """Puts values, and knows which were acknowledged."""

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        self.client = client
        self.url = url
        self.acknowledged: dict[str, Any] = {}
        self._numbers = itertools.count(1)

    async def put(self, value: str = LARGE) -> bool:
        """Whether it was written; if not, the disk was full."""
        key = f"key-{next(self._numbers):05}"
        response = await self.client.put(f"{self.url}/kv/{key}", json=value)
        if response.status_code == 201:
            self.acknowledged[key] = value
            return True
        check_full(response)
        return False

    async def until_full(self) -> None:
        """Write until large values and then small ones do not fit any more, several clients at a time."""
        for value in (LARGE, "x"):
            while any(await asyncio.gather(*(self.put(value) for _ in range(4)))):
                assert len(self.acknowledged) < 50_000

    async def verify(self) -> None:
        """What was acknowledged is there, and nothing else."""
        found: dict[str, Any] = {}
        cursor: str | None = ""
        while cursor is not None:
            response = await self.client.get(f"{self.url}/kv?values=true{cursor and f'&cursor={cursor}'}")
            assert response.status_code == 200, response.text
            found |= {item["key"]: item["value"] for item in response.json()["items"]}
            cursor = response.json()["cursor"]
        assert found == self.acknowledged
        described = (await self.client.get(f"{self.url}/ns/default")).json()
        assert described["kv"] == len(found)


def check_full(response: httpx2.Response) -> None:
    assert response.status_code == 507, (response.status_code, response.text)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "storage-full"
    assert "free some space" in response.json()["detail"]


@pytest.fixture
async def client(anyio_backend: str):
    async with httpx2.AsyncClient(timeout=BOUND_SECONDS) as client:
        yield client


async def test_writes_are_refused_whole_while_it_is_full_and_go_on_when_there_is_room(
    serve, disk: Disk, client: httpx2.AsyncClient
) -> None:
    service = serve(disk.dsn)
    writer = Writer(client, service.url)
    series, sequence = f"{service.url}/ts/series/range", f"{service.url}/es/sequence"
    points = {"points": [[t, "before"] for t in range(2_000)]}
    assert (await client.post(series, json=points)).status_code == 200
    applied = await client.post(f"{sequence}/events", json={"events": [{"item": "a", "value": 1}]})
    assert applied.status_code == 200
    for _ in range(20):
        assert await writer.put()

    for _ in range(2):
        disk.fill()
        await writer.until_full()
        batch = {
            "set": [{"key": f"part-{n}", "value": LARGE} for n in range(40)],
            "delete": list(writer.acknowledged)[:9],
        }
        larger = {"points": [[t, f"after {t:0100}"] for t in range(10_000)]}
        event = {"events": [{"item": item, "value": LARGE} for item in "abc"]}
        # Together they are one transaction, which is done again for each of them alone.
        for response in await asyncio.gather(
            client.post(f"{service.url}/kv", json=batch),
            client.post(series, json=larger),
            client.post(f"{sequence}/events", json=event),
        ):
            check_full(response)
        assert (await client.get(series)).json() == points
        assert (await client.get(f"{sequence}/current")).json() == applied.json()
        assert (await client.get(f"{service.url}/readyz")).status_code == 200
        await writer.verify()
        disk.check()
        disk.free()
        assert await writer.put()
        await writer.verify()


@pytest.fixture
def large_disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "large-disk", 40) as disk:
        yield disk


async def test_the_log_cannot_be_copied_into_the_file(serve, large_disk: Disk, client: httpx2.AsyncClient) -> None:
    disk = large_disk
    service = serve(disk.dsn)
    writer = Writer(client, service.url)
    log = disk.folder / "store.db-wal"
    # The log is copied into the file, which then has to grow by as much, once it holds 4,000 pages.
    while log.stat().st_size < 3_900 * 4_096:
        assert await writer.put(100 * LARGE)
    size = (disk.folder / "store.db").stat().st_size
    disk.fill(but_bytes=2**21)
    await writer.until_full()
    assert log.stat().st_size > 4_000 * 4_096
    assert (disk.folder / "store.db").stat().st_size < size + 3 * 2**20
    await writer.verify()
    disk.check()
    service.process.kill()
    service = await asyncio.to_thread(serve, disk.dsn)
    writer.url = service.url
    await writer.verify()
    disk.free()
    assert await writer.put()
    await writer.verify()
    disk.check()


async def test_the_service_starts_and_stops_on_a_full_disk(serve, disk: Disk, client: httpx2.AsyncClient) -> None:
    service = serve(disk.dsn)
    writer = Writer(client, service.url)
    disk.fill(but_bytes=2**20)
    await writer.until_full()
    for stop in (service.process.kill, service.stop):
        stop()
        await asyncio.to_thread(service.close)
        # A clean stop removes the log; opening the file takes the 32 KiB of the log's index, but nothing is written.
        disk.fill(but_bytes=2**15)
        service = await asyncio.to_thread(serve, disk.dsn)
        writer.url = service.url
        await writer.verify()
        await writer.until_full()
        await writer.verify()
        disk.check()
    disk.free()
    assert await writer.put()
    await writer.verify()


@pytest.mark.parametrize("left_bytes", [0, 2**14], ids=["none", "too-little"])
async def test_a_file_that_cannot_be_made_or_opened_for_want_of_room(disk: Disk, left_bytes: int) -> None:
    for _ in range(2):
        disk.fill(but_bytes=left_bytes)
        with pytest.raises(Problem, match="is full: free some space") as caught:
            await SQLiteBackend.open(disk.dsn)
        assert caught.value.code == "storage-full"
        disk.free()
        # The second time it is there, and only the index of its log has no room.
        await (await SQLiteBackend.open(disk.dsn)).close()


@pytest.mark.skipif(servers.missing_postgresql() is not None, reason=str(servers.missing_postgresql()))
async def test_a_full_tablespace_of_postgresql(serve, client: httpx2.AsyncClient) -> None:
    with servers.PostgreSQLServer() as server, mounted(server.folder / "small", 16) as disk:
        if server.user is not None:
            shutil.chown(disk.folder, server.user)
        server.sql(f"CREATE TABLESPACE small LOCATION '{disk.folder}'")
        server.sql("GRANT CREATE ON TABLESPACE small TO test")
        server.sql("ALTER ROLE test SET default_tablespace = 'small'")
        service = await asyncio.to_thread(serve, server.dsn)
        writer = Writer(client, service.url)
        for _ in range(20):
            assert await writer.put()
        disk.fill()
        await writer.until_full()
        batch = {"set": [{"key": f"part-{n}", "value": LARGE} for n in range(40)]}
        check_full(await client.post(f"{service.url}/kv", json=batch))
        await writer.verify()
        disk.free()
        assert await writer.put()
        await writer.verify()
