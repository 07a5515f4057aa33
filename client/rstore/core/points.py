"""Points of a time series as columns.

:class:`Points` is a timestamp column and a value column. The value column is typed when every value is a finite
float or every value is an int64, so that a million numbers cost no Python work per point; anything else is
:class:`Cells`: an encoding, a length and the bytes of each value.
"""

from __future__ import annotations

import enum
import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain, islice, repeat
from operator import itemgetter
from typing import Any, Final, TypeAlias, overload

import msgspec

from rstore.core.columns import all_finite, is_ascending, little_endian
from rstore.core.encodings import (
    JSON_INTEGER_CHARACTERS_MAX,
    Encoding,
    InvalidJSON,
    NestingTooDeep,
    Value,
    check_numbers,
    parse_json,
    render_json,
)
from rstore.core.errors import beyond
from rstore.core.numeric import INT64_MAX, INT64_MIN, integer, plain_number

_NUMBERS: Final = frozenset({int, float})
_NO_NUMBERS: Final = frozenset({bool, str, bytes, list, dict, tuple, Value, type(None)})
_ENCODINGS: Final = tuple(Encoding)

_CHECKED_AT_ONCE: Final = 10_000


class InvalidPoints(ValueError):
    """Bytes or Python objects that are not points. The message says why, and never holds a value.

    ``code`` is a code of ``rstore.core.errors.PROBLEMS``. ``pointer`` is the JSON pointer of the wrong part, or None.
    """

    def __init__(self, message: str, *, code: str = "invalid-body", pointer: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.pointer = pointer


class Cells:
    """A column of values of any encoding: an encoding byte and a length for each, and their bytes end to end.

    Iterating gives :class:`~rstore.core.encodings.Value`.

    >>> cells = Cells.from_values([Value(Encoding.JSON, b'"a"'), Value(Encoding.SEALED, b"\\x01")])
    >>> list(cells[1:])
    [Value(encoding=<Encoding.SEALED: 3>, data=b'\\x01')]
    """

    __slots__ = ("_starts", "data", "encodings", "lengths")

    def __init__(self, encodings: bytes, lengths: array[int], data: bytes) -> None:
        self.encodings = encodings
        self.lengths = lengths
        self.data = data
        self._starts: array[int] | None = None

    @classmethod
    def from_values(cls, values: Iterable[Value]) -> Cells:
        """The column that holds these values, in order."""
        values = list(values)
        return cls._joined(bytes(map(itemgetter(0), values)), list(map(itemgetter(1), values)))

    @classmethod
    def from_json(cls, texts: list[bytes]) -> Cells:
        """The column whose values are these JSON texts."""
        return cls._joined(bytes(len(texts)), texts)

    @classmethod
    def _joined(cls, encodings: bytes, parts: list[bytes]) -> Cells:
        return cls(encodings, array("I", map(len, parts)), b"".join(parts))

    @property
    def starts(self) -> array[int]:
        """The position in ``data`` at which each value begins, and at last the length of ``data``."""
        if self._starts is None:
            self._starts = array("q", accumulate(self.lengths, initial=0))
        return self._starts

    def parts(self) -> Iterator[bytes]:
        """The bytes of each value."""
        starts = self.starts
        return map(self.data.__getitem__, map(slice, starts, islice(starts, 1, None)))

    def take(self, indices: list[int]) -> Cells:
        """The column of the values at these indices."""
        parts = list(self.parts())
        return self._joined(bytes(map(self.encodings.__getitem__, indices)), list(map(parts.__getitem__, indices)))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, part: slice) -> Cells:
        start, stop, step = part.indices(len(self))
        if step != 1:
            return self.take(list(range(start, stop, step)))
        stop = max(start, stop)
        data = self.data if stop - start == len(self) else self.data[self.starts[start] : self.starts[stop]]
        return Cells(self.encodings[start:stop], self.lengths[start:stop], data)

    def __iter__(self) -> Iterator[Value]:
        # ``tuple.__new__`` makes the named tuples without a Python frame for each.
        cells = zip(map(_ENCODINGS.__getitem__, self.encodings), self.parts(), strict=True)
        return map(tuple.__new__, repeat(Value), cells)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cells):
            return NotImplemented
        return self.encodings == other.encodings and self.lengths == other.lengths and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Cells({len(self)} values, {len(self.data)} bytes)"


Column: TypeAlias = "array[float] | array[int] | Cells"


class ColumnKind(enum.IntEnum):
    """What a column of values consists of. The numbers are those of a frame (``docs/points-format.md``)."""

    FLOATS = 0
    INTEGERS = 1
    CELLS = 2


