"""How the SQLite backend answers reads."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from rstored.backends.abc import (
    COUNTED,
    CountRead,
    ExpiredRead,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    Query,
    Read,
    Row,
    RowScan,
    Slice,
)
from rstored.backends.schema import ROOT_ID
from rstored.backends.sqlite.statements import BOUNDED_HEADS, HEADS, NAMESPACE, SQL, TOGETHER_MIN, json_array
from rstored.problems import damaged, of_storage

T = TypeVar("T")


class Reader:
    """Answers reads on one connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        # A statement that finds at most one row ends at once, so all of these share a cursor.
        self._execute = connection.cursor().execute
        # A scan may stop before its end, so each scan has a cursor of its own.
        self._scan = connection.execute
        self._answers: dict[type[Any], Callable[[Any], Any]] = {
            HeadRead: self._head,
            RowScan: self._rows,
            Listing: self._listing,
            CountRead: self._counts,
            ExpiredRead: self._expired,
        }

    def begin(self) -> None:
        """Answer the following reads from one snapshot. The first of them takes it."""
        self._execute("BEGIN")

    def end(self) -> None:
        """Release the snapshot."""
        # SQLite ends the transaction itself after some failures. On a damaged file only a rollback works.
        if self.connection.in_transaction:
            self._execute("ROLLBACK")

    def answer(self, query: Query) -> list[Any]:
        if len(query) < TOGETHER_MIN:
            return [self._answers[type(read)](read) for read in query]
        answers: list[Any] = []
        for alike, reads in itertools.groupby(query, _heads_alike):
            if alike is None:
                answers += [self._answers[type(read)](read) for read in reads]
            else:
                answers += self._heads(*alike, [read.place.key for read in reads])  # type: ignore[union-attr]
        return answers

    def _heads(self, namespace: str, kind: Kind, bytes_max: int | None, keys: list[str]) -> list[Head | None]:
        """The heads of records of one kind in one namespace."""
        sql, bound = (HEADS, ()) if bytes_max is None else (BOUNDED_HEADS, (bytes_max,))
        heads: list[Head | None] = [None] * len(keys)
        for position, *head in self._scan(
            sql, (*bound, json_array(keys), ROOT_ID, int(NAMESPACE), namespace, int(kind))
        ):
            heads[position] = stored_head(head)
        return heads

    def _head(self, read: HeadRead) -> Head | None:
        (namespace, kind, key), bytes_max = read
        sql, bound = (SQL.head, ()) if bytes_max is None else (SQL.bounded_head, (bytes_max,))
        # Kinds are bound as plain integers, because sqlite3 is slower with subclasses of int.
        row = self._execute(sql, (*bound, namespace, int(kind), key)).fetchone()
        return None if row is None else stored_head(row)

    def _rows(self, scan: RowScan) -> Slice[Row]:
        rows = map(Row._make, self._scan(*SQL.scan_query(scan)))
        try:
            return _slice(rows, scan.limit, scan.bytes_max, lambda row: len(row.value))
        except TypeError as error:
            raise damaged("a row of a record") from error

    def _listing(self, listing: Listing) -> Slice[tuple[str, Head]]:
        rows = itertools.starmap(_listed, self._scan(*SQL.listing_query(listing)))
        return _slice(rows, listing.limit, listing.bytes_max, lambda item: len(item[1].value))

    def _counts(self, read: CountRead) -> dict[Kind, int]:
        present = self._scan(SQL.counts, (read.namespace,)).fetchall()
        return _counts(present, self._scan(SQL.expired_counts, (read.now_ms, read.namespace)).fetchall())

    def _expired(self, read: ExpiredRead) -> list[Place]:
        return [_place(*row) for row in self._scan(SQL.expired, (read.now_ms, read.limit))]


# SQLite holds any type in any column. Whoever decodes rows finds that out, but heads are also used as they are.


def stored_head(row: Sequence[Any]) -> Head:
    """The head of these columns: meta, value and expiry. Raises Problem ``backend-corrupt``."""
    meta, value, expires_ms = row
    if type(meta) is type(value) is bytes and (expires_ms is None or type(expires_ms) is int):
        return Head(meta, value, expires_ms)
    if meta == "":
        # So the root record has it.
        return stored_head((b"", value, expires_ms))
    raise damaged("a record")


def _listed(key: Any, *head: Any) -> tuple[str, Head]:
    return _text(key), stored_head(head)


def _text(key: Any) -> str:
    if type(key) is not str:
        raise damaged("the key of a record")
    return key


@of_storage("a record")
def _place(namespace: Any, kind: Any, key: Any) -> Place:
    return Place(_text(namespace), Kind(kind), _text(key))


@of_storage("the numbers of records")
def _counts(present: list[Any], expired: list[Any]) -> dict[Kind, int]:
    counts = dict.fromkeys(COUNTED, 0)
    for kind, n in present:
        counts[kind] += n
    for kind, n in expired:
        # What is not counted expires too.
        if kind in counts:
            counts[kind] -= n
    return counts


def _heads_alike(read: Read) -> tuple[str, Kind, int | None] | None:
    """The properties that reads of heads must share for one statement to answer them; None for any other read."""
    return (read.place.namespace, read.place.kind, read.bytes_max) if type(read) is HeadRead else None


def _slice(rows: Iterable[T], limit: int | None, bytes_max: int | None, size_of: Callable[[T], int]) -> Slice[T]:
    """The first rows within the limits. A statement that is not at its end is reset when it is dropped."""
    if bytes_max is None:
        items = list(rows)
        more = limit is not None and len(items) > limit
        if more:
            items.pop()
        return Slice(items, more)
    items = []
    size = 0
    for row in rows:
        if items and (size >= bytes_max or len(items) == limit):
            return Slice(items, True)
        items.append(row)
        size += size_of(row)
    return Slice(items, False)
