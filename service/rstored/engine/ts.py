"""Time series: what each operation means, on blocks of points.

A series is a record whose head counts its points and whose rows, in lane 0, are its blocks, found by their first
timestamp. A write reads and writes only the blocks that its points fall into. A read goes page by page, so its memory
is that of a page. Between two pages others may write: a reader then sees their points or not, but never one twice
or out of order.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec

from rstore.core.points import (
    Cells,
    InvalidPoints,
    Points,
    checked,
    concatenate,
    count_of,
    decode,
    digest,
    encode,
    ordered,
)
from rstored.backends.abc import (
    Commit,
    DeleteRecord,
    DeleteRow,
    DeleteRows,
    Head,
    HeadRead,
    Kind,
    Place,
    PutHead,
    PutRow,
    Query,
    Row,
    RowScan,
    Slice,
    Write,
)
from rstored.engine.batching import Storage
from rstored.engine.blocks import absent, between, into_blocks, joined, packed, rebuilt, thin
from rstored.engine.listing import list_page
from rstored.engine.model import Page, SeriesInfo, Stretch
from rstored.engine.namespaces import admit
from rstored.engine.once import Once, answers_of
from rstored.engine.timestamps import TIMESTAMP_MAX, TIMESTAMP_MIN, from_sort_key, sort_key
from rstored.engine.values import points_problem
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.threads import run_sized

__all__ = ["TimeSeries"]

_BLOCKS: Final = 0
_PAGE_BYTES_MAX: Final = 2**20
_PAGE_DECODED_BYTES_MAX: Final = 4 * 2**20
_STEPS_AT_ONCE: Final = 2**16
_PAGE_BLOCKS_MIN: Final = 8
_PAGE_BLOCKS_MAX: Final = 64
_LOOKUPS_MAX: Final = 256
# To look at a value costs what to parse so many more bytes would.
_CELL_COST_BYTES: Final = 64
_COUNT: Final = answers_of(int)


class _Meta(msgspec.Struct, array_like=True):
    """What the head of a series says of its points."""

    count: int
    first: int
    last: int


class _BlockPage(NamedTuple):
    """Blocks of one read, cut to what was asked for and joined.

    ``next_low`` is where the next page begins, or None at the end; ``span`` how much time a block covers.
    """

    parts: list[Points]
    next_low: int | None
    span: int


class _Affected(NamedTuple):
    """A stored block, and which of the new points fall into it."""

    row: Row
    start: int
    stop: int


class _Gap(NamedTuple):
    """New points of which the blocks are not known yet, and the block before all of theirs, if one is known."""

    points: range
    before: Row | None


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
        """Add or replace points, in any order, all or none; returns how many they are. None at all change nothing.

        The last of two with one timestamp wins, and the first has to be one that may be stored as well.

        With ``unchanged`` only if that stretch, in which all the points lie, is as it says; else Problem
        ``precondition-failed``. Raises Problem ``batch-too-large`` (which the stretch may be as well),
        ``value-too-large``, ``invalid-value``, ``invalid-body``, ``nesting-too-deep`` or ``sealed-only``.
        """
        limits = self._limits
        if not points and unchanged is None:
            return 0
        encodings = points.encodings
        # A number in a typed column is valid by nature; any other value has to be looked at.
        cost = _CELL_COST_BYTES * len(points) if isinstance(points.values, Cells) else 0
        points = await run_sized(points.size + cost, self._checked, points)
        if len(points) > limits.points_per_call_max:
            raise Problem(
                "batch-too-large",
                f"{len(points)} points in one call; at most {limits.points_per_call_max} are allowed",
                limit=limits.points_per_call_max,
            )
        if unchanged is not None:
            _check_within(points, unchanged)
        place = Place(namespace, Kind.TS, key)

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[int]]:
            if unchanged is not None:
                yield from _check_unchanged(place, unchanged, limits)
                if not points:
                    return Commit((), 0)
            writes = admit(heads, namespace, encodings)
            head = heads[place]
            if head is None:
                writes.append(_put_head(place, _Meta(len(points), points.timestamps[0], points.timestamps[-1])))
                writes += _rows_instead(place, [], _rows_of(into_blocks([points], fill=True)))
                return Commit(writes, len(points))
            meta = _meta(head)
            changes: list[Write] = []
            added = 0
            for affected in (yield from _affected(place, points.timestamps)):
                old, new = _decode(affected.row), points[affected.start : affected.stop]
                rows = _rows_of(rebuilt(old, new, at_end=old.timestamps[-1] == meta.last))
                added += sum(map(_count, rows)) - len(old)
                changes += _rows_instead(place, [affected.row], rows)
            first, last = min(meta.first, points.timestamps[0]), max(meta.last, points.timestamps[-1])
            if changes:
                changes.append(_put_head(place, _Meta(meta.count + added, first, last)))
            return Commit([*writes, *changes], len(points))

        request = "extend", len(points), points.size, *points.timestamps[:1], *points.timestamps[-1:], unchanged
        return await self._once.update((place,), plan, write_id, request, _COUNT)

    async def remove(
        self, namespace: str, key: str, *, start: int | None = None, end: int | None = None, write_id: str | None = None
    ) -> int:
        """Delete the points from ``start`` to ``end``, both inclusive, None meaning open; returns how many.

        A series that has no points left is gone.
        """
        place = Place(namespace, Kind.TS, key)

        def plan(heads: Mapping[Place, Head | None]) -> Generator[Query, list[Any], Commit[int]]:
            head = heads[place]
            if head is None:
                return Commit((), 0)
            meta = _meta(head)
            low = meta.first if start is None else max(start, meta.first)
            high = meta.last if end is None else min(end, meta.last)
            if low > high:
                return Commit((), 0)
            if low == meta.first and high == meta.last:
                return Commit((DeleteRecord(place),), meta.count)
            return (yield from _removal(place, meta, low, high))

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
        """The points from ``start`` to ``end``, both inclusive, None meaning open, in parts of bounded size.

        ``freq`` keeps the first point and then each next one at least ``freq`` after the last kept; ``n`` is the
        most points to keep. With ``descending`` the parts go back in time (and ``freq`` and ``n`` count from the
        end), while the points within each part ascend. Parts are never empty; an unknown series has none.
        Raises Problem ``invalid-parameter`` at once for a negative ``n`` or a ``freq`` that is not positive.
        """
        if n is not None and n < 0:
            raise Problem("invalid-parameter", "n is a number of points, 0 or more", parameter="n")
        if freq is not None:
            _check_freq(freq)
        place = Place(namespace, Kind.TS, key)
        low = TIMESTAMP_MIN if start is None else max(start, TIMESTAMP_MIN)
        high = TIMESTAMP_MAX if end is None else min(end, TIMESTAMP_MAX)
        read = self._descending if descending else self._ascending
        return read(place, low, high, n, freq)

    async def first(self, namespace: str, key: str) -> Points | None:
        """The first point, alone; None if there is none."""
        (found,) = await self._storage.read(RowScan(Place(namespace, Kind.TS, key), _BLOCKS, limit=1))
        return _decode(found.items[0])[:1] if found.items else None

    async def last(self, namespace: str, key: str) -> Points | None:
        """The last point, alone; None if there is none."""
        scan = RowScan(Place(namespace, Kind.TS, key), _BLOCKS, descending=True, limit=1)
        (found,) = await self._storage.read(scan)
        return _decode(found.items[0])[-1:] if found.items else None

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
        """Those of ``start, start + freq, … ≤ end`` (None: the last point) that have no point.

        ``counted`` is told how many there are while they grow, and may raise what ends that. An unknown series lacks
        the whole grid up to ``end``. Raises Problem ``invalid-parameter`` for a ``freq``
        that is not positive, ``answer-too-large`` for a grid or an answer beyond the limit.
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
        """Whether :meth:`missing` would find nothing; reads no further than the first gap."""
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
                place, _BLOCKS, high=sort_key(high), descending=True, limit=blocks, bytes_max=_PAGE_BYTES_MAX
            )
            found: Slice[Row]
            (found,) = await self._storage.read_in_turn(scan)
            decoded, more = _decoded(found)
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
        """The points from ``low`` on, to ``high`` at most, of at most ``blocks`` blocks and the one ``low`` is in."""
        # Two reads of one snapshot: if the block that ``low`` falls into is large, the page still gets further.
        floor: Slice[Row]
        found: Slice[Row]
        floor, found = await self._storage.read_in_turn(
            RowScan(place, _BLOCKS, low=sort_key(low), high=sort_key(low), floor=True, limit=1),
            RowScan(place, _BLOCKS, low=sort_key(low), high=sort_key(high), limit=blocks, bytes_max=_PAGE_BYTES_MAX),
        )
        if floor.items and floor.items[:1] != found.items[:1]:
            found = Slice(floor.items + found.items, found.more)
        decoded, more = _decoded(found)
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
            end = _meta(head).last
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
            # Where far more is absent than may be, the grid is not gone through.
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

    # Last, for below it the name means this method.

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
        metas = ((key, _meta(head)) for key, head in page.items)
        return Page([SeriesInfo(key, meta.count, meta.first, meta.last) for key, meta in metas], page.cursor)


