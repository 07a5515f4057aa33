"""Points in files: CSV here, NDJSON and JSON in :mod:`rstore.cli.json_rows`, read part by part.

Every row becomes a point, or is skipped if ``missing`` has its value, or raises :class:`BadRow` with its line.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from rstore.cli.json_rows import Part, Rows, json_parts, ndjson_parts
from rstore.cli.lines import LINE_BYTES_MAX, BadRow, Readable, as_utf8, line_text, lines_together
from rstore.cli.times import Reader, UnusableTime
from rstore.core.encodings import InvalidJSON, on_one_line, parse_json
from rstore.core.point_parsing import parse_rows
from rstore.core.point_rows import CSV_HEADER, Form
from rstore.core.points import InvalidPoints, Points, checked, ordered

_DELIMITERS: Final = {",": "comma", ";": "semicolon", "\t": "tab"}
_ENCODED_HEADER: Final = CSV_HEADER.split(",")
_BEGINS_AS_NUMBER: Final = re.compile(r"[+-]?\.?[0-9]")
_NOT_OF_NUMBERS: Final = (b'"', b"[", b"{")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How to read a CSV table. Columns have names, or numbers from 1. None: the first record decides."""

    time: Reader
    integers: bool
    header: bool | None = None
    delimiter: str | None = None
    quote: str = '"'
    escape: str | None = None
    time_column: str | None = None
    value_column: str | None = None
    missing: frozenset[str] = frozenset()


def read_points(file: Readable, form: Form, layout: Layout, encoding: str = "utf-8") -> Iterator[Part]:
    """The points of a file, many at a time. Raises :class:`BadRow` after the points of all rows before it.

    A byte order mark overrules ``encoding``, which is a name that Python knows.
    """
    blocks = lines_together(as_utf8(file, encoding))
    if form is Form.CSV:
        return _csv_parts(blocks, layout)
    return json_parts(blocks) if form is Form.JSON else ndjson_parts(blocks)


