"""A server that means harm, against every operation of the SDK, blocking and awaited.

Whatever it answers, an operation returns or raises a :class:`StoreError`: within its bounds of time and memory, with
nothing of the token or the key in any text, and with nothing sent to anybody else.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import inspect
import itertools
import json
import logging
import operator
import os
import subprocess
import sys
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.knobs import knob
from tests.waiting import SECONDS_MAX

import rstore
from rstore import AsyncStore, Store, StoreError
from rstore.store.bare import open_unasked

pytestmark = pytest.mark.anyio

TOKEN = "hostile-server-must-not-show-this-token"
KEY = rstore.generate_key()
# Every how manyeth mutation of an answer is tried; RSTORE_FUZZ_EXAMPLES tries all.
STRIDE = 1 if knob("RSTORE_FUZZ_EXAMPLES", "") else 61

# Each operation with arguments under which it sends something. `open` and `close` are every test's own.
ARGUMENTS: dict[str, tuple[Any, ...] | dict[str, Any]] = {
    "apply": ("e", {"a": 1}),
    "count": (),
    "create_token": ("n*", "read"),
    "current": ("e",),
    "delete": ("k", "l"),
    "discard": (),
    "entry": ("k",),
    "events": ("e",),
    "eventsequences": (),
    "eventsources": (),
    "extend": ("s", (1, 2.5), (2, "two")),
    "extend_columns": ("s", [1, 2], [2.5, "two"]),
    "find": ("*",),
    "first": ("s",),
    "get": ("k",),
    "get_many": (["k", "l"],),
    "has": ("k",),
    "iscomplete": ("s", 1, 3, 1),
    "keys": (),
    "last": ("s",),
    "missing": ("s", 1, 5, 1),
    "namespaces": (),
    "past": ("e", 2**60),
    "prune": ("e",),
    "range": ("s",),
    "range_columns": ("s",),
    "remove": ("s",),
    "revoke_token": ("id",),
    "rotate": (),
    "rotate_token": ("id",),
    "set": ("k", {"a": [1, None, "x"]}),
    "set_many": ({"k": 1, "l": "two"},),
    "timeseries": (),
    "tokens": (),
}
DICT_FACE: dict[str, Callable[[Any], Any]] = {
    "__getitem__": lambda store: store["k"],
    "__setitem__": lambda store: operator.setitem(store, "k", 1),
    "__delitem__": lambda store: operator.delitem(store, "k"),
    "__contains__": lambda store: "k" in store,
    "__len__": len,
    "__iter__": list,
}
OPERATIONS = [*ARGUMENTS, *DICT_FACE]
# Is asked at the route of tokens too, and writes nothing.
READING = {"tokens"}


class BoundedStore(Store):
    """A store with bounds that a test can wait for."""

    _operation_seconds_max = 0.2


class BoundedAsyncStore(AsyncStore):
    _operation_seconds_max = 0.2


ANSWER_BYTES_MAX = 2**20
KINDS = [BoundedStore, BoundedAsyncStore]


def test_every_public_operation_is_tried():
    for kind in (Store, AsyncStore):
        public = {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith("_")}
        assert public == {*ARGUMENTS, "open", "close"}
    own = {name for name, member in vars(Store).items() if inspect.isfunction(member) and name.startswith("__")}
    assert own == {*DICT_FACE, "__enter__", "__exit__"}


async def done(kind: type, url: str, name: str, **options: Any) -> Any:
    """What an operation of a store that was opened without a word returns, or the StoreError that it raises."""
    store = kind(url, "n", options.pop("key", KEY), frozen=False, token=TOKEN, timeout=2, **options)
    open_unasked(store)
    try:
        if name in DICT_FACE and issubclass(kind, AsyncStore):
            return [key async for key in store]
        result = DICT_FACE[name](store) if name in DICT_FACE else getattr(store, name)(*ARGUMENTS[name])
        return await result if inspect.isawaitable(result) else result
    except StoreError as error:
        check_text(str(error), repr(error), "".join(traceback.format_exception(error)))
        return error
    except KeyError:
        return None  # The dict-like face says so of what is not there.
    finally:
        closed = store.close()
        if inspect.isawaitable(closed):
            await closed


def check_text(message: str, *texts: str) -> None:
    """Nothing secret is in it, and nothing that a terminal would obey."""
    for text in (message, *texts):
        assert TOKEN not in text
        assert KEY not in text
        assert all(character.isprintable() or character == "\n" for character in text), repr(text)
    assert len(message) < 1_000


@pytest.fixture(autouse=True)
def quiet(caplog) -> Iterator[None]:
    """Nothing secret is in what is logged, however much is."""
    caplog.set_level(logging.DEBUG)
    yield
    assert TOKEN not in caplog.text
    assert KEY not in caplog.text


# --- whole answers -----------------------------------------------------------------------------------------


def head(status: int, *fields: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", *fields, "", ""]).encode("latin-1")


def forever(start: bytes, part: bytes, pause: float = 0.0) -> Callable[[], Iterator[bytes]]:
    def parts() -> Iterator[bytes]:
        yield start
        # Far longer than any bound of the tests, but not for ever: a client that waits fails its test and ends.
        for _ in range(int(20 / pause) if pause else 200_000):
            time.sleep(pause)
            yield part

    return parts


JSON = "content-type: application/json"
PROBLEM = "content-type: application/problem+json"
CHUNKED = "transfer-encoding: chunked"
BOMB = gzip.compress(bytes(10_000_000))
MIB = b" " * 2**16
NOT_ANSWERS: dict[str, bytes | Callable[[], Iterator[bytes]]] = {
    "nothing": b"",
    "noise": bytes(range(256)) * 10,
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a status that is none": b"HTTP/1.1 abc X\r\n\r\n",
    "a negative length": head(200, JSON, "content-length: -1") + b"{}",
    "two lengths": head(200, JSON, "content-length: 2", "content-length: 3") + b"{} ",
    "a length beyond 64 bits": head(200, JSON, f"content-length: {2**70}") + b"{}",
    "a chunk of a negative size": head(200, JSON, CHUNKED) + b"-5\r\n",
    "a chunk beyond 64 bits": head(200, JSON, CHUNKED) + b"f" * 40 + b"\r\n",
    "a field without a name": head(200, ": x") + b"{}",
    "a NUL in a field": head(200, "x: \0") + b"{}",
    "escape sequences": b"\x1b[2J\x1b]0;owned\x07\r\n\r\n",
    "a body that breaks off": head(200, JSON, "content-length: 100") + b"{",
    "a switch of protocols": head(101, "upgrade: x", "connection: upgrade"),
    "fields without end": forever(b"HTTP/1.1 200 X\r\n", b"x: " + b"y" * 1_000 + b"\r\n"),
    "a field without end": forever(b"HTTP/1.1 200 X\r\nx: ", b"y" * 1_000),
    "a flood of 100": forever(b"", head(100)),
    "a flood of 103": forever(b"", head(103, "link: x")),
    "a trickle of 102": forever(b"", head(102), 0.05),
    "a trickle of a head": forever(b"HTTP/1.1 200 X\r\nx: ", b"y", 0.05),
    "a bomb": head(200, JSON, "content-encoding: gzip", f"content-length: {len(BOMB)}") + BOMB,
    "a bomb in capitals": head(200, JSON, "Content-Encoding: GZIP", f"content-length: {len(BOMB)}") + BOMB,
    "a bomb in two layers": head(200, JSON, "content-encoding: gzip, identity", "content-length: 2") + b"{}",
    "an unknown coding": head(200, JSON, "content-encoding: zstd", "content-length: 2") + b"{}",
    "another status": head(299, JSON, "content-length: 2") + b"{}",
    "no content": head(205),
    "html": head(400, "content-type: text/html", "content-length: 15") + b"<b>\x1b[31mred</b>",
}
ENDLESS_BODIES = {
    "of a declared length": forever(head(200, JSON, "content-length: 100000000000"), MIB),
    "in chunks": forever(head(200, JSON, CHUNKED), b"10000\r\n" + MIB + b"\r\n"),
    "until the connection closes": forever(head(200, JSON), MIB),
    "in a trickle": forever(head(200, JSON), b" ", 0.05),
    "in a trickle of chunks": forever(head(200, JSON, CHUNKED), b"1\r\n \r\n", 0.05),
    "in a trickle of a chunk's extension": forever(head(200, JSON, CHUNKED) + b"1", b";x", 0.05),
    "of a problem": forever(head(400, PROBLEM, CHUNKED), b"10000\r\n" + MIB + b"\r\n"),
    "of points": forever(head(200, "content-type: application/vnd.rstore.points", CHUNKED), b"4\r\n\0\0\0\0\r\n"),
    "of trailers": forever(head(200, JSON, CHUNKED) + b"2\r\n{}\r\n0\r\n", b"x: " + b"y" * 1_000 + b"\r\n"),
}
# What has no end is waited for, so these are tried with some operations of each form of answer.
SOME = ["get", "range", "keys", "apply"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", NOT_ANSWERS)
async def test_what_is_not_an_answer_is_a_store_error(kind, answer, scripted):
    script = NOT_ANSWERS[answer]
    endless = not isinstance(script, bytes)
    server = scripted(lambda request: iter([script]) if isinstance(script, bytes) else script())
    for name in SOME if endless else OPERATIONS:
        start = time.monotonic()
        result = await done(kind, server.url, name, retries=0)
        # All that HEAD answers is its status.
        assert isinstance(result, StoreError) or name in ("has", "__contains__"), (name, result)
        assert time.monotonic() - start < SECONDS_MAX, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", ENDLESS_BODIES)
async def test_a_body_without_end_is_bounded_in_time_and_memory(kind, body, scripted):
    server = scripted(lambda request: ENDLESS_BODIES[body]())
    for name in SOME:
        tracemalloc.start()
        start = time.monotonic()
        try:
            result = await done(kind, server.url, name, answer_bytes_max=ANSWER_BYTES_MAX)
            assert time.monotonic() - start < SECONDS_MAX, name
            # The body once in chunks and once whole, and what its decoding makes of it; the server's own is in it too.
            assert tracemalloc.get_traced_memory()[1] < 4 * ANSWER_BYTES_MAX + 2**22, name
        finally:
            tracemalloc.stop()
        assert isinstance(result, StoreError), (name, result)


@pytest.mark.parametrize("kind", KINDS)
async def test_pages_without_end_are_bounded(kind, scripted, json_reply):
    numbers = itertools.count()
    server = scripted(lambda request: json_reply(b'{"items": [], "cursor": "%d"}' % next(numbers)))
    for name in ("keys", "find", "namespaces", "timeseries", "eventsequences"):
        assert isinstance(await done(kind, server.url, name), StoreError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_no_other_server_sees_anything(kind, status, scripted, reply):
    other = scripted(lambda request: reply(200, b"{}", content_type="application/json"))
    server = scripted(lambda request: reply(status, location=f"{other.url}{request.target}", set_cookie="id=1"))
    for name in OPERATIONS:
        assert isinstance(await done(kind, server.url, name), StoreError), name
    assert other.received == []
    assert all(KEY not in str(request) for request in server.received)


@pytest.mark.parametrize("kind", KINDS)
async def test_cookies_are_not_kept(kind, scripted, reply):
    server = scripted(lambda request: reply(200, b"1", content_type="application/json", etag='"x"', set_cookie="id=1"))
    store = kind(server.url, "n", token=TOKEN)
    open_unasked(store)
    for _ in range(2):
        value = store.get("k")
        assert (await value if inspect.isawaitable(value) else value) == 1
    closed = store.close()
    if inspect.isawaitable(closed):
        await closed
    assert len(server.received) == 2
    assert all("cookie" not in request.headers for request in server.received)


# --- problems ----------------------------------------------------------------------------------------------

NAMESPACE = head(200, JSON, "content-length: 73") + (
    b'{"namespace": "default", "sealed_only": false, "kv": 0, "ts": 0, "es": 0}'
)
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\n\u202e\u2028 \x7f"
NO_PROBLEMS: list[Any] = [None, [], 5, "x", {}, {"code": 5}, {"code": []}, {"code": EVIL}]
PROBLEMS: list[bytes] = [
    *(json.dumps(document).encode() for document in NO_PROBLEMS),
    json.dumps({"code": "invalid-key", "title": EVIL, "detail": EVIL, "request_id": EVIL, "extra": EVIL}).encode(),
    json.dumps({"title": EVIL * 1_000}).encode(),
    json.dumps({"detail": "x" * 500_000}).encode(),
    json.dumps({"detail": f"{TOKEN}"[::-1], "request_id": "x" * 10_000}).encode(),
    b'{"detail": "\\ud800"}',
    b'{"detail": "\xff"}',
    b'{"status": 1e999, "detail": "x"}',
    b'{"extra": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    b'{"extra": ' + b"9" * 10_000 + b"}",
    b'{"code": "invalid-key", "code": "unauthenticated"}',
    b"\xef\xbb\xbf{}",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [400, 401, 404, 409, 412, 422, 429, 500, 503, 599])
async def test_a_malformed_problem_is_a_store_error_that_a_terminal_can_show(kind, status, scripted, reply):
    number = itertools.count()
    server = scripted(
        lambda request: reply(
            status,
            PROBLEMS[next(number) % len(PROBLEMS)] if request.method != "HEAD" else b"",
            content_type="application/problem+json",
            x_request_id="\x9b31m",
            retry_after="99999",
        )
    )
    # Each operation gets each problem, since their number and that of the problems are counted on together.
    for name in OPERATIONS if STRIDE == 1 else SOME[:2]:
        for _ in PROBLEMS:
            result = await done(kind, server.url, name)
            assert isinstance(result, StoreError) or status in (404, 412), (name, result)


def test_the_command_shows_a_problem_without_its_escape_sequences(scripted, reply):
    answers = {
        "get": reply(400, PROBLEMS[8], content_type="application/problem+json"),
        "keys": reply(
            200, json.dumps({"items": [{"key": EVIL}], "cursor": None}).encode(), content_type="application/json"
        ),
        "info": b"\x1b[2J\x9b31m\r\n\r\n",
    }
    for command, answer in answers.items():
        server = scripted(lambda request, answer=answer: NAMESPACE if request.target == "/ns/default" else answer)
        environment = {**os.environ, "RSTORE_URL": server.url, "RSTORE_TOKEN": TOKEN, "PYTHONIOENCODING": "utf-8"}
        program = Path(sys.executable).with_name("rstore")
        shown = subprocess.run(
            [program, command, *["k"][: command == "get"]],
            env=environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        for text in (shown.stdout.decode(), shown.stderr.decode()):
            check_text(text)
        assert shown.returncode == (0 if command == "keys" else 1), shown
        assert b"Traceback" not in shown.stderr
        if command == "keys":
            assert json.loads(shown.stdout) == EVIL


# --- answers that are nearly right -------------------------------------------------------------------------

WRONG: list[Any] = [None, True, -1, 1.5, 2**63, -(2**63) - 1, 10**400, "", "x", "\0" + EVIL, "x" * 1_000, [], {}, [[]]]
RAW = b'"@RAW@"'
RAW_WRONG = [b"NaN", b"1e999", b"-0", b"[" * 3_000 + b"]" * 3_000, b'{"a":1,"a":2}', b'"\\ud800"', b'"\xff"', b""]


def mutated(document: Any) -> Iterator[bytes]:
    """The document with something wrong at each of its positions in turn: another type, nothing, or twice the same."""

    def places(part: Any, rebuild: Any) -> Iterator[Any]:
        yield from (rebuild(wrong) for wrong in WRONG)
        yield rebuild("@RAW@")
        if isinstance(part, dict):
            for name in part:
                yield rebuild({other: value for other, value in part.items() if other != name})
                yield from places(part[name], lambda new, name=name: rebuild({**part, name: new}))
        if isinstance(part, list):
            yield rebuild(part + part)
            yield rebuild(part[::-1])
            for at, item in enumerate(part):
                yield from places(item, lambda new, at=at: rebuild([*part[:at], new, *part[at + 1 :]]))

    for wrong in places(document, lambda new: new):
        text = json.dumps(wrong).encode()
        yield from (text.replace(RAW, raw) for raw in RAW_WRONG) if RAW in text else [text]


@pytest.fixture(scope="module")
def closed_url(serve_module, tmp_path_factory):
    """A service that lets nobody in but with TOKEN, which may do everything."""
    dsn = f"sqlite:///{tmp_path_factory.mktemp('closed') / 'store.db'}"
    return serve_module(dsn, env={"RSTORED_ADMIN_TOKEN": TOKEN}).url


class Relay:
    """Passes requests on to a service, and notes what it answers."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url).netloc
        self.answers: list[tuple[int, dict[str, str], bytes]] = []

    def __call__(self, request: Any) -> bytes:
        connection = http.client.HTTPConnection(self._to, timeout=10)
        with contextlib.closing(connection):
            headers = {name: value for name, value in request.headers.items() if name != "host"}
            connection.request(request.method, request.target, request.body, headers)
            response = connection.getresponse()
            fields = {name.lower(): value for name, value in response.getheaders()}
            self.answers.append((response.status, fields, response.read()))
        return rendered(*self.answers[-1])


