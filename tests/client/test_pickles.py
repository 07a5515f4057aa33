"""A hostile pickle is refused with StoreEncodingError: it runs nothing, imports nothing, and costs little."""

from __future__ import annotations

import builtins
import collections
import contextlib
import copyreg
import datetime
import os
import pickle
import pickletools
import struct
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstore import pickles
from rstore.core.errors import StoreEncodingError
from rstore.pickles.harmless import GLOBALS, Refusal
from rstore.pickles.machine import INSTRUCTIONS, Machine

P = b"\x80\x05"


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def binary(value: bytes) -> bytes:
    return pickle.BINBYTES + struct.pack("<I", len(value)) + value


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + pickle.STACK_GLOBAL


def small(number: int) -> bytes:
    return pickle.BININT + struct.pack("<i", number)


def big(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG4 + struct.pack("<I", len(data)) + data


def get(index: int) -> bytes:
    return pickle.LONG_BINGET + struct.pack("<I", index)


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    return name(module, attribute) + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def refused(data: bytes, match: str = "trust_pickle=True") -> None:
    start = time.thread_time()
    with pytest.raises(StoreEncodingError, match=match):
        pickles.loads(data, trusted=False)
    assert time.thread_time() - start < 2


class Runs:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_calls_of_foreign_functions_are_refused_and_do_not_run(protocol: int, tmp_path: Any) -> None:
    trace = tmp_path / "ran"
    for attack in (
        Runs(os.system, f"touch {trace}"),
        Runs(builtins.eval, f"open({str(trace)!r}, 'w')"),
        Runs(builtins.exec, f"open({str(trace)!r}, 'w')"),
        Runs(open, str(trace), "w"),
        Runs(getattr, "", "format"),
        Runs(getattr, Runs(__import__, "os"), "system"),
        Runs(os.mkdir, str(trace)),
        Runs(copyreg._reconstructor, int, object, None),  # type: ignore[attr-defined] # noqa: SLF001
        Runs(collections.Counter, Runs(os.mkdir, str(trace))),
    ):
        data = pickle.dumps([attack], protocol)
        refused(data, "trust_pickle=True")
        assert not trace.exists()
    # The attack is real: the ordinary unpickler runs it.
    pickle.loads(pickle.dumps(Runs(os.mkdir, str(trace)), protocol))
    assert trace.exists()


def test_a_foreign_module_is_not_even_imported() -> None:
    sys.modules.pop("antigravity", None)
    refused(P + name("antigravity", "geohash") + b".", "'antigravity.geohash'")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "attribute",
    ["datetime.now", "datetime.__class__", "datetime.__init__.__globals__", "sys", "datetime_CAPI", "__builtins__", ""],
)
def test_only_the_table_can_be_named(attribute: str) -> None:
    refused(P + name("datetime", attribute) + b".", "trust_pickle=True")


@pytest.mark.parametrize("attribute", ["getattr", "eval", "type", "object", "__import__", "memoryview", "super", "map"])
def test_dangerous_builtins_cannot_be_named(attribute: str) -> None:
    refused(P + name("builtins", attribute) + b".", f"builtins.{attribute}")


def test_a_name_in_an_error_is_short_and_printable() -> None:
    with pytest.raises(StoreEncodingError) as caught:
        pickles.loads(P + name("a\x1b[31m\ud800", "b" * 100_000) + b".", trusted=False)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


