"""Every value comes back equal and of the same type; exactly JSON, and only that, is stored as JSON."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import decimal
import fractions
import ipaddress
import json
import math
import pathlib
import pickle
import subprocess
import sys
import threading
import uuid
import zoneinfo
from collections.abc import Callable
from typing import Any, cast

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.picklable import (
    Celsius,
    Chameleon,
    Colour,
    Flags,
    Index,
    Level,
    Name,
    Pair,
    Point,
    Position,
    Row,
    Stack,
    Table,
    Ticks,
    Unloadable,
    function,
)

from rstore import sealing
from rstore.codec import values
from rstore.core.encodings import JSON_INTEGER_MAX, JSON_INTEGER_MIN, Encoding, Value
from rstore.core.errors import StoreDecryptionError, StoreEncodingError


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
    if dataclasses.is_dataclass(a) or isinstance(a, Exception | collections.UserDict):
        return same(vars(a), vars(b)) and same(getattr(a, "args", ()), getattr(b, "args", ()))
    if isinstance(a, numpy.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
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
foreign = st.one_of(
    st.sampled_from([*Colour, *Level, Flags.A | Flags.B, function, print, Position, Exception("x")]),
    st.builds(Name, st.text()),
    st.builds(Unloadable, st.integers(), st.integers()),
    st.lists(st.integers(), max_size=2).map(Row),
    st.lists(st.integers(), max_size=2).map(Stack),
    st.dictionaries(st.text(), st.integers(), max_size=2).map(Table),
    st.lists(st.integers(), max_size=2).map(numpy.array),
    st.builds(collections.defaultdict, st.sampled_from([list, int, function, Position, datetime.datetime])),
    st.sampled_from(
        [threading.Lock(), numpy.longdouble(1) / 3, numpy.datetime64("2026-01-01"), numpy.str_("x"), lambda: 1]
    ),
)
anything = st.recursive(
    hashables | st.floats() | foreign,
    lambda inner: st.one_of(
        containers(inner),
        st.builds(Position, inner, inner),
        st.builds(Point, inner, inner),
        st.builds(Pair, inner, inner),
        st.builds(collections.UserDict, st.dictionaries(st.text(), inner, max_size=2)),
    ),
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
    for trusted in (False, True):
        back = values.load(stored, trusted=trusted)
        assert same(back, value)
        # What was read can be written again.
        assert same(values.load(values.dump(back), trusted=trusted), value)
        assert vars_of(back) == vars_of(value)


def vars_of(value: Any) -> dict[str, Any]:
    """The attributes of a value that has any."""
    return getattr(value, "__dict__", {})


@settings(max_examples=300)
@given(anything | st.builds(Chameleon), st.booleans())
def test_what_is_written_can_be_read_back(value: Any, trusted: bool) -> None:
    try:
        stored = values.dump(value, trusted=trusted)
    except StoreEncodingError:
        return
    assert same(values.load(stored, trusted=trusted), value)
    # A store that trusts pickles writes what others can read wherever it can be.
    with contextlib.suppress(StoreEncodingError):
        assert values.dump(value, trusted=not trusted) == stored


@pytest.mark.parametrize("value", [JSON_INTEGER_MAX, JSON_INTEGER_MIN], ids=["greatest", "least"])
def test_ints_are_json_up_to_what_a_service_parses(value: int) -> None:
    for whole in (value, [{"a": value}]):
        stored = values.dump(whole)
        assert stored.encoding is Encoding.JSON
        assert same(values.load(stored, trusted=False), whole)
    beyond = values.dump(value + (1 if value > 0 else -1))
    assert beyond.encoding is Encoding.PICKLE


@given(st.lists(harmless | json_values, max_size=4))
def test_plaintexts_are_packed_values(several: list[Any]) -> None:
    plaintexts = [sealing.pack(values.dump(value)) for value in several]
    for trusted in (False, True):
        assert same(values.load_plaintexts(plaintexts, trusted=trusted), several)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1)))
def test_plaintexts_of_numbers_are_packed_values(several: list[float]) -> None:
    assert values.dump_numbers(several) == [sealing.pack(values.dump(value)) for value in several]


# --- numbers of other types --------------------------------------------------------------------------------

INTEGERS = (numpy.int8, numpy.int64, numpy.uint16, numpy.uint64, numpy.array, Index, Ticks)
FLOATS = (numpy.float16, numpy.float32, numpy.float64, numpy.longdouble, Celsius)
numbers = st.one_of(
    st.builds(lambda kind, number: (kind(number), number), st.sampled_from(INTEGERS), st.integers(0, 100)),
    st.builds(lambda kind, number: (kind(number), number), st.sampled_from(FLOATS), st.floats(width=16)),
    st.booleans().map(lambda truth: (numpy.bool_(truth), truth)),
)
# Pairs of a value that holds such numbers, and of the same with plain numbers in their place.
with_numbers = st.recursive(
    numbers | (st.integers() | st.floats() | st.text()).map(lambda value: (value, value)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(
            lambda pairs: tuple(map(list, zip(*pairs, strict=True))) if pairs else ([], [])
        ),
        st.lists(inner, max_size=3).map(lambda pairs: tuple(zip(*pairs, strict=True)) if pairs else ((), ())),
        st.dictionaries(st.text(max_size=2), inner, max_size=3).map(
            lambda pairs: tuple({key: pair[side] for key, pair in pairs.items()} for side in (0, 1))
        ),
        inner.map(lambda pair: tuple(collections.deque([part]) for part in pair)),
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(with_numbers, st.booleans())
def test_a_number_of_another_type_is_stored_as_the_number_that_it_is(pair: tuple[Any, Any], trusted: bool) -> None:
    value, plain = pair
    stored = values.dump(value, trusted=trusted)
    assert (stored.encoding is Encoding.JSON) == is_json(plain)
    assert same(values.load(stored, trusted=trusted), plain)


def test_numbers_of_other_types_are_numbers_as_keys_and_members_too() -> None:
    value = {numpy.int64(1): {numpy.float64(1.5)}, numpy.float32(0.5): frozenset({numpy.int8(3)})}
    assert same(values.load(values.dump(value), trusted=False), {1: {1.5}, 0.5: frozenset({3})})


@pytest.mark.parametrize(
    "value",
    [
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 2),
        Level.LOW,
        numpy.longdouble(1) / 3,
        numpy.complex64(1),
        numpy.timedelta64(1, "s"),
        numpy.array(1.5),
        numpy.array([1]),
    ],
    ids=repr,
)
def test_what_would_lose_digits_or_its_meaning_becomes_no_number(value: Any) -> None:
    if type(value).__module__ in ("decimal", "fractions"):
        assert same(values.load(values.dump(value), trusted=False), value)
    else:
        with pytest.raises(StoreEncodingError, match=type(value).__qualname__):
            values.dump(value)
    assert same(values.load(values.dump(value, trusted=True), trusted=True), value)


def test_numpy_is_not_imported_for_it() -> None:
    program = """
