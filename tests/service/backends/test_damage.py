"""Damage in the storage: whatever lies there is changed, and every operation is asked for what it says then.

Each field of a small store (each column of each row, each field and member of each key) is cut, has bits turned, gets
another type, or is lost. No operation may then fail in an unknown way, change anything without saying so, or spoil what
belongs to another namespace; and where the parts of what is stored contradict each other, it says so.
"""

from __future__ import annotations

import abc
import contextlib
import random
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

import httpx2
import msgspec
import psycopg
import pytest
import redis
from pydantic import SecretStr
from tests.knobs import knob

from rstore.core.frames import decode
from rstore.core.points import Points
from rstored.app import running_app
from rstored.backends.schema import metadata
from rstored.settings import Settings

pytestmark = pytest.mark.anyio

DAMAGES: Final = 30 * int(knob("RSTORE_FUZZ_EXAMPLES", "1"))
SEED: Final = int(knob("RSTORE_FUZZ_SEED", "1"))
ADMIN: Final = "x" * 32
ROOT: Final = 0

State = dict[Any, Any]
Request = tuple[str, str, bytes, dict[str, str]]


class Field(NamedTuple):
    """A place in a state: the keys that lead to it. ``checked``: what reads it sees that it was cut or is not bytes.

    ``head_of``: whose head it is, as a part of an address, if that thing has other parts, which show that it was lost.
    """

    path: tuple[Any, ...]
    checked: bool
    head_of: str | None = None


# --- storages ----------------------------------------------------------------------------------------------


class Storage(abc.ABC):
    """What lies in a storage, as nested dicts that can be read, changed and written back."""

    @abc.abstractmethod
    def read(self) -> State:
        """All that is in the store but for what says that it is this store."""

    @abc.abstractmethod
    def write(self, state: State) -> None:
        """Put this in its place. Raises :class:`Impossible` if the storage cannot hold it."""

    @abc.abstractmethod
    def fields(self, state: State) -> Iterator[Field]:
        """Everything that may be damaged: all but what the namespace ``other`` is read from."""

    @abc.abstractmethod
    def close(self) -> None:
        """Disconnect."""


class Impossible(Exception):
    """The storage takes no such damage."""


class SQL(Storage):
    """The tables: by name, row number and column."""

    def __init__(self, dsn: str) -> None:
        self._connection: Any
        if dsn.startswith("sqlite"):
            self._connection = sqlite3.connect(dsn.removeprefix("sqlite:///"), isolation_level=None, timeout=30)
            self._connection.execute("PRAGMA synchronous = off")
            self._mark, schema = "?", "main"
        else:
            schema = parse_qs(urlsplit(dsn).query)["schema"][0]
            self._connection = psycopg.connect(dsn.partition("?")[0], autocommit=True)
            # What this connection writes may be lost in a crash, and need not wait for the disk.
            self._connection.execute("SET synchronous_commit = off")
            self._mark = "%s"
        self._tables = {
            f"{schema}.{name}": [column.name for column in table.columns] for name, table in metadata.tables.items()
        }

    def read(self) -> State:
        found: State = {}
        for table, columns in self._tables.items():
            order = ", ".join(map(str, range(1, len(columns) + 1)))
            rows = self._connection.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}")
            kept = [row for row in rows if not (table.endswith(".record") and row[0] == ROOT)]
            found[table] = {number: dict(zip(columns, row, strict=True)) for number, row in enumerate(kept)}
        return found

    def write(self, state: State) -> None:
        execute = self._connection.execute
        execute("BEGIN")
        try:
            for table, columns in self._tables.items():
                execute(f"DELETE FROM {table}" + (f" WHERE id <> {ROOT}" if table.endswith(".record") else ""))
                marks = ", ".join([self._mark] * len(columns))
                for row in state[table].values():
                    values = tuple(row[column] for column in columns)
                    execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", values)
        except (sqlite3.Error, psycopg.Error, OverflowError) as error:
            execute("ROLLBACK")
            raise Impossible from error
        execute("COMMIT")

    def fields(self, state: State) -> Iterator[Field]:
        for table, rows in state.items():
            for number, row in rows.items():
                if row.get("key") == "other" or row.get("value") == b'"sound"':
                    continue
                for column in row:
                    checked = column in ("meta", "value") and bool(row[column])
                    yield Field((table, number, column), checked)

    def close(self) -> None:
        self._connection.close()


