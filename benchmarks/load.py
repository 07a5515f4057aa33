"""Requests per second of a server on this machine: by wrk where it is installed, else by the generator below.

Either way both sides of a ratio are measured by the same generator in the same run.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import tempfile
import time
from typing import cast

import httptools
import uvloop

CONNECTIONS = 32

GENERATOR = "wrk" if shutil.which("wrk") else "benchmarks/load.py"


def requests_per_second(port: int, method: str, paths: list[str], body: bytes, seconds: float) -> float:
    """The rate at which 127.0.0.1:``port`` answers ``method`` on each of ``paths`` in turn, each answer 2xx."""
    # wrk counts in whole seconds.
    if GENERATOR == "wrk" and seconds >= 1:
        return _wrk(port, method, paths, body, seconds)
    requests = [
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        for path in paths
    ]
    return uvloop.run(_generate(port, requests, seconds))


def _wrk(port: int, method: str, paths: list[str], body: bytes, seconds: float) -> float:
    table = ",".join(f"'{path}'" for path in paths)
    script = (
        f"local paths = {{{table}}}\nlocal turn = 0\n"
        f"wrk.method = '{method}'\nwrk.headers['Content-Type'] = 'application/json'\n"
        + (f"wrk.body = '{body.decode()}'\n" if body else "")
        + "request = function()\n  turn = turn % #paths + 1\n  return wrk.format(nil, paths[turn])\nend\n"
    )
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{round(seconds)}s", "-s", file.name]
        output = subprocess.check_output([*command, f"http://127.0.0.1:{port}"], text=True)
    if "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"the server failed under load:\n{output}")
    match = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if match is None:
        raise SystemExit(f"wrk said nothing of a rate:\n{output}")
    return float(match[1])


async def _generate(port: int, requests: list[bytes], seconds: float) -> float:
    loop = asyncio.get_running_loop()
    run = _Run(requests, time.perf_counter() + seconds)
    started = time.perf_counter()
    connections = [
        await loop.create_connection(lambda: _Connection(run), "127.0.0.1", port) for _ in range(CONNECTIONS)
    ]
    await asyncio.wait([connection.done for _, connection in connections], timeout=seconds + 10)
    elapsed = time.perf_counter() - started
    for transport, _ in connections:
        transport.close()
    if run.failure or not run.answers:
        raise SystemExit(f"the server failed under load: {run.failure or 'no answer'}")
    return run.answers / elapsed


class _Run:
    """What the connections share: the requests still to send, in turn, and the answers so far."""

    def __init__(self, requests: list[bytes], end: float) -> None:
        self.requests = requests
        self.end = end
        self.answers = 0
        self.failure = ""


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request under way at a time, until the run's end."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport | None = None
        self.turn = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's does not derive from it
        # Each connection begins at another request, so that they do not all write the same key at once.
        self.turn = id(self) % len(self.run.requests)
        self.send()

    def send(self) -> None:
        assert self.transport is not None
        self.transport.write(self.run.requests[self.turn % len(self.run.requests)])
        self.turn += 1

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() >= 300:
            self.run.failure = f"status {self.parser.get_status_code()}"
            self.finish()
            return
        self.run.answers += 1
        if time.perf_counter() < self.run.end:
            self.send()
        else:
            self.finish()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.run.failure = self.run.failure or f"connection lost: {error}"
            self.finish()

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
