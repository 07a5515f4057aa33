"""The PostgreSQL backend: a few pooled connections, one round trip for a batch of reads.

A batch of updates is one transaction of two round trips. The first locks the heads and keeps their namespaces from
being deleted, and the second writes and commits. Plans that read rows add one round trip for each step, which all of
them share. Only heads are locked, because every writer of a record locks its head first.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg_pool import AsyncConnectionPool

from rstored.backends.abc import Backend, Capabilities, Query, SchemaVersions, UnfitStorage, Update
from rstored.backends.clock import Clock
from rstored.backends.executor import pause
from rstored.backends.migrations import SCHEMA_VERSION
from rstored.backends.postgresql.connection import Connection
from rstored.backends.postgresql.dsn import parse_dsn
from rstored.backends.postgresql.failures import (
    LOST,
    TOO_LONG,
    Demoted,
    HungUp,
    Lost,
    Misplaced,
    NoConnection,
    Raced,
    Rejected,
    translated,
    unusable,
)
from rstored.backends.postgresql.opening import (
    POOL_WAIT_SECONDS,
    Watch,
    configure,
    connect,
    connection_pool,
    description_of,
    migrate,
    quoted,
    read_store_id,
)
from rstored.backends.postgresql.reader import answers
from rstored.backends.postgresql.statements import DELETE_RECORDS, SQL, TRASH_RECORDS
from rstored.backends.postgresql.writer import Transaction
from rstored.problems import Problem

_PING_SECONDS: Final = 2.0
# How long one use of a connection may take. A server that hangs does not enforce its own limits on statements.
_HANG_UP_SECONDS: Final = 12.0
# If one request spoils a batch, each is sent alone: how long that may take in all.
_ALONE_SECONDS: Final = 8.0
_PURGE_ROWS_MAX: Final = 1_000
_TRIES_MAX: Final = 10
_PAUSE_SECONDS_MAX: Final = 2.0
_SOME_TRASH: Final = "SELECT record_id FROM trash LIMIT 1 FOR UPDATE SKIP LOCKED"
_ERASE_ROWS: Final = """
    DELETE FROM record_row
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM record_row WHERE record_id = %s ORDER BY lane, sort_key LIMIT %s))
"""

T = TypeVar("T")


class PostgreSQLBackend(Backend):
    """A store in one schema of a PostgreSQL database: ``rstore``, or the one that ``?schema=…`` in the DSN names."""

    capabilities = Capabilities(prompt_batches=True)

    def __init__(
        self, pool: AsyncConnectionPool[Connection], store_id: bytes, description: dict[str, str], clock: Clock
    ) -> None:
        self.clock = clock
        self._pool = pool
        self._store_id = store_id
        self._description = description
        self._closed = False
        # Ids are reserved in advance, so that a new record needs no round trip for its id. They are dropped with their
        # connection, because after a failover the new primary may give them to other records.
        self._ids: WeakKeyDictionary[Connection, list[int]] = WeakKeyDictionary()

    @classmethod
    async def open(cls, dsn: str) -> PostgreSQLBackend:
        """Connect, create or migrate the schema, and keep a small pool of connections."""
        parsed = parse_dsn(dsn)
        clock, pool = Clock(), connection_pool(parsed)
        try:
            async with await connect(parsed) as connection:
                await configure(connection, parsed.schema)
                store_id = await migrate(connection, parsed.schema)
                description = await description_of(connection, clock)
            await pool.open(wait=True, timeout=POOL_WAIT_SECONDS)
        except psycopg.Error as error:
            await pool.close()
            raise unusable(error, parsed) from error
        return cls(pool, store_id, description, clock)

    @classmethod
    async def schema_versions(cls, dsn: str) -> SchemaVersions:
        """The versions, read from the database. A database without a store has version 0."""
        parsed = parse_dsn(dsn)
        table = f"{quoted(parsed.schema)}.schema_version"
        try:
            async with await connect(parsed) as connection:
                found = await (await connection.execute("SELECT to_regclass(%s)", (table,))).fetchone()
                if found == (None,):
                    return SchemaVersions(0, SCHEMA_VERSION)
                row = await (await connection.execute(f"SELECT version FROM {table}".encode())).fetchone()  # noqa: S608
        except psycopg.Error as error:
            raise unusable(error, parsed) from error
        return SchemaVersions(0 if row is None else row[0], SCHEMA_VERSION)

    async def close(self) -> None:
        self._closed = True
        await self._pool.close()

    async def ping(self) -> None:
        try:
            async with self._connection(_PING_SECONDS, _PING_SECONDS) as connection:
                self._description = await description_of(connection, self.clock)
                connection.store_id = await read_store_id(connection)
                if connection.store_id != self._store_id:
                    raise UnfitStorage(LOST)
        except NoConnection:
            raise
        except Problem as problem:
            if isinstance(problem, UnfitStorage):
                # These ids were reserved in the old store. A restored store may give them to other records.
                self._ids.clear()
            # A new connection may lead to another server, which has the store.
            await self._pool.drain()
            raise

    def describe(self) -> dict[str, str]:
        return self._description

    async def read(self, queries: Sequence[Query]) -> list[list[Any] | Problem]:
        self._check_open()
        for last_try in (False, True):
            try:
                async with self._connection() as connection:
                    return await answers(connection, queries)
            except Rejected as problem:
                if len(queries) == 1:
                    return [problem]
                # One query spoiled the batch. Sent alone, each gets its own answer.
                return await self._each(queries, lambda query: self.read([query]))
            except Problem as problem:
                if last_try or isinstance(problem, NoConnection | HungUp | Lost):
                    return [Problem(problem.code, problem.detail) for _ in queries]
                # The connections to a restarted server are broken. This replaces them.
                await self._pool.drain()
        raise AssertionError("unreachable")

    async def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        self._check_open()
        return await self._update(updates)

    async def _update(self, updates: Sequence[Update[Any]], *, alone: bool = False) -> list[Any | Problem]:
        for tries in itertools.count(1):
            transaction: Transaction | None = None
            try:
                async with self._connection() as connection:
                    ids = self._ids.setdefault(connection, [])
                    transaction = Transaction(connection, self._store_id, ids, updates)
                    return await transaction.run(alone=alone)
            except Raced as problem:
                if isinstance(problem, Misplaced):
                    self._ids.clear()
                if tries < _TRIES_MAX:
                    await pause(tries + 1, _PAUSE_SECONDS_MAX)
                    continue
                failure: Exception = Problem(problem.code, problem.detail)
            except Demoted as problem:
                # All connections may lead to the old primary. New ones find its successor.
                if tries > 1:
                    return [Problem(problem.code, problem.detail) for _ in updates]
                await self._pool.drain()
                continue
            except Rejected as problem:
                failure = problem
            except Problem as problem:
                # Once the commit was sent, nobody knows whether it took place, so it is not sent again.
                committing = transaction is not None and transaction.committing
                if tries > 1 or committing or isinstance(problem, NoConnection | HungUp | Lost):
                    return [Problem(problem.code, problem.detail) for _ in updates]
                await self._pool.drain()
                continue
            except Exception as error:
                failure = error
            if len(updates) == 1:
                return [failure]
            # One update spoiled the transaction. Each gets a transaction of its own.
            return await self._each(updates, lambda update: self._update([update], alone=True))
        raise AssertionError("unreachable")

    async def _each(self, items: Sequence[T], send: Callable[[T], Awaitable[list[Any]]]) -> list[Any]:
        """The result of each item, sent alone. Items for which no time is left are refused."""
        deadline = time.monotonic() + _ALONE_SECONDS
        results: list[Any] = []
        for item in items:
            if time.monotonic() < deadline:
                results += await send(item)
            else:
                results.append(Problem("backend-unavailable", TOO_LONG))
        return results

    async def purge(self) -> bool:
        async with self._connection() as connection, connection.transaction():
            found = await (await connection.execute(_SOME_TRASH)).fetchone()
            if found is None:
                return False
            (record_id,) = found
            if (await connection.execute(_ERASE_ROWS, (record_id, _PURGE_ROWS_MAX))).rowcount:
                return True
            cursor = await connection.execute(SQL.some_children, (record_id, _PURGE_ROWS_MAX))
            children = [child_id for child_id, _ in await cursor.fetchall()]
            if children:
                await connection.execute(TRASH_RECORDS, (children,))
                await connection.execute(DELETE_RECORDS, (children,))
            else:
                await connection.execute(SQL.empty_trash, (record_id,))
            return True

    @asynccontextmanager
    async def _connection(
        self, wait_seconds: float = POOL_WAIT_SECONDS, seconds: float = _HANG_UP_SECONDS
    ) -> AsyncIterator[Connection]:
        """A connection of the pool, for a bounded time. It translates every error of the driver."""
        self._check_open()
        watch: Watch | None = None
        try:
            # The pool's own context is not used, because it ends with a second commit.
            connection = await self._pool.getconn(wait_seconds)
            try:
                if connection.store_id != self._store_id:
                    # The next connection may lead to the store.
                    await connection.close()
                    raise UnfitStorage(LOST)
                with Watch(connection, seconds) as watch:
                    yield connection
            finally:
                await self._pool.putconn(connection)
        except psycopg.Error as error:
            if watch is not None and watch.hung_up:
                # The other connections probably hang too.
                await self._pool.drain()
                raise HungUp("backend-unavailable", "PostgreSQL took too long to answer: try again") from error
            raise translated(error) from error

    def _check_open(self) -> None:
        if self._closed:
            raise NoConnection("backend-unavailable", "the connection to PostgreSQL is closed")
