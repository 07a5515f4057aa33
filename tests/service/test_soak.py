"""Many clients that come, send right and wrong requests, and are cut off anywhere: of none of them anything is left.

What they do is drawn from a seed, which a failure shows; RSTORE_SOAK_SEED draws it again, though timing still differs.
RSTORE_STRESS=1 makes it a minute (`make stress-test`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import os
import re
import socket
import ssl
import statistics
import struct
import threading
import time
import types
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator
from random import Random
from typing import Any, NamedTuple

import httpx2
import pytest
import uvloop
from tests.certificates import new_authority, tls_settings
from tests.conformance.backends import BACKENDS
from tests.conftest import ServiceProcess
from tests.knobs import knob
from tests.refusals import LIMITS as SMALL
from tests.refusals import REQUESTS, prepare
from tests.waiting import SECONDS_MAX

from rstored.api.requests import Request
from rstored.app import running_app
from rstored.http.connection import Connection
from rstored.http.connections import Connections
from rstored.http.entrance import Entrance
from rstored.http.exchange import Exchange
from rstored.limits import Limits
from rstored.process.server import bind
from rstored.process.tls import tls_context
from rstored.settings import Settings

STRESS = knob("RSTORE_STRESS", "0") == "1"
SEED = int(knob("RSTORE_SOAK_SEED", str(time.time_ns() % 10**9)))
SECONDS = 60 if STRESS else 3
CLIENTS = 40
# Whoever falls silent and keeps the connection is to be sent away by the seconds; by the bytes some are refused, and
# what is held for those who read slowly is soon as much as it may be.
LIMITS = {
    "idle_seconds_max": 1,
    "stall_seconds_max": 1,
    "body_seconds_max": 4,
    "in_flight_bytes_max": 32 * 2**20,
    "in_flight_bytes_per_client_max": 32 * 2**20,
    "frames_bytes_max": 32 * 2**20,
}
# A handshake or a farewell of TLS that the client does not answer may take ten seconds more.
SETTLED_SECONDS = 30
ANSWER_SECONDS_MAX = 5
# From the second to the last third; in the short run the silent ones still become more for most of it.
GROWTH_BYTES_MAX = (48 if STRESS else 96) * 2**20
# More than is waited for the end of the process, which has no reason to use it.
GRACE_SECONDS = 600


# --- what they send ----------------------------------------------------------------------------------------

POINTS = json.dumps({"points": [[t, "x" * 1000] for t in range(1000)]}).encode()
FORMS = (
    b"application/json",
    b"application/msgpack",
    b"application/x-ndjson",
    b"text/csv",
    b"application/vnd.rstore.points",
)
NONSENSE = (
    b"\0\0nonsense\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /kv/k1 HTTP/7.7\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    b"PUT /kv/k1 HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"PUT /kv/k1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    b"PUT /kv/k1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n" + bytes(100_000),
    b"GET /kv HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 70_000,
)


def request(method: bytes, target: bytes, body: bytes | None = None, *fields: bytes) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: localhost", *fields]
    if body is not None and not any(field.startswith(b"Transfer-Encoding") for field in fields):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body or b""])


def chunked(random: Random, body: bytes) -> bytes:
    size = random.randint(1, 100_000)
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def body(random: Random) -> bytes:
    """Some short, some long enough to be counted, some more than the buffers of sockets hold."""
    return bytes(int(2 ** random.uniform(0, 21)))


def key(random: Random) -> bytes:
    return b"k%d" % random.randrange(20)


def batch(random: Random) -> bytes:
    name, other = key(random).decode(), key(random).decode() + "-"
    size = int(2 ** random.uniform(0, 20))
    return json.dumps({"get": [name], "set": [{"key": name, "value": "x" * size}], "delete": [other]}).encode()


KINDS: tuple[Callable[[Random], bytes], ...] = (
    lambda random: request(b"GET", b"/kv/" + key(random)),
    lambda random: request(b"HEAD", b"/kv/large"),
    lambda random: request(b"GET", b"/kv/large"),
    lambda random: request(b"PUT", b"/kv/" + key(random), body(random)),
    lambda random: request(b"PUT", b"/kv/" + key(random), body(random), b"Expect: 100-continue"),
    lambda random: request(b"PUT", b"/kv/" + key(random), chunked(random, body(random)), b"Transfer-Encoding: chunked"),
    lambda random: request(b"PUT", b"/kv/" + key(random), b"upgraded", b"Connection: Upgrade", b"Upgrade: h2c"),
    lambda random: request(b"DELETE", b"/kv/" + key(random), None, b"Idempotency-Key: %d" % random.randrange(100)),
    lambda random: request(b"POST", b"/kv", batch(random)),
    lambda random: request(b"GET", b"/kv?match=k*"),
    lambda random: request(b"GET", b"/ts/long/range", None, b"Accept: " + random.choice(FORMS)),
    lambda random: request(b"GET", b"/ts/long/range?order=desc&n=%d" % random.randrange(1, 8000)),
    lambda random: request(b"GET", b"/ts/long/missing?start=0&end=1000000&freq=7"),
    lambda random: request(b"POST", b"/ts/" + key(random) + b"/range", POINTS[: random.choice((len(POINTS), 5000))]),
    lambda random: request(b"DELETE", b"/ts/" + key(random) + b"/range"),
    lambda random: request(b"POST", b"/es/" + key(random) + b"/events", b'{"events":[{"item":"i","value":[1]}]}'),
    lambda random: request(b"GET", b"/es/" + key(random) + random.choice((b"/current", b"/events"))),
    lambda random: request(b"DELETE", b"/es/" + key(random) + b"/events"),
    lambda random: request(b"GET", random.choice((b"/", b"/metrics", b"/openapi.json", b"/ns", b"/nowhere"))),
    lambda random: request(b"GET", b"/readyz", None, b"Connection: close").replace(
        b"1.1", random.choice((b"1.1", b"1.0"))
    ),
)


def garbled(random: Random, sent: bytes) -> bytes:
    """With some bytes taken out, or put in, or both: mostly in the head, since it comes first."""
    start = int(len(sent) * random.random() ** 3)
    return sent[:start] + random.randbytes(random.randrange(4)) + sent[start + random.randrange(4) :]


def conversation(random: Random) -> bytes:
    """What one client sends: a request, or several without waiting for answers; some of them broken."""
    parts = [random.choice(KINDS)(random) for _ in range(random.choice((1, 1, 1, 2, 5, 30)))]
    if random.random() < 0.3:
        at = random.randrange(len(parts))
        parts[at] = random.choice((*NONSENSE, garbled(random, parts[at]), garbled(random, parts[at])))
    return b"".join(parts)


# --- clients -----------------------------------------------------------------------------------------------


class Over(Exception):
    """As many bytes went one way as shall, or the service has closed."""


class Wire:
    """A connection that is over after some bytes, sent or read. Over TLS these are bytes of records, so that it may
    end in the midst of one, or of the handshake."""

    def __init__(self, connected: socket.socket, tls: ssl.SSLContext | None, sent_max: float, read_max: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = connected
        self._sent_max = sent_max
        self._read_max = read_max
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1") if tls else None

    async def open(self) -> None:
        while self._tls is not None:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send(self._outgoing.read())
                self._incoming.write(await self._read())
            else:
                break
        await self._send(self._outgoing.read())

    async def send(self, data: bytes) -> None:
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        await self._send(data)

    async def read(self) -> bytes:
        data = await self._read()
        if self._tls is None:
            return data
        self._incoming.write(data)
        with contextlib.suppress(ssl.SSLWantReadError):
            return self._tls.read(2**20)
        return b""

    async def _send(self, data: bytes) -> None:
        data = data[: int(min(self._sent_max, len(data)))]
        self._sent_max -= len(data)
        await self._loop.sock_sendall(self._socket, data)
        if self._sent_max <= 0:
            raise Over

    async def _read(self) -> bytes:
        data = await self._loop.sock_recv(self._socket, int(min(self._read_max, 2**16)))
        self._read_max -= len(data)
        if self._read_max <= 0 or not data:
            raise Over
        return data


class Crowd:
    """The clients, what the service said to them (the status of a first answer), and how they ended."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._port = port
        self._tls = tls
        self._silent: deque[socket.socket] = deque()
        self.statuses: Counter[bytes] = Counter()
        self.ends: Counter[str] = Counter()

    async def press(self, seconds: float) -> None:
        """Clients come and go for so long, and on a busy machine until they have seen enough to be a crowd.

        Those that are silent then are so until :meth:`close`.
        """
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(self._come_and_go(Random(f"{SEED} {number}"), until))

    @property
    def is_one(self) -> bool:
        """Whether there were clients of every kind."""
        return len(self.ends) == 4 and {b"HTTP/1.1 200", b"HTTP/1.1 400"} <= set(self.statuses)

    def close(self) -> None:
        while self._silent:
            self._silent.popleft().close()

    async def _come_and_go(self, random: Random, until: float) -> None:
        while time.monotonic() < until or (not self.is_one and time.monotonic() < until + SECONDS_MAX):
            await self._visit(random)

    async def _visit(self, random: Random) -> None:
        connected = socket.socket()
        connected.setblocking(False)
        if random.random() < 0.3:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.bind((f"127.0.0.{random.randint(2, 5)}", 0))
        sent = conversation(random)
        # Of the handshake there are some hundred bytes each way as well.
        sent_max = random.choice((float("inf"), random.randrange(1, 600), random.randrange(1, len(sent) + 600)))
        read_max = random.choice((float("inf"), int(2 ** random.uniform(0, 23))))
        wire = Wire(connected, self._tls, sent_max, read_max)
        try:
            async with asyncio.timeout(random.expovariate(3)):
                await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", self._port))
                await wire.open()
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._send(random, wire, sent))
                    both.create_task(self._read(wire))
        except* (Over, OSError):
            pass
        await self._end(random.choice(("reset", "close", "half-close", "silence")), connected)

    async def _send(self, random: Random, wire: Wire, sent: bytes) -> None:
        size, pause = random.choice(((len(sent), 0), (random.randint(1, 2**16), 0), (random.randint(1, 100), 0.01)))
        for start in range(0, len(sent), size):
            await wire.send(sent[start : start + size])
            if pause:
                await asyncio.sleep(random.random() * pause)

    async def _read(self, wire: Wire) -> None:
        received = b""
        while len(received) < 12:
            received += await wire.read()
        self.statuses[received[:12]] += 1
        while True:
            await wire.read()

    async def _end(self, how: str, connected: socket.socket) -> None:
        self.ends[how] += 1
        if how == "silence":
            self._silent.append(connected)
            if len(self._silent) > 300:
                self._silent.popleft().close()
            return
        with connected, contextlib.suppress(OSError):
            if how == "reset":
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == "half-close":
                connected.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(1):
                    while await asyncio.get_running_loop().sock_recv(connected, 2**16):
                        pass


