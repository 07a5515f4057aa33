"""How throughput grows with the number of service processes, and with the size of the values."""

from __future__ import annotations

from benchmarks.figures import Figure, Note, Row, Size
from benchmarks.load import load, missing_wrk, send_all
from benchmarks.peers.backends import POSTGRESQL
from benchmarks.peers.rstored import Rstored

WORKERS = 2
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)


def measure(size: Size) -> list[Row]:
    if reason := missing_wrk():
        return [Note("processes and sizes", f"not measured: {reason}")]
    return [*_processes(size), *_sizes(size)]


def _processes(size: Size) -> list[Row]:
    """One service process, and several on one port, in turn on one store."""
    rows: list[Row] = []
    backends: list[str | None] = ["SQLite"]
    if missing := POSTGRESQL.missing():
        rows.append(Note("processes on PostgreSQL", f"not measured: {missing}"))
    else:
        backends.append("PostgreSQL")
    for backend in backends:
        with (
            Rstored(None if backend == "SQLite" else POSTGRESQL.fresh_dsn()) as one,
            Rstored(one.backend, WORKERS) as several,
        ):
            targets = several.target(), one.target()
            send_all(targets[1], targets[1].puts)
            for method in ("GET", "PUT"):
                rates: tuple[list[float], list[float]] = [], []
                for _ in range(size.rounds):
                    for target, found in zip(targets, rates, strict=True):
                        requests = target.gets if method == "GET" else target.puts
                        found.append(load(target, requests, size.seconds).per_second)
                what = f"{method} on {backend}, {WORKERS} workers"
                rows.append(Figure(what, "one process", "requests/s", *rates))
    return rows


def _sizes(size: Size) -> list[Row]:
    rows: list[Row] = []
    with Rstored() as service:
        for value_bytes in SIZES:
            target = service.target(characters=value_bytes - 2)
            # Fewer keys of the larger, so that all sizes fit into memory alike.
            keys = max(1_000 * 100 // value_bytes, 10)
            target = target._replace(gets=target.gets[:keys], puts=target.puts[:keys])
            rates: dict[str, list[float]] = {"GET": [], "PUT": []}
            for _ in range(max(size.rounds // 3, 1)):
                rates["PUT"].append(load(target, target.puts, size.seconds).per_second)
                send_all(target, target.puts)
                rates["GET"].append(load(target, target.gets, size.seconds).per_second)
            for method, found in rates.items():
                rate = found[len(found) // 2]
                text = f"{rate:,.0f} requests/s, {rate * value_bytes / 1e6:,.1f} MB/s"
                rows.append(Note(f"{method} of {value_bytes:,} bytes on SQLite", text))
    return rows
