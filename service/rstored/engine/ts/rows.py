"""Time series: the blocks and the head that lie in storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from rstore.core.frames import count_of, decode, encode
from rstore.core.points import InvalidPoints, Points
from rstored.backends.abc import Head, Place, PutHead, Row, Slice
from rstored.engine.timestamps import sort_key
from rstored.problems import Problem

__all__ = [
    "BLOCKS_LANE",
    "CELL_COST_BYTES",
    "DECODE_META",
    "ENCODE_META",
    "PAGE_BYTES_MAX",
    "PAGE_DECODED_BYTES_MAX",
    "Meta",
    "corrupt",
    "count_of_row",
    "decode_page",
    "decode_row",
    "meta_of",
    "put_head",
    "rows_of",
]

BLOCKS_LANE: Final = 0
PAGE_BYTES_MAX: Final = 2**20
PAGE_DECODED_BYTES_MAX: Final = 4 * 2**20
# Checking a value takes as long as parsing so many more bytes.
CELL_COST_BYTES: Final = 64


class Meta(msgspec.Struct, array_like=True):
    """The head of a series: the number of its points, the first and the last timestamp."""

    count: int
    first: int
    last: int


def rows_of(blocks: Iterable[Points]) -> list[Row]:
    return [Row(sort_key(block.timestamps[0]), encode(block)) for block in blocks]


def put_head(place: Place, meta: Meta) -> PutHead:
    return PutHead(place, Head(ENCODE_META(meta)))


def meta_of(head: Head) -> Meta:
    try:
        return DECODE_META(head.meta)
    except msgspec.DecodeError:
        raise corrupt() from None


ENCODE_META: Final = msgspec.msgpack.Encoder().encode
DECODE_META: Final = msgspec.msgpack.Decoder(Meta).decode


def decode_row(row: Row) -> Points:
    try:
        points = decode(row.value, bytes_max=2**32, own=True)
    except InvalidPoints:
        raise corrupt() from None
    if not points:
        raise corrupt()
    return points


def decode_page(found: Slice[Row]) -> tuple[list[Points], bool]:
    """The points of at least the first row, and whether there are more. Few bytes may decompress to very many."""
    decoded: list[Points] = []
    size = 0
    for row in found.items:
        if size >= PAGE_DECODED_BYTES_MAX:
            return decoded, True
        decoded.append(decode_row(row))
        size += decoded[-1].size
    return decoded, found.more


def count_of_row(row: Row) -> int:
    try:
        return count_of(row.value)
    except InvalidPoints:
        raise corrupt() from None


def corrupt() -> Problem:
    return Problem("backend-corrupt", "the blocks of a time series cannot be read: restore a backup")
