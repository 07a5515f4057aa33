"""What a Redis Cluster's failures look like from outside, and that nothing but what it warns of is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from tests.faults.load import Load
from tests.servers import RedisCluster, RedisServer, binary, missing_redis
from tests.waiting import SECONDS_MAX

_MISSING = missing_redis()
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(_MISSING is not None, reason=str(_MISSING))]


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster("appendonly yes", "appendfsync always") as cluster:
        yield cluster


async def replicated(master: RedisServer) -> None:
    """Wait until the replica has all that the master has now."""
    wanted = 0
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            lines = dict(line.split(":", 1) for line in master.cli("INFO", "replication").splitlines() if ":" in line)
            wanted = wanted or int(lines["master_repl_offset"])
            replica = dict(field.split("=") for field in lines.get("slave0", "offset=-1").split(","))
            if int(replica["offset"]) >= wanted:
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("failure", ["dies", "hangs"])
async def test_a_replica_takes_over_from_its_master(serve, cluster: RedisCluster, failure: str) -> None:
    """What the replica had is there. What was acknowledged in the moment before may be gone, as ``/`` says."""
    service = serve(cluster.dsn)
    load = Load(service.url, lossy=True)
    async with load.running():
        await load.healthy()
        victim = cluster.masters()[0]
        survivors = [node for node in cluster.nodes if node is not victim]
        lost_after = time.monotonic()
        await replicated(victim)
        if failure == "dies":
            victim.kill()
        else:
            victim.pause()
        # Few may notice: what was not sent waits for the successor.
        async with asyncio.timeout(SECONDS_MAX):
            while sum(node.cli("ROLE").startswith("master") for node in survivors) < 3:
                await asyncio.sleep(0.1)
        await load.healthy()
        # It comes back and becomes a replica.
        if failure == "dies":
            await asyncio.to_thread(victim.start)
        else:
            victim.resume()
        async with asyncio.timeout(SECONDS_MAX):
            while len(cluster.replicas()) < 3:
                await asyncio.sleep(0.1)
        lost_before = time.monotonic()
        await load.healthy()
    await load.verify(lost_after=lost_after, lost_before=lost_before)


async def test_masters_change_and_slots_move_by_hand(serve, cluster: RedisCluster) -> None:
    """Nothing that was acknowledged is lost: Redis hands over what it has before somebody else serves it."""
    service = serve(f"{cluster.dsn}?buckets=64")
    load = Load(service.url)
    async with load.running():
        await load.healthy()
        for replica in cluster.replicas():
            assert replica.cli("CLUSTER", "FAILOVER") == "OK"
            async with asyncio.timeout(SECONDS_MAX):
                while not replica.cli("ROLE").startswith("master") or len(cluster.replicas()) < 3:
                    await asyncio.sleep(0.1)
            await load.healthy()
        one, two, three = cluster.masters()
        for giver, taker in ((one, two), (two, three)):
            await moved(giver, taker, slots=1_000)
            await load.healthy()
    await load.verify()


async def moved(giver: RedisServer, taker: RedisServer, slots: int) -> None:
    """Have a node take slots of another, and all that is in them."""
    program = binary("redis-cli", "valkey-cli")
    assert program is not None
    ends = ("--cluster-from", giver.cli("CLUSTER", "MYID"), "--cluster-to", taker.cli("CLUSTER", "MYID"))
    moving = await asyncio.create_subprocess_exec(
        *(program, "--cluster", "reshard", f"127.0.0.1:{giver.port}", *ends),
        *("--cluster-slots", str(slots), "--cluster-yes"),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await moving.wait() == 0
