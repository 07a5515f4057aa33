"""Event sequences: the rows in storage, and the scans that read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Final, TypeAlias

import msgspec

from rstore.core.encodings import Encoding, Value
from rstore.core.numeric import INT64_MAX, INT64_MIN
from rstore.core.operators import OPERATORS, UNARY
from rstored.backends.abc import Place, Row, RowOrder, RowScan, Slice
from rstored.engine.model import State, StoredEvent
from rstored.engine.timestamps import from_sort_key, sort_key
from rstored.problems import damaged, of_storage

EVENTS_LANE: Final = 0
ITEMS_LANE: Final = 1
PAGE_EVENTS_MAX: Final = 1_000
PAGE_BYTES_MAX: Final = 2**20
LONG_BYTES: Final = 4_096
_EVENT_OVERHEAD_BYTES: Final = 32
_ENCODINGS: Final = tuple(Encoding)


_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
_Encoding: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=len(Encoding))]
_Timestamp: TypeAlias = Annotated[int, msgspec.Meta(ge=INT64_MIN, le=INT64_MAX)]


class Meta(msgspec.Struct, array_like=True, frozen=True):
    """The head of a sequence. ``size`` is the number of bytes from which its state is read.

    ``sealed`` says whether its events are sealed. It is None if an older version wrote the head, or if only some are.
    """

    revision: _Count
    last: _Timestamp
    events: _Count
    present: _Count
    size: _Count
    rewrites: int
    sealed: bool | None = None


class EventRow(msgspec.Struct, array_like=True, frozen=True):
    """The value of an event in lane 0. An event of a unary operator has no value, so it has no encoding and no data."""

    op: str
    encoding: _Encoding | None
    data: bytes


class ItemRow(msgspec.Struct, array_like=True, frozen=True):
    """The current chain of an item in lane 1: its first and last timestamp, its number of events and their bytes.

    ``data`` is the folded JSON of a plain chain, or the one value of any other chain of length 1. Otherwise it is
    empty, and the chain is read from lane 0.
    """

    start: _Timestamp
    last: _Timestamp
    length: _Count
    size: _Count
    plain: bool
    encoding: _Encoding
    data: bytes

    @property
    def read_from_events(self) -> bool:
        return not self.plain and self.length > 1


decode_meta: Final = of_storage("an event sequence's record")(msgspec.msgpack.Decoder(Meta).decode)
pack: Final = msgspec.msgpack.Encoder().encode
_decode_event: Final = msgspec.msgpack.Decoder(EventRow).decode
_decode_item: Final = msgspec.msgpack.Decoder(ItemRow).decode


@of_storage("an item of an event sequence")
def decode_item(row: Row) -> ItemRow:
    """An item's row, whose parts fit each other."""
    item = _decode_item(row.value)
    held = item.plain or item.length == 1
    size = _EVENT_OVERHEAD_BYTES + len(item.data)
    if item.start > item.last or item.length < 1 or bool(item.data) > held or (item.length == 1 and item.size != size):
        raise ValueError("the parts of a row contradict each other")
    return item


@of_storage("the items of an event sequence")
def state_rows(meta: Meta, found: Slice[Row]) -> dict[str, ItemRow]:
    """The rows of all items, which were read together with the head."""
    rows = {row.sort.decode(): _decode_item(row.value) for row in found.items}
    if len(rows) != meta.present or "" in rows or "\0" in "".join(rows):
        raise ValueError("the items are not those that the head counts")
    return rows


def event_size(event: StoredEvent) -> int:
    """What an event counts in bytes: its value, and a constant for the rest.

    >>> event_size(StoredEvent(7, "roof", "add", Value(Encoding.JSON, b"[1]")))
    35
    """
    return _EVENT_OVERHEAD_BYTES + (0 if event.value is None else len(event.value.data))


def state_size(row: ItemRow | None) -> int:
    """The bytes that an item adds to ``Meta.size``."""
    if row is None:
        return 0
    return _EVENT_OVERHEAD_BYTES + len(row.data) if row.plain else row.size


