"""The statements that only the SQLite backend has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy.dialects import sqlite as sqlite_dialect

from rstored.backends.abc import Kind
from rstored.backends.schema import Statements

DIALECT: Final = sqlite_dialect.dialect(paramstyle="qmark")
SQL: Final = Statements(DIALECT)

# For this many records of one kind in one namespace, or more, one statement for all of them is quicker.
TOGETHER_MIN: Final = 4
CHILDREN: Final = """
    SELECT wanted.key, record.id, meta, expires_ms
    FROM json_each(?) AS wanted CROSS JOIN record ON parent_id = ? AND kind = ? AND record.key = wanted.value
"""
HEADS: Final = """
    SELECT wanted.key, meta, record.value, expires_ms
    FROM json_each(?) AS wanted CROSS JOIN record
    ON parent_id = (SELECT id FROM record WHERE parent_id = ? AND kind = ? AND key = ?)
    AND kind = ? AND record.key = wanted.value
"""
BOUNDED_HEADS: Final = HEADS.replace(
    "record.value", "CASE WHEN length(record.value) > ? THEN x'' ELSE record.value END", 1
)
# Looking up a member of an enumeration takes longer than finding a row.
NAMESPACE: Final = Kind.NAMESPACE


def json_array(keys: Sequence[str]) -> str:
    return msgspec.json.encode(keys).decode()
