"""How the PostgreSQL backend answers reads. A batch takes one round trip."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

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
    Row,
    RowOrder,
    RowScan,
    Slice,
)
from rstored.backends.postgresql.connection import Connection, Request, Rows
from rstored.backends.postgresql.parameters import Parameter, integers
from rstored.backends.postgresql.statements import COMMIT, OWNED, SQL, place_columns
from rstored.problems import Problem, of_storage

# A statement, its parameters, and the function that turns its rows into the result of the read.
Question: TypeAlias = tuple[str, Sequence[Parameter], Callable[[Rows], Any]]
# Positions of reads, and the result of each.
Found: TypeAlias = Iterable[tuple[int, Any]]

_BEGIN_READING: Final[Request] = ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", ())

_COUNTS: Final = f"{SQL.counts} UNION ALL SELECT kind, -n FROM ({SQL.expired_counts}) AS expired (kind, n)"  # noqa: S608

_HEADS: Final = f"""
    SELECT place.position, found.meta,
        CASE WHEN octet_length(found.value) > place.bytes_max THEN '' ELSE found.value END, found.expires_ms
    FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::bigint[])
        WITH ORDINALITY AS place (namespace, kind, key, bytes_max, position)
    {OWNED}
"""  # noqa: S608 - made of constants
# The limit is NULL, hence none. It shows the server that the rows can be read in order.
_LANES: Final = f"""
    SELECT place.position, lane_row.sort_key, lane_row.value, lane_row.by_key
    FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::bigint[])
        WITH ORDINALITY AS place (namespace, kind, key, lane, position)
    {OWNED}
    CROSS JOIN LATERAL (
        SELECT record_row.sort_key, record_row.value, record_row.by_key FROM record_row
        WHERE record_row.record_id = found.id AND record_row.lane = place.lane
        ORDER BY record_row.sort_key LIMIT %s
    ) AS lane_row
    ORDER BY place.position, lane_row.sort_key
