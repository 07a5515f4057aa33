"""Every kind of token on every route and method of ``openapi.json``: nothing beyond a grant can be read, written,
counted, listed, or told from what is not there.

Paths and bodies are made of the document's own examples. What an operation takes stands here a second time
(:func:`needed`), and a route that is not foreseen here fails.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from tests.conformance.backends import BACKENDS

from rstore.codec.values import dump
from rstore.core.encodings import Encoding, Value
from rstore.core.points import Points
from rstored.api.operations import Answer, Operations
from rstored.app import create_app
from rstored.backends import backend_class
from rstored.engine.engine import Engine
from rstored.engine.model import Access, Change
from rstored.problems import Problem
from rstored.settings import Settings

DOCUMENT = json.loads((Path(__file__).parents[1] / "openapi" / "openapi.json").read_text())
ADMIN = secrets.token_hex(16)
LEVELS = {"metrics": Access.METRICS, "read": Access.READ, "write": Access.WRITE, "admin": Access.ADMIN}
NAMESPACE_LEVELS = ("read", "write", "admin")

PUBLIC = {("get", "/healthz"), ("get", "/readyz")}
ANY_READER = {("get", "/"), ("get", "/ns")}
SERVICE_WIDE = {
    ("get", "/metrics"): "metrics",
    ("get", "/tokens"): "admin",
    ("post", "/tokens"): "admin",
    ("get", "/tokens/{token_id}"): "admin",
    ("delete", "/tokens/{token_id}"): "admin",
    ("post", "/tokens/{token_id}/rotate"): "admin",
}
# A request to each of these namespaces; "default" also without a name.
OWN, THEIRS, ABSENT = "team-own", "other-full", "other-absent"
# Of what takes access to any namespace, whichever it is.
ANY = "any"
NAMESPACES = (OWN, THEIRS, ABSENT, "default")
SECRET = "content-of-theirs"


class Operation(NamedTuple):
    """A method of a path, and its declaration."""

    method: str
    path: str
    declared: dict[str, Any]


OPERATIONS = [
    Operation(method, path, declared)
    for path, methods in DOCUMENT["paths"].items()
    for method, declared in methods.items()
]


class Holder(NamedTuple):
    """A client: its header, what it reaches, and how far. ``everywhere`` means that it reads every namespace."""

    name: str
    authorization: str | None
    reaches: frozenset[str] = frozenset()
    level: str | None = None
    everywhere: bool = False

    def allows(self, namespace: str | None, level: str) -> bool:
        if self.level is None or LEVELS[self.level] < LEVELS[level]:
            return False
        if namespace is None and self.level == "metrics":
            return True
        return self.everywhere or namespace in self.reaches or (namespace == ANY and bool(self.reaches))


class Asked(NamedTuple):
    """A request, the namespace that it is about (None: the service), and whether it only gets."""

    operation: Operation
    namespace: str | None
    target: str
    body: bytes | None
    media_type: str | None


def requests_of(operation: Operation) -> Iterator[Asked]:
    """The requests of an operation: to each namespace, with each example of a body."""
    contents = operation.declared.get("requestBody", {}).get("content", {})
    bodies: list[tuple[bytes | None, str | None]] = [(None, None)]
    if "application/json" in contents:
        bodies = [(json.dumps(contents["application/json"]["example"]).encode(), "application/json")]
        if operation.path.endswith("/kv") and operation.method == "post":
            bodies.append((b'{"get": ["user:1"]}', "application/json"))
    for namespace in NAMESPACES if "{namespace}" in operation.path else (default_of(operation.path),):
        path = operation.path
        for parameter in operation.declared.get("parameters", []):
            if parameter["in"] == "path":
                value = namespace if parameter["name"] == "namespace" else parameter["schema"]["examples"][0]
                path = path.replace(f"{{{parameter['name']}}}", str(value).replace("/", "%2F"))
        required = [
            f"{parameter['name']}={example_of(parameter)}"
            for parameter in operation.declared.get("parameters", [])
            if parameter["in"] == "query" and parameter.get("required")
        ]
        assert "{" not in path, operation.path
        for body, media_type in bodies:
            yield Asked(
                operation, namespace, "?".join([path, *(["&".join(required)] if required else [])]), body, media_type
            )


def example_of(parameter: dict[str, Any]) -> Any:
    examples = parameter.get("schema", {}).get("examples") or [parameter.get("example", 1)]
    return examples[0]


def default_of(path: str) -> str | None:
    return "default" if path.split("/")[1] in ("kv", "ts", "es") else None


def needed(asked: Asked) -> tuple[str | None, str]:
    """The namespace (None: the service, ANY: any one) and the access that a request takes."""
    method, path = asked.operation.method, asked.operation.path
    if asked.namespace is None:
        if (method, path) in ANY_READER:
            return ANY, "read"
        return None, SERVICE_WIDE[method, path]
    if method in ("get", "head") or (asked.body is not None and asked.body.startswith(b'{"get": ["user:1"]}')):
        return asked.namespace, "read"
    if path == "/ns/{namespace}" and method == "delete":
        return asked.namespace, "admin"
    if path == "/ns/{namespace}" and method == "put" and asked.namespace != ABSENT:
        # The example changes the policy.
        return asked.namespace, "admin"
    return asked.namespace, "write"


# --- the store -----------------------------------------------------------------------------------------------


async def fill(engine: Engine, namespace: str) -> None:
    """Something of everything in a new namespace, under the keys of the document's examples."""
    await engine.namespaces.discard(namespace)
    value = Value(Encoding.JSON, json.dumps(f"{SECRET}-{namespace}").encode())
    for key in ("user:1", "user:2"):
        await engine.kv.put(namespace, key, value=value, media_type="application/json")
        await engine.ts.extend(namespace, key, points=Points.from_pairs([(1, f"{SECRET}-{namespace}")], dump))
        changes = [Change("item", "setitem", value)]
        await engine.es.apply(namespace, key, changes=changes, timestamp=1, revision=None)


