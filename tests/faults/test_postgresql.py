"""What PostgreSQL's failures look like from outside, and that nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import psycopg
import pytest
from tests.faults.load import BOUND_SECONDS, RECOVERY_SECONDS, Applies, Load, check_unavailable, recovered
from tests.servers import PostgreSQLServer, missing_postgresql
from tests.waiting import SECONDS_MAX

_MISSING = missing_postgresql()
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQLServer]:
    """A server that the tests of this module share; each leaves it as it was."""
    with PostgreSQLServer("max_connections = 12") as server:
        yield server


@pytest.fixture
def schema() -> str:
    return f"s{secrets.token_hex(4)}"


async def configure(server: PostgreSQLServer, setting: str, value: str) -> None:
    """Change a setting of the running server, and wait until it counts."""
    server.sql(f"ALTER SYSTEM SET {setting} = '{value}'")
    server.sql("SELECT pg_reload_conf()")
    async with asyncio.timeout(SECONDS_MAX):
        while server.sql(f"SHOW {setting}") != value:
            await asyncio.sleep(0.02)


# --- servers that die --------------------------------------------------------------------------------------


async def test_killed_and_restarted_under_load(serve) -> None:
    with PostgreSQLServer() as server:
        load = Load(serve(server.dsn).url)
        async with load.running():
            await load.healthy()
            server.kill()
            await load.troubled()
            await asyncio.to_thread(server.start)
            await load.healthy()
            # One of its processes dies: it ends all the others and starts again by itself.
            os.kill(int(server.sql("SELECT pid FROM pg_stat_activity WHERE usename = 'test' LIMIT 1")), signal.SIGKILL)
            await load.healthy()
        await load.verify()


async def test_its_replica_is_promoted(serve) -> None:
    """With synchronous replication, nothing that was acknowledged by the old primary is missing on the new one."""
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(PostgreSQLServer())
        replica = stack.enter_context(PostgreSQLServer(primary=primary))
        await configure(primary, "synchronous_standby_names", "*")
        dsn = f"postgresql://test@127.0.0.1:{primary.port},127.0.0.1:{replica.port}/test"
        load = Load(serve(dsn).url)
        async with load.running():
            await load.healthy()
            primary.kill()
            await load.troubled()
            await asyncio.to_thread(replica.promote)
            await load.healthy()
        await load.verify()


async def test_a_commit_that_reached_no_replica_is_not_acknowledged(serve, client: httpx2.AsyncClient) -> None:
    """The server itself reports a commit as done when the wait for the replica is cancelled; the service must not.

    It learns of that by a warning, whatever the DSN says of warnings.
    """
    with PostgreSQLServer() as server:
        url = serve(f"{server.dsn}?options=-c client_min_messages=error").url
        assert (await client.put(f"{url}/kv/k", json=1)).status_code == 201
        await configure(server, "synchronous_standby_names", "absent")
        cancelled = asyncio.create_task(client.put(f"{url}/kv/k", json=2))
        async with asyncio.timeout(SECONDS_MAX):
            while not (pid := server.sql("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")):
                await asyncio.sleep(0.02)
        server.sql(f"SELECT pg_cancel_backend({pid})")
        check_unavailable(await cancelled)
        await configure(server, "synchronous_standby_names", "")
        await recovered(client, url)
        assert (await client.get(f"{url}/kv/k")).json() in (1, 2)


# --- connections that break --------------------------------------------------------------------------------


async def test_a_connection_is_cut_at_every_stage_of_a_batch(
    serve, server: PostgreSQLServer, schema: str, through, client: httpx2.AsyncClient
) -> None:
    proxy = await through(server.port)
    dsn = f"postgresql://test@127.0.0.1:{proxy.port}/test?schema={schema}"
    url = (await asyncio.to_thread(serve, dsn)).url
    applies = Applies(client, url)
    await applies.apply()

    async def over_a_new_connection() -> dict[str, int]:
        """How much is sent each way until an apply is acknowledged: statements are prepared, so only once in full."""
        proxy.cut_all()
        before = dict(proxy.bytes)
        await applies.apply()
        return {way: proxy.bytes[way] - before[way] for way in before}

    sizes = await over_a_new_connection()
    assert min(sizes.values()) > 1000
    struck = 0
    for way, size in sizes.items():
        for n in range(0, size, max(1, size // 16)):
            proxy.cut_after(way, n + 1)
            before_this = proxy.cuts
            await over_a_new_connection()
            struck += proxy.cuts > before_this
    # Sometimes there is another connection, and less to send over this one.
    assert struck >= 24
    # The batch's last words: cut before them it is done again, cut behind them nobody can tell.
    for pass_on in (False, True):
        proxy.cut_all()
        before_this = proxy.cuts
        proxy.cut_at(b"COMMIT", b"id-%d" % applies.next, pass_on=pass_on)
        assert await applies.apply() == 503
        assert proxy.cuts == before_this + 1
    proxy.heal()
    await applies.verify()


async def test_the_network_falls_silent(
    serve, server: PostgreSQLServer, schema: str, through, client: httpx2.AsyncClient
) -> None:
    proxy = await through(server.port)
    dsn = f"postgresql://test@127.0.0.1:{proxy.port}/test?schema={schema}"
    url = (await asyncio.to_thread(serve, dsn)).url
    load = Load(url, clients=4)
    async with load.running():
        await load.healthy()
        proxy.freeze()
        check_unavailable(await client.get(f"{url}/readyz"))
        assert (await client.get(f"{url}/healthz")).status_code == 200
        await load.troubled()
        proxy.heal()
        await load.healthy()
    await load.verify()


# --- what is short -----------------------------------------------------------------------------------------


async def test_no_connection_is_to_be_had(
    serve, server: PostgreSQLServer, schema: str, client: httpx2.AsyncClient
) -> None:
    url = serve(f"{server.dsn}?schema={schema}").url
    assert (await client.put(f"{url}/kv/k", json=1)).status_code == 201
    async with contextlib.AsyncExitStack() as stack:
        # Others take every place as soon as it is free.
        ours: list[Any] = []
        async with asyncio.timeout(RECOVERY_SECONDS):
            while True:
                pids = ",".join(str(connection.info.backend_pid) for connection in ours) or "0"
                theirs = f"pg_stat_activity WHERE usename = 'test' AND pid NOT IN ({pids})"
                server.sql(f"SELECT pg_terminate_backend(pid) FROM {theirs}")
                try:
                    while True:
                        connection = await psycopg.AsyncConnection.connect(server.dsn)
                        ours.append(await stack.enter_async_context(connection))
                except psycopg.OperationalError:
                    count = server.sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'test'")
                    if int(count) == len(ours):
                        break
        started = time.monotonic()
        answers = await asyncio.gather(
            *(client.get(f"{url}/kv/k") for _ in range(5)), *(client.put(f"{url}/kv/k", json=2) for _ in range(5))
        )
        assert time.monotonic() - started < BOUND_SECONDS
        for answer in answers:
            check_unavailable(answer)
        check_unavailable(await client.get(f"{url}/readyz"))
    await recovered(client, url)
    assert (await client.get(f"{url}/kv/k")).json() == 1


async def test_a_statement_times_out(serve, server: PostgreSQLServer, schema: str, client: httpx2.AsyncClient) -> None:
    """A lock on everything holds up reads and writes alike; a lock on one record that record's writes alone."""
    url = serve(f"{server.dsn}?schema={schema}").url
    keys = [f"k{n}" for n in range(20)]
    for key in keys:
        assert (await client.put(f"{url}/kv/{key}", json=1)).status_code == 201
    async with await psycopg.AsyncConnection.connect(server.dsn) as other:
        await other.execute(f"LOCK TABLE {schema}.record IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        answers = await asyncio.gather(client.get(f"{url}/kv/k7"), client.put(f"{url}/kv/k7", json=2))
        assert time.monotonic() - started < BOUND_SECONDS
        for answer in answers:
            check_unavailable(answer)
        assert (await client.get(f"{url}/healthz")).status_code == 200
        await other.rollback()
        await recovered(client, url)
        await other.execute(f"SELECT FROM {schema}.record WHERE key = 'k7' FOR UPDATE")
        started = time.monotonic()
        answered = await asyncio.gather(*(client.put(f"{url}/kv/{key}", json=3) for key in keys))
        check_unavailable(answered.pop(7))
        assert {answer.status_code for answer in answered} == {204}
        assert time.monotonic() - started < BOUND_SECONDS
        assert (await client.get(f"{url}/kv/k7")).json() in (1, 2)
        await other.rollback()
    assert (await client.put(f"{url}/kv/k7", json=3)).status_code == 204
    values = [(await client.get(f"{url}/kv/{key}")).json() for key in keys]
    assert values == [3] * len(keys)


async def test_the_server_takes_no_writes_for_a_while(serve, client: httpx2.AsyncClient) -> None:
    with PostgreSQLServer() as server:
        url = serve(server.dsn).url
        assert (await client.put(f"{url}/kv/k", json=1)).status_code == 201
        await configure(server, "default_transaction_read_only", "on")
        async with asyncio.timeout(RECOVERY_SECONDS):
            while (answer := await client.put(f"{url}/kv/k", json=1)).status_code == 204:
                await asyncio.sleep(0.05)
        check_unavailable(answer)
        assert (await client.get(f"{url}/kv/k")).json() == 1
        await configure(server, "default_transaction_read_only", "off")
        await recovered(client, url)
