"""Many writers at once: nothing is lost, nothing is written twice, nobody is disturbed."""

from __future__ import annotations

import asyncio
import operator

import pytest

from rstore import AsyncStore, Store, StoreConflictError, StoreIntegrityError

pytestmark = pytest.mark.anyio


async def test_concurrent_writers_of_different_keys(store):
    async def write(writer):
        for number in range(10):
            await store.set(f"{writer}-{number}", [writer, number])

    await asyncio.gather(*[write(writer) for writer in range(32)])
    assert dict(await store.find()) == {f"{w}-{n}": [w, n] for w in range(32) for n in range(10)}


async def test_concurrent_writers_of_one_key_leave_one_of_their_values(store):
    etags = await asyncio.gather(*[store.set("k", writer) for writer in range(32)])
    entry = await store.entry("k")
    assert entry.value in range(32)
    assert entry.etag == etags[entry.value]


async def test_only_one_of_many_creates(store):
    outcomes = await asyncio.gather(
        *[store.set("k", writer, if_absent=True) for writer in range(32)], return_exceptions=True
    )
    winners = [writer for writer, outcome in enumerate(outcomes) if isinstance(outcome, str)]
    assert len(winners) == 1
    assert all(isinstance(outcome, (str, StoreConflictError)) for outcome in outcomes)
    assert await store.get("k") == winners[0]


async def test_a_compare_and_set_counter_is_exact(store):
    await store.set("counter", 0)
    conflicts = 0

    async def increment():
        nonlocal conflicts
        for _ in range(6):
            while True:
                entry = await store.entry("counter")
                try:
                    await store.set("counter", entry.value + 1, if_match=entry.etag)
                except StoreConflictError:
                    conflicts += 1
                else:
                    break

    await asyncio.gather(*[increment() for _ in range(8)])
    assert await store.get("counter") == 48


async def test_batches_are_atomic_for_concurrent_readers(store):
    names = [f"part-{number}" for number in range(5)]
    await store.set_many(dict.fromkeys(names, 0))
    done = False

    async def write():
        nonlocal done
        for number in range(1, 30):
            await store.set_many(dict.fromkeys(names, number))
        done = True

    async def read():
        while not done:
            assert len(set((await store.get_many(names)).values())) == 1
            await asyncio.sleep(0)  # A read may be answered at once, and would never let the writer on.

    await asyncio.gather(write(), read(), read())
    assert await store.get_many(names) == dict.fromkeys(names, 29)


async def test_concurrent_extends_of_one_series(store):
    await asyncio.gather(*[store.extend("s", *[(t, writer) for t in range(writer, 3_200, 32)]) for writer in range(32)])
    assert await store.range("s") == [(t, t % 32) for t in range(3_200)]


async def test_concurrent_extends_and_removes(store):
    await store.extend("s", *[(t, 0) for t in range(1_000)])
    await asyncio.gather(
        store.remove("s", start=0, end=499),
        *[store.extend("s", *[(t, 1) for t in range(1_000 + 50 * n, 1_050 + 50 * n)]) for n in range(10)],
        store.remove("s", start=500, end=999),
    )
    assert await store.range("s") == [(t, 1) for t in range(1_000, 1_500)]


async def test_concurrent_applies_have_distinct_timestamps(store):
    await store.apply("e", {"n": 0})
    await asyncio.gather(*[store.apply("e", {"n": (operator.add, 1)}) for _ in range(32)])
    assert await store.current("e") == {"n": 32}
    timestamps = [event[0] for event in await store.events("e")]
    assert len(set(timestamps)) == 33
    assert timestamps == sorted(timestamps)


async def test_of_concurrent_applies_at_one_timestamp_one_succeeds(store):
    outcomes = await asyncio.gather(
        *[store.apply("e", {"writer": writer}, t=1_000) for writer in range(16)], return_exceptions=True
    )
    refused = [outcome for outcome in outcomes if isinstance(outcome, StoreIntegrityError)]
    assert len(refused) == 15, outcomes
    ((_, _, _, writer),) = await store.events("e")
    assert outcomes[writer] == {"writer": writer}


