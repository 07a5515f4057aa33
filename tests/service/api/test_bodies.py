"""Values and bodies in JSON and msgpack."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from rstore.core.encodings import Encoding, Value
from rstore.core.media_types import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from rstore.core.point_parsing import parse_points
from rstore.core.point_rows import Form
from rstore.core.points import InvalidPoints
from rstored.api.bodies import decode_body
from rstored.api.shapes.es import Apply, ResealBody
from rstored.api.shapes.kv import KeyBatch
from rstored.api.tokens import TokenRequest
from rstored.api.values import nothing_but_json, read_value, wire_value
from rstored.limits import Limits
from rstored.problems import Problem

SECRET = "xor4711"
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


def refusal_of(body: bytes, form: str, shape: type) -> str:
    """What a problem says of the body; empty if there is none."""
    try:
        decode_body(body, form, shape)
    except Problem as problem:
        return problem.detail
    return ""


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


@pytest.mark.parametrize("shape", [Apply, ResealBody, KeyBatch, TokenRequest])
@given(data=st.data())
def test_a_refusal_of_a_body_is_a_sentence_of_our_own_without_values(shape, data):
    names = st.sampled_from(["events", "set", "get", "item", "key", "op", "value", "timestamp", "access", "namespaces"])
    leaves = st.sampled_from([SECRET, 2**70, -1, 0.5, 1e300, None, True, f"{SECRET}\u00ff"])
    bodies = st.recursive(leaves, lambda part: st.lists(part, max_size=3) | st.dictionaries(names, part, max_size=4))
    text = msgspec.json.encode(data.draw(bodies))
    cut = data.draw(st.integers(0, len(text)))
    for body in (text, text[:cut], text[:cut] + b"]" + text[cut:], text[:cut] + b"\xc1" + text[cut:]):
        for form in FORMS:
            detail = refusal_of(body, form, shape)
            assert SECRET not in detail
            assert not re.search("JSON is|MessagePack|Input|Expected|Object|Invalid|`|opcode '", detail)


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
def test_what_is_not_base64(text, code):
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


# --- members that stand twice ------------------------------------------------------------------------------


class Members(list[Any]):
    """An object as its pairs of name and value, of which several may have one name."""


def written(value, form, escaped=False) -> bytes:
    """JSON or msgpack, in which names may be escaped for no reason."""
    if isinstance(value, Members):
        pairs = [(written_name(name, form, escaped), written(member, form, escaped)) for name, member in value]
        if form == JSON_MEDIA_TYPE:
            return b"{" + b", ".join(name + b" : " + member for name, member in pairs) + b"}"
        head = bytes([0x80 | len(pairs)]) if len(pairs) < 16 else b"\xde" + len(pairs).to_bytes(2, "big")
        return head + b"".join(name + member for name, member in pairs)
    if isinstance(value, list):
        items = [written(item, form, escaped) for item in value]
        if form == JSON_MEDIA_TYPE:
            return b"[" + b",".join(items) + b"]"
        return msgspec.msgpack.encode([None] * len(items))[: -len(items) or None] + b"".join(items)
    return json.dumps(value).encode() if form == JSON_MEDIA_TYPE else msgspec.msgpack.encode(value)


def written_name(name, form, escaped) -> bytes:
    if form != JSON_MEDIA_TYPE:
        return msgspec.msgpack.encode(name)
    text = json.dumps(name).encode()
    return b'"\\u%04x' % ord(name[0]) + json.dumps(name[1:]).encode()[1:] if escaped else text


NAMES = ["item", "op", "value", "key", "timestamp", "points", "events", "a", ":", '"item":', "{"]
OWN_VALUES = st.recursive(
    st.sampled_from([None, 5, ":", '{"item":1,"item":2}', "\\", "::"]),
    lambda inner: (
        st.lists(st.tuples(st.sampled_from(NAMES), inner), max_size=4).map(Members) | st.lists(inner, max_size=2)
    ),
    max_leaves=6,
)
TEXT = st.sampled_from(["x", "a:b", ":", '"key":', "\\"])
SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "events": (Apply, {"item": TEXT, "op": st.just("add"), "value": OWN_VALUES, "encoding": st.just("json")}),
    "set": (KeyBatch, {"key": TEXT, "value": OWN_VALUES, "ttl": st.just("never"), "if_match": st.just("*")}),
    "delete": (KeyBatch, {"key": TEXT, "if_match": st.just("*")}),
}


@st.composite
def envelopes(draw):
    """A body with an array of parts, and the pointers of all objects that are not values."""
    name = draw(st.sampled_from(sorted(SHAPES)))
    shape, members = SHAPES[name]
    needed = {"item", "key", "value"}
    parts: list[Any] = [
        Members((n, draw(value)) for n, value in members.items() if n in needed or draw(st.booleans()))
        for _ in range(draw(st.integers(0, 4)))
    ]
    if name == "delete":
        parts = [part if draw(st.booleans()) and len(part) == 2 else "k:1" for part in parts]
    body = Members([(name, parts)])
    if shape is Apply and draw(st.booleans()):
        body.append(("timestamp", 5))
    objects = {f"/{name}/{i}": part for i, part in enumerate(parts) if isinstance(part, Members)}
    return shape, body, {"": body} | objects


@pytest.mark.parametrize("form", FORMS)
@given(envelopes(), st.booleans(), st.data())
def test_a_member_that_stands_twice_is_refused_wherever_it_stands(form, drawn, escaped, data):
    shape, body, objects = drawn
    decode_body(written(body, form, escaped), form, shape)
    pointer = data.draw(st.sampled_from(sorted(objects)))
    chosen = objects[pointer]
    repeated = data.draw(st.sampled_from(chosen))
    chosen.insert(data.draw(st.integers(0, len(chosen))), repeated)
    with pytest.raises(Problem) as caught:
        decode_body(written(body, form, escaped), form, shape)
    assert caught.value.code == "invalid-body"
    assert caught.value.members["pointer"] == pointer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "members"),
    [
        (TokenRequest, [("namespaces", ["a"]), ("access", "read"), ("access", "admin")]),
        (ResealBody, [("events", []), ("events", [])]),
    ],
)
def test_other_bodies_are_checked_alike(form, shape, members):
    with pytest.raises(Problem, match="twice"):
        decode_body(written(Members(members), form), form, shape)


@pytest.mark.parametrize("form", [Form.JSON, Form.MSGPACK])
@given(st.lists(st.lists(OWN_VALUES, max_size=3), min_size=1, max_size=3), st.booleans())
def test_points_that_stand_twice_are_refused(form, lists, escaped):
    members = Members(("points", [[t, value] for t, value in enumerate(values)]) for values in lists)
    body = written(members, form.value, escaped)
    if len(lists) == 1:
        assert len(parse_points(body, form)) == len(lists[0])
    else:
        with pytest.raises(InvalidPoints, match="twice"):
            parse_points(body, form)
