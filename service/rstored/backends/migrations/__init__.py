"""The versions of the SQL schema, and what brings a database to the present one.

A backend takes a lock that keeps other processes out, reads the version that the database has, runs what
:func:`pending` returns, and commits it together with the version, so processes that start at once migrate it once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy.engine.interfaces import Dialect

from rstored.backends.migrations import version_1
from rstored.backends.schema import ROOT_ID, metadata
from rstored.problems import Problem

__all__ = ["ROOT_OF_STORE", "SCHEMA_VERSION", "pending"]


# The function at position n brings version n to n + 1. One that has been released never changes again, so each stands
# in a module of its own with its statements written out. When the tables in schema.py change, one is added.
_MIGRATIONS: Final[tuple[Callable[[Dialect], list[str]], ...]] = (version_1.statements,)

SCHEMA_VERSION: Final = len(_MIGRATIONS)

_TABLES: Final = ", ".join(f"(SELECT NULL FROM {name} LIMIT 0)" for name in sorted(metadata.tables))  # noqa: S608
ROOT_OF_STORE: Final = (
    f"SELECT value, {_TABLES} FROM record, schema_version WHERE id = {ROOT_ID} AND version = {SCHEMA_VERSION}"  # noqa: S608
)
"""Finds the value of the root record, if every table is there and their version is the present one."""


def pending(version: int, dialect: Dialect) -> list[str]:
    """The statements that bring a database of this version (0: an empty one) to :data:`SCHEMA_VERSION`.

    Raises :class:`Problem` ``backend-unavailable`` for a version that this program does not know.
    """
    if version > SCHEMA_VERSION:
        raise Problem(
            "backend-unavailable",
            f"the database has schema version {version}, made by a newer rstored; this one knows versions up to "
            f"{SCHEMA_VERSION}: run that newer one",
        )
    return [statement for migration in _MIGRATIONS[version:] for statement in migration(dialect)]
