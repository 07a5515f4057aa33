"""Event sequences: the plans of all writes but apply."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from rstore.core.encodings import Encoding
from rstored.backends.abc import (
    Commit,
    DeleteRecord,
    DeleteRow,
    Head,
    Place,
    PutHead,
    PutRow,
    Query,
    Row,
    RowScan,
    Slice,
    Write,
)
from rstored.engine.es.rows import (
    EVENTS_LANE,
    ITEMS_LANE,
    ItemRow,
    Meta,
    chain_of,
    decode_item,
    decode_meta,
    event_row,
    event_size,
    item_scan,
    pack,
    paged,
    state_of,
    state_size,
    stored_event,
)
from rstored.engine.model import Reseal, State, StoredEvent
from rstored.engine.once import Answers
from rstored.engine.timestamps import from_sort_key, sort_key
from rstored.problems import Problem, damaged

Places: TypeAlias = Mapping[Place, Head | None]


class Pruned(NamedTuple):
    """The result of a prune so far. ``low`` is where the next step begins, or None at the end."""

    pruned: int
    removed: bool
    low: bytes | None


PRUNED: Final[Answers[Pruned]] = Answers(
    lambda step: pack(step) if step.low is None else None, msgspec.msgpack.Decoder(Pruned).decode
)


def prune_plan(
    heads: Places, place: Place, before: Pruned, remove: bool
) -> Generator[Query, list[Any], Commit[Pruned]]:
    """The plan of one step of :meth:`EventSequences.prune`. ``before`` is the result of the earlier steps."""
    head = heads[place]
    if head is None:
        return Commit((), before._replace(low=None))
    meta = decode_meta(head.meta)
    if remove and meta.present == 0:
        return Commit((DeleteRecord(place),), Pruned(before.pruned + meta.events, True, None))
    found: Slice[Row]
    (found,) = yield (paged(RowScan(place, EVENTS_LANE, before.low)),)
    items = {row.sort[8:] for row in found.items}
    results: list[Slice[Row]] = yield tuple(RowScan(place, ITEMS_LANE, item, item) for item in items)
    starts = {row.sort: decode_item(row).start for result in results for row in result.items}
    writes: list[Write] = [
        DeleteRow(place, EVENTS_LANE, row.sort)
        for row in found.items
        if (start := starts.get(row.sort[8:])) is None or from_sort_key(row.sort[:8]) < start
    ]
    pruned = len(writes)
    if pruned:
        left = msgspec.structs.replace(meta, events=meta.events - pruned, rewrites=meta.rewrites + 1)
        writes.append(PutHead(place, Head(pack(left))))
    low = found.items[-1].sort + b"\0" if found.more else None
    return Commit(writes, Pruned(before.pruned + pruned, False, low))


def reseal_plan(
    heads: Places, place: Place, reseals: Sequence[Reseal], sequence_bytes_max: int
) -> Generator[Query, list[Any], Commit[None]]:
    """The plan of :meth:`EventSequences.reseal`."""
    head = heads[place]
    if head is None:
        raise Problem("sequence-not-found", "there is no such sequence in this namespace")
    meta = decode_meta(head.meta)
    items = sorted({reseal.item.encode() for reseal in reseals})
    sorts = [sort_key(reseal.timestamp) + reseal.item.encode() for reseal in reseals]
    results: list[Slice[Row]] = yield (
        *(RowScan(place, EVENTS_LANE, sort, sort) for sort in sorts),
        *(RowScan(place, ITEMS_LANE, item, item) for item in items),
    )
    rows = {row.sort: decode_item(row) for found in results[len(sorts) :] for row in found.items}
    before = dict(rows)
    writes: list[Write] = []
    for index, (reseal, found) in enumerate(zip(reseals, results, strict=False)):
        event = stored_event(found.items[0]) if found.items else None
        if event is not None and (event.op, event.value) == (reseal.op, reseal.value):
            continue  # The same reseal was carried out before, and its answer was lost.
        if event is None or not _is_replaced(event, reseal):
            detail = "the event does not exist, or its sealed value is another one: read it again"
            raise Problem("precondition-failed", detail, pointer=f"/events/{index}")
        new = event._replace(value=reseal.value)
        writes.append(PutRow(place, EVENTS_LANE, event_row(new)))
        item = reseal.item.encode()
        row = rows.get(item)
        if row is not None and row.start <= reseal.timestamp:
            size = row.size + event_size(new) - event_size(event)
            # The row of an item also has the value, if the chain is this one event.
            data = row.data if row.read_from_events else reseal.value.data
            rows[item] = msgspec.structs.replace(row, size=size, data=data)
    for item, row in rows.items():
        if row != before[item]:
            writes.append(PutRow(place, ITEMS_LANE, Row(item, pack(row))))
    size = meta.size + sum(state_size(rows[item]) - state_size(before[item]) for item in rows)
    if size != meta.size:
        if size > max(sequence_bytes_max, meta.size):
            needed = f"the state would be read from {size} bytes"
            raise Problem.beyond("value-too-large", needed, sequence_bytes_max)
        writes.append(PutHead(place, Head(pack(msgspec.structs.replace(meta, size=size)))))
    return Commit(writes, None)


def _is_replaced(event: StoredEvent, reseal: Reseal) -> bool:
    """Whether the event has the sealed value that ``reseal`` replaces."""
    if event.op != reseal.op or event.value is None or event.value.encoding is not Encoding.SEALED:
        return False
    return hashlib.sha256(event.value.data).hexdigest() == reseal.replaces


def sealed_after(place: Place, meta: Meta, encodings: Sequence[Encoding]) -> Generator[Query, list[Any], bool | None]:
    """``Meta.sealed`` after an apply of values of these encodings.

    Raises Problem ``sealing-mismatch`` if only some of the sequence's events would be sealed. A sequence that is
    already mixed takes any event: nobody can read all of it, and a new event may even mend it.
    """
    kinds = [encoding is Encoding.SEALED for encoding in encodings]
    sealed = meta.sealed if meta.events else kinds[0]
    if sealed is None:
        # An older version wrote this head. The first and the last event show which kind the sequence has.
        first = RowScan(place, EVENTS_LANE, limit=1)
        results: list[Slice[Row]] = yield first, first._replace(descending=True)
        events = [stored_event(row) for found in results for row in found.items]
        ends = {event.value is not None and event.value.encoding is Encoding.SEALED for event in events}
        if not ends:
            raise damaged("the events of a sequence")
        if len(ends) > 1:
            return None
        sealed = ends.pop()
    if (not sealed) in kinds:
        detail = (
            "the events of this sequence are sealed, and this event is not: give the client the key"
            if sealed
            else "the events of this sequence are not sealed, and this event is: use a client without a key"
        )
        raise Problem("sealing-mismatch", detail, pointer=f"/events/{kinds.index(not sealed)}")
    return sealed


def check_revision(wanted: int | None, revision: int, last: int) -> None:
    """Raise Problem ``revision-conflict`` if another revision is wanted than the sequence has.

    >>> check_revision(4, 5, last=1700000000000)
    Traceback (most recent call last):
    rstored.problems.Problem: the sequence is at revision 5
    """
    if wanted is not None and wanted != revision:
        raise Problem("revision-conflict", f"the sequence is at revision {revision}", revision=revision, timestamp=last)


def read_state(
    place: Place, meta: Meta, rows: Mapping[str, ItemRow], new: Sequence[StoredEvent] = ()
) -> Generator[Query, list[Any], State]:
    """The state of these rows, read within a plan. ``new`` are events that are not stored yet."""
    long = {item: row for item, row in rows.items() if row.read_from_events}
    events = [event for event in new if event.item in long and event.timestamp >= long[event.item].start]
    if long:
        results: list[Slice[Row]] = yield tuple(
            item_scan(place, item, row.start, row.last) for item, row in long.items()
        )
        unstored = Counter(event.item for event in events)
        for (item, row), found in zip(long.items(), results, strict=True):
            events += chain_of(row, found, unstored[item])
    return state_of(meta.last, meta.revision, rows, events)
