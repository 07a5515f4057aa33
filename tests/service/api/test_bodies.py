"""Values and bodies in JSON and msgpack."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from rstore.encodings import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE, Encoding, Value
from rstored.api.bodies import nothing_but_json, read_value, wire_value
from rstored.limits import Limits
from rstored.problems import Problem

FORMS = [JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE]
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**90), 2**90)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def same(left: object, right: object) -> bool:
    """Equal and alike in type, all the way down."""
    return repr(left) == repr(right)


@pytest.mark.parametrize("form", FORMS)
@given(value=JSON_VALUES)
def test_a_json_value_goes_out_and_comes_in(form, value):
    text = msgspec.json.encode(value)
    raw, encoding = wire_value(Value(Encoding.JSON, text), form)
    came = read_value(raw, encoding, form, Limits(), "/value")
    assert came.encoding is Encoding.JSON
    assert same(msgspec.json.decode(came.data), value)


@pytest.mark.parametrize("form", FORMS)
@given(data=st.binary(max_size=40), encoding=st.sampled_from([Encoding.BYTES, Encoding.PICKLE, Encoding.SEALED]))
def test_bytes_go_out_and_come_in(form, data, encoding):
    raw, label = wire_value(Value(encoding, data), form)
    assert label == encoding.label
    assert read_value(raw, label, form, Limits(), "/value") == Value(encoding, data)


def test_json_text_is_kept_to_the_byte():
    text = b'{ "a" : 1.0e2, "b": 123456789012345678901234567890 }'
    assert wire_value(Value(Encoding.JSON, text), JSON_MEDIA_TYPE) == (Raw(text), UNSET)
    assert read_value(Raw(text), UNSET, JSON_MEDIA_TYPE, Limits(), "") == Value(Encoding.JSON, text)


def test_integers_beyond_64_bits_are_json_text_in_msgpack():
    raw, encoding = wire_value(Value(Encoding.JSON, b"[18446744073709551616]"), MSGPACK_MEDIA_TYPE)
    assert (msgspec.msgpack.decode(raw), encoding) == (b"[18446744073709551616]", "json")
    raw, encoding = wire_value(Value(Encoding.JSON, b"18446744073709551615"), MSGPACK_MEDIA_TYPE)
    assert (msgspec.msgpack.decode(raw), encoding) == (2**64 - 1, UNSET)


@pytest.mark.parametrize(
    ("text", "code"),
    [(text, "invalid-body") for text in (b"5", b"null", b"[]", b'"AAAA')]
    + [(text, "invalid-value") for text in (b'"AAA"', b'"A-_="', b'"AA AA"')],
)
def test_what_is_no_base64(text, code):
    with pytest.raises(Problem) as caught:
        read_value(Raw(text), "sealed", JSON_MEDIA_TYPE, Limits(), "/set/3/value")
    assert caught.value.code == code
    assert caught.value.members["pointer"] == "/set/3/value"


@pytest.mark.parametrize(
    "value", [float("nan"), [float("-inf")], {1: 2}, {"a": {b"x": 1}}, b"x", [b"x"], msgspec.msgpack.Ext(1, b"")]
)
def test_what_msgpack_can_say_and_json_cannot(value):
    packed = msgspec.msgpack.encode(value)
    with pytest.raises(ValueError, match=r"JSON has no|a key"):
        nothing_but_json(msgspec.msgpack.decode(packed))
    with pytest.raises(Problem) as caught:
        read_value(Raw(packed), UNSET, MSGPACK_MEDIA_TYPE, Limits(), "/value")
    assert caught.value.code == "invalid-value"


def test_a_msgpack_value_that_is_too_deep():
    with pytest.raises(Problem) as caught:
        read_value(Raw(b"\x91" * 100_000 + b"\x01"), UNSET, MSGPACK_MEDIA_TYPE, Limits(), "/value")
    assert caught.value.code == "nesting-too-deep"
