"""What many points at once, and many long answers at once, take of the service's memory."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
from array import array

import httpx2
import pytest
from tests.conformance.backends import BACKENDS
from tests.waiting import until

from rstore.core.frames import encode_stream
from rstore.core.media_types import POINTS_MEDIA_TYPE
from rstore.core.points import Points

MEMORY_BYTES_MAX = 150_000_000
POINTS = 1_000_000
CALLS = 4


def test_a_million_points_a_call_and_all_of_them_out_again_take_little_memory(serve, tmp_path):
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", forked=False)
    url = f"{server.url}/ts/long/range"
    for call in range(CALLS):
        timestamps = array("q", range(call * POINTS, (call + 1) * POINTS))
        body = b"".join(encode_stream(Points(timestamps, array("d", timestamps))))
        taken = httpx2.post(url, content=body, headers={"Content-Type": POINTS_MEDIA_TYPE}, timeout=60)
        assert taken.json() == {"points": POINTS}
    with httpx2.stream("GET", url, headers={"Accept": POINTS_MEDIA_TYPE}, timeout=60) as answer:
        assert sum(map(len, answer.iter_raw())) > 8 * CALLS * POINTS
    assert server.peak_bytes < MEMORY_BYTES_MAX


VALUE_BYTES = 4 * 2**20
IN_FLIGHT_BYTES = 32 * 2**20
CLIENTS = 100
# A single item of a sequence is folded, so its value is text.
TEXT = json.dumps("x" * VALUE_BYTES)
GETS = b'{"get":["long0","long1","long2","long3"]}'
LONG_ANSWERS = {
    "a value": (b"GET /kv/long0", b""),
    "values by a batch": (b"POST /kv", GETS),
    "a page of values": (b"GET /kv?match=long*&values=true&limit=4", b""),
    "a point": (b"GET /ts/long/last", b""),
    "a state": (b"GET /es/long/current", b""),
}


def answers(url: str, line: bytes, body: bytes) -> bool:
    """Whether the service has the room to answer this request."""
    method, path = line.decode().split()
    fields = {"Content-Type": "application/json"}
    return httpx2.request(method, url + path, content=body, headers=fields, timeout=60).is_success


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_long_answers_at_once_take_little_memory(serve, tmp_path, backend):
    """Those that there is room for are answered, and the others refused, whatever the storage reads together."""
    if reason := BACKENDS[backend].missing():
        pytest.skip(reason)
    sizes = ("IN_FLIGHT_BYTES_MAX", "IN_FLIGHT_BYTES_PER_CLIENT_MAX", "BODY_BYTES_MAX", "FRAMES_BYTES_MAX")
    server = serve(BACKENDS[backend].fresh(tmp_path), limits=dict.fromkeys(sizes, IN_FLIGHT_BYTES), forked=False)
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        for number in range(4):
            assert http.put(f"/kv/long{number}", content=bytes(VALUE_BYTES)).is_success
        assert http.post("/ts/long/range", content=f'{{"points":[[1,{TEXT}]]}}').is_success
        assert http.post("/es/long/events", content=f'{{"events":[{{"item":"i","value":{TEXT}}}]}}').is_success
    before = server.memory_bytes
    for name, (line, body) in LONG_ANSWERS.items():
        # The service drops the answers to the clients before when it notices that they are gone.
        until(functools.partial(answers, server.url, line, body))
        server.forget_peak()
        fields = b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: %d" % len(body)
        with contextlib.ExitStack() as open_sockets:
            clients = [open_sockets.enter_context(socket.socket()) for _ in range(CLIENTS)]
            for client in clients:
                # A client that reads little leaves its answer with the service.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.settimeout(60)
                client.connect(("127.0.0.1", server.port))
            for client in clients:
                client.sendall(b"%b HTTP/1.1\r\n%b\r\n\r\n%b" % (line, fields, body))
            statuses = [client.recv(12)[9:] for client in clients]
        assert set(statuses) == {b"200", b"503"}, name
        # Beside the answers that wait for their readers there are those that are read from the storage, and one that is
        # rendered.
        taken = server.peak_bytes - before
        assert taken < IN_FLIGHT_BYTES + 56 * VALUE_BYTES, name
