"""Blocks against a plain dict: each function alone, and a whole series of them under a state machine."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rstore.core.encodings import Encoding, Value
from rstore.core.frames import decode, encode
from rstore.core.points import Cells, Points, concatenate
from rstored.engine.blocks import (
    BLOCK_BYTES_MAX,
    BLOCK_POINTS_MAX,
    absent,
    between,
    into_blocks,
    joined,
    packed,
    rebuilt,
    thin,
)

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
int64 = st.one_of(
    st.sampled_from([INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX - 1, INT64_MAX]),
    st.integers(-60, 60),
    st.integers(INT64_MIN, INT64_MAX),
)
VALUES = {
    "floats": lambda t: t / 3,
    "integers": lambda t: t,
    "texts": lambda t: Value(Encoding.JSON, b'"%d"' % t),
    "sealed": lambda t: Value(Encoding.SEALED, b"%d" % t * 3),
    "large": lambda t: Value(Encoding.BYTES, b"x" * (t % 70_000)),
}
kinds = st.sampled_from(list(VALUES))


def of(timestamps, kind: str) -> Points:
    return Points.from_pairs((t, VALUES[kind](t)) for t in timestamps)


some_points = st.builds(of, st.lists(int64, max_size=30), kinds)


def merge(old: Points, new: Points) -> Points:
    """The points of all blocks that replace ``old`` when ``new`` falls into it."""
    return concatenate(list(rebuilt(old, new, at_end=True)))


def plainly(points: Points) -> dict[int, object]:
    """A dict of the points in which a number and its JSON text are the same, as they are to a reader."""
    if isinstance(points.values, Cells):
        return dict(points)
    return {t: Value(Encoding.JSON, repr(value).encode().replace(b"e+", b"e")) for t, value in points}


def naive_thin(timestamps, freq, previous=None):
    kept = []
    for t in timestamps:
        if previous is None or t >= previous + freq:
            kept.append(t)
            previous = t
    return kept


# --- one function at a time --------------------------------------------------------------------------------


@given(some_points.filter(len), some_points.filter(len))
def test_merge_is_dict_update(old, new):
    merged = merge(old, new)
    assert plainly(merged) == plainly(old) | plainly(new)
    assert list(merged.timestamps) == sorted(set(old.timestamps) | set(new.timestamps))


@pytest.mark.parametrize("kind", ["floats", "integers", "sealed"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (range(10), range(10, 20)),
        (range(10, 20), range(10)),
        (range(10), range(10)),
        (range(0, 20, 2), range(1, 20, 2)),
        (range(10), range(-5, 15)),
        (range(-5, 15), range(10)),
        ([0, 100], range(40, 60)),
        (range(40, 60), [0, 100]),
        ([0], [0]),
    ],
)
def test_merge_keeps_the_kind_of_column(old, new, kind):
    merged = merge(of(old, kind), of(new, kind))
    assert merged == of(sorted({*old, *new}), kind)


def test_merge_takes_the_new_value_even_where_it_equals_the_old():
    merged = merge(Points.from_pairs([(1, 0.0), (2, 5.0)]), Points.from_pairs([(1, -0.0)]))
    assert repr(merged[0][1]) == "-0.0"


@given(some_points, int64, int64)
def test_between_is_inclusive(points, low, high):
    assert list(between(points, low, high)) == [(t, value) for t, value in points if low <= t <= high]


@given(st.integers(0, 3_000), kinds, st.booleans())
@settings(max_examples=30, deadline=None)
def test_blocks_keep_to_their_bounds(count, kind, fill):
    points = of(range(count), kind)
    blocks = list(into_blocks([points], fill=fill))
    assert concatenate(blocks) == points if blocks else count == 0
    for block in blocks:
        assert len(block) == 1 or (len(block) <= BLOCK_POINTS_MAX and block.size <= BLOCK_BYTES_MAX)
    if kind != "large" and blocks:
        assert len(blocks) == -(-count // BLOCK_POINTS_MAX)
        if fill:
            assert {len(block) for block in blocks[:-1]} <= {BLOCK_POINTS_MAX}
        else:
            assert max(map(len, blocks)) - min(map(len, blocks)) <= len(blocks)


@given(st.integers(0, 3_000), kinds, st.booleans(), st.lists(st.integers(0, 3_000), max_size=6).map(sorted))
@settings(max_examples=30, deadline=None)
def test_how_points_come_in_parts_makes_no_difference_to_their_blocks(count, kind, fill, cuts):
    points = of(range(count), kind)
    parts = [points[start:stop] for start, stop in pairwise([0, *cuts, count])]
    assert list(into_blocks(parts, fill=fill)) == list(into_blocks([points], fill=fill))


@pytest.mark.parametrize("kind", list(VALUES)[:4])
def test_a_full_block_stays_as_it_is_when_points_are_appended(kind):
    full = of(range(BLOCK_POINTS_MAX), "floats")
    blocks = list(rebuilt(full, of([BLOCK_POINTS_MAX], kind), at_end=True))
    assert [len(block) for block in blocks] == [BLOCK_POINTS_MAX, 1]
    assert encode(blocks[0]) == encode(full)


@pytest.mark.parametrize("old", [[5], [99_999], [-1]])
def test_a_stray_number_of_another_kind_does_not_turn_many_into_text(old):
    blocks = list(rebuilt(of(old, "integers"), of(range(0, 100_000, 2), "floats"), at_end=True))
    assert sum(len(block) for block in blocks if isinstance(block.values, Cells)) <= BLOCK_POINTS_MAX
    assert sum(map(len, blocks)) == 50_001
    assert list(packed(blocks)) == blocks


@given(st.lists(st.integers(0, 600), max_size=8), kinds)
@settings(max_examples=30, deadline=None)
def test_packed_leaves_no_two_neighbours_that_fit_together(sizes, kind):
    ends = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    pieces = [of(range(start, stop), kind) for start, stop in pairwise(ends)]
    found = list(packed(pieces))
    assert concatenate(found) == concatenate(pieces)
    assert all(found)
    for left, right in pairwise(found):
        assert len(left) + len(right) > BLOCK_POINTS_MAX or left.size + right.size > BLOCK_BYTES_MAX


def test_joined_keeps_numbers_apart_from_cells():
    blocks = [of([1], "floats"), of([2], "floats"), of([3], "integers"), Points.empty(), of([4, 5], "sealed")]
    assert [len(part) for part in joined(blocks)] == [2, 1, 2]
    assert joined([]) == []


progressions = st.builds(
    lambda first, step, n: list(range(first, first + step * n, step)),
    st.integers(-99, 99),
    st.integers(1, 9),
    st.integers(0, 40),
)
timestamp_runs = st.one_of(
    st.lists(int64, max_size=40).map(lambda found: sorted(set(found))),
    progressions,
    st.lists(st.integers(1, 5), max_size=40).map(lambda gaps: [sum(gaps[:i]) for i in range(len(gaps))]),
)


@given(timestamp_runs, st.one_of(st.integers(1, 30), st.integers(1, 2**64)), st.none() | st.integers(0, 20))
def test_thin_keeps_what_the_rule_says(timestamps, freq, lead):
    points = of(timestamps, "integers")
    previous = None if lead is None or not timestamps else timestamps[0] - lead - 1
    kept = naive_thin(timestamps, freq, previous)
    assert list(thin(points, freq, previous=previous)) == [(t, t) for t in kept]

    mirrored = [-t for t in reversed(timestamps)]
    previous = None if lead is None or not timestamps else timestamps[-1] + lead + 1
    kept = [-t for t in naive_thin(mirrored, freq, None if previous is None else -previous)]
    found = thin(points, freq, previous=previous, descending=True)
    assert list(found) == [(t, t) for t in reversed(kept)]


@given(st.builds(range, st.integers(-50, 50), st.integers(-50, 90), st.integers(1, 9)), st.sets(st.integers(-60, 60)))
def test_absent_is_what_is_not_there(grid, present):
    assert absent(grid, array("q", sorted(present))) == [t for t in grid if t not in present]


# --- a series of blocks ------------------------------------------------------------------------------------


class Series(RuleBasedStateMachine):
    """Blocks kept as the rows of a series are, frames and all, beside a dict that says what they should hold."""

    @initialize()
    def begin(self):
        self.frames: list[bytes] = []
        self.model: dict[int, object] = {}

    @property
    def blocks(self) -> list[Points]:
        return [decode(frame) for frame in self.frames]

    def write(self, new: Points) -> None:
        self.model |= plainly(new)
        blocks = self.blocks
        if not blocks:
            self.frames = [encode(block) for block in into_blocks([new], fill=True)]
            return
        firsts = [block.timestamps[0] for block in blocks]
        frames: list[Any] = []
        for index, old in enumerate(blocks):
            start = bisect_left(new.timestamps, firsts[index]) if index else 0
            stop = bisect_left(new.timestamps, firsts[index + 1]) if index + 1 < len(blocks) else len(new)
            part = new[start:stop]
            frames += map(encode, rebuilt(old, part, at_end=index + 1 == len(blocks)) if part else [old])
        self.frames = frames

    @rule(timestamps=st.lists(int64, min_size=1, max_size=20), kind=kinds)
    def write_a_few(self, timestamps, kind):
        self.write(of(timestamps, kind))

    @rule(first=st.integers(-3_000, 3_000), stride=st.integers(1, 5), count=st.integers(1, 1_200), kind=kinds)
    def write_a_run(self, first, stride, count, kind):
        if kind == "large":
            count = count % 20 + 1
        self.write(of(range(first, first + stride * count, stride), kind))

    @rule(low=int64, length=st.integers(0, 3_000))
    def cut(self, low, length):
        high = low + length
        pieces = []
        for block in self.blocks:
            timestamps = block.timestamps
            pieces += [block[: bisect_left(timestamps, low)], block[bisect_right(timestamps, high) :]]
        self.frames = [encode(block) for block in packed(pieces)]
        self.model = {t: value for t, value in self.model.items() if not low <= t <= high}

    @invariant()
    def blocks_hold_what_the_dict_holds(self):
        found: dict[int, object] = {}
        for block in self.blocks:
            assert block
            assert not found or block.timestamps[0] > max(found)
            assert len(block) == 1 or (len(block) <= BLOCK_POINTS_MAX and block.size <= BLOCK_BYTES_MAX)
            found |= plainly(block)
        assert found == self.model
        assert list(found) == sorted(found)


TestSeries = Series.TestCase
TestSeries.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


def test_points_that_come_one_by_one_fill_their_blocks():
    for order, most in [(range(2_000), 4), (range(2_000, 0, -1), 8), ([t * 769 % 2_003 for t in range(2_000)], 9)]:
        machine = Series()
        machine.begin()
        for t in order:
            machine.write(of([t], "integers"))
        assert len(machine.frames) <= most
