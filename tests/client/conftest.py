"""Fixtures for the SDK's tests: a real service, and servers that give any answer that a test wants."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pytest

from rstore import cli


@pytest.fixture(scope="session")
def service_url(serve_session: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a real service process."""
    folder = tmp_path_factory.mktemp("store")
    return str(serve_session(f"sqlite:///{folder / 'store.db'}").url)


_NAMES = itertools.count()


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"client-{next(_NAMES)}"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's settings come from the tests alone."""
    for name in ("RSTORE_URL", "RSTORE_TOKEN", "RSTORE_KEY", "RSTORE_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)


class Received(NamedTuple):
    """A request as it came over the wire; header names are lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


# The parts of an answer are sent one by one, for as long as the client takes them.
Reply = bytes | Iterable[bytes] | None
Script = Callable[[Received], Reply]


class ScriptedServer:
    """A real HTTP server. ``script`` makes the bytes of each answer; None drops the connection instead."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.received: list[Received] = []
        self.connections = 0
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                outer.connections += 1
                with contextlib.suppress(ConnectionError):
                    while outer.serve(self.rfile, self.wfile):
                        pass

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            request_queue_size = 64
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def serve(self, rfile: Any, wfile: Any) -> bool:
        """Answer one request; whether the connection may have another one."""
        line = rfile.readline().decode("ascii").split()
        if not line:
            return False
        headers: dict[str, str] = {}
        while field := rfile.readline().decode("latin-1").strip():
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        body = rfile.read(int(headers.get("content-length", 0)))
        request = Received(line[0], line[1], headers, body)
        self.received.append(request)
        reply = self.script(request)
        if reply is None:
            return False
        if not isinstance(reply, bytes):
            for part in reply:
                wfile.write(part)
                wfile.flush()
            return False
        wfile.write(reply)
        wfile.flush()
        return b"connection: close" not in reply.partition(b"\r\n\r\n")[0].lower()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def scripted() -> Iterator[Callable[[Script], ScriptedServer]]:
    """``scripted(script)`` starts a :class:`ScriptedServer`."""
    with contextlib.ExitStack() as stack:

        def start(script: Script) -> ScriptedServer:
            server = ScriptedServer(script)
            stack.callback(server.close)
            return server

        yield start


def http_reply(status: int, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of an answer; ``headers`` have underscores for hyphens."""
    fields = {"content-length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode("latin-1") + body


@pytest.fixture
def reply() -> Callable[..., bytes]:
    """``reply(status, body, **headers)`` makes the bytes of an answer."""
    return http_reply


@pytest.fixture
def json_reply() -> Callable[..., bytes]:
    """``json_reply(body, status)`` makes the bytes of an answer with a JSON body."""
    return lambda body, status=200: http_reply(status, body, content_type="application/json")


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Done(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> list[Any]:
        """The lines of its output, once it succeeded."""
        assert self.code == 0, self.err
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
    service_url: str,
    namespace: str,
) -> Callable[..., Done]:
    """``run(*arguments, stdin=b"")`` runs the command ``rstore`` in this process."""
    monkeypatch.setenv("RSTORE_URL", service_url)
    monkeypatch.setenv("RSTORE_NAMESPACE", namespace)

    def run(*arguments: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["rstore", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        with pytest.raises(SystemExit) as end:
            cli.main()
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return Done(int(end.value.code or 0), out.decode(errors="replace"), err.decode())

    return run
