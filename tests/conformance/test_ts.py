"""Time series: every operation of the SDK on every backend, with the meaning that docs/sdk.md gives it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from rstore import StoreError

pytestmark = pytest.mark.anyio

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
EXTREMES = [INT64_MIN, INT64_MIN + 1, -(2**53) - 1, -(2**53), -(2**53) + 1, -1, 0, 1]
EXTREMES += [1_700_000_000_000, 2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2, INT64_MAX - 1, INT64_MAX]


async def test_extend_and_range(store):
    await store.extend("s", (10, "a"), (20, "b"), (30, "c"))
    assert await store.range("s") == [(10, "a"), (20, "b"), (30, "c")]
    point = (await store.range("s"))[0]
    assert type(point) is tuple
    assert type(point[0]) is int


async def test_an_unknown_series_is_an_empty_one(store):
    assert await store.range("unknown") == []
    assert await store.range("unknown", 1, end=2, n=3, freq=4) == []
    assert await store.first("unknown") is None
    assert await store.last("unknown") is None
    assert await store.missing("unknown", 0, 3, 1) == [0, 1, 2, 3]
    assert await store.iscomplete("unknown", 0, 3, 1) is False
    await store.remove("unknown")
    assert await store.timeseries() == []


async def test_points_in_any_order_come_out_ascending(store):
    points = [(t, t * 2) for t in range(-200, 200)]
    shuffled = random.Random(1).sample(points, len(points))
    for start in range(0, len(shuffled), 37):
        await store.extend("s", *shuffled[start : start + 37])
    assert await store.range("s") == points


async def test_extend_replaces(store):
    await store.extend("s", (1, "old"), (2, "kept"))
    await store.extend("s", (1, "new"))
    await store.extend("s", (1, "new"))
    assert await store.range("s") == [(1, "new"), (2, "kept")]


async def test_the_last_of_two_equal_timestamps_in_one_call_wins(store):
    await store.extend("s", (5, "first"), (4, "x"), (5, "second"), (5, "third"), (4, "y"))
    assert await store.range("s") == [(4, "y"), (5, "third")]


async def test_extend_with_nothing_creates_no_series(store):
    await store.extend("s")
    assert await store.timeseries() == []
    await store.extend("s", (1, 1))
    await store.extend("s")
    assert await store.range("s") == [(1, 1)]


@pytest.mark.parametrize(
    "points",
    [
        [(1, "x"), (2**63, "x")],
        [(1, "x"), (-(2**63) - 1, "x")],
        [(1, "x"), (1.5, "x")],
        [(1, "x"), ("2", "x")],
        [(1, "x"), (None, "x")],
    ],
)
async def test_extend_is_all_or_nothing(store, points):
    await store.extend("s", (1, "old"))
    with pytest.raises((StoreError, TypeError, ValueError)):
        await store.extend("s", *points)
    assert await store.range("s") == [(1, "old")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [-20, -10, 0, 10, 20, 30]),
        ({"start": 0}, [0, 10, 20, 30]),
        ({"start": 1}, [10, 20, 30]),
        ({"end": 0}, [-20, -10, 0]),
        ({"end": -1}, [-20, -10]),
        ({"start": -10, "end": 10}, [-10, 0, 10]),
        ({"start": -9, "end": 9}, [0]),
        ({"start": 10, "end": 10}, [10]),
        ({"start": 11, "end": 19}, []),
        ({"start": 31}, []),
        ({"end": -21}, []),
        ({"n": 2}, [-20, -10]),
        ({"n": 1}, [-20]),
        ({"n": 0}, []),
        ({"n": 100}, [-20, -10, 0, 10, 20, 30]),
        ({"start": 0, "n": 2}, [0, 10]),
        ({"start": 1, "n": 2, "end": 10}, [10]),
        ({"freq": 1}, [-20, -10, 0, 10, 20, 30]),
        ({"freq": 10}, [-20, -10, 0, 10, 20, 30]),
        ({"freq": 11}, [-20, 0, 20]),
        ({"freq": 20}, [-20, 0, 20]),
        ({"freq": 21}, [-20, 10]),
        ({"freq": 1000}, [-20]),
        ({"freq": 20, "n": 2}, [-20, 0]),
        ({"freq": 20, "start": -10}, [-10, 10, 30]),
        ({"freq": 20, "start": -15, "end": 25, "n": 5}, [-10, 10]),
        ({"freq": 2**62}, [-20]),
    ],
)
async def test_range_parameters(store, arguments, expected):
    await store.extend("s", *[(t, str(t)) for t in range(-20, 40, 10)])
    assert await store.range("s", **arguments) == [(t, str(t)) for t in expected]


async def test_freq_counts_from_the_last_kept_point(store):
    await store.extend("s", *[(t, t) for t in (0, 4, 9, 10, 11, 20, 22, 31, 33)])
    assert [t for t, _ in await store.range("s", freq=10)] == [0, 10, 20, 31]


async def test_start_is_positional(store):
    await store.extend("s", (0, "a"), (1, "b"))
    assert await store.range("s", 1) == [(1, "b")]
    assert await store.range("s", 0) == [(0, "a"), (1, "b")]


@pytest.mark.parametrize(
    "arguments", [{"n": -1}, {"freq": 0}, {"freq": -1}, {"start": 2**63}, {"end": -(2**63) - 1}, {"start": 1.5}]
)
async def test_impossible_range_parameters_are_refused(store, arguments):
    await store.extend("s", (0, "a"))
    with pytest.raises((StoreError, TypeError, ValueError)):
        await store.range("s", **arguments)


async def test_every_int64_is_an_exact_timestamp(store):
    await store.extend("s", *[(t, str(t)) for t in random.Random(2).sample(EXTREMES, len(EXTREMES))])
    assert await store.range("s") == [(t, str(t)) for t in EXTREMES]
    assert await store.first("s") == (INT64_MIN, str(INT64_MIN))
    assert await store.last("s") == (INT64_MAX, str(INT64_MAX))
    for position, t in enumerate(EXTREMES):
        assert await store.range("s", t, end=t) == [(t, str(t))]
        assert await store.range("s", t, n=1) == [(t, str(t))]
        assert len(await store.range("s", end=t)) == position + 1
    assert [t for t, _ in await store.range("s", freq=2**63 - 1)] == [INT64_MIN, -1, INT64_MAX - 1]
    await store.remove("s", start=2**53, end=2**53)
    assert [t for t, _ in await store.range("s")] == [t for t in EXTREMES if t != 2**53]
    assert await store.missing("s", 2**53 - 1, 2**53 + 2, 1) == [2**53]
    assert await store.missing("s", INT64_MAX - 2, INT64_MAX, 1) == [INT64_MAX - 2]
    assert await store.missing("s", INT64_MIN, INT64_MIN + 2, 1) == [INT64_MIN + 2]


@pytest.mark.parametrize("t", [0, INT64_MIN, INT64_MAX])
async def test_a_single_point_at_an_extreme(store, t):
    await store.extend("s", (t, None))
    assert await store.first("s") == await store.last("s") == (t, None)
    assert await store.range("s", t) == [(t, None)]
    assert await store.iscomplete("s", t, t, 1) is True
    assert await store.iscomplete("s", t, freq=1) is True
    await store.remove("s", start=t, end=t)
    assert await store.timeseries() == []


async def test_first_and_last(store):
    await store.extend("s", (5, "five"), (-5, "minus five"), (0, "zero"))
    assert await store.first("s") == (-5, "minus five")
    assert await store.last("s") == (5, "five")
    await store.extend("s", (6, None))
    assert await store.last("s") == (6, None)


async def test_missing_does_not_overshoot_the_end(store):
    await store.extend("s", (0, 1), (10, 1))
    assert await store.missing("s", 0, 25, 10) == [20]
    assert await store.missing("s", 0, 30, 10) == [20, 30]
    assert await store.missing("s", 0, 29, 10) == [20]


async def test_off_grid_points_do_not_shift_the_grid(store):
    await store.extend("s", (0, 1), (7, 1), (10, 1), (13, 1), (33, 1))
    assert await store.missing("s", 0, 40, 10) == [20, 30, 40]
    assert await store.missing("s", 3, 33, 10) == [3, 23]


async def test_missing_until_the_last_point(store):
    await store.extend("s", (0, 1), (30, 1), (35, 1))
    assert await store.missing("s", 0, freq=10) == [10, 20]
    assert await store.missing("s", -20, freq=10) == [-20, -10, 10, 20]
    assert await store.missing("s", 36, freq=10) == []


async def test_missing_over_a_long_sparse_grid(store):
    await store.extend("s", *[(t, t) for t in range(0, 20_000, 2)])
    assert await store.missing("s", 0, 20_000, 1) == [*range(1, 20_000, 2), 20_000]


async def test_iscomplete(store):
    await store.extend("s", (0, 1), (5, 1), (10, 1), (12, 1))
    assert await store.iscomplete("s", 0, 10, 5) is True
    assert await store.iscomplete("s", 0, 14, 5) is True
    assert await store.iscomplete("s", 0, 15, 5) is False
    assert await store.iscomplete("s", 0, freq=5) is True
    assert await store.iscomplete("s", -5, 10, 5) is False


async def test_without_freq_anywhere_missing_is_an_error(store):
    await store.extend("s", (0, 1))
    with pytest.raises((StoreError, TypeError, ValueError)):
        await store.missing("s", 0, 10)
    with pytest.raises((StoreError, TypeError, ValueError)):
        await store.iscomplete("s", 0, 10)


@pytest.mark.requires("client")
async def test_freq_can_be_fixed_on_the_class(driver, store):
    await store.extend("s", (0, 1), (20, 1))
    fixed = await driver.open(store.namespace, attributes={"_freq": 10})
    assert await fixed.missing("s", 0, 20) == [10]
    assert await fixed.iscomplete("s", 0, 20) is False
    assert await fixed.missing("s", 0, 20, 20) == []


async def test_a_grid_beyond_the_limit_is_refused(store):
    await store.extend("s", (0, 1))
    with pytest.raises(StoreError):
        await store.missing("s", INT64_MIN, INT64_MAX, 1)


async def test_remove_a_part(store):
    for arguments, expected in [
        ({"start": 3, "end": 5}, [0, 1, 2, 6, 7, 8, 9]),
        ({"start": 8}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"end": 0}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"start": 0, "end": 0}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"start": 20, "end": 30}, list(range(10))),
    ]:
        await store.extend("s", *[(t, t) for t in range(10)])
        await store.remove("s", **arguments)
        assert [t for t, _ in await store.range("s")] == expected
        await store.remove("s")


async def test_a_series_without_points_is_gone(store):
    await store.extend("s", (1, 1), (2, 2))
    await store.extend("other", (1, 1))
    await store.remove("s", start=1, end=1)
    assert await store.timeseries() == ["other", "s"]
    await store.remove("s", start=2, end=2)
    assert await store.timeseries() == ["other"]
    assert await store.range("s") == []
    await store.remove("other")
    assert await store.timeseries() == []


async def test_remove_takes_several_series(store):
    for key in "abc":
        await store.extend(key, (1, 1), (2, 2), (3, 3))
    await store.remove("a", "b", "unknown", start=2)
    assert await store.range("a") == await store.range("b") == [(1, 1)]
    assert len(await store.range("c")) == 3
    await store.remove("a", "c")
    assert await store.timeseries() == ["b"]


async def test_a_removed_series_begins_again(store):
    await store.extend("s", *[(t, "old") for t in range(2_000)])
    await store.remove("s")
    await store.extend("s", (1_000, "new"))
    assert await store.range("s") == [(1_000, "new")]


async def test_timeseries_lists_in_key_order_and_only_series(store):
    await store.set("pair", 1)
    await store.apply("sequence", {"a": 1})
    for key in ("b", "a", "é", "Z"):
        await store.extend(key, (1, 1))
    assert await store.timeseries() == ["Z", "a", "b", "é"]


async def test_many_series_page_through(store):
    keys = [f"series-{number:04}" for number in range(1_100)]
    await store.in_parallel([("extend", key, (1, key)) for key in keys])
    assert await store.timeseries() == keys


VALUES: list[Any] = [None, True, False, 0, -1, 2**53 + 1, 2**64, -(2**70), 1.5, -0.0, 1e-300]
VALUES += ["", "ü", "a\0b", "\U0001f600"]
VALUES += [[], {}, [1, [2, {"a": None}]], {"": {"t": [1, 2]}}, b"", b"\x00\xff", "sealed", ["AAAA", "sealed"]]


async def test_values_are_arbitrary(store):
    await store.extend("s", *enumerate(VALUES))
    got = await store.range("s")
    assert [repr(value) for _, value in got] == [repr(value) for value in VALUES]
    assert [type(value) for _, value in got] == [type(value) for value in VALUES]


async def test_large_values_beside_small_ones(store):
    points = [(t, "x" * (400_000 if t % 5 == 0 else t)) for t in range(20)]
    await store.extend("s", *points)
    assert await store.range("s") == points
    await store.extend("s", (3, "small"), (5, "y" * 500_000))
    assert [value for _, value in await store.range("s", 3, n=3)] == ["small", "x" * 4, "y" * 500_000]


async def test_bulk(store):
    points = [(t * 60, t) for t in range(100_000)]
    await store.extend("s", *points)
    assert await store.range("s") == points
    assert await store.first("s") == points[0]
    assert await store.last("s") == points[-1]
    assert await store.range("s", 50_000 * 60, n=3) == points[50_000:50_003]
    assert await store.range("s", freq=6_000_000) == [(0, 0)]
    assert await store.iscomplete("s", 0, 99_999 * 60, 60)
    await store.remove("s", start=60, end=99_998 * 60)
    assert await store.range("s") == [points[0], points[-1]]


async def test_interleaved_bulk_writes_replace_across_blocks(store):
    even = [(t, "even") for t in range(0, 10_000, 2)]
    third = [(t, "third") for t in range(0, 10_000, 3)]
    await store.extend("s", *even)
    await store.extend("s", *third)
    assert await store.range("s") == sorted((dict(even) | dict(third)).items())
    await store.remove("s", start=2_500, end=7_499)
    kept = {t: v for t, v in (dict(even) | dict(third)).items() if not 2_500 <= t <= 7_499}
    assert await store.range("s") == sorted(kept.items())


@pytest.mark.requires("wire")
async def test_descending_order(driver, store):
    await store.extend("s", *[(t, str(t)) for t in range(1_000)])
    path = f"/ns/{store.namespace}/ts/s/range"

    async def timestamps(**query):
        answer = await driver.http.get(path, params={"order": "desc", **query})
        assert answer.status_code == 200, answer.text
        return [point[0] for point in answer.json()["points"]]

    assert await timestamps() == list(range(999, -1, -1))
    assert await timestamps(n=3) == [999, 998, 997]
    assert await timestamps(start=10, end=12) == [12, 11, 10]
    assert await timestamps(start=10, end=20, n=2) == [20, 19]
    assert await timestamps(start=10, end=20, freq=4) == [20, 16, 12]
