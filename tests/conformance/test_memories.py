"""What is remembered of a write takes room in proportion to its request, whatever the write reads or answers."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import httpx2
import pytest
from tests.conformance.subjects import Deployment
from tests.reading import read

from rstore.core.encodings import Encoding, Value
from rstored.api.openapi import declare_routes, document
from rstored.backends import backend_class
from rstored.backends.abc import Backend, Kind, Listing, Place, RowScan
from rstored.engine.engine import Engine
from rstored.engine.model import BatchDelete, BatchGet, BatchSet
from rstored.limits import Limits
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

LARGE = 400_000
"""Bytes of what the requests find in the store; they themselves are small."""

FACTOR, OVERHEAD = 8, 2_000
"""A request may add so many times its bytes, and this: ids, marks and ETags, and what a record takes at least."""

REPLACED = hashlib.sha256(bytes(LARGE // 4 * 3)).hexdigest()
"""Of the sealed value that ``"A" * LARGE`` is in base64."""


@pytest.fixture
async def backend_in_use(deployment: Deployment) -> AsyncIterator[Backend]:
    """A connection of the test's own to the store."""
    backend = await backend_class(deployment.dsn).open(deployment.dsn)
    yield backend
    await backend.close()


async def stored_bytes(backend: Backend, namespace: str) -> int:
    """The bytes of all keys, heads and rows in the namespace, and of its record and what is remembered of that.

    What is remembered of other namespaces may expire at any time.
    """
    size = 0
    for place, kind in itertools.product(("", namespace), Kind):
        after: str | None = None
        more = True
        while more:
            listing = Listing(place, kind, after=after, values=True, bytes_max=2**23)
            (page,) = await read(backend, listing)
            more = page.more
            for key, head in page.items:
                after = key
                if not place and key.rpartition(" ")[2] != namespace:
                    continue
                size += len(key.encode()) + len(head.meta) + len(head.value)
                if kind in (Kind.TS, Kind.ES):
                    for lane in (0, 1):
                        (rows,) = await read(backend, RowScan(Place(place, kind, key), lane))
                        size += sum(len(row.sort) + len(row.value) + len(row.by or b"") for row in rows.items)
    return size


class Route(NamedTuple):
    """Requests of a route, each with what stands there before it, which is large."""

    prepare: list[tuple[str, str, dict[str, Any]]]
    requests: list[tuple[str, dict[str, Any]]]


def events(*items: tuple[str, str, Any], **more: Any) -> dict[str, Any]:
    return {"json": {"events": [{"item": item, "op": op, "value": value} for item, op, value in items], **more}}


def reseal(replaces: str) -> dict[str, Any]:
    part = {"timestamp": 1, "item": "i", "op": "setitem", "replaces": replaces, "value": "AAAA"}
    return {"json": {"events": [part]}}


