"""What the command stores is what the service's routes store of the same JSON, byte for byte, or it is refused."""

from __future__ import annotations

import json
from decimal import Decimal
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import rstore
from rstore.core.encodings import Encoding
from rstore.core.operators import OPERATORS
from rstore.sealing import PairContext, Sealer

SLOW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

DIGITS = st.text("0123456789", min_size=1, max_size=40)
NUMBERS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-", "+"]),
    DIGITS,
    st.one_of(st.just(""), DIGITS.map(".{}".format), st.just(".")),
    st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from(["e", "E", "e-", "e+"]), st.integers(0, 500))),
)
WORDS = st.sampled_from(
    [
        *["NaN", "Infinity", "-Infinity", "[1,NaN]", '{"a":Infinity}', "nul", "True", "'a'", "a", "", " ", "[", "]"],
        *["{}", "[]", "{1:2}", '{"a":1,"a":2}', '{"a":1,}', "[1,]", "1 2", "1\n2", '"\\ud800"', '"\\ud83d\\ude00"'],
        *['"\\u0000"', '"\t"', "\ufeff1", "01", "-0", "-0.0", "1e400", "-1e400", "1e-400", "1_000", "0x1", "/**/1"],
        *['1},{"item":"y","value":2', "1],[2,3", '1,"sealed"', "\u20281", "1\u2028", " [ 1 ,\n2 ] ", "null", "true"],
        *["[" * 128 + "]" * 128, "[" * 129 + "]" * 129, "9" * 4300, "9" * 4301],
    ]
)
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
JSON = st.builds(
    lambda value, ascii_only, indent: json.dumps(value, ensure_ascii=ascii_only, indent=indent),
    PLAIN,
    st.booleans(),
    st.sampled_from([None, 1]),
)


@st.composite
def mutated(draw):
    """JSON text with a piece of it cut out, or something put in."""
    text = draw(JSON)
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.sampled_from(["", "1", '"', ",", "[", "e", "\\", "-", ".", "\u00e9"])) + text[at + 1 :]


TEXTS = st.one_of(NUMBERS, WORDS, JSON, mutated(), NUMBERS.map('{{"a":[1,{}]}}'.format)).filter(
    lambda text: "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)
)


def put(url, key, body: bytes) -> httpx2.Response:
    return httpx2.put(f"{url}/kv/{key}", content=body, headers={"Content-Type": "application/json"})


@pytest.fixture
def routes(service_url, namespace):
    url = f"{service_url}/ns/{namespace}"
    httpx2.put(url)
    return url


@SLOW
@given(TEXTS, st.booleans())
@example("1e400", False)
@example("[1,NaN]", False)
@example("0.12345678901234567890123456789", False)
@example('{"a":1,"a":2}', True)
@example("\ufeff1", True)
def test_set_stores_what_put_stores(run, routes, text, piped):
    answer = put(routes, "rest", text.encode())
    if piped:
        done = run("set", "cli", stdin=text.encode())
    elif text.startswith("-") and not text[1:2].isdigit() and text[1:2] != ".":
        done = run("set", "cli", "--", text)
    else:
        done = run("set", "cli", text)
    assert (done.code == 0) == answer.is_success, (done, answer.text)
    if done.code:
        assert done.err.count("\n") == 1
        assert done.out == ""
    else:
        assert httpx2.get(f"{routes}/kv/cli").content == text.encode()
        assert json.loads(done.out) == answer.headers["etag"].strip('"')


@SLOW
@given(st.binary(max_size=8))
@example(b'"\xff"')
@example(b"\xef\xbb\xbf1")
@example(b"1\0")
@example(b"\xff\xfe1\0")
def test_set_stores_the_bytes_of_standard_input_as_put_does(run, routes, body):
    answer = put(routes, "rest", body)
    done = run("set", "cli", stdin=body)
    assert (done.code == 0) == answer.is_success, (done, answer.text)
    if done.code == 0:
        assert httpx2.get(f"{routes}/kv/cli").content == body


