"""Measure rstore against named peers, each pair in one run on one machine, and say how the figures came about.

    make bench                      every part, figures written into benchmarks/README.md
    make bench PARTS="kv append"    some parts
    .venv/bin/python benchmarks/run.py --quick   tiny sizes: does it run at all?

Both sides of a ratio are measured in turn, round by round, and the median of the rounds' ratios is what counts: a
machine that is slow for a while slows both.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib
import json
import os
import platform
import random
import re
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import bare
import load

from rstore import Store

T = TypeVar("T")
Points: TypeAlias = list[tuple[int, Any]]
Pairs: TypeAlias = tuple[list[float], list[float]]  # ours and the peer's, a figure a round

HERE = Path(__file__).parent


class Size(NamedTuple):
    """How much a run does. Rounds are odd, so that a median is a measured figure."""

    rounds: int
    seconds: float
    points: int
    appends: int
    events: int


FULL = Size(rounds=5, seconds=2.0, points=1_000_000, appends=300, events=100_000)
QUICK = Size(rounds=1, seconds=0.2, points=5_000, appends=5, events=1_000)

ITEMS = 100  # in an event sequence's state

PATHS = [f"/kv/key-{number}" for number in range(1000)]


class Figure(NamedTuple):
    """One claim: ours against the peer's, in ``unit``, over the rounds."""

    what: str
    peer: str
    unit: str
    ours: list[float]
    theirs: list[float]

    def row(self) -> str:
        ratios = [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]
        return (
            f"| {self.what} | {number(statistics.median(self.ours))} {self.unit} | {self.peer} "
            f"| {number(statistics.median(self.theirs))} {self.unit} "
            f"| **{statistics.median(ratios):.2f}** | {min(ratios):.2f} to {max(ratios):.2f} |"
        )


# --- the parts ---------------------------------------------------------------------------------------------


def kv(size: Size) -> list[Figure]:
    """Small values over HTTP, 32 connections: the service, the least that an ASGI app can do, and SQLite alone."""
    gets: Pairs = [], []
    puts: Pairs = [], []
    commits: list[float] = []
    with tempfile.TemporaryDirectory() as folder, rstored(Path(folder)) as ours, bare_app() as theirs:
        with Store(f"http://127.0.0.1:{ours}", frozen=False) as store:
            store.set_many({path.removeprefix("/kv/"): json.loads(bare.VALUE) for path in PATHS})
        for _ in range(size.rounds):
            for port, got in zip((ours, theirs), gets, strict=True):
                got.append(load.requests_per_second(port, "GET", PATHS, b"", size.seconds))
            for port, put in zip((ours, theirs), puts, strict=True):
                put.append(load.requests_per_second(port, "PUT", PATHS, bare.VALUE, size.seconds))
            commits.append(sqlite_commits(Path(folder), size.seconds))
    return [
        Figure("GET of a 100-byte value", "bare ASGI app", "requests/s", *gets),
        Figure("durable PUT of a 100-byte value", "bare ASGI app, stores nothing", "requests/s", *puts),
        Figure("durable PUT of a 100-byte value", "sqlite3, one commit each, no HTTP", "writes/s", puts[0], commits),
    ]


def series(size: Size) -> list[Figure]:
    """Many points through the SDK and HTTP, against a SQLite table with a row for each point, in this process."""
    points: Points = [(t * 1000, round(random.random() * 100, 2)) for t in range(size.points)]
    written: Pairs = [], []
    read: Pairs = [], []
    with tempfile.TemporaryDirectory() as folder, store_in(Path(folder)) as store:
        for turn in range(size.rounds):
            table = sqlite(Path(folder) / f"table-{turn}.db")
            key = f"series-{turn}"
            written[0].append(size.points / timed(store.extend, key, *points)[0])
            written[1].append(size.points / timed(insert_rows, table, points)[0])
            ours, ours_read = timed(store.range, key)
            theirs, theirs_read = timed(select_rows, table)
            read[0].append(size.points / ours)
            read[1].append(size.points / theirs)
            table.close()
            if not ours_read == theirs_read == points:
                raise SystemExit("what was read is not what was written")
    amount = f"{size.points:,} points"
    return [
        Figure(f"extend, {amount}", "SQLite row per point, no HTTP", "points/s", *written),
        Figure(f"range, {amount}", "SQLite row per point, no HTTP", "points/s", *read),
    ]


