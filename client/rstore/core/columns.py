"""Columns of numbers: arrays of int64 or of floats."""

from __future__ import annotations

import math
import sys
from array import array
from itertools import islice
from operator import lt
from typing import Any, Final

_BIG_ENDIAN: Final = sys.byteorder == "big"
# How many numbers are Python objects at a time.
_PART: Final = 10_000


def is_ascending(timestamps: array[int]) -> bool:
    """Whether each is greater than the one before it."""
    # A list has its integers made already, but takes five times the memory of the array.
    for start in range(0, len(timestamps), _PART):
        members = timestamps[start : start + _PART + 1].tolist()
        if not all(map(lt, members, islice(members, 1, None))):
            return False
    return True


def all_finite(floats: array[int] | array[float]) -> bool:
    """Whether none is NaN or infinite."""
    # A sum is finite unless a term is not, or the sum overflows. Only then each term needs a look.
    return math.isfinite(sum(floats)) or all(map(math.isfinite, floats))


def little_endian(column: array[int] | array[float]) -> bytes:
    """The bytes of the numbers, on a machine of either order.

    >>> little_endian(array("q", [1]))
    b'\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00'
    """
    if _BIG_ENDIAN:
        column = column[:]
        column.byteswap()
    return column.tobytes()


def from_little_endian(typecode: str, data: memoryview) -> array[Any]:
    """The numbers of these bytes: what :func:`little_endian` made of them."""
    column: array[Any] = array(typecode)
    column.frombytes(data)
    if _BIG_ENDIAN:
        column.byteswap()
    return column
