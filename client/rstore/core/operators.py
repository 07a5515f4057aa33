"""The twelve event operators: Python's own meaning, refused where a result would eat memory or time.

An event names its operator by the name it has in Python's :mod:`operator` module. This module is pure and shared: the
service folds plain JSON with :func:`apply_json`, the SDK folds any Python values with :func:`apply_operator`.
Nothing raised here holds a value.
"""

from __future__ import annotations

import math
import operator
import re
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple

from rstore.core.encodings import JSON_INTEGER_MAX, JSON_INTEGER_MIN, render_json

__all__ = [
    "ASSIGNING",
    "OPERATORS",
    "OPERATOR_NAMES",
    "UNARY",
    "Bounds",
    "JsonValue",
    "UnfoldableEvent",
    "apply_json",
    "apply_operator",
]

OPERATORS: Final[dict[str, Callable[..., Any]]] = {
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "add": operator.add,
    "concat": operator.concat,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "mul": operator.mul,
    "pow": operator.pow,
    "sub": operator.sub,
    "truediv": operator.truediv,
    "neg": operator.neg,
    "not_": operator.not_,
}
"""Each operator by its name."""

OPERATOR_NAMES: Final = {function: name for name, function in OPERATORS.items()}
"""Each operator's name."""

UNARY: Final = frozenset({"delitem", "neg", "not_"})
"""The operators that take no operand. Their events carry no value, or a sealed one that proves who recorded them."""

ASSIGNING: Final = frozenset({"setitem", "delitem"})
"""The operators that do not look at what the item was: they begin and end it."""