class Points:
    """Points in time order: int64 ``timestamps``, strictly ascending, and one value for each in ``values``.

    ``values`` is an ``array('d')`` of finite floats, an ``array('q')`` of integers, or :class:`Cells`. Iterating gives
    ``(timestamp, value)``, so ``list(points)`` is a list of pairs. With Cells the values are
    :class:`~rstore.core.encodings.Value`. The constructor trusts its caller. If the columns may be out of order or
    invalid, use the ``from_`` methods, :func:`ordered` or :func:`decode`.

    >>> points = Points.from_pairs([(3, 1.5), (1, 0.5), (3, 2.5)])
    >>> list(points)
    [(1, 0.5), (3, 2.5)]
    >>> list(points[:1])
    [(1, 0.5)]
    """

    __slots__ = ("timestamps", "values")

    def __init__(self, timestamps: array[int], values: Column) -> None:
        self.timestamps = timestamps
        self.values = values

    @classmethod
    def empty(cls) -> Points:
        """No points."""
        return cls(array("q"), array("d"))

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[int, Any]], dump: Callable[[Any], Value] | None = None) -> Points:
        """Points from ``(timestamp, value)`` pairs in any order; the last of equal timestamps wins.

        Finite numbers (see :mod:`rstore.core.numeric`) become columns or JSON text. If any value is something
        else, ``dump`` turns each into a :class:`~rstore.core.encodings.Value`; without ``dump`` they must be Values.
        Raises :class:`InvalidPoints` for a timestamp that is not an integer within int64, and TypeError for a value
        that would need ``dump``.

        >>> list(Points.from_pairs([(1, True)], lambda value: Value(Encoding.JSON, b"true")))
        [(1, Value(encoding=<Encoding.JSON: 0>, data=b'true'))]
        """
        return cls.from_columns(*_unzipped(pairs), dump)

    @classmethod
    def from_columns(
        cls, timestamps: list[Any], values: list[Any] | Cells, dump: Callable[[Any], Value] | None = None
    ) -> Points:
        """Points from a column of timestamps and one of values, as :meth:`from_pairs` makes them from pairs.

        >>> list(Points.from_columns([2, 1], [20.5, 20.0]))
        [(1, 20.0), (2, 20.5)]
        """
        rows = _rows(timestamps, values, dump)
        return ordered(rows.timestamps, rows.values)

    @classmethod
    def from_values(cls, pairs: Iterable[tuple[int, Value]]) -> Points:
        """Points from ``(timestamp, Value)`` pairs in any order; the last of equal timestamps wins."""
        timestamps, values = _unzipped(pairs)
        return cls.from_columns(timestamps, Cells.from_values(values))

    @property
    def encodings(self) -> frozenset[Encoding]:
        """The encodings that occur. Numbers are JSON."""
        if isinstance(self.values, Cells):
            return frozenset(map(_ENCODINGS.__getitem__, set(self.values.encodings)))
        return frozenset({Encoding.JSON}) if self.timestamps else frozenset()

    @property
    def size(self) -> int:
        """Bytes of the value column."""
        return _size(self.values)

    def take(self, indices: list[int]) -> Points:
        """The points at these ascending indices."""
        values = self.values
        taken = values.take(indices) if isinstance(values, Cells) else _column(values, indices)
        return Points(array("q", map(self.timestamps.__getitem__, indices)), taken)

    @overload
    def __getitem__(self, part: slice) -> Points: ...
    @overload
    def __getitem__(self, part: int) -> tuple[int, Any]: ...
    def __getitem__(self, part: slice | int) -> Points | tuple[int, Any]:
        if isinstance(part, slice):
            if part.indices(len(self)) == (0, len(self), 1):
                return self
            return Points(self.timestamps[part], self.values[part])
        values = self.values
        value = values[part] if not isinstance(values, Cells) else next(iter(values[part : part + 1 or None]))
        return self.timestamps[part], value

    def __len__(self) -> int:
        return len(self.timestamps)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return zip(self.timestamps, self.values, strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Points):
            return NotImplemented
        mine, theirs = self.values, other.values
        if self.timestamps != other.timestamps or column_kind(mine) != column_kind(theirs):
            return False
        if isinstance(mine, Cells) or isinstance(theirs, Cells):
            return mine == theirs
        # Compared as bytes, 0.0 and -0.0 differ.
        return mine.tobytes() == theirs.tobytes()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Points({len(self)} {column_kind(self.values).name.lower()})"


def ordered(timestamps: array[int], values: Column) -> Points:
    """Points from columns in any order. They are sorted by timestamp, and the last of equal timestamps wins."""
    if is_ascending(timestamps):
        return Points(timestamps, values)
    index = dict(zip(timestamps, range(len(timestamps)), strict=True))
    kept = sorted(index)
    return Points(timestamps, values).take(list(map(index.__getitem__, kept)))


