"""An estimate of the memory that JSON takes when it is decoded, made before it is decoded.

A few bytes can become an object of a hundred. So the bound of an answer counts bytes of memory, and a text that would
take too much is never decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

PAGE_ITEMS_MAX: Final = 10_000
"""No page of a listing has more items."""

Spend: TypeAlias = Callable[[int], object]
"""Takes a number of bytes of memory from a budget, or raises. A negative number gives bytes back."""

# The most bytes that objects of CPython take on 64 bits. A table of entries doubles, so up to half of it is empty.
_OBJECT: Final = 208
_ARRAY: Final = 136
_MEMBER_OR_ITEM: Final = 64
_QUOTE: Final = 40
_VALUE: Final = 64

_BRACE, _BRACKET, _QUOTATION_MARK, _COMMA, _COLON, _BACKSLASH = b'{[",:\\'
_SCALAR_BEGINS: Final = frozenset(bytes((character,)) for character in b'"-0123456789tfn')
_BEYOND_16_BITS: Final = range(0xF0, 0xF5)


def free(size: int) -> None:
    """The :data:`Spend` of a caller without a bound."""


def json_memory(text: bytes) -> int:
    """The most bytes of memory that it takes to decode this JSON, to whatever objects.

    It counts brackets and commas inside of strings as if they stood outside.

    >>> json_memory(b"[[],[],[]]") > 3 * 56
    True
    """
    if text[:1] in _SCALAR_BEGINS:
        return _VALUE + _text_factor(text) * len(text)
    return texts_memory(text, 1)


def texts_memory(texts: bytes, count: int) -> int:
    """The most bytes of memory that it takes to decode ``count`` texts of JSON, or other values, end to end."""
    found = texts.count
    return (
        _VALUE * count
        + _text_factor(texts) * len(texts)
        + _OBJECT * found(_BRACE)
        + _ARRAY * found(_BRACKET)
        + _QUOTE * found(_QUOTATION_MARK)
        + _MEMBER_OR_ITEM * (found(_COMMA) + found(_COLON))
    )


def _text_factor(text: bytes) -> int:
    """How many bytes of memory a byte of text takes. One character beyond Latin-1 makes its whole string wider."""
    escaped = _BACKSLASH in text
    if not escaped and text.isascii():
        return 2
    # The decoder copies a string with an escape into a buffer that doubles.
    if (escaped and b"\\u" in text) or any(byte in text for byte in _BEYOND_16_BITS):
        return 7
    return 4
