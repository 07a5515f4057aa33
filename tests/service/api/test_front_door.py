"""The front door: what every route has in common."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator

import anyio
import anyio.lowlevel
import fastapi
import httpx2
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route
from tests.waiting import SECONDS_MAX

from rstored.api.access import PUBLIC
from rstored.api.asgi import ASGIApp
from rstored.api.front_door import FrontDoor
from rstored.api.openapi import declare_routes
from rstored.api.operations import Answer, Operation, Operations
from rstored.api.parameters import Query
from rstored.api.replies import Reply
from rstored.api.requests import Request
from rstored.api.routing import RouteTree
from rstored.api.state import ServiceState
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

KEYS = [
    "a/b",
    "..",
    ".",
    "a?b#c",
    "%2F",
    "%",
    " ",
    "+",
    "\n",
    "\r\nX: y",
    "🌻",
    "x" * 512,
    "é" * 256,
    "\x7f",
    '"',
    "~",
    ";=",
]


def quoted(key: str) -> str:
    """Every byte escaped, so that no URL library has an opinion."""
    return "".join(f"%{byte:02X}" for byte in key.encode())


# --- the table of routes -----------------------------------------------------------------------------------


def test_the_front_door_serves_just_what_fastapi_declares():
    declared = declare_routes()
    front_door = FrontDoor(declared, contextlib.nullcontext)
    routes = {
        (route.path, method) for route in declared.routes if isinstance(route, Route) for method in route.methods or ()
    }
    assert {(row.path, row.method) for row in front_door.routes.table()} == routes
    assert len(front_door.routes.table()) == len(routes)


def test_every_data_route_stands_twice():
    paths = {(row.path, row.method) for row in RouteTree(declare_routes()).table()}
    plain = {(path, method) for path, method in paths if path.startswith(("/kv", "/ts", "/es"))}
    assert len(plain) > 15
    assert {(f"/ns/{{namespace}}{path}", method) for path, method in plain} == {
        (path, method) for path, method in paths if path.startswith("/ns/{namespace}/")
    }


def test_without_docs_their_routes_are_gone():
    paths = {row.path for row in RouteTree(declare_routes(docs=False)).table()}
    assert "/docs" not in paths
    assert "/openapi.json" not in paths


def test_only_the_document_and_its_page_are_not_operations():
    others = [getattr(route, "path", "") for route in declare_routes().routes if not isinstance(route, APIRoute)]
    assert sorted(others) == ["/docs", "/openapi.json"]
    for route in declare_routes(docs=False).routes:
        assert isinstance(route, Route)
        assert isinstance(route.endpoint, Operation)


def test_a_variable_must_not_hide_a_literal():
    app = fastapi.FastAPI(openapi_url=None)
    for path in ("/kv/{key}", "/kv/all"):
        app.add_route(path, lambda _: None, methods=["GET"])
    with pytest.raises(ValueError, match="hide"):
        FrontDoor(app, contextlib.nullcontext)


async def test_before_it_runs_there_is_nothing_to_serve_from():
    app = FrontDoor(declare_routes(), contextlib.nullcontext)
    with pytest.raises(RuntimeError, match="not running"):
        _ = app.state


# --- paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
async def test_every_legal_key_under_both_forms(http, key):
    for prefix in ("", "/ns/default", "/ns/team"):
        put = await http.put(f"{prefix}/kv/{quoted(key)}", content=key.encode())
        assert put.status_code == (204 if prefix == "/ns/default" else 201)
        assert (await http.get(f"{prefix}/kv/{quoted(key)}")).content == key.encode()
        assert [item["key"] for item in (await http.get(f"{prefix}/kv")).json()["items"]] == [key]
    assert (await http.delete(f"/kv/{quoted(key)}")).status_code == 204
    assert (await http.get("/ns/default/kv")).json()["items"] == []
    assert len((await http.get("/ns/team/kv")).json()["items"]) == 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/kv/", "invalid-key"),
        ("/kv/%00", "invalid-key"),
        ("/kv/%ff", "invalid-key"),
        ("/kv/%zz", "invalid-key"),
        ("/kv/%ed%a0%80", "invalid-key"),
        ("/kv/" + "x" * 513, "invalid-key"),
        ("/ns/a%20b/kv", "invalid-namespace"),
        ("/ns//kv", "invalid-namespace"),
        ("/ns/" + "n" * 129, "invalid-namespace"),
        ("/kv/a/", "route-not-found"),
        ("/kv/a/b", "route-not-found"),
        ("/healthz/", "route-not-found"),
        ("/ts/a", "route-not-found"),
        ("/ns/a/", "route-not-found"),
        ("/kv/" + "x" * 9000, "uri-too-long"),
        ("/kv?match=" + "x" * 9000, "uri-too-long"),
    ],
)
async def test_paths_that_lead_nowhere(http, path, code):
    answer = await http.get(path)
    problem = answer.json()
    assert problem["code"] == code
    assert problem["status"] == answer.status_code
    assert answer.headers["content-type"] == "application/problem+json"


# --- methods -----------------------------------------------------------------------------------------------


async def test_a_wrong_method_is_told_the_right_ones(http):
    answer = await http.patch("/kv/k")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PUT"
    assert answer.json()["code"] == "method-not-allowed"
    assert (await http.request("OPTIONS", "/nope")).status_code == 404
    options = await http.request("OPTIONS", "/ns/a/ts/k/range")
    assert (options.status_code, options.headers["allow"]) == (204, "DELETE, GET, OPTIONS, POST")
    assert options.content == b""


async def test_head_is_get_without_the_body(http):
    await http.put("/kv/k?ttl=1000", json={"a": 1})
    get, head = await http.get("/kv/k"), await http.head("/kv/k")
    assert (head.status_code, head.content) == (200, b"")
    names = ("content-type", "content-length", "etag", "rstore-expires", "x-content-type-options")
    assert all(get.headers[name] == head.headers[name] for name in names)
    missing = await http.head("/kv/absent")
    assert (missing.status_code, missing.content) == (404, b"")


async def test_a_body_where_none_belongs_is_ignored(http):
    await http.put("/kv/k", json=1)
    assert (await http.request("GET", "/kv/k", content=b"x" * 1000)).json() == 1
    assert (await http.request("DELETE", "/kv/k", content=b"x" * 1000)).status_code == 204


# --- request ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/kv", "/nope", "/openapi.json", "/kv/%00", "/metrics"])
async def test_a_request_id_goes_through_everything(http, path):
    answer = await http.get(path, headers={"X-Request-Id": "My-Id.1"})
    assert answer.headers["x-request-id"] == "My-Id.1"
    if answer.status_code >= 400:
        assert answer.json()["request_id"] == "My-Id.1"


@pytest.mark.parametrize("wrong", ["", "a b", "x" * 129, "é", "a\tb", "\x7f"])
async def test_a_request_id_that_may_not_be_one_is_replaced(http, wrong):
    first = await http.get("/nope", headers={"X-Request-Id": wrong.encode("latin-1")})
    second = await http.get("/nope")
    made = [answer.headers["x-request-id"] for answer in (first, second)]
    assert all(re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", request_id) for request_id in made)
    assert made[0] != made[1]
    assert first.json()["request_id"] == made[0]


# --- what the service does wrong itself --------------------------------------------------------------------

broken = Operations("broken", "Operations that fail.")


class StreamQuery(Query):
    good: int
    fails: bool = False
    endless: bool = False


closed: list[int] = []


class Unhandled(Exception):
    """Nothing foresees it."""


@broken.add("GET", "/raises", summary="Raise", answers={200: Answer("Never")}, both_forms=False, rule=PUBLIC)
async def raises(request: Request) -> Reply:
    """Raises."""
    raise Unhandled("a secret value")


@broken.add("GET", "/streams", summary="Stream", answers={200: Answer("Some")}, both_forms=False, rule=PUBLIC)
async def streams(request: Request, query: StreamQuery) -> Reply:
    """Streams so many chunks, then fails."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            for number in range(query.good):
                yield b"%d\n" % number
            if query.fails:
                raise Problem("backend-unavailable", "it went away")
            while query.endless:
                yield b"x" * 10_000
                await anyio.lowlevel.checkpoint()
        finally:
            closed.append(query.good)

    return Reply(200, (), chunks())