# --- plans -------------------------------------------------------------------------------------------------


def _check_within(points: Points, stretch: Stretch) -> None:
    """Raise ``invalid-body`` for points of which the condition says nothing."""
    timestamps = points.timestamps
    if points and (
        (stretch.start is not None and timestamps[0] < stretch.start)
        or (stretch.end is not None and timestamps[-1] > stretch.end)
    ):
        raise Problem("invalid-body", "a point lies outside the range from start to end of If-Match")


def _check_unchanged(place: Place, stretch: Stretch, limits: Limits) -> Generator[Query, list[Any], None]:
    """Raise ``precondition-failed`` unless the stored points of the stretch have one of its digests."""
    low = TIMESTAMP_MIN if stretch.start is None else stretch.start
    high = TIMESTAMP_MAX if stretch.end is None else stretch.end
    parts: list[Points] = []
    count = size = 0
    scan = RowScan(place, _BLOCKS, sort_key(low), sort_key(high), floor=True, bytes_max=_PAGE_BYTES_MAX)
    more = low <= high
    while more:
        found: Slice[Row]
        (found,) = yield (scan,)
        for part in (between(_decode(row), low, high) for row in found.items):
            parts.append(part)
            count, size = count + len(part), size + part.size
            # Every other writer waits for this.
            if count > limits.points_per_call_max or size > limits.body_bytes_max:
                detail = "the range from start to end has more points than one call may have: make it shorter"
                raise Problem("batch-too-large", detail, limit=limits.points_per_call_max)
        more = found.more
        if more:
            scan = scan._replace(low=found.items[-1].sort + b"\0", floor=False)
    if digest(concatenate(parts)) not in stretch.digests:
        detail = "the points from start to end have another digest: read them again and decide again"
        raise Problem("precondition-failed", detail)