async def content(engine: Engine, namespace: str) -> Any:
    """All that a namespace holds."""
    try:
        info = await engine.namespaces.describe(namespace)
    except Problem:
        return None
    entries = await engine.kv.list(namespace, values=True)
    series = await engine.ts.list(namespace, match=None, prefix="", after=None, limit=1000)
    points = [
        [chunk async for chunk in engine.ts.range(namespace, item.key, start=None, end=None, n=None, freq=None)]
        for item in series.items
    ]
    sequences = await engine.es.list(namespace, match=None, prefix="", after=None, limit=1000)
    return info, entries, series, [[list(chunk) for chunk in chunks] for chunks in points], sequences


async def holders(engine: Engine) -> list[Holder]:
    """Every kind of token."""

    async def token(*globs: str, access: str = "read", **options: Any) -> tuple[str, Any]:
        made = await engine.tokens.create(globs, LEVELS[access], **options)
        return f"Bearer {made.text}", made.info

    expired, _ = await token("*", access="admin", lifetime_seconds=0.001)
    revoked, info = await token("*", access="admin")
    await engine.tokens.revoke(info.id)
    rotated, info = await token("*", access="admin")
    await engine.tokens.rotate(info.id)
    unknown = f"Bearer rst_{'0' * 16}_{'A' * 43}"
    found = [
        Holder("nobody", None),
        Holder("malformed", "Bearer x"),
        Holder("another scheme", f"Basic {ADMIN}"),
        Holder("unknown", unknown),
        Holder("expired", expired),
        Holder("revoked", revoked),
        Holder("rotated", rotated),
    ]
    for level in NAMESPACE_LEVELS:
        found.append(Holder(f"{level} on its own", (await token(OWN, access=level))[0], frozenset({OWN}), level))
        found.append(Holder(f"{level} on a glob", (await token("team-*", access=level))[0], frozenset({OWN}), level))
    # All names have to be looked at for this one.
    found.append(Holder("read on an ending", (await token("*-own"))[0], frozenset({OWN}), "read"))
    found.append(Holder("read everywhere", (await token("*"))[0], level="read", everywhere=True))
    found.append(Holder("metrics", (await token("*", access="metrics"))[0], level="metrics"))
    found.append(Holder("admin everywhere", f"Bearer {ADMIN}", level="admin", everywhere=True))
    return found


