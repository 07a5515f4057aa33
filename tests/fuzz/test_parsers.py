"""Whatever comes in, each parser returns or raises the one exception that it declares, in bounded time and memory.

What is well formed and comes back the same is tested beside each module; here is what is broken, or nearly right.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route
from tests.knobs import knob

import rstore
from rstore import pickles
from rstore.core.encodings import Encoding, Value
from rstore.core.errors import StoreDecryptionError, StoreEncodingError
from rstore.core.frames import FrameReader, encode_stream
from rstore.core.point_parsing import parse_points
from rstore.core.point_rows import Form, render_points
from rstore.core.points import InvalidPoints, Points, checked
from rstore.pickles.harmless import GLOBALS
from rstore.sealing import PairContext, PointContext, Sealer
from rstored.api.openapi import declare_routes
from rstored.api.operations import Operation
from rstored.api.parameters import decode_text, parse_query, read_cursor
from rstored.problems import Problem

EXAMPLES = 100 * int(knob("RSTORE_FUZZ_EXAMPLES", "1"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

POINTS = Points.from_values(
    [
        (-(2**63), Value(Encoding.JSON, b'{"a": [1, null, "x"]}')),
        (0, Value(Encoding.SEALED, bytes(range(60)))),
        (5, Value(Encoding.BYTES, b"\xff\0,\r\n")),
        (2**63 - 1, Value(Encoding.JSON, b"-1.5e-7")),
    ]
)
NUMBERS = Points.from_pairs([(t, t / 4) for t in range(40)])


def body(points: Points, form: Form) -> bytes:
    if form is Form.MSGPACK:
        return msgspec.msgpack.encode({"points": [[1, 2.5], [2, b"\0\xff", "bytes"], [3, {"a": None}]]})
    if form is Form.FRAMES:
        return b"".join(encode_stream(points))
    return form.opening + render_points(points, form) + form.closing


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """The data with a few pieces of it replaced, dropped or doubled."""
    piece = st.tuples(st.integers(0, len(data)), st.integers(0, 6), st.binary(max_size=6) | st.sampled_from(TOKENS))

    def cut(pieces: list[tuple[int, int, bytes]]) -> bytes:
        changed = data
        for at, length, new in pieces:
            changed = changed[:at] + new + changed[at + length :]
        return changed

    return st.lists(piece, min_size=1, max_size=4).map(cut)


TOKENS = [
    b'"',
    b",",
    b"[",
    b"]",
    b"{",
    b"}",
    b"[[[[",
    b"\r\n",
    b"null",
    b"1e999",
    b"-",
    b"\xff" * 8,
    b"\0" * 8,
    b"\x91" * 9,
]


def bounded(work: Callable[[], Any]) -> None:
    """Runs it, and holds it to a second of this thread's time and to some megabytes."""
    tracemalloc.start()
    start = time.thread_time()
    try:
        work()
    finally:
        spent, (_, peak) = time.thread_time() - start, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert spent < 1
    assert peak < 8_000_000


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("points", [POINTS, NUMBERS], ids=["values", "numbers"])
@fuzz
@given(data=st.data())
def test_a_broken_body_of_points_is_refused_or_is_points(form, points, data):
    sent = data.draw(damaged(body(points, form)) | st.binary(max_size=60))

    def work() -> None:
        try:
            found = parse_points(sent, form, points_max=100, bytes_max=100_000)
            checked(found)
        except InvalidPoints:
            return
        assert list(found.timestamps) == sorted(set(found.timestamps))
        assert len(found) <= 100

    bounded(work)


@fuzz
@given(damaged(body(POINTS, Form.FRAMES) + body(NUMBERS, Form.FRAMES)), st.lists(st.integers(1, 40), max_size=9))
def test_a_broken_stream_of_frames_is_refused_or_is_points_however_it_is_cut(stream, sizes):
    def read(cuts: list[int]) -> list[Any] | None:
        reader = FrameReader(stream_bytes_max=100_000)
        found: list[Any] = []
        try:
            for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                found += reader.feed(stream[start:end])
            reader.finish()
        except InvalidPoints:
            return None
        return [point for points in found for point in points]

    cuts = sorted({min(sum(sizes[: n + 1]), len(stream)) for n in range(len(sizes))})
    bounded(lambda: read(cuts))
    assert read(cuts) == read([])


SEALER = Sealer([rstore.generate_key(), rstore.generate_key()], accept_fernet=True)
PLACE = PairContext("n", "k")
ENVELOPE = SEALER.seal(Value(Encoding.JSON, b"[1,2,3]"), PLACE).data


@fuzz
@given(damaged(ENVELOPE) | st.binary(max_size=80), st.sampled_from(Encoding))
def test_a_broken_envelope_is_refused(envelope, encoding):
    if envelope == ENVELOPE:
        return
    for place in (PLACE, PointContext("n", "k", 5)):
        with pytest.raises(StoreDecryptionError):
            SEALER.open(Value(encoding, envelope), place)


# --- pickles -----------------------------------------------------------------------------------------------

HARMLESS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.dates()
    | st.datetimes()
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


class Reference(pickle.Unpickler):
    """Python's own, of the names that a harmless pickle may have."""

    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) in GLOBALS, f"{module}.{name} was read without being in the table"
        return super().find_class(module, name)


@fuzz
@given(HARMLESS)
def test_a_harmless_pickle_is_read_as_python_reads_it(value):
    data = pickles.dumps(value)
    assert repr(pickles.loads(data, trusted=False)) == repr(Reference(io.BytesIO(data)).load()) == repr(value)


@fuzz
@given(HARMLESS.map(pickles.dumps).flatmap(damaged))
def test_a_broken_pickle_is_refused_or_is_no_other_value_than_pythons(data):
    found: list[Any] = []

    def work() -> None:
        with contextlib.suppress(StoreEncodingError):
            found.append(pickles.loads(data, trusted=False))

    bounded(work)
    assert found == [] or repr(found[0]) == repr(Reference(io.BytesIO(data)).load())


# --- the service's query strings and paths -----------------------------------------------------------------

QUERIES: set[Any] = {
    route.endpoint.query
    for route in declare_routes().routes
    if isinstance(route, Route) and isinstance(route.endpoint, Operation)
}
NAMES = sorted({name for query in QUERIES for name in query.model_fields})
piece = st.sampled_from(
    [*NAMES, "=", "&", "%", "%00", "%ff", "+", ";", "-1", "1e9", "9" * 30, "true", "never", "*", "nan"]
)
raw_query = st.lists(piece.map(str.encode) | st.binary(max_size=4), max_size=12).map(b"".join)


@pytest.mark.parametrize("query", sorted(QUERIES, key=str))
@fuzz
@given(raw=raw_query)
def test_a_query_is_read_or_is_a_problem(query, raw):
    with contextlib.suppress(Problem):
        found = parse_query(raw, query)
        if getattr(found, "cursor", None) is not None:
            read_cursor(found.cursor)


@fuzz
@given(raw_query)
def test_a_path_segment_is_text_or_a_value_error(raw):
    with contextlib.suppress(ValueError):
        assert "\ud800" not in decode_text(raw)
