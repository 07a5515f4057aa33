"""Query strings and cursors."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstore.core.names import check_key
from rstored.api.parameters import (
    Count,
    Int64,
    ListQuery,
    Query,
    Switch,
    checked_key,
    checked_namespace,
    decode_text,
    page_size,
    parse_query,
    read_cursor,
    write_cursor,
)
from rstored.limits import Limits
from rstored.problems import Problem


class Sample(Query):
    t: Int64 | None = None
    n: Count | None = None
    on: Switch = False
    text: str = ""
    order: Literal["asc", "desc"] = "asc"


class Required(Query):
    t: Int64


def refused(raw: bytes, model: type[Query] = Sample) -> Problem:
    with pytest.raises(Problem) as caught:
        parse_query(raw, model)
    return caught.value


def test_a_query():
    query = parse_query(b"t=-9223372036854775808&n=0&on=true&text=a%2Bb+c%26&order=desc", Sample)
    assert query == Sample(t=-(2**63), n=0, on=True, text="a+b c&", order="desc")
    assert parse_query(b"", Sample) == Sample()
    assert parse_query(b"&&text=%F0%9F%8C%BB&", Sample).text == "\N{SUNFLOWER}"
    assert parse_query(b"text", Sample).text == ""
    assert parse_query(b"text=a=b", Sample).text == "a=b"


@pytest.mark.parametrize(
    ("raw", "parameter"),
    [
        (b"t=9223372036854775808", "t"),
        (b"t=1.0", "t"),
        (b"t=1e3", "t"),
        (b"t=1_000", "t"),
        (b"t=%2B1", "t"),
        (b"t=", "t"),
        (b"t=" + b"9" * 5000, "t"),
        (b"n=-1", "n"),
        (b"on=1", "on"),
        (b"on=True", "on"),
        (b"text=%ff", "text"),
        (b"text=%zz", "text"),
        (b"text=%", "text"),
        (b"text=a&text=a", "text"),
        (b"order=up", "order"),
    ],
)
def test_a_wrong_parameter_is_named_and_its_value_is_not_shown(raw, parameter):
    problem = refused(raw)
    assert problem.code == "invalid-parameter"
    assert problem.members["parameter"] == parameter
    assert problem.detail.startswith(parameter)
    assert "999" not in problem.detail


@pytest.mark.parametrize("raw", [b"colour=red", b"T=1", b"t%00=1", b"=1", b"%ff=1", b"t=1&u=2"])
def test_an_unknown_parameter(raw):
    assert refused(raw).code == "unknown-parameter"


def test_the_problem_says_which_parameters_there_are():
    assert "t, n, on, text, order" in refused(b"x=1").detail
    assert "none" in refused(b"x=1", Query).detail


def test_a_parameter_that_must_be_there():
    problem = refused(b"", Required)
    assert (problem.code, problem.members["parameter"]) == ("invalid-parameter", "t")


@given(st.text(max_size=30))
def test_decoding_undoes_any_encoding(text):
    raw = text.encode("utf-8", "ignore")
    escaped = b"".join(b"%%%02x" % byte for byte in raw)
    assert decode_text(escaped) == raw.decode()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=100))
def test_a_cursor_is_opaque_and_comes_back(key):
    cursor = write_cursor(check_key(key))
    assert cursor is not None
    assert cursor.replace("-", "").replace("_", "").isalnum() or cursor.strip("-_") == ""
    assert read_cursor(cursor) == key


def test_no_cursor():
    assert write_cursor(None) is None
    assert read_cursor(None) is None


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "_____w", "a b", "é", "YWI=c", "+/+/", "A" * 2000])
def test_a_cursor_that_no_page_gave(cursor):
    with pytest.raises(Problem) as caught:
        read_cursor(cursor)
    assert (caught.value.code, caught.value.members["parameter"]) == ("invalid-parameter", "cursor")


def test_the_size_of_a_page():
    limits = Limits(page_size_max=10)
    assert page_size(ListQuery(), limits) == 10
    assert page_size(ListQuery(limit=10), limits) == 10
    with pytest.raises(Problem) as caught:
        page_size(ListQuery(limit=11), limits)
    assert caught.value.members == {"parameter": "limit", "limit": 10}


def test_names_obey_the_limits_of_the_service_too():
    limits = Limits(key_bytes_max=8, namespace_length_max=4)
    assert checked_key("é" * 4, limits) == "é" * 4
    assert checked_namespace("a.-_", limits) == "a.-_"
    for key in ("é" * 4 + "x", "123456789", "", "\0"):
        with pytest.raises(Problem, match="key") as caught:
            checked_key(key, limits, pointer="/get/1")
        assert caught.value.code == "invalid-key"
        assert caught.value.members["pointer"] == "/get/1"
    for name in ("abcde", "", "a/b"):
        with pytest.raises(Problem) as caught:
            checked_namespace(name, limits)
        assert caught.value.code == "invalid-namespace"
