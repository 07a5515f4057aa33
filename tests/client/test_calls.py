"""Calls: what is sent, and that an answer is believed only if it is one of a service."""

from __future__ import annotations

import array
import contextlib
import json
import struct
from inspect import isfunction
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstore import calls
from rstore.calls import Call, Head, TryAgain
from rstore.core.encodings import Encoding, Value
from rstore.core.errors import (
    PROBLEMS,
    StoreAccessError,
    StoreAuthenticationError,
    StoreConflictError,
    StoreError,
    StoreLimitError,
    StoreNotAvailableError,
    StoreNotFoundError,
    StoreProtocolError,
    StoreRequestError,
)
from rstore.core.frames import encode
from rstore.core.memory import free
from rstore.core.points import Points

ETAG = '"abc"'


def answered(call, status=200, body=b"", *, spend=free, **headers):
    """What a call makes of an answer, whose body comes in small pieces."""
    fields = httpx2.Headers({name.replace("_", "-"): value for name, value in headers.items()})
    reader = call.reader(Head(status, fields), spend)
    for index in range(0, len(body), 7):
        reader.feed(body[index : index + 7])
    return reader.finish()


def json_answered(call, document, status=200, **headers):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return answered(call, status, body, content_type="application/json", **headers)


def problem(call, status, code, **members):
    document = {"type": f"about:blank#{code}", "title": "t", "status": status, "detail": "d", "code": code, **members}
    return answered(call, status, json.dumps(document).encode(), content_type="application/problem+json")


# --- targets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "segment"),
    [
        ("a/b", "a%2Fb"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "..."),
        ("a?b#c", "a%3Fb%23c"),
        ("%2F", "%252F"),
        (" ", "%20"),
        ("+", "%2B"),
        ("\n", "%0A"),
        ("é🎉", "%C3%A9%F0%9F%8E%89"),
        ("a;b=c&d", "a%3Bb%3Dc%26d"),
    ],
)
def test_a_key_is_one_segment(key, segment):
    assert calls.kv.get("n", key).target == f"/ns/n/kv/{segment}"
    assert calls.ts.end_point("n", key, "last").target == f"/ns/n/ts/{segment}/last"
    assert calls.es.current("n", key).target == f"/ns/n/es/{segment}/current"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=60))
def test_the_url_library_leaves_every_key_as_it_is(key):
    target = calls.kv.get("default", key).target
    assert httpx2.URL("http://127.0.0.1:8000" + target).raw_path == target.encode()
    assert httpx2.URL("http://127.0.0.1:8000" + target).path == f"/ns/default/kv/{key}"


def test_parameters_that_are_none_are_left_out():
    call = calls.ts.read("n", "k", list, start=-5, end=None, n=0, freq=None)
    assert call.target == "/ns/n/ts/k/range?start=-5&n=0"
    assert calls.kv.find("n", "a&b=*", None).target == "/ns/n/kv?match=a%26b%3D%2A&values=true"


def test_a_call_is_a_step_that_yields_itself():
    call = calls.kv.has("n", "k")
    steps = iter(call)
    assert next(steps) is call
    with pytest.raises(StopIteration) as end:
        steps.send(True)
    assert end.value.value is True


# --- bodies ------------------------------------------------------------------------------------------------


def test_json_values_are_sent_as_their_own_text():
    call = calls.kv.batch(
        "n", sets=[("a", Value(Encoding.JSON, b'{"x": 1.0}')), ("b", Value(Encoding.SEALED, b"\xff"))]
    )
    assert call.body == b'{"set":[{"key":"a","value":{"x": 1.0}},{"key":"b","value":"/w==","encoding":"sealed"}]}'


def test_an_apply_carries_no_more_than_asked():
    changes = [("a", "setitem", Value(Encoding.JSON, b"1")), ("b", "neg", None)]
    assert json.loads(calls.es.apply("n", "k", changes).body) == {
        "events": [{"item": "a", "op": "setitem", "value": 1}, {"item": "b", "op": "neg"}]
    }
    body = json.loads(calls.es.apply("n", "k", changes, timestamp=0, revision=0).body)
    assert (body["timestamp"], body["revision"]) == (0, 0)


@pytest.mark.parametrize("etag", ["", 'a"b', "a\r\nx: y", "é", "a b", "x" * 257])
def test_an_etag_that_is_none_never_becomes_a_header(etag):
    with pytest.raises(StoreRequestError):
        calls.kv.put("n", "k", Value(Encoding.JSON, b"1"), if_match=etag)


# --- problems ----------------------------------------------------------------------------------------------