class Keys(Storage):
    """The keys of Redis: their type and content, which is a dict for a hash, and else what its members are."""

    # One round trip for all keys of a server. One for each key would take most of the time of the test.
    _DUMP: Final = """
        local content = {
          hash = function(key) return redis.call('HGETALL', key) end,
          zset = function(key) return redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') end,
          set = function(key) return redis.call('SMEMBERS', key) end,
          string = function(key) return redis.call('GET', key) end,
        }
        local found = {}
        for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
          local kind = redis.call('TYPE', key).ok
          found[#found + 1] = {key, kind, content[kind](key)}
        end
        return found
    """

    def __init__(self, dsn: str) -> None:
        address, query = urlsplit(dsn), parse_qs(urlsplit(dsn).query)
        host, _, port = address.netloc.partition(",")[0].partition(":")
        self._redis: Any
        if "cluster" in address.scheme:
            self._redis = redis.RedisCluster(host=host, port=int(port))
            self._servers = [node.redis_connection for node in self._redis.get_primaries()]
        else:
            self._redis = redis.Redis(host=host, port=int(port))
            self._servers = [self._redis]
        self._prefix = query["prefix"][0].encode()

    def read(self) -> State:
        found: State = {}
        for server in self._servers:
            for key, kind, content in server.eval(self._DUMP, 0, b"{%b*" % self._prefix):
                if key.endswith((b":store", b":due")):
                    continue
                if kind == b"hash":
                    found[key] = dict(zip(content[::2], content[1::2], strict=True))
                elif kind == b"zset":
                    found[key] = dict(zip(content[::2], map(float, content[1::2]), strict=True))
                else:
                    found[key] = set(content) if kind == b"set" else content
        return found

    def write(self, state: State) -> None:
        known = self.read()
        for key in known.keys() | state.keys():
            content = state.get(key)
            if content == known.get(key):
                continue
            self._redis.delete(key)
            if isinstance(content, bytes):
                self._redis.set(key, content)
            elif isinstance(content, set) and content:
                self._redis.sadd(key, *content)
            elif content and isinstance(next(iter(content.values())), float):
                self._redis.zadd(key, content)
            elif content:
                self._redis.hset(key, mapping=content)

    def fields(self, state: State) -> Iterator[Field]:
        (other,) = (content[b"i"] for key, content in state.items() if key.endswith(b":h:0:other"))
        for key, content in state.items():
            if other in key or key.endswith(b":h:0:other"):
                continue
            yield Field((key,), False)
            for name, value in content.items() if isinstance(content, dict) else ():
                if isinstance(value, bytes):
                    place = re.search(rb":h:([123]):([^{}]+)$", key) if name == b"h" else None
                    head_of = f"/{('kv', 'ts', 'es')[int(place[1]) - 1]}/{place[2].decode()}[/ ]" if place else None
                    yield Field((key, name), name in (b"h", b"v") or name[:1] == b"s", head_of)

    def close(self) -> None:
        self._redis.close()


# --- damages -----------------------------------------------------------------------------------------------


def cut(value: Any, chance: random.Random) -> Any:
    if not isinstance(value, bytes | str) or not value:
        raise Impossible
    # What is left of a media type, with which a key's record ends, may be one too.
    return value[: chance.randrange(min(len(value), 28))]


