"""Store, against a real service process, and against servers that cannot be trusted."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import decimal
import functools
import itertools
import json
import operator
import pickle
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, assert_type

import httpx2
import pytest
from tests import servers

import rstore
from rstore import (
    AsyncStore,
    FrozenStoreError,
    Store,
    StoreConflictError,
    StoreDecryptionError,
    StoreEncodingError,
    StoreError,
    StoreIntegrityError,
    StoreLimitError,
    StoreNotAvailableError,
    StoreProtocolError,
    StoreRequestError,
)
from rstore.core.operators import OPERATORS, UNARY

KEY = rstore.generate_key()


@pytest.fixture(params=["plain", "sealed"])
def store(request, service_url, namespace):
    with Store(service_url, namespace, KEY if request.param == "sealed" else None, frozen=False) as store:
        yield store
        store.discard()


@pytest.fixture
def plain(service_url, namespace):
    with Store(service_url, namespace, frozen=False) as store:
        yield store
        store.discard()


# More than the HTTP library would keep by itself.
BURST = 32
INFO = b'{"namespace": "n", "sealed_only": false, "kv": 0, "ts": 0, "es": 0}'


@pytest.fixture
def facing(scripted, json_reply):
    """``facing(reply, **options)``: an open store whose server gives this answer to everything but its opening."""
    opened = []

    def start(answer, **options):
        server = scripted(lambda request: json_reply(INFO) if request.target == "/ns/n" else answer)
        store = Store(server.url, "n", frozen=False, retries=0, **options).open()
        opened.append(store)
        return store

    yield start
    for store in opened:
        store.close()


# --- opening and closing -----------------------------------------------------------------------------------


def test_a_store_that_is_not_open_says_how_to_open_it(service_url):
    store = Store(service_url)
    for use in (lambda: store.get("k"), lambda: store.range("k"), lambda: list(store)):
        with pytest.raises(StoreError, match="with Store"):
            use()
    store.close()


def test_a_closed_store_can_be_opened_again(service_url, namespace):
    store = Store(service_url, namespace, frozen=False)
    with store:
        store["k"] = 1
    with pytest.raises(StoreError, match="not open"):
        store.get("k")
    with store, store:
        assert store["k"] == 1
        store.discard()


def test_the_policy_is_set_by_opening(service_url, namespace):
    def policy():
        return httpx2.get(f"{service_url}/ns/{namespace}").json()["sealed_only"]

    with Store(service_url, namespace, KEY, frozen=False, sealed_only=True) as store:
        store["k"] = 1
        assert policy() is True
    for options in ({}, {"sealed_only": None}):
        with Store(service_url, namespace, frozen=False, **options) as keyless:
            with pytest.raises(StoreRequestError) as caught:
                keyless["k"] = 2
            assert caught.value.code == "sealed-only"
    with Store(service_url, namespace) as frozen:
        assert frozen.keys() == ["k"]
        assert policy() is True
    with Store(service_url, namespace, frozen=False, sealed_only=False) as store:
        assert policy() is False
        store["k"] = 2
        assert store["k"] == 2
        store.discard()


def test_frozen_on_a_missing_namespace(service_url, namespace):
    with pytest.raises(StoreNotAvailableError, match="frozen=False"), Store(service_url, namespace):
        pass
    with Store(service_url, namespace, frozen=False):
        pass
    with Store(service_url, namespace) as store:
        assert store.keys() == []


WRITES = [
    lambda store: store.set("k", 1),
    lambda store: store.__setitem__("k", 1),
    lambda store: store.__delitem__("k"),
    lambda store: store.delete("k"),
    lambda store: store.delete(),
    lambda store: store.set_many({"k": 1}),
    lambda store: store.set_many({}),
    lambda store: store.extend("k", (1, 1)),
    lambda store: store.extend("k"),
    lambda store: store.remove("k"),
    lambda store: store.apply("k", {"a": 1}),
    lambda store: store.apply("k", {}),
    lambda store: store.prune("k"),
    lambda store: store.discard(),
]


def test_a_frozen_store_sends_nothing_to_write(scripted, json_reply):
    server = scripted(lambda request: json_reply(INFO))
    with Store(server.url, "n") as store:
        for write in WRITES:
            with pytest.raises(FrozenStoreError):
                write(store)
    assert [(request.method, request.target) for request in server.received] == [("GET", "/ns/n")]


def test_a_given_transport_stays_open(service_url, namespace):
    with httpx2.HTTPTransport() as transport:
        for _ in range(2):
            with Store(service_url, namespace, frozen=False, transport=transport) as store:
                assert store.get("k") is None


# --- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dsn",
    [
        "sqlite:///x.db",
        "http://",
        "ftp://host",
        "not a url",
        "http://h:port",
        "http://user:secret@host",
        "http://h/?q=1",
    ],
)
def test_a_dsn_is_the_url_of_a_service(dsn):
    with pytest.raises(StoreRequestError) as caught:
        Store(dsn)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("namespace", ["a b", "a/b", "é", "x" * 129, 5])
def test_a_namespace_has_a_name(namespace):
    with pytest.raises(StoreRequestError):
        Store("http://127.0.0.1", namespace)


def test_settings_come_from_the_environment_last(monkeypatch):
    class Fixed(Store):
        _namespace = "fixed"
        _key = rstore.generate_key()

    monkeypatch.setenv("RSTORE_NAMESPACE", "env")
    monkeypatch.setenv("RSTORE_URL", "http://env:1")
    assert repr(Store()) == "<Store http://env:1 env, frozen>"
    assert repr(Store("http://arg:2", "arg", frozen=False)) == "<Store http://arg:2 arg>"
    assert repr(Fixed()) == "<Fixed http://env:1 fixed, frozen, sealed>"
    assert repr(Fixed(None, "arg")) == "<Fixed http://env:1 arg, frozen, sealed>"
    monkeypatch.setenv("RSTORE_KEY", KEY)
    assert repr(Store()) == "<Store http://env:1 env, frozen, sealed>"
    monkeypatch.setenv("RSTORE_KEY", "no key")
    with pytest.raises(StoreError):
        Store()
    monkeypatch.delenv("RSTORE_KEY")
    monkeypatch.delenv("RSTORE_URL")
    monkeypatch.delenv("RSTORE_NAMESPACE")
    assert repr(AsyncStore()) == "<AsyncStore http://127.0.0.1:8000 default, frozen>"


def test_the_token_is_sent_and_never_shown(scripted, json_reply):
    server = scripted(lambda request: json_reply(INFO))
    with Store(server.url, "n", KEY, token="very-secret") as store:
        shown = repr(store) + repr(vars(store)) + str(vars(store))
    assert server.received[0].headers["authorization"] == "Bearer very-secret"
    assert "very-secret" not in shown
    assert KEY not in shown


@pytest.mark.parametrize("token", ["a b", "a\r\nx: y", "é", "x" * 5000])
def test_a_token_that_is_none_never_becomes_a_header(token):
    with pytest.raises(StoreRequestError) as caught:
        Store("http://127.0.0.1", token=token)
    assert token not in str(caught.value)


def test_a_url_may_have_a_path(scripted, json_reply):
    server = scripted(lambda request: json_reply(INFO))
    with Store(server.url + "/behind/proxy/", "n"):
        pass
    assert server.received[0].target == "/behind/proxy/ns/n"


def test_a_proxy_of_the_environment_is_not_used(monkeypatch, service_url, namespace, closed_port):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed_port}")
    with Store(service_url, namespace, frozen=False) as store:
        assert len(store) == 0


def test_tls_is_verified_against_the_given_authority(tmp_path, closed_port):
    authority = tmp_path / "ca.pem"
    authority.write_text("no certificate")
    with pytest.raises(StoreRequestError, match="verify"):
        Store("https://127.0.0.1", verify=authority).open()
    # Without TLS there is nothing to verify, and the file is not read.
    with pytest.raises(StoreNotAvailableError):
        Store(f"http://127.0.0.1:{closed_port}", verify=authority, retries=0).open()


# --- what goes over the wire -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a/b", "..", ".", "a?b#c", "%2F", " ", "+", "\n", "🎉", "é", "\\", "a;b", "x" * 512])
def test_every_legal_key_is_one_segment_on_the_wire(facing, scripted, json_reply, store, key):
    server = scripted(lambda request: json_reply(INFO))
    with Store(server.url, "n") as recorded, pytest.raises(StoreProtocolError):
        recorded.get(key)
    target = server.received[1].target
    assert target.isascii()
    assert target.count("/") == 4
    store[key] = key
    assert store[key] == key
    assert store.keys() == [key]
    store.extend(key, (1, key))
    assert store.range(key) == [(1, key)]
    assert store.timeseries() == [key]
    assert store.apply(key, {key: 1}) == {key: 1}
    assert store.eventsources() == [key]


@pytest.mark.parametrize("key", ["", "a\0b", "\ud800", "é" * 257, 5, None, b"k"])
def test_no_illegal_key_is_sent(facing, reply, key):
    store = facing(reply(500))
    for use in (
        lambda: store.get(key),
        lambda: store.set(key, 1),
        lambda: store.get_many([key]),
        lambda: store.set_many({key: 1}),
        lambda: store.delete(key),
        lambda: store.delete("a", key),
        lambda: store.range(key),
        lambda: store.extend(key, (1, 1)),
        lambda: store.remove(key),
        lambda: store.apply(key, {"a": 1}),
        lambda: store.apply("k", {key: 1}),
        lambda: store.current(key),
        lambda: store.prune(key),
        lambda: store.__delitem__(key),
    ):
        with pytest.raises(StoreRequestError) as caught:
            use()
        assert caught.value.code == "invalid-key"
        assert caught.value.status is None


@pytest.mark.parametrize("number", [True, 1.0, "1", 2**63, -(2**63) - 1, decimal.Decimal(1)])
def test_no_number_that_is_not_an_int64_is_sent(facing, reply, number):
    store = facing(reply(500))
    for use in (
        lambda: store.range("k", number),
        lambda: store.range("k", end=number),
        lambda: store.range("k", n=number),
        lambda: store.range("k", freq=number),
        lambda: store.missing("k", number, freq=1),
        lambda: store.extend("k", (0, 0), (number, 1)),
        lambda: store.remove("k", start=number),
        lambda: store.apply("k", {"a": 1}, t=number),
        lambda: store.past("k", number),
        lambda: store.events("k", number),
    ):
        with pytest.raises(StoreRequestError) as caught:
            use()
        assert caught.value.status is None


def test_arguments_that_cannot_be(facing, reply):
    store = facing(reply(500))
    for use in (
        lambda: store.range("k", n=-1),
        lambda: store.range("k", freq=0),
        lambda: store.missing("k", 0),
        lambda: store.missing("k", None, freq=1),
        lambda: store.past("k", None),
        lambda: store.events("k", ops=[max]),
        lambda: store.events("k", ops=["add"]),
        lambda: store.apply("k", {"a": (operator.xor, 1)}),
        lambda: Store("http://127.0.0.1", "n", frozen=False, sealed_only=1),  # type: ignore[arg-type]
        lambda: Store("http://127.0.0.1", "n", sealed_only=True),
        lambda: store.set("k", 1, ttl=-1),
        lambda: store.set("k", 1, ttl=0),
        lambda: store.set("k", 1, ttl=float("nan")),
        lambda: store.set("k", 1, ttl="soon"),
        lambda: store.set("k", 1, ttl=True),
        lambda: store.set("k", 1, if_match="a", if_absent=True),
        lambda: store.extend("k", (1,)),
        lambda: store.extend("k", (1, 2, 3)),
        lambda: store.extend("k", 5),
        lambda: store.apply("k", {"a": (operator.add,)}),
        lambda: store.apply("k", {"a": (operator.neg, 5)}),
    ):
        with pytest.raises(StoreRequestError) as caught:
            use()
        assert caught.value.status is None


def burst_of_threads(url):
    with Store(url, "n") as store, ThreadPoolExecutor(BURST) as threads:
        for _ in range(2):
            yield list(threads.map(store.get, ["k"] * BURST))


def burst_of_tasks(url):
    async def bursts():
        async with AsyncStore(url, "n") as store:
            return [await asyncio.gather(*[store.get("k") for _ in range(BURST)]) for _ in range(2)]

    return asyncio.run(bursts())


@pytest.mark.parametrize("bursts", [burst_of_threads, burst_of_tasks])
def test_connections_are_kept_for_the_next_burst(scripted, reply, json_reply, bursts):
    together = threading.Barrier(BURST, timeout=30)

    def script(request):
        if request.target == "/ns/n":
            return json_reply(INFO)
        together.wait()
        return reply(200, b"1", content_type="application/json", etag='"x"')

    server = scripted(script)
    assert list(bursts(server.url)) == [[1] * BURST] * 2
    assert server.connections == BURST


# --- servers that cannot be trusted ------------------------------------------------------------------------


def test_a_redirect_is_not_followed(scripted, facing, reply):
    elsewhere = scripted(lambda request: reply(200, b"1", content_type="application/json", etag='"x"'))
    for status in (301, 302, 303, 307, 308):
        with pytest.raises(StoreProtocolError, match="redirect"):
            facing(reply(status, location=elsewhere.url), token="secret").get("k")
    assert elsewhere.received == []


def test_a_compressed_answer_is_not_unpacked(facing, reply):
    body = zlib.compress(b"1")
    with pytest.raises(StoreProtocolError, match="compressed"):
        facing(reply(200, body, content_type="application/json", etag='"x"', content_encoding="deflate")).get("k")


def test_answers_are_bounded(scripted, json_reply):
    page = json.dumps({"items": [], "cursor": "x"}).encode()
    cursors = itertools.count()

    def script(request):
        if request.target == "/ns/n":
            return json_reply(INFO)
        if "/kv/" in request.target:
            # It would be a gigabyte, of which the client takes as little as it needs to see that.
            return b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n" + bytes(2_000_000)
        return json_reply(page.replace(b"x", str(next(cursors)).encode()))

    server = scripted(script)
    with Store(server.url, "n", retries=0, answer_bytes_max=2**20) as store:
        with pytest.raises(StoreProtocolError, match="answer_bytes_max"):
            store.get("k")
        with pytest.raises(StoreProtocolError, match="answer_bytes_max"):
            store.keys()
    assert len(server.received) < 2_000


@pytest.mark.parametrize(
    "pages",
    [
        [(["a"], "1"), (["a"], None)],
        [(["b"], "1"), (["a"], None)],
        [(["b", "a"], None)],
        [([], "1"), ([], "1")],
    ],
)
def test_pages_follow_each_other(scripted, json_reply, pages):
    left = list(pages)

    def script(request):
        if request.target == "/ns/n":
            return json_reply(INFO)
        keys, cursor = left.pop(0)
        return json_reply(json.dumps({"items": [{"key": key} for key in keys], "cursor": cursor}).encode())

    with Store(scripted(script).url, "n") as store, pytest.raises(StoreProtocolError, match="pages"):
        store.keys()


@pytest.mark.parametrize("key", ["cat/12", "cat", "cat/", "a cat/1", "Cat/1", "cat/1\n"])
def test_find_takes_no_other_keys_than_were_asked_for(scripted, json_reply, key):
    def script(request):
        items = [{"key": name, "etag": "x", "value": 1} for name in sorted({key, "cat/1"})]
        return json_reply(INFO if request.target == "/ns/n" else json.dumps({"items": items, "cursor": None}).encode())

    with Store(scripted(script).url, "n", frozen=False) as store:
        assert len(store.find()) == 2
        assert len(store.find("*")) == 2
        with pytest.raises(StoreProtocolError, match="other keys"):
            store.find("cat/?")


@pytest.mark.parametrize("raw", [b"", b"HTTP/9.9 hello\r\n\r\n", b"\0" * 100, b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"])
def test_what_is_not_http_is_not_a_service(facing, raw):
    store = facing(raw or None)
    with pytest.raises(StoreNotAvailableError):
        store.get("k")


def test_extend_believes_no_count_but_its_own(facing, json_reply):
    with pytest.raises(StoreProtocolError):
        facing(json_reply(b'{"points": 1}')).extend("k", (1, 1), (2, 2))


def test_a_server_may_not_put_plain_values_before_a_store_with_a_key(facing, reply, json_reply):
    def refused(answer, use):
        with pytest.raises(StoreDecryptionError):
            use(facing(answer, key=KEY))

    refused(reply(200, b"1", content_type="application/json", etag='"x"'), lambda store: store.get("k"))
    refused(json_reply(b'{"point": [1, 2]}'), lambda store: store.last("k"))
    for points in ([(1, 1.5)], [(1, 2)], [(1, rstore.core.encodings.Value(rstore.core.encodings.Encoding.JSON, b"1"))]):
        frames = rstore.core.frames.encode(rstore.core.points.Points.from_pairs(points))
        refused(
            reply(200, frames, content_type="application/vnd.rstore.points"),
            lambda store: store.range("k"),
        )
    state = b'{"timestamp": 1, "revision": 1, "state": {"a": 1}, "events": []}'
    refused(json_reply(state), lambda store: store.current("k"))
    refused(json_reply(state), lambda store: store.apply("k", {"b": 1}))
    event = b'[{"timestamp": 1, "item": "a", "op": "setitem", "value": 1}]'
    refused(json_reply(b'{"events": ' + event + b"}"), lambda store: store.events("k"))
    refused(
        json_reply(b'{"timestamp": 1, "revision": 1, "state": {}, "events": ' + event + b"}"),
        lambda store: store.current("k"),
    )


def test_a_history_that_cannot_be_folded_is_an_error(facing, json_reply):
    state = b'{"timestamp": 1, "revision": 1, "state": {}, "events": [{"timestamp": 1, "item": "a", "op": "neg"}]}'
    with pytest.raises(StoreIntegrityError, match="'a'"):
        facing(json_reply(state)).current("k")


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def test_a_pickle_runs_nothing(facing, reply, json_reply):
    evil = pickle.dumps(Evil())
    headers = {"content_type": "application/vnd.rstore.pickle", "etag": '"x"'}
    with pytest.raises(StoreEncodingError, match="trust_pickle"):
        facing(reply(200, evil, **headers)).get("k")
    with pytest.raises(SystemExit):
        facing(reply(200, evil, **headers), trust_pickle=True).get("k")


# --- values ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Custom:
    name: str


Custom.__module__ = "test_store_custom"


class Pair(NamedTuple):
    first: Any
    second: Any


VALUES = [
    None,
    False,
    0,
    -0.0,
    2**100,
    "",
    "é\n",
    b"\0\xff",
    [1, [2]],
    {"a": {"b": None}},
    (1, (2,)),
    {1: 2},
    {1, 2},
    decimal.Decimal("1.10"),
    datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_from_everywhere(store, value):
    store["k"] = value
    store.extend("s", (1, value), (2, value))
    store.apply("e", {"i": value}, t=1)
    found = [store["k"], store.get_many(["k"])["k"], store.find("k")[0][1], store.entry("k").value]
    found += [store.first("s")[1], store.last("s")[1], store.range("s")[1][1]]
    found += [store.current("e")["i"], store.past("e", 1)["i"], store.events("e")[0][3]]
    assert [(type(each), repr(each)) for each in found] == [(type(value), repr(value))] * len(found)


class JsonStore(Store):
    """As on the page of the original."""

    def _dump(self, value):
        return json.dumps(value)

    def _load(self, data):
        return json.loads(data)


class ExactStore(Store):
    """Decimals as JSON numbers, with all their digits."""

    def _dump(self, value):
        return str(value)

    def _load(self, data):
        return decimal.Decimal(data)


@pytest.mark.parametrize("text", ["12345678901234567.25", "0.1234567890123456789", "1e-400"])
def test_digits_of_a_dump_of_ones_own_are_kept_or_refused(service_url, namespace, text):
    exact = decimal.Decimal(text)
    with ExactStore(service_url, namespace, KEY, frozen=False) as sealed:
        sealed.extend("s", (1, exact))
        assert sealed.range("s") == [(1, exact)]
        sealed.discard()
    with ExactStore(service_url, namespace, frozen=False) as store:
        store.set("k", exact)
        store.apply("e", {"n": exact})
        assert store.get("k") == store.current("e")["n"] == exact
        points = [(1, decimal.Decimal("1.50")), (2, decimal.Decimal(2**70)), (3, decimal.Decimal("1E+3"))]
        store.extend("s", *points)
        with pytest.raises(StoreEncodingError, match="at timestamp 5 that neither"):
            store.extend("s", (4, decimal.Decimal(1)), (5, exact))
        assert store.range("s") == points
        store.discard()


class BytesStore(Store):
    def _dump(self, value):
        return b"<" + repr(value).encode() + b">"

    def _load(self, data):
        return data[1:-1].decode()


class TextStore(Store):
    """Text that is not JSON is stored as bytes; what it does not know it leaves to the default."""

    def _dump(self, value):
        return f"text {value}" if isinstance(value, str) else super()._dump(value)

    def _load(self, data):
        return data.decode().removeprefix("text ") if isinstance(data, bytes) else super()._load(data)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
@pytest.mark.parametrize(
    ("kind", "value", "loaded"),
    [
        (JsonStore, (1, 2), [1, 2]),
        (JsonStore, {1: None}, {"1": None}),
        (JsonStore, 1.5, 1.5),
        (BytesStore, 5, "5"),
        (BytesStore, (1, 2), "(1, 2)"),
        (TextStore, "{", "{"),
        (TextStore, "hello", "hello"),
        (TextStore, [1], [1]),
        (TextStore, {1, 2}, {1, 2}),
    ],
)
def test_dump_and_load_may_be_overridden(service_url, namespace, kind, value, loaded, key):
    with kind(service_url, namespace, key, frozen=False) as store:
        store["k"] = value
        assert store["k"] == loaded
        assert store.get_many(["k"]) == {"k": loaded}
        store.extend("s", (1, value), (0, value), (1, value))
        assert store.range("s") == [(0, loaded), (1, loaded)]
        assert store.last("s") == (1, loaded)
        assert store.apply("e", {"i": value}) == {"i": loaded}
        assert store.current("e") == {"i": loaded}
        store.discard()


def test_json_text_of_dump_is_readable_from_anywhere(service_url, namespace):
    with JsonStore(service_url, namespace, frozen=False) as store:
        store["k"] = {"a": (1, 2)}
        answer = httpx2.get(f"{service_url}/ns/{namespace}/kv/k")
        assert (answer.headers["content-type"], answer.json()) == ("application/json", {"a": [1, 2]})
        assert store.apply("e", {"n": 1}) == {"n": 1}
        assert store.apply("e", {"n": (operator.add, 2)}) == {"n": 3}
        assert httpx2.get(f"{service_url}/ns/{namespace}/es/e/current").json()["state"] == {"n": 3}
        store.discard()


@pytest.mark.parametrize("dumped", [5, None, "\ud800"])
def test_what_dump_returns_is_text_or_bytes(service_url, namespace, dumped):
    class Odd(Store):
        def _dump(self, value):
            return dumped

    with Odd(service_url, namespace, frozen=False) as store, pytest.raises(StoreEncodingError):
        store.set("k", 1)


def test_a_store_without_the_key_says_so(service_url, namespace):
    with Store(service_url, namespace, KEY, frozen=False) as sealed, Store(service_url, namespace) as plain:
        sealed["k"] = 1
        sealed.extend("s", (1, 1))
        sealed.apply("e", {"i": 1})
        for read in (
            lambda: plain["k"],
            lambda: plain.find(),
            lambda: plain.range("s"),
            lambda: plain.first("s"),
            lambda: plain.current("e"),
            lambda: plain.events("e"),
        ):
            with pytest.raises(StoreDecryptionError, match="key"):
                read()
        sealed.discard()


# --- several steps -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow_url(serve_module, tmp_path_factory):
    """A service with small pages and answers."""
    folder = tmp_path_factory.mktemp("narrow")
    limits = {"page_size_max": 3, "body_bytes_max": 20_000}
    return serve_module(f"sqlite:///{folder / 'store.db'}", limits=limits).url


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_listings_are_read_to_their_end(narrow_url, namespace, key):
    names = [f"k{number:02}" for number in range(10)]
    with Store(narrow_url, namespace, key, frozen=False) as store:
        for name in names:
            store.set(name, name)
            store.extend(name, (1, 1))
            store.apply(name, {"a": 1})
        assert store.keys() == list(store) == store.timeseries() == store.eventsources() == names
        assert store.find() == [(name, name) for name in names]
        assert store.find("*5", "*0?", "k01") == [(name, name) for name in names]
        assert store.find("k?5", "k?1") == [("k01", "k01"), ("k05", "k05")]
        assert store.count() == len(store) == 10
        assert namespace in store.namespaces()
        assert store.delete(*names, "absent") is None
        assert store.keys() == []
        store.discard()


def test_many_large_values_come_in_several_answers(narrow_url, namespace):
    values = {f"k{number}": str(number) * 4_000 for number in range(9, -1, -1)}
    with Store(narrow_url, namespace, frozen=False) as store:
        for key, value in values.items():
            store[key] = value
        assert store.get_many([*values, "absent", *values]) == values
        assert list(store.get_many(values)) == list(values)
        assert store.get_many([]) == {}
        with pytest.raises(StoreLimitError):
            store.set_many(values)
        assert store["k0"] == values["k0"]
        store.discard()


def test_the_longest_ints_come_back(store):
    for value in (10**4300 - 1, 10**4300, 1 - 10**4299, -(10**4299)):
        store["k"] = value
        assert store["k"] == value
        store.extend("s", (1, value))
        assert store.range("s") == [(1, value)]
        assert store.apply("e", {"a": value}) == {"a": value}
        assert store.apply("e", {"a": (operator.floordiv, value)}) == {"a": 1}


def test_a_result_that_could_not_be_read_again_is_refused(plain):
    plain.apply("e", {"a": 10**4300 - 1})
    with pytest.raises(StoreIntegrityError, match="4300 characters"):
        plain.apply("e", {"a": (operator.neg,)})
    assert plain.apply("e", {"a": (operator.sub, 10**4300 - 2)}) == {"a": 1}


def test_set_many_is_all_or_nothing(plain, service_url):
    plain["k"] = "before"
    etags = plain.set_many({"k": 1, "l": 2}, ttl=100)
    assert etags == {key: plain.entry(key).etag for key in ("k", "l")}
    assert plain.entry("l").expires_ms is not None
    httpx2.put(f"{service_url}/ns/{plain.namespace}", json={"sealed_only": True})
    with pytest.raises(StoreRequestError):
        plain.set_many({"k": 3, "m": 4})
    assert plain.get_many(["k", "m"]) == {"k": 1}


@pytest.mark.skipif(servers.missing_redis() is not None, reason="no Redis server is installed")
def test_many_keys_on_a_backend_of_several_parts(serve):
    url = serve(servers.fresh_dsn(servers.redis_cluster(), buckets=8)).url
    names = [f"k{number}" for number in range(30)]
    with Store(url, "parts", frozen=False) as store:
        with pytest.raises(StoreRequestError) as caught:
            store.set_many(dict.fromkeys(names, 1))
        assert caught.value.code == "batch-not-atomic"
        assert store.keys() == []
        for name in names:
            store[name] = name
        assert store.get_many([*names, "absent"]) == {name: name for name in names}
        store.delete(*names[:20], "absent")
        assert store.keys() == sorted(names[20:])
        together = {f"{{part}}{number}": number for number in range(20)}
        assert store.set_many(together).keys() == together.keys()
        store.discard()


def test_keep_and_never(plain):
    plain.set("k", 1, ttl=100)
    expires = plain.entry("k").expires_ms
    plain.set("k", 2)
    assert plain.entry("k").expires_ms == expires
    plain.set("k", 3, ttl=None)
    assert plain.entry("k").expires_ms is None


def test_the_dict_like_face(store):
    assert len(store) == 0
    store["k"] = None
    assert store["k"] is None
    assert store.get("k", 1) is None
    assert "k" in store
    assert list(store) == ["k"]
    del store["k"]
    assert "k" not in store
    for use in (lambda: store["k"], lambda: store.__delitem__("k")):
        with pytest.raises(KeyError, match="k"):
            use()


def test_compare_and_set(store):
    etag = store.set("k", 1, if_absent=True)
    with pytest.raises(StoreConflictError) as caught:
        store.set("k", 2, if_absent=True)
    assert caught.value.code == "precondition-failed"
    assert caught.value.request_id
    assert store.set("k", 2, if_match=etag) == store.entry("k").etag
    with pytest.raises(StoreConflictError):
        store.set("k", 3, if_match=etag)
    store.set("k", 3, if_match="*")
    with pytest.raises(StoreConflictError):
        store.set("absent", 3, if_match="*")
    assert store["k"] == 3


# --- event sequences that the client folds -----------------------------------------------------------------


def test_writers_of_a_sealed_sequence_wait_for_each_other(service_url, namespace):
    def add():
        with Store(service_url, namespace, KEY, frozen=False) as store:
            for _ in range(5):
                store.apply("e", {"n": (operator.add, 1)})

    with Store(service_url, namespace, KEY, frozen=False) as store:
        store.apply("e", {"n": 0})
        threads = [threading.Thread(target=add) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.current("e") == {"n": 30}
        assert len({event[0] for event in store.events("e")}) == 31
        store.discard()


@pytest.mark.parametrize("value", [5, (5,)], ids=["json", "pickle"])
def test_a_change_of_the_past_is_checked_against_what_follows(store, value):
    store.apply("e", {"a": value, "b": 0}, t=10)
    store.apply("e", {"a": (operator.mul, 2)}, t=30)
    assert store.apply("e", {"b": 1, "c": "new"}, t=20) == {"a": value * 2, "b": 1, "c": "new"}
    before = store.events("e")
    for change in (
        {"a": (operator.delitem,)},
        {"a": "text", "d": (operator.neg,)},
        {"a": None},
        {"d": (operator.neg,)},
    ):
        with pytest.raises(StoreIntegrityError) as caught:
            store.apply("e", change, t=15)
        assert caught.value.code == "unfoldable-event"
    for t in (10, 20, 30):
        with pytest.raises(StoreIntegrityError) as caught:
            store.apply("e", {"a": value}, t=t)
        assert caught.value.code == "timestamp-taken"
    assert store.events("e") == before
    assert store.apply("e", {"a": value * 2}, t=15) == {"a": value * 4, "b": 1, "c": "new"}
    assert store.past("e", 15, withtimestamp=True) == (15, {"a": value * 2, "b": 0})
    assert store.current("e", withtimestamp=True) == (30, {"a": value * 4, "b": 1, "c": "new"})


def test_json_on_top_of_what_only_a_client_folds_is_checked_too(plain):
    plain.apply("e", {"pair": (1, 2), "n": 1})
    before = plain.events("e")
    for change in ((operator.concat, "text"), (operator.neg,), (operator.truediv, 2)):
        with pytest.raises(StoreIntegrityError):
            plain.apply("e", {"pair": change, "n": 2})
    with pytest.raises(StoreIntegrityError):
        plain.apply("e", {"pair": (operator.add, 1)}, t=2**62)
    assert plain.events("e") == before
    assert plain.apply("e", {"pair": (operator.mul, 2), "n": (operator.add, 1)}) == {"n": 2, "pair": (1, 2, 1, 2)}
    assert plain.apply("e", {"pair": (operator.not_,)}) == {"n": 2, "pair": False}


@pytest.mark.parametrize("function", [operator.xor, operator.iadd, operator.pos, operator.itemgetter])
@pytest.mark.parametrize("rest", [(), (1,)])
def test_no_other_function_of_the_module_passes_for_a_value(store, function, rest):
    store.apply("e", {"a": 1}, t=1)
    with pytest.raises(StoreRequestError, match=", ".join(rstore.core.operators.OPERATORS)):
        store.apply("e", {"a": 2, "b": (function, *rest)})
    assert store.current("e", withtimestamp=True) == (1, {"a": 1})


class Called:
    """Callable, though it is not a function."""

    def __call__(self):
        return 1


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
@pytest.mark.parametrize(
    "change",
    [
        # An operator with too many values, too few, or without its tuple.
        *((function, 2, 3) for function in OPERATORS.values()),
        *(function for function in OPERATORS.values()),
        *([function] for function in OPERATORS.values()),
        *([function, 2] for function in OPERATORS.values()),
        *((OPERATORS[op],) for op in sorted(OPERATORS.keys() - UNARY)),
        *((OPERATORS[op], 2) for op in sorted(UNARY)),
        Pair(operator.add, 2),
        # What is not an operator.
        *(function for function in (len, lambda: 1, int, Custom, Called(), functools.partial(int, 1), str.upper)),
        *((function, 2) for function in (len, lambda: 1, int, Custom, Called(), operator.xor, operator.iadd)),
        (len,),
        [len, 1],
        (len, 1, 2, 3),
    ],
)
def test_a_function_is_never_stored_as_a_value(facing, reply, key, change):
    store = facing(reply(500), key=key)
    for changes in ({"a": change}, {"a": 1, "b": change}):
        with pytest.raises(StoreRequestError) as caught:
            store.apply("e", changes)
        # Nothing was sent, or this would be the answer.
        assert (caught.value.code, caught.value.status) in (("invalid-body", None), ("invalid-parameter", None))


def test_a_value_that_begins_with_a_function_is_set_by_setitem(service_url, namespace):
    with Store(service_url, namespace, KEY, frozen=False, trust_pickle=True) as store:
        value: Any
        for value in ((operator.xor, 1), (operator.add,), (len, 1), (operator.add, 1, 2), len, [len]):
            assert store.apply("e", {"a": (operator.setitem, value)}) == {"a": value}
        for value in ((), [], ([], 1), (1, len), {"f": len}):
            assert store.apply("e", {"a": value}) == {"a": value}
        assert store.apply("e", {"a": 5}) == {"a": 5}
        assert store.apply("e", {"a": (operator.not_, None)}) == {"a": False}
        store.discard()


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_an_apply_without_changes_answers_what_current_does(service_url, namespace, key):
    with Store(service_url, namespace, key, frozen=False) as store:
        for t in (None, 0, 5, 2**63 - 1):
            assert store.apply("e", {}, t=t) is None
        assert store.eventsources() == []
        store.apply("e", {"a": 1}, t=5)
        store.apply("e", {"a": (operator.delitem,)}, t=6)
        assert store.apply("e", {}) == store.current("e") == {}
        assert store.apply("e", {}, t=5) == {}
        store.discard()


def test_a_state_belongs_to_its_caller(store):
    given = {"inner": [1]}
    state = store.apply("e", {"a": given})
    state["a"]["inner"].append(2)
    assert given == {"inner": [1]}
    assert store.current("e") == {"a": {"inner": [1]}}


def test_events_of_operators(store):
    store.apply("e", {"a": 1, "b": 2}, t=1)
    store.apply("e", {"a": (operator.add, 1), "b": (operator.delitem,)}, t=2)
    assert store.events("e", ops=[operator.add, operator.delitem]) == [
        (2, "a", operator.add, 1),
        (2, "b", operator.delitem, None),
    ]
    assert store.events("e", 2, 2, iter([operator.setitem])) == []
    assert store.events("e", ops=[]) == []
    assert store.events("absent", ops=[]) is None
    assert store.events("absent") is None


def test_the_type_of_a_state_says_whether_it_comes_with_its_timestamp(service_url, namespace):
    with Store(service_url, namespace, frozen=False) as store:
        store.apply("e", {"n": 1}, t=1)
        for timed in (False, True):
            # mypy checks these. It does not tell None from the rest in tests.
            assert_type(store.current("e"), dict[str, Any])
            assert_type(store.past("e", 1, withtimestamp=True), tuple[int, dict[str, Any]])
            state = assert_type(store.current("e", timed), dict[str, Any] | tuple[int, dict[str, Any]])
            assert state == store.past("e", 1, withtimestamp=timed) == ((1, {"n": 1}) if timed else {"n": 1})
