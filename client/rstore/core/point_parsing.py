"""The points in a body of any form; :mod:`rstore.core.point_rows` says what a row is."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec import Raw

from rstore.core.decoding import decoding_failure, is_blank, shape_failure
from rstore.core.encodings import (
    Encoding,
    InvalidJSON,
    Value,
    has_small_numbers,
    members_of,
)
from rstore.core.errors import beyond
from rstore.core.frames import FrameReader
from rstore.core.media_types import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from rstore.core.point_rows import CSV_HEADER, Form
from rstore.core.points import InvalidPoints, Points, concatenate, ordered, stored_text, unordered

# How many rows are Python objects at a time.
_PART_ROWS: Final = 10_000
_SHAPE: Final = "a point is [timestamp, value] or [timestamp, data, encoding]"
_ONE_MEMBER: Final = b"\x81"
"""How a msgpack map of one member begins."""
_NUMBER_STARTS: Final = frozenset(b"%c" % character for character in b"-0123456789")
_FIELD: Final = re.compile(r'(?:"([^"]*(?:""[^"]*)*)"|([^",\r\n]*))(,|\r?\n|\Z)')


def parse_points(body: bytes, form: Form, *, points_max: int | None = None, bytes_max: int | None = None) -> Points:
    """The points of a whole request body, as :func:`parse_rows` reads it. The last of equal timestamps wins.

    >>> list(parse_points(b'{"points": [[2, 0.5], [1, 1.5]]}', Form.JSON))
    [(1, 1.5), (2, 0.5)]
    """
    rows = parse_rows(body, form, points_max=points_max, bytes_max=bytes_max)
    return ordered(rows.timestamps, rows.values)


def parse_rows(body: bytes, form: Form, *, points_max: int | None = None, bytes_max: int | None = None) -> Points:
    """The points of a whole request body in the order of the body, see :func:`rstore.core.points.unordered`.

    ``bytes_max`` bounds what frames decompress to. Numbers are checked here; other JSON values are taken as they stand,
    and so are the cells of frames: call :func:`rstore.core.points.checked`. Raises :class:`InvalidPoints` with a
    ``code`` (``malformed-body``, ``invalid-body``, ``invalid-value``, ``nesting-too-deep``, ``batch-too-large``,
    ``body-too-large``) and, where a row is wrong, a ``pointer`` such as ``/points/3``.

    >>> list(parse_rows(b'{"points": [[2, 0.5], [1, 1.5]]}', Form.JSON))
    [(2, 0.5), (1, 1.5)]
    >>> parse_rows(b'1,"[2,3]"', Form.CSV)
    Traceback (most recent call last):
        ...
    rstore.core.points.InvalidPoints: the first line of the CSV is not timestamp,value,encoding or timestamp,value
    """
    if form is Form.FRAMES:
        return _frames(body, points_max, bytes_max)
    try:
        points = _PARSERS[form](body)
    except RecursionError:
        raise InvalidPoints("the body is nested too deeply", code="nesting-too-deep") from None
    except msgspec.ValidationError as error:
        message, pointer = shape_failure(error)
        raise InvalidPoints(message, pointer=pointer or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = "; an object with the member points is expected" if is_blank(body) else ""
        message = decoding_failure(error, body, "the body")
        raise InvalidPoints(message + hint, code="malformed-body") from None
    _check_count(points, points_max)
    return points


class _NumbersShape(msgspec.Struct, forbid_unknown_fields=True):
    """The shape of a body in which every value is a number. The decoder alone reads it."""

    points: list[tuple[int, int | float]]


class _RowsShape(msgspec.Struct, forbid_unknown_fields=True):
    """The shape of any body. Its rows are read one by one: as Python objects they take a hundred times their bytes."""

    points: list[Raw]


_NUMBERS: Final = msgspec.json.Decoder(_NumbersShape)
_ROWS: Final = msgspec.json.Decoder(_RowsShape)
_NUMBERS_MSGPACK: Final = msgspec.msgpack.Decoder(_NumbersShape)
_ROWS_MSGPACK: Final = msgspec.msgpack.Decoder(_RowsShape)
_NUMBER_LINES: Final = msgspec.json.Decoder(tuple[int, int | float])
_ROW_LINES: Final = msgspec.json.Decoder(Raw)
_NUMBER_LIST: Final = msgspec.json.Decoder(list[tuple[int, int | float]])
_CELLS: Final = msgspec.json.Decoder(list[Raw])
_CELLS_MSGPACK: Final = msgspec.msgpack.Decoder(list[Raw])


class _NotNumbersError(Exception):
    """A value may be a number that is not finite (msgpack has such), or a number other than 0 that was read as 0."""


def _json(body: bytes) -> Points:
    try:
        points = _of_literals(_NUMBERS.decode(body).points, body)
    except (msgspec.ValidationError, _NotNumbersError):
        points = _of_pairs(map(_json_value, _ROWS.decode(body).points))
    if body.count(b'"points"') > 1 or b"\\" in body:
        _check_envelope(body, JSON_MEDIA_TYPE)
    return points


def _ndjson(body: bytes) -> Points:
    lines = sum(map(bool, map(bytes.strip, body.splitlines())))
    rows: list[Any]
    try:
        rows = _NUMBER_LINES.decode_lines(body)
        points = _of_literals(rows, body)
    except (msgspec.ValidationError, _NotNumbersError):
        rows = _ROW_LINES.decode_lines(body)
        points = _of_pairs(map(_json_value, rows))
    if len(rows) != lines:
        message = "each line holds one array, and each array stands on one line"
        raise InvalidPoints(message, code="malformed-body")
    return points


def _msgpack(body: bytes) -> Points:
    try:
        points = _of_numbers(_NUMBERS_MSGPACK.decode(body).points)
    except (msgspec.ValidationError, _NotNumbersError):
        points = _of_pairs(map(_msgpack_value, _ROWS_MSGPACK.decode(body).points))
    if body[:1] != _ONE_MEMBER:
        _check_envelope(body, MSGPACK_MEDIA_TYPE)
    return points


def _csv(body: bytes) -> Points:
    header, _, text = body.removeprefix(b"\xef\xbb\xbf").partition(b"\n")
    columns = header.rstrip(b"\r").count(b",") + 1
    if header.rstrip(b"\r").decode() not in (CSV_HEADER, "timestamp,value"):
        raise InvalidPoints(f"the first line of the CSV is not {CSV_HEADER} or timestamp,value")
    if not any(mark in text for mark in b'"[]'):
        # Only commas and line breaks have a meaning in this text, so lines are rows.
        rows = list(filter(None, text.splitlines()))
        if columns == 3:
            rows = [row[:-1] if row.endswith(b",") else b"" for row in rows]
        try:
            return _of_literals(_NUMBER_LIST.decode(b"[[" + b"],[".join(rows) + b"]]") if rows else [], text)
        except (msgspec.DecodeError, _NotNumbersError):
            pass
    return _of_pairs(_csv_rows(text.decode(), columns))


def _frames(body: bytes, points_max: int | None, bytes_max: int | None) -> Points:
    reader = FrameReader(stream_bytes_max=bytes_max)
    joined = concatenate(reader.feed(body))
    reader.finish()
    _check_count(joined, points_max)
    return joined


_PARSERS: Final[dict[Form, Callable[[bytes], Points]]] = {
    Form.JSON: _json,
    Form.MSGPACK: _msgpack,
    Form.NDJSON: _ndjson,
    Form.CSV: _csv,
}


def _check_envelope(body: bytes, form: str) -> None:
    """Raise if the member ``points`` stands twice: the decoder keeps the last, and drops the points in the first."""
    try:
        members_of(body, form)
    except InvalidJSON as error:
        raise InvalidPoints(str(error)) from None


def _of_literals(rows: list[tuple[int, int | float]], text: bytes) -> Points:
    """The points of numbers that the decoder read from ``text``."""
    # The decoder reads the smallest numbers as 0, and raises no error.
    if has_small_numbers(text) and any(value == 0 for _, value in rows):
        raise _NotNumbersError
    return _of_numbers(rows)


def _of_numbers(rows: list[tuple[int, int | float]]) -> Points:
    try:
        return unordered(rows)
    except TypeError:
        raise _NotNumbersError from None


def _of_pairs(pairs: Iterator[tuple[int, Value]]) -> Points:
    """The points of checked pairs. Only some of the pairs are objects at a time."""
    return concatenate(_parts_of_pairs(pairs))


def _parts_of_pairs(pairs: Iterator[tuple[int, Value]]) -> Iterator[Points]:
    """The points in parts. An error that a pair raises gets the number of the pair."""
    before = 0
    while True:
        found: list[tuple[int, Value]] = []
        try:
            found.extend(islice(pairs, _PART_ROWS))
        except InvalidPoints as error:
            raise InvalidPoints(str(error), code=error.code, pointer=f"/points/{before + len(found)}") from None
        except RecursionError:
            message = "the value is nested too deeply"
            raise InvalidPoints(message, code="nesting-too-deep", pointer=f"/points/{before + len(found)}") from None
        if not found:
            return
        before += len(found)
        yield unordered(found)


def _json_value(text: Raw) -> tuple[int, Value]:
    row = _cells(text, _CELLS)
    t, raw, encoding = _row(row, msgspec.json.decode)
    if encoding is Encoding.JSON:
        return t, _json_text(bytes(raw))
    try:
        return t, Value(encoding, _base64(msgspec.json.decode(raw, type=str)))
    except msgspec.ValidationError:
        raise InvalidPoints(f"a value with encoding {encoding.label} stands as a base64 string") from None


def _msgpack_value(packed: Raw) -> tuple[int, Value]:
    row = _cells(packed, _CELLS_MSGPACK)
    t, raw, encoding = _row(row, msgspec.msgpack.decode)
    value = msgspec.msgpack.decode(raw)
    if isinstance(value, bytes) and len(row) == 3:
        return t, _json_text(value) if encoding is Encoding.JSON else Value(encoding, value)
    if encoding is not Encoding.JSON:
        raise InvalidPoints(f"a value with encoding {encoding.label} stands as raw bytes")
    try:
        text = msgspec.json.encode(value)
        same = msgspec.json.decode(text) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        # Bytes, extensions, NaN and keys that are not strings would come back as something else.
        raise InvalidPoints("JSON has no form for the value", code="invalid-value")
    return t, Value(encoding, text)


def _cells(row: Raw, decoder: msgspec.json.Decoder[list[Raw]] | msgspec.msgpack.Decoder[list[Raw]]) -> list[Raw]:
    try:
        return decoder.decode(row)
    except msgspec.ValidationError:
        raise InvalidPoints(_SHAPE) from None


def _row(row: list[Raw], decode: Callable[..., Any]) -> tuple[int, Raw, Encoding]:
    if len(row) not in (2, 3):
        raise InvalidPoints(_SHAPE)
    try:
        t = decode(row[0], type=int)
        label = decode(row[2], type=str) if len(row) == 3 else "json"
    except msgspec.ValidationError:
        raise InvalidPoints("a timestamp is an integer and an encoding a string") from None
    return t, row[1], _encoding(label)


def _csv_rows(text: str, columns: int) -> Iterator[tuple[int, Value]]:
    position = 0
    fields: list[str] = []
    while position < len(text) or fields:
        match = _FIELD.match(text, position)
        if match is None:
            raise InvalidPoints("a quote in the CSV is out of place", code="malformed-body")
        quoted, plain, end = match.groups()
        fields.append(plain if quoted is None else quoted.replace('""', '"'))
        position = match.end()
        if end == ",":
            continue
        if fields != [""]:
            yield _csv_value(fields, columns)
        fields = []


def _csv_value(fields: list[str], columns: int) -> tuple[int, Value]:
    if len(fields) != columns:
        raise InvalidPoints(f"the CSV has a row of {len(fields)} fields; its header has {columns}")
    try:
        t = msgspec.json.decode(fields[0], type=int)
    except msgspec.DecodeError:
        raise InvalidPoints("a timestamp is an integer") from None
    encoding = _encoding(fields[2]) if columns == 3 and fields[2] else Encoding.JSON
    return t, _json_text(fields[1].encode()) if encoding is Encoding.JSON else Value(encoding, _base64(fields[1]))


def _json_text(text: bytes) -> Value:
    """The value of JSON text. A number is checked here, where an error gets the number of the row."""
    text = text.strip(b" \t\r\n")
    if text[:1] in _NUMBER_STARTS:
        try:
            text = stored_text(text)
        except InvalidJSON as error:
            raise InvalidPoints(str(error), code="invalid-value") from None
    return Value(Encoding.JSON, text)


def _encoding(label: str) -> Encoding:
    try:
        return Encoding.from_label(label)
    except ValueError:
        # The label may be anything that a client sends, so the message does not repeat it.
        labels = ", ".join(encoding.label for encoding in Encoding)
        raise InvalidPoints(f"unknown encoding: use one of {labels}") from None


def _base64(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise InvalidPoints("the value is not base64 (RFC 4648, with padding)", code="invalid-value") from None


def _check_count(points: Points, points_max: int | None) -> None:
    """Raise if there are too many points. Points with equal timestamps count once."""
    if points_max is not None and len(points) > points_max and (count := len(set(points.timestamps))) > points_max:
        raise InvalidPoints(beyond(f"{count} points", points_max), code="batch-too-large")
