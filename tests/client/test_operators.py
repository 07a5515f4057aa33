"""The operators: Python's meaning, and refusals that are quick and say nothing of values."""

from __future__ import annotations

import math
import operator
import time
from collections import deque
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstore.core.bounds import Bounds, UnfoldableEvent
from rstore.core.encodings import parse_json, render_json
from rstore.core.operators import ASSIGNING, OPERATOR_NAMES, OPERATORS, UNARY, JsonValue, apply_json, apply_operator

BINARY = sorted(OPERATORS.keys() - UNARY - ASSIGNING)
BYTES_MAX = 2**20


def fold_json(op, current, operand=None, *, bytes_max=BYTES_MAX):
    operand = None if op in UNARY else JsonValue.of(operand)
    return apply_json(op, JsonValue.of(current), operand, bytes_max=bytes_max)


def exactly(value):
    return type(value), repr(value)


def test_the_twelve():
    names = ["setitem", "delitem", "add", "concat", "floordiv", "mod", "mul", "pow", "sub", "truediv", "neg", "not_"]
    assert list(OPERATORS) == names
    for name in names:
        assert OPERATORS[name] is getattr(operator, name)
        assert OPERATOR_NAMES[getattr(operator, name)] == name


@pytest.mark.parametrize("op", sorted(ASSIGNING))
def test_assigning_operators_compute_nothing(op):
    with pytest.raises(ValueError, match=op):
        apply_operator(op, 1, 2)


numbers = st.integers(-20, 20) | st.floats(-20, 20) | st.booleans()
operands = numbers | st.text(max_size=5) | st.lists(numbers, max_size=4) | st.none() | st.just({"a": 1})


@given(st.sampled_from([*BINARY, "neg", "not_"]), operands, operands)
def test_python_decides(op, current, operand):
    function = OPERATORS[op]
    before = repr((current, operand))
    try:
        expected = function(current) if op in UNARY else function(current, operand)
    except Exception:
        with pytest.raises(UnfoldableEvent):
            apply_operator(op, current, operand)
    else:
        assert exactly(apply_operator(op, current, operand)) == exactly(expected)
    assert repr((current, operand)) == before


@given(st.sampled_from([*BINARY, "neg", "not_"]), operands, operands)
def test_json_results_are_json_of_the_size_said(op, current, operand):
    try:
        expected = apply_operator(op, current, operand)
    except UnfoldableEvent:
        with pytest.raises(UnfoldableEvent):
            fold_json(op, current, operand)
        return
    if isinstance(expected, complex) or (isinstance(expected, float) and not math.isfinite(expected)):
        with pytest.raises(UnfoldableEvent, match="JSON"):
            fold_json(op, current, operand)
        return
    value, size = fold_json(op, current, operand)
    text = render_json(value)
    assert exactly(value) == exactly(expected) == exactly(parse_json(text))
    assert size == len(text)
    assert fold_json(op, current, operand, bytes_max=size).value == value
    with pytest.raises(UnfoldableEvent):
        fold_json(op, current, operand, bytes_max=size - 1)


@pytest.mark.parametrize(
    ("op", "current", "operand"),
    [
        ("pow", 10, 10**9),
        ("pow", 3, 10**18),
        ("pow", -(2**60), 2**60),
        ("pow", Fraction(3, 2), 10**9),
        ("pow", Fraction(3, 2), -(10**9)),
        ("pow", 2, Fraction(10**9)),
        ("mul", 1 << 2**19, 1 << 2**19),
        ("mul", "a", 10**12),
        ("mul", 10**12, b"ab"),
        ("mul", [0], 10**11),
        ("mul", (0,), 2**62),
        ("mul", bytearray(1), 10**11),
        ("concat", "x" * 2**24, "y" * (2**24 + 1)),
        ("add", [0] * 2**24, [0] * (2**24 + 1)),
        ("mod", "%9999999999d", 1),
        ("mod", b"%1000000000d", 1),
        ("mod", "%.999999999f", 1.5),
        ("mod", "%.*f", (10**9, 1.5)),
        ("mod", "%*d", (10**9, 1)),
        ("mod", "%*d", (-(10**9), 1)),
        ("mod", "%-0999999999s", "x"),
        ("mod", "%((a))999999999s", {"(a)": 1}),
        ("mod", "%(a)s" * 9_000, {"a": "x" * 10_000}),
        ("mod", b"%(a)s" * 9_000, {b"a": b"x" * 10_000}),
        ("mod", "%(a)r" * 9_000, {"a": [["x" * 100] * 100] * 100}),
        ("mod", "%d", Decimal("1E+9999999")),
        ("mod", "%s" * 20_000, 1),
        ("mod", "%" + "9" * 5_000 + "d", 1),
        ("mod", "%(" * 9_000 + "(" * 100_000, {}),
        ("floordiv", 1 << 2**22, 3**1_000_000),
        ("mod", 1 << 2**22, 3**1_000_000),
        ("pow", Decimal(9), Decimal("1e17")),
        ("add", (1 << 2**20) - 1, 1),
    ],
    ids=lambda part: str(type(part).__name__),
)
def test_what_would_eat_memory_or_time_is_refused_quickly(op, current, operand):
    started = time.thread_time()
    with pytest.raises(UnfoldableEvent):
        apply_operator(op, current, operand)
    assert time.thread_time() - started < 0.5


