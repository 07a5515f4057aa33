"""Values: what is stored comes back equal and of the same type, wherever it is stored."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import decimal
import fractions
import functools
import json
import math
import operator
import os
import pickle
import threading
import uuid
import zoneinfo
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.picklable import Call, Chameleon, Colour, Flags, Level, Name, Pair, Point, Position, Unloadable

import rstore
from rstore import StoreEncodingError, StoreError

pytestmark = pytest.mark.anyio


def exactly(value):
    """A form that is equal only for equal values of the same types, NaN and -0.0 told apart."""
    kind = type(value)
    if kind is float:
        return kind, "nan" if math.isnan(value) else value.hex()
    if isinstance(value, dict):
        return kind, [(exactly(key), exactly(member)) for key, member in value.items()]
    if isinstance(value, (set, frozenset)):
        return kind, sorted((exactly(member) for member in value), key=repr)
    if isinstance(value, (list, tuple, collections.deque)):
        return kind, [exactly(member) for member in value]
    if dataclasses.is_dataclass(value):
        return kind, exactly(vars(value))
    if isinstance(value, decimal.Decimal):
        return kind, value.as_tuple()
    if isinstance(value, (datetime.datetime, datetime.time)):
        return kind, repr(value), value.utcoffset(), value.fold
    if kind is int:
        return kind, hex(value)  # Python refuses to print more than 4,300 digits.
    return kind, repr(value)


json_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
)
json_values = st.recursive(
    json_scalars | st.integers(-(2**200), 2**200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
harmless_scalars = st.one_of(
    json_scalars,
    st.integers(0, 20_000).map(lambda bits: -1 << bits),
    st.floats(),
    st.binary(),
    st.binary().map(bytearray),
    st.complex_numbers(),
    st.text(st.characters()),
    st.decimals(),
    st.fractions(),
    st.datetimes(
        timezones=st.none()
        | st.just(datetime.UTC)
        | st.timedeltas(min_value=datetime.timedelta(hours=-23), max_value=datetime.timedelta(hours=23)).map(
            datetime.timezone
        )
    ),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
)
hashable = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(),
    st.binary(),
    st.floats(allow_nan=False),
    st.uuids(),
    st.tuples(st.integers()),
)
harmless_values = st.recursive(
    harmless_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(hashable, inner, max_size=3),
        st.sets(hashable, max_size=3),
        st.frozensets(hashable, max_size=3),
        st.lists(inner, max_size=2).map(collections.deque),
        st.dictionaries(st.text(), inner, max_size=2).map(collections.OrderedDict),
    ),
    max_leaves=10,
)
any_values = st.recursive(
    st.one_of(
        harmless_scalars,
        st.sampled_from(
            [Colour.RED, Level.HIGH, Flags.A | Flags.B, Name("n"), Position(1), Ellipsis, range(3), print, Point]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(hashable, inner, max_size=2),
        st.builds(Point, inner, inner),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=8,
)

quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


async def stands_everywhere(store, value):
    """The value comes back the same as pair, in a batch, as point and as item."""
    expected = exactly(value)
    await store.set("v", value)
    assert exactly(await store.get("v")) == expected
    await store.set_many({"many": value})
    assert exactly((await store.get_many(["many"]))["many"]) == expected
    await store.extend("v", (0, value))
    ((_, got),) = await store.range("v")
    assert exactly(got) == expected
    assert exactly((await store.last("v"))[1]) == expected
    # As (setitem, value), for a bare tuple might begin with an operator.
    state = await store.apply("v", {"v": (operator.setitem, value)})
    assert exactly(state["v"]) == expected
    assert exactly((await store.current("v"))["v"]) == expected
    assert exactly((await store.events("v"))[-1][3]) == expected


@quick
@given(value=json_values)
async def test_json_values(store, value):
    await stands_everywhere(store, value)


@pytest.mark.requires("client")
@quick
@given(value=harmless_values)
async def test_harmless_python_values(store, value):
    await stands_everywhere(store, value)


@pytest.mark.requires("client")
@settings(quick, max_examples=20)
@given(value=any_values)
async def test_any_picklable_value_when_trusted(driver, store, value):
    trusting = await driver.open(store.namespace, trust_pickle=True, like=store)
    await stands_everywhere(trusting, value)


async def write_everywhere(store, value):
    """Each way to write a value, as calls yet to be made."""
    yield store.set("v", value)
    yield store.set_many({"w": 1, "v": value})
    yield store.extend("v", (0, 1), (1, value))
    yield store.apply("v", {"a": 1, "v": (operator.setitem, value)})
    yield store.apply("v", {"v": (operator.add, value)})


@pytest.mark.requires("client")
@quick
@given(value=any_values)
async def test_what_is_written_is_read_back_or_refused_as_a_whole(store, value):
    await store.discard()
    try:
        await stands_everywhere(store, value)
    except StoreEncodingError:
        async for write in write_everywhere(store, value):
            with pytest.raises(StoreEncodingError, match="trust_pickle=True"):
                await write
        assert [await store.keys(), await store.timeseries(), await store.eventsources()] == [[], [], []]


VALUES = [
    Colour.RED,
    Level.HIGH,
    Flags.A | Flags.B,
    Name("subclass"),
    Point(1, (2, Point(3))),
    Position(5),
    Pair(1, [2]),
    range(5),
    slice(1, 2, 3),
    Ellipsis,
    NotImplemented,
    print,
    Point,
    functools.partial(max, 1),
    collections.Counter("abca"),
    zoneinfo.ZoneInfo("Europe/Berlin"),
]
HARMLESS = [
    float("nan"),
    float("inf"),
    -float("inf"),
    [float("nan"), -0.0],
    -0.0,
    2**64,
    -(2**200),
    10**4500,
    (),
    (1, "a"),
    [(1,), [2]],
    {1: "int key"},
    {"1": "str", 1: "int"},
    {None: 1, True: 2, (3, 4): 5},
    {"k": {1, 2}},
    frozenset({1}),
    set(),
    b"",
    b"\x00\xff",
    bytearray(b"abc"),
    1 + 2j,
    "\ud800 lone",
    {"\udfff": 1},
    decimal.Decimal("1.10"),
    decimal.Decimal("sNaN"),
    decimal.Decimal("-Infinity"),
    fractions.Fraction(1, 3),
    datetime.datetime(2024, 2, 29, 23, 59, 59, 999999),  # noqa: DTZ001
    datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=datetime.UTC),
    datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=5, minutes=30), "IST")),
    datetime.date(1, 1, 1),
    datetime.time(12, 30, tzinfo=datetime.UTC),
    datetime.timedelta(days=-1, microseconds=1),
    uuid.UUID(int=5),
    collections.OrderedDict([("b", 1), ("a", 2)]),
    collections.deque([1, 2]),
]


@pytest.mark.requires("client")
@pytest.mark.parametrize("value", HARMLESS, ids=lambda value: type(value).__name__)
async def test_a_harmless_value_needs_no_trust(store, value):
    await stands_everywhere(store, value)


@pytest.mark.requires("client")
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
async def test_any_value_when_trusted(driver, store, value):
    trusting = await driver.open(store.namespace, trust_pickle=True, like=store)
    await trusting.set("v", value)
    got = await trusting.get("v")
    assert type(got) is type(value)
    if isinstance(value, functools.partial):
        assert (got.func, got.args) == (value.func, value.args)
    else:
        assert got == value


@pytest.mark.requires("client")
@pytest.mark.parametrize("trusting", [False, True])
@pytest.mark.parametrize(
    "value", [Unloadable(1, 2), Chameleon(), threading.Lock(), lambda: 1], ids=lambda value: type(value).__name__
)
async def test_what_would_not_come_back_is_refused_when_it_is_written(driver, store, trusting, value):
    store = await driver.open(store.namespace, trust_pickle=trusting, like=store)
    async for write in write_everywhere(store, value):
        with pytest.raises(StoreEncodingError, match=r"Unloadable|Chameleon|lock|function"):
            await write
    assert [await store.keys(), await store.timeseries(), await store.eventsources()] == [[], [], []]


@pytest.mark.requires("client")
async def test_a_value_that_holds_itself(store):
    value: list[Any] = [1]
    value.append(value)
    try:
        await store.set("v", value)
    except StoreError:
        assert not await store.has("v")
    else:
        got = await store.get("v")
        assert got[0] == 1
        assert got[1] is got


@pytest.mark.requires("client")
@pytest.mark.parametrize("depth", [100, 127, 128, 129, 1_000, 100_000])
async def test_a_deep_value_comes_back_or_is_refused(store, depth):
    value: Any = 1
    for _ in range(depth):
        value = [value]
    try:
        await store.set("v", value)
        got = await store.get("v")
    except StoreError:
        assert depth > 127
    else:
        for _ in range(depth):
            (got,) = got
        assert got == 1
    # A list of a hundred thousand lists cannot be let go of recursively.
    while isinstance(value, list):
        value = value.pop()


@pytest.mark.requires("client")
async def test_what_cannot_be_pickled_is_refused(store):
    for value in (lambda: 1, (number for number in range(3)), [threading.Lock()]):
        with pytest.raises(StoreEncodingError):
            await store.set("v", value)
        with pytest.raises(StoreEncodingError):
            await store.extend("v", (1, 1), (2, value))
        with pytest.raises(StoreEncodingError):
            await store.apply("v", {"a": 1, "v": (operator.setitem, value)})
    assert not await store.has("v")
    assert await store.timeseries() == await store.eventsources() == []


# --- what the service hands back is not trusted ------------------------------------------------------------


MALICIOUS = {
    "os.system": lambda: pickle.dumps(Call(os.system, "touch /tmp/rstore-was-here")),
    "eval": lambda: pickle.dumps(Call(eval, "1 + 1")),
    "exec": lambda: pickle.dumps(Call(exec, "1")),
    "getattr": lambda: pickle.dumps(Call(getattr, "text", "upper")),
    "partial": lambda: pickle.dumps(Call(functools.partial, eval, "1")),
    "attrgetter": lambda: pickle.dumps(Call(operator.attrgetter("__class__"), 1)),
    "nested": lambda: pickle.dumps([1, {"a": (Call(eval, "1"),)}]),
    "reduce on str": lambda: b"cbuiltins\nstr\n(S'x'\ntR.",
    "reduce on an allowed type's attribute": lambda: b"\x80\x04\x8c\x08datetime\x8c\x0cdatetime.now\x93)R.",
    "dotted name": lambda: b"\x80\x04\x8c\x07decimal\x8c\x10Decimal.__class__\x93.",
    "a module's import": lambda: b"\x80\x04\x8c\x08datetime\x8c\x07sys.path\x93.",
    "build": lambda: b"\x80\x04\x8c\x08datetime\x8c\x08datetime\x93}\x8c\x03now\x4b\x01sb.",
    "extension": lambda: b"\x80\x02\x82\x01.",
    "persistent id": lambda: b"Pid\n.",
    "truncated": lambda: pickle.dumps([1, 2, 3])[:-2],
    "garbage": lambda: b"\xff" * 20,
    "empty": lambda: b"",
    "memory": lambda: b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0f.",
    "memo": lambda: b"\x80\x04Nr\xff\xff\xff\x7f.",
}


@pytest.mark.requires("wire", "plain")
@pytest.mark.parametrize("name", MALICIOUS)
async def test_a_malicious_pickle_is_refused(driver, store, name):
    body = MALICIOUS[name]()
    answer = await driver.http.put(
        f"/ns/{store.namespace}/kv/evil", content=body, headers={"Content-Type": "application/vnd.rstore.pickle"}
    )
    assert answer.status_code in (201, 422), answer.text
    if answer.status_code == 422:
        return
    if name == "reduce on str":
        # Calling str is harmless; a loader may take it or leave it.
        with contextlib.suppress(StoreError):
            assert await store.get("evil") == "x"
        return
    with pytest.raises(StoreError):
        await store.get("evil")


@pytest.mark.requires("client")
async def test_a_pickle_of_another_type_is_read_in_trust_alone(driver, store):
    trusting = await driver.open(store.namespace, trust_pickle=True, like=store)
    value = Point(1, 2)
    await trusting.set("v", value)
    await trusting.extend("v", (1, value))
    await trusting.apply("v", {"v": value})
    for read in (store.get, store.range, store.last, store.current, store.events):
        with pytest.raises(StoreEncodingError, match=r"Point.*trust_pickle=True"):
            await read("v")
    assert await trusting.get("v") == value
    assert await trusting.range("v") == [(1, value)]
    assert await trusting.current("v") == {"v": value}


# --- the wire ----------------------------------------------------------------------------------------------


@pytest.mark.requires("wire", "plain")
async def test_plain_data_is_readable_without_the_sdk_and_back(driver, store):
    path = f"/ns/{store.namespace}/kv/doc"
    await store.set("doc", {"a": [1, "ü", None]})
    answer = await driver.http.get(path)
    assert answer.headers["content-type"].split(";")[0] == "application/json"
    assert answer.json() == {"a": [1, "ü", None]}
    await driver.http.put(
        path, content=b'{"b": 1.0, "big": 123456789012345678901234567890}', headers={"Content-Type": "application/json"}
    )
    assert exactly(await store.get("doc")) == exactly({"b": 1.0, "big": 123456789012345678901234567890})
    await store.set("picture", b"\x89PNG")
    assert (await driver.http.get(f"/ns/{store.namespace}/kv/picture")).content == b"\x89PNG"
    await driver.http.put(f"/ns/{store.namespace}/kv/picture", content=b"GIF89a", headers={"Content-Type": "image/gif"})
    assert await store.get("picture") == b"GIF89a"
    assert (await driver.http.get(f"/ns/{store.namespace}/kv/picture")).headers["content-type"] == "image/gif"


@pytest.mark.requires("client")
async def test_dump_and_load_of_a_subclass(driver, namespace, store):
    def dump(self, value):
        return json.dumps(value)

    def load(self, data):
        return json.loads(data)

    # The sealed cases seal what _dump returns.
    custom = await driver.open(namespace, attributes={"_dump": dump, "_load": load}, like=store)
    await custom.set("k", (1, {"a": None}))
    assert await custom.get("k") == [1, {"a": None}]
    await custom.extend("k", (1, (2,)))
    assert await custom.range("k") == [(1, [2])]
    await custom.apply("k", {"a": (operator.setitem, (1, 2)), "n": 1})
    assert await custom.apply("k", {"n": (operator.add, 1)}) == {"a": [1, 2], "n": 2}
    assert await custom.current("k") == {"a": [1, 2], "n": 2}


@pytest.mark.requires("client")
async def test_dump_may_return_bytes(driver, namespace, store):
    custom = await driver.open(
        namespace,
        attributes={
            "_dump": lambda self, value: b"\xff" + pickle.dumps(value),
            "_load": lambda self, data: pickle.loads(data[1:]),
        },
        like=store,
    )
    await custom.set("k", {1, 2})
    assert await custom.get("k") == {1, 2}
    await custom.extend("k", (1, Colour.RED))
    assert await custom.last("k") == (1, Colour.RED)


def test_keys_are_32_bytes_of_urlsafe_base64():
    import base64

    from cryptography.fernet import Fernet

    key = rstore.generate_key()
    assert isinstance(key, str)
    assert len(base64.urlsafe_b64decode(key)) == 32
    assert key != rstore.generate_key()
    Fernet(key)
