"""Whatever bytes a client sends: each connection ends or is idle soon, others are served, and memory stays bounded.

What clients send is drawn from a seed, which a failure shows; RSTORE_STREAMS_SEED draws it again, though timing still
differs. RSTORE_STRESS=1 draws ten times as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import re
import socket
import ssl
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from random import Random
from typing import Any, Final

import httpx2
import pytest
import uvloop
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.certificates import new_authority, tls_settings
from tests.knobs import knob
from tests.waiting import has_read_everything, until

from rstored.api.front_door import SendReply
from rstored.api.metrics import Metrics
from rstored.api.replies import Reply
from rstored.api.requests import ClientGone, Request
from rstored.http.connection import Connection
from rstored.http.connections import Connections
from rstored.limits import Limits

STRESS = knob("RSTORE_STRESS", "0") == "1"
SEED = int(knob("RSTORE_STREAMS_SEED", str(time.time_ns() % 10**9)))
ROUNDS = 20 if STRESS else 2
CLIENTS = 60

# --- what they send ----------------------------------------------------------------------------------------

HOST = b"Host: localhost\r\n"
UPGRADE = b"Upgrade: x\r\nConnection: upgrade\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def get(target: bytes, fields: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"GET %b HTTP/%b\r\n%b%b\r\n" % (target, version, HOST, fields)


def put(body: bytes, fields: bytes = b"") -> bytes:
    return b"PUT /kv/put HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (HOST, fields, len(body), body)


def put_in_chunks(random: Random, body: bytes, fields: bytes = b"") -> bytes:
    size = random.choice((1, 7, 1000, len(body) + 1))
    extension = random.choice((b"", b"", b";a=b", b";" + b"x" * 3000))
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    trailers = random.choice((b"", b"", b"a: b\r\n", b"a:b\r\n" * 200, b"a: " + b"b" * 100_000 + b"\r\n"))
    return b"PUT /kv/put HTTP/1.1\r\n%b%b%b\r\n%b0\r\n%b\r\n" % (HOST, fields, CHUNKED, chunks, trailers)


def body(random: Random) -> bytes:
    """Blank lines and zeros, which could be taken for the end of a head, of a chunk, or of all of them."""
    size = int(2 ** random.uniform(0, 17))
    pattern = random.choice((b"x", b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", get(b"/kv/in-a-body")))
    return (pattern * (size // len(pattern) + 1))[:size]


KINDS: Final[tuple[Callable[[Random], bytes], ...]] = (
    lambda random: get(b"/healthz"),
    lambda random: get(b"/kv/small"),
    lambda random: get(b"/kv/large"),
    lambda random: get(b"/nowhere").replace(b"GET", random.choice((b"HEAD", b"OPTIONS", b"DELETE", b"PATCH"))),
    lambda random: get(b"/healthz", UPGRADE),
    lambda random: get(b"http://localhost/kv/small"),
    lambda random: get(b"/healthz", b"Connection: close\r\n"),
    lambda random: get(b"/healthz", version=b"1.0"),
    lambda random: put(body(random)),
    lambda random: put(body(random)[:1000], UPGRADE),
    lambda random: put(body(random)[:5000], b"Expect: 100-continue\r\n"),
    lambda random: put_in_chunks(random, body(random)[:50_000]),
    lambda random: put_in_chunks(random, body(random)[:500], UPGRADE),
    lambda random: put(b"")[:-2] + b"a:b\r\n" * random.choice((90, 200, 20_000)) + b"\r\n",
    lambda random: get(b"/healthz", b"a: " + b"b" * random.choice((30_000, 100_000)) + b"\r\n"),
    lambda random: get(b"/kv/" + b"k" * random.choice((9_000, 40_000))),
    lambda random: b"\r\n" * random.choice((1, 2, 30_000)),
    lambda random: random.choice(
        (
            b"nonsense",
            b"\0\0nonsense\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.randbytes(500),
            b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
            put(b"x", CHUNKED),
            b"GET /healthz HTTP/1.1\r\n\r\n",
        )
    ),
)


def mutated(random: Random, stream: bytes) -> bytes:
    """With a few bytes replaced, put in, taken out or sent twice."""
    start = random.randrange(len(stream))
    end = min(start + random.choice((0, 1, 1, 5, 100)), len(stream))
    within = random.choice((b"", stream[start:end] * 2, random.randbytes(3), random.choice(KINDS)(random)))
    return stream[:start] + within + stream[end:]


def many(part: bytes, count: int) -> bytes:
    return part * min(count, 300_000 // len(part) + 1)


def stream(random: Random) -> bytes:
    """What one client sends: requests of some kinds glued together, many of one kind, some of them broken."""
    parts = [random.choice(KINDS)(random) for _ in range(random.choice((1, 1, 2, 5)))]
    sent = b"".join(many(part, random.choice((1, 1, 1, 2, 20, 1000))) for part in parts)
    for _ in range(random.choice((0, 0, 1, 3))):
        sent = mutated(random, sent) or b"x"
    return sent if random.random() < 0.7 else sent[: random.randrange(len(sent))]


def cut(random: Random, sent: bytes) -> list[bytes]:
    """In packets: all at once, or cut anywhere."""
    cuts = {random.randrange(len(sent) + 1) for _ in range(random.choice((0, 1, 5, 100)))}
    if random.random() < 0.2:
        # Byte by byte around one place.
        middle = random.randrange(len(sent) + 1)
        cuts |= set(range(middle, min(middle + 50, len(sent))))
    places = [0, *sorted(cuts), len(sent)]
    return [sent[start:end] for start, end in itertools.pairwise(places) if end > start]


# --- one connection, in this process -----------------------------------------------------------------------


class Served:
    """A connection in this process, and what its app was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answered = b""

    async def app(self, request: Request, write: SendReply) -> None:
        received, more = b"", True
        while more:
            try:
                part, more = await request.receive()
            except ClientGone:
                return
            received += part
        self.asked.append((request.method, request.raw_path, request.query_string, request.fields, received))
        if request.raw_path == b"/kv/small":
            await asyncio.sleep(0)
        await write(request, Reply(200, (), b"answer"))

    async def talk(self, packets: list[bytes]) -> None:
        """What it makes is gone at its end without the cyclic collector, which a process seldom runs."""
        gc.disable()
        try:
            connection = await self._talk(packets)
            # The last callback of the transport may still be running.
            await asyncio.sleep(0)
            assert connection() is None
        finally:
            gc.enable()

    async def _talk(self, packets: list[bytes]) -> weakref.ref[Connection]:
        connections = Connections(Limits(), Metrics(None))
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        with theirs:
            made = Connection(self.app, connections, ours, None)
            connections.accept(made, loop.time())
            await loop.connect_accepted_socket(lambda: made, ours)
            reading = asyncio.create_task(self._read(theirs))
            for packet in packets:
                while not made.transport.is_closing() and not made.transport.is_reading():
                    await asyncio.sleep(0)
                if made.transport.is_closing():
                    break
                made.get_buffer(-1)[: len(packet)] = packet
                made.buffer_updated(len(packet))
            while not made.transport.is_closing() and (
                not made.transport.is_reading()
                or (made.exchange is not None and (made.exchange.complete_body or made.refusal is not None))
            ):
                await asyncio.sleep(0)
            made.transport.close()
            await reading
        assert not connections.connections
        assert not connections.idle
        return weakref.ref(made)

    async def _read(self, theirs: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await asyncio.get_running_loop().sock_recv(theirs, 2**16):
                self.answered += chunk


@settings(deadline=None, max_examples=1000 if STRESS else 150)
@given(st.integers(min_value=0))
@example(25395)
@example(600)
@example(2177589)
@example(6001599)
def test_what_is_answered_does_not_depend_on_where_the_packets_are_cut(number):
    """The same requests reach the app, whole and in order, and the same refusal ends them."""
    random = Random(number)
    # What is unfinished is finished by this, or becomes too long. Otherwise one of the two might only be refused later.
    sent = stream(random) + b"x" * 4 * Limits().header_bytes_max
    whole, in_packets = Served(), Served()
    largest = 2**16
    uvloop.run(whole.talk([sent[at : at + largest] for at in range(0, len(sent), largest)]))
    packets = [part[at : at + largest] for part in cut(random, sent) for at in range(0, len(part), largest)]
    uvloop.run(in_packets.talk(packets))
    assert whole.asked == in_packets.asked
    # A body is asked for only where it does not come with its head.
    statuses = [re.findall(rb"HTTP/1\.1 ([2-5]\d\d)", served.answered) for served in (whole, in_packets)]
    assert statuses[0] == statuses[1]


# --- what escapes, and what nobody ends --------------------------------------------------------------------


@contextlib.asynccontextmanager
async def connected(app: Any, renew: Callable[[], None] = lambda: None):
    """A connection in this process and the client's end of it."""
    connections = Connections(Limits(), Metrics(None), renew)
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        made = Connection(app, connections, ours, None)
        connections.accept(made, loop.time())
        transport, _ = await loop.connect_accepted_socket(lambda: made, ours)
        yield made, theirs
        transport.abort()


def fails(*_: Any) -> None:
    # A new one each time: one that is kept would keep its frames, and with them the connection.
    raise kind_of_failure("a fault of the service")


async def fails_at_once(request: Request, write: SendReply) -> None:
    fails()


async def fails_later(request: Request, write: SendReply) -> None:
    await asyncio.sleep(0)
    fails()


async def fails_when_answered(request: Request, write: SendReply) -> None:
    await write(request, Reply(200, ((b"bad", b"line\nbreak"),)))


async def answers(request: Request, write: SendReply) -> None:
    await write(request, Reply(204))


kind_of_failure: type[BaseException] = RuntimeError


@pytest.mark.parametrize("error", [RuntimeError, RecursionError, MemoryError, asyncio.CancelledError])
@pytest.mark.parametrize(
    ("app", "renew"),
    [
        (fails_at_once, lambda: None),
        (fails_later, lambda: None),
        (fails_when_answered, lambda: None),
        (answers, fails),
    ],
    ids=["at once", "later", "in the answer", "renew"],
)
def test_whatever_escapes_from_answering_ends_the_connection(app, renew, error, monkeypatch):
    monkeypatch.setitem(globals(), "kind_of_failure", error)

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        async with connected(app, renew) as (made, theirs):
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(theirs, get(b"/1") + get(b"/2"))
            with contextlib.suppress(ConnectionError):
                while await loop.sock_recv(theirs, 1000):
                    pass
            assert not made.server.connections
            assert not made.server.idle
            assert made.exchange is None

    uvloop.run(test())


async def is_kept(app: Any, sent: bytes, renew: Callable[[], None] = lambda: None) -> bool:
    """Whether anything still holds a connection that is over, on which this was sent."""
    async with connected(app, renew) as (made, theirs):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(theirs, sent)
        while await loop.sock_recv(theirs, 1000):
            pass
        gone = weakref.ref(made)
    del made
    await asyncio.sleep(0)
    return gone() is not None


def test_a_wait_that_fails_leaves_nothing():
    def failing() -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, RuntimeError())
        return future

    async def app(request: Request, write: SendReply) -> None:
        with contextlib.suppress(RuntimeError):
            await failing()
        await write(request, Reply(204))

    async def test() -> None:
        assert not await is_kept(app, get(b"/", b"Connection: close\r\n"))

    gc.disable()
    try:
        uvloop.run(test())
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, asyncio.CancelledError])
def test_what_escapes_from_the_next_request_is_logged_at_once_and_keeps_nothing(error, monkeypatch):
    """The next request begins in the task of the last one, which must not end in the exception."""
    monkeypatch.setitem(globals(), "kind_of_failure", error)
    turns = itertools.count()
    # The fixture `caplog` would keep the exception.
    logged: list[str] = []
    monkeypatch.setattr(logging.getLogger("rstored.server"), "exception", logged.append)

    async def answers_later(request: Request, write: SendReply) -> None:
        await asyncio.sleep(0)
        await write(request, Reply(204))

    async def test() -> None:
        kept = await is_kept(answers_later, get(b"/1") + get(b"/2"), lambda: fails() if next(turns) else None)
        assert logged == ["a connection failed"]
        assert not kept

    gc.disable()
    try:
        uvloop.run(test())
    finally:
        gc.enable()