def turned(value: Any, chance: random.Random) -> Any:
    """Some bits are other ones."""
    if isinstance(value, int):
        return value ^ (1 << chance.randrange(63))
    if not isinstance(value, bytes | str) or not value:
        raise Impossible
    data = bytearray(value.encode() if isinstance(value, str) else value)
    for _ in range(chance.choice((1, 1, 3))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return data.decode(errors="replace") if isinstance(value, str) else bytes(data)


def retyped(value: Any, chance: random.Random) -> Any:
    """As of another type, or, in Redis, another kind of key."""
    if isinstance(value, bytes):
        return chance.choice((7, 0.5, "text", ""))
    if isinstance(value, dict):
        return b"something else"
    if isinstance(value, set):
        return {b"a": b"hash"}
    return chance.choice((b"\xff\x00", "text", 0.5, b""))


def lost(value: Any, chance: random.Random) -> Any:
    return None


def spoiled(value: Any, chance: random.Random) -> Any:
    """JSON in it is none any more. Only whoever reads the whole of it finds that out."""
    if not isinstance(value, bytes) or b'{"' not in value:
        raise Impossible
    return value.replace(b'{"', b'}"')


HOWS: Final[tuple[Callable[[Any, random.Random], Any], ...]] = (cut, turned, turned, retyped, lost)


def damaged(state: State, field: Field, how: Callable[[Any, random.Random], Any], chance: random.Random) -> State:
    state = deepcopy(state)
    *path, last = field.path
    place = state
    for step in path:
        place = place[step]
    new = how(place[last], chance)
    if new == place[last] and type(new) is type(place[last]):
        raise Impossible
    if isinstance(next(iter(state)), bytes):
        # Redis has no types within a hash, and what is lost is not there.
        if len(path) == 1 and not isinstance(new, bytes | None):
            raise Impossible
        if new is None:
            del place[last]
            return state
    place[last] = new
    return state


# --- operations --------------------------------------------------------------------------------------------

NS: Final = "/ns/n"
ONCE: Final = {"Idempotency-Key": "once-0123456789abcdef"}
SEALED: Final = {"value": "AQIDBAUGBwgJCgsMDQ4PEBESExQ=", "encoding": "sealed"}
EVENTS: Final = {
    "plain": [
        {"events": [{"item": "a", "value": 1}, {"item": "b", "value": {"x": "text"}}], "timestamp": 10},
        {"events": [{"item": "a", "op": "add", "value": 2}], "timestamp": 20},
        {"events": [{"item": "a", "op": "neg"}, {"item": "c", "value": "é"}], "timestamp": 30},
        {"events": [{"item": "c", "op": "delitem"}], "timestamp": 40},
    ],
    "sealed": [
        {"events": [{"item": "a", **SEALED}, {"item": "b", **SEALED}], "timestamp": 10},
        {"events": [{"item": "a", "op": "add", **SEALED}], "timestamp": 20, "revision": 1},
    ],
}
POINTS: Final = {
    "numbers": [[t, t / 4] for t in (1, 2, 3, 5, 8, 13)],
    "texts": [[1, "é"], [2, {"a": [1, "x"]}], [4, None]],
    "long": [[t, "x" * (t % 7)] for t in range(0, 3000, 3)],
    "sealed": [[1, SEALED["value"], "sealed"], [3, SEALED["value"], "sealed"]],
}
# Each of them twice, and the second time it is only remembered.
REMEMBERED: Final[list[Request]] = [
    ("PUT", f"{NS}/kv/remembered", b'{"a": 1}', ONCE),
    ("POST", f"{NS}/kv", b'{"get": ["json"], "set": [{"key": "batch", "value": 1}], "delete": ["none"]}', ONCE),
    ("POST", f"{NS}/es/once/events", b'{"events": [{"item": "a", "value": 1}], "timestamp": 5}', ONCE),
    ("PUT", f"{NS}/kv/refused", b"1", ONCE | {"If-Match": '"none"'}),
    ("PUT", "/ns/made", b'{"sealed_only": true}', ONCE),
]
READS: Final = [
    "/ns", "/ns/n", "/ns/sealed", "/tokens", "/tokens/{token}",
    f"{NS}/kv", f"{NS}/kv?values=true", f"{NS}/kv/json", f"{NS}/kv/sealed", f"{NS}/kv/short-lived", "/ns/sealed/kv/k",
    f"{NS}/ts", *(f"{NS}/ts/{key}/{what}" for key in POINTS for what in
                  ("range", "range?order=desc&n=2", "first", "last", "missing?start=0&freq=1")),
    f"{NS}/es", *(f"{NS}/es/{key}/{what}" for key in EVENTS for what in
                  ("current", "past?t=20", "past?t=35", "events", "events?item=a")),
]  # fmt: skip
FORMS: Final = [
    "application/json",
    "application/msgpack",
    "application/x-ndjson",
    "text/csv",
    "application/vnd.rstore.points",
]
WRITES: Final[list[Request]] = [
    *REMEMBERED,
    ("PUT", f"{NS}/kv/json", b"2", {}),
    ("PUT", f"{NS}/kv/json", b"2", {"If-None-Match": "*"}),
    ("PUT", f"{NS}/kv/json?ttl=keep", b"2", {}),
    ("DELETE", f"{NS}/kv/sealed", b"", {"If-Match": '"none"'}),
    ("POST", f"{NS}/kv", b'{"get": ["json", "sealed"], "set": [{"key": "json", "value": 3}]}', {}),
    *(("POST", f"{NS}/ts/{key}/range", b'{"points": [[4, 1.5], [9000, "x"]]}', {}) for key in POINTS),
    *(("DELETE", f"{NS}/ts/{key}/range?start=2&end=4", b"", {}) for key in POINTS),
    *(("POST", f"{NS}/es/plain/events", b'{"events": [{"item": "a", "op": "add", "value": 1}]%b}' % at, {})
      for at in (b"", b', "timestamp": 15', b', "timestamp": 35')),
    ("POST", f"{NS}/es/sealed/events", msgspec.json.encode({"events": [{"item": "b", **SEALED}], "timestamp": 15}), {}),
    *(("POST", f"{NS}/es/{key}/prune", b"", {}) for key in EVENTS),
    ("PUT", "/ns/sealed", b'{"sealed_only": false}', {}),
    ("PUT", "/ns/sealed/kv/k", b"1", {}),
    ("POST", "/tokens/{token}/rotate", b"{}", {}),
    ("DELETE", f"{NS}/es/plain/events", b"", {}),
]  # fmt: skip


# What they answer is read once they are done.
TOLD_AFTERWARDS: Final = ("/ns/made", "/ns/sealed")


class User:
    """Asks for everything that can be asked for, and looks at each answer."""

    def __init__(self, http: httpx2.AsyncClient, *, cluster: bool) -> None:
        self._http = http
        # A record that is in a listing and nowhere else may be on its way to another node.
        self._known = {"backend-corrupt", "tokens-lost", *(("backend-unavailable",) if cluster else ())}
        self._token = self._text = ""

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        headers = {**({"Content-Type": "application/json"} if body else {}), **(headers or {})}
        answer = await self._http.request(method, path.format(token=self._token), content=body, headers=headers)
        asked = f"{method} {path} {headers} → {answer.status_code} {answer.text[:300]}"
        assert answer.status_code < 500 or answer.json()["code"] in self._known, asked
        if answer.is_success:
            self._parse(answer)
        return answer

    @staticmethod
    def _parse(answer: httpx2.Response) -> None:
        """Raise if the body is not what its media type says."""
        form, body = answer.headers.get("content-type", ""), answer.content
        if not body:
            return
        if form == "application/json":
            # The value of one key goes out as it lies there.
            assert "/kv/" in str(answer.url) or msgspec.json.decode(body) is not None
        elif form == "application/msgpack":
            msgspec.msgpack.decode(body)
        elif form == "application/x-ndjson":
            msgspec.json.Decoder().decode_lines(body)
        elif form == "application/vnd.rstore.points":
            # No checksum protects each timestamp and float.
            assert isinstance(decode(body, own=True), Points)

    async def fill(self) -> None:
        fillings: list[tuple[str, str, Any]] = [
            ("PUT", f"{NS}/kv/json", {"en": "é"}),
            ("PUT", f"{NS}/kv/short-lived?ttl=1000000", [1.5, None]),
            ("PUT", "/ns/sealed", {"sealed_only": True}),
            ("PUT", "/ns/other", {"sealed_only": False}),
            ("PUT", "/ns/other/kv/k", "sound"),
            *(("POST", f"{NS}/ts/{key}/range", {"points": points}) for key, points in POINTS.items()),
            *(("POST", f"{NS}/es/{key}/events", events) for key, several in EVENTS.items() for events in several),
        ]
        for method, path, body in fillings:
            answer = await self.send(method, path, msgspec.json.encode(body))
            assert answer.is_success, answer.text
        for place in (f"{NS}/kv/sealed", "/ns/sealed/kv/k"):
            assert (
                await self.send("PUT", place, b"\1" * 40, {"Content-Type": "application/vnd.rstore.sealed"})
            ).is_success
        for method, path, body, headers in REMEMBERED:
            await self.send(method, path, body, headers)
        token = await self.send("POST", "/tokens", b'{"namespaces": ["n"], "access": "read", "label": "l"}')
        self._token, self._text = token.json()["id"], token.json()["token"]

    async def reads(self) -> dict[str, httpx2.Response]:
        """The answer to each read, in each form."""
        found = {}
        for path in READS:
            for form in FORMS if "range" in path else FORMS[:2] if "/kv/" not in path else FORMS[:1]:
                found[f"{path} {form}"] = await self.send("GET", path, headers={"Accept": form})
        body = b'{"get": ["json", "sealed", "none", "short-lived"]}'
        found["batch"] = await self.send("POST", f"{NS}/kv", body)
        found["token"] = await self.send("GET", f"{NS}/kv/json", headers={"Authorization": f"Bearer {self._text}"})
        return found


@pytest.fixture
async def storage(dsn: str, anyio_backend: str) -> AsyncIterator[Storage]:
    if "cluster" in dsn and "buckets" in dsn:
        pytest.skip("a cluster, and a server with several buckets, are enough: to read all of these takes minutes")
    storage = (Keys if dsn.startswith("redis") else SQL)(dsn)
    with contextlib.closing(storage):
        yield storage


async def test_what_is_damaged_is_said_to_be_and_changes_nothing(dsn: str, storage: Storage) -> None:
    settings = Settings(dsn=dsn, admin_token=SecretStr(ADMIN), token_cache_seconds=0)
    chance = random.Random(SEED)
    async with (
        running_app(settings) as app,
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app),
            base_url="http://localhost",
            headers={"Authorization": f"Bearer {ADMIN}"},
        ) as http,
    ):
        user = User(http, cluster="cluster" in dsn)
        await user.fill()
        sound = storage.read()
        answers = await user.reads()
        said = 0
        tries = [(field, how) for field in storage.fields(sound) for how in HOWS]
        always = [(field, lost) for field in storage.fields(sound) if field.head_of is not None]
        always += [(field, spoiled) for field in storage.fields(sound)]
        for field, how in always + chance.sample(tries, min(DAMAGES, len(tries))):
            try:
                state = damaged(sound, field, how, chance)
                storage.write(state)
            except Impossible:
                continue
            what = f"{field} {how.__name__} (RSTORE_FUZZ_SEED={SEED})"
            try:
                found = await user.reads()
                said += any(answer.status_code == 500 for answer in found.values())
                for name, answer in found.items():
                    if field.checked and how not in (turned, spoiled) and answer.is_success:
                        assert answer.content == answers[name].content, name
                    # All that asks for one thing says the same of it.
                    if how is lost and field.head_of is not None and re.search(field.head_of, name):
                        assert answer.status_code == 500, name
                assert (await user.send("GET", "/ns/other/kv/k")).json() == "sound"
                for method, path, body, headers in WRITES:
                    before = storage.read()
                    answer = await user.send(method, path, body, headers)
                    if answer.status_code == 500 and path not in TOLD_AFTERWARDS:
                        assert storage.read() == before, f"{method} {path} {headers}"
                    elif storage.read() != before:
                        storage.write(state)
            except BaseException as error:
                error.add_note(what)
                raise
            finally:
                storage.write(sound)
        # What belongs together is together again.
        after = await user.reads()
        assert {name: answer.status_code for name, answer in after.items()} == {
            name: answer.status_code for name, answer in answers.items()
        }
        assert said > DAMAGES / 10
