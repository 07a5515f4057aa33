"""An open backend for the contract tests, one for each kind there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests import servers
from tests.conformance import backends as conformance

from rstored.backends import backend_class
from rstored.backends.abc import Backend

# Those of the conformance suite, and the same in other arrangements.
BACKENDS = conformance.BACKENDS | {
    "redis-buckets": conformance.BackendCase(
        lambda _: servers.fresh_dsn(servers.redis_server(), buckets=8), servers.missing_redis
    ),
    "redis-cluster-buckets": conformance.BackendCase(
        lambda _: servers.fresh_dsn(servers.redis_cluster(), buckets=64), servers.missing_redis
    ),
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
