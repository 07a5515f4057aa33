"""The ``rstored`` command with a bug: ``python planted.py BUG python -m rstored serve …``. For the tests alone."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Sequence
from typing import Any

from rstored.__main__ import main
from rstored.backends.abc import Query
from rstored.backends.sqlite import SQLiteBackend
from rstored.backends.sqlite import backend as sqlite_backend
from rstored.backends.sqlite.writer import Writer
from rstored.engine.kv import KeyValues
from rstored.engine.model import ANY, Condition, PutResult
from rstored.problems import Problem


class AcknowledgingEarly(Writer):
    """Commits only every thirty-second time that it says it does."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        execute, commits = self._execute, itertools.count(1)
        self._execute = lambda sql, *rest: None if sql == "COMMIT" and next(commits) % 32 else execute(sql, *rest)

    def _begin(self) -> None:
        if not self.connection.in_transaction:
            super()._begin()


class CommittingHalves(Writer):
    """Commits after each single write."""

    def _write(self, *arguments: Any) -> None:
        super()._write(*arguments)
        self._commit()
        self._execute("BEGIN IMMEDIATE")


async def read_stale(self: SQLiteBackend, queries: Sequence[Query]) -> list[list[Any] | Problem]:
    """Answer for a second what was answered before."""
    now = time.monotonic()
    for query in queries:
        if query not in _remembered or _remembered[query][0] < now - 1.0:
            _remembered[query] = (now, (await _read(self, [query]))[0])
    return [_remembered[query][1] for query in queries]


_remembered: dict[Query, tuple[float, list[Any] | Problem]] = {}
_read = SQLiteBackend.read


async def check_then_put(
    self: KeyValues, namespace: str, key: str, *, condition: Condition = ANY, **rest: Any
) -> PutResult:
    """Look whether the condition holds, and a moment later write whatever is there by then."""
    entry = await self.get(namespace, key)
    absent = condition.none_match is not None and entry is None
    same = condition.match is not None and entry is not None and entry.etag in condition.match
    if condition != ANY and not absent and not same:
        raise Problem("precondition-failed", "it does not hold")
    await asyncio.sleep(0.05)
    return await _put(self, namespace, key, **rest)


_put = KeyValues.put


BUGS: dict[str, tuple[Any, str, Any]] = {
    "acknowledge-early": (sqlite_backend, "Writer", AcknowledgingEarly),
    "commit-halves": (sqlite_backend, "Writer", CommittingHalves),
    "stale-reads": (SQLiteBackend, "read", read_stale),
    "check-then-put": (KeyValues, "put", check_then_put),
}

if __name__ == "__main__":
    setattr(*BUGS[sys.argv[1]])
    sys.argv = ["rstored", *sys.argv[5:]]
    main()
