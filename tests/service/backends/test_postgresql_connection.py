"""Statements that libpq sends: what goes in comes out, and what fails, breaks or is left half done spoils nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import psycopg
import pytest
from tests import servers
from tests.waiting import SECONDS_MAX

from rstored.backends.postgresql.connection import OPTIONS, Connection
from rstored.backends.postgresql.parameters import blobs, integers, texts

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(servers.missing_postgresql() is not None, reason=str(servers.missing_postgresql())),
]

BEGIN, ROLLBACK, FAILING = ("BEGIN", ()), ("ROLLBACK", ()), ("SELECT 1 / (%s::bigint)", (0,))


@pytest.fixture
async def connection(anyio_backend: str) -> AsyncIterator[Connection]:
    dsn = servers.postgresql_server().dsn
    async with asyncio.timeout(SECONDS_MAX), await Connection.connect(dsn, **OPTIONS) as connection:
        yield connection


async def one(connection: Connection) -> None:
    """See that the connection is as good as new."""
    assert await connection.exchange([("SELECT %s::bigint", (1,))]) == [[(1,)]]
    assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


@pytest.mark.parametrize("value", ["", "é€😀\n%s", 0, -(2**63), 2**63 - 1, b"", b"\0\xff%b", None])
async def test_a_parameter_comes_back_as_it_was(connection: Connection, value: str | int | bytes | None) -> None:
    kind = {str: "text", int: "bigint", bytes: "bytea"}.get(type(value), "bytea")
    assert await connection.exchange([(f"SELECT %s::{kind}", (value,))] * 2) == [[(value,)]] * 2


@pytest.mark.parametrize(
    ("array", "kind", "items"),
    [
        (texts, "text", ["", "é€😀", "a" * 70_000]),
        (integers, "bigint", [0, None, -(2**63), 2**63 - 1]),
        (integers, "bigint", [-1, 5, 2**63 - 1]),
        (blobs, "bytea", [b"", None, bytes(range(256))]),
    ],
)
@pytest.mark.parametrize("length", [None, 1, 0])
async def test_an_array_comes_back_as_it_was(connection: Connection, array, kind: str, items, length) -> None:
    some = items[:length]
    rows, counted = await connection.exchange(
        [
            (f"SELECT item FROM unnest(%s::{kind}[]) WITH ORDINALITY AS of (item, at) ORDER BY at", (array(some),)),
            (f"SELECT cardinality(%s::{kind}[])", (array(some),)),
        ]
    )
    assert rows == [(item,) for item in some]
    assert counted == [(len(some),)]


async def test_more_travels_each_way_than_the_network_holds(connection: Connection) -> None:
    """The server sends answers before it has taken all questions; who only sent would wait for it for ever."""
    values = [bytes([n]) * 2**20 for n in range(40)]
    assert await connection.exchange([("SELECT %s::bytea", (value,)) for value in values]) == [
        [(value,)] for value in values
    ]


async def test_after_a_statement_that_fails_none_is_carried_out(connection: Connection) -> None:
    await connection.exchange([("CREATE TEMPORARY TABLE written (n bigint)", ())])
    write, read = ("INSERT INTO written VALUES (%s)", (1,)), ("SELECT n FROM written", ())
    for _ in range(2):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.exchange([BEGIN, write, FAILING, write, read, ("COMMIT", ())])
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await connection.exchange([read])
        await connection.exchange([ROLLBACK])
        assert await connection.exchange([read]) == [[]]
    assert await connection.exchange([write, read]) == [[], [(1,)]]


async def test_psycopg_rolls_back_and_statements_stay_prepared(connection: Connection) -> None:
    await one(connection)
    # More often than psycopg by default lets a statement go unprepared.
    for _ in range(7):
        await connection.execute("SELECT 'over and over'")
    await connection.execute("BEGIN")
    await connection.rollback()
    await one(connection)
    prepared = await (await connection.execute("SELECT statement FROM pg_prepared_statements")).fetchall()
    assert prepared == [("SELECT $1::bigint",)]


async def test_a_statement_takes_too_long(connection: Connection) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        await connection.exchange([BEGIN, ("SET LOCAL statement_timeout = '10ms'", ()), ("SELECT pg_sleep(600)", ())])
    await connection.exchange([ROLLBACK])
    await one(connection)


async def test_a_warning_comes_beside_the_answer(connection: Connection) -> None:
    heard: list[str | None] = []
    connection.add_notice_handler(lambda notice: heard.append(notice.sqlstate))
    assert await connection.exchange([("DO $$ BEGIN RAISE WARNING 'beware'; END $$", ())]) == [[]]
    assert heard == ["01000"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_the_server_ends_the_connection(connection: Connection, when: str) -> None:
    end = f"SELECT pg_terminate_backend({connection.info.backend_pid})"
    if when == "before":
        servers.postgresql_server().sql(end)
    exchange = asyncio.create_task(connection.exchange([BEGIN, ("SELECT pg_sleep(600)", ()), ("COMMIT", ())]))
    await asyncio.sleep(0.05)
    if when == "meanwhile":
        servers.postgresql_server().sql(end)
    with pytest.raises(psycopg.OperationalError):
        await exchange
    assert connection.closed
    with pytest.raises(psycopg.OperationalError):
        await connection.exchange([BEGIN])


async def test_who_waits_is_cancelled(connection: Connection) -> None:
    """What else the server says belongs to nobody, so nobody may use the connection any more."""
    exchange = asyncio.create_task(connection.exchange([("SELECT pg_sleep(600)", ())]))
    await asyncio.sleep(0.05)
    exchange.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await exchange
    assert connection.closed