# --- the matrix ----------------------------------------------------------------------------------------------


def said(answer: httpx2.Response) -> Any:
    """The whole answer but for its date."""
    return answer.status_code, {**answer.headers, "date": ""}, answer.text


@pytest.mark.anyio
async def test_nothing_beyond_a_grant(serve, tmp_path):
    dsn = f"sqlite:///{tmp_path / 'store.db'}"
    service = serve(
        dsn,
        env={"RSTORED_ADMIN_TOKEN": ADMIN, "RSTORED_TOKEN_CACHE_SECONDS": "300"},
        limits={"FAILED_AUTHENTICATIONS_PER_MINUTE_MAX": 1_000_000},
    )
    backend = await backend_class(dsn).open(dsn)
    engine = Engine(backend)
    asked = [request for operation in OPERATIONS for request in requests_of(operation)]
    assert len(asked) > 120
    try:
        for namespace in (THEIRS, "default"):
            await fill(engine, namespace)
        async with httpx2.AsyncClient(base_url=service.url, timeout=30) as http:
            for holder in await holders(engine):
                await fill(engine, OWN)
                beyond = [n for n in (THEIRS, ABSENT, "default") if not holder.allows(n, "read")]
                before = [await content(engine, namespace) for namespace in beyond]
                answers = []
                for request in asked:
                    if holder.name == "admin everywhere" and request.operation.method not in ("get", "head"):
                        continue  # It may do all of it; the tests of each operation are those of what it does.
                    answers.append((request, await send(http, request, holder)))
                for request, answer in answers:
                    check(request, holder, answer)
                check_alike(holder, answers)
                assert [await content(engine, namespace) for namespace in beyond] == before, holder.name
    finally:
        await engine.stop()
        await backend.close()
    assert "Traceback" not in service.log
    assert ADMIN not in service.log


async def send(http: httpx2.AsyncClient, request: Asked, holder: Holder) -> httpx2.Response:
    headers = {"X-Request-Id": "one-for-all"}
    if holder.authorization is not None:
        headers["Authorization"] = holder.authorization
    if request.media_type is not None:
        headers["Content-Type"] = request.media_type
    method = request.operation.method.upper()
    url = http.base_url.copy_with(raw_path=request.target.encode())
    return await http.request(method, url, headers=headers, content=request.body)


def check(request: Asked, holder: Holder, answer: httpx2.Response) -> None:
    """The answer is the one that this holder shall have."""
    about = (holder.name, request.operation.method, request.target, answer.status_code, answer.text[:300])
    if (request.operation.method, request.operation.path) in PUBLIC:
        assert answer.status_code == 200, about
        return
    assert answer.status_code < 500, about
    if holder.level is None:
        assert answer.status_code == 401, about
        assert answer.headers["www-authenticate"].startswith("Bearer"), about
        assert SECRET not in answer.text
        return
    allowed = holder.allows(*needed(request))
    assert answer.status_code != 401, about
    assert (answer.status_code == 403) != allowed, about
    if not holder.everywhere:
        # Whatever it was allowed, of the others there is not even a name, but the one that it gave.
        told = answer.text.replace(str(request.namespace), "")
        assert SECRET + "-" + THEIRS not in told, about
        assert SECRET + "-default" not in told, about
        assert THEIRS not in told, about
    if request.operation.path == "/ns" and allowed and not holder.everywhere:
        assert [item["namespace"] for item in answer.json()["items"]] in ([OWN], []), about


