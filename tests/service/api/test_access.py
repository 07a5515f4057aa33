"""Authentication and grants in the front door, over real tokens in a real file."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr
from tests import servers
from tests.conformance.backends import BACKENDS

from rstored.api.access import OPEN, Grant, Rate
from rstored.api.asgi import ASGIApp
from rstored.app import running_app
from rstored.backends import backend_class
from rstored.backends.abc import Commit, DeleteRecord, Slice, Update, namespace_place
from rstored.engine.engine import Engine
from rstored.engine.model import Access
from rstored.engine.namespaces import RESERVED
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.settings import Settings

pytestmark = pytest.mark.anyio

ADMIN = secrets.token_hex(16)
PUBLIC = {"/healthz", "/readyz", "/docs", "/openapi.json"}


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"dsn": f"sqlite:///{tmp_path / 'store.db'}", "admin_token": SecretStr(ADMIN), "token_cache_seconds": 0.2}


@pytest.fixture
async def closed(settings: dict[str, Any], anyio_backend: str) -> AsyncIterator[ASGIApp]:
    async with running_app(Settings(**settings)) as app:
        yield app


def client(app: ASGIApp, token: str | None = None, address: str = "192.0.2.1") -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app, client=(address, 1234))
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=bearer(token) if token else {})


@pytest.fixture
async def admin(closed: ASGIApp) -> AsyncIterator[httpx2.AsyncClient]:
    async with client(closed, ADMIN) as http:
        yield http


async def make(admin: httpx2.AsyncClient, *namespaces: str, access: str = "read", **options: Any) -> dict[str, Any]:
    made = await admin.post("/tokens", json={"namespaces": namespaces, "access": access, **options})
    assert made.status_code == 201, made.text
    return made.json()


def code(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# --- grants --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("globs", "reached", "beyond"),
    [
        (["team"], ["team"], ["team-a", "tea", "Team", ""]),
        (["team-*"], ["team-", "team-a", "team-a-b"], ["team", "a-team-", "xteam-a"]),
        (["*-eu"], ["-eu", "a-eu"], ["a-eu-b", "eu"]),
        (["a?c", "b"], ["abc", "a.c", "b"], ["ac", "abbc", "bb"]),
        (["a*c"], ["ac", "abc"], ["bac", "acb"]),
        (["*"], ["x", "team"], []),
        ([], [], ["x", ""]),
    ],
)
def test_what_a_grant_reaches(globs, reached, beyond):
    grant = Grant("id", globs, Access.WRITE)
    for name in reached:
        assert grant.reaches(name)
        assert grant.allows(name, Access.READ)
        assert grant.allows(name, Access.WRITE)
        assert not grant.allows(name, Access.ADMIN)
    for name in beyond:
        assert not grant.reaches(name)
        assert not grant.allows(name, Access.READ)
    assert grant.allows(None, Access.WRITE) == (globs == ["*"])
    assert not grant.allows(None, Access.ADMIN)


def test_a_rate_lets_as_many_pass_at_once_as_in_a_second():
    rate = Rate(5)
    for _ in range(5):
        rate.take(100.0)
    with pytest.raises(Problem) as caught:
        rate.take(100.1)
    assert caught.value.code == "rate-limited"
    assert caught.value.members == {"limit": 5, "retry_after_seconds": 1}
    rate.take(100.2)
    with pytest.raises(Problem):
        rate.take(100.3)
    for _ in range(5):
        rate.take(200.0)
    with pytest.raises(Problem):
        rate.take(200.0)


# --- closed stores -------------------------------------------------------------------------------------------


async def test_the_first_token_closes_a_running_open_store(app, settings, tmp_path):
    settings = {**settings, "admin_token": None}
    async with running_app(Settings(**settings)) as app, client(app) as http:
        assert (await http.put("/kv/k", json=1)).status_code == 201
        assert app.state.authentication.known(None, time.perf_counter()) is OPEN
        # Another process makes a token.
        backend = await backend_class(settings["dsn"]).open(settings["dsn"])
        engine = Engine(backend)
        made = await engine.tokens.create(["default"], Access.READ)
        await asyncio.sleep(0.25)
        assert code(await http.get("/kv/k")) == (401, "unauthenticated")
        assert (await http.get("/kv/k", headers=bearer(made.text))).json() == 1
        await engine.tokens.revoke(made.info.id)
        await asyncio.sleep(0.25)
        assert code(await http.get("/kv/k", headers=bearer(made.text))) == (401, "unauthenticated")
        assert code(await http.get("/kv/k")) == (401, "unauthenticated")
        await engine.stop()
        await backend.close()
    async with running_app(Settings(**settings)) as app, client(app) as http:
        # Also to a process that starts later the store is closed.
        assert code(await http.get("/kv/k")) == (401, "unauthenticated")


async def test_an_admin_token_of_the_environment_closes_the_store_for_good(settings):
    without = Settings(**{**settings, "admin_token": None})
    async with running_app(without) as before, client(before) as http:
        assert (await http.put("/kv/k", json=1)).status_code == 201
        async with running_app(Settings(**settings)):
            # A process that does not have the token in its environment, beside one that has it.
            await asyncio.sleep(0.25)
            assert code(await http.get("/kv/k")) == (401, "unauthenticated")
    async with running_app(without) as after, client(after) as http:
        for headers in ({}, bearer(ADMIN)):
            assert code(await http.get("/kv/k", headers=headers)) == (401, "unauthenticated")


async def outcomes(app: ASGIApp, headers: dict[str, str]) -> set[tuple[int, str]]:
    """What every route that is not public answers."""
    found = set()
    async with client(app) as http:
        for path, method in app.front_door.routes.table():
            if path not in PUBLIC and method != "HEAD":
                path = path.format(namespace="n", key="k", token_id="0" * 16)
                found.add(code(await http.request(method, path, content=b"{}", headers=headers)))
    return found


async def never_open(app: ASGIApp, reason: str = "tokens-lost") -> None:
    async with client(app) as http:
        assert code(await http.get("/readyz")) == (503, reason)
        assert (await http.get("/healthz")).status_code == 200
    assert await outcomes(app, {}) == {(401, "unauthenticated")}
    assert await outcomes(app, bearer("rst_" + "0" * 16 + "_" + "A" * 43)) == {(503, reason)}


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_store_that_is_said_to_be_closed_is_never_open(settings, tmp_path, backend):
    """Whatever becomes of its storage: here it is empty, and later loses the record by which it is closed."""
    if reason := BACKENDS[backend].missing():
        pytest.skip(reason)
    dsn = BACKENDS[backend].fresh(tmp_path)
    limits = Limits(failed_authentications_per_minute_max=1_000_000)
    said = Settings(dsn=dsn, closed=True, token_cache_seconds=0, limits=limits)

    async with running_app(said) as app:
        await never_open(app)
        made = await app.state.engine.tokens.create(["*"], Access.WRITE)
        async with client(app, made.text) as http:
            assert (await http.get("/readyz")).status_code == 200
            assert (await http.put("/kv/k", json=1)).status_code == 201
        assert await outcomes(app, {}) == {(401, "unauthenticated")}
        assert await outcomes(app, bearer("x")) == {(401, "unauthenticated")}
        # A process that was not told keeps what it has seen.
        async with running_app(Settings(dsn=dsn, token_cache_seconds=0, limits=limits)) as beside:
            assert await outcomes(beside, {}) == {(401, "unauthenticated")}
            await lose_tokens(app, made.info.id)
            await never_open(app)
            await never_open(beside)
    async with running_app(said) as app:
        await never_open(app)
    async with running_app(Settings(dsn=dsn)) as app, client(app) as http:
        # That is what the setting is for.
        assert (await http.get("/kv/k")).json() == 1


@pytest.mark.skipif(servers.missing_redis() is not None, reason="no Redis server is installed")
async def test_a_flushed_redis_opens_no_store_that_is_said_to_be_closed():
    with servers.RedisServer() as server:
        said = Settings(dsn=server.dsn, closed=True, token_cache_seconds=0)
        async with running_app(said) as app:
            made = await app.state.engine.tokens.create(["*"], Access.WRITE)
            async with client(app, made.text) as http:
                assert (await http.put("/kv/k", json=1)).status_code == 201
                server.cli("FLUSHDB")
                assert code(await http.put("/kv/k", json=1)) == (503, "backend-unavailable")
            # The store that it serves is gone; only a restart would have it serve what is there now.
            await never_open(app, "backend-unavailable")
        async with running_app(said) as app:
            await never_open(app)


async def lose_tokens(app: ASGIApp, *token_ids: str) -> None:
    """Delete the tokens, and the record by which the store is closed, as an eviction would."""

    place = namespace_place(RESERVED)

    def plan(_: Any) -> Any:
        return Commit([DeleteRecord(place)], None)
        yield

    for token_id in token_ids:
        assert await app.state.engine.tokens.revoke(token_id)
    assert await app.state.backend.update([Update((place,), plan)]) == [None]


async def test_what_is_public_and_what_any_token_may(closed, admin):
    made = await make(admin, "mine")
    async with client(closed) as http, client(closed, made["token"]) as holder:
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert (await http.get(path)).status_code == 200
        for path in ("/", "/ns", "/kv/k", "/metrics", "/tokens", "/ns/mine"):
            assert code(await http.get(path)) == (401, "unauthenticated")
        assert (await holder.get("/")).status_code == 200
        assert (await holder.get("/ns")).json()["items"] == []
        assert code(await holder.get("/metrics")) == (403, "access-denied")
        assert code(await holder.get("/kv/k")) == (403, "access-denied")
        # What is static says nothing of the store.
        assert code(await http.get("/nope")) == (404, "route-not-found")
        assert code(await http.patch("/kv/k")) == (405, "method-not-allowed")
        assert (await http.options("/kv/k")).status_code == 204


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic {}",
        "{}",
        "Bearer {} x",
        "Bearer {}, Bearer {}",
        'Bearer "{}"',
        "Bearer {}x",
        "Bearer rst_0123456789abcdef_" + "A" * 43,
        "Bearer \xe9",
        "Bearer " + "x" * 5000,
    ],
)
async def test_what_is_not_a_valid_authorization(closed, header):
    async with client(closed) as http:
        for form in (header, header.replace("Bearer", "bearer")):
            found = await http.get("/kv/k", headers={"Authorization": form.replace("{}", ADMIN).encode("latin-1")})
            assert code(found) == (401, "unauthenticated")
            assert found.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert (await http.get("/kv/k")).headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Basic {}", "{}", "Bearer", "Bearer {} x"])
async def test_a_header_that_holds_no_token_is_not_called_an_expired_one(closed, header):
    async with client(closed) as http:
        detail = (await http.get("/kv/k", headers={"Authorization": header.format(ADMIN)})).json()["detail"]
        assert detail == "the header has no bearer token: send one as `Authorization: Bearer …`"
        assert "has expired" in (await http.get("/kv/k", headers=bearer("x"))).json()["detail"]


async def test_the_scheme_is_read_as_http_does(closed):
    async with client(closed) as http:
        for form in (f"bearer {ADMIN}", f"BEARER  {ADMIN}"):
            assert (await http.get("/kv", headers={"Authorization": form})).status_code == 200
        assert (await http.head("/kv/k", headers=bearer("x"))).status_code == 401
        twice = [("Authorization", f"Bearer {ADMIN}"), ("Authorization", f"Bearer {ADMIN}")]
        assert (await http.get("/kv", headers=twice)).status_code == 401


async def test_access_comes_before_query_and_body(closed, admin):
    holder = (await make(admin, "mine", access="read"))["token"]
    async with client(closed) as stranger, client(closed, holder) as http:
        for request in (
            ("GET", "/ns/theirs/kv?limit=x", {}),
            ("GET", "/ns/theirs/kv?nonsense=1", {}),
            ("GET", "/ns/theirs/ts/s/range", {"headers": {"Accept": "image/png"}}),
            ("PUT", "/ns/theirs/kv/k", {"content": b"x", "headers": {"Content-Encoding": "gzip"}}),
            ("POST", "/ns/theirs/kv", {"content": b"{"}),
            ("PUT", "/ns/mine/kv/k?ttl=0", {"json": 1}),
        ):
            method, path, options = request
            assert code(await http.request(method, path, **options)) == (403, "access-denied"), request
            assert code(await stranger.request(method, path, **options)) == (401, "unauthenticated"), request


async def test_levels(closed, admin):
    await admin.put("/ns/mine/kv/k", json=1)
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/ns/mine/kv/k", {}),
        ("HEAD", "/ns/mine/kv/k", {}),
        ("POST", "/ns/mine/kv", {"json": {"get": ["k"]}}),
        ("POST", "/ns/mine/kv", {"json": {"get": ["k"], "set": [{"key": "j", "value": 1}]}}),
        ("POST", "/ns/mine/kv", {"json": {"delete": ["j"]}}),
        ("PUT", "/ns/mine/kv/k", {"json": 2}),
        ("PUT", "/ns/mine", {}),
        ("PUT", "/ns/mine", {"json": {"sealed_only": False}}),
        ("PUT", "/ns/mine", {"json": {"sealed_only": True}}),
        ("PUT", "/ns/mine", {"json": {"sealed_only": False}}),
        ("GET", "/tokens", {}),
        ("DELETE", "/ns/mine", {}),
    ]
    by_level = {}
    for level in ("read", "write", "admin"):
        async with client(closed, (await make(admin, "mine", access=level))["token"]) as http:
            by_level[level] = [
                (await http.request(method, path, **options)).status_code for method, path, options in requests
            ]
    assert by_level == {
        "read": [200, 200, 200, 403, 403, 403, 403, 403, 403, 403, 403, 403],
        "write": [200, 200, 200, 200, 200, 204, 200, 200, 403, 200, 403, 403],
        "admin": [200, 200, 200, 200, 200, 204, 200, 200, 200, 200, 403, 204],
    }


async def test_a_listing_of_namespaces_shows_no_other(closed, admin, monkeypatch):
    monkeypatch.setattr("rstored.engine.listing.SCAN_MAX", 5)
    monkeypatch.setattr("rstored.engine.listing.CHUNK", 5)
    names = [f"{team}{n:02}{end}" for team in "abc" for n in range(4) for end in ("", "-x")]
    for name in names:
        await admin.put(f"/ns/{name}")
    for globs in (["b*"], ["*-x"], ["b0?", "c*"], ["zz*"], ["*"], ["c00", "a01", "a01-x", "b0*", "b00", "b00-*"]):
        grant = Grant("", globs, Access.READ)
        async with client(closed, (await make(admin, *globs))["token"]) as http:
            for query, asked in (
                ("", names),
                ("&prefix=b", [name for name in names if name.startswith("b")]),
                ("&match=*1*", [name for name in names if "1" in name]),
                ("&prefix=b0&match=*1*", [name for name in names if name.startswith("b0") and "1" in name]),
            ):
                for limit in (2, 100):
                    found, cursor = [], ""
                    while cursor is not None:
                        after = f"&cursor={cursor}" if cursor else ""
                        page = (await http.get(f"/ns?limit={limit}{query}{after}")).json()
                        found += [item["namespace"] for item in page["items"]]
                        cursor = page["cursor"]
                        if cursor is not None:
                            assert grant.reaches(base64.urlsafe_b64decode(cursor + "==").decode())
                    assert found == sorted(name for name in asked if grant.reaches(name)), (globs, query, limit)


@pytest.mark.parametrize(
    ("globs", "told"),
    [
        (["mine-*"], {"mine-a"}),
        (["mine-*", "z", "mine-*-x"], {"mine-a", "z"}),
        (["mine-a"], {"mine-a"}),
        (["mine?a", "z"], {"mine", "mine-a", "z"}),
    ],
)
async def test_how_long_a_listing_takes_tells_nothing_of_others(closed, admin, globs, told):
    for name in ("mine", "mine-a", "other-1", "other-2", "z", "z-secret"):
        await admin.put(f"/ns/{name}")
    looked_at: list[str] = []
    read = closed.state.backend.read

    async def watched(queries: Any) -> Any:
        found = await read(queries)
        parts = [part for parts in found for part in parts if isinstance(part, Slice)]
        looked_at.extend(name for part in parts for name, _ in part.items)
        return found

    async with client(closed, (await make(admin, *globs))["token"]) as http:
        await http.get("/ns")
        closed.state.backend.read = watched
        for query in ("", "?prefix=other", "?prefix=o", "?match=other*", "?prefix=mine&match=*-1", "?cursor=b3RoZXI"):
            assert (await http.get(f"/ns{query}")).status_code == 200
    assert looked_at
    assert set(looked_at) == told


# --- what is known of tokens, and for how long ---------------------------------------------------------------


async def test_a_known_token_asks_nothing_of_the_backend(settings):
    async with running_app(Settings(**{**settings, "token_cache_seconds": 60})) as app:
        reads = count_reads(app)
        async with client(app, ADMIN) as admin:
            token = (await make(admin, "*"))["token"]
        async with client(app, token) as http:
            await http.get("/healthz")
            reads.clear()
            answers = await asyncio.gather(*[http.get("/") for _ in range(20)])
            assert {answer.status_code for answer in answers} == {200}
            assert len(reads) == 1
            reads.clear()
            for _ in range(5):
                await http.get("/")
            assert reads == []
        async with client(app, token[:-1] + "_") as http:
            for _ in range(5):
                assert (await http.get("/")).status_code == 401
            # Nor does one that is known to be unknown.
            assert len(reads) == 1
        reads.clear()
        async with client(app, "no token at all") as http:
            assert (await http.get("/")).status_code == 401
            assert reads == []


def count_reads(app: ASGIApp) -> list[Any]:
    backend: Any = app.state.backend
    read, found = backend.read, []

    async def counted(queries: Any) -> Any:
        found.append(queries)
        return await read(queries)

    backend.read = counted
    return found


async def test_an_expiry_and_the_end_of_a_grace_are_on_time(settings):
    async with running_app(Settings(**{**settings, "token_cache_seconds": 60})) as app:
        async with client(app, ADMIN) as admin:
            brief = await make(admin, "*", lifetime_seconds=0.4)
            rotated = await make(admin, "*")
            renewed = await admin.post(f"/tokens/{rotated['id']}/rotate", json={"grace_seconds": 0.4})
            assert renewed.status_code == 200
        async with client(app) as http:
            for made in (brief, rotated):
                assert (await http.get("/", headers=bearer(made["token"]))).status_code == 200
            await asyncio.sleep(0.5)
            for made in (brief, rotated):
                assert (await http.get("/", headers=bearer(made["token"]))).status_code == 401
            assert (await http.get("/", headers=bearer(renewed.json()["token"]))).status_code == 200


async def test_nobody_is_let_in_unverified(settings, admin):
    token = (await make(admin, "*"))["token"]
    async with running_app(Settings(**{**settings, "token_cache_seconds": 0.2})) as app, client(app, token) as http:
        assert (await http.get("/")).status_code == 200

        async def failing(_: Any) -> Any:
            raise Problem("backend-unavailable", "the backend does not answer")

        backend: Any = app.state.backend
        read, backend.read = backend.read, failing
        await asyncio.sleep(0.25)
        answers = await asyncio.gather(*[http.get("/") for _ in range(3)])
        assert {code(answer) for answer in answers} == {(503, "backend-unavailable")}
        assert answers[0].headers["retry-after"] == "1"
        # The service's own token needs no backend.
        assert (await http.get("/", headers=bearer(ADMIN))).status_code == 200
        backend.read = read
        assert (await http.get("/")).status_code == 200


async def test_the_caches_are_bounded(settings, monkeypatch):
    """What was asked for longest ago is asked of the backend again."""
    monkeypatch.setattr("rstored.api.access.CACHED_MAX", 10)
    limits = Limits(failed_authentications_per_minute_max=1000)
    async with running_app(Settings(**{**settings, "token_cache_seconds": 60}, limits=limits)) as app:
        valid = [(await app.state.engine.tokens.create(["*"], Access.READ)).text for _ in range(30)]
        unknown = [token[:-1] + ("A" if token[-1] != "A" else "B") for token in valid]
        reads = count_reads(app)

        async def asked_for(token: str, status: int) -> int:
            """How often the backend was asked for this token."""
            reads.clear()
            async with client(app, token) as http:
                assert (await http.get("/")).status_code == status
            return len(reads)

        for tokens, status in ((valid, 200), (unknown, 401)):
            for token in tokens:
                await asked_for(token, status)
            assert [await asked_for(token, status) for token in tokens[-10:]] == [0] * 10
            assert [await asked_for(token, status) for token in tokens[:20]] == [1] * 20


async def test_a_token_is_known_as_one_however_it_is_spaced(settings):
    async with running_app(Settings(**{**settings, "token_cache_seconds": 60})) as app:
        made = await app.state.engine.tokens.create(["*"], Access.READ)
        reads = count_reads(app)
        async with client(app) as http:
            for spaces in range(1, 30):
                for scheme in ("Bearer", "bearer", "BEARER"):
                    header = {"Authorization": f"{scheme}{' ' * spaces}{made.text}"}
                    assert (await http.get("/", headers=header)).status_code == 200
        assert len(reads) == 1


# --- rates ---------------------------------------------------------------------------------------------------


async def test_guessing_is_slowed_and_the_others_go_on(settings):
    limits = Limits(failed_authentications_per_minute_max=3)
    async with running_app(Settings(**settings, limits=limits)) as app:
        async with client(app, ADMIN) as admin:
            known, fresh = await make(admin, "*"), await make(admin, "*")
        async with client(app) as http:
            assert (await http.get("/", headers=bearer(known["token"]))).status_code == 200
            for number in range(3):
                assert code(await http.get("/", headers=bearer(f"guess-{number}"))) == (401, "unauthenticated")
            refused = await http.get("/", headers=bearer("guess-4"))
            assert code(refused) == (429, "rate-limited")
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["retry_after_seconds"] == int(refused.headers["retry-after"])
            assert refused.json()["limit"] == 3
            # Whoever has a valid token is let in, whether this process has seen it before or not.
            for valid in (ADMIN, fresh["token"], known["token"]):
                assert (await http.get("/", headers=bearer(valid))).status_code == 200
            await asyncio.sleep(0.25)
            for valid in (ADMIN, fresh["token"], known["token"]):
                assert (await http.get("/", headers=bearer(valid))).status_code == 200
                assert code(await http.get("/", headers=bearer(valid + "x"))) == (429, "rate-limited")
            # Without a token there is nothing to guess at.
            assert code(await http.get("/")) == (401, "unauthenticated")


async def test_guessing_from_more_addresses_than_are_kept_is_slowed_too(settings, monkeypatch):
    monkeypatch.setattr("rstored.api.access.CACHED_MAX", 5)
    async with running_app(Settings(**settings, limits=Limits(failed_authentications_per_minute_max=3))) as app:
        statuses = []
        for number in range(20):
            async with client(app, f"guess-{number}", f"192.0.2.{number}") as http:
                statuses.append((await http.get("/")).status_code)
        assert statuses == [401] * 8 + [429] * 12
        # The first addresses have a count of their own.
        async with client(app, "guess", "192.0.2.0") as http:
            assert (await http.get("/")).status_code == 401


async def test_an_ipv6_network_is_one_client(settings):
    limits = Limits(failed_authentications_per_minute_max=2)
    async with running_app(Settings(**settings, limits=limits)) as app:
        statuses = []
        for number in range(4):
            async with client(app, f"guess-{number}", f"2001:db8::{number}") as http:
                statuses.append((await http.get("/")).status_code)
        assert statuses == [401, 401, 429, 429]
        async with client(app, "guess", "2001:db8:0:1::1") as http:
            assert (await http.get("/")).status_code == 401


async def test_a_token_has_its_rate(settings):
    async with running_app(Settings(**settings, limits=Limits(requests_per_second_max=3))) as app:
        async with client(app, ADMIN) as admin:
            first, second = await make(admin, "*"), await make(admin, "*")
        async with client(app, first["token"]) as http:
            answers = [await http.get("/") for _ in range(20)]
            statuses = [answer.status_code for answer in answers]
            assert statuses[:3] == [200, 200, 200]
            assert 429 in statuses
            refused = answers[statuses.index(429)]
            assert code(refused) == (429, "rate-limited")
            assert refused.headers["retry-after"] == "1"
            # It is counted beyond the time for which the token is known.
            assert (await http.get("/", headers=bearer(second["token"]))).status_code == 200
            assert (await http.get("/")).json() != {}


# --- tokens by REST -----------------------------------------------------------------------------------------


async def test_tokens_by_rest(closed, admin):
    made = await admin.post(
        "/tokens", json={"namespaces": ["a", "b-*"], "access": "write", "label": "x", "lifetime_seconds": 3600}
    )
    assert made.headers["cache-control"] == "no-store"
    issued = made.json()
    text = issued.pop("token")
    assert re.fullmatch(r"rst_[0-9a-f]{16}_[\w-]{43}", text)
    assert issued["expires"] == issued["created"] + 3_600_000
    assert {name: issued[name] for name in ("namespaces", "access", "label")} == {
        "namespaces": ["a", "b-*"],
        "access": "write",
        "label": "x",
    }
    assert (await admin.get(f"/tokens/{issued['id']}")).json() == issued
    assert (await admin.get("/tokens")).json() == {"items": [issued], "cursor": None}
    rotated = await admin.post(f"/tokens/{issued['id']}/rotate")
    renewed = rotated.json()
    assert renewed.pop("token") != text
    assert renewed == issued
    assert rotated.headers["cache-control"] == "no-store"
    for body, pointer in (
        ({"namespaces": [], "access": "read"}, "/namespaces"),
        ({"namespaces": ["a", "~tokens"], "access": "read"}, "/namespaces/1"),
        ({"namespaces": ["a"], "access": "all"}, "/access"),
        ({"namespaces": ["a"], "access": "read", "lifetime_seconds": -1}, "/lifetime_seconds"),
    ):
        wrong = await admin.post("/tokens", json=body)
        assert code(wrong) == (422, "invalid-body")
        assert wrong.json()["pointer"] == pointer
    once = {"Idempotency-Key": "revoke"}
    for headers, status in ((once, 204), (once, 204), ({}, 404), ({"Idempotency-Key": "again"}, 404)):
        assert (await admin.delete(f"/tokens/{issued['id']}", headers=headers)).status_code == status
    assert code(await admin.get(f"/tokens/{issued['id']}")) == (404, "token-not-found")
    assert code(await admin.post(f"/tokens/{issued['id']}/rotate")) == (404, "token-not-found")
    assert (await admin.get("/tokens")).json()["items"] == []


async def test_an_open_store_makes_no_token_by_rest(http):
    for method, path in (
        ("GET", "/tokens"),
        ("POST", "/tokens"),
        ("GET", "/tokens/x"),
        ("DELETE", "/tokens/x"),
        ("POST", "/tokens/x/rotate"),
    ):
        refused = await http.request(method, path)
        assert code(refused) == (403, "access-denied")
        assert "rstored token create" in refused.json()["detail"]
    assert (await http.get("/")).status_code == 200


async def test_what_is_counted_and_logged(settings, caplog, tmp_path):
    caplog.set_level("DEBUG")
    async with running_app(Settings(**settings, access_log=True)) as app, client(app, ADMIN) as admin:
        made = await make(admin, "mine")
        async with client(app, made["token"]) as http:
            await http.get("/ns/mine/kv")
            await http.get("/ns/theirs/kv")
            await http.get("/", headers=bearer("wrong-" + made["token"]))
        metrics = (await admin.get("/metrics")).text
    assert 'method="GET",route="/ns/{namespace}/kv",status="403"' in metrics
    assert 'method="GET",route="/",status="401"' in metrics
    records = [vars(record) for record in caplog.records if record.name == "rstored.requests"]
    assert [record["token_id"] for record in records][:4] == ["RSTORED_ADMIN_TOKEN", made["id"], made["id"], ""]
    secret = made["token"].split("_", 2)[2]
    for told in (str(records), caplog.text, metrics, repr(Settings(**settings)), str(Settings(**settings))):
        assert secret not in told
        assert ADMIN not in told
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert made["id"].encode() in stored
    assert secret.encode() not in stored
    assert ADMIN.encode() not in stored


def path_of(template: str) -> str:
    return template.format(namespace="team-a", key="k", token_id="0" * 16)


def namespace_of(template: str) -> str | None:
    """What the log shall say of a path."""
    if "{namespace}" in template:
        return "team-a"
    return "default" if template.split("/")[1] in ("kv", "ts", "es") else None


async def test_the_access_log_says_who_asked_for_what_also_where_it_is_refused(settings, caplog):
    """Every route, with every kind of refusal there is before a request is looked at, and without one."""
    caplog.set_level("INFO")
    limits = Limits(failed_authentications_per_minute_max=20)
    async with running_app(Settings(**settings, access_log=True, limits=limits)) as app:
        async with client(app, ADMIN) as admin:
            beyond = await make(admin, "elsewhere", access="admin")
        table = app.front_door.routes.table()
        templates = sorted({path for path, _ in table})
        asked = [(path, method) for path, method in table] + [(path, "PATCH") for path in templates]
        holders = {"nobody": (None, ""), "stranger": ("x", ""), "beyond": (beyond["token"], beyond["id"])}
        holders["admin"] = (ADMIN, "RSTORED_ADMIN_TOKEN")
        statuses = set()
        for number, (token, token_id) in enumerate(holders.values()):
            address = f"192.0.2.{number}"
            async with client(app, token, address) as http:
                for template, method in asked:
                    caplog.clear()
                    answer = await http.request(method, path_of(template), content=b"{}")
                    (line,) = [vars(record) for record in caplog.records if record.message == "request"]
                    about = (template, method, token_id, answer.status_code)
                    assert line["namespace"] == namespace_of(template), about
                    assert line["client"] == address, about
                    assert line["status"] == answer.status_code, about
                    is_checked = method != "PATCH" and template not in PUBLIC
                    assert line["token_id"] == (token_id if is_checked else ""), about
                    assert method == "PATCH" or line["route"] == template, about
                    statuses.add(answer.status_code)
        assert {200, 401, 403, 404, 405, 422, 429} <= statuses


@pytest.mark.parametrize(
    ("path", "namespace"),
    [
        ("/ns/%74eam-a/kv/x", "team-a"),
        ("/ns/team%2Fa/kv/x", None),
        ("/ns/%FF/kv/x", None),
        ("/ns/" + "x" * 129 + "/kv/x", None),
        ("/ns/team-a/nowhere", None),
        ("/nowhere", None),
        ("/kv/" + "k" * 9000, None),
    ],
)
async def test_a_path_that_names_no_namespace_is_logged_without_one(settings, caplog, path, namespace):
    caplog.set_level("INFO")
    async with running_app(Settings(**settings, access_log=True)) as app, client(app) as http:
        await http.get(path)
    (line,) = [vars(record) for record in caplog.records if record.message == "request"]
    assert (line["namespace"], line["client"]) == (namespace, "192.0.2.1")


async def test_what_is_done_to_tokens_is_logged_with_who_did_it(settings, caplog):
    """Without the access log as well; and what is refused changes nothing, so it is not."""
    caplog.set_level("INFO")
    async with running_app(Settings(**settings)) as app, client(app, ADMIN) as admin:
        deputy = await make(admin, "*", access="admin")
        async with client(app, deputy["token"], "192.0.2.7") as http:
            made = await make(http, "mine", "b-*", access="write", lifetime_seconds=60)
            rotated = (await http.post(f"/tokens/{made['id']}/rotate", headers={"X-Request-Id": "r-1"})).json()
            assert (await http.delete(f"/tokens/{made['id']}")).status_code == 204
            for method, path in (("DELETE", made["id"]), ("POST", f"{made['id']}/rotate"), ("GET", deputy["id"])):
                await http.request(method, f"/tokens/{path}")
            assert (await http.post("/tokens", json={"namespaces": [], "access": "read"})).status_code == 422
    lines = [vars(record) for record in caplog.records if record.name == "rstored.tokens"]
    assert [(line["message"], line["changed_token_id"], line["token_id"], line["client"]) for line in lines] == [
        ("token created", deputy["id"], "RSTORED_ADMIN_TOKEN", "192.0.2.1"),
        ("token created", made["id"], deputy["id"], "192.0.2.7"),
        ("token rotated", made["id"], deputy["id"], "192.0.2.7"),
        ("token revoked", made["id"], deputy["id"], "192.0.2.7"),
    ]
    assert lines[2]["request_id"] == "r-1"
    assert (lines[1]["access"], lines[1]["namespaces"]) == ("write", ("mine", "b-*"))
    assert lines[1]["expires"] == made["expires"]
    for text in (deputy["token"], made["token"], rotated["token"], ADMIN):
        assert text.rpartition("_")[2] not in str([vars(record) for record in caplog.records])


async def test_a_token_for_metrics_reads_them_and_nothing_else(closed, admin):
    token = (await make(admin, "*", access="metrics"))["token"]
    async with client(closed, token) as http, client(closed) as stranger:
        assert (await http.get("/metrics")).status_code == 200
        for path, method in closed.front_door.routes.table():
            if path != "/metrics":
                held, public = [
                    await sender.request(method, path_of(path), content=b"{}") for sender in (http, stranger)
                ]
                assert held.status_code == (403 if public.status_code == 401 else public.status_code), (path, method)
    for namespaces in (["mine"], ["mine-*", "?"]):
        refused = await admin.post("/tokens", json={"namespaces": namespaces, "access": "metrics"})
        assert (code(refused), refused.json()["pointer"]) == ((422, "invalid-body"), "/namespaces")