def append(size: Size) -> list[Figure]:
    """One point after the last of a long series, against the same on a short one."""
    lengths = {"long": size.points, "short": 1000}
    rates: Pairs = [], []
    with tempfile.TemporaryDirectory() as folder, store_in(Path(folder)) as store:
        for key, length in lengths.items():
            store.extend(key, *((t, t) for t in range(length)))
        for turn in range(size.rounds):
            for (key, length), rate in zip(lengths.items(), rates, strict=True):
                first = length + turn * size.appends
                elapsed, _ = timed(
                    repeat, size.appends, lambda n, key=key, first=first: store.extend(key, (first + n, n))
                )
                rate.append(size.appends / elapsed)
    return [Figure(f"append to a series of {size.points:,}", "to one of 1,000", "appends/s", *rates)]


def history(size: Size) -> list[Figure]:
    """``apply`` and ``current`` after a long history, against the same state after a short one."""
    applied: Pairs = [], []
    current: Pairs = [], []
    with tempfile.TemporaryDirectory() as folder, store_in(Path(folder)) as store:
        for turn in range(size.events // ITEMS):
            store.apply("long", {f"item-{item}": turn for item in range(ITEMS)})
        store.apply("short", {f"item-{item}": turn for item in range(ITEMS)})
        if store.current("long") != store.current("short"):
            raise SystemExit("the two sequences differ")
        for _ in range(size.rounds):
            for key, applies, currents in zip(("long", "short"), applied, current, strict=True):
                elapsed, _ = timed(repeat, size.appends, lambda n, key=key: store.apply(key, {"item-1": n}))
                applies.append(size.appends / elapsed)
                elapsed, _ = timed(repeat, size.appends, lambda n, key=key: store.current(key))
                currents.append(size.appends / elapsed)
    after, peer = f"after {size.events:,} events", f"after {ITEMS} events"
    return [
        Figure(f"apply {after}", peer, "calls/s", *applied),
        Figure(f"current {after}", peer, "calls/s", *current),
    ]


def backends(size: Size) -> list[Figure]:
    """Small values over HTTP, 32 connections, on servers, against one statement for each request over the same driver.

    A second for each figure and three rounds at most, so that all of it ends within a minute.
    """
    seconds, rounds = min(size.seconds, 1.0), min(size.rounds, 3)
    figures: list[Figure] = []
    for backend in throwaway_backends():
        with contextlib.ExitStack() as stack:
            ours = stack.enter_context(rstored_on(backend.fresh_dsn()))
            peers = [stack.enter_context(single_app(backend.dsn(), n)) for n in backend.peer_connections]
            rates: dict[tuple[str, int], list[float]] = {}
            for port in (ours, *peers):
                put_all(port)
            for _ in range(rounds):
                for method, body in (("PUT", bare.VALUE), ("GET", b"")):
                    for port in (ours, *peers):
                        rate = load.requests_per_second(port, method, PATHS, body, seconds)
                        rates.setdefault((method, port), []).append(rate)
        for connections, peer in zip(backend.peer_connections, peers, strict=True):
            figures += [
                Figure(
                    f"{method} on {backend.name}",
                    f"one {backend.unit} each, over {connections} connections",
                    "requests/s",
                    rates[method, ours],
                    rates[method, peer],
                )
                for method in ("PUT", "GET")
            ]
    return figures


PARTS: dict[str, Callable[[Size], list[Figure]]] = {
    "kv": kv,
    "backends": backends,
    "series": series,
    "append": append,
    "history": history,
}


# --- peers and servers -------------------------------------------------------------------------------------


class BackendServer(NamedTuple):
    """A throwaway server to measure on, started when it is first asked for its DSN."""

    name: str
    fresh_dsn: Callable[[], str]
    dsn: Callable[[], str]
    unit: str
    peer_connections: tuple[int, ...]


def throwaway_backends() -> list[BackendServer]:
    """Those whose servers are installed here: the tests' own, which end with this process."""
    sys.path.append(str(HERE.parent))
    servers: Any = importlib.import_module("tests.servers")
    found: list[BackendServer] = []

    def add(name: str, server: Callable[[], Any], unit: str, *peer_connections: int) -> None:
        found.append(
            BackendServer(name, lambda: servers.fresh_dsn(server()), lambda: server().dsn, unit, peer_connections)
        )

    if missing := servers.missing_postgresql():
        print(f"not measured: {missing}", file=sys.stderr)
    else:
        # As many as rstored opens, and one for each client.
        add("PostgreSQL", servers.postgresql_server, "statement", 4, load.CONNECTIONS)
    if missing := servers.missing_redis():
        print(f"not measured: {missing}", file=sys.stderr)
    else:
        add("Redis", servers.redis_server, "command", load.CONNECTIONS)
        add("Redis Cluster", servers.redis_cluster, "command", load.CONNECTIONS)
    return found


def put_all(port: int) -> None:
    """Have every path hold a value."""

    def put(paths: list[str]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for path in paths:
            connection.request("PUT", path, bare.VALUE, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status >= 300:
                raise SystemExit(f"PUT was answered with {answer.status}")
        connection.close()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(put, (PATHS[start::8] for start in range(8))))


@contextlib.contextmanager
def rstored(folder: Path) -> Iterator[int]:
    """A real service with its SQLite file in ``folder``; yields its port."""
    with rstored_on(f"sqlite:///{folder}/rstore.db") as port:
        yield port


@contextlib.contextmanager
def rstored_on(dsn: str) -> Iterator[int]:
    """A real service on a backend; yields its port."""
    port = free_port()
    environment = {**os.environ, "RSTORED_DSN": dsn}
    with running([str(Path(sys.executable).parent / "rstored"), "serve", "--port", str(port)], port, environment):
        yield port


@contextlib.contextmanager
def store_in(folder: Path) -> Iterator[Store]:
    """An open store on a service of its own."""
    with rstored(folder) as port, Store(f"http://127.0.0.1:{port}", frozen=False) as store:
        yield store


def bare_app() -> contextlib.AbstractContextManager[int]:
    """The bare ASGI app under the server and settings that the service has."""
    return peer_app("bare:app", "--lifespan", "off")


def single_app(dsn: str, connections: int) -> contextlib.AbstractContextManager[int]:
    """The app that does one statement for each request, under the same."""
    return peer_app("single:app", PEER_DSN=dsn, PEER_CONNECTIONS=str(connections))


@contextlib.contextmanager
def peer_app(app: str, *options: str, **environment: str) -> Iterator[int]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--app-dir", str(HERE), "--port", str(port), *options]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    with running(command, port, {**os.environ, **environment}):
        yield port


@contextlib.contextmanager
def running(command: list[str], port: int, environment: dict[str, str]) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 20
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{command[0]} did not start:\n{log.read().decode(errors='replace')}")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(timeout=20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def sqlite(path: Path) -> sqlite3.Connection:
    """A file with the durability that the service has."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS record (key PRIMARY KEY, value BLOB)")
    return connection


def sqlite_commits(folder: Path, duration: float) -> float:
    """How many writes a second one writer commits, each by itself."""
    connection = sqlite(folder / "commits.db")
    count, started = 0, time.perf_counter()
    while time.perf_counter() < started + duration:
        connection.execute("INSERT OR REPLACE INTO record VALUES (?, ?)", (f"key-{count % 1000}", bare.VALUE))
        count += 1
    elapsed = time.perf_counter() - started
    connection.close()
    return count / elapsed


def insert_rows(connection: sqlite3.Connection, points: Points) -> None:
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT OR REPLACE INTO record VALUES (?, ?)", ((t, json.dumps(value)) for t, value in points)
    )
    connection.execute("COMMIT")


def select_rows(connection: sqlite3.Connection) -> Points:
    return [(t, json.loads(value)) for t, value in connection.execute("SELECT key, value FROM record ORDER BY key")]


def timed(work: Callable[..., T], *arguments: Any) -> tuple[float, T]:
    """How many seconds ``work`` took, and what it returned."""
    started = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - started, result


def repeat(count: int, work: Callable[[int], object]) -> None:
    for number in range(count):
        work(number)


# --- the report --------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits, with thousands separated."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> str:
    """The facts without which a figure says nothing."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        cpu = found[1] if found else cpu
    facts = [
        f"{datetime.now(UTC):%Y-%m-%d}",
        f"{os.cpu_count()} cores of {cpu}, shared by server and load",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        f"SQLite {sqlite3.sqlite_version}",
        f"uvicorn {version('uvicorn')}",
        f"rstore {version('rstore')}",
        f"load by {load.GENERATOR}",
    ]
    return " · ".join(facts)


def report(part: str, size: Size, figures: list[Figure]) -> str:
    lines = [
        "| rstore | figure | peer | its figure | ratio | ratios of the rounds |",
        "| --- | --- | --- | --- | --- | --- |",
        *(figure.row() for figure in figures),
        "",
        f"{len(figures[0].ours)} rounds. {machine()}.",
    ]
    return "\n".join(lines)


def write(part: str, text: str) -> None:
    """Put the part's report between its markers in benchmarks/README.md."""
    path = HERE / "README.md"
    begin, end = f"<!-- {part} -->\n", f"<!-- /{part} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{path} has no markers for {part}")
    path.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure rstore against named peers.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"out of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: the figures mean nothing")
    parser.add_argument("--write", action="store_true", help="write the figures into benchmarks/README.md")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.write and options.quick:
        parser.error("quick figures mean nothing and are not written")
    size = QUICK if options.quick else FULL
    for part in options.parts or PARTS:
        text = report(part, size, PARTS[part](size))
        print(f"\n## {part}\n\n{text}", flush=True)
        if options.write:
            write(part, text)


if __name__ == "__main__":
    main()
