"""The backends that the suites run over: one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests import servers


class BackendCase(NamedTuple):
    """``fresh(folder)`` gives the DSN of an empty store; ``missing()`` says why it cannot run here, or None."""

    fresh: Callable[[Path], str]
    missing: Callable[[], str | None] = lambda: None


BACKENDS: dict[str, BackendCase] = {
    "sqlite": BackendCase(lambda folder: f"sqlite:///{folder}/store.db"),
    "postgresql": BackendCase(lambda _: servers.fresh_dsn(servers.postgresql_server()), servers.missing_postgresql),
    "redis": BackendCase(lambda _: servers.fresh_dsn(servers.redis_server()), servers.missing_redis),
    "redis-cluster": BackendCase(lambda _: servers.fresh_dsn(servers.redis_cluster()), servers.missing_redis),
}