def test_a_refused_value_changes_nothing(run, routes):
    run("set", "k", "1")
    for text in ("1e400", "[1,NaN]", "x", ""):
        assert run("set", "k", text).code == 2
        assert run("set", "k", stdin=text.encode()).code == 1
    assert run("get", "k").out == "1\n"
    assert run("-n", "never-made", "set", "k", "NaN").code == 2
    assert "never-made" not in run("ns", "list").json


@pytest.mark.parametrize(
    ("text", "is_word"), [("word", True), ("two words", True), ("1e400", False), ("[1,", False), ("", False)]
)
def test_only_a_word_is_told_that_a_string_needs_quotes(run, routes, text, is_word):
    for done in (run("set", "k", text), run("es", "apply", "e", f"a={text}")):
        assert done.code == 2
        assert ("a string needs its quotes" in done.err) is is_word
        assert ("it is empty" in done.err) is (text == "")


@SLOW
@given(TEXTS)
@example("0.12345678901234567890123456789")
@example('{"a":1,"a":2}')
@example(" [ 1 ,\n2 ] ")
def test_a_sealed_value_is_the_same_text(run, service_url, namespace, text):
    key = rstore.generate_key()
    done = run("--key", key, "set", "k", stdin=text.encode())
    assert (done.code == 0) == put(f"{service_url}/ns/{namespace}", "rest", text.encode()).is_success
    if done.code == 0:
        stored = httpx2.get(f"{service_url}/ns/{namespace}/kv/k")
        value = rstore.core.encodings.Value(Encoding.SEALED, stored.content)
        assert Sealer(key).open(value, PairContext(namespace, "k")) == (Encoding.JSON, text.encode())
        assert run("--key", key, "get", "k").code == 0


# --- what is shown -----------------------------------------------------------------------------------------


@SLOW
@given(TEXTS)
@example("0.12345678901234567890123456789")
@example("1.2345e-320")
@example("1e-400")
@example("[12345678901234567890.5, -1.00000000000000000001e-7]")
def test_get_shows_every_digit(run, routes, text):
    if put(routes, "k", text.encode()).is_success:
        shown = run("get", "k").out
        assert json.loads(shown, parse_float=Decimal) == json.loads(text, parse_float=Decimal)


def test_digits_are_shown_in_every_command(run, routes):
    long = "0.12345678901234567890123456789"
    run("set", "k", f'{{"a":{long}}}')
    run("ts", "extend", "s", stdin=f"[1,[{long}]]\n".encode())
    run("es", "apply", "e", f"x={long}", "y=1", "--t", "1")
    assert run("find").out == f'["k", {{"a": {long}}}]\n'
    assert run("ts", "range", "s").out == run("ts", "last", "s").out == f"[1, [{long}]]\n"
    assert run("es", "events", "e").out.splitlines()[0] == f'[1, "x", "setitem", {long}]'
    assert run("es", "current", "e").out == run("es", "past", "e", "5").out == f'{{"x": {long}, "y": 1}}\n'
    assert run("es", "apply", "e", "y:add=1").out == f'{{"x": {long}, "y": 2}}\n'
    key = rstore.generate_key()
    run("--key", key, "-n", "sealed-digits", "es", "apply", "e", f"x={long}", "y=1")
    assert run("--key", key, "-n", "sealed-digits", "es", "apply", "e", "y:add=1").json == [
        {"x": json.loads(long), "y": 2}
    ]
    assert run("--key", key, "-n", "sealed-digits", "es", "current", "e").out == f'{{"x": {long}, "y": 2}}\n'


# --- event sequences ---------------------------------------------------------------------------------------


@SLOW
@given(TEXTS, st.sampled_from([op for op in OPERATORS if op not in ("delitem", "neg", "not_")]))
@example("0.12345678901234567890123456789", "setitem")
@example('1},{"item":"y","value":2', "setitem")
def test_apply_records_what_the_route_records(run, routes, text, op):
    for key in ("rest", "cli"):
        httpx2.delete(f"{routes}/es/{key}/events")
        httpx2.post(f"{routes}/es/{key}/events", json={"events": [{"item": "x", "value": 3}], "timestamp": 1})
    body = b'{"events":[{"item":"x","op":"%b","value":%b}],"timestamp":2}' % (op.encode(), text.encode())
    answer = httpx2.post(f"{routes}/es/rest/events", content=body, headers={"Content-Type": "application/json"})
    done = run("es", "apply", "cli", f"x:{op}={text}", "--t", "2")
    if not put(routes, "is-it-json", text.encode()).is_success:
        assert done.code == 2
        return
    assert (done.code == 0) == answer.is_success, (done, answer.text)
    events = [httpx2.get(f"{routes}/es/{key}/events").content for key in ("cli", "rest")]
    assert events[0] == events[1]


