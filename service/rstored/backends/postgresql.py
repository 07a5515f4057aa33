"""The PostgreSQL backend: a few pooled connections, one round trip for a batch of reads.

A batch of updates is one transaction of two round trips: one locks the heads (and pins their namespaces), one
writes and commits. Plans that read rows add a round trip for each step that they take, together. Only heads are
locked: every writer of a record locks its head first, so its rows need no locks of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import secrets
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Self, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests
from sqlalchemy.dialects.postgresql import psycopg as psycopg_dialect

from rstored.backends.abc import (
    COUNTED,
    Backend,
    Capabilities,
    Commit,
    CountRead,
    DeleteRow,
    DeleteRows,
    ExpiredRead,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    PutHead,
    PutRow,
    Query,
    Row,
    RowOrder,
    RowScan,
    SchemaVersions,
    Slice,
    UnfitStorage,
    Update,
    Write,
    namespace_place,
)
from rstored.backends.clock import Clock
from rstored.backends.migrations import ROOT_OF_STORE, SCHEMA_VERSION, pending
from rstored.backends.postgresql_connection import OPTIONS, Connection, Parameter, Request, Rows, blobs, integers, texts
from rstored.backends.postgresql_dsn import PostgreSQLDSN, parse_dsn, reason_of
from rstored.backends.schema import ROOT_ID, Statements
from rstored.backends.waves import waves
from rstored.problems import Problem

__all__ = ["PostgreSQLBackend"]

_DIALECT: Final = psycopg_dialect.dialect(paramstyle="format")  # type: ignore[no-untyped-call]
_SQL: Final = Statements(_DIALECT)

_CONNECTIONS_MAX: Final = 4
_PING_SECONDS: Final = 2.0
_CONNECT_SECONDS: Final = 3
_POOL_WAIT_SECONDS: Final = 3.0
# How long the pool goes on trying by itself, ever more slowly; after that whoever asks has it try at once.
_RECONNECT_SECONDS: Final = 2.0
_LOCK_SECONDS: Final = 3
_STATEMENT_SECONDS: Final = 10
# All of what is done on a connection before it goes back; a server that hangs keeps no statement's time.
_HANG_UP_SECONDS: Final = 12.0
# When a batch is taken apart since one of it spoiled it: how long that goes on, and how long each waits for a lock.
_ALONE_SECONDS: Final = 8.0
_LOCK_ALONE: Final[Request] = ("SET LOCAL lock_timeout = '100ms'", ())
# Every statement is prepared for ever, and is written so that the planner can only go by an index, from the parameters
# to what they name: left to itself it goes through whole tables while they are small, or most of their records have one
# parent, and does so still when they have grown.
_SETTINGS: Final = {
    "statement_timeout": f"{_STATEMENT_SECONDS}s",
    "lock_timeout": f"{_LOCK_SECONDS}s",
    "idle_in_transaction_session_timeout": f"{2 * _STATEMENT_SECONDS}s",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    # Plans without an alternative may look costly, and are not.
    "jit": "off",
    # Of these the defaults are what is wanted, but a role, a database or the DSN's options may say otherwise. A wait
    # for a replica that somebody cancels is told by a warning alone.
    "client_encoding": "UTF8",
    "client_min_messages": "warning",
    "default_transaction_isolation": "read committed",
    "transaction_timeout": "0",
    "idle_session_timeout": "0",
    "exit_on_error": "off",
}
_PURGE_ROWS_MAX: Final = 1_000
_ROWS_BYTES_MAX: Final = 16 * 2**20
_IDS_RESERVED: Final = 1_000
_TRIES_MAX: Final = 10

_OPTIONS: Final = OPTIONS | {"connect_timeout": _CONNECT_SECONDS}

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
        # Ids taken from the sequence ahead of need, so that a new record costs no round trip for its id. They end with
        # the connection that they came over: after a failover the new primary may give them to others.
        self._ids: WeakKeyDictionary[Connection, list[int]] = WeakKeyDictionary()

    @classmethod
    async def open(cls, dsn: str) -> PostgreSQLBackend:
        """Connect, create or migrate the schema, and keep a small pool of connections."""
        parsed = parse_dsn(dsn)
        settings = {"search_path": _quoted(parsed.schema), **_SETTINGS}

        clock = Clock()

        async def configure(connection: Connection) -> None:
            with _Watch(connection, _CONNECT_SECONDS):
                await connection.execute(
                    "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS each (name, value) "
                    "WHERE current_setting(name, true) IS NOT NULL",
                    (list(settings), list(settings.values())),
                )
                connection.store_id = await _store_id(connection)

        pool = AsyncConnectionPool[Connection](
            parsed.conninfo,
            connection_class=Connection,
            kwargs=_OPTIONS,
            min_size=1,
            max_size=_CONNECTIONS_MAX,
            timeout=_POOL_WAIT_SECONDS,
            reconnect_timeout=_RECONNECT_SECONDS,
            configure=configure,
            open=False,
            name="rstored",
        )
        try:
            async with await _connect(parsed) as connection:
                await configure(connection)
                store_id = await _migrate(connection, parsed.schema)
                description = await _description(connection, clock)
            await pool.open(wait=True, timeout=_POOL_WAIT_SECONDS)
        except psycopg.Error as error:
            await pool.close()
            raise _unusable(error, parsed) from error
        return cls(pool, store_id, description, clock)

    @classmethod
    async def schema_versions(cls, dsn: str) -> SchemaVersions:
        """Read from the database; where nothing of the store is there, the version is 0."""
        parsed = parse_dsn(dsn)
        table = f"{_quoted(parsed.schema)}.schema_version"
        try:
            async with await _connect(parsed) as connection:
                found = await (await connection.execute("SELECT to_regclass(%s)", (table,))).fetchone()
                if found == (None,):
                    return SchemaVersions(0, SCHEMA_VERSION)
                row = await (await connection.execute(f"SELECT version FROM {table}".encode())).fetchone()  # noqa: S608
        except psycopg.Error as error:
            raise _unusable(error, parsed) from error
        return SchemaVersions(0 if row is None else row[0], SCHEMA_VERSION)

    async def close(self) -> None:
        self._closed = True
        await self._pool.close()

    async def ping(self) -> None:
        try:
            async with self._connection(_PING_SECONDS, _PING_SECONDS) as connection:
                self._description = await _description(connection, self.clock)
                connection.store_id = await _store_id(connection)
                if connection.store_id != self._store_id:
                    raise UnfitStorage(_LOST)
        except _NoConnection:
            raise
        except Problem as problem:
            if isinstance(problem, UnfitStorage):
                # They were reserved in the store as it was; one that is restored may give them to others.
                self._ids.clear()
            # A new connection may be to another server, where the store is.
            await self._pool.drain()
            raise

    def describe(self) -> dict[str, str]:
        return self._description

    async def read(self, queries: Sequence[Query]) -> list[list[Any] | Problem]:
        self._check_open()
        for last_try in (False, True):
            try:
                async with self._connection() as connection:
                    return await _answers(connection, queries)
            except _Rejected as problem:
                if len(queries) == 1:
                    return [problem]
                # One of them spoiled the batch: alone, each gets its own answer.
                return await self._each(queries, lambda query: self.read([query]))
            except Problem as problem:
                if last_try or isinstance(problem, _NoConnection | _HungUp | _Lost):
                    return [Problem(problem.code, problem.detail) for _ in queries]
                # A restarted server leaves broken connections behind; this replaces them.
                await self._pool.drain()
        raise AssertionError("unreachable")

    async def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        self._check_open()
        return await self._update(updates)

    async def _update(self, updates: Sequence[Update[Any]], *, alone: bool = False) -> list[Any | Problem]:
        for tries in itertools.count(1):
            transaction: _Transaction | None = None
            try:
                async with self._connection() as connection:
                    transaction = _Transaction(connection, self._store_id, self._ids.setdefault(connection, []))
                    return await transaction.run(updates, alone=alone)
            except _Raced as problem:
                if isinstance(problem, _Misplaced):
                    self._ids.clear()
                if tries < _TRIES_MAX:
                    await asyncio.sleep(random.random() * 0.002 * 2**tries)  # noqa: S311 - not a secret
                    continue
                failure: Exception = Problem(problem.code, problem.detail)
            except _Demoted as problem:
                # Each of the connections may still be to the old primary; new ones find its successor.
                if tries > 1:
                    return [Problem(problem.code, problem.detail) for _ in updates]
                await self._pool.drain()
                continue
            except _Rejected as problem:
                failure = problem
            except Problem as problem:
                # Once the commit was sent nobody knows what became of it, so it is not sent again.
                committing = transaction is not None and transaction.committing
                if tries > 1 or committing or isinstance(problem, _NoConnection | _HungUp | _Lost):
                    return [Problem(problem.code, problem.detail) for _ in updates]
                await self._pool.drain()
                continue
            except Exception as error:
                failure = error
            if len(updates) == 1:
                return [failure]
            # One of them spoiled the transaction: alone, each gets its own.
            return await self._each(updates, lambda update: self._update([update], alone=True))
        raise AssertionError("unreachable")

    async def _each(self, items: Sequence[T], send: Callable[[T], Awaitable[list[Any]]]) -> list[Any]:
        """What becomes of each item alone. Those for which there is no time left are refused."""
        deadline = time.monotonic() + _ALONE_SECONDS
        results: list[Any] = []
        for item in items:
            if time.monotonic() < deadline:
                results += await send(item)
            else:
                results.append(Problem("backend-unavailable", _TOO_LONG))
        return results

    async def purge(self) -> bool:
        async with self._connection() as connection, connection.transaction():
            found = await (await connection.execute(_SOME_TRASH)).fetchone()
            if found is None:
                return False
            (record_id,) = found
            if (await connection.execute(_ERASE_ROWS, (record_id, _PURGE_ROWS_MAX))).rowcount:
                return True
            cursor = await connection.execute(_SQL.some_children, (record_id, _PURGE_ROWS_MAX))
            children = [child_id for child_id, _ in await cursor.fetchall()]
            if children:
                await connection.execute(_TRASH_RECORDS, (children,))
                await connection.execute(_DELETE_RECORDS, (children,))
            else:
                await connection.execute(_SQL.empty_trash, (record_id,))
            return True

    @asynccontextmanager
    async def _connection(
        self, wait_seconds: float = _POOL_WAIT_SECONDS, seconds: float = _HANG_UP_SECONDS
    ) -> AsyncIterator[Connection]:
        """A connection of the pool, for so long at most. Every error of the driver leaves here translated."""
        self._check_open()
        watch: _Watch | None = None
        try:
            # Not the pool's own context: at its end it commits, through psycopg, what is committed already.
            connection = await self._pool.getconn(wait_seconds)
            try:
                if connection.store_id != self._store_id:
                    # The next one may be to where the store is.
                    await connection.close()
                    raise UnfitStorage(_LOST)
                with _Watch(connection, seconds) as watch:
                    yield connection
            finally:
                await self._pool.putconn(connection)
        except psycopg.Error as error:
            if watch is not None and watch.hung_up:
                # The others are likely to hang as well.
                await self._pool.drain()
                raise _HungUp("backend-unavailable", "PostgreSQL took too long to answer: try again") from error
            raise _translated(error) from error

    def _check_open(self) -> None:
        if self._closed:
            raise _NoConnection("backend-unavailable", "the connection to PostgreSQL is closed")


class _Watch:
    """Bounds the time that is spent on a connection: the driver itself would wait for a silent server for ever."""

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
        """Have whoever waits on the connection learn that it is over."""
        self.hung_up = True
        with (
            contextlib.suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(self._connection.fileno())) as duplicate,
        ):
            duplicate.shutdown(socket.SHUT_RDWR)


# --- opening -----------------------------------------------------------------------------------------------


async def _connect(dsn: PostgreSQLDSN) -> Connection:
    """A first connection, to a database that can hold a store. What keeps it from that may be in the DSN."""
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
            f"the database's encoding is {encoding}, which cannot hold every key: take a database that was made by "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0",
        )
    return connection


def _unusable(error: psycopg.Error, dsn: PostgreSQLDSN) -> Problem:
    """The problem of a store that cannot be opened, in one line."""
    problem = _translated(error)
    if isinstance(problem, Problem) and problem.detail not in (_UNAVAILABLE, _LOST):
        return problem
    return Problem("backend-unavailable", f"PostgreSQL cannot hold the store: {reason_of(error, dsn.secrets)}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def _migrate(connection: Connection, schema: str) -> bytes:
    """Bring the schema to the present version; returns the store's id, which it is given when it is made."""
    async with connection.transaction():
        # The lock keeps other processes that start now waiting; the transaction's end releases it.
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('rstore ' || %s, 0))", (schema,))
        exists = await (await connection.execute("SELECT to_regnamespace(%s)", (_quoted(schema),))).fetchone()
        if exists == (None,):
            await connection.execute(f"CREATE SCHEMA {_quoted(schema)}".encode())
        found = await (await connection.execute("SELECT to_regclass('schema_version')")).fetchone()
        if found == (None,):
            await connection.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
            await connection.execute("INSERT INTO schema_version VALUES (0)")
        row = await (await connection.execute("SELECT version FROM schema_version")).fetchone()
        assert row is not None
        for statement in pending(row[0], _DIALECT):
            await connection.execute(statement.encode())
        await connection.execute("UPDATE schema_version SET version = %s", (SCHEMA_VERSION,))
        await connection.execute(_GIVE_STORE_ID, (secrets.token_bytes(16),))
        store_id = await _store_id(connection)
        if store_id is None:
            raise Problem("backend-corrupt", "the schema's tables have lost what every store has: restore a backup")
        return store_id


