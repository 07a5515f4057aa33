"""Every public method, and the constructor, with arguments of every kind: it works, or it is a StoreError.

What is tried is found by introspection, so a new method is tried too. Only what Python says of a call itself (a missing
argument, an unknown keyword), and what the caller's own objects raise, is not a StoreError.
"""

from __future__ import annotations

import ast
import asyncio
import collections
import contextlib
import datetime
import decimal
import enum
import fractions
import functools
import inspect
import itertools
import operator
import os
import re
import ssl
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import httpx2
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.forked import run
from tests.knobs import knob

import rstore
from rstore import AsyncStore, Store, StoreError, StoreNotAvailableError, StoreRequestError
from rstore.core.errors import PROBLEMS

KEY = rstore.generate_key()
# Every how manyeth combination of a parameter and a value is sent to a service; RSTORE_FUZZ_EXAMPLES tries all.
STRIDE = 1 if knob("RSTORE_FUZZ_EXAMPLES", "") else 7


class OwnError(Exception):
    """What the caller's own objects raise. It passes through."""


def raising(*names: str) -> Any:
    """An object whose methods of these names raise."""

    def method(*_: Any, **__: Any) -> Any:
        raise OwnError

    return type("Raising", (), dict.fromkeys(names, method))()


class Text(str):
    """A str that shows itself as something else."""

    __slots__ = ()

    def __str__(self) -> str:
        return "not me"

    def encode(self, *_: Any, **__: Any) -> bytes:
        return b"not me"


class Word(enum.StrEnum):
    A = "a"


class Number(enum.IntEnum):
    ONE = 1


class Index:
    def __init__(self, index: Any) -> None:
        self.index = index

    def __index__(self) -> Any:
        return self.index


class Broken(Mapping[str, int]):
    """A mapping that does not keep its promises."""

    def __getitem__(self, key: str) -> int:
        raise OwnError

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


class Pathlike:
    def __fspath__(self) -> str:
        return "/nowhere/at/all"


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


def endless() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


