"""Points as JSON, msgpack, NDJSON and CSV: what is written comes back, and an error names its place."""

from __future__ import annotations

import csv
import io
import json
import math
from base64 import b64encode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstore.core.encodings import Encoding, Value
from rstore.core.frames import encode
from rstore.core.point_parsing import parse_points
from rstore.core.point_rows import Form, msgpack_rows, render_points
from rstore.core.points import Cells, InvalidPoints, Points, checked, split

FORMS = list(Form)
int64 = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | floats | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
json_values = plain.map(lambda value: Value(Encoding.JSON, msgspec.json.encode(value)))
values = json_values | st.builds(Value, st.sampled_from(list(Encoding)[1:]), st.binary(max_size=20))
any_points = st.one_of(
    st.lists(st.tuples(int64, floats)).map(Points.from_pairs),
    st.lists(st.tuples(int64, int64)).map(Points.from_pairs),
    st.lists(st.tuples(int64, floats | st.integers())).map(Points.from_pairs),
    st.lists(st.tuples(int64, values)).map(Points.from_values),
)


def body_of(points: Points, form: Form, *, part_points: int = 3, descending: bool = False) -> bytes:
    """A whole body, as the service streams it."""
    if form is Form.MSGPACK:
        return msgspec.msgpack.encode({"points": msgpack_rows(points)})
    parts = list(split(points, points_max=part_points, bytes_max=1_000_000))
    if descending:
        parts.reverse()
    rendered = [render_points(part, form, descending=descending) for part in parts]
    return form.opening + form.separator.join(rendered) + form.closing


def plainly(points: Points) -> list[tuple[int, object]]:
    """Points without regard to how JSON values are held."""
    if not isinstance(points.values, Cells):
        return [(t, repr(value)) for t, value in points]
    return [
        (t, repr(msgspec.json.decode(value.data)) if value.encoding is Encoding.JSON else value) for t, value in points
    ]


@pytest.mark.parametrize("form", FORMS)
@given(points=any_points, descending=st.booleans())
def test_a_body_comes_back(form, points, descending):
    parsed = checked(parse_points(body_of(points, form, descending=descending), form))
    assert plainly(parsed) == plainly(points)


@pytest.mark.parametrize("form", FORMS)
def test_numbers_come_back_as_columns(form):
    for value in (1.5, 1):
        points = Points.from_pairs((t, value * t) for t in range(1_000))
        assert parse_points(body_of(points, form, part_points=100), form) == points


def test_the_published_shapes():
    points = Points.from_values([(1, Value(Encoding.JSON, b'{"a": "x,y"}')), (2, Value(Encoding.SEALED, b"\xde\xad"))])
    assert body_of(points, Form.JSON) == b'{"points":[[1,{"a": "x,y"}],[2,"3q0=","sealed"]]}'
    assert body_of(points, Form.NDJSON) == b'[1,{"a": "x,y"}]\n[2,"3q0=","sealed"]\n'
    assert body_of(points, Form.CSV) == b'timestamp,value,encoding\r\n1,"{""a"": ""x,y""}",\r\n2,3q0=,sealed\r\n'
    assert msgpack_rows(points) == [(1, {"a": "x,y"}), (2, b"\xde\xad", "sealed")]
    assert body_of(Points.empty(), Form.JSON) == b'{"points":[]}'


@given(st.lists(st.tuples(int64, values)).map(Points.from_values))
def test_the_csv_is_what_others_read(points):
    rows = list(csv.reader(io.StringIO(body_of(points, Form.CSV).decode(), newline=""), strict=True))
    assert rows[0] == ["timestamp", "value", "encoding"]
    for (t, value), row in zip(points, rows[1:], strict=True):
        text = value.data.decode() if value.encoding is Encoding.JSON else b64encode(value.data).decode()
        assert row == [str(t), text, "" if value.encoding is Encoding.JSON else value.encoding.label]