async def _store_id(connection: Connection) -> bytes | None:
    """The id of the store that is there; None if there is none, or none with the present schema."""
    try:
        row = await (await connection.execute(_STORE_ID)).fetchone()
    except psycopg.ProgrammingError:
        # A table is not there or may not be read, or a column is another program's.
        return None
    return None if row is None else row[0]


async def _description(connection: Connection, clock: Clock) -> dict[str, str]:
    """What ``/`` says, the durability read from the live server; ``clock`` takes over the server's time.

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


# --- reading -----------------------------------------------------------------------------------------------

# A statement, its parameters, and what makes the read's result of the rows.
Question: TypeAlias = tuple[str, Sequence[Parameter], Callable[[Rows], Any]]
# Positions among the reads, and what was found for each.
Found: TypeAlias = Iterable[tuple[int, Any]]

_BEGIN_READING: Final[Request] = ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", ())
_COMMIT: Final[Request] = ("COMMIT", ())

_COUNTS: Final = f"{_SQL.counts} UNION ALL SELECT kind, -n FROM ({_SQL.expired_counts}) AS expired (kind, n)"  # noqa: S608
# What a place names. Each is looked up alone, by its whole key. Here and below a column that stands beside one of a
# query around it has its table's name: without it, a column that is not there would be taken for the other one.
_OWNER: Final = (
    f"SELECT * FROM record WHERE record.parent_id = {ROOT_ID} AND record.kind = {int(Kind.NAMESPACE)} "  # noqa: S608
    "AND record.key = place.namespace"
)
_FOUND: Final = (
    "SELECT * FROM record WHERE record.parent_id = owner.id AND record.kind = place.kind AND record.key = place.key"
)
_OWNED: Final = f"CROSS JOIN LATERAL ({_OWNER} LIMIT 1) AS owner CROSS JOIN LATERAL ({_FOUND} LIMIT 1) AS found"
_HEADS: Final = f"""
    SELECT place.position, found.meta,
        CASE WHEN octet_length(found.value) > place.bytes_max THEN '' ELSE found.value END, found.expires_ms
    FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::bigint[])
        WITH ORDINALITY AS place (namespace, kind, key, bytes_max, position)
    {_OWNED}
