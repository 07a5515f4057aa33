"""Numbers of other types, such as numpy's, are numbers to every method: as values, timestamps, counts and seconds."""

from __future__ import annotations

import decimal
import fractions
import inspect
import operator
from array import array
from collections.abc import Iterator
from typing import Any, cast

import httpx2
import numpy
import pytest
from tests.picklable import Celsius, Index, Level, Ticks

from rstore import Store, StoreRequestError
from rstore.core.numeric import integer, plain_number

KEY = "sLxn7jJIZn1fQWxTTLpXZCNBFpYQmU1KZBLHsRT7Bb0="

INTEGERS = {kind.__name__: kind for kind in (numpy.int8, numpy.int64, numpy.uint64, numpy.array, Index, Ticks)}
NO_INTEGERS = {
    "True": True,
    "numpy's True": numpy.bool_(True),
    "a float": 5.0,
    "numpy's float": numpy.float64(5),
    "text": "5",
    "a decimal": decimal.Decimal(5),
    "a fraction": fractions.Fraction(5),
    "an array of two": numpy.array([5, 6]),
    "an array of floats": numpy.array(5.0),
    "a duration": numpy.timedelta64(5, "s"),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_of_another_type_is_the_int(name: str) -> None:
    for number in (0, 1, 100):
        found = integer(INTEGERS[name](number)), plain_number(INTEGERS[name](number))
        assert found == (number, number)
        assert set(map(type, found)) == {int}


@pytest.mark.parametrize("name", NO_INTEGERS)
def test_what_is_not_an_integer_is_none(name: str) -> None:
    assert integer(NO_INTEGERS[name]) is None


# --- every method ------------------------------------------------------------------------------------------


class Recording(httpx2.BaseTransport):
    """Sends what it is given, and keeps it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.inner = httpx2.HTTPTransport()
        self.requests: list[tuple[str, bytes, bytes]] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append((request.method, request.url.raw_path, request.read()))
        return self.inner.handle_request(request)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def recording(service_url: str) -> Iterator[Recording]:
    transport = Recording(service_url)
    yield transport
    transport.close()


@pytest.fixture
def store(service_url: str, namespace: str, recording: Recording) -> Iterator[Store]:
    with Store(service_url, namespace, frozen=False, transport=recording) as store:
        yield store


# The arguments besides the one in question.
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "set": (("k", 1), {}),
    "set_many": (({"k": 1},), {}),
    "range": (("s",), {}),
    "range_columns": (("s",), {}),
    "missing": (("s",), {"start": 0, "end": 9, "freq": 1}),
    "iscomplete": (("s",), {"start": 0, "end": 9, "freq": 1}),
    "remove": (("s",), {}),
    "apply": (("e", {"n": 1}), {}),
    "past": (("e",), {}),
    "events": (("e",), {}),
}
INT_PARAMETERS = {"start", "end", "n", "freq", "t"}
FOUND = [
    (name, parameter)
    for name, method in inspect.getmembers(Store, callable)
    if not name.startswith("_")
    for parameter in inspect.signature(method).parameters
    if parameter in INT_PARAMETERS | {"ttl"}
]


def sent(store: Store, recording: Recording, name: str, **arguments: Any) -> list[tuple[str, bytes, bytes]]:
    """What a call sends."""
    # Two applies at one timestamp would collide.
    httpx2.delete(f"{recording.url}/ns/{store.namespace}/es/e/events").raise_for_status()
    given, named = CALLS[name]
    recording.requests.clear()
    getattr(store, name)(*given, **named | arguments)
    return list(recording.requests)


def test_the_sweep_knows_every_method() -> None:
    assert {name for name, _ in FOUND} == set(CALLS)


@pytest.mark.parametrize(("name", "parameter"), FOUND)
def test_a_number_of_another_type_is_sent_as_the_number_that_it_is(
    store: Store, recording: Recording, name: str, parameter: str
) -> None:
    plain = sent(store, recording, name, **{parameter: 2})
    for kind in (*INTEGERS.values(), Level):
        assert sent(store, recording, name, **{parameter: kind(2)}) == plain


@pytest.mark.parametrize(("name", "parameter"), FOUND)
def test_what_is_not_a_number_for_a_parameter_is_refused(
    store: Store, recording: Recording, name: str, parameter: str
) -> None:
    wrong = NO_INTEGERS if parameter != "ttl" else {"True": True, "numpy's": numpy.bool_(True), "text": "5"}
    for value in wrong.values():
        recording.requests.clear()
        with pytest.raises(StoreRequestError, match=parameter):
            sent(store, recording, name, **{parameter: value})
        assert recording.requests == []


def test_seconds_may_be_numpys(store: Store, recording: Recording) -> None:
    for seconds in (numpy.float32(1.5), numpy.float64(1.5), Celsius(1.5)):
        for name in ("set", "set_many"):
            assert sent(store, recording, name, ttl=seconds) == sent(store, recording, name, ttl=1.5)


def test_the_step_of_a_class_may_be_numpys(store: Store, recording: Recording) -> None:
    class Stepping(Store):
        _freq = numpy.int32(5)  # type: ignore[assignment]

    plain = sent(store, recording, "range", freq=5)
    with Stepping(recording.url, store.namespace, frozen=False, transport=recording) as stepping:
        assert sent(stepping, recording, "range") == plain


# --- points ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
@pytest.mark.parametrize("trusting", [False, True])
def test_points_of_numpy_are_stored_and_read(service_url: str, namespace: str, key: str | None, trusting: bool) -> None:
    times: Any = numpy.arange(5) * 60
    columns: dict[str, Any] = {
        "float64": numpy.linspace(0, 1, 5),
        "float32": numpy.linspace(0, 1, 5, dtype=numpy.float32),
        "int": numpy.arange(5, dtype=numpy.uint16),
        "bool": numpy.array([True, False, True, True, False]),
        "mixed": [numpy.float64(1.5), numpy.int8(3), 2.5, 2**70, numpy.uint64(2**64 - 1)],
        "with others": [numpy.float64(1.5), "text", None, (numpy.int8(1),), [numpy.float32(0.5)]],
        "not finite": [numpy.float64("nan"), numpy.float64("inf"), 1.0, numpy.float32("-inf"), 2.0],
    }
    for name, column in columns.items():
        with Store(service_url, namespace, key, frozen=False, trust_pickle=trusting) as store:
            store.extend(name, *zip(times, column, strict=True))
            found = store.range(name)
            plain = [value.item() if isinstance(value, numpy.generic) else value for value in column]
            if name == "with others":
                plain[3:] = [(1,), [0.5]]
            assert repr(found) == repr(list(zip(times.tolist(), plain, strict=True)))
            assert repr(store.last(name)) == repr(found[-1])
            store.extend_columns(f"{name}, columns", times, column)
            assert repr(store.range_columns(f"{name}, columns")) == repr((times.tolist(), plain))


def test_columns_are_the_points_that_they_hold(store: Store) -> None:
    store.extend_columns("s", (t for t in (3, 1, 3)), array("d", [1.0, 2.0, 3.0]))
    assert store.range("s") == [(1, 2.0), (3, 3.0)]
    assert store.range_columns("s", 2) == ([3], [3.0])
    assert store.range_columns("s", n=1) == ([1], [2.0])
    assert store.range_columns("none") == ([], [])
    many = range(200_000)  # More than one frame holds.
    store.extend_columns("many", many, map(str, many))
    assert store.range_columns("many") == (list(many), [str(number) for number in many])
    for timestamps, values, message in (
        ([1, 2], [1.5], "2 timestamps for 1 values"),
        (5, [1.5], "timestamps is a list or another iterable, not int"),
        ([1], None, "values is a list or another iterable, not NoneType"),
        ([1.5], [1.5], "a timestamp is an int, not float"),
        (numpy.zeros((2, 2), dtype=int), [1, 2], r"timestamps\[0\]: a timestamp is an int, not list"),
        (numpy.array(5), [1], "timestamps is a list or another iterable, not ndarray"),
    ):
        with pytest.raises(StoreRequestError, match=message):
            store.extend_columns("s", timestamps, values)
    assert len(store.range("s")) == 2


def test_one_value_of_numpy_leaves_a_series_readable(store: Store) -> None:
    store.extend("roof", (0, 12.8), (1000, numpy.float64(1.5)))
    assert store.range("roof") == [(0, 12.8), (1000, 1.5)]
    with pytest.raises(StoreRequestError, match=r"a timestamp is an int, not bool.*"):
        store.extend("roof", (numpy.bool_(True), 1))  # type: ignore[arg-type]
    with pytest.raises(StoreRequestError, match="a timestamp is an int, not float64"):
        store.extend("roof", (numpy.float64(1), 1))  # type: ignore[arg-type]
    with pytest.raises(StoreRequestError, match="64-bit"):
        store.extend("roof", (numpy.uint64(2**63), 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_events_of_numpy_are_folded(service_url: str, namespace: str, key: str | None) -> None:
    with Store(service_url, namespace, key, frozen=False) as store:
        # Their types are not `int`, which is what the SDK's annotations say.
        first, second = cast("list[int]", [numpy.int64(10), Index(20)])
        store.apply("e", {"n": numpy.int64(5), "x": numpy.float32(0.5)}, t=first)
        state = store.apply("e", {"n": (operator.add, numpy.uint8(2)), "x": (operator.mul, numpy.float64(3))}, t=second)
        assert repr(state) == repr({"n": 7, "x": 1.5})
        assert repr(store.past("e", first, withtimestamp=True)) == repr((10, {"n": 5, "x": 0.5}))
