"""The statements of the SQLite backend, beside those that all SQL backends share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from sqlalchemy.dialects import sqlite as sqlite_dialect

from rstored.backends.abc import Kind
from rstored.backends.schema import Statements

__all__ = ["BOUNDED_HEADS", "CHILDREN", "DIALECT", "HEADS", "NAMESPACE", "SQL", "TOGETHER_MIN", "json_array"]

DIALECT: Final = sqlite_dialect.dialect(paramstyle="qmark")
SQL: Final = Statements(DIALECT)

# Many records of one kind in one namespace are found by one statement, from as many on as make up for its cost.
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
# To look a member up in its class takes longer than to find a row.
NAMESPACE: Final = Kind.NAMESPACE


def json_array(keys: Sequence[str]) -> str:
    return msgspec.json.encode(keys).decode()
