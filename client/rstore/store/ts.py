"""Time series: the operations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import chain
from typing import Any, Literal, TypeVar

from rstore import calls
from rstore.calls import SPENDING, Steps
from rstore.calls.arguments import ColumnLike, Count, Name, Step, check_int
from rstore.core.errors import StoreRequestError
from rstore.core.frames import encode_stream
from rstore.core.points import Points
from rstore.sealing import PointContext
from rstore.store.bare import BareStore, TransportT, contradiction, part_of_a_write
from rstore.store.operation import operation

T = TypeVar("T")


class TimeSeries(BareStore[TransportT]):
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
        """The points from ``start`` to ``end``, both inclusive, in order of time.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.
            start: The first timestamp, an int64 in the unit of the series. None: from the first point on.
            n: The greatest number of points to return, 0 or more. None: no bound.
            end: The last timestamp. None: up to the last point.
            freq: The least distance of two points, 1 or more. The first point is kept, and after it each next point
                that is at least ``freq`` after the last one kept. None: ``_freq`` of the class, or every point.

        Returns:
            A list of points ``(timestamp, value)``. It is empty for a series that does not exist.

        Raises:
            StoreDecryptionError: A value does not open with the keys of this store, or the store has none.
            StoreEncodingError: A value is a pickle of a type that is not harmless.

        Example:
            >>> store.extend("temperature", (0, 20.5), (60, 20.7), (120, 21.0))
            >>> store.range("temperature", 60)
            [(60, 20.7), (120, 21.0)]
            >>> store.range("temperature", freq=100)
            [(0, 20.5), (120, 21.0)]
        """
        return (
            yield from self._read(key, start, end, n, freq, lambda times, values: [*zip(times, values, strict=True)])
        )

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
        """The points of :meth:`range`, as a list of the timestamps and a list of the values.

        Args:
            key, start, n, end, freq: As in :meth:`range`.

        Returns:
            Two lists of the same length: the timestamps in order, and their values.

        Raises:
            StoreDecryptionError, StoreEncodingError: As :meth:`range`.

        Example:
            >>> store.extend("humidity", (0, 61.0), (60, 60.5))
            >>> store.range_columns("humidity")
            ([0, 60], [61.0, 60.5])
        """
        parts = yield from self._read(key, start, end, n, freq, lambda times, values: [(times, values)])
        if len(parts) == 1:
            return parts[0]
        timestamps, values = (
            chain.from_iterable(part[0] for part in parts),
            chain.from_iterable(part[1] for part in parts),
        )
        return [*timestamps], [*values]

    @operation
    def first(self, key: Name) -> Steps[tuple[int, Any] | None]:
        """The first point, or None if the series has none.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.

        Returns:
            The point ``(timestamp, value)``, or None.

        Raises:
            StoreDecryptionError, StoreEncodingError: As :meth:`range`.

        Example:
            >>> store.extend("temperature", (60, 20.7), (0, 20.5))
            >>> store.first("temperature")
            (0, 20.5)
        """
        return (yield from self._end_point(key, "first"))

    @operation
    def last(self, key: Name) -> Steps[tuple[int, Any] | None]:
        """The last point, or None if the series has none.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.

        Returns:
            The point ``(timestamp, value)``, or None.

        Raises:
            StoreDecryptionError, StoreEncodingError: As :meth:`range`.

        Example:
            >>> store.extend("temperature", (60, 20.7), (0, 20.5))
            >>> store.last("temperature")
            (60, 20.7)
        """
        return (yield from self._end_point(key, "last"))

    @operation
    def missing(self, key: Name, start: int, end: int | None = None, freq: Step | None = None) -> Steps[list[int]]:
        """Those timestamps of the grid ``start, start+freq, …`` that have no point.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.
            start: The first timestamp of the grid, an int64.
            end: The last timestamp that the grid may have. None: that of the last point.
            freq: The step of the grid, 1 or more. None: ``_freq`` of the class.

        Returns:
            A list of the timestamps, in order.

        Raises:
            StoreRequestError: There is neither ``freq`` nor a ``_freq`` of the class.
            StoreLimitError: The grid has more steps than the service allows, 10,000,000 by default.

        Example:
            >>> store.extend("pressure", (0, 1013.2), (60, 1013.1), (180, 1012.9))
            >>> store.missing("pressure", 0, 240, freq=60)
            [120, 240]
        """
        grid = self._grid(start, end, freq)
        return (yield from calls.ts.missing(self.namespace, key, *grid))

    @operation
    def iscomplete(self, key: Name, start: int, end: int | None = None, freq: Step | None = None) -> Steps[bool]:
        """Whether every timestamp of the grid of :meth:`missing` has a point.

        Args:
            key, start, end, freq: As in :meth:`missing`.

        Returns:
            True or False.

        Raises:
            StoreRequestError, StoreLimitError: As :meth:`missing`.

        Example:
            >>> store.extend("pressure", (0, 1013.2), (60, 1013.1))
            >>> store.iscomplete("pressure", 0, freq=60), store.iscomplete("pressure", 0, freq=30)
            (True, False)
        """
        grid = self._grid(start, end, freq)
        return (yield from calls.ts.complete(self.namespace, key, *grid))

    @operation
    def extend(self, key: Name, *points: tuple[int, Any]) -> Steps[None]:
        """Add points in any order, all or none. A point replaces the one at its timestamp.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.
            *points: Pairs ``(timestamp, value)``. A timestamp is an int64 in a unit of your choice. A value is plain
                JSON data, ``bytes``, or an object of another harmless type. Of two equal timestamps the last wins.

        Raises:
            FrozenStoreError: The store is frozen.
            StoreEncodingError: A value cannot be stored. Nothing was stored.
            StoreLimitError: There are more points than the service takes in one call, 4,000,000 by default, or they
                are too large. Nothing was stored.

        Example:
            >>> store.extend("temperature", (60, 20.7), (0, 20.5), (60, 20.9))
            >>> store.range("temperature")
            [(0, 20.5), (60, 20.9)]
        """
        self._check_writable()
        _check_pairs(points)
        yield from self._extended(key, self._codec.dump_points([t for t, _ in points], [value for _, value in points]))

    @operation
    def extend_columns(self, key: Name, timestamps: ColumnLike, values: ColumnLike) -> Steps[None]:
        """Add points as :meth:`extend` does, given as a column of timestamps and one of values.

        Args:
            key: The key, 1 to 512 bytes of UTF-8 without NUL.
            timestamps: A list, an ``array.array``, an array of numpy, or another iterable of int64.
            values: As many values, in such a column too.

        Raises:
            FrozenStoreError, StoreEncodingError, StoreLimitError: As :meth:`extend`.
            StoreRequestError: The columns differ in length. Nothing was stored.

        Example:
            >>> store.extend_columns("wind", [0, 60, 120], [4.5, 5.0, 4.0])
            >>> store.last("wind")
            (120, 4.0)
        """
        self._check_writable()
        yield from self._extended(key, self._codec.dump_points(timestamps, values, "timestamps"))

    @operation
    def remove(self, *keys: Name, start: int | None = None, end: int | None = None) -> Steps[None]:
        """Remove the points of series from ``start`` to ``end``, both inclusive.

        A series without points does not exist. A key that is not there does no harm.

        Args:
            *keys: The keys, each 1 to 512 bytes of UTF-8 without NUL.
            start: The first timestamp, an int64. None: from the first point on.
            end: The last timestamp. None: up to the last point.

        Raises:
            FrozenStoreError: The store is frozen.
            StoreError: The service failed. If ``outcome_unknown`` of the error is True, some points may be removed.

        Example:
            >>> store.extend("temperature", (0, 20.5), (60, 20.7))
            >>> store.remove("temperature", end=30)
            >>> store.range("temperature")
            [(60, 20.7)]
        """
        self._check_writable()
        for number, key in enumerate(keys):
            with part_of_a_write(number):
                yield from calls.ts.remove(self.namespace, key, start, end)

    @operation
    def timeseries(self) -> Steps[list[str]]:
        """The keys of all time series, in order.

        Returns:
            A list of the keys.

        Example:
            >>> store.extend("wind", (0, 4.5))
            >>> store.extend("rain", (0, 0))
            >>> store.timeseries()
            ['rain', 'wind']
        """
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

    def _read(
        self,
        key: str,
        start: int | None,
        end: int | None,
        n: int | None,
        freq: int | None,
        joined: Callable[[list[int], list[Any]], list[T]],
    ) -> Steps[list[T]]:
        """A range. ``joined`` makes a list of the timestamps and the values of each part as it arrives."""
        restore = functools.partial(self._codec.restore_points, self.namespace, key, spend=(yield SPENDING))

        def unpacked(points: Points) -> list[T]:
            return joined(points.timestamps.tolist(), restore(points))

        step = self._frequency(freq)
        return (yield from calls.ts.read(self.namespace, key, unpacked, start=start, end=end, n=n, freq=step))

    def _extended(self, key: str, points: Points) -> Steps[None]:
        """Seal dumped points if there is a key, and add them."""
        if not len(points):
            return
        frames = b"".join(encode_stream(self._codec.store_points(self.namespace, key, points)))
        taken = yield from calls.ts.extend(self.namespace, key, frames)
        if taken != len(points):
            raise contradiction(f"the service says it took {taken} of {len(points)} points")


def _check_pairs(points: tuple[Any, ...]) -> None:
    """Raise unless these are pairs. There may be a million, so each is looked at only if one of them is wrong."""
    if set(map(type, points)) <= {tuple, list} and set(map(len, points)) <= {2}:
        return
    for index, point in enumerate(points):
        wrong = "" if isinstance(point, tuple | list) else f"is of type {type(point).__name__}"
        if wrong or len(point) != 2:
            raise StoreRequestError(
                f"points are (timestamp, value) pairs; points[{index}] {wrong or f'has {len(point)} members'}",
                code="invalid-body",
            )
