from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from rstored.backends.abc import RowOrder
from rstored.backends.migrations import pending
from rstored.backends.schema import Statements, prefix_end

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
EDGES = st.text(st.sampled_from("a\ud7ff\ue000\U0010ffff"), max_size=4)


@given(TEXT | EDGES, TEXT | EDGES)
def test_prefix_end_bounds_exactly_the_strings_with_the_prefix(prefix: str, key: str) -> None:
    end = prefix_end(prefix)
    inside = key.encode() >= prefix.encode() and (end is None or key.encode() < end.encode())
    assert inside == key.startswith(prefix)


DIALECT = sqlite.dialect(paramstyle="qmark")
SQL = Statements(DIALECT)


@pytest.mark.parametrize(
    "statement",
    [
        SQL.head,
        SQL.child,
        SQL.counts,
        SQL.expired_counts,
        SQL.expired,
        SQL.trash_record,
        SQL.some_rows,
        SQL.some_children,
        SQL.listing(values=True, exclusive=True, bounded=True),
        SQL.listing(values=False, exclusive=False, bounded=False),
        SQL.scan(along=RowOrder.SORT, low=True, high=False, descending=False, floor=True),
        SQL.scan(along=RowOrder.BY, low=True, high=True, descending=True, floor=False),
        SQL.scan(along=RowOrder.BY, low=False, high=False, descending=False, floor=False),
        SQL.delete_rows(low=True, high=True),
    ],
)
def test_no_statement_scans_a_table_or_sorts_what_it_found(statement: str) -> None:
    connection = sqlite3.connect(":memory:")
    for definition in pending(0, DIALECT):
        connection.execute(definition)
    plan = connection.execute("EXPLAIN QUERY PLAN " + statement, (0,) * statement.count("?")).fetchall()
    connection.close()
    steps = [step for *_, step in plan]
    assert steps
    assert not [step for step in steps if step.startswith("SCAN") and step != "SCAN CONSTANT ROW"]
    assert not [step for step in steps if "ORDER BY" in step]