async def test_of_concurrent_deletes_of_one_item_one_succeeds(store):
    await store.apply("e", {"a": 1, "b": 1})
    outcomes = await asyncio.gather(
        *[store.apply("e", {"a": (operator.delitem,)}) for _ in range(16)], return_exceptions=True
    )
    assert sum(isinstance(outcome, StoreIntegrityError) for outcome in outcomes) == 15, outcomes
    assert await store.current("e") == {"b": 1}
    assert len(await store.events("e")) == 3


async def test_a_failing_operation_does_not_disturb_its_neighbours(store):
    await store.set("taken", 1)
    await store.apply("e", {"a": 1})
    outcomes = await asyncio.gather(
        *[
            coroutine
            for number in range(8)
            for coroutine in (
                store.set(f"k{number}", number),
                store.set("taken", 2, if_absent=True),
                store.apply("e", {"missing": (operator.add, 1)}),
                store.extend("s", (number, number)),
            )
        ],
        return_exceptions=True,
    )
    assert await store.range("s") == [(number, number) for number in range(8)]
    assert await store.get_many([f"k{number}" for number in range(8)]) == {f"k{n}": n for n in range(8)}
    assert await store.get("taken") == 1
    assert await store.current("e") == {"a": 1}
    assert [type(outcome) for outcome in outcomes[1::4]] == [StoreConflictError] * 8
    assert [type(outcome) for outcome in outcomes[2::4]] == [StoreIntegrityError] * 8


async def test_discard_during_writes_leaves_no_half(store, driver):
    await store.set_many({f"{number}": number for number in range(100)})
    await asyncio.gather(store.discard(), *[store.set_many({"a": n, "b": n}) for n in range(10)])
    left = dict(await store.find())
    assert set(left) in ({"a", "b"}, set())
    assert len(set(left.values())) <= 1


# --- several service processes on one store ----------------------------------------------------------------


@pytest.fixture
def processes(deployment):
    """The URLs of two service processes on one store."""
    return deployment.url, deployment.second_url


async def test_two_processes_extend_one_series(processes, namespace):
    async def write(url, writer):
        async with AsyncStore(url, namespace, frozen=False) as store:
            for round_ in range(15):
                first = round_ * 100
                await store.extend("s", *[(t, writer) for t in range(first + writer, first + 100, 4)])

    await asyncio.gather(*[write(processes[writer % 2], writer) for writer in range(4)])
    for url in processes:
        async with AsyncStore(url, namespace) as store:
            assert await store.range("s") == [(t, t % 4) for t in range(1_500)]


async def test_two_processes_apply_to_one_sequence(processes, namespace):
    async def write(url):
        async with AsyncStore(url, namespace, frozen=False) as store:
            for _ in range(15):
                await store.apply("e", {"n": (operator.add, 1)})

    async with AsyncStore(processes[0], namespace, frozen=False) as store:
        await store.apply("e", {"n": 0})
    await asyncio.gather(*[write(processes[writer % 2]) for writer in range(4)])
    for url in processes:
        async with AsyncStore(url, namespace) as store:
            assert await store.current("e") == {"n": 60}
            assert len({event[0] for event in await store.events("e")}) == 61


async def test_two_processes_count_with_compare_and_set(processes, namespace):
    async def increment(url):
        async with AsyncStore(url, namespace, frozen=False) as store:
            for _ in range(10):
                while True:
                    entry = await store.entry("n")
                    try:
                        await store.set("n", entry.value + 1, if_match=entry.etag)
                    except StoreConflictError:
                        continue
                    break

    async with AsyncStore(processes[0], namespace, frozen=False) as store:
        await store.set("n", 0)
        await asyncio.gather(*[increment(processes[writer % 2]) for writer in range(4)])
        assert await store.get("n") == 40


def test_one_process_sees_what_the_other_acknowledged(processes, namespace):
    with Store(processes[0], namespace, frozen=False) as one, Store(processes[1], namespace) as two:
        for number in range(30):
            one.set("k", number)
            assert two.get("k") == number
            one.extend("s", (number, number))
            assert two.last("s") == (number, number)
            one.apply("e", {"n": number})
            assert two.current("e") == {"n": number}
        one.discard()
        assert two.keys() == []