# Each is made again for each use, because some can be used only once.
POOL: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "Ellipsis": lambda: ...,
    "NotImplemented": lambda: NotImplemented,
    "KEEP": lambda: rstore.KEEP,
    **{f"int {number}": functools.partial(int, number) for number in (0, 1, -1, 7, 2**31, 2**63, -(2**63) - 1)},
    "a huge int": lambda: 10**5000,
    **{f"float {number}": functools.partial(float, number) for number in (0.0, 1.5, -1.0, 1e300)},
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "complex": lambda: 1j,
    "Decimal": lambda: decimal.Decimal("1.5"),
    "Fraction": lambda: fractions.Fraction(1, 3),
    "IntEnum": lambda: Number.ONE,
    "numpy.int64": lambda: numpy.int64(3),
    "numpy.uint64": lambda: numpy.uint64(2**64 - 1),
    "numpy.float32": lambda: numpy.float32(1.5),
    "numpy.bool": lambda: numpy.bool_(True),
    "numpy.array": lambda: numpy.array([1, 2]),
    "numpy.matrix": lambda: numpy.array([["a", "b"], ["c", "d"]]),
    "an index": lambda: Index(3),
    "an index that is none": lambda: Index("3"),
    **{
        f"str {text!r}": functools.partial(str, text)
        for text in ("", "a", "*", "a/b", "a\0b", "\ud800", "é", "\n", '"', "read")
    },
    "a long str": lambda: "x" * 100_000,
    "a subclass of str": lambda: Text("a"),
    "StrEnum": lambda: Word.A,
    "bytes": lambda: b"ab",
    "bytearray": lambda: bytearray(b"ab"),
    "memoryview": lambda: memoryview(b"ab"),
    "an empty list": list,
    "a list of str": lambda: ["a", "b"],
    "a list of subclasses of str": lambda: [Text("a"), Word.A],
    "a list of ints": lambda: [1, 2],
    "a list of None": lambda: [None],
    "a list of lists": lambda: [["a"], ["b"]],
    "a list of surrogates": lambda: ["\ud800"],
    "a list of functions": lambda: [operator.add, operator.sub],
    "a list of others' functions": lambda: [max],
    "an empty tuple": tuple,
    "a tuple of one": lambda: ("a",),
    "a point": lambda: (1, 1.5),
    "a point as a list": lambda: [1, 1.5],
    "a point with text for a timestamp": lambda: ("1", 1.5),
    "a tuple of three": lambda: (1, 2, 3),
    "an operator": lambda: operator.add,
    "a change": lambda: (operator.add, 1),
    "a change with two values": lambda: (operator.add, 1, 2),
    "an empty dict": dict,
    "a dict": lambda: {"a": 1},
    "a dict of subclasses of str": lambda: {Text("a"): 1, Word.A: 2},
    "a dict with an int for a key": lambda: {1: 2},
    "a dict with None for a key": lambda: {None: 2},
    "a dict with a surrogate for a key": lambda: {"\ud800": 2},
    "a dict of changes": lambda: {"a": (operator.add, 1), "b": (operator.delitem,), "c": (operator.add, 1, 2)},
    "a dict of what cannot be pickled": lambda: {"a": lambda: 1},
    "pairs": lambda: [("a", 1)],
    "a broken mapping": Broken,
    "an empty set": set,
    "a set": lambda: {1, 2},
    "a Counter": lambda: collections.Counter("ab"),
    "a range": lambda: range(2),
    "a generator": lambda: (text for text in "ab"),
    "a datetime": lambda: datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "a path": lambda: Path("/nowhere/at/all"),
    "like a path": Pathlike,
    "an object": object,
    "a class": lambda: int,
    "a function": lambda: lambda *_: None,
    "a module": lambda: operator,
    "a context of TLS": lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    "a transport": httpx2.HTTPTransport,
    "nested deeply": lambda: nested(5_000),
    "nested without end": endless,
    "a key": lambda: KEY,
    "keys": lambda: [KEY, KEY.encode()],
    "what shows nothing": lambda: raising("__str__", "__repr__", "__format__"),
    "what compares with nothing": lambda: raising("__eq__", "__ne__", "__hash__", "__lt__"),
    "what is neither true nor false": lambda: raising("__bool__", "__len__"),
    "what iterates badly": lambda: raising("__iter__", "__getitem__"),
    "what counts badly": lambda: raising("__index__", "__int__", "__float__"),
    "what has no attributes": lambda: raising("__getattr__"),
    "what is called badly": lambda: raising("__call__"),
    "what is pickled badly": lambda: raising("__reduce_ex__"),
    "what is not a path": lambda: raising("__fspath__"),
}

# What each parameter is given while another one is tried.
VALID: dict[str, Any] = {
    "timestamps": [1],
    "values": [1.5],
    "access": "read",
    "changes": {"a": 1},
    "check": False,
    "default": 0,
    "end": 9,
    "freq": 1,
    "grace": 0,
    "if_absent": False,
    "if_match": None,
    "key": "k",
    "keys": ["k"],
    "label": "",
    "lifetime": None,
    "mapping": {"k": 1},
    "n": 5,
    "namespaces": ["n"],
    "ops": None,
    "pattern": "k*",
    "points": (1, 1.5),
    "progress": None,
    "remove": True,
    "start": 0,
    "t": 5,
    "token_id": "id",
    "ttl": rstore.KEEP,
    "value": 1,
    "withtimestamp": False,
}


DICT_FACE = ("__contains__", "__delitem__", "__getitem__", "__setitem__")


def public(kind: type) -> dict[str, Any]:
    """The public methods, and the dict-like face."""
    return {
        name: member
        for name, member in inspect.getmembers(kind, callable)
        if not name.startswith("_")
        or (name in vars(kind) and name in ("__getitem__", "__setitem__", "__delitem__", "__contains__"))
    }


def parameters(method: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(method).parameters.values())[1:]


OPERATIONS = sorted(public(Store))
TRIED = [(name, parameter.name) for name in OPERATIONS for parameter in parameters(getattr(Store, name))]


