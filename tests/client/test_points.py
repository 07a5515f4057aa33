"""The columnar format: round trips, building from pairs, and refusal of everything that is not a frame."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
import zlib
from array import array
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstore.core.encodings import Encoding, Value
from rstore.core.frames import FrameReader, count_of, decode, encode, encode_stream
from rstore.core.points import Cells, InvalidPoints, Points, checked, concatenate, digest, split

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
SAMPLES = Points.from_values(
    [(t, Value(Encoding(t % 4), b'"%d"' % t * (t % 7 + 1) if t % 4 == 0 else bytes([t]) * t)) for t in range(50)]
)

int64 = st.one_of(
    st.sampled_from([INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX - 1, INT64_MAX]),
    st.integers(-50, 50),
    st.integers(INT64_MIN, INT64_MAX),
)
floats = st.floats(allow_nan=False, allow_infinity=False)
cells = st.builds(Value, st.sampled_from(Encoding), st.binary(max_size=40))
columns = st.one_of(
    st.lists(st.tuples(int64, floats)), st.lists(st.tuples(int64, int64)), st.lists(st.tuples(int64, cells))
)
points_of_any_kind = columns.map(Points.from_pairs)


def value_of(number: float) -> Value:
    return Value(Encoding.JSON, repr(number).encode())


# --- building ----------------------------------------------------------------------------------------------


@given(columns)
def test_pairs_are_sorted_and_the_last_of_equal_timestamps_wins(pairs):
    points = Points.from_pairs(pairs)
    assert list(map(repr, points)) == list(map(repr, sorted(dict(pairs).items())))


def test_the_column_is_typed_when_the_values_are():
    assert Points.from_pairs([(1, 1.5), (2, -0.0)]).values == array("d", [1.5, -0.0])
    assert Points.from_pairs([(1, INT64_MIN), (2, INT64_MAX)]).values == array("q", [INT64_MIN, INT64_MAX])
    assert Points.from_pairs([(2, 3), (1, 1.0)]).values == Cells.from_json([b"1.0", b"3"])
    assert Points.from_pairs([(1, INT64_MAX + 1)]).values == Cells.from_json([b"9223372036854775808"])
    assert len(Points.from_pairs([])) == 0
    assert list(Points.from_pairs(pair for pair in [(1, 2)])) == [(1, 2)]


@pytest.mark.parametrize("value", [True, None, "text", float("nan"), float("-inf"), pytest.param(10**5000, id="huge")])
def test_what_is_not_a_finite_number_goes_through_dump(value):
    with pytest.raises(TypeError, match="dump"):
        Points.from_pairs([(1, 0.5), (2, value)])
    dumped: list[Any] = []

    def dump(v: Any) -> Value:
        dumped.append(v)
        return Value(Encoding.BYTES, b"x")

    points = Points.from_pairs([(1, 0.5), (2, value)], dump)
    assert dumped[0] == 0.5
    assert dumped[1] is value
    assert list(points) == [(1, (Encoding.BYTES, b"x")), (2, (Encoding.BYTES, b"x"))]


@pytest.mark.parametrize("t", [True, 1.0, "1", None, INT64_MAX + 1, INT64_MIN - 1])
def test_a_timestamp_is_an_exact_int64(t):
    with pytest.raises(InvalidPoints, match="timestamp") as caught:
        Points.from_pairs([(0, 1), (t, 1)])
    assert caught.value.pointer == "/points/1"


@pytest.mark.parametrize("pair", [(1,), (1, 2, 3), 1, {1: 2, 3: 4}, None])
def test_a_point_is_a_pair(pair):
    with pytest.raises(InvalidPoints, match="pair"):
        Points.from_pairs([(0, 1), pair])


def test_values_stay_values():
    values = [(1, Value(Encoding.SEALED, b"s")), (2, Value(Encoding.JSON, b"null"))]
    assert list(Points.from_values(reversed(values))) == values
    assert Points.from_values(values).encodings == {Encoding.SEALED, Encoding.JSON}
    assert Points.from_pairs([(1, 1)]).encodings == {Encoding.JSON}


@given(points_of_any_kind, st.slices(12))
def test_slices_are_those_of_the_list(points, part):
    if part.step is not None and part.step < 0:
        part = slice(part.start, part.stop)
    assert list(points[part]) == list(points)[part]


def test_points_are_indexed_from_either_end():
    assert SAMPLES[-1] == list(SAMPLES)[-1]
    assert SAMPLES[3] == list(SAMPLES)[3]
    assert Points.from_pairs([(1, 10), (2, 20)])[-1] == (2, 20)


def test_columns_of_different_kinds_join_as_json():
    joined = concatenate([Points.from_pairs([(1, 1.0)]), Points.empty(), Points.from_pairs([(2, 2)])])
    assert list(joined) == [(1, value_of(1.0)), (2, value_of(2))]


@given(points_of_any_kind, st.integers(1, 5), st.integers(1, 100))
def test_parts_keep_to_the_bounds(points, points_max, bytes_max):
    parts = list(split(points, points_max=points_max, bytes_max=bytes_max))
    assert [point for part in parts for point in part] == list(points)
    for part in parts:
        assert len(part) == 1 or (len(part) <= points_max and part.size <= bytes_max)


def test_zeros_of_different_sign_are_different_points():
    assert Points.from_pairs([(1, 0.0)]) != Points.from_pairs([(1, -0.0)])
    assert Points.from_pairs([(1, 1.0)]) != Points.from_pairs([(1, 1)])


# --- frames ------------------------------------------------------------------------------------------------


@given(points_of_any_kind)
def test_a_frame_comes_back_equal(points):
    frame = encode(points)
    assert decode(frame) == points
    assert count_of(frame) == len(points)


@given(int64, st.integers(1, INT64_MAX), st.integers(3, 60))
def test_evenly_spaced_timestamps_take_no_space(first, stride, count):
    timestamps = range(first, first + stride * count, stride)
    if timestamps[-1] > INT64_MAX:
        timestamps = range(INT64_MIN, INT64_MAX + 1, INT64_MAX)
    points = Points.from_pairs((t, 0) for t in timestamps)
    assert decode(encode(points)) == points
    assert len(encode(points)) == 12 + 16 + 8 * len(points)


PUBLISHED = {
    "28000000 01 00 00 00 02000000"
    " 0100000000000000 0500000000000000 000000000000f83f 00000000000000c0": Points.from_pairs([(1, 1.5), (5, -2.0)]),
    "30000000 01 01 01 00 03000000 ffffffffffffffff 0100000000000000"
    " 0700000000000000 0800000000000000 0900000000000000": Points.from_pairs([(-1, 7), (0, 8), (1, 9)]),
    "17000000 01 02 02 00 01000000 0200000000000000 03 02000000 aabb": Points.from_values(
        [(2, Value(Encoding.SEALED, b"\xaa\xbb"))]
    ),
    "23000000 01 02 00 00 02000000 0200000000000000 0300000000000000 0001 01000000 00000000 31": Points.from_values(
        [(2, Value(Encoding.JSON, b"1")), (3, Value(Encoding.BYTES, b""))]
    ),
}


@pytest.mark.parametrize("frame", PUBLISHED)
def test_the_published_frames(frame):
    points = PUBLISHED[frame]
    document = (Path(__file__).parents[2] / "docs" / "points-format.md").read_text()
    assert frame in " ".join(document.split())
    assert encode(points).hex() == frame.replace(" ", "")
    assert decode(bytes.fromhex(frame)) == points


def test_cells_are_compressed_where_that_helps():
    text = Points.from_values([(t, Value(Encoding.JSON, b'"the same text"')) for t in range(1_000)])
    assert len(encode(text)) < 1_000
    assert decode(encode(text)) == text
    noise = Points.from_values([(0, Value(Encoding.BYTES, Random(1).randbytes(10_000)))])
    assert len(encode(noise)) == 12 + 8 + 1 + 4 + 10_000


@given(st.lists(points_of_any_kind, max_size=4), st.lists(st.integers(1, 50), min_size=1))
def test_a_stream_is_read_however_it_is_cut(parts, sizes):
    stream = b"".join(map(encode, parts))
    reader = FrameReader()
    found: list[Points] = []
    position, turn = 0, 0
    while position < len(stream):
        found += reader.feed(stream[position : position + sizes[turn % len(sizes)]])
        position += sizes[turn % len(sizes)]
        turn += 1
    reader.finish()
    assert found == parts


def test_a_long_column_streams_as_frames_of_bounded_size():
    points = Points.from_pairs((t * t, t) for t in range(200_000))
    frames = list(encode_stream(points))
    assert max(map(len, frames)) <= 2**20 + 100
    assert concatenate(list(map(decode, frames))) == points
    assert list(encode_stream(Points.empty())) == []


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [SAMPLES, Points.from_pairs([(1, 1.5), (3, 2.5)]), SAMPLES[:1], SAMPLES[1::4]])
def test_a_frame_that_is_cut_or_longer_is_refused(points):
    frame = encode(points)
    for end in range(len(frame)):
        with pytest.raises(InvalidPoints):
            decode(frame[:end])
        # With the length mended, the inner sizes have to give it away.
        if end >= 12:
            with pytest.raises(InvalidPoints):
                decode(struct.pack("<I", end - 4) + frame[4:end])
    with pytest.raises(InvalidPoints):
        decode(frame + b"\0")
    with pytest.raises(InvalidPoints):
        decode(struct.pack("<I", len(frame) - 3) + frame[4:] + b"\0")


@settings(max_examples=300)
@given(points_of_any_kind, st.data())
def test_a_damaged_frame_is_refused_or_still_points(points, data):
    frame = bytearray(encode(points))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(frame))
    except InvalidPoints:
        return
    assert decode(encode(found)) == found
    assert list(found.timestamps) == sorted(set(found.timestamps))


@given(st.binary(max_size=200))
def test_noise_is_refused(noise):
    with pytest.raises(InvalidPoints):
        decode(struct.pack("<IBBBBI", len(noise) + 8, 2, 0, 0, 0, 0) + noise)
    with suppress(InvalidPoints):
        decode(struct.pack("<I", len(noise)) + noise)


def frame_of(kind: int, flags: int, count: int, body: bytes, *, version: int = 1, reserved: int = 0) -> bytes:
    return struct.pack("<IBBBBI", 8 + len(body), version, kind, flags, reserved, count) + body


@pytest.mark.parametrize(
    "frame",
    [
        frame_of(0, 0, 0, b"", version=0),
        frame_of(0, 0, 0, b"", version=2),
        frame_of(0, 0, 0, b"", reserved=1),
        frame_of(3, 0, 0, b""),
        frame_of(0, 2, 0, b""),
        frame_of(1, 4, 0, b""),
        frame_of(2, 8, 0, b""),
        # No points, and yet a progression.
        frame_of(0, 1, 0, struct.pack("<qq", 0, 1)),
        # Strides of 0, backwards, and beyond int64.
        frame_of(1, 1, 2, struct.pack("<qqqq", 0, 0, 5, 5)),
        frame_of(1, 1, 2, struct.pack("<qqqq", 0, -1, 5, 5)),
        frame_of(1, 1, 2, struct.pack("<qqqq", INT64_MAX, 1, 5, 5)),
        # Timestamps equal and descending.
        frame_of(1, 0, 2, struct.pack("<qqqq", 1, 1, 5, 5)),
        frame_of(1, 0, 2, struct.pack("<qqqq", 1, 0, 5, 5)),
        # Floats that JSON cannot say.
        frame_of(0, 0, 1, struct.pack("<qd", 1, float("nan"))),
        frame_of(0, 0, 2, struct.pack("<qqdd", 1, 2, float("inf"), float("-inf"))),
        # Counts that promise what is not there.
        frame_of(0, 0, 2**32 - 1, b""),
        frame_of(0, 1, 2**32 - 1, struct.pack("<qq", 0, 1)),
        frame_of(2, 3, 2**32 - 1, struct.pack("<qq", 0, 1) + b"\0" * 100),
        # Cells: an unknown encoding, lengths that do not add up.
        frame_of(2, 0, 1, struct.pack("<qBI", 1, 4, 0)),
        frame_of(2, 0, 1, struct.pack("<qBI", 1, 0, 1)),
        frame_of(2, 0, 1, struct.pack("<qBI", 1, 0, 2**32 - 1) + b"x"),
        frame_of(2, 0, 1, struct.pack("<qBI", 1, 0, 0) + b"x"),
        # Compression: not zlib, no size, a wrong size, something behind it.
        frame_of(2, 4, 0, b""),
        frame_of(2, 4, 0, struct.pack("<I", 3) + b"abc"),
        frame_of(2, 4, 1, struct.pack("<qI", 1, 4) + zlib.compress(struct.pack("<BI", 0, 0))),
        frame_of(2, 4, 1, struct.pack("<qI", 1, 6) + zlib.compress(struct.pack("<BI", 0, 0))),
        frame_of(2, 4, 1, struct.pack("<qI", 1, 5) + zlib.compress(struct.pack("<BI", 0, 0)) + b"x"),
        frame_of(2, 4, 1, struct.pack("<qI", 1, 5) + zlib.compress(struct.pack("<BI", 0, 0))[:-1]),
    ],
)
def test_a_frame_that_breaks_a_rule_is_refused(frame):
    with pytest.raises(InvalidPoints):
        decode(frame)


def test_a_sum_that_overflows_does_not_refuse_finite_floats():
    points = Points.from_pairs([(1, 1.7e308), (2, 1.7e308)])
    assert isinstance(points.values, array)
    assert points.values.typecode == "d"
    assert decode(encode(points)) == points


def test_a_decompression_bomb_is_refused_before_it_takes_memory():
    bomb = zlib.compress(bytes(200 * 2**20), 9)
    honest = frame_of(2, 6, 1, struct.pack("<qI", 1, 200 * 2**20) + bomb)
    lying = frame_of(2, 6, 1, struct.pack("<qI", 1, 1_000) + bomb)
    many = frame_of(2, 7, 2**24, struct.pack("<qqI", 0, 1, 2**26 + 1) + zlib.compress(bytes(2**26 + 1), 9))
    tracemalloc.start()
    try:
        for frame in (honest, lying, many):
            with pytest.raises(InvalidPoints):
                decode(frame, bytes_max=2**20)
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


def test_a_reader_bounds_frame_and_stream():
    reader = FrameReader(frame_bytes_max=100)
    with pytest.raises(InvalidPoints) as caught:
        list(reader.feed(struct.pack("<I", 97)))
    assert caught.value.code == "body-too-large"

    frame = encode(Points.from_pairs([(1, 1), (2, 2)]))
    reader = FrameReader(stream_bytes_max=16 * 3)
    assert len(list(reader.feed(frame * 3))) == 3
    with pytest.raises(InvalidPoints) as caught:
        list(reader.feed(frame))
    assert caught.value.code == "body-too-large"


def test_a_stream_that_ends_inside_a_frame_is_refused():
    reader = FrameReader()
    assert list(reader.feed(encode(SAMPLES)[:-1])) == []
    with pytest.raises(InvalidPoints):
        reader.finish()


# --- values ------------------------------------------------------------------------------------------------


def json_cells(*texts: bytes) -> Points:
    return Points.from_values((t, Value(Encoding.JSON, text)) for t, text in enumerate(texts))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "invalid-value"),
        (b"NaN", "invalid-value"),
        (b'"\xff"', "invalid-value"),
        (b"1 2", "invalid-value"),
        (b'"\\ud800"', "invalid-value"),
        (b"[" * 200 + b"]" * 200, "nesting-too-deep"),
        (b'"' + b"x" * 2_000 + b'"', "value-too-large"),
    ],
)
def test_json_cells_have_to_be_json_within_the_limits(text, code):
    with pytest.raises(InvalidPoints, match="timestamp 1") as caught:
        checked(json_cells(b"1", text), value_bytes_max=1_000, nesting_max=100)
    assert caught.value.code == code


def test_other_values_are_opaque():
    checked(Points.from_values([(1, Value(Encoding.SEALED, b"NaN")), (2, Value(Encoding.JSON, b"{}"))]))
    checked(Points.from_pairs([(1, 1.5)]), value_bytes_max=1)


# --- digests -----------------------------------------------------------------------------------------------


def test_a_digest_is_what_the_page_says():
    values = [Value(Encoding.JSON, b'"a"'), Value(Encoding.SEALED, b"\x01\x02"), Value(Encoding.JSON, b"1.5")]
    points = Points.from_values(zip((-1, 5, 2**40), values, strict=True))
    told = struct.pack("<Q3q3B3I", 3, -1, 5, 2**40, 0, 3, 0, 3, 2, 3) + b'"a"\x01\x021.5'
    assert digest(points) == hashlib.sha256(told).hexdigest()
    assert digest(Points.empty()) == hashlib.sha256(bytes(8)).hexdigest()


@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))))
def test_a_digest_does_not_depend_on_the_column(pairs):
    numbers = Points.from_pairs(pairs)
    cells = Points.from_values((t, Value(Encoding.JSON, msgspec.json.encode(value))) for t, value in pairs)
    assert digest(numbers) == digest(cells)
    if pairs:
        assert digest(numbers[1:]) != digest(numbers)
