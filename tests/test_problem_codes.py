"""Every problem code is reachable: for each a real situation that leads to it, and the SDK's exception for it."""

from __future__ import annotations

import json
import operator
import re
import resource
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from tests import servers
from tests.refusals import LIMITS, REQUESTS, prepare
from tests.waiting import SECONDS_MAX

import rstore
from rstore import Store
from rstore.core.errors import PROBLEMS


@pytest.fixture(scope="module")
def server(serve_module, tmp_path_factory):
    """A service process with small limits."""
    return serve_module(f"sqlite:///{tmp_path_factory.mktemp('codes') / 'store.db'}", limits=LIMITS)


@pytest.fixture(scope="module")
def http(server):
    """A client of a service that holds one of each."""
    with httpx2.Client(base_url=server.url, timeout=20) as http:
        prepare(http)
        yield http


def check(answer: httpx2.Response, code: str) -> None:
    """The answer is the whole problem document of this code."""
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == code, problem
    assert answer.status_code == problem["status"] == PROBLEMS[code].status
    assert problem["title"] == PROBLEMS[code].title
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["detail"]


@pytest.mark.parametrize("code", REQUESTS)
def test_a_request_leads_to(http, code):
    check(REQUESTS[code](http), code)


def whole_answer(connection: socket.socket) -> bytes:
    """An answer with its body, from a connection that may stay open."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head.lower())
    while found is not None and len(body) < int(found[1]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /kv HTTP/1.1\r\nno colon\r\n\r\n", 400, "malformed-request"),
        (b"GET /kv HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, "unsupported-http-version"),
    ],
)
def test_what_is_not_a_request(server, sent, status, code):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status)
    assert b"application/problem+json" in head.lower()
    problem = json.loads(body)
    assert (problem["code"], problem["status"]) == (code, status)


def test_request_timeout(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", limits={"BODY_SECONDS_MAX": 1})
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf")
        started = time.monotonic()
        answer = b""
        # The connection waits less than any other limit lasts.
        while chunk := connection.recv(4096):
            answer += chunk
        assert time.monotonic() - started > 0.3
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["code"] == "request-timeout"
    assert httpx2.get(f"{server.url}/kv/k").status_code == 404


def test_shutting_down(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}")
    host, port = server.url.removeprefix("http://").split(":")
    with (
        socket.create_connection((host, int(port)), timeout=20) as in_flight,
        socket.create_connection((host, int(port)), timeout=20) as begun,
    ):
        in_flight.sendall(b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nha")
        # This request arrives in two pieces, before and after the signal: its connection is not idle.
        begun.sendall(b"GET /readyz HTTP/1.1\r\nHo")
        server.wait_until_read()
        server.process.send_signal(signal.SIGTERM)
        server.wait_until_stopping()
        begun.sendall(b"st: localhost\r\n\r\n")
        answer = whole_answer(begun)
        in_flight.sendall(b"lf")
        assert in_flight.recv(65536).startswith(b"HTTP/1.1 201")
    assert answer.startswith(b"HTTP/1.1 503"), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "shutting-down"
    assert server.process.wait(SECONDS_MAX) == 0


def test_a_closed_store(serve, tmp_path):
    admin = secrets.token_hex(16)
    server = serve(
        f"sqlite:///{tmp_path / 'store.db'}",
        env={"RSTORED_ADMIN_TOKEN": admin},
        limits={"FAILED_AUTHENTICATIONS_PER_MINUTE_MAX": 1},
    )
    with httpx2.Client(base_url=server.url) as http:
        check(http.get("/"), "unauthenticated")
        unknown = {"Authorization": "Bearer unknown"}
        check(http.get("/", headers=unknown), "unauthenticated")
        check(http.get("/", headers=unknown), "rate-limited")
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", env={"RSTORED_ADMIN_TOKEN": admin})
    with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {admin}"}) as http:
        check(http.get("/tokens/0123456789abcdef"), "token-not-found")


def test_backend_unavailable(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}")
    with httpx2.Client(base_url=server.url) as http:
        (tmp_path / "store.db").rename(tmp_path / "away.db")
        check(http.get("/readyz"), "backend-unavailable")


def change(path: Path, statement: str) -> None:
    """Change the rows of a SQLite store behind the service's back. The file stays sound."""
    connection = sqlite3.connect(path, timeout=10)
    assert connection.execute(statement).rowcount
    connection.commit()
    connection.close()


def test_backend_corrupt(serve, tmp_path):
    """The blocks of a series are not what the service writes, in a database that is sound."""
    server = serve(f"sqlite:///{tmp_path / 'store.db'}")
    with httpx2.Client(base_url=server.url) as http:
        assert http.put("/kv/k", json=1).is_success
        assert http.post("/ts/s/range", json={"points": [[t, t] for t in range(10)]}).is_success
        change(tmp_path / "store.db", "UPDATE record_row SET value = x'fefefe'")
        for path in ("/ts/s/range", "/ts/s/last"):
            check(http.get(path), "backend-corrupt")
        check(http.post("/ts/s/range", json={"points": [[3, 4]]}), "backend-corrupt")
        # What is sound is served.
        assert http.get("/kv/k").json() == 1
        assert http.get("/healthz").status_code == 200
    with pytest.raises(rstore.StoreNotAvailableError) as caught, Store(server.url, retries=0) as store:
        store.last("s")
    assert caught.value.code == "backend-corrupt"


