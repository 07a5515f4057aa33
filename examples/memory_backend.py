"""A backend that keeps records in this process's memory: the smallest that meets the contract (docs/backends.md).

It shows what each part of the contract asks for, in the plainest way. It is slow, and a restart loses everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from rstored.backends.abc import (
    COUNTED,
    Backend,
    Capabilities,
    Commit,
    CountRead,
    DeleteRow,
    DeleteRows,
    ExpiredRead,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    PutHead,
    PutRow,
    Query,
    Read,
    Row,
    RowOrder,
    RowScan,
    SchemaVersions,
    Slice,
    Update,
    Write,
    namespace_place,
)
from rstored.problems import Problem

T = TypeVar("T")


class Records:
    """The heads and rows of a store."""

    def __init__(self, heads: dict[Place, Head], rows: dict[tuple[Place, int], dict[bytes, Row]]) -> None:
        self.heads = heads
        self.rows = rows

    def copy(self) -> Records:
        return Records(dict(self.heads), {lane: dict(rows) for lane, rows in self.rows.items()})

    # Reading.

    def answer(self, read: Read) -> Any:
        if isinstance(read, HeadRead):
            return self.head(read)
        if isinstance(read, RowScan):
            return self.scan(read)
        if isinstance(read, Listing):
            return self.listing(read)
        if isinstance(read, CountRead):
            return {kind: self.count(read, kind) for kind in COUNTED}
        return self.expired(read)

    def head(self, read: HeadRead) -> Head | None:
        head = self.heads.get(read.place)
        if head is not None and read.bytes_max is not None and len(head.value) > read.bytes_max:
            return head._replace(value=b"")
        return head

    def scan(self, scan: RowScan) -> Slice[Row]:
        rows = self.rows.get((scan.place, scan.lane), {}).values()
        if scan.along is RowOrder.SORT:
            ordered = sorted((row.sort, row) for row in rows)
        else:
            ordered = sorted((row.by, row) for row in rows if row.by is not None)
        low = scan.low
        if scan.floor and low is not None:
            low = max((at for at, _ in ordered if at <= low), default=low)
        found = [row for at, row in ordered if (low is None or at >= low) and (scan.high is None or at <= scan.high)]
        if scan.descending:
            found.reverse()
        return limited(found, scan.limit, scan.bytes_max, lambda row: len(row.value))

    def listing(self, listing: Listing) -> Slice[tuple[str, Head]]:
        found = [
            (place.key, head if listing.values else head._replace(value=b""))
            for place, head in self.heads.items()
            if place[:2] == (listing.namespace, listing.kind)
            and place.key.startswith(listing.prefix)
            and (listing.after is None or place.key.encode() > listing.after.encode())
        ]
        found.sort(key=lambda item: item[0].encode())
        return limited(found, listing.limit, listing.bytes_max, lambda item: len(item[1].value))

    def count(self, read: CountRead, kind: Kind) -> int:
        heads = [head for place, head in self.heads.items() if place[:2] == (read.namespace, kind)]
        return sum(head.expires_ms is None or head.expires_ms > read.now_ms for head in heads)

    def expired(self, read: ExpiredRead) -> list[Place]:
        expiring = [(head.expires_ms, place) for place, head in self.heads.items() if head.expires_ms is not None]
        return [place for expires_ms, place in sorted(expiring) if expires_ms <= read.now_ms][: read.limit]

    # Writing.

    def carry_out(self, update: Update[T]) -> T:
        """Run the plan and make its writes; returns its answer."""
        places = {*update.places, *(namespace_place(place.namespace) for place in update.places if place.namespace)}
        bare = {place: self.head(HeadRead(place, bytes_max=0)) for place in places}
        planning = update.plan(bare)
        try:
            query = next(planning)
            while True:
                query = planning.send([self.answer(read) for read in query])
        except StopIteration as stop:
            commit: Commit[T] = stop.value
        for write in commit.writes:
            self.write(write)
        return commit.answer

    def write(self, write: Write) -> None:
        place = write.place
        if isinstance(write, PutHead):
            self.heads[place] = write.head
        elif isinstance(write, PutRow):
            self.put_row(place, write.lane, write.row)
        elif isinstance(write, DeleteRow):
            self.rows.get((place, write.lane), {}).pop(write.sort, None)
        elif isinstance(write, DeleteRows):
            rows = self.rows.get((place, write.lane), {})
            low, high = write.low or b"", write.high
            for sort in [sort for sort in rows if sort >= low and (high is None or sort <= high)]:
                del rows[sort]
        else:
            self.delete(place)

    def put_row(self, place: Place, lane: int, row: Row) -> None:
        if place not in self.heads:
            raise AssertionError("a row was put into a record that does not exist")
        rows = self.rows.setdefault((place, lane), {})
        if row.by is not None and any(other.by == row.by and other.sort != row.sort for other in rows.values()):
            raise AssertionError("two rows of a lane have the same by")
        rows[row.sort] = row

    def delete(self, gone: Place) -> None:
        inside = gone.key if gone.kind is Kind.NAMESPACE else None
        self.heads = {at: head for at, head in self.heads.items() if at != gone and at.namespace != inside}
        self.rows = {at: rows for at, rows in self.rows.items() if at[0] != gone and at[0].namespace != inside}


def limited(found: Sequence[T], limit: int | None, bytes_max: int | None, size_of: Callable[[T], int]) -> Slice[T]:
    """The first ``limit`` of what was found, or up to the one with which their sizes reach ``bytes_max``."""
    taken: list[T] = []
    size = 0
    for item in found:
        taken.append(item)
        size += size_of(item)
        if len(taken) == limit or (bytes_max is not None and size >= bytes_max):
            break
    return Slice(taken, len(taken) < len(found))


class MemoryBackend(Backend):
    """A store in this process's memory. Whoever opens the same DSN, ``memory://NAME``, has the same store."""

    capabilities = Capabilities(local_reads=True)

    stores: ClassVar[dict[str, Records]] = {}

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.closed = False

    @classmethod
    async def open(cls, dsn: str) -> MemoryBackend:
        cls.stores.setdefault(dsn, Records({}, {}))
        return cls(dsn)

    @classmethod
    async def schema_versions(cls, dsn: str) -> SchemaVersions:
        return SchemaVersions(present=int(dsn in cls.stores), known=1)

    async def close(self) -> None:
        self.closed = True

    async def ping(self) -> None:
        self.check_open()

    def describe(self) -> dict[str, str]:
        return {"name": "memory", "version": "1", "durability": "a restart of the service loses every write"}

    async def read(self, queries: Sequence[Query]) -> list[list[Any] | Problem]:
        self.check_open()
        records = self.stores[self.dsn]
        return [[records.answer(read) for read in query] for query in queries]

    async def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        self.check_open()
        return [self.try_out(update) for update in updates]

    def try_out(self, update: Update[Any]) -> Any:
        """Carry out an update on a copy, which takes the store's place if nothing fails."""
        records = self.stores[self.dsn].copy()
        try:
            answer = records.carry_out(update)
        except Exception as error:
            return error
        self.stores[self.dsn] = records
        return answer

    async def purge(self) -> bool:
        self.check_open()
        return False

    def check_open(self) -> None:
        if self.closed:
            raise Problem("backend-unavailable", "the store is closed")
