"""Points as rows: JSON, msgpack, NDJSON and CSV. :mod:`rstore.core.point_parsing` reads what this renders.

A row is ``[timestamp, value]``, or ``[timestamp, data, encoding]`` where ``data`` is base64 (in msgpack raw bytes) and
``encoding`` a label such as ``sealed``. With the label ``json`` the value stands as itself; in msgpack bytes then are
its JSON text, the form of a value with numbers that msgpack cannot hold. In CSV the value of a row without encoding, or
with ``json``, is JSON text.

A bare number means the same in each form: an integer is exact, and any other number is the nearest double. A number
that is beyond every double is refused.
"""

from __future__ import annotations

import binascii
import enum
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw

from rstore.core.encodings import (
    Encoding,
    InvalidJSON,
    Value,
    check_numbers,
    on_one_line,
)
from rstore.core.frames import encode_stream
from rstore.core.media_types import (
    CSV_MEDIA_TYPE,
    JSON_MEDIA_TYPE,
    MSGPACK_MEDIA_TYPE,
    NDJSON_MEDIA_TYPE,
    POINTS_MEDIA_TYPE,
)
from rstore.core.points import Cells, Points

CSV_HEADER: Final = "timestamp,value,encoding"
_JSON_ENCODER: Final = msgspec.json.Encoder()


class Form(enum.Enum):
    """The forms that points take on the wire; the value is the media type.

    A streamed body is ``opening``, rendered parts with ``separator`` between two of them, and ``closing``. A part of
    no points renders as nothing and is left out of it. MSGPACK is not streamed: see :func:`msgpack_rows`.
    """

    JSON = JSON_MEDIA_TYPE
    MSGPACK = MSGPACK_MEDIA_TYPE
    NDJSON = NDJSON_MEDIA_TYPE
    CSV = CSV_MEDIA_TYPE
    FRAMES = POINTS_MEDIA_TYPE

    @property
    def opening(self) -> bytes:
        """What a streamed body begins with."""
        return {Form.JSON: b'{"points":[', Form.CSV: CSV_HEADER.encode() + b"\r\n"}.get(self, b"")

    @property
    def separator(self) -> bytes:
        """What stands between two rendered parts."""
        return b"," if self is Form.JSON else b""

    @property
    def closing(self) -> bytes:
        """What a streamed body ends with."""
        return b"]}" if self is Form.JSON else b""


def render_points(points: Points, form: Form, *, descending: bool = False) -> bytes:
    """A part of a streamed body: rows (or frames) of these points, the latest first if ``descending``.

    The points in a frame always ascend. A descending answer consists of frames that descend.

    >>> render_points(Points.from_pairs([(1, 0.5), (2, 1.5)]), Form.JSON)
    b'[1,0.5],[2,1.5]'
    >>> render_points(Points.from_pairs([(1, 0.5), (2, 1.5)]), Form.CSV, descending=True)
    b'2,1.5,\\r\\n1,0.5,\\r\\n'
    """
    if not points:
        return b""
    if form is Form.FRAMES:
        frames = list(encode_stream(points))
        return b"".join(reversed(frames) if descending else frames)
    if form is Form.MSGPACK:
        raise ValueError("msgpack is not rendered in parts")
    if form is Form.CSV and isinstance(points.values, Cells):
        return b"".join(_csv_row(*row) for row in _directed(list(points), descending))
    rows = _directed(_json_rows(points), descending)
    if form is Form.NDJSON:
        return _JSON_ENCODER.encode_lines(rows)
    text = msgspec.json.encode(rows)
    if form is Form.CSV:
        # Rows of numbers have no brackets but their own.
        return text[2:-2].replace(b"],[", b",\r\n") + b",\r\n"
    return text[1:-1]


def msgpack_rows(points: Points) -> list[tuple[Any, ...]]:
    """The rows as Python objects that ``msgspec.msgpack`` can encode.

    >>> msgpack_rows(Points.from_pairs([(1, 2**70), (2, 3)]))
    [(1, b'1180591620717411303424', 'json'), (2, 3)]
    """
    if isinstance(points.values, Cells):
        return [_msgpack_row(t, *value) for t, value in points]
    return list(points)


def _directed(rows: list[Any], descending: bool) -> list[Any]:
    return rows[::-1] if descending else rows


def _json_rows(points: Points) -> list[tuple[Any, ...]]:
    cells = points.values
    if not isinstance(cells, Cells):
        return list(points)
    text: Callable[[bytes], Any] = Raw
    if b"\n" in cells.data or b"\r" in cells.data:
        # JSON text may hold line breaks between its tokens, and a row must stand on one line.
        text = _line
    if not any(cells.encodings):
        return list(zip(points.timestamps, map(text, cells.parts()), strict=True))
    return [
        # msgspec writes bytes as base64.
        (t, text(data)) if encoding is Encoding.JSON else (t, data, encoding.label)
        for t, (encoding, data) in points
    ]


def _line(text: bytes) -> Raw:
    return Raw(on_one_line(text))


def _csv_row(t: int, value: Value) -> bytes:
    encoding, data = value
    if encoding is not Encoding.JSON:
        return b"%d,%s,%s\r\n" % (t, binascii.b2a_base64(data, newline=False), encoding.label.encode())
    if b'"' in data or b"," in data or b"\n" in data or b"\r" in data:
        data = b'"' + data.replace(b'"', b'""') + b'"'
    return b"%d,%s,\r\n" % (t, data)


def _msgpack_row(t: int, encoding: Encoding, data: bytes) -> tuple[Any, ...]:
    if encoding is not Encoding.JSON:
        return t, data, encoding.label
    value = msgspec.json.decode(data)
    try:
        check_numbers(data)
        msgspec.msgpack.encode(value)
    except (InvalidJSON, OverflowError):
        return t, data, encoding.label
    return t, value
