"""Time series: what is read page by page."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable
from itertools import chain
from typing import Final, NamedTuple

from rstore.core.points import Points
from rstored.backends.abc import Place, Row, RowScan, Slice
from rstored.engine.batching import Storage
from rstored.engine.blocks import absent, between, joined, thin
from rstored.engine.timestamps import sort_key
from rstored.engine.ts.rows import BLOCKS_LANE, PAGE_BYTES_MAX, decode_page, decode_row
from rstored.limits import Limits
from rstored.problems import Problem

_STEPS_AT_ONCE: Final = 2**16
_PAGE_BLOCKS_MIN: Final = 8
_PAGE_BLOCKS_MAX: Final = 64


async def ascending_parts(
    storage: Storage, place: Place, low: int, high: int, n: int | None, freq: int | None
) -> AsyncIterator[Points]:
    """The points from ``low`` to ``high``, in parts; see :meth:`TimeSeries.range` for ``n`` and ``freq``."""
    previous: int | None = None
    blocks = _PAGE_BLOCKS_MIN
    while low <= high and n != 0:
        page = await _page(storage, place, low, high, blocks)
        for points in page.parts:
            kept = points if freq is None else thin(points, freq, previous=previous)
            if n is not None:
                kept = kept[:n]
                n -= len(kept)
            if kept:
                previous = kept.timestamps[-1]
                yield kept
        if page.next_low is None:
            return
        low = page.next_low if freq is None or previous is None else max(page.next_low, previous + freq)
        blocks = _next_blocks(blocks, low - page.next_low, page.span)


async def descending_parts(
    storage: Storage, place: Place, low: int, high: int, n: int | None, freq: int | None
) -> AsyncIterator[Points]:
    """The same as :func:`ascending_parts`, but the parts go back in time, and ``n`` and ``freq`` count from the end."""
    previous: int | None = None
    blocks = _PAGE_BLOCKS_MIN
    while low <= high and n != 0:
        scan = RowScan(place, BLOCKS_LANE, high=sort_key(high), descending=True, limit=blocks, bytes_max=PAGE_BYTES_MAX)
        found: Slice[Row]
        (found,) = await storage.read_in_turn(scan)
        decoded, more = decode_page(found)
        parts = joined(between(points, low, high) for points in reversed(decoded))
        for points in reversed(parts):
            kept = points if freq is None else thin(points, freq, previous=previous, descending=True)
            if n is not None:
                kept = kept[max(len(kept) - n, 0) :]
                n -= len(kept)
            if kept:
                previous = kept.timestamps[0]
                yield kept
        if not more:
            return
        oldest = decoded[-1].timestamps[0]
        span = (decoded[0].timestamps[0] - oldest) // len(decoded)
        high = oldest - 1 if freq is None or previous is None else min(oldest - 1, previous - freq)
        blocks = _next_blocks(blocks, oldest - 1 - high, span)


async def absent_steps(
    storage: Storage,
    limits: Limits,
    place: Place,
    start: int,
    end: int | None,
    freq: int,
    absent_max: int,
    counted: Callable[[int], None] = lambda count: None,
) -> list[int] | None:
    """The steps of the grid that have no point; None if there are more than ``absent_max``."""
    check_freq(freq)
    if end is None:
        last: Slice[Row]
        (last,) = await storage.read(RowScan(place, BLOCKS_LANE, descending=True, limit=1))
        if not last.items:
            return []
        end = decode_row(last.items[0]).timestamps[-1]
    steps_max = limits.grid_steps_max
    if (end - start) // freq >= steps_max:
        detail = f"the grid has more than {steps_max} steps: ask for a shorter range or a larger freq"
        raise Problem("answer-too-large", detail, limit=steps_max)
    found: list[int] = []
    low = start
    blocks = _PAGE_BLOCKS_MIN
    while low <= end:
        page = await _page(storage, place, low, end, blocks)
        grid = range(low, (end if page.next_low is None else min(page.next_low - 1, end)) + 1, freq)
        timestamps = array("q", chain.from_iterable(part.timestamps for part in page.parts))
        # If far too many are absent, the grid is not looked through.
        if len(grid) - len(timestamps) > absent_max - len(found):
            return None
        for steps in (grid[i : i + _STEPS_AT_ONCE] for i in range(0, len(grid), _STEPS_AT_ONCE)):
            lowest, highest = bisect_left(timestamps, steps[0]), bisect_right(timestamps, steps[-1])
            found += absent(steps, timestamps[lowest:highest])
            if len(found) > absent_max:
                return None
            counted(len(found))
            await storage.turns.take()
        low = grid.start + len(grid) * freq
        if page.next_low is not None:
            blocks = _next_blocks(blocks, low - page.next_low, page.span)
    return found


def check_freq(freq: int) -> None:
    """Raise ``invalid-parameter`` unless ``freq`` is positive."""
    if freq <= 0:
        raise Problem("invalid-parameter", "freq is the distance between two timestamps: 1 or more", parameter="freq")


class _BlockPage(NamedTuple):
    """Blocks of one read, cut to the requested range and joined.

    ``next_low`` is where the next page begins, or None at the end. ``span`` is how much time a block covers on average.
    """

    parts: list[Points]
    next_low: int | None
    span: int


async def _page(storage: Storage, place: Place, low: int, high: int, blocks: int) -> _BlockPage:
    """The points from ``low`` to ``high``, out of the block that ``low`` is in and at most ``blocks`` more."""
    # Two reads of one snapshot: even if the block that ``low`` falls into is large, the page goes beyond it.
    floor: Slice[Row]
    found: Slice[Row]
    floor, found = await storage.read_in_turn(
        RowScan(place, BLOCKS_LANE, low=sort_key(low), high=sort_key(low), floor=True, limit=1),
        RowScan(place, BLOCKS_LANE, low=sort_key(low), high=sort_key(high), limit=blocks, bytes_max=PAGE_BYTES_MAX),
    )
    if floor.items and floor.items[:1] != found.items[:1]:
        found = Slice(floor.items + found.items, found.more)
    decoded, more = decode_page(found)
    parts = joined(between(points, low, high) for points in decoded)
    if not more:
        return _BlockPage(parts, None, 0)
    last = decoded[-1].timestamps[-1]
    return _BlockPage(parts, last + 1, (last - decoded[0].timestamps[0]) // len(decoded))


def _next_blocks(blocks: int, skipped: int, span: int) -> int:
    """How many blocks the next page reads: more and more, unless the reader skips blocks.

    >>> _next_blocks(16, skipped=0, span=60), _next_blocks(16, skipped=500, span=60)
    (64, 8)
    """
    return min(4 * blocks, _PAGE_BLOCKS_MAX) if skipped <= span else _PAGE_BLOCKS_MIN
