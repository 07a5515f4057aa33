"""Pages in a browser: an open store is guarded from them, and CORS is off unless it is configured."""

from __future__ import annotations

import httpx2
import pytest

from rstored.app import running_app
from rstored.settings import InvalidSettings, Settings, load_settings

pytestmark = pytest.mark.anyio


def client(app) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost:8000")


def outcome(answer: httpx2.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json()["code"] if answer.status_code >= 400 else None


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
        ("cross-site", "document", True),
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


async def test_who_is_told_that_others_reach_it_does_not_look(tmp_path):
    closed = {"admin_token": "x" * 40}
    for number, options in enumerate(({"insecure": True}, {"trusted_proxies": "127.0.0.1"}, closed)):
        settings = load_settings(dsn=f"sqlite:///{tmp_path / f'{number}.db'}", **options)
        async with running_app(settings) as app, client(app) as http:
            http.headers["Authorization"] = f"Bearer {'x' * 40}"
            headers = {"Host": "store.example", "Origin": "https://app.example"}
            assert (await http.put("/kv/k", content=b"1", headers=headers)).status_code == 201


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


@pytest.mark.parametrize("origins", ["app.example", "https://app.example/", "*", "https://a.example https://b.example"])
def test_what_is_no_origin(origins):
    with pytest.raises(InvalidSettings, match="--cors-origins"):
        load_settings(cors_origins=origins)


# --- on every answer ---------------------------------------------------------------------------------------


async def test_headers_on_every_answer(http):
    await http.put("/kv/k", content=b"<script>")
    routes = [("GET", path) for path in ("/", "/kv/k", "/nowhere", "/docs", "/openapi.json")]
    for method, path in (*routes, ("HEAD", "/kv/k"), ("OPTIONS", "/kv/k")):
        headers = (await http.request(method, path)).headers
        assert headers.get_list("x-content-type-options") == ["nosniff"]
        assert headers.get_list("cache-control") == ["no-store"]
        assert headers.get_list("referrer-policy") == ["no-referrer"]
        assert "strict-transport-security" not in headers
    assert (await http.get("/kv/k")).headers["content-security-policy"] == "sandbox"
