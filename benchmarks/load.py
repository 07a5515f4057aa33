"""Requests a second, and how long they take, by wrk: every peer and rstore are loaded by the same generator.

Each write carries fresh random characters, since some storage skips what is there already.
"""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

CONNECTIONS = 32
KEYS = [f"key-{number}" for number in range(1000)]
VALUE_BYTES = 100

_POOL_BYTES = 2_000_000


class Request(NamedTuple):
    """One request; ``{value}`` in its body stands for ``characters`` fresh random ones of A-Z, a-z and 0-9."""

    method: str
    path: str
    body: str = ""
    characters: int = 0


class Target(NamedTuple):
    """Where to send the requests of a benchmark, and with what headers.

    One that ``refuses`` may answer some with 409 and ask for them again; they do not count for its rate.
    """

    port: int
    gets: list[Request]
    puts: list[Request]
    headers: dict[str, str]
    refuses: bool = False


class Rates(NamedTuple):
    """What one run of wrk says."""

    per_second: float
    p50_ms: float
    p99_ms: float


def missing_wrk() -> str | None:
    """Why there can be no load, or None."""
    return None if shutil.which("wrk") else "wrk is not installed: apt-get install wrk"


def load(target: Target, requests: Sequence[Request], seconds: float, connections: int = CONNECTIONS) -> Rates:
    """Send ``requests`` in turn over 32 connections at once, for whole seconds; each must be answered with 2xx."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_script(requests, target.headers))
        script.flush()
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(round(seconds), 1)}s",
            "--timeout",
            "30s",
            "-s",
            script.name,
        ]
        output = subprocess.check_output([*command, f"http://127.0.0.1:{target.port}"], text=True)
    result = json.loads(output.rpartition("RESULT ")[2])
    answered = result["requests"] - result["refused"]
    if result["failed"] or (result["refused"] and not target.refuses) or not answered:
        raise RuntimeError(f"port {target.port} failed under load:\n{output}")
    return Rates(answered / result["seconds"], result["p50_ms"], result["p99_ms"])


def _script(requests: Sequence[Request], headers: dict[str, str]) -> str:
    """wrk's script, which must not be the limit: heads are made once, and values cut out of a long random text."""
    pool = _random_characters(_POOL_BYTES)
    bodies = [request.body.partition("{value}") for request in requests]
    return f"""
local paths = {_table([request.path for request in requests])}
local before = {_table([before for before, _, _ in bodies])}
local after = {_table([after for _, _, after in bodies])}
local pool = '{pool}'
local characters = {requests[0].characters}
local heads = {{}}
local turn = 0
math.randomseed({secrets.randbelow(2**31)})
wrk.method = '{requests[0].method}'
{"".join(f"wrk.headers['{name}'] = '{value}'{chr(10)}" for name, value in headers.items())}
init = function()
  for i, path in ipairs(paths) do
    local length = #before[i] + characters + #after[i]
    local whole = wrk.format(nil, path, nil, length > 0 and string.rep('x', length) or nil)
    heads[i] = string.sub(whole, 1, #whole - length) .. before[i]
  end
end
request = function()
  turn = turn % #paths + 1
  if characters == 0 then return heads[turn] .. after[turn] end
  local at = math.random(#pool - characters)
  return heads[turn] .. string.sub(pool, at, at + characters - 1) .. after[turn]
end
done = function(summary, latency)
  local e = summary.errors
  local form = '{{"requests": %d, "seconds": %f, "failed": %d, "refused": %d, "p50_ms": %f, "p99_ms": %f}}'
  io.write('RESULT ', string.format(form,
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.timeout, e.status,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


def _table(texts: Sequence[str]) -> str:
    return "{" + ",".join(f"[[{text}]]" for text in texts) + "}"


def _random_characters(count: int) -> str:
    return base64.b64encode(secrets.token_bytes(count), altchars=b"Az").decode()[:count]


def send_all(target: Target, requests: Sequence[Request]) -> None:
    """Send each once, so that every key has a value."""

    def send(some: Sequence[Request]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=30)
        for request in some:
            body = request.body.replace("{value}", _random_characters(request.characters))
            while True:
                connection.request(request.method, request.path, body, target.headers)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 409 or not target.refuses:
                    break
            if answer.status >= 300:
                raise RuntimeError(f"{request.method} {request.path} was answered with {answer.status}: {text[:200]!r}")
        connection.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(send, (requests[start::8] for start in range(8))))


def median_rates(runs: Sequence[Rates]) -> Rates:
    """The median of each figure."""
    return Rates(*(statistics.median(figures) for figures in zip(*runs, strict=True)))