"""  # noqa: S608 - made of constants
# The limit, which is none, has the server see that the rows can come in order.
_LANES: Final = f"""
    SELECT place.position, lane_row.sort_key, lane_row.value, lane_row.by_key
    FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::bigint[])
        WITH ORDINALITY AS place (namespace, kind, key, lane, position)
    {_OWNED}
    CROSS JOIN LATERAL (
        SELECT record_row.sort_key, record_row.value, record_row.by_key FROM record_row
        WHERE record_row.record_id = found.id AND record_row.lane = place.lane
        ORDER BY record_row.sort_key LIMIT %s
    ) AS lane_row
    ORDER BY place.position, lane_row.sort_key
"""  # noqa: S608 - made of constants


async def _answers(connection: Connection, queries: Sequence[Query]) -> list[list[Any] | Problem]:
    """Answer the queries in one round trip; several statements see one snapshot."""
    asked = _Asked(queries)
    if len(asked.requests) == 1:
        return asked.answers(await connection.exchange(asked.requests))
    _, *rows, _ = await connection.exchange([_BEGIN_READING, *asked.requests, _COMMIT])
    return asked.answers(rows)


class _Asked:
    """Queries as statements: all reads of heads share one, and so do all scans of whole lanes."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self.requests: list[Request] = []
        self._lengths = [len(query) for query in queries]
        self._decoders: list[Callable[[Rows], Found]] = []
        heads: list[tuple[int, HeadRead]] = []
        lanes: list[tuple[int, RowScan]] = []
        for position, read in enumerate(itertools.chain.from_iterable(queries)):
            if isinstance(read, HeadRead):
                heads.append((position, read))
            elif isinstance(read, RowScan) and read == RowScan(read.place, read.lane):
                lanes.append((position, read))
            else:
                self._ask_one(position, *_question(read))
        if heads:
            self._ask_heads(heads)
        if lanes:
            self._ask_lanes(lanes)

    def answers(self, rows: Sequence[Rows]) -> list[Any]:
        """The queries' answers, given the rows of every statement."""
        found: list[Any] = [None] * sum(self._lengths)
        for decode, some in zip(self._decoders, rows, strict=True):
            for position, answer in decode(some):
                found[position] = answer
        results = iter(found)
        return [list(itertools.islice(results, length)) for length in self._lengths]

    def _ask_one(
        self, position: int, text: str, parameters: Sequence[Parameter], decode: Callable[[Rows], Any]
    ) -> None:
        self.requests.append((text, parameters))
        self._decoders.append(lambda rows: [(position, decode(rows))])

    def _ask_heads(self, positioned: list[tuple[int, HeadRead]]) -> None:
        def decode(rows: Rows) -> Found:
            return [(positioned[ordinal - 1][0], Head._make(head)) for ordinal, *head in rows]

        bounds = integers([read.bytes_max for _, read in positioned])
        self.requests.append((_HEADS, (*_columns([read.place for _, read in positioned]), bounds)))
        self._decoders.append(decode)

    def _ask_lanes(self, positioned: list[tuple[int, RowScan]]) -> None:
        def decode(rows: Rows) -> Found:
            slices: list[Slice[Row]] = [Slice([], False) for _ in positioned]
            for ordinal, *row in rows:
                slices[ordinal - 1].items.append(Row._make(row))
            return zip((position for position, _ in positioned), slices, strict=True)

        lanes = integers([scan.lane for _, scan in positioned])
        self.requests.append((_LANES, (*_columns([scan.place for _, scan in positioned]), lanes, None)))
        self._decoders.append(decode)


