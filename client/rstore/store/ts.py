"""Time series: the operations."""

from __future__ import annotations

import functools
from typing import Any, Literal

from rstore import calls
from rstore.calls import SPENDING, Steps
from rstore.calls.arguments import Column, Count, Name, Step, check_int
from rstore.core.errors import StoreRequestError
from rstore.core.points import Points, encode_stream
from rstore.sealing import PointContext
from rstore.store.base import Base, TransportT, contradiction, part_of_a_write
from rstore.store.operation import operation

__all__ = ["TimeSeries"]


class TimeSeries(Base[TransportT]):
    """The operations on time series."""

    @operation
    def range(
        self,
        key: Name,
        start: int | None = None,
        *,
        n: Count | None = None,
        end: int | None = None,
        freq: Step | None = None,
    ) -> Steps[list[tuple[int, Any]]]:
        """The points from ``start`` to ``end``, both inclusive, in order of time; an unknown series has none.

        ``freq`` keeps the first point and then each next one at least ``freq`` after the last kept; ``n`` is how many
        to return at most, counted from the first kept.

        >>> store.extend("temperature", (0, 20.5), (60, 20.7), (120, 21.0))
        >>> store.range("temperature", 60)
        [(60, 20.7), (120, 21.0)]
        >>> store.range("temperature", freq=100)
        [(0, 20.5), (120, 21.0)]
        """
        timestamps, values = yield from self._columns(key, start, end, n, freq)
        return list(zip(timestamps, values, strict=True))

    @operation
    def range_columns(
        self,
        key: Name,
        start: int | None = None,
        *,
        n: Count | None = None,
        end: int | None = None,
        freq: Step | None = None,
    ) -> Steps[tuple[list[int], list[Any]]]:
        """As :meth:`range`, but a list of the timestamps and a list of the values.

        >>> store.extend("humidity", (0, 61.0), (60, 60.5))
        >>> store.range_columns("humidity")
        ([0, 60], [61.0, 60.5])
        """
        return (yield from self._columns(key, start, end, n, freq))

    @operation
    def first(self, key: Name) -> Steps[tuple[int, Any] | None]:
        """The first point ``(t, value)``, or None if there is none."""
        return (yield from self._end_point(key, "first"))

    @operation
    def last(self, key: Name) -> Steps[tuple[int, Any] | None]:
        """The last point ``(t, value)``, or None if there is none."""
        return (yield from self._end_point(key, "last"))

    @operation
    def missing(self, key: Name, start: int, end: int | None = None, freq: Step | None = None) -> Steps[list[int]]:
        """Those timestamps out of ``start, start+freq, …`` up to ``end`` that have no point.

        ``end`` defaults to the last point; ``freq`` to ``_freq`` of the class, and one of them is needed.

        >>> store.extend("pressure", (0, 1013.2), (60, 1013.1), (180, 1012.9))
        >>> store.missing("pressure", 0, 240, freq=60)
        [120, 240]
        """
        grid = self._grid(start, end, freq)
        return (yield from calls.ts.missing(self.namespace, key, *grid))

    @operation
    def iscomplete(self, key: Name, start: int, end: int | None = None, freq: Step | None = None) -> Steps[bool]:
        """Whether no timestamp is :meth:`missing`."""
        grid = self._grid(start, end, freq)
        return (yield from calls.ts.complete(self.namespace, key, *grid))

    @operation
    def extend(self, key: Name, *points: tuple[int, Any]) -> Steps[None]:
        """Add points ``(t, value)`` in any order, all or none; a point replaces the one at its timestamp.

        A timestamp is an int64. Of two equal timestamps the last wins.
        """
        self._check_writable()
        _check_pairs(points)
        yield from self._extended(key, self._codec.dump_points([t for t, _ in points], [value for _, value in points]))

    @operation
    def extend_columns(self, key: Name, timestamps: Column, values: Column) -> Steps[None]:
        """As :meth:`extend`, but with the timestamps and the values each as a column.

        A column is a list, an ``array.array``, an array of numpy, or any other iterable. Both have the same length.

        >>> store.extend_columns("wind", [0, 60, 120], [4.5, 5.0, 4.0])
        >>> store.last("wind")
        (120, 4.0)
        """
        self._check_writable()
        yield from self._extended(key, self._codec.dump_points(timestamps, values, "timestamps"))

    @operation
    def remove(self, *keys: Name, start: int | None = None, end: int | None = None) -> Steps[None]:
        """Remove the points from ``start`` to ``end``, both inclusive; without them all, and so the series."""
        self._check_writable()
        for number, key in enumerate(keys):
            with part_of_a_write(number):
                yield from calls.ts.remove(self.namespace, key, start, end)

    @operation
    def timeseries(self) -> Steps[list[str]]:
        """The keys of all time series, in order."""
        return (yield from self._names(functools.partial(calls.ts.list_keys, self.namespace)))

    def _frequency(self, freq: int | None) -> int | None:
        if freq is None and self._freq is not None:
            return check_int(self._freq, "_freq of the class", 1)
        return freq

    def _grid(self, start: int, end: int | None, freq: int | None) -> tuple[int, int | None, int]:
        step = self._frequency(freq)
        if step is None:
            raise StoreRequestError("freq is needed, here or as _freq of the class", code="invalid-parameter")
        return start, end, step

    def _end_point(self, key: str, which: Literal["first", "last"]) -> Steps[tuple[int, Any] | None]:
        found = yield from calls.ts.end_point(self.namespace, key, which)
        if found is None:
            return None
        t, value = found
        return t, self._codec.restore(value, PointContext(self.namespace, key, t), (yield SPENDING))

    def _columns(
        self, key: str, start: int | None, end: int | None, n: int | None, freq: int | None
    ) -> Steps[tuple[list[int], list[Any]]]:
        """The timestamps and the values of a range."""
        restore = functools.partial(self._codec.restore_points, self.namespace, key, spend=(yield SPENDING))
        step = self._frequency(freq)
        parts = yield from calls.ts.read(
            self.namespace,
            key,
            lambda points: [(points.timestamps.tolist(), restore(points))],
            start=start,
            end=end,
            n=n,
            freq=step,
        )
        if len(parts) == 1:
            return parts[0]
        return [t for times, _ in parts for t in times], [value for _, values in parts for value in values]

    def _extended(self, key: str, points: Points) -> Steps[None]:
        """Add dumped points. They are sealed here."""
        if not len(points):
            return
        frames = b"".join(encode_stream(self._codec.store_points(self.namespace, key, points)))
        taken = yield from calls.ts.extend(self.namespace, key, frames)
        if taken != len(points):
            raise contradiction(f"the service says it took {taken} of {len(points)} points")


def _check_pairs(points: tuple[Any, ...]) -> None:
    """Raise unless these are pairs. There may be a million, so only where one is wrong each is looked at."""
    if set(map(type, points)) <= {tuple, list} and set(map(len, points)) <= {2}:
        return
    for index, point in enumerate(points):
        wrong = "" if isinstance(point, tuple | list) else f"is of type {type(point).__name__}"
        if wrong or len(point) != 2:
            raise StoreRequestError(
                f"points are (timestamp, value) pairs; points[{index}] {wrong or f'has {len(point)} members'}",
                code="invalid-body",
            )
