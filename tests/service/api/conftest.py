"""The app in this process, on a real file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from rstored.api.asgi import ASGIApp
from rstored.app import running_app
from rstored.limits import Limits
from rstored.settings import Settings


@pytest.fixture
def limits() -> Limits:
    """The limits of the app; a module may have its own."""
    return Limits()


@pytest.fixture
async def app(tmp_path: Path, limits: Limits, anyio_backend: str) -> AsyncIterator[ASGIApp]:
    """The app, running."""
    async with running_app(Settings(dsn=f"sqlite:///{tmp_path / 'store.db'}", limits=limits)) as app:
        yield app


@pytest.fixture
async def http(app: ASGIApp) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the app."""
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as http:
        yield http
