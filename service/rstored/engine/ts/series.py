"""Time series: the operations."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.points import Cells, InvalidPoints, Points, checked, ordered
from rstored.backends.abc import Commit, DeleteRecord, Head, HeadRead, Kind, Place, Query, Row, RowScan, Slice, Write
from rstored.engine.batching import Storage
from rstored.engine.blocks import absent, between, into_blocks, joined, rebuilt, thin
from rstored.engine.listing import list_page
from rstored.engine.model import Page, SeriesInfo, Stretch
from rstored.engine.namespaces import ensure_namespace
from rstored.engine.once import Once, answers_of
from rstored.engine.timestamps import sort_key
from rstored.engine.ts.plans import affected_blocks, check_unchanged, check_within, removal_plan, rows_instead
from rstored.engine.ts.rows import (
    BLOCKS_LANE,
    CELL_COST_BYTES,
    PAGE_BYTES_MAX,
    Meta,
    count_of_row,
    decode_page,
    decode_row,
    meta_of,
    put_head,
    rows_of,
)
from rstored.engine.values import points_problem
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.threads import run_sized

__all__ = ["TimeSeries"]

_STEPS_AT_ONCE: Final = 2**16
_PAGE_BLOCKS_MIN: Final = 8
_PAGE_BLOCKS_MAX: Final = 64
_COUNT: Final = answers_of(int)


class _BlockPage(NamedTuple):
    """Blocks of one read, cut to the requested range and joined.

    ``next_low`` is where the next page begins, or None at the end. ``span`` is how much time a block covers on average.
    """

    parts: list[Points]
    next_low: int | None
    span: int


class TimeSeries:
    """The operations on time series. Namespaces and keys are already checked; timestamps are int64."""

    def __init__(self, storage: Storage, limits: Limits, clock: Callable[[], int]) -> None:
        """``clock`` gives POSIX milliseconds."""
        self._storage = storage
        self._limits = limits
        self._once = Once(storage, limits, clock)

    # --- writing -------------------------------------------------------------------------------------------

    async def extend(
        self,
        namespace: str,
        key: str,
        points: Points,
        *,
        unchanged: Stretch | None = None,
        write_id: str | None = None,
    ) -> int:
        """Add or replace points, in any order, all or none. Returns how many points were given.

        Of two points with one timestamp the last counts, but the first must also be one that may be stored.

        With ``unchanged``, all points must be within that stretch, and Problem ``precondition-failed`` is raised unless
        the stretch has one of its digests. Raises Problem ``batch-too-large`` (also for too long a stretch),
        ``value-too-large``, ``invalid-value``, ``invalid-body``, ``nesting-too-deep`` or ``sealed-only``.
        """
        limits = self._limits
        if not points and unchanged is None:
            return 0
        encodings = points.encodings
        # A number in a typed column is always valid. Any other value must be checked.
        cost = CELL_COST_BYTES * len(points) if isinstance(points.values, Cells) else 0
        points = await run_sized(points.size + cost, self._checked, points)
        if len(points) > limits.points_per_call_max:
            raise Problem.beyond("batch-too-large", f"the call has {len(points)} points", limits.points_per_call_max)
        if unchanged is not None:
            check_within(points, unchanged)
        place = Place(namespace, Kind.TS, key)

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[int]]:
            if unchanged is not None:
                yield from check_unchanged(place, unchanged, limits)
                if not points:
                    return Commit((), 0)
            writes = ensure_namespace(heads, namespace, encodings)
            head = heads[place]
            if head is None:
                writes.append(put_head(place, Meta(len(points), points.timestamps[0], points.timestamps[-1])))
                writes += rows_instead(place, [], rows_of(into_blocks([points], fill=True)))
                return Commit(writes, len(points))
            meta = meta_of(head)
            changes: list[Write] = []
            added = 0
            for affected in (yield from affected_blocks(place, points.timestamps)):
                old, new = decode_row(affected.row), points[affected.start : affected.stop]
                rows = rows_of(rebuilt(old, new, at_end=old.timestamps[-1] == meta.last))
                added += sum(map(count_of_row, rows)) - len(old)
                changes += rows_instead(place, [affected.row], rows)
            first, last = min(meta.first, points.timestamps[0]), max(meta.last, points.timestamps[-1])
            if changes:
                changes.append(put_head(place, Meta(meta.count + added, first, last)))
            return Commit([*writes, *changes], len(points))

        request = "extend", len(points), points.size, *points.timestamps[:1], *points.timestamps[-1:], unchanged
        return await self._once.update((place,), plan, write_id, request, _COUNT)

    async def remove(
        self, namespace: str, key: str, *, start: int | None = None, end: int | None = None, write_id: str | None = None
    ) -> int:
        """Delete the points from ``start`` to ``end``, both inclusive. None means open. Returns how many were deleted.

        A series without points does not exist any more.
        """
        place = Place(namespace, Kind.TS, key)

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[int]]:
            head = heads[place]
            if head is None:
                return Commit((), 0)
            meta = meta_of(head)
            low = meta.first if start is None else max(start, meta.first)
            high = meta.last if end is None else min(end, meta.last)
            if low > high:
                return Commit((), 0)
            if low == meta.first and high == meta.last:
                return Commit((DeleteRecord(place),), meta.count)
            return (yield from removal_plan(place, meta, low, high))

        return await self._once.update((place,), plan, write_id, ("remove", start, end), _COUNT)

    def _checked(self, points: Points) -> Points:
        limits = self._limits
        try:
            points = checked(points, value_bytes_max=limits.value_bytes_max, nesting_max=limits.nesting_max)
        except InvalidPoints as error:
            raise points_problem(error) from None
        return ordered(points.timestamps, points.values)

    # --- reading -------------------------------------------------------------------------------------------

    def range(
        self,
        namespace: str,
        key: str,
        *,
        start: int | None = None,
        end: int | None = None,
        n: int | None = None,
        freq: int | None = None,
        descending: bool = False,
    ) -> AsyncIterator[Points]:
        """The points from ``start`` to ``end``, both inclusive, in parts of bounded size. None means open.

        ``freq`` keeps the first point, and then each next point that is at least ``freq`` after the last one kept.
        ``n`` is the greatest number of points to keep. With ``descending``, the parts go back in time, and ``freq`` and
        ``n`` count from the end, but the points within each part ascend. No part is empty, and an unknown series has no
        parts. Raises Problem ``invalid-parameter`` at once for a negative ``n``, and a ``freq`` that is not positive.
        """
        if n is not None and n < 0:
            raise Problem("invalid-parameter", "n is a number of points: 0 or more", parameter="n")
        if freq is not None:
            _check_freq(freq)
        place = Place(namespace, Kind.TS, key)
        low = INT64_MIN if start is None else max(start, INT64_MIN)
        high = INT64_MAX if end is None else min(end, INT64_MAX)
        read = self._descending if descending else self._ascending
        return read(place, low, high, n, freq)

    async def first(self, namespace: str, key: str) -> Points | None:
        """The first point as :class:`Points` of length 1; None if there is none."""
        (found,) = await self._storage.read(RowScan(Place(namespace, Kind.TS, key), BLOCKS_LANE, limit=1))
        return decode_row(found.items[0])[:1] if found.items else None

    async def last(self, namespace: str, key: str) -> Points | None:
        """The last point as :class:`Points` of length 1; None if there is none."""
        scan = RowScan(Place(namespace, Kind.TS, key), BLOCKS_LANE, descending=True, limit=1)
        (found,) = await self._storage.read(scan)
        return decode_row(found.items[0])[-1:] if found.items else None

    async def missing(
        self,
        namespace: str,
        key: str,
        *,
        start: int,
        end: int | None = None,
        freq: int,
        counted: Callable[[int], None] = lambda count: None,
    ) -> list[int]:
        """The timestamps of ``start, start + freq, … ≤ end`` that have no point. ``end`` None means the last point.

        It calls ``counted`` with their number while that grows, and ``counted`` may raise an exception to end it. An
        unknown series has none of the timestamps up to ``end``. Raises Problem ``invalid-parameter`` for a ``freq``
        that is not positive, and ``answer-too-large`` for a grid or an answer beyond the limit.
        """
        absent_max = self._limits.answer_points_max
        found = await self._absent(Place(namespace, Kind.TS, key), start, end, freq, absent_max, counted)
        if found is None:
            raise Problem(
                "answer-too-large",
                f"more than {absent_max} timestamps are missing: ask for a shorter range or a larger freq",
                limit=absent_max,
            )
        return found

    async def iscomplete(self, namespace: str, key: str, *, start: int, end: int | None = None, freq: int) -> bool:
        """Whether :meth:`missing` would find nothing. It reads no further than the first gap."""
        return await self._absent(Place(namespace, Kind.TS, key), start, end, freq, 0) is not None

    async def _ascending(
        self, place: Place, low: int, high: int, n: int | None, freq: int | None
    ) -> AsyncIterator[Points]:
        previous: int | None = None
        blocks = _PAGE_BLOCKS_MIN
        while low <= high and n != 0:
            page = await self._page(place, low, high, blocks)
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

    async def _descending(
        self, place: Place, low: int, high: int, n: int | None, freq: int | None
    ) -> AsyncIterator[Points]:
        previous: int | None = None
        blocks = _PAGE_BLOCKS_MIN
        while low <= high and n != 0:
            scan = RowScan(
                place, BLOCKS_LANE, high=sort_key(high), descending=True, limit=blocks, bytes_max=PAGE_BYTES_MAX
            )
            found: Slice[Row]
            (found,) = await self._storage.read_in_turn(scan)
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

    async def _page(self, place: Place, low: int, high: int, blocks: int) -> _BlockPage:
        """The points from ``low`` to ``high``, out of the block that ``low`` is in and at most ``blocks`` more."""
        # Two reads of one snapshot: even if the block that ``low`` falls into is large, the page goes beyond it.
        floor: Slice[Row]
        found: Slice[Row]
        floor, found = await self._storage.read_in_turn(
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

    async def _absent(
        self,
        place: Place,
        start: int,
        end: int | None,
        freq: int,
        absent_max: int,
        counted: Callable[[int], None] = lambda count: None,
    ) -> list[int] | None:
        """The steps of the grid that have no point; None if there are more than ``absent_max``."""
        _check_freq(freq)
        if end is None:
            (head,) = await self._storage.read(HeadRead(place))
            if head is None:
                return []
            end = meta_of(head).last
        steps_max = self._limits.grid_steps_max
        if (end - start) // freq >= steps_max:
            detail = f"the grid has more than {steps_max} steps: ask for a shorter range or a larger freq"
            raise Problem("answer-too-large", detail, limit=steps_max)
        found: list[int] = []
        low = start
        blocks = _PAGE_BLOCKS_MIN
        while low <= end:
            page = await self._page(place, low, end, blocks)
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
                await self._storage.turns.take()
            low = grid.start + len(grid) * freq
            if page.next_low is not None:
                blocks = _next_blocks(blocks, low - page.next_low, page.span)
        return found

    # This method is the last, because below it ``list`` means the method.

    async def list(
        self,
        namespace: str,
        *,
        match: str | None = None,
        prefix: str = "",
        after: str | None = None,
        limit: int = 1_000,
    ) -> Page[SeriesInfo]:
        """A page of the namespace's series in key order (see :func:`~rstored.engine.listing.list_page`)."""
        page = await list_page(self._storage, namespace, Kind.TS, match=match, prefix=prefix, after=after, limit=limit)
        metas = ((key, meta_of(head)) for key, head in page.items)
        return Page([SeriesInfo(key, meta.count, meta.first, meta.last) for key, meta in metas], page.cursor)


def _check_freq(freq: int) -> None:
    if freq <= 0:
        raise Problem("invalid-parameter", "freq is the distance between two timestamps: 1 or more", parameter="freq")


def _next_blocks(blocks: int, skipped: int, span: int) -> int:
    """How many blocks the next page reads: more and more, unless the reader skips blocks.

    >>> _next_blocks(16, skipped=0, span=60), _next_blocks(16, skipped=500, span=60)
    (64, 8)
    """
    return min(4 * blocks, _PAGE_BLOCKS_MAX) if skipped <= span else _PAGE_BLOCKS_MIN
