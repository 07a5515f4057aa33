"""Time series: the blocks and the head that lie in storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias

import msgspec

from rstore.core.encodings import Encoding
from rstore.core.frames import count_of, decode, encode, is_compressed
from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.points import Cells, Points
from rstored.backends.abc import Head, Place, PutHead, Row, Slice
from rstored.engine.timestamps import from_sort_key, sort_key
from rstored.problems import of_storage

BLOCKS_LANE: Final = 0
PAGE_BYTES_MAX: Final = 2**20
_PAGE_DECODED_BYTES_MAX: Final = 4 * 2**20
# Checking a value takes as long as parsing this many more bytes.
CELL_COST_BYTES: Final = 64


_Timestamp: TypeAlias = Annotated[int, msgspec.Meta(ge=INT64_MIN, le=INT64_MAX)]


class Meta(msgspec.Struct, array_like=True):
    """The head of a series: the number of its points, the first and the last timestamp."""

    count: Annotated[int, msgspec.Meta(ge=1)]
    first: _Timestamp
    last: _Timestamp


def rows_of(blocks: Iterable[Points]) -> list[Row]:
    return [Row(sort_key(block.timestamps[0]), encode(block)) for block in blocks]


def put_head(place: Place, meta: Meta) -> PutHead:
    return PutHead(place, Head(_encode_meta(meta)))


@of_storage("a time series's record")
def meta_of(head: Head) -> Meta:
    meta = _decode_meta(head.meta)
    if meta.first > meta.last:
        raise ValueError("the first point is not before the last")
    return meta


_encode_meta: Final = msgspec.msgpack.Encoder().encode
_decode_meta: Final = msgspec.msgpack.Decoder(Meta).decode
_decode_texts: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode


@of_storage("a block of a time series")
def decode_row(row: Row) -> Points:
    points = decode(row.value, bytes_max=2**32, own=True)
    if points.timestamps[0] != from_sort_key(row.sort):
        raise ValueError("the block does not begin where it stands")
    # A compressed block has a checksum. To parse its texts would take several times as long as the whole read.
    if isinstance(points.values, Cells) and not is_compressed(row.value):
        _check_texts(points.values)
    return points


def _check_texts(cells: Cells) -> None:
    """Raise if what should be JSON is none: written into an answer, it would spoil all of that."""
    texts = [text for encoding, text in zip(cells.encodings, cells.parts(), strict=True) if encoding == Encoding.JSON]
    whole = b"[%b]" % b",".join(texts)
    if not whole.isascii():
        whole.decode()
    if len(_decode_texts(whole)) != len(texts):
        raise ValueError("a value is not JSON")


@of_storage("a block of a time series")
def first_of_row(row: Row) -> int:
    return from_sort_key(row.sort)


def decode_page(found: Slice[Row]) -> tuple[list[Points], bool]:
    """The points of at least the first row, and whether there are more. Few bytes may decompress to very many."""
    decoded: list[Points] = []
    size = 0
    for row in found.items:
        if size >= _PAGE_DECODED_BYTES_MAX:
            return decoded, True
        decoded.append(decode_row(row))
        size += decoded[-1].size
    return decoded, found.more


@of_storage("a block of a time series")
def count_of_row(row: Row) -> int:
    return count_of(row.value)
