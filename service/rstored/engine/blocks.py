"""Blocks of a time series: pure functions on the points that are stored together as one row.

The blocks of a series are ordered and do not overlap. A point between two blocks belongs to the earlier one, and a
point before all blocks belongs to the first. So the first timestamp of a block is enough to find it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import filterfalse, groupby, islice
from operator import sub
from typing import Final

from rstore.core.points import Cells, Points, concatenate, ordered, split

BLOCK_POINTS_MAX: Final = 512
BLOCK_BYTES_MAX: Final = 64 * 2**10

# The longest JSON text of a double.
_NUMBER_BYTES_MAX: Final = 24


def rebuilt(old: Points, new: Points, *, at_end: bool) -> Iterator[Points]:
    """The blocks, made one by one, that replace the block ``old`` when new points fall into it.

    ``at_end`` says that it is the last block of its series. Integers and doubles share a block, as JSON text, only if
    blocks of their own would be small.

    >>> old, new = Points.from_pairs([(1, 1), (2, 2)]), Points.from_pairs([(2, 5), (3, 3)])
    >>> [list(block) for block in rebuilt(old, new, at_end=True)]
    [[(1, 1), (2, 5), (3, 3)]]
    """
    fill = at_end and old.timestamps[-1] < new.timestamps[0]
    parts = filter(len, _merged(old, new))
    alike = (list(group) for _, group in groupby(parts, _column_kind))
    return packed(block for group in alike for block in into_blocks(group, fill=fill))


def _merged(old: Points, new: Points) -> list[Points]:
    """The merged points in consecutive parts. At most one part has points of both sides."""
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
    # Points before or after all of the other side are taken as they are. Only the middle can interleave.
    before = [part[: bisect_left(part.timestamps, first)] for part, first in ((old, new_first), (new, old_first))]
    after = [part[bisect_right(part.timestamps, last) :] for part, last in ((old, new_last), (new, old_last))]
    middle = concatenate(
        [part[len(head) : len(part) - len(tail)] for part, head, tail in zip((old, new), before, after, strict=True)]
    )
    return [*before, ordered(middle.timestamps, middle.values), *after]


def between(points: Points, low: int, high: int) -> Points:
    """The points from timestamp ``low`` to ``high``, both inclusive.

    >>> list(between(Points.from_pairs([(1, 10), (2, 20), (3, 30)]), 2, 9))
    [(2, 20), (3, 30)]
    """
    timestamps = points.timestamps
    if not timestamps or (low <= timestamps[0] and timestamps[-1] <= high):
        return points
    return points[bisect_left(timestamps, low) : bisect_right(timestamps, high)]


def into_blocks(parts: Sequence[Points], *, fill: bool) -> Iterator[Points]:
    """Cut consecutive parts, which all have one kind of column, into blocks, made one by one.

    With ``fill``, each block is filled before the next begins. That suits the end of a series, where the last block
    will grow. Without it, the blocks are about equal in size. That suits all other places, where each block needs room
    for later points.

    >>> points = Points.from_pairs((t, t) for t in range(600))
    >>> [len(block) for block in into_blocks([points], fill=True)]
    [512, 88]
    >>> [len(block) for block in into_blocks([points], fill=False)]
    [300, 300]
    """
    points_max, bytes_max = BLOCK_POINTS_MAX, BLOCK_BYTES_MAX
    if not fill:
        count, size = sum(map(len, parts)), sum(part.size for part in parts)
        points_max = -(-count // max(-(-count // points_max), -(-size // bytes_max), 1))
    # The last block of a part continues with the next part, so only one block at a time is joined.
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
    """Consecutive pieces, with neighbours joined if they fit into one block. Empty pieces are left out.

    >>> [list(piece) for piece in packed([Points.from_pairs([(1, 1)]), Points.empty(), Points.from_pairs([(2, 2)])])]
    [[(1, 1), (2, 2)]]
    """
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
    """Consecutive blocks, with neighbours joined if they have one kind of column. So numbers stay numbers."""
    return [concatenate(list(group)) for _, group in groupby(filter(len, blocks), _column_kind)]


def thin(points: Points, freq: int, *, previous: int | None = None, descending: bool = False) -> Points:
    """The first point, and then each next point that is at least ``freq`` after the last point kept.

    ``previous`` is the timestamp of a point that was kept before. ``descending`` begins at the last point and goes
    back, and ``previous`` is then later than all the points.

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
    """The steps of the grid, in order, that are not among the timestamps.

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
