"""Small values over HTTP, 32 connections, one service process, tokens and metrics on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.figures import Figure, Note, Row, Size
from benchmarks.load import CONNECTIONS, KEYS, Rates, Target, load, missing_wrk, send_all
from benchmarks.peers.asgi import BareApp, SingleApp
from benchmarks.peers.backends import POSTGRESQL, REDIS, REDIS_CLUSTER, Backend
from benchmarks.peers.etcd import Etcd
from benchmarks.peers.kinto import Kinto
from benchmarks.peers.rstored import Rstored
from benchmarks.peers.sqlite_rows import commits_per_second
from benchmarks.peers.webdis import Webdis

BARE = "bare ASGI app"

# What each backend is to reach: its share of the bare app's rate, GET and PUT. A cluster's is not set.
_SHARES: dict[str, tuple[float, float] | tuple[None, None]] = {
    "SQLite": (0.50, 0.35),
    "PostgreSQL": (0.30, 0.25),
    "Redis": (0.30, 0.25),
    "Redis Cluster": (None, None),
}

# With whom else each is compared.
_PEERS = {
    "SQLite": ["etcd", "Kinto on PostgreSQL"],
    "PostgreSQL": ["etcd", "Kinto on PostgreSQL", "one statement each on PostgreSQL"],
    "Redis": ["etcd", "webdis on Redis", "one command each on Redis"],
    "Redis Cluster": ["one command each on Redis Cluster"],
}


def measure(size: Size) -> list[Row]:
    if reason := missing_wrk():
        return [Note("GET and PUT of a 100-byte value", f"not measured: {reason}")]
    notes: list[Row] = []
    rates: dict[tuple[str, str], list[Rates]] = {}
    commits: list[float] = []
    with ExitStack() as stack:
        targets, notes = _targets(stack)
        sqlite = stack.enter_context(Rstored())
        targets["rstore on SQLite"] = sqlite.target()
        for target in targets.values():
            send_all(target, target.puts)
        for _ in range(size.rounds):
            for name, target in targets.items():
                rates.setdefault((name, "GET"), []).append(load(target, target.gets, size.seconds))
            for name, target in targets.items():
                rates.setdefault((name, "PUT"), []).append(load(target, target.puts, size.seconds))
            commits.append(commits_per_second(Path(sqlite.folder), KEYS, size.seconds))
    rows: list[Row] = []
    for backend, shares in _SHARES.items():
        for method, share in zip(("GET", "PUT"), shares, strict=True):
            rows += _rows(rates, backend, method, share)
    puts = [run.per_second for run in rates["rstore on SQLite", "PUT"]]
    rows.append(Figure("PUT on SQLite", "sqlite3 in process, one commit each", "writes/s", puts, commits))
    return rows + notes


def _rows(rates: dict[tuple[str, str], list[Rates]], backend: str, method: str, share: float | None) -> list[Row]:
    ours = rates.get((f"rstore on {backend}", method))
    if ours is None:
        return []
    rows: list[Row] = []
    for peer in (BARE, *_PEERS[backend]):
        theirs = rates.get((peer, method))
        if theirs is not None:
            reach = share if peer == BARE else None
            rows.append(_figure(f"{method} on {backend}", peer, "requests/s", ours, theirs, reach))
            if peer == "etcd":
                rows.append(_figure(f"{method} on {backend}, p50", peer, "ms", ours, theirs, None))
                rows.append(_figure(f"{method} on {backend}, p99", peer, "ms", ours, theirs, 1.0))
    return rows


def _figure(what: str, peer: str, unit: str, ours: list[Rates], theirs: list[Rates], reach: float | None) -> Figure:
    figure: Callable[[Rates], float] = lambda run: run.per_second  # noqa: E731
    if unit == "ms":
        figure = (lambda run: run.p99_ms) if what.endswith("p99") else (lambda run: run.p50_ms)
    return Figure(what, peer, unit, [figure(run) for run in ours], [figure(run) for run in theirs], reach)


def _targets(stack: ExitStack) -> tuple[dict[str, Target], list[Row]]:
    """The peers and rstore on its servers, all started; and a note for each that is missing here."""
    targets = {BARE: stack.enter_context(BareApp()).target()}
    notes: list[Row] = []

    def add(name: str, missing: str | None, start: Callable[[], Target]) -> None:
        if missing is None:
            targets[name] = start()
        else:
            notes.append(Note(name, f"not measured: {missing}"))

    def add_backend(backend: Backend, unit: str) -> None:
        def app() -> Target:
            return stack.enter_context(SingleApp(backend.dsn(), CONNECTIONS)).target()

        def ours() -> Target:
            return stack.enter_context(Rstored(backend.fresh_dsn())).target()

        add(f"one {unit} each on {backend.name}", backend.missing(), app)
        add(f"rstore on {backend.name}", backend.missing(), ours)

    add("etcd", Etcd.missing(), lambda: stack.enter_context(Etcd()).target())
    add(
        "webdis on Redis",
        Webdis.missing() or REDIS.missing(),
        lambda: stack.enter_context(Webdis(REDIS.dsn())).target(),
    )
    add(
        "Kinto on PostgreSQL",
        Kinto.missing() or POSTGRESQL.missing(),
        lambda: stack.enter_context(Kinto(POSTGRESQL.dsn())).target(),
    )
    add_backend(POSTGRESQL, "statement")
    add_backend(REDIS, "command")
    add_backend(REDIS_CLUSTER, "command")
    return targets, notes
