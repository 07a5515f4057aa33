"""The limits on connections, on requests under way and on time: each kept and passed, on a real service."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator

import httpx2
import pytest

from rstored.limits import Limits

GET = b"GET /kv/k HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF_A_PUT = b"PUT /kv/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf"


@contextlib.contextmanager
def connection(server, client: str = "127.0.0.1", receive_bytes: int | None = None) -> Iterator[socket.socket]:
    """A connection from an address of loopback; each is another client."""
    with socket.socket() as connected:
        connected.settimeout(20)
        if receive_bytes is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connected.bind((client, 0))
        connected.connect(("127.0.0.1", server.port))
        yield connected


def answer_on(connected: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The next answer on a connection: its status, headers and body. Status 0 if the service closed it instead."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in received:
            if not (chunk := connected.recv(65536)):
                return 0, {}, b""
            received += chunk
        head, _, body = received.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        while len(body) < int(headers.get("content-length", "0")) and (chunk := connected.recv(65536)):
            body += chunk
        return int(lines[0].split()[1]), headers, body
    return 0, {}, b""


def ask(connected: socket.socket, sent: bytes = GET) -> tuple[int, dict[str, str], bytes]:
    with contextlib.suppress(ConnectionError):
        connected.sendall(sent)
    return answer_on(connected)


def code(answer: tuple[int, dict[str, str], bytes]) -> str:
    return json.loads(answer[2])["code"]


def closed_within(connected: socket.socket, seconds: float) -> bool:
    """Whether the service closes the connection; what it still sends is read."""
    connected.settimeout(seconds)
    try:
        while connected.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.fixture
def started(serve, tmp_path):
    """Starts a service with some limits and the key `k`."""

    def start(**limits: int):
        server = serve(f"sqlite:///{tmp_path / 'store.db'}", limits={name.upper(): n for name, n in limits.items()})
        # Closed by the service itself, and that is waited for, so that this connection counts no more.
        with connection(server) as connected:
            head = b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 1\r\n\r\n"
            connected.sendall(head + b"v")
            assert closed_within(connected, 20)
        return server

    return start


# --- heads ---------------------------------------------------------------------------------------------------


def request(*fields: bytes) -> bytes:
    return b"GET /kv/k HTTP/1.1\r\n" + b"".join(b"%b\r\n" % field for field in (b"Host: localhost", *fields)) + b"\r\n"


def test_header_bytes_max(started):
    server = started(header_bytes_max=2000)
    room = 2000 - len(request(b"X: "))
    with connection(server) as connected:
        assert ask(connected, request(b"X: " + b"a" * room))[0] == 200
        answer = ask(connected, request(b"X: " + b"a" * (room + 1)))
    assert (answer[0], answer[1]["connection"], code(answer)) == (431, "close", "headers-too-large")
    assert json.loads(answer[2])["limit"] == 2000
    # It is known before the head ends.
    with connection(server) as connected:
        answer = ask(connected, b"GET /kv/k HTTP/1.1\r\nX: ".ljust(2001, b"a"))
    assert (answer[0], answer[1]["connection"], code(answer)) == (431, "close", "headers-too-large")


def test_headers_max(started):
    server = started(headers_max=10)
    with connection(server) as connected:
        assert ask(connected, request(*(b"X: y" for _ in range(9))))[0] == 200
        answer = ask(connected, request(*(b"X: y" for _ in range(10))))
    assert (answer[0], code(answer), json.loads(answer[2])["limit"]) == (431, "headers-too-large", 10)
    # It is known before the head ends. The parser has a field when the next one begins.
    with connection(server) as connected:
        answer = ask(connected, request(*(b"X: y" for _ in range(10)))[:-2] + b"X")
    assert (answer[0], code(answer), json.loads(answer[2])["limit"]) == (431, "headers-too-large", 10)


# --- connections -------------------------------------------------------------------------------------------


def test_connections_max_closes_the_longest_idle_one(started):
    server = started(connections_max=3)
    with contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(connection(server)) for _ in range(3))
        # The first has asked last, so the second is idle the longest.
        for connected in (second, third, first):
            assert ask(connected)[0] == 200
        new = stack.enter_context(connection(server))
        assert ask(new)[0] == 200
        assert closed_within(second, 5)
        assert [ask(connected)[0] for connected in (first, third, new)] == [200, 200, 200]
        metrics = httpx2.get(f"{server.url}/metrics").text
    assert 'rstored_closed_connections_total{reason="evicted"} 2.0' in metrics


def test_connections_max_closes_none_that_has_a_request_under_way(started):
    server = started(connections_max=3)
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connection(server)) for _ in range(3)]
        for connected in busy:
            connected.sendall(HALF_A_PUT)
        server.wait_until_read()
        assert ask(stack.enter_context(connection(server)))[0] == 0
        for connected in busy:
            assert ask(connected, b" a PUT")[0] in (201, 204)
        assert ask(stack.enter_context(connection(server)))[0] == 200


def test_connections_per_client_max(started):
    server = started(connections_per_client_max=2)
    with contextlib.ExitStack() as stack:
        mine = [stack.enter_context(connection(server, "127.0.0.2")) for _ in range(2)]
        assert [ask(connected)[0] for connected in mine] == [200, 200]
        assert ask(stack.enter_context(connection(server, "127.0.0.2")))[0] == 0
        assert ask(stack.enter_context(connection(server, "127.0.0.3")))[0] == 200
        mine[0].close()
        server.wait_until_read()
        assert ask(stack.enter_context(connection(server, "127.0.0.2")))[0] == 200


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (120, 160))


def test_open_files_bound_the_connections(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", preexec=few_files)
    assert httpx2.get(server.url).json()["limits"]["connections_max"] == 60
    assert "raise `ulimit -n`" in server.log
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connection(server))
        assert ask(stack.enter_context(connection(server)))[0] == 404


def test_when_no_file_can_be_opened_it_goes_on_and_recovers(started):
    """Not by its connections, which leave room, but by the system, or by something else in the process."""
    server = started()
    pid = server.process.pid
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        # A limit is the number that no file may have, so the numbers below must be taken.
        all_busy = [stack.enter_context(connection(server)) for _ in range(50)]
        idle, _ = (stack.enter_context(connection(server)) for _ in range(2))
        assert ask(idle)[0] == 200
        for connected in all_busy:
            connected.sendall(HALF_A_PUT)
        server.wait_until_read()
        files = max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (files, limit[1]))
        # Those that are idle make room, the longest idle one first.
        first = stack.enter_context(connection(server))
        assert ask(first)[0] == 200
        server.wait_until_read()
        assert ask(idle)[0] == 200
        second = stack.enter_context(connection(server))
        assert ask(second)[0] == 200
        assert closed_within(first, 5)
        for connected in (idle, second):
            connected.sendall(HALF_A_PUT)
        server.wait_until_read()
        waiting = stack.enter_context(connection(server))
        waiting.sendall(GET)
        time.sleep(1.5)
        assert ask(all_busy[0], b" a PUT")[0] == 201
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
        assert answer_on(waiting)[0] == 200
        assert [ask(connected, b" a PUT")[0] for connected in (idle, second)] == [204, 204]
    assert 0 < server.log.count("no connection can be accepted") < 5
    assert "Traceback" not in server.log


# --- requests under way ------------------------------------------------------------------------------------


def assert_shed(answer: tuple[int, dict[str, str], bytes]) -> None:
    assert (answer[0], code(answer)) == (503, "overloaded")
    assert int(answer[1]["retry-after"]) >= 1


def test_requests_in_flight_max(started):
    server = started(requests_in_flight_max=3)
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connection(server, f"127.0.0.{n}")) for n in range(2, 5)]
        for connected in busy[:2]:
            connected.sendall(HALF_A_PUT)
        server.wait_until_read()
        other = stack.enter_context(connection(server))
        assert ask(other)[0] == 200
        busy[2].sendall(HALF_A_PUT)
        server.wait_until_read()
        assert_shed(ask(other))
        # Before the body: this one never arrives.
        huge = b"PUT /kv/huge HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30000000\r\n\r\n"
        with connection(server) as connected:
            assert_shed(ask(connected, huge))
        # A short body costs the client no connection.
        assert_shed(ask(other, b"PUT /kv/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n123"))
        for path in (b"/healthz", b"/readyz", b"/metrics"):
            assert ask(other, b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)[0] == 200
        assert ask(busy[0], b" a PUT")[0] == 201
        assert ask(other)[0] == 200


def test_requests_in_flight_per_client_max(started):
    server = started(requests_in_flight_per_client_max=2)
    with contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connection(server, "127.0.0.2")) for _ in range(2)]
        for connected in busy:
            connected.sendall(HALF_A_PUT)
        server.wait_until_read()
        assert_shed(ask(stack.enter_context(connection(server, "127.0.0.2"))))
        assert ask(stack.enter_context(connection(server, "127.0.0.3")))[0] == 200
        assert ask(busy[0], b" a PUT")[0] == 201
        assert ask(busy[0])[0] == 200


def test_in_flight_bytes_max(started):
    server = started(
        in_flight_bytes_max=2_000_000,
        **dict.fromkeys(("body_bytes_max", "frames_bytes_max", "value_bytes_max"), 2_000_000),
    )
    head = b"PUT /kv/big HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1500000\r\n\r\n"
    with connection(server) as first, connection(server) as second:
        first.sendall(head + bytes(1_000_000))
        server.wait_until_read()
        assert ask(second, head.replace(b"1500000", b"900000") + bytes(900_000))[0] == 201
        # An answer counts as a body does.
        first.sendall(bytes(200_000))
        server.wait_until_read()
        assert_shed(ask(second, GET.replace(b"/k ", b"/big ")))
        assert ask(second)[0] == 200
        answer = ask(second, head + bytes(1_500_000))
        assert_shed(answer)
        assert ask(first, bytes(300_000))[0] == 204
        assert len(httpx2.get(f"{server.url}/kv/big").content) == 1_500_000


def test_in_flight_bytes_per_client_max(started):
    """Who holds all that one client may, in bodies that do not end, leaves room for another."""
    server = started(
        in_flight_bytes_max=4_000_000,
        in_flight_bytes_per_client_max=2_000_000,
        **dict.fromkeys(("body_bytes_max", "frames_bytes_max", "value_bytes_max"), 2_000_000),
    )
    head = b"PUT /kv/big HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(connection(server)) for _ in range(4)]
        for connected in greedy[:2]:
            connected.sendall(head + bytes(999_999))
        server.wait_until_read()
        for connected in greedy[2:]:
            assert_shed(ask(connected, head + bytes(999_999)))
        other = stack.enter_context(connection(server, "127.0.0.2"))
        assert ask(other, head + bytes(1_000_000))[0] == 201
        assert len(ask(other, GET.replace(b"/k ", b"/big "))[2]) == 1_000_000
        again = stack.enter_context(connection(server))
        assert_shed(ask(again, GET.replace(b"/k ", b"/big ")))
        assert ask(greedy[0], b"x")[0] == ask(greedy[1], b"x")[0] == 204
        assert ask(again, GET.replace(b"/k ", b"/big "))[0] == 200


# --- time --------------------------------------------------------------------------------------------------


def byte_by_byte(connected: socket.socket, sent: bytes) -> None:
    for byte in sent:
        connected.sendall(bytes([byte]))
        time.sleep(0.3)


def test_idle_seconds_max(started):
    server = started(idle_seconds_max=2)
    with connection(server) as connected:
        for _ in range(6):
            assert ask(connected)[0] == 200
            time.sleep(0.5)
        # Byte by byte is no way to stay.
        with pytest.raises(ConnectionError):
            byte_by_byte(connected, GET[:-1])


def slow_put(connected: socket.socket, chunk: bytes, pause: float, seconds: float) -> tuple[int, dict[str, str], bytes]:
    """The answer to a PUT whose body arrives in pieces for so long."""
    connected.sendall(b"PUT /kv/slow HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    end = time.monotonic() + seconds
    connected.setblocking(False)
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                if connected.recv(1, socket.MSG_PEEK):
                    break
            connected.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            time.sleep(pause)
        else:
            connected.sendall(b"0\r\n\r\n")
    connected.settimeout(20)
    return answer_on(connected)


def test_body_seconds_max(started):
    server = started(body_seconds_max=3)
    with connection(server) as connected:
        assert slow_put(connected, b"x" * 500, 0.1, 1)[0] == 201
    with connection(server) as connected:
        begun = time.monotonic()
        answer = slow_put(connected, b"x" * 500, 0.1, 30)
        assert (answer[0], code(answer)) == (408, "request-timeout")
        assert time.monotonic() - begun > 2.5


def test_a_slow_body_is_cut(started):
    """stall_seconds_max and transfer_bytes_per_second_min, for what arrives."""
    server = started(stall_seconds_max=1, transfer_bytes_per_second_min=1000)
    with connection(server) as connected:
        assert slow_put(connected, b"x" * 400, 0.1, 4)[0] == 201
    with connection(server) as connected:
        begun = time.monotonic()
        answer = slow_put(connected, b"x" * 10, 0.1, 30)
        assert (answer[0], code(answer)) == (408, "request-timeout")
        assert time.monotonic() - begun > 0.8


def test_request_seconds_max(started):
    server = started(request_seconds_max=2)
    with connection(server) as connected:
        answer = slow_put(connected, b"x" * 500, 0.1, 30)
    assert (answer[0], code(answer)) == (504, "deadline-exceeded")
    assert httpx2.get(f"{server.url}/kv/slow").status_code == 404
    with connection(server) as connected:
        assert slow_put(connected, b"x" * 500, 0.1, 0.5)[0] == 201


@pytest.fixture
def streaming(started, request):
    """A service with a series of some tens of mebibytes."""

    def start(**limits: int):
        server = started(**limits)
        with httpx2.Client(base_url=server.url, timeout=30) as http:
            for part in range(20):
                points = [[part * 1000 + t, "x" * 1000] for t in range(1000)]
                assert http.post("/ts/s/range", json={"points": points}).is_success
        return server

    return start


RANGE = b"GET /ts/s/range HTTP/1.1\r\nHost: localhost\r\n\r\n"


def read_slowly(connected: socket.socket, size: int, pause: float, seconds: float) -> tuple[int, bool]:
    """How much came, and whether all of it did."""
    received = 0
    tail = b""
    end = time.monotonic() + seconds
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < end and (chunk := connected.recv(size)):
            received += len(chunk)
            tail = (tail + chunk)[-7:]
            if tail.endswith(b"\r\n0\r\n\r\n"):
                return received, True
            time.sleep(pause)
    return received, False


def test_a_request_whose_answer_has_begun_is_cut_when_its_time_is_over(streaming):
    server = streaming(request_seconds_max=2)
    with connection(server) as connected:
        connected.sendall(RANGE)
        assert read_slowly(connected, 2**20, 0, 30)[1]
    with connection(server, receive_bytes=65536) as connected:
        connected.sendall(RANGE)
        received, whole = read_slowly(connected, 10_000, 0.1, 4)
        assert received > 100_000
        # The rest is what had been sent by then.
        assert not read_slowly(connected, 2**20, 0, 30)[1]
        assert not whole


def test_a_reader_that_does_not_read_is_cut(streaming):
    """stall_seconds_max and transfer_bytes_per_second_min, for what is read."""
    server = streaming(stall_seconds_max=1, transfer_bytes_per_second_min=10_000)
    # The least buffer: what the machine keeps is not the service's to count.
    with connection(server, receive_bytes=4096) as slow, connection(server, receive_bytes=4096) as still:
        still.sendall(RANGE)
        slow.sendall(RANGE)
        received, _ = read_slowly(slow, 8192, 0.05, 4)
        assert received > 250_000
        # It read nothing at all, and is reset, whatever lies in its buffer.
        assert closed_within(still, 10)
    assert "slow-reader" in server.log
    with connection(server) as connected:
        connected.sendall(RANGE)
        assert read_slowly(connected, 2**20, 0, 30)[1]


SITUATIONS: dict[str, Callable[..., None]] = {
    "header_bytes_max": test_header_bytes_max,
    "headers_max": test_headers_max,
    "connections_max": test_connections_max_closes_the_longest_idle_one,
    "connections_per_client_max": test_connections_per_client_max,
    "requests_in_flight_max": test_requests_in_flight_max,
    "requests_in_flight_per_client_max": test_requests_in_flight_per_client_max,
    "in_flight_bytes_max": test_in_flight_bytes_max,
    "in_flight_bytes_per_client_max": test_in_flight_bytes_per_client_max,
    "idle_seconds_max": test_idle_seconds_max,
    "body_seconds_max": test_body_seconds_max,
    "request_seconds_max": test_request_seconds_max,
    "stall_seconds_max": test_a_slow_body_is_cut,
    "transfer_bytes_per_second_min": test_a_reader_that_does_not_read_is_cut,
}


def test_every_limit_that_a_single_request_cannot_pass_is_tested_here():
    names = list(Limits.model_fields)
    assert list(SITUATIONS) == names[names.index("header_bytes_max") :]
