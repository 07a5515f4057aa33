"""The twelve event operators: they mean what they mean in Python, within bounds of memory and time.

An event names its operator by the name in Python's :mod:`operator` module. The service folds plain JSON with
:func:`apply_json`, and the SDK folds any Python values with :func:`apply_operator`. Their exceptions hold no value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from rstore.core.bounds import Bounds, UnfoldableEvent, check_bounds, too_many_bits
from rstore.core.encodings import JSON_INTEGER_MAX, JSON_INTEGER_MIN, render_json

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
"""The operators without an operand. Their events have no value, or a sealed one that proves who recorded them."""

ASSIGNING: Final = frozenset({"setitem", "delitem"})
"""The operators that do not depend on what the item was: one begins it, and one ends it."""

_DEFAULT_BOUNDS: Final = Bounds()
_JSON_INTEGER_BITS_MAX: Final = JSON_INTEGER_MAX.bit_length()


class JsonValue(NamedTuple):
    """A JSON value, and the number of bytes of the text that :func:`~rstore.core.encodings.render_json` makes of it."""

    value: Any
    size: int

    @classmethod
    def of(cls, value: Any) -> JsonValue:
        """Measure a value that ``parse_json`` returned."""
        return cls(value, len(render_json(value)))


def apply_operator(op: str, current: Any, operand: Any = None, bounds: Bounds = _DEFAULT_BOUNDS) -> Any:
    """What ``op`` makes of an item's ``current`` value. ``operand`` is None for a unary operator.

    Raises :class:`UnfoldableEvent` if Python raises, or, before computing anything, if the result could exceed
    ``bounds``. Neither argument is changed. ``op`` is none of :data:`ASSIGNING`.

    >>> apply_operator("add", 1, 2)
    3
    >>> apply_operator("not_", [])
    True
    >>> apply_operator("pow", 10, 10**9)
    Traceback (most recent call last):
    rstore.core.bounds.UnfoldableEvent: the result of pow would be larger than 1048576 bits
    """
    if op in ASSIGNING:
        raise ValueError(f"{op} computes nothing")
    function = OPERATORS[op]
    try:
        check_bounds(op, current, operand, bounds)
        result = function(current) if op in UNARY else function(current, operand)
        if isinstance(result, int) and result.bit_length() > bounds.integer_bits_max:
            raise too_many_bits(op, bounds)
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
        # The type of an operand may raise anything, and its message may quote the value.
        reason = f"{op} raised {type(error).__name__}"
    else:
        return result
    raise UnfoldableEvent(reason)


def apply_json(op: str, current: JsonValue, operand: JsonValue | None = None, *, bytes_max: int) -> JsonValue:
    """:func:`apply_operator` for JSON values, whose result is JSON again.

    Raises :class:`UnfoldableEvent` as well if the result is not a JSON value (NaN, an infinity, a complex number), is
    an integer of more than 4,300 characters, or has more than ``bytes_max`` bytes of JSON text. No operator
    nests deeper than its operands do.

    >>> apply_json("add", JsonValue.of([1]), JsonValue.of(["a"]), bytes_max=100)
    JsonValue(value=[1, 'a'], size=7)
    """
    size = _joined_size(op, current, operand)
    if size is not None and size > bytes_max:
        raise UnfoldableEvent(f"the result of {op} would be longer than {bytes_max} bytes")
    # Members of a list are shared, not copied, so their number needs a bound too. A member has two bytes or more.
    bounds = Bounds(_JSON_INTEGER_BITS_MAX, bytes_max)
    result = apply_operator(op, current.value, None if operand is None else operand.value, bounds)
    if isinstance(result, float):
        if not math.isfinite(result):
            raise UnfoldableEvent(f"the result of {op} is not a finite number, so JSON cannot hold it")
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
    """The text size of a concatenation or repetition, before it is made. None for other operations."""
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
