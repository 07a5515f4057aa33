"""Pages in a browser: an open store is guarded from them, and CORS is off unless it is configured."""

from __future__ import annotations

import ipaddress
import itertools
import json
from typing import Any, NamedTuple

import httpx2
import pytest
from pydantic import SecretStr

from rstored.api.asgi import ASGIApp
from rstored.api.openapi import declare_routes, document
from rstored.app import running_app
from rstored.settings import InvalidSettings, Settings, load_settings

pytestmark = pytest.mark.anyio


def client(app) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost:8000")


def outcome(answer: httpx2.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json()["code"] if answer.status_code >= 400 and answer.content else None


OURS = ["localhost", "LOCALHOST:1", "a.localhost", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000", "[::1]"]
THEIRS = [
    "attacker.example",
    "attacker.example:8000",
    "localhost.attacker.example",
    "192.0.2.1",
    "127.0.0.1.nip.io",
    "127.0.0.1:8000, attacker.example",
    "localhost:80@attacker.example",
    "[::1].attacker.example",
    "[localhost",
    "",
    "x",
]


@pytest.mark.parametrize("host", OURS)
async def test_an_open_store_answers_to_its_own_names(http, host):
    assert (await http.get("/ns", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("host", THEIRS)
async def test_an_open_store_answers_to_no_name_that_is_pointed_to_it(http, host):
    for method in ("GET", "PUT", "DELETE"):
        answer = await http.request(method, "/kv/k", headers={"Host": host})
        assert outcome(answer) == (421, "misdirected-request")
    assert (await http.get("/healthz", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://localhost:8000"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": "http://localhost:3000"}, False),
        ({"Origin": "https://attacker.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "extension://localhost:8000"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
    ],
)
async def test_an_open_store_changes_nothing_for_another_origin(app, headers, allowed):
    async with client(app) as http:
        for method, path in (("PUT", "/kv/k"), ("POST", "/kv"), ("DELETE", "/ns/n")):
            content = b"{}" if method == "POST" else b""
            answer = await http.request(method, path, content=content, headers=headers)
            assert (outcome(answer) == (403, "cross-origin-request")) is not allowed
        assert (await http.get("/kv/k", headers=headers)).status_code == (200 if allowed else 404)


@pytest.mark.parametrize(
    ("site", "dest", "allowed"),
    [
        ("none", "document", True),
        ("cross-site", "document", False),
        ("cross-site", "empty", True),
        ("same-site", "image", True),
        ("same-origin", "script", True),
        ("cross-site", "script", False),
        ("cross-site", "image", False),
        ("cross-site", "iframe", False),
    ],
)
async def test_a_strangers_page_embeds_nothing_of_an_open_store(app, site, dest, allowed):
    """By a script or a picture that loads or does not, it would learn which keys there are."""
    async with client(app) as http:
        await http.put("/kv/k", content=b"1")
        for method, path in (("GET", "/kv/k"), ("HEAD", "/kv/k"), ("GET", "/kv/absent")):
            answer = await http.request(method, path, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Dest": dest})
            assert (answer.status_code == 403) is not allowed, (method, path)


@pytest.mark.parametrize(("mode", "dest"), [("no-cors", "empty"), ("navigate", "document")])
async def test_a_strangers_page_learns_nothing_by_prefetching_or_opening_a_window(app, mode, dest):
    """A browser sends no more than that for a `<link rel=prefetch>`, and tells the page whether it failed. Of a window
    the page sees whether it still is what it was before, as it is if the browser downloads the answer."""
    said = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
    async with client(app) as http:
        await http.put("/kv/k", content=b"1")
        assert (await http.get("/docs", headers=said)).status_code == 200
        answers = [await http.request("GET", path, headers=said) for path in ("/kv/k", "/kv/absent")]
        assert list(map(outcome, answers)) == [(403, "cross-origin-request")] * 2


def spellings(host: str) -> list[str]:
    """How clients may write the host, by RFC 3986, 3.2.2, and RFC 9110, 4.2.3."""
    if host.startswith("["):
        address = ipaddress.IPv6Address(host[1:-1])
        hosts = [f"[{text}]" for text in (address.compressed, address.exploded)]
    else:
        hosts = [host] if host[0].isdigit() else [host, f"{host}."]
        if host[0].isdigit():
            number = int(ipaddress.IPv4Address(host))
            hosts += [f"[::ffff:{host}]", f"[::ffff:{number >> 16:x}:{number & 0xFFFF:x}]"]
    hosts += [text.upper() for text in hosts] + [text.title() for text in hosts]
    return [text + port for text in hosts for port in ("", ":", ":80", ":65535")]


OURS_ANYWHERE = ("localhost", "a.b.localhost", "127.0.0.1", "[::1]")
OURS_AS_SET = ("store.example", "rstored", "192.0.2.7", "[2001:db8::7]")
NO_HOSTS = ("{}..", "{}.x", "{}:x", "{}:80:80", "x@{}", "{0}, {0}", "{}/", "[{}]")
OTHERS = ("a.store.example", "store.example.com", "rstored.example", "192.0.2.8", "[2001:db8::8]", "localhost.x")


@pytest.mark.parametrize(
    "names",
    [
        "store.example, rstored, 192.0.2.7, 2001:db8::7",
        "STORE.example., Rstored., ::ffff:192.0.2.7, [2001:DB8:0::7]",
    ],
)
async def test_a_host_is_the_same_in_whatever_form_it_is_written(tmp_path, names):
    settings = Settings(dsn=f"sqlite:///{tmp_path / 'store.db'}", hosts=names)
    async with running_app(settings) as app, client(app) as http:
        for host in OURS_ANYWHERE + OURS_AS_SET:
            for text in spellings(host):
                # In an origin a browser has the name in lower case.
                headers = {"Host": text, "Origin": f"http://{text.lower()}"}
                assert (await http.put("/kv/k", content=b"1", headers=headers)).status_code in (201, 204), text
        wrong = [form.format(host) for form in NO_HOSTS for host in OURS_ANYWHERE + OURS_AS_SET]
        for text in (*wrong, *(text for host in OTHERS for text in spellings(host))):
            answer = await http.get("/ns", headers={"Host": text})
            assert outcome(answer) == (421, "misdirected-request"), text


async def test_an_address_is_the_same_in_whatever_form_it_is_written(tmp_path):
    settings = Settings(dsn=f"sqlite:///{tmp_path / 'store.db'}", hosts="2001:DB8:0::1")
    async with running_app(settings) as app, client(app) as http:
        for host in ("[2001:db8::1]", "[2001:DB8:0::1]:8000", "[2001:db8:0:0:0:0:0:1]"):
            assert (await http.get("/ns", headers={"Host": host})).status_code == 200
        for host in ("[2001:db8::2]", "2001:db8::1", "[2001:db8::1]x", "[:::]"):
            assert outcome(await http.get("/ns", headers={"Host": host})) == (421, "misdirected-request")


# How the service may be set up to listen. None of it has a say in which names and pages an open store lets in.
LISTENING = [
    {"host": "127.0.0.1"},
    {"host": "127.0.0.1", "insecure": True},
    {"host": "0.0.0.0", "insecure": True},
    {"host": "::", "insecure": True},
    {"host": "127.0.0.1", "trusted_proxies": "127.0.0.0/8"},
    {"host": "0.0.0.0", "insecure": True, "trusted_proxies": "0.0.0.0/0, ::/0"},
]
DOCUMENT = document(declare_routes())
# They hold nothing of the store, and a probe asks at any name.
PUBLIC = {"/healthz", "/readyz", "/docs", "/openapi.json"}
REBOUND = [{"Host": host} for host in ("attacker.example", "attacker.example:8000", "192.0.2.1:8000", "0.0.0.0:8000")]
STRANGE = [
    {"Origin": "https://attacker.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Origin": "https://attacker.example"},
    {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"Sec-Fetch-Site": "same-site"},
]


class Route(NamedTuple):
    """A method of a path of the service, with the body of its example, in JSON."""

    method: str
    path: str
    body: bytes

    @property
    def takes_json(self) -> bool:
        """Whether the body is read as JSON; that of a pair is kept as it is."""
        return bool(self.body) and not self.path.endswith("/kv/{key}")


def routes(app: ASGIApp) -> list[Route]:
    """Every route that the service has."""
    found = []
    for path, method in app.front_door.routes.table():
        declared = DOCUMENT["paths"].get(path, {}).get(method.lower(), {})
        content = declared.get("requestBody", {}).get("content", {}).get("application/json", {})
        found.append(Route(method, path, json.dumps(content["example"]).encode() if content else b""))
    assert {route.path for route in found} >= DOCUMENT["paths"].keys()
    return found


async def ask(http: httpx2.AsyncClient, route: Route, **headers: str) -> httpx2.Response:
    path = route.path.format(namespace="n", key="k", token_id="0" * 16)
    return await http.request(route.method, path, content=route.body, headers=headers)


async def contents(app: ASGIApp) -> Any:
    """All pairs, series and sequences of the namespaces that requests are about."""
    async with client(app) as http:
        found = [await http.get(f"{place}/{kind}") for place in ("", "/ns/n") for kind in ("kv", "ts", "es")]
        return [answer.text for answer in (await http.get("/ns"), *found)]


@pytest.mark.parametrize("listening", LISTENING, ids=str)
async def test_wherever_it_listens_an_open_store_lets_in_no_strangers_page(tmp_path, listening):
    settings = Settings(
        dsn=f"sqlite:///{tmp_path / 'store.db'}", hosts="rstored, Store.example, 2001:DB8::1", **listening
    )
    async with running_app(settings) as app, client(app) as http:
        for path in ("/kv/k", "/ns/n/kv/k"):
            assert (await http.put(path, content=b"1")).status_code == 201
        before = await contents(app)
        for route in routes(app):
            for headers in REBOUND:
                answer = await ask(http, route, **headers)
                if route.path in PUBLIC:
                    assert answer.status_code in (200, 503), route
                else:
                    code = "misdirected-request" if route.method != "HEAD" else None
                    assert outcome(answer) == (421, code), (route, headers)
            if route.method not in ("GET", "HEAD"):
                for headers in STRANGE:
                    assert outcome(await ask(http, route, **headers)) == (403, "cross-origin-request"), (route, headers)
        assert await contents(app) == before
        for host in ("rstored:8000", "store.example", "STORE.EXAMPLE:1", "[2001:db8::1]:8000", "localhost:8000"):
            assert (await http.get("/ns", headers={"Host": host})).status_code == 200
            headers = {"Host": host, "Origin": f"http://{host}"}
            assert (await http.put("/kv/k", content=b"1", headers=headers)).status_code == 204


async def test_a_closed_store_has_no_need_to_look(tmp_path):
    settings = Settings(dsn=f"sqlite:///{tmp_path / 'store.db'}", admin_token=SecretStr("x" * 40))
    async with running_app(settings) as app, client(app) as http:
        headers = {"Host": "store.example", "Origin": "https://app.example", "Authorization": f"Bearer {'x' * 40}"}
        assert (await http.put("/kv/k", content=b"1", headers=headers)).status_code == 201


@pytest.mark.parametrize("admin_token", [None, SecretStr("x" * 40)])
async def test_a_body_without_a_type_is_not_json_to_a_page_of_another_origin(tmp_path, admin_token):
    """A browser sends such a body for any page, and asks nobody before it does."""
    settings = Settings(
        dsn=f"sqlite:///{tmp_path / 'store.db'}", cors_origins="https://app.example", admin_token=admin_token
    )
    async with running_app(settings) as app, client(app) as http:
        http.headers["Authorization"] = f"Bearer {'x' * 40}"
        foreign = {"Origin": "https://app.example"}
        asked = 0
        for route in routes(app):
            if not route.takes_json or (route.path.startswith("/tokens") and admin_token is None):
                continue
            asked += 1
            assert outcome(await ask(http, route, **foreign)) == (415, "unsupported-media-type"), route
            for headers in ({}, {"Origin": "http://localhost:8000"}, foreign | {"Content-Type": "application/json"}):
                assert (await ask(http, route, **headers)).status_code != 415, (route, headers)
        assert asked > 10


@pytest.mark.parametrize("hosts", ["a b", "http://a.example", "a.example:80", "*", "*.example", "[::1", "-a", "a..b"])
def test_what_is_not_a_host(hosts):
    with pytest.raises(InvalidSettings, match="--hosts"):
        load_settings(hosts=hosts)


# --- CORS --------------------------------------------------------------------------------------------------

PREFLIGHT = {"Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type"}


def cors(answer: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


async def test_cors_is_off(http):
    headers = {"Origin": "https://app.example"}
    assert cors(await http.get("/ns", headers=headers)) == {}
    assert cors(await http.options("/kv/k", headers=headers | PREFLIGHT)) == {}


async def test_cors_for_configured_origins(tmp_path):
    origins = "https://app.example, http://localhost:3000"
    settings = Settings(dsn=f"sqlite:///{tmp_path / 'store.db'}", cors_origins=origins)
    async with running_app(settings) as app, client(app) as http:
        for origin in ("https://app.example", "http://localhost:3000"):
            headers = {"Origin": origin}
            asked = await http.options("/kv/k", headers=headers | PREFLIGHT)
            assert asked.status_code == 204
            told = cors(asked)
            assert told["access-control-allow-origin"] == origin
            assert "PUT" in told["access-control-allow-methods"]
            assert {"authorization", "content-type", "if-match", "idempotency-key"} <= set(
                told["access-control-allow-headers"].split(", ")
            )
            assert "access-control-allow-credentials" not in told
            for answer in (
                await http.put("/kv/k", content=b"1", headers=headers),
                await http.get("/kv/k", headers=headers),
                await http.get("/kv/absent", headers=headers),
            ):
                assert cors(answer) == {
                    "access-control-allow-origin": origin,
                    "access-control-expose-headers": "ETag, Rstore-Expires, X-Request-Id, Retry-After",
                }
                assert answer.headers["vary"] == "origin"
        headers = {"Origin": "https://other.example"}
        assert cors(await http.get("/kv/k", headers=headers)) == {}
        assert cors(await http.options("/kv/k", headers=headers | PREFLIGHT)) == {}
        assert cors(await http.options("/kv/k", headers={"Origin": "https://app.example"})).keys() == {
            "access-control-allow-origin",
            "access-control-expose-headers",
        }


def declared(route: Route) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"].get(route.path, {}).get(route.method.lower(), {})
    return found


@pytest.mark.parametrize("admin_token", [None, SecretStr("x" * 40)], ids=["open", "closed"])
async def test_a_preflight_allows_what_the_route_takes_and_every_answer_is_shared(tmp_path, admin_token):
    """Whatever OpenAPI says of a route, a page of a configured origin may send and read; others may not."""
    settings = Settings(
        dsn=f"sqlite:///{tmp_path / 'store.db'}", cors_origins="https://app.example", admin_token=admin_token
    )
    ours = {"Origin": "https://app.example"}
    strangers = [{"Origin": origin} for origin in ("null", "https://app.example.", "http://app.example", "*", "")]
    async with running_app(settings) as app, client(app) as http:
        for route in routes(app):
            asked = {"Access-Control-Request-Method": route.method, "Access-Control-Request-Private-Network": "true"}
            told = await ask(http, route._replace(method="OPTIONS"), **ours, **asked)
            assert told.status_code == 204, route
            assert told.content == b""
            assert route.method in told.headers["access-control-allow-methods"].split(", ")
            taken = {
                parameter["name"] for parameter in declared(route).get("parameters", []) if parameter["in"] == "header"
            }
            allowed = set(told.headers["access-control-allow-headers"].split(", "))
            assert {name.lower() for name in taken} | {"authorization", "content-type", "accept"} <= allowed, route
            sent = {
                name for answer in declared(route).get("responses", {}).values() for name in answer.get("headers", {})
            }
            for headers in (ours, {**ours, "Authorization": f"Bearer {'x' * 40}"}, {**ours, "Content-Type": "x"}):
                answer = await ask(http, route, **headers)
                assert answer.headers.get_list("access-control-allow-origin") == ["https://app.example"], route
                assert sent <= set(answer.headers["access-control-expose-headers"].split(", ")), route
                assert "access-control-allow-credentials" not in answer.headers
                assert answer.headers["vary"] == "origin"
            for headers in strangers:
                for method in (route.method, "OPTIONS", "BREW"):
                    assert cors(await ask(http, route._replace(method=method), **headers, **asked)) == {}, (
                        route,
                        headers,
                    )


# What browsers say of a request that they make with CORS, by what it is for; all of these carry the page's origin.
WITH_CORS = ("empty", "image", "audio", "video", "track", "font", "script", "style", "manifest", "json", "xslt")
# And of one that they make without: embedded, or shown in a frame or a tab.
WITHOUT_CORS = ("image", "audio", "video", "track", "script", "style", "worker", "report")
FRAMED = ("iframe", "frame", "embed", "object", "fencedframe")


@pytest.mark.parametrize("admin_token", [None, SecretStr("x" * 40)])
async def test_a_configured_origin_is_served_whatever_its_page_does_with_the_answer(tmp_path, admin_token):
    settings = Settings(
        dsn=f"sqlite:///{tmp_path / 'store.db'}", cors_origins="https://app.example", admin_token=admin_token
    )
    async with running_app(settings) as app, client(app) as http:
        http.headers["Authorization"] = f"Bearer {'x' * 40}"
        assert (await http.put("/kv/k", content=b"1")).status_code == 201
        for site, destination in itertools.product(("cross-site", "same-site"), WITH_CORS):
            said = {"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": site, "Sec-Fetch-Dest": destination}
            ours, theirs = {**said, "Origin": "https://app.example"}, {**said, "Origin": "https://attacker.example"}
            for method, path in (("GET", "/kv/k"), ("HEAD", "/kv/k"), ("GET", "/kv"), ("PUT", "/kv/k")):
                served = await http.request(method, path, content=b"1" if method == "PUT" else b"", headers=ours)
                assert served.status_code in (200, 204), (method, path, ours)
                assert served.headers["access-control-allow-origin"] == "https://app.example"
                # A stranger's page reads nothing: refused, or without the headers that let it.
                assert cors(await http.request(method, path, headers=theirs)) == {}
        for site, mode, destination in (
            *itertools.product(("cross-site",), ("no-cors",), WITHOUT_CORS),
            *itertools.product(("cross-site",), ("navigate",), FRAMED),
        ):
            # The browser does not say whose page it is.
            said = {"Sec-Fetch-Mode": mode, "Sec-Fetch-Site": site, "Sec-Fetch-Dest": destination}
            embedded = await http.get("/kv/k", headers=said)
            assert (outcome(embedded) == (403, "cross-origin-request")) == (admin_token is None), said


@pytest.mark.parametrize("origins", ["app.example", "https://app.example/", "*", "https://a.example https://b.example"])
def test_what_is_not_an_origin(origins):
    with pytest.raises(InvalidSettings, match="--cors-origins"):
        load_settings(cors_origins=origins)


# --- on every answer ---------------------------------------------------------------------------------------


async def test_headers_on_every_answer(app, http):
    await http.put("/kv/k", content=b"<script>")
    served = [(route.method, route) for route in routes(app)]
    asked = [("OPTIONS", route) for _, route in served]
    for method, route in (*served, *asked, ("GET", Route("GET", "/nowhere", b""))):
        headers = (await ask(http, route._replace(method=method))).headers
        assert headers.get_list("x-content-type-options") == ["nosniff"]
        assert headers.get_list("cache-control") == ["no-store"]
        assert headers.get_list("referrer-policy") == ["no-referrer"]
        assert headers.get_list("x-frame-options") == ["DENY"]
        assert headers.get_list("cross-origin-resource-policy") == ["same-site"]
        assert "strict-transport-security" not in headers
    await http.put("/kv/k", content=b"<script>")
    assert (await http.get("/kv/k")).headers["content-security-policy"] == "sandbox"
