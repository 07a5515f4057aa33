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
    paths = [f"/kv/key-{number}" for number in range(1000)]
    gets: Pairs = [], []
    puts: Pairs = [], []
    commits: list[float] = []
    with tempfile.TemporaryDirectory() as folder, rstored(Path(folder)) as ours, bare_app() as theirs:
        with Store(f"http://127.0.0.1:{ours}", frozen=False) as store:
            store.set_many({path.removeprefix("/kv/"): json.loads(bare.VALUE) for path in paths})
        for _ in range(size.rounds):
            for port, got in zip((ours, theirs), gets, strict=True):
                got.append(load.requests_per_second(port, "GET", paths, b"", size.seconds))
            for port, put in zip((ours, theirs), puts, strict=True):
                put.append(load.requests_per_second(port, "PUT", paths, bare.VALUE, size.seconds))
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


PARTS: dict[str, Callable[[Size], list[Figure]]] = {"kv": kv, "series": series, "append": append, "history": history}


# --- peers and servers -------------------------------------------------------------------------------------


@contextlib.contextmanager
def rstored(folder: Path) -> Iterator[int]:
    """A real service with its SQLite file in ``folder``; yields its port."""
    port = free_port()
    environment = {**os.environ, "RSTORED_DSN": f"sqlite:///{folder}/rstore.db"}
    with running([str(Path(sys.executable).parent / "rstored"), "serve", "--port", str(port)], port, environment):
        yield port


@contextlib.contextmanager
def store_in(folder: Path) -> Iterator[Store]:
    """An open store on a service of its own."""
    with rstored(folder) as port, Store(f"http://127.0.0.1:{port}", frozen=False) as store:
        yield store


@contextlib.contextmanager
def bare_app() -> Iterator[int]:
    """The bare ASGI app under the server and settings that the service has."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "bare:app", "--app-dir", str(HERE), "--port", str(port)]
    with running(
        [*command, "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--lifespan", "off"],
        port,
        {**os.environ},
    ):
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
        f"{size.rounds} rounds. {machine()}.",
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
