"""The writes of a transaction of the PostgreSQL backend, gathered into few statements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rstored.backends.abc import COUNTED, DeleteRows, Head, Kind, Place, Row
from rstored.backends.postgresql.connection import Request
from rstored.backends.postgresql.parameters import blobs, integers
from rstored.backends.postgresql.statements import DELETE_RECORDS, SQL, TRASH_RECORDS, place_columns

_ROWS_BYTES_MAX: Final = 16 * 2**20

# If another record has the id, the schema was restored from a dump after the id was reserved. Then meta becomes null,
# which PostgreSQL refuses.
_PUT_HEADS: Final = """
    INSERT INTO record (id, parent_id, kind, key, expires_ms, meta, value)
    SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::bytea[], %s::bytea[])
    ON CONFLICT (id) DO UPDATE SET expires_ms = excluded.expires_ms, value = excluded.value, meta = CASE
        WHEN (record.parent_id, record.kind, record.key) = (excluded.parent_id, excluded.kind, excluded.key)
        THEN excluded.meta END
"""
_PUT_ROWS: Final = """
    INSERT INTO record_row (record_id, lane, sort_key, by_key, value)
    SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bytea[], %s::bytea[], %s::bytea[])
    ON CONFLICT (record_id, lane, sort_key) DO UPDATE SET by_key = excluded.by_key, value = excluded.value
"""
_DELETE_ROWS: Final = """
    DELETE FROM record_row
    WHERE ctid = ANY(ARRAY(
        SELECT found.ctid
        FROM unnest(%s::bigint[], %s::bigint[], %s::bytea[]) AS gone (record_id, lane, sort_key)
        CROSS JOIN LATERAL (
            SELECT ctid FROM record_row
            WHERE record_row.record_id = gone.record_id AND record_row.lane = gone.lane
                AND record_row.sort_key = gone.sort_key
            LIMIT 1
        ) AS found
    ))
"""


class Changes:
    """Writes of any number of updates, gathered so that a few statements make them."""

    def __init__(self, counts: dict[tuple[int, int], int] | None = None) -> None:
        self._heads: dict[int, tuple[int, Place, Head]] = {}
        # The ids of those records that do not exist yet.
        self._new: set[int] = set()
        self._deleted: list[int] = []
        self._deleted_namespaces: list[int] = []
        self._deleted_ranges: list[tuple[int, DeleteRows]] = []
        # By how much the number of children of a kind changes, for each parent. Counts are written last, because
        # batches of several processes wait for each other there.
        self.counts: dict[tuple[int, int], int] = {} if counts is None else counts
        # None means that the row is deleted.
        self.rows: dict[tuple[int, int, bytes], Row | None] = {}

    def put(self, record_id: int, parent_id: int, place: Place, head: Head, *, new: bool) -> None:
        self._heads[record_id] = parent_id, place, head
        if new:
            self._new.add(record_id)
            self._count(parent_id, place, 1)

    def delete(self, record_id: int, parent_id: int, place: Place) -> None:
        self._count(parent_id, place, -1)
        children = [child for child in self._new if self._heads[child][0] == record_id]
        for gone in (record_id, *children):
            self._heads.pop(gone, None)
            if gone in self._new:
                self._new.remove(gone)
            else:
                self._deleted.append(gone)
        self.rows = {at: row for at, row in self.rows.items() if at[0] != record_id and at[0] not in children}
        if place.kind is Kind.NAMESPACE:
            self.counts = {at: n for at, n in self.counts.items() if at[0] != record_id}
            self._deleted_namespaces.append(record_id)

    def delete_rows(self, record_id: int, gone: DeleteRows) -> None:
        low, high = gone.low or b"", gone.high
        self.rows = {
            at: row
            for at, row in self.rows.items()
            if at[:2] != (record_id, gone.lane) or at[2] < low or (high is not None and at[2] > high)
        }
        self._deleted_ranges.append((record_id, gone))

    def _count(self, parent_id: int, place: Place, n: int) -> None:
        if place.kind in COUNTED:
            at = parent_id, int(place.kind)
            self.counts[at] = self.counts.get(at, 0) + n

    def requests(self) -> list[Request]:
        """The statements, in an order in which none undoes another."""
        requests: list[Request] = []
        for record_id, gone in self._deleted_ranges:
            text = SQL.delete_rows(low=gone.low is not None, high=gone.high is not None)
            bounds = [bound for bound in (gone.low, gone.high) if bound is not None]
            requests.append((text, (record_id, gone.lane, *bounds)))
        if self._deleted:
            deleted = (integers(self._deleted),)
            requests += [(DELETE_RECORDS, deleted), (TRASH_RECORDS, deleted)]
        if self._heads:
            parents, places, heads = zip(*self._heads.values(), strict=True)
            _, *keys = place_columns(places)
            requests.append((_PUT_HEADS, (integers([*self._heads]), integers(parents), *keys, *_stored(heads))))
        deleted_rows = [at for at, row in self.rows.items() if row is None]
        if deleted_rows:
            requests.append((_DELETE_ROWS, _positions(deleted_rows)))
        for put in _chunks([(at, row) for at, row in self.rows.items() if row is not None]):
            rows = [row for _, row in put]
            values = blobs([row.by for row in rows]), blobs([row.value for row in rows])
            requests.append((_PUT_ROWS, (*_positions([at for at, _ in put]), *values)))
        requests += [(SQL.delete_counts, (namespace_id,)) for namespace_id in self._deleted_namespaces]
        return requests


def count_requests(counts: dict[tuple[int, int], int]) -> list[Request]:
    # The order keeps two processes that count in the same namespaces from a deadlock.
    return [(SQL.add_count, (parent_id, kind, n)) for (parent_id, kind), n in sorted(counts.items()) if n]


def _stored(heads: Sequence[Head]) -> tuple[bytes, bytes, bytes]:
    return (
        integers([head.expires_ms for head in heads]),
        blobs([head.meta for head in heads]),
        blobs([head.value for head in heads]),
    )


def _positions(rows: Sequence[tuple[int, int, bytes]]) -> tuple[bytes, bytes, bytes]:
    record_ids, lanes, sorts = zip(*rows, strict=True)
    return integers(record_ids), integers(lanes), blobs(sorts)


def _chunks(rows: list[tuple[tuple[int, int, bytes], Row]]) -> Iterator[list[tuple[tuple[int, int, bytes], Row]]]:
    """The rows in runs. Each run has a bounded number of bytes."""
    start = size = 0
    for position, (_, row) in enumerate(rows):
        size += len(row.value)
        if size >= _ROWS_BYTES_MAX:
            yield rows[start : position + 1]
            start, size = position + 1, 0
    if start < len(rows):
        yield rows[start:]
