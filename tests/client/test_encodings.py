"""Encodings, their names and media types, and strict JSON."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstore.core.encodings import (
    JSON_INTEGER_MAX,
    JSON_INTEGER_MIN,
    Encoding,
    InvalidJSON,
    NestingTooDeep,
    encoding_of,
    media_type_of,
    parse_json,
    render_json,
)


def test_the_numbers_are_part_of_stored_data() -> None:
    assert {encoding.label: encoding.value for encoding in Encoding} == {
        "json": 0,
        "bytes": 1,
        "pickle": 2,
        "sealed": 3,
    }


def test_labels_and_media_types_lead_back() -> None:
    for encoding in Encoding:
        assert Encoding.from_label(encoding.label) is encoding
        assert encoding_of(media_type_of(encoding)) is encoding
    assert encoding_of("image/png") is Encoding.BYTES
    assert encoding_of("application/problem+json") is Encoding.BYTES


@pytest.mark.parametrize("label", ["", "JSON", "fernet", "json "])
def test_an_unknown_label_is_refused_with_the_known_ones(label: str) -> None:
    with pytest.raises(ValueError, match="json, bytes, pickle, sealed"):
        Encoding.from_label(label)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b" [1, 2.5, null, true] ", [1, 2.5, None, True]),
        (b"18446744073709551616", 2**64),
        (b"9" * 4300, JSON_INTEGER_MAX),
        (b"-" + b"9" * 4299, JSON_INTEGER_MIN),
        (b"1e2", 100.0),
        (rb'"\ud83d\ude42 \u0000"', "🙂 \0"),
        (b'{"a": {"b": []}}', {"a": {"b": []}}),
    ],
)
def test_json(data: bytes, value: Any) -> None:
    assert parse_json(data) == value
    assert parse_json(render_json(value)) == value


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b" ", b"NaN", b"Infinity", b"-Infinity", b"[1,]", b"{'a':1}", b"01", b"1.", b"+1", b"1 2", b"nul"),
        *(
            b'"\xff"',
            b'"\xed\xa0\x80"',
            rb'"\ud800"',
            rb'"\udc00"',
            rb'"\ud800A"',
            b'"\n"',
            b"\xef\xbb\xbf1",
            b"\xff\xfe1\0",
        ),
        *(
            b"1e400",
            b"1" * 4301,
            b"{1: 2}",
            b'{"a"}',
            b"[",
            b"]",
            b"[}",
            b"\x80",
            b"// 1\n1",
            b'{"\xff": 1}',
            rb'{"\ud800": 1}',
        ),
    ],
)
def test_not_json(data: bytes) -> None:
    with pytest.raises(InvalidJSON, match="not valid JSON"):
        parse_json(data)


def test_a_message_does_not_repeat_the_value() -> None:
    for data in (b'{"secret": hunter2}', b'"hunter2', b'"hunter2\xff"', b'["hunter2" 1]'):
        with pytest.raises(InvalidJSON) as caught:
            parse_json(data)
        assert "hunter2" not in str(caught.value)


def test_nesting_is_bounded_on_both_sides_of_the_limit() -> None:
    assert parse_json(b"[" * 128 + b"]" * 128) is not None
    assert parse_json(b'{"a":[' * 2 + b"]}" * 2, nesting_max=4) is not None
    for data in (b"[" * 129 + b"]" * 129, b"[" * 1_000_000, b'{"a":' * 129 + b"1" + b"}" * 129):
        with pytest.raises(InvalidJSON, match="deeper than 128"):
            parse_json(data)
    with pytest.raises(InvalidJSON, match="deeper than 3"):
        parse_json(b'{"a":[' * 2 + b"]}" * 2, nesting_max=3)


def test_brackets_in_strings_are_not_nesting() -> None:
    for text in ("[" * 1000, '\\"[' * 1000, "\\" * 3 + "[{" * 300, '"' + "[" * 300, "[" * 300 + '"\\'):
        value = {text: [text, "", text + "\n"]}
        assert parse_json(render_json(value), nesting_max=2) == value


def depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


texts = st.text(st.sampled_from('[]{}"\\ax\n🙂'), max_size=6)


@given(
    st.recursive(texts | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20)
)
def test_nesting_is_that_of_the_value(value: Any) -> None:
    for data in (render_json(value), json.dumps(value).encode(), json.dumps(value, indent=1).encode()):
        assert parse_json(data, nesting_max=depth(value)) == value
        if depth(value):
            with pytest.raises(NestingTooDeep):
                parse_json(data, nesting_max=depth(value) - 1)


@given(st.binary(max_size=100))
def test_random_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        value = parse_json(data)
    except InvalidJSON:
        return
    assert json.loads(data) == value


@pytest.mark.parametrize("part", [b"[", b'"[', b'["\\n', b"\\", b'"', b"[]"])
def test_parsing_takes_time_in_proportion(part: bytes) -> None:
    start = time.thread_time()
    with pytest.raises(InvalidJSON):
        parse_json(part * (2_000_000 // len(part)))
    assert time.thread_time() - start < 1
