"""The ``rstored`` command with a bug: ``python planted.py BUG python -m rstored serve …``. For the tests alone."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from rstored.__main__ import main
from rstored.backends.abc import Query
from rstored.backends.sqlite import SQLiteBackend
from rstored.backends.sqlite.connections import BEGIN
from rstored.engine.kv import KeyValues
from rstored.engine.model import ANY, Condition, PutResult
from rstored.problems import Problem


class AcknowledgingEarly(sqlite3.Cursor):
    """Commits what makes the schema, and then only every thirty-second time that it says it does."""

    commits = itertools.count()

    def execute(self, sql: str, *parameters: Any) -> Self:
        if sql == "COMMIT" and next(self.commits) % 32:
            return self
        if sql == BEGIN and self.connection.in_transaction:
            return self
        return super().execute(sql, *parameters)


class CommittingHalves(sqlite3.Cursor):
    """Commits after each single write."""

    def execute(self, sql: str, *parameters: Any) -> Self:
        super().execute(sql, *parameters)
        if sql.startswith(("INSERT", "UPDATE", "DELETE")) and self.connection.in_transaction:
            super().execute("COMMIT")
            super().execute(BEGIN)
        return self


def connecting(kind: type[sqlite3.Cursor]) -> Callable[..., sqlite3.Connection]:
    """``sqlite3.connect``, with cursors of this kind."""

    class Connection(sqlite3.Connection):
        def cursor(self, factory: Any = None) -> Any:
            return super().cursor(factory or kind)

        # That of sqlite3 takes a cursor of its own.
        def execute(self, sql: str, *parameters: Any) -> Any:
            return self.cursor().execute(sql, *parameters)

    return functools.partial(sqlite3.connect, factory=Connection)


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
    "acknowledge-early": (sqlite3, "connect", connecting(AcknowledgingEarly)),
    "commit-halves": (sqlite3, "connect", connecting(CommittingHalves)),
    "stale-reads": (SQLiteBackend, "read", read_stale),
    "check-then-put": (KeyValues, "put", check_then_put),
}

if __name__ == "__main__":
    setattr(*BUGS[sys.argv[1]])
    sys.argv = ["rstored", *sys.argv[5:]]
    main()
