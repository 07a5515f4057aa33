"""Every DSN ends in a store that works or in one line that says what is wrong and shows no password."""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import pq
from redis.asyncio import connection as redis_connection
from tests import servers
from tests.forked import run
from tests.waiting import SECONDS_MAX

from rstore.codec.values import dump
from rstore.core.encodings import Encoding, Value
from rstore.core.points import Points
from rstored.backends import backend_class
from rstored.backends.postgresql import dsn as postgresql_dsn
from rstored.backends.redis import dsn as redis_dsn
from rstored.backends.sqlite.dsn import database_path
from rstored.engine.engine import Engine
from rstored.engine.model import Change
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

PASSWORD = "hush-hush"
NO_POSTGRESQL, NO_REDIS = servers.missing_postgresql(), servers.missing_redis()
needs_postgresql = pytest.mark.skipif(NO_POSTGRESQL is not None, reason=str(NO_POSTGRESQL))
needs_redis = pytest.mark.skipif(NO_REDIS is not None, reason=str(NO_REDIS))


async def outcome(dsn: str) -> str | None:
    """The line that says why the DSN is refused; None if the store works. Anything else fails the test."""
    # What `rstored migrate --check` asks must be as clear.
    await line_of(versions(dsn))
    return await line_of(opened_and_used(dsn))


def check(problem: Problem) -> str:
    """The line that a problem shows."""
    line = problem.detail
    assert problem.code in ("backend-unavailable", "backend-corrupt")
    assert "\n" not in line
    assert 10 < len(line) < 700
    assert PASSWORD not in line
    return line


async def line_of(work: Awaitable[Any]) -> str | None:
    try:
        async with asyncio.timeout(SECONDS_MAX):
            await work
    except Problem as problem:
        return check(problem)
    return None


async def opened_and_used(dsn: str) -> None:
    backend = await backend_class(dsn).open(dsn)
    try:
        await use(Engine(backend))
    finally:
        await backend.close()


async def versions(dsn: str) -> None:
    await backend_class(dsn).schema_versions(dsn)


async def use(engine: Engine) -> None:
    """Write and read some of each kind, in text that is not ASCII."""
    namespace, key = f"n{secrets.token_hex(4)}", "ключ/ü\N{GRINNING FACE}"
    value = Value(Encoding.BYTES, bytes(range(256)))
    for _ in range(2):
        await engine.kv.put(namespace, key, value=value, media_type="image/png", write_id=secrets.token_hex(4))
    await engine.ts.extend(namespace, key, Points.from_pairs([(1, 1.5), (2, {"ü": 1})], dump))
    text = Value(Encoding.JSON, '"\N{GRINNING FACE}"'.encode())
    await engine.es.apply(namespace, key, [Change("ü", "setitem", text)])
    entry = await engine.kv.get(namespace, key)
    assert entry is not None
    assert entry.value == value
    assert [len(part) for part in [part async for part in engine.ts.range(namespace, key)]] == [2]
    state = await engine.es.current(namespace, key)
    assert state is not None
    assert state.items == {"ü": text}
    assert [name for name, _ in (await engine.kv.list(namespace)).items] == [key]
    assert (await engine.namespaces.describe(namespace)).kv == 1
    assert await engine.namespaces.discard(namespace)
    await engine.ping()
    await engine.stop()


# --- PostgreSQL --------------------------------------------------------------------------------------------

GOOD: dict[str, list[str]] = {
    "application_name": ["store", "ein Ü"],
    "channel_binding": ["prefer", "disable"],
    "client_encoding": ["utf8", "UTF-8"],
    "connect_timeout": ["1", "10", "0"],
    "fallback_application_name": ["store"],
    "gssencmode": ["disable"],
    "keepalives": ["1", "0"],
    "keepalives_count": ["3"],
    "keepalives_idle": ["30"],
    "keepalives_interval": ["10"],
    "load_balance_hosts": ["disable", "random"],
    "max_protocol_version": ["3.0", "latest"],
    "min_protocol_version": ["3.0"],
    "options": [
        "-c geqo=off",
        "-c search_path=pg_catalog",
        "-c client_min_messages=error",
        "-c default_transaction_isolation=serializable",
        "-c transaction_read_only=on",
        "-c statement_timeout=1",
        "-c bytea_output=escape",
        "-c standard_conforming_strings=off",
        "-c client_encoding=LATIN1",
        "-c DateStyle=German -c IntervalStyle=iso_8601",
    ],
    "passfile": ["/nowhere"],
    "password": [PASSWORD],
    "require_auth": ["none"],
    "schema": ["public", "Shop", "ü", "a" * 63, 'qu"ote', "with space"],
    "sslcertmode": ["allow"],
    "sslcompression": ["0"],
    "sslmode": ["disable", "prefer"],
    "sslsni": ["0"],
    "target_session_attrs": ["any", "read-write", "primary"],
    "tcp_user_timeout": ["1000"],
}
"""Values that a store without TLS works with. What has none here is only given bad ones."""

