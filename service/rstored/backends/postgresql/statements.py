"""The statements that only the PostgreSQL backend has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy.dialects.postgresql import psycopg as psycopg_dialect

from rstored.backends.abc import Kind, Place
from rstored.backends.postgresql.connection import Request
from rstored.backends.postgresql.parameters import integers, texts
from rstored.backends.schema import ROOT_ID, Statements

DIALECT: Final = psycopg_dialect.dialect(paramstyle="format")  # type: ignore[no-untyped-call]
SQL: Final = Statements(DIALECT)

COMMIT: Final[Request] = ("COMMIT", ())

# The record at a place. Each is looked up alone, by its whole key. Columns have the names of their tables here and
# below. Without them, PostgreSQL would take a column of the outer query for one that is missing in the inner table.
OWNER: Final = (
    f"SELECT * FROM record WHERE record.parent_id = {ROOT_ID} AND record.kind = {int(Kind.NAMESPACE)} "  # noqa: S608
    "AND record.key = place.namespace"
)
FOUND: Final = (
    "SELECT * FROM record WHERE record.parent_id = owner.id AND record.kind = place.kind AND record.key = place.key"
)
OWNED: Final = f"CROSS JOIN LATERAL ({OWNER} LIMIT 1) AS owner CROSS JOIN LATERAL ({FOUND} LIMIT 1) AS found"

DELETE_RECORDS: Final = "DELETE FROM record WHERE id = ANY(%b::bigint[])"
TRASH_RECORDS: Final = """
    INSERT INTO trash
    SELECT id FROM unnest(%b::bigint[]) AS gone (id)
    WHERE (SELECT lane FROM record_row WHERE record_row.record_id = gone.id ORDER BY lane, sort_key LIMIT 1) IS NOT NULL
        OR (SELECT kind FROM record WHERE record.parent_id = gone.id ORDER BY kind, key LIMIT 1) IS NOT NULL
    ON CONFLICT DO NOTHING
"""


def place_columns(places: Sequence[Place]) -> tuple[bytes, bytes, bytes]:
    return (
        texts([place.namespace for place in places]),
        integers([place.kind for place in places]),
        texts([place.key for place in places]),
    )
