"""Version 1 of the SQL schema. It is written out, because it must not change when ``schema.py`` does."""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine.interfaces import Dialect

_TYPES: Final = {
    "sqlite": {
        "new_id": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT",
        "id": "INTEGER",
        "key": "TEXT",
        "bytes": "BLOB",
    },
    "postgresql": {
        "new_id": "BIGSERIAL NOT NULL PRIMARY KEY",
        "id": "BIGINT",
        "key": 'TEXT COLLATE "C"',
        "bytes": "BYTEA",
    },
}

_STATEMENTS: Final = (
    """
    CREATE TABLE record (
        id {new_id},
        parent_id {id} NOT NULL,
        kind SMALLINT NOT NULL,
        key {key} NOT NULL,
        expires_ms BIGINT,
        meta {bytes} NOT NULL,
        value {bytes} NOT NULL,
        UNIQUE (parent_id, kind, key)
    )
    """,
    "CREATE INDEX record_expiry ON record (expires_ms, parent_id, kind) WHERE expires_ms IS NOT NULL",
    """
    CREATE TABLE record_count (
        parent_id {id} NOT NULL,
        kind SMALLINT NOT NULL,
        n BIGINT NOT NULL,
        PRIMARY KEY (parent_id, kind)
    )
    """,
    """
    CREATE TABLE record_row (
        record_id {id} NOT NULL,
        lane SMALLINT NOT NULL,
        sort_key {bytes} NOT NULL,
        by_key {bytes},
        value {bytes} NOT NULL,
        PRIMARY KEY (record_id, lane, sort_key)
    )
    """,
    "CREATE UNIQUE INDEX record_row_by ON record_row (record_id, lane, by_key) WHERE by_key IS NOT NULL",
    """
    CREATE TABLE trash (
        record_id {id} NOT NULL,
        PRIMARY KEY (record_id)
    )
    """,
    # The root record, whose children are the namespaces.
    "INSERT INTO record (id, parent_id, kind, key, meta, value) VALUES (0, 0, 0, '', '', '')",
)

# Blocks are compressed already if that helps. Compressing them again would take PostgreSQL most of the time of a write.
_UNCOMPRESSED: Final = "ALTER TABLE record_row ALTER COLUMN value SET STORAGE EXTERNAL"


def statements(dialect: Dialect) -> list[str]:
    """The statements that bring an empty database to version 1: every table, and the root record."""
    made = [statement.format(**_TYPES[dialect.name]) for statement in _STATEMENTS]
    return [*made, _UNCOMPRESSED] if dialect.name == "postgresql" else made
