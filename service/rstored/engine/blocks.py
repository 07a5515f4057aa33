"""Blocks of a time series: pure functions on the points that are stored together as one row.

The blocks of a series do not overlap and are ordered. A point that lies between two blocks belongs to the earlier one,
and a point before all blocks to the first, so each block can be found by its first timestamp.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import filterfalse, groupby, islice
from operator import sub
from typing import Final

from rstore.core.points import Cells, Points, concatenate, ordered, split

__all__ = [
    "BLOCK_BYTES_MAX",
    "BLOCK_POINTS_MAX",
    "absent",
    "between",
    "into_blocks",
    "joined",
    "merge",
    "packed",
    "rebuilt",
    "thin",
]

BLOCK_POINTS_MAX: Final = 512
BLOCK_BYTES_MAX: Final = 64 * 2**10

# A double as JSON text.
_NUMBER_BYTES_MAX: Final = 24


def merge(old: Points, new: Points) -> Points:
    """The points of both; where both have a timestamp, the new one.

    >>> list(merge(Points.from_pairs([(1, 10), (2, 20)]), Points.from_pairs([(2, 21), (3, 31)])))
    [(1, 10), (2, 21), (3, 31)]
    """
    return concatenate(_merged(old, new))


def rebuilt(old: Points, new: Points, *, at_end: bool) -> Iterator[Points]:
    """The blocks that take the place of the block ``old`` when new points fall into it, made one by one.

    ``at_end``: it is the last of its series. Numbers of different kinds share a block, as JSON text, only where
    apart they would make small ones.
    """
    fill = at_end and old.timestamps[-1] < new.timestamps[0]
    parts = filter(len, _merged(old, new))
    alike = (list(group) for _, group in groupby(parts, _column_kind))
    return packed(block for group in alike for block in into_blocks(group, fill=fill))


def _merged(old: Points, new: Points) -> list[Points]:
    """The merged points in parts that follow each other; all but one part are of one side alone."""
    if not old or not new:
        return [old, new]
    if old.timestamps == new.timestamps:
        return [new]
    old_first, old_last = old.timestamps[0], old.timestamps[-1]
    new_first, new_last = new.timestamps[0], new.timestamps[-1]
    if old_last < new_first:
        return [old, new]
    if new_last < old_first:
        return [new, old]
    # What lies before or after all of the other side is taken as it is; only the middle can interleave.
    before = [part[: bisect_left(part.timestamps, first)] for part, first in ((old, new_first), (new, old_first))]
    after = [part[bisect_right(part.timestamps, last) :] for part, last in ((old, new_last), (new, old_last))]
    middle = concatenate(
        [part[len(head) : len(part) - len(tail)] for part, head, tail in zip((old, new), before, after, strict=True)]
    )
    return [*before, ordered(middle.timestamps, middle.values), *after]


def between(points: Points, low: int, high: int) -> Points:
    """The points from timestamp ``low`` to ``high``, both inclusive."""
    timestamps = points.timestamps
    if not timestamps or (low <= timestamps[0] and timestamps[-1] <= high):
        return points
    return points[bisect_left(timestamps, low) : bisect_right(timestamps, high)]


def into_blocks(parts: Sequence[Points], *, fill: bool) -> Iterator[Points]:
    """Cut consecutive parts, which have one kind of column, into blocks, made one by one.

    With ``fill`` each block is filled before the next begins: right at the end of a series, where the last block
    will grow. Without it blocks are alike in size: right elsewhere, where each needs room for what may come.
    """
    points_max, bytes_max = BLOCK_POINTS_MAX, BLOCK_BYTES_MAX
    if not fill:
        count, size = sum(map(len, parts)), sum(part.size for part in parts)
        points_max = -(-count // max(-(-count // points_max), -(-size // bytes_max), 1))
    # The last block of a part goes on with the next part. So no more of the parts is joined than a block at a time.
    open_block = Points.empty()
    for part in filter(len, parts):
        start = 0
        if open_block:
            around = concatenate([open_block, part[:points_max]])
            block = next(split(around, points_max=points_max, bytes_max=bytes_max))
            start = len(block) - len(open_block)
            if start == len(part):
                open_block = block
                continue
            yield block
        blocks = split(part, points_max=points_max, bytes_max=bytes_max, start=start)
        open_block = next(blocks)
        for block in blocks:
            yield open_block
            open_block = block
    if open_block:
        yield open_block


def packed(pieces: Iterable[Points]) -> Iterator[Points]:
    """Consecutive pieces, neighbours joined where they fit into one block; empty ones fall away."""
    last = Points.empty()
    for piece in filter(len, pieces):
        if last and _fits(last, piece):
            last = concatenate([last, piece])
        else:
            if last:
                yield last
            last = piece
    if last:
        yield last


def joined(blocks: Iterable[Points]) -> list[Points]:
    """Consecutive blocks with neighbours of one kind of column joined, so that numbers stay numbers."""
    return [concatenate(list(group)) for _, group in groupby(filter(len, blocks), _column_kind)]


def thin(points: Points, freq: int, *, previous: int | None = None, descending: bool = False) -> Points:
    """The first point and each next one at least ``freq`` after the last kept (``previous``, if there was one).

    ``descending`` begins at the last point and goes back; ``previous`` then lies after the points.

    >>> [t for t, _ in thin(Points.from_pairs((t, t) for t in (0, 4, 9, 10, 11, 20)), 10)]
    [0, 10, 20]
    """
    timestamps = points.timestamps
    if descending:
        last = len(points) - 1 if previous is None else bisect_right(timestamps, previous - freq) - 1
        points = points[: last + 1]
    else:
        points = points[0 if previous is None else bisect_left(timestamps, previous + freq) :]
    timestamps = points.timestamps
    gaps = set(map(sub, islice(timestamps, 1, None), timestamps))
    if min(gaps, default=freq) >= freq:
        return points
    if len(gaps) == 1:
        step = -(-freq // gaps.pop())
        return points[(len(points) - 1) % step if descending else 0 :: step]
    kept: list[int] = []
    if descending:
        index = len(points) - 1
        while index >= 0:
            kept.append(index)
            index = bisect_right(timestamps, timestamps[index] - freq, 0, index) - 1
        kept.reverse()
    else:
        index = 0
        while index < len(points):
            kept.append(index)
            index = bisect_left(timestamps, timestamps[index] + freq, index + 1)
    return points.take(kept)


def absent(grid: range, timestamps: array[int]) -> list[int]:
    """Those steps of the grid, in order, that are not among the timestamps.

    >>> absent(range(0, 40, 10), array("q", [0, 7, 20]))
    [10, 30]
    """
    if len(grid) == len(timestamps) and array("q", grid) == timestamps:
        return []
    return list(filterfalse(set(timestamps).__contains__, grid))


def _fits(left: Points, right: Points) -> bool:
    if len(left) + len(right) > BLOCK_POINTS_MAX:
        return False
    mixed = _column_kind(left) != _column_kind(right)
    return (
        sum(
            _NUMBER_BYTES_MAX * len(part) if mixed and not isinstance(part.values, Cells) else part.size
            for part in (left, right)
        )
        <= BLOCK_BYTES_MAX
    )


def _column_kind(points: Points) -> str:
    values = points.values
    return "cells" if isinstance(values, Cells) else values.typecode
