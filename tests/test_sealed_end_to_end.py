"""Sealing, seen from outside: what the server and the disk see, and what a hostile server can do.

Everything here runs against a real service process. The attacker of these tests owns the server: it reads and rewrites
what is stored through plain REST, without a key.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import operator
import os
import pickle
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote

import httpx2
import pytest
from cryptography.fernet import Fernet
from tests.picklable import Call
from tests.relay import Relay

import rstore
from rstore import AsyncStore, Store, StoreDecryptionError, StoreEncodingError, StoreError
from rstore.core.encodings import Encoding, Value
from rstore.sealing import EventContext, PairContext, PointContext, Sealer
from rstored.backends.sqlite import SQLiteBackend
from rstored.engine.batching import Storage
from rstored.engine.es import EventSequences, applying
from rstored.engine.model import Change
from rstored.limits import Limits

SEALED = "application/vnd.rstore.sealed"


# --- what the server and the disk see ----------------------------------------------------------------------


class RecordingProxy(Relay):
    """Keeps every byte that a client sends to the server, and every byte of the answers."""

    def __init__(self, url: str) -> None:
        self.sent = bytearray()
        self.answered = bytearray()
        super().__init__(url)

    def passes(self, chunk: bytes, *, answer: bool) -> bool:
        record = self.answered if answer else self.sent
        record += chunk
        return True


@pytest.fixture
def server(serve, tmp_path):
    """A service process on a file of its own."""
    return serve(f"sqlite:///{tmp_path / 'store.db'}")


@pytest.fixture
def proxy(server) -> Iterator[RecordingProxy]:
    proxy = RecordingProxy(server.url)
    yield proxy
    proxy.close()


def spellings(secret: bytes) -> list[bytes]:
    """Forms in which a text could stand in bytes without being hidden."""
    text = secret.decode("ascii")
    forms = [
        secret,
        secret[::-1],
        secret.hex().encode(),
        secret.hex().upper().encode(),
        base64.b32encode(secret).rstrip(b"=")[:-1],
        base64.b85encode(secret)[:-5],
        "".join(f"\\u{ord(letter):04x}" for letter in text).encode(),
        "".join(f"\\x{ord(letter):02x}" for letter in text).encode(),
        "".join(f"%{ord(letter):02X}" for letter in text).encode(),
        text.encode("utf-16-le"),
        text.encode("utf-16-be"),
        text.encode("utf-32-le"),
        quote(text).encode(),
    ]
    for shift in range(3):
        # However the text lies in what is encoded, these characters of its base64 are the same.
        encoded = base64.b64encode(b"\0" * shift + secret)
        inner = encoded[4 if shift else 0 : -4]
        forms += [inner, inner.replace(b"+", b"-").replace(b"/", b"_")]
    return forms


def inflated(data: bytes) -> Iterator[bytes]:
    """What every zlib, gzip or raw deflate stream in ``data`` decompresses to."""
    position = data.find(b"\x78")
    while position >= 0:
        with contextlib.suppress(zlib.error):
            yield zlib.decompressobj().decompress(data[position:], 2**22)
        position = data.find(b"\x78", position + 1)
    position = data.find(b"\x1f\x8b\x08")
    while position >= 0:
        with contextlib.suppress(zlib.error):
            yield zlib.decompressobj(31).decompress(data[position:], 2**22)
        position = data.find(b"\x1f\x8b\x08", position + 1)


def occurrences(secret: bytes, data: bytes) -> list[bytes]:
    """The forms of the secret that occur in the data or in what compressed parts of it hold."""
    found = [form for form in spellings(secret) if form in data]
    for part in inflated(data):
        found += [b"deflated " + form for form in spellings(secret) if form in part]
    return found


def every_file(folder: Path) -> bytes:
    """All bytes of all files of a folder, one after the other."""
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def use_every_operation(store: Store, secret: str) -> None:
    """Write the secret in every way there is, and read it back."""
    raw = secret.encode()
    values = [secret, [secret, {"k": secret}], {secret: 1}, raw, (secret, 1), {raw}, 5, None, secret * 300, raw * 300]
    for number, value in enumerate(values):
        store.set(f"k{number}", value, ttl=1000 if number % 2 else None)
    store.set_many({f"m{number}": value for number, value in enumerate(values)})
    assert [store.get(f"k{number}") for number in range(len(values))] == values
    assert list(store.get_many([f"m{number}" for number in range(len(values))]).values()) == values
    entry = store.entry("k0")
    store.set("k0", [secret], if_match=entry.etag)
    store.set("new", secret, if_absent=True)
    assert len(store.find("k*")) == len(values)
    store.extend("s", *enumerate(values))
    store.extend("s", *[(t, secret) for t in range(100, 700)])
    store.extend("s", *[(t, secret + str(t)) for t in range(400, 450)])
    assert store.range("s", n=len(values)) == list(enumerate(values))
    assert store.last("s") == (699, secret)
    store.apply("e", {"text": secret, "raw": raw, "list": [secret], "n": 5, "tuple": (secret,)})
    store.apply("e", {"text": (operator.add, secret), "list": (operator.concat, [secret]), "n": (operator.mul, 2)})
    store.apply("e", {"text": (operator.mul, 3), "raw": (operator.delitem,), "n": (operator.neg,)})
    with pytest.raises(StoreError):
        store.apply("e", {"text": (operator.sub, secret)})
    with pytest.raises(StoreError):
        store.apply("e", {"absent": (operator.add, secret)})
    assert store.current("e") == {"text": (secret + secret) * 3, "list": [secret, secret], "n": -10, "tuple": (secret,)}
    store.prune("e")
    assert store.current("e")["list"] == [secret, secret]
    store.delete("k1")
    store.remove("s", start=3, end=5)


def test_nothing_readable_reaches_the_server_or_the_disk(server, proxy, tmp_path):
    secret, key = secrets.token_hex(20), rstore.generate_key()
    with Store(proxy.url, "vault", key, frozen=False) as store:
        use_every_operation(store, secret)
    assert len(proxy.sent) > 20_000
    assert b"/ns/vault/" in proxy.sent
    disk = every_file(tmp_path)
    assert b"vault" in disk
    for data in (bytes(proxy.sent), bytes(proxy.answered), disk):
        assert occurrences(secret.encode(), data) == []
        assert occurrences(key.encode(), data) == []
        assert base64.urlsafe_b64decode(key) not in data
    server.stop()
    assert occurrences(secret.encode(), every_file(tmp_path)) == []
    assert secret not in server.log
    assert key not in server.log


@pytest.mark.anyio
async def test_nothing_readable_from_an_async_store_either(proxy, tmp_path):
    secret = secrets.token_hex(20)
    async with AsyncStore(proxy.url, "vault", rstore.generate_key(), frozen=False) as store:
        await store.set("k", secret)
        await store.extend("s", (1, secret), (2, [secret]))
        await store.apply("e", {"a": secret})
        await store.apply("e", {"a": (operator.add, secret)})
        assert await store.current("e") == {"a": secret * 2}
    assert occurrences(secret.encode(), bytes(proxy.sent)) == []
    assert occurrences(secret.encode(), every_file(tmp_path)) == []


def test_the_search_finds_what_is_not_sealed(proxy, tmp_path):
    secret = secrets.token_hex(20)
    with Store(proxy.url, "open", frozen=False) as store:
        store.set("k", secret)
        store.extend("s", *[(t, secret) for t in range(600)])
    assert occurrences(secret.encode(), bytes(proxy.sent))
    assert occurrences(secret.encode(), every_file(tmp_path))
    raw = secret.encode()
    for hidden in (
        b"x" + zlib.compress(raw * 9),
        base64.b64encode(b"?" + raw),
        base64.urlsafe_b64encode(b"??" + raw),
        raw.hex().encode(),
        pickle.dumps([secret]),
        json.dumps(secret).encode(),
        binascii.hexlify(raw),
    ):
        assert occurrences(raw, b"noise" + hidden + b"noise")


def test_equal_values_seal_differently_and_errors_hold_no_value(server):
    secret = secrets.token_hex(20)
    with Store(server.url, "vault", rstore.generate_key(), frozen=False) as store:
        store.set("a", secret)
        store.set("b", secret)
        with httpx2.Client(base_url=server.url) as http:
            bodies = [http.get(f"/ns/vault/kv/{key}").content for key in ("a", "b", "a")]
        assert bodies[0] != bodies[1]
        assert bodies[0] == bodies[2]
        store.apply("e", {"a": secret})
        with pytest.raises(StoreError) as caught:
            store.apply("e", {"a": (operator.sub, secret)})
    assert secret not in str(caught.value)
    assert secret not in repr(caught.value.problem)


# --- what a hostile server can do --------------------------------------------------------------------------


class Attacker:
    """Reads and rewrites what is stored, without a key."""

    def __init__(self, url: str, dsn: str) -> None:
        self.http = httpx2.Client(base_url=url)
        self._dsn = dsn

    def pair(self, key: str, namespace: str = "vault") -> bytes:
        answer = self.http.get(f"/ns/{namespace}/kv/{key}")
        assert answer.headers["content-type"] == SEALED
        return answer.content

    def put_pair(self, key: str, body: bytes, namespace: str = "vault", media_type: str = SEALED) -> bool:
        answer = self.http.put(f"/ns/{namespace}/kv/{key}", content=body, headers={"Content-Type": media_type})
        assert answer.status_code in (201, 204, 422), answer.text
        return answer.status_code != 422

    def points(self, key: str, namespace: str = "vault") -> dict[int, bytes]:
        points = self.http.get(f"/ns/{namespace}/ts/{key}/range").json()["points"]
        assert all(point[2] == "sealed" for point in points)
        return {point[0]: base64.b64decode(point[1]) for point in points}

    def put_point(
        self,
        key: str,
        t: int,
        body: bytes,
        namespace: str = "vault",
        encoding: str = "sealed",
        json_value: object = None,
    ) -> bool:
        point = [t, json_value] if encoding == "json" else [t, base64.b64encode(body).decode(), encoding]
        answer = self.http.post(f"/ns/{namespace}/ts/{key}/range", json={"points": [point]})
        assert answer.status_code in (200, 422), answer.text
        return answer.status_code != 422

    def events(self, key: str, namespace: str = "vault") -> list[dict[str, object]]:
        return self.http.get(f"/ns/{namespace}/es/{key}/events").json()["events"]

    def put_events(self, key: str, applies: dict[int, list[dict[str, object]]], namespace: str = "vault") -> bool:
        """Make the sequence what ``applies`` (events by timestamp) says."""
        self.http.delete(f"/ns/{namespace}/es/{key}/events")
        for t, events in applies.items():
            answer = self.http.post(f"/ns/{namespace}/es/{key}/events", json={"timestamp": t, "events": events})
            if answer.status_code == 422:
                return False
            assert answer.status_code == 200, answer.text
        return True

    def forge(self, key: str, t: int, *changes: Change) -> None:
        """Record events that the service would refuse in a sealed sequence, straight in its storage."""

        def anything(place, meta, encodings):
            return meta.sealed
            yield

        async def record() -> None:
            backend = await SQLiteBackend.open(self._dsn)
            sequences = EventSequences(Storage(backend), Limits(), lambda: 0)
            revision = (await sequences.current("vault", key)).revision
            await sequences.apply("vault", key, changes, timestamp=t, revision=revision)
            await backend.close()

        with mock.patch.object(applying, "sealed_after", anything):
            asyncio.run(record())


@pytest.fixture(scope="module")
def vault_dsn(tmp_path_factory) -> str:
    """Where the service of all attacks keeps its data."""
    return f"sqlite:///{tmp_path_factory.mktemp('vault') / 'store.db'}"


@pytest.fixture(scope="module")
def vault(serve_module, vault_dsn):
    """One service process for all attacks."""
    return serve_module(vault_dsn)


@pytest.fixture
def attacker(vault, vault_dsn) -> Iterator[Attacker]:
    attacker = Attacker(vault.url, vault_dsn)
    yield attacker
    attacker.http.delete("/ns/vault")
    attacker.http.close()


@pytest.fixture
def key() -> str:
    """A new key."""
    return rstore.generate_key()


@pytest.fixture
def store(vault, key) -> Iterator[Store]:
    with Store(vault.url, "vault", key, frozen=False) as store:
        yield store
        store.discard()


def refuses(read, *arguments, **options) -> None:
    """The SDK refuses the read, and says that the value is not the one that was sealed here."""
    with pytest.raises(StoreDecryptionError) as caught:
        read(*arguments, **options)
    assert isinstance(caught.value, StoreError)
    assert any(word in str(caught.value).lower() for word in ("seal", "key", "fernet"))


def flips(body: bytes) -> Iterator[bytes]:
    """The bytes with each bit flipped in turn."""
    for position in range(len(body) * 8):
        flipped = bytearray(body)
        flipped[position // 8] ^= 1 << position % 8
        yield bytes(flipped)


def cuts(body: bytes) -> Iterator[bytes]:
    """The bytes cut short, or with more behind."""
    yield from (body[:length] for length in (0, 1, 9, 20, 21, 36, len(body) - 1))
    yield body + b"\0"
    yield b"\0" + body


def test_every_flipped_bit_of_a_pair_is_refused(store, attacker):
    store.set("k", "value")
    original = attacker.pair("k")
    assert original[0] == 1
    assert len(original) == 1 + 8 + 12 + 1 + len('"value"') + 16
    refused = 0
    for body in [*flips(original), *cuts(original)]:
        refused += not attacker.put_pair("k", body)
        if attacker.pair("k") == body:
            refuses(store.get, "k")
    assert refused <= 200, "the service may refuse what is not an envelope at all, no more"
    assert attacker.put_pair("k", original)
    assert store.get("k") == "value"


def test_every_flipped_bit_of_a_point_is_refused(store, attacker):
    store.extend("s", (5, 1.5), (6, 2.5))
    original = attacker.points("s")[5]
    for body in [*flips(original), *cuts(original)]:
        if attacker.put_point("s", 5, body):
            refuses(store.range, "s")
            refuses(store.first, "s")
            assert store.last("s") == (6, 2.5)
    assert attacker.put_point("s", 5, original)
    assert store.range("s") == [(5, 1.5), (6, 2.5)]


def test_every_flipped_bit_of_an_event_is_refused(store, attacker):
    store.apply("e", {"a": 1}, t=5)
    (event,) = attacker.events("e")
    original = base64.b64decode(event["value"])
    for body in [*flips(original), *cuts(original)]:
        changed = {"item": "a", "value": base64.b64encode(body).decode(), "encoding": "sealed"}
        if attacker.put_events("e", {5: [changed]}):
            refuses(store.current, "e")
            refuses(store.events, "e")
    attacker.put_events("e", {5: [{"item": "a", "value": event["value"], "encoding": "sealed"}]})
    assert store.current("e") == {"a": 1}


def event(body: bytes, item: str = "a", op: str = "setitem") -> dict[str, object]:
    """An event as it stands in a request."""
    return {"item": item, "op": op, "value": base64.b64encode(body).decode(), "encoding": "sealed"}


def opens_nowhere(store: Store, key: str, item: str = "a") -> None:
    """The SDK refuses every reading of the sequence that an event is part of, and every apply to the item."""
    refuses(store.events, key)
    refuses(store.current, key)
    refuses(store.past, key, 100)
    refuses(store.apply, key, {item: (operator.not_,)})
    refuses(store.apply, key, {item: 1}, t=1)


def test_an_event_without_a_value_is_sealed_too(vault, store, attacker):
    store.apply("e", {"a": 5, "b": 1}, t=5)
    assert store.apply("e", {"a": (operator.neg,), "b": (operator.delitem,)}, t=6) == {"a": -5}
    assert store.apply("e", {"a": (operator.not_, None)}, t=7) == {"a": False}
    assert store.events("e", start=6) == [
        (6, "a", operator.neg, None),
        (6, "b", operator.delitem, None),
        (7, "a", operator.not_, None),
    ]
    unary = attacker.events("e")[2:]
    assert {event["encoding"] for event in unary} == {"sealed"}
    assert {len(base64.b64decode(event["value"])) for event in unary} == {50 + len("null")}
    with Store(vault.url, "vault") as keyless:
        for read in (lambda: keyless.current("e"), lambda: keyless.events("e", start=6)):
            with pytest.raises(StoreDecryptionError, match="key"):
                read()


@pytest.mark.parametrize("op", ["neg", "not_"])
def test_a_forged_event_without_a_value_is_refused(store, attacker, op):
    store.apply("e", {"a": 5, "b": (operator.setitem, 5)}, t=5)
    attacker.forge("e", 6, Change("a", op, None))
    opens_nowhere(store, "e")


def test_a_forged_deletion_is_found_in_the_history(store, attacker):
    """In the state it is not: an item that is not there looks like one that the service withholds."""
    store.apply("e", {"a": 5, "b": 6}, t=5)
    attacker.forge("e", 6, Change("a", "delitem", None))
    refuses(store.events, "e")
    refuses(store.apply, "e", {"a": 7}, t=1)
    assert store.current("e") == {"b": 6}


def test_no_event_without_a_value_can_be_moved_or_changed(store, attacker):
    store.apply("e", {"a": 5, "b": 5, "c": 5}, t=5)
    store.apply("e", {"a": (operator.neg,), "b": (operator.not_,), "c": (operator.delitem,)}, t=6)
    moved = {(e["item"], e["op"]): base64.b64decode(e["value"]) for e in attacker.events("e")}
    setitem, neg, delitem = moved["a", "setitem"], moved["a", "neg"], moved["c", "delitem"]
    for name, applies in {
        "delitem for neg": {6: [event(delitem, op="neg")]},
        "neg for not_": {6: [event(neg, op="not_")]},
        "another item": {6: [event(moved["b", "not_"], op="not_")]},
        "another time": {7: [event(neg, op="neg")]},
        "twice": {6: [event(neg, op="neg")], 7: [event(neg, op="neg")]},
        "a value": {6: [event(setitem, op="neg")]},
    }.items():
        assert attacker.put_events("e", {5: [event(setitem)], **applies}), name
        opens_nowhere(store, "e")
    for applies in ({6: [event(neg, op="delitem")]}, {6: [event(delitem, op="delitem")]}):
        assert attacker.put_events("e", {5: [event(setitem)], **applies})
        refuses(store.events, "e")
    assert attacker.put_events("e", {5: [event(setitem)], 6: [event(neg, op="setitem")]})
    refuses(store.current, "e")
    for body in [*flips(neg), *cuts(neg)]:
        if attacker.put_events("e", {5: [event(setitem)], 6: [event(body, op="neg")]}):
            refuses(store.current, "e")
    assert attacker.put_events("e", {5: [event(setitem)], 6: [event(neg, op="neg")]})
    assert store.current("e") == {"a": -5}


@pytest.mark.parametrize("inside", [(0, b"5"), (0, b" null"), (1, b"null"), (2, pickle.dumps(None))])
def test_what_opens_to_something_else_than_null_proves_no_event(key, store, attacker, inside):
    encoding, data = inside
    store.apply("e", {"a": 5}, t=5)
    value = Value(Encoding(encoding), data)
    sealed = Sealer(key).seal(value, EventContext("vault", "e", 6, "a", "neg")).data
    assert attacker.http.post(
        "/ns/vault/es/e/events", json={"timestamp": 6, "events": [event(sealed, op="neg")]}
    ).is_success
    with pytest.raises(StoreDecryptionError, match="not null"):
        store.current("e")


def test_no_ciphertext_can_be_moved(vault, key, store, attacker):
    with Store(vault.url, "vault2", key, frozen=False) as other:
        store.set("a", "pair a")
        other.set("a", "pair a")
        store.extend("a", (5, "point 5"), (6, "point 6"))
        other.extend("a", (5, "point 5"))
        store.apply("a", {"a": "event", "b": "event"}, t=5)
        store.apply("a", {"a": (operator.add, "x")}, t=6)
        pair, point = attacker.pair("a"), attacker.points("a")[5]
        moved = {(e["timestamp"], e["item"], e["op"]): base64.b64decode(e["value"]) for e in attacker.events("a")}
        setitem, add = moved[5, "a", "setitem"], moved[6, "a", "add"]

        # A pair: other key, namespace, kind.
        for foreign in (attacker.pair("a", "vault2"), point, setitem, add):
            assert attacker.put_pair("a", foreign)
            refuses(store.get, "a")
            refuses(store.find)
            refuses(store.get_many, ["a"])
        assert attacker.put_pair("b", pair)
        refuses(store.get, "b")
        assert attacker.put_pair("A", pair)
        refuses(store.get, "A")
        assert attacker.put_pair("a", pair, "vault2")
        refuses(other.get, "a")
        attacker.put_pair("a", pair)
        assert store.get("a") == "pair a"

        # A point: other timestamp, series, namespace, kind.
        for t, foreign in (
            (5, attacker.points("a")[6]),
            (5, attacker.points("a", "vault2")[5]),
            (7, point),
            (-5, point),
        ):
            assert attacker.put_point("a", t, foreign)
            refuses(store.range, "a")
            attacker.http.delete(f"/ns/vault/ts/a/range?start={t}&end={t}")
            attacker.put_point("a", 5, point)
        for foreign in (pair, setitem):
            assert attacker.put_point("a", 5, foreign)
            refuses(store.first, "a")
        for t in (5, 5 + 2**32, -(2**63), 2**63 - 1):
            assert attacker.put_point("b", t, point)
            refuses(store.first, "b")
            attacker.http.delete("/ns/vault/ts/b/range")
        attacker.put_point("a", 5, point)
        assert store.range("a") == [(5, "point 5"), (6, "point 6")]

        # An event: other timestamp, item, op, sequence, namespace, kind.
        for name, applies in {
            "timestamp": {4: [event(setitem)]},
            "item": {5: [event(setitem, "b")]},
            "item to come": {5: [event(setitem, "c")]},
            "operator": {5: [event(setitem)], 6: [event(add, op="sub")]},
            "setitem for add": {5: [event(setitem)], 6: [event(add, op="setitem")]},
            "add for setitem": {5: [event(setitem)], 6: [event(setitem, op="add")]},
            "timestamp of a later event": {5: [event(setitem)], 7: [event(add, op="add")]},
            "a pair": {5: [event(pair)]},
            "a point": {5: [event(point)]},
        }.items():
            assert attacker.put_events("a", applies), name
            refuses(store.current, "a")
            refuses(store.past, "a", 100)
            refuses(store.events, "a")
            refuses(store.apply, "a", {next(iter(applies.values()))[0]["item"]: (operator.add, "y")})
        assert attacker.put_events("b", {5: [event(setitem)]})
        refuses(store.current, "b")
        assert attacker.put_events("a", {5: [event(setitem)]}, "vault2")
        refuses(other.current, "a")
        assert attacker.put_events("a", {5: [event(setitem)], 6: [event(add, op="add")]})
        assert store.current("a") == {"a": "eventx"}
        attacker.http.delete("/ns/vault2")


def test_what_is_not_sealed_is_refused_never_passed_through(store, attacker, key):
    store.set("k", "value")
    store.extend("s", (1, "value"), (2, "value"))
    store.apply("e", {"a": "value", "b": 1}, t=1)
    evil = pickle.dumps("injected")
    fernet = Fernet(key.encode()).encrypt(pickle.dumps("from another place"))
    for body, media_type in (
        (b'"injected"', "application/json"),
        (b"injected", "application/octet-stream"),
        (b"injected", "text/plain"),
        (evil, "application/vnd.rstore.pickle"),
        (fernet, SEALED),
        (fernet, "application/octet-stream"),
        (b'\x00"injected"', SEALED),
        (b"\x00" * 60, SEALED),
    ):
        if attacker.put_pair("k", body, media_type=media_type):
            refuses(store.get, "k")
            refuses(store.entry, "k")
            refuses(store.find)
            refuses(store.get_many, ["k"])
            refuses(store.__getitem__, "k")
    for encoding, body, value in (
        ("json", b"", "injected"),
        ("json", b"", 5),
        ("json", b"", 1.5),
        ("json", b"", ["", "sealed"]),
        ("bytes", b"injected", None),
        ("pickle", evil, None),
        ("sealed", fernet, None),
    ):
        attacker.http.delete("/ns/vault/ts/s/range")
        if attacker.put_point("s", 1, body, encoding=encoding, json_value=value):
            refuses(store.range, "s")
            refuses(store.first, "s")
            refuses(store.last, "s")
    for injected in (
        {"item": "a", "value": "injected"},
        {"item": "a", "value": base64.b64encode(evil).decode(), "encoding": "pickle"},
        {"item": "a", "value": base64.b64encode(b"x").decode(), "encoding": "bytes"},
        {"item": "a", "value": base64.b64encode(fernet).decode(), "encoding": "sealed"},
    ):
        if attacker.put_events("e", {1: [injected]}):
            refuses(store.current, "e")
            refuses(store.past, "e", 1)
            refuses(store.events, "e")
            refuses(store.apply, "e", {"a": (operator.add, "x")})


def test_an_operation_injected_into_a_sealed_sequence_is_refused(store, attacker):
    store.apply("e", {"a": 1}, t=1)
    injected = {"timestamp": 2, "events": [{"item": "a", "op": "add", "value": 1}], "revision": 1}
    answer = attacker.http.post("/ns/vault/es/e/events", json=injected)
    assert (answer.status_code, answer.json()["code"]) == (409, "sealing-mismatch")
    attacker.forge("e", 2, Change("a", "add", Value(Encoding.JSON, b"1")))
    refuses(store.current, "e")
    refuses(store.events, "e")


def test_without_a_key_a_sealed_value_raises_a_clear_error(vault, store):
    store.set("k", "value")
    store.extend("s", (1, "value"))
    store.apply("e", {"a": "value"})
    with Store(vault.url, "vault") as keyless:
        for read in (
            lambda: keyless.get("k"),
            lambda: keyless.find(),
            lambda: keyless.range("s"),
            lambda: keyless.last("s"),
            lambda: keyless.current("e"),
            lambda: keyless.events("e"),
        ):
            with pytest.raises(StoreDecryptionError) as caught:
                read()
            assert "key" in str(caught.value)
        assert keyless.has("k")
        assert keyless.keys() == ["k"]
        assert keyless.timeseries() == ["s"]
        assert keyless.missing("s", 0, 2, 1) == [0, 2]
        assert keyless.eventsources() == ["e"]


def test_another_key_opens_nothing(vault, store):
    store.set("k", "value")
    store.extend("s", (1, "value"))
    store.apply("e", {"a": "value"})
    with Store(vault.url, "vault", rstore.generate_key(), frozen=False) as other:
        refuses(other.get, "k")
        refuses(other.range, "s")
        refuses(other.current, "e")
        refuses(other.events, "e")
        refuses(other.apply, "e", {"a": (operator.add, "x")})
    assert store.current("e") == {"a": "value"}


# --- keys --------------------------------------------------------------------------------------------------


def test_rotation(vault, key, store, attacker):
    new = rstore.generate_key()
    store.set("k", "old")
    store.extend("s", (1, "old"))
    store.apply("e", {"a": "old"}, t=1)
    before = attacker.pair("k")
    with Store(vault.url, "vault", [new, key], frozen=False) as rotating:
        assert rotating.get("k") == "old"
        rotating.set("k2", "new")
        rotating.extend("s", (2, "new"))
        assert rotating.apply("e", {"a": (operator.add, "+new")}) == {"a": "old+new"}
        assert rotating.range("s") == [(1, "old"), (2, "new")]
        rotating.set("k", rotating.get("k"))
        assert attacker.pair("k")[1:9] != before[1:9], "the key id is still that of the old key"
    with Store(vault.url, "vault", [key.encode(), new.encode()], frozen=False) as mixed:
        assert mixed.get("k") == "old"
        assert mixed.current("e") == {"a": "old+new"}
        mixed.set("k3", "sealed by the first")
    with Store(vault.url, "vault", new) as only_new:
        assert only_new.get("k") == "old"
        assert only_new.get("k2") == "new"
        assert only_new.last("s") == (2, "new")
        refuses(only_new.range, "s")
        refuses(only_new.current, "e")
        refuses(only_new.get, "k3")
    refuses(store.get, "k2")
    assert store.get("k3") == "sealed by the first"


@pytest.mark.parametrize("wrong", ["", "short", "A" * 43, "A" * 44, "!" * 44, b"", b"\0" * 32, [], ["short"], 5])
def test_a_wrong_key_is_refused_at_once_and_not_repeated(vault, wrong):
    with (
        pytest.raises((StoreError, ValueError, TypeError)) as caught,
        Store(vault.url, "vault", wrong, frozen=False) as store,
    ):
        store.set("k", "value")
    if isinstance(wrong, str) and wrong:
        assert wrong not in str(caught.value)


def test_fernet_tokens_are_opened_only_when_asked_for(vault, key, store, attacker):
    token = Fernet(key.encode()).encrypt(pickle.dumps({"from": ("the", "original")}))
    assert attacker.put_pair("k", token)
    assert attacker.put_point("s", 1, token)
    assert attacker.put_events("e", {1: [event(token)]})
    refuses(store.get, "k")
    refuses(store.range, "s")
    refuses(store.current, "e")
    with Store(vault.url, "vault", key, frozen=False, accept_fernet=True) as accepting:
        assert accepting.get("k") == {"from": ("the", "original")}
        assert accepting.range("s") == [(1, {"from": ("the", "original")})]
        assert accepting.current("e") == {"a": {"from": ("the", "original")}}
        accepting.set("k", accepting.get("k"))
    assert store.get("k") == {"from": ("the", "original")}
    foreign = Fernet(Fernet.generate_key()).encrypt(pickle.dumps("x"))
    broken = bytearray(token)
    broken[40] ^= 1
    with Store(vault.url, "vault", [rstore.generate_key(), key], accept_fernet=True) as accepting:
        assert accepting.range("s") == [(1, {"from": ("the", "original")})]
        for body in (foreign, bytes(broken), token[:-4]):
            if attacker.put_pair("k", body):
                refuses(accepting.get, "k")


def test_who_has_the_key_runs_no_code_in_a_reader(vault, key, store, attacker, tmp_path):
    """Somebody who may write, and has the key, seals a pickle that calls a function when it is loaded."""
    trace = tmp_path / "ran"
    evil = Value(Encoding.PICKLE, pickle.dumps(Call(os.mkdir, str(trace))))
    sealer = Sealer(key)
    assert attacker.put_pair("k", sealer.seal(evil, PairContext("vault", "k")).data)
    assert attacker.put_point("s", 1, sealer.seal(evil, PointContext("vault", "s", 1)).data)
    place = EventContext("vault", "e", 1, "a", "setitem")
    assert attacker.put_events("e", {1: [event(sealer.seal(evil, place).data)]})
    tokens = Fernet(key.encode()).encrypt(evil.data)
    assert attacker.put_pair("token", tokens)
    reads = [
        *((method, name) for name in ("k", "token") for method in ("get", "entry", "find", "__getitem__")),
        ("get_many", ["k"]),
        *(("range", "s"), ("first", "s"), ("last", "s")),
        *(("current", "e"), ("events", "e")),
    ]
    with Store(vault.url, "vault", key, accept_fernet=True) as reader:
        for method, argument in [*reads, ("past", "e")]:
            with pytest.raises(StoreEncodingError, match=r"\.mkdir.*trust_pickle=True"):
                getattr(reader, method)(argument, *([1] if method == "past" else []))
    with pytest.raises(StoreEncodingError):
        store.apply("e", {"a": (operator.add, 1)})
    assert not trace.exists()
    with Store(vault.url, "vault", key, trust_pickle=True) as trusting:
        assert trusting.get("k") is None
    assert trace.exists()


def test_a_key_of_the_original_works(vault, attacker):
    with Store(vault.url, "vault", Fernet.generate_key(), frozen=False) as store:
        store.set("k", 1)
        assert store.get("k") == 1


# --- sealed_only -------------------------------------------------------------------------------------------


def test_a_sealed_only_namespace_refuses_plain_writes_from_anybody(vault, key, store, attacker):
    http = attacker.http
    assert http.put("/ns/vault", json={"sealed_only": True}).status_code == 200
    store.set("k", "value")
    store.extend("s", (1, "value"))
    store.apply("e", {"a": "value", "b": 5}, t=1)
    sealed = base64.b64encode(attacker.pair("k")).decode()
    plain_point = {"points": [[2, base64.b64encode(attacker.points("s")[1]).decode(), "sealed"], [3, "plain"]]}
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", "/kv/k", {"json": "plain"}),
        ("PUT", "/kv/new", {"content": b"plain"}),
        ("PUT", "/kv/new", {"content": b"x", "headers": {"Content-Type": "application/vnd.rstore.pickle"}}),
        (
            "POST",
            "/kv",
            {"json": {"set": [{"key": "a", "value": sealed, "encoding": "sealed"}, {"key": "b", "value": 1}]}},
        ),
        ("POST", "/ts/s/range", {"json": plain_point}),
        (
            "POST",
            "/ts/s/range",
            {"content": "timestamp,value,encoding\n5,1,\n", "headers": {"Content-Type": "text/csv"}},
        ),
        ("POST", "/ts/s/range", {"content": "[5, 1]\n", "headers": {"Content-Type": "application/x-ndjson"}}),
        ("POST", "/es/e/events", {"json": {"events": [{"item": "a", "value": "plain"}]}}),
        ("POST", "/es/e/events", {"json": {"events": [{"item": "b", "op": "add", "value": 1}]}}),
        ("POST", "/es/e/events", {"json": {"events": [{"item": "c", "value": "eA==", "encoding": "pickle"}]}}),
        ("POST", "/es/new/events", {"json": {"events": [{"item": "c", "value": "eA==", "encoding": "bytes"}]}}),
        ("POST", "/es/e/events", {"json": {"events": [{"item": "b", "op": "neg"}], "revision": 1}}),
        ("POST", "/es/e/events", {"json": {"events": [{"item": "b", "op": "not_", "value": None}], "revision": 1}}),
        ("POST", "/es/e/events", {"json": {"events": [{"item": "b", "op": "delitem"}]}}),
    ]
    for method, path, options in requests:
        answer = http.request(method, f"/ns/vault{path}", **options)
        assert (answer.status_code, answer.json()["code"]) == (422, "sealed-only"), (path, answer.text)
    assert store.find() == [("k", "value")]
    assert store.range("s") == [(1, "value")]
    assert store.events("e") == [(1, "a", operator.setitem, "value"), (1, "b", operator.setitem, 5)]
    assert store.timeseries() == ["s"]
    assert store.eventsources() == ["e"]
    assert store.apply("e", {"a": (operator.delitem,), "b": (operator.neg,)}) == {"b": -5}
    with Store(vault.url, "vault", frozen=False) as keyless, pytest.raises(StoreError) as caught:
        keyless.set("k", "plain")
    assert caught.value.code == "sealed-only"
    assert http.put("/ns/vault", json={"sealed_only": False}).status_code == 200
    assert http.put("/ns/vault/kv/open", json="plain").status_code == 201
    http.delete("/ns/vault/kv/open")
