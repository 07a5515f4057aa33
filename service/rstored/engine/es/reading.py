"""Event sequences: how states and events are read, page by page."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Final

from rstore.core.bounds import UnfoldableEvent
from rstored.backends.abc import Head, HeadRead, Place, Row, RowScan, Slice
from rstored.engine.batching import Storage
from rstored.engine.es.chains import Chain, followed
from rstored.engine.es.rows import (
    EVENTS_LANE,
    ITEMS_LANE,
    ItemRow,
    Meta,
    at,
    chain_of,
    chain_scans,
    decode_meta,
    next_page,
    paged,
    state_of,
    state_rows,
    state_size,
    stored_event,
)
from rstored.engine.model import State, StoredEvent
from rstored.limits import Limits
from rstored.problems import Problem

_TURN_SECONDS: Final = 0.01
_TRIES_MAX: Final = 10


async def current_state(storage: Storage, place: Place) -> State | None:
    """The current state, or None if there is no such sequence."""
    for _ in range(_TRIES_MAX):
        head, found = await storage.read(HeadRead(place), RowScan(place, ITEMS_LANE))
        if head is None:
            return None
        meta = decode_meta(head.meta)
        rows = state_rows(meta, found)
        events = await _chain_events(storage, place, meta, rows)
        if events is not None:
            return state_of(meta.last, meta.revision, rows, events)
    raise _rewritten()


async def past_state(storage: Storage, limits: Limits, place: Place, t: int) -> State | None:
    """The state as of ``t``; None if there is no such sequence, or no event until then.

    It reads all events until ``t``. The revision in the state is the current one.
    """
    for _ in range(_TRIES_MAX):
        (head,) = await storage.read(HeadRead(place))
        if head is None:
            return None
        meta = decode_meta(head.meta)
        if t >= meta.last:
            return await current_state(storage, place)
        replayed = await _replayed(storage, limits, place, meta, t)
        if replayed is None:
            continue
        last, rows = replayed
        if last is None:
            return None
        limit = limits.sequence_bytes_max
        if sum(map(state_size, rows.values())) > limit:
            detail = f"the state at that time is read from more than {limit} bytes: read the events instead"
            raise Problem("answer-too-large", detail, limit=limit)
        events = await _chain_events(storage, place, meta, rows)
        if events is not None:
            return state_of(last, meta.revision, rows, events)
    raise _rewritten()


async def event_pages(
    storage: Storage, scan: RowScan, found: Slice[Row], ops: Collection[str] | None, n: int | None
) -> AsyncIterator[list[StoredEvent]]:
    """The events of a scan, whose first page is given."""
    left = n
    while left is None or left > 0:
        events = [event for event in map(stored_event, found.items) if ops is None or event.op in ops][:left]
        if events:
            yield events
        if left is not None:
            left -= len(events)
        following = next_page(scan, found)
        if following is None:
            return
        scan = following
        (found,) = await storage.read_in_turn(scan)


async def _replayed(
    storage: Storage, limits: Limits, place: Place, meta: Meta, t: int
) -> tuple[int | None, dict[str, ItemRow]] | None:
    """The last timestamp until ``t`` and the rows of the items then. None if the history was rewritten."""
    chains: dict[str, Chain] = {}
    last: int | None = None
    scan: RowScan | None = paged(RowScan(place, EVENTS_LANE, high=at(t)[1]))
    while scan is not None:
        head, found = await storage.read_in_turn(HeadRead(place), scan)
        if not _same_history(head, meta):
            return None
        started = time.perf_counter()
        for event in map(stored_event, found.items):
            if time.perf_counter() - started > _TURN_SECONDS:
                # Long values may take long. Others have their turns in between.
                await storage.turns.take()
                started = time.perf_counter()
            last = event.timestamp
            chain = chains.get(event.item)
            if chain is None and event.op != "setitem":
                continue  # A prune has erased the start of this chain, and erases the rest.
            try:
                chain = followed(chain, event, limits.state_bytes_max)
            except UnfoldableEvent:
                # It was folded when a limit was larger. A client may still fold it.
                chain = chain and chain.extended(event, None)
            if chain is None:
                del chains[event.item]
            else:
                chains[event.item] = chain
        scan = next_page(scan, found)
    return last, {item: chain.stored() for item, chain in chains.items()}


async def _chain_events(
    storage: Storage, place: Place, meta: Meta, rows: Mapping[str, ItemRow]
) -> list[StoredEvent] | None:
    """The events of the chains that are not in the rows; None if the history was rewritten meanwhile."""
    events: list[StoredEvent] = []
    for scans in chain_scans(place, rows):
        head, *results = await storage.read_in_turn(HeadRead(place), *(scan for _, scan in scans))
        if not _same_history(head, meta):
            return None
        for (row, _), found in zip(scans, results, strict=True):
            events += chain_of(row, found)
    return events


def _same_history(head: Head | None, meta: Meta) -> bool:
    """Whether the sequence still has the history that was read with ``meta``, and was neither rewritten nor deleted."""
    return head is not None and decode_meta(head.meta).rewrites == meta.rewrites


def _rewritten() -> Problem:
    return Problem("backend-unavailable", "the past of the sequence is being rewritten; try again")
