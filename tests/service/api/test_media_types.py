"""Content-Type and Accept."""

from __future__ import annotations

import time

import pytest

from rstore.core.point_rows import Form
from rstored.api.media_types import JSON_FORMS, negotiate, parse_content_type
from rstored.problems import Problem

JSON, MSGPACK = JSON_FORMS
POINTS_FORMS = tuple(form.value for form in Form)


@pytest.mark.parametrize(
    ("text", "essence"),
    [
        ("application/json", "application/json"),
        (" Application/JSON ; Charset=UTF-8 ", "application/json"),
        ('application/json;charset="utf-8"', "application/json"),
        ("text/plain; charset=latin-1", "text/plain"),
        ('image/svg+xml;a=b;c="d;e\\"f"', "image/svg+xml"),
        ("text/plain;", "text/plain"),
        ("x-a/x.b-c_d", "x-a/x.b-c_d"),
    ],
)
def test_a_content_type(text, essence):
    parsed = parse_content_type(text)
    assert parsed.essence == essence
    assert parsed.text == text.strip()


def test_a_long_content_type_that_is_none_is_refused_at_once():
    started = time.thread_time()
    with pytest.raises(Problem):
        parse_content_type("a/b" + ";   " * 60 + "\x01")
    assert time.thread_time() - started < 0.1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "json",
        "/",
        "a/",
        "/b",
        "a/b/c",
        "a b/c",
        "a/b, c/d",
        "a/b; c",
        'a/b; c="d',
        "a/b\r\nSet-Cookie: x",
        "a/b;c=d\n",
        "té/x",
        "a/b;c=é",
        "a/b;c=\x7f",
        "text/" + "x" * 251,
        "application/json; charset=utf-16",
        "text/csv; charset=latin-1",
    ],
)
def test_what_is_not_a_content_type(text):
    with pytest.raises(Problem) as caught:
        parse_content_type(text)
    assert caught.value.code == "unsupported-media-type"


def test_the_longest_content_type():
    assert parse_content_type("text/" + "x" * 250).essence == "text/" + "x" * 250


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", JSON),
        ("", JSON),
        ("application/*", JSON),
        ("application/msgpack", MSGPACK),
        ("APPLICATION/MSGPACK", MSGPACK),
        ("application/json, application/msgpack", JSON),
        ("application/msgpack, application/json", JSON),
        ("application/json;q=0.5, application/msgpack", MSGPACK),
        ("application/json;q=0.5, application/msgpack;q=0.4, */*;q=0.1", JSON),
        ("application/json;q=0, */*", MSGPACK),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("application/json; charset=utf-8", JSON),
        ("application/msgpack ; q=1.000", MSGPACK),
        ("application/json;q=high, application/msgpack;q=0.001", MSGPACK),
        ("text/html", None),
        ("*/*;q=0", None),
        ("application/*;q=0, */*", None),
        ("application/json;q=0", None),
        ("application/json;q=7", None),
    ],
)
def test_negotiation(accept, form):
    assert negotiate(accept, JSON_FORMS) == form


@pytest.mark.parametrize("form", POINTS_FORMS)
def test_each_form_of_points_can_be_asked_for(form):
    assert negotiate(f"text/html, {form}", POINTS_FORMS) == form
