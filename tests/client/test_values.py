"""Every value comes back equal and of the same type; exactly JSON, and only that, is stored as JSON."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import math
import pathlib
import threading
import uuid
import zoneinfo
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstore import sealing, values
from rstore.encodings import JSON_INTEGER_MAX, JSON_INTEGER_MIN, Encoding, Value
from rstore.errors import StoreDecryptionError, StoreEncodingError


class Colour(enum.Enum):
    RED = "red"
    BLUE = ("b", 1)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Name(str):
    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Position:
    x: Any
    y: Any


def same(a: Any, b: Any) -> bool:
    """Equal and of the same type, all the way down; NaN is the same as NaN, 0.0 is not the same as -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, decimal.Decimal):
        return a.as_tuple() == b.as_tuple()
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, list | tuple | collections.deque):
        extra = getattr(a, "maxlen", None) == getattr(b, "maxlen", None)
        return extra and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        extra = getattr(a, "default_factory", None) is getattr(b, "default_factory", None)
        return extra and len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, set | frozenset):
        return bool(a == b) and sorted(map(repr, map(type, a))) == sorted(map(repr, map(type, b)))
    if dataclasses.is_dataclass(a):
        return same(vars(a), vars(b))
    if isinstance(a, datetime.datetime | datetime.time):
        return a == b and a.tzinfo == b.tzinfo and a.fold == b.fold
    return bool(a == b)


zones = st.sampled_from(
    [
        datetime.UTC,
        datetime.timezone(datetime.timedelta(hours=-3, seconds=1), "there"),
        zoneinfo.ZoneInfo("Europe/Berlin"),
    ]
)
json_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**63, -(2**64) - 1, 10**3999, -(10**3999)]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([-0.0, 1e22, 5e-324, 1.7976931348623157e308, 1e16]),
    st.text(st.characters(exclude_categories=["Cs"])),
)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=15,
)
times = st.one_of(
    st.datetimes(timezones=st.none() | zones),
    st.builds(lambda t: t.replace(fold=1), st.datetimes()),
    st.dates(),
    st.times(timezones=st.none() | st.just(datetime.UTC)),
    st.timedeltas(),
    zones,
)
hashables = st.one_of(
    json_scalars,
    st.text(),
    st.binary(),
    times,
    st.decimals(allow_nan=False),
    st.fractions(),
    st.uuids(),
    st.complex_numbers(allow_nan=False),
    st.ip_addresses(),
    st.sampled_from(
        [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_interface("::1/64"), ipaddress.ip_address("::1%2")]
    ),
    st.builds(pathlib.PurePosixPath, st.sampled_from(["/", "a/b", "."]), st.sampled_from(["..", "c d"])),
    st.sampled_from(
        [pathlib.PureWindowsPath("c:\\x"), pathlib.Path("/tmp/x"), ..., NotImplemented, int, range(3, 9, 2)]
    ),
)
keys = st.recursive(
    hashables, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=4
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    mappings = st.dictionaries(keys, inner, max_size=4)
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        mappings,
        mappings.map(collections.OrderedDict),
        mappings.map(lambda items: collections.defaultdict(list, items)),
        st.dictionaries(keys, st.integers(), max_size=4).map(collections.Counter),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        st.builds(collections.deque, st.lists(inner, max_size=4), st.none() | st.integers(4, 9)),
    )


harmless = st.recursive(
    hashables
    | st.binary().map(bytearray)
    | st.floats()
    | st.decimals()
    | st.builds(slice, st.none() | st.integers(), st.none() | st.integers()),
    containers,
    max_leaves=12,
)
anything = st.recursive(
    hashables | st.floats() | st.sampled_from([*Colour, *Level]) | st.builds(Name, st.text()),
    lambda inner: containers(inner) | st.builds(Position, inner, inner),
    max_leaves=12,
)


def is_json(value: Any) -> bool:
    """The definition, written as one would read it."""
    if type(value) is dict:
        return all(type(key) is str and is_json(key) and is_json(item) for key, item in value.items())
    if type(value) is list:
        return all(map(is_json, value))
    if type(value) is str:
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if type(value) is float:
        return math.isfinite(value)
    return type(value) in (int, bool, type(None))


@given(json_values)
def test_json_values_are_stored_as_json_and_come_back(value: Any) -> None:
    stored = values.dump(value)
    assert stored.encoding is Encoding.JSON
    assert same(json.loads(stored.data), value)
    assert same(values.load(stored, trusted=False), value)


