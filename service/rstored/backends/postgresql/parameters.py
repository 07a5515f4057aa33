"""The parameters of statements, in PostgreSQL's binary form."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, TypeAlias

Parameter: TypeAlias = str | int | bytes | None
"""The value for a ``%s`` of a statement. :func:`texts`, :func:`integers` and :func:`blobs` make arrays."""

INT8_OID: Final = 20
_BYTEA_OID: Final = 17
_TEXT_OID: Final = 25

_int8: Final = struct.Struct("!q").pack
_size: Final = struct.Struct("!i").pack
_array_head: Final = struct.Struct("!5i").pack
_NULL: Final = _size(-1)
_INT8_SIZE: Final = _size(8)


def encoded(parameter: Parameter) -> bytes | None:
    """The parameter, as the server takes it."""
    if isinstance(parameter, str):
        return parameter.encode()
    if isinstance(parameter, int):
        return _int8(parameter)
    return parameter


def texts(items: Sequence[str]) -> bytes:
    """An array for ``%s::text[]``."""
    return _array(_TEXT_OID, [item.encode() for item in items])


def integers(items: Sequence[int | None]) -> bytes:
    """An array for ``%s::bigint[]``."""
    if None in items:
        return _array(INT8_OID, [None if item is None else _int8(item) for item in items])
    # All have one size, which also separates them.
    return b"".join((_head(INT8_OID, len(items)), _INT8_SIZE.join((b"", *map(_int8, items)))))


def blobs(items: Sequence[bytes | None]) -> bytes:
    """An array for ``%s::bytea[]``."""
    return _array(_BYTEA_OID, items)


def _head(oid: int, count: int) -> bytes:
    # One dimension, with nulls allowed, that begins at 1. An empty array has no dimension.
    return _array_head(1, 1, oid, count, 1) if count else _array_head(0, 0, oid, 0, 0)[:12]


def _array(oid: int, items: Sequence[bytes | None]) -> bytes:
    parts = [_head(oid, len(items))]
    for item in items:
        if item is None:
            parts.append(_NULL)
        else:
            parts += (_size(len(item)), item)
    return b"".join(parts)