def _columns(places: Sequence[Place]) -> tuple[bytes, bytes, bytes]:
    return (
        texts([place.namespace for place in places]),
        integers([place.kind for place in places]),
        texts([place.key for place in places]),
    )


def _question(read: RowScan | Listing | CountRead | ExpiredRead) -> Question:
    if isinstance(read, RowScan):
        return _scan_question(read)
    if isinstance(read, Listing):
        return _listing_question(read)
    if isinstance(read, CountRead):
        return _COUNTS, (read.namespace, read.now_ms, read.namespace), _counts
    return _SQL.expired, (read.now_ms, read.limit), _expired


def _scan_question(scan: RowScan) -> Question:
    text, parameters = _SQL.scan_query(scan)
    order = "by_key" if scan.along is RowOrder.BY else "sort_key"
    columns = "sort_key, value, by_key"
    text = _bounded(text, columns, f"{order} DESC" if scan.descending else order, scan.bytes_max, parameters)
    return text, parameters, lambda rows: _slice(rows, scan.limit, scan.bytes_max, _row)


def _listing_question(listing: Listing) -> Question:
    text, parameters = _SQL.listing_query(listing)
    bytes_max = listing.bytes_max if listing.values else None
    text = _bounded(text, "key, meta, value, expires_ms", "key", bytes_max, parameters)
    return text, parameters, lambda rows: _slice(rows, listing.limit, bytes_max, _listed)


