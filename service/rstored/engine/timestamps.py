"""Timestamps as bytes in the order of the numbers: 8 bytes, big-endian, with the sign bit flipped."""

from __future__ import annotations

import struct
from typing import Final

from rstore.core.numeric import INT64_MIN

_UNSIGNED: Final = struct.Struct(">Q")


def sort_key(t: int) -> bytes:
    """The 8 bytes of a timestamp, in whose order timestamps sort. ``struct.error`` if it is not an int64.

    >>> sort_key(-1) < sort_key(0) < sort_key(1)
    True
    >>> sort_key(0).hex()
    '8000000000000000'
    """
    return _UNSIGNED.pack(t - INT64_MIN)


def from_sort_key(key: bytes) -> int:
    """The timestamp that :func:`sort_key` turned into ``key``.

    >>> from_sort_key(sort_key(-7))
    -7
    """
    (unsigned,) = _UNSIGNED.unpack(key)
    return int(unsigned) + INT64_MIN
