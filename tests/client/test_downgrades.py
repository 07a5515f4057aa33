"""A hostile service: in each answer of each reading operation each value is replaced, in each way there is.

The answers are those of a real service; a transport changes them on their way. Whatever a store with a key is served
instead of what was sealed for that place, it raises and returns nothing.
"""

from __future__ import annotations

import base64
import json
import operator
import pickle
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from cryptography.fernet import Fernet

import rstore
from rstore import AsyncStore, Store, StoreDecryptionError, StoreProtocolError
from rstore.core.encodings import Encoding, Value, media_type_of
from rstore.core.frames import FrameReader, encode
from rstore.core.points import Points
from rstore.sealing import EventContext, PairContext, PointContext, Sealer

KEY, OTHER = rstore.generate_key(), rstore.generate_key()
SEALER = Sealer(KEY)
NAMESPACE = "hostile"
ONE = Value(Encoding.JSON, b"1")


class Exploded(Exception):
    """What an injected pickle raises if anybody loads it."""


def explode():
    raise Exploded


class Bomb:
    def __reduce__(self):
        return explode, ()


# --- what is served instead ----------------------------------------------------------------------------------


def sealed(data: bytes) -> Value:
    return Value(Encoding.SEALED, data)


def from_elsewhere(context: Any) -> Callable[[Value], Value]:
    """An authentic envelope, of another place."""
    envelope = SEALER.seal(ONE, context)
    return lambda _: envelope


def version(byte: int) -> Callable[[Value], Value]:
    return lambda value: sealed(bytes([byte]) + value.data[1:])


FERNET = Fernet(KEY).encrypt(pickle.dumps(1))
PLACES = {
    "another pair": PairContext(NAMESPACE, "other"),
    "another namespace's pair": PairContext("elsewhere", "k"),
    "another series": PointContext(NAMESPACE, "other", 1),
    "another namespace's point": PointContext("elsewhere", "k", 1),
    "another timestamp": PointContext(NAMESPACE, "k", 2),
    "another sequence": EventContext(NAMESPACE, "other", 1, "a", "setitem"),
    "another namespace's event": EventContext("elsewhere", "k", 1, "a", "setitem"),
    "another event's timestamp": EventContext(NAMESPACE, "k", 2, "a", "setitem"),
    "another item": EventContext(NAMESPACE, "k", 1, "b", "setitem"),
    "another operator": EventContext(NAMESPACE, "k", 1, "a", "add"),
    "a unary operator": EventContext(NAMESPACE, "k", 1, "a", "neg"),
}
DOWNGRADES: dict[str, Callable[[Value], Value]] = {
    "plain JSON": lambda _: ONE,
    "plain JSON null": lambda _: Value(Encoding.JSON, b"null"),
    "the envelope as JSON": lambda value: Value(
        Encoding.JSON, json.dumps(base64.b64encode(value.data).decode()).encode()
    ),
    "plain bytes": lambda _: Value(Encoding.BYTES, b"injected"),
    "the envelope as bytes": lambda value: Value(Encoding.BYTES, value.data),
    "a pickle": lambda _: Value(Encoding.PICKLE, pickle.dumps(Bomb())),
    "a pickle that says it is sealed": lambda _: sealed(pickle.dumps(Bomb())),
    "a plaintext that says it is sealed": lambda _: sealed(b"\x001"),
    "a Fernet token": lambda _: sealed(FERNET),
    "a Fernet token as bytes": lambda _: Value(Encoding.BYTES, FERNET),
    "an older version": version(0),
    "a newer version": version(2),
    "no version": lambda value: sealed(value.data[1:]),
    "another key": lambda _: Sealer(OTHER).seal(ONE, PairContext(NAMESPACE, "k")),
    "another key's id": lambda value: sealed(value.data[:1] + bytes(8) + value.data[9:]),
    "nothing": lambda _: sealed(b""),
    "the head alone": lambda value: sealed(value.data[:21]),
    "all but the tag": lambda value: sealed(value.data[:-16]),
    "all but a byte": lambda value: sealed(value.data[:-1]),
    "a byte more": lambda value: sealed(value.data + b"\0"),
    "another nonce": lambda value: sealed(value.data[:9] + bytes(12) + value.data[21:]),
    "another tag": lambda value: sealed(value.data[:-1] + bytes([value.data[-1] ^ 1])),
} | {name: from_elsewhere(context) for name, context in PLACES.items()}