class Service(NamedTuple):
    url: str
    tls: ssl.SSLContext | None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, verify=self.tls or False, timeout=30)

    def prepare(self) -> None:
        """Store what the clients ask for: more than fits the buffers of sockets."""
        with self.client() as http:
            for part in range(8):
                points = [[part * 1000 + t, "x" * 1000] for t in range(1000)]
                assert http.post("/ts/long/range", json={"points": points}).is_success
            assert http.put("/kv/large", content=bytes(2 * 2**20)).is_success
            assert http.get("/ts/long/range").is_success

    def write_and_read(self, told_to_end: threading.Event) -> list[float]:
        """A client among the others that wants little, and gets it right: how long each answer took."""
        seconds: list[float] = []
        with self.client() as http:
            while not told_to_end.is_set():
                started = time.monotonic()
                text = f"value {len(seconds)}"
                assert http.put("/ns/good/kv/k", content=text).is_success
                written = time.monotonic()
                answer = http.get("/ns/good/kv/k")
                seconds += written - started, time.monotonic() - written
                assert (answer.status_code, answer.text) == (200, text)
        return seconds


@contextlib.asynccontextmanager
async def soaked(service: Service, seconds: float):
    """Clients have come and gone; some are still there and silent. Meanwhile one among them was served well."""
    print(f"RSTORE_SOAK_SEED={SEED}")
    crowd = Crowd(service.port, service.tls)
    told_to_end = threading.Event()
    good = asyncio.create_task(asyncio.to_thread(service.write_and_read, told_to_end))
    try:
        await crowd.press(seconds)
        told_to_end.set()
        taken = await good
        print(f"slowest of {len(taken)}: {max(taken):.2f} s; {dict(crowd.ends)}, {dict(crowd.statuses)}")
        assert max(taken) < ANSWER_SECONDS_MAX
        # Else the crowd would not be what this is about.
        assert crowd.is_one
        assert b"HTTP/1.1 500" not in crowd.statuses
        if service.tls and not STRESS:
            # To see all these sent away would take longer than all else.
            crowd.close()
        yield
    finally:
        told_to_end.set()
        crowd.close()


