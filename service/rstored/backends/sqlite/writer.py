"""How the SQLite backend carries out updates."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from rstored.backends.abc import (
    COUNTED,
    Commit,
    CountRead,
    DeleteRecord,
    DeleteRow,
    DeleteRows,
    Head,
    Kind,
    Place,
    PutHead,
    PutRow,
    Query,
    UnfitStorage,
    Update,
    Write,
    namespace_place,
)
from rstored.backends.schema import ROOT_ID
from rstored.backends.sqlite.connections import BEGIN, check_schema, when_free
from rstored.backends.sqlite.failures import translated
from rstored.backends.sqlite.files import Files
from rstored.backends.sqlite.reader import Reader, stored_head
from rstored.backends.sqlite.statements import CHILDREN, NAMESPACE, SQL, TOGETHER_MIN, json_array
from rstored.problems import Problem

_PURGE_ROWS_MAX: Final = 1_000
_PURGE_BYTES_MAX: Final = 16 * 2**20


class Writer:
    """Carries out updates on one connection. Everything here runs on the writer thread."""

    def __init__(self, connection: sqlite3.Connection, files: Files) -> None:
        self.connection = connection
        self._files = files
        self._reader = Reader(connection)
        cursor = connection.cursor()
        self._execute, self._execute_many = cursor.execute, cursor.executemany
        # Ids and heads of namespaces, as the present transaction found them.
        self._namespaces: dict[Place, tuple[int | None, Head | None]] = {}
        # What the transaction adds to record_count, by parent and kind.
        self._counted: dict[tuple[int, int], int] = {}

    def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        """Carry out the updates in one transaction. If a statement fails, each update gets a transaction of its own."""
        try:
            if self._files.gone:
                self._files.check()
            self._begin()
        except UnfitStorage as problem:
            return [problem] * len(updates)
        except sqlite3.Error as error:
            return [translated(error) for _ in updates]
        self._namespaces.clear()
        try:
            results = [self._run(update) for update in updates]
            self._commit()
            # A commit to a file that is gone is lost, so it is not acknowledged.
            self._files.check()
        except UnfitStorage as problem:
            return [problem] * len(updates)
        except Exception as error:
            self._roll_back()
            if len(updates) == 1:
                return [translated(error) if isinstance(error, sqlite3.Error) else error]
            return [result for update in updates for result in self.update([update])]
        return results

    def purge(self) -> bool:
        """Erase a bounded part of the trash. True if there may be more."""
        self._files.check()
        if self._execute(SQL.some_trash).fetchone() is None:
            return False
        self._begin()
        try:
            rows_left = _PURGE_ROWS_MAX
            while rows_left > 0 and (found := self._execute(SQL.some_trash).fetchone()) is not None:
                rows_left -= self._erase(found[0], rows_left)
            self._commit()
        except BaseException:
            self._roll_back()
            raise
        return True

    def _begin(self) -> None:
        when_free(self.connection, BEGIN)
        try:
            check_schema(self.connection)
        except BaseException:
            self._roll_back()
            raise

    def _commit(self) -> None:
        self._add_counts()
        self._execute("COMMIT")

    def _roll_back(self) -> None:
        self._counted.clear()
        # SQLite rolls back by itself after some failures.
        if self.connection.in_transaction:
            self._execute("ROLLBACK")

    def _run(self, update: Update[Any]) -> Any:
        """Run one plan and make its writes. Returns its answer, or the exception that it raised."""
        ids: dict[Place, int | None] = {}
        heads: dict[Place, Head | None] = {}
        if len(update.places) < TOGETHER_MIN:
            for place in update.places:
                self._find(place, ids, heads)
        else:
            self._find_together(update.places, ids, heads)
        try:
            generator = update.plan(heads)
            query = next(generator)
            while True:
                query = generator.send(self._answer(query))
        except StopIteration as stop:
            commit: Commit[Any] = stop.value
        except sqlite3.Error:
            raise
        except Exception as error:
            return error
        replaced: list[tuple[int | None, bytes, bytes, int]] = []
        for write in commit.writes:
            self._write(write, ids, replaced)
        if replaced:
            self._execute_many(SQL.update_record, replaced)
        return commit.answer

    def _find(self, place: Place, ids: dict[Place, int | None], heads: dict[Place, Head | None]) -> None:
        namespace, kind, key = place
        parent_id = self._find_parent(namespace, kind, ids, heads)
        ids[place], heads[place] = _NOTHING if parent_id is None else self._child(parent_id, kind, key)

    def _find_together(
        self, places: Sequence[Place], ids: dict[Place, int | None], heads: dict[Place, Head | None]
    ) -> None:
        groups: dict[tuple[str, Kind], list[Place]] = {}
        for place in places:
            groups.setdefault(place[:2], []).append(place)
        for (namespace, kind), wanted in groups.items():
            parent_id = self._find_parent(namespace, kind, ids, heads)
            ids.update(dict.fromkeys(wanted))
            heads.update(dict.fromkeys(wanted))
            if parent_id is not None:
                rows = self._execute(CHILDREN, (json_array([place.key for place in wanted]), parent_id, int(kind)))
                for position, record_id, meta, expires in rows:
                    ids[wanted[position]], heads[wanted[position]] = record_id, stored_head((meta, b"", expires))

    def _find_parent(
        self, namespace: str, kind: Kind, ids: dict[Place, int | None], heads: dict[Place, Head | None]
    ) -> int | None:
        """The id of the namespace that a record is in. Unless the record is a namespace itself, enter its head too."""
        parent = namespace_place(namespace)
        found = self._namespaces.get(parent)
        if found is None:
            found = self._namespaces[parent] = self._child(ROOT_ID, NAMESPACE, namespace)
        if kind is not NAMESPACE:
            ids[parent], heads[parent] = found
        return found[0]

    def _child(self, parent_id: int, kind: Kind, key: str) -> tuple[int | None, Head | None]:
        row = self._execute(SQL.child, (parent_id, int(kind), key)).fetchone()
        return _NOTHING if row is None else (row[0], stored_head((row[1], b"", row[2])))

    def _answer(self, query: Query) -> list[Any]:
        if self._counted and any(isinstance(read, CountRead) for read in query):
            self._add_counts()
        return self._reader.answer(query)

    def _add_counts(self) -> None:
        for (parent_id, kind), n in self._counted.items():
            self._execute(SQL.add_count, (parent_id, int(kind), n))
        self._counted.clear()

    def _count(self, parent_id: int, kind: Kind, n: int) -> None:
        if kind in COUNTED:
            self._counted[parent_id, kind] = self._counted.get((parent_id, kind), 0) + n

    def _write(
        self,
        write: Write,
        ids: dict[Place, int | None],
        replaced: list[tuple[int | None, bytes, bytes, int]],
    ) -> None:
        """Carry out a write. A head that replaces another one is only added to ``replaced``, for one later call.

        That call may come last, because no other write needs a head, and ids of deleted records are not used again.
        """
        place = write.place
        record_id = ids[place]
        if place.kind is NAMESPACE:
            self._namespaces.pop(place, None)
        if isinstance(write, PutHead):
            meta, value, expires = write.head
            if record_id is not None:
                replaced.append((expires, meta, value, record_id))
            else:
                parent_id = _parent_id(place, ids)
                row = (parent_id, int(place.kind), place.key, expires, meta, value)
                ids[place] = self.connection.execute(SQL.insert_record, row).lastrowid
                self._count(parent_id, place.kind, 1)
        elif isinstance(write, PutRow):
            if record_id is None:
                raise AssertionError("a row was put into a record that does not exist")
            sort, value, by = write.row
            self._execute(SQL.put_row, (record_id, write.lane, sort, by, value))
        elif record_id is None:
            return
        elif isinstance(write, DeleteRow):
            self._execute(SQL.delete_row, (record_id, write.lane, write.sort))
        elif isinstance(write, DeleteRows):
            sql = SQL.delete_rows(low=write.low is not None, high=write.high is not None)
            bounds = [bound for bound in (write.low, write.high) if bound is not None]
            self._execute(sql, (record_id, write.lane, *bounds))
        elif isinstance(write, DeleteRecord):
            self._count(_parent_id(place, ids), place.kind, -1)
            self._execute(SQL.delete_record, (record_id,))
            self._execute(SQL.trash_record, (record_id, record_id, record_id))
            if place.kind is Kind.NAMESPACE:
                self._add_counts()
                self._execute(SQL.delete_counts, (record_id,))
            ids[place] = None

    def _erase(self, record_id: int, rows_max: int) -> int:
        """Erase at most ``rows_max`` rows or children of a deleted record. Returns how many, with the record itself."""
        rows = _within_bytes(self._execute(SQL.some_rows, (record_id, rows_max)).fetchall())
        for lane, sort_key, _ in rows:
            self._execute(SQL.delete_row, (record_id, lane, sort_key))
        if rows:
            return len(rows)
        children = _within_bytes(self._execute(SQL.some_children, (record_id, rows_max)).fetchall())
        for child_id, _ in children:
            self._execute(SQL.delete_record, (child_id,))
            self._execute(SQL.trash_record, (child_id, child_id, child_id))
        if not children:
            self._execute(SQL.empty_trash, (record_id,))
        return len(children) + 1


_NOTHING: Final = (None, None)


def _parent_id(place: Place, ids: dict[Place, int | None]) -> int:
    if place.kind is Kind.NAMESPACE:
        return ROOT_ID
    parent_id = ids[namespace_place(place.namespace)]
    if parent_id is None:
        raise AssertionError("a record was put into a namespace that does not exist")
    return parent_id


def _within_bytes(rows: list[Any]) -> list[Any]:
    """The first rows, at least one, that together have few enough bytes. The last column of a row is its size."""
    size = 0
    for position, row in enumerate(rows):
        size += row[-1]
        if size > _PURGE_BYTES_MAX:
            return rows[: position + 1]
    return rows