def _bounded(text: str, columns: str, order: str, bytes_max: int | None, parameters: list[Any]) -> str:
    """The statement cut after the row with which the values reach ``bytes_max``; its last column counts all rows."""
    if bytes_max is None:
        return text
    parameters.append(bytes_max)
    return f"""
        SELECT {columns}, total FROM (
            SELECT {columns}, count(*) OVER () AS total, sum(octet_length(value)) OVER (
                ORDER BY {order} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS bytes_before
            FROM ({text}) AS page ({columns})
        ) AS sized
        WHERE bytes_before IS NULL OR bytes_before < %s
        ORDER BY {order}
    """  # noqa: S608 - made of constants


def _slice(rows: Rows, limit: int | None, bytes_max: int | None, make: Callable[[tuple[Any, ...]], Any]) -> Slice[Any]:
    if limit is not None and len(rows) > limit:
        return Slice([make(row) for row in rows[:limit]], True)
    cut = bytes_max is not None and bool(rows) and rows[0][-1] > len(rows)
    return Slice([make(row) for row in rows], cut)


def _row(columns: tuple[Any, ...]) -> Row:
    return Row._make(columns[:3])


def _listed(columns: tuple[Any, ...]) -> tuple[str, Head]:
    return columns[0], Head._make(columns[1:4])


def _counts(rows: Rows) -> dict[Kind, int]:
    counts = dict.fromkeys(COUNTED, 0)
    for kind, n in rows:
        if kind in counts:
            counts[Kind(kind)] += n
    return counts


def _expired(rows: Rows) -> list[Place]:
    return [Place(namespace, Kind(kind), key) for namespace, kind, key in rows]


# --- writing -----------------------------------------------------------------------------------------------

# Both lock in the order of their parameters, which is the same for everybody.
_LOCK_NAMESPACES: Final = f"""
    SELECT owner.key, owner.id, owner.meta, owner.expires_ms
    FROM unnest(%s::text[]) AS place (namespace)
    CROSS JOIN LATERAL ({_OWNER} FOR KEY SHARE) AS owner
"""  # noqa: S608 - made of constants
_LOCK_HEADS: Final = f"""
    SELECT place.position, found.id, found.meta, found.expires_ms
    FROM unnest(%s::text[], %s::bigint[], %s::text[]) WITH ORDINALITY AS place (namespace, kind, key, position)
    CROSS JOIN LATERAL ({_OWNER} LIMIT 1) AS owner
    CROSS JOIN LATERAL ({_FOUND} FOR UPDATE) AS found
"""  # noqa: S608 - made of constants
_BEGIN: Final[Request] = ("BEGIN", ())
_ROLLBACK: Final[Request] = ("ROLLBACK", ())
_RESERVE_IDS: Final = "SELECT nextval(pg_get_serial_sequence('record', 'id')) FROM generate_series(1, %s)"
# An id that another record has was reserved before the schema was restored from a dump; meta is never null.
_PUT_HEADS: Final = """
    INSERT INTO record (id, parent_id, kind, key, expires_ms, meta, value)
    SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::bytea[], %s::bytea[])
    ON CONFLICT (id) DO UPDATE SET expires_ms = excluded.expires_ms, value = excluded.value, meta = CASE
        WHEN (record.parent_id, record.kind, record.key) = (excluded.parent_id, excluded.kind, excluded.key)
        THEN excluded.meta END
"""
_DELETE_RECORDS: Final = "DELETE FROM record WHERE id = ANY(%b::bigint[])"
_TRASH_RECORDS: Final = """
    INSERT INTO trash
    SELECT id FROM unnest(%b::bigint[]) AS gone (id)
    WHERE (SELECT lane FROM record_row WHERE record_row.record_id = gone.id ORDER BY lane, sort_key LIMIT 1) IS NOT NULL
        OR (SELECT kind FROM record WHERE record.parent_id = gone.id ORDER BY kind, key LIMIT 1) IS NOT NULL
    ON CONFLICT DO NOTHING
"""
_PUT_ROWS: Final = """
    INSERT INTO record_row (record_id, lane, sort_key, by_key, value)
    SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bytea[], %s::bytea[], %s::bytea[])
    ON CONFLICT (record_id, lane, sort_key) DO UPDATE SET by_key = excluded.by_key, value = excluded.value
"""
_DELETE_ROWS: Final = """
    DELETE FROM record_row
    WHERE ctid = ANY(ARRAY(
        SELECT found.ctid
        FROM unnest(%s::bigint[], %s::bigint[], %s::bytea[]) AS gone (record_id, lane, sort_key)
        CROSS JOIN LATERAL (
            SELECT ctid FROM record_row
            WHERE record_row.record_id = gone.record_id AND record_row.lane = gone.lane
                AND record_row.sort_key = gone.sort_key
            LIMIT 1
        ) AS found
    ))
"""
# The root record has no value of its own.
_STORE_ID: Final = ROOT_OF_STORE.encode()
_GIVE_STORE_ID: Final = f"UPDATE record SET value = %s WHERE id = {ROOT_ID} AND value = ''".encode()  # noqa: S608
# Fails if the store has another id.
_CHECK_STORE_ID: Final = f"SELECT 1 / count(*) FROM record WHERE id = {ROOT_ID} AND value = %s"  # noqa: S608
_SOME_TRASH: Final = "SELECT record_id FROM trash LIMIT 1 FOR UPDATE SKIP LOCKED"
_ERASE_ROWS: Final = """
    DELETE FROM record_row
    WHERE ctid = ANY(ARRAY(SELECT ctid FROM record_row WHERE record_id = %s ORDER BY lane, sort_key LIMIT %s))
"""

