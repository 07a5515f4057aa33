"""What an operator may compute. Before it computes anything, it is refused if the result could exceed its bounds."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple

_SEQUENCES: Final = (str, bytes, bytearray, list, tuple, deque)
_CONVERSIONS_MAX: Final = 10_000
_PARENTHESES: Final = re.compile("[()]")
# Flags, width, precision, length modifier, conversion: what follows "%" and the optional key.
_CONVERSION: Final = re.compile(r"[-#0 +]*([0-9]+|\*)?(?:\.([0-9]+|\*)?)?[hlL]?(.?)", re.DOTALL)
_NUMBER_LENGTH_MAX: Final = 330
"""The most characters that a float takes in any conversion, without the digits after the point."""


class UnfoldableEvent(Exception):
    """An event cannot be applied. ``reason`` says why, and holds no value.

    ``item`` and ``timestamp`` say which event it is, if that is known. The text of the exception names the item.
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
    """The bounds of a result: bits of an integer; characters, bytes or members of a sequence.

    They also bound the time of every operator, to some tenths of a second. They hold for ``int``, ``Fraction``,
    ``str``, ``bytes``, ``bytearray``, ``list``, ``tuple`` and ``deque`` (one with a ``maxlen`` has that bound as well).
    Other types bound themselves (``Decimal`` by its context).
    """

    integer_bits_max: int = 2**20
    length_max: int = 2**25


def check_bounds(op: str, current: Any, operand: Any, bounds: Bounds) -> None:
    """Raise :class:`UnfoldableEvent` if what ``op`` makes of these values could exceed ``bounds``."""
    check = _CHECKS.get(op)
    if check is not None:
        check(op, current, operand, bounds)


def too_many_bits(op: str, bounds: Bounds) -> UnfoldableEvent:
    """The error for an integer of too many bits."""
    return UnfoldableEvent(f"the result of {op} would be larger than {bounds.integer_bits_max} bits")


def _too_long(op: str, bounds: Bounds) -> UnfoldableEvent:
    return UnfoldableEvent(f"the result of {op} would be longer than {bounds.length_max}")


def _bits(number: int | Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _length_at_most(sequence: Any, length: int) -> int:
    """The length, or the ``maxlen`` of a deque, which drops all members beyond it."""
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
            raise too_many_bits(op, bounds)
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
        raise too_many_bits(op, bounds)


def _check_division(op: str, current: Any, operand: Any, bounds: Bounds) -> None:
    # The time to divide long integers grows with the product of their lengths, even if the result is small.
    both = isinstance(current, (int, Fraction)) and isinstance(operand, (int, Fraction))
    if both and max(_bits(current), _bits(operand)) > bounds.integer_bits_max:
        raise UnfoldableEvent(f"{op} takes no integer of more than {bounds.integer_bits_max} bits")


def _check_mod(op: str, current: Any, operand: Any, bounds: Bounds) -> None:
    if isinstance(current, (str, bytes, bytearray)):
        _check_format(op, current, operand, bounds)
    else:
        _check_division(op, current, operand, bounds)


def _check_format(op: str, template: str | bytes | bytearray, operand: Any, bounds: Bounds) -> None:
    """Refuse a %-format if its widths, precisions and arguments allow a result that is longer than the bound."""
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
            # This looks only into a plain dict. A mapping of another type has its own meaning, and its own bounds.
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
    """The position after the parenthesis that closes the one at ``start``. Parentheses nest."""
    depth = 0
    for count, found in enumerate(_PARENTHESES.finditer(text, start)):
        if count > _CONVERSIONS_MAX:
            break
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.end()
    raise UnfoldableEvent(f"{op} cannot be applied: a key in the format does not end")


def _number(digits: str | None, arguments: Iterator[Any], bounds: Bounds) -> int:
    """A width or precision. ``*`` takes it from the arguments."""
    if digits is None:
        return 0
    if digits == "*":
        given = next(arguments, 0)
        return abs(given) if isinstance(given, int) else 0
    return int(digits) if len(digits) < 19 else bounds.length_max + 1


def _converted_length(conversion: str, argument: Any, precision: int, bounds: Bounds) -> int:
    """A number of characters that this conversion of the argument does not exceed."""
    if conversion in "srab":
        if conversion in "sb" and isinstance(argument, (str, bytes, bytearray)):
            return len(argument)
        return _shown_length(argument, ascii if conversion == "a" else repr, bounds.length_max)
    if isinstance(argument, int) and conversion in "diuoxX":
        digits = argument.bit_length() // 3 + 4
    elif isinstance(argument, Decimal) and argument.is_finite():
        # int() of 1E+999999 computes a million digits. Python itself prints no more than 4,300.
        digits = _NUMBER_LENGTH_MAX if argument.adjusted() <= 4300 else bounds.length_max + 1
    else:
        digits = _NUMBER_LENGTH_MAX
    return digits + precision


def _shown_length(value: Any, show: Callable[[str], str], limit: int) -> int:
    """A length that the ``repr`` of a value of builtin types does not exceed. It stops beyond ``limit``."""
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


_CHECKS: Final[dict[str, Callable[[str, Any, Any, Bounds], None]]] = {
    "add": _check_join,
    "concat": _check_join,
    "floordiv": _check_division,
    "mod": _check_mod,
    "mul": _check_mul,
    "pow": _check_pow,
}