PAIRS = [("PUT", f"/kv/{{n}}{name}", {"json": "v" * LARGE}) for name in "abc"]
SERIES = ("POST", "/ts/s/range", {"json": {"points": [[t, "v" * 10_000] for t in range(40)]}})
SEQUENCE = ("POST", "/es/e/events", events(("long", "setitem", "v" * LARGE), timestamp=1))
SHORT = events(("short", "setitem", 1))
WRITES: dict[tuple[str, str], Route] = {
    ("PUT", "/kv/{key}"): Route(PAIRS, [("/kv/{n}a", {"json": 1}), ("/kv/{n}d", {"json": 1})]),
    ("DELETE", "/kv/{key}"): Route(PAIRS, [("/kv/{n}a", {}), ("/kv/{n}d", {})]),
    ("POST", "/kv"): Route(
        PAIRS,
        [
            ("/kv", {"json": {"get": ["{n}a", "{n}b", "{n}c"], "set": [{"key": "{n}d", "value": 1}]}}),
            ("/kv", {"json": {"get": ["{n}a", "{n}b"], "delete": ["{n}d", "{n}e"]}}),
            ("/kv", {"json": {"get": ["{n}a"] * 4, "set": [{"key": "{n}a", "value": 1}]}}),
            ("/kv", {"json": {"get": ["{n}b", "{n}c"], "delete": ["{n}b"]}}),
            ("/kv", {"json": {"get": ["{n}c"], "set": [{"key": "{n}c", "value": 1, "if_match": "another"}]}}),
        ],
    ),
    ("POST", "/ts/{key}/range"): Route([SERIES], [("/ts/s/range", {"json": {"points": [[7, 1], [99, 1]]}})]),
    ("DELETE", "/ts/{key}/range"): Route([SERIES], [("/ts/s/range?start=3&end=5", {}), ("/ts/s/range", {})]),
    ("POST", "/es/{key}/events"): Route(
        [SEQUENCE],
        [
            ("/es/e/events", SHORT),
            ("/es/e/events", events(("long", "concat", "w"))),
            ("/es/e/events", {"json": {"events": []}}),
            ("/es/e/events", events(("absent", "add", 1))),
        ],
    ),
    ("POST", "/es/{key}/prune"): Route(
        [SEQUENCE, ("POST", "/es/e/events", SHORT), ("POST", "/es/e/events", SHORT)], [("/es/e/prune", {})]
    ),
    ("POST", "/es/{key}/reseal"): Route(
        [
            (
                "POST",
                "/es/e/events",
                {"json": {"events": [{"item": "i", "value": "A" * LARGE, "encoding": "sealed"}], "timestamp": 1}},
            )
        ],
        [("/es/e/reseal", reseal(REPLACED)), ("/es/e/reseal", reseal("0" * 64))],
    ),
    ("DELETE", "/es/{key}/events"): Route([SEQUENCE], [("/es/e/events", {})]),
    ("PUT", "/ns/{namespace}"): Route(PAIRS, [("", {}), ("", {"json": {"sealed_only": True}})]),
    ("DELETE", "/ns/{namespace}"): Route(PAIRS, [("", {})]),
    ("DELETE", "/tokens/{token_id}"): Route([], []),
}


def routes_with_memories() -> set[tuple[str, str]]:
    """Every method and path that takes an Idempotency-Key, without the namespace."""
    found = set()
    for path, methods in document(declare_routes())["paths"].items():
        for method, operation in methods.items():
            names = {parameter["name"] for parameter in operation.get("parameters", ())}
            if "Idempotency-Key" in names:
                short = path.removeprefix("/ns/{namespace}") or path
                found.add((method.upper(), short))
    return found


def test_every_route_that_remembers_is_tried():
    assert routes_with_memories() == WRITES.keys()


@pytest.mark.parametrize("route", WRITES, ids=" ".join)
async def test_a_write_adds_no_more_than_its_request_has(deployment, fresh_namespace, backend_in_use, route):
    method, _ = route
    async with httpx2.AsyncClient(base_url=deployment.url, headers=deployment.headers, timeout=60) as http:
        for number, (path, body) in enumerate(WRITES[route].requests):
            namespace = fresh_namespace()
            at = f"/ns/{namespace}"
            for preparing, place, content in WRITES[route].prepare:
                assert (await http.request(preparing, at + place, **content)).is_success
            before = await stored_bytes(backend_in_use, namespace)
            once = {"Idempotency-Key": f"id-{number}"}
            first = await http.request(method, at + path, headers=once, **body)
            assert first.status_code < 500, first.text
            sent = len(at + path) + len(first.request.content) + len(once["Idempotency-Key"])
            bound = FACTOR * sent + OVERHEAD
            added = await stored_bytes(backend_in_use, namespace) - before
            assert added <= bound, (path, sent, added)
            again = await http.request(method, at + path, headers=once, **body)
            assert told(again) == told(first)
            assert await stored_bytes(backend_in_use, namespace) - before == added


