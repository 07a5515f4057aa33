"""Cases of a backend's records: counts, expiry and deletion."""

from __future__ import annotations

from typing import Any

from rstored.backends.abc import (
    Backend,
    Commit,
    CountRead,
    DeleteRecord,
    ExpiredRead,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    PutHead,
    PutRow,
    Read,
    Row,
    RowScan,
    Slice,
    Update,
    namespace_place,
)
from rstored.testing.tools import NS, SERIES, Heads, Planning, commit, fill, kv, purge, read, writing


class RecordCases:
    """Inherited by :class:`rstored.testing.BackendContract`."""

    async def test_counts_follow_every_change_and_leave_out_what_expired(self, backend: Backend) -> None:
        async def counts(now: int = 0) -> list[int]:
            (found,) = await read(backend, CountRead("ns", now))
            assert list(found) == [Kind.KV, Kind.TS, Kind.ES]
            return list(found.values())

        assert await counts() == [0, 0, 0]
        await commit(
            backend, PutHead(NS, Head(b"")), *(PutHead(kv(str(n)), Head(b"", b"", n or None)) for n in range(5))
        )
        await commit(backend, PutHead(SERIES, Head(b"")), PutHead(kv("4"), Head(b"", b"", 4)))
        assert await counts() == [5, 1, 0]
        assert [await counts(now) for now in (1, 3, 4)] == [[4, 1, 0], [2, 1, 0], [1, 1, 0]]
        await commit(backend, DeleteRecord(kv("1")), DeleteRecord(kv("0")), DeleteRecord(kv("none")))
        assert await counts() == [3, 1, 0]

        def plan(heads: Heads) -> Planning:
            (inside,) = yield (CountRead("ns", 0),)
            return Commit([], list(inside.values()))

        put = writing(PutHead(Place("ns", Kind.ES, "e"), Head(b"")))
        assert await backend.update([put, Update((kv("k"),), plan)]) == [None, [3, 1, 1]]

    async def test_expired_records_are_found_longest_expired_first(self, backend: Backend) -> None:
        await commit(
            backend,
            *(PutHead(namespace_place(name), Head(b"")) for name in ("ns", "other")),
            PutHead(kv("late"), Head(b"", b"", 30)),
            PutHead(kv("early"), Head(b"", b"", 10)),
            PutHead(kv("never"), Head(b"", b"")),
            PutHead(kv("middle", "other"), Head(b"", b"", 20)),
        )
        assert await read(backend, ExpiredRead(29, 10), ExpiredRead(30, 10), ExpiredRead(30, 1), ExpiredRead(9, 9)) == [
            [kv("early"), kv("middle", "other")],
            [kv("early"), kv("middle", "other"), kv("late")],
            [kv("early")],
            [],
        ]
        await commit(backend, DeleteRecord(namespace_place("other")))
        assert await read(backend, ExpiredRead(30, 10)) == [[kv("early"), kv("late")]]

    async def test_deleting_a_namespace_deletes_all_in_it_and_nothing_else(self, backend: Backend) -> None:
        for name in ("ns", "other"):
            series = Place(name, Kind.TS, "s")
            await commit(
                backend,
                PutHead(namespace_place(name), Head(b"")),
                PutHead(kv("k", name), Head(b"m", b"v")),
                PutHead(series, Head(b"")),
                PutRow(series, 0, Row(b"1", b"x")),
            )
        await commit(backend, DeleteRecord(NS))
        gone: list[Read] = [
            HeadRead(kv("k")),
            Listing("ns", Kind.KV),
            RowScan(Place("ns", Kind.TS, "s"), 0),
            CountRead("ns", 0),
        ]
        nothing: list[Any] = [None, Slice([], False), Slice([], False), {Kind.KV: 0, Kind.TS: 0, Kind.ES: 0}]
        assert await read(backend, *gone) == nothing
        await commit(backend, PutHead(NS, Head(b"again")))
        assert await read(backend, *gone) == nothing
        # A new record must survive when the rest of an old record at its place is erased.
        new = Place("ns", Kind.TS, "s")
        await commit(backend, PutHead(NS, Head(b"again")), PutHead(new, Head(b"")), PutRow(new, 0, Row(b"2", b"y")))
        await purge(backend)
        assert await read(backend, RowScan(new, 0), HeadRead(NS), HeadRead(kv("k", "other"))) == [
            Slice([Row(b"2", b"y")], False),
            Head(b"again"),
            Head(b"m", b"v"),
        ]
        assert (await read(backend, RowScan(Place("other", Kind.TS, "s"), 0)))[0].items == [Row(b"1", b"x")]

    async def test_purging_comes_to_an_end(self, backend: Backend) -> None:
        await fill(backend, *(Row(b"%05d" % n, b"") for n in range(2500)))
        await commit(backend, *(PutHead(kv(f"{n:05}"), Head(b"")) for n in range(2500)))
        await commit(backend, DeleteRecord(NS))
        await purge(backend)
        assert not await backend.purge()