def event_row(event: StoredEvent) -> Row:
    t, item = sort_key(event.timestamp), event.item.encode()
    encoding, data = event.value or (None, b"")
    return Row(t + item, pack(EventRow(event.op, encoding, data)), item + b"\0" + t)


@of_storage("an event")
def stored_event(row: Row) -> StoredEvent:
    """The event in a row of lane 0.

    >>> event = StoredEvent(7, "roof", "neg", None)
    >>> stored_event(event_row(event)) == event
    True
    """
    stored = _decode_event(row.value)
    op, encoding, data = stored.op, stored.encoding, stored.data
    t, item = row.sort[:8], row.sort[8:]
    if row.by != item + b"\0" + t or op not in OPERATORS or (encoding is None and (data or op not in UNARY)):
        raise ValueError("the parts of a row contradict each other")
    value = None if encoding is None else Value(_ENCODINGS[encoding], data)
    return StoredEvent(from_sort_key(t), _name(item), op, value)


def chain_of(item: ItemRow, found: Slice[Row], unstored: int = 0) -> list[StoredEvent]:
    """The events of an item's chain, which were all read, but for those that are not stored yet."""
    events = [*map(stored_event, found.items)]
    if len(events) + unstored != item.length:
        raise damaged("the events of an item")
    return events


def _name(item: bytes) -> str:
    """The name of an item."""
    if not item or b"\0" in item:
        raise ValueError("not the name of an item")
    return item.decode()


def at(t: int) -> tuple[bytes, bytes]:
    """Two bounds around the ``sort`` of every event at ``t``. UTF-8 has no byte FF.

    >>> low, high = at(7)
    >>> low < sort_key(7) + "item".encode() < high < sort_key(8)
    True
    """
    key = sort_key(t)
    return key, key + b"\xff"


def item_scan(place: Place, item: str, start: int, end: int) -> RowScan:
    """The scan of the events of an item from ``start`` to ``end``. Items have no NUL, so no other item is in it."""
    name = item.encode() + b"\0"
    return RowScan(place, EVENTS_LANE, name + sort_key(start), name + sort_key(end), RowOrder.BY)


def chain_scans(place: Place, rows: Mapping[str, ItemRow]) -> Iterator[list[tuple[ItemRow, RowScan]]]:
    """The scans of the chains that are not in the rows. Each group of scans finds about one page of events."""
    scans: list[tuple[ItemRow, RowScan]] = []
    events = 0
    for item, row in rows.items():
        if row.read_from_events:
            scans.append((row, item_scan(place, item, row.start, row.last)))
            events += row.length
            if events >= PAGE_EVENTS_MAX:
                yield scans
                scans, events = [], 0
    if scans:
        yield scans


def paged(scan: RowScan) -> RowScan:
    return scan._replace(limit=PAGE_EVENTS_MAX, bytes_max=PAGE_BYTES_MAX)


def next_page(scan: RowScan, found: Slice[Row]) -> RowScan | None:
    """The ascending scan that continues after this page; None at the end."""
    if not found.more:
        return None
    position = found.items[-1].sort if scan.along is RowOrder.SORT else found.items[-1].by
    assert position is not None
    return scan._replace(low=position + b"\0")


def state_of(last: int, revision: int, rows: Mapping[str, ItemRow], events: Iterable[StoredEvent]) -> State:
    """The state that the rows describe. ``events`` are the events of the chains that are not in the rows."""
    items: dict[str, Value] = {}
    unfolded = [*events]
    for item, row in sorted(rows.items()):
        if row.plain:
            items[item] = Value(Encoding.JSON, row.data)
        elif not row.read_from_events:
            unfolded.append(StoredEvent(row.start, item, "setitem", Value(_ENCODINGS[row.encoding], row.data)))
    unfolded.sort(key=lambda event: event[:2])
    return State(last, revision, items, unfolded)