# The SQLSTATE of a warning, which comes beside an answer that is no error.
_WARNING: Final = "01000"

Planning: TypeAlias = Generator[Query, list[Any], Commit[Any]]


class _Transaction:
    """One batch of updates on one connection.

    ``committing`` is set when COMMIT goes out: if the connection breaks after that, nobody knows what became of it.
    """

    def __init__(self, connection: Connection, store_id: bytes, spare_ids: list[int]) -> None:
        self.committing = False
        self._connection = connection
        self._store_id = store_id
        # Whether namespaces are made. Whatever is not in one that was there before is written after one is made, so to
        # look at the store then is enough to write into no other.
        self._founding = False
        self._spare_ids = spare_ids
        self._ids: dict[Place, int | None] = {}
        self._heads: dict[Place, Head | None] = {}
        self._changes = _Changes()

    async def run(self, updates: Sequence[Update[Any]], *, alone: bool) -> list[Any]:
        """Carry out the updates in order and commit; returns their answers and the exceptions of their plans.

        What runs ``alone`` hardly waits for locks: it has waited with others before.
        """
        results: list[Any] = [None] * len(updates)
        notices: list[str | None] = []

        def note(notice: psycopg.errors.Diagnostic) -> None:
            notices.append(notice.sqlstate)

        self._connection.add_notice_handler(note)
        try:
            await self._lock(sorted({place for update in updates for place in update.places}), alone=alone)
            for wave in waves(updates):
                await self._run_wave([(position, updates[position]) for position in wave], results)
            checks: list[Request] = [(_CHECK_STORE_ID, (self._store_id,))] if self._founding else []
            requests = [*self._changes.requests(), *checks, *_count_requests(self._changes.counts), _COMMIT]
            self.committing = True
            await self._connection.exchange(requests)
        except BaseException:
            if not self._connection.closed:
                await self._connection.exchange([_ROLLBACK])
            raise
        finally:
            self._connection.remove_notice_handler(note)
        if _WARNING in notices:
            # Somebody cancelled the wait for the synchronous replica, and the server calls that a success.
            raise Problem("backend-unavailable", "PostgreSQL has committed, but maybe not on its replica: try again")
        return results

    async def _lock(self, places: list[Place], *, alone: bool) -> None:
        """Begin, lock the heads of the places, pin their namespaces, and learn both, all in one round trip."""
        parents = sorted({place.namespace for place in places if place.kind is not Kind.NAMESPACE})
        requests: list[Request] = [(_LOCK_NAMESPACES, (texts(parents),)), (_LOCK_HEADS, _columns(places))]
        beginning = [_BEGIN, _LOCK_ALONE] if alone else [_BEGIN]
        *_, namespaces, records = await self._connection.exchange([*beginning, *requests])
        self._ids = dict.fromkeys((*places, *map(namespace_place, parents)))
        self._heads = dict.fromkeys(self._ids)
        found = [(namespace_place(name), *row) for name, *row in namespaces]
        found += [(places[position - 1], *row) for position, *row in records]
        for place, record_id, meta, expires_ms in found:
            self._ids[place], self._heads[place] = record_id, Head(meta, b"", expires_ms)

    async def _run_wave(self, wave: list[tuple[int, Update[Any]]], results: list[Any]) -> None:
        """Run the plans of a wave, which touch different records, in step, so that their queries travel together."""
        commits: dict[int, Commit[Any]] = {}
        asking: list[tuple[int, Planning, Query]] = []

        def advance(position: int, planning: Planning, answer: list[Any] | None) -> None:
            try:
                asking.append((position, planning, next(planning) if answer is None else planning.send(answer)))
            except StopIteration as stop:
                commits[position] = stop.value
            except Exception as error:
                results[position] = error

        for position, update in wave:
            advance(position, update.plan(self._heads), None)
        unended = deque(wave)
        while True:
            # What comes before all who still ask is there for them to see.
            first = asking[0][0] if asking else None
            while unended and unended[0][0] != first:
                position, _ = unended.popleft()
                if position in commits:
                    await self._end(commits[position])
                    results[position] = commits[position].answer
            if not asking:
                return
            asked, asking = asking, []
            answers = await self._ask([query for *_, query in asked])
            for (position, planning, _), answer in zip(asked, answers, strict=True):
                advance(position, planning, answer)

    async def _end(self, commit: Commit[Any]) -> None:
        """Take over what a plan wants written."""
        await self._reserve_ids(sum(type(write) is PutHead for write in commit.writes))
        for write in commit.writes:
            self._write(write)

    async def _ask(self, queries: list[Query]) -> list[list[Any]]:
        """Answer the plans' queries in one round trip, after what is already to be written."""
        requests = self._changes.requests()
        counts = self._changes.counts
        if any(isinstance(read, CountRead) for query in queries for read in query):
            requests += _count_requests(counts)
            counts = {}
        self._changes = _Changes(counts)
        asked = _Asked(queries)
        rows = await self._connection.exchange([*requests, *asked.requests])
        return asked.answers(rows[len(requests) :])

    async def _reserve_ids(self, n: int) -> None:
        if len(self._spare_ids) < n:
            (rows,) = await self._connection.exchange([(_RESERVE_IDS, (n + _IDS_RESERVED,))])
            self._spare_ids += [record_id for (record_id,) in rows]

    def _write(self, write: Write) -> None:
        place = write.place
        record_id = self._ids[place]
        if isinstance(write, PutHead):
            new = record_id is None
            if record_id is None:
                self._founding |= place.kind is Kind.NAMESPACE
                record_id = self._ids[place] = self._spare_ids.pop()
            self._changes.put(record_id, self._parent_id(place), place, write.head, new=new)
            self._heads[place] = write.head._replace(value=b"")
        elif isinstance(write, PutRow):
            if record_id is None:
                raise AssertionError("a row was put into a record that does not exist")
            self._changes.rows[record_id, write.lane, write.row.sort] = write.row
        elif record_id is None:
            return
        elif isinstance(write, DeleteRow):
            self._changes.rows[record_id, write.lane, write.sort] = None
        elif isinstance(write, DeleteRows):
            self._changes.delete_rows(record_id, write)
        else:
            self._changes.delete(record_id, self._parent_id(place), place)
            gone = [place]
            if place.kind is Kind.NAMESPACE:
                gone += [inner for inner in self._ids if inner.namespace == place.key]
            for inner in gone:
                self._ids[inner] = self._heads[inner] = None

    def _parent_id(self, place: Place) -> int:
        if place.kind is Kind.NAMESPACE:
            return ROOT_ID
        parent_id = self._ids[namespace_place(place.namespace)]
        if parent_id is None:
            if not place.namespace:
                # The root record is there as long as the store is.
                raise _Lost("backend-unavailable", _LOST)
            raise AssertionError("a record was put into a namespace that does not exist")
        return parent_id


