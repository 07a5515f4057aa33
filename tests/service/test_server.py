"""What happens below HTTP, on real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import sqlite3
import threading
import time

import httpx2
import pytest
import uvloop
from tests.reading import read
from tests.waiting import SECONDS_MAX, until

from rstored.api.metrics import Metrics
from rstored.api.replies import Reply
from rstored.backends.abc import Commit, Head, HeadRead, Kind, Place, PutHead, Update, namespace_place
from rstored.backends.sqlite import SQLiteBackend
from rstored.http.connection import Connection
from rstored.http.connections import Connections
from rstored.limits import Limits


@pytest.fixture(scope="module")
def server(serve_module, tmp_path_factory):
    dsn = f"sqlite:///{tmp_path_factory.mktemp('server') / 'store.db'}"
    return serve_module(dsn, limits={"VALUE_BYTES_MAX": 1000, "BODY_BYTES_MAX": 2000})


@pytest.fixture(scope="module")
def large_server(serve_module, tmp_path_factory):
    return serve_module(f"sqlite:///{tmp_path_factory.mktemp('server') / 'store.db'}")


@contextlib.contextmanager
def connection(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connected:
        yield connected


def talk(server, *parts: bytes, pause: float = 0.05) -> bytes:
    """What comes back until the server closes; the parts must make it close."""
    received = b""
    with connection(server) as connected:
        for part in parts:
            connected.sendall(part)
            time.sleep(pause)
        with contextlib.suppress(ConnectionResetError):
            while chunk := connected.recv(65536):
                received += chunk
    return received


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return int(lines[0].split()[1]), headers, body


CLOSE = b"Host: localhost\r\nConnection: close\r\n"


@pytest.mark.parametrize("cut", [1, 20, 50, 70, 90, 110, 115, 117])
def test_a_request_for_another_protocol_is_served_in_this_one_and_loses_no_body(server, cut):
    head = b"PUT /kv/up HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    put = head + b"Content-Length: 5\r\n\r\nhello"
    answer = talk(server, put[:cut], put[cut:], b"GET /kv/up HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert answer.startswith((b"HTTP/1.1 201", b"HTTP/1.1 204"))
    assert answer.endswith(b"\r\n\r\nhello")


def test_requests_in_one_packet_are_answered_in_order(server):
    requests = b"".join(
        b"PUT /kv/p%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n%d" % (n, n) for n in range(5)
    )
    requests += b"".join(b"GET /kv/p%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % n for n in range(5))
    answer = talk(server, requests + b"GET /kv/p0 HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert answer.count(b"HTTP/1.1 201") == 5
    assert [part.split(b"\r\n\r\n")[1][:1] for part in answer.split(b"HTTP/1.1 200 OK")[1:]] == [
        b"0",
        b"1",
        b"2",
        b"3",
        b"4",
        b"0",
    ]


@pytest.mark.parametrize("fields", [b"", b"Upgrade: x\r\nConnection: upgrade\r\n"], ids=["plain", "upgrade"])
@pytest.mark.parametrize(
    "request_",
    [
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n%b\r\n",
        b"PUT /kv/ahead HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: 1\r\n\r\n1",
    ],
    ids=["reads", "writes"],
)
def test_a_thousand_requests_in_one_packet_are_answered_in_turn(server, request_, fields):
    answer = talk(server, request_ % fields * 1000 + b"GET /kv/nowhere HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert {*statuses(answer)[:1000]} <= {200, 201, 204}
    assert statuses(answer)[1000:] == [404]
    assert "Traceback" not in server.log


def test_a_client_that_sends_on_after_its_last_request_gets_the_answer(server):
    """Also where the system has more of what it sent than the service reads: closing would reset the connection."""
    last = b"GET /healthz HTTP/1.1\r\n" + CLOSE + b"\r\n"
    for _ in range(5):
        assert statuses(talk(server, last + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20_000)) == [200]


def test_http_1_0(server):
    talk(server, b"PUT /kv/old HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc")
    status, headers, body = split(talk(server, b"GET /kv/old HTTP/1.0\r\n\r\n"))
    assert (status, body, headers["connection"]) == (200, b"abc", "close")


def test_a_client_of_http_1_0_is_not_told_to_continue(server):
    head = b"PUT /kv/expecting HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    assert statuses(talk(server, head, b"abc")) == [201]


@pytest.mark.parametrize("framing", [b"Content-Length: 3 \t\r\n\r\n", b"Transfer-Encoding: chunked \r\n\r\n3\r\n"])
def test_spaces_around_the_value_of_a_field_are_not_part_of_it(server, framing):
    head = b"PUT /kv/spaced HTTP/1.1\r\nHost:  localhost \t\r\nConnection: close \r\n"
    end = b"\r\n0\r\n\r\n" if b"chunked" in framing else b""
    assert statuses(talk(server, head + framing + b"abc" + end)) in ([201], [204])


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://localhost/ns", b"attacker.example", 200),
        (b"http://LOCALHOST:8000/ns?limit=1", b"localhost", 200),
        (b"http://[::1]", b"attacker.example", 200),
        (b"http://attacker.example/ns", b"localhost", 421),
        (b"http://attacker.example:8000?http://localhost/", b"localhost", 421),
        (b"http://localhost@attacker.example/ns", b"localhost", 421),
    ],
)
def test_a_target_that_names_the_host_counts_for_more_than_the_field(server, version, target, host, status):
    request = b"GET %b HTTP/%b\r\nHost: %b\r\nConnection: close\r\n\r\n" % (target, version, host)
    assert split(talk(server, request))[0] == status
    if version == b"1.0":
        assert split(talk(server, b"GET %b HTTP/1.0\r\n\r\n" % target))[0] == status


def test_a_body_is_asked_for_only_if_it_is_wanted(server):
    head = b"PUT /kv/c HTTP/1.1\r\n" + CLOSE + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    answer = talk(server, head % 3, b"abc")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 20")
    # The body never comes, and the service would wait for it longer than this connection waits for the answer.
    with connection(server) as connected:
        connected.sendall(head % 1001)
        received = b""
        while not received.endswith(b"}"):
            received += connected.recv(65536)
    status, headers, body = split(received)
    assert (status, headers["connection"]) == (413, "close")
    assert json.loads(body)["code"] == "value-too-large"


def test_a_client_that_sends_far_too_much_still_gets_its_answer(server):
    for head in (b"Content-Length: 20000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n1312d00\r\n"):
        received = b""
        with connection(server) as connected:
            connected.sendall(b"PUT /kv/big HTTP/1.1\r\nHost: localhost\r\n" + head)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                connected.sendall(b"x" * 20_000_000)
            with contextlib.suppress(ConnectionResetError):
                while chunk := connected.recv(65536):
                    received += chunk
        status, headers, body = split(received)
        assert (status, headers["connection"], json.loads(body)["code"]) == (413, "close", "value-too-large")
    assert httpx2.get(f"{server.url}/kv/big").status_code == 404


def test_a_refused_body_is_not_taken_for_the_next_request(server):
    smuggled = b"DELETE /kv/p HTTP/1.1\r\nHost: localhost\r\n\r\n"
    httpx2.put(f"{server.url}/kv/p", content=b"1")
    put = b"PUT /kv/other?colour=red HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(smuggled)
    answer = talk(server, put + smuggled, b"GET /kv/p HTTP/1.1\r\n" + CLOSE + b"\r\n")
    assert [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answer)] == [422, 200]
    assert httpx2.get(f"{server.url}/kv/p").status_code == 200


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", answer)]


def test_what_is_not_a_request_is_refused_after_those_before_it_are_answered(server):
    put = b"PUT /kv/turn HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1"
    get = b"GET /kv/turn HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = talk(server, put + get + put + b"non\0sense\r\n\r\n" + get)
    assert statuses(answer) in ([201, 200, 204, 400], [204, 200, 204, 400])


def test_a_broken_body_has_one_answer(server):
    head = b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
    assert statuses(talk(server, b"PUT /kv/broken" + head, b"zz\r\n")) == [400]
    assert statuses(talk(server, b"POST /healthz" + head, b"zz\r\n")) == [405]
    assert httpx2.get(f"{server.url}/kv/broken").status_code == 404


def test_a_request_for_another_protocol_may_be_large_and_keeps_its_other_wishes(large_server):
    asks = b"Host: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade"
    put = b"PUT /kv/up HTTP/1.1\r\n" + asks + b"\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60_000
    assert statuses(talk(large_server, put + b"GET /kv/up HTTP/1.1\r\n" + CLOSE + b"\r\n")) == [201, 200]
    # The connection ends, or these would wait for the idle one to be closed.
    assert b"connection: close" in talk(large_server, b"GET /healthz HTTP/1.1\r\n" + asks + b", close\r\n\r\n")
    assert b"connection: close" in talk(large_server, b"GET /healthz HTTP/1.0\r\n" + asks + b"\r\n\r\n")


CHUNKED = b"Transfer-Encoding: chunked\r\n"
# A head that one reader may end, or measure, otherwise than another does.
AMBIGUOUS = {
    "a length and chunks": b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "chunks and a length": CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "a length twice": b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "a list of lengths": b"Content-Length: 0, 0\r\n\r\n",
    "a signed length": b"Content-Length: +0\r\n\r\n",
    "a length beyond any": b"Content-Length: 18446744073709551616\r\n\r\n",
    "chunks twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunks, and then none": CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "almost chunks": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks and a control character": b"Transfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a signed chunk": CHUNKED + b"\r\n-0\r\n\r\n",
    "a chunk in hexadecimal twice": CHUNKED + b"\r\n0x0\r\n\r\n",
    "a chunk beyond any": CHUNKED + b"\r\nffffffffffffffffff\r\n\r\n",
    "chunks ended by LF": CHUNKED + b"\r\n0\n\n",
    "a length after the chunks": CHUNKED + b"\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a folded line": b"X-A: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "CR alone": b"X-A: a\rContent-Length: 5\r\nContent-Length: 0\r\n\r\n",
    "LF alone": b"Content-Length: 0\n\n",
    "NUL in a value": b"X-A: a\0b\r\nContent-Length: 0\r\n\r\n",
    "NUL in a name": b"X\0A: a\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("rest", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_may_be_read_in_two_ways_is_refused_with_all_that_follows(server, rest):
    """A proxy that reads it the other way would take what follows for somebody else's request, or answer."""
    smuggled = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answers = talk(server, b"POST /es/smuggled/prune HTTP/1.1\r\nHost: localhost\r\n" + rest + smuggled)
    status, _, body = split(answers)
    assert (status, json.loads(body)["code"]) == (400, "malformed-request")
    assert answers.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /kv/\xc3\xa9 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"BREW /kv/k HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"CONNECT /kv/k HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /kv/k HTTP/1.1\r\nAccept: */*\r\n\r\n",
        b"GET /kv/k HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET /kv HTTP/1.1\r\nHost x\r\n\r\n",
        b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n11",
    ],
)
def test_what_is_not_http_is_a_problem(server, sent):
    status, headers, body = split(talk(server, sent))
    problem = json.loads(body)
    assert (status, problem["code"]) == (400, "malformed-request")
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-request-id"] == problem["request_id"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert problem["request_id"] in server.log


def test_a_head_without_end_is_not_kept(server):
    head = b"GET /kv HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 70_000
    status, _, body = split(talk(server, head, b"a" * 10_000))
    assert (status, json.loads(body)["code"]) == (431, "headers-too-large")
    many = b"GET /kv HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(8_000))
    assert split(talk(server, many, many[18:], b"X: y\r\n"))[0] == 431


def test_trailers_without_end_are_not_kept(server):
    head = b"PUT /kv/t HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    answer = talk(server, head, *(b"".join(b"X-%d-%d: y\r\n" % (part, n) for n in range(2_000)) for part in range(3)))
    assert split(answer)[0] == 431
    assert httpx2.get(f"{server.url}/kv/t").status_code == 404
    assert talk(server, head + b"X-A: b\r\n\r\nGET /kv/t HTTP/1.1\r\n" + CLOSE + b"\r\n").endswith(b"\r\n\r\nx")


def test_a_connection_that_sends_no_whole_head_is_closed(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", limits={"IDLE_SECONDS_MAX": 1})
    for sent in ((), (b"GET /kv/a HTTP/1.1\r\n",), (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /kv/b HTT")):
        started = time.monotonic()
        # It returns when the service closes the connection, and waits for that less than any other limit lasts.
        talk(server, *sent)
        assert time.monotonic() - started > 0.8
    # A body may take longer than a head.
    put = b"PUT /kv/slow HTTP/1.1\r\n" + CLOSE + b"Content-Length: 3\r\n\r\n"
    assert talk(server, put, b"ab", b"", b"c", pause=0.5).startswith(b"HTTP/1.1 201")


def test_an_injected_header_is_not_a_header(server):
    wrong = httpx2.get(f"{server.url}/kv/a%0d%0aSet-Cookie:%20x=y")
    assert wrong.status_code == 404
    assert "set-cookie" not in wrong.headers


def test_a_truncated_answer_is_seen_to_be_one(serve, tmp_path):
    """When the backend fails in the middle of a stream, the connection is cut: nobody takes a part for the whole."""
    path = tmp_path / "store.db"
    server = serve(f"sqlite:///{path}")
    with httpx2.Client(base_url=server.url, timeout=20) as http:
        for part in range(10):
            points = [[part * 10_000 + t, "x" * 200] for t in range(10_000)]
            assert http.post("/ts/s/range", json={"points": points}).is_success
        with http.stream("GET", "/ts/s/range") as answer:
            assert answer.status_code == 200
            chunks = answer.iter_raw()
            next(chunks)
            connection = sqlite3.connect(path, timeout=10)
            for (table,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            ).fetchall():
                connection.execute(f'DROP TABLE "{table}"')
            connection.close()
            with pytest.raises(httpx2.RemoteProtocolError):
                for _ in chunks:
                    pass
        assert http.get("/healthz").status_code == 200
    failures = [json.loads(line) for line in server.log.splitlines() if '"level":"error"' in line]
    assert ("backend-unavailable", "/ts/{key}/range") in {(line["message"], line.get("route")) for line in failures}


def test_the_grace_period_is_bounded(serve, tmp_path):
    """Of two services that stop at once, each with a request that never ends, the one with less grace ends first."""
    servers = [
        serve(f"sqlite:///{tmp_path / f'{grace}.db'}", env={"RSTORED_SHUTDOWN_GRACE_SECONDS": grace})
        for grace in ("1", "100")
    ]
    with contextlib.ExitStack() as stack:
        for server in servers:
            connected = stack.enter_context(connection(server))
            connected.sendall(b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf")
            server.wait_until_read()
        started = time.monotonic()
        for server in servers:
            server.process.send_signal(signal.SIGTERM)
        short, long = servers
        assert short.process.wait(SECONDS_MAX) == 0
        assert time.monotonic() - started > 0.8
        assert long.process.poll() is None
    # Its request has ended.
    assert long.process.wait(SECONDS_MAX) == 0


def test_draining_serves_on_and_says_that_it_stops(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", env={"RSTORED_DRAIN_SECONDS": "1"})
    with httpx2.Client(base_url=server.url) as http:
        assert http.get("/readyz").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        until(lambda: http.get("/readyz").status_code == 503)
        assert http.get("/readyz").json()["code"] == "shutting-down"
        assert http.put("/kv/k", json=1).status_code == 201
        assert httpx2.get(f"{server.url}/healthz").status_code == 200
    assert server.process.wait(SECONDS_MAX) == 0


def test_a_second_signal_skips_the_waiting(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", env={"RSTORED_DRAIN_SECONDS": "60"})
    server.process.send_signal(signal.SIGINT)
    until(lambda: httpx2.get(f"{server.url}/readyz").status_code == 503)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(5) == 0


@pytest.mark.parametrize("size", [0, 1, 2**16 - 1, 2**16, 2**16 + 1, 300_000])
@pytest.mark.parametrize("framing", ["length", "chunked", "expect"])
def test_a_body_is_whole_however_it_arrives(large_server, size, framing):
    """Short bodies are gathered before they are served, long ones are served as they arrive."""
    body = bytes(n % 251 for n in range(size))
    head = b"PUT /kv/body HTTP/1.1\r\nHost: localhost\r\n"
    if framing == "chunked":
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(part), part) for n in range(0, size, 50_000) if (part := body[n : n + 50_000])
        )
        sent = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    else:
        expect = b"Expect: 100-continue\r\n" if framing == "expect" else b""
        sent = head + expect + b"Content-Length: %d\r\n\r\n" % size + body
    pieces = [sent[:90], sent[90:200], sent[200:40_000], sent[40_000:]]
    get = b"GET /kv/body HTTP/1.1\r\n" + CLOSE + b"\r\n"
    answer = talk(large_server, *pieces, get, pause=0.01)
    first, _, rest = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    assert first.startswith((b"HTTP/1.1 201", b"HTTP/1.1 204"))
    assert rest.partition(b"\r\n\r\n")[2] == body


def test_answers_keep_the_order_of_requests_also_where_some_are_slower(large_server):
    long = b"PUT /kv/long HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n" + b"x" * 500_000
    turn = b"GET /kv/long HTTP/1.1\r\nHost: localhost\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"HEAD /kv/long HTTP/1.1\r\n" + CLOSE + b"\r\n"
    answer = talk(large_server, (long + turn) * 5 + last)
    statuses = re.findall(rb"HTTP/1\.1 (\d\d\d)", answer)
    assert statuses == [b"201", b"200", b"200", *[b"204", b"200", b"200"] * 4, b"200"]
    assert answer.count(b"x" * 500_000) == 5


def test_an_old_client_knows_the_end_of_a_stream_by_the_end_of_the_connection(large_server):
    points = ",".join(f"[{t},{t}]" for t in range(50_000))
    assert httpx2.post(f"{large_server.url}/ts/long/range", content=f'{{"points":[{points}]}}').is_success
    _, headers, body = split(talk(large_server, b"GET /ts/long/range HTTP/1.0\r\nHost: localhost\r\n\r\n"))
    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"
    assert len(json.loads(body)["points"]) == 50_000


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"deflate, chunked"])
def test_a_body_in_another_transfer_coding_is_not_stored_as_it_came(server, coding):
    sent = b"PUT /kv/coded HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: " + coding + b"\r\n\r\n1\r\nx\r\n0\r\n\r\n"
    status, _, body = split(talk(server, sent))
    assert (status, json.loads(body)["code"]) == (415, "unsupported-media-type")
    assert httpx2.get(f"{server.url}/kv/coded").status_code == 404


@pytest.mark.parametrize(
    "line", [b"GET /healthz", *(b"GET /healthz HTTP/" + v for v in (b"0.9", b"1.2", b"2.0", b"3.0")), b"PRI * HTTP/2.0"]
)
def test_other_versions_of_http_are_told_so(server, line):
    tail = b"\r\nSM\r\n\r\n" if line.startswith(b"PRI") else b"\r\nHost: localhost\r\n\r\n"
    status, headers, body = split(talk(server, line + (tail if b"HTTP" in line else b"\r\n\r\n")))
    assert (status, json.loads(body)["code"], headers["connection"]) == (505, "unsupported-http-version", "close")


# --- connections that end before the answer does --------------------------------------------------------------

PUT_HALF = b"PUT /kv/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n%d"
RANGE = b"GET /ts/long/range HTTP/1.1\r\nHost: localhost\r\n\r\n"
GET_HALF = b"GET /kv/half HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def streaming(serve, tmp_path):
    """Starts a service with some mebibytes of points, more than lie in the buffers of sockets."""

    def start(**options):
        server = serve(f"sqlite:///{tmp_path / 'store.db'}", **options)
        for part in range(16):
            points = [[part * 1000 + t, "x" * 1000] for t in range(1000)]
            assert httpx2.post(f"{server.url}/ts/long/range", json={"points": points}).is_success
        return server

    return start


def read_to_end(connected) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connected.recv(2**20):
            received += chunk
    return received


def test_who_sends_no_more_still_gets_every_answer(streaming):
    server = streaming()
    for sent, expected in (
        (GET_HALF, [404]),
        (PUT_HALF % 1, [201]),
        (PUT_HALF % 2 + GET_HALF + PUT_HALF % 3, [204, 200, 204]),
        (RANGE + PUT_HALF % 4, [200, 204]),
        # The rest of a body never comes.
        (PUT_HALF % 5 + PUT_HALF[:-2] + b"", [204]),
        (PUT_HALF % 6 + GET_HALF[:-2], [204]),
    ):
        with connection(server) as connected:
            connected.sendall(sent)
            connected.shutdown(socket.SHUT_WR)
            # The connection waits for it less than the service would for more of the request.
            answer = read_to_end(connected)
        assert statuses(answer) == expected
        assert sent[:7] != RANGE[:7] or len(json.loads(unchunked(answer))["points"]) == 16_000
    assert httpx2.get(f"{server.url}/kv/half").text == "6"
    assert "Traceback" not in server.log


def unchunked(answer: bytes) -> bytes:
    """The body of the first answer, whose framing is checked to its end."""
    rest, body = answer.partition(b"\r\n\r\n")[2], b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        if not length:
            return body
        body, rest = body + rest[:length], rest[length + 2 :]


def test_who_sends_no_more_and_does_not_read_is_cut(streaming):
    server = streaming(limits={"STALL_SECONDS_MAX": 1})
    with connection(server) as connected:
        connected.sendall(RANGE)
        connected.shutdown(socket.SHUT_WR)
        until(lambda: "slow-reader" in server.log)
        received = read_to_end(connected)
        assert b"\r\n0\r\n\r\n" not in received


@pytest.mark.parametrize(
    "garbage", [b"\0\0nonsense\r\n\r\n", b"GET /kv/half HTTP/7.7\r\n\r\n", PUT_HALF[:-20] + b"zz\r\n\r\n"]
)
def test_nonsense_in_the_middle_of_a_stream_leaves_it_whole(streaming, garbage):
    server = streaming()
    with connection(server) as connected:
        connected.sendall(RANGE)
        received = connected.recv(100_000)
        connected.sendall(garbage)
        received += read_to_end(connected)
    assert len(json.loads(unchunked(received))["points"]) == 16_000
    assert statuses(received) in ([200, 400], [200, 505])
    assert json.loads(received.rpartition(b"\r\n\r\n")[2])["code"] in ("malformed-request", "unsupported-http-version")


def test_at_the_end_what_has_begun_is_finished_and_nothing_else_begins(streaming):
    """A stream, requests behind it, and a body of which a part is here; then SIGTERM."""
    server = streaming(env={"RSTORED_SHUTDOWN_GRACE_SECONDS": "15"})
    with connection(server) as stream, connection(server) as body, connection(server) as idle:
        idle.sendall(GET_HALF)
        assert statuses(idle.recv(65536)) == [404]
        stream.sendall(RANGE + PUT_HALF % 1)
        received = stream.recv(100_000)
        body.sendall(PUT_HALF[:-2].replace(b"/half", b"/body"))
        server.wait_until_read()
        server.process.send_signal(signal.SIGTERM)
        server.wait_until_stopping()
        assert idle.recv(100) == b""
        body.sendall(b"7" + PUT_HALF.replace(b"/half", b"/late") % 1)
        stream.sendall(PUT_HALF.replace(b"/half", b"/late") % 1)
        assert statuses(read_to_end(body)) == [201]
        received += read_to_end(stream)
    assert server.process.wait(SECONDS_MAX) == 0
    assert statuses(received) == [200, 201]
    assert len(json.loads(unchunked(received))["points"]) == 16_000
    again = streaming()
    assert [httpx2.get(f"{again.url}/kv/{key}").status_code for key in ("half", "body", "late")] == [200, 200, 404]


def arrive(connection: Connection, data: bytes) -> None:
    """What the event loop does when a read has brought this."""
    connection.get_buffer(-1)[: len(data)] = data
    connection.buffer_updated(len(data))


@pytest.mark.anyio
async def test_what_is_cancelled_before_its_task_has_begun_is_undone():
    """As by the end of the grace time: the app has begun outside of the task."""
    told = []

    async def app(request, write):
        try:
            await request.receive()
        except asyncio.CancelledError:
            # It may take a while, as the end of a stream does.
            await asyncio.sleep(0)
            told.append("cancelled")
            raise

    connections = Connections(Limits(), Metrics(None))
    ours, theirs = socket.socketpair()
    with theirs:
        made = Connection(app, connections, ours, None)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: made, ours)
        arrive(made, PUT_HALF[:-2])
        (task,) = connections.tasks
        task.cancel()
        await task
        assert told == ["cancelled"]
        await asyncio.sleep(0.1)
        assert theirs.recv(10) == b""


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (0, ["renewed", "/1", "renewed", "/2", "/3", "/4", "renewed", "/5"]),
        (1_001, ["renewed", "/1", "renewed", "/2", "renewed", "/3", "renewed", "/4", "renewed", "/5"]),
    ],
)
async def test_what_may_come_late_in_a_round_is_answered_from_what_is_stored_then(others, expected):
    """What is read for several requests of one round of the event loop may be of one moment."""
    told = []

    async def app(request, write):
        told.append(request.raw_path.decode())
        await request.receive()
        await write(request, Reply(204))

    connections = Connections(Limits(), Metrics(None), lambda: told.append("renewed"))
    connections.connections.update(range(others))  # type: ignore[arg-type]
    ours, theirs = socket.socketpair()
    with theirs:
        made = Connection(app, connections, ours, None)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: made, ours)
        arrive(made, b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGET /3")
        arrive(made, b" HTTP/1.1\r\nHost: a\r\n\r\n")
        arrive(made, b"PUT /4 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n")
        arrive(made, b"1GET /5 HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.sleep(0.1)
        transport.abort()
    assert told == expected


def test_what_a_task_saw_before_is_not_what_the_next_request_gets(tmp_path):
    """Another process may write after a task of this one has read, and before this one reads its next request."""
    # The service's own event loop calls what reads from sockets at once, and other callbacks after it.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(read_after_a_task(tmp_path))


async def read_after_a_task(tmp_path):
    dsn = f"sqlite:///{tmp_path / 'store.db'}"
    namespace, pair = namespace_place("ns"), Place("ns", Kind.KV, "k")

    async def write(content: bytes) -> None:
        backend = await SQLiteBackend.open(dsn)
        try:
            assert await backend.update([Update((namespace, pair), lambda heads: putting(content))]) == [None]
        finally:
            await backend.close()

    def putting(content: bytes):
        yield from ()
        return Commit([PutHead(namespace, Head(b"")), PutHead(pair, Head(b"", content))], None)

    def write_meanwhile(content: bytes) -> None:
        writer = threading.Thread(target=lambda: asyncio.run(write(content)))
        writer.start()
        writer.join()

    write_meanwhile(b"before")
    backend = await SQLiteBackend.open(dsn)

    async def app(request, write):
        (head,) = await read(backend, HeadRead(pair))
        await write(request, Reply(200, (), head.value))

    connections = Connections(Limits(), Metrics(None), backend.renew)
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        transport, _ = await loop.connect_accepted_socket(lambda: Connection(app, connections, ours, None), ours)
        for round_number in range(5):
            await backend.read([(HeadRead(pair),)])
            content = b"after-%d" % round_number
            write_meanwhile(content)
            theirs.send(b"GET /k HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await loop.sock_recv(theirs, 10_000)).endswith(content)
        transport.abort()
        # The end of the connection reaches it in a later round of the loop.
        assert await loop.sock_recv(theirs, 1) == b""
        await asyncio.sleep(0)
    await backend.close()