def arguments(method: Callable[..., Any], tried: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments for a call of the method, valid but for those that are tried."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for parameter in parameters(method):
        name = parameter.name
        value = tried[name] if name in tried else VALID[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            # The one that is wrong stands behind one that is not.
            first = VALID[name][0] if name == "keys" else VALID[name]
            positional += [first, value] if name in tried else [first]
        elif parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = value
        else:
            positional.append(value)
    return positional, named


class Recorder(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """A service on which a store can be opened, and that fails at everything after that. Counts what it is sent."""

    def __init__(self) -> None:
        self.sent = -1
        self.requests: list[Any] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.sent += 1
        headers = [field for field in request.headers.raw if field[0].lower() != b"idempotency-key"]
        self.requests.append((request.method, str(request.url), headers, request.content, request.extensions))
        info = {"namespace": "n", "sealed_only": False, "kv": 0, "ts": 0, "es": 0}
        return httpx2.Response(500, content=b"") if self.sent else httpx2.Response(201, json=info)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return self.handle_request(request)


def outcome(kind: type, recorder: Recorder, name: str, tried: dict[str, Any], **options: Any) -> Any:
    """What a call returns, or the StoreError or the caller's own error that it raises."""
    store = kind("http://127.0.0.1", "n", frozen=False, retries=0, transport=recorder, **options)
    positional, named = arguments(getattr(kind, name), tried)

    async def awaited() -> Any:
        return await getattr(await store.open(), name)(*positional, **named)

    refused = None
    try:
        return getattr(store.open(), name)(*positional, **named) if issubclass(kind, Store) else asyncio.run(awaited())
    except KeyError as error:
        if name not in ("__getitem__", "__delitem__"):
            raise
        return error
    except StoreNotAvailableError as error:
        return error
    except (StoreError, OwnError) as error:
        refused = error
    assert recorder.sent == 0
    assert not getattr(refused, "outcome_unknown", False)
    return refused


def index(value: Any) -> int | None:
    """The integer that the value stands for."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except (TypeError, OwnError):
        return None


def is_wrong(annotation: Any, value: Any) -> bool:
    """Whether the value is certainly of a wrong type for what is annotated so."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return False
    if origin in (typing.Union, types.UnionType):
        return all(is_wrong(part, value) for part in parts)
    if origin is typing.Literal:
        return not any(value is part or (isinstance(value, str) and value == part) for part in parts)
    if annotation is bool:
        return not isinstance(value, bool | numpy.bool_)
    if annotation in (int, float):
        low, high = (-(2**63), 2**63) if annotation is int else (0, 10**10 + 1)
        number: float | None = index(value)
        if number is None and annotation is float and isinstance(value, float | numpy.floating):
            number = float(value)
        return number is None or not low <= number < high
    if origin is tuple:
        return not isinstance(value, tuple | list) or len(value) != 2
    if origin is collections.abc.Iterable:
        return isinstance(value, str | bytes) or not isinstance(value, Iterable)
    if origin is collections.abc.Callable:
        return not callable(value)
    return not isinstance(value, origin or annotation)


def check_refusal(found: Any, parameter: str) -> None:
    """A refused argument has a code, and the message names the argument as the caller wrote it."""
    if isinstance(found, StoreRequestError):
        assert found.code in PROBLEMS, found
        # What is wrong with a target as a whole is not a single argument's fault.
        assert re.search(rf"\b{parameter}\b", str(found)) or found.code == "uri-too-long", found


@pytest.mark.parametrize("kind", [Store, AsyncStore])
@pytest.mark.parametrize(("name", "parameter"), TRIED)
def test_an_argument_of_any_kind_works_or_is_a_store_error(kind, name, parameter):
    if not hasattr(kind, name):
        pytest.skip("a part of the dict-like face")
    hints = typing.get_type_hints(getattr(kind, name))
    for what, make in POOL.items():
        found = outcome(kind, Recorder(), name, {parameter: make()}, key=KEY if name == "rotate" else None)
        check_refusal(found, parameter)
        if not isinstance(found, OwnError) and is_wrong(hints[parameter], make()):
            assert isinstance(found, StoreRequestError), (what, found)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
@settings(max_examples=300)
@given(data=st.data())
def test_arguments_of_any_kind_work_or_are_a_store_error(key, data):
    name = data.draw(st.sampled_from(OPERATIONS))
    tried = {
        parameter.name: POOL[data.draw(st.sampled_from(sorted(POOL)))]()
        for parameter in parameters(getattr(Store, name))
        if data.draw(st.booleans())
    }
    outcome(Store, Recorder(), name, tried, key=key)


CONSTRUCTED = list(inspect.signature(Store).parameters.values())


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_whatever_is_sent_is_carried_out_or_is_a_store_error(key, service_url, namespace):
    # What `progress` raises is the caller's own.
    combinations = [pair for pair in itertools.product(TRIED, POOL) if pair[0] != ("rotate", "progress")]
    with Store(service_url, namespace, key, frozen=False) as store:
        for (name, parameter), what in combinations[::STRIDE]:
            positional, named = arguments(getattr(Store, name), {parameter: POOL[what]()})
            with contextlib.suppress(StoreError, KeyError, OwnError):
                getattr(store, name)(*positional, **named)
        store.discard()


DSNS = [
    "http://127.0.0.1:73659",
    "http://127.0.0.1:65536",
    "http://127.0.0.1:0",
    "http://127.0.0.1:-1",
    "http://127.0.0.1:x",
    "http://127.0.0.1:8000:8000",
    "http://",
    "http:///x",
    "http://[::1",
    "http://[::1]:99999",
    "http://\ud800",
    "http://é" + "é" * 300,
    "http://host/\ud800",
    "http://a..b",
    "http://.",
    "https://" + "x" * 64,
    "http://host\n",
    "http://host?x",
    "http://host#x",
    "http://user:password@host",
    "ftp://host",
    "sqlite:///store.db",
    "//host",
    "host:8000",
    "x" * 100_000,
]


def constructed(kind: Any, tried: dict[str, Any], dsn: str = "https://127.0.0.1:1") -> StoreError | None:
    """Make a store and open it: what it may raise is a StoreError, in which no argument stands."""
    try:
        store = kind(**{"dsn": dsn, "namespace": "n", "retries": 0, "deadline": 0.5, "timeout": 0.5, **tried})
        assert repr(store)
        opened = store.open()
        if inspect.iscoroutine(opened):
            asyncio.run(opened)
    except OwnError:
        return None
    except StoreError as error:
        return error
    raise AssertionError("nothing listens there")


@pytest.mark.parametrize("kind", [Store, AsyncStore])
@pytest.mark.parametrize("name", [parameter.name for parameter in CONSTRUCTED])
def test_an_argument_of_the_constructor_of_any_kind_works_or_is_a_store_error(kind, name):
    for make in POOL.values():
        check_refusal(constructed(kind, {name: make()}), name)


@pytest.mark.parametrize("name", ["_namespace", "_key", "_freq"])
def test_a_class_may_fix_anything(name):
    for make in POOL.values():
        value = make()
        kind = type("Fixed", (Store,), {name: value})
        constructed(kind, {"namespace": None} if name == "_namespace" else {})
        if name == "_freq":
            outcome(kind, Recorder(), "range", {"freq": None})
            outcome(kind, Recorder(), "missing", {"freq": None})


@settings(max_examples=200)
@given(data=st.data())
def test_arguments_of_the_constructor_of_any_kind_work_or_are_a_store_error(data):
    constructed(
        Store,
        {
            parameter.name: POOL[data.draw(st.sampled_from(sorted(POOL)))]()
            for parameter in CONSTRUCTED
            if parameter.name != "dsn" and data.draw(st.booleans())
        },
    )


@pytest.mark.parametrize("dsn", DSNS, ids=range(len(DSNS)))
def test_a_dsn_that_is_not_a_url_of_a_service_is_refused(dsn):
    with pytest.raises(StoreRequestError, match="dsn"):
        Store(dsn)


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": None},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": 10**12},
        {"timeout": "30"},
        {"retries": "x"},
        {"retries": -1},
        {"retries": True},
        {"deadline": None},
        {"deadline": float("nan")},
        {"verify": 0},
        {"verify": None},
        {"verify": ""},
        {"cert": 5},
        {"cert": ("a",)},
        {"cert": ("a", "b", "c")},
        {"cert": ("a", 5)},
        {"cert": ""},
        {"frozen": 0},
        {"accept_fernet": "no"},
        {"trust_pickle": "no"},
        {"trust_pickle": 1},
        {"sealed_only": 1, "frozen": False},
        {"namespace": 5},
        {"namespace": ""},
        {"namespace": b"n"},
        {"token": 5},
        {"token": ""},
        {"token": b"text"},
        {"key": 5},
        {"key": ""},
        {"key": []},
        {"key": [5]},
        {"key": [KEY, None]},
        {"dsn": ""},
        {"dsn": 5},
        {"dsn": b"http://127.0.0.1"},
        {"transport": 5},
        {"transport": httpx2.Client},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
@pytest.mark.parametrize("kind", [Store, AsyncStore])
def test_the_constructor_refuses(kind, wrong):
    with pytest.raises(StoreRequestError) as caught:
        kind(**wrong)
    check_refusal(caught.value, next(iter(wrong)))


# What a message says of the limits of a number.
RANGES = (
    re.compile(r"(?P<what>.*) is an int (?P<least>from) (?P<low>\S+) to (?P<high>\S+)"),
    re.compile(r"(?P<what>.*) is a number of seconds of (?P<low>0) (?P<least>or more) and at most (?P<high>\S+)"),
    re.compile(r"(?P<what>.*) is a number of seconds (?P<least>greater than) (?P<low>0) and at most (?P<high>\S+)"),
)
NUMBERS = [
    pytest.param(name, parameter, id=f"{name}-{parameter}")
    for name, method in [("Store", Store), *((name, getattr(Store, name)) for name in OPERATIONS)]
    for parameter, annotation in inspect.get_annotations(
        Store.__init__ if method is Store else method, eval_str=False
    ).items()
    if parameter != "return" and re.match(r"(int|float|Count|Step|Seconds|PositiveSeconds)\b", str(annotation))
]


@pytest.mark.parametrize(("name", "parameter"), NUMBERS)
def test_the_limits_of_a_number_are_those_that_the_message_says(name, parameter):
    def refusal(value: float) -> StoreError | None:
        try:
            given: dict[str, Any] = {parameter: value}
            found = Store(**given) if name == "Store" else outcome(Store, Recorder(), name, given)
        except StoreRequestError as error:
            return error
        return found if isinstance(found, StoreRequestError) else None

    for beyond in (-(2**70), 2**70):
        (said,) = filter(None, (pattern.fullmatch(str(refusal(beyond))) for pattern in RANGES))
        assert said["what"] == parameter
        low, high = (int(eval(said[edge])) for edge in ("low", "high"))
        assert refusal(low - 1)
        assert bool(refusal(low)) == (said["least"] == "greater than")
        assert refusal(low + 1) is None
        assert refusal(high) is None
        assert refusal(high + 1)
        if "seconds" in said[0]:
            assert all(map(refusal, (float("inf"), float("nan"), -1e-9, high + 0.01)))
            assert refusal(1e-9) is None


def test_every_refusal_of_the_sdk_itself_has_a_code():
    found = 0
    for path in Path(rstore.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "StoreRequestError":
                found += 1
                assert "code" in [keyword.arg for keyword in node.keywords], f"{path.name}:{node.lineno}"
    assert found > 5


@pytest.mark.parametrize("kind", [Store, AsyncStore])
def test_python_names_what_the_caller_wrote(kind):
    with pytest.raises(TypeError, match=r"^__init__\(\) got an unexpected keyword argument 'bogus'"):
        kind(bogus=1)
    store = kind("http://127.0.0.1")
    for name in OPERATIONS:
        if not hasattr(kind, name) or name in ("open", "close", *DICT_FACE):
            continue

        async def awaited(call: Callable[..., Any]) -> None:
            await call(bogus=1)

        with pytest.raises(TypeError, match=rf"^({name}|eventsources)\(\) got an unexpected"):
            asyncio.run(awaited(getattr(store, name)))


def test_a_transport_is_of_the_kind_that_the_store_sends_with():
    with pytest.raises(StoreRequestError, match="AsyncBaseTransport"):
        AsyncStore(transport=httpx2.HTTPTransport())  # type: ignore[arg-type]
    with pytest.raises(StoreRequestError, match="BaseTransport"):
        Store(transport=httpx2.AsyncHTTPTransport())  # type: ignore[arg-type]


@pytest.mark.parametrize("variable", ["URL", "NAMESPACE", "KEY", "TOKEN", "CA", "CERT", "OLD_KEYS"])
def test_a_variable_that_is_set_and_empty_is_a_mistake(monkeypatch, variable):
    monkeypatch.setenv(f"RSTORE_{variable}", "")
    for kind in (Store, AsyncStore):
        with pytest.raises(StoreRequestError, match=f"RSTORE_{variable} is set and empty"):
            kind("http://127.0.0.1:1", "n")
    for command in (["get", "k"], ["rotate", "--check"], ["info"]):
        done = run("rstore", *command, env=os.environ)
        assert done.returncode == 1
        assert done.stderr.decode() == f"rstore: RSTORE_{variable} is set and empty; give it a value, or unset it\n"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda store: store.get(5), "the key is a str, not int"),
        (lambda store: store.delete("a", 5), r"keys\[1\] is a str, not int"),
        (lambda store: store.get_many("motto"), "keys is a list or another iterable, not str"),
        (lambda store: store.get_many(["a", 5]), r"keys\[1\] is a str, not int"),
        (lambda store: store.set_many([("a", 1)]), "mapping is a dict or another mapping, not list"),
        (lambda store: store.find(["a*"]), r"pattern\[0\] is a str, not list"),
        (lambda store: store.apply("e", None), "changes is a dict or another mapping, not NoneType"),
        (lambda store: store.apply("e", {5: 1}), "a key of changes is a str, not int"),
        (lambda store: store.set("a", 1, if_match=5), "if_match is a str, not int"),
        (lambda store: store.set("a", 1, if_absent="no"), "if_absent is True or False, not str"),
        (lambda store: store.set("a", 1, ttl="60"), "ttl is a number of seconds, not str"),
        (lambda store: store.range("s", "0"), "start is an int, not str"),
        (lambda store: store.range("s", n=-1), "n is an int from 0 to 2\\*\\*63-1"),
        (
            lambda store: store.extend("s", (1, 1.5), 5),
            r"points are \(timestamp, value\) pairs; points\[1\] is of type int",
        ),
        (lambda store: store.extend("s", b"ab"), r"points are .* pairs; points\[0\] is of type bytes"),
        (lambda store: store.extend("s", (1, 2, 3)), r"points are .* pairs; points\[0\] has 3 members"),
        (lambda store: store.events("e", ops=operator.add), "ops is a list or another iterable, not builtin_function"),
        (lambda store: store.create_token("n", "all"), "access is '.*' or 'admin'"),
        (
            lambda store: store.create_token("n", "read", lifetime=float("nan")),
            "lifetime is a number of seconds greater than 0 and at most 10000000000",
        ),
        (lambda store: store.rotate(progress=5), "progress is a function, not int"),
    ],
)
def test_the_error_says_what_is_expected(call, message):
    recorder = Recorder()
    store = Store("http://127.0.0.1", "n", KEY, frozen=False, transport=recorder).open()
    with pytest.raises(StoreRequestError, match=message):
        call(store)
    assert recorder.sent == 0