class _Changes:
    """What is to be written, gathered so that it takes a few statements however many updates there are."""

    def __init__(self, counts: dict[tuple[int, int], int] | None = None) -> None:
        self._heads: dict[int, tuple[int, Place, Head]] = {}
        # Those of them that are not there yet.
        self._new: set[int] = set()
        self._deleted: list[int] = []
        self._deleted_namespaces: list[int] = []
        self._deleted_ranges: list[tuple[int, DeleteRows]] = []
        # By how much the number of a parent's children of a kind changes. It is written last, for it is what batches
        # of several processes would wait for each other over.
        self.counts: dict[tuple[int, int], int] = {} if counts is None else counts
        # None: the row is to be deleted.
        self.rows: dict[tuple[int, int, bytes], Row | None] = {}

    def put(self, record_id: int, parent_id: int, place: Place, head: Head, *, new: bool) -> None:
        self._heads[record_id] = parent_id, place, head
        if new:
            self._new.add(record_id)
            self._count(parent_id, place, 1)

    def delete(self, record_id: int, parent_id: int, place: Place) -> None:
        self._count(parent_id, place, -1)
        children = [child for child in self._new if self._heads[child][0] == record_id]
        for gone in (record_id, *children):
            self._heads.pop(gone, None)
            if gone in self._new:
                self._new.remove(gone)
            else:
                self._deleted.append(gone)
        self.rows = {at: row for at, row in self.rows.items() if at[0] != record_id and at[0] not in children}
        if place.kind is Kind.NAMESPACE:
            self.counts = {at: n for at, n in self.counts.items() if at[0] != record_id}
            self._deleted_namespaces.append(record_id)

    def delete_rows(self, record_id: int, gone: DeleteRows) -> None:
        low, high = gone.low or b"", gone.high
        self.rows = {
            at: row
            for at, row in self.rows.items()
            if at[:2] != (record_id, gone.lane) or at[2] < low or (high is not None and at[2] > high)
        }
        self._deleted_ranges.append((record_id, gone))

    def _count(self, parent_id: int, place: Place, n: int) -> None:
        if place.kind in COUNTED:
            at = parent_id, int(place.kind)
            self.counts[at] = self.counts.get(at, 0) + n

    def requests(self) -> list[Request]:
        """The statements, in an order in which none undoes another."""
        requests: list[Request] = []
        for record_id, gone in self._deleted_ranges:
            text = _SQL.delete_rows(low=gone.low is not None, high=gone.high is not None)
            bounds = [bound for bound in (gone.low, gone.high) if bound is not None]
            requests.append((text, (record_id, gone.lane, *bounds)))
        if self._deleted:
            deleted = (integers(self._deleted),)
            requests += [(_DELETE_RECORDS, deleted), (_TRASH_RECORDS, deleted)]
        if self._heads:
            parents, places, heads = zip(*self._heads.values(), strict=True)
            _, *keys = _columns(places)
            requests.append((_PUT_HEADS, (integers([*self._heads]), integers(parents), *keys, *_stored(heads))))
        deleted_rows = [at for at, row in self.rows.items() if row is None]
        if deleted_rows:
            requests.append((_DELETE_ROWS, _positions(deleted_rows)))
        for put in _chunks([(at, row) for at, row in self.rows.items() if row is not None]):
            rows = [row for _, row in put]
            values = blobs([row.by for row in rows]), blobs([row.value for row in rows])
            requests.append((_PUT_ROWS, (*_positions([at for at, _ in put]), *values)))
        requests += [(_SQL.delete_counts, (namespace_id,)) for namespace_id in self._deleted_namespaces]
        return requests