import sys
from rstore.codec import values
from rstore.core.numeric import plain_number
values.dump([object.__new__(type("Index", (), {"__index__": lambda self: 5})), (1.5,)][:1])
assert plain_number(object()) is None
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# --- what cannot be stored ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        [1, (2,)],
        {1: 2},
        {"a": {None: 1}},
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
    ],
)
def test_what_is_not_exactly_json_is_pickled(value: Any) -> None:
    stored = values.dump(value)
    assert stored.encoding is Encoding.PICKLE
    assert same(values.load(stored, trusted=True), value)


@pytest.mark.parametrize(
    "value", [Level.LOW, [Level.LOW], Colour.RED, Name("x"), {Name("x"): 1}, Position(1, 2), Row()]
)
def test_other_types_are_pickled_by_those_who_trust_pickles(value: Any) -> None:
    stored = values.dump(value, trusted=True)
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


@st.composite
def webs(draw: st.DrawFn) -> Any:
    """Containers that hold one another, and themselves, in any way."""
    kinds: list[Callable[[], Any]] = [list, dict, collections.deque, collections.OrderedDict]
    kinds.append(lambda: collections.defaultdict(list))
    parts = [draw(st.sampled_from(kinds))() for _ in range(draw(st.integers(1, 5)))]
    for number in range(draw(st.integers(0, 12))):
        part = draw(st.sampled_from(parts))
        inner = draw(st.sampled_from(parts) | st.tuples(st.integers(), st.sampled_from(parts)) | st.integers())
        if isinstance(part, dict):
            part[number] = inner
        else:
            part.append(inner)
    return draw(st.sampled_from(parts))


@given(webs())
def test_values_that_hold_themselves_come_back(value: Any) -> None:
    for trusted in (False, True):
        assert alike(values.load(values.dump(value, trusted=trusted), trusted=trusted), value)


def test_a_value_nested_in_itself_twice_is_pickled_in_time() -> None:
    loop: dict[str, Any] = {}
    loop.update(a=loop, b=loop)
    assert values.dump(loop).encoding is Encoding.PICKLE