BAD_CALLS = {
    "an enormous bytearray": call("builtins", "bytearray", big(10**12)),
    "enormous bytes": call("builtins", "bytes", big(10**12)),
    "a list of a range": call("builtins", "list", call("builtins", "range", small(0), small(10**9), small(1))),
    "a tuple of a range": call("builtins", "tuple", call("builtins", "range", small(0), small(10**9), small(1))),
    "int of digits": call("builtins", "int", text("9" * 4000)),
    "a foreign factory": call("collections", "defaultdict", name("os", "system")),
    "a factory that is a value": call("collections", "defaultdict", text("x")),
    "a factory that is dangerous": call("collections", "defaultdict", name("datetime", "datetime")),
    "a defaultdict with items": call("collections", "defaultdict", name("builtins", "list"), pickle.EMPTY_DICT),
    "a Counter of a dict": call("collections", "Counter", pickle.EMPTY_DICT),
    "a Counter of text": call("collections", "Counter", text("abc")),
    "an OrderedDict of a list": call("collections", "OrderedDict", pickle.EMPTY_LIST),
    "a deque of a range": call("collections", "deque", call("builtins", "range", small(0), small(9), small(1))),
    "a deque of negative length": call("collections", "deque", pickle.EMPTY_TUPLE, small(-1)),
    "a date of the year 0": call("datetime", "date", binary(b"\0\0\1\1")),
    "a date of numbers": call("datetime", "date", small(2020), small(1), small(1)),
    "a datetime with day 99": call("datetime", "datetime", binary(b"\x07\xe4\x01\x63\0\0\0\0\0\0")),
    "a datetime with 99 hours": call("datetime", "datetime", binary(b"\x07\xe4\x01\x01\x63\0\0\0\0\0")),
    "a datetime cut short": call("datetime", "datetime", binary(b"\x07\xe4")),
    "a datetime with a foreign zone": call("datetime", "datetime", binary(b"\x07\xe4\1\1\0\0\0\0\0\0"), text("UTC")),
    "a zone without an offset": call("datetime", "timezone", small(1)),
    "a zone of a day's offset": call(
        "datetime", "timezone", call("datetime", "timedelta", small(1), small(0), small(0))
    ),
    "a timedelta out of range": call("datetime", "timedelta", big(10**30), small(0), small(0)),
    "a zone file by path": call("zoneinfo", "ZoneInfo", text("../../../etc/passwd")),
    "a zone file by absolute path": call("zoneinfo", "ZoneInfo", text("/etc/passwd")),
    "a zone file that is a folder": call("zoneinfo", "ZoneInfo", text("Europe")),
    "a zone that does not exist": call("zoneinfo", "ZoneInfo", text("Nowhere/Land")),
    "a Decimal of a tuple": call("decimal", "Decimal", pickle.EMPTY_TUPLE),
    "a Decimal of nonsense": call("decimal", "Decimal", text("1,5")),
    "a Fraction by 0": call("fractions", "Fraction", small(1), small(0)),
    "a Fraction of text": call("fractions", "Fraction", text("1e1000000000")),
    "a Fraction of huge ints": call("fractions", "Fraction", big(3**100_000), big(2**100_000)),
    "a range of huge ints": call("builtins", "range", small(0), big(3**100_000), big(2**100_000)),
    "a range with step 0": call("builtins", "range", small(0), small(1), small(0)),
    "a slice of a list": call("builtins", "slice", pickle.EMPTY_LIST, small(1), small(1)),
    "a complex of text": call("builtins", "complex", text("1j")),
    "a UUID of nonsense": call("uuid", "UUID", text("x")),
    "a UUID of an int": call("uuid", "UUID", small(1)),
    "an address of bytes": call("ipaddress", "IPv4Address", binary(b"1234")),
    "an address out of range": call("ipaddress", "IPv4Address", big(2**40)),
    "a path of an int": call("pathlib", "PurePosixPath", small(1)),
    "a call of no class": text("x") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    "a call of Ellipsis": call("builtins", "Ellipsis"),
    "a call of the value of a call": call("collections", "Counter") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    "arguments that are a list": name("collections", "Counter") + pickle.EMPTY_LIST + pickle.REDUCE,
    "too many arguments": call("datetime", "date", binary(b"\x07\xe4\1\1"), small(1)),
    "too few arguments": call("datetime", "date"),
}


@pytest.mark.parametrize("attack", BAD_CALLS.values(), ids=BAD_CALLS)
def test_allowed_types_take_only_arguments_of_their_own_shape(attack: bytes) -> None:
    refused(P + attack + b".", "trust_pickle=True")