async def test_a_revocation_adds_no_more_than_its_request_has(deployment, backend_in_use):
    if not deployment.token:
        pytest.skip("the store is open here")
    async with httpx2.AsyncClient(base_url=deployment.url, headers=deployment.headers) as http:
        before = await stored_bytes(backend_in_use, "~tokens")
        made = await http.post("/tokens", json={"namespaces": ["n"], "access": "read", "label": "l" * 200})
        for _ in range(2):
            found = await http.delete(f"/tokens/{made.json()['id']}", headers={"Idempotency-Key": "1"})
            assert found.status_code == 204
        assert await stored_bytes(backend_in_use, "~tokens") - before <= OVERHEAD


def told(response: httpx2.Response) -> tuple[Any, ...]:
    body: Any = response.content
    if response.headers.get("content-type") == "application/problem+json":
        body = {name: value for name, value in response.json().items() if name != "request_id"}
    return response.status_code, response.headers.get("etag"), body


# --- batches -----------------------------------------------------------------------------------------------


@pytest.fixture
async def engine(deployment: Deployment) -> AsyncIterator[Engine]:
    async with AsyncExitStack() as stack:
        backend = await backend_class(deployment.dsn).open(deployment.dsn)
        stack.push_async_callback(backend.close)
        engine = Engine(backend, Limits(body_bytes_max=100_000))
        stack.push_async_callback(engine.stop)
        yield engine


def plain(value: int | str) -> Value:
    return Value(Encoding.JSON, json.dumps(value).encode())


@pytest.mark.parametrize("seed", range(3))
async def test_a_repeated_batch_gets_what_it_wrote_as_it_was_and_all_else_as_it_is(engine, namespace, seed):
    chance = random.Random(seed)
    keys = [f"{{b}}{n}" for n in range(6)]
    numbers = itertools.count()

    def value() -> Value:
        return plain(f"{next(numbers)}" + "v" * chance.choice((0, 1000, 15_000)))

    async def put(key: str) -> None:
        await engine.kv.put(namespace, key, value=value(), media_type="application/json")

    async def present() -> dict[str, Any]:
        return dict((await engine.kv.list(namespace, values=True)).items)

    for turn in range(12):
        for key in chance.sample(keys, 3):
            await put(key)
        gets = [BatchGet(chance.choice(keys)) for _ in range(chance.randrange(6))]
        written = chance.sample(keys, chance.randrange(1, 4))
        cut = chance.randrange(len(written) + 1)
        sets = [BatchSet(key, value(), "application/json") for key in written[:cut]]
        deletes = [BatchDelete(key) for key in written[cut:]]

        def batch(gets: Any = gets, sets: Any = sets, deletes: Any = deletes, turn: int = turn) -> Any:
            return engine.kv.batch(namespace, gets=gets, sets=sets, deletes=deletes, write_id=f"t{turn}")

        before = await present()
        first = await batch()
        assert first.entries == [(get.key, before[get.key]) for get in gets if get.key in before]
        assert await batch() == first
        for key in chance.sample(keys, 3):
            await (put(key) if chance.random() < 0.7 else engine.kv.delete(namespace, key))
        after = await present()
        again = await batch()
        assert again[1:] == first[1:]
        then = after | {key: before.get(key) for key in written}
        assert again.entries == [(get.key, then[get.key]) for get in gets if then.get(get.key) is not None]
        assert await present() == after


async def test_a_repeat_whose_gets_have_grown_says_that_the_batch_was_carried_out(engine, namespace):
    batch: Callable[[], Any] = lambda: engine.kv.batch(  # noqa: E731
        namespace,
        gets=[BatchGet("{b}1"), BatchGet("{b}2")],
        sets=[BatchSet("{b}3", plain(1), "application/json")],
        deletes=[],
        write_id="w",
    )
    await batch()
    for key in ("{b}1", "{b}2"):
        await engine.kv.put(namespace, key, value=plain("v" * 60_000), media_type="application/json")
    with pytest.raises(Problem, match="carried out the batch") as caught:
        await batch()
    assert caught.value.code == "answer-too-large"
    await engine.kv.delete(namespace, "{b}1")
    assert [key for key, _ in (await batch()).entries] == ["{b}2"]
    assert (await engine.kv.get(namespace, "{b}3")).value == plain(1)
