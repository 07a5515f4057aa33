"""The versions of the SQL schema, and the statements that bring a database to the present version.

A backend takes a lock that keeps other processes out, reads the version of the database, runs the statements of
:func:`pending`, and commits them together with the new version. So processes that start together migrate it once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy.engine.interfaces import Dialect

from rstored.backends.migrations import version_1
from rstored.backends.schema import ROOT_ID, metadata
from rstored.problems import Problem

# The function at position n brings version n to n + 1. After its release it never changes, so each has a module of its
# own, with its statements written out. A change of the tables in schema.py adds another one.
_MIGRATIONS: Final[tuple[Callable[[Dialect], list[str]], ...]] = (version_1.statements,)

SCHEMA_VERSION: Final = len(_MIGRATIONS)

_TABLES: Final = ", ".join(f"(SELECT NULL FROM {name} LIMIT 0)" for name in sorted(metadata.tables))  # noqa: S608
ROOT_OF_STORE: Final = (
    f"SELECT value, {_TABLES} FROM record, schema_version WHERE id = {ROOT_ID} AND version = {SCHEMA_VERSION}"  # noqa: S608
)
"""Finds the value of the root record, if every table exists and the version is the present one."""


def pending(version: int, dialect: Dialect) -> list[str]:
    """The statements that bring a database of this version (0: an empty one) to :data:`SCHEMA_VERSION`.

    Raises :class:`Problem` ``backend-unavailable`` for a version that this program does not know.
    """
    if version > SCHEMA_VERSION:
        raise Problem(
            "backend-unavailable",
            f"the database has schema version {version}, made by a newer rstored; this rstored knows versions up to "
            f"{SCHEMA_VERSION}: run the newer rstored",
        )
    return [statement for migration in _MIGRATIONS[version:] for statement in migration(dialect)]