def test_what_python_says_of_a_call_stays_as_it_is():
    store: Any = Store("http://127.0.0.1", frozen=False)
    for call in (
        lambda: store.get(),
        lambda: store.get("k", 0, 1),
        lambda: store.get("k", unknown=1),
        lambda: store.get("k", key="k"),
        lambda: store.range("s", 0, 1),
    ):
        with pytest.raises(TypeError, match="argument"):
            call()


def test_what_the_callers_own_objects_raise_passes_through():
    class Own(Store):
        def _dump(self, value: Any) -> str:
            raise OwnError

    def failing() -> Iterator[str]:
        yield "k"
        raise OwnError

    store = Own("http://127.0.0.1", frozen=False, transport=Recorder()).open()
    for call in (lambda: store.get_many(failing()), lambda: store.set("k", 1), lambda: store.set_many(Broken())):
        with pytest.raises(OwnError):
            call()


def lying(value: Any) -> Any:
    """The value as an object of a subclass whose own methods all raise; of a container its members."""
    kind = type(value)
    if kind in (list, tuple):
        return kind(map(lying, value))
    if kind is dict:
        return {lying(key): member for key, member in value.items()}
    if kind not in (str, bytes, int, float):
        return value

    def method(*_: Any, **__: Any) -> Any:
        raise OwnError

    # What Python itself needs to make an object, and to put it into a dict.
    needed = {
        "__new__",
        "__init__",
        "__init_subclass__",
        "__subclasshook__",
        "__class__",
        "__getattribute__",
        "__hash__",
    }
    methods = dict.fromkeys({*dir(kind), "__bool__", "__fspath__"} - needed, method)
    return type("Lying", (kind,), {**methods, "__hash__": kind.__hash__})(value)


