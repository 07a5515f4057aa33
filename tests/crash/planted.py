"""The ``rstored`` command with a bug: ``python planted.py BUG python -m rstored.main serve …``. For the tests alone."""

from __future__ import annotations

import itertools
import sqlite3
import sys
from typing import Any

from rstored.backends import sqlite
from rstored.main import main


class AcknowledgingEarly(sqlite._Writer):
    """Commits only every eighth time that it says it does."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        execute, commits = self._execute, itertools.count(1)

        def execute_some(sql: str, *parameters: Any) -> Any:
            skipped = (sql == "BEGIN IMMEDIATE" and connection.in_transaction) or (
                sql == "COMMIT" and next(commits) % 8
            )
            return None if skipped else execute(sql, *parameters)

        self._execute = execute_some


class CommittingHalves(sqlite._Writer):
    """Commits after each single write."""

    def _write(self, *arguments: Any) -> None:
        super()._write(*arguments)
        self._commit()
        self._execute("BEGIN IMMEDIATE")


if __name__ == "__main__":
    sqlite._Writer = {"acknowledge-early": AcknowledgingEarly, "commit-halves": CommittingHalves}[sys.argv[1]]
    sys.argv = ["rstored", *sys.argv[5:]]
    main()