BAD_PROGRAMS = {
    "BUILD on an allowed class": name("datetime", "datetime") + pickle.EMPTY_DICT + text("now") + b"NsNb",
    "BUILD on an allowed value": call("collections", "OrderedDict") + pickle.EMPTY_DICT + pickle.BUILD,
    "NEWOBJ": name("builtins", "dict") + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
    "NEWOBJ_EX": name("builtins", "dict") + pickle.EMPTY_TUPLE + pickle.EMPTY_DICT + pickle.NEWOBJ_EX,
    "GLOBAL": b"cos\nsystem\n",
    "GLOBAL of an allowed type": b"cdatetime\ndate\n",
    "INST": b"(ios\nsystem\n",
    "OBJ": pickle.MARK + name("builtins", "int") + pickle.OBJ,
    "PERSID": b"Pid\n",
    "BINPERSID": b"NQ",
    "EXT1": b"\x82\x01",
    "NEXT_BUFFER": b"\x97",
    "READONLY_BUFFER": b"N\x98",
    "PUT": b"Np0\n",
    "BINPUT": b"Nq\x00",
    "LONG_BINPUT with a huge index": b"Nr\xff\xff\xff\x7f",
    "GET of nothing": b"h\x00",
    "LONG_BINGET of nothing": b"j\xff\xff\xff\xff",
    "text names": small(1) + small(2) + pickle.STACK_GLOBAL,
    "APPEND to a class": name("builtins", "list") + b"Na",
    "APPEND to a tuple": b")Na",
    "SETITEM on a list": b"](K\x00Nu",
    "SETITEMS of an odd number": b"}(K\x00u",
    "ADDITEMS to a frozenset": b"(K\x00\x91(K\x01\x90",
    "a list as a key": b"}]Ns",
    "a list in a set": b"\x8f(]\x90",
    "no value": b"",
    "two values": b"NN",
    "an open mark": b"N(",
    "an underflow": b"0",
    "TUPLE without a mark": b"Nt",
    "TUPLE3 of two": b"NN\x87",
    "text that is not UTF-8": b"\x8c\x01\xff",
    "text longer than the pickle": b"X\xff\xff\xff\x7f",
    "bytes of 2^63": b"\x8e" + b"\xff" * 8,
    "a bytearray of 2^40": b"\x96" + struct.pack("<Q", 2**40),
    "a LONG4 of 2^31": b"\x8b\xff\xff\xff\xff",
}


@pytest.mark.parametrize("program", BAD_PROGRAMS.values(), ids=BAD_PROGRAMS)
def test_programs_that_no_harmless_value_makes_are_refused(program: bytes) -> None:
    refused(P + program + b".", "trust_pickle=True")


def test_data_after_the_end_is_refused() -> None:
    refused(pickles.dumps((1,)) + b"N")


# --- costs -------------------------------------------------------------------------------------------------


def laughs(levels: int) -> bytes:
    """A tuple of 2^levels shared parts."""
    program = small(1) + small(2) + pickle.TUPLE2 + pickle.MEMOIZE
    for level in range(levels):
        program += get(level) + pickle.TUPLE2 + pickle.MEMOIZE
    return program


def test_a_billion_laughs_stays_small_as_a_value_and_is_refused_as_a_key() -> None:
    value: Any = pickles.loads(P + laughs(60) + b".", trusted=False)
    assert value[0] is value[1]
    refused(P + pickle.EMPTY_DICT + laughs(60) + b"Ns.", "too large to hash")
    refused(P + pickle.EMPTY_SET + pickle.MARK + laughs(60) + pickle.ADDITEMS + b".", "too large to hash")
    refused(P + pickle.MARK + laughs(60) + pickle.FROZENSET + b".", "too large to hash")
    refused(P + call("collections", "Counter") + laughs(60) + b"K\x01s.", "too large to hash")