def check_alike(holder: Holder, answers: list[tuple[Asked, httpx2.Response]]) -> None:
    """To a holder that does not reach them, a namespace that is there and one that is not answer alike."""
    if holder.everywhere:
        return

    def by(request: Asked) -> tuple[str, str, bytes | None]:
        return request.operation.method, request.operation.path, request.body

    for about, group in itertools.groupby(sorted(answers, key=lambda pair: str(by(pair[0]))), lambda pair: by(pair[0])):
        found = {request.namespace: said(answer) for request, answer in group}
        if THEIRS in found:
            assert found[THEIRS] == found[ABSENT] == found["default"], (holder.name, about)
            assert found[THEIRS][0] in (401, 403), (holder.name, about)


# --- what is served ------------------------------------------------------------------------------------------


def test_every_route_is_foreseen_here():
    """A new route outside the namespaces needs a line above, where somebody thinks about who may use it."""
    known = PUBLIC | ANY_READER | SERVICE_WIDE.keys()
    for operation in OPERATIONS:
        if "{namespace}" not in operation.path and default_of(operation.path) is None:
            assert (operation.method, operation.path) in known, operation.path
        is_public = (operation.method, operation.path) in PUBLIC
        assert ("security" not in operation.declared) == is_public, operation.path
        assert ("401" not in operation.declared["responses"]) == is_public, operation.path
    served = {(row.method.lower(), row.path) for row in create_app(Settings()).front_door.routes.table()}
    documented = {(operation.method, operation.path) for operation in OPERATIONS}
    assert served - documented == {
        ("get", "/docs"),
        ("get", "/openapi.json"),
        ("head", "/docs"),
        ("head", "/openapi.json"),
    }


def test_a_route_of_no_namespace_has_to_say_its_rule():
    with pytest.raises(ValueError, match="needs a rule"):
        Operations("x", "x").add("GET", "/x", summary="x", answers={200: Answer("x")}, both_forms=False)(example_of)


# --- two processes -------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("backend", BACKENDS)
async def test_the_end_of_a_token_is_its_end_on_every_process(serve, tmp_path, backend):
    """Of a service with two workers, and of another one that has no token of its own."""
    if reason := BACKENDS[backend].missing():
        pytest.skip(reason)
    dsn, cache_seconds = BACKENDS[backend].fresh(tmp_path), 0.5
    env = {"RSTORED_TOKEN_CACHE_SECONDS": str(cache_seconds)}
    first = serve(dsn, env={**env, "RSTORED_ADMIN_TOKEN": ADMIN, "RSTORED_WORKERS": "2"})
    second = serve(dsn, env=env)
    admin = {"Authorization": f"Bearer {ADMIN}"}

    async def statuses(text: str) -> set[int]:
        """How the processes answer: each connection may come to another worker."""
        headers = {"Authorization": f"Bearer {text}", "Connection": "close"}
        async with httpx2.AsyncClient(headers=headers) as http:
            return {(await http.get(f"{url}/")).status_code for url in [first.url] * 8 + [second.url]}

    async with httpx2.AsyncClient(base_url=first.url, headers=admin) as http:

        async def make(**options: Any) -> tuple[str, str]:
            made = await http.post("/tokens", json={"namespaces": ["*"], "access": "write", **options})
            assert await statuses(made.json()["token"]) == {200}
            return made.json()["id"], made.json()["token"]

        revoked, rotated, brief = await make(), await make(), await make(lifetime_seconds=2)
        until = time.monotonic() + 2
        assert (await http.delete(f"/tokens/{revoked[0]}")).status_code == 204
        renewed = (await http.post(f"/tokens/{rotated[0]}/rotate")).json()["token"]
        await asyncio.sleep(cache_seconds + 0.1)
        assert await statuses(revoked[1]) == await statuses(rotated[1]) == {401}
        assert await statuses(renewed) == {200}
        await asyncio.sleep(max(until - time.monotonic(), 0))
        assert await statuses(brief[1]) == {401}
    assert httpx2.get(f"{second.url}/").status_code == 401
