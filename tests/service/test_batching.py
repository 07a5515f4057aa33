from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rstored.backends.abc import (
    Capabilities,
    Commit,
    Head,
    HeadRead,
    Kind,
    Listing,
    Place,
    PutHead,
    Query,
    RowScan,
    Update,
    namespace_place,
)
from rstored.backends.sqlite import SQLiteBackend
from rstored.engine import batching
from rstored.engine.batching import READ_BATCH_MAX, WRITE_BATCH_MAX, Storage
from rstored.problems import Problem
from rstored.turns import CLIENT, Turns

pytestmark = pytest.mark.anyio

NS = namespace_place("ns")
COUNTER = Place("ns", Kind.KV, "counter")


class RemoteBackend(SQLiteBackend):
    """SQLite behind a wire: reads take a moment and are to be gathered."""

    capabilities = Capabilities(local_reads=False)
    # What each read waits for, if anything.
    held: asyncio.Event | None = None
    is_away = False

    async def read(self, queries: Sequence[Query]) -> list[list[Any] | Problem]:
        await asyncio.sleep(0.002)
        if self.held is not None:
            await self.held.wait()
        return await super().read(queries)

    async def update(self, updates: Sequence[Update[Any]]) -> list[Any | Problem]:
        if self.is_away:
            raise Problem("backend-unavailable", "it is away")
        return await super().update(updates)


class Batches(list[tuple[str, int]]):
    """What an observer saw: kind and size of each batch."""

    def observe(self, kind: str, size: int, seconds: float) -> None:
        assert 0 <= seconds < 60
        self.append((kind, size))

    def sizes(self, kind: str) -> list[int]:
        return [size for of, size in self if of == kind]


@pytest.fixture
def batches() -> Batches:
    return Batches()


@pytest.fixture
async def storage(tmp_path: Path, batches: Batches) -> AsyncIterator[Storage]:
    backend = await RemoteBackend.open(f"sqlite:///{tmp_path}/store.db")
    storage = Storage(backend, batches.observe)
    yield storage
    await storage.close()
    await backend.close()


def increment(heads):
    (head,) = yield (HeadRead(COUNTER),)
    n = int(head.value) + 1 if head else 1
    return Commit([PutHead(NS, Head(b"")), PutHead(COUNTER, Head(b"", b"%d" % n))], n)


async def test_writes_that_arrive_together_are_one_batch(storage: Storage, batches: Batches) -> None:
    assert await storage.update((COUNTER,), increment) == 1
    answers = await asyncio.gather(*(storage.update((COUNTER,), increment) for _ in range(100)))
    assert answers == list(range(2, 102))
    assert batches.sizes("write") == [1, 100]


async def test_what_arrives_while_a_batch_is_under_way_is_the_next_one(storage: Storage, batches: Batches) -> None:
    first = asyncio.ensure_future(storage.read(HeadRead(COUNTER)))
    await asyncio.sleep(0.0005)
    later = [asyncio.ensure_future(storage.read(HeadRead(COUNTER), HeadRead(NS))) for _ in range(9)]
    assert await first == [None]
    assert await asyncio.gather(*later) == [[None, None]] * 9
    assert batches.sizes("read") == [1, 9]


async def test_those_who_were_answered_and_come_again_share_a_batch_with_those_who_came_meanwhile(
    storage: Storage, batches: Batches
) -> None:
    async def write_on(rounds_late: int) -> None:
        for _ in range(rounds_late):
            await asyncio.sleep(0)
        for _ in range(5):
            await storage.update((COUNTER,), increment)

    # The first batch begins without most of them.
    await asyncio.gather(*(write_on(late) for late in (0, 0, *[3] * 8)))
    assert batches.sizes("write") == [2, *[10] * 4, 8]


async def test_batches_are_bounded(storage: Storage, batches: Batches) -> None:
    await asyncio.gather(*(storage.read(HeadRead(NS, 100)) for _ in range(READ_BATCH_MAX + 1)))
    await asyncio.gather(*(storage.update((COUNTER,), increment) for _ in range(WRITE_BATCH_MAX + 1)))
    assert batches.sizes("read") == [READ_BATCH_MAX, 1]
    assert batches.sizes("write") == [WRITE_BATCH_MAX, 1]


