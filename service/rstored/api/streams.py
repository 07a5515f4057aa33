"""Streams from the engine. They keep reads open until they are closed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any


@contextlib.asynccontextmanager
async def closed(stream: AsyncIterator[Any]) -> AsyncIterator[None]:
    """Close ``stream`` at the end, even if its reader stops early."""
    try:
        yield
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()