def test_a_deque_that_drops_what_is_more_is_bounded_by_its_maxlen():
    bounds = Bounds(length_max=10)
    assert apply_operator("mul", deque([1, 2, 3], maxlen=10), 10**15, bounds) == deque([3, *[1, 2, 3] * 3])
    assert apply_operator("add", deque([1] * 8, maxlen=10), deque([2] * 8), bounds) == deque([1, 1, *[2] * 8])


@pytest.mark.parametrize(
    ("op", "current", "inside", "outside"),
    [
        ("pow", 2, 63, 64),
        ("pow", -2, 63, 64),
        ("pow", 3, 40, 41),
        ("mul", 2**32 - 1, 2**32, 2**32 + 3),
        ("mul", "ab", 32, 33),
        ("mul", [1], 64, 65),
        ("mul", deque([1]), 64, 65),
        ("mul", deque([1] * 8, maxlen=65), 8, 9),
        ("add", deque([1] * 60), deque([1] * 4), deque([1] * 5)),
        ("mul", "ab", -(10**15), 10**30),
        ("add", 2**64 - 2, 1, 2),
        ("add", "a" * 60, "bbbb", "bbbbb"),
        ("concat", (1,) * 60, (2,) * 4, (2,) * 5),
        ("sub", 0, 2**64 - 1, 2**64),
        ("mod", "%*d", (61, 1), (65, 1)),
    ],
)
def test_both_sides_of_a_bound(op, current, inside, outside):
    bounds = Bounds(integer_bits_max=64, length_max=64)
    assert apply_operator(op, current, inside, bounds) == OPERATORS[op](current, inside)
    with pytest.raises(UnfoldableEvent):
        apply_operator(op, current, outside, bounds)


def test_large_results_within_the_bounds_are_computed():
    assert apply_operator("pow", 2, 2**20 - 1).bit_length() == 2**20
    assert len(apply_operator("mul", "a", 2**25)) == 2**25
    assert apply_operator("pow", 1, 10**1000) == 1
    assert apply_operator("pow", 2, -(10**2)) == 2**-100
    assert apply_operator("mod", "%5000000d", 1) == "1".rjust(5_000_000)
    assert apply_operator("mod", "%d of 99999999999", 7) == "7 of 99999999999"
    assert apply_operator("mod", "100%%, %(a(b))s", {"a(b)": 1}) == "100%, 1"


conversions = st.builds(
    lambda key, flags, width, precision, conversion: f"%{key}{flags}{width}{precision}{conversion}",
    st.sampled_from(["", "", "(a)", "(b(c))"]),
    st.sampled_from(["", "-", "0", "+", " #"]),
    st.sampled_from(["", "*", "3", "40", "250"]),
    st.sampled_from(["", ".", ".*", ".2", ".60"]),
    st.sampled_from([*"diouxXeEfFgGcrsa%", "hd", "ls", "q", ""]),
)
templates = st.lists(conversions | st.text(max_size=5), max_size=5).map("".join)
shown = (
    st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=5)
    | st.decimals()
    | st.recursive(
        st.none() | st.text(max_size=5), lambda inner: st.lists(inner) | st.sets(st.integers()) | st.tuples(inner)
    )
)
arguments = st.one_of(
    shown, st.tuples(shown), st.tuples(st.integers(-300, 300), shown), st.tuples(shown, shown, shown),
    st.fixed_dictionaries({"a": shown, "b(c)": shown}),
)  # fmt: skip