@pytest.mark.parametrize(("name", "parameter"), TRIED)
def test_a_subclass_counts_as_what_it_holds_whatever_its_methods_say(name, parameter):
    """With a method of its own asked, it could be another value to a check than to what is sent."""
    plain, liar = Recorder(), Recorder()
    found = [
        outcome(Store, recorder, name, {parameter: value})
        for recorder, value in ((plain, VALID[parameter]), (liar, lying(VALID[parameter])))
    ]
    assert (type(found[0]), str(found[0])) == (type(found[1]), str(found[1]))
    assert plain.requests == liar.requests


@pytest.mark.parametrize(
    "given",
    [
        {"dsn": "http://127.0.0.1:7/prefix"},
        {"namespace": "other"},
        {"key": KEY},
        {"key": KEY.encode()},
        {"key": [KEY, rstore.generate_key()]},
        {"token": "token"},
        {"timeout": 5.5},
        {"timeout": 5},
        {"retries": 0},
        {"deadline": 7.5},
        {"answer_bytes_max": 2**21},
        {"dsn": "https://127.0.0.1:7", "verify": "/nowhere/at/all"},
        {"dsn": "https://127.0.0.1:7", "cert": "/nowhere/at/all"},
        {"dsn": "https://127.0.0.1:7", "cert": ("/nowhere/at/all", "/nowhere/else")},
    ],
    ids=range(14),
)
def test_a_subclass_given_to_the_constructor_counts_as_what_it_holds(given):
    seen: list[Any] = []
    for options in (given, {name: lying(value) for name, value in given.items()}):
        recorder = Recorder()
        try:
            store = Store(**{"namespace": "n", "frozen": False, "retries": 0, "transport": recorder, **options}).open()
            with contextlib.suppress(StoreNotAvailableError):
                store.set("k", 1)
            *others, (method, url, headers, content, extensions) = recorder.requests
            # Of a sealed value the version and the key's id.
            seen.append((repr(store), others, method, url, headers, content[:9], extensions))
        except StoreRequestError as error:
            seen.append(str(error))
    assert seen[0] == seen[1]
    assert ("verify" in given or "cert" in given) == isinstance(seen[0], str)


def test_a_subclass_of_str_counts_as_its_text(service_url, namespace):
    with Store(service_url, namespace, KEY, frozen=False) as store:
        for key in (Text("a"), Word.A):
            store[key] = 1
            assert store[key] == store.get("a") == 1
            assert store.get_many([key]) == {"a": 1}
            assert store.find(key) == [("a", 1)]
            assert store.set("a", 2, if_match=Text(store.entry(key).etag))
            store.set_many({key: 3})
            assert "a" in store
            del store[key]
            store.extend(key, (1, 2.5))
            assert store.range("a") == [(1, 2.5)]
            start, n, freq = cast("list[int]", [numpy.int64(1), numpy.uint8(3), Index(1)])
            assert store.range(key, start, n=n, freq=freq) == [(1, 2.5)]
            store.remove(key)
            assert store.apply(key, {key: 1}) == {"a": 1}
            store.prune(key)
            store.delete(key)
        store.discard()
