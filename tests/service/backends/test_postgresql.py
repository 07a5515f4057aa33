"""What is PostgreSQL's own: its schema, the processes that migrate it, and what it says of its durability."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import psycopg
import pytest
from tests import servers

from rstored.backends.abc import CountRead, Kind
from rstored.backends.migrations import SCHEMA_VERSION
from rstored.backends.postgresql import PostgreSQLBackend
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


def sql(dsn: str, statement: str) -> list[tuple[object, ...]]:
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