def test_nesting_that_would_overflow_the_stack_is_refused() -> None:
    deep = P + b")" + pickle.TUPLE1 * 1_000_000
    refused(deep + b".", "deep")
    refused(P + pickle.EMPTY_DICT + b")" + pickle.TUPLE1 * 1_000_000 + b"Ns.", "deep")
    frozen = P + pickle.MARK * 100_000 + b")" + pickle.FROZENSET * 100_000
    refused(frozen + b".", "deep|too large to hash")
    value: Any = pickles.loads(P + b")" + pickle.TUPLE1 * 490 + b".", trusted=False)
    hash(value)
    lists = pickles.loads(P + b"]" * 200_000 + b"a" * 199_999 + b".", trusted=False)
    assert isinstance(lists, list)


def test_copies_of_shared_parts_are_bounded() -> None:
    part = text("x" * 100_000) + pickle.MEMOIZE + b"0"
    decimal_of = name("decimal", "Decimal") + get(0) + pickle.TUPLE1 + pickle.REDUCE
    refused(P + pickle.MARK + part + decimal_of * 100_000 + b"t.")
    digits = text("9" * 100_000) + pickle.MEMOIZE + b"0"
    refused(P + pickle.MARK + digits + decimal_of * 10_000 + b"t.", "memory")
    path_of = name("pathlib", "PurePosixPath") + get(0) + pickle.TUPLE1 + pickle.REDUCE
    refused(P + pickle.MARK + part + path_of * 10_000 + b"t.", "memory")
    shared = pickle.MARK + get(0) * 10_000 + pickle.TUPLE + pickle.MEMOIZE + b"0"
    path_of = name("pathlib", "PurePosixPath") + get(1) + pickle.REDUCE
    refused(P + pickle.MARK + text("x") + pickle.MEMOIZE + b"0" + shared + path_of * 10_000 + b"t.", "memory")


def test_the_number_of_containers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rstore.pickles.machine.OBJECTS_MAX", 1000)
    assert pickles.loads(P + pickle.MARK + pickle.EMPTY_SET * 999 + b"t.", trusted=False) == (set(),) * 999
    refused(P + pickle.MARK + pickle.EMPTY_SET * 1000 + b"t.", "1,000 containers")
    refused(P + pickle.MARK + b"]" * 1001 + b"t.", "1,000 containers")
    refused(P + pickle.MARK + call("collections", "Counter") * 1001 + b"t.", "1,000 containers")


@pytest.mark.parametrize("shape", ["ints", "tuples", "set", "frozenset"])
def test_keys_that_collide_are_stopped_by_the_clock(shape: str) -> None:
    # Multiples of the hash's modulus all hash to 0, so n of them cost n² comparisons.
    numbers = [big(i * sys.hash_info.modulus) for i in range(1, 30_000)]
    if shape == "tuples":
        numbers = [number + pickle.TUPLE1 for number in numbers]
    opening, closing = pickle.EMPTY_DICT + pickle.MARK, pickle.SETITEMS
    if shape == "set":
        opening, closing = pickle.EMPTY_SET + pickle.MARK, pickle.ADDITEMS
    elif shape == "frozenset":
        opening, closing = pickle.MARK, pickle.FROZENSET
    end = b"" if "set" in shape else b"N"
    data = P + opening + b"".join(number + end for number in numbers) + closing + b"."
    start = time.thread_time()
    with pytest.raises(Refusal, match="far more time"):
        Machine(data, share=0.02).run()
    assert time.thread_time() - start < 1


def test_plain_data_is_far_from_the_bounds() -> None:
    value = {i: (i, i + 0.5, f"s{i}", {i, (i, (i,))}) for i in range(5000)}
    data = pickles.dumps(value)
    machine = Machine(data)
    start = time.thread_time()
    assert machine.run() == value
    assert time.thread_time() - start < machine.seconds / 4


# --- anything else -----------------------------------------------------------------------------------------

