"""What every backend must do, by the contract in ``rstored/backends/abc.py``."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rstored.backends import backend_class
from rstored.backends.abc import (
    Backend,
    Commit,
    CountRead,
    DeleteRecord,
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
    Read,
    Row,
    RowOrder,
    RowScan,
    Slice,
    Update,
    Write,
    namespace_place,
)
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

NS = namespace_place("ns")
SERIES = Place("ns", Kind.TS, "series")


def writing(*writes: Write, answer: Any = None) -> Update[Any]:
    """An update that makes the writes whatever it finds."""

    def plan(heads):
        return Commit(writes, answer)
        yield

    return Update(tuple({write.place: None for write in writes}), plan)


async def commit(backend: Backend, *writes: Write) -> None:
    """Make the writes, in as few updates as the backend is bound to take: one, unless that would not be atomic."""
    together: dict[Any, list[Write]] = {}
    for write in writes:
        namespace = write.place.namespace or write.place.key
        together.setdefault(namespace if backend.capabilities.atomic_batches else write.place, []).append(write)
    assert await backend.update([writing(*part) for part in together.values()]) == [None] * len(together)


async def read(backend: Backend, *reads: Read) -> list[Any]:
    (results,) = await backend.read([reads])
    assert not isinstance(results, Problem)
    return results


def kv(key: str, namespace: str = "ns") -> Place:
    return Place(namespace, Kind.KV, key)


async def fill(backend: Backend, *rows: Row, lane: int = 0) -> None:
    puts = [PutRow(SERIES, lane, row) for row in rows]
    await commit(backend, PutHead(NS, Head(b"")), PutHead(SERIES, Head(b"m")), *puts)


# --- heads -------------------------------------------------------------------------------------------------


async def test_a_head_is_what_was_put_last(backend: Backend) -> None:
    place = kv("k")
    assert await read(backend, HeadRead(place)) == [None]
    await commit(backend, PutHead(NS, Head(b"policy")), PutHead(place, Head(b"m", b"v", 7)))
    assert await read(backend, HeadRead(place), HeadRead(NS)) == [Head(b"m", b"v", 7), Head(b"policy", b"", None)]
    await commit(backend, PutHead(place, Head(b"\x00\xff", b"")))
    assert await read(backend, HeadRead(place)) == [Head(b"\x00\xff", b"", None)]
    await commit(backend, DeleteRecord(place))
    await commit(backend, DeleteRecord(place))
    assert await read(backend, HeadRead(place)) == [None]


@pytest.mark.parametrize("count", [1, 3, 10])
async def test_a_value_that_is_too_long_is_left_out(backend: Backend, count: int) -> None:
    places = [kv(f"{{k}}{number}") for number in range(count)]
    await commit(backend, PutHead(NS, Head(b"")), *(PutHead(place, Head(b"m", b"four", 7)) for place in places))
    for bytes_max, value in ((0, b""), (3, b""), (4, b"four"), (None, b"four")):
        heads = await read(backend, *(HeadRead(place, bytes_max) for place in (*places, kv("none"))))
        assert heads == [*[Head(b"m", value, 7)] * count, None]


async def test_the_same_key_is_another_record_in_another_kind_or_namespace(backend: Backend) -> None:
    places = [Place(namespace, kind, "k") for namespace in ("a", "b") for kind in (Kind.KV, Kind.TS, Kind.ES)]
    namespaces = [PutHead(namespace_place(name), Head(b"")) for name in ("a", "b")]
    await commit(backend, *namespaces, *(PutHead(place, Head(repr(place).encode())) for place in places))
    heads = await read(backend, *map(HeadRead, places))
    assert [head.meta for head in heads] == [repr(place).encode() for place in places]


async def test_a_plan_sees_heads_without_values_and_those_of_the_namespaces(backend: Backend) -> None:
    # Keys with a common part in braces can be changed in one step on every backend.
    present, absent, other = kv("{k}1"), kv("{k}2"), kv("{k}1", "other")
    await commit(backend, PutHead(NS, Head(b"p")), PutHead(present, Head(b"m", b"v", 5)))
    seen = []

    def plan(heads):
        seen.extend(heads[place] for place in (present, absent, NS))
        found = yield (HeadRead(present), Listing("ns", Kind.KV))
        seen.extend(found)
        return Commit((), "answer")

    def plan_elsewhere(heads):
        return Commit((), (heads[other], heads[namespace_place("other")]))
        yield

    updates = [Update((present, absent), plan), Update((other,), plan_elsewhere)]
    assert await backend.update(updates) == ["answer", (None, None)]
    listed = Slice([("{k}1", Head(b"m", b"", 5))], False)
    assert seen == [Head(b"m", b"", 5), None, Head(b"p"), Head(b"m", b"v", 5), listed]


async def test_records_that_cannot_be_changed_in_one_step_are_refused_and_others_are_not(backend: Backend) -> None:
    await commit(backend, PutHead(NS, Head(b"")))
    keys = [f"k{n}" for n in range(100)]
    apart = writing(*(PutHead(kv(key), Head(b"")) for key in keys), answer="apart")
    together = writing(*(PutHead(kv(f"{{part}}{key}"), Head(b"")) for key in keys), answer="together")
    results = await backend.update([apart, together])
    assert results[1] == "together"
    (listed,) = await read(backend, Listing("ns", Kind.KV))
    if backend.capabilities.atomic_batches:
        assert results[0] == "apart"
        assert len(listed.items) == 200
    else:
        assert isinstance(results[0], Problem)
        assert results[0].code == "batch-not-atomic"
        assert len(listed.items) == 100


# --- updates -----------------------------------------------------------------------------------------------


async def test_later_updates_of_a_batch_see_earlier_ones(backend: Backend) -> None:
    await commit(backend, PutHead(NS, Head(b"")))

    def plan(heads):
        (head,) = yield (HeadRead(kv("n")),)
        n = int(head.value) + 1 if head else 1
        return Commit([PutHead(kv("n"), Head(b"", b"%d" % n))], n)

    assert await backend.update([Update((kv("n"),), plan)] * 50) == list(range(1, 51))


async def test_a_plan_that_raises_writes_nothing_and_disturbs_nobody(backend: Backend) -> None:
    def refuse(heads):
        yield (HeadRead(kv("bad")),)
        raise Problem("precondition-failed", "no")

    def break_down(heads):
        raise ZeroDivisionError
        yield

    results = await backend.update(
        [
            writing(PutHead(NS, Head(b"")), PutHead(kv("a"), Head(b"")), answer=1),
            Update((kv("bad"),), refuse),
            Update((kv("bad"),), break_down),
            writing(PutHead(kv("b"), Head(b"")), answer=2)._replace(places=(kv("b"), NS)),
        ]
    )
    assert results[0] == 1
    assert isinstance(results[1], Problem)
    assert results[1].code == "precondition-failed"
    assert isinstance(results[2], ZeroDivisionError)
    assert results[3] == 2
    listed = (await read(backend, Listing("ns", Kind.KV)))[0].items
    assert [key for key, _ in listed] == ["a", "b"]


async def test_an_update_that_fails_while_it_writes_leaves_no_trace_and_its_neighbours_alone(backend: Backend) -> None:
    await commit(backend, PutHead(NS, Head(b"")))
    same_by = [PutRow(SERIES, 0, Row(sort, b"", b"one")) for sort in (b"1", b"2")]
    results = await backend.update(
        [
            writing(PutHead(kv("before"), Head(b"")), answer="before"),
            writing(PutHead(SERIES, Head(b"")), *same_by),
            writing(PutHead(kv("after"), Head(b"")), answer="after"),
        ]
    )
    assert results[0] == "before"
    assert isinstance(results[1], Exception)
    assert results[2] == "after"
    heads = await read(backend, HeadRead(kv("before")), HeadRead(SERIES), HeadRead(kv("after")), RowScan(SERIES, 0))
    assert heads == [Head(b""), None, Head(b""), Slice([], False)]
    (counts,) = await read(backend, CountRead("ns", 0))
    assert counts == {Kind.KV: 2, Kind.TS: 0, Kind.ES: 0}


# --- rows --------------------------------------------------------------------------------------------------


async def test_rows_are_ordered_as_unsigned_bytes_shorter_first(backend: Backend) -> None:
    ordered = [b"", b"\x00", b"\x00\x00", b"\x00\xff", b"\x01", b"a", b"aa", b"\x7f", b"\x80", b"\xff", b"\xff\x00"]
    ordered.sort()
    await fill(backend, *(Row(sort, sort) for sort in reversed(ordered)))
    (rows,) = await read(backend, RowScan(SERIES, 0))
    assert [row.sort for row in rows.items] == ordered
    assert not rows.more


async def test_a_row_with_the_same_sort_is_replaced(backend: Backend) -> None:
    await fill(backend, Row(b"1", b"old", b"x"), Row(b"2", b"old", b"y"))
    await commit(backend, PutHead(SERIES, Head(b"m2")), PutRow(SERIES, 0, Row(b"1", b"new")))
    by_sort, by_by = await read(backend, RowScan(SERIES, 0), RowScan(SERIES, 0, along=RowOrder.BY))
    assert by_sort.items == [Row(b"1", b"new"), Row(b"2", b"old", b"y")]
    assert by_by.items == [Row(b"2", b"old", b"y")]


async def test_lanes_are_apart_and_rows_are_deleted_one_by_one_and_by_range(backend: Backend) -> None:
    rows = [Row(b"%d" % n, b"") for n in range(8)]
    await fill(backend, *rows)
    await commit(backend, *(PutRow(SERIES, 1, row) for row in rows))
    await commit(backend, DeleteRow(SERIES, 0, b"3"), DeleteRow(SERIES, 0, b"none"), DeleteRows(SERIES, 0, b"5", b"6"))
    await commit(backend, DeleteRows(SERIES, 0, None, b"0"), DeleteRows(SERIES, 0, b"7", None))
    zero, one = await read(backend, RowScan(SERIES, 0), RowScan(SERIES, 1))
    assert [row.sort for row in zero.items] == [b"1", b"2", b"4"]
    assert one.items == rows
    await commit(backend, DeleteRows(SERIES, 1))
    assert await read(backend, RowScan(SERIES, 1)) == [Slice([], False)]


ROWS = [Row(b"%02d" % n, b"x" * n, b"%02d" % (90 - n) if n % 2 else None) for n in range(0, 40, 2)] + [
    Row(b"%02d" % n, b"x" * n, b"%02d" % (90 - n)) for n in range(1, 9, 2)
]
BOUND = st.none() | st.integers(0, 99).map(lambda n: b"%02d" % n)


def expected(scan: RowScan) -> Slice[Row]:
    """What the contract says of a scan over ROWS, in the plainest words."""
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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_scan_is_what_the_contract_says(dsn: str, data: st.DataObject) -> None:
    along = data.draw(st.sampled_from(RowOrder))
    floor = along is RowOrder.SORT and data.draw(st.booleans())
    scan = RowScan(
        SERIES,
        0,
        data.draw(BOUND),
        data.draw(BOUND),
        along,
        descending=not floor and data.draw(st.booleans()),
        floor=floor,
        limit=data.draw(st.none() | st.integers(1, 30)),
        bytes_max=data.draw(st.none() | st.integers(1, 500)),
    )

    async def run() -> None:
        backend = await backend_class(dsn).open(dsn)
        try:
            if (await read(backend, HeadRead(SERIES))) == [None]:
                await fill(backend, *ROWS)
            assert await read(backend, scan) == [expected(scan)]
        finally:
            await backend.close()

    asyncio.run(run())


async def test_a_record_that_does_not_exist_has_no_rows(backend: Backend) -> None:
    assert await read(backend, RowScan(SERIES, 0, b"1", floor=True)) == [Slice([], False)]


async def test_a_row_cannot_be_put_into_a_record_that_does_not_exist(backend: Backend) -> None:
    (result,) = await backend.update([writing(PutRow(SERIES, 0, Row(b"1", b"")))])
    assert isinstance(result, Exception)


# --- listings ----------------------------------------------------------------------------------------------

KEYS = [
    "",
    "a",
    "a\U0010ffff",
    "a\U0010ffff\U0010ffff",
    "a\U0010ffffb",
    "aé",
    "b",
    "é",
    "\ud7ff",
    "\ue000",
    "\uffff",
    "😀",
]


async def test_keys_are_listed_in_order_of_their_utf8_bytes(backend: Backend) -> None:
    keys = sorted([*filter(None, KEYS), "\U0010ffff", "\x01", "~", "\n", "a/b", ".."], key=str.encode)
    await commit(backend, PutHead(NS, Head(b"")), *(PutHead(kv(key), Head(b"m", b"v")) for key in reversed(keys)))
    (listed,) = await read(backend, Listing("ns", Kind.KV))
    assert listed == Slice([(key, Head(b"m")) for key in keys], False)
    for prefix in KEYS:
        (listed,) = await read(backend, Listing("ns", Kind.KV, prefix))
        assert [key for key, _ in listed.items] == [key for key in keys if key.startswith(prefix)]
        for after in KEYS:
            (listed,) = await read(backend, Listing("ns", Kind.KV, prefix, after))
            wanted = [key for key in keys if key.startswith(prefix) and key.encode() > after.encode()]
            assert [key for key, _ in listed.items] == wanted


async def test_a_listing_stops_at_its_limits(backend: Backend) -> None:
    heads = {f"{n}": Head(b"m", b"x" * n) for n in range(1, 6)}
    await commit(backend, PutHead(NS, Head(b"")), *(PutHead(kv(key), head) for key, head in heads.items()))
    items = list(heads.items())
    assert await read(
        backend,
        Listing("ns", Kind.KV, values=True, limit=5),
        Listing("ns", Kind.KV, values=True, limit=4),
        Listing("ns", Kind.KV, values=True, bytes_max=6),
        Listing("ns", Kind.KV, values=True, bytes_max=7),
        Listing("ns", Kind.KV, values=True, bytes_max=15),
        Listing("ns", Kind.KV, values=True, bytes_max=1),
        Listing("ns", Kind.TS, values=True),
    ) == [
        Slice(items, False),
        Slice(items[:4], True),
        Slice(items[:3], True),
        Slice(items[:4], True),
        Slice(items, False),
        Slice(items[:1], True),
        Slice([], False),
    ]


async def test_namespaces_are_listed(backend: Backend) -> None:
    names = ["-", ".", "A", "a", "b.c", "z"]
    await commit(backend, *(PutHead(namespace_place(name), Head(name.encode())) for name in names))
    (listed,) = await read(backend, Listing("", Kind.NAMESPACE))
    assert listed == Slice([(name, Head(name.encode())) for name in names], False)
    (listed,) = await read(backend, Listing("", Kind.NAMESPACE, after="A", limit=2))
    assert [name for name, _ in listed.items] == ["a", "b.c"]
    assert listed.more


# --- counts, expiry, deletion ------------------------------------------------------------------------------


async def test_counts_follow_every_change_and_leave_out_what_expired(backend: Backend) -> None:
    async def counts(now: int = 0) -> list[int]:
        (found,) = await read(backend, CountRead("ns", now))
        assert list(found) == [Kind.KV, Kind.TS, Kind.ES]
        return list(found.values())

    assert await counts() == [0, 0, 0]
    await commit(backend, PutHead(NS, Head(b"")), *(PutHead(kv(str(n)), Head(b"", b"", n or None)) for n in range(5)))
    await commit(backend, PutHead(SERIES, Head(b"")), PutHead(kv("4"), Head(b"", b"", 4)))
    assert await counts() == [5, 1, 0]
    assert [await counts(now) for now in (1, 3, 4)] == [[4, 1, 0], [2, 1, 0], [1, 1, 0]]
    await commit(backend, DeleteRecord(kv("1")), DeleteRecord(kv("0")), DeleteRecord(kv("none")))
    assert await counts() == [3, 1, 0]

    def plan(heads):
        (inside,) = yield (CountRead("ns", 0),)
        return Commit([], list(inside.values()))

    put = writing(PutHead(Place("ns", Kind.ES, "e"), Head(b"")))
    assert await backend.update([put, Update((kv("k"),), plan)]) == [None, [3, 1, 1]]


async def test_expired_records_are_found_longest_expired_first(backend: Backend) -> None:
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


async def test_deleting_a_namespace_deletes_all_in_it_and_nothing_else(backend: Backend) -> None:
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
    gone = [HeadRead(kv("k")), Listing("ns", Kind.KV), RowScan(Place("ns", Kind.TS, "s"), 0), CountRead("ns", 0)]
    nothing = [None, Slice([], False), Slice([], False), {Kind.KV: 0, Kind.TS: 0, Kind.ES: 0}]
    assert await read(backend, *gone) == nothing
    await commit(backend, PutHead(NS, Head(b"anew")))
    assert await read(backend, *gone) == nothing
    # A new record at an old place must survive the erasure of what the old one left.
    new = Place("ns", Kind.TS, "s")
    await commit(backend, PutHead(NS, Head(b"anew")), PutHead(new, Head(b"")), PutRow(new, 0, Row(b"2", b"y")))
    while await backend.purge():
        pass
    assert await read(backend, RowScan(new, 0), HeadRead(NS), HeadRead(kv("k", "other"))) == [
        Slice([Row(b"2", b"y")], False),
        Head(b"anew"),
        Head(b"m", b"v"),
    ]
    assert (await read(backend, RowScan(Place("other", Kind.TS, "s"), 0)))[0].items == [Row(b"1", b"x")]


async def test_purge_goes_in_steps(backend: Backend) -> None:
    await fill(backend, *(Row(b"%05d" % n, b"") for n in range(2500)))
    await commit(backend, *(PutHead(kv(f"{n:05}"), Head(b"")) for n in range(2500)))
    await commit(backend, DeleteRecord(NS))
    steps = 0
    while await backend.purge():
        steps += 1
    assert steps > 1
    assert not await backend.purge()


# --- life --------------------------------------------------------------------------------------------------


async def test_what_was_written_is_there_after_opening_again(backend: Backend, dsn: str) -> None:
    await fill(backend, Row(b"1", b"x"))
    await backend.close()
    again = await backend_class(dsn).open(dsn)
    try:
        assert await read(again, HeadRead(SERIES), RowScan(SERIES, 0)) == [Head(b"m"), Slice([Row(b"1", b"x")], False)]
    finally:
        await again.close()


async def test_two_open_backends_see_each_other(backend: Backend, dsn: str) -> None:
    other = await backend_class(dsn).open(dsn)
    try:
        await commit(other, PutHead(NS, Head(b"")), PutHead(kv("k"), Head(b"one")))
        assert await read(backend, HeadRead(kv("k"))) == [Head(b"one")]
        await commit(backend, PutHead(kv("k"), Head(b"two")))
        assert await read(other, HeadRead(kv("k"))) == [Head(b"two")]
    finally:
        await other.close()


async def test_it_answers_pings_and_describes_itself_until_it_is_closed(backend: Backend) -> None:
    await backend.ping()
    assert {"name", "version", "durability"} <= backend.describe().keys()
    await backend.close()
    await backend.close()
    with pytest.raises(Problem, match="closed"):
        await backend.ping()
    with pytest.raises(Problem, match="closed"):
        await backend.read([(HeadRead(NS),)])
    with pytest.raises(Problem, match="closed"):
        await backend.update([writing(PutHead(NS, Head(b"")))])