class UnfoldableEvent(Exception):
    """An event that cannot be applied. ``reason`` says why and holds no value.

    ``item`` and ``timestamp`` say which event it is, where that is known. The text of the exception names the item.
    """

    def __init__(self, reason: str, *, item: str | None = None, timestamp: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.item = item
        self.timestamp = timestamp

    def __str__(self) -> str:
        if self.item is None:
            return self.reason
        return f"the event of item {self.item!r} cannot be applied: {self.reason}"


class Bounds(NamedTuple):
    """What a result may not exceed: bits of an integer; characters, bytes or members of a sequence.

    They bound the time of every operator too, to some tenths of a second. They hold for ``int``, ``Fraction``, ``str``,
    ``bytes``, ``bytearray``, ``list``, ``tuple`` and ``deque`` (one with a ``maxlen`` has that bound as well); other
    types bound themselves (``Decimal`` by its context).
    """

    integer_bits_max: int = 2**20
    length_max: int = 2**25


_DEFAULT_BOUNDS: Final = Bounds()


def apply_operator(op: str, current: Any, operand: Any = None, bounds: Bounds = _DEFAULT_BOUNDS) -> Any:
    """What ``op`` makes of an item's ``current`` value; ``operand`` is None for the unary ones.

    Raises :class:`UnfoldableEvent` if Python raises, or, before computing anything, if the result could exceed
    ``bounds``. Neither argument is changed. ``op`` is none of :data:`ASSIGNING`.

    >>> apply_operator("add", 1, 2)
    3
    >>> apply_operator("not_", [])
    True
    >>> apply_operator("pow", 10, 10**9)
    Traceback (most recent call last):
    rstore.core.operators.UnfoldableEvent: the result of pow would be larger than 1048576 bits
    """
    if op in ASSIGNING:
        raise ValueError(f"{op} computes nothing")
    function = OPERATORS[op]
    try:
        check = _CHECKS.get(op)
        if check is not None:
            check(op, current, operand, bounds)
        result = function(current) if op in UNARY else function(current, operand)
        if isinstance(result, int) and result.bit_length() > bounds.integer_bits_max:
            raise _too_many_bits(op, bounds)
    except UnfoldableEvent:
        raise
    except ZeroDivisionError:
        reason = f"{op} divides by zero"
    except (OverflowError, MemoryError):
        reason = f"the result of {op} is too large"
    except (TypeError, ValueError):
        kinds = type(current).__name__ if op in UNARY else f"{type(current).__name__} and {type(operand).__name__}"
        reason = f"{op} cannot be applied to {kinds}"
    except Exception as error:
        # An operand's own type may raise anything; its message may quote the value.
        reason = f"{op} raised {type(error).__name__}"
    else:
        return result
    raise UnfoldableEvent(reason)


# --- JSON --------------------------------------------------------------------------------------------------


class JsonValue(NamedTuple):
    """A JSON value and the number of bytes of its text as :func:`~rstore.core.encodings.render_json` makes it."""

    value: Any
    size: int

    @classmethod
    def of(cls, value: Any) -> JsonValue:
        """Measure a value that ``parse_json`` returned."""
        return cls(value, len(render_json(value)))


_JSON_INTEGER_BITS_MAX: Final = JSON_INTEGER_MAX.bit_length()


def apply_json(op: str, current: JsonValue, operand: JsonValue | None = None, *, bytes_max: int) -> JsonValue:
    """:func:`apply_operator` for JSON values, whose result is JSON again.

    Raises :class:`UnfoldableEvent` as well if the result is no JSON value (NaN, an infinity, a complex number), is
    an integer of more than 4,300 characters, or has more than ``bytes_max`` bytes of JSON text. No operator
    nests deeper than its operands do.

    >>> apply_json("add", JsonValue.of([1]), JsonValue.of(["a"]), bytes_max=100)
    JsonValue(value=[1, 'a'], size=7)
    """
    size = _joined_size(op, current, operand)
    if size is not None and size > bytes_max:
        raise UnfoldableEvent(f"the result of {op} would be longer than {bytes_max} bytes")
    # Members of a list are shared, not copied, so their number needs a bound of its own; two bytes stand for one.
    bounds = Bounds(_JSON_INTEGER_BITS_MAX, bytes_max)
    result = apply_operator(op, current.value, None if operand is None else operand.value, bounds)
    if isinstance(result, float):
        if not math.isfinite(result):
            raise UnfoldableEvent(f"the result of {op} is no finite number, which JSON cannot hold")
    elif isinstance(result, int):
        if not JSON_INTEGER_MIN <= result <= JSON_INTEGER_MAX:
            raise UnfoldableEvent(f"the result of {op} is an integer of more than 4300 characters")
    elif not isinstance(result, (str, list)):
        raise UnfoldableEvent(f"the result of {op} is {type(result).__name__}, which JSON cannot hold")
    if size is None:
        try:
            size = len(render_json(result))
        except UnicodeEncodeError:
            raise UnfoldableEvent(f"the result of {op} contains a lone surrogate, which JSON cannot hold") from None
        if size > bytes_max:
            raise UnfoldableEvent(f"the result of {op} is longer than {bytes_max} bytes")
    return JsonValue(result, size)


def _joined_size(op: str, current: JsonValue, operand: JsonValue | None) -> int | None:
    """The text size of a concatenation or repetition, known before it is made; None of anything else."""
    if operand is None:
        return None
    left, right = current.value, operand.value
    if op in ("add", "concat") and type(left) is type(right) and isinstance(left, (str, list)):
        comma = isinstance(left, list) and bool(left) and bool(right)
        return current.size + operand.size - 2 + comma
    if op == "mul":
        if isinstance(left, int):
            current, left, right = operand, right, left
        if isinstance(left, (str, list)) and isinstance(right, int):
            count = max(right, 0) if left else 0
            commas = max(count - 1, 0) if isinstance(left, list) else 0
            return (current.size - 2) * count + commas + 2
    return None


# --- bounds ------------------------------------------------------------------------------------------------

_SEQUENCES: Final = (str, bytes, bytearray, list, tuple, deque)
_CONVERSIONS_MAX: Final = 10_000


def _too_many_bits(op: str, bounds: Bounds) -> UnfoldableEvent:
    return UnfoldableEvent(f"the result of {op} would be larger than {bounds.integer_bits_max} bits")


def _too_long(op: str, bounds: Bounds) -> UnfoldableEvent:
    return UnfoldableEvent(f"the result of {op} would be longer than {bounds.length_max}")


def _bits(number: int | Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _length_at_most(sequence: Any, length: int) -> int:
    """The length, or the ``maxlen`` of a deque that drops whatever is more."""
    maxlen = sequence.maxlen if isinstance(sequence, deque) else None
    return length if maxlen is None else min(length, maxlen)


def _check_join(op: str, current: Any, operand: Any, bounds: Bounds) -> None:
    both = isinstance(current, _SEQUENCES) and isinstance(operand, _SEQUENCES)
    if both and _length_at_most(current, len(current) + len(operand)) > bounds.length_max:
        raise _too_long(op, bounds)


def _check_mul(op: str, current: Any, operand: Any, bounds: Bounds) -> None:
    if isinstance(current, (int, Fraction)) and isinstance(operand, (int, Fraction)):
        # The product has at least one bit fewer than both together.
        if _bits(current) + _bits(operand) - 1 > bounds.integer_bits_max:
            raise _too_many_bits(op, bounds)
        return
    sequence, count = (operand, current) if isinstance(current, int) else (current, operand)
    if isinstance(sequence, _SEQUENCES) and isinstance(count, int):
        length = _length_at_most(sequence, len(sequence) * count)
        if length > bounds.length_max:
            raise _too_long(op, bounds)


def _check_pow(op: str, current: Any, operand: Any, bounds: Bounds) -> None:
    if not (isinstance(current, (int, Fraction)) and isinstance(operand, (int, Fraction))):
        return
    if operand.denominator != 1 or (isinstance(current, int) and isinstance(operand, int) and operand < 0):
        return  # A float.
    if (_bits(current) - 1) * abs(operand.numerator) >= bounds.integer_bits_max:
        raise _too_many_bits(op, bounds)


def _check_division(op: str, current: Any, operand: Any, bounds: Bounds) -> None:
    # Division of long integers takes time in the product of their lengths, however small its result.
    both = isinstance(current, (int, Fraction)) and isinstance(operand, (int, Fraction))
    if both and max(_bits(current), _bits(operand)) > bounds.integer_bits_max:
        raise UnfoldableEvent(f"{op} takes no integer of more than {bounds.integer_bits_max} bits")


def _check_mod(op: str, current: Any, operand: Any, bounds: Bounds) -> None:
    if isinstance(current, (str, bytes, bytearray)):
        _check_format(op, current, operand, bounds)
    else:
        _check_division(op, current, operand, bounds)


_CHECKS: Final[dict[str, Callable[[str, Any, Any, Bounds], None]]] = {
    "add": _check_join,
    "concat": _check_join,
    "floordiv": _check_division,
    "mod": _check_mod,
    "mul": _check_mul,
    "pow": _check_pow,
}


# --- bounds of %-formatting --------------------------------------------------------------------------------

_PARENTHESES: Final = re.compile("[()]")
# Flags, width, precision, length modifier, conversion: what follows "%" and the optional key.
_CONVERSION: Final = re.compile(r"[-#0 +]*([0-9]+|\*)?(?:\.([0-9]+|\*)?)?[hlL]?(.?)", re.DOTALL)
_NUMBER_LENGTH_MAX: Final = 330
"""The most characters, digits after the point apart, that a float takes in any conversion."""


def _check_format(op: str, template: str | bytes | bytearray, operand: Any, bounds: Bounds) -> None:
    """Refuse a %-format whose result could be longer than the bound, by its widths, precisions and arguments."""
    text = template if isinstance(template, str) else template.decode("latin-1")
    if text.count("%") > _CONVERSIONS_MAX:
        raise UnfoldableEvent(f"{op} takes no format with more than {_CONVERSIONS_MAX} conversions")
    positional = iter(operand if isinstance(operand, tuple) else (operand,))
    length = len(text)
    position = text.find("%") + 1
    while position and length <= bounds.length_max:
        arguments: Iterator[Any] = positional
        if text.startswith("(", position):
            end = _key_end(op, text, position)
            key = text[position + 1 : end - 1]
            # Only a plain dict is looked into; a mapping of another type keeps its own meaning, and its own bounds.
            found = (
                operand.get(key if isinstance(template, str) else key.encode("latin-1")) if type(operand) is dict else 0
            )
            arguments = iter((found,))
            position = end
        spec = _CONVERSION.match(text, position)
        assert spec is not None  # Everything in it is optional.
        width, precision, conversion = spec.groups()
        if conversion != "%":
            wanted = _number(width, arguments, bounds), _number(precision, arguments, bounds)
            length += max(wanted[0], _converted_length(conversion, next(arguments, 0), wanted[1], bounds))
        position = text.find("%", spec.end()) + 1
    if length > bounds.length_max:
        raise _too_long(op, bounds)


def _key_end(op: str, text: str, start: int) -> int:
    """The position after the parenthesis that closes the one at ``start``; parentheses nest."""
    depth = 0
    for count, found in enumerate(_PARENTHESES.finditer(text, start)):
        if count > _CONVERSIONS_MAX:
            break
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.end()
    raise UnfoldableEvent(f"{op} cannot be applied: a key in the format does not end")


def _number(digits: str | None, arguments: Iterator[Any], bounds: Bounds) -> int:
    """A width or precision; ``*`` takes it from the arguments."""
    if digits is None:
        return 0
    if digits == "*":
        given = next(arguments, 0)
        return abs(given) if isinstance(given, int) else 0
    return int(digits) if len(digits) < 19 else bounds.length_max + 1


def _converted_length(conversion: str, argument: Any, precision: int, bounds: Bounds) -> int:
    """At least as many characters as the argument takes in this conversion."""
    if conversion in "srab":
        if conversion in "sb" and isinstance(argument, (str, bytes, bytearray)):
            return len(argument)
        return _shown_length(argument, ascii if conversion == "a" else repr, bounds.length_max)
    if isinstance(argument, int) and conversion in "diuoxX":
        digits = argument.bit_length() // 3 + 4
    elif isinstance(argument, Decimal) and argument.is_finite():
        # int() of 1E+999999 computes a million digits; Python itself shows no more than 4,300.
        digits = _NUMBER_LENGTH_MAX if argument.adjusted() <= 4300 else bounds.length_max + 1
    else:
        digits = _NUMBER_LENGTH_MAX
    return digits + precision


def _shown_length(value: Any, show: Callable[[str], str], limit: int) -> int:
    """At least the length of a value's ``repr``, as far as it consists of builtin types; stops beyond ``limit``."""
    length = 0
    stack = [value]
    while stack and length <= limit:
        part = stack.pop()
        if isinstance(part, str):
            length += len(show(part))
        elif isinstance(part, (bytes, bytearray)):
            length += 4 * len(part) + 15
        elif isinstance(part, int):
            length += part.bit_length() // 3 + 5
        elif isinstance(part, (list, tuple, set, frozenset)):
            length += 2 * len(part) + 12
            stack.extend(part)
        elif isinstance(part, dict):
            length += 4 * len(part) + 2
            stack.extend(part.keys())
            stack.extend(part.values())
        else:
            length += 25
    return length