@given(templates, arguments)
def test_no_format_is_longer_than_was_foreseen(template, operand):
    try:
        expected = template % operand
    except Exception:
        with pytest.raises(UnfoldableEvent):
            apply_operator("mod", template, operand)
        return
    assert apply_operator("mod", template, operand) == expected
    with pytest.raises(UnfoldableEvent):
        apply_operator("mod", template, operand, Bounds(length_max=len(expected) - 1))


def test_a_bytes_format_is_bounded_like_a_str():
    assert apply_operator("mod", b"%5b|%a|%%", (b"xy", "é")) == b"   xy|'\\xe9'|%"
    with pytest.raises(UnfoldableEvent):
        apply_operator("mod", b"%(k)s", {b"k": b"x" * 100}, Bounds(length_max=100))


@pytest.mark.parametrize(
    ("op", "current", "operand"),
    [
        ("mul", 1e200, 1e200),
        ("add", 1.7e308, 1.7e308),
        ("pow", -8, 0.5),
        ("pow", 1e300, 2),
        ("pow", 0, -1),
        ("pow", 10**4000, 3),
        ("mul", 10**4200, 10**4200),
        ("add", 10**4300 - 1, 1),
        ("sub", 1 - 10**4299, 1),
        ("neg", 10**4299, None),
        ("mod", "%c", 0xD800),
        ("truediv", 1, 0),
        ("truediv", 10**4000, 1),
        ("mul", ["x" * 1000], 2**12),
        ("mul", [[[]]], 2**62),
        ("concat", ["x" * 600_000], ["y" * 600_000]),
        ("add", "é" * 300_000, "é" * 300_000),
        ("mod", "%s", ["\n" * 400_000, "\n" * 400_000]),
        ("mod", "%(a)s%(a)s", {"a": "é" * 300_000}),
    ],
    ids=lambda part: str(part)[:20],
)
def test_what_is_not_json_within_the_limits_is_refused(op, current, operand):
    started = time.thread_time()
    with pytest.raises(UnfoldableEvent):
        fold_json(op, current, operand)
    assert time.thread_time() - started < 0.5


def test_the_largest_json_integers():
    assert fold_json("add", 10**4300 - 2, 1).value == 10**4300 - 1
    assert fold_json("neg", 10**4299 - 1).size == 4300


class Unpleasant:
    def __add__(self, other):
        raise RuntimeError(f"secret {other}")


@pytest.mark.parametrize(
    ("op", "current", "operand", "reason"),
    [
        ("add", "secret", 1, "add cannot be applied to str and int"),
        ("neg", "secret", None, "neg cannot be applied to str"),
        ("mod", "%(secret)s", {"x": 1}, "mod raised KeyError"),
        ("truediv", 1, 0, "truediv divides by zero"),
        ("mul", 1e308, 10**400, "the result of mul is too large"),
        ("add", Unpleasant(), "secret", "add raised RuntimeError"),
    ],
)
def test_a_reason_holds_no_value(op, current, operand, reason):
    with pytest.raises(UnfoldableEvent) as caught:
        apply_operator(op, current, operand)
    assert caught.value.reason == str(caught.value) == reason
    assert caught.value.__cause__ is None


def test_other_types_keep_their_own_meaning():
    class Money:
        def __init__(self, cents):
            self.cents = cents

        def __mul__(self, factor):
            return Money(self.cents * factor)

    assert apply_operator("mul", Money(5), 10**30).cents == 5 * 10**30
    assert apply_operator("sub", {1, 2}, {1}) == {2}
    assert apply_operator("mul", Decimal("1.10"), 3) == Decimal("3.30")
    assert apply_operator("floordiv", Fraction(7, 2), Fraction(1, 3)) == 10
    assert apply_operator("pow", -8, 0.5) == (-8) ** 0.5
    assert apply_operator("concat", (1,), (2,)) == (1, 2)