# --- the service that serves it --------------------------------------------------------------------------------


class Hostile(httpx2.HTTPTransport):
    """Replaces every value in every answer; counts what the SDK writes."""

    def __init__(self, url: str) -> None:
        super().__init__(verify=False, trust_env=False)
        self.url = url
        self.replace: Callable[[Value], Value] | None = None
        self.replaced = 0
        self.written = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = super().handle_request(request)
        if self.replace is None or response.is_error:
            return response
        body = response.read()
        self.written += request.method != "GET" and not (request.method == "POST" and b'"get"' in request.read())
        return httpx2.Response(response.status_code, **self.changed(body, response.headers))

    def changed(self, body: bytes, headers: httpx2.Headers) -> dict[str, Any]:
        media_type = headers["content-type"]
        told = {name: headers[name] for name in ("etag",) if name in headers} | {"content-type": media_type}
        if media_type == "application/json":
            body = json.dumps(self.in_json(json.loads(body))).encode()
        elif media_type == "application/vnd.rstore.points":
            parts = [self.in_points(points) for points in FrameReader().feed(body)]
            body = b"".join(map(encode, parts))
        else:
            encoding, body = self.one(sealed(body))
            told["content-type"] = media_type_of(encoding)
        return {"content": body, "headers": told}

    def one(self, value: Value) -> Value:
        self.replaced += 1
        return self.replace(value)

    def in_points(self, points: Points) -> Points:
        return Points.from_values([(t, self.one(value)) for t, value in points])

    def in_json(self, body: Any) -> Any:
        if isinstance(body, dict) and body.get("encoding") == "sealed":
            encoding, data = self.one(sealed(base64.b64decode(body["value"])))
            plain = encoding is Encoding.JSON
            value = json.loads(data) if plain else base64.b64encode(data).decode()
            return body | {"value": value, "encoding": encoding.label}
        if isinstance(body, dict) and "point" in body:
            t, text, _ = body["point"]
            encoding, data = self.one(sealed(base64.b64decode(text)))
            plain = encoding is Encoding.JSON
            value = json.loads(data) if plain else base64.b64encode(data).decode()
            return {"point": [t, value] if plain else [t, value, encoding.label]}
        if isinstance(body, dict):
            return {name: self.in_json(member) for name, member in body.items()}
        return [self.in_json(member) for member in body] if isinstance(body, list) else body


READS: dict[str, list[Callable[[Store], Any]]] = {
    "get": [lambda store: store.get("k"), lambda store: store.get("k", default=5)],
    "__getitem__": [lambda store: store["k"]],
    "entry": [lambda store: store.entry("k")],
    "find": [lambda store: store.find(), lambda store: store.find("k*", "?")],
    "get_many": [lambda store: store.get_many(["k"])],
    "range_columns": [
        lambda store: list(zip(*store.range_columns("k"), strict=True)),
        lambda store: list(zip(*store.range_columns("k", 1, end=1), strict=True)),
    ],
    "range": [
        lambda store: store.range("k"),
        lambda store: store.range("k", 1, end=1),
        lambda store: store.range("k", n=1),
        lambda store: store.range("k", freq=5),
    ],
    "first": [lambda store: store.first("k")],
    "last": [lambda store: store.last("k")],
    "current": [lambda store: store.current("k"), lambda store: store.current("k", withtimestamp=True)],
    "past": [lambda store: store.past("k", 1), lambda store: store.past("chain", 1)],
    "events": [
        lambda store: store.events("k"),
        lambda store: store.events("k", 1, 1),
        lambda store: store.events("k", ops=[operator.setitem]),
    ],
    "apply": [
        lambda store: store.apply("k", {"a": (operator.add, 1)}),
        lambda store: store.apply("k", {"b": 1}),
        lambda store: store.apply("k", {"a": 1}, t=0),
        lambda store: store.apply("k", {}),
    ],
}
# What tells of no value: names, counts, timestamps, or nothing at all.
VALUELESS = {
    *(
        "__contains__",
        "__delitem__",
        "__enter__",
        "__exit__",
        "__init__",
        "__iter__",
        "__len__",
        "__repr__",
        "__setitem__",
    ),
    *("create_token", "revoke_token", "rotate_token", "tokens"),
    *(
        "close",
        "count",
        "delete",
        "discard",
        "eventsequences",
        "eventsources",
        "extend",
        "extend_columns",
        "has",
        "iscomplete",
        "keys",
    ),
    *("missing", "namespaces", "open", "prune", "remove", "rotate", "set", "set_many", "timeseries"),
}