GOOD = pickles.dumps(
    [
        {1: (2.5, "a", b"b", None, True, 10**30)},
        {frozenset({1, (2,)}), "x" * 300},
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
        uuid.UUID(int=7),
        collections.deque([1], 3),
        collections.defaultdict(list, a=[bytearray(b"x")]),
        collections.Counter("aab"),
        1 + 2j,
    ]
)


def test_a_good_pickle_cut_anywhere_is_refused() -> None:
    assert pickles.loads(GOOD, trusted=False) == pickle.loads(GOOD)
    for end in range(len(GOOD)):
        refused(GOOD[:end])
        with pytest.raises(StoreEncodingError):
            pickles.loads(GOOD[:end], trusted=True)


def test_a_good_pickle_uses_only_opcodes_that_the_machine_knows() -> None:
    assert {ord(opcode.code) for opcode, _, _ in pickletools.genops(GOOD)} <= {*INSTRUCTIONS, ord(".")}


def loads_or_refuses(data: bytes) -> None:
    with contextlib.suppress(StoreEncodingError):
        pickles.loads(data, trusted=False)


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    loads_or_refuses(data)
    loads_or_refuses(P + data + b".")


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_pickles(damages: list[tuple[int, int]]) -> None:
    damaged = bytearray(GOOD)
    for position, byte in damages:
        damaged[position] = byte
    loads_or_refuses(bytes(damaged))


PARTS = [bytes((code,)) for code in INSTRUCTIONS] + [
    *(small(3), text("a"), binary(b"\x07\xe4\1\1"), get(0), get(1), pickle.MEMOIZE, pickle.MARK, b".", b"b", b"\x81"),
    *(name(module, attribute) for module, attribute in GLOBALS),
]


@settings(max_examples=500)
@given(st.lists(st.sampled_from(PARTS), max_size=40))
def test_random_programs(parts: list[bytes]) -> None:
    loads_or_refuses(P + b"".join(parts) + b".")


def test_what_an_ordinary_pickle_of_plain_data_holds_is_read_too() -> None:
    value = [{"a": (1, 2.5)}, {1, 2}, datetime.date(2024, 2, 29), 1 + 2j, collections.OrderedDict(a=1)]
    for protocol in (4, 5):
        assert pickles.loads(pickle.dumps(value, protocol), trusted=False) == value


def test_parts_that_are_shared_stay_shared() -> None:
    part: list[int] = []
    value: Any = pickles.loads(pickles.dumps((part, part)), trusted=False)
    assert value[0] is value[1]
    loop: list[Any] = []
    loop.append((loop,))
    back: Any = pickles.loads(pickles.dumps(loop[0]), trusted=False)
    assert back[0][0] is back


def test_trusted_failures_are_store_errors_too() -> None:
    for data in (b"", b"nonsense", P + name("no.such.module", "x") + b".", P + name("os", "no_such_name") + b"."):
        with pytest.raises(StoreEncodingError, match="cannot be loaded"):
            pickles.loads(data, trusted=True)


def framed(size: int, data: bytes) -> bytes:
    return P + pickle.FRAME + struct.pack("<Q", size) + data


@pytest.mark.parametrize(
    "data",
    [
        framed(3, text("text") + b"."),
        framed(4, pickle.SHORT_BINUNICODE + b"\x04text."),
        framed(10, pickle.FRAME + struct.pack("<Q", 2) + pickle.NONE + b"."),
        framed(3, pickle.NONE + b"."),
    ],
    ids=["size", "text", "frame in a frame", "beyond the end"],
)
def test_what_goes_beyond_its_frame_is_refused(data):
    assert pickles.loads(framed(2, pickle.NONE + b"."), trusted=False) is None
    assert pickles.loads(framed(1, pickle.NONE) + framed(1, b".")[2:], trusted=False) is None
    with pytest.raises(StoreEncodingError, match="malformed"):
        pickles.loads(data, trusted=False)
