"""What Redis's failures look like from outside, and that nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator

import httpx2
import pytest
from tests.faults.load import BOUND_SECONDS, Applies, Load, check_unavailable, recovered
from tests.servers import RedisServer, missing_redis

_MISSING = missing_redis()
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server that the tests of this module share; each leaves it as it was."""
    with RedisServer("appendonly yes", "appendfsync always", "enable-debug-command yes") as server:
        yield server


@pytest.fixture
def prefix() -> str:
    return f"p{secrets.token_hex(4)}"


# --- servers that die --------------------------------------------------------------------------------------


async def test_killed_and_restarted_under_load(serve) -> None:
    with RedisServer("appendonly yes", "appendfsync always") as server:
        load = Load(serve(server.dsn).url)
        async with load.running():
            await load.healthy()
            for _ in range(3):
                server.kill()
                await load.troubled()
                await asyncio.to_thread(server.start)
                await load.healthy()
        await load.verify()


# --- connections that break --------------------------------------------------------------------------------


async def test_a_connection_is_cut_at_every_stage_of_a_batch(
    serve, server: RedisServer, prefix: str, through, client: httpx2.AsyncClient
) -> None:
    proxy = await through(server.port)
    url = (await asyncio.to_thread(serve, f"redis://127.0.0.1:{proxy.port}?prefix={prefix}")).url
    applies = Applies(client, url)
    await applies.apply()
    # Over a connection as new as it is after each cut: how much a batch sends and is sent.
    proxy.cut_all()
    await applies.apply()
    before = dict(proxy.bytes)
    await applies.apply()
    sizes = {way: proxy.bytes[way] - before[way] for way in proxy.bytes}
    assert min(sizes.values()) > 20
    cuts, refused = proxy.cuts, 0
    for way, size in sizes.items():
        for n in range(0, size, max(1, size // 24)):
            proxy.cut_after(way, n + 1)
            refused += await applies.apply() == 503
    # Some of them hit the commit: cut before the answer to it, nobody can tell what became of it.
    assert refused > 0
    assert proxy.cuts >= cuts + 32
    proxy.heal()
    await applies.verify()


async def test_the_network_falls_silent(
    serve, server: RedisServer, prefix: str, through, client: httpx2.AsyncClient
) -> None:
    proxy = await through(server.port)
    url = (await asyncio.to_thread(serve, f"redis://127.0.0.1:{proxy.port}?prefix={prefix}")).url
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


async def test_no_connection_is_to_be_had(serve, server: RedisServer, prefix: str, client: httpx2.AsyncClient) -> None:
    url = serve(f"{server.dsn}?prefix={prefix}").url
    assert (await client.put(f"{url}/kv/k", json=1)).status_code == 201
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

    async def tell(command: str) -> bytes:
        writer.write(f"{command}\r\n".encode())
        return await reader.readline()

    try:
        # This connection stays; there is no other to be had.
        assert await tell("CONFIG SET maxclients 1") == b"+OK\r\n"
        assert (await tell("CLIENT KILL TYPE normal SKIPME yes")).startswith(b":")
        started = time.monotonic()
        answers = await asyncio.gather(
            *(client.get(f"{url}/kv/k") for _ in range(5)), *(client.put(f"{url}/kv/k", json=2) for _ in range(5))
        )
        assert time.monotonic() - started < BOUND_SECONDS
        for answer in answers:
            check_unavailable(answer)
        check_unavailable(await client.get(f"{url}/readyz"))
    finally:
        assert await tell("CONFIG SET maxclients 10000") == b"+OK\r\n"
        writer.close()
    await recovered(client, url)
    assert (await client.get(f"{url}/kv/k")).json() == 1


async def test_slow_is_not_down(serve, server: RedisServer, prefix: str, client: httpx2.AsyncClient) -> None:
    """A server that is busy for a moment makes requests wait, no more."""
    url = serve(f"{server.dsn}?prefix={prefix}").url
    assert (await client.put(f"{url}/kv/k", json=1)).status_code == 201
    sleeping = asyncio.create_task(asyncio.to_thread(server.cli, "DEBUG", "SLEEP", "2"))
    await asyncio.sleep(0.3)
    answers = await asyncio.gather(
        *(client.get(f"{url}/kv/k") for _ in range(10)), *(client.put(f"{url}/kv/k{n}", json=2) for n in range(10))
    )
    assert {answer.status_code for answer in answers} == {200, 201}
    assert await sleeping == "OK"


async def test_a_server_that_forgot_its_scripts(
    serve, server: RedisServer, prefix: str, client: httpx2.AsyncClient
) -> None:
    """A write whose script is not there is sent again, and so is the read that was to see what it wrote."""
    url = serve(f"{server.dsn}?prefix={prefix}").url
    for turn in range(5):
        assert server.cli("SCRIPT", "FLUSH") == "OK"
        # Reading brings back the script that reads, and not the one that writes.
        assert (await client.get(f"{url}/kv/k")).status_code == 404
        points = [{"points": [[10 * turn + n, n]]} for n in range(10)]
        answers = await asyncio.gather(*(client.post(f"{url}/ts/series/range", json=body) for body in points))
        assert {answer.status_code for answer in answers} == {200}
        found = (await client.get(f"{url}/ts/series/range")).json()["points"]
        assert [t for t, _ in found] == list(range(10 * turn + 10))
