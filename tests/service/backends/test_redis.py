"""What is peculiar to Redis and Redis Cluster; test_contract.py has what they share with every backend."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.crc import key_slot
from tests import servers
from tests.reading import read
from tests.waiting import SECONDS_MAX, until

from rstored.backends import backend_class
from rstored.backends.abc import (
    Commit,
    CountRead,
    DeleteRecord,
    ExpiredRead,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    PutHead,
    PutRow,
    Row,
    RowScan,
    SchemaVersions,
    Slice,
    Update,
    Write,
    namespace_place,
)
from rstored.backends.redis import RedisBackend
from rstored.backends.redis import servers as redis_servers
from rstored.backends.redis.calls import Call
from rstored.engine.batching import WAIT_SECONDS
from rstored.engine.engine import Engine
from rstored.problems import Problem

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(servers.missing_redis() is not None, reason="no Redis server is installed"),
]

NS = namespace_place("ns")


def kv(key: str, namespace: str = "ns") -> Place:
    return Place(namespace, Kind.KV, key)


def writing(*writes: Write, answer: Any = None) -> Update[Any]:
    def plan(heads):
        creation = [PutHead(NS, Head(b""))] if heads.get(NS, ...) is None and writes[0].place != NS else []
        return Commit([*creation, *writes], answer)
        yield

    return Update(tuple({write.place: None for write in writes}), plan)


def adding(place: Place, n: int = 1) -> Update[Any]:
    """Read a number and write one that is greater."""

    def plan(heads):
        (head,) = yield (HeadRead(place),)
        creation = [PutHead(NS, Head(b""))] if heads[NS] is None else []
        return Commit([*creation, PutHead(place, Head(b"", b"%d" % (int(head.value if head else 0) + n)))], None)

    return Update((place,), plan)


async def put(backend: RedisBackend, *writes: Write) -> None:
    results = await backend.update([writing(write) for write in writes])
    assert results == [None] * len(writes)


async def value(backend: RedisBackend, place: Place) -> bytes | None:
    (head,) = await read(backend, HeadRead(place))
    return head and head.value


@contextlib.asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[RedisBackend]:
    backend = await RedisBackend.open(dsn)
    try:
        yield backend
    finally:
        await backend.close()


@pytest.fixture
async def backend() -> AsyncIterator[RedisBackend]:
    async with opened(servers.fresh_dsn(servers.redis_server())) as backend:
        yield backend


@pytest.fixture
async def cluster() -> AsyncIterator[RedisBackend]:
    async with opened(servers.fresh_dsn(servers.redis_cluster(), buckets=64)) as backend:
        yield backend


@pytest.fixture(params=["redis", "cluster"])
def shared(request: pytest.FixtureRequest) -> servers.RedisServer | servers.RedisCluster:
    return servers.redis_server() if request.param == "redis" else servers.redis_cluster()


@pytest.fixture
def own() -> Iterator[servers.RedisServer]:
    """A server to stop and kill."""
    with servers.RedisServer() as server:
        yield server


async def refusal(dsn: str) -> str:
    with pytest.raises(Problem) as caught:
        await backend_class(dsn).open(dsn)
    assert caught.value.code == "backend-unavailable"
    return caught.value.detail


# --- opening -----------------------------------------------------------------------------------------------


async def test_what_a_dsn_may_say(own: servers.RedisServer) -> None:
    assert "power of two" in await refusal(f"{own.dsn}?buckets=3")
    assert "power of two" in await refusal(f"{own.dsn}?buckets=2048")
    assert "prefix" in await refusal(f"{own.dsn}?prefix=a{{b}}")
    assert "eviction" in await refusal(f"{own.dsn}?eviction=refuse")
    assert "does not parse" in await refusal("redis://127.0.0.1:port")
    assert "cannot connect" in await refusal("redis://127.0.0.1:1")
    assert "cannot connect" in await refusal("redis+cluster://127.0.0.1:1")
    for scheme in ("redis", "valkey"):
        async with opened(f"{scheme}{own.dsn.removeprefix('redis')}/1?prefix=p&buckets=4"):
            pass
    assert "has 4 buckets" in await refusal(f"{own.dsn}/1?prefix=p&buckets=8")
    async with opened(f"{own.dsn}/1?prefix=p") as found:
        await put(found, PutHead(kv("k"), Head(b"", b"v")))
    async with opened(f"{own.dsn}?prefix=p") as other_database:
        assert await value(other_database, kv("k")) is None
    assert own.cli("-n", "1", "HGET", "{p}:store", "buckets") == "4"


async def test_a_single_servers_dsn_does_not_do_for_a_cluster_nor_the_other_way_round() -> None:
    node = servers.redis_cluster().nodes[0]
    assert "redis+cluster://" in await refusal(node.dsn)
    assert await refusal(f"redis+cluster://127.0.0.1:{servers.redis_server().port}")


async def test_one_node_of_a_cluster_is_enough_to_find_it() -> None:
    cluster = servers.redis_cluster()
    dsn = servers.fresh_dsn(cluster)
    _, _, query = dsn.partition("?")
    async with opened(dsn) as backend, opened(f"valkey+cluster://127.0.0.1:{cluster.nodes[5].port}?{query}") as other:
        await put(backend, PutHead(kv("k"), Head(b"", b"v")))
        assert await value(other, kv("k")) == b"v"


async def test_a_login(own: servers.RedisServer) -> None:
    own.cli("CONFIG", "SET", "requirepass", "secret")
    assert "refuses" in await refusal(own.dsn)
    assert "refuses" in await refusal(f"redis://:wrong@127.0.0.1:{own.port}")
    async with opened(f"redis://:secret@127.0.0.1:{own.port}") as backend:
        await put(backend, PutHead(kv("k"), Head(b"")))


async def test_a_store_that_lost_its_record_is_opened_with_no_guess_at_its_buckets() -> None:
    server = servers.redis_server()
    dsn = servers.fresh_dsn(server)
    async with opened(f"{dsn}&buckets=8") as backend:
        await put(backend, PutHead(NS, Head(b"")), *(PutHead(kv(f"k{n}"), Head(b"", b"v")) for n in range(20)))
    assert server.cli("DEL", f"{{{dsn.rpartition('=')[2]}}}:store") == "1"
    with pytest.raises(Problem, match="how many buckets"):
        await backend_class(dsn).open(dsn)
    async with opened(f"{dsn}&buckets=8") as backend:
        assert [await value(backend, kv(f"k{n}")) for n in range(20)] == [b"v"] * 20
    async with opened(dsn):
        pass


async def test_the_layout_has_a_version(own: servers.RedisServer) -> None:
    assert await RedisBackend.schema_versions(own.dsn) == SchemaVersions(0, 1)
    async with opened(own.dsn):
        pass
    assert await RedisBackend.schema_versions(own.dsn) == SchemaVersions(1, 1)
    own.cli("HSET", "{rstore}:store", "layout", "2")
    assert "newer rstored" in await refusal(own.dsn)


@pytest.mark.parametrize(
    ("options", "said", "warned"),
    [
        (("appendonly yes", "appendfsync always"), "survives a crash", None),
        (("appendonly yes", "appendfsync everysec"), "about the last second", "may lose"),
        (("appendonly no",), "may lose it", "in memory only"),
    ],
)
async def test_it_says_how_durable_the_server_is(options: tuple[str, ...], said: str, warned: str | None) -> None:
    with servers.RedisServer(*options) as server:
        async with opened(server.dsn) as backend:
            described = backend.describe()
            assert described["name"] == "redis"
            assert said in described["durability"]
            assert (warned is None) == ("warning" not in described)
            assert warned is None or warned in described["warning"]


async def test_it_says_what_is_so_now(own: servers.RedisServer) -> None:
    async with opened(own.dsn) as backend:
        own.cli("CONFIG", "SET", "appendfsync", "no")
        await backend.ping()
        assert "appendfsync=no" in backend.describe()["durability"]
        own.cli("ACL", "SETUSER", "default", "-config")
        await backend.ping()
        assert "does not say" in backend.describe()["durability"]
        assert "refused" in backend.describe()["warning"]


POLICIES = {
    "noeviction": True,
    "volatile-lru": True,
    "volatile-ttl": True,
    "allkeys-lru": False,
    "allkeys-lfu": False,
    "allkeys-random": False,
}


@pytest.mark.parametrize("config", ["+config", "-config"])
async def test_a_server_that_evicts_is_refused_unless_that_is_accepted(
    own: servers.RedisServer, config: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where CONFIG is forbidden, and before the server has a maxmemory, which may be set at any time."""
    for policy, keeps in POLICIES.items():
        own.cli("CONFIG", "SET", "maxmemory-policy", policy)
        own.cli("ACL", "SETUSER", "default", config)
        if keeps:
            async with opened(own.dsn) as backend:
                assert "evict" not in backend.describe().get("warning", "")
        else:
            assert f"(maxmemory-policy {policy})" in await refusal(own.dsn)
            async with opened(f"{own.dsn}?eviction=accept") as backend:
                assert f"(maxmemory-policy {policy})" in backend.describe()["warning"]
                assert ("CONFIG is refused" in backend.describe()["warning"]) == (config == "-config")
        own.cli("ACL", "SETUSER", "default", "+config")
    # If it is set later, the service reports and logs it, but goes on serving the store.
    own.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")
    caplog.set_level("INFO")
    async with opened(own.dsn) as backend:
        engine = Engine(backend)
        await engine.start()
        for policy, logged in (
            ("allkeys-lru", "maxmemory-policy allkeys-lru"),
            ("noeviction", "again keeps what it acknowledges"),
        ):
            own.cli("CONFIG", "SET", "maxmemory-policy", policy)
            async with asyncio.timeout(SECONDS_MAX):
                while logged not in caplog.text:
                    await asyncio.sleep(0.01)
            assert ("evict" in backend.describe().get("warning", "")) == (policy != "noeviction")
        await engine.stop()


