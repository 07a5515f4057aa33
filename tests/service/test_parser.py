"""The parser of requests, fed with bytes: no socket, no event loop."""

from __future__ import annotations

import gc
import itertools
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstored.http.parser import RequestHead, RequestParser
from rstored.limits import Limits
from rstored.problems import Problem

LIMITS = Limits(uri_bytes_max=1024, header_bytes_max=2048, headers_max=10)
HOST = b"Host: a\r\n"


def parsed(*packets: bytes) -> list[Any]:
    """What comes out of a stream: each head and the body that follows it, and at the end the code of a problem."""
    parser = RequestParser(LIMITS)
    found: list[Any] = []
    body: bytes | None = None
    try:
        for packet in packets:
            parser.feed(bytearray(packet))
            while parser.has_unread:
                if body is None:
                    head = parser.read_head()
                    if head is None:
                        break
                    found.append(head)
                    body = b""
                if not parser.complete:
                    body += parser.read_body()
                if parser.complete:
                    found.append(body)
                    body = None
    except Problem as problem:
        found.append(problem.code)
    parser.close()
    return found


def head(target: bytes, *fields: tuple[bytes, bytes], method: str = "GET") -> RequestHead:
    path, _, query = target.partition(b"?")
    return RequestHead(method, path, query, dict([(b"host", b"a"), *fields]), True, True)


def get(target: bytes, fields: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\n%b%b\r\n" % (target, HOST, fields)


def put(body: bytes, fields: bytes = b"") -> bytes:
    return b"PUT /p HTTP/1.1\r\n%b%bContent-Length: %d\r\n\r\n%b" % (HOST, fields, len(body), body)


def put_in_chunks(body: bytes, size: int, trailers: bytes = b"") -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"PUT /p HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n%b0\r\n%b\r\n" % (HOST, chunks, trailers)


BODIES = st.binary(max_size=200) | st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", get(b"/in-a-body")])
TRAILERS = st.sampled_from([b"", b"a: b\r\n", b"a:b\r\n" * 50, b"a: " + b"b" * 3000 + b"\r\n"])
MESSAGES = st.one_of(
    st.sampled_from(
        [
            get(b"/a?b=c"),
            get(b"http://b/c", b"Connection: close\r\n"),
            get(b"/a", b"Upgrade: x\r\nConnection: upgrade\r\n"),
            get(b"/a", b"a: b\r\n" * 20),
            get(b"/" + b"a" * 1500),
            get(b"/a", b"a: " + b"b" * 3000 + b"\r\n"),
            b"GET /a HTTP/1.0\r\n\r\n",
            b"nonsense\r\n\r\n",
            b"\r\n\r\n",
        ]
    ),
    st.builds(put, BODIES, st.sampled_from([b"", b"Upgrade: x\r\nConnection: upgrade\r\n"])),
    st.builds(put_in_chunks, BODIES, st.integers(min_value=1, max_value=9), TRAILERS),
)


@given(messages=st.lists(MESSAGES, min_size=1, max_size=4), data=st.data())
def test_what_comes_out_does_not_depend_on_where_the_packets_are_cut(messages, data):
    sent = b"".join(messages)
    cuts = data.draw(st.sets(st.integers(min_value=1, max_value=len(sent)), max_size=10))
    # And byte by byte around one place.
    middle = data.draw(st.integers(min_value=1, max_value=len(sent)))
    places = sorted({0, *cuts, *range(middle, min(middle + 50, len(sent))), len(sent)})
    assert parsed(*(sent[start:end] for start, end in itertools.pairwise(places))) == parsed(sent)


def test_requests_follow_each_other():
    put_head = head(b"/p", (b"content-length", b"3"), method="PUT")
    chunked = head(b"/p", (b"transfer-encoding", b"chunked"), method="PUT")
    sent = get(b"/a?b=c") + put(b"xyz") + put_in_chunks(b"abc", 2, b"d: e\r\n") + get(b"/")
    assert parsed(sent) == [head(b"/a?b=c"), b"", put_head, b"xyz", chunked, b"abc", head(b"/"), b""]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (get(b"http://b:1/c?d"), RequestHead("GET", b"/c", b"d", {b"host": b"b:1"}, True, True)),
        (b"GET /a HTTP/1.0\r\n\r\n", RequestHead("GET", b"/a", b"", {}, False, False)),
        (get(b"/a", b"A: \t b c \t\r\n"), head(b"/a", (b"a", b"b c"))),
        (get(b"/a", b"Connection: close\r\n"), head(b"/a", (b"connection", b"close"))._replace(keep_alive=False)),
        (get(b"/a", b"Upgrade: x\r\nConnection: upgrade\r\n"), head(b"/a", (b"connection", b""))),
    ],
    ids=["a whole URL", "an older version", "spaces", "the last one", "another protocol"],
)
def test_a_head(sent, expected):
    assert parsed(sent) == [expected, b""]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"nonsense\r\n\r\n", "malformed-request"),
        (b"GET / HTTP/1.1\r\n\r\n", "malformed-request"),
        (get(b"/", HOST), "malformed-request"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", "malformed-request"),
        (put(b"x", b"Transfer-Encoding: chunked\r\n"), "malformed-request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "unsupported-http-version"),
        (get(b"/" + b"a" * 5000), "uri-too-long"),
        (get(b"/", b"a: " + b"b" * 3000 + b"\r\n"), "headers-too-large"),
        (get(b"/", b"a:b\r\n" * 10), "headers-too-large"),
    ],
)
def test_what_is_not_a_request_is_a_problem(sent, code):
    assert parsed(sent) == [code]


@pytest.mark.parametrize("trailers", [b"a:b\r\n" * 11, b"a: " + b"b" * 3000 + b"\r\n"], ids=["many", "long"])
def test_trailers_are_bounded_as_a_head_is(trailers):
    assert parsed(put_in_chunks(b"abc", 3, trailers))[1:] == ["headers-too-large"]


def test_nothing_behind_a_message_is_parsed_before_it_is_asked_for():
    parser = RequestParser(LIMITS)
    parser.feed(bytearray(put(b"xyz") + b"nonsense\r\n\r\n"))
    assert parser.read_head() is not None
    assert parser.read_body() == b"xyz"
    assert parser.complete
    assert parser.has_unread
    with pytest.raises(Problem, match="this is not an HTTP"):
        parser.read_head()
    parser.close()


def test_it_is_between_messages_until_another_one_begins():
    parser = RequestParser(LIMITS)
    assert parser.is_between_messages
    parser.feed(bytearray(get(b"/a") + b"G"))
    assert parser.read_head() is not None
    assert not parser.is_between_messages
    parser.discard()
    assert parser.is_between_messages
    parser.feed(bytearray(b"G"))
    assert parser.read_head() is None
    assert not parser.has_unread
    assert not parser.is_between_messages
    parser.close()


def test_nothing_is_left_of_one_that_is_closed():
    parser = RequestParser(LIMITS)
    parser.feed(bytearray(get(b"/a")))
    assert parser.read_head() is not None
    left = weakref.ref(parser)
    gc.disable()
    try:
        parser.close()
        del parser
        assert left() is None
    finally:
        gc.enable()