@pytest.fixture
async def broken_app(app: ASGIApp):
    declared = fastapi.FastAPI(openapi_url=None)
    broken.declare_on(declared)

    @contextlib.asynccontextmanager
    async def state() -> AsyncIterator[ServiceState]:
        yield app.state

    front_door = FrontDoor(declared, state)
    closed.clear()
    async with front_door.running():
        yield ASGIApp(front_door)


@pytest.fixture
async def broken_http(broken_app: ASGIApp):
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(broken_app), base_url="http://localhost") as http:
        yield http


async def test_an_unforeseen_error_is_logged_and_its_answer_tells_nothing(broken_http, caplog):
    answer = await broken_http.get("/raises", headers={"X-Request-Id": "r-1"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal-error")
    assert "secret" not in answer.text
    assert "Unhandled" not in answer.text
    (record,) = [record for record in caplog.records if record.name == "rstored.requests"]
    assert record.request_id == "r-1"
    assert record.route == "/raises"
    assert record.exc_info[0] is Unhandled


async def test_a_stream_that_fails_at_once_is_a_problem(broken_http):
    for good in (0, 1):
        answer = await broken_http.get(f"/streams?good={good}&fails=true")
        assert (answer.status_code, answer.json()["code"]) == (503, "backend-unavailable")
        assert closed.pop() == good


async def test_a_stream_that_fails_later_is_cut_off_and_never_whole(broken_http):
    # The transport sees that the app returned without completing its answer; a server closes the connection.
    with pytest.raises(AssertionError):
        await broken_http.get("/streams?good=5&fails=true")
    assert closed == [5]


async def test_a_short_stream_has_a_length(broken_http):
    one = await broken_http.get("/streams?good=1")
    assert (one.content, one.headers["content-length"]) == (b"0\n", "2")
    assert (await broken_http.get("/streams?good=0")).headers["content-length"] == "0"
    many = await broken_http.get("/streams?good=30")
    assert many.content == b"".join(b"%d\n" % number for number in range(30))
    assert "content-length" not in many.headers
    assert closed == [1, 0, 30]


async def test_a_stream_stops_when_its_reader_goes(broken_app):
    sent = 0
    gone = anyio.Event()

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        nonlocal sent
        sent += len(message.get("body", b""))
        if sent > 100_000:
            gone.set()

    scope = {
        "type": "http",
        "method": "GET",
        "raw_path": b"/streams",
        "query_string": b"good=1&endless=true",
        "headers": [],
    }
    with anyio.fail_after(SECONDS_MAX):
        await broken_app(scope, receive, send)
    assert closed == [1]
    assert 100_000 < sent < 200_000


async def test_a_client_that_goes_before_its_body_arrives_changes_nothing(app, http):
    async def receive():
        return {"type": "http.disconnect"}

    sent: list[object] = []

    async def send(message):
        sent.append(message)

    headers = [(b"content-length", b"5")]
    scope = {"type": "http", "method": "PUT", "raw_path": b"/kv/k", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    assert sent == []
    assert (await http.get("/kv/k")).status_code == 404


async def test_a_sweep_that_fails_keeps_no_other_from_running(app, caplog):
    def fails() -> None:
        raise Unhandled

    swept = anyio.Event()
    app.front_door.sweeps[:0] = [fails]
    app.front_door.sweeps.append(swept.set)
    with anyio.fail_after(SECONDS_MAX):
        await swept.wait()
    assert "a sweep failed" in caplog.text


# --- the lifespan protocol ---------------------------------------------------------------------------------


async def lifespan(app: ASGIApp) -> list[str]:
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive():
        return next(events)

    async def send(message):
        sent.append(message["type"])
        if message["type"] == "lifespan.startup.complete":
            assert app.state.engine

    await app({"type": "lifespan"}, receive, send)
    return sent


async def test_a_server_may_run_the_lifespan(tmp_path):
    from rstored.app import create_app
    from rstored.settings import Settings

    app = create_app(Settings(dsn=f"sqlite:///{tmp_path / 'store.db'}"))
    for _ in range(2):
        assert await lifespan(app) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    failing = create_app(Settings(dsn=f"sqlite:///{tmp_path / 'nowhere' / 'store.db'}"))
    assert await lifespan(failing) == ["lifespan.startup.failed"]
    with pytest.raises(RuntimeError, match="does not speak telegraph"):
        await app({"type": "telegraph"}, None, None)