async def test_one_master_that_evicts_is_enough_to_refuse_a_cluster() -> None:
    cluster = servers.redis_cluster()
    cluster.nodes[2].cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        assert "allkeys-lru" in await refusal(servers.fresh_dsn(cluster))
    finally:
        cluster.nodes[2].cli("CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_a_policy_for_keys_with_a_time_to_live_evicts_nothing_of_a_store(own: servers.RedisServer) -> None:
    own.cli("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    async with opened(own.dsn) as backend:
        await fill(backend)
        expiring = Head(b"", b"v", 2**52)
        await put(backend, *[PutHead(kv(f"k{number}"), expiring) for number in range(100)])
        assert "expires=0" in own.cli("INFO", "keyspace")
        before = own.cli("DBSIZE")
        own.cli("CONFIG", "SET", "maxmemory", "1")
        (refused,) = await backend.update([writing(PutHead(kv("new"), expiring))])
        assert refused.code == "storage-full"
        assert own.cli("DBSIZE") == before
        assert "evicted_keys:0" in own.cli("INFO", "stats")


# --- keys --------------------------------------------------------------------------------------------------


async def fill(backend: RedisBackend, namespace: str = "ns") -> None:
    """One of everything, in a namespace of its own."""
    named = namespace_place(namespace)
    assert await backend.update([writing(PutHead(named, Head(b"policy")))]) == [None]
    series = Place(namespace, Kind.ES, "events")
    updates = [
        writing(PutHead(kv(f"k{n}", namespace), Head(b"m", b"v" * 100, 5 if n % 2 else None))) for n in range(100)
    ]
    updates.append(
        writing(
            PutHead(series, Head(b"m")),
            *(PutRow(series, lane, Row(b"%d" % n, b"x", b"by%d" % n)) for lane in (0, 2) for n in range(5)),
        )
    )
    assert await backend.update(updates) == [None] * len(updates)


def keys(server: servers.RedisServer | servers.RedisCluster, prefix: str) -> set[str]:
    nodes = server.masters() if isinstance(server, servers.RedisCluster) else [server]
    return {key for node in nodes for key in node.cli("--scan", "--pattern", f"{{{prefix}*").splitlines()}


async def test_every_key_carries_the_tag_of_its_bucket_and_nothing_is_left_of_what_is_deleted(shared) -> None:
    dsn = servers.fresh_dsn(shared, buckets=8)
    prefix = dsn.partition("prefix=")[2].partition("&")[0]
    async with opened(dsn) as backend:
        await fill(backend)
        await fill(backend, "other")
        found = keys(shared, prefix)
        tags = {key[: key.index("}") + 1] for key in found}
        assert len(tags) == 1 + 2 * 8
        assert f"{{{prefix}}}" in tags
        if isinstance(shared, servers.RedisCluster):
            assert len({key_slot(tag.encode()) for tag in tags}) > 8
        await put(
            backend,
            DeleteRecord(Place("other", Kind.ES, "events")),
            *(DeleteRecord(kv(f"k{n}", "other")) for n in range(100)),
        )
        left = keys(shared, prefix) - {key for key in found if ":h:0:other" in key}
        tag_of_other = {key[: key.index("}")] for key in found if key.endswith(":h:1:k0")}
        assert len(tag_of_other) == 2
        assert {key.rpartition("}")[2] for key in left if key.startswith(f"{{{prefix}/")} >= {":ns"}
        for name in ("ns", "other"):
            assert await backend.update([writing(DeleteRecord(namespace_place(name)))]) == [None]
        while await backend.purge():
            pass
        assert keys(shared, prefix) == {f"{{{prefix}}}:store"}
        assert (await backend.read([(Listing("", Kind.NAMESPACE), ExpiredRead(10, 10))]))[0] == [Slice([], False), []]


async def test_no_command_looks_at_more_than_it_needs(own: servers.RedisServer) -> None:
    async with opened(own.dsn) as backend:
        await fill(backend)
        await backend.read([(CountRead("ns", 0), Listing("ns", Kind.KV, limit=3), ExpiredRead(10, 10))])
        await put(backend, DeleteRecord(NS))
        while await backend.purge():
            pass
    used = {line.partition(":")[0] for line in own.cli("INFO", "commandstats").splitlines()}
    assert not used & {
        "cmdstat_keys",
        "cmdstat_scan",
        "cmdstat_hgetall",
        "cmdstat_smembers",
        "cmdstat_watch",
        "cmdstat_multi",
    }


def calls(server: servers.RedisServer) -> int:
    """How many commands clients have sent that read or write."""
    lines = server.cli("INFO", "commandstats").splitlines()
    counted = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(
        int(counted.get(f"cmdstat_{name}", "calls=0,").split(",")[0].partition("=")[2]) for name in ("evalsha", "eval")
    )


async def test_a_batch_is_a_call_however_many_records_it_is_about(own: servers.RedisServer) -> None:
    async with opened(own.dsn) as backend:
        await put(backend, PutHead(kv("k0"), Head(b"", b"0")))
        for n in (1, 32):
            places = [kv(f"k{i}") for i in range(n)]
            before = calls(own)
            await put(backend, *(PutHead(place, Head(b"", b"x")) for place in places))
            assert calls(own) - before == 2
            before = calls(own)
            await backend.read([(HeadRead(place),) for place in places])
            assert calls(own) - before == 1
        before = calls(own)
        # Plans on one record, one after the other, that ask nothing.
        await put(backend, *(PutHead(kv("k0"), Head(b"", b"%d" % n)) for n in range(32)))
        assert calls(own) - before == 2
        assert await value(backend, kv("k0")) == b"31"


# --- several processes -------------------------------------------------------------------------------------


async def test_no_update_is_lost_between_processes(shared) -> None:
    dsn = servers.fresh_dsn(shared)
    async with opened(dsn) as one, opened(dsn) as two, opened(dsn) as three:
        places = [kv("{a}1"), kv("{a}2"), kv("b")]

        async def work(backend: RedisBackend) -> None:
            for _ in range(15):
                results = await backend.update([adding(place) for place in places for _ in range(2)])
                assert results == [None] * len(results)

        await asyncio.gather(work(one), work(two), work(three))
        assert [await value(one, place) for place in places] == [b"90"] * 3


async def test_processes_that_create_a_namespace_at_once_create_one(shared) -> None:
    dsn = servers.fresh_dsn(shared)
    async with opened(dsn) as one, opened(dsn) as two:
        for n in range(5):
            name = f"n{n}"

            def making(key: str, name: str = name) -> Update[Any]:
                def plan(heads):
                    creation = (
                        [PutHead(namespace_place(name), Head(key.encode()))]
                        if heads[namespace_place(name)] is None
                        else []
                    )
                    return Commit([*creation, PutHead(kv(key, name), Head(b"", b"v"))], bool(creation))
                    yield

                return Update((kv(key, name),), plan)

            made = await asyncio.gather(one.update([making("a")]), two.update([making("b")]))
            assert sorted(made) == [[False], [True]]
            assert [await value(backend, kv(key, name)) for backend in (one, two) for key in "ab"] == [b"v"] * 4


async def test_a_namespace_that_another_process_replaced_is_not_read_or_written_in_its_old_place(shared) -> None:
    dsn = servers.fresh_dsn(shared)
    async with opened(dsn) as one, opened(dsn) as two:
        await put(one, PutHead(kv("k"), Head(b"", b"old")))
        assert await value(two, kv("k")) == b"old"
        await put(one, DeleteRecord(NS))
        assert await value(two, kv("k")) is None
        await put(one, PutHead(kv("k"), Head(b"", b"new")))
        assert await value(two, kv("k")) == b"new"
        await put(one, DeleteRecord(NS))
        await put(one, PutHead(kv("k2"), Head(b"", b"newer")))
        await put(two, PutHead(kv("k"), Head(b"", b"newest")))
        assert [await value(one, kv(key)) for key in ("k", "k2")] == [b"newest", b"newer"]
        while await one.purge():
            pass
        assert await value(two, kv("k2")) == b"newer"


async def test_a_policy_reaches_every_bucket_and_every_process(shared) -> None:
    dsn = servers.fresh_dsn(shared, buckets=16)
    async with opened(dsn) as one, opened(dsn) as two:
        places = [kv(f"k{n}") for n in range(40)]
        await put(one, *(PutHead(place, Head(b"")) for place in places))

        async def changing(backend: RedisBackend, meta: bytes) -> None:
            assert await backend.update([writing(PutHead(NS, Head(meta)))]) == [None]

        await asyncio.gather(changing(one, b"one"), changing(two, b"two"))
        (last,) = await read(one, HeadRead(NS))

        def seeing(place: Place) -> Update[Any]:
            def plan(heads):
                return Commit((), heads[NS])
                yield

            return Update((place,), plan)

        assert set(await two.update(list(map(seeing, places)))) == {last}


# --- expiry ------------------------------------------------------------------------------------------------


async def test_what_expires_is_found_by_every_process_whoever_wrote_it(shared) -> None:
    dsn = servers.fresh_dsn(shared)
    soon = time.time_ns() // 1_000_000 + 60_000
    async with opened(dsn) as one, opened(dsn) as two:

        async def expired(backend: RedisBackend, now_ms: int) -> list[Place]:
            (found,) = await read(backend, ExpiredRead(now_ms, 10))
            return found

        await put(one, PutHead(kv("later"), Head(b"", b"", soon + 1)), PutHead(kv("soon"), Head(b"", b"", soon)))
        assert await expired(two, soon - 1) == []
        assert await expired(two, soon) == [kv("soon")]
        assert await expired(one, soon + 1) == [kv("soon"), kv("later")]
        await put(two, PutHead(kv("soon"), Head(b"", b"")), DeleteRecord(kv("later")))
        assert await expired(one, soon + 5) == []
        await put(one, PutHead(kv("again"), Head(b"", b"", soon + 6)))
        assert await expired(two, soon + 6) == [kv("again")]
        assert await expired(one, 2**63 - 1) == [kv("again")]


async def test_expiries_are_exact_beyond_what_a_double_can_hold(backend: RedisBackend) -> None:
    at = 2**53 + 1
    await put(backend, PutHead(kv("k"), Head(b"", b"", at)))
    head, before, after = await read(backend, HeadRead(kv("k")), CountRead("ns", at - 1), CountRead("ns", at))
    assert head == Head(b"", b"", at)
    assert (before[Kind.KV], after[Kind.KV]) == (1, 0)


# --- failing -----------------------------------------------------------------------------------------------


async def unavailable(backend: RedisBackend) -> None:
    """Reads and writes are answered with a problem, before anybody gives up on them."""
    async with asyncio.timeout(WAIT_SECONDS):
        (read,) = await backend.read([(HeadRead(kv("k")),)])
    async with asyncio.timeout(WAIT_SECONDS):
        (written,) = await backend.update([writing(PutHead(kv("k"), Head(b"")))])
    for problem in (read, written):
        assert isinstance(problem, Problem)
        assert problem.code == "backend-unavailable"
    with pytest.raises(Problem):
        await backend.ping()


async def test_it_heals_after_the_server_was_killed_and_keeps_what_was_acknowledged(own: servers.RedisServer) -> None:
    async with opened(own.dsn) as backend:
        acknowledged = 0

        async def work() -> None:
            nonlocal acknowledged
            while True:
                results = await backend.update(
                    [adding(kv("n")), writing(PutHead(kv(f"k{acknowledged}"), Head(b"", b"v")))]
                )
                if isinstance(results[0], Problem):
                    return
                acknowledged += 1

        task = asyncio.create_task(work())
        async with asyncio.timeout(SECONDS_MAX):
            while acknowledged <= 10:
                await asyncio.sleep(0.01)
        own.kill()
        await task
        await unavailable(backend)
        own.start()
        found = int(await value(backend, kv("n")) or 0)
        # The one that was under way when the server died may be there.
        assert acknowledged <= found <= acknowledged + 1
        heads = await backend.read([(HeadRead(kv(f"k{n}")),) for n in range(acknowledged)])
        assert heads == [[Head(b"", b"v")]] * acknowledged
        await backend.ping()
        await put(backend, PutHead(kv("k"), Head(b"")))


async def test_a_server_that_hangs_is_not_waited_for(own: servers.RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_servers, "ANSWER_SECONDS", 0.3)
    async with opened(own.dsn) as backend:
        await put(backend, PutHead(kv("k"), Head(b"", b"v")))
        own.pause()
        try:
            await unavailable(backend)
        finally:
            own.resume()
        assert await value(backend, kv("k")) is not None
        await backend.ping()


async def test_a_server_that_forgot_the_scripts_is_sent_them_again(shared) -> None:
    async with opened(servers.fresh_dsn(shared)) as backend:
        await put(backend, PutHead(kv("k"), Head(b"", b"1")))
        for node in shared.nodes if isinstance(shared, servers.RedisCluster) else [shared]:
            node.cli("SCRIPT", "FLUSH")
        await put(backend, PutHead(kv("k"), Head(b"", b"2")))
        assert await value(backend, kv("k")) == b"2"


async def test_a_full_server_refuses_what_needs_room_and_does_the_rest(own: servers.RedisServer) -> None:
    async with opened(own.dsn) as backend:
        await put(backend, PutHead(kv("k"), Head(b"", b"1")), PutHead(kv("gone"), Head(b"", b"v")))
        own.cli("CONFIG", "SET", "maxmemory", "1")
        results = await backend.update([writing(PutHead(kv("new"), Head(b""))), adding(kv("k"))])
        assert [result.code for result in results] == ["storage-full"] * 2
        assert await value(backend, kv("k")) == b"1"
        await put(backend, DeleteRecord(kv("gone")))
        assert (await backend.read([(HeadRead(kv("new")), HeadRead(kv("gone")), CountRead("ns", 0))]))[0] == [
            None,
            None,
            {Kind.KV: 1, Kind.TS: 0, Kind.ES: 0},
        ]
        own.cli("CONFIG", "SET", "maxmemory", "0")
        await put(backend, PutHead(kv("new"), Head(b"")))


async def test_a_damaged_record_fails_alone(own: servers.RedisServer) -> None:
    async with opened(own.dsn) as backend:
        await put(backend, *(PutHead(kv(key), Head(b"", b"1")) for key in ("a", "bad", "c")))
        (key,) = (key for key in keys(own, "rstore") if key.endswith(":h:1:bad"))
        own.cli("DEL", key)
        own.cli("SET", key, "something else")
        good, bad, also_good = await backend.read([(HeadRead(kv(key)),) for key in ("a", "bad", "c")])
        assert [good, also_good] == [[Head(b"", b"1")]] * 2
        assert isinstance(bad, Problem)
        assert bad.code == "backend-corrupt"
        results = await backend.update([adding(kv(key)) for key in ("a", "bad", "c")])
        assert results[::2] == [None, None]
        assert results[1].code == "backend-corrupt"
        assert [await value(backend, kv(key)) for key in ("a", "c")] == [b"2", b"2"]


async def test_a_connection_that_is_cut_costs_a_read_nothing(backend: RedisBackend) -> None:
    await put(backend, PutHead(kv("k"), Head(b"", b"v")))
    server = servers.redis_server()
    for _ in range(3):
        server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await value(backend, kv("k")) == b"v"
    server.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await put(backend, PutHead(kv("k"), Head(b"", b"w")))


async def test_a_caller_that_gives_up_spoils_no_connection(backend: RedisBackend) -> None:
    await put(backend, *(PutHead(kv(f"k{n}"), Head(b"", b"%d" % n)) for n in range(50)))
    for n in range(50):
        task = asyncio.create_task(backend.read([(HeadRead(kv(f"k{n}")),)]))
        for _ in range(n % 8):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await value(backend, kv(f"k{49 - n}")) == b"%d" % (49 - n)


# --- clusters ----------------------------------------------------------------------------------------------


async def test_keys_with_a_common_part_lie_together(cluster: RedisBackend) -> None:
    series = [Place("ns", Kind.TS, f"{{sensor 7}}/{name}") for name in ("temperature", "humidity")]
    assert not cluster.capabilities.atomic_batches
    assert await cluster.update([writing(*(PutHead(place, Head(b"m")) for place in series))]) == [None]
    assert await cluster.update(
        [writing(*(DeleteRecord(place) for place in series), PutHead(kv("{sensor 7}"), Head(b"")))]
    ) == [None]
    assert (await cluster.read([(CountRead("ns", 0),)]))[0] == [{Kind.KV: 1, Kind.TS: 0, Kind.ES: 0}]


async def test_listings_go_over_all_buckets_in_pages(cluster: RedisBackend) -> None:
    names = sorted((f"{n:04}" for n in range(1000)), key=str.encode)
    await put(cluster, *(PutHead(kv(name), Head(name.encode(), os.urandom(50))) for name in names))
    after, found = None, []
    while True:
        (page,) = await read(cluster, Listing("ns", Kind.KV, after=after, limit=170))
        found += [key for key, _ in page.items]
        if not page.more:
            break
        assert len(page.items) == 170
        after = found[-1]
    assert found == names
    (page,) = await read(cluster, Listing("ns", Kind.KV, values=True, bytes_max=500))
    assert [key for key, _ in page.items] == names[:10]
    assert page.more
    assert all(head.meta == key.encode() and len(head.value) == 50 for key, head in page.items)


async def test_copies_of_a_namespaces_head_that_were_lost_are_made_again() -> None:
    shared = servers.redis_cluster()
    dsn = servers.fresh_dsn(shared)
    prefix = dsn.partition("prefix=")[2]
    async with opened(dsn) as backend:
        places = [kv(f"k{n}") for n in range(20)]
        await put(backend, *(PutHead(place, Head(b"", b"v")) for place in places))
        for key in keys(shared, prefix):
            if key.endswith("}:ns"):
                shared.nodes[0].cli("-c", "DEL", key)
        assert await backend.read([(HeadRead(place),) for place in places]) == [[Head(b"", b"v")]] * 20
        for key in keys(shared, prefix):
            if key.endswith("}:ns"):
                shared.nodes[0].cli("-c", "DEL", key)
        await put(backend, *(PutHead(place, Head(b"", b"w")) for place in places))


async def test_what_a_crash_cut_short_is_completed(cluster: RedisBackend) -> None:
    await put(cluster, PutHead(kv("k"), Head(b"")))
    store = cluster.store
    registry = store.registry.tag
    # As if the process had died between the registry and the buckets, and while it made another namespace.
    ns_key = store.registry.record_key(0, b"ns")
    node = servers.redis_cluster().nodes[0]
    name = ns_key.decode()
    # Redis's own copy is newer by its version, the first 8 bytes.
    head = b"\x7f" + bytes(15) + b"new policy"
    calls = [
        Call(store.registry.slot, None, ("HSET", ns_key, "h", head)),
        Call(store.registry.slot, None, ("SADD", registry + b":unsettled", "ns")),
        Call(store.registry.slot, None, ("ZADD", registry + b":pending", 1, "abandoned-1")),
    ]
    await store.exchange(calls)
    bucket = store.owner("", b"abandoned-1").buckets[3]
    await store.exchange([Call(bucket.slot, None, ("HSET", bucket.ns_key, "h", "x"))])
    while await cluster.purge():
        pass

    def plan(heads):
        return Commit((), heads[NS])
        yield

    assert await cluster.update([Update((kv("k"),), plan)]) == [Head(b"new policy")]
    assert node.cli("-c", "EXISTS", bucket.ns_key.decode()) == "0"
    assert node.cli("-c", "EXISTS", name) == "1"
    for left in (b":unsettled", b":pending", b":trash"):
        assert node.cli("-c", "EXISTS", (registry + left).decode()) == "0"


async def test_slots_that_move_while_they_are_used_are_followed() -> None:
    with servers.RedisCluster() as own:
        async with opened(f"{own.dsn}?buckets=64") as backend:
            places = [kv(f"k{n}") for n in range(100)]
            await put(backend, *(PutHead(place, Head(b"", b"0")) for place in places))
            one, two, _ = own.masters()
            rounds = 0
            moving = await asyncio.create_subprocess_exec(
                *(servers.binary("redis-cli", "valkey-cli"), "--cluster", "reshard", f"127.0.0.1:{one.port}"),
                *("--cluster-from", one.cli("CLUSTER", "MYID"), "--cluster-to", two.cli("CLUSTER", "MYID")),
                *("--cluster-slots", "2000", "--cluster-yes"),
                stdout=asyncio.subprocess.DEVNULL,
            )
            while moving.returncode is None or rounds == 0:
                results = await backend.update([adding(place) for place in places])
                assert results == [None] * len(places), [result for result in results if result]
                rounds += 1
                await asyncio.sleep(0.01)
            assert await moving.wait() == 0
            heads = await backend.read([(HeadRead(place),) for place in places])
            assert heads == [[Head(b"", b"%d" % rounds)]] * len(places)
            assert (await backend.read([(RowScan(Place("ns", Kind.TS, "none"), 0),)])) == [[Slice([], False)]]


async def test_a_cluster_that_lost_a_master_goes_on_without_it() -> None:
    with servers.RedisCluster() as own:
        async with opened(f"{own.dsn}?buckets=64") as backend:
            places = [kv(f"k{n}") for n in range(60)]
            await put(backend, *(PutHead(place, Head(b"", b"0")) for place in places))
            # Otherwise the replica that takes over may lack some of it.
            await asyncio.to_thread(until, own.replicated)
            lost = own.masters()[0]
            lost.kill()
            started = time.monotonic()
            refused = 0
            while True:
                async with asyncio.timeout(WAIT_SECONDS):
                    results = await backend.update([writing(PutHead(place, Head(b"", b"1"))) for place in places])
                problems = [result for result in results if result is not None]
                assert all(
                    isinstance(problem, Problem) and problem.code == "backend-unavailable" for problem in problems
                )
                if not problems:
                    break
                # Those on the other masters are served meanwhile, until these notice and stop all.
                refused += len(problems)
                assert time.monotonic() - started < SECONDS_MAX
                await asyncio.sleep(0.05)
            assert refused
            assert await backend.read([(HeadRead(place),) for place in places]) == [[Head(b"", b"1")]] * len(places)
            await backend.ping()
            lost.start()
            await put(backend, *(PutHead(place, Head(b"", b"2")) for place in places))