BAD: dict[str, list[str]] = {
    "client_encoding": ["latin1", "SQL_ASCII"],
    "connect_timeout": ["soon", "1.5", ""],
    "dbname": ["absent"],
    "host": ["", "no.such.host.invalid", "a" * 300, "ü" * 70, "/nowhere", "a b"],
    "hostaddr": ["localhost", "1.2.3", "::ffff"],
    "options": ["-c", "-c nonsense=1", "--nonsense", "-c geqo", "-c default_transaction_read_only=on"],
    "port": ["0", "65536", "73659", "-1", "http", "1,2", "5432,5432"],
    "replication": ["database", "true", "0"],
    "schema": ["", "pg_x", "pg_catalog", "information_schema", "a" * 64, "ü" * 32],
    "sslmode": ["require", "verify-full", "verify_full", "on"],
    "target_session_attrs": ["read-only", "standby", "nonsense"],
    "user": ["absent", "ü"],
}


@pytest.fixture(scope="module")
def postgresql() -> Iterator[servers.PostgreSQLServer]:
    if NO_POSTGRESQL:
        pytest.skip(NO_POSTGRESQL)
    with servers.PostgreSQLServer() as server:
        yield server


KEYWORDS = sorted({option.keyword.decode() for option in pq.Conninfo.get_defaults()} | {"schema", "ssl"})


@pytest.mark.parametrize("name", KEYWORDS)
async def test_a_parameter_of_libpq(postgresql: servers.PostgreSQLServer, name: str) -> None:
    for value in GOOD.get(name, ()):
        # Both as a URI has it and as people write it.
        for written in (quote(value, safe=""), value.replace("%", "%25").replace("&", "%26")):
            assert await outcome(f"{postgresql.dsn}?{name}={written}") is None, written
    for value in BAD.get(name, ["nonsense", "", "\N{SNOWMAN}"]):
        line = await outcome(f"{postgresql.dsn}?{name}={quote(value, safe='')}")
        assert line or name not in BAD, value


async def test_other_parameters(postgresql: servers.PostgreSQLServer) -> None:
    for query in (
        "sslmod=require",
        "Schema=x",
        "schema",
        "schema=a&schema=b",
        "application_name=%ff",
        "application_name=%00",
        f"{PASSWORD}=1",
        "=x",
        "application_name",
        "%73chema=x",
    ):
        assert await outcome(f"{postgresql.dsn}?{query}"), query
    for query in ("sslmode=verify-full&sslrootcert=/nowhere", "sslmode=verify-ca&sslrootcert=system"):
        assert await outcome(f"{postgresql.dsn}?{query}"), query
    for query in ("", "&", "schema=a&&application_name=b"):
        assert await outcome(f"{postgresql.dsn}?{query}") is None, query