def failure(call, *arguments, **options):
    """The error that a call makes of an answer, whether or not it may be tried again."""
    with pytest.raises((StoreError, TryAgain)) as caught:
        problem(call, *arguments, **options)
    return caught.value.error if isinstance(caught.value, TryAgain) else caught.value


@pytest.mark.parametrize("code", PROBLEMS)
def test_every_problem_code_has_its_exception(code):
    row = PROBLEMS[code]
    error = failure(calls.kv.delete("n", "k"), row.status, code, request_id="r-1", pointer="/set/3")
    assert type(error) is row.exception
    assert (error.code, error.status, error.request_id, str(error)) == (code, row.status, "r-1", "d")
    assert error.problem["pointer"] == "/set/3"


@pytest.mark.parametrize(
    ("status", "exception"),
    [
        (400, StoreRequestError),
        (401, StoreAuthenticationError),
        (403, StoreAccessError),
        (404, StoreNotFoundError),
        (409, StoreConflictError),
        (412, StoreConflictError),
        (413, StoreLimitError),
        (418, StoreRequestError),
        (429, StoreLimitError),
        (500, StoreNotAvailableError),
        (502, StoreNotAvailableError),
        (503, StoreNotAvailableError),
    ],
)
def test_an_unknown_code_goes_by_its_status(status, exception):
    assert type(failure(calls.kv.delete("n", "k"), status, "something-new")) is exception
    # A code that stands with another status than its own is none.
    assert type(failure(calls.kv.delete("n", "k"), status, "sequence-not-found")) is exception


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"code": 5}', b'{"code": "x", "detail": ["a"]}', b"\xff", b"[" * 100_000, b"null"]
)
def test_a_malformed_problem_goes_by_its_status(body):
    with pytest.raises(StoreNotFoundError) as caught:
        answered(calls.kv.delete("n", "k"), 404, body, content_type="application/problem+json")
    assert caught.value.code is None


def test_text_of_the_server_is_bounded_and_printable():
    error = failure(calls.kv.delete("n", "k"), 404, "route-not-found", detail="\x1b[2J\n" + "x" * 10_000)
    assert str(error).isprintable()
    assert len(str(error)) == 500
    assert failure(calls.kv.delete("n", "k"), 404, "route-not-found", request_id="a\nb").request_id is None


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0", 0.0), ("-1", None), ("soon", None), ("9" * 30, None)]
)
def test_what_may_pass_may_be_tried_again(status, header, seconds):
    with pytest.raises(TryAgain) as caught:
        answered(calls.kv.get("n", "k"), status, b"<html>", retry_after=header)
    assert caught.value.after_seconds == seconds
    assert caught.value.error.status == status


@pytest.mark.parametrize("status", [100, 204, 206, 301, 302, 307, 308])
def test_a_status_that_was_not_asked_for_is_not_an_answer(status):
    with pytest.raises(StoreProtocolError):
        answered(calls.kv.get("n", "k"), status, location="http://elsewhere/")


# --- answers that no service gives -------------------------------------------------------------------------

DATA = {"content_type": "application/json", "etag": ETAG}


def test_an_entry():
    entry = answered(calls.kv.get("n", "k"), 200, b"[1]", rstore_expires="-5", **DATA)
    assert entry == (Value(Encoding.JSON, b"[1]"), "abc", -5)
    assert problem(calls.kv.get("n", "k"), 404, "key-not-found") is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"etag": ETAG},
        {"content_type": "application/json"},
        {**DATA, "etag": '"'},
        {**DATA, "etag": "a b"},
        {**DATA, "rstore_expires": "soon"},
        {**DATA, "rstore_expires": "1" * 40},
    ],
)
def test_an_entry_without_its_headers_is_none(headers):
    with pytest.raises(StoreProtocolError):
        answered(calls.kv.get("n", "k"), 200, b"1", **headers)


def test_a_missing_route_is_not_a_missing_key():
    with pytest.raises(StoreNotFoundError):
        problem(calls.kv.get("n", "k"), 404, "route-not-found")


def test_a_deletion_says_whether_the_key_was_there():
    call = calls.kv.delete_present("n", "k")
    assert answered(call, 204) is True
    assert answered(call, 412) is False


RANGE = {"start": 0, "end": 100, "n": 3, "freq": 10}


def frame(*points):
    return encode(Points.from_pairs(points))


def ranged(body, *, spend=free, **changed):
    call = calls.ts.read("n", "k", list, **{**RANGE, **changed})
    return answered(call, 200, body, spend=spend, content_type="application/vnd.rstore.points")


def test_a_range_comes_in_frames():
    assert ranged(frame((0, 1), (10, 2)) + frame((25, 0.5))) == [(0, 1), (10, 2), (25, 0.5)]
    assert ranged(b"") == []
    assert ranged(encode(Points.empty())) == []


