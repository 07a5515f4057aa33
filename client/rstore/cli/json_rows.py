"""Points in files of JSON and NDJSON.

Every row becomes a point or raises :class:`~rstore.cli.lines.BadRow` with its line. As in the service,
:mod:`rstore.core.point_rows` decides what a row means, so the command stores a file as the route would.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from rstore.cli import lines
from rstore.cli.lines import BadRow, line_text
from rstore.core.encodings import InvalidJSON, parse_json
from rstore.core.point_parsing import parse_points
from rstore.core.point_rows import Form
from rstore.core.points import InvalidPoints, Points, checked, split

_POINTS_AT_ONCE: Final = 50_000
_ROW_NESTING_MAX: Final = 129
"""The nesting of a value, and one more for the row itself."""

_POINTER: Final = re.compile(r"/points/([0-9]+)")


class Part(NamedTuple):
    """Points of consecutive rows.

    ``first`` and ``last`` are numbers of lines, or of what the ``noun`` says. ``rows`` is the number of rows with a
    value. Of rows with equal timestamps only the last becomes a point. ``skipped`` is the number of rows without one.
    """

    points: Points
    first: int
    last: int
    rows: int
    skipped: int = 0
    noun: str = "line"


class Rows:
    """Rows as NDJSON, with the lines on which they begin, before they become points."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.rows: list[bytes] = []
        self.skipped: list[int] = []
        self.last = 0

    def add(self, line: int, row: bytes) -> None:
        self.lines.append(line)
        self.rows.append(row)

    def part(self) -> Iterator[Part]:
        """The points. If a row is bad, the points before it, and then the error."""
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
                    self.skipped = [line for line in self.skipped if line < self.last]
                    break
            points = _points(b"\n".join(self.rows), Form.NDJSON, ())
        if self.rows or self.skipped:
            first = self.lines[0] if self.rows else self.last
            yield Part(points, first, self.last, len(self.rows), len(self.skipped))
        if bad is not None:
            raise bad


def ndjson_parts(blocks: Iterable[bytes]) -> Iterator[Part]:
    """The points of NDJSON, which has one array to a line."""
    number = 0
    for block in blocks:
        found = block.splitlines()
        filled = list(filter(bytes.strip, found))
        try:
            # If lines end with CR alone, msgspec takes several arrays for one line.
            points = _points(block, Form.NDJSON, filled)
        except InvalidPoints:
            rows = Rows()
            bad: BadRow | None = None
            try:
                for line, row in enumerate(found, number + 1):
                    if line_text(row, line).strip():
                        rows.add(line, row)
            except BadRow as error:
                bad = error
            rows.last = number + len(found)
            yield from rows.part()
            if bad is not None:
                raise bad from None
        else:
            yield Part(points, number + 1, number + len(found), len(filled))
        number += len(found)


def json_parts(blocks: Iterable[bytes]) -> Iterator[Part]:
    """The points of JSON, which is read and checked as a whole. It counts points instead of lines."""
    body = b"".join(blocks)
    if body.lstrip()[:1] == b"[":
        body = b'{"points":' + body + b"}"
    try:
        points = checked(parse_points(body, Form.JSON))
    except InvalidPoints as error:
        if error.pointer and (found := _POINTER.match(error.pointer)):
            raise BadRow(int(found[1]) + 1, _reason(error), "point") from None
        raise BadRow(1, f'not JSON of the form {{"points": [[timestamp, value], ...]}}: {error}', "point") from None
    rows = msgspec.json.decode(body, type=dict[str, list[msgspec.Raw]])["points"]
    for number, row in enumerate(rows if len(points) < len(rows) else (), 1):
        # Of equal timestamps only the last row's value has been checked.
        try:
            parse_json(bytes(row), nesting_max=_ROW_NESTING_MAX)
        except InvalidJSON as error:
            raise BadRow(number, str(error), "point") from None
    first, replaced = 1, len(rows) - len(points)
    for part in split(points, points_max=_POINTS_AT_ONCE, bytes_max=lines.BLOCK_BYTES):
        yield Part(part, first, first + len(part) - 1, len(part) + replaced, noun="point")
        first, replaced = first + len(part), 0


def _points(body: bytes, form: Form, rows: Sequence[bytes | msgspec.Raw]) -> Points:
    """The points of the rows in a body. Raises InvalidPoints if a row is not a point."""
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
    # The message names the timestamp, because a request has no lines. The caller names the line.
    return re.sub(r"^the value at timestamp -?[0-9]+: ", "the value is ", str(error))
