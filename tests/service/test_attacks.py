"""What somebody can do who opens sockets: the others are answered all the while, and memory stays under its bound.

The bound is that of docs/operating.md. RSTORE_STRESS=1 makes the attacks larger (`make stress-test`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import resource
import selectors
import socket
import time
from array import array
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from tests.conformance.backends import BACKENDS
from tests.knobs import knob

from rstore.core.frames import encode_stream
from rstore.core.media_types import POINTS_MEDIA_TYPE
from rstore.core.points import Cells, Points

STRESS = knob("RSTORE_STRESS", "0") == "1"
SCALE = 5 if STRESS else 1
BASE_BYTES = 160 * 2**20
CONNECTION_BYTES = 16 * 2**10
HEAD = b"GET /kv/k HTTP/1.1\r\nHost: localhost\r\n"
GET = HEAD + b"\r\n"
IN_CHUNKS = b"PUT /kv/chunks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(autouse=True)
def many_files():
    """Both ends of each connection are on this machine; this is ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def server(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", forked=False)
    assert httpx2.put(f"{server.url}/kv/k", json="v").is_success
    return server


def connection(server, client: str = "127.0.0.1", receive_bytes: int | None = None) -> socket.socket:
    connected = socket.socket()
    connected.settimeout(30)
    if receive_bytes is not None:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connected.bind((client, 0))
    connected.connect(("127.0.0.1", server.port))
    return connected


def assert_others_are_answered(server) -> None:
    for _ in range(3):
        with httpx2.Client(base_url=server.url, timeout=20) as http:
            assert http.put("/kv/other", json=1).is_success
            assert http.get("/kv/k").json() == "v"
            assert http.get("/readyz").status_code == 200


def test_a_bomb_is_not_unpacked(server):
    bomb = gzip.compress(bytes(16 * 2**20))
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip"):
        answer = httpx2.put(f"{server.url}/kv/bomb", content=bomb, headers={"Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-media-type")
    assert httpx2.get(f"{server.url}/kv/bomb").status_code == 404
    assert server.peak_bytes < BASE_BYTES


def test_a_chunked_body_without_end(server):
    with connection(server) as connected:
        connected.sendall(b"POST /kv HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                connected.sendall(chunk)
        with contextlib.suppress(ConnectionError):
            assert connected.recv(100).startswith(b"HTTP/1.1 413")
    assert_others_are_answered(server)
    assert server.peak_bytes < BASE_BYTES + 4 * 32 * 2**20


def test_a_million_sealed_points_in_one_frame_after_the_other(server):
    """As long as a body may be that the service takes at once, and none of it compresses."""
    points = Points(array("q", range(10**6)), Cells(b"\x03" * 10**6, array("I", [100]) * 10**6, os.urandom(10**8)))
    body = b"".join(encode_stream(points))
    with httpx2.Client(base_url=server.url, timeout=60, headers={"Content-Type": POINTS_MEDIA_TYPE}) as http:
        for key in "abc":
            assert http.post(f"/ts/{key}/range", content=body).json() == {"points": 10**6}
    assert_others_are_answered(server)
    assert server.peak_bytes < BASE_BYTES + 6 * len(body)


def test_points_that_decompress_from_almost_nothing(server):
    count = 2**21
    points = Points(array("q", range(count)), Cells(bytes(count), array("I", [1]) * count, b"1" * count))
    body = b"".join(encode_stream(points))
    assert len(body) < count // 20
    headers = {"Content-Type": POINTS_MEDIA_TYPE}
    found = httpx2.post(f"{server.url}/ts/s/range", content=body, headers=headers, timeout=300)
    assert found.json() == {"points": count}
    assert_others_are_answered(server)
    assert server.peak_bytes < BASE_BYTES + 100 * count


def test_a_batch_of_nothing_but_short_keys(server):
    body = b'{"get":["a"%b]}' % (b',"a"' * (2**23 - 10))
    found = httpx2.post(f"{server.url}/kv", content=body, timeout=60)
    assert (found.status_code, found.json()["code"]) == (413, "batch-too-large")
    assert_others_are_answered(server)
    assert server.peak_bytes < BASE_BYTES + 20 * len(body)


SHORT_KEYS = b'{"get":["a"%b]}' % (b',"a"' * (2**22 - 10))
# An array of arrays without anything in them, a byte each.
EMPTY_ARRAYS = b"\x81\xa3set\x91\x82\xa3key\xa1k\xa5value" + b"\xdd" + (2**22).to_bytes(4, "big") + b"\x90" * 2**22


@pytest.mark.parametrize(
    ("form", "body", "factor"), [("json", SHORT_KEYS, 20), ("msgpack", EMPTY_ARRAYS, 80)], ids=["keys", "arrays"]
)
def test_of_bodies_of_nothing_but_tiny_parts_one_is_parsed_at_a_time(server, form, body, factor):
    def post(_: int) -> tuple[int, str]:
        headers = {"Content-Type": f"application/{form}"}
        found = httpx2.post(f"{server.url}/kv", content=body, headers=headers, timeout=120)
        return found.status_code, found.json().get("code")

    count = 4 * SCALE
    with ThreadPoolExecutor(count) as threads:
        answers = set(threads.map(post, range(count)))
    assert answers <= {(413, "batch-too-large"), (413, "value-too-large"), (503, "overloaded")}
    assert (503, "overloaded") not in answers or STRESS
    assert_others_are_answered(server)
    assert server.peak_bytes < BASE_BYTES + 2 * count * len(body) + factor * len(body)


def test_a_value_of_msgpack_is_measured_before_it_is_parsed(server):
    body = EMPTY_ARRAYS.replace((2**22).to_bytes(4, "big"), (2**23).to_bytes(4, "big")) + b"\x90" * 2**22
    found = httpx2.post(f"{server.url}/kv", content=body, headers={"Content-Type": "application/msgpack"}, timeout=60)
    assert (found.status_code, found.json()["code"], found.json()["pointer"]) == (
        413,
        "value-too-large",
        "/set/0/value",
    )
    assert server.peak_bytes < BASE_BYTES + 4 * len(body)


def test_rows_of_points_are_few_objects_at_a_time(server):
    body = b"\x81\xa6points\xdd" + (2**19).to_bytes(4, "big") + b"\x92\x01\x91\x90" * 2**19
    headers = {"Content-Type": "application/msgpack"}
    found = httpx2.post(f"{server.url}/ts/s/range", content=body, headers=headers, timeout=60)
    assert found.json() == {"points": 1}
    assert server.peak_bytes < BASE_BYTES + 40 * len(body)


OPENINGS = (
    HEAD + b"a:b\r\n" * 6400,
    HEAD + b"a:b\r\n" * 6400 + b"\r\n",
    HEAD + b"Upgrade: x\r\nConnection: upgrade\r\n" + b"a:b\r\n" * 6390,
    HEAD + b"".join(b"field-%d: %b\r\n" % (number, b"v" * 300) for number in range(98)),
    HEAD + b"a: " + b"v" * 32_000,
    HEAD + b"a:b\r\n" + b" folded\r\n" * 3500,
    b"GET /" + b"a" * 32_000,
    IN_CHUNKS + b"0\r\n" + b"a:b\r\n" * 6400,
    IN_CHUNKS + b"1\r\na\r\n" * 6000,
    IN_CHUNKS + b"1;" + b"a=b;" * 8000,
    b"\r\n" * 16_000,
    GET * 1000,
)


def test_no_connection_takes_more_than_its_documented_memory(server):
    """100 KB, says docs/operating.md, besides a request under way, whether its head is unfinished or refused."""
    count = 50
    for opening in OPENINGS:
        for packet in (len(opening), 4000):
            with contextlib.ExitStack() as stack:
                opened = [stack.enter_context(connection(server)) for _ in range(count)]
                server.forget_peak()
                before = server.memory_bytes
                for at in range(0, len(opening), packet):
                    for connected in opened:
                        # The service may have closed the connection after a refusal.
                        with contextlib.suppress(OSError):
                            connected.sendall(opening[at : at + packet])
                # The service reads what came before this.
                with connection(server) as other:
                    other.sendall(GET)
                    assert other.recv(100).startswith(b"HTTP/1.1 200")
                assert server.peak_bytes - before < count * (100_000 + 2**17 * opening.startswith(IN_CHUNKS))
    assert_others_are_answered(server)


def test_ten_thousand_idle_connections(server, many_files):
    """As many as the hard limit of open files allows this process, if that is fewer."""
    count = min(10_000, many_files - 200)
    with contextlib.ExitStack() as stack:
        for number in range(count):
            connected = stack.enter_context(connection(server, f"127.0.0.{2 + number % 4}"))
            # Some send nothing, others a part of a head.
            if number % 2:
                connected.sendall(b"GET /kv/k HTTP/1.1\r\nHost: lo")
        assert_others_are_answered(server)
        # They are counted once a second.
        time.sleep(1.5)
        metrics = httpx2.get(f"{server.url}/metrics").text
        assert int(float(re.search(r"^rstored_connections (\S+)", metrics, re.MULTILINE)[1])) > count * 0.9
        assert server.peak_bytes < BASE_BYTES + count * CONNECTION_BYTES
        # Beyond the limit the longest idle ones make room.
        for number in range(500):
            stack.enter_context(connection(server, f"127.0.0.{2 + number % 4}"))
        assert_others_are_answered(server)


def test_readers_that_do_not_read(serve, tmp_path):
    bytes_max = 64 * 2**20
    server = serve(
        f"sqlite:///{tmp_path / 'store.db'}",
        forked=False,
        limits={"IN_FLIGHT_BYTES_MAX": bytes_max, "FRAMES_BYTES_MAX": bytes_max},
    )
    with httpx2.Client(base_url=server.url, timeout=30) as http:
        for part in range(20):
            points = [[part * 1000 + t, "x" * 1000] for t in range(1000)]
            assert http.post("/ts/s/range", json={"points": points}).is_success
        assert http.put("/kv/large", content=bytes(4 * 2**20)).is_success
        assert http.put("/kv/k", json="v").is_success
    count = 50 * SCALE
    with contextlib.ExitStack() as stack:
        for path in (b"/ts/s/range", b"/kv/large") * (count // 2):
            connected = stack.enter_context(connection(server, receive_bytes=4096))
            connected.sendall(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        time.sleep(1)
        assert_others_are_answered(server)
        assert server.peak_bytes < BASE_BYTES + 4 * bytes_max
        refused = httpx2.get(f"{server.url}/kv/large")
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")


@pytest.mark.parametrize(
    ("target", "accept"),
    [
        (b"/ts/s/missing?start=1000000&end=1999999&freq=1", b"*/*"),
        (b"/ts/s/range", b"application/msgpack"),
        (b"/es/e/events", b"application/msgpack"),
    ],
)
def test_answers_that_are_gathered_count_while_they_grow(serve, tmp_path, target, accept):
    """A request of a hundred bytes, many times at once, whose answer is whole before its first byte is sent."""
    bytes_max = 64 * 2**20
    server = serve(
        f"sqlite:///{tmp_path / 'store.db'}",
        forked=False,
        limits={"IN_FLIGHT_BYTES_MAX": bytes_max, "FRAMES_BYTES_MAX": bytes_max},
    )
    with httpx2.Client(base_url=server.url, timeout=30) as http:
        assert http.put("/kv/k", json="v").is_success
        for part in range(20):
            points = [[part * 1000 + t, "x" * 1000] for t in range(1000)]
            assert http.post("/ts/s/range", json={"points": points}).is_success
            event = {"item": "i", "op": "setitem", "value": "x" * 10**6}
            assert http.post("/es/e/events", json={"events": [event]}).is_success
    head = b"GET %b HTTP/1.1\r\nHost: localhost\r\nAccept: %b\r\n\r\n" % (target, accept)
    with contextlib.ExitStack() as stack:
        asking = [stack.enter_context(connection(server)) for _ in range(40 * SCALE)]
        for connected in asking:
            connected.sendall(head)
        statuses = {connected.recv(100).split()[1] for connected in asking}
    assert statuses == {b"200", b"503"}
    assert_others_are_answered(server)
    assert server.peak_bytes < BASE_BYTES + 4 * bytes_max


def test_floods_of_pipelined_requests(server):
    flood = GET * (5000 * SCALE)
    with contextlib.ExitStack() as stack:
        flooding = [stack.enter_context(connection(server)) for _ in range(20)]
        for connected in flooding:
            connected.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                connected.send(flood)
        assert_others_are_answered(server)
    assert server.peak_bytes < BASE_BYTES + 20 * 2**20


@pytest.mark.parametrize("backend", ["sqlite", "postgresql", "redis"])
def test_a_client_with_many_long_batches_keeps_no_other_one_waiting(serve, tmp_path, backend):
    case = BACKENDS[backend]
    if missing := case.missing():
        pytest.skip(missing)
    server = serve(case.fresh(tmp_path))
    reads = json.dumps({"get": [f"{number:08}" for number in range(10_000)]}).encode()
    writes = json.dumps({"set": [{"key": f"{number:08}", "value": number} for number in range(5_000)]}).encode()
    head = b"POST /kv HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    bodies = [writes] * 30 + [reads] * 150
    with contextlib.ExitStack() as stack, httpx2.Client(base_url=server.url, timeout=60) as http:
        assert http.put("/kv/k", json="v").is_success
        flooding = [stack.enter_context(connection(server, "127.0.0.2")) for _ in bodies]
        with ThreadPoolExecutor(len(bodies)) as threads:
            list(threads.map(lambda to, body: to.sendall(head % len(body) + body), flooding, bodies))
        selector = stack.enter_context(selectors.DefaultSelector())
        for connected in flooding:
            selector.register(connected, selectors.EVENT_READ)
        for name, ask in (
            ("read", lambda: http.get("/kv/k")),
            ("batch", lambda: http.post("/kv", json={"get": list(map(str, range(1_000)))})),
            ("write", lambda: http.put("/kv/other", json=1)),
        ) * 2:
            answered = len(selector.select(0))
            assert ask().is_success
            # However slow the machine is, few of the many others come first.
            overtaken = len(selector.select(0)) - answered
            assert overtaken <= 8, (name, overtaken)
        # The others still wait, so it was while they did.
        assert len(selector.select(0)) < len(flooding)
    assert server.peak_bytes < BASE_BYTES + 4 * sum(map(len, bodies))
    # Else it would finish them first.
    server.process.kill()


def test_a_flood_of_what_is_not_a_request_does_not_flood_the_log(server):
    count = 400
    with contextlib.ExitStack() as stack:
        flooding = [stack.enter_context(connection(server)) for _ in range(count)]
        for connected in flooding:
            connected.sendall(b"NONSENSE\r\n\r\n")
        for connected in flooding:
            assert connected.recv(100).startswith(b"HTTP/1.1 400")
    time.sleep(1.5)
    assert_others_are_answered(server)
    assert 0 < server.log.count('"malformed request"') <= count // 2
    counts = map(int, re.findall(r'"malformed requests","count":(\d+)', server.log))
    assert count // 2 <= sum(counts) <= count


def test_events_are_counted_before_they_are_looked_at(serve, tmp_path):
    """Each has no item and a value that is not base64, which would be told first."""
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", limits={"EVENTS_PER_CALL_MAX": 2})
    event = {"item": "", "op": "setitem", "value": "=", "encoding": "sealed"}
    found = httpx2.post(f"{server.url}/es/e/events", json={"events": [event] * 3}).json()
    assert found["code"] == "batch-too-large"


def test_overload_sheds_and_goes_on(serve, tmp_path):
    """Of what comes at once some is done and all else refused: nothing waits long, and nothing is lost."""
    most = 20
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", limits={"REQUESTS_IN_FLIGHT_MAX": most})
    rounds = 10 * SCALE
    clients = 200
    answers: dict[str, tuple[int, bytes]] = {}
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        sockets = [stack.enter_context(connection(server)) for _ in range(clients)]
        for number in range(rounds):
            for client, connected in enumerate(sockets):
                key = f"{number}-{client}"
                head = f"PUT /kv/{key} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nvalue"
                connected.sendall(head.encode())
                selector.register(connected, selectors.EVENT_READ, (key, connected))
            while selector.get_map():
                ready = selector.select(30)
                assert ready, "a request was not answered"
                for entry, _ in ready:
                    key, connected = entry.data
                    answer = whole_answer(connected)
                    answers[key] = int(answer.split()[1]), answer
                    selector.unregister(connected)
            assert httpx2.get(f"{server.url}/healthz").status_code == 200
    stored = {key for key, (status, _) in answers.items() if status == 201}
    shed = [answer for status, answer in answers.values() if status == 503]
    assert len(stored) + len(shed) == len(answers) == rounds * clients
    # Each round does at least what may be under way, so the work goes on however much is refused.
    assert len(stored) >= rounds * most
    assert shed
    assert all(
        b"\r\nretry-after: 1\r\n" in answer and json.loads(body(answer))["code"] == "overloaded" for answer in shed
    )
    found: set[str] = set()
    cursor: dict[str, str] | None = {}
    while cursor is not None:
        page = httpx2.get(f"{server.url}/kv", params=cursor).json()
        found |= {item["key"] for item in page["items"]}
        cursor = {"cursor": page["cursor"]} if page["cursor"] else None
    assert found == stored


def body(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def whole_answer(connected: socket.socket) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = connected.recv(65536)
        assert chunk, "the connection was closed"
        answer += chunk
    size = re.search(rb"content-length: (\d+)", answer)
    while size is not None and len(body(answer)) < int(size[1]):
        answer += connected.recv(65536)
    return answer
