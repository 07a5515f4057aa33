"""The problems that PostgreSQL's failures mean."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from rstored.backends.executor import RACED
from rstored.backends.postgresql.dsn import PostgreSQLDSN, reason_of
from rstored.problems import Problem


class Raced(Problem):
    """Another process wrote the same records first. Nothing was kept, and the same batch can be tried again."""


class Misplaced(Raced):
    """A reserved id belongs to another record. Nothing was kept, and the batch can be tried again with other ids."""


class Rejected(Problem):
    """The server refused a statement. Nothing was kept, but most updates of the batch may still be possible."""


class Demoted(Problem):
    """The server does not take writes any more. Nothing was kept."""


class Lost(Problem):
    """The store that was opened is gone. Nothing was kept."""


class HungUp(Problem):
    """The server was silent for too long."""


class NoConnection(Problem):
    """There was no connection. Nothing was sent."""


_UNAVAILABLE: Final = "PostgreSQL does not answer or turns connections away: try again"
LOST: Final = (
    "the store that was opened is not in the database any more, or the user of the DSN may not use it: restore it, "
    "or restart the service to use the store that is there now"
)
TOO_LONG: Final = "PostgreSQL took too long for a statement: try again"


def translated(error: psycopg.Error) -> Exception:
    """The problem that an error of the driver means, or the error itself if it can only be a mistake of ours."""
    state = error.sqlstate or ""
    if isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name == "record_row_by":
        return error
    if isinstance(error, psycopg.errors.NotNullViolation):
        return Misplaced("backend-unavailable", "other records keep taking the reserved ids: try again")
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return Problem(
            "backend-unavailable",
            "PostgreSQL refuses the DSN's user: grant it the schema and its tables, or CREATE on the database",
        )
    if isinstance(error, psycopg.errors.InvalidSchemaName | psycopg.errors.DivisionByZero) or (
        # The tables, columns or types are not those of this program.
        state.startswith(("42", "0A")) and not isinstance(error, psycopg.errors.SyntaxError)
    ):
        return Lost("backend-unavailable", LOST)
    if isinstance(error, psycopg.errors.UniqueViolation) or state.startswith("40"):
        return Raced("backend-unavailable", RACED)
    if isinstance(error, psycopg.errors.QueryCanceled | psycopg.errors.LockNotAvailable):
        return Rejected("backend-unavailable", TOO_LONG)
    if isinstance(error, psycopg.errors.DiskFull):
        return Rejected("storage-full", "PostgreSQL's disk is full: free some space and try again")
    if state.startswith("XX"):
        return Rejected("backend-corrupt", "PostgreSQL reports damaged data: see its log")
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return Demoted("backend-unavailable", "PostgreSQL takes no writes: try again when there is a primary")
    if isinstance(error, PoolTimeout | PoolClosed | TooManyRequests):
        return NoConnection("backend-unavailable", _UNAVAILABLE)
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) or state[:2] in ("08", "25", "53", "57"):
        return Problem("backend-unavailable", _UNAVAILABLE)
    return error


def unusable(error: psycopg.Error, dsn: PostgreSQLDSN) -> Problem:
    """The problem of a store that cannot be opened, in one line."""
    problem = translated(error)
    if isinstance(problem, Problem) and problem.detail not in (_UNAVAILABLE, LOST):
        return problem
    return Problem("backend-unavailable", f"PostgreSQL cannot hold the store: {reason_of(error, dsn.secrets)}")