class _Lines:
    """The lines of blocks, one by one, and how many lines it has returned."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._left: deque[bytes] = deque()
        self._begun: list[bytes] | None = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        """The next line, from the next block if this one is used up: a quoted field may go on there."""
        while not self._left:
            self._left.extend(next(self._blocks).splitlines(keepends=True))
        self.number += 1
        line = self._left.popleft()
        if self._begun is not None:
            self._begun.append(line)
        return line_text(line, self.number)

    def fill(self) -> bool:
        """Whether there is another line. If so, it is then at hand."""
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return False
            self._left.extend(block.splitlines(keepends=True))
        return True

    def begin(self, *, again: bool) -> None:
        """Begin the rows: return the lines that were read so far ``again``, or not."""
        if again and self._begun:
            self._left.extendleft(reversed(self._begun))
            self.number -= len(self._begun)
        self._begun = None

    @property
    def at_hand(self) -> deque[bytes]:
        """The lines that are left of the current block."""
        return self._left

    def skip(self) -> None:
        """Leave out the rest of the current block."""
        self.number += len(self._left)
        self._left.clear()


class _Columns(NamedTuple):
    """The positions of the fields in a record. ``width`` is how many fields may hold something."""

    time: int
    value: int
    encoding: int | None
    width: int


def _csv_parts(blocks: Iterator[bytes], layout: Layout) -> Iterator[Part]:
    csv.field_size_limit(LINE_BYTES_MAX)
    lines = _Lines(blocks)
    if not lines.fill():
        return
    while not lines.at_hand[0].strip(b" \t\r\n"):
        next(lines)
        if not lines.fill():
            return
    first = lines.number + 1
    delimiter = layout.delimiter or _delimiter(line_text(lines.at_hand[0], first), layout.quote, first)
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        quotechar=layout.quote,
        escapechar=layout.escape,
        skipinitialspace=True,
        strict=True,
    )
    record, first = _record(reader, lines)
    columns = _columns(record, layout, first)
    is_header = _is_header(record, columns, layout, first)
    lines.begin(again=not is_header)
    if is_header:
        columns = _named_columns(record, columns, layout, first)
    quick = _quick(layout, columns, delimiter)
    while lines.fill():
        if quick is not None:
            try:
                points, rows = quick(b"".join(lines.at_hand))
            except InvalidPoints:
                pass  # Row by row it turns out which row is wrong, or only unusual.
            else:
                start = lines.number + 1
                lines.skip()
                yield Part(points, start, lines.number, rows)
                continue
        found = Rows()
        bad: BadRow | None = None
        try:
            while lines.at_hand:
                _add(found, *_record(reader, lines), columns, layout)
        except BadRow as error:
            bad = error
        found.last = lines.number
        yield from found.part()
        if bad is not None:
            raise bad


def _record(reader: Iterator[list[str]], lines: _Lines) -> tuple[list[str], int]:
    """The next record, and the line on which it begins. The last record of a file may be empty."""
    line = lines.number + 1
    try:
        return next(reader), line
    except StopIteration:
        return [], line
    except csv.Error as error:
        reason = str(error)
        if "unexpected end" in reason:
            reason = "a quote that is opened there, or the field, does not end"
        elif "expected after" in reason:
            reason = "something follows the quote that ends a field"
        raise BadRow(line, f"malformed CSV: {reason}") from None


def _delimiter(line: str, quote: str, number: int) -> str:
    """Comma, semicolon or tab: the one that is in the first line, outside of quotes."""
    mark = re.escape(quote)
    bare = re.sub(f"{mark}[^{mark}]*({mark}|\\Z)", "", line)
    found = [delimiter for delimiter in _DELIMITERS if delimiter in bare]
    if len(found) > 1:
        names = " or ".join(_DELIMITERS[delimiter] for delimiter in found)
        raise BadRow(number, f"fields may be separated by {names}; say which with --delimiter")
    return found[0] if found else ","


def _columns(record: list[str], layout: Layout, line: int) -> _Columns:
    """The columns that the layout gives as numbers. The header finds those that it gives as names."""
    counted = [_number(column) for column in (layout.time_column, layout.value_column)]
    time = 0 if counted[0] is None else counted[0]
    value = (0 if time == 1 else 1) if counted[1] is None else counted[1]
    if time > 1 and layout.value_column is None:
        raise BadRow(line, "say with --column which column has the values")
    return _Columns(time, value, None, max(len(record), time + 1, value + 1) if layout.value_column else 2)


def _number(column: str | None) -> int | None:
    return int(column) - 1 if column is not None and column.isascii() and column.isdecimal() else None


def _is_header(record: list[str], columns: _Columns, layout: Layout, line: int) -> bool:
    if layout.header is not None:
        return layout.header
    if any(column is not None and _number(column) is None for column in (layout.time_column, layout.value_column)):
        return True
    time, value = _field(record, columns.time), _field(record, columns.value)
    if len(record) < 2:
        raise BadRow(line, "it has one field only; say with --delimiter what separates the fields")
    try:
        layout.time(time)
    except UnusableTime:
        return False
    except ValueError as error:
        if not value or _is_json(value) or value in layout.missing or _BEGINS_AS_NUMBER.match(time):
            # This may be a row with a mistake in its time. As a header it would be lost.
            raise BadRow(line, f"{error}; if this line is a header, say --header") from None
        return True
    return False


def _named_columns(header: list[str], columns: _Columns, layout: Layout, line: int) -> _Columns:
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    if layout.time_column is None and layout.value_column is None:
        if names == _ENCODED_HEADER:
            return _Columns(0, 1, 2, 3)
        if len(names) > 2:
            raise BadRow(line, f"the table has {len(names)} columns; say which to take with --column: {_listed(names)}")
        return columns

    def position(column: str | None, counted: int) -> int:
        if column is None or _number(column) is not None:
            return counted
        if names.count(column) != 1:
            reason = "no column" if column not in names else "more than one column"
            raise BadRow(line, f"there is {reason} {column!r}; there are {_listed(names)}")
        return names.index(column)

    time, value = position(layout.time_column, columns.time), columns.value
    if layout.value_column is None:
        if len(names) > 2:
            raise BadRow(line, f"the table has {len(names)} columns; say which to take with --column: {_listed(names)}")
        value = 0 if time == 1 else 1
    value = position(layout.value_column, value)
    if time == value:
        raise BadRow(line, "the times and the values are said to stand in one column")
    return _Columns(time, value, None, max(len(names), time + 1, value + 1))


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")


def _field(record: list[str], position: int) -> str:
    return record[position].strip() if position < len(record) else ""


def _is_json(text: str) -> bool:
    try:
        parse_json(text.encode())
    except InvalidJSON:
        return False
    return True


def _add(found: Rows, record: list[str], line: int, columns: _Columns, layout: Layout) -> None:
    """Add a record as a row, or count it if it has no value. A record of blanks is a blank line."""
    if not any(map(str.strip, record)):
        return
    if any(map(str.strip, record[columns.width :])):
        filled = max(index for index, field in enumerate(record, 1) if field.strip())
        remedy = "" if layout.value_column else "; if the table has more columns, say which to take with --column"
        raise BadRow(line, f"it has {filled} fields, and {columns.width} are expected{remedy}")
    try:
        t = layout.time(_field(record, columns.time))
    except ValueError as error:
        raise BadRow(line, str(error)) from None
    value = _field(record, columns.value)
    encoding = "" if columns.encoding is None else _field(record, columns.encoding)
    if encoding not in ("", "json"):
        found.add(line, msgspec.json.encode([t, value, encoding]))
        return
    if value in layout.missing:
        found.skipped.append(line)
        return
    if not value:
        raise BadRow(line, "there is no value; --na '' skips such rows")
    text = value.encode()
    try:
        parse_json(text)
    except InvalidJSON as error:
        hint = " (text needs quotes of its own, as in JSON; --na skips such rows)" if value[:1].isalpha() else ""
        raise BadRow(line, f"the value is {error}{hint}") from None
    found.add(line, b"[%d,%b]" % (t, on_one_line(text)))


def _quick(layout: Layout, columns: _Columns, delimiter: str) -> Callable[[bytes], tuple[Points, int]] | None:
    """A quick reader of blocks that hold only integers and numbers. It raises InvalidPoints for other blocks."""
    if not layout.integers or columns not in (_Columns(0, 1, None, 2), _Columns(0, 1, 2, 3)):
        return None
    header = (CSV_HEADER if columns.encoding else "timestamp,value").encode() + b"\n"
    missing = [text.encode() for text in layout.missing if text]
    marks = [mark.encode() for mark in (layout.quote, layout.escape or '"')]

    def read(block: bytes) -> tuple[Points, int]:
        if any(mark in block for mark in (*marks, *missing, *_NOT_OF_NUMBERS)) or (delimiter != "," and b"," in block):
            raise InvalidPoints("a block that is looked at row by row")
        # Of equal timestamps only the last row's value is kept, but each is checked.
        points = checked(parse_rows(header + block.replace(delimiter.encode(), b","), Form.CSV))
        return ordered(points.timestamps, points.values), len(points)

    return read
