"""The backends that the conformance suite runs over: one line each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

__all__ = ["BACKENDS", "BackendCase"]


class BackendCase(NamedTuple):
    """``fresh(folder)`` yields the DSN of an empty store; ``missing()`` says why it cannot run here, or None."""

    fresh: Callable[[Path], AbstractContextManager[str]]
    missing: Callable[[], str | None] = lambda: None


@contextlib.contextmanager
def sqlite_file(folder: Path) -> Iterator[str]:
    """The DSN of a file that does not exist yet."""
    yield f"sqlite:///{folder / 'store.db'}"


BACKENDS: dict[str, BackendCase] = {
    "sqlite": BackendCase(sqlite_file),
}