def test_a_client_may_go_before_the_end_of_a_stream():
    ended: list[type[Exception]] = []

    async def test() -> None:
        async def app(request: Request, write: SendReply) -> None:
            async def rest() -> AsyncGenerator[bytes, None]:
                while made.server.connections:
                    await asyncio.sleep(0)
                return
                yield b""

            try:
                await write(request, Reply(200, (), rest(), (b"1", b"2")))
            except Exception as error:
                ended.append(type(error))

        async with connected(app) as (made, theirs):
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(theirs, get(b"/"))
            await loop.sock_recv(theirs, 1000)
            made.transport.abort()
            while not ended:
                await asyncio.sleep(0)

    uvloop.run(test())
    assert ended == [ClientGone]


@pytest.mark.parametrize("state", ["not idle", "its task has ended", "without a task"])
def test_a_connection_that_is_in_nobodys_care_is_ended(state, caplog):
    async def waits(request: Request, write: SendReply) -> None:
        await asyncio.sleep(60)

    async def test() -> None:
        async with connected(waits) as (made, theirs):
            loop = asyncio.get_running_loop()
            if state == "not idle":
                made.server.idle.clear()
            else:
                await loop.sock_sendall(theirs, get(b"/"))
                while made.exchange is None or made.exchange.task is None:
                    await asyncio.sleep(0)
                made.server.sweep()
                assert not made.transport.is_closing()
                ended = loop.create_task(asyncio.sleep(0)) if state == "its task has ended" else None
                await asyncio.sleep(0.01)
                made.exchange.task = ended
            made.server.sweep()
            assert await loop.sock_recv(theirs, 1000) == b""
            assert "nobody owned a connection" in caplog.text

    uvloop.run(test())