def _count_requests(counts: dict[tuple[int, int], int]) -> list[Request]:
    # In order, so that two processes that count in the same namespaces never wait for each other in a circle.
    return [(_SQL.add_count, (parent_id, kind, n)) for (parent_id, kind), n in sorted(counts.items()) if n]


def _stored(heads: Sequence[Head]) -> tuple[bytes, bytes, bytes]:
    return (
        integers([head.expires_ms for head in heads]),
        blobs([head.meta for head in heads]),
        blobs([head.value for head in heads]),
    )


def _positions(rows: Sequence[tuple[int, int, bytes]]) -> tuple[bytes, bytes, bytes]:
    record_ids, lanes, sorts = zip(*rows, strict=True)
    return integers(record_ids), integers(lanes), blobs(sorts)


def _chunks(rows: list[tuple[tuple[int, int, bytes], Row]]) -> Iterator[list[tuple[tuple[int, int, bytes], Row]]]:
    """The rows in runs that hold a bounded number of bytes each."""
    start = size = 0
    for position, (_, row) in enumerate(rows):
        size += len(row.value)
        if size >= _ROWS_BYTES_MAX:
            yield rows[start : position + 1]
            start, size = position + 1, 0
    if start < len(rows):
        yield rows[start:]


# --- failing -----------------------------------------------------------------------------------------------


class _Raced(Problem):
    """Another process wrote the same records first; nothing was kept, and the same batch can be tried again."""


class _Misplaced(_Raced):
    """An id that was reserved belongs to another record, so nothing was kept; with other ids it can be tried again."""


class _Rejected(Problem):
    """The server refused a statement, so nothing was kept; of a batch, most updates may still be possible."""


class _Demoted(Problem):
    """The server takes no writes any more, so nothing was kept."""


class _Lost(Problem):
    """The store that was opened is not there, so nothing was kept."""


class _HungUp(Problem):
    """The server was silent for too long."""


class _NoConnection(Problem):
    """There was no connection to be had, so nothing was sent."""


_UNAVAILABLE: Final = "PostgreSQL does not answer or turns connections away: try again"
_LOST: Final = (
    "the store that was opened is not in the database any more, or the DSN's user may not use it: restore it, or "
    "restart the service to use what is there now"
)
_TOO_LONG: Final = "PostgreSQL took too long over a statement: try again"


def _translated(error: psycopg.Error) -> Exception:
    """The problem that a driver's error means; the error itself if it can only be a mistake in this program."""
    state = error.sqlstate or ""
    if isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name == "record_row_by":
        return error
    if isinstance(error, psycopg.errors.NotNullViolation):
        return _Misplaced("backend-unavailable", "ids of records keep being taken: try again")
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return Problem(
            "backend-unavailable",
            "PostgreSQL refuses the DSN's user: grant it the schema and its tables, or CREATE on the database",
        )
    if isinstance(error, psycopg.errors.InvalidSchemaName | psycopg.errors.DivisionByZero) or (
        # Tables, columns or types are not those that the statements were written for.
        state.startswith(("42", "0A")) and not isinstance(error, psycopg.errors.SyntaxError)
    ):
        return _Lost("backend-unavailable", _LOST)
    if isinstance(error, psycopg.errors.UniqueViolation) or state.startswith("40"):
        return _Raced("backend-unavailable", "other processes keep writing the same records: try again")
    if isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
        return _Rejected("backend-unavailable", _TOO_LONG)
    if isinstance(error, psycopg.errors.DiskFull):
        return _Rejected("storage-full", "PostgreSQL's disk is full: free some space and try again")
    if state.startswith("XX"):
        return _Rejected("backend-corrupt", "PostgreSQL reports damaged data: see its log")
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return _Demoted("backend-unavailable", "PostgreSQL takes no writes: try again when a primary is there")
    if isinstance(error, PoolTimeout | PoolClosed | TooManyRequests):
        return _NoConnection("backend-unavailable", _UNAVAILABLE)
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or state[:2] in ("08", "25", "53", "57"):
        return Problem("backend-unavailable", _UNAVAILABLE)
    return error
