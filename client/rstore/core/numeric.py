"""Python objects that are numbers without being exactly ``int`` or ``float``: numpy's scalars and their like."""

from __future__ import annotations

import enum
import numbers
import operator
import sys
from typing import Any, Final

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1


def integer(value: Any) -> int | None:
    """The int that ``value`` stands for, or None if it stands for none. A bool is not a number here.

    >>> integer(5), integer(True), integer(5.0)
    (5, None, None)
    """
    if type(value) is int:
        return value
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        return None
    try:
        return operator.index(value)
    except Exception:
        # An array has this method too, and raises if it holds more than one integer.
        return None


def real(value: Any) -> int | float | None:
    """The int or float that ``value`` is equal to, or None if it is equal to none. A bool is not a number here.

    A number is what :func:`integer` takes, or a ``numbers.Real`` that a float holds without loss. A fraction is
    neither, nor is a decimal.

    >>> from decimal import Decimal
    >>> class Celsius(float): ...
    >>> real(Celsius(21.5)), real(Decimal("21.5"))
    (21.5, None)
    """
    if isinstance(value, float):
        return float.__float__(value)
    found = integer(value)
    if found is not None or isinstance(value, bool | numbers.Rational) or not isinstance(value, numbers.Real):
        return found
    try:
        number = float(value)
        # NaN is equal to nothing. A long double may hold digits that a float does not.
        return number if number == value or number != number else None
    except Exception:
        return None


def plain_number(value: Any) -> int | float | None:
    """The number to store for a :func:`real` of any type, or the bool for a bool of numpy. None for anything else.

    A member of an enum is not a number here, because it would lose its name.
    """
    if isinstance(value, (bool, _numpy_bool())):
        return bool(value)
    return None if isinstance(value, enum.Enum) else real(value)


def _numpy_bool() -> Any:
    """The type of numpy's booleans, which has no ``__index__`` and no class of ``numbers``. Without numpy: ``()``."""
    # Without an import of numpy there is no such value.
    return getattr(sys.modules.get("numpy"), "bool_", ())
