from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable
from tests import servers

from rstored.backends.migrations import SCHEMA_VERSION, pending
from rstored.backends.postgresql import PostgreSQLBackend
from rstored.backends.schema import metadata
from rstored.backends.sqlite import SQLiteBackend
from rstored.problems import Problem

pytestmark = pytest.mark.anyio


def test_an_up_to_date_database_needs_nothing_and_a_newer_one_is_refused() -> None:
    assert pending(SCHEMA_VERSION, sqlite.dialect()) == []
    with pytest.raises(Problem, match=f"schema version {SCHEMA_VERSION + 1}, made by a newer rstored"):
        pending(SCHEMA_VERSION + 1, sqlite.dialect())


def test_every_dialect_gets_the_same_tables() -> None:
    statements = pending(0, postgresql.dialect())

    def created(statements: list[str]) -> list[str]:
        return [
            statement.strip().partition("(")[0] for statement in statements if statement.strip().startswith("CREATE")
        ]

    assert created(statements) == created(pending(0, sqlite.dialect()))
    assert any('COLLATE "C"' in statement for statement in statements)


LATER = """
import json
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from rstored.backends import schema

schema.record.append_column(sa.Column("later", sa.Text))
sa.Index("record_row_value", schema.record_row.c.value)
sa.Table("later", schema.metadata, sa.Column("id", sa.Integer, primary_key=True))

from rstored.backends.migrations import pending

print(json.dumps([pending(0, dialect()) for dialect in (sqlite.dialect, postgresql.dialect)]))
"""


def test_what_a_migration_makes_does_not_change_with_the_tables_of_today() -> None:
    told = subprocess.run([sys.executable, "-c", LATER], check=True, capture_output=True, text=True, timeout=60).stdout
    assert json.loads(told) == [pending(0, dialect()) for dialect in (sqlite.dialect, postgresql.dialect)]


# Of each version, what brings a database to it. One that has been released stays as it is.
RELEASED = {
    ("sqlite", 1): "b6a5aa45e5b7d05d",
    ("postgresql", 1): "6d50a123aef0c1ed",
}


@pytest.mark.parametrize(("dialect", "version"), RELEASED, ids=str)
def test_a_released_migration_is_as_it_was(dialect: str, version: int) -> None:
    made = {"sqlite": sqlite, "postgresql": postgresql}[dialect].dialect()
    after = pending(version, made)
    own = pending(version - 1, made)[: -len(after) or None]
    assert hashlib.sha256(" ".join(" ".join(own).split()).encode()).hexdigest()[:16] == RELEASED[dialect, version]


def tables_of_today(dialect: Dialect) -> list[str]:
    """What makes the tables that schema.py declares."""
    statements: list[CreateTable | CreateIndex] = []
    for table in metadata.sorted_tables:
        statements += [CreateTable(table), *map(CreateIndex, table.indexes)]
    return [str(statement.compile(dialect=dialect)) for statement in statements]


def sqlite_tables(connection: sqlite3.Connection) -> dict[str, object]:
    """All that SQLite knows of the store's tables: columns, keys, indexes, and whether ids are used again."""
    found: dict[str, object] = {}
    for name in metadata.tables:
        indexes = []
        for _, index, *facts in connection.execute(f"PRAGMA index_list({name})").fetchall():
            (text,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (index,)).fetchone()
            condition = (text or "").partition(" WHERE ")[2]
            indexes.append((facts, connection.execute(f"PRAGMA index_xinfo({index})").fetchall(), condition))
        (definition,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        columns = connection.execute(f"PRAGMA table_xinfo({name})").fetchall()
        found[name] = columns, sorted(indexes, key=repr), "AUTOINCREMENT" in definition
    return found


async def test_a_migrated_sqlite_file_has_the_tables_of_today(tmp_path: Path) -> None:
    migrated, fresh = tmp_path / "migrated.db", tmp_path / "fresh.db"
    await (await SQLiteBackend.open(f"sqlite:///{migrated}")).close()
    with contextlib.closing(sqlite3.connect(fresh)) as connection:
        connection.executescript(";".join(tables_of_today(sqlite.dialect())))
        declared = sqlite_tables(connection)
    with contextlib.closing(sqlite3.connect(migrated)) as connection:
        assert sqlite_tables(connection) == declared


_POSTGRESQL_TABLES = """
    SELECT class.relname::text, attname::text, format_type(atttypid, atttypmod), attnotnull, collname,
        pg_get_expr(adbin, adrelid) LIKE 'nextval(%%', attnum
    FROM pg_attribute
    JOIN pg_class AS class ON class.oid = attrelid
    LEFT JOIN pg_collation ON pg_collation.oid = attcollation
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relnamespace = %(schema)s::text::regnamespace
        AND relname = ANY(%(tables)s) AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT tablename::text, replace(indexdef, schemaname || '.', ''), NULL, NULL, NULL, NULL, NULL
    FROM pg_indexes WHERE schemaname = %(schema)s::text AND tablename = ANY(%(tables)s)
    UNION ALL
    SELECT conrelid::regclass::text, pg_get_constraintdef(oid), NULL, NULL, NULL, NULL, NULL
    FROM pg_constraint WHERE connamespace = %(schema)s::text::regnamespace
        AND conrelid::regclass::text = ANY(%(tables)s)
    ORDER BY 1, 2
"""


@pytest.mark.skipif(servers.missing_postgresql() is not None, reason=str(servers.missing_postgresql()))
async def test_a_migrated_postgresql_schema_has_the_tables_of_today() -> None:
    dsn = servers.fresh_dsn(servers.postgresql_server())
    server, _, migrated = dsn.partition("?schema=")
    fresh = f"{migrated}_fresh"
    await (await PostgreSQLBackend.open(dsn)).close()
    with psycopg.connect(server, autocommit=True) as connection:

        def tables(schema: str) -> list[tuple[object, ...]]:
            connection.execute(f"SET search_path TO {schema}".encode())
            return connection.execute(_POSTGRESQL_TABLES, {"schema": schema, "tables": [*metadata.tables]}).fetchall()

        connection.execute(f"CREATE SCHEMA {fresh}; SET search_path TO {fresh}".encode())
        for statement in tables_of_today(postgresql.dialect()):
            connection.execute(statement.encode())
        declared = tables(fresh)
        assert {table for table, *_ in declared} == {*metadata.tables}
        assert tables(migrated) == declared


async def test_opening_again_changes_no_byte_of_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "store.db"

    def dump() -> list[str]:
        connection = sqlite3.connect(path)
        try:
            return list(connection.iterdump())
        finally:
            connection.close()

    await (await SQLiteBackend.open(f"sqlite:///{path}")).close()
    first = dump()
    await (await SQLiteBackend.open(f"sqlite:///{path}")).close()
    assert dump() == first


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await (await SQLiteBackend.open(f"sqlite:///{path}")).close()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE schema_version SET version = version + 1")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(Problem, match="made by a newer rstored") as caught:
        await SQLiteBackend.open(f"sqlite:///{path}")
    assert caught.value.code == "backend-unavailable"
    assert path.read_bytes() == before


def open_and_close(path: str) -> str:
    import asyncio

    async def run() -> str:
        backend = await SQLiteBackend.open(f"sqlite:///{path}")
        await backend.ping()
        await backend.close()
        return "opened"

    return asyncio.run(run())


def test_processes_that_start_at_once_migrate_once(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(open_and_close, [path] * 4)) == ["opened"] * 4
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT version FROM schema_version").fetchall() == [(SCHEMA_VERSION,)]
    assert connection.execute("SELECT count(*) FROM record").fetchall() == [(1,)]
    connection.close()