def unordered(pairs: Iterable[tuple[int, Any]], dump: Callable[[Any], Value] | None = None) -> Points:
    """As :meth:`Points.from_pairs`, but each pair stays in its place, and all pairs with equal timestamps stay.

    Only length, encodings and iteration of the result mean anything, and what :func:`concatenate`, :func:`checked` and
    :func:`ordered` make of it.
    """
    return _rows(*_unzipped(pairs), dump)


def concatenate(parts: Iterable[Points]) -> Points:
    """The points of the parts, one part after the other. Different kinds of columns become cells.

    It copies numbers part by part. If the parts are made one by one, only one of them is in memory beside the result.
    """
    parts = filter(len, parts)
    whole = next(parts, None)
    following = next(parts, None)
    if whole is None or following is None:
        return whole or Points.empty()
    # The parts themselves stay as they are.
    timestamps, columns = whole.timestamps[:], [whole.values[:]]
    while following is not None:
        timestamps.extend(following.timestamps)
        values, last = following.values, columns[-1]
        if isinstance(values, Cells) or column_kind(values) != column_kind(last):
            columns.append(values[:])
        else:
            last.extend(values)  # type: ignore[union-attr, arg-type]
        following = next(parts, None)
    return Points(timestamps, columns[0] if len(columns) == 1 else _joined_cells(columns))


