"""Requests that a service refuses: one for each problem code that a single request leads to."""

from __future__ import annotations

from collections.abc import Callable

import httpx2

LIMITS = {
    "VALUE_BYTES_MAX": 20_000,
    "BODY_BYTES_MAX": 100_000,
    "BATCH_PARTS_MAX": 20,
    "ANSWER_POINTS_MAX": 5,
}

_JSON = {"Content-Type": "application/json"}


def prepare(http: httpx2.Client) -> None:
    """Put one of each into an empty store, with these LIMITS."""
    assert http.put("/kv/k", json=1).is_success
    assert http.post("/ts/s/range", json={"points": [[t, t] for t in range(10)]}).is_success
    assert http.post("/es/e/events", json={"timestamp": 1, "events": [{"item": "n", "value": 1}]}).is_success
    assert http.put("/ns/vault", json={"sealed_only": True}).is_success


REQUESTS: dict[str, Callable[[httpx2.Client], httpx2.Response]] = {
    "malformed-body": lambda http: http.post("/kv", content=b"{", headers=_JSON),
    "route-not-found": lambda http: http.get("/nope"),
    "method-not-allowed": lambda http: http.post("/kv/k"),
    "not-acceptable": lambda http: http.get("/ts/s/range", headers={"Accept": "image/png"}),
    "unsupported-media-type": lambda http: http.post("/kv", content=b"x", headers={"Content-Type": "image/png"}),
    "invalid-namespace": lambda http: http.get("/ns/a%20b/kv"),
    "invalid-key": lambda http: http.get("/kv/%00"),
    "invalid-parameter": lambda http: http.get("/ts/s/range?n=-1"),
    "unknown-parameter": lambda http: http.get("/ts/s/range?m=1"),
    "invalid-body": lambda http: http.post("/kv", json={"set": 5}),
    "invalid-value": lambda http: http.put("/kv/k", content=b"NaN", headers=_JSON),
    "idempotency-conflict": lambda http: [http.put("/kv/k", json=n, headers={"Idempotency-Key": "x"}) for n in (1, 2)][
        1
    ],
    "sealed-only": lambda http: http.put("/ns/vault/kv/k", json=1),
    "namespace-not-found": lambda http: http.get("/ns/absent"),
    "key-not-found": lambda http: http.get("/kv/absent"),
    "series-not-found": lambda http: http.get("/ts/absent/last"),
    "sequence-not-found": lambda http: http.get("/es/absent/current"),
    "precondition-failed": lambda http: http.put("/kv/k", json=2, headers={"If-Match": '"0"'}),
    "revision-conflict": lambda http: http.post(
        "/es/e/events", json={"revision": 9, "events": [{"item": "n", "value": 1}]}
    ),
    "timestamp-taken": lambda http: http.post(
        "/es/e/events", json={"timestamp": 1, "events": [{"item": "m", "value": 1}]}
    ),
    "sealing-mismatch": lambda http: http.post(
        "/es/e/events", json={"events": [{"item": "m", "value": "AAAA", "encoding": "sealed"}]}
    ),
    "unfoldable-event": lambda http: http.post("/es/e/events", json={"events": [{"item": "m", "op": "delitem"}]}),
    "body-too-large": lambda http: http.post("/kv", content=b" " * 100_001, headers=_JSON),
    "value-too-large": lambda http: http.put("/kv/k", json="x" * 20_001),
    "batch-too-large": lambda http: http.post("/kv", json={"get": ["k"] * 21}),
    "uri-too-long": lambda http: http.get("/kv?prefix=" + "x" * 10_000),
    "nesting-too-deep": lambda http: http.put("/kv/k", content=b"[" * 200 + b"]" * 200, headers=_JSON),
    "answer-too-large": lambda http: http.get("/ts/s/range", headers={"Accept": "application/msgpack"}),
    "access-denied": lambda http: http.get("/tokens"),
}
