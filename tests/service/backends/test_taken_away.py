"""What a storage refuses while it is used: each answer is right, or a problem that changed nothing, and all heals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from tests import servers
from tests.waiting import SECONDS_MAX

from rstore.codec.values import dump
from rstore.core.encodings import Encoding, Value
from rstore.core.points import Points
from rstored.backends import backend_class
from rstored.backends.abc import UnfitStorage
from rstored.backends.migrations import SCHEMA_VERSION
from rstored.backends.schema import metadata
from rstored.engine.engine import Engine
from rstored.engine.model import Change
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

VALUE = Value(Encoding.JSON, b"1")
NO_POSTGRESQL, NO_REDIS = servers.missing_postgresql(), servers.missing_redis()
needs_postgresql = pytest.mark.skipif(NO_POSTGRESQL is not None, reason=str(NO_POSTGRESQL))
needs_redis = pytest.mark.skipif(NO_REDIS is not None, reason=str(NO_REDIS))


class User:
    """Uses an engine in every way that takes the storage another one."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.operations: list[Callable[[], Awaitable[Any]]] = [
            lambda: engine.kv.put("n", "k", value=VALUE, media_type="application/json", ttl_seconds=100),
            lambda: engine.kv.put("n", "k", value=VALUE, media_type="application/json", write_id=secrets.token_hex(8)),
            lambda: engine.kv.put(secrets.token_hex(8), "k", value=VALUE, media_type="application/json"),
            lambda: engine.kv.get("n", "k"),
            lambda: engine.kv.list("n"),
            lambda: engine.kv.count("n"),
            lambda: engine.ts.extend("n", "s", Points.from_pairs([(1, 1.5)], dump)),
            self._range,
            lambda: engine.es.apply("n", "e", [Change("a", "setitem", VALUE)], write_id=secrets.token_hex(8)),
            lambda: engine.es.current("n", "e"),
            lambda: engine.namespaces.list(),
            lambda: engine.namespaces.discard("absent", write_id=secrets.token_hex(8)),
            lambda: engine.namespaces.discard("n"),
        ]

    async def _range(self) -> list[Any]:
        return [part async for part in self.engine.ts.range("n", "s")]

    async def works(self) -> None:
        """Everything can be done, once it was noticed that the storage is right again."""
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                with contextlib.suppress(Problem):
                    await self.engine.ping()
                    break
                await asyncio.sleep(0.01)
        for operation in self.operations:
            await operation()

    async def fill(self) -> None:
        """Leave some of everything."""
        for operation in self.operations[:-1]:
            await operation()

    async def refusals(self, state: Callable[[], Any] = lambda: None) -> list[Problem]:
        """The problems of all that cannot be done; each leaves the ``state`` as it was."""
        found = []
        for operation in self.operations:
            before = state()
            try:
                await operation()
            except Problem as problem:
                found.append(problem)
                changed = state() != before
            else:
                changed = False
            assert not changed, found[-1].detail
        assert {problem.code for problem in found} <= {"backend-unavailable"}
        return found


async def opened(dsn: str) -> AsyncIterator[User]:
    backend = await backend_class(dsn).open(dsn)
    engine = Engine(backend)
    yield User(engine)
    await engine.stop()
    await backend.close()


# --- SQL ---------------------------------------------------------------------------------------------------


async def on_postgresql() -> AsyncIterator[tuple[User, Callable[[str], object]]]:
    server = servers.postgresql_server()
    dsn = servers.fresh_dsn(server)
    async for user in opened(dsn):
        yield user, lambda statement: server.sql(statement.format(s=dsn.rpartition("=")[2]))


async def on_sqlite(folder: Path) -> AsyncIterator[tuple[User, Callable[[str], object]]]:
    with contextlib.closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as other:
        async for user in opened(f"sqlite:///{folder}/store.db"):
            yield user, lambda statement: other.execute(statement.format(s="main"))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
async def on_sql(request, anyio_backend: str, tmp_path: Path) -> AsyncIterator[tuple[User, Callable[[str], object]]]:
    """A user of a fresh store, and what has somebody else do something to ``{s}``, its schema."""
    async for both in on_sqlite(tmp_path) if request.param == "sqlite" else on_postgresql():
        yield both


TAKEN = {
    "made by a newer release": (
        "UPDATE {s}.schema_version SET version = 99",
        f"UPDATE {{s}}.schema_version SET version = {SCHEMA_VERSION}",
    ),
    "without its root": ("UPDATE {s}.record SET id = -1 WHERE id = 0", "UPDATE {s}.record SET id = 0 WHERE id = -1"),
    **{
        f"without {name}": (f"ALTER TABLE {{s}}.{name} RENAME TO aside", f"ALTER TABLE {{s}}.aside RENAME TO {name}")
        for name in sorted({*metadata.tables, "schema_version"})
    },
}


@pytest.mark.parametrize("how", TAKEN)
async def test_a_schema_that_is_not_what_it_was(on_sql, how: str) -> None:
    """Whoever asks for what is not there is told so; once it was noticed, everybody is."""
    user, do = on_sql
    deed, undo = TAKEN[how]
    await user.fill()
    do(deed)
    await user.refusals()
    with pytest.raises(UnfitStorage):
        await user.engine.ping()
    assert len(await user.refusals()) == len(user.operations)
    do(undo)
    await user.works()