def test_a_json_value_of_several_lines_stands_on_one():
    points = Points.from_values(
        [(1, Value(Encoding.JSON, b'{\r\n "a": 1.50,\n "b": "x y"}')), (2, Value(Encoding.JSON, b"1"))]
    )
    assert body_of(points, Form.NDJSON) == b'[1,{"a":1.50,"b":"x y"}]\n[2,1]\n'
    assert parse_points(body_of(points, Form.CSV), Form.CSV) == points


def test_a_value_keeps_its_json_text():
    points = parse_points(b'{"points": [[1, {"b": 1.50, "a": 1e3} ], [2, "\\u00e9"]]}', Form.JSON)
    assert [value.data for _, value in points] == [b'{"b": 1.50, "a": 1e3}', b'"\\u00e9"']


# --- numbers -----------------------------------------------------------------------------------------------

digits = st.text("0123456789", min_size=1, max_size=25)
long_digits = st.one_of(
    digits,
    st.integers(150, 420).map(lambda count: "0" * count),
    st.tuples(st.integers(150, 420), digits).map(lambda parts: "0" * parts[0] + parts[1]),
    st.tuples(digits, st.integers(150, 420)).map(lambda parts: parts[0] + "0" * parts[1]),
)
literals = st.builds(
    lambda sign, whole, fraction, exponent: sign + (whole.lstrip("0") or "0") + fraction + exponent,
    st.sampled_from(["", "-"]),
    long_digits,
    st.just("") | long_digits.map(lambda text: "." + text),
    st.just("")
    | st.builds(
        lambda mark, sign, zeros, number: f"{mark}{sign}{zeros}{number}",
        st.sampled_from("eE"),
        st.sampled_from(["", "+", "-"]),
        st.sampled_from(["", "0", "000"]),
        st.integers(0, 30) | st.integers(90, 110) | st.integers(290, 350) | st.integers(10**19, 10**20),
    ),
)
EDGES = (
    *("12345678901234567.25", "1e-400", "-1e-400", "1e400", "-1e400", "0e400", "0e-400", "-0.0", "-0", "0.0e-999999"),
    *("2e-324", "3e-324", "5e-324", "2.2250738585072011e-308", "1.7976931348623157e308", "1.7976931348623159e308"),
    *("0." + "0" * 330 + "1", "0." + "0" * 330 + "1e330", "0." + "0" * 230 + "1E-99", "1" + "0" * 330 + "e-330"),
    *(
        "1" + "0" * 330 + ".0",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775809",
        "18446744073709551616",
    ),
    *("1.50", "1e3", "1E+3", "1" * 4300, "1" * 4301, "-" + "1" * 4300, "1e" + "9" * 30, "1e-" + "9" * 30),
)


def number_of(literal: str) -> int | float | None:
    """What a number means, by Python's own reading of it; None for one that is refused."""
    mantissa = literal.lower().partition("e")[0]
    if set(literal) <= set("-0123456789"):
        return int(literal) if len(literal) <= 4300 else None
    number = float(literal)
    became_zero = number == 0 and not set(mantissa) <= set("-0.")
    return None if became_zero or math.isinf(number) else number


def bodies_of(literal: str, beside: bytes) -> dict[Form, bytes]:
    """Bodies of the two points of timestamps 1, the number, and 2, other JSON."""
    text = literal.encode()
    field = b'"' + beside.replace(b'"', b'""') + b'"' if b'"' in beside or b"," in beside else beside
    rows = [[1, text, "json"], [2, beside, "json"]]
    cells = Points.from_values([(t, Value(Encoding.JSON, data)) for t, data in ((1, text), (2, beside))])
    return {
        Form.JSON: b'{"points": [[1, %b], [2, %b]]}' % (text, beside),
        Form.NDJSON: b"[1,%b]\n[2,%b]\n" % (text, beside),
        Form.CSV: b"timestamp,value\n1,%b\n2,%b\n" % (text, field),
        Form.MSGPACK: msgspec.msgpack.encode({"points": rows}),
        Form.FRAMES: encode(cells),
    }


