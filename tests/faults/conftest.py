"""Fixtures of the fault tests: proxies that end with their test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
from tests.faults.proxy import Proxy, proxied

Through = Callable[[int], Awaitable[Proxy]]


@pytest.fixture
async def through(anyio_backend: str) -> AsyncIterator[Through]:
    """``await through(port)`` puts a proxy before the server on that port of this machine."""
    async with AsyncExitStack() as stack:
        yield lambda port: stack.enter_async_context(proxied("127.0.0.1", port))
