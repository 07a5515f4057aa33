"""Many points through ``Store`` and HTTP: from a Python list until they are durable, and back into a list of tuples."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography.fernet import Fernet

from benchmarks.figures import Figure, Note, Row, Size, each, timed
from benchmarks.peers import environments, sqlite_rows
from benchmarks.peers.backends import POSTGRESQL, REDIS, Backend
from benchmarks.peers.influxdb import InfluxDB
from benchmarks.peers.rstored import Rstored
from benchmarks.peers.victoriametrics import VictoriaMetrics
from rstore import Store, generate_key

Points = list[tuple[int, float]]
Turn = Callable[[str], tuple[float, float]]  # the seconds it takes to write a series, and to read it

OURS, SEALED = "rstore on SQLite", "rstore sealed"
VICTORIA, INFLUX, ROWS, RLIB = (
    "VictoriaMetrics",
    "InfluxDB",
    "SQLite row per point, in process",
    "rlib-store in process",
)

# So many fit into one request when they are sealed; unsealed it could be all.
POINTS_PER_CALL = 500_000
SEALED_MICROSECONDS_MAX = 4.0
# rlib-store would take minutes for all on a server; its time for so many is scaled up, which is in its favour.
RLIB_SHARE_ON_SERVERS = 0.01


def measure(size: Size) -> list[Row]:
    count = size.of(1_000_000)
    points = [(1_577_836_800_000 + number * 1000, round(random.random() * 100, 2)) for number in range(count)]
    written: dict[str, list[float]] = {}
    read: dict[str, list[float]] = {}
    fernet: tuple[list[float], list[float]] = [], []
    with ExitStack() as stack:
        turns, notes = _turns(stack, points)
        for number in range(size.rounds):
            for name, turn in turns.items():
                write_seconds, read_seconds = turn(f"series{number}")
                written.setdefault(name, []).append(write_seconds)
                read.setdefault(name, []).append(read_seconds)
            for figures, microseconds in zip(fernet, _fernet(size.of(10_000)), strict=True):
                figures.append(microseconds)
    return [
        *_rows(f"write {count:,} points", count, written, fernet[0], reach=1.0),
        *_rows(f"read {count:,} points", count, read, fernet[1], reach=1 / 1.5),
        *notes,
    ]


def _rows(what: str, count: int, taken: dict[str, list[float]], fernet: list[float], reach: float) -> list[Row]:
    """``reach`` is the ratio to reach against VictoriaMetrics."""
    ours = taken[OURS]
    rows: list[Row] = [
        Figure(what, peer, "s", ours, taken[peer], reach if peer == VICTORIA else None)
        for peer in (VICTORIA, INFLUX, ROWS, RLIB)
        if peer in taken
    ]
    for backend in ("PostgreSQL", "Redis"):
        there = taken.get(f"rstore on {backend}")
        if there is not None:
            rows.append(Figure(f"{what} on {backend}", OURS, "s", there, ours, 0.5))
            if peer_there := taken.get(f"{RLIB} on {backend}"):
                rows.append(Figure(f"{what} on {backend}", f"{RLIB} on {backend}", "s", there, peer_there))
    each_sealed = [seconds / count * 1e6 for seconds in taken[SEALED]]
    limit = [SEALED_MICROSECONDS_MAX] * len(each_sealed)
    rows.append(Figure(f"{what} sealed", "the limit", "µs a point", each_sealed, limit, 1.0))
    rows.append(Figure(f"{what} sealed", "Fernet alone, no I/O", "µs a point", each_sealed, fernet))
    return rows


def _turns(stack: ExitStack, points: Points) -> tuple[dict[str, Turn], list[Row]]:
    """Whatever is here, started; and a note for each peer that is missing."""
    notes: list[Row] = []
    turns: dict[str, Turn] = {}

    def add(name: str, missing: str | None, make: Callable[[], Turn]) -> None:
        if missing is None:
            turns[name] = make()
        else:
            notes.append(Note(name, f"not measured: {missing}"))

    def ours(backend: Backend | None = None, key: str | None = None) -> Turn:
        service = stack.enter_context(Rstored(backend and backend.fresh_dsn()))
        return partial(_rstore, stack.enter_context(service.store(key=key)), points)

    def rlib_on(backend: Backend) -> Turn:
        return partial(_rlib, backend.dsn(), len(points), RLIB_SHARE_ON_SERVERS)

    turns[OURS] = ours()
    victoria, influx = VictoriaMetrics, InfluxDB
    add(VICTORIA, victoria.missing(), lambda: partial(_victoria, stack.enter_context(victoria()), points))
    add(INFLUX, influx.missing(), lambda: partial(_influx, stack.enter_context(influx()), points))
    folder = Path(stack.enter_context(TemporaryDirectory()))
    turns[ROWS] = partial(_sqlite_rows, folder, points)
    rlib = partial(_rlib, f"sqlite://{folder}/rlib.db", len(points), 1.0)
    add(RLIB, environments.missing("rlib-store"), lambda: rlib)
    for backend in (POSTGRESQL, REDIS):
        add(f"rstore on {backend.name}", backend.missing(), partial(ours, backend))
        add(
            f"{RLIB} on {backend.name}",
            environments.missing("rlib-store") or backend.missing(),
            partial(rlib_on, backend),
        )
    turns[SEALED] = ours(key=generate_key())
    return turns, notes


def _rstore(store: Store, points: Points, series: str) -> tuple[float, float]:
    started = time.perf_counter()
    for start in range(0, len(points), POINTS_PER_CALL):
        store.extend(series, *points[start : start + POINTS_PER_CALL])
    write = time.perf_counter() - started
    read, found = timed(store.range, series)
    store.remove(series)
    _check(found == points)
    return write, read


def _victoria(server: VictoriaMetrics, points: Points, series: str) -> tuple[float, float]:
    write, _ = timed(server.write, series, points)
    server.flush()
    read, found = timed(server.read, series)
    _check(found == points)
    return write, read


def _influx(server: InfluxDB, points: Points, series: str) -> tuple[float, float]:
    server.create()
    write, _ = timed(server.write, series, points)
    read, found = timed(server.read, series)
    _check(found == points)
    return write, read


def _sqlite_rows(folder: Path, points: Points, series: str) -> tuple[float, float]:
    table = sqlite_rows.open_table(folder / f"{series}.db")
    write, _ = timed(sqlite_rows.insert_rows, table, points)
    read, found = timed(sqlite_rows.select_rows, table)
    table.close()
    _check(found == points)
    return write, read


def _rlib(dsn: str, count: int, share: float, series: str) -> tuple[float, float]:
    part = max(int(count * share), 1)
    taken = environments.run("rlib-store", "rlib_points.py", dsn, part)
    _check(taken["whole"])
    return taken["write"] * count / part, taken["read"] * count / part


def _fernet(count: int) -> tuple[float, float]:
    """The microseconds that one value costs to encrypt and to decrypt with Fernet, as rlib-store does."""
    fernet = Fernet(Fernet.generate_key())
    token = fernet.encrypt(b"12.34")
    return each(count, fernet.encrypt, b"12.34") * 1e6, each(count, fernet.decrypt, token) * 1e6


def _check(whole: bool) -> None:
    if not whole:
        raise RuntimeError("what was read is not what was written")
