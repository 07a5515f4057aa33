"""Points in files: CSV, NDJSON and JSON, in any encoding of text, read part by part.

Every row becomes a point, is skipped because it was said to have no value, or raises :class:`BadRow` with its line.
What a row means is decided by :mod:`rstore.core.point_rows`, as in the service, so a file is stored as the route would
store it. This module finds the rows. It does no I/O but to read.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from rstore.cli.times import Reader
from rstore.core.encodings import InvalidJSON, parse_json
from rstore.core.point_rows import CSV_HEADER, Form, parse_points
from rstore.core.points import Cells, InvalidPoints, Points, checked, split

__all__ = ["BadRow", "Layout", "Part", "read_points"]

BLOCK_BYTES: Final = 2**20
"""About as many bytes of a file are read, and their points sent, at a time."""

_POINTS_AT_ONCE: Final = 50_000
_ROW_NESTING_MAX: Final = 129
"""That of a value, and the row itself."""
_LINE_BYTES_MAX: Final = 64 * 2**20
_DELIMITERS: Final = {",": "comma", ";": "semicolon", "\t": "tab"}
_BYTE_ORDER_MARKS: Final = (
    # That of UTF-32 begins like that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ENCODED_HEADER: Final = CSV_HEADER.split(",")
_NOT_OF_NUMBERS: Final = (b'"', b"[", b"{")
_POINTER: Final = re.compile(r"/points/([0-9]+)")


class BadRow(Exception):
    """A row that is no point, and the line it begins on."""

    def __init__(self, number: int, reason: str, noun: str = "line") -> None:
        super().__init__(f"{noun} {number}: {reason}")


class Part(NamedTuple):
    """Points of consecutive rows.

    ``first`` and ``last`` are lines, or whatever the ``noun`` says. ``rows`` have a value, and the last of equal
    timestamps is a point; ``skipped`` ones have none.
    """

    points: Points
    first: int
    last: int
    rows: int
    skipped: int = 0
    noun: str = "line"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a CSV table is read. Columns are named, or counted from 1; None stands for what the first record tells."""

    time: Reader
    integers: bool
    header: bool | None = None
    delimiter: str | None = None
    quote: str = '"'
    escape: str | None = None
    time_column: str | None = None
    value_column: str | None = None
    missing: frozenset[str] = frozenset()


class Readable(Protocol):
    """A file."""

    def read(self, size: int, /) -> bytes: ...


def read_points(file: Readable, form: Form, layout: Layout, encoding: str = "utf-8") -> Iterator[Part]:
    """The points of a file, many at a time. Raises :class:`BadRow` once all rows before it are given.

    A byte order mark says more than ``encoding``, which is a name that Python knows.
    """
    blocks = _lines_together(_as_utf8(file, encoding))
    if form is Form.CSV:
        return _csv_parts(blocks, layout)
    return _json_parts(blocks) if form is Form.JSON else _ndjson_parts(blocks)


# --- text --------------------------------------------------------------------------------------------------


def _as_utf8(file: Readable, encoding: str) -> Iterator[bytes]:
    """The text of a file, as UTF-8 without a byte order mark."""
    chunk = file.read(BLOCK_BYTES)
    while 0 < len(chunk) < 4 and (more := file.read(BLOCK_BYTES)):
        chunk += more
    encoding = codecs.lookup(encoding).name
    for mark, marked in _BYTE_ORDER_MARKS:
        if chunk.startswith(mark):
            chunk, encoding = chunk[len(mark) :], marked
            break
    decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)()
    lines = 0
    while chunk:
        if decoder is None:
            yield chunk
        else:
            try:
                text = decoder.decode(chunk).encode()
            except UnicodeError:
                raise BadRow(lines + 1, f"from there on some of the text is not {encoding}") from None
            lines += text.count(b"\n")
            yield text
        chunk = file.read(BLOCK_BYTES)
    if decoder is not None:
        try:
            decoder.decode(b"", final=True)
        except UnicodeError:
            raise BadRow(lines + 1, f"the file ends within a character of {encoding}") from None