@pytest.mark.parametrize("beside", [b"0", b"0.0", b"1.5", b"null", b'"1e-400"', b'{"a": [1.50]}'])
@given(literal=literals | st.sampled_from(EDGES))
def test_a_number_means_the_same_in_every_form(beside, literal):
    expected = number_of(literal)
    for form, body in bodies_of(literal, beside).items():
        if expected is None:
            with pytest.raises(InvalidPoints) as caught:
                checked(parse_points(body, form))
            assert caught.value.code == "invalid-value", form
            # A frame is not a list of rows; there the message names the timestamp.
            assert caught.value.pointer == "/points/0" or (form is Form.FRAMES and "timestamp 1" in str(caught.value))
            continue
        points = checked(parse_points(body, form))
        for asked in FORMS:
            back = parse_points(body_of(points, asked), asked)
            assert plainly(back)[0] == (1, repr(expected)), (form, asked)
            assert plainly(back)[1:] == plainly(points)[1:]


@pytest.mark.parametrize("literal", EDGES)
def test_a_number_that_another_point_replaces_is_refused_all_the_same(literal):
    for form, body in bodies_of(literal, b"1.5").items():
        twice = body.replace(b"[2,", b"[1,").replace(b"\n2,", b"\n1,").replace(b"\x93\x02", b"\x93\x01")
        if form is Form.FRAMES:
            continue
        if number_of(literal) is None:
            with pytest.raises(InvalidPoints):
                parse_points(twice, form)
        else:
            assert plainly(parse_points(twice, form)) == [(1, "1.5")]


def test_what_is_not_a_bare_number_keeps_its_text():
    for text in (b'{"a": 12345678901234567.25}', b"[1.50, 1e3]", b'"1e-400"'):
        for form, body in bodies_of("1", text).items():
            assert list(checked(parse_points(body, form)))[1][1].data == text


# --- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (Form.JSON, b'{"points": [[5, 1], [4, 2], [5, 3]]}'),
        (Form.NDJSON, b"[5, 1]\n\n[4, 2]\r\n[5, 3]"),
        (Form.CSV, b"timestamp,value\n5,1\n4,2\n5,3\n"),
        (Form.CSV, b"timestamp,value,encoding\r\n5,1,\r\n4,2,\r\n\r\n5,3,\r\n"),
        (Form.CSV, b'\xef\xbb\xbftimestamp,value,encoding\r\n"5",1,json\r\n4,"2",\r\n5,3,'),
        (Form.MSGPACK, msgspec.msgpack.encode({"points": [[5, 1], [4, 2], [5, 3]]})),
        (Form.FRAMES, encode(Points.from_pairs([(5, 1)])) + encode(Points.from_pairs([(4, 2), (5, 3)]))),
    ],
)
def test_rows_come_in_any_order_and_the_last_of_equals_wins(form, body):
    assert plainly(parse_points(body, form)) == [(4, "2"), (5, "3")]