def test_every_operation_is_either_in_the_matrix_or_reads_no_value():
    own = {name for kind in Store.__mro__[:-1] for name, member in vars(kind).items() if callable(member)}
    public = {
        name for name in own | set(dir(Store)) if not name.startswith("_") or name in own & VALUELESS | READS.keys()
    }
    assert public == READS.keys() | VALUELESS
    assert {name for name in dir(AsyncStore) if not name.startswith("_")} <= public


@pytest.fixture(scope="module")
def hostile(serve_module, tmp_path_factory):
    """A store whose service is hostile once ``transport.replace`` is set, and that transport."""
    url = serve_module(f"sqlite:///{tmp_path_factory.mktemp('hostile') / 'store.db'}").url
    with Hostile(url) as transport, Store(url, NAMESPACE, KEY, frozen=False, transport=transport) as store:
        store.set("k", 1)
        store.extend("k", (1, 1))
        store.apply("k", {"a": 1}, t=1)
        store.apply("chain", {"a": 1}, t=1)
        store.apply("chain", {"a": (operator.neg,)}, t=2)
        yield store, transport
        transport.replace = None
        assert store.current("k") == {"a": 1}


@pytest.mark.parametrize("name", READS)
def test_what_is_not_replaced_is_read(hostile, name):
    store, transport = hostile
    transport.replace, transport.replaced = lambda value: value, 0
    if name != "apply":
        for read in READS[name]:
            read(store)
        assert transport.replaced >= len(READS[name])


@pytest.mark.parametrize("downgrade", DOWNGRADES)
@pytest.mark.parametrize("name", READS)
def test_what_is_replaced_is_refused(hostile, name, downgrade):
    store, transport = hostile
    for read in READS[name]:
        transport.replace, transport.replaced, transport.written = DOWNGRADES[downgrade], 0, 0
        with pytest.raises(StoreDecryptionError):
            read(store)
        assert transport.replaced
        assert not transport.written


@pytest.mark.parametrize("downgrade", DOWNGRADES)
def test_a_rotation_makes_nothing_of_it_authentic(hostile, downgrade):
    _, transport = hostile
    keys = [rstore.generate_key(), KEY]
    with Store(transport.url, NAMESPACE, keys, frozen=False, transport=transport) as both:
        transport.replace, transport.written = DOWNGRADES[downgrade], 0
        try:
            found = both.rotate()
        except StoreProtocolError:  # A unary operator with a value that is not sealed is not an event at all.
            assert DOWNGRADES[downgrade](sealed(bytes(60))).encoding is not Encoding.SEALED
        else:
            assert (found.resealed, found.current, found.unsealed + found.failed) == (0, 0, 5)
    assert not transport.written


def test_folded_items_from_the_service_are_refused(hostile, monkeypatch):
    store, transport = hostile
    transport.replace = lambda value: value
    changed = transport.changed

    def folded(body, headers):
        if b'"state":' in body:
            body = json.dumps(json.loads(body) | {"state": {"a": 1}, "events": []}).encode()
        return changed(body, headers)

    monkeypatch.setattr(transport, "changed", folded)
    for read in (*READS["current"], *READS["past"], *READS["apply"]):
        with pytest.raises(StoreDecryptionError):
            read(store)
