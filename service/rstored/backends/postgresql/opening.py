"""How a store in PostgreSQL is opened: the connections, the schema, and what the server says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from typing import Final, Self

import psycopg
from psycopg_pool import AsyncConnectionPool

from rstored.backends.abc import UnfitStorage
from rstored.backends.clock import Clock
from rstored.backends.migrations import ROOT_OF_STORE, SCHEMA_VERSION, pending
from rstored.backends.postgresql.connection import OPTIONS, Connection
from rstored.backends.postgresql.dsn import PostgreSQLDSN, reason_of
from rstored.backends.postgresql.statements import DIALECT
from rstored.backends.schema import ROOT_ID
from rstored.problems import Problem, damaged

_CONNECTIONS_MAX: Final = 4
_CONNECT_SECONDS: Final = 3
POOL_WAIT_SECONDS: Final = 3.0
# How long the pool tries again by itself, with growing pauses. After that, each request makes it try at once.
_RECONNECT_SECONDS: Final = 2.0
_LOCK_SECONDS: Final = 3
_STATEMENT_SECONDS: Final = 10
# Every statement is prepared once for all, and written so that the planner must use an index from the parameters on.
# Otherwise the planner would scan whole tables while they are small, or most of their records have one parent, and
# would still do so when they have grown.
_SETTINGS: Final = {
    "statement_timeout": f"{_STATEMENT_SECONDS}s",
    "lock_timeout": f"{_LOCK_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{2 * _STATEMENT_SECONDS}s",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    # These plans may look costly to PostgreSQL, but they are not.
    "jit": "off",
    # The defaults of these would be right, but a role, a database or the options of the DSN may change them. Of a
    # cancelled wait for a replica, only a warning tells.
    "client_encoding": "UTF8",
    "client_min_messages": "warning",
    "default_transaction_isolation": "read committed",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "exit_on_error": "off",
}

_OPTIONS: Final = OPTIONS | {"connect_timeout": _CONNECT_SECONDS}

# The root record has no value of its own.
_STORE_ID: Final = ROOT_OF_STORE.encode()
_GIVE_STORE_ID: Final = f"UPDATE record SET value = %s WHERE id = {ROOT_ID} AND value = ''".encode()  # noqa: S608


class Watch:
    """Bounds the time of one use of a connection. The driver would wait for a silent server for ever."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self.hung_up = False
        self._connection = connection
        self._seconds = seconds

    def __enter__(self) -> Self:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._hang_up)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _hang_up(self) -> None:
        """Wake the tasks that wait on the connection. They find it broken."""
        self.hung_up = True
        with (
            contextlib.suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(self._connection.fileno())) as duplicate,
        ):
            duplicate.shutdown(socket.SHUT_RDWR)


async def connect(dsn: PostgreSQLDSN) -> Connection:
    """The first connection, to a database that can hold a store. If it fails, the DSN may be wrong."""
    try:
        connection = await Connection.connect(dsn.conninfo, **_OPTIONS)
    except (psycopg.Error, OSError, ValueError) as error:
        reason = reason_of(error, dsn.secrets)
        raise Problem("backend-unavailable", f"cannot connect to PostgreSQL: {reason}") from error
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        await connection.close()
        raise Problem(
            "backend-unavailable",
            f"the encoding of the database is {encoding}, which cannot hold every key: use a database that was made by "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
        )
    return connection


def connection_pool(dsn: PostgreSQLDSN) -> AsyncConnectionPool[Connection]:
    """The connections to the store that the DSN names. They are not open yet."""
    return AsyncConnectionPool[Connection](
        dsn.conninfo,
        connection_class=Connection,
        kwargs=_OPTIONS,
        min_size=1,
        max_size=_CONNECTIONS_MAX,
        timeout=POOL_WAIT_SECONDS,
        reconnect_timeout=_RECONNECT_SECONDS,
        configure=lambda connection: configure(connection, dsn.schema),
        open=False,
        name="rstored",
    )


async def configure(connection: Connection, schema: str) -> None:
    """Set up a session for the store in this schema, and read the id of the store."""
    settings = {"search_path": quoted(schema), **_SETTINGS}
    with Watch(connection, _CONNECT_SECONDS):
        await connection.execute(
            "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS each (name, value) "
            "WHERE current_setting(name, true) IS NOT NULL",
            (list(settings), list(settings.values())),
        )
        connection.store_id = await read_store_id(connection)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def migrate(connection: Connection, schema: str) -> bytes:
    """Bring the schema to the present version. Returns the id of the store. A new store gets a random one."""
    async with connection.transaction():
        # With this lock, other processes that start now wait. The end of the transaction releases it.
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('rstore ' || %s, 0))", (schema,))
        exists = await (await connection.execute("SELECT to_regnamespace(%s)", (quoted(schema),))).fetchone()
        if exists == (None,):
            await connection.execute(f"CREATE SCHEMA {quoted(schema)}".encode())
        found = await (await connection.execute("SELECT to_regclass('schema_version')")).fetchone()
        if found == (None,):
            await connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
            await connection.execute("INSERT INTO schema_version VALUES (0)")
        row = await (await connection.execute("SELECT version FROM schema_version")).fetchone()
        if row is None:
            raise damaged("the version of the schema")
        for statement in pending(row[0], DIALECT):
            await connection.execute(statement.encode())
        await connection.execute("UPDATE schema_version SET version = %s", (SCHEMA_VERSION,))
        await connection.execute(_GIVE_STORE_ID, (secrets.token_bytes(16),))
        store_id = await read_store_id(connection)
        if store_id is None:
            raise Problem("backend-corrupt", "the schema has lost a record that every store has: restore a backup")
        return store_id


async def read_store_id(connection: Connection) -> bytes | None:
    """The id of the store in the schema; None if there is no store, or none with the present schema."""
    try:
        row = await (await connection.execute(_STORE_ID)).fetchone()
    except psycopg.ProgrammingError:
        # A table does not exist or may not be read, or a column belongs to another program.
        return None
    return None if row is None else row[0]


async def description_of(connection: Connection, clock: Clock) -> dict[str, str]:
    """What ``/`` says about the server, with its present durability. ``clock`` takes over the time of the server.

    Raises :class:`UnfitStorage` on a standby.
    """
    asked = time.monotonic()
    cursor = await connection.execute(
        "SELECT current_setting('server_version'), current_setting('synchronous_commit'), current_setting('fsync'), "
        "pg_is_in_recovery(), extract(epoch FROM clock_timestamp()) * 1000"
    )
    row = await cursor.fetchone()
    assert row is not None
    version, synchronous_commit, fsync, is_standby, now_ms = row
    clock.follow(float(now_ms), asked, time.monotonic())
    if is_standby:
        raise UnfitStorage(
            "PostgreSQL is a standby, which takes no writes and may be behind: name its primary in the DSN"
        )
    described = {"name": "postgresql", "version": version}
    durability = f"an acknowledged write is committed by PostgreSQL (synchronous_commit={synchronous_commit})"
    if fsync == "on" and synchronous_commit != "off":
        described["durability"] = f"{durability}: it survives a crash of the service and of the server"
    else:
        described["durability"] = f"{durability}, fsync={fsync}: a crash of the server may lose the last writes"
        described["warning"] = "PostgreSQL is set to lose acknowledged writes in a crash: turn on both settings"
    return described
