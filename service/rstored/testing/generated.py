"""Cases with generated batches. A batch leaves what its updates leave if they are carried out one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from rstored.backends.abc import (
    COUNTED,
    Backend,
    Commit,
    CountRead,
    DeleteRecord,
    DeleteRow,
    DeleteRows,
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
    Slice,
    Update,
    Write,
    namespace_place,
)
from rstored.testing.tools import GENERATED, Heads, Planning, read

# Every backend can change keys with a common part in braces in one step.
_RECORDS = [(Kind.KV, "{k}1"), (Kind.KV, "{k}2"), (Kind.TS, "{k}"), (Kind.ES, "{k}")]
_LANES = (0, 1)
_NOW_MS = 5

_SORTS = st.integers(0, 5).map(lambda n: b"%d" % n)
_BOUNDS = st.none() | _SORTS


class Step(NamedTuple):
    """A planned write. ``kind`` says which write it is, and ``record`` is the position of its record in the update."""

    kind: str
    record: int
    lane: int = 0
    low: bytes | None = None
    high: bytes | None = None
    value: bytes = b""
    flag: bool = False


_STEPS = st.builds(
    Step,
    st.sampled_from(["head", "head", "row", "row", "row", "delete row", "delete rows", "delete record"]),
    st.integers(0, 1),
    st.sampled_from(_LANES),
    _BOUNDS,
    _BOUNDS,
    st.binary(max_size=3),
    st.booleans(),
)


class Planned(NamedTuple):
    """An update: the records that it names, its reads and its steps. Without records it deletes the namespace."""

    records: tuple[int, ...]
    asks: int
    refused: bool
    steps: list[Step]


_UPDATES = st.builds(
    Planned,
    st.lists(st.integers(0, len(_RECORDS) - 1), max_size=2, unique=True).map(tuple),
    st.integers(0, 2),
    st.sampled_from([False, False, False, True]),
    st.lists(_STEPS, max_size=5),
)


class _Refusal(Exception):
    """The exception that some of the plans raise."""


def _update(namespace: str, planned: Planned) -> Update[Any]:
    parent = namespace_place(namespace)
    places = tuple(Place(namespace, *_RECORDS[number]) for number in planned.records)

    def plan(heads: Heads) -> Planning:
        seen: list[Any] = [[heads[place] for place in places or (parent,)]]
        for _ in range(planned.asks if places else 0):
            seen.append((yield _reads_of(places)))  # noqa: PERF401 - it cannot be awaited in a comprehension
        if planned.refused:
            raise _Refusal
        if not places:
            return Commit([DeleteRecord(parent)], seen)
        writes: list[Write] = [] if heads[parent] else [PutHead(parent, Head(b"policy"))]
        there = {place for place in places if heads[place] is not None}
        for step in planned.steps:
            place = places[step.record % len(places)]
            if step.kind == "delete record":
                there.discard(place)
                writes.append(DeleteRecord(place))
                continue
            if step.kind == "head" or place not in there:
                there.add(place)
                writes.append(PutHead(place, Head(b"m" + step.value, step.value, _NOW_MS if step.flag else None)))
            writes += _row_writes(place, step)
        return Commit(writes, seen)

    return Update(places or (parent,), plan)


def _reads_of(places: Sequence[Place]) -> Query:
    heads: list[Read] = [HeadRead(place) for place in places]
    scans = [RowScan(place, lane, along=along) for place in places for lane in _LANES for along in RowOrder]
    return (*heads, *scans)


def _row_writes(place: Place, step: Step) -> list[Write]:
    if step.kind == "row":
        sort = step.low or b""
        return [PutRow(place, step.lane, Row(sort, step.value, b"by" + sort if step.flag else None))]
    if step.kind == "delete row":
        return [DeleteRow(place, step.lane, step.low or b"")]
    return [DeleteRows(place, step.lane, step.low, step.high)] if step.kind == "delete rows" else []


class _Model:
    """The contract in its simplest form: records in a dict."""

    def __init__(self) -> None:
        self.heads: dict[Place, Head] = {}
        self.rows: dict[tuple[Place, int, bytes], Row] = {}

    def carry_out(self, update: Update[Any]) -> Any:
        places = {*update.places, *(namespace_place(place.namespace) for place in update.places if place.namespace)}
        heads = {place: self._bare(place) for place in places}
        planning = update.plan(heads)
        try:
            query = next(planning)
            while True:
                query = planning.send([self.answer(read) for read in query])
        except StopIteration as stop:
            for write in stop.value.writes:
                self._write(write)
            return stop.value.answer
        except _Refusal as refusal:
            return refusal

    def answer(self, read: Read) -> Any:
        if isinstance(read, HeadRead):
            return self.heads.get(read.place)
        if isinstance(read, RowScan):
            rows = [row for at, row in self.rows.items() if at[:2] == (read.place, read.lane)]
            if read.along is RowOrder.SORT:
                return Slice(sorted(rows), False)
            return Slice(sorted((row for row in rows if row.by is not None), key=lambda row: row.by or b""), False)
        if isinstance(read, Listing):
            found = {at.key: head for at, head in self.heads.items() if at[:2] == (read.namespace, read.kind)}
            return Slice(sorted(found.items(), key=lambda item: item[0].encode()), False)
        assert isinstance(read, CountRead)
        alive = [at for at, head in self.heads.items() if head.expires_ms is None or head.expires_ms > read.now_ms]
        return {kind: sum(at[:2] == (read.namespace, kind) for at in alive) for kind in COUNTED}

    def _bare(self, place: Place) -> Head | None:
        head = self.heads.get(place)
        return head and head._replace(value=b"")

    def _write(self, write: Write) -> None:
        place = write.place
        if isinstance(write, PutHead):
            self.heads[place] = write.head
        elif isinstance(write, PutRow):
            self.rows[place, write.lane, write.row.sort] = write.row
        elif isinstance(write, DeleteRow):
            self.rows.pop((place, write.lane, write.sort), None)
        elif isinstance(write, DeleteRows):
            low, high = write.low or b"", write.high
            for at in [at for at in self.rows if at[:2] == (place, write.lane)]:
                if at[2] >= low and (high is None or at[2] <= high):
                    del self.rows[at]
        else:
            gone = {at for at in self.heads if at == place or (place.kind is Kind.NAMESPACE and at[0] == place.key)}
            self.heads = {at: head for at, head in self.heads.items() if at not in gone}
            self.rows = {at: row for at, row in self.rows.items() if at[0] not in gone}


_numbers = itertools.count(1)


class GeneratedCases:
    """Inherited by :class:`rstored.testing.BackendContract`."""

    @GENERATED
    @given(batches=st.lists(st.lists(_UPDATES, min_size=1, max_size=6), min_size=1, max_size=3))
    async def test_batches_leave_what_their_updates_leave_one_after_the_other(
        self, backend: Backend, batches: list[list[Planned]]
    ) -> None:
        namespace = f"generated-{next(_numbers)}"
        places = [Place(namespace, *record) for record in _RECORDS]
        everything: list[Read] = [Listing(namespace, kind, values=True) for kind in COUNTED]
        everything += [CountRead(namespace, _NOW_MS), HeadRead(namespace_place(namespace)), *_reads_of(places)]
        model = _Model()
        for batch in batches:
            updates = [_update(namespace, planned) for planned in batch]
            expected = [model.carry_out(update) for update in updates]
            results = await backend.update(updates)
            assert [type(result) if isinstance(result, _Refusal) else result for result in results] == [
                type(result) if isinstance(result, _Refusal) else result for result in expected
            ]
            assert await read(backend, *everything) == [model.answer(one) for one in everything]