def test_a_sweep_goes_on_after_a_connection_that_fails(caplog, monkeypatch):
    async def test() -> None:
        async with connected(answers) as (made, theirs):
            monkeypatch.setattr(made, "check", fails)
            made.server.sweep()
            assert made.server.metrics.connections == 1
            assert await asyncio.get_running_loop().sock_recv(theirs, 1000) == b""

    uvloop.run(test())
    assert "a connection failed" in caplog.text


# --- a service -----------------------------------------------------------------------------------------------


class Client:
    """One that sends a stream, reads or does not, and ends in some way."""

    def __init__(self, port: int, tls: ssl.SSLContext | None, random: Random, sends: bytes) -> None:
        self._port = port
        self._tls = tls
        self._random = random
        self._sends = sends
        self.sent_bytes = 0
        self._socket = socket.socket()
        self._writer: asyncio.StreamWriter | None = None

    async def talk(self) -> None:
        random = self._random
        packets = cut(random, self._sends)
        reads = random.random() < 0.6
        end = random.choice(("close", "reset", "half-close", "silence", "silence"))
        with contextlib.suppress(OSError, TimeoutError):
            # The least buffer, so that what the service sends stays with it.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self._socket.bind((f"127.0.0.{random.randint(2, 5)}", 0))
            self._socket.connect(("127.0.0.1", self._port))
            reader, self._writer = await asyncio.open_connection(
                sock=self._socket, ssl=self._tls, server_hostname="127.0.0.1" if self._tls else None, limit=4096
            )
            if not reads:
                self._writer.transport.pause_reading()  # type: ignore[attr-defined]
            reading = asyncio.create_task(self._read(reader)) if reads else None
            async with asyncio.timeout(3):
                for packet in packets:
                    self._writer.write(packet)
                    self.sent_bytes += len(packet)
                    await self._writer.drain()
                    await asyncio.sleep(random.choice((0, 0, 0.001)))
            if reading is not None:
                await asyncio.sleep(random.random() * 0.2)
                reading.cancel()
            self._end(end)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(2**16):
                pass

    def _end(self, how: str) -> None:
        assert self._writer is not None
        transport = self._writer.transport
        if how == "reset":
            transport.abort()
        elif how == "close":
            transport.close()
        elif how == "half-close":
            # Below TLS, if there is any.
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._socket.close()