async def test_addresses_of_postgresql(postgresql: servers.PostgreSQLServer) -> None:
    port, folder = postgresql.port, quote(str(postgresql.folder), safe="")
    for dsn in (
        f"postgres://test:{PASSWORD}@localhost:{port}/test",
        f"postgresql://test@{folder}:{port}/test",
        f"postgresql:///test?host={folder}&port={port}&user=test",
        f"postgresql://test@127.0.0.1:1,127.0.0.1:{port}/test",
        f"postgresql:///test?host=127.0.0.1,127.0.0.1&port=1,{port}&user=test",
        f"postgresql://test:a#b%3F@127.0.0.1:{port}/test",
    ):
        assert await outcome(dsn) is None, dsn
    for dsn in (
        f"postgresql://test:{PASSWORD}@127.0.0.1:1/test",
        f"postgresql://test:{PASSWORD}@127.0.0.1:0/test",
        f"postgresql://test:{PASSWORD}@127.0.0.1:73659/test",
        f"postgresql://test:{PASSWORD}@127.0.0.1:port/test",
        f"postgresql://test:{PASSWORD}@127.0.0.1:{port}/absent",
        f"postgresql://absent:{PASSWORD}@127.0.0.1:{port}/test",
        f"postgresql://test:{PASSWORD}%zz@127.0.0.1:{port}/test",
        f"postgresql://test:x@{PASSWORD}@127.0.0.1:{port}/test",
        f"postgresql://test:x/{PASSWORD}@127.0.0.1:{port}/test",
        f"postgresql://test:{PASSWORD}@[::1:{port}/test",
        f"postgresql://test:{PASSWORD}@[::1]x:{port}/test",
        f"postgresql://test:{PASSWORD}@%2Fnowhere/test",
        f"postgresql://test:{PASSWORD}@127.0.0.1:{port}/te%00st",
        f"postgresql://test:{PASSWORD}@no.such.host.invalid/test",
        f"postgresql://test:{PASSWORD}@{'a' * 70}.invalid/test",
        f"postgresql://test:{PASSWORD}@ü..x/test",
    ):
        assert await outcome(dsn), dsn


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "WIN1252"])
async def test_a_database_of_another_encoding(postgresql: servers.PostgreSQLServer, encoding: str) -> None:
    name = f"d{secrets.token_hex(4)}"
    statement = f"CREATE DATABASE {name} OWNER test ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    postgresql.sql(statement)
    line = await outcome(f"{postgresql.dsn.removesuffix('test')}{name}")
    assert line is not None
    assert encoding in line
    assert "ENCODING 'UTF8'" in line
    with psycopg.connect(f"{postgresql.dsn.removesuffix('test')}{name}") as connection:
        assert connection.execute("SELECT count(*) FROM pg_namespace WHERE nspname = 'rstore'").fetchone() == (0,)


async def test_a_schema_of_another_program(postgresql: servers.PostgreSQLServer) -> None:
    for number, table in enumerate(("record (id int)", "schema_version (name text)", "trash (id int)")):
        schema = f"other{number}"
        postgresql.sql(f"CREATE SCHEMA {schema} AUTHORIZATION test")
        postgresql.sql(f"SET ROLE test; CREATE TABLE {schema}.{table}")
        assert await outcome(f"{postgresql.dsn}?schema={schema}"), table


async def test_a_standby(postgresql: servers.PostgreSQLServer) -> None:
    assert await outcome(postgresql.dsn) is None
    with servers.PostgreSQLServer(primary=postgresql) as standby:
        line = await outcome(standby.dsn)
        assert line is not None
        assert "no writes" in line


# --- Redis -------------------------------------------------------------------------------------------------

REDIS_GOOD: dict[str, list[str]] = {
    "client_name": ["store"],
    "db": ["0", "3"],
    "password": [],
    "socket_keepalive": ["true", "0"],
    "prefix": ["p", "a.b:c_d-e"],
    "buckets": ["1", "4"],
    "eviction": ["accept"],
}
REDIS_BAD: dict[str, list[str]] = {
    "db": ["a", "-1", "99", "1.5", "٣"],
    "username": ["absent"],
    "password": [PASSWORD],
    "client_name": ["a b", "ü", "a\nb"],
    "buckets": ["0", "3", "-1", "2048", "٤", "1e1"],
    "prefix": ["", "a b", "{a}", "a" * 65, "ü"],
    "eviction": ["refuse", "true"],
    "protocol": ["2", "3", "nonsense"],
    "decode_responses": ["true", "false"],
}


def arguments_of(*classes: type) -> set[str]:
    """What the driver takes as parameters: any argument of what it makes."""
    found: set[str] = set()
    for kind in classes:
        for base in kind.__mro__:
            if "__init__" in vars(base) and base is not object:
                found |= inspect.signature(vars(base)["__init__"]).parameters.keys()
    return found - {"self", "args", "kwargs", "connection_kwargs", "conn"}