COLUMNS = [f"{table.name}.{column.name}" for table in metadata.tables.values() for column in table.columns]


async def test_columns_and_rights_that_are_taken_away(on_sql, request) -> None:
    """As when another program takes the schema over."""
    user, do = on_sql
    for table, column in (name.split(".") for name in COLUMNS):
        await user.fill()
        do(f"ALTER TABLE {{s}}.{table} RENAME COLUMN {column} TO aside")
        assert await user.refusals() or table == "trash", column
        do(f"ALTER TABLE {{s}}.{table} RENAME COLUMN aside TO {column}")
        await user.works()
    for table in metadata.tables if "postgresql" in request.node.name else ():
        for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            await user.fill()
            do(f"REVOKE {right} ON {{s}}.{table} FROM test")
            await user.refusals()
            do(f"GRANT {right} ON {{s}}.{table} TO test")
            await user.works()


async def test_a_file_that_is_emptied_takes_nothing(tmp_path: Path) -> None:
    """As it is for the time that a copy is written over it."""
    file = tmp_path / "store.db"
    async for user in opened(f"sqlite:///{file}"):
        await user.fill()
        kept = file.read_bytes()
        os.truncate(file, 0)
        # The first one notices it.
        with pytest.raises(UnfitStorage):
            await user.operations[0]()
        with pytest.raises(UnfitStorage):
            await user.engine.ping()
        assert len(await user.refusals()) == len(user.operations)
        file.write_bytes(kept)
        await user.works()


async def test_a_file_that_is_damaged_takes_nothing_once_that_was_noticed(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    async for user in opened(f"sqlite:///{file}"):
        await user.fill()
        with contextlib.closing(sqlite3.connect(file)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with file.open("r+b") as overwritten:
            overwritten.write(b"\xff" * file.stat().st_size)
        with pytest.raises(UnfitStorage):
            await user.engine.ping()
        assert len(await user.refusals()) == len(user.operations)


# --- Redis -------------------------------------------------------------------------------------------------

SCRIPTS = {
    path.name: path.read_text("utf-8") for path in resources.files("rstored.backends.redis").joinpath("lua").iterdir()
}
COMMANDS = {name: set(re.findall(r"call\('([A-Z]+)'", source)) for name, source in SCRIPTS.items()}


def test_the_script_that_commits_asks_for_each_command_that_it_runs() -> None:
    (asked,) = re.findall(r"^local COMMANDS = \{(.+)\}$", SCRIPTS["commit.lua"], re.MULTILINE)
    assert set(re.findall("[A-Z]+", asked)) == COMMANDS["commit.lua"]


# A digest of what is under some keys. `due` is written apart from the write, and is never later than that.
DIGEST = """
    local keys, found = redis.call('KEYS', ARGV[1]), {}
    table.sort(keys)
    for _, key in ipairs(keys) do
        if string.sub(key, -4) ~= ':due' then found[#found + 1] = key .. redis.call('DUMP', key) end
    end
    return redis.sha1hex(table.concat(found))
"""


@needs_redis
async def test_commands_that_are_forbidden() -> None:
    """A write of which a part is refused is not done at all, though Redis never takes back what a script has done."""
    server = servers.redis_server()
    prefix, name = f"p{secrets.token_hex(4)}", f"u{secrets.token_hex(4)}"
    rights = f"on >pw ~{{{prefix}* +@read +@write +@scripting +info +config|get"
    others = {"HSETNX", "INFO", "CONFIG", "EVALSHA", "ZADD", "ZRANGEBYSCORE", "SRANDMEMBER"}
    with Redis(port=server.port) as administrator:
        if int(administrator.info("server")["redis_version"].partition(".")[0]) < 7:
            pytest.skip("Redis 6 cannot be asked what a user may run")

        def state() -> Any:
            return administrator.eval(DIGEST, 0, f"{{{prefix}*")

        administrator.execute_command("ACL", "SETUSER", name, *rights.split())
        try:
            async for user in opened(f"redis://{name}:pw@127.0.0.1:{server.port}?prefix={prefix}"):
                for command in sorted(others.union(*COMMANDS.values())):
                    await user.fill()
                    administrator.execute_command("ACL", "SETUSER", name, f"-{command.lower()}")
                    refused = await user.refusals(state)
                    assert refused or command not in COMMANDS["commit.lua"], command
                    administrator.execute_command("ACL", "SETUSER", name, f"+{command.lower()}")
                    await user.works()
                for patterns in ((), (f"%R~{{{prefix}*",), (f"~{prefix}*",)):
                    await user.fill()
                    administrator.execute_command("ACL", "SETUSER", name, "resetkeys", *patterns)
                    assert await user.refusals(state)
                    administrator.execute_command("ACL", "SETUSER", name, "resetkeys", f"~{{{prefix}*")
                    await user.works()
        finally:
            administrator.execute_command("ACL", "DELUSER", name)
