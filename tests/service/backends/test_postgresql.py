"""What is PostgreSQL's own: its schema, the processes that migrate it, and what it says of its durability."""

from __future__ import annotations

import asyncio
import decimal
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from tests import servers

from rstore.core.encodings import Encoding, Value
from rstore.core.points import Points
from rstored.backends.abc import (
    Commit,
    CountRead,
    Head,
    Kind,
    Place,
    PutHead,
    UnfitStorage,
    Update,
    namespace_place,
)
from rstored.backends.migrations import SCHEMA_VERSION
from rstored.backends.postgresql import PostgreSQLBackend
from rstored.backends.schema import ROOT_ID
from rstored.engine.engine import Engine
from rstored.engine.model import BatchSet, Change
from rstored.problems import Problem

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(servers.missing_postgresql() is not None, reason=str(servers.missing_postgresql())),
]


@pytest.fixture
def dsn() -> str:
    return servers.fresh_dsn(servers.postgresql_server())


def schema_of(dsn: str) -> str:
    return dsn.partition("schema=")[2].partition("&")[0]


def sql(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    """The rows of a statement, sent as the service's own user."""
    with psycopg.connect(dsn.partition("?")[0], autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def test_processes_that_start_at_once_migrate_once(dsn: str) -> None:
    backends = await asyncio.gather(*(PostgreSQLBackend.open(dsn) for _ in range(6)))
    for backend in backends:
        assert await backend.read([(CountRead("ns", 0),)]) == [[{Kind.KV: 0, Kind.TS: 0, Kind.ES: 0}]]
        await backend.close()
    assert sql(dsn, f"SELECT version FROM {schema_of(dsn)}.schema_version") == [(SCHEMA_VERSION,)]


async def test_a_user_without_rights_of_its_own_is_enough_and_only_its_schema_is_touched(dsn: str) -> None:
    assert sql(dsn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(False,)]
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    before = sql(dsn, tables)
    backend = await PostgreSQLBackend.open(dsn)
    await backend.close()
    assert sql(dsn, tables) == before
    assert ("record",) in sql(dsn, f"SELECT tablename FROM pg_tables WHERE schemaname = '{schema_of(dsn)}'")


async def test_a_newer_schema_is_refused(dsn: str) -> None:
    backend = await PostgreSQLBackend.open(dsn)
    await backend.close()
    sql(dsn, f"UPDATE {schema_of(dsn)}.schema_version SET version = {SCHEMA_VERSION + 1}")
    with pytest.raises(Problem, match="newer rstored"):
        await PostgreSQLBackend.open(dsn)
    assert await PostgreSQLBackend.schema_versions(dsn) == (SCHEMA_VERSION + 1, SCHEMA_VERSION)


@pytest.mark.parametrize(("setting", "warned"), [("on", False), ("local", False), ("off", True)])
async def test_it_says_how_durable_the_server_is(dsn: str, setting: str, warned: bool) -> None:
    backend = await PostgreSQLBackend.open(f"{dsn}&options={quote(f'-c synchronous_commit={setting}', safe='')}")
    try:
        described = backend.describe()
        assert f"synchronous_commit={setting}" in described["durability"]
        assert ("warning" in described) is warned
    finally:
        await backend.close()


@pytest.mark.parametrize("name", ["Tables of ours", 'a"b', "schema_version"])
async def test_a_schema_may_have_any_name(dsn: str, name: str) -> None:
    own = f"{dsn.partition('?')[0]}?schema={quote(name)}"
    backend = await PostgreSQLBackend.open(own)
    await backend.close()
    try:
        assert await PostgreSQLBackend.schema_versions(own) == (SCHEMA_VERSION, SCHEMA_VERSION)
    finally:
        quoted = name.replace('"', '""')
        sql(dsn, f'DROP SCHEMA "{quoted}" CASCADE')


VALUE = Value(Encoding.JSON, b"1")


async def all_that_reads_or_writes_one_thing(engine: Engine) -> int:
    """One of each operation; returns how many there are."""
    operations = [
        lambda: engine.kv.put("small", "k", value=VALUE, media_type="application/json"),
        lambda: engine.kv.put("small", "k", value=VALUE, media_type="application/json", write_id="a"),
        lambda: engine.kv.get("small", "k"),
        lambda: engine.kv.delete("small", "k"),
        lambda: engine.ts.extend("small", "s", Points.from_pairs([(1, 1), (2, 2)])),
        lambda: engine.ts.last("small", "s"),
        lambda: engine.ts.remove("small", "s"),
        lambda: engine.es.apply("small", "e", [Change("item", "setitem", VALUE)]),
        lambda: engine.es.current("small", "e"),
        lambda: engine.es.prune("small", "e"),
        lambda: engine.es.delete("small", "e"),
        lambda: engine.namespaces.describe("small"),
        lambda: engine.namespaces.discard("small"),
    ]
    for operation in operations:
        await operation()
    return len(operations)


@pytest.mark.parametrize("analyzed", [False, True])
async def test_what_one_operation_reads_does_not_grow_with_the_store(dsn: str, analyzed: bool) -> None:
    """Statements are prepared while the store is small, and go by an index when it is not, whatever is known of it."""
    backend = await PostgreSQLBackend.open(dsn)
    engine = Engine(backend)
    schema = schema_of(dsn)

    async def rows_read() -> int:
        # A session tells of what it has read once a second, when it is done with something.
        await asyncio.sleep(1.1)
        await backend.ping()
        for _ in range(4):
            await engine.kv.get("small", "k")
        ((whole, indexed),) = sql(
            dsn, f"SELECT sum(seq_tup_read), sum(idx_tup_fetch) FROM pg_stat_all_tables WHERE schemaname = '{schema}'"
        )
        assert isinstance(whole, int | decimal.Decimal)
        assert isinstance(indexed, int | decimal.Decimal)
        return int(whole) + int(indexed)

    try:
        for table in ("record", "record_row"):
            sql(dsn, f"ALTER TABLE {schema}.{table} SET (autovacuum_enabled = off)")
        await all_that_reads_or_writes_one_thing(engine)
        names = [f"namespace-{number}" for number in range(2_000)]
        await asyncio.gather(*(engine.kv.put(name, "k", value=VALUE, media_type="application/json") for name in names))
        sets = [BatchSet(f"k{number}", VALUE, "application/json") for number in range(2_000)]
        await engine.kv.batch("large", gets=(), sets=sets, deletes=())
        await engine.ts.extend("large", "s", Points.from_pairs((t, t) for t in range(100_000)))
        if analyzed:
            sql(dsn, f"ANALYZE {schema}.record, {schema}.record_row")
        before = await rows_read()
        operations = await all_that_reads_or_writes_one_thing(engine)
        assert await rows_read() - before < 30 * operations
    finally:
        await backend.close()


async def put(backend: PostgreSQLBackend, key: str, value: bytes) -> Any:
    """Store a value, in a namespace that is made if need be; returns what became of it."""
    namespace, place = namespace_place("ns"), Place("ns", Kind.KV, key)

    def plan(heads: Mapping[Place, Head | None]) -> Any:
        made = [] if heads[namespace] else [PutHead(namespace, Head(b"{}"))]
        return Commit([*made, PutHead(place, Head(b"meta", value))], None)
        yield

    (result,) = await backend.update([Update((place,), plan)])
    return result


async def test_ids_that_were_reserved_before_a_restore_overwrite_nothing(dsn: str) -> None:
    """The restored store gives the same ids again, to another process."""
    schema = schema_of(dsn)
    old = await PostgreSQLBackend.open(dsn)
    assert await put(old, "first", b"1") is None
    ((store_id,),) = sql(dsn, f"SELECT value FROM {schema}.record WHERE id = {ROOT_ID}")
    sql(dsn, f"DROP SCHEMA {schema} CASCADE")
    new = await PostgreSQLBackend.open(dsn)
    # As a dump would bring it back.
    sql(dsn, f"UPDATE {schema}.record SET value = '\\x{store_id.hex()}' WHERE id = {ROOT_ID}")
    again = await PostgreSQLBackend.open(dsn)
    for number in range(20):
        for name, backend in (("old", old), ("again", again)):
            assert await put(backend, f"{name}{number}", b"%d" % number) is None
    rows = sql(dsn, f"SELECT key, value FROM {schema}.record WHERE kind = 1")
    assert dict(rows) == {f"{name}{number}": b"%d" % number for name in ("old", "again") for number in range(20)}
    for backend in (old, new, again):
        await backend.close()


async def test_nothing_is_made_in_another_store_of_that_name(dsn: str) -> None:
    backend = await PostgreSQLBackend.open(dsn)
    assert await put(backend, "k", b"1") is None
    sql(dsn, f"DROP SCHEMA {schema_of(dsn)} CASCADE")
    result = await put(backend, "k", b"2")
    assert isinstance(result, Problem)
    assert result.code == "backend-unavailable"
    with pytest.raises(UnfitStorage):
        await backend.ping()
    other = await PostgreSQLBackend.open(dsn)
    for _ in range(5):
        assert isinstance(await put(backend, "k", b"3"), Problem)
    assert sql(dsn, f"SELECT count(*) FROM {schema_of(dsn)}.record WHERE kind = 1") == [(0,)]
    await backend.close()
    await other.close()


async def test_a_schema_whose_records_are_gone_is_refused_in_one_line(dsn: str) -> None:
    backend = await PostgreSQLBackend.open(dsn)
    await backend.close()
    sql(dsn, f"TRUNCATE {schema_of(dsn)}.record CASCADE")
    with pytest.raises(Problem, match="restore a backup") as caught:
        await PostgreSQLBackend.open(dsn)
    assert caught.value.code == "backend-corrupt"
