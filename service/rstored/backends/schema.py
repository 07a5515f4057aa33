"""The tables and statements of every SQL backend, declared once with SQLAlchemy Core.

Every record is a row of ``record``. Namespaces are the children of the root record (id 0), and all other records are
children of their namespaces. So one deleted row deletes a namespace, because nobody can find its children by name any
more. Ids are never used again. So what a deleted record left, which ``trash`` lists, can be erased later and in pieces.

Statements are compiled to SQL once. Each docstring gives the order of their positional parameters. They run on the raw
driver, because SQLAlchemy's own execution takes several times as long as a small statement.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import Dialect

from rstored.backends.abc import Kind, Listing, RowOrder, RowScan

ROOT_ID: Final = 0

_ID: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# SQLite compares text by its UTF-8 bytes; PostgreSQL does so under the collation "C".
_KEY: Final = sa.Text(collation="C").with_variant(sa.Text(), "sqlite")

metadata: Final = sa.MetaData()

record: Final = sa.Table(
    "record",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("parent_id", _ID, nullable=False),
    sa.Column("kind", sa.SmallInteger, nullable=False),
    sa.Column("key", _KEY, nullable=False),
    sa.Column("expires_ms", sa.BigInteger),
    sa.Column("meta", sa.LargeBinary, nullable=False),
    # The value is the last column, so SQLite reads the others without touching the pages of a large value.
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("parent_id", "kind", "key"),
    sqlite_autoincrement=True,
)
sa.Index(
    "record_expiry",
    record.c.expires_ms,
    record.c.parent_id,
    record.c.kind,
    sqlite_where=record.c.expires_ms.is_not(None),
    postgresql_where=record.c.expires_ms.is_not(None),
)

record_row: Final = sa.Table(
    "record_row",
    metadata,
    sa.Column("record_id", _ID, primary_key=True, autoincrement=False),
    sa.Column("lane", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("sort_key", sa.LargeBinary, primary_key=True),
    sa.Column("by_key", sa.LargeBinary),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
sa.Index(
    "record_row_by",
    record_row.c.record_id,
    record_row.c.lane,
    record_row.c.by_key,
    unique=True,
    sqlite_where=record_row.c.by_key.is_not(None),
    postgresql_where=record_row.c.by_key.is_not(None),
)

# Deleted records whose rows or children have not been erased yet.
trash: Final = sa.Table("trash", metadata, sa.Column("record_id", _ID, primary_key=True, autoincrement=False))

# How many records of each counted kind a namespace has, expired ones included.
record_count: Final = sa.Table(
    "record_count",
    metadata,
    sa.Column("parent_id", _ID, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("n", sa.BigInteger, nullable=False),
)


def prefix_end(prefix: str) -> str | None:
    """The least string greater than every string that begins with ``prefix``; None if there is none.

    >>> prefix_end("log/")
    'log0'
    """
    for position in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[position])
        if point < 0x10FFFF:
            # UTF-8 has no surrogates, so U+E000 follows U+D7FF.
            return prefix[:position] + chr(0xE000 if point == 0xD7FF else point + 1)
    return None


# A limit without an offset would add a parameter for the offset.
_ZERO: Final[sa.ColumnElement[int]] = sa.literal_column("0")


def _bind(name: str) -> sa.BindParameter[Any]:
    return sa.bindparam(name)


def _namespace_id(namespace: sa.ColumnElement[Any]) -> sa.ScalarSelect[Any]:
    """The id of a namespace. This also finds the root, which is its own parent and has the name ""."""
    parent = record.alias("parent")
    found = sa.select(parent.c.id).where(
        parent.c.parent_id == sa.literal_column(str(ROOT_ID)),
        parent.c.kind == sa.literal_column(str(int(Kind.NAMESPACE))),
        parent.c.key == namespace,
    )
    return found.scalar_subquery()


def _record_id() -> sa.ScalarSelect[Any]:
    """The id of the record at (namespace, kind, key)."""
    found = record.alias("found")
    return (
        sa.select(found.c.id)
        .where(
            found.c.parent_id == _namespace_id(_bind("namespace")),
            found.c.kind == _bind("kind"),
            found.c.key == _bind("key"),
        )
        .scalar_subquery()
    )


_AT_PLACE: Final = ("namespace", "kind", "key")


class Statements:
    """SQL text for one dialect. Each docstring lists the parameters in order, and the columns after an arrow."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        # For SQLite a negative limit means no limit, and for PostgreSQL NULL does.
        self._no_limit = -1 if dialect.name == "sqlite" else None
        insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect.name]

        self.insert_record = self._sql(
            sa.insert(record).values({name: _bind(name) for name in _RECORD_COLUMNS}), *_RECORD_COLUMNS
        )
        """parent_id, kind, key, expires_ms, meta, value"""

        self.update_record = self._sql(
            sa.update(record)
            .values(expires_ms=_bind("expires"), meta=_bind("new_meta"), value=_bind("new_value"))
            .where(record.c.id == _bind("record_id")),
            "expires",
            "new_meta",
            "new_value",
            "record_id",
        )
        """expires_ms, meta, value, id"""

        self.delete_record = self._sql(sa.delete(record).where(record.c.id == _bind("record_id")), "record_id")
        """id"""

        has_rows = sa.exists().where(record_row.c.record_id == _bind("record_id"))
        child = record.alias("child")
        has_children = sa.exists().where(child.c.parent_id == _bind("record_id"))
        self.trash_record = self._sql(
            insert(trash)
            .from_select(["record_id"], sa.select(_bind("record_id")).where(sa.or_(has_rows, has_children)))
            .on_conflict_do_nothing(),
            "record_id",
            "record_id",
            "record_id",
        )
        """id, id, id. Puts the record into the trash if it has rows or children."""

        counted = insert(record_count).values(parent_id=_bind("parent_id"), kind=_bind("kind"), n=_bind("n"))
        self.add_count = self._sql(
            counted.on_conflict_do_update(
                index_elements=[record_count.c.parent_id, record_count.c.kind],
                set_={"n": record_count.c.n + counted.excluded.n},
            ),
            "parent_id",
            "kind",
            "n",
        )
        """parent_id, kind, n"""

        self.delete_counts = self._sql(
            sa.delete(record_count).where(record_count.c.parent_id == _bind("gone_id")), "gone_id"
        )
        """parent_id"""

        row = insert(record_row).values({name: _bind(name) for name in _ROW_COLUMNS})
        self.put_row = self._sql(
            row.on_conflict_do_update(
                index_elements=[record_row.c.record_id, record_row.c.lane, record_row.c.sort_key],
                set_={"by_key": row.excluded.by_key, "value": row.excluded.value},
            ),
            *_ROW_COLUMNS,
        )
        """record_id, lane, sort_key, by_key, value"""

        in_lane = (record_row.c.record_id == _bind("record"), record_row.c.lane == _bind("in_lane"))
        self.delete_row = self._sql(
            sa.delete(record_row).where(*in_lane, record_row.c.sort_key == _bind("sort")), "record", "in_lane", "sort"
        )
        """record_id, lane, sort_key"""

        self.child = self._sql(
            sa.select(record.c.id, record.c.meta, record.c.expires_ms).where(
                record.c.parent_id == _bind("parent"), record.c.kind == _bind("kind"), record.c.key == _bind("key")
            ),
            "parent",
            "kind",
            "key",
        )
        """parent_id, kind, key → id, meta, expires_ms"""

        self.counts = self._sql(
            sa.select(record_count.c.kind, record_count.c.n).where(
                record_count.c.parent_id == _namespace_id(_bind("namespace"))
            ),
            "namespace",
        )
        """namespace → kind, n"""

        self.expired_counts = self._sql(
            sa.select(record.c.kind, sa.func.count())
            # The sum keeps SQLite from searching the whole namespace by the index of the parent.
            .where(record.c.expires_ms <= _bind("now"), record.c.parent_id + _ZERO == _namespace_id(_bind("namespace")))
            .group_by(record.c.kind),
            "now",
            "namespace",
        )
        """now_ms, namespace → kind, n"""

        owner = record.alias("owner")
        self.expired = self._sql(
            sa.select(owner.c.key, record.c.kind, record.c.key)
            .select_from(record.join(owner, owner.c.id == record.c.parent_id))
            .where(record.c.expires_ms <= _bind("now"))
            .order_by(record.c.expires_ms)
            .limit(_bind("n"))
            .offset(_ZERO),
            "now",
            "n",
        )
        """now_ms, limit → namespace, kind, key"""

        self.some_trash = self._sql(sa.select(trash.c.record_id).limit(sa.literal_column("1")).offset(_ZERO))
        """→ record_id"""

        self.empty_trash = self._sql(sa.delete(trash).where(trash.c.record_id == _bind("record_id")), "record_id")
        """record_id"""

        self.some_rows = self._sql(
            sa.select(record_row.c.lane, record_row.c.sort_key, sa.func.length(record_row.c.value))
            .where(record_row.c.record_id == _bind("record_id"))
            .limit(_bind("n"))
            .offset(_ZERO),
            "record_id",
            "n",
        )
        """record_id, limit → lane, sort_key, size"""

        # The order makes the planner use the index, even if it knows that one parent has most records.
        self.some_children = self._sql(
            sa.select(record.c.id, sa.func.length(record.c.value))
            .where(record.c.parent_id == _bind("parent"))
            .order_by(record.c.kind, record.c.key)
            .limit(_bind("n"))
            .offset(_ZERO),
            "parent",
            "n",
        )
        """parent_id, limit → id, size"""

        self.head = self._head(record.c.value)
        """namespace, kind, key → meta, value, expires_ms"""

        too_long = sa.func.length(record.c.value) > _bind("n")
        self.bounded_head = self._head(sa.case((too_long, _value(False)), else_=record.c.value), "n")
        """bytes_max, namespace, kind, key → meta, value (empty if it is longer), expires_ms"""

    @functools.cache  # noqa: B019 - there is one object for each backend, and it lives as long as the process
    def listing(self, *, values: bool, exclusive: bool, bounded: bool) -> str:
        """namespace, kind, low (excluded if ``exclusive``), [high, excluded, if ``bounded``], limit → key, meta, value,
        expires_ms
        """
        condition = record.c.key > _bind("low") if exclusive else record.c.key >= _bind("low")
        statement = (
            sa.select(record.c.key, record.c.meta, _value(values), record.c.expires_ms)
            .where(record.c.parent_id == _namespace_id(_bind("namespace")), record.c.kind == _bind("kind"), condition)
            .order_by(record.c.key)
            .limit(_bind("n"))
            .offset(_ZERO)
        )
        if not bounded:
            return self._sql(statement, "namespace", "kind", "low", "n")
        return self._sql(statement.where(record.c.key < _bind("high")), "namespace", "kind", "low", "high", "n")

    @functools.cache  # noqa: B019 - as above
    def scan(self, *, along: RowOrder, low: bool, high: bool, descending: bool, floor: bool) -> str:
        """namespace, kind, key, lane, [low, if ``low``; with ``floor``: namespace, kind, key, lane, low, low], [high],
        limit → sort_key, value, by_key
        """
        column = record_row.c.by_key if along is RowOrder.BY else record_row.c.sort_key
        names = [*_AT_PLACE, "lane"]
        statement = sa.select(record_row.c.sort_key, record_row.c.value, record_row.c.by_key).where(
            record_row.c.record_id == _record_id(), record_row.c.lane == _bind("lane")
        )
        if along is RowOrder.BY:
            statement = statement.where(column.is_not(None))
        if low and floor:
            below = record_row.alias("below")
            # PostgreSQL has no max() of bytes.
            greatest = (
                sa.select(below.c.sort_key)
                .where(below.c.record_id == _record_id(), below.c.lane == _bind("lane"))
                .where(below.c.sort_key <= _bind("low"))
                .order_by(below.c.sort_key.desc())
                .limit(sa.literal_column("1"))
                .offset(_ZERO)
            )
            statement = statement.where(column >= sa.func.coalesce(greatest.scalar_subquery(), _bind("low")))
            names += [*_AT_PLACE, "lane", "low", "low"]
        elif low:
            statement = statement.where(column >= _bind("low"))
            names.append("low")
        if high:
            statement = statement.where(column <= _bind("high"))
            names.append("high")
        statement = statement.order_by(column.desc() if descending else column)
        return self._sql(statement.limit(_bind("n")).offset(_ZERO), *names, "n")

    @functools.cache  # noqa: B019 - as above
    def delete_rows(self, *, low: bool, high: bool) -> str:
        """record_id, lane, [low], [high]"""
        statement = sa.delete(record_row).where(
            record_row.c.record_id == _bind("record"), record_row.c.lane == _bind("in_lane")
        )
        names = ["record", "in_lane"]
        if low:
            statement = statement.where(record_row.c.sort_key >= _bind("low"))
            names.append("low")
        if high:
            statement = statement.where(record_row.c.sort_key <= _bind("high"))
            names.append("high")
        return self._sql(statement, *names)

    def listing_query(self, listing: Listing) -> tuple[str, list[Any]]:
        """The statement of a listing, and its parameters. It fetches one more row than the limit."""
        after, prefix = listing.after, listing.prefix
        high = prefix_end(prefix)
        exclusive = after is not None and after >= prefix
        text = self.listing(values=listing.values, exclusive=exclusive, bounded=high is not None)
        # The root record has the name "" and is its own parent. It is not a namespace, and must not be listed.
        low = after if exclusive else prefix or "\x01"
        bounds = [low] if high is None else [low, high]
        return text, [listing.namespace, int(listing.kind), *bounds, listing.limit + 1]

    def scan_query(self, scan: RowScan) -> tuple[str, list[Any]]:
        """The statement of a scan, and its parameters. It fetches one more row than the limit."""
        namespace, kind, key = scan.place
        # Kinds are bound as plain integers, because sqlite3 is slower with subclasses of int.
        place = (namespace, int(kind), key, scan.lane)
        text = self.scan(
            along=scan.along,
            low=scan.low is not None,
            high=scan.high is not None,
            descending=scan.descending,
            floor=scan.floor,
        )
        parameters: list[Any] = [*place]
        if scan.low is not None:
            parameters += [*place, scan.low, scan.low] if scan.floor else [scan.low]
        if scan.high is not None:
            parameters.append(scan.high)
        parameters.append(self._no_limit if scan.limit is None else scan.limit + 1)
        return text, parameters

    def _head(self, value: Any, *names: str) -> str:
        statement = sa.select(record.c.meta, value, record.c.expires_ms).where(
            record.c.parent_id == _namespace_id(_bind("namespace")),
            record.c.kind == _bind("kind"),
            record.c.key == _bind("key"),
        )
        return self._sql(statement, *names, *_AT_PLACE)

    def _sql(self, statement: Any, *names: str) -> str:
        """The SQL text. Raises AssertionError unless its parameters have the order of ``names``."""
        compiled = statement.compile(dialect=self._dialect)
        if tuple(compiled.positiontup or ()) != names:
            raise AssertionError(f"parameters in another order: {compiled.positiontup} in {compiled}")
        return str(compiled)


_RECORD_COLUMNS: Final = ("parent_id", "kind", "key", "expires_ms", "meta", "value")
_ROW_COLUMNS: Final = ("record_id", "lane", "sort_key", "by_key", "value")


def _value(wanted: bool) -> Any:
    """The column of the value, or an empty value instead."""
    return record.c.value if wanted else sa.cast(sa.literal_column("''"), sa.LargeBinary)
