"""What docs/operating.md says of the backends is so: the words on durability, and the commands for a backup."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

import httpx2
import pytest
from tests import servers
from tests.waiting import SECONDS_MAX

from rstore.core.encodings import Encoding, Value
from rstore.core.media_types import JSON_MEDIA_TYPE
from rstore.core.points import Points
from rstored.backends import backend_class
from rstored.backends.redis.dsn import PARAMETERS
from rstored.engine.engine import Engine

pytestmark = pytest.mark.anyio

TEXT = (Path(__file__).parents[3] / "docs" / "operating.md").read_text(encoding="utf-8")
BACKUP = TEXT.partition("## Backup and restore\n")[2].partition("\n## ")[0]
SQLITE, DUMP, RESTORE, REDIS = re.findall(r"^```sh\n(.*?)^```$", BACKUP, re.MULTILINE | re.DOTALL)


async def test_the_words_on_durability_are_those_of_the_backend(backend):
    for part in backend.describe()["durability"].split("; "):
        assert part in TEXT


def test_every_parameter_of_a_redis_connection_is_explained():
    section = TEXT.partition("#### Parameters of a Redis connection\n")[2].partition("\n#")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert told == list(PARAMETERS)


def test_a_backend_that_may_lose_writes_is_warned_of_at_the_start_and_at_the_root(serve):
    with servers.RedisServer("appendonly no") as server:
        service = serve(server.dsn)
        told = httpx2.get(service.url).json()["backend"]
        assert "in memory only" in told["warning"]
        lines = [json.loads(line) for line in service.log.splitlines()]
        assert [line["message"] for line in lines if line["level"] == "warning"] == [told["warning"]]


def run(script: str, folder: Path, dsn: str = "") -> None:
    for program in {line.split()[0] for line in script.splitlines()}:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env={"PATH": str(Path(shutil.which("bash")).parent) + ":/usr/local/bin:/usr/bin:/bin", "DSN": dsn},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


async def write(dsn: str, value: bytes, number: int) -> None:
    backend = await backend_class(dsn).open(dsn)
    engine = Engine(backend)
    await engine.kv.put("n", "k", value=Value(Encoding.JSON, value), media_type=JSON_MEDIA_TYPE)
    await engine.ts.extend("n", "s", Points.from_pairs((t, t) for t in range(number)))
    await engine.stop()
    await backend.close()


async def check(dsn: str, value: bytes, number: int) -> None:
    """The store is as :func:`write` left it, and takes writes."""
    backend = await backend_class(dsn).open(dsn)
    engine = Engine(backend)
    assert (await engine.kv.get("n", "k")).value.data == value
    assert (await engine.ts.last("n", "s")).timestamps[0] == number - 1
    assert (await engine.namespaces.describe("n")).kv == 1
    await engine.kv.put("n", "another", value=Value(Encoding.JSON, value), media_type=JSON_MEDIA_TYPE)
    assert await engine.kv.count("n") == 2
    await engine.stop()
    await backend.close()


async def test_a_copy_of_a_sqlite_file_in_use_is_a_store(tmp_path):
    dsn = f"sqlite:///{tmp_path}/rstore.db"
    await write(dsn, b"1", 1_000)
    backend = await backend_class(dsn).open(dsn)
    run(SQLITE, tmp_path)
    await backend.close()
    await write(dsn, b"2", 2_000)
    for name in ("copy.db", "compact.db"):
        with sqlite3.connect(tmp_path / name) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        await check(f"sqlite:///{tmp_path}/{name}", b"1", 1_000)


async def test_a_dump_of_postgresql_restores_the_store(tmp_path):
    reason = servers.missing_postgresql()
    if reason is not None:
        pytest.skip(reason)
    # Of its own, since the commands name the schema that a store has by default.
    with servers.PostgreSQLServer() as server:
        await write(server.dsn, b"1", 1_000)
        run(DUMP, tmp_path, server.dsn)
        await write(server.dsn, b"2", 2_000)
        run(RESTORE, tmp_path, server.dsn)
        await check(server.dsn, b"1", 1_000)


async def test_a_snapshot_of_redis_restores_the_store(tmp_path):
    reason = servers.missing_redis()
    if reason is not None:
        pytest.skip(reason)
    with servers.RedisServer() as server:
        await write(server.dsn, b"1", 1_000)
        run(REDIS, tmp_path, server.dsn)
        await write(server.dsn, b"2", 2_000)
        server.stop()
        shutil.copy(tmp_path / "rstore.rdb", server.folder / "dump.rdb")
        shutil.rmtree(server.folder / "appendonlydir")
        durable, server.options = server.options, ("appendonly no",)
        server.start()
        assert server.cli("CONFIG", "SET", "appendonly", "yes") == "OK"
        deadline = time.monotonic() + SECONDS_MAX
        while re.search("aof_rewrite_(in_progress|scheduled):1", server.cli("INFO", "persistence")):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        server.stop()
        server.options = durable
        server.start()
        await check(server.dsn, b"1", 1_000)
