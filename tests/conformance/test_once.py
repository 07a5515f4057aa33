"""Writes that arrive more than once, late or at once: each takes effect once, and every time with the same answer."""

from __future__ import annotations

import asyncio
import contextlib
import operator
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from tests.conformance.backends import BACKENDS
from tests.conformance.subjects import KEY, Deployment

from rstore import AsyncStore, StoreConflictError, StoreIntegrityError
from rstore.codec.values import dump
from rstore.core.encodings import Encoding, Value
from rstore.core.points import Points
from rstored.app import running_app
from rstored.backends import backend_class
from rstored.backends.abc import HeadRead, Kind, Place
from rstored.backends.clock import unix_ms
from rstored.engine.engine import Engine
from rstored.engine.model import Access, BatchDelete, BatchGet, BatchSet, Change, Condition, NamespacePolicy
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.settings import Settings

pytestmark = pytest.mark.anyio

# --- what the SDK sends ------------------------------------------------------------------------------------


class Recording(httpx2.AsyncHTTPTransport):
    """Keeps the writes that pass, and what they were answered."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[httpx2.Request, httpx2.Response]] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if request.method in ("PUT", "POST", "DELETE"):
            response = httpx2.Response(response.status_code, headers=response.headers, content=await response.aread())
            self.writes.append((request, response))
        return response


class Written(NamedTuple):
    """A write, what stands there before it, and what is written after it."""

    before: Callable[[AsyncStore], list[Awaitable[Any]]]
    write: Callable[[AsyncStore], Awaitable[Any]]
    after: Callable[[AsyncStore], list[Awaitable[Any]]]


def nothing(_: AsyncStore) -> list[Awaitable[Any]]:
    return []


add = operator.add
WRITES = {
    "set": Written(nothing, lambda s: s.set("k", 1), lambda s: [s.set("k", 2)]),
    "set of what was deleted": Written(nothing, lambda s: s.set("k", 1), lambda s: [s.delete("k")]),
    "set to the value of before": Written(
        nothing, lambda s: s.set("k", 1), lambda s: [s.set("k", 2), s.set("k", 1, ttl=900)]
    ),
    "set if absent": Written(nothing, lambda s: s.set("k", 1, if_absent=True), lambda s: [s.delete("k")]),
    "set that is refused": Written(
        lambda s: [s.set("k", 0)], lambda s: refused(s.set("k", 1, if_absent=True)), lambda s: [s.delete("k")]
    ),
    "set under a key that is hard to place": Written(
        nothing, lambda s: s.set("}a} {b", 1), lambda s: [s.set("}a} {b", 2)]
    ),
    "delete": Written(lambda s: [s.set("k", 0)], lambda s: s.delete("k"), lambda s: [s.set("k", 1)]),
    "delete of nothing": Written(nothing, lambda s: s.delete("k"), lambda s: [s.set("k", 1)]),
    "batch of sets": Written(
        nothing, lambda s: s.set_many({"{n}a": 1, "{n}b": 1}), lambda s: [s.set("{n}a", 2), s.delete("{n}b")]
    ),
    "batch of deletes": Written(
        lambda s: [s.set_many({"{n}a": 1, "{n}b": 1})],
        lambda s: s.delete("{n}a", "{n}b"),
        lambda s: [s.set("{n}a", 2)],
    ),
    "extend": Written(
        nothing, lambda s: s.extend("s", (1, 1), (2, 1)), lambda s: [s.extend("s", (1, 2)), s.remove("s", start=2)]
    ),
    "extend of what was removed": Written(nothing, lambda s: s.extend("s", (1, 1)), lambda s: [s.remove("s")]),
    "remove": Written(
        lambda s: [s.extend("s", (1, 1), (2, 1))], lambda s: s.remove("s", end=1), lambda s: [s.extend("s", (1, 2))]
    ),
    "apply": Written(
        lambda s: [s.apply("e", {"n": 1})],
        lambda s: s.apply("e", {"n": (add, 1)}),
        lambda s: [s.apply("e", {"n": (add, 10)})],
    ),
    "apply at a time": Written(
        nothing, lambda s: s.apply("e", {"n": 1}, t=5), lambda s: [s.apply("e", {"n": 2}, t=6), s.prune("e")]
    ),
    "apply to what was pruned away": Written(
        nothing,
        lambda s: s.apply("e", {"n": 1}, t=5),
        lambda s: [s.apply("e", {"n": (operator.delitem,)}), s.prune("e")],
    ),
    "apply that is refused": Written(
        lambda s: [s.apply("e", {"n": 1}, t=5)],
        lambda s: refused(s.apply("e", {"m": 1}, t=5)),
        lambda s: [s.apply("e", {"n": (operator.delitem,)}), s.prune("e")],
    ),
    "prune": Written(
        lambda s: [s.apply("e", {"n": 1}), s.apply("e", {"n": 2})],
        lambda s: s.prune("e"),
        lambda s: [s.apply("e", {"n": 3})],
    ),
}


async def refused(write: Awaitable[Any]) -> None:
    with pytest.raises((StoreConflictError, StoreIntegrityError)):
        await write


async def everything(store: AsyncStore) -> list[Any]:
    entries = [(key, await store.entry(key)) for key in await store.keys()]
    return [entries, await store.range("s"), await store.current("e"), await store.events("e"), await store.count()]


def answer(response: httpx2.Response) -> tuple[Any, ...]:
    """What an answer says, but for the id of its request."""
    body: Any = response.content
    if response.headers.get("content-type") == "application/problem+json":
        body = {name: value for name, value in response.json().items() if name != "request_id"}
    return response.status_code, response.headers.get("etag"), body


@contextlib.asynccontextmanager
async def recorded(
    deployment: Deployment, namespace: str, key: str | None
) -> AsyncIterator[tuple[AsyncStore, Recording]]:
    transport = Recording()
    async with transport, AsyncStore(deployment.url, namespace, key, frozen=False, transport=transport) as store:
        yield store, transport


# Sealing changes how an apply is sent, and nothing else.
CASES = [(name, None) for name in WRITES] + [(name, KEY) for name in WRITES if name.startswith("apply")]


@pytest.mark.parametrize(("name", "key"), CASES, ids=[name + (", sealed" if key else "") for name, key in CASES])
async def test_a_late_duplicate_changes_nothing(deployment, namespace, name, key):
    before, write, after = WRITES[name]
    async with (
        recorded(deployment, namespace, key) as (store, transport),
        httpx2.AsyncClient(base_url=deployment.second_url, headers=deployment.headers) as elsewhere,
    ):
        for step in before(store):
            await step
        transport.writes.clear()
        await write(store)
        writes = list(transport.writes)
        assert writes
        for step in after(store):
            await step
        there = await everything(store)
        for request, response in writes:
            for _ in range(2):
                late = await elsewhere.request(
                    request.method,
                    request.url.raw_path.decode(),
                    headers=[field for field in request.headers.raw if field[0].lower() != b"host"],
                    content=request.content,
                )
                assert (late.status_code, late.headers.get("etag")) == answer(response)[:2]
                if "events" not in request.url.path:
                    # The state that a repeated apply is answered with is read again, and may have been pruned.
                    assert answer(late) == answer(response)
        assert await everything(store) == there


async def test_a_namespace_is_created_and_discarded_once(deployment, namespace):
    async with recorded(deployment, namespace, None) as (store, transport):
        await store.set("k", 1)
        await store.discard()
        created, *_, discarded = transport.writes
        async with httpx2.AsyncClient(base_url=deployment.second_url, headers=deployment.headers) as elsewhere:
            headers = {"idempotency-key": created[0].headers["idempotency-key"]}
            await elsewhere.put(f"/ns/{namespace}", headers=headers)
            assert (await elsewhere.get(f"/ns/{namespace}")).status_code == 404
            await store.set("k", 2)
            headers = {"idempotency-key": discarded[0].headers["idempotency-key"]}
            assert (await elsewhere.delete(f"/ns/{namespace}", headers=headers)).status_code == 204
        assert await store.get("k") == 2


async def test_duplicates_under_way_at_once_take_effect_once(deployment, namespace):
    async with (
        httpx2.AsyncClient(base_url=f"{deployment.url}/ns/{namespace}", headers=deployment.headers) as one,
        httpx2.AsyncClient(base_url=f"{deployment.second_url}/ns/{namespace}", headers=deployment.headers) as other,
    ):
        await one.post("/es/e/events", json={"events": [{"item": "n", "value": 0}]})
        event = {"events": [{"item": "n", "op": "add", "value": 1}]}
        for round_ in range(5):
            headers = {"idempotency-key": f"round-{round_}"}
            applies = [client.post("/es/e/events", json=event, headers=headers) for client in (one, other) * 8]
            sets = [
                client.put("/kv/k", json=round_, headers={**headers, "if-none-match": "*"})
                for client in (one, other) * 8
            ]
            answers = await asyncio.gather(*applies, *sets)
            assert {(found.status_code, found.content) for found in answers[:16]} == {(200, answers[0].content)}
            assert {(found.status_code, found.headers["etag"]) for found in answers[16:]} == {
                (201, answers[16].headers["etag"])
            }
            assert answers[0].json()["state"] == {"n": round_ + 1}
            await one.delete("/kv/k")


# --- whose it is -------------------------------------------------------------------------------------------


@pytest.fixture
async def closed(
    backend: str, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[tuple[Engine, Callable[[str], httpx2.AsyncClient]]]:
    """A closed store's engine, and what makes a client with a token."""
    dsn = BACKENDS[backend].fresh(tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        app = await stack.enter_async_context(running_app(Settings(dsn=dsn, token_cache_seconds=0)))
        transport = httpx2.ASGITransport(app)

        def client(token: str) -> httpx2.AsyncClient:
            headers = {"Authorization": f"Bearer {token}"}
            return httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

        yield app.state.engine, client


async def test_an_id_is_one_of_its_token(closed, deployment):
    engine, client = closed
    tokens = {access: await engine.tokens.create(["n"], access) for access in (Access.WRITE, Access.ADMIN)}
    once = {"Idempotency-Key": "1"}
    async with client(tokens[Access.WRITE].text) as writer, client(tokens[Access.ADMIN].text) as admin:
        assert (await writer.put("/ns/n/kv/k", json=1)).status_code == 201
        # What one may not do, the other may, and it does not undo the refusal of the first.
        for http, status in ((writer, 403), (admin, 200), (writer, 403), (admin, 200)):
            assert (await http.put("/ns/n", json={"sealed_only": True}, headers=once)).status_code == status
        assert (await admin.put("/ns/n", json={"sealed_only": False})).status_code == 200
        assert (await writer.put("/ns/n", json={"sealed_only": True}, headers=once)).status_code == 403
        # Two clients that both begin at 1 write twice; neither learns what the other read.
        added = {"events": [{"item": "n", "value": 1}]}
        again = {"events": [{"item": "n", "op": "add", "value": 1}]}
        assert (await writer.post("/ns/n/es/e/events", json=added)).status_code == 200
        for http, total in ((writer, 2), (admin, 3), (writer, 2), (admin, 3)):
            found = await http.post("/ns/n/es/e/events", json=again, headers=once)
            assert found.json()["state"] == {"n": total}
        batch = {"get": ["k"], "set": [{"key": "k", "value": 2}]}
        for http, before in ((writer, 1), (admin, 2), (writer, 1)):
            found = await http.post("/ns/n/kv", json=batch, headers=once)
            assert [item["value"] for item in found.json()["get"]] == [before]
        # Of two that would be the first only one is.
        first = {**once, "If-None-Match": "*"}
        assert (await writer.put("/ns/n/kv/lock", json="mine", headers=first)).status_code == 201
        assert (await admin.put("/ns/n/kv/lock", json="mine", headers=first)).status_code == 412
        # Another's id is not even told to be in use.
        for http, value in ((admin, 5), (writer, 6)):
            assert (await http.put("/ns/n/kv/k", json=value, headers={"Idempotency-Key": "2"})).status_code == 204
        rotated = await engine.tokens.rotate(tokens[Access.WRITE].info.id)
        async with client(rotated.text) as renewed:
            found = await renewed.post("/ns/n/es/e/events", json=again, headers=once)
            assert found.json()["state"] == {"n": 2}
        assert (await engine.es.current("n", "e")).revision == 3


async def test_a_repeated_revocation_is_told_of_the_first(closed, deployment):
    engine, client = closed
    admin = await engine.tokens.create(["*"], Access.ADMIN)
    made = await engine.tokens.create(["n"], Access.READ)
    async with client(admin.text) as http:
        for key, status in (("1", 204), ("1", 204), ("2", 404), ("2", 404), ("1", 204)):
            found = await http.delete(f"/tokens/{made.info.id}", headers={"Idempotency-Key": key})
            assert found.status_code == status
        assert [item["id"] for item in (await http.get("/tokens")).json()["items"]] == [admin.info.id]


# --- the engine --------------------------------------------------------------------------------------------

ONE, TWO = Value(Encoding.JSON, b"1"), Value(Encoding.JSON, b"2")


class Clock:
    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return unix_ms() + self.ahead_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def engines(deployment: Deployment, clock: Clock) -> AsyncIterator[list[Engine]]:
    """Two engines, each with a connection of its own, and one clock. None of them sweeps."""
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for _ in range(2):
            backend = await backend_class(deployment.dsn).open(deployment.dsn)
            stack.push_async_callback(backend.close)
            engine = Engine(backend, Limits(write_id_retention_seconds=60), clock)
            stack.push_async_callback(engine.stop)
            made.append(engine)
        yield made


def put(engine: Engine, namespace: str, value: Value, **options: Any) -> Awaitable[Any]:
    return engine.kv.put(namespace, "k", value=value, media_type="application/json", **options)


async def test_every_operation_answers_a_repeat_as_it_did(engines, namespace):
    one, other = engines
    points = Points.from_pairs([(1, 1), (2, 2)], dump)
    batch: dict[str, Any] = {
        "gets": [BatchGet("k")],
        "sets": [BatchSet("{k}2", ONE, "application/json")],
        "deletes": [BatchDelete("k")],
    } if one.storage.backend.capabilities.atomic_batches else {
        "gets": [BatchGet("{k}")], "sets": [BatchSet("{k}2", ONE, "application/json")], "deletes": []
    }  # fmt: skip
    operations: list[Callable[[Engine, str], Awaitable[Any]]] = [
        lambda engine, write_id: engine.namespaces.create(namespace, NamespacePolicy(False), write_id=write_id),
        lambda engine, write_id: put(engine, namespace, ONE, write_id=write_id),
        lambda engine, write_id: engine.kv.batch(namespace, **batch, write_id=write_id),
        lambda engine, write_id: put(engine, namespace, TWO, condition=Condition(none_match=("*",)), write_id=write_id),
        lambda engine, write_id: engine.kv.delete(namespace, "k", condition=Condition(match=("*",)), write_id=write_id),
        lambda engine, write_id: engine.ts.extend(namespace, "k", points, write_id=write_id),
        lambda engine, write_id: engine.ts.remove(namespace, "k", end=1, write_id=write_id),
        lambda engine, write_id: engine.es.apply(namespace, "k", [Change("n", "setitem", ONE)], write_id=write_id),
        lambda engine, write_id: engine.es.apply(
            namespace, "k", [Change("n", "setitem", TWO)], revision=1, write_id=write_id
        ),
        lambda engine, write_id: engine.es.prune(namespace, "k", write_id=write_id),
        lambda engine, write_id: engine.es.delete(namespace, "k", write_id=write_id),
        lambda engine, write_id: engine.namespaces.discard(namespace, write_id=write_id),
    ]
    for number, operation in enumerate(operations):
        first = await operation(one, f"id-{number}")
        assert first
        assert await operation(other, f"id-{number}") == first
        assert await operation(one, f"id-{number}") == first


async def test_a_memory_expires_and_is_swept(engines, clock, namespace):
    one, other = engines
    await put(one, namespace, ONE, write_id="w")
    await put(one, namespace, TWO)
    clock.ahead_ms += 59_000
    await put(other, namespace, ONE, write_id="w")
    assert (await one.kv.get(namespace, "k")).value == TWO
    clock.ahead_ms += 2_000
    assert (await put(other, namespace, ONE, write_id="w")).created is False
    assert (await one.kv.get(namespace, "k")).value == ONE
    await put(one, namespace, TWO)
    await put(one, namespace, ONE, write_id="w")
    assert (await one.kv.get(namespace, "k")).value == TWO
    clock.ahead_ms += 61_000
    memory = Place(namespace, Kind.WRITE, "w k")
    assert await one.storage.read(HeadRead(memory)) != [None]
    await one.maintenance.sweep()
    assert await one.storage.read(HeadRead(memory)) == [None]
    assert (await one.kv.get(namespace, "k")).value == TWO


async def test_an_id_belongs_to_one_write(engines, namespace):
    one, other = engines
    await put(one, namespace, ONE, write_id="w")
    for write in (
        put(other, namespace, TWO, write_id="w"),
        put(other, namespace, ONE, ttl_seconds=5, write_id="w"),
        put(other, namespace, ONE, condition=Condition(match=("*",)), write_id="w"),
        other.kv.delete(namespace, "k", write_id="w"),
        other.ts.extend(namespace, "k", Points.from_pairs([(1, 1)], dump), write_id="w"),
    ):
        with pytest.raises(Problem) as caught:
            await write
        assert caught.value.code == "idempotency-conflict"
    assert (await one.kv.get(namespace, "k")).value == ONE
    # Under another key it is another id.
    await other.kv.put(namespace, "other", value=ONE, media_type="application/json", write_id="w")


async def test_memories_are_neither_listed_nor_counted(engines, namespace):
    one, _ = engines
    await put(one, namespace, ONE, write_id="w")
    info = await one.namespaces.describe(namespace)
    assert (info.kv, info.ts, info.es) == (1, 0, 0)
    assert [key for key, _ in (await one.kv.list(namespace)).items] == ["k"]
    await one.namespaces.create(namespace, NamespacePolicy(True), write_id="x y".replace(" ", "_"))
    assert (await one.namespaces.list(prefix="x")).items == []
    # A namespace takes the memories of what was in it along.
    await one.namespaces.discard(namespace)
    await put(one, namespace, ONE, write_id="w")
    assert (await one.kv.get(namespace, "k")).value == ONE
