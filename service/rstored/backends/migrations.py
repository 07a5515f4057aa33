"""The versions of the SQL schema, and what brings a database to the present one.

A backend takes a lock that keeps other processes out, reads the version that the database has, runs what
:func:`pending` returns, and commits it together with the version, so processes that start at once migrate it once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from rstored.backends.schema import ROOT_ID, metadata
from rstored.problems import Problem

__all__ = ["ROOT_OF_STORE", "SCHEMA_VERSION", "pending"]


def _create(dialect: Dialect) -> list[str]:
    """Version 1: every table, and the root record, whose children are the namespaces."""
    statements = []
    for table in metadata.sorted_tables:
        statements.append(str(CreateTable(table).compile(dialect=dialect)))
        statements += [
            str(CreateIndex(index).compile(dialect=dialect))
            for index in sorted(table.indexes, key=lambda index: str(index.name))
        ]
    if dialect.name == "postgresql":
        # Blocks come compressed where that helps; PostgreSQL trying it again would take most of the time of a write.
        statements.append("ALTER TABLE record_row ALTER COLUMN value SET STORAGE EXTERNAL")
    statements.append(
        f"INSERT INTO record (id, parent_id, kind, key, meta, value) VALUES ({ROOT_ID}, {ROOT_ID}, 0, '', '', '')"  # noqa: S608
    )
    return statements


# The function at position n brings version n to n + 1. One that has been released never changes again: when the
# tables in schema.py do, its statements are written out here and a new function is added.
_MIGRATIONS: Final[tuple[Callable[[Dialect], list[str]], ...]] = (_create,)

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
