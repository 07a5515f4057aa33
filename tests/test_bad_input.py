"""Bad input: whatever comes in, the answer is a defined problem, never a 500, and nothing is changed."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rstore.core.errors import PROBLEMS

JSON = {"Content-Type": "application/json"}
MSGPACK = {"Content-Type": "application/msgpack"}
NDJSON = {"Content-Type": "application/x-ndjson"}
CSV = {"Content-Type": "text/csv"}
FRAMES = {"Content-Type": "application/vnd.rstore.points"}
SEALED = {"Content-Type": "application/vnd.rstore.sealed"}

LIMITS = {
    "VALUE_BYTES_MAX": 20_000,
    "BODY_BYTES_MAX": 100_000,
    "BATCH_PARTS_MAX": 20,
    "POINTS_PER_CALL_MAX": 50,
    "EVENTS_PER_CALL_MAX": 10,
    "PAGE_SIZE_MAX": 100,
    "ANSWER_POINTS_MAX": 30,
    "GRID_STEPS_MAX": 1_000,
    "STATE_BYTES_MAX": 30_000,
}


@pytest.fixture(scope="module")
def server(serve_module, tmp_path_factory):
    """A service process with small limits, so that each can be passed."""
    return serve_module(f"sqlite:///{tmp_path_factory.mktemp('bad') / 'store.db'}", limits=LIMITS)


@pytest.fixture(scope="module")
def http(server) -> Iterator[httpx2.Client]:
    """A client of a service that holds some of everything."""
    with httpx2.Client(base_url=server.url, timeout=20) as http:
        fill(http)
        yield http


def fill(http: httpx2.Client) -> None:
    """Some of everything, in two namespaces."""
    for prefix in ("", "/ns/other"):
        assert http.put(f"{prefix}/kv/k", json={"a": 1}).status_code in (201, 204)
        assert http.put(f"{prefix}/kv/raw", content=b"\0\xff", headers={"Content-Type": "image/png"}).is_success
        assert http.put(f"{prefix}/kv/brief?ttl=10000", json=1).is_success
        points = [[t, t] for t in range(40)]
        assert http.post(f"{prefix}/ts/s/range", json={"points": points}).is_success
        assert http.post(f"{prefix}/ts/s/range", json={"points": [[-(2**63), "low"], [2**63 - 1, "high"]]}).is_success
        events = [{"item": "n", "value": 5}, {"item": "t", "value": "text"}]
        assert http.post(f"{prefix}/es/e/events", json={"timestamp": 1, "events": events}).is_success
        assert http.post(
            f"{prefix}/es/e/events", json={"timestamp": 9, "events": [{"item": "n", "op": "add", "value": 1}]}
        ).is_success
    assert http.put("/ns/vault", json={"sealed_only": True}).is_success


def dump(http: httpx2.Client) -> dict[str, Any]:
    """Everything that the service holds."""

    def listing(path: str, **query: Any) -> list[Any]:
        items, cursor = [], None
        while True:
            page = http.get(path, params={**query, **({"cursor": cursor} if cursor else {})}).json()
            items += page["items"]
            cursor = page["cursor"]
            if cursor is None:
                return items

    everything: dict[str, Any] = {}
    for namespace in listing("/ns"):
        name = namespace["namespace"]
        base = f"/ns/{name}"
        everything[name] = {
            "namespace": http.get(base).json(),
            "kv": listing(f"{base}/kv", values="true"),
            "ts": {
                item["key"]: (item, http.get(f"{base}/ts/{quoted(item['key'])}/range").text)
                for item in listing(f"{base}/ts")
            },
            "es": {
                item["key"]: (
                    item,
                    http.get(f"{base}/es/{quoted(item['key'])}/events").text,
                    http.get(f"{base}/es/{quoted(item['key'])}/current").text,
                )
                for item in listing(f"{base}/es")
            },
        }
    return everything


def quoted(key: str) -> str:
    """A key as a path segment."""
    return "".join(f"%{byte:02X}" for byte in key.encode())


def check_problem(answer: httpx2.Response, codes: tuple[str, ...]) -> None:
    """The answer is a whole problem document with one of these codes."""
    assert answer.status_code != 500, answer.text
    assert answer.headers.get("content-type") == "application/problem+json", (answer.status_code, answer.text)
    problem = answer.json()
    assert problem["code"] in codes, problem
    row = PROBLEMS[problem["code"]]
    assert answer.status_code == problem["status"] == row.status
    assert problem["title"] == row.title
    assert isinstance(problem["detail"], str)
    assert problem["detail"]
    assert isinstance(problem["type"], str)
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text


class Bad(NamedTuple):
    """A request that cannot be granted, and the codes that say so."""

    name: str
    method: str
    path: str
    codes: str
    body: Any = None
    headers: Mapping[str, str] = MappingProxyType({})


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


BAD_JSON = {
    "empty": b"",
    "cut off": b'{"a": ',
    "not JSON": b"nonsense",
    "two": b"1 2",
    "trailing comma": b"[1,]",
    "single quotes": b"{'a': 1}",
    "comment": b"1 // one",
    "NaN": b"NaN",
    "nested NaN": b'{"a": [NaN]}',
    "Infinity": b"[Infinity]",
    "-Infinity": b"-Infinity",
    "beyond a double": b"1e999",
    "leading zero": b"01",
    "plus": b"+1",
    "hexadecimal": b"0x10",
    "invalid UTF-8": b'"\xff"',
    "truncated UTF-8": b'"\xc3"',
    "overlong UTF-8": b'"\xc0\x80"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "a lone surrogate escaped": b'"\\ud800"',
    "a lone surrogate in a key": b'{"\\udc00": 1}',
    "a control character": b'"\x01"',
    "a BOM": b"\xef\xbb\xbf1",
    "UTF-16": '"a"'.encode("utf-16"),
    "a NUL behind": b"1\0",
    "gzip": b"\x1f\x8b\x08\x00",
}

CASES: list[Bad] = []


def bad(name: str, method: str, path: str, codes: str, body: Any = None, headers: dict[str, str] | None = None) -> None:
    """Add a case."""
    if isinstance(body, (dict, list)):
        body, headers = json.dumps(body).encode(), headers or JSON
    CASES.append(Bad(name, method, path, codes, body, headers or {}))


# Values.
text: Any
body: Any
value: Any
for name, text in BAD_JSON.items():
    bad(f"json {name}", "PUT", "/kv/k", "invalid-value", text, JSON)
    bad(
        f"json {name} in a new key",
        "PUT",
        "/kv/new",
        "invalid-value",
        text,
        {"Content-Type": "application/json; charset=utf-8"},
    )
    if name not in ("empty", "two"):
        for route, template in {
            "/kv": b'{"set": [{"key": "good", "value": 1}, {"key": "k", "value": %b}]}',
            "/ts/s/range": b'{"points": [[1, 1], [2, %b]]}',
            "/es/e/events": b'{"events": [{"item": "t", "value": 1}, {"item": "n", "value": %b}]}',
        }.items():
            bad(
                f"json {name} within", "POST", route, "malformed-body invalid-value invalid-body", template % text, JSON
            )
        bad(
            f"ndjson {name}",
            "POST",
            "/ts/s/range",
            "malformed-body invalid-value invalid-body",
            b"[1, 1]\n[2, %b]\n" % text,
            NDJSON,
        )
for route in ("/kv", "/ts/s/range", "/es/e/events", "/es/e/prune", "/es/e/reseal"):
    for name, text in BAD_JSON.items():
        if not (route.endswith("prune") and name == "empty"):
            bad(f"a body of {name}", "POST", route, "malformed-body invalid-body", text, JSON)
    for name, body in {
        "empty": b"",
        "cut off": packed({"points": [[1, 2]]})[:-1],
        "trailing": packed({}) + b"\0",
        "reserved byte": b"\xc1",
        "a promise": b"\xdf\xff\xff\xff\xff",
        "binary": packed(b"x"),
        "bad UTF-8": b"\x81\xa3\xff\xff\xff\x01",
        "a list": packed([]),
        "a number": packed(1),
    }.items():
        if not (route.endswith("prune") and name == "empty"):
            bad(f"msgpack {name}", "POST", route, "malformed-body invalid-body", body, MSGPACK)
for name, text in {"null": b"null", "a number": b"5", "a string": b'"set"', "a list": b"[]"}.items():
    for route in ("/kv", "/ts/s/range", "/es/e/events", "/es/e/prune", "/es/e/reseal"):
        bad(f"a body that is {name}", "POST", route, "invalid-body", text, JSON)
    bad(f"a policy that is {name}", "PUT", "/ns/other", "invalid-body", text, JSON)
for name, body in {"NaN": float("nan"), "infinity": float("inf"), "binary": b"x", "an int key": {1: 2}}.items():
    codes = "invalid-value invalid-body malformed-body"
    bad(f"msgpack value {name}", "POST", "/kv", codes, packed({"set": [{"key": "k", "value": body}]}), MSGPACK)
    bad(f"msgpack value {name}", "POST", "/ts/s/range", codes, packed({"points": [[1, body]]}), MSGPACK)
    bad(
        f"msgpack value {name}",
        "POST",
        "/es/e/events",
        codes,
        packed({"events": [{"item": "n", "value": body}]}),
        MSGPACK,
    )
for value in ("not base64!", "AAA", 5, None, ["AAAA"]):
    item = {"value": value, "encoding": "sealed"}
    bad(f"base64 {value}", "POST", "/kv", "invalid-body invalid-value", {"set": [{"key": "k", **item}]})
    bad(f"base64 {value}", "POST", "/es/e/events", "invalid-body invalid-value", {"events": [{"item": "n", **item}]})
    bad(f"base64 {value}", "POST", "/ts/s/range", "invalid-body invalid-value", {"points": [[1, value, "sealed"]]})
for encoding in ("rot13", "", "JSON", 5, None, ["sealed"]):
    bad(
        f"encoding {encoding}",
        "POST",
        "/kv",
        "invalid-body",
        {"set": [{"key": "k", "value": "AAAA", "encoding": encoding}]},
    )
    bad(
        f"encoding {encoding}",
        "POST",
        "/es/e/events",
        "invalid-body",
        {"events": [{"item": "n", "value": "AAAA", "encoding": encoding}]},
    )
    bad(f"encoding {encoding}", "POST", "/ts/s/range", "invalid-body", {"points": [[1, "AAAA", encoding]]})

# Nesting.
for levels in (129, 200, 5_000):
    codes = "nesting-too-deep"
    bad(f"{levels} levels", "PUT", "/kv/k", codes, deep(levels), JSON)
    bad(f"{levels} levels", "POST", "/kv", codes, b'{"set": [{"key": "k", "value": %b}]}' % deep(levels), JSON)
    bad(f"{levels} levels", "POST", "/ts/s/range", codes, b'{"points": [[1, %b]]}' % deep(levels), JSON)
    bad(f"{levels} levels", "POST", "/ts/s/range", codes, b"[1, %b]" % deep(levels), NDJSON)
    bad(
        f"{levels} levels",
        "POST",
        "/es/e/events",
        codes,
        b'{"events": [{"item": "n", "value": %b}]}' % deep(levels),
        JSON,
    )
    nested: Any = packed(1)
    bad(
        f"{levels} msgpack levels",
        "POST",
        "/kv",
        codes,
        b"\x81\xa3set\x91\x82\xa3key\xa1k\xa5value" + b"\x91" * levels + nested,
        MSGPACK,
    )
bad("objects", "PUT", "/kv/k", "nesting-too-deep", b'{"a":' * 200 + b"1" + b"}" * 200, JSON)

# Members.
for name, body in {
    "an unknown member": {"sets": []},
    "sets that are not a list": {"set": {"key": "k", "value": 1}},
    "a set without a key": {"set": [{"value": 1}]},
    "a set without a value": {"set": [{"key": "k"}]},
    "a set with an unknown member": {"set": [{"key": "k", "value": 1, "tll": 5}]},
    "a key that is not a string": {"set": [{"key": 5, "value": 1}]},
    "a get that is not a string": {"get": [5]},
    "a delete that is not a key": {"delete": [{"if_match": "x"}]},
    "a key written twice": {"set": [{"key": "k", "value": 1}, {"key": "k", "value": 2}]},
    "a key written and deleted": {"set": [{"key": "k", "value": 1}], "delete": ["k"]},
    "a key deleted twice": {"delete": ["k", "k"]},
    "a ttl that is not a number": {"set": [{"key": "k", "value": 1, "ttl": "soon"}]},
    "a negative ttl": {"set": [{"key": "k", "value": 1, "ttl": -1}]},
    "an endless ttl": {"set": [{"key": "k", "value": 1, "ttl": 1e300}]},
    "a media type that is none": {"set": [{"key": "k", "value": "AAAA", "encoding": "bytes", "media_type": "image"}]},
}.items():
    bad(name, "POST", "/kv", "invalid-body invalid-parameter unsupported-media-type", body)
for key in ("", "\0", "x" * 513):
    bad(
        f"key {key[:3]!r}",
        "POST",
        "/kv",
        "invalid-key",
        {"set": [{"key": "good", "value": 1}, {"key": key, "value": 1}]},
    )
    bad(f"get {key[:3]!r}", "POST", "/kv", "invalid-key", {"get": ["k", key]})
    bad(f"delete {key[:3]!r}", "POST", "/kv", "invalid-key", {"delete": ["k", key]})
    bad(
        f"item {key[:3]!r}",
        "POST",
        "/es/e/events",
        "invalid-key",
        {"events": [{"item": "t", "value": 1}, {"item": key, "value": 1}]},
    )
bad(
    "a part that fails",
    "POST",
    "/kv",
    "precondition-failed",
    {"set": [{"key": "new", "value": 1}, {"key": "k", "value": 2, "if_match": "0"}]},
)
bad(
    "another part that fails",
    "POST",
    "/kv",
    "precondition-failed",
    {"set": [{"key": "new", "value": 1}], "delete": [{"key": "k", "if_match": "0"}]},
)
for name, body in {
    "no points": {},
    "an unknown member": {"points": [], "point": []},
    "points that are not a list": {"points": {"1": 2}},
    "a point that is not a list": {"points": [5]},
    "a point without a value": {"points": [[1]]},
    "a point of four": {"points": [[1, "AAAA", "sealed", 1]]},
    "a timestamp that is a float": {"points": [[1, 1], [1.5, 1]]},
    "a timestamp that is 1.0": {"points": [[1.0, 1]]},
    "a timestamp that is a string": {"points": [["1", 1]]},
    "a timestamp that is null": {"points": [[None, 1]]},
    "a timestamp that is true": {"points": [[True, 1]]},
    "a timestamp beyond int64": {"points": [[1, 1], [2**63, 1]]},
    "a timestamp below int64": {"points": [[-(2**63) - 1, 1]]},
    "a timestamp far beyond": {"points": [[10**40, 1]]},
}.items():
    bad(name, "POST", "/ts/s/range", "invalid-body", body)
    if isinstance(body.get("points"), list):
        lines = "".join(json.dumps(point) + "\n" for point in body["points"])
        if lines:
            bad(f"ndjson {name}", "POST", "/ts/s/range", "invalid-body malformed-body", lines.encode(), NDJSON)
for name, text in {
    "no header": "1,2,\n",
    "another header": "time,value\n1,2\n",
    "a short row": "timestamp,value,encoding\n1,1,\n2\n",
    "a long row": "timestamp,value,encoding\n1,1,,x\n",
    "a float timestamp": "timestamp,value,encoding\n1.5,1,\n",
    "an empty timestamp": "timestamp,value,encoding\n,1,\n",
    "a timestamp with words": "timestamp,value,encoding\n1_000,1,\n",
    "a timestamp beyond": "timestamp,value,encoding\n9223372036854775808,1,\n",
    "a value that is not JSON": "timestamp,value,encoding\n1,1,\n2,words,\n",
    "an empty value": "timestamp,value,encoding\n1,,\n",
    "NaN": "timestamp,value,encoding\n1,NaN,\n",
    "no base64": "timestamp,value,encoding\n1,!,sealed\n",
    "an unknown encoding": "timestamp,value,encoding\n1,AAAA,rot13\n",
    "an open quote": 'timestamp,value,encoding\n1,"abc,\n',
    "NUL": "timestamp,value,encoding\n1,\0,\n",
}.items():
    bad(f"csv {name}", "POST", "/ts/s/range", "malformed-body invalid-body invalid-value", text.encode(), CSV)
bad(
    "csv not UTF-8",
    "POST",
    "/ts/s/range",
    "malformed-body invalid-body invalid-value",
    b'timestamp,value,encoding\n1,"""\xff""",\n',
    CSV,
)
for name, body in {
    "garbage": b"\xff" * 100,
    "a cut header": b"\x10\0",
    "a promise": struct.pack("<I", 2**31) + b"\1" * 20,
    "a length of zero": b"\0" * 16,
    "text": b'{"points": [[1, 1]]}',
}.items():
    bad(f"frames {name}", "POST", "/ts/s/range", "malformed-body invalid-body body-too-large", body, FRAMES)
for name, body in {
    "no events": {},
    "an unknown member": {"events": [{"item": "n", "value": 1}], "time": 5},
    "events that are not a list": {"events": {"n": 1}},
    "an event that is not an object": {"events": [["n", 1]]},
    "an event without an item": {"events": [{"value": 1}]},
    "an event without a value": {"events": [{"item": "n", "op": "add"}]},
    "a setitem without a value": {"events": [{"item": "n"}]},
    "an item that is not a string": {"events": [{"item": 5, "value": 1}]},
    "an item twice": {"events": [{"item": "n", "value": 1}, {"item": "n", "value": 2}]},
    "an unknown operator": {"events": [{"item": "n", "op": "xor", "value": 1}]},
    "an operator in capitals": {"events": [{"item": "n", "op": "ADD", "value": 1}]},
    "an operator that is not a string": {"events": [{"item": "n", "op": 5, "value": 1}]},
    "an operator by its module": {"events": [{"item": "n", "op": "operator.add", "value": 1}]},
    "a dunder": {"events": [{"item": "n", "op": "__add__", "value": 1}]},
    "a unary operator with a value": {"events": [{"item": "n", "op": "neg", "value": 5}]},
    "a float timestamp": {"events": [{"item": "n", "value": 1}], "timestamp": 1.5},
    "a string timestamp": {"events": [{"item": "n", "value": 1}], "timestamp": "now"},
    "a timestamp beyond int64": {"events": [{"item": "n", "value": 1}], "timestamp": 2**63},
    "a negative revision": {"events": [{"item": "n", "value": 1}], "revision": -1},
    "a revision that is not a number": {"events": [{"item": "n", "value": 1}], "revision": "1"},
}.items():
    bad(name, "POST", "/es/e/events", "invalid-body", body)
bad(
    "a taken timestamp",
    "POST",
    "/es/e/events",
    "timestamp-taken",
    {"events": [{"item": "new", "value": 1}], "timestamp": 1},
)
bad(
    "another revision",
    "POST",
    "/es/e/events",
    "revision-conflict",
    {"events": [{"item": "n", "value": 1}], "revision": 77},
)
bad(
    "a sequence that must not exist",
    "POST",
    "/es/e/events",
    "revision-conflict",
    {"events": [{"item": "n", "value": 1}], "revision": 0},
)
for op, value in (("add", "x"), ("truediv", 0), ("pow", 10**9), ("concat", "x"), ("mul", {})):
    bad(
        f"unfoldable {op}",
        "POST",
        "/es/e/events",
        "unfoldable-event",
        {"events": [{"item": "t", "value": 1}, {"item": "n", "op": op, "value": value}]},
    )
bad("an absent item", "POST", "/es/e/events", "unfoldable-event", {"events": [{"item": "absent", "op": "delitem"}]})
bad(
    "before its birth",
    "POST",
    "/es/e/events",
    "unfoldable-event",
    {"timestamp": 0, "events": [{"item": "n", "op": "neg"}]},
)
bad("an unknown prune member", "POST", "/es/e/prune", "invalid-body", {"removes": True})
bad("a prune of words", "POST", "/es/e/prune", "invalid-body", {"remove": "yes"})
bad("a policy of words", "PUT", "/ns/other", "invalid-body", {"sealed_only": "yes"})
bad("an unknown policy", "PUT", "/ns/other", "invalid-body", {"sealed": True})
bad("a policy that does not parse", "PUT", "/ns/other", "malformed-body", b"{", JSON)
bad("a plain value in a vault", "PUT", "/ns/vault/kv/k", "sealed-only", b"1", JSON)

# Parameters.
ROUTES = {
    "GET": [
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/ns",
        "/ns/other",
        "/kv",
        "/kv/k",
        "/ts",
        "/ts/s/range",
        "/ts/s/first",
        "/ts/s/last",
        "/ts/s/missing",
        "/ts/s/complete",
        "/es",
        "/es/e/events",
        "/es/e/current",
        "/es/e/past",
    ],
    "PUT": ["/ns/other", "/kv/k"],
    "POST": ["/kv", "/ts/s/range", "/es/e/events", "/es/e/prune", "/es/e/reseal"],
    "DELETE": ["/ns/other", "/kv/k", "/ts/s/range", "/es/e/events"],
}
for method, paths in ROUTES.items():
    for path in paths:
        bad("an unknown parameter", method, f"{path}?colour=red", "unknown-parameter")
        bad("an unknown parameter without a value", method, f"{path}?start_", "unknown-parameter")
NOT_INTEGERS = [
    "",
    "x",
    "1.5",
    "1e3",
    "0x10",
    "1_000",
    "+1",
    "%201",
    "NaN",
    "--1",
    "9223372036854775808",
    "-9223372036854775809",
]
NOT_INTEGERS += ["9" * 400, "%D9%A1", "null", "true", "%00", "%zz"]
for text in NOT_INTEGERS:
    for path in (
        "/ts/s/range?start=",
        "/ts/s/range?end=",
        "/ts/s/missing?freq=1&end=5&start=",
        "/ts/s/missing?start=0&freq=1&end=",
    ):
        bad(f"{text[:9]!r}", "GET", path + text, "invalid-parameter")
    for path in ("/es/e/events?start=", "/es/e/events?end=", "/es/e/past?t="):
        bad(f"{text[:9]!r}", "GET", path + text, "invalid-parameter")
    for path in ("/ts/s/range?start=", "/ts/s/range?end="):
        bad(f"delete {text[:9]!r}", "DELETE", path + text, "invalid-parameter")
for text in [*NOT_INTEGERS, "-1"]:
    bad(f"{text[:9]!r}", "GET", f"/ts/s/range?n={text}", "invalid-parameter")
    bad(f"{text[:9]!r}", "GET", f"/es/e/events?n={text}", "invalid-parameter")
for text in [*NOT_INTEGERS, "0", "-1"]:
    for path in ("/ts/s/range?freq=", "/ts/s/missing?start=0&freq=", "/ts/s/complete?start=0&freq="):
        bad(f"{text[:9]!r}", "GET", path + text, "invalid-parameter")
    for path in ("/ns", "/kv", "/ts", "/es"):
        bad(f"{text[:9]!r}", "GET", f"{path}?limit={text}", "invalid-parameter")
for path in ("/ns", "/kv", "/ts", "/es"):
    bad("a page beyond the limit", "GET", f"{path}?limit=101", "invalid-parameter")
    for cursor in ("!", "x", "%00", "", "AAAA", "_____w"):
        bad(f"cursor {cursor!r}", "GET", f"{path}?cursor={cursor}", "invalid-parameter")
    bad("a match twice", "GET", f"{path}?match=a&match=b", "invalid-parameter")
    bad("a match that is not UTF-8", "GET", f"{path}?match=%ff", "invalid-parameter")
    bad("a prefix that is not UTF-8", "GET", f"{path}?prefix=%c3", "invalid-parameter")
for text in ("yes", "1", "TRUE", ""):
    bad(f"values {text!r}", "GET", f"/kv?values={text}", "invalid-parameter")
for text in ("ascending", "", "ASC"):
    bad(f"order {text!r}", "GET", f"/ts/s/range?order={text}", "invalid-parameter")
for text in ("-1", "x", "NaN", "inf", "1e400", "", "soon", "1e300", "-0.001", "None"):
    bad(f"ttl {text!r}", "PUT", f"/kv/k?ttl={text}", "invalid-parameter", b"2", JSON)
bad("missing without a start", "GET", "/ts/s/missing?freq=1", "invalid-parameter")
bad("missing without a freq", "GET", "/ts/s/missing?start=1", "invalid-parameter")
bad("complete without a start", "GET", "/ts/s/complete?freq=1", "invalid-parameter")
bad("complete without a freq", "GET", "/ts/s/complete?start=1", "invalid-parameter")
bad("past without t", "GET", "/es/e/past", "invalid-parameter")
for ops in ("xor", "add,xor", "operator.add", "ADD", "add%00", "add;sub"):
    bad(f"ops {ops!r}", "GET", f"/es/e/events?ops={ops}", "invalid-parameter")
bad("an empty item", "GET", "/es/e/events?item=", "invalid-parameter invalid-key")
bad(
    "a grid beyond the limit",
    "GET",
    "/ts/s/missing?start=0&end=9000000000&freq=1",
    "answer-too-large invalid-parameter",
)
bad(
    "a complete grid beyond the limit",
    "GET",
    "/ts/s/complete?start=-9223372036854775808&end=9223372036854775807&freq=1",
    "answer-too-large invalid-parameter",
)

# Headers.
for accept in ("image/png", "text/html", "application/json;q=0", "*/*;q=0", "x/y, a/b"):
    for path in ("/kv", "/ts", "/es", "/ns", "/", "/ts/s/range", "/ts/s/last", "/es/e/events", "/es/e/current"):
        bad(f"Accept {accept}", "GET", path, "not-acceptable", None, {"Accept": accept})
for accept in ("text/csv", "application/x-ndjson", "application/vnd.rstore.points"):
    bad(f"Accept {accept}", "GET", "/kv", "not-acceptable", None, {"Accept": accept})
for media_type in ("text/html", "image/png", "application/xml", "application/vnd.rstore.sealed", "application/jsonp"):
    for path in ("/kv", "/ts/s/range", "/es/e/events", "/es/e/prune", "/es/e/reseal"):
        bad(f"Content-Type {media_type}", "POST", path, "unsupported-media-type", b"{}", {"Content-Type": media_type})
    bad(f"Content-Type {media_type}", "PUT", "/ns/other", "unsupported-media-type", b"{}", {"Content-Type": media_type})
for media_type in ("json", "/", "a/b/c", "application/json, text/plain", "a b/c", ";"):
    bad(f"Content-Type {media_type}", "PUT", "/kv/k", "unsupported-media-type", b"1", {"Content-Type": media_type})
    bad(f"Content-Type {media_type}", "POST", "/kv", "unsupported-media-type", b"{}", {"Content-Type": media_type})
for route, body in (("/kv/k", b"1"), ("/ns/other", b"{}")):
    bad("gzip", "PUT", route, "unsupported-media-type", body, {**JSON, "Content-Encoding": "gzip"})
bad("gzip", "POST", "/kv", "unsupported-media-type", b"{}", {**JSON, "Content-Encoding": "gzip"})
bad("a charset", "PUT", "/kv/k", "unsupported-media-type", b"1", {"Content-Type": "application/json; charset=latin-1"})
for text in ("x", "'x'", '"x', 'W/"x"', '"a" "b"', '"a",'):
    codes = "invalid-parameter precondition-failed"
    bad(f"If-Match {text}", "PUT", "/kv/k", codes, b"2", {**JSON, "If-Match": text})
    bad(f"If-Match {text}", "DELETE", "/kv/k", codes, None, {"If-Match": text})
bad("If-None-Match: *", "PUT", "/kv/k", "precondition-failed", b"2", {**JSON, "If-None-Match": "*"})
bad("If-Match: *", "PUT", "/kv/new", "precondition-failed", b"2", {**JSON, "If-Match": "*"})
bad("If-Match: *", "DELETE", "/kv/new", "precondition-failed", None, {"If-Match": "*"})

# Sizes.
LARGE = b'"' + b"x" * 20_000 + b'"'
bad("a large value", "PUT", "/kv/k", "value-too-large", LARGE, JSON)
bad("a large picture", "PUT", "/kv/k", "value-too-large", b"x" * 20_001, {"Content-Type": "image/png"})
bad("a huge value", "PUT", "/kv/k", "value-too-large body-too-large", b"x" * 3_000_000, {"Content-Type": "image/png"})
bad(
    "a large value",
    "POST",
    "/kv",
    "value-too-large",
    b'{"set": [{"key": "new", "value": 1}, {"key": "k", "value": %b}]}' % LARGE,
    JSON,
)
bad("a large value", "POST", "/ts/s/range", "value-too-large", b'{"points": [[1, 1], [2, %b]]}' % LARGE, JSON)
bad("a large value", "POST", "/ts/s/range", "value-too-large", b"[1, 1]\n[2, %b]\n" % LARGE, NDJSON)
bad(
    "a large value",
    "POST",
    "/es/e/events",
    "value-too-large",
    b'{"events": [{"item": "t", "value": 1}, {"item": "n", "value": %b}]}' % LARGE,
    JSON,
)
bad(
    "a large state",
    "POST",
    "/es/e/events",
    "unfoldable-event",
    {"events": [{"item": "t", "op": "mul", "value": 10_000}]},
)
for path in ("/kv", "/ts/s/range", "/es/e/events", "/es/e/prune", "/es/e/reseal"):
    bad("a large body", "POST", path, "body-too-large", b'{"set": [], "x": "' + b"y" * 110_000 + b'"}', JSON)
    bad("a huge body", "POST", path, "body-too-large", b" " * 5_000_000, JSON)
bad("a large policy", "PUT", "/ns/other", "body-too-large", b" " * 110_000, JSON)
bad("many gets", "POST", "/kv", "batch-too-large", {"get": ["k"] * 21})
bad("many sets", "POST", "/kv", "batch-too-large", {"set": [{"key": f"k{n}", "value": 1} for n in range(21)]})
bad("many parts", "POST", "/kv", "batch-too-large", {"get": ["a"] * 10, "delete": [f"k{n}" for n in range(11)]})
bad("many points", "POST", "/ts/s/range", "batch-too-large", {"points": [[n, n] for n in range(51)]})
bad("many lines", "POST", "/ts/s/range", "batch-too-large", b"".join(b"[%d, 1]\n" % n for n in range(51)), NDJSON)
bad(
    "many rows",
    "POST",
    "/ts/s/range",
    "batch-too-large",
    b"timestamp,value,encoding\n" + b"".join(b"%d,1,\n" % n for n in range(51)),
    CSV,
)
bad(
    "many events",
    "POST",
    "/es/e/events",
    "batch-too-large",
    {"events": [{"item": f"i{n}", "value": 1} for n in range(11)]},
)
bad("a long target", "GET", "/kv?prefix=" + "x" * 9_000, "uri-too-long")
bad("a long path", "GET", "/kv/" + "x" * 9_000, "uri-too-long")
bad("an unstreamed answer", "GET", "/ts/s/range", "answer-too-large", None, {"Accept": "application/msgpack"})

# Names.
ILLEGAL_KEYS = ["%00", "a%00b", "x" * 513, "%C3%A9" * 257, "%ff", "%C3", "%ED%A0%80", "%C0%80", "%zz", "%", "%2", "a%"]
for key in ILLEGAL_KEYS:
    for method, path in (
        ("GET", f"/kv/{key}"),
        ("PUT", f"/kv/{key}"),
        ("DELETE", f"/kv/{key}"),
        ("GET", f"/ts/{key}/range"),
        ("POST", f"/ts/{key}/range"),
        ("DELETE", f"/ts/{key}/range"),
        ("GET", f"/ts/{key}/missing?start=1&freq=1"),
        ("GET", f"/es/{key}/current"),
        ("POST", f"/es/{key}/events"),
        ("POST", f"/es/{key}/prune"),
        ("POST", f"/es/{key}/reseal"),
        ("GET", f"/ns/other/kv/{key}"),
    ):
        bad(f"key {key[:9]}", method, path, "invalid-key malformed-request", b"{}" if method == "POST" else None, JSON)
for method, path in (
    ("GET", "/kv/"),
    ("PUT", "/kv/"),
    ("GET", "/ts//range"),
    ("POST", "/es//events"),
    ("GET", "/ns/other/kv/"),
):
    bad("an empty key", method, path, "invalid-key route-not-found", b"{}" if method != "GET" else None, JSON)
for name in ("a%20b", "a%2Fb", "%C3%A9", "x" * 129, "%00", "a%0A", "%ff", "a+b", "a:b", "%zz", "~", "*"):
    for method, path in (
        ("GET", ""),
        ("PUT", ""),
        ("DELETE", ""),
        ("GET", "/kv"),
        ("PUT", "/kv/k"),
        ("GET", "/ts/s/range"),
        ("POST", "/es/e/events"),
    ):
        bad(
            f"namespace {name[:9]}",
            method,
            f"/ns/{name}{path}",
            "invalid-namespace malformed-request",
            b"{}" if method in ("PUT", "POST") and path else None,
            JSON,
        )

# Routes and methods.
for path in (
    "/nope",
    "/kv/k/extra",
    "/ts/s",
    "/ts/s/middle",
    "/es/e",
    "/ns/other/nope",
    "/ns/other/kv/k/extra",
    "/kv/a/b",
    "//kv",
    "/KV",
    "/ns//kv",
):
    for method in ("GET", "PUT", "POST", "DELETE"):
        bad(
            "an unknown route",
            method,
            path,
            "route-not-found invalid-namespace",
            b"{}" if method in ("PUT", "POST") else None,
            JSON,
        )
for method, path in (
    ("DELETE", "/"),
    ("POST", "/healthz"),
    ("POST", "/ns"),
    ("POST", "/ns/other"),
    ("PATCH", "/ns/other"),
    ("DELETE", "/kv"),
    ("PUT", "/kv"),
    ("POST", "/kv/k"),
    ("PATCH", "/kv/k"),
    ("PUT", "/ts/s/range"),
    ("DELETE", "/ts"),
    ("POST", "/ts/s/last"),
    ("DELETE", "/es/e/current"),
    ("PUT", "/es/e/events"),
    ("GET", "/es/e/prune"),
    ("GET", "/es/e/reseal"),
    ("TRACE", "/kv/k"),
    ("BREW", "/kv/k"),
):
    bad(
        "a wrong method",
        method,
        path,
        # The parser knows no BREW: that is not HTTP to it.
        "malformed-request method-not-allowed" if method == "BREW" else "method-not-allowed",
        b"{}" if method in ("PUT", "POST", "PATCH") else None,
        JSON,
    )


def groups() -> dict[str, list[Bad]]:
    """The cases by method and route shape: one dump before and one after each group is enough."""
    found: dict[str, list[Bad]] = {}
    for case in CASES:
        route = case.path.split("?")[0].split("/")[1:3]
        name = f"{case.method} {case.codes}" if len(case.path) > 200 else f"{case.method} /{route[0]}"
        found.setdefault(name, []).append(case)
    return found


GROUPS = groups()


@pytest.mark.parametrize("group", GROUPS)
def test_every_bad_request_has_its_answer_and_changes_nothing(http, group):
    before = dump(http)
    failures = []
    for case in GROUPS[group]:
        answer = send(http, case)
        try:
            check_problem(answer, tuple(case.codes.split()))
        except AssertionError as error:
            failures.append(f"{case.method} {case.path[:80]} ({case.name}): {str(error)[:400]}")
            if dump(http) != before:
                failures[-1] += " AND IT CHANGED DATA"
                fill_again(http)
                before = dump(http)
    assert dump(http) == before
    assert not failures, f"{len(failures)} of {len(GROUPS[group])}\n" + "\n".join(failures[:40])


def send(http: httpx2.Client, case: Bad) -> httpx2.Response:
    """Send the request with exactly this target."""
    url = http.base_url.copy_with(raw_path=case.path.encode("utf-8"))
    return http.request(case.method, url, content=case.body, headers=case.headers)


def fill_again(http: httpx2.Client) -> None:
    """Make the data what it was, after a failure."""
    for item in http.get("/ns").json()["items"]:
        http.delete(f"/ns/{item['namespace']}")
    fill(http)


def test_an_end_before_the_start_is_an_empty_range(http):
    before = dump(http)
    assert http.get("/ts/s/range?start=5&end=4").json() == {"points": []}
    assert http.get("/ts/s/range?start=5&end=4&order=desc&n=3&freq=2").json() == {"points": []}
    assert http.delete("/ts/s/range?start=5&end=4").json() == {"removed": 0}
    assert http.get("/ts/s/missing?start=5&end=4&freq=1").json() == {"missing": []}
    assert http.get("/ts/s/complete?start=5&end=4&freq=1").json() == {"complete": True}
    assert http.get("/es/e/events?start=5&end=4").json() == {"events": []}
    assert dump(http) == before


def test_the_table_covers_what_the_issue_names():
    assert len(CASES) > 800
    seen = {code for case in CASES for code in case.codes.split()}
    assert len(seen) >= 20


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "set",
                        "get",
                        "delete",
                        "points",
                        "events",
                        "item",
                        "op",
                        "value",
                        "key",
                        "encoding",
                        "ttl",
                        "timestamp",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
    path=st.sampled_from(
        ["/ns/fuzz/kv", "/ns/fuzz/ts/s/range", "/ns/fuzz/es/e/events", "/ns/fuzz/es/e/prune", "/ns/fuzz/es/e/reseal"]
    ),
    media_type=st.sampled_from(
        ["application/json", "application/msgpack", "application/x-ndjson", "text/csv", "application/vnd.rstore.points"]
    ),
)
def test_no_body_is_a_500(http, body, path, media_type):
    answer = http.post(path, content=body, headers={"Content-Type": media_type})
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        check_problem(answer, tuple(PROBLEMS))
    http.delete("/ns/fuzz")


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
    method=st.sampled_from(["GET", "HEAD", "OPTIONS", "PATCH", "PUT"]),
)
def test_no_target_is_a_500(http, path, method):
    url = http.base_url.copy_with(raw_path=b"/ns/fuzz/" + path.replace("#", "").encode())
    answer = http.request(method, url)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and method != "HEAD":
        check_problem(answer, tuple(PROBLEMS))
    http.delete("/ns/fuzz")


# --- below HTTP --------------------------------------------------------------------------------------------


def talk(server, sent: bytes, *, close: bool = False) -> bytes:
    """What the server answers to these bytes, until it closes or falls silent."""
    host, port = server.url.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(sent)
        if close:
            connection.shutdown(socket.SHUT_WR)
        connection.settimeout(1.0)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
    return received


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /kv HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /kv/a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n2",
        b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: five\r\n\r\n2",
        b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n2\r\n0\r\n\r\n",
        b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50,
        b"\0" * 100,
    ],
)
def test_what_is_not_http_gets_a_problem_or_a_closed_connection(server, http, sent):
    before = dump(http)
    answer = talk(server, sent)
    head, _, body = answer.partition(b"\r\n\r\n")
    if answer:
        assert int(head.split()[1]) in (*range(400, 500), 505), answer
        assert b"application/problem+json" in head, answer
        assert json.loads(body)["code"] in PROBLEMS
    assert dump(http) == before


def test_a_body_that_never_comes_changes_nothing(server, http):
    before = dump(http)
    for sent in (
        b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n[1, 2",
        b"POST /kv HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n"
        + json.dumps({"set": [{"key": "k", "value": 2}]}).encode(),
        b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n2\r\n",
    ):
        answer = talk(server, sent, close=True)
        assert b" 20" not in answer[:14]
        assert b" 500" not in answer[:14]
    assert dump(http) == before


def test_a_chunked_body_is_bounded_too(http):
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(500):
            sent += 10_000
            yield b" " * 10_000

    answer = http.post("/kv", content=chunks(), headers=JSON)
    check_problem(answer, ("body-too-large",))


def test_many_hostile_clients_at_once_leave_the_service_answering(server, http):
    def attack() -> None:
        for _ in range(5):
            with contextlib.suppress(OSError):
                talk(server, b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n", close=True)

    threads = [threading.Thread(target=attack) for _ in range(8)]
    with contextlib.ExitStack() as stack:
        # These hold back the rest of their bodies until all is over: an answer that waits for them never comes.
        for _ in range(8):
            waiting = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            waiting.sendall(b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n2")
        before = server.cpu_seconds
        for thread in threads:
            thread.start()
        assert http.get("/kv/k").json() == {"a": 1}
        assert server.cpu_seconds - before < 2
        for thread in threads:
            thread.join()
    assert http.get("/healthz").json() == {"status": "ok"}


def test_keys_of_a_batch_that_failed_are_pointed_at(http):
    body = {"set": [{"key": "a", "value": 1}, {"key": "b", "value": 1}, {"key": "k", "value": 9, "if_none_match": "*"}]}
    answer = http.post("/kv", json=body)
    check_problem(answer, ("precondition-failed",))
    assert answer.json()["pointer"] == "/set/2"
    body = {
        "events": [{"item": "x", "value": 1}, {"item": "n", "value": base64.b64encode(b"x").decode(), "encoding": "no"}]
    }
    answer = http.post("/es/e/events", json=body)
    check_problem(answer, ("invalid-body",))
    assert answer.json()["pointer"].startswith("/events/1")