def unordered():
    return encode(Points(array.array("q", [10, 0]), array.array("d", [1, 2])))


@pytest.mark.parametrize(
    "body",
    [
        frame((-1, 1)),
        frame((101, 1)),
        frame((0, 1), (9, 1)),
        frame((0, 1)) + frame((5, 1)),
        frame((10, 1)) + frame((0, 1)),
        frame((0, 1)) + frame((0, 1)),
        frame((0, 1), (10, 1), (20, 1), (30, 1)),
        frame((0, 1))[:-1],
        unordered(),
        b'{"points": []}',
        b"\0" * 100,
    ],
)
def test_a_range_that_was_not_asked_for_is_refused(body):
    with pytest.raises(StoreProtocolError):
        ranged(body)


def test_a_range_says_what_memory_it_takes_before_it_is_unpacked():
    zeros = Points.from_values([(t, Value(Encoding.BYTES, bytes(1_000))) for t in range(0, 100, 10)])
    assert len(encode(zeros)) < 1_000
    unpacked: list[Any] = []

    def spend(size):
        assert not unpacked
        assert size > 10_000
        raise StoreProtocolError("too much")

    with pytest.raises(StoreProtocolError, match="too much"):
        ranged(encode(zeros), n=None, spend=spend)


def test_more_points_than_were_asked_for_are_not_decoded():
    # A frame of which nothing but its head is right.
    many = struct.pack("<IBBBBI", 8, 1, 0, 0, 0, 4)
    with pytest.raises(StoreProtocolError, match="more points than were asked for"):
        ranged(many, n=3)
    with pytest.raises(StoreProtocolError, match="cut off"):
        ranged(many, n=4)


def test_a_range_of_another_form_is_refused():
    with pytest.raises(StoreProtocolError):
        json_answered(calls.ts.read("n", "k", list, **RANGE), {"points": []})


@pytest.mark.parametrize("missing", [[5], [10, 0], [0, 0], [110], [-10], ["0"], [0.5], [2**63], None, {}])
def test_missing_timestamps_are_on_the_grid(missing):
    with pytest.raises(StoreProtocolError):
        json_answered(calls.ts.missing("n", "k", 0, 100, 10), {"missing": missing})


@pytest.mark.parametrize(
    "point", [[], [1], [1, 2, 3], [1, 2, "json", 4], ["1", 2], [1.5, 2], [1, "!", "sealed"], [1, 2, "odd"], [2**63, 1]]
)
def test_a_malformed_point_is_refused(point):
    with pytest.raises(StoreProtocolError):
        json_answered(calls.ts.end_point("n", "k", "last"), {"point": point})


def test_a_point():
    assert json_answered(calls.ts.end_point("n", "k", "last"), {"point": [1, "/w==", "sealed"]}) == (
        1,
        Value(Encoding.SEALED, b"\xff"),
    )


SET = {"timestamp": 5, "item": "a", "op": "setitem", "value": 1}


def stated(**members):
    return json_answered(
        calls.es.current("n", "k"), {"timestamp": 5, "revision": 1, "state": {}, "events": []} | members
    )


def test_a_state():
    state = json_answered(
        calls.es.current("n", "k"),
        {
            "timestamp": 5,
            "revision": 2,
            "state": {"b": [1]},
            "events": [{**SET, "value": "/w==", "encoding": "sealed"}],
        },
    )
    assert state == (
        5,
        2,
        {"b": Value(Encoding.JSON, b"[1]")},
        [(5, "a", "setitem", Value(Encoding.SEALED, b"\xff"))],
    )


@pytest.mark.parametrize(
    "members",
    [
        {"timestamp": None},
        {"revision": -1},
        {"state": []},
        {"events": [{**SET, "op": "system"}]},
        {"events": [{**SET, "op": "neg"}]},
        {"events": [{**SET, "op": "neg", "value": "AA==", "encoding": "bytes"}]},
        {"events": [{**SET, "op": "neg", "value": None, "encoding": "sealed"}]},
        {"events": [{**SET, "timestamp": 6}]},
        {"events": [{**SET, "timestamp": 2**63}]},
        {"events": [SET, SET]},
        {"events": [{**SET, "item": "b"}, SET]},
        {"events": [{**SET, "encoding": "sealed", "value": 1}]},
        {"events": [{**SET, "encoding": "odd", "value": "AA=="}]},
        {"state": {"a": 1}, "events": [SET]},
    ],
)
def test_a_state_that_cannot_be_is_refused(members):
    with pytest.raises(StoreProtocolError):
        stated(**members)