def _lines_together(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut where lines end: by LF, CRLF or CR."""
    ready = b""
    pending: list[bytes] = []
    size = 0
    for chunk in chunks:
        # A CR at the very end may be half of a CRLF.
        end = chunk.rfind(b"\n") + 1 or chunk.rfind(b"\r", 0, len(chunk) - 1) + 1
        size += len(chunk)
        if end:
            if ready:
                yield ready
            ready = b"".join([*pending, chunk[:end]])
            pending, size = [chunk[end:]], len(chunk) - end
        else:
            pending.append(chunk)
        if size > _LINE_BYTES_MAX:
            raise BadRow(1, f"a line of more than {_LINE_BYTES_MAX} bytes; is this a text file?")
    # A last line that does not end goes with those before it.
    if last := b"".join([ready, *pending]):
        yield last


def _text(line: bytes, number: int) -> str:
    if b"\0" in line:
        raise BadRow(number, "there is a NUL; if the file is UTF-16, say so with --encoding")
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise BadRow(number, "the text is not UTF-8; say what it is with --encoding") from None


# --- rows of JSON ------------------------------------------------------------------------------------------


class _Rows:
    """Rows as NDJSON, gathered with the lines they begin on until they are made points."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.rows: list[bytes] = []
        self.skipped = 0
        self.last = 0

    def add(self, line: int, row: bytes) -> None:
        self.lines.append(line)
        self.rows.append(row)

    def part(self) -> Iterator[Part]:
        """The points; of rows that hold a bad one those before it, and then the error."""
        bad: BadRow | None = None
        try:
            points = _points(b"\n".join(self.rows), Form.NDJSON, self.rows)
        except InvalidPoints:
            for index, row in enumerate(self.rows):
                try:
                    _points(row, Form.NDJSON, [row])
                except InvalidPoints as error:
                    bad = BadRow(self.lines[index], _reason(error))
                    self.rows, self.last = self.rows[:index], self.lines[index]
                    break
            points = _points(b"\n".join(self.rows), Form.NDJSON, ())
        if self.rows or self.skipped:
            first = self.lines[0] if self.rows else self.last
            yield Part(points, first, self.last, len(self.rows), self.skipped)
        if bad is not None:
            raise bad


def _points(body: bytes, form: Form, rows: Sequence[bytes | msgspec.Raw]) -> Points:
    """The points of rows that stand in a body; InvalidPoints if one of them is none."""
    points = checked(parse_points(body, form))
    if len(points) < len(rows):
        # Of equal timestamps only the last row's value has been checked.
        for row in rows:
            try:
                parse_json(bytes(row), nesting_max=_ROW_NESTING_MAX)
            except InvalidJSON as error:
                raise InvalidPoints(str(error)) from None
    return points


def _reason(error: InvalidPoints) -> str:
    # It says which timestamp, as a request has no lines.
    return re.sub(r"^the value at timestamp -?[0-9]+: ", "the value is ", str(error))


def _ndjson_parts(blocks: Iterable[bytes]) -> Iterator[Part]:
    number = 0
    for block in blocks:
        lines = block.splitlines()
        filled = list(filter(bytes.strip, lines))
        try:
            # Where lines end with CR alone, this finds more than one array in what it takes for a line.
            points = _points(block, Form.NDJSON, filled)
        except InvalidPoints:
            rows = _Rows()
            bad: BadRow | None = None
            try:
                for line, row in enumerate(lines, number + 1):
                    if _text(row, line).strip():
                        rows.add(line, row)
            except BadRow as error:
                bad = error
            rows.last = number + len(lines)
            yield from rows.part()
            if bad is not None:
                raise bad from None
        else:
            yield Part(points, number + 1, number + len(lines), len(filled))
        number += len(lines)


def _json_parts(blocks: Iterable[bytes]) -> Iterator[Part]:
    """JSON is one value: it is read, and checked, as a whole. Points are counted instead of lines."""
    body = b"".join(blocks)
    if body.lstrip()[:1] == b"[":
        body = b'{"points":' + body + b"}"
    try:
        points = checked(parse_points(body, Form.JSON))
    except InvalidPoints as error:
        if error.pointer and (found := _POINTER.match(error.pointer)):
            raise BadRow(int(found[1]) + 1, _reason(error), "point") from None
        raise BadRow(1, f'no JSON of the form {{"points": [[timestamp, value], ...]}}: {error}', "point") from None
    rows = msgspec.json.decode(body, type=dict[str, list[msgspec.Raw]])["points"]
    for number, row in enumerate(rows if len(points) < len(rows) else (), 1):
        # Of equal timestamps only the last row's value has been checked.
        try:
            parse_json(bytes(row), nesting_max=_ROW_NESTING_MAX)
        except InvalidJSON as error:
            raise BadRow(number, str(error), "point") from None
    first, replaced = 1, len(rows) - len(points)
    for part in split(points, points_max=_POINTS_AT_ONCE, bytes_max=BLOCK_BYTES):
        yield Part(part, first, first + len(part) - 1, len(part) + replaced, noun="point")
        first, replaced = first + len(part), 0


# --- rows of CSV -------------------------------------------------------------------------------------------


class _Lines:
    """The lines of blocks, one by one, and how many have been given."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._left: deque[bytes] = deque()
        self._begun: list[bytes] | None = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        """The next line, out of the next block if need be: a quoted field may go on there."""
        while not self._left:
            self._left.extend(next(self._blocks).splitlines(keepends=True))
        self.number += 1
        line = self._left.popleft()
        if self._begun is not None:
            self._begun.append(line)
        return _text(line, self.number)

    def fill(self) -> bool:
        """Whether there is another line; it is then at hand."""
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return False
            self._left.extend(block.splitlines(keepends=True))
        return True

    def begin(self, *, again: bool) -> None:
        """Take what was given so far for read, or give it ``again``."""
        if again and self._begun:
            self._left.extendleft(reversed(self._begun))
            self.number -= len(self._begun)
        self._begun = None

    @property
    def at_hand(self) -> deque[bytes]:
        """The lines left of the block that was begun."""
        return self._left

    def skip(self) -> None:
        """Leave out what is left of the block."""
        self.number += len(self._left)
        self._left.clear()


class _Columns(NamedTuple):
    """Where in a record things stand; ``width`` is how many fields may hold something."""

    time: int
    value: int
    encoding: int | None
    width: int


def _csv_parts(blocks: Iterator[bytes], layout: Layout) -> Iterator[Part]:
    csv.field_size_limit(_LINE_BYTES_MAX)
    lines = _Lines(blocks)
    if not lines.fill():
        return
    while not lines.at_hand[0].strip(b" \t\r\n"):
        next(lines)
        if not lines.fill():
            return
    first = lines.number + 1
    delimiter = layout.delimiter or _delimiter(_text(lines.at_hand[0], first), layout.quote, first)
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
                pass  # Row by row it turns out what is wrong, or only unusual.
            else:
                start = lines.number + 1
                lines.skip()
                yield Part(points, start, lines.number, rows)
                continue
        found = _Rows()
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
    """The next record, and the line it begins on. The last one of a file may be empty."""
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
    """The one of comma, semicolon and tab that stands, outside of quotes, in the first line."""
    mark = re.escape(quote)
    bare = re.sub(f"{mark}[^{mark}]*({mark}|\\Z)", "", line)
    found = [delimiter for delimiter in _DELIMITERS if delimiter in bare]
    if len(found) > 1:
        names = " or ".join(_DELIMITERS[delimiter] for delimiter in found)
        raise BadRow(number, f"fields may be separated by {names}; say which with --delimiter")
    return found[0] if found else ","


def _columns(record: list[str], layout: Layout, line: int) -> _Columns:
    """The columns that the layout counts; those that it names are found by the header."""
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
    except ValueError as error:
        if not value or _is_json(value) or value in layout.missing:
            # It may be a row with a mistake in its time, which would be lost if it were taken for a header.
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


def _add(found: _Rows, record: list[str], line: int, columns: _Columns, layout: Layout) -> None:
    """Add a record as a row, or count it if it has no value. A record of nothing but blanks is a blank line."""
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
        found.skipped += 1
        return
    if not value:
        raise BadRow(line, "there is no value; --na '' skips such rows")
    text = value.encode()
    try:
        parse_json(text)
    except InvalidJSON as error:
        hint = " (text needs quotes of its own, as in JSON; --na skips such rows)" if value[:1].isalpha() else ""
        raise BadRow(line, f"the value is {error}{hint}") from None
    found.add(line, b"[%d,%b]" % (t, _one_line(text)))


def _one_line(text: bytes) -> bytes:
    return msgspec.json.format(text, indent=-1) if b"\n" in text or b"\r" in text else text


def _quick(layout: Layout, columns: _Columns, delimiter: str) -> Callable[[bytes], tuple[Points, int]] | None:
    """What reads a block of nothing but integers and numbers, at the decoder's speed, or raises InvalidPoints."""
    if not layout.integers or columns not in (_Columns(0, 1, None, 2), _Columns(0, 1, 2, 3)):
        return None
    header = (CSV_HEADER if columns.encoding else "timestamp,value").encode() + b"\n"
    missing = [text.encode() for text in layout.missing if text]
    marks = [mark.encode() for mark in (layout.quote, layout.escape or '"')]

    def read(block: bytes) -> tuple[Points, int]:
        if any(mark in block for mark in (*marks, *missing, *_NOT_OF_NUMBERS)) or (delimiter != "," and b"," in block):
            raise InvalidPoints("a block that is looked at row by row")
        rows = sum(map(bool, map(bytes.strip, block.splitlines())))
        points = checked(parse_points(header + block.replace(delimiter.encode(), b","), Form.CSV))
        if len(points) < rows and isinstance(points.values, Cells):
            raise InvalidPoints("of equal timestamps only the last row's value has been checked")
        return points, rows

    return read