def test_json_may_be_named():
    expected = [(1, Value(Encoding.JSON, b'"YQ=="'))]
    assert list(parse_points(b'{"points": [[1, "YQ==", "json"]]}', Form.JSON)) == expected
    assert list(parse_points(b'timestamp,value,encoding\n1,"""YQ==""",json', Form.CSV)) == expected
    assert list(parse_points(msgspec.msgpack.encode({"points": [[1, b'"YQ=="', "json"]]}), Form.MSGPACK)) == expected
    assert list(parse_points(msgspec.msgpack.encode({"points": [[1, "YQ==", "json"]]}), Form.MSGPACK)) == expected


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", "malformed-body"),
        ("{", "malformed-body"),
        ("[[1, 2]]", "invalid-body"),
        ("{}", "invalid-body"),
        ('{"points": null}', "invalid-body"),
        ('{"points": {}}', "invalid-body"),
        ('{"points": [[1, 2]], "more": 1}', "invalid-body"),
        ('{"points": [1]}', "invalid-body"),
        ('{"points": [[]]}', "invalid-body"),
        ('{"points": [[1]]}', "invalid-body"),
        ('{"points": [[1, 2, "json", 3]]}', "invalid-body"),
        ('{"points": [[1.0, 2]]}', "invalid-body"),
        ('{"points": [[true, 2]]}', "invalid-body"),
        ('{"points": [["1", 2]]}', "invalid-body"),
        ('{"points": [[null, 2]]}', "invalid-body"),
        ('{"points": [[9223372036854775808, 2]]}', "invalid-body"),
        ('{"points": [[1, 2, "unknown"]]}', "invalid-body"),
        ('{"points": [[1, "YQ==", 3]]}', "invalid-body"),
        ('{"points": [[1, 2, "sealed"]]}', "invalid-body"),
        ('{"points": [[1, "YQ", "sealed"]]}', "invalid-value"),
        ('{"points": [[1, "Y Q==", "sealed"]]}', "invalid-value"),
        ('{"points": [[1, "é", "sealed"]]}', "invalid-value"),
        ('{"points": [[1, NaN]]}', "malformed-body"),
        ('{"points": [[1, Infinity]]}', "malformed-body"),
        ('{"points": [[1, ' + "[" * 100_000 + "]" * 100_000 + "]]}", "nesting-too-deep"),
        ('{"points": [[1, 1e999]]}', "invalid-value"),
        ('{"points": [[1, ' + "1" * 5_000 + "]]}", "invalid-value"),
        ('{"points": [[1, "\\ud800"]]}', "malformed-body"),
        ('{"points": [[1, 2]]} x', "malformed-body"),
    ],
)
def test_json_that_is_not_points_is_refused(body, code):
    with pytest.raises(InvalidPoints) as caught:
        checked(parse_points(body.encode(), Form.JSON))
    assert caught.value.code == code


def test_invalid_utf8_is_refused():
    for body, form in [
        (b'{"points": [[1, "\xff"]]}', Form.JSON),
        (b'{"points": [[1, "YQ==", "\xff"]]}', Form.JSON),
        (b'[1, "\xff"]', Form.NDJSON),
        (b'timestamp,value\n1,"""\xff"""', Form.CSV),
        (b"\xff", Form.CSV),
        (b"\x81\xa6points\x91\x92\x01\xa1\xff", Form.MSGPACK),
    ]:
        with pytest.raises(InvalidPoints):
            checked(parse_points(body, form))


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[1,2][3,4]\n", "malformed-body"),
        (b"[1,\n2]\n", "malformed-body"),
        (b'[1,"a"][3,4]\n', "malformed-body"),
        (b"[1,2],[3,4]", "malformed-body"),
        (b"{}", "invalid-body"),
        (b"[1,2]\n[3]", "invalid-body"),
        (b"[1,2]\n[3,4", "malformed-body"),
    ],
)
def test_ndjson_has_one_array_a_line(body, code):
    with pytest.raises(InvalidPoints) as caught:
        parse_points(body, Form.NDJSON)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid-body"),
        (b"1,2\n", "invalid-body"),
        (b"value,timestamp\n1,2\n", "invalid-body"),
        (b"timestamp,value\n1,2,\n", "invalid-body"),
        (b"timestamp,value\n1\n", "invalid-body"),
        (b"timestamp,value,encoding\n1,2\n", "invalid-body"),
        (b"timestamp,value\n1.5,2\n", "invalid-body"),
        (b"timestamp,value\n+1,2\n", "invalid-body"),
        (b"timestamp,value\n,2\n", "invalid-body"),
        (b"timestamp,value\n1,\n", "invalid-value"),
        (b"timestamp,value\n1,text\n", "invalid-value"),
        (b"timestamp,value\n1,nan\n", "invalid-value"),
        (b"timestamp,value\n1,2],[3,4\n", "invalid-body"),
        (b'timestamp,value\n1,"2\n', "malformed-body"),
        (b'timestamp,value\n1,"2"x\n', "malformed-body"),
        (b'timestamp,value\n1,2"\n', "malformed-body"),
        (b"timestamp,value,encoding\n1,YQ,sealed\n", "invalid-value"),
        (b"timestamp,value,encoding\n1,YQ==,other\n", "invalid-body"),
        (b"timestamp,value\n9223372036854775808,2\n", "invalid-body"),
    ],
)
def test_csv_that_is_not_points_is_refused(body, code):
    with pytest.raises(InvalidPoints) as caught:
        checked(parse_points(body, Form.CSV))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"bytes", "invalid-value"),
        (float("nan"), "invalid-value"),
        ([1, {"a": float("inf")}], "invalid-value"),
        ({1: 2}, "invalid-value"),
        ({b"a": 2}, "invalid-value"),
        ([{"a": b"x"}], "invalid-value"),
        (msgspec.msgpack.Ext(5, b"x"), "invalid-value"),
    ],
)
def test_msgpack_that_json_cannot_say_is_refused(value, code):
    with pytest.raises(InvalidPoints) as caught:
        parse_points(msgspec.msgpack.encode({"points": [[0, 1], [1, value]]}), Form.MSGPACK)
    assert (caught.value.code, caught.value.pointer) == (code, "/points/1")