async def test_few_reads_with_answers_that_may_be_long_go_in_one_batch(storage: Storage, batches: Batches) -> None:
    for long in (HeadRead(NS), RowScan(COUNTER, 0), Listing("ns", Kind.KV, values=True)):
        await asyncio.gather(*(storage.read(HeadRead(NS, 100), long) for _ in range(20)))
        assert batches.sizes("read") == [16, 4]
        batches.clear()


async def test_local_reads_are_answered_at_once_until_many_come_together(tmp_path: Path, batches: Batches) -> None:
    backend = await SQLiteBackend.open(f"sqlite:///{tmp_path}/local.db")
    storage = Storage(backend, batches.observe)

    async def found() -> list[Any]:
        return await storage.read(HeadRead(NS, 100))

    async def read_together(count: int) -> list[int]:
        before = len(batches.sizes("read"))
        assert await asyncio.gather(*(found() for _ in range(count))) == [[None]] * count
        return batches.sizes("read")[before:]

    assert await read_together(4) == [1] * 4
    # How many there will be is known from the round before.
    assert await read_together(20) == [1] * 20
    assert await read_together(20) == [1, 19]
    # A lone read waits for nobody.
    lone = storage.read(HeadRead(NS, 100))
    with pytest.raises(StopIteration):
        lone.__await__().send(None)
    await asyncio.sleep(0)
    assert await read_together(4) == [1] * 4
    # Reads that may find much have turns instead.
    await read_together(20)
    await asyncio.gather(*(storage.read_in_turn(HeadRead(NS, 100)) for _ in range(5)))
    assert batches.sizes("read")[-5:] == [1] * 5
    await backend.close()
    with pytest.raises(Problem, match="closed"):
        await storage.read(HeadRead(NS, 100))


async def test_local_reads_that_wait_for_each_other_find_what_was_written_meanwhile(tmp_path: Path) -> None:
    backend = await SQLiteBackend.open(f"sqlite:///{tmp_path}/local.db")
    storage = Storage(backend)
    await storage.update((COUNTER,), increment)
    await asyncio.gather(*(storage.read(HeadRead(COUNTER, 100)) for _ in range(20)))

    async def written_elsewhere() -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "local.db")) as other, other:
            other.execute("UPDATE record SET value = x'37' WHERE key = 'counter'")

    async def counter() -> list[Any]:
        return await storage.read(HeadRead(COUNTER, 100))

    reads = [counter() for _ in range(20)]
    old, _, *new = await asyncio.gather(reads[0], written_elsewhere(), *reads[1:])
    assert old == [Head(b"", b"1")]
    assert new == [[Head(b"", b"7")]] * 19
    await backend.close()


async def test_each_caller_gets_its_own_failure(storage: Storage) -> None:
    def refuse(heads):
        raise Problem("precondition-failed", "no", pointer="/x")
        yield

    def break_down(heads):
        raise ZeroDivisionError
        yield

    results = await asyncio.gather(
        *(storage.update((COUNTER,), plan) for plan in (increment, refuse, break_down, increment)),
        return_exceptions=True,
    )
    assert [results[0], results[3]] == [1, 2]
    assert isinstance(results[1], Problem)
    assert results[1].members == {"pointer": "/x"}
    assert isinstance(results[2], ZeroDivisionError)


async def test_a_backend_that_fails_fails_everybody_and_then_goes_on(storage: Storage) -> None:
    backend = storage.backend
    assert isinstance(backend, RemoteBackend)
    backend.is_away = True
    results = await asyncio.gather(*(storage.update((COUNTER,), increment) for _ in range(3)), return_exceptions=True)
    assert [isinstance(result, Problem) and result.code for result in results] == ["backend-unavailable"] * 3
    assert len({id(result) for result in results}) == 3
    backend.is_away = False
    assert await storage.update((COUNTER,), increment) == 1


