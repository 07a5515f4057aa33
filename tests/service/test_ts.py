"""The engine's time series on a real SQLite file, beside a plain dict."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rstore.core.encodings import Encoding, Value
from rstore.core.points import Points, digest
from rstored.backends.abc import Commit, Kind, Place, PutRow, Row, RowScan, Slice
from rstored.backends.clock import unix_ms
from rstored.backends.sqlite import SQLiteBackend
from rstored.engine.batching import Storage
from rstored.engine.blocks import BLOCK_POINTS_MAX
from rstored.engine.model import NamespacePolicy, SeriesInfo, Stretch
from rstored.engine.namespaces import Namespaces
from rstored.engine.timestamps import from_sort_key, sort_key
from rstored.engine.ts import TimeSeries
from rstored.limits import Limits
from rstored.problems import Problem

pytestmark = pytest.mark.anyio

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
NS = "numbers"


class WatchedStorage(Storage):
    """The real storage, counting the rows that pass through it, and the queries of plans."""

    rows_read = 0
    rows_written = 0
    plan_turns = 0

    def counted(self, results):
        for result in results:
            if isinstance(result, Slice):
                self.rows_read += sum(isinstance(item, Row) for item in result.items)
        return results

    async def read(self, *reads):
        return self.counted(await super().read(*reads))

    async def update(self, places, plan):
        def watched(heads):
            generator = plan(heads)
            try:
                query = next(generator)
                while True:
                    self.plan_turns += 1
                    results = yield query
                    query = generator.send(self.counted(results))
            except StopIteration as stop:
                self.rows_written += sum(isinstance(write, PutRow) for write in stop.value.writes)
                return stop.value

        return await super().update(places, watched)


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[WatchedStorage]:
    backend = await SQLiteBackend.open(f"sqlite:///{tmp_path}/store.db")
    storage = WatchedStorage(backend)
    yield storage
    await storage.close()
    await backend.close()


@pytest.fixture
def ts(storage: WatchedStorage) -> TimeSeries:
    return TimeSeries(storage, Limits(), unix_ms)


def numbers(timestamps) -> Points:
    return Points.from_pairs((t, t) for t in timestamps)


async def every(ts: TimeSeries, key: str = "s", **parameters) -> list[tuple[int, object]]:
    """All points of a range in the order of the answer."""
    found: list[tuple[int, object]] = []
    async for points in ts.range(NS, key, **parameters):
        assert points
        found += reversed(list(points)) if parameters.get("descending") else points
    return found


async def timestamps(ts: TimeSeries, key: str = "s", **parameters) -> list[int]:
    return [t for t, _ in await every(ts, key, **parameters)]


async def info(ts: TimeSeries, key: str = "s") -> SeriesInfo | None:
    page = await ts.list(NS, match=key)
    return page.items[0] if page.items else None


async def check_stored(ts: TimeSeries, storage: Storage, expected: list[int], key: str = "s") -> None:
    """Head and blocks say exactly what they should."""
    assert await timestamps(ts, key) == expected
    (scan,) = await storage.read(RowScan(Place(NS, Kind.TS, key), 0))
    assert len(scan.items) <= 2 + 3 * len(expected) // BLOCK_POINTS_MAX
    found = await info(ts, key)
    assert found == (SeriesInfo(key, len(expected), expected[0], expected[-1]) if expected else None)


# --- against a dict ----------------------------------------------------------------------------------------

int64 = st.one_of(
    st.sampled_from([INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX - 1, INT64_MAX]), st.integers(-2_000, 6_000)
)
VALUES = [
    lambda t: t,
    lambda t: t / 2,
    lambda t: Value(Encoding.SEALED, b"%d" % t),
    lambda t: Value(Encoding.BYTES, b"x" * (t % 40_000)),
]
runs = st.builds(
    lambda first, step, n, kind: {t: VALUES[kind](t) for t in range(first, first + n * step, step)},
    st.integers(-2_000, 4_000), st.integers(1, 4), st.integers(1, 1_500), st.integers(0, 2),
)  # fmt: skip
few = st.builds(
    lambda found, kind: {t: VALUES[kind](t) for t in found}, st.lists(int64, min_size=1, max_size=12), st.integers(0, 3)
)
bound = st.none() | int64
operations = st.lists(
    st.tuples(st.just("extend"), runs | few) | st.tuples(st.just("remove"), st.tuples(bound, bound)),
    min_size=1,
    max_size=8,
)
readings = st.fixed_dictionaries(
    {"start": bound, "end": bound, "n": st.none() | st.integers(0, 2_000), "freq": st.none() | st.integers(1, 3_000)}
)
keys = itertools.count()


def expected_range(model, start, end, n, freq, descending):
    found: list[int] = []
    for t in sorted(model, reverse=descending):
        if (start is None or t >= start) and (end is None or t <= end):
            if n is not None and len(found) == n:
                break
            if freq is None or not found or abs(t - found[-1]) >= freq:
                found.append(t)
    return found


def plainly(value):
    return value if isinstance(value, Value) else Value(Encoding.JSON, repr(value).encode().replace(b"e+", b"e"))


@given(operations=operations, reading=readings, freq=st.integers(1, 50))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_series_is_a_dict(ts, storage, operations, reading, freq):
    key = f"series-{next(keys)}"
    model: dict[int, object] = {}
    for name, argument in operations:
        if name == "extend":
            points = Points.from_pairs(argument.items())
            assert await ts.extend(NS, key, points) == len(argument)
            model |= argument
        else:
            start, end = argument
            gone = [t for t in model if (start is None or t >= start) and (end is None or t <= end)]
            assert await ts.remove(NS, key, start=start, end=end) == len(gone)
            for t in gone:
                del model[t]

    assert [(t, plainly(value)) for t, value in await every(ts, key)] == [(t, plainly(model[t])) for t in sorted(model)]
    for descending in (False, True):
        expected = expected_range(model, **reading, descending=descending)
        assert await timestamps(ts, key, **reading, descending=descending) == expected
    assert await info(ts, key) == (SeriesInfo(key, len(model), min(model), max(model)) if model else None)
    first, last = await ts.first(NS, key), await ts.last(NS, key)
    assert (first and first[0][0], last and last[0][0]) == ((min(model), max(model)) if model else (None, None))

    low, high = -2_100, 6_100
    grid = [t for t in range(low, high + 1, freq) if t not in model]
    assert await ts.missing(NS, key, start=low, end=high, freq=freq) == grid
    assert await ts.iscomplete(NS, key, start=low, end=high, freq=freq) is (grid == [])


# --- what a write costs ------------------------------------------------------------------------------------


async def test_a_write_touches_only_the_blocks_that_its_points_fall_into(ts, storage):
    await ts.extend(NS, "s", numbers(range(0, 400_000, 2)))
    for points, rows_read, rows_written in [
        ([1_000_000], 1, 1),
        ([1_000_001, 1_000_002], 1, 1),
        ([1, 1_000_003], 2, 3),
        ([200_001], 1, 2),
        ([-5], 1, 1),
        # The same again: nothing is left to write.
        ([200_001], 1, 0),
    ]:
        storage.rows_read = storage.rows_written = 0
        await ts.extend(NS, "s", numbers(points))
        assert (storage.rows_read, storage.rows_written) == (rows_read, rows_written), points
    storage.rows_read = 0
    await ts.first(NS, "s")
    await ts.last(NS, "s")
    assert storage.rows_read == 2


async def test_points_far_apart_cost_what_their_blocks_cost(ts, storage):
    await ts.extend(NS, "s", numbers(range(400_000)))
    storage.rows_read = 0
    await ts.extend(NS, "s", Points.from_pairs((t, -t) for t in range(0, 400_000, 20_000)))
    assert storage.rows_read <= 3 * 20


@pytest.mark.parametrize("step", [20_000, 1_700, 513, 300, 7])
async def test_points_apart_take_few_turns_and_no_block_that_is_not_theirs(ts, storage, step):
    await ts.extend(NS, "s", numbers(range(0, 400_000, 2)))
    written = range(1, 400_000, step)
    blocks = {t // (2 * BLOCK_POINTS_MAX) for t in written}
    storage.rows_read = storage.plan_turns = 0
    await ts.extend(NS, "s", numbers(written))
    assert storage.plan_turns <= 9
    assert len(blocks) <= storage.rows_read <= 1.1 * len(blocks) + 4


async def test_dense_points_are_met_in_few_reads(ts, storage):
    await ts.extend(NS, "s", numbers(range(0, 400_000, 2)))
    blocks = 400_000 // 2 // BLOCK_POINTS_MAX
    storage.rows_read = 0
    await ts.extend(NS, "s", numbers(range(1, 400_000, 2)))
    assert storage.rows_read <= blocks * 1.1
    await check_stored(ts, storage, list(range(400_000)))


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
async def test_points_that_come_one_by_one_fill_their_blocks(ts, storage, order):
    wanted = list(range(1_500))
    written = {"ascending": wanted, "descending": wanted[::-1], "shuffled": random.Random(3).sample(wanted, 1_500)}
    await asyncio.gather(*(ts.extend(NS, "s", numbers([t])) for t in written[order]))
    await check_stored(ts, storage, wanted)


async def test_what_many_removals_leave_is_joined(ts, storage):
    await ts.extend(NS, "s", numbers(range(20_000)))
    for start in range(0, 20_000, 200):
        assert await ts.remove(NS, "s", start=start + 1, end=start + 199) == 199
    await check_stored(ts, storage, list(range(0, 20_000, 200)))


async def test_points_in_the_gap_between_two_blocks(ts, storage):
    await ts.extend(NS, "s", numbers([*range(512), *range(10_000, 10_512)]))
    await ts.extend(NS, "s", numbers(range(1_000, 3_000)))
    await ts.extend(NS, "s", numbers([5_000, 10_000, 10_511, 10_512]))
    await check_stored(ts, storage, [*range(512), *range(1_000, 3_000), 5_000, *range(10_000, 10_513)])


async def test_a_large_removal_counts_across_pages(ts, storage):
    large = Points.from_values((t, Value(Encoding.BYTES, random.Random(t).randbytes(60_000))) for t in range(60))
    await ts.extend(NS, "s", large)
    assert await ts.remove(NS, "s", start=1, end=58) == 58
    await check_stored(ts, storage, [0, 59])


# --- reading -----------------------------------------------------------------------------------------------


async def test_a_long_range_comes_in_parts_of_bounded_size(ts):
    await ts.extend(NS, "s", numbers(range(300_000)))
    sizes = [len(points) async for points in ts.range(NS, "s")]
    assert sum(sizes) == 300_000
    assert max(sizes) <= 65 * BLOCK_POINTS_MAX
    sizes = [len(points) async for points in ts.range(NS, "s", descending=True)]
    assert sum(sizes) == 300_000
    assert max(sizes) <= 65 * BLOCK_POINTS_MAX


async def test_a_short_range_reads_few_blocks(ts, storage):
    await ts.extend(NS, "s", numbers(range(300_000)))
    cases: list[tuple[dict[str, Any], list[int], int]] = [
        ({"n": 1}, [0], 9),
        ({"start": 150_000, "end": 150_002}, [150_000, 150_001, 150_002], 2),
        ({"n": 1, "descending": True}, [299_999], 8),
        ({"freq": 100_000}, [0, 100_000, 200_000], 50),
        ({"freq": 100_000, "descending": True}, [299_999, 199_999, 99_999], 50),
    ]
    for parameters, expected, most in cases:
        storage.rows_read = 0
        assert await timestamps(ts, **parameters) == expected
        assert storage.rows_read <= most, parameters


async def test_values_larger_than_a_page_do_not_stop_a_range(ts):
    large = [(t, Value(Encoding.BYTES, b"%d" % t * 1_500_000)) for t in range(4)]
    await ts.extend(NS, "s", Points.from_values(large))
    assert await every(ts) == large
    assert await every(ts, descending=True) == large[::-1]
    assert await every(ts, start=1, end=2) == large[1:3]


async def test_numbers_of_two_kinds_stay_numbers(ts):
    await ts.extend(NS, "s", Points.from_pairs((t, float(t)) for t in range(BLOCK_POINTS_MAX)))
    await ts.extend(NS, "s", numbers(range(BLOCK_POINTS_MAX, 2 * BLOCK_POINTS_MAX)))
    parts = [points async for points in ts.range(NS, "s")]
    assert [part.values.typecode for part in parts] == ["d", "q"]


@pytest.mark.parametrize("descending", [False, True])
async def test_writers_between_pages_cause_no_disorder(ts, storage, descending):
    kept = range(0, 200_000, 4)
    await ts.extend(NS, "s", numbers(kept))
    seen: list[int] = []
    turn = random.Random(5)
    async for points in ts.range(NS, "s", descending=descending):
        seen += reversed(points.timestamps) if descending else points.timestamps
        # Blocks are split, joined and moved right where the reader stands, and everywhere else.
        for near in (seen[-1], turn.randrange(200_000)):
            await ts.extend(NS, "s", numbers(range(near - 2_001, near + 2_001, 2)))
            for start in range(near - 4_001, near + 4_001, 400):
                await ts.remove(NS, "s", start=start - start % 4 + 1, end=start - start % 4 + 3)
    assert seen == sorted(set(seen), reverse=descending)
    assert set(kept) <= set(seen)


async def test_a_series_that_vanishes_ends_its_readers(ts):
    await ts.extend(NS, "s", numbers(range(100_000)))
    seen = 0
    async for points in ts.range(NS, "s"):
        seen += len(points)
        await ts.remove(NS, "s")
    assert 0 < seen < 100_000


async def test_missing_reads_block_by_block_and_stops_early(ts, storage):
    await ts.extend(NS, "s", numbers(t for t in range(300_000) if t != 1_000))
    storage.rows_read = 0
    assert await ts.iscomplete(NS, "s", start=0, freq=1) is False
    assert storage.rows_read <= 9
    assert await ts.missing(NS, "s", start=0, freq=1) == [1_000]
    assert await ts.iscomplete(NS, "s", start=1_001, freq=1) is True
    storage.rows_read = 0
    assert await ts.missing(NS, "s", start=1, freq=99_999, end=500_000) == [300_000 - 2, 399_997, 499_996][1:]
    assert storage.rows_read <= 60


async def test_grids_at_the_ends_of_int64(ts):
    assert await ts.missing(NS, "s", start=INT64_MAX - 2, end=INT64_MAX, freq=2) == [INT64_MAX - 2, INT64_MAX]
    await ts.extend(NS, "s", numbers([INT64_MIN, INT64_MAX]))
    assert await ts.missing(NS, "s", start=INT64_MIN, freq=2**62) == [-(2**62), 0, 2**62][0:3]
    assert await ts.missing(NS, "s", start=INT64_MAX, freq=2**63) == []
    assert await ts.missing(NS, "s", start=5, end=4, freq=1) == []
    assert await ts.missing(NS, "unknown", start=5, freq=1) == []
    assert await ts.iscomplete(NS, "unknown", start=5, freq=1) is True


# --- what is refused ---------------------------------------------------------------------------------------


async def refused(code: str, awaitable) -> Problem:
    with pytest.raises(Problem) as caught:
        await awaitable
    assert caught.value.code == code
    return caught.value


async def test_parameters_that_make_no_sense_are_refused_at_once(ts):
    for parameters in ({"n": -1}, {"freq": 0}, {"freq": -5}):
        with pytest.raises(Problem) as caught:
            ts.range(NS, "s", **parameters)
        assert caught.value.code == "invalid-parameter"
        assert caught.value.members == {"parameter": next(iter(parameters))}
    await refused("invalid-parameter", ts.missing(NS, "s", start=0, end=1, freq=0))
    await refused("invalid-parameter", ts.iscomplete(NS, "s", start=0, end=1, freq=-1))


async def test_grids_and_answers_are_bounded(storage):
    ts = TimeSeries(storage, Limits(grid_steps_max=1_000, answer_points_max=100), unix_ms)
    assert len(await ts.missing(NS, "s", start=1, end=100, freq=1)) == 100
    await refused("answer-too-large", ts.missing(NS, "s", start=0, end=100, freq=1))
    await ts.extend(NS, "s", numbers(range(1, 2_000, 2)))
    assert len(await ts.missing(NS, "s", start=0, end=199, freq=1)) == 100
    await refused("answer-too-large", ts.missing(NS, "s", start=0, end=200, freq=1))
    assert await ts.iscomplete(NS, "s", start=1, end=1_999, freq=2) is True
    await refused("answer-too-large", ts.iscomplete(NS, "s", start=1, end=2_001, freq=2))
    await refused("answer-too-large", ts.iscomplete(NS, "s", start=INT64_MIN, end=INT64_MAX, freq=1))


async def test_what_is_stored_is_checked_and_bounded(storage):
    ts = TimeSeries(storage, Limits(points_per_call_max=10_000, value_bytes_max=100, nesting_max=3), unix_ms)
    good = [(t, Value(Encoding.JSON, b"null")) for t in range(5_000)]
    for bad, code in [(b"nul", "invalid-value"), (b"[[[[]]]]", "nesting-too-deep"), (b"1" * 101, "value-too-large")]:
        problem = await refused(code, ts.extend(NS, "s", Points.from_values([*good, (9, Value(Encoding.JSON, bad))])))
        assert "timestamp 9" in problem.detail
    await refused("batch-too-large", ts.extend(NS, "s", numbers(range(10_001))))
    assert await every(ts) == []
    await ts.extend(NS, "s", Points.from_values(good))
    assert await every(ts) == good


async def test_a_sealed_only_namespace_takes_nothing_else(ts, storage):
    namespaces = Namespaces(storage, Limits(), unix_ms)
    await namespaces.create(NS, NamespacePolicy(sealed_only=True))
    sealed = Value(Encoding.SEALED, b"s")
    await refused("sealed-only", ts.extend(NS, "s", numbers([1])))
    mixed = Points.from_values([(1, sealed), (2, Value(Encoding.JSON, b"1"))])
    await refused("sealed-only", ts.extend(NS, "s", mixed))
    assert await ts.extend(NS, "s", mixed[:1]) == 1
    assert await every(ts) == [(1, sealed)]


async def test_nothing_creates_nothing(ts, storage):
    namespaces = Namespaces(storage, Limits(), unix_ms)
    assert await ts.extend(NS, "s", Points.empty()) == 0
    assert await ts.remove(NS, "s") == 0
    assert await ts.remove(NS, "s", start=1, end=0) == 0
    await refused("namespace-not-found", namespaces.describe(NS))
    await ts.extend(NS, "s", numbers([1]))
    assert (await namespaces.describe(NS)).ts == 1


async def test_blocks_that_cannot_be_read_are_a_problem_of_their_own(ts, storage):
    await ts.extend(NS, "s", numbers(range(2_000)))
    place = Place(NS, Kind.TS, "s")

    def plan(heads):
        return Commit([PutRow(place, 0, Row(sort_key(0), b"not a frame"))], None)
        yield

    await storage.update((place,), plan)
    await refused("backend-corrupt", ts.first(NS, "s"))
    await refused("backend-corrupt", every(ts))
    await refused("backend-corrupt", ts.extend(NS, "s", numbers([1])))
    await refused("backend-corrupt", ts.remove(NS, "s", end=600))
    assert await ts.last(NS, "s") == numbers([1_999])


async def test_listing_pages_in_key_order(ts):
    for key in ("b", "a", "ab"):
        await ts.extend(NS, key, numbers([1, 5]))
    page = await ts.list(NS, limit=2)
    assert page.items == [SeriesInfo("a", 2, 1, 5), SeriesInfo("ab", 2, 1, 5)]
    assert page.cursor == "ab"
    assert (await ts.list(NS, after=page.cursor)).items == [SeriesInfo("b", 2, 1, 5)]
    assert [item.key for item in (await ts.list(NS, match="a*")).items] == ["a", "ab"]


def test_sort_keys_order_as_timestamps_do():
    found = sorted([INT64_MIN, INT64_MIN + 1, -256, -1, 0, 1, 255, 256, INT64_MAX], key=sort_key)
    assert found == sorted(found)
    assert [from_sort_key(sort_key(t)) for t in found] == found
    assert all(len(sort_key(t)) == 8 for t in found)


# --- compare and set ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [{"points_per_call_max": 1_000}, {"body_bytes_max": 8_000}])
async def test_a_stretch_to_compare_is_bounded(storage, bound):
    await TimeSeries(storage, Limits(), unix_ms).extend(NS, "s", numbers(range(5_000)))
    storage.rows_read = 0
    ts = TimeSeries(storage, Limits(**bound), unix_ms)
    point, found = numbers([5]), numbers(range(1_000))
    assert await ts.extend(NS, "s", point, unchanged=Stretch(0, 999, (digest(found),))) == 1
    with pytest.raises(Problem) as caught:
        await ts.extend(NS, "s", point, unchanged=Stretch(0, 1_000, (digest(numbers(range(1_001))),)))
    assert caught.value.code == "batch-too-large"


async def test_a_comparison_reads_the_stretch_alone(storage, ts):
    await ts.extend(NS, "s", numbers(range(100 * BLOCK_POINTS_MAX)))
    storage.rows_read = 0
    low, high = 10 * BLOCK_POINTS_MAX, 11 * BLOCK_POINTS_MAX
    stretch = Stretch(low, high, (digest(numbers(range(low, high + 1))),))
    await ts.extend(NS, "s", numbers([low]), unchanged=stretch)
    assert storage.rows_read <= 4


async def test_a_point_that_the_condition_says_nothing_of_is_refused(storage, ts):
    await ts.extend(NS, "s", numbers(range(10)))
    for stretch in (Stretch(5, None, ("x",)), Stretch(None, 3, ("x",))):
        with pytest.raises(Problem) as caught:
            await ts.extend(NS, "s", numbers([4]), unchanged=stretch)
        assert caught.value.code == "invalid-body"


async def test_a_refused_write_makes_no_namespace(storage, ts):
    with pytest.raises(Problem) as caught:
        await ts.extend("new", "s", numbers([1]), unchanged=Stretch(1, 1, ("x",)))
    assert caught.value.code == "precondition-failed"
    assert await ts.extend("new", "s", numbers([]), unchanged=Stretch(None, None, (digest(Points.empty()),))) == 0
    assert (await Namespaces(storage, Limits(), unix_ms).list()).items == []
