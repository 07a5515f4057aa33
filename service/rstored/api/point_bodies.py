"""Bodies of points, read piece by piece.

Nothing else runs while a decoder works, and its rows, as Python objects, take ten times the room of the body. So a long
body is cut between rows, and each piece becomes columns before the next one is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from rstore.core.point_parsing import parse_rows
from rstore.core.point_rows import Form
from rstore.core.points import InvalidPoints, Points, concatenate

_PIECE_BYTES: Final = 256 * 2**10
_TRIES_MAX: Final = 4

_OPENING: Final = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"points"[ \t\r\n]*:[ \t\r\n]*\[')
_CLOSING: Final = re.compile(rb"\][ \t\r\n]*\}[ \t\r\n]*\Z")
_ROW_END: Final = re.compile(rb"\][ \t\r\n]*(,)")
_TAIL_BYTES: Final = 64


def read_points(body: bytes, form: Form, *, points_max: int, bytes_max: int, piece_bytes: int = _PIECE_BYTES) -> Points:
    """The result of :func:`rstore.core.point_rows.parse_rows` for the body. It raises the same errors."""
    if len(body) > piece_bytes and form in (Form.JSON, Form.NDJSON):
        parts = _parts_of_array(body, piece_bytes) if form is Form.JSON else _parts_of_lines(body, piece_bytes)
        try:
            joined = concatenate(list(parts))
        except InvalidPoints:
            # Only parsing the whole body tells where the mistake is.
            pass
        else:
            if len(joined) <= points_max:
                return joined
    return parse_rows(body, form, points_max=points_max, bytes_max=bytes_max)


def _parts_of_lines(body: bytes, piece_bytes: int) -> Iterator[Points]:
    start = 0
    while start < len(body):
        stop = body.find(b"\n", start + piece_bytes) + 1 or len(body)
        yield parse_rows(body[start:stop], Form.NDJSON)
        start = stop


def _parts_of_array(body: bytes, piece_bytes: int) -> Iterator[Points]:
    """The points of a JSON array, cut at ends of rows. A place that looks like the end of a row is one if the text
    before it parses, because then it is not inside a string or a value. Raises InvalidPoints if it finds no such place.
    """
    opening, closing = _OPENING.match(body), _CLOSING.search(body, max(len(body) - _TAIL_BYTES, 0))
    if opening is None or closing is None or body.count(b'"points"') > 1:
        raise InvalidPoints("the body is not a plain list of points")
    start, end = opening.end(), closing.start()
    while start < end:
        candidate = _ROW_END.search(body, start + piece_bytes, end)
        tries = 1
        while True:
            stop = end if candidate is None else candidate.start(1)
            try:
                yield parse_rows(b'{"points":[%b]}' % body[start:stop], Form.JSON)
                break
            except InvalidPoints:
                if candidate is None or tries == _TRIES_MAX:
                    raise
                candidate = _ROW_END.search(body, stop, end)
                tries += 1
        start = stop + 1