async def settled(held: Callable[[], dict[str, float]]) -> None:
    """What is ``held`` comes to nothing within a while."""
    until = time.monotonic() + SETTLED_SECONDS
    while left := {name: count for name, count in held().items() if count}:
        if time.monotonic() > until:
            pytest.fail("\n".join([str(left), *holders(KEPT)]))
        await asyncio.sleep(0.2)


# What a connection is made of in the process of the service.
KEPT = (Connection, Exchange, Request)


def holders(kinds: tuple[type, ...], depth: int = 3) -> Iterator[str]:
    """Lines that say what keeps the instances of these classes: an indented line holds the line above it."""
    seen: set[int] = set()

    def lines(thing: object, level: int) -> Iterator[str]:
        for holder in gc.get_referrers(thing):
            if id(holder) in seen or (isinstance(holder, types.FrameType) and holder.f_code.co_filename == __file__):
                continue
            seen.add(id(holder))
            yield "  " * level + repr(holder)[:200]
            if level < depth:
                yield from lines(holder, level + 1)

    for kept in [thing for thing in gc.get_objects() if isinstance(thing, kinds)]:
        yield f"{kept!r} {vars(kept) if hasattr(kept, '__dict__') else ''}"
        yield from lines(kept, 1)


# --- tests -------------------------------------------------------------------------------------------------