def _affected(place: Place, timestamps: array[int]) -> Generator[Query, list[Any], list[_Affected]]:
    """The stored blocks that new points with these ascending timestamps fall into. There is at least one block.

    Looks up some of the points, all at once. Each finds the block that it falls into, which settles its neighbours too;
    the next turn looks into the gaps that are left. A turn may look up four times as many as the one before, but
    no more than there should be blocks by what that one found. So a block that is not needed is never read, one
    that is needed is seldom read twice, and points that lie far apart take few turns.
    """
    found: dict[bytes, _Affected] = {}
    gaps = [_Gap(range(len(timestamps)), None)]
    unsettled = len(timestamps)
    points_per_lookup = unsettled
    lookups_max = 1
    while gaps:
        stride = max(-(-unsettled // lookups_max), points_per_lookup)
        # The last point of a gap settles the most: all points before it, down to where its block begins.
        lookups = [(gap, gap.points[::-1][::stride][::-1]) for gap in gaps]
        scans: list[Slice[Row]] = yield tuple(
            _lookup(place, timestamps[index], gap.before) for gap, indices in lookups for index in indices
        )
        unsettled_before, results = unsettled, iter(scans)
        gaps = [left for gap, indices in lookups for left in _settle(timestamps, gap, indices, results, found)]
        unsettled = sum(len(gap.points) for gap in gaps)
        points_per_lookup = (unsettled_before - unsettled) // len(scans)
        lookups_max = min(4 * lookups_max, _LOOKUPS_MAX)
    return sorted(found.values(), key=lambda affected: affected.start)


def _lookup(place: Place, t: int, before: Row | None) -> RowScan:
    """Finds the block that ``t`` falls into, or nothing if that is ``before``, which begins before ``t``."""
    if before is None:
        return RowScan(place, _BLOCKS, low=sort_key(t), floor=True, limit=1)
    return RowScan(place, _BLOCKS, low=before.sort + b"\0", high=sort_key(t), descending=True, limit=1)


def _settle(
    timestamps: array[int], gap: _Gap, indices: range, results: Iterator[Slice[Row]], found: dict[bytes, _Affected]
) -> list[_Gap]:
    """Enter into ``found`` which points of a gap fall into the blocks that some of them fall into; takes their results.

    The gap's last point is among these. Returns the gaps that are left within it.
    """
    left: list[_Gap] = []
    settled, before = gap.points.start, gap.before
    for index, end in zip(indices, [*indices[1:], gap.points.stop], strict=True):
        row = next(iter(next(results).items), before)
        if row is None:
            raise _corrupt()
        first = from_sort_key(row.sort)
        # What lies between two points of one block falls into it too, as does all before the first block.
        if (before is not None and row.sort == before.sort) or first > timestamps[index]:
            start = settled
        else:
            start = bisect_left(timestamps, first, settled, index)
            left.append(_Gap(range(settled, start), before))
        stop = index + 1
        if stop < end:
            # Where the next block begins is not known, but where this one ends.
            stop = bisect_right(timestamps, _decode(row).timestamps[-1], stop, end)
        known = found.get(row.sort, _Affected(row, start, stop))
        found[row.sort] = known._replace(start=min(known.start, start), stop=max(known.stop, stop))
        settled, before = stop, row
    return [gap for gap in left if gap.points]


def _removal(place: Place, meta: _Meta, low: int, high: int) -> Generator[Query, list[Any], Commit[int]]:
    """Delete the points from ``low`` to ``high``, which lie within the series and are not all of it."""
    before: Slice[Row]
    inside: Slice[Row]
    after: Slice[Row]
    before_low = sort_key(low - 1) if low > TIMESTAMP_MIN else b""
    inside_scan = RowScan(place, _BLOCKS, low=sort_key(low), high=sort_key(high), bytes_max=_PAGE_BYTES_MAX)
    before, inside, after = yield (
        # The block that may reach into what is deleted and the one before it.
        RowScan(place, _BLOCKS, high=before_low, descending=True, limit=2),
        inside_scan,
        RowScan(place, _BLOCKS, low=sort_key(high) + b"\0", limit=1),
    )
    earlier = [_decode(row) for row in reversed(before.items)]
    reaching = earlier.pop() if earlier else Points.empty()
    kept = [reaching[: bisect_left(reaching.timestamps, low)], reaching[bisect_right(reaching.timestamps, high) :]]
    removed = len(reaching) - len(kept[0]) - len(kept[1])
    while inside.items:
        removed += sum(map(_count, inside.items))
        row = inside.items[-1]
        if not inside.more:
            block = _decode(row)
            kept.append(block[bisect_right(block.timestamps, high) :])
            removed -= len(kept[-1])
            break
        (inside,) = yield (inside_scan._replace(low=row.sort + b"\0"),)
    if not removed:
        return Commit((), 0)
    # Joined with its neighbours, what is left of a block does not stay behind as a tiny one.
    blocks = list(packed([*earlier, *kept, *map(_decode, after.items)]))
    meta = _Meta(
        meta.count - removed,
        blocks[0].timestamps[0] if low == meta.first else meta.first,
        blocks[-1].timestamps[-1] if high == meta.last else meta.last,
    )
    writes: list[Write] = [DeleteRows(place, _BLOCKS, sort_key(low), sort_key(high))]
    writes += _rows_instead(place, [*before.items, *after.items], _rows_of(blocks))
    writes.append(_put_head(place, meta))
    return Commit(writes, removed)


def _rows_of(blocks: Iterable[Points]) -> list[Row]:
    return [Row(sort_key(block.timestamps[0]), encode(block)) for block in blocks]


def _rows_instead(place: Place, old: list[Row], new: list[Row]) -> list[Write]:
    """The writes that put new rows in the place of old ones; a row that stays as it is costs none."""
    sorts = {row.sort for row in new}
    writes: list[Write] = [DeleteRow(place, _BLOCKS, row.sort) for row in old if row.sort not in sorts]
    writes += (PutRow(place, _BLOCKS, row) for row in new if row not in old)
    return writes


def _check_freq(freq: int) -> None:
    if freq <= 0:
        raise Problem("invalid-parameter", "freq is the distance of two timestamps: 1 or more", parameter="freq")


def _next_blocks(blocks: int, skipped: int, span: int) -> int:
    """How many blocks the next page reads: more and more, unless the reader skips blocks."""
    return min(4 * blocks, _PAGE_BLOCKS_MAX) if skipped <= span else _PAGE_BLOCKS_MIN


def _put_head(place: Place, meta: _Meta) -> PutHead:
    return PutHead(place, Head(_ENCODE_META(meta)))


def _meta(head: Head) -> _Meta:
    try:
        return _DECODE_META(head.meta)
    except msgspec.DecodeError:
        raise _corrupt() from None


_ENCODE_META: Final = msgspec.msgpack.Encoder().encode
_DECODE_META: Final = msgspec.msgpack.Decoder(_Meta).decode


def _decode(row: Row) -> Points:
    try:
        points = decode(row.value, bytes_max=2**32, own=True)
    except InvalidPoints:
        raise _corrupt() from None
    if not points:
        raise _corrupt()
    return points


def _decoded(found: Slice[Row]) -> tuple[list[Points], bool]:
    """The points of the first rows, at least one, and whether there are more. Few bytes may decompress to very many."""
    decoded: list[Points] = []
    size = 0
    for row in found.items:
        if size >= _PAGE_DECODED_BYTES_MAX:
            return decoded, True
        decoded.append(_decode(row))
        size += decoded[-1].size
    return decoded, found.more


def _count(row: Row) -> int:
    try:
        return count_of(row.value)
    except InvalidPoints:
        raise _corrupt() from None


def _corrupt() -> Problem:
    return Problem("backend-corrupt", "the blocks of a time series cannot be read: restore a backup")
