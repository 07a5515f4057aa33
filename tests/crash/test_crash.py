"""The service and its servers are killed (-9) at any moment; nothing acknowledged is lost, and nothing is half done.

``make test`` kills a few times, ``make crash-test`` 100 times on each backend. The moments are random;
``RSTORE_CRASH_SEED`` chooses those of an earlier run.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from tests import servers
from tests.conformance.backends import BACKENDS
from tests.conftest import ServiceProcess
from tests.crash.workload import KILLS, LONG, PLANTED, Crash
from tests.faults.load import BOUND_SECONDS, HEAL_SECONDS, recovered

pytestmark = pytest.mark.anyio


def check_file(dsn: str) -> None:
    """A SQLite file is sound, and nothing in it belongs to nothing."""
    path = dsn.removeprefix("sqlite:///")
    if path == dsn:
        return
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        owners = "SELECT id FROM record UNION SELECT record_id FROM trash"
        orphans = f"SELECT count(*) FROM record_row WHERE record_id NOT IN ({owners})"
        assert connection.execute(orphans).fetchone() == (0,)


async def settled(dsn: str) -> None:
    """Wait until PostgreSQL has noticed that the service is gone; until then it may still commit for it."""
    if dsn.startswith("postgresql:"):
        others = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'test' AND state <> 'idle'"
        async with asyncio.timeout(HEAL_SECONDS):
            async with await psycopg.AsyncConnection.connect(dsn.partition("?")[0], autocommit=True) as connection:
                while await (await connection.execute(others)).fetchone() != (1,):
                    await asyncio.sleep(0.02)


async def crashed(
    serve, dsn: str, seed: int, kills: int, server: servers.Server | None = None, **options: Any
) -> Crash:
    """Kill the service, or the ``server`` that it keeps things on, or both, and check after the next start."""
    chance = random.Random(seed)
    crash = Crash(seed)
    service = await asyncio.to_thread(serve, dsn, **options)
    await crash.prepare(service.url)
    for _ in range(kills):
        with_service = server is None or chance.random() < 0.5

        async def kill(service: ServiceProcess = service, with_service: bool = with_service) -> None:
            await crash.progress(chance.randrange(40))
            await asyncio.sleep(chance.uniform(0, 0.05))
            if with_service:
                service.process.kill()
            if server is not None:
                server.kill()
                await asyncio.to_thread(server.start)
            if with_service:
                await asyncio.to_thread(service.close)
            else:
                async with httpx2.AsyncClient(timeout=BOUND_SECONDS) as client:
                    await recovered(client, f"{service.url}/ns/healed")

        await crash.write(service.url, kill)
        if with_service:
            await settled(dsn)
            service = await asyncio.to_thread(serve, dsn, **options)
        await crash.verify(service.url)
        check_file(dsn)
    return crash


@pytest.mark.parametrize("name", BACKENDS)
async def test_the_service_is_killed(serve, tmp_path: Path, name: str, seed: int) -> None:
    case = BACKENDS[name]
    if reason := case.missing():
        pytest.skip(reason)
    crash = await crashed(serve, case.fresh(tmp_path), seed, KILLS)
    print(f"{name}: {crash.tally}")
    assert crash.tally.acknowledged > 0
    if LONG:
        # The moments were in the midst of something, before commits as well as behind them.
        assert crash.tally.happened > 0
        assert crash.tally.vanished > 0


@pytest.mark.parametrize(
    ("server_class", "missing"),
    [(servers.PostgreSQLServer, servers.missing_postgresql), (servers.RedisServer, servers.missing_redis)],
    ids=["postgresql", "redis"],
)
async def test_the_server_is_killed(serve, server_class, missing, seed: int) -> None:
    if reason := missing():
        pytest.skip(reason)
    with server_class() as server:
        crash = await crashed(serve, server.dsn, seed, max(1, KILLS // 4), server)
    print(f"{server_class.__name__}, with the service and without: {crash.tally}")
    assert crash.tally.acknowledged > 0


@pytest.mark.parametrize("bug", ["acknowledge-early", "commit-halves"])
async def test_the_checker_finds_a_planted_bug(serve, tmp_path: Path, bug: str, seed: int) -> None:
    with pytest.raises(AssertionError) as raised:
        await crashed(serve, f"sqlite:///{tmp_path}/store.db", seed, 20, prefix=[sys.executable, str(PLANTED), bug])
    assert "verify" in {entry.name for entry in raised.traceback}
    print(f"{bug}: {raised.value!s:.300}")
