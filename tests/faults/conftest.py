"""Fixtures of the fault tests: proxies and clients that end with their test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import httpx2
import pytest
from tests.faults.load import BOUND_SECONDS
from tests.faults.proxy import Proxy, proxied

Through = Callable[[int], Awaitable[Proxy]]


@pytest.fixture
async def through(anyio_backend: str) -> AsyncIterator[Through]:
    """``await through(port)`` puts a proxy before the server on that port of this machine."""
    async with AsyncExitStack() as stack:
        yield lambda port: stack.enter_async_context(proxied("127.0.0.1", port))


@pytest.fixture
async def client(anyio_backend: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=BOUND_SECONDS) as client:
        yield client
