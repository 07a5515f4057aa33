"""Long bodies of points: read in pieces, they say what they say as a whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstore.core.point_parsing import parse_rows
from rstore.core.point_rows import Form
from rstore.core.points import Cells, InvalidPoints
from rstored.api.point_bodies import read_points

BOUNDS = {"points_max": 30, "bytes_max": 10**6}

VALUES = st.one_of(
    st.integers(-5, 5),
    st.sampled_from(["],[", '"],"', "]}", "\\", ""]),
    st.recursive(st.integers(0, 3), lambda inner: st.lists(inner, max_size=3), max_leaves=6),
    st.just({"points": [[1, 2]]}),
)
ROWS = st.lists(st.tuples(st.integers(-9, 9), VALUES), max_size=12)
SPACES = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n ", " : ")])


def outcome(read):
    try:
        points = read()
    except InvalidPoints as error:
        return str(error), error.code, error.pointer
    values = [json.loads(value.data) for value in points.values] if isinstance(points.values, Cells) else points.values
    return list(points.timestamps), list(values)


@settings(max_examples=150, deadline=None)
@given(ROWS, SPACES, st.integers(1, 40), st.sampled_from(["", "]", "}", ",", ' , "points": [[7, 7]]', "\n"]))
def test_an_array_in_pieces(rows, separators, piece_bytes, spoilt):
    text = json.dumps({"points": rows}, separators=separators)
    body = (text[:-1] + spoilt + "}" if spoilt else text).encode()
    whole = outcome(lambda: parse_rows(body, Form.JSON, **BOUNDS))
    assert outcome(lambda: read_points(body, Form.JSON, **BOUNDS, piece_bytes=piece_bytes)) == whole


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(1, 40), st.sampled_from(["", "[1", "\n\n", "[1,2][3,4]\n", "7\n"]))
def test_lines_in_pieces(rows, piece_bytes, spoilt):
    body = ("".join(json.dumps(row) + "\n" for row in rows) + spoilt).encode()
    whole = outcome(lambda: parse_rows(body, Form.NDJSON, **BOUNDS))
    assert outcome(lambda: read_points(body, Form.NDJSON, **BOUNDS, piece_bytes=piece_bytes)) == whole


@pytest.mark.parametrize("count", [30, 31])
def test_the_bound_on_points_counts_equal_timestamps_once(count):
    body = json.dumps({"points": [[t, t] for t in range(count)] * 2}).encode()
    whole = outcome(lambda: parse_rows(body, Form.JSON, **BOUNDS))
    assert outcome(lambda: read_points(body, Form.JSON, **BOUNDS, piece_bytes=16)) == whole
    assert ("batch-too-large" in whole) == (count > 30)