def test_deep_or_broken_msgpack_is_refused():
    head = b"\x81\xa6points\x91\x92\x01"
    for body, code in [
        (head + b"\x91" * 200_000, "nesting-too-deep"),
        (head, "malformed-body"),
        (head + b"\xc1", "malformed-body"),
        (head + b"\xdd\xff\xff\xff\xff", "malformed-body"),
        (b"\x81\xa6points\xdd\xff\xff\xff\xff", "malformed-body"),
        (head + b"\x01\x01", "malformed-body"),
        (b"\x90", "invalid-body"),
    ]:
        with pytest.raises(InvalidPoints) as caught:
            parse_points(body, Form.MSGPACK)
        assert caught.value.code == code


@pytest.mark.parametrize("form", FORMS)
def test_too_many_points_are_refused(form):
    body = body_of(Points.from_pairs([(1, 1), (2, 2), (3, 3)]), form)
    assert len(parse_points(body, form, points_max=3)) == 3
    with pytest.raises(InvalidPoints) as caught:
        parse_points(body, form, points_max=2)
    assert caught.value.code == "batch-too-large"


def test_an_error_points_to_the_row_and_repeats_no_value():
    body = json.dumps({"points": [[1, "a"], [2, "secret", "sealed"]]}).encode()
    with pytest.raises(InvalidPoints) as caught:
        parse_points(body, Form.JSON)
    assert caught.value.pointer == "/points/1"
    assert "secret" not in str(caught.value)


ENCODERS = {
    Form.JSON: lambda rows: json.dumps({"points": rows}).encode(),
    Form.NDJSON: lambda rows: b"".join(json.dumps(row).encode() + b"\n" for row in rows),
    Form.MSGPACK: lambda rows: msgspec.msgpack.encode({"points": rows}),
}


@pytest.mark.parametrize("form", ENCODERS)
def test_many_rows_are_read_in_parts_as_if_they_were_one(form):
    # Every timestamp comes three times, in three parts, and the last one wins.
    rows = [[t, f"{time} {t}"] for time in range(3) for t in range(9_000, 0, -1)]
    points = parse_points(ENCODERS[form](rows), form)
    assert list(points) == [(t, Value(Encoding.JSON, b'"2 %d"' % t)) for t in range(1, 9_001)]
    for wrong in ([1, 2, "nothing"], [1], 7, None):
        with pytest.raises(InvalidPoints) as caught:
            parse_points(ENCODERS[form]([*rows, wrong]), form)
        assert (caught.value.code, caught.value.pointer) == ("invalid-body", "/points/27000")


def test_bytes_that_do_not_fit_the_limit_are_refused():
    points = Points.from_values((t, Value(Encoding.JSON, b"1" * 1_000)) for t in range(100))
    body = encode(points)
    assert len(body) < 5_000
    assert parse_points(body, Form.FRAMES, bytes_max=200_000) == points
    with pytest.raises(InvalidPoints) as caught:
        parse_points(body, Form.FRAMES, bytes_max=50_000)
    assert caught.value.code == "body-too-large"