async def test_a_caller_that_is_cancelled_while_it_waits_disturbs_nobody(storage: Storage) -> None:
    async def incremented() -> int:
        return await storage.update((COUNTER,), increment)

    tasks = [asyncio.create_task(incremented()) for _ in range(5)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], asyncio.CancelledError)
    # It had not begun, so it was not done at all.
    assert [results[n] for n in (0, 1, 3, 4)] == [1, 2, 3, 4]


async def test_a_batch_under_way_is_finished_though_its_caller_is_gone(storage: Storage) -> None:
    lost = asyncio.ensure_future(storage.read(HeadRead(NS)))
    other = asyncio.ensure_future(storage.read(HeadRead(NS)))
    await asyncio.sleep(0.001)
    lost.cancel()
    assert await other == [None]
    assert lost.cancelled()


async def test_close_finishes_what_came_before_and_refuses_what_comes_after(storage: Storage) -> None:
    before = [asyncio.ensure_future(storage.update((COUNTER,), increment)) for _ in range(3)]
    await asyncio.sleep(0)
    await storage.close()
    assert [task.result() for task in before] == [1, 2, 3]
    with pytest.raises(Problem) as caught:
        await storage.update((COUNTER,), increment)
    assert caught.value.code == "shutting-down"
    await storage.close()


async def test_whoever_waits_is_told_in_time(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "WAIT_SECONDS", 0.1)
    assert isinstance(storage.backend, RemoteBackend)
    held = storage.backend.held = asyncio.Event()
    under_way = asyncio.ensure_future(storage.read(HeadRead(COUNTER)))
    await asyncio.sleep(0.01)
    behind = asyncio.ensure_future(storage.read(HeadRead(COUNTER)))
    for waiting in (under_way, behind):
        with pytest.raises(Problem) as raised:
            await waiting
        assert raised.value.code == "backend-unavailable"
    held.set()
    assert await storage.read(HeadRead(COUNTER)) == [None]


async def test_long_work_has_one_turn_between_two_looks_at_the_connections() -> None:
    turns = Turns()
    pieces: list[int] = []

    async def work(number: int) -> None:
        for _ in range(3):
            await turns.take()
            pieces.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(20)]
    given_up = asyncio.create_task(work(99))
    done_before = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        assert len(pieces) - done_before <= 1
        done_before = len(pieces)
        given_up.cancel()
    # In the order in which they asked, again and again.
    assert pieces == [0, *range(20), *range(20), *range(1, 20)]
    # The next one need not wait, and need not even let others in.
    await asyncio.sleep(0)
    with pytest.raises(StopIteration):
        turns.take().send(None)


async def test_clients_have_turns_in_turn_however_much_each_asks_for() -> None:
    turns = Turns()
    order: list[str] = []

    async def work(client: str) -> None:
        CLIENT.set(client)
        async with turns:
            order.append(client)

    await asyncio.gather(*map(work, "aaaaaabbc"))
    assert "".join(order) == "aabcabaaa"


async def test_a_turn_lasts_until_it_is_given_back_and_one_that_nobody_waits_for_is_passed_on() -> None:
    turns = Turns(2)
    held = [asyncio.create_task(turns.begin()) for _ in range(2)]
    await asyncio.wait(held)
    waiting = [asyncio.create_task(turns.begin()) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    turns.end()
    # It has been given its turn and does not know yet.
    waiting[0].cancel()
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for _ in range(5):
        await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, True, False]
    assert waiting[0].cancelled()
    turns.end()
    await waiting[2]


async def test_turns_have_sizes_and_a_large_one_is_not_passed_by_small_ones() -> None:
    turns = Turns(10)
    order: list[int] = []

    async def work(size: int) -> None:
        await turns.begin(size)
        order.append(size)
        await go_on.wait()
        turns.end(size)

    go_on = asyncio.Event()
    # The last would have room beside the first two, and the one that is larger than all room would wait for ever.
    working = [asyncio.create_task(work(size)) for size in (4, 5, 100, 1)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert order == [4, 5]
    go_on.set()
    await asyncio.wait_for(asyncio.gather(*working), 5)
    assert order == [4, 5, 100, 1]