def can_mount() -> bool:
    """Whether this machine lets a user make a small file system of its own."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def bound_files() -> None:
    """Let no file grow beyond 2 MiB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, 2 * 2**20))


def test_storage_full(serve, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    dsn = f"sqlite:///{folder / 'store.db'}"
    if can_mount():
        mount = f'mount -t tmpfs -o size=2m tmpfs {folder} && exec "$@"'
        server = serve(dsn, prefix=["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"])
    else:
        server = serve(dsn, preexec=bound_files)
    with httpx2.Client(base_url=server.url) as http:
        answers = [http.put(f"/kv/k{number}", content=b"%d" % number * 50_000) for number in range(30)]
        written = [number for number, answer in enumerate(answers) if answer.status_code == 201]
        assert 0 < len(written) < 30
        for number, answer in enumerate(answers):
            if number not in written:
                check(answer, "storage-full")
        # What was acknowledged is there, the rest is not, and the service lives.
        assert [item["key"] for item in http.get("/kv").json()["items"]] == sorted(f"k{number}" for number in written)
        for number in written:
            assert http.get(f"/kv/k{number}").content == b"%d" % number * 50_000
        check(http.post("/ts/s/range", json={"points": [[1, secrets.token_hex(1_500_000)]]}), "storage-full")
        assert http.get("/ts").json()["items"] == []
        assert http.get("/healthz").status_code == 200


# A bug of the service, whose exception holds a value.
MISTAKE = """
from rstored.engine.kv import KeyValues

async def get(self, *arguments):
    raise TypeError("secret value")

KeyValues.get = get
"""


def test_internal_error(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", prelude=MISTAKE)
    with httpx2.Client(base_url=server.url) as http:
        assert http.put("/kv/k", json="secret value").is_success
        answer = http.get("/kv/k")
        check(answer, "internal-error")
        assert "secret" not in answer.text
        assert "TypeError" not in answer.text
        assert str(tmp_path) not in answer.text
        assert http.get("/healthz").status_code == 200
    server.stop()
    assert answer.json()["request_id"] in server.log


@pytest.mark.skipif(servers.missing_redis() is not None, reason="no Redis server is installed")
def test_batch_not_atomic(serve):
    server = serve(servers.fresh_dsn(servers.redis_cluster(), buckets=8))
    with httpx2.Client(base_url=server.url, timeout=20) as http:
        apart = [{"key": f"{number}", "value": number} for number in range(20)]
        together = [{"key": f"{{part}}{number}", "value": number} for number in range(20)]
        check(http.post("/kv", json={"set": apart}), "batch-not-atomic")
        assert http.get("/kv/0").status_code == 404
        assert len(http.post("/kv", json={"set": together}).json()["set"]) == 20


def test_headers_too_large(server):
    check(httpx2.get(f"{server.url}/kv", headers={"X-Long": "x" * 40_000}), "headers-too-large")


def half_a_put(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nha")
    return connection


def test_overloaded(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", limits={"REQUESTS_IN_FLIGHT_MAX": 1})
    with half_a_put(server) as connection:
        server.wait_until_read()
        answer = httpx2.get(f"{server.url}/kv/k")
        check(answer, "overloaded")
        assert answer.headers["retry-after"] == "1"
        connection.sendall(b"lf")
        assert whole_answer(connection).startswith(b"HTTP/1.1 201")


def test_deadline_exceeded(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", limits={"REQUEST_SECONDS_MAX": 1})
    with half_a_put(server) as connection:
        answer = whole_answer(connection)
    assert answer.startswith(b"HTTP/1.1 504"), answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "deadline-exceeded"


def test_tokens_lost(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", env={"RSTORED_CLOSED": "true"})
    token = f"rst_{'0' * 16}_{'A' * 43}"
    check(httpx2.get(f"{server.url}/readyz"), "tokens-lost")
    check(httpx2.get(f"{server.url}/kv/k", headers={"Authorization": f"Bearer {token}"}), "tokens-lost")
    check(httpx2.get(f"{server.url}/kv/k"), "unauthenticated")


def test_pages_in_a_browser(server):
    check(httpx2.get(f"{server.url}/kv/k", headers={"Host": "attacker.example"}), "misdirected-request")
    check(httpx2.put(f"{server.url}/kv/k", headers={"Origin": "https://attacker.example"}), "cross-origin-request")


SITUATIONS = {
    "misdirected-request": test_pages_in_a_browser,
    "cross-origin-request": test_pages_in_a_browser,
    "headers-too-large": test_headers_too_large,
    "overloaded": test_overloaded,
    "deadline-exceeded": test_deadline_exceeded,
    "batch-not-atomic": test_batch_not_atomic,
    "malformed-request": test_what_is_not_a_request,
    "unsupported-http-version": test_what_is_not_a_request,
    "request-timeout": test_request_timeout,
    "shutting-down": test_shutting_down,
    "unauthenticated": test_a_closed_store,
    "tokens-lost": test_tokens_lost,
    "rate-limited": test_a_closed_store,
    "token-not-found": test_a_closed_store,
    "backend-unavailable": test_backend_unavailable,
    "backend-corrupt": test_backend_corrupt,
    "storage-full": test_storage_full,
    "internal-error": test_internal_error,
}


def test_every_code_is_reached():
    assert set(REQUESTS) | set(SITUATIONS) == set(PROBLEMS)
    assert len(REQUESTS) + len(SITUATIONS) == len(PROBLEMS)


# --- the SDK -----------------------------------------------------------------------------------------------


class Answering:
    """A real HTTP server that lets a store be opened and answers all else with what it was given."""

    def __init__(self) -> None:
        self.answer: tuple[int, dict[str, str], bytes] = (500, {}, b"")
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def respond(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                status, headers, body = outer.answer
                if self.command == "PUT" and self.path == "/ns/space":
                    status, headers = 200, {"Content-Type": "application/json"}
                    body = b'{"namespace": "space", "sealed_only": false, "kv": 0, "ts": 0, "es": 0}'
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = respond  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture(scope="module")
def answering():
    answering = Answering()
    yield answering
    answering.close()


@pytest.mark.parametrize("code", PROBLEMS)
def test_the_sdk_raises_the_exception_of_the_code(answering, code):
    """Whatever the operation, the document alone decides."""
    row = PROBLEMS[code]
    problem = {"type": "about:blank", "title": row.title, "status": row.status, "detail": "why", "code": code}
    problem["request_id"] = "r-1"
    answering.answer = row.status, {"Content-Type": "application/problem+json"}, json.dumps(problem).encode()
    with Store(answering.url, "space", frozen=False, retries=0) as store, pytest.raises(row.exception) as caught:
        store.set("k", 1)
    assert type(caught.value) is row.exception
    assert caught.value.code == code
    assert caught.value.status == row.status
    assert caught.value.request_id == "r-1"
    assert caught.value.problem == problem
    assert "why" in str(caught.value)


@pytest.mark.parametrize(
    ("use", "code"),
    [
        (lambda store: store.set("k", 2, if_match="0"), "precondition-failed"),
        (lambda store: store.set("k", "x" * 20_001), "value-too-large"),
        (lambda store: store.range("s", n=-1), "invalid-parameter"),
        (lambda store: store.apply("e", {"m": 1}, t=1), "timestamp-taken"),
        (lambda store: store.apply("e", {"m": (operator.delitem,)}), "unfoldable-event"),
    ],
)
def test_the_sdk_over_real_http(server, http, use, code):
    with Store(server.url, frozen=False) as store, pytest.raises((rstore.StoreError, ValueError)) as caught:
        use(store)
    if isinstance(caught.value, rstore.StoreError):
        assert isinstance(caught.value, PROBLEMS[code].exception)
        assert caught.value.code in (code, None)


def test_no_answer_at_all():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        pytest.raises(rstore.StoreNotAvailableError),
        Store(f"http://127.0.0.1:{port}", frozen=False, retries=0) as store,
    ):
        store.get("k")


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {"Content-Type": "text/html"}, b"<html>"),
        (200, {"Content-Type": "application/json"}, b"{"),
        (200, {"Content-Type": "application/json"}, b"[]"),
        (418, {"Content-Type": "text/plain"}, b"teapot"),
        (302, {"Location": "http://elsewhere.invalid/"}, b""),
        (400, {"Content-Type": "application/problem+json"}, b"[1]"),
        (409, {"Content-Type": "application/problem+json"}, b'{"code": "of tomorrow", "detail": "x", "status": 409}'),
    ],
)
def test_an_answer_that_no_service_gives_is_a_store_error(answering, status, headers, body):
    answering.answer = status, headers, body
    with Store(answering.url, "space", frozen=False, retries=0) as store:
        for use in (
            lambda: store.current("e"),
            lambda: store.timeseries(),
            lambda: store.range("s"),
            lambda: store.set("k", 1),
            lambda: store.count(),
        ):
            with pytest.raises(rstore.StoreError):
                use()


def test_the_documentation_has_every_code():
    page = (Path(__file__).parent.parent / "docs" / "errors.md").read_text()
    rows = {line.split("|")[1].strip(" `"): line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(PROBLEMS)
    for code, row in PROBLEMS.items():
        cells = [cell.strip(" `") for cell in rows[code].split("|")]
        assert cells[2] == str(row.status)
        assert cells[3] == row.title
        assert cells[4] == row.exception.__name__
