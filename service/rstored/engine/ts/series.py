"""Time series: the operations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Mapping
from typing import Any, Final

from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.points import Cells, InvalidPoints, Points, checked, ordered
from rstored.backends.abc import Commit, DeleteRecord, Head, Kind, Place, Query, RowScan, Write
from rstored.engine.batching import Storage
from rstored.engine.blocks import into_blocks, rebuilt
from rstored.engine.listing import list_page
from rstored.engine.model import Page, SeriesInfo, Stretch
from rstored.engine.namespaces import ensure_namespace
from rstored.engine.once import Once, answers_of
from rstored.engine.ts.plans import affected_blocks, check_unchanged, check_within, removal_plan, rows_instead
from rstored.engine.ts.reading import absent_steps, ascending_parts, check_freq, descending_parts
from rstored.engine.ts.rows import (
    BLOCKS_LANE,
    CELL_COST_BYTES,
    Meta,
    count_of_row,
    decode_row,
    meta_of,
    put_head,
    rows_of,
)
from rstored.engine.values import points_problem
from rstored.limits import Limits
from rstored.problems import Problem
from rstored.threads import run_sized

_COUNT: Final = answers_of(int)


class TimeSeries:
    """The operations on time series. Namespaces and keys are already checked; timestamps are int64."""

    def __init__(self, storage: Storage, limits: Limits, clock: Callable[[], int]) -> None:
        """``clock`` gives POSIX milliseconds."""
        self._storage = storage
        self._limits = limits
        self._once = Once(storage, limits, clock)

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
            check_freq(freq)
        place = Place(namespace, Kind.TS, key)
        low = INT64_MIN if start is None else max(start, INT64_MIN)
        high = INT64_MAX if end is None else min(end, INT64_MAX)
        read = descending_parts if descending else ascending_parts
        return read(self._storage, place, low, high, n, freq)

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
        place = Place(namespace, Kind.TS, key)
        found = await absent_steps(self._storage, self._limits, place, start, end, freq, absent_max, counted)
        if found is None:
            raise Problem(
                "answer-too-large",
                f"more than {absent_max} timestamps are missing: ask for a shorter range or a larger freq",
                limit=absent_max,
            )
        return found

    async def iscomplete(self, namespace: str, key: str, *, start: int, end: int | None = None, freq: int) -> bool:
        """Whether :meth:`missing` would find nothing. It reads no further than the first gap."""
        place = Place(namespace, Kind.TS, key)
        return await absent_steps(self._storage, self._limits, place, start, end, freq, 0) is not None

    def _checked(self, points: Points) -> Points:
        limits = self._limits
        try:
            points = checked(points, value_bytes_max=limits.value_bytes_max, nesting_max=limits.nesting_max)
        except InvalidPoints as error:
            raise points_problem(error) from None
        return ordered(points.timestamps, points.values)

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