def test_apply_refuses_what_the_route_refuses(run, routes):
    twice = {"events": [{"item": "x", "value": 1}, {"item": "x", "value": 2}]}
    assert httpx2.post(f"{routes}/es/e/events", json=twice).status_code == 422
    for changes in (["x=1", "x=2"], ["x=1", "y=1", "x:add=2"], ["x:delitem", "x=1"]):
        done = run("es", "apply", "e", *changes)
        assert done.code == 2
        assert done.err.startswith("rstore: Invalid value for 'CHANGE': item 'x' occurs twice in one call. ")
    assert run("es", "list").json == []


@pytest.mark.parametrize(
    ("op", "nearest"),
    [
        ("substract", "sub"),
        ("subtract", "sub"),
        ("multiply", "mul"),
        ("ad", "add"),
        ("concatenate", "concat"),
        ("truedive", "truediv"),
        ("set", "setitem"),
        ("del", "delitem"),
        ("ADD", None),
        ("", None),
        ("1", None),
        ("foo", None),
    ],
)
def test_an_operator_that_is_none_is_refused_and_the_nearest_named(run, routes, op, nearest):
    for change in (f"x:{op}=3", f"a:x:{op}=3", f"x:{op}"):
        done = run("es", "apply", "e", change)
        assert done.code == 2
        assert f"there is no operator {op!r}: " in done.err
        assert f"did you mean {nearest}?" in done.err if nearest else "did you mean" not in done.err or op == "ADD"
    assert run("es", "list").json == []


@SLOW
@given(st.text(st.characters(exclude_characters="\0=", exclude_categories=["Cs"]), min_size=1, max_size=8))
def test_every_item_without_an_equals_sign_can_be_set(run, routes, item):
    httpx2.delete(f"{routes}/es/e/events")
    done = run("es", "apply", "e", "--", f"{item}:setitem=1")
    assert done.json == [{item: 1}]


# --- time series -------------------------------------------------------------------------------------------


@SLOW
@given(TEXTS)
def test_extend_stores_what_the_route_stores(run, routes, text):
    if "\n" in text:
        return
    for key in ("rest", "cli"):
        httpx2.delete(f"{routes}/ts/{key}/range")
    body = b"[1,%b]\n" % text.encode()
    answer = httpx2.post(f"{routes}/ts/rest/range", content=body, headers={"Content-Type": "application/x-ndjson"})
    done = run("ts", "extend", "cli", stdin=body)
    assert (done.code == 0) == answer.is_success, (done, answer.text)
    points = [httpx2.get(f"{routes}/ts/{key}/range").content for key in ("cli", "rest")]
    assert points[0] == points[1]


# --- names -------------------------------------------------------------------------------------------------

NAMES = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6),
    st.sampled_from([".", "..", "%2F", "a/b", "k" * 512, "k" * 513, "é" * 257, " ", "\n", "-", "--help", "*"]),
)


@SLOW
@given(NAMES)
def test_a_key_is_what_the_route_takes_for_one(run, routes, key):
    segment = {".": "%2E", "..": "%2E%2E"}.get(key) or quote(key, safe="")
    answer = put(routes, segment, b"1") if key else None
    assert (run("set", "--", key, "1").code == 0) == (answer is not None and answer.is_success)


@SLOW
@given(st.one_of(NAMES, st.sampled_from(["a", "a.b_c-d", "A" * 128, "A" * 129])))
def test_a_namespace_is_what_the_route_takes_for_one(run, service_url, namespace, name):
    segment = {".": "%2E", "..": "%2E%2E"}.get(name) or quote(name, safe="")
    taken = httpx2.put(f"{service_url}/ns/{segment}").is_success if name else False
    assert (run("ns", "create", "--", name).code == 0) == taken
