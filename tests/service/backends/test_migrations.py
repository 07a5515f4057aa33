from __future__ import annotations

import sqlite3
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from sqlalchemy.dialects import postgresql, sqlite

from rstored.backends.migrations import SCHEMA_VERSION, pending
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