async def crowd(port: int, tls: ssl.SSLContext | None, number: int) -> list[Client]:
    """Clients that have sent their streams, all at the same time; those that fell silent are still connected.

    For each kind there is one that sends nothing else, a thousand times. What the others send is drawn.
    """
    randoms = [Random(f"{SEED} {number} {client}") for client in range(CLIENTS)]
    streams = [many(kind(random), 1000) for kind, random in zip(KINDS, randoms, strict=False)]
    streams += [stream(random) for random in randoms[len(KINDS) :]]
    clients = [Client(port, tls, random, sends) for random, sends in zip(randoms, streams, strict=True)]
    await asyncio.gather(*(client.talk() for client in clients))
    return clients


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
def test_after_any_bytes_each_connection_ends_or_is_idle_and_others_are_served(serve, tmp_path, over_tls):
    print(f"RSTORE_STREAMS_SEED={SEED}")
    env, tls = {"RSTORED_SHUTDOWN_GRACE_SECONDS": "60"}, None
    if over_tls:
        authority = new_authority(tmp_path / "authority")
        env |= tls_settings(*authority.issue("service", "127.0.0.1"))
        tls = ssl.create_default_context(cafile=authority.file)
    # What is idle is closed soon as well, so at the end there is none.
    seconds = ("IDLE_SECONDS_MAX", "STALL_SECONDS_MAX", "BODY_SECONDS_MAX", "REQUEST_SECONDS_MAX")
    limits = dict.fromkeys(seconds, 2)
    server = serve(f"sqlite:///{tmp_path / 'store.db'}", limits=limits, env=env, forked=False)
    pid = server.process.pid

    def ask(method: str, path: str, **options: Any) -> httpx2.Response:
        return httpx2.request(method, server.url + path, verify=tls or False, timeout=60, **options)

    assert ask("PUT", "/kv/small", json=1).is_success
    assert ask("PUT", "/kv/large", content=bytes(60_000)).is_success
    files = len(os.listdir(f"/proc/{pid}/fd"))

    async def test() -> None:
        for number in range(ROUNDS):
            server.forget_peak()
            before = server.memory_bytes
            talking = asyncio.create_task(crowd(server.port, tls, number))
            served = 0
            while not talking.done():
                answer = await asyncio.to_thread(ask, "GET", "/kv/small")
                assert answer.text == "1"
                served += 1
            assert served
            clients = talking.result()
            sent = sum(client.sent_bytes for client in clients)
            grown = server.peak_bytes - before
            print(f"{sent / 2**20:.1f} MiB sent, {grown / 2**20:.1f} MiB taken, {served} others served")
            # Each connection has its share, and over TLS its buffers.
            assert grown < 16 * 2**20 + 2 * sent + CLIENTS * (512 if over_tls else 128) * 1024
            await asyncio.to_thread(until, lambda: has_read_everything(server.port))
            await asyncio.to_thread(until, lambda: len(os.listdir(f"/proc/{pid}/fd")) <= files)
            for client in clients:
                client.close()
        # Some of these are under way, in the middle of a head, idle, or do not read, when the service is told to stop.
        clients = await crowd(server.port, tls, ROUNDS)
        assert await asyncio.to_thread(server.stop) == 0
        for client in clients:
            client.close()

    asyncio.run(test())
    wrong = re.compile("Traceback|internal-error|nobody owned|grace|failed")
    assert [line for line in server.log.splitlines() if wrong.search(line)] == []