@settings(max_examples=200)
@given(harmless)
def test_harmless_values_come_back_without_trust(value: Any) -> None:
    stored = values.dump(value)
    assert (stored.encoding is Encoding.JSON) == is_json(value)
    assert same(values.load(stored, trusted=False), value)
    assert same(values.load(stored, trusted=True), value)


@settings(max_examples=200)
@given(anything)
def test_every_picklable_value_comes_back_when_trusted(value: Any) -> None:
    stored = values.dump(value)
    assert (stored.encoding is Encoding.JSON) == is_json(value)
    assert same(values.load(stored, trusted=True), value)


@pytest.mark.parametrize("value", [JSON_INTEGER_MAX, JSON_INTEGER_MIN], ids=["greatest", "least"])
def test_ints_are_json_up_to_what_a_service_parses(value: int) -> None:
    for whole in (value, [{"a": value}]):
        stored = values.dump(whole)
        assert stored.encoding is Encoding.JSON
        assert same(values.load(stored, trusted=False), whole)
    beyond = values.dump(value + (1 if value > 0 else -1))
    assert beyond.encoding is Encoding.PICKLE


@given(st.lists(anything | json_values, max_size=4))
def test_plaintexts_are_packed_values(several: list[Any]) -> None:
    plaintexts = values.dump_plaintexts(several)
    assert plaintexts == [sealing.pack(values.dump(value)) for value in several]
    assert same(values.load_plaintexts(plaintexts), several)


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        [1, (2,)],
        {1: 2},
        {"a": {None: 1}},
        Level.LOW,
        [Level.LOW],
        Colour.RED,
        Name("x"),
        {Name("x"): 1},
        math.nan,
        [math.inf],
        {"a": -math.inf},
        "\ud800",
        {"\udfff": 1},
        pytest.param(10**4300, id="4,301 digits"),
        [-(10**4300)],
        [10**5000],
        {1, 2},
        collections.OrderedDict(a=1),
        [b"in a list"],
        Position(1, 2),
    ],
)
def test_what_is_not_exactly_json_is_pickled(value: Any) -> None:
    stored = values.dump(value)
    assert stored.encoding is Encoding.PICKLE
    assert same(values.load(stored, trusted=True), value)


def test_bytes_are_stored_as_they_are() -> None:
    assert values.dump(b"\0\xff") == Value(Encoding.BYTES, b"\0\xff")
    assert values.load(Value(Encoding.BYTES, b"\0\xff"), trusted=False) == b"\0\xff"


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_nesting_up_to_a_hundred_is_json_and_deeper_is_pickled() -> None:
    assert values.dump(nested(100)).encoding is Encoding.JSON
    deeper = values.dump(nested(102))
    assert deeper.encoding is Encoding.PICKLE
    assert values.load(deeper, trusted=False) == nested(102)


def test_a_value_that_contains_itself_is_pickled() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    back: Any = values.load(values.dump(loop), trusted=False)
    assert back[0] == 1
    assert back[1] is back


def test_a_value_nested_in_itself_twice_is_pickled_in_time() -> None:
    loop: dict[str, Any] = {}
    loop.update(a=loop, b=loop)
    assert values.dump(loop).encoding is Encoding.PICKLE


def test_what_cannot_be_pickled_is_named() -> None:
    for value, name in [
        (threading.Lock(), "_thread.lock"),
        (lambda: 1, "function"),
        ([threading.Lock()], "_thread.lock"),
    ]:
        with pytest.raises(StoreEncodingError, match=name):
            values.dump(value)
    with pytest.raises(StoreEncodingError, match="cannot be pickled"):
        values.dump(nested(100_000))


@pytest.mark.parametrize(
    "data", [b"", b"NaN", b"[1", b'"\xff"', b"1 2", b"[" * 5000, b"1" * 4301, b'"\\ud800"', b"1e999"]
)
def test_stored_json_that_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(StoreEncodingError):
        values.load(Value(Encoding.JSON, data), trusted=False)
    with pytest.raises(StoreEncodingError):
        values.load_plaintexts([b"\0" + data])


def test_a_sealed_value_needs_its_key() -> None:
    with pytest.raises(StoreDecryptionError, match="sealed"):
        values.load(Value(Encoding.SEALED, b"\x01"), trusted=False)


def test_types_of_other_modules_need_trust_and_are_named() -> None:
    for value in (Colour.RED, Position(1, 2), Name("x"), [Level.LOW]):
        with pytest.raises(StoreEncodingError, match=r"test_values\.(Colour|Position|Name|Level).*trust_pickle=True"):
            values.load(values.dump(value), trusted=False)


def test_a_uuid_of_this_machine_comes_back() -> None:
    made = uuid.uuid1()
    assert values.load(values.dump(made), trusted=False) == made