def rendered(status: int, fields: dict[str, str], body: bytes) -> bytes:
    kept = {name: value for name, value in fields.items() if name not in ("transfer-encoding", "content-length")}
    lines = [f"{name}: {value}" for name, value in kept.items()]
    length = fields.get("content-length", "0") if not body else str(len(body))
    return head(status, *lines, f"content-length: {length}") + body


@pytest.mark.parametrize("kind", [Store, AsyncStore])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
async def test_an_answer_with_something_wrong_in_it_is_read_or_refused(kind, key, scripted, closed_url):
    # The values are opened by their names, so the names are the same as in ARGUMENTS; only this namespace is its own.
    with Store(closed_url, "n", key, frozen=False, token=TOKEN) as store:
        store.discard()
        store.set_many({"k": {"a": 1}, "l": [1, 2]})
        store.extend("s", (1, 1.5), (2, "x"), (3, None))
        store.apply("e", {"a": 1})
        store.apply("e", {"a": (operator.add, 2), "b": [1]})
    step = itertools.count()
    relay = Relay(closed_url)
    recorder = scripted(relay)
    for name in ARGUMENTS:
        # There is no token "id" to rotate or revoke; what is answered is read as with `create_token` and `discard`.
        if name in ("discard", "revoke_token", "rotate_token") or (name == "rotate" and key is None):
            continue
        relay.answers.clear()
        assert not isinstance(await done(kind, recorder.url, name, key=key), StoreError), name
        answers = list(relay.answers)
        for at, (status, fields, body) in enumerate(answers):
            if fields.get("content-type") != "application/json" or not body:
                continue
            for wrong in mutated(json.loads(body)):
                if next(step) % STRIDE:
                    continue
                script = [*answers[:at], (status, fields, wrong), *answers[at + 1 :]]
                left = iter(script)
                carried_out: list[Any] = []

                def replay(request, left=left, carried_out=carried_out):
                    answer: Any = next(left, (503, {}, b""))
                    # Whoever makes a token has no id for it.
                    if answer[0] < 300 and ("idempotency-key" in request.headers or "/tokens" in request.target):
                        carried_out.append(request)
                    return rendered(*answer)

                recorder.script = replay
                result = await done(kind, recorder.url, name, key=key, retries=0)
                if isinstance(result, StoreError) and carried_out and name not in READING:
                    assert result.done or result.outcome_unknown, (name, wrong, result)
        recorder.script = relay