NAMES = sorted(
    arguments_of(
        redis_connection.Connection,
        redis_connection.SSLConnection,
        redis_connection.UnixDomainSocketConnection,
        redis_connection.BlockingConnectionPool,
    )
    | set(redis_connection.URL_QUERY_ARGUMENT_PARSERS)
    | {"prefix", "buckets", "eviction", "nonsense"}
)


@pytest.fixture(scope="module")
def redis() -> Iterator[servers.RedisServer]:
    if NO_REDIS:
        pytest.skip(NO_REDIS)
    with servers.RedisServer() as server:
        yield server


@pytest.mark.parametrize("name", NAMES)
async def test_a_parameter_of_redis(redis: servers.RedisServer, name: str) -> None:
    # A store that is made with other buckets than asked for is refused, so each has one of its own.
    fresh = "" if name == "prefix" else f"&prefix=p{secrets.token_hex(4)}"
    for value in REDIS_GOOD.get(name, ()):
        assert await outcome(f"{redis.dsn}?{name}={quote(value)}{fresh}") is None, value
        fresh = "" if name == "prefix" else f"&prefix=p{secrets.token_hex(4)}"
    for value in REDIS_BAD.get(name, ["nonsense", "", "1", "true", "\N{SNOWMAN}", "%ff"]):
        written = value if value == "%ff" else quote(value)
        line = await outcome(f"{redis.dsn}?{name}={written}{fresh}")
        assert line or name in redis_dsn.PARAMETERS or name in REDIS_GOOD, value
        assert line or name not in REDIS_BAD, value
    assert await outcome(f"rediss{redis.dsn.removeprefix('redis')}?{name}=nonsense")


async def test_addresses_of_redis(redis: servers.RedisServer) -> None:
    port = redis.port
    for dsn in (f"redis://localhost:{port}", f"valkey://127.0.0.1:{port}/", f"redis://127.0.0.1:{port}/2?"):
        assert await outcome(dsn) is None, dsn
    for dsn in (
        f"redis://:{PASSWORD}@127.0.0.1:{port}",
        f"redis://me:{PASSWORD}@127.0.0.1:1",
        "redis://127.0.0.1:0",
        "redis://127.0.0.1:73659",
        "redis://127.0.0.1:-1",
        "redis://127.0.0.1:port",
        f"redis://127.0.0.1:{port}/db",
        f"redis://127.0.0.1:{port}/99",
        f"redis://127.0.0.1:{port}/0/1",
        f"redis://127.0.0.1:{port}/-1",
        f"redis://127.0.0.1:{port}#x",
        f"redis://:{PASSWORD}#x@127.0.0.1:{port}",
        f"redis://:{PASSWORD}/x@127.0.0.1:{port}",
        f"redis://:{PASSWORD}%ff@127.0.0.1:{port}",
        f"redis://:{PASSWORD}@[::1:{port}",
        f"redis://127.0.0.1:{port},127.0.0.1:{port}",
        f"redis+cluster://127.0.0.1:{port},",
        f"redis+cluster://127.0.0.1:{port}/1",
        f"redis+cluster://127.0.0.1:{port}",
        f"redis+cluster://127.0.0.1:1,127.0.0.1:{port}",
        f"rediss://127.0.0.1:{port}",
        f"rediss+cluster://127.0.0.1:{port}",
        f"redis://{'a' * 70}.invalid:{port}",
        f"redis://ü..x:{port}",
        "redis://no.such.host.invalid",
        f"redis://127.0.0.1:{port}?prefix=a&prefix=b",
        f"unix://{redis.folder}/socket",
        f"REDIS://127.0.0.1:{port}",
    ):
        assert await outcome(dsn), dsn


async def test_what_speaks_something_else(postgresql: servers.PostgreSQLServer, redis: servers.RedisServer) -> None:
    assert await outcome(f"redis://127.0.0.1:{postgresql.port}")
    assert await outcome(f"postgresql://127.0.0.1:{redis.port}/test")


async def test_a_redis_that_takes_no_writes() -> None:
    if NO_REDIS:
        pytest.skip(NO_REDIS)
    with servers.RedisServer() as primary, servers.RedisServer(f"replicaof 127.0.0.1 {primary.port}") as replica:
        line = await outcome(replica.dsn)
        assert line is not None
        assert "replica" in line


# --- SQLite ------------------------------------------------------------------------------------------------


