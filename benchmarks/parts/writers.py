"""``apply`` by 32 writers at once, each on an event sequence of its own: raw HTTP, sent by wrk."""

from __future__ import annotations

from contextlib import ExitStack
from tempfile import TemporaryDirectory

from tests.servers import PostgreSQLServer

from benchmarks.figures import Figure, Note, Row, Size
from benchmarks.load import CONNECTIONS, Request, Target, load, missing_wrk
from benchmarks.peers import environments
from benchmarks.peers.backends import POSTGRESQL
from benchmarks.peers.rstored import Rstored

# Applies a second to reach.
GOALS = {"SQLite": 5_000.0, "PostgreSQL": 3_000.0}


def measure(size: Size) -> list[Row]:
    if reason := missing_wrk():
        return [Note("apply by 32 writers", f"not measured: {reason}")]
    rows: list[Row] = []
    with ExitStack() as stack:
        targets = {"SQLite": _target(stack.enter_context(Rstored()))}
        if missing := POSTGRESQL.missing():
            rows.append(Note("apply on PostgreSQL", f"not measured: {missing}"))
        else:
            targets["PostgreSQL"] = _target(stack.enter_context(Rstored(POSTGRESQL.fresh_dsn())))
        if missing := environments.missing("eventsourcing"):
            rows.append(Note("eventsourcing", f"not measured: {missing}"))
        for backend, target in targets.items():
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(size.rounds):
                ours.append(load(target, target.puts, size.seconds).per_second)
                if not missing:
                    theirs.append(_eventsourcing(backend, size.seconds))
            what = f"apply by {CONNECTIONS} writers on {backend}"
            rows.append(Figure(what, "the goal", "events/s", ours, [GOALS[backend]] * len(ours), 1.0))
            if theirs:
                rows.append(Figure(what, "eventsourcing, one writer, in process", "events/s", ours, theirs))
    return rows


def _target(service: Rstored) -> Target:
    """Each connection has mostly a key of its own, since wrk takes them in turn."""
    body = '{"events":[{"item":"item","value":"{value}"}]}'
    requests = [Request("POST", f"/es/writer-{number}/events", body, 100) for number in range(CONNECTIONS)]
    return Target(service.port, [], requests, {"Content-Type": "application/json", **service.headers()})


def _eventsourcing(backend: str, seconds: float) -> float:
    with TemporaryDirectory() as folder:
        if backend == "SQLite":
            place = f"{folder}/events.db"
        else:
            server = POSTGRESQL.server()
            assert isinstance(server, PostgreSQLServer)
            place = f"127.0.0.1:{server.port}:test:test"
        taken = environments.run("eventsourcing", "eventsourcing_appends.py", backend.lower(), place, seconds)
    return float(taken["per_second"])
