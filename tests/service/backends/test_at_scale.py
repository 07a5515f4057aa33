"""What 100,000 keys cost on each backend: listings, globs and counts, and what is left when they are deleted.

The engine runs on real servers. The servers' own counters show that nothing is read in full.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from tests import servers
from tests.conformance.backends import BACKENDS
from tests.waiting import SECONDS_MAX

from rstore.core.encodings import Encoding, Value
from rstore.core.media_types import JSON_MEDIA_TYPE
from rstore.core.points import Points
from rstored.backends import backend_class
from rstored.backends.sqlite.dsn import database_path
from rstored.engine.engine import Engine
from rstored.engine.model import BatchSet, Change

pytestmark = pytest.mark.anyio

VALUE = Value(Encoding.JSON, b'"' + b"x" * 98 + b'"')
SMALL = 1_000
PAGE = 100


def key(number: int) -> str:
    return f"{number % 100:02}/{number:06}"


class Place:
    """A store of a backend, and a look into it that does not go through the backend."""

    def __init__(self, name: str, dsn: str, large: int) -> None:
        self.name = name
        self.dsn = dsn
        self.large = large

    @contextlib.asynccontextmanager
    async def engine(self, *, maintenance: bool = False) -> AsyncIterator[Engine]:
        backend = await backend_class(self.dsn).open(self.dsn)
        try:
            engine = Engine(backend)
            if maintenance:
                await engine.start()
            yield engine
            await engine.stop()
        finally:
            await backend.close()

    def contents(self) -> set[str]:
        """Every row or key that is there, but for what says that this is a store."""
        return set(self._found())

    def erasing(self) -> bool:
        """Whether deleted records are still to be erased."""
        raise NotImplementedError

    def analyze(self) -> None:
        """Have a server that plans by what it knows of its tables look at them now, as it will some day."""

    def _found(self) -> Iterator[str]:
        raise NotImplementedError

    def begin(self) -> None:
        """Begin to count what the server reads."""

    def check(self, read_max: int) -> None:
        """Fail if the server has read more than so many records since, or in a way that reads everything."""


class SQL(Place):
    # The root record, and counts of nothing, are always there.
    TABLES = ("record WHERE id != 0", "record_row", "record_count WHERE n != 0", "trash")

    def select(self, table: str) -> list[str]:
        raise NotImplementedError

    def _found(self) -> Iterator[str]:
        for table in self.TABLES:
            for row in self.select(table):
                yield f"{table}: {row}"

    def erasing(self) -> bool:
        return bool(self.select("trash"))


class SQLite(SQL):
    def select(self, table: str) -> list[str]:
        with contextlib.closing(sqlite3.connect(database_path(self.dsn))) as connection:
            return [str(row) for row in connection.execute(f"SELECT * FROM {table}")]


class PostgreSQL(SQL):
    @property
    def schema(self) -> str:
        return dict(parse_qsl(urlsplit(self.dsn).query))["schema"]

    def select(self, table: str) -> list[str]:
        said = servers.postgresql_server().sql(f"SELECT * FROM {self.schema}.{table}")
        return [line for line in said.splitlines() if line]

    def analyze(self) -> None:
        servers.postgresql_server().sql(f"ANALYZE {self.schema}.record, {self.schema}.record_row")

    def _counters(self) -> tuple[int, int]:
        """Rows that were read by scans of whole tables, and by way of an index."""
        sql = f"SELECT sum(seq_tup_read), sum(idx_tup_fetch) FROM pg_stat_all_tables WHERE schemaname = '{self.schema}'"
        whole, indexed = servers.postgresql_server().sql(sql).split("|")
        return int(whole), int(indexed)

    def begin(self) -> None:
        self.before = self._counters()

    def check(self, read_max: int) -> None:
        # Sessions report when they end, which those of this test have; a new one sees it.
        whole, indexed = (after - before for after, before in zip(self._counters(), self.before, strict=True))
        assert whole < SMALL
        assert 0 < indexed <= read_max


class Redis(Place):
    # Commands that go through every key of the server, or every member of a key.
    FORBIDDEN = ("keys", "scan", "sscan", "hscan", "zscan", "smembers", "hgetall", "hvals", "sort", "randomkey")

    @property
    def nodes(self) -> list[servers.RedisServer]:
        if self.name == "redis":
            return [servers.redis_server()]
        return servers.redis_cluster().masters()

    @property
    def prefix(self) -> str:
        return dict(parse_qsl(urlsplit(self.dsn).query))["prefix"]

    def _keys(self) -> set[str]:
        pattern = f"*{self.prefix}*"
        return {key for node in self.nodes for key in node.cli("--scan", "--pattern", pattern).splitlines() if key}

    def _found(self) -> Iterator[str]:
        found, store = self._keys(), f"{{{self.prefix}}}:store"
        assert store in found
        yield from found - {store}

    def erasing(self) -> bool:
        return any(node.cli("EXISTS", f"{{{self.prefix}}}:trash") == "1" for node in self.nodes)

    def begin(self) -> None:
        for node in self.nodes:
            node.cli("CONFIG", "RESETSTAT")

    def check(self, read_max: int) -> None:
        calls: dict[str, int] = {}
        bytes_sent = 0
        for node in self.nodes:
            for name, count in re.findall(r"cmdstat_(\w+)(?:\|\w+)?:calls=(\d+)", node.cli("INFO", "commandstats")):
                calls[name] = calls.get(name, 0) + int(count)
            bytes_sent += int(re.search(r"total_net_output_bytes:(\d+)", node.cli("INFO", "stats"))[1])
        assert calls["zrangebylex"] > 0
        assert not calls.keys() & set(self.FORBIDDEN)
        # One command for each record at most, which sends its key and its head; a cluster's nodes also greet.
        assert calls.get("hmget", 0) + calls.get("hget", 0) <= read_max
        assert bytes_sent < read_max * 200 + 500_000


# How many keys there are.
PLACES: dict[str, tuple[type[Place], int]] = {
    "sqlite": (SQLite, 100_000),
    "postgresql": (PostgreSQL, 100_000),
    "redis": (Redis, 100_000),
    "redis-cluster": (Redis, 100_000),
}


@pytest.fixture(scope="module", params=BACKENDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    case = BACKENDS[request.param]
    reason = case.missing()
    if reason is not None:
        pytest.skip(reason)
    folder: Path = tmp_path_factory.mktemp("store")
    place, large = PLACES[request.param]
    return place(request.param, case.fresh(folder), large)


async def fill(engine: Engine, namespace: str, count: int) -> None:
    """Have the namespace hold ``key(0)`` to ``key(count - 1)``."""
    if await engine.kv.count(namespace) == count:
        return
    keys = [key(number) for number in range(count)]
    if engine.storage.backend.capabilities.atomic_batches:
        for start in range(0, count, 5_000):
            sets = [BatchSet(key, VALUE, JSON_MEDIA_TYPE) for key in keys[start : start + 5_000]]
            await engine.kv.batch(namespace, gets=(), sets=sets, deletes=())
    else:
        for start in range(0, count, 2_000):
            puts = (
                engine.kv.put(namespace, key, value=VALUE, media_type=JSON_MEDIA_TYPE)
                for key in keys[start : start + 2_000]
            )
            await asyncio.gather(*puts)


async def fill_both(engine: Engine, place: Place) -> None:
    """Fill the namespaces ``small`` and ``large``."""
    await fill(engine, "small", SMALL)
    await fill(engine, "large", place.large)


async def seconds(work: Callable[[], Awaitable[object]]) -> float:
    """How long it takes, at best: noise only ever adds."""
    taken = []
    for _ in range(7):
        started = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - started)
    return min(taken)


async def test_pages_and_counts_cost_what_they_answer_and_not_what_there_is(place):
    async with place.engine() as engine:
        await fill_both(engine, place)
    kinds: list[dict[str, Any]] = [
        {"after": None},
        {"after": "50/"},
        {"after": "99/000900"},
        {"prefix": "42/"},
        {"match": "42/*"},
        {"match": "42/0000?2*"},
        {"match": "42/000042"},
    ]
    async with place.engine() as engine:

        def page(namespace: str, options: dict[str, Any]) -> Callable[[], Awaitable[object]]:
            return lambda: engine.kv.list(namespace, limit=PAGE, **options)

        for options in kinds:
            slow, quick = [await seconds(page(namespace, options)) for namespace in ("large", "small")]
            assert slow < 10 * quick + 0.01, options
        slow, quick = [await seconds(functools.partial(engine.kv.count, namespace)) for namespace in ("large", "small")]
        assert slow < 10 * quick + 0.01
        assert await engine.kv.count("large") == place.large

    place.begin()
    async with place.engine() as engine:
        for options in kinds:
            found = await engine.kv.list("large", limit=PAGE, **options)
            assert len(found.items) <= PAGE
        assert await engine.kv.count("large") == place.large
    place.check(read_max=len(kinds) * 4 * PAGE)


async def test_a_walk_through_all_pages_finds_every_key_once_and_in_order(place):
    async with place.engine() as engine:
        await fill_both(engine, place)
        found: list[str] = []
        cursor = None
        while True:
            page = await engine.kv.list("large", after=cursor, limit=1_000)
            found += [key for key, _ in page.items]
            if page.cursor is None:
                break
            cursor = page.cursor
        assert found == sorted(map(key, range(place.large)))


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("42/*", r"42/.*"),
        ("4?/0000*", r"4./0000.*"),
        ("*/000042", r".*/000042"),
        ("*7*7*7*", r".*7.*7.*7.*"),
        ("99/999999", r"99/999999"),
    ],
)
async def test_a_glob_finds_what_it_matches_however_many_keys_do_not(place, glob, expected):
    async with place.engine() as engine:
        await fill_both(engine, place)
        found: list[str] = []
        cursor = None
        while True:
            page = await engine.kv.list("large", match=glob, after=cursor, limit=1_000)
            found += [key for key, _ in page.items]
            if page.cursor is None:
                break
            cursor = page.cursor
        assert found == [name for name in sorted(map(key, range(place.large))) if re.fullmatch(expected, name)]


async def test_a_removed_series_or_sequence_leaves_nothing_behind(place):
    async with place.engine() as engine:
        await engine.namespaces.create("kept")
        before = place.contents()
        for name in ("a", "b"):
            await engine.ts.extend("kept", name, Points.from_pairs((t, t) for t in range(20_000)))
            for turn in range(20):
                change = Change(f"item-{turn % 3}", "setitem", VALUE)
                await engine.es.apply("kept", name, [change], timestamp=turn + 1)
            await engine.kv.put("kept", name, value=VALUE, media_type=JSON_MEDIA_TYPE, ttl_seconds=1_000)
        assert len(place.contents()) >= len(before) + 6
        # Once as a whole and once piece by piece.
        assert await engine.ts.remove("kept", "a") == 20_000
        assert await engine.ts.remove("kept", "b", end=9_999) == 10_000
        assert await engine.ts.remove("kept", "b", start=10_000) == 10_000
        assert await engine.es.delete("kept", "a") == 20
        for item in range(3):
            await engine.es.apply("kept", "b", [Change(f"item-{item}", "delitem", None)])
        await engine.es.prune("kept", "b")
        for name in ("a", "b"):
            assert await engine.kv.delete("kept", name)
        while await engine.storage.backend.purge():
            pass
    # Redis remembers for a while which buckets had something that expires.
    assert {found for found in place.contents() if not found.endswith(":due")} == before


async def test_a_discarded_namespace_leaves_nothing_behind_and_others_are_served_meanwhile(place):
    async with place.engine() as engine:
        await fill_both(engine, place)
        await engine.ts.extend("large", "series", Points.from_pairs((t, t) for t in range(100_000)))
        change = Change("item", "setitem", VALUE)
        await engine.es.apply("large", "sequence", [change], timestamp=1)
    place.analyze()

    async with place.engine(maintenance=True) as engine:
        done = 0

        async def other_client() -> None:
            nonlocal done
            for number in range(1_000_000):
                await engine.kv.put("other", key(number % 100), value=VALUE, media_type=JSON_MEDIA_TYPE)
                assert await engine.kv.get("other", key(number % 100)) is not None
                done += 1

        other = asyncio.create_task(other_client())
        assert await engine.namespaces.discard("large")
        # It has not waited until all of that was erased.
        assert await erasing(place)
        done = 0
        assert await engine.kv.count("large") == 0
        assert (await engine.kv.list("large")).items == []
        deadline = time.monotonic() + SECONDS_MAX
        while await erasing(place):
            assert not other.done(), other.exception()
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        other.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await other
        # Were it erased in one piece, one write at most would be done meanwhile, and take as long as all of that.
        assert done > 20
        for namespace in ("small", "other", "kept"):
            await engine.namespaces.discard(namespace)
        while await erasing(place):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    assert place.contents() == set()


async def erasing(place: Place) -> bool:
    """Whether what was discarded is still being erased."""
    return await asyncio.to_thread(place.erasing)
