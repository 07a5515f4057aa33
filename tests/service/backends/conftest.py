"""An open backend for the contract tests, one for each kind there is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests import servers

from rstored.backends import backend_class
from rstored.backends.abc import Backend


class BackendCase(NamedTuple):
    """``fresh(folder)`` gives the DSN of an empty store; ``missing()`` says why it cannot run here, or None."""

    fresh: Callable[[Path], str]
    missing: Callable[[], str | None] = lambda: None


def _redis(**parameters: int) -> Callable[[Path], str]:
    return lambda _: servers.fresh_dsn(servers.redis_server(), **parameters)


def _cluster(**parameters: int) -> Callable[[Path], str]:
    return lambda _: servers.fresh_dsn(servers.redis_cluster(), **parameters)


BACKENDS: dict[str, BackendCase] = {
    "sqlite": BackendCase(lambda folder: f"sqlite:///{folder}/store.db"),
    "postgresql": BackendCase(lambda _: servers.fresh_dsn(servers.postgresql_server()), servers.missing_postgresql),
    "redis": BackendCase(_redis(), servers.missing_redis),
    "redis-buckets": BackendCase(_redis(buckets=8), servers.missing_redis),
    "redis-cluster": BackendCase(_cluster(), servers.missing_redis),
    "redis-cluster-bucket": BackendCase(_cluster(buckets=1), servers.missing_redis),
}


@pytest.fixture(params=BACKENDS)
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    case = BACKENDS[request.param]
    reason = case.missing()
    if reason is not None:
        pytest.skip(reason)
    return case.fresh(tmp_path)


@pytest.fixture
async def backend(dsn: str) -> AsyncIterator[Backend]:
    backend = await backend_class(dsn).open(dsn)
    try:
        yield backend
    finally:
        await backend.close()