def split(points: Points, *, points_max: int, bytes_max: int, start: int = 0) -> Iterator[Points]:
    """Cut points, from the one at index ``start`` on, into consecutive parts.

    Each has at most ``points_max`` points and ``bytes_max`` bytes of values. A single value that is larger than
    ``bytes_max`` is a part of its own.
    """
    values, total = points.values, len(points)
    while start < total:
        stop = start + points_max
        if isinstance(values, Cells):
            starts = values.starts
            stop = min(stop, bisect_right(starts, starts[start] + bytes_max) - 1)
        else:
            stop = min(stop, start + bytes_max // 8)
        stop = min(max(stop, start + 1), total)
        yield points if stop - start == total else points[start:stop]
        start = stop


def checked(points: Points, *, value_bytes_max: int | None = None, nesting_max: int = 128) -> Points:
    """The points to store: every JSON cell parses, and a number is the text of an int or a double.

    Raises :class:`InvalidPoints` for a cell that may not be stored, or is larger than the limit. Numbers in typed
    columns need no check.
    """
    if not isinstance(points.values, Cells):
        return points
    # As many Python objects as a part has points, not as all have: a cell may be a byte, and they may be millions.
    parts: list[Points] = []
    changed = False
    for part in split(points, points_max=_CHECKED_AT_ONCE, bytes_max=2**20):
        parts.append(_checked(part, value_bytes_max, nesting_max))
        changed = changed or parts[-1] is not part
    return concatenate(parts) if changed else points


def stored_text(text: bytes, *, nesting_max: int = 128) -> bytes:
    """The JSON text that a point keeps of this one. Raises :class:`~rstore.core.encodings.InvalidJSON`.

    A bare number is an int or a double, whatever its form and column. So it gets the text that an int or a double has,
    and a number that no double is near to is refused. Any other value keeps its text.

    >>> stored_text(b"12345678901234567.25"), stored_text(b'{"a": 1.50}')
    (b'1.2345678901234568e16', b'{"a": 1.50}')
    """
    value = parse_json(text, nesting_max=nesting_max)
    if type(value) not in _NUMBERS:
        return text
    if value == 0:
        check_numbers(text)
    return render_json(value)


def digest(points: Points) -> str:
    """SHA-256 of these points in hexadecimal. With it a reader asks whether these points are still the stored ones.

    It goes over their number (8 bytes), the timestamps (8 bytes each), the encodings (a byte each), the lengths (4
    bytes each), little-endian, and the data of the values. A number counts as its JSON text, whatever its column.

    >>> numbers, cells = Points.from_pairs([(1, 10)]), Points.from_values([(1, Value(Encoding.JSON, b"10"))])
    >>> digest(numbers) == digest(cells)
    True
    """
    cells = _as_cells(points.values)
    hashed = hashlib.sha256(len(points).to_bytes(8, "little"))
    for part in (little_endian(points.timestamps), cells.encodings, little_endian(cells.lengths), cells.data):
        hashed.update(part)
    return hashed.hexdigest()


def column_kind(column: Column) -> ColumnKind:
    if isinstance(column, Cells):
        return ColumnKind.CELLS
    return ColumnKind.FLOATS if column.typecode == "d" else ColumnKind.INTEGERS


def _checked(points: Points, value_bytes_max: int | None, nesting_max: int) -> Points:
    cells = points.values
    assert isinstance(cells, Cells)
    texts: list[bytes] = []
    for t, (encoding, data) in points:
        if value_bytes_max is not None and len(data) > value_bytes_max:
            raise InvalidPoints(
                beyond(f"the value at timestamp {t} has {len(data)} bytes", value_bytes_max),
                code="value-too-large",
            )
        try:
            texts.append(stored_text(data, nesting_max=nesting_max) if encoding is Encoding.JSON else data)
        except InvalidJSON as error:
            code = "nesting-too-deep" if isinstance(error, NestingTooDeep) else "invalid-value"
            raise InvalidPoints(f"the value at timestamp {t}: {error}", code=code) from None
    data = b"".join(texts)
    if data == cells.data:
        return points
    return Points(points.timestamps, Cells(cells.encodings, array("I", map(len, texts)), data))


def _rows(timestamps: list[Any], values: list[Any] | Cells, dump: Callable[[Any], Value] | None) -> Points:
    """The columns as the caller gives them, checked, but not in order."""
    times = _timestamps(timestamps)
    column: Column | None
    if isinstance(values, Cells):
        column = values
    else:
        column = _numbers(values)
        if column is None:
            if dump is not None:
                column = Cells.from_values(map(dump, values))
            elif set(map(type, values)) == {Value}:
                column = Cells.from_values(values)
            else:
                raise TypeError("values other than finite numbers need `dump` to encode them")
    if len(times) != len(column):
        raise InvalidPoints(f"there are {len(times)} timestamps for {len(column)} values; each value needs one")
    return Points(times, column)


def _unzipped(pairs: Iterable[tuple[int, Any]]) -> tuple[list[Any], list[Any]]:
    """The timestamps and the values of pairs."""
    pairs = pairs if isinstance(pairs, list) else list(pairs)
    try:
        if not set(map(len, pairs)) <= {2}:
            raise InvalidPoints("a point is a pair: (timestamp, value)")
        return list(map(itemgetter(0), pairs)), list(map(itemgetter(1), pairs))
    except (TypeError, KeyError):
        raise InvalidPoints("a point is a pair: (timestamp, value)") from None


def _timestamps(members: list[Any]) -> array[int]:
    """The column of these timestamps, checked."""
    if not set(map(type, members)) <= {int}:
        integers = list(map(integer, members))
        if None in integers:
            index = integers.index(None)
            message = f"a timestamp is an int, not {type(members[index]).__name__}"
            raise InvalidPoints(message, pointer=f"/points/{index}")
        members = integers
    try:
        return array("q", members)
    except OverflowError:
        index = next(i for i, t in enumerate(members) if not INT64_MIN <= t <= INT64_MAX)
        message = "a timestamp is a 64-bit signed integer, -2**63 to 2**63-1"
        raise InvalidPoints(message, pointer=f"/points/{index}") from None


def _numbers(values: list[Any]) -> Column | None:
    """The column of values that are all finite numbers; otherwise None. A bool is not a number here."""
    types = set(map(type, values))
    if not types <= _NUMBERS and types.isdisjoint(_NO_NUMBERS):
        values = list(map(plain_number, values))
        types = set(map(type, values))
    if types <= {float}:
        floats = array("d", values)
        return floats if all_finite(floats) else None
    if types == {int}:
        try:
            return array("q", values)
        except OverflowError:
            return _number_cells(values)
    return _number_cells(values) if types == {int, float} else None


def _number_cells(numbers: list[Any]) -> Cells | None:
    """The JSON texts of numbers. None if a number has none: it is not finite, or has too many digits."""
    try:
        text = msgspec.json.encode(numbers)[1:-1]
    except ValueError:
        return None
    texts = text.split(b",") if numbers else []
    if b"n" in text or max(map(len, texts), default=0) > JSON_INTEGER_CHARACTERS_MAX:
        return None
    return Cells.from_json(texts)


def _as_cells(column: Column) -> Cells:
    if isinstance(column, Cells):
        return column
    cells = _number_cells(column.tolist())
    assert cells is not None
    return cells


def _joined_cells(columns: list[Column]) -> Cells:
    """The columns end to end."""
    cells = list(map(_as_cells, columns))
    lengths = array("I", chain.from_iterable(column.lengths for column in cells))
    return Cells(b"".join(column.encodings for column in cells), lengths, b"".join(column.data for column in cells))


def _column(values: array[int] | array[float], indices: list[int]) -> Column:
    return array(values.typecode, map(values.__getitem__, indices))


def _size(column: Column) -> int:
    return len(column.data) if isinstance(column, Cells) else 8 * len(column)
