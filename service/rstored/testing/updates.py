"""Cases of a backend's updates."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from rstored.backends.abc import (
    Backend,
    Commit,
    CountRead,
    Head,
    HeadRead,
    Kind,
    Listing,
    PutHead,
    PutRow,
    Row,
    RowScan,
    Slice,
    Update,
)
from rstored.problems import Problem
from rstored.testing.tools import NS, SERIES, Heads, Planning, commit, kv, read, writing


class UpdateCases:
    """Inherited by :class:`rstored.testing.BackendContract`."""

    async def test_later_updates_of_a_batch_see_earlier_ones(self, backend: Backend) -> None:
        await commit(backend, PutHead(NS, Head(b"")))

        def plan(heads: Heads) -> Planning:
            (head,) = yield (HeadRead(kv("n")),)
            n = int(head.value) + 1 if head else 1
            seen = heads[kv("n")]
            return Commit([PutHead(kv("n"), Head(b"%d" % n, b"%d" % n))], (seen and int(seen.meta), n))

        counted = [(n - 1 or None, n) for n in range(1, 51)]
        assert await backend.update([Update((kv("n"),), plan)] * 50) == counted

    async def test_a_plan_that_raises_writes_nothing_and_disturbs_nobody(self, backend: Backend) -> None:
        def refuse(heads: Heads) -> Planning:
            yield (HeadRead(kv("bad")),)
            raise Problem("precondition-failed", "no")

        def break_down(heads: Heads) -> Planning:
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

    async def test_an_update_that_fails_while_it_writes_leaves_no_trace_and_its_neighbours_alone(
        self, backend: Backend
    ) -> None:
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

    async def test_updates_of_several_processes_are_isolated(
        self, backend: Backend, backend_type: type[Backend], dsn: str
    ) -> None:
        """Each process of the service has an open backend of its own, so two open backends stand for two processes."""
        await commit(backend, PutHead(NS, Head(b"")))

        def add(heads: Heads) -> Planning:
            (head,) = yield (HeadRead(kv("n")),)
            n = int(head.value) + 1 if head else 1
            return Commit([PutHead(kv("n"), Head(b"", b"%d" % n))], n)

        async def add_many(adding: Backend) -> list[Any]:
            return [n for _ in range(15) for n in await adding.update([Update((kv("n"),), add)] * 2)]

        other = await backend_type.open(dsn)
        try:
            counted = await asyncio.gather(add_many(backend), add_many(other))
        finally:
            await other.close()
        assert sorted(itertools.chain(*counted)) == list(range(1, 61))

    async def test_the_reads_of_a_query_see_one_snapshot(
        self, backend: Backend, backend_type: type[Backend], dsn: str
    ) -> None:
        """Another process changes a head and a row of the same record in each update, and a query reads both."""
        await commit(backend, PutHead(NS, Head(b"")))
        numbers = [b"%d" % number for number in range(100)]
        ended = False

        async def write(writing_backend: Backend) -> None:
            nonlocal ended
            for number in numbers:
                await commit(writing_backend, PutHead(SERIES, Head(b"", number)), PutRow(SERIES, 0, Row(b"r", number)))
            ended = True

        async def compare() -> None:
            while not ended:
                backend.renew()
                head, found = await read(backend, HeadRead(SERIES), RowScan(SERIES, 0))
                assert found.items == ([] if head is None else [Row(b"r", head.value)])
                await asyncio.sleep(0)

        other = await backend_type.open(dsn)
        try:
            await asyncio.gather(write(other), compare())
            backend.renew()
            (head,) = await read(backend, HeadRead(SERIES))
            assert head == Head(b"", numbers[-1])
        finally:
            await other.close()
