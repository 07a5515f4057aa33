"""Event sequences: the plan of apply."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from rstore.core.bounds import UnfoldableEvent
from rstore.core.encodings import Encoding
from rstore.core.numeric import INT64_MAX
from rstored.backends.abc import Commit, DeleteRow, Head, Place, PutHead, PutRow, Query, Row, RowScan, Slice
from rstored.engine.es.chains import Chain, NeedsClient, Refolding, chain_start, followed
from rstored.engine.es.plans import Places, check_revision, read_state, sealed_after
from rstored.engine.es.rows import (
    EVENTS_LANE,
    ITEMS_LANE,
    ItemRow,
    Meta,
    at,
    decode_meta,
    event_row,
    item_scan,
    next_page,
    pack,
    paged,
    state_rows,
    state_size,
    stored_event,
)
from rstored.engine.model import Change, State, StoredEvent
from rstored.engine.namespaces import ensure_namespace
from rstored.engine.once import Answers
from rstored.engine.values import check_stored
from rstored.limits import Limits
from rstored.problems import Problem


class Applied(NamedTuple):
    """What is remembered of an apply's answer. The state at its timestamp can be read again."""

    timestamp: int
    revision: int


_decode_applied: Final = msgspec.msgpack.Decoder(Applied).decode
APPLIED: Final[Answers[State | Applied]] = Answers(
    lambda answer: pack(Applied(answer.timestamp, answer.revision)), _decode_applied
)


def apply_plan(
    heads: Places,
    place: Place,
    changes: Sequence[Change],
    timestamp: int | None,
    revision: int | None,
    now: int,
    limits: Limits,
) -> Generator[Query, list[Any], Commit[State | Applied]]:
    """The plan of :meth:`EventSequences.apply` for at least one change."""
    head = heads[place]
    meta = Meta(0, 0, 0, 0, 0, now) if head is None else decode_meta(head.meta)
    rows: dict[str, ItemRow] = {}
    if head is not None:
        found: list[Slice[Row]] = yield (RowScan(place, ITEMS_LANE),)
        rows = state_rows(meta, found[0])
    check_revision(revision, meta.revision, meta.last)

    # An event without a value proves no knowledge of the key, so to a policy it is not sealed.
    encodings = [Encoding.JSON if change.value is None else change.value.encoding for change in changes]
    writes = ensure_namespace(heads, place.namespace, encodings)
    sealed = yield from sealed_after(place, meta, encodings)
    t, in_order = yield from _timestamp(place, None if head is None else meta, timestamp, now)
    events = [StoredEvent(t, *change) for change in changes]
    refolding = Refolding(limits.refolded_events_max)
    touched: dict[str, _Touched] = {}
    for index, event in enumerate(events):
        row = rows.get(event.item)
        # A client that gives the revision, or sends a value that only clients read, has folded the item itself.
        checked = revision is not None or (event.value is not None and event.value.encoding is not Encoding.JSON)
        try:
            if in_order:
                after = followed(None if row is None else Chain(row), event, limits.state_bytes_max, checked=checked)
                new_row = None if after is None else after.stored()
            else:
                new_row = yield from _refolded(place, row, event, checked, refolding, limits)
        except NeedsClient:
            raise Problem(
                "revision-conflict",
                "only a client can fold this item: fold it in the client, and send the revision that you folded",
                revision=meta.revision,
                timestamp=meta.last,
                item=event.item,
                pointer=f"/events/{index}",
            ) from None
        except UnfoldableEvent as error:
            error.item = event.item
            raise Problem("unfoldable-event", str(error), item=event.item, pointer=f"/events/{index}") from None
        touched[event.item] = _Touched(row, new_row)

    meta = Meta(
        revision=meta.revision + 1,
        last=t if in_order else meta.last,
        events=meta.events + len(events),
        present=meta.present + sum((new is not None) - (old is not None) for old, new in touched.values()),
        size=meta.size + sum(state_size(new) - state_size(old) for old, new in touched.values()),
        rewrites=meta.rewrites + (not in_order),
        sealed=sealed,
    )
    if meta.size > limits.sequence_bytes_max:
        limit = limits.sequence_bytes_max
        raise Problem.beyond(
            "value-too-large",
            f"the state would be read from {meta.size} bytes",
            limit,
            ": delete items, or set those again whose events the service cannot fold",
        )
    writes.append(PutHead(place, Head(pack(meta))))
    writes += (PutRow(place, EVENTS_LANE, event_row(event)) for event in events)
    for item, (old, new) in touched.items():
        if new is None:
            rows.pop(item, None)
            writes.append(DeleteRow(place, ITEMS_LANE, item.encode()))
        elif new != old:
            rows[item] = new
            writes.append(PutRow(place, ITEMS_LANE, Row(item.encode(), pack(new))))
    state = yield from read_state(place, meta, rows, events)
    # After the commit it would be too late to find out that the state cannot be answered.
    for value in state.items.values():
        check_stored(value)
    return Commit(writes, state)


class _Touched(NamedTuple):
    """What an apply does to an item: its row before and after. None means that the item is absent."""

    before: ItemRow | None
    after: ItemRow | None


def _timestamp(
    place: Place, meta: Meta | None, timestamp: int | None, now: int
) -> Generator[Query, list[Any], tuple[int, bool]]:
    """The timestamp of an apply, and whether it is later than all others."""
    if meta is None:
        return now if timestamp is None else timestamp, True
    if timestamp is None:
        if meta.last == INT64_MAX:
            raise Problem(
                "timestamp-taken",
                "the last event has the greatest possible timestamp, so none can follow it: give an earlier one",
            )
        return max(now, meta.last + 1), True
    if timestamp > meta.last:
        return timestamp, True
    found: list[Slice[Row]] = yield (RowScan(place, EVENTS_LANE, *at(timestamp), limit=1),)
    if found[0].items:
        raise Problem("timestamp-taken", "the timestamp already has events", pointer="/timestamp")
    return timestamp, False


def _refolded(
    place: Place, row: ItemRow | None, event: StoredEvent, checked: bool, refolding: Refolding, limits: Limits
) -> Generator[Query, list[Any], ItemRow | None]:
    """The row of the item after an event before or between its others. Raises what :func:`followed` raises."""
    t, item, op, _ = event
    chain: Chain | None = None
    if op != "setitem":
        start = row.start if row is not None and row.start < t else (yield from chain_start(place, item, t, refolding))
        if start is not None:
            scan: RowScan | None = paged(item_scan(place, item, start, t))
            while scan is not None:
                (found,) = yield (scan,)
                for earlier in map(stored_event, found.items):
                    chain = followed(chain, earlier, limits.state_bytes_max)
                    refolding.spend(chain)
                scan = next_page(scan, found)
    chain = followed(chain, event, limits.state_bytes_max, checked=checked)
    scan = paged(item_scan(place, item, t, INT64_MAX))
    while scan is not None:
        (found,) = yield (scan,)
        for later in map(stored_event, found.items):
            if later.op == "setitem":
                return row
            try:
                chain = followed(chain, later, limits.state_bytes_max, checked=checked)
            except UnfoldableEvent as error:
                raise UnfoldableEvent(f"a later event could not be applied any more: {error.reason}") from None
            if chain is None:
                return row
            refolding.spend(chain)
        scan = next_page(scan, found)
    return None if chain is None else chain.stored()
