"""An open backend for the contract tests, one for each kind there is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from rstored.backends import backend_class
from rstored.backends.abc import Backend

# name → the DSN of an empty store.
BACKENDS: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/store.db",
}


@pytest.fixture(params=BACKENDS)
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return BACKENDS[request.param](tmp_path)


@pytest.fixture
async def backend(dsn: str) -> AsyncIterator[Backend]:
    backend = await backend_class(dsn).open(dsn)
    try:
        yield backend
    finally:
        await backend.close()
