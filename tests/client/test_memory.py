"""What a client takes of memory, whatever a service answers: no more than twice ``answer_bytes_max``.

From a right answer to each operation, answers are made in which a few bytes become many objects, at each of its places.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import json
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.knobs import knob

import rstore
from rstore import AsyncStore, Store, StoreError, StoreProtocolError
from rstore.core.encodings import Encoding, Value
from rstore.core.frames import encode
from rstore.core.memory import json_memory, texts_memory
from rstore.core.points import Points
from rstore.sealing import EventContext, PairContext, PointContext, Sealer

BUDGET = 4 * 2**20
# What is taken beside that: the HTTP library and tracemalloc's own.
SLACK = 2**20
# One in how many of the possible answers is tried; RSTORE_FUZZ_EXAMPLES, as in `make fuzz`, tries all.
AT_LENGTH = bool(knob("RSTORE_FUZZ_EXAMPLES", ""))
KEY = rstore.generate_key()
SEALER = Sealer(KEY)

Reply = tuple[int, dict[str, str], bytes]


class Answers(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """A service on which a store can be opened, and that answers all that follows in chunks of some size."""

    def __init__(self, answer: Callable[[httpx2.Request], Reply], chunk: int = 2**16, opens: bool = True) -> None:
        self.answer = answer
        self.chunk = chunk
        self.opens = opens

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.opens:
            self.opens = False
            return httpx2.Response(201, json=INFO)
        status, headers, body = self.answer(request)
        return httpx2.Response(status, headers=headers, stream=Chunks(body, self.chunk))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return self.handle_request(request)


class Chunks(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, body: bytes, size: int) -> None:
        self.body = body
        self.size = size

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self.body), self.size):
            yield self.body[start : start + self.size]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


# Each operation with arguments, and a right answer to the request that it makes first.
INFO = {"namespace": "n", "sealed_only": False, "kv": 0, "ts": 0, "es": 0}
KEYS = {"items": [{"key": "a"}], "cursor": None}
TOKEN = {"id": "i", "label": "l", "namespaces": ["n"], "access": "read", "created": 1, "expires": None, "token": "t"}
STATE = {
    "timestamp": 2**60,
    "revision": 1,
    "state": {"a": 1},
    "events": [{"timestamp": 1, "item": "b", "op": "setitem", "value": 1, "encoding": "json"}],
}
JSON_OPERATIONS: dict[str, tuple[tuple[Any, ...], Any]] = {
    "apply": (("e", {"a": 1}), STATE),
    "count": ((), INFO),
    "create_token": (("n", "read"), TOKEN),
    "current": (("e",), STATE),
    "delete": (("k", "l"), {"get": [], "set": []}),
    "discard": ((), None),
    "entry": (("k",), 1),
    "events": (("e",), {"events": STATE["events"]}),
    "eventsequences": ((), KEYS),
    "eventsources": ((), KEYS),
    "extend": (("s", (1, 1.5)), {"points": 1}),
    "extend_columns": (("s", [1], [1.5]), {"points": 1}),
    "find": ((), {"items": [{"key": "a", "etag": "x", "value": 1, "encoding": "json", "expires": 1}], "cursor": None}),
    "first": (("s",), {"point": [1, 2]}),
    "get": (("k",), 1),
    "get_many": ((["k", "l"],), {"get": [{"key": "k", "etag": "x", "value": 1}], "set": []}),
    "has": (("k",), None),
    "iscomplete": (("s", 0, 9, 1), {"complete": True}),
    "keys": ((), KEYS),
    "last": (("s",), {"point": [1, 2]}),
    "missing": (("s", 0, None, 1), {"missing": [1, 2]}),
    "namespaces": ((), {"items": [{"namespace": "a"}], "cursor": None}),
    "open": ((), INFO),
    "past": (("e", 2**61), STATE),
    "prune": (("e",), {"pruned": 1, "removed": False}),
    "remove": (("s",), {"removed": 1}),
    "revoke_token": (("i",), None),
    "rotate_token": (("i",), TOKEN),
    "set": (("k", 1), None),
    "set_many": (({"k": 1},), {"get": [], "set": [{"key": "k", "etag": "x"}]}),
    "timeseries": ((), KEYS),
    "tokens": ((), {"items": [TOKEN], "cursor": None}),
}
# These answer in other forms.
OTHER_OPERATIONS = {"close", "range", "range_columns", "rotate"}


def test_every_operation_is_tried():
    public = {name for name, _ in inspect.getmembers(Store, callable) if not name.startswith("_")}
    assert public == JSON_OPERATIONS.keys() | OTHER_OPERATIONS


# JSON of which a few bytes take much memory.
UNITS: dict[str, bytes] = {
    "lists": b"[]",
    "lists of one": b"[1000]",
    "objects": b"{}",
    "objects of one": b'{"":1000}',
    "nested lists": b"[" * 60 + b"]" * 60,
    "nested objects": b'{"":' * 60 + b"{}" + b"}" * 60,
    "integers": b"1000",
    "floats": b"0.1",
    "text": b'"ab"',
    "wide text": '"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa🎉"'.encode(),
    "escaped text": b'"' + b"a" * 100 + b'\\u2028"',
    "base64": b'"AAAA"',
    "points": b'[1,"","json"]',
}


def repeated(text: bytes, size: int) -> bytes:
    return b",".join([text] * (size // (len(text) + 1)))


def inflated(document: Any) -> Iterator[tuple[str, Callable[[int], bytes]]]:
    """The document with something large at each of its places in turn, as functions of how large it is."""
    here = json.dumps("@HERE@").encode()

    def at(whole: Any, make: Any) -> Callable[[int], bytes]:
        before, after = json.dumps(whole).encode().split(here)
        return lambda size: before + make(size) + after

    def places(part: Any, rebuild: Any) -> Iterator[tuple[str, Callable[[int], bytes]]]:
        whole = rebuild("@HERE@")
        for name, unit in UNITS.items():
            yield f"a list of {name}", at(whole, lambda size, unit=unit: b"[" + repeated(unit, size) + b"]")
            yield f"members that are {name}", at(whole, lambda size, unit=unit: b"{" + members(unit, size) + b"}")
        yield "a long text", at(whole, lambda size: b'"' + b"a" * size + '🎉"'.encode())
        if isinstance(part, dict):
            for name in part:
                yield from places(part[name], lambda new, name=name: rebuild({**part, name: new}))
        if isinstance(part, list) and part:
            yield "many of them", at(whole, lambda size: b"[" + numbered(part[0], size) + b"]")
            for index, item in enumerate(part):
                yield from places(item, lambda new, index=index: rebuild([*part[:index], new, *part[index + 1 :]]))

    yield from places(document, lambda new: new)
    # What nobody asked for is left out, and must not be made either.
    if isinstance(document, dict):
        unknown = at(
            {**document, "unknown": "@HERE@"}, lambda size: b"[" + repeated(UNITS["nested lists"], size) + b"]"
        )
        yield "an unknown member", unknown


def members(unit: bytes, size: int) -> bytes:
    return b",".join(b'"%d":%b' % (number, unit) for number in range(size // (len(unit) + 10)))


def numbered(item: Any, size: int) -> bytes:
    """Many items like this one, in order of their names or timestamps."""
    if not isinstance(item, dict):
        return repeated(json.dumps(item).encode(), size)
    one = len(json.dumps(item)) + 10
    names = [name for name in ("key", "item", "namespace", "id", "timestamp") if name in item]
    return b",".join(
        json.dumps({**item, **{name: n if name == "timestamp" else f"{n:08}" for name in names}}).encode()
        for n in range(size // one)
    )


def peak_of(kind: type, reply: Reply, name: str, *args: Any, chunk: int = 2**16, **options: Any) -> tuple[int, Any]:
    """The most memory that an operation takes, and what it returns or raises."""
    transport = Answers(lambda request: reply, chunk, opens=name != "open")
    options = {"frozen": False, "retries": 0, "answer_bytes_max": BUDGET, "transport": transport, **options}
    store = kind("http://127.0.0.1", "n", **options)

    async def awaited() -> Any:
        return await getattr(await store.open(), name)(*args)

    gc.collect()
    tracemalloc.start()
    try:
        result = getattr(store.open(), name)(*args) if issubclass(kind, Store) else asyncio.run(awaited())
        return tracemalloc.get_traced_memory()[1], result
    except StoreError as error:
        return tracemalloc.get_traced_memory()[1], error
    finally:
        tracemalloc.stop()


def headers(content_type: str = "application/json") -> dict[str, str]:
    return {"content-type": content_type, "etag": '"x"'}


def some(tried: Iterable[Any], step: int, first: int = 0) -> list[Any]:
    """Every so many of them, from one on; all of them in the long form of the tests."""
    listed = list(tried)
    return listed if AT_LENGTH else listed[first % min(step, len(listed)) :: step]


@pytest.mark.parametrize("name", JSON_OPERATIONS)
def test_no_answer_takes_more_than_twice_the_budget(name):
    args, document = JSON_OPERATIONS[name]
    # Each operation tries other ones than the one before it.
    for number, (what, make) in enumerate(some(inflated(document), 40, list(JSON_OPERATIONS).index(name) * 7)):
        kind = AsyncStore if number % 3 == 0 else Store
        # As much as it takes, or as much as may come.
        size = 2**18 if number % 4 == 0 else BUDGET - 2**13
        reply = (
            (400, headers("application/problem+json"), make(size)) if number % 6 == 5 else (200, headers(), make(size))
        )
        peak, _ = peak_of(kind, reply, name, *args)
        assert peak < 2 * BUDGET + SLACK, (what, size, peak / BUDGET)


@pytest.mark.parametrize("name", JSON_OPERATIONS)
def test_small_chunks_take_no_more(name):
    args, document = JSON_OPERATIONS[name]
    body = json.dumps(document).encode()
    for number in range(2):
        kind = (Store, AsyncStore)[number]
        peak, _ = peak_of(kind, (200, headers(), body + b" " * 2**15), name, *args, chunk=1)
        assert peak < 2**15 * 3 + SLACK, peak


# Values of every encoding, in whatever carries values.


def pickled(size: int) -> Iterator[tuple[str, bytes]]:
    """Pickles of which a few bytes take much memory."""
    frame = b"\x80\x05"
    name = b"\x8c\x0bcollections\x8c\x05deque\x93\x94"
    for what, begin, unit, end in (
        ("lists", b"](", b"]", b"e"),
        ("dicts", b"](", b"}", b"e"),
        ("sets", b"](", b"\x8f", b"e"),
        ("tuples", b"(", b"K\x00\x85", b"t"),
        ("memoized", b"](", b"]\x94", b"e"),
        ("small ints", b"](", b"K\x01", b"e"),
        ("ints", b"](", b"M\xe8\x03", b"e"),
        ("floats", b"](", b"G" + struct.pack(">d", 1.1), b"e"),
        ("texts", b"](", b"\x8c\x02ab", b"e"),
        ("wide texts", b"](", b"\x8c\x05a" + "🎉".encode(), b"e"),
        ("deques", name + b"0](", b"h\x00)R", b"e"),
    ):
        yield what, frame + begin + unit * ((size - 64) // len(unit)) + end + b"."
    yield "a set", frame + b"\x8f(" + b"".join(b"J" + struct.pack("<I", n) for n in range(size // 5)) + b"\x90."
    yield "a wide text", pickle.dumps(("a" * size + "🎉",), 5)


def values(size: int) -> Iterator[tuple[str, Value]]:
    for name, unit in UNITS.items():
        yield f"a list of {name}", Value(Encoding.JSON, b"[" + repeated(unit, size) + b"]")
    yield "members", Value(Encoding.JSON, b"{" + members(b"1", size) + b"}")
    yield "a wide text", Value(Encoding.JSON, b'"' + b"a" * size + '🎉"'.encode())
    yield "bytes", Value(Encoding.BYTES, bytes(size))
    for name, data in pickled(size):
        yield f"a pickle: {name}", Value(Encoding.PICKLE, data)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
@pytest.mark.parametrize("size", [2**16, 2**19, BUDGET - 2**13])
def test_no_value_takes_more_than_twice_the_budget(key, size):
    for what, value in some(values(size), 4, size % 5):
        if key is not None:
            value = SEALER.seal(value, PairContext("n", "k"))
        media_type = {Encoding.BYTES: "image/png"}.get(value.encoding, f"application/vnd.rstore.{value.encoding.label}")
        content_type = "application/json" if value.encoding is Encoding.JSON else media_type
        peak, result = peak_of(Store, (200, headers(content_type), value.data), "get", "k", key=key)
        assert peak < 2 * BUDGET + SLACK, (what, peak / BUDGET)
        # It is refused as too large, and for nothing else.
        assert not isinstance(result, StoreError) or isinstance(result, StoreProtocolError), (what, result)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
@pytest.mark.parametrize("size", [2**10, 2**15])
def test_many_values_take_no_more(key, size):
    """As pairs, as points and as events: each is small, and all together are as large as may come."""
    for what, value in some(values(size), 8, size % 7):
        count = BUDGET // (2 * size)
        for name, args, make in (("find", (), pairs), ("range", ("s",), frames), ("events", ("e",), events)):
            reply = make(value, count, key)
            peak, result = peak_of(Store, reply, name, *args, key=key)
            assert peak < 2 * BUDGET + SLACK, (what, name, peak / BUDGET)
            assert not isinstance(result, StoreError) or isinstance(result, StoreProtocolError), (what, name, result)


def member(value: Value) -> dict[str, Any]:
    if value.encoding is Encoding.JSON:
        return {"value": msgspec.Raw(value.data)}
    return {"value": value.data, "encoding": value.encoding.label}


def pairs(value: Value, count: int, key: str | None) -> Reply:
    items = []
    for number in range(count):
        place = PairContext("n", f"{number:08}")
        sealed = value if key is None else SEALER.seal(value, place)
        items.append({"key": place.key, "etag": "x", **member(sealed)})
    return 200, headers(), msgspec.json.encode({"items": items, "cursor": None})


def events(value: Value, count: int, key: str | None) -> Reply:
    found = []
    for number in range(count):
        place = EventContext("n", "e", number, "item", "setitem")
        sealed = value if key is None else SEALER.seal(value, place)
        found.append({"timestamp": number, "item": "item", "op": "setitem", **member(sealed)})
    return 200, headers(), msgspec.json.encode({"events": found})


def frames(value: Value, count: int, key: str | None) -> Reply:
    points = []
    for number in range(count):
        place = PointContext("n", "s", number)
        points.append((number, value if key is None else SEALER.seal(value, place)))
    half = count // 2
    body = b"".join(encode(Points.from_values(part)) for part in (points[:half], points[half:]))
    return 200, headers("application/vnd.rstore.points"), body


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
@pytest.mark.parametrize("name", ["current", "past", "apply"])
def test_no_operator_takes_more_than_twice_the_budget(name, key):
    """A few events make a list of millions out of a list of one, or text out of a format, for each of several items."""
    args: tuple[Any, ...] = {"current": ("e",), "past": ("e", 99), "apply": ("e", {"new": {1}})}[name]
    for factor in some((1_000, 100_000, 400_000, 10**6, 2**25 - 1), 2):
        for first, op, operand in (
            ("[1]", "mul", f"{factor}"),
            ('"🎉"', "mul", f"{factor}"),
            (f'"%{factor}s"', "mod", '"x"'),
            ("2", "pow", f"{min(factor, 2**20)}"),
        ):
            found = []
            for number in range(20):
                for t, operator_name, text in ((1, "setitem", first), (2, op, operand)):
                    place = EventContext("n", "e", t, f"{number:02}", operator_name)
                    value = Value(Encoding.JSON, text.encode())
                    sealed = value if key is None else SEALER.seal(value, place)
                    found.append({"timestamp": t, "item": place.item, "op": place.op, **member(sealed)})
            found.sort(key=lambda event: (event["timestamp"], event["item"]))
            body = msgspec.json.encode({"timestamp": 2, "revision": 2, "state": {}, "events": found})
            peak, result = peak_of(Store, (200, headers(), body), name, *args, key=key)
            assert peak < 2 * BUDGET + SLACK, (op, factor, peak / BUDGET, result)


def frame(kind: int, flags: int, count: int, times: bytes, body: bytes) -> bytes:
    """A points frame, which need not be what it says."""
    return struct.pack("<IBBBBI", 8 + len(times) + len(body), 1, kind, flags, 0, count) + times + body


def compressed(raw: bytes) -> bytes:
    return struct.pack("<I", len(raw)) + zlib.compress(raw, 9)


@pytest.mark.parametrize("count", [20_000, 100_000, 400_000, 1_000_000, 2**32 - 1])
def test_no_frame_takes_more_than_twice_the_budget(count):
    steps = struct.pack("<qq", -(2**63), 2)
    few = min(count, 1_000_000)
    cells = bytes(1) + struct.pack("<I", 1) * few + b"1" * few
    empty = b"\1" + struct.pack("<I", 0) * few
    lists = bytes(1) + struct.pack("<I", 100) * (few // 25) + b"[" * 50 * (few // 25)
    for what, body in {
        "numbers": frame(0, 1, count, steps, bytes(8 * few)),
        "compressed numbers": frame(0, 5, count, steps, compressed(bytes(8 * few))),
        "cells": frame(2, 3, count, steps, cells),
        "compressed cells": frame(2, 7, count, steps, compressed(cells)),
        "compressed bytes": frame(2, 7, count, steps, compressed(empty)),
        "compressed lists": frame(2, 7, few // 25, steps, compressed(lists)),
        "a false size": frame(2, 7, count, steps, struct.pack("<I", 10) + zlib.compress(cells)),
        "nothing": frame(2, 7, count, steps, compressed(b"")),
    }.items():
        for kind in some((Store, AsyncStore), 2, len(what)):
            reply = (200, headers("application/vnd.rstore.points"), body)
            peak, _ = peak_of(kind, reply, "range", "s")
            assert peak < 2 * BUDGET + SLACK, (what, len(body), peak / BUDGET)
            peak, _ = peak_of(kind, (*reply[:2], body * (BUDGET // 4 // len(body))), "range", "s")
            assert peak < 2 * BUDGET + SLACK, (what, len(body), peak / BUDGET)


@given(
    st.recursive(
        st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=200,
    ),
    st.booleans(),
)
def test_the_memory_of_json_is_never_underestimated(value, escaped):
    text = json.dumps(value, ensure_ascii=escaped, separators=(",", ":")).encode()
    tracemalloc.start()
    try:
        decoded = msgspec.json.decode(text)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert decoded is not text
    assert taken <= json_memory(text)
    assert json_memory(text) <= texts_memory(text, 1)


@pytest.mark.parametrize("name", UNITS)
def test_the_memory_of_many_small_parts_is_never_underestimated(name):
    for count in (1, 2, 10, 1_000, 2**20 // len(UNITS[name])):
        for text in (b"[" + b",".join([UNITS[name]] * count) + b"]", b"{" + members(UNITS[name], 20 * count) + b"}"):
            tracemalloc.start()
            try:
                decoded = msgspec.json.decode(text)
                taken = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert decoded is not text
            assert taken <= json_memory(text)
    # Nor is it overestimated by much.
    assert json_memory(text) <= 20 * taken


def pages(transport: Callable[[httpx2.Request], Reply], **options: Any) -> Store:
    options = {"frozen": False, "retries": 0, "answer_bytes_max": BUDGET, **options}
    return Store("http://127.0.0.1", "n", transport=Answers(transport), **options).open()


def test_a_rotation_keeps_nothing_of_what_it_reads():
    """However many pages of values there are that do not open, under however many keys."""
    page = itertools.count()
    envelope = b"\x01" + bytes(80)

    def answer(request: httpx2.Request) -> Reply:
        if request.url.path.endswith("/kv"):
            number = next(page)
            items = [
                {
                    "key": f"{number:04}{item:04}" + "k" * 500,
                    "etag": "x",
                    "value": envelope[:1] + (number * 1_000 + item).to_bytes(8, "big") + envelope,
                    "encoding": "sealed",
                }
                for item in range(1_000)
            ]
            last = number == 60
            body = msgspec.json.encode({"items": items, "cursor": None if last else str(number)})
            return 200, headers(), body
        return (
            200,
            headers(),
            json.dumps({"items": [], "cursor": None} if request.url.path != "/ns/n" else INFO).encode(),
        )

    store = pages(answer, key=KEY)
    gc.collect()
    tracemalloc.start()
    try:
        found = store.rotate()
        assert tracemalloc.get_traced_memory()[1] < 2 * BUDGET + SLACK
    finally:
        tracemalloc.stop()
    assert found.failed == 61_000
    assert sum(found.keys.values()) == 61_000
    assert len(found.keys) <= 1_001
    assert len(found.unrotated) == 1_000


@pytest.mark.parametrize("check", [True, False])
def test_a_rotation_takes_no_more_than_twice_the_budget(check):
    """Its pages are pairs, points and events with values that are as large as may come."""
    for size in (100, 10_000, 300_000):
        count = BUDGET // (4 * size)
        for make, name in ((pairs, "kv"), (frames, "ts"), (events, "es")):
            reply = make(Value(Encoding.BYTES, bytes(size)), count, rstore.generate_key())
            listing = json.dumps({"items": [{"key": "s", "points": 1, "events": 1}], "cursor": None}).encode()

            def answer(
                request: httpx2.Request, reply: Reply = reply, name: str = name, listing: bytes = listing
            ) -> Reply:
                path = request.url.path.removeprefix("/ns/n")
                if path.startswith(f"/{name}") and (name == "kv" or path.count("/") > 1):
                    return reply
                if path == f"/{name}":
                    return 200, headers(), listing
                return 200, headers(), json.dumps(INFO if not path else {"items": [], "cursor": None}).encode()

            store = pages(answer, key=KEY)
            gc.collect()
            tracemalloc.start()
            try:
                with contextlib.suppress(StoreError):
                    store.rotate(check=check)
                assert tracemalloc.get_traced_memory()[1] < 2 * BUDGET + SLACK, (size, name)
            finally:
                tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "args", "document", "most"),
    [
        ("keys", (), KEYS, 10_000),
        ("timeseries", (), KEYS, 10_000),
        ("eventsources", (), KEYS, 10_000),
        ("namespaces", (), {"items": [{"namespace": "a"}], "cursor": None}, 10_000),
        ("find", (), JSON_OPERATIONS["find"][1], 10_000),
        ("tokens", (), {"items": [TOKEN], "cursor": None}, 10_000),
        ("get_many", ([f"{n:08}" for n in range(5)],), {"get": [{"key": "k", "etag": "x", "value": {}}], "set": []}, 5),
        ("missing", ("s", 0, 99, 1), {"missing": [1]}, 200),
    ],
)
def test_more_than_was_asked_for_is_refused_before_it_is_decoded(name, args, document, most):
    array = next(member for member in document if isinstance(document[member], list) and document[member])
    for count in (most, most + 1, 50 * most):
        body = json.dumps({**document, array: "@"}).encode()
        items = numbered(document[array][0], count * (len(json.dumps(document[array][0])) + 10))
        assert items
        reply = (200, headers(), body.replace(b'"@"', b"[" + items + b"]"))
        peak, result = peak_of(Store, reply, name, *args, answer_bytes_max=2**30)
        assert isinstance(result, StoreProtocolError) is (count > most or name == "missing"), (count, result)
        if count > most:
            # The body twice, and some bytes for each item while they are counted.
            assert peak < 3 * len(reply[2]) + SLACK


@pytest.mark.parametrize(
    ("name", "args", "document"),
    [(name, *JSON_OPERATIONS[name]) for name in ("keys", "namespaces", "find", "current", "events", "timeseries")],
)
def test_a_name_in_an_answer_is_as_long_as_a_name_may_be(name, args, document):
    for length, refused in ((512, False), (513, True), (100_000, True)):
        long = json.dumps(document).replace('"a"', json.dumps("a" * length)).replace('"b"', json.dumps("b" * length))
        _, result = peak_of(Store, (200, headers(), long.encode()), name, *args)
        assert isinstance(result, StoreProtocolError) is refused, (length, result)


def test_a_cursor_is_bounded():
    body = json.dumps({"items": [], "cursor": "x" * 5_000}).encode()
    _, result = peak_of(Store, (200, headers(), body), "keys")
    assert isinstance(result, StoreProtocolError)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_what_takes_an_eighth_of_the_budget_is_accepted(key):
    """The reckoning is on the safe side, but not by much, or the budget would mean nothing."""
    for value in (
        Value(Encoding.JSON, b"21.5"),
        Value(Encoding.JSON, b'{"temperature":21.5,"humidity":0.7,"station":"roof","ok":true}'),
        Value(Encoding.JSON, json.dumps("some text, as people write it: " * 30).encode()),
        Value(Encoding.BYTES, bytes(5_000)),
        Value(Encoding.PICKLE, pickle.dumps((1.5, "a", [1, 2, 3], {"b": None}), 5)),
    ):
        for name, args, make in (("find", (), pairs), ("range", ("s",), frames), ("events", ("e",), events)):
            peak, _ = peak_of(Store, make(value, 100, key), name, *args, key=key)
            more, _ = peak_of(Store, make(value, 400, key), name, *args, key=key)
            each = (more - peak) / 300
            peak, result = peak_of(Store, make(value, int(BUDGET / 8 / each), key), name, *args, key=key)
            assert not isinstance(result, StoreError), (value.encoding, name, peak / BUDGET)


@pytest.mark.parametrize("wrong", [0, -1, 2**20 - 1, "1", None, 1.5, True])
def test_the_budget_is_an_int_of_a_mebibyte_or_more(wrong):
    with pytest.raises(rstore.StoreRequestError, match="answer_bytes_max"):
        Store("http://127.0.0.1", answer_bytes_max=wrong)
