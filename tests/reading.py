"""What a backend's answer to one query is."""

from __future__ import annotations

from typing import Any

from rstored.backends.abc import Backend, Read
from rstored.problems import Problem


async def read(backend: Backend, *reads: Read) -> list[Any]:
    """What each of these reads found at one moment. A problem is raised."""
    (found,) = await backend.read([reads])
    if isinstance(found, Problem):
        raise found
    return found