@pytest.mark.parametrize(
    ("options", "event"),
    [
        ({"start": 6}, SET),
        ({"end": 4}, SET),
        ({"ops": ["add"]}, SET),
        ({"item": "b"}, SET),
    ],
)
def test_events_that_were_not_asked_for_are_refused(options, event):
    assert json_answered(calls.es.events("n", "k"), {"events": [event]})[0].timestamp == 5
    with pytest.raises(StoreProtocolError):
        json_answered(calls.es.events("n", "k", **options), {"events": [event]})


def test_the_state_of_a_time_holds_nothing_later():
    with pytest.raises(StoreProtocolError):
        json_answered(calls.es.past("n", "k", 4), {"timestamp": 5, "revision": 1, "state": {}, "events": []})


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        {"items": None, "cursor": None},
        {"items": [{"key": 5}], "cursor": None},
        {"items": [{"key": "a"}], "cursor": 5},
        {"items": [{"key": "a"}]},
    ],
)
def test_a_listing_of_another_shape_is_refused(document):
    with pytest.raises(StoreProtocolError):
        json_answered(calls.kv.list_keys("n"), document)


@pytest.mark.parametrize(
    "document",
    [
        {"get": [{"key": "c", "value": 1, "etag": "x"}], "set": [{"key": "b", "etag": "y"}]},
        {"get": [], "set": []},
        {"get": [], "set": [{"key": "b", "etag": "y"}, {"key": "z", "etag": "y"}]},
        {"get": [{"key": "a", "value": "?", "encoding": "sealed", "etag": "x"}], "set": [{"key": "b", "etag": "y"}]},
    ],
)
def test_a_batch_answers_what_it_was_asked(document):
    call = calls.kv.batch("n", gets=["a"], sets=[("b", Value(Encoding.JSON, b"1"))])
    good = {"get": [{"key": "a", "value": 1, "etag": "x"}], "set": [{"key": "b", "etag": '"y"'}], "delete": []}
    assert json_answered(call, good).etags == {"b": "y"}
    with pytest.raises(StoreProtocolError):
        json_answered(call, document)


@given(st.binary(max_size=200), st.sampled_from([200, 201, 204, 404, 409, 412, 503, 302]), st.booleans())
def test_no_answer_raises_anything_but_a_store_error(body, status, as_json):
    for call in EVERY_CALL:
        with_type = "application/json" if as_json else "application/problem+json"
        with contextlib.suppress(StoreError, TryAgain):
            answered(call, status, body, content_type=with_type)


EVERY_CALL: list[Call[Any]] = [
    calls.service.info(),
    calls.namespaces.list_names(),
    calls.namespaces.create("n"),
    calls.namespaces.info("n"),
    calls.namespaces.discard("n"),
    calls.kv.list_keys("n"),
    calls.kv.find("n", None),
    calls.kv.get("n", "k"),
    calls.kv.has("n", "k"),
    calls.kv.put("n", "k", Value(Encoding.JSON, b"1")),
    calls.kv.delete("n", "k"),
    calls.kv.delete_present("n", "k"),
    calls.kv.batch("n", gets=["a"]),
    calls.ts.list_keys("n"),
    calls.ts.list_sizes("n"),
    calls.ts.read("n", "k", list, **RANGE),
    calls.ts.read_stored("n", "k", start=0),
    calls.ts.end_point("n", "k", "first"),
    calls.ts.missing("n", "k", 0, None, 10),
    calls.ts.complete("n", "k", 0, None, 10),
    calls.ts.extend("n", "k", b""),
    calls.ts.remove("n", "k", None, None),
    calls.es.list_keys("n"),
    calls.es.list_sizes("n"),
    calls.es.reseal("n", "k", []),
    calls.es.current("n", "k"),
    calls.es.past("n", "k", 5),
    calls.es.events("n", "k"),
    calls.es.apply("n", "k", []),
    calls.es.prune("n", "k", remove=True),
]


def test_every_write_carries_an_id_of_its_own():
    ids = []
    for call in [*EVERY_CALL, calls.kv.batch("n", sets=[("a", Value(Encoding.JSON, b"1"))])]:
        reads = call.method in ("GET", "HEAD") or call.body == b'{"get":["a"]}'
        ids += [value for name, value in call.headers if name == b"idempotency-key"]
        assert reads == (b"idempotency-key" not in dict(call.headers)), call
    assert len(set(ids)) == len(ids) == 11


def test_every_call_is_tried_above():
    modules = (calls.es, calls.kv, calls.namespaces, calls.service, calls.ts)
    made = [
        member
        for module in modules
        for name, member in vars(module).items()
        if isfunction(member) and member.__module__ == module.__name__ and not name.startswith("_")
    ]
    assert len(made) == len(EVERY_CALL)