async def test_paths_of_sqlite(tmp_path: Path) -> None:
    for name in ("store.db", "a b.db", "ü.db", "%41.db", "#.db", "-.db", ":.db", "a=b&c"):
        assert await outcome(f"sqlite:///{tmp_path}/{name}") is None, name
        assert (tmp_path / name).exists()
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "text").write_text("no database")
    for rest in (
        "",
        "/",
        "/:memory:",
        "./:memory:",
        "/.//:memory:",
        f"/{folder}",
        f"/{folder}/",
        f"/{folder}/absent/store.db",
        f"/{folder}/text",
        f"/{folder}/text/store.db",
        f"/{folder}/loop",
        f"/{folder}/{'a' * 300}",
        f"/{folder}/{'a' * 300}/store.db",
        f"/{folder}/store.db?mode=ro",
        f"/{folder}/a\0b",
        f"/{folder}/a\ud800b",
        "//dev/null",
        "//proc/store.db",
        "//dev/zero",
    ):
        assert await outcome(f"sqlite://{rest}"), rest


# --- any text ----------------------------------------------------------------------------------------------

PARSERS: list[Callable[[str], Any]] = [
    lambda rest: postgresql_dsn.parse_dsn(f"postgresql://{rest}"),
    lambda rest: redis_dsn.parse_dsn(f"redis://{rest}", ("prefix",)),
    lambda rest: redis_dsn.parse_dsn(f"rediss+cluster://{rest}", ("prefix",)),
    lambda rest: database_path(f"sqlite://{rest}"),
]
WORDS = f"""{PASSWORD} : @ / ? # % %zz %00 %ff [ ] ::1 , = & host 1 73659 ü
    schema options db prefix ssl_ca_data ssl_ciphers sslmode"""
PIECES = st.sampled_from([*WORDS.split(), " ", "\n", "\udcff"])


@pytest.mark.parametrize("number", range(len(PARSERS)))
@given(rest=st.lists(PIECES, max_size=10).map("".join) | st.text(max_size=30))
@example(rest="[")
@example(rest=f":{PASSWORD}%zz@h")
def test_a_parser_refuses_in_one_line_or_takes_it(number: int, rest: str) -> None:
    try:
        PARSERS[number](rest)
    except Problem as problem:
        check(problem)


@pytest.mark.parametrize(("number", "names"), [(0, KEYWORDS), (1, NAMES), (2, NAMES)])
def test_a_parser_refuses_each_odd_value_of_each_parameter_in_one_line_or_takes_it(
    number: int, names: list[str]
) -> None:
    values = [
        "",
        "0",
        "1" * 30,
        "'",
        "\\",
        "a" * 600,
        PASSWORD,
        " ",
        "\n",
        "%0A",
        "%00",
        "%ff",
        "%zz",
        "\udcff",
        "ü",
        "%C3%BC",
    ]
    for name in names:
        for value in values:
            for login in ("", "u@", f"u:{PASSWORD}\udcff@", f":{PASSWORD}%00@"):
                try:
                    PARSERS[number](f"{login}127.0.0.1:1/0?{name}={value}")
                except Problem as problem:
                    check(problem)


# --- the command -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve --port 0", "migrate", "migrate --check", "token list"])
async def test_the_command_says_one_line_and_exits(postgresql, redis, tmp_path: Path, command: str) -> None:
    dsns = [
        f"{postgresql.dsn}?schema=pg_x",
        f"{postgresql.dsn}?options=-c%20nonsense%3D1",
        f"postgresql://test:{PASSWORD}@127.0.0.1:1/test",
        f"{redis.dsn}?protocol=3",
        f"{redis.dsn}?client_name=\udcff",
        f"redis://:{PASSWORD}@127.0.0.1:1",
        f"sqlite:///{tmp_path}/{'a' * 300}",
    ]
    processes = [asyncio.to_thread(run, "rstored", *command.split(), "--dsn", dsn, env=os.environ) for dsn in dsns]
    # At once: each of them only starts, or waits for a server.
    for dsn, done in zip(dsns, await asyncio.gather(*processes), strict=True):
        assert done.returncode == 1, (dsn, done.stdout, done.stderr)
        assert done.stdout == b""
        told = done.stderr.decode()
        assert told.startswith("rstored: ")
        assert told.count("\n") == 1
        assert PASSWORD not in told
