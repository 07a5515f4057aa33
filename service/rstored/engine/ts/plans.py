"""Time series: the plans of writes."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator
from typing import Any, Final, NamedTuple

from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.points import Points, concatenate, digest
from rstored.backends.abc import Commit, DeleteRow, DeleteRows, Place, PutRow, Query, Row, RowScan, Slice, Write
from rstored.engine.blocks import between, packed
from rstored.engine.model import Stretch
from rstored.engine.timestamps import sort_key
from rstored.engine.ts.rows import (
    BLOCKS_LANE,
    PAGE_BYTES_MAX,
    Meta,
    count_of_row,
    decode_row,
    first_of_row,
    put_head,
    rows_of,
)
from rstored.limits import Limits
from rstored.problems import Problem, damaged

_LOOKUPS_MAX: Final = 256
_BLOCKS: Final = "the blocks of a time series"


class Affected(NamedTuple):
    """A stored block, and which of the new points fall into it."""

    row: Row
    start: int
    stop: int


class _Gap(NamedTuple):
    """New points whose blocks are not known yet, and the last known block before theirs, if there is one."""

    points: range
    before: Row | None


def check_within(points: Points, stretch: Stretch) -> None:
    """Raise ``invalid-body`` if the points are not all within the stretch."""
    timestamps = points.timestamps
    if points and (
        (stretch.start is not None and timestamps[0] < stretch.start)
        or (stretch.end is not None and timestamps[-1] > stretch.end)
    ):
        raise Problem("invalid-body", "a point lies outside the range from start to end of If-Match")


def check_unchanged(place: Place, stretch: Stretch, limits: Limits) -> Generator[Query, list[Any], None]:
    """Raise ``precondition-failed`` unless the stored points of the stretch have one of its digests."""
    low = INT64_MIN if stretch.start is None else stretch.start
    high = INT64_MAX if stretch.end is None else stretch.end
    parts: list[Points] = []
    count = size = 0
    scan = RowScan(place, BLOCKS_LANE, sort_key(low), sort_key(high), floor=True, bytes_max=PAGE_BYTES_MAX)
    more = low <= high
    while more:
        found: Slice[Row]
        (found,) = yield (scan,)
        for part in (between(decode_row(row), low, high) for row in found.items):
            parts.append(part)
            count, size = count + len(part), size + part.size
            # All other writers wait meanwhile.
            if count > limits.points_per_call_max or size > limits.body_bytes_max:
                detail = "the range from start to end has more points than a call may have: make it shorter"
                raise Problem("batch-too-large", detail, limit=limits.points_per_call_max)
        more = found.more
        if more:
            scan = scan._replace(low=found.items[-1].sort + b"\0", floor=False)
    if digest(concatenate(parts)) not in stretch.digests:
        detail = "the points from start to end have another digest: read them again and decide again"
        raise Problem("precondition-failed", detail)


def affected_blocks(place: Place, timestamps: array[int]) -> Generator[Query, list[Any], list[Affected]]:
    """The stored blocks that new points with these ascending timestamps fall into. There is at least one block.

    Each turn looks up some of the points at once. A lookup finds the block that its point falls into, and often the
    neighbours of the point fall into it too. The next turn looks into the gaps that are left. A turn may look up four
    times as many points as the turn before, but no more than the estimated number of blocks that are left. So no block
    is read that is not needed, few are read twice, and points that are far apart take few turns.
    """
    found: dict[bytes, Affected] = {}
    gaps = [_Gap(range(len(timestamps)), None)]
    unsettled = len(timestamps)
    points_per_lookup = unsettled
    lookups_max = 1
    while gaps:
        stride = max(-(-unsettled // lookups_max), points_per_lookup)
        # The last point of a gap settles the most points: those before it, back to the beginning of its block.
        lookups = [(gap, gap.points[::-1][::stride][::-1]) for gap in gaps]
        scans: list[Slice[Row]] = yield tuple(
            lookup(place, timestamps[index], gap.before) for gap, indices in lookups for index in indices
        )
        unsettled_before, results = unsettled, iter(scans)
        gaps = [left for gap, indices in lookups for left in settle(timestamps, gap, indices, results, found)]
        unsettled = sum(len(gap.points) for gap in gaps)
        points_per_lookup = (unsettled_before - unsettled) // len(scans)
        lookups_max = min(4 * lookups_max, _LOOKUPS_MAX)
    return sorted(found.values(), key=lambda affected: affected.start)


def lookup(place: Place, t: int, before: Row | None) -> RowScan:
    """The scan that finds the block that ``t`` falls into, or nothing if that block is ``before``."""
    if before is None:
        return RowScan(place, BLOCKS_LANE, low=sort_key(t), floor=True, limit=1)
    return RowScan(place, BLOCKS_LANE, low=before.sort + b"\0", high=sort_key(t), descending=True, limit=1)


def settle(
    timestamps: array[int], gap: _Gap, indices: range, results: Iterator[Slice[Row]], found: dict[bytes, Affected]
) -> list[_Gap]:
    """Enter into ``found`` which points of a gap fall into which blocks, as far as the lookups tell.

    ``indices`` are the points that were looked up, with the last point of the gap among them, and ``results`` are their
    results. Returns the gaps that are left within this one.
    """
    left: list[_Gap] = []
    settled, before = gap.points.start, gap.before
    for index, end in zip(indices, [*indices[1:], gap.points.stop], strict=True):
        row = next(iter(next(results).items), before)
        if row is None:
            raise damaged(_BLOCKS)
        first = first_of_row(row)
        # Points between two points of one block fall into it too. So do points before the first block.
        if (before is not None and row.sort == before.sort) or first > timestamps[index]:
            start = settled
        else:
            start = bisect_left(timestamps, first, settled, index)
            left.append(_Gap(range(settled, start), before))
        stop = index + 1
        if stop < end:
            # The beginning of the next block is not known, but the end of this one is.
            stop = bisect_right(timestamps, decode_row(row).timestamps[-1], stop, end)
        known = found.get(row.sort, Affected(row, start, stop))
        found[row.sort] = known._replace(start=min(known.start, start), stop=max(known.stop, stop))
        settled, before = stop, row
    return [gap for gap in left if gap.points]


def removal_plan(place: Place, meta: Meta, low: int, high: int) -> Generator[Query, list[Any], Commit[int]]:
    """Delete the points from ``low`` to ``high``. That range is within the series and not all of it."""
    before: Slice[Row]
    inside: Slice[Row]
    after: Slice[Row]
    before_low = sort_key(low - 1) if low > INT64_MIN else b""
    inside_scan = RowScan(place, BLOCKS_LANE, low=sort_key(low), high=sort_key(high), bytes_max=PAGE_BYTES_MAX)
    before, inside, after = yield (
        # The last block before the range, which may reach into it, and the one before that.
        RowScan(place, BLOCKS_LANE, high=before_low, descending=True, limit=2),
        inside_scan,
        RowScan(place, BLOCKS_LANE, low=sort_key(high) + b"\0", limit=1),
    )
    earlier = [decode_row(row) for row in reversed(before.items)]
    reaching = earlier.pop() if earlier else Points.empty()
    kept = [reaching[: bisect_left(reaching.timestamps, low)], reaching[bisect_right(reaching.timestamps, high) :]]
    removed = len(reaching) - len(kept[0]) - len(kept[1])
    while inside.items:
        removed += sum(map(count_of_row, inside.items))
        row = inside.items[-1]
        if not inside.more:
            block = decode_row(row)
            kept.append(block[bisect_right(block.timestamps, high) :])
            removed -= len(kept[-1])
            break
        (inside,) = yield (inside_scan._replace(low=row.sort + b"\0"),)
    if not removed:
        return Commit((), 0)
    # The rest of a block is joined with its neighbours, so that no tiny block is left.
    blocks = list(packed([*earlier, *kept, *map(decode_row, after.items)]))
    if not blocks or removed >= meta.count:
        raise damaged(_BLOCKS)
    meta = Meta(
        meta.count - removed,
        blocks[0].timestamps[0] if low == meta.first else meta.first,
        blocks[-1].timestamps[-1] if high == meta.last else meta.last,
    )
    writes: list[Write] = [DeleteRows(place, BLOCKS_LANE, sort_key(low), sort_key(high))]
    writes += rows_instead(place, [*before.items, *after.items], rows_of(blocks))
    writes.append(put_head(place, meta))
    return Commit(writes, removed)


def rows_instead(place: Place, old: list[Row], new: list[Row]) -> list[Write]:
    """The writes that replace old rows by new ones. A row that does not change needs none."""
    sorts = {row.sort for row in new}
    writes: list[Write] = [DeleteRow(place, BLOCKS_LANE, row.sort) for row in old if row.sort not in sorts]
    writes += (PutRow(place, BLOCKS_LANE, row) for row in new if row not in old)
    return writes
