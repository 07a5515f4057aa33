"""Behind a real nginx: prefixes, forwarded addresses, and who may forward."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import httpx2
import pytest
from tests.nginx import NGINX, free_port

from rstore import Store

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


def site(port: int, location: str, target: str, more: str = "") -> str:
    return (
        f"server {{ listen 127.0.0.1:{port}; location {location} {{ proxy_pass {target}; proxy_http_version 1.1; "
        f'proxy_set_header Connection ""; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; '
        f"proxy_set_header X-Forwarded-Proto https; {more} }} }}"
    )


@pytest.mark.parametrize("stripped", [False, True])
def test_a_prefix(serve, nginx, tmp_path, stripped):
    env = {"RSTORED_ROOT_PATH": "/a/store", "RSTORED_TRUSTED_PROXIES": "127.0.0.1"}
    service = serve(f"sqlite:///{tmp_path / 'store.db'}", env=env)
    port = free_port()
    # With a path in proxy_pass nginx would decode the key, so it is the rewrite that strips.
    target = f"http://127.0.0.1:{service.port}"
    more = "rewrite ^ $request_uri; rewrite ^/a/store(/.*)$ $1 break; return 400;" if stripped else ""
    if stripped:
        target += "$uri"
    url = nginx(site(port, "/a/store/", target, more), port) + "/a/store"
    with httpx2.Client() as http:
        info = http.get(f"{url}/").json()
        for name in ("openapi", "docs", "health", "readiness", "metrics", "namespaces"):
            link = info["links"][name]
            assert link.startswith("/a/store/")
            assert http.get(f"http://127.0.0.1:{port}{link}").status_code == 200
        assert http.get(f"{url}/openapi.json").json()["servers"] == [{"url": "/a/store"}]
        # The proxy said that its client came by https.
        assert "strict-transport-security" in http.get(f"{url}/healthz").headers
        assert "strict-transport-security" not in http.get(f"{service.url}/healthz").headers
    with Store(url, "behind", frozen=False) as store:
        for key in ("a/b", "..", "%2F", "é?#"):
            store[key] = key
        assert dict(store.find()) == {key: key for key in ("a/b", "..", "%2F", "é?#")}
        store.extend("s", *((t, "x" * 100) for t in range(5000)))
        assert len(store.range("s")) == 5000
    with Store(f"{service.url}/a/store", "behind") as store:
        assert store["a/b"] == "a/b"
    with Store(service.url, "behind") as store:
        assert store["a/b"] == "a/b"


def half_a_put(url: str, path: str, forwarded: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=10)
    head = f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {forwarded}\r\nContent-Length: 4\r\n\r\nha"
    connection.sendall(head.encode())
    return connection


@pytest.mark.parametrize("trusted", ["127.0.0.0/8", "192.0.2.7", ""])
def test_forwarded_addresses_are_believed_of_trusted_proxies_alone(serve, tmp_path, trusted):
    """Whom the service takes for the client shows in whose requests it counts together."""
    service = serve(
        f"sqlite:///{tmp_path / 'store.db'}",
        limits={"REQUESTS_IN_FLIGHT_PER_CLIENT_MAX": 1},
        env={"RSTORED_TRUSTED_PROXIES": trusted} if trusted else {},
    )
    believed = trusted == "127.0.0.0/8"
    with half_a_put(service.url, "/kv/k", "198.51.100.1"), httpx2.Client(base_url=service.url) as http:
        time.sleep(0.3)

        def status(forwarded: str) -> int:
            return http.get("/ns", headers={"X-Forwarded-For": forwarded}).status_code

        assert status("198.51.100.1") == 503
        assert status("198.51.100.2") == (200 if believed else 503)
        # What the client itself claims stands before what the proxy saw.
        assert status("198.51.100.2, 198.51.100.1") == 503
        # So it does in a line of its own, and nothing else is an address: neither a proxy's, nor another header.
        claimed = [("X-Forwarded-For", "198.51.100.2"), ("X-Forwarded-For", "198.51.100.1")]
        assert http.get("/ns", headers=claimed).status_code == 503
        assert status("198.51.100.1, 127.0.0.1") == 503
        forwarded = {"X-Forwarded-For": "198.51.100.1", "Forwarded": "for=198.51.100.2", "X-Real-IP": "198.51.100.2"}
        assert http.get("/ns", headers=forwarded).status_code == 503
        secure = http.get("/healthz", headers={"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"})
        assert ("strict-transport-security" in secure.headers) == believed


def test_what_is_not_a_proxy(serve, tmp_path):
    for setting, value in (("TRUSTED_PROXIES", "proxy.example"), ("ROOT_PATH", "store"), ("ROOT_PATH", "/store/")):
        service = serve(f"sqlite:///{tmp_path / 'store.db'}", wait=False, env={f"RSTORED_{setting}": value})
        assert service.process.wait(30) == 1
        assert f"RSTORED_{setting}" in service.log
        assert service.log.count("\n") == 1
