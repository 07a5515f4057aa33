"""Cases of a backend's rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rstored.backends.abc import (
    Backend,
    DeleteRow,
    DeleteRows,
    Head,
    HeadRead,
    PutHead,
    PutRow,
    Row,
    RowOrder,
    RowScan,
    Slice,
)
from rstored.testing.tools import GENERATED, SERIES, commit, fill, read, writing

ROWS = [Row(b"%02d" % n, b"x" * n, b"%02d" % (90 - n) if n % 2 else None) for n in range(0, 40, 2)] + [
    Row(b"%02d" % n, b"x" * n, b"%02d" % (90 - n)) for n in range(1, 9, 2)
]
BOUND = st.none() | st.integers(0, 99).map(lambda n: b"%02d" % n)


def expected(scan: RowScan) -> Slice[Row]:
    """The result of a scan over ROWS by the contract, in its simplest form.

    >>> found = expected(RowScan(SERIES, 0, b"07", b"20", limit=2))
    >>> [row.sort for row in found.items], found.more
    ([b'07', b'08'], True)
    """
    order = [row for row in ROWS if scan.along is RowOrder.SORT or row.by is not None]

    def key(row: Row) -> bytes:
        return row.sort if scan.along is RowOrder.SORT else row.by or b""

    order.sort(key=key, reverse=scan.descending)
    low = scan.low
    if scan.floor and low is not None:
        low = max((key(row) for row in order if key(row) <= low), default=low)
    found = [row for row in order if (low is None or key(row) >= low) and (scan.high is None or key(row) <= scan.high)]
    taken: list[Row] = []
    for row in found:
        taken.append(row)
        if len(taken) == scan.limit or (scan.bytes_max and sum(len(row.value) for row in taken) >= scan.bytes_max):
            break
    return Slice(taken, len(taken) < len(found))


@st.composite
def scans(draw: st.DrawFn) -> RowScan:
    along = draw(st.sampled_from(RowOrder))
    floor = along is RowOrder.SORT and draw(st.booleans())
    return RowScan(
        SERIES,
        0,
        draw(BOUND),
        draw(BOUND),
        along,
        descending=not floor and draw(st.booleans()),
        floor=floor,
        limit=draw(st.none() | st.integers(1, 30)),
        bytes_max=draw(st.none() | st.integers(1, 500)),
    )


class RowCases:
    """Inherited by :class:`rstored.testing.BackendContract`."""

    async def test_rows_are_ordered_as_unsigned_bytes_shorter_first(self, backend: Backend) -> None:
        ordered = [b"", b"\x00", b"\x00\x00", b"\x00\xff", b"\x01", b"a", b"aa", b"\x7f", b"\x80", b"\xff", b"\xff\x00"]
        ordered.sort()
        await fill(backend, *(Row(sort, sort) for sort in reversed(ordered)))
        (rows,) = await read(backend, RowScan(SERIES, 0))
        assert [row.sort for row in rows.items] == ordered
        assert not rows.more

    async def test_a_row_with_the_same_sort_is_replaced(self, backend: Backend) -> None:
        await fill(backend, Row(b"1", b"old", b"x"), Row(b"2", b"old", b"y"))
        await commit(backend, PutHead(SERIES, Head(b"m2")), PutRow(SERIES, 0, Row(b"1", b"new")))
        by_sort, by_by = await read(backend, RowScan(SERIES, 0), RowScan(SERIES, 0, along=RowOrder.BY))
        assert by_sort.items == [Row(b"1", b"new"), Row(b"2", b"old", b"y")]
        assert by_by.items == [Row(b"2", b"old", b"y")]

    async def test_lanes_are_apart_and_rows_are_deleted_one_by_one_and_by_range(self, backend: Backend) -> None:
        rows = [Row(b"%d" % n, b"") for n in range(8)]
        await fill(backend, *rows)
        await commit(backend, *(PutRow(SERIES, 1, row) for row in rows))
        await commit(
            backend, DeleteRow(SERIES, 0, b"3"), DeleteRow(SERIES, 0, b"none"), DeleteRows(SERIES, 0, b"5", b"6")
        )
        await commit(backend, DeleteRows(SERIES, 0, None, b"0"), DeleteRows(SERIES, 0, b"7", None))
        zero, one = await read(backend, RowScan(SERIES, 0), RowScan(SERIES, 1))
        assert [row.sort for row in zero.items] == [b"1", b"2", b"4"]
        assert one.items == rows
        await commit(backend, DeleteRows(SERIES, 1))
        assert await read(backend, RowScan(SERIES, 1)) == [Slice([], False)]

    @GENERATED
    @given(scan=scans())
    async def test_every_scan_is_what_the_contract_says(self, backend: Backend, scan: RowScan) -> None:
        if (await read(backend, HeadRead(SERIES))) == [None]:
            await fill(backend, *ROWS)
        assert await read(backend, scan) == [expected(scan)]

    async def test_a_record_that_does_not_exist_has_no_rows(self, backend: Backend) -> None:
        assert await read(backend, RowScan(SERIES, 0, b"1", floor=True)) == [Slice([], False)]

    async def test_a_row_cannot_be_put_into_a_record_that_does_not_exist(self, backend: Backend) -> None:
        (result,) = await backend.update([writing(PutRow(SERIES, 0, Row(b"1", b"")))])
        assert isinstance(result, Exception)