"""  # noqa: S608 - made of constants


async def answers(connection: Connection, queries: Sequence[Query]) -> list[list[Any] | Problem]:
    """Answer the queries in one round trip. Several statements see one snapshot."""
    asked = Asked(queries)
    if len(asked.requests) == 1:
        return asked.answers(await connection.exchange(asked.requests))
    _, *rows, _ = await connection.exchange([_BEGIN_READING, *asked.requests, COMMIT])
    return asked.answers(rows)


class Asked:
    """Queries as statements. All reads of heads share one statement, and so do all scans of whole lanes."""

    def __init__(self, queries: Sequence[Query]) -> None:
        self.requests: list[Request] = []
        self._lengths = [len(query) for query in queries]
        self._decoders: list[Callable[[Rows], Found]] = []
        # Whether some of what was found cannot be read.
        self._problems = False
        heads: list[tuple[int, HeadRead]] = []
        lanes: list[tuple[int, RowScan]] = []
        for position, read in enumerate(itertools.chain.from_iterable(queries)):
            if isinstance(read, HeadRead):
                heads.append((position, read))
            elif isinstance(read, RowScan) and read == RowScan(read.place, read.lane):
                lanes.append((position, read))
            else:
                self._ask_one(position, *_question(read))
        if heads:
            self._ask_heads(heads)
        if lanes:
            self._ask_lanes(lanes)

    def answers(self, rows: Sequence[Rows]) -> list[Any]:
        """The answers to the queries, or their problems, from the rows of all statements."""
        found: list[Any] = [None] * sum(self._lengths)
        for decode, some in zip(self._decoders, rows, strict=True):
            for position, answer in decode(some):
                found[position] = answer
        results = iter(found)
        answers = [list(itertools.islice(results, length)) for length in self._lengths]
        if not self._problems:
            return answers
        return [next((part for part in parts if isinstance(part, Problem)), parts) for parts in answers]

    def _ask_one(
        self, position: int, text: str, parameters: Sequence[Parameter], decode: Callable[[Rows], Any]
    ) -> None:
        def decode_one(rows: Rows) -> Found:
            try:
                return [(position, decode(rows))]
            except Problem as problem:
                self._problems = True
                return [(position, problem)]

        self.requests.append((text, parameters))
        self._decoders.append(decode_one)

    def _ask_heads(self, positioned: list[tuple[int, HeadRead]]) -> None:
        def decode(rows: Rows) -> Found:
            return [(positioned[ordinal - 1][0], Head._make(head)) for ordinal, *head in rows]

        bounds = integers([read.bytes_max for _, read in positioned])
        self.requests.append((_HEADS, (*place_columns([read.place for _, read in positioned]), bounds)))
        self._decoders.append(decode)

    def _ask_lanes(self, positioned: list[tuple[int, RowScan]]) -> None:
        def decode(rows: Rows) -> Found:
            slices: list[Slice[Row]] = [Slice([], False) for _ in positioned]
            for ordinal, *row in rows:
                slices[ordinal - 1].items.append(Row._make(row))
            return zip((position for position, _ in positioned), slices, strict=True)

        lanes = integers([scan.lane for _, scan in positioned])
        self.requests.append((_LANES, (*place_columns([scan.place for _, scan in positioned]), lanes, None)))
        self._decoders.append(decode)


def _question(read: RowScan | Listing | CountRead | ExpiredRead) -> Question:
    if isinstance(read, RowScan):
        return _scan_question(read)
    if isinstance(read, Listing):
        return _listing_question(read)
    if isinstance(read, CountRead):
        return _COUNTS, (read.namespace, read.now_ms, read.namespace), _counts
    return SQL.expired, (read.now_ms, read.limit), _expired


def _scan_question(scan: RowScan) -> Question:
    text, parameters = SQL.scan_query(scan)
    order = "by_key" if scan.along is RowOrder.BY else "sort_key"
    columns = "sort_key, value, by_key"
    text = _bounded(text, columns, f"{order} DESC" if scan.descending else order, scan.bytes_max, parameters)
    return text, parameters, lambda rows: _slice(rows, scan.limit, scan.bytes_max, _row)


def _listing_question(listing: Listing) -> Question:
    text, parameters = SQL.listing_query(listing)
    bytes_max = listing.bytes_max if listing.values else None
    text = _bounded(text, "key, meta, value, expires_ms", "key", bytes_max, parameters)
    return text, parameters, lambda rows: _slice(rows, listing.limit, bytes_max, _listed)


def _bounded(text: str, columns: str, order: str, bytes_max: int | None, parameters: list[Any]) -> str:
    """The statement, which ends after the row with which the values reach ``bytes_max``. Its last column counts all."""
    if bytes_max is None:
        return text
    parameters.append(bytes_max)
    return f"""
        SELECT {columns}, total FROM (
            SELECT {columns}, count(*) OVER () AS total, sum(octet_length(value)) OVER (
                ORDER BY {order} ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS bytes_before
            FROM ({text}) AS page ({columns})
        ) AS sized
        WHERE bytes_before IS NULL OR bytes_before < %s
        ORDER BY {order}
    """  # noqa: S608 - made of constants


def _slice(rows: Rows, limit: int | None, bytes_max: int | None, make: Callable[[tuple[Any, ...]], Any]) -> Slice[Any]:
    if limit is not None and len(rows) > limit:
        return Slice([make(row) for row in rows[:limit]], True)
    cut = bytes_max is not None and bool(rows) and rows[0][-1] > len(rows)
    return Slice([make(row) for row in rows], cut)


def _row(columns: tuple[Any, ...]) -> Row:
    return Row._make(columns[:3])


def _listed(columns: tuple[Any, ...]) -> tuple[str, Head]:
    return columns[0], Head._make(columns[1:4])


def _counts(rows: Rows) -> dict[Kind, int]:
    counts = dict.fromkeys(COUNTED, 0)
    for kind, n in rows:
        if kind in counts:
            counts[Kind(kind)] += n
    return counts


@of_storage("a record")
def _expired(rows: Rows) -> list[Place]:
    return [Place(namespace, Kind(kind), key) for namespace, kind, key in rows]