def on_loop_of_the_service(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on a loop of its own, of the kind that the service has; it fails if anything called there does."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        failures: list[dict[str, Any]] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
            await test(**fixtures)

        uvloop.run(watched())
        assert failures == []

    return run


class Certificates(NamedTuple):
    files: tuple[str, str]
    trusting: ssl.SSLContext


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "tls"])
def certificates(request, tmp_path_factory):
    """None without TLS."""
    if not request.param:
        return None
    authority = new_authority(tmp_path_factory.mktemp("tls") / "authority")
    return Certificates(authority.issue("service", "127.0.0.1"), ssl.create_default_context(cafile=authority.file))


async def sample_memory(process: ServiceProcess, into: list[int]) -> None:
    while True:
        into.append(process.memory_bytes)
        await asyncio.sleep(0.05)


@on_loop_of_the_service
async def test_a_process_lets_go_of_everything(serve, tmp_path, certificates):
    process = serve(
        f"sqlite:///{tmp_path / 'store.db'}",
        forked=False,
        limits={name.upper(): limit for name, limit in LIMITS.items()},
        env={
            "RSTORED_SHUTDOWN_GRACE_SECONDS": str(GRACE_SECONDS),
            **(tls_settings(*certificates.files) if certificates else {}),
        },
    )
    service = Service(process.url, certificates and certificates.trusting)
    await asyncio.to_thread(service.prepare)
    pid = process.process.pid
    files_before = len(os.listdir(f"/proc/{pid}/fd"))

    def held() -> dict[str, float]:
        with service.client() as http:
            metrics = http.get("/metrics").text
        gauges = ("rstored_connections", "rstored_requests_in_flight")
        return {
            **{gauge: float(re.search(rf"^{gauge} (\S+)", metrics, re.MULTILINE)[1]) for gauge in gauges},
            "files": max(len(os.listdir(f"/proc/{pid}/fd")) - files_before, 0),
        }

    memory: list[int] = []
    sampling = asyncio.create_task(sample_memory(process, memory))
    async with soaked(service, SECONDS):
        sampling.cancel()
        second, third = (statistics.median(memory[len(memory) * n // 3 : len(memory) * (n + 1) // 3]) for n in (1, 2))
        print(f"memory: {second / 2**20:.0f} MiB, then {third / 2**20:.0f}")
        assert third - second < GROWTH_BYTES_MAX
        await settled(held)
        assert "Traceback" not in process.log
        assert "internal-error" not in process.log
        assert process.stop() == 0


@contextlib.contextmanager
def entrance_of(app: Any, connections: Connections, tls: ssl.SSLContext | None) -> Iterator[tuple[Entrance, str]]:
    with bind("127.0.0.1", 0) as listener:
        entrance = Entrance(listener, 100, app, connections, tls)
        try:
            yield entrance, f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            entrance.close()


@on_loop_of_the_service
async def test_nothing_is_left_of_requests_and_connections(tmp_path, certificates):
    """The same within this process, where everything that is held can be seen."""
    cert, key = certificates.files if certificates else (None, None)
    settings = Settings(dsn=f"sqlite:///{tmp_path / 'store.db'}", limits=Limits(**LIMITS), tls_cert=cert, tls_key=key)
    async with running_app(settings) as app:
        state = app.state
        connections = Connections(settings.limits, state.metrics, state.backend.renew)
        with entrance_of(app.front_door.serve, connections, tls_context(settings)) as (entrance, url):
            service = Service(url, certificates and certificates.trusting)
            await asyncio.to_thread(service.prepare)
            app.front_door.sweeps.append(connections.sweep)
            tasks_before = asyncio.all_tasks()

            def held() -> dict[str, float]:
                counts: dict[str, float] = {
                    "connections": len(connections.connections),
                    "idle": len(connections.idle),
                    "clients": len(connections.of_client),
                    "arriving": len(entrance.arriving),
                    "requests": len(app.front_door.admission.under_way),
                    "shares": len(app.front_door.admission.shares),
                    "bytes": state.bytes_held,
                    "bytes of clients": len(state.bytes_held_of),
                    "tasks": len(asyncio.all_tasks() - tasks_before),
                    "work without the collector": not gc.isenabled(),
                }
                if not any(counts.values()):
                    counts |= Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, KEPT))
                return counts

            # Without the cyclic collector: what only it could free would be there too long, with the buffers of TLS.
            # What tests before this one left to it goes first.
            gc.collect()
            thresholds = gc.get_threshold()
            gc.set_threshold(0)
            try:
                async with soaked(service, SECONDS / 2):
                    await settled(held)
            finally:
                gc.set_threshold(*thresholds)


@pytest.mark.parametrize("backend", BACKENDS)
@on_loop_of_the_service
async def test_nothing_is_left_of_a_request_that_is_refused(tmp_path, backend):
    """Wherever the reason is found: before the storage is asked, in a plan, or in what is remembered of a write."""
    if reason := BACKENDS[backend].missing():
        pytest.skip(reason)
    limits = Limits(**{name.lower(): limit for name, limit in SMALL.items()})

    def held() -> dict[str, float]:
        return dict(
            Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, (Request, Exchange)))
        )

    async with running_app(Settings(dsn=BACKENDS[backend].fresh(tmp_path), limits=limits)) as app:
        connections = Connections(limits, app.state.metrics, app.state.backend.renew)
        with entrance_of(app.front_door.serve, connections, None) as (_, url), httpx2.Client(base_url=url) as http:
            await asyncio.to_thread(prepare, http)
            gc.collect()
            gc.disable()
            try:
                for code, refused in REQUESTS.items():
                    for fields in ({}, {"Idempotency-Key": code}, {"Idempotency-Key": code}):
                        http.headers.update(fields)
                        assert (await asyncio.to_thread(refused, http)).is_client_error
                    del http.headers["Idempotency-Key"]
                    await settled(held)
            finally:
                gc.enable()