def test_what_cannot_be_stored_is_named_with_the_remedy() -> None:
    for value, name in [
        (threading.Lock(), "_thread.lock"),
        (lambda: 1, "builtins.function"),
        ([threading.Lock()], "_thread.lock"),
        (Colour.RED, "picklable.Colour"),
        ((1, {"a": Position(1, 2)}), "picklable.Position"),
        (Position, "picklable.Position"),
        ({Name("x"): 1}, "picklable.Name"),
        ([Level.LOW], "picklable.Level"),
        (collections.defaultdict(function), "builtins.function"),
        (type(None), "builtins.NoneType"),
        (numpy.array([1.5]), "numpy.ndarray"),
        (datetime.datetime(2026, 1, 1, tzinfo=Zone()), "Zone"),  # type: ignore[abstract]
    ]:
        with pytest.raises(StoreEncodingError, match=rf"{name}.* convert it, or open the store with trust_pickle=True"):
            values.dump(value)
    with pytest.raises(StoreEncodingError, match="cannot be pickled"):
        values.dump(nested(100_000))


class Zone(datetime.tzinfo):
    """A time zone of a type of its own."""


def test_what_python_cannot_load_again_is_not_stored_in_trust() -> None:
    for value, reason in [
        (threading.Lock(), "_thread.lock' object"),
        (lambda: 1, "function cannot be pickled"),
        (Unloadable(1, 2), "cannot be loaded"),
        ((1, Unloadable(1, 2)), "cannot be loaded"),
        (Chameleon(), "would come back as one of type builtins.list"),
        (nested(100_000), "cannot be pickled"),
    ]:
        with pytest.raises(StoreEncodingError, match=reason):
            values.dump(value, trusted=True)


def chain(length: int) -> tuple[Any, ...]:
    value: tuple[Any, ...] = ()
    for _ in range(length):
        value = (value,)
    return value


def laughs(levels: int) -> tuple[Any, ...]:
    value: tuple[Any, ...] = (1, 2)
    for _ in range(levels):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({chain(400): 1}, id="a nested key"),
        pytest.param(chain(600), id="a chain of tuples"),
        pytest.param(laughs(40), id="shared parts"),
        pytest.param({laughs(14): 1}, id="a large key of shared parts"),
        pytest.param({("x" * 100_000,): 1}, id="a large key"),
        pytest.param(fractions.Fraction(3**30_000, 2), id="a large fraction"),
        pytest.param(range(0, 3**30_000, 1), id="a large range"),
        pytest.param(collections.defaultdict(cast("Any", datetime.datetime)), id="a factory that makes no default"),
        pytest.param(slice([1], 2), id="a slice of a list"),
        pytest.param([set() for _ in range(2_000)], id="many sets"),
        pytest.param([collections.defaultdict(list) for _ in range(20_000)], id="many defaultdicts"),
        pytest.param([pathlib.PurePosixPath(f"/a{'/folder' * 30}/{n}") for n in range(5_000)], id="many long paths"),
        pytest.param([datetime.time(1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))] * 9_000, id="one time many times"),
    ],
)
def test_what_the_reader_would_refuse_is_refused_when_it_is_written(value: Any) -> None:
    try:
        stored = values.dump(value)
    except StoreEncodingError as error:
        assert "convert it, or open the store with trust_pickle=True" in str(error)  # noqa: PT017
    else:
        assert alike(values.load(stored, trusted=False), value)
    assert alike(values.load(values.dump(value, trusted=True), trusted=True), value)


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, as their pickles tell: to compare parts that are shared would take for ever."""
    return pickle.dumps(one) == pickle.dumps(other)


@pytest.mark.parametrize(
    "data", [b"", b"NaN", b"[1", b'"\xff"', b"1 2", b"[" * 5000, b"1" * 4301, b'"\\ud800"', b"1e999"]
)
def test_stored_json_that_is_not_json_is_refused(data: bytes) -> None:
    with pytest.raises(StoreEncodingError):
        values.load(Value(Encoding.JSON, data), trusted=False)
    with pytest.raises(StoreEncodingError):
        values.load_plaintexts([b"\0" + data], trusted=False)


def test_a_sealed_value_needs_its_key() -> None:
    with pytest.raises(StoreDecryptionError, match="sealed"):
        values.load(Value(Encoding.SEALED, b"\x01"), trusted=False)


def test_a_stored_type_that_needs_trust_is_named_when_it_is_read() -> None:
    for value in (Colour.RED, Position(1, 2), Name("x"), [Level.LOW]):
        stored = values.dump(value, trusted=True)
        with pytest.raises(StoreEncodingError, match=r"picklable\.(Colour|Position|Name|Level).*trust_pickle=True"):
            values.load(stored, trusted=False)


def test_a_uuid_of_this_machine_comes_back() -> None:
    made = uuid.uuid1()
    assert values.load(values.dump(made), trusted=False) == made
